"""Rows of the tree for the commands: reads and writes that keep history, counters and caches right.

One ``Store`` belongs to one ``Tree``; only command functions and the Tree use it, inside the
transaction of a batch. It decides nothing about POSIX.

Inodes and blobs are written back: a command changes the cached row, and ``flush`` writes what is
dirty once: when a query asks, or with a commit. 64 files created in one directory so cost one write
of the directory, not 64. New entries are written with them, or when a command asks of entries what
``entry()`` does not answer (``_write_entries``). Extents and xattrs are written at once. Hence the
one rule: until then, inode and blob are read through ``inode()`` and ``blob()`` only, and whoever
runs SQL over these tables or over history calls ``flush`` first. A rollback drops every cache.
"""

from __future__ import annotations

import errno
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from pydi_node.errors import FileError
from pydi_node.ids import (
    INT64_MAX,
    ROOT_INO,
    BlobId,
    ClientId,
    Ino,
    LogIndex,
    NodeNumber,
    Term,
    TimeNs,
)
from pydi_node.records import HOLE, IN_TREE, Attr, BlobInfo, Extent
from pydi_node.tree.schema import FACTOR_LITERAL
from pydi_node.tree.settings import SETTINGS

# Rows kept between batches; ~700 bytes each, so about 3 MB and 1 MB at most.
INODES_CACHED_MAX: Final = 4096
BLOBS_CACHED_MAX: Final = 2048
# Directories that were made here, and names in them: ~400 and ~120 bytes each, so 6 MB at most.
DIRECTORIES_KNOWN_MAX: Final = 4096
NAMES_KNOWN_MAX: Final = 32_768

INODE_COLUMNS: Final = (
    "ino, mode, uid, gid, nlink, rdev, size, allocated, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " version, changed, parent, target, since"
)
_INODE_MARKS: Final = ", ".join("?" * 17)
_SELECT_INODE: Final = f"SELECT {INODE_COLUMNS} FROM inode WHERE ino = ?"
_WRITE_INODE: Final = f"REPLACE INTO inode ({INODE_COLUMNS}) VALUES ({_INODE_MARKS})"
_INSERT_ENTRY: Final = "INSERT INTO entry (cookie, parent, name, ino, since) VALUES (?, ?, ?, ?, ?)"
_KEEP_INODE: Final = (
    f"INSERT INTO inode_history ({INODE_COLUMNS}, until) VALUES ({_INODE_MARKS}, ?)"
)
_KEEP_ENTRY: Final = (
    "INSERT INTO entry_history (cookie, parent, name, ino, since, until) VALUES (?, ?, ?, ?, ?, ?)"
)
_KEEP_XATTR: Final = (
    "INSERT INTO xattr_history (ino, name, value, since, until) VALUES (?, ?, ?, ?, ?)"
)
_KEEP_EXTENT: Final = (
    "INSERT INTO extent_history (ino, file_offset, length, blob, blob_offset, since, until)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_SELECT_EXTENTS: Final = (
    "SELECT file_offset, length, blob, blob_offset, since FROM extent WHERE ino = :ino"
    " AND file_offset >= coalesce((SELECT max(file_offset) FROM extent WHERE ino = :ino"
    " AND file_offset < :start), 0) AND file_offset <= :end ORDER BY file_offset"
)
_INSERT_EXTENT: Final = (
    "INSERT INTO extent (ino, file_offset, length, blob, blob_offset, since)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_WRITE_BLOB: Final = (
    "REPLACE INTO blob (blob, size, checksum, holders, refs, factor) VALUES (?, ?, ?, ?, ?, ?)"
)
_ADD_TALLY: Final = (
    "INSERT INTO tally (holders, factor, blobs, bytes) VALUES (:holders, :factor, :blobs, :bytes)"
    " ON CONFLICT (holders, factor) DO UPDATE SET blobs = blobs + :blobs, bytes = bytes + :bytes"
)
_WRITE_META: Final = (
    "UPDATE meta SET applied_index = ?, applied_term = ?, membership_index = ?, membership = ?,"
    " next_ino = ?, next_cookie = ?, history_floor = ?, files = ?, bytes = ? WHERE id = 1"
)


