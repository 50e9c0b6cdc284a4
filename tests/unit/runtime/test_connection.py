"""A connection of the server, without sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from pydi_node.ids import ClientId, Ino, LogIndex, Serial
from pydi_node.records import Touched
from pydi_node.runtime.server import Connection, PeerIdentity, Server
from pydi_node.runtime.service import Session
from pydi_node.wire import session as wire
from pydi_node.wire.events import Hello, WelcomeReceived
from pydi_node.wire.messages import Role, Subscribe
from tests.unit.runtime.inner import Inner


class Admission:
    """Takes everybody."""

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session:
        return Session(7, hello.role, hello.host, hello.about)


class Transport:
    """Keeps what is written, and takes its time to close, as a real one does."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writelines(self, buffers: list[bytes]) -> None:
        self.written += b"".join(buffers)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.mark.expects_log("a mount broke the protocol")
@pytest.mark.parametrize("how", ["hung up", "broke the protocol"])
def test_a_change_after_the_end_of_a_session_harms_nobody(tmp_path: Path, how: str) -> None:
    """Between the end of a subscriber's session and the loss of its connection a command is
    applied: nothing is pushed there, and the node goes on."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None)
            connection = Connection(server, None)
            transport = Transport()
            connection._transport = cast(asyncio.Transport, transport)
            connection._identity = PeerIdentity("a mount", None, None, None)
            assert server.add(connection)
            peer = wire.Session.connecting(
                Hello(wire.PROTOCOL_VERSIONS, Role.MOUNT, "", 0, "host", {})
            )

            async def exchange(buffers: Any) -> list[Any]:
                connection.data_received(b"".join(buffers))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                peer.receive_data(bytes(transport.written))
                transport.written.clear()
                return list(peer.events())

            (welcomed,) = await exchange(peer.send_hello())
            assert isinstance(welcomed, WelcomeReceived)
            await exchange(peer.send_request(Subscribe(), b"", deadline_ms=1000)[1])
            assert connection.subscribed
            server.coherence.renew(connection, 60.0)
            touched = Touched((Ino(3),))
            server.push([(LogIndex(7), ClientId(5), Serial(1), touched)])
            assert server.coherence.dropped(LogIndex(7)) == 6
            if how == "hung up":
                connection.eof_received()
            else:
                connection.data_received(b"\xff" * 64)
            later = [(LogIndex(8), ClientId(5), Serial(2), touched)]
            server.push(later)
            server.push_drop_all(LogIndex(9))
            connection.connection_lost(None)
            server.push(later)
            # Who was cut off may not know, and goes on to the end of its lease.
            dropped = server.coherence.dropped(LogIndex(9))
            assert dropped == (9 if how == "hung up" else 6)

    asyncio.run(asyncio.wait_for(main(), 60))
