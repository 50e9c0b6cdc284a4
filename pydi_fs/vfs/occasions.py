"""When a directory is worth asking for, so that this mount alone changes its names. Called by
`delegations` only. Pure: now_s is on any clock that only goes forward.

To ask is one command through the log, as a change is that the cluster is asked for. So it pays from
the second change on, and costs those who have to ask for the directory back. Hence:

 * Who changes a second name within AGAIN_WITHIN_S goes on there.
 * Who has begun with OTHERS other directories within that goes through a tree (``rm -r``, ``git
   checkout``), and will change a second name in the next one, too.
 * Not where somebody else was before: after each recall for twice as long.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from pydi_node.ids import Ino

AGAIN_WITHIN_S = 2.0
OTHERS = 2
# Somebody else uses it, too: asking for it would only slow both down. Doubled at each recall.
RECALLED_MIN_S = 10.0
RECALLED_MAX_S = 600.0
REMEMBERED_MAX = 1024  # directories of each memory


class Occasions:
    """See the module."""

    def __init__(self) -> None:
        self._changed_s: dict[Ino, float] = {}  # when a name was last changed there, latest last
        self.not_before: dict[Ino, tuple[float, float]] = {}  # when to ask again, the last wait

    def is_one(self, directory: Ino, now_s: float) -> bool:
        """The cluster is asked to change a name in there. Whether for the directory, too."""
        since_s = now_s - AGAIN_WITHIN_S
        before_s = self._changed_s.pop(directory, None)
        others_s = [*islice(reversed(self._changed_s.values()), OTHERS)]
        make_room(self._changed_s)
        self._changed_s[directory] = now_s
        if before_s is not None and before_s >= since_s:
            return True
        return len(others_s) == OTHERS and others_s[-1] >= since_s

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


def make_room(memory: dict[Ino, Any]) -> None:
    """The oldest goes."""
    if len(memory) >= REMEMBERED_MAX:
        del memory[next(iter(memory))]
