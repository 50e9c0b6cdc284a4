"""Delegated directories: who holds them, whom that keeps out, and which numbers a holder may give.

The rules are those of tree/delegations.py; that all nodes agree on them is what the digests say.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino, LogIndex, NodeNumber, TimeNs
from pydi_node.records import DELEGATED, EVERY_NAME, Extent, Result, Touched
from pydi_node.tree import delegations
from pydi_node.tree.check import check
from pydi_node.tree.store import Delegation
from tests.unit.tree.driver import EPOCH, ROOT, Driver, entry, info_in_tree, open_tree

HOLDER, OTHER = 5, 6
_serials = count(1)


def by(fs: Driver, client: int, command: c.Command) -> Result:
    """The outcome of a new command of this client."""
    return fs.run(command, client=client, serial=next(_serials))


def ok(fs: Driver, client: int, command: c.Command) -> Any:
    result = by(fs, client, command)
    assert result.errno == 0, (command, result)
    return result.value


@pytest.fixture
def held(fs: Driver) -> Ino:
    """A directory of the holder, with a file "f" and a directory "e" in it."""
    directory = fs.mkdir(b"d")
    fs.create(b"f", directory)
    fs.mkdir(b"e", directory)
    assert ok(fs, HOLDER, c.Delegate(directory)) is True
    return directory


def test_a_directory_has_one_holder(fs: Driver, held: Ino) -> None:
    """Its holder may ask again; nobody else gets it, until it is given back."""
    assert fs.tree.delegation(held) == Delegation(HOLDER, 0)
    assert ok(fs, HOLDER, c.Delegate(held)) is True
    assert ok(fs, OTHER, c.Delegate(held)) is False
    assert ok(fs, OTHER, c.Undelegate((held,))) == 0
    assert ok(fs, HOLDER, c.Undelegate((held, held, ROOT_INO))) == 1
    assert ok(fs, HOLDER, c.Undelegate((held,))) == 0
    assert fs.tree.delegation(held) is None
    assert ok(fs, OTHER, c.Delegate(held)) is True


def test_a_grant_makes_all_names_stale(fs: Driver, held: Ino) -> None:
    """Absent ones, too: what anybody knows of the directory. Asking again makes nothing stale."""
    every = Touched((ROOT_INO,), ((ROOT_INO, EVERY_NAME),))
    assert by(fs, HOLDER, c.Delegate(ROOT_INO)) == Result(0, True, every)
    assert by(fs, HOLDER, c.Delegate(ROOT_INO)) == Result(0, True)
    assert by(fs, OTHER, c.Delegate(ROOT_INO)) == Result(0, False)


def test_what_can_not_be_delegated(fs: Driver, held: Ino) -> None:
    """A file, nothing, a directory without a name; nor anything to the cluster itself."""
    file = fs.create(b"f")
    gone = fs.mkdir(b"gone")
    fs.ok(c.Rmdir(ROOT, ROOT_INO, b"gone"))
    assert by(fs, HOLDER, c.Delegate(file)).errno == errno.ENOTDIR
    assert by(fs, HOLDER, c.Delegate(Ino(99))).errno == errno.ENOENT
    assert ok(fs, HOLDER, c.Delegate(gone)) is False
    assert fs.errno(c.Delegate(ROOT_INO)) == errno.EINVAL
    assert fs.errno(c.ReserveInodes()) == errno.EINVAL


def test_a_recalled_directory_can_not_be_had_again(fs: Driver, held: Ino) -> None:
    """Not even by its holder, who learns so that it is to give it back; it stays held."""
    result = fs.run(c.Recall((held, ROOT_INO, Ino(99))))
    assert result == Result(0, 1, Touched((held,)))
    first = fs.index
    assert fs.tree.delegation(held) == Delegation(HOLDER, first)
    assert ok(fs, HOLDER, c.Delegate(held)) is False
    assert fs.run(c.Recall((held,))) == result
    assert fs.tree.delegation(held) == Delegation(HOLDER, first)
    assert ok(fs, HOLDER, c.Undelegate((held,))) == 1
    assert ok(fs, HOLDER, c.Delegate(held)) is True


def test_a_revocation_ends_what_was_recalled_before(fs: Driver, held: Ino) -> None:
    """And no later delegation of the directory, whoever has that."""
    assert fs.ok(c.Revoke((held,), LogIndex(99))) == 0
    fs.ok(c.Recall((held,)))
    recalled = fs.index
    assert fs.ok(c.Revoke((held,), LogIndex(recalled - 1))) == 0
    ok(fs, HOLDER, c.Undelegate((held,)))
    ok(fs, HOLDER, c.Delegate(held))
    fs.ok(c.Recall((held,)))
    assert fs.ok(c.Revoke((held,), recalled)) == 0
    assert fs.tree.delegation(held) == Delegation(HOLDER, fs.index - 1)
    assert fs.run(c.Revoke((held, held), fs.index)) == Result(0, 1, Touched((held,)))
    assert fs.tree.delegation(held) is None


def others_commands(held: Ino) -> list[c.Command]:
    """Everything that changes names of the directory, or itself."""
    d = held
    return [
        c.Mkdir(ROOT, d, b"n", 0o755),
        c.Create(ROOT, d, b"n", 0o644, True),
        c.Create(ROOT, d, b"f", 0o644, False),
        c.PutFile(ROOT, d, b"n", 0o644, 0, (), ()),
        c.Mknod(ROOT, d, b"n", 0o010600, 0),
        c.Symlink(ROOT, d, b"n", b"t"),
        c.Link(ROOT, Ino(5), d, b"n"),
        c.Unlink(ROOT, d, b"f"),
        c.Unlink(ROOT, d, b"absent"),
        c.Rmdir(ROOT, d, b"e"),
        c.Rename(ROOT, d, b"f", ROOT_INO, b"n", 0),
        c.Rename(ROOT, ROOT_INO, b"g", d, b"n", 0),
        c.SetAttr(ROOT, d, mode=0o700),
        c.SetXattr(ROOT, d, b"user.a", b"v", 0),
        c.RemoveXattr(ROOT, d, b"user.a"),
        # The directory itself is removed, replaced, exchanged or moved.
        c.Rmdir(ROOT, ROOT_INO, b"d"),
        c.Rename(ROOT, ROOT_INO, b"h", ROOT_INO, b"d", 0),
        c.Rename(ROOT, ROOT_INO, b"g", ROOT_INO, b"d", c.RENAME_EXCHANGE),
        c.Rename(ROOT, ROOT_INO, b"d", ROOT_INO, b"n", 0),
    ]


@pytest.mark.parametrize("number", range(len(others_commands(ROOT_INO))))
def test_others_wait_for_the_holder(fs: Driver, held: Ino, number: int) -> None:
    """Nothing happens and nothing is remembered, so the same (client, serial) is executed once it
    is given back. The holder and the cluster itself are not kept out."""
    fs.create(b"g")
    fs.mkdir(b"h")
    command = others_commands(held)[number]
    serial = next(_serials)
    before = fs.rows()
    for _ in range(2):
        assert fs.run(command, OTHER, serial) == Result(DELEGATED, (held,))
    assert fs.rows() == before
    for client in (HOLDER, 0):
        assert by(copy_of(fs), client, command).errno != DELEGATED
    fs.ok(c.Recall((held,)))
    ok(fs, HOLDER, c.Undelegate((held,)))
    result = fs.run(command, OTHER, serial)
    assert result.errno != DELEGATED
    assert fs.run(command, OTHER, serial) == result.kept


def copy_of(fs: Driver) -> Driver:
    """Another tree with the same log: what is done to it is not done to ``fs``."""
    other = Driver()
    other.tree.apply_batch(fs.log)
    assert other.rows() == fs.rows()
    return other


def test_what_others_may_do(fs: Driver, held: Ino) -> None:
    """All that leaves the directory's names alone: files in it, nameless ones, directories in it
    and above it."""
    fs.mkdir(b"above")
    file = fs.tree.lookup(held, b"f").ino
    inner = fs.tree.lookup(held, b"e").ino
    for command in (
        c.SetAttr(ROOT, file, mode=0o600),
        c.Tmpfile(ROOT, held, 0o600),
        c.Link(ROOT, file, ROOT_INO, b"second"),
        c.Mkdir(ROOT, inner, b"n", 0o755),
        c.Rename(ROOT, ROOT_INO, b"above", ROOT_INO, b"higher", 0),
    ):
        ok(fs, OTHER, command)


def test_all_that_is_in_the_way_is_named(fs: Driver, held: Ino) -> None:
    """Both directories of a rename, and what moves: one recall, not one after the other."""
    target = fs.mkdir(b"t")
    inner = fs.tree.lookup(held, b"e").ino
    for directory in (target, inner):
        ok(fs, HOLDER + 10 * directory, c.Delegate(directory))
    result = by(fs, OTHER, c.Rename(ROOT, held, b"e", target, b"n", 0))
    assert result == Result(DELEGATED, (held, target, inner))


def test_a_directory_that_goes_takes_its_delegation_along(fs: Driver) -> None:
    """Removed, or replaced by another one."""
    for name in (b"a", b"b", b"c"):
        ok(fs, HOLDER, c.Delegate(fs.mkdir(name)))
    ok(fs, HOLDER, c.Rmdir(ROOT, ROOT_INO, b"a"))
    ok(fs, HOLDER, c.Rename(ROOT, ROOT_INO, b"b", ROOT_INO, b"c", 0))
    assert [row[0] for row in fs.rows()["delegation"]] == [3]


def test_too_much_is_refused(fs: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one client, and of all of them; there is room for more that holders make."""
    monkeypatch.setattr(delegations, "DELEGATIONS_PER_CLIENT_MAX", 2)
    monkeypatch.setattr(delegations, "DELEGATIONS_MAX", 4)
    monkeypatch.setattr(delegations, "KEPT_FOR_NEW", 1)
    inos = [fs.mkdir(b"%d" % number) for number in range(5)]
    assert [ok(fs, HOLDER, c.Delegate(ino)) for ino in inos] == [True, True, False, False, False]
    assert [ok(fs, OTHER, c.Delegate(ino)) for ino in inos] == [False, False, True, False, False]
    first = Ino(ok(fs, OTHER, c.ReserveInodes()))
    new = [c.Mkdir(ROOT, inos[2], b"%d" % n, 0o755, ino=Ino(first + n)) for n in range(2)]
    assert [by(fs, OTHER, command).errno for command in new] == [0, errno.ENOSPC]
    ok(fs, OTHER, c.Undelegate((first,)))
    ok(fs, HOLDER, c.Undelegate(tuple(inos)))
    assert ok(fs, OTHER, c.Delegate(inos[0])) is True


