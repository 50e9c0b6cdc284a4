"""A push is acknowledged when nobody here uses what it makes stale any more, and not before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pydi_fs.client import Client
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.ids import Ino
from pydi_node.records import Touched
from pydi_node.wire.events import AcknowledgeReceived, RequestReceived
from pydi_node.wire.messages import DropAll, Invalidate, Nodes, Push, Subscribe
from tests.unit.client.stand_ins import Node, run, says_welcome, serving

TOUCHED = Touched((Ino(7),))


@pytest.mark.parametrize(
    ("pushes", "everything"),
    [
        ([Invalidate(1, TOUCHED)], False),
        ([DropAll(1)], True),
        ([Invalidate(1, TOUCHED), DropAll(2)], True),
    ],
    ids=["a change", "everything", "a change, then everything"],
)
def test_a_push_is_acknowledged_when_the_kernel_was_told(
    tmp_path: Path, pushes: list[Push], everything: bool
) -> None:
    """The last push waits for what the binding gave; one that came before it may go ahead."""
    acknowledged: list[int] = []
    changed = asyncio.Event()

    def answer_of(node: Node, event: object) -> list[bytes]:
        match event:
            case RequestReceived(request_id, Subscribe()):
                out = list(node.session.send_answer(request_id, None))
                for push in pushes[node.session.push_sequence :]:  # once
                    out += node.session.send_push(push)
                return out
            case AcknowledgeReceived(sequence):
                acknowledged.append(sequence)
                changed.set()
            case RequestReceived(request_id, request):
                value = {"Nodes": [], "Lease": 900}.get(type(request).__name__)
                return list(node.session.send_answer(request_id, value))
        return []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        heard: list[tuple[bool, asyncio.Future[None]]] = []
        all_heard = asyncio.Event()

        def on_invalidate(
            inos: tuple[Ino, ...], entries: tuple[tuple[Ino, bytes], ...], everything: bool
        ) -> asyncio.Future[None]:
            heard.append((everything, loop.create_future()))
            if len(heard) == len(pushes):
                all_heard.set()
            return heard[-1][1]

        async with serving(tmp_path / "a", says_welcome, answer_of) as node:
            client = Client([node.endpoint])
            vfs = Vfs(client, VfsConfig(tmp_path))
            vfs.on_invalidate = on_invalidate
            try:
                await vfs.start()
                await all_heard.wait()
                assert heard[-1][0] is everything
                for _, told in heard[:-1]:
                    told.set_result(None)
                await client.call(Nodes())  # whatever was sent before has arrived
                assert len(pushes) not in acknowledged
                heard[-1][1].set_result(None)
                while acknowledged[-1:] != [len(pushes)]:
                    changed.clear()
                    await changed.wait()
            finally:
                await client.close()
                await vfs.stop()
                await node.left.wait()

    run(test())
