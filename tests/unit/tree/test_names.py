"""Rules of names, each by itself; the model test holds the combinations."""

from __future__ import annotations

import errno
import stat

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import Attr, Touched
from tests.unit.tree.driver import ALICE, BOB, EVE, KERNEL_EVE, ROOT, Driver, extent, file_error

NAME_TOO_LONG = b"n" * 256


def test_new_names_in_a_missing_directory_are_refused(fs: Driver) -> None:
    """ENOENT for an unknown parent, ENOTDIR for a file: mkdir(2), open(2)."""
    file = fs.create(b"f")
    for parent, number in ((Ino(99), errno.ENOENT), (file, errno.ENOTDIR)):
        assert fs.errno(c.Mkdir(ROOT, parent, b"x", 0o755)) == number
        assert fs.errno(c.Create(ROOT, parent, b"x", 0o644, False)) == number
        assert fs.errno(c.Mknod(ROOT, parent, b"x", stat.S_IFIFO, 0)) == number
        assert fs.errno(c.Symlink(ROOT, parent, b"x", b"t")) == number
        assert fs.errno(c.Tmpfile(ROOT, parent, 0o600)) == number
        assert fs.errno(c.Link(ROOT, file, parent, b"x")) == number
        assert fs.errno(c.Unlink(ROOT, parent, b"x")) == number
        assert fs.errno(c.Rmdir(ROOT, parent, b"x")) == number
        assert fs.errno(c.Rename(ROOT, parent, b"x", ROOT_INO, b"y", 0)) == number
        assert fs.errno(c.Rename(ROOT, ROOT_INO, b"f", parent, b"y", 0)) == number


def test_a_name_has_at_most_255_bytes(fs: Driver) -> None:
    """ENAMETOOLONG from 256 bytes on, in every command that takes a name."""
    file = fs.create(b"n" * 255)
    long = NAME_TOO_LONG
    for command in (
        c.Mkdir(ROOT, ROOT_INO, long, 0o755),
        c.Create(ROOT, ROOT_INO, long, 0o644, False),
        c.Link(ROOT, file, ROOT_INO, long),
        c.Unlink(ROOT, ROOT_INO, long),
        c.Rename(ROOT, ROOT_INO, b"n" * 255, ROOT_INO, long, 0),
        c.Rename(ROOT, ROOT_INO, long, ROOT_INO, b"x", 0),
    ):
        assert fs.errno(command) == errno.ENAMETOOLONG


def test_names_are_bytes(fs: Driver) -> None:
    """Names that are no text, or differ in case or normal form only, are names of their own."""
    names = [b"\xff\x00"[:1], b"A", b"a", "é".encode(), "e\u0301".encode(), b"%", b"_", b" "]
    inos = [fs.create(name) for name in names]
    assert [fs.tree.lookup(ROOT_INO, name).ino for name in names] == inos


def test_create_gives_the_existing_file_unless_exclusive(fs: Driver) -> None:
    """open(2): O_CREAT finds the file, O_CREAT|O_EXCL says EEXIST, a directory is EISDIR."""
    file = fs.create(b"f")
    fs.mkdir(b"d")
    result = fs.run(c.Create(EVE, ROOT_INO, b"f", 0o600, False))
    assert result.value == (fs.tree.getattr(file), False)
    assert result.touched == Touched()
    assert fs.errno(c.Create(ROOT, ROOT_INO, b"f", 0o644, True)) == errno.EEXIST
    assert fs.errno(c.Create(ROOT, ROOT_INO, b"d", 0o644, False)) == errno.EISDIR


def test_touched_of_create_is_the_directory_and_the_name(fs: Driver) -> None:
    """Nobody can have the new inode cached; the directory and a negative entry they can."""
    result = fs.run(c.Create(ROOT, ROOT_INO, b"f", 0o644, True))
    assert result.touched == Touched((ROOT_INO,), ((ROOT_INO, b"f"),))


