"""A Batch: what it may contain, when its commands are refused, and that it is nothing else than
its commands one after the other.
"""

from __future__ import annotations

import errno
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import Result
from pydi_node.tree import delegations
from pydi_node.tree.store import Delegation
from tests.unit.tree.driver import ALICE, EPOCH, EVE, ROOT, Driver, extent, info_in_tree

HOLDER, OTHER = 5, 6
_serials = count(1)


def by(fs: Driver, client: int, command: c.Command) -> Result:
    return fs.run(command, client=client, serial=next(_serials))


def many(*commands: c.Command) -> c.Batch:
    return c.Batch(commands, (TimeNs(EPOCH),) * len(commands))


def batch(fs: Driver, *commands: c.Command, client: int = HOLDER) -> list[int]:
    """The errnos of its commands."""
    result = by(fs, client, many(*commands))
    assert result.errno == 0
    return [code for code, _ in result.value]


def hold(fs: Driver, name: bytes, client: int = HOLDER) -> Ino:
    directory = fs.mkdir(name)
    assert by(fs, client, c.Delegate(directory)).value is True
    return directory


def reserve(fs: Driver, client: int = HOLDER) -> Ino:
    return Ino(by(fs, client, c.ReserveInodes()).value)


def names(fs: Driver, directory: int, at: LogIndex | None = None) -> dict[bytes, int]:
    return {entry.name: entry.attr.ino for entry in fs.tree.readdir(Ino(directory), 0, 99, at)}


def test_its_commands_are_applied_in_order(fs: Driver) -> None:
    """Each builds on the one before it; values, touched and directories are those of all."""
    held = hold(fs, b"d")
    a, b = fs.create(b"a", held), fs.create(b"b", held)
    first = reserve(fs)
    content = b"content"
    put = c.PutFile(
        ROOT, first, b"f", 0o644, 7, (extent(0, 7, 1),), (info_in_tree(1, content),), None, content,
        Ino(first + 2),
    )  # fmt: skip
    result = by(
        fs,
        HOLDER,
        many(
            c.Unlink(ROOT, held, b"b"),
            c.Rename(ROOT, held, b"a", held, b"b", 0),
            c.Mkdir(ROOT, held, b"e", 0o755, ino=first),
            c.Symlink(ROOT, first, b"l", b"to", Ino(first + 1)),
            c.SetAttr(ROOT, a, mode=0o600),
            c.Rename(ROOT, held, b"b", first, b"b", 0),
            put,
        ),
    )
    assert [code for code, _ in result.value] == [0] * 7
    assert names(fs, held) == {b"e": first}
    assert names(fs, first) == {b"l": first + 1, b"b": a, b"f": first + 2}
    assert fs.tree.getattr(a).mode & 0o7777 == 0o600
    assert fs.tree.file_version(Ino(first + 2)).contents[0][1] == content
    assert fs.tree.delegation(first) == Delegation(HOLDER, 0)
    assert {held, a, b, first} <= set(result.touched.inos)
    assert {(held, b"a"), (held, b"b"), (first, b"b")} <= set(result.touched.entries)
    shown = {attr.ino: attr for attr in result.directories}
    assert shown[held] == fs.tree.getattr(held)


def test_each_is_done_when_programs_saw_it(fs: Driver) -> None:
    """Times are those of the mount; but nothing is done after its log entry."""
    held = hold(fs, b"d")
    a, b = fs.create(b"a", held), fs.create(b"b", held)
    moves = [c.Rename(ROOT, held, name, held, name * 2, 0) for name in (b"a", b"b")]
    early, late = TimeNs(EPOCH + 5), TimeNs(EPOCH * 2)
    by(fs, HOLDER, c.Batch(tuple(moves), (early, late)))
    entry_ns = TimeNs(EPOCH + fs.index * 10**9)
    assert [fs.tree.getattr(ino).ctime_ns for ino in (a, b, held)] == [early, entry_ns, entry_ns]
    assert fs.create(b"later")
    assert fs.tree.getattr(ROOT_INO).mtime_ns == entry_ns + 10**9


def test_history_has_what_was_before_it(fs: Driver) -> None:
    """Names and inodes as they were when the entry came; nothing of what was true inside it."""
    held = hold(fs, b"d")
    a = fs.create(b"a", held)
    before = fs.index
    assert batch(
        fs,
        c.Rename(ROOT, held, b"a", held, b"b", 0),
        c.Rename(ROOT, held, b"b", held, b"c", 0),
        c.Unlink(ROOT, held, b"c"),
    ) == [0, 0, 0]
    assert names(fs, held, before) == {b"a": a}
    assert names(fs, held) == {}
    assert fs.tree.getattr(a).nlink == 0


