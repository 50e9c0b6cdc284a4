"""A connection of the server, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from pydi_node.ids import BlobId, ClientId, Ino, LogIndex, Serial
from pydi_node.records import EVERY_NAME, Touched
from pydi_node.runtime.bounds import Bounds
from pydi_node.runtime.server import (
    FRAME_TIMEOUT_S,
    SESSIONS_PER_TOKEN_MAX,
    Connection,
    PeerIdentity,
    Server,
)
from pydi_node.runtime.service import Session
from pydi_node.tree.machine import Tree
from pydi_node.wire import session as wire
from pydi_node.wire.events import Hello, WelcomeReceived
from pydi_node.wire.messages import BlobWrite, Nodes, Role, Subscribe
from pydi_node.wire.trust import MountLimits
from tests.harness.feeding import feed
from tests.unit.runtime.inner import Inner


class Admission:
    """Takes everybody."""

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session:
        return Session(7, hello.role, hello.host, hello.about)


class Transport:
    """Keeps what is written, and takes its time to close, as a real one does."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.aborted = False

    def writelines(self, buffers: list[bytes]) -> None:
        self.written += b"".join(buffers)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Peer:
    """A mount that has subscribed and holds a lease, as the server sees it."""

    def __init__(self, server: Server, host: str | None = None) -> None:
        self.connection = Connection(server, object())
        self.transport = Transport()
        self.connection._transport = cast(asyncio.Transport, self.transport)
        self.connection._identity = PeerIdentity("a mount", host, None, None)
        assert server.add(self.connection)
        self.wire = wire.Session.connecting(
            Hello(wire.PROTOCOL_VERSIONS, Role.MOUNT, "", 0, "host", {})
        )

    async def subscribe(self) -> None:
        (welcomed,) = await self.exchange(self.wire.send_hello())
        assert isinstance(welcomed, WelcomeReceived)
        await self.exchange(self.wire.send_request(Subscribe(), b"", deadline_ms=1000)[1])
        assert self.connection.subscribed
        self.connection._server.coherence.renew(self.connection, 60.0)

    async def exchange(self, buffers: Any) -> list[Any]:
        feed(self.connection, b"".join(buffers))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.wire.receive_data(bytes(self.transport.written))
        self.transport.written.clear()
        return list(self.wire.events())


@pytest.mark.expects_log("a mount broke the protocol")
@pytest.mark.parametrize("how", ["hung up", "broke the protocol"])
def test_a_change_after_the_end_of_a_session_harms_nobody(tmp_path: Path, how: str) -> None:
    """Between the end of a subscriber's session and the loss of its connection a command is
    applied: nothing is pushed there, and the node goes on."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peer = Peer(server)
            await peer.subscribe()
            connection = peer.connection
            touched = Touched((Ino(3),))
            server.push([(LogIndex(7), ClientId(5), Serial(1), touched)])
            assert server.coherence.dropped(LogIndex(7)) == 6
            if how == "hung up":
                connection.eof_received()
            else:
                feed(connection, b"\xff" * 64)
            later = [(LogIndex(8), ClientId(5), Serial(2), touched)]
            server.push(later)
            server.push_drop_all()
            connection.connection_lost(None)
            server.push(later)
            # Who was cut off may not know, and goes on to the end of its lease.
            dropped = server.coherence.dropped(LogIndex(9))
            assert dropped == (9 if how == "hung up" else 6)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_after_a_snapshot_nothing_is_dropped_until_the_mount_says_so(tmp_path: Path) -> None:
    """The tree goes from 100 to 5000. A mount that has not acknowledged may still show 100."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peer = Peer(server)
            await peer.subscribe()
            assert server.coherence.dropped(LogIndex(100)) == 100
            server.push_drop_all()
            assert server.coherence.dropped(LogIndex(5000)) == 100
            server.on_acknowledged(peer.connection, 1)
            assert server.coherence.dropped(LogIndex(5000)) == 5000

    asyncio.run(asyncio.wait_for(main(), 60))