def test_a_setgid_directory_hands_its_group_down(fs: Driver) -> None:
    """inode(7): children get the directory's group, subdirectories the bit as well."""
    top = fs.mkdir(b"top", mode=0o2777)
    fs.ok(c.SetAttr(ROOT, top, gid=77))
    sub: Attr = fs.ok(c.Mkdir(ALICE, top, b"sub", 0o755))
    file: Attr = fs.ok(c.Create(ALICE, sub.ino, b"f", 0o644, True))[0]
    assert (sub.gid, stat.S_IMODE(sub.mode)) == (77, 0o2755)
    assert (file.gid, stat.S_IMODE(file.mode)) == (77, 0o644)


def test_an_outsider_makes_no_setgid_program_of_a_foreign_group(fs: Driver) -> None:
    """CVE-2018-13405: in a setgid directory a new executable loses S_ISGID for non-members."""
    top = fs.mkdir(b"top", mode=0o2777)
    fs.ok(c.SetAttr(ROOT, top, gid=1000))
    for caller, kept in ((EVE, 0), (BOB, stat.S_ISGID), (ROOT, stat.S_ISGID)):
        name = str(caller.uid).encode()
        attr: Attr = fs.ok(c.Create(caller, top, name, 0o2775, True))[0]
        assert attr.mode & stat.S_ISGID == kept, caller


def test_mknod_makes_what_is_neither_directory_nor_symlink(fs: Driver) -> None:
    """mknod(2): devices for root only, EPERM for a directory, EINVAL for other kinds."""
    attr: Attr = fs.ok(c.Mknod(ROOT, ROOT_INO, b"null", stat.S_IFCHR | 0o666, 0x103))
    assert (attr.mode, attr.rdev) == (stat.S_IFCHR | 0o666, 0x103)
    fifo: Attr = fs.ok(c.Mknod(ALICE, ROOT_INO, b"fifo", stat.S_IFIFO | 0o600, 5))
    assert fifo.rdev == 0
    plain: Attr = fs.ok(c.Mknod(ALICE, ROOT_INO, b"plain", 0o600, 0))
    assert plain.is_regular
    assert fs.errno(c.Mknod(ALICE, ROOT_INO, b"x", stat.S_IFBLK | 0o600, 1)) == errno.EPERM
    assert fs.errno(c.Mknod(ROOT, ROOT_INO, b"x", stat.S_IFDIR | 0o755, 0)) == errno.EPERM
    assert fs.errno(c.Mknod(ROOT, ROOT_INO, b"x", stat.S_IFLNK | 0o777, 0)) == errno.EINVAL


def test_symlinks_keep_their_target(fs: Driver) -> None:
    """symlink(2): any bytes, as many as a path has; readlink(2) of something else is EINVAL."""
    link: Attr = fs.ok(c.Symlink(ALICE, ROOT_INO, b"s", b"../\xff"))
    assert (link.size, stat.S_IMODE(link.mode)) == (4, 0o777)
    assert fs.tree.readlink(link.ino) == b"../\xff"
    assert fs.errno(c.Symlink(ROOT, ROOT_INO, b"t", b"x" * 4096)) == errno.ENAMETOOLONG
    assert fs.errno(c.Symlink(ROOT, ROOT_INO, b"t", b"")) == errno.ENOENT
    with file_error(errno.EINVAL):
        fs.tree.readlink(ROOT_INO)


def test_hard_links_share_one_inode(fs: Driver) -> None:
    """link(2): one more name and nlink; not for a directory (EPERM)."""
    file = fs.create(b"f")
    sub = fs.mkdir(b"d")
    result = fs.run(c.Link(ROOT, file, sub, b"g"))
    assert result.value.nlink == 2
    assert result.touched == Touched((sub, file), ((sub, b"g"),))
    assert fs.tree.names_of(file) == [(ROOT_INO, b"f"), (sub, b"g")]
    assert fs.errno(c.Link(ROOT, sub, ROOT_INO, b"x")) == errno.EPERM
    assert fs.errno(c.Link(ROOT, Ino(99), ROOT_INO, b"x")) == errno.ENOENT