def test_nothing_is_done_in_a_directory_that_was_taken_back(fs: Driver) -> None:
    """The fence: a late unlink never removes somebody else's newer file. Others are executed."""
    lost, kept = hold(fs, b"lost"), hold(fs, b"kept")
    fs.create(b"a", lost)
    fs.create(b"a", kept)
    file = fs.create(b"b", lost)
    fs.ok(c.Recall((lost,)))
    fs.ok(c.Revoke((lost,), fs.index))
    done = batch(
        fs,
        c.Unlink(ROOT, lost, b"a"),
        c.SetAttr(ROOT, file, mode=0o600),
        c.SetAttr(ROOT, lost, mode=0o700),
        c.Unlink(ROOT, kept, b"a"),
        c.Mkdir(ROOT, lost, b"n", 0o755, ino=reserve(fs)),
    )
    assert done == [errno.ESTALE, errno.ESTALE, errno.ESTALE, 0, errno.ESTALE]
    assert names(fs, lost).keys() == {b"a", b"b"}
    assert names(fs, kept) == {}
    assert fs.tree.getattr(file).mode & 0o7777 == 0o644


def test_what_comes_after_a_refused_command_is_refused(fs: Driver) -> None:
    """In its directories, and what was to be made; nowhere else."""
    one, two, other = hold(fs, b"one"), hold(fs, b"two"), hold(fs, b"other")
    fs.create(b"a", two)
    b = fs.create(b"b", two)
    fs.create(b"a", other)
    first = reserve(fs)
    done = batch(
        fs,
        c.Mkdir(ROOT, one, b"d", 0o755, ino=Ino(first + 99)),  # not a number of its own
        c.Mkdir(ROOT, Ino(first + 99), b"e", 0o755, ino=first),
        c.Rename(ROOT, one, b"x", two, b"x", 0),
        c.Rename(ROOT, two, b"a", two, b"b", 0),
        c.SetAttr(ROOT, b, mode=0o600),
        c.Unlink(ROOT, other, b"a"),
    )
    assert done == [errno.ESTALE] * 5 + [0]
    assert names(fs, two).keys() == {b"a", b"b"}


def test_a_directory_that_somebody_else_holds_stays(fs: Driver) -> None:
    """Neither removed, nor moved, nor replaced by the holder of the directory above it."""
    held = hold(fs, b"d")
    inner = fs.mkdir(b"e", held)
    fs.mkdir(b"f", held)
    assert by(fs, OTHER, c.Delegate(inner)).value is True
    for command in (
        c.Rmdir(ROOT, held, b"e"),
        c.Rename(ROOT, held, b"e", held, b"g", 0),
        c.Rename(ROOT, held, b"f", held, b"e", 0),
    ):
        assert batch(fs, command) == [errno.ESTALE]
    assert names(fs, held).keys() == {b"e", b"f"}


