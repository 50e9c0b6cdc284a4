"""fcntl(2) and flock(2) locks: the part of `Vfs` that is about them."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod

from pydi_fs.vfs.lock_rights import LockRights
from pydi_fs.vfs.posix import LOCK_KINDS, LOCK_NUMBERS, WAIT_FOREVER_S
from pydi_node import portable
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.wire.messages import GetLock, SetLock


class FileLocks(ABC):
    """What it needs of Vfs, and the calls."""

    _locks: LockRights

    @abstractmethod
    def ino_of(self, fh: int) -> Ino:
        """The file of a handle. EBADF."""

    async def getlk(
        self, fh: int, owner: int, kind: int, start: int, end: int, pid: int
    ) -> tuple[int, int, int, int]:
        """The lock in the way as (kind, start, end, pid); kind F_UNLCK when there is none."""
        ino = self.ino_of(fh)
        found = await self._locks.get(GetLock(ino, owner, LOCK_KINDS[kind], start, end))
        if found is None:
            return (portable.F_UNLCK, start, end, pid)
        return (LOCK_NUMBERS[found.kind], found.start, found.end, found.pid)

    def setlk_nowait(
        self, fh: int, owner: int, kind: int, start: int, end: int, pid: int, wait: bool
    ) -> bool:
        """As `setlk` of fcntl(2), where this mount gives out the file's locks; False: it does not,
        or the lock must be waited for."""
        ino = self.ino_of(fh)
        request = SetLock(ino, owner, LOCK_KINDS[kind], start, end, False, wait, pid)
        done = self._locks.set_nowait(request)
        if done is False:
            raise FileError(errno.EAGAIN)
        return done is not None

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
        """Take or drop a lock that all machines respect. EAGAIN when held and ``wait`` is False."""
        ino = self.ino_of(fh)
        request = SetLock(ino, owner, LOCK_KINDS[kind], start, end, flock, wait, pid)
        if not await self._locks.set(request, WAIT_FOREVER_S if wait else None):
            raise FileError(errno.EAGAIN)
