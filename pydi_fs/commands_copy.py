"""``pydi put`` and ``pydi get``: copies into and out of the tree without a mount.

Called by `pydi_fs.cli` with a connected session. Modes, modification times and symbolic links are
kept; owners are those of the person who copies, as with cp -r. Content appears whole or not at all:
in the tree because it is published at close, here because it is renamed into place. Links are
copied, never followed, so a copy reads and writes nothing outside what was named.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import secrets
import stat
import sys
import threading
from collections.abc import Awaitable, Callable
from io import FileIO

from pydi_fs.commands_session import (
    CHUNK_BYTES,
    FILE_ERRORS,
    Session,
    about,
    in_parallel,
    or_none,
    show,
    warn,
)
from pydi_node.commands import TIME_NOW
from pydi_node.errors import EXIT_USAGE, FileError, PydiError, UserError
from pydi_node.ids import Ino
from pydi_node.records import Attr, DirEntry

STDIN_FD = 0
STANDARD = b"-"  # standard input of put, standard output of get


# --- into the tree -------------------------------------------------------------------------------


async def put(session: Session, arguments: argparse.Namespace) -> None:
    """``put SOURCE... TARGET``: local files into the tree; SOURCE "-" is standard input."""
    *sources, target = map(os.fsencode, arguments.path)
    found = await or_none(session.vfs.resolve(target))
    into = found if found is not None and found.is_dir else None
    if into is None and (len(sources) > 1 or target.endswith(b"/")):
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    for source in sources:
        try:
            if source == STANDARD:
                if into is not None:
                    raise UserError(f"{show(target)}: is a directory, name a file", EXIT_USAGE)
                parent, name = await session.parent_of(target)
                mode = 0o666 & ~session.umask
                await _put_content(session, _read_stdin, parent, name, mode)
                continue
            status = os.lstat(source)
            if into is not None:
                parent, name = into.ino, os.path.basename(os.path.abspath(source))
            else:
                parent, name = await session.parent_of(target)
            if stat.S_ISDIR(status.st_mode):
                if not arguments.recursive:
                    session.complain(f"{show(source)}: is a directory (put -r copies it)")
                    continue
                await _put_tree(session, source, parent, name)
            else:
                await _put_one(session, source, status, parent, name)
        except (*FILE_ERRORS, OSError) as exc:
            session.complain(about(source, exc))


async def _put_tree(session: Session, source: bytes, parent: Ino, name: bytes) -> None:
    # Directories get their times last, deepest first: filling them changes those.
    made: list[tuple[Ino, os.stat_result]] = []
    pending = [(source, parent, name)]
    while pending:
        path, parent, name = pending.pop()
        status = os.lstat(path)
        attr = await session.child(parent, name)
        if attr is None:
            # Writable for us until it is full, whatever mode it gets in the end.
            attr = await session.vfs.mkdir(session.caller, parent, name, 0o700)
        elif not attr.is_dir:
            raise FileError(errno.ENOTDIR, show(path))
        made.append((attr.ino, status))
        files = []
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, attr.ino, entry.name))
                else:
                    files.append((session, entry.path, attr.ino, entry.name))
        await in_parallel(_put_entry, files)
    for ino, status in reversed(made):
        await _set_like(session, ino, status)


async def _put_entry(session: Session, path: bytes, parent: Ino, name: bytes) -> None:
    try:
        await _put_one(session, path, os.lstat(path), parent, name)
    except (*FILE_ERRORS, OSError) as exc:
        session.complain(about(path, exc))


async def _put_one(
    session: Session, path: bytes, status: os.stat_result, parent: Ino, name: bytes
) -> None:
    """A local file or link into the tree, in place of a file of that name."""
    existing = await session.child(parent, name)
    if existing is not None and existing.is_dir:
        raise FileError(errno.EISDIR)
    if stat.S_ISLNK(status.st_mode):
        if existing is not None:
            await session.vfs.unlink(session.caller, parent, name)
        attr = await session.vfs.symlink(session.caller, parent, name, os.readlink(path))
        await session.vfs.setattr(session.caller, attr.ino, mtime_ns=status.st_mtime_ns)
        session.progress.add(files=1)
    elif stat.S_ISREG(status.st_mode):
        if existing is not None and not existing.is_regular:
            await session.vfs.unlink(session.caller, parent, name)
        with open(path, "rb", buffering=0) as file:
            mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
            ino = await _put_content(session, _file_reader(file), parent, name, mode, mtime_ns)
        await _set_like(session, ino, status)
    else:
        session.complain(f"{show(path)}: neither file, directory nor symbolic link, left out")


async def _put_content(
    session: Session,
    read: Callable[[], Awaitable[bytes]],
    parent: Ino,
    name: bytes,
    mode: int,
    mtime_ns: int | None = None,
) -> Ino:
    """Chunks from ``read``, up to an empty one, as the content of ``name``: a new file, or a new
    version of the file that has this name."""
    vfs, caller = session.vfs, session.caller
    is_new = await session.child(parent, name) is None
    attr, fh = await vfs.create(caller, parent, name, mode, os.O_WRONLY | os.O_TRUNC)
    try:
        offset = 0
        while data := await read():
            await vfs.write(fh, offset, data)
            offset += len(data)
            session.progress.add(bytes_=len(data))
        if mtime_ns is not None:
            await vfs.setattr(caller, attr.ino, mtime_ns=mtime_ns, fh=fh)
        await vfs.flush(fh)
    except BaseException as exc:
        # Half a file must not be published, neither by a release nor at the session's end.
        session.abandoned = True
        if is_new and isinstance(exc, Exception):
            await _try_unlink(session, parent, name)
        raise
    await vfs.release(fh)
    session.progress.add(files=1)
    return attr.ino


async def _try_unlink(session: Session, parent: Ino, name: bytes) -> None:
    """Remove an empty file whose content did not come; what is reported is why it did not."""
    try:
        await session.vfs.unlink(session.caller, parent, name)
    except PydiError as exc:
        warn(f"{show(name)}: stays behind, empty: {exc}")


def _file_reader(file: FileIO) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return file.read(CHUNK_BYTES) or b""

    return read


async def _read_stdin() -> bytes:
    """The next bytes of standard input, which may let us wait while the connection must be served.

    In a daemon thread and past Python's buffer: at Ctrl-C neither the loop's executor nor the
    buffer's lock would let the process end before the next key.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(data)
        else:
            done.set_exception(error)

    def work() -> None:
        try:
            data, error = os.read(STDIN_FD, CHUNK_BYTES), None
        except OSError as exc:
            data, error = b"", exc
        loop.call_soon_threadsafe(settle, data, error)

    threading.Thread(target=work, daemon=True).start()
    return await done


