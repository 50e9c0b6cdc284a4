"""What a leader knows of one other member, and how much it may send to it.

For raft.py only; a pure record with its transitions, no message is built here.

             rejected, or told that its answers got lost
        ┌──────────────────────────────────────────────┐
        ▼                                              │
      PROBE ──── first acknowledgement ────────► REPLICATE
        │ ▲                                            │
        │ └── installed: match ≥ what is needed        │ entries it needs were cut away
        ▼                                              ▼
      SNAPSHOT ◄───────────────────────────────────────┘

PROBE      where the logs agree is not known: one append at a time, repeated without its entries
           when a heartbeat is answered.
REPLICATE  they agree up to ``match_index``; appends are pipelined, ``next_index`` runs ahead,
           bounded by messages and bytes in flight.
SNAPSHOT   pieces of a snapshot are sent, one at a time; no appends.

Always match_index < next_index. match_index is durable on the follower.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from pydi_node.consensus.types import NO_INDEX, Member
from pydi_node.ids import LogIndex


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower or learner as its leader sees it."""

    __slots__ = (
        "_inflight",
        "answered",
        "attentive",
        "caught_up",
        "check_wanted",
        "commit_sent",
        "heartbeat_match",
        "inflight_bytes",
        "match_index",
        "member",
        "next_index",
        "probe_sent",
        "round_target",
        "round_ticks",
        "silent_ticks",
        "snapshot_offset",
        "snapshot_reading",
        "snapshot_ticks",
        "stalled_ticks",
        "state",
    )

    def __init__(self, member: Member, next_index: LogIndex) -> None:
        self.member = member
        self.state = ProgressState.PROBE
        self.match_index = NO_INDEX
        self.next_index = next_index
        # A new leader counts everyone as just heard, which gives them one time-out to answer.
        self.silent_ticks = 0
        self.stalled_ticks = 0  # since its disk was last known to have taken something, or all
        self.answered = False  # this leader, at least once
        self.commit_sent = NO_INDEX  # highest commit index it was told in an append
        self.attentive = True  # told of each commit at once
        self.probe_sent = False  # PROBE: wait for the answer, or for a heartbeat's
        self.check_wanted = False  # REPLICATE: send an append even if it would be empty
        self.heartbeat_match = NO_INDEX  # match_index at the last heartbeat's answer
        self._inflight: deque[tuple[LogIndex, int]] = deque()  # (last index, bytes) of each append
        self.inflight_bytes = 0
        # SNAPSHOT: offset of the next piece, whether the driver is reading it, and ticks since
        # anything happened.
        self.snapshot_offset = 0
        self.snapshot_reading = False
        self.snapshot_ticks = 0
        # Catching up in rounds (thesis 4.2.1): a round copies what the log held at its start.
        self.round_target = LogIndex(next_index - 1)
        self.round_ticks = 0
        self.caught_up = False  # the last round was short

    @property
    def inflight_count(self) -> int:
        return len(self._inflight)

    @property
    def idle_ticks(self) -> int:
        """Since it last did what is asked of it; to be there is not enough."""
        return max(self.silent_ticks, self.stalled_ticks)

    def tick(self) -> None:
        self.silent_ticks += 1
        self.round_ticks += 1
        waits = self.state is ProgressState.SNAPSHOT or self.next_index - 1 > self.match_index
        self.stalled_ticks = self.stalled_ticks + 1 if waits else 0

    def wants_news(self, commit: LogIndex, membership: LogIndex) -> bool:
        """Whether to send an append without entries: as a probe or check, or to tell of ``commit``.

        membership  index of the newest change of members: nobody waits to hear that it is certain.
        """
        return (
            self.state is not ProgressState.REPLICATE
            or self.check_wanted
            or self.commit_sent < (commit if self.attentive else min(commit, membership))
        )

    def become_probe(self, next_index: LogIndex) -> None:
        self._enter(ProgressState.PROBE)
        self.next_index = max(next_index, LogIndex(self.match_index + 1))

    def become_replicate(self) -> None:
        self._enter(ProgressState.REPLICATE)
        self.next_index = LogIndex(self.match_index + 1)

    def become_snapshot(self) -> None:
        self._enter(ProgressState.SNAPSHOT)

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self.check_wanted = False
        self._inflight.clear()
        self.inflight_bytes = 0
        self.snapshot_offset = 0
        self.snapshot_reading = False
        self.snapshot_ticks = 0

    def may_send(self, messages_max: int, bytes_max: int) -> bool:
        """Whether another append with entries may go out now."""
        if self.state is ProgressState.REPLICATE:
            return len(self._inflight) < messages_max and self.inflight_bytes < bytes_max
        return self.state is ProgressState.PROBE and not self.probe_sent

    def sent(self, last_index: LogIndex, size_bytes: int, commit: LogIndex) -> None:
        """An append with entries up to ``last_index``, or none (size 0), goes out."""
        self.commit_sent = max(self.commit_sent, commit)
        self.check_wanted = False
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif size_bytes:
            assert last_index >= self.next_index, (last_index, self.next_index)
            self.next_index = LogIndex(last_index + 1)
            self._inflight.append((last_index, size_bytes))
            self.inflight_bytes += size_bytes

    def acknowledged(self, index: LogIndex) -> bool:
        """The follower holds everything up to ``index`` on its disk; whether that is news."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        news = index > self.match_index
        if news:
            self.stalled_ticks = 0
            self.match_index = index
            self.next_index = max(self.next_index, LogIndex(index + 1))
        return news

    def rejected(self, index: LogIndex, guess: LogIndex) -> bool:
        """The follower has no equal entry at ``index``; try after ``guess``. False: stale news."""
        if self.state is ProgressState.REPLICATE:
            if index <= self.match_index:
                return False
            self.stalled_ticks = 0
            self.become_probe(LogIndex(guess + 1))
            return True
        if self.state is not ProgressState.PROBE or index != self.next_index - 1:
            return False
        self.stalled_ticks = 0
        self.next_index = max(
            min(index, LogIndex(guess + 1)), LogIndex(self.match_index + 1), LogIndex(1)
        )
        self.probe_sent = False
        return True

    def heartbeat_answered(self, last_index: LogIndex) -> bool:
        """The follower is there; whether to send an append because messages may have been lost."""
        stuck = self.match_index < last_index and self.match_index == self.heartbeat_match
        self.heartbeat_match = self.match_index
        # Or its disk is slow: the answer to a heartbeat does not wait for it. So what is sent again
        # is a question without entries.
        if self.state is ProgressState.PROBE or (stuck and self.state is ProgressState.REPLICATE):
            self.check_wanted = True
            return True
        return False

    def finish_round(self, last_index: LogIndex, ticks_max: int) -> None:
        """Begin another round of catching up when the present one is complete."""
        if self.match_index >= self.round_target:
            self.caught_up = self.round_ticks < ticks_max
            self.round_target = last_index
            self.round_ticks = 0
