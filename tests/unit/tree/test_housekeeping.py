"""Rules of the cluster's own commands: holders, garbage, settings, members, sessions."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, BlobId, Ino, LogIndex, NodeNumber, TimeNs, blob_node
from pydi_node.records import (
    HOLDERS_MAX,
    BlobTotal,
    Counters,
    Extent,
    NodeInfo,
    SecretChange,
    TokenInfo,
    Touched,
)
from pydi_node.tree import machine
from pydi_node.tree.settings import SETTINGS, parse_setting
from tests.unit.tree.driver import EPOCH, ROOT, Driver, blob, blob_info, extent, file_error, put


@pytest.fixture
def file(fs: Driver) -> Ino:
    """A file whose blob 1 is on nodes 1 and 2."""
    ino = fs.create(b"f")
    fs.write(ino, extent(0, 100, 1))
    return ino


def holders(fs: Driver, counter: int, add: tuple[int, ...], remove: tuple[int, ...]) -> Any:
    return c.SetHolders(blob(counter), _nodes(add), _nodes(remove))


def _nodes(numbers: tuple[int, ...]) -> tuple[NodeNumber, ...]:
    return tuple(NodeNumber(number) for number in numbers)


def test_holders_come_and_go(fs: Driver, file: Ino) -> None:
    """Value is the blob as it is then; no cache is told, readers ask again by themselves."""
    result = fs.run(holders(fs, 1, (3, 1), (2,)))
    assert result.value == blob_info(1, holders=(1, 3))
    assert result.touched == Touched()
    assert fs.tree.file_version(file).blobs == (blob_info(1, holders=(1, 3)),)


def test_the_last_holder_stays_unless_the_blob_is_lost(fs: Driver, file: Ino) -> None:
    """EINVAL without ``lost``; also for a node added and removed at once, or too many."""
    assert fs.errno(holders(fs, 1, (), (1, 2))) == errno.EINVAL
    assert fs.errno(holders(fs, 1, (3,), (3,))) == errno.EINVAL
    assert fs.errno(holders(fs, 2, (3,), ())) == errno.ENOENT
    too_many = tuple(range(3, HOLDERS_MAX + 2))
    assert fs.errno(holders(fs, 1, too_many, ())) == errno.EINVAL
    fs.ok(holders(fs, 1, too_many[:-1], ()))
    lost = c.SetHolders(blob(1), (), _nodes(tuple(range(1, HOLDERS_MAX + 1))), True)
    assert fs.ok(lost).holders == ()
    assert fs.tree.blob_totals() == [BlobTotal((), 1, 100)]


def test_totals_count_named_blobs_by_holders(fs: Driver, file: Ino) -> None:
    """status and repair read them: kept while blobs come, get copies, and lose their last name."""
    fs.write(file, extent(100, 10, 2), extent(110, 10, 3))
    fs.ok(holders(fs, 2, (), (2,)))
    fs.ok(holders(fs, 3, (5,), ()))
    assert fs.tree.blob_totals() == [
        BlobTotal(_nodes((1,)), 1, 100),
        BlobTotal(_nodes((1, 2)), 1, 100),
        BlobTotal(_nodes((1, 2, 5)), 1, 100),
    ]
    fs.ok(c.SetAttr(ROOT, file, size=0))
    fs.ok(c.TrimHistory(fs.index, 1000))
    assert fs.tree.blob_totals() == []


def test_blobs_are_found_by_their_holders(fs: Driver, file: Ino) -> None:
    """Exactly those, ascending, in pages; garbage is not listed."""
    for counter in range(2, 7):
        fs.write(file, extent(counter * 100, 10, counter))
    for counter in (5, 3):
        fs.ok(holders(fs, counter, (), (2,)))
    fs.ok(holders(fs, 6, (7,), ()))

    def listed(nodes: tuple[int, ...], limit: int = 9, after: BlobId = BlobId(0)) -> list[int]:  # noqa: B008
        return [i.blob & 0xFF for i in fs.tree.blobs_held_by(_nodes(nodes), 0, limit, after)]

    assert listed((1,)) == [3, 5]
    assert listed((1, 2)) == [1, 2, 4]
    assert listed((1, 2), 2) == [1, 2]
    assert listed((1, 2), 2, blob(2)) == [4]
    assert listed((1, 2, 7)) == [6]
    assert listed((2,)) == listed(()) == []
    fs.ok(c.SetAttr(ROOT, file, size=0))
    fs.ok(c.TrimHistory(fs.index, 1000))
    assert listed((1, 2)) == []


def test_garbage_is_what_no_kept_version_names(fs: Driver, file: Ino) -> None:
    """An overwritten blob is garbage when its history is trimmed, not before; only then it goes."""
    fs.write(file, extent(0, 100, 2))
    assert fs.tree.garbage_blobs(9) == []
    assert fs.ok(c.ForgetBlobs((blob(1), blob(2), blob(9)))) == 0
    fs.ok(c.TrimHistory(fs.index, 1000))
    assert fs.tree.garbage_blobs(9) == [blob_info(1)]
    assert fs.tree.garbage_blobs(9, after=blob(1)) == []
    assert fs.ok(c.ForgetBlobs((blob(1), blob(1), blob(2)))) == 1
    with file_error(errno.ENOENT):
        fs.tree.blob(blob(1))
    assert fs.tree.blobs(BlobId(0), 9) == [blob_info(2)]


def test_a_refused_commit_leaves_no_blob(fs: Driver, file: Ino) -> None:
    """An outcome other than success changes nothing, so the node's file is nobody's."""
    fs.errno(c.Commit(ROOT, file, LogIndex(1), None, 9, False, (extent(0, 9, 2),), (blob_info(2),)))
    assert fs.tree.blobs(BlobId(0), 9) == [blob_info(1)]


def test_blobs_of_a_node_over_many_rows(fs: Driver, file: Ino) -> None:
    """All of a node's blobs in pages, also where few of thousands are its own."""
    changes = tuple(Extent(i * 10, 10, blob(100 + i), 0) for i in range(9000))
    infos = tuple(
        blob_info(1)._replace(blob=e.blob, holders=_nodes((7,) if i % 3000 == 2999 else (8,)))
        for i, e in enumerate(changes)
    )
    fs.ok(c.Commit(ROOT, file, None, None, 90000, False, changes, infos))
    mine = [infos[2999], infos[5999], infos[8999]]
    assert fs.tree.blobs_of_node(NodeNumber(7), BlobId(0), 2) == mine[:2]
    assert fs.tree.blobs_of_node(NodeNumber(7), mine[1].blob, 2) == mine[2:]
    assert fs.tree.blobs_of_node(NodeNumber(7), mine[2].blob, 2) == []
    assert len(fs.tree.blobs_of_node(NodeNumber(8), BlobId(0), 10000)) == 8997


