"""Stand-ins for nodes, which welcome, refuse or hang: real unix sockets in the test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from pydi_fs.client import UnixEndpoint
from pydi_node.wire.events import HelloReceived, Refusal, Welcome
from pydi_node.wire.session import Session

DEADLINE_S = 60.0  # of a test that hangs

Buffers = list[Any]


class Node:
    """One stand-in and who has connected to it; its session is that of the newest connection."""

    def __init__(self, path: Path) -> None:
        self.endpoint = UnixEndpoint(path)
        self.session = Session.accepting()
        self.connected = asyncio.Event()  # somebody connected, at any time
        self.left = asyncio.Event()  # and went away again
        self.pinged = asyncio.Event()
        self.hangs = False  # True: it reads, and answers nothing


Answer = Callable[[Node], Buffers]  # to a hello
AnswerOf = Callable[[Node, object], Buffers]  # to any later event


def says_welcome(node: Node) -> Buffers:
    return list(node.session.send_welcome(Welcome(1, "0" * 32, 1, "host")))


def refuses(node: Node) -> Buffers:
    return list(node.session.send_refuse(Refusal.CLUSTER, "another cluster"))


def hangs(_: Node) -> Buffers:
    return []


@asynccontextmanager
async def serving(
    path: Path, answer: Answer, answer_of: AnswerOf = lambda _, __: []
) -> AsyncIterator[Node]:
    node = Node(path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node.connected.set()
        node.session = Session.accepting()
        while data := await reader.read(1 << 16):
            if node.hangs:
                continue
            node.session.receive_data(data)
            for event in node.session.events():
                is_hello = isinstance(event, HelloReceived)
                writer.writelines(answer(node) if is_hello else answer_of(node, event))
        writer.close()
        with suppress(ConnectionError):  # the client hangs up without a goodbye
            await writer.wait_closed()
        node.left.set()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield node
    finally:
        server.close()
        await server.wait_closed()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test

    asyncio.run(bounded())
