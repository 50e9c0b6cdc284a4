"""Which parts of a version in many pieces to bring together: pure.

Every small change of a large file adds extents; a file that is changed for weeks ends with
thousands, each of which a reader has to ask for. Only neighbours that are small are rewritten: a
change in the middle of a gigabyte must not cost a gigabyte.

Called by runtime/compacting.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydi_node.ids import NodeNumber
from pydi_node.records import Extent, NodeInfo

EXTENTS_MIN = 64  # a version with fewer is left alone
SMALL_BYTES = 1 << 20  # a reader fetches a mebibyte at a time: longer pieces cost it nothing
STEP_BYTES_MAX = 16 << 20  # rewritten at once; the rest of the file has its turn later


def whose_turn(
    leader: NodeNumber | None, nodes: Sequence[NodeInfo], up: Collection[NodeNumber]
) -> NodeNumber | None:
    """Who rewrites now, as a node sees it: the leader, or the first node within reach when the
    leader is a witness and has no store to write to. None: nobody.

    Two nodes may see it differently for a while; the command that puts a new blob into a file makes
    that harmless.
    nodes  the books. up: numbers of nodes that can be reached, the one that asks too.
    """
    books = {info.number: info for info in nodes}
    if leader is None or leader not in books:
        return None
    if not books[leader].witness:
        return leader
    takers = [n for n in sorted(books) if not books[n].witness and books[n].state == "up"]
    return next((number for number in takers if number in up), None)


def plan(extents: Sequence[Extent]) -> list[list[Extent]]:
    """Runs of extents to be replaced by one each, in order; [] when there is nothing to gain.

    extents  of one version, ascending, without overlaps.
    Each run has at least two extents, one after the other without a hole; all runs together are at
    most STEP_BYTES_MAX long.
    """
    if len(extents) < EXTENTS_MIN:
        return []
    runs: list[list[Extent]] = []
    run: list[Extent] = []
    room = STEP_BYTES_MAX
    for extent in extents:
        is_next = bool(run) and run[-1].offset + run[-1].length == extent.offset
        if extent.length > room:
            break
        if not is_next or extent.length >= SMALL_BYTES:
            room += _dropped(run, runs)
            run = []
        if extent.length < SMALL_BYTES:
            run.append(extent)
            room -= extent.length
    _dropped(run, runs)
    return runs


def _dropped(run: list[Extent], runs: list[list[Extent]]) -> int:
    """Keeps a run that gains something; the bytes of one that does not."""
    if len(run) > 1:
        runs.append(run)
        return 0
    return sum(extent.length for extent in run)
