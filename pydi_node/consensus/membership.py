"""What a change of one member makes of a membership. Pure; for raft.py only.

Why one at a time is safe (thesis 4.1): two memberships that differ in one voter have no disjoint
majorities, so any majority of the old and any of the new share a node, and that node votes once
in a term and keeps what it acknowledged. raft.py keeps to it with two rules:

- a change is proposed only when the one before it is committed;
- and only when the leader has committed an entry of its own term. Without it two leaders that
  never heard of each other's uncommitted change could each step away from the common membership
  by one, in different directions, and end two apart (Ongaro, raft-dev, July 2015).

A membership is in force as soon as it is in a node's log, committed or not, and again out of
force when that entry is truncated.
"""

from __future__ import annotations

from pydi_node.consensus.types import (
    MEMBERS_MAX,
    VOTERS_MAX,
    ChangeKind,
    Member,
    Membership,
    MembershipChange,
)
from pydi_node.errors import UserError
from pydi_node.ids import NODE_NUMBER_MAX, LogIndex


def changed(membership: Membership, change: MembershipChange, index: LogIndex) -> Membership:
    """The membership after ``change``, whose entry will stand at ``index``.

    UserError  with a sentence: the change makes no sense, and would not later either.
    """
    kind, number, promote = change
    if not 1 <= number <= NODE_NUMBER_MAX:
        raise UserError(f"a node number is 1 to {NODE_NUMBER_MAX}, not {number}")
    old = membership.member(number)
    if kind is ChangeKind.ADD_LEARNER:
        if old is not None and old.voter:
            raise UserError(f"node {number} is a voter already")
        if old is None and len(membership.members) >= MEMBERS_MAX:
            raise UserError(f"a cluster has at most {MEMBERS_MAX} members")
        session = index if old is None else old.session
        return _with(membership, Member(number, False, promote, session))
    if old is None:
        raise UserError(f"node {number} is not a member")
    if kind is ChangeKind.PROMOTE:
        if old.voter:
            raise UserError(f"node {number} is a voter already")
        if len(membership.voters) >= VOTERS_MAX:
            raise UserError(f"a cluster has at most {VOTERS_MAX} voters")
        return _with(membership, Member(number, True, False, old.session))
    if old.voter and len(membership.voters) == 1:
        raise UserError(f"node {number} is the last voter")
    if kind is ChangeKind.DEMOTE:
        if not old.voter:
            raise UserError(f"node {number} is not a voter")
        return _with(membership, Member(number, False, False, old.session))
    assert kind is ChangeKind.REMOVE, kind
    return Membership(tuple(m for m in membership.members if m.number != number))


def _with(membership: Membership, member: Member) -> Membership:
    others = [m for m in membership.members if m.number != member.number]
    return Membership(tuple(sorted([*others, member])))
