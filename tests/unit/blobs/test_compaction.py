"""Which pieces of a file are brought together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pydi_node.blobs.compaction import EXTENTS_MIN, SMALL_BYTES, STEP_BYTES_MAX, plan, whose_turn
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.records import Extent, NodeInfo

KIB = 1 << 10


def pieces(*lengths: int) -> list[Extent]:
    """One after the other, each of a blob of its own; a negative length is a hole."""
    made, offset = [], 0
    for number, length in enumerate(lengths, 1):
        if length > 0:
            made.append(Extent(offset, length, BlobId(number), 0))
        offset += abs(length)
    return made


def test_small_neighbours_are_joined() -> None:
    """A large piece stays as it is and parts two runs; so does a hole; a lone small one stays."""
    small, large = 4 * KIB, 3 << 20
    extents = pieces(*[small] * 40, large, *[small] * 30, -small, small, large, small, small)
    runs = plan(extents)
    assert [len(run) for run in runs] == [40, 30, 2]
    assert [run[0].offset for run in runs] == [0, 40 * small + large, extents[-2].offset]


def test_few_pieces_are_left_alone() -> None:
    assert plan(pieces(*[KIB] * (EXTENTS_MIN - 1))) == []
    assert plan(pieces(*[SMALL_BYTES] * 500)) == []
    assert plan([]) == []


@given(st.lists(st.sampled_from([1, KIB, 900 * KIB, 2 << 20, -KIB]), max_size=300))
def test_any_file_gains_until_there_is_nothing_to_gain(lengths: list[int]) -> None:
    """Runs are small neighbours, bounded together; carried out again and again, every byte stays
    where it was and the pieces become fewer until no two small neighbours are left."""
    extents = pieces(*lengths)
    covered = sum(extent.length for extent in extents)
    for step in range(400):
        runs = plan(extents)
        if not runs:
            break
        assert sum(extent.length for run in runs for extent in run) <= STEP_BYTES_MAX
        new = []
        for number, run in enumerate(runs):
            assert len(run) > 1
            assert all(a.offset + a.length == b.offset for a, b in pairwise(run))
            length = sum(extent.length for extent in run)
            new.append(Extent(run[0].offset, length, BlobId(1000 + step * 1000 + number), 0))
        gone = {extent for run in runs for extent in run}
        assert len(new) < len(gone)
        extents = sorted([e for e in extents if e not in gone] + new)
    assert not plan(extents)
    assert sum(extent.length for extent in extents) == covered


def test_the_leader_rewrites_and_for_a_witness_the_first_that_can() -> None:
    """Not one that is away, leaves, or was forgotten; and nobody while nobody leads."""

    def info(number: int, state: str = "up", witness: bool = False) -> NodeInfo:
        return NodeInfo(NodeNumber(number), "", state, witness)

    books = [info(1, "draining"), info(2, witness=True), info(3), info(4), info(5, "forgotten")]
    everybody = {info.number for info in books}
    assert whose_turn(NodeNumber(4), books, everybody) == 4
    assert whose_turn(NodeNumber(1), books, everybody) == 1
    assert whose_turn(NodeNumber(2), books, everybody) == 3
    assert whose_turn(NodeNumber(2), books, everybody - {NodeNumber(3)}) == 4
    assert whose_turn(NodeNumber(2), books, {NodeNumber(2), NodeNumber(5)}) is None
    assert whose_turn(None, books, everybody) is None
