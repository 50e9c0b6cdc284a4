"""A whole file system in dictionaries, with the methods of `pydi_fs.vfs.vfs.Vfs`.

The partner of tests that need a vfs but no cluster: the bindings run on it, and the real Vfs can
be compared with it. It is strict where POSIX is, keeps content in blocks so that holes are real,
and publishes a new version at flush and fsync as the real one does. One asyncio loop owns it.

``cached = False`` makes the ``*_nowait`` twins know nothing, which sends every request the slow
way. ``block_reads`` holds back every read until the event is set.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pydi_fs.fuse.filesystem import OnInvalidate
from pydi_fs.vfs.local_blobs import LocalBlob
from pydi_node.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    TIME_NOW,
    XATTR_CREATE,
    XATTR_REPLACE,
    Caller,
)
from pydi_node.errors import FileError
from pydi_node.ids import INT64_MAX, ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import NAME_MAX_BYTES, Attr, DirEntry, Statfs

BLOCK_BYTES = 65536
TOTAL_BYTES = 1 << 40

# Done when the binding's kernel shows the change, as whoever made it would wait for; None: at once.
Told = asyncio.Future[None] | None

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16


@dataclass(slots=True)
class _Inode:
    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 1
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    version: int = 0
    changed: int = 0
    dirty: bool = False
    open_count: int = 0
    target: bytes = b""
    parent: Ino = ROOT_INO  # of a directory
    blocks: dict[int, bytearray] = field(default_factory=dict)
    entries: dict[bytes, tuple[int, Ino]] = field(default_factory=dict)  # name -> (cookie, inode)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class _Lock(NamedTuple):
    owner: int
    kind: int
    start: int
    end: int
    pid: int


class _Handle(NamedTuple):
    ino: Ino
    flags: int

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class MemoryVfs:
    """See the module. ``clock`` gives ns since 1970."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.on_invalidate: OnInvalidate = lambda inos, entries, everything: None
        self.on_changed: Callable[[Ino], None] = lambda ino: None
        self.on_lease: Callable[[float], None] = lambda until_s: None
        self.cached = True
        self.block_reads: asyncio.Event | None = None
        self._clock = clock
        self._index = 0
        self._last_ino = int(ROOT_INO)
        self._last_cookie = 0
        self._last_fh = 0
        self._ends: dict[tuple[Ino, int], int] = {}  # last cookie of each listing
        self._inodes: dict[Ino, _Inode] = {}
        self._handles: dict[int, _Handle] = {}
        self._locks: dict[tuple[Ino, bool], list[_Lock]] = {}
        self._lock_waiters: list[asyncio.Future[None]] = []
        root = _Inode(ROOT_INO, stat.S_IFDIR | 0o777, 0, 0, nlink=2)
        self._touch(root, content=True)
        root.atime_ns = root.btime_ns = root.mtime_ns
        self._inodes[ROOT_INO] = root

    @property
    def open_handles(self) -> int:
        """Files that are open: a binding that leaks none ends at 0."""
        return len(self._handles)

    # --- names and attributes -----------------------------------------------------------------

    pushes = 0  # changes made elsewhere; tests move it
    lease = 3600.0

    def lease_s(self) -> float:
        return self.lease

    def is_settled(self, attr: Attr) -> bool:
        return True

    def is_absent(self, parent: Ino, name: bytes) -> bool:
        return True

    def lookup_nowait(self, parent: Ino, name: bytes) -> Attr | None:
        return self._lookup(parent, name) if self.cached else None

    async def lookup(self, parent: Ino, name: bytes) -> Attr:
        return self._lookup(parent, name)

    def _lookup(self, parent: Ino, name: bytes) -> Attr:
        directory = self._directory(parent)
        if name == b".":
            return self._attr(directory)
        if name == b"..":
            return self._attr(self._inode(directory.parent))
        return self._attr(self._child(directory, name))

    def entry_nowait(self, parent: Ino, name: bytes) -> Attr | None:
        directory = self._inodes.get(parent)
        if not self.cached or directory is None or name not in directory.entries:
            return None
        return self.getattr_nowait(directory.entries[name][1])

    def getattr_nowait(self, ino: Ino) -> Attr | None:
        inode = self._inodes.get(ino)
        return self._attr(inode) if self.cached and inode is not None else None

    async def getattr(self, ino: Ino) -> Attr:
        return self._attr(self._inode(ino))

    async def setattr(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        fh: int | None = None,
    ) -> Attr:
        inode = self._inode(ino)
        if size is not None:
            if stat.S_ISDIR(inode.mode):
                raise FileError(errno.EISDIR)
            self._truncate(inode, size)
            if fh is None:
                self._publish(inode)
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | mode
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
        if atime_ns is not None:
            inode.atime_ns = self._clock() if atime_ns == TIME_NOW else atime_ns
        if mtime_ns is not None:
            inode.mtime_ns = self._clock() if mtime_ns == TIME_NOW else mtime_ns
        self._touch(inode)
        return self._attr(inode)

    async def access(self, caller: Caller, ino: Ino, mask: int) -> None:
        mode = self._inode(ino).mode
        if caller.uid != 0 and mask & ~((mode | mode >> 3 | mode >> 6) & 7):
            raise FileError(errno.EACCES)

    async def readlink(self, ino: Ino) -> bytes:
        inode = self._inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise FileError(errno.EINVAL)
        return inode.target

    def mkdir_nowait(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, umask: int = 0
    ) -> Attr | None:
        return None  # as the real one where it must ask

    def symlink_nowait(
        self, caller: Caller, parent: Ino, name: bytes, target: bytes
    ) -> Attr | None:
        return None

    def unlink_nowait(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        return False

    def rmdir_nowait(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        return False

    def rename_nowait(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> bool:
        return False

    async def mkdir(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, umask: int = 0
    ) -> Attr:
        return self._attr(self._make(caller, parent, name, stat.S_IFDIR | mode & ~umask))

    async def mknod(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, rdev: int, umask: int = 0
    ) -> Attr:
        inode = self._make(caller, parent, name, mode & ~umask)
        inode.rdev = rdev
        return self._attr(inode)

    async def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Attr:
        inode = self._make(caller, parent, name, stat.S_IFLNK | 0o777)
        inode.target = target
        inode.size = len(target)
        return self._attr(inode)

    async def link(self, caller: Caller, ino: Ino, new_parent: Ino, new_name: bytes) -> Attr:
        inode = self._inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise FileError(errno.EPERM)
        self._add(self._directory(new_parent), new_name, inode)
        inode.nlink += 1
        self._touch(inode)
        return self._attr(inode)

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        directory = self._directory(parent)
        inode = self._child(directory, name)
        if stat.S_ISDIR(inode.mode):
            raise FileError(errno.EISDIR)
        self._remove(directory, name, inode)

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        directory = self._directory(parent)
        inode = self._child(directory, name)
        if not stat.S_ISDIR(inode.mode):
            raise FileError(errno.ENOTDIR)
        if inode.entries:
            raise FileError(errno.ENOTEMPTY)
        self._remove(directory, name, inode)

    async def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FileError(errno.EINVAL)
        source, target = self._directory(parent), self._directory(new_parent)
        inode = self._child(source, name)
        replaced = self._inodes.get(target.entries.get(new_name, (0, Ino(0)))[1])
        if self._is_below(target, inode):
            raise FileError(errno.EINVAL)
        if flags == RENAME_EXCHANGE:
            if replaced is None:
                raise FileError(errno.ENOENT)
            if self._is_below(source, replaced):
                raise FileError(errno.EINVAL)
            cookie, new_cookie = source.entries[name][0], target.entries[new_name][0]
            source.entries[name] = (cookie, replaced.ino)
            target.entries[new_name] = (new_cookie, inode.ino)
            self._moved(replaced, target, source)
            self._moved(inode, source, target)
            return
        if replaced is inode:
            return
        if replaced is not None:
            if flags == RENAME_NOREPLACE:
                raise FileError(errno.EEXIST)
            if stat.S_ISDIR(inode.mode) != stat.S_ISDIR(replaced.mode):
                raise FileError(errno.EISDIR if stat.S_ISDIR(replaced.mode) else errno.ENOTDIR)
            if replaced.entries:
                raise FileError(errno.ENOTEMPTY)
            self._remove(target, new_name, replaced)
        self._add(target, new_name, inode)
        del source.entries[name]
        self._moved(inode, source, target)

    def lacks_xattr(self, ino: Ino, name: bytes) -> bool:
        return self.cached and name not in self._inode(ino).xattrs

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        value = self._inode(ino).xattrs.get(name)
        if value is None:
            raise FileError(errno.ENODATA)
        return value

    async def listxattr(self, caller: Caller, ino: Ino) -> list[bytes]:
        return sorted(self._inode(ino).xattrs)

    async def setxattr(
        self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int
    ) -> None:
        inode = self._inode(ino)
        if flags & XATTR_CREATE and name in inode.xattrs:
            raise FileError(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in inode.xattrs:
            raise FileError(errno.ENODATA)
        inode.xattrs[name] = value
        self._touch(inode)

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        inode = self._inode(ino)
        if inode.xattrs.pop(name, None) is None:
            raise FileError(errno.ENODATA)
        self._touch(inode)

    async def statfs(self) -> Statfs:
        used = sum(len(inode.blocks) * BLOCK_BYTES for inode in self._inodes.values())
        return Statfs(TOTAL_BYTES, TOTAL_BYTES - used, len(self._inodes))

    # --- directories --------------------------------------------------------------------------

    async def entries(self, ino: Ino, reader: int, cookie: int, limit: int) -> list[DirEntry]:
        directory = self._directory(ino)
        found = []
        if cookie == 0:
            # Names that are made later are not shown, or a listing might never end.
            self._ends[ino, reader] = self._last_cookie
        end = self._ends.get((ino, reader), INT64_MAX)
        # Cookies grow in the order in which names were added, which is the order of the dict.
        for name, (entry_cookie, child) in directory.entries.items():
            if cookie < entry_cookie <= end:
                found.append(DirEntry(entry_cookie, name, self._attr(self._inodes[child])))
                if len(found) == limit:
                    break
        return found

    async def fsyncdir(self, ino: Ino) -> None:
        pass

    async def sync(self) -> None:
        for inode in self._inodes.values():
            self._publish(inode)

    # --- files --------------------------------------------------------------------------------

    def open_nowait(self, caller: Caller, ino: Ino, flags: int) -> int | None:
        inode = self._inodes.get(ino)
        if not self.cached or inode is None or stat.S_ISDIR(inode.mode) or flags & os.O_TRUNC:
            return None
        return self._open(inode, flags)

    async def open(self, caller: Caller, ino: Ino, flags: int) -> int:
        inode = self._inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise FileError(errno.EISDIR)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            self._truncate(inode, 0)
        return self._open(inode, flags)

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int]:
        directory = self._directory(parent)
        if name in directory.entries and not flags & os.O_EXCL:
            inode = self._child(directory, name)
            fh = await self.open(caller, inode.ino, flags)
        else:
            inode = self._make(caller, parent, name, stat.S_IFREG | mode & ~umask)
            fh = self._open(inode, flags)
        return self._attr(inode), fh

    async def tmpfile(
        self, caller: Caller, parent: Ino, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int]:
        self._directory(parent)
        inode = self._new_inode(caller, stat.S_IFREG | mode & ~umask)
        inode.nlink = 0
        return self._attr(inode), self._open(inode, flags)

    def local_file_nowait(self, fh: int) -> tuple[bool, LocalBlob | None]:
        return self.cached, None

    async def local_file(self, fh: int) -> None:
        """Nothing here is in a file."""

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        handle = self._handle(fh)
        if not handle.readable:
            raise FileError(errno.EBADF)
        if self.block_reads is not None:
            await self.block_reads.wait()
        inode = self._inode(handle.ino)
        end = min(offset + size, inode.size)
        parts = []
        while offset < end:
            block, start = divmod(offset, BLOCK_BYTES)
            length = min(BLOCK_BYTES - start, end - offset)
            content = inode.blocks.get(block)
            parts.append(bytes(length) if content is None else content[start : start + length])
            offset += length
        return b"".join(parts)

    async def write(
        self, fh: int, offset: int, data: bytes | memoryview, append: bool | None = None
    ) -> int:
        return self._write(fh, offset, data, append)

    def _write(self, fh: int, offset: int, data: bytes | memoryview, append: bool | None) -> int:
        handle = self._handle(fh)
        if not handle.writable:
            raise FileError(errno.EBADF)
        inode = self._inode(handle.ino)
        if handle.flags & os.O_APPEND if append is None else append:
            offset = inode.size
        self._store(inode, offset, data)
        inode.size = max(inode.size, offset + len(data))
        self._content_changed(inode)
        return len(data)

    def create_nowait(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int] | None:
        return None

    def write_nowait(
        self, fh: int, offset: int, data: bytes | memoryview, append: bool | None = None
    ) -> int | None:
        return self._write(fh, offset, data, append) if self.cached else None

    def flush_nowait(self, fh: int) -> bool:
        return self.cached and not self._inode(self._handle(fh).ino).dirty

    async def flush(self, fh: int) -> None:
        self._publish(self._inode(self._handle(fh).ino))

    async def fsync(self, fh: int, datasync: bool = False) -> None:
        self._publish(self._inode(self._handle(fh).ino))

    async def release(self, fh: int) -> None:
        self._release(fh)

    def release_nowait(self, fh: int) -> bool:
        if not self.cached or self._inode(self._handle(fh).ino).dirty:
            return False
        self._release(fh)
        return True

    def park(self, fh: int) -> bool:
        handle = self._handle(fh)
        return self.cached and not handle.writable and not self._inode(handle.ino).dirty

    def unpark(self, fh: int, attr: Attr) -> bool:
        return self._attr(self._inode(self._handle(fh).ino)) == attr

    def _release(self, fh: int) -> None:
        handle = self._handle(fh)
        del self._handles[fh]
        inode = self._inode(handle.ino)
        self._publish(inode)
        inode.open_count -= 1
        self._purge(inode)

    def ino_of(self, fh: int) -> Ino:
        return self._handle(fh).ino

    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        handle = self._handle(fh)
        if not handle.writable:
            raise FileError(errno.EBADF)
        if length < 1:
            raise FileError(errno.EINVAL)
        inode = self._inode(handle.ino)
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise FileError(errno.EOPNOTSUPP)
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            self._erase(inode, offset, min(offset + length, inode.size))
        if not mode & FALLOC_KEEP_SIZE:
            inode.size = max(inode.size, offset + length)
        self._content_changed(inode)

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        inode = self._inode(self._handle(fh).ino)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FileError(errno.EINVAL)
        if offset >= inode.size:
            raise FileError(errno.ENXIO)
        while offset < inode.size:
            block = offset // BLOCK_BYTES
            if (block in inode.blocks) == (whence == os.SEEK_DATA):
                return offset
            offset = (block + 1) * BLOCK_BYTES
        if whence == os.SEEK_DATA:
            raise FileError(errno.ENXIO)
        return inode.size

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        size = self._inode(self._handle(fh_in).ino).size
        data = await self.read(fh_in, offset_in, min(length, max(0, size - offset_in)))
        return await self.write(fh_out, offset_out, data) if data else 0

    # --- locks --------------------------------------------------------------------------------

    async def getlk(
        self, fh: int, owner: int, kind: int, start: int, end: int, pid: int
    ) -> tuple[int, int, int, int]:
        found = self._conflict((self._handle(fh).ino, False), owner, kind, start, end)
        if found is None:
            return (fcntl.F_UNLCK, start, end, pid)
        return (found.kind, found.start, found.end, found.pid)

    def setlk_nowait(
        self, fh: int, owner: int, kind: int, start: int, end: int, pid: int, wait: bool
    ) -> bool:
        return False

    async def setlk(
        self,
        fh: int,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        wait: bool,
        flock: bool = False,
    ) -> None:
        key = (self._handle(fh).ino, flock)
        while kind != fcntl.F_UNLCK and self._conflict(key, owner, kind, start, end) is not None:
            if not wait:
                raise FileError(errno.EAGAIN)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._lock_waiters.append(waiter)
            await waiter
        kept = []
        for lock in self._locks.get(key, []):
            if lock.owner != owner or lock.end < start or end < lock.start:
                kept.append(lock)
                continue
            if lock.start < start:
                kept.append(lock._replace(end=start - 1))
            if end < lock.end:
                kept.append(lock._replace(start=end + 1))
        if kind != fcntl.F_UNLCK:
            kept.append(_Lock(owner, kind, start, end, pid))
        self._locks[key] = kept
        waiters, self._lock_waiters = self._lock_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _conflict(
        self, key: tuple[Ino, bool], owner: int, kind: int, start: int, end: int
    ) -> _Lock | None:
        for lock in self._locks.get(key, []):
            if (
                lock.owner != owner
                and lock.start <= end
                and start <= lock.end
                and fcntl.F_WRLCK in (lock.kind, kind)
            ):
                return lock
        return None

    # --- changes as if made on another machine ------------------------------------------------

    def change_elsewhere(self, path: bytes, content: bytes) -> Told:
        """Another machine wrote ``content`` to ``path`` (relative to the root) and closed it."""
        inode = self._walk(path)
        inode.blocks.clear()
        self._store(inode, 0, content)
        inode.size = len(content)
        self._content_changed(inode)
        self._publish(inode)
        return self.on_invalidate((inode.ino,), (), False)

    def replace_elsewhere(self, path: bytes, content: bytes) -> Told:
        """Another machine put a new file in the place of ``path``, or made it."""
        directory, name = self._walk(os.path.dirname(path)), os.path.basename(path)
        touched = [directory.ino]
        if name in directory.entries:
            old = self._child(directory, name)
            self._remove(directory, name, old)
            touched.append(old.ino)
        inode = self._make(Caller(0, 0), directory.ino, name, stat.S_IFREG | 0o644)
        self._store(inode, 0, content)
        inode.size = len(content)
        self._content_changed(inode)
        self._publish(inode)
        return self.on_invalidate(tuple(touched), ((directory.ino, name),), False)

    def remove_elsewhere(self, path: bytes) -> Told:
        """Another machine unlinked ``path``."""
        directory, name = self._walk(os.path.dirname(path)), os.path.basename(path)
        inode = self._child(directory, name)
        self._remove(directory, name, inode)
        return self.on_invalidate((directory.ino, inode.ino), ((directory.ino, name),), False)

    def _walk(self, path: bytes) -> _Inode:
        inode = self._inode(ROOT_INO)
        for name in path.split(b"/"):
            if name:
                inode = self._child(inode, name)
        return inode

    # --- inside -------------------------------------------------------------------------------

    def _inode(self, ino: Ino) -> _Inode:
        inode = self._inodes.get(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        return inode

    def _directory(self, ino: Ino) -> _Inode:
        inode = self._inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise FileError(errno.ENOTDIR)
        return inode

    def _child(self, directory: _Inode, name: bytes) -> _Inode:
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        entry = directory.entries.get(name)
        if entry is None:
            raise FileError(errno.ENOENT)
        return self._inode(entry[1])

    def _handle(self, fh: int) -> _Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise FileError(errno.EBADF)
        return handle

    def _open(self, inode: _Inode, flags: int) -> int:
        self._last_fh += 1
        self._handles[self._last_fh] = _Handle(inode.ino, flags)
        inode.open_count += 1
        return self._last_fh

    def _new_inode(self, caller: Caller, mode: int) -> _Inode:
        self._last_ino += 1
        inode = _Inode(Ino(self._last_ino), mode, caller.uid, caller.gid)
        self._touch(inode, content=True)
        inode.version = self._index
        inode.atime_ns = inode.btime_ns = inode.mtime_ns
        self._inodes[inode.ino] = inode
        return inode

    def _make(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> _Inode:
        directory = self._directory(parent)
        if name in directory.entries:
            raise FileError(errno.EEXIST)
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        if directory.nlink == 0:
            raise FileError(errno.ENOENT)
        inode = self._new_inode(caller, mode)
        if directory.mode & stat.S_ISGID:
            inode.gid = directory.gid
            if stat.S_ISDIR(mode):
                inode.mode |= stat.S_ISGID
        self._add(directory, name, inode)
        if stat.S_ISDIR(mode):
            inode.nlink = 2
            inode.parent = directory.ino
            directory.nlink += 1
        return inode

    def _add(self, directory: _Inode, name: bytes, inode: _Inode) -> None:
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        if name in directory.entries:
            raise FileError(errno.EEXIST)
        self._last_cookie += 1
        directory.entries[name] = (self._last_cookie, inode.ino)
        self._touch(directory, content=True)

    def _remove(self, directory: _Inode, name: bytes, inode: _Inode) -> None:
        del directory.entries[name]
        if stat.S_ISDIR(inode.mode):
            inode.nlink = 0
            directory.nlink -= 1
        else:
            inode.nlink -= 1
        self._touch(directory, content=True)
        self._touch(inode)
        self._purge(inode)

    def _moved(self, inode: _Inode, source: _Inode, target: _Inode) -> None:
        if stat.S_ISDIR(inode.mode):
            source.nlink -= 1
            target.nlink += 1
            inode.parent = target.ino
        for changed in (inode, source, target):
            self._touch(changed, content=changed is not inode)

    def _is_below(self, directory: _Inode, ancestor: _Inode) -> bool:
        while directory.ino != ROOT_INO:
            if directory is ancestor:
                return True
            directory = self._inode(directory.parent)
        return directory is ancestor

    def _purge(self, inode: _Inode) -> None:
        if inode.nlink == 0 and inode.open_count == 0 and not stat.S_ISDIR(inode.mode):
            self._inodes.pop(inode.ino, None)

    def _truncate(self, inode: _Inode, size: int) -> None:
        if size < inode.size:
            self._erase(inode, size, inode.size)
        inode.size = size
        self._content_changed(inode)

    def _store(self, inode: _Inode, offset: int, data: bytes | memoryview) -> None:
        if offset + len(data) > INT64_MAX:
            raise FileError(errno.EFBIG)
        position = 0
        while position < len(data):
            block, start = divmod(offset + position, BLOCK_BYTES)
            piece = data[position : position + BLOCK_BYTES - start]
            content = inode.blocks.get(block)
            if content is None:
                content = inode.blocks[block] = bytearray(BLOCK_BYTES)
            content[start : start + len(piece)] = piece
            position += len(piece)

    def _erase(self, inode: _Inode, start: int, end: int) -> None:
        for block in list(inode.blocks):
            low, high = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
            if high <= start or end <= low:
                continue
            if start <= low and (high <= end or inode.size <= end):
                del inode.blocks[block]
                continue
            first, last = max(start, low) - low, min(end, high) - low
            inode.blocks[block][first:last] = bytes(last - first)

    def _content_changed(self, inode: _Inode) -> None:
        inode.dirty = True
        self._touch(inode, content=True)

    def _publish(self, inode: _Inode) -> None:
        if inode.dirty:
            inode.dirty = False
            self._index += 1
            inode.version = inode.changed = self._index

    def _touch(self, inode: _Inode, content: bool = False) -> None:
        inode.ctime_ns = self._clock()
        if content:
            inode.mtime_ns = inode.ctime_ns
        self._index += 1
        inode.changed = self._index

    def _attr(self, inode: _Inode) -> Attr:
        return Attr(
            inode.ino,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.size,
            len(inode.blocks) * BLOCK_BYTES,
            TimeNs(inode.atime_ns),
            TimeNs(inode.mtime_ns),
            TimeNs(inode.ctime_ns),
            TimeNs(inode.btime_ns),
            LogIndex(inode.version),
            LogIndex(inode.changed),
        )
