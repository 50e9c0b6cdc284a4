"""Questions about the past, and times for log indexes."""

from __future__ import annotations

import errno

from pydi_node import commands as c
from pydi_node.ids import INT64_MAX, ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import Version
from tests.unit.tree.driver import EPOCH, ROOT, Driver, entry, extent, file_error


def test_a_deleted_file_is_readable_at_its_time(fs: Driver) -> None:
    """Undelete: name, attributes, content and xattrs of before, even when the orphan is purged."""
    file = fs.create(b"f")
    fs.write(file, extent(0, 10, 1))
    fs.ok(c.SetXattr(ROOT, file, b"user.a", b"1", 0))
    then, version = fs.index, fs.tree.file_version(file)
    fs.ok(c.SetXattr(ROOT, file, b"user.a", b"2", 0))
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"f"))
    fs.ok(c.PurgeOrphans((file,)))
    assert fs.tree.lookup(ROOT_INO, b"f", then).ino == file
    assert fs.tree.resolve(b"/f", then) == version.attr
    assert fs.tree.file_version(file, then) == version
    assert fs.tree.getxattr(file, b"user.a", then) == b"1"
    assert fs.tree.listxattr(file, then) == [b"user.a"]
    assert fs.tree.path_of(file, then) == b"/f"
    assert [e.name for e in fs.tree.readdir(ROOT_INO, 0, 9, then)] == [b"f"]
    with file_error(errno.ENOENT):
        fs.tree.lookup(ROOT_INO, b"f")


def test_every_index_shows_its_own_tree(fs: Driver) -> None:
    """A name that comes, moves and goes, asked at each index."""
    a = fs.mkdir(b"a")
    file = fs.create(b"f", a)
    fs.ok(c.Rename(ROOT, a, b"f", ROOT_INO, b"g", 0))
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"g"))
    paths = [fs.tree.path_of(file, LogIndex(index)) for index in range(5)]
    assert paths == [None, None, b"/a/f", b"/g", None]
    assert [len(fs.tree.readdir(a, 0, 9, LogIndex(index))) for index in range(1, 5)] == [0, 1, 0, 0]
    with file_error(errno.ENOENT):
        fs.tree.getattr(file, LogIndex(1))


def test_only_kept_indexes_can_be_asked(fs: Driver) -> None:
    """ESTALE below the floor and past what is applied; the floor itself is kept."""
    for number in range(4):
        fs.create(b"%d" % number)
    fs.ok(c.TrimHistory(LogIndex(2), 100))
    for index in (-1, 0, 1, fs.index + 1):
        with file_error(errno.ESTALE):
            fs.tree.getattr(ROOT_INO, LogIndex(index))
    assert len(fs.tree.readdir(ROOT_INO, 0, 9, LogIndex(2))) == 2
    assert fs.tree.getattr(ROOT_INO, fs.index) == fs.tree.getattr(ROOT_INO)


def test_a_files_change_time_is_that_of_its_time(fs: Driver) -> None:
    """Only access times, with the ctime they bring, are kept as of now."""
    file = fs.create(b"f")
    born = fs.tree.getattr(file)
    fs.ok(c.SetAttr(ROOT, file, mode=0o600))
    changed, then = fs.tree.getattr(file), fs.index
    fs.ok(c.SetAttr(ROOT, file, uid=5))
    assert fs.tree.getattr(file, LogIndex(1)) == born
    assert fs.tree.getattr(file, then) == changed


def test_a_directorys_mode_and_owner_have_history(fs: Driver) -> None:
    """Only its times are kept as of now; who could enter it then can be asked."""
    sub = fs.mkdir(b"d", mode=0o755)
    then = fs.index
    fs.ok(c.SetAttr(ROOT, sub, mode=0o700, mtime_ns=TimeNs(5)))
    fs.ok(c.SetAttr(ROOT, sub, uid=7))
    past = [fs.tree.getattr(sub, LogIndex(then + i)) for i in range(3)]
    assert [(attr.mode & 0o777, attr.uid) for attr in past] == [(0o755, 0), (0o700, 0), (0o700, 7)]


