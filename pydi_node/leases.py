"""Leases: who may answer from what it knows, and when a change has reached everybody who may.

Called by replica.py. Pure: times come in, messages go out. docs/architecture.md, "Leases", has the
whole story and the proof; this is one node's part of it.

    follower ── Renew(dropped) ──► leader     I and my mounts no longer use anything older than this
    follower ◄── Grant(valid) ──── leader     until then you may answer without asking
             ◄── Grant(released) ─            everybody who may has dropped what is older; at once
                                              to nodes in use, else with the next answer

A change is answered when it is *released*: every node with a live lease, and every mount that
relies on such a node, has dropped what the change made stale. A holder that says nothing is waited
for until its lease is over. Times are seconds of a clock that goes on while the machine sleeps.

Why a lease ends at its holder before it ends at the leader:

* A grant counts from when its Renew left, on the holder's clock; the leader remembers it from when
  that Renew came in, which is later, and longer: GRANTER_S / HOLDER_S is how much faster one clock
  may be than another.
* A grant is never worth more than the leader's own certainty: it ends HOLDER_S after the last
  moment at which a majority certainly followed this leader (it echoes the leader's stamps). A
  successor was elected after that moment, and takes each member for a holder until it has heard
  from it, or GRANTER_S have passed. Once a majority has told when it last heard from an earlier
  leader, GRANTER_S count from the latest of these moments: somebody in there was of the majority
  that the earlier leader was certain of.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from pydi_node.consensus.quorum import majority
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import NO_INDEX, Membership
from pydi_node.errors import RemoteProtocolError
from pydi_node.ids import LogIndex, NodeNumber, Term
from pydi_node.records import Result

# A lease is a promise in both directions: the longer, the longer a change waits for a node that
# hangs (DESIGN section 4: at most 2 s) and for a member that died with the leader.
HOLDER_S = 1.0
GRANTER_S = (
    1.2  # so one clock may run up to 9 % too fast and another 9 % too slow; real ones 0.01 %
)
RENEW_S = 0.1  # ten tries before a lease ends
# A holder that renews but does not drop what it should (a mount behind it hangs) is refused after
# this; with what is left of its lease that makes 2 s.
PATIENCE_S = 0.8
# A Renew may wait so long for its answer when a Grant to everyone is about to be sent anyway.
ANSWER_S = 0.04
WANTED_S = (
    5.0  # after the last use; a node that nobody asks holds no lease, and nobody waits for it
)

_US = 1_000_000


class Renew(NamedTuple):
    """A member reports, and asks for a lease; also what leaders know of members' terms."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: int  # random, one for each run of the sender
    asked_us: int  # the sender's clock
    heard_us: int  # newest Grant.stamp_us of this leader; 0: none yet
    followed_us: int  # the sender's clock: a leader of an earlier term was last heard before this
    dropped: LogIndex  # nothing here is answered out of a state older than this any more
    wanted: bool  # False: the sender holds no lease and wants none


class Grant(NamedTuple):
    """Sent to every node in use when ``released`` has grown; also the answer to a Renew."""

    sender: NodeNumber
    to: NodeNumber
    term: Term
    session: int  # of the Renew; 0: it answers none
    asked_us: int  # of the Renew
    stamp_us: int  # the leader's clock
    valid_us: int  # the lease lasts so long from asked_us on; 0: no lease
    released: LogIndex


class _Answer(NamedTuple):
    """What a Grant says of one Renew. Units as there."""

    session: int = 0
    asked_us: int = 0
    valid_us: int = 0


@dataclass(slots=True)
class _Holder:
    """Somebody who may rely on a lease."""

    until_s: float  # not later than this, by the granter's clock
    dropped: LogIndex  # what it said last
    asked_us: int = 0  # its clock, in the newest thing it said
    goal: LogIndex = NO_INDEX  # what it is expected to drop ...
    goal_s: float = -inf  # ... since then


