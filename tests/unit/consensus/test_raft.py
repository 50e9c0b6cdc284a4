"""Single calls of a core that need no scenario: refusals, stale answers, the driver's contract."""

from __future__ import annotations

import dataclasses

import pytest

from pydi_node.consensus.log import entries_of
from pydi_node.consensus.raft import CATCH_UP_TIMEOUTS, GONE_TICKS, Raft
from pydi_node.consensus.types import (
    ENTRY_DATA_MAX_BYTES,
    AppendRequest,
    AppendResponse,
    ChangeKind,
    Config,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    Member,
    Membership,
    MembershipChange,
    Message,
    Role,
    SnapshotAck,
    SnapshotChunk,
    SnapshotMeta,
    VoteRequest,
    VoteResponse,
)
from pydi_node.errors import BusyError, NoQuorumError, NotLeaderError, RemoteProtocolError
from pydi_node.ids import NodeNumber, Term

FRONT = SnapshotMeta(0, 0, Membership.founding(1, 2, 3))


def follower(*terms: int, term: int = 0, commit: int = 0) -> Raft:
    """Node 1 of 3 with entries of these terms on its disk."""
    entries = [Entry(i, t, EntryKind.COMMAND, b"") for i, t in enumerate(terms, 1)]
    return Raft(Config(1, 1), HardState(term, None, commit), FRONT, entries, 0)


def drive(raft: Raft) -> list[Message]:
    """All messages that leave when the disk is immediate."""
    messages: list[Message] = []
    while raft.has_ready():
        ready = raft.ready()
        messages.extend(ready.messages)
        if ready.must_persist:
            raft.persisted(ready.number)
        messages.extend(ready.messages_after_persist)
        if ready.committed:
            raft.applied(ready.committed[-1].index)
    return messages


def leader(*terms: int) -> Raft:
    """Node 1 of 3, just elected."""
    raft = follower(*terms, term=max(terms, default=0))
    raft.campaign()
    drive(raft)
    raft.step(VoteResponse(2, 1, raft.term + 1, True, pre=True))
    drive(raft)
    raft.step(VoteResponse(2, 1, raft.term, True))
    assert raft.role is Role.LEADER
    drive(raft)
    return raft


def test_an_answer_of_an_earlier_term_counts_nothing() -> None:
    """A delayed acknowledgement from another term must not commit (thesis 3.3; every reply
    carries a term)."""
    raft = leader(1, 1)
    raft.step(AppendResponse(2, 1, raft.term - 1, 0, raft.last_index))
    assert raft.commit_index == 0
    raft.step(AppendResponse(2, 1, raft.term, 0, raft.last_index))
    assert raft.commit_index == raft.last_index


def test_an_answer_of_another_session_counts_nothing() -> None:
    """Neither an acknowledgement nor a sign of life of a former membership."""
    raft = leader()
    raft.step(AppendResponse(2, 1, raft.term, 5, raft.last_index))
    raft.step(HeartbeatResponse(2, 1, raft.term, 5, 0))
    assert raft.commit_index == 0
    for _ in range(raft.config.election_ticks):
        raft.tick()
    assert raft.role is Role.FOLLOWER


@pytest.mark.parametrize(
    "message",
    [
        AppendResponse(2, 1, 2, 0, 99),  # acknowledges what does not exist
        HeartbeatRequest(2, 1, 2, 0, 0, 0),  # leads our own term
        AppendRequest(2, 1, 2, 0, 0, 0, 0, ()),
        AppendResponse(2, 3, 2, 0, 1),  # meant for another
        AppendResponse(1, 1, 2, 0, 1),  # from ourselves
    ],
)
def test_what_no_correct_peer_sends_is_refused(message: Message) -> None:
    """The connection of such a peer is dropped, the node goes on."""
    raft = leader(1)
    assert raft.term == 2
    with pytest.raises(RemoteProtocolError):
        raft.step(message)
    assert raft.role is Role.LEADER


def test_two_leaders_of_one_term_are_refused() -> None:
    """A follower believes the first leader of a term."""
    raft = follower()
    raft.step(HeartbeatRequest(2, 1, 1, 0, 0, 0))
    with pytest.raises(RemoteProtocolError, match="leads term 1"):
        raft.step(HeartbeatRequest(3, 1, 1, 0, 0, 0))


