"""A stage's checksum: BLAKE3 of what it holds, however that came there."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_fs.vfs.staging import CHUNK_BYTES, MEMORY_BYTES_MAX, StagingArea
from pydi_node.ids import BlobId, Ino
from pydi_node.wire.messages import BlobCreate

SIZES = (1, 4096, 4096, 4096, 64 * 1024, 200_000, CHUNK_BYTES)


class Taker:
    """A node that takes all that it is sent."""

    epoch = 1

    def __init__(self) -> None:
        self.takes = asyncio.Event()
        self.takes.set()

    async def call(self, request: object, _content: bytes | None = None) -> Any:
        await self.takes.wait()
        return BlobId(1) if isinstance(request, BlobCreate) else None


@pytest.mark.parametrize("round_", range(24))
def test_the_checksum_is_that_of_the_bytes(tmp_path: Path, seed: int, round_: int) -> None:
    """Goal: appended in pieces of any size, rewritten before and after they are hashed, sent
    meanwhile or not. Method: the same on a bytearray."""

    async def run() -> None:
        dice = random.Random(seed * 1000 + round_)
        stage = StagingArea(Taker(), tmp_path).new_stage(Ino(7))  # type: ignore[arg-type]
        expected = bytearray()
        sizes, count = dice.choice(((SIZES[1:4], 600), (SIZES, 20), (SIZES[4:], 5)))
        for _ in range(count):
            data = dice.randbytes(dice.choice(sizes))
            if expected and dice.random() < 0.2:
                # Near the end: what is further in front was hashed long ago, mostly.
                start = dice.randrange(max(0, len(expected) - 2 * CHUNK_BYTES), len(expected))
                data = data[: len(expected) - start]
                stage.overwrite(start, data)
                expected[start : start + len(data)] = data
            else:
                assert stage.append(data) == len(expected)
                expected += data
            if dice.random() < 0.1:
                await stage.drain()
        await stage.drain()
        assert stage.in_memory == (len(expected) <= MEMORY_BYTES_MAX)
        for _ in range(2):
            assert await stage.checksum() == blake3(expected).digest()
        assert stage.read(0, stage.size) == expected
        stage.close()

    asyncio.run(run())


def test_who_no_longer_waits_for_a_checksum_does_not_spoil_the_next(tmp_path: Path) -> None:
    async def run() -> None:
        node = Taker()
        node.takes.clear()  # nothing is hashed on its way there
        stage = StagingArea(node, tmp_path).new_stage(Ino(7))  # type: ignore[arg-type]
        data = random.Random(7).randbytes(4096)
        for _ in range(3 * CHUNK_BYTES // len(data)):
            stage.append(data)
        waiting = asyncio.create_task(stage.checksum())
        await asyncio.sleep(0)
        waiting.cancel()
        assert await stage.checksum() == blake3(data * (3 * CHUNK_BYTES // len(data))).digest()
        node.takes.set()
        await stage.drain()
        stage.close()

    asyncio.run(run())
