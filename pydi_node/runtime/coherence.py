"""Nobody hears of a change before every cache that it makes stale has dropped it.

A command is applied; each subscriber but its originator gets a push; the originator's answer is
held until all of them have acknowledged. So when `close` or `rename` returns on one mount, `stat`
on another cannot find the old state in a cache. Made by server.py, used in the loop only.

    pushed ──acknowledged by all──► released (the answer, if it came meanwhile, leaves)
       └── LEASE_S passed ──► whoever is silent is disconnected; a client that loses its connection
                              drops its caches, and what its kernel keeps ends with its time-out
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from pydi_node.ids import ClientId, Serial

# How long a silent mount may hold up others' changes: DESIGN section 4. A live one answers within
# a millisecond, or 20 ms behind an operation of its own in the same directory.
LEASE_S = 2.0

Key = tuple[ClientId, Serial]


class Subscriber(Hashable, Protocol):
    """A connection that gets pushes."""

    def cut_off(self, reason: str) -> None:
        """Disconnect it; `Coherence.gone` follows."""
        ...


class _Held:
    """One command whose answer waits."""

    __slots__ = ("answers", "waits_for")

    def __init__(self) -> None:
        self.waits_for: set[Subscriber] = set()
        self.answers: list[Callable[[], None]] = []


class Coherence:
    """Which commands wait for which subscribers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held: dict[Key, _Held] = {}
        # By subscriber, in order: (number of the push, when it was sent, command).
        self._sent: dict[Subscriber, deque[tuple[int, float, Key]]] = {}
        self._watch: asyncio.TimerHandle | None = None

    def pushed(self, key: Key, subscriber: Subscriber, sequence: int) -> None:
        """``subscriber`` was told of ``key``'s change in its push ``sequence``."""
        self._held.setdefault(key, _Held()).waits_for.add(subscriber)
        self._sent.setdefault(subscriber, deque()).append((sequence, self._loop.time(), key))
        if self._watch is None:
            self._watch = self._loop.call_later(LEASE_S, self._cut_off_silent)

    def hold(self, key: Key, answer: Callable[[], None]) -> bool:
        """True when ``answer`` must wait; it is called when everyone has acknowledged."""
        held = self._held.get(key)
        if held is None:
            return False
        held.answers.append(answer)
        return True

    def acknowledged(self, subscriber: Subscriber, sequence: int) -> None:
        """All pushes to ``subscriber`` up to this number have taken effect there."""
        sent = self._sent.get(subscriber)
        while sent and sent[0][0] <= sequence:
            self._release(sent.popleft()[2], subscriber)

    def gone(self, subscriber: Subscriber) -> None:
        """It is disconnected, and relies on nothing any more."""
        for _, _, key in self._sent.pop(subscriber, ()):
            self._release(key, subscriber)

    def _release(self, key: Key, subscriber: Subscriber) -> None:
        held = self._held.get(key)
        if held is None:
            return
        held.waits_for.discard(subscriber)
        if not held.waits_for:
            del self._held[key]
            for answer in held.answers:
                answer()

    def _cut_off_silent(self) -> None:
        now_s = self._loop.time()
        oldest_s = now_s
        for subscriber, sent in list(self._sent.items()):
            if sent and now_s - sent[0][1] >= LEASE_S:
                subscriber.cut_off("it did not acknowledge a change in time")
            elif sent:
                oldest_s = min(oldest_s, sent[0][1])
        self._watch = None
        if self._held:
            self._watch = self._loop.call_later(
                max(oldest_s + LEASE_S - now_s, 0.01), self._cut_off_silent
            )
