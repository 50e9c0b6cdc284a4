"""Requests about extended attributes, and what access control lists change in others.

The part of `Dispatcher` that is about them. Whether the kernel obeys lists was agreed on at INIT.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydi_fs.fuse import abi, codec
from pydi_fs.fuse.abi import InitFlag
from pydi_fs.fuse.codec import Header
from pydi_fs.fuse.filesystem import FileSystem
from pydi_fs.vfs import acls
from pydi_fs.vfs.xattrs import no_attribute
from pydi_node.commands import XATTR_KILL_SGID, Caller
from pydi_node.ids import Ino
from pydi_node.records import Attr


class Xattrs(ABC):
    """What it needs of Dispatcher, and the handlers of its table of opcodes."""

    _vfs: FileSystem
    _agreed: InitFlag  # by INIT

    @abstractmethod
    def _caller(self, header: Header) -> Caller:
        """Who asks."""

    def _obeys_acls(self) -> bool:
        return InitFlag.FUSE_POSIX_ACL in self._agreed

    def _shown(self, attr: Attr) -> Attr:
        return acls.shown(attr, self._obeys_acls())

    def _umask(self, umask: int) -> int:
        """What is still to be taken off the mode of what is made."""
        return umask if InitFlag.FUSE_DONT_MASK in self._agreed else 0

    def known(self, header: Header, body: codec.Getxattr) -> None:
        attr = self._vfs.getattr_nowait(Ino(header.nodeid))
        acls.require_known(body.name, attr, self._obeys_acls())
        # The kernel asks for one before the first write to a file.
        if self._vfs.lacks_xattr(Ino(header.nodeid), body.name):
            raise no_attribute(body.name)

    def refused(self, _header: Header, body: Any) -> None:
        acls.require_known(body.name, None, self._obeys_acls())

    async def getxattr(self, header: Header, body: codec.Getxattr) -> bytes:
        return codec.encode_xattr(
            await self._vfs.getxattr(Ino(header.nodeid), body.name), body.size
        )

    async def listxattr(self, header: Header, body: codec.Getxattr) -> bytes:
        names = await self._vfs.listxattr(self._caller(header), Ino(header.nodeid))
        names = acls.seen(names, self._obeys_acls())
        return codec.encode_xattr(b"".join(name + b"\0" for name in names), body.size)

    async def setxattr(self, header: Header, body: codec.Setxattr) -> bytes:
        ino = Ino(header.nodeid)
        flags = body.flags
        if body.more_flags & abi.FUSE_SETXATTR_ACL_KILL_SGID:
            flags |= XATTR_KILL_SGID
        await self._vfs.setxattr(self._caller(header), ino, body.name, body.value, flags)
        return b""

    async def removexattr(self, header: Header, body: codec.Named) -> bytes:
        await self._vfs.removexattr(self._caller(header), Ino(header.nodeid), body.name)
        return b""
