"""Majority arithmetic against a second implementation that only counts."""

from __future__ import annotations

import itertools

import pytest

from pydi_node.consensus.quorum import VoteResult, majority, majority_index, vote_result
from tests.unit.consensus.simulation import Dice


def dumb_majority_index(indexes: list[int]) -> int:
    """The largest index for which more than half say at least as much; tried one by one."""
    best = 0
    for candidate in range(max(indexes) + 1):
        if 2 * sum(1 for index in indexes if index >= candidate) > len(indexes):
            best = candidate
    return best


def dumb_vote_result(votes: dict[int, bool], voters: list[int]) -> VoteResult:
    """By trying every way in which the missing votes may fall."""
    missing = [voter for voter in voters if voter not in votes]
    outcomes = set()
    for rest in itertools.product([True, False], repeat=len(missing)):
        full = {v: votes[v] for v in voters if v in votes} | dict(zip(missing, rest, strict=True))
        outcomes.add(2 * sum(full.values()) > len(voters))
    if outcomes == {True}:
        return VoteResult.WON
    return VoteResult.LOST if outcomes == {False} else VoteResult.PENDING


def test_majority_index_equals_counting() -> None:
    """The committed index agrees with the dumb twin on 20,000 random inputs."""
    dice = Dice(1)
    for _ in range(20_000):
        indexes = [dice.below(dice.pick([2, 5, 12])) for _ in range(dice.between(1, 7))]
        assert majority_index(indexes) == dumb_majority_index(indexes), indexes


def test_vote_result_equals_trying_all_outcomes() -> None:
    """An election is decided exactly when no missing vote can change it; strangers don't count."""
    dice = Dice(2)
    for _ in range(5_000):
        voters = list(range(1, dice.between(1, 6) + 1))
        votes = {n: dice.percent(50) for n in range(1, 9) if dice.percent(50)}
        assert vote_result(votes, voters) is dumb_vote_result(votes, voters), (votes, voters)


@pytest.mark.parametrize("count", range(1, 10))
def test_any_two_majorities_share_a_member(count: int) -> None:
    """Two majorities can't be disjoint, and nothing smaller than a majority has that property."""
    assert 2 * majority(count) > count
    assert 2 * (majority(count) - 1) <= count


def test_majorities_of_sets_one_apart_overlap() -> None:
    """Thesis 4.1: adding or removing one voter leaves no disjoint majorities."""
    for count in range(1, 9):
        assert majority(count) + majority(count + 1) > count + 1


def test_no_voters_is_refused() -> None:
    """A majority of nobody is a bug of the caller, not a victory."""
    with pytest.raises(AssertionError):
        majority(0)
