"""A database is prepared, or refused unchanged with a sentence that says what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pydi_node import commands as c
from pydi_node.errors import CorruptionError
from pydi_node.ids import ROOT_INO, NodeNumber
from pydi_node.tree import schema
from pydi_node.tree.check import check
from tests.unit.tree.driver import Driver, blob, extent, open_tree


def test_a_new_tree_is_a_root_directory() -> None:
    """Owned by root, for everybody, without times: equal on all nodes before any command."""
    connection, tree = open_tree()
    attr = tree.getattr(ROOT_INO)
    assert (attr.mode, attr.uid, attr.gid, attr.nlink) == (schema.ROOT_MODE, 0, 0, 2)
    assert (attr.ctime_ns, attr.version, tree.applied_index) == (0, 0, 0)
    connection.close()


def test_preparing_again_keeps_the_tree(tmp_path: Path) -> None:
    """Every start prepares; pragmas hold for each connection."""
    path = str(tmp_path / "tree.db")
    driver = Driver(path)
    driver.create(b"f")
    digest = driver.tree.digest()
    driver.close()
    connection, tree = open_tree(path)
    assert tree.digest() == digest
    pragmas = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "cache_size", "temp_store")
    }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 1,
        "cache_size": -8 * 1024,
        "temp_store": 2,
    }
    connection.close()


def refusal(path: Path) -> str:
    """The sentence with which a database is refused; the file is as before."""
    before = path.read_bytes()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with pytest.raises(CorruptionError) as caught:
            schema.prepare(connection)
    finally:
        connection.close()
    assert path.read_bytes() == before
    return str(caught.value)


def sound_file(path: Path) -> Path:
    """A tree in one file without a WAL."""
    driver = Driver(str(path))
    for number in range(300):
        driver.create(b"%d" % number)
    driver.connection.execute("PRAGMA journal_mode = DELETE")
    driver.close()
    return path


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Its bytes stay."""
    path = tmp_path / "tree.db"
    path.write_bytes(b"not a database, but long enough to be looked at " * 100)
    assert "start the node again" in refusal(path)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """Whether it says so in its header or only by its tables."""
    for statement in ("CREATE TABLE bookmarks (url)", "PRAGMA application_id = 7"):
        path = tmp_path / f"{len(statement)}.db"
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
        assert "another program" in refusal(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """The sentence names both versions."""
    path = sound_file(tmp_path / "tree.db")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "version 99" in refusal(path)


def test_the_first_version_becomes_this_one(tmp_path: Path) -> None:
    """Its totals by number of copies become totals by holders and factor; all else stays."""
    path = tmp_path / "tree.db"
    driver = Driver(str(path))
    ino = driver.create(b"f")
    driver.write(ino, extent(0, 10, 1), extent(10, 10, 2), extent(20, 10, 3))
    driver.ok(c.SetHolders(blob(2), (NodeNumber(5),), ()))
    digest, totals = driver.tree.digest(), driver.tree.blob_totals()
    assert len(totals) == 2
    driver.connection.executescript(
        "DROP INDEX blob_holders; ALTER TABLE blob ADD COLUMN copies INTEGER NOT NULL DEFAULT 0;"
        "UPDATE blob SET copies = length(holders) / 2; ALTER TABLE blob DROP COLUMN factor;"
        "DROP INDEX xattr_factor; DROP TABLE refactor;"
        "CREATE INDEX blob_copies ON blob (copies) WHERE refs > 0; DROP TABLE tally;"
        "CREATE TABLE tally (copies INTEGER PRIMARY KEY, blobs INTEGER, bytes INTEGER);"
        "INSERT INTO tally SELECT copies, count(*), sum(size) FROM blob GROUP BY copies;"
        "DROP TABLE token; DROP TABLE secret; DROP TABLE content; DROP TABLE delegation;"
        "DROP TABLE reservation;"
        "PRAGMA user_version = 1"
    )
    driver.connection.close()
    connection, tree = open_tree(str(path))
    assert (tree.digest(), tree.blob_totals()) == (digest, totals)
    assert check(connection) == []
    connection.close()


@pytest.mark.parametrize("statement", ["DROP TABLE extent_history", "DELETE FROM meta"])
def test_a_tree_that_lacks_something_is_refused(tmp_path: Path, statement: str) -> None:
    """A missing table or the missing meta row; never made anew over what is left."""
    path = sound_file(tmp_path / "tree.db")
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert "lacks" in refusal(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    """Half a database is damage, not an empty tree."""
    path = sound_file(tmp_path / "tree.db")
    path.write_bytes(path.read_bytes()[: 5 * 4096])
    assert "damaged" in refusal(path)
