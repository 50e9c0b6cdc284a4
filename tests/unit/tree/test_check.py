"""fsck finds every kind of damage: each rule is broken once, on purpose, and must speak."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino, NodeNumber, TimeNs
from pydi_node.records import FACTOR_XATTR
from pydi_node.tree import check as check_module
from pydi_node.tree.check import check
from tests.unit.tree.driver import ROOT, Driver, extent, put

# One statement of damage (or several), and the beginning of what check has to say about it.
# Inodes: 1 root, 2 directory d, 3 directory d/e, 4 file f (extents, xattr, history), 5 symlink s,
# 6 orphan with content, 7 removed directory, 8 Tmpfile, 9 file that was purged.
DAMAGE = [
    ("UPDATE meta SET files = 99", "meta: 99 inodes"),
    ("UPDATE meta SET bytes = 99", "meta: 99 bytes"),
    ("UPDATE meta SET next_ino = 9", "meta: next inode number 9, but 13"),
    ("UPDATE meta SET next_cookie = 2", "meta: next cookie 2"),
    ("UPDATE meta SET history_floor = 999", "meta: history floor 999"),
    ("UPDATE meta SET membership_index = 999", "meta: history floor"),
    ("DELETE FROM meta", "meta: 0 rows"),
    ("UPDATE inode SET mode = 33188 WHERE ino = 1", "root: inode 1"),
    ("UPDATE inode SET parent = 2 WHERE ino = 1", "root: inode 1"),
    ("UPDATE inode SET mode = 420 WHERE ino = 4", "inode 4: number, mode 420"),
    ("UPDATE inode SET size = -1 WHERE ino = 4", "inode 4: number, mode"),
    ("UPDATE inode SET size = 5 WHERE ino = 2", "inode 2: number, mode"),
    ("UPDATE inode SET changed = 999 WHERE ino = 4", "inode 4: changed at 999"),
    ("UPDATE inode SET version = changed + 1 WHERE ino = 4", "inode 4: changed at"),
    ("UPDATE inode SET target = x'' WHERE ino = 5", "symlink 5: its target"),
    ("UPDATE inode SET size = 9 WHERE ino = 5", "symlink 5: its target"),
    ("UPDATE inode SET target = x'61' WHERE ino = 4", "symlink 4: its target"),
    ("UPDATE inode SET nlink = 2 WHERE ino = 4", "inode 4: 1 names, nlink 2"),
    ("UPDATE inode SET nlink = 2 WHERE ino = 2", "directory 2: 1 subdirectories, nlink 2"),
    ("UPDATE inode SET nlink = 2 WHERE ino = 7", "directory 7: 0 subdirectories, nlink 2"),
    ("UPDATE inode SET parent = 1 WHERE ino = 3", "directory 3: its parent is 1"),
    ("UPDATE inode SET parent = 1 WHERE ino = 7", "directory 7: its parent is 1"),
    ("UPDATE inode SET parent = 1 WHERE ino = 4", "inode 4: not a directory, but has"),
    ("INSERT INTO entry VALUES (999, 1, x'7a', 3, 1)", "directory 3: 2 names"),
    ("INSERT INTO entry VALUES (999, 2, x'7a', 1, 1)", "directory 1: 1 names"),
    # A cycle: d goes into d/e, and nothing leads there from the root.
    (
        "UPDATE entry SET parent = 3 WHERE ino = 2; UPDATE inode SET parent = 3 WHERE ino = 2;"
        " UPDATE inode SET nlink = 3 WHERE ino = 3; UPDATE inode SET nlink = 2 WHERE ino = 1",
        "directory 2: cannot be reached",
    ),
    ("UPDATE entry SET name = x'2e2e' WHERE ino = 4", "entry 3 in 1: name of 2 bytes"),
    ("UPDATE entry SET name = x'612f62' WHERE ino = 4", "entry 3 in 1: name of 3 bytes"),
    ("UPDATE entry SET name = zeroblob(256) WHERE ino = 4", "entry 3 in 1: name of 256"),
    ("UPDATE entry SET name = 'text' WHERE ino = 4", "entry 3 in 1: name of 4"),
    ("UPDATE entry SET ino = 99 WHERE ino = 4", "entry 3: leads to inode 99"),
    ("UPDATE entry SET parent = 4 WHERE ino = 5", "entry 4: in 4, which is not"),
    ("UPDATE entry SET parent = 7 WHERE ino = 5", "entry 4: in 7, which is not"),
    ("UPDATE entry_history SET cookie = 3", "entry_history: cookie 3 was used"),
    ("INSERT INTO orphan VALUES (4, 1, 0)", "orphan 4: is not an inode without"),
    ("INSERT INTO orphan VALUES (99, 1, 0)", "orphan 99: is not an inode without"),
    ("DELETE FROM orphan WHERE ino = 6", "inode 6: has no name but is not"),
    ("UPDATE orphan SET linkable = 2 WHERE ino = 6", "orphan 6: since"),
    ("UPDATE xattr SET ino = 99", "xattr: of inode 99"),
    ("UPDATE extent SET ino = 99 WHERE ino = 4", "extent of 99 at 0: not of a regular"),
    ("UPDATE inode SET size = 20 WHERE ino = 4", "extent of 4 at 10: not of a regular"),
    ("UPDATE extent SET file_offset = -5 WHERE file_offset = 0", "extent of 4 at -5: offset"),
    ("UPDATE extent SET length = 0 WHERE file_offset = 0", "extent of 4 at 0: offset"),
    ("UPDATE extent SET length = 11 WHERE file_offset = 0", "extent of 4 at 0: overlaps"),
    (
        "UPDATE extent SET blob = (SELECT blob FROM extent WHERE ino = 4 AND file_offset = 10),"
        " blob_offset = 40 WHERE ino = 4 AND file_offset = 0;"
        " UPDATE extent SET blob_offset = 50 WHERE ino = 4 AND file_offset = 10",
        "extent of 4 at 10: continues",
    ),
    ("UPDATE inode SET allocated = 7 WHERE ino = 4", "inode 4: 7 bytes allocated"),
    ("UPDATE extent SET blob = 7 WHERE ino = 6", "extent of 6 at 0: names bytes"),
    ("UPDATE extent_history SET blob_offset = 99", "extent of 4 at 0: names bytes"),
    ("UPDATE blob SET refs = refs + 1", "blob 281474976710657: 3 references counted, 2"),
    ("DELETE FROM extent_history", "blob 281474976710657: 2 references counted, 1"),
    ("UPDATE blob SET checksum = x'00'", "blob 281474976710657: size 100 or checksum"),
    ("UPDATE blob SET holders = x'00020001'", "blob 281474976710657: holders 00020001"),
    ("UPDATE blob SET holders = x'00010001'", "blob 281474976710657: holders 00010001"),
    ("UPDATE blob SET holders = x'00000001'", "blob 281474976710657: holders 00000001"),
    ("DELETE FROM content", "blob 281474976710662: in the tree, but its 5 bytes"),
    ("UPDATE content SET bytes = x'00'", "blob 281474976710662: in the tree, but its 5 bytes"),
    ("UPDATE content SET blob = 7", "content of 7: no such blob is in the tree"),
    (
        "UPDATE content SET bytes = x'6a656c6c6f'",
        "blob 281474976710662: its content in the tree has",
    ),
    ("UPDATE tally SET blobs = 99", "tally of holders 00010002, factor 0: 99 blobs"),
    ("INSERT INTO tally VALUES (x'0007', 0, 0, 0)", "tally of holders 0007, factor 0: 0 blobs"),
    ("DELETE FROM tally", "tally of holders 00010002, factor 0: 0 blobs"),
    ("UPDATE blob SET factor = 9", "blob 281474976710657: factor 9"),
    ("INSERT INTO refactor VALUES (999, 0)", "refactor of 999: there is no such inode"),
    ("UPDATE session SET serial = 0", "session of client 5: number or serial 0"),
    ("DELETE FROM session", "session of client 5: result of serial"),
    ("UPDATE session_result SET slot = slot + 1 WHERE serial = 2", "session of client 5: result"),
    ("DELETE FROM session_result WHERE serial = 2", "session of client 5: the result of its last"),
    ("UPDATE delegation SET ino = 4", "delegation of 4: not a directory"),
    ("UPDATE delegation SET ino = 7", "delegation of 7: not a directory"),
    ("UPDATE delegation SET recalled = 999", "delegation of 2: recalled 999 is past"),
    (
        "UPDATE delegation SET client = 9",
        "delegation of 2: recalled 0 is past the applied index, o",
    ),
    ("UPDATE reservation SET client = 9", "reservation of client 9 from 11: it has no session"),
    ("UPDATE reservation SET first = 12", "reservation of client 6 from 12: it has no session"),
    ("UPDATE reservation SET used = -1", "reservation of client 6 from 11: it has no session"),
    (
        "UPDATE meta SET next_ino = 99; INSERT INTO reservation VALUES (6, 30, 0)",
        "reservation of client 6 from 11: overlaps",
    ),
    ("UPDATE reservation SET used = 1", "reservation of client 6 from 11: number 13 is free"),
    ("UPDATE setting SET value = 99", "setting replicas: 99"),
    ("UPDATE setting SET name = 'colour'", "setting colour: 3"),
    ("UPDATE node SET state = 'asleep'", "node 2: state asleep"),
    ("UPDATE node SET witness = 2", "node 2: state up"),
    ("UPDATE tick SET time_ns = 5 WHERE log_index = 3", "tick 3: not later"),
    ("UPDATE tick SET log_index = 999 WHERE log_index = 3", "tick 999: not later"),
    (
        "UPDATE inode_history SET since = since - 1 WHERE ino = 4 AND since = 10",
        "inode_history: two rows of 4 overlap, until 10 and since 9",
    ),
    (
        "DELETE FROM inode_history WHERE ino = 4 AND until = 13",
        "inode_history: inode 4 has a gap in its history, until 12",
    ),
    (
        "INSERT INTO entry_history (parent, name, until, cookie, ino, since)"
        " SELECT parent, name, 20, cookie, ino, since FROM entry WHERE ino = 4",
        "entry: the row of 1 since 3 overlaps its history until 20",
    ),
    (
        "INSERT INTO entry_history (parent, name, until, cookie, ino, since)"
        " SELECT parent, name, until + 1, cookie, ino, since FROM entry_history WHERE ino = 6",
        "entry_history: two rows of 1 overlap, until 16 and since 5",
    ),
    (
        "INSERT INTO xattr_history (ino, name, until, value, since)"
        " SELECT ino, name, until - 1, value, since - 1 FROM xattr_history",
        "xattr_history: two rows of 4 overlap, until 11 and since 10",
    ),
    (
        "INSERT INTO extent_history (ino, file_offset, until, length, blob, blob_offset, since)"
        " SELECT ino, file_offset, until + 1, length, blob, blob_offset, since"
        " FROM extent_history WHERE ino = 9",
        "extent_history: two rows of 9 overlap, until 19 and since 15",
    ),
    ("UPDATE inode SET since = 1", "inode: the row of 4 since 1 overlaps its history until 13"),
    ("UPDATE xattr SET since = 1", "xattr: the row of 4 since 1 overlaps its history until 12"),
    ("UPDATE extent SET since = 1", "extent: the row of 4 since 1 overlaps its history until 11"),
]
for _table in ("inode", "entry", "xattr", "extent"):
    DAMAGE += [
        (f"UPDATE {_table} SET since = 999", f"{_table}: row of"),
        (f"UPDATE OR REPLACE {_table}_history SET until = since", f"{_table}_history: row of"),
        (f"UPDATE OR REPLACE {_table}_history SET until = 999", f"{_table}_history: row of"),
    ]


@pytest.fixture(scope="module")
def tree() -> Iterator[Driver]:
    """A sound tree with a row in every table. The tests leave it as it is."""
    fs = Driver()
    directory = fs.mkdir(b"d")
    fs.mkdir(b"e", directory)
    file = fs.create(b"f")
    fs.ok(c.Symlink(ROOT, ROOT_INO, b"s", b"target"))
    orphan = fs.create(b"o")
    fs.mkdir(b"r")
    fs.ok(c.Tmpfile(ROOT, ROOT_INO, 0o600))
    purged = fs.create(b"p")
    for counter in (1, 2):
        fs.write(file, extent(0, 10, 1), extent(10, 20, counter + 1))
        fs.ok(c.SetXattr(ROOT, file, b"user.a", b"%d" % counter, 0))
    fs.write(file, extent(0, 10, 4))
    fs.write(orphan, extent(0, 10, 1))
    fs.write(purged, extent(0, 10, 5))
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"o"))
    fs.ok(c.Rmdir(ROOT, ROOT_INO, b"r"))
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"p"))
    fs.ok(c.PurgeOrphans((purged,)))
    fs.ok(c.SetSetting("replicas", "3"))
    fs.ok(c.SetNode(NodeNumber(2), "host:1", "up", False))
    fs.ok(c.SetToken(b"12345678", False, b"/", 0, 1, "", False))
    fs.ok(c.SetSecret(1, b"new", b"old", 9))
    touch = c.SetAttr(ROOT, directory, mtime_ns=TimeNs(1))
    fs.run(touch, client=5, serial=1)
    fs.run(touch, client=5, serial=2)
    fs.ok(c.SetXattr(ROOT, directory, FACTOR_XATTR, b"3", 0))
    fs.ok(put(fs.create(b"t"), 6, b"hello"))
    fs.run(c.ReserveInodes(), client=6, serial=11)
    fs.run(c.Delegate(directory), client=6, serial=12)
    fs.run(c.PutFile(ROOT, directory, b"n", 0o644, 0, (), (), ino=Ino(13)), client=6, serial=13)
    yield fs
    fs.close()


@contextmanager
def damaged(tree: Driver, statements: str) -> Iterator[sqlite3.Connection]:
    """The tree with the damage done, for the length of the block."""
    tree.connection.execute("BEGIN")
    try:
        for statement in statements.split(";"):
            assert tree.connection.execute(statement).rowcount > 0, statement
        yield tree.connection
    finally:
        tree.connection.execute("ROLLBACK")


def test_a_sound_tree_has_nothing_to_say(tree: Driver) -> None:
    """And every table has a row, so that nothing is sound for lack of rows."""
    assert check(tree.connection) == []
    assert all(tree.rows().values())


@pytest.mark.parametrize(("statements", "sentence"), DAMAGE)
def test_damage_is_found(tree: Driver, statements: str, sentence: str) -> None:
    """Each kind of damage is told in its own sentence."""
    with damaged(tree, statements) as connection:
        found = check(connection)
    assert any(line.startswith(sentence) for line in found), found


def test_no_rule_is_silent(tree: Driver) -> None:
    """The damages above make every rule of check speak: none of them is dead."""
    silent = {rule.sentence for rule in check_module._RULES}
    for statements, _ in DAMAGE:
        with damaged(tree, statements) as connection:
            spoke = {
                rule.sentence
                for rule in check_module._RULES
                if rule.sentence in silent and connection.execute(rule.sql).fetchone()
            }
        silent -= spoke
    assert silent == set()


def test_damage_of_the_database_itself_is_told_first(tmp_path: Path) -> None:
    """An index that lacks a row: SQLite's own check speaks, and nothing built on it."""
    fs = Driver(str(tmp_path / "tree.db"))
    for number in range(50):
        fs.create(b"%d" % number)
    fs.connection.execute("PRAGMA writable_schema = ON")
    fs.connection.execute(
        "UPDATE sqlite_master SET sql = 'CREATE INDEX entry_ino ON entry (since)'"
        " WHERE name = 'entry_ino'"
    )
    fs.connection.close()
    connection = sqlite3.connect(tmp_path / "tree.db", isolation_level=None)
    found = check(connection)
    connection.close()
    assert found
    assert all(line.startswith("database: ") for line in found)


def test_one_broken_rule_does_not_fill_the_screen(tree: Driver) -> None:
    """A bounded number of sentences for each rule."""
    many = "INSERT INTO orphan SELECT 1000 + log_index * 100 + t, 1, 0 FROM tick, tens"
    tree.connection.execute("CREATE TEMP TABLE tens (t)")
    tree.connection.executemany("INSERT INTO tens VALUES (?)", [(t,) for t in range(10)])
    with damaged(tree, many) as connection:
        found = check(connection)
    assert len(found) == check_module.FINDINGS_PER_RULE_MAX
