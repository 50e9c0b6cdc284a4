"""Questions to the tree, now or at a past log index; the reading half of ``Tree``.

Every function is one or a few SELECTs on committed rows; nothing here changes anything, and nothing
checks permissions. ``at`` chooses between two sets of constant statements: for now (``at`` None)
the tables alone, for the past the rows of table and history twin that were valid then.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from pydi_node.errors import FileError
from pydi_node.ids import (
    BLOB_COUNTER_MAX,
    INT64_MAX,
    ROOT_INO,
    BlobId,
    Ino,
    LogIndex,
    NodeNumber,
    TimeNs,
    blob_counter,
    blob_id,
)
from pydi_node.records import (
    CONTENTS_MAX_BYTES,
    HOLE,
    Attr,
    BlobInfo,
    BlobTotal,
    Counters,
    DirEntry,
    Extent,
    FileVersion,
    NodeInfo,
    SecretChange,
    TokenInfo,
    Version,
)
from pydi_node.tree.schema import FACTOR_LITERAL, TABLES
from pydi_node.tree.settings import SETTINGS
from pydi_node.tree.store import pack_holders, unpack_holders

NANOSECONDS_PER_TICK: Final = 1_000_000_000  # table tick has the first index of each second

# Rows of blob that one call looks at when it filters by holder: a node with few blobs must not
# make it read the whole table before it answers.
_BLOB_SCAN_ROWS: Final = 4096

_NO_INO: Final = Ino(0)  # below the first one

_ATTR: Final = (
    "ino, mode, nlink, uid, gid, rdev, size, allocated, atime_ns, mtime_ns, ctime_ns, btime_ns,"
    " version, changed"
)
_TOKEN: Final = f"SELECT {', '.join(TokenInfo._fields)} FROM token"
_BLOB: Final = "SELECT blob, size, checksum, holders FROM blob"


def _valid_at(table: str, columns: str, condition: str) -> str:
    """The rows of table and twin that meet ``condition`` and were valid at ``:at``."""
    return (
        f"SELECT {columns} FROM {table} WHERE {condition} AND since <= :at UNION ALL"
        f" SELECT {columns} FROM {table}_history"
        f" WHERE {condition} AND since <= :at AND until > :at"
    )


class _Statement:
    """One question in its two forms."""

    def __init__(self, table: str, columns: str, condition: str, end: str = "") -> None:
        self.now = f"SELECT {columns} FROM {table} WHERE {condition} {end}"
        self.past = f"{_valid_at(table, columns, condition)} {end}"


_INODE: Final = _Statement("inode", f"{_ATTR}, parent, target", "ino = :ino")
_ENTRY: Final = _Statement("entry", "ino", "parent = :parent AND name = :name")
_NAMES: Final = _Statement("entry", "parent, name, cookie", "ino = :ino", "ORDER BY cookie")
_XATTR: Final = _Statement("xattr", "value", "ino = :ino AND name = :name")
_XATTRS: Final = _Statement("xattr", "name", "ino = :ino", "ORDER BY name")
_EXTENTS: Final = _Statement(
    "extent", "file_offset, length, blob, blob_offset", "ino = :ino", "ORDER BY file_offset"
)
_READDIR_NOW: Final = (
    f"SELECT cookie, name, {', '.join('inode.' + column for column in _ATTR.split(', '))}"
    " FROM entry JOIN inode ON inode.ino = entry.ino"
    " WHERE entry.parent = :ino AND cookie > :after ORDER BY cookie LIMIT :limit"
)
_READDIR_PAST: Final = (
    _valid_at("entry", "cookie, name, ino", "parent = :ino AND cookie > :after")
    + " ORDER BY cookie LIMIT :limit"
)


_ANY_FACTOR: Final = f"SELECT 1 FROM xattr WHERE name = {FACTOR_LITERAL} LIMIT 1"
# The directories above a file, through its oldest name; a directory's parent is in its own row.
_FACTOR_ABOVE: Final = f"""
WITH RECURSIVE above (ino, depth) AS (
    SELECT coalesce(:parent, (SELECT parent FROM entry WHERE entry.ino = :ino
        ORDER BY cookie LIMIT 1), 0), 0
    UNION ALL
    SELECT inode.parent, depth + 1 FROM above JOIN inode ON inode.ino = above.ino
    WHERE inode.parent <> 0 AND inode.parent <> inode.ino
)
SELECT value FROM above JOIN xattr ON xattr.ino = above.ino AND xattr.name = {FACTOR_LITERAL}
ORDER BY depth LIMIT 1
"""


class Queries(ABC):
    """What can be asked of a tree; see the room's docstring for each promise."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _ask(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        """Every question to the database goes through here, but those to the books (settings,
        nodes, tokens, secrets), which are small and written at once: they are looked at all the
        time, and what is not written yet may wait for them."""
        return self._connection.execute(statement, values)

    @property
    @abstractmethod
    def applied_index(self) -> LogIndex: ...

    @property
    @abstractmethod
    def history_floor(self) -> LogIndex: ...

    # --- names and inodes -----------------------------------------------------------------------

    def lookup(self, parent: Ino, name: bytes, at: LogIndex | None = None) -> Attr:
        """Attributes of the inode under a name. ENOENT; ENOTDIR when ``parent`` can't have any."""
        self._require_directory(parent, at)
        rows = self._select(_ENTRY, {"parent": parent, "name": name}, at)
        if not rows:
            raise FileError(errno.ENOENT)
        return self.getattr(rows[0][0], at)

    def resolve(self, path: bytes, at: LogIndex | None = None) -> Attr:
        """Attributes at a path from the root, symlinks not followed; "." and ".." are no names
        here, empty parts are skipped. ENOENT, ENOTDIR."""
        attr = self.getattr(ROOT_INO, at)
        for name in path.split(b"/"):
            if name:
                attr = self.lookup(attr.ino, name, at)
        return attr

    def getattr(self, ino: Ino, at: LogIndex | None = None) -> Attr:
        """The inode's attributes; orphans have some too. ENOENT."""
        return Attr(*self._inode(ino, at)[:-2])

    def readdir(
        self, ino: Ino, after_cookie: int, limit: int, at: LogIndex | None = None
    ) -> list[DirEntry]:
        """At most ``limit`` entries with greater cookies, ascending; [] at the end. ENOENT,
        ENOTDIR.

        Cookies only grow, so a reader who goes on after the last one it got sees every entry that
        was there all the time exactly once, whatever comes and goes meanwhile.
        """
        self._require_directory(ino, at)
        at = self._checked(at)
        question = {"ino": ino, "after": after_cookie, "limit": limit, "at": at}
        if at is None:
            rows = self._ask(_READDIR_NOW, question).fetchall()
            return [DirEntry(row[0], row[1], Attr(*row[2:])) for row in rows]
        rows = self._ask(_READDIR_PAST, question).fetchall()
        return [DirEntry(cookie, name, self.getattr(child, at)) for cookie, name, child in rows]

    def readlink(self, ino: Ino, at: LogIndex | None = None) -> bytes:
        """The symlink's target. ENOENT; EINVAL for another kind."""
        target = self._inode(ino, at)[-1]
        if not target:
            raise FileError(errno.EINVAL)
        return bytes(target)

    def getxattr(self, ino: Ino, name: bytes, at: LogIndex | None = None) -> bytes:
        """The value of one extended attribute. ENOENT; ENODATA without it."""
        self._inode(ino, at)
        rows = self._select(_XATTR, {"ino": ino, "name": name}, at)
        if not rows:
            raise FileError(errno.ENODATA)
        return bytes(rows[0][0])

    def listxattr(self, ino: Ino, at: LogIndex | None = None) -> list[bytes]:
        """Names of the extended attributes, ascending. ENOENT."""
        self._inode(ino, at)
        return [name for (name,) in self._select(_XATTRS, {"ino": ino}, at)]

    def file_version(self, ino: Ino, at: LogIndex | None = None) -> FileVersion:
        """All that a reader needs of a file: attributes, extents, blobs. ENOENT; EISDIR, EINVAL
        for what has no content."""
        attr = self.getattr(ino, at)
        if not attr.is_regular:
            raise FileError(errno.EISDIR if attr.is_dir else errno.EINVAL)
        extents = tuple(Extent(*row) for row in self._select(_EXTENTS, {"ino": ino}, at))
        blobs = tuple(self.blob(blob) for blob in sorted({extent.blob for extent in extents}))
        contents = []
        room = CONTENTS_MAX_BYTES
        for info in blobs:
            if info.is_in_tree and info.size <= room:
                contents.append((info.blob, self.content(info.blob)))
                room -= info.size
        return FileVersion(attr, extents, blobs, tuple(contents))

    def names_of(self, ino: Ino, at: LogIndex | None = None) -> list[tuple[Ino, bytes]]:
        """(parent, name) of every name, oldest cookie first; [] for the root, an orphan or an
        unknown inode."""
        return [(parent, name) for parent, name, _ in self._select(_NAMES, {"ino": ino}, at)]

    def path_of(self, ino: Ino, at: LogIndex | None = None) -> bytes | None:
        """Absolute path under its oldest name; None for an orphan or an unknown inode."""
        parts: list[bytes] = []
        while ino != ROOT_INO:
            names = self.names_of(ino, at)
            if not names:
                return None
            ino, name = names[0]
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))

    # --- history --------------------------------------------------------------------------------

    def versions_of(self, ino: Ino) -> list[Version]:
        """The versions of an inode's content that are kept, oldest first; [] when unknown."""
        rows = self._ask(
            f"SELECT {_ATTR}, since, until FROM inode_history WHERE ino = :ino UNION ALL"
            f" SELECT {_ATTR}, since, NULL FROM inode WHERE ino = :ino ORDER BY since",
            {"ino": ino},
        ).fetchall()
        versions: list[Version] = []
        for row in rows:
            version = Version(row[-2], row[-1], Attr(*row[:-2]))
            if versions and versions[-1].attr.version == version.attr.version:
                version = version._replace(since=versions.pop().since)
            versions.append(version)
        return versions

    def versions_of_path(self, path: bytes, at: LogIndex | None = None) -> list[Version]:
        """What a path showed over time, oldest first: the kept versions of every inode that had
        this name in this directory, each cut to the time it had it. ENOENT, ENOTDIR for the
        directory, which is looked up as of ``at``."""
        parts = [part for part in path.split(b"/") if part]
        if not parts:
            return self.versions_of(ROOT_INO)
        directory = self.resolve(b"/".join(parts[:-1]), at)
        if not directory.is_dir:
            raise FileError(errno.ENOTDIR)
        spans = self._ask(
            "SELECT ino, since, until FROM entry_history WHERE parent = :parent AND name = :name"
            " UNION ALL SELECT ino, since, NULL FROM entry WHERE parent = :parent AND name = :name"
            " ORDER BY since",
            {"parent": directory.ino, "name": parts[-1]},
        ).fetchall()
        shown: list[Version] = []
        for ino, since, until in spans:
            for version in self.versions_of(ino):
                start = max(since, version.since)
                ends = [end for end in (until, version.until) if end is not None]
                end = min(ends) if ends else None
                if end is None or start < end:
                    shown.append(Version(start, end, version.attr))
        return shown

    def index_at(self, time_ns: TimeNs) -> LogIndex:
        """The last log index applied in that second or before it; 0 when it is before the first."""
        second = time_ns // NANOSECONDS_PER_TICK
        row = self._ask(
            "SELECT log_index - 1 FROM tick WHERE time_ns >= ? ORDER BY log_index LIMIT 1",
            (min((second + 1) * NANOSECONDS_PER_TICK, INT64_MAX),),  # what SQLite can compare
        ).fetchone()
        return self.applied_index if row is None else LogIndex(row[0])

    def time_of(self, index: LogIndex) -> TimeNs:
        """When that index was proposed, exact to a second; 0 when it is older than history."""
        row = self._ask(
            "SELECT time_ns FROM tick WHERE log_index <= ? ORDER BY log_index DESC LIMIT 1",
            (index,),
        ).fetchone()
        return TimeNs(0 if row is None else row[0])

    # --- house-keeping --------------------------------------------------------------------------

    def orphans(self, limit: int, after: Ino = _NO_INO) -> list[Ino]:
        """Inodes without a name, ascending after ``after``."""
        rows = self._ask(
            "SELECT ino FROM orphan WHERE ino > ? ORDER BY ino LIMIT ?", (after, limit)
        )
        return [ino for (ino,) in rows.fetchall()]

    def blob(self, blob: BlobId) -> BlobInfo:
        """What the tree knows of a blob. ENOENT."""
        row = self._ask(f"{_BLOB} WHERE blob = ?", (blob,)).fetchone()
        if row is None:
            raise FileError(errno.ENOENT)
        return _blob_info(row)

    def content(self, blob: BlobId) -> bytes:
        """The whole content of a blob that is in the tree. ENOENT: it is not."""
        row = self._ask("SELECT bytes FROM content WHERE blob = ?", (blob,)).fetchone()
        if row is None:
            raise FileError(errno.ENOENT)
        return bytes(row[0])

    def blobs(self, after: BlobId, limit: int) -> list[BlobInfo]:
        """All blobs, ascending after ``after``."""
        rows = self._ask(f"{_BLOB} WHERE blob > ? ORDER BY blob LIMIT ?", (after, limit))
        return [_blob_info(row) for row in rows.fetchall()]

    def blobs_of_node(self, node: NodeNumber, after: BlobId, limit: int) -> list[BlobInfo]:
        """Blobs that the node holds a copy of, ascending after ``after``; [] at the end only."""
        found: list[BlobInfo] = []
        while len(found) < limit:
            page = self.blobs(after, _BLOB_SCAN_ROWS)
            found.extend(info for info in page if node in info.holders)
            if len(page) < _BLOB_SCAN_ROWS:
                break
            after = page[-1].blob
        return found[:limit]

    def garbage_blobs(self, limit: int, after: BlobId = HOLE) -> list[BlobInfo]:
        """Blobs that no version, present or kept, names any more."""
        rows = self._ask(
            f"{_BLOB} WHERE refs = 0 AND blob > ? ORDER BY blob LIMIT ?", (after, limit)
        )
        return [_blob_info(row) for row in rows.fetchall()]

    def last_counter_of(self, node: NodeNumber) -> int:
        """The highest counter among the blobs that ``node`` named; 0 when there is none."""
        first, last = blob_id(node, 1), blob_id(node, BLOB_COUNTER_MAX)
        (found,) = self._ask(
            "SELECT max(blob) FROM blob WHERE blob BETWEEN ? AND ?", (first, last)
        ).fetchone()
        return 0 if found is None else blob_counter(BlobId(found))

    def blobs_held_by(
        self, holders: tuple[NodeNumber, ...], factor: int, limit: int, after: BlobId = HOLE
    ) -> list[BlobInfo]:
        """Named blobs with exactly these holders (ascending) and this factor, as in
        ``blob_totals``; ascending after ``after``."""
        rows = self._ask(
            f"{_BLOB} WHERE refs > 0 AND holders = ? AND factor = ? AND blob > ?"
            " ORDER BY blob LIMIT ?",
            (pack_holders(holders), factor, after, limit),
        )
        return [_blob_info(row) for row in rows.fetchall()]

    def blob_totals(self) -> list[BlobTotal]:
        """Named blobs by their holders and factor, in the order of these."""
        rows = self._ask("SELECT holders, blobs, bytes, factor FROM tally ORDER BY holders, factor")
        return [BlobTotal(unpack_holders(row[0]), *row[1:]) for row in rows.fetchall()]

    def copies_of_blob(self, blob: BlobId) -> int:
        """How many copies of it there should be. ENOENT."""
        row = self._ask("SELECT factor FROM blob WHERE blob = ?", (blob,)).fetchone()
        if row is None:
            raise FileError(errno.ENOENT)
        return row[0] or self.settings()["replicas"]

    def copies_of(self, ino: Ino | None, parent: Ino | None = None) -> int:
        """How many copies new content of a file should have, by the nearest directory above that
        asks for a number; the setting for what is not known.

        parent  of a file that is yet to be made.
        """
        if self._ask(_ANY_FACTOR).fetchone() is not None:
            row = self._ask(_FACTOR_ABOVE, {"ino": ino, "parent": parent}).fetchone()
            if row is not None:
                return int(row[0])
        return self.settings()["replicas"]

    def fragmented(self, after: Ino, rows: int, extents_min: int) -> tuple[list[Ino], Ino | None]:
        """Files behind ``after`` with at least that many extents, out of the next ``rows`` extents,
        and after which inode to go on; None at the end."""
        found = self._connection.execute(
            "SELECT ino, count(*) FROM (SELECT ino FROM extent WHERE ino > ? ORDER BY ino LIMIT ?)"
            " GROUP BY ino ORDER BY ino",
            (after, rows),
        ).fetchall()
        is_end = sum(count for _, count in found) < rows
        if not is_end and len(found) > 1:
            found.pop()  # may have more than were looked at: first of the next slice
        inos = [Ino(ino) for ino, count in found if count >= extents_min]
        return inos, None if is_end else Ino(found[-1][0])

    def has_refactor(self) -> bool:
        """Whether blobs may have another factor than asked: SpreadFactors sees to it."""
        row = self._ask("SELECT 1 FROM refactor LIMIT 1").fetchone()
        return row is not None

    @property
    def file(self) -> str:
        """Path of the database, for a connection of somebody else's thread."""
        row = self._connection.execute("PRAGMA database_list").fetchone()
        return str(row[2])

    def settings(self) -> dict[str, int]:
        """Every known setting with its value, set or default, by name."""
        rows = self._connection.execute("SELECT name, value FROM setting ORDER BY name")
        given: dict[str, int] = dict(rows.fetchall())
        return {name: given.get(name, setting.default) for name, setting in SETTINGS.items()}

    def nodes(self) -> list[NodeInfo]:
        """Book-keeping of the cluster's members, by number."""
        rows = self._connection.execute(
            "SELECT number, address, state, witness FROM node ORDER BY number"
        )
        return [NodeInfo(row[0], row[1], row[2], bool(row[3])) for row in rows.fetchall()]

    def tokens(self) -> list[TokenInfo]:
        """The mount tokens that were made, oldest first."""
        rows = self._connection.execute(f"{_TOKEN} ORDER BY made_s, token_id")
        return [_token_info(row) for row in rows.fetchall()]

    def token(self, token_id: bytes) -> TokenInfo | None:
        """One mount token; None when it is not in the list."""
        row = self._connection.execute(f"{_TOKEN} WHERE token_id = ?", (token_id,)).fetchone()
        return None if row is None else _token_info(row)

    def secret_change(self) -> SecretChange | None:
        """The last change of the cluster's secret; None when it is still the first one."""
        row = self._connection.execute(
            "SELECT generation, sealed_new, sealed_old, ends_s FROM secret"
        ).fetchone()
        return None if row is None else SecretChange(*row)

    def is_untouched(self) -> bool:
        """Nobody ever kept anything here, as far as history goes back: a root without entries."""
        row = self._ask(
            "SELECT EXISTS (SELECT 1 FROM entry) OR EXISTS (SELECT 1 FROM entry_history)"
            " OR EXISTS (SELECT 1 FROM blob) OR EXISTS (SELECT 1 FROM orphan)"
        ).fetchone()
        return not row[0]

    def counters(self) -> Counters:
        """Inodes and allocated bytes, for statfs."""
        row = self._ask("SELECT files, bytes FROM meta WHERE id = 1").fetchone()
        return Counters(*row)

    def digest(self) -> bytes:
        """32 bytes over every row of every table: equal on equal replicas, whatever their files
        look like. Reads the whole database."""
        digest = hashlib.blake2b(digest_size=32)
        for table, key in TABLES.items():
            digest.update(table.encode())
            for row in self._ask(f"SELECT * FROM {table} ORDER BY {key}"):
                digest.update(repr(row).encode())
        return digest.digest()

    # --- internals ------------------------------------------------------------------------------

    def _checked(self, at: LogIndex | None) -> LogIndex | None:
        """``at`` within what is kept, None for now. ESTALE."""
        if at is None or at == self.applied_index:
            return None
        if not self.history_floor <= at < self.applied_index:
            raise FileError(errno.ESTALE, f"log index {at} is not kept here")
        return at

    def _select(
        self, statement: _Statement, question: dict[str, Any], at: LogIndex | None
    ) -> list[Any]:
        at = self._checked(at)
        if at is None:
            return self._ask(statement.now, question).fetchall()
        return self._ask(statement.past, {**question, "at": at}).fetchall()

    def _inode(self, ino: Ino, at: LogIndex | None) -> Any:
        rows = self._select(_INODE, {"ino": ino}, at)
        if not rows:
            raise FileError(errno.ENOENT)
        return rows[0]

    def _require_directory(self, ino: Ino, at: LogIndex | None) -> None:
        if not stat.S_ISDIR(self._inode(ino, at)[1]):
            raise FileError(errno.ENOTDIR)


