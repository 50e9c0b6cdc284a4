"""msgpack's packer, kept from one value to the next: packing a small value takes half the time.

Used by whatever packs many: frames, the log's envelopes, the tree's results. What is unpacked is
checked where it is used, so there is no twin of this.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships neither stubs nor py.typed

# A packer keeps a buffer as large as the largest value it packed. Larger values are rare, and what
# they take themselves is far more than a new packer costs.
KEPT_MAX_BYTES: Final = 1 << 20


class _Packer(threading.local):
    """One for each thread: a packer's buffer is its own only while nobody else uses it."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True).pack


_packer: Final = _Packer()


def pack(value: Any) -> bytes:
    """``value`` in msgpack's shortest form, text and bytes apart. Tuples, and so all records,
    become arrays. TypeError, ValueError, OverflowError: it holds what msgpack has no form for."""
    packed: bytes = _packer.pack(value)
    if len(packed) > KEPT_MAX_BYTES:
        _packer.pack = msgpack.Packer(use_bin_type=True).pack
    return packed
