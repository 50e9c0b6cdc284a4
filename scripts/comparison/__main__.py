"""``scripts/compare``: PyDi, GlusterFS, MooseFS and a plain directory side by side.

    scripts/compare                      everything, three rounds
    scripts/compare --scale 0.1 --rounds 1   a short run
    scripts/compare --systems plain pydi-2   some of the systems
    scripts/compare --report RUN...      table and chart of runs that were made before
    scripts/compare --growth files       PyDi alone, by number of files (or nodes, or clients)

One JSON file for each run, a table and a chart in ``--output`` (docs/benchmarks). The README there
tells what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from scripts.comparison import failure, growth, peers, report, rounds, sources, work
from scripts.comparison.systems import CouldNotStart, Plain, PyDi, System, workspace
from tests.harness.networks import MACHINES_MAX, why_unusable

ROOT = Path(__file__).parent.parent.parent
KEYS = [row.key for row in work.ROWS]
BEGAN = time.monotonic()
OUTPUT = ROOT / "docs/benchmarks"

SYSTEMS: dict[str, Callable[[Path, bool], System]] = {
    "plain": lambda folder, _: Plain(folder),
    "pydi-2": lambda folder, _: PyDi(folder, copies=2),
    "pydi-3": lambda folder, _: PyDi(folder, copies=3),
    "pydi-2-fsync": lambda folder, _: PyDi(folder, copies=2, closes_behind=True),
    "gluster": peers.Gluster,
    "moosefs": peers.MooseFS,
}


def main() -> None:
    arguments = parse_arguments()
    # The daemons of a run must not outlive it, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments.report:
        publish(report.load(arguments.report), arguments.output)
        return
    if reason := why_unusable():
        raise SystemExit(f"compare: systems need networks of their own: {reason}")
    if arguments.growth:
        grow(arguments)
        return
    if arguments.install:
        peers.install([name for name in arguments.systems if name in peers.COMMANDS])
    skipped = {
        name: reason
        for name in arguments.systems
        if name in peers.COMMANDS and (reason := peers.why_unusable(name))
    }
    for name, reason in skipped.items():
        say(f"{name} is left out: {reason}")
    names = [name for name in arguments.systems if name not in skipped]
    rows = work.with_needed(arguments.rows)
    run = {
        "scale": arguments.scale, "rounds": arguments.rounds, "durability": arguments.durability,
        "skipped": skipped, "systems": [], "samples": [], "pauses": [],
    }  # fmt: skip
    with recorded(arguments, "comparison", run) as folder:
        measure(arguments, folder, names, rows, run)
    publish([run], arguments.output)


def grow(arguments: argparse.Namespace) -> None:
    """Points along one axis, or several, of PyDi alone."""
    operations = round(growth.OPERATIONS * arguments.scale)
    sizes = {"files": arguments.files, "nodes": arguments.nodes, "clients": arguments.clients}
    run: dict[str, Any] = {"scale": arguments.scale, "points": []}
    with recorded(arguments, "growth", run) as folder:
        for axis in arguments.growth:
            with closing(growth.AXES[axis](folder, sizes[axis], operations, say)) as points:
                run["points"].extend(point._asdict() for point in points)
    publish([run], arguments.output)


@contextmanager
def recorded(arguments: argparse.Namespace, kind: str, run: dict[str, Any]) -> Iterator[Path]:
    """A folder to measure in. Afterwards, also when the run was broken off, it is kept as JSON."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S")
    load_before = os.getloadavg()[0]
    with workspace(arguments.work) as folder:
        run |= {"kind": kind, "started": started, "machine": machine(folder)}
        try:
            yield folder
        except CouldNotStart as exc:
            raise SystemExit(f"compare: {exc}") from exc
        finally:
            run["machine"] |= {"load_before": load_before, "load_after": os.getloadavg()[0]}
            arguments.output.mkdir(parents=True, exist_ok=True)
            path = arguments.output / f"{kind}-{started.replace(':', '')}.json"
            path.write_text(json.dumps(run, indent=1) + "\n")
            say(f"wrote {path}")


