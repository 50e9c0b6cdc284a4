"""Messages to plain values and back, and whatever else a peer may send."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.consensus import codec
from pydi_node.consensus.types import (
    MEMBERS_MAX,
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
    HeartbeatResponse,
    Member,
    Membership,
    Message,
    ReadRequest,
    ReadResponse,
    SnapshotAck,
    SnapshotChunk,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pydi_node.errors import RemoteProtocolError
from tests.unit.consensus.simulation import Dice, Simulation

MEMBERSHIP = Membership((Member(1, True), Member(2, True, session=7), Member(9, False, True, 12)))
META = SnapshotMeta(40, 3, MEMBERSHIP)

EXAMPLES: list[Message] = [
    VoteRequest(1, 2, 5, 10, 4, pre=True),
    VoteRequest(1, 2, 5, 10, 4, transfer=True),
    VoteResponse(2, 1, 5, True, True),
    AppendRequest(1, 2, 5, 7, 0, 0, 3, ()),
    AppendRequest(
        1, 2, 5, 7, 10, 4, 3,
        (
            Entry(11, 4, EntryKind.COMMAND, b"\x00\xff" * 50),
            Entry(12, 5, EntryKind.EMPTY, b""),
            Entry(13, 5, EntryKind.MEMBERSHIP, codec.pack_membership(MEMBERSHIP)),
        ),
    ),
    AppendResponse(2, 1, 5, 7, 11, True, 9, 4),
    HeartbeatRequest(1, 2, 5, 7, 3, 99),
    HeartbeatResponse(2, 1, 5, 7, 99),
    ReadRequest(2, 1, 5, 1 << 62),
    ReadResponse(1, 2, 5, 1 << 62, 11),
    TimeoutNow(1, 2, 5),
    SnapshotChunk(1, 2, 5, 7, b"id", META, 100, 96, b"tail"),
    SnapshotAck(2, 1, 5, 7, b"id", 100),
]  # fmt: skip


def through_msgpack(value: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(value), use_list=True)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back(message: Message) -> None:
    """Encode, msgpack, decode gives an equal message, and entries as entries."""
    decoded = codec.decode(through_msgpack(codec.encode(message)))
    assert decoded == message
    if isinstance(decoded, AppendRequest):
        assert all(type(e) is Entry and type(e.kind) is EntryKind for e in decoded.entries)


def test_examples_cover_every_message() -> None:
    """A message added later needs an example here."""
    assert {type(message) for message in EXAMPLES} == set(codec._FORMS)


def test_encoded_messages_are_plain() -> None:
    """Only integers, booleans, bytes and tuples leave: no subclass that msgpack could refuse."""

    def check(value: Any) -> None:
        if isinstance(value, tuple):
            assert type(value) is tuple
            for item in value:
                check(item)
        else:
            assert type(value) in (int, bool, bytes), value

    for message in EXAMPLES:
        check(codec.encode(message))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=30,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(plain)
def test_any_value_decodes_or_is_refused(value: Any) -> None:
    """Nothing but RemoteProtocolError comes out for a value that is no message."""
    with pytest.raises(RemoteProtocolError):
        codec.decode(value)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 40), plain), max_size=3))
def test_a_damaged_message_decodes_or_is_refused(
    message: Message, damages: list[tuple[int, Any]]
) -> None:
    """A real message with parts replaced is a well-formed message or RemoteProtocolError; and
    what decodes encodes to the same again."""
    value = through_msgpack(codec.encode(message))
    for place, replacement in damages:
        _replace(value, place, replacement)
    try:
        decoded = codec.decode(value)
    except RemoteProtocolError:
        return
    assert codec.decode(codec.encode(decoded)) == decoded


def _replace(value: list[Any], place: int, replacement: Any) -> None:
    """Put ``replacement`` at the place-th position, counted depth first."""
    stack: list[tuple[list[Any], int]] = []

    def walk(items: list[Any]) -> None:
        for at, item in enumerate(items):
            stack.append((items, at))
            if isinstance(item, list):
                walk(item)

    walk(value)
    items, at = stack[place % len(stack)]
    items[at] = replacement


def mutated(message: Message, **fields: Any) -> Any:
    """The plain form of ``message`` with some fields replaced by plain values."""
    value = list(codec.encode(message))
    names = [name for name, _, _ in codec._FORMS[type(message)][1]]
    for name, field in fields.items():
        value[names.index(name) + 1] = field
    return value


APPEND = EXAMPLES[4]
CHUNK = EXAMPLES[11]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (mutated(APPEND, entries=[[6, 0, b""]]), "entry of term 6"),
        (mutated(APPEND, entries=[[3, 0, b""]]), "go back"),
        (mutated(APPEND, entries=[[5, 0, b""], [4, 0, b""]]), "go back"),
        (mutated(APPEND, entries=[[0, 0, b""]]), "term is out of range"),
        (mutated(APPEND, entries=[[5, 9, b""]]), "unknown kind"),
        (mutated(APPEND, entries=[[5, True, b""]]), "unknown kind"),
        (mutated(APPEND, entries=[[5, 0, "text"]]), "data"),
        (mutated(APPEND, entries=[[5, 1, b"x"]]), "empty entry with data"),
        (mutated(APPEND, entries=[[5, 2, b"x"]]), "too short"),
        (mutated(APPEND, entries=[[5, 2, codec.pack_membership(Membership())]]), "without voters"),
        (mutated(APPEND, prev_index=0), "term 0"),
        (mutated(APPEND, prev_index=(1 << 63) - 1), "not an integer"),
        (mutated(APPEND, term=True), "not an integer"),
        (mutated(APPEND, sender=0), "not an integer"),
        (mutated(CHUNK, data=b""), "without id or data"),
        (mutated(CHUNK, snapshot_id=b""), "without id or data"),
        (mutated(CHUNK, offset=97), "beyond"),
        (mutated(CHUNK, meta=[0, 3, []]), "impossible snapshot"),
        (mutated(CHUNK, meta=[4, 6, codec.encode_snapshot_meta(META)[2]]), "impossible snapshot"),
        (mutated(CHUNK, meta=[4, 3, [[2, True, False, 0], [1, True, False, 0]]]), "ascending"),
        (mutated(CHUNK, meta=[4, 3, [[2, True, True, 0]]]), "to be promoted"),
        (
            mutated(CHUNK, meta=[4, 3, [[n, True, False, 0] for n in range(1, 7)]]),
            "more than 5 voters",
        ),
        (
            mutated(CHUNK, meta=[4, 3, [[n, False, False, 0] for n in range(1, MEMBERS_MAX + 2)]]),
            "at most 256 members",
        ),
    ],
)
def test_impossible_content_is_refused(value: Any, complaint: str) -> None:
    """What no correct core sends is refused with what is wrong about it."""
    with pytest.raises(RemoteProtocolError, match=complaint):
        codec.decode(value)


def test_membership_data_round_trip_and_damage() -> None:
    """The log's form of a membership comes back; no damage of it gives anything but ValueError."""
    data = codec.pack_membership(MEMBERSHIP)
    assert codec.unpack_membership(data) == MEMBERSHIP
    dice = Dice(4)
    for _ in range(3_000):
        damaged = bytearray(data)
        for _ in range(dice.between(1, 3)):
            damaged[dice.below(len(damaged))] = dice.below(256)
        del damaged[len(damaged) - dice.pick([0, 0, 1, 5]) :]
        try:
            codec.unpack_membership(bytes(damaged))
        except ValueError:
            pass  # refused, as it should be; what passes is another well-formed membership


