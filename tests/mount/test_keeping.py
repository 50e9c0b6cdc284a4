"""What a kernel keeps beyond the lease is taken back in time, whichever process stops or dies.

Two mounts of one node: the first has looked at everything, and the second changes it while some
process of the first does not run. When that has returned, no look at the first mount may show what
was before: it waits for an answer, or shows what is.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from pydi_fs.supervisor import is_possible
from tests.harness.mounts import MountProcess, World
from tests.harness.procs import wait_until
from tests.mount.test_passthrough import log_of
from tests.mount.test_requests import requests

DEADLINE_S = 30.0
LATE_ROUNDS = 10
OLD, NEW = b"old", b"new, and longer"

_names = count(1)


@pytest.fixture
def two(make_world: Callable[..., World], usable_driver: str, tmp_path: Path) -> Iterator[
    tuple[World, MountProcess]
]:  # fmt: skip
    """A mount that logs its requests, and another one."""
    if usable_driver != "kernel" or not is_possible():
        pytest.skip("only a supervised mount of the kernel driver has a watch")
    world = make_world("--debug")
    second = MountProcess(tmp_path / "second", world.node.data_dir, "kernel")
    try:
        second.start()
        yield world, second
    finally:
        second.close()
        world.close()


class Folder:
    """A folder seen through two mounts, and every way to look at what is in it."""

    def __init__(self, first: Path, second: Path, holds: ExitStack) -> None:
        self.name = f"folder{next(_names)}"
        self.path, self.other = first / self.name, second / self.name
        (self.path / "directory").mkdir(parents=True)
        (self.path / "file").write_bytes(OLD)
        (self.path / "held").write_bytes(OLD)
        (self.path / "gone").write_bytes(OLD)

        def opened(name: str, flags: int) -> int:
            fd = os.open(self.path / name, flags)
            holds.callback(os.close, fd)
            return fd

        file = opened("held", os.O_RDONLY)
        by_path = opened("file", os.O_PATH)
        directory = opened("directory", os.O_RDONLY)
        above = opened(".", os.O_RDONLY)
        path = self.path
        # Each way to look, and whether what it gives is of before the change.
        self.looks: dict[str, Callable[[], bool]] = {
            "name": lambda: os.stat(path / "file").st_size == len(OLD),
            "open file": lambda: os.fstat(file).st_size == len(OLD),
            "O_PATH": lambda: os.fstat(by_path).st_size == len(OLD),
            "directory": lambda: os.fstat(directory).st_nlink == 2,
            "above": lambda: os.stat("..", dir_fd=directory).st_nlink == 3,
            "working directory": lambda: os.stat(".", dir_fd=above).st_nlink == 3,
            "absence": lambda: not os.path.exists(path / "made"),
            "presence": lambda: os.path.exists(path / "gone"),
            "listing": lambda: "made" not in os.listdir(path),
            "open listing": lambda: os.listdir(directory) == [],
        }

    def look(self) -> None:
        for name, is_old in self.looks.items():
            assert is_old(), name

    def change(self) -> None:
        (self.other / "file").write_bytes(NEW)
        (self.other / "held").write_bytes(NEW)
        (self.other / "gone").unlink()
        (self.other / "directory" / "inside").mkdir()
        (self.other / "made").mkdir()

    def begin_looks(self) -> Callable[[], dict[str, object]]:
        """All looks at the same time, for each may wait. -> what they gave, at their ends."""
        given: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

        def look(name: str) -> None:
            try:
                given.put((name, self.looks[name]()))
            except OSError as exc:
                given.put((name, exc.errno))

        threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in self.looks]
        for thread in threads:
            thread.start()
        return lambda: dict(given.get(timeout=DEADLINE_S) for _ in threads)

    def end_looks_new(self, looks: Callable[[], dict[str, object]]) -> None:
        assert {name: old for name, old in looks().items() if old is not False} == {}


@pytest.fixture
def folder(two: tuple[World, MountProcess]) -> Iterator[Folder]:
    world, second = two
    with ExitStack() as holds:
        folder = Folder(world.path, second.path, holds)
        wait_kept(world, folder)
        yield folder


def wait_kept(world: World, folder: Folder) -> None:
    """All that can be looked at is kept: two looks in a row cost nothing."""

    def is_kept() -> bool:
        return not (requests(world, folder.look) or requests(world, folder.look))

    wait_until(is_kept, "looks without requests", DEADLINE_S)


def stop(pid: int | None, number: signal.Signals = signal.SIGSTOP) -> None:
    assert pid is not None
    os.kill(pid, number)


def test_a_change_elsewhere_is_seen_at_once(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    folder.change()
    folder.end_looks_new(folder.begin_looks())


def test_own_changes_are_seen_as_everybody_sees_them(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    """What the kernel keeps of inodes that programs of this mount change, by whatever way: soon it
    is what the other mount has, also where it was looked at before and after."""
    path = folder.path

    def both(name: str) -> list[tuple[object, ...]]:
        seen = []
        for mounted in (folder.path, folder.other):
            st = os.lstat(mounted / name)
            seen.append((st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_size, st.st_blocks,
                         st.st_mtime_ns, st.st_ctime_ns))  # fmt: skip
        return seen

    def are_one() -> bool:
        names = [".", "directory", *os.listdir(path)]
        return all(here == there for here, there in map(both, names))

    def write() -> None:
        with open(path / "file", "r+b", buffering=0) as file:
            file.write(b"more than there was")
            os.fstat(file.fileno())
            file.write(b"!")
            os.fsync(file.fileno())
            os.stat(path / "file")

    changes: list[Callable[[], object]] = [
        write,
        lambda: (path / "file").chmod(0o600),
        lambda: os.link(path / "file", path / "second"),
        lambda: os.rename(path / "second", path / "third"),
        lambda: os.unlink(path / "third"),
        lambda: (path / "directory" / "below").mkdir(),
        lambda: (path / "directory" / "below").rename(path / "below"),
        lambda: (path / "new").write_bytes(b"new"),
        lambda: os.replace(path / "new", path / "file"),
        lambda: os.truncate(path / "file", 1),
        lambda: os.setxattr(path / "file", "user.a", b"a"),
        lambda: os.utime(path / "file", ns=(1, 2)),
        lambda: (path / "below").rmdir(),
    ]
    for number, change in enumerate(changes):
        change()
        folder.looks["listing"]()
        wait_until(are_one, f"both see change {number}", DEADLINE_S)


_LOOKER = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
directory = os.open(sys.argv[1], os.O_PATH)
while os.read(0, 1):
    os.fstat(directory)
    os.write(1, b".")
"""
_HOG = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while True:
    pass
