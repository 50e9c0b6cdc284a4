"""The tables of the tree, what every column means, and the pragmas they live under.

``prepare`` is called once for each connection, by whoever opened it and before ``Tree`` sees it. It
must never change a database that is not an undamaged tree of this version.

History: ``inode``, ``entry``, ``extent`` and ``xattr`` hold what is valid now, from log index
``since`` on. A replaced or removed row goes to the twin ``*_history`` with the half-open range
``[since, until)`` of log indexes in which it was valid; ranges of one key never overlap, and a row
that came and went within one command leaves none. Two changes are made in place: times and version
of a directory (its entries' history tells them), and access times.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydi_node.errors import CorruptionError, NoSpaceError
from pydi_node.ids import ROOT_INO
from pydi_node.records import FACTOR_XATTR

APPLICATION_ID: Final = 0x50794469  # "PyDi" in the header of the file
# 1: tally by number of copies. 2: by holders. 3: by holders and factor. 4: mount tokens.
# 5: changes of the secret. 6: small content. 7: delegated directories.
SCHEMA_VERSION: Final = 7  # a change of any table is a new number and a migration

# The root is everybody's, like /tmp: a mount made by an ordinary user has to be able to begin, and
# nobody there could chown it. Whoever mounts as root can restrict it.
ROOT_MODE: Final = stat.S_IFDIR | 0o1777

# 8 MiB of pages, whatever the size of the tree: a million inodes with names and blobs are about
# 400 MB, and the kernel's page cache holds the rest (a page from there costs 1-2 us).
_CACHE_KIB: Final = 8 * 1024

# A checkpoint copies the WAL into the database with two fsyncs, in the thread that applies. At
# 4096 pages (16 MiB) that is one pause per some ten thousand commands, the WAL stays bounded,
# and a replay after a crash is short. Whoever cuts the log checkpoints first (Tree.checkpoint).
_WAL_AUTOCHECKPOINT_PAGES: Final = 4096

_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",  # readers of a snapshot do not stop the writer
    # A power cut may undo the last transactions but never tears one; the log replays them.
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA cache_size = -{_CACHE_KIB}",
    # Only a commit writes, so only a commit can find the disk full: Tree relies on it. What is
    # changed between two of them (some hundreds of commands) stays in memory.
    "PRAGMA cache_spill = OFF",
    f"PRAGMA wal_autocheckpoint = {_WAL_AUTOCHECKPOINT_PAGES}",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cell_size_check = ON",  # find a damaged page when it is read, not when it is used
    "PRAGMA trusted_schema = OFF",
    "PRAGMA foreign_keys = OFF",  # check.py looks at what they would, off the hot path
)

FACTOR_LITERAL: Final = f"x'{FACTOR_XATTR.hex()}'"  # as SQL spells it

_INODE_COLUMNS: Final = """
    mode       INTEGER NOT NULL,  -- S_IFMT | 12 permission bits
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    nlink      INTEGER NOT NULL,  -- directory: 2 + subdirectories; 0: no name left, in "orphan"
    rdev       INTEGER NOT NULL,  -- as the kernel packs major and minor; 0 unless a device
    size       INTEGER NOT NULL,  -- bytes; length of a symlink's target; 0 for the other kinds
    allocated  INTEGER NOT NULL,  -- bytes: sum of the lengths of its extents
    atime_ns   INTEGER NOT NULL,  -- ns since 1970 UTC, may be negative, like the next three
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    btime_ns   INTEGER NOT NULL,
    version    INTEGER NOT NULL,  -- log index of the last change of content (or of entries)
    changed    INTEGER NOT NULL,  -- log index of the last change of anything here
    parent     INTEGER NOT NULL,  -- directory with a name: the inode of ".."; root: itself; else 0
    target     BLOB NOT NULL,     -- symlink: where to; else empty
    since      INTEGER NOT NULL   -- log index from which this row is valid; <= changed
