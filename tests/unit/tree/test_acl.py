"""Access control lists in the tree: acl(5), and the rules of Linux' fs/posix_acl.c."""

from __future__ import annotations

import errno
import itertools
import stat
import struct

import pytest

from pydi_node import commands as c
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import (
    ACCESS_ACL_XATTR,
    DEFAULT_ACL_XATTR,
    ST_MODE_BITS,
    Touched,
    acl_mode,
)
from pydi_node.tree import acl
from pydi_node.tree.check import check
from tests.unit.tree.driver import ALICE, BOB, KERNEL_EVE, ROOT, Driver

U, USER, G, GROUP, MASK, O = 1, 2, 4, 8, 16, 32  # noqa: E741  # as getfacl(1) abbreviates
ACCESS, DEFAULT = ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR


def value(*entries: tuple[int, int] | tuple[int, int, int], version: int = 2) -> bytes:
    """The attribute of a list of (tag, permissions[, id])."""
    packed = [struct.pack("<HHI", *(*entry, 0xFFFFFFFF)[:3]) for entry in entries]
    return struct.pack("<I", version) + b"".join(packed)


SHARED = value((U, 7), (USER, 6, 2000), (G, 5), (GROUP, 1, 3000), (MASK, 6), (O, 4))

TOO_LONG = value((U, 7), *[(USER, 7, n) for n in range(510)], (G, 5), (MASK, 7), (O, 4))


@pytest.fixture
def file(fs: Driver) -> Ino:
    return fs.create(b"f", mode=0o640, caller=ALICE)


def modes(fs: Driver, ino: Ino) -> tuple[int, int]:
    """Permission bits where lists are obeyed, and where they are not known."""
    mode = fs.tree.getattr(ino).mode
    assert stat.S_IFMT(mode) == stat.S_IFMT(acl_mode(mode))
    return stat.S_IMODE(acl_mode(mode)), stat.S_IMODE(mode)


def set_acl(fs: Driver, ino: Ino, name: bytes, content: bytes, flags: int = 0) -> None:
    fs.ok(c.SetXattr(ALICE, ino, name, content, flags))


def test_a_list_and_the_mode_agree(fs: Driver, file: Ino) -> None:
    """setfacl(1) changes the mode: the group's bits are the mask. chmod(1) changes the list: owner,
    mask, others, and nothing else. What a kernel without lists sees grants no more than they do:
    others' 4 but not to the named group, which has only 1 and is one of the others there."""
    set_acl(fs, file, ACCESS, SHARED)
    assert fs.tree.getxattr(file, ACCESS) == SHARED
    assert modes(fs, file) == (0o764, 0o700)
    fs.ok(c.SetAttr(ALICE, file, mode=0o4751))
    changed = value((U, 7), (USER, 6, 2000), (G, 5), (GROUP, 1, 3000), (MASK, 5), (O, 1))
    assert fs.tree.getxattr(file, ACCESS) == changed
    assert modes(fs, file) == (0o4751, 0o4700)
    attr = fs.ok(c.SetAttr(ALICE, file, mode=0o777))
    assert acl_mode(attr.mode) == stat.S_IFREG | 0o777
    fs.ok(c.RemoveXattr(ALICE, file, ACCESS))
    assert modes(fs, file) == (0o777, 0o777)
    fs.ok(c.RemoveXattr(ALICE, file, ACCESS))  # as on ext4
    assert fs.tree.listxattr(file) == []


def test_a_list_that_says_no_more_than_a_mode_is_not_kept(fs: Driver, file: Ino) -> None:
    set_acl(fs, file, ACCESS, SHARED)
    set_acl(fs, file, ACCESS, value((U, 6), (G, 4), (O, 0)))
    assert fs.tree.listxattr(file) == []
    assert fs.tree.getattr(file).mode == stat.S_IFREG | 0o640


def grants(entries: acl.Acl, uid: int, gids: set[int], owner: int, group: int) -> list[int]:
    """The sets of permissions of which one must have all that is asked: acl(5), ACCESS CHECK."""
    mask = next((e.permissions for e in entries if e.tag == MASK), 7)
    of = {e.tag: e.permissions for e in entries if e.tag in (U, G, O)}
    if uid == owner:
        return [of[U]]
    for e in entries:
        if e.tag == USER and e.id == uid:
            return [e.permissions & mask]
    found = [of[G] & mask] if group in gids else []
    found += [e.permissions & mask for e in entries if e.tag == GROUP and e.id in gids]
    return found or [of[O]]


