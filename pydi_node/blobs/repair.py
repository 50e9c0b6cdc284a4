"""What to copy where and which copies to remove, so that every blob has as many as it should.

Pure. The leader's runtime asks: ``urgent`` says which groups of blobs are in trouble (the tree
counts blobs by their holders and by how many these should be), ``plan`` what to do for some of
their blobs, ``health`` what ``pydi status`` shows. Same arguments, same answer.

A holder is one of these:

    staying   up, and meant to keep what it has
    leaving   up, but draining or a witness: a source, not a copy that counts
    away      not reachable for less than the grace time: counts, because it will be back
    lost      away for longer, or no member any more: does not count

A blob's factor is what a directory asks for, or else the cluster's. It gets copies until staying
and away together are the factor. A copy goes only when the staying ones alone are the factor, and
never one of those; so a plan that is carried out in part, late, or twice leaves every blob that had
a copy with one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pydi_node.blobs.placement import NodeState, can_take, choose, emptiness
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.records import IN_TREE, BlobInfo, BlobTotal

Holders = tuple[NodeNumber, ...]  # ascending


class Group(NamedTuple):
    """Blobs that the same nodes hold, and as many should: a row of the tree's totals."""

    holders: Holders
    factor: int  # as there: 0 stands for the cluster's


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
    """The nodes as repair sees them."""

    nodes: dict[NodeNumber, NodeState]
    lost: Collection[NodeNumber]

    def staying(self, holders: Holders) -> list[NodeNumber]:
        return [n for n in holders if n in self.nodes and self._is_staying(self.nodes[n])]

    def missing(self, holders: Holders, factor: int) -> int:
        """How many more copies it should have."""
        away = [
            n for n in holders
            if n in self.nodes and not self.nodes[n].up and n not in self.lost
            and not self._leaves(self.nodes[n])
        ]  # fmt: skip
        return factor - len(self.staying(holders)) - len(away)

    def sources(self, holders: Holders) -> int:
        """How many can be copied from now."""
        return sum(n in self.nodes and self.nodes[n].up for n in holders)

    def removable(self, holders: Holders, factor: int) -> list[NodeNumber]:
        """Copies that may go, in the order in which they should: those on nodes that leave or are
        no members, then those on the fullest nodes."""
        staying = self.staying(holders)
        surplus = len(staying) - factor
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
    default: int,
) -> list[Group]:
    """The groups whose blobs need something that can be done now, most endangered first.

    nodes    every member, each number once.
    lost     those of them that have been away for longer than the grace time.
    default  the cluster's factor.
    """
    view = _View({node.number: node for node in nodes}, lost)
    found: list[tuple[int, Group]] = []
    for total in totals:
        if total.holders == IN_TREE:
            continue
        holders, factor = total.holders, total.factor or default
        can_copy = (
            view.missing(holders, factor) > 0 and view.sources(holders) and view.has_room(holders)
        )
        if can_copy:
            found.append((view.sources(holders), Group(holders, total.factor)))
        elif view.removable(holders, factor):
            # Saves room, nobody's safety.
            found.append((len(nodes) + 1, Group(holders, total.factor)))
    return [group for _, group in sorted(found)]


def plan(
    blobs: Sequence[tuple[BlobInfo, int]],
    nodes: Sequence[NodeState],
    lost: Collection[NodeNumber],
    copies_max: int,
) -> Plan:
    """What to do for these blobs: at most ``copies_max`` copies, and all removals.

    blobs  each with its factor, > 0.
    """
    view = _View({node.number: node for node in nodes}, lost)
    order = sorted(blobs, key=lambda item: (view.sources(item[0].holders), item[0].blob))
    copies: list[Copy] = []
    removals: list[Removal] = []
    for info, factor in order:
        missing = view.missing(info.holders, factor)
        if missing > 0 and view.sources(info.holders):
            states = list(view.nodes.values())
            for target in choose(states, missing, exclude=info.holders, size=info.size):
                if len(copies) == copies_max:
                    break
                copies.append(Copy(info, target))
                # Placed as if it were there already: the next blob goes elsewhere.
                view.nodes[target] = _with_blob(view.nodes[target], info.size)
        else:
            removable = view.removable(info.holders, factor)
            keepers = tuple(n for n in view.staying(info.holders) if n not in removable)
            removals += [Removal(info.blob, node, keepers) for node in removable]
    return Plan(copies, removals)


def health(
    totals: Sequence[BlobTotal], up: Collection[NodeNumber], default: int, gone: int = 0
) -> Health:
    """How the blobs are, by the copies that can be reached now.

    default  the cluster's factor.
    gone     blobs whose only holder is up and has found that its copy is not there any more.
    """
    full = under = endangered = missing = 0
    for total in totals:
        if total.holders == IN_TREE:
            full += total.blobs  # wherever their names are
            continue
        factor = total.factor or default
        copies = sum(number in up for number in total.holders)
        lost = total.blobs if copies == 0 else 0
        if copies == len(total.holders) == 1:
            lost = min(gone, total.blobs)
            gone -= lost
        there = total.blobs - lost
        missing += lost
        full += there if copies >= factor else 0
        under += there if copies < factor else 0
        endangered += there if copies == 1 < factor else 0
    return Health(full + under + missing, full, under, endangered, missing)


def factor_max(totals: Sequence[BlobTotal], default: int) -> int:
    """The most copies that nodes should hold of any blob."""
    return max([default, *(total.factor for total in totals if total.holders != IN_TREE)])


def _with_blob(node: NodeState, size: int) -> NodeState:
    return node._replace(
        stored_bytes=node.stored_bytes + size,
        free_bytes=max(0, node.free_bytes - size),
        files=node.files + 1,
    )
