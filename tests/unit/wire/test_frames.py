"""Frames: any chunking gives the same frames, any bytes give frames or RemoteProtocolError."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.errors import LocalProtocolError, RemoteProtocolError
from pydi_node.wire import codec
from pydi_node.wire.frames import (
    LIMITS_AFTER_WELCOME,
    LIMITS_BEFORE_WELCOME,
    MIB,
    Frame,
    FrameLimits,
    FrameParser,
    encode_frame,
)

SMALL = FrameLimits(256, 512)


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


def put(parser: FrameParser, data: bytes) -> None:
    room = parser.room(len(data))
    room[: len(data)] = data
    parser.received(len(data))


def parse_all(parser: FrameParser, chunks: list[bytes]) -> list[Frame]:
    frames = []
    for chunk in chunks:
        put(parser, chunk)
        while (frame := parser.next_frame()) is not None:
            frames.append(frame)
    return frames


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 99) | st.binary(max_size=9)), st.binary()), max_size=5
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_chunking_gives_the_same_frames(contents, cuts):
    """Where the transport cuts the stream changes nothing: at random, nowhere, everywhere."""
    frames = [Frame((1, *header), payload) for header, payload in contents]
    stream = b"".join(
        b"".join(encode_frame(frame.header, frame.payload, LIMITS_AFTER_WELCOME))
        for frame in frames
    )
    for chunks in (split(stream, cuts), [stream], split(stream, list(range(len(stream))))):
        parser = FrameParser(LIMITS_AFTER_WELCOME)
        assert parse_all(parser, chunks) == frames
        assert parser.buffered_bytes == 0


def test_large_payload_arrives_whole_in_uneven_chunks():
    """A payload of 4 MiB grows the buffer, and comes out of it as it was."""
    payload = bytes(range(256)) * (4 * MIB // 256)
    stream = b"".join(encode_frame((1,), payload, LIMITS_AFTER_WELCOME))
    chunks, position, size = [], 0, 1
    while position < len(stream):
        chunks.append(stream[position : position + size])
        position += size
        size = size * 3 % 300_007 + 1
    assert parse_all(FrameParser(LIMITS_AFTER_WELCOME), chunks) == [Frame((1,), payload)]


def test_payload_is_handed_on_without_a_copy():
    """The buffers to write hold the caller's own object, so that writelines can gather it."""
    payload = memoryview(bytearray(1000))
    assert encode_frame((1,), payload, LIMITS_AFTER_WELCOME)[1] is payload


def test_nothing_to_write_for_an_empty_payload():
    """An empty payload adds no buffer: transports differ in how they take empty ones."""
    assert len(encode_frame((1,), b"", LIMITS_AFTER_WELCOME)) == 1


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(struct.pack(">II", 0, 0), id="empty header"),
        pytest.param(struct.pack(">II", SMALL.header_max_bytes + 1, 0), id="oversize header"),
        pytest.param(struct.pack(">II", 1, SMALL.payload_max_bytes + 1), id="oversize payload"),
        pytest.param(struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF), id="largest lengths"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(raw(b"\x01"), id="not an array"),
        pytest.param(raw(b"\xc1"), id="reserved byte"),
        pytest.param(raw(b"\x92\x01"), id="header cut off"),
        pytest.param(raw(b"\x91\x01\x01"), id="bytes after the header"),
        pytest.param(raw(b"\x91\xa1\xff"), id="text that is not UTF-8"),
        pytest.param(raw(b"\x91\x80"), id="empty map"),
        pytest.param(raw(msgpack.packb([{"a": 1}])), id="map"),
        pytest.param(raw(msgpack.packb([msgpack.ExtType(5, b"")])), id="empty extension"),
        pytest.param(raw(msgpack.packb([msgpack.ExtType(5, b"ab")])), id="extension"),
        pytest.param(raw(msgpack.packb([msgpack.Timestamp(1)])), id="time stamp"),
        pytest.param(raw(b"\xdd\xff\xff\xff\xff"), id="array of 4 Gi elements"),
        pytest.param(raw(b"\x91\xc6\xff\xff\xff\xff"), id="4 GiB of bytes"),
        pytest.param(raw(b"\x91\xdb\xff\xff\xff\xff"), id="4 GiB of text"),
    ],
)
def test_bad_frame_kills_the_parser(stream):
    """A malformed frame raises, and a good one after it no longer counts."""
    parser = FrameParser(SMALL)
    with pytest.raises(RemoteProtocolError):
        parse_all(parser, [stream])
    put(parser, raw(b"\x91\x01"))
    with pytest.raises(RemoteProtocolError):
        parser.next_frame()
    assert parser.buffered_bytes == 0


def test_nesting_bomb_is_refused():
    """Arrays nested deeper than msgpack's stack end in RemoteProtocolError, not a crash."""
    parser = FrameParser(LIMITS_BEFORE_WELCOME)
    with pytest.raises(RemoteProtocolError):
        parse_all(parser, [raw(b"\x91" * 60_000 + b"\x01")])


