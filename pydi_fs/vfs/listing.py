"""One open directory: what a listing of it may still show, so that it comes to an end.

Called by `vfs.Vfs` only. A new name goes behind all others (cookies only grow). A program that
renames each entry as it reads it, or another that creates faster than it reads, would read for
ever; so a listing ends with the names that were there when it began (readdir(3) leaves it open
whether later ones are seen).

A directory that fits in one page costs nothing more: what came is all. Else it is asked once where
the log is: an entry whose inode has not changed since was there. Only where one has changed, the
directory of that moment is looked at.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

from pydi_node.errors import FileError
from pydi_node.ids import Ino, LogIndex
from pydi_node.records import DirEntry

# (after cookie, limit, as of which log index; None: now) -> entries in order of cookies
Fetch = Callable[[int, int, LogIndex | None], Awaitable[Sequence[DirEntry]]]
# -> log index of the newest change of the tree
NewestIndex = Callable[[], Awaitable[LogIndex]]


class Listing:
    """State of one handle of a directory."""

    __slots__ = ("_bound", "_end", "_fetch", "_newest_index", "ino")

    def __init__(self, ino: Ino, fetch: Fetch, newest_index: NewestIndex) -> None:
        self.ino = ino
        self._fetch = fetch
        self._newest_index = newest_index
        self._bound: LogIndex | None = None  # names made after it are not shown; None: not yet
        self._end: int | None = None  # the last cookie there was, once that is known

    async def page(self, cookie: int, limit: int) -> Sequence[DirEntry]:
        """Up to ``limit`` entries after ``cookie``, as they are now; empty: the end.

        cookie  0 begins a listing, also the second of the same handle: rewinddir(3).
        """
        if cookie == 0:
            self._bound = self._end = None
        if self._end is not None and cookie >= self._end:
            return ()
        while True:
            entries = await self._fetch(cookie, limit, None)
            if self._end is not None:
                return [entry for entry in entries if entry.cookie <= self._end]
            if self._bound is None:
                if len(entries) < limit:
                    self._end = entries[-1].cookie if entries else cookie
                else:
                    self._bound = await self._newest_index()
                return entries
            if max((entry.attr.changed for entry in entries), default=0) <= self._bound:
                return entries
            try:
                of_then = await self._fetch(cookie, limit, self._bound)
            except FileError as exc:
                if exc.errno != errno.ESTALE:
                    raise
                self._bound = None  # that moment is no longer kept: the next page sets another
                return entries
            cookies = {entry.cookie for entry in of_then}
            kept = [entry for entry in entries if entry.cookie in cookies]
            if kept or len(of_then) < limit:
                return kept
            cookie = of_then[-1].cookie  # all of these are gone: look behind them
