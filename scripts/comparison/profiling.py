"""``scripts/profile``: where PyDi's daemons spend their time under each row of the comparison.

    scripts/profile                        every row, smallish
    scripts/profile --rows create unlink   these; those that make their files run without a look
    scripts/profile --syscalls             count system calls with strace, sample no stacks

Three nodes with two copies and a mount beside the first, as in the comparison. For each row and
daemon: CPU time and how often it went to sleep for each operation, as the kernel counts it, and the
functions that take most (py-spy, 250 samples a second); or the system calls. What a daemon does by
itself meanwhile, such as heartbeats, is in all of them. Whole stacks go into ``--output``, in the
folded form that flame graph viewers read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.comparison import sources, work
from scripts.comparison.systems import PROGRAMS, CouldNotStart, PyDi, cpu_seconds, workspace
from tests.harness.networks import why_unusable

SAMPLES_PER_S = 250
SHOWN = 12
WATCHER_TIMEOUT_S = 30.0  # for a watcher to attach, and to write what it saw
KEYS = [row.key for row in work.ROWS]


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if reason := why_unusable():
        raise SystemExit(f"profile: nodes need networks of their own: {reason}")
    if arguments.syscalls and shutil.which("strace") is None:
        raise SystemExit("profile: --syscalls needs strace: apt-get install strace")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with workspace(Path(tempfile.gettempdir())) as folder:
        try:
            watch(folder, arguments)
        except CouldNotStart as exc:
            raise SystemExit(f"profile: {exc}") from exc


def watch(folder: Path, arguments: argparse.Namespace) -> None:
    """Starts a PyDi and profiles it row by row."""
    prepared = folder / "sources"
    prepared.mkdir()
    sources.make(prepared, work.Sizes.of(arguments.scale))
    (folder / "pydi").mkdir()
    system = PyDi(folder / "pydi", copies=2)
    try:
        system.start()
        for row in work.with_needed(arguments.rows):
            command = work.command_line(row, system.path, prepared, arguments.scale)
            if row.key not in arguments.rows or row.phase == "warm":
                subprocess.run(command, check=True, capture_output=True)
            if row.key in arguments.rows:
                profile(system, row, command, arguments.output, arguments.syscalls)
    finally:
        system.stop()


def profile(system: PyDi, row: work.Row, command: list[str], output: Path, syscalls: bool) -> None:
    """Runs one row and prints what each daemon did meanwhile."""
    daemons = system.daemons()
    watching = counting if syscalls else sampling
    found: dict[str, Counter[str]] = {}
    with watching(daemons, output, row.key, found):
        before = {name: (cpu_seconds([pid]), sleeps(pid)) for name, pid in daemons.items()}
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = {name: (cpu_seconds([pid]), sleeps(pid)) for name, pid in daemons.items()}
    if done.returncode != 0:
        raise SystemExit(f"profile: {row.title} failed: {done.stderr.strip()}")
    figure = json.loads(done.stdout)
    amount = figure["amount"] / (work.MIB if row.unit == "MiB/s" else 1)
    each = {"ops/s": "operation", "MiB/s": "MiB", "s": "run"}[row.unit]
    print(f"\n## {row.title}: {amount:g} in {figure['seconds']:.3f} s")
    for name in daemons:
        print(f"\n{name}, for each {each}:")
        if not syscalls:  # strace stops a daemon at every call, which would be counted
            cpu_ms = (after[name][0] - before[name][0]) * 1000 / amount
            slept = (after[name][1] - before[name][1]) / amount
            print(f"  {cpu_ms:.2f} ms CPU, went to sleep {slept:.1f} times")
        for what, count in found[name].most_common(SHOWN):
            share = count / amount if syscalls else count / max(1, found[name].total()) * 100
            print(f"  {share:8.2f}{'' if syscalls else ' %'}  {what}")
    sys.stdout.flush()


@contextmanager
def sampling(
    daemons: dict[str, int], output: Path, key: str, found: dict[str, Counter[str]]
) -> Iterator[None]:
    """Afterwards ``found``: for each daemon the samples whose innermost frame was that function."""
    files = {name: output / f"{key}-{name}.folded" for name in daemons}
    command = (PROGRAMS / "py-spy", "record", "--rate", str(SAMPLES_PER_S), "--format", "raw",
               "--nonblocking", "--duration", "unlimited")  # fmt: skip
    with attached([
        [*command, "--pid", str(pid), "--output", files[name]] for name, pid in daemons.items()
    ]):  # fmt: skip
        yield
    for name, path in files.items():
        found[name] = Counter()
        for line in path.read_text().splitlines() if path.exists() else ():
            stack, _, count = line.rpartition(" ")
            found[name][stack.rpartition(";")[2]] += int(count)


@contextmanager
def counting(
    daemons: dict[str, int], output: Path, key: str, found: dict[str, Counter[str]]
) -> Iterator[None]:
    """Afterwards ``found``: for each daemon the calls of each kind."""
    files = {name: output / f"{key}-{name}.syscalls" for name in daemons}
    with attached([
        ["strace", "-f", "-c", "-p", str(pid), "-o", files[name]] for name, pid in daemons.items()
    ]):  # fmt: skip
        yield
    for name, path in files.items():
        found[name] = Counter()
        for line in path.read_text().splitlines():
            row = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
            if row and row[2] != "total":
                found[name][row[2]] = int(row[1])


@contextmanager
def attached(commands: Sequence[Sequence[str | Path]]) -> Iterator[None]:
    """These watchers have attached; SIGINT ends them, and they write what they have."""
    watchers = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
        for command in commands
    ]  # fmt: skip
    try:
        for watcher in watchers:
            # Both say something as soon as they have attached.
            assert watcher.stdout is not None
            spoke, _, _ = select.select([watcher.stdout], [], [], WATCHER_TIMEOUT_S)
            said = os.read(watcher.stdout.fileno(), 4096) if spoke else b""
            if not said or watcher.poll() is not None:
                raise SystemExit(f"profile: {watcher.args!r} did not attach: {said.decode()}")
        yield
    finally:
        for watcher in watchers:
            watcher.send_signal(signal.SIGINT)
        for watcher in watchers:
            watcher.communicate(timeout=WATCHER_TIMEOUT_S)


def sleeps(pid: int) -> int:
    """How often the process's threads gave up a CPU to wait for something (proc(5))."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            found = re.search(
                r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.MULTILINE
            )
        except OSError:
            continue  # that thread ended
        total += int(found[1]) if found else 0
    return total


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/profile",
        description="Where PyDi's daemons spend their time under each row of the comparison.",
    )
    parser.add_argument("--rows", nargs="+", choices=KEYS, default=KEYS, metavar="ROW",
                        help=f"of {' '.join(KEYS)} (default: all)")  # fmt: skip
    parser.add_argument("--scale", type=work.parse_scale, default=0.2,
                        help="how much work, as for compare (default %(default)g)")  # fmt: skip
    parser.add_argument("--syscalls", action="store_true",
                        help="count system calls (strace) instead of sampling")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR",
                        default=Path(tempfile.gettempdir()) / "pydi-profiles",
                        help="for whole stacks (default %(default)s)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