def test_counters_follow_inodes_and_bytes(fs: Driver, file: Ino) -> None:
    """statfs: all inodes with orphans, allocated bytes of the present versions."""
    fs.create(b"g")
    assert fs.tree.counters() == Counters(3, 100)
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"f"))
    assert fs.tree.counters() == Counters(3, 100)
    fs.ok(c.PurgeOrphans((file,)))
    assert fs.tree.counters() == Counters(2, 0)


def test_settings_have_defaults_and_ranges(fs: Driver) -> None:
    """Every known name is listed; EINVAL for an unknown one or a bad value."""
    assert fs.tree.settings() == {name: s.default for name, s in sorted(SETTINGS.items())}
    fs.ok(c.SetSetting("replicas", "3"))
    assert fs.tree.settings()["replicas"] == 3
    for name, value in (
        ("replicas", "0"), ("replicas", "9"), ("replicas", ""), ("replicas", "-1"),
        ("replicas", " 2"), ("replicas", "2.0"), ("replicas", "٢"), ("replicas", "9" * 30),
        ("colour", "2"),
    ):  # fmt: skip
        assert fs.errno(c.SetSetting(name, value)) == errno.EINVAL, (name, value)


def test_every_default_is_a_value_that_can_be_set() -> None:
    """The table agrees with itself."""
    for name, setting in SETTINGS.items():
        assert parse_setting(name, str(setting.default)) == setting.default
        assert parse_setting(name, str(setting.low - 1)) is None
        assert parse_setting(name, str(setting.high + 1)) is None


def test_nodes_are_listed_by_number(fs: Driver) -> None:
    """The last SetNode of each number counts; EINVAL for a state nobody knows."""
    two, one = NodeNumber(2), NodeNumber(1)
    fs.ok(c.SetNode(two, "b:1", "up", False))
    fs.ok(c.SetNode(one, "a:1", "up", True))
    fs.ok(c.SetNode(two, "b:2", "draining", False))
    assert fs.errno(c.SetNode(one, "a:1", "asleep", False)) == errno.EINVAL
    assert fs.tree.nodes() == [
        NodeInfo(one, "a:1", "up", True),
        NodeInfo(two, "b:2", "draining", False),
    ]


def test_tokens_are_listed_by_age(fs: Driver) -> None:
    """The last SetToken of each id counts."""
    old = TokenInfo(b"b" * 8, False, b"/", 0, 5, "", False)
    new = TokenInfo(b"a" * 8, True, b"/d", 99, 6, "camera", False)
    for info in (new, old, new._replace(revoked=True)):
        fs.ok(c.SetToken(*info))
    assert fs.tree.tokens() == [old, new._replace(revoked=True)]
    assert fs.tree.token(b"b" * 8) == old
    assert fs.tree.token(b"c" * 8) is None


