"""Rules of commits and clones: order of application, blobs, limits; and the arithmetic below."""

from __future__ import annotations

import errno
import stat
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydi_node import commands as c
from pydi_node.ids import INT64_MAX, ROOT_INO, BlobId, Ino, LogIndex, NodeNumber, TimeNs
from pydi_node.records import Attr, BlobInfo, Extent, Result, Touched
from pydi_node.tree import Tree, extents
from pydi_node.tree.queries import inodes_naming, inodes_that_named
from tests.unit.tree.driver import (
    ALICE,
    ROOT,
    Driver,
    blob,
    blob_info,
    entry,
    extent,
    info_in_tree,
    put,
)


@pytest.fixture
def file(fs: Driver) -> Ino:
    return fs.create(b"f")


def commit(
    ino: Ino,
    *changes: Extent,
    size: int | None = None,
    cut: int | None = None,
    append: bool = False,
    base: int | None = None,
    blobs: tuple[BlobInfo, ...] | None = None,
) -> c.Commit:
    """A commit whose size is the end of its changes and which describes every blob it names."""
    end = max((e.offset + e.length for e in changes), default=0)
    named = sorted({e.blob for e in changes if e.blob})
    infos = tuple(blob_info(b & 0xFF) for b in named) if blobs is None else blobs
    version = None if base is None else LogIndex(base)
    return c.Commit(ROOT, ino, version, cut, end if size is None else size, append, changes, infos)


def test_a_first_commit_is_the_whole_file(fs: Driver, file: Ino) -> None:
    """One extent, one blob, its holders; the attributes say size, version and time."""
    result = fs.run(commit(file, extent(0, 100, 1)))
    attr: Attr = result.value
    assert (attr.size, attr.allocated, attr.version) == (100, 100, fs.index)
    assert attr.mtime_ns == attr.ctime_ns > attr.btime_ns
    assert result.touched == Touched((file,))
    version = fs.tree.file_version(file)
    assert version == (attr, (extent(0, 100, 1),), (blob_info(1),), ())


def test_writers_of_disjoint_ranges_both_keep_their_bytes(fs: Driver, file: Ino) -> None:
    """Two commits on the same base version 0: the second carves only its own range."""
    fs.ok(commit(file, extent(0, 100, 1)))
    fs.ok(commit(file, extent(10, 5, 2), size=100))
    fs.ok(commit(file, extent(50, 5, 3), size=100))
    assert fs.extents(file) == [
        extent(0, 10, 1),
        extent(10, 5, 2),
        extent(15, 35, 1, 15),
        extent(50, 5, 3),
        extent(55, 45, 1, 55),
    ]


def test_the_stale_base_version_is_refused(fs: Driver, file: Ino) -> None:
    """ESTALE unless the inode's version is the given one."""
    version = fs.ok(commit(file, extent(0, 10, 1))).version
    fs.ok(commit(file, extent(0, 10, 2), base=version))
    assert fs.errno(commit(file, extent(0, 10, 3), base=version)) == errno.ESTALE


def test_later_changes_of_one_commit_win(fs: Driver, file: Ino) -> None:
    """In order: an extent, a hole into it, an extent into the hole."""
    fs.ok(commit(file, extent(0, 30, 1), extent(10, 10, 0), extent(12, 2, 2), size=30))
    assert fs.extents(file) == [extent(0, 10, 1), extent(12, 2, 2), extent(20, 10, 1, 20)]
    assert fs.tree.getattr(file).allocated == 22


def test_a_cut_comes_first_and_sets_the_size(fs: Driver, file: Ino) -> None:
    """Everything from the cut on goes, then the changes come; the size may shrink."""
    fs.ok(commit(file, extent(0, 100, 1)))
    attr: Attr = fs.ok(commit(file, extent(60, 10, 2), cut=20, size=80))
    assert attr.size == 80
    assert fs.extents(file) == [extent(0, 20, 1), extent(60, 10, 2)]
    attr = fs.ok(commit(file, cut=0, size=0))
    assert (attr.size, attr.allocated, fs.extents(file)) == (0, 0, [])
    assert fs.errno(commit(file, cut=9, size=8)) == errno.EINVAL


