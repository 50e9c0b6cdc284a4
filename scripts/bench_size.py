"""``scripts/bench --inodes N``: a node whose tree has N inodes starts, works, and feeds a new node.

The tree is filled as a node would fill it, by applying N creates, without the network: a million
take a minute that way. The log then begins behind them, as after a cut.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench_cluster import CALLER, Node, Start, creates, node_running, status_of

from pydi_node.commands import Command, Create, Envelope, Mkdir
from pydi_node.consensus import codec
from pydi_node.consensus.types import SnapshotMeta
from pydi_node.ids import ROOT_INO, ClientId, Ino, LogIndex, Serial, Term, TimeNs
from pydi_node.runtime.disklog import DiskLog
from pydi_node.tree import schema
from pydi_node.tree.machine import Tree

FILES_PER_DIRECTORY = 1000
ENTRIES_PER_COMMIT = 5000
FEED_TIMEOUT_S = 240.0
CLIENTS = 16
CREATES_PER_CLIENT = 50
BEFORE_S = 3.0  # how long the rate before it is measured


class Fed(NamedTuple):
    """A new node got the whole tree while clients went on creating files."""

    rate_before: float  # creates a second of the node alone
    rate_during: float
    seconds: float  # from the start of the new node's program until it is a voter


def fill(directory: Path, inodes: int) -> None:
    """The stopped, newly founded node in ``directory`` has this many inodes more."""
    with contextlib.closing(
        sqlite3.connect(directory / "tree" / "tree.db", isolation_level=None)
    ) as connection:
        schema.prepare(connection)
        tree = Tree(connection)
        term = tree.applied_term
        batch: list[tuple[LogIndex, Term, Envelope | None]] = []
        for index, command in enumerate(_commands(inodes), tree.applied_index + 1):
            envelope = Envelope(ClientId(0), Serial(index), TimeNs(time.time_ns()), command)
            batch.append((LogIndex(index), term, envelope))
            if len(batch) == ENTRIES_PER_COMMIT:
                tree.apply_batch(batch)
                batch = []
        tree.apply_batch(batch)
        tree.checkpoint()
        _, members = tree.membership
        meta = SnapshotMeta(tree.applied_index, term, codec.unpack_membership(members))
    log, _ = DiskLog.open(directory / "log")
    log.reset(meta)
    log.close()


def _commands(inodes: int) -> Iterator[Command]:
    """Directories with files; each inode number is the next one, so it is known before."""
    ino = parent = ROOT_INO
    for number in range(inodes):
        ino = Ino(ino + 1)
        if number % (FILES_PER_DIRECTORY + 1) == 0:
            parent = ino
            yield Mkdir(CALLER, ROOT_INO, b"directory-%d" % number, 0o755)
        else:
            yield Create(CALLER, parent, b"file-%d" % number, 0o644, True)


async def feed(node: Node, directory: Path, start: Start) -> Fed:
    """Start a new node in ``directory`` and measure until it votes."""
    began = time.perf_counter()
    before = await _rate(node, "before", lambda: _passed(began, BEFORE_S))
    began = time.perf_counter()
    with node_running(directory, node, start):

        async def is_fed() -> bool:
            if time.perf_counter() - began > FEED_TIMEOUT_S:
                raise SystemExit("the new node did not become a voter")
            return await _voters(node) == 2

        during = await _rate(node, "during", is_fed)
        seconds = time.perf_counter() - began
    return Fed(before, during, seconds)


async def _rate(node: Node, mark: str, is_over: Callable[[], Awaitable[bool]]) -> float:
    """Creates a second of CLIENTS clients until ``is_over``, at least one round."""
    count, spent = 0, 0.0
    while not count or not await is_over():
        cost = await creates([node], CLIENTS, CLIENTS * CREATES_PER_CLIENT, f"{mark}{count}-")
        count += CLIENTS * CREATES_PER_CLIENT
        spent += cost.seconds
    return count / spent


async def _passed(began: float, seconds: float) -> bool:
    return time.perf_counter() - began > seconds


async def _voters(node: Node) -> int:
    return sum(member["role"] == "voter" for member in (await status_of(node))["nodes"])
