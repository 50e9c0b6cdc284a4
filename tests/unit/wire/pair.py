"""Two sessions joined in memory: every byte one sends reaches the other, in chunks of choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydi_node.wire.events import Event
from pydi_node.wire.frames import Buffers
from pydi_node.wire.messages import Request, Role
from pydi_node.wire.session import Limits, Session
from tests.unit.wire import samples

PROTOCOL_LIMITS = Limits()
Chunker = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterable[bytes]:
    return [data]


def single_bytes(data: bytes) -> Iterable[bytes]:
    return [data[position : position + 1] for position in range(len(data))]


def join(buffers: Buffers) -> bytes:
    return b"".join(buffers)


class ConnectionPair:
    """``mount`` (or whatever connects) and ``node``; ``trace`` holds every event, in order."""

    def __init__(
        self, role: Role = Role.MOUNT, *, chunks: Chunker = whole, limits: Limits = PROTOCOL_LIMITS
    ) -> None:
        self.mount = Session.connecting(samples.hello(role), limits)
        self.node = Session.accepting(limits)
        self.chunks = chunks
        self.trace: list[Event] = []

    def to_node(self, buffers: Buffers) -> list[Event]:
        return self._move(buffers, self.node)

    def to_mount(self, buffers: Buffers) -> list[Event]:
        return self._move(buffers, self.mount)

    def _move(self, buffers: Buffers, receiver: Session) -> list[Event]:
        events: list[Event] = []
        for chunk in self.chunks(join(buffers)):
            receiver.receive_data(chunk)
            events.extend(receiver.events())
        self.trace.extend(events)
        return events

    def open(self) -> ConnectionPair:
        self.to_node(self.mount.send_hello())
        self.to_mount(self.node.send_welcome(samples.WELCOME))
        return self

    def request(self, request: Request, payload: bytes = b"") -> int:
        """Ids are the same on both sides; the node's event must be the request itself."""
        request_id, buffers = self.mount.send_request(request, payload, deadline_ms=1000)
        (event,) = self.to_node(buffers)
        assert (event.request_id, event.request, event.payload) == (  # type: ignore[union-attr]
            request_id, request, payload,
        )  # fmt: skip
        return request_id

    def call(self, request: Request, payload: bytes, value: Any, answer: bytes = b"") -> Event:
        request_id = self.request(request, payload)
        (event,) = self.to_mount(self.node.send_answer(request_id, value, answer))
        return event