# --- numbers --------------------------------------------------------------------------------------


def test_reserved_numbers_are_nobody_elses(fs: Driver, held: Ino) -> None:
    """They follow each other; everybody else gets those behind them."""
    first = ok(fs, HOLDER, c.ReserveInodes())
    second = ok(fs, HOLDER, c.ReserveInodes())
    assert second == first + c.INODES_RESERVED
    assert fs.create(b"n") == second + c.INODES_RESERVED
    assert ok(fs, HOLDER, c.Create(ROOT, ROOT_INO, b"m", 0o644, True))[0].ino > second


def put(parent: int, name: bytes, ino: int) -> c.PutFile:
    """An empty file with this number."""
    return c.PutFile(ROOT, Ino(parent), name, 0o644, 0, (), (), ino=Ino(ino))


def test_a_holder_numbers_its_files_itself(fs: Driver, held: Ino) -> None:
    """In any order; the files are like any others."""
    first = ok(fs, HOLDER, c.ReserveInodes())
    last = first + c.INODES_RESERVED - 1
    assert ok(fs, HOLDER, put(held, b"n", last)).ino == last
    info = info_in_tree(1, b"hello")
    command = c.PutFile(
        ROOT, held, b"p", 0o600, 5, (Extent(0, 5, info.blob, 0),), (info,), None, b"hello", first
    )
    assert ok(fs, HOLDER, command).ino == first
    assert fs.tree.lookup(held, b"p") == fs.tree.getattr(first)


