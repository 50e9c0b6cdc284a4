"""Which of this node's mounts may still answer from an old state: what holds its lease back.

A change is applied; each subscriber but its originator gets a push and acknowledges when it, and
its kernel, use the old state no more. A subscriber relies on its caches only as long as its last
`Lease` allows, so one that is silent is waited for until then, and one that holds no lease not at
all. The answer to a `Lease` follows all earlier pushes in the stream: a mount that woke up late
drops first and relies again afterwards. Made by server.py, used in the loop only.

Times are ``Now.uptime_s``. There is no timer: the driver asks with every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf

from pydi_node.ids import LogIndex

# A mount whose oldest push is unacknowledged for longer gets no longer lease. A live one answers
# within a millisecond, or 20 ms behind an operation of its own in the same directory. With the rest
# of its lease it holds others up for less than leases.PATIENCE_S and a lease.
PATIENCE_S = 0.4
# Of what this node may rely on itself: the clocks of a mount and of its node may differ, too.
SHARE = 0.9


@dataclass(slots=True)
class _Subscriber:
    """A connection that gets pushes, or the memory of one that broke."""

    relies_until_s: float = -inf
    # In order: (number of the push, log index of the change, when it was sent).
    sent: deque[tuple[float, LogIndex, float]] = field(default_factory=deque)
    is_gone: bool = False


class Coherence:
    """What each subscriber has been told and has not acknowledged."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._subscribers: dict[Hashable, _Subscriber] = {}
        self._applied = LogIndex(0)

    def pushed(self, index: LogIndex, subscriber: Hashable, sequence: int) -> None:
        """``subscriber`` was told of the change ``index`` in its push ``sequence``."""
        known = self._subscribers.get(subscriber)
        if known is not None:
            known.sent.append((sequence, index, self._clock()))

    def pushed_drop_all(self, subscriber: Hashable, sequence: int) -> None:
        """``subscriber`` was told that everything may be stale, before the tree jumps ahead: of all
        that follows what was applied so far it knows no more than that."""
        self.pushed(LogIndex(self._applied + 1), subscriber, sequence)

    def acknowledged(self, subscriber: Hashable, sequence: int) -> None:
        """All pushes to ``subscriber`` up to this number have taken effect there."""
        known = self._subscribers.get(subscriber)
        while known is not None and known.sent and known.sent[0][0] <= sequence:
            known.sent.popleft()

    def renew(self, subscriber: Hashable, remaining_s: float) -> int:
        """For how many ms ``subscriber`` may rely on its caches, counted from when it asked.

        remaining_s  of this node's own lease, <= 0 when it has none.
        """
        now_s = self._clock()
        known = self._subscribers.setdefault(subscriber, _Subscriber())
        if remaining_s <= 0 or (known.sent and now_s - known.sent[0][2] > PATIENCE_S):
            return 0
        known.relies_until_s = max(known.relies_until_s, now_s + remaining_s)
        return int(remaining_s * SHARE * 1000)

    def gone(self, subscriber: Hashable, knows: bool) -> None:
        """It is disconnected. knows: it ended the connection, so it relies on nothing any more;
        otherwise it may go on to the end of its lease, and hears of no change."""
        known = self._subscribers.get(subscriber)
        if known is None or known.is_gone:
            return
        if knows:
            del self._subscribers[subscriber]
        else:
            known.is_gone = True
            known.sent.append((inf, LogIndex(self._applied + 1), self._clock()))

    def dropped(self, applied: LogIndex) -> LogIndex:
        """Up to which change, ``applied`` at most, nobody here uses an older state any more."""
        now_s = self._clock()
        self._applied = lowest = applied
        for subscriber, known in list(self._subscribers.items()):
            if known.relies_until_s <= now_s:
                # When it asks again, it has seen all this before it hears the answer.
                known.sent.clear()
                if known.is_gone:
                    del self._subscribers[subscriber]
            elif known.sent:
                lowest = min(lowest, LogIndex(known.sent[0][1] - 1))
        return lowest
