"""What is read here and there comes whole onto the disk: with bounded requests, or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_fs.vfs import whole_blobs
from pydi_fs.vfs.blob_cache import BlobCache
from pydi_fs.vfs.local_blobs import LocalBlobs
from pydi_fs.vfs.reader import CHUNK_BYTES, BlobReader
from pydi_fs.vfs.whole_blobs import AT_ONCE, READS_MIN
from pydi_node.errors import DisconnectedError
from pydi_node.ids import NodeNumber, blob_id
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import BlobRead

PAGE = 4096
CONTENT = random.Random(1).randbytes(6 * CHUNK_BYTES + 5)
CHUNKS = 7
INFO = BlobInfo(blob_id(NodeNumber(2), 9), len(CONTENT), blake3(CONTENT).digest(), (NodeNumber(2),))


class Node:
    """Gives ranges of the blob, counts them, and may be wrong, away, or make chunks wait."""

    def __init__(self) -> None:
        self.pages = 0
        self.chunks: list[int] = []
        self.at_once = self.at_once_max = 0
        self.damage = b""
        self.is_away = False
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def call(self, request: BlobRead) -> bytes:
        if request.length == PAGE:
            self.pages += 1
            return CONTENT[request.offset : request.offset + PAGE]
        self.chunks.append(request.offset // CHUNK_BYTES)
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            await self.may_go_on.wait()
        finally:
            self.at_once -= 1
        if self.is_away:
            raise DisconnectedError("away")
        data = CONTENT[request.offset : request.offset + request.length]
        return self.damage + data[len(self.damage) :]


class Mount:
    """A reader with a cache directory of ``size_max``."""

    def __init__(self, directory: Path, size_max: int = 1 << 30) -> None:
        self.node = Node()
        self.cache = BlobCache(directory, size_max)
        self.local = LocalBlobs((self.cache,))
        self.cache.on_kept = self.local.forget_absence
        node: Any = self.node
        self.reader = BlobReader(node, self.local, self.cache)
        self.chance = random.Random(2)

    async def __aenter__(self) -> Mount:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reader.close()
        self.local.close()

    async def read(self, count: int) -> None:
        for _ in range(count):
            offset = self.chance.randrange(len(CONTENT) // PAGE) * PAGE
            data = await self.reader.read(INFO, offset, PAGE, ahead=False)
            assert data == CONTENT[offset : offset + PAGE]

    async def settle(self) -> None:
        """What goes on in the background has ended."""
        assert self.reader._whole is not None
        task = self.reader._whole._bringing
        if task is not None:
            await asyncio.wait([task])


Scenario = Callable[[Mount], Coroutine[Any, Any, None]]


def run(directory: Path, scenario: Scenario, **options: int) -> None:
    async def main() -> None:
        async with Mount(directory, **options) as mount:
            await scenario(mount)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_after_some_pages_all_is_here(tmp_path: Path) -> None:
    """Each chunk is fetched once, a few at a time, and then nothing any more; a mount that comes
    later finds it."""

    async def scenario(mount: Mount) -> None:
        await mount.read(READS_MIN)
        await mount.settle()
        assert sorted(mount.node.chunks) == list(range(CHUNKS))
        assert mount.node.at_once_max <= AT_ONCE
        await mount.read(200)
        assert (mount.node.pages, len(mount.node.chunks)) == (READS_MIN, CHUNKS)

    async def later(mount: Mount) -> None:
        await mount.read(50)
        assert (mount.node.pages, mount.node.chunks) == (0, [])

    run(tmp_path, scenario)
    run(tmp_path, later)


def test_a_few_pages_are_a_few_requests(tmp_path: Path) -> None:
    """Who looks into a large file is not made to fetch it."""

    async def scenario(mount: Mount) -> None:
        await mount.read(READS_MIN - 1)
        await mount.settle()
        assert (mount.node.pages, mount.node.chunks) == (READS_MIN - 1, [])

    run(tmp_path, scenario)


def test_pages_are_read_while_the_rest_comes(tmp_path: Path) -> None:
    """A chunk that takes long holds up no reader; the end of the mount does not wait for it."""

    async def scenario(mount: Mount) -> None:
        mount.node.may_go_on.clear()
        await mount.read(READS_MIN + 30)
        assert mount.node.pages == READS_MIN + 30
        assert len(mount.node.chunks) <= AT_ONCE

    run(tmp_path, scenario)


@pytest.mark.parametrize("trouble", ["damaged", "away"])
def test_what_can_not_be_kept_is_not_fetched_again_and_again(tmp_path: Path, trouble: str) -> None:
    """Wrong content is not kept, and never shown; the source may fail on the way. The reader goes
    on page by page."""

    async def scenario(mount: Mount) -> None:
        mount.node.damage = b"wrong" if trouble == "damaged" else b""
        mount.node.is_away = trouble == "away"
        await mount.read(READS_MIN)
        await mount.settle()
        fetched = len(mount.node.chunks)
        assert fetched == CHUNKS if trouble == "damaged" else fetched <= AT_ONCE
        await mount.read(100)
        await mount.settle()
        assert (mount.node.pages, len(mount.node.chunks)) == (READS_MIN + 100, fetched)

    run(tmp_path, scenario)


def test_a_blob_too_large_for_the_cache_is_left_alone(tmp_path: Path) -> None:
    async def scenario(mount: Mount) -> None:
        await mount.read(100)
        await mount.settle()
        assert (mount.node.pages, mount.node.chunks) == (100, [])

    run(tmp_path, scenario, size_max=2 * len(CONTENT))


def test_it_ends_when_nobody_reads_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is gone: the rest stays where it is, and comes when it is read again."""

    async def scenario(mount: Mount) -> None:
        monkeypatch.setattr(whole_blobs, "IDLE_S", -1.0)
        await mount.read(READS_MIN)
        await mount.settle()
        assert mount.node.chunks == []
        monkeypatch.setattr(whole_blobs, "IDLE_S", 5.0)
        await mount.read(1)
        await mount.settle()
        assert len(mount.node.chunks) == CHUNKS

    run(tmp_path, scenario)
