"""Identifiers that every room speaks: NewTypes and the pure functions on them.

Imports nothing of PyDi; everything may import this.
"""

from __future__ import annotations

from typing import NewType

NodeNumber = NewType("NodeNumber", int)  # 1 .. NODE_NUMBER_MAX, unique in a cluster, never reused
Term = NewType("Term", int)  # Raft term, >= 0
LogIndex = NewType("LogIndex", int)  # position in the replicated log, first entry is 1
Ino = NewType("Ino", int)  # inode number, >= 1, never reused
BlobId = NewType("BlobId", int)  # binary name of a blob: node number and counter in one integer
ClientId = NewType("ClientId", int)  # random 63 bit name of one client session, > 0
Serial = NewType("Serial", int)  # number of a command within one client session, >= 1
TimeNs = NewType("TimeNs", int)  # nanoseconds since 1970-01-01 UTC

ROOT_INO = Ino(1)

# SQLite integers are signed 64 bit: 15 bits of node number and 48 bits of counter keep a blob id
# positive, and 2**48 blobs a node is one million a second for nine years.
NODE_NUMBER_MAX = (1 << 15) - 1
BLOB_COUNTER_BITS = 48
BLOB_COUNTER_MAX = (1 << BLOB_COUNTER_BITS) - 1
BLOB_ID_MAX = (NODE_NUMBER_MAX << BLOB_COUNTER_BITS) | BLOB_COUNTER_MAX

INT64_MAX = (1 << 63) - 1


def blob_id(node: NodeNumber, counter: int) -> BlobId:
    """The binary name of blob ``counter`` out of ``node``'s own range."""
    assert 1 <= node <= NODE_NUMBER_MAX, node
    assert 1 <= counter <= BLOB_COUNTER_MAX, counter
    return BlobId((node << BLOB_COUNTER_BITS) | counter)


def blob_node(blob: BlobId) -> NodeNumber:
    """The node that named this blob (not necessarily one that still holds it)."""
    return NodeNumber(blob >> BLOB_COUNTER_BITS)


def blob_counter(blob: BlobId) -> int:
    """The counter within the naming node's range."""
    return blob & BLOB_COUNTER_MAX


def blob_name(blob: BlobId) -> str:
    """16 lower-case hex digits: the blob's file name on disk and in messages to people."""
    return f"{blob:016x}"


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 blob", "2 blobs": for messages to people. ``many`` where it is not ``one`` and an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def parse_blob_name(name: str) -> BlobId | None:
    """The id behind a file name made by ``blob_name``; None for any other name."""
    if len(name) != 16 or not all(c in "0123456789abcdef" for c in name):
        return None
    value = int(name, 16)
    if value > BLOB_ID_MAX or value >> BLOB_COUNTER_BITS == 0 or value & BLOB_COUNTER_MAX == 0:
        return None
    return BlobId(value)
