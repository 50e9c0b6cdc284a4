"""A tree commits when enough has come together, or nothing more does, and tries again when full."""

from __future__ import annotations

from pydi_node.commands import TIME_NOW, Create, SetAttr
from pydi_node.ids import ROOT_INO
from pydi_node.tree.committer import CommitConfig, Committer
from tests.unit.tree.driver import ROOT, Driver, entry

CONFIG = CommitConfig(entries_max=5, bytes_max=1000, idle_s=0.2, full_retry_s=0.5)


def advance(fs: Driver, count: int) -> None:
    first = fs.index + 1
    fs.tree.advance(
        [
            entry(i, Create(ROOT, ROOT_INO, b"%d" % i, 0o644, True))
            for i in range(first, first + count)
        ]
    )


def test_enough_entries_or_bytes_are_due(fs: Driver) -> None:
    """Either limit alone; both count from the last commit."""
    committer = Committer(fs.tree, CONFIG, 10.0)
    advance(fs, 4)
    assert not committer.is_due(400)
    advance(fs, 1)
    assert committer.is_due(100)
    assert committer.commit(10.0)
    assert fs.tree.uncommitted == 0
    advance(fs, 1)
    assert not committer.is_due(999)
    assert committer.is_due(1)
    assert committer.commit(10.0)
    assert not committer.is_due(999)


def test_a_few_entries_wait_for_more_only_so_long(fs: Driver) -> None:
    """Counted from the last look that found nothing, or from the last commit."""
    committer = Committer(fs.tree, CONFIG, 10.0)
    assert not committer.is_time(20.0, full=False)
    advance(fs, 1)
    assert not committer.is_time(20.1, full=False)
    assert committer.is_time(20.25, full=False)
    assert committer.commit(20.25)
    assert not committer.is_time(30.0, full=False)


def test_a_full_disk_is_tried_again_after_a_while(fs: Driver) -> None:
    """What found no room stays applied; with room it is committed."""
    committer = Committer(fs.tree, CONFIG, 10.0)
    (pages,) = fs.connection.execute("PRAGMA page_count").fetchone()
    fs.connection.execute(f"PRAGMA max_page_count = {pages}")
    # The results of so many clients fill new pages, and are written by the commit.
    touch = SetAttr(ROOT, ROOT_INO, atime_ns=TIME_NOW)
    fs.tree.advance([entry(i, touch, client=i, serial=1) for i in range(1, 201)])
    assert not committer.commit(30.0)
    assert (fs.tree.applied_index, fs.tree.uncommitted) == (200, 200)
    assert not committer.is_time(30.4, full=True)
    assert committer.is_time(30.6, full=True)
    fs.connection.execute("PRAGMA max_page_count = 100000")
    assert committer.commit(30.6)
    assert fs.tree.uncommitted == 0
    assert not committer.is_time(99.0, full=False)
