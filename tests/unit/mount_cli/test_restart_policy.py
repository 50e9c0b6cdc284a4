"""When a dead worker is followed by another one, and when one that is silent is taken for dead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pydi_fs.restart_policy import HEALTHY_S, SHORT_LIVES_MAX, RestartPolicy, Watchdog


@given(st.lists(st.floats(0, 10), max_size=60))
def test_it_ends_after_short_lives_in_a_row_and_only_then(lives_s: list[float]) -> None:
    policy = RestartPolicy()
    in_a_row = 0
    for lived_s in lives_s:
        in_a_row = 0 if lived_s >= HEALTHY_S else in_a_row + 1
        assert policy.may_restart(lived_s) == (in_a_row <= SHORT_LIVES_MAX)


def test_a_worker_that_beats_does_not_hang() -> None:
    watchdog = Watchdog(missed_max=3)
    for _ in range(10):
        assert [watchdog.looked() for _ in range(3)] == [False] * 3
        watchdog.heard()


def test_a_silent_worker_hangs() -> None:
    watchdog = Watchdog(missed_max=3)
    assert [watchdog.looked() for _ in range(4)] == [False, False, False, True]