def test_a_leader_that_contradicts_what_is_committed_stops_the_node() -> None:
    """Own invariants are asserted, in production too: better no node than a lost commit."""
    raft = follower(1, 1, term=1, commit=1)
    bad = Entry(2, 2, EntryKind.COMMAND, b"")
    raft.step(AppendRequest(2, 1, 2, 0, 1, 1, 2, (bad,)))
    assert raft.last_index == 2
    drive(raft)
    raft._log.commit_to(2)
    with pytest.raises(AssertionError, match="truncate"):
        raft._log.truncate(2)


def test_a_heartbeat_never_commits_beyond_the_log() -> None:
    """A commit index for more than this node holds is ignored, not cut to size: what it holds
    may not be what the leader means."""
    raft = follower(1, 1, term=1)
    raft.step(HeartbeatRequest(2, 1, 1, 0, 3, 0))
    assert raft.commit_index == 0
    raft.step(HeartbeatRequest(2, 1, 1, 0, 2, 0))
    assert raft.commit_index == 2


def test_an_append_commits_only_what_it_vouches_for() -> None:
    """Raft figure 2: min(leaderCommit, index of last new entry), for a tail may be another's."""
    raft = follower(1, 1, 1, term=1)
    raft.step(AppendRequest(2, 1, 2, 0, 1, 1, 3, ()))
    assert raft.commit_index == 1


def test_a_late_append_from_before_the_cut_is_acknowledged() -> None:
    """What was committed equals the leader's log, even where this node's was cut away since."""
    config = Config(1, 1, trailing_entries=0)
    raft = Raft(config, HardState(1, None, 5), FRONT, entries_of(1, 1, [b"x"] * 5), 5)
    raft.compact(4)
    raft.step(AppendRequest(2, 1, 1, 0, 2, 1, 2, tuple(entries_of(3, 1, [b"x"]))))
    assert drive(raft) == [AppendResponse(1, 2, 1, 0, 5)]


def test_a_torn_write_of_the_hard_state_is_repaired() -> None:
    """Entries on the disk without the hard state written after them: the term is the entries',
    and the commit hint is no more than there is."""
    raft = Raft(Config(1, 1), HardState(1, 2, 9), FRONT, [Entry(1, 3, EntryKind.EMPTY, b"")], 0)
    assert (raft.term, raft.vote, raft.commit_index) == (3, None, 1)
    ready = raft.ready()
    assert ready.hard_state is not None
    assert ready.hard_state.term == 3


def test_a_tree_ahead_of_the_log_is_refused() -> None:
    """The driver must not start a core that lacks what its tree has applied."""
    with pytest.raises(AssertionError, match="tree at 5"):
        Raft(Config(1, 1), HardState(), FRONT, [], 5)


def test_has_ready_ends() -> None:
    """The loop ``while has_ready(): ready()`` ends without any completion, whatever waits."""
    raft = leader()
    raft.propose([b"a"])
    raft.read_index("x")
    for _ in range(10):
        if not raft.has_ready():
            break
        raft.ready()
    assert not raft.has_ready()


def test_a_lone_voter_speaks_only_when_its_term_is_durable() -> None:
    """Else it could forget the term, lead it again, and send other entries under the same
    (index, term) to its learners."""
    front = SnapshotMeta(0, 0, Membership((Member(1, True), Member(2, False))))
    raft = Raft(Config(1, 1), HardState(), front, [], 0)
    raft.campaign()
    assert raft.role is Role.LEADER
    ready = raft.ready()
    assert ready.must_persist
    assert not ready.messages
    assert not ready.messages_after_persist
    assert not raft.has_ready()
    raft.persisted(ready.number)
    assert any(isinstance(m, AppendRequest) for m in raft.ready().messages)


def test_proposals_are_checked() -> None:
    """Nobody but a leader accepts, and nothing too large or empty."""
    with pytest.raises(NotLeaderError):
        follower().propose([b"a"])
    raft = leader()
    with pytest.raises(ValueError, match="0 commands"):
        raft.propose([])
    with pytest.raises(ValueError, match="over"):
        raft.propose([bytes(ENTRY_DATA_MAX_BYTES + 1)])
    assert raft.propose([b"a", b"b"]) == 2
    assert raft.last_index == 3


