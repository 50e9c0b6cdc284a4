"""Who does what when: rounds of the same rows on every system, turn by turn.

Called by `__main__`. Within a round all systems do one row before any does the next, and who went
first in one round goes last in the next: a machine that gets busy slows all of them. Between the
phases "write" and "cold" every daemon is stopped and started, and the kernel's caches are dropped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.comparison import work
from scripts.comparison.systems import System, cpu_seconds, memory_bytes

ROW_TIMEOUT_S = 1800.0
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Sample(NamedTuple):
    """One row, once, on one system."""

    system: str
    row: str
    round: int
    amount: int  # operations; bytes where the unit of the row is MiB/s
    seconds: float
    cpu_seconds: float  # of all daemons of the system while the row ran
    memory_bytes: int  # of all its daemons right after


def run(
    systems: Sequence[System],
    rows: Sequence[work.Row],
    rounds: int,
    sources: Path,
    scale: float,
    say: Callable[[str], None],
) -> Iterator[Sample]:
    """Sample by sample. SystemExit names the row and the system that failed."""
    for number in range(rounds):
        order = list(systems) if number % 2 == 0 else list(systems)[::-1]
        for system in order:
            (system.path / f"round{number}").mkdir()
        for phase in work.PHASES:
            if phase == "cold":
                for system in order:
                    say(f"round {number + 1}: {system.name} starts anew")
                    system.chill()
                drop_caches()
            for row in rows:
                if row.phase != phase:
                    continue
                for system in order:
                    say(f"round {number + 1}: {row.title}: {system.name}")
                    yield _sample(system, row, number, sources, scale)
        for system in order:
            shutil.rmtree(system.path / f"round{number}")


def _sample(system: System, row: work.Row, number: int, sources: Path, scale: float) -> Sample:
    directory = system.path / f"round{number}"
    if row.phase == "warm":
        _work(row, system, directory, sources, scale)
    pids = system.pids()
    cpu = cpu_seconds(pids)
    figure = _work(row, system, directory, sources, scale)
    return Sample(
        system=system.name,
        row=row.key,
        round=number,
        amount=figure["amount"],
        seconds=figure["seconds"],
        cpu_seconds=round(cpu_seconds(pids) - cpu, 3),
        memory_bytes=memory_bytes(pids),
    )


def _work(
    row: work.Row, system: System, directory: Path, sources: Path, scale: float
) -> dict[str, Any]:
    try:
        done = subprocess.run(
            work.command_line(row, directory, sources, scale),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ROW_TIMEOUT_S,
            check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as exc:
        raise SystemExit(f"compare: {row.title} on {system.name}: {exc.stderr.strip()}") from exc
    except subprocess.TimeoutExpired as exc:
        limit = f"not done after {ROW_TIMEOUT_S:.0f} s"
        raise SystemExit(f"compare: {row.title} on {system.name}: {limit}") from exc
    figure: dict[str, Any] = json.loads(done.stdout)
    return figure


def drop_caches() -> None:
    """Everything the kernel can read again: pages, names, inodes (proc(5))."""
    os.sync()
    DROP_CACHES.write_text("3\n")
