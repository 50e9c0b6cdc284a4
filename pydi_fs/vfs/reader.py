"""Reading blobs: from a file on this machine, or through the network in chunks.

Of the network's chunks a bounded number is kept, and the next ones are fetched ahead; a blob that
is read here and there comes whole meanwhile. Blobs are immutable, so a cached chunk is right for
ever and needs no invalidation. Called by `vfs.open_file`; runs in the loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from pydi_fs.client import Client
from pydi_fs.vfs.blob_cache import BlobCache
from pydi_fs.vfs.local_blobs import LocalBlobs
from pydi_fs.vfs.whole_blobs import WholeBlobs
from pydi_node.errors import PydiError
from pydi_node.ids import BlobId, blob_name
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import BlobRead

CHUNK_BYTES = 1 << 20  # aligned pieces that are fetched and cached whole
DIRECT_BYTES_MAX = 128 * 1024  # a read up to this size, out of order, is fetched by itself
READ_AHEAD_CHUNKS = 4  # keeps the link busy; more only fills the cache with what may not be read


class BlobReader:
    """Chunks of blobs, fetched once. ``cache_bytes_max`` bounds what is kept.

    local          files on this machine: what is there is neither fetched nor kept in memory.
    cache_on_disk  is offered each chunk that was fetched.
    rereads        False: nobody reads a range twice, so a chunk goes once its end was read.
    """

    def __init__(
        self,
        client: Client,
        local: LocalBlobs,
        cache_on_disk: BlobCache | None = None,
        cache_bytes_max: int = 32 << 20,
        rereads: bool = True,
    ) -> None:
        self._client = client
        self._local = local
        self._cache_on_disk = cache_on_disk
        self._whole = None if cache_on_disk is None else WholeBlobs(self._fetch, cache_on_disk)
        self._cache_bytes_max = cache_bytes_max
        self._rereads = rereads
        self._cache: OrderedDict[tuple[BlobId, int], bytes] = OrderedDict()
        self._cache_bytes = 0
        self._fetching: dict[tuple[BlobId, int], asyncio.Task[bytes]] = {}

    async def read(self, info: BlobInfo, offset: int, length: int, ahead: bool) -> bytes:
        """Exactly ``[offset, offset + length)`` of a blob, a range within its size.

        ahead  the reader goes through the file in order: fetch the next chunks meanwhile.

        BlobError, UnavailableError  no holder could give it.
        """
        assert 0 < length <= info.size - offset, (offset, length, info.size)
        if not info.is_in_tree:
            data = await self._local.read(info, offset, length)
            if data is not None:
                return data
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        if not ahead and length <= DIRECT_BYTES_MAX and info.size > CHUNK_BYTES:
            key = (info.blob, first)
            if first != last or (key not in self._cache and key not in self._fetching):
                # Reading here and there in a large blob: a whole chunk would be fetched for a page,
                # and push out another that is as likely to be read.
                if self._whole is not None and not info.is_in_tree:
                    self._whole.missed(info)
                return await self._fetch(info, offset, length)
        tasks = [self._chunk(info, index) for index in range(first, last + 1)]
        if ahead:
            chunks = (info.size + CHUNK_BYTES - 1) // CHUNK_BYTES
            for index in range(last + 1, min(last + 1 + READ_AHEAD_CHUNKS, chunks)):
                self._chunk(info, index)
        results = [await _result(task) for task in tasks]
        if not self._rereads:
            is_ended = offset + length == min((last + 1) * CHUNK_BYTES, info.size)
            for index in range(first, last + is_ended):
                self._drop((info.blob, index))
        if len(results) == 1:
            data = results[0]
            start = offset - first * CHUNK_BYTES
            return data if start == 0 and length == len(data) else data[start : start + length]
        whole = b"".join(results)
        start = offset - first * CHUNK_BYTES
        return whole[start : start + length]

    async def close(self) -> None:
        """Nothing is fetched any more that nobody waits for."""
        if self._whole is not None:
            await self._whole.close()

    def _chunk(self, info: BlobInfo, index: int) -> bytes | asyncio.Task[bytes]:
        key = (info.blob, index)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        task = self._fetching.get(key)
        if task is None:
            offset = index * CHUNK_BYTES
            length = min(CHUNK_BYTES, info.size - offset)
            task = asyncio.get_running_loop().create_task(self._fetch(info, offset, length))
            self._fetching[key] = task
            task.add_done_callback(lambda done: self._fetched(info, index, done))
        return task

    def _drop(self, key: tuple[BlobId, int]) -> None:
        self._cache_bytes -= len(self._cache.pop(key, b""))

    async def _fetch(self, info: BlobInfo, offset: int, length: int) -> bytes:
        data: bytes = await self._client.call(BlobRead(info.blob, offset, length))
        if len(data) != length:
            raise PydiError(f"blob {blob_name(info.blob)}: {len(data)} bytes instead of {length}")
        return data

    def _fetched(self, info: BlobInfo, index: int, task: asyncio.Task[bytes]) -> None:
        key = (info.blob, index)
        del self._fetching[key]
        if task.cancelled() or task.exception() is not None:
            return  # whoever waits for it sees the error; read-ahead is only a hope
        data = task.result()
        self._cache[key] = data
        self._cache_bytes += len(data)
        if self._cache_on_disk is not None and not info.is_in_tree:
            self._cache_on_disk.offer(info, index, data)
        while self._cache_bytes > self._cache_bytes_max:
            self._cache_bytes -= len(self._cache.popitem(last=False)[1])


async def _result(chunk: bytes | asyncio.Task[bytes]) -> bytes:
    # Several readers may wait for one fetch; one that is interrupted must not end it for others.
    return chunk if isinstance(chunk, bytes) else await asyncio.shield(chunk)
