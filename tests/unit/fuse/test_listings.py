"""Which listings the kernel may hold, and when it is told to drop them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pydi_fs.fuse import listings
from pydi_fs.fuse.listings import Listings
from pydi_fs.vfs.journalling import Journal
from pydi_node.ids import Ino, LogIndex

A, B = Ino(5), Ino(6)
OLD, NEW = LogIndex(1), LogIndex(2)
LONG_S = 3600.0


class Watched(Listings):
    """Knows what was dropped; ``told`` is what a drop waits for."""

    def __init__(self) -> None:
        self.dropped: list[tuple[Ino, ...]] = []
        self.told: asyncio.Future[None] | None = None
        self.any_dropped = asyncio.Event()
        super().__init__(self._note, Journal())

    def _note(self, inos: tuple[Ino, ...]) -> asyncio.Future[None] | None:
        self.dropped.append(inos)
        self.any_dropped.set()
        return self.told


def run(test: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        watched = Watched()
        await test(watched)
        watched.stop()

    asyncio.run(main())


def test_readers_of_an_unchanged_directory_share_its_listing() -> None:
    async def test(table: Watched) -> None:
        for _ in range(2):
            await table.begin(A, OLD)
            table.answered(A, LONG_S)
        await table.begin(B, NEW)
        assert table.dropped == []
        assert set(table.all()) == {A, B}

    run(test)


def test_who_begins_after_a_change_finds_no_listing_from_before() -> None:
    """Not before it is gone, and also if it is not known whether there was a change."""

    async def test(table: Watched) -> None:
        await table.begin(A, OLD)
        table.answered(A, LONG_S)
        table.told = asyncio.get_running_loop().create_future()
        second = asyncio.create_task(table.begin(A, NEW))
        await asyncio.sleep(0)
        assert table.dropped == [(A,)]
        assert not second.done()
        table.told.set_result(None)
        await second
        await table.begin(A, NEW)
        assert table.dropped == [(A,)]
        await table.begin(A, None)
        assert table.dropped == [(A,), (A,)]

    run(test)


def test_a_listing_goes_with_the_time_outs_of_its_entries() -> None:
    """But not while it is still being answered."""

    async def test(table: Watched) -> None:
        await table.begin(A, OLD)
        table.answered(A, 0.0)
        await table.begin(B, OLD)
        async with asyncio.timeout(60):
            await table.any_dropped.wait()
        assert table.dropped == [(A,)]
        assert table.all() == (B,)
        table.any_dropped.clear()
        table.answered(B, listings.SWEEP_MIN_S)
        async with asyncio.timeout(60):
            await table.any_dropped.wait()
        assert table.dropped == [(A,), (B,)]
        assert table.all() == ()

    run(test)


def test_a_listing_is_believed_as_long_as_its_shortest_part() -> None:
    """Also if a sweep was planned for much later."""

    async def test(table: Watched) -> None:
        await table.begin(A, OLD)
        table.answered(A, LONG_S)
        await table.begin(B, OLD)
        table.answered(B, LONG_S)
        table.answered(B, 0.0)
        table.answered(B, LONG_S)
        async with asyncio.timeout(60):
            await table.any_dropped.wait()
        assert table.dropped == [(B,)]
        assert table.all() == (A,)

    run(test)


def test_listings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "LISTED_MAX", 2)

    async def test(table: Watched) -> None:
        for number in range(1, 6):
            await table.begin(Ino(number), OLD)
            table.answered(Ino(number), LONG_S)
        assert table.all() == (4, 5)
        assert table.dropped == [(1,), (2,), (3,)]

    run(test)