def test_link_counts_are_bounded(fs: Driver) -> None:
    """EMLINK at 2**31 - 1, for names of a file and for subdirectories."""
    file = fs.create(b"f")
    sub = fs.mkdir(b"d")
    moved = fs.mkdir(b"m")
    fs.ok(c.Mkdir(ROOT, sub, b"e", 0o755))
    fs.connection.execute("UPDATE inode SET nlink = 2147483647 WHERE ino IN (?, ?)", (file, sub))
    reopened = Driver.__new__(Driver)
    reopened.connection, reopened.log = fs.connection, []
    reopened.tree = type(fs.tree)(fs.connection)
    assert reopened.errno(c.Link(ROOT, file, ROOT_INO, b"g")) == errno.EMLINK
    assert reopened.errno(c.Mkdir(ROOT, sub, b"x", 0o755)) == errno.EMLINK
    assert reopened.errno(c.Rename(ROOT, ROOT_INO, b"m", sub, b"x", 0)) == errno.EMLINK
    assert reopened.errno(c.Rename(ROOT, ROOT_INO, b"m", sub, b"f", 2)) == errno.ENOENT
    assert moved
    fs.connection.execute("UPDATE inode SET nlink = 1 WHERE ino = ?", (file,))
    fs.connection.execute("UPDATE inode SET nlink = 3 WHERE ino = ?", (sub,))
    fs.tree = type(fs.tree)(fs.connection)


def test_an_unlinked_file_stays_until_it_is_purged(fs: Driver) -> None:
    """unlink(2) of an open file: still readable and writable, linkable no more, gone on purge."""
    file = fs.create(b"f")
    fs.write(file, extent(0, 10, 1))
    result = fs.run(c.Unlink(ROOT, ROOT_INO, b"f"))
    assert result.value.nlink == 0
    assert result.touched == Touched((ROOT_INO, file), ((ROOT_INO, b"f"),))
    assert fs.tree.orphans(10) == [file]
    assert fs.errno(c.Link(ROOT, file, ROOT_INO, b"g")) == errno.ENOENT
    fs.write(file, extent(10, 5, 2))
    assert fs.tree.getattr(file).size == 15
    assert fs.ok(c.PurgeOrphans((file, file, ROOT_INO, Ino(99)))) == 1
    with file_error(errno.ENOENT):
        fs.tree.getattr(file)
    assert fs.tree.orphans(10) == []


def test_tmpfile_is_an_orphan_that_link_may_name(fs: Driver) -> None:
    """open(2) O_TMPFILE, linkat(2): from no name to one; after that as any other file."""
    attr: Attr = fs.ok(c.Tmpfile(ALICE, ROOT_INO, 0o600))
    assert attr.nlink == 0
    assert fs.tree.orphans(10) == [attr.ino]
    assert fs.ok(c.Link(ALICE, attr.ino, ROOT_INO, b"f")).nlink == 1
    assert fs.tree.orphans(10) == []
    fs.ok(c.Unlink(ALICE, ROOT_INO, b"f"))
    assert fs.errno(c.Link(ALICE, attr.ino, ROOT_INO, b"f")) == errno.ENOENT


def test_nothing_is_made_in_a_removed_directory(fs: Driver) -> None:
    """rmdir(2): the directory stays for whoever is in it, with nlink 0; new names are ENOENT."""
    sub = fs.mkdir(b"d")
    file = fs.create(b"f")
    assert fs.ok(c.Rmdir(ROOT, ROOT_INO, b"d")) is None
    assert fs.tree.getattr(sub).nlink == 0
    assert fs.tree.readdir(sub, 0, 9) == []
    assert fs.errno(c.Create(ROOT, sub, b"x", 0o644, False)) == errno.ENOENT
    assert fs.errno(c.Mkdir(ROOT, sub, b"x", 0o755)) == errno.ENOENT
    assert fs.errno(c.Tmpfile(ROOT, sub, 0o600)) == errno.ENOENT
    assert fs.errno(c.Link(ROOT, file, sub, b"x")) == errno.ENOENT
    assert fs.errno(c.Rename(ROOT, ROOT_INO, b"f", sub, b"x", 0)) == errno.ENOENT


