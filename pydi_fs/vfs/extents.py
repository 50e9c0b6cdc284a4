"""An ordered map from ranges of a file to where their bytes are. Pure: no IO, no clock.

Used for the current content of an open file (sources: blobs and staging files) and, with a single
source, as a set of ranges. Gaps are holes. The invariant, asserted nowhere because every method
keeps it and the property test checks it: segments ascend, do not overlap, and two neighbours that
continue each other in both the file and the source are one segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Segment(NamedTuple):
    """``length`` bytes at ``offset`` are the bytes of ``source`` from ``source_offset``."""

    offset: int  # bytes in the file
    length: int  # bytes, >= 1
    source: int  # > 0 a blob id, < 0 a staging file of this mount
    source_offset: int  # bytes in the source

    @property
    def end(self) -> int:
        return self.offset + self.length


class ExtentMap:
    """Mutable ordered map of segments.

    Sequential writing appends to the last segment in O(1); a random write costs a binary search
    and a list insertion (a memmove of 8 bytes a segment: 80 KB at 10,000 segments).
    """

    __slots__ = ("_segments", "_starts", "mapped_bytes")

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        self.mapped_bytes = 0  # bytes that are not holes
        for segment in segments:
            self.put(segment)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def end(self) -> int:
        """One past the last mapped byte; 0 when empty."""
        return self._segments[-1].end if self._segments else 0

    def only(self) -> Segment | None:
        """The segment if there is just one."""
        return self._segments[0] if len(self._segments) == 1 else None

    def put(self, new: Segment) -> None:
        """Map ``new``'s range to it, whatever was there before."""
        segments, starts = self._segments, self._starts
        offset, length = new.offset, new.length
        end = offset + length
        first = bisect_right(starts, offset)
        before = segments[first - 1] if first else None
        overlaps = before is not None and before.offset + before.length > offset
        self.mapped_bytes += length
        if first == len(segments) and not overlaps:  # behind all others
            if before is not None and _continues(before, new):
                segments[-1] = _joined(before, new)
            else:
                segments.append(new)
                starts.append(offset)
            return
        last = first
        while last < len(segments) and starts[last] < end:
            last += 1
        if overlaps:
            first -= 1
        for old in segments[first:last]:
            self.mapped_bytes -= min(old.offset + old.length, end) - max(old.offset, offset)
        after = None
        if first < last and (old := segments[last - 1]).offset + old.length > end:
            after = _clip(old, end, old.offset + old.length)
        elif last < len(segments) and _continues(new, segments[last]):
            after = segments[last]
            last += 1
        # What is left of it stays; a neighbour that goes on in this one is taken in as a whole.
        if overlaps and before is not None:
            start = before.offset
            before = _clip(before, start, offset) if start < offset else None
            if before is None and first and _continues(segments[first - 1], new):
                first -= 1
                before = segments[first]
        elif before is not None and _continues(before, new):
            first -= 1
        else:
            before = None
        placed = [new]
        if after is not None:
            placed = [_joined(new, after)] if _continues(new, after) else [new, after]
        if before is not None:
            if _continues(before, new):
                placed[0] = _joined(before, placed[0])
            else:
                placed.insert(0, before)
        segments[first:last] = placed
        starts[first:last] = [segment.offset for segment in placed]

    def carve(self, offset: int, length: int) -> None:
        """Make ``[offset, offset + length)`` a hole."""
        if length <= 0:
            return
        end = offset + length
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or self._segments[first].end <= offset:
            first += 1
        last = first
        kept: list[Segment] = []
        while last < len(self._segments) and self._segments[last].offset < end:
            old = self._segments[last]
            if old.offset < offset:
                kept.append(old._replace(length=offset - old.offset))
            if old.end > end:
                kept.append(_clip(old, end, old.end))
            last += 1
            self.mapped_bytes -= min(old.end, end) - max(old.offset, offset)
        self._segments[first:last] = kept
        self._starts[first:last] = [segment.offset for segment in kept]

    def cut(self, size: int) -> None:
        """Forget everything at and after ``size``."""
        if self.end > size:
            self.carve(size, self.end - size)

    def slices(self, offset: int, length: int) -> list[Segment]:
        """The segments within ``[offset, offset + length)``, clipped to it, in ascending order."""
        end = offset + length
        index = max(bisect_right(self._starts, offset) - 1, 0)
        found = []
        while index < len(self._segments) and self._segments[index].offset < end:
            segment = self._segments[index]
            if segment.end > offset:
                found.append(_clip(segment, max(segment.offset, offset), min(segment.end, end)))
            index += 1
        return found

    def inside(self, offset: int, length: int) -> Segment | None:
        """The segment that has all of ``[offset, offset + length)``; None: no single one has."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0:
            return None
        segment = self._segments[index]
        return segment if offset + length <= segment.offset + segment.length else None

    def next_data(self, offset: int) -> int | None:
        """The first mapped byte at or after ``offset``, None when only holes follow."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        for segment in self._segments[index : index + 2]:
            if segment.end > offset:
                return max(segment.offset, offset)
        return None

    def next_hole(self, offset: int) -> int:
        """The first unmapped byte at or after ``offset``."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._segments) and self._segments[index].offset <= offset:
            offset = max(offset, self._segments[index].end)
            index += 1
        return offset

    def replace_source(self, old: int, new: int) -> None:
        """Every segment of source ``old`` becomes one of ``new`` at the same source offset."""
        segments = self._segments
        self._segments, self._starts, self.mapped_bytes = [], [], 0
        for segment in segments:
            # put() merges with a neighbour that was already of the new source.
            self.put(segment._replace(source=new) if segment.source == old else segment)


def _continues(before: Segment, after: Segment) -> bool:
    offset, length, source, source_offset = before
    return (
        source == after.source
        and offset + length == after.offset
        and source_offset + length == after.source_offset
    )


def _joined(before: Segment, after: Segment) -> Segment:
    """Of two that continue each other."""
    return Segment(before.offset, before.length + after.length, before.source, before.source_offset)


def _clip(segment: Segment, start: int, end: int) -> Segment:
    skipped = start - segment.offset
    return Segment(start, end - start, segment.source, segment.source_offset + skipped)