def inodes_naming(connection: sqlite3.Connection, blobs: Sequence[BlobId], limit: int) -> list[Ino]:
    """Files whose present content is partly in one of these blobs, ascending.

    connection  to ``Queries.file``, of whoever can wait: this reads every extent, for no index
                leads there.
    """
    rows = connection.execute(
        f"SELECT DISTINCT ino FROM extent WHERE blob IN ({', '.join('?' * len(blobs))})"
        " ORDER BY ino LIMIT ?",
        (*blobs, limit),
    )
    return [ino for (ino,) in rows.fetchall()]


def inodes_that_named(
    connection: sqlite3.Connection, blobs: Sequence[BlobId], limit: int
) -> list[tuple[Ino, LogIndex]]:
    """Files of which a kept older version needs one of these blobs, and the last log index of that
    version. Reads every extent of history."""
    rows = connection.execute(
        "SELECT ino, max(until) - 1 FROM extent_history"
        f" WHERE blob IN ({', '.join('?' * len(blobs))}) GROUP BY ino ORDER BY ino LIMIT ?",
        (*blobs, limit),
    )
    return [(ino, index) for ino, index in rows.fetchall()]


def _token_info(row: Any) -> TokenInfo:
    info = TokenInfo(*row)
    return info._replace(read_only=bool(info.read_only), revoked=bool(info.revoked))


def _blob_info(row: Any) -> BlobInfo:
    return BlobInfo(row[0], row[1], row[2], unpack_holders(row[3]))
