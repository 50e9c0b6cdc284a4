"""``scripts/bench --cluster``: committed creates a second through real node processes.

Each client waits for one create before it sends the next, as programs do; many clients show what
sharing a log write among them is worth. Every create counted was on disk on a majority. Beside the
rate stands the processor time of each process, which other work on the machine disturbs far less.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.mount_cli import GC_THRESHOLDS, loop_factory
from pydi_node.commands import Caller, Create, Mkdir
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Admin

MEMBERS_TIMEOUT_S = 60.0
CALLER = Caller(os.geteuid(), os.getegid())

Start = Callable[[str, list[str], Callable[[], bool]], AbstractContextManager[int]]


class Node(NamedTuple):
    directory: Path
    pid: int

    def cpu_s(self) -> float:
        """Processor time so far, of all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(work: Path, nodes: int, start: Start) -> Iterator[list[Node]]:
    """A fresh cluster whose nodes are all up and, up to five, voters; the first one leads."""
    directories = [work / f"node{number}" for number in range(1, nodes + 1)]
    started = []
    with contextlib.ExitStack() as stack:
        for directory in directories:
            first = started[0] if started else None
            started.append(stack.enter_context(node_running(directory, first, start)))
        asyncio.run(_wait_for_members(started[0], nodes))
        yield started


@contextlib.contextmanager
def node_running(directory: Path, member: Node | None, start: Start) -> Iterator[Node]:
    """A node that serves; of a cluster of its own, or of that of ``member``."""
    program = str(Path(sys.executable).parent / "pydi-node")
    command = [program, str(directory), "--listen", "127.0.0.1:0"]
    if member is not None:
        address = json.loads((member.directory / "run.json").read_text())["address"]
        command += ["--peer", address, "--token-file", str(member.directory / "token")]
    with start(directory.name, command, (directory / "node.sock").exists) as pid:
        yield Node(directory, pid)


async def status_of(node: Node) -> dict[str, Any]:
    """What ``pydi status --json`` prints."""
    client = Client([node_on_this_machine(node.directory)])
    await client.connect()
    state: dict[str, Any] = await client.call(Admin("status"))
    await client.close()
    return state


async def _wait_for_members(node: Node, nodes: int) -> None:
    deadline = time.monotonic() + MEMBERS_TIMEOUT_S
    while True:
        state = await status_of(node)
        up = [node for node in state["nodes"] if node["state"] == "up"]
        voters = sum(node["role"] == "voter" for node in up)
        if len(up) == nodes and voters == min(nodes, 5):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the cluster did not come together: {json.dumps(state['nodes'])}")
        await asyncio.sleep(0.1)


class Cost(NamedTuple):
    """What the creates took."""

    seconds: float
    node_cpu_s: list[float]  # of each node, the first one leads
    client_cpu_s: float


def measure(nodes: list[Node], clients: int, count: int) -> Cost:
    """``creates`` in a process that is set up as a mount's: its event loop and its collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(creates(nodes, clients, count))


async def creates(nodes: list[Node], clients: int, count: int, mark: str = "") -> Cost:
    """This many clients, spread over the nodes, make ``count`` files in all.

    mark  before the names of their directories, for more than one call on one cluster.
    """
    sessions = []
    for number in range(clients):
        client = Client([node_on_this_machine(nodes[number % len(nodes)].directory)])
        await client.connect()
        name = f"{mark}client{number}".encode()
        made = await client.execute(Mkdir(CALLER, ROOT_INO, name, 0o755))
        sessions.append((client, made.ino))

    async def work(client: Client, parent: int, share: int) -> None:
        for number in range(share):
            await client.execute(Create(CALLER, parent, b"%d" % number, 0o644, True))

    cpu_before = [node.cpu_s() for node in nodes]
    own_before = time.process_time()
    start = time.perf_counter()
    await asyncio.gather(*(work(client, ino, count // clients) for client, ino in sessions))
    seconds = time.perf_counter() - start
    own = time.process_time() - own_before
    cpu = [node.cpu_s() - before for node, before in zip(nodes, cpu_before, strict=True)]
    for client, _ in sessions:
        await client.close()
    return Cost(seconds, cpu, own)
