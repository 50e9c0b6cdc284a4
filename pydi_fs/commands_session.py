"""What every subcommand of ``pydi`` works with: the vfs, who asks, and where words go.

Built by `pydi_fs.cli`, used by the ``commands_*`` modules. It must never decide what a command
means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydi_fs.accessibility import explain
from pydi_fs.client import Client
from pydi_fs.progress import Progress
from pydi_fs.vfs.vfs import Vfs
from pydi_node import portable
from pydi_node.commands import Caller
from pydi_node.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    BlobError,
    BlobMissingError,
    FileError,
    NoSpaceError,
    UnavailableError,
    UserError,
)
from pydi_node.ids import Ino
from pydi_node.records import Attr, DirEntry

CHUNK_BYTES = 1 << 20  # one read or write of content
READDIR_ENTRIES = 1024
# Operations at a time: nodes sync many commands with one fdatasync, a lone one waits for its own.
PARALLEL_MAX = 16

# What can be wrong with one file while the others go on.
FILE_ERRORS = (FileError, BlobError, NoSpaceError)

# Local file names are str with surrogates for bytes that are no UTF-8; the tree's names are bytes.
# Both sides of a copy are spelled as bytes here.


@dataclass(slots=True)
class Session:
    """One run of ``pydi`` against a cluster."""

    client: Client
    vfs: Vfs
    caller: Caller
    umask: int
    json: bool
    progress: Progress
    exit_code: int = EXIT_OK
    cwd: bytes = b"/"  # where paths without a leading slash begin; the shell's cd changes it
    _to_terminal: bool = field(default_factory=sys.stdout.isatty)

    def out(self, text: str | bytes, end: bytes = b"\n") -> None:
        """One line to standard output; a name's control characters can't steer a terminal."""
        data = portable.bytes_of(text) + end
        if self._to_terminal:
            data = bytes(byte if byte >= 32 or byte in b"\n\t" else ord("?") for byte in data)
        sys.stdout.buffer.write(data)

    def complain(self, sentence: str) -> None:
        """Something was not done; the others go on, and the exit code says so at the end."""
        warn(sentence)
        self.exit_code = EXIT_FAILED

    def absolute(self, path: bytes) -> bytes:
        """The path from the root; a trailing slash stays."""
        return path if path.startswith(b"/") else self.cwd.rstrip(b"/") + b"/" + path

    async def resolve(self, path: bytes, follow: bool = True) -> Attr:
        """The inode at a path. ENOENT, ENOTDIR, ELOOP."""
        return await self.vfs.resolve(self.absolute(path), follow)

    async def entries(self, ino: Ino) -> list[DirEntry]:
        """All entries of a directory, by name."""
        found: list[DirEntry] = []
        fh = await self.vfs.opendir(ino)
        try:
            while batch := await self.vfs.readdir(fh, found[-1].cookie if found else 0,
                                                  READDIR_ENTRIES):  # fmt: skip
                found += batch
        finally:
            await self.vfs.releasedir(fh)
        return sorted(found, key=lambda entry: entry.name)

    async def parent_of(self, path: bytes) -> tuple[Ino, bytes]:
        """(directory, last name) of a path whose last name need not exist."""
        head, _, name = self.absolute(path).rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise UserError(f"{show(path)}: name a file or directory", EXIT_USAGE)
        parent = await self.vfs.resolve(head)
        return parent.ino, name

    async def child(self, parent: Ino, name: bytes) -> Attr | None:
        """The inode behind a name, None when there is none."""
        return await or_none(self.vfs.lookup(parent, name))

    async def read_into(self, ino: Ino, sink: Callable[[bytes], object]) -> None:
        """Hand the content of a regular file to ``sink``, in order, in chunks."""
        await self.vfs.access(self.caller, ino, os.R_OK)
        fh = await self.vfs.open(self.caller, ino, os.O_RDONLY)
        try:
            offset = 0
            while data := await self.read_chunk(fh, offset, CHUNK_BYTES):
                sink(data)
                offset += len(data)
        finally:
            await self.vfs.release(fh)

    async def read_chunk(self, fh: int, offset: int, length: int) -> bytes:
        """A range of an open file. BlobError says which holders are down, where that is why."""
        try:
            return await self.vfs.read(fh, offset, length)
        except (BlobError, UnavailableError) as exc:
            sentence = await explain(self.client, self.vfs.blobs_of(fh))
            if sentence is None:
                raise
            raise BlobMissingError(sentence) from exc


async def in_parallel(
    work: Callable[..., Awaitable[None]], calls: Sequence[tuple[Any, ...]]
) -> None:
    """``work(*call)`` for each call, some at a time; the first exception once those have ended."""
    waiting = iter(calls)
    failures: list[Exception] = []

    async def worker() -> None:
        for call in waiting:
            try:
                await work(*call)
            except Exception as exc:
                failures.append(exc)
            if failures:
                return

    await asyncio.gather(*(worker() for _ in range(min(PARALLEL_MAX, len(calls)))))
    if failures:
        raise failures[0]


async def or_none(attr: Awaitable[Attr]) -> Attr | None:
    """The inode, or None where nothing has that name."""
    try:
        return await attr
    except FileError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise


def about(path: bytes, error: BaseException) -> str:
    """``PATH: reason``, as every Unix tool puts it."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{show(path)}: {reason}"


def show(path: bytes) -> str:
    """A path as text for a person; what is no text, or steers terminals, as question marks."""
    text = path.decode(errors="replace").replace("\ufffd", "?")
    return "".join(char if char.isprintable() else "?" for char in text)


def warn(sentence: str) -> None:
    print(f"pydi: {sentence}", file=sys.stderr)