def test_completions_are_checked() -> None:
    """Nothing completes that was not handed out."""
    raft = leader()
    with pytest.raises(AssertionError):
        raft.persisted(99)
    with pytest.raises(AssertionError):
        raft.applied(99)


def test_an_impossible_snapshot_answer_is_refused() -> None:
    """More bytes than the snapshot has."""
    entries = entries_of(1, 1, [b"x"] * 5)
    config = Config(1, 1, trailing_entries=0)
    raft = Raft(config, HardState(1, None, 5), FRONT, entries, 5)
    raft.compact(5)
    raft.campaign()
    drive(raft)
    raft.step(VoteResponse(2, 1, 2, True, pre=True))
    drive(raft)
    raft.step(VoteResponse(2, 1, 2, True))
    drive(raft)
    raft.step(AppendResponse(3, 1, 2, 0, 5, True, 0, 0))
    assert raft.ready().snapshot_wanted
    raft.snapshot_taken(b"id", raft.snapshot_meta(5), 10)
    assert raft.ready().snapshot_reads
    with pytest.raises(RemoteProtocolError, match="11 of 10 bytes"):
        raft.step(SnapshotAck(3, 1, 2, 0, b"id", 11))


def test_a_snapshot_nobody_waits_for_is_dropped() -> None:
    """It came after the leader lost its office, or the follower its need."""
    raft = follower()
    raft.snapshot_taken(b"late", FRONT, 1)
    assert raft.ready().snapshots_dropped == [b"late"]
    assert not raft.has_ready()


def test_an_installation_waits_for_what_is_being_applied() -> None:
    """A snapshot replaces the tree only when everything handed out before was applied."""
    raft = follower(1, 1, term=1)
    raft.step(HeartbeatRequest(2, 1, 1, 0, 2, 0))
    committed = raft.ready().committed
    assert [entry.index for entry in committed] == [1, 2]
    meta = SnapshotMeta(9, 1, FRONT.membership)
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 3, 0, b"abc"))
    (write,) = raft.ready().snapshot_writes
    raft.snapshot_written(write)
    assert raft.ready().snapshot is None
    assert not raft.has_ready()
    raft.applied(2)
    assert raft.has_ready()
    assert raft.ready().snapshot == (b"id", meta)
    assert not raft.has_ready()


def test_entries_overtaken_by_a_snapshot_are_never_acknowledged() -> None:
    """Entries that came while the last piece was written will not reach the disk any more."""
    raft = follower(term=1)
    meta = SnapshotMeta(9, 1, FRONT.membership)
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 3, 0, b"abc"))
    (write,) = raft.ready().snapshot_writes
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, 0, tuple(entries_of(1, 1, [b"x"]))))
    raft.snapshot_written(write)
    ready = raft.ready()
    assert ready.snapshot is not None
    assert not ready.entries
    assert not [m for m in ready.messages if isinstance(m, AppendResponse)]
    raft.snapshot_installed(ready.snapshot)
    assert drive(raft) == [AppendResponse(1, 2, 1, 0, 9)]


def acknowledge(raft: Raft) -> list[NodeNumber]:
    """Both followers have everything; who was told of a commit in an append."""
    for number in (2, 3):
        raft.step(AppendResponse(number, 1, raft.term, 0, raft.last_index))
    return [message.to for message in drive(raft) if isinstance(message, AppendRequest)]


def test_who_attends_to_nothing_gets_entries_and_no_news() -> None:
    """Told with the next entries; at once again, and of what it missed, when it attends."""
    raft = leader()
    assert sorted(acknowledge(raft)) == [2, 3]
    raft.attend(NodeNumber(2), False)
    raft.propose([b"x"])
    assert [message.to for message in drive(raft)] == [3]
    assert raft.holds_back
    raft.flush()
    assert [message.to for message in drive(raft)] == [2]
    assert acknowledge(raft) == [3]
    raft.attend(NodeNumber(2), True)
    assert [message.to for message in drive(raft)] == [2]
    raft.attend(NodeNumber(2), True)
    assert not raft.has_ready()


