"""Replicas alone and joined in memory: outcomes, exactly once, reads, members, full disks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.commands import ROOT_CALLER, PurgeOrphans, SetSetting, SetXattr, Unlink
from pydi_node.consensus.types import AppendRequest
from pydi_node.effects import (
    AddMember,
    DiskFull,
    Dropped,
    Enlist,
    Forward,
    FromPeer,
    Leave,
    Persisted,
    Push,
    Refuse,
    RefuseReason,
    RemoveMember,
    Reply,
    TreeStalled,
    decode_peer_message,
    encode_peer_message,
)
from pydi_node.errors import (
    BusyError,
    DeadlineError,
    NoQuorumError,
    NoSpaceError,
    NotLeaderError,
    RemoteProtocolError,
)
from pydi_node.ids import ROOT_INO, ClientId, Ino, NodeNumber, Serial
from pydi_node.records import Result
from pydi_node.replica_config import ReplicaConfig
from tests.unit.replica.cluster import Cluster, applied, create

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make() -> Iterator[MakeCluster]:
    """Makes clusters; at the end each tree is checked."""
    clusters: list[Cluster] = []

    def make_cluster(*arguments: object, **more: object) -> Cluster:
        clusters.append(Cluster(*arguments, **more))  # type: ignore[arg-type]
        return clusters[-1]

    yield make_cluster
    for cluster in clusters:
        cluster.close()


def numbers(cluster: Cluster) -> set[int]:
    return set(cluster.members)


def converge(cluster: Cluster) -> None:
    """All that are up have applied the same and hold the same tree."""
    up = [n for n, m in cluster.members.items() if m.replica is not None]
    cluster.until(lambda: len({applied(cluster, n) for n in up}) == 1)
    assert len({cluster.tree(n).digest() for n in up}) == 1


# --- one node -------------------------------------------------------------------------------------


def test_single_node_answers_only_what_is_durable(make: MakeCluster) -> None:
    """A command is answered after its entry is on disk and applied, not before."""
    cluster = make(1)
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    request = cluster.propose(1, 1, 1, create("a"))
    cluster.deliver()
    assert request not in member.replies
    assert cluster.tree(1).readdir(ROOT_INO, 0, 10) == []
    member.disk_stopped = False
    cluster.deliver()
    assert member.replies[request].errno == 0  # type: ignore[union-attr]


def test_commands_that_come_while_the_disk_works_are_one_append(make: MakeCluster) -> None:
    """Group commit: the second command starts a batch, which leaves when the first is applied."""
    cluster = make(1)
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    for serial in range(1, 21):
        cluster.propose(1, 1, serial, create(f"f{serial}"))
    assert [len(p.entries) for p in member.unsynced] == [1]
    effects_before = len(member.replies)
    cluster.sync(1)
    assert [len(p.entries) for p in member.unsynced] == [19]
    member.disk_stopped = False
    cluster.deliver()
    assert len(member.replies) - effects_before == 20


def test_one_append_is_bounded_in_bytes_too(make: MakeCluster) -> None:
    """Commands that carry small files: more than a batch of them holds up nobody by all of it, and
    never passes what the log may hold unapplied. A command above the bound goes alone."""
    cluster = make(1)
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    large = ReplicaConfig().proposal_bytes_per_step_max // 3
    cluster.propose(1, 1, 1, create("first"))
    for serial, size in enumerate((large, large, large, 5 * large, large), 2):
        value = SetXattr(ROOT_CALLER, ROOT_INO, b"user.x", bytes(size), 0)
        cluster.propose(1, 1, serial, value)
    appends = []
    while member.unsynced:
        appends.append(sum(len(persist.entries) for persist in member.unsynced))
        cluster.sync(1)
    assert appends == [1, 2, 1, 1, 1]
    assert cluster.replica(1).outstanding == 0


def test_pushes_come_before_replies(make: MakeCluster) -> None:
    """Whoever hears of an outcome finds no stale cache: it waits until all have dropped it."""
    cluster = make(1)
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    request = cluster.propose(1, 1, 1, create("1"))
    (persist,) = member.unsynced
    effects = cluster.replica(1).step(cluster.now, [Persisted(persist.number)])
    kinds = [type(e) for e in effects if isinstance(e, (Push, Reply))]
    assert kinds == [Push]
    cluster.step(1, Dropped(cluster.tree(1).applied_index))
    assert request in member.replies
    member.unsynced = []


def test_repeated_command_gets_its_first_result(make: MakeCluster) -> None:
    """Exactly once: also while the first attempt is under way, and after a restart."""
    cluster = make(1)
    cluster.elect()
    first = cluster.execute(1, 7, 1, create("a"))
    assert isinstance(first, Result)
    assert first.errno == 0
    assert cluster.execute(1, 7, 1, create("a")) == first.kept
    one, two = (cluster.propose(1, 7, 2, create("b")) for _ in range(2))
    cluster.deliver()
    replies = cluster.members[1].replies
    assert replies[one] == replies[two]
    cluster.kill(1)
    cluster.start(1)
    again = cluster.execute(1, 7, 1, create("a"))
    assert isinstance(again, Result)
    assert again.kept == first.kept
    outcome = cluster.execute(1, 7, 3, create("a"))
    assert isinstance(outcome, Result)
    assert outcome.errno == errno.EEXIST


def test_reads_of_a_lone_leader_need_no_question(make: MakeCluster) -> None:
    """Only once this term's first entry is applied: what an earlier start acknowledged may still
    wait in the log."""
    cluster = make(1)
    assert not cluster.has_lease(1)
    cluster.elect()
    cluster.deliver()
    assert cluster.has_lease(1)
    cluster.kill(1)
    cluster.start(1)
    member = cluster.members[1]
    member.disk_stopped = True
    while not cluster.replica(1).is_leader:
        cluster.tick()
        if not any(persist.entries for persist in member.unsynced):
            cluster.sync(1)  # term and vote; the first entry stays unsynced
    assert not cluster.has_lease(1)
    member.disk_stopped = False
    cluster.deliver()
    assert cluster.has_lease(1)


def test_time_of_commands_never_goes_back(make: MakeCluster) -> None:
    """A wall clock that jumps back does not make younger commands older."""
    cluster = make(1)
    cluster.elect()
    cluster.execute(1, 1, 1, create("a"))
    cluster.now = cluster.now._replace(time_ns=cluster.now.time_ns - 10**12)
    cluster.execute(1, 1, 2, create("b"))
    a, b = (cluster.tree(1).lookup(ROOT_INO, name) for name in (b"a", b"b"))
    assert b.mtime_ns >= a.mtime_ns


# --- full disks -----------------------------------------------------------------------------------


def test_full_disk_refuses_what_needs_space_only(make: MakeCluster) -> None:
    """DiskFull: a create is NoSpaceError at once, an unlink goes through; both after it is over."""
    cluster = make(1)
    cluster.elect()
    cluster.execute(1, 1, 1, create("a"))
    cluster.step(1, DiskFull(True))
    assert isinstance(cluster.execute(1, 1, 2, create("b")), NoSpaceError)
    outcome = cluster.execute(1, 1, 3, Unlink(ROOT_CALLER, ROOT_INO, b"a"))
    assert isinstance(outcome, Result)
    assert outcome.errno == 0
    cluster.step(1, DiskFull(False))
    assert isinstance(cluster.execute(1, 1, 4, create("b")), Result)


def test_command_caught_by_a_full_log_is_no_space_at_its_deadline(make: MakeCluster) -> None:
    """Nothing was acknowledged, nothing is lost: it counts when the disk has room again."""
    cluster = make(1)
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    request = cluster.propose(1, 1, 1, create("a"), deadline_s=1.0)
    cluster.step(1, DiskFull(True))
    cluster.tick(40)
    assert isinstance(member.replies[request], NoSpaceError)
    member.disk_stopped = False
    cluster.step(1, DiskFull(False))
    first = cluster.execute(1, 1, 1, create("a"))
    assert isinstance(first, Result)
    assert first.errno == 0


def test_full_tree_stalls_and_goes_on(make: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite without room, which the commit after the first batch finds: applying waits, then goes
    on where it stopped, in order."""
    cluster = make(1)
    cluster.elect()
    cluster.deliver()
    member = cluster.members[1]
    pages = member.connection.execute("PRAGMA page_count").fetchone()[0]
    member.connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    count = member.replica.config.apply_batch_max + 50
    requests = [
        cluster.propose(1, 1, serial, create("x" * 200 + str(serial)))
        for serial in range(1, count + 1)
    ]
    cluster.deliver()
    assert TreeStalled(True) in member.others
    assert any(request not in member.replies for request in requests)
    member.connection.execute("PRAGMA max_page_count = 100000").fetchone()
    cluster.until(lambda: TreeStalled(False) in member.others)
    assert all(isinstance(member.replies[request], Result) for request in requests)


