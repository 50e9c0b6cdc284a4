"""A follower as its leader sees it: windows, stale news, the way between the three states."""

from __future__ import annotations

from pydi_node.consensus.progress import Progress, ProgressState
from pydi_node.consensus.types import Member


def replicating(match: int) -> Progress:
    """A follower known to hold everything up to ``match``."""
    progress = Progress(Member(2, True), match + 1)
    progress.acknowledged(match)
    progress.become_replicate()
    return progress


def test_the_window_is_bounded_in_messages_and_bytes() -> None:
    """It closes at either bound and an acknowledgement opens it for all it covers."""
    progress = replicating(4)
    for last, size in ((5, 10), (6, 10), (9, 80)):
        assert progress.may_send(3, 100)
        progress.sent(last, size, 0)
    assert not progress.may_send(3, 1000)
    assert not progress.may_send(100, 100)
    assert progress.acknowledged(6)
    assert (progress.inflight_count, progress.inflight_bytes) == (1, 80)
    assert progress.may_send(3, 100)
    assert not progress.acknowledged(6), "repeated: no news"
    assert (progress.match_index, progress.next_index) == (6, 10)


def test_a_stale_rejection_changes_nothing() -> None:
    """Of an append from before what is acknowledged, or of another than the probe under way."""
    progress = replicating(4)
    progress.sent(9, 10, 0)
    assert not progress.rejected(3, 2)
    assert (progress.state, progress.next_index) == (ProgressState.REPLICATE, 10)
    assert progress.rejected(9, 7)
    assert (progress.state, progress.next_index) == (ProgressState.PROBE, 8)
    assert progress.inflight_count == 0
    progress.sent(9, 10, 0)
    assert not progress.rejected(9, 5)
    assert progress.rejected(7, 5)
    assert progress.next_index == 6


def test_a_probe_never_goes_below_what_is_known_to_match() -> None:
    """However far back the hint points; and never below the first entry."""
    progress = replicating(4)
    assert progress.rejected(9, 0)
    assert progress.next_index == 5
    fresh = Progress(Member(2, True), 8)
    assert fresh.rejected(7, 0)
    assert fresh.next_index == 1


def test_one_probe_at_a_time_until_a_heartbeat_is_answered() -> None:
    """A lost probe is repeated when the follower shows that it is there, without its entries: maybe
    it is but the follower's disk that is slow."""
    progress = Progress(Member(2, True), 8)
    assert progress.may_send(1, 1)
    progress.sent(9, 10, 0)
    assert not progress.may_send(1, 1)
    assert progress.heartbeat_answered(9)
    assert progress.check_wanted
    assert not progress.may_send(1, 1), "entries go out once"
    assert progress.rejected(7, 5)
    assert progress.may_send(1, 1)


def test_answers_without_progress_are_noticed() -> None:
    """Two answers to heartbeats with the same match: something may have been lost."""
    progress = replicating(4)
    assert not progress.heartbeat_answered(9)
    assert progress.heartbeat_answered(9)
    assert progress.check_wanted
    progress.acknowledged(6)
    assert not progress.heartbeat_answered(9)
    progress.acknowledged(9)
    assert not progress.heartbeat_answered(9)
    assert not progress.heartbeat_answered(9), "nothing is missing"
