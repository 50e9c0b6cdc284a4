"""Measures what a program feels in a directory; one JSON line for each figure.

    scripts/bench DIR                     DIR alone
    scripts/bench DIR --against PLAIN     both, turn by turn, and the ratio of each figure
    scripts/bench DIR --memory PID...     and the memory of these processes before and after
    scripts/bench --cluster N             committed creates a second of N nodes, --clients M
    scripts/bench --walk N                N files listed and walked through a mount of its own, and
                                          the memory of both daemons
    scripts/bench --copies N              N small files by `pydi put -r` and `get -r` against cp -r
                                          through a mount, with processor time and memory
    scripts/bench --repair                content between three nodes against cp, and the time to
                                          full replication after the loss of one of them
    scripts/bench --network               content over TLS against the unix socket, and the latency
                                          of both while strangers flood the node
    scripts/bench --inodes N              a node with N inodes: its start, its memory, and its rate
                                          while a new node gets all of its tree
    scripts/bench --mount                 a node and a mount of its own against a plain directory on
                                          the same disk, known files opened on one CPU and on any,
                                          then the daemons' memory under load

A tool to look with: nothing in the tests depends on a figure of it. Figures are medians over the
rounds, and both directories take turns within a round, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE_BYTES = 4 * KIB
CHUNK_BYTES = MIB
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class Sizes(NamedTuple):
    """How much each measure does."""

    files: int  # small files created, looked at, read and removed
    file_bytes: int  # size of the sequential file
    pages: int  # random accesses of PAGE_BYTES
    page_file_bytes: int  # size of the file they fall into


class Figure(NamedTuple):
    """One measurement: ``amount`` operations or bytes took ``seconds``."""

    amount: int
    seconds: float
    unit: str  # "ops/s", or "MiB/s" when amount is bytes

    @property
    def rate(self) -> float:
        return self.amount / self.seconds / (MIB if self.unit == "MiB/s" else 1)


Measures = Iterator[tuple[str, Figure]]


def timed(count: int, unit: str, action: Callable[[], None]) -> Figure:
    start = time.perf_counter()
    action()
    return Figure(count, time.perf_counter() - start, unit)


def small_files(directory: Path, sizes: Sizes) -> Measures:
    """Create, stat, open and read, list, unlink ``sizes.files`` files of 1 KiB."""
    content = os.urandom(KIB)
    paths = [str(directory / f"small-{number:06d}") for number in range(sizes.files)]

    def create() -> None:
        for path in paths:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, content)
            os.close(fd)

    def look() -> None:
        for path in paths:
            os.stat(path)

    def read() -> None:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            if len(os.read(fd, 2 * KIB)) != KIB:
                raise SystemExit(f"{path}: not what was written")
            os.close(fd)

    def scan() -> None:
        with os.scandir(directory) as entries:
            found = sum(1 for entry in entries if entry.name.startswith("small-"))
        if found != sizes.files:
            raise SystemExit(f"{directory}: {found} entries instead of {sizes.files}")

    def remove() -> None:
        for path in paths:
            os.unlink(path)

    yield "create+write 1 KiB+close", timed(sizes.files, "ops/s", create)
    yield "stat", timed(sizes.files, "ops/s", look)
    yield "stat, warm", timed(sizes.files, "ops/s", look)
    for path in paths:
        age(Path(path))
    yield "open+read 1 KiB+close", timed(sizes.files, "ops/s", read)
    yield "scandir, entries", timed(sizes.files, "ops/s", scan)
    yield "scandir, entries, warm", timed(sizes.files, "ops/s", scan)
    yield "unlink", timed(sizes.files, "ops/s", remove)


def sequential(directory: Path, sizes: Sizes) -> Measures:
    """Write one file in chunks with a final fsync and close, read it again."""
    path = directory / "sequential"
    chunk = os.urandom(CHUNK_BYTES)
    chunks = max(1, sizes.file_bytes // CHUNK_BYTES)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for _ in range(chunks):
            write_all(fd, chunk)
        os.fsync(fd)
        os.close(fd)

    buffer = bytearray(CHUNK_BYTES)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        total = 0
        while count := os.readv(fd, [buffer]):
            total += count
        os.close(fd)
        if total != chunks * CHUNK_BYTES:
            raise SystemExit(f"{path}: {total} bytes instead of {chunks * CHUNK_BYTES}")

    yield "sequential write+fsync", timed(chunks * CHUNK_BYTES, "MiB/s", write)
    age(path)
    forget_pages(path)
    yield "sequential read, file's pages dropped", timed(chunks * CHUNK_BYTES, "MiB/s", read)
    yield "sequential read again", timed(chunks * CHUNK_BYTES, "MiB/s", read)
    path.unlink()


def random_pages(directory: Path, sizes: Sizes) -> Measures:
    """4 KiB reads and writes at seeded places of one file."""
    path = directory / "pages"
    with path.open("wb") as file:
        for _ in range(max(1, sizes.page_file_bytes // CHUNK_BYTES)):
            file.write(os.urandom(CHUNK_BYTES))
    pages = path.stat().st_size // PAGE_BYTES
    places = [random.Random(n).randrange(pages) * PAGE_BYTES for n in range(sizes.pages)]
    page = os.urandom(PAGE_BYTES)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        for place in places:
            os.pread(fd, PAGE_BYTES, place)
        os.close(fd)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        for place in places:
            os.pwrite(fd, page, place)
        os.fsync(fd)
        os.close(fd)

    age(path)
    forget_pages(path)
    yield "random read 4 KiB", timed(sizes.pages, "ops/s", read)
    yield "random write 4 KiB, one fsync", timed(sizes.pages, "ops/s", write)
    path.unlink()


GROUPS = (small_files, sequential, random_pages)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def age(path: Path) -> None:
    """As if it had been written long ago: a mount may read a file at rest in another way."""
    os.utime(path, (0, 0))


def forget_pages(path: Path) -> None:
    """Ask the kernel to drop this file's cached pages (not those of a file behind it)."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def measure(directories: list[Path], sizes: Sizes, rounds: int) -> None:
    """Print the median of every measure in every directory, and ratios to the last directory."""
    samples: dict[str, dict[Path, list[Figure]]] = {}
    for number in range(rounds):
        for group in GROUPS:
            # Whoever goes first in one round goes last in the next.
            for directory in directories if number % 2 == 0 else directories[::-1]:
                with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as inside:
                    for name, figure in group(Path(inside), sizes):
                        samples.setdefault(name, {}).setdefault(directory, []).append(figure)
    for name, by_directory in samples.items():
        medians = {
            directory: sorted(figures, key=lambda figure: figure.seconds)[len(figures) // 2]
            for directory, figures in by_directory.items()
        }
        for directory in directories:
            emit_figure(name, directory, medians[directory])
        for directory in directories[:-1]:
            ratio = medians[directory].rate / medians[directories[-1]].rate
            emit(name=name, directory=str(directory), against=str(directories[-1]),
                 ratio=round(ratio, 4))  # fmt: skip


def emit_figure(name: str, directory: Path, figure: Figure) -> None:
    emit(
        name=name,
        directory=str(directory),
        count=figure.amount,
        seconds=round(figure.seconds, 6),
        rate=round(figure.rate, 2),
        unit=figure.unit,
    )


def emit(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


# --- memory --------------------------------------------------------------------------------------


def emit_memory(pids: dict[str, int], when: str) -> None:
    """Resident size of each process now, and its peak since ``reset_peaks``."""
    for name, pid in pids.items():
        sizes = {}
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                sizes[key] = round(int(value.split()[0]) / KIB, 1)
        emit(name="memory", process=name, pid=pid, when=when,
             rss_mib=sizes["VmRSS"], peak_mib=sizes["VmHWM"])  # fmt: skip


def reset_peaks(pids: dict[str, int]) -> None:
    for pid in pids.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def serving(pid: int) -> int:
    """The process that serves a mount: the child of its supervisor, or the one without."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def command_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


# --- a node and a mount of our own ---------------------------------------------------------------


@contextmanager
def started(what: str, command: list[str], is_ready: Callable[[], bool]) -> Iterator[int]:
    """A daemon's pid once it is ready; ended with SIGTERM afterwards."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(
                        f"{what} did not start:\n{log.read().decode(errors='replace')}"
                    )
                time.sleep(0.02)
            yield process.pid
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                print(f"{what} did not stop within {STOP_TIMEOUT_S:.0f} s", file=sys.stderr)


@contextmanager
def nodes_and_mount(work: Path, nodes: int, driver: str) -> Iterator[tuple[Path, dict[str, int]]]:
    """(mount point, pids by name) of a fresh cluster below ``work``, mounted beside its leader."""
    import bench_cluster  # only now: a plain directory is measured without PyDi

    mount = work / "mnt"
    mount.mkdir()
    with bench_cluster.running(work, nodes, started) as cluster:
        mount_command = [
            str(Path(sys.executable).parent / "pydi-mount"), str(mount), "--data-dir",
            str(cluster[0].directory), "--cache-dir", str(work / "cache"), "--driver", driver,
            "--foreground",
        ]  # fmt: skip
        with started("the mount", mount_command, lambda: os.path.ismount(mount)) as mounter:
            pids = {f"pydi-node {number}": node.pid for number, node in enumerate(cluster, 1)}
            yield mount, pids | {"pydi-mount": serving(mounter)}


def load_daemons(work: Path, mount: Path, pids: dict[str, int], files: int, bytes_: int) -> None:
    """The daemons' memory while small files are copied in and a large file goes in and out."""
    source = work / "source"
    content = os.urandom(KIB)
    for number in range(files):
        path = source / f"{number // 100:04d}" / f"{number:06d}"
        if number % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(content)

    def copy_tree() -> None:
        subprocess.run(["cp", "-a", str(source), str(mount / "copy")], check=True)

    chunk = os.urandom(CHUNK_BYTES)
    stream = mount / "stream"

    def write_stream() -> None:
        fd = os.open(stream, os.O_WRONLY | os.O_CREAT, 0o644)
        for _ in range(bytes_ // CHUNK_BYTES):
            write_all(fd, chunk)
        os.close(fd)

    def read_stream() -> None:
        fd = os.open(stream, os.O_RDONLY)
        while os.read(fd, CHUNK_BYTES):
            pass
        os.close(fd)

    emit_memory(pids, "before")
    for name, count, unit, action in (
        (f"cp -a of {files} files of 1 KiB", files, "ops/s", copy_tree),
        (f"stream {bytes_ / GIB:g} GiB in", bytes_, "MiB/s", write_stream),
        (f"stream {bytes_ / GIB:g} GiB out", bytes_, "MiB/s", read_stream),
    ):
        reset_peaks(pids)
        emit_figure(name, mount, timed(count, unit, action))
        emit_memory(pids, f"after {name}")


def measure_opens(directories: list[Path], mount_pid: int, count: int, rounds: int) -> None:
    """What is left of an open that is known, and the mount's processor time for it."""
    import bench_opens  # as above

    samples: dict[str, dict[Path, list[bench_opens.Opens]]] = {}
    for found in bench_opens.opens(directories, mount_pid, count, rounds):
        samples.setdefault(found.what, {}).setdefault(found.directory, []).append(found)
    for name, by_directory in samples.items():
        medians = {
            directory: sorted(found, key=lambda one: one.seconds)[len(found) // 2]
            for directory, found in by_directory.items()
        }
        for directory, median in medians.items():
            emit_figure(name, directory, Figure(median.count, median.seconds, "ops/s"))
        first, last = (medians[directory] for directory in (directories[0], directories[-1]))
        emit(
            name=name,
            directory=str(directories[0]),
            against=str(directories[-1]),
            ratio=round(last.seconds / first.seconds, 4),
            mount_cpu_us=round(first.mount_cpu_s / first.count * 1e6, 1),
        )


def measure_cluster(work: Path, nodes: int, clients: list[int], count: int) -> None:
    """Creates a second for each number of clients, each on a fresh cluster."""
    import bench_cluster  # as above

    for number in clients:
        inside = Path(tempfile.mkdtemp(prefix="c", dir=work))
        with bench_cluster.running(inside, nodes, started) as running:
            cost = bench_cluster.measure(running, number, count)
        done = count // number * number
        name = f"committed creates, {nodes} nodes, {number} clients"
        emit_figure(name, inside, Figure(done, cost.seconds, "ops/s"))
        emit(
            name=f"{name}: processor time each",
            unit="us",
            nodes=[round(cpu_s / done * 1e6) for cpu_s in cost.node_cpu_s],
            clients=round(cost.client_cpu_s / done * 1e6),
        )


def measure_walk(work: Path, driver: str, count: int) -> None:
    """Pace and memory of both daemons while ``count`` files are listed and looked at."""
    import bench_walk  # only now: a plain directory is measured without PyDi

    with nodes_and_mount(work, 1, driver) as (mount, pids):
        asyncio.run(bench_walk.make(work / "node1", count))
        emit_memory(pids, f"after {count} files were made")
        for name, action in (("list", bench_walk.listing), ("walk", bench_walk.walk)):

            def act(action: Callable[[Path], int] = action) -> None:
                found = action(mount)
                if found != count:
                    raise SystemExit(f"{found} entries instead of {count}")

            reset_peaks(pids)
            emit_figure(f"{name} {count} files", mount, timed(count, "ops/s", act))
            emit_memory(pids, f"after {name}")


def measure_copies(work: Path, driver: str, count: int, rounds: int) -> None:
    """`pydi put -r` and `get -r` against cp -r, and what each takes of processor and memory."""
    import bench_copies  # as above

    with nodes_and_mount(work, 1, driver) as (mount, pids):
        bench_copies.make(work / "source", count)
        done: dict[str, list[bench_copies.Copy]] = {}
        for copy in bench_copies.copies(work, work / "node1", mount, pids, rounds):
            done.setdefault(copy.what, []).append(copy)
        medians = {
            what: sorted(found, key=lambda copy: copy.seconds)[len(found) // 2]
            for what, found in done.items()
        }
        for what, copy in medians.items():
            emit_figure(f"{what}, {count} files", work, Figure(count, copy.seconds, "ops/s"))
            emit(
                name=f"{what}: processor time each",
                unit="us",
                own=round(copy.own_cpu_s / count * 1e6),
                **{name: round(s / count * 1e6) for name, s in copy.daemons_cpu_s.items()},
            )
            emit(name="memory", process=what, peak_mib=round(copy.peak_mib, 1))
        for ours, theirs in (("put -r", "cp -r in"), ("get -r", "cp -r out")):
            ratio = medians[ours].seconds / medians[theirs].seconds
            emit(name=f"time of {ours} / {theirs}", ratio=round(ratio, 2))


def measure_repair(work: Path, files: int, file_bytes: int) -> None:
    """Transfer between nodes and cp turn by turn on the same disk; then the loss of a node, unless
    there are no files to lose."""
    import bench_repair  # only now: a plain directory is measured without PyDi
    from bench_cluster import running

    large = 4
    each = max(MIB, file_bytes // large)
    inside = Path(tempfile.mkdtemp(prefix="r", dir=work))
    with running(inside, 3, started) as nodes:
        directories = [node.directory for node in nodes]
        seconds = asyncio.run(bench_repair.transfer(directories, large, each))
        moved = Figure(large * each, seconds, "MiB/s")
        emit_figure("content from node to node, durable", inside, moved)
        plain = Figure(large * each, bench_repair.copied(work, large, each), "MiB/s")
        emit_figure("cp and fdatasync on the same disk", work, plain)
        emit(name="node to node / cp", ratio=round(moved.rate / plain.rate, 2))
        if not files:
            return
        seconds, held = asyncio.run(bench_repair.repair(directories, files))
        emit_figure("blobs made whole after a node's loss", inside, Figure(held, seconds, "ops/s"))


def measure_size(work: Path, inodes: int) -> None:
    """A node with so many inodes: its start, its memory, and how a new node gets its tree."""
    import bench_cluster  # as above
    import bench_size

    first, second = work / "node1", work / "node2"
    with bench_cluster.node_running(first, None, started):
        pass  # founded
    fill = timed(inodes, "ops/s", lambda: bench_size.fill(first, inodes))
    emit_figure(f"{inodes} creates applied to a tree", first, fill)
    began = time.perf_counter()
    with bench_cluster.node_running(first, None, started) as node:
        emit(name=f"start with {inodes} inodes", unit="s", seconds=time.perf_counter() - began)
        emit_memory({"pydi-node": node.pid}, "after the start")
        fed = asyncio.run(bench_size.feed(node, second, started))
        emit(
            name=f"creates while a new node gets {inodes} inodes",
            unit="ops/s",
            before=round(fed.rate_before),
            rate=round(fed.rate_during),
            ratio=round(fed.rate_during / fed.rate_before, 2),
            seconds=round(fed.seconds, 2),
        )
        emit_memory({"pydi-node": node.pid}, "after that")


def measure_network(work: Path, rounds: int, file_bytes: int, count: int) -> None:
    """TLS and the unix socket turn by turn; then single requests alone and under floods."""
    import bench_network  # as above
    from bench_cluster import running

    inside = Path(tempfile.mkdtemp(prefix="n", dir=work))
    with running(inside, 1, started) as nodes:
        directory = nodes[0].directory
        size = max(1, file_bytes // MIB) * MIB
        ways = asyncio.run(bench_network.throughput(directory, rounds, size))
        rates: dict[str, list[float]] = {}
        for way in ways:
            for what, seconds in (("write", way.writes_s), ("read", way.reads_s)):
                figure = Figure(size, statistics.median(seconds), "MiB/s")
                emit_figure(f"content over {way.way}, {what}", inside, figure)
                rates.setdefault(what, []).append(figure.rate)
        for what, (over_tls, local) in rates.items():
            emit(name=f"TLS / unix socket, {what}", ratio=round(over_tls / local, 2))
        alone: dict[tuple[str, str], float] = {}
        for entry in asyncio.run(bench_network.latency(directory, rounds, count)):
            for what, samples in (("query", entry.query_s), ("create", entry.create_s)):
                among = f"{entry.kind} strangers" if entry.kind else "no strangers"
                median = statistics.median(samples)
                emit(
                    name=f"{what} over {entry.way}, {among}",
                    unit="ms",
                    median=round(median * 1000, 3),
                    high=round(bench_network.high(samples) * 1000, 3),
                    ratio=round(median / alone.setdefault((entry.way, what), median), 2),
                    strangers_per_s=round(entry.strangers_per_s),
                )


# --- command line --------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes from "300", "64K", "256M" or "3G"."""
    units = {"K": KIB, "M": MIB, "G": GIB}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    return int(number) * unit


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure a directory; one JSON line for each figure."
    )
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR")
    parser.add_argument(
        "--against", type=Path, metavar="PLAIN", help="measure this too, and ratios"
    )
    parser.add_argument("--memory", type=int, nargs="+", metavar="PID", default=[],
                        help="print the memory of these processes before and after")  # fmt: skip
    parser.add_argument("--mount", action="store_true",
                        help="measure a node and a mount of its own")  # fmt: skip
    parser.add_argument("--nodes", type=int, default=1, metavar="N",
                        help="with --mount: of how many nodes (default %(default)s)")  # fmt: skip
    parser.add_argument("--cluster", type=int, default=0, metavar="N",
                        help="measure committed creates of N nodes")  # fmt: skip
    parser.add_argument("--walk", type=int, default=0, metavar="N",
                        help="measure listing and walking N files")  # fmt: skip
    parser.add_argument("--copies", type=int, default=0, metavar="N",
                        help="measure put -r and get -r of N files")  # fmt: skip
    parser.add_argument("--repair", action="store_true",
                        help="measure transfer and repair between three nodes")  # fmt: skip
    parser.add_argument("--network", action="store_true",
                        help="measure TLS, and what strangers cost")  # fmt: skip
    parser.add_argument("--inodes", type=int, default=0, metavar="N",
                        help="measure a node with N inodes")  # fmt: skip
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], metavar="M",
                        help="with --cluster: clients at a time (default 1 16)")  # fmt: skip
    parser.add_argument("--creates", type=int, default=2000,
                        help="with --cluster: creates in all (default %(default)s)")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()),
                        help="for daemons of its own: where (default %(default)s)")  # fmt: skip
    parser.add_argument("--driver", default="auto", help="with --mount: pydi-mount's --driver")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--files", type=int, default=1000, help="small files (default %(default)s)")
    parser.add_argument("--opens", type=int, default=4000,
                        help="with --mount: warm opens (default %(default)s)")  # fmt: skip
    parser.add_argument("--file-size", type=parse_size, default=256 * MIB, metavar="SIZE",
                        help="sequential file (default 256M)")  # fmt: skip
    parser.add_argument("--pages", type=int, default=20_000,
                        help="random accesses (default %(default)s)")  # fmt: skip
    parser.add_argument("--page-file-size", type=parse_size, default=64 * MIB, metavar="SIZE",
                        help="file they fall into (default 64M)")  # fmt: skip
    parser.add_argument("--load-files", type=int, default=20_000,
                        help="with --mount: files copied for the memory figures")  # fmt: skip
    parser.add_argument("--load-size", type=parse_size, default=3 * GIB, metavar="SIZE",
                        help="with --mount: size of the file streamed for them")  # fmt: skip
    arguments = parser.parse_args()
    kinds = (
        arguments.directory, arguments.mount, arguments.cluster, arguments.walk, arguments.repair,
        arguments.inodes, arguments.network, arguments.copies,
    )  # fmt: skip
    if sum(map(bool, kinds)) != 1:
        parser.error(
            "give one of DIR, --mount, --cluster, --walk, --copies, --repair, --network"
            " and --inodes"
        )
    for directory in filter(None, (arguments.directory, arguments.against, arguments.work)):
        if not directory.is_dir():
            parser.error(f"{directory} is not a directory")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    sizes = Sizes(arguments.files, arguments.file_size, arguments.pages, arguments.page_file_size)
    if arguments.directory:
        pids = {f"{command_name(pid)} {pid}": pid for pid in arguments.memory}
        emit_memory(pids, "before")
        measure([d for d in (arguments.directory, arguments.against) if d], sizes, arguments.rounds)
        emit_memory(pids, "after")
        return
    work = Path(tempfile.mkdtemp(prefix="pydi-bench-", dir=arguments.work))
    try:
        plain = work / "plain"
        plain.mkdir()
        if arguments.cluster:
            measure_cluster(work, arguments.cluster, arguments.clients, arguments.creates)
            return
        if arguments.walk:
            measure_walk(work, arguments.driver, arguments.walk)
            return
        if arguments.copies:
            measure_copies(work, arguments.driver, arguments.copies, arguments.rounds)
            return
        if arguments.repair:
            measure_repair(work, arguments.files, arguments.file_size)
            return
        if arguments.network:
            measure_network(work, arguments.rounds, arguments.file_size, arguments.files)
            return
        if arguments.inodes:
            measure_size(work, arguments.inodes)
            return
        with nodes_and_mount(work, arguments.nodes, arguments.driver) as (mount, pids):
            measure([mount, plain], sizes, arguments.rounds)
            mount_pid = pids["pydi-mount"]
            measure_opens([mount, plain], mount_pid, arguments.opens, arguments.rounds)
            load_daemons(work, mount, pids, arguments.load_files, arguments.load_size)
    finally:
        # Never delete through a mount that is still there.
        if not os.path.ismount(work / "mnt"):
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