# --- three nodes ----------------------------------------------------------------------------------


def test_command_on_a_follower_is_answered_there_after_its_own_apply(make: MakeCluster) -> None:
    """Read your writes on your node: when the reply comes, the follower's tree has the change."""
    cluster = make(3)
    leader = cluster.elect()
    follower = min(numbers(cluster) - {leader})
    outcome = cluster.execute(follower, 1, 1, create("a"))
    assert isinstance(outcome, Result)
    assert outcome.errno == 0
    assert cluster.tree(follower).lookup(ROOT_INO, b"a").ino > 0
    converge(cluster)


def test_commands_survive_the_leader_they_were_forwarded_to(make: MakeCluster) -> None:
    """The leader dies with the forwarded commands: the node that leads next proposes its own, and
    the other one forwards again; each is done once."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    others = numbers(cluster) - {leader}
    cluster.cut = lambda sender, to: to == leader
    requests = {n: cluster.propose(n, n, 1, create(f"by {n}"), deadline_s=30.0) for n in others}
    cluster.deliver()
    cluster.kill(leader)
    cluster.cut = lambda sender, to: False
    for number, request in requests.items():
        replies = cluster.members[number].replies
        cluster.until(lambda replies=replies, request=request: request in replies, 700)
        assert isinstance(replies[request], Result)
    cluster.start(leader)
    converge(cluster)
    assert len(cluster.tree(leader).readdir(ROOT_INO, 0, 10)) == 2


def test_lost_forward_is_sent_again(make: MakeCluster) -> None:
    """The message was lost while leader and follower stayed: no change of role reminds anybody."""
    cluster = make(3)
    leader = cluster.elect()
    follower = min(numbers(cluster) - {leader})
    cluster.tick(5)
    cluster.cut = lambda sender, to: (sender, to) == (follower, leader)
    request = cluster.propose(follower, 1, 1, create("a"))
    cluster.deliver()
    cluster.cut = lambda sender, to: False
    cluster.until(lambda: request in cluster.members[follower].replies)
    assert isinstance(cluster.members[follower].replies[request], Result)
    assert cluster.leader() == leader


def test_followers_acknowledge_only_what_is_on_their_disks(make: MakeCluster) -> None:
    """With both followers' disks standing still nothing is committed, however fast the network."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    others = numbers(cluster) - {leader}
    for number in others:
        cluster.members[number].disk_stopped = True
    request = cluster.propose(leader, 1, 1, create("a"))
    cluster.deliver()
    assert request not in cluster.members[leader].replies
    cluster.members[max(others)].disk_stopped = False
    cluster.deliver()
    assert isinstance(cluster.members[leader].replies[request], Result)
    cluster.members[min(others)].disk_stopped = False
    cluster.tick(3)


