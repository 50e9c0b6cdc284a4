"""The part of `vfs.Vfs` that gives names, moves them and takes them away.

Each operation is done here alone where that may be (`changes`), and else a command of the cluster.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pydi_fs.vfs.cache import ABSENT
from pydi_fs.vfs.core import VfsCore
from pydi_node.commands import Caller, Link, Mkdir, Mknod, Rename, Rmdir, Symlink, Unlink
from pydi_node.ids import Ino
from pydi_node.records import NAME_MAX_BYTES, Attr


class Names(VfsCore):
    """See the module. Everything here runs in the loop."""

    @abstractmethod
    async def getattr(self, ino: Ino) -> Attr:
        """As programs here must see it."""

    # The twins that answer at once say None, or False, where the cluster must be asked.

    def mkdir_nowait(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, umask: int = 0
    ) -> Attr | None:
        if not self._may_make(parent, name):
            return None
        return self._changes.mkdir(caller, parent, name, mode & 0o7777, umask)

    async def mkdir(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, umask: int = 0
    ) -> Attr:
        """umask  what ``mode`` loses where no default list is; 0: it has lost it already."""
        return await self._make_here(
            lambda: self.mkdir_nowait(caller, parent, name, mode, umask),
            Mkdir(caller, parent, name, mode & 0o7777, umask),
        )

    async def mknod(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, rdev: int, umask: int = 0
    ) -> Attr:
        return await self._make(Mknod(caller, parent, name, mode, rdev, umask))

    def symlink_nowait(
        self, caller: Caller, parent: Ino, name: bytes, target: bytes
    ) -> Attr | None:
        if not self._may_make(parent, name):
            return None
        return self._changes.symlink(caller, parent, name, target)

    async def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Attr:
        return await self._make_here(
            lambda: self.symlink_nowait(caller, parent, name, target),
            Symlink(caller, parent, name, target),
        )

    async def link(self, caller: Caller, ino: Ino, new_parent: Ino, new_name: bytes) -> Attr:
        command = Link(caller, ino, new_parent, new_name)
        return self._overlay(
            await self._execute(command, lambda a: self._arrived_entry(new_parent, new_name, a))
        )

    def unlink_nowait(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        return self._changes.unlink(caller, parent, name)

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        if self._was_done():
            return
        is_new = not self._journal.sent_before()
        if is_new and self.unlink_nowait(caller, parent, name):
            return
        may_be_ours = await self._ask_for(parent)
        if is_new and may_be_ours and self.unlink_nowait(caller, parent, name):
            return

        def arrived(answer: Any) -> None:
            self._arrived_attr(answer)
            self._cache.put_name(parent, name, ABSENT)
            self._delegations.is_gone(parent, name)

        await self._before_name_goes(parent, name)
        await self._execute(Unlink(caller, parent, name), arrived)

    def rmdir_nowait(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        return self._changes.rmdir(caller, parent, name)

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        if self._was_done():
            return
        is_new = not self._journal.sent_before()
        if is_new and self.rmdir_nowait(caller, parent, name):
            return
        removed = self._known(parent, name)
        may_be_ours = await self._ask_for(parent)
        may_be_ours |= await self._delegations.wait_asked(removed or ABSENT)
        if is_new and may_be_ours and self.rmdir_nowait(caller, parent, name):
            return
        removed = self._known(parent, name)

        def arrived(answer: Any) -> None:
            self._cache.put_name(parent, name, ABSENT)
            self._delegations.is_gone(parent, name)
            self._delegations.is_removed(removed)

        await self._execute(Rmdir(caller, parent, name), arrived)

    def rename_nowait(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> bool:
        if not self._may_make(new_parent, new_name):
            return False
        return self._changes.rename(caller, parent, name, new_parent, new_name, flags)

    async def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> None:
        """rename(2), with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if self._was_done():
            return
        await self._publish_before_rename(parent, name)
        is_new = not self._journal.sent_before()
        if is_new and self.rename_nowait(caller, parent, name, new_parent, new_name, flags):
            return
        may_be_ours = await self._ask_for(parent, new_parent)
        if is_new and may_be_ours:
            # A file may have been written meanwhile.
            await self._publish_before_rename(parent, name)
            if self.rename_nowait(caller, parent, name, new_parent, new_name, flags):
                return
        await self._before_name_goes(new_parent, new_name)

        def arrived(answer: Any) -> None:
            moved, other = answer
            self._arrived_entry(new_parent, new_name, moved)
            if other is None:
                self._delegations.is_gone(parent, name)
            else:
                gone = self._arrived_attr(other)
                if not flags and gone.is_dir:
                    self._delegations.is_removed(gone.ino)

        await self._execute(Rename(caller, parent, name, new_parent, new_name, flags), arrived)

    async def _publish_before_rename(self, parent: Ino, name: bytes) -> None:
        """Save-by-rename without fsync: the new name must never show content older than the close.

        A file that is being written here is published before it takes another's name, so that a
        crash leaves either the old file or the new one, never a new name on an empty file.
        Source: the replace-via-rename heuristic of ext4, auto_da_alloc.
        """
        file = self._files.get(self._known(parent, name) or ABSENT)
        if file is not None and file.dirty:
            await self._publish(file)

    # --- inside --------------------------------------------------------------------------------

    def _may_make(self, parent: Ino, name: bytes) -> bool:
        return len(name) <= NAME_MAX_BYTES

    async def _ask_for(self, *directories: Ino) -> bool:
        """A name is about to be changed in these. Whether one is this mount's since, which it was
        not: then the change may not need the cluster any more."""
        for directory in dict.fromkeys(directories):
            self._delegations.note_change(directory)
        return await self._delegations.wait_asked(*directories)

    def _was_done(self) -> bool:
        """By the worker before this one, which died before its request was answered."""
        return self._journal.made_before() is not None

    async def _before_name_goes(self, parent: Ino, name: bytes) -> None:
        ino = self._known(parent, name) if self.lease_s() > 0 else None
        if ino != ABSENT:
            await self._holds.before_name_goes(ino)

    async def _make_here(self, nowait: Callable[[], Attr | None], command: Mkdir | Symlink) -> Attr:
        """What ``nowait`` makes, or else the command."""
        if made := self._journal.made_before():
            return await self.getattr(made)
        is_new = not self._journal.sent_before()
        if is_new and (attr := nowait()) is not None:
            return attr
        may_be_ours = await self._ask_for(command.parent)
        if is_new and may_be_ours and (attr := nowait()) is not None:
            return attr
        return await self._make(command)

    async def _make(self, command: Mkdir | Mknod | Symlink) -> Attr:
        epoch = self.client.epoch

        def arrived(answer: Any) -> Attr:
            attr = self._arrived_entry(command.parent, command.name, answer)
            if attr.is_dir and not self.client.is_repeat:
                self._delegations.is_made(attr.ino, epoch)
            return attr

        attr: Attr = await self._execute(command, arrived)
        return attr
