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


@dataclass(frozen=True, slots=True)
class _Change:
    """One not yet durable change of names: all of it gets to the disk, or nothing."""

    removed: tuple[Path, _Node] | None
    added: tuple[Path, _Node] | None

    def touches(self, directory: Path) -> bool:
        return any(part is not None and part[0].parent == directory
                   for part in (self.removed, self.added))  # fmt: skip

    def apply(self, names: dict[Path, _Node]) -> None:
        # Creation and removal of a name may get there in another order than they were made.
        if self.removed is not None and names.get(self.removed[0]) is self.removed[1]:
            del names[self.removed[0]]
        if self.added is not None:
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
        self._changes: list[_Change] = []
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
        names = dict(self._durable_names)
        for change in self._changes:
            if self._random.random() < keep:
                change.apply(names)
        copies: dict[int, _Node] = {}
        for path in sorted(names):
            if path == self.root or path.parent in after._names:
                node = names[path]
                copy = copies.setdefault(id(node), self._survivor(node))
                after._names[path] = copy
        after._durable_names = dict(after._names)
        return after

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
        self._file(fd)
        del self._fds[fd]  # close(2): released even when it reports an error
        self._call("close")

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
        waiting = []
        for change in self._changes:
            if change.touches(path):
                change.apply(self._durable_names)
            else:
                waiting.append(change)
        self._changes = waiting

    def names(self, path: Path) -> list[str]:
        self._call("names")
        self._need_directory(path)
        found = [p.name for p in self._names if p.parent == path and p != path]
        self._random.shuffle(found)
        return found

    def entries(self, path: Path) -> list[DirectoryEntry]:
        self._call("entries")
        self._need_directory(path)
        return [
            DirectoryEntry(p.name, 0, True)
            if isinstance(node, _Directory)
            else DirectoryEntry(p.name, len(node.content), False)
            for p, node in self._names.items()
            if p.parent == path and p != path
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
        change = _Change(removed, added)
        self._changes.append(change)
        change.apply(self._names)

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
