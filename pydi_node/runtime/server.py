"""Listeners and connections: moves bytes between transports and sessions.

Made by node.py. A connection's life: transport, hello within HELLO_TIMEOUT_S, checks (admit),
welcome, requests to the service. It must never let one peer disturb another: every queue is
bounded, reading stops while a peer has too much outstanding, and whoever breaks the protocol is
disconnected and logged, once.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from pydi_node.config import Address
from pydi_node.errors import (
    BlobError,
    DeadlineError,
    FileError,
    LocalProtocolError,
    PydiError,
    RemoteProtocolError,
    UserError,
)
from pydi_node.ids import ClientId, Ino, LogIndex, NodeNumber, Serial
from pydi_node.records import EVERY_NAME, Touched
from pydi_node.runtime.coherence import Coherence
from pydi_node.runtime.service import Content, Request, Service, Session
from pydi_node.runtime.sockets import BACKLOG, bind_tcp, bind_unix, has_ipv6, watch_for_vanishing
from pydi_node.runtime.streams import Streams
from pydi_node.wire import messages
from pydi_node.wire import session as wire
from pydi_node.wire.events import (
    AcknowledgeReceived,
    CancelReceived,
    ConnectionEnded,
    Event,
    GoodbyeReceived,
    Hello,
    HelloReceived,
    PeerReceived,
    PingReceived,
    PongReceived,
    Refusal,
    RequestNotUnderstood,
    RequestReceived,
    Welcome,
)
from pydi_node.wire.messages import DropAll, Invalidate, Role
from pydi_node.wire.trust import MountLimits

_log = logging.getLogger(__name__)

Key = tuple[ClientId, Serial]

# A cancelled request's answer, unless the real one was faster.
CANCELLED = FileError(errno.EINTR, "cancelled")

HELLO_TIMEOUT_S = 10.0  # TLS handshake and hello; a slow link needs a few round trips
CONNECTIONS_MAX = 1024
# Connections, from the first packet to the welcome: all that strangers can hold. One address holds
# a quarter, so that nobody keeps all others out; a machine with more mounts than that which start
# at once is served a moment later. Over the unix socket, where only this node's user gets through,
# there is as much room again, which nobody from elsewhere can take.
STRANGERS_MAX = 128
STRANGERS_PER_ADDRESS_MAX = 32
# Strangers that end without a welcome: so many a second, after a burst. What comes faster waits in
# the kernel's queue, unread. 2,000 a second of them, which one machine can send, made a create of
# those who have a token take four times as long; a handshake that fails costs 0.3 to 1 ms.
FAILURES_PER_S = 100.0
FAILURES_BURST = 64.0
# Sessions under one mount token from one address: a machine has a few mounts, and each session may
# hold PAYLOAD_OUTSTANDING_MAX_BYTES and one frame.
SESSIONS_PER_TOKEN_MAX = 32
# Content in all unanswered requests of the network's clients. Above it each of them has one request
# answered before its next is read, whoever filled it; those of this machine go on as ever.
HELD_MAX_BYTES = 256 << 20
# From a frame's first byte to its last: 1 MiB takes as long at 9 KiB/s. Who sends less holds memory
# with what never becomes a request.
FRAME_TIMEOUT_S = 120.0
# A refusal is logged once in this time: a mount whose token was revoked asks every second, and who
# floods us must not fill the disk with it.
TOLD_PERIOD_S = 60.0
TOLD_MAX = 256
WRITE_HIGH_BYTES = 8 << 20  # answers a slow peer hasn't taken: no more of its requests meanwhile
# Pushes that a peer doesn't take would grow without end; past this it is disconnected, and when it
# comes back it drops its caches.
WRITE_MAX_BYTES = 64 << 20
ACCEPT_RETRY_S = 0.1


class Admission(Protocol):
    """Decides who may open a session; made by node.py out of trust and the cluster's state."""

    def admit(self, hello: Hello, peer: PeerIdentity) -> Session | tuple[Refusal, str]: ...


class PeerIdentity:
    """What the transport proves of a peer, before it says anything."""

    def __init__(
        self,
        name: str,
        host: str | None,
        certificate: ssl.SSLObject | None,
        uid: int | None,
    ) -> None:
        self.name = name  # for people
        self.host = host  # its address; None on the unix socket
        self.certificate = certificate  # None on the unix socket
        self.uid = uid  # None on TCP


