"""Messages: what travels inside a session, as frozen records, and the one table of requests.

The client builds requests, the node's server answers them; session.py moves both. A request knows
its code, who may send it, whether it changes anything, whether content travels with it and what its
answer looks like; all of it stands in ``REQUESTS``, from which docs/protocol.md is made too.

Decoding checks every field (type, range, length) and raises MessageError with one sentence. What
depends on the tree, or is an ordinary user's mistake (ENOENT, ENAMETOOLONG), is an answer instead.
File content is never a field: it travels as the frame's raw payload beside the message.
This module must not know how messages are framed, numbered or sent.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydi_node import commands, records
from pydi_node.commands import Batch, Command, Commit, PutFile
from pydi_node.ids import (
    BLOB_ID_MAX,
    INT64_MAX,
    BlobId,
    ClientId,
    Ino,
    LogIndex,
    Serial,
    TimeNs,
)
from pydi_node.records import (
    CHECKSUM_BYTES,
    EVERY_NAME,
    FILE_SIZE_MAX,
    SYMLINK_MAX_BYTES,
    XATTR_VALUE_MAX_BYTES,
    Attr,
    BlobInfo,
    DirEntry,
    FileVersion,
    NodeInfo,
    Result,
    Touched,
    Version,
)
from pydi_node.wire import errnos, fields
from pydi_node.wire.fields import Check, integer, optional

MIB = 1 << 20

# One BlobRead or BlobWrite: large enough to keep a 10 Gbit/s link busy with two under way, small
# enough that a request's memory is bounded.
CHUNK_MAX_BYTES = 4 * MIB
TICKET_BYTES = 16  # of a stream, and of a file that is lent
LEASE_MAX_MS = 60_000  # a silent mount holds up everyone's changes for so long
READDIR_LIMIT_MAX = 4096  # entries of up to ~400 bytes: the answer stays below 2 MiB
XATTR_LIST_MAX = 65536  # names; the list itself is bounded by the header
VERSIONS_MAX = 16384  # kept versions of one file in one answer, ~150 bytes each
NODES_MAX = 1024  # members of one cluster in one answer
EXTENTS_MAX = 65536  # of one file version, ~30 bytes each
RELEASE_COUNT_MAX = 1 << 31  # opens of one inode by one mount
TOUCHED_MAX = 16384  # inodes, and names, of one command: four for each inode of a PurgeOrphans
OWNER_MAX = (1 << 64) - 1  # lock owners are opaque 64 bit numbers of the kernel
PID_MAX = (1 << 32) - 1

# Stands in an ExecutePut's extents for the blob that its payload becomes. Node numbers start at 1,
# so no real blob has an id below 1 << 48, and 0 is a hole.
PUT_BLOB = BlobId(1)


class MessageError(ValueError):
    """A message that no honest peer sends; the text is one clear sentence."""


class UnknownRequestError(MessageError):
    """A request code of a version that we don't speak yet: an error answer, not a broken peer."""


class Role(enum.StrEnum):
    """What the side that opened a connection is. The side that accepted it is always a node."""

    MOUNT = "mount"  # one mounted file system
    CLIENT = "client"  # the command line: pydi
    NODE = "node"


class Payload(enum.Enum):
    """Whether raw content travels beside a request."""

    NONE = "no"
    REQUIRED = "yes"  # it may still be empty: an empty file has content too


class LockKind(enum.StrEnum):
    SHARED = "shared"
    EXCLUSIVE = "exclusive"
    UNLOCK = "unlock"


class LockHolder(NamedTuple):
    """A lock that stands in the way."""

    kind: LockKind  # SHARED or EXCLUSIVE
    start: int  # bytes
    end: int  # bytes, inclusive; INT64_MAX: to the end of the file, however it grows
    pid: int  # of the holder on its own machine; 0 when it is on another

    @classmethod
    def from_wire(cls, value: Any) -> LockHolder:
        if type(value) not in (list, tuple) or len(value) != 4:
            raise ValueError("lock holder: not four fields")
        kind, start, end, pid = value
        return cls(
            LockKind(_HELD_KIND(kind)),
            fields.SIZE(start),
            fields.SIZE(end),
            _PID(pid),
        )