def test_directory_times_and_access_times_leave_no_history(fs: Driver) -> None:
    """A directory's entries tell when it changed: thousands of creates make no row of it."""
    file = fs.create(b"f")
    fs.create(b"g")
    fs.ok(c.SetAttr(ROOT, file, atime_ns=c.TIME_NOW))
    fs.ok(c.SetAttr(ROOT, ROOT_INO, mtime_ns=TimeNs(5)))
    assert fs.rows()["inode_history"] == []
    assert fs.tree.getattr(ROOT_INO).mtime_ns == 5


def test_versions_of_a_file_are_those_of_its_content(fs: Driver) -> None:
    """pydi log: one line for each content, oldest first; a chmod between makes none."""
    file = fs.create(b"f")
    fs.write(file, extent(0, 10, 1))
    fs.ok(c.SetAttr(ROOT, file, mode=0o600))
    fs.write(file, extent(0, 20, 2))
    versions = fs.tree.versions_of(file)
    assert [(v.since, v.until, v.attr.size) for v in versions] == [
        (1, 2, 0),
        (2, 4, 10),
        (4, None, 20),
    ]
    assert versions[1].attr.mode & 0o777 == 0o600
    assert fs.tree.versions_of(Ino(99)) == []


def test_versions_of_a_path_follow_the_name(fs: Driver) -> None:
    """Whatever inode had the name, for the time it had it; also when nobody has it now."""
    sub = fs.mkdir(b"d")
    first = fs.create(b"f", sub)
    fs.write(first, extent(0, 10, 1))
    second = fs.create(b"new", sub)
    fs.write(second, extent(0, 20, 2))
    fs.ok(c.Rename(ROOT, sub, b"new", sub, b"f", 0))
    fs.ok(c.Unlink(ROOT, sub, b"f"))
    shown = [(v.since, v.until, v.attr.ino, v.attr.size) for v in fs.tree.versions_of_path(b"/d/f")]
    assert shown == [(2, 3, first, 0), (3, 6, first, 10), (6, 7, second, 20)]
    fs.ok(c.Rmdir(ROOT, ROOT_INO, b"d"))
    with file_error(errno.ENOENT):
        fs.tree.versions_of_path(b"/d/f")
    assert len(fs.tree.versions_of_path(b"/d/f", LogIndex(7))) == 3
    root = fs.tree.getattr(ROOT_INO)
    assert fs.tree.versions_of_path(b"/")[-1] == Version(LogIndex(8), None, root)


def test_a_time_names_the_last_index_of_its_second(fs: Driver) -> None:
    """index_at and time_of, exact to a second, also when a new leader's clock is behind."""
    touch = c.SetAttr(ROOT, ROOT_INO, atime_ns=c.TIME_NOW)
    second = 10**9
    offsets = [0, 0.2, 0.9, 3, 2, 3.5, 10]
    for index, offset in enumerate(offsets, 1):
        _, term, envelope = entry(index, touch)
        assert envelope is not None
        time_ns = TimeNs(EPOCH + int(offset * second))
        at = type(envelope)(envelope.client, envelope.serial, time_ns, touch)
        fs.tree.apply(LogIndex(index), term, at)
    asked = [-1, 0, 1, 2, 3, 9, 10, 99]
    found = [fs.tree.index_at(TimeNs(EPOCH + offset * second)) for offset in asked]
    assert found == [0, 3, 3, 3, 6, 6, 7, 7]
    assert fs.tree.index_at(TimeNs(INT64_MAX)) == 7
    times = [fs.tree.time_of(LogIndex(index)) - EPOCH for index in (1, 3, 4, 6, 7)]
    assert times == [0, 0, 3 * second, 3 * second, 10 * second]
    assert fs.tree.time_of(LogIndex(0)) == 0


def test_trimming_keeps_the_tick_that_dates_the_floor(fs: Driver) -> None:
    """Times before the floor go, the floor's own stays."""
    for number in range(6):
        fs.create(b"%d" % number)
    times = [fs.tree.time_of(LogIndex(index)) for index in range(7)]
    fs.ok(c.TrimHistory(LogIndex(3), 100))
    assert [fs.tree.time_of(LogIndex(i)) for i in range(7)] == [0, 0, 0, *times[3:]]
    assert fs.tree.index_at(times[4]) == 4
