"""Directories that programs read at present. Called by `vfs.Vfs` only.

A listing goes on where its reader is, by cookies that stay what they are as long as the entry
lives. What is kept of one is only where it ends (`listing`); whoever is forgotten here goes on
reading all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from pydi_fs.client import Client
from pydi_fs.vfs.cache import NameCache
from pydi_fs.vfs.listing import Listing
from pydi_node.ids import INT64_MAX, Ino, LogIndex, TimeNs
from pydi_node.records import DirEntry
from pydi_node.wire.messages import IndexAt, ReadDir

READDIR_LIMIT_MAX = 1024  # entries in one answer: about 200 KB
LISTINGS_MAX = 4096  # some 300 bytes each


class Directories:
    """Listings by directory and reader; a reader is whoever reads one directory at a time."""

    def __init__(
        self,
        client: Client,
        cache: NameCache,
        known: Callable[[Ino], Awaitable[Sequence[DirEntry] | None]],
    ) -> None:
        """known: all entries of a directory, where the cluster needn't be asked for them."""
        self._client = client
        self._cache = cache
        self._known = known
        self._listings: OrderedDict[tuple[Ino, int], Listing] = OrderedDict()

    async def page(self, ino: Ino, reader: int, cookie: int, limit: int) -> Sequence[DirEntry]:
        """Up to ``limit`` entries after ``cookie`` (0: the start); empty: the end."""
        key = (ino, reader)
        listing = self._listings.get(key)
        if listing is None:
            listing = self._listings[key] = self._listing(ino, self._fetch_or_know)
            if len(self._listings) > LISTINGS_MAX:
                self._listings.popitem(last=False)
        entries = await listing.page(cookie, min(limit, READDIR_LIMIT_MAX))
        if not entries:
            self._listings.pop(key, None)
        return entries

    async def first(self, ino: Ino, limit: int) -> Sequence[DirEntry]:
        """The first ``limit`` entries, for nobody who reads on."""
        return await self._listing(ino, self.fetch).page(0, limit)

    async def fetch(
        self, ino: Ino, after: int, limit: int, at: LogIndex | None = None
    ) -> Sequence[DirEntry]:
        """Up to ``limit`` entries after a cookie, as they are now or were at that index; the caches
        know those of now."""

        def arrived(answer: Sequence[DirEntry]) -> Sequence[DirEntry]:
            for entry in answer:
                self._cache.put_attr(entry.attr)
                self._cache.put_name(ino, entry.name, entry.attr.ino)
            return answer

        entries: Sequence[DirEntry] = await self._client.call(
            ReadDir(ino, after, limit, at), arrived=arrived if at is None else None
        )
        return entries

    async def _fetch_or_know(
        self, ino: Ino, after: int, limit: int, at: LogIndex | None
    ) -> Sequence[DirEntry]:
        known = None if after or at is not None else await self._known(ino)
        if known is not None and len(known) < limit:
            return known
        return await self.fetch(ino, after, limit, at)

    def _listing(self, ino: Ino, fetch: Callable[..., Awaitable[Sequence[DirEntry]]]) -> Listing:
        async def newest_index() -> LogIndex:
            index: LogIndex = await self._client.call(IndexAt(TimeNs(INT64_MAX)))
            return index

        return Listing(ino, partial(fetch, ino), newest_index)
