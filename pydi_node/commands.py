"""Commands: the only way to change the tree, as frozen records.

The client builds them, the wire carries them as plain tuples, the log keeps them, the tree applies
them; hence beside ids and records, below all rooms. A command carries everything that is not
deterministic (time comes with the envelope; ids of blobs; the caller's identity), so that applying
the same log gives the same tree on every node.

Errors split in two. ``decode`` refuses what no honest client sends (unknown code, wrong type, a
name with "/" or NUL, a negative size) with CommandError, before it reaches the log. What depends
on the tree or is an ordinary user's mistake (ENOENT, ENAMETOOLONG) is an outcome of applying.
"""

from __future__ import annotations

import dataclasses
import operator
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydi_node.ids import INT64_MAX, BlobId, ClientId, Ino, LogIndex, NodeNumber, Serial, TimeNs
from pydi_node.records import HOLE, BlobInfo, Extent

# rename(2) flags
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
# setxattr(2) flags
XATTR_CREATE = 1
XATTR_REPLACE = 2
# Ours, with an access list: whoever sets it may not have a set-group-id bit set.
XATTR_KILL_SGID = 4

# A name longer than 255 bytes is an outcome (ENAMETOOLONG); one longer than a path is an attack.
NAME_WIRE_MAX_BYTES = 4096
XATTR_VALUE_WIRE_MAX_BYTES = 1 << 20
TOKEN_ID_BYTES = 8
SEALED_MAX_BYTES = 128  # a secret under a seal has 60
GROUPS_MAX = 65536  # NGROUPS_MAX of Linux
EXTENTS_PER_COMMAND_MAX = 65536  # 64 Ki extents of ~20 bytes keep a command near 1 MiB
INOS_PER_COMMAND_MAX = 4096
# Numbers of one ReserveInodes: which of them are used fits into one positive integer of SQLite.
INODES_RESERVED = 62
RESERVATIONS_PER_CLIENT_MAX = 4  # that the tree remembers, the latest
# Commands of one Batch. A mount tells half as many at a time; more would hold up the commands of
# others for longer than a disk does.
BATCH_COMMANDS_MAX = 128
# What a command may carry of a file. The setting inline_max_bytes says how much it does.
INLINE_WIRE_MAX_BYTES = 64 * 1024


class CommandError(ValueError):
    """A command that no honest client sends; the message is one clear sentence."""


class Caller(NamedTuple):
    """Who asks. groups None: permissions were already checked by the kernel (default_permissions);
    otherwise the tree checks them against uid, gid and these supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None = None


ROOT_CALLER = Caller(0, 0, None)


def new_file_gid(directory_mode: int, directory_gid: int, caller: Caller) -> int:
    """The group of what the caller creates in a directory. Source: inode_init_owner of Linux."""
    return directory_gid if directory_mode & stat.S_ISGID else caller.gid


@dataclass(frozen=True, slots=True)
class Mkdir:
    """New directory. Value: Attr.

    ino  its number, as in PutFile; then it is delegated to the client from the start.
    """

    caller: Caller
    parent: Ino
    name: bytes
    mode: int  # 12 permission bits
    umask: int = 0  # taken off unless the directory has a default list; 0: was taken off before
    ino: Ino | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """New regular file, or without ``exclusive`` the existing one. Value: (Attr, created: bool)."""

    caller: Caller
    parent: Ino
    name: bytes
    mode: int  # 12 permission bits
    exclusive: bool
    umask: int = 0  # as in Mkdir


@dataclass(frozen=True, slots=True)
class PutFile:
    """New regular file with all of its content; EEXIST when there is the name. Value: Attr.

    size, extents, blobs, mtime_ns, content  as in a Commit with a cut at 0.
    ino  its number, out of a reservation of this client (ReserveInodes), in a directory that is
         delegated to it; ESTALE when either does not hold. None: the next one.
    atime_ns, ctime_ns  None: now. A mount that tells of a file later has shown them to programs.
    """

    caller: Caller
    parent: Ino
    name: bytes
    mode: int  # 12 permission bits
    size: int  # bytes
    extents: tuple[Extent, ...]
    blobs: tuple[BlobInfo, ...]
    mtime_ns: TimeNs | None = None
    content: bytes | None = None
    ino: Ino | None = None
    atime_ns: TimeNs | None = None
    ctime_ns: TimeNs | None = None


@dataclass(frozen=True, slots=True)
class Mknod:
    """New fifo, socket, device or empty regular file. Value: Attr."""

    caller: Caller
    parent: Ino
    name: bytes
    mode: int  # S_IFMT | 12 permission bits
    rdev: int
    umask: int = 0  # as in Mkdir


@dataclass(frozen=True, slots=True)
class Symlink:
    """New symbolic link. Value: Attr. ino: its number, as in PutFile."""

    caller: Caller
    parent: Ino
    name: bytes
    target: bytes
    ino: Ino | None = None


@dataclass(frozen=True, slots=True)
class Tmpfile:
    """New regular file without a name (O_TMPFILE): an orphan until linked. Value: Attr."""

    caller: Caller
    parent: Ino
    mode: int
    umask: int = 0  # as in Mkdir


@dataclass(frozen=True, slots=True)
class Link:
    """Another name for ``ino``. Value: Attr."""

    caller: Caller
    ino: Ino
    new_parent: Ino
    new_name: bytes


@dataclass(frozen=True, slots=True)
class Unlink:
    """Remove a name that is not a directory. Value: Attr after it; nlink 0 makes an orphan, which
    stays readable until PurgeOrphans."""

    caller: Caller
    parent: Ino
    name: bytes


@dataclass(frozen=True, slots=True)
class Rmdir:
    """Remove an empty directory. Value: None."""

    caller: Caller
    parent: Ino
    name: bytes


@dataclass(frozen=True, slots=True)
class Rename:
    """Move a name. flags: RENAME_NOREPLACE or RENAME_EXCHANGE or 0.
    Value: (Attr of what moved, Attr of what was replaced or exchanged, or None)."""

    caller: Caller
    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class SetAttr:
    """Change what is not None. ``size`` cuts or extends with a hole. Value: Attr.
    A time of TIME_NOW means the command's own time."""

    caller: Caller
    ino: Ino
    mode: int | None = None  # 12 permission bits
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