class Granter:
    """A leader's book of leases; a new one for each term that it leads."""

    def __init__(
        self,
        raft: Raft,
        floor: LogIndex,
        presumed: Iterable[NodeNumber],
        followed_s: float,
        now_s: float,
    ) -> None:
        """floor  at least this leader's first entry: everything released before is below it.
        presumed  who may still hold a lease of an earlier leader.
        followed_s  when this node last heard from one."""
        self._raft = raft
        self.term = raft.term
        self.floor = floor
        self._holders: dict[tuple[NodeNumber, int], _Holder] = {
            (number, 0): _Holder(now_s + GRANTER_S, NO_INDEX) for number in presumed
        }
        # By voter: a moment at or after which it was in this term.
        self._followed_s: dict[NodeNumber, float] = {}
        # Of those who could elect this leader, not of later ones: when each that has come to this
        # term last heard from an earlier leader, or led.
        self._electors = raft.membership.voters
        self._earlier_s: dict[NodeNumber, float] = {raft.node: followed_s}
        self._forget_earlier()

    def confirmed_s(self, now_s: float) -> float:
        """The latest moment at which a majority certainly followed this leader."""
        raft = self._raft
        voters = raft.membership.voters
        moments = sorted(
            (now_s if v == raft.node else self._followed_s.get(v, -inf) for v in voters),
            reverse=True,
        )
        return moments[majority(len(voters)) - 1]

    def renewed(self, message: Renew, own: LogIndex, released: LogIndex, now_s: float) -> float:
        """How long the sender may rely on its tree from ``message.asked_us`` on; 0: not at all.

        own  what this node has dropped itself: what the others are expected to reach.
        RemoteProtocolError  it says what it can't know.
        """
        raft, node = self._raft, message.sender
        if message.followed_us > message.asked_us:
            raise RemoteProtocolError(f"lease: node {node} heard from a leader of the future")
        if message.dropped > raft.last_index:
            raise RemoteProtocolError(
                f"lease: node {node} dropped {message.dropped}, the log ends at {raft.last_index}"
            )
        followed_s = min(message.heard_us / _US, now_s)
        if message.heard_us:
            self._followed_s[node] = max(self._followed_s.get(node, -inf), followed_s)
        if node not in self._earlier_s:
            self._earlier_s[node] = now_s - (message.asked_us - message.followed_us) / _US
            self._forget_earlier()
        presumed = self._holders.pop((node, 0), None)
        key = (node, message.session)
        holder = self._holders.get(key)
        if not message.wanted:
            # Unless it asked for one since: two connections at a time may carry its messages.
            if holder is not None and message.asked_us > holder.asked_us:
                del self._holders[key]
            return 0.0
        if holder is None:
            holder = _Holder(presumed.until_s if presumed is not None else now_s, message.dropped)
            self._holders[key] = holder
        holder.asked_us = max(holder.asked_us, message.asked_us)
        # Not the highest of all it said: a late message may only make the leader wait longer.
        holder.dropped = message.dropped
        valid_s = HOLDER_S - (now_s - self.confirmed_s(now_s))
        if (
            self._is_overdue(holder, own, now_s)
            or message.dropped < max(self.floor, released)
            # A successor knows every member that was ever committed, so it waits for this one; but
            # not for long when its log has, as this one, that the member leaves.
            or raft.snapshot_meta(raft.commit_index).membership.member(node) is None
            or raft.membership.member(node) is None
            or valid_s <= 0
        ):
            return 0.0
        holder.until_s = max(holder.until_s, now_s + GRANTER_S)
        return valid_s

    def _forget_earlier(self) -> None:
        """Leases of earlier leaders end GRANTER_S after a majority followed one for the last time.

        Such a leader was certain of a majority up to some moment. Any majority of now has one in
        common with it, or with the one by which the next leader's voters were committed: a node
        that heard from a leader, or led, at that moment or later, and does not any more.
        """
        moments = sorted(s for number, s in self._earlier_s.items() if number in self._electors)
        needed = majority(len(self._electors))
        if len(moments) < needed:
            return
        for (_, session), holder in self._holders.items():
            if not session:
                holder.until_s = min(holder.until_s, moments[needed - 1] + GRANTER_S)

    def _is_overdue(self, holder: _Holder, goal: LogIndex, now_s: float) -> bool:
        if holder.dropped >= holder.goal:
            holder.goal, holder.goal_s = goal, now_s
        return holder.dropped < holder.goal and now_s - holder.goal_s > PATIENCE_S

    def release(self, own: LogIndex, now_s: float) -> LogIndex:
        """Up to where everybody who may rely on a lease, and this node, has dropped."""
        lowest = own
        for key, holder in list(self._holders.items()):
            if holder.until_s <= now_s:
                del self._holders[key]
            elif holder.dropped < lowest:
                lowest = holder.dropped
        return lowest


