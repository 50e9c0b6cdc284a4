"""Records that cross rooms: what the tree answers, the wire carries and the client reads.

Every record is a NamedTuple of plain values, so msgpack carries it as an array and nothing needs a
second representation. ``from_wire`` checks what came from a peer; it raises ValueError.
Imports only ids.
"""

from __future__ import annotations

import errno
import stat
from typing import Any, NamedTuple

from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId, Ino, LogIndex, NodeNumber, TimeNs

NAME_MAX_BYTES = 255  # every Linux file system's limit; DESIGN section 3
SYMLINK_MAX_BYTES = 4095  # PATH_MAX less the final NUL
XATTR_NAME_MAX_BYTES = 255  # xattr(7)
XATTR_VALUE_MAX_BYTES = 65536  # xattr(7)
FILE_SIZE_MAX = INT64_MAX  # off_t
CHECKSUM_BYTES = 32  # BLAKE3


# On a directory: how many copies the content of files below it should have, in decimal digits. The
# nearest one above a file counts; without any, the cluster's setting "replicas".
FACTOR_XATTR = b"user.pydi.replicas"


# POSIX access control lists, as programs see them: on anything but a symlink, and on a directory.
ACCESS_ACL_XATTR = b"system.posix_acl_access"
DEFAULT_ACL_XATTR = b"system.posix_acl_default"
ACL_XATTRS = frozenset((ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR))

# An inode's mode is st_mode and, above it, what lists it has. With an access list the bits of group
# and others in st_mode are what the list grants at least to everybody: whoever does not know of
# lists shows and grants that. `acl_mode` is for those that obey them.
ST_MODE_BITS = 0xFFFF
ACCESS_ACL = 1 << 16
DEFAULT_ACL = 1 << 17
ACL_BITS_SHIFT = 18  # of six bits: the mask, and others' entry


def acl_mode(mode: int) -> int:
    """st_mode where the access list is obeyed: the group's bits are its mask."""
    if mode & ACCESS_ACL:
        mode = mode & ~0o77 | mode >> ACL_BITS_SHIFT & 0o77
    return mode & ST_MODE_BITS


class Attr(NamedTuple):
    """An inode as stat(2) shows it."""

    ino: Ino
    mode: int  # S_IFMT | permission bits; above them see ACCESS_ACL
    nlink: int
    uid: int
    gid: int
    rdev: int  # major and minor as the kernel packs them, 0 unless a device
    size: int  # bytes
    allocated: int  # bytes covered by extents; st_blocks = ceil(allocated / 512)
    atime_ns: TimeNs
    mtime_ns: TimeNs
    ctime_ns: TimeNs
    btime_ns: TimeNs
    version: LogIndex  # log index of the last change of content
    changed: LogIndex  # log index of the last change of anything in the inode

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @classmethod
    def from_wire(cls, value: Any) -> Attr:
        # Times before 1970 are negative.
        return cls(*_integers(value, 14, "attr", low=-INT64_MAX))  # type: ignore[arg-type]


class DirEntry(NamedTuple):
    """One name in a directory. ``cookie`` grows with creation and stays while the entry lives."""

    cookie: int  # > 0; readdir continues after it
    name: bytes
    attr: Attr

    @classmethod
    def from_wire(cls, value: Any) -> DirEntry:
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise ValueError("directory entry: not a triple")
        cookie, name, attr = value
        if not isinstance(cookie, int) or not isinstance(name, bytes):
            raise ValueError("directory entry: wrong types")
        return cls(cookie, name, Attr.from_wire(attr))


class Extent(NamedTuple):
    """``length`` bytes of a file at ``offset`` are the bytes of ``blob`` from ``blob_offset``.

    blob 0 stands for a hole; only commands use it (to say "this range becomes zeros").
    """

    offset: int  # bytes in the file
    length: int  # bytes, >= 1
    blob: BlobId
    blob_offset: int  # bytes in the blob

    @classmethod
    def from_wire(cls, value: Any) -> Extent:
        offset, length, blob, blob_offset = _integers(value, 4, "extent")
        if length < 1 or offset + length > FILE_SIZE_MAX or blob > BLOB_ID_MAX:
            raise ValueError("extent: out of range")
        return cls(offset, length, BlobId(blob), blob_offset)


HOLE = BlobId(0)

# Holders of a blob whose content is in the tree itself, and so wherever the tree is. No node has
# the number 0.
IN_TREE = (NodeNumber(0),)


