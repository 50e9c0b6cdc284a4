"""Random command sequences: the tree against its specification in plain dicts (tree_model.py).

After every command: same errno, same value, same tree, and ``touched`` names exactly what the model
saw change. After every sequence: same tree at every kept index, ``check`` finds nothing, and a
second database that got the same log in other batches with cold caches is equal row by row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node import commands as c
from pydi_node.commands import Caller, Command, Commit, Envelope
from pydi_node.ids import BlobId, ClientId, Ino, LogIndex, NodeNumber, Serial, Term, TimeNs
from pydi_node.records import Attr, BlobInfo, Extent
from pydi_node.tree import Tree, schema
from pydi_node.tree.check import check
from tests.harness.tree_model import Node, State, TreeModel
from tests.unit.tree.driver import (
    ALICE,
    BOB,
    EVE,
    KERNEL_EVE,
    ROOT,
    blob,
    blob_info,
    info_in_tree,
    open_tree,
)

BLOB_COUNT = 6
CALLERS = [ROOT, ROOT, ROOT, ALICE, ALICE, BOB, EVE, KERNEL_EVE]
NAMES = [b"a", b"b", b"c", b"\xff\xfe", b"x" * 255]
MODES = [0o755, 0o777, 0o777, 0o700, 0o1777, 0o2775, 0o6755, 0o2777, 0o111, 0o444]
KINDS = [0o100644, 0o010666, 0o140777, 0o020600, 0o060600, 0o040755, 0o120777, 0o7]
XATTRS = [b"user.a", b"user.a", b"user.b", b"trusted.a", b"system.a", b"user.", b"x"]
OWNERS = [None, 0, 1000, 1001]
TIMES = [None, None, c.TIME_NOW, -5, 10**18]
FLAGS = [0, 0, 0, 0, c.RENAME_NOREPLACE, c.RENAME_EXCHANGE, c.RENAME_EXCHANGE, 3, 4]


def content_of(number: int) -> bytes:
    return bytes([number]) * (8 + 4 * number)


def info_of(number: int) -> BlobInfo:
    """Every other blob is in the tree."""
    if number % 2:
        return info_in_tree(number, content_of(number))
    return blob_info(number, size=8 + 4 * number, holders=(1, number + 1))


def content_for(infos: Sequence[BlobInfo]) -> bytes | None:
    """What goes with a command that describes these."""
    in_tree = [info for info in infos if info.is_in_tree]
    return content_of(in_tree[0].blob & 0xFF) if in_tree else None


class Chooser:
    """Draws the arguments of commands, mostly such that exist, so that most commands succeed."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.state = State({}, {}, 1)

    def one(self, choices: Sequence[Any]) -> Any:
        return self._data.draw(st.sampled_from(choices))

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def rarely(self) -> bool:
        return self.number(0, 11) == 11

    def caller(self) -> Caller:
        caller: Caller = self.one(CALLERS)
        return caller

    def ino(self, is_wanted: Callable[[Node], bool] = lambda node: True) -> Ino:
        wanted = [ino for ino, node in self.state.nodes.items() if is_wanted(node)]
        if not wanted or self.rarely():
            return Ino(self.number(1, self.state.next_ino))
        return Ino(self.one(wanted))

    def directory(self) -> Ino:
        return self.ino(lambda node: node.is_dir)

    def file(self) -> Ino:
        return self.ino(lambda node: node.is_file)

    def name(self) -> bytes:
        name: bytes = b"x" * 256 if self.rarely() else self.one(NAMES)
        return name

    def entry(self, is_wanted: Callable[[Node], bool] = lambda node: True) -> tuple[Ino, bytes]:
        """A name that exists, mostly."""
        nodes = self.state.nodes
        wanted = [key for key, ino in self.state.entries().items() if is_wanted(nodes[ino])]
        if not wanted or self.rarely():
            return self.directory(), self.name()
        parent, name = self.one(wanted)
        return Ino(parent), name

    def place(self) -> tuple[Ino, bytes]:
        """A name in an existing directory, which may exist or not."""
        return self.entry() if self.rarely() else (self.directory(), self.name())

    def extent(self) -> Extent:
        number = self.number(0, BLOB_COUNT)
        offset = self.number(0, 30)
        if number == 0:
            return Extent(offset, self.number(1, 12), BlobId(0), 0)
        # Offsets in the blob that go with those in the file: neighbours often continue each other.
        size = info_of(number).size
        blob_offset = min(self.one([0, 4, offset]), size - 1)
        length = self.number(1, size - blob_offset + int(self.rarely()))
        return Extent(offset, length, blob(number), blob_offset)

    def commit(self) -> Command:
        changes = tuple(self.extent() for _ in range(self.number(0, 4)))
        end = max((e.offset + e.length for e in changes), default=0)
        named = sorted({e.blob for e in changes if e.blob})
        unknown = [b for b in named if b not in self.state.blobs]
        described = self.one([named, unknown]) if not self.rarely() else named[1:]
        ino = self.file()
        node = self.state.nodes.get(ino)
        base = node.version if node is not None and not self.rarely() else 3
        infos = tuple(info_of(b & 0xFF) for b in described)
        content = content_for(infos)
        if self.rarely():
            content = self.one([None, b"", content_of(1), content_of(2)])
        cut = self.one([None, None, 0, self.number(0, 30)])
        size = end + self.number(0, 9) - int(self.rarely())
        return Commit(
            self.caller(),
            ino,
            LogIndex(base) if self.one([True, False]) else None,
            cut,
            max(0, size, 0 if self.rarely() else (cut or 0)),
            self.one([True, False]),
            changes,
            infos,
            self.one(TIMES),
            content,
        )

    def put_file(self) -> Command:
        commit = self.commit()
        assert isinstance(commit, Commit)
        return c.PutFile(
            commit.caller, *self.place(), self.one(MODES), commit.size, commit.extents,
            commit.blobs, commit.mtime_ns, commit.content,
        )  # fmt: skip

    def setattr(self) -> Command:
        field = self.one(["mode", "owner", "size", "times", "all"])
        size = self.one([0, self.number(0, 40)]) if field in ("size", "all") else None
        return c.SetAttr(
            self.caller(),
            self.file() if size is not None else self.ino(),
            self.one(MODES) if field in ("mode", "all") else None,
            self.one(OWNERS) if field in ("owner", "all") else None,
            self.one(OWNERS) if field in ("owner", "all") else None,
            size,
            self.one(TIMES) if field in ("times", "all") else None,
            self.one(TIMES) if field in ("times", "all") else None,
        )

    def clone(self) -> Command:
        length = self.number(0, 40)
        return c.CloneRange(
            self.caller(), self.file(), self.number(0, 20), self.file(), self.number(0, 40), length
        )

    def rename(self) -> Command:
        flags = self.one(FLAGS)
        target = self.one([self.entry, self.place])()
        parent, name = self.entry()
        return c.Rename(self.caller(), parent, name, target[0], target[1], flags)

    def numbered(self) -> Command:
        """A file with a number that somebody reserved, mostly, in a directory that is held."""
        held = list(self.state.held)
        parent = Ino(self.one(held)) if held and not self.rarely() else self.directory()
        numbers = sorted(n for some in self.state.reserved.values() for s in some for n in s)
        ino = self.one(numbers) if numbers and not self.rarely() else self.number(1, 99)
        return c.PutFile(
            self.caller(), parent, self.name(), self.one(MODES), 0, (), (), ino=Ino(ino)
        )

    def holding(self) -> Command:
        """About who holds which directory."""
        held = [Ino(ino) for ino in self.state.held]
        some = tuple(ino for ino in (*held, self.ino()) if not self.rarely())
        wanted: Command = self.one(
            [
                c.Delegate(self.directory()),
                c.Delegate(self.directory()),
                c.Delegate(self.ino()),
                c.Undelegate(some),
                c.Recall(some),
                c.Revoke(some, LogIndex(self.number(0, 60))),
                c.ReserveInodes(),
                c.ReserveInodes(),
            ]
        )
        return wanted

    def house(self) -> Command:
        nodes = tuple(NodeNumber(n) for n in range(1, self.number(1, 4)))
        some: Command = self.one(
            [
                c.PurgeOrphans(tuple(Ino(ino) for ino in self.state.nodes)),
                c.PurgeOrphans((self.ino(), self.ino())),
                c.TrimHistory(LogIndex(self.number(0, 60)), 1 << 20),
                c.SetHolders(blob(self.number(1, BLOB_COUNT)), nodes, (NodeNumber(9),)),
                c.SetHolders(blob(self.number(1, BLOB_COUNT)), (), nodes, self.rarely()),
                c.ForgetBlobs(tuple(blob(number) for number in range(1, BLOB_COUNT + 1))),
            ]
        )
        return some

    def command(self, kind: str) -> Command:
        caller = self.caller()
        match kind:
            case "mkdir":
                return c.Mkdir(caller, *self.place(), self.one(MODES))
            case "create":
                return c.Create(caller, *self.place(), self.one(MODES), self.one([True, False]))
            case "mknod":
                return c.Mknod(caller, *self.place(), self.one(KINDS), self.number(0, 99))
            case "symlink":
                target = self.one([b"to", b"to", b"t" * 4095, b"", b"t" * 4096])
                return c.Symlink(caller, *self.place(), target)
            case "tmpfile":
                return c.Tmpfile(caller, self.directory(), self.one(MODES))
            case "link":
                return c.Link(caller, self.ino(lambda node: not node.is_dir), *self.place())
            case "unlink":
                return c.Unlink(caller, *self.entry(lambda node: not node.is_dir))
            case "rmdir":
                return c.Rmdir(caller, *self.entry(lambda node: node.is_dir))
            case "setxattr":
                value = bytes([self.number(0, 3)])
                return c.SetXattr(
                    caller, self.ino(), self.one(XATTRS), value, self.one([0, 0, 1, 2, 3])
                )
            case "removexattr":
                return c.RemoveXattr(
                    caller, self.ino(lambda node: bool(node.xattrs)), self.one(XATTRS)
                )
            case _:
                command: Command = getattr(self, kind)()
                return command


