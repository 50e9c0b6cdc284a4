"""What a copy has to do, decided from attributes alone. Pure: no file, no clock, no network.

A *part* is the content of an unfinished copy of a large file, beside its target. Its name says
which state of the source it belongs to; whether its bytes are right is decided by checksums.
"""

from __future__ import annotations

import hashlib
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pydi_node import portable
from pydi_node.records import Attr, FileVersion

MIB = 1 << 20
# Read whole before anything is sent: such a file is replaced in one step without a detour.
SMALL_BYTES_MAX = MIB
# What is worth going on with after an interruption; less is sent again in a second or two.
PART_BYTES_MIN = 32 * MIB
# A crash loses at most so much of an upload; each stretch is one blob, and a file of one blob is
# the cheapest to read, so not smaller.
CHECKPOINT_BYTES = 256 * MIB
PART_PREFIX = b".pydi-part-"


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """What ``put`` and ``get`` were told."""

    recursive: bool = False
    mirror: bool = False  # what the source does not have is removed from the target
    resume: bool = False  # go on with a part that an interrupted copy left
    everything: bool = False  # files that look unchanged too


class LocalState(NamedTuple):
    """What of a local file's status decides."""

    mode: int
    size: int
    mtime_ns: int


def is_unchanged(local: LocalState, attr: Attr) -> bool:
    """Both regular, of one size and one modification time: the copy would be the same bytes.

    A copy keeps the time of its source to the nanosecond, so two contents of one size and time are
    an accident that ``--all`` is there for. Source: the quick check of rsync(1).
    """
    return (
        stat.S_ISREG(local.mode)
        and attr.is_regular
        and local.size == attr.size
        and is_same_time(local.mtime_ns, attr.mtime_ns)
    )


def is_same_time(one_ns: int, other_ns: int, step_ns: int = portable.TIME_STEP_NS) -> bool:
    """As far as this machine's disks can tell."""
    return one_ns // step_ns == other_ns // step_ns


def part_of_local(device: int, inode: int, state: LocalState, target: bytes) -> bytes:
    """Name in the tree of the part of this state of a local file, on its way to that name."""
    text = b"%d %d %d %d " % (device, inode, state.size, state.mtime_ns)
    return PART_PREFIX + hashlib.sha256(text + target).hexdigest()[:24].encode()


def part_of_version(attr: Attr, target: bytes) -> bytes:
    """Name beside the local target of the part of this version of a file of the tree."""
    text = b"%d %d " % (attr.ino, attr.version)
    return PART_PREFIX + hashlib.sha256(text + target).hexdigest()[:24].encode()


def is_part(name: bytes) -> bool:
    """Unfinished copies are not copied themselves."""
    return name.startswith(PART_PREFIX)


def alike(names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Names that differ from an earlier one in case or composition only -> that one. Some disks
    take them for one name, and the second file would replace the first."""
    first: dict[str, bytes] = {}
    found = {}
    for name in sorted(names):
        text = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))
        other = first.setdefault(text.casefold(), name)
        if other != name:
            found[name] = other
    return found


class Piece(NamedTuple):
    """A range of a file that is exactly one blob, so its checksum is known."""

    offset: int
    length: int
    checksum: bytes  # BLAKE3


def pieces(version: FileVersion) -> list[Piece]:
    """The ranges of a version that can be verified by themselves, in order."""
    sizes = {info.blob: info for info in version.blobs}
    found = []
    for extent in version.extents:
        info = sizes.get(extent.blob)
        if info is not None and extent.blob_offset == 0 and extent.length == info.size:
            found.append(Piece(extent.offset, extent.length, info.checksum))
    return found


def covered_up_to(verified: Iterable[Piece], holes: Iterable[tuple[int, int]], size: int) -> int:
    """Up to where verified pieces and holes (offset, length) leave no gap, at most ``size``."""
    end = 0
    ranges = [(piece.offset, piece.length) for piece in verified] + list(holes)
    for offset, length in sorted(ranges):
        if offset > end:
            break
        end = max(end, offset + length)
    return min(end, size)
