"""Bytes written on this machine on their way to becoming a blob.

A Stage collects what is written, in the order in which new ranges appear (rewriting a range that
is already staged happens in place), and streams it to the node while the program still writes, so
that close() has little left to do. Small content stays in memory: a temporary file for every small
file would cost more than the file. It also keeps a running BLAKE3, so that what the node stored is
checked against what the program wrote, not against what arrived.

    collecting ──seal()──► sealed (immutable, named by a BlobInfo) ──close()
        └─ the node dies: everything is sent again to another one, from here

Where the node is on this machine, it lends the file that will be the blob's: then what is sent of
new bytes is only that they are there.

Called by `vfs.open_file` only. All methods run in the loop; pwrite to a page-cached file takes
less (50-200 us for 128 KiB) than handing it to a thread, only re-hashing goes to one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from blake3 import blake3

from pydi_fs.client import Client
from pydi_fs.vfs.extents import ExtentMap, Segment
from pydi_fs.vfs.journalling import Journal
from pydi_node import portable
from pydi_node.errors import (
    BlobCorruptError,
    BlobError,
    DisconnectedError,
    FileError,
    PydiError,
    UnavailableError,
)
from pydi_node.ids import BlobId, Ino
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import (
    BlobAbort,
    BlobAdopt,
    BlobCreate,
    BlobGrown,
    BlobPut,
    BlobSeal,
    BlobWrite,
)

log = logging.getLogger("pydi.vfs")

CHUNK_BYTES = 1 << 20  # one BlobWrite; a quarter of the largest payload
WINDOW_CHUNKS = 4  # BlobWrites on their way at once: bounds memory, hides the round trip
# Rewritten ranges so close to each other travel as one: about what a request of its own costs.
RESEND_GAP_BYTES = 16 * 1024
MEMORY_BYTES_MAX = 256 * 1024  # a stage above this moves to a file
# Less is hashed later, a chunk at a time: for 256 pages that takes half as long as each by itself.
HASHED_AT_ONCE_BYTES = 64 * 1024
SEAL_ATTEMPTS_MAX = 5  # a node that dies during a seal is followed by another; not for ever


Loan = tuple[int, bytes]  # the file of a new blob, and its ticket


class Lender:
    """Files of new blobs, of the node of this machine. One is at hand, since nothing here waits."""

    def __init__(self, borrow: Callable[[], Awaitable[Loan | None]]) -> None:
        """borrow: see `DescriptorClient`."""
        self._borrow = borrow
        self._borrowing: asyncio.Task[None] | None = None
        self._spare: Loan | None = None

    def take_nowait(self) -> Loan | None:
        """The spare one; the descriptor is the caller's to close."""
        loan, self._spare = self._spare, None
        self.prepare()
        return loan

    def prepare(self) -> None:
        """Soon there is a spare one."""
        if self._spare is None and (self._borrowing is None or self._borrowing.done()):
            self._borrowing = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        self._spare = await self._borrow()

    async def close(self) -> None:
        if self._borrowing is not None:
            self._borrowing.cancel()
            await asyncio.wait([self._borrowing])
        if self._spare is not None:
            os.close(self._spare[0])
            self._spare = None


