"""When a tree commits: what was applied and answered is written out in large pieces.

For replica.py, which calls this after applying and at every tick. A commit writes each page that
was changed since the last one, some ten for a single command and not many more for hundreds in few
directories. What a killed node did not commit it applies again, out of its log, in a few
milliseconds; so this decides about speed and never about safety.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydi_node.errors import NoSpaceError
from pydi_node.tree.machine import Tree


@dataclass(frozen=True, slots=True)
class CommitConfig:
    """Each of the three limits is enough for a commit."""

    entries_max: int = 500  # about 10 ms of writing; and of applying again after a crash
    bytes_max: int = 4 << 20  # of commands, which a tree keeps until it commits
    idle_s: float = 0.2
    full_retry_s: float = 0.25  # how soon a commit that found no room is tried again


class Committer:
    """Commits of one replica's tree."""

    def __init__(self, tree: Tree, config: CommitConfig, now_s: float) -> None:
        self._config = config
        self._bytes = 0
        self._next_s = now_s  # of the next look at it, when nothing else makes it due
        self.tree = tree

    def use(self, tree: Tree) -> None:
        """A snapshot took the tree's place."""
        self.tree = tree
        self._bytes = 0

    def is_due(self, size: int) -> bool:
        """Whether the tree should commit now that it has applied ``size`` bytes more."""
        self._bytes += size
        config = self._config
        return self.tree.uncommitted >= config.entries_max or self._bytes >= config.bytes_max

    def is_time(self, now_s: float, full: bool) -> bool:
        """Whether something has waited long enough for more to come, or for room (``full``)."""
        if not self.tree.uncommitted and not full:
            self._next_s = now_s + self._config.idle_s
            return False
        return now_s >= self._next_s

    def commit(self, now_s: float) -> bool:
        """False when the disk has no room: all stays applied, and it is time again soon."""
        try:
            self.tree.commit()
        except NoSpaceError:
            self._next_s = now_s + self._config.full_retry_s
            return False
        self._bytes = 0
        self._next_s = now_s + self._config.idle_s
        return True
