"""Directories whose names only this mount may change, and files that it creates there by itself.

Called by `vfs.Vfs` only; runs in the loop. Theory of operation (docs/architecture.md, Delegated
directories):

    unknown ──ask──► asked ──granted──► held ──(all its names are known)──► complete
       ▲               │ a push that touches it meanwhile      │ a push that touches it, the stream
       │               ▼                                       ▼ breaks, unused for a while
       └──undelegated── owed ◄─────────────────────────────────┘

In a *complete* directory a name that is not known is not there, so a lookup needs no question, and
a create none either: it is a `PendingCreate`, told to the cluster with its content at close. Nobody
can tell the difference: whoever else looks into the directory makes the cluster ask for it back,
and gets its answer when all that programs here were told of is in the tree. For that:

 * Nothing is answered from here without a live lease, which outlives no recall.
 * A recall is a push like any other. It is acknowledged when the commands of all pending creates in
   the directory have left; not later, for their answers wait until everybody has acknowledged.
 * `Undelegate` leaves when they have been answered (`owed`).
 * Whatever else is asked of the cluster waits for the pending creates that it is about (`before`).
 * A grant counts on the connection on which it came. After any break all of it is given back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pydi_fs.client import Client
from pydi_fs.vfs.background import when_all
from pydi_fs.vfs.cache import ABSENT, NameCache
from pydi_fs.vfs.journal import State
from pydi_fs.vfs.journalling import Journal
from pydi_fs.vfs.made_here import MadeHere
from pydi_fs.vfs.numbers import Numbers
from pydi_fs.vfs.occasions import Occasions, make_room
from pydi_fs.vfs.owed import Owed
from pydi_fs.vfs.pending import PendingCreate, new_attr
from pydi_fs.vfs.posix import permitted
from pydi_fs.vfs.queued import Change, Queue, Rider, uncount
from pydi_node.commands import (
    INODES_RESERVED,
    Caller,
    Command,
    Delegate,
    Link,
    PutFile,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
    new_file_gid,
)
from pydi_node.errors import FileError, NoSpaceError, PydiError
from pydi_node.ids import Ino, Serial, TimeNs
from pydi_node.records import DEFAULT_ACL, EVERY_NAME, NAME_MAX_BYTES, Attr, DirEntry
from pydi_node.wire.messages import Execute, ExecutePut, ReadDir, Request

log = logging.getLogger("pydi.vfs")

PENDING_MAX = 64  # creates that the cluster does not know of; about 100 KiB, and one recall's work
# A file that is still open is told to the cluster then, as its open is.
SETTLE_AFTER_S = 0.5
SETTLE_AGAIN_S = 1.0  # when nobody has answered
DIRECTORIES_MAX = 1024  # that are held at a time; the tree allows each client 4096
ENTRIES_MAX = 1000  # of a directory that is worth it: all its names are kept, one listing each time
NAMES_MAX = 65536  # of all of them together; some 100 bytes each
UNUSED_S = 30.0  # what was not used for so long is given back
SWEEP_S = 5.0
_NO_NAMES = (b"", b".", b"..")
# Requests about a directory that show, or change, what is true of all names in it.
_OF_ALL_NAMES = (ReadDir, SetAttr, SetXattr, RemoveXattr)
_INO_FIELDS = ("ino", "source", "target")
_NAME_FIELDS = (("parent", "name"), ("new_parent", "new_name"))


class RunCommand(Protocol):
    """Runs a command past `before`; what it touched leaves the caches first."""

    async def __call__(
        self,
        command: Command,
        arrived: Callable[[Any], Any],
        payload: bytes | None = None,
        **options: Any,
    ) -> Any: ...


class _Asked:
    """A Delegate that is under way."""

    __slots__ = ("task", "untouched")

    def __init__(self) -> None:
        self.untouched = True  # by others, since it was decided to ask
        self.task: asyncio.Task[None] | None = None  # ends when all names are known, or it failed


class _Held:
    """A directory that is delegated to this mount."""

    __slots__ = ("attr", "complete", "completing", "gone", "learns", "listing", "names", "used_s")

    def __init__(self, attr: Attr | None, names: set[bytes], complete: bool, used_s: float) -> None:
        # As the newest answer has it. The cache does without: when many commands in one directory
        # are under way, each answer is older than the change before it.
        self.attr = attr
        self.learns = True  # from answers what the directory is like
        self.names = names  # that may be there; if complete, no others are
        self.gone: set[bytes] = set()  # that were taken away here before all were known
        self.complete = complete
        self.used_s = used_s
        self.completing: asyncio.Task[None] | None = None  # asks for the names
        # What it answered, where that came before the program's own question: for that, once.
        self.listing: Sequence[DirEntry] | None = None


class Delegations:
    """See the module.

    run         runs a command.
    list_names  the first so many entries of a directory, as the cluster has it.
    on_end      a pending create was settled or is lost.
    pending_max  creates that the cluster may not know of at a time.
    enabled     False: nothing is ever asked for.
    """

    def __init__(
        self,
        client: Client,
        cache: NameCache,
        journal: Journal,
        clock: Callable[[], int],
        queue: Queue,
        *,
        run: RunCommand,
        list_names: Callable[[Ino, int], Awaitable[Sequence[DirEntry]]],
        on_end: Callable[[PendingCreate], None],
        enabled: bool,
        pending_max: int = PENDING_MAX,
    ) -> None:
        self.pending: dict[Ino, PendingCreate] = {}
        self.numbers = Numbers(
            client,
            journal,
            run=run,
            untold=lambda: (*self.pending, *queue.made),
            # Where close does not wait, that many are used in one round trip.
            left_min=INODES_RESERVED // (2 if pending_max <= PENDING_MAX else 1),
        )
        self._client = client
        self._cache = cache
        self._journal = journal
        self._clock = clock
        self._queue = queue
        self._run = run
        self._list_names = list_names
        self._on_end = on_end
        self._enabled = enabled
        self._pending_max = pending_max
        self._pending_in: dict[Ino, dict[bytes, PendingCreate]] = {}
        self._created_ns: dict[Ino, int] = {}  # when the newest of them was made
        self._held: dict[Ino, _Held] = {}
        self._asking: dict[Ino, _Asked] = {}
        self._owed = Owed(
            client,
            journal,
            run=lambda command, serial: run(command, lambda answer: answer, serial=serial),
            may_go=lambda ino: ino not in self._pending_in and not queue.is_about(ino),
        )
        self._fresh: dict[Ino, set[bytes]] = {}  # made here, with the names that it may have got
        self.own = MadeHere()
        self._naming: Counter[tuple[Ino, bytes]] = Counter()  # names in commands that are under way
        self._removing: Counter[Ino] = Counter()  # directories likewise
        self._busy: Counter[Ino] = Counter()  # all inodes likewise
        self.occasions = Occasions()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeps: asyncio.TimerHandle | None = None

    def restore(self, state: State) -> None:
        """Go on with what the worker before this one had; before the client connects."""
        for record in state.pending.values():
            attr = new_attr(
                Ino(record.ino), record.mode, record.caller[0], record.caller[1], record.mtime_ns
            )
            create = self._new_pending(
                attr, Ino(record.parent), record.name, Caller(*record.caller)
            )
            create.restore_atime(record.atime_ns)
            serial = state.serial_of_create(create.ino)
            if serial is not None:
                create.restore_empty(serial)
        self._owed.add(state.delegated)
        for directory in state.delegated:
            # What that worker sent may come late: see `Owed`.
            self.occasions.wait(directory, time.monotonic())
        self.numbers.restore(state.reserved.values())

    def start(self) -> None:
        """Once the client is there: what the worker before this one left is sent and given back."""
        for create in self.pending.values():
            create.start()
            self._settle_in(create, SETTLE_AGAIN_S)
        self._owed.give_back()
        if self._enabled:
            self._sweeps = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    async def stop(self) -> None:
        """Everything is told and given back. The first error is raised, at the end."""
        self._enabled = False
        if self._sweeps is not None:
            self._sweeps.cancel()
        failures = []
        creates = list(self.pending.values())
        for create in creates:
            create.start()
        for create in creates:
            try:
                await create.settle()
            except PydiError as exc:
                failures.append(exc)
                log.error("ino=%d: not created at the end: %s", create.ino, exc)
            if create.timer is not None:
                create.timer.cancel()
        await self.numbers.stop()
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait([task])
        self._owe(list(self._held))  # until here another one may have been granted
        await self._owed.stop(self._asking)
        if failures:
            raise failures[0]

    # --- what is known here ----------------------------------------------------------------------

    def is_absent(self, parent: Ino, name: bytes) -> bool:
        """Whether there is certainly no such name. Only under a lease. Safe from any thread."""
        held = self._complete(parent)
        return (
            held is not None
            and name not in held.names
            and not self._naming[parent, name]
            and len(name) <= NAME_MAX_BYTES
            and name not in _NO_NAMES
        )

    def named(self, parent: Ino, name: bytes) -> PendingCreate | None:
        """The pending create with this name."""
        names = self._pending_in.get(parent)
        create = None if names is None else names.get(name)
        return None if create is None or create.overtaken else create

    def shape(
        self,
        caller: Caller,
        ino: Ino,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
    ) -> bool:
        """Whether these changes could be made here, for only this mount knows of the file."""
        create = self.pending.get(ino)
        return create is not None and create.shape(
            caller, mode, uid, gid, atime_ns, mtime_ns, self._clock()
        )

    def shown(self, ino: Ino) -> Attr | None:
        """A file that only this mount knows of, without its content."""
        create = self.pending.get(ino)
        return None if create is None or create.overtaken else create.attr

    def overlay(self, attr: Attr) -> Attr:
        """A directory as programs here must see it: with what is pending in it."""
        newest = self._created_ns.get(attr.ino)
        if newest is None:
            return attr
        return attr._replace(
            mtime_ns=TimeNs(max(attr.mtime_ns, newest)), ctime_ns=TimeNs(max(attr.ctime_ns, newest))
        )

    def directory(self, ino: Ino) -> Attr | None:
        """A directory that nobody else can change."""
        held = self._held.get(ino)
        return None if held is None else held.attr

    def learn(self, attr: Attr) -> None:
        """An answer to a command of this mount has this. Called at its arrival."""
        held = self._held.get(attr.ino)
        if held is None or not held.learns:
            return
        if held.attr is None or held.attr.changed < attr.changed:
            held.attr = attr

    def has_changed(self, command: Command, inos: Iterable[Ino]) -> None:
        """A command of this mount has changed these; `learn` follows where it says how."""
        for ino in inos if isinstance(command, (SetXattr, RemoveXattr)) else ():
            self._is_unsure(ino)

    def _is_unsure(self, directory: Ino) -> None:
        """Its permissions may have changed, and answers from before may come later."""
        held = self._held.get(directory)
        if held is not None:
            held.attr, held.learns = None, False

    def is_complete(self, directory: Ino) -> bool:
        """Whether all names in there are known, and nobody else may change them."""
        return self._complete(directory) is not None

    def _complete(self, directory: Ino) -> _Held | None:
        held = self._held.get(directory)
        if held is None or not held.complete or self._removing[directory]:
            return None
        held.used_s = time.monotonic()
        return held

    # --- for changes of this mount alone (see `changes`) -----------------------------------------

    def holds(self, directory: Ino) -> bool:
        """Whether nobody else may change names in there, and no command of this mount does."""
        held = self._held.get(directory)
        if held is None or self._busy[directory]:
            return False
        held.used_s = time.monotonic()
        return True

    def is_empty(self, directory: Ino) -> bool:
        """Whether there is certainly no name in there, nor can be one before we know of it."""
        held = self._complete(directory)
        return held is not None and not held.names and self.holds(directory)

    def is_naming(self, parent: Ino, name: bytes) -> bool:
        return self._naming[parent, name] > 0

    def is_busy(self, ino: Ino) -> bool:
        """Whether a command is under way that may change it."""
        return self._busy[ino] > 0

    def gone_here(self, parent: Ino, name: bytes) -> None:
        held = self._held[parent]
        held.names.discard(name)
        if not held.complete:
            held.gone.add(name)
        self._is_used(parent, held)

    def made_here(self, parent: Ino, name: bytes) -> None:
        held = self._held[parent]
        held.names.add(name)
        held.gone.discard(name)
        if len(held.names) % ENTRIES_MAX == 0:
            self._bound_names()
        self._is_used(parent, held)

    def listed(self, directory: Ino, entries: Iterable[DirEntry]) -> None:
        """A program has read these in there."""
        if self._enabled:
            inos = (entry.attr.ino for entry in entries if entry.attr.is_dir)
            self.occasions.listed(directory, inos, time.monotonic())
            self._ask_ahead()

    async def take_listing(self, directory: Ino) -> list[DirEntry] | None:
        """All entries of a directory for which a program asks the first time since it was asked
        for ahead, as they are now; None: the cluster must be asked."""
        held = self._held.get(directory)
        if held is not None and held.completing is not None:
            await asyncio.wait([held.completing])
        if held is None or held.listing is None or self._complete(directory) is not held:
            return None
        listing, held.listing = held.listing, None
        if self._client.lease_s() <= 0 or not self._client.is_connected:
            return None
        entries = []
        for entry in listing:
            attr = self._cache.attr(entry.attr.ino)
            if attr is None:
                return None  # somebody has changed it
            entries.append(entry if attr is entry.attr else entry._replace(attr=attr))
        return entries

    def _is_used(self, directory: Ino, held: _Held) -> None:
        held.listing = None
        if self.occasions.used(directory, time.monotonic()):
            self._ask_ahead()

    def _ask_ahead(self) -> None:
        for directory in self.occasions.ahead(time.monotonic()):
            if not self._ask(directory):
                self.occasions.unused(directory)

    def hold_new(self, attr: Attr) -> None:
        """It was made here: its command gives it to this mount."""
        self._journal.delegated(attr.ino)
        self._hold(attr.ino, _Held(attr, set(), True, time.monotonic()))

    def leave(self, directory: Ino) -> None:
        """It was removed here; its delegation ends with it."""
        self._unhold(directory)

    def were_told(self, changes: Iterable[Change], attrs: Mapping[Ino, Attr]) -> None:
        """attrs  of what a SetAttr changed, by the answer."""
        for change in changes:
            command = change.command
            if isinstance(command, Rmdir):
                self.is_removed(change.directories[-1])
                self._journal.undelegated(change.directories[-1:])
            elif isinstance(command, SetAttr) and command.ino in attrs:
                self.learn(attrs[command.ino])
            elif isinstance(command, SetAttr):
                self._is_unsure(command.ino)
        self._owed.look()

    def lost(self, change: Change) -> None:
        """Programs were told of a change that will never be: only the cluster knows what is so."""
        made = (change.made,) if change.made is not None else ()
        self._owe((*change.directories, *made))

    # --- creating --------------------------------------------------------------------------------

    def create(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> PendingCreate | None:
        """A new file that the cluster hears of later; None: it must be asked, as ever."""
        held = self._complete(parent)
        if held is None or self._client.lease_s() <= 0 or not self._client.is_connected:
            return None
        if (
            name in held.names
            or self._naming[parent, name]
            or len(self.pending) >= self._pending_max
        ):
            return None
        directory = self._queue.attr(parent) or self._cache.attr(parent) or held.attr
        if directory is None or not directory.nlink or name in _NO_NAMES:
            return None
        # What makes more of a file than permissions of three classes has rules of its own.
        if directory.mode & DEFAULT_ACL or mode & ~0o777:
            return None
        if caller.groups is not None and not permitted(directory, caller, os.W_OK | os.X_OK):
            return None  # the cluster says so
        number = self.numbers.take()
        if number is None:
            return None
        gid = new_file_gid(directory.mode, directory.gid, caller)
        attr = new_attr(number, mode, caller.uid, gid, self._clock())
        create = self._new_pending(attr, parent, name, caller)
        self.own.note(parent, number)
        self.made_here(parent, name)
        self._journal.created(number, parent, name, caller, mode, attr.mtime_ns)
        self._settle_in(create, SETTLE_AFTER_S)
        return create

    def _new_pending(self, attr: Attr, parent: Ino, name: bytes, caller: Caller) -> PendingCreate:
        create = PendingCreate(
            attr, parent, name, caller, self._put, self._client.new_serial, self._journal
        )
        create.on_end = self._has_ended
        self.pending[attr.ino] = create
        self._pending_in.setdefault(parent, {})[name] = create
        self._created_ns[parent] = attr.btime_ns
        return create

    async def _put(
        self,
        create: PendingCreate,
        command: PutFile,
        payload: bytes | None,
        serial: Serial,
        sent: Callable[[], None],
    ) -> Attr:
        epochs: list[int] = []

        def has_left() -> None:
            epochs.append(self._client.epoch)
            sent()

        def arrived(answer: Attr) -> Attr:
            # Of the first answer, repeated, nothing is believed: others may have changed the file
            # since.
            attempt = create.attempt
            is_first = len(epochs) == 1 and attempt is not None and attempt.count == 1
            create.settled(answer, is_first)
            if is_first:
                self._cache.put_attr(answer)
                self._cache.put_name(create.parent, create.name, create.ino)
            return answer

        attempt = create.attempt
        assert attempt is not None, create.ino
        rider = Rider(command, payload, serial, has_left, attempt.decided, arrived, create.decided)
        try:
            return await self._queue.make(rider, is_new=attempt.count == 1)
        except NoSpaceError:
            # Another node may have had room for what left for it before.
            attempt.count = max(attempt.count, len(epochs))
            raise

    def _has_ended(self, create: PendingCreate) -> None:
        del self.pending[create.ino]
        names = self._pending_in[create.parent]
        del names[create.name]
        if not names:
            del self._pending_in[create.parent]
            del self._created_ns[create.parent]
        self._owed.look()
        self._on_end(create)

    def _settle_in(self, create: PendingCreate, delay_s: float) -> None:
        def settle() -> None:
            create.start()
            self._settle_in(create, SETTLE_AGAIN_S)  # until it is decided

        create.timer = asyncio.get_running_loop().call_later(delay_s, settle)

    async def wait_numbers(self, parent: Ino) -> bool:
        """Whether a create in there failed for want of a number, and there are some now: they come
        sooner than what a file would need that the cluster makes."""
        return self._complete(parent) is not None and await self.numbers.wait_next()

    # --- what must come first --------------------------------------------------------------------

    def before(self, request: Request) -> Awaitable[None] | None:
        """What ``request`` waits for: the cluster must know of what it is about."""
        if not self.pending:
            return None
        about: Any = request
        if isinstance(request, (Execute, ExecutePut)):
            about = request.command
        if isinstance(about, PutFile) and about.ino is not None:
            return None  # it is such a create itself
        creates: dict[Ino, PendingCreate] = {}
        for field in _INO_FIELDS:
            ino = getattr(about, field, None)
            if ino in self.pending:
                return self._settle_one(self.pending[ino], self._others_in(about))
            if isinstance(about, _OF_ALL_NAMES) and ino in self._pending_in:
                creates.update((c.ino, c) for c in self._pending_in[ino].values())
        creates.update((create.ino, create) for create in self._others_in(about))
        return self._settle_all(list(creates.values())) if creates else None

    def _others_in(self, about: Any) -> list[PendingCreate]:
        """Pending creates that a request names, or whose directory it may move or remove."""
        creates = []
        for parent_field, name_field in _NAME_FIELDS:
            parent, name = getattr(about, parent_field, None), getattr(about, name_field, None)
            if parent is None or name is None:
                continue
            create = self._pending_in.get(parent, {}).get(name)
            if create is not None:
                creates.append(create)
            elif isinstance(about, (Rmdir, Rename)):
                ino = self._cache.name(parent, name)
                if ino is None:
                    creates.extend(self.pending.values())
                elif ino in self._pending_in:
                    creates.extend(self._pending_in[ino].values())
        return creates

    async def _settle_one(self, create: PendingCreate, others: list[PendingCreate]) -> None:
        await self._settle_all([other for other in others if other is not create])
        await create.settle()

    async def _settle_all(self, creates: Collection[PendingCreate]) -> None:
        """All of these are in the cluster, or lost. An error when that is not known of one."""
        for create in creates:
            create.start()
        for create in creates:
            try:
                await create.settle()
            except FileError:
                pass  # its name may be another's by now: the request will see

    async def settle_directory(self, directory: Ino) -> None:
        """All names in there that programs know of are in the cluster. The first error is raised,
        at the end: fsync(2) of a directory. Not of what was closed and is lost: see `behind`."""
        creates = list(self._pending_in.get(directory, {}).values())
        closed = {create for create in creates if create.publish is not None}
        for create in creates:
            create.start()
        failures = []
        for create in creates:
            try:
                await create.settle()
            except PydiError as exc:
                if create not in closed or not create.ended:
                    failures.append(exc)
        if failures:
            raise failures[0]

    # --- commands of this mount ------------------------------------------------------------------

    @contextmanager
    def naming(self, command: Command) -> Iterator[None]:
        """While a command is under way that may change names."""
        keys: list[tuple[Ino, bytes]] = []
        removed: list[Ino] = []
        for parent_field, name_field in _NAME_FIELDS:
            parent, name = getattr(command, parent_field, None), getattr(command, name_field, None)
            if parent is None or name is None:
                continue
            if self.is_absent(parent, name):
                # Else a rename to a new name would wait for all that is pending (`before`).
                self._cache.answers(self._cache.moment)
                self._cache.put_name(parent, name, ABSENT)
            keys.append((parent, name))
            if (fresh := self._fresh.get(parent)) is not None:
                fresh.add(name)
            if (held := self._held.get(parent)) is not None:
                held.names.add(name)
                held.listing = None
            self.occasions.unused(parent)  # nor is one shown that is on its way
            if isinstance(command, (Rmdir, Rename)):
                removed.append(self._cache.name(parent, name) or Ino(0))
            if isinstance(command, (Rmdir, Rename, Unlink)):
                self._may_move(parent, name)
        fields = (*_INO_FIELDS, *(field for field, _ in _NAME_FIELDS))
        values = [getattr(command, field, None) for field in fields]
        inos = [Ino(value) for value in values if isinstance(value, int)]
        if isinstance(command, Link):
            self.own.forget(command.ino)
        self._busy.update(inos)
        self._naming.update(keys)
        self._removing.update(removed)
        try:
            yield
        except FileError:
            raise
        except BaseException:
            # It may take effect later: then a list of names that was made before is no longer true.
            for parent, name in keys:
                self._doubt(parent, name)
            raise
        finally:
            uncount(self._naming, keys)
            uncount(self._removing, removed)
            uncount(self._busy, inos)

    def _may_move(self, parent: Ino, name: bytes) -> None:
        """A command takes this name from what has it."""
        create = self._pending_in.get(parent, {}).get(name)
        known = self._queue.name(parent, name) or self._cache.name(parent, name)
        self.own.forget_named(parent, known if create is None else create.ino)

    def _doubt(self, directory: Ino, name: bytes) -> None:
        self._cache.forget((), ((directory, name),))
        self.occasions.wait(directory, time.monotonic())
        if directory in self._asking:
            self._asking[directory].untouched = False

    def is_gone(self, parent: Ino, name: bytes) -> None:
        """A command has taken this name away. Called at the arrival of its answer."""
        held = self._held.get(parent)
        if held is not None and self._naming[parent, name] == 1:  # no other is under way
            held.names.discard(name)

    def is_removed(self, directory: Ino | None) -> None:
        """A command has removed this directory, and its delegation with it. Likewise."""
        if directory is None:
            return
        if self._unhold(directory):
            self._journal.undelegated((directory,))
        self._fresh.pop(directory, None)

    # --- asking ----------------------------------------------------------------------------------

    def is_made(self, directory: Ino, epoch: int) -> None:
        """A mkdir of this mount, sent in that epoch of the client. Called at the arrival of its
        answer: from here on every change of others in there is heard of."""
        if not self._enabled or epoch != self._client.epoch or self._cache.is_late(directory):
            return
        make_room(self._fresh)
        self._fresh[directory] = set()
        self._ask(directory)

    def note_change(self, directory: Ino) -> None:
        """The cluster is asked to change a name in there."""
        if not self._enabled or directory in self._held:
            return
        if self.occasions.is_one(directory, time.monotonic()):
            self._ask(directory)
            self._ask_ahead()

    async def wait_asked(self, *directories: Ino) -> bool:
        """Whether some of these were asked for, and no answer or not all names were here yet, and
        one is this mount's now: a change can be made here, for the price of one command."""
        asked = [self._asking[directory] for directory in directories if directory in self._asking]
        tasks = [one.task for one in asked if one.task is not None]
        held = [self._held[directory] for directory in directories if directory in self._held]
        tasks += [one.completing for one in held if one.completing is not None]
        if not tasks:
            return False
        await asyncio.wait(tasks)
        return any(directory in self._held for directory in directories)

    def _may_ask(self, directory: Ino) -> bool:
        now_s = time.monotonic()
        return (
            self._enabled
            and self._client.lease_s() > 0
            and now_s >= self.numbers.not_before_s
            and self.occasions.may_ask(directory, now_s)
            and directory not in self._asking
            and directory not in self._owed
            and directory not in self._held
            # One whose outcome is unknown must not take effect under a later delegation.
            and directory not in self._pending_in
            and not self._queue.is_about(directory)
        )

    def _ask(self, directory: Ino) -> bool:
        if not self._may_ask(directory):
            return False
        asked = self._asking[directory] = _Asked()
        asked.task = self._later(self._ask_for(directory, asked))
        return True

    async def _ask_for(self, directory: Ino, asked: _Asked) -> None:
        epoch = self._client.epoch
        if not await self.numbers.wait_some() or epoch != self._client.epoch:
            del self._asking[directory]
            self.occasions.unused(directory)
            return

        def arrived(granted: bool) -> None:
            # Not so when nobody waits for the answer any more.
            is_awaited = self._asking.get(directory) is asked
            if is_awaited:
                del self._asking[directory]
            if not granted:
                self._journal.undelegated((directory,))
                self.occasions.wait(directory, time.monotonic())
            elif is_awaited and asked.untouched and epoch == self._client.epoch:
                self._take(directory)
            else:
                # Recalled before the answer came: pushes are not held up, answers are.
                self._owe((directory,))

        self._journal.delegated(directory)
        serial = self._owed.new_serial()
        try:
            await self._run(Delegate(directory), arrived, serial=serial, once=True)
        except FileError:
            del self._asking[directory]
            self._journal.undelegated((directory,))
        except PydiError as exc:
            log.debug("ino=%d: not asked for: %s", directory, exc)
            del self._asking[directory]
            self.occasions.in_vain(directory, time.monotonic())
            self._owe((directory,))
        held = self._held.get(directory)
        if held is None:
            self.occasions.unused(directory)
        else:
            held.completing = asked.task
            try:
                await self._complete_held(directory, held)
            except PydiError as exc:
                log.debug("ino=%d: not looked at: %s", directory, exc)
                self._owe((directory,))
            finally:
                held.completing = None

    def _take(self, directory: Ino) -> None:
        fresh = self._fresh.pop(directory, None)
        naming = {name for parent, name in self._naming if parent == directory}
        if naming:
            self.occasions.unused(directory)  # the list of names may be from before they are
        names = (fresh or set()) | naming
        attr = self._cache.attr(directory)
        self._hold(directory, _Held(attr, names, fresh is not None, time.monotonic()))

    def _hold(self, directory: Ino, held: _Held) -> None:
        self._held[directory] = held
        if len(self._held) > DIRECTORIES_MAX:
            oldest = sorted(self._held, key=lambda ino: self._held[ino].used_s)
            self._owe(oldest[: DIRECTORIES_MAX // 8])

    def _unhold(self, directory: Ino) -> bool:
        """Nothing is answered from it any more. Whether anything was."""
        self.own.forget_in(directory)
        self.occasions.unused(directory)
        return self._held.pop(directory, None) is not None

    def _bound_names(self) -> None:
        """Those that were not used for the longest time go."""
        left = sum(len(held.names) for held in self._held.values()) - NAMES_MAX
        for directory in sorted(self._held, key=lambda ino: self._held[ino].used_s):
            if left <= 0:
                break
            left -= len(self._held[directory].names)
            self._owe((directory,))

    async def _complete_held(self, directory: Ino, held: _Held) -> None:
        """What names it has is asked, once."""
        if held.complete:
            return
        entries = await self._list_names(directory, ENTRIES_MAX + 1)
        if self._held.get(directory) is not held:
            return  # it was taken back meanwhile
        if len(entries) > ENTRIES_MAX:
            self.occasions.wait_long(directory, time.monotonic())
            self._owe((directory,))
            return
        held.names.update({entry.name for entry in entries} - held.gone)
        held.complete = True
        held.listing = entries if self.occasions.is_ahead(directory) else None
        self._bound_names()

    # --- giving back -----------------------------------------------------------------------------

    def touched(
        self, inos: Iterable[Ino], entries: Iterable[tuple[Ino, bytes]]
    ) -> asyncio.Future[None] | None:
        """Others changed these. If directories of ours are among them they are wanted back: done
        when the commands of what is pending there have left."""
        if not (self._held or self._asking or self._fresh or self._owed or self.pending):
            return None
        self._overtake(inos, entries)
        lost = []
        for ino in dict.fromkeys((*inos, *(parent for parent, _ in entries))):
            self._fresh.pop(ino, None)
            if ino in self._asking:
                self._asking[ino].untouched = False
                self.occasions.wait(ino, time.monotonic())
            if ino in self._held:
                lost.append(ino)
                self.occasions.wait(ino, time.monotonic())
            elif ino in self._owed:
                self._owed.give_back()
        return self._owe(lost) if lost else None

    def _overtake(self, inos: Iterable[Ino], entries: Iterable[tuple[Ino, bytes]]) -> None:
        for ino in inos:
            self.own.forget(ino)
            if ino in self.pending:
                self.pending[ino].overtaken = True
        for parent, name in entries:
            for create in self._pending_in.get(parent, {}).values():
                if name in (create.name, EVERY_NAME):
                    create.overtaken = True

    def reset(self) -> None:
        """The stream of changes broke: any of them may have been recalled."""
        self._fresh.clear()
        for asked in self._asking.values():
            asked.untouched = False
        for create in list(self.pending.values()):
            create.overtaken = True
            create.start()
        self._owe(list(self._held))

    def _owe(self, directories: Sequence[Ino]) -> asyncio.Future[None] | None:
        """Nothing is answered from these any more, and they are given back. Done when what is
        pending there has left; None: nothing is."""
        leaving = []
        for directory in directories:
            self._unhold(directory)
            self._owed.add((directory,))
            for create in self._pending_in.get(directory, {}).values():
                create.start()
                if create.sent is None or create.sent.done() or self._queue.is_about(directory):
                    continue  # the last: it waits for answers, as giving back does
                leaving.append(create.sent)
        self._queue.conceal(directories)
        self._owed.give_back()
        if not leaving:
            return None
        return asyncio.get_running_loop().create_task(when_all(leaving))

    def _sweep(self) -> None:
        self._sweeps = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        limit_s = time.monotonic() - UNUSED_S
        unused = [
            ino
            for ino, held in self._held.items()
            if held.used_s < limit_s and ino not in self._pending_in
        ]
        if unused:
            self._owe(unused)

    def _later(self, work: Any) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except PydiError as exc:
                log.debug("%s", exc)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
