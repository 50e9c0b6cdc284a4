"""A node that takes its time is waited for, one whose program hangs is not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from pydi_node.errors import DeadlineError
from pydi_node.ids import NodeNumber
from pydi_node.runtime import peers as peers_module
from pydi_node.runtime import transfers as transfers_module
from pydi_node.runtime.peers import Link
from pydi_node.runtime.transfers import Transfers, _Node
from pydi_node.wire.events import Hello, HelloReceived, PingReceived, RequestReceived, Welcome
from pydi_node.wire.messages import BlobVerify, Role
from pydi_node.wire.session import PROTOCOL_VERSIONS, Session
from tests.unit.runtime.inner import ONE, Inner

TWO = NodeNumber(2)
NEVER_S = 3600.0
HANGS_S = 0.1


class Silent(asyncio.Protocol):
    """A machine that died when it had taken the connection."""


class Slow(asyncio.Protocol):
    """A node that answers pings, unless it hangs, and a request some time after one."""

    def __init__(self, hangs: bool) -> None:
        self._hangs = hangs
        self._session = Session.accepting()
        self._request_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._session.receive_data(data)
        for event in self._session.events():
            match event:
                case HelloReceived():
                    self._send(self._session.send_welcome(Welcome(1, "0" * 32, TWO, "host")))
                case RequestReceived(request_id):
                    self._request_id = request_id
                case PingReceived(token) if not self._hangs:
                    self._send(self._session.send_pong(token))
                    asyncio.get_running_loop().call_later(3 * HANGS_S, self._answer)

    def _answer(self) -> None:
        self._send(self._session.send_answer(self._request_id, None))

    def _send(self, buffers: list[Any]) -> None:
        self._transport.writelines(buffers)


def run(path: Path, hangs: bool) -> Coroutine[Any, Any, bool]:
    """Whether the node was avoided after a request to it, whose error comes through."""

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        async with Inner(path) as inner:
            server = await loop.create_server(lambda: Slow(hangs), "127.0.0.1", 0)
            hello = Hello(PROTOCOL_VERSIONS, Role.NODE, "0" * 32, 1, "host")
            address = server.sockets[0].getsockname()
            _, link = await loop.create_connection(lambda: Link(hello), *address)
            await link.welcome()
            transfers = Transfers(inner.peers, inner.store, ONE, inner.streams)
            transfers._nodes[TWO] = _Node(link)
            try:
                _, answer = transfers.begin(TWO, BlobVerify(7))
                await transfers.answer(TWO, answer, NEVER_S)
            finally:
                link.close()
                server.close()
            return TWO in transfers._avoided_until_s

    return asyncio.wait_for(main(), 60)


def test_who_answers_pings_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk is slow, its program lives."""
    monkeypatch.setattr(transfers_module, "HANGS_S", HANGS_S)
    assert not asyncio.run(run(tmp_path, hangs=False))


def test_who_answers_nothing_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a slow one would be waited for."""
    monkeypatch.setattr(transfers_module, "HANGS_S", HANGS_S)
    with pytest.raises(DeadlineError):
        asyncio.run(run(tmp_path, hangs=True))


def test_who_never_welcomes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the connection with it, so that the next attempt may find more."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Silent, "127.0.0.1", 0)
        hello = Hello(PROTOCOL_VERSIONS, Role.NODE, "0" * 32, 1, "host")
        _, link = await loop.create_connection(
            lambda: Link(hello), *server.sockets[0].getsockname()
        )
        with pytest.raises(TimeoutError):
            await link.welcome()
        assert not link.is_open
        server.close()

    monkeypatch.setattr(peers_module, "CONNECT_TIMEOUT_S", HANGS_S)
    asyncio.run(asyncio.wait_for(main(), 60))
