"""Standard input, read while the connection to the cluster is served.

Called by the commands that read it. It may let a person wait as long as they like: the loop goes
on, and Ctrl-C ends the process at once.
"""

from __future__ import annotations

import asyncio
import os
import threading

from pydi_node import portable

STDIN_FD = 0
CHUNK_BYTES = 1 << 20


async def read(limit: int = CHUNK_BYTES) -> bytes:
    """The next bytes, at most ``limit``; none at the end. OSError.

    In a daemon thread and past Python's buffer: at Ctrl-C neither the loop's executor nor the
    buffer's lock would let the process end before the next key.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(data)
        else:
            done.set_exception(error)

    def work() -> None:
        try:
            data, error = os.read(STDIN_FD, limit), None
        except OSError as exc:
            data, error = b"", exc
        loop.call_soon_threadsafe(settle, data, error)

    threading.Thread(target=work, daemon=True).start()
    return await done


class Lines:
    """Standard input line by line."""

    def __init__(self) -> None:
        self._buffer = b""
        self._ended = False

    async def next(self) -> str | None:
        """The next line without its end; None when there is none."""
        while b"\n" not in self._buffer and not self._ended:
            data = await read()
            self._buffer += data
            self._ended = not data
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return portable.text_of(line)
