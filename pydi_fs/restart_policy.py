"""When a worker that died is followed by another one, and when that is enough. Pure.

`supervisor` asks it. A worker that dies now and then is replaced for ever; one that dies again and
again is not cured by another start, and programs that wait must hear of it.
"""

from __future__ import annotations

HEALTHY_S = 2.0  # a worker that said for so long that it runs has served what waited for it
SHORT_LIVES_MAX = 8  # in a row; a request that kills its worker is sent to each successor

BEAT_S = 0.5  # a worker says that its loop runs
# A disk that stalls or a machine that swaps may hold a loop up for seconds; a wrong verdict costs
# a restart, which no program notices.
BEATS_MISSED_MAX = 10


class RestartPolicy:
    """One object per mount."""

    def __init__(
        self, healthy_s: float = HEALTHY_S, short_lives_max: int = SHORT_LIVES_MAX
    ) -> None:
        self._healthy_s = healthy_s
        self._short_lives_max = short_lives_max
        self._short_lives = 0

    def may_restart(self, lived_s: float) -> bool:
        """Whether another worker shall follow one that is dead.

        lived_s  from its start to the last that was heard of it: hanging is not living.
        """
        if lived_s >= self._healthy_s:
            self._short_lives = 0
            return True
        self._short_lives += 1
        return self._short_lives <= self._short_lives_max


class Watchdog:
    """Counts looks at a worker that said nothing since the one before.

    Looks and not seconds: where the whole machine, or the supervisor too, was stopped for a while,
    the worker gets as many chances as ever.
    """

    def __init__(self, missed_max: int = BEATS_MISSED_MAX) -> None:
        self._missed_max = missed_max
        self._missed = 0

    def heard(self) -> None:
        self._missed = 0

    def looked(self) -> bool:
        """A beat's time has passed. True: it hangs."""
        self._missed += 1
        return self._missed > self._missed_max