"""


def test_an_answer_that_is_taken_in_late_is_not_kept(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    """A program comes to its answer late, since another one has its processor, and overwrites what
    the kernel knows since a change made here. That happens in some of these rounds."""
    world, _ = two
    path, other = folder.path / "directory", folder.other / "directory"
    with ExitStack() as ends:

        def start(program: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            )  # fmt: skip
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        looker = start(_LOOKER)
        asks, ended = looker.stdin, looker.stdout
        assert asks is not None
        assert ended is not None

        def begin_look() -> None:
            before = len(log_of(world.mount))
            asks.write(b".")
            wait_until(
                lambda: "GETATTR" in log_of(world.mount)[before:], "a look begins", DEADLINE_S
            )

        asks.write(b".")
        ended.read(1)
        start(_HOG)
        for number in range(LATE_ROUNDS):
            (other / f"there{number}").mkdir()
            # Now only the time of access is to be asked for, and that by no change.
            path.stat()
            os.listdir(path)
            begin_look()
            (path / f"here{number}").mkdir()
            assert ended.read(1)
            wait_until(
                lambda: os.stat(path).st_nlink == os.stat(other).st_nlink,
                f"both see directory {number}",
                DEADLINE_S,
            )


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is replaced"])
def test_a_stopped_worker_keeps_nothing_old(
    two: tuple[World, MountProcess], folder: Folder, goes_on: bool
) -> None:
    """The watch makes the kernel forget while the change waits for the lease; the looks wait for
    the worker, or its successor. The watch goes on also where a terminal stops them (Ctrl-Z)."""
    world, _ = two
    group = os.getpgid(world.mount.pid)
    assert group != os.getpgrp()
    if goes_on:
        os.killpg(group, signal.SIGSTOP)  # the supervisor too: it would kill a worker that hangs
    else:
        stop(world.mount.worker)
    folder.change()
    looks = folder.begin_looks()
    if goes_on:
        os.killpg(group, signal.SIGCONT)
    folder.end_looks_new(looks)
    folder.end_looks_new(folder.begin_looks())


def test_a_killed_worker_keeps_nothing_old(two: tuple[World, MountProcess], folder: Folder) -> None:
    world, _ = two
    stop(world.mount.worker, signal.SIGKILL)
    folder.change()
    folder.end_looks_new(folder.begin_looks())


def test_without_the_watch_time_outs_are_short_again(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    """A watch that is stopped is noticed by the worker; so a worker that stops later keeps nothing
    old. When it goes on, all is kept as before."""
    world, _ = two
    watch = world.mount.watch
    stop(watch)
    wait_until(
        lambda: sum(requests(world, folder.look).values()) > 5, "time-outs that end", DEADLINE_S
    )
    stop(world.mount.worker)
    folder.change()
    folder.end_looks_new(folder.begin_looks())
    stop(watch, signal.SIGCONT)
    wait_until(
        lambda: not requests(world, lambda: os.stat(folder.path / "file")), "kept", DEADLINE_S
    )


def test_the_watch_sleeps_by_a_clock_that_goes_on_in_suspend(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    """Else its time-out would end that much too late behind a machine's sleep. What the kernel says
    of its timer: timerfd_create(2), "/proc/pid/fdinfo"."""
    world, _ = two
    wait_kept(world, folder)
    timers = [
        dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        for file in Path(f"/proc/{world.mount.watch}/fdinfo").iterdir()
        if "clockid" in (text := file.read_text())
    ]
    assert [timer["clockid"] for timer in timers] == [str(time.CLOCK_BOOTTIME)], timers


def test_a_killed_watch_is_followed_by_another(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    world, _ = two
    before = world.mount.watch
    stop(before, signal.SIGKILL)
    wait_until(lambda: world.mount.watch not in (None, before), "another watch", DEADLINE_S)
    wait_kept(world, folder)
    stop(world.mount.worker)
    folder.change()
    folder.end_looks_new(folder.begin_looks())


def test_a_dead_mount_shows_nothing(two: tuple[World, MountProcess], folder: Folder) -> None:
    """The supervisor is killed, and its worker with it: what the kernel kept is not shown by a
    mount that nobody serves."""
    world, _ = two
    world.mount.kill()
    given = folder.begin_looks()()
    assert set(given.values()) <= {errno.ENOTCONN, errno.ECONNABORTED, True, False}
    for name in ("name", "open file", "O_PATH", "directory", "above", "working directory"):
        assert given[name] in (errno.ENOTCONN, errno.ECONNABORTED), (name, given[name])


def test_a_mount_that_was_killed_as_a_whole_is_found_dead(
    two: tuple[World, MountProcess], folder: Folder
) -> None:
    """Nobody was left to make the kernel forget: names and attributes are still shown by what no
    content can be had from. Who mounts there again is not taken in by them, nor is umount."""
    world, _ = two
    everybody = world.mount.watch, world.mount.worker, world.mount.pid
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none sees another one's end
        for pid in everybody:
            stop(pid, number)
    world.mount.wait_ended()
    assert folder.looks["name"](), "the kernel forgot by itself: this shows nothing"
    with pytest.raises(OSError) as caught:
        (folder.path / "file").read_bytes()
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    folder.change()
    world.mount.start()
    for name in ("name", "absence", "presence", "listing"):
        assert not folder.looks[name](), name
    world.mount.unmount()
    assert not world.mount.is_mounted(), "the dead mount was still below"