# --- queries of the tree; ``at`` None means now, else the tree as it was after that index ---------


@dataclass(frozen=True, slots=True)
class Lookup:
    """The inode behind a name; FileError(ENOENT) when there is none."""

    parent: Ino
    name: bytes
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class GetAttr:
    """The inode as stat(2) shows it."""

    ino: Ino
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class ReadDir:
    """Entries in order of cookies: start with 0, go on after the last one, none at the end."""

    ino: Ino
    after_cookie: int
    limit: int  # entries, 1 .. READDIR_LIMIT_MAX
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class ReadLink:
    """A symbolic link's target."""

    ino: Ino
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class GetXattr:
    """One extended attribute; FileError(ENODATA) when there is none of that name."""

    ino: Ino
    name: bytes
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class ListXattr:
    """Names of all extended attributes."""

    ino: Ino
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class GetFile:
    """Inode, extents and blobs of a regular file, without holding it open."""

    ino: Ino
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """Content versions of an inode that are kept, oldest first."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class PathVersions:
    """What a path showed over time, oldest first; finds deleted files too."""

    path: bytes  # absolute within the tree
    at: LogIndex | None = None  # when to look its directory up


@dataclass(frozen=True, slots=True)
class PathOf:
    """One absolute path of an inode; None when it has no name."""

    ino: Ino
    at: LogIndex | None = None


@dataclass(frozen=True, slots=True)
class Statfs:
    """Totals for statvfs(3)."""


@dataclass(frozen=True, slots=True)
class IndexAt:
    """The last log index at or before a time: a value for ``at``."""

    time_ns: TimeNs


# --- files held open ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """The file's content now, and one hold on the inode for as long as this session lives: it is
    not purged while held, even without a name."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class Release:
    """Give up ``count`` holds."""

    ino: Ino
    count: int


# --- changes of the tree --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Execute:
    """Run one command through the log, exactly once for each (client, serial)."""

    client: ClientId
    serial: Serial
    command: Command


@dataclass(frozen=True, slots=True)
class ExecutePut:
    """BlobPut of the payload and the command that names it, in one round trip: the close of a small
    file by a Commit, or all of a new one by a PutFile. Its extents name the new blob PUT_BLOB, and
    its ``blobs`` leave it out; the node stores the payload, puts the blob's real id and holders in
    (``with_put_blob``) and runs the command. A payload that is small enough is not stored but goes
    with the command.

    Sent again, it may store a second blob, and the tree answers with the first Result; the second
    blob is in no version and is collected as garbage.
    """

    client: ClientId
    serial: Serial
    command: Command


@dataclass(frozen=True, slots=True)
class Forward:
    """Execute on behalf of another node's client: from a node to the leader."""

    client: ClientId
    serial: Serial
    command: Command


# --- blobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlobCreate:
    """A new blob to be written by this session; it is dropped when the session ends unsealed.

    ino  of the file that it is for: its directory may ask for a number of copies. None: not known.
    """

    ino: Ino | None = None


@dataclass(frozen=True, slots=True)
class BlobWrite:
    """Put the payload at ``offset``. Writes of one blob take effect in the order they were sent."""

    blob: BlobId
    offset: int  # bytes


@dataclass(frozen=True, slots=True)
class BlobAdopt:
    """As BlobCreate, of a blob whose content its writer puts into the blob's file by itself, which
    it has borrowed (wire/descriptors.py).

    ticket  as in the packet that asked for the file. FileError ENOENT: it is not lent any more.
    """

    ino: Ino | None
    ticket: bytes


@dataclass(frozen=True, slots=True)
class BlobGrown:
    """As BlobWrite, of bytes that are in the borrowed file."""

    blob: BlobId
    offset: int  # bytes
    length: int  # bytes, 1 .. CHUNK_MAX_BYTES