def test_read_waits_for_the_local_tree(make: MakeCluster) -> None:
    """The read index is known, its entries are not here yet: no answer before they are."""
    cluster = make(3)
    leader = cluster.elect()
    follower = max(numbers(cluster) - {leader})
    cluster.tick(5)
    cluster.lose = lambda message: isinstance(message, AppendRequest) and message.to == follower
    assert isinstance(cluster.execute(leader, 1, 1, create("a")), Result)
    read = cluster.read(follower)
    cluster.deliver()
    assert read not in cluster.members[follower].replies
    assert cluster.tree(follower).readdir(ROOT_INO, 0, 10) == []
    cluster.lose = lambda message: False
    cluster.until(lambda: read in cluster.members[follower].replies)
    assert cluster.tree(follower).lookup(ROOT_INO, b"a").ino > 0


def test_retry_on_another_node_gets_the_first_result(make: MakeCluster) -> None:
    """The same (client, serial) through two nodes is done once."""
    cluster = make(3)
    cluster.elect()
    outcomes = {n: cluster.execute(n, 9, 1, create("a")) for n in numbers(cluster)}
    first = outcomes[1]
    assert isinstance(first, Result)
    assert first.errno == 0
    others = [outcomes[2], outcomes[3]]
    assert [o.kept for o in others if isinstance(o, Result)] == [first.kept, first.kept]


