"""The process that serves a mount dies or hangs: programs with open files go on without an error.

Everything here runs over the kernel driver; libfuse keeps its mount to one process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydi_fs.mountpoints import mounted_at
from pydi_fs.restart_policy import HEALTHY_S, SHORT_LIVES_MAX
from pydi_fs.supervisor import is_possible
from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, World, pydi_mount
from tests.harness.procs import (
    ROOT,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    environment,
    wait_until,
)

LOAD = Path(__file__).with_name("load_of_everything.py")
PIDFD_GETFD = 438  # of pidfd_getfd(2), on every machine
PROGRAMS = 3
KILLS = 12

# Tries to lock a file: exit code 7 when somebody else has it.
TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try: getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: sys.exit(7)
"""

# Opens a file and says so; syncs it when told to: exit code 7 for an error.
SYNCS_WHEN_TOLD = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print(flush=True)
sys.stdin.read()
try: os.fsync(fd)
except OSError: os._exit(7)
"""


@pytest.fixture
def supervised(make_world: Callable[..., World], usable_driver: str) -> Iterator[World]:
    """A mount of this test alone, whose files are passed through as soon as they are at rest."""
    if usable_driver != "kernel":
        pytest.skip("only the kernel driver has a supervisor")
    if not is_possible():
        pytest.skip("restart under open files needs Linux 6.9")
    world = make_world("-o", "passthrough_after=0")
    yield world
    world.close()


def kill_worker(mount: MountProcess, number: signal.Signals = signal.SIGKILL) -> None:
    """The next request finds nobody."""
    worker = mount.worker
    assert worker is not None
    os.kill(worker, number)


def locked_by_another(path: Path, style: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", TRY_LOCK, path, style], check=False, timeout=COMMAND_DEADLINE_S
    )
    assert done.returncode in (0, 7)
    return done.returncode == 7


def test_programs_at_work_notice_nothing(supervised: World) -> None:
    """Three programs do everything that a folder can while the worker is killed again and again, at
    any moment: no error, every file as it must be, every change exactly once."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    counter = supervised.path / "counter"
    counter.write_bytes(b"%020d" % 0)
    programs = [
        subprocess.Popen(
            [sys.executable, LOAD, supervised.path, str(seed + number), counter],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(PROGRAMS)
    ]  # fmt: skip
    killed: set[int] = set()
    lived_s = 0.0
    while len(killed) < KILLS and all(program.poll() is None for program in programs):
        # More than a few short lives in a row would end the mount.
        is_pause = len(killed) % (SHORT_LIVES_MAX - 2) == SHORT_LIVES_MAX - 3
        lived_s = HEALTHY_S + 0.6 if is_pause else chance.random() * 0.3
        end_s = time.monotonic() + lived_s
        wait_until(lambda end_s=end_s: time.monotonic() >= end_s, "a moment", 60)
        worker = supervised.mount.worker
        if worker is not None and worker not in killed:
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
    increments = 0
    for program in programs:
        output, errors = program.communicate("", timeout=COMMAND_DEADLINE_S)
        assert program.returncode == 0, errors
        increments += int(output.split()[1])
    assert len(killed) == KILLS
    assert int(counter.read_bytes()) == increments


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_open_files_go_on(supervised: World, number: signal.Signals) -> None:
    """What was written and not closed yet, a little and a lot, an appended line, an unlinked file,
    a listing half read, a file of the past: all of it goes on where it was."""
    folder = supervised.path
    large = random.randbytes(3 << 20)
    (folder / "old").write_bytes(b"of then")
    then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
    past = os.open(folder / ".pydi/at" / then / "old", os.O_RDONLY)
    flags = os.O_RDWR | os.O_CREAT
    small = os.open(folder / "small", flags)
    big = os.open(folder / "big", flags)
    log = os.open(folder / "log", flags | os.O_APPEND)
    gone = os.open(folder / "gone", flags)
    os.write(small, b"small, ")
    os.write(big, large)
    os.write(log, b"one\n")
    os.write(gone, b"no name")
    os.unlink(folder / "gone")
    (folder / "many").mkdir()
    names = {f"{number:0200}" for number in range(250)}  # more than one read takes
    for name in names:
        (folder / "many" / name).touch()
    listing = os.scandir(folder / "many")
    seen = {next(listing).name for _ in range(10)}

    kill_worker(supervised.mount, number)
    os.write(small, b"and more")
    os.pwrite(big, b"changed", 1 << 20)
    os.write(log, b"two\n")
    os.write(gone, b", still here")
    assert os.pread(small, 100, 0) == b"small, and more"
    assert os.pread(gone, 100, 0) == b"no name, still here"
    assert os.fstat(gone).st_nlink == 0
    assert os.pread(past, 100, 0) == b"of then"
    seen |= {entry.name for entry in listing}
    for fd in (small, big, log, gone, past):
        os.close(fd)

    assert seen == names
    assert (folder / "small").read_bytes() == b"small, and more"
    changed = large[: 1 << 20] + b"changed" + large[(1 << 20) + 7 :]
    assert (folder / "big").read_bytes() == changed
    assert (folder / "log").read_bytes() == b"one\ntwo\n"
    supervised.mount.unmount()
    assert supervised.mount.pids() == []


@pytest.mark.parametrize("style", ["lockf", "flock"])
def test_locks_stay_held(supervised: World, tmp_path: Path, style: str) -> None:
    """While one worker follows the other nobody on another mount gets a lock that is held here,
    also one that the worker gave out by itself; the close of its file gives it back."""
    path = supervised.path / "file"
    path.touch()
    second = MountProcess(tmp_path / "second", supervised.node.data_dir, "kernel")
    try:
        second.start()
        with open(path, "r+") as file:
            for _ in range(10):  # so often that the mount asks for the file
                getattr(fcntl, style)(file, fcntl.LOCK_UN)
                getattr(fcntl, style)(file, fcntl.LOCK_EX)
            kill_worker(supervised.mount)
            for _ in range(5):
                assert locked_by_another(second.path / "file", style)
            assert os.fstat(file.fileno()).st_size == 0, "the successor serves"
            assert locked_by_another(second.path / "file", style)
        assert not locked_by_another(second.path / "file", style)
    finally:
        second.close()


def test_a_listing_that_the_kernel_kept_is_not_the_successors(
    supervised: World, tmp_path: Path
) -> None:
    """A name that is made elsewhere while the worker hangs is there when another one has taken
    over, also through a directory that was open and listed before."""
    second = MountProcess(tmp_path / "second", supervised.node.data_dir, "kernel")
    (supervised.path / "folder").mkdir()
    fd = os.open(supervised.path / "folder", os.O_RDONLY)
    try:
        second.start()
        for _ in range(2):
            assert os.listdir(fd) == []
        kill_worker(supervised.mount, signal.SIGSTOP)
        (second.path / "folder" / "new").touch()
        kill_worker(supervised.mount)
        assert os.listdir(supervised.path / "folder") == ["new"]
        assert os.listdir(fd) == ["new"]
    finally:
        os.close(fd)
        second.close()


def test_passthrough_goes_on(supervised: World) -> None:
    """Who reads a file past the worker does so while there is none; who writes it then gets a file
    of its own, and readers the new content at their next open."""
    path = supervised.path / "file"
    path.write_bytes(b"content" * 10_000)
    with open(path, "rb", buffering=0) as reader:
        assert reader.read(7) == b"content"
        kill_worker(supervised.mount)
        assert reader.read(7) == b"content"
        with open(path, "r+b") as writer:
            writer.write(b"CONTENT")
        assert os.pread(reader.fileno(), 7, 0) == b"content"
        assert path.read_bytes()[:14] == b"CONTENTcontent"
    kill_worker(supervised.mount)
    assert path.read_bytes()[:14] == b"CONTENTcontent"


def test_changes_made_elsewhere_meanwhile_are_seen(supervised: World, tmp_path: Path) -> None:
    """What the kernel remembered is forgotten when a successor takes over."""
    second = MountProcess(tmp_path / "second", supervised.node.data_dir, "kernel")
    try:
        second.start()
        here, there = supervised.path, second.path
        (here / "file").write_bytes(b"old")
        with open(here / "file", "rb", buffering=0) as reader:
            assert reader.read() == b"old"
            kill_worker(supervised.mount)
            (there / "file").write_bytes(b"newer")
            os.rename(there / "file", there / "moved")
            assert not (here / "file").exists()
            assert (here / "moved").stat().st_size == 5
            assert (here / "moved").read_bytes() == b"newer"
            # In passthrough the version that was opened; else the newest.
            assert os.pread(reader.fileno(), 100, 0) in (b"old", b"newer")
    finally:
        second.close()


def kill_until_given_up(mount: MountProcess) -> set[int]:
    """The workers that were killed until the supervisor started no more."""
    killed: set[int] = set()

    def is_gone() -> bool:
        worker = mount.worker
        if worker is not None and worker not in killed:
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
        return not mount.pids()

    wait_until(is_gone, "the supervisor gives up", START_DEADLINE_S)
    return killed


def test_a_crash_loop_ends(supervised: World) -> None:
    """Workers that die one after the other: no more of them after a few, the mount is gone, the log
    says why, and programs get an error."""
    mount = supervised.mount
    fd = os.open(supervised.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    killed = kill_until_given_up(mount)
    with pytest.raises(OSError):
        os.fsync(fd)
    with pytest.raises(OSError):
        os.close(fd)
    assert SHORT_LIVES_MAX < len(killed) <= SHORT_LIVES_MAX + 3
    assert not mount.is_mounted()
    assert "die one after the other" in mount.log_text
    mount.start()
    assert supervised.path.is_dir()


def test_who_still_holds_the_device_makes_nobody_wait(supervised: World) -> None:
    """/dev/fuse is open somewhere when the supervisor gives up, as when a thread of a dead worker
    is stuck in the kernel: a program with an open file gets its error all the same."""
    worker = supervised.mount.worker
    assert worker is not None
    links = Path(f"/proc/{worker}/fd").iterdir()
    number = next(int(link.name) for link in links if os.readlink(link) == "/dev/fuse")
    pidfd = os.pidfd_open(worker)
    held = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, number, 0)
    assert held >= 0, os.strerror(ctypes.get_errno())
    program = subprocess.Popen(
        [sys.executable, "-c", SYNCS_WHEN_TOLD, supervised.path / "file"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        program.stdout.readline()
        kill_until_given_up(supervised.mount)
        program.communicate(b"go", COMMAND_DEADLINE_S)
        assert program.returncode == 7
    finally:
        os.close(held)  # with the last one the kernel ends whatever waits
        os.close(pidfd)
        program.kill()
        program.wait()


def test_giving_up_leaves_what_is_mounted_over_it(supervised: World) -> None:
    """Somebody mounted another file system on the same folder: that is not ours to take away."""
    path = os.fspath(supervised.path)
    subprocess.run(["mount", "-t", "tmpfs", "over", path], check=True)
    (supervised.path / "other").touch()
    kill_until_given_up(supervised.mount)
    assert (supervised.path / "other").exists()
    assert "something else is mounted over it" in supervised.mount.log_text


def test_a_killed_supervisor_takes_its_worker_along(supervised: World) -> None:
    supervised.mount.kill()
    assert supervised.mount.pids() == []
    supervised.mount.start()
    assert supervised.mount.worker is not None


def held_of(pid: int, device: int) -> list[str]:
    """What the process has of the file system with that st_dev: descriptors, working directory,
    mappings. The files themselves are not asked: their daemon may be the one that is looked at."""
    number = f"{os.major(device)}:{os.minor(device)}"
    rows = [row.split() for row in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    (point,) = [row[4] for row in rows if row[2] == number]
    mounts = {f"mnt_id:\t{row[0]}" for row in rows if row[2] == number}
    infos = Path(f"/proc/{pid}/fdinfo").iterdir()
    held = [str(info) for info in infos if mounts & set(info.read_text().splitlines())]
    if os.readlink(f"/proc/{pid}/cwd").startswith(point):
        held.append("cwd")
    mapped = f" {os.major(device):02x}:{os.minor(device):02x} "
    return held + [
        row for row in Path(f"/proc/{pid}/maps").read_text().splitlines() if mapped in row
    ]


def test_daemons_hold_nothing_of_their_own_mount(supervised: World, tmp_path: Path) -> None:
    """It is mounted over the directory in which it is started, where its paths are relative to,
    standard output goes, and a file is open; then upgraded. A close(2) at the end of a process that
    holds a file of its own mount would wait for ever, and kill -9 would end nothing."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    mount = MountProcess(tmp_path, None, "kernel")
    data_dir = os.path.relpath(supervised.node.data_dir, folder)
    with open(folder / "output", "wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "pydi_fs", "--foreground", folder, "--report-fd",
             str(output.fileno()), "--data-dir", data_dir, "--cache-dir", "../cache"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[output.fileno()],
            cwd=folder, env={**environment(), "TMPDIR": os.fspath(folder)},
        )  # fmt: skip
    try:
        wait_until(lambda: mount.is_mounted() and mount.worker is not None, "it is mounted")
        mounted = mounted_at(os.fsencode(folder))
        assert mounted is not None
        (folder / "large").write_bytes(random.randbytes(1 << 20))
        for _ in range(2):
            done = pydi_mount(["--upgrade", str(folder)])
            assert (done.returncode, done.stderr) == (0, "")
            with open(folder / "larger", "wb") as file:
                file.write((folder / "large").read_bytes())
                for pid in mount.pids():
                    assert held_of(pid, mounted.device) == []
        worker = mount.worker
        assert worker is not None
        os.kill(daemon.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        daemon.wait(STOP_DEADLINE_S)
        wait_until(lambda: not mount.pids(), "both end")
    finally:
        mount.close()
        daemon.wait(STOP_DEADLINE_S)


def test_upgrade(supervised: World) -> None:
    """`pydi-mount --upgrade`: another process, newly started code, and the open file goes on; more
    than once, and the end is as clean as ever."""
    mount = supervised.mount
    supervisor = mount.pid
    fd = os.open(supervised.path / "file", os.O_RDWR | os.O_CREAT)
    workers = [mount.worker]
    for count in range(1, 3):
        os.write(fd, b"x")
        done = pydi_mount(["--upgrade", str(supervised.path)])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        workers.append(mount.worker)
        assert os.pread(fd, 10, 0) == b"x" * count
    os.close(fd)
    assert mount.pid == supervisor, "what watches this process loses it"
    assert len(set(workers)) == 3
    assert (supervised.path / "file").read_bytes() == b"xx"
    kill_worker(mount)
    assert (supervised.path / "file").read_bytes() == b"xx"
    mount.unmount()


def test_upgrade_of_what_is_no_supervised_mount(world: World, tmp_path: Path) -> None:
    """One sentence, and nothing happens."""
    done = pydi_mount(["--upgrade", str(tmp_path)])
    assert done.returncode == 1
    assert "not mounted" in done.stderr
    if world.driver == "fusepy":
        done = pydi_mount(["--upgrade", str(world.path)])
        assert done.returncode == 1
        assert "unmount it and mount it again" in done.stderr
        (world.path / "file").write_text("x")


def test_status_says_it(world: World) -> None:
    """`pydi status --json` shows which mounts are supervised."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pydi_fs.cli import main; sys.exit(main())",
         "status", "--json", "--data-dir", world.node.data_dir],
        check=True, capture_output=True, text=True, cwd=ROOT, timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    (mount,) = json.loads(done.stdout)["mounts"]
    assert mount["supervised"] is (world.driver == "kernel" and is_possible())
