"""How many copies content should have: asked by directories, inherited, brought to the blobs."""

from __future__ import annotations

import errno
import random

import pytest

from pydi_node import commands as c
from pydi_node.ids import ROOT_INO, Ino, LogIndex
from pydi_node.records import FACTOR_XATTR, BlobTotal
from tests.unit.tree.driver import ROOT, Driver, blob, blob_info, extent

DEFAULT = 2


def ask(fs: Driver, directory: int, factor: int | None) -> None:
    if factor is None:
        fs.ok(c.RemoveXattr(ROOT, Ino(directory), FACTOR_XATTR))
    else:
        fs.ok(c.SetXattr(ROOT, Ino(directory), FACTOR_XATTR, b"%d" % factor, 0))


def spread(fs: Driver, limit: int = 1000) -> int:
    """Until nothing is left to be looked at; the number of commands."""
    count = 1
    while fs.ok(c.SpreadFactors(limit))[1]:
        count += 1
        assert count < 10_000
    assert not fs.tree.has_refactor()
    return count


def factor(fs: Driver, counter: int) -> int:
    row = fs.connection.execute("SELECT factor FROM blob WHERE blob = ?", (blob(counter),))
    return int(row.fetchone()[0])


def test_new_content_gets_what_the_nearest_directory_asks(fs: Driver) -> None:
    """At its commit, counted apart from the rest; where none asks, the cluster's number."""
    outer = fs.mkdir(b"outer")
    inner = fs.mkdir(b"inner", outer)
    ask(fs, outer, 3)
    ask(fs, inner, 1)
    for counter, parent in ((1, outer), (2, inner), (3, ROOT_INO)):
        ino = fs.create(b"f", parent)
        assert fs.tree.copies_of(ino) == {1: 3, 2: 1, 3: DEFAULT}[counter]
        fs.write(ino, extent(0, 10, counter))
        assert fs.tree.copies_of_blob(blob(counter)) == {1: 3, 2: 1, 3: DEFAULT}[counter]
    assert [factor(fs, counter) for counter in (1, 2, 3)] == [3, 1, 0]
    holders = blob_info(1).holders
    assert fs.tree.blob_totals() == [BlobTotal(holders, 1, 100, f) for f in (0, 1, 3)]
    fs.ok(c.SetSetting("replicas", "5"))
    assert [fs.tree.copies_of_blob(blob(counter)) for counter in (1, 2, 3)] == [3, 1, 5]


def test_what_is_there_follows(fs: Driver) -> None:
    """Set, changed and removed on a directory, and a move: all below follows, a few entries with
    each command; a directory below that asks for itself keeps its own."""
    top, own = fs.mkdir(b"top"), fs.mkdir(b"own")
    deep = fs.mkdir(b"deep", fs.mkdir(b"mid", top))
    fs.ok(c.Rename(ROOT, ROOT_INO, b"own", Ino(deep), b"own", 0))
    ask(fs, own, 4)
    for counter in range(1, 8):
        fs.write(fs.create(b"%d" % counter, deep if counter < 7 else own), extent(0, 9, counter))
    spread(fs)
    ask(fs, top, 3)
    assert factor(fs, 1) == 0
    assert spread(fs, limit=3) > 3
    assert [factor(fs, counter) for counter in range(1, 8)] == [3] * 6 + [4]
    fs.ok(c.Rename(ROOT, Ino(deep), b"1", ROOT_INO, b"1", 0))
    fs.ok(c.Rename(ROOT, Ino(top), b"mid", ROOT_INO, b"mid", 0))
    spread(fs)
    assert [factor(fs, counter) for counter in range(1, 8)] == [0] * 6 + [4]
    ask(fs, own, None)
    spread(fs)
    assert factor(fs, 7) == 0


def test_what_is_removed_keeps_its_number(fs: Driver) -> None:
    """Whatever the cluster's is: history comes back as safe as it was. A name less is no removal:
    then the oldest of those that are left decides."""
    rich, poor = fs.mkdir(b"rich"), fs.mkdir(b"poor")
    ask(fs, rich, 3)
    ask(fs, poor, 1)
    ino, linked = fs.create(b"f", rich), fs.create(b"g", rich)
    fs.write(ino, extent(0, 10, 1))
    fs.write(linked, extent(0, 10, 2))
    fs.ok(c.Link(ROOT, linked, Ino(poor), b"g"))
    for name in (b"f", b"g"):
        fs.ok(c.Unlink(ROOT, Ino(rich), name))
    ask(fs, rich, 4)
    spread(fs)
    assert (factor(fs, 1), factor(fs, 2)) == (3, 1)