def test_few_large_commands_are_cut_too(make: MakeCluster) -> None:
    """Long before there are enough of them: what they carry would stay in memory."""
    config = ReplicaConfig(cut_entries=10_000, cut_bytes=10_000)
    cluster = make(1, config=config, trailing_entries=0)
    cluster.elect()
    replica = cluster.members[1].replica
    assert replica is not None
    for serial in range(1, 4):
        cluster.execute(1, 1, serial, SetXattr(ROOT_CALLER, ROOT_INO, b"user.x", bytes(4000), 0))
        assert (replica.raft.first_index > 1) == (serial == 3)


def test_minority_refuses_writes_and_reads_find_no_quorum(make: MakeCluster) -> None:
    """Alone out of three: NoQuorumError at the deadline, and nothing is applied."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    for number in numbers(cluster) - {leader}:
        cluster.kill(number)
    request = cluster.propose(leader, 1, 1, create("a"), deadline_s=3.0)
    read = cluster.read(leader, deadline_s=3.0)
    cluster.tick(100)
    replies = cluster.members[leader].replies
    assert isinstance(replies[request], NoQuorumError)
    assert isinstance(replies[read], NoQuorumError)
    assert cluster.tree(leader).readdir(ROOT_INO, 0, 10) == []


def test_follower_reads_are_linearizable(make: MakeCluster) -> None:
    """A read that begins after a command was answered elsewhere waits until it is applied here."""
    cluster = make(3)
    leader = cluster.elect()
    follower = max(numbers(cluster) - {leader})
    cluster.tick(5)
    # The follower hears of the commit later: its copy of the append is lost.
    cluster.cut = lambda sender, to: to == follower
    assert isinstance(cluster.execute(leader, 1, 1, create("a")), Result)
    read = cluster.read(follower)
    assert read not in cluster.members[follower].replies
    cluster.cut = lambda sender, to: False
    cluster.until(lambda: read in cluster.members[follower].replies)
    assert cluster.tree(follower).lookup(ROOT_INO, b"a").ino > 0


def test_full_leader_hands_over(make: MakeCluster) -> None:
    """One full disk out of three does not stop the cluster."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    cluster.step(leader, DiskFull(True))
    cluster.until(lambda: cluster.leader() not in (None, leader))
    other = min(numbers(cluster) - {leader})
    assert isinstance(cluster.execute(other, 1, 1, create("a")), Result)