class StagingArea:
    """Where stages of one mount live, and how much they may hold in memory together.

    lender  None: no node is on this machine, and what is staged is sent.
    """

    def __init__(
        self,
        client: Client,
        directory: Path,
        memory_bytes_max: int = 64 << 20,
        journal: Journal | None = None,
        lender: Lender | None = None,
    ) -> None:
        self.client = client
        self.directory = directory
        self.journal = journal or Journal()
        self.lender = lender
        self.memory_bytes_free = memory_bytes_max
        self._sources = 0

    def new_stage(self, ino: Ino, copies_as: Ino | None = None) -> Stage:
        """An empty stage for content of that file; its ``source`` number is negative and never
        reused. copies_as  see `Stage`."""
        self._sources -= 1
        self.prepare()
        return Stage(self, self._sources, ino, copies_as)

    def restored(self, source: int, ino: Ino, size: int, data: bytearray | None, fd: int) -> Stage:
        """A stage of the worker before this one: ``data``, or the file ``fd``, which it owns."""
        self._sources = min(self._sources, source)
        stage = Stage(self, source, ino)
        stage.restore(size, data, fd)
        return stage

    def begin_after(self, source: int) -> None:
        """Numbers down to this one have been given out."""
        self._sources = min(self._sources, source)

    def prepare(self) -> None:
        """Soon there is a file for a large stage: also for the first one, which may be large with
        its first write."""
        if self.lender is not None:
            self.lender.prepare()

    async def close(self) -> None:
        """No stage is made any more."""
        if self.lender is not None:
            await self.lender.close()

    def open_file(self) -> tuple[int, bytes | None]:
        """A file that vanishes with the descriptor, so a crash leaves nothing behind; and its
        ticket, if it is lent."""
        loan = None if self.lender is None else self.lender.take_nowait()
        if loan is not None:
            return loan
        self.directory.mkdir(parents=True, exist_ok=True)
        return portable.nameless_file(self.directory), None


