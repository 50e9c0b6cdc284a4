"""One node's part of the replicated tree: ``step(now, events) -> effects``.

Joins the Raft core (order), the tree (outcome) and exactly-once (client, serial). The runtime and
the simulator drive the same object: they hand in events, do the IO that the effects name, and hand
in the answers. Never here: clock, socket, file, thread, randomness. The tree's SQLite connection is
handed in and used only from ``step`` and from queries between two steps.

The way of a command, from the node its client talks to::

    Propose ─► pending ─┬─ this node leads ──► log ─► Persist ─► majority ─► applied here ─► Reply
                        ├─ another one leads ► Forward, and again every second until applied here
                        └─ nobody leads ─────► waits for a leader, at most until its deadline

A reply always follows the *local* apply, so a client reads its own writes on its node, and the
leader never answers a forwarded command: the log does. And it waits until nobody may show the state
of before any more (leases.py). Sending a command twice is harmless, because applying counts a
(client, serial) once and gives the first Result again. Hence a command that a delegation kept from
being executed goes into the log once more when that was given back (recalls.py).

Disk full. A log without room keeps its entries and the runtime tries again, so nothing is decided
about them; a tree without room stops applying and goes on where it stopped. Meanwhile commands that
need space are refused with NoSpaceError, and those under way get it at their deadline.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, ClassVar

from pydi_node.commands import Command, Envelope, makes_room
from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import (
    NO_INDEX,
    ChangeKind,
    Entry,
    EntryKind,
    MembershipChange,
    PeerStatus,
    ReadRequest,
    Ready,
    Role,
)
from pydi_node.effects import (
    FORWARD_BYTES_MAX,
    FORWARDS_PER_MESSAGE_MAX,
    AddMember,
    Cut,
    DiskFull,
    Dropped,
    DropSnapshot,
    Effect,
    Enlist,
    Event,
    Forward,
    FromPeer,
    Gone,
    Leave,
    MembersChanged,
    Now,
    Overdue,
    PeerBroke,
    PeerMessage,
    Persist,
    Persisted,
    Propose,
    Push,
    Read,
    Reclaim,
    Refuse,
    RefuseReason,
    RemoveMember,
    Reply,
    Resign,
    RoleChanged,
    Send,
    Settle,
    SnapshotBytes,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotPartial,
    SnapshotRefused,
    SnapshotTaken,
    SnapshotWritten,
    TakeSnapshot,
    Tick,
    TreeStalled,
)
from pydi_node.envelopes import length_max, pack_envelope, unpack_envelope
from pydi_node.errors import (
    BusyError,
    DeadlineError,
    NoQuorumError,
    NoSpaceError,
    NotLeaderError,
    PydiError,
    RemoteProtocolError,
    UnavailableError,
    UserError,
)
from pydi_node.handover import Demand, advance, can_lead, next_in_turn
from pydi_node.ids import ClientId, Ino, LogIndex, NodeNumber, Serial, Term, TimeNs
from pydi_node.leases import Grant, Leases, Renew, Unreleased
from pydi_node.reads import Reads
from pydi_node.recalls import RETRY_S, Recalls
from pydi_node.records import DELEGATED, Result, Touched
from pydi_node.replica_config import ReplicaConfig
from pydi_node.replica_waits import Held, Leaving, MemberWaiter, Pending, Sizes
from pydi_node.tree.committer import Committer
from pydi_node.tree.machine import Tree

_log = logging.getLogger(__name__)

Key = tuple[ClientId, Serial]

NOBODY = 0  # the request of a command whose outcome nobody waits for; events have others
# In the serial of a command that a replica proposes by itself, so that it is never one of those
# that its runtime gives (service.next_serial).
OWN_SERIALS = 1 << 47


class Replica:
    """See the module's text. All public attributes are for reading."""

    def __init__(self, raft: Raft, tree: Tree, config: ReplicaConfig, now: Now) -> None:
        self.raft = raft
        self.tree = tree
        self.config = config
        self._now = now
        self._effects: list[Effect] = []

        # Commands.
        self._pending: dict[Key, Pending] = {}
        self._pending_sizes = Sizes(config.pending_bytes_max)
        # To be proposed or forwarded; on a leader others' too.
        self._unsent: dict[Key, Command] = {}
        self._forwarded = Sizes(config.forwarded_bytes_max)  # of ``_unsent``, what others sent
        self._in_log: set[Key] = set()  # proposed by this leader in this term, not yet applied
        self._proposed = NO_INDEX  # the last of them, or of what was applied since
        self._envelopes: dict[LogIndex, tuple[Term, Envelope]] = {}  # spares decoding on the leader
        self._demand = Demand(config.handover, now.mono_s)  # a leader's
        self._next_relief_s = -inf  # when this node, full and leading, looks for another leader
        self._time_ns = TimeNs(0)  # newest stamp given out
        self._next_expiry_s = inf

        # Commands of ``_pending`` that wait until these directories are given back.
        self._parked: dict[Key, tuple[Ino, ...]] = {}
        self._recalls = Recalls()
        self._own_serial = 0
        self._reads = Reads(raft)

        self.leases = Leases(raft, tree.applied_index, now.uptime_s)
        self._unreleased = Unreleased()  # answers that wait

        # Applying.
        self._committed: deque[Entry] = deque()
        self._held: deque[Held] = deque()
        self._persisting = 0  # number of the newest Persist handed out
        self._persisted = 0
        self._committer = Committer(tree, config.commit, now.mono_s)
        self._tree_full = False
        self._disk_full = False
        self._cut_at_index = tree.applied_index
        self._cut_at_s = now.mono_s
        self._uncut_bytes = 0  # of commands applied since
        self._taking_snapshot = False
        # When Overdue is to come, unless that has changed by then; inf: not at all.
        self.overdue_s = inf
        self._awaited = NO_INDEX  # what should be committed by then

        # Members.
        self._leaving: Leaving | None = None
        self._member_waiters: list[MemberWaiter] = []
        self._next_members_s = now.mono_s

    # --- for the runtime between two steps --------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return self.raft.role is Role.LEADER

    @property
    def is_settled(self) -> bool:
        """Whether nothing is applied here that somebody's cache may still lack."""
        return self.tree.applied_index <= self.leases.released

    @property
    def outstanding(self) -> int:
        """Commands and reads without an answer yet."""
        commands = sum(len(pending.waiters) for pending in self._pending.values())
        return commands + len(self._reads) + len(self._unreleased)

    @property
    def space_is_short(self) -> bool:
        return self._disk_full or self._tree_full

    # --- the step ---------------------------------------------------------------------------------

    def step(self, now: Now, events: Sequence[Event]) -> list[Effect]:
        """What to do now that these events happened, in the order in which to do it. The more come
        together, the larger the batches for log, tree and network."""
        self._now = now
        for event in events:
            self._HANDLERS[type(event)](self, event)
        # One that follows each step in which anything was applied, and changes no more than this.
        if len(events) != 1 or type(events[0]) is not Dropped or self.raft.has_ready():
            self._go_on()
        if messages := self.leases.advance(now.uptime_s):
            self._send(messages)
        for answer in self._unreleased.take(self.leases.released):
            self._reply(*answer)
        effects, self._effects = self._effects, []
        return effects

    def _go_on(self) -> None:
        """All that follows from what has happened."""
        self._get_back()
        self._route()
        self._reads.ask()
        while self.raft.has_ready():
            self._take(self.raft.ready())
            self._apply()
            # Applying and role changes may have made room or given new work.
            self._get_back()
            self._route()
        for request in self._reads.answered(self.raft.applied_index, self.tree):
            self._reply(request, Result())
        self._maybe_cut()
        if self._leaving is not None and not self._leaving.is_answered:
            self._advance_leave(self._leaving)
        if self.raft.has_ready():
            self._take(self.raft.ready())
            self._apply()
        self._look_at_pace()

    def _on_tick(self, _: Tick) -> None:
        self.raft.tick()
        if self._committer.is_time(self._now.mono_s, self._tree_full):
            # A full tree goes on where it stopped, if there is room again.
            self._set_tree_full(not (self._commit() and self._apply_all()))
        now_s = self._now.mono_s
        if now_s >= self._next_expiry_s:
            self._expire()
        if self.is_leader:
            self._look_who_should_lead(now_s)
        if not self.is_leader and self.raft.leader is not None:
            for key, pending in self._pending.items():
                late = now_s - pending.sent_s >= self.config.forward_retry_s
                if late and key not in self._parked:
                    self._unsent[key] = pending.command
        if now_s >= self._next_members_s:
            self._next_members_s = now_s + self.config.members_period_s
            self._look_at_members()

    def _on_message(self, event: FromPeer) -> None:
        message = event.message
        match message:
            case Forward():
                self._on_forward(message)
            case Grant():
                self.leases.on_grant(message)
                self._hear(message.sender)
            case Refuse():
                self._on_refuse(message)
            case Enlist():
                self._on_enlist(message)
            case Resign():
                self._on_resign(message)
            case _:
                try:
                    if isinstance(message, Renew):
                        self.leases.on_renew(message, self._now.uptime_s)
                        return
                    self.raft.step(message)
                    self._hear(message.sender)
                    if isinstance(message, ReadRequest) and self.is_leader:
                        self.leases.heard(message.sender, self._now.uptime_s)
                except RemoteProtocolError as exc:
                    self._effects.append(PeerBroke(message.sender, exc))

    def _hear(self, sender: NodeNumber) -> None:
        if sender == self.raft.leader:
            self.leases.heard_from_leader(self._now.uptime_s)

    # --- commands ---------------------------------------------------------------------------------

    def _on_propose(self, event: Propose) -> None:
        key = (event.client, event.serial)
        pending = self._pending.get(key)
        if pending is not None:
            pending.waiters.append((event.request, event.deadline_s))
        elif self.space_is_short and not makes_room(event.command):
            self._reply(event.request, NoSpaceError("this node's disk is full"))
            return
        elif self._await(key, event.command, event.request, event.deadline_s):
            self._count(self.raft.node, event.command)
        else:
            self._reply(event.request, BusyError("too many commands wait for the log"))
        self._next_expiry_s = min(self._next_expiry_s, event.deadline_s)

    def _await(self, key: Key, command: Command, request: int, deadline_s: float) -> bool:
        """Has the command done; False when so many wait that it would cost too much memory."""
        if not self._pending_sizes.add(key, command):
            return False
        self._pending[key] = Pending(command, [(request, deadline_s)])
        self._unsent[key] = command
        return True

    def _forget(self, key: Key) -> Pending | None:
        """Nobody here waits for that command any more; who did."""
        pending = self._pending.pop(key, None)
        if pending is not None:
            self._pending_sizes.remove(key)
            self._no_longer_unsent(key)
        return pending

    def _no_longer_unsent(self, key: Key) -> None:
        self._unsent.pop(key, None)
        self._forwarded.remove(key)

    def _on_forward(self, message: Forward) -> None:
        if not self.is_leader:
            return  # the sender learns of the new leader and sends again
        self.leases.heard(message.sender, self._now.uptime_s)
        refused: list[Key] = []
        for client, serial, command in message.items:
            key = (client, serial)
            if self.space_is_short and not makes_room(command):
                refused.append(key)
            elif (
                key not in self._in_log
                and key not in self._unsent
                and len(self._unsent) < self.config.forwarded_max
                and self._forwarded.add(key, command)
            ):
                self._count(message.sender, command)
                self._unsent[key] = command
        if refused:
            refuse = Refuse(self.raft.node, message.sender, RefuseReason.NO_SPACE, tuple(refused))
            self._send([refuse])

    def _count(self, number: NodeNumber, command: Command) -> None:
        if not makes_room(command):
            self._demand.count(number)

    def _on_refuse(self, message: Refuse) -> None:
        if message.sender != self.raft.leader:
            return
        for key in message.keys:
            pending = self._forget(key)
            if pending is not None:
                for request, _ in pending.waiters:
                    self._reply(request, NoSpaceError("the leader's disk is full"))

    def _route(self) -> None:
        """Everything unsent goes into the log here, or to the leader, if there is one."""
        if self._unsent and self.is_leader:
            # One batch at a time, for one of many costs little more than one of one. The next goes
            # before this one is applied here, and tells the followers that this one is certain.
            if self._proposed <= self.raft.commit_index and not self._committed:
                self._propose_unsent()
        elif self._unsent and self.raft.leader is not None:
            self._forward_unsent(self.raft.leader)

    def _propose_unsent(self) -> None:
        envelopes: list[Envelope] = []
        datas: list[bytes] = []
        size = 0
        time_ns = self._time_ns = max(self._time_ns, self._now.time_ns)
        for key, command in self._unsent.items():
            envelope = Envelope(key[0], key[1], time_ns, command)
            data = pack_envelope(envelope)
            size += len(data)
            if datas and size > self.config.proposal_bytes_per_step_max:
                break
            envelopes.append(envelope)
            datas.append(data)
            if len(datas) == self.config.proposals_per_step_max:
                break
        try:
            first = self.raft.propose(datas)
        except (BusyError, NotLeaderError):
            return  # they stay unsent; the next step tries again
        term = self.raft.term
        self._proposed = self.raft.last_index
        for index, envelope in enumerate(envelopes, first):
            key = (envelope.client, envelope.serial)
            self._envelopes[LogIndex(index)] = (term, envelope)
            self._in_log.add(key)
            self._no_longer_unsent(key)

    def _forward_unsent(self, leader: NodeNumber) -> None:
        items: list[tuple[ClientId, Serial, Command]] = []
        size = 0
        for key, command in self._unsent.items():
            pending = self._pending.get(key)
            if pending is None:
                continue  # another node's, from when this one led: that node sends it again
            pending.sent_s = self._now.mono_s
            length = length_max(command)
            if items and (
                size + length > FORWARD_BYTES_MAX or len(items) == FORWARDS_PER_MESSAGE_MAX
            ):
                self._send([Forward(self.raft.node, leader, tuple(items))])
                items, size = [], 0
            items.append((*key, command))
            size += length
        self._unsent.clear()
        self._forwarded.clear()
        if items:
            self._send([Forward(self.raft.node, leader, tuple(items))])

    def _expire(self) -> None:
        """Answers whatever is past its deadline, saying what it waited for."""
        now_s = self._now.mono_s
        nearest = inf
        for key, pending in list(self._pending.items()):
            left = [waiter for waiter in pending.waiters if waiter[1] > now_s]
            if len(left) < len(pending.waiters):
                # A command may have been answered before its client came to this node.
                outcome = self.tree.session_result(*key) if key[0] and self.is_settled else None
                for request, deadline_s in pending.waiters:
                    if deadline_s <= now_s:
                        self._reply(request, outcome or self._why_late())
                pending.waiters = left
            if left:
                nearest = min(nearest, *[deadline_s for _, deadline_s in left])
            else:
                self._forget(key)
        late_reads, deadlines = self._reads.expire(now_s)
        late, unreleased_s = self._unreleased.expire(now_s)
        for request in late_reads + late:
            self._reply(request, self._why_late())
        nearest = min([nearest, *deadlines])
        for waiter in list(self._member_waiters):
            if waiter.deadline_s <= now_s:
                self._member_waiters.remove(waiter)
                self._reply(waiter.request, self._why_late())
            else:
                nearest = min(nearest, waiter.deadline_s)
        self._next_expiry_s = min(nearest, unreleased_s)

    def _why_late(self) -> PydiError:
        if self.space_is_short:
            return NoSpaceError("this node's disk is full")
        if self.raft.leader is None:
            return NoQuorumError("too few voters are reachable to choose a leader")
        return DeadlineError("not certain here before the deadline; the outcome is unknown")

    # --- reads ------------------------------------------------------------------------------------

    def _on_read(self, event: Read) -> None:
        self._reads.add(event.request, event.deadline_s)
        self._next_expiry_s = min(self._next_expiry_s, event.deadline_s)

    def _on_reclaim(self, event: Reclaim) -> None:
        self._reads.reclaim(event.request, event.deadline_s, event.directory, event.client)
        self._next_expiry_s = min(self._next_expiry_s, event.deadline_s)

    def _on_settle(self, event: Settle) -> None:
        self._unreleased.hold(event.index, [(event.request, event.deadline_s)], Result())
        self._next_expiry_s = min(self._next_expiry_s, event.deadline_s)

    def _on_dropped(self, event: Dropped) -> None:
        self.leases.dropped = event.index

    # --- delegated directories --------------------------------------------------------------------

    def _get_back(self) -> None:
        """Commands whose directories were given back go into the log again; those that others hold
        and somebody here waits for are asked for."""
        if not (self._parked or self._reads or self._recalls):
            return
        wanted = set(self._reads.directories(self.tree))
        for key, inos in list(self._parked.items()):
            pending = self._pending.get(key)
            held = [ino for ino in inos if self.tree.is_held(ino, key[0])]
            if pending is None or not held:
                del self._parked[key]
            if pending is None:
                continue  # past its deadline
            wanted.update(held)
            if not held:
                self._unsent[key] = pending.command
        now_s = self._now.mono_s
        for command in self._recalls.commands(wanted, self.tree, self.leases.released, now_s):
            # Nobody waits for its outcome: what it does, the tree shows.
            self._own_serial += 1
            key = (ClientId(0), Serial(self.raft.node << 48 | OWN_SERIALS | self._own_serial))
            self._await(key, command, NOBODY, now_s + RETRY_S)  # tried again, if there is no room
            self._next_expiry_s = min(self._next_expiry_s, now_s + RETRY_S)

    # --- what the core hands out ------------------------------------------------------------------

    def _take(self, ready: Ready) -> None:
        effects = self._effects
        if ready.role_change is not None:
            self._on_role_change(ready)
        if ready.membership is not None:
            self.leases.members_changed(ready.membership, self._now.uptime_s)
            effects.append(MembersChanged(ready.membership))
        if ready.messages:
            self._send(ready.messages)
        if ready.must_persist:
            self._persisting = ready.number
            effects.append(
                Persist(ready.number, ready.truncate_from, ready.entries, ready.hard_state)
            )
        if ready.messages_after_persist:
            if self._persisting > self._persisted:
                self._held.append(Held(self._persisting, ready.messages_after_persist))
            else:
                self._send(ready.messages_after_persist)
        self._committed.extend(ready.committed)
        self._reads.take(ready)
        if ready.snapshot_wanted and not self._taking_snapshot:
            self._taking_snapshot = True
            effects.append(TakeSnapshot())
        effects.extend(ready.snapshot_reads)
        effects.extend(ready.snapshot_writes)
        if ready.snapshot is not None:
            effects.append(ready.snapshot)
        effects.extend(DropSnapshot(snapshot_id) for snapshot_id in ready.snapshots_dropped)

    def _on_role_change(self, ready: Ready) -> None:
        change = ready.role_change
        assert change is not None
        self._effects.append(RoleChanged(change.role, change.term, change.leader))
        self.leases.role_changed(self._now.uptime_s)
        self._demand = Demand(self.config.handover, self._now.mono_s)
        # Entries proposed or forwarded under the old leader may be lost with it: all goes again.
        self._in_log.clear()
        self._proposed = NO_INDEX
        self._envelopes.clear()
        self._unsent = {key: pending.command for key, pending in self._pending.items()}
        self._forwarded.clear()

    def _on_persisted(self, event: Persisted) -> None:
        assert self._persisted < event.number <= self._persisting, (event, self._persisting)
        self._persisted = event.number
        self.raft.persisted(event.number)
        while self._held and self._held[0].number <= event.number:
            self._send(self._held.popleft().messages)

    def _on_gone(self, event: Gone) -> None:
        if event.number == self.raft.leader:
            self.raft.leader_gone()

    def _on_disk_full(self, event: DiskFull) -> None:
        self._disk_full = event.full
        if not event.full:
            self._next_relief_s = -inf

    # --- applying ---------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Applies what is committed, as far as the tree's disk has room for it."""
        if not self._tree_full:
            self._set_tree_full(not self._apply_all())

    def _apply_all(self) -> bool:
        """False when there was no room."""
        committed = self._committed
        while committed:
            if committed[0].kind is EntryKind.MEMBERSHIP:
                batch = [committed[0]]
            else:
                batch = []
                for entry in committed:
                    if entry.kind is EntryKind.MEMBERSHIP or len(batch) == (
                        self.config.apply_batch_max
                    ):
                        break
                    batch.append(entry)
            try:
                self._apply_batch(batch)
            except NoSpaceError:
                return False
            for _ in batch:
                committed.popleft()
            self.raft.applied(batch[-1].index)
            size = sum(len(entry.data) for entry in batch)
            self._uncut_bytes += size
            if self._committer.is_due(size) and not self._commit():
                return False
        return True

    def _commit(self) -> bool:
        return self._committer.commit(self._now.mono_s)

    def _apply_batch(self, batch: Sequence[Entry]) -> None:
        first = batch[0]
        if first.kind is EntryKind.MEMBERSHIP:
            self.tree.advance_membership(first.index, first.term, first.data)
            self._answer_member_waiters(first.index)
            return
        work: list[tuple[LogIndex, Term, Envelope | None]] = []
        for index, term, kind, data in batch:
            envelope = None
            if kind is EntryKind.COMMAND:
                known = self._envelopes.get(index)
                envelope = (
                    known[1] if known is not None and known[0] == term else unpack_envelope(data)
                )
            work.append((index, term, envelope))
        results = self.tree.advance(work)
        touched: list[tuple[LogIndex, ClientId, Serial, Touched]] = []
        for (index, _, envelope), result in zip(work, results, strict=True):
            if envelope is None:
                continue
            self._envelopes.pop(index, None)
            self._time_ns = max(self._time_ns, envelope.time_ns)
            key = (envelope.client, envelope.serial)
            self._in_log.discard(key)
            if result.errno == DELEGATED:
                if key in self._pending:
                    self._parked[key] = result.value
                continue
            if result.touched.inos or result.touched.entries:
                touched.append((index, *key, result.touched))
            pending = self._forget(key)
            if pending is not None:
                self._unreleased.hold(index, pending.waiters, result)
        if touched:
            self._effects.append(Push(touched))

    def _set_tree_full(self, full: bool) -> None:
        if full != self._tree_full:
            self._tree_full = full
            self._effects.append(TreeStalled(full))

    def _maybe_cut(self) -> None:
        applied = self.raft.applied_index
        fresh, config = applied - self._cut_at_index, self.config
        is_much = fresh >= config.cut_entries or self._uncut_bytes >= config.cut_bytes
        is_idle = self._now.mono_s - self._cut_at_s >= config.cut_idle_s
        if not (is_much or (is_idle and fresh)) or self._taking_snapshot or self._tree_full:
            return
        if self.leases.forgets_too_early(self._now.uptime_s):
            return
        self._cut_at_s = self._now.mono_s
        self._uncut_bytes = 0
        try:
            durable = self.tree.checkpoint()
        except (NoSpaceError, UnavailableError):
            return  # the disk is full or somebody copies the tree: the log stays for now
        self._cut_at_index = durable
        meta = self.raft.compact(durable)
        if meta is not None:
            self._effects.append(Cut(meta))

    # --- the pace of the majority -----------------------------------------------------------------

    def _look_at_pace(self) -> None:
        raft = self.raft
        if not raft.holds_back:
            self.overdue_s = inf
        elif self.overdue_s == inf or raft.commit_index >= self._awaited:
            self._awaited = raft.last_index
            self.overdue_s = self._now.mono_s + self.config.overdue_s

    def _on_overdue(self, _: Overdue) -> None:
        if self._now.mono_s >= self.overdue_s:
            self.overdue_s = inf
            self.raft.flush()

    # --- snapshots --------------------------------------------------------------------------------

    def _on_snapshot_taken(self, event: SnapshotTaken) -> None:
        self._taking_snapshot = False
        meta = self.raft.snapshot_meta(event.applied_index)
        self.raft.snapshot_taken(event.snapshot_id, meta, event.size)

    def _on_snapshot_failed(self, event: SnapshotFailed) -> None:
        if not event.snapshot_id:
            self._taking_snapshot = False
        self.raft.snapshot_lost(event.snapshot_id)

    def _on_snapshot_bytes(self, event: SnapshotBytes) -> None:
        self.raft.snapshot_read(event.read, event.data)

    def _on_snapshot_written(self, event: SnapshotWritten) -> None:
        self.raft.snapshot_written(event.write)

    def _on_snapshot_installed(self, event: SnapshotInstalled) -> None:
        assert not self._committed, "the core hands out nothing while a snapshot is installed"
        self.tree = event.tree
        self._committer.use(event.tree)
        assert self.tree.applied_index == event.install.meta.index, event.install
        self._cut_at_index = self.tree.applied_index
        self.raft.snapshot_installed(event.install)
        # What was applied inside the snapshot gave no Result here; the sessions in it know them.
        for key, pending in list(self._pending.items()):
            result = self.tree.session_result(*key) if key[0] else None
            if result is not None:
                self._forget(key)
                self._unreleased.hold(self.tree.applied_index, pending.waiters, result)

    def _on_snapshot_refused(self, event: SnapshotRefused) -> None:
        self.raft.snapshot_refused(event.snapshot_id)

    def _on_snapshot_partial(self, event: SnapshotPartial) -> None:
        self.raft.snapshot_partial(event.snapshot_id, event.offset)

    # --- members ----------------------------------------------------------------------------------

    def _on_add_member(self, event: AddMember) -> None:
        change = MembershipChange(ChangeKind.ADD_LEARNER, event.number, promote=True)
        self._wait_for_change(MemberWaiter(event.request, event.deadline_s, change))

    def _on_remove_member(self, event: RemoveMember) -> None:
        change = MembershipChange(ChangeKind.REMOVE, event.number)
        self._wait_for_change(MemberWaiter(event.request, event.deadline_s, change))

    def _wait_for_change(self, waiter: MemberWaiter) -> None:
        if not self.is_leader:
            self._reply(waiter.request, NotLeaderError(self.raft.leader))
            return
        self._member_waiters.append(waiter)
        self._next_expiry_s = min(self._next_expiry_s, waiter.deadline_s)
        self._try_changes()

    def _try_changes(self) -> None:
        """Proposes what is asked for and not yet in the log; one change at a time gets through."""
        for waiter in [waiter for waiter in self._member_waiters if waiter.done is None]:
            member = self.raft.membership.member(waiter.change.number)
            wanted = waiter.change.kind is ChangeKind.ADD_LEARNER
            if (member is not None and (member.voter or member.promote)) if wanted else not member:
                # In force already; certain once everything in the log up to here is applied.
                waiter.done = (self.raft.term, self.raft.last_index)
                continue
            try:
                waiter.done = (self.raft.term, self.raft.propose_membership(waiter.change))
            except (BusyError, NoQuorumError):
                return
            except (NotLeaderError, UserError) as exc:
                self._member_waiters.remove(waiter)
                self._reply(waiter.request, exc)
        self._answer_member_waiters(self.raft.applied_index)

    def _answer_member_waiters(self, applied: LogIndex) -> None:
        for waiter in list(self._member_waiters):
            term, index = waiter.done or (self.raft.term, applied + 1)
            lost = term != self.raft.term  # another leader may have put something else there
            if lost or index <= applied:
                self._member_waiters.remove(waiter)
                self._reply(waiter.request, NotLeaderError(self.raft.leader) if lost else Result())

    def _look_at_members(self) -> None:
        raft = self.raft
        own = raft.membership.member(raft.node)
        if raft.role is Role.LEADER:
            self._try_changes()
            grace_ticks = self.tree.settings()["grace_s"] / self.config.tick_s
            for peer in raft.status().peers:
                if peer.voter and peer.silent_ticks > grace_ticks:
                    self._change(MembershipChange(ChangeKind.DEMOTE, peer.number))
            return
        # In another term, perhaps: whoever asked can ask its leader, and need not wait for ours.
        self._answer_member_waiters(raft.applied_index)
        demoted = own is not None and not own.voter and not own.promote
        if demoted and raft.leader is not None and self._leaving is None:
            self._send([Enlist(raft.node, raft.leader)])

    def _on_enlist(self, message: Enlist) -> None:
        member = self.raft.membership.member(message.sender)
        if self.is_leader and member is not None and not member.voter and not member.promote:
            self._change(MembershipChange(ChangeKind.ADD_LEARNER, message.sender, promote=True))

    def _on_resign(self, message: Resign) -> None:
        member = self.raft.membership.member(message.sender)
        if not self.is_leader or member is None:
            return
        if member.voter:
            self._change(MembershipChange(ChangeKind.DEMOTE, message.sender))
        elif member.promote:
            self._change(MembershipChange(ChangeKind.ADD_LEARNER, message.sender, promote=False))

    def _change(self, change: MembershipChange) -> None:
        """One attempt; whoever wants it asks again."""
        try:
            self.raft.propose_membership(change)
        except (UnavailableError, UserError) as exc:
            _log.debug("membership change %s put off: %s", change, exc)

    # --- leaving ----------------------------------------------------------------------------------

    def _on_leave(self, event: Leave) -> None:
        self._leaving = Leaving(event.request, event.deadline_s)

    def _advance_leave(self, leaving: Leaving) -> None:
        raft = self.raft
        if self._others_can_go_on():
            leaving.is_answered = True
            self._reply(leaving.request, Result())
            return
        now_s = self._now.mono_s
        if now_s >= leaving.deadline_s:
            leaving.is_answered = True
            self._reply(leaving.request, NoQuorumError("the other nodes did not take over in time"))
            return
        if now_s < leaving.next_s:
            return
        leaving.next_s = now_s + 4 * self.config.tick_s
        if raft.role is Role.LEADER:
            self._hand_over()
        elif raft.leader is not None:
            self._send([Resign(raft.node, raft.leader)])

    def _others_can_go_on(self) -> bool:
        """Whether nothing is left to hand over: no vote, or nobody there to take it."""
        raft = self.raft
        own = raft.membership.member(raft.node)
        if own is None:
            return True
        if own.voter:
            return raft.membership.voters == (raft.node,) and not self._heirs()
        # In the tree, so committed: it holds whoever leads next.
        _, applied = self.tree.membership
        member = codec.unpack_membership(applied).member(raft.node) if applied else None
        return not own.promote and (member is None or not member.voter)

    def _hand_over(self) -> None:
        """Makes the most advanced live voter the leader, or first a learner into a voter."""
        raft = self.raft
        peers = [peer for peer in raft.status().peers if peer.active]
        voters = [peer for peer in peers if peer.voter]
        if voters:
            try:
                raft.transfer_leadership(max(voters, key=advance).number)
            except (UnavailableError, UserError) as exc:
                _log.debug("hand-over put off: %s", exc)
        elif self._leaving is not None and (heirs := self._heirs()):
            self._change(MembershipChange(ChangeKind.PROMOTE, max(heirs, key=advance).number))

    def _look_who_should_lead(self, now_s: float) -> None:
        favourite = self._demand.favourite(now_s)
        if not self.space_is_short:
            if favourite is not None:
                self._go_where_the_work_is(favourite)
        elif now_s >= self._next_relief_s and (number := next_in_turn(self.raft.status())):
            # It would let nobody write, however it came to lead: elected, or a favourite whose disk
            # got full in the meantime. If that one can't take over, this node goes on leading.
            self._next_relief_s = now_s + self.config.handover.hold_s
            _log.info("hands over to node %d, for this one's disk is full", number)
            self.raft.transfer_leadership(number)

    def _go_where_the_work_is(self, number: NodeNumber) -> None:
        raft = self.raft
        ready = can_lead(number, raft.status(), 2 * raft.config.heartbeat_ticks, self.tree.nodes())
        if ready:
            self._demand.handed_over(self._now.mono_s)
            _log.info("hands over to node %d, where most changes come from", number)
            raft.transfer_leadership(number)

    def _heirs(self) -> list[PeerStatus]:
        """Learners that are up and want to be voters. One that resigned may still seem to be up,
        and a vote for it would stop the cluster."""
        members = self.raft.membership
        return [
            peer
            for peer in self.raft.status().peers
            if peer.active and (member := members.member(peer.number)) and member.promote
        ]

    # --- small things -----------------------------------------------------------------------------

    def _send(self, messages: Sequence[PeerMessage]) -> None:
        self._effects.append(Send(messages))

    def _reply(self, request: int, outcome: Result | PydiError) -> None:
        if request != NOBODY:
            self._effects.append(Reply(request, outcome))

    _HANDLERS: ClassVar[dict[type[Any], Callable[[Replica, Any], None]]] = {
        Tick: _on_tick,
        FromPeer: _on_message,
        Gone: _on_gone,
        Propose: _on_propose,
        Read: _on_read,
        Reclaim: _on_reclaim,
        Settle: _on_settle,
        Dropped: _on_dropped,
        Persisted: _on_persisted,
        Overdue: _on_overdue,
        DiskFull: _on_disk_full,
        AddMember: _on_add_member,
        RemoveMember: _on_remove_member,
        Leave: _on_leave,
        SnapshotTaken: _on_snapshot_taken,
        SnapshotFailed: _on_snapshot_failed,
        SnapshotBytes: _on_snapshot_bytes,
        SnapshotWritten: _on_snapshot_written,
        SnapshotInstalled: _on_snapshot_installed,
        SnapshotRefused: _on_snapshot_refused,
        SnapshotPartial: _on_snapshot_partial,
    }
