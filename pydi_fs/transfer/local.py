"""Ranges of local files, hashed. Called by `upload` and `download`."""

from __future__ import annotations

from blake3 import blake3

from pydi_fs.commands_session import CHUNK_BYTES
from pydi_node import portable


def hash_range(fd: int, offset: int, length: int) -> bytes:
    """BLAKE3 of a range, or of what there is of it. Takes a while: for another thread."""
    hasher = blake3()
    hash_into(hasher, fd, offset, length)
    return hasher.digest()


def hash_into(hasher: blake3, fd: int, offset: int, length: int) -> None:
    end = offset + length
    while offset < end and (data := portable.pread(fd, min(CHUNK_BYTES, end - offset), offset)):
        hasher.update(data)
        offset += len(data)
