"""What to copy where and which copies to remove, so that every blob has as many as it should.

Pure. The leader's runtime asks: ``urgent`` says which sets of holders are in trouble (the tree
counts blobs by their holders), ``plan`` what to do for some of their blobs, ``health`` what
``pydi status`` shows. Same arguments, same answer.

A holder is one of these:

    staying   up, and meant to keep what it has
    leaving   up, but draining or a witness: a source, not a copy that counts
    away      not reachable for less than the grace time: counts, because it will be back
    lost      away for longer, or no member any more: does not count

A blob gets copies until staying and away together are the factor. A copy goes only when the staying
ones alone are the factor, and never one of those; so a plan that is carried out in part, late, or
twice leaves every blob that had a copy with one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pydi_node.blobs.placement import NodeState, can_take, choose, emptiness
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.records import BlobInfo, BlobTotal

Holders = tuple[NodeNumber, ...]  # ascending


class Copy(NamedTuple):
    """``target`` should hold the blob too."""

    info: BlobInfo
    target: NodeNumber


class Removal(NamedTuple):
    """``node`` need not hold the blob any longer, provided that all of ``keepers`` do."""

    blob: BlobId
    node: NodeNumber
    keepers: Holders


class Plan(NamedTuple):
    copies: list[Copy]  # most endangered first
    removals: list[Removal]


class Health(NamedTuple):
    """Numbers of blobs that some version names."""

    total: int
    full: int  # as many copies within reach as there should be
    under_replicated: int  # 1 .. factor - 1 copies within reach
    endangered: int  # of these: one copy within reach
    missing: int  # none


class _View(NamedTuple):
    """The nodes as repair sees them, and the factor."""

    nodes: dict[NodeNumber, NodeState]
    lost: Collection[NodeNumber]
    factor: int

    def staying(self, holders: Holders) -> list[NodeNumber]:
        return [n for n in holders if n in self.nodes and self._is_staying(self.nodes[n])]

    def missing(self, holders: Holders) -> int:
        """How many more copies it should have."""
        away = [
            n for n in holders
            if n in self.nodes and not self.nodes[n].up and n not in self.lost
            and not self._leaves(self.nodes[n])
        ]  # fmt: skip
        return self.factor - len(self.staying(holders)) - len(away)

    def sources(self, holders: Holders) -> int:
        """How many can be copied from now."""
        return sum(n in self.nodes and self.nodes[n].up for n in holders)

    def removable(self, holders: Holders) -> list[NodeNumber]:
        """Copies that may go, in the order in which they should: those on nodes that leave or are
        no members, then those on the fullest nodes."""
        staying = self.staying(holders)
        surplus = len(staying) - self.factor
        if surplus < 0:
            return []
        fullest = sorted(staying, key=lambda n: emptiness(self.nodes[n]), reverse=True)
        gone = [n for n in holders if n not in self.nodes]
        leaving = [
            n for n in holders
            if n in self.nodes and self.nodes[n].up and self._leaves(self.nodes[n])
        ]  # fmt: skip
        return [*gone, *leaving, *fullest[:surplus]]

    def has_room(self, holders: Holders) -> bool:
        """Whether any node could take one more copy of something small."""
        return any(can_take(node, 0) for n, node in self.nodes.items() if n not in holders)

    def _leaves(self, node: NodeState) -> bool:
        return node.draining or node.witness

    def _is_staying(self, node: NodeState) -> bool:
        return node.up and not self._leaves(node)


def urgent(
    totals: Sequence[BlobTotal],
    nodes: Sequence[NodeState],
    lost: Collection[NodeNumber],
    factor: int,
) -> list[Holders]:
    """The sets of holders whose blobs need something that can be done now, most endangered first.

    nodes  every member, each number once.
    lost   those of them that have been away for longer than the grace time.
    """
    view = _View({node.number: node for node in nodes}, lost, factor)
    found: list[tuple[int, Holders]] = []
    for total in totals:
        holders = total.holders
        can_copy = view.missing(holders) > 0 and view.sources(holders) and view.has_room(holders)
        if can_copy:
            found.append((view.sources(holders), holders))
        elif view.removable(holders):
            found.append((len(nodes) + 1, holders))  # saves room, nobody's safety
    return [holders for _, holders in sorted(found)]


def plan(
    blobs: Sequence[BlobInfo],
    nodes: Sequence[NodeState],
    lost: Collection[NodeNumber],
    factor: int,
    copies_max: int,
) -> Plan:
    """What to do for these blobs: at most ``copies_max`` copies, and all removals."""
    view = _View({node.number: node for node in nodes}, lost, factor)
    order = sorted(blobs, key=lambda info: (view.sources(info.holders), info.blob))
    copies: list[Copy] = []
    removals: list[Removal] = []
    for info in order:
        missing = view.missing(info.holders)
        if missing > 0 and view.sources(info.holders):
            states = list(view.nodes.values())
            for target in choose(states, missing, exclude=info.holders, size=info.size):
                if len(copies) == copies_max:
                    break
                copies.append(Copy(info, target))
                # Placed as if it were there already: the next blob goes elsewhere.
                view.nodes[target] = _with_blob(view.nodes[target], info.size)
        else:
            removable = view.removable(info.holders)
            keepers = tuple(n for n in view.staying(info.holders) if n not in removable)
            removals += [Removal(info.blob, node, keepers) for node in removable]
    return Plan(copies, removals)


def health(
    totals: Sequence[BlobTotal], up: Collection[NodeNumber], factor: int, gone: int = 0
) -> Health:
    """How the blobs are, by the copies that can be reached now.

    gone  blobs whose only holder is up and has found that its copy is not there any more.
    """
    gone = min(gone, sum(t.blobs for t in totals if len(t.holders) == 1))
    counts: dict[int, int] = {1: -gone, 0: gone}
    for total in totals:
        copies = sum(number in up for number in total.holders)
        counts[copies] = counts.get(copies, 0) + total.blobs
    return Health(
        total=sum(counts.values()),
        full=sum(count for copies, count in counts.items() if copies >= factor),
        under_replicated=sum(count for copies, count in counts.items() if 0 < copies < factor),
        endangered=counts[1] if factor > 1 else 0,
        missing=counts[0],
    )


def _with_blob(node: NodeState, size: int) -> NodeState:
    return node._replace(
        stored_bytes=node.stored_bytes + size,
        free_bytes=max(0, node.free_bytes - size),
        files=node.files + 1,
    )
