"""Immutable blobs as plain files, durable when ``seal`` returns.

    root/names            counter up to which this node's names are reserved
    root/tmp/             being written; emptied by ``recover``
    root/ab/<name>        sealed: complete, verified, mode 0400; ab = low 8 bits of the counter
    root/quarantine/      found damaged: moved here with the reason, never deleted

The node's runtime calls this from a few worker threads. Concurrency: every method of BlobStore may
run at any time in any thread, ``recover`` alone and first. One Writer does one thing at a time, for
whoever asked in vain (a request that was cancelled) leaves a thread in it; different Writers are
independent. Shared state is a handful of counters under one lock, which is not held while content
is written, hashed, synced or freed.

It must never: give a name twice, show a blob that is not complete and durable, return from ``seal``
before content and name are on disk, call fdatasync again after it failed, delete damaged content.
"""

from __future__ import annotations

import errno
import functools
import heapq
import logging
import re
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from blake3 import blake3

from pydi_node.blobs.files import Data, Files, OsFiles, Space, load, save
from pydi_node.errors import (
    BlobCorruptError,
    BlobMissingError,
    CorruptionError,
    NoSpaceError,
    UnavailableError,
)
from pydi_node.ids import (
    BlobId,
    NodeNumber,
    blob_counter,
    blob_id,
    blob_name,
    blob_node,
    parse_blob_name,
)

_log = logging.getLogger(__name__)

MIB = 1 << 20

# A reservation costs two syncs; one for 4096 names is lost in the noise, and a restart skips at
# most that many of 2**48.
NAMES_STRIDE = 4096
# Without the reservation, names beyond the highest one seen here may be in use on other nodes;
# but nobody made four thousand million blobs after the newest that is left.
NAMES_JUMP = 1 << 32

RESERVE_BYTES = 512 * MIB  # room for the log and the tree to go on, and so for deleting
RESERVE_PERCENT = 5  # of a small disk, where 512 MiB would be most of it

HASH_CHUNK_BYTES = MIB  # buffer of a re-hash: past the size where hashing dominates the call
# Written before the disk is told to begin with it: all at the end would make a sync wait for the
# whole file. (512 MiB received over TLS and synced: 420 MiB/s without, 473 with.)
WRITEBACK_BYTES = 8 * MIB
AHEAD_MAX = 64  # pieces of a blob that came before their turn and are remembered
SPACE_CHECK_BYTES = 64 * MIB  # written between two looks at the free space

FANOUT_COUNT = 256
_FANOUT_NAMES = tuple(f"{number:02x}" for number in range(FANOUT_COUNT))
_NAMES_FORM = re.compile(rb"pydi-names 1 (\d{1,15}) ([0-9a-f]{8})\n")


class BlobSeal(NamedTuple):
    """What the tree records of a sealed blob."""

    size: int  # bytes
    checksum: bytes  # BLAKE3 of the whole content


class RecoveryReport(NamedTuple):
    """What ``recover`` found."""

    files: int  # sealed blobs
    size_bytes: int  # their content
    leftovers: int  # unfinished files removed from tmp
    quarantined: int  # damaged files kept aside
    strangers: int  # names in the fan-out directories that are no blobs; left alone


class Usage(NamedTuple):
    """How full the store is, in bytes unless said otherwise."""

    stored: int  # content of all sealed blobs
    files: int  # number of sealed blobs
    free: int  # what blobs may still take: free space less the reserve, >= 0
    total: int  # size of the file system