def appended(messages: list[Message]) -> list[tuple[NodeNumber, int]]:
    """To whom entries went, and how many."""
    return [(m.to, len(m.entries)) for m in messages if isinstance(m, AppendRequest) and m.entries]


def unused(*numbers: int) -> Raft:
    """Node 1 leads, with these followers, that nobody uses, on one level with it."""
    raft = Raft(
        Config(1, 1, append_bytes_max=1000), HardState(),
        SnapshotMeta(0, 0, Membership.founding(1, *numbers)), [], 0,
    )  # fmt: skip
    raft.campaign()
    drive(raft)
    for pre in (True, False):
        for number in numbers:
            raft.step(VoteResponse(number, 1, 1, True, pre))
        drive(raft)
    assert raft.role is Role.LEADER
    for number in numbers:
        raft.step(AppendResponse(number, 1, 1, 0, 1))
        raft.attend(number, False)
    drive(raft)
    raft.tick()
    return raft


def test_a_spare_follower_gets_many_batches_in_one_message() -> None:
    """Two of five voters' answers make a majority; the other two get all with the next tick."""
    raft = unused(2, 3, 4, 5)
    for _ in range(3):
        raft.propose([b"x"])
        assert appended(drive(raft)) == [(2, 1), (3, 1)]
        for number in (2, 3):
            raft.step(AppendResponse(number, 1, 1, 0, raft.last_index))
        drive(raft)
        assert raft.commit_index == raft.last_index
        assert not raft.holds_back
    raft.tick()
    assert appended(drive(raft)) == [(4, 3), (5, 3)]


def test_whoever_answers_first_is_needed_from_then_on() -> None:
    """A follower that does not answer is waited for until flush(), and not with the next batch."""
    raft = unused(2, 3)
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(2, 1)]
    assert raft.holds_back
    raft.flush()
    assert appended(drive(raft)) == [(3, 1)]
    raft.step(AppendResponse(3, 1, 1, 0, raft.last_index))
    drive(raft)
    assert raft.commit_index == raft.last_index
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(3, 1)]
    for number in (3, 2):  # on one level again: no reason for another change
        raft.step(AppendResponse(number, 1, 1, 0, raft.last_index))
    drive(raft)
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(3, 1)]


def test_a_follower_in_use_counts_for_the_majority() -> None:
    """Its answer comes in any case, so no other one is needed."""
    raft = unused(2, 3)
    raft.attend(NodeNumber(3), True)
    drive(raft)
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(3, 1)]


def test_a_follower_in_use_whose_disk_hangs_does_not_count() -> None:
    """It hears heartbeats and holds a lease, so it seems to be in use for ever; what it was sent
    longer ago than a commit takes it has not written, and the next batch goes to the other, too."""
    raft = unused(2, 3)
    raft.attend(NodeNumber(3), True)
    drive(raft)
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(3, 1)]
    raft.flush()
    assert appended(drive(raft)) == [(2, 1)]
    raft.step(AppendResponse(2, 1, 1, 0, raft.last_index))
    drive(raft)
    assert raft.commit_index == raft.last_index
    raft.propose([b"x"])
    assert sorted(appended(drive(raft))) == [(2, 1), (3, 1)]
    for number in (2, 3):  # it goes on
        raft.step(AppendResponse(number, 1, 1, 0, raft.last_index))
    drive(raft)
    raft.propose([b"x"])
    assert appended(drive(raft)) == [(3, 1)]


def test_a_learner_that_nobody_uses_waits_for_the_tick() -> None:
    """A lone voter needs nobody."""
    front = SnapshotMeta(0, 0, Membership((Member(1, True), Member(2, False))))
    raft = Raft(Config(1, 1), HardState(), front, [], 0)
    raft.campaign()
    drive(raft)
    raft.step(AppendResponse(2, 1, 1, 0, 1))
    raft.attend(NodeNumber(2), False)
    drive(raft)
    raft.propose([b"x"])
    assert appended(drive(raft)) == []
    assert not raft.holds_back, "certain without it"
    raft.tick()
    assert appended(drive(raft)) == [(2, 1)]


