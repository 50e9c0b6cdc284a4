"""Other programs on this terminal, and Ctrl-C while a command runs.

Called by `console` and `edit`. While a program has the terminal Ctrl-C is for it alone; it must
never end the shell.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


async def run(command: Sequence[str]) -> int:
    """The exit code of a program that gets the terminal until it ends; one that a signal ended has
    128 and its number, as in a shell. OSError: it can't start."""
    with on_interrupt(lambda: None):
        process = await asyncio.create_subprocess_exec(*command)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
    if code == -signal.SIGINT:
        print(file=sys.stderr)  # behind the terminal's ^C
    return code if code >= 0 else 128 - code


@contextmanager
def on_interrupt(handler: Callable[[], object]) -> Iterator[None]:
    """While this is open Ctrl-C calls ``handler`` in the loop, and nothing else."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(handler))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