def test_a_file_has_the_times_that_programs_were_shown(fs: Driver, held: Ino) -> None:
    """A mount tells of it later. What it does not say is now."""
    first = ok(fs, HOLDER, c.ReserveInodes())
    shown = replace(put(held, b"n", first), atime_ns=TimeNs(3), mtime_ns=TimeNs(4))
    attr = ok(fs, HOLDER, replace(shown, ctime_ns=TimeNs(5)))
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (3, 4, 5)
    attr = ok(fs, HOLDER, put(held, b"m", first + 1))
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns == attr.btime_ns


def test_which_numbers_a_file_can_not_have(fs: Driver, held: Ino) -> None:
    """Used ones, others', such that were not reserved, any at all in a directory that is nobody's
    or was revoked; nothing happens."""
    first = ok(fs, HOLDER, c.ReserveInodes())
    foreign = ok(fs, OTHER, c.ReserveInodes())
    free = fs.mkdir(b"free")
    ok(fs, HOLDER, put(held, b"n", first))
    for parent, ino in (
        (held, first),
        (held, foreign),
        (held, foreign + c.INODES_RESERVED),
        (held, first - 1),
        (held, 1),
        (free, first + 1),
    ):
        assert by(fs, HOLDER, put(parent, b"m", ino)) == Result(errno.ESTALE), (parent, ino)
    fs.ok(c.Recall((held,)))
    ok(fs, HOLDER, put(held, b"late", first + 1))
    fs.ok(c.Revoke((held,), fs.index))
    assert by(fs, HOLDER, put(held, b"m", first + 2)) == Result(errno.ESTALE)


