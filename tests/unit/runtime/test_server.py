"""What the server does with connections around its own end, with real sockets and TLS."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import time
from pathlib import Path

import pytest

from pydi_node.config import Address
from pydi_node.runtime.server import (
    FAILURES_BURST,
    FAILURES_PER_S,
    STRANGERS_MAX,
    STRANGERS_PER_ADDRESS_MAX,
    PeerIdentity,
    Server,
)
from pydi_node.runtime.service import Session
from pydi_node.wire import session as wire
from pydi_node.wire import tls
from pydi_node.wire.events import Hello, Refusal
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import SEED_BYTES, Leaf, NodeToken, credentials_of, make_leaf
from tests.unit.runtime.inner import Inner

DEADLINE_S = 30.0


class _Nobody:
    """Admits nobody, and knows whether it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session | tuple[Refusal, str]:
        self.asked += 1
        return Refusal.OTHER, "not here"


@pytest.mark.expects_log("refused 127.0.0.1:\\d+: not here")
@pytest.mark.parametrize("closed", [False, True])
def test_a_handshake_that_ends_after_the_node_does_reaches_nothing(
    tmp_path: Path, closed: bool
) -> None:
    """A peer's TLS handshake is under way when the server is closed, and what admission would look
    at is closed with it. It is hung up on, without a look at its hello."""

    async def scenario() -> None:
        credentials = credentials_of(NodeToken.new(secrets.token_bytes(48)))

        def leaf(number: int) -> Leaf:
            return make_leaf(credentials, number, int(time.time()), os.urandom(SEED_BYTES))

        async with Inner(tmp_path) as inner:
            admission = _Nobody()
            server = Server(inner.service, admission, lambda session, message: None, inner.streams)
            address = await server.listen_tcp(Address("127.0.0.1", 0), tls.server_context(leaf(1)))
            reader, writer = await asyncio.open_connection(address.host, address.port)
            # Accepted for certain: the server has answered the first bytes of a handshake.
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = tls.client_context(leaf(0))
            client = context.wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()
            writer.write(outgoing.read())
            incoming.write(await reader.read(1 << 16))
            if closed:
                server.close()
            client.do_handshake()
            session = wire.Session.connecting(
                Hello(wire.PROTOCOL_VERSIONS, Role.CLIENT, "", 0, "test", {"driver": "test"})
            )
            client.write(b"".join(session.send_hello()))
            writer.write(outgoing.read())
            try:
                said = await reader.read(1 << 16)
            except ConnectionResetError:
                said = b""
            assert admission.asked == (0 if closed else 1)
            assert bool(said) is not closed
            writer.close()
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


@pytest.mark.expects_log(
    "too many connections: one more was refused", "refused 127.0.0.2:.*not here"
)
def test_strangers_of_one_address_keep_nobody_else_out(tmp_path: Path) -> None:
    """One address opens connections and says nothing: some are kept, the others closed at once, and
    a peer from another address is heard. When they hang up there is room again."""

    async def scenario() -> None:
        credentials = credentials_of(NodeToken.new(secrets.token_bytes(48)))
        leaf = make_leaf(credentials, 1, int(time.time()), os.urandom(SEED_BYTES))
        async with Inner(tmp_path) as inner:
            admission = _Nobody()
            server = Server(inner.service, admission, lambda session, message: None, inner.streams)
            address = await server.listen_tcp(Address("127.0.0.1", 0), tls.server_context(leaf))
            silent = [
                await asyncio.open_connection(address.host, address.port)
                for _ in range(STRANGERS_PER_ADDRESS_MAX + 8)
            ]
            endings = [asyncio.ensure_future(reader.read(1)) for reader, _ in silent]
            while sum(ending.done() for ending in endings) < 8:
                await asyncio.wait(
                    [ending for ending in endings if not ending.done()],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            assert len(server._strangers) == STRANGERS_PER_ADDRESS_MAX
            other = make_leaf(credentials, 0, int(time.time()), os.urandom(SEED_BYTES))
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=tls.client_context(other), server_hostname="",
                local_addr=("127.0.0.2", 0),
            )  # fmt: skip
            session = wire.Session.connecting(
                Hello(wire.PROTOCOL_VERSIONS, Role.CLIENT, "", 0, "test", {"driver": "test"})
            )
            writer.writelines(session.send_hello())
            assert await reader.read(1 << 16)
            assert admission.asked == 1
            for ending in endings:
                ending.cancel()
            await asyncio.gather(*endings, return_exceptions=True)
            for _, one in (*silent, (reader, writer)):
                one.close()
            await asyncio.gather(
                *[one.wait_closed() for _, one in (*silent, (reader, writer))],
                return_exceptions=True,
            )
            while server._strangers:  # noqa: ASYNC110  (the loop hears of each end by itself)
                await asyncio.sleep(0)
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


@pytest.mark.expects_log("too many connections: one more was refused")
def test_strangers_of_the_network_keep_no_mount_of_this_machine_out(tmp_path: Path) -> None:
    """They have all the places that they can get; the unix socket has its own, and as many."""

    async def scenario() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, _Nobody(), lambda session, message: None, inner.streams)
            for place in range(STRANGERS_MAX):
                assert server.let_in(place, f"10.0.0.{place % 8}")
            assert not server.let_in("one more", "10.0.0.9")
            for place in range(STRANGERS_MAX):
                assert server.let_in(("local", place), None)
            assert not server.let_in("one more", None)
            server.forget_stranger(0)
            assert server.let_in("one more", "10.0.0.9")
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_strangers_that_fail_are_let_in_at_a_pace(tmp_path: Path) -> None:
    """A burst at once, then so many a second; the others wait in the kernel. Who comes over the
    unix socket, or was let in before, waits for nothing: only accepting does."""

    async def scenario() -> None:
        credentials = credentials_of(NodeToken.new(secrets.token_bytes(48)))
        leaf = make_leaf(credentials, 1, int(time.time()), os.urandom(SEED_BYTES))
        more = 20
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, _Nobody(), lambda session, message: None, inner.streams)
            address = await server.listen_tcp(Address("127.0.0.1", 0), tls.server_context(leaf))
            assert server._pause_s() == 0.0
            began_s = time.monotonic()
            for _ in range(int(FAILURES_BURST) + more):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(b"noise, and no TLS record")
                await reader.read()
                writer.close()
            took_s = time.monotonic() - began_s
            assert took_s > 0.9 * (more - 1) / FAILURES_PER_S
            assert server.let_in("local", None)
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
