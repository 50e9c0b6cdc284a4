"""``scripts/bench --copies N``: N small files by `pydi put -r` and `get -r`, against cp -r on a
mount of the same node, turn by turn.

What it is for: a client without a mount must not be much slower than one with it, and its memory
must not follow the number of files. Each copy's processor time stands beside its time, for that a
busy machine does not change; the node's is in the same line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILES_PER_FOLDER = 100
FILE_BYTES = 1024
PEAK_POLL_S = 0.01


class Copy(NamedTuple):
    """One copy of the whole tree."""

    what: str  # "put -r", "cp -r in", "get -r", "cp -r out"
    seconds: float
    own_cpu_s: float  # of the program that copies
    daemons_cpu_s: dict[str, float]  # by process
    peak_mib: float  # of the program that copies


def make(source: Path, count: int) -> None:
    """``count`` files below ``source``, a hundred in each folder."""
    for number in range(count):
        path = source / f"{number // FILES_PER_FOLDER:04d}" / f"{number:06d}"
        if number % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(FILE_BYTES))


def copies(
    work: Path, data_dir: Path, mount: Path, pids: dict[str, int], rounds: int
) -> Iterator[Copy]:
    """Every copy of every round of ``work / "source"``, in and out."""
    pydi = [str(Path(sys.executable).parent / "pydi")]
    where = ["--data-dir", str(data_dir)]
    source, out = str(work / "source"), work / "out"
    for number in range(rounds):
        kinds = [
            ("put -r", [*pydi, "put", "-r", source, f"/put{number}", *where]),
            ("cp -r in", ["cp", "-r", source, str(mount / f"cp{number}")]),
            ("get -r", [*pydi, "get", "-r", f"/put{number}", str(out), *where]),
            ("cp -r out", ["cp", "-r", str(mount / f"cp{number}"), str(out)]),
        ]
        # Whoever goes first in one round goes second in the next.
        for first in (0, 2):
            pair = kinds[first : first + 2]
            for what, command in pair if number % 2 == 0 else pair[::-1]:
                yield _run(what, command, pids)
                if out.exists():
                    shutil.rmtree(out)


def _run(what: str, command: list[str], pids: dict[str, int]) -> Copy:
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    process = subprocess.Popen(command)
    peak_mib = 0.0
    # Of its own: what wait4 tells as the peak begins with that of the process that started it.
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        peak_mib = max(peak_mib, _peak_mib(process.pid))
        time.sleep(PEAK_POLL_S)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Copy(
        what,
        time.perf_counter() - began,
        usage.ru_utime + usage.ru_stime,
        {name: _cpu_s(pid) - before[name] for name, pid in pids.items()},
        peak_mib,
    )


def _peak_mib(pid: int) -> float:
    """VmHWM; 0 once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
