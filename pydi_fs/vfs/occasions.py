"""When a directory is worth asking for, so that this mount alone changes its names. Called by
`delegations` only. Pure: now_s is on any clock that only goes forward.

To ask is one command through the log, as a change is that the cluster is asked for. So it pays from
the second change on, and costs those who have to ask for the directory back. Hence:

 * Who changes a second name within AGAIN_WITHIN_S goes on there.
 * Who has begun with OTHERS other directories within that goes through a tree (``rm -r``, ``git
   checkout``), and will change a second name in the next one, too.
 * Whoever goes through a tree by its listings comes to what they show, in their order, and into a
   directory before the next one beside it. AHEAD_MAX of those are asked for ahead, in one round
   instead of one for each. They are not more as long as they are not used: who only reads, beside
   one that changes, has few of them asked for. Nor is one that this mount did not get, or has lost,
   followed by another at once: of a tree that others use, each would be asked for.
 * Not where somebody else was before: after each recall for twice as long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from pydi_node.ids import Ino

AGAIN_WITHIN_S = 2.0
OTHERS = 2
AHEAD_MAX = 8  # directories that were asked for ahead, and in which no name was changed since
AHEAD_S = 30.0  # who has not come by then comes for none of them; others may be asked for
# Somebody else uses it, too: asking for it would only slow both down. Doubled at each recall.
RECALLED_MIN_S = 10.0
RECALLED_MAX_S = 600.0
REMEMBERED_MAX = 1024  # directories of each memory, and of one listing
LISTINGS_MAX = 32  # as deep as ahead is looked


class _Listing:
    __slots__ = ("coming", "since_s")

    def __init__(self) -> None:
        # Directories in it that nobody walked into yet, in its order. They go from the front, which
        # a dict would look for behind all that have gone.
        self.coming: OrderedDict[Ino, None] = OrderedDict()
        self.since_s = 0.0  # when a program was last known to follow it


class Occasions:
    """See the module."""

    def __init__(self) -> None:
        self._changed_s: dict[Ino, float] = {}  # when a name was last changed there, latest last
        self.not_before: dict[Ino, tuple[float, float]] = {}  # when to ask again, the last wait
        self._listings: dict[Ino, _Listing] = {}  # that a program reads, the newest last
        # Asked for ahead and not used, and until when they count.
        self._ahead: dict[Ino, float] = {}
        self._in_vain: dict[Ino, float] = {}  # likewise, and this mount has not got or kept them

    def is_one(self, directory: Ino, now_s: float) -> bool:
        """The cluster is asked to change a name in there. Whether for the directory, too."""
        before_s = self._changed_s.pop(directory, None)
        self._in_vain.pop(directory, None)
        goes_through = self._goes_through(now_s)
        self._note(directory, now_s)
        self._came_to(directory, now_s)
        return goes_through or (before_s is not None and before_s >= now_s - AGAIN_WITHIN_S)

    def listed(self, directory: Ino, subdirectories: Iterable[Ino], now_s: float) -> None:
        """A program has read these in there, maybe not all at once. What is too much to remember
        is not, until it has passed some."""
        self._came_to(directory, now_s)
        new = iter(subdirectories)
        first = next(new, None)
        if first is None:
            return
        listing = self._listings.pop(directory, None)
        if listing is None or listing.since_s < now_s - AGAIN_WITHIN_S:
            listing = _Listing()
        coming = listing.coming
        for ino in chain((first,), new):
            if len(coming) >= REMEMBERED_MAX:
                break
            coming[ino] = None
        listing.since_s = now_s
        make_room(self._listings, LISTINGS_MAX)
        self._listings[directory] = listing

    def ahead(self, now_s: float) -> list[Ino]:
        """Which ones to ask for ahead. `used`, `unused` or `wait` is to be said of each."""
        chosen: list[Ino] = []
        for counting in (self._ahead, self._in_vain):
            for one in [one for one, until_s in counting.items() if until_s <= now_s]:
                del counting[one]
        left = AHEAD_MAX - len(self._ahead) - len(self._in_vain)
        if left <= 0 or not self._goes_through(now_s):
            return chosen
        for listing in reversed(self._listings.values()):
            if listing.since_s < now_s - AGAIN_WITHIN_S:
                continue
            # A few are looked at: no more than AHEAD_MAX count.
            for one in listing.coming:
                if len(chosen) == left:
                    return chosen
                if one not in self._ahead and one not in self._in_vain:
                    self._ahead[one] = now_s + AHEAD_S
                    chosen.append(one)
        return chosen

    def used(self, directory: Ino, now_s: float) -> bool:
        """A name was changed in there. Whether that is the first since it was asked for ahead."""
        if self._ahead.pop(directory, None) is None:
            return False
        if self._in_vain:
            del self._in_vain[next(iter(self._in_vain))]
        self._came_to(directory, now_s)
        self._changed_s.pop(directory, None)
        self._note(directory, now_s)
        return True

    def is_ahead(self, directory: Ino) -> bool:
        """Whether it was asked for ahead and no name was changed in there since."""
        return directory in self._ahead

    def unused(self, directory: Ino) -> None:
        """Another may be asked for instead."""
        self._ahead.pop(directory, None)

    def in_vain(self, directory: Ino, now_s: float) -> None:
        """This mount has not got it, or has lost it. If it was asked for ahead, no other is asked
        for instead for a while, unless the program uses what it came to."""
        if self._ahead.pop(directory, None) is not None:
            self._in_vain[directory] = now_s + AGAIN_WITHIN_S

    def _came_to(self, directory: Ino, now_s: float) -> None:
        for parent, listing in self._listings.items():
            coming = listing.coming
            if directory in coming:
                while coming.popitem(last=False)[0] != directory:
                    pass
                listing.since_s = now_s
                if not coming:
                    del self._listings[parent]
                return

    def _goes_through(self, now_s: float) -> bool:
        others_s = [*islice(reversed(self._changed_s.values()), OTHERS)]
        return len(others_s) == OTHERS and others_s[-1] >= now_s - AGAIN_WITHIN_S

    def _note(self, directory: Ino, now_s: float) -> None:
        make_room(self._changed_s)
        self._changed_s[directory] = now_s

    def may_ask(self, directory: Ino, now_s: float) -> bool:
        """Whether nobody else was there lately."""
        return now_s >= self.not_before.get(directory, (0.0, 0.0))[0]

    def wait(self, directory: Ino, now_s: float) -> None:
        """Somebody else uses it: not for a while, and each time for longer."""
        wait_s = self.not_before.pop(directory, (0.0, 0.0))[1]
        self._wait(directory, now_s, min(max(2 * wait_s, RECALLED_MIN_S), RECALLED_MAX_S))

    def wait_long(self, directory: Ino, now_s: float) -> None:
        """It is not worth it."""
        self.not_before.pop(directory, None)
        self._wait(directory, now_s, RECALLED_MAX_S)

    def _wait(self, directory: Ino, now_s: float, wait_s: float) -> None:
        self.in_vain(directory, now_s)
        make_room(self.not_before)
        self.not_before[directory] = (now_s + wait_s, wait_s)


def make_room(memory: dict[Ino, Any], most: int = REMEMBERED_MAX) -> None:
    """The oldest goes."""
    if len(memory) >= most:
        del memory[next(iter(memory))]
