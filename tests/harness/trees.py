"""Looks into the trees of nodes from outside: what their databases hold, running or stopped.

Used by tests that start, stop and cut off nodes. Reading a running node's database is safe: the WAL
of SQLite lets a reader see one committed state beside the writer. Nothing here ever writes to a
node.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydi_node.ids import LogIndex
from pydi_node.tree import schema
from pydi_node.tree.check import check
from pydi_node.tree.machine import Tree
from tests.harness.procs import NodeProcess, wait_until

AGREE_DEADLINE_S = 60.0


class TreeState(NamedTuple):
    """What a replica has applied, and what came of it."""

    applied_index: LogIndex
    digest: bytes  # over every row of every table


def tree_state(node: NodeProcess) -> TreeState:
    """One committed state of a running node's tree."""
    uri = f"file:{_database(node)}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        tree = Tree(connection)
        return TreeState(tree.applied_index, tree.digest())


def wait_one_tree(nodes: Sequence[NodeProcess]) -> None:
    """Returns when all have applied the same and hold the same; AssertionError when two that have
    applied the same differ, or when they don't come together in time."""

    def is_one() -> bool:
        states = [tree_state(node) for node in nodes]
        if len({state.applied_index for state in states}) > 1:
            return False
        assert len(set(states)) == 1, f"the trees differ at one applied index: {states}"
        return True

    wait_until(is_one, "all nodes hold the same tree", AGREE_DEADLINE_S)


def assert_stopped_tree_sound(node: NodeProcess) -> None:
    """The fsck of a stopped node's tree finds nothing. It looks at a copy: opening the database of
    a killed node would recover it, which is that node's own work."""
    with _copy_of(_database(node).parent) as folder:
        path = folder / "tree.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            schema.prepare(connection)
            assert check(connection) == [], f"{node.data_dir}: the tree is not sound"


def _database(node: NodeProcess) -> Path:
    return node.data_dir / "tree" / "tree.db"


@contextlib.contextmanager
def _copy_of(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(folder, copy)
        yield copy
