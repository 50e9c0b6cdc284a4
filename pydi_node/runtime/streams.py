"""Large blobs from node to node: a TLS connection for each, in threads, past the loop.

Made by node.py; transfers.py pulls through it, server.py hands it the connections that come in. A
session moves small content well, but its loop would spend 4 ms on each MiB: threads that do nothing
but read, encrypt and write need half of that, use a second processor, and delay no heartbeat.

    target                                      source
    BlobStream(blob, offset)  ───session────►   a ticket, good once and for that node
    PREAMBLE, ticket, then TLS  ──same port──►  whoever brings no known ticket is disconnected
                              ◄──────────────   the content from the offset to the end, nothing else

A TLS connection begins with a byte (22, RFC 8446 section 5.1) that PREAMBLE does not begin with.
The ticket goes out in the clear and is no secret: it only says what the connection is for; both
sides still prove by their certificates that they are the nodes which the ticket is about. Content
is checked by whoever receives it: it knows size and checksum of the whole blob.

Nothing waits without an end: a target that gets no byte for STALL_S gives up, a source whose bytes
nobody takes after TAKE_S.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from pydi_node.blobs.store import BlobStore, Writer
from pydi_node.config import Address
from pydi_node.errors import BusyError, DeadlineError, DisconnectedError, PydiError
from pydi_node.ids import BlobId, NodeNumber, blob_name
from pydi_node.wire import tls
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import TICKET_BYTES, Role
from pydi_node.wire.trust import Credentials, Leaf, PeerIdentity, TrustError

_log = logging.getLogger(__name__)

PREAMBLE = b"PyDi\x00\x01\r\n"
assert PREAMBLE[0] != 22

# Fits into a processor's cache: what was received is hashed and written while it is still there.
CHUNK_BYTES = 256 << 10
SENDS_MAX = 32  # at once, offered ones too; a thread and a chunk each
PULLS_MAX = 8
TICKET_LIFE_S = 10.0
HANDSHAKE_S = 10.0
STALL_S = 2.0
# A target that keeps to the rate of repair takes a chunk, and then nothing for a while: eight of
# them share at least 1 MiB/s.
TAKE_S = 60.0


class Throttle:
    """Gives out bytes at a rate, to whoever asks, in any thread."""

    def __init__(self) -> None:
        self.bytes_per_s = 1 << 40  # may be set at any time
        self._lock = threading.Lock()
        self._free_s = 0.0  # when the next byte may come

    def take(self, length: int) -> float:
        """Seconds to wait before so many bytes may come."""
        now_s = time.monotonic()
        with self._lock:
            start_s = max(self._free_s, now_s)
            self._free_s = start_s + length / self.bytes_per_s
        return start_s - now_s


class Way(NamedTuple):
    """How to connect to a node."""

    address: Address
    credentials: Credentials  # under a secret that the node has, too
    leaf: Leaf  # of this node, under the same


class Pull(NamedTuple):
    """A blob to fetch from a node, and how."""

    way: Way
    source: NodeNumber
    ticket: bytes
    writer: Writer  # the caller's again when the pull has ended
    size: int  # bytes of the whole blob
    throttle: Throttle


class _Offer(NamedTuple):
    """What a ticket is for."""

    node: NodeNumber  # that may come with it
    blob: BlobId
    offset: int
    expires_s: float  # of the loop's clock


class _Stream:
    """One that is under way; its thread's, but for ``stop``."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.sock = sock  # that can be shut down now
        self.stopped = threading.Event()

    def secure(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """The socket, as a server's, after its handshake. OSError."""
        assert self.sock is not None
        secured = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock = secured
        if self.stopped.is_set():
            # Maybe too early for this socket, and too late for the other one.
            raise ConnectionAbortedError("this node is about to stop")
        secured.do_handshake()
        return secured

    def stop(self) -> None:
        """From the loop: whoever waits for it wakes up."""
        self.stopped.set()
        try:
            if self.sock is not None:
                # Not SSLSocket's own, after which a thread that is about to send would do it in
                # the clear.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass  # it ended by itself

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


class _Receiver:
    """TLS on a blocking socket from which much is read.

    From the socket of an ssl.SSLSocket OpenSSL reads each record of 16 KiB with two calls. Here one
    brings what has come: to receive, hash and write a MiB takes 1.40 instead of 1.56 ms.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        """OSError: the handshake failed."""
        self.sock = sock
        self._raw = memoryview(bytearray(CHUNK_BYTES))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                break
        self._flush()

    def fill(self, chunk: memoryview) -> None:
        """All of ``chunk``, with what comes next. OSError, TimeoutError."""
        done = 0
        while done < len(chunk):
            try:
                count = self.tls.read(len(chunk) - done, chunk[done:])
            except ssl.SSLWantReadError:
                self._exchange()
                continue
            assert isinstance(count, int), "read into a buffer"
            if count == 0:
                raise ConnectionResetError("closed by the node")
            done += count

    def _exchange(self) -> None:
        """What TLS has to say goes out, and something comes in."""
        self._flush()
        count = self.sock.recv_into(self._raw)
        if count == 0:
            raise ConnectionResetError("closed by the node")
        self._incoming.write(self._raw[:count])

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.sock.sendall(self._outgoing.read())


class Streams:
    """See the module's text. Its methods belong to the loop; what runs in threads says so."""

    def __init__(
        self,
        store: BlobStore,
        keyring: Keyring,
        server_context: Callable[[], ssl.SSLContext],
    ) -> None:
        """server_context: asked for in threads, for each connection: certificates change."""
        self._store = store
        self._keyring = keyring
        self._server_context = server_context
        self._loop = asyncio.get_running_loop()
        self._offers: dict[bytes, _Offer] = {}  # oldest first
        self._sending: set[_Stream] = set()
        self._pulling: set[_Stream] = set()
        self._stopped = False
        # Apart from each other: two nodes that pull from each other must not wait for each other.
        self._senders = ThreadPoolExecutor(SENDS_MAX, "send")
        self._pullers = ThreadPoolExecutor(PULLS_MAX, "pull")

    # --- source -----------------------------------------------------------------------------------

    def offer(self, node: NodeNumber, blob: BlobId, offset: int) -> bytes:
        """A ticket for that node, good once. BusyError: too many streams, ask again."""
        now_s = self._loop.time()
        while self._offers and next(iter(self._offers.values())).expires_s <= now_s:
            del self._offers[next(iter(self._offers))]
        if len(self._offers) + len(self._sending) >= SENDS_MAX:
            raise BusyError("this node sends as many blobs as it can already")
        ticket = os.urandom(TICKET_BYTES)
        self._offers[ticket] = _Offer(node, blob, offset, now_s + TICKET_LIFE_S)
        return ticket

    async def ticket_on(self, sock: socket.socket) -> bytes | None:
        """What a new connection begins with: a ticket, taken off it; None when it begins like TLS,
        of which nothing is taken. OSError: it ended, or is neither."""
        await self._readable(sock)
        first = sock.recv(1, socket.MSG_PEEK)
        if first and first != PREAMBLE[:1]:
            return None
        start = b""
        while len(start) < len(PREAMBLE) + TICKET_BYTES:
            data = await self._loop.sock_recv(sock, len(PREAMBLE) + TICKET_BYTES - len(start))
            if not data:
                raise ConnectionResetError("it ended before it began")
            start += data
        if not start.startswith(PREAMBLE):
            raise ConnectionAbortedError("neither TLS nor a stream")
        return start[len(PREAMBLE) :]

    def serve(self, sock: socket.socket, ticket: bytes) -> bool:
        """Sends what the ticket is for; closes ``sock``, at once when it is for nothing: False."""
        offer = self._offers.pop(ticket, None)
        if offer is None or offer.expires_s <= self._loop.time() or self._stopped:
            _log.debug("a stream with a ticket that is not good, or not any more")
            sock.close()
            return False
        stream = _Stream(sock)
        self._sending.add(stream)
        sending = self._loop.run_in_executor(self._senders, self._send, stream, offer)

        def ended(_: asyncio.Future[None]) -> None:
            self._sending.discard(stream)
            stream.close()  # where it never began

        sending.add_done_callback(ended)
        return True

    def _send(self, stream: _Stream, offer: _Offer) -> None:
        """In a thread."""
        try:
            assert stream.sock is not None
            stream.sock.settimeout(HANDSHAKE_S)
            secured = stream.secure(self._server_context())
            certificate = tls.certificate_of(secured)
            _require_node(self._keyring.identify(certificate, int(time.time())), offer.node)
            secured.settimeout(TAKE_S)
            for data in self._store.chunks(offer.blob, offer.offset, CHUNK_BYTES):
                secured.sendall(data)
            # The other side closes when it has everything; closing first could cut off what is
            # still on its way.
            secured.recv(1)
        except (OSError, PydiError) as exc:
            # The target sees the end of the connection, and asks for the rest again.
            _log.debug("blob %s to node %d: %s", blob_name(offer.blob), offer.node, exc)
        finally:
            stream.close()

    # --- target -----------------------------------------------------------------------------------

    async def pull(self, wanted: Pull) -> None:
        """The blob from ``writer.size`` on is in ``writer``, and the blob durable.

        DisconnectedError, DeadlineError  the source ended it, or stalled: ``writer`` has what came
                                          and can go on with another source.
        BlobCorruptError, NoSpaceError, OSError  as of Writer, which is aborted.
        """
        if self._stopped:
            raise DisconnectedError("this node is about to stop")
        stream = _Stream()
        self._pulling.add(stream)
        pulling = self._loop.run_in_executor(self._pullers, self._pull, stream, wanted)
        try:
            await asyncio.shield(pulling)
        except asyncio.CancelledError:
            stream.stop()
            await asyncio.wait([pulling])  # the writer is its thread's for so long
            if not pulling.cancelled():
                pulling.exception()  # nobody asks for it any more
            raise
        finally:
            self._pulling.discard(stream)

    def _pull(self, stream: _Stream, wanted: Pull) -> None:
        """In a thread."""
        writer = wanted.writer
        buffer = memoryview(bytearray(CHUNK_BYTES))
        try:
            with _trouble_of(wanted.source):
                receiver = _connect(stream, wanted)
            while writer.size < wanted.size:
                chunk = buffer[: min(CHUNK_BYTES, wanted.size - writer.size)]
                if stream.stopped.wait(wanted.throttle.take(len(chunk))):
                    # What the kernel has of it already could still be read.
                    raise DisconnectedError("this node wants no more of it")
                with _trouble_of(wanted.source):
                    receiver.fill(chunk)
                writer.write(writer.size, chunk)
        finally:
            stream.close()
        writer.seal()

    # --- both -------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Streams under way."""
        return {"sending": len(self._sending), "receiving": len(self._pulling)}

    def stop(self) -> None:
        """Ends all streams; their threads end in a moment."""
        self._stopped = True
        for stream in (*self._sending, *self._pulling):
            stream.stop()
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._pullers.shutdown(wait=False, cancel_futures=True)

    async def _readable(self, sock: socket.socket) -> None:
        readable: asyncio.Future[None] = self._loop.create_future()

        def on_readable() -> None:
            if not readable.done():
                readable.set_result(None)

        self._loop.add_reader(sock, on_readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(sock)


def _connect(stream: _Stream, wanted: Pull) -> _Receiver:
    """In a thread. OSError, TrustError."""
    way = wanted.way
    stream.sock = socket.create_connection((way.address.host, way.address.port), HANDSHAKE_S)
    if stream.stopped.is_set():
        raise ConnectionAbortedError("this node is about to stop")
    stream.sock.sendall(PREAMBLE + wanted.ticket)
    context = tls.client_context(way.leaf)
    receiver = _Receiver(stream.sock, context, way.credentials.server_name)
    _require_node(tls.identity_of(receiver.tls, way.credentials, int(time.time())), wanted.source)
    stream.sock.settimeout(STALL_S)
    return receiver


def _require_node(identity: PeerIdentity, node: NodeNumber) -> None:
    if not identity.may_be(Role.NODE, node):
        raise TrustError(f"its certificate is not that of node {node}")


@contextmanager
def _trouble_of(source: NodeNumber) -> Iterator[None]:
    """What goes wrong with the connection inside is UnavailableError: another source may do."""
    try:
        yield
    except TimeoutError as exc:
        raise DeadlineError(f"node {source} made no progress for too long") from exc
    except (OSError, TrustError) as exc:
        raise DisconnectedError(f"the stream from node {source} ended: {exc}") from exc
