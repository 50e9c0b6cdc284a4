"""What the tests of the tree share: a tree on a fresh database, and a hand to drive it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from blake3 import blake3

from pydi_node.commands import (
    Caller,
    Command,
    Commit,
    Create,
    Envelope,
    Mkdir,
)
from pydi_node.errors import FileError
from pydi_node.ids import (
    ROOT_INO,
    BlobId,
    ClientId,
    Ino,
    LogIndex,
    NodeNumber,
    Serial,
    Term,
    TimeNs,
    blob_id,
)
from pydi_node.records import IN_TREE, Attr, BlobInfo, Extent, Result
from pydi_node.tree import Tree, schema
from pydi_node.tree.check import check

ROOT = Caller(0, 0, ())
ALICE = Caller(1000, 1000, ())
BOB = Caller(1001, 1001, (1000,))  # in Alice's group
EVE = Caller(1002, 1002, ())
KERNEL_EVE = Caller(1002, 1002, None)  # Eve, whose kernel has checked the mode bits

EPOCH = 1_700_000_000 * 10**9
HOUSE = ClientId(0)

Entry = tuple[LogIndex, Term, Envelope | None]


def open_tree(path: str = ":memory:") -> tuple[sqlite3.Connection, Tree]:
    connection = sqlite3.connect(path, isolation_level=None)
    schema.prepare(connection)
    return connection, Tree(connection)


def entry(index: int, command: Command | None, client: int = 0, serial: int = 0) -> Entry:
    """A log entry of term 1, one second after the one before it."""
    if command is None:
        return LogIndex(index), Term(1), None
    time_ns = TimeNs(EPOCH + index * 10**9)
    return LogIndex(index), Term(1), Envelope(ClientId(client), Serial(serial), time_ns, command)


def blob(counter: int) -> BlobId:
    return blob_id(NodeNumber(1), counter)


def blob_info(counter: int, size: int = 100, holders: Sequence[int] = (1, 2)) -> BlobInfo:
    nodes = tuple(NodeNumber(number) for number in holders)
    return BlobInfo(blob(counter), size, bytes([counter]) * 32, nodes)


def info_in_tree(counter: int, content: bytes) -> BlobInfo:
    return BlobInfo(blob(counter), len(content), blake3(content).digest(), IN_TREE)


def put(ino: int, counter: int, content: bytes, append: bool = False) -> Commit:
    """Small content that goes with its command: all of the file, or an append to it."""
    return Commit(
        ROOT, Ino(ino), None, None if append else 0, len(content), append,
        (extent(0, len(content), counter),), (info_in_tree(counter, content),), None, content,
    )  # fmt: skip


def extent(offset: int, length: int, counter: int, blob_offset: int = 0) -> Extent:
    """``counter`` 0 is a hole."""
    return Extent(offset, length, blob(counter) if counter else BlobId(0), blob_offset)


class Driver:
    """Applies commands to one tree under the next index, and knows what it applied."""

    def __init__(self, path: str = ":memory:") -> None:
        self.connection, self.tree = open_tree(path)
        self.log: list[Entry] = []

    @property
    def index(self) -> LogIndex:
        return self.tree.applied_index

    def run(self, command: Command | None, client: int = 0, serial: int = 0) -> Result:
        item = entry(self.index + 1, command, client, serial)
        self.log.append(item)
        return self.tree.apply_batch([item])[0]

    def ok(self, command: Command) -> Any:
        """The value of a command that succeeds."""
        result = self.run(command)
        assert result.errno == 0, (command, result)
        return result.value

    def errno(self, command: Command) -> int:
        """The errno of a command that fails; nothing may have changed."""
        before = self.rows()
        result = self.run(command)
        assert result.errno != 0, (command, result)
        assert result == Result(result.errno)
        assert self.rows() == before
        return result.errno

    def mkdir(self, name: bytes, parent: int = ROOT_INO, mode: int = 0o755) -> Ino:
        attr: Attr = self.ok(Mkdir(ROOT, Ino(parent), name, mode))
        return attr.ino

    def create(
        self, name: bytes, parent: int = ROOT_INO, mode: int = 0o644, caller: Caller = ROOT
    ) -> Ino:
        attr: Attr = self.ok(Create(caller, Ino(parent), name, mode, True))[0]
        return attr.ino

    def write(
        self, ino: int, *extents: Extent, caller: Caller = ROOT, cut: int | None = None
    ) -> Attr:
        """Commit ``extents``, all of their blobs described as 100 bytes long."""
        size = max(e.offset + e.length for e in extents)
        counters = sorted({e.blob for e in extents if e.blob})
        infos = tuple(blob_info(b & 0xFFFF) for b in counters)
        attr: Attr = self.ok(Commit(caller, Ino(ino), None, cut, size, False, extents, infos))
        return attr

    def extents(self, ino: int, at: LogIndex | None = None) -> list[Extent]:
        return list(self.tree.file_version(Ino(ino), at).extents)

    def rows(self) -> dict[str, list[Any]]:
        """Every row of every table but the applied index and the ticks."""
        dump = {
            table: self.connection.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
            for table, key in schema.TABLES.items()
            if table != "tick"
        }
        dump["meta"] = [row[3:] for row in dump["meta"]]
        return dump

    def close(self) -> None:
        """A test ends with a sound tree."""
        try:
            assert check(self.connection) == []
        finally:
            self.connection.close()


@contextmanager
def file_error(number: int) -> Iterator[None]:
    """The block raises FileError with this errno."""
    with pytest.raises(FileError) as caught:
        yield
    assert caught.value.errno == number
