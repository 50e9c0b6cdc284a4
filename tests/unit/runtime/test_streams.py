"""Streams between two stores over loopback: real sockets, TLS and threads; no node around them."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pydi_node.blobs.store import BlobStore, Writer
from pydi_node.config import Address
from pydi_node.errors import BlobCorruptError, BusyError, DeadlineError, DisconnectedError
from pydi_node.ids import NodeNumber
from pydi_node.runtime import streams as streams_module
from pydi_node.runtime.streams import CHUNK_BYTES, PREAMBLE, SENDS_MAX, Pull, Streams, Throttle, Way
from pydi_node.wire import tls
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.trust import NodeToken, credentials_of, make_leaf

ONE, TWO, THREE = NodeNumber(1), NodeNumber(2), NodeNumber(3)
SIZE = 5 * CHUNK_BYTES + 17
DEADLINE_S = 20.0


class Place(NamedTuple):
    """A node, as far as streams know one."""

    store: BlobStore
    streams: Streams
    way: Way  # to itself
    sessions: list[socket.socket]  # connections that begin like TLS


@asynccontextmanager
async def place(path: Path, number: NodeNumber, token: NodeToken) -> AsyncIterator[Place]:
    store = BlobStore(path / f"blobs{number}", number)
    store.recover()
    keyring = Keyring(token)
    credentials = credentials_of(token)
    leaf = make_leaf(credentials, number, int(time.time()), secrets.token_bytes(32))
    streams = Streams(store, keyring, lambda: tls.server_context(leaf))
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    sessions: list[socket.socket] = []

    async def welcome(sock: socket.socket) -> None:
        try:
            ticket = await streams.ticket_on(sock)
        except OSError:
            sock.close()
            return
        except asyncio.CancelledError:
            sock.close()
            raise
        if ticket is None:
            sessions.append(sock)
        else:
            streams.serve(sock, ticket)

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await loop.sock_accept(listener)
                group.create_task(welcome(sock))

    accepting = loop.create_task(accept())
    try:
        way = Way(Address("127.0.0.1", listener.getsockname()[1]), credentials, leaf)
        yield Place(store, streams, way, sessions)
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        streams.stop()
        for sock in (listener, *sessions):
            sock.close()


@asynccontextmanager
async def cut_after(target: Address, count: int) -> AsyncIterator[Address]:
    """The way to ``target`` through a cable that breaks when so many bytes have come back."""

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(target.host, target.port)

        async def there() -> None:
            while data := await reader.read(1 << 16):
                far_writer.write(data)
            far_writer.write_eof()

        async def back() -> None:
            left = count
            while left and (data := await far_reader.read(min(left, 1 << 16))):
                writer.write(data)
                await writer.drain()
                left -= len(data)

        ways = [asyncio.ensure_future(there()), asyncio.ensure_future(back())]
        await ways[1]
        ways[0].cancel()
        for side in (writer, far_writer):
            side.close()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield Address(host, port)
        await ended.wait()


Scenario = Callable[[Place, Place, NodeToken], Coroutine[Any, Any, None]]


def run(path: Path, scenario: Scenario) -> None:
    async def main() -> None:
        token = NodeToken.new(secrets.token_bytes(48))
        async with place(path, ONE, token) as source, place(path, TWO, token) as target:
            await scenario(source, target, token)

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


async def pull(
    target: Place,
    source: Place,
    writer: Writer,
    ticket: bytes,
    address: Address | None = None,
    throttle: Throttle | None = None,
) -> None:
    way = target.way._replace(address=address or source.way.address)
    await target.streams.pull(Pull(way, ONE, ticket, writer, SIZE, throttle or Throttle()))


def test_a_blob_arrives_whole_and_its_ticket_is_good_once(tmp_path: Path) -> None:
    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        content = os.urandom(SIZE)
        blob, seal = source.store.put(content)
        ticket = source.streams.offer(TWO, blob, 0)
        await pull(target, source, target.store.receive(blob, *seal), ticket)
        assert target.store.read(blob, 0, SIZE + 1) == content
        with target.store.receive(blob, *seal) as again, pytest.raises(DisconnectedError):
            await pull(target, source, again, ticket)

    run(tmp_path, scenario)


def test_a_ticket_is_good_for_one_node_and_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node of the cluster, and one whose ticket is too old, get no byte; nor does the
    holder of a ticket believe whoever answers instead of the source."""

    async def scenario(source: Place, target: Place, token: NodeToken) -> None:
        blob, seal = source.store.put(os.urandom(SIZE))
        with target.store.receive(blob, *seal) as writer:
            for_another = source.streams.offer(THREE, blob, 0)
            with pytest.raises(DisconnectedError):
                await pull(target, source, writer, for_another)
            async with place(tmp_path, THREE, token) as impostor:
                ticket = impostor.streams.offer(TWO, blob, 0)
                with pytest.raises(DisconnectedError, match="not that of node 1"):
                    await pull(target, impostor, writer, ticket)
            monkeypatch.setattr(streams_module, "TICKET_LIFE_S", 0.0)
            old = source.streams.offer(TWO, blob, 0)
            with pytest.raises(DisconnectedError):
                await pull(target, source, writer, old)
            assert writer.size == 0

    run(tmp_path, scenario)