def test_unlink_and_rmdir_tell_kinds_apart(fs: Driver) -> None:
    """EISDIR, ENOTDIR, ENOTEMPTY, ENOENT as unlink(2) and rmdir(2)."""
    sub = fs.mkdir(b"d")
    fs.create(b"f")
    fs.create(b"g", sub)
    assert fs.errno(c.Unlink(ROOT, ROOT_INO, b"d")) == errno.EISDIR
    assert fs.errno(c.Rmdir(ROOT, ROOT_INO, b"f")) == errno.ENOTDIR
    assert fs.errno(c.Rmdir(ROOT, ROOT_INO, b"d")) == errno.ENOTEMPTY
    assert fs.errno(c.Unlink(ROOT, ROOT_INO, b"x")) == errno.ENOENT
    assert fs.errno(c.Rmdir(ROOT, ROOT_INO, b"x")) == errno.ENOENT


def test_in_a_sticky_directory_only_owners_remove(fs: Driver) -> None:
    """unlink(2) EPERM: neither the file's nor the directory's owner, even when the kernel checked
    the mode bits."""
    top = fs.mkdir(b"tmp", mode=0o1777)
    fs.create(b"f", top, caller=ALICE)
    for caller in (EVE, KERNEL_EVE):
        assert fs.errno(c.Unlink(caller, top, b"f")) == errno.EPERM
        assert fs.errno(c.Rename(caller, top, b"f", top, b"g", 0)) == errno.EPERM
    fs.create(b"e", top, caller=EVE)
    assert fs.errno(c.Rename(EVE, top, b"e", top, b"f", 0)) == errno.EPERM
    fs.ok(c.Unlink(ALICE, top, b"f"))
    fs.ok(c.Unlink(ROOT, top, b"e"))
    fs.create(b"g", top, caller=EVE)
    fs.ok(c.SetAttr(ROOT, top, uid=ALICE.uid))
    fs.ok(c.Unlink(ALICE, top, b"g"))  # the directory's owner


@pytest.mark.parametrize(
    ("mode", "caller", "may_search", "may_write"),
    [
        (0o700, ALICE, True, True),
        (0o077, ALICE, False, False),  # the owner's bits count for the owner, not the group's
        (0o070, BOB, True, True),
        (0o707, BOB, False, False),
        (0o007, EVE, True, True),
        (0o005, EVE, True, False),
        (0o002, EVE, False, False),
        (0o000, KERNEL_EVE, True, True),  # its kernel has looked
        (0o000, ROOT, True, True),
    ],
)
def test_mode_bits_of_a_directory_are_obeyed(
    fs: Driver, mode: int, caller: c.Caller, may_search: bool, may_write: bool
) -> None:
    """path_resolution(7): EACCES without search, and for changes without write permission."""
    top = fs.mkdir(b"d")
    fs.create(b"f", top)
    fs.ok(c.SetAttr(ROOT, top, mode=mode, uid=ALICE.uid, gid=ALICE.gid))
    opened = fs.run(c.Create(caller, top, b"f", 0o644, False))
    assert opened.errno == (0 if may_search else errno.EACCES)
    made = fs.run(c.Mkdir(caller, top, b"x", 0o755))
    assert made.errno == (0 if may_write else errno.EACCES)
    removed = fs.run(c.Unlink(caller, top, b"f"))
    assert removed.errno == (0 if may_write else errno.EACCES)


