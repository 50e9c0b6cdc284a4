"""What PyDi costs as a cluster grows: by number of files, of nodes, of clients.

Called by `__main__`. Real nodes and a real mount, as in the comparison, but the files are empty and
are made through client sessions, because millions through one mount would take a day. The cost of
an operation is the CPU time of all nodes together, which a busy machine changes little; rates are
given beside it. Nothing should grow faster than its cause: cost with none of the three, memory of a
node with the files it knows.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydi_fs.client import Client, node_on_this_machine
from pydi_node.commands import Caller, Create, Mkdir
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.wire.messages import Lookup
from scripts.comparison import report
from scripts.comparison.systems import PyDi, cpu_seconds, memory_bytes

CALLER = Caller(0, 0)
FOLDER_FILES = 100  # files in each folder
FILLERS = 64  # clients that make the files nobody measures
CLIENTS = 16  # of a measurement, unless their number is what grows
OPERATIONS = 1000  # of each kind in a measurement, at scale 1
NODES = 3  # unless their number is what grows
MIB = 1 << 20


class Point(NamedTuple):
    """One measurement of a cluster of a certain size."""

    axis: str  # "files", "nodes" or "clients"
    size: int  # on that axis
    creates_per_s: float
    create_cpu_ms: float  # of all nodes together, for one create
    lookups_per_s: float
    lookup_cpu_ms: float
    node_mib: float  # proportional set size of the largest node
    mount_mib: float  # of the mount, after it has looked at every file
    walk_us: float  # for one file of `scandir` and `stat` of everything through the mount


Say = Callable[[str], None]
Points = Generator[Point, None, None]


def by_files(folder: Path, sizes: Sequence[int], operations: int, say: Say) -> Points:
    """One cluster that is filled further and further."""
    with running(folder, NODES) as system:
        load = Load(system, operations)
        for size in sorted(sizes):
            say(f"filling to {size} files")
            asyncio.run(load.fill_to(size))
            yield measure("files", size, system, load, CLIENTS)


def by_nodes(folder: Path, sizes: Sequence[int], operations: int, say: Say) -> Points:
    """A cluster of each size."""
    for size in sizes:
        say(f"{size} nodes")
        with running(folder, size) as system:
            yield measure("nodes", size, system, Load(system, operations), CLIENTS)


def by_clients(folder: Path, sizes: Sequence[int], operations: int, say: Say) -> Points:
    """One cluster, more and more clients at a time."""
    with running(folder, NODES) as system:
        load = Load(system, operations)
        for size in sorted(sizes):
            say(f"{size} clients")
            yield measure("clients", size, system, load, size)


AXES = {"files": by_files, "nodes": by_nodes, "clients": by_clients}


@contextmanager
def running(folder: Path, nodes: int) -> Iterator[PyDi]:
    """A PyDi of that many nodes with a mount, in a folder that no other uses."""
    inside = folder / f"nodes{nodes}"
    inside.mkdir()
    system = PyDi(inside, copies=min(2, nodes), count=nodes)
    try:
        system.start()
        yield system
    finally:
        system.stop()
        if not os.path.ismount(system.path):  # never delete through a mount
            shutil.rmtree(inside)


class Cost(NamedTuple):
    """What clients together took, and all nodes meanwhile."""

    seconds: float
    cpu_s: float


class Load:
    """Makes and finds empty files of one cluster; keeps count of what it made."""

    def __init__(self, system: PyDi, operations: int) -> None:
        self._system = system
        self.operations = operations  # in each measurement, shared by its clients
        self._folders: list[Ino] = []  # inode numbers of full folders
        self.files = 0

    async def fill_to(self, count: int) -> None:
        """Whole folders until there are so many files."""
        folders = iter(range(self.files, count, FOLDER_FILES))

        async def fill(client: Client, _: Ino) -> None:
            for first in folders:
                name = b"full%d" % (first // FOLDER_FILES)
                made = await client.execute(Mkdir(CALLER, ROOT_INO, name, 0o755))
                self._folders.append(made.ino)
                await create_all(client, made.ino, FOLDER_FILES)
                self.files += FOLDER_FILES

        await self._with_clients(FILLERS, fill)

    async def create(self, clients: int) -> Cost:
        """The creates of a measurement, in one new folder for each client."""

        async def work(client: Client, folder: Ino) -> None:
            await create_all(client, folder, self.operations // clients)

        self.files += self.operations // clients * clients
        return await self._with_clients(clients, work)

    async def look(self, clients: int) -> Cost:
        """As many look-ups of names, spread over all full folders."""

        async def work(client: Client, folder: Ino) -> None:
            for number in range(self.operations // clients):
                parent = self._folders[(folder + number) % len(self._folders)]
                await client.call(Lookup(parent, b"%d" % (number * 7919 % FOLDER_FILES)))

        return await self._with_clients(clients, work)

    async def _with_clients(
        self, count: int, work: Callable[[Client, Ino], Awaitable[None]]
    ) -> Cost:
        """What these clients take together, each with a new folder, once all are connected."""
        sessions = []
        for number in range(count):
            directory = self._system.data_dir(1 + number % self._system.count)
            client = Client([node_on_this_machine(directory)])
            await client.connect()
            name = b"work%d-%d" % (time.monotonic_ns(), number)
            made = await client.execute(Mkdir(CALLER, ROOT_INO, name, 0o755))
            sessions.append((client, made.ino))
        nodes = self._system.server_pids()
        cpu = cpu_seconds(nodes)
        start = time.perf_counter()
        await asyncio.gather(*(work(client, ino) for client, ino in sessions))
        cost = Cost(time.perf_counter() - start, cpu_seconds(nodes) - cpu)
        for client, _ in sessions:
            await client.close()
        return cost


async def create_all(client: Client, parent: Ino, count: int) -> None:
    for number in range(count):
        await client.execute(Create(CALLER, parent, b"%d" % number, 0o644, True))


def measure(axis: str, size: int, system: PyDi, load: Load, clients: int) -> Point:
    """What an operation costs and what the daemons hold, now."""
    if load.files == 0:
        asyncio.run(load.fill_to(load.operations))
    done = load.operations // clients * clients
    creating = asyncio.run(load.create(clients))
    looking = asyncio.run(load.look(clients))
    start = time.perf_counter()
    seen = walk(str(system.path))
    walk_s = time.perf_counter() - start
    if seen != load.files:
        raise SystemExit(f"compare: the mount shows {seen} files, not {load.files}")
    return Point(
        axis=axis,
        size=size,
        creates_per_s=round(done / creating.seconds, 1),
        create_cpu_ms=round(creating.cpu_s * 1000 / done, 3),
        lookups_per_s=round(done / looking.seconds, 1),
        lookup_cpu_ms=round(looking.cpu_s * 1000 / done, 3),
        node_mib=round(max(memory_bytes([pid]) for pid in system.server_pids()) / MIB, 1),
        mount_mib=round(memory_bytes([system.daemons()["mount"]]) / MIB, 1),
        walk_us=round(walk_s * 1e6 / seen, 1),
    )


def walk(path: str) -> int:
    """Files below a folder, each looked at."""
    files = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                files += walk(entry.path)
            else:
                entry.stat(follow_symlinks=False)
                files += 1
    return files


# --- report --------------------------------------------------------------------------------------

FIGURES = (
    ("create_cpu_ms", "CPU of all nodes for a create, ms"),
    ("lookup_cpu_ms", "CPU of all nodes for a look-up, ms"),
    ("creates_per_s", "creates a second"),
    ("lookups_per_s", "look-ups a second"),
    ("walk_us", "scandir+stat of one file on the mount, µs"),
    ("node_mib", "memory of the largest node, MiB"),
    ("mount_mib", "memory of the mount, MiB"),
)


def table(runs: Sequence[report.Run]) -> str:
    lines = [f"- {report.machine(run)}" for run in runs]
    for axis, points in _by_axis(runs):
        lines += ["", f"| by {axis} | {' | '.join(str(point['size']) for point in points)} |"]
        lines.append("|---" * (len(points) + 1) + "|")
        for key, title in FIGURES:
            lines.append(f"| {title} | {' | '.join(f'{point[key]:,}' for point in points)} |")
    return "\n".join([*lines, ""])


def chart(runs: Sequence[report.Run], path: Path) -> None:
    """One row of panels for each axis: cost, speed, memory; SVG."""
    plot = report.pyplot()
    panels = (("create_cpu_ms", "lookup_cpu_ms"), ("creates_per_s", "lookups_per_s"),
              ("node_mib", "mount_mib"))  # fmt: skip
    axes = list(_by_axis(runs))
    figure, grid = plot.subplots(
        len(axes), len(panels), figsize=(11, 2.6 * len(axes)), layout="constrained", squeeze=False
    )
    titles = dict(FIGURES)
    for line, (axis, points) in zip(grid, axes, strict=True):
        for panel, keys in zip(line, panels, strict=True):
            for key in keys:
                panel.plot([p["size"] for p in points], [p[key] for p in points], "o-",
                           label=titles[key])  # fmt: skip
            panel.set_xscale("log")
            panel.set_ylim(bottom=0)
            panel.set_xlabel(axis)
            panel.legend(fontsize="x-small")
            panel.grid(alpha=0.2)
    figure.savefig(path, metadata={"Date": None})
    plot.close(figure)


def _by_axis(runs: Sequence[report.Run]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for axis in AXES:
        points = [point for run in runs for point in run["points"] if point["axis"] == axis]
        points.sort(key=lambda point: point["size"])
        if points:
            yield axis, points