class Connection(asyncio.BufferedProtocol):
    """One accepted connection."""

    def __init__(self, server: Server, place: object | None) -> None:
        """place: that it has among the strangers since it was accepted over TCP; None: it came over
        the unix socket, and has none yet."""
        self._server = server
        self._place = self if place is None else place
        self._is_unix = place is None
        self._wire = wire.Session.accepting()
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._identity: PeerIdentity | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._out: list[bytes | bytearray | memoryview] = []
        self._flush_scheduled = False
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._write_paused = False
        self._read_paused = False
        self._closing = False
        self._hung_up = False  # the peer did
        self._held_bytes = 0  # of unanswered requests, as the server counts them
        self._partial_since_s: float | None = None  # the first bytes of an incomplete frame came
        self.subscribed = False
        # Commands that wait for their answer, and the request that asked for each.
        self._commands: dict[Key, int] = {}
        self._command_of: dict[int, Key] = {}

    # --- transport --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports only behave like one.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._identity = _identify(transport, self._is_unix)
        if self._is_unix and not self._server.let_in(self, None):
            self._abort()
            return
        if not self._server.add(self):
            self._abort()
            return
        if self._is_unix and self._identity.uid not in (0, os.geteuid()):
            # The socket's mode says the same; this holds where somebody widened it by mistake.
            _log.warning("refused user %s on the unix socket", self._identity.uid)
            self._abort()
            return
        self._hello_timer = self._server.loop.call_later(HELLO_TIMEOUT_S, self._on_hello_timeout)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wire.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._take(lambda: self._wire.receive(nbytes))

    def eof_received(self) -> bool | None:
        self._hung_up = True
        self._take(self._wire.receive_eof)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        # An error may be the network's, or a firewall's towards this node only: the peer may not
        # know. Its own end comes without one (and with uvloop's TLS without an eof_received), and
        # between two processes of a machine there is nothing else that ends a connection.
        knows = self._hung_up or exc is None or self._is_unix
        if self._session is not None and self._session.key:
            # Its kernel goes on while one process of the mount follows the other.
            self._session.said_goodbye = self._wire.goodbye_received
            knows = self._session.said_goodbye
        self._server.remove(self, knows=knows)
        if self._session is None and not self._is_unix:
            self._server.on_failure()
        self._server.forget_stranger(self._place)
        self._server.held_bytes -= self._held_bytes
        self._held_bytes = 0
        if self._session is not None:
            self._server.service.end(self._session)
            _log.debug("session %d of %s ended", self._session.number, self._session.host)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._adjust_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._adjust_reading()

    # --- events -----------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Handles what has arrived, until there is nothing more or too much is under way."""
        while not self._closing and not self._is_loaded():
            event = self._wire.next_event()
            if event is None:
                break
            self._partial_since_s = None
            self._on_event(event)
        if self._wire.buffered_bytes == 0 or self._read_paused:
            self._partial_since_s = None
        elif self._partial_since_s is None:
            self._partial_since_s = self._server.loop.time()
        self._adjust_reading()

    def _on_event(self, event: Event) -> None:
        match event:
            case RequestReceived(request_id, request, payload, deadline_ms):
                self._on_request(request_id, request, payload, deadline_ms)
            case RequestNotUnderstood(request_id, error):
                self._answer_error(request_id, error)
            case CancelReceived(request_id):
                task = self._tasks.get(request_id)
                if task is not None:
                    task.cancel()
            case PeerReceived(message, _):
                assert self._session is not None
                self._server.on_peer(self._session, message)
            case PingReceived(token):
                self._write(self._wire.send_pong(token))
            case HelloReceived(hello):
                self._on_hello(hello)
            case ConnectionEnded():
                self._close()
            case AcknowledgeReceived(sequence):
                self._server.on_acknowledged(self, sequence)
            case PongReceived() | GoodbyeReceived():
                pass
            case _:
                raise AssertionError(f"an accepting session gave {event}")

    def _on_hello(self, hello: Hello) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        server = self._server
        assert self._identity is not None
        version = wire.choose_version(hello)
        if version is None:
            self._refuse(
                Refusal.VERSION,
                f"no protocol version in common: this PyDi speaks {wire.PROTOCOL_VERSIONS[-1]}, the"
                f" other one {max(hello.versions, default=0)}: update the older one",
                is_told=True,
            )
            return
        if server.stopping and hello.role is not Role.NODE:
            self._refuse(Refusal.STOPPING, "this node is about to stop")
            return
        admitted = server.admission.admit(hello, self._identity)
        if not isinstance(admitted, Session):
            self._refuse(*admitted, is_told=True)
            return
        if admitted.limits is not None and not server.has_room(
            admitted.limits, self._identity.host
        ):
            self._refuse(
                Refusal.BUSY,
                f"there are {SESSIONS_PER_TOKEN_MAX} sessions under this mount token from one"
                " machine already",
                is_told=True,
            )
            return
        self._session = admitted
        server.forget_stranger(self._place)
        service = server.service
        service.begin(admitted)
        self._write(
            self._wire.send_welcome(
                Welcome(version, service.cluster, service.node, socket.gethostname())
            )
        )

    def _on_request(
        self, request_id: int, message: messages.Request, payload: bytes, deadline_ms: int
    ) -> None:
        assert self._session is not None
        deadline_s = self._server.loop.time() + deadline_ms / 1000
        bounds = self._session.bounds
        if bounds is not None:
            try:
                message = bounds.inward(message)
            except (FileError, BlobError) as exc:
                self._answer_error(request_id, exc)
                return
        request = Request(self._session, message, payload, deadline_s)
        if isinstance(message, (messages.Execute, messages.ExecutePut)):
            key = (message.client, message.serial)
            self._commands[key] = request_id
            self._command_of[request_id] = key
        try:
            command = self._server.service.command_of(request)
            if command is not None:

                def answer_with(outcome: Any) -> None:
                    if bounds is not None:
                        bounds.made(message, outcome)
                    self._answer(request_id, outcome)

                self._server.service.execute_nowait(request, command, answer_with)
                return
            answer = self._server.service.handle(request)
        except Exception as exc:
            self._answer_error(request_id, exc)
            return
        if inspect.isawaitable(answer):
            task = self._server.loop.create_task(self._finish(request_id, answer, deadline_s))
            self._tasks[request_id] = task
            if inspect.iscoroutine(answer):
                # A task that is cancelled before its first step never begins to await it.
                task.add_done_callback(lambda _: answer.close())
        else:
            self._answer(request_id, answer)
            if type(message) is messages.Subscribe:
                self.subscribed = True

    async def _finish(self, request_id: int, answer: Any, deadline_s: float) -> None:
        try:
            async with asyncio.timeout_at(deadline_s):
                value = await answer
        except asyncio.CancelledError:
            if not self._closing:
                self._answer_error(request_id, CANCELLED)
            raise
        except TimeoutError:
            self._answer_error(request_id, DeadlineError("not done before the deadline"))
        except Exception as exc:
            self._answer_error(request_id, exc)
        else:
            self._answer(request_id, value)
        finally:
            self._tasks.pop(request_id, None)

    # --- output -----------------------------------------------------------------------------------

    def _answer(self, request_id: int, value: Any) -> None:
        if self._closing:
            return
        if isinstance(value, PydiError):
            self._answer_error(request_id, value)
            return
        self._forget_command(request_id)
        if self._session is not None and self._session.bounds is not None:
            value = self._session.bounds.outward(value)
        try:
            if type(value) is Content:
                buffers = self._wire.send_answer(request_id, None, value.data)
            else:
                buffers = self._wire.send_answer(request_id, value)
        except LocalProtocolError as exc:
            self._answer_error(request_id, exc)
            return
        self._write(buffers)
        self._count_held()
        if self._read_paused:
            self._server.loop.call_soon(self._resume)

    def _forget_command(self, request_id: int) -> None:
        key = self._command_of.pop(request_id, None)
        # A client may have asked twice under one key: the younger request owns it.
        if key is not None and self._commands.get(key) == request_id:
            del self._commands[key]

    def _answer_error(self, request_id: int, error: BaseException) -> None:
        if self._closing:
            return
        self._forget_command(request_id)
        if not isinstance(error, (PydiError, OSError)):
            _log.error("internal error in a request", exc_info=error)
        elif isinstance(error, LocalProtocolError):
            _log.error("an answer could not be sent: %s", error)
        self._write(self._wire.send_error(request_id, error))
        self._count_held()
        if self._read_paused:
            self._server.loop.call_soon(self._resume)

    def push(self, key: Key, touched: Touched) -> int:
        """To a subscriber: these are stale. The push's number; 0 for its own command, of which the
        answer, which follows, tells. Whoever had an error for an answer (a deadline) gets it."""
        if key in self._commands or self._has_ended:
            return 0
        assert self._session is not None
        told = touched if self._session.bounds is None else self._session.bounds.pushed(touched)
        if not self._session.client and any(name == EVERY_NAME for _, name in touched.entries):
            told = None  # a mount of before there were delegations would not understand it
        return self._push(told)

    def push_wanted(self, ino: Ino) -> None:
        """To a subscriber that gives out this file's locks: others want some. Also where the file
        is out of the session's bounds by now: it goes on giving them out until it hears of it."""
        if not self._has_ended:
            self._push(Touched((), ((ino, EVERY_NAME),)))

    def _push(self, told: Touched | None) -> int:
        sequence = self._wire.push_sequence + 1
        message = DropAll(sequence) if told is None else Invalidate(sequence, told)
        self._write(self._wire.send_push(message))
        return self._wire.push_sequence

    def push_drop_all(self) -> int:
        """To a subscriber: everything may be stale. The push's number; 0 when it has ended."""
        if self._has_ended:
            return 0
        self._write(self._wire.send_push(DropAll(self._wire.push_sequence + 1)))
        return self._wire.push_sequence

    @property
    def _has_ended(self) -> bool:
        """The peer hung up, and relies on no cache, or is cut off, which `Coherence` knows; that
        the connection is lost is told a moment later."""
        return self._closing or self._wire.state is not wire.State.OPEN

    def goodbye(self, sentence: str) -> None:
        """No more requests from this peer; what is under way is answered."""
        if self._session is None:
            self._abort()
        elif not self._closing and self._wire.state is wire.State.OPEN:
            self._write(self._wire.send_goodbye(sentence))

    def _write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Everything of one turn of the loop leaves together: one system call, one TLS record."""
        self._out += buffers
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        transport = self._transport
        if transport is None or not self._out:
            return
        out, self._out = self._out, []
        transport.writelines(out)
        if transport.get_write_buffer_size() > WRITE_MAX_BYTES:
            assert self._identity is not None
            _log.warning("%s does not read: disconnected", self._identity.name)
            self._abort()

    @property
    def is_node(self) -> bool:
        return self._session is not None and self._session.role is Role.NODE

    @property
    def idle(self) -> bool:
        """Nothing of it is under way."""
        return self._wire.unanswered == 0 and not self._out

    def close(self) -> None:
        """What was written leaves, then the connection ends."""
        self._close()

    # --- inner ------------------------------------------------------------------------------------

    def _is_loaded(self) -> bool:
        # Not a number of requests, which the protocol limits: a mount's commands may wait for its
        # acknowledgement, which would wait here behind them.
        held = self._count_held()
        return (
            self._write_paused
            or held >= wire.PAYLOAD_OUTSTANDING_MAX_BYTES
            or (
                held > 0
                and self._server.held_bytes >= HELD_MAX_BYTES
                and not self._is_unix
                and not self.is_node
            )
        )

    def _count_held(self) -> int:
        """What its unanswered requests hold; the server knows it from here on."""
        held = self._wire.unanswered_bytes
        if not self._closing and held != self._held_bytes:
            self._server.held_bytes += held - self._held_bytes
            self._held_bytes = held
        return held

    def _adjust_reading(self) -> None:
        if self._closing or self._transport is None:
            return
        loaded = self._is_loaded()
        if loaded and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        elif not loaded and self._read_paused:
            self._resume()

    def _resume(self) -> None:
        """Goes on with what had arrived already, then with the transport."""
        if not self._read_paused or self._closing or self._is_loaded():
            return
        assert self._transport is not None
        self._read_paused = False
        self._transport.resume_reading()
        self._take(lambda: None)

    def _take(self, receive: Callable[[], None]) -> None:
        """What came, and what it leads to. Whatever goes wrong ends this connection, no other."""
        try:
            receive()
            self._pump()
        except RemoteProtocolError as exc:
            self._on_broken(exc)
        except Exception as exc:
            self._on_bug(exc)

    def _refuse(self, refusal: Refusal, sentence: str, *, is_told: bool = False) -> None:
        """is_told: it is a matter for a person, who reads the log."""
        assert self._identity is not None
        if is_told and self._server.is_news(f"{self._identity.host}: {sentence}"):
            _log.warning("refused %s: %s", self._identity.name, sentence)
        self._write(self._wire.send_refuse(refusal, sentence))
        self._close()

    def _on_hello_timeout(self) -> None:
        assert self._identity is not None
        _log.info("%s said nothing: disconnected", self._identity.name)
        self._abort()

    def _on_broken(self, error: RemoteProtocolError) -> None:
        assert self._identity is not None
        _log.warning("%s broke the protocol: %s: disconnected", self._identity.name, error)
        self._abort()

    def _on_bug(self, error: Exception) -> None:
        """Ours, met with this peer's bytes: it must not take the other peers' sessions along."""
        assert self._identity is not None
        _log.error("internal error with %s: disconnected", self._identity.name, exc_info=error)
        self._abort()

    def end_stalled(self, now_s: float) -> None:
        """Ends it when a frame of its peer is under way for too long."""
        since_s = self._partial_since_s
        if since_s is not None and now_s - since_s > FRAME_TIMEOUT_S and not self._closing:
            assert self._identity is not None
            _log.info("%s never ended what it began to say: disconnected", self._identity.name)
            self._abort()

    def is_under(self, limits: MountLimits, host: str | None) -> bool:
        """Whether it is a session under this mount token from this address."""
        session, identity = self._session, self._identity
        return (
            session is not None and session.limits == limits
            and identity is not None and identity.host == host
        )  # fmt: skip

    def end_if(self, why: Callable[[Session], str | None]) -> None:
        """Ends the session when there is a reason to."""
        reason = None if self._session is None or self._closing else why(self._session)
        if reason is not None:
            assert self._identity is not None
            _log.info("session of %s ended: %s", self._identity.name, reason)
            self._abort()

    def _close(self) -> None:
        if not self._closing and self._transport is not None:
            self._flush()
            self._ends_by_us()
            self._transport.close()

    @property
    def holder(self) -> int:
        """In whose name locks are held; 0 before there is a session."""
        return 0 if self._session is None else self._session.holder

    def serves(self, session: Session) -> bool:
        return self._session is session

    def _abort(self) -> None:
        if self._transport is not None:
            self._ends_by_us()
            self._transport.abort()

    def _ends_by_us(self) -> None:
        if not self._closing and not self._hung_up:
            # The peer may not know, and go on to the end of its lease.
            self._server.coherence.gone(self, knows=False)
        self._closing = True


class Server:
    """All listeners and connections of a node."""

    def __init__(
        self,
        service: Service,
        admission: Admission,
        on_peer: Callable[[Session, tuple[Any, ...]], None],
        streams: Streams,
    ) -> None:
        """on_peer: gets each message that a node sends; RemoteProtocolError disconnects it.

        streams: gets the connections that are no sessions.
        """
        self.service = service
        self.streams = streams
        self.admission = admission
        self.on_peer = on_peer
        self.loop = asyncio.get_running_loop()
        self.stopping = False
        self._closed = False
        self.coherence = Coherence(lambda: service.driver.clock.now().uptime_s)
        service.lease = self._lease
        self._connections: set[Connection] = set()
        self.held_bytes = 0  # of all connections' unanswered requests
        self._strangers: dict[object, str | None] = {}  # places, and the address of who has it
        self._patience = FAILURES_BURST  # strangers that may fail now
        self._patience_s = self.loop.time()  # when it was that
        self._told: dict[str, float] = {}  # refusals that were logged, and when; oldest first
        self.context: ssl.SSLContext  # for new connections
        self._tcp_socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._unix_listener: asyncio.AbstractServer | None = None

    # --- listening --------------------------------------------------------------------------------

    async def listen_tcp(
        self, wanted: Address, context: ssl.SSLContext, port_before: int | None = None
    ) -> Address:
        """Serves TLS at the address, or at the next free port after it; where in the end.

        port_before  where the others look for this node: taken when any port will do.
        UserError  no such address on this machine, or no free port.
        """
        first = wanted.port or port_before or 0
        try:
            self._tcp_socket = await bind_tcp(Address(wanted.host, first))
        except UserError:
            if wanted.host != "::" or has_ipv6():
                raise
            wanted = Address("0.0.0.0", wanted.port)
            self._tcp_socket = await bind_tcp(Address(wanted.host, first))
        self.context = context
        self._accepting = self.loop.create_task(self._accept(self._tcp_socket))
        return Address(wanted.host, self._tcp_socket.getsockname()[1])

    async def listen_unix(self, path: Path) -> None:
        """Serves the unix socket, mode 0600. Whoever can connect finds a ready node.

        UserError  the path is too long, or something that isn't a socket is in the way.
        """
        sock = bind_unix(path)
        self._unix_listener = await self.loop.create_unix_server(
            lambda: Connection(self, None), sock=sock, backlog=BACKLOG
        )

    def refuse_clients(self) -> None:
        """No new mounts and commands, and no more requests from those that are here. The other
        nodes stay: this one still has to hand over to them."""
        self.stopping = True
        if self._unix_listener is not None:
            self._unix_listener.close()
        for connection in list(self._connections):
            if not connection.is_node:
                connection.goodbye("this node is about to stop")

    async def wait_idle(self, deadline_s: float) -> None:
        """Until every request is answered, at most until the deadline (the loop's clock)."""
        # An event instead would cost something in every answer, for the one time it is waited for.
        while self.loop.time() < deadline_s and not all(  # noqa: ASYNC110
            connection.idle for connection in self._connections
        ):
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Nobody is served any more; what was written still leaves."""
        self._closed = True
        for task in (self._accepting, *self._handshakes):
            if task is not None:
                task.cancel()
        for listener in (self._unix_listener, self._tcp_socket):
            if listener is not None:
                listener.close()
        for connection in list(self._connections):
            connection.close()

    # --- connections ------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        """Takes connections, one after the other, for as long as the server is there.

        Not asyncio's own listener: with TLS that shows a connection only when its handshake is
        done, and strangers have to be counted before.
        """
        while True:
            if (pause_s := self._pause_s()) > 0.0:
                await asyncio.sleep(pause_s)
            try:
                sock, peer = await self.loop.sock_accept(listener)
            except OSError as exc:
                # No descriptor is left, or the peer was faster: others may do better in a moment.
                _log.debug("accept: %s", exc)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            place = object()
            if not self.let_in(place, _host(peer)):
                self.on_failure()
                sock.close()
                continue
            task = self.loop.create_task(self._shake_hands(sock, place))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, sock: socket.socket, place: object) -> None:
        """One TLS handshake, HELLO_TIMEOUT_S at most; then the connection has its own life. Or one
        ticket, and it is a stream."""
        until_s = self.loop.time() + HELLO_TIMEOUT_S
        try:
            watch_for_vanishing(sock)
            async with asyncio.timeout_at(until_s):
                ticket = await self.streams.ticket_on(sock)
            if ticket is not None:
                if not self.streams.serve(sock, ticket):
                    self.on_failure()
                self.forget_stranger(place)
                return
            await self.loop.connect_accepted_socket(
                lambda: Connection(self, place), sock, ssl=self.context,
                ssl_handshake_timeout=max(0.1, until_s - self.loop.time()),
            )  # fmt: skip
        except OSError as exc:
            _log.debug("no TLS with a stranger: %s", exc)
            self.on_failure()
            self.forget_stranger(place)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

    def on_failure(self) -> None:
        """A stranger from the network is gone, and never was welcomed."""
        self._pause_s()
        self._patience -= 1.0

    def _pause_s(self) -> float:
        """How long to wait before the next stranger; 0.0: not at all."""
        now_s = self.loop.time()
        gained = (now_s - self._patience_s) * FAILURES_PER_S
        self._patience = min(self._patience + gained, FAILURES_BURST)
        self._patience_s = now_s
        return max(0.0, (1.0 - self._patience) / FAILURES_PER_S)

    def let_in(self, place: object, host: str | None) -> bool:
        """Whether there is room for one more that nobody knows yet; it has the place then."""
        if self._closed:
            return False
        strangers = list(self._strangers.values())
        local = strangers.count(None)
        if len(self._connections) < CONNECTIONS_MAX and (
            local < STRANGERS_MAX
            if host is None
            else len(strangers) - local < STRANGERS_MAX
            and strangers.count(host) < STRANGERS_PER_ADDRESS_MAX
        ):
            self._strangers[place] = host
            return True
        if self.is_news("too many"):
            _log.warning("too many connections: one more was refused (%s)", host or "this machine")
        return False

    def is_news(self, what: str) -> bool:
        """Whether it was not said within TOLD_PERIOD_S; from now on it was."""
        now_s = self.loop.time()
        told_s = self._told.get(what)
        if told_s is not None and now_s - told_s < TOLD_PERIOD_S:
            return False
        self._told.pop(what, None)
        self._told[what] = now_s
        if len(self._told) > TOLD_MAX:
            del self._told[next(iter(self._told))]
        return True

    def forget_stranger(self, place: object) -> None:
        """It is known now, or gone."""
        self._strangers.pop(place, None)

    def add(self, connection: Connection) -> bool:
        """Whether it may stay. When this node has stopped, a handshake may still end."""
        if self._closed:
            return False
        self._connections.add(connection)
        return True

    def remove(self, connection: Connection, knows: bool) -> None:
        """It is lost. knows: the peer ended it, or this node did, and has said so."""
        self._connections.discard(connection)
        self.coherence.gone(connection, knows)
        self.service.driver.look_at_caches()

    def on_acknowledged(self, connection: Connection, sequence: int) -> None:
        self.coherence.acknowledged(connection, sequence)
        self.service.driver.look_at_caches()

    def _lease(self, session: Session) -> int:
        for connection in self._connections:
            if connection.subscribed and connection.serves(session):
                return self.coherence.renew(connection, self.service.driver.lease_s())
        return 0  # nothing would be pushed to it

    def push(self, touched: Sequence[tuple[LogIndex, ClientId, Serial, Touched]]) -> None:
        """Every subscriber drops these, before the answers to the commands that did it."""
        subscribers = [c for c in self._connections if c.subscribed]
        if not subscribers:
            return
        for index, client, serial, item in touched:
            key = (client, serial)
            for connection in subscribers:
                sequence = connection.push(key, item)
                if sequence:
                    self.coherence.pushed(index, connection, sequence)

    def tell(self, holder: int, ino: Ino) -> None:
        """The mount that holds locks under this number hears that somebody else uses the file."""
        for connection in self._connections:
            if connection.subscribed and connection.holder == holder:
                connection.push_wanted(ino)

    def has_room(self, limits: MountLimits, host: str | None) -> bool:
        """Whether one more session under this mount token from this address is welcome."""
        found = sum(connection.is_under(limits, host) for connection in self._connections)
        return found < SESSIONS_PER_TOKEN_MAX

    def end_sessions(self, why: Callable[[Session], str | None]) -> None:
        """Those for which ``why`` gives a reason end now, whatever they are about; and those whose
        peer never ends what it says."""
        now_s = self.loop.time()
        for connection in list(self._connections):
            connection.end_if(why)
            connection.end_stalled(now_s)

    def push_drop_all(self) -> None:
        """The tree is about to be another one, and nobody here has seen it yet."""
        for connection in self._connections:
            if connection.subscribed:
                sequence = connection.push_drop_all()
                if sequence:
                    self.coherence.pushed_drop_all(connection, sequence)


def make_session(number: int, hello: Hello) -> Session:
    """The service's record of an admitted peer."""
    session = Session(number, hello.role, hello.host, hello.about)
    session.node = NodeNumber(hello.number) if hello.role is Role.NODE else None
    return session


def _identify(transport: asyncio.Transport, is_unix: bool) -> PeerIdentity:
    if is_unix:
        sock = transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        return PeerIdentity(f"process {pid} on this machine", None, None, uid)
    host = _host_of(transport)
    peer = transport.get_extra_info("peername")
    name = f"{host}:{peer[1]}" if peer else "a peer"
    return PeerIdentity(name, host, transport.get_extra_info("ssl_object"), None)


def _host_of(transport: asyncio.Transport) -> str | None:
    peer = transport.get_extra_info("peername")
    return _host(peer) if peer else None


def _host(peer: Sequence[Any]) -> str:
    """The address in a peer's name; a socket for both families shows those of IPv4 in the clothes
    of IPv6."""
    return str(peer[0]).removeprefix("::ffff:")