TIME_NOW = -INT64_MAX - 1  # like UTIME_NOW of utimensat(2); no real time has this value


@dataclass(frozen=True, slots=True)
class SetXattr:
    """Set one extended attribute; flags XATTR_CREATE, XATTR_REPLACE or 0. Value: None."""

    caller: Caller
    ino: Ino
    name: bytes
    value: bytes
    flags: int


@dataclass(frozen=True, slots=True)
class RemoveXattr:
    """Remove one extended attribute. Value: None."""

    caller: Caller
    ino: Ino
    name: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """A new version of a file's content, as changes to the version before it. Value: Attr.

    Order of application: check ``base_version`` (when not None and not the inode's version:
    ESTALE); cut all extents at ``cut`` (None: no cut); if ``append``, shift ``extents`` so that
    offset 0 is the current size; for each extent in order carve its range out of what is there
    and put it in (a blob of 0 leaves a hole); the size becomes ``size`` if there was a cut, else
    the larger of the present size and ``size`` (for an append: present size + ``size``).
    So two writers of disjoint ranges of one file both keep their bytes.

    blobs  every blob that ``extents`` names and the tree does not yet know, with its holders.
    mtime_ns  None: the command's time.
    content  the bytes of the one blob among ``blobs`` whose holders are IN_TREE: the tree keeps
             them. None: there is no such blob.
    """

    caller: Caller
    ino: Ino
    base_version: LogIndex | None
    cut: int | None  # bytes
    size: int  # bytes
    append: bool
    extents: tuple[Extent, ...]
    blobs: tuple[BlobInfo, ...]
    mtime_ns: TimeNs | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class CloneRange:
    """copy_file_range(2) without copying: extents of the source become extents of the target.
    Value: (Attr of the target, bytes cloned; short at the source's end)."""

    caller: Caller
    source: Ino
    source_offset: int
    target: Ino
    target_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class PurgeOrphans:
    """Drop inodes without a name that no mount holds open; others are skipped. Value: count."""

    inos: tuple[Ino, ...]


@dataclass(frozen=True, slots=True)
class TrimHistory:
    """Forget rows whose validity ended at or before ``until``. Value: (rows dropped, whether more
    are left); at most ``limit`` rows go, so that one command never blocks the log for long."""

    until: LogIndex
    limit: int


