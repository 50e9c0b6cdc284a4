"""What only a leader has; gone with its role. For raft.py only.

And whom it makes wait. A leader needs the disks of a majority, so with three voters one follower's
answer; the other one, if nobody uses it, gets what came in the meantime with the next tick: one
message, one write and one answer for many batches.

    needed   its answer may make the majority: gets everything at once. The most advanced followers,
             so whoever stops answering is replaced by whoever went on.
    in use   (``Progress.attentive``) gets everything at once, and counts as needed.
    spare    the others. They lag by one tick at most, like those that are told of commits late.

A majority that takes too long is what ``Raft.flush`` is for: the spare get everything, and whoever
answers first is needed from then on. Only *when* an append leaves is decided here; what is certain
when is not touched by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydi_node.consensus.progress import Progress
from pydi_node.consensus.quorum import majority
from pydi_node.consensus.types import NO_INDEX, SnapshotMeta
from pydi_node.ids import LogIndex, NodeNumber


@dataclass(slots=True)
class Outgoing:
    """The snapshot this leader sends, to one follower or several."""

    snapshot_id: bytes
    meta: SnapshotMeta
    size: int


@dataclass(slots=True)
class Leadership:
    """See the module's text."""

    first_index: LogIndex  # of this term: nothing is committed by counting below it
    peers: dict[NodeNumber, Progress] = field(default_factory=dict)  # ascending
    broadcast: bool = False  # there may be something to append to followers
    holds_back: bool = False  # a spare follower lacks entries that were not sent to it yet
    flushed_index: LogIndex = NO_INDEX  # nobody waits for entries up to here
    needed: frozenset[NodeNumber] = frozenset()
    heartbeat_elapsed: int = 0
    transferee: NodeNumber | None = None
    transfer_elapsed: int = 0
    # Reads that wait for the next round: (asking node or None for this one, context or number).
    reads_waiting: list[tuple[NodeNumber | None, Any]] = field(default_factory=list)
    round_reads: list[tuple[NodeNumber | None, Any]] = field(default_factory=list)
    round_index: LogIndex = NO_INDEX
    round_acks: set[NodeNumber] = field(default_factory=set)
    outgoing: Outgoing | None = None
    snapshot_asked: bool = False  # snapshot_wanted went out and was not answered yet

    def choose_needed(self, voters: Iterable[NodeNumber]) -> None:
        """Of ``voters`` (this leader among them, or not), those whose answers are waited for."""
        everyone = tuple(voters)
        others = [self.peers[voter] for voter in everyone if voter in self.peers]
        missing = majority(len(everyone)) - (len(everyone) - len(others))
        # Not counted on: who has not written yet what all were sent at the last flush. A dead one,
        # or one whose disk hangs while it answers heartbeats, would delay every batch.
        missing -= sum(1 for p in others if p.attentive and p.match_index >= self.flushed_index)
        spare = [p for p in others if not p.attentive]
        spare.sort(
            key=lambda p: (
                -p.match_index,
                p.member.number not in self.needed,  # no change of roles without a reason
                p.member.number,
            )
        )
        self.needed = frozenset(p.member.number for p in spare[: max(missing, 0)])

    def may_wait(self, progress: Progress) -> bool:
        """Whether this follower may get later what came since the last tick."""
        return not (
            progress.attentive
            or progress.member.number in self.needed
            # Whoever lacks older entries catches up, as fast as it can.
            or progress.next_index <= self.flushed_index
        )
