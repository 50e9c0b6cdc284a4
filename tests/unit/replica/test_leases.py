"""Leases between replicas in memory: what waits for whom, and for how long at most.

One clock for all nodes here; clocks that differ, pauses and lost messages are the simulation's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pydi_node.consensus.types import AppendRequest, HeartbeatRequest, TimeoutNow, VoteRequest
from pydi_node.effects import AddMember, Dropped, FromPeer, PeerMessage, RemoveMember, Settle
from pydi_node.errors import RemoteProtocolError
from pydi_node.ids import LogIndex, NodeNumber, Term
from pydi_node.leases import GRANTER_S, HOLDER_S, PATIENCE_S, RENEW_S, WANTED_S, Grant, Renew
from pydi_node.records import Result
from pydi_node.replica_config import ReplicaConfig
from tests.unit.replica.cluster import TICK_S, Cluster, applied, create

MakeCluster = Callable[..., Cluster]
RENEW_ROUNDING_S = 2e-6  # times of a Renew are whole microseconds


@pytest.fixture
def make() -> Iterator[MakeCluster]:
    clusters: list[Cluster] = []

    def make_cluster(voters: int, newcomers: int = 0) -> Cluster:
        clusters.append(Cluster(voters, newcomers))
        clusters[-1].elect()
        clusters[-1].tick()
        return clusters[-1]

    yield make_cluster
    for cluster in clusters:
        cluster.close()


def has_lease(cluster: Cluster, number: int) -> bool:
    return cluster.has_lease(number)


def give_leases(cluster: Cluster, *numbers: int) -> None:
    def all_have() -> bool:
        return all([has_lease(cluster, number) for number in numbers])

    cluster.until(all_have)


def others_of(cluster: Cluster, leader: int) -> list[int]:
    return [number for number in cluster.members if number != leader]


def ticks(seconds: float) -> int:
    return int(seconds / TICK_S) + 2


def take_over(cluster: Cluster, leader: int, successor: int) -> None:
    """The leader has handed over to that one, which is elected."""
    term = cluster.replica(successor).raft.term
    hand_over = TimeoutNow(NodeNumber(leader), NodeNumber(successor), term)
    cluster.step(successor, FromPeer(hand_over))
    cluster.until(lambda: cluster.leader() == successor)


def assert_waited_for(cluster: Cluster, holder: int, number: int) -> None:
    """A command on node ``number`` is answered, but not before the holder's lease is over."""
    assert has_lease(cluster, holder)  # else there would be nothing to see
    request = cluster.propose(number, 8, 1, create("a"))
    while request not in cluster.members[number].replies:
        cluster.tick()
    assert not has_lease(cluster, holder)


def answered_at_once(cluster: Cluster, number: int, serial: int) -> bool:
    """Whether a command on this node is answered without any time passing."""
    request = cluster.propose(number, 50 + number, serial, create(f"{number} {serial}"))
    cluster.deliver()
    return cluster.members[number].replies.pop(request, None) is not None


@pytest.mark.parametrize("holders", [(), (1,), (2,), (1, 2), (1, 2, 3)])
def test_nobody_waits_for_a_clock_while_all_answer(
    make: MakeCluster, holders: tuple[int, ...]
) -> None:
    """Whoever holds leases, a command on any node takes messages only, never a period."""
    cluster = make(3)
    give_leases(cluster, *holders)
    for serial in range(1, 4):
        for number in cluster.members:
            assert answered_at_once(cluster, number, serial), (number, serial)


def test_reads_under_a_lease_ask_nobody(make: MakeCluster) -> None:
    """A follower with a lease is current though it is cut off, until the lease is over."""
    cluster = make(3)
    leader = cluster.elect()
    (follower, _) = others_of(cluster, leader)
    give_leases(cluster, follower)
    cluster.cut = lambda sender, to: follower in (sender, to)
    assert has_lease(cluster, follower)
    cluster.tick(ticks(HOLDER_S))
    assert not has_lease(cluster, follower)


