"""``scripts/bench --cluster``: committed creates a second through real node processes.

Each client waits for one create before it sends the next, as programs do; many clients show what
sharing a log write among them is worth. Every create counted was on disk on a majority.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pydi_fs.client import Client, node_on_this_machine
from pydi_node.commands import Caller, Create, Mkdir
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Admin

MEMBERS_TIMEOUT_S = 60.0
CALLER = Caller(os.geteuid(), os.getegid())

Start = Callable[[str, list[str], Callable[[], bool]], AbstractContextManager[int]]


@contextlib.contextmanager
def running(work: Path, nodes: int, start: Start) -> Iterator[list[Path]]:
    """Data directories of a fresh cluster whose nodes are all up and, up to five, voters."""
    program = str(Path(sys.executable).parent / "pydi-node")
    directories = [work / f"node{number}" for number in range(1, nodes + 1)]
    with contextlib.ExitStack() as stack:
        for directory in directories:
            command = [program, str(directory), "--listen", "127.0.0.1:0"]
            if directory != directories[0]:
                first = json.loads((directories[0] / "run.json").read_text())["address"]
                command += ["--peer", first, "--token-file", str(directories[0] / "token")]
            stack.enter_context(start(directory.name, command, (directory / "node.sock").exists))
        asyncio.run(_wait_for_members(directories[0], nodes))
        yield directories


async def _wait_for_members(directory: Path, nodes: int) -> None:
    client = Client([node_on_this_machine(directory)])
    await client.connect()
    deadline = time.monotonic() + MEMBERS_TIMEOUT_S
    while True:
        state = await client.call(Admin("status"))
        up = [node for node in state["nodes"] if node["state"] == "up"]
        voters = sum(node["role"] == "voter" for node in up)
        if len(up) == nodes and voters == min(nodes, 5):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the cluster did not come together: {json.dumps(state['nodes'])}")
        await asyncio.sleep(0.1)
    await client.close()


async def creates(directories: list[Path], clients: int, count: int) -> float:
    """Seconds that this many clients, spread over the nodes, take for ``count`` creates in all."""
    sessions = []
    for number in range(clients):
        client = Client([node_on_this_machine(directories[number % len(directories)])])
        await client.connect()
        made = await client.execute(Mkdir(CALLER, ROOT_INO, f"client{number}".encode(), 0o755))
        sessions.append((client, made.ino))

    async def work(client: Client, parent: int, share: int) -> None:
        for number in range(share):
            await client.execute(Create(CALLER, parent, b"%d" % number, 0o644, True))

    start = time.perf_counter()
    await asyncio.gather(*(work(client, ino, count // clients) for client, ino in sessions))
    seconds = time.perf_counter() - start
    for client, _ in sessions:
        await client.close()
    return seconds
