"""Commands on whole trees without a byte of content moved: cp find du df stat rmdir.

Called by `pydi_fs.cli` with a connected session, as `commands_files`. Links are never followed
below what was named.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
import time
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase

from pydi_fs.commands_files import describe
from pydi_fs.commands_session import FILE_ERRORS, Session, about, in_parallel, or_none, show
from pydi_fs.mount_config import parse_size
from pydi_fs.progress import format_bytes
from pydi_fs.same_content import commit_same
from pydi_node import portable
from pydi_node.errors import EXIT_USAGE, FileError, UserError
from pydi_node.ids import Ino
from pydi_node.records import ST_MODE_BITS, Attr, DirEntry

_KINDS = {"f": stat.S_ISREG, "d": stat.S_ISDIR, "l": stat.S_ISLNK}


async def remove_directories(session: Session, arguments: argparse.Namespace) -> None:
    """``rmdir``: remove directories that are empty."""
    for path in map(portable.bytes_of, arguments.path):
        try:
            parent, name = await session.parent_of(path)
            await session.vfs.rmdir(session.caller, parent, name)
        except FILE_ERRORS as exc:
            session.complain(about(path, exc))


# --- cp ------------------------------------------------------------------------------------------


async def copy(session: Session, arguments: argparse.Namespace) -> None:
    """``cp SOURCE... TARGET``: inside the tree; content is shared, so the size costs nothing."""
    *sources, target = map(portable.bytes_of, arguments.path)
    found = await or_none(session.resolve(target))
    into = found if found is not None and found.is_dir else None
    if into is None and (len(sources) > 1 or target.endswith(b"/")):
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    for source in sources:
        try:
            # As cp(1): a link is followed, unless whole trees are copied.
            attr = await session.resolve(source, follow=not arguments.recursive)
            if into is not None:
                parent, name = into.ino, (await session.parent_of(source))[1]
            else:
                parent, name = await session.parent_of(target)
            if not attr.is_dir:
                await _copy_one(session, attr, parent, name, arguments.preserve)
            elif arguments.recursive:
                await _copy_tree(session, attr, parent, name, arguments.preserve)
            else:
                session.complain(f"{show(source)}: is a directory (cp -r copies it)")
        except FILE_ERRORS as exc:
            session.complain(about(source, exc))


async def _copy_tree(session: Session, top: Attr, parent: Ino, name: bytes, preserve: bool) -> None:
    made: list[tuple[Ino, Attr]] = []
    pending = [(top, parent, name)]
    while pending:
        source, parent, name = pending.pop()
        await session.vfs.access(session.caller, source.ino, os.R_OK | os.X_OK)
        # Listed before the copy is made: a tree may be copied into itself.
        entries = await session.entries(source.ino)
        attr = await session.child(parent, name)
        if attr is None:
            attr = await session.vfs.mkdir(session.caller, parent, name, 0o700)
            made.append((attr.ino, source))
        elif not attr.is_dir:
            raise FileError(errno.ENOTDIR, show(name))
        ours = {ino for ino, _ in made}
        files = []
        for entry in entries:
            if entry.attr.ino in ours:
                continue
            if entry.attr.is_dir:
                pending.append((entry.attr, attr.ino, entry.name))
            else:
                files.append((session, entry.attr, attr.ino, entry.name, preserve))
        await in_parallel(_copy_entry, files)
    for ino, source in reversed(made):
        await _set_like(session, ino, source, preserve)


async def _copy_entry(
    session: Session, source: Attr, parent: Ino, name: bytes, preserve: bool
) -> None:
    try:
        await _copy_one(session, source, parent, name, preserve)
    except FILE_ERRORS as exc:
        session.complain(about(name, exc))


async def _copy_one(
    session: Session, source: Attr, parent: Ino, name: bytes, preserve: bool
) -> None:
    """A file, link or special file, in place of a file of that name. It appears as a whole."""
    vfs, caller = session.vfs, session.caller
    existing = await session.child(parent, name)
    if existing is not None and existing.is_dir:
        raise FileError(errno.EISDIR)
    if existing is not None and existing.ino == source.ino:
        raise FileError(errno.EINVAL, "source and target are the same file")
    if source.is_regular:
        await vfs.access(caller, source.ino, os.R_OK)
        if existing is not None and existing.is_regular:
            await vfs.access(caller, existing.ino, os.W_OK)
            await commit_same(session, existing.ino, source.ino)
            await _set_like(session, existing.ino, source, preserve)
        else:
            if existing is not None:
                await vfs.unlink(caller, parent, name)
            attr, fh = await vfs.tmpfile(caller, parent, 0o600, os.O_WRONLY)
            try:
                await commit_same(session, attr.ino, source.ino)
                await _set_like(session, attr.ino, source, preserve)
                await vfs.link(caller, attr.ino, parent, name)
            finally:
                await vfs.abandon(fh)
    else:
        if existing is not None:
            await vfs.unlink(caller, parent, name)
        if source.is_symlink:
            target = await vfs.readlink(source.ino)
            attr = await vfs.symlink(caller, parent, name, target)
            if preserve:
                await vfs.setattr(caller, attr.ino, mtime_ns=source.mtime_ns)
        else:
            await vfs.mknod(caller, parent, name, source.mode & ST_MODE_BITS, source.rdev)
    session.progress.add(files=1)


async def _set_like(session: Session, ino: Ino, source: Attr, preserve: bool) -> None:
    mode = stat.S_IMODE(source.mode)
    if preserve:
        await session.vfs.setattr(
            session.caller, ino, mode=mode, atime_ns=source.atime_ns, mtime_ns=source.mtime_ns
        )
    else:
        await session.vfs.setattr(session.caller, ino, mode=mode & ~session.umask)


# --- looking -------------------------------------------------------------------------------------


async def walk(session: Session, path: bytes) -> AsyncIterator[tuple[bytes, Attr]]:
    """(path, inode) of what is at ``path`` and of all below it; parents first, sorted by name."""
    pending = [(path, await session.resolve(path, follow=False))]
    while pending:
        path, attr = pending.pop()
        yield path, attr
        if attr.is_dir:
            try:
                await session.vfs.access(session.caller, attr.ino, os.R_OK | os.X_OK)
                entries = await session.entries(attr.ino)
            except FILE_ERRORS as exc:
                session.complain(about(path, exc))
                continue
            prefix = path.rstrip(b"/") + b"/"
            pending += [(prefix + entry.name, entry.attr) for entry in reversed(entries)]


async def find(session: Session, arguments: argparse.Namespace) -> None:
    """``find``: paths of all that has the wanted name, type and size."""
    pattern = None if arguments.name is None else portable.bytes_of(arguments.name)
    try:
        larger = None if arguments.larger is None else parse_size(arguments.larger, 0)
    except ValueError as exc:
        raise UserError(f"--larger {arguments.larger}: {exc}", EXIT_USAGE) from exc
    found = []
    for top in map(portable.bytes_of, arguments.path or ["."]):
        try:
            async for path, attr in walk(session, top):
                name = path.rstrip(b"/").rpartition(b"/")[2]
                if pattern is not None and not fnmatchcase(name, pattern):
                    continue
                if arguments.type is not None and not _KINDS[arguments.type](attr.mode):
                    continue
                if larger is not None and attr.size <= larger:
                    continue
                if session.json:
                    found.append(await describe(session, path, DirEntry(0, name, attr)))
                else:
                    session.out(path)
        except FILE_ERRORS as exc:
            session.complain(about(top, exc))
    if session.json:
        session.out(json.dumps(found, indent=2))


async def disk_usage(session: Session, arguments: argparse.Namespace) -> None:
    """``du``: what directories and all below them hold, in bytes of content; links count once."""
    used = []
    for named in map(portable.bytes_of, arguments.path or ["."]):
        top = named.rstrip(b"/") or b"/"
        seen: set[Ino] = set()
        totals = {top: 0}
        try:
            async for path, attr in walk(session, top):
                if attr.is_dir:
                    totals.setdefault(path, 0)
                elif attr.ino in seen:
                    continue
                elif attr.nlink > 1:
                    seen.add(attr.ino)
                above = path
                while above != top:
                    if above in totals:
                        totals[above] += attr.allocated
                    above = above.rpartition(b"/")[0] or b"/"
                totals[top] += attr.allocated
        except FILE_ERRORS as exc:
            session.complain(about(top, exc))
            continue
        if arguments.summarize:
            totals = {top: totals[top]}
        used += sorted(totals.items())
    if session.json:
        rows = [{"path": portable.text_of(path), "bytes": size} for path, size in used]
        session.out(json.dumps(rows, indent=2))
        return
    for path, size in used:
        session.out(f"{format_bytes(size):>10}  ".encode() + path)


async def disk_free(session: Session, arguments: argparse.Namespace) -> None:
    """``df``: space on the disks of all nodes together; each file takes its size per copy."""
    total = await session.vfs.statfs()
    if session.json:
        session.out(json.dumps(total._asdict(), indent=2))
        return
    used = total.total_bytes - total.free_bytes
    share = 100 * used / total.total_bytes if total.total_bytes else 0.0
    session.out(f"size   {format_bytes(total.total_bytes)}")
    session.out(f"used   {format_bytes(used)} ({share:.0f} %)")
    session.out(f"free   {format_bytes(total.free_bytes)}")
    session.out(f"files  {total.files}")


async def show_status(session: Session, arguments: argparse.Namespace) -> None:
    """``stat``: all that is known of an inode."""
    described = []
    for path in map(portable.bytes_of, arguments.path):
        try:
            attr = await session.resolve(path, follow=False)
            row = await describe(session, path, DirEntry(0, path, attr))
        except FILE_ERRORS as exc:
            session.complain(about(path, exc))
            continue
        times = {
            "accessed": attr.atime_ns, "modified": attr.mtime_ns, "changed": attr.ctime_ns,
            "born": attr.btime_ns,
        }  # fmt: skip
        row |= {"allocated": attr.allocated, "version": attr.version}
        if session.json:
            described.append(row | {f"{what}_ns": time_ns for what, time_ns in times.items()})
            continue
        session.out(b"   path  " + path)
        target = f" to {row['target']}" if attr.is_symlink else ""
        names = "1 name" if attr.nlink == 1 else f"{attr.nlink} names"
        session.out(f"   type  {row['type']}{target}, inode {attr.ino}, {names}")
        user, group = portable.user_name(attr.uid), portable.group_name(attr.gid)
        session.out(f"   mode  {row['mode']} {stat.filemode(attr.mode)}, owner {user}:{group}")
        session.out(
            f"   size  {attr.size} bytes, {attr.allocated} of them stored, version {attr.version}"
        )
        for what, time_ns in times.items():
            seconds, rest = divmod(time_ns, 10**9)
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
            session.out(f"{what:>9}  {clock}.{rest:09d}"[:40])
    if session.json:
        session.out(json.dumps(described, indent=2))