def test_a_lease_that_nobody_uses_ends(make: MakeCluster) -> None:
    """A node without readers holds nobody up: when it hangs, a command goes on at once."""
    cluster = make(3)
    leader = cluster.elect()
    (follower, _) = others_of(cluster, leader)
    give_leases(cluster, follower)
    cluster.tick(ticks(WANTED_S + RENEW_S))
    cluster.cut = lambda sender, to: follower in (sender, to)
    assert answered_at_once(cluster, leader, 1)


def test_a_lease_that_ends_for_want_of_use_holds_nobody_up(make: MakeCluster) -> None:
    """Who gives it up says so at once; until then it says what it has dropped."""
    cluster = make(3)
    leader = cluster.elect()
    give_leases(cluster, 1, 2, 3)
    for serial in range(1, ticks(WANTED_S + RENEW_S)):
        assert answered_at_once(cluster, leader, serial), serial
        cluster.tick()


def test_a_node_that_nobody_uses_gets_entries_and_no_news(make: MakeCluster) -> None:
    """One message per batch to one of them, whose disk is needed, and none to the other before the
    next tick: what is committed and released they learn with a later one."""
    cluster = make(3)
    leader = cluster.elect()
    idle = set(others_of(cluster, leader))
    cluster.tick(ticks(WANTED_S + RENEW_S))
    sent: list[PeerMessage] = []
    cluster.lose = lambda message: sent.append(message) is not None
    for serial in range(1, 6):
        assert answered_at_once(cluster, leader, serial)
    to_idle = [message for message in sent if message.to in idle]
    assert len(to_idle) == 5
    assert len({message.to for message in to_idle}) == 1
    assert all(isinstance(m, AppendRequest) and m.entries for m in to_idle)
    assert all(applied(cluster, number) < applied(cluster, leader) for number in idle)
    last = cluster.replica(leader).raft.last_index
    cluster.tick()
    assert all(cluster.replica(number).raft.last_index == last for number in idle)
    cluster.tick(ticks(RENEW_S) + 1)
    assert all(applied(cluster, number) == applied(cluster, leader) for number in idle)
    assert all(cluster.replica(number).is_settled for number in idle)


@pytest.mark.parametrize("first", ["command", "read"])
def test_a_node_that_was_idle_waits_for_no_clock(make: MakeCluster, first: str) -> None:
    """The first that somebody wants there is answered by messages, with all that was missed."""
    cluster = make(3)
    leader = cluster.elect()
    (idle, _) = others_of(cluster, leader)
    cluster.tick(ticks(WANTED_S + RENEW_S))
    assert answered_at_once(cluster, leader, 1)
    assert applied(cluster, idle) < applied(cluster, leader)
    if first == "command":
        assert answered_at_once(cluster, idle, 2)
    else:
        request = cluster.read(idle)
        cluster.deliver()
        assert cluster.members[idle].replies.pop(request) == Result()
    assert applied(cluster, idle) == applied(cluster, leader)
    assert cluster.replica(idle).is_settled


def test_a_needed_disk_that_is_silent_costs_one_moment(make: MakeCluster) -> None:
    """Of two nodes that nobody uses one is cut off, whichever it is. A command waits for it, less
    than a tick, once at most; the other one's disk is needed from then on."""
    cluster = make(3)
    leader = cluster.elect()
    config = cluster.replica(leader).config
    cluster.tick(ticks(WANTED_S + RENEW_S))
    for lost in others_of(cluster, leader):
        cluster.cut = lambda sender, to, lost=lost: lost in (sender, to)  # type: ignore[misc]
        waits = []
        for serial in range(1, 4):
            began_s = cluster.now.mono_s
            assert answered_at_once(cluster, leader, 10 * lost + serial)
            waits.append(cluster.now.mono_s - began_s)
        assert waits[0] == pytest.approx(config.overdue_s) or waits[0] == 0
        assert waits[1:] == [0, 0]
        cluster.cut = lambda sender, to: False
        cluster.tick(4)


