"""The kernel binding on a `MemoryVfs`, as a process of its own: what mount tests talk to.

    python -m tests.harness.memory_daemon MOUNTPOINT [FLAG]...

It prints "mounted" or "error: sentence", then reads commands from standard input, a JSON array a
line, and answers each with a line: the name of a method of Daemon, then its arguments. It ends
when standard input does or when the mount has gone.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import logging
import sys
import threading
from typing import Any

from pydi_fs.fuse import KernelBinding
from pydi_fs.mount_options import MountOptions
from pydi_node.errors import UserError
from tests.harness.memory_vfs import MemoryVfs, Told

FLAGS = ("allow_other", "read_only", "debug", "nodefault_permissions")


class CountingVfs(MemoryVfs):
    """Counts the calls of each operation: most tests of caching are about calls that are missing.

    It does so by name at the moment of the call, because the binding holds no method.
    """

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            object.__getattribute__(self, "calls")[name] += 1
        return super().__getattribute__(name)


class Daemon:
    """The commands."""

    def __init__(self, vfs: CountingVfs, binding: KernelBinding) -> None:
        self._vfs = vfs
        self._binding = binding

    async def change(self, path: str, content: str) -> None:
        """As if another machine had written the file; it waits until the kernel knows."""
        await _told(self._vfs.change_elsewhere(path.encode(), content.encode()))

    async def replace(self, path: str, content: str) -> None:
        """As if another machine had put a new file there; likewise."""
        await _told(self._vfs.replace_elsewhere(path.encode(), content.encode()))

    async def remove(self, path: str) -> None:
        """As if another machine had unlinked it; likewise."""
        await _told(self._vfs.remove_elsewhere(path.encode()))

    def block_reads(self) -> None:
        """Reads wait until `release_reads`."""
        self._vfs.block_reads = asyncio.Event()

    def release_reads(self) -> None:
        assert self._vfs.block_reads is not None
        self._vfs.block_reads.set()
        self._vfs.block_reads = None

    def calls(self) -> dict[str, int]:
        """How often each operation was called since the last time."""
        calls = dict(self._vfs.calls)
        self._vfs.calls.clear()
        return calls

    async def unmount(self) -> int:
        """The last command: how many handles are still open after it."""
        await self._binding.unmount()
        return self._vfs.open_handles


async def _told(told: Told) -> None:
    if told is not None:
        await told


def _commands(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[str]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(queue.put_nowait, line)
    loop.call_soon_threadsafe(queue.put_nowait, "")


async def serve(mountpoint: str, flags: list[str]) -> int:
    vfs = CountingVfs()
    given = {flag.removeprefix("no"): not flag.startswith("no") for flag in flags}
    options = MountOptions(fsname="memory", **given)
    binding = KernelBinding(vfs, mountpoint, options)
    try:
        await binding.mount()
    except UserError as exc:
        print(f"error: {exc}", flush=True)
        return 1
    gc.freeze()
    print("mounted", flush=True)
    daemon = Daemon(vfs, binding)
    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_commands, args=(loop, queue), daemon=True).start()
    ended = asyncio.create_task(binding.wait_unmounted())
    while True:
        waiting = asyncio.create_task(queue.get())
        await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            break
        line = waiting.result()
        if not line:
            break
        name, *arguments = json.loads(line)
        answer = getattr(daemon, name)(*arguments)
        if asyncio.iscoroutine(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)
    await binding.unmount()
    return 0


def main() -> int:
    mountpoint, *flags = sys.argv[1:]
    assert set(flags) <= set(FLAGS), flags
    logging.basicConfig(level=logging.DEBUG if "debug" in flags else logging.INFO)
    return asyncio.run(serve(mountpoint, flags))


if __name__ == "__main__":
    sys.exit(main())
