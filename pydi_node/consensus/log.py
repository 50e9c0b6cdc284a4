"""One node's copy of the log in memory: entries, how far they are durable, committed, applied.

For raft.py only. Knows nothing of roles, peers or elections; it keeps the order of its marks:

    front      handed                      what compact() cut away ends at ``front.index``
      ▼          ▼
    ──●━━━━━━━━━━━━━━━━━━━━━━━━━━━●       entries in memory, up to last_index
       applied ≤ handed ≤ commit ≤ last    ``handed``: given out in Ready.committed
       durable ≤ emitted ≤ last            ``emitted``: given out in Ready.entries
       handed ≤ durable

commit may be ahead of durable: on a leader, when the other disks were faster.

Completions of writes. Several may be under way, each a ``_Write`` with the last index it will
make durable. A truncation at index t takes what is at t and above out of the claims of all writes
under way, so the completion of a write that a later one overwrites (A-B-A: the same entry may
even be back in the log) never counts for more than what stays on the disk after both. What a
write still claims is therefore in the log now, with the term it was written with; the term is
checked all the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pydi_node.consensus import codec
from pydi_node.consensus.types import (
    ENTRY_OVERHEAD_BYTES,
    NO_INDEX,
    NO_TERM,
    Entry,
    EntryKind,
    Membership,
    SnapshotMeta,
)
from pydi_node.ids import LogIndex, Term


@dataclass(slots=True)
class _Write:
    """One Ready on its way to the disk."""

    number: int
    last_index: LogIndex  # what it makes durable, less what was truncated since
    last_term: Term
    hard_term: Term  # the term that is durable with it


class Log:
    """The entries after ``front`` and the marks on them."""

    def __init__(self, front: SnapshotMeta, entries: Sequence[Entry]) -> None:
        """A log as read back from the disk: all of ``entries`` are durable."""
        self.front = front
        self.commit_index = front.index
        self.handed_index = front.index
        self.applied_index = front.index
        self.emitted_index = front.index
        self.durable_index = front.index
        self.last_index = front.index
        self.truncate_from: LogIndex | None = None  # for the next Ready
        self._entries: list[Entry] = []
        # _ends[i]: bytes of all entries ever counted up to and with _entries[i]; _start: up to
        # front. Differences give sizes of ranges, bisection gives how many fit a limit.
        self._ends: list[int] = []
        self._start = 0
        self._writes: deque[_Write] = deque()
        # Memberships in force from their index on, ascending; the first is the front's.
        self._memberships: list[tuple[LogIndex, Membership]] = [(front.index, front.membership)]
        self.append(entries)
        self.emitted_index = self.durable_index = self.last_index

    # --- questions

    @property
    def last_term(self) -> Term:
        return self._entries[-1].term if self._entries else self.front.term

    @property
    def membership(self) -> Membership:
        """The newest in the log, committed or not."""
        return self._memberships[-1][1]

    @property
    def memberships(self) -> list[Membership]:
        return [membership for _, membership in self._memberships]

    @property
    def membership_index(self) -> LogIndex:
        return self._memberships[-1][0]

    def membership_at(self, index: LogIndex) -> Membership:
        """The membership in force at ``index``, front .. last."""
        assert self.front.index <= index <= self.last_index, (self.front.index, index)
        return self._memberships[self._membership_position(index)][1]

    def memberships_possible(self) -> list[Membership]:
        """The last committed membership, and the ones after it that may yet be."""
        first = self._membership_position(self.commit_index)
        return [membership for _, membership in self._memberships[first:]]

    def term_at(self, index: LogIndex) -> Term | None:
        """The term of the entry at ``index``; None when it was cut away or isn't there yet."""
        position = index - self.front.index - 1
        if position < 0:
            return self.front.term if position == -1 else None
        return self._entries[position].term if position < len(self._entries) else None

    def is_up_to_date(self, last_index: LogIndex, last_term: Term) -> bool:
        """Whether a log ending there is at least as new as this one (Raft 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def bytes_after(self, index: LogIndex) -> int:
        """Size of the entries after ``index``, front .. last."""
        return (self._ends[-1] if self._ends else self._start) - self._end_of(index)

    def slice(self, first: LogIndex, bytes_max: int, last: LogIndex | None = None) -> list[Entry]:
        """Entries from ``first`` up to ``last`` (or the end), at least one if there is one, and
        as many more as fit ``bytes_max``."""
        low = first - self.front.index - 1
        assert low >= 0, f"entry {first} was cut away, front {self.front.index}"
        limit = self._end_of(LogIndex(first - 1)) + bytes_max
        high = max(bisect_right(self._ends, limit, lo=low), low + 1)
        if last is not None:
            high = min(high, last - self.front.index)
        return self._entries[low:high]

    def conflict_hint(self, index: LogIndex, term: Term) -> tuple[LogIndex, Term]:
        """The last place at or before ``index`` whose term is at most ``term``.

        Terms only grow along a log, so where the other log has ``term`` at ``index``, nothing
        of this log after that place can equal it: one answer skips a whole term of conflicts.
        """
        if index >= self.last_index:
            index = self.last_index
        high = index - self.front.index
        if high < 0:
            return index, NO_TERM  # all cut away: only a snapshot can help
        position = bisect_right(self._entries, term, hi=high, key=lambda entry: entry.term)
        if position == 0:
            return self.front.index, self.front.term
        return LogIndex(self.front.index + position), self._entries[position - 1].term

    def matching_count(self, entries: Sequence[Entry]) -> int:
        """How many of ``entries``, from the first, are in this log already."""
        for count, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                return count
        return len(entries)

    # --- changes

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries that follow the last one."""
        if not entries:
            return
        first, last = entries[0], entries[-1]
        assert first.index == self.last_index + 1, (first.index, self.last_index)
        assert last.index == self.last_index + len(entries), (last.index, len(entries))
        assert self.last_term <= first.term <= last.term, (self.last_term, first.term, last.term)
        total = self._ends[-1] if self._ends else self._start
        ends = self._ends
        for entry in entries:
            total += len(entry.data) + ENTRY_OVERHEAD_BYTES
            ends.append(total)
            if entry.kind is EntryKind.MEMBERSHIP:
                membership = codec.unpack_membership(entry.data)
                self._memberships.append((entry.index, membership))
        self._entries.extend(entries)
        self.last_index = last.index

    def truncate(self, index: LogIndex) -> None:
        """Drop the entry at ``index`` and all after it: they conflict with the leader's."""
        assert index > self.commit_index, f"truncate {index}, committed {self.commit_index}"
        assert index <= self.last_index, (index, self.last_index)
        kept = index - self.front.index - 1
        del self._entries[kept:]
        del self._ends[kept:]
        self.last_index = LogIndex(index - 1)
        while self._memberships[-1][0] >= index:
            self._memberships.pop()
        if index <= self.emitted_index:
            # Below an earlier one that still waits: nothing was emitted since that.
            self.truncate_from = index
            self.emitted_index = LogIndex(index - 1)
            self.durable_index = min(self.durable_index, LogIndex(index - 1))
            for write in self._writes:
                if write.last_index >= index:
                    write.last_index = LogIndex(index - 1)
                    write.last_term = self.last_term

    def commit_to(self, index: LogIndex) -> bool:
        """Mark everything up to ``index`` as committed; whether that is news."""
        if index <= self.commit_index:
            return False
        assert index <= self.last_index, f"commit {index} beyond last {self.last_index}"
        self.commit_index = index
        return True

    def applied_to(self, index: LogIndex) -> None:
        assert self.applied_index <= index <= self.handed_index, (
            f"applied {self.applied_index} -> {index}, handed out {self.handed_index}"
        )
        self.applied_index = index

    def compact(self, index: LogIndex, trailing_entries: int, trailing_bytes_max: int) -> bool:
        """Cut away what is at or before ``index`` less the trailing entries; whether any was."""
        assert index <= self.applied_index, (index, self.applied_index)
        by_count = self.last_index - trailing_entries
        # The first entries that together exceed the bytes to keep may go.
        total = self._ends[-1] if self._ends else self._start
        by_bytes = self.front.index + bisect_right(self._ends, total - trailing_bytes_max)
        cut = min(index, max(by_count, by_bytes))
        count = cut - self.front.index
        if count <= 0:
            return False
        front = SnapshotMeta(
            LogIndex(cut), self._entries[count - 1].term, self.membership_at(LogIndex(cut))
        )
        self._start = self._ends[count - 1]
        del self._entries[:count]
        del self._ends[:count]
        # The last membership at or before the cut stays, with the index where it began.
        del self._memberships[: self._membership_position(front.index)]
        self.front = front
        return True

    def reset(self, front: SnapshotMeta) -> None:
        """Become the empty log behind an installed snapshot."""
        assert front.index > self.commit_index, (front.index, self.commit_index)
        # The installation waited for every write before it, and none with entries came since.
        assert all(w.last_index <= self.durable_index for w in self._writes), self._writes
        self.front = front
        self._entries.clear()
        self._ends.clear()
        self._start = 0
        self._memberships = [(front.index, front.membership)]
        self.truncate_from = None
        self.last_index = self.emitted_index = self.durable_index = front.index
        self.commit_index = self.handed_index = self.applied_index = front.index
        for write in self._writes:
            write.last_index, write.last_term = NO_INDEX, NO_TERM

    # --- towards the disk and the tree

    @property
    def has_unemitted(self) -> bool:
        return self.emitted_index < self.last_index or self.truncate_from is not None

    @property
    def has_writes(self) -> bool:
        return bool(self._writes)

    def take_unemitted(self) -> tuple[LogIndex | None, list[Entry]]:
        """(first index to drop from the disk or None, entries to append there)."""
        truncate_from, self.truncate_from = self.truncate_from, None
        entries = self._entries[self.emitted_index - self.front.index :]
        self.emitted_index = self.last_index
        return truncate_from, entries

    def write_started(self, number: int, hard_term: Term, with_entries: bool) -> None:
        """Ready ``number`` went out; with entries, it makes all that was emitted durable."""
        if with_entries:
            self._writes.append(_Write(number, self.last_index, self.last_term, hard_term))
        else:
            self._writes.append(_Write(number, NO_INDEX, NO_TERM, hard_term))

    def write_finished(self, number: int) -> Term:
        """Ready ``number`` and all before it are on the disk; the term that is durable now."""
        assert self._writes, f"nothing to persist under way, completed {number}"
        assert self._writes[0].number <= number, (self._writes[0].number, number)
        hard_term = NO_TERM
        while self._writes and self._writes[0].number <= number:
            write = self._writes.popleft()
            hard_term = write.hard_term
            if write.last_index > self.durable_index:
                assert self.term_at(write.last_index) == write.last_term, (
                    f"durable ({write.last_index}, {write.last_term}) is not in the log: "
                    f"term {self.term_at(write.last_index)}"
                )
                self.durable_index = write.last_index
        return hard_term

    @property
    def has_committed(self) -> bool:
        return self.handed_index < self.commit_index and self.handed_index < self.durable_index

    def take_committed(self, bytes_max: int) -> list[Entry]:
        """The next entries to apply: committed, and durable here, so that no tree is ever ahead
        of its log after a crash."""
        last = min(self.commit_index, self.durable_index)
        entries = self.slice(LogIndex(self.handed_index + 1), bytes_max, last)
        self.handed_index = entries[-1].index
        return entries

    # --- helpers

    def _end_of(self, index: LogIndex) -> int:
        position = index - self.front.index - 1
        assert position >= -1, (index, self.front.index)
        return self._ends[position] if position >= 0 else self._start

    def _membership_position(self, index: LogIndex) -> int:
        return bisect_right(self._memberships, index, key=lambda pair: pair[0]) - 1


