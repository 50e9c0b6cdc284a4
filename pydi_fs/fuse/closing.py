"""Requests about the end of writing: FLUSH of close(2), fsync(2) and its kin, RELEASE.

The part of `Dispatcher` that is about them, and about the locks that a close gives back.
"""

from __future__ import annotations

import fcntl
from abc import ABC, abstractmethod

from pydi_fs.fuse import abi, codec
from pydi_fs.fuse.codec import Header
from pydi_fs.fuse.filesystem import FileSystem
from pydi_fs.fuse.lock_owners import LockOwners
from pydi_fs.fuse.page_cache import PageCache
from pydi_fs.vfs.journalling import Journal
from pydi_node.ids import INT64_MAX, Ino


class Closing(ABC):
    """What it needs of Dispatcher, and the handlers of its table of opcodes."""

    pages: PageCache
    _vfs: FileSystem
    _journal: Journal
    _lock_owners: LockOwners

    @abstractmethod
    def _closed(self, ino: Ino, fh: int) -> None:
        """The kernel uses this handle no more."""

    def flush_nowait(self, header: Header, body: codec.Flush) -> bytes | None:
        ino = Ino(header.nodeid)
        if self._lock_owners.any_on(ino) or not self._vfs.flush_nowait(body.fh):
            return None
        self._published(ino, body.fh)
        return b""

    async def flush(self, header: Header, body: codec.Flush) -> bytes:
        ino = Ino(header.nodeid)
        try:
            await self._vfs.flush(body.fh)
        finally:
            # POSIX: closing any descriptor gives back all fcntl locks of the process on the file,
            # and only after what it wrote can be seen.
            if self._lock_owners.flushed(ino, body.lock_owner):
                await self._unlock(body.fh, body.lock_owner, flock=False)
                self._journal.unlocked(ino, body.lock_owner)
        self._published(ino, body.fh)
        return b""

    async def fsync(self, header: Header, body: codec.Fsync) -> bytes:
        await self._vfs.fsync(body.fh, body.datasync)
        self._published(Ino(header.nodeid), body.fh)
        return b""

    async def fsyncdir(self, header: Header, _body: codec.Fsync) -> bytes:
        await self._vfs.fsyncdir(Ino(header.nodeid))
        return b""

    async def syncfs(self, _header: Header, _body: codec.Empty) -> bytes:
        await self._vfs.sync()
        return b""

    def release_nowait(self, header: Header, body: codec.Release) -> bytes | None:
        ino, fh = Ino(header.nodeid), body.fh
        if body.release_flags & abi.FUSE_RELEASE_FLOCK_UNLOCK or self._lock_owners.any_of(ino, fh):
            return None
        self._closed(ino, fh)
        if not self._vfs.release_nowait(fh):
            return None
        self._journal.closed(fh)
        return b""

    async def release(self, header: Header, body: codec.Release) -> bytes:
        ino = Ino(header.nodeid)
        self._closed(ino, body.fh)
        try:
            if body.release_flags & abi.FUSE_RELEASE_FLOCK_UNLOCK:
                await self._unlock(body.fh, body.lock_owner, flock=True)
            for owner in self._lock_owners.released(ino, body.fh):
                await self._unlock(body.fh, owner, flock=False)
        finally:
            await self._vfs.release(body.fh)
            self._journal.closed(body.fh)
        return b""

    def _published(self, ino: Ino, fh: int) -> None:
        attr = self._vfs.getattr_nowait(ino)
        self.pages.published(ino, fh, attr.version if attr is not None else None)

    async def _unlock(self, fh: int, owner: int, flock: bool) -> None:
        await self._vfs.setlk(fh, owner, fcntl.F_UNLCK, 0, INT64_MAX, 0, wait=False, flock=flock)
