"""What the kernel may keep beyond the lease, on a mount that has a watch (`pydi_fs.watch`).

Called by `dispatch`, before each answer that carries a name or attributes, and by `notify`, which
takes it back. Runs in the loop; only `knows` is asked by other threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from pydi_fs.fuse.codec import Timeout
from pydi_fs.watch import AGAIN_NS, KEPT_S, MS, Keeper, Page

KEPT = Timeout.of(KEPT_S)

# Directories remembered as listed lately: far more than programs are in the middle of at a time.
LISTED_MAX = 1024

DROP_NS = 50 * MS  # what it takes to make the kernel forget very much

_NS_PER_S = 1_000_000_000


class Keeping:
    """One object per mount.

    page   shared with the watch.
    ring   wakes the watch.
    drop   makes the kernel forget all that it keeps, False: but names. Calls `begin_drop`, and at
           its end `end_drop`.
    clock  nanoseconds, of the clock that leases are counted by.
    """

    def __init__(
        self,
        page: Page,
        ring: Callable[[], None],
        drop: Callable[[bool], object],
        clock: Callable[[], int],
    ) -> None:
        self._keeper = Keeper(page)
        self._ring = ring
        self._drop = drop
        self._clock = clock
        self._looking: asyncio.TimerHandle | None = None
        self._drops = 0  # under way
        self._names_drop = False  # by one of these
        self._listed: dict[int, int] = {}  # directories -> when, the latest last
        self.knows = self._keeper.knows

    def renewed(self, until_s: float) -> None:
        """The lease lasts until then."""
        self._keeper.renewed(int(until_s * _NS_PER_S))

    def keeps(self, nodeid: int) -> bool:
        """Whether the attributes that are about to be sent may be kept: KEPT is their time-out."""
        kept = self._keeper.keep(nodeid, self._clock())
        self._after()
        return kept

    def keeps_entry(self, directory: int, nodeid: int) -> bool:
        """As `keeps`, and the name in there."""
        now_ns = self._clock()
        keeper = self._keeper
        kept = keeper.keep(nodeid, now_ns) and keeper.keep_name(directory, now_ns)
        self._after()
        return kept

    def keeps_absence(self, directory: int) -> bool:
        kept = self._keeper.keep_name(directory, self._clock())
        self._after()
        return kept

    def _after(self) -> None:
        if self._keeper.rings:
            self._keeper.rings = False
            self._ring()
        if self._looking is None and self._keeper.is_out:
            self._look_later()

    def may_know_names_in(self, directories: Iterable[int]) -> bool:
        """Whether the kernel may keep a name, or an absence, in one of them."""
        return self._keeper.may_know_names_in(directories)

    def moved(self, directory: int) -> None:
        """The kernel moves a name into there, and keeps it as long as it would have before."""
        self._keeper.moved(directory)

    def names_go(self) -> Callable[[object], None]:
        """The kernel is about to forget all names. What to call when it has."""
        going = self._keeper.names_go()
        return lambda _told: self._keeper.names_went(going)

    def listed(self, directory: int) -> None:
        """A READDIRPLUS of it is about to be answered."""
        self._listed.pop(directory, None)
        if len(self._listed) >= LISTED_MAX:
            del self._listed[next(iter(self._listed))]
        self._listed[directory] = self._clock()

    def listed_lately(self) -> tuple[int, ...]:
        """Directories of which some program may still be taking an answer to READDIRPLUS in."""
        since_ns = self._clock() - AGAIN_NS[-1]
        while self._listed and next(iter(self._listed.values())) < since_ns:
            del self._listed[next(iter(self._listed))]
        return tuple(self._listed)

    def begin_drop(self, names: bool) -> tuple[int, ...]:
        """All names go, if so, and the attributes of these."""
        self._drops += 1
        self._names_drop = self._names_drop or names
        return self._keeper.begin_drop()

    def end_drop(self) -> None:
        self._drops -= 1
        if not self._drops:
            names, self._names_drop = self._names_drop, False
            self._keeper.end_drop(names)

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look_later(self) -> None:
        # While all goes there is nothing to look for.
        wait_ns = DROP_NS if self._drops else self._keeper.wait_ns(self._clock())
        self._looking = asyncio.get_running_loop().call_later(wait_ns / _NS_PER_S, self._look)

    def _look(self) -> None:
        self._looking = None
        now_ns = self._clock()
        if self._keeper.must_drop(now_ns):
            self._drop(True)
        elif self._keeper.must_make_room(now_ns):
            self._drop(False)
        if self._keeper.is_out:
            self._look_later()
