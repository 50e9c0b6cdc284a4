"""Under which node ids the kernel keeps an inode, and how each may be opened. Pure.

The kernel allows an inode only one way of reading at a time: through its page cache, or passed
through to one backing file (mixing them makes open(2) fail with EIO). So a file that is open in
passthrough can't be opened for writing, nor in a newer version, under the same node id. Then it
turns *restless*: it gets a second node id with the same inode number, which is only ever opened
through the cache. Nobody is told: OPEN of the first one is answered with ESTALE, upon which the
kernel looks the name up again and opens what it finds, unseen by the program.

    first node id: closed ──► cached     (all opens end, then either way again)
                   closed ──► passing ──(a writer, or another version)──► restless
    second node id, from then on: cached

Programs that had it open in passthrough go on reading the content that they opened. That is why a
restless file stays so: who changes a file in place while others read it will do it again.

A state is remembered while anything is open, and restless files in a bounded number beyond that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto

from pydi_node.ids import Ino

SECOND = 1 << 62  # marks the second node id; inode numbers are counted up from 1 and stay below
RESTLESS_MAX = 4096  # files remembered when nothing of them is open, some 300 bytes each


_UNKNOWN = object()  # a backing file that is none of those that there are


class Verdict(Enum):
    """How to answer an OPEN."""

    CACHED = auto()
    PASSTHROUGH = auto()
    STALE = auto()  # ESTALE: the kernel asks again under the other node id


class _State:
    __slots__ = ("backing", "cached", "is_restless", "passing")

    def __init__(self) -> None:
        self.is_restless = False
        self.backing: object = None  # of those that pass through
        self.passing: set[int] = set()  # handles, all of the first node id
        self.cached: set[int] = set()  # handles, all of the node id in use


class NodeIds:
    """One object per mount.

    forget_attributes  told a node id of which the kernel must not believe any attributes any more;
                       it must not block.
    """

    def __init__(
        self, forget_attributes: Callable[[int], None], restless_max: int = RESTLESS_MAX
    ) -> None:
        self._forget_attributes = forget_attributes
        self._restless_max = restless_max
        self._states: dict[Ino, _State] = {}
        self._idle: OrderedDict[Ino, None] = OrderedDict()  # restless, and nothing open

    def of(self, ino: Ino) -> int:
        """The node id in use."""
        state = self._states.get(ino)
        return ino | SECOND if state is not None and state.is_restless else ino

    def is_outdated(self, ino: Ino, second: bool) -> bool:
        """Is this node id of ``ino`` no longer the one in use? Whatever the kernel is told of it
        must not be remembered: nobody will tell it of a change."""
        state = self._states.get(ino)
        return second != (state is not None and state.is_restless)

    def may_pass(self, ino: Ino) -> bool:
        """Could an open for reading be passed through?"""
        state = self._states.get(ino)
        return state is None or not (state.is_restless or state.cached)

    def may_open(self, ino: Ino, second: bool, writes: bool) -> bool:
        """Before anything is done for an OPEN; False: answer ESTALE."""
        state = self._states.get(ino)
        if state is None:
            if second:
                # Forgotten here and not by the kernel. Sent to the first one now, it might be sent
                # back at once, and the kernel looks a name up only once more.
                self._turn(ino, self._states.setdefault(ino, _State()))
                self._idle[ino] = None
                self._limit()
        elif (writes or second) and state.passing and not state.is_restless:
            self._turn(ino, state)
        return not self.is_outdated(ino, second)

    def opened(self, ino: Ino, second: bool, fh: int, backing: object) -> Verdict:
        """Book an OPEN, and how to answer it.

        backing  the file to pass through to, compared by identity; None: through the cache.
        """
        if self.is_outdated(ino, second):
            return Verdict.STALE
        state = self._states.get(ino)
        if state is None:
            state = self._states[ino] = _State()
        assert not (state.passing and state.cached) or state.is_restless, ino
        if state.passing and not state.is_restless:
            if backing is not state.backing:
                self._turn(ino, state)
                return Verdict.STALE
        elif state.is_restless or state.cached or backing is None:
            state.cached.add(fh)
            self._idle.pop(ino, None)
            return Verdict.CACHED
        state.backing = backing
        state.passing.add(fh)
        return Verdict.PASSTHROUGH

    def restore(self, ino: Ino, second: bool, fh: int, passing: bool) -> None:
        """Book what a worker before this one booked. Which file it passed through to is not known:
        the next open turns it restless."""
        state = self._states.setdefault(ino, _State())
        if passing:
            state.passing.add(fh)
            state.backing = _UNKNOWN
        else:
            state.cached.add(fh)
        state.is_restless |= second

    def created(self, ino: Ino, fh: int) -> None:
        """Book a CREATE or TMPFILE, through the cache: its answer names the node id in use."""
        state = self._states.get(ino)
        if state is not None and state.passing and not state.is_restless:
            self._turn(ino, state)
        verdict = self.opened(ino, bool(self.of(ino) & SECOND), fh, None)
        assert verdict is Verdict.CACHED, verdict

    def closed(self, ino: Ino, fh: int) -> bool:
        """The handle is gone. True if it was passed through."""
        state = self._states.get(ino)
        if state is None:
            return False
        passed = fh in state.passing
        state.passing.discard(fh)
        state.cached.discard(fh)
        if not state.passing:
            state.backing = None
        if not state.passing and not state.cached:
            if state.is_restless:
                self._idle[ino] = None
                self._limit()
            else:
                del self._states[ino]
        return passed

    def _turn(self, ino: Ino, state: _State) -> None:
        assert not state.cached, (ino, state.cached)
        state.is_restless = True
        self._forget_attributes(ino)

    def _limit(self) -> None:
        while len(self._idle) > self._restless_max:
            ino, _ = self._idle.popitem(last=False)
            del self._states[ino]
            self._forget_attributes(ino | SECOND)
