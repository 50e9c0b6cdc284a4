"""What a Vfs does that no operation waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from pydi_node.errors import PydiError

log = logging.getLogger("pydi.vfs")


class Background:
    """Tasks that run to their end by themselves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside; requests leave in the order in which they were started."""
        task = asyncio.get_running_loop().create_task(_run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Nothing runs any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)


async def when_all(futures: Iterable[asyncio.Future[Any]]) -> None:
    """All of these are done, however they ended."""
    await asyncio.wait(futures)


async def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except PydiError as exc:
        # The node forgets all opens of a session that ends, and a reset of the Vfs tells it anew.
        log.debug("not told: %s", exc)