@dataclass(frozen=True, slots=True)
class BlobTruncate:
    """Cut or extend with zeros."""

    blob: BlobId
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class BlobSeal:
    """Make the blob immutable and durable on its holders; the answer names them.

    size      bytes it must have.
    checksum  BLAKE3 the sender computed, checked against what arrived; None: not computed.
    """

    blob: BlobId
    size: int
    checksum: bytes | None


@dataclass(frozen=True, slots=True)
class BlobAbort:
    """Drop a blob that is not sealed."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class BlobPut:
    """The payload as a new durable blob: create, write and seal in one round trip.

    ino  as in BlobCreate.
    """

    ino: Ino | None = None


@dataclass(frozen=True, slots=True)
class BlobRead:
    """Bytes ``[offset, offset + length)`` of a sealed blob as the answer's payload; shorter only at
    its end. BlobMissingError: this node has no copy."""

    blob: BlobId
    offset: int  # bytes
    length: int  # bytes, 1 .. CHUNK_MAX_BYTES


@dataclass(frozen=True, slots=True)
class BlobVerify:
    """Re-hash this node's copy now; BlobMissingError or BlobCorruptError when it is not sound."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class BlobCopy:
    """Hold a copy: fetch the blob from one of its holders, verify it, answer when it is durable."""

    info: BlobInfo


@dataclass(frozen=True, slots=True)
class ReplicaPut:
    """Hold a copy: the payload is the whole blob. Answered when it is verified and durable."""

    info: BlobInfo


@dataclass(frozen=True, slots=True)
class ReplicaCreate:
    """Begin a copy of a blob that the sender is writing. BlobWrite, BlobTruncate, BlobSeal (which
    must say the checksum) and BlobAbort of the same blob go on with it; it is dropped when the
    session ends unsealed."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class BlobStream:
    """A ticket with which the sender may open a stream: the blob's content from the offset to its
    end over a connection of its own (runtime/streams.py). BlobMissingError, BlobCorruptError: this
    node has no copy of that size; BusyError: ask again."""

    blob: BlobId
    size: int  # bytes of the whole blob
    offset: int  # bytes


# --- locks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetLock:
    """True when the lock was set (or dropped, for UNLOCK); False when another one stands in the way
    and ``wait`` is not set. With ``wait`` the answer comes when the lock is free, or the deadline
    passes, or the request is cancelled. Locks end with their session."""

    ino: Ino
    owner: int  # opaque, of the kernel of this mount
    kind: LockKind
    start: int  # bytes
    end: int  # bytes, inclusive; INT64_MAX: to the end of the file, however it grows
    flock: bool  # flock(2): whole file, owned by an open file; else fcntl(2); they don't meet
    wait: bool
    pid: int  # for GetLock on the same machine; 0 unknown


@dataclass(frozen=True, slots=True)
class GetLock:
    """The first posix lock in the way of the one described; None when it could be set."""

    ino: Ino
    owner: int
    kind: LockKind
    start: int  # bytes
    end: int  # bytes, inclusive


# --- administration and invalidation --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admin:
    """What the command line asks (status, why, settings, scrub, ...): a verb and plain values."""

    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's members and where they serve: where to go when this node goes away."""


@dataclass(frozen=True, slots=True)
class Lease:
    """For how many milliseconds, from when this left, a subscriber may answer from its caches
    without asking; 0: not at all. The answer follows every push that was sent before."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Pushes of what becomes stale, from now until the session ends. Answered before the first."""


Request = (
    Lookup | GetAttr | ReadDir | ReadLink | GetXattr | ListXattr | GetFile | Versions | PathVersions
    | PathOf | Statfs | IndexAt | Open | Release | Execute | ExecutePut | Forward | BlobCreate
    | BlobWrite | BlobTruncate | BlobSeal | BlobAbort | BlobPut | BlobRead | BlobVerify | BlobCopy
    | SetLock | GetLock | Admin | Subscribe | Nodes | Lease | ReplicaPut | ReplicaCreate
    | BlobStream | BlobAdopt | BlobGrown
)  # fmt: skip


