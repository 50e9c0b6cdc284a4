"""Which of the cluster's members a client goes to when its node dies."""

from __future__ import annotations

from typing import Any, cast

from pydi_fs.client import Client
from pydi_node.ids import NodeNumber
from pydi_node.records import NodeInfo


def test_neither_a_witness_nor_a_forgotten_node_is_gone_to() -> None:
    """A witness takes no content, so a mount on it could not write; a forgotten node stops."""
    reached: list[tuple[str, int]] = []

    def reach(host: str, port: int) -> Any:
        reached.append((host, port))
        return object()

    client = Client([cast(Any, object())], reach)
    members = [
        NodeInfo(NodeNumber(1), "a:1", "up", False),
        NodeInfo(NodeNumber(2), "b:2", "up", True),
        NodeInfo(NodeNumber(3), "c:3", "forgotten", False),
        NodeInfo(NodeNumber(4), "", "up", False),
    ]
    client._learn(members)
    client._learn(members)
    assert reached == [("a", 1)]
