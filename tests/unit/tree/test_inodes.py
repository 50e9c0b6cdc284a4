"""Rules of attributes and extended attributes, each by itself."""

from __future__ import annotations

import errno
import stat

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import Attr, Touched
from tests.unit.tree.driver import ALICE, BOB, EVE, KERNEL_EVE, ROOT, Driver, extent, file_error


@pytest.fixture
def file(fs: Driver) -> Ino:
    """Alice's file, writable for her group."""
    return fs.create(b"f", mode=0o664, caller=ALICE)


def mode_of(fs: Driver, ino: Ino) -> int:
    return stat.S_IMODE(fs.tree.getattr(ino).mode)


def test_only_the_owner_changes_mode_owner_and_times(fs: Driver, file: Ino) -> None:
    """chmod(2), chown(2), utimensat(2): EPERM for others, checked by their kernel or not."""
    for caller in (EVE, KERNEL_EVE, BOB):
        assert fs.errno(c.SetAttr(caller, file, mode=0o777)) == errno.EPERM
        assert fs.errno(c.SetAttr(caller, file, uid=caller.uid)) == errno.EPERM
        assert fs.errno(c.SetAttr(caller, file, gid=caller.gid)) == errno.EPERM
        assert fs.errno(c.SetAttr(caller, file, mtime_ns=5)) == errno.EPERM
        assert fs.errno(c.SetAttr(caller, file, atime_ns=5, mtime_ns=c.TIME_NOW)) == errno.EPERM
    assert fs.ok(c.SetAttr(ALICE, file, mode=0o600)).mode == stat.S_IFREG | 0o600
    assert fs.ok(c.SetAttr(ROOT, file, uid=0, gid=0)).uid == 0


def test_an_owner_gives_a_file_to_own_groups_only(fs: Driver, file: Ino) -> None:
    """chown(2): not to another user; to a group of one's own, or to any that the kernel allowed."""
    bobs = fs.create(b"b", caller=BOB)
    assert fs.errno(c.SetAttr(BOB, bobs, uid=1000)) == errno.EPERM
    assert fs.errno(c.SetAttr(BOB, bobs, gid=5)) == errno.EPERM
    assert fs.ok(c.SetAttr(BOB, bobs, uid=BOB.uid, gid=1000)).gid == 1000
    assert fs.ok(c.SetAttr(BOB._replace(groups=None), bobs, gid=5)).gid == 5


def test_whoever_may_write_may_touch(fs: Driver, file: Ino) -> None:
    """utimensat(2): times of "now" need write permission (EACCES), not ownership."""
    now = c.TIME_NOW
    assert fs.errno(c.SetAttr(EVE, file, atime_ns=now, mtime_ns=now)) == errno.EACCES
    attr: Attr = fs.ok(c.SetAttr(BOB, file, atime_ns=now, mtime_ns=now))
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns > attr.btime_ns


def test_times_before_1970_and_ctime(fs: Driver, file: Ino) -> None:
    """utimensat(2): any time is kept, ctime is the command's."""
    attr: Attr = fs.ok(c.SetAttr(ALICE, file, atime_ns=-7, mtime_ns=-8))
    assert (attr.atime_ns, attr.mtime_ns) == (-7, -8)
    assert attr.ctime_ns == fs.log[-1][2].time_ns  # type: ignore[union-attr]  # a command it is


def test_set_id_bits_do_not_survive_strangers(fs: Driver, file: Ino) -> None:
    """chown(2), write(2): setuid and setgid go when somebody else than root changes owner or
    content; chmod(1) as a non-member of the group clears setgid."""
    for change in (
        c.SetAttr(ALICE, file, gid=ALICE.gid),
        c.SetAttr(ALICE, file, size=3),
        c.Commit(ALICE, file, None, None, 9, False, (), ()),
    ):
        fs.ok(c.SetAttr(ROOT, file, mode=0o6775))
        fs.ok(change)
        assert mode_of(fs, file) == 0o775, change
        # Without group execution it is a mark of the group's, not a privilege.
        fs.ok(c.SetAttr(ROOT, file, mode=0o6767))
        fs.ok(change)
        assert mode_of(fs, file) == 0o2767, change
    fs.ok(c.SetAttr(ROOT, file, mode=0o2767, gid=5))
    fs.ok(c.Commit(ALICE, file, None, None, 9, False, (), ()))
    assert mode_of(fs, file) == 0o767
    fs.ok(c.SetAttr(ROOT, file, mode=0o6775))
    fs.ok(c.SetAttr(ROOT, file, size=1, gid=1000))
    assert mode_of(fs, file) == 0o6775
    fs.ok(c.SetAttr(ROOT, file, gid=5))
    fs.ok(c.SetAttr(ALICE, file, mode=0o2775))
    assert mode_of(fs, file) == 0o775
    fs.ok(c.SetAttr(ALICE._replace(groups=(5,)), file, mode=0o2775))
    assert mode_of(fs, file) == 0o2775


def test_truncate_needs_a_file_and_write_permission(fs: Driver, file: Ino) -> None:
    """truncate(2): EISDIR, EINVAL for a fifo, EACCES."""
    fifo = fs.ok(c.Mknod(ROOT, ROOT_INO, b"p", stat.S_IFIFO | 0o666, 0)).ino
    assert fs.errno(c.SetAttr(ROOT, ROOT_INO, size=0)) == errno.EISDIR
    assert fs.errno(c.SetAttr(ROOT, fifo, size=0)) == errno.EINVAL
    assert fs.errno(c.SetAttr(EVE, file, size=0)) == errno.EACCES
    assert fs.errno(c.SetAttr(ROOT, Ino(99), size=0)) == errno.ENOENT
    fs.ok(c.SetAttr(BOB, file, size=0))


