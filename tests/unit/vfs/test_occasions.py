"""When a directory is worth asking for: the rules, on a clock that the test moves."""

from __future__ import annotations

from pydi_fs.vfs.occasions import (
    AGAIN_WITHIN_S,
    AHEAD_MAX,
    AHEAD_S,
    LISTINGS_MAX,
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


def going_through(now_s: float) -> Occasions:
    """Names were changed in two directories that are none of those that the tests list."""
    occasions = Occasions()
    for number in (1001, 1002):
        occasions.is_one(Ino(number), now_s)
    return occasions


def inos(first: int, last: int) -> list[Ino]:
    return [Ino(number) for number in range(first, last + 1)]


def test_nothing_is_asked_for_ahead_of_who_only_reads() -> None:
    occasions = Occasions()
    occasions.listed(A, inos(10, 20), 0.0)
    assert occasions.ahead(0.0) == []
    occasions.is_one(Ino(10), 0.1)
    occasions.is_one(Ino(11), 0.1)
    assert occasions.ahead(0.1)
    assert occasions.ahead(0.2 + AGAIN_WITHIN_S) == []


def test_so_many_are_asked_for_ahead_and_one_more_for_each_that_is_used() -> None:
    occasions = going_through(0.0)
    coming = inos(10, 40)
    occasions.listed(A, coming, 0.0)
    assert occasions.ahead(0.0) == coming[:AHEAD_MAX]
    assert occasions.ahead(0.0) == []
    assert occasions.used(coming[0], 0.1)
    assert not occasions.used(coming[0], 0.1), "the second change in there"
    assert occasions.ahead(0.1) == coming[AHEAD_MAX : AHEAD_MAX + 1]
    occasions.unused(coming[3])
    assert not occasions.is_ahead(coming[3])
    assert occasions.ahead(0.1) == [coming[3]], "as long as nobody came by"


def test_what_others_use_is_not_followed_by_another_at_once() -> None:
    """Else who reads what others use has all of it asked for."""
    occasions = going_through(0.0)
    coming = inos(10, 60)
    occasions.listed(A, coming, 0.0)
    for one in occasions.ahead(0.0):
        occasions.wait(one, 0.0)
        assert not occasions.is_ahead(one)
        occasions.unused(one)
    occasions.listed(coming[4], [], 0.1)
    assert occasions.ahead(0.1) == [], "the program has only read"
    occasions.is_one(coming[2], 0.2)
    assert occasions.ahead(0.2) == coming[AHEAD_MAX : AHEAD_MAX + 1]
    assert occasions.used(coming[AHEAD_MAX], 0.3)
    assert len(occasions.ahead(0.3)) == 2, "that one's place, and one more"


def test_after_a_while_others_are_asked_for_instead_of_what_others_use() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 60), 0.0)
    for one in occasions.ahead(0.0):
        occasions.in_vain(one, 0.0)
    now_s = AGAIN_WITHIN_S
    occasions.listed(Ino(30), [], now_s)
    occasions.is_one(B, now_s)
    occasions.is_one(C, now_s)
    assert occasions.ahead(now_s) == inos(31, 30 + AHEAD_MAX)


def test_what_was_not_asked_for_ahead_is_in_nobodys_way() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 60), 0.0)
    for ino in inos(100, 120):
        occasions.wait(ino, 0.0)
    assert len(occasions.ahead(0.0)) == AHEAD_MAX


def test_what_is_not_used_for_long_is_in_nobodys_way() -> None:
    """A program that looks at some again and again keeps them from being given back."""
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 60), 0.0)
    assert len(occasions.ahead(0.0)) == AHEAD_MAX
    for ino in (1003, 1004):
        occasions.is_one(Ino(ino), AHEAD_S)
    occasions.listed(Ino(30), [], AHEAD_S)
    assert occasions.ahead(AHEAD_S) == inos(31, 30 + AHEAD_MAX)
    assert not occasions.is_ahead(Ino(10))