async def _set_like(session: Session, ino: Ino, status: os.stat_result) -> None:
    """Mode and times of ``status``, unless it has them already."""
    attr = await session.vfs.getattr(ino)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_IMODE(attr.mode) != mode or attr.mtime_ns != status.st_mtime_ns:
        await session.vfs.setattr(
            session.caller, ino, mode=mode, atime_ns=TIME_NOW, mtime_ns=status.st_mtime_ns
        )


# --- out of the tree -----------------------------------------------------------------------------


async def get(session: Session, arguments: argparse.Namespace) -> None:
    """``get SOURCE... TARGET``: files of the tree to local ones; TARGET "-" is standard output."""
    *sources, target = map(os.fsencode, arguments.path)
    into = target != STANDARD and os.path.isdir(target)
    if not into and (len(sources) > 1 or target.endswith(b"/")):
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    for source in sources:
        try:
            # The root has no name of its own: its copy goes right into the target.
            at_end = source.rstrip(b"/").rpartition(b"/")[2]
            if at_end in (b".", b".."):
                raise UserError(f"{show(source)}: name a file or directory", EXIT_USAGE)
            attr = await session.vfs.resolve(source, follow=target == STANDARD)
            local = os.path.join(target, at_end) if into else target
            if attr.is_dir and not arguments.recursive:
                session.complain(f"{show(source)}: is a directory (get -r copies it)")
            elif target == STANDARD:
                if not attr.is_regular:
                    raise FileError(errno.EISDIR if attr.is_dir else errno.EINVAL)
                await session.read_into(attr.ino, sys.stdout.buffer.write)
            elif attr.is_dir:
                await _get_tree(session, attr, local)
            else:
                await _get_one(session, attr, local)
        except (*FILE_ERRORS, OSError) as exc:
            session.complain(about(source, exc))


async def _get_tree(session: Session, top: Attr, local: bytes) -> None:
    made: list[tuple[bytes, Attr]] = []
    pending = [(top, local)]
    while pending:
        directory, path = pending.pop()
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            # Not through a link: that would write outside of what was named.
            if path != local and not stat.S_ISDIR(os.lstat(path).st_mode):
                raise
        made.append((path, directory))
        files = []
        for entry in await session.entries(directory.ino):
            inside = os.path.join(path, entry.name)
            if entry.attr.is_dir:
                pending.append((entry.attr, inside))
            else:
                files.append((session, entry, inside))
        await in_parallel(_get_entry, files)
    for path, attr in reversed(made):
        os.chmod(path, stat.S_IMODE(attr.mode))
        os.utime(path, ns=(attr.atime_ns, attr.mtime_ns))


async def _get_entry(session: Session, entry: DirEntry, local: bytes) -> None:
    try:
        await _get_one(session, entry.attr, local)
    except (*FILE_ERRORS, OSError) as exc:
        session.complain(about(local, exc))


async def _get_one(session: Session, attr: Attr, local: bytes) -> None:
    """A file or link of the tree as a local one, in place of a file of that name."""
    if os.path.isdir(local) and not os.path.islink(local):
        raise FileError(errno.EISDIR)
    directory, name = os.path.split(local)
    # Short, because the name may already have the length that the file system allows.
    temporary = os.path.join(directory, b".pydi-" + secrets.token_hex(8).encode())
    if attr.is_symlink:
        os.symlink(await session.vfs.readlink(attr.ino), temporary)
        os.utime(temporary, ns=(attr.atime_ns, attr.mtime_ns), follow_symlinks=False)
    elif attr.is_regular:
        try:
            with open(temporary, "xb") as file:
                await session.read_into(attr.ino, file.write)
                file.flush()
                os.fchmod(file.fileno(), stat.S_IMODE(attr.mode))
                os.utime(file.fileno(), ns=(attr.atime_ns, attr.mtime_ns))
        except BaseException:
            # Interrupted or failed: what there is would only look like a copy.
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    else:
        session.complain(f"{show(name)}: neither file, directory nor symbolic link, left out")
        return
    os.replace(temporary, local)
    session.progress.add(files=1)
