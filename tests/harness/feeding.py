"""What a transport does with bytes that came: into the room that a protocol gives for them."""

from __future__ import annotations

from typing import Protocol


class Receiver(Protocol):
    """What of asyncio.BufferedProtocol matters here."""

    def get_buffer(self, sizehint: int) -> memoryview: ...

    def buffer_updated(self, nbytes: int) -> None: ...


def feed(protocol: Receiver, data: bytes) -> None:
    """All of ``data`` arrives, in pieces as large as the protocol has room for."""
    while data:
        room = protocol.get_buffer(-1)
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        protocol.buffer_updated(count)
