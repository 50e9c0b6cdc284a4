"""The scrub's plan: everything is read within the period, evenly, over any restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydi_node.blobs.scrub import (
    NOTHING,
    Amount,
    Pass,
    Progress,
    advance,
    begin,
    dump,
    finish,
    is_due,
    load,
    wait_s,
)
from pydi_node.ids import BlobId

NS = 1_000_000_000
PERIOD_S = 1000
START_NS = 1_700_000_000 * NS


def test_passes_begin_a_period_apart() -> None:
    """The first at once; none while one runs; the next a period after the last began. A clock that
    was set back does not put it off for ever."""
    assert is_due(NOTHING, START_NS, PERIOD_S)
    running = begin(NOTHING, START_NS, hurry=False)
    assert not is_due(running, START_NS + 9 * PERIOD_S * NS, PERIOD_S)
    done = finish(running, START_NS + 800 * NS)
    assert not is_due(done, START_NS + (PERIOD_S - 1) * NS, PERIOD_S)
    assert is_due(done, START_NS + PERIOD_S * NS, PERIOD_S)
    assert is_due(done, START_NS - NS, PERIOD_S)


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=60), st.integers(0, 1 << 40))
def test_a_pass_is_spread_and_ends_in_time(sizes: list[int], off_s: int) -> None:
    """However large the blobs: read one after the other as soon as each is due, all are read before
    the period ends, and not much sooner than four fifths of it. A node that was off catches up."""
    total = Amount(len(sizes), sum(sizes))
    progress = begin(NOTHING, START_NS, hurry=False)
    now_s = 0.0
    for at, size in enumerate(sizes, 1):
        assert progress.current is not None
        now_s += wait_s(progress.current, total, START_NS + round(now_s * NS), PERIOD_S)
        progress = advance(progress, BlobId(at), size, sound=True)
    assert progress.current is not None
    last = wait_s(progress.current, total, START_NS + round(now_s * NS), PERIOD_S)
    assert now_s <= PERIOD_S * 0.8 + 1e-3
    assert now_s + last == pytest.approx(PERIOD_S * 0.8, abs=1e-2)
    late_ns = START_NS + (PERIOD_S + off_s) * NS
    assert wait_s(progress.current, total, late_ns, PERIOD_S) == 0.0


def test_asked_for_it_does_not_wait() -> None:
    """And begins from the start, whatever was read."""
    progress = advance(begin(NOTHING, START_NS, hurry=False), BlobId(7), 100, sound=False)
    progress = begin(progress, START_NS + 5, hurry=True)
    assert progress.current == Pass(START_NS + 5, True, BlobId(0), Amount(0, 0), 0, 0)
    assert wait_s(progress.current, Amount(9, 900), START_NS, PERIOD_S) == 0.0


numbers = st.integers(0, (1 << 63) - 1)
passes = st.none() | st.builds(
    Pass, numbers, st.booleans(), numbers.map(BlobId), st.builds(Amount, numbers, numbers), numbers,
    numbers,
)  # fmt: skip


@given(st.builds(Progress, passes, passes))
def test_progress_survives_a_restart(progress: Progress) -> None:
    assert load(dump(progress)) == progress


@pytest.mark.parametrize(
    "data",
    [None, b"", b"{", b"[]", b"null", b'{"version": 2, "current": null, "last": null}',
     b'{"version": 1}', b'{"version": 1, "current": [1], "last": null}',
     b'{"version": 1, "current": [1, 1, 1, [1, 1], 1, 1], "last": null}',
     b'{"version": 1, "current": [-1, true, 1, [1, 1], 1, 1], "last": null}',
     b'{"version": 1, "current": [1, true, "x", [1, 1], 1, 1], "last": null}'],
)  # fmt: skip
def test_a_damaged_file_means_that_all_is_to_be_read(data: bytes | None) -> None:
    assert load(data) == NOTHING
