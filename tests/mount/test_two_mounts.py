"""Programs on two mounts of one cluster that share a file by appending and by locks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, World
from tests.harness.procs import wait_until

LOCK_DEADLINE_S = 60.0

# Tries to lock its first argument in the way of the second: exit code 7 when somebody else has it.
TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try: getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: sys.exit(7)
"""

APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(60):
    os.write(fd, f"{sys.argv[2]} {number} ".encode().ljust(99, b".") + b"\\n")
    if number % 5 == 4: os.fsync(fd)
os.close(fd)
"""

HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


# Counts in a database, with pauses in which others can have it.
COUNT = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for _ in range(8):
    database.execute("BEGIN IMMEDIATE")
    (count,) = database.execute("SELECT count FROM counter").fetchone()
    database.execute("UPDATE counter SET count = ?", (count + 1,))
    database.execute("COMMIT")
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def second(world: World, tmp_path: Path, usable_driver: str) -> Iterator[MountProcess]:
    """Another mount of the world's node, with a daemon of its own."""
    mount = MountProcess(tmp_path / "second", world.node.data_dir, usable_driver)
    try:
        mount.start()
        yield mount
    finally:
        mount.close()


def python(code: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def locked_by_another(path: Path, style: str) -> bool:
    done = subprocess.run(python(TRY_LOCK, path, style), check=False, timeout=COMMAND_DEADLINE_S)
    assert done.returncode in (0, 7)
    return done.returncode == 7


def test_appends_of_two_mounts_land_whole(world: World, second: MountProcess) -> None:
    """open(2), O_APPEND: of two programs that append at the same time, every line is there, whole,
    and in each program's order."""
    (world.path / "log").touch()
    writers = [
        subprocess.Popen(python(APPEND, folder / "log", name))
        for folder, name in ((world.path, "a"), (second.path, "b"))
    ]
    assert [writer.wait(COMMAND_DEADLINE_S) for writer in writers] == [0, 0]
    for folder in (world.path, second.path):
        lines = (folder / "log").read_text().splitlines()
        assert len(lines) == 120
        for name in "ab":
            own = [line for line in lines if line[0] == name]
            assert own == [f"{name} {number} ".ljust(99, ".") for number in range(60)]


def test_exclusive_create_on_two_mounts(world: World, second: MountProcess) -> None:
    """open(2), O_EXCL: each name is made by exactly one of two mounts that race for it."""
    code = (
        "import os, sys\n"
        "for number in range(40):\n"
        "    try: os.close(os.open(f'{sys.argv[1]}/{number}', os.O_CREAT | os.O_EXCL, 0o600))\n"
        "    except FileExistsError: continue\n"
        "    print(number)\n"
    )
    racers = [
        subprocess.Popen(python(code, folder), stdout=subprocess.PIPE, text=True)
        for folder in (world.path, second.path)
    ]
    won = [set(racer.communicate(timeout=COMMAND_DEADLINE_S)[0].split()) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert not won[0] & won[1]
    assert won[0] | won[1] == {str(number) for number in range(40)}


@pytest.mark.parametrize("style", ["lockf", "flock"])
def test_locks_hold_on_every_mount_and_end_with_a_killed_one(
    world: World, second: MountProcess, style: str
) -> None:
    """A lock taken on one mount is refused on the other; a mount that is killed gives it back."""
    (world.path / "file").touch()
    with subprocess.Popen(
        python(HOLD_LOCK, second.path / "file", style),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert locked_by_another(world.path / "file", style)
        os.kill(second.pid, signal.SIGKILL)
        wait_until(
            lambda: not locked_by_another(world.path / "file", style),
            "the lock of a killed mount is free",
            LOCK_DEADLINE_S,
        )
        holder.kill()


def test_a_database_is_shared(world: World, second: MountProcess, usable_driver: str) -> None:
    """SQLite on two mounts, two programs on each: no transaction is lost, and none fails, while a
    mount that has the file for itself gives out its locks and is asked for them again."""
    if usable_driver != "kernel":
        pytest.skip("libfuse 2 can't drop pages of a file that stays open")
    database = sqlite3.connect(world.path / "database", isolation_level=None)
    database.execute("CREATE TABLE counter (count INTEGER)")
    database.execute("INSERT INTO counter VALUES (0)")
    database.close()
    programs = [
        subprocess.Popen(python(COUNT, path / "database", pause_s))
        for path, pause_s in (
            (world.path, "0"), (world.path, "0.1"), (second.path, "0.2"), (second.path, "0.1"),
        )
    ]  # fmt: skip
    for program in programs:
        assert program.wait(LOCK_DEADLINE_S) == 0
    for path in (world.path, second.path):
        database = sqlite3.connect(path / "database")
        assert database.execute("SELECT count FROM counter").fetchone() == (32,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
