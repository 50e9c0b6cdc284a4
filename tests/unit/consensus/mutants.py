"""Cores with one safety rule broken each: the simulation must notice every one of them.

A test that can't fail proves nothing; these show that the schedule reaches the dangerous places
and that the checker looks at the right things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydi_node.consensus.leadership import Leadership
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import (
    NO_INDEX,
    AppendResponse,
    Entry,
    Message,
    ReadState,
    Ready,
    VoteRequest,
    VoteResponse,
)
from pydi_node.ids import LogIndex


def _let_out(ready: Ready, kinds: tuple[type[Any], ...]) -> Ready:
    """Messages of these kinds no longer wait for the disk."""
    after = ready.messages_after_persist
    ready.messages = [*ready.messages, *(m for m in after if isinstance(m, kinds))]
    ready.messages_after_persist = [m for m in after if not isinstance(m, kinds)]
    return ready


class VotesBeforePersisted(Raft):
    """A vote leaves before it is on the disk (Raft 5.2; figure 2, persistent state)."""

    def ready(self) -> Ready:
        return _let_out(super().ready(), (VoteRequest, VoteResponse))


class AcknowledgesBeforePersisted(Raft):
    """Entries are acknowledged before they are on the disk."""

    def ready(self) -> Ready:
        return _let_out(super().ready(), (AppendResponse,))


class CommitsOldTerms(Raft):
    """Entries of an older term are committed by counting (Raft 5.4.2, figure 8)."""

    def _may_commit(self, index: LogIndex) -> bool:
        return True


class TruncatesAlways(Raft):
    """Every append cuts what follows, also what matches (Raft 5.3)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._log.matching_count = _nothing  # type: ignore[method-assign]


def _nothing(entries: Sequence[Entry]) -> int:
    return 0


class CountsItselfBeforePersisted(Raft):
    """A leader counts its own entries before its own disk has them."""

    def _maybe_commit(self, lead: Leadership) -> None:
        durable, self._log.durable_index = self._log.durable_index, self._log.last_index
        super()._maybe_commit(lead)
        self._log.durable_index = durable


class VotesForAnyLog(Raft):
    """A candidate without committed entries gets votes (Raft 5.4.1)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._log.is_up_to_date = lambda index, term: True  # type: ignore[method-assign]


class VotesTwice(Raft):
    """The vote of this term is forgotten before the next request."""

    def step(self, message: Message) -> None:
        if isinstance(message, VoteRequest) and message.term == self.term and not message.pre:
            self.vote = self.leader = None
        super().step(message)


class SpeaksBeforeTermPersisted(Raft):
    """A leader appends to others before its own term is on its disk."""

    @property
    def term_is_durable(self) -> bool:
        return True


class ReadsWithoutAsking(Raft):
    """A leader answers reads without asking whether it still leads (thesis 6.4)."""

    def _start_round(self, lead: Leadership) -> None:
        waiting, lead.reads_waiting = lead.reads_waiting, []
        index = self._log.commit_index
        self._reads_done.extend(ReadState(c, index) for asker, c in waiting if asker is None)


class ForgetsWritesUnderWay(Raft):
    """The completion of a write counts although a truncation overtook it (A-B-A)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        log = self._log
        truncate = log.truncate

        def keeping_claims(index: LogIndex) -> None:
            claims = [(w, w.last_index, w.last_term) for w in log._writes]
            truncate(index)
            for write, last_index, last_term in claims:
                write.last_index, write.last_term = last_index, last_term

        log.truncate = keeping_claims  # type: ignore[method-assign]


class ChangesMembershipAtOnce(Raft):
    """A change does not wait for an entry of the leader's own term (raft-dev, July 2015)."""

    def _check_no_change_pending(self, lead: Leadership) -> None:
        lead.first_index = NO_INDEX
        super()._check_no_change_pending(lead)


# Where each rule matters most: parameters of the simulation under which breaking it shows within
# few seeds, and whether only what an outsider sees is checked. Letting out a term that is not
# durable needs a crash of a lone voter in one short moment to be seen from outside, so there the
# direct check of each message is on.
_QUIET = {"joiners": 0, "changes": 0}
_SLOW_DISKS = _QUIET | {"voters": 3, "unrest": 10, "disk_speed": 5, "crash": 5, "loss": 0}
_PAUSES = _QUIET | {"voters": 3, "unrest": 4, "pauses": 10, "crash": 0, "loss": 0, "disk_speed": 80}
_LATE = _QUIET | {
    "voters": 3,
    "unrest": 5,
    "repeat": 15,
    "reorder": 60,
    "loss": 5,
    "crash": 0,
    "disk_speed": 20,
}
_PIPELINE = _QUIET | {
    "voters": 3,
    "unrest": 12,
    "repeat": 30,
    "crash": 0,
    "disk_speed": 20,
    "append_bytes_max": 2000,
    "inflight_messages_max": 20,
}
_ONE_ENTRY = _QUIET | {"voters": 3, "unrest": 30, "loss": 5, "crash": 0, "append_bytes_max": 1,
                       "inflight_messages_max": 3, "disk_speed": 20}  # fmt: skip
_LONE_VOTER = {"voters": 1, "joiners": 2, "changes": 10, "crash": 10, "unrest": 0, "disk_speed": 5}

MUTANTS: list[tuple[type[Raft], dict[str, int], bool]] = [
    (VotesBeforePersisted, _SLOW_DISKS, False),
    (AcknowledgesBeforePersisted, _SLOW_DISKS, False),
    (CommitsOldTerms, _ONE_ENTRY, False),
    (TruncatesAlways, _LATE, False),
    (CountsItselfBeforePersisted, _LONE_VOTER, False),
    (VotesForAnyLog, _SLOW_DISKS, False),
    (VotesTwice, _SLOW_DISKS, False),
    (SpeaksBeforeTermPersisted, _LONE_VOTER, True),
    (ReadsWithoutAsking, _PAUSES, False),
    (ForgetsWritesUnderWay, _PIPELINE, False),
    (ChangesMembershipAtOnce, _LONE_VOTER, False),
]