class BlobInfo(NamedTuple):
    """What the tree knows of a blob: enough to verify any copy and to find one."""

    blob: BlobId
    size: int  # bytes
    checksum: bytes  # BLAKE3 of the whole content, CHECKSUM_BYTES long
    holders: tuple[NodeNumber, ...]  # ascending, each holds a durable copy; or IN_TREE

    @property
    def is_in_tree(self) -> bool:
        return self.holders == IN_TREE

    @classmethod
    def from_wire(cls, value: Any) -> BlobInfo:
        if not isinstance(value, (list, tuple)) or len(value) != 4:
            raise ValueError("blob: not four fields")
        blob, size, checksum, holders = value
        if not isinstance(checksum, bytes) or len(checksum) != CHECKSUM_BYTES:
            raise ValueError("blob: checksum length")
        if not isinstance(holders, (list, tuple)) or len(holders) > HOLDERS_MAX:
            raise ValueError("blob: holders")
        numbers = _integers(holders, len(holders), "holders")
        blob, size = _integers((blob, size), 2, "blob")
        if not 1 <= blob <= BLOB_ID_MAX:
            raise ValueError("blob: id out of range")
        if numbers != IN_TREE and (
            sorted(set(numbers)) != list(numbers) or any(n < 1 for n in numbers)
        ):
            raise ValueError("blob: holders not ascending")
        return cls(BlobId(blob), size, checksum, tuple(NodeNumber(n) for n in numbers))


HOLDERS_MAX = 64  # a factor above this is a mistake, not a wish


class FileVersion(NamedTuple):
    """All that a reader needs: the inode, its extents in ascending order, and their blobs."""

    attr: Attr
    extents: tuple[Extent, ...]
    blobs: tuple[BlobInfo, ...]  # each blob named by an extent, once, ascending by id
    # Of the first of those blobs that are in the tree, CONTENTS_MAX_BYTES at most.
    contents: tuple[tuple[BlobId, bytes], ...] = ()

    @classmethod
    def from_wire(cls, value: Any) -> FileVersion:
        # A node of before sends no contents.
        if not isinstance(value, (list, tuple)) or len(value) not in (3, 4):
            raise ValueError("file version: not four fields")
        attr, extents, blobs, contents = value if len(value) == 4 else (*value, ())
        if not all(isinstance(field, (list, tuple)) for field in (extents, blobs, contents)):
            raise ValueError("file version: wrong types")
        version = cls(
            Attr.from_wire(attr),
            tuple(Extent.from_wire(e) for e in extents),
            tuple(BlobInfo.from_wire(b) for b in blobs),
            tuple(_content(c) for c in contents),
        )
        size_of = {info.blob: info.size for info in version.blobs}
        if any(size_of.get(blob) != len(data) for blob, data in version.contents):
            raise ValueError("file version: content of another blob")
        return version


CONTENTS_MAX_BYTES = 64 * 1024  # with each open of a file; the rest is read like any blob


class Statfs(NamedTuple):
    """Totals for statvfs(3): bytes over all storage, inodes of the tree."""

    total_bytes: int
    free_bytes: int
    files: int

    @classmethod
    def from_wire(cls, value: Any) -> Statfs:
        return cls(*_integers(value, 3, "statfs"))


class Version(NamedTuple):
    """One state of a file that is kept: present when ``until`` is None, else history.

    since  log index with which it began to show.
    until  log index with which it ceased to show; None: it still does.
    attr   the inode as of its end (or as of now).
    """

    since: LogIndex
    until: LogIndex | None
    attr: Attr

    @classmethod
    def from_wire(cls, value: Any) -> Version:
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise ValueError("version: not a triple")
        (since,) = _integers(value[:1], 1, "version")
        until = None if value[1] is None else LogIndex(*_integers(value[1:2], 1, "version"))
        return cls(LogIndex(since), until, Attr.from_wire(value[2]))


class NodeInfo(NamedTuple):
    """Book-keeping of one cluster member, as SetNode left it."""

    number: NodeNumber
    address: str  # HOST:PORT where it was last reachable
    state: str  # "up", "draining" or "forgotten"
    witness: bool  # votes, but holds no blobs

    @classmethod
    def from_wire(cls, value: Any) -> NodeInfo:
        if not isinstance(value, (list, tuple)) or len(value) != 4:
            raise ValueError("node: not four fields")
        (number,) = _integers(value[:1], 1, "node", low=1)
        _, address, state, witness = value
        if not isinstance(address, str) or not isinstance(state, str) or witness not in (0, 1):
            raise ValueError("node: wrong types")
        return cls(NodeNumber(number), address, state, bool(witness))


