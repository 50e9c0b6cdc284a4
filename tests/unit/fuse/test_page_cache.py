"""Which version the kernel's pages show: kept only if no reader can see another version."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pydi_fs.fuse.page_cache import PageCache
from pydi_node.ids import Ino, LogIndex

INO = Ino(5)
V1, V2, V3 = LogIndex(1), LogIndex(2), LogIndex(3)


def test_same_version_keeps_and_another_drops() -> None:
    """The first open knows nothing of the pages and drops them."""
    cache = PageCache()
    assert not cache.opened(INO, 1, V1)
    cache.closed(INO, 1)
    assert cache.opened(INO, 2, V1)
    cache.closed(INO, 2)
    assert not cache.opened(INO, 3, V2)


def test_an_unknown_version_never_keeps() -> None:
    """Not knowing is not equality."""
    cache = PageCache()
    assert not cache.opened(INO, 1, None)
    assert not cache.opened(INO, 2, None)


def test_pages_that_two_versions_fill_are_dropped_by_every_open() -> None:
    """While a handle of the old version is open, its reads mix old pages in."""
    cache = PageCache()
    cache.opened(INO, 1, V1)
    assert not cache.opened(INO, 2, V2)
    assert not cache.opened(INO, 3, V2)
    cache.closed(INO, 1)
    assert not cache.opened(INO, 4, V2)  # this open drops what was mixed
    assert cache.opened(INO, 5, V2)


def test_publishing_carries_pages_along() -> None:
    """What was written went through the pages; after a change elsewhere that is not sure."""
    cache = PageCache()
    cache.opened(INO, 1, V1)
    cache.published(INO, 1, V2)
    assert cache.opened(INO, 2, V2)
    cache.closed(INO, 2)
    cache.changed(INO)
    cache.published(INO, 1, V3)
    assert not cache.opened(INO, 2, V3)


def test_everything_changed_names_all_files() -> None:
    """A lost stream of pushes makes every page doubtful."""
    cache = PageCache()
    cache.opened(INO, 1, V1)
    cache.opened(Ino(6), 2, V1)
    assert sorted(cache.changed_all()) == [5, 6]
    assert not cache.opened(INO, 3, V1)


def test_memory_is_bounded_and_open_files_stay() -> None:
    """The oldest closed file is forgotten first."""
    cache = PageCache(files_max=3)
    cache.opened(INO, 1, V1)
    for number in range(100, 120):
        cache.opened(Ino(number), number, V1)
        cache.closed(Ino(number), number)
    assert len(cache._files) == 3
    assert cache.opened(INO, 2, V1)
    assert not cache.opened(Ino(100), 3, V1)


class _KernelPages(RuleBasedStateMachine):
    """One file of three pages in a model kernel: each page shows a version, handles fill them.

    Whenever an open keeps the pages, each of them must show the opened version.
    """

    @initialize()
    def begin(self) -> None:
        self.cache = PageCache()
        self.version = V1
        self.pages: dict[int, LogIndex] = {}
        self.handles: dict[int, LogIndex] = {}
        self.fh = 0

    @rule()
    def open_file(self) -> None:
        self.fh += 1
        keep = self.cache.opened(INO, self.fh, self.version)
        if not keep:
            self.pages.clear()
        self.handles[self.fh] = self.version
        assert set(self.pages.values()) <= {self.version}

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), page=st.integers(0, 2))
    def read(self, data: st.DataObject, page: int) -> None:
        fh = data.draw(st.sampled_from(sorted(self.handles)))
        self.pages.setdefault(page, self.handles[fh])

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        fh = data.draw(st.sampled_from(sorted(self.handles)))
        del self.handles[fh]
        self.cache.closed(INO, fh)

    @rule(pushed=st.booleans())
    def change_elsewhere(self, pushed: bool) -> None:
        self.version = LogIndex(self.version + 1)
        if pushed:
            self.cache.changed(INO)


TestKernelPages = _KernelPages.TestCase
TestKernelPages.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)


@pytest.mark.parametrize("operation", ["published", "closed", "changed"])
def test_files_that_are_not_known_are_ignored(operation: str) -> None:
    """An inode that fell out of the table, or was never opened, is no error."""
    cache = PageCache()
    arguments = {"published": (INO, 1, V1), "closed": (INO, 1), "changed": (INO,)}[operation]
    getattr(cache, operation)(*arguments)
    assert cache.changed_all() == []