# --- pushes: node to subscriber, one ordered stream -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Drop cached answers about these inodes and names."""

    sequence: int  # 1, 2, 3, ... within one session, over both kinds of push
    touched: Touched


@dataclass(frozen=True, slots=True)
class DropAll:
    """Drop every cached answer: the node can't tell any more what became stale."""

    sequence: int


Push = Invalidate | DropAll


# --- the table ------------------------------------------------------------------------------------


class RequestType(NamedTuple):
    """All that is fixed about one request."""

    code: int  # part of the protocol: never renumber, only add
    cls: type[Any]
    roles: frozenset[Role]  # who may send it
    mutates: bool  # refused for a read-only mount
    payload: Payload
    answer: str  # what the answer is, for people
    decode_answer: Callable[[Any], Any]  # (value from the wire) -> value, or ValueError
    answer_payload: bool = False  # the answer is the frame's payload, its value is nil

    @property
    def name(self) -> str:
        return self.cls.__name__


def _result(value: Any) -> Result:
    """A Result whose value is still raw; ``decode_answer`` checks it against the command."""
    if type(value) not in (list, tuple) or len(value) not in (3, 4):
        raise ValueError("not (errno, value, touched, directories)")
    errno_ = errnos.from_wire(_ERRNO(value[0]))
    directories = _DIRECTORIES(value[3]) if len(value) == 4 else ()  # a node of before sends none
    return Result(errno_, None if errno_ else value[1], _touched(value[2]), directories)


_ERRNO = integer(0, 4095)  # the kernel's MAX_ERRNO
# A rename has two.
_DIRECTORIES = fields.array(Attr.from_wire, 2 * commands.BATCH_COMMANDS_MAX)
_ANYONE = frozenset(Role)
_OWNERS = frozenset({Role.CLIENT, Role.NODE})
_NODES = frozenset({Role.NODE})
_WRITERS = frozenset({Role.CLIENT, Role.MOUNT})
_BLOB = integer(1, BLOB_ID_MAX)
_NONE, _CONTENT = Payload.NONE, Payload.REQUIRED
_PATH = fields.data_without_nul(fields.PATH_WIRE_MAX_BYTES, 1)
_XATTR_NAME = fields.data_without_nul(commands.NAME_WIRE_MAX_BYTES * 2)
_TARGET = fields.data_without_nul(SYMLINK_MAX_BYTES, 1)
_XATTR = fields.data(XATTR_VALUE_MAX_BYTES)
_MEMBERS = fields.array(NodeInfo.from_wire, NODES_MAX)
_ENTRIES = fields.array(DirEntry.from_wire, READDIR_LIMIT_MAX)
_VERSIONS = fields.array(Version.from_wire, VERSIONS_MAX)

