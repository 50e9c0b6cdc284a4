"""Snapshots are whole copies of one moment, and a damaged one is not adopted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pydi_node.errors import CorruptionError
from pydi_node.ids import LogIndex, Term
from pydi_node.tree import Tree, schema, snapshot
from pydi_node.tree.check import check
from tests.unit.tree.driver import open_tree
from tests.unit.tree.test_apply import creates, everything


def connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def copied(tree_path: Path, copy_path: Path) -> snapshot.Snapshot:
    source, target = connect(tree_path), connect(copy_path)
    try:
        return snapshot.copy_to(source, target)
    finally:
        source.close()
        target.close()


def test_a_copy_is_adopted_and_goes_on_like_the_original(tmp_path: Path) -> None:
    """Same digest, membership and sessions; the log's rest leads both to the same tree. The copy is
    one file."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(everything()[:17])
    tree.set_membership(LogIndex(18), Term(2), b"members")
    target = connect(tmp_path / "copy.db")
    made = snapshot.copy_to(connection, target)
    target.close()
    assert sorted(path.name for path in tmp_path.glob("copy.db*")) == ["copy.db"]
    assert made == snapshot.Snapshot(LogIndex(18), Term(2), LogIndex(18), b"members")

    target = connect(tmp_path / "copy.db")
    assert snapshot.adopt(target) == made
    schema.prepare(target)
    other = Tree(target)
    assert other.digest() == tree.digest()
    rest = [(index, Term(2), envelope) for index, _, envelope in everything()[18:]]
    assert other.apply_batch(rest) == tree.apply_batch(rest)
    assert other.digest() == tree.digest()
    assert check(target) == []
    target.close()
    connection.close()


def test_a_copy_shows_one_moment_while_batches_go_on(tmp_path: Path) -> None:
    """Read through a second connection in steps: batches and checkpoints between them are not in
    it, and do not make it start again."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(creates(1, 30000))
    expected = tree.digest()
    source, target = connect(tmp_path / "tree.db"), connect(tmp_path / "copy.db")
    left_before: list[int] = []

    def work(left: int, total: int) -> None:
        left_before.append(left)
        first = tree.applied_index + 1
        tree.apply_batch(creates(first, first + 99))
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    made = snapshot.copy_to(source, target, work)
    source.close()
    assert made.applied_index == 30000
    assert len(left_before) >= 2
    assert left_before == sorted(left_before, reverse=True)
    assert tree.applied_index == 30000 + 100 * len(left_before)
    assert Tree(target).digest() == expected
    assert check(target) == []
    target.close()
    connection.close()


def test_a_copy_can_be_cancelled(tmp_path: Path) -> None:
    """What ``progress`` raises comes out, and the tree goes on."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(creates(1, 10))
    target = connect(tmp_path / "copy.db")

    def cancel(left: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        snapshot.copy_to(connection, target, cancel)
    target.close()
    tree.apply_batch(creates(11, 20))
    connection.close()


def test_a_damaged_copy_is_not_adopted(tmp_path: Path) -> None:
    """Cut, overwritten, changed in a few bytes, or something else altogether."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(creates(1, 2000))
    connection.close()
    copied(tmp_path / "tree.db", tmp_path / "copy.db")
    sound = (tmp_path / "copy.db").read_bytes()
    middle = len(sound) // 2 // 4096 * 4096
    for name, content in {
        "cut": sound[:middle],
        "overwritten": sound[:middle] + b"\xa5" * 4096 + sound[middle + 4096 :],
        "changed": sound.replace(b"1777", b"x777", 1),  # a name, in its row or in its index
        "empty": b"",
        "text": b"hello" * 1000,
    }.items():
        path = tmp_path / f"{name}.db"
        path.write_bytes(content)
        candidate = connect(path)
        with pytest.raises(CorruptionError):
            snapshot.adopt(candidate)
        candidate.close()