EVERYTHING = [
    "mkdir", "mkdir", "create", "create", "mknod", "symlink", "tmpfile", "link", "unlink", "rmdir",
    "setxattr", "removexattr", "commit", "commit", "commit", "setattr", "setattr", "clone",
    "rename", "rename", "rename", "house", "put_file", "put_file",
]  # fmt: skip
CONTENT = ["put_file", "commit", "commit", "clone", "setattr", "house"]
HELD = [
    "holding", "holding", "holding", "holding", "numbered", "numbered", "create", "unlink", "mkdir",
    "rmdir", "rename", "rename", "setattr", "setxattr", "tmpfile", "link", "house",
]  # fmt: skip
MOVES = ["rename", "rename", "rename", "rename", "mkdir", "rmdir", "unlink", "create"]

# Directories 2, 3 (in 2), 4 and files 5, 6, 7 with content: something for every command to meet.
PRELUDE: list[Command] = [
    c.SetAttr(ROOT, Ino(1), mode=0o1777),
    c.Mkdir(ALICE, Ino(1), b"a", 0o777),
    c.Mkdir(ALICE, Ino(2), b"a", 0o777),
    c.Mkdir(BOB, Ino(1), b"b", 0o2775),
    c.Create(ALICE, Ino(1), b"c", 0o6755, True),
    c.Create(BOB, Ino(2), b"b", 0o644, True),
    c.Create(EVE, Ino(3), b"c", 0o600, True),
    Commit(
        ALICE, Ino(5), None, 0, 20, False, (Extent(0, 20, blob(3), 0),), (info_of(3),), None,
        content_of(3),
    ),
    c.Link(ALICE, Ino(5), Ino(3), b"a"),
]  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(10, 40), st.integers(1, 9))
def test_tree_equals_its_specification(data: st.DataObject, length: int, size: int) -> None:
    """Any command sequence: outcomes, touched, tree, history and replicas are as specified."""
    run_sequence(Chooser(data), EVERYTHING, length, size)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(10, 30))
