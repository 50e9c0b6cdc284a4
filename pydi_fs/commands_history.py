"""``pydi log``, ``restore`` and ``undelete``: what a path showed before, and how to have it back.

Called by `pydi_fs.cli` with a connected session. Nothing is copied: a file that comes back names
the blobs that its old version had, and what it showed until now becomes history in its turn. A path
is looked up as of the moment asked for, name by name, and no link in it is followed.
"""

from __future__ import annotations

import argparse
import errno
import json
import stat
import time
from collections.abc import Sequence
from typing import Any

from pydi_fs.commands_session import FILE_ERRORS, Session, about, show
from pydi_fs.progress import format_bytes
from pydi_fs.same_content import commit_same
from pydi_fs.vfs.moments import NS_PER_S, parse_moment
from pydi_node import commands, portable
from pydi_node.errors import EXIT_USAGE, FileError, UserError
from pydi_node.ids import ROOT_INO, Ino, LogIndex
from pydi_node.records import ST_MODE_BITS, Attr, DirEntry, Version, acl_mode
from pydi_node.wire.messages import (
    Admin,
    GetAttr,
    GetXattr,
    IndexAt,
    ListXattr,
    Lookup,
    PathVersions,
    ReadDir,
    ReadLink,
)

TIMES_PER_QUESTION = 4096
READDIR_ENTRIES = 1024

_FIRST = "bring that back first"

# --- the commands --------------------------------------------------------------------------------


