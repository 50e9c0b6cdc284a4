"""`pydi-mount` as a person meets it: what it answers, when it returns, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.mounts import MountProcess, World, pydi_mount, why_unusable
from tests.harness.procs import ROOT, STOP_DEADLINE_S, environment, wait_until

FAILED, USAGE, UNREACHABLE = 1, 2, 3


def assert_refused(done: subprocess.CompletedProcess[str], exit_code: int, *parts: str) -> None:
    """One sentence on stderr that names what matters, the exit code, and no traceback."""
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith("pydi-mount: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


def test_usable_when_it_returns(world: World) -> None:
    """Exit code 0 means that the next command already works, and nothing was printed."""
    world.mount.unmount()
    done = world.mount.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (world.path / "file").write_text("at once")
    assert (world.path / "file").read_text() == "at once"


def test_daemon_is_detached(world: World) -> None:
    """The daemon has a session of its own, no terminal, and keeps no directory busy."""
    pid = world.mount.pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    for fd in (1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}").startswith(str(world.mount.cache_dir))


def test_mountpoint_missing_or_no_directory(world: World, tmp_path: Path) -> None:
    """A mount point that is not there, or a file, is named."""
    arguments = world.mount.arguments[1:]
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    assert_refused(pydi_mount([str(missing), *arguments]), FAILED, str(missing), "no such")
    assert_refused(pydi_mount([str(file), *arguments]), FAILED, str(file), "not a directory")


def test_second_mount_at_the_same_place(world: World) -> None:
    """A living mount is in the way and goes on undisturbed."""
    before = world.mount.pids()
    assert_refused(world.mount.run(), FAILED, str(world.path), "already mounted", "umount")
    (world.path / "file").write_text("x")
    assert world.mount.pids() == before


def test_no_node(usable_driver: str, tmp_path: Path) -> None:
    """Nobody serves the data directory: exit code 3 and what to do; nothing stays mounted."""
    mount = MountProcess(tmp_path, tmp_path / "nowhere", usable_driver)
    assert_refused(mount.run(), UNREACHABLE, "no node", "pydi-node")
    assert not mount.is_mounted()
    assert mount.pids() == []


def test_dead_node(world: World) -> None:
    """A node that was killed leaves its socket behind: still exit code 3, not a hang."""
    world.mount.unmount()
    world.node.kill()
    assert_refused(world.mount.run(), UNREACHABLE, "reached")
    assert world.mount.pids() == []


def test_wrong_usage(usable_driver: str, tmp_path: Path) -> None:
    """Usage errors are exit code 2, before anything is started."""
    assert_refused(pydi_mount([]), USAGE, "MOUNTPOINT")
    assert_refused(
        pydi_mount([str(tmp_path), "--driver", usable_driver, "--deadline", "soon"]),
        USAGE, "--deadline", "soon",
    )  # fmt: skip
    assert_refused(
        pydi_mount([str(tmp_path), "--driver", usable_driver], PYDI_CACHE_SIZE="huge"),
        USAGE, "PYDI_CACHE_SIZE",
    )  # fmt: skip


def test_files_below_the_mountpoint_are_hidden_not_harmed(world: World) -> None:
    """As with mount(8), the directory need not be empty."""
    world.mount.unmount()
    (world.path / "below").write_text("still here")
    world.mount.start()
    assert "below" not in os.listdir(world.path)
    world.mount.unmount()
    assert (world.path / "below").read_text() == "still here"


def test_dead_mount_is_replaced(world: World) -> None:
    """After kill -9 of the daemon the same command mounts again, without umount -l by hand."""
    (world.path / "file").write_text("kept")
    world.mount.kill()
    assert world.mount.is_mounted()
    world.mount.start()
    assert (world.path / "file").read_text() == "kept"
    world.mount.unmount()
    assert not world.mount.is_mounted(), "the dead mount was still below"


def test_mountpoint_with_odd_bytes(world: World, tmp_path: Path) -> None:
    """A mount point may have spaces, commas and bytes that are no UTF-8 in its name."""
    mount = MountProcess(tmp_path, world.node.data_dir, world.driver)
    mount.path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd , \\ \xff \xe2\x82\xac"))
    mount.path.mkdir()
    mount.arguments[0] = str(mount.path)
    try:
        mount.start()
        (mount.path / "file").write_text("x")
        assert (world.path / "file").read_text() == "x"
        mount.unmount()
    finally:
        mount.close()


def test_symbolic_link_as_mountpoint(world: World, tmp_path: Path) -> None:
    """A link to a directory is followed, as mount(8) does."""
    mount = MountProcess(tmp_path, world.node.data_dir, world.driver)
    link = tmp_path / "link"
    link.symlink_to(mount.path)
    mount.arguments[0] = str(link)
    (world.path / "file").write_text("x")
    try:
        assert mount.run().returncode == 0
        assert mount.is_mounted()
        assert (link / "file").read_text() == "x"
        subprocess.run(["umount", link], check=True)
        wait_until(lambda: not mount.is_mounted(), "unmounted", STOP_DEADLINE_S)
    finally:
        mount.close()
        for pid in _daemons_of(link):
            with contextlib.suppress(ProcessLookupError):  # a worker dies with its supervisor
                os.kill(pid, signal.SIGKILL)


def test_read_only(world: World) -> None:
    """--read-only: reading works, every change is EROFS."""
    (world.path / "file").write_text("x")
    world.mount.unmount()
    world.mount.arguments.append("--read-only")
    world.mount.start()
    assert (world.path / "file").read_text() == "x"
    for change in (
        lambda: (world.path / "file").write_text("y"),
        lambda: (world.path / "new").mkdir(),
        lambda: (world.path / "file").unlink(),
        lambda: (world.path / "file").chmod(0o600),
    ):
        with pytest.raises(OSError, match="Read-only"):
            change()


def test_options_from_the_environment_and_a_file(world: World) -> None:
    """Where to find the node may come from the environment, the rest from mount.toml there."""
    world.mount.unmount()
    (world.node.data_dir / "mount.toml").write_text(
        f'driver = "{world.driver}"\noptions = "ro,fsname=named,noatime"\n'
    )
    done = pydi_mount(
        [str(world.path)],
        PYDI_DATA_DIR=str(world.node.data_dir), PYDI_CACHE_DIR=str(world.mount.cache_dir),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = Path("/proc/mounts").read_text("utf-8", "surrogateescape")
    (line,) = [line for line in table.splitlines() if f" {world.path} " in line]
    assert line.startswith(f"named {world.path} fuse.pydi ro,")
    assert "noatime" in line.split()[3].split(",")
    world.mount.unmount()


def test_foreground_stays_and_ends_with_the_mount(world: World) -> None:
    """--foreground logs to stderr, ends with exit code 0 after umount, and after SIGTERM."""
    world.mount.unmount()
    for end in ("umount", "SIGTERM"):
        process = subprocess.Popen(
            [sys.executable, "-m", "pydi_fs", *world.mount.arguments, "--foreground"],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        with process:
            try:
                wait_until(world.mount.is_mounted, "it is mounted", STOP_DEADLINE_S)
                (world.path / end).write_text("x")
                if end == "umount":
                    subprocess.run(["umount", world.path], check=True)
                else:
                    process.terminate()
                assert process.wait(STOP_DEADLINE_S) == 0
            finally:
                process.kill()
            assert process.stderr is not None
            assert b"mounted at" in process.stderr.read()
        assert not world.mount.is_mounted()


def test_sigusr1_shows_stacks_and_harms_nothing(world: World) -> None:
    """SIGUSR1 writes the stacks of all threads to the log; the mount goes on."""
    world.mount.signal(signal.SIGUSR1)
    wait_until(lambda: "most recent call first" in world.mount.log_text, "stacks", STOP_DEADLINE_S)
    (world.path / "file").write_text("x")


def test_commands_at_the_same_time(world: World) -> None:
    """Two `pydi-mount` of one mount point at once: one mounts, the other says why not."""
    world.mount.unmount()
    command = [sys.executable, "-m", "pydi_fs", *world.mount.arguments]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=STOP_DEADLINE_S * 2)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, FAILED], errors
    assert b"already mounted" in b"".join(errors)
    (world.path / "file").write_text("x")
    world.mount.unmount()
    assert not world.mount.is_mounted()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_user_without_permission(world: World, tmp_path: Path) -> None:
    """A plain user who can't mount gets one sentence, not a traceback."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m",
         "pydi_fs", str(world.path.parent), "--cache-dir", "/proc/nowhere"],
        cwd="/", env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if "No module named" in done.stderr or "Permission denied:" in done.stderr:
        pytest.skip("another user can't read this checkout or its Python")
    assert_refused(done, FAILED, "/proc/nowhere")


def _daemons_of(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended between the two calls
        if b"--report-fd" in command and os.fsencode(path) in command:
            found.append(int(entry.name))
    return found


def test_a_mount_started_just_before_its_node_waits_for_it(tmp_path: Path, driver: str) -> None:
    """`pydi-node & pydi-mount` in a script works, whichever of the two is quicker."""
    reason = why_unusable(driver)
    if reason is not None:
        pytest.skip(reason)
    world = World(tmp_path, driver)
    world.node.launch()
    try:
        assert world.mount.run().returncode == 0, world.mount.log_text
        assert world.mount.is_mounted()
    finally:
        world.close()