def test_shared_content_gets_the_largest_number(fs: Driver) -> None:
    """A clone in a directory that asks for less takes no copy away; one that asks for more adds."""
    low, high = fs.mkdir(b"low"), fs.mkdir(b"high")
    ask(fs, low, 1)
    ask(fs, high, 3)
    spread(fs)
    plain, poor, rich = fs.create(b"f"), fs.create(b"f", low), fs.create(b"f", high)
    fs.write(plain, extent(0, 10, 1))
    fs.ok(c.CloneRange(ROOT, Ino(plain), 0, Ino(poor), 0, 10))
    assert factor(fs, 1) == 0
    fs.ok(c.CloneRange(ROOT, Ino(plain), 0, Ino(rich), 0, 10))
    assert factor(fs, 1) == 3
    ask(fs, high, 1)
    spread(fs)
    assert factor(fs, 1) == 3  # nobody knows what the others ask
    fs.ok(c.Unlink(ROOT, Ino(low), b"f"))
    fs.ok(c.Unlink(ROOT, ROOT_INO, b"f"))
    fs.ok(c.PurgeOrphans((Ino(poor), Ino(plain))))
    fs.ok(c.TrimHistory(LogIndex(fs.index), 1000))
    ask(fs, high, 2)
    spread(fs)
    assert factor(fs, 1) == 2


@pytest.mark.parametrize("value", [b"", b"0", b"9", b"10", b" 2", b"-1", b"two", b"2\n"])
def test_only_a_number_of_copies_is_taken(fs: Driver, value: bytes) -> None:
    """Anything else would be obeyed by nobody."""
    assert fs.errno(c.SetXattr(ROOT, ROOT_INO, FACTOR_XATTR, value, 0)) == errno.EINVAL


def test_only_a_directory_asks(fs: Driver) -> None:
    ino = fs.create(b"f")
    assert fs.errno(c.SetXattr(ROOT, ino, FACTOR_XATTR, b"3", 0)) == errno.EINVAL


def test_any_history_ends_where_a_walk_from_each_file_does(fs: Driver, seed: int) -> None:
    """Random names, attributes, moves and commits, with small steps between them: in the end
    every blob of one file has what the nearest directory above its oldest name asks for."""
    dice = random.Random(seed)
    directories, files = [int(ROOT_INO)], []
    for step in range(1, 250):
        where = dice.choice(directories)
        match dice.randrange(8):
            case 0:
                directories.append(int(fs.mkdir(b"%d" % step, where)))
            case 1 | 2:
                ino = fs.create(b"%d" % step, where)
                fs.write(ino, extent(0, 10, step))
                files.append((int(ino), step))
            case 3 if fs.tree.listxattr(Ino(where)):
                ask(fs, where, None)
            case 3 | 4:
                ask(fs, where, dice.randrange(1, 5))
            case 5 | 6 if files or len(directories) > 1:
                ino = dice.choice([i for i, _ in files] + directories[1:])
                ((parent, name),) = fs.tree.names_of(Ino(ino))[:1]
                fs.run(c.Rename(ROOT, parent, name, Ino(where), b"r%d" % step, 0))
            case _:
                fs.ok(c.SpreadFactors(dice.randrange(1, 6)))
    spread(fs, limit=dice.randrange(1, 50))
    assert len(files) > 20
    for ino, counter in files:
        asked = 0
        above = fs.tree.names_of(Ino(ino))[0][0]
        while not asked:
            if FACTOR_XATTR in fs.tree.listxattr(above):
                asked = int(fs.tree.getxattr(above, FACTOR_XATTR))
            elif above == ROOT_INO:
                break
            else:
                above = fs.tree.names_of(above)[0][0]
        assert factor(fs, counter) == asked
        assert fs.tree.copies_of(Ino(ino)) == (asked or DEFAULT)
