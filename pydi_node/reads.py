"""Reads that wait at a Replica until its tree may answer them. Pure; called by replica.py.

::

    Read ────► new ──asked──► asked ──the leader's index──► at an index ──applied──► answered
                ▲───────────────┘ no leader any more            ▲
    Reclaim ────────────────────────────────────────────────────┘ a directory is given back

A Reclaim asks no leader: whoever sends it knows already that the tree is current.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import NO_INDEX, Ready
from pydi_node.errors import NotLeaderError
from pydi_node.ids import ClientId, Ino, LogIndex
from pydi_node.tree.machine import Tree


class _Waiting(NamedTuple):
    """One that can be answered by this tree, sooner or later."""

    at: LogIndex  # it must have applied this
    request: int
    deadline_s: float
    # A directory that must not be delegated to anybody but ``client``. None: any may be.
    directory: Ino | None = None
    client: ClientId = ClientId(0)

    def is_in_the_way(self, tree: Tree) -> bool:
        return self.directory is not None and tree.is_held(self.directory, self.client)


class Reads:
    """Those of one replica."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._new: list[tuple[int, float]] = []  # (request, deadline)
        self._asked: dict[int, float] = {}
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._new) + len(self._asked) + len(self._waiting)

    def add(self, request: int, deadline_s: float) -> None:
        self._new.append((request, deadline_s))

    def reclaim(self, request: int, deadline_s: float, directory: Ino, client: ClientId) -> None:
        self._waiting.append(_Waiting(NO_INDEX, request, deadline_s, directory, client))

    def ask(self) -> None:
        """One question stands for all reads that came since the last one."""
        if not self._new:
            return
        try:
            self._raft.read_index(tuple(self._new))
        except NotLeaderError:
            return  # nobody leads: asked again with the next step, at most until the deadline
        self._asked.update(self._new)
        self._new = []

    def take(self, ready: Ready) -> None:
        """What the core says of those that were asked."""
        for state in ready.reads:
            for request, deadline_s in _reads_of(state.context):
                if self._asked.pop(request, None) is not None:
                    self._waiting.append(_Waiting(state.index, request, deadline_s))
        for context in ready.failed_reads:
            for request, deadline_s in _reads_of(context):
                if self._asked.pop(request, None) is not None:
                    self._new.append((request, deadline_s))

    def answered(self, applied: LogIndex, tree: Tree) -> list[int]:
        """Requests that this tree answers now; they wait no longer."""
        if not self._waiting:
            return []
        answered, waiting = [], []
        for read in self._waiting:
            if read.at <= applied and not read.is_in_the_way(tree):
                answered.append(read.request)
            else:
                waiting.append(read)
        self._waiting = waiting
        return answered

    def directories(self, tree: Tree) -> Iterator[Ino]:
        """Those that must be given back first."""
        for read in self._waiting:
            if read.directory is not None and read.is_in_the_way(tree):
                yield read.directory

    def expire(self, now_s: float) -> tuple[list[int], list[float]]:
        """Requests past their deadline, which wait no longer; the deadlines of the others."""
        late = [request for request, deadline_s in self._all() if deadline_s <= now_s]
        self._new = [read for read in self._new if read[1] > now_s]
        self._asked = {r: deadline_s for r, deadline_s in self._asked.items() if deadline_s > now_s}
        self._waiting = [read for read in self._waiting if read.deadline_s > now_s]
        return late, [deadline_s for _, deadline_s in self._all()]

    def _all(self) -> Iterator[tuple[int, float]]:
        yield from self._new
        yield from self._asked.items()
        for read in self._waiting:
            yield read.request, read.deadline_s


def _reads_of(context: object) -> Iterable[tuple[int, float]]:
    assert isinstance(context, tuple), context
    return context
