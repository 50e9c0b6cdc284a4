"""Chance out of a seed: the core has no other. For raft.py, and for tests that want the same."""

from __future__ import annotations

_MASK64 = (1 << 64) - 1


class SplitMix64:
    """Deterministic, seedable, good enough to spread time-outs."""

    def __init__(self, seed: int, stream: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95) & _MASK64

    def next(self) -> int:
        """The next value, 0 .. 2**64 - 1."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        return z ^ (z >> 31)