def test_lengths_are_refused_before_the_content_arrives():
    """Eight bytes are enough to refuse: nothing of an oversize frame is kept."""
    parser = FrameParser(LIMITS_BEFORE_WELCOME)
    with pytest.raises(RemoteProtocolError):
        parse_all(parser, [struct.pack(">II", 10, 1)])
    parser = FrameParser(LIMITS_AFTER_WELCOME)
    assert parse_all(parser, [struct.pack(">II", *LIMITS_AFTER_WELCOME)]) == []


def test_header_full_of_empty_arrays_costs_little_memory():
    """4 MiB of one-byte empty arrays stay below 100 MiB: they are one shared tuple."""
    count = 4 * MIB
    stream = raw(b"\xdd" + struct.pack(">I", count) + b"\x90" * count)
    parser = FrameParser(LIMITS_AFTER_WELCOME)
    tracemalloc.start()
    put(parser, stream)
    frame = parser.next_frame()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frame is not None
    assert len(frame.header) == count
    assert peak < 100 * MIB  # as empty maps it would be 300


def test_single_bytes_cost_no_more_than_their_number():
    """100 000 chunks of one byte lie in the one buffer of their frame."""
    parser = FrameParser(LIMITS_AFTER_WELCOME)
    stream = struct.pack(">II", 1, 200_000) + b"\x90" + bytes(100_000)
    tracemalloc.start()
    parse_all(parser, [stream[position : position + 1] for position in range(len(stream))])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert parser.buffered_bytes == len(stream)
    assert held < 2 * len(stream) + 1_000_000


def test_room_for_the_rest_of_a_payload():
    """A payload is read in a few pieces, and in one once there was another one as large."""
    payload = bytes(range(256)) * (MIB // 256)
    stream = b"".join(encode_frame((1,), payload, LIMITS_AFTER_WELCOME))
    parser = FrameParser(LIMITS_AFTER_WELCOME)
    for pieces_max in (5, 1, 1):
        assert parse_all(parser, [stream[:100]]) == []
        at = 100
        while at < len(stream):
            room = parser.room()
            piece = stream[at : at + len(room)]
            room[: len(piece)] = piece
            parser.received(len(piece))
            at += len(piece)
            pieces_max -= 1
            frame = parser.next_frame()
        assert frame == Frame((1,), payload)
        assert pieces_max >= 0


def test_announcing_much_takes_little_memory():
    """The lengths of the largest frame there is, and no more: that is no reason to make room."""
    header_max, payload_max = LIMITS_AFTER_WELCOME
    announced = (header_max).to_bytes(4, "big") + (payload_max).to_bytes(4, "big")
    tracemalloc.start()
    parsers = [FrameParser(LIMITS_AFTER_WELCOME) for _ in range(10)]
    for parser in parsers:
        assert parse_all(parser, [announced]) == []
        assert len(parser.room()) > 0
    assert tracemalloc.get_traced_memory()[0] < MIB
    tracemalloc.stop()


def test_room_of_large_frames_is_given_back():
    """A connection that brought content once holds little when it has only small frames again."""
    large = b"".join(encode_frame((1,), bytes(4 * MIB), LIMITS_AFTER_WELCOME))
    small = b"".join(encode_frame((1,), b"", LIMITS_AFTER_WELCOME))
    parser = FrameParser(LIMITS_AFTER_WELCOME)
    tracemalloc.start()
    parse_all(parser, [large])
    assert tracemalloc.get_traced_memory()[0] > 4 * MIB
    parse_all(parser, [small] * 200)
    assert tracemalloc.get_traced_memory()[0] < MIB
    tracemalloc.stop()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_parse_or_raise(data, cuts):
    """Any bytes at all: frames, nothing yet, or RemoteProtocolError; never more than came in."""
    outcomes = []
    for chunks in ([data], split(data, cuts), split(data, list(range(len(data))))):
        parser = FrameParser(SMALL)
        frames: list[Frame] = []
        failed = False
        for chunk in chunks:
            put(parser, chunk)
            try:
                while (frame := parser.next_frame()) is not None:
                    frames.append(frame)
            except RemoteProtocolError:
                failed = True
            assert parser.buffered_bytes <= len(data)
        outcomes.append((frames, failed))
    # NaN is not equal to itself; its text is.
    assert len({repr(outcome) for outcome in outcomes}) == 1


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=100))
def test_any_header_bytes_parse_or_raise(header):
    """Well-framed garbage: the header decodes to an array or the peer is to blame."""
    parser = FrameParser(SMALL)
    try:
        (frame,) = parse_all(parser, [raw(header, b"payload")])
    except RemoteProtocolError:
        return
    assert type(frame.header) is tuple
    assert frame.payload == b"payload"


def test_sending_an_oversize_frame_is_our_mistake():
    """Limits hold for what we send, too: the peer would drop us for it."""
    with pytest.raises(LocalProtocolError):
        encode_frame((b"x" * 300,), b"", SMALL)
    with pytest.raises(LocalProtocolError):
        encode_frame((1,), bytes(513), SMALL)


@pytest.mark.parametrize("value", [object(), 1 << 64, {1, 2}])
def test_what_cannot_travel_is_a_value_error(value):
    """msgpack's several exceptions for our own bad values become one."""
    with pytest.raises(ValueError):
        codec.pack((value,))