class Leases:
    """One node's leases: its own, and while it leads those of the others."""

    def __init__(self, raft: Raft, dropped: LogIndex, now_s: float) -> None:
        """dropped  the tree's applied index: no cache here is older than this run."""
        self._raft = raft
        self._session = raft.config.seed & ((1 << 62) - 1) or 1
        self.released: LogIndex = NO_INDEX  # as far as it is known here; never goes back
        self.dropped = dropped
        self._granter: Granter | None = None
        self._said: LogIndex = NO_INDEX  # of ``released``, to everyone
        self._answers: dict[NodeNumber, _Answer] = {}  # what Renews get, not sent yet
        self._answer_s = inf  # when the first of them can't wait any more
        # Until when a node in use is told everything at once, and when that is looked at next.
        self._attentive_s: dict[NodeNumber, float] = {}
        self._attend_s = -inf
        self._until_s = -inf  # of a lease that another leader granted
        self._wanted_until_s = -inf
        self._heard: tuple[Term, int] = (Term(0), 0)  # newest stamp of the leader of a term
        self._given_up_us = 0  # a grant for a Renew before this came too late
        # The newest term with a leader that was heard from (or was this node), and until when; and
        # the same of all before it. An earlier run may have heard from one until now.
        self._followed: tuple[Term, float] = (Term(0), now_s)
        self._earlier_s = now_s
        # By the last Renew; no index: a lease is not wanted.
        self._reported: tuple[Term, NodeNumber, LogIndex | None] | None = None
        self._next_s = -inf
        # Members that left, and when: they may hold a lease for a while.
        self._members = _numbers(raft.membership)
        self._left_s: dict[NodeNumber, float] = {
            number: now_s
            for membership in raft.memberships
            for number in _numbers(membership) - self._members
        }

    # --- for whoever answers ----------------------------------------------------------------------

    def remaining_s(self, now_s: float) -> float:
        """How long this node's tree will hold everything acknowledged anywhere, so that nobody need
        be asked; <= 0: it may not even now. now_s: of this very moment, not of the last step."""
        granter = self._granter
        if granter is None:
            return self._until_s - now_s
        if self.dropped < granter.floor:
            return 0.0  # what earlier leaders committed may not be applied here yet
        return granter.confirmed_s(now_s) + HOLDER_S - now_s

    def want(self, now_s: float) -> None:
        """Somebody here would use a lease."""
        if now_s >= self._wanted_until_s:
            self._next_s = -inf
        self._wanted_until_s = now_s + WANTED_S

    # --- for the replica --------------------------------------------------------------------------

    def role_changed(self, now_s: float) -> None:
        """This node leads, or another one, or nobody."""
        raft, granter = self._raft, self._granter
        self._next_s = -inf
        if granter is not None and (raft.leader != raft.node or granter.term != raft.term):
            self._follow(granter.term, now_s)
            self._granter = None
        if raft.leader != raft.node:
            # A lease of an earlier leader goes on: its successors wait for its end.
            self._answers.clear()
            return
        if self._granter is None:
            left = {n for n, left_s in self._left_s.items() if now_s - left_s < GRANTER_S}
            self._until_s = self._attend_s = -inf
            self._answers.clear()
            self._attentive_s.clear()
            self._granter = Granter(
                raft, raft.last_index, sorted((self._members | left) - {raft.node}),
                self._followed_before(raft.term), now_s,
            )  # fmt: skip

    def heard_from_leader(self, now_s: float) -> None:
        """Something came from the leader of this term."""
        self._follow(self._raft.term, now_s)

    def _follow(self, term: Term, now_s: float) -> None:
        newest, until_s = self._followed
        if term < newest:
            self._earlier_s = max(self._earlier_s, now_s)
            return
        if term > newest:
            self._earlier_s = max(self._earlier_s, until_s)
        self._followed = (term, now_s)

    def _followed_before(self, term: Term) -> float:
        newest, until_s = self._followed
        return max(self._earlier_s, until_s) if newest < term else self._earlier_s

    def members_changed(self, membership: Membership, now_s: float) -> None:
        """The newest membership in the log."""
        members = _numbers(membership)
        self._left_s |= dict.fromkeys(self._members - members, now_s)
        # One that came and left again in what came together.
        passed = {number for known in self._raft.memberships for number in _numbers(known)}
        for number in passed - members:
            self._left_s.setdefault(number, now_s)
        self._members = members

    def forgets_too_early(self, now_s: float) -> bool:
        """Whether somebody who left may hold a lease still: until then the log has to say so, for
        whoever starts, or gets its snapshot, might lead next."""
        return any(now_s - left_s < GRANTER_S for left_s in self._left_s.values())

    def on_renew(self, message: Renew, now_s: float) -> None:
        """Heeds it, if this node leads that term; ``advance`` says when it is answered."""
        granter = self._granter
        if granter is None or not message.term == granter.term == self._raft.term:
            return
        valid_s = granter.renewed(message, self.dropped, self.released, now_s)
        if message.wanted:
            self.heard(message.sender, now_s)
        self._answer(
            message.sender,
            _Answer(message.session, message.asked_us, int(valid_s * _US)),
            now_s,
        )

    def _answer(self, number: NodeNumber, answer: _Answer, now_s: float) -> None:
        if not self._answers:
            self._answer_s = now_s + ANSWER_S
        self._answers[number] = answer

    def heard(self, number: NodeNumber, now_s: float) -> None:
        """Somebody uses that node: for a while it is told at once what is committed and released.

        To be called when it forwards a command or asks for an index to read at. A node that nobody
        uses learns of both within a tenth of a second, which saves messages of every batch.
        """
        if now_s >= self._attentive_s.get(number, -inf) and number not in self._answers:
            self._answer(number, _Answer(), now_s)  # with what was released in the meantime
        self._attentive_s[number] = now_s + WANTED_S
        self._raft.attend(number, True)

    def on_grant(self, message: Grant) -> None:
        raft = self._raft
        if message.term != raft.term or message.sender != raft.leader:
            return
        self.released = max(self.released, message.released)
        term, heard_us = self._heard
        if term != message.term:
            # The leader can be certain of nothing before it has seen this stamp again.
            heard_us, self._next_s = 0, -inf
        self._heard = (message.term, max(heard_us, message.stamp_us))
        if (
            message.session == self._session
            and message.valid_us
            and message.asked_us > self._given_up_us
        ):
            self._until_s = max(self._until_s, (message.asked_us + message.valid_us) / _US)

    def advance(self, now_s: float) -> Sequence[Renew | Grant]:
        """What is to be said now; looks at what is released."""
        if not self._raft.term_is_durable:
            return ()  # nobody may hear of it yet
        if self._granter is not None:
            return self._grants(self._granter, now_s)
        leader = self._raft.leader
        if leader is None:
            return ()
        wanted = now_s < self._wanted_until_s
        # What was dropped matters to the leader while it knows of a lease; so does its end.
        report = (self._raft.term, leader, self.dropped if wanted else None)
        if now_s < self._next_s and report == self._reported:
            return ()
        self._next_s = now_s + RENEW_S
        self._reported = report
        asked_us = int(now_s * _US)
        if not wanted:
            self._until_s, self._given_up_us = -inf, asked_us
        term, heard_us = self._heard
        return [
            Renew(
                self._raft.node, leader, self._raft.term, self._session, asked_us,
                heard_us if term == self._raft.term else 0,
                int(self._followed_before(self._raft.term) * _US), self.dropped, wanted,
            )
        ]  # fmt: skip

    def _attend(self, now_s: float) -> None:
        self._attend_s = now_s + RENEW_S
        for number in self._members:
            self._raft.attend(number, now_s < self._attentive_s.get(number, -inf))

    def _grants(self, granter: Granter, now_s: float) -> Sequence[Grant]:
        self.released = max(self.released, granter.release(self.dropped, now_s))
        raft, node = self._raft, self._raft.node
        if now_s >= self._attend_s:
            self._attend(now_s)
        if self.released != self._said:
            to = {number for number, until_s in self._attentive_s.items() if now_s < until_s}
            to |= self._answers.keys()
        elif self.released < raft.last_index and now_s < self._answer_s:
            return ()  # it will grow in a moment
        else:
            to = set(self._answers)
        self._said = self.released
        answers, self._answers = self._answers, {}
        grants = []
        for number in sorted(to - {node}):
            session, asked_us, valid_us = answers.get(number, _Answer())
            grants.append(
                Grant(
                    node, number, raft.term, session, asked_us, int(now_s * _US), valid_us,
                    self.released,
                )
            )  # fmt: skip
        return grants


