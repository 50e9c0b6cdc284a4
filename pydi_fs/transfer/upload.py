"""Local files into the tree.

Called by `pydi_fs.commands_copy`. A name of the tree shows its old content until the new one is
whole and on disk. A small file is one command in one request. A large one grows in an inode of
its own, nameless or a part (see `plan`), and is then linked to its name, or becomes a new version
of the file that has the name:

    growing ──link──► a new file             growing ──Commit of the same blobs──► a new version
       └─ interrupted ──► a part, for --continue
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pydi_fs import standard_input
from pydi_fs.commands_files import remove_below
from pydi_fs.commands_session import (
    CHUNK_BYTES,
    FILE_ERRORS,
    Session,
    about,
    in_parallel,
    show,
    warn,
)
from pydi_fs.same_content import commit_same
from pydi_fs.transfer import plan
from pydi_fs.transfer.local import hash_range
from pydi_fs.transfer.plan import CopyOptions, LocalState
from pydi_node import portable
from pydi_node.commands import TIME_NOW
from pydi_node.errors import FileError, NoSpaceError, PydiError
from pydi_node.ids import Ino
from pydi_node.records import Attr, FileVersion
from pydi_node.wire.messages import GetFile

DRAIN_BYTES = 8 * plan.MIB  # written between two looks whether the network keeps up
SPARSE_BYTES_MIN = 64 * 1024
RENAME_NOREPLACE = 1

# (offset, bytes) of what is no hole, in order
Chunks = AsyncIterator[tuple[int, bytes]]


@dataclass(slots=True)
class Upload:
    """One ``put`` with all that it copies."""

    session: Session
    options: CopyOptions
    # (device, inode) of a local file with several names -> its inode in the tree, once it is there
    _linked: dict[tuple[int, int], asyncio.Future[Ino | None]] = field(default_factory=dict)

    async def tree(self, source: bytes, parent: Ino, name: bytes) -> None:
        """A local directory with all below it, as ``name``; into a directory of that name."""
        # Directories get their modes and times last, deepest first: filling them changes those.
        made: list[tuple[Ino, os.stat_result]] = []
        pending = [(source, parent, name)]
        while pending:
            path, parent, name = pending.pop()
            try:
                pending += await self._directory(path, parent, name, made)
            except (*FILE_ERRORS, OSError) as exc:
                self.session.complain(about(path, exc))
        for ino, status in reversed(made):
            await self._set_like(await self.session.vfs.getattr(ino), status)

    async def _directory(
        self, path: bytes, parent: Ino, name: bytes, made: list[tuple[Ino, os.stat_result]]
    ) -> list[tuple[bytes, Ino, bytes]]:
        """One directory and the files in it; the directories in it, still to be copied."""
        session, status = self.session, os.lstat(path)
        with os.scandir(path) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        attr = await session.child(parent, name)
        if attr is not None and not attr.is_dir and self.options.mirror:
            await session.vfs.unlink(session.caller, parent, name)
            attr = None
        if attr is None:
            # Writable for us until it is full, whatever mode it gets in the end.
            mode = 0o700 if portable.HAS_MODES else portable.mode_of(status)
            attr = await session.vfs.mkdir(session.caller, parent, name, mode)
        elif not attr.is_dir:
            raise FileError(errno.ENOTDIR)
        made.append((attr.ino, status))
        there = {entry.name: entry.attr for entry in await session.entries(attr.ino)}
        files, below = [], []
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                below.append((entry.path, attr.ino, entry.name))
            elif not plan.is_part(entry.name):
                files.append((entry.path, attr.ino, entry.name, there.get(entry.name)))
        await in_parallel(self._entry, files)
        if self.options.mirror:
            names = {entry.name for entry in listed}
            surplus = {
                name: attr
                for name, attr in there.items()
                if name not in names and not plan.is_part(name)
            }
            await self._remove(path, attr.ino, surplus)
        return below

    async def _entry(self, path: bytes, parent: Ino, name: bytes, existing: Attr | None) -> None:
        try:
            await self.one(path, os.lstat(path), parent, name, existing)
        except (*FILE_ERRORS, OSError) as exc:
            self.session.complain(about(path, exc))

    async def _remove(self, path: bytes, parent: Ino, surplus: dict[bytes, Attr]) -> None:
        """What the source does not have. One refusal leaves the others to go."""
        session = self.session
        for name, attr in sorted(surplus.items()):
            try:
                if attr.is_dir:
                    await remove_below(session, attr.ino)
                    await session.vfs.rmdir(session.caller, parent, name)
                else:
                    await session.vfs.unlink(session.caller, parent, name)
            except FILE_ERRORS as exc:
                session.complain(about(path + b"/" + name, exc))

    async def one(
        self,
        path: bytes,
        status: os.stat_result,
        parent: Ino,
        name: bytes,
        existing: Attr | None,
    ) -> None:
        """A local file or link, in place of a file of that name (``existing``)."""
        session = self.session
        if existing is not None and existing.is_dir:
            if not self.options.mirror:
                raise FileError(errno.EISDIR)
            await self._remove(os.path.dirname(path), parent, {name: existing})
            existing = None
        if stat.S_ISLNK(status.st_mode):
            await self._symlink(path, status, parent, name, existing)
        elif stat.S_ISREG(status.st_mode):
            if existing is not None and not existing.is_regular:
                await session.vfs.unlink(session.caller, parent, name)
                existing = None
            if status.st_nlink == 1:
                await self._file(path, status, parent, name, existing)
            else:
                await self._file_of_many_names(path, status, parent, name, existing)
        else:
            session.complain(f"{show(path)}: neither file, directory nor symbolic link, left out")

    async def _symlink(
        self, path: bytes, status: os.stat_result, parent: Ino, name: bytes, existing: Attr | None
    ) -> None:
        session, target = self.session, portable.read_link(path)
        is_link = existing is not None and existing.is_symlink and not self.options.everything
        if existing is not None and is_link and target == await session.vfs.readlink(existing.ino):
            await self._set_like(existing, status)
            session.progress.skip()
            return
        if existing is not None:
            await session.vfs.unlink(session.caller, parent, name)
        attr = await session.vfs.symlink(session.caller, parent, name, target)
        await session.vfs.setattr(session.caller, attr.ino, mtime_ns=status.st_mtime_ns)
        session.progress.add(files=1)

    async def _file_of_many_names(
        self, path: bytes, status: os.stat_result, parent: Ino, name: bytes, existing: Attr | None
    ) -> None:
        """The first of its names that comes by is copied, the others become links to it."""
        key = (status.st_dev, status.st_ino)
        first = self._linked.get(key)
        if first is None:
            first = self._linked[key] = asyncio.get_running_loop().create_future()
            ino: Ino | None = None
            try:
                ino = await self._file(path, status, parent, name, existing)
            finally:
                first.set_result(ino)
            return
        target = await first
        if target is None:  # its copy failed; perhaps this one does not
            await self._file(path, status, parent, name, existing)
            return
        if existing is not None and existing.ino != target:
            await self.session.vfs.unlink(self.session.caller, parent, name)
            existing = None
        if existing is None:
            await self.session.vfs.link(self.session.caller, target, parent, name)
        self.session.progress.add(files=1)

    async def _file(
        self, path: bytes, status: os.stat_result, parent: Ino, name: bytes, existing: Attr | None
    ) -> Ino:
        session = self.session
        state = LocalState(status.st_mode, status.st_size, status.st_mtime_ns)
        is_compared = existing is not None and not self.options.everything
        if existing is not None and is_compared and plan.is_unchanged(state, existing):
            await self._set_like(existing, status)
            session.progress.skip(status.st_size)
            return existing.ino
        fd = os.open(path, os.O_RDONLY | portable.O_PLAIN | portable.O_NOFOLLOW)
        try:
            opened = os.fstat(fd)
            if not stat.S_ISREG(opened.st_mode):
                raise OSError(errno.EAGAIN, "is no regular file any more")
            if opened.st_size <= plan.SMALL_BYTES_MAX and not _is_sparse(opened):
                content = os.read(fd, plan.SMALL_BYTES_MAX)
                attr = await self._small(content, opened, parent, name, existing)
            else:
                part = None
                if opened.st_size >= plan.PART_BYTES_MIN:
                    state = LocalState(opened.st_mode, opened.st_size, opened.st_mtime_ns)
                    part = plan.part_of_local(opened.st_dev, opened.st_ino, state, name)
                target = _Target(parent, name, portable.mode_of(opened), opened.st_mtime_ns)
                attr = await self._large(_data_of(fd), fd, opened.st_size, target, part)
            await self._set_like(attr, opened)
            return attr.ino
        finally:
            os.close(fd)

    async def standard_input(self, parent: Ino, name: bytes) -> None:
        """Standard input up to its end, as ``name``."""
        mode = 0o666 & ~self.session.umask
        await self._large(_data_of_stdin(), None, 0, _Target(parent, name, mode, None), None)

    # --- small files -----------------------------------------------------------------------------

    async def _small(
        self,
        content: bytes,
        status: os.stat_result,
        parent: Ino,
        name: bytes,
        existing: Attr | None,
    ) -> Attr:
        session = self.session
        if existing is not None:
            await session.vfs.access(session.caller, existing.ino, os.W_OK)
        # From here on it happens as a whole, or a Ctrl-C would leave an empty file.
        is_new = existing is None
        task = asyncio.ensure_future(_store_small(session, content, status, parent, name, is_new))
        try:
            attr = await asyncio.shield(task)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait([task], timeout=session.client.deadline_s)
            if done and (error := task.exception()) is not None:
                warn(about(name, error))
            raise
        session.progress.add(files=1, bytes_=len(content))
        return attr

    # --- large ones ------------------------------------------------------------------------------

    async def _large(
        self, chunks: Chunks, fd: int | None, size: int, target: _Target, part: bytes | None
    ) -> Attr:
        """Content that does not fit into one request; ``name`` shows it when all of it is there."""
        session, vfs, caller = self.session, self.session.vfs, self.session.caller
        existing = await session.child(target.parent, target.name)
        if existing is not None:
            await vfs.access(caller, existing.ino, os.W_OK)
        if part is None:
            # Nobody else can open it, whatever the mode: it has no name yet.
            growing, fh = await vfs.tmpfile(caller, target.parent, target.mode, os.O_WRONLY)
        else:
            growing, fh, start = await self._open_part(target.parent, part, fd, size)
            session.progress.skip(start, files=0)
            chunks = _data_of(fd, start) if fd is not None else chunks
        try:
            await self._fill(fh, growing.ino, chunks, size)
            attr = await self._finish(fh, growing, target, part, existing)
        except BaseException as exc:
            await self._leave(fh, target.parent, part, exc)
            raise
        session.progress.add(files=1)
        return attr

    async def _open_part(
        self, parent: Ino, part: bytes, fd: int | None, size: int
    ) -> tuple[Attr, int, int]:
        """(inode, handle, bytes that are right already) of the part: a new one, or with --continue
        what an interrupted copy left, up to where its checksums agree with the local file."""
        session, vfs, caller = self.session, self.session.vfs, self.session.caller
        found = await session.child(parent, part)
        if found is not None and not (self.options.resume and found.is_regular):
            await vfs.unlink(caller, parent, part)
            found = None
        if found is None:
            attr, fh = await vfs.create(caller, parent, part, 0o600, os.O_WRONLY | os.O_EXCL)
            return attr, fh, 0
        version: FileVersion = await vfs.client.call(GetFile(found.ino))
        assert fd is not None
        right = []
        for piece in plan.pieces(version):
            if await asyncio.to_thread(hash_range, fd, piece.offset, piece.length) != (
                piece.checksum
            ):
                break
            right.append(piece)
        start = plan.covered_up_to(right, _holes(fd, size), min(size, found.size))
        fh = await vfs.open(caller, found.ino, os.O_WRONLY)
        await vfs.setattr(caller, found.ino, size=start, fh=fh)
        return found, fh, start

    async def _fill(self, fh: int, ino: Ino, chunks: Chunks, size: int) -> None:
        """Write the chunks; publish in stretches, so that little is lost by a crash."""
        session, vfs = self.session, self.session.vfs
        end = since_drain = since_checkpoint = 0
        async for offset, data in chunks:
            await vfs.write(fh, offset, data)
            end = offset + len(data)
            since_drain += len(data)
            since_checkpoint += len(data)
            session.progress.add(bytes_=len(data))
            if since_checkpoint >= plan.CHECKPOINT_BYTES:
                await vfs.flush(fh)
                since_checkpoint = since_drain = 0
            elif since_drain >= DRAIN_BYTES:
                await vfs.drain(fh)
                since_drain = 0
        if end < size:  # a hole at the end
            await vfs.setattr(session.caller, ino, size=size, fh=fh)
        await vfs.flush(fh)

    async def _finish(
        self, fh: int, growing: Attr, target: _Target, part: bytes | None, existing: Attr | None
    ) -> Attr:
        """The complete content gets its name, or becomes a version of the file that has it."""
        session, vfs, caller = self.session, self.session.vfs, self.session.caller
        parent, name = target.parent, target.name
        if existing is None:
            # Before it has a name nobody can see that it is not like its source yet.
            await vfs.setattr(caller, growing.ino, mode=target.mode, mtime_ns=target.mtime_ns)
            try:
                if part is None:
                    await vfs.link(caller, growing.ino, parent, name)
                else:
                    await vfs.rename(caller, parent, part, parent, name, RENAME_NOREPLACE)
            except FileError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                existing = await vfs.lookup(parent, name)  # someone else made it meanwhile
            else:
                await vfs.release(fh)
                return await vfs.getattr(growing.ino)
        attr = await commit_same(session, existing.ino, growing.ino, mtime_ns=target.mtime_ns)
        await vfs.release(fh)
        if part is not None:
            await vfs.unlink(caller, parent, part)
        return attr

    async def _leave(self, fh: int, parent: Ino, part: bytes | None, exc: BaseException) -> None:
        """An upload that did not end: keep what --continue can use, and nothing else.

        Cancelled is a person's Ctrl-C; unavailable nodes come back. A full cluster gets its space
        back instead.
        """
        vfs, is_kept = self.session.vfs, part is not None and not isinstance(exc, NoSpaceError)
        try:
            if is_kept and isinstance(exc, asyncio.CancelledError):
                async with asyncio.timeout(vfs.client.deadline_s):
                    await vfs.flush(fh)
            await vfs.abandon(fh)
            if part is not None and not is_kept:
                await vfs.unlink(self.session.caller, parent, part)
            elif part is not None:
                warn("what was copied is kept: put --continue goes on from there")
        except (PydiError, TimeoutError) as error:
            warn(f"an unfinished copy may stay behind: {error}")

    async def _set_like(self, attr: Attr, status: os.stat_result) -> None:
        """Mode and times of ``status``, unless the inode has them already."""
        mode: int | None = portable.mode_of(status)
        # What a system without modes makes of one says nothing against the one that is there.
        if stat.S_IMODE(attr.mode) == mode or attr.is_symlink or not portable.HAS_MODES:
            mode = None
        if mode is not None or not plan.is_same_time(attr.mtime_ns, status.st_mtime_ns):
            await self.session.vfs.setattr(
                self.session.caller, attr.ino,
                mode=mode, atime_ns=TIME_NOW, mtime_ns=status.st_mtime_ns,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Target:
    """Where content goes, and what it looks like there."""

    parent: Ino
    name: bytes
    mode: int
    mtime_ns: int | None  # None: now


async def _store_small(
    session: Session,
    content: bytes,
    status: os.stat_result,
    parent: Ino,
    name: bytes,
    is_new: bool,
) -> Attr:
    """A new file, in one command; or a new version of the file that has this name, in one commit.

    is_new  as far as anybody knows here.
    """
    vfs, mode = session.vfs, portable.mode_of(status)
    if is_new:
        try:
            return await vfs.put_file(
                session.caller, parent, name, mode, content, status.st_mtime_ns
            )
        except FileError as exc:
            if exc.errno != errno.EEXIST:
                raise
    attr, fh = await vfs.create(session.caller, parent, name, mode, os.O_WRONLY | os.O_TRUNC)
    try:
        # Nothing waits between the opening, this and the beginning of the flush, so that two
        # copies to one name are one after the other.
        if content:
            await vfs.write(fh, 0, content)
        vfs.stamp(fh, status.st_mtime_ns)
        await vfs.flush(fh)
    except BaseException:
        await vfs.abandon(fh)
        raise
    await vfs.release(fh)
    return await vfs.getattr(attr.ino)


def _is_sparse(status: os.stat_result) -> bool:
    """It has holes that are worth keeping. (Small files may lie in the inode, without a block.)"""
    blocks = getattr(status, "st_blocks", None)
    return blocks is not None and status.st_size - blocks * 512 >= SPARSE_BYTES_MIN


# --- reading what is copied ----------------------------------------------------------------------


async def _data_of(fd: int, start: int = 0) -> Chunks:
    """What is no hole in a local file from ``start`` on."""
    offset = start
    while (begin := _next_data(fd, offset)) is not None:
        offset, end = begin, _next_hole(fd, begin)
        while offset < end:
            data = portable.pread(fd, min(CHUNK_BYTES, end - offset), offset)
            if not data:
                return
            yield offset, data
            offset += len(data)
            await asyncio.sleep(0)  # a disk that is faster than the network must not starve it


def _next_data(fd: int, offset: int) -> int | None:
    """Where data begins at or after ``offset``; None: only a hole follows, or nothing."""
    if not hasattr(os, "SEEK_DATA"):  # a system that can't tell: all is data
        return offset if offset < os.fstat(fd).st_size else None
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        raise


def _next_hole(fd: int, offset: int) -> int:
    """Where the data at ``offset`` ends."""
    if not hasattr(os, "SEEK_HOLE"):
        return os.fstat(fd).st_size
    return os.lseek(fd, offset, os.SEEK_HOLE)


def _holes(fd: int, size: int) -> list[tuple[int, int]]:
    """(offset, length) of the holes of a local file."""
    holes, offset = [], 0
    while offset < size:
        begin = _next_data(fd, offset)
        begin = size if begin is None else begin
        if begin > offset:
            holes.append((offset, begin - offset))
        offset = _next_hole(fd, begin) if begin < size else size
    return holes


async def _data_of_stdin() -> Chunks:
    offset = 0
    while data := await standard_input.read():
        yield offset, data
        offset += len(data)