def test_another_cluster_gets_nothing(tmp_path: Path) -> None:
    async def scenario(source: Place, _: Place, __: NodeToken) -> None:
        blob, seal = source.store.put(os.urandom(SIZE))
        others = NodeToken.new(secrets.token_bytes(48))
        async with place(tmp_path / "other", TWO, others) as stranger:
            with stranger.store.receive(blob, *seal) as writer:
                with pytest.raises(DisconnectedError):
                    await pull(stranger, source, writer, source.streams.offer(TWO, blob, 0))
                assert writer.size == 0

    (tmp_path / "other").mkdir()
    run(tmp_path, scenario)


def test_what_a_broken_stream_brought_is_kept_for_the_next(tmp_path: Path) -> None:
    """The cable breaks after three chunks; from another source comes only what is missing."""

    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        content = os.urandom(SIZE)
        blob, seal = source.store.put(content)
        writer = target.store.receive(blob, *seal)
        async with cut_after(source.way.address, 4 * CHUNK_BYTES) as address:
            with pytest.raises(DisconnectedError):
                await pull(target, source, writer, source.streams.offer(TWO, blob, 0), address)
        assert writer.is_open
        assert writer.size == 3 * CHUNK_BYTES
        async with cut_after(source.way.address, SIZE - writer.size + CHUNK_BYTES) as address:
            ticket = source.streams.offer(TWO, blob, writer.size)
            await pull(target, source, writer, ticket, address)
        assert target.store.read(blob, 0, SIZE + 1) == content

    run(tmp_path, scenario)


def test_wrong_content_is_never_stored(tmp_path: Path) -> None:
    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        blob, seal = source.store.put(os.urandom(SIZE))
        wrong = bytes(32)
        writer = target.store.receive(blob, seal.size, wrong)
        with pytest.raises(BlobCorruptError):
            await pull(target, source, writer, source.streams.offer(TWO, blob, 0))
        assert not writer.is_open
        assert not target.store.has(blob)

    run(tmp_path, scenario)


