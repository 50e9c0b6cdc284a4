"""Content that is read here and there comes whole, in the background, onto this machine's disk.

Used by `vfs.reader`. A page out of the middle of a blob on another machine is a request and a round
trip; a program that goes on like this (a database, a linker) is served from the disk after a while,
and opens of later programs are passed through. What it does not read again was fetched for nothing,
so that is bounded: one blob at a time, none that the cache directory would not keep, only while its
reader goes on, and each once in a while.

It goes the way of all that is kept on the disk: nothing is read from there before the whole has
its checksum.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from pydi_fs.vfs.blob_cache import CHUNK_BYTES, BlobCache
from pydi_node.errors import PydiError
from pydi_node.ids import BlobId, blob_name
from pydi_node.records import BlobInfo

log = logging.getLogger("pydi.vfs")

READS_MIN = 16  # out of order, of one blob, each of them a request ...
WINDOW_S = 2.0  # ... within so long: it pays when there are some hundred more
IDLE_S = 5.0  # without such a read: who reads has what it wanted
AGAIN_S = 600.0  # a blob that was fetched and could not be kept is left alone for so long
AT_ONCE = 4  # chunks on their way: keeps the link busy, bounds memory
WATCHED_MAX = 256

Fetch = Callable[[BlobInfo, int, int], Awaitable[bytes]]  # offset, length


class _Watched:
    """Reads of one blob; times are the loop's."""

    __slots__ = ("last_s", "not_before_s", "reads", "since_s")

    def __init__(self, now_s: float) -> None:
        self.reads = 0
        self.since_s = now_s  # when they began to be counted
        self.last_s = now_s
        self.not_before_s = 0.0


class WholeBlobs:
    """Of one mount. fetch: a range over the network; PydiError."""

    def __init__(self, fetch: Fetch, cache: BlobCache) -> None:
        self._fetch = fetch
        self._cache = cache
        self._watched: OrderedDict[BlobId, _Watched] = OrderedDict()
        self._bringing: asyncio.Task[None] | None = None

    def missed(self, info: BlobInfo) -> None:
        """A small range of it is not here and was read out of order."""
        if not self._cache.would_keep(info):
            return
        now_s = asyncio.get_running_loop().time()
        watched = self._watched.get(info.blob)
        if watched is None:
            watched = self._watched[info.blob] = _Watched(now_s)
            if len(self._watched) > WATCHED_MAX:
                self._watched.popitem(last=False)
        self._watched.move_to_end(info.blob)
        watched.last_s = now_s
        if now_s - watched.since_s > WINDOW_S:
            watched.reads, watched.since_s = 0, now_s
        watched.reads += 1
        if watched.reads < READS_MIN or now_s < watched.not_before_s:
            return
        if self._bringing is None or self._bringing.done():
            watched.not_before_s = now_s + AGAIN_S
            self._bringing = asyncio.get_running_loop().create_task(self._bring(info, watched))

    async def close(self) -> None:
        """Nothing more is fetched."""
        if self._bringing is not None:
            self._bringing.cancel()
            await asyncio.wait([self._bringing])

    async def _bring(self, info: BlobInfo, watched: _Watched) -> None:
        loop = asyncio.get_running_loop()
        pieces: deque[asyncio.Task[None]] = deque()
        try:
            for index in await self._cache.missing(info):
                if loop.time() - watched.last_s > IDLE_S:
                    watched.not_before_s = 0.0  # when it is read again, that goes on
                    return
                pieces.append(loop.create_task(self._bring_piece(info, index)))
                if len(pieces) >= AT_ONCE:
                    await pieces.popleft()
            while pieces:
                await pieces.popleft()
        except PydiError as exc:
            log.debug("blob %s does not come whole: %s", blob_name(info.blob), exc)
        finally:
            for piece in pieces:
                piece.cancel()
            await asyncio.gather(*pieces, return_exceptions=True)

    async def _bring_piece(self, info: BlobInfo, index: int) -> None:
        offset = index * CHUNK_BYTES
        data = await self._fetch(info, offset, min(CHUNK_BYTES, info.size - offset))
        await self._cache.keep(info, index, data)