def test_a_name_that_is_taken_uses_no_number(fs: Driver, held: Ino) -> None:
    """EEXIST, as ever; the number stays free."""
    first = ok(fs, HOLDER, c.ReserveInodes())
    assert by(fs, HOLDER, put(held, b"f", first)) == Result(errno.EEXIST)
    assert ok(fs, HOLDER, put(held, b"n", first)).ino == first


def test_reservations_are_few(fs: Driver, held: Ino) -> None:
    """The oldest goes when there are many, others' are left alone; one that is used up is gone."""
    other = ok(fs, OTHER, c.ReserveInodes())
    count_max = c.RESERVATIONS_PER_CLIENT_MAX
    firsts = [ok(fs, HOLDER, c.ReserveInodes()) for _ in range(count_max + 1)]
    assert [row[1] for row in fs.rows()["reservation"]] == [*firsts[1:], other]
    assert by(fs, HOLDER, put(held, b"n", firsts[0])) == Result(errno.ESTALE)
    for ino in range(firsts[1], firsts[1] + c.INODES_RESERVED):
        ok(fs, HOLDER, put(held, b"%d" % ino, ino))
    assert [row[1] for row in fs.rows()["reservation"]] == [*firsts[2:], other]


# --- replicas -------------------------------------------------------------------------------------


def test_a_session_that_expires_leaves_nothing(fs: Driver, held: Ino) -> None:
    """Its directories are touched, for its mount may still be there; others' are left alone."""
    ok(fs, HOLDER, c.ReserveInodes())
    kept = fs.mkdir(b"kept")
    before_ns = TimeNs(EPOCH + (fs.index + 1) * 10**9)
    ok(fs, OTHER, c.ReserveInodes())
    ok(fs, OTHER, c.Delegate(kept))
    assert fs.run(c.ExpireSessions(before_ns)) == Result(0, 1, Touched((held,)))
    rows = fs.rows()
    assert [row[1] for row in rows["delegation"]] == [OTHER]
    assert [row[0] for row in rows["reservation"]] == [OTHER]
    ok(fs, HOLDER, c.Create(ROOT, held, b"n", 0o644, True))


def test_a_batch_that_fails_takes_nothing_from_anybody(fs: Driver, held: Ino) -> None:
    """What is remembered of delegations goes back with the rows."""
    fs.connection.execute(
        "CREATE TEMP TRIGGER fault BEFORE INSERT ON node BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    index = fs.index
    batch = [
        entry(index + 1, c.Undelegate((held,)), HOLDER, 1001),
        entry(index + 2, c.Delegate(ROOT_INO), HOLDER, 1002),
        entry(index + 3, c.SetNode(NodeNumber(2), "host:1", "up", False)),
    ]
    with pytest.raises(Exception, match="fault"):
        fs.tree.apply_batch(batch)
    assert fs.tree.delegation(held) == Delegation(HOLDER, 0)
    assert fs.tree.delegation(ROOT_INO) is None


def test_a_copy_knows_who_holds_what(fs: Driver, held: Ino) -> None:
    """A tree that was opened again, as after a restart or from a snapshot, decides alike."""
    ok(fs, HOLDER, c.ReserveInodes())
    fs.ok(c.Recall((held,)))
    connection, _ = open_tree()
    fs.connection.backup(connection)
    tree = type(fs.tree)(connection)
    assert tree.delegation(held) == fs.tree.delegation(held)
    for command in (c.Create(ROOT, held, b"n", 0o644, True), c.Delegate(held)):
        item = entry(fs.index + 1, command, OTHER, next(_serials))
        assert tree.apply_batch([item]) == fs.tree.apply_batch([item])
    assert tree.digest() == fs.tree.digest()
    assert check(connection) == []
    connection.close()


# --- how they are written -------------------------------------------------------------------------


def test_a_command_without_a_number_is_written_as_ever() -> None:
    """A log of before is read, and a node of before reads what needs nothing new."""
    without = c.PutFile(ROOT, ROOT_INO, b"n", 0o644, 0, (), ())
    assert c.encode(without) == (28, ROOT, 1, b"n", 0o644, 0, (), (), None, None)
    timed = replace(without, ctime_ns=TimeNs(5))
    for command in (without, put(ROOT_INO, b"n", 9), timed):
        assert c.decode(c.encode(command)) == command


@pytest.mark.parametrize("ino", [0, -1, True, "9", 1 << 63])
def test_no_honest_number(ino: Any) -> None:
    """It is refused before it reaches the log."""
    with pytest.raises(c.CommandError, match=r"PutFile\.ino"):
        c.decode((28, ROOT, 1, b"n", 0o644, 0, (), (), None, None, ino))