def test_leader_without_room_refuses_forwarded_commands(make: MakeCluster) -> None:
    """Refuse reaches the node that forwarded, as NoSpaceError, long before the deadline."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    follower = min(numbers(cluster) - {leader})
    forward = Forward(
        NodeNumber(follower), NodeNumber(leader), ((ClientId(1), Serial(1), create("a")),)
    )
    request = cluster.propose(follower, 1, 1, create("a"))
    refuse = Refuse(
        NodeNumber(leader), NodeNumber(follower), RefuseReason.NO_SPACE,
        tuple((c, s) for c, s, _ in forward.items),
    )  # fmt: skip
    cluster.step(follower, FromPeer(refuse))
    assert isinstance(cluster.members[follower].replies[request], NoSpaceError)


def test_snapshot_brings_a_far_behind_node_up(make: MakeCluster) -> None:
    """The log was cut; the tree travels, and a command that waits there gets its Result."""
    config = ReplicaConfig(cut_entries=20)
    cluster = make(3, config=config, trailing_entries=5, trailing_bytes_max=1000)
    leader = cluster.elect()
    behind = max(numbers(cluster) - {leader})
    cluster.kill(behind)
    for serial in range(1, 121):
        cluster.execute(leader, 1, serial, create(f"f{serial}"))
    assert cluster.members[leader].meta.index > 50
    cluster.start(behind)
    converge(cluster)
    assert len(cluster.tree(behind).readdir(ROOT_INO, 0, 1000)) == 120
    again = cluster.execute(behind, 1, 120, create("f120"))
    assert isinstance(again, Result)
    assert again.errno == 0


# --- members --------------------------------------------------------------------------------------


def test_newcomers_become_voters_and_all_leave_down_to_the_last(make: MakeCluster) -> None:
    """One node, two join and are promoted; then each leaves cleanly and the last goes on alone."""
    cluster = make(1, newcomers=2)
    leader = cluster.elect()
    for number in (2, 3):
        outcome = cluster.request(
            leader, lambda request, s, n=number: AddMember(request, NodeNumber(n), s)
        )
        assert isinstance(outcome, Result)
    cluster.until(lambda: cluster.replica(1).raft.membership.voters == (1, 2, 3))
    left: set[int] = set()
    for serial, leaving in enumerate((1, 3), 1):
        up = min(numbers(cluster) - left)
        assert isinstance(cluster.execute(up, 1, serial, create(f"f{serial}")), Result)
        assert isinstance(cluster.request(leaving, Leave), Result)
        cluster.kill(leaving)
        left.add(leaving)
        cluster.elect()
    assert isinstance(cluster.execute(2, 1, 3, create("alone")), Result)
    assert cluster.replica(2).raft.membership.voters == (2,)
    assert isinstance(cluster.request(2, Leave), Result)
    # And back again, in another order: started nodes ask for their vote.
    cluster.start(3)
    cluster.start(1)
    cluster.until(lambda: cluster.replica(2).raft.membership.voters == (1, 2, 3))
    converge(cluster)


def test_who_left_wants_no_vote_while_its_program_ends(make: MakeCluster) -> None:
    """It is still connected for a moment: its vote then would count once it is gone."""
    cluster = make(3)
    leader = cluster.elect()
    assert isinstance(cluster.request(leader, Leave), Result)
    cluster.tick(100)
    others = tuple(sorted(set(numbers(cluster)) - {leader}))
    assert all(cluster.replica(n).raft.membership.voters == others for n in numbers(cluster))


def test_leave_without_a_majority_says_so(make: MakeCluster) -> None:
    """Two voters, one gone: the other can't hand over, and doesn't wait for ever."""
    cluster = make(2)
    leader = cluster.elect()
    cluster.kill(3 - leader)
    assert isinstance(cluster.request(leader, Leave), NoQuorumError)


def test_vanished_voter_is_voted_out_after_its_grace_time_and_comes_back(
    make: MakeCluster,
) -> None:
    """With a majority there, and not before grace_s."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.execute(leader, 0, 1, SetSetting("grace_s", "10"))
    gone = max(numbers(cluster) - {leader})
    cluster.kill(gone)
    cluster.tick(150)
    assert gone in cluster.replica(leader).raft.membership.voters
    cluster.until(lambda: gone not in cluster.replica(leader).raft.membership.voters)
    cluster.start(gone)
    cluster.until(lambda: gone in cluster.replica(leader).raft.membership.voters)
    converge(cluster)


def test_membership_requests_on_a_follower_name_the_leader(make: MakeCluster) -> None:
    """AddMember and RemoveMember are the leader's business."""
    cluster = make(3)
    leader = cluster.elect()
    cluster.tick(5)
    follower = min(numbers(cluster) - {leader})
    outcome = cluster.request(follower, lambda r, s: RemoveMember(r, NodeNumber(leader), s))
    assert isinstance(outcome, NotLeaderError)
    assert outcome.leader == leader