def test_an_append_goes_to_the_end_as_it_is_when_applied(fs: Driver, file: Ino) -> None:
    """O_APPEND from two machines: both pieces are there, in the log's order."""
    fs.ok(commit(file, extent(0, 10, 1)))
    fs.ok(commit(file, extent(0, 5, 2), append=True))
    attr: Attr = fs.ok(commit(file, extent(1, 5, 3), size=8, append=True))
    assert attr.size == 23
    assert fs.extents(file) == [extent(0, 10, 1), extent(10, 5, 2), extent(16, 5, 3)]
    attr = fs.ok(commit(file, extent(0, 5, 4), cut=3, size=8, append=True))
    assert (attr.size, attr.allocated) == (8, 8)
    assert fs.extents(file) == [extent(0, 3, 1), extent(3, 5, 4)]


def test_extents_that_continue_each_other_become_one(fs: Driver, file: Ino) -> None:
    """Neighbours in file and blob merge, within a commit and with what was there."""
    fs.ok(commit(file, extent(0, 10, 1), extent(10, 10, 1, 10)))
    fs.ok(commit(file, extent(20, 10, 1, 20)))
    assert fs.extents(file) == [extent(0, 30, 1)]
    fs.ok(commit(file, extent(30, 10, 1, 31)))
    fs.ok(commit(file, extent(41, 10, 1, 41)))
    assert len(fs.extents(file)) == 3


def test_blobs_must_be_known_described_alike_and_long_enough(fs: Driver, file: Ino) -> None:
    """EINVAL for an unknown blob, another checksum, bytes past its end, no holder, a description of
    a blob that no extent names or that comes twice."""
    fs.ok(commit(file, extent(0, 100, 1)))
    fs.ok(commit(file, extent(0, 100, 1), blobs=()))
    one, two = blob_info(1), blob_info(2)
    for changes, blobs in (
        ((extent(0, 10, 2),), ()),
        ((extent(0, 10, 1),), (one._replace(checksum=b"x" * 32),)),
        ((extent(0, 10, 1),), (one._replace(size=99),)),
        ((extent(0, 10, 1, 91),), ()),
        ((extent(0, 10, 2, 91),), (two,)),
        ((extent(0, 10, 2),), (two._replace(holders=()),)),
        ((extent(0, 10, 1),), (one, two)),
        ((extent(0, 10, 2),), (two, two)),
    ):
        assert fs.errno(commit(file, *changes, blobs=blobs)) == errno.EINVAL, (changes, blobs)


def test_a_commit_does_not_move_the_holders_of_a_known_blob(fs: Driver, file: Ino) -> None:
    """Repair owns them: a late client could name a node that gave its copy away."""
    fs.ok(commit(file, extent(0, 100, 1)))
    fs.ok(commit(file, extent(0, 50, 1), blobs=(blob_info(1, holders=(7,)),)))
    assert fs.tree.blob(blob(1)) == blob_info(1)


def test_small_content_is_never_answered_for_and_not_kept(fs: Driver, file: Ino) -> None:
    """Somebody described a blob of this name and checksum before, with a holder that has nothing:
    EINVAL. Under a name that is in the tree already, the same content is kept as it was."""
    claimed = info_in_tree(1, b"small")._replace(holders=(NodeNumber(7),))
    fs.ok(commit(file, extent(0, 5, 1), blobs=(claimed,)))
    assert fs.errno(put(fs.create(b"g"), 1, b"small")) == errno.EINVAL
    for name in (b"h", b"i"):
        ino = fs.create(name)
        fs.ok(put(ino, 2, b"small"))
        assert fs.tree.file_version(ino).contents == ((blob(2), b"small"),)


