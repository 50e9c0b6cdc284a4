"""Open files of blobs: kept for the next reader, let go when they are no longer what they were."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs.local_blobs import LocalBlob, LocalBlobs
from pydi_node.ids import NodeNumber, blob_id, blob_name
from pydi_node.records import BlobInfo

DEADLINE_S = 60.0
CONTENT = bytes(range(256)) * 40


def info_of(counter: int, size: int = len(CONTENT)) -> BlobInfo:
    return BlobInfo(blob_id(NodeNumber(1), counter), size, bytes(32), (NodeNumber(1),))


class Folder:
    """A source: one file for each blob; it counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = 0

    def close(self) -> None:
        pass

    def add(self, info: BlobInfo, content: bytes = CONTENT) -> Path:
        path = self.path / blob_name(info.blob)
        path.write_bytes(content)
        return path

    async def open(self, info: BlobInfo) -> int | None:
        self.asked += 1
        await asyncio.sleep(0)
        try:
            return os.open(self.path / blob_name(info.blob), os.O_RDONLY)
        except FileNotFoundError:
            return None


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_S))


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_one_question_serves_all_readers(folder: Folder) -> None:
    """Readers at the same time and later share one descriptor."""
    info = info_of(1)
    folder.add(info)

    async def test() -> None:
        blobs = LocalBlobs([folder])
        found = await asyncio.gather(*(blobs.read(info, 100, 50) for _ in range(10)))
        assert found == [CONTENT[100:150]] * 10
        assert await blobs.read(info, 0, len(CONTENT)) == CONTENT
        assert folder.asked == 1
        blobs.close()

    run(test())


def test_what_is_not_here_is_asked_for_once_in_a_while(folder: Folder) -> None:
    """Absence is remembered, until a source says that it has it now."""
    info = info_of(1)

    async def test() -> None:
        blobs = LocalBlobs([folder])
        assert await blobs.read(info, 0, 10) is None
        folder.add(info)
        assert await blobs.get(info) is None
        assert folder.asked == 1
        blobs.forget_absence(info.blob)
        assert await blobs.read(info, 0, 10) == CONTENT[:10]
        blobs.close()

    run(test())


@pytest.mark.parametrize("change", ["remove", "rename", "write"])
def test_a_file_that_changed_is_let_go(folder: Folder, tmp_path: Path, change: str) -> None:
    """Deleted, moved to quarantine or written to: not read from any more, its space is free."""
    info = info_of(1)
    path = folder.add(info)

    async def test() -> None:
        blobs = LocalBlobs([folder])
        local = await blobs.get(info)
        assert local is not None
        fd = local.fd
        if change == "remove":
            path.unlink()
        elif change == "rename":
            path.rename(tmp_path / "elsewhere")
        else:
            path.write_bytes(CONTENT[::-1])
        blobs.sweep()
        assert not is_open(fd)
        again = await blobs.read(info, 0, 10)
        assert again == (CONTENT[::-1][:10] if change == "write" else None)
        blobs.close()

    run(test())


def test_a_read_notices_the_change_itself(folder: Folder) -> None:
    """Without a sweep in between."""
    info = info_of(1)
    path = folder.add(info)

    async def test() -> None:
        blobs = LocalBlobs([folder])
        assert await blobs.read(info, 0, 10) == CONTENT[:10]
        path.unlink()
        assert await blobs.read(info, 0, 10) is None
        blobs.close()

    run(test())


def test_a_pinned_file_stays_open(folder: Folder) -> None:
    """Pushed out by others, or closed at the end, it is closed with its last pin, told before."""

    async def test() -> None:
        blobs = LocalBlobs([folder], files_max=2)
        infos = [info_of(number) for number in range(1, 5)]
        for info in infos:
            folder.add(info)
        first = await blobs.get(infos[0])
        assert first is not None
        told: list[int] = []
        first.on_close = lambda: told.append(first.fd)
        first.pin()
        first.pin()
        for info in infos[1:]:
            assert await blobs.get(info) is not None
        fd = first.fd
        first.unpin()
        assert os.pread(fd, 10, 0) == CONTENT[:10]
        assert not told
        first.unpin()
        assert told == [fd]
        assert not is_open(fd)
        blobs.close()

    run(test())


def test_the_least_recently_used_goes_first(folder: Folder) -> None:
    """A bounded number stays open."""

    async def test() -> None:
        blobs = LocalBlobs([folder], files_max=2)
        infos = [info_of(number) for number in range(1, 4)]
        for info in infos:
            folder.add(info)
        opened: list[LocalBlob] = []
        for info in (infos[0], infos[1], infos[0], infos[2]):
            local = await blobs.get(info)
            assert local is not None
            opened.append(local)
        assert opened[0] is opened[2]
        assert opened[0].fd >= 0
        assert opened[1].fd == -1
        blobs.close()
        assert opened[0].fd == opened[3].fd == -1

    run(test())


def test_a_short_file_is_no_content(folder: Folder) -> None:
    """Less than there should be: the reader goes elsewhere, and this file is not asked again."""
    info = info_of(1)
    folder.add(info, CONTENT[:100])

    async def test() -> None:
        blobs = LocalBlobs([folder])
        assert await blobs.read(info, 0, len(CONTENT)) is None
        assert await blobs.read(info, 0, 10) is None
        assert folder.asked == 1
        blobs.close()

    run(test())


def test_an_interrupted_reader_leaves_the_others_theirs(folder: Folder) -> None:
    """One of two that wait for the same file is cancelled; the other one gets it."""
    info = info_of(1)
    folder.add(info)

    async def test() -> None:
        blobs = LocalBlobs([folder])
        first, second = (asyncio.ensure_future(blobs.get(info)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is not None
        blobs.close()

    run(test())