def test_a_change_waits_until_every_holder_has_dropped_it(make: MakeCluster) -> None:
    """Applied on a follower and not yet dropped by its mounts, a command is answered nowhere; nor
    is a read settled that saw it."""
    cluster = make(3)
    leader = cluster.elect()
    (slow, third) = others_of(cluster, leader)
    give_leases(cluster, slow)
    cluster.members[slow].drops = False
    request = cluster.propose(leader, 9, 1, create("a"))
    cluster.deliver()
    cluster.tick(3)  # nobody uses the third, so it hears of the commit from a heartbeat
    for number in (leader, third):
        index = applied(cluster, number)
        cluster.step(number, Settle(1000 + number, index, cluster.now.mono_s + 60.0))
    cluster.tick(3)
    assert applied(cluster, slow) == applied(cluster, leader)
    for number in (leader, third):
        assert cluster.members[number].replies == {}
        assert not cluster.replica(number).is_settled
    cluster.step(slow, Dropped(applied(cluster, slow)))
    cluster.deliver()
    assert isinstance(cluster.members[leader].replies[request], Result)
    for number in (leader, third):
        assert cluster.members[number].replies[1000 + number] == Result()
        assert cluster.replica(number).is_settled


@pytest.mark.parametrize("how", ["silent", "busy"])
def test_a_holder_that_does_not_answer_is_waited_for_two_seconds_at_most(
    make: MakeCluster, how: str
) -> None:
    """Cut off, or renewing for ever without dropping: its lease ends, then the command goes on;
    and never before its lease has ended."""
    cluster = make(3)
    leader = cluster.elect()
    (bad, _) = others_of(cluster, leader)
    give_leases(cluster, bad)
    cluster.members[bad].drops = False
    if how == "silent":
        cluster.cut = lambda sender, to: bad in (sender, to)
    request = cluster.propose(leader, 9, 1, create("a"))
    cluster.deliver()
    began_s = cluster.now.mono_s
    while request not in cluster.members[leader].replies:
        assert cluster.now.mono_s - began_s < 2.0 + 2 * RENEW_S
        cluster.tick()
    assert not has_lease(cluster, bad)
    longest_s = GRANTER_S if how == "silent" else PATIENCE_S + GRANTER_S + RENEW_S
    assert cluster.now.mono_s - began_s <= longest_s + 2 * TICK_S


def test_a_holder_that_was_behind_gets_a_lease_when_it_has_caught_up(make: MakeCluster) -> None:
    """It may not answer from a state that is older than what others were told meanwhile."""
    cluster = make(3)
    leader = cluster.elect()
    (bad, _) = others_of(cluster, leader)
    give_leases(cluster, bad)
    cluster.cut = lambda sender, to: bad in (sender, to)
    assert isinstance(cluster.execute(leader, 9, 1, create("a")), Result)
    cluster.members[bad].drops = False
    cluster.cut = lambda sender, to: False
    cluster.tick(ticks(HOLDER_S))
    assert applied(cluster, bad) == applied(cluster, leader)
    assert not has_lease(cluster, bad)
    cluster.step(bad, Dropped(applied(cluster, bad)))
    give_leases(cluster, bad)


def test_a_new_leader_waits_for_leases_that_it_knows_nothing_of(make: MakeCluster) -> None:
    """The leader and a holder are cut off together. Their successor releases nothing before both
    their leases must have ended."""
    cluster = make(5)
    leader = cluster.elect()
    (holder, *rest) = others_of(cluster, leader)
    give_leases(cluster, leader, holder)
    side = {leader, holder}
    cluster.cut = lambda sender, to: (sender in side) != (to in side)
    request = cluster.propose(rest[0], 9, 1, create("a"))
    replies = cluster.members[rest[0]].replies
    while request not in replies:
        cluster.tick()
    # Whoever has a lease has not missed anything that was answered.
    assert not has_lease(cluster, holder)
    assert not has_lease(cluster, leader)


