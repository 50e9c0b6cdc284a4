"""What a Session reports: frozen records, one class for each thing that can happen.

Made by session.py, matched by the node's server and by the client (``match`` and ``assert_never``
over ``Event``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from pydi_node.errors import PydiError
from pydi_node.wire.messages import Push, Request, Role


class Refusal(enum.IntEnum):
    """Why a node does not welcome a peer; the sentence beside it tells a person more."""

    OTHER = 0  # also: a reason that this version does not know
    VERSION = 1  # no protocol version in common
    CLUSTER = 2  # another cluster
    ROLE = 3  # its certificate does not permit this role or number
    NUMBER_IN_USE = 4  # another node has this number
    BUSY = 5  # too many connections; come back later, or go to another node
    STOPPING = 6  # this node is about to leave; go to another
    # The cluster goes on without this node for good: it was forgotten, or the cluster recovered
    # without it. It stops, for whatever it still decides would be a second truth.
    LEFT_BEHIND = 7


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message, from the side that opened the connection."""

    versions: tuple[int, ...]  # protocol versions it speaks, ascending
    role: Role
    cluster: str  # 32 hex digits; "" when it takes whatever cluster this is (unix socket)
    number: int  # node number; 0 unless a node
    host: str  # its machine's name, for people
    about: dict[str, Any] = field(default_factory=dict)  # plain values for status: driver, ...


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a hello; the session is open."""

    version: int  # the one both will speak, out of the hello's
    cluster: str  # 32 hex digits
    number: int  # of the node that answers
    host: str  # its machine's name, for people


@dataclass(frozen=True, slots=True)
class HelloReceived:
    hello: Hello


@dataclass(frozen=True, slots=True)
class WelcomeReceived:
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class RefuseReceived:
    refusal: Refusal
    sentence: str


@dataclass(frozen=True, slots=True)
class RequestReceived:
    request_id: int
    request: Request
    payload: bytes
    deadline_ms: int  # time left when it was sent: add it to the clock on arrival


@dataclass(frozen=True, slots=True)
class RequestNotUnderstood:
    """A request or command of a newer version: give ``error`` to ``send_error``."""

    request_id: int
    error: PydiError


@dataclass(frozen=True, slots=True)
class CancelReceived:
    request_id: int


@dataclass(frozen=True, slots=True)
class AnswerReceived:
    request_id: int
    request: Request
    value: Any  # decoded and checked, by the type that the request promises
    payload: bytes


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    request_id: int
    request: Request
    error: PydiError  # to be raised where the request was made


@dataclass(frozen=True, slots=True)
class PushReceived:
    push: Push


@dataclass(frozen=True, slots=True)
class AcknowledgeReceived:
    sequence: int  # all pushes up to this one have taken effect


@dataclass(frozen=True, slots=True)
class PeerReceived:
    message: tuple[Any, ...]  # plain values; the receiver checks them
    payload: bytes


@dataclass(frozen=True, slots=True)
class PingReceived:
    token: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    token: int


@dataclass(frozen=True, slots=True)
class GoodbyeReceived:
    sentence: str


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    truncated: bool  # in the middle of a frame, as after a crash


Event = (
    HelloReceived | WelcomeReceived | RefuseReceived | RequestReceived | RequestNotUnderstood
    | CancelReceived | AnswerReceived | ErrorReceived | PushReceived | AcknowledgeReceived
    | PeerReceived | PingReceived | PongReceived | GoodbyeReceived | ConnectionEnded
)  # fmt: skip