def test_changes_past_the_size_are_refused(fs: Driver, file: Ino) -> None:
    """EINVAL, whether the size comes from the command, a cut or an append."""
    fs.ok(commit(file, extent(0, 50, 1)))
    assert fs.errno(commit(file, extent(45, 10, 2), size=50)) == errno.EINVAL
    assert fs.errno(commit(file, extent(0, 10, 2), cut=0, size=9)) == errno.EINVAL
    assert fs.errno(commit(file, extent(0, 10, 2), size=9, append=True)) == errno.EINVAL
    fs.ok(commit(file, extent(40, 10, 2), size=3))
    assert fs.tree.getattr(file).size == 50


def test_files_reach_to_the_last_offset_and_not_further(fs: Driver, file: Ino) -> None:
    """EFBIG for what off_t can't say; sparse to the end works, and costs nothing."""
    attr: Attr = fs.ok(commit(file, extent(INT64_MAX - 10, 10, 1)))
    assert (attr.size, attr.allocated) == (INT64_MAX, 10)
    assert fs.errno(commit(file, extent(0, 1, 2), append=True)) == errno.EFBIG
    assert fs.errno(c.CloneRange(ROOT, file, 0, file, 1, INT64_MAX)) == errno.EINVAL
    other = fs.create(b"o")
    assert fs.errno(c.CloneRange(ROOT, file, 0, other, 1, INT64_MAX)) == errno.EFBIG
    attr, length = fs.ok(c.CloneRange(ROOT, file, 0, other, 0, INT64_MAX))
    assert (attr.size, attr.allocated, length) == (INT64_MAX, 10, INT64_MAX)


def test_only_regular_files_have_content(fs: Driver, file: Ino) -> None:
    """EISDIR, EINVAL, ENOENT for commit, and for either end of a clone."""
    fifo = fs.ok(c.Mknod(ROOT, ROOT_INO, b"p", stat.S_IFIFO | 0o666, 0)).ino
    for ino, number in (
        (ROOT_INO, errno.EISDIR),
        (fifo, errno.EINVAL),
        (Ino(99), errno.ENOENT),
    ):
        assert fs.errno(commit(ino, extent(0, 1, 1))) == number
        assert fs.errno(c.CloneRange(ROOT, ino, 0, file, 0, 1)) == number
        assert fs.errno(c.CloneRange(ROOT, file, 0, ino, 0, 1)) == number


def test_the_given_mtime_is_kept(fs: Driver, file: Ino) -> None:
    """mtime_ns of the command, else its time; TIME_NOW means its time too."""
    for mtime_ns, expected in ((5, 5), (None, None), (c.TIME_NOW, None)):
        time = None if mtime_ns is None else TimeNs(mtime_ns)
        attr: Attr = fs.ok(c.Commit(ALICE, file, None, None, 0, False, (), (), time))
        assert attr.mtime_ns == (attr.ctime_ns if expected is None else expected)


def test_a_clone_shares_blobs_and_holes(fs: Driver, file: Ino) -> None:
    """copy_file_range(2): short at the source's end; a hole of the source makes one here."""
    fs.ok(commit(file, extent(0, 10, 1), extent(20, 10, 2), size=40))
    other = fs.create(b"o")
    fs.ok(commit(other, extent(0, 100, 3)))
    attr, length = fs.ok(c.CloneRange(ROOT, file, 5, other, 50, 99))
    assert (attr.size, length) == (100, 35)
    assert fs.extents(other) == [
        extent(0, 50, 3),
        extent(50, 5, 1, 5),
        extent(65, 10, 2),
        extent(85, 15, 3, 85),
    ]
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"f"))
    fs.ok(c.PurgeOrphans((file,)))
    fs.ok(c.TrimHistory(fs.index, 100))
    assert fs.tree.garbage_blobs(9) == []