@dataclass(frozen=True, slots=True)
class SetSetting:
    """Change one cluster setting; an unknown name or bad value is EINVAL. Value: None."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SetHolders:
    """Repair's book-keeping: nodes that now hold, and no longer hold, a copy. Removing the last
    holder is EINVAL unless ``lost`` (every copy is known to be gone). Value: BlobInfo."""

    blob: BlobId
    add: tuple[NodeNumber, ...]
    remove: tuple[NodeNumber, ...]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class ForgetBlobs:
    """Garbage collected: drop blob rows that no version, present or kept, names. Value: count."""

    blobs: tuple[BlobId, ...]


@dataclass(frozen=True, slots=True)
class ExpireSessions:
    """Forget client sessions not used since ``before_ns``. Value: count."""

    before_ns: TimeNs


@dataclass(frozen=True, slots=True)
class SetNode:
    """Book-keeping of a cluster member: address, state ("up", "draining", "forgotten"), whether it
    is a witness. Value: None."""

    number: NodeNumber
    address: str
    state: str
    witness: bool


@dataclass(frozen=True, slots=True)
class SpreadFactors:
    """Give blobs the number of copies that the directories above them ask for, where that changed;
    looks at no more than about ``limit`` entries. Value: (entries looked at, whether more are
    left)."""

    limit: int


@dataclass(frozen=True, slots=True)
class SetToken:
    """The list of mount tokens has this one, with these limits; revoked, it opens nothing any more.
    Value: None."""

    token_id: bytes  # 8 bytes
    read_only: bool
    directory: bytes  # absolute path
    expires_s: int  # since 1970; 0: never
    made_s: int
    note: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class SetSecret:
    """The cluster gets its next secret; until RetireSecret the one before counts, too. EBUSY while
    another change goes on, ESTALE when another one came first. Value: None."""

    generation: int  # of the new secret; the cluster's first one has 0
    sealed_new: bytes  # the new secret, sealed under the old one: see wire/keyring.py
    sealed_old: bytes  # and the old one under the new one
    ends_s: int  # since 1970: the leader proposes RetireSecret then


@dataclass(frozen=True, slots=True)
class RetireSecret:
    """Only the secret of this generation counts from now on, and mount tokens made before it are
    revoked. ESTALE when it is not the newest one; done twice, the second does nothing. Value: None.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class Compact:
    """The same content in fewer extents: each range of ``extents`` was rewritten into a new blob.
    Size, times and version stay. ESTALE when the inode's version is another one. Value: Attr.

    content  as in Commit.
    """

    ino: Ino
    version: LogIndex
    extents: tuple[Extent, ...]
    blobs: tuple[BlobInfo, ...]
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReserveInodes:
    """Inode numbers that only this client's new inodes may have, until its session expires or it
    has reserved others several times. Value: the first of INODES_RESERVED consecutive ones."""