def entries_of(first: LogIndex, term: Term, datas: Sequence[bytes]) -> list[Entry]:
    """Commands as entries, numbered from ``first``."""
    kind = EntryKind.COMMAND
    return [Entry(LogIndex(i), term, kind, data) for i, data in enumerate(datas, first)]


def recovered(
    front: SnapshotMeta,
    entries: Sequence[Entry],
    installed: SnapshotMeta | None,
    applied: LogIndex,
    applied_term: Term,
) -> tuple[SnapshotMeta, Sequence[Entry]]:
    """(front, entries) to start a core with, after a crash that may have hit an installation.

    front, entries          the log as read from the disk.
    installed               SnapshotMeta kept beside the tree by the last installation, if any.
    applied, applied_term   the tree's own marks; it was replaced before the log was reset.

    A log without the entry that the tree applied last is one that the installation was about to
    replace, also when it is longer: what it holds there was never committed.
    """
    if applied == front.index:
        log_term: Term | None = front.term
    else:
        position = applied - front.index - 1
        log_term = entries[position].term if 0 <= position < len(entries) else None
    if log_term == applied_term:
        return front, entries
    assert installed is not None, f"tree at ({applied}, {applied_term}), log has {log_term}"
    assert (installed.index, installed.term) == (applied, applied_term), (installed, applied)
    return installed, ()