def test_a_clone_of_nothing_changes_nothing(fs: Driver, file: Ino) -> None:
    """From the end of the source on, or of length 0: (Attr, 0), nothing touched."""
    fs.ok(commit(file, extent(0, 10, 1)))
    before = fs.rows()
    for offset, length in ((10, 5), (99, 5), (0, 0)):
        result = fs.run(c.CloneRange(ROOT, file, offset, file, 3, length))
        assert result == Result(0, (fs.tree.getattr(file), 0))
    assert fs.rows() == before
    assert fs.errno(c.CloneRange(ROOT, file, 0, file, 9, 10)) == errno.EINVAL
    assert fs.ok(c.CloneRange(ROOT, file, 0, file, 10, 10))[0].size == 20


# --- arithmetic -----------------------------------------------------------------------------------

CELLS = 40


@st.composite
def change_lists(draw: st.DrawFn) -> list[Extent]:
    changes = []
    for _ in range(draw(st.integers(0, 6))):
        offset = draw(st.integers(0, CELLS - 1))
        length = draw(st.integers(1, CELLS - offset))
        number = draw(st.integers(0, 3))
        blob_offset = draw(st.sampled_from([0, offset])) if number else 0
        changes.append(Extent(offset, length, BlobId(number), blob_offset))
    return changes


def paint(changes: list[Extent]) -> list[tuple[int, int] | None]:
    cells: list[tuple[int, int] | None] = [None] * CELLS
    for e in changes:
        for i in range(e.length):
            cells[e.offset + i] = (e.blob, e.blob_offset + i) if e.blob else None
    return cells


@settings(deadline=None, max_examples=300)
@given(change_lists(), change_lists(), st.integers(0, CELLS), st.integers(0, CELLS))
def test_extent_arithmetic_equals_painting_bytes(
    first: list[Extent], second: list[Extent], start: int, end: int
) -> None:
    """splice, clip, fill, shift against one cell for each byte; results ascend, apart, merged."""
    base = extents.splice([], first)
    both = extents.splice(base, second)
    assert paint(both) == paint(first + second)
    for left, right in pairwise(both):
        assert left.offset + left.length <= right.offset
        continues = left.offset + left.length == right.offset and left.blob == right.blob
        assert not continues or left.blob_offset + left.length != right.blob_offset
    if start < end:
        inside = extents.clip(both, start, end)
        outside: list[tuple[int, int] | None] = [None] * CELLS
        outside[start:end] = paint(both)[start:end]
        assert paint(inside) == outside
        filled = extents.fill(inside, start, end)
        assert sum(e.length for e in filled) == end - start
        assert extents.splice(base, filled) == extents.splice(
            [*extents.clip(base, 0, start), *inside, *extents.clip(base, end, CELLS)], []
        )
        assert extents.shift(extents.shift(filled, 7), -7) == filled


def test_any_order_of_many_changes_is_quick() -> None:
    """64 Ki changes backwards: one at a time this would take minutes and stop every node."""
    changes = [Extent(2 * i, 3, BlobId(i + 1), 0) for i in reversed(range(65536))]
    assert len(extents.splice([], changes)) == 65536


def test_compact_changes_pieces_and_nothing_else(fs: Driver) -> None:
    """Version, times and size stay, the past still names the old blobs; it is refused when the file
    was changed meanwhile, or when a range would make the file longer."""
    ino = fs.create(b"f")
    fs.write(ino, extent(0, 10, 1), extent(10, 10, 2), extent(20, 10, 3))
    before, index = fs.tree.getattr(ino), fs.index
    joined = (extent(0, 20, 4),)
    stale = c.Compact(ino, LogIndex(before.version - 1), joined, (blob_info(4),))
    assert fs.errno(stale) == errno.ESTALE
    longer = c.Compact(ino, before.version, (extent(0, 31, 4),), (blob_info(4),))
    assert fs.errno(longer) == errno.EINVAL
    nothing = c.Compact(ino, before.version, (extent(0, 5, 0),), ())
    assert fs.errno(nothing) == errno.EINVAL
    after = fs.ok(c.Compact(ino, before.version, joined, (blob_info(4),)))
    assert after._replace(changed=before.changed) == before
    assert fs.extents(ino) == [extent(0, 20, 4), extent(20, 10, 3)]
    assert fs.extents(ino, index) == [extent(0, 10, 1), extent(10, 10, 2), extent(20, 10, 3)]
    assert [version.attr.version for version in fs.tree.versions_of(ino)][-1] == before.version


