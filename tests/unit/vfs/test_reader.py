"""Chunks that were fetched: kept for the next reader, or given up once they were read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pydi_fs.vfs.local_blobs import LocalBlobs
from pydi_fs.vfs.reader import CHUNK_BYTES, BlobReader
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import BlobRead

SIZE = CHUNK_BYTES + 1000
CONTENT = bytes(range(256)) * (SIZE // 256 + 1)


class Node:
    """Gives ranges of one blob, and remembers which."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def call(self, request: BlobRead) -> bytes:
        self.asked.append((request.offset, request.length))
        return CONTENT[request.offset : request.offset + request.length]


@pytest.mark.parametrize("rereads", [True, False])
def test_what_is_kept_after_it_was_read(rereads: bool) -> None:
    """Read in order each chunk is fetched once, however small the reads; a second pass fetches
    again, and memory is free, only where nobody reads twice."""

    async def scenario() -> None:
        node: Any = Node()
        info = BlobInfo(BlobId(1), SIZE, bytes(32), (NodeNumber(1),))
        reader = BlobReader(node, LocalBlobs(()), rereads=rereads)
        once = [(0, CHUNK_BYTES), (CHUNK_BYTES, 1000)]
        for passes in (1, 2):
            for offset in range(0, SIZE, 100_000):
                length = min(100_000, SIZE - offset)
                data = await reader.read(info, offset, length, ahead=True)
                assert data == CONTENT[offset : offset + length]
            assert node.asked == (once if rereads else once * passes)
            assert reader._cache_bytes == sum(map(len, reader._cache.values()))
            assert reader._cache_bytes == (SIZE if rereads else 0)

    asyncio.run(scenario())