REQUESTS: tuple[RequestType, ...] = (
    RequestType(1, Lookup, _ANYONE, False, _NONE, "Attr", Attr.from_wire),
    RequestType(2, GetAttr, _ANYONE, False, _NONE, "Attr", Attr.from_wire),
    RequestType(3, ReadDir, _ANYONE, False, _NONE, "[DirEntry]", _ENTRIES),
    RequestType(4, ReadLink, _ANYONE, False, _NONE, "bytes", _TARGET),
    RequestType(5, GetXattr, _ANYONE, False, _NONE, "bytes", _XATTR),
    RequestType(6, ListXattr, _ANYONE, False, _NONE, "[bytes]",
                fields.array(_XATTR_NAME, XATTR_LIST_MAX)),
    RequestType(7, GetFile, _ANYONE, False, _NONE, "FileVersion", FileVersion.from_wire),
    RequestType(8, Versions, _ANYONE, False, _NONE, "[Version]", _VERSIONS),
    RequestType(9, PathVersions, _ANYONE, False, _NONE, "[Version]", _VERSIONS),
    RequestType(10, PathOf, _ANYONE, False, _NONE, "bytes or nil", optional(_PATH)),
    RequestType(11, Statfs, _ANYONE, False, _NONE, "Statfs", records.Statfs.from_wire),
    RequestType(12, IndexAt, _ANYONE, False, _NONE, "log index", fields.SIZE),
    RequestType(13, Open, _ANYONE, False, _NONE, "FileVersion", FileVersion.from_wire),
    RequestType(14, Release, _ANYONE, False, _NONE, "nil", fields.nothing),
    RequestType(15, Execute, _ANYONE, True, _NONE, "Result", _result),
    RequestType(16, ExecutePut, _ANYONE, True, _CONTENT, "Result", _result),
    RequestType(17, Forward, _NODES, True, _NONE, "Result", _result),
    RequestType(18, BlobCreate, _ANYONE, True, _NONE, "blob id", _BLOB),
    RequestType(19, BlobWrite, _ANYONE, True, _CONTENT, "nil", fields.nothing),
    RequestType(20, BlobTruncate, _ANYONE, True, _NONE, "nil", fields.nothing),
    RequestType(21, BlobSeal, _ANYONE, True, _NONE, "BlobInfo", BlobInfo.from_wire),
    RequestType(22, BlobAbort, _ANYONE, True, _NONE, "nil", fields.nothing),
    RequestType(23, BlobPut, _ANYONE, True, _CONTENT, "BlobInfo", BlobInfo.from_wire),
    RequestType(24, BlobRead, _ANYONE, False, _NONE, "payload", fields.nothing, True),
    RequestType(25, BlobVerify, _OWNERS, False, _NONE, "nil", fields.nothing),
    RequestType(26, BlobCopy, _NODES, True, _NONE, "nil", fields.nothing),
    RequestType(27, SetLock, _ANYONE, False, _NONE, "boolean", fields.boolean),
    RequestType(28, GetLock, _ANYONE, False, _NONE, "LockHolder or nil",
                optional(LockHolder.from_wire)),
    RequestType(29, Admin, _OWNERS, True, _NONE, "plain value", fields.plain),
    RequestType(30, Subscribe, _ANYONE, False, _NONE, "nil", fields.nothing),
    RequestType(31, Nodes, _ANYONE, False, _NONE, "[NodeInfo]", _MEMBERS),
    RequestType(32, ReplicaPut, _NODES, True, _CONTENT, "nil", fields.nothing),
    RequestType(33, ReplicaCreate, _NODES, True, _NONE, "nil", fields.nothing),
    RequestType(34, Lease, _ANYONE, False, _NONE, "ms", integer(0, LEASE_MAX_MS)),
    RequestType(35, BlobStream, _NODES, False, _NONE, "ticket",
                fields.data(TICKET_BYTES, TICKET_BYTES)),
    RequestType(36, BlobAdopt, _WRITERS, True, _NONE, "blob id", _BLOB),
    RequestType(37, BlobGrown, _WRITERS, True, _NONE, "nil", fields.nothing),
)  # fmt: skip

REQUEST_OF_CLASS: dict[type[Any], RequestType] = {spec.cls: spec for spec in REQUESTS}
REQUEST_OF_CODE: dict[int, RequestType] = {spec.code: spec for spec in REQUESTS}


def encode_request(request: Request) -> tuple[Any, ...]:
    """The request as a flat tuple of plain values, its code first; ``decode_request`` reverses it.

    ValueError when an Admin's arguments are not plain values.
    """
    code, names, converters = _ENCODERS[type(request)]
    values = [getattr(request, name) for name in names]
    for position, convert in converters:
        values[position] = convert(values[position])
    return (code, *values)


