"""The tree's database on a simulated disk.

It lives in SQLite in memory. What a crash leaves of it is a whole image: a killed program leaves
everything committed; a power cut leaves what the last checkpoint or a commit after it made of it
(``synchronous=NORMAL``), drawn from the images that were kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydi_node.commands import Envelope
from pydi_node.errors import NoSpaceError
from pydi_node.ids import LogIndex, Term
from pydi_node.records import Result
from pydi_node.tree import schema
from pydi_node.tree.machine import Tree

if TYPE_CHECKING:
    from tests.simulation.machine import Machine


class WatchedTree(Tree):
    """The tree on its simulated disk: may be full, tells the watch and keeps images for crashes."""

    def __init__(self, connection: sqlite3.Connection, machine: Machine) -> None:
        super().__init__(connection)
        self.machine = machine
        self._reported = LogIndex(0)  # by the last checkpoint

    def advance(self, entries: Sequence[tuple[LogIndex, Term, Envelope | None]]) -> list[Result]:
        results = super().advance(entries)
        self.machine.watch.on_apply(entries, results)
        self._after_apply()
        return results

    def advance_membership(self, index: LogIndex, term: Term, data: bytes) -> None:
        super().advance_membership(index, term, data)
        self.machine.watch.on_membership(index, term, data)
        self._after_apply()

    def commit(self) -> None:
        if not self.uncommitted:
            return
        with self._all_or_nothing():
            if self.machine.room == "none":
                raise NoSpaceError("simulated")
        super().commit()
        if self.machine.world.dice.percent(10):
            self.machine.images_between.append(self._connection.serialize())

    def checkpoint(self) -> LogIndex:
        if self.machine.room == "none":
            raise NoSpaceError("simulated")
        if self.machine.world.dice.percent(90):  # else somebody reads a snapshot
            self._reported = super().checkpoint()
            self.machine.image_durable = self._connection.serialize()
            self.machine.images_between = []
        return self._reported

    def _after_apply(self) -> None:
        if self.applied_index % 16 == 0:
            self.machine.watch.on_digest(self)


def committed_image(connection: sqlite3.Connection) -> bytes:
    """What a program that is killed now leaves of the database."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
    return connection.serialize()


def open_database(image: bytes) -> sqlite3.Connection:
    """A connection to a database in memory that began as ``image``."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    if image:
        connection.deserialize(image)
    schema.prepare(connection)
    return connection
