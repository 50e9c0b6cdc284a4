"""Random command sequences: the tree against its specification in plain dicts (tree_model.py).

After every command: same errno, same value, same tree, and ``touched`` names exactly what the model
saw change. After every sequence: same tree at every kept index, ``check`` finds nothing, and a
second database that got the same log in other batches with cold caches is equal row by row.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pydi_node import commands as c
from pydi_node.commands import Command, Commit, Envelope
from pydi_node.ids import BlobId, ClientId, Ino, LogIndex, NodeNumber, Serial, Term, TimeNs
from pydi_node.records import Attr, BlobInfo, Extent
from pydi_node.tree import Tree, schema
from pydi_node.tree.check import check
from tests.harness.tree_model import State, TreeModel
from tests.unit.tree.driver import ALICE, BOB, EVE, KERNEL_EVE, ROOT, blob, blob_info, open_tree

BLOB_COUNT = 6
NAMES = [b"a", b"b", b"c", b"\xff\xfe", b"x" * 255, b"x" * 256]
CALLERS = [ROOT, ROOT, ALICE, ALICE, BOB, EVE, KERNEL_EVE]

callers = st.sampled_from(CALLERS)
# The first inodes are directories (see PRELUDE): small numbers meet each other often.
parents = st.integers(1, 9).map(Ino)
inos = st.integers(1, 14).map(Ino)
names = st.sampled_from(NAMES[:4] * 4 + NAMES[4:])
modes = st.sampled_from([0o755, 0o777, 0o700, 0o1777, 0o2775, 0o6755, 0o2777, 0o111, 0o444])
sizes = st.integers(0, 40)
optional_times = st.sampled_from([None, None, c.TIME_NOW, -5, 10**18])


def info_of(number: int) -> BlobInfo:
    return blob_info(number, size=8 + 4 * number, holders=(1, number + 1))


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    number = draw(st.integers(0, BLOB_COUNT))
    offset, length = draw(st.integers(0, 30)), draw(st.integers(1, 12))
    if number == 0:
        return Extent(offset, length, BlobId(0), 0)
    # Whole numbers of offsets that fit together, so that neighbours often continue each other.
    return Extent(offset, length, blob(number), draw(st.sampled_from([0, 0, 4, offset, 40])))


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    changes = tuple(draw(st.lists(extents(), max_size=4)))
    end = max((e.offset + e.length for e in changes), default=0)
    described = sorted({e.blob for e in changes if e.blob})
    if draw(st.integers(0, 5)) == 0:
        described = described[1:]  # fine when the tree knows it
    return Commit(
        draw(callers),
        draw(inos),
        draw(st.sampled_from([None, None, None, None, 3, 9, 12])),
        draw(st.none() | sizes),
        max(0, end + draw(st.integers(-1, 20))),
        draw(st.booleans()),
        changes,
        tuple(info_of(b & 0xFF) for b in described),
        draw(optional_times),
    )


xattr_names = st.sampled_from([b"user.a", b"user.b", b"trusted.a", b"system.a", b"user.", b"x"])
file_modes = st.sampled_from([0o100644, 0o010666, 0o140777, 0o020600, 0o060600, 0o040755, 0o7])
numbers = st.lists(st.integers(1, 4).map(NodeNumber), max_size=2).map(tuple)

names_commands = st.one_of(
    st.builds(c.Mkdir, callers, parents, names, modes),
    st.builds(c.Create, callers, parents, names, modes, st.booleans()),
    st.builds(c.Mknod, callers, parents, names, file_modes, st.integers(0, 99)),
    st.builds(c.Symlink, callers, parents, names, st.sampled_from([b"", b"to", b"t" * 4096])),
    st.builds(c.Tmpfile, callers, parents, modes),
    st.builds(c.Link, callers, inos, parents, names),
    st.builds(c.Unlink, callers, parents, names),
    st.builds(c.Rmdir, callers, parents, names),
)
renames = st.builds(
    c.Rename, callers, parents, names, parents, names, st.sampled_from([0, 0, 0, 1, 2, 2, 3, 4])
)
inode_commands = st.one_of(
    st.builds(
        c.SetAttr,
        callers,
        inos,
        st.none() | modes,
        st.none() | st.sampled_from([0, 1000, 1001]),
        st.none() | st.sampled_from([0, 1000, 1001]),
        st.none() | sizes,
        optional_times,
        optional_times,
    ),
    st.builds(c.SetAttr, callers, inos, size=sizes),
    st.builds(c.SetAttr, callers, inos, mode=modes),
    st.builds(c.SetAttr, callers, inos, atime_ns=optional_times),
    st.builds(c.SetXattr, callers, inos, xattr_names, st.binary(max_size=3), st.integers(0, 3)),
    st.builds(c.RemoveXattr, callers, inos, xattr_names),
)
content_commands = st.one_of(
    commits(),
    st.builds(c.CloneRange, callers, inos, sizes, inos, sizes, sizes),
)
house_commands = st.one_of(
    st.builds(c.PurgeOrphans, st.lists(inos, max_size=14).map(tuple)),
    st.builds(c.TrimHistory, st.integers(0, 60).map(LogIndex), st.just(1 << 20)),
    st.builds(
        c.SetHolders,
        st.integers(1, BLOB_COUNT).map(blob),
        numbers,
        numbers,
        st.booleans(),
    ),
    st.builds(c.ForgetBlobs, st.lists(st.integers(1, BLOB_COUNT).map(blob), max_size=6).map(tuple)),
)
any_command: st.SearchStrategy[Command] = st.one_of(
    names_commands, names_commands, renames, renames, inode_commands,
    content_commands, content_commands, house_commands,
)  # fmt: skip
# (client, serial, command): few serials, so that some repeat; client 0 never does.
steps = st.tuples(st.sampled_from([0, 0, 0, 7]), st.integers(1, 40), any_command)

# Directories 2, 3 (in 2), 4 and files 5, 6, 7 with content: something for every command to meet.
PRELUDE: list[tuple[int, int, Command]] = [
    (0, 0, c.SetAttr(ROOT, Ino(1), mode=0o1777)),
    (0, 0, c.Mkdir(ALICE, Ino(1), b"a", 0o777)),
    (0, 0, c.Mkdir(ALICE, Ino(2), b"a", 0o777)),
    (0, 0, c.Mkdir(BOB, Ino(1), b"b", 0o2775)),
    (0, 0, c.Create(ALICE, Ino(1), b"c", 0o6755, True)),
    (0, 0, c.Create(BOB, Ino(2), b"b", 0o644, True)),
    (0, 0, c.Create(EVE, Ino(3), b"c", 0o600, True)),
    (0, 0, Commit(ALICE, Ino(5), None, 0, 20, False, (Extent(0, 20, blob(3), 0),), (info_of(3),))),
    (0, 0, c.Link(ALICE, Ino(5), Ino(3), b"a")),
]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, min_size=5, max_size=45), st.integers(1, 9))
def test_tree_equals_its_specification(sequence: list[tuple[int, int, Command]], size: int) -> None:
    """Any command sequence: outcomes, touched, tree, history and replicas are as specified."""
    run_sequence(PRELUDE + sequence, size)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.just(0), st.just(0), content_commands), min_size=5, max_size=30))
@example([(0, 0, c.CloneRange(ALICE, Ino(5), 0, Ino(6), 4, 9)) for _ in range(3)])
def test_content_equals_its_specification(sequence: list[tuple[int, int, Command]]) -> None:
    """Commits and clones alone, which the mix above rarely strings together."""
    run_sequence(PRELUDE + sequence, 4)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.just(0), st.just(0), renames), min_size=5, max_size=30))
def test_renames_equal_their_specification(sequence: list[tuple[int, int, Command]]) -> None:
    """Renames and exchanges alone: directories into each other, over each other, back."""
    run_sequence(PRELUDE + sequence, 4)


def run_sequence(sequence: list[tuple[int, int, Command]], batch_size: int) -> None:
    connection, tree = open_tree()
    model = TreeModel(schema.ROOT_MODE)
    log: list[tuple[LogIndex, Term, Envelope | None]] = []
    try:
        for index, (client, serial, command) in enumerate(sequence, 1):
            envelope = Envelope(
                ClientId(client), Serial(serial), TimeNs(10**15 + index * 700_000_000), command
            )
            log.append((LogIndex(index), Term(1 + index // 10), envelope))
            repeated = client and tree.session_result(envelope.client, envelope.serial)
            before = model.state
            expected = model.apply(index, envelope)
            result = tree.apply(*log[-1])
            assert (result.errno, result.value) == expected, command
            if repeated:
                assert result == repeated, command
            else:
                assert_touched(result.touched, before, model.state, command)
            assert_same(tree, model.state, None)
        assert [info.blob for info in tree.garbage_blobs(99)] == model.garbage()
        assert check(connection) == []
        for index in range(model.floor, len(sequence) + 1):
            assert_same(tree, model.snapshots[index], LogIndex(index))
        assert_replica(tree, connection, log, batch_size)
    finally:
        connection.close()


def assert_touched(touched: Any, before: State, after: State, command: Command) -> None:
    """Exactly the inodes and names whose answer is another one than before."""
    changed = {
        ino
        for ino in before.nodes
        if ino not in after.nodes
        or before.attr(ino) != after.attr(ino)
        or before.nodes[ino].cells != after.nodes[ino].cells
    }
    old, new = before.entries(), after.entries()
    moved = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    assert set(touched.inos) == changed, command
    assert len(touched.inos) == len(changed), command
    assert set(touched.entries) == moved, command
    assert len(touched.entries) == len(moved), command


def assert_same(tree: Tree, state: State, at: LogIndex | None) -> None:
    """Every answer of the tree at ``at`` is the one in the model's state."""
    for ino, node in state.nodes.items():
        attr = tree.getattr(Ino(ino), at)
        assert comparable(attr, at) == comparable(state.attr(ino), at), ino
        listed = tree.listxattr(Ino(ino), at)
        assert listed == sorted(node.xattrs)
        assert [tree.getxattr(Ino(ino), name, at) for name in listed] == [
            node.xattrs[name] for name in listed
        ]
        names_ = state.names(ino)
        assert sorted(tree.names_of(Ino(ino), at)) == sorted(names_)
        if node.is_dir:
            entries = tree.readdir(Ino(ino), 0, 99, at)
            assert {e.name: int(e.attr.ino) for e in entries} == node.children
            assert [e.attr for e in entries] == [tree.lookup(Ino(ino), e.name, at) for e in entries]
        if node.is_file:
            version = tree.file_version(Ino(ino), at)
            assert cells_of(version.extents, attr.size) == node.cells
            assert [b.blob for b in version.blobs] == sorted({e.blob for e in version.extents})
        if node.target is not None:
            assert tree.readlink(Ino(ino), at) == node.target
    for info in state.blobs.values() if at is None else ():
        assert tree.blob(info.blob) == info


