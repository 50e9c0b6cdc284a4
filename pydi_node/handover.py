"""When a leader hands over to the node whose clients it works for. Called by replica.py; pure.

A command of another node's client costs a message to the leader, one back that it is certain, and
the wait for both; on the leader's own node it costs none. So leadership goes to where the commands
come from: a mount that works alone on its node has the leader beside it soon.

What must not happen is worth more than what may be won, so it takes all of this:

* For two whole windows nearly all commands came through one node. Between two nodes that are used
  about equally nothing moves.
* A leader stays for ``hold_s``, whatever happens, so leadership moves no oftener than that.
* Everybody answers. A new leader takes each member for the holder of a lease until it has heard
  from it (leases.py); with one that is silent all answers would pause for more than a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydi_node.consensus.progress import ProgressState
from pydi_node.consensus.types import PeerStatus, Status
from pydi_node.ids import LogIndex, NodeNumber
from pydi_node.records import NodeInfo


@dataclass(frozen=True, slots=True)
class HandoverConfig:
    """What is nearly all, and for how long. Seconds of Now.mono_s."""

    window_s: float = 2.0  # longer than one `tar` of a few files; short for whoever works
    commands_min: int = 20  # in a window; less work is not worth an election
    hold_s: float = 10.0  # inf: never


class Demand:
    """Through which nodes commands come to a leader; a new one for each time that it leads."""

    def __init__(self, config: HandoverConfig, now_s: float) -> None:
        self._config = config
        self._counts: dict[NodeNumber, int] = {}
        self._winner: NodeNumber | None = None  # of the last window
        self._window_end_s = now_s + config.window_s
        self._held_until_s = now_s + config.hold_s

    def count(self, number: NodeNumber) -> None:
        """A new command came through that node, the leader's own one included.

        Not to be called for commands that make room: a node with a full disk forwards those alone,
        and must not be thought of as a leader.
        """
        self._counts[number] = self._counts.get(number, 0) + 1

    def favourite(self, now_s: float) -> NodeNumber | None:
        """The node through which more than three of four commands came, in the last window and in
        the one before it; asked with every tick, told once for a window.

        In one window alone there may be nothing but the end of what all nodes did together.
        """
        if now_s < self._window_end_s:
            return None
        self._window_end_s = now_s + self._config.window_s
        counts, self._counts = self._counts, {}
        before, self._winner = self._winner, None
        total = sum(counts.values())
        if total >= self._config.commands_min:
            most = max(counts, key=lambda number: (counts[number], -number))
            self._winner = most if counts[most] * 4 > total * 3 else None
        return self._winner if self._winner == before and now_s >= self._held_until_s else None

    def handed_over(self, now_s: float) -> None:
        """It was tried; not again before a leader would move again."""
        self._held_until_s = now_s + self._config.hold_s


def can_lead(
    number: NodeNumber, status: Status, silent_ticks_max: int, nodes: Iterable[NodeInfo]
) -> bool:
    """Whether this leader could hand over to ``number`` now, and nobody would notice.

    status            the leader's own.
    silent_ticks_max  who has not answered for longer may be gone.
    nodes             the books: no leader is made of a witness, or of a node that is to go.
    """
    for peer in status.peers:
        if peer.silent_ticks > silent_ticks_max or peer.state != ProgressState.REPLICATE.value:
            return False
        if peer.number == number and not (peer.voter and peer.match_index >= status.commit_index):
            return False
    return any(peer.number == number for peer in status.peers) and all(
        node.state == "up" and not node.witness for node in nodes if node.number == number
    )


def next_in_turn(status: Status) -> NodeNumber | None:
    """To whom a leader hands over that must not lead, when it can't know who should: whoever must
    not either does the same, and so everyone's turn comes. None: no other voter is there."""
    voters = [peer.number for peer in status.peers if peer.voter and peer.active]
    return min(voters, key=lambda number: (number < status.node, number), default=None)


def advance(peer: PeerStatus) -> tuple[LogIndex, int]:
    """Most advanced first, the lower number among equals."""
    return (peer.match_index, -peer.number)
