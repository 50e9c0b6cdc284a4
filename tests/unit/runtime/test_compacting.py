"""A file in many pieces is brought together by the node, and loses nothing by it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from pydi_node.commands import ROOT_CALLER, Commit, Create
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import BlobInfo, Extent
from pydi_node.runtime import compacting
from pydi_node.runtime.compacting import Compacting
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.transfers import Transfers
from tests.unit.runtime.inner import ONE, Inner

PIECES = 80
PIECE_BYTES = 700


async def content_of(inner: Inner, ino: Ino) -> bytes:
    version = inner.service.tree.file_version(ino)
    content = bytearray(version.attr.size)
    for extent in version.extents:
        data = inner.store.read(extent.blob, extent.blob_offset, extent.length)
        content[extent.offset : extent.offset + extent.length] = data
    return bytes(content)


async def in_pieces(inner: Inner, seed: int) -> tuple[Ino, bytes]:
    """A file of PIECES blobs, with a hole in the middle."""
    created = await inner.execute(Create(ROOT_CALLER, ROOT_INO, b"f", 0o644, True))
    ino = created.value[0].ino
    source = random.Random(seed)
    content = bytearray()
    for number in range(PIECES):
        data = source.randbytes(PIECE_BYTES)
        if number == PIECES // 2:
            content += bytes(PIECE_BYTES)
        blob, seal = inner.store.put(data)
        info = BlobInfo(blob, seal.size, seal.checksum, (ONE,))
        extents = (Extent(len(content), len(data), blob, 0),)
        content += data
        commit = Commit(ROOT_CALLER, ino, None, None, len(content), False, extents, (info,))
        assert (await inner.execute(commit)).errno == 0
    return ino, bytes(content)


def run_with(path: Path, seed: int, changes: bool) -> None:
    async def main() -> None:
        async with Inner(path) as inner:
            transfers = Transfers(inner.peers, inner.store, ONE, inner.streams)
            inner.service.replication = Replication(inner.service, transfers)
            ino, content = await in_pieces(inner, seed)
            compacting_ = Compacting(inner.service)
            tree = inner.service.tree
            before = tree.getattr(ino)
            assert len(tree.file_version(ino).extents) == PIECES
            files = inner.store.usage().files
            if changes:
                # Between the reading and the command, somebody writes.
                rewrite = compacting_._rewrite

                async def interrupted(version, runs):  # type: ignore[no-untyped-def]  # as it is
                    info = await rewrite(version, runs)
                    cut = Commit(ROOT_CALLER, ino, None, 5, 5, False, (), ())
                    assert (await inner.execute(cut)).errno == 0
                    return info

                compacting_._rewrite = interrupted  # type: ignore[method-assign]  # for this test
                assert not await compacting_.step(ino)
                assert await content_of(inner, ino) == content[:5]
                assert inner.store.usage().files == files  # the useless blob is gone
                return
            assert not await compacting_.slice()  # the end of the tree
            version = tree.file_version(ino)
            assert len(version.extents) == 2
            assert await content_of(inner, ino) == content
            assert version.attr._replace(changed=before.changed) == before
            assert not await compacting_.step(ino)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delays."""
    monkeypatch.setattr(compacting, "QUIET_S", 0.0)
    monkeypatch.setattr(compacting, "SLICE_PERIOD_S", 0.0)


def test_pieces_are_joined_behind_the_commit(tmp_path: Path, seed: int) -> None:
    """Two extents instead of eighty, the same bytes, times and version; then nothing is left."""
    run_with(tmp_path, seed, changes=False)


def test_a_change_meanwhile_wins(tmp_path: Path, seed: int) -> None:
    """The file is as its writer left it, and the blob that came too late is deleted."""
    run_with(tmp_path, seed, changes=True)
