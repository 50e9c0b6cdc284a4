"""The log's thread: order, errors, its end."""

from __future__ import annotations

import asyncio
import threading

from pydi_node.runtime.logthread import LogThread


def test_work_is_done_in_order_and_told_in_the_loop() -> None:
    """Also what fails, with its error; the thread goes on, and ends when it is told to."""

    async def run() -> None:
        thread = LogThread()
        seen: list[object] = []
        everything = asyncio.Event()
        trouble = OSError("the disk is gone")

        def fail() -> None:
            seen.append(threading.current_thread().name)
            raise trouble

        def done(error: BaseException | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            seen.append(error)
            if len(seen) == 4:
                everything.set()

        thread.run(fail, done)
        thread.run(lambda: seen.append("second"), done)
        await everything.wait()
        # The second may be at work before the loop hears of the first.
        assert sorted(map(repr, seen)) == sorted(map(repr, ["log", trouble, "second", None]))
        assert seen.index("log") < seen.index("second") < len(seen) - 1
        assert seen.index(trouble) < seen.index(None)
        thread.stop()
        assert all(t.name != "log" for t in threading.enumerate())

    asyncio.run(run())
