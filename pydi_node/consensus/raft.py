"""One node's Raft core. The package's docstring is the manual; this module is the state machine.

For replica.py and the simulator. No clock, socket, file or global randomness.

                 time-out            majority would            majority did
    FOLLOWER ───────────► PRE_CANDIDATE ───────► CANDIDATE ───────► LEADER
       ▲  ▲                    │                     │                │
       │  └── a leader, a higher term, or lost ──────┴────────────────┤
       └── a higher term, no majority for a time-out, or voted out ───┘

What may leave when. A message that promises something (a vote, an acknowledgement, the term it
carries) goes to ``_promises`` and leaves after the disk; a leader's own appends, heartbeats and all
that promises nothing but the term go to ``_messages`` and leave at once, if the term is durable.
The term must come first: a leader that forgot its term could lead it a second time, with other
entries under the same (index, term).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydi_node.consensus.codec import pack_membership
from pydi_node.consensus.elections import ElectionClock
from pydi_node.consensus.leadership import Leadership, Outgoing
from pydi_node.consensus.log import Log, entries_of
from pydi_node.consensus.membership import changed
from pydi_node.consensus.progress import Progress, ProgressState
from pydi_node.consensus.quorum import VoteResult, majority, majority_index, vote_result
from pydi_node.consensus.splitmix import SplitMix64
from pydi_node.consensus.types import (
    ENTRY_DATA_MAX_BYTES,
    ENTRY_OVERHEAD_BYTES,
    VOTERS_MAX,
    AppendRequest,
    AppendResponse,
    ChangeKind,
    Config,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    Membership,
    MembershipChange,
    Message,
    PeerStatus,
    ReadRequest,
    ReadResponse,
    ReadState,
    Ready,
    Role,
    RoleChange,
    SnapshotAck,
    SnapshotChunk,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
    Status,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pydi_node.errors import (
    BusyError,
    NoQuorumError,
    NotLeaderError,
    RemoteProtocolError,
    UserError,
)
from pydi_node.ids import LogIndex, NodeNumber, Term

# In election time-outs. An unanswered piece of a snapshot is sent again after 4 (2 s with the
# default tick: a slow link carries one piece in that); a receiver that is silent for 60 (30 s)
# loses its claim on the snapshot and on the log kept behind it.
CHUNK_RETRY_TIMEOUTS = 4
SNAPSHOT_PATIENCE_TIMEOUTS = 60
# A new voter's last round of catching up: 2 s, for a slow disk takes one for a sync, and a cluster
# of such disks wants its voters.
CATCH_UP_TIMEOUTS = 4
# When the leader's program has ended: from then to the first attempt to succeed it, and from one to
# the next. Enough for the others to learn of it, too, and for two rounds of votes.
GONE_TICKS = 2
# While a snapshot travels the log behind it is kept, up to this many times the trailing bytes.
SNAPSHOT_HOLD_FACTOR = 4


@dataclass(slots=True)
class _Incoming:
    """The snapshot this follower receives."""

    snapshot_id: bytes
    offset: int = 0  # bytes written
    writing: bool = False


class Raft:
    """One node's part in the cluster's log. See the package's docstring for how to drive it."""

    def __init__(
        self,
        config: Config,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: Sequence[Entry],
        applied: LogIndex,
    ) -> None:
        """The core as of its last durable state.

        snapshot  where the log begins; entries  all after it that are on the disk;
        applied   the tree's applied index, snapshot.index .. last.
        """
        log = Log(snapshot, entries)
        assert snapshot.index <= applied <= log.last_index, (
            f"tree at {applied}, log {snapshot.index} .. {log.last_index}"
        )
        # A write torn by a crash may have kept entries and lost the hard state behind them. The
        # commit index is but a hint; and no vote of a term newer than the hard state ever left.
        log.commit_to(max(applied, min(hard_state.commit, log.last_index)))
        log.handed_index = log.applied_index = applied
        self.config = config
        self.node = config.node
        self.role = Role.FOLLOWER
        self.term: Term = max(hard_state.term, log.last_term)
        self.vote = hard_state.vote if self.term == hard_state.term else None
        self.leader: NodeNumber | None = None
        self._log = log
        self._lead: Leadership | None = None  # not None exactly while role is LEADER
        self._votes: dict[NodeNumber, bool] = {}  # for this node in this term, while it runs
        self._pre_votes: dict[NodeNumber, bool] = {}  # in this attempt
        random = SplitMix64(config.seed, config.node)
        self._clock = ElectionClock(config.election_ticks, random)
        self._durable_term = hard_state.term
        # Numbers that go on across restarts could repeat; a random start makes an answer to a
        # read of the life before this one fit no read of this one.
        self._read_number = random.next() >> 2
        self._read_round = 0
        self._reads_waiting: list[object] = []  # to be forwarded to the leader
        self._reads_forwarded: list[object] = []  # asked for under _read_number
        self._forward_elapsed = 0
        self._incoming: _Incoming | None = None
        self._incoming_from: SnapshotChunk | None = None  # newest piece: whom to answer
        self._installing: SnapshotInstall | None = None

        # What the next Ready takes along.
        self._ready_number = 0
        self._messages: list[Message] = []
        self._promises: list[Message] = []
        self._acknowledge: tuple[NodeNumber, LogIndex, LogIndex] | None = None  # to, session, index
        self._reads_done: list[ReadState] = []
        self._reads_failed: list[object] = []
        self._snapshot_wanted = False
        self._snapshot_reads: list[SnapshotRead] = []
        self._snapshot_writes: list[SnapshotWrite] = []
        self._snapshots_dropped: list[bytes] = []
        self._install_wanted = False
        # What the last Ready said, to see what changed.
        self._said_hard = (hard_state.term, hard_state.vote)
        self._said_role: tuple[Role, Term, NodeNumber | None] = (self.role, self.term, self.leader)
        self._said_membership = log.membership

    # --- questions

    @property
    def membership(self) -> Membership:
        """The newest in the log, committed or not: it is in force."""
        return self._log.membership

    @property
    def term_is_durable(self) -> bool:
        """Before it is, nothing that carries it may leave; see the module's docstring."""
        return self._durable_term >= self.term

    @property
    def memberships(self) -> Sequence[Membership]:
        """All that the log holds, oldest first; the last is in force."""
        return self._log.memberships

    @property
    def first_index(self) -> LogIndex:
        """The oldest entry still in the log, or the next one if it is empty."""
        return LogIndex(self._log.front.index + 1)

    @property
    def last_index(self) -> LogIndex:
        return self._log.last_index

    @property
    def durable_index(self) -> LogIndex:
        return self._log.durable_index

    @property
    def commit_index(self) -> LogIndex:
        return self._log.commit_index

    @property
    def applied_index(self) -> LogIndex:
        return self._log.applied_index

    @property
    def holds_back(self) -> bool:
        """Whether entries are not certain yet that some follower was not sent: see flush()."""
        lead = self._lead
        return lead is not None and lead.holds_back and self._log.commit_index < self.last_index

    def status(self) -> Status:
        """This core's state at a glance; peers only while it leads."""
        peers = self._lead.peers.values() if self._lead is not None else ()
        log = self._log
        return Status(
            self.node, self.role, self.term, self.leader, log.last_index, log.durable_index,
            log.commit_index, log.applied_index, self.first_index, log.membership,
            tuple(
                PeerStatus(
                    p.member.number, p.member.voter, p.match_index, self._works(p),
                    p.idle_ticks, p.state.value,
                )
                for p in peers
            ),
        )  # fmt: skip

    def snapshot_meta(self, index: LogIndex) -> SnapshotMeta:
        """What a snapshot of the tree as of ``index`` stands for; index: cut front .. commit."""
        log = self._log
        term = log.term_at(index)
        assert term is not None, f"entry {index} was cut away, front {log.front.index}"
        assert index <= log.commit_index, (index, log.commit_index)
        return SnapshotMeta(index, term, log.membership_at(index))

    # --- inputs: time and elections

    def tick(self) -> None:
        """One unit of time has passed."""
        if self._lead is not None:
            self._tick_leader(self._lead)
        else:
            self._tick_follower()

    def campaign(self) -> None:
        """Try to become leader now; nothing for a leader or a node that is no voter."""
        if self._lead is None and self._may_campaign():
            self._campaign(transfer=False)

    def leader_gone(self) -> None:
        """Its program has ended, as it seems: nobody waits a time-out for it, the others try one
        after the other. Should it be there all the same, whoever hears from it elects no other."""
        if self._lead is None and self.leader is not None:
            turn = sum(v < self.node for v in self.membership.voters if v != self.leader)
            self._clock.hasten(GONE_TICKS * (turn + 1))

    def transfer_leadership(self, to: NodeNumber) -> None:
        """Hand the leadership to ``to`` as soon as its log is complete; given up silently after
        an election time-out. Until one or the other, propose() raises BusyError.

        NotLeaderError  ask the leader.   UserError  ``to`` is no other voter.
        """
        lead = self._leadership()
        if to == self.node or to not in self.membership.voters:
            raise UserError(f"node {to} is not another voter")
        lead.transferee = to
        lead.transfer_elapsed = 0
        lead.peers[to].check_wanted = True
        lead.broadcast = True
        self._try_transfer(lead)

    def attend(self, number: NodeNumber, attentive: bool) -> None:
        """Whether a leader tells that follower of each commit at once (as a new leader does), or
        with the next entries or heartbeat, which is a message less for one that nobody uses."""
        if (lead := self._lead) is not None and (progress := lead.peers.get(number)) is not None:
            lead.broadcast |= attentive and not progress.attentive
            progress.attentive = attentive

    def flush(self) -> None:
        """Every follower gets at once what it lacks. To be called when ``holds_back`` was true for
        longer than a disk takes; each tick does it, too."""
        if (lead := self._lead) is not None:
            self._flush(lead)

    # --- inputs: proposals and reads

    def propose(self, datas: Sequence[bytes]) -> LogIndex:
        """The index of the first of ``datas`` in the log; the others follow it. All or none.

        datas  at least one, each at most ENTRY_DATA_MAX_BYTES.

        NotLeaderError  ask the leader.   BusyError  nothing was accepted; try a little later.
        """
        lead = self._leadership()
        if not datas or max(map(len, datas)) > ENTRY_DATA_MAX_BYTES:
            raise ValueError(f"{len(datas)} commands, or one over {ENTRY_DATA_MAX_BYTES} bytes")
        if lead.transferee is not None:
            raise BusyError("leadership is being handed over")
        log = self._log
        waiting = log.bytes_after(log.applied_index)
        # A single batch above the limit must pass some time: when nothing else waits.
        if waiting:
            size = sum(map(len, datas)) + ENTRY_OVERHEAD_BYTES * len(datas)
            if waiting + size > self.config.unapplied_bytes_max:
                raise BusyError(f"{waiting} bytes of commands wait to be committed and applied")
        first = LogIndex(log.last_index + 1)
        log.append(entries_of(first, self.term, datas))
        lead.broadcast = True
        return first

    def propose_membership(self, change: MembershipChange) -> LogIndex:
        """The index of the entry that carries out ``change``; in force from now, certain when
        committed.

        NotLeaderError  ask the leader.
        BusyError       not now: another change is under way, or the learner lags.
        NoQuorumError   too few voters of the new membership answer now; it would stop the cluster.
        UserError       the change makes no sense.
        """
        lead = self._leadership()
        log = self._log
        membership = changed(log.membership, change, LogIndex(log.last_index + 1))
        self._check_no_change_pending(lead)
        if change.kind is ChangeKind.PROMOTE and not self._is_caught_up(lead.peers[change.number]):
            raise BusyError(f"node {change.number} has not caught up yet")
        if change.kind is not ChangeKind.ADD_LEARNER:
            # Heard of for certain: what a new leader grants everyone for a time-out is not enough
            # to give a vote away for. With one of three lost for good, another one's leaving would
            # leave two of whom one never answers, and no way back.
            others = (lead.peers[voter] for voter in membership.voters if voter != self.node)
            active = sum(other.answered and self._works(other) for other in others)
            active += self.node in membership.voters
            if active < majority(len(membership.voters)):
                raise NoQuorumError(
                    f"only {active} of the {len(membership.voters)} voters it leaves answer"
                )
        return self._append_membership(lead, membership)

    def read_index(self, context: object) -> None:
        """Ask up to which index must be applied for a read that begins now to be linearizable.

        context  anything; comes back in Ready.reads or Ready.failed_reads.

        NotLeaderError  no leader is known.
        """
        if self._lead is not None:
            self._lead.reads_waiting.append((None, context))
        elif self.leader is not None:
            self._reads_waiting.append(context)
        else:
            raise NotLeaderError(None)

    # --- inputs: completions from the driver

    def persisted(self, number: int) -> None:
        """Ready ``number``, and with it all before it, is on the disk."""
        self._durable_term = max(self._durable_term, self._log.write_finished(number))
        if self._lead is not None:
            self._maybe_commit(self._lead)

    def applied(self, index: LogIndex) -> None:
        """The tree has applied what Ready.committed brought, up to ``index``."""
        self._log.applied_to(index)

    def compact(self, index: LogIndex) -> SnapshotMeta | None:
        """Forget entries up to ``index`` less the trailing ones; the new front, None: no change.

        index  applied by the tree and durable there: a restart must never need them.
        """
        log, config = self._log, self.config
        index = min(index, log.applied_index)
        lead = self._lead
        if lead is not None and lead.outgoing is not None:
            hold = lead.outgoing.meta.index
            if log.front.index <= hold < index and (
                log.bytes_after(hold) <= SNAPSHOT_HOLD_FACTOR * config.trailing_bytes_max
            ):
                index = hold
        if not log.compact(index, config.trailing_entries, config.trailing_bytes_max):
            return None
        return log.front

    # --- inputs: snapshots

    def snapshot_taken(self, snapshot_id: bytes, meta: SnapshotMeta, size: int) -> None:
        """The driver made the snapshot that Ready.snapshot_wanted asked for.

        size  bytes, >= 1; meta  from snapshot_meta() at the tree's applied index.
        """
        assert size >= 1, size
        assert snapshot_id, "a snapshot is named by its checksum"
        lead = self._lead
        receivers = self._snapshot_receivers(lead) if lead is not None else []
        if lead is None or not lead.snapshot_asked or not receivers:
            self._snapshots_dropped.append(snapshot_id)
            if lead is not None:
                lead.snapshot_asked = False
            return
        lead.snapshot_asked = False
        lead.outgoing = Outgoing(snapshot_id, meta, size)
        for progress in receivers:
            progress.snapshot_offset = 0
            self._serve_snapshot(lead, progress)

    def snapshot_lost(self, snapshot_id: bytes) -> None:
        """The snapshot could not be made (b"") or read; another is asked for in good time."""
        lead = self._lead
        if lead is None:
            return
        if not snapshot_id:
            lead.snapshot_asked = False
        elif lead.outgoing is not None and lead.outgoing.snapshot_id == snapshot_id:
            self._drop_outgoing(lead)

    def snapshot_read(self, read: SnapshotRead, data: bytes) -> None:
        """The bytes that ``read`` asked for."""
        assert len(data) == read.length, (len(data), read.length)
        lead = self._lead
        if lead is None or lead.outgoing is None or lead.outgoing.snapshot_id != read.snapshot_id:
            return
        progress = lead.peers.get(read.to)
        if progress is None or not progress.snapshot_reading:
            return
        progress.snapshot_reading = False
        progress.snapshot_ticks = 0
        outgoing = lead.outgoing
        self._messages.append(
            SnapshotChunk(
                self.node, read.to, self.term, progress.member.session, outgoing.snapshot_id,
                outgoing.meta, outgoing.size, read.offset, data,
            )
        )  # fmt: skip

    def snapshot_partial(self, snapshot_id: bytes, offset: int) -> None:
        """At start: the first ``offset`` bytes of this snapshot are on the disk already."""
        self._incoming = _Incoming(snapshot_id, offset)

    def snapshot_written(self, write: SnapshotWrite) -> None:
        """The piece is in the incoming file."""
        incoming = self._incoming
        if (
            incoming is None
            or incoming.snapshot_id != write.snapshot_id
            or incoming.offset != write.offset
        ):
            return
        incoming.writing = False
        incoming.offset += len(write.data)
        self._answer_chunk(incoming.snapshot_id, incoming.offset)
        if incoming.offset < write.size:
            return
        if write.meta.index > self._log.commit_index:
            self._begin_installing(SnapshotInstall(write.snapshot_id, write.meta))
        else:
            self._incoming = None  # overtaken by ordinary appends

    def snapshot_installed(self, install: SnapshotInstall) -> None:
        """The tree is the snapshot's and the log on the disk is empty behind it, durably."""
        assert install == self._installing, (install, self._installing)
        self._installing = self._incoming = None
        self._log.reset(install.meta)
        if self._incoming_from is not None and self.leader == self._incoming_from.sender:
            chunk = self._incoming_from
            self._acknowledge = (chunk.sender, chunk.session, install.meta.index)

    def snapshot_refused(self, snapshot_id: bytes) -> None:
        """The complete file is not what its id says, or a piece of it can't be written: it is gone,
        and asked for anew."""
        if self._installing is None:
            # Not complete, so the disk is full. Nothing is answered: the leader sends its piece
            # again after a while, and only then the transfer begins anew.
            if self._incoming is not None and self._incoming.snapshot_id == snapshot_id:
                self._incoming = None
            return
        assert self._installing.snapshot_id == snapshot_id, (self._installing, snapshot_id)
        self._installing = self._incoming = None
        self._answer_chunk(snapshot_id, 0)

    # --- output

    def has_ready(self) -> bool:
        """Whether ready() would bring anything."""
        log, lead = self._log, self._lead
        if self._messages or self._promises or self._acknowledge is not None:
            return True
        if self._installing is None and (log.has_unemitted or log.has_committed):
            return True
        if lead is not None and (
            (lead.broadcast and self.term_is_durable) or self._may_start_round(lead)
        ):
            return True
        return bool(
            self._said_hard != (self.term, self.vote)
            or self._said_role != (self.role, self.term, self.leader)
            or self._said_membership != log.membership
            or self._reads_done
            or self._reads_failed
            or (self._reads_waiting and not self._reads_forwarded)
            or self._snapshot_wanted
            or self._snapshot_reads
            or self._snapshot_writes
            or self._snapshots_dropped
            or self._may_install()
        )

    def ready(self) -> Ready:
        """All that the driver has to do now; each thing is handed out once."""
        log, lead = self._log, self._lead
        if lead is not None:
            if self._may_start_round(lead):
                self._start_round(lead)
            if lead.broadcast and self.term_is_durable:
                self._replicate(lead)
        elif self._reads_waiting and not self._reads_forwarded:
            self._forward_reads()
        if self._acknowledge is not None:
            to, session, index = self._acknowledge
            self._promises.append(AppendResponse(self.node, to, self.term, session, index))
            self._acknowledge = None

        self._ready_number += 1
        ready = Ready(self._ready_number)
        if self._installing is None and log.has_unemitted:
            ready.truncate_from, ready.entries = log.take_unemitted()
        if ready.entries or self._said_hard != (self.term, self.vote):
            ready.hard_state = HardState(self.term, self.vote, log.commit_index)
            self._said_hard = (self.term, self.vote)
        ready.messages, self._messages = self._messages, []
        if ready.must_persist:
            log.write_started(ready.number, self.term, bool(ready.entries))
        if self._promises:
            if log.has_writes:
                ready.messages_after_persist = self._promises
            else:
                ready.messages = [*ready.messages, *self._promises]
            self._promises = []
        if log.has_committed and self._installing is None:
            ready.committed = log.take_committed(self.config.committed_bytes_max)

        if self._reads_done:
            ready.reads, self._reads_done = self._reads_done, []
        if self._reads_failed:
            ready.failed_reads, self._reads_failed = self._reads_failed, []
        if self._said_role != (self.role, self.term, self.leader):
            self._said_role = (self.role, self.term, self.leader)
            ready.role_change = RoleChange(self.role, self.term, self.leader)
        if self._said_membership != log.membership:
            ready.membership = self._said_membership = log.membership
        self._hand_out_snapshots(ready)
        return ready

    def _hand_out_snapshots(self, ready: Ready) -> None:
        ready.snapshot_wanted, self._snapshot_wanted = self._snapshot_wanted, False
        if self._snapshot_reads:
            ready.snapshot_reads, self._snapshot_reads = self._snapshot_reads, []
        if self._snapshot_writes:
            ready.snapshot_writes, self._snapshot_writes = self._snapshot_writes, []
        if self._snapshots_dropped:
            ready.snapshots_dropped, self._snapshots_dropped = self._snapshots_dropped, []
        if self._may_install():
            ready.snapshot, self._install_wanted = self._installing, False

    def _may_install(self) -> bool:
        # The tree is replaced between two entries, not while it still applies some.
        return self._install_wanted and self._log.applied_index == self._log.handed_index

    # --- time

    def _tick_follower(self) -> None:
        if self._reads_forwarded and self.leader is not None:
            self._forward_elapsed += 1
            if self._forward_elapsed >= self.config.heartbeat_ticks:
                self._send_read_request(self.leader)
        if self._clock.tick(self.leader is None and not self.term_is_durable):
            if self._may_campaign():
                self._campaign(transfer=False)
            elif self.leader is not None:
                # A learner can't help itself, but it must not promise reads of a dead leader.
                self._become_follower(self.term, None)

    def _tick_leader(self, lead: Leadership) -> None:
        config = self.config
        for progress in lead.peers.values():
            progress.tick()
            if progress.state is ProgressState.SNAPSHOT:
                self._tick_snapshot(lead, progress)
        voters = self.membership.voters
        active = sum(v == self.node or self._is_active(lead.peers[v]) for v in voters)
        if active < majority(len(voters)):
            # Check quorum (thesis 6.2): whoever can't reach a majority must not seem to lead.
            self._become_follower(self.term, None)
            return
        if lead.transferee is not None:
            lead.transfer_elapsed += 1
            if lead.transfer_elapsed >= config.election_ticks:
                lead.transferee = None
        self._flush(lead)
        lead.heartbeat_elapsed += 1
        if lead.heartbeat_elapsed >= config.heartbeat_ticks:
            lead.heartbeat_elapsed = 0
            self._send_heartbeats(lead)
            self._promote_learner(lead)

    # --- elections

    def _may_campaign(self) -> bool:
        # A voter on its way out must still be able to lead: with an uncommitted {1, 2} -> {1}
        # only in the log of node 2, nobody but node 2 can win an election (thesis 4.2.2).
        # While a snapshot is being installed the log is about to be replaced.
        return self._installing is None and any(
            self.node in membership.voters for membership in self._log.memberships_possible()
        )

    def _campaign(self, transfer: bool) -> None:
        if self.membership.voters == (self.node,):
            self._become_candidate()
            self._become_leader()
        elif transfer:
            self._become_candidate()
            self._ask_for_votes(self.term, pre=False, transfer=True)
        else:
            self._become_pre_candidate()
            self._ask_for_votes(Term(self.term + 1), pre=True)

    def _ask_for_votes(self, term: Term, pre: bool, transfer: bool = False) -> None:
        log = self._log
        for voter in self.membership.voters:
            if voter != self.node:
                self._say(
                    VoteRequest(
                        self.node, voter, term, log.last_index, log.last_term, pre, transfer
                    )
                )

    def _become_follower(self, term: Term, leader: NodeNumber | None) -> None:
        assert term >= self.term, f"term {self.term} -> {term}"
        if term > self.term:
            self._begin_term(term)
        if self._lead is not None:
            self._leave_leadership(self._lead)
        if leader != self.leader:
            self._fail_reads()
        self.role = Role.FOLLOWER
        self.leader = leader
        self._reset_election()

    def _begin_term(self, term: Term) -> None:
        self.term = term
        self.vote = None
        self._votes = {}
        self._acknowledge = None  # of the old term: its leader has no use for it
        self._clock.term_began()

    def _become_pre_candidate(self) -> None:
        assert self._lead is None, self.role
        self._fail_reads()
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self._reset_election()
        self._pre_votes = {self.node: True}

    def _become_candidate(self) -> None:
        assert self._lead is None, self.role
        self._fail_reads()
        self.role = Role.CANDIDATE
        self._begin_term(Term(self.term + 1))
        self.vote = self.node
        self.leader = None
        self._reset_election()
        self._votes[self.node] = True

    def _become_leader(self) -> None:
        assert self.vote == self.node, (self.term, self.vote)
        log = self._log
        self.role = Role.LEADER
        self.leader = self.node
        self._reset_election()
        first = LogIndex(log.last_index + 1)
        lead = self._lead = Leadership(first)
        self._update_peers(lead)
        # An entry of the own term, so that those of older terms can be committed (Raft 5.4.2, 8).
        log.append([Entry(first, self.term, EntryKind.EMPTY, b"")])
        lead.broadcast = True
        if self.term_is_durable:
            self._send_heartbeats(lead)  # silences the other candidates without a disk's delay

    def _leave_leadership(self, lead: Leadership) -> None:
        self._lead = None
        for asker, context in (*lead.round_reads, *lead.reads_waiting):
            if asker is None:
                self._reads_failed.append(context)
        if lead.outgoing is not None:
            self._snapshots_dropped.append(lead.outgoing.snapshot_id)
        self._snapshot_wanted = False
        self._snapshot_reads = []

    def _reset_election(self) -> None:
        if self.leader is not None:
            self._clock.leader_known()
        self._clock.restart()

    def _leader_is_live(self) -> bool:
        return self._lead is not None or (self.leader is not None and self._clock.is_quiet)

    # --- messages

    def step(self, message: Message) -> None:
        """Take in one message of a peer, decoded and from whom it says.

        RemoteProtocolError  no correct peer sends this; nothing was changed.
        """
        if message.to != self.node or message.sender == self.node:
            raise RemoteProtocolError(f"raft: message {message.sender} -> {message.to}")
        if message.term > self.term:
            if not self._admit_higher_term(message):
                return
        elif message.term < self.term:
            self._answer_stale(message)
            return
        _HANDLERS[type(message)](self, message)

    def _admit_higher_term(self, message: Message) -> bool:
        """Follow to the message's term where it says so; whether to handle it at all."""
        if isinstance(message, VoteRequest):
            # Stickiness (thesis 4.2.3): whoever hears from a leader elects no other, so a node
            # that was removed or cut off can't topple it.
            if not message.transfer and self._leader_is_live():
                return False
            if message.pre:
                return True
        elif isinstance(message, VoteResponse) and message.pre and message.granted:
            return True
        leader = message.sender if isinstance(message, _FROM_LEADER) else None
        self._become_follower(message.term, leader)
        return True

    def _answer_stale(self, message: Message) -> None:
        """Tell an outdated leader or candidate our term. The rest can't matter any more."""
        if isinstance(message, VoteRequest):
            self._say(VoteResponse(self.node, message.sender, self.term, False, message.pre))
        elif isinstance(message, _FROM_LEADER):
            # Needed because of pre-vote: this node's higher term never reaches a leader of a
            # lower one by an election it can't win.
            self._say(HeartbeatResponse(self.node, message.sender, self.term, message.session, 0))

    def _step_vote_request(self, message: VoteRequest) -> None:
        future = message.term > self.term  # only a pre-vote gets here with one
        free = self.vote == message.sender or (self.vote is None and self.leader is None)
        granted = (future or free) and self._log.is_up_to_date(
            message.last_index, message.last_term
        )
        if granted and not message.pre:
            assert self.vote in (None, message.sender), (self.term, self.vote, message.sender)
            self.vote = message.sender
            self._clock.heard()
        term = message.term if granted else self.term
        answer = self._say if message.pre else self._promises.append
        answer(VoteResponse(self.node, message.sender, term, granted, message.pre))

    def _step_vote_response(self, message: VoteResponse) -> None:
        role = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        votes = self._pre_votes if message.pre else self._votes
        if message.pre and (self.role is not role or message.term != self.term + message.granted):
            return
        # A vote that a slow disk held up for longer than the time-out counts: nothing has changed
        # in the log for which it was given. Not one that was asked for before the last start.
        if self.node not in votes or self.role not in (role, Role.PRE_CANDIDATE):
            return
        votes[message.sender] = message.granted
        result = vote_result(votes, self.membership.voters)
        if result is VoteResult.LOST and self.role is role:
            self._become_follower(self.term, None)
        elif result is VoteResult.WON and not message.pre:
            self._become_leader()
        elif result is VoteResult.WON:
            self._become_candidate()
            self._ask_for_votes(self.term, pre=False)

    def _step_timeout_now(self, message: TimeoutNow) -> None:
        if self._lead is None and self._may_campaign():
            self._campaign(transfer=True)

    def _say(self, message: Message) -> None:
        """Nothing but the term in it has to be on the disk: behind a slow one's other work it would
        seem that nobody is here."""
        (self._messages if self.term_is_durable else self._promises).append(message)

    def _follow(self, message: AppendRequest | HeartbeatRequest | SnapshotChunk) -> None:
        """The sender leads this term: listen to it."""
        if self._lead is not None or (self.leader is not None and self.leader != message.sender):
            raise RemoteProtocolError(
                f"raft: node {message.sender} leads term {self.term}, but so does {self.leader}"
            )
        if self.role is not Role.FOLLOWER or self.leader is None:
            self._become_follower(self.term, message.sender)
        self._clock.heard()

    def _step_append_request(self, message: AppendRequest) -> None:
        self._follow(message)
        if self._installing is not None:
            return  # the log is about to be replaced
        log = self._log
        if message.prev_index < log.commit_index:
            # Late or repeated: what is committed equals the leader's log, so it hears that.
            self._acknowledge_to(message.sender, message.session, log.commit_index)
            return
        if log.term_at(message.prev_index) != message.prev_term:
            hint_index, hint_term = log.conflict_hint(message.prev_index, message.prev_term)
            self._promises.append(
                AppendResponse(
                    self.node, message.sender, self.term, message.session, message.prev_index,
                    True, hint_index, hint_term,
                )
            )  # fmt: skip
            return
        entries: Sequence[Entry] = message.entries
        if message.prev_index < log.last_index and entries:
            # Only from the first conflict on: what matches may have been acknowledged, and this
            # message may be older than what came after it (Raft 5.3).
            entries = entries[log.matching_count(entries) :]
            if entries and entries[0].index <= log.last_index:
                log.truncate(entries[0].index)
        log.append(entries)
        last = LogIndex(message.prev_index + len(message.entries))
        news = log.commit_to(min(message.commit, last))
        # An append that only tells what is committed needs no answer. Where the leader wants one
        # all the same (an answer was lost), it asks again, and then there is no news.
        if message.entries or not news:
            self._acknowledge_to(message.sender, message.session, last)

    def _acknowledge_to(self, leader: NodeNumber, session: LogIndex, index: LogIndex) -> None:
        """Acknowledge with the next Ready; several appends then need one answer."""
        waiting = self._acknowledge
        if waiting is not None and waiting[:2] == (leader, session):
            index = max(index, waiting[2])
        self._acknowledge = (leader, session, index)

    def _step_heartbeat_request(self, message: HeartbeatRequest) -> None:
        self._follow(message)
        # Beyond our log only if the leader takes us for someone with more on the disk.
        if self._installing is None and message.commit <= self._log.last_index:
            self._log.commit_to(message.commit)
        self._say(
            HeartbeatResponse(
                self.node, message.sender, self.term, message.session, message.read_round
            )
        )

    def _step_append_response(self, message: AppendResponse) -> None:
        lead = self._lead
        progress = self._answering(message)
        if lead is None or progress is None:
            return
        log = self._log
        if message.index > log.last_index:
            raise RemoteProtocolError(
                f"raft: node {message.sender} answers for entry {message.index}, "
                f"last is {log.last_index}"
            )
        if message.rejected:
            guess, _ = log.conflict_hint(message.hint_index, message.hint_term)
            if progress.rejected(message.index, guess):
                lead.broadcast = True
            return
        was_full = not self._may_send(progress)
        news = progress.acknowledged(message.index)
        if progress.state is ProgressState.PROBE and message.index >= progress.next_index - 1:
            progress.become_replicate()
        elif progress.state is ProgressState.SNAPSHOT and log.term_at(message.index) is not None:
            progress.become_probe(LogIndex(message.index + 1))
            self._release_outgoing(lead)
        if was_full or progress.state is ProgressState.PROBE:
            lead.broadcast = True
        if news:
            progress.finish_round(log.last_index, CATCH_UP_TIMEOUTS * self.config.election_ticks)
            self._maybe_commit(lead)
            if lead.transferee == message.sender and self._lead is lead:
                self._try_transfer(lead)

    def _step_heartbeat_response(self, message: HeartbeatResponse) -> None:
        lead = self._lead
        progress = self._answering(message)
        if lead is None or progress is None:
            return
        if progress.heartbeat_answered(self._log.last_index):
            lead.broadcast = True
        if lead.round_reads and message.read_round == self._read_round:
            lead.round_acks.add(message.sender)
            self._maybe_finish_round(lead)

    def _answering(
        self, message: AppendResponse | HeartbeatResponse | SnapshotAck
    ) -> Progress | None:
        """The follower that answers us as leader; None when the answer is not for this
        leadership, or from before the follower was removed and added again."""
        if self._lead is None:
            return None
        progress = self._lead.peers.get(message.sender)
        if progress is None or progress.member.session != message.session:
            return None
        progress.silent_ticks = 0
        progress.answered = True
        return progress

    # --- replication

    def _may_send(self, progress: Progress) -> bool:
        return progress.may_send(self.config.inflight_messages_max, self.config.inflight_bytes_max)

    def _replicate(self, lead: Leadership) -> None:
        """Send each follower what it lacks, as far as its window allows."""
        lead.broadcast = lead.holds_back = False
        lead.choose_needed(self.membership.voters)
        batches: dict[LogIndex, tuple[tuple[Entry, ...], int]] = {}  # shared by equal followers
        for progress in lead.peers.values():
            if self._may_wait(lead, progress):
                lead.holds_back = True
                continue
            while self._send_append(lead, progress, batches):
                pass

    def _may_wait(self, lead: Leadership, progress: Progress) -> bool:
        """Whether this follower lacks entries, and gets them later: see leadership.py."""
        log, first = self._log, progress.next_index
        return (
            lead.may_wait(progress)
            and max(log.front.index, log.membership_index) < first <= log.last_index
            and not progress.wants_news(log.commit_index, log.membership_index)
            # What waits becomes one message.
            and log.bytes_after(LogIndex(first - 1)) < self.config.append_bytes_max
        )

    def _flush(self, lead: Leadership) -> None:
        lead.flushed_index = self._log.last_index
        lead.broadcast |= lead.holds_back

    def _send_append(
        self,
        lead: Leadership,
        progress: Progress,
        batches: dict[LogIndex, tuple[tuple[Entry, ...], int]],
    ) -> bool:
        """One append to this follower; whether another may follow at once."""
        log = self._log
        first = progress.next_index
        open_ = self._may_send(progress)
        if progress.state is ProgressState.SNAPSHOT or not (open_ or progress.check_wanted):
            return False
        previous = LogIndex(first - 1)
        previous_term = log.term_at(previous)
        if previous_term is None:
            if self._is_active(progress):
                progress.become_snapshot()
                self._serve_snapshot(lead, progress)
            return False
        entries: tuple[Entry, ...] = ()
        size = 0
        if open_ and first <= log.last_index:
            if first not in batches:
                batch = tuple(log.slice(first, self.config.append_bytes_max))
                batches[first] = (
                    batch,
                    log.bytes_after(previous) - log.bytes_after(batch[-1].index),
                )
            entries, size = batches[first]
        commit = log.commit_index
        if not entries and not progress.wants_news(commit, log.membership_index):
            return False
        self._messages.append(
            AppendRequest(
                self.node, progress.member.number, self.term, progress.member.session,
                previous, previous_term, commit, entries,
            )
        )  # fmt: skip
        progress.sent(LogIndex(previous + len(entries)), size, commit)
        return bool(entries) and progress.next_index <= log.last_index

    def _send_heartbeats(self, lead: Leadership) -> None:
        if not self.term_is_durable:
            return
        commit = self._log.commit_index
        for number, progress in lead.peers.items():
            self._messages.append(
                HeartbeatRequest(
                    self.node, number, self.term, progress.member.session,
                    min(progress.match_index, commit), self._read_round,
                )
            )  # fmt: skip

    def _maybe_commit(self, lead: Leadership) -> None:
        """Commit what a majority holds on its disks, this node's own disk counted like others."""
        log = self._log
        index = majority_index(
            [
                log.durable_index if voter == self.node else lead.peers[voter].match_index
                for voter in log.membership.voters
            ]
        )
        if self._may_commit(index) and log.commit_to(index):
            lead.broadcast = bool(lead.peers)
            if log.membership_index <= index and self.node not in log.membership.voters:
                self._hand_over(lead)

    def _may_commit(self, index: LogIndex) -> bool:
        # Only entries of the own term are committed by counting; older ones go along with them
        # (Raft 5.4.2, figure 8).
        return self._log.term_at(index) == self.term

    # --- membership

    def _leadership(self) -> Leadership:
        if self._lead is None:
            raise NotLeaderError(self.leader)
        return self._lead

    def _check_no_change_pending(self, lead: Leadership) -> None:
        log = self._log
        if log.commit_index < lead.first_index:
            raise BusyError("this leader has not committed an entry of its term yet")
        if log.membership_index > log.commit_index:
            raise BusyError("another change of the membership is under way")
        if lead.transferee is not None:
            raise BusyError("leadership is being handed over")

    def _append_membership(self, lead: Leadership, membership: Membership) -> LogIndex:
        log = self._log
        assert log.membership_index <= log.commit_index, (log.membership_index, log.commit_index)
        assert log.commit_index >= lead.first_index, (log.commit_index, lead.first_index)
        index = LogIndex(log.last_index + 1)
        data = pack_membership(membership)
        log.append([Entry(index, self.term, EntryKind.MEMBERSHIP, data)])
        self._update_peers(lead)
        lead.broadcast = True
        self._release_outgoing(lead)
        # Fewer voters may make a majority of the answers that are in already.
        self._maybe_finish_round(lead)
        if lead.transferee is not None and lead.transferee not in membership.voters:
            lead.transferee = None
        return index

    def _update_peers(self, lead: Leadership) -> None:
        """One Progress for each other member; one that stays keeps what is known of it."""
        peers: dict[NodeNumber, Progress] = {}
        for member in self.membership.members:
            if member.number == self.node:
                continue
            progress = lead.peers.get(member.number)
            if progress is None or progress.member.session != member.session:
                progress = Progress(member, LogIndex(self._log.last_index + 1))
            progress.member = member
            peers[member.number] = progress
        lead.peers = peers

    def _promote_learner(self, lead: Leadership) -> None:
        """Make one caught-up learner marked ``promote`` a voter, if nothing is in the way."""
        log = self._log
        if (
            log.commit_index < lead.first_index
            or log.membership_index > log.commit_index
            or lead.transferee is not None
            or len(log.membership.voters) >= VOTERS_MAX
        ):
            return
        for number, progress in lead.peers.items():
            if progress.member.promote and self._is_caught_up(progress):
                change = MembershipChange(ChangeKind.PROMOTE, number)
                index = LogIndex(log.last_index + 1)
                self._append_membership(lead, changed(log.membership, change, index))
                return

    def _is_caught_up(self, progress: Progress) -> bool:
        """Whether this learner would not hold up commits as a voter (thesis 4.2.1)."""
        # A round that drags on counts against it before it ends.
        ticks_max = CATCH_UP_TIMEOUTS * self.config.election_ticks
        in_time = progress.caught_up and progress.round_ticks < ticks_max
        return (
            progress.state is ProgressState.REPLICATE
            and self._is_active(progress)
            and (in_time or progress.match_index == self._log.last_index)
        )

    def _is_active(self, progress: Progress) -> bool:
        return progress.silent_ticks < self.config.election_ticks

    def _works(self, progress: Progress) -> bool:
        """Whether it is there, and its disk takes what it is sent."""
        ticks_max = CATCH_UP_TIMEOUTS * self.config.election_ticks
        return self._is_active(progress) and progress.stalled_ticks < ticks_max

    def _hand_over(self, lead: Leadership) -> None:
        """Voted out, and that is committed: step down, and spare the rest the time-out."""
        voters = [lead.peers[voter] for voter in self.membership.voters]
        best = max(voters, key=lambda progress: progress.match_index)
        self._messages.append(TimeoutNow(self.node, best.member.number, self.term))
        self._become_follower(self.term, None)

    def _try_transfer(self, lead: Leadership) -> None:
        to = lead.transferee
        if to is not None and lead.peers[to].match_index == self._log.last_index:
            self._messages.append(TimeoutNow(self.node, to, self.term))

    # --- reads (thesis 6.4)

    def _may_start_round(self, lead: Leadership) -> bool:
        # Before an entry of its own term is committed, a leader doesn't know what is committed.
        return bool(
            lead.reads_waiting
            and not lead.round_reads
            and self._log.commit_index >= lead.first_index
        )

    def _start_round(self, lead: Leadership) -> None:
        """Have a majority confirm that this node still leads, for all reads that wait."""
        lead.round_reads, lead.reads_waiting = lead.reads_waiting, []
        lead.round_index = self._log.commit_index
        lead.round_acks = {self.node}
        self._read_round += 1
        self._maybe_finish_round(lead)
        if lead.round_reads:
            self._send_heartbeats(lead)

    def _maybe_finish_round(self, lead: Leadership) -> None:
        voters = self.membership.voters
        if sum(1 for voter in voters if voter in lead.round_acks) < majority(len(voters)):
            return
        for asker, context in lead.round_reads:
            if asker is None:
                self._reads_done.append(ReadState(context, lead.round_index))
            else:
                self._messages.append(
                    ReadResponse(self.node, asker, self.term, context, lead.round_index)
                )
        lead.round_reads = []

    def _step_read_request(self, message: ReadRequest) -> None:
        if self._lead is None:
            return  # the asker hears of another leader and fails its reads, or asks again
        asked = (message.sender, message.number)
        if asked not in self._lead.reads_waiting:
            self._lead.reads_waiting.append(asked)

    def _step_read_response(self, message: ReadResponse) -> None:
        if message.number != self._read_number or message.sender != self.leader:
            return
        index = message.index
        self._reads_done.extend([ReadState(context, index) for context in self._reads_forwarded])
        self._reads_forwarded = []

    def _forward_reads(self) -> None:
        assert self.leader is not None, "reads wait only while a leader is known"
        self._reads_forwarded, self._reads_waiting = self._reads_waiting, []
        self._read_number += 1
        self._send_read_request(self.leader)

    def _send_read_request(self, leader: NodeNumber) -> None:
        self._forward_elapsed = 0
        self._say(ReadRequest(self.node, leader, self.term, self._read_number))

    def _fail_reads(self) -> None:
        self._reads_failed.extend(self._reads_forwarded)
        self._reads_failed.extend(self._reads_waiting)
        self._reads_forwarded = []
        self._reads_waiting = []

    # --- snapshots, leader's side

    def _snapshot_receivers(self, lead: Leadership) -> list[Progress]:
        return [p for p in lead.peers.values() if p.state is ProgressState.SNAPSHOT]

    def _serve_snapshot(self, lead: Leadership, progress: Progress) -> None:
        """Bring the next piece on its way, or have a snapshot made."""
        outgoing = lead.outgoing
        if outgoing is not None and outgoing.meta.index < self._log.front.index:
            self._drop_outgoing(lead)
            outgoing = None
        if outgoing is None:
            if not lead.snapshot_asked:
                lead.snapshot_asked = self._snapshot_wanted = True
            return
        if progress.snapshot_reading:
            return
        piece = self.config.snapshot_chunk_bytes
        # After the end, the last piece again: the answer says whether the receiver still has it.
        offset = min(progress.snapshot_offset, (outgoing.size - 1) // piece * piece)
        length = min(piece, outgoing.size - offset)
        progress.snapshot_reading = True
        progress.snapshot_ticks = 0
        self._snapshot_reads.append(
            SnapshotRead(progress.member.number, outgoing.snapshot_id, offset, length)
        )

    def _tick_snapshot(self, lead: Leadership, progress: Progress) -> None:
        timeout = self.config.election_ticks
        if progress.silent_ticks >= SNAPSHOT_PATIENCE_TIMEOUTS * timeout:
            progress.become_probe(LogIndex(progress.match_index + 1))
            self._release_outgoing(lead)
            return
        progress.snapshot_ticks += 1
        if progress.snapshot_ticks >= CHUNK_RETRY_TIMEOUTS * timeout:
            progress.snapshot_ticks = 0
            if self._is_active(progress):
                self._serve_snapshot(lead, progress)

    def _step_snapshot_ack(self, message: SnapshotAck) -> None:
        lead = self._lead
        progress = self._answering(message)
        if lead is None or progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        outgoing = lead.outgoing
        if outgoing is None or outgoing.snapshot_id != message.snapshot_id:
            return
        if message.offset > outgoing.size:
            raise RemoteProtocolError(
                f"raft: node {message.sender} has {message.offset} of {outgoing.size} bytes"
            )
        if message.offset == progress.snapshot_offset:
            return  # repeated; a lost piece is sent again by tick
        if message.offset == 0 and progress.snapshot_offset == outgoing.size:
            # The complete file was refused. It may be bad here as well: make another.
            self._drop_outgoing(lead)
            self._serve_snapshot(lead, progress)
            return
        progress.snapshot_offset = message.offset
        progress.snapshot_ticks = progress.stalled_ticks = 0
        if message.offset < outgoing.size:
            self._serve_snapshot(lead, progress)

    def _drop_outgoing(self, lead: Leadership) -> None:
        if lead.outgoing is not None:
            self._snapshots_dropped.append(lead.outgoing.snapshot_id)
            lead.outgoing = None
        for progress in self._snapshot_receivers(lead):
            progress.become_snapshot()

    def _release_outgoing(self, lead: Leadership) -> None:
        if not self._snapshot_receivers(lead):
            self._drop_outgoing(lead)

    # --- snapshots, follower's side

    def _step_snapshot_chunk(self, message: SnapshotChunk) -> None:
        self._follow(message)
        if self._installing is not None:
            self._incoming_from = message
            return
        log = self._log
        meta = message.meta
        if meta.index > log.commit_index and log.term_at(meta.index) == meta.term:
            log.commit_to(meta.index)
        if meta.index <= log.commit_index:
            self._acknowledge_to(message.sender, message.session, log.commit_index)
            return
        self._incoming_from = message
        incoming = self._incoming
        if incoming is None or incoming.snapshot_id != message.snapshot_id:
            if message.offset != 0:
                self._answer_chunk(message.snapshot_id, 0)
                return
            incoming = self._incoming = _Incoming(message.snapshot_id)
        if incoming.writing:
            return  # repeated
        if incoming.offset == message.size:
            # Found complete at start: a crash came between the last piece and the installation.
            self._begin_installing(SnapshotInstall(message.snapshot_id, meta))
            return
        if incoming.offset != message.offset:
            self._answer_chunk(incoming.snapshot_id, incoming.offset)
            return
        incoming.writing = True
        self._snapshot_writes.append(
            SnapshotWrite(
                message.snapshot_id, meta, message.size, message.offset, message.data
            )
        )  # fmt: skip

    def _begin_installing(self, install: SnapshotInstall) -> None:
        self._installing = install
        self._install_wanted = True
        # Entries that have not gone to the disk never will: nothing may acknowledge them.
        self._acknowledge = None

    def _answer_chunk(self, snapshot_id: bytes, offset: int) -> None:
        chunk = self._incoming_from
        if chunk is not None and chunk.sender == self.leader:
            self._promises.append(
                SnapshotAck(self.node, chunk.sender, self.term, chunk.session, snapshot_id, offset)
            )


_FROM_LEADER = (AppendRequest, HeartbeatRequest, SnapshotChunk)

_HANDLERS: dict[type[Any], Callable[[Raft, Any], None]] = {
    VoteRequest: Raft._step_vote_request,
    VoteResponse: Raft._step_vote_response,
    AppendRequest: Raft._step_append_request,
    AppendResponse: Raft._step_append_response,
    HeartbeatRequest: Raft._step_heartbeat_request,
    HeartbeatResponse: Raft._step_heartbeat_response,
    ReadRequest: Raft._step_read_request,
    ReadResponse: Raft._step_read_response,
    TimeoutNow: Raft._step_timeout_now,
    SnapshotChunk: Raft._step_snapshot_chunk,
    SnapshotAck: Raft._step_snapshot_ack,
}