def test_rename_moves_a_directory_with_its_parent_and_counts(fs: Driver) -> None:
    """rename(2): "..", link counts of both parents, path; not into its own subtree (EINVAL)."""
    a, b = fs.mkdir(b"a"), fs.mkdir(b"b")
    x = fs.mkdir(b"x", a)
    y = fs.mkdir(b"y", x)
    moved, other = fs.ok(c.Rename(ROOT, a, b"x", b, b"z", 0))
    assert (moved.ino, other) == (x, None)
    assert [fs.tree.getattr(ino).nlink for ino in (a, b)] == [2, 3]
    assert fs.tree.path_of(y) == b"/b/z/y"
    assert fs.errno(c.Rename(ROOT, ROOT_INO, b"b", y, b"q", 0)) == errno.EINVAL
    assert fs.errno(c.Rename(ROOT, b, b"z", x, b"q", 0)) == errno.EINVAL
    assert fs.errno(c.Rename(ROOT, x, b"y", ROOT_INO, b"b", 0)) == errno.ENOTEMPTY


def test_rename_over_an_existing_name_replaces_it(fs: Driver) -> None:
    """rename(2): atomically, the victim becomes an orphan; kinds must agree."""
    old, new = fs.create(b"old"), fs.create(b"new")
    fs.mkdir(b"d")
    result = fs.run(c.Rename(ROOT, ROOT_INO, b"old", ROOT_INO, b"new", 0))
    assert [attr.ino for attr in result.value] == [old, new]
    assert result.value[1].nlink == 0
    assert result.touched == Touched((ROOT_INO, old, new), ((ROOT_INO, b"old"), (ROOT_INO, b"new")))
    assert fs.tree.lookup(ROOT_INO, b"new").ino == old
    assert fs.errno(c.Rename(ROOT, ROOT_INO, b"new", ROOT_INO, b"d", 0)) == errno.EISDIR
    assert fs.errno(c.Rename(ROOT, ROOT_INO, b"d", ROOT_INO, b"new", 0)) == errno.ENOTDIR
    assert fs.errno(c.Rename(ROOT, ROOT_INO, b"d", ROOT_INO, b"new", 1)) == errno.EEXIST


