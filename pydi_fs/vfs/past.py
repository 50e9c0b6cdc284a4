"""The tree as it was, as directories: ``/.pydi/at/<time>/…``, read-only, and not listed.

``PastVfs`` is the Vfs that mounts and the command line use. What it adds are inode numbers for what
was: of an inode at a moment, and of the three directories that lead there. Both bindings see
ordinary inodes; the number says all, so nothing has to be remembered but which moments were asked
for, and a node id that a kernel keeps for days is still right.

    bit 61 set | 16 bits: number of the moment | 45 bits: the inode's own number
    moment 0   | 1: .pydi   2: .pydi/at

A moment is a log index: two names of one time lead to the same inodes. Relative times ("2h ago")
mean what they mean when they are looked up.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from pydi_fs.vfs.directories import READDIR_LIMIT_MAX
from pydi_fs.vfs.journal import Opened, State
from pydi_fs.vfs.moments import parse_moment
from pydi_fs.vfs.vfs import O_ACCMODE, Vfs
from pydi_node import portable
from pydi_node.commands import Caller, Command
from pydi_node.errors import FileError, PydiError
from pydi_node.ids import ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import NAME_MAX_BYTES, Attr, DirEntry, FileVersion
from pydi_node.wire.messages import (
    GetAttr,
    GetFile,
    GetXattr,
    IndexAt,
    ListXattr,
    Lookup,
    ReadDir,
    ReadLink,
)

log = logging.getLogger("pydi.vfs")

DOOR = b".pydi"  # in the root
AT = b"at"  # in there

_MARK = 1 << 61  # real numbers are counted up from 1 and stay far below; bit 62 is the bindings'
_INO_BITS = 45
_INO_MASK = (1 << _INO_BITS) - 1
_MOMENTS_MAX = (1 << 16) - 1
_DOOR_INO = Ino(_MARK | 1)
_AT_INO = Ino(_MARK | 2)
_ATTRS_MAX = 4096  # remembered: what was does not change; some 400 bytes each
# Fields by which a command names the inodes that it changes or reads.
_INO_FIELDS = ("ino", "parent", "new_parent", "source", "target")


def is_past(ino: int) -> bool:
    """Whether the number is one of this module's."""
    return bool(ino & _MARK)


