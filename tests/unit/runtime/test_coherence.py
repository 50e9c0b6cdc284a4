"""Whom a node's lease waits for: mounts that may still answer from what they hold, nobody else."""

from __future__ import annotations

from pydi_node.ids import LogIndex
from pydi_node.runtime.coherence import PATIENCE_S, SHARE, Coherence

LEASE_S = 1.0


class World:
    """A clock, and a node with a lease."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.coherence = Coherence(lambda: self.now_s)

    def dropped(self, applied: int) -> int:
        return int(self.coherence.dropped(LogIndex(applied)))

    def push(self, index: int, subscriber: str, sequence: int) -> None:
        self.coherence.pushed(LogIndex(index), subscriber, sequence)


def test_what_is_pushed_is_dropped_when_all_have_acknowledged() -> None:
    """The oldest unacknowledged change of any mount holds the node back."""
    world = World()
    for mount in ("a", "b"):
        assert world.coherence.renew(mount, LEASE_S) == LEASE_S * SHARE * 1000
    assert world.dropped(4) == 4
    world.push(5, "a", 1)
    world.push(5, "b", 1)
    world.push(6, "b", 2)
    assert world.dropped(6) == 4
    world.coherence.acknowledged("b", 2)
    assert world.dropped(6) == 4
    world.coherence.acknowledged("a", 1)
    assert world.dropped(6) == 6


def test_nobody_waits_for_a_mount_without_a_lease() -> None:
    """One that never asked, or whose node had none; and one whose lease is over, which drops all
    it was told before it hears that it has one again."""
    world = World()
    world.push(5, "never", 1)
    assert world.coherence.renew("none", 0.0) == 0
    world.push(5, "none", 1)
    assert world.dropped(5) == 5
    world.coherence.renew("late", LEASE_S)
    world.push(6, "late", 1)
    world.now_s += LEASE_S - 0.01
    assert world.dropped(6) == 5
    world.now_s += 0.02
    assert world.dropped(6) == 6
    assert world.coherence.renew("late", LEASE_S) > 0
    assert world.dropped(6) == 6


def test_a_mount_that_asks_and_does_not_drop_gets_no_longer_lease() -> None:
    """A daemon that renews while its kernel can't be told holds nobody up for ever."""
    world = World()
    world.coherence.renew("stuck", LEASE_S)
    world.push(5, "stuck", 1)
    world.now_s += PATIENCE_S / 2
    assert world.coherence.renew("stuck", LEASE_S) > 0
    world.now_s += PATIENCE_S
    assert world.coherence.renew("stuck", LEASE_S) == 0
    world.now_s += LEASE_S
    assert world.dropped(5) == 5


def test_a_mount_that_was_cut_off_is_waited_for_and_one_that_left_is_not() -> None:
    """Whoever ended the connection knows; who was disconnected may go on to the end of its lease,
    and hears of nothing."""
    world = World()
    for mount in ("left", "cut off"):
        world.coherence.renew(mount, LEASE_S)
        world.push(5, mount, 1)
    world.coherence.acknowledged("cut off", 1)
    world.coherence.gone("left", knows=True)
    assert world.dropped(5) == 5
    world.coherence.gone("cut off", knows=False)
    world.coherence.gone("cut off", knows=True)  # the connection ends, a moment later
    assert world.dropped(6) == 5
    world.now_s += LEASE_S
    assert world.dropped(6) == 6
