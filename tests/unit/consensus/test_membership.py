"""What one change makes of a membership, and which changes are nonsense."""

from __future__ import annotations

import pytest

from pydi_node.consensus.membership import changed
from pydi_node.consensus.quorum import majority
from pydi_node.consensus.types import (
    VOTERS_MAX,
    ChangeKind,
    Member,
    Membership,
    MembershipChange,
)
from pydi_node.errors import UserError
from tests.unit.consensus.simulation import Dice


def change(
    membership: Membership, kind: ChangeKind, number: int, promote: bool = False
) -> Membership:
    return changed(membership, MembershipChange(kind, number, promote), 77)


def test_a_new_learner_gets_the_entry_as_its_session() -> None:
    """The session of an added node is the index of the entry that adds it."""
    membership = change(Membership.founding(1), ChangeKind.ADD_LEARNER, 9, promote=True)
    assert membership.member(9) == Member(9, voter=False, promote=True, session=77)
    assert membership.voters == (1,)
    assert membership.learners == (9,)


def test_promotion_and_demotion_keep_the_session() -> None:
    """A node that only changes its role has not been away."""
    membership = Membership((Member(1, True), Member(2, False, True, 5)))
    promoted = change(membership, ChangeKind.PROMOTE, 2)
    assert promoted.member(2) == Member(2, voter=True, promote=False, session=5)
    demoted = change(promoted, ChangeKind.DEMOTE, 2)
    assert demoted.member(2) == Member(2, voter=False, promote=False, session=5)
    again = change(demoted, ChangeKind.ADD_LEARNER, 2, promote=True)
    assert again.member(2) == Member(2, voter=False, promote=True, session=5)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (ChangeKind.ADD_LEARNER, 1),  # a voter already
        (ChangeKind.ADD_LEARNER, 0),  # no node number
        (ChangeKind.ADD_LEARNER, 1 << 15),
        (ChangeKind.PROMOTE, 1),
        (ChangeKind.PROMOTE, 8),  # unknown
        (ChangeKind.DEMOTE, 2),  # no voter
        (ChangeKind.DEMOTE, 1),  # the last one
        (ChangeKind.REMOVE, 1),  # the last one
        (ChangeKind.REMOVE, 8),
    ],
)
def test_nonsense_is_refused_with_a_sentence(kind: ChangeKind, number: int) -> None:
    """What can never make sense raises UserError naming the node."""
    membership = Membership((Member(1, True), Member(2, False)))
    with pytest.raises(UserError, match=str(number)):
        change(membership, kind, number)


def test_a_sixth_voter_is_refused() -> None:
    """A cluster has at most five voters."""
    full = Membership.founding(*range(1, VOTERS_MAX + 1))
    with_learner = change(full, ChangeKind.ADD_LEARNER, 9)
    with pytest.raises(UserError, match="at most 5 voters"):
        change(with_learner, ChangeKind.PROMOTE, 9)


def test_voters_change_by_one_at_most() -> None:
    """Over random changes consecutive memberships differ in one member and share a majority."""
    dice = Dice(3)
    membership = Membership.founding(1, 2, 3)
    changes = 0
    for _ in range(2_000):
        kind, number = dice.pick(list(ChangeKind)), dice.between(1, 8)
        try:
            after = change(membership, kind, number, dice.percent(50))
        except UserError:
            continue
        changes += 1
        old, new = set(membership.voters), set(after.voters)
        assert len(old ^ new) <= 1, (membership, after)
        assert majority(len(old)) + majority(len(new)) > len(old | new)
        membership = after
    assert changes > 500
