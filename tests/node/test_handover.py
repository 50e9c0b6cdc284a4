"""Leadership goes to the node that works, between processes; and what only a leader has with it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from pydi_node.ids import ROOT_INO, Ino
from pydi_node.runtime.locking import GRACE_S
from pydi_node.wire.messages import LockKind, SetLock
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import start_cluster, status

MakeNode = Callable[..., NodeProcess]

MOVE_DEADLINE_S = 60.0  # for the first 10 s a leader stays


def lock(kind: LockKind = LockKind.EXCLUSIVE, ino: Ino = ROOT_INO, wait: bool = False) -> SetLock:
    return SetLock(ino, 7, kind, 0, 100, True, wait, 0)


def test_leadership_moves_under_work_and_locks(make_node: MakeNode) -> None:
    """A program on a follower: no command of its fails, and soon its node leads. Locks are held and
    waited for over that: by a node that never led, by one that did, and by the one that does."""
    nodes = start_cluster(make_node, 3)
    leader = status(nodes[0])["leader"]
    numbers = count(1)
    by_number = {int(node.run["number"]): node for node in nodes}
    busy, third = [number for number in sorted(by_number) if number != leader]
    with (
        by_number[busy].connect() as worker,
        by_number[third].connect() as holder,
        by_number[leader].connect() as waiter,
        by_number[busy].connect() as other,
    ):
        assert holder.call(lock()) is True
        waiting = waiter.send(lock(wait=True), deadline_s=2 * MOVE_DEADLINE_S)

        def has_moved() -> bool:
            for _ in range(10):
                assert worker.create(b"%d" % next(numbers)).errno == 0
            return bool(status(nodes[0])["leader"] == busy)

        wait_until(has_moved, "the node that works leads", MOVE_DEADLINE_S)
        # All nodes have told at once what they hold, so nobody need wait for GRACE_S.
        free = other.send(lock(ino=Ino(2)), deadline_s=0.75 * GRACE_S)
        assert other.wait(free) is True
        assert other.call(lock()) is False
        assert holder.call(lock(LockKind.UNLOCK)) is True
        assert waiter.wait(waiting) is True
        assert other.call(lock()) is False
