"""Arithmetic on lists of extents: pure functions, no tree.

A *file list* is ascending by offset and free of overlaps; its gaps are holes. In a *change list* an
extent of blob HOLE says "these bytes become a hole", and a later extent wins over earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydi_node.ids import BlobId
from pydi_node.records import HOLE, Extent


def splice(base: Sequence[Extent], changes: Sequence[Extent]) -> list[Extent]:
    """The file list ``base`` after the change list ``changes``, neighbours merged.

    Takes O(n log n) in any order of the changes, because a client chooses that order.
    """
    return merge(e for e in _overlay(base, _flatten(changes)) if e.blob != HOLE)


def cut(extents: Sequence[Extent], size: int) -> list[Extent]:
    """What of a file list lies before byte ``size``."""
    return clip(extents, 0, size)


def clip(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """What of a file list lies in ``[start, end)``, at its own offsets."""
    return [
        _part(extent, start, end)
        for extent in extents
        if extent.offset < end and extent.offset + extent.length > start
    ]


def shift(extents: Sequence[Extent], distance: int) -> list[Extent]:
    """The same extents, ``distance`` bytes further on in the file."""
    return [extent._replace(offset=extent.offset + distance) for extent in extents]


def fill(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """A change list that makes ``[start, end)`` equal to a file list clipped to it: gaps become
    explicit holes."""
    filled: list[Extent] = []
    position = start
    for extent in extents:
        if extent.offset > position:
            filled.append(hole(position, extent.offset))
        filled.append(extent)
        position = extent.offset + extent.length
    if position < end:
        filled.append(hole(position, end))
    return filled


def hole(start: int, end: int) -> Extent:
    """The change "``[start, end)`` becomes a hole"."""
    return Extent(start, end - start, HOLE, 0)


def merge(extents: Iterator[Extent]) -> list[Extent]:
    """The same bytes in fewer extents: neighbours that continue each other in one blob join."""
    merged: list[Extent] = []
    for extent in extents:
        if merged:
            last = merged[-1]
            if (
                last.blob == extent.blob
                and last.offset + last.length == extent.offset
                and last.blob_offset + last.length == extent.blob_offset
            ):
                merged[-1] = last._replace(length=last.length + extent.length)
                continue
        merged.append(extent)
    return merged


def _flatten(changes: Sequence[Extent]) -> Sequence[Extent]:
    """The change list in ascending order without overlaps, holes kept.

    Nearly always it is so already. Otherwise halves are laid over each other: one by one would be
    quadratic, and 64 Ki extents in descending order would stop every node for minutes.
    """
    if all(a.offset + a.length <= b.offset for a, b in pairwise(changes)):
        return changes
    half = len(changes) // 2
    return _overlay(_flatten(changes[:half]), _flatten(changes[half:]))


def _overlay(below: Sequence[Extent], above: Sequence[Extent]) -> list[Extent]:
    """Both ascending and free of overlaps: ``above`` wins where they meet. One pass over each."""
    result: list[Extent] = []
    index = 0
    rest: Extent | None = below[0] if below else None  # of below[index], not yet placed
    for extent in above:
        end = extent.offset + extent.length
        while rest is not None and rest.offset < end:
            if rest.offset < extent.offset:
                result.append(_part(rest, rest.offset, extent.offset))
            if rest.offset + rest.length > end:
                rest = _part(rest, end, rest.offset + rest.length)
                break
            index += 1
            rest = below[index] if index < len(below) else None
        result.append(extent)
    if rest is not None:
        result.append(rest)
        result.extend(below[index + 1 :])
    return result


def _part(extent: Extent, start: int, end: int) -> Extent:
    """The piece of ``extent`` within ``[start, end)``, which it must meet."""
    first = max(start, extent.offset)
    last = min(end, extent.offset + extent.length)
    if first == extent.offset and last - first == extent.length:
        return extent
    assert first < last, (extent, start, end)
    skipped = 0 if extent.blob == HOLE else first - extent.offset
    return Extent(first, last - first, BlobId(extent.blob), extent.blob_offset + skipped)