@dataclass(frozen=True, slots=True)
class Delegate:
    """Only this client may change names in the directory, or the directory itself, until it gives
    that back or loses it. Value: whether it may; not while another one does, nor once it is asked
    for it back, nor when it has very many."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class Undelegate:
    """Directories that are delegated to this client are so no longer. Value: how many were."""

    inos: tuple[Ino, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Whoever has these directories is told, as of a change to them, to give them back. Value: how
    many are delegated."""

    inos: tuple[Ino, ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    """The delegations of these directories end, if their first Recall was at or before the log
    index ``recalled``: it is released, so the holder uses them no more. Value: how many ended."""

    inos: tuple[Ino, ...]
    recalled: LogIndex


@dataclass(frozen=True, slots=True)
class Batch:
    """What a client has done by itself in directories that are delegated to it, in order, each as
    if it were a command of its own. Value: for each command (errno, its value).

    Each is executed only if the directories whose names or attributes it changes, or the directory
    that the inode of a SetAttr is in, are delegated to the client when it is applied; else ESTALE.
    And what comes after a refused one in one of the refused one's directories is refused as well
    (ESTALE): it was decided by what its client believed to be there.

    commands  Unlink, Rmdir, Rename, SetAttr without a size, Mkdir and Symlink with a number; and as
              the last, a PutFile with a number.
    times     when each was done, as programs have been shown it; not later than the entry's time.
    """

    commands: tuple[Command, ...]
    times: tuple[TimeNs, ...]


Command = (
    Mkdir | Create | Mknod | Symlink | Tmpfile | Link | Unlink | Rmdir | Rename | SetAttr
    | SetXattr | RemoveXattr | Commit | CloneRange | PurgeOrphans | TrimHistory | SetSetting
    | SetHolders | ForgetBlobs | ExpireSessions | SetNode | SpreadFactors | SetToken
    | Compact | SetSecret | RetireSecret | PutFile | ReserveInodes | Delegate | Undelegate | Recall
    | Revoke | Batch
)  # fmt: skip


class Envelope(NamedTuple):
    """One log entry's command: who sent it (for exactly-once), when, and what.

    client 0 marks the cluster's own housekeeping: never deduplicated.
    """

    client: ClientId
    serial: Serial
    time_ns: TimeNs  # set by the leader at proposal
    command: Command


# Codes are part of the log format: never renumber, only add.
COMMAND_CODES: dict[type[Any], int] = {
    Mkdir: 1, Create: 2, Mknod: 3, Symlink: 4, Tmpfile: 5, Link: 6, Unlink: 7, Rmdir: 8,
    Rename: 9, SetAttr: 10, SetXattr: 11, RemoveXattr: 12, Commit: 13, CloneRange: 14,
    PurgeOrphans: 15, TrimHistory: 16, SetSetting: 17, SetHolders: 18, ForgetBlobs: 19,
    ExpireSessions: 20, SetNode: 21, SpreadFactors: 22, Compact: 23,
    SetToken: 25, SetSecret: 26, RetireSecret: 27, PutFile: 28,
    ReserveInodes: 29, Delegate: 30, Undelegate: 31, Recall: 32, Revoke: 33,
    Batch: 34,
}  # fmt: skip

# Codes that a client may send; the others come from the nodes themselves.
CLIENT_COMMANDS = frozenset(
    COMMAND_CODES[c]
    for c in (Mkdir, Create, Mknod, Symlink, Tmpfile, Link, Unlink, Rmdir, Rename, SetAttr,
              SetXattr, RemoveXattr, Commit, CloneRange, PutFile, ReserveInodes, Delegate,
              Undelegate, Batch)
)  # fmt: skip

# What may enter the log when the disk is nearly full: it makes room, keeps the books that do, or
# somebody waits for it who only wants to look.
MAKES_ROOM = (
    Unlink, Rmdir, PurgeOrphans, TrimHistory, ForgetBlobs, ExpireSessions, SetHolders, SetNode,
    SetToken, Undelegate, Recall, Revoke,
)  # fmt: skip


def makes_room(command: Command) -> bool:
    """Whether the command may enter the log when the disk is nearly full."""
    if isinstance(command, Batch):
        return all(isinstance(part, MAKES_ROOM) for part in command.commands)
    return isinstance(command, MAKES_ROOM)


# The last fields of commands that got them after there were logs with them, and what stands for
# each: they are left out when they are not used, so a log of before is read, and one that needs
# nothing new can be read by a node of before.
_ADDED: dict[type[Any], tuple[Any, ...]] = {
    Commit: (None,), Compact: (None,), PutFile: (None, None, None), Mkdir: (0, None),
    Create: (0,), Mknod: (0,), Tmpfile: (0,), Symlink: (None,),
}  # fmt: skip


def encode(command: Command) -> tuple[Any, ...]:
    """The command as a flat tuple of plain values, its code first; ``decode`` reverses it."""
    cls = type(command)
    if isinstance(command, Batch):
        parts = tuple(encode(part) for part in command.commands)
        return (COMMAND_CODES[cls], parts, command.times)
    values = _VALUES[cls](command)
    unused = 0
    for default in _ADDED_LAST_FIRST.get(cls, ()):
        if values[-1 - unused] != default:
            break
        unused += 1
    return (COMMAND_CODES[cls], *(values[:-unused] if unused else values))


def decode(value: Any) -> Command:
    """The command in a peer's tuple. CommandError, with a sentence, for anything malformed."""
    if not isinstance(value, (list, tuple)) or not value:
        raise CommandError("a command is a non-empty array")
    cls = _CLASSES.get(value[0]) if type(value[0]) is int else None
    if cls is None:
        raise CommandError(f"unknown command {value[0]!r:.40}")
    checks = _FIELD_CHECKS[cls]
    if cls in _ADDED and (missing := len(checks) + 1 - len(value)) > 0:
        value = (*value, *_ADDED[cls][-missing:])
    if len(value) != len(checks) + 1:
        raise CommandError(f"{cls.__name__}: {len(value) - 1} fields instead of {len(checks)}")
    arguments: list[Any] = []
    try:
        for check, field in zip(checks, value[1:], strict=True):
            arguments.append(check(field))
    except ValueError as exc:
        name, _ = _FIELDS[cls][len(arguments)]
        raise CommandError(f"{cls.__name__}.{name}: {exc}") from exc
    command: Command = cls(*arguments)  # the table maps codes to the union
    if isinstance(command, Batch) and len(command.commands) != len(command.times):
        raise CommandError("Batch: not a time for each command")
    return command


def encode_envelope(envelope: Envelope) -> tuple[Any, ...]:
    """(client, serial, time_ns, command tuple)."""
    return (envelope.client, envelope.serial, envelope.time_ns, encode(envelope.command))


def decode_envelope(value: Any) -> Envelope:
    """The envelope in a tuple; CommandError for anything malformed."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise CommandError("an envelope has four fields")
    client, serial, time_ns, command = value
    for field in (client, serial, time_ns):
        if type(field) is not int or not 0 <= field <= INT64_MAX:
            raise CommandError("envelope: number out of range")
    return Envelope(ClientId(client), Serial(serial), TimeNs(time_ns), decode(command))


# --- checks of single fields: value in, checked value out, ValueError with the reason -------------


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"not an integer {low} .. {high}")
        return value

    return check


def _optional(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        return None if value is None else inner(value)

    return check


def _array(inner: Callable[[Any], Any], length_max: int) -> Callable[[Any], tuple[Any, ...]]:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > length_max:
            raise ValueError(f"not an array of at most {length_max}")
        return tuple(inner(item) for item in value)

    return check


def _name(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) > NAME_WIRE_MAX_BYTES:
        raise ValueError("not a name")
    if b"/" in value or b"\0" in value:
        raise ValueError("a name contains neither '/' nor NUL")
    if value in (b"", b".", b".."):
        raise ValueError("not the name of an entry")
    return value


def _bytes(length_max: int) -> Callable[[Any], bytes]:
    def check(value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) > length_max:
            raise ValueError(f"not at most {length_max} bytes")
        return value

    return check


def _no_nul(value: Any) -> bytes:
    value = _bytes(NAME_WIRE_MAX_BYTES * 2)(value)
    if b"\0" in value:
        raise ValueError("contains NUL")
    return value  # type: ignore[no-any-return]  # checked just above


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not a boolean")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > NAME_WIRE_MAX_BYTES:
        raise ValueError("not a short text")
    return value


def _token_id(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != TOKEN_ID_BYTES:
        raise ValueError("not a token's id")
    return value


def _caller(value: Any) -> Caller:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError("not (uid, gid, groups)")
    uid, gid, groups = value
    return Caller(_ID(uid), _ID(gid), None if groups is None else _GROUPS(groups))


def _extent(value: Any) -> Extent:
    extent = Extent.from_wire(value)
    if extent.blob == HOLE and extent.blob_offset != 0:
        raise ValueError("a hole has no blob offset")
    return extent


def _batch(value: Any) -> tuple[Command, ...]:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= BATCH_COMMANDS_MAX:
        raise ValueError(f"not 1 to {BATCH_COMMANDS_MAX} commands")
    commands = []
    for part in value:
        # Its code first: a batch in a batch is looked into by nobody.
        if not isinstance(part, (list, tuple)) or not part or part[0] not in _BATCHED_CODES:
            raise ValueError("not a command of a batch")
        commands.append(decode(part))
    for command in commands:
        if isinstance(command, SetAttr):
            if command.size is not None:
                raise ValueError("SetAttr with a size")
        elif isinstance(command, _NUMBERED) and command.ino is None:
            raise ValueError(f"{type(command).__name__} without a number")
    if any(isinstance(command, PutFile) for command in commands[:-1]):
        raise ValueError("PutFile before the end")
    # As much as one command may have: groups are most of the bytes that a caller has.
    callers = [command.caller for command in commands if isinstance(command, _BATCHED)]
    groups = sum(len(caller.groups or ()) for caller in callers)
    if groups > GROUPS_MAX:
        raise ValueError(f"more than {GROUPS_MAX} groups")
    return tuple(commands)


_BATCHED = (Unlink, Rmdir, Rename, SetAttr, Mkdir, Symlink, PutFile)
_NUMBERED = (Mkdir, Symlink, PutFile)
_BATCHED_CODES = tuple(COMMAND_CODES[cls] for cls in _BATCHED)

_ID = _integer(0, (1 << 32) - 2)  # -1 means "unchanged" to chown(2), never an owner
_GROUPS = _array(_ID, GROUPS_MAX)
_INO = _integer(1, INT64_MAX)
_SIZE = _integer(0, INT64_MAX)
_TIME = _integer(TIME_NOW, INT64_MAX)
_PERMISSIONS = _integer(0, 0o7777)
_NODE = _integer(1, (1 << 15) - 1)

# How each field, by its name, is checked; a name means the same thing in every command.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "caller": _caller,
    "parent": _INO, "new_parent": _INO, "ino": _INO, "source": _INO, "target": _INO,
    "name": _name, "new_name": _name,
    "mode": _PERMISSIONS, "umask": _integer(0, 0o777), "rdev": _integer(0, (1 << 32) - 1),
    "uid": _optional(_ID), "gid": _optional(_ID), "size": _SIZE,
    "atime_ns": _optional(_TIME), "mtime_ns": _optional(_TIME), "ctime_ns": _optional(_TIME),
    "exclusive": _bool, "append": _bool, "lost": _bool, "witness": _bool,
    "flags": _integer(0, 7),
    "value": _bytes(XATTR_VALUE_WIRE_MAX_BYTES),
    "version": _SIZE, "base_version": _optional(_SIZE), "cut": _optional(_SIZE),
    "extents": _array(_extent, EXTENTS_PER_COMMAND_MAX),
    "blobs": _array(BlobInfo.from_wire, EXTENTS_PER_COMMAND_MAX),
    "content": _optional(_bytes(INLINE_WIRE_MAX_BYTES)),
    "source_offset": _SIZE, "target_offset": _SIZE, "length": _SIZE,
    "inos": _array(_INO, INOS_PER_COMMAND_MAX), "commands": _batch,
    "times": _array(_integer(0, INT64_MAX), BATCH_COMMANDS_MAX),
    "until": _SIZE, "limit": _integer(1, 1 << 20),
    "blob": _integer(1, INT64_MAX),
    "add": _array(_NODE, 64), "remove": _array(_NODE, 64),
    "before_ns": _SIZE,
    "number": _NODE, "address": _text, "state": _text,
    "token_id": _token_id, "read_only": _bool, "directory": _bytes(NAME_WIRE_MAX_BYTES),
    "recalled": _SIZE,
    "generation": _integer(1, (1 << 32) - 1), "ends_s": _SIZE,
    "sealed_new": _bytes(SEALED_MAX_BYTES), "sealed_old": _bytes(SEALED_MAX_BYTES),
    "expires_s": _SIZE, "made_s": _SIZE, "note": _text, "revoked": _bool,
}  # fmt: skip

# Where one command gives a name another meaning.
_CHECKS_OF: dict[tuple[type[Any], str], Callable[[Any], Any]] = {
    (Mknod, "mode"): _integer(0, 0o177777),
    (Symlink, "target"): _no_nul,
    (PutFile, "ino"): _optional(_INO),
    (Mkdir, "ino"): _optional(_INO),
    (Symlink, "ino"): _optional(_INO),
    (SetAttr, "mode"): _optional(_PERMISSIONS),
    (SetAttr, "size"): _optional(_SIZE),
    (SetXattr, "name"): _no_nul,
    (RemoveXattr, "name"): _no_nul,
    (SetSetting, "name"): _text,
    (SetSetting, "value"): _text,
    (ForgetBlobs, "blobs"): _array(_integer(1, INT64_MAX), INOS_PER_COMMAND_MAX),
}

_CLASSES: dict[int, Any] = {code: cls for cls, code in COMMAND_CODES.items()}
_FIELDS: dict[type[Any], list[tuple[str, Callable[[Any], Any]]]] = {
    cls: [
        (field.name, _CHECKS_OF.get((cls, field.name)) or _CHECKS[field.name])
        for field in dataclasses.fields(cls)
    ]
    for cls in COMMAND_CODES
}
_FIELD_CHECKS = {cls: [check for _, check in fields] for cls, fields in _FIELDS.items()}
_ADDED_LAST_FIRST = {cls: defaults[::-1] for cls, defaults in _ADDED.items()}


def _values_of(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Reads these attributes, in C if attrgetter gives a tuple of them."""
    if len(names) < 2:
        return lambda command: tuple([getattr(command, name) for name in names])
    return operator.attrgetter(*names)


_VALUES = {cls: _values_of([name for name, _ in fields]) for cls, fields in _FIELDS.items()}
