"""The thread in which a node's log waits for its disk. Made and used by driver.py, in the loop.

Not an executor: with one client, half of what a sync costs the processor was the way to an
executor's thread and back (its queue, two futures and three turns of the loop).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], None]
Done = Callable[[BaseException | None], None]


class LogThread:
    """Does one piece of work after the other; started when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        # A daemon: a node that fails at its start ends, whatever the thread waits for.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def run(self, work: Work, done: Done) -> None:
        """``work`` runs in the thread after all that came before it; then ``done`` in the loop,
        with what ``work`` raised."""
        self._queue.put((work, done))

    def stop(self) -> None:
        """The thread ends with the work it was given. Blocks until then."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            error: BaseException | None = None
            try:
                work()
            except BaseException as exc:
                error = exc
            try:
                self._loop.call_soon_threadsafe(done, error)
            except RuntimeError:
                return  # the loop is closed: nobody is there to be told
            # Not kept while the next one is waited for: it may hold much.
            del item, work, done, error
