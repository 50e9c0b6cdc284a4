"""``scripts/bench --repair``: how fast content moves between nodes, and is made whole again.

Three real nodes on this machine. Transfer: large files with one copy are asked to have two, and the
same bytes are copied with ``cp`` on the same disk. Repair: files with two copies, then one node is
killed; how long until every blob has two again, counted from when the node counts as lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from pydi_fs.client import Client, node_on_this_machine
from pydi_node.commands import Caller, Commit, Create
from pydi_node.errors import PydiError
from pydi_node.ids import ROOT_INO
from pydi_node.records import BlobInfo, Extent
from pydi_node.wire.messages import Admin, BlobCreate, BlobPut, BlobSeal, BlobWrite

CALLER = Caller(os.geteuid(), os.getegid())
CHUNK_BYTES = 1 << 20
SMALL_BYTES = 16 << 10
AT_ONCE = 16
GRACE_S = 10  # the least that the setting takes
TIMEOUT_S = 600.0
POLL_S = 0.05


async def transfer(directories: list[Path], files: int, bytes_each: int) -> float:
    """Seconds until large files with one copy have two, verified and durable."""
    client = await _connected(directories[0])
    await _wait(client, lambda state: len(state["nodes"]) == len(directories), "all are there")
    await _set(client, repair_bytes_per_s=1 << 40, replicas=1)
    content = os.urandom(bytes_each)
    for number in range(files):
        blob = await client.call(BlobCreate())
        for at in range(0, bytes_each, CHUNK_BYTES):
            await client.call(BlobWrite(blob, at), content[at : at + CHUNK_BYTES])
        seal = BlobSeal(blob, bytes_each, blake3(content).digest())
        await _commit(client, b"large%d" % number, await client.call(seal))
    await _wait(client, lambda state: state["blobs"]["total"] >= files, "all are written")
    start = time.perf_counter()
    await _set(client, replicas=2)
    await _wait(client, is_whole, "each has two copies")
    seconds = time.perf_counter() - start
    await client.close()
    return seconds


async def repair(directories: list[Path], files: int) -> tuple[float, int]:
    """Seconds from a node's loss, without the grace time, until every blob has its copies again;
    and how many blobs the node held."""
    client = await _connected(directories[0])
    await _set(client, repair_bytes_per_s=1 << 40, replicas=2, grace_s=GRACE_S)
    content = os.urandom(SMALL_BYTES)

    async def write(first: int) -> None:
        for number in range(first, files, AT_ONCE):
            await _commit(client, b"small%d" % number, await client.call(BlobPut(), content))

    await asyncio.gather(*(write(first) for first in range(AT_ONCE)))
    await _wait(client, is_whole, "each has two copies")
    run = json.loads((directories[-1] / "run.json").read_text())
    state = await client.call(Admin("status"))
    held = next(node["held"] for node in state["nodes"] if node["number"] == run["number"])
    os.kill(run["pid"], signal.SIGKILL)
    start = time.perf_counter()
    await _wait(client, lambda state: state["blobs"]["under_replicated"], "the loss is noticed")
    await _wait(client, is_whole, "each has two copies again")
    seconds = time.perf_counter() - start - GRACE_S
    await client.close()
    return seconds, held


def copied(work: Path, files: int, bytes_each: int) -> float:
    """Seconds that cp takes for as many bytes, until they are on the disk."""
    source, target = work / "cp-source", work / "cp-target"
    source.mkdir()
    for number in range(files):
        (source / str(number)).write_bytes(os.urandom(bytes_each))
    subprocess.run(["sync", "-f", str(source)], check=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    names = [str(target / str(number)) for number in range(files)]
    subprocess.run(["sync", "-d", *names], check=True)
    return time.perf_counter() - start


def is_whole(state: dict[str, Any]) -> bool:
    return not state["blobs"]["under_replicated"] and not state["blobs"]["missing"]


async def _connected(directory: Path) -> Client:
    client = Client([node_on_this_machine(directory)])
    await client.connect()
    return client


async def _set(client: Client, **settings: int) -> None:
    for name, value in settings.items():
        await client.call(Admin("set", {"name": name, "value": value}))


async def _commit(client: Client, name: bytes, info: BlobInfo) -> None:
    attr, _ = await client.execute(Create(CALLER, ROOT_INO, name, 0o644, True))
    extents = (Extent(0, info.size, info.blob, 0),)
    await client.execute(Commit(CALLER, attr.ino, None, None, info.size, False, extents, (info,)))


async def _wait(client: Client, condition: Callable[[dict[str, Any]], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition(await client.call(Admin("status"))):
                return
        except PydiError:
            pass  # it changes its leader
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {TIMEOUT_S:.0f} s: {what}")
        await asyncio.sleep(POLL_S)