class BlobStore:
    """The blobs on one node's disk. Call ``recover`` once before anything else.

    root     directory of its own, made when missing (its parent must exist).
    node     this node's number: ``create`` and ``put`` name blobs out of its range.
    reserve_bytes, reserve_percent  the smaller of the two stays free on the disk.
    """

    def __init__(
        self,
        root: Path,
        node: NodeNumber,
        files: Files | None = None,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        reserve_percent: int = RESERVE_PERCENT,
    ) -> None:
        self._root = root
        self._node = node
        self._files: Files = files if files is not None else OsFiles()
        self._reserve_bytes = reserve_bytes
        self._reserve_percent = reserve_percent

        self._stopping = False
        self._lock = threading.Lock()  # guards the next five
        self._stored = 0  # bytes
        self._count = 0
        self._allowance = 0  # bytes that may be written before the next look at the free space
        self._temporary_serial = 0
        self._fanouts: set[str] = set()  # fan-out directories known to be on disk

        self._names_lock = threading.Lock()  # held over a reservation's syncs, hence not _lock
        self._next = 0  # counter of the next blob; 0 before recovery
        self._reserved = 0  # counters below this are durably ours

    # --- start ------------------------------------------------------------------------------------

    def recover(self, counter_floor: int = 0) -> RecoveryReport:
        """The store is consistent and ready; what was not sealed is gone.

        Safe to repeat after a crash at any step of it. Reads every fan-out directory and stats
        every blob once.

        counter_floor  highest counter of this node's own blobs that the tree knows of: names stay
                       unique even when somebody emptied the directory.
        OSError        the disk does not work; nothing was lost.
        """
        files = self._files
        files.make_directory(self._root)
        files.sync_directory(self._root.parent)
        root_names = set(files.names(self._root))
        has_directories = any(name in root_names for name in _FANOUT_NAMES)
        reserved = self._load_reservation()

        # The reservation comes before the first fan-out directory: directories without one mean
        # that it was lost, not that the store is new.
        highest = counter_floor
        leftovers, quarantined = 0, 0
        if "tmp" in root_names:
            for name in sorted(files.names(self._root / "tmp")):
                highest = max(highest, self._own_counter(name))
                files.unlink(self._root / "tmp" / name)
                leftovers += 1
        if "quarantine" in root_names:
            for name in files.names(self._root / "quarantine"):
                highest = max(highest, self._own_counter(name))
                quarantined += 1
        count, stored, strangers = 0, 0, 0
        filled = []
        for fanout in _FANOUT_NAMES:
            if fanout not in root_names:
                continue
            entries = files.entries(self._root / fanout)
            if entries:
                filled.append(fanout)
            for entry in entries:
                blob = parse_blob_name(entry.name)
                if blob is None or _fanout(blob) != fanout or entry.is_directory:
                    _log.warning("node=%d not a blob: %s/%s", self._node, fanout, entry.name)
                    strangers += 1
                    continue
                highest = max(highest, self._own_counter(entry.name))
                count += 1
                stored += entry.size

        if reserved is None and not has_directories and highest == 0:
            reserved = 1
            self._save_reservation(reserved)
        elif reserved is None or highest >= reserved:
            lost_at = reserved
            reserved = highest + NAMES_JUMP
            _log.warning(
                "node=%d reservation of blob names lost (%s, highest seen %d): going on at %d",
                self._node, lost_at, highest, reserved,
            )  # fmt: skip
            self._save_reservation(reserved)

        for name in ("tmp", "quarantine", *_FANOUT_NAMES):
            if name not in root_names:
                files.make_directory(self._root / name)
        # Of a process that was killed, the machine living on, everything can be seen: also what it
        # had no time to sync. Whoever sees a blob from now on may rely on it.
        files.sync_directories([self._root / fanout for fanout in filled])
        files.sync_directory(self._root)

        with self._lock:
            self._stored, self._count = stored, count
            self._fanouts = set(_FANOUT_NAMES)
        with self._names_lock:
            self._next = self._reserved = reserved
        return RecoveryReport(count, stored, leftovers, quarantined, strangers)

    # --- writing ----------------------------------------------------------------------------------

    def create(self) -> Writer:
        """A writer of a new blob with a name of this node that was never given out before.

        NoSpaceError  the disk is full.
        """
        return self._writer(self.take_name(), None, received=False)

    def put(self, data: Data) -> tuple[BlobId, BlobSeal]:
        """Name and seal of a new blob with content ``data``: durable. For small content.

        NoSpaceError, OSError  nothing was stored.
        """
        with self.create() as writer:
            writer.write(0, data)
            return writer.blob, writer.seal()

    def receive(self, blob: BlobId, size: int, checksum: bytes) -> Writer:
        """A writer of this node's copy of a blob; ``seal`` stores it only when it is the right one.

        blob            any node's, this one's too (a copy that comes back).
        size, checksum  what the tree says of it, in bytes and BLAKE3.
        Idempotent: when a good copy is here already, ``seal`` keeps that one; a bad one goes to
        quarantine.

        NoSpaceError  ``size`` bytes do not fit.
        """
        with self._lock:
            space = self._files.space(self._root)
            if size > self._room(space):
                raise NoSpaceError(f"blob {blob_name(blob)} of {size} bytes does not fit")
        return self._writer(blob, BlobSeal(size, checksum), received=True)

    def follow(self, blob: BlobId) -> Writer:
        """A writer of this node's copy of a blob that another node still writes: as ``receive``,
        but size and checksum are what ``seal`` is told, and it must be told them.

        NoSpaceError  the disk is full.
        """
        return self._writer(blob, None, received=True)

    # --- reading ----------------------------------------------------------------------------------

    def open(self, blob: BlobId) -> int:
        """Read-only descriptor of the blob's file; the caller closes it.

        It stays readable when the blob is deleted or quarantined meanwhile.
        BlobMissingError  no copy here: ask the next holder.
        """
        try:
            return self._files.open(self._path(blob))
        except FileNotFoundError:
            raise BlobMissingError(f"no copy of blob {blob_name(blob)} here") from None

    def read(self, blob: BlobId, offset: int, length: int) -> bytes:
        """Bytes ``[offset, offset + length)``; shorter only at the end, past it ``b""``.

        Not verified against the checksum, which covers the whole (``verify`` does that).
        BlobMissingError  no copy here: ask the next holder.
        BlobCorruptError  the disk cannot read it: quarantined.
        """
        fd = self.open(blob)
        try:
            return self._files.pread(fd, length, offset)
        except OSError as exc:
            raise self._unreadable(blob, exc) from exc
        finally:
            self._files.close(fd)

    def chunks(self, blob: BlobId, offset: int, length: int) -> Iterator[bytes]:
        """The content from ``offset`` to the end, ``length`` bytes at a time, of one open file.

        Not verified, as for ``read``. BlobMissingError, BlobCorruptError.
        """
        fd = self.open(blob)
        try:
            while data := self._files.pread(fd, length, offset):
                yield data
                offset += len(data)
        except OSError as exc:
            raise self._unreadable(blob, exc) from exc
        finally:
            self._files.close(fd)

    def size(self, blob: BlobId) -> int:
        """Bytes in this node's copy. BlobMissingError."""
        fd = self.open(blob)
        try:
            return self._files.size(fd)
        finally:
            self._files.close(fd)

    def has(self, blob: BlobId) -> bool:
        """Whether there is a copy here (its content is not looked at)."""
        return self._files.exists(self._path(blob))

    def verify(
        self,
        blob: BlobId,
        size: int,
        checksum: bytes,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        """The copy here is exactly what the tree says; returns only then.

        Reads all of it, through a buffer of HASH_CHUNK_BYTES.
        pace  called with the length of each chunk before it is read, to wait in it; then what is
              read is the disk, not what the system remembers of the file.
        BlobMissingError  no copy here.
        BlobCorruptError  it was something else, or unreadable: now in quarantine.
        UnavailableError  ``stop`` was called: nobody knows.
        """
        fd = self.open(blob)
        try:
            before_chunk = self.check_running
            if pace is not None:
                self._files.forget_cache(fd)
                length = min(HASH_CHUNK_BYTES, size)
                before_chunk = functools.partial(pace, length)
            found = _hash_rest(self._files, fd, blake3(), 0, before_chunk)
        except OSError as exc:
            raise self._unreadable(blob, exc) from exc
        finally:
            self._files.close(fd)
        if found != BlobSeal(size, checksum):
            reason = "size" if found.size != size else "checksum"
            self.quarantine(blob, reason)
            raise BlobCorruptError(f"blob {blob_name(blob)}: wrong {reason}, quarantined")

    def stop(self) -> None:
        """Checks that are under way end: a node that stops can't wait for a large file."""
        self._stopping = True

    def check_running(self) -> None:
        """UnavailableError once ``stop`` was called."""
        if self._stopping:
            raise UnavailableError("the node stops")

    def names(self) -> Iterator[BlobId]:
        """All blobs here in ascending order.

        A directory is listed when the first name is asked for; blobs sealed or deleted after that
        may or may not show. Costs 8 bytes of memory a blob.
        """
        # Neighbouring counters lie in different directories, so ascending order needs a merge;
        # arrays instead of lists of strings make a million blobs 8 MB instead of 100.
        listings = []
        for fanout in _FANOUT_NAMES:
            try:
                found = self._files.names(self._root / fanout)
            except FileNotFoundError:
                continue  # removed by hand: its blobs are missing, which the caller will see
            blobs = (parse_blob_name(name) for name in found)
            listings.append(
                array("Q", sorted(b for b in blobs if b is not None and _fanout(b) == fanout))
            )
        return map(BlobId, heapq.merge(*listings))

    def set_reserve(self, reserve_bytes: int, reserve_percent: int) -> None:
        """From now on the smaller of the two stays free on the disk."""
        with self._lock:
            self._reserve_bytes, self._reserve_percent = reserve_bytes, reserve_percent
            self._allowance = 0

    def usage(self) -> Usage:
        """How full it is; costs one statvfs(2)."""
        space = self._files.space(self._root)
        with self._lock:
            return Usage(self._stored, self._count, max(0, self._room(space)), space.total)

    # --- removing ---------------------------------------------------------------------------------

    def delete(self, blob: BlobId) -> bool:
        """The copy here is gone; False when there was none. Its name is never given out again.

        Not synced: after a crash the blob may be back, as garbage that is collected once more.
        """
        try:
            size = self.size(blob)
            # Not under the lock: freeing a large file can take a while. Of two that delete it at
            # once, one finds nothing.
            self._files.unlink(self._path(blob))
        except (BlobMissingError, FileNotFoundError):
            return False
        with self._lock:
            self._count -= 1
            self._stored -= size
        return True

    def quarantine(self, blob: BlobId, reason: str) -> None:
        """The copy here is out of the way, kept as quarantine/<name>.<reason> for a person to see.

        Nothing happens when there is none. reason: a word, for the file's name.
        """
        directory = self._root / "quarantine"
        with self._lock:
            try:
                size = self.size(blob)
                target = directory / f"{blob_name(blob)}.{reason}"
                serial = 1
                while self._files.exists(target):
                    serial += 1
                    target = directory / f"{blob_name(blob)}.{reason}.{serial}"
                self._files.rename(self._path(blob), target)
            except (BlobMissingError, FileNotFoundError):
                return
            self._count -= 1
            self._stored -= size
        _log.warning("node=%d blob=%s damaged (%s): moved to quarantine", self._node,
                     blob_name(blob), reason)  # fmt: skip
        self._files.sync_directory(directory)
        self._files.sync_directory(self._path(blob).parent)

    # --- names ------------------------------------------------------------------------------------

    def take_name_nowait(self) -> BlobId | None:
        """``take_name`` if that does not need the disk, else None."""
        if not self._names_lock.acquire(blocking=False):
            return None
        try:
            if self._next >= self._reserved:
                return None
            self._next += 1
            return blob_id(self._node, self._next - 1)
        finally:
            self._names_lock.release()

    def take_name(self) -> BlobId:
        """A name for a blob without a file, never given out before. NoSpaceError."""
        with self._names_lock:
            assert self._next > 0, "recover() comes first"
            if self._next >= self._reserved:
                with _no_space():
                    self._save_reservation(self._next + NAMES_STRIDE)
                self._reserved = self._next + NAMES_STRIDE
            self._next += 1
            return blob_id(self._node, self._next - 1)

    def _save_reservation(self, counter: int) -> None:
        digits = b"%d" % counter
        line = b"pydi-names 1 %s %08x\n" % (digits, zlib.crc32(digits))
        save(self._files, self._root / "names", line)

    def _load_reservation(self) -> int | None:
        """The counter below which names may be in use; None when missing or damaged."""
        line = load(self._files, self._root / "names", 64)
        form = _NAMES_FORM.fullmatch(line) if line is not None else None
        if form is None or int(form[2], 16) != zlib.crc32(form[1]):
            return None
        return int(form[1])

    def _own_counter(self, name: str) -> int:
        """The counter in a file's name if this node named it, else 0; any suffix is ignored."""
        blob = parse_blob_name(name.partition(".")[0])
        return blob_counter(blob) if blob is not None and blob_node(blob) == self._node else 0

    # --- for Writer -------------------------------------------------------------------------------

    def _writer(self, blob: BlobId, expected: BlobSeal | None, *, received: bool) -> Writer:
        with self._lock:
            self._temporary_serial += 1
            # Two copies of one blob may be on their way at once.
            name = f"{blob_name(blob)}.{self._temporary_serial}"
        path = self._root / "tmp" / name
        with _no_space():
            fd = self._files.create(path)
        return Writer(self, self._files, blob, path, fd, expected, received)

    def _reserve(self, length: int) -> None:
        """``length`` bytes may be written without touching the reserve; else NoSpaceError."""
        with self._lock:
            self._allowance -= length
            if self._allowance >= 0:
                return
            room = self._room(self._files.space(self._root))
            if room < length:
                self._allowance = 0
                raise NoSpaceError(f"{length} bytes would touch the reserve; {room} are free")
            # Half, because the log and the tree write to the same disk.
            self._allowance = min(room // 2, SPACE_CHECK_BYTES) - length

    def _room(self, space: Space) -> int:
        return space.free - min(self._reserve_bytes, space.total * self._reserve_percent // 100)

    def _publish(self, temporary: Path, blob: BlobId, seal: BlobSeal, received: bool) -> None:
        """The synced file ``temporary`` is durably the blob, or gone if that was there already."""
        target = self._path(blob)
        while not self._place(temporary, target, seal.size):
            if not received:
                raise CorruptionError(f"{target} exists, but its name was never given out")
            try:
                self.verify(blob, seal.size, seal.checksum)
            except (BlobCorruptError, BlobMissingError):
                continue  # out of the way now
            self._files.unlink(temporary)
            # Whoever put it there may still be before this line.
            self._files.sync_directory(target.parent)
            return
        try:
            self._files.sync_directory(target.parent)
        except OSError:
            try:
                self.delete(blob)
            except OSError:
                pass  # the disk is failing; a blob that nobody knows is collected as garbage
            raise

    def _place(self, temporary: Path, target: Path, size: int) -> bool:
        """Whether ``temporary`` was renamed to ``target``; False when there is a file already."""
        while True:
            self._ensure_fanout(target.parent)
            with self._lock:
                if self._files.exists(target):
                    return False
                try:
                    self._files.rename(temporary, target)
                except FileNotFoundError:
                    if not self._files.exists(temporary):
                        raise
                    # Somebody removed the directory under us: make it again.
                    self._fanouts.discard(target.parent.name)
                    continue
                self._count += 1
                self._stored += size
                return True

    def _ensure_fanout(self, directory: Path) -> None:
        with self._lock:
            if directory.name in self._fanouts:
                return
            self._files.make_directory(directory)
            self._files.sync_directory(self._root)
            self._fanouts.add(directory.name)

    def _path(self, blob: BlobId) -> Path:
        return self._root / _fanout(blob) / blob_name(blob)

    def _unreadable(self, blob: BlobId, error: OSError) -> Exception:
        """The exception for a failed read; a medium error quarantines."""
        if error.errno != errno.EIO:
            return error
        self.quarantine(blob, "unreadable")
        return BlobCorruptError(f"blob {blob_name(blob)}: unreadable, quarantined")


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_turn(
    method: Callable[Concatenate[Writer, _P], _R],
) -> Callable[Concatenate[Writer, _P], _R]:
    """Waits for what another thread does in the writer. Else the descriptor could be closed, and
    be another file's, between two calls of the system."""

    @functools.wraps(method)
    def in_turn(self: Writer, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._turn:
            return method(self, *args, **kwargs)

    return in_turn


class Writer:
    """One blob being written; ``seal`` it or ``abort`` it (leaving a ``with`` block aborts).

    After any error of any method it is aborted: nothing of it is left, its name is not used again.
    """

    def __init__(
        self,
        store: BlobStore,
        files: Files,
        blob: BlobId,
        path: Path,
        fd: int,
        expected: BlobSeal | None,
        received: bool,
    ) -> None:
        self.blob = blob
        self._store = store
        self._files = files
        self._path = path
        self._fd = fd  # -1 once closed
        self._turn = threading.RLock()
        self._open = True  # neither sealed nor aborted
        self._expected = expected
        self._received = received  # a copy, which may be here already
        self._size = 0
        self._shared = False  # others write through the descriptor
        # The hasher covers [0, hashed); nothing below ``hashed`` has changed since.
        self._hasher = blake3()
        self._hashed = 0
        self._ahead: dict[int, int] = {}  # start and end of what came before its turn
        self._begun = 0  # the disk was told to begin with what lies below

    @property
    def is_open(self) -> bool:
        """Neither sealed nor aborted."""
        return self._open

    @property
    def size(self) -> int:
        """Bytes so far: the end of the furthest write."""
        assert self._open, "writer is closed"
        return self._files.size(self._fd) if self._shared else self._size

    def fileno(self) -> int:
        """The descriptor, to hand out for direct writing; it stays this writer's to close.

        From here on ``seal`` hashes the whole content again. Whoever holds a duplicate must have
        stopped writing when ``seal`` is called: later writes would change a sealed blob.
        """
        assert self._open, "writer is closed"
        self._shared = True
        return self._fd

    def lend(self) -> int:
        """As ``fileno``, to a borrower who says with ``grown`` what it has written, again where it
        has written over that: so ``seal`` need not hash everything again."""
        assert self._open, "writer is closed"
        return self._fd

    @_in_turn
    def write(self, offset: int, data: Data) -> None:
        """``data`` is in the file at ``offset`` (not yet durable).

        Hashed on the way while writes continue where the last one ended.
        NoSpaceError, OSError  aborted.
        """
        assert self._open, "writer is closed"
        length = len(data)
        if not length:
            return  # writing nothing past the end doesn't move the end (pwrite(2))
        with self._abort_on_error(), _no_space():
            self._store._reserve(length)
            self._files.pwrite(self._fd, data, offset)
        self._size = max(self._size, offset + length)
        if not self._shared:
            self._hash(offset, data)

    @_in_turn
    def grown(self, offset: int, length: int) -> bytes:
        """Bytes that a borrower has put into the file (`lend`); from now on they are as those of
        ``write``.

        BlobCorruptError  the file ends before: aborted. NoSpaceError, OSError likewise.
        """
        assert self._open, "writer is closed"
        with self._abort_on_error(), _no_space():
            self._store._reserve(length)
            data = self._files.pread(self._fd, length, offset)
            if len(data) != length:
                raise BlobCorruptError(f"blob {blob_name(self.blob)}: its file is too short")
        self._size = max(self._size, offset + length)
        self._hash(offset, data)
        return data

    def _hash(self, offset: int, data: Data) -> None:
        """Of what is in the file now, as far as it continues what came before."""
        length = len(data)
        if offset == self._hashed:
            self._hasher.update(data)
            self._hashed += length
            with self._abort_on_error():
                self._catch_up()
        elif offset < self._hashed:
            self._forget_hash()
        elif len(self._ahead) < AHEAD_MAX:
            self._ahead[offset] = max(self._ahead.get(offset, 0), offset + length)
        if self._hashed >= self._begun + WRITEBACK_BYTES:
            with self._abort_on_error():
                self._files.begin_writeback(self._fd, self._begun, self._hashed - self._begun)
            self._begun = self._hashed

    def _catch_up(self) -> None:
        """Hashes what came before its turn, as far as that has come now: chunks that travel
        together may overtake each other, and all behind the gap would be left to ``seal``."""
        while self._hashed in self._ahead:
            end = self._ahead.pop(self._hashed)
            while self._hashed < end:
                length = min(HASH_CHUNK_BYTES, end - self._hashed)
                data = self._files.pread(self._fd, length, self._hashed)
                self._hasher.update(data)
                self._hashed += len(data)
                if len(data) < length:
                    return  # truncated meanwhile

    @_in_turn
    def truncate(self, size: int) -> None:
        """The content ends at ``size``: cut, or extended with a hole. NoSpaceError, OSError."""
        assert self._open, "writer is closed"
        with self._abort_on_error(), _no_space():
            self._files.truncate(self._fd, size)
        self._size = size
        if size < self._hashed:
            self._forget_hash()

    @_in_turn
    def seal(
        self, expected_size: int | None = None, expected_checksum: bytes | None = None
    ) -> BlobSeal:
        """Size and checksum of the blob, which is complete, durable and immutable from now on.

        expected_*        what the content must be, when known (``receive`` knows both).
        BlobCorruptError  it is something else: nothing stored.
        NoSpaceError      nothing stored.
        OSError           the disk failed to sync: nothing stored; a retry needs a new writer.
        """
        assert self._open, "writer is closed"
        known = None not in (expected_size, expected_checksum) or self._expected is not None
        assert known or not self._received, "a copy of what?"
        files = self._files
        with self._abort_on_error(), _no_space():
            if self._shared:
                self._forget_hash()
            seal = _hash_rest(files, self._fd, self._hasher, self._hashed)
            for size, checksum in (
                (expected_size, expected_checksum),
                self._expected or (None,) * 2,
            ):
                if size not in (None, seal.size) or checksum not in (None, seal.checksum):
                    raise BlobCorruptError(
                        f"blob {blob_name(self.blob)}: {seal.size} bytes with checksum"
                        f" {seal.checksum.hex()} are not what was announced"
                    )
            files.fdatasync(self._fd)
            files.set_mode(self._fd, 0o400)
            self._close()
            self._store._publish(self._path, self.blob, seal, self._received)
        self._open = False
        return seal

    @_in_turn
    def abort(self) -> None:
        """Nothing of it is left. Does nothing when it is sealed or aborted already."""
        if not self._open:
            return
        self._open = False
        try:
            self._close()
        finally:
            try:
                self._files.unlink(self._path)
            except OSError:
                pass  # renamed away, or the disk is failing: recovery empties tmp

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def _forget_hash(self) -> None:
        self._hasher = blake3()
        self._hashed = 0
        self._ahead.clear()

    @contextmanager
    def _abort_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise


def _fanout(blob: BlobId) -> str:
    return _FANOUT_NAMES[blob_counter(blob) % FANOUT_COUNT]


def _hash_rest(
    files: Files,
    fd: int,
    hasher: blake3,
    offset: int,
    before_chunk: Callable[[], None] = lambda: None,
) -> BlobSeal:
    """Size and checksum of a file whose bytes below ``offset`` are in ``hasher`` already.

    before_chunk  called before each chunk; what it raises comes through.
    """
    while True:
        before_chunk()
        data = files.pread(fd, HASH_CHUNK_BYTES, offset)
        if not data:
            return BlobSeal(offset, hasher.digest())
        hasher.update(data)
        offset += len(data)


@contextmanager
def _no_space() -> Iterator[None]:
    """A full disk inside is NoSpaceError."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError("the disk is full") from exc
        raise