async def log(session: Session, arguments: argparse.Namespace) -> None:
    """``log PATH``: every state that the path showed and that is kept, oldest first."""
    path = _clean(session, arguments.path)
    at = None if arguments.at is None else await index_of(session, arguments.at)
    versions = await _versions(session, path, at)
    if not versions:
        raise UserError(f"{show(path)}: nothing of that name is kept")
    times = await _times(session, versions)
    if session.json:
        session.out(json.dumps([_described(v, times) for v in versions], indent=2))
        return
    rows = [
        ("index", "from", "until", "mode", "size"),
        *(
            (
                str(version.since),
                _clock(times[version.since]),
                "now" if version.until is None else _clock(times[version.until]),
                stat.filemode(version.attr.mode),
                format_bytes(version.attr.size),
            )
            for version in versions
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        session.out("  ".join(cells).rstrip())


async def restore(session: Session, arguments: argparse.Namespace) -> None:
    """``restore PATH --at TIME|INDEX``: the file has the content again that it had then, as a new
    version; what is not there any more comes back as it was."""
    path = _clean(session, arguments.path)
    at = await index_of(session, arguments.at)
    then = await _resolve_at(session, path, at)
    parent, name = await _parent_of(session, path)
    now = await session.child(parent, name)
    if now is None:
        await _bring_back(session, path, then, at, parent, name)
    elif then.is_regular and now.is_regular:
        _require_owner(session, then)
        await commit_same(session, now.ino, then.ino, at)
    else:
        what = "is a directory" if then.is_dir else "is not the regular file it was"
        raise UserError(f"{show(path)}: {what} now: move it away first, or name what is in it")
    await _report(session, path, at)


async def undelete(session: Session, arguments: argparse.Namespace) -> None:
    """``undelete PATH``: what had that name last is there again.

    A directory is always empty when it is removed. Which of the removals before that belonged to
    it nobody can tell: one that ever held something is refused, for ``restore`` takes a time.
    """
    path = _clean(session, arguments.path)
    versions = await _versions(session, path, None)
    if not versions:
        raise UserError(f"{show(path)}: nothing of that name is kept")
    last = versions[-1]
    if last.until is None:
        raise UserError(f"{show(path)}: is not deleted (pydi restore brings back an older version)")
    at = LogIndex(last.until - 1)
    parent, name = await _parent_of(session, path)
    then = await _at(session, path, session.client.call(GetAttr(last.attr.ino, at)))
    was_filled = any(
        version.attr.ino == then.ino and version.attr.version != then.version
        for version in versions
    )
    if then.is_dir and was_filled and not await _entries(session, then.ino, at):
        when = _clock((await _times(session, [last]))[last.until])
        raise UserError(
            f"{show(path)}: was empty when it was removed at {when}, as rm -r leaves it: pydi"
            f" restore {show(path)} --at TIME, a time before rm -r began, brings back what it held"
        )
    await _bring_back(session, path, then, at, parent, name)
    await _report(session, path, at)


async def index_of(session: Session, moment: str) -> LogIndex:
    """The log index that a person's TIME or INDEX means. UserError (usage)."""
    parsed = parse_moment(moment, time.time_ns())
    if parsed is None:
        raise UserError(
            f"{moment!r} is no moment: give a time such as 2026-03-01T12:30, 2h ago, or a log"
            " index",
            EXIT_USAGE,
        )
    if isinstance(parsed, int):
        return parsed
    (time_ns,) = parsed
    index: LogIndex = await session.client.call(IndexAt(time_ns))
    return index


# --- looking -------------------------------------------------------------------------------------


def _clean(session: Session, path: str) -> bytes:
    """The path as the tree knows it. UserError for the root, which has no other state to go to."""
    parts = [part for part in session.absolute(portable.bytes_of(path)).split(b"/") if part]
    if not parts or any(part in (b".", b"..") for part in parts):
        raise UserError(f"{path}: name a file or directory by its path from the root", EXIT_USAGE)
    return b"/" + b"/".join(parts)


async def _versions(session: Session, path: bytes, at: LogIndex | None) -> list[Version]:
    try:
        versions: list[Version] = await session.client.call(PathVersions(path, at))
    except FileError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise _explained(path, exc) from exc
        raise UserError(f"{show(path)}: the directory it was in is not there: {_FIRST}") from exc
    return versions


async def _resolve_at(session: Session, path: bytes, at: LogIndex) -> Attr:
    attr: Attr = await _at(session, path, session.client.call(GetAttr(ROOT_INO, at)))
    for name in path.split(b"/")[1:]:
        attr = await _at(session, path, session.client.call(Lookup(attr.ino, name, at)))
    return attr


async def _parent_of(session: Session, path: bytes) -> tuple[Ino, bytes]:
    try:
        return await session.parent_of(path)
    except FileError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        raise UserError(f"{show(path)}: the directory it was in is not there: {_FIRST}") from exc


async def _at(session: Session, path: bytes, answer: Any) -> Any:
    try:
        return await answer
    except FileError as exc:
        raise _explained(path, exc) from exc


def _explained(path: bytes, error: FileError) -> UserError:
    """What an errno means to somebody who asks for the past."""
    sentences = {
        errno.ENOENT: "was not there then",
        errno.ENOTDIR: "was not there then",
        errno.ESTALE: "that moment is in the future, or older than what is kept",
    }
    return UserError(f"{show(path)}: {sentences.get(error.errno, str(error))}")


async def _times(session: Session, versions: Sequence[Version]) -> dict[int, int]:
    """When each index in them was, in ns; 0 for one older than what is kept."""
    indexes = sorted({i for v in versions for i in (v.since, v.until) if i is not None})
    times: dict[int, int] = {}
    for start in range(0, len(indexes), TIMES_PER_QUESTION):
        some = indexes[start : start + TIMES_PER_QUESTION]
        answer = await session.client.call(Admin("times", {"indexes": some}))
        times.update(zip(some, answer, strict=True))
    return times


def _described(version: Version, times: dict[int, int]) -> dict[str, Any]:
    attr = version.attr
    return {
        "since": version.since,
        "until": version.until,
        "since_ns": times[version.since],
        "until_ns": None if version.until is None else times[version.until],
        "ino": attr.ino,
        "mode": attr.mode & ST_MODE_BITS,
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.size,
        "mtime_ns": attr.mtime_ns,
    }


def _clock(time_ns: int) -> str:
    if time_ns == 0:
        return "before"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // NS_PER_S))


# --- bringing back -------------------------------------------------------------------------------


def _require_owner(session: Session, attr: Attr) -> None:
    """Only an owner may look past the permissions of today."""
    if session.caller.uid not in (0, attr.uid):
        raise FileError(errno.EPERM)


async def _bring_back(
    session: Session, path: bytes, then: Attr, at: LogIndex, parent: Ino, name: bytes
) -> None:
    """What ``then`` was at index ``at`` has this name, which must be free, with all below it."""
    _require_owner(session, then)
    if then.is_regular:
        await _bring_back_file(session, then, at, parent, name)
        return
    caller, mode = session.caller, stat.S_IMODE(then.mode)
    if then.is_dir:
        made = await session.client.execute(commands.Mkdir(caller, parent, name, 0o700))
        for entry in await _entries(session, then.ino, at):
            below = path + b"/" + entry.name
            try:
                await _bring_back(session, below, entry.attr, at, made.ino, entry.name)
            except FILE_ERRORS as exc:
                session.complain(about(below, exc))
    elif then.is_symlink:
        target = await session.client.call(ReadLink(then.ino, at))
        made = await session.client.execute(commands.Symlink(caller, parent, name, target))
    else:
        kind = stat.S_IFMT(then.mode)
        command = commands.Mknod(caller, parent, name, kind | mode, then.rdev)
        made = await session.client.execute(command)
    await _set_like(session, made.ino, then, at)
    session.progress.add(files=1)


async def _bring_back_file(
    session: Session, then: Attr, at: LogIndex, parent: Ino, name: bytes
) -> None:
    """It gets its name when it is complete, so a command that is interrupted leaves nothing."""
    mode = stat.S_IMODE(then.mode)
    made = await session.client.execute(commands.Tmpfile(session.caller, parent, mode))
    await commit_same(session, made.ino, then.ino, at)
    await _set_like(session, made.ino, then, at)
    await session.client.execute(commands.Link(session.caller, made.ino, parent, name))
    session.progress.add(files=1)


async def _entries(session: Session, ino: Ino, at: LogIndex) -> list[DirEntry]:
    found: list[DirEntry] = []
    while True:
        cookie = found[-1].cookie if found else 0
        page = await session.client.call(ReadDir(ino, cookie, READDIR_ENTRIES, at))
        if not page:
            return found
        found += page


async def _set_like(session: Session, ino: Ino, then: Attr, at: LogIndex) -> None:
    """Owner, mode, times and extended attributes as they were."""
    names = await session.client.call(ListXattr(then.ino, at))
    for name in await session.client.call(ListXattr(ino)):
        if name not in names:  # of the default list of where it is now
            await session.client.execute(commands.RemoveXattr(session.caller, ino, name))
    for name in names:
        value = await session.client.call(GetXattr(then.ino, name, at))
        await session.client.execute(commands.SetXattr(session.caller, ino, name, value, 0))
    if session.caller.uid == 0:
        await session.client.execute(
            commands.SetAttr(session.caller, ino, uid=then.uid, gid=then.gid)
        )
    await session.client.execute(
        commands.SetAttr(
            session.caller, ino,
            mode=None if then.is_symlink else stat.S_IMODE(acl_mode(then.mode)),
            atime_ns=then.atime_ns, mtime_ns=then.mtime_ns,
        )
    )  # fmt: skip


async def _report(session: Session, path: bytes, at: LogIndex) -> None:
    parent, name = await session.parent_of(path)
    attr: Attr = await session.client.call(Lookup(parent, name))
    if session.json:
        fields = {"path": show(path), "at": at, "ino": attr.ino, "size": attr.size}
        session.out(json.dumps(fields, indent=2))
    else:
        session.out(f"{show(path)}: as it was at index {at}")
