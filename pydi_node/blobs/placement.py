"""Which nodes get the copies of a blob: pure choice, no IO, no randomness.

Called for every new blob and by repair. Same arguments, same answer, so two nodes that know the
same agree. It must never choose a node that should take nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pydi_node.ids import NodeNumber

# Below this share of its disk, what a node reports as free is gone before the next report.
NEARLY_FULL_PERCENT = 1

# Below this part of a disk what blobs may still take is a matter of hours: history makes room.
SHORT_PERCENT = 2

_FILL_SCALE = 1 << 64  # fill levels as integers, so that the order is the same on every machine


class NodeState(NamedTuple):
    """What is known of one node, from its last report."""

    number: NodeNumber
    up: bool
    draining: bool
    witness: bool  # votes only, never holds blobs
    stored_bytes: int  # content of its blobs
    free_bytes: int  # what blobs may still take, its reserve not counted (Usage.free)
    total_bytes: int  # size of its disk
    files: int  # number of its blobs


def choose(
    candidates: Sequence[NodeState],
    count: int,
    first: NodeNumber | None = None,
    exclude: Collection[NodeNumber] = (),
    size: int = 0,
) -> list[NodeNumber]:
    """At most ``count`` different nodes for copies of one blob, best first; fewer when no more can.

    candidates  in any order, each number once.
    first       the node the client talks to: gets the first copy when it can take one.
    exclude     nodes that have a copy already, or just failed to take one.
    size        bytes of the blob; 0 while it is not known.
    The others come in order of how full they are: stored bytes in proportion to the room for blobs,
    then number of files, then node number.
    """
    eligible = [c for c in candidates if c.number not in exclude and can_take(c, size)]
    eligible.sort(key=lambda c: (c.number != first, emptiness(c)))
    return [candidate.number for candidate in eligible[: max(0, count)]]


def emptiness(node: NodeState) -> tuple[int, int, NodeNumber]:
    """The order in which nodes should get copies: smaller first."""
    return _fill(node), node.files, node.number


def can_take(node: NodeState, size: int) -> bool:
    """Whether a new blob of ``size`` bytes may go there at all."""
    if not node.up or node.draining or node.witness:
        return False
    return node.free_bytes - size > node.total_bytes * NEARLY_FULL_PERCENT // 100


def any_is_full(nodes: Sequence[NodeState]) -> bool:
    """Whether what every node keeps, names and small content, would take one to its reserve, which
    is for deleting. A node of which nothing is known yet has a total of 0."""
    return any(n.up and n.total_bytes and not n.free_bytes for n in nodes)


def is_short(nodes: Sequence[NodeState], copies: int) -> bool:
    """Whether new blobs will soon not find room for all their copies, though nodes are there."""
    storing = [n for n in nodes if n.up and not n.draining and not n.witness]
    roomy = [n for n in storing if n.free_bytes * 100 >= n.total_bytes * SHORT_PERCENT]
    return len(roomy) < min(copies, len(storing))


def _fill(node: NodeState) -> int:
    """How full it is, 0 .. _FILL_SCALE, by what blobs use of what blobs could use."""
    return node.stored_bytes * _FILL_SCALE // max(1, node.stored_bytes + node.free_bytes)
