"""A disk in memory behind the ``Files`` seam, which forgets at a crash what was not synced.

    disk = SimulatedDisk(seed)
    disk.fail(at=7, error=errno.EIO)      # or crash(at=7): the 7th call from now
    ... code under test with files=disk ...
    disk = disk.crashed()                 # what a restarted machine finds

What a crash may leave (drawn from the seed, within what POSIX permits):
- file content: everything up to the last fdatasync, and of each later write all, nothing or a part
  in whole sectors, each write on its own, so in any order; sectors never written read as zeros;
- names: what was in a directory when it was last synced, and of the later creations, renames and
  removals any choice; a rename happens as a whole or not at all; a file that no name on the disk
  leads to is gone, whatever was synced into it;
- mode bits are not modelled beyond what ``mode`` shows, they are no promise of the seam.

A failed fdatasync behaves like Linux: the pages count as clean afterwards, so a second call
succeeds while the content never gets to the disk.

Deterministic: same seed and calls, same result. Made for one thread at a time.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydi_node.blobs.files import Data, DirectoryEntry, Space

SECTOR_BYTES = 512


class Crash(BaseException):
    """The machine stops at this call. Not an Exception: nothing may handle it."""


@dataclass(eq=False, slots=True)
class _File:
    content: bytearray = field(default_factory=bytearray)  # as processes see it
    durable: bytearray = field(default_factory=bytearray)  # as it is on the disk
    # Since the last sync, in order: (offset, bytes) of a write, or (size, None) of a truncation.
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    mode: int = 0o600


@dataclass(eq=False, slots=True)
class _Directory:
    """Only its identity matters: names are kept in one map of whole paths."""


_Node = _File | _Directory


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """One not yet durable change of names: all of it gets to the disk, or nothing."""

    number: int  # 1, 2, 3 ... in the order they were made
    removed: tuple[Path, _Node] | None
    added: tuple[Path, _Node] | None

    @property
    def directories(self) -> list[Path]:
        return [part[0].parent for part in (self.removed, self.added) if part is not None]

    def apply(self, names: dict[Path, _Node], newest: dict[Path, int]) -> None:
        """Do it, except where a later change of the same name was done before (``newest``: numbers
        of the last changes, by name)."""
        if self.removed is not None:
            path, node = self.removed
            newest[path] = max(self.number, newest.get(path, 0))
            if names.get(path) is node:
                del names[path]
        if self.added is not None and newest.get(self.added[0], 0) < self.number:
            newest[self.added[0]] = self.number
            names[self.added[0]] = self.added[1]


class SimulatedDisk:
    """``Files`` in memory. ``root`` exists and is durable; so is nothing else.

    calls   number of calls so far: for enumerating where to crash or to fail.
    trace   their names, for messages of failing tests.
    """

    def __init__(self, seed: int, root: Path = Path("/disk"), total_bytes: int = 1 << 40) -> None:
        self.root = root
        self.total_bytes = total_bytes
        self.calls = 0
        self.trace: list[str] = []
        self._seed = seed
        self._random = random.Random(seed)
        self._names: dict[Path, _Node] = {root: _Directory()}
        self._durable_names = dict(self._names)
        self._newest: dict[Path, int] = {}
        self._durable_newest: dict[Path, int] = {}
        self._change_count = 0
        self._listings: dict[Path, dict[str, _Node]] = {}  # _names by directory
        # Not yet durable, in order; each also under the directories it touches, so that syncing one
        # of hundreds does not look at all.
        self._changes: dict[_Change, None] = {}
        self._changes_of: dict[Path, dict[_Change, None]] = {}
        self._fds: dict[int, _File] = {}
        self._next_fd = 1000  # never a number that the process has open
        self._crash_at = -1
        self._faults: dict[int, int] = {}  # call number -> errno

    # --- for tests --------------------------------------------------------------------------------

    def crash(self, at: int) -> None:
        """The ``at``-th call from now (the first is 0) raises Crash and does nothing, or, when it
        writes, a part of its work."""
        self._crash_at = self.calls + at

    def fail(self, at: int, error: int) -> None:
        """The ``at``-th call from now raises OSError(error)."""
        self._faults[self.calls + at] = error

    def crashed(self) -> SimulatedDisk:
        """The disk as the machine finds it after a power cut now. This one stays as it is."""
        after = SimulatedDisk(self._random.getrandbits(32), self.root, self.total_bytes)
        # Sometimes the extremes: they are the likeliest in life and find the most.
        keep = self._random.choice((0.0, 0.5, 0.5, 1.0))
        names, newest = dict(self._durable_names), dict(self._durable_newest)
        for change in self._changes:
            if self._random.random() < keep:
                change.apply(names, newest)
        copies: dict[int, _Node] = {}
        for path in sorted(names):
            if path == self.root or path.parent in after._names:
                node = names[path]
                copy = copies.setdefault(id(node), self._survivor(node))
                after._names[path] = copy
                if path != self.root:
                    after._listings.setdefault(path.parent, {})[path.name] = copy
        after._durable_names = dict(after._names)
        return after

    def killed(self) -> SimulatedDisk:
        """This disk after the process died and the machine went on: nothing is lost, all is
        closed, no crash or fault is due."""
        self._fds.clear()
        self._crash_at = -1
        self._faults.clear()
        return self

    def flip(self, path: Path, offset: int, mask: int) -> None:
        """Bits of one byte on the disk change by themselves."""
        file = self._file_named(path)
        file.content[offset] ^= mask
        if offset < len(file.durable):
            file.durable[offset] ^= mask

    def content(self, path: Path) -> bytes:
        return bytes(self._file_named(path).content)

    def put_content(self, path: Path, content: bytes) -> None:
        """Replace a file's bytes, durably, behind everybody's back."""
        file = self._file_named(path)
        file.content[:] = content
        file.durable[:] = content
        file.pending.clear()

    def paths(self) -> list[Path]:
        """All files, ascending."""
        return sorted(p for p, node in self._names.items() if isinstance(node, _File))

    def mode(self, path: Path) -> int:
        return self._file_named(path).mode

    def open_count(self) -> int:
        """Descriptors not closed yet."""
        return len(self._fds)

    # --- Files ------------------------------------------------------------------------------------

    def create(self, path: Path) -> int:
        self._call("create")
        self._need_directory(path.parent)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        file = _File()
        self._change(None, (path, file))
        return self._new_fd(file)

    def open(self, path: Path, *, writable: bool = False) -> int:
        self._call("open")
        return self._new_fd(self._file_named(path))

    def close(self, fd: int) -> None:
        known = self._fds.pop(fd, None)  # close(2): released even when it reports an error
        self._call("close")
        if known is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._call("pread")
        return bytes(self._file(fd).content[offset : offset + length])

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        file = self._file(fd)
        data = bytes(data)
        try:
            self._call("pwrite")
        except (OSError, Crash):
            # Interrupted in the middle: any part of it may be there.
            part = data[: self._random.randint(0, len(data))]
            self._write(file, offset, part)
            raise
        if offset + len(data) - len(file.content) > self._free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(file, offset, data)

    def truncate(self, fd: int, size: int) -> None:
        self._call("truncate")
        file = self._file(fd)
        _resize(file.content, size)
        file.pending.append((size, None))

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._call("allocate")
        file = self._file(fd)
        grown = offset + length - len(file.content)
        if grown > self._free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if grown > 0:
            _resize(file.content, offset + length)
            file.pending.append((offset + length, b""))

    def size(self, fd: int) -> int:
        self._call("size")
        return len(self._file(fd).content)

    def set_mode(self, fd: int, mode: int) -> None:
        self._call("set_mode")
        self._file(fd).mode = mode

    def fdatasync(self, fd: int) -> None:
        file = self._file(fd)
        try:
            self._call("fdatasync")
        except OSError:
            file.pending.clear()
            raise
        # Not a copy of content: what an earlier, failed sync dropped stays off the disk.
        for step in file.pending:
            _apply(file.durable, step)
        file.pending.clear()

    def begin_writeback(self, fd: int, offset: int, length: int) -> None:
        """Nothing is durable by it, and nothing is less so: any order of writing is possible."""
        self._call("begin_writeback")
        self._file(fd)

    def forget_cache(self, fd: int) -> None:
        self._call("forget_cache")
        file = self._file(fd)
        if not file.pending:  # pages not yet written stay
            file.content[:] = file.durable

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        self._need_directory(target.parent)
        node = self._file_named(source)
        self._change((source, node), (target, node))

    def unlink(self, path: Path) -> None:
        self._call("unlink")
        self._change((path, self._file_named(path)), None)

    def exists(self, path: Path) -> bool:
        self._call("exists")
        return path in self._names

    def make_directory(self, path: Path) -> bool:
        self._call("make_directory")
        self._need_directory(path.parent)
        if path in self._names:
            return False
        self._change(None, (path, _Directory()))
        return True

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")
        self._need_directory(path)
        for change in self._changes_of.pop(path, {}):
            if change in self._changes:  # else the other directory of a rename was synced before
                change.apply(self._durable_names, self._durable_newest)
                del self._changes[change]

    def sync_directories(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.sync_directory(path)

    def names(self, path: Path) -> list[str]:
        self._call("names")
        self._need_directory(path)
        found = list(self._listings.get(path, {}))
        self._random.shuffle(found)
        return found

    def entries(self, path: Path) -> list[DirectoryEntry]:
        self._call("entries")
        self._need_directory(path)
        return [
            DirectoryEntry(name, 0, True)
            if isinstance(node, _Directory)
            else DirectoryEntry(name, len(node.content), False)
            for name, node in self._listings.get(path, {}).items()
        ]

    def space(self, path: Path) -> Space:
        self._call("space")
        return Space(self._free(), self.total_bytes)

    # --- inside -----------------------------------------------------------------------------------

    def _call(self, name: str) -> None:
        number = self.calls
        self.calls += 1
        self.trace.append(name)
        if self._crash_at >= 0 and number >= self._crash_at:
            raise Crash(f"call {number}: {name}")
        error = self._faults.pop(number, None)
        if error is not None:
            raise OSError(error, os.strerror(error))

    def _survivor(self, node: _Node) -> _Node:
        """A new node as the crash leaves it."""
        if isinstance(node, _Directory):
            return _Directory()
        durable = bytearray(node.durable)
        keep = self._random.choice((0.0, 0.5, 0.8, 1.0))
        for position, data in node.pending:
            if self._random.random() >= keep:
                continue
            if data is not None and self._random.random() < 0.5:
                position, data = self._torn(position, data)
            _apply(durable, (position, data))
        return _File(bytearray(durable), durable, mode=node.mode)

    def _torn(self, offset: int, data: bytes) -> tuple[int, bytes]:
        """A run of whole sectors out of a write."""
        sectors = range(offset // SECTOR_BYTES, (offset + len(data)) // SECTOR_BYTES + 1)
        first, last = sorted(self._random.choices(sectors, k=2))
        low = max(offset, first * SECTOR_BYTES)
        high = min(offset + len(data), last * SECTOR_BYTES)
        return low, data[low - offset : max(low, high) - offset]

    def _write(self, file: _File, offset: int, data: bytes) -> None:
        if data:
            file.pending.append((offset, data))
            _apply(file.content, (offset, data))

    def _change(self, removed: tuple[Path, _Node] | None, added: tuple[Path, _Node] | None) -> None:
        self._change_count += 1
        change = _Change(self._change_count, removed, added)
        self._changes[change] = None
        for directory in change.directories:
            self._changes_of.setdefault(directory, {})[change] = None
        change.apply(self._names, self._newest)
        for path in {part[0] for part in (removed, added) if part is not None}:
            listing = self._listings.setdefault(path.parent, {})
            if path in self._names:
                listing[path.name] = self._names[path]
            else:
                listing.pop(path.name, None)

    def _free(self) -> int:
        nodes = {id(n): n for n in self._names.values() if isinstance(n, _File)}
        return self.total_bytes - sum(len(node.content) for node in nodes.values())

    def _new_fd(self, file: _File) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = file
        return self._next_fd

    def _file(self, fd: int) -> _File:
        if fd not in self._fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fds[fd]

    def _file_named(self, path: Path) -> _File:
        node = self._names.get(path)
        if not isinstance(node, _File):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _need_directory(self, path: Path) -> None:
        if not isinstance(self._names.get(path), _Directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _apply(content: bytearray, step: tuple[int, bytes | None]) -> None:
    position, data = step
    if data is None:
        _resize(content, position)
        return
    if position > len(content):
        _resize(content, position)
    content[position : position + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size <= len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


# --- mistakes: disks on which any code behaves as if it had made them -----------------------------


class NoFdatasync(SimulatedDisk):
    """The content of files is never synced."""

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")


class NoDirectorySync(SimulatedDisk):
    """Directories are never synced."""

    def sync_directory(self, path: Path) -> None:
        self._call("sync_directory")


class RenameBeforeFdatasync(SimulatedDisk):
    """The sync of a new file comes after its renaming."""

    _owed: int | None = None

    def fdatasync(self, fd: int) -> None:
        self._call("fdatasync")
        self._owed = self._new_fd(self._file(fd))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if self._owed is not None:
            super().fdatasync(self._owed)
            del self._fds[self._owed]
            self._owed = None
