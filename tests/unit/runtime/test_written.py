"""What a client may say of blobs, through the service of one node in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pydi_node.commands import ROOT_CALLER, Commit, Create, PutFile
from pydi_node.errors import BlobMissingError, DisconnectedError
from pydi_node.ids import BLOB_COUNTER_MAX, ROOT_INO, BlobId, ClientId, NodeNumber, Serial, blob_id
from pydi_node.records import BlobInfo, Extent
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.service import Request
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.messages import PUT_BLOB, Admin, BlobPut, Execute, ExecutePut
from tests.unit.runtime.inner import ONE, Inner

TWO = NodeNumber(2)


class Client:
    """A mount of that node, with a file."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner
        self.serial = 0

    async def begin(self) -> None:
        created = await self.inner.execute(Create(ROOT_CALLER, ROOT_INO, b"f", 0o644, True))
        self.ino = created.value[0].ino

    async def commit(self, *infos: BlobInfo) -> bool:
        """Whether the file has that content then; and whether nothing was to be asked before."""
        extents = tuple(Extent(100 * n, 1, info.blob, 0) for n, info in enumerate(infos))
        size = 100 * len(infos)
        commit = Commit(ROOT_CALLER, self.ino, None, 0, size, False, extents, infos)
        self.serial += 1
        execute = Execute(ClientId(9), Serial(self.serial), commit)
        request = Request(self.inner.session, execute, b"", 0.0)
        is_quick = self.inner.service.command_of(request) is not None
        assert (await self.inner.handle(execute)).errno == 0
        return is_quick


def run(path: Path, scenario: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Inner(path) as inner:
            transfers = Transfers(inner.peers, inner.store, ONE, inner.streams)
            inner.service.replication = Replication(inner.service, transfers)
            client = Client(inner)
            await client.begin()
            await scenario(client)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_name_that_no_node_gave_out_is_refused(tmp_path: Path) -> None:
    """The next ones of a node, or its last: with a new version, a new file, or beside content that
    is written. Then nothing is known of them, and the node still has names."""

    async def scenario(client: Client) -> None:
        inner = client.inner
        real: BlobInfo = await inner.handle(BlobPut(), b"real")
        for counter in (real.blob + 1 - blob_id(ONE, 1) + 1, BLOB_COUNTER_MAX):
            taken = BlobInfo(blob_id(ONE, counter), 1, bytes(32), (ONE, TWO))
            extents = (Extent(0, 1, taken.blob, 0),)
            with pytest.raises(BlobMissingError, match="no node within reach"):
                await client.commit(real, taken)
            new = PutFile(ROOT_CALLER, ROOT_INO, b"g", 0o644, 1, extents, (taken,))
            with pytest.raises(BlobMissingError):
                await inner.handle(Execute(ClientId(9), Serial(100), new))
            beside = Commit(
                ROOT_CALLER, client.ino, None, 0, 2, False,
                (*extents, Extent(1, 1, PUT_BLOB, 0)), (taken,),
            )  # fmt: skip
            with pytest.raises(BlobMissingError):
                await inner.handle(ExecutePut(ClientId(9), Serial(101), beside), b"x")
            assert inner.service.known_blob(taken.blob) is None
        assert inner.service.tree.last_counter_of(ONE) == 0

    run(tmp_path, scenario)


def test_what_was_written_here_costs_no_question(tmp_path: Path) -> None:
    """A blob that this node named a moment ago, one that the tree knows, and, after a look into the
    store, one that it named before it was started again."""

    async def scenario(client: Client) -> None:
        info: BlobInfo = await client.inner.handle(BlobPut(), b"content")
        assert await client.commit(info)
        assert await client.commit(info._replace(holders=(TWO,)))
        blob, seal = client.inner.store.put(b"of before")
        before = BlobInfo(blob, seal.size, seal.checksum, (ONE,))
        assert not await client.commit(before)
        blob, seal = client.inner.store.put(b"of before, too")
        with pytest.raises(BlobMissingError):
            await client.commit(BlobInfo(blob, seal.size + 1, seal.checksum, (ONE,)))

    run(tmp_path, scenario)


def test_holders_are_asked_for_what_was_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client came from another node with a blob that was written there. One holder that has the
    file is enough; those that are away, or don't answer, are not waited for."""
    two_has = BlobInfo(blob_id(TWO, 1), 5, bytes(32), (TWO, NodeNumber(3), NodeNumber(4)))
    two_lacks = two_has._replace(blob=blob_id(TWO, 2))
    asked: list[tuple[NodeNumber, list[BlobId]]] = []

    async def answer(number: NodeNumber, request: Admin, _: float) -> list[BlobId]:
        asked.append((number, request.arguments["blobs"]))
        if number == 3:
            raise DisconnectedError("gone")
        return [blob for blob in request.arguments["blobs"] if blob == two_has.blob]

    async def scenario(client: Client) -> None:
        transfers = client.inner.service.replication.transfers
        monkeypatch.setattr(transfers, "is_up", lambda number: number in (TWO, 3))
        monkeypatch.setattr(transfers, "request", answer)
        assert not await client.commit(two_has)
        assert asked == [(TWO, [two_has.blob])]
        asked.clear()
        with pytest.raises(BlobMissingError):
            await client.commit(two_has, two_lacks)
        assert asked == [(TWO, [two_lacks.blob]), (3, [two_lacks.blob])]

    run(tmp_path, scenario)
