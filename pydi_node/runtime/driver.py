"""Turns a Replica's effects into IO: one loop, one thread for the log's disk, one for snapshots.

Made by node.py; services call ``propose`` and ``wait_current``. The loop of it::

    submit(event) ─► events of one turn of the loop ─► Replica.step ─► effects
        Persist ─► log.append now, log.sync in the log's thread ─► Persisted
        Send ─► peers, all of a turn together
        Reply ─► whoever waits      Push ─► subscribed sessions ─► Dropped

Group commit: while one fdatasync runs the loop goes on, and all that is appended meanwhile goes
into the next one. An exception anywhere in here ends the node (``failed``): never a half-dead one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any, ClassVar, NamedTuple, Protocol

from pydi_node.commands import Command
from pydi_node.consensus.quorum import majority
from pydi_node.consensus.types import (
    Membership,
    Role,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
)
from pydi_node.effects import (
    AddMember,
    Cut,
    DiskFull,
    Dropped,
    DropSnapshot,
    Event,
    FromPeer,
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
    RemoveMember,
    Reply,
    RoleChanged,
    Send,
    Settle,
    TakeSnapshot,
    Tick,
    TreeStalled,
)
from pydi_node.errors import (
    DeadlineError,
    NoQuorumError,
    NoSpaceError,
    PydiError,
    RemoteProtocolError,
)
from pydi_node.ids import ClientId, Ino, LogIndex, NodeNumber, Serial
from pydi_node.records import Result, Touched
from pydi_node.replica import Replica
from pydi_node.runtime.disklog import DiskLog
from pydi_node.runtime.logs import LogContext
from pydi_node.runtime.logthread import LogThread

_log = logging.getLogger(__name__)

# Without a leader for longer than elections take, reads stop waiting for one.
LEADERLESS_MAX_S = 2.0
FULL_RETRY_S = 0.25  # how soon a log without room tries again
TICKS_LATE_MAX = 4  # after a pause (SIGSTOP, swapping) time goes on from here instead of racing

Outcome = Result | PydiError
Callback = Callable[[Outcome], None]


class Clock(Protocol):
    """Where time comes from. Its monotonic seconds are the event loop's."""

    def now(self) -> Now: ...


class SnapshotFiles(Protocol):
    """The disk's side of snapshots; each method runs to its end in a thread, except ``install``."""

    def take(self) -> Event: ...

    def read(self, read: SnapshotRead) -> Event: ...

    def write(self, write: SnapshotWrite) -> Event: ...

    def drop(self, snapshot_id: bytes) -> None: ...

    def verify(self, install: SnapshotInstall) -> Event | None:
        """None when the file is what its id says, else what to tell the replica."""
        ...

    def install(self, install: SnapshotInstall, reset_log: Callable[[], None]) -> Event:
        """Puts the file in the tree's place. Runs in the loop: nobody may query meanwhile."""
        ...


