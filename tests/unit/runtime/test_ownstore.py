"""A node's files against the books, in this process: what is found, and what is asked for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pydi_node.commands import ROOT_CALLER, Commit, Create
from pydi_node.ids import ROOT_INO, BlobId, NodeNumber, blob_id
from pydi_node.records import BlobInfo, Extent
from pydi_node.runtime import ownstore
from pydi_node.runtime.ownstore import OwnStore
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.transfers import Transfers
from tests.unit.runtime.inner import ONE, Inner

TWO = NodeNumber(2)
BLOBS = 60


def run(path: Path, scenario: Callable[[Inner, OwnStore], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Inner(path) as inner:
            transfers = Transfers(inner.peers, inner.store, ONE, inner.streams)
            replication = inner.service.replication = Replication(inner.service, transfers)
            await scenario(inner, OwnStore(inner.service, transfers, replication))

    asyncio.run(asyncio.wait_for(main(), 60))


async def book(inner: Inner, infos: list[BlobInfo]) -> None:
    """One file of all these blobs."""
    result = await inner.execute(Create(ROOT_CALLER, ROOT_INO, b"f", 0o644, True))
    at, extents = 0, []
    for info in infos:
        extents.append(Extent(at, info.size, info.blob, 0))
        at += info.size
    ino = result.value[0].ino
    commit = Commit(ROOT_CALLER, ino, None, 0, at, False, tuple(extents), tuple(infos))
    assert (await inner.execute(commit)).errno == 0


@pytest.mark.expects_log("this node should hold are not there")
def test_exactly_what_is_missing_is_found_and_nobody_is_asked_for_a_list(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any difference between files and books, both ways: each missing file is to be fetched, each
    surplus one goes, all others stay, and no request leaves for it: the books are here."""
    dice = random.Random(seed)
    monkeypatch.setattr(ownstore, "EXTRA_AGE_S", 0.0)

    async def scenario(inner: Inner, own: OwnStore) -> None:
        infos, missing, surplus = [], set(), set()
        for _ in range(BLOBS):
            blob, seal = inner.store.put(dice.randbytes(100))
            kind = dice.choice(("here", "here", "missing", "surplus", "elsewhere"))
            holders = (ONE, TWO) if kind in ("here", "missing") else (TWO, NodeNumber(3))
            if kind in ("missing", "elsewhere"):
                inner.store.delete(blob)
            {"missing": missing, "surplus": surplus}.get(kind, set()).add(blob)
            infos.append(BlobInfo(blob, seal.size, seal.checksum, holders))
        await book(inner, infos)
        before = set(inner.store.names())
        others_have_it = dict.fromkeys((TWO, NodeNumber(3)), True)
        monkeypatch.setattr(own._transfers, "is_up", others_have_it.get)
        sent: list[object] = []
        monkeypatch.setattr(own._transfers, "begin", lambda *request: sent.append(request))
        await own._compare()
        assert own._lost.keys() == missing
        assert set(inner.store.names()) == before - surplus
        assert not sent

    run(tmp_path, scenario)


@pytest.mark.expects_log("this node should hold are not there")
def test_an_emptied_disk_is_gone_through_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is missing than is remembered at a time: the comparison goes on as there is room, and
    does not leave the rest to the next one, an hour later."""
    monkeypatch.setattr(ownstore, "LOST_MAX", 10)
    monkeypatch.setattr(ownstore, "BLOBS_PER_SLICE", 5)
    monkeypatch.setattr(ownstore, "PERIOD_S", 0.001)

    async def scenario(inner: Inner, own: OwnStore) -> None:
        infos = [
            BlobInfo(blob_id(TWO, counter), 1, bytes(32), (ONE, TWO))
            for counter in range(1, BLOBS + 1)
        ]
        await book(inner, infos)
        comparing = asyncio.ensure_future(own._compare())
        healed: set[BlobId] = set()
        while not comparing.done() or own._lost:
            assert len(own._lost) <= ownstore.LOST_MAX
            if own._lost:  # as `_heal` does
                healed.add(own._lost.popitem()[0])
            await asyncio.sleep(0)
        assert healed == {info.blob for info in infos}

    run(tmp_path, scenario)
