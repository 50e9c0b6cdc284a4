"""Leadership goes to where the work is, and nobody notices.

The policy alone first; then replicas in memory, where "at once" means by messages, with no tick.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from pydi_node.commands import ROOT_CALLER, SetNode, Unlink
from pydi_node.consensus.types import Membership, PeerStatus, Role, Status
from pydi_node.effects import DiskFull
from pydi_node.handover import Demand, HandoverConfig, can_lead
from pydi_node.ids import ROOT_INO, LogIndex, NodeNumber, Term
from pydi_node.leases import GRANTER_S
from pydi_node.records import NodeInfo, Result
from pydi_node.replica_config import ReplicaConfig
from tests.unit.replica.cluster import Cluster, create

CONFIG = HandoverConfig(window_s=1.0, commands_min=8, hold_s=3.0)
ONE, TWO, THREE = (NodeNumber(number) for number in (1, 2, 3))

MakeCluster = Callable[..., Cluster]


# --- the policy -----------------------------------------------------------------------------------


def favourite(demand: Demand, now_s: float, **counts: int) -> NodeNumber | None:
    """After a window in which the named nodes (n1, n2 ...) brought so many commands."""
    for name, count in counts.items():
        for _ in range(count):
            demand.count(NodeNumber(int(name[1:])))
    return demand.favourite(now_s)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"n2": 8}, TWO),
        ({"n2": 7}, None),  # too little work
        ({"n1": 2, "n2": 7}, TWO),
        ({"n1": 2, "n2": 6}, None),  # three of four are not more than three of four
        ({"n1": 1, "n2": 6, "n3": 2}, None),
        ({"n1": 50, "n2": 50}, None),
        ({}, None),
    ],
)
def test_nearly_all_of_enough_work_makes_a_favourite(
    counts: dict[str, int], expected: NodeNumber | None
) -> None:
    """More than three of four commands of two windows, and enough of them."""
    demand = Demand(CONFIG, 0.0)
    assert favourite(demand, CONFIG.hold_s, **counts) is None
    assert favourite(demand, CONFIG.hold_s + CONFIG.window_s, **counts) == expected


def test_the_end_of_what_all_did_makes_no_favourite() -> None:
    """Somebody is the last, alone in the window in which the work ends."""
    demand = Demand(CONFIG, 0.0)
    assert favourite(demand, 10.0, n1=50, n2=50) is None
    assert favourite(demand, 11.0, n2=20) is None
    assert favourite(demand, 12.0) is None
    assert favourite(demand, 13.0, n2=20) is None


def test_each_window_is_looked_at_once() -> None:
    """At its end; what was before does not count any more."""
    demand = Demand(CONFIG, 0.0)
    assert favourite(demand, 0.9, n1=100) is None
    assert favourite(demand, 2.9, n2=400) is None, "held"
    assert favourite(demand, 3.8, n2=8) is None, "not over yet"
    assert favourite(demand, 3.9) == TWO
    assert favourite(demand, 4.9) is None


def test_a_leader_stays_for_a_while() -> None:
    """After its election, and after it has tried to hand over."""
    demand = Demand(CONFIG, 0.0)
    moments = [1.0 + tenth / 10 for tenth in range(100)]
    told = []
    for now_s in moments:
        if favourite(demand, now_s, n2=8) is not None:
            told.append(now_s)
            demand.handed_over(now_s)
    assert told[0] == pytest.approx(CONFIG.hold_s)
    assert all(b - a >= CONFIG.hold_s for a, b in itertools.pairwise(told))
    assert len(told) == 3


def status(**changes: dict[str, object]) -> Status:
    """Node 1 leads 2 and 3, all is well but for ``n2`` or ``n3``."""
    peers = []
    for number in (2, 3):
        peer = PeerStatus(NodeNumber(number), True, LogIndex(9), True, 1, "replicate")
        peers.append(peer._replace(**changes.get(f"n{number}", {})))  # type: ignore[arg-type]
    index = LogIndex(9)
    return Status(
        ONE, Role.LEADER, Term(1), ONE, index, index, index, index, index,
        Membership.founding(1, 2, 3), tuple(peers),
    )  # fmt: skip


BOOKS = [NodeInfo(NodeNumber(number), "", "up", False) for number in (1, 2, 3)]


def test_a_voter_that_is_up_to_date_can_lead_while_everybody_answers() -> None:
    """And nobody is a worse reason than any of these."""
    assert can_lead(TWO, status(), 4, BOOKS)
    assert can_lead(TWO, status(), 4, []), "a node need not be in the books"
    assert not can_lead(ONE, status(), 4, BOOKS), "it does already"
    assert not can_lead(TWO, status(n2={"voter": False}), 4, BOOKS)
    assert not can_lead(TWO, status(n2={"match_index": 8}), 4, BOOKS)
    for who in ("n2", "n3"):
        assert not can_lead(TWO, status(**{who: {"silent_ticks": 5}}), 4, BOOKS)
        assert not can_lead(TWO, status(**{who: {"state": "snapshot"}}), 4, BOOKS)
    assert can_lead(TWO, status(n3={"voter": False, "match_index": 3}), 4, BOOKS)


@pytest.mark.parametrize("change", [{"witness": True}, {"state": "draining"}])
def test_a_node_that_should_not_is_not_made_a_leader(change: dict[str, object]) -> None:
    """The books say what a node is for."""
    books = [BOOKS[1]._replace(**change), *BOOKS[2:]]  # type: ignore[arg-type]
    assert not can_lead(TWO, status(), 4, books)
    assert can_lead(THREE, status(), 4, books)


# --- replicas -------------------------------------------------------------------------------------


@pytest.fixture
def make() -> Iterator[MakeCluster]:
    clusters: list[Cluster] = []

    def make_cluster(voters: int, config: HandoverConfig = CONFIG) -> Cluster:
        clusters.append(Cluster(voters, config=ReplicaConfig(handover=config)))
        clusters[-1].elect()
        clusters[-1].tick()
        return clusters[-1]

    yield make_cluster
    for cluster in clusters:
        cluster.close()


class Work:
    """A program on one node: one command with each tick, as long as ``go_on``."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._number = number
        self._serial = 0
        self.slow: list[int] = []  # commands that were not answered at once

    def go_on(self, ticks: int, until_led_by: int | None = None) -> bool:
        """Whether that node leads by then; every command must have succeeded."""
        cluster = self._cluster
        replies = cluster.members[self._number].replies
        for _ in range(ticks):
            self._serial += 1
            name = f"{self._number}-{self._serial}"
            request = cluster.propose(self._number, self._number, self._serial, create(name))
            cluster.deliver()
            if request not in replies:
                self.slow.append(self._serial)
                cluster.until(lambda: request in replies)  # noqa: B023  # called at once
            outcome = replies.pop(request)
            assert isinstance(outcome, Result)
            assert outcome.errno == 0
            cluster.tick()
            if until_led_by is not None and cluster.leader() == until_led_by:
                return True
        return False


