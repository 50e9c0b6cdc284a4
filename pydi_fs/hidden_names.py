"""Open files without a name, and the names that libfuse makes up for them.

libfuse tells of a file's last close and of a made-up name from different threads, so a name can
arrive after the close that would have ended it; libfuse itself then never asks for its removal.
Both come through here, in the loop's order: a name lasts as long as a handle does.
"""

from __future__ import annotations

from collections import Counter

from pydi_node.ids import Ino


class HiddenNames:
    """Which made-up name stands for which inode. Changed in one thread; any thread may read."""

    def __init__(self) -> None:
        self._opens: Counter[Ino] = Counter()
        self._inos: dict[bytes, Ino] = {}

    def get(self, name: bytes) -> Ino | None:
        """The open inode behind a made-up name; None: nobody's, or a user's own."""
        return self._inos.get(name)

    def opened(self, ino: Ino) -> None:
        """One more handle is open."""
        self._opens[ino] += 1

    def closed(self, ino: Ino) -> None:
        """One handle less; the last one takes the inode's made-up names along."""
        self._opens[ino] -= 1
        if not self._opens[ino]:
            del self._opens[ino]
            for name in [name for name, hidden in self._inos.items() if hidden == ino]:
                del self._inos[name]

    def hide(self, name: bytes, ino: Ino) -> None:
        """From now on ``name`` stands for ``ino``, unless all its handles were closed meanwhile."""
        if ino in self._opens:
            self._inos[name] = ino