def test_truncate_cuts_and_extends_with_a_hole(fs: Driver, file: Ino) -> None:
    """truncate(2): what was cut does not come back; a new version, mtime and ctime now."""
    before = fs.write(file, extent(0, 50, 1), extent(60, 40, 2))
    cut: Attr = fs.ok(c.SetAttr(ALICE, file, size=70))
    assert (cut.size, cut.allocated, cut.version) == (70, 60, fs.index)
    assert cut.mtime_ns == cut.ctime_ns > before.mtime_ns
    fs.ok(c.SetAttr(ALICE, file, size=20))
    grown: Attr = fs.ok(c.SetAttr(ALICE, file, size=100))
    assert (grown.size, grown.allocated) == (100, 20)
    assert fs.extents(file) == [extent(0, 20, 1)]


def test_symlinks_have_no_mode_to_change(fs: Driver) -> None:
    """fchmodat(2) AT_SYMLINK_NOFOLLOW: EOPNOTSUPP; owner and times can."""
    link = fs.ok(c.Symlink(ALICE, ROOT_INO, b"s", b"t")).ino
    assert fs.errno(c.SetAttr(ALICE, link, mode=0o600)) == errno.EOPNOTSUPP
    fs.ok(c.SetAttr(ROOT, link, uid=5, mtime_ns=1))


def test_setattr_without_any_field_changes_nothing(fs: Driver, file: Ino) -> None:
    """Value is the present Attr; no cache has to drop anything."""
    before = fs.rows()
    result = fs.run(c.SetAttr(EVE, file))
    assert (result.value, result.touched) == (fs.tree.getattr(file), Touched())
    assert fs.rows() == before


def test_xattr_flags_and_values(fs: Driver, file: Ino) -> None:
    """setxattr(2): EEXIST with CREATE, ENODATA with REPLACE; values are any bytes, even none."""
    create, replace = c.XATTR_CREATE, c.XATTR_REPLACE
    assert fs.errno(c.SetXattr(ALICE, file, b"user.a", b"", replace)) == errno.ENODATA
    result = fs.run(c.SetXattr(ALICE, file, b"user.a", b"", create))
    assert (result.value, result.touched) == (None, Touched((file,)))
    assert fs.errno(c.SetXattr(ALICE, file, b"user.a", b"1", create)) == errno.EEXIST
    assert fs.errno(c.SetXattr(ALICE, file, b"user.a", b"1", 3)) == errno.EINVAL
    assert fs.tree.getxattr(file, b"user.a") == b""
    fs.ok(c.SetXattr(ALICE, file, b"user.a", b"\0\xff", replace))
    fs.ok(c.SetXattr(ALICE, file, b"user.\xfe", b"x", 0))
    assert fs.tree.getxattr(file, b"user.a") == b"\0\xff"
    assert fs.tree.listxattr(file) == [b"user.a", b"user.\xfe"]
    fs.ok(c.RemoveXattr(ALICE, file, b"user.a"))
    assert fs.errno(c.RemoveXattr(ALICE, file, b"user.a")) == errno.ENODATA
    with file_error(errno.ENODATA):
        fs.tree.getxattr(file, b"user.a")


def test_xattr_limits(fs: Driver, file: Ino) -> None:
    """xattr(7): names to 255 bytes (ERANGE), values to 64 KiB (E2BIG), lists to 64 KiB (ENOSPC)."""
    name = b"user." + b"n" * 250
    fs.ok(c.SetXattr(ALICE, file, name, b"v" * 65536, 0))
    assert fs.errno(c.SetXattr(ALICE, file, name + b"n", b"", 0)) == errno.ERANGE
    assert fs.errno(c.SetXattr(ALICE, file, b"", b"", 0)) == errno.ERANGE
    assert fs.errno(c.SetXattr(ALICE, file, b"user.a", b"v" * 65537, 0)) == errno.E2BIG
    for number in range(255):
        fs.ok(c.SetXattr(ALICE, file, name[:-3] + b"%03d" % number, b"", 0))
    assert fs.errno(c.SetXattr(ALICE, file, b"user." + b"z" * 250, b"", 0)) == errno.ENOSPC


def test_xattr_namespaces(fs: Driver, file: Ino) -> None:
    """xattr(7): "user." on files and directories for who may write, "trusted." and "security." for
    root, everything else not supported."""
    fifo = fs.ok(c.Mknod(ROOT, ROOT_INO, b"p", stat.S_IFIFO | 0o666, 0)).ino
    assert fs.errno(c.SetXattr(EVE, file, b"user.a", b"", 0)) == errno.EACCES
    assert fs.errno(c.SetXattr(ROOT, fifo, b"user.a", b"", 0)) == errno.EPERM
    assert fs.errno(c.SetXattr(ALICE, file, b"trusted.a", b"", 0)) == errno.EPERM
    assert fs.errno(c.SetXattr(ALICE, file, b"security.a", b"", 0)) == errno.EPERM
    for name in (b"system.a", b"user.", b"user", b"other.a"):
        assert fs.errno(c.SetXattr(ROOT, file, name, b"", 0)) == errno.EOPNOTSUPP
    assert fs.errno(c.SetXattr(ALICE, ROOT_INO, b"user.a", b"", 0)) == errno.EPERM  # sticky
    for name in (b"user.a", b"trusted.a", b"security.a"):
        fs.ok(c.SetXattr(ROOT, file, name, b"", 0))
