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
    ChangeKind,
    Config,
    HardState,
    Membership,
    MembershipChange,
    Message,
    Ready,
    Role,
    SnapshotMeta,
    VoteResponse,
)
from pydi_node.errors import NoQuorumError
from pydi_node.ids import NodeNumber

ELECTION_TICKS = Config(1, 0).election_ticks
WAITING_MAX = 50  # entries that a leader proposes ahead of the commit index


@dataclass
class Machine:
    raft: Raft
    sync_ticks: int
    done_at: int = 0
    syncing: list[Ready] = field(default_factory=list)
    next: list[Ready] = field(default_factory=list)
    reads: list[object] = field(default_factory=list)  # that were answered

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
                self.reads += [read.context for read in ready.reads]
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
            machine = self.machines.get(message.to)
            if machine is not None:
                machine.raft.step(message)
                messages += machine.work(self.now)
        for machine in self.machines.values():
            raft = machine.raft
            if raft.role is Role.LEADER and raft.term not in self.leaderships:
                self.leaderships.append(raft.term)

    def kill(self, number: int) -> None:
        del self.machines[number]

    @property
    def leader(self) -> int | None:
        leading = [n for n, machine in self.machines.items() if machine.raft.role is Role.LEADER]
        return leading[-1] if leading else None

    def until_led(self, ticks_max: int) -> int:
        """Until there is a leader; who that is."""
        end = self.now + ticks_max
        while self.leader is None:
            self.tick()
            assert self.now <= end, f"no leader within {ticks_max} ticks"
        assert self.leader is not None
        return self.leader

    @property
    def commit(self) -> int:
        return max(machine.raft.commit_index for machine in self.machines.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ticks", [1, 5, 8, 10, 20, 60, 100])
def test_disks_slower_than_the_election_time_out(ticks: int, seed: int) -> None:
    """Whatever a sync takes, up to 5 s, an election takes a few of them, and who was elected goes
    on to lead while it syncs; with 0.5 s nobody was ever elected."""
    cluster = Cluster(seed, [ticks] * 3)
    cluster.until_led(4 * ELECTION_TICKS + 6 * ticks)
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


@pytest.mark.parametrize(
    ("sync_ticks", "ticks_max"),
    [([1, 1, 60], 160), ([1, 1, 200], 440), ([1, 60, 60], 500), ([1, 1, 60, 60, 60], 500)],
)
@pytest.mark.parametrize("seed", range(6))
def test_a_slow_vote_counts_when_it_comes(sync_ticks: list[int], ticks_max: int, seed: int) -> None:
    """The leader is killed, and a slow disk's vote is needed: it takes that disk some two syncs,
    however often the candidate has thought of trying again meanwhile."""
    cluster = Cluster(seed, sync_ticks)
    leader = cluster.until_led(ticks_max)
    for _ in range(3 * max(sync_ticks)):
        cluster.tick()
    cluster.kill(cluster.leader or leader)
    cluster.until_led(ticks_max)


def test_a_vote_for_a_life_before_this_one_counts_nothing() -> None:
    """The log for which it was given may have lost its end."""
    founding = SnapshotMeta(0, 0, Membership.founding(1, 2, 3))
    machine = Machine(Raft(Config(1, 1), HardState(1, 1, 0), founding, (), 0), 0)
    raft = machine.raft
    while raft.role is not Role.PRE_CANDIDATE:
        raft.tick()
        machine.work(0)
    for voter in (2, 3):
        raft.step(VoteResponse(voter, 1, 1, True, False))
    assert raft.role is Role.PRE_CANDIDATE
    raft.step(VoteResponse(2, 1, 2, True, True))
    machine.work(0)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)
    raft.step(VoteResponse(2, 1, 2, True, False))
    assert raft.role is Role.LEADER


@pytest.mark.parametrize("told", [False, True], ids=["silence", "told"])
@pytest.mark.parametrize("hung_ticks", [8, 10, 20, 100, 1200])
def test_who_was_busy_when_the_leader_died_does_not_take_it_for_alive(
    hung_ticks: int, told: bool
) -> None:
    """Its disk writes the new term when the leader is killed. When that is done it votes."""
    cluster = Cluster(1, [1, 1, hung_ticks])
    leader = cluster.until_led(60)
    busy = cluster.machines[3]
    cluster.tick()
    cluster.tick()
    assert not busy.raft.term_is_durable
    busy.sync_ticks = 1  # from the next one on
    cluster.kill(leader)
    if told:
        for machine in cluster.machines.values():
            machine.raft.leader_gone()
    while not busy.raft.term_is_durable:
        cluster.tick()
    cluster.until_led(2 * ELECTION_TICKS)


def hanging(cluster: Cluster) -> tuple[Raft, int, int]:
    """The leader, which goes on for 10 s with one follower, and the one whose disk hangs."""
    leader = cluster.until_led(60)
    well, hung = (number for number in cluster.machines if number != leader)
    for _ in range(60):
        cluster.tick()
    cluster.machines[hung].sync_ticks = 1 << 40
    for _ in range(200):
        cluster.tick()
    return cluster.machines[leader].raft, well, hung


def test_no_vote_is_given_away_on_a_disk_that_hangs() -> None:
    """It answers heartbeats and would commit nothing: without the other one, nobody would."""
    raft, well, hung = hanging(Cluster(1, [1, 1, 1]))
    with pytest.raises(NoQuorumError):
        raft.propose_membership(MembershipChange(ChangeKind.REMOVE, NodeNumber(well)))
    raft.propose_membership(MembershipChange(ChangeKind.REMOVE, NodeNumber(hung)))


def test_a_disk_that_hangs_shows() -> None:
    """In the leader's status, for whom it is like one that is away."""
    raft, well, hung = hanging(Cluster(1, [1, 1, 1]))
    peers = {peer.number: peer for peer in raft.status().peers}
    assert (peers[NodeNumber(well)].active, peers[NodeNumber(hung)].active) == (True, False)
    assert peers[NodeNumber(well)].silent_ticks < ELECTION_TICKS
    assert peers[NodeNumber(hung)].silent_ticks > 190


def test_a_read_waits_for_no_disk() -> None:
    """At a follower whose disk is slow: it asks the leader at once."""
    cluster = Cluster(1, [1, 1, 1])
    leader = cluster.until_led(60)
    raft = cluster.machines[next(number for number in (1, 2) if number != leader)].raft
    cluster.machines[raft.node].sync_ticks = 100
    for _ in range(130):
        cluster.tick()
    raft.read_index("read")
    for _ in range(3):
        cluster.tick()
    assert cluster.machines[raft.node].reads == ["read"]


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
        assert not clock.tick(writing=True)
    ticks = 1
    while not clock.tick(writing=False):
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
            while not clock.tick(writing=False):
                ticks += 1
            drawn.append(ticks)
        longest.append(max(drawn))
        assert min(drawn) > longest[-1] / 2 - 10, (term, min(drawn), longest)
    assert longest[:2] == [19, 19]
    assert [after / before for before, after in pairwise(longest)] == [1, 2, 2, 2, 2, 1, 1, 1]
    clock.leader_known()
    clock.restart()
    assert sum(not clock.tick(writing=False) for _ in range(20)) < 20