@pytest.mark.parametrize("why", ["much", "behind", "membership", "transfer"])
def test_a_spare_follower_does_not_wait(why: str) -> None:
    """For more than a message holds, while it catches up, for a change of members or leaders."""
    raft = unused(2, 3)
    if why == "much":
        raft.propose([b"x" * 1000])
    elif why == "behind":
        for _ in range(4):
            raft.propose([b"x" * 400])
        drive(raft)
        raft.tick()
        drive(raft)
        raft.step(AppendResponse(3, 1, 1, 0, raft.last_index, True, 1, Term(1)))  # it forgot them
        drive(raft)
        raft.step(AppendResponse(3, 1, 1, 0, 2))  # the first of them is there again
    elif why == "membership":
        raft.attend(NodeNumber(3), True)  # so that no older news hides this one
        drive(raft)
        raft.attend(NodeNumber(3), False)
        raft.propose_membership(MembershipChange(ChangeKind.ADD_LEARNER, NodeNumber(4)))
    else:
        raft.propose([b"x"])
        drive(raft)
        raft.transfer_leadership(NodeNumber(3))
    assert NodeNumber(3) in [number for number, _ in appended(drive(raft))]


def test_a_change_of_members_is_news_for_everyone() -> None:
    """Whoever is to act on it need not be in use."""
    raft = leader()
    acknowledge(raft)
    for number in (2, 3):
        raft.attend(NodeNumber(number), False)
    raft.propose_membership(MembershipChange(ChangeKind.DEMOTE, NodeNumber(3)))
    drive(raft)
    assert sorted(acknowledge(raft)) == [2, 3]


def test_a_learner_is_promoted_only_when_it_keeps_up() -> None:
    """Thesis 4.2.1: its last round of catching up was short and the present one is not long
    already; a learner that only answers heartbeats would hold up every commit as a voter."""
    front = SnapshotMeta(0, 0, Membership((Member(1, True), Member(2, False))))
    raft = Raft(Config(1, 1), HardState(), front, [], 0)
    raft.campaign()
    drive(raft)
    promotion = MembershipChange(ChangeKind.PROMOTE, NodeNumber(2))
    with pytest.raises(BusyError, match="caught up"):
        raft.propose_membership(promotion)
    raft.step(AppendResponse(2, 1, 1, 0, 1))
    raft.propose([b"x"])
    drive(raft)
    for _ in range(CATCH_UP_TIMEOUTS * raft.config.election_ticks):
        raft.tick()
        raft.step(HeartbeatResponse(2, 1, 1, 0, 0))
        drive(raft)
    with pytest.raises(BusyError, match="caught up"):
        raft.propose_membership(promotion)
    raft.step(AppendResponse(2, 1, 1, 0, 2))
    assert raft.propose_membership(promotion) == 3
    assert raft.membership.voters == (1, 2)


def test_a_sixth_voter_is_not_made() -> None:
    """A learner to be promoted stays one while there are five voters, however complete it is."""
    members = (*Membership.founding(1, 2, 3, 4, 5).members, Member(6, False, promote=True))
    raft = Raft(Config(1, 1), HardState(), SnapshotMeta(0, 0, Membership(members)), [], 0)
    raft.campaign()
    drive(raft)
    for pre in (True, False):
        for voter in (2, 3):
            raft.step(VoteResponse(voter, 1, 1, True, pre))
        drive(raft)
    assert raft.role is Role.LEADER
    for number in (2, 3, 6):
        raft.step(AppendResponse(number, 1, 1, 0, 1))
    for _ in range(5):
        raft.tick()
    assert raft.role is Role.LEADER
    assert raft.membership.learners == (6,)
    raft.propose_membership(MembershipChange(ChangeKind.DEMOTE, NodeNumber(5)))
    drive(raft)
    for number in (2, 3, 6):
        raft.step(AppendResponse(number, 1, 1, 0, 2))
    raft.tick()
    assert raft.membership.voters == (1, 2, 3, 4, 6)


