"""Choice of holders: who gets copies, in which order, and who never does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.blobs.placement import NodeState, any_is_full, can_take, choose, is_short
from pydi_node.ids import NodeNumber

GIB = 1 << 30


def node(number: int, **changes: int | bool) -> NodeState:
    """A healthy node with an empty 100 GiB disk, except for ``changes``."""
    state = NodeState(NodeNumber(number), True, False, False, 0, 90 * GIB, 100 * GIB, 0)
    return state._replace(**changes)  # type: ignore[arg-type]  # test shorthand


def test_first_copy_goes_to_the_node_the_client_talks_to() -> None:
    """However full it is compared with the others."""
    nodes = [node(1), node(2, stored_bytes=50 * GIB, free_bytes=40 * GIB), node(3)]
    assert choose(nodes, 2, NodeNumber(2)) == [2, 1]


def test_second_copy_goes_to_the_node_with_the_least_stored() -> None:
    """A single byte decides between equal disks, the number of files does not."""
    nodes = [node(1), node(2, stored_bytes=11, files=1), node(3, stored_bytes=10, files=9)]
    assert choose(nodes, 3, NodeNumber(1)) == [1, 3, 2]


def test_a_large_disk_takes_more_than_a_small_one() -> None:
    """What is stored counts in proportion to the room there is."""
    small = node(1, stored_bytes=10 * GIB, free_bytes=10 * GIB, total_bytes=25 * GIB)
    large = node(2, stored_bytes=30 * GIB, free_bytes=300 * GIB, total_bytes=400 * GIB)
    assert choose([small, large], 1) == [2]


def test_ties_are_broken_by_files_and_then_by_number() -> None:
    """Equal fill: fewer files first; equal files: lower number first, in any order of input."""
    nodes = [node(4, files=2), node(3, files=1), node(2, files=1), node(9)]
    assert choose(nodes, 4) == choose(nodes[::-1], 4) == [9, 2, 3, 4]


def test_nodes_that_must_not_take_anything_get_nothing() -> None:
    """Down, draining, witness, nearly full and excluded nodes, even as the client's own node."""
    nodes = [
        node(1, up=False), node(2, draining=True), node(3, witness=True),
        node(4, free_bytes=GIB), node(5), node(6),
    ]  # fmt: skip
    for first in range(1, 6):
        assert choose(nodes, 6, NodeNumber(first), exclude={NodeNumber(5)}) == [6]


def test_short_when_not_all_copies_will_find_room() -> None:
    """One full node of three is no reason to forget history, two are; those that take nothing
    anyway don't count, and with fewer nodes than copies all of them must have room."""
    full = {"free_bytes": 1 * GIB, "total_bytes": 100 * GIB}
    assert not is_short([node(1), node(2), node(3, **full)], 2)
    assert is_short([node(1), node(2, **full), node(3, **full)], 2)
    assert not is_short([node(1), node(2), node(3, **full)], 1)
    assert is_short([node(1), node(2, draining=True), node(3, **full)], 2)
    assert not is_short([node(1), node(2, up=False)], 2)
    assert is_short([node(1, **full)], 2)
    assert not is_short([], 2)


def test_a_full_node_keeps_small_content_out_of_the_tree() -> None:
    """Whoever is up and at its reserve; not one that is down or has said nothing yet."""
    assert any_is_full([node(1), node(2, free_bytes=0)])
    assert any_is_full([node(1), node(2, free_bytes=0)._replace(witness=True)])
    assert not any_is_full([node(1), node(2, free_bytes=0)._replace(up=False)])
    assert not any_is_full([node(1), node(2, free_bytes=0)._replace(total_bytes=0)])


def test_a_blob_that_does_not_fit_is_not_placed() -> None:
    """The known size counts against the free space."""
    assert can_take(node(1), 88 * GIB)
    assert not can_take(node(1), 89 * GIB)
    assert choose([node(1), node(2, free_bytes=10 * GIB)], 2, size=20 * GIB) == [1]


states = st.builds(
    NodeState,
    number=st.integers(1, 50).map(NodeNumber),
    up=st.booleans(),
    draining=st.booleans(),
    witness=st.booleans(),
    stored_bytes=st.integers(0, 1 << 60),
    free_bytes=st.integers(0, 1 << 60),
    total_bytes=st.integers(0, 1 << 61),
    files=st.integers(0, 1 << 40),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(states, max_size=12, unique_by=lambda s: s.number),
    st.integers(0, 6),
    st.none() | st.integers(1, 50).map(NodeNumber),
    st.sets(st.integers(1, 50).map(NodeNumber), max_size=5),
    st.integers(0, 1 << 40),
    st.randoms(),
)
def test_choice_is_maximal_distinct_eligible_and_independent_of_order(
    nodes: list[NodeState],
    count: int,
    first: NodeNumber | None,
    exclude: set[NodeNumber],
    size: int,
    random: object,
) -> None:
    """As many as there can be, none twice, none that may not; input order never matters."""
    chosen = choose(nodes, count, first, exclude, size)
    able = {n.number for n in nodes if can_take(n, size)} - exclude
    assert len(chosen) == len(set(chosen)) == min(count, len(able))
    assert set(chosen) <= able
    if first in able and count:
        assert chosen[0] == first
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis gives a random.Random
    assert choose(shuffled, count, first, exclude, size) == chosen
