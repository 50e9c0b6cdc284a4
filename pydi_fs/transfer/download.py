"""Files of the tree to local ones.

Called by `pydi_fs.commands_copy`. A local name shows its old content until the new one is complete
and verified: content arrives in a *part* beside it (see `plan`) and is renamed into place. Every
blob of a file is hashed on its way, so what is renamed is what was once written, whoever sent it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import dataclass, field

from blake3 import blake3

from pydi_fs.commands_session import (
    CHUNK_BYTES,
    FILE_ERRORS,
    Session,
    about,
    in_parallel,
    show,
    warn,
)
from pydi_fs.transfer import plan
from pydi_fs.transfer.local import hash_into, hash_range
from pydi_fs.transfer.plan import CopyOptions, LocalState
from pydi_node import portable
from pydi_node.errors import BlobError, FileError
from pydi_node.ids import Ino
from pydi_node.records import Attr, DirEntry, FileVersion

ATTEMPTS_MAX = 3  # a file that changes or comes damaged is begun again; not for ever


class _BeginAgain(BlobError):
    """Nothing of this attempt can be used."""


@dataclass(slots=True)
class Download:
    """One ``get`` with all that it copies."""

    session: Session
    options: CopyOptions
    # inode with several names -> where its first copy is, once it is there
    _linked: dict[Ino, asyncio.Future[bytes | None]] = field(default_factory=dict)

    async def tree(self, top: Attr, local: bytes) -> None:
        """A directory of the tree with all below it, as ``local``."""
        made: list[tuple[bytes, Attr]] = []
        pending = [(top, local)]
        while pending:
            directory, path = pending.pop()
            try:
                pending += await self._directory(directory, path, path == local, made)
            except (*FILE_ERRORS, OSError) as exc:
                self.session.complain(about(path, exc))
        for path, attr in reversed(made):
            if portable.HAS_MODES:
                os.chmod(path, stat.S_IMODE(attr.mode))
            portable.set_times(path, attr.atime_ns, attr.mtime_ns)

    async def _directory(
        self, directory: Attr, path: bytes, is_named: bool, made: list[tuple[bytes, Attr]]
    ) -> list[tuple[Attr, bytes]]:
        """One directory and the files in it; the directories in it, still to be copied.

        is_named  it may be a link to a directory: the person wrote it.
        """
        session = self.session
        await session.vfs.access(session.caller, directory.ino, os.R_OK | os.X_OK)
        entries = [e for e in await session.entries(directory.ino) if not plan.is_part(e.name)]
        wanted = {entry.name for entry in entries}
        if self.options.mirror and os.path.lexists(path) and not _is_directory(path):
            portable.remove(path)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            # Not through a link: that would write outside of what was named.
            if not is_named and not _is_directory(path):
                raise
        made.append((path, directory))
        entries = self._possible(path, entries)
        files, below = [], []
        for entry in entries:
            inside = os.path.join(path, entry.name)
            if entry.attr.is_dir:
                below.append((entry.attr, inside))
            else:
                files.append((entry.attr, inside))
        await in_parallel(self._entry, files)
        if self.options.mirror:
            self._remove(path, wanted)
        return below

    def _possible(self, path: bytes, entries: list[DirEntry]) -> list[DirEntry]:
        """Those that can have their names in this local directory; the others are told."""
        refused = {}
        for entry in entries:
            refusal = portable.name_refusal(entry.name)
            if refusal is not None:
                refused[entry.name] = refusal
        alike = plan.alike(entry.name for entry in entries)
        if alike and portable.folds_names(path):
            for name, first in alike.items():
                refused.setdefault(name, f"this disk takes it for {show(first)}")
        for name, refusal in sorted(refused.items()):
            self.session.complain(f"{show(os.path.join(path, name))}: left out: {refusal}")
        return [entry for entry in entries if entry.name not in refused]

    async def _entry(self, attr: Attr, local: bytes) -> None:
        try:
            await self.one(attr, local)
        except (*FILE_ERRORS, OSError) as exc:
            self.session.complain(about(local, exc))

    def _remove(self, path: bytes, wanted: set[bytes]) -> None:
        """What the source does not have. One refusal leaves the others to go."""
        for name in sorted(set(os.listdir(path)) - wanted):
            if plan.is_part(name):
                continue
            inside = os.path.join(path, name)
            try:
                if _is_directory(inside):
                    portable.remove_tree(inside)
                else:
                    portable.remove(inside)
            except OSError as exc:
                self.session.complain(about(inside, exc))

    async def one(self, attr: Attr, local: bytes) -> None:
        """A file or link of the tree as a local one, in place of a file of that name."""
        session = self.session
        if _is_directory(local):
            if not self.options.mirror:
                raise FileError(errno.EISDIR)
            portable.remove_tree(local)
        if attr.is_symlink:
            await self._symlink(attr, local)
        elif not attr.is_regular:
            session.complain(f"{show(local)}: neither file, directory nor symbolic link, left out")
        elif attr.nlink == 1:
            await self._file(attr, local)
        else:
            await self._file_of_many_names(attr, local)

    async def _symlink(self, attr: Attr, local: bytes) -> None:
        target = await self.session.vfs.readlink(attr.ino)
        if (
            not self.options.everything
            and os.path.islink(local)
            and portable.read_link(local) == target
        ):
            self.session.progress.skip()
            return
        part = _part_of(attr, local)
        if os.path.lexists(part):
            portable.remove(part)
        os.symlink(target, part)
        portable.set_times(part, attr.atime_ns, attr.mtime_ns)
        portable.replace(part, local)
        self.session.progress.add(files=1)

    async def _file_of_many_names(self, attr: Attr, local: bytes) -> None:
        """The first of its names that comes by is copied, the others become links to it."""
        first = self._linked.get(attr.ino)
        if first is None:
            first = self._linked[attr.ino] = asyncio.get_running_loop().create_future()
            done = None
            try:
                await self._file(attr, local)
                done = local
            finally:
                first.set_result(done)
            return
        source = await first
        if source is None:  # its copy failed; perhaps this one does not
            await self._file(attr, local)
            return
        is_there = os.path.lexists(local)
        if not (is_there and os.path.samestat(os.lstat(source), os.lstat(local))):
            part = _part_of(attr, local)
            if os.path.lexists(part):
                portable.remove(part)
            try:
                os.link(source, part)
            except OSError:
                # A file system without hard links: a copy of its own is what it can have.
                await self._file(attr, local)
                return
            portable.replace(part, local)
        self.session.progress.add(files=1)

    async def _file(self, attr: Attr, local: bytes) -> None:
        session = self.session
        if not self.options.everything and os.path.lexists(local):
            status = os.lstat(local)
            state = LocalState(status.st_mode, status.st_size, status.st_mtime_ns)
            if plan.is_unchanged(state, attr):
                if portable.mode_of(status) != stat.S_IMODE(attr.mode) and portable.HAS_MODES:
                    os.chmod(local, stat.S_IMODE(attr.mode))
                session.progress.skip(attr.size)
                return
        await session.vfs.access(session.caller, attr.ino, os.R_OK)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                await self._newest(attr.ino, local)
            except _BeginAgain:
                if attempt == ATTEMPTS_MAX:
                    raise
            else:
                session.progress.add(files=1)
                return

    async def _newest(self, ino: Ino, local: bytes) -> None:
        """The newest version, complete and verified, under the name ``local``."""
        session, vfs = self.session, self.session.vfs
        fh, version = await vfs.open_version(session.caller, ino)
        try:
            attr = version.attr
            part = _part_of(attr, local)
            flags = os.O_RDWR | os.O_CREAT | portable.O_PLAIN | portable.O_NOFOLLOW
            if not self.options.resume and os.path.lexists(part):
                portable.remove(part)
            try:
                with open(os.open(part, flags, 0o600), "r+b", buffering=0) as file:
                    fd = file.fileno()
                    start = await self._resumable(fd, version)
                    os.ftruncate(fd, start)
                    session.progress.skip(start, files=0)
                    await self._fetch(fh, fd, version, start)
                    if (await vfs.getattr(ino)).version != attr.version:
                        raise _BeginAgain("the file changed while it was copied")
                    os.ftruncate(fd, attr.size)  # a hole at the end
                    portable.set_like(fd, stat.S_IMODE(attr.mode), attr.atime_ns, attr.mtime_ns)
                portable.set_like_closed(
                    part, stat.S_IMODE(attr.mode), attr.atime_ns, attr.mtime_ns
                )
            except BaseException as exc:
                self._leave(part, attr, exc)
                raise
            portable.replace(part, local)
        finally:
            await vfs.release(fh)

    async def _resumable(self, fd: int, version: FileVersion) -> int:
        """How many bytes of an earlier attempt can be used: whole blobs are verified now, one that
        began to arrive is when it is complete, and what can't be verified is fetched again."""
        have = min(os.fstat(fd).st_size, version.attr.size)
        checks = {piece.offset: piece for piece in plan.pieces(version)}
        for extent in version.extents:
            if have <= extent.offset:
                break
            piece = checks.get(extent.offset)
            if piece is None:
                return extent.offset
            if have < extent.offset + extent.length:
                break
            checksum = await asyncio.to_thread(hash_range, fd, piece.offset, piece.length)
            if checksum != piece.checksum:
                return extent.offset
        return have

    async def _fetch(self, fh: int, fd: int, version: FileVersion, start: int) -> None:
        """Everything from ``start`` on, each whole blob checked."""
        session = self.session
        checks = {piece.offset: piece for piece in plan.pieces(version)}
        for extent in version.extents:
            end = extent.offset + extent.length
            if end <= start:
                continue
            offset = max(extent.offset, start)
            hasher = blake3()
            if offset > extent.offset:
                # The beginning came with an earlier attempt.
                length = offset - extent.offset
                await asyncio.to_thread(hash_into, hasher, fd, extent.offset, length)
            while offset < end:
                length = min(CHUNK_BYTES, end - offset)
                data = await session.read_chunk(fh, offset, length)
                if not data:
                    raise _BeginAgain("the file became shorter while it was copied")
                hasher.update(data)
                portable.pwrite_all(fd, data, offset)
                offset += len(data)
                session.progress.add(bytes_=len(data))
            check = checks.get(extent.offset)
            if check is not None and hasher.digest() != check.checksum:
                raise _BeginAgain("what arrived is not what was written")

    def _leave(self, part: bytes, attr: Attr, exc: BaseException) -> None:
        """A download that did not end: keep what --continue can use, and nothing else."""
        if not os.path.lexists(part):
            return
        is_space = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
        if attr.size < plan.PART_BYTES_MIN or is_space or isinstance(exc, _BeginAgain):
            portable.remove(part)
        else:
            warn("what was copied is kept: get --continue goes on from there")


def _part_of(attr: Attr, local: bytes) -> bytes:
    directory, name = os.path.split(local)
    return os.path.join(directory, plan.part_of_version(attr, name))


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
