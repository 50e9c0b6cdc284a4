"""What a Replica keeps of those who wait for it. Plain records, for replica.py only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydi_node.commands import Command
from pydi_node.consensus.types import MembershipChange
from pydi_node.effects import PeerMessage
from pydi_node.envelopes import length_max
from pydi_node.ids import ClientId, LogIndex, Serial, Term


@dataclass(slots=True)
class Pending:
    """A command whose outcome somebody here waits for."""

    command: Command
    waiters: list[tuple[int, float]]  # (request, deadline)
    sent_s: float = 0.0  # when it was last forwarded


class Sizes:
    """How many bytes the commands take that are kept, at least as many as in the log."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._sizes: dict[tuple[ClientId, Serial], int] = {}
        self.total = 0

    def add(self, key: tuple[ClientId, Serial], command: Command) -> bool:
        """Counts one more; False if that is too much. One alone never is."""
        size = length_max(command)
        if self._sizes and self.total + size > self._bytes_max:
            return False
        self._sizes[key] = size
        self.total += size
        return True

    def remove(self, key: tuple[ClientId, Serial]) -> None:
        self.total -= self._sizes.pop(key, 0)

    def clear(self) -> None:
        self._sizes.clear()
        self.total = 0


@dataclass(slots=True)
class Leaving:
    request: int
    deadline_s: float
    next_s: float = 0.0  # of the next attempt
    is_answered: bool = False  # the program ends at any moment, and wants no vote until then


@dataclass(slots=True)
class MemberWaiter:
    request: int
    deadline_s: float
    change: MembershipChange
    done: tuple[Term, LogIndex] | None = None  # certain when applied in that term; None: not in log


@dataclass(slots=True)
class Held:
    """Messages that may leave when the Ready ``number`` is on disk."""

    number: int
    messages: Sequence[PeerMessage] = field(default_factory=tuple)
