"""A node's connection to another one: what it takes, and how it ends, as it looks from here."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from pydi_node.runtime.peers import WRITE_MAX_BYTES, Link
from pydi_node.wire.events import Hello, Welcome
from pydi_node.wire.messages import Role
from pydi_node.wire.session import PROTOCOL_VERSIONS, Session
from tests.harness.feeding import feed
from tests.unit.runtime.test_connection import Transport


@pytest.mark.parametrize(
    ("closed_here", "error", "was_ended"),
    [
        pytest.param(False, None, True, id="its program ended"),
        pytest.param(False, ConnectionResetError(), True, id="it was killed"),
        pytest.param(False, TimeoutError(), False, id="nothing is heard of its machine"),
        pytest.param(True, None, False, id="closed here"),
    ],
)
def test_only_what_the_other_side_ended_tells_of_its_end(
    closed_here: bool, error: Exception | None, was_ended: bool
) -> None:
    """A leader of which nothing is heard may still lead, and this node's own doing says nothing."""

    async def test() -> None:
        link = Link(Hello(PROTOCOL_VERSIONS, Role.NODE, "0" * 32, 1, "host"))
        if closed_here:
            link.close()
        link.connection_lost(error)
        assert link.was_ended is was_ended
        assert link.lost.done()

    asyncio.run(test())


class Clogged(Transport):
    """Of a socket that takes nothing."""

    socket: socket.socket

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.socket

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def get_write_buffer_size(self) -> int:
        return len(self.written)


def test_what_one_turn_sends_is_bounded_too() -> None:
    """A follower has far more commands for its leader than a link takes at a time: what is too much
    is dropped, and is sent again later."""

    async def test() -> None:
        transport = Clogged()
        with socket.socket() as transport.socket:
            link = Link(Hello(PROTOCOL_VERSIONS, Role.NODE, "0" * 32, 1, "host"))
            link.connection_made(cast(asyncio.Transport, transport))
            node = Session.accepting()
            node.receive_data(bytes(transport.written))
            assert list(node.events())
            transport.written.clear()
            welcome = Welcome(PROTOCOL_VERSIONS[-1], "0" * 32, 2, "host")
            feed(link, b"".join(node.send_welcome(welcome)))
            assert link.is_open
            message = ("forward", bytes(1 << 20))
            for _ in range(2):
                link.send([message] * 40)
                assert WRITE_MAX_BYTES <= len(transport.written) < WRITE_MAX_BYTES + (2 << 20)
            node.receive_data(bytes(transport.written))
            assert len(list(node.events())) == WRITE_MAX_BYTES >> 20

    asyncio.run(test())