def test_files_in_many_pieces_are_found(fs: Driver) -> None:
    """All of them, however small the slices in which the tree is looked through."""
    inos = [fs.create(b"%d" % number) for number in range(6)]
    for number, ino in enumerate(inos):
        count = 5 if number % 2 else 2
        fs.write(ino, *[extent(at * 20, 10, number + 1) for at in range(count)])
    for rows in (1, 2, 3, 7, 100):
        found: list[int] = []
        after: Ino | None = Ino(0)
        while after is not None:
            some, after = fs.tree.fragmented(after, rows, min(rows, 5))
            found += some
        assert set(inos[1::2]) <= set(found), rows
    assert fs.tree.fragmented(Ino(0), 100, 5) == (inos[1::2], None)


def test_files_that_need_a_blob_are_found(fs: Driver) -> None:
    """Those that name it now, and those of which an older version that is kept does, with the last
    log index of that version."""
    now, past, both, none = (fs.create(name) for name in (b"a", b"b", b"c", b"d"))
    fs.write(now, extent(0, 10, 1))
    fs.write(past, extent(0, 10, 1))
    fs.write(both, extent(0, 10, 1), extent(10, 10, 2))
    fs.write(none, extent(0, 10, 3))
    last = fs.index
    fs.write(past, extent(0, 10, 3))
    fs.write(both, extent(10, 10, 3))
    blobs = [blob(1), blob(2)]
    assert inodes_naming(fs.connection, blobs, 10) == [now, both]
    assert inodes_naming(fs.connection, blobs, 1) == [now]
    assert inodes_that_named(fs.connection, blobs, 10) == [(past, last), (both, last + 1)]
    assert inodes_that_named(fs.connection, [blob(3)], 10) == []


def test_what_a_client_says_of_sizes_never_passes_the_counters(fs: Driver, file: Ino) -> None:
    """Blobs and files as large as a client cares to call them, in commits, new files and clones:
    ENOSPC instead of an entry of the log that no node could apply. What leaves makes room again."""
    other = fs.create(b"g")
    huge = Extent(0, INT64_MAX, blob(1), 0)
    fs.ok(commit(file, huge, blobs=(blob_info(1, INT64_MAX),)))
    second = extent(0, 1, 2)
    assert fs.errno(commit(other, second, blobs=(blob_info(2, 1),))) == errno.ENOSPC
    assert fs.errno(commit(other, extent(0, 1, 1), blobs=())) == errno.ENOSPC
    assert fs.errno(c.CloneRange(ROOT, file, 0, other, 0, 10)) == errno.ENOSPC
    new = c.PutFile(ROOT, ROOT_INO, b"h", 0o644, 1, (second,), (blob_info(2, 1),))
    assert fs.errno(new) == errno.ENOSPC

    fs.ok(commit(file, size=0, cut=0))
    assert fs.errno(commit(other, second, blobs=(blob_info(2, 1),))) == errno.ENOSPC  # history
    fs.ok(c.TrimHistory(fs.index, 100))
    fs.ok(commit(other, second, blobs=(blob_info(2, 1),)))
    assert (
        fs.errno(commit(other, huge, blobs=())) == errno.ENOSPC
    )  # garbage that would be named again


def test_the_bytes_of_blobs_are_counted_across_a_restart(fs: Driver, file: Ino) -> None:
    """A tree that is opened anew refuses and takes what one that went on does: all nodes agree."""
    fs.ok(commit(file, extent(0, 1, 1), blobs=(blob_info(1, INT64_MAX - 5),)))
    again = Tree(fs.connection)
    for counter, size, number in ((2, 6, errno.ENOSPC), (3, 5, 0)):
        command = commit(file, extent(1, 1, counter), blobs=(blob_info(counter, size),))
        assert again.apply_batch([entry(again.applied_index + 1, command)])[0].errno == number
