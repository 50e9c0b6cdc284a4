"""When a node that does not lead tries to: the clock behind an election. For raft.py only.

The time-out has to be longer than an election takes (thesis 3.9), and what an election waits for is
disks: the candidate's, then a majority's, each of which may be in the middle of a sync. A disk that
is asked for much, or turns, may take seconds for one. So the clock adapts:

- While the own disk writes the term or vote of an election, it runs backwards: the others' may need
  as long, and one that was asked in the middle of a sync twice that.
- Where the own disk is the fast one that shows nothing. So each term in which nobody led makes it
  slower, from the third in a row on; the first two are those of an ordinary split vote. A term is
  only begun when a majority is there and willing, so none is lost to a majority that is away.
"""

from __future__ import annotations

from pydi_node.consensus.splitmix import SplitMix64

WRITING_TICKS = -2  # what a tick counts while the own vote is not on the disk
# Election time-outs that the clock goes back at most: a disk that hung for an hour and is back must
# not keep its node from an election for two.
BACK_TIMEOUTS_MAX = 20
FRUITLESS_TERMS_FREE = 2  # terms without a leader before the clock gets slower
SLOWER_MAX = 16  # times; with the default tick an attempt every 8 to 16 s at the slowest


class ElectionClock:
    """Counts silent ticks against a random time-out."""

    __slots__ = ("_elapsed", "_fruitless", "_random", "_ticks", "_timeout")

    def __init__(self, election_ticks: int, random: SplitMix64) -> None:
        self._ticks = election_ticks
        self._random = random
        self._fruitless = 0
        self._elapsed = 0
        self._timeout = 0
        self.restart()

    @property
    def is_quiet(self) -> bool:
        """Whether the shortest time-out has not passed: who knows a leader takes it for alive."""
        return self._elapsed < self._ticks

    def tick(self, writing: bool) -> bool:
        """One tick more; whether to try, once for each time-out.

        writing  an election is under way, and the own vote is not on the disk. Not while a leader
                 is known: whatever the own disk does, silence is silence.
        """
        if writing:
            self._elapsed = max(self._elapsed + WRITING_TICKS, -BACK_TIMEOUTS_MAX * self._ticks)
        else:
            self._elapsed += 1
        if self._elapsed < self._timeout:
            return False
        self._elapsed = 0
        return True

    def heard(self) -> None:
        """From a leader, or from a candidate that got the vote: the same time-out anew."""
        self._elapsed = 0

    def restart(self) -> None:
        """A new time-out."""
        self._elapsed = 0
        slower = min(1 << max(self._fruitless - FRUITLESS_TERMS_FREE, 0), SLOWER_MAX)
        self._timeout = (self._ticks + self._random.next() % self._ticks) * slower

    def hasten(self, ticks: int) -> None:
        """Try in so many ticks, or sooner. Said again, it postpones nothing."""
        if self.is_quiet or self._timeout - self._elapsed > ticks:
            self._elapsed, self._timeout = self._ticks, self._ticks + ticks

    def term_began(self) -> None:
        """Counts for the time-outs after this one."""
        self._fruitless += 1

    def leader_known(self) -> None:
        self._fruitless = 0
