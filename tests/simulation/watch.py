"""The invariants: looks at every node after each of its steps, and at all of them at the end.

Election safety, log matching, leader completeness and state machine safety (figure 3 of the Raft
paper), what a node may not forget (figure 2, persistent state), and what clients were promised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydi_node.commands import Envelope, Revoke
from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import (
    AppendRequest,
    AppendResponse,
    Entry,
    HardState,
    Membership,
    Role,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pydi_node.effects import PeerMessage
from pydi_node.ids import LogIndex, Term
from pydi_node.records import DELEGATED, Result
from pydi_node.tree import batches
from pydi_node.tree.machine import Tree
from tests.simulation.world import Violation

Key = tuple[int, int]  # (client, serial)


class Outcome(NamedTuple):
    """Where a command was applied first, and what came of it."""

    log_index: int
    result: Result


class _Promises:
    """What one node said to others; a restart must not make a liar of it."""

    def __init__(self) -> None:
        self.term = 0  # highest term in any message
        self.votes: dict[int, int] = {}  # term -> candidate
        self.acknowledged: tuple[int, int] = (0, 0)  # (term, index): entries that it has on disk


class Seen:
    """What was seen of one run of one node's program."""

    def __init__(self, raft: Raft) -> None:
        self.term = int(raft.term)
        self.commit = int(raft._log.front.index)
        self.applied = int(raft.applied_index)
        self.leads_term: int | None = None


