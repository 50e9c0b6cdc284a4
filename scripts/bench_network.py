"""``scripts/bench --network``: what TLS costs, and what strangers cost those who have a token.

One real node, and two clients of it that take turns: one over TLS with the node's token, one over
the unix socket. Strangers are processes of their own that open connections as fast as they can,
from one address. They need a processor, too: on a machine with few cores a part of what they cost
is their own work, so their connections a second stand beside the figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.commands_remote import remote_endpoint
from pydi_node.commands import Caller, Commit, Create
from pydi_node.ids import ROOT_INO
from pydi_node.records import BlobInfo, Extent
from pydi_node.wire.messages import BlobCreate, BlobRead, BlobSeal, BlobWrite, GetAttr

CALLER = Caller(os.geteuid(), os.getegid())
CHUNK_BYTES = 1 << 20
WINDOW = 4  # chunks on their way at once, as a mount has them
WAYS = ("TLS", "unix socket")
# What strangers do once they are connected: nothing, until they are hung up on; noise instead of a
# handshake; a whole handshake without a certificate.
KINDS = ("silent", "noise", "handshake")
STRANGERS = 16  # connections of one process at a time
NOISE = os.urandom(4096)
SETTLE_S = 0.2  # from a flood's start to its first measurement


class Throughput(NamedTuple):
    """Seconds for the same bytes on one way, one for each round."""

    way: str
    writes_s: list[float]
    reads_s: list[float]


class Latency(NamedTuple):
    """Seconds of single requests on one way, with strangers of one kind or none."""

    way: str
    kind: str | None
    query_s: list[float]
    create_s: list[float]
    strangers_per_s: float


@contextlib.asynccontextmanager
async def _clients(directory: Path) -> AsyncIterator[dict[str, Client]]:
    run = json.loads((directory / "run.json").read_text())
    host, _, port = run["address"].rpartition(":")
    token = (directory / "token").read_text()
    endpoints = (remote_endpoint(host, int(port), token), node_on_this_machine(directory))
    clients = {way: Client([at]) for way, at in zip(WAYS, endpoints, strict=True)}
    try:
        for client in clients.values():
            await client.connect()
        yield clients
    finally:
        for client in clients.values():
            await client.close()


async def throughput(directory: Path, rounds: int, size: int) -> list[Throughput]:
    """The same content written, durably, and read again, turn by turn."""
    content = os.urandom(CHUNK_BYTES)
    chunks = max(1, size // CHUNK_BYTES)
    found = [Throughput(way, [], []) for way in WAYS]
    async with _clients(directory) as clients:
        for number in range(rounds):
            for entry in found:
                client = clients[entry.way]
                start = time.perf_counter()
                info = await _write(client, content, chunks)
                entry.writes_s.append(time.perf_counter() - start)
                await _commit(client, f"{entry.way}{number}".encode(), info)
            for entry in found:
                start = time.perf_counter()
                await _read(clients[entry.way], info, chunks)
                entry.reads_s.append(time.perf_counter() - start)
    return found


async def latency(directory: Path, rounds: int, count: int) -> list[Latency]:
    """Single requests, one after the other: alone, and under each kind of flood, turn by turn."""
    run = json.loads((directory / "run.json").read_text())
    kinds = (None, *KINDS)
    found = {(way, kind): Latency(way, kind, [], [], 0.0) for kind in kinds for way in WAYS}
    async with _clients(directory) as clients:
        for number in range(rounds):
            for kind in kinds:
                with _flood(run["address"], kind) as counted:
                    await asyncio.sleep(SETTLE_S if kind else 0)
                    for way, client in clients.items():
                        mark = b"%s%s%d" % (way.encode(), (kind or "").encode(), number)
                        entry = found[way, kind]
                        entry.query_s.extend(await _queries(client, count))
                        entry.create_s.extend(await _creates(client, mark, count))
                for way in clients:
                    done = found[way, kind]
                    found[way, kind] = done._replace(
                        strangers_per_s=done.strangers_per_s + counted[0] / rounds
                    )
    return list(found.values())


def high(samples: list[float]) -> float:
    """What one in twenty exceeds."""
    return statistics.quantiles(samples, n=20)[-1]


async def _write(client: Client, content: bytes, chunks: int) -> BlobInfo:
    blob = await client.call(BlobCreate())
    hasher = blake3()
    for first in range(0, chunks, WINDOW):
        numbers = range(first, min(first + WINDOW, chunks))
        await asyncio.gather(
            *(client.call(BlobWrite(blob, n * CHUNK_BYTES), content) for n in numbers)
        )
        for _ in numbers:
            hasher.update(content)
    info: BlobInfo = await client.call(BlobSeal(blob, chunks * CHUNK_BYTES, hasher.digest()))
    return info


async def _read(client: Client, info: BlobInfo, chunks: int) -> None:
    for first in range(0, chunks, WINDOW):
        numbers = range(first, min(first + WINDOW, chunks))
        parts = await asyncio.gather(
            *(client.call(BlobRead(info.blob, n * CHUNK_BYTES, CHUNK_BYTES)) for n in numbers)
        )
        if any(len(part) != CHUNK_BYTES for part in parts):
            raise SystemExit("a chunk is not what was written")


async def _commit(client: Client, name: bytes, info: BlobInfo) -> None:
    attr, _ = await client.execute(Create(CALLER, ROOT_INO, name, 0o644, True))
    extents = (Extent(0, info.size, info.blob, 0),)
    await client.execute(Commit(CALLER, attr.ino, None, None, info.size, False, extents, (info,)))


async def _queries(client: Client, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        await client.call(GetAttr(ROOT_INO))
        taken.append(time.perf_counter() - start)
    return taken


async def _creates(client: Client, mark: bytes, count: int) -> list[float]:
    taken = []
    for number in range(count):
        start = time.perf_counter()
        await client.execute(Create(CALLER, ROOT_INO, b"%s-%d" % (mark, number), 0o644, True))
        taken.append(time.perf_counter() - start)
    return taken


# --- strangers ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _flood(address: str, kind: str | None) -> Iterator[list[float]]:
    """While it lasts, strangers of this kind connect; afterwards the list has how many a second."""
    counted = [0.0]
    if kind is None:
        yield counted
        return
    process = subprocess.Popen(
        [sys.executable, __file__, address, kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first stranger is there
    start = time.perf_counter()
    try:
        yield counted
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
        counted[0] = int(said or 0) / (time.perf_counter() - start)


async def _strangers(address: str, kind: str) -> None:
    """The process of the strangers: prints a line when the first one has connected, goes on until
    SIGTERM, and prints how often."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connected = 0
    begun = asyncio.Event()

    async def stranger() -> None:
        nonlocal connected
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    host, int(port), ssl=context if kind == "handshake" else None
                )
            except OSError:
                connected += 1  # refused, which cost the node something, too
                begun.set()
                continue
            connected += 1
            begun.set()
            with contextlib.suppress(OSError):
                if kind == "noise":
                    writer.write(NOISE)
                await reader.read(1)
            writer.transport.abort()

    tasks = [asyncio.create_task(stranger()) for _ in range(STRANGERS)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await begun.wait()
    print("begun", flush=True)
    await stop.wait()
    for task in tasks:
        task.cancel()
    print(connected, flush=True)


if __name__ == "__main__":
    asyncio.run(_strangers(sys.argv[1], sys.argv[2]))
