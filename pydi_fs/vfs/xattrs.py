"""Extended attributes: the part of `Vfs` that is about them.

Which names a file has is remembered like its attributes (`NameCache`), for the kernel asks for
security.capability before the first write to each file, and hardly any file has one.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydi_fs.client import Client
from pydi_fs.vfs import acls
from pydi_fs.vfs.cache import NameCache
from pydi_node.commands import Caller, Command, RemoveXattr, SetXattr
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.records import ACCESS_ACL, ACCESS_ACL_XATTR, ACL_XATTRS, DEFAULT_ACL, Attr
from pydi_node.wire.messages import GetXattr, ListXattr

# A kernel without SELinux asks the file system for this one. ls(1) wants it of each file, unless it
# is told that the file system knows no such thing: so every file without it says.
SELINUX = b"security.selinux"


def no_attribute(name: bytes) -> FileError:
    """The file has no attribute of this name."""
    return FileError(errno.EOPNOTSUPP if name == SELINUX else errno.ENODATA)


class Xattrs(ABC):
    """What it needs of Vfs, and the four calls."""

    client: Client
    _cache: NameCache
    _execute: Callable[[Command], Awaitable[Any]]

    @abstractmethod
    def getattr_nowait(self, ino: Ino) -> Attr | None:
        """As programs here must see it; None: that is not known for certain."""

    @abstractmethod
    def _chmod_nowait(self, caller: Caller, ino: Ino, bits: int) -> bool:
        """Whether these nine mode bits could be set here, where the inode has no access list."""

    def lacks_xattr(self, ino: Ino, name: bytes) -> bool:
        """Whether it is known, without a question, that there is no such attribute."""
        known = self._cache.xattr_names(ino)
        return known is not None and name not in known and self.client.lease_s() > 0

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if name not in await self._xattr_names(ino):
            raise no_attribute(name)
        value: bytes = await self.client.call(GetXattr(ino, name))
        return value

    async def listxattr(self, caller: Caller, ino: Ino) -> list[bytes]:
        """Names the caller may see: ``trusted.`` is root's, xattr(7)."""
        names = await self._xattr_names(ino)
        return [name for name in names if caller.uid == 0 or not name.startswith(b"trusted.")]

    async def _xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        known = self._cache.xattr_names(ino)
        if known is not None and self.client.lease_s() > 0:
            return known

        def arrived(answer: Sequence[bytes]) -> tuple[bytes, ...]:
            self._cache.put_xattr_names(ino, answer)
            return tuple(answer)

        names: tuple[bytes, ...] = await self.client.call(ListXattr(ino), arrived=arrived)
        return names

    async def setxattr(
        self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int
    ) -> None:
        # cp -a sets the access list of each file that it makes, which is nearly always its mode.
        bits = acls.plain_bits(value) if name == ACCESS_ACL_XATTR else None
        if bits is None or not self._chmod_nowait(caller, ino, bits):
            await self._execute(SetXattr(caller, ino, name, value, flags))

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        if name not in ACL_XATTRS or not self._lacks_acl(caller, ino, name):
            await self._execute(RemoveXattr(caller, ino, name))

    def _lacks_acl(self, caller: Caller, ino: Ino, name: bytes) -> bool:
        """Whether the caller might take this list away, and there is none: then nothing changes."""
        attr = self.getattr_nowait(ino)
        if attr is None or attr.is_symlink or caller.uid not in (0, attr.uid):
            return False
        return not attr.mode & (ACCESS_ACL if name == ACCESS_ACL_XATTR else DEFAULT_ACL)