def test_a_silent_source_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, proves who it is, and sends nothing: its disk hangs."""

    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        monkeypatch.setattr(streams_module, "STALL_S", 0.2)
        blob, seal = source.store.put(os.urandom(SIZE))
        hung = threading.Event()
        monkeypatch.setattr(source.store, "chunks", lambda *_: iter(hung.wait, True))
        with target.store.receive(blob, *seal) as writer, pytest.raises(DeadlineError):
            await pull(target, source, writer, source.streams.offer(TWO, blob, 0))
        hung.set()

    run(tmp_path, scenario)


def test_a_cancelled_stream_leaves_its_writer_alone(tmp_path: Path) -> None:
    """When the cancellation comes back nothing writes any more, so that the file may be closed."""

    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        blob, seal = source.store.put(os.urandom(SIZE))
        slow = Throttle()
        slow.bytes_per_s = CHUNK_BYTES  # five seconds in all
        writer = target.store.receive(blob, *seal)
        ticket = source.streams.offer(TWO, blob, 0)
        pulling = asyncio.ensure_future(pull(target, source, writer, ticket, throttle=slow))
        while writer.size == 0:  # noqa: ASYNC110 - a thread writes: there is nothing to wait on
            await asyncio.sleep(0.001)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert target.streams.counts() == {"sending": 0, "receiving": 0}
        assert writer.size < SIZE
        writer.abort()

    run(tmp_path, scenario)


def test_stopping_ends_all_streams(tmp_path: Path) -> None:
    async def scenario(source: Place, target: Place, _: NodeToken) -> None:
        blob, seal = source.store.put(os.urandom(SIZE))
        slow = Throttle()
        slow.bytes_per_s = CHUNK_BYTES
        ticket = source.streams.offer(TWO, blob, 0)
        with target.store.receive(blob, *seal) as writer:
            pulling = asyncio.ensure_future(pull(target, source, writer, ticket, throttle=slow))
            while writer.size == 0:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            assert source.streams.counts() == {"sending": 1, "receiving": 0}
            target.streams.stop()
            with pytest.raises(DisconnectedError):
                await pulling
            with pytest.raises(DisconnectedError, match="about to stop"):
                await pull(target, source, writer, ticket)

    run(tmp_path, scenario)


def test_tickets_are_few(tmp_path: Path) -> None:
    """Each may become a thread."""

    async def scenario(source: Place, _: Place, __: NodeToken) -> None:
        blob, _seal = source.store.put(b"x")
        for _ in range(SENDS_MAX):
            source.streams.offer(TWO, blob, 0)
        with pytest.raises(BusyError):
            source.streams.offer(TWO, blob, 0)

    run(tmp_path, scenario)


def test_only_what_begins_like_a_stream_is_taken_for_one(tmp_path: Path) -> None:
    """And of everything else no byte is lost to TLS. What is neither is cut off."""
    begins = {
        b"\x16\x03\x01": True,
        b"GET / HTTP/1.1\r\n": True,  # TLS refuses it
        PREAMBLE[:3] + b"x" * 21: False,
        PREAMBLE + b"t" * 16: False,
        PREAMBLE + b"t" * 15: False,
        b"": False,
    }

    async def scenario(source: Place, _: Place, __: NodeToken) -> None:
        for start, is_session in begins.items():
            reader, writer = await asyncio.open_connection(*source.way.address)
            writer.write(start)
            if is_session:
                while not source.sessions:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.001)
                sock = source.sessions.pop()
                assert sock.recv(100) == start
                sock.close()
            else:
                writer.write_eof()
                assert await reader.read() == b""
                assert not source.sessions
            writer.close()

    run(tmp_path, scenario)


def test_a_stop_between_a_socket_and_its_tls_counts() -> None:
    """What is stopped in the moment in which TLS takes the socket over goes no further: a node that
    stops would wait for its threads else."""
    ours, theirs = socket.socketpair()
    stream = streams_module._Stream(ours)

    class Context(ssl.SSLContext):
        def wrap_socket(self, *arguments: Any, **more: Any) -> ssl.SSLSocket:
            secured = super().wrap_socket(*arguments, **more)
            stream.stop()  # as the loop may
            return secured

    context = Context(ssl.PROTOCOL_TLS_SERVER)
    ours.settimeout(0.2)
    with theirs:
        with pytest.raises(ConnectionAbortedError):
            stream.secure(context)
        stream.close()
