"""Changes of names and attributes that this mount has answered, and the cluster hears of later:
in order, many in one Batch. `changes` decides which; called by it, by `delegations` and by the vfs.

    add ──► queued ──TELL_AFTER_S, TOLD_AT_ONCE, or somebody needs it──► told ──answer──► gone
              ▲                                                          │ no answer: the very same
              └────────── no room for it: nothing has changed ───────────┴─ again, under its serial

A file that is closed meanwhile takes along what waits here: its PutFile ends the Batch (`Rider`),
so that `close` waits for one command. The two have one serial, and share a record of the journal
when they are sent and when they are told; a worker that follows sends them together again.

One Batch is under way at a time, so what is in the cluster is always a beginning of what programs
did. Until its answer is here, a change is shown from here (`name`, `attr`), but for directories
that are wanted back: of these only the cluster may tell, and whatever is asked of it about a change
waits until that is told (`before`).

A change that is refused (its directory was taken back, the cluster has no room) is lost, and what
was done after it in its directories with it: the tree decides so within a Batch, `_lose` for what
is behind it. Programs have been told that it is done, so all that is known of those directories is
dropped, it is logged, and the next fsync(2) of the directory says it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydi_fs.client import Client
from pydi_fs.vfs.cache import ABSENT, NameCache
from pydi_fs.vfs.journal import State
from pydi_fs.vfs.journalling import Journal
from pydi_node.commands import (
    Batch,
    Command,
    Commit,
    Delegate,
    Mkdir,
    PutFile,
    Rename,
    ReserveInodes,
    Rmdir,
    SetAttr,
    Symlink,
    Undelegate,
    Unlink,
    decode,
    makes_room,
)
from pydi_node.errors import DeadlineError, FileError, NoSpaceError, PydiError
from pydi_node.ids import INT64_MAX, Ino, Serial, TimeNs
from pydi_node.records import Attr
from pydi_node.wire.messages import (
    Execute,
    ExecutePut,
    GetAttr,
    Lookup,
    PathOf,
    PathVersions,
    ReadDir,
    Request,
)

log = logging.getLogger("pydi.vfs")

TELL_AFTER_S = 0.2  # what a machine that dies may lose of what nobody synced
TOLD_AT_ONCE = 64  # some 10 KiB of log; half of what a Batch may have
QUEUED_MAX = 256  # beyond it programs wait, as they do for any command
MADE_MAX = 64  # of them, that make an inode: about one reservation of numbers
RIDING_MAX_BYTES = 32 * 1024  # of a file that goes along: what a command carries, if so set
RETRY_S = 1.0
FAILURES_MAX = 1024  # directories whose loss nobody has asked for

Key = tuple[Ino, bytes]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One that was answered here."""

    number: int  # counts all of this mount
    command: Command
    directories: tuple[Ino, ...]  # that must be delegated to this mount: all that it relies on
    inos: tuple[Ino, ...]  # whose attributes it changes
    names: tuple[Key, ...]  # that it gives or takes away
    made: Ino | None  # an inode that the cluster does not know yet
    time_ns: TimeNs  # when it was done, as programs see it