def test_who_does_not_know_of_lists_never_grants_more() -> None:
    """Every list of one named user and one named group out of a few permissions, every kind of
    caller: what the mode bits would give him is in what acl(5) gives him."""
    some = (0, 1, 4, 6, 7)
    for user, owning, named, mask, other in itertools.product(some, repeat=5):
        entries = acl.parse(
            value(
                (U, 5), (USER, user, 10), (G, owning), (GROUP, named, 20), (MASK, mask), (O, other)
            )
        )
        bits = acl.least_bits(entries)
        for uid, gids in itertools.product((1, 10, 11), (set(), {2}, {20}, {2, 20})):
            by_mode = bits >> 6 if uid == 1 else bits >> 3 if 2 in gids else bits
            for wanted in range(8):
                if wanted & ~by_mode & 7 == 0:
                    given = grants(entries, uid, gids, owner=1, group=2)
                    assert any(wanted & ~g == 0 for g in given), (entries, uid, gids, wanted)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_default_list_is_passed_on(fs: Driver, umask: int) -> None:
    """acl(5), OBJECT CREATION: what is made gets the default list as its access list, with no more
    than was asked for, whatever the umask; a directory also as its default list, and so on."""
    top = fs.mkdir(b"d", mode=0o777)
    fs.ok(c.SetXattr(ROOT, top, DEFAULT, SHARED, 0))
    assert modes(fs, top) == (0o777, 0o777)
    below = fs.ok(c.Mkdir(ALICE, top, b"sub", 0o777, umask)).ino
    assert fs.tree.getxattr(below, DEFAULT) == fs.tree.getxattr(below, ACCESS) == SHARED
    assert modes(fs, below) == (0o764, 0o700)
    for made in (
        fs.ok(c.Create(ALICE, below, b"f", 0o660, True, umask))[0],
        fs.ok(c.Mknod(ALICE, below, b"p", stat.S_IFIFO | 0o660, 0, umask)),
        fs.ok(c.Tmpfile(ALICE, below, 0o660, umask)),
        fs.ok(c.PutFile(ALICE, below, b"g", 0o660, 0, (), ())),
    ):
        assert fs.tree.listxattr(made.ino) == [ACCESS]
        cut = value((U, 6), (USER, 6, 2000), (G, 5), (GROUP, 1, 3000), (MASK, 6), (O, 0))
        assert fs.tree.getxattr(made.ino, ACCESS) == cut
        assert modes(fs, made.ino) == (0o660, 0o600)
        assert made.mode == fs.tree.getattr(made.ino).mode
    link = fs.ok(c.Symlink(ALICE, below, b"l", b"f"))
    assert link.mode == stat.S_IFLNK | 0o777
    fs.ok(c.RemoveXattr(ROOT, top, DEFAULT))
    plain = fs.ok(c.Create(ALICE, top, b"f", 0o666, True, umask))[0]
    assert plain.mode == stat.S_IFREG | 0o666 & ~umask


def test_a_default_list_without_names_is_passed_on_as_a_mode(fs: Driver) -> None:
    top = fs.mkdir(b"d")
    fs.ok(c.SetXattr(ROOT, top, DEFAULT, value((U, 7), (G, 5), (O, 0)), 0))
    made = fs.ok(c.Create(ROOT, top, b"f", 0o666, True, 0o022))[0]
    assert made.mode == stat.S_IFREG | 0o640
    assert fs.tree.listxattr(made.ino) == []


def test_only_owners_set_lists_and_only_where_they_mean_something(fs: Driver, file: Ino) -> None:
    link = fs.ok(c.Symlink(ALICE, ROOT_INO, b"l", b"f")).ino
    for caller in (BOB, KERNEL_EVE):
        assert fs.errno(c.SetXattr(caller, file, ACCESS, SHARED, 0)) == errno.EPERM
        assert fs.errno(c.RemoveXattr(caller, file, ACCESS)) == errno.EPERM
    assert fs.errno(c.SetXattr(ALICE, file, DEFAULT, SHARED, 0)) == errno.EACCES
    assert fs.errno(c.SetXattr(ALICE, link, ACCESS, SHARED, 0)) == errno.EOPNOTSUPP
    assert fs.errno(c.RemoveXattr(ALICE, link, ACCESS)) == errno.EOPNOTSUPP
    assert fs.errno(c.SetXattr(ROOT, file, b"system.other", SHARED, 0)) == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"", errno.EINVAL),
        (b"\2\0\0", errno.EINVAL),
        (value(), errno.EINVAL),
        (value((U, 7), (G, 5), (O, 4), version=1), errno.EOPNOTSUPP),
        (value((U, 7), (G, 5), (O, 4)) + b"\0", errno.EINVAL),
        (value((U, 7), (G, 5)), errno.EINVAL),
        (value((G, 5), (U, 7), (O, 4)), errno.EINVAL),
        (value((U, 7), (U, 7), (G, 5), (O, 4)), errno.EINVAL),
        (value((U, 7), (G, 5), (O, 4), (O, 4)), errno.EINVAL),
        (value((U, 8), (G, 5), (O, 4)), errno.EINVAL),
        (value((U, 7), (3, 5), (O, 4)), errno.EINVAL),
        (value((U, 7), (USER, 7, 5), (G, 5), (O, 4)), errno.EINVAL),  # names need a mask
        (value((U, 7), (USER, 7), (G, 5), (MASK, 7), (O, 4)), errno.EINVAL),  # nobody's name
        (value((U, 7), (G, 5), (USER, 7, 5), (MASK, 7), (O, 4)), errno.EINVAL),
        (TOO_LONG, errno.E2BIG),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(fs: Driver, file: Ino, content: bytes, number: int) -> None:
    """posix_acl_valid and posix_acl_from_xattr; nothing changed."""
    before = fs.rows()
    assert fs.errno(c.SetXattr(ALICE, file, ACCESS, content, 0)) == number
    assert fs.rows() == before