def test_a_new_leader_gives_no_vote_away_on_trust() -> None:
    """A new leader counts everyone as just heard. That keeps it in office for a time-out, but must
    not let it demote a voter: if the other one is lost for good, the rest could never commit."""
    raft = leader()
    raft.step(AppendResponse(2, 1, raft.term, 0, raft.last_index))
    demotion = MembershipChange(ChangeKind.DEMOTE, NodeNumber(2))
    with pytest.raises(NoQuorumError, match="only 1 of the 2"):
        raft.propose_membership(demotion)
    raft.step(HeartbeatResponse(3, 1, raft.term, 0, 0))
    raft.propose_membership(demotion)
    assert raft.membership.voters == (1, 3)


def test_a_snapshot_that_finds_no_room_begins_anew() -> None:
    """A piece that can't be written ends the transfer; it is not asked for at once, but when the
    leader tries again the follower wants it from its beginning."""
    raft = follower(term=1)
    meta = SnapshotMeta(9, 1, FRONT.membership)
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 5, 0, b"ab"))
    (write,) = raft.ready().snapshot_writes
    raft.snapshot_written(write)
    drive(raft)
    second = SnapshotChunk(2, 1, 1, 0, b"id", meta, 5, 2, b"cde")
    raft.step(second)
    drive(raft)
    raft.snapshot_refused(b"id")
    assert drive(raft) == []
    raft.step(second)
    assert drive(raft) == [SnapshotAck(1, 2, 1, 0, b"id", 0)]


def test_a_snapshot_found_complete_at_start_is_installed() -> None:
    """A crash came between the last piece and the installation: the first piece that comes
    again sets the installation off, and nothing is transferred twice."""
    raft = follower()
    raft.snapshot_partial(b"id", 3)
    meta = SnapshotMeta(9, 1, FRONT.membership)
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 3, 0, b"ab"))
    ready = raft.ready()
    assert not ready.snapshot_writes
    assert ready.snapshot == (b"id", meta)


def test_a_partial_snapshot_goes_on_where_it_ended() -> None:
    """The receiver names the next byte it wants, also under a leader that began the transfer."""
    raft = follower(term=1)
    raft.snapshot_partial(b"id", 2)
    meta = SnapshotMeta(9, 1, FRONT.membership)
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 5, 0, b"ab"))
    assert raft.ready().messages == [SnapshotAck(1, 2, 1, 0, b"id", 2)]
    raft.step(SnapshotChunk(2, 1, 1, 0, b"id", meta, 5, 2, b"cd"))
    assert [write.offset for write in raft.ready().snapshot_writes] == [2]
    raft.step(SnapshotChunk(2, 1, 1, 0, b"other", meta, 5, 2, b"cd"))
    assert raft.ready().messages == [SnapshotAck(1, 2, 1, 0, b"other", 0)]


def test_a_refused_snapshot_is_made_anew() -> None:
    """A complete file that is not what its id says may be bad at its source as well."""
    entries = entries_of(1, 1, [b"x"] * 5)
    raft = Raft(Config(1, 1, trailing_entries=0), HardState(1, None, 5), FRONT, entries, 5)
    raft.compact(5)
    raft.campaign()
    drive(raft)
    raft.step(VoteResponse(2, 1, 2, True, pre=True))
    drive(raft)
    raft.step(VoteResponse(2, 1, 2, True))
    drive(raft)
    raft.step(AppendResponse(3, 1, 2, 0, 5, True, 0, 0))
    assert raft.ready().snapshot_wanted
    raft.snapshot_taken(b"bad", raft.snapshot_meta(5), 10)
    (read,) = raft.ready().snapshot_reads
    raft.snapshot_read(read, bytes(10))
    drive(raft)
    raft.step(SnapshotAck(3, 1, 2, 0, b"bad", 10))
    assert not raft.has_ready()
    raft.step(SnapshotAck(3, 1, 2, 0, b"bad", 0))
    ready = raft.ready()
    assert ready.snapshots_dropped == [b"bad"]
    assert ready.snapshot_wanted