class _End(NamedTuple):
    how: Callable[[Connection], None]
    is_unix: bool
    knows: bool  # the mount does, and relies on nothing any more


def _hangs_up(connection: Connection) -> None:
    connection.eof_received()
    connection.connection_lost(ConnectionResetError())  # an answer met a closed socket


def _is_closed_by_the_node(connection: Connection) -> None:
    connection.close()
    connection.connection_lost(None)


ENDS = {
    "hung up": _End(_hangs_up, False, True),
    "end without a word in TLS": _End(lambda c: c.connection_lost(None), False, True),
    "reset on this machine": _End(lambda c: c.connection_lost(ConnectionResetError()), True, True),
    "reset on the way": _End(lambda c: c.connection_lost(ConnectionResetError()), False, False),
    "time-out": _End(lambda c: c.connection_lost(TimeoutError()), False, False),
    "closed by the node": _End(_is_closed_by_the_node, True, False),
}


@pytest.mark.parametrize("end", ENDS)
def test_who_did_not_end_its_connection_is_waited_for(tmp_path: Path, end: str) -> None:
    """A reset may reach the node only, and a node that stops closes the connection of a mount that
    is stopped as well: both go on with their caches to the end of their lease."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peer = Peer(server)
            peer.connection._is_unix = ENDS[end].is_unix
            await peer.subscribe()
            assert server.coherence.dropped(LogIndex(7)) == 7
            ENDS[end].how(peer.connection)
            assert server.coherence.dropped(LogIndex(8)) == (8 if ENDS[end].knows else 7)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.expects_log("internal error with a mount: disconnected")
@pytest.mark.parametrize("when", ["at once", "at its end", "when there is room again"])
def test_a_mistake_of_ours_ends_the_connection(tmp_path: Path, when: str) -> None:
    """Whenever it is met: a connection that goes on without what it was told would be half dead."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peer = Peer(server)
            await peer.subscribe()

            def mistake(_: object) -> None:
                raise ValueError("a bug")

            peer.connection._on_event = mistake  # type: ignore[method-assign]
            ping = b"".join(peer.wire.send_ping(1))
            match when:
                case "at its end":
                    peer.connection.eof_received()
                case "at once":
                    feed(peer.connection, ping)
                case _:
                    peer.connection.pause_writing()
                    feed(peer.connection, ping)
                    assert not peer.transport.aborted
                    peer.connection.resume_writing()
            assert peer.transport.aborted

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_acknowledgement_is_read_whatever_waits(tmp_path: Path) -> None:
    """A mount has as many commands under way as it may, and all wait for other mounts and for it
    to drop what somebody changed: that it did is heard."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peer = Peer(server)
            await peer.subscribe()
            peer.connection._on_request = lambda *_: None  # type: ignore[method-assign]
            server.push([(LogIndex(7), ClientId(5), Serial(1), Touched((Ino(3),)))])
            for _ in range(wire.REQUESTS_MAX):
                await peer.exchange(peer.wire.send_request(Nodes(), b"", deadline_ms=1000)[1])
            assert server.coherence.dropped(LogIndex(7)) == 6
            await peer.exchange(peer.wire.send_acknowledge(1))
            assert server.coherence.dropped(LogIndex(7)) == 7

    asyncio.run(asyncio.wait_for(main(), 60))


class AdmissionByToken(Admission):
    """Takes everybody as a holder of one mount token."""

    limits = MountLimits(token_id=b"12345678")

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session:
        session = super().admit(hello, peer)
        session.limits = self.limits
        return session


class AdmissionToDirectory(Admission):
    """Takes everybody as a mount of a directory with nothing in it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session:
        session = super().admit(hello, peer)
        session.client = ClientId(9)
        session.bounds = Bounds(lambda: self.tree, Ino(77), lambda ino: False)
        return session