def decode_request(value: tuple[Any, ...]) -> Request:
    """The request in a peer's array.

    UnknownRequestError  a code (of a request or of a command) that we don't know.
    MessageError         anything malformed.
    """
    if not value or type(value[0]) is not int:
        raise MessageError("a request starts with its code")
    spec = REQUEST_OF_CODE.get(value[0])
    if spec is None:
        raise UnknownRequestError(f"unknown request {value[0]}")
    checks = _FIELDS[spec.cls]
    if len(value) != len(checks) + 1:
        raise MessageError(f"{spec.name}: {len(value) - 1} fields instead of {len(checks)}")
    arguments = []
    position = 1
    for name, check in checks:
        try:
            arguments.append(check(value[position]))
        except UnknownRequestError:
            raise
        except ValueError as exc:
            raise MessageError(f"{spec.name}.{name}: {exc}") from exc
        position += 1
    request: Request = spec.cls(*arguments)
    rule = _RULES.get(spec.cls)
    if rule is not None:
        rule(request)
    return request


def encode_answer(request: Request, value: Any) -> Any:
    """An answer as plain values. Records are tuples already and travel as they are."""
    return fields.pack_plain(value) if type(request) is Admin else value


def decode_answer(request: Request, value: Any) -> Any:
    """The checked answer to ``request``; MessageError when it is not what its type promises."""
    spec = REQUEST_OF_CLASS[type(request)]
    try:
        answer = spec.decode_answer(value)
        if type(answer) is Result and answer.errno == 0:
            command: Command = request.command  # type: ignore[union-attr]  # only these have Result
            decoded = _result_value(command, answer.value)
            return Result(0, decoded, answer.touched, answer.directories)
    except ValueError as exc:
        raise MessageError(f"answer to {spec.name}: {exc}") from exc
    return answer


def _result_value(command: Command, value: Any) -> Any:
    if not isinstance(command, Batch):
        return RESULT_VALUES[type(command)](value)
    outcomes = _OUTCOMES(value)
    if len(outcomes) != len(command.commands):
        raise ValueError("not an outcome for each command")
    # A repeated answer has most values no more.
    return tuple(
        (
            errnos.from_wire(errno),
            None if errno or made is None else RESULT_VALUES[type(part)](made),
        )
        for part, (errno, made) in zip(command.commands, outcomes, strict=True)
    )


def check_payload(request: Request, length: int) -> None:
    """MessageError when ``length`` bytes of content don't belong beside this request."""
    spec = REQUEST_OF_CLASS[type(request)]
    if spec.payload is Payload.NONE:
        if length:
            raise MessageError(f"{spec.name}: carries no payload")
    elif type(request) is BlobWrite:
        if request.offset + length > FILE_SIZE_MAX:
            raise MessageError("BlobWrite: ends past the largest file")
    elif type(request) is ReplicaPut:
        if request.info.size != length:
            raise MessageError(f"ReplicaPut: {length} bytes instead of {request.info.size}")
    elif type(request) is ExecutePut:
        for extent in content_of(request.command).extents:
            if extent.blob == PUT_BLOB and extent.blob_offset + extent.length > length:
                raise MessageError("ExecutePut.command: an extent ends past the payload")


def content_of(command: Command) -> Commit | PutFile:
    """That of an ExecutePut's command which has the payload: itself, or the last of a Batch."""
    last = last_of(command)
    assert isinstance(last, (Commit, PutFile)), command
    return last


def last_of(command: Command) -> Command:
    """The only one of a Batch that may bring content; of anything else it is itself."""
    return command.commands[-1] if isinstance(command, Batch) else command


def with_put_blob(command: Command, info: BlobInfo, content: bytes | None = None) -> Command:
    """An ExecutePut's command with the payload's blob in the place of PUT_BLOB.

    content  the payload, when its blob is to be in the tree.
    """
    given = content_of(command)
    extents = tuple(
        extent._replace(blob=info.blob) if extent.blob == PUT_BLOB else extent
        for extent in given.extents
    )
    filled = dataclasses.replace(
        given, extents=extents, blobs=(*given.blobs, info), content=content
    )
    if isinstance(command, Batch):
        return dataclasses.replace(command, commands=(*command.commands[:-1], filled))
    return filled


