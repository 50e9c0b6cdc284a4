"""A listing ends, shows what was there all the time once, and asks for little."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

import pytest

from pydi_fs.vfs.listing import Listing
from pydi_node.errors import FileError
from pydi_node.ids import Ino, LogIndex
from pydi_node.records import Attr, DirEntry

PAGE = 3


class Directory:
    """A directory with its past: what `Listing` asks a node for."""

    def __init__(self, count: int) -> None:
        self.index = 0
        self.floor = 0  # older moments are not kept
        self.entries: dict[int, DirEntry] = {}
        self.past: dict[int, dict[int, DirEntry]] = {}
        self.questions: list[str] = []
        self.next_cookie = 1
        for number in range(count):
            self.add(b"%d" % number)

    def add(self, name: bytes) -> None:
        self.change()
        self.entries[self.next_cookie] = DirEntry(self.next_cookie, name, self.attr())
        self.next_cookie += 1

    def rename(self, entry: DirEntry) -> None:
        """There and back: the same name behind all others."""
        del self.entries[entry.cookie]
        self.add(entry.name)

    def touch(self, cookie: int) -> None:
        """The file changes, the entry does not."""
        self.change()
        self.entries[cookie] = self.entries[cookie]._replace(attr=self.attr())

    def change(self) -> None:
        self.past[self.index] = dict(self.entries)
        self.index += 1

    def attr(self) -> Attr:
        return Attr(*(0,) * len(Attr._fields))._replace(changed=LogIndex(self.index))

    async def fetch(self, after: int, limit: int, at: LogIndex | None) -> Sequence[DirEntry]:
        self.questions.append("page" if at is None else "past page")
        if at is not None and at < self.floor:
            raise FileError(errno.ESTALE)
        entries = self.entries if at is None or at == self.index else self.past[at]
        return [entries[cookie] for cookie in sorted(entries) if cookie > after][:limit]

    async def newest_index(self) -> LogIndex:
        self.questions.append("index")
        return LogIndex(self.index)

    def listing(self) -> Listing:
        return Listing(Ino(1), self.fetch, self.newest_index)


def names(page: Sequence[DirEntry]) -> list[int]:
    return [int(entry.name) for entry in page]


def test_quiet_directories_cost_one_question_more_at_most() -> None:
    """None for a single page; the index, once, for more."""
    small, large = Directory(2), Directory(8)

    async def run(directory: Directory) -> list[int]:
        listing, found, cookie = directory.listing(), [], 0
        while page := await listing.page(cookie, PAGE):
            found += names(page)
            cookie = page[-1].cookie
        return found

    assert asyncio.run(run(small)) == [0, 1]
    assert small.questions == ["page"]
    assert asyncio.run(run(large)) == list(range(8))
    assert large.questions == ["page", "index", "page", "page", "page"]


def test_a_small_directory_is_shown_once_though_it_is_renamed() -> None:
    """What came in one page is all, also for seekdir(3) back into it."""
    directory = Directory(2)

    async def run() -> list[list[int]]:
        listing = directory.listing()
        first = await listing.page(0, PAGE)
        directory.rename(first[0])
        return [
            names(first),
            names(await listing.page(2, PAGE)),
            names(await listing.page(1, PAGE)),
        ]

    assert asyncio.run(run()) == [[0, 1], [], [1]]


@pytest.mark.parametrize("keeps_past", [True, False])
def test_renaming_while_reading_ends(keeps_past: bool) -> None:
    """Each entry goes behind all others as it is read, and what comes next is changed: all names
    once. Where the past is not kept a name may come twice, but the end comes."""
    directory = Directory(20)

    async def run() -> list[int]:
        listing, found, cookie = directory.listing(), [], 0
        while page := await listing.page(cookie, PAGE):
            found += names(page)
            assert len(found) <= 60
            cookie = page[-1].cookie
            for entry in page:
                directory.rename(entry)
            if cookie + 1 in directory.entries:
                directory.touch(cookie + 1)
            if not keeps_past and len(found) == 6:
                directory.floor = directory.index
        return found

    found = asyncio.run(run())
    assert set(found) == set(range(20))
    assert len(found) == 20 or not keeps_past


def test_what_goes_meanwhile_is_passed_over() -> None:
    """More than a page of what was there is gone, and others came: the rest is still shown."""
    directory = Directory(20)

    async def run() -> list[int]:
        listing = directory.listing()
        found = names(await listing.page(0, PAGE))
        for cookie in range(4, 18):
            del directory.entries[cookie]
        directory.touch(19)
        for number in range(100, 110):
            directory.add(b"%d" % number)
        cookie = 3
        while page := await listing.page(cookie, PAGE):
            found += names(page)
            cookie = page[-1].cookie
        return found

    assert asyncio.run(run()) == [0, 1, 2, 17, 18, 19]


def test_rewinding_shows_what_came() -> None:
    """rewinddir(3): from the start, with the names of now."""
    directory = Directory(5)

    async def run() -> list[int]:
        listing = directory.listing()
        await listing.page(0, PAGE)
        directory.add(b"7")
        assert names(await listing.page(3, PAGE)) == [3, 4]
        found = names(await listing.page(0, PAGE))
        return found + names(await listing.page(3, PAGE))

    assert asyncio.run(run()) == [0, 1, 2, 3, 4, 7]