"""

# A table WITHOUT ROWID names the columns of its key first and in the key's order: with any other
# order the integrity_check of SQLite 3.40 and 3.41.0 reports NULLs that are not there.
_SCHEMA: Final = f"""
CREATE TABLE meta (
    id               INTEGER PRIMARY KEY CHECK (id = 1),  -- there is one row
    applied_index    INTEGER NOT NULL,  -- last log index whose effect is in here; 0: none
    applied_term     INTEGER NOT NULL,  -- its term
    membership_index INTEGER NOT NULL,  -- log index of the membership; 0: none or the first one
    membership       BLOB NOT NULL,     -- opaque to the tree: consensus wrote it
    next_ino         INTEGER NOT NULL,  -- above every inode number ever given
    next_cookie      INTEGER NOT NULL,  -- above every cookie ever given
    history_floor    INTEGER NOT NULL,  -- oldest log index that can still be asked for
    files            INTEGER NOT NULL,  -- rows of inode
    bytes            INTEGER NOT NULL   -- sum of inode.allocated
);
CREATE TABLE inode (
    ino        INTEGER PRIMARY KEY,  -- >= 1, never reused: kernels and mounts keep them
    {_INODE_COLUMNS.strip()}
);
CREATE TABLE inode_history (
    ino        INTEGER NOT NULL,
    until      INTEGER NOT NULL,     -- log index from which it was no longer valid; > since
    {_INODE_COLUMNS.strip()}
  , PRIMARY KEY (ino, until)
) WITHOUT ROWID;
CREATE INDEX inode_history_until ON inode_history (until);

CREATE TABLE entry (
    cookie     INTEGER PRIMARY KEY,  -- from meta.next_cookie, never reused; a name that is
                                     -- replaced by rename keeps it, so readdir shows it once
    parent     INTEGER NOT NULL,     -- inode of the directory
    name       BLOB NOT NULL,        -- 1 .. 255 bytes without "/" and NUL, compared as bytes
    ino        INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    UNIQUE (parent, name)
);
-- In order of cookies within a directory: the rowid ends every index.
CREATE INDEX entry_parent ON entry (parent);
CREATE INDEX entry_ino ON entry (ino);
CREATE TABLE entry_history (
    parent     INTEGER NOT NULL,
    name       BLOB NOT NULL,
    until      INTEGER NOT NULL,
    cookie     INTEGER NOT NULL,
    ino        INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    PRIMARY KEY (parent, name, until)
) WITHOUT ROWID;
CREATE INDEX entry_history_parent ON entry_history (parent, cookie);
CREATE INDEX entry_history_ino ON entry_history (ino);
CREATE INDEX entry_history_until ON entry_history (until);