# --- any schedule ---------------------------------------------------------------------------------


def test_change_that_another_leader_replaced_is_not_done(make: MakeCluster) -> None:
    """A removal stands in the log of a leader that was cut off; the next leader puts something else
    there. Whoever asked is not told that it is done when that index is applied."""
    cluster = make(3)
    leader = cluster.elect()
    rest = sorted(numbers(cluster) - {leader})
    cluster.cut = lambda sender, to: leader in (sender, to)
    request = cluster._request()
    cluster.step(leader, RemoveMember(request, NodeNumber(rest[0]), cluster.now.mono_s + 300.0))
    replaced = cluster.replica(leader).raft.last_index
    cluster.until(lambda: any(cluster.replica(n).is_leader for n in rest))
    (other,) = [n for n in rest if cluster.replica(n).is_leader]
    for serial in range(1, 4):
        assert cluster.execute(other, 1, serial, create(f"f{serial}")) is not None
    replies = cluster.members[leader].replies
    assert request not in replies
    cluster.cut = lambda sender, to: False
    cluster.until(lambda: request in replies)
    converge(cluster)
    assert applied(cluster, leader) >= replaced
    assert isinstance(replies[request], NotLeaderError)
    assert cluster.replica(leader).raft.membership.member(NodeNumber(rest[0])) is not None


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_schedule_keeps_every_acknowledged_command_once(data: st.DataObject) -> None:
    """Random kills, restarts, cuts and commands through any node: what was acknowledged is in
    every tree in the end, once, and all trees are equal."""
    cluster = Cluster(3, config=ReplicaConfig(cut_entries=30), trailing_entries=5)
    acknowledged: set[str] = set()
    waiting: dict[tuple[int, int], str] = {}
    serial = 0
    for _ in range(data.draw(st.integers(5, 40))):
        number = data.draw(st.integers(1, 3))
        match data.draw(st.sampled_from(["propose", "propose", "tick", "kill", "start", "cut"])):
            case "propose" if cluster.members[number].replica is not None:
                serial += 1
                # The same command through two nodes, as a client that loses its node does.
                for via in {number, data.draw(st.integers(1, 3))}:
                    if cluster.members[via].replica is not None:
                        request = cluster.propose(via, 1, serial, create(f"f{serial}"), 5.0)
                        waiting[(via, request)] = f"f{serial}"
                cluster.deliver()
            case "tick":
                cluster.tick(data.draw(st.integers(1, 30)))
            case "kill":
                cluster.kill(number)
            case "start" if cluster.members[number].replica is None:
                cluster.start(number)
            case "cut":
                alone = data.draw(st.integers(0, 3))
                cluster.cut = lambda sender, to, n=alone: n in (sender, to)
        for (via, request), name in list(waiting.items()):
            outcome = cluster.members[via].replies.get(request)
            if isinstance(outcome, Result):
                assert outcome.errno == 0, (name, outcome)
                acknowledged.add(name)
                del waiting[(via, request)]
    cluster.cut = lambda sender, to: False
    for number, member in cluster.members.items():
        if member.replica is None:
            cluster.start(number)
    cluster.elect()
    cluster.execute(1, 2, 1, create("last"))
    converge(cluster)
    names = [entry.name.decode() for entry in cluster.tree(1).readdir(ROOT_INO, 0, 10_000)]
    assert acknowledged <= set(names)
    assert len(names) == len(set(names))
    cluster.close()


def large(number: int, size: int) -> SetXattr:
    return SetXattr(ROOT_CALLER, ROOT_INO, b"user.%d" % number, bytes(size), 0)


