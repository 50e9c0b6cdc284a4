"""Directories that are delegated to a mount, on two mounts of two nodes: nobody can tell.

What is asked of which node is in tests/node/test_pending_creates.py; here are programs, kernels,
and processes that die.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Lookup
from tests.harness.mounts import COMMAND_DEADLINE_S, World
from tests.harness.procs import wait_until
from tests.mount.test_supervised import kill_worker, supervised
from tests.mount.test_two_nodes import Pair, pair, two

__all__ = ["pair", "supervised", "two"]

# Creates each name exclusively; prints those that it got.
TAKE = """
import os, sys
for number in range(int(sys.argv[2])):
    name = os.path.join(sys.argv[1], str(number))
    try: fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError: continue
    os.write(fd, sys.argv[3].encode())
    os.close(fd)
    print(number)
"""
TAKEN = 150


def wait_delegated(directory: Path) -> None:
    """Files that are made in there one after the other make the mount ask for it."""
    for _ in range(20):
        (directory / "probe").touch(exist_ok=False)
        (directory / "probe").unlink()


def test_a_new_file_is_seen_at_once(two: tuple[Path, Path]) -> None:
    """Open and unwritten on one mount; by stat, open, listing and O_EXCL on the other."""
    for look in ("stat", "open", "list", "O_EXCL", "unlink"):
        here, there = two[0] / look, two[1] / look
        here.mkdir()
        wait_delegated(here)
        with (here / "new").open("xb", buffering=0) as file:
            if look == "stat":
                assert (there / "new").stat().st_ino == os.fstat(file.fileno()).st_ino
            elif look == "open":
                assert (there / "new").read_bytes() == b""
            elif look == "list":
                assert os.listdir(there) == ["new"]
            elif look == "O_EXCL":
                with pytest.raises(FileExistsError):
                    (there / "new").open("xb")
            else:
                (there / "new").unlink()
                assert os.fstat(file.fileno()).st_nlink == 0
                assert not (here / "new").exists()
                continue
            file.write(b"content")
        assert (there / "new").read_bytes() == b"content"


def test_absences_that_were_known_before_are_forgotten(two: tuple[Path, Path]) -> None:
    """The other mount, and its kernel, know that the name is not there."""
    here, there = two[0] / "d", two[1] / "d"
    here.mkdir()
    for number in range(10):
        assert not (there / f"{number}").exists()
        wait_delegated(here)
        with (here / f"{number}").open("xb"):
            assert (there / f"{number}").exists()


def test_of_all_who_create_a_name_exclusively_one_wins(two: tuple[Path, Path]) -> None:
    """Two programs on each mount want the same names, in a directory that one mount has made."""
    here, there = two[0] / "d", two[1] / "d"
    here.mkdir()
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, at, str(TAKEN), str(number)],
            stdout=subprocess.PIPE, text=True,
        )
        for number, at in enumerate((here, here, there, there))
    ]  # fmt: skip
    taken = []
    for number, program in enumerate(programs):
        output, _ = program.communicate(timeout=4 * COMMAND_DEADLINE_S)
        assert program.returncode == 0
        names = output.split()
        taken += names
        for at in (here, there):
            assert all((at / name).read_text() == str(number) for name in names)
    assert sorted(taken) == sorted(str(number) for number in range(TAKEN))


@pytest.mark.parametrize("stopped", ["mount", "node"])
@pytest.mark.expects_log("has not answered for .* connection dropped")
def test_others_get_a_directory_back_from_who_does_not_answer(
    pair: Pair, two: tuple[Path, Path], stopped: str
) -> None:
    """The daemon of the holder, or its node, is stopped with files that only it knows of. Whoever
    wants one of their names gets an answer, within the time that a person waits."""
    here, there = two[0] / "d", two[1] / "d"
    here.mkdir()
    wait_delegated(here)
    process = pair.nodes[0].process
    assert process is not None
    pids = sorted(pair.mounts[0].pids()) if stopped == "mount" else [process.pid]
    file = (here / "new").open("xb", buffering=0)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            (there / "new").write_bytes(b"theirs")
            there.joinpath("other").mkdir()
            took_s = time.monotonic() - began_s
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert took_s < 10.0
        wait_until(lambda: (here / "other").is_dir(), "it goes on", COMMAND_DEADLINE_S)
        assert (here / "new").read_bytes() == b"theirs"
    finally:
        try:
            file.close()
            said = 0
        except OSError as exc:
            said = exc.errno
    # A stopped mount has lost the file to whoever came first. One whose node is stopped tells
    # another node of it, maybe in time.
    assert said in ((errno.ESTALE,) if stopped == "mount" else (0, errno.ESTALE))


def test_a_mount_may_be_told_to_hold_nothing(make_world: Callable[..., World]) -> None:
    """Then the cluster knows of a file when open(2) returns, whatever becomes of the mount."""
    world = make_world("-o", "delegations=never")
    try:
        (world.path / "d").mkdir()
        wait_delegated(world.path / "d")
        pids = sorted(world.mount.pids())
        with (world.path / "d/new").open("xb") as file, world.node.connect() as client:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                directory = client.call(Lookup(ROOT_INO, b"d")).ino
                found = client.call(Lookup(directory, b"new")).ino
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            assert found == os.fstat(file.fileno()).st_ino
    finally:
        world.close()


def test_a_killed_worker_loses_nothing(supervised: World) -> None:
    """Its successor knows of what it had created and told nobody; programs notice nothing."""
    directory = supervised.path / "d"
    directory.mkdir()
    wait_delegated(directory)
    for round_ in range(3):
        files = [(directory / f"{round_}-{number}").open("xb", buffering=0) for number in range(20)]
        inos = [os.fstat(file.fileno()).st_ino for file in files]
        for number, file in enumerate(files[:10]):
            file.write(b"before %d " % number)
        kill_worker(supervised.mount)
        for number, file in enumerate(files):
            file.write(b"after %d" % number)
            file.close()
        for number, ino in enumerate(inos):
            path = directory / f"{round_}-{number}"
            assert path.stat().st_ino == ino
            before = b"before %d " % number if number < 10 else b""
            assert path.read_bytes() == before + b"after %d" % number
        with (directory / f"{round_}-0").open("ab") as again:
            again.write(b"!")
        assert (directory / f"{round_}-0").read_bytes().endswith(b"!")


def change_all(directory: Path, name: str) -> None:
    """Changes of each kind that a mount makes by itself, each building on those before it."""
    for number in range(10):
        (directory / f"{name}-{number}").write_text(f"{number}")
    for number in range(5):
        (directory / f"{name}-{number}").rename(directory / f"{name}-{number + 5}")
    (directory / name).mkdir()
    (directory / name / "link").symlink_to("..")
    for number in range(5, 9):
        (directory / f"{name}-{number}").rename(directory / name / f"{number}")
    (directory / f"{name}-9").unlink()
    (directory / name / "short").mkdir()
    (directory / name / "short").rmdir()


def check_all(directory: Path, name: str) -> None:
    assert sorted(os.listdir(directory / name)) == ["5", "6", "7", "8", "link"]
    assert [path for path in os.listdir(directory) if path.startswith(f"{name}-")] == []
    for number in range(5, 9):
        assert (directory / name / f"{number}").read_text() == f"{number - 5}"
    assert os.readlink(directory / name / "link") == ".."
    assert directory.joinpath(name).stat().st_nlink == 2


def test_changes_of_names_are_seen_at_once(two: tuple[Path, Path]) -> None:
    """Made on one mount without asking anybody, shown by the other; and then the other way."""
    for round_ in range(3):
        for here, there in (two, two[::-1]):
            directory = here / f"{round_}-{here == two[0]}"
            directory.mkdir()
            wait_delegated(directory)
            change_all(directory, "d")
            check_all(there / directory.name, "d")
            check_all(directory, "d")


def test_a_killed_worker_has_told_of_all_changes(supervised: World) -> None:
    """Its successor does what it had answered, once; programs notice nothing."""
    directory = supervised.path / "changes"
    directory.mkdir()
    wait_delegated(directory)
    for name in ("first", "second", "third"):
        change_all(directory, name)
        kill_worker(supervised.mount)
        check_all(directory, name)
