"""Nodes die while the shell copies: it goes on with another one, and says what can't be had.

In a real terminal, with three real nodes; the shell uses the unix socket of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import GetFile, Lookup
from tests.cli.test_shell import PROMPT, make_large, shell
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_replication import storing_cluster

pytestmark = pytest.mark.slow

MakeNode = Callable[..., NodeProcess]


def holders(node: NodeProcess, name: bytes) -> set[int]:
    with node.connect() as client:
        version = client.call(GetFile(client.call(Lookup(ROOT_INO, name)).ino))
    assert len({info.holders for info in version.blobs}) == 1
    return set(version.blobs[0].holders)


def test_nodes_die_during_copies(make_node: MakeNode, tmp_path: Path) -> None:
    """The node in use is killed in the middle of an upload, and another in the middle of a
    download: contents are equal. With all holders gone the sentence names them and since when,
    and the shell goes on."""
    nodes = storing_cluster(make_node, 3)
    by_number = {int(node.run["number"]): node for node in nodes}
    near = nodes[0]
    large = make_large(tmp_path / "large", 150)
    with shell(near.data_dir, tmp_path, "--deadline", "60") as opened:
        with opened.slowed():
            opened.type("put large /up")
            opened.wait_for("MiB of 150.0 MiB")
            near.kill()
        opened.wait_for(PROMPT)
        near.start()
        wait_until(lambda: len(holders(nodes[1], b"up")) == 2, "both copies are there", 60)

        with opened.slowed():
            opened.type("get /up back")
            opened.wait_for("MiB of 150.0 MiB")
            near.kill()
        opened.wait_for(PROMPT)
        assert (tmp_path / "back").read_bytes() == large.read_bytes()
        near.start()
        opened.type("exit")
        opened.wait_ended()

    held_by = holders(nodes[1], b"up")
    (without,) = set(by_number) - held_by
    for number in held_by:
        by_number[number].kill()
    with shell(by_number[without].data_dir, tmp_path, "--deadline", "20") as opened:
        opened.type("get /up gone")
        first, second = sorted(held_by)
        opened.wait_for(f"not accessible: holders {first}, {second} are down since [0-9:]+")
        opened.wait_for(PROMPT)
        opened.type("ls")
        opened.wait_for("up")
    assert not (tmp_path / "gone").exists()
