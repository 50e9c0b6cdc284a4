"""Which directories' listings the kernel may hold. Called by `dispatch`; runs in the loop.

OPENDIR is answered with ENOSYS: from then on the kernel opens directories by itself and keeps what
READDIR said, so that a directory which nobody changes is listed without a request. What keeps that
right:

 * Opening a directory checks permissions, and so needs attributes whose time-out is not over: a
   listing can't be begun behind the lease, also when this process is stopped. Only rewinddir(3)
   of a directory that is open needs nothing, and no epoch takes from it what the kernel has: until
   this process goes on, or its successor, such a program may read what was before.
 * A change by this kernel makes the next listing that begins ask anew, and so does another mtime.
 * For a change made elsewhere `notify` drops the listing, once every READDIR that may still carry
   the old one has been taken in.
 * The kernel puts one listing together out of several answers, and whoever reads meanwhile goes on
   in it. One that began before a change must not be what is read by one that begins after it: its
   pages are dropped first, and what is not whole is never used.
 * A listing has no time-out of its own. It is dropped when those of its entries are over: the next
   one brings all attributes along, where the kernel would ask for one after the other. So what is
   kept is known, bounded, and dropped when all caches are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

from pydi_fs.vfs.journalling import Journal
from pydi_node.ids import Ino, LogIndex

SWEEP_MIN_S = 0.05  # many directories that were listed one after the other go together
LISTED_MAX = 8192  # directories, some 200 bytes each here; the one that was listed first goes first

# Directories -> done when the kernel has none of their listings; None: there is no kernel.
Drop = Callable[[tuple[Ino, ...]], asyncio.Future[None] | None]


class _Kept(NamedTuple):
    changed: LogIndex | None  # of the directory when the listing began; None: not known
    until_s: float  # in the loop's time; infinite while it is being answered


class Listings:
    """One object per mount. drop  makes the kernel forget."""

    def __init__(self, drop: Drop, journal: Journal) -> None:
        self._drop = drop
        self._journal = journal
        self._kept: dict[Ino, _Kept] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def begin(self, ino: Ino, changed: LogIndex | None) -> None:
        """Somebody reads a directory from its start, which last changed at ``changed``."""
        known = self._kept.get(ino)
        if known is None:
            self._begun(ino)
        elif changed is None or known.changed != changed:
            told = self._drop((ino,))
            if told is not None:
                await told
        self._kept[ino] = _Kept(changed, math.inf)

    def answered(self, ino: Ino, timeout_s: float) -> None:
        """Entries are about to be sent, to be believed for ``timeout_s``; with those before them
        in this listing no longer than these."""
        loop = asyncio.get_running_loop()
        known = self._kept.get(ino)
        if known is None:
            self._begun(ino)
            known = _Kept(None, math.inf)
        now_s = loop.time()
        until_s = min(known.until_s, now_s + timeout_s)
        self._kept[ino] = _Kept(known.changed, until_s)
        if self._sweeping is not None and self._sweeping.when() > until_s + SWEEP_MIN_S:
            self.stop()
        if self._sweeping is None:
            self._sweeping = loop.call_later(max(until_s - now_s, SWEEP_MIN_S), self._sweep)

    def all(self) -> tuple[Ino, ...]:
        return tuple(self._kept)

    def stop(self) -> None:
        """Nothing is dropped any more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _begun(self, ino: Ino) -> None:
        self._journal.listed(ino)
        if len(self._kept) >= LISTED_MAX:
            self._let_go((next(iter(self._kept)),))

    def _let_go(self, inos: tuple[Ino, ...]) -> None:
        self._drop(inos)
        for ino in inos:
            del self._kept[ino]
            self._journal.unlisted(ino)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        due = tuple(ino for ino, kept in self._kept.items() if kept.until_s <= now_s)
        if due:
            self._let_go(due)
        self._sweeping = None
        next_s = min((kept.until_s for kept in self._kept.values()), default=math.inf)
        if next_s < math.inf:
            self._sweeping = loop.call_later(max(next_s - now_s, SWEEP_MIN_S), self._sweep)
