"""A disk may take seconds for a sync, and the cluster lives on: no clock but that of the cores.

Each core has a disk as the driver has one: a sync takes so many ticks, and all that is handed out
meanwhile goes into the next. Messages take no time. A leader proposes whenever it may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from pydi_node.consensus.elections import BACK_TIMEOUTS_MAX, ElectionClock
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.splitmix import SplitMix64
from pydi_node.consensus.types import (
    AppendRequest,
    Config,
    HardState,
    Membership,
    Message,
    Ready,
    Role,
    SnapshotMeta,
)

ELECTION_TICKS = Config(1, 0).election_ticks
WAITING_MAX = 50  # entries that a leader proposes ahead of the commit index


@dataclass
class Machine:
    raft: Raft
    sync_ticks: int
    done_at: int = 0
    syncing: list[Ready] = field(default_factory=list)
    next: list[Ready] = field(default_factory=list)

    def work(self, now: int) -> list[Message]:
        """All that this machine can do at this tick, and what it sends."""
        raft, sent = self.raft, []
        if raft.role is Role.LEADER and raft.last_index - raft.commit_index < WAITING_MAX:
            raft.propose([b"command"])
        while True:
            if self.syncing and self.done_at <= now:
                for ready in self.syncing:
                    if ready.must_persist:
                        raft.persisted(ready.number)
                    sent += ready.messages_after_persist
                self.syncing = []
            elif raft.has_ready():
                ready = raft.ready()
                sent += ready.messages
                if ready.must_persist or ready.messages_after_persist:
                    self.next.append(ready)
                if ready.committed:
                    raft.applied(ready.committed[-1].index)
            elif self.next and not self.syncing:
                self.syncing, self.next = self.next, []
                self.done_at = now + self.sync_ticks
            else:
                return sent


class Cluster:
    def __init__(self, seed: int, sync_ticks: Sequence[int]) -> None:
        founding = SnapshotMeta(0, 0, Membership.founding(*range(1, len(sync_ticks) + 1)))
        self.machines = {
            number: Machine(Raft(Config(number, seed), HardState(), founding, (), 0), ticks)
            for number, ticks in enumerate(sync_ticks, 1)
        }
        self.now = 0
        self.leaderships: list[int] = []  # terms with a leader, in their order
        self.appended_entries = 0

    def tick(self) -> None:
        self.now += 1
        for machine in self.machines.values():
            machine.raft.tick()
        messages = deque(m for machine in self.machines.values() for m in machine.work(self.now))
        while messages:
            message = messages.popleft()
            if isinstance(message, AppendRequest):
                self.appended_entries += len(message.entries)
            machine = self.machines[message.to]
            machine.raft.step(message)
            messages += machine.work(self.now)
        for machine in self.machines.values():
            raft = machine.raft
            if raft.role is Role.LEADER and raft.term not in self.leaderships:
                self.leaderships.append(raft.term)

    @property
    def commit(self) -> int:
        return max(machine.raft.commit_index for machine in self.machines.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ticks", [1, 5, 8, 10, 20, 60, 100])
def test_disks_slower_than_the_election_time_out(ticks: int, seed: int) -> None:
    """Whatever a sync takes, up to 5 s, an election takes a few of them, and who was elected goes
    on to lead while it syncs; with 0.5 s nobody was ever elected."""
    cluster = Cluster(seed, [ticks] * 3)
    while not cluster.leaderships:
        cluster.tick()
        assert cluster.now < 4 * ELECTION_TICKS + 6 * ticks, "no leader"
    elected_at = cluster.now
    for _ in range(20 * ticks + 20):
        cluster.tick()
    assert len(cluster.leaderships) == 1, cluster.leaderships
    # A commit is a follower's sync under way and the next.
    assert cluster.commit > 5, (elected_at, cluster.commit)


@pytest.mark.parametrize(
    "sync_ticks", [[1, 60, 60], [60, 1, 60], [1, 1, 100], [60] * 5, [1, 1, 60, 60, 60]]
)
@pytest.mark.parametrize("seed", range(4))
def test_disks_of_different_speed(sync_ticks: list[int], seed: int) -> None:
    """A candidate with a fast disk learns to wait for the slow ones of a majority."""
    cluster = Cluster(seed, sync_ticks)
    for _ in range(1_200):
        cluster.tick()
    assert cluster.leaderships, max(m.raft.term for m in cluster.machines.values())
    led = len(cluster.leaderships)
    commit = cluster.commit
    for _ in range(400):
        cluster.tick()
    assert len(cluster.leaderships) == led, "elected again"
    assert cluster.commit > commit


def test_entries_go_once_to_a_slow_disk() -> None:
    """Heartbeats are answered while the disk works; nothing is sent again for that."""
    cluster = Cluster(1, [1, 100, 100])
    for _ in range(2_000):
        cluster.tick()
    last = max(machine.raft.last_index for machine in cluster.machines.values())
    assert cluster.commit > 50
    assert cluster.appended_entries <= 2 * last


def test_a_disk_that_hung_for_long_is_forgiven() -> None:
    """An hour without an answer of the own disk does not cost two of the clock."""
    clock = ElectionClock(10, SplitMix64(1, 1))
    for _ in range(72_000):
        assert not clock.tick(durable=False)
    ticks = 1
    while not clock.tick(durable=True):
        ticks += 1
    assert ticks <= (BACK_TIMEOUTS_MAX + 2) * 10


def test_only_terms_without_a_leader_make_the_clock_slower() -> None:
    """The time-outs of the first two terms are the ordinary ones, then they double, to a bound; a
    leader makes them short again."""
    clock = ElectionClock(10, SplitMix64(1, 1))
    longest = []
    for term in range(9):
        clock.term_began()
        drawn = []
        for _ in range(200):
            clock.restart()
            ticks = 1
            while not clock.tick(durable=True):
                ticks += 1
            drawn.append(ticks)
        longest.append(max(drawn))
        assert min(drawn) > longest[-1] / 2 - 10, (term, min(drawn), longest)
    assert longest[:2] == [19, 19]
    assert [after / before for before, after in pairwise(longest)] == [1, 2, 2, 2, 2, 1, 1, 1]
    clock.leader_known()
    clock.restart()
    assert sum(not clock.tick(durable=True) for _ in range(20)) < 20