CREATE TABLE xattr (
    ino        INTEGER NOT NULL,
    name       BLOB NOT NULL,        -- 1 .. 255 bytes with its namespace: user.x
    value      BLOB NOT NULL,        -- up to 64 KiB
    since      INTEGER NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;
CREATE TABLE xattr_history (
    ino        INTEGER NOT NULL,
    name       BLOB NOT NULL,
    until      INTEGER NOT NULL,
    value      BLOB NOT NULL,
    since      INTEGER NOT NULL,
    PRIMARY KEY (ino, name, until)
) WITHOUT ROWID;
CREATE INDEX xattr_history_until ON xattr_history (until);
-- The few directories that ask for a number of copies (records.FACTOR_XATTR).
CREATE INDEX xattr_factor ON xattr (ino) WHERE name = {FACTOR_LITERAL};
CREATE TABLE refactor (              -- inodes below which blobs may have another factor than asked
    ino        INTEGER PRIMARY KEY,
    cookie     INTEGER NOT NULL      -- of the last entry that was looked at; 0 before the first
);

CREATE TABLE extent (
    ino         INTEGER NOT NULL,    -- a regular file
    file_offset INTEGER NOT NULL,    -- bytes
    length      INTEGER NOT NULL,    -- bytes, >= 1; ends at or before inode.size; a gap is a hole
    blob        INTEGER NOT NULL,    -- has a row in blob
    blob_offset INTEGER NOT NULL,    -- bytes; blob_offset + length <= blob.size
    since       INTEGER NOT NULL,
    PRIMARY KEY (ino, file_offset)
) WITHOUT ROWID;
CREATE TABLE extent_history (
    ino         INTEGER NOT NULL,
    file_offset INTEGER NOT NULL,
    until       INTEGER NOT NULL,
    length      INTEGER NOT NULL,
    blob        INTEGER NOT NULL,
    blob_offset INTEGER NOT NULL,
    since       INTEGER NOT NULL,
    PRIMARY KEY (ino, file_offset, until)
) WITHOUT ROWID;
CREATE INDEX extent_history_until ON extent_history (until);

CREATE TABLE blob (
    blob       INTEGER PRIMARY KEY,  -- node number << 48 | counter
    size       INTEGER NOT NULL,     -- bytes
    checksum   BLOB NOT NULL,        -- BLAKE3, 32 bytes
    holders    BLOB NOT NULL,        -- node numbers, ascending, 2 bytes each, big-endian; the
                                     -- number 0 alone: its content is in table content
    refs       INTEGER NOT NULL,     -- rows of extent and extent_history that name it
    factor     INTEGER NOT NULL DEFAULT 0 -- copies that a directory asks for; 0: as the setting
);
CREATE INDEX blob_holders ON blob (holders, factor) WHERE refs > 0;
CREATE INDEX blob_garbage ON blob (refs) WHERE refs = 0;
CREATE TABLE content (               -- of blobs so small that they came with their command
    blob       INTEGER PRIMARY KEY,  -- in table blob, with the holder 0
    bytes      BLOB NOT NULL         -- as long as blob.size says, up to 64 KiB
);
-- Blobs with refs > 0, counted by who holds them and how many should: status and repair ask which
-- of these groups are in trouble, some tens, instead of looking at every blob.
CREATE TABLE tally (
    holders    BLOB NOT NULL,        -- as in table blob
    factor     INTEGER NOT NULL,     -- likewise
    blobs      INTEGER NOT NULL,     -- > 0
    bytes      INTEGER NOT NULL,     -- sum of blob.size
    PRIMARY KEY (holders, factor)
) WITHOUT ROWID;

CREATE TABLE orphan (                -- exactly the inodes with nlink 0
    ino        INTEGER PRIMARY KEY,
    since      INTEGER NOT NULL,     -- log index of the loss of its last name (or of Tmpfile)
    linkable   INTEGER NOT NULL      -- 1: made by Tmpfile, Link may still name it; else 0
);
CREATE TABLE session (
    client     INTEGER PRIMARY KEY,  -- > 0
    serial     INTEGER NOT NULL,     -- highest that was applied
    used_ns    INTEGER NOT NULL      -- latest time of a command
);
CREATE TABLE session_result (        -- the last answers of each client, for exactly-once
    client     INTEGER NOT NULL,
    slot       INTEGER NOT NULL,     -- serial modulo SESSION_WINDOW: a new one evicts the oldest
    serial     INTEGER NOT NULL,
    code       INTEGER NOT NULL,     -- commands.COMMAND_CODES: tells the type of the value
    result     BLOB NOT NULL,        -- msgpack (errno, value, touched)
    PRIMARY KEY (client, slot)
) WITHOUT ROWID;
CREATE TABLE delegation (            -- directories in which one client alone changes names
    ino        INTEGER PRIMARY KEY,  -- of a directory that has a name
    client     INTEGER NOT NULL,     -- has a row in session
    recalled   INTEGER NOT NULL      -- log index of its first Recall; 0: nobody wants it back
);
CREATE TABLE reservation (           -- inode numbers that one client alone gives to its new files
    client     INTEGER NOT NULL,     -- has a row in session
    first      INTEGER NOT NULL,     -- of commands.INODES_RESERVED numbers
    used       INTEGER NOT NULL,     -- bit n: first + n is given; without a row once all are
    PRIMARY KEY (client, first)
) WITHOUT ROWID;
CREATE TABLE setting (               -- only what was set; defaults are in settings.py
    name       TEXT PRIMARY KEY,
    value      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE node (
    number     INTEGER PRIMARY KEY,
    address    TEXT NOT NULL,
    state      TEXT NOT NULL,        -- one of settings.NODE_STATES
    witness    INTEGER NOT NULL      -- 0 or 1
);
CREATE TABLE token (                 -- mount tokens, by what may be told of them
    token_id   BLOB PRIMARY KEY,     -- 8 bytes
    read_only  INTEGER NOT NULL,     -- 0 or 1
    directory  BLOB NOT NULL,        -- absolute path
    expires_s  INTEGER NOT NULL,     -- since 1970; 0: never
    made_s     INTEGER NOT NULL,     -- since 1970
    note       TEXT NOT NULL,        -- for people
    revoked    INTEGER NOT NULL      -- 0 or 1
) WITHOUT ROWID;
CREATE TABLE secret (                -- the last change of the cluster's secret, if there was any
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL,     -- of the new one
    sealed_new BLOB NOT NULL,        -- under the old one
    sealed_old BLOB NOT NULL,        -- under the new one; empty once it is retired
    ends_s     INTEGER NOT NULL,     -- since 1970
    old_tokens BLOB NOT NULL         -- ids of the mount tokens that go with the old one, joined
);
CREATE TABLE tick (                  -- the first log index of each second in which any came
    log_index  INTEGER PRIMARY KEY,
    time_ns    INTEGER NOT NULL      -- grows with log_index, whatever the leaders' clocks did
);
"""

# Table -> its key: the order in which a dump or a digest reads it.
TABLES: Final[dict[str, str]] = {
    "meta": "id",
    "inode": "ino",
    "inode_history": "ino, until",
    "entry": "cookie",
    "entry_history": "parent, name, until",
    "xattr": "ino, name",
    "xattr_history": "ino, name, until",
    "extent": "ino, file_offset",
    "extent_history": "ino, file_offset, until",
    "blob": "blob",
    "content": "blob",
    "tally": "holders, factor",
    "refactor": "ino",
    "orphan": "ino",
    "session": "client",
    "session_result": "client, slot",
    "delegation": "ino",
    "reservation": "client, first",
    "setting": "name",
    "node": "number",
    "token": "token_id",
    "secret": "id",
    "tick": "log_index",
}


_WHAT_TO_DO: Final = (
    "keep a copy of the file, remove it, and start the node again: it fetches the tree from the "
    "other nodes"
)


def prepare(connection: sqlite3.Connection) -> None:
    """The connection is ready for ``Tree``: pragmas set, schema there and of this version.

    connection  opened with ``isolation_level=None``, not inside a transaction.

    CorruptionError  not a database, a damaged one, another program's, or a newer version's; it is
                     left as it was, and the message says what to do.
    """
    assert connection.isolation_level is None, "transactions are ours: isolation_level=None"
    assert not connection.in_transaction
    with translated_errors():
        if _is_empty(connection):
            # Only before there is anything. What is forgotten leaves free pages inside the file;
            # ``Tree.give_back`` makes the file smaller by them.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _set_pragmas(connection)
            _create(connection)
        else:
            _migrate(connection)
            verify_header(connection)
            _set_pragmas(connection)


@contextmanager
def translated_errors() -> Iterator[None]:
    """What SQLite says about the disk and the file comes out in the words of errors.py."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        # Misuse of the module is a DatabaseError too, but has no code: that is our bug.
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise NoSpaceError("no room on the disk for the tree; nothing was applied") from exc
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CorruptionError(f"the tree database is damaged ({exc}); {_WHAT_TO_DO}") from exc
        raise


def verify_header(connection: sqlite3.Connection) -> None:
    """The database is a tree of this version with all its tables; CorruptionError otherwise."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise CorruptionError(
            "the tree database belongs to another program; point --data-dir at a PyDi directory"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise CorruptionError(
            f"the tree database has schema version {version}, this program knows "
            f"{SCHEMA_VERSION}; start the version of PyDi that wrote it"
        )
    names = {name for (name,) in connection.execute(_TABLE_NAMES)}
    missing = sorted(TABLES.keys() - names)
    rows = 0 if missing else connection.execute("SELECT count(*) FROM meta").fetchone()[0]
    if missing or rows != 1:
        what = f"lacks {', '.join(missing)}" if missing else "lacks its meta row"
        raise CorruptionError(f"the tree database {what}; {_WHAT_TO_DO}")


# From each older version to the next one.
_MIGRATIONS: Final = {
    1: """
DROP INDEX blob_copies;
ALTER TABLE blob DROP COLUMN copies;
CREATE INDEX blob_holders ON blob (holders) WHERE refs > 0;
DROP TABLE tally;
CREATE TABLE tally (
    holders    BLOB PRIMARY KEY,
    blobs      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO tally SELECT holders, count(*), sum(size) FROM blob WHERE refs > 0 GROUP BY holders;
""",
    2: f"""
CREATE INDEX xattr_factor ON xattr (ino) WHERE name = {FACTOR_LITERAL};
CREATE TABLE refactor (ino INTEGER PRIMARY KEY, cookie INTEGER NOT NULL);
ALTER TABLE blob ADD COLUMN factor INTEGER NOT NULL DEFAULT 0;
DROP INDEX blob_holders;
CREATE INDEX blob_holders ON blob (holders, factor) WHERE refs > 0;
DROP TABLE tally;
CREATE TABLE tally (
    holders    BLOB NOT NULL,
    factor     INTEGER NOT NULL,
    blobs      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    PRIMARY KEY (holders, factor)
) WITHOUT ROWID;
INSERT INTO tally SELECT holders, factor, count(*), sum(size) FROM blob WHERE refs > 0
    GROUP BY holders, factor;
""",
    3: """
CREATE TABLE token (
    token_id   BLOB PRIMARY KEY,
    read_only  INTEGER NOT NULL,
    directory  BLOB NOT NULL,
    expires_s  INTEGER NOT NULL,
    made_s     INTEGER NOT NULL,
    note       TEXT NOT NULL,
    revoked    INTEGER NOT NULL
) WITHOUT ROWID;
""",
    4: """
CREATE TABLE secret (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL,
    sealed_new BLOB NOT NULL,
    sealed_old BLOB NOT NULL,
    ends_s     INTEGER NOT NULL,
    old_tokens BLOB NOT NULL
);
""",
    5: """
CREATE TABLE content (
    blob       INTEGER PRIMARY KEY,
    bytes      BLOB NOT NULL
);
""",
    6: """
CREATE TABLE delegation (
    ino        INTEGER PRIMARY KEY,
    client     INTEGER NOT NULL,
    recalled   INTEGER NOT NULL
);
CREATE TABLE reservation (
    client     INTEGER NOT NULL,
    first      INTEGER NOT NULL,
    used       INTEGER NOT NULL,
    PRIMARY KEY (client, first)
) WITHOUT ROWID;
""",
}


def _migrate(connection: sqlite3.Connection) -> None:
    """A tree of an older version is one of this version; anything else is left as it is."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID or version not in _MIGRATIONS:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        while version in _MIGRATIONS:
            for statement in _MIGRATIONS[version].split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            version += 1
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


_TABLE_NAMES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"


def _is_empty(connection: sqlite3.Connection) -> bool:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(application_id == 0 and objects == 0)


def _set_pragmas(connection: sqlite3.Connection) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma).fetchall()


def _create(connection: sqlite3.Connection) -> None:
    """All tables, the root directory and the header in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(
            "INSERT INTO meta VALUES (1, 0, 0, 0, x'', :next_ino, 1, 0, 1, 0)",
            {"next_ino": ROOT_INO + 1},
        )
        connection.execute(
            "INSERT INTO inode VALUES (:ino, :mode, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, :ino,"
            " x'', 0)",
            {"ino": ROOT_INO, "mode": ROOT_MODE},
        )
        # Last, so that a header of ours means a whole schema even to a reader of a torn copy.
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
