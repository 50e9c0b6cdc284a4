"""The Vfs: one async method per POSIX operation on inode numbers. See the package docstring.

It never walks paths (but `resolve`), never speaks to the kernel, and holds no lock across a wait.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pydi_fs.client import Client
from pydi_fs.vfs.cache import ABSENT
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.file_locks import FileLocks
from pydi_fs.vfs.journal import Frozen, Opened, Staged, State
from pydi_fs.vfs.local_blobs import LocalBlob
from pydi_fs.vfs.names import Names
from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.pending import PendingCreate
from pydi_fs.vfs.posix import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    permitted,
)
from pydi_fs.vfs.resuming import drop_unused, restore_content, unknown
from pydi_fs.vfs.walk import walk
from pydi_node import portable
from pydi_node.commands import (
    TIME_NOW,
    Caller,
    CloneRange,
    Commit,
    Create,
    PutFile,
    SetAttr,
    Tmpfile,
)
from pydi_node.errors import FileError, PydiError
from pydi_node.ids import ROOT_INO, Ino, TimeNs
from pydi_node.records import (
    ACCESS_ACL,
    FILE_SIZE_MAX,
    NAME_MAX_BYTES,
    ST_MODE_BITS,
    Attr,
    BlobInfo,
    DirEntry,
    Extent,
    FileVersion,
    Statfs,
)
from pydi_node.wire import messages
from pydi_node.wire.messages import (
    PUT_BLOB,
    GetAttr,
    Lookup,
    Open,
    ReadLink,
)

log = logging.getLogger("pydi.vfs")

O_ACCMODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


@dataclass(slots=True)
class _Handle:
    file: OpenFile
    flags: int  # of open(2)
    caller: Caller
    writable: bool
    next_offset: int = 0  # where a sequential reader would go on

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)


class Vfs(Names, FileLocks):
    """One mount's (or one command's) view of the tree."""

    def __init__(
        self, client: Client, config: VfsConfig, clock: Callable[[], int] = time.time_ns
    ) -> None:
        super().__init__(client, config, clock)
        self._handles: dict[int, _Handle] = {}
        self._listed: dict[int, Ino] = {}  # open directories, by handle
        self._last_fh = 0
        self._sweeps: asyncio.Task[None] | None = None

    async def start(self, connected: bool = True) -> None:
        """Begin to listen to changes made elsewhere.

        connected  whether the client is; if not, it goes on trying, and operations wait for it.
        """
        self.client.on_touched = self._invalidate
        self.client.on_reset = self._reset
        self.client.moment = lambda: self._cache.moment
        self.client.on_answer = self._cache.answers
        self.client.on_lease = lambda until_s: self.on_lease(until_s)
        self._cache.on_changed = lambda ino: self.on_changed(ino)
        self.client.before = self._before
        await self.client.subscribe(connected)
        self._sweeps = asyncio.get_running_loop().create_task(self._local.run_sweeps())
        self._area.prepare()
        self._delegations.start()
        self._behind.start()
        self._locks.start()
        self._queue.start()
        self._holds.tell_all()
        for file in self._files.values():
            if file.dirty and file.busy:
                self._background.later(file.refresh())  # what was on its way is done the sooner

    def restore(self, state: State, stage_files: dict[int, int]) -> None:
        """Go on with what the worker before this one had open; before `start`. What the cluster has
        of these files is looked at when they are used. stage_files  by number; they are ours now.
        """
        self._last_fh = state.last_fh
        self._area.begin_after(state.last_source)
        self._delegations.restore(state)
        self._locks.restore(state)
        self._queue.restore(state)
        for opened in state.handles.values():
            caller = Caller(opened.uid, opened.gid, opened.groups)
            self._restore_handle(state, stage_files, opened, caller)
        for create in self._delegations.pending.values():
            self._restore_pending(state, stage_files, create)
        drop_unused(stage_files, self._journal)

    def _restore_handle(
        self, state: State, stage_files: dict[int, int], opened: Opened, caller: Caller
    ) -> None:
        ino = Ino(opened.ino)
        file = self._files.get(ino)
        if file is None:
            file = self._restore_file(state, stage_files, ino)
        self._add_handle(opened.fh, file, opened.flags, caller)
        self._holds.told(opened.fh, ino)  # to the node of then: `start` tells them again

    def _restore_file(self, state: State, stage_files: dict[int, int], ino: Ino) -> OpenFile:
        file = self._files[ino] = self._file_of(FileVersion(unknown(ino), (), ()))
        restore_content(file, state, stage_files, self._area)
        return file

    def _restore_pending(
        self, state: State, stage_files: dict[int, int], create: PendingCreate
    ) -> None:
        file = self._files.get(create.ino)
        if file is None:
            if create.ino not in state.files:
                return  # it has no content
            file = self._restore_file(state, stage_files, create.ino)  # closed, and not told
        file.begins_as(create)
        self._behind.restore(file, create)

    def freeze(self) -> Iterator[Staged | Frozen]:
        """Records of all unpublished content, for the journal."""
        return (record for file in self._files.values() for record in file.freeze())

    async def stop(self) -> None:
        """Publish what is left and give everything back. The first error is raised, at the end."""
        self._holds.stop()
        await self._lookahead.stop()
        failures: list[BaseException] = []
        self._behind.stop()
        files = list(self._files.values())
        # All at once: each may have to wait for its deadline.
        ends = await asyncio.gather(*map(self._publish, files), return_exceptions=True)
        for file, end in zip(files, ends, strict=True):
            if isinstance(end, PydiError):
                failures.append(end)
                log.error("ino=%d: not published at the end, content lost: %s", file.ino, end)
            elif end is not None:
                raise end
            await file.discard()
        await self._locks.stop()
        for stop in (self._queue.stop, self._delegations.stop):
            try:
                await stop()
            except PydiError as exc:
                failures.append(exc)
        self._files.clear()
        self._handles.clear()
        await self._background.wait()
        await self._saves.wait()
        if self._sweeps is not None:
            self._sweeps.cancel()
        await self._area.close()
        await self._reader.close()
        self._local.close()
        if failures:
            raise failures[0]

    # --- names and attributes ------------------------------------------------------------------

    def lookup_nowait(self, parent: Ino, name: bytes) -> Attr | None:
        """The attributes if cached, None if a question is needed; ENOENT if known to be absent."""
        if self.client.lease_s() <= 0:
            return None
        ino = self._known(parent, name)
        if ino is None and not self._delegations.is_absent(parent, name):
            return None
        if not ino:  # ABSENT too
            raise FileError(errno.ENOENT)
        return self.getattr_nowait(ino)

    def entry_nowait(self, parent: Ino, name: bytes) -> Attr | None:
        """`lookup_nowait` where the cluster has all there is to know, and that is at hand; None
        where anything of it might come from here."""
        attr = self._cache.entry(parent, name)
        if attr is None or attr.ino in self._files:
            return None
        if self._delegations.pending or not self._queue.is_empty:
            return None
        return self._delegations.overlay(attr) if self.client.lease_s() > 0 else None

    async def lookup(self, parent: Ino, name: bytes) -> Attr:
        """The inode behind a name. ENOENT, ENOTDIR, ENAMETOOLONG."""
        if name == b".":
            return await self.getattr(parent)
        if name == b"..":
            raise FileError(errno.EINVAL)  # a path walk knows where it came from: see `resolve`
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        cached = self.lookup_nowait(parent, name)
        if cached is None and await self._lookahead.wait(parent):
            cached = self.lookup_nowait(parent, name)
        if cached is not None:
            return cached

        def arrived(answer: Any) -> Attr:
            return self._arrived_entry(parent, name, answer)

        def failed(error: PydiError) -> None:
            if isinstance(error, FileError) and error.errno == errno.ENOENT:
                self._cache.put_name(parent, name, ABSENT)

        attr = await self.client.call(Lookup(parent, name), arrived=arrived, failed=failed)
        if self.lease_s() > 0:
            self._lookahead.asked(parent)
        return self._overlay(attr)

    def getattr_nowait(self, ino: Ino) -> Attr | None:
        attr = (
            self._delegations.shown(ino)
            or self._queue.attr(ino)
            or self._cache.attr(ino)
            or self._delegations.directory(ino)
        )
        return None if attr is None or self.client.lease_s() <= 0 else self._overlay(attr)

    async def getattr(self, ino: Ino) -> Attr:
        """The inode, with what was written here and is not published yet. ESTALE if it is gone."""
        cached = self.getattr_nowait(ino)
        if cached is not None:
            return cached
        return self._overlay(await self.client.call(GetAttr(ino), arrived=self._arrived_attr))

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
        """Change what is not None; times may be TIME_NOW. EPERM, EINVAL, EFBIG, EISDIR."""
        file = self._files.get(ino)
        if size is not None and file is not None and (file.dirty or self._writes(fh)):
            # Part of what the writer does: published with the rest, by its flush or fsync.
            await file.look()
            file.truncate(caller, size)
            size = None
        if file is not None and file.dirty and mtime_ns is not None:
            file.set_mtime(self._clock() if mtime_ns == TIME_NOW else mtime_ns)
        if (mode, uid, gid, size, atime_ns, mtime_ns) == (None,) * 6:
            return await self.getattr(ino)
        if (
            size is None
            and not self._journal.sent_before()
            and self._setattr_nowait(caller, ino, mode, uid, gid, atime_ns, mtime_ns)
        ):
            return await self.getattr(ino)
        command = SetAttr(caller, ino, mode, uid, gid, size, atime_ns, mtime_ns)
        arrived = self._arrived_attr if size is None else self._arrived_content
        return self._overlay(await self._execute(command, arrived))

    def _chmod_nowait(self, caller: Caller, ino: Ino, bits: int) -> bool:
        attr = self.getattr_nowait(ino)
        if attr is None or attr.mode & ACCESS_ACL:
            return False
        return self._setattr_nowait(caller, ino, attr.mode & 0o7000 | bits)

    def _setattr_nowait(
        self,
        caller: Caller,
        ino: Ino,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> bool:
        """Whether this could be done here: nobody else knows of the inode."""
        if self._delegations.shape(caller, ino, mode, uid, gid, atime_ns, mtime_ns):
            return True
        return self._changes.setattr(
            caller, ino, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns
        )

    async def access(self, caller: Caller, ino: Ino, mask: int) -> None:
        """access(2) for bindings whose kernel does not check permissions. EACCES."""
        attr = await self.getattr(ino)
        if not permitted(attr, caller, mask):
            raise FileError(errno.EACCES)

    async def readlink(self, ino: Ino) -> bytes:
        target: bytes = await self.client.call(ReadLink(ino))
        return target

    async def statfs(self) -> Statfs:
        totals: Statfs = await self.client.call(messages.Statfs())
        return totals

    async def resolve(self, path: bytes, follow: bool = True) -> Attr:
        """Walk an absolute (or root-relative) path. ENOENT, ENOTDIR, ELOOP."""
        return await walk(self, path, follow)

    # --- directories ---------------------------------------------------------------------------

    async def opendir(self, ino: Ino) -> int:
        attr = await self.getattr(ino)
        if not attr.is_dir:
            raise FileError(errno.ENOTDIR)
        fh = self._new_fh()
        self._listed[fh] = ino
        return fh

    async def readdir(self, fh: int, cookie: int, limit: int) -> list[DirEntry]:
        """Up to ``limit`` entries after ``cookie`` (0: the start); an empty list is the end."""
        ino = self._listed.get(fh)
        if ino is None:
            raise FileError(errno.EBADF)
        return await self.entries(ino, fh, cookie, limit)

    async def entries(self, ino: Ino, reader: int, cookie: int, limit: int) -> list[DirEntry]:
        """`readdir` without a handle, for a reader who reads a directory once at a time."""
        entries = await self._directories.page(ino, reader, cookie, limit)
        self._delegations.listed(ino, entries)
        if not self._files and self._queue.is_empty:
            return list(entries)
        return [entry._replace(attr=self._overlay(entry.attr)) for entry in entries]

    async def releasedir(self, fh: int) -> None:
        if self._listed.pop(fh, None) is None:
            raise FileError(errno.EBADF)

    async def fsyncdir(self, ino: Ino) -> None:
        """fsync(2) of a directory: the tree is durable before a change is answered, but for what
        only this mount knows of. Of the mount's root: all of it."""
        if ino == ROOT_INO:
            await self.sync()
        await self._queue.flush()
        await self._delegations.settle_directory(ino)
        await self._saves.wait()
        self._queue.raise_failure(ino)
        failure = self._behind.take_failure(ino)
        if failure is not None:
            raise failure

    async def sync(self) -> None:
        """syncfs(2): whatever was closed is durable. The first error, also of what was lost before
        without anybody being told."""
        failure = await self._behind.tell_all()
        await self._saves.wait()
        failure = self._behind.take_failure(None) or failure
        await self._queue.flush()
        if failure is not None:
            raise failure
        self._queue.raise_failure(None)

    # --- files ---------------------------------------------------------------------------------

    async def open(self, caller: Caller, ino: Ino, flags: int) -> int:
        """open(2) of an existing regular file: the newest version that anybody has closed."""
        known = self.open_nowait(caller, ino, flags)
        if known is not None:
            return known
        fh, _ = await self._open(caller, ino, flags)
        if flags & os.O_TRUNC and flags & O_ACCMODE != os.O_RDONLY:
            try:
                await self._handles[fh].file.empty(caller)
            except BaseException:
                self._background.later(self.release(fh))
                raise
        return fh

    def open_nowait(self, caller: Caller, ino: Ino, flags: int) -> int | None:
        """As `open`, without a question; None: one is needed.

        While there is a lease the attributes at hand are the newest, and so is what is known of the
        file since it was last looked at. Where that is nothing, it is looked at when it is read.
        """
        attr = self._cache.attr(ino)
        if attr is None and self._behind.has(ino):
            attr = self._delegations.shown(ino)
        if attr is None or not attr.is_regular or flags & os.O_TRUNC or self.lease_s() <= 0:
            return None
        file = self._files.get(ino)
        if file is None:
            file = self._closed.take(attr)
            if file is None:
                file = self._file_of(FileVersion(attr, (), ()))
                file.changed_elsewhere()
            self._files[ino] = file
        elif file.stale:
            return None  # the answer brings its content along
        fh = self._new_handle(file, flags, caller)
        self._holds.opened(fh, ino)
        return fh

    async def open_version(self, caller: Caller, ino: Ino) -> tuple[int, FileVersion]:
        """`open` for reading, and what the newest version consists of. Reads give later versions as
        soon as there are any: compare ``getattr(ino).version`` at the end."""
        return await self._open(caller, ino, os.O_RDONLY)

    async def _open(self, caller: Caller, ino: Ino, flags: int) -> tuple[int, FileVersion]:
        opened: list[int] = []

        def arrived(version: FileVersion) -> tuple[int, FileVersion]:
            # At arrival, in order with invalidations: later there might be an unseen one between.
            self._cache.put_attr(version.attr)
            file = self._files.get(ino)
            # The node may have held this back until after a push that is newer than it.
            is_late = self._cache.is_late(ino)
            if file is None:
                file = self._files[ino] = self._file_of(version)
            elif not is_late and not file.busy:
                file.adopt(version)
            if is_late or file.busy:
                file.changed_elsewhere()
            opened.append(self._new_handle(file, flags, caller))
            self._holds.told(opened[0], ino)
            return opened[0], version

        try:
            answer: tuple[int, FileVersion] = await self.client.call(Open(ino), arrived=arrived)
        except asyncio.CancelledError:
            for handle in opened:
                self._background.later(self.release(handle))
            raise
        return answer

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int]:
        """open(2) with O_CREAT. EEXIST with O_EXCL; EISDIR for a directory."""
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
        exclusive = bool(flags & os.O_EXCL)
        made = self._journal.made_before()
        if made is not None:  # by the worker before this one, which died before it was answered
            fh = await self.open(caller, made, flags & ~os.O_TRUNC)
            return await self.getattr(made), fh
        known = self.create_nowait(caller, parent, name, mode, flags, umask)
        may_be_here = flags & O_ACCMODE != os.O_RDONLY and not self._journal.sent_before()
        if (
            known is None
            and may_be_here
            and (await self._ask_for(parent) or await self._delegations.wait_numbers(parent))
        ):
            known = self.create_nowait(caller, parent, name, mode, flags, umask)
        if known is not None:
            return known

        def arrived(answer: Any) -> tuple[Attr, bool]:
            attr, created = answer
            # The first answer, repeated: since then others may have opened and written it.
            created = created and not self.client.is_repeat
            if created and attr.mode <= ST_MODE_BITS:
                self._cache.put_xattr_names(attr.ino, ())
            return self._arrived_entry(parent, name, attr), created

        command = Create(caller, parent, name, mode & 0o7777, exclusive, umask)
        attr, created = await self._execute(command, arrived)
        if not created:
            if attr.is_symlink:
                raise FileError(errno.ELOOP)  # whoever wants it followed walks the path first
            fh = await self.open(caller, attr.ino, flags)
            return self._overlay(attr), fh
        fh = self._open_new(attr, flags, caller)
        self._holds.opened(fh, attr.ino)
        return attr, fh

    def create_nowait(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int] | None:
        """`create` of a file of which the cluster hears later; None: it must be asked."""
        # close(2) of a file that can't be written publishes nothing, so nobody would settle it.
        if flags & O_ACCMODE == os.O_RDONLY or not self._may_make(parent, name):
            return None
        create = self._delegations.create(caller, parent, name, mode & 0o7777 & ~umask)
        return None if create is None else (create.attr, self._open_pending(create, flags))

    def _open_pending(self, create: PendingCreate, flags: int) -> int:
        """A handle of a file that only this mount knows of."""
        self._cache.answers(self._cache.moment)
        self._cache.forget((), ((create.parent, create.name),))
        self._cache.put_xattr_names(create.ino, ())
        fh = self._open_new(create.attr, flags, create.caller)
        self._files[create.ino].begins_as(create)
        self._holds.opened(fh, create.ino)
        return fh

    async def put_file(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, content: bytes, mtime_ns: int
    ) -> Attr:
        """A new file with all of its content, at once for everybody. EEXIST."""
        extents = (Extent(0, len(content), PUT_BLOB, 0),) if content else ()
        command = PutFile(caller, parent, name, mode, len(content), extents, (), TimeNs(mtime_ns))

        def arrived(answer: Any) -> Attr:
            return self._arrived_entry(parent, name, answer)

        attr: Attr = await self._execute(command, arrived, content or None)
        return attr

    async def tmpfile(
        self, caller: Caller, parent: Ino, mode: int, flags: int, umask: int = 0
    ) -> tuple[Attr, int]:
        """open(2) with O_TMPFILE."""
        command = Tmpfile(caller, parent, mode & 0o7777, umask)
        attr = await self._execute(command, self._arrived_attr)
        fh = self._open_new(attr, flags, caller)
        self._holds.opened(fh, attr.ino)
        return attr, fh

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Bytes of the file as it is now, for every reader on this mount; short only at the end."""
        handle = self._handle(fh)
        if handle.flags & O_ACCMODE == os.O_WRONLY:
            raise FileError(errno.EBADF)
        sequential = offset == handle.next_offset
        handle.next_offset = offset + size
        return await handle.file.read(offset, size, sequential and offset > 0)

    async def local_file(self, fh: int) -> LocalBlob | None:
        """The file on this machine that has exactly the content of ``fh`` now, if there is one.
        Not pinned: see `local_blobs`."""
        file = self._handle(fh).file
        await file.look()
        info = file.whole_blob()
        if info is None:
            return None
        local = await self._local.get(info)
        # Meanwhile it may have been written, here or elsewhere.
        return local if file.whole_blob() == info else None

    def local_file_nowait(self, fh: int) -> tuple[bool, LocalBlob | None]:
        """Whether the answer of `local_file` is known without waiting, and then that answer."""
        file = self._handle(fh).file
        if file.stale:
            return False, None
        info = file.whole_blob()
        return (True, None) if info is None else self._local.get_nowait(info)

    async def write(
        self, fh: int, offset: int, data: bytes | memoryview, append: bool | None = None
    ) -> int:
        """Stage ``data``; durable and seen by other machines after flush or fsync.

        append  at the file's end, wherever ``offset`` is; None: if it was opened so.
        """
        written = self.write_nowait(fh, offset, data, append)
        if written is not None:
            return written
        # A write on top of a size that is no longer the file's would show that size until the next
        # read.
        handle = self._handle(fh)
        await handle.file.look()
        append = handle.appends if append is None else append
        return handle.file.write(handle.caller, offset, data, append)

    def write_nowait(
        self, fh: int, offset: int, data: bytes | memoryview, append: bool | None = None
    ) -> int | None:
        """As `write`; None: what the cluster has of the file must be looked at first."""
        handle = self._handle(fh)
        if not handle.writable:
            raise FileError(errno.EBADF)
        file = handle.file
        if file.stale:
            return None
        append = handle.appends if append is None else append
        return file.write(handle.caller, offset, data, append)

    async def flush(self, fh: int) -> None:
        """close(2) of one descriptor: what was written is durable, or close() gets the error. Or it
        will be soon: `behind`."""
        if self.flush_nowait(fh):
            return
        file = self._handle(fh).file
        if not await self._behind.wait_room(file, self.client.deadline_s):
            await self._publish(file)
            self._behind.works()

    def flush_nowait(self, fh: int) -> bool:
        """As `flush`, where that need not wait; False: it must."""
        handle = self._handle(fh)
        if not handle.writable:
            return True
        file = handle.file
        if not file.is_untold:
            return True
        return self._behind.close_nowait(file)

    async def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2), of metadata too: the names that the file got may be known here only."""
        await self._publish(self._handle(fh).file)
        await self._queue.flush()

    def stamp(self, fh: int, mtime_ns: int) -> None:
        """What is written and not published yet gets this modification time when it is."""
        self._handle(fh).file.set_mtime(mtime_ns)

    async def drain(self, fh: int) -> None:
        """Wait until what was written has left this machine, but for the last megabyte or so.

        For writers that nobody else slows down; without it a copy is staged as a whole first.
        """
        await self._handle(fh).file.drain()

    async def release(self, fh: int) -> None:
        """The last descriptor of this open is closed. Errors were flush's to tell."""
        if self.release_nowait(fh):
            return
        handle = self._close(fh)
        file = handle.file
        if handle.writable and (file.dirty or file.is_pending):
            try:
                await self._publish(file)
            except PydiError as exc:
                log.warning("ino=%d: not published at close: %s", file.ino, exc)
        await self._let_go(fh, handle, wanted=True)

    def release_nowait(self, fh: int) -> bool:
        """As `release`, where nothing is left to do that others wait for; False: something is.

        Who opens the file next, and that may be at once, opens one that nobody writes.
        """
        file = self._handle(fh).file
        if file.is_untold and not self._behind.has(file.ino):
            return False
        handle = self._close(fh)
        file.handles -= 1
        file.writers -= handle.writable
        if not file.handles and not self._behind.has(file.ino):
            self._leave(file)
        self._holds.closed(fh)
        return True

    def park(self, fh: int) -> bool:
        """No program has this handle open any more, but one may soon, and gets it by `unpark`: it
        stays as it is, and the node need not know. False: `release` it."""
        handle = self._handle(fh)
        if handle.writable or not handle.file.is_at_rest:
            return False
        self._holds.closed(fh)
        return True

    def unpark(self, fh: int, attr: Attr) -> bool:
        """A program opened it again. False: `release` it and open the file, which may be another.

        attr  what `getattr_nowait` said of the file when it was opened. A change, whoever makes it,
              puts another object into the cache or none.
        """
        file = self._handles[fh].file
        if (
            self._cache.attr(attr.ino) is not attr
            or file.writers
            or not file.is_at_rest
            or self.client.lease_s() <= 0
        ):
            return False
        self._holds.opened(fh, attr.ino)
        return True

    async def abandon(self, fh: int) -> None:
        """Close without publishing: what was written since the last flush never was.

        Only on a file that nobody else writes here; with another open handle, its flush publishes
        what was written through this one too.
        """
        await self._let_go(fh, self._close(fh), wanted=False)

    def _close(self, fh: int) -> _Handle:
        handle = self._handles.pop(fh, None)
        if handle is None:
            raise FileError(errno.EBADF)
        return handle

    async def _let_go(self, fh: int, handle: _Handle, wanted: bool) -> None:
        file = handle.file
        file.handles -= 1
        file.writers -= handle.writable
        if await file.is_unused() and self._files.get(file.ino) is file:
            self._forget(file)
            if file.dirty and wanted:
                log.error("ino=%d: content lost, close() had reported the error", file.ino)
                self.on_invalidate((file.ino,), (), False)  # the kernel shows it still
            await file.discard()
        self._holds.closed(fh)

    def ino_of(self, fh: int) -> Ino:
        return self._handle(fh).file.ino

    def blobs_of(self, fh: int) -> Collection[BlobInfo]:
        """What holds the content of an open file, as far as it is published."""
        return self._handle(fh).file.blobs

    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): holes are made, space is not reserved, but ENOSPC for what can't fit now.
        EOPNOTSUPP: collapse, insert."""
        handle = self._handle(fh)
        if not handle.writable:
            raise FileError(errno.EBADF)
        if offset < 0 or length <= 0:
            raise FileError(errno.EINVAL)
        if offset + length > FILE_SIZE_MAX:
            raise FileError(errno.EFBIG)
        file = handle.file
        free_bytes = (await self.statfs()).free_bytes
        await file.look()
        keep_size = bool(mode & FALLOC_KEEP_SIZE)
        if mode & ~FALLOC_KEEP_SIZE == 0:
            if file.holes_within(offset, length) > free_bytes:
                raise FileError(errno.ENOSPC)
            if not keep_size and offset + length > file.size:
                file.truncate(handle.caller, offset + length)
        elif mode == FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE:
            file.punch(handle.caller, offset, length, keep_size=True)
        elif mode & ~FALLOC_KEEP_SIZE == FALLOC_ZERO_RANGE:
            file.punch(handle.caller, offset, length, keep_size=keep_size)
        else:
            raise FileError(errno.EOPNOTSUPP)

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE. ENXIO behind the end."""
        handle = self._handle(fh)
        await handle.file.look()
        if whence not in (portable.SEEK_DATA, portable.SEEK_HOLE):
            raise FileError(errno.EINVAL)
        return handle.file.seek(offset, data=whence == portable.SEEK_DATA)

    async def commit(self, command: Commit) -> Attr:
        """Content that the cluster has already becomes a file's. Nothing staged is published."""
        return self._overlay(await self._execute(command, self._arrived_content))

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        """copy_file_range(2) by sharing extents: no byte is copied. Returns bytes "copied"."""
        source, target = self._handle(fh_in), self._handle(fh_out)
        if not target.writable or source.flags & O_ACCMODE == os.O_WRONLY:
            raise FileError(errno.EBADF)
        await self._publish(source.file)
        await self._publish(target.file)
        command = CloneRange(
            target.caller, source.file.ino, offset_in, target.file.ino, offset_out, length
        )

        def arrived(answer: Any) -> int:
            attr, copied = answer
            self._arrived_content(attr)
            return int(copied)

        copied: int = await self._execute(command, arrived)
        return copied

    # --- inside --------------------------------------------------------------------------------

    def _handle(self, fh: int) -> _Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise FileError(errno.EBADF)
        return handle

    def _writes(self, fh: int | None) -> bool:
        return fh is not None and fh in self._handles and self._handles[fh].writable

    def _new_fh(self) -> int:
        self._last_fh += 1
        return self._last_fh

    def _new_handle(self, file: OpenFile, flags: int, caller: Caller) -> int:
        fh = self._new_fh()
        self._add_handle(fh, file, flags, caller)
        return fh

    def _add_handle(self, fh: int, file: OpenFile, flags: int, caller: Caller) -> None:
        handle = _Handle(file, flags, caller, writable=flags & O_ACCMODE != os.O_RDONLY)
        self._handles[fh] = handle
        file.handles += 1
        file.writers += handle.writable

    def _open_new(self, attr: Attr, flags: int, caller: Caller) -> int:
        """A handle of a file that was created just now: its content is known."""
        file = self._files[attr.ino] = self._file_of(FileVersion(attr, (), ()))
        return self._new_handle(file, flags, caller)
