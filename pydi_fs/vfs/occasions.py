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
   one that changes, has few of them asked for.
 * Not where somebody else was before: after each recall for twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import dropwhile, islice
from typing import Any

from pydi_node.ids import Ino

AGAIN_WITHIN_S = 2.0
OTHERS = 2
AHEAD_MAX = 8  # directories that were asked for ahead, and in which no name was changed since
# Somebody else uses it, too: asking for it would only slow both down. Doubled at each recall.
RECALLED_MIN_S = 10.0
RECALLED_MAX_S = 600.0
REMEMBERED_MAX = 1024  # directories of each memory, and of one listing
LISTINGS_MAX = 32  # as deep as ahead is looked


class _Listing:
    __slots__ = ("coming", "since_s")

    def __init__(self, coming: dict[Ino, None], since_s: float) -> None:
        self.coming = coming  # directories in it that nobody walked into yet, in its order
        self.since_s = since_s  # when a program was last known to follow it


class Occasions:
    """See the module."""

    def __init__(self) -> None:
        self._changed_s: dict[Ino, float] = {}  # when a name was last changed there, latest last
        self.not_before: dict[Ino, tuple[float, float]] = {}  # when to ask again, the last wait
        self._listings: dict[Ino, _Listing] = {}  # that a program reads, the newest last
        self._ahead: set[Ino] = set()  # asked for ahead and not used

    def is_one(self, directory: Ino, now_s: float) -> bool:
        """The cluster is asked to change a name in there. Whether for the directory, too."""
        before_s = self._changed_s.pop(directory, None)
        goes_through = self._goes_through(now_s)
        self._note(directory, now_s)
        self._came_to(directory, now_s)
        return goes_through or (before_s is not None and before_s >= now_s - AGAIN_WITHIN_S)

    def listed(self, directory: Ino, subdirectories: Iterable[Ino], now_s: float) -> None:
        """A program has read these in there, maybe not all at once."""
        self._came_to(directory, now_s)
        coming = dict.fromkeys(islice(subdirectories, REMEMBERED_MAX))
        if not coming:
            return
        known = self._listings.pop(directory, None)
        if known is not None and known.since_s >= now_s - AGAIN_WITHIN_S:
            coming = known.coming | coming
        make_room(self._listings, LISTINGS_MAX)
        self._listings[directory] = _Listing(coming, now_s)

    def ahead(self, now_s: float) -> list[Ino]:
        """Which ones to ask for ahead. `used` or `unused` is to be said of each."""
        chosen: list[Ino] = []
        if len(self._ahead) < AHEAD_MAX and self._goes_through(now_s):
            for listing in reversed(self._listings.values()):
                if listing.since_s >= now_s - AGAIN_WITHIN_S:
                    chosen += [one for one in listing.coming if one not in self._ahead]
            del chosen[AHEAD_MAX - len(self._ahead) :]
            self._ahead.update(chosen)
        return chosen

    def used(self, directory: Ino, now_s: float) -> bool:
        """A name was changed in there. Whether that is the first since it was asked for ahead."""
        if directory not in self._ahead:
            return False
        self._ahead.discard(directory)
        self._came_to(directory, now_s)
        self._changed_s.pop(directory, None)
        self._note(directory, now_s)
        return True

    def is_ahead(self, directory: Ino) -> bool:
        """Whether it was asked for ahead and no name was changed in there since."""
        return directory in self._ahead

    def unused(self, directory: Ino) -> None:
        """It is not this mount's, or no more."""
        self._ahead.discard(directory)

    def _came_to(self, directory: Ino, now_s: float) -> None:
        for parent, listing in self._listings.items():
            if directory in listing.coming:
                left = dropwhile(lambda one: one != directory, listing.coming)
                listing.coming = dict.fromkeys(islice(left, 1, None))
                listing.since_s = now_s
                if not listing.coming:
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
        make_room(self.not_before)
        self.not_before[directory] = (now_s + wait_s, wait_s)


def make_room(memory: dict[Ino, Any], most: int = REMEMBERED_MAX) -> None:
    """The oldest goes."""
    if len(memory) >= most:
        del memory[next(iter(memory))]