def encode_push(push: Push) -> tuple[Any, ...]:
    """(code, sequence, ...); ``decode_push`` reverses it."""
    if type(push) is Invalidate:
        return (1, push.sequence, push.touched)
    return (2, push.sequence)


def decode_push(value: tuple[Any, ...]) -> Push:
    """The push in a peer's array; MessageError for anything malformed."""
    try:
        match value:
            case (1, sequence, touched):
                return Invalidate(_SEQUENCE(sequence), _touched(touched))
            case (2, sequence):
                return DropAll(_SEQUENCE(sequence))
    except ValueError as exc:
        raise MessageError(f"push: {exc}") from exc
    raise MessageError("push: unknown code or wrong number of fields")


# Codes are part of the protocol: never renumber, only add.
PUSH_CLASSES: dict[int, type[Any]] = {1: Invalidate, 2: DropAll}
_SEQUENCE = integer(1, INT64_MAX)


# --- checks of fields -----------------------------------------------------------------------------


def _touched(value: Any) -> Touched:
    inos, entries = _TOUCHED(value)
    return Touched(inos, entries)


def _name_or_every(value: Any) -> bytes:
    return EVERY_NAME if type(value) is bytes and not value else fields.name(value)


_TOUCHED = fields.pair(
    fields.array(fields.INO, TOUCHED_MAX),
    fields.array(fields.pair(fields.INO, _name_or_every), TOUCHED_MAX),
)


def _command(value: Any) -> Command:
    # Looked at before commands.decode sees it: a code that is an array nested 1000 deep can't be
    # printed, and an unknown one is a newer peer's, not a broken one's.
    if type(value) not in (list, tuple) or not value or type(value[0]) is not int:
        raise ValueError("a command is an array that starts with its code")
    if value[0] not in _COMMAND_CODES_KNOWN:
        raise UnknownRequestError(f"unknown command {value[0]}")
    return commands.decode(value)


def _lock_kind(value: Any) -> LockKind:
    return LockKind(_LOCK_KIND(value))


def _check_put(request: ExecutePut) -> None:
    command = last_of(request.command)
    if not isinstance(command, (Commit, PutFile)):
        raise MessageError("ExecutePut.command: neither a Commit nor a PutFile")
    if all(extent.blob != PUT_BLOB for extent in command.extents):
        raise MessageError("ExecutePut.command: no extent names the payload")


def _check_grown(request: BlobGrown) -> None:
    if request.offset + request.length > FILE_SIZE_MAX:
        raise ValueError("ends past the largest file")


def _check_range(request: SetLock | GetLock) -> None:
    if request.end < request.start:
        raise MessageError(f"{type(request).__name__}.end: before start")


_OUTCOMES = fields.array(fields.pair(_ERRNO, lambda value: value), commands.BATCH_COMMANDS_MAX)
_COMMAND_CODES_KNOWN = frozenset(commands.COMMAND_CODES.values())
_LOCK_KIND = fields.one_of(*[kind.value for kind in LockKind])
_HELD_KIND = fields.one_of(LockKind.SHARED.value, LockKind.EXCLUSIVE.value)
_PID = integer(0, PID_MAX)

# How each field, by its name, is checked; a name means the same thing in every request.
_CHECKS: dict[str, Check] = {
    "parent": fields.INO, "ino": fields.INO, "name": fields.name, "at": optional(fields.SIZE),
    "path": _PATH, "after_cookie": fields.SIZE, "limit": integer(1, READDIR_LIMIT_MAX),
    "time_ns": fields.SIZE, "count": integer(1, RELEASE_COUNT_MAX),
    "client": integer(1, INT64_MAX), "serial": integer(1, INT64_MAX), "command": _command,
    "blob": _BLOB, "offset": fields.SIZE, "size": fields.SIZE,
    "length": integer(1, CHUNK_MAX_BYTES),
    "checksum": optional(fields.data(CHECKSUM_BYTES, CHECKSUM_BYTES)),
    "info": BlobInfo.from_wire, "ticket": fields.data(TICKET_BYTES, TICKET_BYTES),
    "owner": integer(0, OWNER_MAX), "kind": _lock_kind, "flock": fields.boolean,
    "start": fields.SIZE, "end": fields.SIZE, "wait": fields.boolean, "pid": _PID,
    "verb": fields.text(64), "arguments": fields.plain_map,
}  # fmt: skip

