"""Content kept on the disk: whole and right or not there, bounded, found again, shared."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_fs.vfs.blob_cache import CHUNK_BYTES, BlobCache
from pydi_node.ids import NodeNumber, blob_id
from pydi_node.records import BlobInfo

DEADLINE_S = 60.0
SIZE_MAX = 40 * CHUNK_BYTES


def content_of(counter: int, size: int) -> bytes:
    return bytes([counter]) * size


def info_of(counter: int, content: bytes) -> BlobInfo:
    return BlobInfo(
        blob_id(NodeNumber(1), counter), len(content), blake3(content).digest(), (NodeNumber(1),)
    )


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_S))


def chunks_of(content: bytes) -> list[tuple[int, bytes]]:
    return [
        (index, content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        for index in range((len(content) + CHUNK_BYTES - 1) // CHUNK_BYTES)
    ]


async def keep(cache: BlobCache, info: BlobInfo, content: bytes, order: int = 1) -> None:
    """Offers all chunks, in order or backwards."""
    for index, data in chunks_of(content)[::order]:
        cache.offer(info, index, data)
    await opened(cache, info_of(255, b"nothing"))  # what was offered before has been looked at


async def opened(cache: BlobCache, info: BlobInfo) -> bytes | None:
    fd = await cache.open(info)
    if fd is None:
        return None
    try:
        with pytest.raises(OSError):
            os.write(fd, b"x")
        return os.pread(fd, info.size + 1, 0)
    finally:
        os.close(fd)


def files_in(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "blobs").rglob("*") if path.is_file())


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_a_whole_blob_is_kept_and_found_after_a_restart(
    tmp_path: Path, size: int, order: int
) -> None:
    """In whatever order its chunks came; the reader is told."""
    content = os.urandom(size)
    info = info_of(1, content)

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        told: list[int] = []
        cache.on_kept = told.append
        assert await opened(cache, info) is None
        await keep(cache, info, content, order)
        assert await opened(cache, info) == content
        assert told == [info.blob]
        cache.close()
        again = BlobCache(tmp_path, SIZE_MAX)
        assert await opened(again, info) == content
        again.close()

    run(test())


def test_a_part_is_not_kept(tmp_path: Path) -> None:
    """A chunk is missing: no name, and nothing is left at the end, nor of a crash."""
    content = os.urandom(3 * CHUNK_BYTES)
    info = info_of(1, content)

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        cache.offer(info, 0, content[:CHUNK_BYTES])
        cache.offer(info, 2, content[-CHUNK_BYTES:])
        assert await opened(cache, info) is None
        assert files_in(tmp_path) == []
        cache.close()

    run(test())
    assert files_in(tmp_path) == []


def test_wrong_content_gets_no_name(tmp_path: Path) -> None:
    """The chunks are not what the checksum says."""
    content = os.urandom(2 * CHUNK_BYTES)
    info = info_of(1, content)

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        await keep(cache, info, content[:-1] + bytes([content[-1] ^ 1]))
        assert await opened(cache, info) is None
        assert files_in(tmp_path) == []
        cache.close()

    run(test())


@pytest.mark.expects_log("was damaged: removed")
@pytest.mark.parametrize("damage", ["bit", "short"])
def test_a_damaged_file_is_removed(tmp_path: Path, damage: str) -> None:
    """Content that changed on the disk is not given out after a restart; it is kept anew."""
    content = os.urandom(2 * CHUNK_BYTES)
    info = info_of(1, content)

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        await keep(cache, info, content)
        cache.close()
        (path,) = files_in(tmp_path)
        path.chmod(0o600)
        if damage == "bit":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            os.truncate(path, 5)
        again = BlobCache(tmp_path, SIZE_MAX)
        assert await opened(again, info) is None
        assert files_in(tmp_path) == []
        await keep(again, info, content)
        assert await opened(again, info) == content
        again.close()

    run(test())


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    """The directory stays below its size, also when another mount fills it; use counts."""
    contents = {number: content_of(number, 9 * CHUNK_BYTES) for number in range(1, 7)}
    infos = {number: info_of(number, content) for number, content in contents.items()}

    async def test() -> None:
        caches = [BlobCache(tmp_path, SIZE_MAX) for _ in range(2)]
        long_ago = time.time() - 100_000
        for number in range(1, 5):
            await keep(caches[number % 2], infos[number], contents[number])
            for path in files_in(tmp_path):
                if path.stat().st_mtime > long_ago + 1000:
                    os.utime(path, (long_ago + number, long_ago + number))
        assert await opened(caches[0], infos[1]) == contents[1]
        for number in (5, 6):
            await keep(caches[0], infos[number], contents[number])
        assert sum(path.stat().st_size for path in files_in(tmp_path)) <= SIZE_MAX
        kept = [n for n in infos if await opened(caches[1], infos[n]) is not None]
        assert kept == [1, 4, 5, 6]
        for cache in caches:
            cache.close()

    run(test())


def test_a_blob_that_would_push_out_the_rest_is_not_kept(tmp_path: Path) -> None:
    """One large file leaves the others where they are."""
    content = content_of(1, SIZE_MAX // 4 + 1)

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        await keep(cache, info_of(1, content), content)
        assert files_in(tmp_path) == []
        cache.close()

    run(test())


def test_two_mounts_keep_one_file(tmp_path: Path) -> None:
    """Both fetch the same blob at the same time: one file, no error."""
    content = os.urandom(2 * CHUNK_BYTES)
    info = info_of(1, content)

    async def test() -> None:
        first, second = (BlobCache(tmp_path, SIZE_MAX) for _ in range(2))
        told: list[int] = []
        for cache in (first, second):
            cache.on_kept = told.append
            cache.offer(info, 0, content[:CHUNK_BYTES])
        for cache in (first, second):
            await opened(cache, info)
        for cache in (first, second):
            cache.offer(info, 1, content[CHUNK_BYTES:])
        for cache in (first, second):
            assert await opened(cache, info) == content
        assert len(files_in(tmp_path)) == 1
        assert told == [info.blob] * 2
        first.close()
        second.close()

    run(test())


def test_clusters_are_not_mixed_up(tmp_path: Path) -> None:
    """Two clusters name their blobs alike; each mount finds its own content."""
    here, there = b"here" * 100, b"elsewhere" * 100

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        await keep(cache, info_of(1, here), here)
        assert await opened(cache, info_of(1, there)) is None
        await keep(cache, info_of(1, there), there)
        assert await opened(cache, info_of(1, here)) == here
        assert await opened(cache, info_of(1, there)) == there
        cache.close()

    run(test())


def test_a_directory_that_cannot_be_used_costs_no_read(tmp_path: Path) -> None:
    """Nothing is kept, nothing is raised."""
    (tmp_path / "blobs").write_text("in the way")

    async def test() -> None:
        cache = BlobCache(tmp_path, SIZE_MAX)
        await keep(cache, info_of(1, b"content"), b"content")
        assert await opened(cache, info_of(1, b"content")) is None
        cache.close()

    run(test())
