"""Files of blobs handed to the mounts of this machine: the layout of the messages. Pure.

Spoken on a unix socket of its own beside the node's (SOCK_SEQPACKET: one packet is one message),
because a descriptor travels only beside bytes of such a socket. Both sides drop the connection of
whoever sends anything else. docs/protocol.md section 9.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId
from pydi_node.records import CHECKSUM_BYTES
from pydi_node.wire.messages import TICKET_BYTES

_REQUEST = Struct(f">IQQ{CHECKSUM_BYTES}s")
_LOAN = Struct(f">I{TICKET_BYTES}s")
_ANSWER = Struct(">II")

REQUEST_BYTES = _REQUEST.size
LOAN_BYTES = _LOAN.size
ANSWER_BYTES = _ANSWER.size


class FileRequest(NamedTuple):
    """Asks for the file of a blob, read-only."""

    serial: int  # u32, chosen by the asking side; the answer repeats it
    blob: BlobId
    size: int  # bytes; with the checksum what the asking side knows of the blob: a node that knows
    checksum: bytes  # something else refuses, so files of another cluster are never mixed up

    def pack(self) -> bytes:
        return _REQUEST.pack(*self)


class FileLoan(NamedTuple):
    """Asks for the file of a new blob, to be written. BlobAdopt names it in the session."""

    serial: int  # as in FileRequest
    ticket: bytes  # random: nobody else can name it

    def pack(self) -> bytes:
        return _LOAN.pack(*self)


class FileAnswer(NamedTuple):
    """Accompanied by exactly one descriptor if ``errno`` is 0, else by none."""

    serial: int
    errno: int  # ENOENT: no sound copy here

    def pack(self) -> bytes:
        return _ANSWER.pack(*self)


def parse_request(packet: bytes) -> FileRequest | FileLoan:
    """ValueError when it is neither."""
    if len(packet) == LOAN_BYTES:
        return FileLoan(*_LOAN.unpack(packet))
    if len(packet) != REQUEST_BYTES:
        raise ValueError(f"a request has {REQUEST_BYTES} or {LOAN_BYTES} bytes")
    serial, blob, size, checksum = _REQUEST.unpack(packet)
    if not 1 <= blob <= BLOB_ID_MAX or size > INT64_MAX:
        raise ValueError("blob or size out of range")
    return FileRequest(serial, BlobId(blob), size, checksum)


def parse_answer(packet: bytes) -> FileAnswer:
    """ValueError when it is none."""
    if len(packet) != ANSWER_BYTES:
        raise ValueError(f"an answer has {ANSWER_BYTES} bytes")
    return FileAnswer(*_ANSWER.unpack(packet))
