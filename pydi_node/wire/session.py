"""Session: one connection's protocol as a pure object, the same class on both sides.

For the node's server and the client, which move its bytes; see the package docstring for the verbs.
It must never touch a clock, a socket or a task, and never trust an order: what may happen when is
decided here, and nowhere else.

    connecting side                                   accepting side (always a node)

    NEW ── send_hello ──► HELLO_SENT                  NEW ── hello arrives ──► HELLO_RECEIVED
            welcome │  │ refusal                               send_welcome │  │ send_refuse
                    ▼  ▼                                                    ▼  ▼
                 OPEN  ENDED                                             OPEN  ENDED

    OPEN    requests go to nodes only (a node that connected asks and is asked; a mount only asks);
            each has a number, larger than all before it, and gets exactly one answer. Goodbye says
            "no more requests, neither way": what is under way is still answered.
    ENDED   nothing may be sent; what still arrives after a refusal is dropped.
    BROKEN  the peer broke the protocol; every further input raises RemoteProtocolError.

Who is to blame: LocalProtocolError is raised before anything changed, so the caller's bug leaves
the session usable; RemoteProtocolError leaves it BROKEN.
"""

from __future__ import annotations

import enum
import errno
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn, Self

from pydi_node.errors import FileError, LocalProtocolError, RemoteProtocolError
from pydi_node.ids import INT64_MAX, NODE_NUMBER_MAX
from pydi_node.wire import fields, messages
from pydi_node.wire.events import (
    AcknowledgeReceived,
    AnswerReceived,
    CancelReceived,
    ConnectionEnded,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    Hello,
    HelloReceived,
    PeerReceived,
    PingReceived,
    PongReceived,
    PushReceived,
    Refusal,
    RefuseReceived,
    RequestNotUnderstood,
    RequestReceived,
    Welcome,
    WelcomeReceived,
)
from pydi_node.wire.failures import SENTENCE_MAX_CHARACTERS, Failure, failure_of
from pydi_node.wire.frames import (
    LIMITS_AFTER_WELCOME,
    LIMITS_BEFORE_WELCOME,
    Buffers,
    Data,
    FrameLimits,
    FrameParser,
    encode_frame,
)
from pydi_node.wire.messages import (
    REQUEST_OF_CLASS,
    BlobRead,
    Push,
    Request,
    Role,
    Subscribe,
    UnknownRequestError,
)

MAGIC: Final = b"PyDi"
PROTOCOL_VERSIONS: Final = (1,)  # ascending; what this code speaks

# A mount with 1 MiB kernel requests keeps some 64 under way; a thousand threads waiting for locks
# must fit too. Each waiting request costs a node up to a few KiB beside its payload.
REQUESTS_MAX: Final = 1024
# Content of one peer's requests in a node's memory: eight full chunks. Beyond it the node reads no
# more from that peer until it has answered some of them, and hears no acknowledgement either. An
# answer may wait for just that, so clients stay below.
PAYLOAD_OUTSTANDING_MAX_BYTES: Final = 32 << 20
# So does a large header, which is larger in memory: the 2.1 MB of a commit with 65,536 extents
# become 14 MB. The small ones of most requests are what REQUESTS_MAX is for.
SMALL_HEADER_BYTES: Final = 4 << 10
UNPACKED_FACTOR: Final = 8
DEADLINE_MAX_MS: Final = 24 * 60 * 60 * 1000  # whoever wants to wait longer asks again
HOST_MAX_CHARACTERS: Final = 255  # DNS
TOKEN_MAX: Final = (1 << 63) - 1
PINGS_MAX: Final = 16  # without a pong the peer is gone long before


class Limits(NamedTuple):
    """Bounds of one session. Both sides use the same ones; tests use smaller ones."""

    before_welcome: FrameLimits = LIMITS_BEFORE_WELCOME
    after_welcome: FrameLimits = LIMITS_AFTER_WELCOME
    requests_max: int = REQUESTS_MAX  # that wait for an answer, in each direction


class State(enum.Enum):
    NEW = "new"
    HELLO_SENT = "hello sent"
    HELLO_RECEIVED = "hello received"
    OPEN = "open"
    ENDED = "ended"
    BROKEN = "broken"