@dataclass(slots=True)
class Meta:
    """The row of table meta; columns are explained in schema.py."""

    applied_index: LogIndex
    applied_term: Term
    membership_index: LogIndex
    membership: bytes
    next_ino: int
    next_cookie: int
    history_floor: LogIndex
    files: int
    bytes: int


@dataclass(slots=True)
class Inode:
    """A row of table inode, in the order of INODE_COLUMNS. Changed only after ``Store.amend`` or
    ``Store.touch`` of the same command."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    allocated: int
    atime_ns: TimeNs
    mtime_ns: TimeNs
    ctime_ns: TimeNs
    btime_ns: TimeNs
    version: LogIndex
    changed: LogIndex
    parent: Ino
    target: bytes  # empty unless a symlink
    since: LogIndex

    def row(self) -> tuple[object, ...]:
        return (
            self.ino, self.mode, self.uid, self.gid, self.nlink, self.rdev, self.size,
            self.allocated, self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns,
            self.version, self.changed, self.parent, self.target, self.since,
        )  # fmt: skip

    def attr(self) -> Attr:
        return Attr(
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size,
            self.allocated, self.atime_ns, self.mtime_ns, self.ctime_ns, self.btime_ns,
            self.version, self.changed,
        )  # fmt: skip


class Entry(NamedTuple):
    """A row of table entry."""

    cookie: int
    parent: Ino
    name: bytes
    ino: Ino
    since: LogIndex


class Delegation(NamedTuple):
    """A row of table delegation, without its inode."""

    client: int
    recalled: int  # log index of the first Recall; 0: none


class StoredExtent(NamedTuple):
    """A row of table extent, without its inode."""

    extent: Extent
    since: LogIndex


# Holders and factor: what table tally counts by.
_Group = tuple[tuple[NodeNumber, ...], int]


@dataclass(slots=True)
class Blob:
    """A row of table blob."""

    blob: BlobId
    size: int
    checksum: bytes
    holders: tuple[NodeNumber, ...]  # ascending
    refs: int
    factor: int  # copies that a directory asks for; 0: as the setting says
    tallied: _Group | None  # as in table tally; None: not counted

    def info(self) -> BlobInfo:
        return BlobInfo(self.blob, self.size, self.checksum, self.holders)


_Row = TypeVar("_Row")

_Move = tuple[_Group | None, _Group | None, int]  # before, after, bytes


def pack_holders(holders: Sequence[NodeNumber]) -> bytes:
    """Node numbers as table blob keeps them."""
    return struct.pack(f">{len(holders)}H", *holders)


def unpack_holders(packed: bytes) -> tuple[NodeNumber, ...]:
    """The reverse of ``pack_holders``."""
    return struct.unpack(f">{len(packed) // 2}H", packed)


class Store:
    """The tree's rows within one transaction.

    index   log index of the command being applied.
    now_ns  its time.
    client  who sent it; 0: the cluster itself.
    writes  grows with every change: a command that ends in an errno must not have moved it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.index = LogIndex(0)
        self.now_ns = TimeNs(0)
        self.client = ClientId(0)
        self.writes = 0
        self._execute = connection.execute
        self.forget()

    def forget(self) -> None:
        """Everything cached is dropped and meta read again: after a rollback, and at the start."""
        row = self._execute(
            "SELECT applied_index, applied_term, membership_index, membership, next_ino,"
            " next_cookie, history_floor, files, bytes FROM meta WHERE id = 1"
        ).fetchone()
        self.meta = Meta(*row)
        self._inodes: dict[int, Inode] = {}
        self._blobs: dict[int, Blob] = {}
        self._dirty_inodes: dict[int, Inode] = {}
        self._dirty_blobs: dict[int, Blob] = {}
        self._inode_history: list[tuple[object, ...]] = []
        self._entry_history: list[tuple[object, ...]] = []
        self._new_entries: dict[tuple[int, bytes], Entry] = {}  # not in SQLite yet
        # All names of some directories: those that were made since the last ``forget``.
        self._names: dict[int, set[bytes]] = {}
        self._names_known = 0
        rows = self._execute(f"SELECT ino, value FROM xattr WHERE name = {FACTOR_LITERAL}")
        self.factors: dict[int, int] = {ino: int(value) for ino, value in rows.fetchall()}
        row = self._execute("SELECT 1 FROM refactor LIMIT 1").fetchone()
        self._may_refactor = row is not None
        rows = self._execute("SELECT ino, client, recalled FROM delegation ORDER BY ino")
        self.delegations: dict[int, Delegation] = {
            ino: Delegation(client, recalled) for ino, client, recalled in rows.fetchall()
        }
        # Of all blobs that are counted in table tally, what is not flushed included.
        (self.blob_bytes,) = self._execute("SELECT coalesce(sum(bytes), 0) FROM tally").fetchone()

    def flush(self) -> None:
        """Every change is in SQLite; caches stay, cut to their bounds."""
        many = self.connection.executemany
        if self._inode_history:
            many(_KEEP_INODE, self._inode_history)
            self._inode_history = []
        if self._entry_history:
            many(_KEEP_ENTRY, self._entry_history)
            self._entry_history = []
        self._write_entries()
        dirty_inodes, self._dirty_inodes = self._dirty_inodes, {}
        if dirty_inodes:
            many(_WRITE_INODE, [inode.row() for inode in dirty_inodes.values()])
        if self._dirty_blobs:
            self._flush_blobs()
        meta = self.meta
        self._execute(
            _WRITE_META,
            (
                meta.applied_index, meta.applied_term, meta.membership_index, meta.membership,
                meta.next_ino, meta.next_cookie, meta.history_floor, meta.files, meta.bytes,
            ),
        )  # fmt: skip
        _shrink(self._inodes, INODES_CACHED_MAX, dirty_inodes)
        _shrink(self._blobs, BLOBS_CACHED_MAX, {})
        while self._names_known > NAMES_KNOWN_MAX or len(self._names) > DIRECTORIES_KNOWN_MAX:
            self._forget_names(next(iter(self._names)))  # what was made first

    # --- inodes ---------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode | None:
        """The inode's present row, shared with everybody who asks in this batch."""
        inode = self._inodes.get(ino)
        if inode is None:
            row = self._execute(_SELECT_INODE, (ino,)).fetchone()
            if row is None:
                return None
            inode = self._inodes[ino] = Inode(*row)
        return inode

    def new_inode(
        self,
        mode: int,
        uid: int,
        gid: int,
        *,
        parent: Ino,
        rdev: int = 0,
        target: bytes = b"",
        ino: Ino | None = None,
    ) -> Inode:
        """A new inode; nlink is 2 for a directory, else 1.

        parent  of a directory; 0 for other kinds.
        ino     its number, which was reserved; None: the next one.
        """
        meta = self.meta
        index = self.index
        now = self.now_ns
        if ino is None:
            ino = Ino(meta.next_ino)
            meta.next_ino = ino + 1
        meta.files += 1
        inode = Inode(
            ino, mode, uid, gid, 2 if parent else 1, rdev, len(target), 0,
            now, now, now, now, index, index, parent, target, index,
        )  # fmt: skip
        self._inodes[ino] = inode
        self._dirty_inodes[ino] = inode
        if parent:
            self._names[ino] = set()
        self.writes += 1
        return inode

    def amend(self, inode: Inode) -> None:
        """The caller may now change ``inode``; what it was is kept as history."""
        index = self.index
        if inode.since != index:
            self._inode_history.append((*inode.row(), index))
            inode.since = index
        inode.changed = index
        self._dirty_inodes[inode.ino] = inode
        self.writes += 1

    def touch(self, inode: Inode) -> None:
        """The caller may now change times and version of ``inode`` in place, without history."""
        inode.changed = self.index
        self._dirty_inodes[inode.ino] = inode
        self.writes += 1

    def touch_directory(self, directory: Inode) -> None:
        """An entry of ``directory`` changed: its times and version say so."""
        self.touch(directory)
        directory.mtime_ns = directory.ctime_ns = self.now_ns
        directory.version = self.index

    def remove_inode(self, inode: Inode) -> None:
        """The inode becomes history, with its extents and xattrs; it is an orphan no more."""
        index = self.index
        ino = inode.ino
        assert inode.since < index, (inode, index)
        self._inode_history.append((*inode.row(), index))
        self.replace_extents(inode, self.extents(ino), [])
        for name in self.xattr_names(ino):
            self.remove_xattr(ino, name)
        self.factors.pop(ino, None)
        self._forget_names(ino)
        self._inodes.pop(ino, None)
        self._dirty_inodes.pop(ino, None)
        self._execute("DELETE FROM inode WHERE ino = ?", (ino,))
        self._execute("DELETE FROM orphan WHERE ino = ?", (ino,))
        if self._may_refactor:
            self._execute("DELETE FROM refactor WHERE ino = ?", (ino,))
        self.meta.files -= 1
        self.writes += 1

    def add_orphan(self, ino: Ino, linkable: bool) -> None:
        self._execute(
            "INSERT INTO orphan (ino, since, linkable) VALUES (?, ?, ?)",
            (ino, self.index, int(linkable)),
        )
        self.writes += 1

    def is_linkable_orphan(self, ino: Ino) -> bool:
        """Whether Tmpfile made this orphan, so that Link may name it."""
        row = self._execute("SELECT linkable FROM orphan WHERE ino = ?", (ino,)).fetchone()
        return row is not None and row[0] == 1

    def remove_orphan(self, ino: Ino) -> None:
        self._execute("DELETE FROM orphan WHERE ino = ?", (ino,))
        self.writes += 1

    # --- delegations ----------------------------------------------------------------------------

    def set_delegation(self, ino: Ino, delegation: Delegation) -> None:
        self.delegations[ino] = delegation
        self._execute(
            "REPLACE INTO delegation (ino, client, recalled) VALUES (?, ?, ?)", (ino, *delegation)
        )
        self.writes += 1

    def end_delegation(self, ino: int) -> None:
        """The directory is nobody's, if it was anybody's."""
        if self.delegations.pop(ino, None) is not None:
            self._execute("DELETE FROM delegation WHERE ino = ?", (ino,))
            self.writes += 1

    # --- entries --------------------------------------------------------------------------------

    def entry(self, parent: Ino, name: bytes) -> Entry | None:
        entry = self._new_entries.get((parent, name))
        if entry is not None:
            return entry
        names = self._names.get(parent)
        if names is not None and name not in names:
            return None  # most names that are looked for are free; SQLite takes 5 us to say so
        row = self._execute(
            "SELECT cookie, parent, name, ino, since FROM entry WHERE parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        return None if row is None else Entry(*row)

    def is_empty(self, directory: Ino) -> bool:
        self._write_entries()
        row = self._execute(
            "SELECT 1 FROM entry WHERE parent = ? ORDER BY cookie LIMIT 1", (directory,)
        ).fetchone()
        return row is None

    def add_entry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """A name that ``entry`` did not find."""
        meta = self.meta
        cookie = meta.next_cookie
        meta.next_cookie = cookie + 1
        self._new_entries[parent, name] = Entry(cookie, parent, name, ino, self.index)
        names = self._names.get(parent)
        if names is not None:
            names.add(name)
            self._names_known += 1
        self.writes += 1

    def remove_entry(self, entry: Entry) -> None:
        self._keep_entry(entry)
        if self._new_entries.pop(entry[1:3], None) is None:
            self._execute("DELETE FROM entry WHERE cookie = ?", (entry.cookie,))
        names = self._names.get(entry.parent)
        if names is not None:
            names.discard(entry.name)
            self._names_known -= 1
        self.writes += 1

    def retarget_entry(self, entry: Entry, ino: Ino) -> None:
        """The name now leads to ``ino``; its cookie stays, so readdir shows the name once."""
        self._keep_entry(entry)
        self._write_entries()
        self._execute(
            "UPDATE entry SET ino = ?, since = ? WHERE cookie = ?", (ino, self.index, entry.cookie)
        )
        self.writes += 1

    def parents(self, ino: Ino) -> list[Ino]:
        """Directories that have a name for it."""
        self._write_entries()
        rows = self._execute(
            "SELECT DISTINCT parent FROM entry WHERE ino = ? ORDER BY parent", (ino,)
        )
        return [parent for (parent,) in rows.fetchall()]

    def _write_entries(self) -> None:
        """Every entry is in SQLite."""
        if self._new_entries:
            self.connection.executemany(_INSERT_ENTRY, self._new_entries.values())
            self._new_entries = {}

    def _forget_names(self, directory: int) -> None:
        self._names_known -= len(self._names.pop(directory, ()))

    def _keep_entry(self, entry: Entry) -> None:
        if entry.since < self.index:  # else it was made by this very log entry
            self._entry_history.append((*entry, self.index))

    # --- extended attributes --------------------------------------------------------------------

    def has_xattr(self, ino: Ino, name: bytes) -> bool:
        row = self._execute("SELECT 1 FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        return row.fetchone() is not None

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        row = self._execute("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        found = row.fetchone()
        return None if found is None else bytes(found[0])

    def xattr_names(self, ino: Ino) -> list[bytes]:
        rows = self._execute("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))
        return [name for (name,) in rows.fetchall()]

    def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self._keep_xattr(ino, name)
        self._execute(
            "REPLACE INTO xattr (ino, name, value, since) VALUES (?, ?, ?, ?)",
            (ino, name, value, self.index),
        )
        self.writes += 1

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        self._keep_xattr(ino, name)
        self._execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        self.writes += 1

    def _keep_xattr(self, ino: Ino, name: bytes) -> None:
        row = self._execute(
            "SELECT ino, name, value, since FROM xattr WHERE ino = ? AND name = ?", (ino, name)
        ).fetchone()
        if row is not None and row[3] < self.index:
            self._execute(_KEEP_XATTR, (*row, self.index))

    # --- how many copies ------------------------------------------------------------------------

    def set_factor(self, directory: Ino, factor: int | None) -> None:
        """The directory asks for so many copies, None: no longer for any number."""
        if factor is None:
            self.factors.pop(directory, None)
        else:
            self.factors[directory] = factor
        self.refactor(directory)

    def note_moved(self, inode: Inode) -> None:
        """The inode has another oldest name: what is asked of its content may be another."""
        if self.factors or self._may_refactor:
            self.refactor(inode.ino)

    def factor_of(self, inode: Inode) -> int:
        """What the nearest directory above asks for; 0: none does, or it has no name."""
        if not self.factors:
            return 0
        above: Inode | None = inode
        while above is not None:
            factor = self.factors.get(above.ino)
            if factor is not None:
                return factor
            if above.ino == ROOT_INO:
                return 0
            parent: int = above.parent
            if not parent:
                self._write_entries()
                row = self._execute(
                    "SELECT parent FROM entry WHERE ino = ? ORDER BY cookie LIMIT 1", (above.ino,)
                ).fetchone()
                parent = 0 if row is None else row[0]
            above = self.inode(parent)
        return 0

    def default_factor(self) -> int:
        """The setting "replicas"."""
        row = self._execute("SELECT value FROM setting WHERE name = 'replicas'").fetchone()
        return SETTINGS["replicas"].default if row is None else int(row[0])

    def set_blob_factor(self, blob: Blob, factor: int) -> None:
        if blob.factor != factor:
            blob.factor = factor
            self._dirty_blobs[blob.blob] = blob
            self.writes += 1

    def share_blob(self, blob: Blob, factor: int) -> None:
        """The blob is in a file of this factor too: the one that asks for more copies wins."""
        if blob.factor != factor:
            default = self.default_factor()
            self.set_blob_factor(blob, max(blob.factor, factor, key=lambda f: (f or default, f)))

    def refactor(self, ino: Ino) -> None:
        """The inode, and all below it, is to be looked at (``next_refactor``)."""
        self._execute("REPLACE INTO refactor (ino, cookie) VALUES (?, 0)", (ino,))
        self._may_refactor = True
        self.writes += 1

    def next_refactor(self) -> tuple[Ino, int] | None:
        """The inode to look at next, and the cookie after which to go on."""
        if not self._may_refactor:
            return None
        row = self._execute("SELECT ino, cookie FROM refactor ORDER BY ino LIMIT 1").fetchone()
        self._may_refactor = row is not None
        return None if row is None else (Ino(row[0]), row[1])

    def continue_refactor(self, ino: Ino, cookie: int | None) -> None:
        """Go on after this cookie, None: done."""
        if cookie is None:
            self._execute("DELETE FROM refactor WHERE ino = ?", (ino,))
        else:
            self._execute("UPDATE refactor SET cookie = ? WHERE ino = ?", (cookie, ino))
        self.writes += 1

    def children(self, directory: Ino, after: int, limit: int) -> list[tuple[int, Ino]]:
        """(cookie, inode) of the next entries of a directory."""
        self._write_entries()
        rows = self._execute(
            "SELECT cookie, ino FROM entry WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?",
            (directory, after, limit),
        )
        return [(cookie, Ino(ino)) for cookie, ino in rows.fetchall()]

    # --- extents --------------------------------------------------------------------------------

    def extents(self, ino: Ino, start: int = 0, end: int = (1 << 63) - 1) -> list[StoredExtent]:
        """Ascending: those that meet ``[start, end]`` and the one before ``start``, if any, which
        may reach into the range or be continued by it."""
        rows = self._execute(_SELECT_EXTENTS, {"ino": ino, "start": start, "end": end}).fetchall()
        return [StoredExtent(Extent(*row[:4]), row[4]) for row in rows]

    def replace_extents(
        self, inode: Inode, old: Sequence[StoredExtent], new: Sequence[Extent]
    ) -> None:
        """Rows ``old`` of the inode become ``new``; rows in both stay as they are.

        Each new blob is known. History, references and ``allocated`` follow; the caller has
        amended the inode.
        """
        index = self.index
        ino = inode.ino
        kept = {stored.extent for stored in old} & set(new)
        removed = [stored for stored in old if stored.extent not in kept]
        added = [extent for extent in new if extent not in kept]
        many = self.connection.executemany
        if removed:
            many(
                "DELETE FROM extent WHERE ino = ? AND file_offset = ?",
                [(ino, stored.extent.offset) for stored in removed],
            )
            many(
                _KEEP_EXTENT,
                [(ino, *stored.extent, stored.since, index) for stored in removed],
            )
        if added:
            many(_INSERT_EXTENT, [(ino, *extent, index) for extent in added])
            for extent in added:
                self.add_refs(extent.blob, 1)
        growth = sum(e.length for e in added) - sum(s.extent.length for s in removed)
        inode.allocated += growth
        self.meta.bytes += growth
        self.writes += 1

    # --- blobs ----------------------------------------------------------------------------------

    def require_countable(self, extents: Iterable[Extent], sizes: Iterable[int]) -> None:
        """FileError(ENOSPC) when so much more would pass what the counters of bytes can hold.

        A client says how large its blobs are, and a clone takes no room: what is said is not what
        fits on disks, and a command that can't be counted would end every node that applies it.
        extents  to be added to files. sizes: of the blobs among theirs that nothing names yet.
        """
        length = sum(extent.length for extent in extents if extent.blob != HOLE)
        if self.meta.bytes + length > INT64_MAX or self.blob_bytes + sum(sizes) > INT64_MAX:
            raise FileError(errno.ENOSPC)

    def blob(self, blob_id: int) -> Blob | None:
        """The blob's row, shared like an inode's."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            row = self._execute(
                "SELECT blob, size, checksum, holders, refs, factor FROM blob WHERE blob = ?",
                (blob_id,),
            ).fetchone()
            if row is None:
                return None
            holders = unpack_holders(row[3])
            tallied = (holders, row[5]) if row[4] else None
            blob = Blob(row[0], row[1], row[2], holders, row[4], row[5], tallied)
            self._blobs[blob_id] = blob
        return blob

    def add_blob(self, info: BlobInfo, factor: int, content: bytes | None) -> None:
        """A blob that the tree did not know, named by nothing yet.

        content  the whole of it when it is to be in the tree.
        """
        blob = Blob(info.blob, info.size, info.checksum, info.holders, 0, factor, None)
        self._blobs[info.blob] = blob
        self._dirty_blobs[info.blob] = blob
        if info.is_in_tree:
            self._execute("INSERT INTO content (blob, bytes) VALUES (?, ?)", (info.blob, content))
        self.writes += 1

    def add_refs(self, blob_id: BlobId, count: int) -> None:
        """``count`` (may be negative) more rows of extents name the blob."""
        blob = self.blob(blob_id)
        assert blob is not None, blob_id
        self.blob_bytes += blob.size * (bool(blob.refs + count) - bool(blob.refs))
        blob.refs += count
        assert blob.refs >= 0, blob
        self._dirty_blobs[blob_id] = blob

    def set_holders(self, blob: Blob, holders: tuple[NodeNumber, ...]) -> None:
        blob.holders = holders
        self._dirty_blobs[blob.blob] = blob
        self.writes += 1

    def remove_blob(self, blob: Blob) -> None:
        assert blob.refs == 0, blob
        self._blobs.pop(blob.blob, None)
        self._dirty_blobs.pop(blob.blob, None)
        self._move_tally([(blob.tallied, None, blob.size)])
        self._execute("DELETE FROM blob WHERE blob = ?", (blob.blob,))
        if blob.holders == IN_TREE:
            self._execute("DELETE FROM content WHERE blob = ?", (blob.blob,))
        self.writes += 1

    def _flush_blobs(self) -> None:
        dirty = self._dirty_blobs.values()
        self.connection.executemany(
            _WRITE_BLOB,
            [
                (b.blob, b.size, b.checksum, pack_holders(b.holders), b.refs, b.factor)
                for b in dirty
            ],
        )
        moves = []
        for blob in dirty:
            counted = (blob.holders, blob.factor) if blob.refs else None
            moves.append((blob.tallied, counted, blob.size))
            blob.tallied = counted
        self._move_tally(moves)
        self._dirty_blobs = {}

    def _move_tally(self, moves: Iterable[_Move]) -> None:
        """Blobs of some size go from one group to another; None: not counted."""
        change: dict[_Group, list[int]] = {}
        for before, after, size in moves:
            if before == after:
                continue
            for group, sign in ((before, -1), (after, 1)):
                if group is not None:
                    total = change.setdefault(group, [0, 0])
                    total[0] += sign
                    total[1] += sign * size
        for (holders, factor), (blobs, size_bytes) in sorted(change.items()):
            self._execute(
                _ADD_TALLY,
                {
                    "holders": pack_holders(holders),
                    "factor": factor,
                    "blobs": blobs,
                    "bytes": size_bytes,
                },
            )
        if change:
            self._execute("DELETE FROM tally WHERE blobs = 0")


def _shrink(cache: dict[int, _Row], size_max: int, busy: Mapping[int, _Row]) -> None:
    """The oldest of a cache go until a quarter is free; those that are busy become its newest. By
    age, not by use: keeping the order of use costs every access. But a directory in which names
    come and go is there before all that is made in it."""
    if len(cache) > size_max:
        for key in list(cache)[: len(cache) - size_max * 3 // 4]:
            row = cache.pop(key)
            if key in busy:
                cache[key] = row
