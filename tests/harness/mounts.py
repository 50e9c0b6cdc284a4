"""Real nodes and real mounts for tests: started, watched with deadlines, always taken down.

Used by tests/mount, tests/posix and tests/chaos. Every daemon is a process of its own: a test that
touched a mount of its own process could deadlock with itself. Nothing here knows what is tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydi_fs.mountpoints import mounted_at
from pydi_fs.watching import NAME
from tests.harness.procs import ROOT, STOP_DEADLINE_S, NodeProcess, environment, wait_until

COMMAND_DEADLINE_S = 120.0
LOG_LINES_SHOWN = 60


class MountProcess:
    """One mount through `pydi-mount`, as a person starts it: in the background."""

    def __init__(
        self,
        directory: Path,
        data_dir: Path | None,
        driver: str,
        flags: Sequence[str] = (),
        inside: Sequence[str] = (),
    ) -> None:
        """data_dir: of the node on this machine; None: ``flags`` say how to get to one.
        inside: as for `pydi_mount`."""
        self.path = directory / "mnt"
        self.path.mkdir(parents=True, exist_ok=True)
        self.cache_dir = directory / "cache"
        self.inside = inside
        self.arguments = [
            str(self.path), *(["--data-dir", str(data_dir)] if data_dir else []),
            "--driver", driver, "--cache-dir", str(self.cache_dir), *flags,
        ]  # fmt: skip

    @property
    def log_text(self) -> str:
        return "".join(tail(path) for path in sorted(self.cache_dir.glob("*.log")))

    def start(self) -> None:
        """Returns when the mount is usable."""
        done = self.run()
        assert done.returncode == 0, f"{done.stderr}\n{self.log_text}"

    def run(self) -> subprocess.CompletedProcess[str]:
        """One `pydi-mount`, whatever its outcome."""
        return pydi_mount(self.arguments, self.inside)

    def pids(self) -> list[int]:
        """The processes of this mount point that live: a supervisor and its worker, or one."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended between the two calls
            # A process of which a thread is still in the kernel has no command line any more.
            if b"--report-fd" in command and os.fsencode(self.path) in command:
                found.append(int(entry.name))
        return found

    @property
    def pid(self) -> int:
        """Of the process that was started: the supervisor, where there is one."""
        pids = self.pids()
        (pid,) = [pid for pid in pids if _parent(pid) not in pids]
        return pid

    @property
    def worker(self) -> int | None:
        """Of the process that serves under the supervisor; None while there is none."""
        return next((pid for pid in self._children() if not _is_watch(pid)), None)

    @property
    def watch(self) -> int | None:
        """Of the process that makes the kernel forget in time; likewise."""
        return next((pid for pid in self._children() if _is_watch(pid)), None)

    def _children(self) -> list[int]:
        pids = self.pids()
        return [pid for pid in pids if _parent(pid) in pids]

    def is_mounted(self) -> bool:
        return mounted_at(os.fsencode(self.path)) is not None

    def unmount(self) -> None:
        """umount(8) as a person types it; returns when the daemon has ended."""
        subprocess.run(["umount", str(self.path)], check=True, timeout=COMMAND_DEADLINE_S)
        self.wait_ended()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL; the mount point stays behind, dead."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def wait_ended(self) -> None:
        wait_until(lambda: not self.pids(), "the mount's daemon ends", STOP_DEADLINE_S)

    def close(self) -> None:
        """Takes down whatever is left, also when a test failed half way."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was ending by itself
        while self.is_mounted():
            subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=30)
        self.wait_ended()


class World:
    """A node and a mount of it, on one directory."""

    def __init__(self, directory: Path, driver: str, flags: Sequence[str] = ()) -> None:
        self.node = NodeProcess(directory)
        self.mount = MountProcess(directory, self.node.data_dir, driver, flags)
        self.driver = driver

    @property
    def path(self) -> Path:
        """Where the tree is mounted."""
        return self.mount.path

    def start(self) -> None:
        self.node.start()
        self.mount.start()

    def is_sound(self) -> bool:
        """Both daemons live and the mount answers."""
        process = self.node.process
        if process is None or process.poll() is not None or not self.mount.pids():
            return False
        return self.mount.is_mounted()

    def close(self) -> None:
        self.mount.close()
        self.node.kill()

    def logs(self) -> str:
        return f"--- node\n{tail(self.node.log)}\n--- mount\n{self.mount.log_text}"


def _is_watch(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == f"{NAME}\n"
    except OSError:
        return False


def _parent(pid: int) -> int:
    """0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def pydi_mount(
    arguments: Sequence[str], inside: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `pydi-mount` to its end; ``variables`` are added to its environment.

    inside  what stands before the command line, to run it on another machine's network.
    """
    return subprocess.run(
        [*inside, sys.executable, "-m", "pydi_fs", *arguments],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=ROOT,
        env={**environment(machine=bool(inside)), **variables},
        timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip


def run(
    *command: str | Path, cwd: Path | None = None, deadline_s: float = COMMAND_DEADLINE_S
) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, cwd=cwd,
        timeout=deadline_s, env={**environment(), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    output = done.stdout.decode("utf-8", "replace")
    errors = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{output}\n{errors}"
    return output


def tail(path: Path) -> str:
    """The last lines of a log, "" when there is none."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return ""
    return "".join(lines[-LOG_LINES_SHOWN:])


def why_unusable(driver: str) -> str | None:
    """Why mounts can't be tested on this machine, None when they can."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "not root, and no fusermount3"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no permission to open /dev/fuse"
    if driver == "fusepy":
        probe = "import fuse"
        done = subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True)
        if done.returncode != 0:
            return "fusepy or libfuse 2 is not installed"
    return None
