"""Files of blobs handed to the mounts of this machine: the layout of both messages. Pure.

Spoken on a unix socket of its own beside the node's (SOCK_SEQPACKET: one packet is one message),
because a descriptor travels only beside bytes of such a socket. Both sides drop the connection of
whoever sends anything else. docs/protocol.md section 9.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId
from pydi_node.records import CHECKSUM_BYTES

_REQUEST = Struct(f">IQQ{CHECKSUM_BYTES}s")
_ANSWER = Struct(">II")

REQUEST_BYTES = _REQUEST.size
ANSWER_BYTES = _ANSWER.size


class FileRequest(NamedTuple):
    """Asks for the file of a blob, read-only."""

    serial: int  # u32, chosen by the asking side; the answer repeats it
    blob: BlobId
    size: int  # bytes; with the checksum what the asking side knows of the blob: a node that knows
    checksum: bytes  # something else refuses, so files of another cluster are never mixed up

    def pack(self) -> bytes:
        return _REQUEST.pack(*self)


class FileAnswer(NamedTuple):
    """Accompanied by exactly one descriptor if ``errno`` is 0, else by none."""

    serial: int
    errno: int  # ENOENT: no sound copy here

    def pack(self) -> bytes:
        return _ANSWER.pack(*self)


def parse_request(packet: bytes) -> FileRequest:
    """ValueError when it is none."""
    if len(packet) != REQUEST_BYTES:
        raise ValueError(f"a request has {REQUEST_BYTES} bytes")
    serial, blob, size, checksum = _REQUEST.unpack(packet)
    if not 1 <= blob <= BLOB_ID_MAX or size > INT64_MAX:
        raise ValueError("blob or size out of range")
    return FileRequest(serial, BlobId(blob), size, checksum)


def parse_answer(packet: bytes) -> FileAnswer:
    """ValueError when it is none."""
    if len(packet) != ANSWER_BYTES:
        raise ValueError(f"an answer has {ANSWER_BYTES} bytes")
    return FileAnswer(*_ANSWER.unpack(packet))