def test_snapshot_meta_round_trip() -> None:
    """The form for the disk comes back through msgpack."""
    plain_meta = through_msgpack(codec.encode_snapshot_meta(META))
    assert codec.decode_snapshot_meta(plain_meta) == META
    with pytest.raises(ValueError, match="not \\(index, term, members\\)"):
        codec.decode_snapshot_meta([1, 2])


def test_a_core_survives_any_decodable_message() -> None:
    """Whatever passes ``decode`` leaves a follower and a leader running, or raises
    RemoteProtocolError; only a contradiction to what is committed may stop the node."""
    dice = Dice(6)
    for _ in range(2_000):
        simulation = Simulation(1, voters=3, joiners=0)
        raft = simulation.nodes[2].raft
        assert raft is not None
        if dice.percent(50):
            raft._campaign(transfer=True)
        value = through_msgpack(codec.encode(dice.pick(EXAMPLES)))
        value[2] = 2
        value[1] = 1
        value[3] = dice.below(4)
        for _ in range(dice.below(3)):
            value[dice.between(3, len(value) - 1)] = dice.pick([0, 1, 2, 5, True, False])
        try:
            raft.step(codec.decode(value))
        except RemoteProtocolError:
            continue
        while raft.has_ready():
            ready = raft.ready()
            if ready.must_persist:
                raft.persisted(ready.number)