def test_a_mount_hears_that_others_want_locks_of_a_file_that_left_its_directory(
    tmp_path: Path,
) -> None:
    """It may have the file open, and gives its locks out by itself until it hears of that."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            admission = AdmissionToDirectory(inner.tree_files.tree)
            server = Server(inner.service, admission, lambda *_: None, inner.streams)
            peer = Peer(server)
            await peer.subscribe()
            server.tell(peer.connection.holder, Ino(5))
            (pushed,) = await peer.exchange([])
            assert pushed.push.touched == Touched((), ((Ino(5), EVERY_NAME),))

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.expects_log("refused a mount: there are .* sessions under this mount token")
def test_one_machine_has_so_many_sessions_under_one_token(tmp_path: Path) -> None:
    """Another machine, and another token, are welcome meanwhile; when one ends, there is room."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            admission = AdmissionByToken()
            server = Server(inner.service, admission, lambda *_: None, inner.streams)

            async def welcome(host: str) -> tuple[Peer, bool]:
                peer = Peer(server, host)
                (event,) = await peer.exchange(peer.wire.send_hello())
                return peer, isinstance(event, WelcomeReceived)

            peers = [await welcome("10.0.0.1") for _ in range(SESSIONS_PER_TOKEN_MAX)]
            assert all(welcomed for _, welcomed in peers)
            assert not (await welcome("10.0.0.1"))[1]
            assert (await welcome("10.0.0.2"))[1]
            admission.limits = MountLimits(token_id=b"another ")
            assert (await welcome("10.0.0.1"))[1]
            admission.limits = AdmissionByToken.limits
            peers[0][0].connection.connection_lost(None)
            assert (await welcome("10.0.0.1"))[1]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_all_clients_together_hold_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When their unanswered requests fill what there is, each client of the network is read again
    after its own answer, and one that holds nothing is read as ever."""
    monkeypatch.setattr("pydi_node.runtime.server.HELD_MAX_BYTES", 1000)

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            peers = [Peer(server, "10.0.0.1") for _ in range(3)]
            for peer in peers:
                await peer.subscribe()
                peer.connection._on_request = lambda *_: None  # type: ignore[method-assign]

            async def write(peer: Peer, size: int) -> int:
                request_id, buffers = peer.wire.send_request(
                    BlobWrite(BlobId(1 << 48 | 1), 0), bytes(size), deadline_ms=1000
                )
                await peer.exchange(buffers)
                return request_id

            first = await write(peers[0], 600)
            assert not any(peer.connection._read_paused for peer in peers)
            await write(peers[1], 600)
            assert server.held_bytes == 1200
            assert [peer.connection._read_paused for peer in peers] == [False, True, False]
            await write(peers[0], 1)
            assert peers[0].connection._read_paused
            await write(peers[2], 0)
            assert not peers[2].connection._read_paused
            peers[0].connection._answer(first, None)
            await asyncio.sleep(0)
            assert not peers[0].connection._read_paused
            peers[1].connection.connection_lost(None)
            assert server.held_bytes == 1

    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_never_ends_a_frame_is_hung_up_on(tmp_path: Path) -> None:
    """However slowly the bytes come; who ends each frame stays, however long he is silent."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            slow, silent = Peer(server), Peer(server)
            for peer in (slow, silent):
                await peer.subscribe()
            _, buffers = slow.wire.send_request(Nodes(), b"", deadline_ms=1000)
            data = b"".join(buffers)
            began_s = server.loop.time()
            for byte in data[:-1]:
                await slow.exchange([bytes([byte])])
            for peer in (slow, silent):
                peer.connection.end_stalled(began_s + FRAME_TIMEOUT_S - 1)
                assert not peer.transport.aborted
                peer.connection.end_stalled(began_s + FRAME_TIMEOUT_S + 60)
            assert slow.transport.aborted
            assert not silent.transport.aborted

    asyncio.run(asyncio.wait_for(main(), 60))
