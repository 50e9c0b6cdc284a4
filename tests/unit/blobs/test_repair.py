"""Repair's plans: carried out again and again, in part or late, they heal and never lose a blob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node.blobs.placement import NodeState
from pydi_node.blobs.repair import Group, Health, Plan, factor_max, health, plan, urgent
from pydi_node.ids import BlobId, NodeNumber, blob_id
from pydi_node.records import IN_TREE, BlobInfo, BlobTotal

GIB = 1 << 30
SIZE_BYTES = 1000


def node(number: int, **changes: int | bool) -> NodeState:
    """A healthy node with an empty 100 GiB disk, except for ``changes``."""
    state = NodeState(NodeNumber(number), True, False, False, 0, 90 * GIB, 100 * GIB, 0)
    return state._replace(**changes)  # type: ignore[arg-type]  # test shorthand


def blob(counter: int, *holders: int) -> BlobInfo:
    return BlobInfo(
        blob_id(NodeNumber(1), counter), SIZE_BYTES, b"\0" * 32,
        tuple(NodeNumber(n) for n in holders),
    )  # fmt: skip


def totals_of(blobs: Sequence[BlobInfo]) -> list[BlobTotal]:
    """As the tree counts them."""
    counts: dict[tuple[NodeNumber, ...], int] = {}
    for info in blobs:
        counts[info.holders] = counts.get(info.holders, 0) + 1
    return [BlobTotal(h, count, count * SIZE_BYTES) for h, count in sorted(counts.items())]


def plan_all(
    blobs: Sequence[BlobInfo],
    nodes: Sequence[NodeState],
    lost: set[NodeNumber],
    factor: int,
    copies_max: int,
) -> Plan:
    """With one factor for all."""
    return plan([(info, factor) for info in blobs], nodes, lost, copies_max)


def targets(made: Plan) -> list[tuple[int, int]]:
    """(counter of the blob, target) of each copy."""
    return [(copy.info.blob & 0xFF, copy.target) for copy in made.copies]


def removed(made: Plan) -> list[tuple[int, int]]:
    return [(removal.blob & 0xFF, removal.node) for removal in made.removals]


# --- examples -------------------------------------------------------------------------------------


def test_most_endangered_comes_first() -> None:
    """A blob with one copy within reach before one with two, whatever the order of asking."""
    nodes = [node(1), node(2), node(3), node(4, up=False)]
    made = plan_all([blob(1, 1, 2), blob(2, 3, 4), blob(3, 1)], nodes, {NodeNumber(4)}, 3, 99)
    assert targets(made)[:3] == [(2, 1), (2, 2), (3, 3)]
    assert [number for number, _ in targets(made)] == [2, 2, 3, 3, 1]
    assert urgent(
        [BlobTotal((NodeNumber(1), NodeNumber(2)), 1, 1), BlobTotal((NodeNumber(3),), 1, 1)],
        nodes, set(), 3,
    ) == [Group((NodeNumber(3),), 0), Group((NodeNumber(1), NodeNumber(2)), 0)]  # fmt: skip


def test_each_blob_has_its_own_factor() -> None:
    """A directory may ask for more copies or fewer than the cluster does."""
    nodes = [node(1), node(2), node(3)]
    made = plan([(blob(1, 1, 2), 3), (blob(2, 1, 2), 1), (blob(3, 1, 2), 2)], nodes, set(), 99)
    assert (targets(made), removed(made)) == ([(1, 3)], [(2, 2)])
    pair = (NodeNumber(1), NodeNumber(2))
    totals = [BlobTotal(pair, 4, 4), BlobTotal(pair, 3, 3, 3), BlobTotal(pair, 2, 2, 1)]
    assert urgent(totals, nodes, set(), 2) == [Group(pair, 3), Group(pair, 1)]
    assert health(totals, set(pair), 2) == Health(9, 6, 3, 0, 0)
    assert health(totals, {NodeNumber(1)}, 2) == Health(9, 2, 7, 7, 0)


def test_a_node_within_the_grace_time_counts() -> None:
    """Away: nothing is copied. Lost: its copies are made again, and not taken from the books."""
    nodes = [node(1), node(2, up=False), node(3)]
    blobs = [blob(1, 1, 2)]
    assert plan_all(blobs, nodes, set(), 2, 99) == Plan([], [])
    assert urgent(totals_of(blobs), nodes, set(), 2) == []
    made = plan_all(blobs, nodes, {NodeNumber(2)}, 2, 99)
    assert (targets(made), removed(made)) == ([(1, 3)], [])


def test_a_copy_within_the_grace_time_is_no_reason_to_remove_one() -> None:
    """Two within reach and one away, factor 2: all stay. When it is back, the fullest goes."""
    blobs = [blob(1, 1, 2, 3)]
    assert plan_all(blobs, [node(1), node(2), node(3, up=False)], set(), 3, 99) == Plan([], [])
    assert removed(plan_all(blobs, [node(1), node(2, up=False)], set(), 2, 99)) == []
    made = plan_all(blobs, [node(1), node(2, stored_bytes=5), node(3)], set(), 2, 99)
    assert removed(made) == [(1, 2)]
    assert made.removals[0].keepers == (1, 3)


def test_a_draining_node_gives_its_copies_away() -> None:
    """First copied, from it too; removed there once enough others have it. Forgotten ones, too."""
    nodes = [node(1, draining=True), node(2), node(3)]
    assert targets(plan_all([blob(1, 1, 2)], nodes, set(), 2, 99)) == [(1, 3)]
    assert removed(plan_all([blob(1, 1, 2)], nodes, set(), 2, 99)) == []
    assert targets(plan_all([blob(1, 1)], nodes, set(), 2, 99)) == [(1, 2), (1, 3)]
    assert removed(plan_all([blob(1, 1, 2, 3)], nodes, set(), 2, 99)) == [(1, 1)]
    assert removed(plan_all([blob(1, 2, 3, 9)], nodes, set(), 2, 99)) == [(1, 9)]


def test_a_witness_never_gets_a_copy() -> None:
    """It votes; what it holds by mistake goes elsewhere."""
    nodes = [node(1), node(2, witness=True)]
    assert plan_all([blob(1, 1)], nodes, set(), 2, 99) == Plan([], [])
    assert urgent(totals_of([blob(1, 1)]), nodes, set(), 2) == []


def test_nothing_to_copy_from_is_left_alone() -> None:
    """All holders away or lost: the blob waits, its books stay."""
    nodes = [node(1, up=False), node(2), node(3)]
    for lost in (set[NodeNumber](), {NodeNumber(1)}):
        assert plan_all([blob(1, 1)], nodes, lost, 2, 99) == Plan([], [])
        assert urgent(totals_of([blob(1, 1)]), nodes, lost, 2) == []


def test_what_is_in_the_tree_needs_no_copies() -> None:
    """Whoever holds the tree holds it: nothing to copy, nothing to remove, never missing, whatever
    number a directory asks for."""
    nodes = [node(1), node(2, draining=True), node(3, up=False)]
    total = BlobTotal(IN_TREE, 7, 70, 5)
    assert urgent([total], nodes, {NodeNumber(3)}, 2) == []
    info = BlobInfo(blob_id(NodeNumber(1), 1), 10, b"\0" * 32, IN_TREE)
    assert plan_all([info], nodes, {NodeNumber(3)}, 2, 99) == Plan([], [])
    assert health([total], {NodeNumber(1)}, 2) == Health(7, 7, 0, 0, 0)
    assert factor_max([total], 2) == 2


def test_copies_are_bounded_and_spread() -> None:
    """No more than asked for; many blobs at once go to many nodes."""
    nodes = [node(1), node(2), node(3), node(4)]
    blobs = [blob(counter, 1) for counter in range(1, 31)]
    assert len(plan_all(blobs, nodes, set(), 2, 7).copies) == 7
    made = [target for _, target in targets(plan_all(blobs, nodes, set(), 2, 99))]
    assert [made.count(number) for number in (2, 3, 4)] == [10, 10, 10]


def test_health_counts_what_can_be_reached() -> None:
    """The copy on a node that is down is none now."""
    totals = totals_of([blob(1, 1, 2), blob(2, 1), blob(3, 3), blob(4, 1, 2), blob(5)])
    one, two = NodeNumber(1), NodeNumber(2)
    assert health(totals, {one, two}, 2) == Health(5, 2, 1, 1, 2)
    assert health(totals, {one}, 2) == Health(5, 0, 3, 3, 2)
    assert health(totals, {one, two}, 3) == Health(5, 0, 3, 1, 2)
    assert health(totals, {one, two}, 1) == Health(5, 3, 0, 0, 2)
    assert health(totals, {one, two}, 2, gone=1) == Health(5, 2, 0, 0, 3)


# --- any state ------------------------------------------------------------------------------------

NUMBERS = range(1, 7)


@dataclass
class World:
    """Nodes, and where the blobs really are; the books say the same."""

    factor: int
    nodes: dict[NodeNumber, NodeState]
    lost: set[NodeNumber]
    blobs: dict[BlobId, BlobInfo] = field(default_factory=dict)
    asked: dict[BlobId, int] = field(default_factory=dict)  # as in the tree: 0 for the cluster's

    def step(self, copies_max: int = 99, done: Sequence[bool] = (True,)) -> bool:
        """Plans over all urgent blobs and carries out a part of it; whether there was a plan."""
        groups: dict[Group, list[tuple[BlobInfo, int]]] = {}
        for number, info in self.blobs.items():
            group = Group(info.holders, self.asked[number])
            groups.setdefault(group, []).append((info, self.factor_of(number)))
        totals = [
            BlobTotal(group.holders, len(infos), len(infos) * SIZE_BYTES, group.factor)
            for group, infos in sorted(groups.items())
        ]
        due = urgent(totals, self.states(), self.lost, self.factor)
        chosen = [item for group in due for item in groups[group]]
        made = plan(chosen, self.states(), self.lost, copies_max)
        assert len(made.copies) <= copies_max
        # Whatever is not urgent needs nothing.
        rest = [item for group, items in groups.items() if group not in due for item in items]
        assert plan(rest, self.states(), self.lost, 99) == Plan([], [])
        for at, copy in enumerate(made.copies):
            info = self.blobs[copy.info.blob]
            state = self.nodes[copy.target]
            assert copy.target not in info.holders
            assert state.up
            assert not state.draining
            assert not state.witness
            assert any(self.nodes[n].up for n in info.holders if n in self.nodes)
            if done[at % len(done)]:
                self.hold(info, {*info.holders, copy.target})
        for at, removal in enumerate(made.removals):
            info = self.blobs[removal.blob]
            assert len(removal.keepers) >= self.factor_of(removal.blob)
            assert removal.node not in removal.keepers
            assert set(removal.keepers) <= set(info.holders)
            if done[at % len(done)]:
                self.hold(info, set(info.holders) - {removal.node})
        return bool(made.copies or made.removals)

    def states(self) -> list[NodeState]:
        """With what each stores counted from the books."""
        held = {n: sum(n in i.holders for i in self.blobs.values()) for n in self.nodes}
        return [
            state._replace(stored_bytes=held[n] * SIZE_BYTES, files=held[n])
            for n, state in sorted(self.nodes.items())
        ]

    def hold(self, info: BlobInfo, holders: set[NodeNumber]) -> None:
        self.blobs[info.blob] = info._replace(holders=tuple(sorted(holders)))

    def factor_of(self, number: BlobId) -> int:
        return self.asked[number] or self.factor

    def copies(self, info: BlobInfo) -> int:
        return len(info.holders)


flags = st.fixed_dictionaries(
    {"up": st.booleans(), "draining": st.sampled_from([False, False, True]),
     "witness": st.sampled_from([False, False, False, True])}
)  # fmt: skip
holder_sets = st.sets(st.sampled_from(NUMBERS).map(NodeNumber), min_size=1, max_size=4)
parts = st.lists(st.booleans(), min_size=1, max_size=7)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    members = draw(st.sets(st.sampled_from(NUMBERS), min_size=1))
    nodes = {NodeNumber(n): node(n, **draw(flags)) for n in sorted(members)}
    lost = {n for n, state in nodes.items() if not state.up and draw(st.booleans())}
    world = World(draw(st.integers(1, 4)), nodes, lost)
    for counter in range(1, draw(st.integers(1, 12)) + 1):
        info = blob(counter, *sorted(draw(holder_sets)))
        world.blobs[info.blob] = info
        world.asked[info.blob] = draw(st.sampled_from([0, 0, 1, 2, 3, 4]))
    return world


@settings(deadline=None, max_examples=200)
@given(worlds(), st.integers(1, 5))
def test_plans_reach_the_factor_and_stop(world: World, copies_max: int) -> None:
    """From any state: every blob with a reachable copy ends with as many staying copies as there
    should be or can be, what leaves is empty then, and the last plan is empty."""
    reachable = {
        b for b, i in world.blobs.items() if any(n in world.nodes and world.nodes[n].up
                                                  for n in i.holders)
    }  # fmt: skip
    rounds = 0
    while world.step(copies_max):
        rounds += 1
        assert rounds < 200, "it moves for ever"
    keepers = {n for n, s in world.nodes.items() if s.up and not s.draining and not s.witness}
    for number, info in world.blobs.items():
        away = {
            n for n in info.holders
            if n in world.nodes and n not in world.lost and not world.nodes[n].up
            and not world.nodes[n].draining and not world.nodes[n].witness
        }  # fmt: skip
        staying = keepers & set(info.holders)
        if number in reachable:
            factor = world.factor_of(number)
            assert len(staying) + len(away) >= min(factor, len(keepers) + len(away))
            assert len(staying) <= factor
        if len(staying) == world.factor_of(number):
            assert all(n in world.nodes for n in info.holders)
            assert all(n in staying or not world.nodes[n].up for n in info.holders)


@settings(deadline=None, max_examples=200)
@given(worlds(), st.lists(st.tuples(parts, st.sampled_from(NUMBERS), flags), max_size=8))
def test_no_blob_ever_loses_its_copies(
    world: World, events: list[tuple[list[bool], int, dict[str, bool]]]
) -> None:
    """Plans carried out in part while nodes come, go, drain and are given up: whatever had a copy
    has one, and the number of copies never falls below the factor by a removal."""
    for done, number, changes in events:
        before = {b: world.copies(i) for b, i in world.blobs.items()}
        world.step(done=done)
        for number_, info in world.blobs.items():
            assert world.copies(info) >= min(before[number_], world.factor_of(number_)) >= 1
        key = NodeNumber(number)
        world.nodes[key] = node(number, **changes)
        world.lost = {n for n, s in world.nodes.items() if not s.up and n % 2}