def test_content_equals_its_specification(data: st.DataObject, length: int) -> None:
    """Commits, cuts and clones alone, which the mix above rarely strings together."""
    run_sequence(Chooser(data), CONTENT, length, 4)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(10, 30))
def test_renames_equal_their_specification(data: st.DataObject, length: int) -> None:
    """Renames and exchanges alone: directories into each other, over each other, back."""
    run_sequence(Chooser(data), MOVES, length, 4)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(10, 40), st.integers(1, 9))
def test_delegations_equal_their_specification(data: st.DataObject, length: int, size: int) -> None:
    """Three clients that hold directories, number files in them, and are in each other's way."""
    run_sequence(Chooser(data), HELD, length, size, clients=(0, 7, 7, 8, 9))


def run_sequence(
    choose: Chooser,
    kinds: list[str],
    length: int,
    batch_size: int,
    clients: Sequence[int] = (0,),
) -> None:
    connection, tree = open_tree()
    model = TreeModel(schema.ROOT_MODE)
    log: list[tuple[LogIndex, Term, Envelope | None]] = []
    try:
        for index in range(1, len(PRELUDE) + length + 1):
            client, serial = 0, 0
            if index <= len(PRELUDE):
                command = PRELUDE[index - 1]
            else:
                choose.state = model.state
                command = choose.command(choose.one(kinds))
                if choose.rarely():
                    client, serial = 7, choose.number(1, 3)
                elif client := choose.one(clients):
                    serial = index
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
            elif model.touched is not None:
                touched = result.touched
                assert (set(touched.inos), set(touched.entries)) == model.touched, command
                assert before.entries() == model.state.entries()
            else:
                assert_touched(result.touched, before, model.state, command)
                changed = {parent for parent, _ in result.touched.entries}
                assert {attr.ino for attr in result.directories} == changed, command
                assert all(tree.getattr(a.ino) == a for a in result.directories), command
            if index % 5 == 0 or index == len(PRELUDE) + length:
                assert_same(tree, model.state, None)
        assert [info.blob for info in tree.garbage_blobs(99)] == model.garbage()
        assert check(connection) == []
        for index in range(model.floor, len(log) + 1):
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
            assert dict(version.contents) == {
                b.blob: content_of(b.blob & 0xFF) for b in version.blobs if b.is_in_tree
            }
        if node.target is not None:
            assert tree.readlink(Ino(ino), at) == node.target
    if at is None:
        held = {ino: tree.delegation(ino) for ino in state.nodes}
        assert {ino: tuple(d) for ino, d in held.items() if d is not None} == state.held
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
