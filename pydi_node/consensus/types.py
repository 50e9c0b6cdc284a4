"""Records of the consensus room: entries, messages, configuration, and what a Raft core hands out.

Used by every module of the room and by its callers (replica, runtime, simulator). Plain data:
nothing here decides anything, and nothing here does IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple

from pydi_node.ids import NODE_NUMBER_MAX, LogIndex, NodeNumber, Term

KIB = 1024
MIB = 1024 * KIB

VOTERS_MAX = 5  # DESIGN section 4: more voters make every commit slower and no failure likelier
MEMBERS_MAX = 256  # one leader sends to all of them; a bound for what a peer may claim
ENTRY_OVERHEAD_BYTES = 32  # what an empty entry counts for in every limit given in bytes
ENTRY_DATA_MAX_BYTES = 16 * MIB  # the largest command (64 Ki extents and blobs) takes about 6 MiB
ENTRIES_PER_MESSAGE_MAX = 65536
SNAPSHOT_ID_MAX_BYTES = 64  # a checksum of the whole snapshot file

NO_INDEX = LogIndex(0)
NO_TERM = Term(0)


class EntryKind(IntEnum):
    """What an entry's data is. Part of the log format: never renumber, only add."""

    COMMAND = 0  # given to ``propose``; the core never looks inside
    EMPTY = 1  # a new leader's first entry (Raft section 8); data is b"", nothing to apply
    MEMBERSHIP = 2  # data is ``codec.pack_membership``; the tree has nothing to apply


class Entry(NamedTuple):
    """One position of the replicated log. (index, term) names its content for ever."""

    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, which nobody calls here
    term: Term
    kind: EntryKind
    data: bytes


class HardState(NamedTuple):
    """What a node must remember over a crash, besides its entries.

    term    highest term it has seen; durable before any reply of that term leaves.
    vote    whom it voted for in ``term``; durable before the vote leaves.
    commit  a hint that saves waiting after a restart; may lag, is written along with entries.
    """

    term: Term = NO_TERM
    vote: NodeNumber | None = None
    commit: LogIndex = NO_INDEX


class Member(NamedTuple):
    """One node of a membership.

    voter    counts in elections and commits; otherwise a learner: gets the log, never counted.
    promote  a learner that the leader makes a voter as soon as it has caught up and there is room.
    session  log index of the entry that added it (0: founding member). Acknowledgements carry it,
             so one from before a removal doesn't count after the node was added again.
    """

    number: NodeNumber
    voter: bool
    promote: bool = False
    session: LogIndex = NO_INDEX