class Stage:
    """One future blob. ``size`` is in bytes; offsets are the blob's own, not the file's.

    copies_as  it gets as many copies as this file, or a file in this directory; None: as ``ino``.
    """

    def __init__(
        self, area: StagingArea, source: int, ino: Ino, copies_as: Ino | None = None
    ) -> None:
        self.source = source
        self.copies_as = copies_as or ino
        self._ino = ino
        self.size = 0
        self._area = area
        self._client = area.client
        self._memory: bytearray | None = bytearray()
        self._fd = -1
        self._hasher: blake3 | None = blake3()  # None: rewritten, hashed again at seal
        self._hashed = 0  # bytes that it has been given: of what is in a file
        self._blob: BlobId | None = None  # being written on the node of connection _epoch
        self._ticket: bytes | None = None  # of its file, if that is lent and not adopted yet
        self._is_adopted = False  # by that node: the file is the blob's
        self._epoch = -1
        self._claimed = 0  # bytes handed to the network so far
        self._resend = ExtentMap()  # ranges below _claimed that were rewritten since
        self._streaming: asyncio.Task[None] | None = None
        self.failure: PydiError | None = None  # why streaming stopped for good (no space)
        self.info: BlobInfo | None = None  # set once sealed

    @property
    def in_memory(self) -> bool:
        return self._memory is not None

    def restore(self, size: int, data: bytearray | None, fd: int) -> None:
        """See `StagingArea.restored`; before anything else is done with it."""
        self.size = size
        self._hasher = None
        if data is None:
            self._memory, self._fd = None, fd
        else:
            self._memory = data
            self._area.memory_bytes_free -= len(data)

    def append(self, data: bytes | memoryview) -> int:
        """Stage ``data`` behind what is there; returns its offset in the future blob."""
        assert self.info is None, "a sealed stage is immutable"
        if self.failure is not None:
            raise self.failure
        offset = self.size
        self._put(offset, data)
        length = len(data)
        self.size += length
        at_once = length >= HASHED_AT_ONCE_BYTES and self._memory is None
        if at_once and self._hashed == offset and self._hasher is not None:
            self._hasher.update(data)
            self._hashed = self.size
        if self.size - self._claimed >= CHUNK_BYTES and self._streaming is None:
            self._streaming = asyncio.get_running_loop().create_task(self._stream())
        return offset

    def overwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Replace staged bytes in place; ``[offset, offset + len(data))`` is already staged."""
        assert self.info is None, "a sealed stage is immutable"
        assert offset + len(data) <= self.size, (offset, len(data), self.size)
        self._put(offset, data)
        if offset < self._hashed:
            self._hasher = None
        stale = min(offset + len(data), self._claimed) - offset
        if stale > 0:
            self._resend.put(Segment(offset, stale, 1, offset))

    def read(self, offset: int, length: int) -> bytes:
        """Staged bytes; the range is staged."""
        if self._memory is not None:
            return bytes(self._memory[offset : offset + length])
        return portable.pread(self._fd, length, offset)

    def content(self) -> bytes | None:
        """All of it if it is small and nothing went to a node yet, else None: then `seal`."""
        if self._memory is not None and self._claimed == 0:
            return bytes(self._memory)
        return None

    async def drain(self) -> None:
        """What was staged in full chunks is at a node, or it is known that none takes it now."""
        if self._streaming is not None:
            await asyncio.wait([self._streaming])

    async def checksum(self) -> bytes:
        """BLAKE3 of all that was staged."""
        if self._memory is not None:
            return blake3(self._memory).digest()
        # Not the hasher itself: the thread goes on when who waits for it is cancelled.
        hasher, hashed = (
            (blake3(), 0) if self._hasher is None else (self._hasher.copy(), self._hashed)
        )
        if self.size - hashed > CHUNK_BYTES:
            await asyncio.to_thread(_hash_file, hasher, self._fd, hashed, self.size)
        else:
            _hash_file(hasher, self._fd, hashed, self.size)
        self._hasher, self._hashed = hasher, self.size
        return hasher.digest()

    async def seal(self) -> BlobInfo:
        """The blob, durable on its holders. Nothing may be staged while and after this runs.

        UnavailableError  no node took it before the deadline; may be called again.
        NoSpaceError      no node has room.
        """
        if self.info is not None:
            return self.info
        await self.drain()
        checksum = await self.checksum()
        for attempt in range(1, SEAL_ATTEMPTS_MAX + 1):
            try:
                info = await self._seal_once(checksum)
                break
            except (DisconnectedError, BlobError):
                # Another node, or the same one restarted: it knows nothing of what was sent.
                self._forget_upload()
                if attempt == SEAL_ATTEMPTS_MAX:
                    raise
        self.info = info
        return info

    async def _seal_once(self, checksum: bytes) -> BlobInfo:
        small = self.content()
        info: BlobInfo
        if small is not None:
            info = await self._client.call(BlobPut(self.copies_as), small)
        else:
            await self._send()
            assert self._blob is not None
            info = await self._client.call(BlobSeal(self._blob, self.size, checksum))
        if info.checksum != checksum or info.size != self.size:
            raise BlobCorruptError(f"the node stored something else than blob {info.blob:016x}")
        return info

    async def discard(self) -> None:
        """Nobody needs it any more: the node may forget what it got."""
        await self.drain()
        if self.info is None and self._blob is not None and self._epoch == self._client.epoch:
            try:
                await self._client.call(BlobAbort(self._blob))
            except PydiError:
                pass  # the node drops unfinished blobs of a session by itself when it ends
        self.close()

    def close(self) -> None:
        """Give memory and the file back. The stage can't be read any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._area.journal.stage_closed(self.source)
        elif self._memory is not None:
            self._area.memory_bytes_free += len(self._memory)
        self._memory = None

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        if self._memory is not None:
            end = offset + len(data)
            grows = max(end - len(self._memory), 0)
            if end <= MEMORY_BYTES_MAX and grows <= self._area.memory_bytes_free:
                self._memory[offset:end] = data
                self._area.memory_bytes_free -= grows
                return
            self._move_to_file()
        portable.pwrite_all(self._fd, data, offset)

    def _move_to_file(self) -> None:
        assert self._memory is not None
        fd, self._ticket = self._area.open_file()
        try:
            portable.pwrite_all(fd, self._memory, 0)
            self._area.journal.staged_in_file(self.source, self._ino, len(self._memory), fd)
        except OSError:
            os.close(fd)
            raise
        if self._hasher is not None:
            self._hasher.update(self._memory)
            self._hashed = len(self._memory)
        self._fd = fd
        self._area.memory_bytes_free += len(self._memory)
        self._memory = None

    # --- sending -----------------------------------------------------------------------------

    async def _stream(self) -> None:
        """Send full chunks while the program writes. What is rewritten meanwhile is left to `seal`,
        for it may be once more; so is trouble, which that tries again."""
        try:
            while self.size - self._claimed >= CHUNK_BYTES:
                await self._open_upload()
                await self._send_all(self._new(self.size - self.size % CHUNK_BYTES))
        except (UnavailableError, BlobError):
            self._forget_upload()
        except PydiError as exc:
            self.failure = exc
        finally:
            self._streaming = None

    async def _open_upload(self) -> None:
        """There is a blob at the node of the present connection."""
        if self._blob is None or self._epoch != self._client.epoch:
            self._forget_upload()
            self._epoch = self._client.epoch
            self._blob = await self._begin()

    async def _send(self) -> None:
        """All that is staged is at the node of the present connection when this returns."""
        await self._open_upload()
        while self._claimed < self.size or len(self._resend):
            # Rewritten ranges travel only while nothing else does: two writes of one range must
            # not overtake each other on their way to the node's disk.
            await self._send_all(self._rewritten())
            await self._send_all(self._new(self.size))

    async def _begin(self) -> BlobId:
        """A new blob at the node, with this stage's file if that is lent."""
        blob: BlobId
        ticket, self._ticket = self._ticket, None
        self._is_adopted = False
        if ticket is not None:
            try:
                blob = await self._client.call(BlobAdopt(self.copies_as, ticket))
            except FileError as exc:
                # That node has restarted, or this is another one: it gets the bytes.
                log.debug("a borrowed file is not adopted: %s", exc)
            else:
                self._is_adopted = True
                return blob
        blob = await self._client.call(BlobCreate(self.copies_as))
        return blob

    def _new(self, until: int) -> Iterator[tuple[int, int]]:
        """Offset and length of what was never sent, in chunks; claimed as it is taken."""
        while self._claimed < until:
            offset, length = self._claimed, min(CHUNK_BYTES, until - self._claimed)
            self._claimed += length
            if self._hasher is not None and self._hashed < self._claimed:
                _hash_file(self._hasher, self._fd, self._hashed, self._claimed)
                self._hashed = self._claimed
            yield offset, length

    def _rewritten(self) -> Iterator[tuple[int, int]]:
        """Likewise of what is to be sent again, no two of which overlap."""
        ranges, self._resend = self._resend, ExtentMap()
        start = end = 0
        for segment in ranges:
            if segment.offset > end + RESEND_GAP_BYTES:
                yield from _chunks(start, end)
                start = segment.offset
            end = segment.end
        yield from _chunks(start, end)

    async def _send_all(self, chunks: Iterator[tuple[int, int]]) -> None:
        outstanding: deque[asyncio.Task[None]] = deque()
        try:
            for offset, length in chunks:
                outstanding.append(asyncio.ensure_future(self._send_chunk(offset, length)))
                if len(outstanding) >= WINDOW_CHUNKS:
                    await outstanding.popleft()
            while outstanding:
                # The oldest first: when one fails the node refuses those behind it for another
                # reason (the blob is gone), and the first reason is the one to tell.
                await outstanding.popleft()
        finally:
            for task in outstanding:
                task.cancel()
            await asyncio.gather(*outstanding, return_exceptions=True)

    async def _send_chunk(self, offset: int, length: int) -> None:
        assert self._blob is not None
        if self._is_adopted:
            await self._client.call(BlobGrown(self._blob, offset, length))
        else:
            await self._client.call(BlobWrite(self._blob, offset), self.read(offset, length))

    def _forget_upload(self) -> None:
        self._blob = None
        self._claimed = 0
        self._resend = ExtentMap()


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, end, CHUNK_BYTES):
        yield offset, min(CHUNK_BYTES, end - offset)


def _hash_file(hasher: blake3, fd: int, start: int, end: int) -> None:
    """Bytes ``[start, end)`` of the file go into ``hasher``."""
    offset = start
    while offset < end:
        data = portable.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        if not data:
            raise BlobCorruptError(f"staging file ends at {offset} instead of {end}")
        hasher.update(data)
        offset += len(data)
