"""Which version of each file the kernel's cached pages show. Pure book-keeping.

`dispatch` asks at every OPEN whether the kernel may keep its pages (FOPEN_KEEP_CACHE). All open
handles of a file fill the same pages, each with the version it reads; so the pages are known to be
of one version only while all handles since the last drop had that version. In doubt the answer is
to drop: that costs a READ, keeping a stale page costs correctness.
"""

from __future__ import annotations

from collections import OrderedDict

from pydi_node.ids import Ino, LogIndex

# Files remembered, some 500 bytes each; one that falls out loses its pages at the next open. Enough
# for what is opened again and again; a copy of many files must not make the daemon grow.
FILES_MAX = 8192


class _Pages:
    __slots__ = ("handles", "version")

    def __init__(self) -> None:
        self.version: LogIndex | None = None  # None: unknown, maybe mixed
        self.handles: dict[int, LogIndex | None] = {}  # open handles and what each reads


class PageCache:
    """One object per mount."""

    def __init__(self, files_max: int = FILES_MAX) -> None:
        self._files: OrderedDict[Ino, _Pages] = OrderedDict()
        self._files_max = files_max

    def opened(self, ino: Ino, fh: int, version: LogIndex | None) -> bool:
        """May the kernel keep the pages it has of ``ino``, now that ``fh`` opened ``version``?

        version  None if unknown: never keep. After False the kernel drops its pages at once.
        """
        pages = self._files.get(ino)
        if pages is None:
            pages = self._files[ino] = _Pages()
            self._evict()
        else:
            self._files.move_to_end(ino)
        same = pages.version == version
        pages.handles[fh] = version
        pages.version = _common(pages, version)
        return same and pages.version is not None

    def is_known(self, ino: Ino) -> bool:
        """Are the kernel's pages of one version, and is that known?"""
        pages = self._files.get(ino)
        return pages is not None and pages.version is not None

    def published(self, ino: Ino, fh: int, version: LogIndex | None) -> None:
        """What was written through the pages is now ``version``, and ``fh`` reads that."""
        pages = self._files.get(ino)
        if pages is None or fh not in pages.handles:
            return
        pages.handles[fh] = version
        # Unknown pages stay unknown: publishing drops nothing.
        pages.version = None if pages.version is None else _common(pages, version)

    def closed(self, ino: Ino, fh: int) -> None:
        """``fh`` fills no more pages; those it filled stay."""
        pages = self._files.get(ino)
        if pages is not None:
            pages.handles.pop(fh, None)

    def changed(self, ino: Ino) -> None:
        """Someone else changed the file: whatever the pages show, the next open drops them."""
        pages = self._files.get(ino)
        if pages is not None:
            pages.version = None

    def changed_all(self) -> list[Ino]:
        """As ``changed`` for every file; the inodes that may have pages."""
        for pages in self._files.values():
            pages.version = None
        return list(self._files)

    def _evict(self) -> None:
        if len(self._files) <= self._files_max:
            return
        # Oldest first, but never one that is open: its handles must stay known.
        for ino, pages in self._files.items():
            if not pages.handles:
                del self._files[ino]
                return


def _common(pages: _Pages, version: LogIndex | None) -> LogIndex | None:
    """``version`` if every open handle reads it, else None."""
    if all(other == version for other in pages.handles.values()):
        return version
    return None
