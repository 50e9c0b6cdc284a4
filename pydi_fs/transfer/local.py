"""Ranges of local files, read and hashed. Called by `upload` and `download`.

The position of a descriptor is nobody's: every read seeks first, for not every system has pread.
"""

from __future__ import annotations

import os

from blake3 import blake3

from pydi_fs.commands_session import CHUNK_BYTES


def read_range(fd: int, offset: int, length: int) -> bytes:
    """Some bytes from ``offset`` on, at most ``length``; none at the end."""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


def write_range(fd: int, offset: int, data: bytes) -> None:
    os.lseek(fd, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def hash_range(fd: int, offset: int, length: int) -> bytes:
    """BLAKE3 of a range, or of what there is of it. Takes a while: for another thread."""
    hasher = blake3()
    hash_into(hasher, fd, offset, length)
    return hasher.digest()


def hash_into(hasher: blake3, fd: int, offset: int, length: int) -> None:
    end = offset + length
    while offset < end and (data := read_range(fd, offset, min(CHUNK_BYTES, end - offset))):
        hasher.update(data)
        offset += len(data)
