"""The file commands of ``pydi``: ls tree cat mkdir mv rm. Copies in and out are in `commands_copy`.

Called by `pydi_fs.cli` with a connected session. Paths are the tree's own, "/" is its root; a
leading slash may be left out. Each function does its work, complains about what it could not do and
goes on with the rest.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
import sys
import time

from pydi_fs.commands_session import FILE_ERRORS, Session, about, in_parallel, or_none, show
from pydi_node import portable
from pydi_node.errors import EXIT_USAGE, FileError, UserError, errno_of
from pydi_node.ids import ROOT_INO, Ino, counted
from pydi_node.records import Attr, DirEntry

_TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}  # fmt: skip
_RECENT_NS = 180 * 86400 * 10**9  # ls(1): older files show the year instead of the hour


async def list_files(session: Session, arguments: argparse.Namespace) -> None:
    """``ls``: what a directory holds, one name a line, sorted by bytes."""
    paths = [portable.bytes_of(path) for path in arguments.path] or [b"."]
    listed = []
    for number, path in enumerate(paths):
        try:
            # As ls(1): a link named on the command line is followed, unless it would be described.
            attr = await session.resolve(path, follow=not arguments.long)
            if attr.is_dir and not arguments.directory:
                await session.vfs.access(session.caller, attr.ino, os.R_OK)
                entries = await session.entries(attr.ino)
                prefix = path.rstrip(b"/") + b"/"
            else:
                entries, prefix = [DirEntry(0, path, attr)], b""
        except FILE_ERRORS as exc:
            session.complain(about(path, exc))
            continue
        if session.json:
            listed += [await describe(session, prefix + e.name, e) for e in entries]
            continue
        if len(paths) > 1 and prefix:
            session.out((b"\n" if number else b"") + path + b":")
        if arguments.long:
            await _print_long(session, entries)
        else:
            for entry in entries:
                is_marked = arguments.classify and entry.attr.is_dir
                session.out(entry.name + (b"/" if is_marked else b""))
    if session.json:
        session.out(json.dumps(listed, indent=2))


async def describe(session: Session, path: bytes, entry: DirEntry) -> dict[str, object]:
    """One entry as JSON; bytes that are no UTF-8 become lone surrogates, as os.fsdecode does it."""
    attr = entry.attr
    described: dict[str, object] = {
        "name": portable.text_of(entry.name), "path": portable.text_of(path),
        "type": _TYPES[stat.S_IFMT(attr.mode)], "mode": f"{stat.S_IMODE(attr.mode):04o}",
        "ino": attr.ino, "nlink": attr.nlink, "uid": attr.uid, "gid": attr.gid, "size": attr.size,
        "mtime_ns": attr.mtime_ns,
    }  # fmt: skip
    if attr.is_symlink:
        described["target"] = portable.text_of(await session.vfs.readlink(attr.ino))
    return described


async def _print_long(session: Session, entries: list[DirEntry]) -> None:
    rows = []
    for entry in entries:
        attr = entry.attr
        name = entry.name
        if attr.is_symlink:
            name += b" -> " + await session.vfs.readlink(attr.ino)
        row = (stat.filemode(attr.mode), str(attr.nlink), portable.user_name(attr.uid),
               portable.group_name(attr.gid),
               _size(attr), _when(attr.mtime_ns))  # fmt: skip
        rows.append((row, name))
    widths = [max(len(row[column]) for row, _ in rows) for column in range(6)] if rows else []
    for row, name in rows:
        mode, nlink, user, group, size, when = row
        text = (
            f"{mode} {nlink:>{widths[1]}} {user:<{widths[2]}} {group:<{widths[3]}}"
            f" {size:>{widths[4]}} {when} "
        )
        session.out(text.encode() + name)


def _size(attr: Attr) -> str:
    if stat.S_ISBLK(attr.mode) or stat.S_ISCHR(attr.mode):
        return "{}, {}".format(*portable.device_numbers(attr.rdev))
    return str(attr.size)


def _when(time_ns: int) -> str:
    moment = time.localtime(time_ns // 10**9)
    recent = 0 <= time.time_ns() - time_ns < _RECENT_NS
    rest = time.strftime("%H:%M" if recent else " %Y", moment)
    return f"{time.strftime('%b', moment)} {moment.tm_mday:>2} {rest}"


async def show_tree(session: Session, arguments: argparse.Namespace) -> None:
    """``tree``: everything below a directory, drawn; symbolic links are shown, not followed."""
    path = portable.bytes_of(arguments.path)
    try:
        top = await session.resolve(path)
    except FILE_ERRORS as exc:
        raise UserError(about(path, exc)) from exc
    session.out(path)
    directories = files = 0
    # Depth first with a stack of our own: a tree may be deeper than Python's.
    pending: list[tuple[bytes, int, list[DirEntry]]] = []
    if top.is_dir:
        pending.append((b"", 1, (await session.entries(top.ino))[::-1]))
    while pending:
        indent, depth, rest = pending[-1]
        if not rest:
            pending.pop()
            continue
        entry = rest.pop()
        branch = "├── " if rest else "└── "
        line = indent + branch.encode() + entry.name
        if entry.attr.is_symlink:
            line += b" -> " + await session.vfs.readlink(entry.attr.ino)
        session.out(line)
        if not entry.attr.is_dir:
            files += 1
            continue
        directories += 1
        if arguments.depth is None or depth < arguments.depth:
            below = await session.entries(entry.attr.ino)
            inner = indent + ("│   " if rest else "    ").encode()
            pending.append((inner, depth + 1, below[::-1]))
    session.out(f"\n{counted(directories, 'directory', 'directories')}, {counted(files, 'file')}")


async def concatenate(session: Session, arguments: argparse.Namespace) -> None:
    """``cat``: the files' content, one after the other."""
    for path in map(portable.bytes_of, arguments.path):
        try:
            attr = await session.resolve(path)
            if not attr.is_regular:
                raise FileError(errno.EISDIR if attr.is_dir else errno.EINVAL)
            await session.read_into(attr.ino, sys.stdout.buffer.write)
        except FILE_ERRORS as exc:
            session.complain(about(path, exc))


