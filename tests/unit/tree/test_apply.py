"""Batches are all or nothing, replays give the same tree, and no command is applied twice."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pydi_node import commands as c
from pydi_node.errors import NoSpaceError
from pydi_node.ids import ROOT_INO, ClientId, Ino, LogIndex, NodeNumber, Serial, Term, TimeNs
from pydi_node.records import FACTOR_XATTR, Result
from pydi_node.tree import SESSION_WINDOW, Tree, schema, store
from pydi_node.tree.check import check
from tests.unit.tree.driver import (
    ROOT,
    Driver,
    Entry,
    blob,
    blob_info,
    entry,
    extent,
    open_tree,
)


def creates(first: int, last: int) -> list[Entry]:
    return [
        entry(i, c.Create(ROOT, ROOT_INO, b"%d" % i, 0o644, True), client=5, serial=i)
        for i in range(first, last + 1)
    ]


def names_in_motion(seed: int, count: int) -> list[Entry]:
    """Random commands on few names in few directories, so that they meet each other's."""
    rng = random.Random(seed)
    commands: list[c.Command] = [c.Mkdir(ROOT, ROOT_INO, b"%d" % i, 0o755) for i in range(3)]
    while len(commands) < count:
        parent, other = Ino(rng.choice((1, 2, 3, 4, 9))), Ino(rng.choice((1, 2, 3, 4)))
        name, second = b"%d" % rng.randrange(6), b"%d" % rng.randrange(6)
        commands.append(
            rng.choice(
                (
                    c.Create(ROOT, parent, name, 0o644, True),
                    c.Create(ROOT, parent, name, 0o644, False),
                    c.Mkdir(ROOT, parent, name, 0o755),
                    c.Link(ROOT, Ino(rng.randrange(2, 30)), other, name),
                    c.Unlink(ROOT, parent, name),
                    c.Unlink(ROOT, other, second),
                    c.Rmdir(ROOT, parent, name),
                    c.Rename(ROOT, parent, name, other, second, rng.choice((0, 0, 1, 2))),
                    c.PurgeOrphans(tuple(Ino(i) for i in range(2, 30))),
                    c.SetXattr(ROOT, parent, FACTOR_XATTR, b"3", 0),
                    c.SpreadFactors(5),
                )
            )
        )
    return [entry(i, command, client=5, serial=i) for i, command in enumerate(commands, 1)]


def everything() -> list[Entry]:
    """A log with every command in it, and failures, over one client and the cluster's own."""
    two = NodeNumber(2)
    commands: list[c.Command | None] = [
        c.Mkdir(ROOT, ROOT_INO, b"d", 0o755),
        c.Create(ROOT, ROOT_INO, b"f", 0o644, True),
        c.Create(ROOT, ROOT_INO, b"f", 0o644, False),
        c.Mknod(ROOT, ROOT_INO, b"p", 0o010600, 0),
        c.Symlink(ROOT, ROOT_INO, b"s", b"t"),
        c.Tmpfile(ROOT, ROOT_INO, 0o600),
        c.Link(ROOT, Ino(6), Ino(2), b"t"),
        c.Create(ROOT, ROOT_INO, b"g", 0o644, True),
        c.Compact(Ino(7), LogIndex(8), (), ()),
        c.PutFile(ROOT, ROOT_INO, b"q", 0o644, 0, (), ()),
        None,
        c.Commit(ROOT, Ino(3), None, None, 30, False, (extent(0, 30, 1),), (blob_info(1),)),
        c.CloneRange(ROOT, Ino(3), 10, Ino(6), 0, 99),
        c.Commit(ROOT, Ino(3), None, 5, 9, True, (extent(0, 4, 2),), (blob_info(2),)),
        c.SetAttr(ROOT, Ino(3), mode=0o600, size=3),
        c.SetXattr(ROOT, Ino(3), b"user.a", b"v", 0),
        c.RemoveXattr(ROOT, Ino(3), b"user.a"),
        c.Rename(ROOT, ROOT_INO, b"f", Ino(2), b"t", c.RENAME_EXCHANGE),
        c.Rename(ROOT, ROOT_INO, b"p", ROOT_INO, b"q", 0),
        c.Unlink(ROOT, ROOT_INO, b"q"),
        c.Rmdir(ROOT, ROOT_INO, b"d"),
        c.PurgeOrphans((Ino(4),)),
        c.SetSetting("replicas", "3"),
        c.SetHolders(blob(1), (two,), (NodeNumber(1),)),
        c.SetNode(two, "host:1", "up", False),
        c.SetToken(b"12345678", True, b"/d", 9, 8, "note", False),
        c.SetSecret(1, b"new", b"old", 9),
        c.RetireSecret(1),
        c.ForgetBlobs((blob(1),)),
        c.ExpireSessions(TimeNs(0)),
        c.TrimHistory(LogIndex(3), 99),
        c.SetXattr(ROOT, ROOT_INO, FACTOR_XATTR, b"3", 0),
        c.SpreadFactors(99),
        c.ReserveInodes(),
        c.Delegate(ROOT_INO),
        c.PutFile(ROOT, ROOT_INO, b"m", 0o644, 0, (), (), ino=Ino(70)),
        c.Recall((ROOT_INO,)),
        c.Undelegate((Ino(3),)),
        c.Batch((c.Mkdir(ROOT, ROOT_INO, b"n", 0o755, ino=Ino(71)),), (TimeNs(3),)),
        c.Revoke((ROOT_INO,), LogIndex(99)),
    ]
    return [
        entry(i, command, client=5 if isinstance(command, _OF_CLIENTS) else 0, serial=i)
        for i, command in enumerate(commands, 1)
    ]


