"""The journal of a living worker: what `journal` defines, written as it happens.

`Journal` remembers nothing: a mount without a supervisor, the command line, libfuse. `KeptJournal`
writes to two logs in memory that belong to the supervisor (memfd, so that no disk waits and nothing
is left behind): one grows, and when it has grown enough a snapshot of all that still counts goes
to the other.

Called by the vfs and by the kernel binding, in the loop. No method waits.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydi_fs.vfs import journal as records
from pydi_fs.vfs.journal import HEADER, Again, Right, State
from pydi_node import portable
from pydi_node.commands import INODES_RESERVED, Caller, Command, encode
from pydi_node.ids import Ino, LogIndex, Serial, TimeNs

# A snapshot costs a few milliseconds; small content that is written travels through the log.
COMPACT_BYTES_MIN = 16 << 20
COMPACT_RATIO = 4  # times the last snapshot, if that is more

LOG_STEP_BYTES = 1 << 20  # a log is made longer by so much; what is not written yet takes no memory

RESENT = 1 << 63  # in the number of a request that the kernel sends again

STAGE_PREFIX = "stage "  # of the names under which the supervisor keeps files of stages

Piece = tuple[int, int, int, int, bytes | None]  # of `journal.Wrote`
NewSerial = Callable[[], Serial]

# Which request of the kernel the present task answers; 0: none.
_request: ContextVar[int] = ContextVar("request", default=0)


class Journal:
    """Nothing follows this worker."""

    keeps = False  # what is told here is kept
    state: State | None = None  # of the worker before this one

    def enter(self, unique: int) -> None:
        """The present task answers this request."""

    @contextmanager
    def request(self, unique: int) -> Iterator[None]:
        """As `enter`, of what answers it without a task."""
        self.enter(unique)
        try:
            yield
        finally:
            self.enter(0)

    def answered(self, unique: int) -> None:
        """The kernel has its answer, or wants none."""

    def number(self, command: Command, new_serial: NewSerial) -> tuple[Serial, bool]:
        """The serial of a command, and whether it may have been sent under it before."""
        return new_serial(), False

    def opened(
        self, unique: int, fh: int, ino: Ino, flags: int, caller: Caller,
        second: bool, passing: bool,
    ) -> None:  # fmt: skip
        """The kernel is about to hear of a handle."""

    def opened_again(self, unique: int, again: Again) -> None:
        """As `opened`, of a handle that was closed and of which nothing else has changed."""

    def listed(self, ino: Ino) -> None:
        """The kernel is about to hear what a directory contains, and may keep it."""

    def unlisted(self, ino: Ino) -> None:
        """It keeps it no longer."""

    def closed(self, fh: int) -> None: ...
    def closed_again(self, again: Again) -> None:
        """As `closed`, of a handle through which nobody locked."""

    def locked(self, ino: Ino, fh: int, owner: int) -> None: ...
    def unlocked(self, ino: Ino, owner: int) -> None: ...
    def has_right(self, right: Right) -> None: ...
    def gave_right_back(self, ino: Ino) -> None: ...
    def moment(self, index: LogIndex) -> None: ...
    def backing(self, number: int, is_open: bool) -> None: ...
    def wrote(
        self, ino: Ino, size: int, caller: Caller, mtime_ns: int, append: bool,
        length: int, pieces: Sequence[Piece],
    ) -> None: ...  # fmt: skip
    def cut(self, ino: Ino, size: int, caller: Caller, mtime_ns: int, to: int) -> None: ...
    def punched(
        self, ino: Ino, size: int, caller: Caller, mtime_ns: int, offset: int,
        length: int, keep_size: bool,
    ) -> None: ...  # fmt: skip
    def stamped(self, ino: Ino, mtime_ns: int) -> None: ...
    def rebased(self, ino: Ino, size: int) -> None: ...
    def staged_in_file(self, source: int, ino: Ino, size: int, fd: int) -> None:
        """All of a stage lies in this file from now on."""

    def stage_closed(self, source: int) -> None:
        """Nobody needs that file any more."""

    def publishing(self, ino: Ino) -> None: ...
    def committing(self, ino: Ino, serial: Serial) -> None: ...
    def published(self, ino: Ino, success: bool) -> None: ...
    def forgotten(self, ino: Ino) -> None: ...
    def created(
        self, ino: Ino, parent: Ino, name: bytes, caller: Caller, mode: int, mtime_ns: int
    ) -> None:
        """The present request creates a file of which the cluster hears later."""

    def shaped(
        self, ino: Ino, parent: Ino, name: bytes, caller: Caller, mode: int, mtime_ns: int,
        atime_ns: int | None,
    ) -> None:  # fmt: skip
        """It has another mode or time."""

    def creating(self, ino: Ino, serial: Serial) -> None: ...
    def settled(self, ino: Ino) -> None: ...
    def spent(self, serial: Serial) -> None:
        """A command of nobody's request has this serial."""

    def reserved(self, first: Ino, until_s: float) -> None:
        """Numbers of inodes, as many as a reservation has, and when they are too old."""

    def delegated(self, ino: Ino) -> None: ...
    def undelegated(self, inos: Iterable[Ino]) -> None: ...
    def queued(
        self, number: int, command: Command, directories: Iterable[Ino], inos: Iterable[Ino],
        names: Iterable[tuple[Ino, bytes]], made: Ino | None, time_ns: TimeNs,
    ) -> None:  # fmt: skip
        """The present request makes a change of which the cluster hears later."""

    def telling(self, serial: Serial, numbers: Iterable[int], ino: Ino | None) -> None:
        """ino: the pending file that the same command makes."""

    def told(self, numbers: Iterable[int], ino: Ino | None = None) -> None:
        """ino: a pending file that the cluster has with them."""

    def made_before(self) -> Ino | None:
        """What the present request did on this mount only when it was sent the first time: the
        inode that it made, or 0. None: nothing."""
        return None

    def sent_before(self) -> bool:
        """Whether a command of the present request may have been sent when it came first."""
        return False

    def written_before(self, unique: int) -> int | None:
        """How much this WRITE wrote when it was sent the first time; None: it did not get there."""
        return None

    def handed_before(self, unique: int) -> int | None:
        """The handle that this request got the first time, of which nobody knows."""
        return None


