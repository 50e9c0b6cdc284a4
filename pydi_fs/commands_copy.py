"""``pydi put`` and ``pydi get``: what is to be copied where; `pydi_fs.transfer` copies it.

Called by `pydi_fs.cli` with a connected session.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
import sys
from functools import partial

from pydi_fs.commands_session import FILE_ERRORS, Session, about, or_none, show
from pydi_fs.transfer import measure
from pydi_fs.transfer.download import Download
from pydi_fs.transfer.plan import CopyOptions
from pydi_fs.transfer.upload import Upload
from pydi_node import portable
from pydi_node.errors import EXIT_USAGE, FileError, UserError
from pydi_node.records import Attr

STANDARD = b"-"  # standard input of put, standard output of get


def _options(arguments: argparse.Namespace) -> CopyOptions:
    if arguments.mirror and len(arguments.path) != 2:
        raise UserError("--mirror makes one TARGET like one SOURCE", EXIT_USAGE)
    return CopyOptions(
        recursive=arguments.recursive or arguments.mirror,
        mirror=arguments.mirror,
        resume=arguments.resume,
        everything=arguments.all,
    )


async def put(session: Session, arguments: argparse.Namespace) -> None:
    """``put SOURCE... TARGET``: local files into the tree; SOURCE "-" is standard input."""
    options = _options(arguments)
    *sources, target = map(portable.bytes_of, arguments.path)
    # The shell's own directory may be another one before the copy is done.
    sources = [s if s == STANDARD else _absolute(s) for s in sources]
    found = await or_none(session.resolve(target))
    into = found if found is not None and found.is_dir and not options.mirror else None
    if into is None and not options.mirror and (len(sources) > 1 or target.endswith(b"/")):
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    upload = Upload(session, options)
    with measure.local(session.progress, [s for s in sources if s != STANDARD]):
        for source in sources:
            try:
                await _put_one(upload, source, target, into)
            except (*FILE_ERRORS, OSError) as exc:
                session.complain(about(source, exc))
    _report(session)


async def _put_one(upload: Upload, source: bytes, target: bytes, into: Attr | None) -> None:
    session = upload.session
    if source == STANDARD:
        if into is not None:
            raise UserError(f"{show(target)}: is a directory, name a file", EXIT_USAGE)
        await upload.standard_input(*await session.parent_of(target))
        return
    status = os.lstat(source)
    if into is not None:
        parent, name = into.ino, os.path.basename(source)
        if not name:  # the root of a disk
            raise UserError(f"{show(source)}: has no name of its own: name the TARGET", EXIT_USAGE)
    else:
        parent, name = await session.parent_of(target)
    if not stat.S_ISDIR(status.st_mode):
        existing = await session.child(parent, name)
        await upload.one(source, status, parent, name, existing)
    elif upload.options.recursive:
        await upload.tree(source, parent, name)
    else:
        session.complain(f"{show(source)}: is a directory (put -r copies it)")


async def get(session: Session, arguments: argparse.Namespace) -> None:
    """``get SOURCE... TARGET``: files of the tree to local ones; TARGET "-" is standard output."""
    options = _options(arguments)
    *sources, target = map(portable.bytes_of, arguments.path)
    is_slashed = target.endswith(b"/")
    if target != STANDARD:
        target = _absolute(target)
    into = target != STANDARD and os.path.isdir(target) and not options.mirror
    if not into and not options.mirror and (len(sources) > 1 or is_slashed):
        raise UserError(f"{show(target)}: not a directory", EXIT_USAGE)
    download = Download(session, options)
    async with measure.remote(session, sources if target != STANDARD else []):
        for source in sources:
            try:
                await _get_one(download, source, target, into)
            except (*FILE_ERRORS, OSError) as exc:
                session.complain(about(source, exc))
    if target != STANDARD:
        _report(session)


async def _get_one(download: Download, source: bytes, target: bytes, into: bool) -> None:
    session = download.session
    # The root has no name of its own: its copy goes right into the target.
    at_end = source.rstrip(b"/").rpartition(b"/")[2]
    if at_end in (b".", b".."):
        raise UserError(f"{show(source)}: name a file or directory", EXIT_USAGE)
    attr = await session.resolve(source, follow=target == STANDARD)
    refusal = portable.name_refusal(at_end) if into else None
    if refusal is not None:
        session.complain(f"{show(source)}: left out: {refusal}: name a TARGET file")
        return
    local = os.path.join(target, at_end) if into else target
    if attr.is_dir and not download.options.recursive:
        session.complain(f"{show(source)}: is a directory (get -r copies it)")
    elif target == STANDARD:
        if not attr.is_regular:
            raise FileError(errno.EISDIR if attr.is_dir else errno.EINVAL)
        await session.read_into(attr.ino, partial(_out, session))
    elif attr.is_dir:
        await download.tree(attr, local)
    else:
        await download.one(attr, local)


def _report(session: Session) -> None:
    """For programs: what was done, of which ``unchanged`` files needed nothing."""
    if session.json:
        done = session.progress
        counts = {"files": done.files, "bytes": done.bytes, "unchanged": done.skipped_files}
        session.out(json.dumps(counts))


def _out(session: Session, data: bytes) -> None:
    sys.stdout.buffer.write(data)
    if not sys.stdout.isatty():  # the bar would be in the middle of it
        session.progress.add(bytes_=len(data))


def _absolute(path: bytes) -> bytes:
    """A link stays one, unless a slash behind it says that a directory is meant."""
    return os.path.realpath(path) if path.endswith(b"/") else os.path.abspath(path)