class Unreleased:
    """Answers that wait until the index that they speak of is released."""

    def __init__(self) -> None:
        self._heap: list[tuple[LogIndex, int, float, Result]] = []  # of what ``hold`` got

    def __len__(self) -> int:
        return len(self._heap)

    def hold(self, index: LogIndex, waiters: Iterable[tuple[int, float]], result: Result) -> None:
        """waiters  (request, deadline)."""
        for request, deadline_s in waiters:
            heapq.heappush(self._heap, (index, request, deadline_s, result))

    def take(self, released: LogIndex) -> list[tuple[int, Result]]:
        """(request, answer) of all that need wait no longer, in the order of the log."""
        answers = []
        while self._heap and self._heap[0][0] <= released:
            _, request, _, result = heapq.heappop(self._heap)
            answers.append((request, result))
        return answers

    def expire(self, now_s: float) -> tuple[list[int], float]:
        """Requests past their deadline, which leave, and the next deadline."""
        late = [held[1] for held in self._heap if held[2] <= now_s]
        if late:
            self._heap = [held for held in self._heap if held[2] > now_s]
            heapq.heapify(self._heap)
        return late, min((held[2] for held in self._heap), default=inf)


def _numbers(membership: Membership) -> set[NodeNumber]:
    return {member.number for member in membership.members}
