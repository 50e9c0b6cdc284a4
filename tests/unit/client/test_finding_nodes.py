"""Which node a client ends up with when some are dead, hang, or refuse it.

Nodes are stand-ins that do no more than to say welcome, over real unix sockets in the test's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.client import Client, UnixEndpoint, connection
from pydi_node.errors import EXIT_UNREACHABLE, UserError
from pydi_node.wire.events import HelloReceived, Refusal, Welcome
from pydi_node.wire.session import Session

NEVER_S = 3600.0
DEADLINE_S = 60.0  # of a test that hangs

Answer = Callable[[Session], list[Any]]  # to a hello


class Node:
    """One stand-in and who has connected to it."""

    def __init__(self, path: Path) -> None:
        self.endpoint = UnixEndpoint(path)
        self.connected = asyncio.Event()  # somebody connected, at any time
        self.left = asyncio.Event()  # and went away again


def says_welcome(session: Session) -> list[Any]:
    return list(session.send_welcome(Welcome(1, "0" * 32, 1, "host")))


def refuses(session: Session) -> list[Any]:
    return list(session.send_refuse(Refusal.CLUSTER, "another cluster"))


def hangs(_: Session) -> list[Any]:
    return []


@asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[Node]:
    node = Node(path)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node.connected.set()
        session = Session.accepting()
        while data := await reader.read(1 << 16):
            session.receive_data(data)
            if any(isinstance(event, HelloReceived) for event in session.events()):
                writer.writelines(answer(session))
        node.left.set()
        writer.close()

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


def test_a_node_that_hangs_keeps_nobody_from_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three nodes accept the connection and say nothing: the client is with the third
    without having waited for them to time out, and hangs up on them."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", NEVER_S)

    async def test() -> None:
        async with (
            serving(tmp_path / "a", hangs) as first,
            serving(tmp_path / "b", hangs) as second,
            serving(tmp_path / "c", says_welcome) as third,
        ):
            client = Client([node.endpoint for node in (first, second, third)])
            await client.connect()
            assert client.epoch == 1
            assert not third.left.is_set()
            await first.left.wait()
            await second.left.wait()
            await client.close()
            await third.left.wait()

    run(test())


def test_the_nearest_node_is_asked_alone_when_it_answers(tmp_path: Path) -> None:
    """The others are not bothered while the first one answers at once."""

    async def test() -> None:
        async with (
            serving(tmp_path / "a", says_welcome) as first,
            serving(tmp_path / "b", says_welcome) as second,
        ):
            client = Client([first.endpoint, second.endpoint])
            await client.connect()
            await client.close()
            await first.left.wait()
            assert not second.connected.is_set()

    run(test())


def test_all_refuse_or_are_dead(tmp_path: Path) -> None:
    """Nobody there, and one that refuses: one sentence, and the exit code for it."""

    async def test() -> None:
        async with serving(tmp_path / "a", refuses) as first:
            client = Client([first.endpoint, UnixEndpoint(tmp_path / "nobody")])
            with pytest.raises(UserError) as raised:
                await client.connect()
            assert raised.value.exit_code == EXIT_UNREACHABLE
            await client.close()

    run(test())


def test_end_of_the_client_ends_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed while it still waits for a node that hangs: it hangs up."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", NEVER_S)

    async def test() -> None:
        async with serving(tmp_path / "a", hangs) as node:
            client = Client([node.endpoint])
            connecting = asyncio.ensure_future(client.connect())
            await node.connected.wait()
            await client.close()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await node.left.wait()

    run(test())
