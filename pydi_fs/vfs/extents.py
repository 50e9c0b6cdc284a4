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
        if not segments or new.offset >= segments[-1].end:
            index = len(segments)
        else:
            self.carve(new.offset, new.length)
            index = bisect_right(starts, new.offset)
        self.mapped_bytes += new.length
        if index and _continues(segments[index - 1], new):
            index -= 1
            before = segments[index]
            new = Segment(
                before.offset, before.length + new.length, before.source, before.source_offset
            )
            segments[index] = new
        else:
            segments.insert(index, new)
            starts.insert(index, new.offset)
        if index + 1 < len(segments) and _continues(new, segments[index + 1]):
            segments[index] = new._replace(length=new.length + segments[index + 1].length)
            del segments[index + 1], starts[index + 1]

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
    return (
        before.source == after.source
        and before.end == after.offset
        and before.source_offset + before.length == after.source_offset
    )


def _clip(segment: Segment, start: int, end: int) -> Segment:
    skipped = start - segment.offset
    return Segment(start, end - start, segment.source, segment.source_offset + skipped)