class Kind(enum.IntEnum):
    """The first element of every header. Part of the protocol: never renumber, only add."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    REQUEST = 4
    ANSWER = 5
    ERROR = 6
    CANCEL = 7
    PUSH = 8
    ACKNOWLEDGE = 9
    PEER = 10
    PING = 11
    PONG = 12
    GOODBYE = 13


class KindRule(NamedTuple):
    """When and between whom a kind may travel."""

    state: State  # of the receiver
    sender_is_node: bool
    receiver_is_node: bool
    payload: bool
    fields: tuple[str, ...]  # after the kind, for people; later versions of HELLO and WELCOME add


KIND_RULES: Final[dict[Kind, KindRule]] = {
    Kind.HELLO: KindRule(
        State.NEW,
        False,
        True,
        False,
        ("magic", "versions", "role", "cluster", "number", "host", "about"),
    ),
    Kind.WELCOME: KindRule(
        State.HELLO_SENT, True, False, False, ("version", "cluster", "number", "host")
    ),
    Kind.REFUSE: KindRule(State.HELLO_SENT, True, False, False, ("refusal", "sentence")),
    Kind.REQUEST: KindRule(
        State.OPEN, False, True, True, ("request id", "deadline ms", "[code, fields ...]")
    ),
    Kind.ANSWER: KindRule(State.OPEN, True, False, True, ("request id", "value")),
    Kind.ERROR: KindRule(
        State.OPEN, True, False, False, ("request id", "[code, errno, sentence, retry, leader]")
    ),
    Kind.CANCEL: KindRule(State.OPEN, False, True, False, ("request id",)),
    Kind.PUSH: KindRule(State.OPEN, True, False, False, ("[code, sequence, fields ...]",)),
    Kind.ACKNOWLEDGE: KindRule(State.OPEN, False, True, False, ("sequence",)),
    Kind.PEER: KindRule(State.OPEN, True, True, True, ("[message]",)),
    Kind.PING: KindRule(State.OPEN, False, False, False, ("token",)),
    Kind.PONG: KindRule(State.OPEN, False, False, False, ("token",)),
    Kind.GOODBYE: KindRule(State.OPEN, False, False, False, ("sentence",)),
}


class _Unanswered(NamedTuple):
    """A request of the peer's that we owe an answer."""

    request: Request | None  # None: not understood
    payload_bytes: int


def choose_version(hello: Hello) -> int | None:
    """The newest protocol version that both sides speak; None: refuse with Refusal.VERSION."""
    return max(set(hello.versions) & set(PROTOCOL_VERSIONS), default=None)