def test_rename_onto_another_name_of_the_same_inode_does_nothing(fs: Driver) -> None:
    """rename(2): "if oldpath and newpath are existing hard links ... does nothing"."""
    file = fs.create(b"f")
    fs.ok(c.Link(ROOT, file, ROOT_INO, b"g"))
    before = fs.rows()
    result = fs.run(c.Rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", 0))
    assert (result.errno, result.touched) == (0, Touched())
    assert fs.rows() == before


def test_exchange_swaps_directories_and_files(fs: Driver) -> None:
    """renameat2(2) RENAME_EXCHANGE: both names stay, "..", counts and cookies follow."""
    a, b = fs.mkdir(b"a"), fs.mkdir(b"b")
    x, f = fs.mkdir(b"x", a), fs.create(b"f", b)
    cookies = [fs.tree.readdir(ino, 0, 9)[0].cookie for ino in (a, b)]
    moved, other = fs.ok(c.Rename(ROOT, a, b"x", b, b"f", c.RENAME_EXCHANGE))
    assert (moved.ino, other.ino) == (x, f)
    assert [fs.tree.getattr(ino).nlink for ino in (a, b)] == [2, 3]
    assert (fs.tree.path_of(x), fs.tree.path_of(f)) == (b"/b/f", b"/a/x")
    assert [fs.tree.readdir(ino, 0, 9)[0].cookie for ino in (a, b)] == cookies
    missing = c.Rename(ROOT, a, b"x", b, b"none", c.RENAME_EXCHANGE)
    assert fs.errno(missing) == errno.ENOENT
    inside = c.Rename(ROOT, b, b"f", ROOT_INO, b"b", c.RENAME_EXCHANGE)
    assert fs.errno(inside) == errno.EINVAL


def test_rename_flags_that_nobody_knows_are_refused(fs: Driver) -> None:
    """renameat2(2) EINVAL: NOREPLACE with EXCHANGE, WHITEOUT."""
    fs.create(b"f")
    for flags in (3, c.RENAME_WHITEOUT, 7):
        assert fs.errno(c.Rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", flags)) == errno.EINVAL


def test_moving_a_directory_elsewhere_needs_write_permission_on_it(fs: Driver) -> None:
    """rename(2) EACCES: its ".." changes; within one directory it does not."""
    a, b = fs.mkdir(b"a", mode=0o777), fs.mkdir(b"b", mode=0o777)
    fs.ok(c.Mkdir(BOB, a, b"x", 0o500))
    assert fs.errno(c.Rename(BOB, a, b"x", b, b"x", 0)) == errno.EACCES
    fs.ok(c.Rename(BOB, a, b"x", a, b"y", 0))


def test_times_follow_posix(fs: Driver) -> None:
    """Changes of names stamp the directory's mtime and ctime, and the ctime of the inode."""
    sub = fs.mkdir(b"d")
    file = fs.create(b"f", sub)

    def times(ino: Ino) -> tuple[int, int]:
        attr = fs.tree.getattr(ino)
        return attr.mtime_ns, attr.ctime_ns

    def now() -> int:
        return fs.log[-1][2].time_ns if fs.log[-1][2] else 0

    born = now()
    assert times(sub) == (born, born)
    fs.ok(c.Link(ROOT, file, ROOT_INO, b"g"))
    assert times(sub) == (born, born)
    assert times(ROOT_INO) == (now(), now())
    assert times(file) == (born, now())
    fs.ok(c.Rename(ROOT, sub, b"f", ROOT_INO, b"h", 0))
    assert times(sub) == times(ROOT_INO) == (now(), now())
    assert times(file) == (born, now())
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"h"))
    assert times(ROOT_INO) == (now(), now())
    assert times(file) == (born, now())


def test_inode_numbers_and_cookies_are_never_reused(fs: Driver) -> None:
    """Kernels and readers keep them after the file is gone."""
    seen: set[int] = set()
    cookies: set[int] = set()
    for _ in range(4):
        file = fs.create(b"f")
        cookie = fs.tree.readdir(ROOT_INO, 0, 9)[0].cookie
        assert file not in seen
        assert cookie not in cookies
        seen.add(file)
        cookies.add(cookie)
        fs.ok(c.Unlink(ROOT, ROOT_INO, b"f"))
        fs.ok(c.PurgeOrphans((file,)))
        fs.ok(c.TrimHistory(fs.index, 100))


def test_readdir_shows_what_stays_once_while_others_come_and_go(fs: Driver) -> None:
    """Reading one entry at a time: every name that is there throughout appears exactly once."""
    for number in range(6):
        fs.create(b"stay%d" % number)
        fs.create(b"go%d" % number)
    seen: list[bytes] = []
    cookie = 0
    for number in range(100):
        page = fs.tree.readdir(ROOT_INO, cookie, 1)
        if not page:
            break
        cookie = page[0].cookie
        seen.append(page[0].name)
        if number < 6:
            fs.ok(c.Unlink(ROOT, ROOT_INO, b"go%d" % number))
            fs.create(b"come%d" % number)
    assert [name for name in seen if name.startswith(b"stay")] == [b"stay%d" % n for n in range(6)]
    assert len(seen) == len(set(seen))


def test_a_name_that_is_replaced_is_listed_once(fs: Driver) -> None:
    """The common "write a temporary file, rename it over": readers in between see one name."""
    fs.create(b"name")
    first = fs.tree.readdir(ROOT_INO, 0, 1)
    fs.create(b"temporary")
    fs.ok(c.Rename(ROOT, ROOT_INO, b"temporary", ROOT_INO, b"name", 0))
    assert fs.tree.readdir(ROOT_INO, first[0].cookie, 9) == []
