"""The log's marks: durable, committed, applied, cut; and what a crash leaves of them."""

from __future__ import annotations

import pytest

from pydi_node.consensus.codec import pack_membership
from pydi_node.consensus.log import Log, entries_of, recovered
from pydi_node.consensus.types import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    EntryKind,
    Membership,
    SnapshotMeta,
)
from tests.unit.consensus.simulation import Dice

FRONT = SnapshotMeta(0, 0, Membership.founding(1, 2, 3))


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(index, term, EntryKind.COMMAND, data)


def log_of(*terms: int) -> Log:
    """A durable log with entries 1 … of these terms."""
    return Log(FRONT, [entry(i, term) for i, term in enumerate(terms, 1)])


def test_a_truncated_write_counts_no_further_than_what_stays() -> None:
    """A-B-A: the completion of an overtaken write doesn't vouch for the same entry written
    again, because the disk goes through the other one in between."""
    log = log_of(1)
    log.append([entry(2, 1)])
    log.take_unemitted()
    log.write_started(1, 1, True)
    log.truncate(2)
    log.append([entry(2, 2)])
    log.take_unemitted()
    log.write_started(2, 2, True)
    log.truncate(2)
    log.append([entry(2, 3), entry(3, 3)])
    log.take_unemitted()
    log.write_started(3, 3, True)
    assert log.write_finished(1) == 1
    assert log.durable_index == 1
    assert log.write_finished(2) == 2
    assert log.durable_index == 1
    assert log.write_finished(3) == 3
    assert log.durable_index == 3


def test_the_same_entry_back_again_is_not_durable_yet() -> None:
    """A-B-A proper: (2, term 1) is in the log again, its first write completes, and it must not
    count, for the write of (2, term 2) is still to come and a crash after that would lose it."""
    log = Log(FRONT, [entry(1, 1)])
    first, other = entry(2, 1), entry(2, 2)
    for number, content in ((1, first), (2, other), (3, first)):
        if number > 1:
            log.truncate(2)
        log.append([content])
        truncate_from, entries = log.take_unemitted()
        assert truncate_from == (2 if number > 1 else None)
        assert entries == [content]
        log.write_started(number, 1, True)
    log.write_finished(1)
    assert log.durable_index == 1
    log.write_finished(3)
    assert log.durable_index == 2


def test_one_completion_stands_for_all_before_it() -> None:
    """Joined writes need one call; completing twice or out of order is a bug of the driver."""
    log = log_of()
    for number in (1, 2, 3):
        log.append([entry(number, 1)])
        log.take_unemitted()
        log.write_started(number, 1, True)
    log.write_finished(2)
    assert log.durable_index == 2
    with pytest.raises(AssertionError):
        log.write_finished(2)
    log.write_finished(3)
    with pytest.raises(AssertionError):
        log.write_finished(4)


def test_truncation_of_what_never_left_is_silent() -> None:
    """Entries that were not handed to the disk need no truncation there."""
    log = log_of(1, 1)
    log.append([entry(3, 1), entry(4, 1)])
    log.truncate(4)
    log.append([entry(4, 2)])
    assert log.take_unemitted() == (None, [entry(3, 1), entry(4, 2)])
    log.truncate(3)
    log.truncate(2)
    log.append([entry(2, 3)])
    assert log.take_unemitted() == (2, [entry(2, 3)])


def test_committed_entries_are_never_truncated() -> None:
    """Raft 5.4: the assertion stops the node rather than lose what was acknowledged."""
    log = log_of(1, 1, 1)
    log.commit_to(2)
    with pytest.raises(AssertionError, match="truncate 2, committed 2"):
        log.truncate(2)
    log.truncate(3)


@pytest.mark.parametrize(
    "entries",
    [
        [entry(3, 2)],  # a gap
        [entry(1, 2)],  # overlaps
        [entry(2, 1)],  # an older term on top
        [entry(2, 2), entry(4, 2)],  # a gap inside
    ],
)
def test_only_what_follows_is_appended(entries: list[Entry]) -> None:
    """The log has no gaps and terms never go back along it."""
    log = log_of(2)
    with pytest.raises(AssertionError):
        log.append(entries)


def test_nothing_is_handed_to_the_tree_before_it_is_durable() -> None:
    """A tree ahead of its own log could not be started again."""
    log = log_of()
    log.append([entry(1, 1), entry(2, 1)])
    log.take_unemitted()
    log.write_started(1, 1, True)
    log.commit_to(2)
    assert not log.has_committed
    log.write_finished(1)
    assert log.take_committed(1000) == [entry(1, 1), entry(2, 1)]
    assert not log.has_committed


def test_committed_entries_come_in_bounded_portions() -> None:
    """At least one entry, and no more than fit the limit."""
    log = Log(FRONT, [entry(i, 1, b"x" * 68) for i in range(1, 8)])
    log.commit_to(7)
    counts = []
    while log.has_committed:
        counts.append(len(log.take_committed(2 * (68 + ENTRY_OVERHEAD_BYTES))))
    assert counts == [2, 2, 2, 1]
    with pytest.raises(AssertionError):
        log.applied_to(8)


