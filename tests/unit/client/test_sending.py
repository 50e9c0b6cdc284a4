"""What a client sends and what it does not, over a transport that only keeps it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from pydi_fs.client import Client, UnixEndpoint
from pydi_fs.client.connection import Connection
from pydi_node.errors import BusyError, DeadlineError, DisconnectedError
from pydi_node.ids import BlobId
from pydi_node.wire.events import Hello, HelloReceived, RequestReceived, Welcome
from pydi_node.wire.messages import CHUNK_MAX_BYTES, BlobWrite, Nodes, Role
from pydi_node.wire.session import PAYLOAD_OUTSTANDING_MAX_BYTES, PROTOCOL_VERSIONS, Session
from tests.harness.feeding import feed
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving


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


def connect(transport: Transport) -> Connection:
    client = Connection(
        UnixEndpoint(Path("node")), Hello(PROTOCOL_VERSIONS, Role.MOUNT, "", 0, "host", {}),
        lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None,
    )  # fmt: skip
    client.connection_made(cast(asyncio.Transport, transport))
    return client


@pytest.mark.expects_log("broke the protocol")
def test_between_a_broken_session_and_the_end_of_its_connection_nothing_is_sent() -> None:
    """A node breaks the protocol; before the transport says that it is closed, one request that
    waits is cancelled and another one's deadline passes: each ends as it should, and what comes
    later is told that the node is gone."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        trouble: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: trouble.append(context))
        transport, node = Transport(), Session.accepting()
        client = connect(transport)
        node.receive_data(bytes(transport.written))
        list(node.events())
        feed(client, b"".join(node.send_welcome(Welcome(1, "0" * 32, 1, "host"))))
        cancelled = loop.create_task(client.request(Nodes(), b"", 60.0, None, None))
        late = loop.create_task(client.request(Nodes(), b"", 0.01, None, None))
        await settle()
        feed(client, b"\xff" * 64)
        cancelled.cancel()
        with pytest.raises(DeadlineError):
            await late
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(DisconnectedError):
            await client.request(Nodes(), b"", 60.0, None, None)
        client.connection_lost(None)
        assert not trouble

    run(test())


def test_content_on_its_way_stays_below_what_a_node_reads() -> None:
    """A node stops reading when it has so much to answer, and hears no acknowledgement. The client
    waits before that, and goes on with every answer."""

    async def test() -> None:
        transport, node = Transport(), Session.accepting()
        client = connect(transport)

        async def arrived() -> list[Any]:
            await settle()
            node.receive_data(bytes(transport.written))
            transport.written.clear()
            return list(node.events())

        (hello,) = await arrived()
        assert isinstance(hello, HelloReceived)
        feed(client, b"".join(node.send_welcome(Welcome(1, "0" * 32, 1, "host"))))
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
                feed(client, b"".join(node.send_answer(waiting.pop(0), None)))
        client.connection_lost(None)

    run(test())


def test_a_busy_node_is_asked_again(tmp_path: Path) -> None:
    """It has accepted nothing, as when too many commands wait for its log: no program hears of
    that while there is time."""
    asked = 0

    def answer_of(node: Node, event: object) -> Buffers:
        nonlocal asked
        if not isinstance(event, RequestReceived):
            return []
        asked += 1
        if asked < 3:
            return list(node.session.send_error(event.request_id, BusyError("busy")))
        return list(node.session.send_answer(event.request_id, []))

    async def test() -> None:
        async with serving(tmp_path / "a", says_welcome, answer_of) as node:
            client = Client([node.endpoint])
            await client.connect()
            assert await client.call(Nodes()) == ()
            await client.close()
            await node.left.wait()

    run(test())
    assert asked == 3