class TokenInfo(NamedTuple):
    """One mount token that was made, as SetToken left it. The token itself is nowhere in the tree:
    who has this can't mount."""

    token_id: bytes  # 8 bytes
    read_only: bool
    directory: bytes  # absolute path
    expires_s: int  # since 1970; 0: never
    made_s: int  # since 1970
    note: str  # what a person called it
    revoked: bool


class SecretChange(NamedTuple):
    """The last change of the cluster's secret, which wire/keyring.py makes and reads."""

    generation: int  # of the new secret
    sealed_new: bytes  # under the old one
    sealed_old: bytes  # under the new one; empty when the old one does not count any more
    ends_s: int  # since 1970: when the old one is to be retired


class BlobTotal(NamedTuple):
    """How many blobs, of those that some version names, are held by exactly these nodes and should
    have that many copies."""

    holders: tuple[NodeNumber, ...]  # ascending; none means lost
    blobs: int
    bytes: int
    factor: int = 0  # copies asked for by a directory; 0: as the setting "replicas" says


class Counters(NamedTuple):
    """Totals of the tree that the replicas agree on."""

    files: int  # inodes of all kinds, orphans included
    bytes: int  # sum of their ``allocated``


# As the name of an entry in ``Touched``: every name in that directory, known or known to be absent.
EVERY_NAME = b""


class Touched(NamedTuple):
    """What one applied command made stale: caches drop these before anyone relies on the change."""

    inos: tuple[Ino, ...] = ()  # attributes and content
    entries: tuple[tuple[Ino, bytes], ...] = ()  # (parent, name)

    @classmethod
    def from_wire(cls, value: Any) -> Touched:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError("touched: not a pair")
        inos, entries = value
        if not isinstance(inos, (list, tuple)) or not isinstance(entries, (list, tuple)):
            raise ValueError("touched: wrong types")
        pairs = []
        for entry in entries:
            if not isinstance(entry, (list, tuple)) or len(entry) != 2:
                raise ValueError("touched: entry")
            parent, name = entry
            if not isinstance(parent, int) or not isinstance(name, bytes):
                raise ValueError("touched: entry types")
            pairs.append((Ino(parent), name))
        return cls(tuple(Ino(i) for i in _integers(inos, len(inos), "touched")), tuple(pairs))


# As a Result's errno: nothing was done and nothing will be remembered, for others hold the
# directories in ``value``. The node has them given back and applies the command again, so nobody
# else ever sees it. No command ends with this errno.
DELEGATED = errno.EAGAIN


class Result(NamedTuple):
    """Outcome of one command, identical on every replica.

    errno   0 or a positive errno; with an errno nothing changed.
    value   the command's answer (see commands.py), plain values or records.
    touched what caches must drop.
    directories  those of ``touched`` whose entries changed, as they are now: whoever asked for the
            change looks there next. A repetition gets none: they would be most of what is kept.
    """

    errno: int = 0
    value: Any = None
    touched: Touched = Touched()
    directories: tuple[Attr, ...] = ()

    @property
    def kept(self) -> Result:
        """What a repetition of the command gets."""
        return Result(self.errno, self.value, self.touched) if self.directories else self


def _content(value: Any) -> tuple[BlobId, bytes]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("content: not a pair")
    blob, data = value
    if type(blob) is not int or not isinstance(data, bytes):
        raise ValueError("content: wrong types")
    return BlobId(blob), data


def _integers(value: Any, count: int, what: str, low: int = 0) -> tuple[int, ...]:
    """``count`` integers low .. INT64_MAX out of a peer's array, or ValueError naming ``what``."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"{what}: expected {count} fields")
    # Three passes in C take half the time of one in Python, and a listing is thousands of these.
    # Types first: comparing what is not a number would raise TypeError.
    if count and (
        set(map(type, value)) != _INTEGER_ONLY or min(value) < low or max(value) > INT64_MAX
    ):
        raise ValueError(f"{what}: field out of range")
    return tuple(value)


_INTEGER_ONLY = {int}  # not bool, which is an int to isinstance