class Watch:
    """Raises Violation as soon as a promise does not hold."""

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}  # term -> node
        # (index, term) -> digest of the entry, term before it. With unique predecessors, equal
        # (index, term) means equal logs up to there, by induction.
        self._entries: dict[Key, bytes] = {}
        self._previous: dict[Key, int] = {}
        self._committed: dict[int, int] = {}  # index -> term
        self._certain_since: dict[int, int] = {}  # index -> term of the leader that committed it
        self._applied: dict[int, tuple[int, object, Result | None]] = {}
        self._digests: dict[int, bytes] = {}
        self._promises: dict[int, _Promises] = {}
        self.newest_membership: tuple[int, Membership | None] = (0, None)  # applied somewhere
        self.outcomes: dict[Key, Outcome] = {}
        self.commit_max = 0
        self.acknowledged: dict[Key, Result] = {}
        self.acknowledged_max = 0  # highest log index of an acknowledged command
        # How much was seen: a life in which nothing happens proves nothing.
        self.elections = 0
        self.duplicates = 0  # commands that were in the log more than once
        self.digests_compared = 0
        self.memberships = 0
        self.installs = 0  # of snapshots
        self.handovers = 0  # of leadership, tried
        self.kept_out = 0  # commands that others' delegations kept from being executed
        self.revoked_max = 0  # log index of the last Revoke that ended a delegation

    def require(self, holds: bool, *facts: object) -> None:
        if not holds:
            raise Violation(*facts)

    # --- consensus --------------------------------------------------------------------------------

    def on_start(self, node: int, hard_state: HardState, last_index: int) -> None:
        """After a crash the disk has everything that others were told."""
        promises = self._promises.setdefault(node, _Promises())
        term, index = promises.acknowledged
        self.require(
            hard_state.term >= promises.term, "term forgotten", node, hard_state, promises.term
        )
        vote = promises.votes.get(hard_state.term)
        self.require(vote in (None, hard_state.vote), "vote forgotten", node, hard_state, vote)
        # The leader of a later term may have cut the log again.
        self.require(
            last_index >= index or hard_state.term > term, "entries forgotten", node, index, term
        )

    def on_send(self, node: int, messages: Sequence[PeerMessage]) -> None:
        """One vote per term; logs match in what leaders send."""
        promises = self._promises[node]
        for message in messages:
            if isinstance(message, (VoteRequest, VoteResponse)) and message.pre:
                continue
            term = int(getattr(message, "term", 0))
            promises.term = max(promises.term, term)
            if isinstance(message, AppendRequest):
                self._match(message.prev_term, message.entries)
            elif isinstance(message, TimeoutNow):
                self.handovers += 1
            elif isinstance(message, VoteRequest):
                self._vote(promises, node, term, node)
            elif isinstance(message, VoteResponse) and message.granted:
                self._vote(promises, node, term, message.to)
            elif isinstance(message, AppendResponse) and not message.rejected:
                promises.acknowledged = max(promises.acknowledged, (term, int(message.index)))

    def _vote(self, promises: _Promises, node: int, term: int, candidate: int) -> None:
        before = promises.votes.setdefault(term, candidate)
        self.require(before == candidate, "two votes", node, term, before, candidate)

    def _match(self, previous_term: int, entries: Sequence[Entry]) -> None:
        for index, term, kind, data in entries:
            content = hashlib.blake2b(data, digest_size=16, salt=b"%d" % kind).digest()
            known = self._entries.setdefault((index, term), content)
            self.require(known == content, "two entries at", index, term)
            before = self._previous.setdefault((index, term), previous_term)
            self.require(before == previous_term, "two logs before", index, term)
            previous_term = term

    def on_step(self, node: int, seen: Seen, raft: Raft) -> None:
        """After every step of a replica."""
        self.require(raft.term >= seen.term, "term went back", node, seen.term, raft.term)
        self.require(raft.commit_index >= seen.commit, "commit went back", node, seen.commit)
        self.require(raft.applied_index >= seen.applied, "applied went back", node, seen.applied)
        self.require(raft.applied_index <= raft.commit_index, "applied before committed", node)
        seen.term, seen.applied = raft.term, raft.applied_index
        if raft.commit_index > seen.commit:
            log = raft._log
            for index in range(max(seen.commit, log.front.index) + 1, raft.commit_index + 1):
                self._commit(index, int(log.term_at(LogIndex(index)) or 0))
                self._certain_since.setdefault(index, raft.term)
            seen.commit = raft.commit_index
            self.commit_max = max(self.commit_max, seen.commit)
        # A lone voter whose own vote is not on its disk has been elected by nobody yet: it says and
        # commits nothing, and when it is killed then, it never led.
        leads_term = int(raft.term) if raft.role is Role.LEADER and raft.term_is_durable else None
        if leads_term is not None and leads_term != seen.leads_term:
            self._on_leader(node, raft)
        seen.leads_term = leads_term

    def _commit(self, index: int, term: int) -> None:
        before = self._committed.setdefault(index, term)
        self.require(before == term, "committed twice, differently", index, before, term)

    def _on_leader(self, node: int, raft: Raft) -> None:
        """One leader in a term, and it has everything that was committed in earlier ones. It may
        learn of its election when a later term has its leader already, who commits more."""
        other = self._leaders.setdefault(raft.term, node)
        self.require(other == node, "two leaders in term", raft.term, other, node)
        self.elections += 1
        for index in range(raft.first_index, self.commit_max + 1):
            self.require(
                raft._log.term_at(LogIndex(index)) == self._committed[index]
                or self._certain_since.get(index, 0) > raft.term,
                "leader", node, "of term", raft.term, "lacks committed entry", index,
            )  # fmt: skip

    # --- the tree ---------------------------------------------------------------------------------

    def on_apply(
        self,
        entries: Sequence[tuple[LogIndex, Term, Envelope | None]],
        results: Sequence[Result],
    ) -> None:
        """The same entry with the same result at the same index everywhere; a (client, serial) has
        one result however often it is in the log."""
        for (index, term, envelope), result in zip(entries, results, strict=True):
            first_time = self._apply(index, term, envelope, result)
            if envelope is None or not first_time:
                continue
            if isinstance(envelope.command, Revoke) and result.value:
                self.revoked_max = index
            if envelope.client == 0:
                continue
            if result.errno == DELEGATED:
                self.kept_out += 1  # nothing happened, so far
                continue
            key = (int(envelope.client), int(envelope.serial))
            # A repetition is answered without the directories.
            outcome = self.outcomes.setdefault(key, Outcome(index, kept(result)))
            if outcome.log_index != index:
                self.duplicates += 1
                self.require(outcome.result == kept(result), "executed twice", key, outcome, result)

    def on_membership(self, index: LogIndex, term: Term, data: bytes) -> None:
        if index and self._apply(index, term, data, None):
            self.memberships += 1
            if index > self.newest_membership[0]:
                self.newest_membership = (index, codec.unpack_membership(data))

    def _apply(self, index: int, term: int, what: object, result: Result | None) -> bool:
        self._commit(index, term)  # the log may be cut behind it before anyone looks
        known = self._applied.get(index)
        if known is None:
            self._applied[index] = (term, what, result)
            return True
        self.require(known == (term, what, result), "applied differently at", index, known, result)
        return False

    def on_digest(self, tree: Tree) -> None:
        """Equal trees at equal applied indexes."""
        if tree.membership == (0, b""):
            return  # a node that waits to be added does not know who founded the cluster
        index, digest = tree.applied_index, tree.digest()
        if index in self._digests:
            self.digests_compared += 1
        self.require(self._digests.setdefault(index, digest) == digest, "trees differ at", index)

    # --- clients ----------------------------------------------------------------------------------

    def on_acknowledged(self, key: Key, result: Result, acknowledged_before: int) -> None:
        """Applied somewhere with this very result, and after all that was acknowledged before the
        command was sent for the first time (``acknowledged_before``: highest such index)."""
        result = kept(result)
        outcome = self.outcomes.get(key)
        self.require(outcome is not None, "acknowledged, but never applied", key)
        assert outcome is not None
        self.require(outcome.result == result, "acknowledged otherwise than applied", key, result)
        self.require(outcome.log_index > acknowledged_before, "took effect before it was sent", key)
        before = self.acknowledged.setdefault(key, result)
        self.require(before == result, "two answers to one command", key, before, result)
        self.acknowledged_max = max(self.acknowledged_max, outcome.log_index)

    def on_read(self, node: int, tree: Tree, acknowledged_before: int) -> None:
        """A read sees everything that was acknowledged before it was asked."""
        self.require(
            tree.applied_index >= acknowledged_before,
            "stale read on", node, tree.applied_index, acknowledged_before,
        )  # fmt: skip

    def nothing_lost(self, node: int, tree: Tree) -> None:
        """Every acknowledged result is found again in this tree, which has applied everything."""
        for (client, serial), result in self.acknowledged.items():
            found: Any = tree.session_result(client, serial)  # type: ignore[arg-type]  # plain keys
            self.require(found == result, "lost", client, serial, "on", node, found, result)


def kept(result: Result) -> Result:
    """What a repetition gets."""
    value = result.value
    if type(value) is tuple and type(value[0]) is tuple:  # of a Batch: records are no plain tuples
        return Result(0, batches.kept(value))
    return result.kept
