"""When a directory is worth asking for: the rules, on a clock that the test moves."""

from __future__ import annotations

from pydi_fs.vfs.occasions import (
    AGAIN_WITHIN_S,
    RECALLED_MAX_S,
    RECALLED_MIN_S,
    REMEMBERED_MAX,
    Occasions,
)
from pydi_node.ids import Ino

A, B, C, D = map(Ino, range(1, 5))


def test_a_second_change_within_a_while_is_one() -> None:
    occasions = Occasions()
    assert not occasions.is_one(A, 0.0)
    assert occasions.is_one(A, AGAIN_WITHIN_S)
    assert not occasions.is_one(A, 2 * AGAIN_WITHIN_S + 0.1)


def test_who_goes_through_a_tree_asks_at_the_first_change() -> None:
    """Of the third directory on, as long as each follows the last; a pause begins anew."""
    occasions = Occasions()
    assert [occasions.is_one(Ino(n), n / 10) for n in range(1, 6)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    later_s = 0.5 + AGAIN_WITHIN_S + 0.1
    assert not occasions.is_one(Ino(6), later_s)
    assert not occasions.is_one(Ino(7), later_s)
    assert occasions.is_one(Ino(8), later_s)


def test_changes_between_two_directories_are_no_tree() -> None:
    """A rename from one to the other changes a name in both."""
    occasions = Occasions()
    assert not occasions.is_one(A, 0.0)
    assert not occasions.is_one(B, 0.0)
    assert not occasions.is_one(A, 10.0)
    assert not occasions.is_one(B, 10.0)


def test_one_of_the_others_was_long_ago() -> None:
    occasions = Occasions()
    assert not occasions.is_one(A, 0.0)
    assert not occasions.is_one(B, AGAIN_WITHIN_S)
    assert not occasions.is_one(C, AGAIN_WITHIN_S + 0.1)
    assert occasions.is_one(D, AGAIN_WITHIN_S + 0.2)


def test_after_each_recall_it_is_left_alone_for_twice_as_long() -> None:
    occasions = Occasions()
    assert occasions.may_ask(A, 0.0)
    now_s, wait_s = 0.0, RECALLED_MIN_S
    while wait_s < RECALLED_MAX_S:
        occasions.wait(A, now_s)
        assert not occasions.may_ask(A, now_s + wait_s - 0.1)
        now_s += wait_s
        assert occasions.may_ask(A, now_s)
        wait_s *= 2
    occasions.wait(A, now_s)
    assert not occasions.may_ask(A, now_s + RECALLED_MAX_S - 0.1)
    assert occasions.may_ask(A, now_s + RECALLED_MAX_S)
    occasions.wait_long(B, 0.0)
    assert not occasions.may_ask(B, RECALLED_MAX_S - 0.1)


def test_what_is_remembered_is_bounded() -> None:
    occasions = Occasions()
    for number in range(1, REMEMBERED_MAX + 10):
        occasions.is_one(Ino(number), float(number * 10))
        occasions.wait(Ino(number), 0.0)
    assert len(occasions.not_before) == len(occasions._changed_s) == REMEMBERED_MAX
    assert occasions.may_ask(A, 0.0)  # it was the first
    assert not occasions.may_ask(Ino(REMEMBERED_MAX), 0.0)