def others_of(cluster: Cluster, leader: int) -> list[int]:
    return [number for number in cluster.members if number != leader]


LONG = 400  # ticks


@pytest.mark.parametrize("holders", ["none", "all"])
@pytest.mark.parametrize("voters", [3, 5])
def test_leadership_goes_to_where_the_work_is(make: MakeCluster, holders: str, voters: int) -> None:
    """And every command is answered by messages alone, before, after and while it moves, whoever
    holds leases: a new leader hears from all of them at once."""
    cluster = make(voters)
    leader = cluster.elect()
    (busy, *_) = others_of(cluster, leader)
    term = cluster.replica(leader).raft.term
    if holders == "all":
        cluster.until(lambda: all([cluster.has_lease(number) for number in cluster.members]))
    work = Work(cluster, busy)
    assert work.go_on(LONG, until_led_by=busy)
    work.go_on(LONG // 4)
    assert cluster.leader() == busy
    assert work.slow == []
    assert cluster.replica(busy).raft.term == term + 1


@pytest.mark.parametrize("who", ["two followers", "leader and follower"])
def test_it_stays_where_two_nodes_work(make: MakeCluster, who: str) -> None:
    """Nobody wins by a move, so there is none."""
    cluster = make(3)
    leader = cluster.elect()
    first, second = others_of(cluster, leader)
    numbers = (first, second) if who == "two followers" else (leader, first)
    works = [Work(cluster, number) for number in numbers]
    for _ in range(LONG // 2):
        for work in works:
            work.go_on(1)
    assert cluster.leader() == leader


def test_it_goes_to_and_fro_no_oftener_than_it_is_held(make: MakeCluster) -> None:
    """Two nodes take turns, each long enough to be the favourite."""
    cluster = make(3)
    first, second, _ = cluster.members
    term = cluster.replica(cluster.elect()).raft.term
    began_s = cluster.now.mono_s
    works = [Work(cluster, first), Work(cluster, second)]
    for turn in range(12):
        works[turn % 2].go_on(45)
    newest = cluster.replica(cluster.elect()).raft.term
    assert newest > term
    assert (newest - term) * CONFIG.hold_s <= cluster.now.mono_s - began_s


def test_it_stays_while_a_member_is_silent(make: MakeCluster) -> None:
    """A new leader would wait for the end of the silent one's lease, and all answers with it."""
    cluster = make(3)
    leader = cluster.elect()
    (busy, silent) = others_of(cluster, leader)
    cluster.kill(silent)
    cluster.tick(int(2 * GRANTER_S / 0.05))
    work = Work(cluster, busy)
    assert not work.go_on(LONG, until_led_by=busy)
    assert work.slow == []
    cluster.start(silent)
    assert work.go_on(LONG, until_led_by=busy)


def test_it_does_not_go_to_a_node_whose_disk_is_full(make: MakeCluster) -> None:
    """That one can only remove, and as a leader it would let nobody do more."""
    cluster = make(3)
    leader = cluster.elect()
    (full, _) = others_of(cluster, leader)
    assert not Work(cluster, full).go_on(2 * CONFIG.commands_min)
    cluster.step(full, DiskFull(True))
    for serial in range(1, LONG):
        command = Unlink(ROOT_CALLER, ROOT_INO, b"%d-%d" % (full, serial))
        assert isinstance(cluster.execute(full, 99, serial, command), Result)
        cluster.tick()
    assert cluster.leader() == leader


def fill_at_the_end_of_a_window(cluster: Cluster, leader: int, full: int) -> None:
    """That node works until it would be the leader's favourite, and has no room just then."""
    work = Work(cluster, full)
    assert not work.go_on(int(CONFIG.hold_s / 0.05) - 2)
    cluster.step(full, DiskFull(True))
    cluster.until(lambda: cluster.leader() == full)


def elect_full(cluster: Cluster, leader: int, full: int) -> None:
    cluster.step(full, DiskFull(True))
    cluster.kill(leader)
    cluster.until(lambda: bool(cluster.replica(full).raft.campaign() or cluster.leader() == full))
    cluster.start(leader)


@pytest.mark.parametrize("how", [fill_at_the_end_of_a_window, elect_full])
def test_a_full_node_that_leads_all_the_same_hands_on(
    make: MakeCluster, how: Callable[[Cluster, int, int], None]
) -> None:
    """And the next one, if it is full, does likewise: whoever has room may write soon."""
    cluster = make(3)
    leader = cluster.elect()
    full = leader % 3 + 1
    also_full = full % 3 + 1
    how(cluster, leader, full)
    cluster.step(also_full, DiskFull(True))
    cluster.until(lambda: cluster.leader() == leader)
    assert isinstance(cluster.execute(leader, 7, 1, create("a")), Result)


def test_where_every_disk_is_full_leadership_comes_to_rest(make: MakeCluster) -> None:
    """Nobody has more room to offer, so each tries once in a while only."""
    cluster = make(3)
    leader = cluster.elect()
    began_s, term = cluster.now.mono_s, cluster.replica(leader).raft.term
    for number in cluster.members:
        cluster.step(number, DiskFull(True))
    cluster.tick(LONG)
    moves = cluster.replica(leader).raft.term - term
    assert 3 <= moves <= 3 * (1 + (cluster.now.mono_s - began_s) / CONFIG.hold_s)


def test_it_does_not_go_to_a_witness(make: MakeCluster) -> None:
    """The books are asked."""
    cluster = make(3)
    leader = cluster.elect()
    (witness, _) = others_of(cluster, leader)
    command = SetNode(NodeNumber(witness), "", "up", True)
    assert isinstance(cluster.execute(leader, 98, 1, command), Result)
    assert not Work(cluster, witness).go_on(LONG, until_led_by=witness)