def comparable(attr: Attr, at: LogIndex | None) -> Attr:
    """Without what is kept as of now only, when the past is asked for."""
    if at is None:
        return attr
    zero = TimeNs(0)
    attr = attr._replace(atime_ns=zero, ctime_ns=zero, changed=LogIndex(0))
    return attr._replace(mtime_ns=zero, version=LogIndex(0)) if attr.is_dir else attr


def cells_of(extents_: tuple[Extent, ...], size: int) -> list[tuple[int, int] | None]:
    cells: list[tuple[int, int] | None] = [None] * size
    for e in extents_:
        for i in range(e.length):
            assert cells[e.offset + i] is None
            cells[e.offset + i] = (e.blob, e.blob_offset + i)
    return cells


def assert_replica(
    tree: Tree,
    connection: sqlite3.Connection,
    log: list[tuple[LogIndex, Term, Envelope | None]],
    batch_size: int,
) -> None:
    """The same log in other batches, with cold caches now and then, gives the same rows."""
    other = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.prepare(other)
        for start in range(0, len(log), batch_size):
            replica = Tree(other)
            replica.apply_batch(log[start : start + batch_size])
        assert replica.digest() == tree.digest()
        assert list(other.iterdump()) == list(connection.iterdump())
    finally:
        other.close()
