"""Requests that change names. The part of `Dispatcher` that is about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from pydi_fs.fuse import codec
from pydi_fs.fuse.codec import Header
from pydi_fs.fuse.filesystem import FileSystem
from pydi_fs.fuse.keeping import Keeping
from pydi_fs.fuse.nodeids import SECOND
from pydi_node.commands import Caller
from pydi_node.ids import Ino
from pydi_node.records import Attr


class Names(ABC):
    """What it needs of Dispatcher, and the handlers of its table of opcodes."""

    _vfs: FileSystem
    _named: Callable[[int], None]
    keeping: Keeping | None

    @abstractmethod
    def _caller(self, header: Header) -> Caller:
        """Who asks."""

    @abstractmethod
    def _umask(self, umask: int) -> int:
        """What is still to be taken off the mode of what is made."""

    @abstractmethod
    def _entry(self, header: Header, attr: Attr) -> bytes:
        """The answer that shows an inode."""

    def mkdir_nowait(self, header: Header, body: codec.Mkdir) -> bytes | None:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        attr = self._vfs.mkdir_nowait(caller, parent, body.name, body.mode & 0o7777, umask)
        return None if attr is None else self._entry(header, attr)

    async def mkdir(self, header: Header, body: codec.Mkdir) -> bytes:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        mode = body.mode & 0o7777
        return self._entry(header, await self._vfs.mkdir(caller, parent, body.name, mode, umask))

    async def mknod(self, header: Header, body: codec.Mknod) -> bytes:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        attr = await self._vfs.mknod(caller, parent, body.name, body.mode, body.rdev, umask)
        return self._entry(header, attr)

    def symlink_nowait(self, header: Header, body: codec.Symlink) -> bytes | None:
        parent = Ino(header.nodeid)
        attr = self._vfs.symlink_nowait(self._caller(header), parent, body.name, body.target)
        return None if attr is None else self._entry(header, attr)

    async def symlink(self, header: Header, body: codec.Symlink) -> bytes:
        parent = Ino(header.nodeid)
        attr = await self._vfs.symlink(self._caller(header), parent, body.name, body.target)
        return self._entry(header, attr)

    async def link(self, header: Header, body: codec.Link) -> bytes:
        ino, parent = Ino(body.ino & ~SECOND), Ino(header.nodeid)
        attr = await self._vfs.link(self._caller(header), ino, parent, body.name)
        return self._entry(header, attr)

    def unlink_nowait(self, header: Header, body: codec.Named) -> bytes | None:
        done = self._vfs.unlink_nowait(self._caller(header), Ino(header.nodeid), body.name)
        return b"" if done else None

    async def unlink(self, header: Header, body: codec.Named) -> bytes:
        await self._vfs.unlink(self._caller(header), Ino(header.nodeid), body.name)
        return b""

    def rmdir_nowait(self, header: Header, body: codec.Named) -> bytes | None:
        done = self._vfs.rmdir_nowait(self._caller(header), Ino(header.nodeid), body.name)
        return b"" if done else None

    async def rmdir(self, header: Header, body: codec.Named) -> bytes:
        await self._vfs.rmdir(self._caller(header), Ino(header.nodeid), body.name)
        return b""

    def rename_nowait(self, header: Header, body: codec.Rename) -> bytes | None:
        done = self._vfs.rename_nowait(*self._places(header, body))
        return self._renamed(header, body) if done else None

    async def rename(self, header: Header, body: codec.Rename) -> bytes:
        await self._vfs.rename(*self._places(header, body))
        return self._renamed(header, body)

    def _places(
        self, header: Header, body: codec.Rename
    ) -> tuple[Caller, Ino, bytes, Ino, bytes, int]:
        parent, new_parent = Ino(header.nodeid), Ino(body.new_parent)
        return (self._caller(header), parent, body.name, new_parent, body.new_name, body.flags)

    def _renamed(self, header: Header, body: codec.Rename) -> bytes:
        for directory in (header.nodeid, body.new_parent):
            self._named(directory)
            if self.keeping is not None:
                self.keeping.moved(directory)
        return b""
