"""How much a client has on its way at a time, over a transport that only keeps it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from pydi_fs.client import UnixEndpoint
from pydi_fs.client.connection import Connection
from pydi_node.ids import BlobId
from pydi_node.wire.events import Hello, HelloReceived, RequestReceived, Welcome
from pydi_node.wire.messages import CHUNK_MAX_BYTES, BlobWrite, Role
from pydi_node.wire.session import PAYLOAD_OUTSTANDING_MAX_BYTES, PROTOCOL_VERSIONS, Session
from tests.unit.client.stand_ins import run


class Transport:
    """What the client wrote and the node has not read."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, buffers: list[bytes]) -> None:
        self.written += b"".join(buffers)

    def abort(self) -> None:
        pass


async def settle() -> None:
    """Every task goes on until it waits for an answer."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_content_on_its_way_stays_below_what_a_node_reads() -> None:
    """A node stops reading when it has so much to answer, and hears no acknowledgement. The client
    waits before that, and goes on with every answer."""

    async def test() -> None:
        client = Connection(
            UnixEndpoint(Path("node")), Hello(PROTOCOL_VERSIONS, Role.MOUNT, "", 0, "host", {}),
            lambda *_: None, lambda *_: None, lambda *_: None,
        )  # fmt: skip
        transport, node = Transport(), Session.accepting()
        client.connection_made(cast(asyncio.Transport, transport))

        async def arrived() -> list[Any]:
            await settle()
            node.receive_data(bytes(transport.written))
            transport.written.clear()
            return list(node.events())

        (hello,) = await arrived()
        assert isinstance(hello, HelloReceived)
        client.data_received(b"".join(node.send_welcome(Welcome(1, "0" * 32, 1, "host"))))
        content = bytes(CHUNK_MAX_BYTES)
        writes = [
            asyncio.ensure_future(
                client.request(BlobWrite(BlobId(1), at), content, 60.0, None, None)
            )
            for at in range(16)
        ]
        waiting: list[int] = []
        while not all(write.done() for write in writes):
            for event in await arrived():
                assert isinstance(event, RequestReceived)
                waiting.append(event.request_id)
            assert node.unanswered_bytes < PAYLOAD_OUTSTANDING_MAX_BYTES
            if waiting:
                client.data_received(b"".join(node.send_answer(waiting.pop(0), None)))
        client.connection_lost(None)

    run(test())