def test_a_directory_in_two_listings_is_asked_for_once() -> None:
    """It was moved from the one to the other."""
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 12), 0.0)
    occasions.listed(B, inos(12, 14), 0.0)
    assert occasions.ahead(0.0) == [*inos(12, 14), *inos(10, 11)]


class _CountingInt(int):
    """How often it is looked for, or put anywhere."""

    hashes = 0

    def __hash__(self) -> int:
        _CountingInt.hashes += 1
        return int.__hash__(self)


def test_a_huge_directory_costs_no_more_for_each_one_in_it() -> None:
    """Neither where it is listed in pieces, nor where the program goes on to the next one."""
    costs = []
    for number in (REMEMBERED_MAX // 8, REMEMBERED_MAX):
        coming = [Ino(_CountingInt(ino)) for ino in inos(10_001, 10_000 + number)]
        occasions = going_through(0.0)
        _CountingInt.hashes = 0
        for begin in range(0, number, 16):
            occasions.listed(A, coming[begin : begin + 16], 0.0)
        assert occasions.ahead(0.0) == coming[:AHEAD_MAX]
        for ino in coming:
            assert occasions.used(ino, 0.0)
            occasions.ahead(0.0)
        assert not occasions._listings
        costs.append(_CountingInt.hashes / number)
    assert costs[1] < 1.2 * costs[0] < 100


def test_what_is_passed_makes_room_for_what_is_read_then() -> None:
    occasions = going_through(0.0)
    many = inos(10_001, 10_000 + REMEMBERED_MAX)
    for begin in range(0, REMEMBERED_MAX, 100):
        occasions.listed(A, many[begin : begin + 100], 0.0)
    occasions.listed(A, inos(50_000, 50_100), 0.0)
    assert [*occasions._listings[A].coming] == many
    occasions.listed(many[-3], [], 0.1)
    occasions.listed(A, inos(60_000, 60_100), 0.1)
    assert occasions.ahead(0.1) == [*many[-2:], *inos(60_000, 60_005)]


def test_what_was_passed_by_is_asked_for_no_more() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 40), 0.0)
    occasions.listed(Ino(30), [], 0.1)
    assert occasions.ahead(0.1) == inos(31, 30 + AHEAD_MAX)


def test_a_directory_is_walked_into_before_the_next_one_beside_it() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 40), 0.0)
    occasions.listed(Ino(10), inos(50, 52), 0.1)
    assert occasions.ahead(0.1) == [*inos(50, 52), *inos(11, 15)]


def test_a_long_directory_is_listed_in_pieces() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 12), 0.0)
    occasions.listed(A, inos(13, 14), 0.1)
    assert occasions.ahead(0.1) == inos(10, 14)


def test_a_listing_that_nobody_follows_any_more_is_left() -> None:
    """Until somebody goes on in it."""
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 40), 0.0)
    later_s = AGAIN_WITHIN_S + 0.1
    for number in (1003, 1004):
        occasions.is_one(Ino(number), later_s)
    assert occasions.ahead(later_s) == []
    occasions.listed(Ino(10), [], later_s)
    assert occasions.ahead(later_s) == inos(11, 10 + AHEAD_MAX)


def test_who_uses_what_was_asked_for_ahead_still_goes_through_the_tree() -> None:
    occasions = going_through(0.0)
    occasions.listed(A, inos(10, 40), 0.0)
    now_s = 0.0
    for ino in inos(10, 20):
        now_s += AGAIN_WITHIN_S / 2
        occasions.ahead(now_s)
        assert occasions.used(ino, now_s)
    assert occasions.ahead(now_s)


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
    for number in range(1, LISTINGS_MAX + 10):
        occasions.listed(Ino(number), inos(10_000, 10_010 + REMEMBERED_MAX), 0.0)
    assert len(occasions._listings) == LISTINGS_MAX
    assert all(len(one.coming) == REMEMBERED_MAX for one in occasions._listings.values())
    assert not occasions.may_ask(Ino(REMEMBERED_MAX), 0.0)
