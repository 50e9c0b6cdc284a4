"""Why a node can't be emptied, in a sentence that helps."""

from __future__ import annotations

import pytest

from pydi_node.blobs.placement import NodeState
from pydi_node.ids import NodeNumber
from pydi_node.records import BlobTotal
from pydi_node.runtime.draining import obstacle

ONE = NodeNumber(1)


def node(number: int, **changes: int | bool) -> NodeState:
    state = NodeState(NodeNumber(number), True, False, False, 0, 900, 1000, 0)
    return state._replace(**changes)  # type: ignore[arg-type]  # test shorthand


def total(blobs: int, *holders: int) -> BlobTotal:
    return BlobTotal(tuple(NodeNumber(n) for n in holders), blobs, blobs * 100)


@pytest.mark.parametrize(
    ("totals", "nodes", "expected"),
    [
        ([total(5, 1, 2)], [node(1), node(2), node(3)], None),
        ([total(5, 2)], [node(1)], None),  # it is empty
        ([total(5, 1, 2)], [node(1), node(2)], "add a node"),
        ([total(5, 1, 2)], [node(1), node(2), node(3, witness=True)], "add a node"),
        ([total(5, 1, 2)], [node(1), node(2), node(3, draining=True)], "add a node"),
        ([total(5, 1, 2)], [node(1), node(2), node(3, up=False)], "start or add nodes"),
        ([total(5, 1)], [node(1, up=False), node(2), node(3)], "the only copy of 5 blobs"),
        ([total(5, 1, 2)], [node(1, up=False), node(2), node(3)], None),
        ([total(19, 1, 2)], [node(1), node(2), node(3)], "the others have room for 1800"),
    ],
)  # fmt: skip
def test_obstacles(totals: list[BlobTotal], nodes: list[NodeState], expected: str | None) -> None:
    """Too few nodes, too little room, a last copy that can't be had: else none."""
    told = obstacle(ONE, totals, nodes, 2)
    assert told == expected if expected is None or told is None else expected in told