class Driver:
    """One replica's connection to the world."""

    def __init__(
        self,
        replica: Replica,
        log: DiskLog,
        clock: Clock,
        snapshots: SnapshotFiles,
        context: LogContext,
        *,
        has_room: Callable[[], bool],
        send: Callable[[Sequence[PeerMessage]], None],
        push: Callable[[Sequence[tuple[LogIndex, ClientId, Serial, Touched]]], None],
        members_changed: Callable[[Membership], None],
        drop_all: Callable[[], None],
        dropped: Callable[[LogIndex], LogIndex],
        peer_broke: Callable[[NodeNumber, RemoteProtocolError], None],
    ) -> None:
        """has_room: whether the disk has more than the log's last reserve; asked twice a second.
        drop_all: every cached answer of every subscriber may be older than the tree is now.
        dropped: up to which index, this applied one at most, no subscriber relies on anything
        older."""
        self.replica = replica
        self.clock = clock
        self._log = log
        self._snapshots = snapshots
        self._context = context
        self._has_room = has_room
        self._send = send
        self._push = push
        self._members_changed = members_changed
        self._drop_all = drop_all
        self._dropped = dropped
        self._peer_broke = peer_broke

        self._loop = asyncio.get_running_loop()
        self._disk = LogThread()
        self._snapshot_disk = ThreadPoolExecutor(1, "snapshot")
        self._events: list[Event] = []
        self._flush_scheduled = False
        self._overdue: asyncio.TimerHandle | None = None
        self._next_request = 1
        self._waiting: dict[int, Callback] = {}
        self._to_send: list[PeerMessage] = []  # with the end of this turn
        self._persist_number = 0  # newest Persist appended to the log
        self._synced_number = 0  # newest Persist on the disk
        self._disk_jobs: deque[_DiskJob] = deque()  # in their order
        self._disk_works = False
        self._full = False
        self._leaderless_s = (
            self._loop.time()
        )  # since when nobody leads; read only when nobody does
        self._leader: NodeNumber | None = None
        self._heard_s: dict[NodeNumber, float] = {}  # who spoke last when, while nobody leads
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self.role_changed = asyncio.Event()  # set at each change; whoever waits clears it
        # Done with the exception that ends this node.
        self.failed: asyncio.Future[None] = self._loop.create_future()

    # --- for services -----------------------------------------------------------------------------

    def submit(self, event: Event) -> None:
        """The replica gets it with all other events of this turn of the loop."""
        if self._leader is None and isinstance(event, FromPeer):
            self._heard_s[event.message.sender] = self._loop.time()
        self._events.append(event)
        self._schedule()

    def propose(
        self,
        client: ClientId,
        serial: Serial,
        command: Command,
        deadline_s: float,
        callback: Callback,
    ) -> None:
        """``callback`` gets the outcome, in the loop, once the command is applied on this node.

        deadline_s  in the clock's monotonic seconds; always answered soon after it.
        """
        request = self._wait_for(callback)
        self.submit(Propose(request, client, serial, command, deadline_s))

    async def execute(
        self, client: ClientId, serial: Serial, command: Command, deadline_s: float
    ) -> Result:
        """The outcome as a value; UnavailableError or NoSpaceError when there is none."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self.propose(client, serial, command, deadline_s, _resolve(future))
        return await future

    @property
    def is_covered(self) -> bool:
        """As ``has_lease``, for whoever does not want one."""
        return self.replica.leases.remaining_s(self.clock.now().uptime_s) > 0

    def has_lease(self) -> bool:
        """Whether this node's tree is as new as any, at this moment and without asking anybody."""
        return self.lease_s() > 0

    def lease_s(self) -> float:
        """How long that will hold, whatever happens; <= 0 when it does not."""
        now_s = self.clock.now().uptime_s
        self.replica.leases.want(now_s)
        return self.replica.leases.remaining_s(now_s)

    async def settle(self, deadline_s: float) -> None:
        """Returns when no cache in the cluster is older than what this tree shows now; at the
        deadline in any case."""
        if self.replica.is_settled:
            return
        future: asyncio.Future[Result] = self._loop.create_future()
        index = self.replica.tree.applied_index
        self.submit(Settle(self._wait_for(_resolve(future)), index, deadline_s))
        try:
            await future
        except (DeadlineError, NoQuorumError, NoSpaceError):
            pass  # reads go on: what is here is the best there is

    async def wait_current(self, deadline_s: float) -> bool:
        """This node's tree is as new as any when it returns True; with False nobody can tell,
        because no leader answered before the deadline: what is here is the best there is.

        DeadlineError  there is a leader, and this node did not catch up with it in time: what is
        here is old, for certain.
        """
        return self.has_lease() or await self._ask_leader(deadline_s)

    async def reclaim(self, directory: Ino, client: ClientId, deadline_s: float) -> bool:
        """This node's tree, which is current, shows the directory delegated to nobody but
        ``client`` when it returns True; False and DeadlineError as in ``wait_current``."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit(Reclaim(self._wait_for(_resolve(future)), directory, client, deadline_s))
        try:
            await future
        except (NoQuorumError, NoSpaceError):
            return False
        return True

    async def is_current(self, deadline_s: float) -> bool:
        """Whether this node's tree is known to be as new as any before the deadline.

        For the node's own work: it wants no lease, for which others would wait.
        """
        try:
            return self.is_covered or await self._ask_leader(deadline_s)
        except DeadlineError:
            return False

    async def _ask_leader(self, deadline_s: float) -> bool:
        now_s = self._loop.time()
        if self.replica.raft.leader is None and not self._can_elect(now_s):
            if now_s - self._leaderless_s > LEADERLESS_MAX_S:
                return False
            deadline_s = min(deadline_s, self._leaderless_s + LEADERLESS_MAX_S)
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit(Read(self._wait_for(_resolve(future)), deadline_s))
        try:
            await future
        except (NoQuorumError, NoSpaceError):
            return False
        return True

    def _can_elect(self, now_s: float) -> bool:
        """Whether enough voters are there for one to lead in a moment. What this tree lacks of the
        log (after all were killed, the last that was acknowledged) is not shown as the best there
        is just then."""
        raft = self.replica.raft
        voters = raft.membership.voters
        alive = sum(
            voter == raft.node or now_s - self._heard_s.get(voter, -inf) <= LEADERLESS_MAX_S
            for voter in voters
        )
        return alive >= majority(len(voters))

    async def add_member(self, number: NodeNumber, deadline_s: float) -> None:
        """The node is a member for certain. NotLeaderError, UserError, UnavailableError."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit(AddMember(self._wait_for(_resolve(future)), number, deadline_s))
        await future

    async def remove_member(self, number: NodeNumber, deadline_s: float) -> None:
        """The node is no member for certain. NotLeaderError, UserError, UnavailableError."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit(RemoveMember(self._wait_for(_resolve(future)), number, deadline_s))
        await future

    async def leave(self, deadline_s: float) -> None:
        """The others go on without this node. NoQuorumError when they can't."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit(Leave(self._wait_for(_resolve(future)), deadline_s))
        await future

    def look_at_caches(self) -> None:
        """A subscriber has dropped something, or is gone."""
        if self._dropped(self.replica.tree.applied_index) != self.replica.leases.dropped:
            self._schedule()

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on the replica lives. Watch ``failed``."""
        self._spawn(self._tick())
        self._spawn(self._watch_room())
        self.submit(Tick())

    async def stop(self) -> None:
        """Nothing more happens; what was appended is synced and the log is closed."""
        for task in self._tasks:
            task.cancel()
        if self._overdue is not None:
            self._overdue.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._snapshot_disk.shutdown()
        self._is_stopped = True
        closed: asyncio.Future[None] = self._loop.create_future()
        self._disk.run(self._log.close, functools.partial(_finish, closed))
        try:
            await closed
        finally:
            self._disk.stop()
            if not self.failed.done():
                self.failed.cancel()

    def fail(self, error: BaseException) -> None:
        """Ends the node."""
        if not self.failed.done():
            self.failed.set_exception(error)

    # --- effects ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.failed.done():
            return
        events, self._events = self._events, []
        try:
            while True:
                if events:
                    for effect in self.replica.step(self.clock.now(), events):
                        self._EFFECTS[type(effect)](self, effect)
                self._context.index = applied = self.replica.tree.applied_index
                dropped = self._dropped(applied)
                if dropped == self.replica.leases.dropped:
                    break
                events = [Dropped(dropped)]
            if self._to_send:
                messages, self._to_send = self._to_send, []
                self._send(messages)
            self._work_on_disk()
        except Exception as exc:
            self.fail(exc)
        if self._overdue is None and self.replica.overdue_s != inf:
            self._overdue = self._loop.call_at(self.replica.overdue_s, self._look_if_overdue)

    def _look_if_overdue(self) -> None:
        """Most of what was waited for came in time, and what is waited for now began later: moving
        the timer with each would cost more than to look once more."""
        self._overdue = None
        overdue_s = self.replica.overdue_s
        if overdue_s <= self.clock.now().mono_s:
            self.submit(Overdue())
        elif overdue_s != inf:
            self._overdue = self._loop.call_at(overdue_s, self._look_if_overdue)

    def _on_persist(self, effect: Persist) -> None:
        self._log.append(effect.hard_state, effect.entries, effect.truncate_from)
        self._persist_number = effect.number

    def _on_send(self, effect: Send) -> None:
        self._to_send += effect.messages

    def _on_reply(self, effect: Reply) -> None:
        callback = self._waiting.pop(effect.request, None)
        if callback is not None:
            callback(effect.outcome)

    def _on_push(self, effect: Push) -> None:
        self._push(effect.touched)

    def _on_cut(self, effect: Cut) -> None:
        self._disk_jobs.append(_DiskJob(self._persist_number, effect.meta))

    def _on_take(self, _: TakeSnapshot) -> None:
        self._spawn(self._in_thread(self._snapshots.take))

    def _on_read(self, effect: SnapshotRead) -> None:
        self._spawn(self._in_thread(lambda: self._snapshots.read(effect)))

    def _on_write(self, effect: SnapshotWrite) -> None:
        self._spawn(self._in_thread(lambda: self._snapshots.write(effect)))

    def _on_drop(self, effect: DropSnapshot) -> None:
        self._spawn(self._in_thread(lambda: self._snapshots.drop(effect.snapshot_id)))

    def _on_install(self, effect: SnapshotInstall) -> None:
        self._spawn(self._install(effect))

    def _on_role(self, effect: RoleChanged) -> None:
        self._context.term = effect.term
        if effect.leader is None and self._leader is not None:
            self._leaderless_s = self._loop.time()
        self._leader = effect.leader
        if effect.role is Role.LEADER:
            _log.info("leads")
        elif effect.role is Role.FOLLOWER and effect.leader is not None:
            _log.info("follows node %d", effect.leader)
        else:
            _log.info("no leader known (%s)", effect.role.value)
        self.role_changed.set()

    def _on_members(self, effect: MembersChanged) -> None:
        members = effect.membership
        _log.info(
            "members: voters %s learners %s",
            " ".join(map(str, members.voters)) or "none",
            " ".join(map(str, members.learners)) or "none",
        )
        self._members_changed(members)

    def _on_stalled(self, effect: TreeStalled) -> None:
        if effect.full:
            _log.warning("no room for the tree's database: applying waits until there is")
        else:
            _log.info("the tree's database has room again")

    def _on_peer_broke(self, effect: PeerBroke) -> None:
        self._peer_broke(effect.number, effect.error)

    _EFFECTS: ClassVar[dict[type[Any], Callable[[Driver, Any], None]]] = {
        Persist: _on_persist,
        Send: _on_send,
        Reply: _on_reply,
        Push: _on_push,
        Cut: _on_cut,
        TakeSnapshot: _on_take,
        SnapshotRead: _on_read,
        SnapshotWrite: _on_write,
        DropSnapshot: _on_drop,
        SnapshotInstall: _on_install,
        RoleChanged: _on_role,
        MembersChanged: _on_members,
        TreeStalled: _on_stalled,
        PeerBroke: _on_peer_broke,
    }

    # --- tasks ------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        tick_s = self.replica.config.tick_s
        due = self._loop.time() + tick_s
        while True:
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            late = self._loop.time() - due
            due = max(due, due + late - TICKS_LATE_MAX * tick_s) + tick_s
            self.submit(Tick())

    def _work_on_disk(self) -> None:
        """The log's thread gets what is next, in the order in which the replica asked for it."""
        jobs = self._disk_jobs
        while not self._disk_works:
            if jobs and jobs[0].after <= self._synced_number:
                job = jobs.popleft().what
                if isinstance(job, SnapshotMeta):
                    self._on_disk(functools.partial(self._log.cut, job), lambda: None)
                elif not job.done():
                    job.set_result(None)
            elif self._persist_number > self._synced_number:
                # What is appended from here on, while the disk works, is for the next time.
                synced = functools.partial(self._on_synced, self._persist_number)
                self._on_disk(self._log.sync, synced)
            else:
                break

    def _on_disk(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Runs it in the log's thread, again and again while there is no room."""
        self._disk_works = True
        self._disk.run(work, functools.partial(self._on_disk_done, work, then))

    def _on_disk_done(
        self, work: Callable[[], None], then: Callable[[], None], error: BaseException | None
    ) -> None:
        if self._is_stopped:
            return
        if isinstance(error, NoSpaceError):
            self._set_full(True)
            self._loop.call_later(FULL_RETRY_S, self._on_disk, work, then)
        elif error is not None:
            self.fail(error)
        else:
            self._disk_works = False
            then()
            self._work_on_disk()

    def _on_synced(self, number: int) -> None:
        self._synced_number = number
        self._work_on_disk()
        # At once, with whatever came in this turn: answers and acknowledgements wait for it.
        self._events.append(Persisted(number))
        self._flush()

    async def _watch_room(self) -> None:
        while True:
            self._set_full(not self._has_room())
            await asyncio.sleep(0.5)

    def _set_full(self, full: bool) -> None:
        if full == self._full:
            return
        self._full = full
        if full:
            _log.warning("disk full: commands that need space are refused until there is room")
        else:
            _log.info("the disk has room again")
        self.submit(DiskFull(full))

    async def _in_thread(self, work: Callable[[], Event | None]) -> None:
        event = await self._loop.run_in_executor(self._snapshot_disk, work)
        if event is not None:
            self.submit(event)

    async def _install(self, install: SnapshotInstall) -> None:
        """The order of consensus' docstring: persisted, verified, in place, log reset, told."""
        # All that is appended before it is durable first.
        its_turn: asyncio.Future[None] = self._loop.create_future()
        self._disk_jobs.append(_DiskJob(self._persist_number, its_turn))
        self._work_on_disk()
        await its_turn
        refused = await self._loop.run_in_executor(
            self._snapshot_disk, lambda: self._snapshots.verify(install)
        )
        if refused is not None:
            self.submit(refused)
            return
        # No await until the replica has the new tree: a query would find the old one closed. The
        # reset's one fdatasync holds the loop up; a full disk here ends the node, and the next
        # start finishes the installation.
        # And what is to be handled already may query: first that, with the old tree, then this.
        self._flush()
        installed = self._snapshots.install(install, lambda: self._log.reset(install.meta))
        self._events.insert(0, installed)
        self._drop_all()
        self._flush()
        _log.info("tree replaced by a snapshot of index %d", install.meta.index)

    # --- small things -----------------------------------------------------------------------------

    def _wait_for(self, callback: Callback) -> int:
        request = self._next_request
        self._next_request += 1
        self._waiting[request] = callback
        return request

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)


class _DiskJob(NamedTuple):
    """What is to be done when the Persist ``after``, and all before it, is on the disk."""

    after: int
    what: SnapshotMeta | asyncio.Future[None]  # cut the log there; or say so


def _finish(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return  # its waiter went away
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _resolve(future: asyncio.Future[Result]) -> Callback:
    def callback(outcome: Outcome) -> None:
        if future.done():
            return  # its waiter went away
        if isinstance(outcome, PydiError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return callback
