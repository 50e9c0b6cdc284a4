"""The content of an open file as this mount sees it: the cluster's version and what is new here.

Pure: it maps ranges to sources and remembers what changed; bytes live in blobs and staging files.
The states of one file, seen from its changes::

    clean ──write/truncate──► dirty ──take_changes──► publishing ──published──► clean
                                ▲                        │  (writes meanwhile make it dirty again)
                                └────restore (failed)────┘

A publication carries changes, not the whole file (see `commands.Commit`), so two mounts that write
disjoint ranges of one file both keep their bytes. `rebase` puts the changes made here on top of a
newer version of the cluster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydi_fs.vfs.extents import ExtentMap, Segment
from pydi_node.ids import BlobId
from pydi_node.records import HOLE, Extent, FileVersion

_CHANGED = 1  # the only source in the set of changed ranges


class FrozenContent(NamedTuple):
    """What is unpublished of a file, as plain values; see `Content.freeze`."""

    size: int
    cut: int | None
    grown_to: int
    append_start: int | None
    touched: bool
    changed: tuple[tuple[int, int], ...]  # (offset, length)
    segments: tuple[tuple[int, int, int, int], ...]  # of the changed ranges; gaps are holes


class Changes(NamedTuple):
    """What one publication sends: the fields of a Commit, sources still unresolved.

    Ranges of staging files carry a negative source; the caller replaces it by the sealed blob.
    """

    cut: int | None  # bytes: everything from here on is forgotten first
    size: int  # bytes; with ``append``, the number of bytes appended
    append_start: int | None  # the size of the file when the appending began, None: not an append
    segments: tuple[Segment, ...]  # offsets as in the file; a hole has source HOLE

    def extents(self, blob_of: dict[int, BlobId]) -> tuple[Extent, ...]:
        """The extents of the Commit; ``blob_of`` names the blob that each staging file became."""
        shift = self.append_start or 0
        return tuple(
            Extent(s.offset - shift, s.length, blob_of.get(s.source, BlobId(s.source)),
                   s.source_offset if s.source != HOLE else 0)
            for s in self.segments
        )  # fmt: skip

    @classmethod
    def unpack(cls, fields: tuple[Any, ...]) -> Changes:
        """Out of the plain values that `tuple` made of one."""
        cut, size, append_start, segments = fields
        return cls(cut, size, append_start, tuple(Segment(*segment) for segment in segments))


class Content:
    """Ranges of one open file. Offsets, lengths and sizes in bytes."""

    __slots__ = ("_append_start", "_changed", "_cut", "_grown_to", "_touched", "map", "size")

    def __init__(self, version: FileVersion) -> None:
        self.map = _map_of(version)
        self.size = version.attr.size
        self._forget_changes()

    @classmethod
    def empty(cls, size: int) -> Content:
        """Of a file of that size of which nothing is known here: all of it is one hole."""
        content = cls.__new__(cls)
        content.map = ExtentMap()
        content.size = size
        content._forget_changes()
        return content

    def freeze(self) -> FrozenContent:
        """What is unpublished, without what the cluster has: `thaw` and `rebase` give it all."""
        return FrozenContent(
            self.size, self._cut, self._grown_to, self._append_start, self._touched,
            tuple((changed.offset, changed.length) for changed in self._changed),
            tuple((s.offset, s.length, s.source, s.source_offset) for s in self.unpublished()),
        )  # fmt: skip

    @classmethod
    def thaw(cls, frozen: FrozenContent, publishing: Changes | None) -> Content:
        """What `freeze` gave. publishing: what was taken before and is not known to have arrived;
        it lies below what was written since."""
        size, cut, grown_to, append_start, touched, changed, segments = frozen
        content = cls.empty(size)
        if publishing is not None:
            for segment in publishing.segments:
                if segment.source != HOLE:
                    content.map.put(segment)
        if cut is not None:
            content.map.cut(cut)
        for offset, length in changed:
            content.map.carve(offset, length)
            content._changed.put(Segment(offset, length, _CHANGED, offset))
        for fields in segments:
            content.map.put(Segment(*fields))
        content._cut, content._grown_to = cut, grown_to
        content._append_start, content._touched = append_start, touched
        return content

    def unpublished(self) -> list[Segment]:
        """What changed ranges consist of; gaps are holes."""
        return [
            segment
            for changed in self._changed
            for segment in self.map.slices(changed.offset, changed.length)
        ]

    def _forget_changes(self) -> None:
        self._changed = ExtentMap()  # ranges to publish
        self._cut: int | None = None
        self._grown_to = 0  # end of what was written or extended here since the last publication
        self._append_start: int | None = None
        self._touched = False

    @property
    def dirty(self) -> bool:
        """Something here is not published yet."""
        return self._touched

    def write(
        self, offset: int, length: int, source: int, source_offset: int, append: bool
    ) -> None:
        """``[offset, offset + length)`` now comes from ``source``; a gap behind the end is a hole.

        append  the writer asked for O_APPEND, and ``offset`` is the size.
        """
        assert length > 0, length
        assert not append or offset == self.size, (offset, self.size)
        self._note_append(offset, append)
        self.map.put(Segment(offset, length, source, source_offset))
        self._changed.put(Segment(offset, length, _CHANGED, offset))
        self._grow(offset + length)

    def rewrote(self) -> None:
        """What a `write` since the last `take_changes` has mapped got other bytes in its source, by
        a writer that did not ask for O_APPEND."""
        assert self._touched
        self._append_start = None

    def punch(self, offset: int, length: int, keep_size: bool) -> None:
        """``[offset, offset + length)`` reads as zeros and takes no space."""
        self._append_start = None
        self._touched = True
        end = offset + length if not keep_size else min(offset + length, self.size)
        if end > offset:
            self.map.carve(offset, end - offset)
            self._changed.put(Segment(offset, end - offset, _CHANGED, offset))
            self._grow(end)

    def truncate(self, size: int) -> None:
        """Cut or extend (with a hole) to ``size``."""
        self._append_start = None
        self._touched = True
        if size < self.size:
            self.map.cut(size)
            self._changed.cut(size)
            self._cut = size if self._cut is None else min(self._cut, size)
            self.size = self._grown_to = size
        else:
            self._grow(size)

    def take_changes(self) -> Changes:
        """What is to be published now; from here on only newer changes count as dirty."""
        segments: list[Segment] = []
        for changed in self._changed:
            at = changed.offset
            for segment in self.map.slices(changed.offset, changed.length):
                if segment.offset > at:
                    segments.append(Segment(at, segment.offset - at, HOLE, 0))
                segments.append(segment)
                at = segment.end
            if at < changed.end:
                segments.append(Segment(at, changed.end - at, HOLE, 0))
        start = self._append_start
        size = self.size if self._cut is not None or start is not None else self._grown_to
        changes = Changes(self._cut, size - (start or 0), start, tuple(segments))
        self._forget_changes()
        return changes

    def restore(self, changes: Changes) -> None:
        """A publication failed: its changes are dirty again, below whatever was written since."""
        newer, newer_cut, newer_end = self._changed, self._cut, self._grown_to
        self._changed = ExtentMap()
        for segment in changes.segments:
            self._changed.put(Segment(segment.offset, segment.length, _CHANGED, segment.offset))
        if newer_cut is not None:
            self._changed.cut(newer_cut)
        for segment in newer:
            self._changed.put(segment)
        cuts = [cut for cut in (changes.cut, newer_cut) if cut is not None]
        self._cut = min(cuts) if cuts else None
        older_end = changes.size + (changes.append_start or 0)
        self._grown_to = max(newer_end, older_end if newer_cut is None else 0)
        # Written after a failed append: publishing all of it at fixed offsets is still right,
        # unless another mount appended meanwhile; so an append stays one only when untouched.
        untouched = not self._touched
        self._append_start = changes.append_start if untouched else None
        self._touched = True

    def sealed(self, source: int, blob: BlobId) -> None:
        """Staging file ``source`` was published as ``blob``."""
        self.map.replace_source(source, blob)

    def rebase(self, version: FileVersion) -> None:
        """Put what is dirty here on top of a newer version of the cluster."""
        self._rebase(_map_of(version), version.attr.size)

    def rebase_empty(self, size: int) -> None:
        """`rebase` on a version of which only the size is known."""
        self._rebase(ExtentMap(), size)

    def _rebase(self, base: ExtentMap, base_size: int) -> None:
        mine = self.map
        self.map = base
        if self._cut is not None:
            self.map.cut(self._cut)
        shift = 0
        if self._append_start is not None:
            # Others appended: our bytes move behind theirs, as the Commit will place them.
            shift = base_size - self._append_start
            self._append_start = base_size
        moved = ExtentMap()
        for changed in self._changed:
            self.map.carve(changed.offset + shift, changed.length)
            for segment in mine.slices(changed.offset, changed.length):
                self.map.put(segment._replace(offset=segment.offset + shift))
            moved.put(
                Segment(changed.offset + shift, changed.length, _CHANGED, changed.offset + shift)
            )
        self._changed = moved
        if self._grown_to:
            self._grown_to += shift
        if self._cut is None:
            self.size = max(base_size, self._grown_to)

    def sources(self) -> frozenset[int]:
        """Every blob and staging file that the content still needs."""
        return frozenset(segment.source for segment in self.map)

    def _note_append(self, offset: int, append: bool) -> None:
        if append and not self._touched:
            self._append_start = offset
        elif not append:
            self._append_start = None
        self._touched = True

    def _grow(self, end: int) -> None:
        self._grown_to = max(self._grown_to, end)
        self.size = max(self.size, end)


def _map_of(version: FileVersion) -> ExtentMap:
    return ExtentMap(Segment(e.offset, e.length, e.blob, e.blob_offset) for e in version.extents)