class KeptJournal(Journal):
    """Written to the supervisor's logs.

    logs  two files in memory.
    keep  gives the supervisor a descriptor under a name; drop takes it back.
    """

    keeps = True

    def __init__(
        self, logs: tuple[int, int], keep: Callable[[str, int], None], drop: Callable[[str], None]
    ) -> None:
        self._logs = logs
        self._keep = keep
        self._drop = drop
        self._generation, self._log, found = read_logs(logs)
        self._end = _End(logs[self._log], 0)  # of the log in use, once `begin` has begun it
        self._limit = 0
        # Without content: that is asked of the vfs when it is needed.
        self._mirror = found
        self._frozen: Callable[[], Iterable[Any]] = lambda: ()
        self._compacting = False
        self.state = found if found.identity is not None else None
        self._serials = {unique: list(sent) for unique, sent in found.serials.items()}
        self._written = dict(found.written)
        self._handed = dict(found.handed)
        self._made = dict(found.made)

    def begin(self, frozen: Callable[[], Iterable[Any]]) -> None:
        """From here on records are written. frozen: content, as `Staged` and `Frozen` records."""
        self._frozen = frozen
        self._mirror.files, self._mirror.stages = {}, {}
        self.compact()

    def identify(self, client: int, key: bytes) -> None:
        self._note(records.Identity(client, key))

    def agreed(self, minor: int, flags: int) -> None:
        self._note(records.Agreed(minor, flags))

    def resends_over(self, running: Iterable[int]) -> None:
        """All that the kernel sends again has come; ``running`` of it is not answered yet."""
        kept = {unique & ~RESENT for unique in running}
        for table in (
            self._serials, self._written, self._handed, self._made,
            self._mirror.serials, self._mirror.written, self._mirror.handed, self._mirror.made,
        ):  # fmt: skip
            for unique in [unique for unique in table if unique not in kept]:
                del table[unique]

    # --- requests -------------------------------------------------------------------------------

    def enter(self, unique: int) -> None:
        _request.set(unique & ~RESENT)

    def answered(self, unique: int) -> None:
        unique &= ~RESENT
        self._mirror.serials.pop(unique, None)
        self._mirror.written.pop(unique, None)
        self._mirror.made.pop(unique, None)
        self._serials.pop(unique, None)
        self._made.pop(unique, None)

    def number(self, command: Command, new_serial: NewSerial) -> tuple[Serial, bool]:
        unique = _request.get()
        name = type(command).__name__
        for before in self._serials.get(unique, ()):
            if before.command == name:
                self._serials[unique].remove(before)
                return Serial(before.serial), True
        serial = new_serial()
        self._note(records.Numbered(unique, serial, name))
        return serial, False

    def written_before(self, unique: int) -> int | None:
        return self._written.get(unique & ~RESENT) if unique & RESENT else None

    def handed_before(self, unique: int) -> int | None:
        return self._handed.pop(unique & ~RESENT, None) if unique & RESENT else None

    # --- handles --------------------------------------------------------------------------------

    def opened(
        self, unique: int, fh: int, ino: Ino, flags: int, caller: Caller,
        second: bool, passing: bool,
    ) -> None:  # fmt: skip
        unique &= ~RESENT
        record = records.Opened(unique, fh, ino, flags, *caller, second, passing)
        # As `State.apply`, but for what only a successor has a use for.
        self._mirror.handles[fh] = record
        self._mirror.last_fh = max(self._mirror.last_fh, fh)
        self._write(record)

    def opened_again(self, unique: int, again: Again) -> None:
        # Without its number: before the log is written anew, this request has its answer.
        self._mirror.handles[again.record.fh] = again.record
        self._append(again.opened(unique & ~RESENT))

    def listed(self, ino: Ino) -> None:
        self._note(records.Listed(ino))

    def unlisted(self, ino: Ino) -> None:
        self._note(records.Unlisted(ino))

    def closed(self, fh: int) -> None:
        self._note(records.Closed(fh))

    def closed_again(self, again: Again) -> None:
        self._mirror.handles.pop(again.record.fh, None)
        self._append(again.closed)

    def locked(self, ino: Ino, fh: int, owner: int) -> None:
        self._note(records.Locked(ino, fh, owner))

    def unlocked(self, ino: Ino, owner: int) -> None:
        self._note(records.Unlocked(ino, owner))

    def has_right(self, right: Right) -> None:
        self._note(right)

    def gave_right_back(self, ino: Ino) -> None:
        self._note(records.RightGivenBack(ino))

    def moment(self, index: LogIndex) -> None:
        self._note(records.Moment(index))

    def backing(self, number: int, is_open: bool) -> None:
        self._note(records.Backing(number, is_open))

    # --- content --------------------------------------------------------------------------------

    def wrote(
        self, ino: Ino, size: int, caller: Caller, mtime_ns: int, append: bool,
        length: int, pieces: Sequence[Piece],
    ) -> None:  # fmt: skip
        unique = _request.get()
        if len(pieces) == 1 and pieces[0][4] is None:
            offset, _, source, source_offset, _ = pieces[0]
            self._append(
                records.encode_write(
                    unique, ino, size, caller, mtime_ns, append, length, offset, source,
                    source_offset,
                )
            )  # fmt: skip
            return
        self._write(
            records.Wrote(unique, ino, size, caller, mtime_ns, append, length, tuple(pieces))
        )

    def cut(self, ino: Ino, size: int, caller: Caller, mtime_ns: int, to: int) -> None:
        self._write(records.Cut(ino, size, caller, mtime_ns, to))

    def punched(
        self, ino: Ino, size: int, caller: Caller, mtime_ns: int, offset: int,
        length: int, keep_size: bool,
    ) -> None:  # fmt: skip
        self._write(records.Punched(ino, size, caller, mtime_ns, offset, length, keep_size))

    def stamped(self, ino: Ino, mtime_ns: int) -> None:
        self._write(records.Stamped(ino, mtime_ns))

    def rebased(self, ino: Ino, size: int) -> None:
        self._write(records.Rebased(ino, size))

    def staged_in_file(self, source: int, ino: Ino, size: int, fd: int) -> None:
        self._keep(f"{STAGE_PREFIX}{source}", fd)
        self._write(records.Staged(source, ino, size, None))

    def stage_closed(self, source: int) -> None:
        self._drop(f"{STAGE_PREFIX}{source}")

    def publishing(self, ino: Ino) -> None:
        self._write(records.Publishing(ino))

    def committing(self, ino: Ino, serial: Serial) -> None:
        self._mirror.last_serial = max(self._mirror.last_serial, serial)
        self._write(records.Committing(ino, serial))

    def published(self, ino: Ino, success: bool) -> None:
        self._write(records.Published(ino, success))

    def forgotten(self, ino: Ino) -> None:
        self._write(records.Forgotten(ino))

    # --- what the cluster hears of later --------------------------------------------------------

    def created(
        self, ino: Ino, parent: Ino, name: bytes, caller: Caller, mode: int, mtime_ns: int
    ) -> None:
        self._note(records.Created(_request.get(), ino, parent, name, caller, mode, mtime_ns, None))

    def shaped(
        self, ino: Ino, parent: Ino, name: bytes, caller: Caller, mode: int, mtime_ns: int,
        atime_ns: int | None,
    ) -> None:  # fmt: skip
        self._note(records.Created(0, ino, parent, name, caller, mode, mtime_ns, atime_ns))

    def creating(self, ino: Ino, serial: Serial) -> None:
        self._note(records.Creating(ino, serial))

    def settled(self, ino: Ino) -> None:
        self._note(records.Settled(ino))

    def spent(self, serial: Serial) -> None:
        self._note(records.Highest(0, serial, 0))

    def reserved(self, first: Ino, until_s: float) -> None:
        self._note(records.Reserved(first, first + INODES_RESERVED, until_s))

    def delegated(self, ino: Ino) -> None:
        self._note(records.Delegated(ino))

    def undelegated(self, inos: Iterable[Ino]) -> None:
        self._note(records.Undelegated(tuple(inos)))

    def queued(
        self, number: int, command: Command, directories: Iterable[Ino], inos: Iterable[Ino],
        names: Iterable[tuple[Ino, bytes]], made: Ino | None, time_ns: TimeNs,
    ) -> None:  # fmt: skip
        record = records.Queued(
            _request.get(), number, encode(command), tuple(directories), tuple(inos), tuple(names),
            made or 0, time_ns,
        )  # fmt: skip
        self._note(record)

    def telling(self, serial: Serial, numbers: Iterable[int], ino: Ino | None) -> None:
        self._note(records.Telling(serial, tuple(numbers), ino or 0))

    def told(self, numbers: Iterable[int], ino: Ino | None = None) -> None:
        self._note(records.Told(tuple(numbers), ino or 0))

    def sent_before(self) -> bool:
        return bool(self._serials.get(_request.get()))

    def made_before(self) -> Ino | None:
        made = self._made.get(_request.get())
        return None if made is None else Ino(made)

    # --- the logs -------------------------------------------------------------------------------

    def _note(self, record: Any) -> None:
        self._mirror.apply(record)
        self._write(record)

    def _write(self, record: Any) -> None:
        self._append(records.encode(record))

    def _append(self, record: bytes) -> None:
        self._end.append(record)
        if self._end.at > self._limit and not self._compacting:
            # Not now: what this record belongs to is half done.
            self._compacting = True
            asyncio.get_running_loop().call_soon(self.compact)

    def compact(self) -> None:
        """All that still counts goes to the other log. Not in the middle of an operation."""
        self._compacting = False
        other = 1 - self._log
        fd = self._logs[other]
        os.ftruncate(fd, 0)
        data = bytearray(HEADER.pack(0))
        for record in snapshot(self._mirror):
            data += records.encode(record)
        at = 0
        for record in self._frozen():
            data += records.encode(record)
            if len(data) > COMPACT_BYTES_MIN:
                portable.pwrite_all(fd, data, at)
                at += len(data)
                data = bytearray()
        portable.pwrite_all(fd, data, at)
        at += len(data)
        self._limit = max(COMPACT_BYTES_MIN, COMPACT_RATIO * at)
        self._generation += 1
        portable.pwrite_all(fd, HEADER.pack(self._generation), 0)  # from here on it counts
        self._end.close()
        self._end = _End(fd, at)
        os.ftruncate(self._logs[self._log], 0)
        self._log = other


