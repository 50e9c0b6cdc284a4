"""Part of ``scripts/bench --mount``: open, read, close of files that are known already.

Two requests are left of it, OPEN and RELEASE, so this is what a request costs: the mount's own
work, and the wake-ups between program and mount. The latter depend on where both run. On one CPU
the kernel just switches; from one virtual CPU to another that sleeps, the wake-up costs several
times the request. So both are measured: mount and program on one CPU, and left to the scheduler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

KINDS = {"1 KiB": 1 << 10, "64 KiB": 1 << 16}  # small enough for the tree; a file of its own
FILES = 50


class Opens(NamedTuple):
    """``count`` times open, read of all, close."""

    what: str
    directory: Path
    count: int
    seconds: float
    mount_cpu_s: float  # meanwhile


def opens(directories: list[Path], mount_pid: int, count: int, rounds: int) -> Iterator[Opens]:
    """Each kind of file, on one CPU and not, in every directory in its turn.

    mount_pid  of the process that serves the mount.
    """
    made = {directory: _make(directory / "opens") for directory in directories}
    for number in range(rounds):
        for what, size in KINDS.items():
            for pinned in (True, False):
                name = f"open+read {what}+close, warm, {'one CPU' if pinned else 'any CPU'}"
                for directory in directories if number % 2 == 0 else directories[::-1]:
                    with _one_cpu((os.getpid(), mount_pid) if pinned else ()):
                        before = _cpu_s(mount_pid)
                        seconds = _open_all(made[directory][what], size, count)
                        cpu_s = _cpu_s(mount_pid) - before
                    yield Opens(name, directory, count, seconds, cpu_s)


def _make(directory: Path) -> dict[str, list[str]]:
    """Old files of each kind: a mount may read a file at rest in another way."""
    made: dict[str, list[str]] = {}
    for what, size in KINDS.items():
        (directory / what).mkdir(parents=True)
        made[what] = [str(directory / what / f"{number}") for number in range(FILES)]
        for path in made[what]:
            Path(path).write_bytes(os.urandom(size))
            os.utime(path, (0, 0))
    return made


def _open_all(paths: list[str], size: int, count: int) -> float:
    buffer = [bytearray(size)]
    for path in paths:  # from here on all is known
        _read(path, buffer, size)
    began = time.perf_counter()
    for number in range(count):
        _read(paths[number % FILES], buffer, size)
    return time.perf_counter() - began


def _read(path: str, buffer: list[bytearray], size: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    if os.readv(fd, buffer) != size:
        raise SystemExit(f"{path}: not all of it")
    os.close(fd)


@contextmanager
def _one_cpu(pids: tuple[int, ...]) -> Iterator[None]:
    """Keep all threads of these processes on one CPU."""
    before = {thread: os.sched_getaffinity(thread) for pid in pids for thread in _threads(pid)}
    try:
        for thread, cpus in before.items():
            os.sched_setaffinity(thread, {min(cpus)})
        yield
    finally:
        for thread, cpus in before.items():
            os.sched_setaffinity(thread, cpus)


def _cpu_s(pid: int) -> float:
    """Processor time of all threads, to the nanosecond."""
    schedstats = [Path(f"/proc/{pid}/task/{thread}/schedstat") for thread in _threads(pid)]
    return sum(int(schedstat.read_text().split()[0]) for schedstat in schedstats) / 1e9


def _threads(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
