"""What every subcommand of ``pydi`` works with: the vfs, who asks, and where words go.

Built by `pydi_fs.cli`, used by the ``commands_*`` modules. It must never decide what a command
means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydi_fs.client import Client
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import Caller
from pydi_node.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    BlobError,
    FileError,
    NoSpaceError,
    UserError,
)
from pydi_node.ids import Ino
from pydi_node.records import Attr, DirEntry

CHUNK_BYTES = 1 << 20  # one read or write of content
READDIR_ENTRIES = 1024
# Operations at a time: nodes sync many commands with one fdatasync, a lone one waits for its own.
PARALLEL_MAX = 16
PROGRESS_INTERVAL_S = 0.1  # a person sees ten changes a second as motion

# What can be wrong with one file while the others go on.
FILE_ERRORS = (FileError, BlobError, NoSpaceError)

# Local file names are str with surrogates for bytes that are no UTF-8; the tree's names are bytes.
# Both sides of a copy are spelled as bytes here.


@dataclass(slots=True)
class Progress:
    """One line on a terminal that counts; silent elsewhere."""

    enabled: bool
    files: int = 0
    bytes: int = 0
    _shown_at: float = 0.0

    def add(self, files: int = 0, bytes_: int = 0) -> None:
        self.files += files
        self.bytes += bytes_
        now = time.monotonic()
        if self.enabled and now - self._shown_at >= PROGRESS_INTERVAL_S:
            self._shown_at = now
            self._show()

    def finish(self) -> None:
        if self.enabled and (self.files or self.bytes):
            self._show()
            print(file=sys.stderr)

    def _show(self) -> None:
        text = f"\r{self.files} files, {format_bytes(self.bytes)} "
        print(text, end="", file=sys.stderr, flush=True)


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
    abandoned: bool = False  # a file was left half written: nothing may be published any more
    _to_terminal: bool = field(default_factory=sys.stdout.isatty)

    def out(self, text: str | bytes, end: bytes = b"\n") -> None:
        """One line to standard output; a name's control characters can't steer a terminal."""
        data = os.fsencode(text) + end
        if self._to_terminal:
            data = bytes(byte if byte >= 32 or byte in b"\n\t" else ord("?") for byte in data)
        sys.stdout.buffer.write(data)

    def complain(self, sentence: str) -> None:
        """Something was not done; the others go on, and the exit code says so at the end."""
        warn(sentence)
        self.exit_code = EXIT_FAILED

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
        head, _, name = path.rstrip(b"/").rpartition(b"/")
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
            while data := await self.vfs.read(fh, offset, CHUNK_BYTES):
                sink(data)
                offset += len(data)
                self.progress.add(bytes_=len(data))
        finally:
            await self.vfs.release(fh)


async def in_parallel(
    work: Callable[..., Awaitable[None]], calls: Sequence[tuple[Any, ...]]
) -> None:
    """``work(*call)`` for each call, some at a time; the first exception once those have ended."""
    for start in range(0, len(calls), PARALLEL_MAX):
        outcomes = await asyncio.gather(
            *(work(*call) for call in calls[start : start + PARALLEL_MAX]), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome


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
    """A path as text for a person; bytes that are no text appear as question marks."""
    return path.decode(errors="replace").replace("\ufffd", "?")


def warn(sentence: str) -> None:
    print(f"pydi: {sentence}", file=sys.stderr)


def format_bytes(count: int) -> str:
    """ "17 B", "4.2 KiB", "3.0 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
