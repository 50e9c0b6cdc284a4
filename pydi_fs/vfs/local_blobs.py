"""Files of blobs on this machine, open for reading: what needs no network.

Called by `vfs.reader` for bytes and by the kernel binding for backing files. Sources are asked in
order: the node of this machine, then the cache directory. A file that any of them gave is kept open
for the next reader, a bounded number of them, least recently used first out.

An open descriptor keeps its content readable, and on its disk, whatever happens to the name. So a
file whose identity changed is let go: it was deleted (its space shall become free) or moved away
for being damaged (nobody shall read it any more).

A descriptor must not be closed while a thread reads through it, or while the kernel's passthrough
depends on it being the one it knows: whoever needs it to stay takes a pin.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from pydi_node import portable
from pydi_node.ids import BlobId, blob_name
from pydi_node.records import BlobInfo

log = logging.getLogger("pydi.vfs")

FILES_MAX = 512  # each holds a descriptor, of usually 1024 without asking for more
# A source that had no copy is asked again after this; repair or the cache may have brought one.
ABSENT_S = 5.0
ABSENT_MAX = 4096
SWEEP_PERIOD_S = 30.0  # how long a deleted file that nobody reads may still take its space

_Identity = tuple[int, int, int, int, int]


class BlobSource(Protocol):
    """Somewhere on this machine where files of blobs are."""

    async def open(self, info: BlobInfo) -> int | None:
        """A read-only descriptor of a file with exactly this content, verified; the caller closes
        it. None: not here. Never raises, never waits long."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


class LocalBlob:
    """One open file. ``fd`` is valid while it is pinned, and until the next wait otherwise."""

    __slots__ = ("fd", "identity", "info", "is_kept", "on_close", "pins")

    def __init__(self, info: BlobInfo, fd: int) -> None:
        self.info = info
        self.fd = fd
        self.identity = _identity_of(fd)
        self.pins = 0
        self.is_kept = True  # False: closed with its last pin
        self.on_close: Callable[[], None] | None = None  # called just before the descriptor closes

    def pin(self) -> None:
        assert self.fd >= 0, "closed"
        self.pins += 1

    def unpin(self) -> None:
        assert self.pins > 0, self.pins
        self.pins -= 1
        if not self.pins and not self.is_kept:
            self._close()

    def let_go(self) -> None:
        """Close it, now or with the last pin."""
        self.is_kept = False
        if not self.pins:
            self._close()

    @property
    def is_current(self) -> bool:
        """Is it still what the source gave?"""
        return _identity_of(self.fd) == self.identity

    def _close(self) -> None:
        if self.fd >= 0:
            if self.on_close is not None:
                self.on_close()
            fd, self.fd = self.fd, -1
            os.close(fd)


class LocalBlobs:
    """The open files of one mount, and the owner of its sources. One asyncio loop owns it."""

    def __init__(self, sources: Sequence[BlobSource], files_max: int = FILES_MAX) -> None:
        self._sources = sources
        self._files_max = files_max
        self._files: OrderedDict[BlobId, LocalBlob] = OrderedDict()
        self._absent: dict[BlobId, float] = {}  # when to ask again
        self._opening: dict[BlobId, asyncio.Task[LocalBlob | None]] = {}

    async def get(self, info: BlobInfo) -> LocalBlob | None:
        """The open file of a blob, None if there is none here. Pin it before you wait."""
        if not self._sources or not info.size:
            return None
        local = self._files.get(info.blob)
        if local is not None:
            if local.is_current:
                self._files.move_to_end(info.blob)
                return local
            self._drop(info.blob)
        loop = asyncio.get_running_loop()
        if self._absent.get(info.blob, 0.0) > loop.time():
            return None
        opening = self._opening.get(info.blob)
        if opening is None:
            opening = self._opening[info.blob] = loop.create_task(self._open(info))
            opening.add_done_callback(lambda _: self._opening.pop(info.blob, None))
        # One reader that is interrupted must not end it for the others.
        local = await asyncio.shield(opening)
        return local if local is not None and local.fd >= 0 else None

    def get_nowait(self, info: BlobInfo) -> tuple[bool, LocalBlob | None]:
        """Whether the answer of `get` is known without asking a source, and then that answer."""
        if not self._sources or not info.size:
            return True, None
        local = self._files.get(info.blob)
        if local is None:
            return self._absent.get(info.blob, 0.0) > asyncio.get_running_loop().time(), None
        if not local.is_current:
            return False, None
        self._files.move_to_end(info.blob)
        return True, local

    async def read(self, info: BlobInfo, offset: int, length: int) -> bytes | None:
        """The range of a blob, which is within its size; None if it can't be had here."""
        local = await self.get(info)
        if local is None:
            return None
        try:
            data = _read_cached(local.fd, offset, length)
            if data is None:
                # The disk may take long, and the loop must not wait for it. Pinned until the thread
                # is done, also when the reader is interrupted before.
                local.pin()
                reading = asyncio.ensure_future(
                    asyncio.to_thread(portable.pread, local.fd, length, offset)
                )
                reading.add_done_callback(lambda _: local.unpin())
                data = await asyncio.shield(reading)
        except OSError as exc:
            log.warning("blob %s can't be read here: %s", blob_name(info.blob), exc)
            data = b""
        if len(data) == length:
            return data
        self._drop(info.blob)
        self._note_absent(info.blob)
        return None

    def forget_absence(self, blob: BlobId) -> None:
        """A source has it now."""
        self._absent.pop(blob, None)

    async def run_sweeps(self) -> None:
        """For ever: give back what was deleted."""
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            self.sweep()

    def sweep(self) -> None:
        for blob, local in list(self._files.items()):
            if not local.is_current:
                self._drop(blob)

    def close(self) -> None:
        for source in self._sources:
            source.close()
        for opening in self._opening.values():
            opening.cancel()
        while self._files:
            self._files.popitem()[1].let_go()

    async def _open(self, info: BlobInfo) -> LocalBlob | None:
        for source in self._sources:
            fd = await source.open(info)
            if fd is not None:
                local = self._files[info.blob] = LocalBlob(info, fd)
                while len(self._files) > self._files_max:
                    self._files.popitem(last=False)[1].let_go()
                return local
        self._note_absent(info.blob)
        return None

    def _note_absent(self, blob: BlobId) -> None:
        if len(self._absent) >= ABSENT_MAX:
            self._absent.clear()  # only costs questions
        self._absent[blob] = asyncio.get_running_loop().time() + ABSENT_S

    def _drop(self, blob: BlobId) -> None:
        local = self._files.pop(blob, None)
        if local is not None:
            local.let_go()


def _identity_of(fd: int) -> _Identity:
    status = os.fstat(fd)
    assert stat.S_ISREG(status.st_mode), status
    # A rename changes the time of change, a removal that and the number of links.
    return (
        status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink,
    )  # fmt: skip


def _read_cached(fd: int, offset: int, length: int) -> bytes | None:
    """The bytes if reading them waits for no disk, else None. OSError: the file can't be read."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    return bytes(buffer) if count == length else None