def measure(
    arguments: argparse.Namespace,
    folder: Path,
    names: list[str],
    rows: list[work.Row],
    run: dict[str, Any],
) -> None:
    """Fills the run, sample by sample; everything that was started is stopped again."""
    prepared = folder / "sources"
    prepared.mkdir()
    say("making archive, repository and wheel")
    run["sources"] = sources.make(prepared, work.Sizes.of(arguments.scale))
    with ExitStack() as stack:
        systems = []
        for name in names:
            say(f"{name} starts")
            (folder / name).mkdir()
            system = SYSTEMS[name](folder / name, arguments.durability == "safe")
            stack.callback(system.stop)
            system.start()
            systems.append(system)
            about = {"version": system.version, "copies": system.copies}
            run["systems"].append({"name": name, **about, "durability": system.durability})
        for sample in rounds.run(systems, rows, arguments.rounds, prepared, arguments.scale, say):
            run["samples"].append(sample._asdict())
        for pause in failure.measure(systems, say) if arguments.kill else ():
            run["pauses"].append(pause._asdict())


def publish(runs: list[report.Run], output: Path) -> None:
    """Table and chart of runs of one kind, under that kind's name."""
    kind = runs[0]["kind"]
    text = {"comparison": report.table, "growth": growth.table}[kind](runs)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{kind}.md").write_text(text)
    {"comparison": report.chart, "growth": growth.chart}[kind](runs, output / f"{kind}.svg")
    print(text)


def machine(folder: Path) -> dict[str, Any]:
    """Of this machine, and the disk below that folder."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", folder], capture_output=True,
                          text=True, check=False)  # fmt: skip
    return {
        "cpus": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "memory_gib": round(pages / (1 << 30)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk": disk.stdout.strip(),
    }


def say(text: str) -> None:
    elapsed = time.monotonic() - BEGAN
    print(f"compare: {elapsed:6.1f} s  {text}", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/compare",
        description="The same work on PyDi, GlusterFS, MooseFS and a plain directory.",
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS),
                        metavar="NAME", help=f"of {' '.join(SYSTEMS)} (default: all)")  # fmt: skip
    parser.add_argument("--rows", nargs="+", choices=KEYS, default=KEYS, metavar="ROW",
                        help="these and those that make their files, of: "
                        + " ".join(KEYS))  # fmt: skip
    parser.add_argument("--scale", type=work.parse_scale, default=1.0,
                        help="how much work (default 1: 1000 small files, ...)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--durability", choices=["safe", "packaged"], default="safe",
                        help="peers with the safest settings they have, or as they are packaged"
                        " (default %(default)s)")  # fmt: skip
    parser.add_argument("--no-kill", dest="kill", action="store_false",
                        help="leave out what is measured with kill -9")  # fmt: skip
    parser.add_argument("--no-install", dest="install", action="store_false",
                        help="use peers only where they are installed already")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()),
                        help="where all keep their files (default %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", default=OUTPUT,
                        help="for JSON, table and chart (default docs/benchmarks)")  # fmt: skip
    parser.add_argument("--report", type=Path, nargs="+", metavar="RUN",
                        help="measure nothing: table and chart of these runs")  # fmt: skip
    parser.add_argument("--growth", nargs="+", choices=growth.AXES, metavar="AXIS",
                        help="how PyDi's costs grow instead: files, nodes, clients")  # fmt: skip
    parser.add_argument("--files", type=int, nargs="+", metavar="N",
                        default=[10_000, 100_000, 1_000_000],
                        help="with --growth (default 10000 100000 1000000)")  # fmt: skip
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 5, 7], metavar="N",
                        help="with --growth (default 1 3 5 7)")  # fmt: skip
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N",
                        help="with --growth (default 1 4 16 64)")  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.work.is_dir():
        parser.error(f"{arguments.work} is not a directory")
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    if min(*arguments.files, *arguments.nodes, *arguments.clients, 1) < 1:
        parser.error("--files, --nodes and --clients are at least 1")
    if max(arguments.nodes) > MACHINES_MAX:
        parser.error(f"at most {MACHINES_MAX} nodes")
    if arguments.growth and growth.OPERATIONS * arguments.scale < max(
        *arguments.clients, growth.CLIENTS
    ):
        parser.error("--scale is too small: some clients would have nothing to do")
    return arguments


if __name__ == "__main__":
    main()
