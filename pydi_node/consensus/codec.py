"""Messages as plain tuples for msgpack, and the strict way back.

``encode`` gives tuples of integers, booleans and bytes only. ``decode`` takes whatever a peer
sent and gives a well-formed message or RemoteProtocolError, never anything else: what passed it
may be handed to ``Raft.step``. That the sender is who it says is the session's business.

``pack_membership`` is the log's own format of a membership entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pydi_node.consensus.types import (
    ENTRIES_PER_MESSAGE_MAX,
    ENTRY_DATA_MAX_BYTES,
    MEMBERS_MAX,
    SNAPSHOT_ID_MAX_BYTES,
    VOTERS_MAX,
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
from pydi_node.ids import INT64_MAX, NODE_NUMBER_MAX, LogIndex, NodeNumber, Term

MEMBERSHIP_FORMAT = 1
_MEMBERSHIP_HEAD = struct.Struct(">BH")  # format, count of members
_MEMBER = struct.Struct(">HBQ")  # number, flags, session
_VOTER_FLAG = 1
_PROMOTE_FLAG = 2

# An index with room for the entries of one message above it.
_INDEX_MAX = INT64_MAX - ENTRIES_PER_MESSAGE_MAX
CHUNK_DATA_MAX_BYTES = ENTRY_DATA_MAX_BYTES


def encode(message: Message) -> tuple[Any, ...]:
    """The message as (code, field, field …), nothing but integers, booleans, bytes and tuples."""
    code, fields = _FORMS[type(message)]
    return (code, *[write(getattr(message, name)) for name, write, _ in fields])


def decode(value: Any) -> Message:
    """The message in a peer's array; RemoteProtocolError, saying what is wrong, for all else."""
    if not isinstance(value, (list, tuple)) or not value or type(value[0]) is not int:
        raise RemoteProtocolError("raft: a message is an array beginning with its code")
    cls = _CLASSES.get(value[0])
    if cls is None:
        raise RemoteProtocolError("raft: unknown message code")
    _, fields = _FORMS[cls]
    if len(value) != len(fields) + 1:
        raise RemoteProtocolError(f"raft: {cls.__name__} has {len(value) - 1} fields")
    arguments = []
    for (name, _, read), field in zip(fields, value[1:], strict=True):
        try:
            arguments.append(read(field))
        except ValueError as exc:
            raise RemoteProtocolError(f"raft: {cls.__name__}.{name}: {exc}") from exc
    message: Message = cls(*arguments)
    if isinstance(message, AppendRequest):
        return _checked_append(message)
    if isinstance(message, SnapshotChunk):
        return _checked_chunk(message)
    return message


def pack_membership(membership: Membership) -> bytes:
    """The data of a MEMBERSHIP entry; ``unpack_membership`` reverses it."""
    parts = [_MEMBERSHIP_HEAD.pack(MEMBERSHIP_FORMAT, len(membership.members))]
    for member in membership.members:
        flags = _VOTER_FLAG * member.voter | _PROMOTE_FLAG * member.promote
        parts.append(_MEMBER.pack(member.number, flags, member.session))
    return b"".join(parts)


def unpack_membership(data: bytes) -> Membership:
    """The membership in an entry's data; ValueError for anything malformed."""
    if len(data) < _MEMBERSHIP_HEAD.size:
        raise ValueError("membership: too short")
    version, count = _MEMBERSHIP_HEAD.unpack_from(data)
    if version != MEMBERSHIP_FORMAT:
        raise ValueError(f"membership: unknown format {version}")
    if len(data) != _MEMBERSHIP_HEAD.size + count * _MEMBER.size:
        raise ValueError("membership: wrong length")
    rows = []
    for number, flags, session in _MEMBER.iter_unpack(data[_MEMBERSHIP_HEAD.size :]):
        if flags & ~(_VOTER_FLAG | _PROMOTE_FLAG):
            raise ValueError(f"membership: unknown flags {flags}")
        rows.append((number, bool(flags & _VOTER_FLAG), bool(flags & _PROMOTE_FLAG), session))
    return _read_membership(rows)