def test_compaction_waits_for_a_snapshot_under_way() -> None:
    """While a follower receives a snapshot, the log behind it stays, within bounds; else the
    follower would need the next snapshot as soon as it has this one."""
    entries = entries_of(1, 1, [b"x"] * 9)
    for trailing_bytes_max, front in ((1 << 20, 5), (1, 8)):
        config = Config(1, 1, trailing_entries=0, trailing_bytes_max=trailing_bytes_max)
        raft = Raft(config, HardState(1, None, 9), FRONT, entries, 9)
        raft.compact(5)
        raft.campaign()
        drive(raft)
        raft.step(VoteResponse(2, 1, 2, True, pre=True))
        drive(raft)
        raft.step(VoteResponse(2, 1, 2, True))
        drive(raft)
        raft.step(AppendResponse(3, 1, 2, 0, 9, True, 0, 0))
        assert raft.ready().snapshot_wanted
        raft.snapshot_taken(b"id", raft.snapshot_meta(5), 10)
        raft.compact(8)
        assert raft.first_index == front + 1


def test_election_timeouts_differ_and_repeat() -> None:
    """Nodes with equal seeds time out at different ticks, one node always at the same."""

    def ticks_until_campaign(node: int, seed: int) -> int:
        raft = Raft(Config(node, seed), HardState(), FRONT, [], 0)
        for tick in range(100):
            if raft.role is not Role.FOLLOWER:
                return tick
            raft.tick()
        raise AssertionError("never campaigned")

    timeouts = [ticks_until_campaign(node, seed) for seed in range(40) for node in (1, 2, 3)]
    assert timeouts == [ticks_until_campaign(n, seed) for seed in range(40) for n in (1, 2, 3)]
    assert set(timeouts) == set(range(10, 20))


@pytest.mark.parametrize(
    "clash",
    [
        {"node": 0},
        {"heartbeat_ticks": 5},
        {"heartbeat_ticks": 0},
        {"append_bytes_max": 0},
        {"append_bytes_max": 1 << 30},
        {"inflight_messages_max": 0},
        {"trailing_entries": -1},
    ],
)
def test_clashing_configuration_is_refused(clash: dict[str, int]) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=next(iter(clash))):
        dataclasses.replace(Config(1, 1), **clash)  # type: ignore[arg-type]


def following(number: int, leader_number: int = 3) -> Raft:
    """That node of three, which has just heard from its leader."""
    raft = Raft(Config(number, 1), HardState(1, None, 0), FRONT, [], 0)
    raft.step(HeartbeatRequest(leader_number, number, 1, 0, 0, 0))
    drive(raft)
    return raft


def asks(messages: list[Message]) -> bool:
    return any(isinstance(message, VoteRequest) for message in messages)


@pytest.mark.parametrize(("number", "turn"), [(1, 1), (2, 2)])
def test_the_leader_is_gone_and_one_after_the_other_tries(number: int, turn: int) -> None:
    """Each in its turn, and before that it gives the other one its vote: none waits a time-out."""
    raft = following(number)
    other = 3 - number
    request = VoteRequest(other, number, 2, 0, 0, True, False)
    raft.step(request)
    assert drive(raft) == []
    raft.leader_gone()
    for _ in range(turn * GONE_TICKS - 1):
        raft.tick()
        assert not asks(drive(raft))
    raft.step(request)
    assert drive(raft) == [VoteResponse(number, other, 2, True, True)]
    raft.tick()
    assert asks(drive(raft))
    assert raft.role is Role.PRE_CANDIDATE


def test_a_leader_that_only_seemed_to_be_gone_goes_on() -> None:
    """Its next message is enough: nobody tries before a time-out, and nobody else gets a vote."""
    raft = following(1)
    raft.leader_gone()
    raft.step(HeartbeatRequest(3, 1, 1, 0, 0, 0))
    drive(raft)
    raft.step(VoteRequest(2, 1, 2, 0, 0, True, False))
    for _ in range(raft.config.election_ticks):
        assert not asks(drive(raft))
        raft.tick()
    assert raft.leader == 3


def test_connections_that_end_again_and_again_postpone_nothing() -> None:
    """A leader that lets nodes in and is gone again, faster than anybody's turn comes, is succeeded
    all the same."""
    raft = following(2)
    for _ in range(2 * GONE_TICKS):
        raft.leader_gone()
        raft.tick()
    assert asks(drive(raft))


def test_who_leads_or_knows_no_leader_is_not_moved_by_an_end() -> None:
    for raft in (leader(1), follower(1)):
        before = raft.status()
        raft.leader_gone()
        raft.tick()
        assert (raft.role, raft.term) == (before.role, before.term)