def test_a_new_secret_takes_over_and_takes_the_old_tokens_along(fs: Driver) -> None:
    """One change at a time, each of the next generation. When the old secret is retired, its mount
    tokens are revoked, and those that were made since are not; twice is as once."""
    before, since = (TokenInfo(char * 8, False, b"/", 0, 5, "", False) for char in (b"b", b"s"))
    assert fs.tree.secret_change() is None
    assert fs.run(c.RetireSecret(1)).errno == errno.ESTALE
    assert fs.run(c.SetSecret(2, b"new", b"old", 9)).errno == errno.ESTALE
    assert fs.run(c.SetSecret(1, b"new", b"", 9)).errno == errno.EINVAL
    fs.ok(c.SetToken(*before))
    fs.ok(c.SetSecret(1, b"new", b"old", 9))
    assert fs.tree.secret_change() == SecretChange(1, b"new", b"old", 9)
    assert fs.run(c.SetSecret(2, b"x", b"y", 9)).errno == errno.EBUSY
    fs.ok(c.SetToken(*since))
    assert fs.run(c.RetireSecret(2)).errno == errno.ESTALE
    assert not any(info.revoked for info in fs.tree.tokens())
    for _ in range(2):
        fs.ok(c.RetireSecret(1))
        assert fs.tree.secret_change() == SecretChange(1, b"new", b"", 9)
        assert fs.tree.tokens() == [before._replace(revoked=True), since]
    assert fs.run(c.SetSecret(1, b"x", b"y", 9)).errno == errno.ESTALE
    fs.ok(c.SetSecret(2, b"x", b"y", 9))


def test_idle_sessions_expire_and_others_stay(fs: Driver) -> None:
    """By the last use, not the first; the expired client's results go with it."""
    touch = c.SetAttr(ROOT, ROOT_INO, atime_ns=c.TIME_NOW)
    fs.run(touch, client=5, serial=1)
    fs.run(touch, client=6, serial=1)
    fs.run(touch, client=5, serial=2)
    assert fs.ok(c.ExpireSessions(TimeNs(EPOCH + 3 * 10**9))) == 1
    rows = fs.rows()
    assert [row[0] for row in rows["session"]] == [5]
    assert [row[0] for row in rows["session_result"]] == [5, 5]


def test_trimming_goes_in_bounded_steps(fs: Driver, file: Ino) -> None:
    """At most ``limit`` rows a command, and whether more are left; the floor moves at once."""
    for counter in range(2, 12):
        fs.write(file, extent(0, 100, counter))
        fs.ok(c.SetXattr(ROOT, file, b"user.a", bytes([counter]), 0))
        fs.create(b"x")
        fs.ok(c.Unlink(ROOT, ROOT_INO, b"x"))
    until = fs.index
    kept = sum(len(rows) for table, rows in fs.rows().items() if table.endswith("_history"))
    dropped, more = fs.ok(c.TrimHistory(until, 7))
    assert (dropped, more, fs.tree.history_floor) == (7, True, until)
    total = dropped
    while more:
        dropped, more = fs.ok(c.TrimHistory(until, 7))
        total += dropped
    assert total == kept
    assert fs.ok(c.TrimHistory(until, 7)) == (0, False)
    assert len(fs.tree.garbage_blobs(99)) == 10


def test_trimming_never_reaches_into_the_future(fs: Driver, file: Ino) -> None:
    """An ``until`` past the present is the present; an older one does not lower the floor."""
    fs.ok(c.TrimHistory(LogIndex(10**9), 10))
    assert fs.tree.history_floor == fs.index
    floor = fs.index
    fs.ok(c.TrimHistory(LogIndex(1), 10))
    assert fs.tree.history_floor == floor


def test_the_last_counter_is_of_the_node_that_named_the_blob(fs: Driver, file: Ino) -> None:
    """Names go on behind it when a node has lost its own books; others' names don't count."""
    fs.write(file, extent(0, 100, 7))
    assert fs.tree.last_counter_of(blob_node(blob(7))) == 7
    assert fs.tree.last_counter_of(NodeNumber(blob_node(blob(7)) + 1)) == 0


def test_what_small_content_took_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten content leaves free pages in the database's file. They go to the file system piece
    by piece, but for those that are kept for what comes next; nothing else changes."""
    monkeypatch.setattr(machine, "FREE_PAGES_KEPT", 64)
    monkeypatch.setattr(machine, "GIVE_BACK_PAGES", 100)
    path = tmp_path / "tree.db"
    fs = Driver(str(path))
    kept = fs.create(b"kept")
    fs.ok(put(kept, 1, b"kept"))
    passing = fs.create(b"passing")
    for counter in range(2, 502):
        fs.ok(put(passing, counter, bytes([counter & 0xFF]) * 4096))
    fs.tree.checkpoint()
    full_bytes = path.stat().st_size
    fs.ok(c.TrimHistory(fs.index, 100_000))
    fs.ok(c.ForgetBlobs(tuple(info.blob for info in fs.tree.garbage_blobs(1000))))
    fs.run(c.Mkdir(ROOT, ROOT_INO, b"d", 0o755))
    before, sizes = fs.rows(), []
    spare_pages = fs.tree.spare_bytes // 4096
    while fs.tree.spare_bytes:
        fs.tree.give_back()
        fs.tree.checkpoint()
        sizes.append(path.stat().st_size)
    fs.tree.give_back()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == -(-spare_pages // 100) > 3
    assert sizes[-1] < full_bytes // 3
    assert fs.rows() == before
    assert fs.tree.file_version(kept).contents == ((blob(1), b"kept"),)
    fs.close()