_OF_CLIENTS = tuple(
    cls for cls, code in c.COMMAND_CODES.items() if code in c.CLIENT_COMMANDS
)  # a tuple for isinstance


def test_a_batch_gives_one_result_for_each_entry(fs: Driver) -> None:
    """Entries without a command too; applied index and term are those of the last."""
    envelope = entry(1, c.Mkdir(ROOT, ROOT_INO, b"d", 0o755))[2]
    results = fs.tree.apply_batch(
        [
            (LogIndex(1), Term(1), None),
            (LogIndex(2), Term(4), envelope),
            (LogIndex(3), Term(4), None),
        ]
    )
    assert results[0] == results[2] == Result()
    assert results[1].value.ino == 2
    assert (fs.tree.applied_index, fs.tree.applied_term) == (3, 4)
    assert fs.tree.apply_batch([]) == []


def test_entries_must_follow_each_other(fs: Driver) -> None:
    """A gap, a repetition or an older term is a bug of the caller; nothing is applied."""
    fs.tree.apply_batch(creates(1, 3))
    before = fs.tree.digest()
    for batch in (
        creates(5, 6),
        creates(3, 4),
        [*creates(4, 4), *creates(6, 6)],
        [(LogIndex(4), Term(0), None)],
    ):
        with pytest.raises(AssertionError):
            fs.tree.apply_batch(batch)
        assert fs.tree.digest() == before
    assert [r.errno for r in fs.tree.apply_batch(creates(4, 5))] == [0, 0]


