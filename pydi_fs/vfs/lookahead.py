"""Names that will probably be asked for next. Called by `vfs.Vfs` only.

`git status`, `make`, `rsync` and `tar` look at one name of a directory after the other without
reading the directory, and each name that is not known here is a question to the node: a round trip.
After a few of them in a short time, so many names at once are asked for as are worth the price.
They enter the caches like those that a program reads.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from pydi_node.errors import PydiError
from pydi_node.ids import Ino
from pydi_node.records import DirEntry

ASKED_MIN = 4  # names of a directory that were asked for one by one
WITHIN_S = 1.0
# A page of n entries costs a node and a mount together as much as n/8 questions or less.
ENTRIES_PER_QUESTION = 8
FIRST_ENTRIES = 256
NEXT_ENTRIES = 1024
DIRECTORIES_MAX = 256

# (directory, cookie after which, how many) -> the entries, which the caches know by then
Fetch = Callable[[Ino, int, int], Awaitable[Sequence[DirEntry]]]


class _Directory:
    __slots__ = ("asked", "cookie", "listing", "since_s", "worth")

    def __init__(self, now_s: float) -> None:
        self.asked = 0  # names, since the last page or in the last WITHIN_S
        self.since_s = now_s
        self.worth = ASKED_MIN  # a page is asked for after so many
        self.cookie = 0  # behind which the next page begins
        self.listing: asyncio.Task[None] | None = None


class Lookahead:
    """One object per vfs."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._directories: OrderedDict[Ino, _Directory] = OrderedDict()

    def asked(self, parent: Ino) -> None:
        """A name in there was not known, and is there."""
        now_s = time.monotonic()
        directory = self._directories.get(parent)
        if directory is None:
            directory = self._directories[parent] = _Directory(now_s)
            if len(self._directories) > DIRECTORIES_MAX:
                self._directories.popitem(last=False)
        self._directories.move_to_end(parent)
        if now_s - directory.since_s > WITHIN_S:
            directory.asked, directory.since_s = 0, now_s
        directory.asked += 1
        if directory.asked >= directory.worth and directory.listing is None:
            directory.asked, directory.since_s = 0, now_s
            listing = self._list(parent, directory)
            directory.listing = asyncio.get_running_loop().create_task(listing)

    async def wait(self, parent: Ino) -> bool:
        """Other names of the directory have come in, maybe this one too. False: none are on their
        way."""
        directory = self._directories.get(parent)
        if directory is None or directory.listing is None:
            return False
        await asyncio.wait([directory.listing])
        return True

    async def stop(self) -> None:
        """Nothing is asked for any more."""
        listings = [one.listing for one in self._directories.values() if one.listing is not None]
        for listing in listings:
            listing.cancel()
        await asyncio.gather(*listings, return_exceptions=True)

    async def _list(self, parent: Ino, directory: _Directory) -> None:
        count = NEXT_ENTRIES if directory.cookie else FIRST_ENTRIES
        try:
            entries = await self._fetch(parent, directory.cookie, count)
        except PydiError:
            return  # whoever looks a name up hears why
        finally:
            directory.listing = None
        directory.cookie = entries[-1].cookie if len(entries) == count else 0
        directory.worth = max(ASKED_MIN, len(entries) // ENTRIES_PER_QUESTION)
