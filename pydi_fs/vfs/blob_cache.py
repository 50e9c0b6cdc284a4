"""Content of other machines kept on this one's disk: whole blobs, verified, in a bounded directory.

A source of `vfs.local_blobs`, filled by `vfs.reader` with the chunks that it fetches anyway, and by
`vfs.whole_blobs` with the rest of what is read here and there. Several mounts, also of different
clusters, may share a directory.

    chunks ──► nameless file ──all there, BLAKE3 right──► DIR/blobs/ab/<blob>-<checksum>

A file gets its name by link(2), which is atomic and refuses a name that another mount was faster
with; before, it has none, so a crash leaves nothing behind. Content is hashed again when it is
first opened after a start: a power cut may have left a name with nothing behind it. The time of
modification tells when a file was last used; the longest unused go first.

All file calls are made in one thread, which keeps their order. What goes wrong in it costs the
cached copy, never a read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from blake3 import blake3

from pydi_node import portable
from pydi_node.ids import BlobId, blob_name
from pydi_node.records import BlobInfo

log = logging.getLogger("pydi.vfs")

CHUNK_BYTES = 1 << 20  # what `offer` is given: aligned pieces, the last one shorter
PARTIAL_MAX = 16  # blobs that are being put together at a time
PENDING_CHUNKS_MAX = 16  # chunks in memory that the disk has not taken yet
REFUSED_MAX = 4096  # blobs remembered not to be tried again
PARTIAL_SHARE = 4  # blobs above this part of the cache's size are not kept: they push out the rest
FREE_PERCENT = 5  # of the disk stay free
# Hashing up to this takes less than 0.1 s. Larger files are synced before they get their name, so
# that a name means content, and are not read a second time to open them.
VERIFY_BYTES_MAX = 64 << 20
USED_AGAIN_S = 3600.0  # how old the mark of the last use may be: marking changes the file's times
RECOUNT_S = 60.0  # how long another mount's additions may go unnoticed

T = TypeVar("T")


class _Partial:
    """A blob that is being put together, in a file without a name."""

    __slots__ = ("fd", "info", "missing")

    def __init__(self, info: BlobInfo, fd: int) -> None:
        self.info = info
        self.fd = fd
        self.missing = set(range((info.size + CHUNK_BYTES - 1) // CHUNK_BYTES))


class _File(NamedTuple):
    used_ns: int  # when it was last used
    path: Path
    size: int  # bytes


class BlobCache:
    """One mount's view of the directory.

    size_max  bytes of all files with a name, those of other mounts too.
    on_kept   told in the loop which blob is there from now on.
    """

    def __init__(self, directory: Path, size_max: int) -> None:
        self.on_kept: Callable[[BlobId], None] = lambda blob: None
        self._blobs = directory / "blobs"
        self._lock_path = directory / "blobs.lock"
        self._size_max = size_max
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "blob-cache")
        self._closed = False
        self._pending = 0  # chunks on their way into the thread
        # The rest belongs to the thread.
        self._partials: OrderedDict[BlobId, _Partial] = OrderedDict()
        self._refused: set[BlobId] = set()  # they went wrong; not tried again
        self._verified: set[str] = set()  # names hashed since the start
        self._used = 0  # bytes, as of the last count, and what was added since
        self._count_again_s = 0.0

    async def open(self, info: BlobInfo) -> int | None:
        """A read-only descriptor of the kept file; None if it is not kept."""
        if self._closed:
            return None
        opening = self._loop.run_in_executor(self._thread, self._open, info)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    def offer(self, info: BlobInfo, index: int, data: bytes) -> None:
        """Chunk ``index`` of a blob was fetched; keep it if the disk keeps up. Never waits."""
        if self._pending < PENDING_CHUNKS_MAX and self.would_keep(info):
            self._begin_to_add(info, index, data)

    def would_keep(self, info: BlobInfo) -> bool:
        """Is it one that there can be room for?"""
        return not self._closed and info.size <= self._size_max // PARTIAL_SHARE

    async def missing(self, info: BlobInfo) -> list[int]:
        """The chunks that it still lacks to be kept; none where it is already, or can't be."""
        if not self.would_keep(info):
            return []
        return await self._loop.run_in_executor(self._thread, self._missing, info)

    async def keep(self, info: BlobInfo, index: int, data: bytes) -> None:
        """As `offer`, and waits for the disk."""
        if self.would_keep(info):
            await asyncio.wait([self._begin_to_add(info, index, data)])

    def _begin_to_add(self, info: BlobInfo, index: int, data: bytes) -> asyncio.Future[bool]:
        self._pending += 1
        work = self._loop.run_in_executor(self._thread, self._add, info, index, data)
        work.add_done_callback(lambda _: self._on_added(info, work))
        return work

    def close(self) -> None:
        """What is not whole yet is dropped. Waits for the chunk that is being written."""
        self._closed = True
        self._thread.submit(self._drop_all)
        self._thread.shutdown()

    def _on_added(self, info: BlobInfo, work: asyncio.Future[bool]) -> None:
        self._pending -= 1
        if not work.cancelled() and work.result():
            self.on_kept(info.blob)

    # --- in the thread ----------------------------------------------------------------------------

    def _open(self, info: BlobInfo) -> int | None:
        path = self._path(info)
        try:
            fd = os.open(path, os.O_RDONLY | portable.O_PLAIN)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if status.st_size == info.size and self._is_sound(fd, info, path.name):
                if time.time() - status.st_mtime > USED_AGAIN_S:
                    os.utime(fd)
                return fd
            log.warning("cached blob %s was damaged: removed", blob_name(info.blob))
            path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("cached blob %s can't be used: %s", blob_name(info.blob), exc)
        os.close(fd)
        return None

    def _is_sound(self, fd: int, info: BlobInfo, name: str) -> bool:
        if name in self._verified or info.size > VERIFY_BYTES_MAX:
            return True
        if _hash(fd) != info.checksum:
            return False
        self._verified.add(name)
        return True

    def _add(self, info: BlobInfo, index: int, data: bytes) -> bool:
        """True if the blob is kept from now on."""
        if info.blob in self._refused:
            return False
        try:
            partial = self._partials.get(info.blob) or self._begin(info)
            if partial is None:
                return False
            self._partials.move_to_end(info.blob)
            if index not in partial.missing:
                return False
            portable.pwrite_all(partial.fd, data, index * CHUNK_BYTES)
            partial.missing.discard(index)
            if partial.missing:
                return False
            self._finish(partial)
            return True
        except (OSError, ValueError) as exc:
            log.info("blob %s is not kept: %s", blob_name(info.blob), exc)
            if len(self._refused) >= REFUSED_MAX:
                self._refused.clear()
            self._refused.add(info.blob)
            return False
        finally:
            kept = self._partials.get(info.blob)
            if kept is not None and (not kept.missing or info.blob in self._refused):
                self._drop(info.blob)

    def _missing(self, info: BlobInfo) -> list[int]:
        if info.blob in self._refused:
            return []
        try:
            partial = self._partials.get(info.blob) or self._begin(info)
        except OSError as exc:
            log.info("blob %s is not kept: %s", blob_name(info.blob), exc)
            return []
        return [] if partial is None else sorted(partial.missing)

    def _begin(self, info: BlobInfo) -> _Partial | None:
        if self._path(info).exists():
            return None  # another mount was faster, or its reader began before it was kept
        if not portable.HAS_LINKABLE_FILES:
            return None  # a name that is there before its content would outlive a crash
        self._blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        space = shutil.disk_usage(self._blobs)
        if space.free < info.size + space.total * FREE_PERCENT // 100:
            return None
        fd = os.open(self._blobs, os.O_RDWR | os.O_TMPFILE | portable.O_PLAIN, 0o400)
        partial = self._partials[info.blob] = _Partial(info, fd)
        while len(self._partials) > PARTIAL_MAX:
            self._drop(next(iter(self._partials)))
        return partial

    def _finish(self, partial: _Partial) -> None:
        """It has its name. ValueError: the content is wrong."""
        info = partial.info
        if os.fstat(partial.fd).st_size != info.size or _hash(partial.fd) != info.checksum:
            raise ValueError("its content is wrong")
        if info.size > VERIFY_BYTES_MAX:
            portable.sync_data(partial.fd)
        path = self._path(info)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            self._make_room(info.size)
            try:
                # Only with a directory does Python use linkat(2), which can follow the link.
                root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | portable.O_PLAIN)
                try:
                    os.link(
                        f"/proc/self/fd/{partial.fd}", path, src_dir_fd=root, follow_symlinks=True
                    )
                finally:
                    os.close(root)
            except FileExistsError:
                return  # another mount was faster
        self._used += info.size
        self._verified.add(path.name)

    def _make_room(self, size: int) -> None:
        now_s = time.monotonic()
        if self._used + size <= self._size_max and now_s < self._count_again_s:
            return
        files = sorted(self._files())
        self._used = sum(file.size for file in files)
        self._count_again_s = now_s + RECOUNT_S
        for file in files:
            if self._used + size <= self._size_max:
                break
            file.path.unlink(missing_ok=True)
            self._used -= file.size

    def _files(self) -> Iterator[_File]:
        for folder in self._blobs.iterdir():
            for path in folder.iterdir():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                yield _File(status.st_mtime_ns, path, status.st_size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Of all mounts only one counts and removes at a time."""
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | portable.O_PLAIN, 0o600)
        try:
            portable.lock_whole(fd)
            yield
        finally:
            os.close(fd)

    def _path(self, info: BlobInfo) -> Path:
        # The checksum keeps clusters apart, whose names of blobs are alike.
        name = f"{blob_name(info.blob)}-{info.checksum.hex()}"
        return self._blobs / f"{info.blob & 0xFF:02x}" / name

    def _drop(self, blob: BlobId) -> None:
        os.close(self._partials.pop(blob).fd)

    def _drop_all(self) -> None:
        for blob in list(self._partials):
            self._drop(blob)


def _close_unwanted(opening: asyncio.Future[int | None]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        fd = opening.result()
        if fd is not None:
            os.close(fd)


def _hash(fd: int) -> bytes:
    hasher = blake3()
    offset = 0
    while data := portable.pread(fd, CHUNK_BYTES, offset):
        hasher.update(data)
        offset += len(data)
    return hasher.digest()
