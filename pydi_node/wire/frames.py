"""Frames: two lengths, a msgpack header, a raw payload.

    u32 header_length | u32 payload_length | header | payload        lengths big-endian

Used by session.py alone. The header says what the frame is; the payload is file content, which
never passes through msgpack and is copied once on its way in and never on its way out.
This module knows nothing of kinds, roles or order.
"""

from __future__ import annotations

import struct
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

# What a parser keeps without content: two TLS records. For a larger frame it makes room as that
# comes, and keeps it as long as one of so many frames needs it.
_BUFFER_BYTES: Final = 32 * KIB
_SMALL_FRAMES_MAX: Final = 64


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

    Its one buffer holds at most one incomplete frame and the start of the next, as long as the
    caller takes all frames before it adds more. After the first bad frame it stays dead:
    ``next_frame`` raises again, and what comes in is dropped.
    """

    def __init__(self, limits: FrameLimits) -> None:
        self.limits = limits
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = 0  # of what is not taken yet
        self._end = 0
        self._lengths: tuple[int, int] | None = None  # of the frame under way, taken already
        self._small_frames = 0  # in a row
        self._error: RemoteProtocolError | None = None
        self.header_bytes = 0  # of the last frame, packed

    @property
    def buffered_bytes(self) -> int:
        """Bytes of frames that are not complete, or not taken yet."""
        return self._end - self._start + (_LENGTHS.size if self._lengths is not None else 0)

    def room(self, length: int = 1) -> memoryview:
        """Where to put what comes next: at least ``length`` bytes, and what the frame under way
        still lacks, if as much as a third of that is here. Valid until the next call of any method;
        ``received`` says how much came.

        So a payload is read with few calls, and copied once, on its way out; and whoever announces
        much gets no memory for it before it sends it.
        """
        held = self._end - self._start
        lacking = sum(self._lengths) - held if self._lengths else 0
        self._make_room(max(length, min(lacking, 2 * held + _BUFFER_BYTES) + _BUFFER_BYTES // 2))
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """So many bytes were put into ``room``."""
        if self._error is None:
            self._end += count

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
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._lengths = None

    def _parse(self) -> Frame | None:
        if self._lengths is None:
            if self._end - self._start < _LENGTHS.size:
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
        if self._end - self._start < header_length + payload_length:
            return None
        self._lengths = None
        self.header_bytes = header_length
        try:
            header = codec.unpack_header(self._take(header_length))
        except ValueError as exc:
            raise RemoteProtocolError(f"frame header is no valid msgpack: {exc}") from exc
        if type(header) is not tuple:
            raise RemoteProtocolError("frame header is not an array")
        payload = self._take(payload_length) if payload_length else b""
        if header_length + payload_length > _BUFFER_BYTES:
            self._small_frames = 0
        else:
            self._small_frames += 1
        return Frame(header, payload)

    def _take(self, count: int) -> bytes:
        """The first ``count`` buffered bytes, copied; there are that many."""
        start = self._start
        self._start = start + count
        assert self._start <= self._end, (count, start, self._end)
        return bytes(self._buffer[start : self._start])

    def _make_room(self, count: int) -> None:
        """At least ``count`` bytes are free at the end of the buffer."""
        start, end, buffer = self._start, self._end, self._buffer
        held = end - start
        if held == 0:
            self._start = self._end = start = end = 0
            if len(buffer) > _BUFFER_BYTES and self._small_frames > _SMALL_FRAMES_MAX:
                self._buffer = buffer = memoryview(bytearray(_BUFFER_BYTES))
        if len(buffer) - end >= count:
            return
        if len(buffer) - held < count:
            # Not the old one made larger: whoever asked for room may still have a view of it. And
            # not by a little each time: single bytes must not cost a copy of all before.
            self._buffer = memoryview(bytearray(max(held + count, held + held // 2)))
        self._buffer[:held] = buffer[start:end]
        self._start, self._end = 0, held
