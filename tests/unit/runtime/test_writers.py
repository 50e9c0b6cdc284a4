"""Blobs that are about to be written: whoever fails to begin leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from pydi_node.blobs.store import Writer
from pydi_node.errors import FileError
from pydi_node.runtime import service
from pydi_node.wire.messages import BlobAdopt
from tests.unit.runtime.inner import Inner


def test_a_file_that_is_not_adopted_stays_with_its_borrower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session writes as many blobs as it may: the loan is not taken, so it still ends with the
    borrower's connection."""
    monkeypatch.setattr(service, "WRITERS_PER_SESSION_MAX", 0)

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            taken: list[bytes] = []
            inner.service.lent = lambda ticket: taken.append(ticket)  # type: ignore[assignment, func-returns-value]
            with pytest.raises(FileError) as refused:
                await inner.handle(BlobAdopt(None, bytes(16)))
            assert refused.value.errno == errno.ENFILE
            assert taken == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_writer_for_which_nobody_waits_any_more_is_aborted(tmp_path: Path) -> None:
    """The request is cancelled while its file is being made: file and descriptor go."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            begun, may_end = threading.Event(), threading.Event()
            made: list[Writer] = []

            def make() -> Writer:
                begun.set()
                may_end.wait(60)
                made.append(inner.store.create())
                return made[0]

            task = asyncio.create_task(inner.service.new_writer(make))
            await asyncio.to_thread(begun.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            may_end.set()
            while not made or made[0].is_open:  # noqa: ASYNC110 - a thread does it
                await asyncio.sleep(0.001)
            assert list((tmp_path / "blobs" / "tmp").iterdir()) == []

    asyncio.run(asyncio.wait_for(main(), 60))
