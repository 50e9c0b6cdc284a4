"""A snapshot is a copy of the tree's database: made here, and judged here before it is trusted.

For the runtime: ``copy_to`` while the tree goes on working, ``adopt`` on a copy that came from
another node, before it takes the place of this node's tree. Nothing here removes or renames a file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from pydi_node.errors import CorruptionError
from pydi_node.ids import LogIndex, Term
from pydi_node.tree.schema import translated_errors, verify_header

# 4 MiB at a time: a step is a few milliseconds, so a thread that copies gives the interpreter back
# often, and a waiting ``progress`` can cancel soon.
COPY_STEP_PAGES: Final = 1024


class Snapshot(NamedTuple):
    """What a snapshot contains, for consensus."""

    applied_index: LogIndex  # last log index applied in it
    applied_term: Term
    membership_index: LogIndex
    membership: bytes


def copy_to(
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    progress: Callable[[int, int], None] | None = None,
) -> Snapshot:
    """``target`` is one whole, consistent copy of the tree as of now, in a single file.

    source    the tree's own connection, just committed; or, to copy in a thread while batches go
              on, another connection to the same file that never writes. The copy reads one WAL
              snapshot from beginning to end: batches applied meanwhile are not in it, and no
              checkpoint passes it.
    target    a connection to an empty database, isolation_level None; the caller syncs the file.
    progress  called after each step with (pages left, pages in all); whatever it raises cancels,
              and the target is then useless.

    NoSpaceError, CorruptionError  as ``Tree.apply_batch``.
    """
    assert not source.in_transaction
    with translated_errors():
        source.execute("BEGIN")
        try:
            snapshot = _read(source)  # this read pins the WAL snapshot
            source.backup(
                target,
                pages=COPY_STEP_PAGES,
                progress=lambda _, left, total: progress(left, total) if progress else None,
            )
        finally:
            source.execute("ROLLBACK")
        # The header came along and says WAL; a snapshot travels as one file.
        target.execute("PRAGMA journal_mode = DELETE").fetchall()
    return snapshot


def adopt(connection: sqlite3.Connection) -> Snapshot:
    """What the copied database holds; it is a whole, undamaged tree of this version.

    connection  to a copy that nobody uses yet. ``schema.prepare`` comes after.

    CorruptionError  throw the copy away and ask another node. Reads the whole database.
    """
    with translated_errors():
        verify_header(connection)
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check(10)").fetchall()]
        if problems != ["ok"]:
            raise CorruptionError(
                f"the snapshot is damaged ({'; '.join(problems)}); fetch it from another node"
            )
        return _read(connection)


def _read(connection: sqlite3.Connection) -> Snapshot:
    row = connection.execute(
        "SELECT applied_index, applied_term, membership_index, membership FROM meta WHERE id = 1"
    ).fetchone()
    return Snapshot(*row)