@dataclass(frozen=True, slots=True)
class Membership:
    """Who belongs to the cluster as of some log index; in force as soon as it is in the log.

    members  ascending by number, each number once.
    voters, learners  their numbers, ascending; derived.
    """

    members: tuple[Member, ...] = ()
    voters: tuple[NodeNumber, ...] = field(init=False, repr=False, compare=False)
    learners: tuple[NodeNumber, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = [member.number for member in self.members]
        assert numbers == sorted(set(numbers)), f"members not ascending: {numbers}"
        assert all(1 <= number <= NODE_NUMBER_MAX for number in numbers), numbers
        assert not any(m.voter and m.promote for m in self.members), self.members
        object.__setattr__(self, "voters", tuple(m.number for m in self.members if m.voter))
        object.__setattr__(self, "learners", tuple(m.number for m in self.members if not m.voter))
        assert len(self.voters) <= VOTERS_MAX, self.voters

    def member(self, number: NodeNumber) -> Member | None:
        """The member with this number, None when it isn't one."""
        for member in self.members:
            if member.number == number:
                return member
        return None

    @staticmethod
    def founding(*voters: int) -> Membership:
        """A new cluster's first membership: these voters and no learners."""
        return Membership(tuple(Member(NodeNumber(n), voter=True) for n in sorted(voters)))


class ChangeKind(Enum):
    """The ways to change one member."""

    ADD_LEARNER = "add-learner"  # a new node, or another ``promote`` for an existing learner
    PROMOTE = "promote"  # learner -> voter; refused while it has not caught up
    DEMOTE = "demote"  # voter -> learner without ``promote``
    REMOVE = "remove"


class MembershipChange(NamedTuple):
    """A change of one member; ``promote`` is read for ADD_LEARNER only."""

    kind: ChangeKind
    number: NodeNumber
    promote: bool = False


class SnapshotMeta(NamedTuple):
    """Where a snapshot of the tree, or the cut front of a log, stands.

    A log behind it holds entries index + 1 and up. index 0 with a membership founds a cluster,
    index 0 with the empty membership is a node that waits to be added.
    """

    index: LogIndex = NO_INDEX  # type: ignore[assignment]  # hides tuple.index, as in Entry
    term: Term = NO_TERM
    membership: Membership = Membership()


class Role(Enum):
    """A learner is a FOLLOWER that never campaigns."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it could win, its term unchanged (thesis 9.6)
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Config:
    """Parameters of one core. Time is counted in ticks; the driver decides how long one is."""

    node: NodeNumber  # this node
    seed: int  # randomises election time-outs; give every start of every node another one
    # A follower campaigns after election_ticks .. 2 * election_ticks - 1 silent ticks; a leader
    # that a majority hasn't answered for election_ticks steps down. With a tick of 50 ms: 0.5 s.
    election_ticks: int = 10
    heartbeat_ticks: int = 2  # < election_ticks / 2, so that one lost heartbeat topples nobody
    # A message stays below a frame and below what a slow link carries in one heartbeat.
    append_bytes_max: int = 512 * KIB
    inflight_messages_max: int = 64  # unacknowledged appends to one follower
    inflight_bytes_max: int = 8 * MIB  # the same in bytes: bounds memory of a slow follower
    # Proposed and not yet applied here; beyond it propose() raises BusyError.
    unapplied_bytes_max: int = 32 * MIB
    committed_bytes_max: int = 4 * MIB  # committed entries of one Ready: bounds a transaction
    # Entries that compact() leaves in the log, so that a short absence needs no snapshot;
    # whichever of the two bounds is reached first.
    trailing_entries: int = 4_000
    trailing_bytes_max: int = 16 * MIB
    snapshot_chunk_bytes: int = 512 * KIB

    def __post_init__(self) -> None:
        """ValueError naming the fields that clash."""
        if not 1 <= self.node <= NODE_NUMBER_MAX:
            raise ValueError(f"node {self.node} is outside 1 .. {NODE_NUMBER_MAX}")
        if self.heartbeat_ticks < 1 or self.heartbeat_ticks * 2 >= self.election_ticks:
            raise ValueError(
                f"heartbeat_ticks {self.heartbeat_ticks} must be at least 1 and below half of "
                f"election_ticks {self.election_ticks}"
            )
        for name in (
            "append_bytes_max", "inflight_messages_max", "inflight_bytes_max",
            "unapplied_bytes_max", "committed_bytes_max", "snapshot_chunk_bytes",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.append_bytes_max > ENTRIES_PER_MESSAGE_MAX * ENTRY_OVERHEAD_BYTES:
            raise ValueError("append_bytes_max lets one message hold too many entries")
        if self.trailing_entries < 0 or self.trailing_bytes_max < 0:
            raise ValueError("trailing_entries and trailing_bytes_max must not be negative")


# --- messages between cores -----------------------------------------------------------------------
#
# All carry sender, to and the sender's term. ``session`` is Member.session of the follower, set by
# the leader and echoed in the answer.


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """Candidate asks for a vote; a pre-vote asks whether it would get it in ``term``."""

    sender: NodeNumber
    to: NodeNumber
    term: Term  # of a pre-vote: the term it would campaign in
    last_index: LogIndex
    last_term: Term
    pre: bool = False
    transfer: bool = False  # the leader asked for this election: overrides stickiness


@dataclass(frozen=True, slots=True)
class VoteResponse:
    sender: NodeNumber
    to: NodeNumber
    term: Term  # of a granted pre-vote: the term asked for; else the voter's term
    granted: bool
    pre: bool = False


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Entries after (prev_index, prev_term); without entries a probe, or news of ``commit``."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    prev_index: LogIndex
    prev_term: Term
    commit: LogIndex
    entries: tuple[Entry, ...]  # consecutive from prev_index + 1


@dataclass(frozen=True, slots=True)
class AppendResponse:
    """Follower's answer, sent only when all it says is durable.

    rejected False: its log equals the leader's up to and including ``index``, on disk.
    rejected True: it has no entry (index, prev_term); its log may match only at or before
    ``hint_index``, where it has ``hint_term``.
    """

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    index: LogIndex
    rejected: bool = False
    hint_index: LogIndex = NO_INDEX
    hint_term: Term = NO_TERM


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """The leader is alive. ``commit`` never exceeds what this follower is known to hold."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    commit: LogIndex
    read_round: int  # number of the newest round of reads to confirm; echoed


@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    read_round: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Follower asks for a read index; one request stands for all reads that wait there."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    number: int  # counts this follower's requests; echoed


@dataclass(frozen=True, slots=True)
class ReadResponse:
    sender: NodeNumber
    to: NodeNumber
    term: Term
    number: int
    index: LogIndex


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader hands over: campaign at once (thesis 3.10)."""

    sender: NodeNumber
    to: NodeNumber
    term: Term


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """One piece of a snapshot; pieces go in order, one at a time."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    snapshot_id: bytes
    meta: SnapshotMeta
    size: int  # bytes of the whole snapshot
    offset: int  # bytes
    data: bytes  # ends the snapshot when offset + len(data) == size


@dataclass(frozen=True, slots=True)
class SnapshotAck:
    """Send the piece at ``offset`` next. The end of the transfer is an AppendResponse."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: LogIndex
    snapshot_id: bytes
    offset: int  # bytes received, durable or not: the receiver says again after a restart


Message = (
    VoteRequest | VoteResponse | AppendRequest | AppendResponse | HeartbeatRequest
    | HeartbeatResponse | ReadRequest | ReadResponse | TimeoutNow | SnapshotChunk | SnapshotAck
)  # fmt: skip


# --- what a core hands out ------------------------------------------------------------------------


class ReadState(NamedTuple):
    """The read asked for with ``context`` may be served once ``index`` is applied here."""

    context: object  # as given to read_index()
    index: LogIndex  # type: ignore[assignment]  # hides tuple.index, as in Entry


class RoleChange(NamedTuple):
    """This node's role, term or known leader is another one than in the Ready before."""

    role: Role
    term: Term
    leader: NodeNumber | None  # None: nobody known


class SnapshotRead(NamedTuple):
    """Leader's side: read these bytes of the snapshot ``snapshot_id``, answer snapshot_read()."""

    to: NodeNumber
    snapshot_id: bytes
    offset: int
    length: int


class SnapshotWrite(NamedTuple):
    """Follower's side: put ``data`` at ``offset`` of the incoming file, answer snapshot_written().

    At offset 0 begin a new file, dropping one of another id.
    """

    snapshot_id: bytes
    meta: SnapshotMeta
    size: int  # bytes of the whole snapshot
    offset: int
    data: bytes


class SnapshotInstall(NamedTuple):
    """Follower's side: the file is complete. Verify, install, answer snapshot_installed()."""

    snapshot_id: bytes
    meta: SnapshotMeta


@dataclass(slots=True)
class Ready:
    """Everything the driver has to do now. The order of the work is in the package's docstring."""

    number: int  # 1, 2, 3 …; given back to persisted()

    # To persist, in this order: cut, then append, then hard state; one fdatasync for all.
    truncate_from: LogIndex | None = None  # drop this entry and all after it from the disk
    entries: Sequence[Entry] = ()  # append; consecutive
    hard_state: HardState | None = None

    messages: Sequence[Message] = ()  # may leave at once, in order
    # Leave only when this Ready and all before it are durable.
    messages_after_persist: Sequence[Message] = ()

    committed: Sequence[Entry] = ()  # durable here and on a majority: apply in order, once
    reads: Sequence[ReadState] = ()
    failed_reads: Sequence[object] = ()  # contexts of reads that nobody will answer: ask again

    snapshot_wanted: bool = False  # take a snapshot of the tree, answer snapshot_taken()
    snapshot_reads: Sequence[SnapshotRead] = ()
    snapshot_writes: Sequence[SnapshotWrite] = ()
    snapshot: SnapshotInstall | None = None
    snapshots_dropped: Sequence[bytes] = ()  # ids of own snapshots that nobody needs: delete them

    role_change: RoleChange | None = None
    membership: Membership | None = None  # the newest in the log, when it changed

    @property
    def must_persist(self) -> bool:
        """Whether something must be durable before persisted(number) may be called."""
        return bool(self.entries) or self.hard_state is not None or self.truncate_from is not None


class PeerStatus(NamedTuple):
    """A leader's view of one other member, for people and for policy (who is lost, who lags)."""

    number: NodeNumber
    voter: bool
    match_index: LogIndex
    active: bool  # answers, and its disk has lately taken what it was sent
    silent_ticks: int  # since it last did either
    state: str  # "probe", "replicate" or "snapshot"


class Status(NamedTuple):
    """One core's state at a glance."""

    node: NodeNumber
    role: Role
    term: Term
    leader: NodeNumber | None
    last_index: LogIndex
    durable_index: LogIndex
    commit_index: LogIndex
    applied_index: LogIndex
    first_index: LogIndex
    membership: Membership
    peers: tuple[PeerStatus, ...]  # empty unless this node leads; ascending by number
