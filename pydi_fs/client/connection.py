"""One connection to one node: a wire Session over an asyncio transport.

Called by `client.Client` only. It sends requests, hands each answer to whoever asked, in the order
of arrival and before anything later is looked at, and ends when the node goes away, breaks the
protocol or stops answering. It never reconnects and never retries.

    connecting ──welcome──► open ──lost──► closed
                  └─refuse / time-out──────────┘

Order is the point of `arrived`: an answer computed before a change arrives before the invalidation
of that change. If an answer entered a cache when its waiter wakes up, the invalidation could be
handled first and the stale answer would stay. So `arrived(answer)` runs here, at arrival.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from pydi_fs.client.endpoints import Endpoint
from pydi_node.errors import (
    DeadlineError,
    DisconnectedError,
    PydiError,
    RemoteProtocolError,
    UnavailableError,
    UserError,
)
from pydi_node.wire.events import (
    AnswerReceived,
    ConnectionEnded,
    ErrorReceived,
    GoodbyeReceived,
    Hello,
    PingReceived,
    PongReceived,
    PushReceived,
    RefuseReceived,
    Welcome,
    WelcomeReceived,
)
from pydi_node.wire.frames import LIMITS_AFTER_WELCOME
from pydi_node.wire.messages import REQUEST_OF_CLASS, Push, Request, Subscribe
from pydi_node.wire.session import DEADLINE_MAX_MS, PAYLOAD_OUTSTANDING_MAX_BYTES, Session

log = logging.getLogger("pydi.client")

CONNECT_TIMEOUT_S = 3.0  # a live node answers a hello within milliseconds, a loaded one within 1 s
# Nothing heard for so long, while requests wait or caches rely on its invalidations:
SILENCE_PING_S = 0.5  # ask whether it lives
SILENCE_SUSPECT_S = 1.0  # look for another node that does
# Names and attributes are under a lease, which has ended before. What is open is read anew, too.
SILENCE_DOUBT_S = 1.75
SILENCE_DEAD_S = 3.0  # it hangs, or its machine is gone; another node can do better
# How much earlier a node answers why it could not do it: on its way that must not meet our own end.
ANSWER_MARGIN_S = 0.5

# Content on its way, so that one more payload keeps it below what a node reads before it answers.
PAYLOAD_WINDOW_BYTES = PAYLOAD_OUTSTANDING_MAX_BYTES - LIMITS_AFTER_WELCOME.payload_max_bytes

Arrived = Callable[[Any], Any]
Failed = Callable[[PydiError], None]


class _Waiting:
    """One request on its way."""

    __slots__ = ("arrived", "deadline", "failed", "future", "payload_bytes")

    def __init__(
        self,
        future: asyncio.Future[Any],
        arrived: Arrived | None,
        failed: Failed | None,
        payload_bytes: int,
    ) -> None:
        self.future = future
        self.arrived = arrived
        self.failed = failed
        self.payload_bytes = payload_bytes
        self.deadline: asyncio.TimerHandle | None = None


class Connection(asyncio.BufferedProtocol):
    """An open session with one node. Make it with `open_connection`."""

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Hello,
        on_push: Callable[[Connection, Push], None],
        on_suspect: Callable[[Connection], None],
        on_doubt: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.endpoint = endpoint
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._session = Session.connecting(hello)
        self._on_push = on_push
        self._on_suspect = on_suspect
        self._on_doubt = on_doubt
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, _Waiting] = {}
        # Pushes in order, each with what its effect here waits for.
        self._unacknowledged: deque[tuple[int, asyncio.Future[None] | None]] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._payload_bytes = 0  # of requests on their way
        self._slot = asyncio.Event()  # another request may leave
        self._slot.set()
        self._heard_at = self._loop.time()
        self._pinged_at: float | None = None  # since it was last heard
        self._suspected = self._doubted = False  # likewise
        self._relied_on = False  # its silence matters also while nobody waits
        self._watchdog: asyncio.TimerHandle | None = None
        self.leaving = False  # the node said goodbye: ask another one from now on
        self.closed = False  # nothing is sent any more

    # --- requests ------------------------------------------------------------------------------

    async def request(
        self,
        request: Request,
        payload: bytes | bytearray | memoryview,
        timeout_s: float,
        arrived: Arrived | None,
        failed: Failed | None,
        sent: Callable[[], None] | None = None,
    ) -> Any:
        """The answer, or what `arrived` made of it. sent: called when it has left.

        DisconnectedError  the connection ended first; the request may have been executed or not.
        DeadlineError      no answer in time; the node was told to forget it.
        Other PydiErrors   the node's own answer.
        """
        while not (self._writable.is_set() and self._slot.is_set()):
            # Not bounded by the deadline: a dead node ends the wait through the watchdog.
            await self._writable.wait()
            await self._slot.wait()
        if self.closed:
            raise DisconnectedError(f"{self.endpoint} went away")
        # The node gives up a little earlier than we do, for only it knows why: no quorum, no space.
        node_timeout_s = timeout_s - min(ANSWER_MARGIN_S, timeout_s / 10)
        deadline_ms = max(min(int(node_timeout_s * 1000), DEADLINE_MAX_MS), 1)
        request_id, buffers = self._session.send_request(request, payload, deadline_ms=deadline_ms)
        self._payload_bytes += len(payload)
        if self._is_full():
            self._slot.clear()
        self._write(buffers)
        if sent is not None:
            sent()
        waiting = _Waiting(self._loop.create_future(), arrived, failed, len(payload))
        if not self._waiting and not self._relied_on:
            self._hear()  # idle silence says nothing about the node
        self._relied_on |= isinstance(request, Subscribe)
        self._waiting[request_id] = waiting
        if timeout_s < DEADLINE_MAX_MS / 1000:
            waiting.deadline = self._loop.call_later(timeout_s, self._expire, request_id)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._cancel(request_id)
            raise
        finally:
            if waiting.deadline is not None:
                waiting.deadline.cancel()

    def _is_full(self) -> bool:
        session = self._session
        return (
            session.requests_outstanding >= session.limits.requests_max
            or self._payload_bytes >= PAYLOAD_WINDOW_BYTES
        )

    def acknowledge_when(self, told: asyncio.Future[None] | None, sequence: int) -> None:
        """Tell the node that this push has taken effect here, once ``told`` is done (None: now).

        Whoever made the change waits for this. An acknowledgement covers all pushes before it, so
        it is sent in order of their numbers.
        """
        self._unacknowledged.append((sequence, told))
        if told is None or told.done():
            self._acknowledge()
        else:
            told.add_done_callback(lambda _: self._acknowledge())

    def _acknowledge(self) -> None:
        last = 0
        while self._unacknowledged:
            sequence, told = self._unacknowledged[0]
            if told is not None and not told.done():
                break
            last = sequence
            self._unacknowledged.popleft()
        if last and not self.closed:
            self._write(self._session.send_acknowledge(last))

    def leave(self) -> None:
        """Say that this side ends by its own will: the node need keep nothing for it."""
        welcome = self.welcome
        is_open = welcome.done() and not welcome.cancelled() and welcome.exception() is None
        if is_open and not self.closed and not self.leaving:
            self._write(self._session.send_goodbye("the client ends"))

    def close(self) -> None:
        """End it now; whoever still waits gets DisconnectedError."""
        if self._transport is not None and not self.closed:
            # `connection_lost` comes later, and a session that broke takes nothing until then.
            self.closed = True
            self._transport.abort()

    def _expire(self, request_id: int) -> None:
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_exception(DeadlineError(f"{self.endpoint} did not answer in time"))
            self._cancel(request_id)

    def _cancel(self, request_id: int) -> None:
        # The entry stays until the node's answer to it comes: every request gets exactly one.
        if not self.closed and request_id in self._waiting:
            self._write(self._session.send_cancel(request_id))

    def _write(self, buffers: list[Any]) -> None:
        assert self._transport is not None
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._transport.writelines(buffers)

    # --- asyncio.BufferedProtocol ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports only behave like one.
        self._transport = cast(asyncio.Transport, transport)
        self._write(self._session.send_hello())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._session.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._hear()
        self._feed(lambda: self._session.receive(nbytes))

    def eof_received(self) -> None:
        self._feed(self._session.receive_eof)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._writable.set()
        self._slot.set()
        lost = DisconnectedError(f"{self.endpoint} went away")
        self._fail_welcome(lost)
        for waiting in list(self._waiting.values()):
            if not waiting.future.done():
                waiting.future.set_exception(lost)
        self._waiting.clear()
        self._on_lost(self)

    def _fail_welcome(self, error: PydiError) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()  # whoever waits gets it; nobody waiting is no trouble

    # --- what the node said --------------------------------------------------------------------

    def _feed(self, receive: Callable[[], None]) -> None:
        try:
            receive()
            for event in self._session.events():
                self._handle(event)
        except RemoteProtocolError as exc:
            log.warning("%s broke the protocol, connection dropped: %s", self.endpoint, exc)
            self.close()

    def _handle(self, event: object) -> None:
        match event:
            case AnswerReceived():
                self._settle(event.request_id, event, None)
            case ErrorReceived():
                error = event.error
                if not isinstance(error, PydiError):
                    error = UnavailableError(str(error))
                self._settle(event.request_id, None, error)
            case PushReceived():
                self._on_push(self, event.push)
            case PingReceived():
                self._write(self._session.send_pong(event.token))
            case WelcomeReceived():
                self._watch()
                if not self.welcome.done():
                    self.welcome.set_result(event.welcome)
            case RefuseReceived():
                self._fail_welcome(UserError(event.sentence))
                self.close()
            case GoodbyeReceived():
                self.leaving = True
            case ConnectionEnded():
                self.close()
            case PongReceived():
                pass  # that it was heard is all that it says
            case _:
                log.debug("%s: %r is not for a client", self.endpoint, event)

    def _settle(
        self, request_id: int, answer: AnswerReceived | None, error: PydiError | None
    ) -> None:
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            self._payload_bytes -= waiting.payload_bytes
        if not self._is_full():
            self._slot.set()
        if waiting is None:
            return
        value: Any = None
        try:
            if answer is not None:
                spec = REQUEST_OF_CLASS[type(answer.request)]
                value = answer.payload if spec.answer_payload else answer.value
                if waiting.arrived is not None:
                    value = waiting.arrived(value)
            elif waiting.failed is not None and error is not None:
                waiting.failed(error)
        except PydiError as exc:  # an outcome that `arrived` read out of the answer
            error = exc
        except Exception as exc:
            # A bug behind the hook must end with its caller, not with the whole connection.
            if not waiting.future.done():
                waiting.future.set_exception(exc)
                return
            raise
        if waiting.future.done():  # its deadline passed or it was cancelled; caches were fed anyway
            return
        if error is not None:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(value)

    # --- is it alive? ----------------------------------------------------------------------------

    def _hear(self) -> None:
        self._heard_at = self._loop.time()
        self._pinged_at = None
        self._suspected = self._doubted = False

    @property
    def is_silent(self) -> bool:
        """It was asked whether it lives, and has not said a word since."""
        return self._pinged_at is not None

    def _watch(self) -> None:
        """A node that hangs keeps its sockets open, and one whose machine vanished too: only its
        silence tells."""
        if self.closed:
            return
        if not self._waiting and not self._relied_on:
            self._watchdog = self._loop.call_later(SILENCE_PING_S, self._watch)
            return
        now_s = self._loop.time()
        silence_s = now_s - self._heard_at
        if silence_s >= SILENCE_PING_S and self._pinged_at is None:
            self._pinged_at = now_s
            self._write(self._session.send_ping(1))
        if silence_s >= SILENCE_DOUBT_S and not self._doubted:
            self._doubted = True
            self._on_doubt(self)
        if self._pinged_at is None:
            next_s = SILENCE_PING_S - silence_s
        else:
            # Counted from the ping: after a pause of this process (SIGSTOP, a lid that was closed)
            # the node still has to be asked.
            unanswered_s = SILENCE_PING_S + now_s - self._pinged_at
            if unanswered_s >= SILENCE_SUSPECT_S and not self._suspected:
                self._suspected = True
                self._on_suspect(self)
            next_s = SILENCE_DEAD_S - unanswered_s
            if next_s <= 0:
                log.warning(
                    "%s has not answered for %.1f s, connection dropped", self.endpoint, silence_s
                )
                self.close()
                return
            if not self._suspected:
                next_s = min(next_s, SILENCE_SUSPECT_S - unanswered_s)
            if not self._doubted:
                next_s = min(next_s, SILENCE_DOUBT_S - silence_s)
        self._watchdog = self._loop.call_later(next_s, self._watch)


async def open_connection(
    endpoint: Endpoint,
    hello: Hello,
    on_push: Callable[[Connection, Push], None],
    on_suspect: Callable[[Connection], None],
    on_doubt: Callable[[Connection], None],
    on_lost: Callable[[Connection], None],
) -> Connection:
    """A connection whose node said welcome.

    UnavailableError  nobody there, or no answer to the hello in time.
    UserError         the node refuses us; its sentence says why.
    """
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(endpoint, hello, on_push, on_suspect, on_doubt, on_lost)

    connection: Connection | None = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await endpoint.connect(loop, make)
            await connection.welcome
    except TimeoutError as exc:
        if connection is not None:
            connection.close()
        raise DisconnectedError(f"{endpoint} does not answer") from exc
    except asyncio.CancelledError:
        if connection is not None:
            connection.close()
        raise
    except OSError as exc:
        raise DisconnectedError(f"{endpoint}: {exc.strerror or exc}") from exc
    return connection