def test_leases_of_a_leader_that_hangs_are_counted_from_its_last_word(make: MakeCluster) -> None:
    """The time that the election took counts too: a command waits GRANTER_S from when the others
    last heard from the leader, and no less, for the leader can't know of them."""
    cluster = make(3)
    leader = cluster.elect()
    heard_s: list[float] = []

    def note(message: PeerMessage) -> bool:
        if message.sender == leader:
            heard_s.append(cluster.now.uptime_s)
        return False

    cluster.lose = note
    give_leases(cluster, leader, *others_of(cluster, leader))
    cluster.cut = lambda sender, to: leader in (sender, to)
    cluster.lose = lambda message: False
    cut_s = cluster.now.uptime_s
    cluster.until(lambda: cluster.leader() not in (None, leader))
    successor = cluster.leader()
    assert successor is not None
    assert cluster.now.uptime_s - cut_s < GRANTER_S  # else there would be nothing to see
    request = cluster.propose(successor, 9, 1, create("a"))
    while request not in cluster.members[successor].replies:
        cluster.tick()
    assert not has_lease(cluster, leader)
    assert cluster.now.uptime_s - cut_s <= GRANTER_S + 2 * TICK_S
    # No less for a leader whose clock goes slower than the others'.
    assert cluster.now.uptime_s - heard_s[-1] >= GRANTER_S - RENEW_ROUNDING_S


@pytest.mark.parametrize("which", ["led", "was started"])
def test_whoever_may_have_followed_an_earlier_leader_counts(make: MakeCluster, which: str) -> None:
    """The successor has long heard nothing from the leader, only the node that elects it has: it
    led itself, or can't know what it heard before it was started."""
    cluster = make(3)
    leader = cluster.elect()
    (successor, other) = others_of(cluster, leader)
    holder = other if which == "led" else leader
    from_leader = (AppendRequest, HeartbeatRequest, Grant)
    cluster.lose = lambda message: message.to == successor and isinstance(message, from_leader)
    cluster.tick(ticks(GRANTER_S))
    give_leases(cluster, holder)
    cluster.cut = lambda sender, to: holder in (sender, to)
    if which == "was started":
        cluster.kill(other)
        cluster.start(other)
    began_s = cluster.now.uptime_s
    take_over(cluster, leader, successor)
    assert_waited_for(cluster, holder, successor)
    assert cluster.now.uptime_s - began_s <= GRANTER_S + 2 * TICK_S


def test_a_leader_that_its_successor_deposed_counts(make: MakeCluster) -> None:
    """It led until a heartbeat told it of the successor, which was elected by nodes that had long
    heard nothing from it."""
    cluster = make(5)
    leader = cluster.elect()
    (successor, friend, late, holder) = others_of(cluster, leader)
    from_leader = (AppendRequest, HeartbeatRequest, Grant)

    def is_late(message: PeerMessage) -> bool:
        return isinstance(message, Renew) and (message.sender, message.to) == (late, successor)

    def is_lost(message: PeerMessage) -> bool:
        if isinstance(message, VoteRequest):
            return message.to in (leader, holder)
        return isinstance(message, from_leader) and message.to in (successor, friend)

    cluster.lose = lambda message: is_late(message) or is_lost(message)
    cluster.tick(ticks(GRANTER_S))
    give_leases(cluster, holder)
    cluster.cut = lambda sender, to: holder in (sender, to)
    take_over(cluster, leader, successor)
    cluster.lose = is_late
    cluster.tick()
    assert_waited_for(cluster, holder, successor)


def test_what_a_successor_heard_itself_counts(make: MakeCluster) -> None:
    """The node that elects it had long heard nothing from the leader."""
    cluster = make(3)
    leader = cluster.elect()
    (successor, deaf) = others_of(cluster, leader)
    from_leader = (AppendRequest, HeartbeatRequest, Grant)
    cluster.lose = lambda message: message.to == deaf and isinstance(message, from_leader)
    cluster.tick(ticks(GRANTER_S))
    give_leases(cluster, leader)
    cluster.cut = lambda sender, to: leader in (sender, to)
    cluster.lose = lambda message: False
    take_over(cluster, leader, successor)
    assert_waited_for(cluster, leader, successor)