def test_a_failure_inside_undoes_the_whole_batch(fs: Driver) -> None:
    """Database and caches are as before, and the batch can be applied again when the cause is gone:
    inodes, blobs, sessions, ticks, counters."""
    fs.tree.apply_batch(everything()[:8])
    before, rest = fs.tree.digest(), everything()[8:]
    fs.connection.execute(
        "CREATE TEMP TRIGGER fault BEFORE INSERT ON node BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(sqlite3.IntegrityError):
        fs.tree.apply_batch(rest)
    assert (fs.tree.digest(), fs.tree.applied_index) == (before, 8)
    fs.connection.execute("DROP TRIGGER temp.fault")
    fs.tree.apply_batch(rest)
    connection, other = open_tree()
    other.apply_batch(everything())
    assert other.digest() == fs.tree.digest()
    connection.close()


def test_a_full_disk_undoes_the_batch_and_says_so(fs: Driver) -> None:
    """NoSpaceError; what was applied before stays usable, and with room it goes on."""
    fs.tree.apply_batch(creates(1, 50))
    before = fs.tree.digest()
    (pages,) = fs.connection.execute("PRAGMA page_count").fetchone()
    fs.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(NoSpaceError):
        fs.tree.apply_batch(creates(51, 900))
    assert (fs.tree.digest(), fs.tree.applied_index) == (before, 50)
    fs.connection.execute("PRAGMA max_page_count = 1000000")
    fs.tree.apply_batch(creates(51, 900))


def test_others_see_what_was_committed(tmp_path: Path) -> None:
    """``advance`` answers this tree's queries at once and costs no write; ``commit`` shows it to
    other connections, and a program that is killed keeps it."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    reader = sqlite3.connect(tmp_path / "tree.db", isolation_level=None)
    assert [r.errno for r in tree.advance(creates(1, 30))] == [0] * 30
    tree.advance_membership(LogIndex(31), Term(1), b"members")
    assert (tree.uncommitted, tree.applied_index, tree.counters().files) == (31, 31, 31)
    assert len(tree.readdir(ROOT_INO, 0, 99)) == 30
    assert Tree(reader).applied_index == 0
    tree.commit()
    assert tree.uncommitted == 0
    assert (Tree(reader).digest(), Tree(reader).membership) == (tree.digest(), (31, b"members"))
    tree.advance(creates(32, 40))
    reader.close()
    connection.close()
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    assert (tree.applied_index, check(connection)) == (31, [])
    connection.close()


@pytest.mark.parametrize("where", ["apply", "write back", "commit"])
def test_what_fails_takes_nothing_along_that_was_applied_before(fs: Driver, where: str) -> None:
    """A batch that fails, or a commit, leaves the tree as it was: what was applied and answered is
    still there for queries, repetitions and later commits, and was executed once."""
    log = everything()
    fs.tree.apply_batch(log[:4])
    if where != "commit":
        event = {"apply": "DELETE ON xattr", "write back": "UPDATE ON meta"}[where]
        fs.connection.execute(
            f"CREATE TEMP TRIGGER fault BEFORE {event} BEGIN SELECT RAISE(ABORT, 'f'); END"
        )
    fs.tree.advance(log[4:8])
    fs.tree.advance_membership(LogIndex(9), Term(1), b"members")
    later = [(LogIndex(i + 1), t, e) for i, t, e in log[8:]]
    first = fs.tree.advance(later[:4])
    if where == "apply":
        with pytest.raises(sqlite3.IntegrityError):
            fs.tree.advance(later[4:])
        fs.connection.execute("DROP TRIGGER temp.fault")
    elif where == "write back":
        for attempt in (fs.tree.commit, fs.tree.blob_totals, fs.tree.commit):
            with pytest.raises(sqlite3.IntegrityError):
                attempt()
        fs.connection.execute("DROP TRIGGER temp.fault")
    else:
        fs.connection.set_authorizer(_refuse_commit)
        for _ in range(2):
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                fs.tree.commit()
        fs.connection.set_authorizer(None)
    assert (fs.tree.applied_index, fs.tree.uncommitted) == (13, 9)
    assert fs.tree.membership == (9, b"members")
    fs.tree.advance(later[4:])
    fs.tree.commit()

    connection, other = open_tree()
    other.apply_batch(log[:8])
    other.set_membership(LogIndex(9), Term(1), b"members")
    assert other.apply_batch(later)[:4] == first
    assert other.digest() == fs.tree.digest()
    connection.close()


def test_a_disk_that_fails_twice_leaves_a_whole_tree(tmp_path: Path) -> None:
    """A commit fails, and so does a query while what it held is applied again: the node stops, and
    what its way out commits is whole, without a part of the command in which it happened."""
    path = str(tmp_path / "tree.db")
    connection, tree = open_tree(path)
    log = everything()
    tree.apply_batch(log[:4])
    broken = False

    def authorize(action: int, argument: str | None, *rest: object) -> int:
        nonlocal broken
        answer = _refuse_commit(action, argument, *rest)
        broken = broken or answer == sqlite3.SQLITE_DENY
        return answer

    connection.create_function("broken", 0, lambda: broken)
    connection.execute(
        "CREATE TEMP TRIGGER fault BEFORE DELETE ON xattr WHEN broken()"
        " BEGIN SELECT RAISE(ABORT, 'f'); END"
    )
    tree.advance(log[4:])
    connection.set_authorizer(authorize)
    with pytest.raises(sqlite3.IntegrityError):
        tree.commit()
    connection.set_authorizer(None)
    tree.commit()
    connection.close()
    connection, tree = open_tree(path)
    assert (tree.applied_index, check(connection)) == (4, [])
    tree.apply_batch(log[4:])
    assert check(connection) == []
    connection.close()


def _refuse_commit(action: int, argument: str | None, *_: object) -> int:
    refused = action == sqlite3.SQLITE_TRANSACTION and argument == "COMMIT"
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def test_a_crash_at_any_statement_leaves_a_whole_tree(tmp_path: Path) -> None:
    """Copies of the files taken while a batch is being written are trees of before or after it, and
    replaying the log from their applied index gives the same tree."""
    path = tmp_path / "tree.db"
    connection, tree = open_tree(str(path))
    log = everything()
    copies: list[Path] = []

    def copy(_: str) -> None:
        target = tmp_path / f"{len(copies)}.db"
        for suffix in ("", "-wal"):
            if os.path.exists(f"{path}{suffix}"):
                shutil.copyfile(f"{path}{suffix}", f"{target}{suffix}")
        copies.append(target)

    tree.apply_batch(log[:6])
    connection.set_trace_callback(copy)
    tree.apply_batch(log[6:15])
    tree.apply_batch(log[15:])
    connection.set_trace_callback(None)
    expected = tree.digest()
    connection.close()

    assert len(copies) > 50
    starts = set()
    for crashed in copies:
        connection, tree = open_tree(str(crashed))
        starts.add(tree.applied_index)
        assert check(connection) == []
        tree.apply_batch(log[tree.applied_index :])
        assert tree.digest() == expected
        connection.close()
    assert starts == {6, 15}


def test_an_abandoned_batch_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 in the middle of a batch, for real: the next start finds the batch before."""
    path = tmp_path / "tree.db"
    program = (
        "import os, sys\n"
        "from tests.unit.tree.test_apply import creates, open_tree\n"
        "connection, tree = open_tree(sys.argv[1])\n"
        "connection.execute('PRAGMA cache_size = 5')\n"
        "tree.apply_batch(creates(1, 10))\n"
        "seen = []\n"
        "def count(sql):\n"
        "    seen.append(sql)\n"
        "    if len(seen) == 900: os.kill(os.getpid(), 9)\n"
        "connection.set_trace_callback(count)\n"
        "tree.apply_batch(creates(11, 1000))\n"
    )
    assert _python(program, str(path)).returncode == -9
    connection, tree = open_tree(str(path))
    assert (tree.applied_index, check(connection)) == (10, [])
    tree.apply_batch(creates(11, 20))
    connection.close()


def test_the_tree_does_not_depend_on_the_hash_seed() -> None:
    """Two processes with different PYTHONHASHSEED give the same digest and the same Results."""
    program = (
        "from tests.unit.tree.test_apply import everything, open_tree\n"
        "connection, tree = open_tree()\n"
        "print(tree.apply_batch(everything()), tree.digest().hex())\n"
        "connection.close()\n"
    )
    outputs = [_python(program, seed=str(seed)).stdout for seed in (1, 2)]
    assert outputs[0] == outputs[1] != ""


def _python(program: str, *arguments: str, seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- membership, checkpoint -----------------------------------------------------------------------


def test_membership_is_applied_in_the_logs_order(tmp_path: Path) -> None:
    """It takes an index of its own, or records at the present one; it survives a restart."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    assert tree.membership == (0, b"")
    tree.set_membership(LogIndex(0), Term(0), b"first")
    assert (tree.membership, tree.applied_index) == ((0, b"first"), 0)
    tree.apply_batch(creates(1, 2))
    tree.set_membership(LogIndex(3), Term(7), b"\0second")
    with pytest.raises(AssertionError):
        tree.set_membership(LogIndex(5), Term(7), b"gap")
    tree.apply_batch([(LogIndex(4), Term(7), None)])
    connection.close()
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    assert tree.membership == (3, b"\0second")
    assert (tree.applied_index, tree.applied_term) == (4, 7)
    connection.close()


def test_a_checkpoint_moves_everything_into_the_file(tmp_path: Path) -> None:
    """What it returns is in the database file without its WAL: the log may be cut up to there."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(creates(1, 30))
    assert tree.checkpoint() == 30
    shutil.copyfile(tmp_path / "tree.db", tmp_path / "copy.db")
    connection.close()
    connection, tree = open_tree(str(tmp_path / "copy.db"))
    assert (tree.applied_index, check(connection)) == (30, [])
    connection.close()


def test_a_checkpoint_does_not_wait_for_readers(tmp_path: Path) -> None:
    """Behind a snapshot that is being read, only what was on disk before it counts."""
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    tree.apply_batch(creates(1, 10))
    assert tree.checkpoint() == 10
    reader = sqlite3.connect(tmp_path / "tree.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entry").fetchall()
    tree.apply_batch(creates(11, 20))
    assert tree.checkpoint() == 10
    reader.execute("ROLLBACK")
    reader.close()
    assert tree.checkpoint() == 20
    connection.close()


# --- exactly once ---------------------------------------------------------------------------------


def test_a_repeated_command_gets_its_first_result(tmp_path: Path) -> None:
    """Every command, success or failure, equal in value and types, from cache and from disk; the
    repetition changes nothing."""
    log = [item for item in everything() if item[2] is not None]
    envelopes: list[c.Envelope] = []
    for index, _, envelope in log:
        assert envelope is not None
        envelopes.append(c.Envelope(ClientId(9), Serial(index), envelope.time_ns, envelope.command))
    connection, tree = open_tree(str(tmp_path / "tree.db"))
    first = [tree.apply(LogIndex(i), Term(1), e) for i, e in enumerate(envelopes, 1)]
    assert {type(e.command) for e in envelopes} == set(c.COMMAND_CODES)
    assert {r.errno for r in first} == {0, errno.ENOTEMPTY}
    rows = Driver.rows(_driver(connection))
    for reopened in (False, True):
        if reopened:
            connection.close()
            connection, tree = open_tree(str(tmp_path / "tree.db"))
        batch = [(LogIndex(tree.applied_index + i), Term(1), e) for i, e in enumerate(envelopes, 1)]
        again = tree.apply_batch(batch)
        kept = [result.kept for result in first]
        assert again == kept
        assert _types(again) == _types(kept)
        assert Driver.rows(_driver(connection)) == rows
    connection.close()


def _driver(connection: sqlite3.Connection) -> Driver:
    driver = Driver.__new__(Driver)
    driver.connection = connection
    return driver


def _types(value: Any) -> Any:
    return (type(value), [_types(v) for v in value] if isinstance(value, (tuple, list)) else None)


def test_a_repetition_within_one_batch_is_found(fs: Driver) -> None:
    """A client's retry may be proposed right behind the first try."""
    command = c.Create(ROOT, ROOT_INO, b"f", 0o644, True)
    first, second = fs.tree.apply_batch([entry(i, command, client=5, serial=1) for i in (1, 2)])
    assert first.errno == 0
    assert second == first.kept
    assert fs.tree.session_result(ClientId(5), Serial(1)) == first.kept


def test_a_failure_is_remembered_too(fs: Driver) -> None:
    """The answer was given: a retry must not succeed only because the world has changed."""
    unlink = c.Unlink(ROOT, ROOT_INO, b"f")
    assert fs.run(unlink, client=5, serial=1).errno == errno.ENOENT
    fs.create(b"f")
    assert fs.run(unlink, client=5, serial=1).errno == errno.ENOENT
    assert fs.run(unlink, client=5, serial=2).errno == 0


def test_serials_may_arrive_in_any_order(fs: Driver) -> None:
    """Commands under way together overtake each other; each is applied once."""
    order = [3, 1, 2, 5, 4, 1, 5]
    results = [
        fs.run(c.Create(ROOT, ROOT_INO, b"%d" % serial, 0o644, True), client=5, serial=serial)
        for serial in order
    ]
    assert [r.errno for r in results] == [0] * 7
    assert (results[5], results[6]) == (results[1].kept, results[3].kept)
    assert len(fs.tree.readdir(ROOT_INO, 0, 99)) == 5


def test_what_left_the_window_is_refused(fs: Driver) -> None:
    """EIO: nobody knows any more whether it was applied, so it is not applied (again)."""
    touch = c.SetAttr(ROOT, ROOT_INO, atime_ns=c.TIME_NOW)
    fs.run(touch, client=5, serial=1)
    fs.run(touch, client=5, serial=2)
    fs.run(touch, client=5, serial=SESSION_WINDOW + 1)
    create = c.Create(ROOT, ROOT_INO, b"f", 0o644, True)
    assert fs.run(create, client=5, serial=1) == Result(errno.EIO)
    assert fs.tree.session_result(ClientId(5), Serial(1)) is None
    assert fs.run(create, client=5, serial=2).value == fs.tree.getattr(ROOT_INO)._replace(
        atime_ns=fs.log[1][2].time_ns,  # type: ignore[union-attr]  # it is a command
        ctime_ns=fs.log[1][2].time_ns,  # type: ignore[union-attr]
        changed=LogIndex(2),
    )


def test_a_client_keeps_no_more_results_than_the_window(fs: Driver) -> None:
    """New results take the place of the oldest, within a batch as well."""
    touch = c.SetAttr(ROOT, ROOT_INO, atime_ns=c.TIME_NOW)
    count = SESSION_WINDOW + 10
    fs.tree.apply_batch([entry(i, touch, client=5, serial=i) for i in range(1, count + 1)])
    kept = sorted(row[2] for row in fs.rows()["session_result"])
    assert kept == list(range(11, count + 1))


def test_the_clusters_own_commands_are_never_repetitions(fs: Driver) -> None:
    """Client 0 leaves no session."""
    for name in (b"a", b"b"):
        assert fs.run(c.Mkdir(ROOT, ROOT_INO, name, 0o755), client=0, serial=1).errno == 0
    assert fs.rows()["session"] == []


def test_a_tree_in_the_same_state_is_equal_whatever_its_batches(fs: Driver) -> None:
    """One by one, all at once, with a restart between: same digest, same dump."""
    log = everything()
    for item in log:
        fs.tree.apply_batch([item])
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection)
    Tree(connection).apply_batch(log[:9])
    Tree(connection).apply_batch(log[9:])
    assert Tree(connection).digest() == fs.tree.digest()
    assert list(connection.iterdump()) == list(fs.connection.iterdump())
    connection.close()


@pytest.mark.parametrize("seed", range(12))
def test_names_that_are_not_written_yet_count_as_written(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random changes of the same few names: committed one by one by a tree that never knows a
    directory's names without looking, and in long batches by one that knows some of them. The same
    results and rows."""
    log = names_in_motion(seed, 150)
    connection, tree = open_tree()
    one_by_one = []
    for item in log:
        one_by_one += tree.apply_batch([item])
        tree._store.forget()
    other_connection, other = open_tree()
    monkeypatch.setattr(store, "DIRECTORIES_KNOWN_MAX", 2)
    together = []
    for start in range(0, len(log), 50):
        together += other.apply_batch(log[start : start + 50])
    assert together == one_by_one
    assert list(other_connection.iterdump()) == list(connection.iterdump())
    assert check(other_connection) == []
    assert sum(result.errno == 0 for result in together) > 40, "most changes are refused"
    connection.close()
    other_connection.close()


def test_who_asks_where_an_inode_is_finds_a_name_that_is_not_written_yet(fs: Driver) -> None:
    """The copies that its directory asks for, and whether that is delegated, in one batch with the
    command that gave it the name."""
    log = [
        c.Mkdir(ROOT, ROOT_INO, b"d", 0o755),
        c.SetXattr(ROOT, Ino(2), FACTOR_XATTR, b"3", 0),
        c.Delegate(Ino(2)),
        c.Create(ROOT, Ino(2), b"f", 0o644, True),
        c.Batch((c.SetAttr(ROOT, Ino(3), mode=0o600),), (TimeNs(3),)),
        c.Create(ROOT, Ino(2), b"g", 0o644, True),
        c.Commit(ROOT, Ino(4), None, None, 30, False, (extent(0, 30, 1),), (blob_info(1),)),
    ]
    entries = [entry(i, command, client=5, serial=i) for i, command in enumerate(log, 1)]
    *_, batch, _, _ = fs.tree.apply_batch(entries)
    assert [code for code, _ in batch.value] == [0]
    known = fs.tree._store.blob(blob(1))
    assert known is not None
    assert known.factor == 3


@pytest.mark.parametrize(("limit", "value"), [("DIRECTORIES_KNOWN_MAX", 5), ("NAMES_KNOWN_MAX", 9)])
def test_the_names_that_a_tree_knows_are_bounded(
    fs: Driver, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Directories without end, with two names in each, two of them removed; what is counted is what
    is kept."""
    monkeypatch.setattr(store, limit, value)
    rows = fs.tree._store
    for number in range(30):
        made = fs.ok(c.Mkdir(ROOT, ROOT_INO, b"%d" % number, 0o755)).ino
        fs.ok(c.Create(ROOT, made, b"a", 0o644, True))
        fs.ok(c.Create(ROOT, made, b"b", 0o644, True))
        if number % 2:
            fs.ok(c.Unlink(ROOT, made, b"a"))
        assert rows._names_known == sum(map(len, rows._names.values()))
        assert len(rows._names) <= 7
    fs.ok(c.Rename(ROOT, ROOT_INO, b"29", ROOT_INO, b"moved", 0))
    assert made in rows._names


def test_a_directory_stays_at_hand_while_names_come_into_it(
    fs: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there before all that is made in it, and is asked for with each of them: goal is that
    its row is not read again and again when the oldest rows go."""
    monkeypatch.setattr(store, "INODES_CACHED_MAX", 8)
    directory = fs.ok(c.Mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    for number in range(40):
        fs.ok(c.Create(ROOT, directory, b"%d" % number, 0o644, True))
        assert directory in fs.tree._store._inodes
    assert len(fs.tree._store._inodes) <= 9