class PastVfs(Vfs):
    """A Vfs with a door to the past, where everything that would change something gets EROFS."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._moments: list[LogIndex] = []
        self._numbers: dict[LogIndex, int] = {}  # of moments, from 1
        self._past_attrs: OrderedDict[Ino, Attr] = OrderedDict()
        self._open_before: list[tuple[Opened, Caller]] = []  # by a worker that died

    async def start(self, connected: bool = True) -> None:
        await super().start(connected)
        # Together: without a node each would wait for a deadline of its own.
        inos = {Ino(opened.ino) for opened, _ in self._open_before}
        found = await asyncio.gather(*[self._version_before(ino) for ino in sorted(inos)])
        versions = dict(zip(sorted(inos), found, strict=True))
        for opened, caller in self._open_before:
            ino = Ino(opened.ino)
            version = versions[ino]
            if version is not None:
                file = self._files.setdefault(ino, self._file_of(version))
                self._add_handle(opened.fh, file, opened.flags, caller)
        self._open_before = []

    async def _version_before(self, ino: Ino) -> FileVersion | None:
        """Of a file that was open before this process; None when it can't be had any more."""
        real, at = self._origin(ino)
        try:
            version: FileVersion = await self.client.call(GetFile(real, at))
        except PydiError as exc:
            log.warning("ino=%d of the past can't be read any more: %s", real, exc)
            return None
        return version._replace(attr=self._shown(version.attr, at))

    def restore(self, state: State, stage_files: dict[int, int]) -> None:
        self._moments = list(state.moments)
        self._numbers = {at: number for number, at in enumerate(self._moments, 1)}
        super().restore(state, stage_files)

    def _restore_handle(
        self, state: State, stage_files: dict[int, int], opened: Opened, caller: Caller
    ) -> None:
        if is_past(opened.ino):
            self._open_before.append((opened, caller))  # `start` asks for its content
        else:
            super()._restore_handle(state, stage_files, opened, caller)

    # --- names and attributes ---------------------------------------------------------------------

    def lookup_nowait(self, parent: Ino, name: bytes) -> Attr | None:
        if parent == ROOT_INO and name == DOOR:
            return _directory(_DOOR_INO)
        return None if is_past(parent) else super().lookup_nowait(parent, name)

    async def lookup(self, parent: Ino, name: bytes) -> Attr:
        if not is_past(parent) or name == b".":
            return await super().lookup(parent, name)
        if name == b"..":
            raise FileError(errno.EINVAL)
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        if parent == _DOOR_INO and name == AT:
            return _directory(_AT_INO)
        if parent == _DOOR_INO:
            raise FileError(errno.ENOENT)
        if parent == _AT_INO:
            return await self._root_at(name)
        ino, at = self._origin(parent)
        return self._shown(await self.client.call(Lookup(ino, name, at)), at)

    def getattr_nowait(self, ino: Ino) -> Attr | None:
        if not is_past(ino):
            return super().getattr_nowait(ino)
        if ino in (_DOOR_INO, _AT_INO):
            return _directory(ino)
        return self._past_attrs.get(ino)

    async def getattr(self, ino: Ino) -> Attr:
        known = self.getattr_nowait(ino)
        if known is not None or not is_past(ino):
            return known or await super().getattr(ino)
        real, at = self._origin(ino)
        return self._shown(await self.client.call(GetAttr(real, at)), at)

    async def readlink(self, ino: Ino) -> bytes:
        if not is_past(ino):
            return await super().readlink(ino)
        target: bytes = await self.client.call(ReadLink(*self._origin(ino)))
        return target

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if not is_past(ino):
            return await super().getxattr(ino, name)
        if ino in (_DOOR_INO, _AT_INO):
            raise FileError(errno.ENODATA)
        real, at = self._origin(ino)
        value: bytes = await self.client.call(GetXattr(real, name, at))
        return value

    async def _xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        if not is_past(ino):
            return await super()._xattr_names(ino)
        if ino in (_DOOR_INO, _AT_INO):
            return ()
        return tuple(await self.client.call(ListXattr(*self._origin(ino))))

    # --- directories ------------------------------------------------------------------------------

    async def entries(self, ino: Ino, reader: int, cookie: int, limit: int) -> list[DirEntry]:
        if not is_past(ino):
            return await super().entries(ino, reader, cookie, limit)
        if ino == _DOOR_INO:
            return [] if cookie else [DirEntry(1, AT, _directory(_AT_INO))]
        if ino == _AT_INO:
            return []  # every moment is there; which ones to list?
        ino, at = self._origin(ino)
        page: Sequence[DirEntry] = await self.client.call(
            ReadDir(ino, cookie, min(limit, READDIR_LIMIT_MAX), at)
        )
        return [entry._replace(attr=self._shown(entry.attr, at)) for entry in page]

    # --- files ------------------------------------------------------------------------------------

    async def _open(self, caller: Caller, ino: Ino, flags: int) -> tuple[int, FileVersion]:
        if not is_past(ino):
            return await super()._open(caller, ino, flags)
        if flags & O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FileError(errno.EROFS)
        if ino in (_DOOR_INO, _AT_INO):
            raise FileError(errno.EISDIR)
        real, at = self._origin(ino)
        version: FileVersion = await self.client.call(GetFile(real, at))
        version = version._replace(attr=self._shown(version.attr, at))
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = self._file_of(version)
        return self._new_handle(file, flags, caller), version

    def park(self, fh: int) -> bool:
        return not is_past(self.ino_of(fh)) and super().park(fh)  # no node holds those

    def _may_make(self, parent: Ino, name: bytes) -> bool:
        return super()._may_make(parent, name) and not (parent == ROOT_INO and name == DOOR)

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        if is_past(self.ino_of(fh_in)):
            raise FileError(errno.EXDEV)  # the caller copies by reading and writing
        return await super().copy_file_range(fh_in, offset_in, fh_out, offset_out, length)

    # --- inside -----------------------------------------------------------------------------------

    async def _execute(
        self,
        command: Command,
        arrived: Callable[[Any], Any] = lambda answer: answer,
        payload: bytes | None = None,
    ) -> Any:
        values = [getattr(command, field, 0) for field in _INO_FIELDS]
        if any(isinstance(value, int) and is_past(value) for value in values):
            raise FileError(errno.EROFS)
        for parent, name in (("parent", "name"), ("new_parent", "new_name")):
            if getattr(command, parent, 0) == ROOT_INO and getattr(command, name, b"") == DOOR:
                raise FileError(errno.EROFS)  # nobody could reach it
        return await super()._execute(command, arrived, payload)

    def _reset(self) -> asyncio.Future[None] | None:
        told = super()._reset()
        for ino, file in self._files.items():
            if is_past(ino):
                file.is_newest()  # what was stays as it was
        return told

    async def _root_at(self, name: bytes) -> Attr:
        """The root as it was at the moment with this name. ENOENT: no moment, or not kept."""
        moment = parse_moment(portable.text_of(name), self._clock())
        if moment is None:
            raise FileError(errno.ENOENT)
        at: LogIndex
        if isinstance(moment, tuple):
            time_ns: TimeNs = moment[0]
            at = await self.client.call(IndexAt(time_ns))
        else:
            at = moment
        try:
            attr = await self.client.call(GetAttr(ROOT_INO, at))
        except FileError as exc:
            raise FileError(errno.ENOENT) from exc  # in the future, or older than what is kept
        return self._shown(attr, at)

    def _origin(self, ino: Ino) -> tuple[Ino, LogIndex]:
        """The inode and the moment. ESTALE for a number that this mount never gave out."""
        number = (ino & (_MARK - 1)) >> _INO_BITS
        if not 1 <= number <= len(self._moments):
            raise FileError(errno.ESTALE)
        return Ino(ino & _INO_MASK), self._moments[number - 1]

    def _shown(self, attr: Attr, at: LogIndex) -> Attr:
        """An inode of that moment under its number here."""
        number = self._numbers.get(at)
        if number is None:
            if len(self._moments) == _MOMENTS_MAX:
                raise FileError(errno.ENFILE, "too many moments were looked at: mount again")
            self._moments.append(at)
            self._journal.moment(at)
            number = self._numbers[at] = len(self._moments)
        assert attr.ino <= _INO_MASK, attr
        shown = attr._replace(ino=Ino(_MARK | number << _INO_BITS | attr.ino))
        self._past_attrs[shown.ino] = shown
        if len(self._past_attrs) > _ATTRS_MAX:
            self._past_attrs.popitem(last=False)
        return shown


def _directory(ino: Ino) -> Attr:
    """A directory that is nowhere in the tree."""
    zero = TimeNs(0)
    return Attr(
        ino, stat.S_IFDIR | 0o555, 2, 0, 0, 0, 0, 0, zero, zero, zero, zero, LogIndex(0),
        LogIndex(0),
    )  # fmt: skip
