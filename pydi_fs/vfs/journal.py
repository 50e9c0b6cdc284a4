"""What a mount's worker leaves to the one that follows it: records, and what they add up to.

Pure: bytes in, bytes out. `pydi_fs.vfs.journalling` writes the records while the worker runs; the
successor reads them here. Theory of operation: a record is complete before the answer leaves that
depends on it, so what a program was told is always in here. What is not in here can be rebuilt:
caches (dropped), node ids and versions of content (asked again), leases (asked again), opens at the
node (told again).

    header of a log   u64 generation; 0: not complete yet
    record            u32 length, u32 CRC-32, msgpack [kind, field, ...]

Of two logs the complete one with the higher generation counts. Reading stops at the first record
that is not whole: its writer was killed while it wrote, and has told nobody.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from pydi_fs.vfs.content import Changes, Content, FrozenContent
from pydi_fs.vfs.extents import Segment
from pydi_node.commands import ROOT_CALLER, Caller
from pydi_node.ids import Ino, LogIndex, Serial

FORMAT = 7  # of all records together; a worker takes over from one of the same format only
HEADER = Struct("<Q")
_FRAME = Struct("<II")


# --- records --------------------------------------------------------------------------------------


class Agreed(NamedTuple):
    """What INIT fixed for the whole mount."""

    minor: int
    flags: int


class Identity(NamedTuple):
    """Under which names the nodes know this mount."""

    client: int
    key: bytes


class Opened(NamedTuple):
    """A handle of a file is about to be told to the kernel."""

    unique: int
    fh: int
    ino: int
    flags: int  # of open(2)
    uid: int
    gid: int
    groups: tuple[int, ...] | None
    second: bool  # under the second node id
    passing: bool  # the kernel reads it by itself


class Listed(NamedTuple):
    """The kernel may keep what this directory contains."""

    ino: int


class Unlisted(NamedTuple):
    """It was told to forget it."""

    ino: int


class Closed(NamedTuple):
    fh: int


class Locked(NamedTuple):
    """An owner has taken, or waits for, a POSIX lock through a handle."""

    ino: int
    fh: int
    owner: int


class Unlocked(NamedTuple):
    """An owner has given back, by close(2), all its POSIX locks on the file."""

    ino: int
    owner: int


class Right(NamedTuple):
    """The mount gives out, or may give out, the POSIX locks of this file by itself: these."""

    ino: int
    locks: tuple[tuple[int, bool, int, int, int], ...]  # (owner, exclusive, start, end, pid)


class RightGivenBack(NamedTuple):
    ino: int


class Moment(NamedTuple):
    """The next number of a moment of the past means this log index."""

    log_index: int


class Numbered(NamedTuple):
    """The command of this kind that a request sends has this serial, however often it is sent."""

    unique: int
    serial: int
    command: str


class Backing(NamedTuple):
    """A backing id of the connection is in use, or no longer."""

    number: int
    open: bool


class Wrote(NamedTuple):
    """``length`` bytes of a program are staged."""

    unique: int
    ino: int
    size: int  # of the file, before
    caller: tuple[int, int, tuple[int, ...] | None]
    mtime_ns: int
    append: bool
    length: int
    # (offset, length, source, offset in the source, the bytes unless they are in the stage's file)
    pieces: tuple[tuple[int, int, int, int, bytes | None], ...]


class Cut(NamedTuple):
    """ftruncate(2) of a file that is being written."""

    ino: int
    size: int  # before
    caller: tuple[int, int, tuple[int, ...] | None]
    mtime_ns: int
    to: int


class Punched(NamedTuple):
    ino: int
    size: int  # before
    caller: tuple[int, int, tuple[int, ...] | None]
    mtime_ns: int
    offset: int
    length: int
    keep_size: bool


class Stamped(NamedTuple):
    """utimensat(2) of a file with unpublished content."""

    ino: int
    mtime_ns: int


class Rebased(NamedTuple):
    """Unpublished content was put on top of a version of this size."""

    ino: int
    size: int


class Staged(NamedTuple):
    """All of a stage: its bytes, or None when they are in a file that the supervisor keeps."""

    source: int
    ino: int
    size: int
    data: bytes | None


class Publishing(NamedTuple):
    """What is unpublished now is on its way, in the name of who wrote last."""

    ino: int


class Committing(NamedTuple):
    """The next piece of it is about to be sent under this serial."""

    ino: int
    serial: int


class Published(NamedTuple):
    """It has arrived, or not."""

    ino: int
    success: bool


class Forgotten(NamedTuple):
    """What was unpublished of this file is given up."""

    ino: int


class Frozen(NamedTuple):
    """An open file with unpublished content, in one record."""

    ino: int
    caller: tuple[int, int, tuple[int, ...] | None]
    mtime_ns: int
    content: FrozenContent
    publishing: tuple[Any, ...] | None  # fields of Changes, caller, mtime, serials


class Highest(NamedTuple):
    """Numbers up to these were given out."""

    fh: int
    serial: int
    source: int  # the lowest: they count downwards


class Created(NamedTuple):
    """A file exists on this mount only: the cluster hears of it later. Again: as it is now."""

    unique: int
    ino: int
    parent: int
    name: bytes
    caller: tuple[int, int, tuple[int, ...] | None]
    mode: int  # 12 permission bits
    mtime_ns: int
    atime_ns: int | None


class Made(NamedTuple):
    """What a request, which may be sent again, has done on this mount only: the inode that it made,
    or 0."""

    unique: int
    ino: int


class Creating(NamedTuple):
    """The cluster is about to hear of it, without content, under this serial."""

    ino: int
    serial: int


class Settled(NamedTuple):
    """The cluster has it, or never will."""

    ino: int


class Reserved(NamedTuple):
    """Inode numbers for such files, from the first that is not used; each is used in its turn."""

    first: int
    end: int
    until_s: float  # uptime; none is used later


class Delegated(NamedTuple):
    """This directory is, or may be, delegated to the mount."""

    ino: int


class Undelegated(NamedTuple):
    """These no longer are."""

    inos: tuple[int, ...]


class Queued(NamedTuple):
    """A change was made on this mount only: the cluster hears of it later. See `vfs.queued`."""

    unique: int
    number: int
    command: tuple[Any, ...]  # as `commands.encode` has it
    directories: tuple[int, ...]
    inos: tuple[int, ...]
    names: tuple[tuple[int, bytes], ...]
    made: int  # an inode, or 0
    time_ns: int


class Telling(NamedTuple):
    """The cluster is about to hear of these changes, under this serial."""

    serial: int
    numbers: tuple[int, ...]
    ino: int  # a pending file that the same command makes, as its last part; 0: none


class Told(NamedTuple):
    """It has them, or never will."""

    numbers: tuple[int, ...]
    ino: int  # the pending file that it has with them; 0: none, or it was refused


class Done(NamedTuple):
    """A WRITE that wrote ``length`` bytes, and may be sent again."""

    unique: int
    length: int


RECORDS: tuple[type[Any], ...] = (
    Agreed, Identity, Opened, Listed, Closed, Locked, Moment, Numbered, Backing, Wrote, Cut,
    Punched, Stamped, Rebased, Staged, Publishing, Committing, Published, Forgotten,
    Frozen, Highest, Done, Unlocked, Unlisted, Created, Made, Creating, Settled, Reserved,
    Delegated, Undelegated, Right, RightGivenBack, Queued, Telling, Told,
)  # fmt: skip
_KINDS: dict[type[Any], int] = {record: kind for kind, record in enumerate(RECORDS)}
# To make a packer takes longer than to use it.
_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack


def encode(record: Any) -> bytes:
    """One record, framed."""
    body = _pack((_KINDS[type(record)], *record))
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def encode_write(
    unique: int, ino: int, size: int, caller: Caller, mtime_ns: int, append: bool, length: int,
    offset: int, source: int, source_offset: int,
) -> bytes:  # fmt: skip
    """`encode` of a `Wrote` of one piece whose bytes are in the stage's file, in a third of the
    time: nearly all records of who writes much are such."""
    body = (
        _WRITE_HEAD.pack(
            _MSGPACK_ARRAY + 9, _WROTE, _UINT64_MARK, unique, _UINT64_MARK, ino, _UINT64_MARK, size
        )
        + _packed(caller)
        + _WRITE_TAIL.pack(
            _INT64_MARK, mtime_ns, _MSGPACK_TRUE if append else _MSGPACK_FALSE, _UINT64_MARK,
            length, _MSGPACK_ARRAY + 1, _MSGPACK_ARRAY + 5, _UINT64_MARK, offset, _UINT64_MARK,
            length, _INT64_MARK, source, _UINT64_MARK, source_offset, _MSGPACK_NIL,
        )
    )  # fmt: skip
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


# As msgpack has it: unique, inode, size; and behind the caller: time, whether it appends, length,
# and one piece, of which the last is that there are no bytes.
_WRITE_HEAD = Struct(">BBBQBQBQ")
_WRITE_TAIL = Struct(">BqBBQBBBQBQBqBQB")
_WROTE = _KINDS[Wrote]
_UINT64_MARK, _INT64_MARK = 0xCF, 0xD3
_MSGPACK_NIL, _MSGPACK_FALSE, _MSGPACK_TRUE = 0xC0, 0xC2, 0xC3


@lru_cache(maxsize=64)
def _packed(caller: Caller) -> bytes:
    return _pack(caller)


class Again:
    """A handle that is handed out again and again: what is told of it each time, made once.

    ``record`` says how it is opened; the number in it is of no request.
    """

    __slots__ = ("_after", "_before", "closed", "record")

    def __init__(self, record: Opened) -> None:
        self.record = record
        self.closed = encode(Closed(record.fh))
        # An array in msgpack is its length, then one value after the other.
        kind = _pack(_KINDS[Opened])
        self._before = bytes([_MSGPACK_ARRAY + 1 + len(record)]) + kind + _MSGPACK_UINT64
        self._after = b"".join(map(_pack, record[1:]))

    def opened(self, unique: int) -> bytes:
        """`encode` of the record with this number in it."""
        body = self._before + _UINT64.pack(unique) + self._after
        return _FRAME.pack(len(body), zlib.crc32(body)) + body


# Of msgpack's format: the first byte of an array of up to 15 values, and of the longest integer.
_MSGPACK_ARRAY = 0x90
_MSGPACK_UINT64 = b"\xcf"
_UINT64 = Struct(">Q")


def decode(log: bytes | memoryview) -> Iterator[Any]:
    """The records of a log behind its header, up to the first that is not whole."""
    view = memoryview(log)
    at = 0
    while at + _FRAME.size <= len(view):
        length, checksum = _FRAME.unpack_from(view, at)
        at += _FRAME.size
        body = view[at : at + length]
        if not length or len(body) < length or zlib.crc32(body) != checksum:
            return
        kind, *fields = msgpack.unpackb(
            body, use_list=False, raw=False, strict_map_key=False, max_bin_len=length
        )
        yield RECORDS[kind](*fields)
        at += length


# --- what they add up to --------------------------------------------------------------------------


@dataclass(slots=True)
class StageImage:
    """A stage of unpublished content."""

    ino: Ino
    size: int = 0
    data: bytearray | None = field(default_factory=bytearray)  # None: in the supervisor's file


@dataclass(slots=True)
class Publication:
    """Changes on their way to the cluster; it is not known whether they have arrived."""

    changes: Changes
    caller: Caller
    mtime_ns: int
    serials: list[Serial]  # of the pieces that may have been sent

    def pack(self) -> tuple[Any, ...]:
        return (tuple(self.changes), tuple(self.caller), self.mtime_ns, tuple(self.serials))

    @classmethod
    def unpack(cls, fields: tuple[Any, ...]) -> Publication:
        changes, caller, mtime_ns, serials = fields
        return cls(Changes.unpack(changes), Caller(*caller), mtime_ns, list(serials))


@dataclass(slots=True)
class FileImage:
    """An open file with content that is not published, or of which that is not known."""

    content: Content
    caller: Caller = ROOT_CALLER
    mtime_ns: int = 0
    publication: Publication | None = None


class State:
    """Everything a successor must know."""

    def __init__(self) -> None:
        self.agreed: Agreed | None = None
        self.identity: Identity | None = None
        self.last_fh = 0
        self.last_serial = 0
        self.last_source = 0
        self.handles: dict[int, Opened] = {}
        self.listed: dict[int, None] = {}
        self.locks: dict[Locked, None] = {}
        self.moments: list[LogIndex] = []
        self.backings: set[int] = set()
        self.files: dict[Ino, FileImage] = {}
        self.stages: dict[int, StageImage] = {}
        # By the number of a request that may come again.
        self.serials: dict[int, list[Numbered]] = {}
        self.written: dict[int, int] = {}
        self.handed: dict[int, int] = {}  # handles whose number may not have been told
        self.made: dict[int, int] = {}  # by requests that were done here only: an inode, or 0
        self.pending: dict[Ino, Created] = {}  # files that exist on this mount only
        self.creating: dict[Ino, Serial] = {}  # under which the cluster may have heard of them
        self.reserved: dict[int, Reserved] = {}  # by the end
        self.delegated: dict[Ino, None] = {}
        self.rights: dict[int, Right] = {}  # by inode
        self.queued: dict[int, Queued] = {}  # by number, in order
        self.telling: Telling | None = None
        self.is_given_up = False  # its file, by the mount

    @classmethod
    def of(cls, records: Iterable[Any]) -> State:
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def apply(self, record: Any) -> None:
        """One record, in the order of writing."""
        match record:
            case Closed():  # the first two are nearly all there are
                self.handles.pop(record.fh, None)
                if self.locks:
                    self._drop_locks(lambda lock: lock.fh == record.fh)
            case Opened():
                self.handles[record.fh] = record
                self.handed[record.unique] = record.fh
                self.last_fh = max(self.last_fh, record.fh)
            case Agreed():
                self.agreed = record
            case Identity():
                self.identity = record
            case Listed():
                self.listed[record.ino] = None
            case Unlisted():
                self.listed.pop(record.ino, None)
            case Locked():
                self.locks[record] = None
            case Unlocked():
                self._drop_locks(lambda lock: (lock.ino, lock.owner) == record)
            case Moment():
                self.moments.append(LogIndex(record.log_index))
            case Numbered():
                self.serials.setdefault(record.unique, []).append(record)
                self.last_serial = max(self.last_serial, record.serial)
            case Backing():
                (self.backings.add if record.open else self.backings.discard)(record.number)
            case Done():
                self.written[record.unique] = record.length
            case Created():
                self.pending[Ino(record.ino)] = record._replace(unique=0)
                if record.unique:
                    self.made[record.unique] = record.ino
                self._use_number(record.ino)
            case Made():
                self.made[record.unique] = record.ino
            case Creating():
                self.creating[Ino(record.ino)] = Serial(record.serial)
                self.last_serial = max(self.last_serial, record.serial)
            case Settled():
                # Given up by the mount, it may still be part of a command that is under way: who
                # sends that again must know it.
                if self.telling is not None and self.telling.ino == record.ino:
                    self.is_given_up = True
                else:
                    self._settle(Ino(record.ino))
            case Reserved():
                self.reserved[record.end] = record
                for end in list(self.reserved)[:-2]:  # no older ones are used
                    del self.reserved[end]
            case Delegated():
                self.delegated[Ino(record.ino)] = None
            case Undelegated():
                for ino in record.inos:
                    self.delegated.pop(Ino(ino), None)
            case Right():
                self.rights[record.ino] = record
            case RightGivenBack():
                self.rights.pop(record.ino, None)
            case Queued() | Telling() | Told():
                self._apply_queued(record)
            case Highest():
                self.last_fh = max(self.last_fh, record.fh)
                self.last_serial = max(self.last_serial, record.serial)
                self.last_source = min(self.last_source, record.source)
            case _:
                self._apply_content(record)

    def _use_number(self, ino: int) -> None:
        for left in list(self.reserved.values()):
            if left.first <= ino < left.end:
                self.reserved[left.end] = left._replace(first=ino + 1)

    def _apply_queued(self, record: Queued | Telling | Told) -> None:
        match record:
            case Queued():
                self.queued[record.number] = record._replace(unique=0)
                if record.unique:
                    self.made[record.unique] = record.made
                self._use_number(record.made)
            case Telling():
                self._end_telling()
                self.telling = record
                self.last_serial = max(self.last_serial, record.serial)
            case Told():
                for number in record.numbers:
                    self.queued.pop(number, None)
                if record.ino:
                    self._settle(Ino(record.ino))
                if self.telling and not self.queued.keys() & set(self.telling.numbers):
                    self._end_telling()

    def _end_telling(self) -> None:
        """A file that was told of with others and is not there is told of under another serial:
        the answer under this one is that of all."""
        if self.telling is None:
            return
        ino, serial = Ino(self.telling.ino), self.telling.serial
        if self.is_given_up:
            self._settle(ino)
        elif self.creating.get(ino) == serial:
            del self.creating[ino]
        self.telling, self.is_given_up = None, False

    def _settle(self, ino: Ino) -> None:
        self.pending.pop(ino, None)
        self.creating.pop(ino, None)

    def serial_of_create(self, ino: Ino) -> Serial | None:
        """Under which the cluster may have heard of this pending file, with content that is not in
        here or without any; None: under none, or with what is unpublished of it here."""
        serial = self.creating.get(ino)
        if serial is None and self.telling is not None and self.telling.ino == ino:
            image = self.files.get(ino)
            sent = None if image is None else image.publication
            # Else its part of the answer was noted, and its worker died before the rest was.
            if sent is None or self.telling.serial not in sent.serials:
                serial = Serial(self.telling.serial)
        return serial

    def _drop_locks(self, is_gone: Callable[[Locked], bool]) -> None:
        for lock in filter(is_gone, list(self.locks)):
            del self.locks[lock]

    def _apply_content(self, record: Any) -> None:
        match record:
            case Staged():
                content = None if record.data is None else bytearray(record.data)
                self.stages[record.source] = StageImage(Ino(record.ino), record.size, content)
                self.last_source = min(self.last_source, record.source)
            case Wrote():
                file = self._changed(record)
                for offset, length, source, source_offset, data in record.pieces:
                    self._fill(source, record.ino, source_offset, length, data)
                    file.content.write(offset, length, source, source_offset, record.append)
                self.written[record.unique] = record.length
            case Cut():
                self._changed(record).content.truncate(record.to)
            case Punched():
                file = self._changed(record)
                file.content.punch(record.offset, record.length, record.keep_size)
            case Stamped():
                if record.ino in self.files:
                    self.files[Ino(record.ino)].mtime_ns = record.mtime_ns
            case Rebased():
                if record.ino in self.files:
                    self.files[Ino(record.ino)].content.rebase_empty(record.size)
            case Publishing() | Committing() | Published():
                self._apply_publication(record)
            case Forgotten():
                self.files.pop(Ino(record.ino), None)
                self._drop_stages()
            case Frozen():
                sent = None if record.publishing is None else Publication.unpack(record.publishing)
                self.files[Ino(record.ino)] = FileImage(
                    Content.thaw(FrozenContent(*record.content), sent.changes if sent else None),
                    Caller(*record.caller), record.mtime_ns, sent,
                )  # fmt: skip
            case _:
                raise AssertionError(record)

    def _changed(self, record: Wrote | Cut | Punched) -> FileImage:
        """The file as it was before this change; its size is the record's when it was clean."""
        file = self.files.get(Ino(record.ino))
        if file is None:
            file = self.files[Ino(record.ino)] = FileImage(Content.empty(record.size))
        file.caller = Caller(*record.caller)
        file.mtime_ns = record.mtime_ns
        return file

    def _fill(self, source: int, ino: int, offset: int, length: int, data: bytes | None) -> None:
        stage = self.stages.get(source)
        if stage is None:
            # Also one of which nothing was needed for a while, at a snapshot: it goes on where it
            # was, in its file or behind bytes that nobody asks for.
            stage = self.stages[source] = StageImage(Ino(ino))
            if data is None:
                stage.data = None
            self.last_source = min(self.last_source, source)
        stage.size = max(stage.size, offset + length)
        if data is not None and stage.data is not None:
            stage.data.extend(bytes(max(0, offset - len(stage.data))))
            stage.data[offset : offset + length] = data

    def _apply_publication(self, record: Publishing | Committing | Published) -> None:
        if isinstance(record, Committing):
            self.last_serial = max(self.last_serial, record.serial)
        file = self.files.get(Ino(record.ino))
        if file is None:
            return  # its last handle went meanwhile, and then there was a snapshot
        if isinstance(record, Publishing):
            changes = file.content.take_changes()
            file.publication = Publication(changes, file.caller, file.mtime_ns, [])
        elif isinstance(record, Committing):
            assert file.publication is not None, record
            file.publication.serials.append(Serial(record.serial))
        else:
            self._published(file, record)

    def _published(self, file: FileImage, record: Published) -> None:
        publication = file.publication
        assert publication is not None, record
        file.publication = None
        if not record.success:
            file.content.restore(publication.changes)
        elif not file.content.dirty:
            del self.files[Ino(record.ino)]
        self._drop_stages()

    def _drop_stages(self) -> None:
        if not self.files:
            self.stages.clear()
            return
        needed = {source for file in self.files.values() for source in needed_sources(file)}
        self.stages = {source: stage for source, stage in self.stages.items() if source in needed}


def needed_sources(file: FileImage) -> set[int]:
    """Stages that hold something unpublished of the file."""
    segments: Iterable[Segment] = file.content.unpublished()
    needed = {segment.source for segment in segments}
    if file.publication is not None:
        needed.update(segment.source for segment in file.publication.changes.segments)
    return {source for source in needed if source < 0}