def encode_snapshot_meta(meta: SnapshotMeta) -> tuple[Any, ...]:
    """(index, term, members) as plain values, for messages and for the disk."""
    members = tuple((int(m.number), m.voter, m.promote, m.session) for m in meta.membership.members)
    return (meta.index, meta.term, members)


def decode_snapshot_meta(value: Any) -> SnapshotMeta:
    """The reverse of ``encode_snapshot_meta``; ValueError for anything malformed."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError("not (index, term, members)")
    index, term, members = value
    return SnapshotMeta(
        LogIndex(_read_index(index)), Term(_read_number(term)), _read_membership(members)
    )


# --- one field out: a plain value; one field in: checked, ValueError with the reason --------------


def _plain(value: Any) -> Any:
    return value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"not an integer {low} .. {high}")
        return value

    return read


def _octets(length_max: int) -> Callable[[Any], bytes]:
    def read(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > length_max:
            raise ValueError(f"not at most {length_max} bytes")
        return value

    return read


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not a boolean")
    return value


_read_node = _integer(1, NODE_NUMBER_MAX)
_read_number = _integer(0, INT64_MAX)
_read_index = _integer(0, _INDEX_MAX)


def _read_membership(value: Any) -> Membership:
    if not isinstance(value, (list, tuple)) or len(value) > MEMBERS_MAX:
        raise ValueError(f"not at most {MEMBERS_MAX} members")
    members: list[Member] = []
    for row in value:
        if not isinstance(row, (list, tuple)) or len(row) != 4:
            raise ValueError("a member has four fields")
        member = Member(
            NodeNumber(_read_node(row[0])),
            _read_bool(row[1]),
            _read_bool(row[2]),
            LogIndex(_read_index(row[3])),
        )
        if member.voter and member.promote:
            raise ValueError(f"member {member.number} is a voter to be promoted")
        if members and members[-1].number >= member.number:
            raise ValueError("members not ascending")
        members.append(member)
    if sum(m.voter for m in members) > VOTERS_MAX:
        raise ValueError(f"more than {VOTERS_MAX} voters")
    return Membership(tuple(members))


def _write_entries(entries: tuple[Entry, ...]) -> tuple[Any, ...]:
    # The index is implied by the place, prev_index + 1 and up.
    return tuple([(term, int(kind), data) for _, term, kind, data in entries])


_KINDS = {int(kind): kind for kind in EntryKind}


def _read_entries(value: Any) -> list[tuple[int, EntryKind, bytes]]:
    """Rows of (term, kind, data); ``_checked_append`` makes entries of them."""
    if not isinstance(value, (list, tuple)) or len(value) > ENTRIES_PER_MESSAGE_MAX:
        raise ValueError(f"not at most {ENTRIES_PER_MESSAGE_MAX} entries")
    rows = []
    for row in value:
        if not isinstance(row, (list, tuple)) or len(row) != 3:
            raise ValueError("an entry has three fields")
        term, code, data = row
        if type(term) is not int or not 1 <= term <= INT64_MAX:
            raise ValueError("an entry's term is out of range")
        kind = _KINDS.get(code) if type(code) is int else None
        if kind is None:
            raise ValueError("unknown kind of entry")
        if type(data) is not bytes or len(data) > ENTRY_DATA_MAX_BYTES:
            raise ValueError(f"an entry's data is not at most {ENTRY_DATA_MAX_BYTES} bytes")
        if kind is EntryKind.MEMBERSHIP:
            if not unpack_membership(data).voters:
                raise ValueError("a membership without voters")
        elif kind is EntryKind.EMPTY and data:
            raise ValueError("an empty entry with data")
        rows.append((term, kind, data))
    return rows


def _checked_append(message: AppendRequest) -> AppendRequest:
    rows: Any = message.entries
    term: int = message.prev_term
    entries = []
    for index, row in enumerate(rows, message.prev_index + 1):
        if row[0] < term:
            raise RemoteProtocolError("raft: terms of entries go back")
        term = row[0]
        entries.append(Entry(LogIndex(index), term, row[1], row[2]))  # type: ignore[arg-type]  # Term
    if term > message.term:
        raise RemoteProtocolError(f"raft: entry of term {term} in a message of {message.term}")
    if (message.prev_index == 0) != (message.prev_term == 0):
        raise RemoteProtocolError("raft: the entry before the first has term 0, no other has")
    return AppendRequest(
        message.sender, message.to, message.term, message.session,
        message.prev_index, message.prev_term, message.commit, tuple(entries),
    )  # fmt: skip


def _checked_chunk(message: SnapshotChunk) -> SnapshotChunk:
    if not message.snapshot_id or not message.data:
        raise RemoteProtocolError("raft: snapshot chunk without id or data")
    if message.offset + len(message.data) > message.size:
        raise RemoteProtocolError("raft: snapshot chunk beyond the snapshot's end")
    meta = message.meta
    if meta.index < 1 or not 1 <= meta.term <= message.term or not meta.membership.voters:
        raise RemoteProtocolError("raft: impossible snapshot")
    return message


_Field = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]  # name, write, read

_HEAD: tuple[_Field, ...] = (
    ("sender", int, _read_node), ("to", int, _read_node), ("term", _plain, _read_number),
)  # fmt: skip
_SESSION: _Field = ("session", _plain, _read_index)
_SNAPSHOT_ID: _Field = ("snapshot_id", _plain, _octets(SNAPSHOT_ID_MAX_BYTES))

# Codes and the order of fields are the wire format: never renumber, only add.
_FORMS: dict[type[Any], tuple[int, tuple[_Field, ...]]] = {
    VoteRequest: (1, (
        *_HEAD, ("last_index", _plain, _read_index), ("last_term", _plain, _read_number),
        ("pre", _plain, _read_bool), ("transfer", _plain, _read_bool))),
    VoteResponse: (2, (*_HEAD, ("granted", _plain, _read_bool), ("pre", _plain, _read_bool))),
    AppendRequest: (3, (
        *_HEAD, _SESSION, ("prev_index", _plain, _read_index),
        ("prev_term", _plain, _read_number), ("commit", _plain, _read_index),
        ("entries", _write_entries, _read_entries))),
    AppendResponse: (4, (
        *_HEAD, _SESSION, ("index", _plain, _read_index), ("rejected", _plain, _read_bool),
        ("hint_index", _plain, _read_index), ("hint_term", _plain, _read_number))),
    HeartbeatRequest: (5, (
        *_HEAD, _SESSION, ("commit", _plain, _read_index),
        ("read_round", _plain, _read_number))),
    HeartbeatResponse: (6, (*_HEAD, _SESSION, ("read_round", _plain, _read_number))),
    ReadRequest: (7, (*_HEAD, ("number", _plain, _read_number))),
    ReadResponse: (8, (
        *_HEAD, ("number", _plain, _read_number), ("index", _plain, _read_index))),
    TimeoutNow: (9, _HEAD),
    SnapshotChunk: (10, (
        *_HEAD, _SESSION, _SNAPSHOT_ID, ("meta", encode_snapshot_meta, decode_snapshot_meta),
        ("size", _plain, _integer(1, INT64_MAX)), ("offset", _plain, _read_number),
        ("data", _plain, _octets(CHUNK_DATA_MAX_BYTES)))),
    SnapshotAck: (11, (*_HEAD, _SESSION, _SNAPSHOT_ID, ("offset", _plain, _read_number))),
}  # fmt: skip

_CLASSES: dict[int, type[Any]] = {code: cls for cls, (code, _) in _FORMS.items()}