# Where one request gives a name another meaning.
_CHECKS_OF: dict[tuple[type[Any], str], Check] = {
    (GetXattr, "name"): _XATTR_NAME,
    (BlobCreate, "ino"): optional(fields.INO),
    (BlobAdopt, "ino"): optional(fields.INO),
    (BlobPut, "ino"): optional(fields.INO),
}

# Rules over several fields.
_RULES: dict[type[Any], Callable[[Any], None]] = {
    ExecutePut: _check_put,
    BlobGrown: _check_grown,
    SetLock: _check_range,
    GetLock: _check_range,
}

# Fields that are not plain values as they stand.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "command": commands.encode,
    "arguments": fields.pack_plain,
}

_FIELDS: dict[type[Any], list[tuple[str, Check]]] = {
    spec.cls: [
        (field.name, _CHECKS_OF.get((spec.cls, field.name)) or _CHECKS[field.name])
        for field in dataclasses.fields(spec.cls)
    ]
    for spec in REQUESTS
}
_ENCODERS: dict[type[Any], tuple[int, tuple[str, ...], tuple[tuple[int, Any], ...]]] = {
    spec.cls: (
        spec.code,
        tuple(name for name, _ in _FIELDS[spec.cls]),
        tuple(
            (position, _CONVERTERS[name])
            for position, (name, _) in enumerate(_FIELDS[spec.cls])
            if name in _CONVERTERS
        ),
    )
    for spec in REQUESTS
}

# What a successful Result's value is, by command (documented at each command).
RESULT_VALUES: dict[type[Any], Check] = {
    commands.Mkdir: Attr.from_wire,
    commands.Create: fields.pair(Attr.from_wire, fields.boolean),
    commands.PutFile: Attr.from_wire,
    commands.Mknod: Attr.from_wire,
    commands.Symlink: Attr.from_wire,
    commands.Tmpfile: Attr.from_wire,
    commands.Link: Attr.from_wire,
    commands.Unlink: Attr.from_wire,
    commands.Rmdir: fields.nothing,
    commands.Rename: fields.pair(Attr.from_wire, optional(Attr.from_wire)),
    commands.SetAttr: Attr.from_wire,
    commands.SetXattr: fields.nothing,
    commands.RemoveXattr: fields.nothing,
    commands.Commit: Attr.from_wire,
    commands.CloneRange: fields.pair(Attr.from_wire, fields.SIZE),
    commands.PurgeOrphans: fields.SIZE,
    commands.TrimHistory: fields.pair(fields.SIZE, fields.boolean),
    commands.SetSetting: fields.nothing,
    commands.SetHolders: BlobInfo.from_wire,
    commands.ForgetBlobs: fields.SIZE,
    commands.ExpireSessions: fields.SIZE,
    commands.SetNode: fields.nothing,
    commands.SpreadFactors: fields.pair(fields.SIZE, fields.boolean),
    commands.SetToken: fields.nothing,
    commands.SetSecret: fields.nothing,
    commands.RetireSecret: fields.nothing,
    commands.Compact: Attr.from_wire,
    commands.ReserveInodes: fields.INO,
    commands.Delegate: fields.boolean,
    commands.Undelegate: fields.SIZE,
    commands.Recall: fields.SIZE,
    commands.Revoke: fields.SIZE,
    commands.Batch: fields.nothing,  # each of its commands has its own: see _result_value
}