def test_who_makes_directories_without_end_gets_no_more_than_its_share(
    fs: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a mount that does so could take away what others, who were answered, need."""
    monkeypatch.setattr(delegations, "DELEGATIONS_PER_CLIENT_MAX", 3)
    held, first = hold(fs, b"d"), reserve(fs)
    made = [c.Mkdir(c.ROOT_CALLER, held, b"%d" % n, 0o755, ino=Ino(first + n)) for n in range(3)]
    assert batch(fs, *made) == [0, 0, errno.ENOSPC]
    assert names(fs, held).keys() == {b"0", b"1"}
    theirs = hold(fs, b"theirs", OTHER)
    assert batch(
        fs,
        c.Mkdir(c.ROOT_CALLER, theirs, b"a", 0o755, ino=reserve(fs, OTHER)),
        client=OTHER,
    ) == [0]


def test_it_is_executed_once(fs: Driver) -> None:
    """A repetition gets what is needed of the first outcome; also after a restart of the tree."""
    held = hold(fs, b"d")
    fs.create(b"a", held)
    first = reserve(fs)
    command = many(
        c.Unlink(ROOT, held, b"a"),
        c.Unlink(EVE, ROOT_INO, b"d"),
        c.PutFile(ROOT, held, b"f", 0o644, 0, (), (), ino=first),
    )
    once = fs.run(command, client=HOLDER, serial=999)
    again = fs.run(command, client=HOLDER, serial=999)
    fs.tree._sessions.flush()
    fs.tree._sessions.forget()
    later = fs.run(command, client=HOLDER, serial=999)
    assert [code for code, _ in once.value] == [0, errno.ESTALE, 0]
    assert again.value == later.value
    assert again.value == ((0, None), (errno.ESTALE, None), (0, once.value[2][1]))


def test_others_hold_up_nothing_of_it(fs: Driver) -> None:
    """It is no command that waits for a directory; the cluster itself has none to tell of."""
    held = hold(fs, b"d", OTHER)
    fs.create(b"a", held)
    assert batch(fs, c.Unlink(ROOT, held, b"a")) == [errno.ESTALE]
    assert fs.errno(many(c.Unlink(ROOT, held, b"a"))) == errno.EINVAL


@pytest.mark.parametrize(
    "commands",
    [
        (),
        (c.Unlink(ROOT, ROOT_INO, b"a"),) * (c.BATCH_COMMANDS_MAX + 1),
        (c.SetAttr(ROOT, ROOT_INO, size=0),),
        (c.Mkdir(ROOT, ROOT_INO, b"a", 0o755),),
        (c.Symlink(ROOT, ROOT_INO, b"a", b"b"),),
        (c.PutFile(ROOT, ROOT_INO, b"a", 0o644, 0, (), ()),),
        (
            c.PutFile(ROOT, ROOT_INO, b"a", 0o644, 0, (), (), ino=Ino(9)),
            c.Unlink(ROOT, ROOT_INO, b"a"),
        ),
        (many(c.Unlink(ROOT, ROOT_INO, b"a")),),
        (c.ExpireSessions(c.TimeNs(0)),),
        (c.Delegate(ROOT_INO),),
        (c.Unlink(c.Caller(0, 0, (1,) * 40_000), ROOT_INO, b"a"),) * 2,
    ],
    ids=str,
)
def test_what_no_batch_contains(commands: tuple[c.Command, ...]) -> None:
    with pytest.raises(c.CommandError):
        c.decode(c.encode(many(*commands)))


def test_there_is_a_time_for_each_command() -> None:
    with pytest.raises(c.CommandError):
        c.decode(c.encode(c.Batch((c.Unlink(ROOT, ROOT_INO, b"a"),), ())))


def test_a_batch_inside_many_is_not_looked_into() -> None:
    value: Any = c.encode(c.Unlink(ROOT, ROOT_INO, b"a"))
    for _ in range(5000):
        value = (c.COMMAND_CODES[c.Batch], (value,), (0,))
    with pytest.raises(c.CommandError):
        c.decode(value)


# --- the same, one by one -------------------------------------------------------------------------

CALLERS = [ROOT, ROOT, ALICE, EVE]
NAMES = [b"a", b"b", b"c"]


def _tree(fs: Driver) -> tuple[list[Ino], list[Ino]]:
    """Directories that are held, but the last; and numbers."""
    held = [hold(fs, name) for name in (b"one", b"two")]
    inner = fs.mkdir(b"c", held[0])
    assert by(fs, HOLDER, c.Delegate(inner)).value is True
    for parent in (*held, inner):
        fs.create(b"a", parent)
    fs.ok(c.Link(ROOT, fs.create(b"b", held[0]), held[1], b"b"))
    first = reserve(fs)
    not_held = fs.mkdir(b"free")
    fs.create(b"a", not_held)
    fs.ok(c.SetAttr(ROOT, held[1], mode=0o1777))
    return [*held, inner, not_held], [Ino(first + number) for number in range(60)]


def _command(draw: Any, directories: list[Ino], numbers: list[Ino], files: list[Ino]) -> c.Command:
    one = st.sampled_from
    caller, at, name = draw(one(CALLERS)), draw(one(directories)), draw(one(NAMES))
    match draw(one(["unlink", "rename", "rename", "rmdir", "mkdir", "symlink", "setattr"])):
        case "unlink":
            return c.Unlink(caller, at, name)
        case "rename":
            flags = draw(one([0, 0, c.RENAME_NOREPLACE, c.RENAME_EXCHANGE]))
            return c.Rename(caller, at, name, draw(one(directories)), draw(one(NAMES)), flags)
        case "rmdir":
            return c.Rmdir(caller, at, name)
        case "mkdir":
            number = numbers.pop()
            directories.append(number)
            return c.Mkdir(caller, at, name, 0o755, ino=number)
        case "symlink":
            files.append(numbers.pop())
            return c.Symlink(caller, at, name, b"to", files[-1])
        case _:
            return c.SetAttr(
                caller, draw(one([*directories, *files])), mode=draw(one([0o700, 0o755]))
            )


def _shown(fs: Driver, directories: list[Ino]) -> Any:
    """All that does not depend on the log indices and times."""

    def shown(ino: Ino) -> Any:
        attr = fs.tree.getattr(ino)
        return (attr.mode, attr.nlink, attr.uid, attr.gid, attr.size)

    def of(directory: Ino) -> Any:
        if not fs.connection.execute("SELECT 1 FROM inode WHERE ino = ?", (directory,)).fetchone():
            return None
        inside = names(fs, directory)
        return (shown(directory), {name: (ino, shown(Ino(ino))) for name, ino in inside.items()})

    fs.tree.commit()
    fs.tree._write_back()
    return {directory: (of(directory), fs.tree.delegation(directory)) for directory in directories}


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_batch_equals_its_commands_one_by_one(data: st.DataObject) -> None:
    """Where none is refused; and behind a refused one those that share no directory with it."""
    together, alone = Driver(), Driver()
    directories, numbers = _tree(together)
    assert _tree(alone)[0] == directories
    files = [Ino(ino) for ino in names(together, directories[0]).values()]
    commands = [
        _command(data.draw, directories, numbers, files)
        for _ in range(data.draw(st.integers(1, 12)))
    ]
    done = batch(together, *commands)
    for command, code in zip(commands, done, strict=True):
        if code != errno.ESTALE:
            assert by(alone, HOLDER, command).errno == code, command
    assert _shown(together, directories) == _shown(alone, directories)
    together.close()
    alone.close()
