"""Gets delegated directories back from those who hold them. Pure; called by replica.py.

Somebody at this node wants to look into a directory that a client of the cluster holds, or to
change it. ``Recall`` touches it, so its holder gets a push, and acknowledges that only when it has
stopped to make files there by itself and has sent what it made. Then it ends its delegation::

    wanted ─► Recall applied ─────────────────► Undelegate applied ─► nothing is in the way
                 └─ released, and 3 s are over ─► Revoke applied ────────┘

Why a Revoke is safe: a Recall is released when its holder has acknowledged it or its lease is over,
and without a lease it makes nothing by itself. What it had sent and what comes too late is refused
(tree/delegations.py, ``take_number``), so what others are told from then on stays true.

Who does not answer for one directory will not for others: with the first Revoke all that it holds
is asked for, and revoked together. Else whoever walks the tree would wait anew in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from pydi_node.commands import INOS_PER_COMMAND_MAX, Recall, Revoke
from pydi_node.ids import Ino, LogIndex
from pydi_node.tree.machine import Tree

# A holder that is there answers within some milliseconds, one that publishes many files first
# within some hundred; one that does not answer holds others up for so long.
PATIENCE_S = 3.0
# What was proposed and shows no effect by then got lost with its leader.
RETRY_S = 1.0


@dataclass(slots=True)
class _Wanted:
    """A directory that is to be given back."""

    recalled: LogIndex  # its delegation's, as this tree shows it; 0: not recalled
    since_s: float  # it has shown that
    proposed_s: float = -inf  # the command that is due in this state


class Recalls:
    """What one node has asked for."""

    def __init__(self) -> None:
        self._wanted: dict[Ino, _Wanted] = {}
        self._silent: set[Ino] = set()  # held by those who did not answer for another one

    def __len__(self) -> int:
        """How many are to be given back though nobody waits for them."""
        return len(self._silent)

    def commands(
        self, wanted: Iterable[Ino], tree: Tree, released: LogIndex, now_s: float
    ) -> list[Recall | Revoke]:
        """What to propose now, so that these directories are given back. To be asked at each step
        for as long as any are wanted.

        released  everybody who may rely on what he knows has dropped what is older.
        """
        before, self._wanted = self._wanted, {}
        self._silent = {ino for ino in self._silent if tree.delegation(ino) is not None}
        recall: list[Ino] = []
        revoke: list[Ino] = []
        for ino in sorted({*wanted, *self._silent})[:INOS_PER_COMMAND_MAX]:
            delegation = tree.delegation(ino)
            assert delegation is not None, ino
            recalled = LogIndex(delegation.recalled)
            state = before.get(ino)
            if state is None or state.recalled != recalled:
                state = _Wanted(recalled, now_s)
            self._wanted[ino] = state
            if now_s - state.proposed_s < RETRY_S:
                continue
            if not recalled:
                recall.append(ino)
            elif recalled <= released and now_s - state.since_s >= PATIENCE_S:
                revoke.append(ino)
                if ino not in self._silent:
                    others = tree.delegated_to(delegation.client)
                    self._silent.update(other for other in others if other not in revoke)
            else:
                continue
            state.proposed_s = now_s
        commands: list[Recall | Revoke] = []
        if recall:
            commands.append(Recall(tuple(recall)))
        if revoke:
            commands.append(Revoke(tuple(revoke), released))
        return commands