def test_conflict_hint_skips_a_whole_term() -> None:
    """The hint of a follower is the last place that could match a log with that term there."""
    log = log_of(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    assert log.conflict_hint(12, 6) == (10, 6)  # too short: its end
    assert log.conflict_hint(9, 3) == (3, 1)
    assert log.conflict_hint(6, 4) == (5, 4)
    assert log.conflict_hint(5, 9) == (5, 4)
    assert log.conflict_hint(3, 0) == (0, 0)


def test_conflict_hint_never_points_past_a_common_entry() -> None:
    """For random pairs of logs of one history, the last common entry is at or before the hint."""
    dice = Dice(5)
    for _ in range(1_000):
        common = sorted(dice.between(1, 4) for _ in range(dice.below(6)))
        tails = [sorted(dice.between(5, 9) for _ in range(dice.below(6))) for _ in range(2)]
        if set(tails[0]) & set(tails[1]):
            continue  # one (index, term) names one entry: tails of different terms only
        follower, leader = (log_of(*common, *tail) for tail in tails)
        previous = leader.last_index
        hint = follower.conflict_hint(previous, leader.last_term)
        guess, _ = leader.conflict_hint(*hint)
        assert len(common) <= guess or not common, (common, tails, hint, guess)


def test_compaction_leaves_trailing_entries_and_every_answer_the_same() -> None:
    """Cutting changes no term, size or membership behind the cut."""
    membership = Membership.founding(1, 2)
    entries = [entry(i, 1 + i // 4, b"y" * i) for i in range(1, 21)]
    entries[9] = Entry(10, 3, EntryKind.MEMBERSHIP, pack_membership(membership))
    log, whole = Log(FRONT, entries), Log(FRONT, entries)
    for copy in (log, whole):
        copy.commit_to(20)
        while copy.has_committed:
            copy.take_committed(1 << 20)
        copy.applied_to(18)
    with pytest.raises(AssertionError):
        log.compact(19, 0, 0)
    assert log.compact(18, 8, 1 << 20)
    assert log.front == SnapshotMeta(12, 4, membership)
    assert not log.compact(18, 8, 1 << 20)
    assert not log.compact(3, 0, 0)
    for index in range(12, 21):
        assert log.term_at(index) == whole.term_at(index)
        assert log.bytes_after(index) == whole.bytes_after(index)
        assert log.membership_at(index) == whole.membership_at(index)
    assert log.term_at(11) is None
    assert log.slice(13, 1 << 20) == whole.slice(13, 1 << 20)
    assert log.compact(18, 1000, 0), "whichever bound is reached first"
    assert log.front.index == 18


def test_compaction_keeps_trailing_bytes() -> None:
    """The bytes to keep are a lower bound of what stays."""
    log = Log(FRONT, [entry(i, 1, b"z" * 68) for i in range(1, 11)])  # 100 bytes each
    log.commit_to(10)
    log.take_committed(1 << 20)
    log.applied_to(10)
    log.compact(10, 1000, 350)
    assert log.front.index == 6
    assert log.bytes_after(6) == 400


def test_a_membership_goes_with_its_entry() -> None:
    """In force from append to truncation, remembered across compaction and restart."""
    changes = {3: Membership.founding(1, 2), 5: Membership.founding(2)}
    entries = [
        Entry(i, 1, EntryKind.MEMBERSHIP, pack_membership(changes[i]))
        if i in changes
        else entry(i, 1)
        for i in range(1, 7)
    ]
    log = Log(FRONT, entries)
    assert [log.membership_at(i) for i in (0, 2, 3, 4, 5)] == [
        FRONT.membership, FRONT.membership, changes[3], changes[3], changes[5],
    ]  # fmt: skip
    assert log.memberships_possible() == [FRONT.membership, changes[3], changes[5]]
    log.commit_to(4)
    assert log.memberships_possible() == [changes[3], changes[5]]
    log.truncate(5)
    assert (log.membership, log.membership_index) == (changes[3], 3)


def test_reset_behind_a_snapshot() -> None:
    """After an installation the log is empty behind it and all marks stand there."""
    log = log_of(1, 1)
    front = SnapshotMeta(9, 4, Membership.founding(1))
    log.reset(front)
    assert (log.last_index, log.last_term, log.durable_index, log.commit_index) == (9, 4, 9, 9)
    assert log.membership == front.membership
    log.append([entry(10, 4)])
    assert log.take_unemitted() == (None, [entry(10, 4)])


def test_recovery_after_a_crash_inside_an_installation() -> None:
    """The log goes on from the tree when it holds what the tree applied last, and is dropped
    when the tree was replaced over it, even if it is longer."""
    entries = tuple(entry(i, 1) for i in range(1, 6))
    installed = SnapshotMeta(4, 2, Membership.founding(1))
    assert recovered(FRONT, entries, None, 0, 0) == (FRONT, entries)
    assert recovered(FRONT, entries, None, 3, 1) == (FRONT, entries)
    assert recovered(FRONT, entries, installed, 4, 2) == (installed, ())
    assert recovered(FRONT, (), installed, 4, 2) == (installed, ())
    with pytest.raises(AssertionError):
        recovered(FRONT, entries, None, 9, 1)


def test_commands_become_consecutive_entries() -> None:
    """Each piece of data is one entry of the given term."""
    assert entries_of(5, 3, [b"a", b"b"]) == [entry(5, 3, b"a"), entry(6, 3, b"b")]