def test_who_heard_only_a_grant_heard_from_the_leader(make: MakeCluster) -> None:
    """It counts as the last word, and not the entry or heartbeat before. (The successor's own last
    word is the order to take over: one of the four that report here, and three count.)"""
    cluster = make(5, newcomers=1)
    leader = cluster.elect()
    (successor, *_, newcomer) = others_of(cluster, leader)
    holder = NodeNumber(newcomer)
    cluster.request(leader, lambda request, at_s: AddMember(request, holder, at_s))
    give_leases(cluster, holder)
    cluster.lose = lambda message: isinstance(message, (AppendRequest, HeartbeatRequest))
    cluster.tick(ticks(GRANTER_S - HOLDER_S + 2 * RENEW_S))
    assert cluster.leader() == leader
    cluster.cut = lambda sender, to: not {sender, to}.isdisjoint({leader, holder})
    cluster.lose = lambda message: False
    take_over(cluster, leader, successor)
    assert_waited_for(cluster, holder, successor)


def test_only_a_majority_of_the_electors_vouches_for_the_time_before(make: MakeCluster) -> None:
    """Three of five elect a leader. Two of them have long heard nothing from the one before; the
    third has, and says so when the other two voters are no members any more: then those two are a
    majority of the voters, but not of those who could follow the leader before."""
    cluster = make(5)
    leader = cluster.elect()
    (successor, friend, late, holder) = others_of(cluster, leader)
    from_leader = (AppendRequest, HeartbeatRequest, Grant)
    cluster.lose = lambda message: (
        isinstance(message, from_leader) and message.to in (successor, friend)
    )
    cluster.tick(ticks(GRANTER_S))
    give_leases(cluster, holder)
    cluster.cut = lambda sender, to: not {sender, to}.isdisjoint({leader, holder})
    cluster.lose = lambda message: isinstance(message, Renew) and message.sender == late
    take_over(cluster, leader, successor)
    for number in (leader, holder):
        gone = NodeNumber(number)
        cluster.request(successor, lambda request, at_s, n=gone: RemoveMember(request, n, at_s))
    cluster.lose = lambda message: False
    assert_waited_for(cluster, holder, successor)


def test_a_member_that_left_is_remembered_over_a_restart() -> None:
    """It holds a lease while it is cut off and removed, and much is written after that. A node that
    starts then, and leads, still knows of it from its log."""
    cluster = Cluster(3, newcomers=1, config=ReplicaConfig(cut_entries=2), trailing_entries=0)
    try:
        leader = cluster.elect()
        cluster.tick()
        successor = next(number for number in (1, 2, 3) if number != leader)
        left = NodeNumber(4)
        cluster.request(leader, lambda request, at_s: AddMember(request, left, at_s))
        cluster.until(lambda: has_lease(cluster, left))
        cluster.cut = lambda sender, to: left in (sender, to)
        cluster.step(leader, RemoveMember(999, left, cluster.now.mono_s + 60.0))
        cluster.deliver()
        for serial in range(1, 7):
            cluster.propose(leader, 9, serial, create(f"{serial}"))
            cluster.deliver()
        assert has_lease(cluster, left)
        cluster.kill(successor)
        cluster.start(successor)
        take_over(cluster, leader, successor)
        assert_waited_for(cluster, left, successor)
    finally:
        cluster.close()


def test_a_leader_without_a_majority_gives_no_leases(make: MakeCluster) -> None:
    """It can't know of a successor: what it grants ends with its own certainty."""
    cluster = make(5)
    leader = cluster.elect()
    (friend, *_) = others_of(cluster, leader)
    give_leases(cluster, leader, friend)
    side = {leader, friend}
    cluster.cut = lambda sender, to: (sender in side) != (to in side)
    cluster.tick(ticks(HOLDER_S))
    assert not has_lease(cluster, leader)
    assert not has_lease(cluster, friend)


