"""The scrub's task on one node: when it begins, and that a slow pass can be hurried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.blobs.scrub import NOTHING, load
from pydi_node.runtime import scrubbing
from pydi_node.runtime.scrubbing import Scrubbing
from pydi_node.wire.messages import Role
from tests.unit.runtime.inner import Inner


async def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it but the state itself
        await asyncio.sleep(0.01)


def test_a_pass_begins_with_the_first_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, or the first real one would be a period away. It is slow, as fits the period;
    asked for, it is done at once; and a new object on the same file knows."""
    monkeypatch.setattr(scrubbing, "LOOK_PERIOD_S", 0.01)

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            path = tmp_path / "scrub.json"
            scrub = Scrubbing(inner.service, inner.peers, path)
            task = asyncio.create_task(scrub.run())
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert scrub._progress == NOTHING
            for number in range(3):
                await inner.file(b"f%d" % number, b"content %d" % number)
            await wait_for(lambda: scrub._progress.current is not None)
            assert scrub._progress.last is None
            inner.session.role = Role.CLIENT
            first = scrub._progress.current
            assert first is not None
            request = type("R", (), {"session": inner.session})
            scrub._own_part(request, {"now": True})  # type: ignore[arg-type]  # all it looks at
            await wait_for(lambda: scrub._progress.last is not None)
            last = scrub._progress.last
            assert last is not None
            assert last.started_ns > first.started_ns
            assert (last.done.blobs, last.found) == (3, 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert load(path.read_bytes()) == scrub._progress
            assert Scrubbing(inner.service, inner.peers, path)._progress == scrub._progress

    asyncio.run(asyncio.wait_for(main(), 60))
