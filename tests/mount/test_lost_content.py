"""A file whose every holder is gone, as a program on a mount meets it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import MountProcess, why_unusable
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import status
from tests.node.test_recover import pydi
from tests.node.test_replication import holders, numbered, save, set_setting, storing_cluster

MOUNT_DEADLINE_S = 8


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Makes nodes; kills those still running at the end."""
    made: list[NodeProcess] = []

    def make(name: str, *flags: str) -> NodeProcess:
        made.append(NodeProcess(tmp_path / name, *flags))
        return made[-1]

    yield make
    for node in made:
        node.kill()


@pytest.mark.parametrize("holders_lost", [1, 2], ids=["with a quorum", "without one"])
def test_content_without_a_holder_is_an_error_until_one_returns(
    make_node: Callable[..., NodeProcess], tmp_path: Path, holders_lost: int
) -> None:
    """One copy of one machine, or both copies with the majority: EIO within the deadline, what else
    there is stays readable, status and log name the file and whom to start, and when one holder is
    back it is read again, through the file that was open all the time too."""
    reason = why_unusable("kernel")
    if reason is not None:
        pytest.skip(reason)
    nodes = storing_cluster(make_node, 3)
    by_number = numbered(nodes)
    (own,) = (number for number, node in by_number.items() if node is nodes[0])
    if holders_lost == 1:
        set_setting(nodes[0], "replicas", 1)
    with nodes[0].connect() as client:
        save(client, b"elsewhere", b"on the mount's own node")
    with nodes[1].connect() as client:
        for number in range(100):
            name = b"file%d" % number
            save(client, name, b"precious")
            if own not in (held := holders(client, name)) and len(held) == holders_lost:
                break
        else:
            pytest.fail("each has a copy on the mount's own node")
    mount = MountProcess(
        tmp_path / "m", nodes[0].data_dir, "kernel", ["--deadline", str(MOUNT_DEADLINE_S)]
    )
    mount.start()
    path = mount.path / os.fsdecode(name)
    fd = os.open(path, os.O_RDONLY)
    lost = [by_number[number] for number in held]
    try:
        for node in lost:
            node.kill()
        started_s = time.monotonic()
        with pytest.raises(OSError, match="Input/output error") as raised:
            path.read_bytes()
        assert raised.value.errno == errno.EIO
        assert time.monotonic() - started_s < MOUNT_DEADLINE_S + 2.0
        assert (mount.path / "elsewhere").read_bytes() == b"on the mount's own node"
        for number in held:
            assert f"node {number}: not reachable" in nodes[0].log_text()
        wait_until(lambda: status(nodes[0])["blobs"]["missing"] >= 1, "status counts it")
        told = pydi("status", "--data-dir", nodes[0].data_dir).stdout
        assert os.fsdecode(name) in told
        lost[0].start()
        wait_until(lambda: readable(path) == b"precious", "it can be read again", 60)
        assert os.pread(fd, 100, 0) == b"precious"
    finally:
        os.close(fd)
        mount.close()


def readable(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
