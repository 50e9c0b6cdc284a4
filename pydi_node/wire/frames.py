"""Frames: two lengths, a msgpack header, a raw payload.

    u32 header_length | u32 payload_length | header | payload        lengths big-endian

Used by session.py alone. The header says what the frame is; the payload is file content, which
never passes through msgpack and is copied once on its way in and never on its way out.
This module knows nothing of kinds, roles or order.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final, NamedTuple

from pydi_node.errors import LocalProtocolError, RemoteProtocolError
from pydi_node.wire import codec

Data = bytes | bytearray | memoryview
Buffers = list[Data]

KIB: Final = 1 << 10
MIB: Final = 1 << 20


class FrameLimits(NamedTuple):
    """Bounds that hold before a byte of the frame is kept."""

    header_max_bytes: int
    payload_max_bytes: int


# A peer that has not been welcomed may be anyone: it gets room for a hello and no content.
LIMITS_BEFORE_WELCOME: Final = FrameLimits(64 * KIB, 0)
# Header: the largest command is 65536 extents of up to 37 bytes (2.4 MiB); the largest payload is
# one chunk of 4 MiB. 64 KiB on top of each for what goes around them.
LIMITS_AFTER_WELCOME: Final = FrameLimits(4 * MIB + 64 * KIB, 4 * MIB + 64 * KIB)

_LENGTHS: Final = struct.Struct(">II")

# Smaller chunks are gathered before they are kept: a peer that sends single bytes must not make us
# hold an object of 34 bytes for each.
_GATHER_BELOW_BYTES: Final = 4 * KIB
_GATHER_MAX_BYTES: Final = 64 * KIB


class Frame(NamedTuple):
    header: tuple[Any, ...]  # plain values, arrays as tuples, no maps
    payload: bytes


def encode_frame(header: tuple[Any, ...], payload: Data, limits: FrameLimits) -> Buffers:
    """One frame as buffers to write in order; the payload (a memoryview of single
    bytes, if one) is the caller's object, not a copy.

    LocalProtocolError when it would exceed ``limits``, ValueError when the header holds what can't
    travel.
    """
    packed = codec.pack(header)
    payload_length = len(payload)
    if len(packed) > limits.header_max_bytes or payload_length > limits.payload_max_bytes:
        raise LocalProtocolError(
            f"frame of {len(packed)} + {payload_length} bytes is over the limit of "
            f"{limits.header_max_bytes} + {limits.payload_max_bytes}"
        )
    start = _LENGTHS.pack(len(packed), payload_length) + packed
    return [start, payload] if payload_length else [start]


class FrameParser:
    """Bytes in any chunks in, whole frames out.

    Holds at most one incomplete frame and the last chunk, as long as the caller takes all frames
    before it adds more. After the first bad frame it stays dead: ``next_frame`` raises again, and
    what comes in is dropped.
    """

    def __init__(self, limits: FrameLimits) -> None:
        self.limits = limits
        self._chunks: deque[bytes | bytearray] = deque()
        self._consumed = 0  # bytes of the first chunk that are taken already
        self._buffered = 0  # bytes that are not taken yet
        self._lengths: tuple[int, int] | None = None  # of the frame under way
        self._error: RemoteProtocolError | None = None
        self.header_bytes = 0  # of the last frame, packed

    @property
    def buffered_bytes(self) -> int:
        """Bytes of frames that are not complete, or not taken yet."""
        return self._buffered + (_LENGTHS.size if self._lengths is not None else 0)

    def receive(self, data: bytes) -> None:
        """Add what arrived."""
        if self._error is not None or not data:
            return
        self._buffered += len(data)
        chunks = self._chunks
        if len(data) >= _GATHER_BELOW_BYTES or not chunks:
            chunks.append(data)
            return
        last = chunks[-1]
        if type(last) is bytearray and len(last) < _GATHER_MAX_BYTES:
            last += data
        else:
            chunks.append(bytearray(data))

    def next_frame(self) -> Frame | None:
        """The next whole frame, None until more bytes came; RemoteProtocolError for a bad one."""
        if self._error is not None:
            raise RemoteProtocolError(str(self._error)) from self._error
        try:
            return self._parse()
        except RemoteProtocolError as exc:
            self.kill(exc)
            raise

    def kill(self, error: RemoteProtocolError) -> None:
        """Drop what is buffered; from now on ``next_frame`` raises ``error``'s sentence."""
        self._error = error
        self._chunks.clear()
        self._buffered = 0
        self._lengths = None

    def _parse(self) -> Frame | None:
        if self._lengths is None:
            if self._buffered < _LENGTHS.size:
                return None
            header_length, payload_length = _LENGTHS.unpack(self._take(_LENGTHS.size))
            if not 1 <= header_length <= self.limits.header_max_bytes:
                raise RemoteProtocolError(
                    f"frame header of {header_length} bytes, "
                    f"allowed are 1 .. {self.limits.header_max_bytes}"
                )
            if payload_length > self.limits.payload_max_bytes:
                raise RemoteProtocolError(
                    f"frame payload of {payload_length} bytes, "
                    f"allowed are {self.limits.payload_max_bytes}"
                )
            self._lengths = header_length, payload_length
        header_length, payload_length = self._lengths
        if self._buffered < header_length + payload_length:
            return None
        self._lengths = None
        self.header_bytes = header_length
        try:
            header = codec.unpack_header(self._take(header_length))
        except ValueError as exc:
            raise RemoteProtocolError(f"frame header is no valid msgpack: {exc}") from exc
        if type(header) is not tuple:
            raise RemoteProtocolError("frame header is not an array")
        return Frame(header, self._take(payload_length) if payload_length else b"")

    def _take(self, count: int) -> bytes:
        """The first ``count`` buffered bytes, copied once; there are that many."""
        assert 0 < count <= self._buffered, (count, self._buffered)
        self._buffered -= count
        chunks = self._chunks
        first = chunks[0]
        end = self._consumed + count
        if end <= len(first):
            taken = first[self._consumed : end]
            if end == len(first):
                chunks.popleft()
                self._consumed = 0
            else:
                self._consumed = end
            return taken if type(taken) is bytes else bytes(taken)
        parts: list[Data] = [memoryview(first)[self._consumed :]]
        missing = count - (len(first) - self._consumed)
        chunks.popleft()
        self._consumed = 0
        while missing:
            chunk = chunks[0]
            if len(chunk) <= missing:
                parts.append(chunk)
                missing -= len(chunk)
                chunks.popleft()
            else:
                parts.append(memoryview(chunk)[:missing])
                self._consumed = missing
                missing = 0
        # Copied before returning, so no view of a gathering chunk outlives this call: a bytearray
        # that has views can't grow.
        return b"".join(parts)