class Session:
    """One side of one connection. Make it with ``connecting`` or ``accepting``."""

    def __init__(self, hello: Hello | None, limits: Limits) -> None:
        self.limits = limits
        self.state = State.NEW
        self.peer: Hello | Welcome | None = None
        self.version = 0  # chosen by the welcome
        self._own_hello = hello  # None on the accepting side
        self._role = Role.NODE if hello is None else hello.role
        self._peer_role: Role | None = None if hello is None else Role.NODE
        self._parser = FrameParser(limits.before_welcome)
        self._eof = False
        self._eof_reported = False

        # Requests of ours: by id, in the order they were sent.
        self._last_request_id = 0
        self._outstanding: dict[int, Request] = {}
        # Requests of the peer's that wait for our answer.
        self._last_peer_request_id = 0
        self._unanswered: dict[int, _Unanswered] = {}
        self._unanswered_bytes = 0

        # Pushes: sent by a node once its peer subscribed.
        self._peer_subscribed = False
        self._push_sent = 0  # sequence of the last one
        self._acknowledged_by_peer = 0
        self._subscribed = False
        self._push_received = 0
        self._acknowledged = 0

        # Tokens of pings without a pong, oldest first.
        self._pings: deque[int] = deque()
        self._pings_of_peer: deque[int] = deque()
        self._goodbye_sent = False
        self._goodbye_received = False

    @classmethod
    def connecting(cls, hello: Hello, limits: Limits = Limits()) -> Self:  # noqa: B008
        """The side that opened the connection; ``send_hello`` comes first."""
        return cls(hello, limits)

    @classmethod
    def accepting(cls, limits: Limits = Limits()) -> Self:  # noqa: B008
        """A node that accepted a connection; HelloReceived comes first."""
        return cls(None, limits)

    # --- what is known -------------------------------------------------------------------------

    @property
    def requests_outstanding(self) -> int:
        """Our requests without an answer; below ``limits.requests_max`` another may be sent."""
        return len(self._outstanding)

    @property
    def outstanding_ids(self) -> list[int]:
        """Ids of those requests, ascending: what fails when the connection ends."""
        return list(self._outstanding)

    @property
    def unanswered(self) -> int:
        """The peer's requests that we have not answered yet."""
        return len(self._unanswered)

    @property
    def unanswered_bytes(self) -> int:
        """Memory that they hold beyond a few KiB each: content, and large headers. Whoever reads
        the transport stops at PAYLOAD_OUTSTANDING_MAX_BYTES, or a peer can fill the memory."""
        return self._unanswered_bytes

    @property
    def buffered_bytes(self) -> int:
        """Of a frame that the peer has not sent whole, or that nobody has asked for yet."""
        return self._parser.buffered_bytes

    @property
    def push_sequence(self) -> int:
        """Number of the last push sent; the next one has this plus 1."""
        return self._push_sent

    @property
    def goodbye_received(self) -> bool:
        """The peer wants no more requests: ask another node."""
        return self._goodbye_received

    # --- input ---------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Add what the transport read; take all events before adding more.

        RemoteProtocolError when the session is broken, or the peer goes on before our welcome.
        """
        room = self.room(len(data))
        room[: len(data)] = data
        self.receive(len(data))

    def room(self, length: int = 1) -> memoryview:
        """Where the transport puts what it reads next, at least ``length`` bytes, and all of a
        payload that is under way; ``receive`` then says how much that was. Valid until any other
        call."""
        return self._parser.room(length)

    def receive(self, count: int) -> None:
        """As ``receive_data``, of what is in ``room``."""
        if self._eof:
            raise LocalProtocolError("data after the end of the stream")
        if self.state is State.ENDED:
            return  # we refused it, or it refused us: whatever it says now means nothing
        self._parser.received(count)
        if self.state is State.HELLO_RECEIVED and count:
            self._break("it spoke before it was welcomed")
        if self.state is State.BROKEN:
            self._parser.next_frame()  # raises

    def receive_eof(self) -> None:
        """The transport ended, cleanly or not; ConnectionEnded is the last event."""
        self._eof = True

    def events(self) -> Iterator[Event]:
        """Events until more bytes are needed."""
        while (event := self.next_event()) is not None:
            yield event

    def next_event(self) -> Event | None:
        """The next event; None until more bytes came. RemoteProtocolError: close the transport."""
        while self.state is not State.ENDED:
            if self.state is State.HELLO_RECEIVED:
                break  # what follows may be parsed only by the limits after the welcome
            try:
                frame = self._parser.next_frame()
            except RemoteProtocolError:
                self.state = State.BROKEN
                raise
            if frame is None:
                break
            event = self._on_frame(frame.header, frame.payload)
            if event is not None:
                return event
        if self._eof and not self._eof_reported and self.state is not State.BROKEN:
            self._eof_reported = True
            truncated = self._parser.buffered_bytes > 0
            self.state = State.ENDED
            return ConnectionEnded(truncated)
        return None

    def _on_frame(self, header: tuple[Any, ...], payload: bytes) -> Event | None:
        number = header[0] if header else None
        # An exact int: True and 1.0 are equal to 1 and would find an entry too.
        handler = _HANDLERS.get(number) if type(number) is int else None
        if handler is None:
            self._break("unknown kind of frame")
        kind, rule, count, handle = handler
        if self.state is not rule.state:
            self._break(f"{kind.name} while {self.state.value}")
        if self.state is State.OPEN:
            if rule.sender_is_node and self._peer_role is not Role.NODE:
                self._break(f"{kind.name} from a {self._peer_role}")
            if rule.receiver_is_node and self._role is not Role.NODE:
                self._break(f"{kind.name} to a {self._role}")
        # Before the session is open versions may differ: what a later one adds stands at the end.
        if len(header) < count or (len(header) > count and self.state is State.OPEN):
            self._break(f"{kind.name} with {len(header) - 1} fields")
        if payload and not rule.payload:
            self._break(f"{kind.name} with a payload")
        try:
            return handle(self, header, payload)
        except ValueError as exc:
            self._break(f"{kind.name}: {exc}", exc)

    def _on_hello(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        if self._own_hello is not None:
            self._break("HELLO from the side that accepted")
        _, magic, versions, role, cluster, number, host, about = header[:8]
        if magic != MAGIC:
            self._break("not a PyDi peer")
        hello = Hello(
            _versions(versions),
            Role(_ROLE(role)),
            _cluster_or_any(cluster),
            _NUMBER(number),
            _HOST(host),
            fields.plain_map(about),
        )
        if (hello.role is Role.NODE) != (hello.number > 0):
            self._break("HELLO: a node has a number, nobody else has")
        self.peer = hello
        self._peer_role = hello.role
        self.state = State.HELLO_RECEIVED
        if self._parser.buffered_bytes:
            self._break("it spoke before it was welcomed")
        return HelloReceived(hello)

    def _on_welcome(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        _, version, cluster, number, host = header[:5]
        welcome = Welcome(_VERSION(version), _cluster(cluster), fields.NODE(number), _HOST(host))
        assert self._own_hello is not None
        if welcome.version not in self._own_hello.versions:
            self._break(f"WELCOME to version {welcome.version}, which was not offered")
        if self._own_hello.cluster not in ("", welcome.cluster):
            self._break("WELCOME from another cluster")
        self.peer = welcome
        self._open(welcome.version)
        return WelcomeReceived(welcome)

    def _on_refuse(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        code, sentence = fields.integer(0, 255)(header[1]), _SENTENCE(header[2])
        self.state = State.ENDED
        known = {refusal.value for refusal in Refusal}
        return RefuseReceived(Refusal(code) if code in known else Refusal.OTHER, sentence)

    def _on_request(self, header: tuple[Any, ...], payload: bytes) -> Event | None:
        _, request_id, deadline_ms, value = header
        _REQUEST_ID(request_id)
        _DEADLINE(deadline_ms)
        if request_id <= self._last_peer_request_id:
            self._break(f"request {request_id} after request {self._last_peer_request_id}")
        if len(self._unanswered) >= self.limits.requests_max:
            self._break(f"more than {self.limits.requests_max} requests without an answer")
        if self._goodbye_received:
            self._break("a request after its goodbye")
        if type(value) is not tuple:
            self._break("a request that is not an array")
        try:
            request = messages.decode_request(value)
        except UnknownRequestError as exc:
            self._accept(request_id, None, payload)
            return RequestNotUnderstood(request_id, FileError(errno.ENOSYS, str(exc)))
        if self._peer_role not in REQUEST_OF_CLASS[type(request)].roles:
            self._break(f"{type(request).__name__} from a {self._peer_role}")
        messages.check_payload(request, len(payload))
        self._accept(request_id, request, payload)
        return RequestReceived(request_id, request, payload, deadline_ms)

    def _accept(self, request_id: int, request: Request | None, payload: bytes) -> None:
        self._last_peer_request_id = request_id
        header_bytes = self._parser.header_bytes
        held = len(payload)
        if header_bytes > SMALL_HEADER_BYTES:
            held += header_bytes * UNPACKED_FACTOR
        self._unanswered[request_id] = _Unanswered(request, held)
        self._unanswered_bytes += held

    def _on_answer(self, header: tuple[Any, ...], payload: bytes) -> Event | None:
        request_id, request = self._answered(header[1])
        value = messages.decode_answer(request, header[2])
        if type(request) is BlobRead:
            if len(payload) > request.length:
                self._break("an answer to BlobRead that is longer than asked for")
        elif payload:
            self._break(f"an answer to {type(request).__name__} with a payload")
        if type(request) is Subscribe:
            self._subscribed = True
        del self._outstanding[request_id]
        return AnswerReceived(request_id, request, value, payload)

    def _on_error(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        request_id, request = self._answered(header[1])
        error = Failure.from_wire(header[2]).exception()
        del self._outstanding[request_id]
        return ErrorReceived(request_id, request, error)

    def _answered(self, value: Any) -> tuple[int, Request]:
        request_id: int = _REQUEST_ID(value)
        request = self._outstanding.get(request_id)
        if request is None:
            self._break(f"an answer to request {request_id}, which waits for none")
        return request_id, request

    def _on_cancel(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        request_id: int = _REQUEST_ID(header[1])
        if request_id > self._last_peer_request_id:
            self._break(f"cancels request {request_id}, which it never made")
        if request_id not in self._unanswered:
            return None  # our answer and its cancel crossed on the way
        return CancelReceived(request_id)

    def _on_push(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        if not self._subscribed:
            self._break("a push without a subscription")
        if type(header[1]) is not tuple:
            self._break("a push that is not an array")
        push = messages.decode_push(header[1])
        if push.sequence != self._push_received + 1:
            self._break(f"push {push.sequence} after push {self._push_received}")
        self._push_received = push.sequence
        return PushReceived(push)

    def _on_acknowledge(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        sequence: int = _SEQUENCE(header[1])
        if not self._acknowledged_by_peer < sequence <= self._push_sent:
            self._break(
                f"acknowledges push {sequence}, not one of "
                f"{self._acknowledged_by_peer + 1} .. {self._push_sent}"
            )
        self._acknowledged_by_peer = sequence
        return AcknowledgeReceived(sequence)

    def _on_peer(self, header: tuple[Any, ...], payload: bytes) -> Event | None:
        if type(header[1]) is not tuple:
            self._break("a peer message that is not an array")
        return PeerReceived(header[1], payload)

    def _on_ping(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        token: int = _TOKEN(header[1])
        if len(self._pings_of_peer) >= PINGS_MAX:
            self._break(f"more than {PINGS_MAX} pings without a pong")
        self._pings_of_peer.append(token)
        return PingReceived(token)

    def _on_pong(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        token: int = _TOKEN(header[1])
        if not self._pings or self._pings[0] != token:
            self._break("a pong without its ping")
        self._pings.popleft()
        return PongReceived(token)

    def _on_goodbye(self, header: tuple[Any, ...], _payload: bytes) -> Event | None:
        if self._goodbye_received:
            self._break("a second goodbye")
        sentence: str = _SENTENCE(header[1])
        self._goodbye_received = True
        return GoodbyeReceived(sentence)

    # --- output --------------------------------------------------------------------------------

    def send_hello(self) -> Buffers:
        """The first bytes of the connecting side."""
        hello = self._own_hello
        if hello is None:
            raise LocalProtocolError("the accepting side sends no hello")
        if self.state is not State.NEW:
            raise LocalProtocolError(f"hello while {self.state.value}")
        about = fields.pack_plain(hello.about)
        buffers = self._frame(
            (
                Kind.HELLO,
                MAGIC,
                hello.versions,
                hello.role,
                hello.cluster,
                hello.number,
                hello.host[:HOST_MAX_CHARACTERS],
                about,
            )
        )
        self.state = State.HELLO_SENT
        return buffers

    def send_welcome(self, welcome: Welcome) -> Buffers:
        """Answers HelloReceived; the session is open."""
        if self.state is not State.HELLO_RECEIVED:
            raise LocalProtocolError(f"welcome while {self.state.value}")
        assert isinstance(self.peer, Hello)
        if welcome.version not in self.peer.versions:
            raise LocalProtocolError(f"welcome to version {welcome.version}, not offered")
        host = welcome.host[:HOST_MAX_CHARACTERS]
        header = (Kind.WELCOME, welcome.version, welcome.cluster, welcome.number, host)
        buffers = self._frame(header)
        self._open(welcome.version)
        return buffers

    def send_refuse(self, refusal: Refusal, sentence: str) -> Buffers:
        """Answers HelloReceived; write it and close the transport."""
        if self.state is not State.HELLO_RECEIVED:
            raise LocalProtocolError(f"refusal while {self.state.value}")
        buffers = self._frame((Kind.REFUSE, refusal, sentence[:SENTENCE_MAX_CHARACTERS]))
        self.state = State.ENDED
        return buffers

    def send_request(
        self, request: Request, payload: Data = b"", *, deadline_ms: int
    ) -> tuple[int, Buffers]:
        """The request's id, ascending from 1, and what to write.

        payload      content; not copied, and not to be changed until it is written.
        deadline_ms  time that is left, 1 .. DEADLINE_MAX_MS.
        LocalProtocolError  not open, too many outstanding, not permitted, or a bad argument.
        """
        self._check_may_send(Kind.REQUEST)
        if self._goodbye_sent or self._goodbye_received:
            raise LocalProtocolError("a request after a goodbye")
        if len(self._outstanding) >= self.limits.requests_max:
            raise LocalProtocolError(f"{self.limits.requests_max} requests wait already")
        if self._role not in REQUEST_OF_CLASS[type(request)].roles:
            raise LocalProtocolError(f"{type(request).__name__} is not for a {self._role}")
        if not 1 <= deadline_ms <= DEADLINE_MAX_MS:
            raise LocalProtocolError(f"deadline of {deadline_ms} ms")
        request_id = self._last_request_id + 1
        try:
            messages.check_payload(request, len(payload))
            value = messages.encode_request(request)
            buffers = self._frame((Kind.REQUEST, request_id, deadline_ms, value), payload)
        except ValueError as exc:
            raise LocalProtocolError(str(exc)) from exc
        self._last_request_id = request_id
        self._outstanding[request_id] = request
        return request_id, buffers

    def send_cancel(self, request_id: int) -> Buffers:
        """We no longer want it; its one answer still comes. Nothing to write when it came already.

        LocalProtocolError  an id that was never used.
        """
        self._check_may_send(Kind.CANCEL)
        if not 1 <= request_id <= self._last_request_id:
            raise LocalProtocolError(f"cancels request {request_id}, which was never sent")
        if request_id not in self._outstanding:
            return []
        return self._frame((Kind.CANCEL, request_id))

    def send_answer(self, request_id: int, value: Any, payload: Data = b"") -> Buffers:
        """The answer to a request: ``value`` as its RequestType says.

        LocalProtocolError  the request waits for no answer, or the answer can't travel (too large:
                            send an error instead).
        """
        self._check_may_send(Kind.ANSWER)
        request = self._owed(request_id).request
        if request is None:
            raise LocalProtocolError(f"request {request_id} was not understood: send an error")
        if len(payload) and not REQUEST_OF_CLASS[type(request)].answer_payload:
            raise LocalProtocolError(f"an answer to {type(request).__name__} with a payload")
        try:
            answer = messages.encode_answer(request, value)
            buffers = self._frame((Kind.ANSWER, request_id, answer), payload)
        except ValueError as exc:
            raise LocalProtocolError(f"answer to {type(request).__name__}: {exc}") from exc
        if type(request) is Subscribe:
            self._peer_subscribed = True
        self._settle(request_id)
        return buffers

    def send_error(self, request_id: int, error: BaseException) -> Buffers:
        """An error as the answer: the other side raises the same class (failures.py)."""
        self._check_may_send(Kind.ERROR)
        self._owed(request_id)
        buffers = self._frame((Kind.ERROR, request_id, failure_of(error)))
        self._settle(request_id)
        return buffers

    def send_push(self, push: Push) -> Buffers:
        """To a subscriber; ``push.sequence`` is ``push_sequence`` + 1."""
        self._check_may_send(Kind.PUSH)
        if not self._peer_subscribed:
            raise LocalProtocolError("a push to a peer that has not subscribed")
        if push.sequence != self._push_sent + 1:
            raise LocalProtocolError(f"push {push.sequence} after push {self._push_sent}")
        buffers = self._frame((Kind.PUSH, messages.encode_push(push)))
        self._push_sent = push.sequence
        return buffers

    def send_acknowledge(self, sequence: int) -> Buffers:
        """All pushes up to ``sequence`` have taken effect: no cache of ours says otherwise."""
        self._check_may_send(Kind.ACKNOWLEDGE)
        if not self._acknowledged < sequence <= self._push_received:
            raise LocalProtocolError(f"acknowledges push {sequence}")
        self._acknowledged = sequence
        return self._frame((Kind.ACKNOWLEDGE, sequence))

    def send_peer(self, message: tuple[Any, ...], payload: Data = b"") -> Buffers:
        """One node to another, without an answer; ``message`` of plain values, no maps."""
        self._check_may_send(Kind.PEER)
        try:
            return self._frame((Kind.PEER, message), payload)
        except ValueError as exc:
            raise LocalProtocolError(f"peer message: {exc}") from exc

    def send_ping(self, token: int) -> Buffers:
        """The pong brings ``token`` (0 .. TOKEN_MAX) back."""
        self._check_may_send(Kind.PING)
        if not 0 <= token <= TOKEN_MAX or len(self._pings) >= PINGS_MAX:
            raise LocalProtocolError(f"ping {token} with {len(self._pings)} pongs missing")
        self._pings.append(token)
        return self._frame((Kind.PING, token))

    def send_pong(self, token: int) -> Buffers:
        """Answers PingReceived, in the order in which they came."""
        self._check_may_send(Kind.PONG)
        if not self._pings_of_peer or self._pings_of_peer[0] != token:
            raise LocalProtocolError(f"pong {token} without its ping")
        self._pings_of_peer.popleft()
        return self._frame((Kind.PONG, token))

    def send_goodbye(self, sentence: str) -> Buffers:
        """No more requests, neither way; answer what is under way, then close."""
        self._check_may_send(Kind.GOODBYE)
        if self._goodbye_sent:
            raise LocalProtocolError("a second goodbye")
        self._goodbye_sent = True
        return self._frame((Kind.GOODBYE, sentence[:SENTENCE_MAX_CHARACTERS]))

    # --- inside --------------------------------------------------------------------------------

    def _open(self, version: int) -> None:
        self.version = version
        self.state = State.OPEN
        self._parser.limits = self.limits.after_welcome

    def _check_may_send(self, kind: Kind) -> None:
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"{kind.name} while {self.state.value}")
        rule = KIND_RULES[kind]
        if rule.sender_is_node and self._role is not Role.NODE:
            raise LocalProtocolError(f"{kind.name} from a {self._role}")
        if rule.receiver_is_node and self._peer_role is not Role.NODE:
            raise LocalProtocolError(f"{kind.name} to a {self._peer_role}")

    def _owed(self, request_id: int) -> _Unanswered:
        unanswered = self._unanswered.get(request_id)
        if unanswered is None:
            raise LocalProtocolError(f"request {request_id} waits for no answer")
        return unanswered

    def _settle(self, request_id: int) -> None:
        self._unanswered_bytes -= self._unanswered.pop(request_id).payload_bytes

    def _frame(self, header: tuple[Any, ...], payload: Data = b"") -> Buffers:
        opened = self.state is State.OPEN
        limits = self.limits.after_welcome if opened else self.limits.before_welcome
        return encode_frame(header, payload, limits)

    def _break(self, sentence: str, cause: Exception | None = None) -> NoReturn:
        self.state = State.BROKEN
        error = RemoteProtocolError(sentence)
        self._parser.kill(error)
        raise error from cause


_VERSION = fields.integer(1, 65535)
_REQUEST_ID = fields.integer(1, INT64_MAX)
_SEQUENCE = fields.integer(1, INT64_MAX)
_DEADLINE = fields.integer(1, DEADLINE_MAX_MS)
_TOKEN = fields.integer(0, TOKEN_MAX)
_HOST = fields.text(HOST_MAX_CHARACTERS)
_SENTENCE = fields.text(SENTENCE_MAX_CHARACTERS)
_ROLE = fields.one_of(*[role.value for role in Role])
_NUMBER = fields.integer(0, NODE_NUMBER_MAX)
_CLUSTER_PATTERN = re.compile(r"[0-9a-f]{32}")


def _versions(value: Any) -> tuple[int, ...]:
    versions = fields.array(_VERSION, 64)(value)
    if not versions or list(versions) != sorted(set(versions)):
        raise ValueError("versions are not ascending")
    return versions  # type: ignore[no-any-return]  # checked just above


def _cluster(value: Any) -> str:
    if type(value) is not str or not _CLUSTER_PATTERN.fullmatch(value):
        raise ValueError("a cluster id is 32 hex digits")
    return value


def _cluster_or_any(value: Any) -> str:
    return "" if value == "" else _cluster(value)


_Handle = Callable[[Session, tuple[Any, ...], bytes], Event | None]
_HANDLES: dict[Kind, _Handle] = {
    Kind.HELLO: Session._on_hello,
    Kind.WELCOME: Session._on_welcome,
    Kind.REFUSE: Session._on_refuse,
    Kind.REQUEST: Session._on_request,
    Kind.ANSWER: Session._on_answer,
    Kind.ERROR: Session._on_error,
    Kind.CANCEL: Session._on_cancel,
    Kind.PUSH: Session._on_push,
    Kind.ACKNOWLEDGE: Session._on_acknowledge,
    Kind.PEER: Session._on_peer,
    Kind.PING: Session._on_ping,
    Kind.PONG: Session._on_pong,
    Kind.GOODBYE: Session._on_goodbye,
}
# By plain integer: (kind, rule, elements of the header, handler).
_HANDLERS: dict[int, tuple[Kind, KindRule, int, _Handle]] = {
    int(kind): (kind, rule, 1 + len(rule.fields), _HANDLES[kind])
    for kind, rule in KIND_RULES.items()
}
