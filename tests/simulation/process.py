"""One run of a node's program: a Replica, its log, and what runtime/driver.py does around it.

The same duties in the same order as the runtime's driver, node start and tree files, with events of
the world in the place of tasks and threads. What runs in a thread there happens at one moment here,
at the end of the time it takes: a crash before that moment finds it undone, and a crash within it
is made by counting calls (``crash_in_disk_work``, ``Machine.crash_point``).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from pydi_node.consensus import codec
from pydi_node.consensus.types import (
    Config,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
)
from pydi_node.effects import (
    Cut,
    DiskFull,
    Dropped,
    DropSnapshot,
    Event,
    FromPeer,
    Gone,
    Leave,
    MembersChanged,
    Overdue,
    PeerBroke,
    Persist,
    Persisted,
    Propose,
    Push,
    Read,
    Reclaim,
    Reply,
    RoleChanged,
    Send,
    Settle,
    SnapshotBytes,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotRefused,
    SnapshotTaken,
    SnapshotWritten,
    TakeSnapshot,
    Tick,
    TreeStalled,
)
from pydi_node.errors import CorruptionError, NoQuorumError, NoSpaceError, PydiError
from pydi_node.ids import ClientId, Ino, LogIndex
from pydi_node.records import Result
from pydi_node.replica import Replica
from pydi_node.runtime.coherence import Coherence
from pydi_node.runtime.disklog import DiskLog, LoadedState
from pydi_node.tree import snapshot
from tests.harness.disk_sim import Crash
from tests.simulation.storage import WatchedTree, committed_image, open_database
from tests.simulation.watch import Seen
from tests.simulation.world import MS, SECOND, Action, Owner, Violation

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.mounts import Mount

LOG_PATH = Path("/disk/log")
FULL_RETRY_US = 250 * MS
ROOM_PERIOD_TICKS = 5
LEADERLESS_MAX_S = 2.0
NOBODY = ClientId(0)

Outcome = Result | PydiError
Callback = Callable[[Outcome], None]


class Process(Owner):
    """See the module's text."""

    def __init__(self, machine: Machine) -> None:
        """The program has read its disk. NoSpaceError, Crash: it did not get that far."""
        self.machine = machine
        self.world = machine.world
        self.read_folder()
        self.connection = open_database(machine.image)
        try:
            tree = machine.settings.tree_class(self.connection, machine)
            self.log, state = self._open_log(tree)
        except BaseException:
            self.connection.close()
            raise
        last = state.entries[-1].index if state.entries else state.snapshot.index
        machine.watch.on_start(machine.number, state.hard_state, last)
        raft = machine.settings.raft_class(
            Config(machine.number, self.world.dice.bits(63), **machine.settings.raft),
            state.hard_state, state.snapshot, state.entries, tree.applied_index,
        )  # fmt: skip
        self.replica = Replica(raft, tree, machine.settings.replica, machine.clock.now())
        self.seen = Seen(raft)
        self._events: list[Event] = []
        self._flush_scheduled = False
        self._overdue_s = inf  # of the replica, as of the last step
        self._told = tree.applied_index  # up to where mounts have been told, or know
        self._dropped = tree.applied_index  # likewise where those have that have no name here
        self.coherence = Coherence(lambda: machine.clock.now().uptime_s)
        self.mounts: list[Mount] = []  # that are connected, in the order in which they came
        self._waiting: dict[int, Callback] = {}
        self._next_request = 1
        self._leaderless_s = machine.clock.now().mono_s
        self._leader: int | None = None
        self._full = False
        self._ticks = 0
        self._leaving = False
        # The log's disk: numbers of Persists, cuts and installations, one at a time.
        self._persist_number = 0
        self._synced_number = 0
        self._jobs: deque[SnapshotMeta | SnapshotInstall] = deque()
        self._disk_work: Action | None = None
        # The other thread: files of snapshots.
        self._files_free_us = 0
        self._copies: dict[bytes, bytes] = {}
        self._incoming = bytearray()

    def read_folder(self) -> None:
        """What the last run left in the tree's folder is durable, before anyone relies on it."""
        self.machine.sync_folder()

    def _open_log(self, tree: WatchedTree) -> tuple[DiskLog, LoadedState]:
        """As runtime/node.py does it: the log, agreeing with the tree."""
        machine = self.machine
        log, state = DiskLog.open(
            LOG_PATH, machine.disk, segment_bytes=machine.settings.segment_bytes
        )
        last = state.entries[-1].index if state.entries else state.snapshot.index
        meta = None
        if machine.founding is not None and machine.starts == 1:
            meta = SnapshotMeta(membership=machine.founding)
        elif machine.installing is not None and machine.installing == tree.applied_index:
            _, data = tree.membership
            membership = codec.unpack_membership(data)
            meta = SnapshotMeta(tree.applied_index, tree.applied_term, membership)
        if meta is not None:
            log.reset(meta)
            state = LoadedState(state.hard_state, meta, [])
        elif not state.snapshot.index <= tree.applied_index <= last:
            raise Violation(
                "log and tree don't fit", machine.number, state.snapshot, last, tree.applied_index
            )
        machine.installing = None
        return log, state

    def begin(self) -> None:
        """From now on the replica lives."""
        raft = self.replica.raft
        if raft.membership.voters == (raft.node,):
            raft.campaign()
        self.submit(Tick())
        self._tick_later()

    # --- for clients and for the operator ---------------------------------------------------------

    def request(self, make: Callable[[int, float], Event], seconds: float, done: Callback) -> None:
        """``done`` gets the outcome of the event that ``make(request, deadline)`` builds."""
        request = self._next_request
        self._next_request += 1
        self._waiting[request] = done
        self.submit(make(request, self.machine.clock.now().mono_s + seconds))

    def propose(self, key: tuple[int, int], command: Any, seconds: float, done: Callback) -> None:
        self.request(lambda r, d: Propose(r, key[0], key[1], command, d), seconds, done)  # type: ignore[arg-type]  # plain keys

    def read(
        self,
        seconds: float,
        done: Callback,
        directory: Ino | None = None,
        client: ClientId = NOBODY,
    ) -> None:
        """``done`` gets a Result when the tree is current (driver.wait_current), and nobody but
        ``client`` holds the directory whose names are looked at (driver.reclaim)."""
        if directory is not None:
            wanted = directory

            def current(outcome: Outcome) -> None:
                if isinstance(outcome, Result):
                    self.request(lambda r, d: Reclaim(r, wanted, client, d), seconds, done)
                else:
                    done(outcome)

            self.read(seconds, current)
            return
        if self.has_lease():
            done(Result())
            return
        if self.replica.raft.leader is None:
            without_s = self.machine.clock.now().mono_s - self._leaderless_s
            if without_s > LEADERLESS_MAX_S:
                done(NoQuorumError("no leader"))
                return
            seconds = min(seconds, LEADERLESS_MAX_S - without_s)
        self.request(Read, seconds, done)

    def has_lease(self) -> bool:
        now_s = self.machine.clock.now().uptime_s
        self.replica.leases.want(now_s)
        return self.replica.leases.remaining_s(now_s) > 0

    def settle(self, seconds: float, done: Action) -> None:
        """``done`` when nobody misses any more what the tree shows now; never if that takes longer
        (the runtime would answer all the same, as it does without a leader)."""
        index = self.replica.tree.applied_index
        if self.replica.is_settled:
            done()
            return

        def settled(outcome: Outcome) -> None:
            if isinstance(outcome, Result):
                done()

        self.request(lambda request, deadline: Settle(request, index, deadline), seconds, settled)

    def leave(self, seconds: float, done: Callback) -> None:
        """As at SIGTERM: asked once."""
        if self._leaving:
            return
        self._leaving = True
        self.request(Leave, seconds, done)

    def receive(self, event: FromPeer | Gone) -> None:
        if self.paused_until_us > self.world.now_us:
            # The kernel keeps what came in for a stopped program.
            self.later(0, "held message", lambda: self.submit(event))
        else:
            self.submit(event)

    # --- the loop ---------------------------------------------------------------------------------

    def later(self, delay_us: int, what: str, action: Action) -> None:
        """``action`` happens then if this run of the program lasts that long."""
        label = f"{self.machine.number} {what}"
        self.world.after(delay_us, self, label, lambda: self._guarded(action))

    def _guarded(self, action: Action) -> None:
        try:
            action()
        except Crash:
            self.machine.crash()
        except (NoSpaceError, OSError) as exc:
            self.machine.fail(exc)

    def submit(self, event: Event) -> None:
        """The replica gets it with all other events of this turn of the loop."""
        self._events.append(event)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.later(self.world.dice.below(200), "step", self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        events, self._events = self._events, []
        for effect in self.replica.step(self.machine.clock.now(), events):
            self._EFFECTS[type(effect)](self, effect)
        self.machine.watch.on_step(self.machine.number, self.seen, self.replica.raft)
        if self.replica.overdue_s != self._overdue_s:
            self._overdue_s = self.replica.overdue_s
            self._wait_overdue(self._overdue_s)
        applied = self.replica.tree.applied_index
        if applied > self._told:
            self._told = applied
            self.later(self.drop_us(), "caches dropped", lambda: self._drop(applied))

    def _wait_overdue(self, overdue_s: float) -> None:
        if overdue_s == inf:
            return

        def come() -> None:
            if self._overdue_s == overdue_s:
                self.submit(Overdue())

        clock = self.machine.clock
        own_us = int((overdue_s - clock.now().mono_s) * SECOND) + 1
        self.later(own_us * 1000 // clock.rate_permille + 1, "overdue", come)

    def drop_us(self) -> int:
        """How long the mounts of this node take to drop what became stale."""
        return self.world.dice.around(self.machine.mounts_us)

    def _drop(self, index: LogIndex) -> None:
        self._dropped = max(self._dropped, index)
        self.look_at_caches()

    def look_at_caches(self) -> None:
        """Some mount has dropped something, or its lease is over."""
        dropped = min(self._dropped, self.coherence.dropped(self.replica.tree.applied_index))
        if dropped > self.replica.leases.dropped:
            self.submit(Dropped(dropped))

    def lease_for(self, mount: Mount) -> int:
        """In ms, as server.py answers it."""
        self.has_lease()
        now_s = self.machine.clock.now().uptime_s
        return self.coherence.renew(mount, self.replica.leases.remaining_s(now_s))

    def _tick_later(self) -> None:
        tick_us = int(self.replica.config.tick_s * SECOND)
        self.later(self.machine.clock.delay_us(tick_us), "tick", self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        if self._ticks % ROOM_PERIOD_TICKS == 0:
            self._set_full(self.machine.room != "plenty")
        if self.mounts:
            self.look_at_caches()
        self.submit(Tick())
        self._tick_later()

    # --- effects ----------------------------------------------------------------------------------

    def _on_persist(self, effect: Persist) -> None:
        self.log.append(effect.hard_state, effect.entries, effect.truncate_from)
        self._persist_number = effect.number
        self._continue_disk()

    def _on_send(self, effect: Send) -> None:
        self.machine.watch.on_send(self.machine.number, effect.messages)
        self.machine.network.send(effect.messages)

    def _on_reply(self, effect: Reply) -> None:
        done = self._waiting.pop(effect.request, None)
        assert done is not None, f"answered twice: {effect}"
        done(effect.outcome)

    def _on_cut(self, effect: Cut) -> None:
        self._jobs.append(effect.meta)
        self._continue_disk()

    def _on_install(self, effect: SnapshotInstall) -> None:
        self._jobs.append(effect)
        self._continue_disk()

    def _on_role(self, effect: RoleChanged) -> None:
        if effect.leader is None and self._leader is not None:
            self._leaderless_s = self.machine.clock.now().mono_s
        self._leader = effect.leader
        self.world.note(
            f"{self.machine.number} {effect.role.value} term {effect.term} leader {effect.leader}"
        )

    def _on_members(self, effect: MembersChanged) -> None:
        voters, learners = effect.membership.voters, effect.membership.learners
        self.world.note(f"{self.machine.number} members: voters {voters} learners {learners}")

    def _on_peer_broke(self, effect: PeerBroke) -> None:
        raise Violation("a node sends what no node sends", effect)

    def _on_push(self, effect: Push) -> None:
        for index, client, serial, touched in effect.touched:
            for mount in self.mounts:
                sequence = mount.push((client, serial), touched)
                if sequence:
                    self.coherence.pushed(index, mount, sequence)

    def _ignore(self, effect: TreeStalled) -> None:
        """For people."""

    # --- the log's disk ---------------------------------------------------------------------------

    def _continue_disk(self) -> None:
        """The next piece of work begins, if none is under way."""
        if self._disk_work is not None:
            return
        if self._persist_number > self._synced_number:
            number = self._persist_number
            self._begin_disk("sync", lambda: self._sync(number))
        elif self._jobs:
            job = self._jobs.popleft()
            if isinstance(job, SnapshotInstall):
                self._in_files_thread("verify", lambda: self._verify_and_install(job))
                self._continue_disk()
            else:
                self._begin_disk("cut", lambda: self.log.cut(job))

    def _begin_disk(self, what: str, work: Action) -> None:
        self._disk_work = work
        delay_us = self.world.dice.around(self.machine.disk_us)
        self.later(delay_us, what, lambda: self._finish_disk(what, work))

    def _finish_disk(self, what: str, work: Action) -> None:
        try:
            work()
        except NoSpaceError:
            self._set_full(True)
            self.later(FULL_RETRY_US, what, lambda: self._finish_disk(what, work))
            return
        self._disk_work = None
        self._continue_disk()

    def _sync(self, number: int) -> None:
        self.log.sync()
        self._synced_number = number
        self.submit(Persisted(number))

    def crash_in_disk_work(self, calls: int) -> None:
        """The machine loses power at this call of the work that is under way."""
        if self._disk_work is not None:
            self.machine.disk.crash(calls)
            try:
                self._disk_work()
            except (Crash, NoSpaceError, OSError):
                pass  # however far it came: the machine is off

    def _set_full(self, full: bool) -> None:
        if full != self._full:
            self._full = full
            self.submit(DiskFull(full))

    # --- snapshots: runtime/treefiles.py in memory ------------------------------------------------

    def _in_files_thread(self, what: str, work: Action) -> None:
        start_us = max(self.world.now_us, self._files_free_us)
        self._files_free_us = start_us + self.world.dice.around(self.machine.disk_us)
        self.later(self._files_free_us - self.world.now_us, what, work)

    def _on_take(self, _: TakeSnapshot) -> None:
        self._in_files_thread("take snapshot", lambda: self.submit(self._take()))

    def _take(self) -> Event:
        if self.machine.room == "none" or self.world.dice.percent(2):
            return SnapshotFailed(b"")
        # The runtime copies what was committed last, through another connection.
        self.replica.tree.commit()
        target = sqlite3.connect(":memory:", isolation_level=None)
        taken = snapshot.copy_to(self.connection, target)
        data = target.serialize()
        target.close()
        self.machine.watch.on_digest(self.replica.tree)
        snapshot_id = blake3(data).digest()
        self._copies[snapshot_id] = data
        return SnapshotTaken(snapshot_id, taken.applied_index, len(data))

    def _on_read(self, effect: SnapshotRead) -> None:
        self._in_files_thread("read snapshot", lambda: self.submit(self._read_copy(effect)))

    def _read_copy(self, read: SnapshotRead) -> Event:
        data = self._copies.get(read.snapshot_id)
        if data is None:
            return SnapshotFailed(read.snapshot_id)
        return SnapshotBytes(read, data[read.offset : read.offset + read.length])

    def _on_drop(self, effect: DropSnapshot) -> None:
        self._in_files_thread("drop", lambda: self._drop_copy(effect.snapshot_id))

    def _drop_copy(self, snapshot_id: bytes) -> None:
        self._copies.pop(snapshot_id, None)

    def _on_write(self, effect: SnapshotWrite) -> None:
        self._in_files_thread("write snapshot", lambda: self.submit(self._write(effect)))

    def _write(self, write: SnapshotWrite) -> Event:
        if self.machine.room == "none":
            return SnapshotRefused(write.snapshot_id)
        if write.offset == 0:
            self._incoming.clear()
        assert len(self._incoming) == write.offset, (len(self._incoming), write.offset)
        self._incoming += write.data
        if self.world.dice.percent(1):
            self._incoming[-1] ^= 1  # on its way or on the disk
        return SnapshotWritten(write)

    def _verify_and_install(self, install: SnapshotInstall) -> None:
        try:
            if not self.checksum_is_right(install.snapshot_id):
                raise CorruptionError("checksum")
            with contextlib.closing(open_database(bytes(self._incoming))) as connection:
                found = snapshot.adopt(connection)
            assert found.applied_index == install.meta.index, (found, install)
        except CorruptionError:
            self.submit(SnapshotRefused(install.snapshot_id))
            return
        self._flush()
        self._events.insert(0, self._install(install))
        for mount in self.mounts:
            self.coherence.pushed_drop_all(mount, mount.push_drop_all())
        self._flush()

    def checksum_is_right(self, snapshot_id: bytes) -> bool:
        return blake3(self._incoming).digest() == snapshot_id

    def _install(self, install: SnapshotInstall) -> Event:
        """In the order of TreeFiles.install; each line is a place for a crash."""
        machine = self.machine
        point = machine.crash_point
        point()
        machine.installing = install.meta.index
        point()
        old = committed_image(self.connection)
        self.connection.close()
        self.connection = open_database(bytes(self._incoming))
        # Renamed, the folder not synced: after a power cut either file may be there.
        machine.image_durable, machine.images_between = old, []
        machine.renamed = self.connection.serialize()
        point()
        machine.sync_folder()
        tree = machine.settings.tree_class(self.connection, machine)
        machine.watch.on_digest(tree)
        machine.watch.installs += 1
        point()
        self.reset_log(install.meta)
        point()
        machine.installing = None
        point()
        self._incoming.clear()
        return SnapshotInstalled(install, tree)

    def reset_log(self, meta: SnapshotMeta) -> None:
        if self.machine.crash_countdown == 0:
            self.machine.disk.crash(self.world.dice.below(8))
        self.log.reset(meta)

    _EFFECTS: ClassVar[dict[type[Any], Callable[[Process, Any], None]]] = {
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
        TreeStalled: _ignore,
        PeerBroke: _on_peer_broke,
    }