async def make_directories(session: Session, arguments: argparse.Namespace) -> None:
    """``mkdir``: new directories; with -p those above too, and existing ones are no error."""
    for path in map(portable.bytes_of, arguments.path):
        try:
            if arguments.parents:
                await make_path(session, path)
            else:
                parent, name = await session.parent_of(path)
                await session.vfs.mkdir(session.caller, parent, name, 0o777 & ~session.umask)
        except FILE_ERRORS as exc:
            session.complain(about(path, exc))


async def make_path(session: Session, path: bytes) -> Ino:
    """The directory at ``path``, made with all that is missing above it."""
    done = b""
    ino = ROOT_INO
    for part in session.absolute(path).split(b"/"):
        if part in (b"", b"."):
            continue
        done += b"/" + part
        attr = await or_none(session.resolve(done))
        if attr is None:
            mode = 0o777 & ~session.umask
            attr = await session.vfs.mkdir(session.caller, ino, part, mode)
        elif not attr.is_dir:
            raise FileError(errno.ENOTDIR)
        ino = attr.ino
    return ino


async def move(session: Session, arguments: argparse.Namespace) -> None:
    """``mv``: rename, or move into a directory; replaces a file of the same name."""
    *sources, target = map(portable.bytes_of, arguments.path)
    found = await or_none(session.resolve(target))
    into = found if found is not None and found.is_dir else None
    if into is None and len(sources) > 1:
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    for source in sources:
        try:
            parent, name = await session.parent_of(source)
            if into is not None:
                new_parent, new_name = into.ino, name
            else:
                new_parent, new_name = await session.parent_of(target)
            await session.vfs.rename(session.caller, parent, name, new_parent, new_name, 0)
        except FILE_ERRORS as exc:
            session.complain(about(source, exc))


async def remove(session: Session, arguments: argparse.Namespace) -> None:
    """``rm``: remove names; with -r directories and all below them."""
    for path in map(portable.bytes_of, arguments.path):
        try:
            parent, name = await session.parent_of(path)
            attr = await session.vfs.lookup(parent, name)
            if attr.is_dir and not arguments.recursive:
                session.complain(f"{show(path)}: is a directory (rm -r removes it)")
            elif attr.is_dir:
                await remove_below(session, attr.ino)
                await session.vfs.rmdir(session.caller, parent, name)
            else:
                await session.vfs.unlink(session.caller, parent, name)
        except FILE_ERRORS as exc:
            if not (arguments.force and errno_of(exc) == errno.ENOENT):
                session.complain(about(path, exc))


async def remove_below(session: Session, top: Ino) -> None:
    """Empty a directory, deepest first. The first refusal ends it: what is left is still a tree."""
    # (directory, its parent and name there, directories in it still to be emptied)
    pending = [(top, top, b"", await _unlink_files(session, top))]
    while pending:
        ino, parent, name, below = pending[-1]
        if below:
            entry = below.pop()
            inside = await _unlink_files(session, entry.attr.ino)
            pending.append((entry.attr.ino, ino, entry.name, inside))
            continue
        pending.pop()
        if pending:
            await session.vfs.rmdir(session.caller, parent, name)


async def _unlink_files(session: Session, ino: Ino) -> list[DirEntry]:
    """Remove every entry that is no directory; the directories that are left."""
    entries = await session.entries(ino)

    async def unlink(name: bytes) -> None:
        await session.vfs.unlink(session.caller, ino, name)
        session.progress.add(files=1)

    await in_parallel(unlink, [(entry.name,) for entry in entries if not entry.attr.is_dir])
    return [entry for entry in entries if entry.attr.is_dir]
