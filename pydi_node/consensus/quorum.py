"""Majority arithmetic, and nothing else: how many, up to which index, has the vote been won.

For raft.py only. A set of no voters decides nothing: callers never ask about one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from pydi_node.ids import LogIndex, NodeNumber


class VoteResult(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"  # a majority can't be reached any more


def majority(voters_count: int) -> int:
    """The smallest count of which any two sets among ``voters_count`` share a member."""
    assert voters_count >= 1, voters_count
    return voters_count // 2 + 1


def majority_index(match_indexes: Sequence[LogIndex]) -> LogIndex:
    """The highest index that a majority has reached; one value for each voter."""
    return sorted(match_indexes, reverse=True)[majority(len(match_indexes)) - 1]


def vote_result(votes: Mapping[NodeNumber, bool], voters: Sequence[NodeNumber]) -> VoteResult:
    """Where an election stands; votes of anyone else than ``voters`` don't count."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    rejected = sum(1 for voter in voters if votes.get(voter) is False)
    needed = majority(len(voters))
    if granted >= needed:
        return VoteResult.WON
    if rejected > len(voters) - needed:
        return VoteResult.LOST
    return VoteResult.PENDING
