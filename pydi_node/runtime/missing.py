"""Which files are hurt when content has no copy within reach: paths for ``pydi status``.

The tree has no way from a blob to its files but to look at all of them. That is done beside the
loop, on a connection of its own, and only while something is missing. What was applied in the last
moment may not be in the database's files yet: who asks again sees it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Collection, Sequence

from pydi_node.errors import FileError
from pydi_node.ids import BlobId, Ino, LogIndex, NodeNumber
from pydi_node.records import IN_TREE
from pydi_node.tree.machine import Tree
from pydi_node.tree.queries import inodes_naming, inodes_that_named

BLOBS_MAX = 512  # looked for; with more of them a person needs no longer list
PATHS_MAX = 100
PATH_SHOWN_MAX = 1000  # characters; all together fit into one answer
SEARCH_MAX_S = 0.5  # of a status; some two million rows
_STEPS_PER_LOOK = 10_000  # of SQLite's machine, between two looks at the clock: below 1 ms


def missing_blobs(tree: Tree, reachable: Collection[NodeNumber]) -> list[BlobId]:
    """Some of the blobs that no reachable node holds."""
    found: list[BlobId] = []
    for total in tree.blob_totals():
        if total.holders != IN_TREE and not any(n in reachable for n in total.holders):
            room = BLOBS_MAX - len(found)
            infos = tree.blobs_held_by(total.holders, total.factor, room)
            found += [info.blob for info in infos]
    return found[:BLOBS_MAX]


async def missing_paths(tree: Tree, blobs: Sequence[BlobId]) -> list[str]:
    """Paths of files that need one of these blobs, older versions marked; at most PATHS_MAX, and
    fewer when looking takes too long."""
    if not blobs:
        return []
    file = tree.file
    present, past = await asyncio.to_thread(_search, file, tuple(blobs[:BLOBS_MAX]))
    paths = [path for ino in present if (path := tree.path_of(ino)) is not None]
    for ino, until in past:
        try:
            path = tree.path_of(ino, until)
        except FileError:
            continue  # forgotten meanwhile
        if path is not None and path not in paths:
            paths.append(path + b" (an older version)")
    shown = [path.decode(errors="backslashreplace") for path in paths[:PATHS_MAX]]
    return [path[:PATH_SHOWN_MAX] for path in shown]


def _search(file: str, blobs: tuple[BlobId, ...]) -> tuple[list[Ino], list[tuple[Ino, LogIndex]]]:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        end_s = time.monotonic() + SEARCH_MAX_S
        connection.set_progress_handler(lambda: time.monotonic() > end_s, _STEPS_PER_LOOK)
        present: list[Ino] = []
        past: list[tuple[Ino, LogIndex]] = []
        try:
            present = inodes_naming(connection, blobs, PATHS_MAX)
            past = inodes_that_named(connection, blobs, PATHS_MAX)
        except sqlite3.OperationalError:
            pass  # out of time: what was found is shown
        return present, past
    finally:
        connection.close()