class _End:
    """Where records are put behind a log: in memory that is the file's, which takes no system call.

    The zeros behind them are no record, and neither is one of which a part is missing.
    at  bytes that are in the log.
    """

    def __init__(self, fd: int, at: int) -> None:
        self.at = at
        self._fd = fd
        self._size = 0
        self._memory: mmap.mmap | None = None

    def append(self, data: bytes) -> None:
        end = self.at + len(data)
        if end > self._size or self._memory is None:
            self._memory = self._grow(end)
        self._memory[self.at : end] = data
        self.at = end

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()

    def _grow(self, end: int) -> mmap.mmap:
        self.close()
        self._size = end + LOG_STEP_BYTES
        os.ftruncate(self._fd, self._size)
        return mmap.mmap(self._fd, self._size)


def snapshot(state: State) -> Iterable[Any]:
    """Records that give this state, but for content."""
    if state.agreed is not None:
        yield state.agreed
    if state.identity is not None:
        yield state.identity
    yield records.Highest(state.last_fh, state.last_serial, state.last_source)
    yield from map(records.Moment, state.moments)
    for number in sorted(state.backings):
        yield records.Backing(number, True)
    yield from state.handles.values()
    yield from map(records.Listed, state.listed)
    yield from state.locks
    yield from state.pending.values()
    for ino, serial in state.creating.items():
        yield records.Creating(ino, serial)
    for unique, made in state.made.items():
        yield records.Made(unique, made)
    yield from state.reserved.values()
    yield from map(records.Delegated, state.delegated)
    yield from state.rights.values()
    yield from state.queued.values()
    if state.telling is not None:
        yield state.telling
        if state.is_given_up:
            yield records.Settled(state.telling.ino)
    for sent in state.serials.values():
        yield from sent
    for unique, length in state.written.items():
        yield records.Done(unique, length)


def read_logs(logs: tuple[int, int]) -> tuple[int, int, State]:
    """The generation, the index and the state of the log that counts; (0, 0, nothing) without."""
    best = (0, 0, b"")
    for index, fd in enumerate(logs):
        data = _read_all(fd)
        generation = HEADER.unpack_from(data)[0] if len(data) >= HEADER.size else 0
        if generation > best[0]:
            best = (generation, index, data)
    generation, index, data = best
    return generation, index, State.of(records.decode(memoryview(data)[HEADER.size :]))


def _read_all(fd: int) -> bytes:
    parts = []
    at = 0
    while part := portable.pread(fd, 1 << 24, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
