"""What programs notice when a server is killed.

``python failure.py write|read DIR LOG`` is such a program.

`measure`, called by `__main__`, starts a writer and a reader as processes of their own, kills one
server's daemons with SIGKILL and looks at the programs' logs: how long the writer's longest pause
was, and how long it took until content that no cache held could be read.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scripts.comparison.systems import System

BEAT_S = 0.05  # one write and one read, each
STEADY_BEATS = 10  # before the kill
AFTER_BEATS = 20  # programs are left alone when they have done so many after it
PATIENCE_S = 30.0  # or when they could do nothing for so long
KILL_TIMEOUT_S = 2.0
FILES = 120  # more than the reader gets through, also beside a slow writer
CONTENT = bytes(4096)


class Pause(NamedTuple):
    """What both programs met after the kill of one server."""

    system: str
    server: int
    write_s: float  # longest time that one save took, with its retries; at least PATIENCE_S: never
    read_s: float  # the same for one read of a file that nobody has read before
    errors: int  # calls that failed meanwhile


def measure(systems: Sequence[System], say: Callable[[str], None]) -> Iterator[Pause]:
    """The first machine's server, where the mount is, and the last one's, for each system."""
    for system in systems:
        for server in sorted({system.servers[0], system.servers[-1]}) if system.servers else ():
            say(f"kill -9 of server {server} of {system.name}")
            yield _kill(system, server)
            system.start_server(server)
            # Whatever the mount has gone through, the next victim meets a fresh one.
            system.remount()


def _kill(system: System, server: int) -> Pause:
    folder = system.path / f"killed{server}"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"read{number}").write_bytes(CONTENT)
    system.remount()
    log = system.path.parent / f"killed{server}"
    with _program("write", folder, log) as wrote, _program("read", folder, log) as did_read:
        _wait(lambda: min(len(wrote()), len(did_read())) >= STEADY_BEATS)
        killed_at = time.monotonic()
        system.kill_server(server)

        def have_gone_on() -> bool:
            counts = [sum(line.end > killed_at for line in log()) for log in (wrote, did_read)]
            return min(counts) >= AFTER_BEATS

        _wait(have_gone_on)
        ended_at = time.monotonic()
    figures = []
    for lines in (wrote(), did_read()):
        after = [line for line in lines if line.end > killed_at]
        # What had not come back when we stopped waiting counts with the time it had taken by then.
        last = after[-1].end if after else killed_at
        figures.append(max([ended_at - last, *(line.end - line.start for line in after)]))
    errors = sum(line.errors for log in (wrote, did_read) for line in log())
    return Pause(system.name, server, figures[0], figures[1], errors)


class Line(NamedTuple):
    """One beat of a program: monotonic times of its first try and of its success."""

    start: float
    end: float
    errors: int


@contextmanager
def _program(role: str, folder: Path, log: Path) -> Iterator[Callable[[], list[Line]]]:
    """Runs it; gives what it has logged so far, also after its end."""
    path = log.with_suffix(f".{role}")

    def lines() -> list[Line]:
        whole = path.read_text().splitlines() if path.exists() else []
        return [Line(float(a), float(b), int(c)) for a, b, c in map(str.split, whole)]

    process = subprocess.Popen([sys.executable, "-I", __file__, role, folder, path],
                               stdin=subprocess.DEVNULL)  # fmt: skip
    try:
        yield lines
    finally:
        process.kill()
        try:
            process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # in a call that returns when the server is there again, and with it the process


def _wait(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < end:
        time.sleep(BEAT_S)


# --- the programs --------------------------------------------------------------------------------


def save(folder: str, number: int) -> None:
    fd = os.open(f"{folder}/written{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, CONTENT)
        os.fsync(fd)
    finally:
        os.close(fd)


def load(folder: str, number: int) -> None:
    fd = os.open(f"{folder}/read{number % FILES}", os.O_RDONLY)
    try:
        if os.read(fd, 2 * len(CONTENT)) != CONTENT:
            raise OSError("not what was written")
    finally:
        os.close(fd)


def beat(action: Callable[[str, int], None], folder: str, log: str) -> None:
    """Does the action again and again; a failed one is tried until it succeeds."""
    with open(log, "w", buffering=1) as file:
        for number in itertools.count():
            start = time.monotonic()
            errors = 0
            while True:
                try:
                    action(folder, number)
                    break
                except OSError:
                    errors += 1
                    time.sleep(BEAT_S)
            end = time.monotonic()
            file.write(f"{start} {end} {errors}\n")
            time.sleep(max(0.0, start + BEAT_S - end))


if __name__ == "__main__":
    beat({"write": save, "read": load}[sys.argv[1]], sys.argv[2], sys.argv[3])