def test_what_a_node_can_not_know_breaks_its_connection(make: MakeCluster) -> None:
    """A report about entries that the leader does not have."""
    cluster = make(3)
    leader = cluster.elect()
    (liar, _) = others_of(cluster, leader)
    replica = cluster.replica(leader)
    message = Renew(
        NodeNumber(liar), NodeNumber(leader), replica.raft.term, 7, 1, 0, 0, LogIndex(10**6), True
    )
    cluster.step(leader, FromPeer(message))
    (broke,) = cluster.members[leader].others[-1:]
    assert isinstance(broke.error, RemoteProtocolError)  # type: ignore[union-attr]


def test_who_heard_from_a_leader_of_the_future_lies(make: MakeCluster) -> None:
    """Its leases would end never, or before they began."""
    cluster = make(3)
    leader = cluster.elect()
    (liar, _) = others_of(cluster, leader)
    term = cluster.replica(leader).raft.term
    message = Renew(
        NodeNumber(liar), NodeNumber(leader), term, 7, 10, 0, 11, LogIndex(0), wanted=True
    )
    cluster.step(leader, FromPeer(message))
    (broke,) = cluster.members[leader].others[-1:]
    assert isinstance(broke.error, RemoteProtocolError)  # type: ignore[union-attr]


def test_late_grants_are_not_believed(make: MakeCluster) -> None:
    """Of another term, of another run of this node, or for a lease that was given up."""
    cluster = make(3)
    leader = cluster.elect()
    (node, _) = others_of(cluster, leader)
    replica = cluster.replica(node)
    now_us = int(cluster.now.uptime_s * 1e6)
    session, term = replica.leases._session, replica.raft.term
    right = Grant(
        NodeNumber(leader), NodeNumber(node), term, session, now_us, now_us, 900_000, LogIndex(0)
    )
    for wrong in (
        right._replace(term=Term(term + 1)),
        right._replace(session=session + 1),
        right._replace(asked_us=now_us - 2_000_000),
        right._replace(asked_us=replica.leases._given_up_us),
    ):
        replica.leases.on_grant(wrong)
        assert replica.leases.remaining_s(cluster.now.uptime_s) <= 0
    replica.leases.on_grant(right)
    assert replica.leases.remaining_s(cluster.now.uptime_s) > 0


def test_a_late_word_that_no_lease_is_wanted_ends_none(make: MakeCluster) -> None:
    """It was sent before the holder asked for the lease that it has, over another connection."""
    cluster = make(3)
    leader = cluster.elect()
    (holder, _) = others_of(cluster, leader)
    give_leases(cluster, holder)
    leases = cluster.replica(holder).leases
    term = cluster.replica(leader).raft.term
    late = Renew(
        NodeNumber(holder),
        NodeNumber(leader),
        term,
        leases._session,
        1,
        0,
        0,
        leases.dropped,
        False,
    )
    cluster.step(leader, FromPeer(late))
    cluster.cut = lambda sender, to: holder in (sender, to)
    assert not answered_at_once(cluster, leader, 1)
    # What it says last counts.
    cluster.step(leader, FromPeer(late._replace(asked_us=int(cluster.now.uptime_s * 1e6) + 1)))
    assert answered_at_once(cluster, leader, 2)


def test_a_member_that_is_being_removed_gets_no_longer_lease(make: MakeCluster) -> None:
    """Its removal stands in the log and is not committed. A successor that has it in its log too
    waits no longer for this member than from then on."""
    cluster = make(4)
    leader = cluster.elect()
    (leaving, *_) = others_of(cluster, leader)
    give_leases(cluster, leaving)
    cluster.lose = lambda message: isinstance(message, AppendRequest) and bool(message.entries)
    cluster.step(leader, RemoveMember(999, NodeNumber(leaving), cluster.now.mono_s + 60.0))
    cluster.tick(ticks(HOLDER_S))
    raft = cluster.replica(leader).raft
    assert raft.commit_index < raft.last_index
    assert raft.membership.member(NodeNumber(leaving)) is None
    assert not has_lease(cluster, leaving)