def test_set_group_id_goes_with_whoever_may_not_give_it(fs: Driver, file: Ino) -> None:
    """posix_acl_update_mode: neither root nor of the group; its kernel says so in a flag."""
    fs.ok(c.SetAttr(ROOT, file, mode=0o2750))
    set_acl(fs, file, ACCESS, SHARED)
    assert modes(fs, file)[0] == 0o2764
    set_acl(fs, file, ACCESS, SHARED, c.XATTR_KILL_SGID)
    assert modes(fs, file)[0] == 0o764
    fs.ok(c.SetAttr(ROOT, file, gid=5, mode=0o2750))
    set_acl(fs, file, ACCESS, SHARED)
    assert modes(fs, file)[0] == 0o764


def test_the_past_has_its_lists(fs: Driver, file: Ino) -> None:
    """History keeps list and mode of each moment."""
    before = fs.index
    set_acl(fs, file, ACCESS, SHARED)
    then = fs.index
    fs.ok(c.SetAttr(ALICE, file, mode=0o600))
    assert fs.tree.getattr(file, before).mode == stat.S_IFREG | 0o640
    assert fs.tree.listxattr(file, before) == []
    assert fs.tree.getxattr(file, ACCESS, then) == SHARED
    assert acl_mode(fs.tree.getattr(file, then).mode) == stat.S_IFREG | 0o764


def test_a_change_tells_that_the_inode_changed(fs: Driver, file: Ino) -> None:
    """Caches drop what they know of it."""
    result = fs.run(c.SetXattr(ALICE, file, ACCESS, SHARED, 0))
    assert result.touched == Touched((file,))


def test_fsck_compares_modes_and_lists(fs: Driver, file: Ino) -> None:
    set_acl(fs, file, ACCESS, SHARED)
    fs.tree.commit()
    mode = fs.tree.getattr(file).mode
    for wrong in (mode & ST_MODE_BITS, mode | 0o70, mode ^ 1 << 20):
        fs.connection.execute("UPDATE inode SET mode = ? WHERE ino = ?", (wrong, file))
        assert any("access control lists" in finding for finding in check(fs.connection))
    fs.connection.execute("UPDATE inode SET mode = ? WHERE ino = ?", (mode, file))
    fs.connection.execute("UPDATE xattr SET value = x'00' WHERE ino = ?", (file,))
    assert any("no kernel could read" in finding for finding in check(fs.connection))
    fs.connection.execute("UPDATE xattr SET value = ? WHERE ino = ?", (SHARED, file))


def test_commands_of_a_log_before_there_were_lists() -> None:
    """A new command without an umask is written as it was before, and one of before is read."""
    for command in (
        c.Mkdir(ROOT, ROOT_INO, b"n", 0o755),
        c.Create(ROOT, ROOT_INO, b"n", 0o644, True),
        c.Mknod(ROOT, ROOT_INO, b"n", 0o644, 0),
        c.Tmpfile(ROOT, ROOT_INO, 0o644),
    ):
        fields = c.encode(command)
        assert len(fields) == 1 + len(c._FIELDS[type(command)]) - len(c._ADDED[type(command)])
        assert c.decode(fields) == command
        assert c.decode((*fields, 0o22)).umask == 0o22
        with pytest.raises(c.CommandError):
            c.decode((*fields, 0o1000))


def test_parse_and_pack_are_each_others_reverse() -> None:
    assert acl.pack(acl.parse(SHARED)) == SHARED
    with pytest.raises(FileError):
        acl.parse(SHARED[:-1])