class Rider:
    """A pending file that the last command of a Batch makes.

    sent     called when it has left.
    decided  called with whether the file is there, when an answer says so, before that is noted.
    arrived  called with its attributes then.
    unawaited  called at the end, with what was refused, when who asked was told that nothing is
             known: no other command may be sent under this serial.
    """

    __slots__ = (
        "arrived", "command", "decided", "outcome", "payload", "sent", "serial", "unawaited",
    )  # fmt: skip

    def __init__(
        self,
        command: PutFile,
        payload: bytes | None,
        serial: Serial,
        sent: Callable[[], None],
        decided: Callable[[bool], None],
        arrived: Callable[[Attr], Attr],
        unawaited: Callable[[PydiError | None], None],
    ) -> None:
        self.command = command
        self.payload = payload
        self.serial = serial
        self.sent = sent
        self.decided = decided
        self.arrived = arrived
        self.unawaited = unawaited
        # None: it goes by itself.
        self.outcome: asyncio.Future[Attr | None] = asyncio.get_running_loop().create_future()

    def made(self, attr: Attr) -> None:
        known = self.arrived(attr)
        if self.outcome.done():
            self.unawaited(None)
        else:
            self.outcome.set_result(known)

    def left_behind(self) -> None:
        """It was not sent, and nothing is to be told with it any more."""
        if not self.outcome.done():
            self.outcome.set_result(None)

    def refused(self, error: PydiError) -> None:
        """It is not there."""
        if self.outcome.done():
            self.unawaited(error)
        else:
            self.failed(error)

    def failed(self, error: PydiError) -> None:
        """Also where that is not known."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # whoever waited may be gone


@dataclass(slots=True)
class _Attempt:
    """The Batch that may have been sent; only the same one may be sent again."""

    changes: Sequence[Change]
    serial: Serial
    ino: Ino | None  # the pending file that is part of it
    rider: Rider | None = None  # None, with an ino: the worker before this one had sent it
    count: int = 0  # how often
    leaves: int = 0  # how often it has left


class Queue:
    """See the module. Everything here runs in the loop.

    run      runs a command past `before`; what it touched leaves the caches first.
    on_told  some changes were told or lost; and what the answer says of what a SetAttr changed.
    on_lost  these inodes and names are not as programs were told, these directories neither.
    """

    def __init__(
        self,
        client: Client,
        cache: NameCache,
        journal: Journal,
        *,
        run: Callable[..., Awaitable[Any]],
        on_told: Callable[[Sequence[Change], Mapping[Ino, Attr]], None],
        on_lost: Callable[[Change], None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._journal = journal
        self._run = run
        self._on_told = on_told
        self._on_lost = on_lost
        self._changes: deque[Change] = deque()  # the oldest first, with those under way
        self._last = 0  # number of the newest one
        self._attempt: _Attempt | None = None
        # How many changes are about each.
        self._keys: Counter[Key] = Counter()
        self._inos: Counter[Ino] = Counter()
        self._directories: Counter[Ino] = Counter()
        self._made: set[Ino] = set()
        # What programs must see, and the number of the change that says so.
        self._names: dict[Key, tuple[Ino, int]] = {}
        self._attrs: dict[Ino, tuple[Attr, int]] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []  # (number, all up to it is told)
        self._wanted = 0  # all up to this number is to be told now
        self._rider: Rider | None = None  # waits for the next Batch
        self._rides_after = 0  # the last change that comes before it
        self._boards = asyncio.Event()  # a rider is there
        self._is_stopped = False
        self._teller: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stuck = False  # the last attempt got no answer
        self._failures: dict[Ino, FileError] = {}  # by directory: lost, and nobody was told

    def restore(self, state: State) -> None:
        """Go on with what the worker before this one had queued; shown from here is none of it."""
        for record in state.queued.values():
            change = Change(
                record.number, decode(record.command), tuple(map(Ino, record.directories)),
                tuple(map(Ino, record.inos)),
                tuple((Ino(parent), name) for parent, name in record.names),
                Ino(record.made) if record.made else None, TimeNs(record.time_ns),
            )  # fmt: skip
            self._append(change)
        if state.telling is not None:
            under_way = set(state.telling.numbers)
            changes = [change for change in self._changes if change.number in under_way]
            ino = Ino(state.telling.ino) if state.telling.ino else None
            self._attempt = _Attempt(changes, Serial(state.telling.serial), ino, count=1)

    async def stop(self) -> None:
        """All of it is told. An error when that is not so."""
        try:
            await self.flush()
        finally:
            self._is_stopped = True
            if self._teller is not None:
                self._teller.cancel()
                await asyncio.wait([self._teller])
            self.start()  # whoever waits hears of it

    # --- what programs must see ------------------------------------------------------------------

    def name(self, parent: Ino, name: bytes) -> Ino | None:
        """As `NameCache.name`, where a change says it. Safe from any thread."""
        known = self._names.get((parent, name))
        return None if known is None else known[0]

    def attr(self, ino: Ino) -> Attr | None:
        """The attributes that it has by a change."""
        known = self._attrs.get(ino)
        return None if known is None else known[0]

    @property
    def is_empty(self) -> bool:
        """Whether the cluster has been told of all."""
        return not self._changes

    @property
    def made(self) -> Collection[Ino]:
        """Inodes that the cluster does not know of yet."""
        return self._made

    def is_about(self, directory: Ino) -> bool:
        """Whether the cluster does not know all that was done in there, or of the directory."""
        return directory in self._directories or directory in self._made

    @property
    def is_full(self) -> bool:
        """No more may be added: too many are queued, or the cluster does not answer."""
        return self._is_stuck or len(self._changes) >= QUEUED_MAX or len(self._made) >= MADE_MAX

    def conceal(self, directories: Collection[Ino]) -> None:
        """These are wanted back: only the cluster may tell how they are, and it is told."""
        concealed = [
            change
            for change in self._changes
            if any(directory in directories for directory in change.directories)
        ]
        for change in concealed:
            self._forget(change)
            # Nor what was there before, which the cluster still has.
            self._cache.forget(change.inos, change.names)
            self._cache.note(change.inos, change.names)
        if concealed:
            self.start()

    def touched(self, inos: Iterable[Ino]) -> None:
        """Others changed these."""
        if self._attrs:
            for ino in inos:
                self._attrs.pop(ino, None)

    # --- adding ----------------------------------------------------------------------------------

    def add(
        self,
        command: Command,
        directories: tuple[Ino, ...],
        names: Mapping[Key, Ino],
        attrs: Sequence[Attr],
        time_ns: TimeNs,
        made: Ino | None = None,
    ) -> None:
        """A change was made here. Not when `is_full`.

        names  what they lead to now, or ABSENT.
        attrs  of every inode that it changes, as they are now.
        time_ns  of the change, which these have.
        """
        self._last += 1
        inos = tuple(attr.ino for attr in attrs)
        change = Change(self._last, command, directories, inos, tuple(names), made, time_ns)
        self._journal.queued(change.number, command, directories, inos, change.names, made, time_ns)
        self._append(change)
        for key, ino in names.items():
            self._names[key] = (ino, change.number)
        for attr in attrs:
            self._attrs[attr.ino] = (attr, change.number)
        if len(self._changes) >= TOLD_AT_ONCE or len(self._made) >= MADE_MAX // 2:
            self.start()
        else:
            self._tell_in_time()

    def _append(self, change: Change) -> None:
        self._last = max(self._last, change.number)
        self._changes.append(change)
        self._keys.update(change.names)
        self._inos.update(change.inos)
        self._directories.update(change.directories)
        if change.made is not None:
            self._made.add(change.made)

    def _drop(self, changes: Collection[Change], is_noted: bool = False) -> None:
        """They are decided. is_noted: in the journal, too."""
        for change in changes:
            uncount(self._keys, change.names)
            uncount(self._inos, change.inos)
            uncount(self._directories, change.directories)
            if change.made is not None:
                self._made.discard(change.made)
            self._forget(change)
        gone = {change.number for change in changes}
        self._changes = deque(change for change in self._changes if change.number not in gone)
        if gone and not is_noted:
            self._journal.told(gone)

    def _forget(self, change: Change) -> None:
        """What it says is not shown from here any more, unless a later one says it."""
        for key in change.names:
            if key in self._names and self._names[key][1] <= change.number:
                del self._names[key]
        for ino in change.inos:
            if ino in self._attrs and self._attrs[ino][1] <= change.number:
                del self._attrs[ino]

    # --- what must come first --------------------------------------------------------------------

    def before(self, request: Request) -> Awaitable[None] | None:
        """What ``request`` waits for. Changes wait for all that was done before them here, but for
        those that have an order of their own."""
        if not self._changes:
            return None
        about: Any = request
        if isinstance(request, (Execute, ExecutePut)):
            about = request.command
            match about:
                case Batch() | ReserveInodes() | Undelegate():
                    waits = False
                case Delegate(ino=ino) | Commit(ino=ino):
                    waits = ino in self._inos
                case PutFile(ino=int()):
                    waits = self._is_before(about)
                case _:
                    waits = True
        elif getattr(request, "at", None) is not None:
            waits = False
        else:
            match about:
                case Lookup(parent=parent, name=name):
                    waits = (parent, name) in self._keys or parent in self._made
                case GetAttr(ino=ino) | ReadDir(ino=ino) | PathOf(ino=ino):
                    waits = ino in self._inos
                case PathVersions():
                    waits = True
                case _:
                    waits = getattr(request, "ino", None) in self._made
        return self.flush() if waits else None

    def _is_before(self, command: PutFile) -> bool:
        """Whether some of it must be told before a file is made in its directory."""
        return command.parent in self._inos or command.parent in self._directories

    async def make(self, rider: Rider, is_new: bool) -> Attr:
        """A pending file is in the cluster, made by a Batch with what waits here, or by itself.

        is_new  nothing was ever sent under its serial, of which the answer is that of what was.

        Errors are those of `Client.execute`.
        """
        riding = self._ride(rider, is_new)
        made = None if riding is None else await riding
        if made is not None:
            return made
        attr: Attr = await self._run(
            rider.command, rider.arrived, rider.payload, serial=rider.serial, sent=rider.sent
        )
        return attr

    def _ride(self, rider: Rider, is_new: bool) -> asyncio.Future[Attr | None] | None:
        """None: it goes by itself, for nothing waits here, or it would wait without need."""
        attempt = self._attempt
        if attempt is not None and attempt.serial == rider.serial:
            attempt.rider = rider
            self._boards.set()
            if attempt.leaves:
                rider.sent()
            self.start()
            return rider.outcome
        if not is_new or self._is_stopped or not self._changes or self._rider is not None:
            return None
        # What becomes a file of a node's first would hold up what others wait for, and a worker
        # that follows makes another one of it.
        if rider.command.blobs or len(rider.payload or b"") > RIDING_MAX_BYTES:
            return None
        is_next = attempt is None and len(self._changes) <= TOLD_AT_ONCE
        if not is_next and not self._is_before(rider.command):
            return None
        self._rider, self._rides_after = rider, self._last
        self.start()
        return rider.outcome

    async def flush(self) -> None:
        """All that was done before is in the cluster, or lost. An error when it is not known."""
        told = self.flushing()
        if told is not None:
            await told

    def flushing(self) -> asyncio.Future[None] | None:
        """Done with `flush`; None: there is nothing to tell."""
        if not self._changes:
            return None
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._last, told))
        self.start()
        return told

    def raise_failure(self, directory: Ino | None) -> None:
        """What was lost in there, in any directory if that is None; once: fsync(2)."""
        if directory is None:
            failures, self._failures = list(self._failures.values()), {}
            failure = failures[0] if failures else None
        else:
            failure = self._failures.pop(directory, None)
        if failure is not None:
            raise failure

    # --- telling ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Have it told, if that is not under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_stopped:
            self._fail_all(DeadlineError("the mount ends"))
            return
        self._wanted = self._last
        if self._changes and (self._teller is None or self._teller.done()):
            self._teller = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        await asyncio.sleep(0)  # who had it started may be about to have a file ride
        while self._rider or (self._changes and self._changes[0].number <= self._wanted):
            try:
                await self._tell_some()
            except PydiError as exc:
                log.debug("changes are not told yet: %s", exc)
                self._is_stuck = True
                self._fail_all(exc)
                await asyncio.sleep(RETRY_S)
        if self._changes:
            self._tell_in_time()

    def _tell_in_time(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_AFTER_S, self.start)

    async def _tell_some(self) -> None:
        attempt = self._attempt
        if attempt is None:
            if self._rider is not None and not self._changes:
                self._rider.left_behind()
                self._rider = None
                return
            attempt = self._attempt = self._next_attempt()
        while attempt.ino is not None and attempt.rider is None:
            self._boards.clear()
            await self._boards.wait()  # it is being restored, which asks nobody
        attempt.count += 1

        def has_left() -> None:
            attempt.leaves += 1
            if attempt.rider is not None:
                attempt.rider.sent()

        def arrived(outcomes: Sequence[tuple[int, Any]]) -> None:
            # Of the first answer, repeated, nothing is believed but what was refused.
            self._arrived(attempt, outcomes, attempt.count == 1 and attempt.leaves == 1)

        commands: list[Command] = [change.command for change in attempt.changes]
        times = [change.time_ns for change in attempt.changes]
        payload = None
        if attempt.rider is not None:
            commands.append(attempt.rider.command)
            times.append(TimeNs(INT64_MAX))  # when it is applied, as without a Batch
            payload = attempt.rider.payload
        command = Batch(tuple(commands), tuple(times))
        try:
            await self._run(command, arrived, payload, serial=attempt.serial, sent=has_left)
        except (NoSpaceError, FileError) as exc:
            is_first = attempt.count == 1 and attempt.leaves <= 1
            if isinstance(exc, NoSpaceError) and not is_first:
                raise  # it may have been sent to a node that had room
            self._attempt = None
            if attempt.rider is not None:
                attempt.rider.decided(False)
                attempt.rider.refused(exc)
            if attempt.rider is not None and is_first:
                pass  # the others may be taken without it
            elif isinstance(exc, NoSpaceError):
                self._lose_what_needs_room(attempt)
            else:
                self._lose(attempt.changes, exc)
        self._is_stuck = False
        self._wake_told()

    def _next_attempt(self) -> _Attempt:
        changes = list(self._changes)[:TOLD_AT_ONCE]
        rider = self._rider
        if rider is None or changes[-1].number < self._rides_after:
            attempt = _Attempt(changes, self._client.new_serial(), None)
        else:
            attempt = _Attempt(changes, rider.serial, rider.command.ino, rider)
            self._rider = None
        self._journal.telling(attempt.serial, [c.number for c in changes], attempt.ino)
        return attempt

    def _fail_all(self, error: PydiError) -> None:
        """Whoever waits. A file that was sent may be told later, another goes by itself then."""
        self._wake(self._last, error)
        under_way = None if self._attempt is None else self._attempt.rider
        for rider in (under_way, self._rider):
            if rider is not None:
                rider.failed(error)
        self._rider = None

    def _arrived(
        self, attempt: _Attempt, outcomes: Sequence[tuple[int, Any]], is_first: bool
    ) -> None:
        """Called at the arrival of the answer, in order with invalidations."""
        self._attempt = None
        rider = attempt.rider
        made: Attr | None = None
        if rider is not None:
            *outcomes, (refused, made) = outcomes
            # First what is known of the content alone: whoever follows then asks for the rest again
            # under this serial. After the record behind it nothing is asked.
            rider.decided(not refused)
        numbers = [change.number for change in attempt.changes]
        self._journal.told(numbers, None if made is None else made.ino)
        lost = []
        done = []
        known: dict[Ino, Attr] = {}
        # What comes with a change is how an inode was after it, and not after later ones.
        last = {ino: change for change in attempt.changes for ino in change.inos}
        if rider is not None:
            last.pop(rider.command.parent, None)  # the answer has it as it is at the end
        for change, (code, value) in zip(attempt.changes, outcomes, strict=True):
            if code:
                lost.append((change, code))
                continue
            done.append(change)
            # A node that has the answer from a snapshot knows no values.
            if is_first and (value is not None or isinstance(change.command, Rmdir)):
                self._learn(change, value, last)
                if isinstance(change.command, SetAttr):
                    known[change.command.ino] = value
            else:
                self._cache.forget(change.inos, change.names)
                self._cache.note(change.inos, change.names)
        self._drop(done, is_noted=True)
        if lost:
            self._lose([change for change, _ in lost], FileError(lost[0][1]))
        self._on_told(done, known)
        if rider is not None:
            if made is not None:
                rider.made(made)
            else:
                rider.refused(FileError(refused or errno.EIO))

    def _learn(self, change: Change, value: Any, last: Mapping[Ino, Change]) -> None:
        """The cluster has done it."""
        cache = self._cache
        for attr in value if isinstance(change.command, Rename) else (value,):
            if attr is not None and last.get(attr.ino) is change:
                cache.put_attr(attr)
        match change.command:
            case Unlink(parent=parent, name=name):
                cache.put_name(parent, name, ABSENT)
            case Rmdir(parent=parent, name=name):
                cache.put_name(parent, name, ABSENT)
                cache.forget(change.directories[-1:], ())
            case Rename(parent=parent, name=name, new_parent=new_parent, new_name=new_name):
                cache.put_name(parent, name, ABSENT)
                cache.put_name(new_parent, new_name, value[0].ino)
            case Mkdir(parent=parent, name=name) | Symlink(parent=parent, name=name):
                cache.put_name(parent, name, value.ino)

    def _lose_what_needs_room(self, attempt: _Attempt) -> None:
        """The cluster's disks are full. What makes room may go there."""
        needing = [c for c in attempt.changes if not makes_room(c.command)]
        self._lose(needing, FileError(errno.ENOSPC))

    def _lose(self, changes: Collection[Change], error: FileError) -> None:
        """These are refused, and what was done later in their directories is lost with them."""
        doomed = {change.number for change in changes}
        directories: set[Ino] = set()
        lost = []
        for change in self._changes:
            if change.number in doomed or not directories.isdisjoint(change.directories):
                lost.append(change)
                directories.update(change.directories)
                if change.made is not None:
                    directories.add(change.made)
        self._drop(lost)
        for change in lost:
            log.error("%s was answered, and is lost: %s", _described(change.command), error)
            self._on_lost(change)
        for directory in directories:
            if len(self._failures) < FAILURES_MAX:
                self._failures[directory] = error

    def _wake_told(self) -> None:
        oldest = self._changes[0].number if self._changes else self._last + 1
        self._wake(oldest - 1, None)

    def _wake(self, number: int, error: PydiError | None) -> None:
        """Whoever waits for changes up to this one."""
        waiting = []
        for wanted, told in self._waiters:
            if wanted > number:
                waiting.append((wanted, told))
            elif told.done():
                continue
            elif error is None:
                told.set_result(None)
            else:
                told.set_exception(error)
        self._waiters = waiting


def uncount(counter: Counter[T], keys: Iterable[T]) -> None:
    """Each of them counts once less; what is at 0 is not kept."""
    for key in keys:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def _described(command: Command) -> str:
    """For the log: no path is known without a question."""
    parent, name = getattr(command, "parent", None), getattr(command, "name", b"")
    what = type(command).__name__.lower()
    if parent is None:
        return f"{what} of ino={getattr(command, 'ino', 0)}"
    return f"{what} of {name.decode(errors='replace')!r} in ino={parent}"