def test_clients_of_a_node_whose_disk_hangs_are_refused_by_bytes(make: MakeCluster) -> None:
    """Whoever goes on sending hears that the node is busy; what it took is done in the end, and
    then there is room again."""
    cluster = make(1, config=ReplicaConfig(pending_bytes_max=100_000))
    cluster.elect()
    member = cluster.members[1]
    member.disk_stopped = True
    requests = [cluster.propose(1, 1, serial, large(serial, 30_000)) for serial in range(1, 50)]
    busy = [r for r in requests if isinstance(member.replies.get(r), BusyError)]
    assert busy == requests[3:]
    member.disk_stopped = False
    cluster.deliver()
    assert all(isinstance(member.replies[request], Result) for request in requests[:3])
    assert isinstance(cluster.execute(1, 1, 50, large(50, 90_000)), Result)


def test_a_leader_whose_disk_hangs_holds_few_bytes_of_others(make: MakeCluster) -> None:
    """A member sends as fast as it can; what the leader did not keep is sent again and done."""
    config = ReplicaConfig(forwarded_bytes_max=100_000)
    cluster = make(3, config=config)
    leader = cluster.elect()
    cluster.tick()
    sender = next(number for number in cluster.members if number != leader)
    for member in cluster.members.values():
        member.disk_stopped = True
    cluster.propose(leader, 9, 1, create("first"))  # what follows waits for the log
    requests = [cluster.propose(sender, 1, s, large(s, 30_000)) for s in range(1, 50)]
    cluster.deliver()
    replica = cluster.replica(leader)
    assert 0 < sum(len(c.value) for c in replica._unsent.values()) <= 100_000  # type: ignore[union-attr]
    for member in cluster.members.values():
        member.disk_stopped = False
    replies = cluster.members[sender].replies
    cluster.until(lambda: all(request in replies for request in requests))
    assert all(isinstance(replies[request], (Result, DeadlineError)) for request in requests)
    assert replica._forwarded.total == 0 == cluster.replica(sender)._pending_sizes.total


# --- messages -------------------------------------------------------------------------------------


def test_peer_messages_survive_their_encoding() -> None:
    """Each message of ours comes back from its plain form as it was."""
    one, two = NodeNumber(1), NodeNumber(2)
    for message in (
        Forward(one, two, ((ClientId(3), Serial(4), PurgeOrphans((Ino(5),))),)),
        Refuse(one, two, RefuseReason.NO_SPACE, ((ClientId(3), Serial(4)),)),
        Enlist(one, two),
    ):
        assert decode_peer_message(encode_peer_message(message)) == message


@pytest.mark.parametrize(
    "plain",
    [
        (),
        (64,),
        (64, 1, 2, ((1, 1, (99,)),)),
        (65, 1, 2, 7, ()),
        (66, 0, 2),
        (67, 1, 1 << 20),
        (1,),
    ],
)
def test_malformed_peer_messages_are_the_peers_fault(plain: tuple[object, ...]) -> None:
    """RemoteProtocolError and nothing else."""
    with pytest.raises(RemoteProtocolError):
        decode_peer_message(plain)


def test_deadline_without_any_other_reason_is_a_deadline_error(make: MakeCluster) -> None:
    """A leader with a slow disk: the outcome is unknown, and the error says so."""
    cluster = make(1)
    cluster.elect()
    cluster.members[1].disk_stopped = True
    request = cluster.propose(1, 1, 1, create("a"), deadline_s=0.5)
    for _ in range(20):
        cluster.tick()
    assert isinstance(cluster.members[1].replies[request], DeadlineError)


def test_what_is_certain_is_told_with_what_comes_next(make: MakeCluster) -> None:
    """While more waits for the log, a follower gets one message for each batch, not another one
    that only says that the last batch is certain."""
    cluster = make(3)
    leader = cluster.elect()
    follower = leader % 3 + 1
    cluster.execute(follower, 8, 1, create("b"))  # so that it is told of what is certain at once
    sent: list[AppendRequest] = []
    cluster.lose = lambda message: isinstance(message, AppendRequest) and bool(sent.append(message))
    for serial in range(1, 4):
        cluster.propose(leader, 7, serial, create(f"a{serial}"))
    cluster.deliver()
    to_one = [message for message in sent if message.to == follower]
    # The first command alone, then both others with the news of it, then the news of those.
    assert [len(message.entries) for message in to_one] == [1, 2, 0]
    assert to_one[1].commit == to_one[0].entries[0].index
