"""How a system is started, chilled, hurt and stopped; PyDi, and the plain directory beside it.

Called by `rounds`, `failure` and `growth`. Every system but the plain directory has three machines:
network namespaces of its own (`Machines`), so that nothing it says leaves them and every process in
them is known to be its own, whatever it forked. Its mount works as on the first machine, where
programs run. Servers keep their files below one folder of the run, all on the same disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydi_fs.client import Client, node_on_this_machine
from pydi_node import __version__
from pydi_node.errors import PydiError
from pydi_node.wire.messages import Admin
from tests.harness.networks import Network

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
LOG_LINES_SHOWN = 20
PROGRAMS = Path(sys.executable).parent  # where this checkout's commands are installed
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class System(Protocol):
    """What the rest of the comparison needs of a system."""

    name: str
    version: str
    copies: int  # of each file's content
    durability: str  # one sentence: what is on disk when close and fsync return
    path: Path  # where programs see it
    servers: range  # numbers of what can be killed; empty for the plain directory

    def start(self) -> None: ...

    def chill(self) -> None:
        """Stop and start everything, so that no daemon of it has anything cached."""
        ...

    def stop(self) -> None:
        """End whatever is left of it; never fails because something is gone already."""
        ...

    def pids(self) -> list[int]:
        """All its daemons, the mount's among them."""
        ...

    def remount(self) -> None:
        """A new mount: nothing that was read is known to it."""
        ...

    def kill_server(self, number: int) -> None:
        """SIGKILL for everything of it on that machine but the mount."""
        ...

    def start_server(self, number: int) -> None:
        """Start again what was killed, and return when the system is whole."""
        ...


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A new folder for systems to run in; removed afterwards.

    It is a mount of its own, and shared: `ip netns exec` gives each server a copy of the mount
    table, and otherwise a file system that is unmounted here would live on in all those copies.
    """
    folder = Path(tempfile.mkdtemp(prefix="pydi-compare-", dir=parent))
    for arguments in (["--bind", str(folder), str(folder)], ["--make-shared", str(folder)]):
        subprocess.run(["mount", *arguments], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)
        # Never delete through a mount that is still there.
        if not any(os.path.ismount(path) for path in (folder, *folder.glob("*/mnt"))):
            shutil.rmtree(folder)


class CouldNotStart(Exception):
    """One sentence: what did not start, and the end of what it said."""


class Plain:
    """A directory of this machine's disk."""

    name = "plain"
    version = os.uname().release
    copies = 1
    durability = "close: nothing on disk; fsync: this machine's disk"
    servers = range(0)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "files"

    def start(self) -> None:
        self.path.mkdir(parents=True)

    def chill(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def pids(self) -> list[int]:
        return []

    def remount(self) -> None:
        pass

    def kill_server(self, number: int) -> None:
        raise AssertionError(number)

    def start_server(self, number: int) -> None:
        raise AssertionError(number)


class Machines(ABC):
    """A network, the daemons in it, and one mount. Base of all systems with servers."""

    name = ""
    count = 3

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mnt"
        self.servers = range(1, self.count + 1)
        self.network = Network(self.count)
        self._children: list[subprocess.Popen[bytes]] = []
        self._mount: subprocess.Popen[bytes] | None = None

    # --- what a system does in its own way

    def prepare(self) -> None:  # noqa: B027 - some have none
        """Folders and settings, before anything runs."""

    def form(self) -> None:  # noqa: B027 - some find each other
        """What makes one system of servers that run for the first time."""

    def start_servers(self) -> None:
        for number in self.servers:
            self.start_server(number)

    @abstractmethod
    def start_server(self, number: int) -> None:
        """Once more, or for the first time; returns when it serves."""

    def stop_servers(self) -> None:
        self.end(self.server_pids())

    @abstractmethod
    def mount_command(self) -> list[str]:
        """A mount that stays in the foreground."""

    # --- what all do alike

    def start(self) -> None:
        self.path.mkdir(parents=True)
        self.network.__enter__()
        self.prepare()
        self.start_servers()
        self.form()
        self.mount()

    def chill(self) -> None:
        self.unmount()
        self.stop_servers()
        self.start_servers()
        self.mount()

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def stop(self) -> None:
        if os.path.ismount(self.path) or self._mount is not None:
            self.unmount()
        # A child that was not in its network yet is nobody's but ours.
        self.end([*self.pids(), *(child.pid for child in self._children)])
        for child in self._children:
            child.wait(STOP_TIMEOUT_S)
        self.network.__exit__()

    def mount(self) -> None:
        self._mount = self.spawn("mount", [*self.beside_mount(), *self.mount_command()])
        mount = self._mount
        self.wait("the mount", lambda: os.path.ismount(self.path), mount)

    def beside_mount(self) -> list[str]:
        """Before a command line: the first machine's network, but the mounts of the run."""
        return ["nsenter", f"--net=/run/netns/{self.network.inside(1)[-1]}"]

    def unmount(self) -> None:
        try:
            subprocess.run(["umount", self.path], capture_output=True, timeout=STOP_TIMEOUT_S,
                           check=True)  # fmt: skip
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            subprocess.run(["umount", "-l", self.path], capture_output=True, check=False)
        if self._mount is not None:
            try:
                self._mount.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._mount.kill()
                self._mount.wait()
            self._mount = None

    def kill_server(self, number: int) -> None:
        pids = self.pids_on(number)
        assert pids, f"server {number} of {self.name} does not run"  # no kill, no figure
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it went with the one before it
                os.kill(pid, signal.SIGKILL)
        self.wait(f"the end of server {number}", lambda: not self.pids_on(number))

    def pids(self) -> list[int]:
        return [pid for number in self.servers for pid in self._in_network(number)]

    def server_pids(self) -> list[int]:
        return [pid for number in self.servers for pid in self.pids_on(number)]

    def pids_on(self, number: int) -> list[int]:
        """The daemons of one machine without the mount."""
        mount = self._mount.pid if self._mount is not None else None
        return [p for p in self._in_network(number) if mount not in (p, parent_of(p))]

    def spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._children.append(child)
        return child

    def wait(
        self, what: str, holds: Callable[[], bool], child: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Returns when it holds; CouldNotStart when the child ends before, or after a while."""
        end = time.monotonic() + START_TIMEOUT_S
        while not holds():
            over = time.monotonic() > end
            if over or (child is not None and child.poll() is not None):
                logs = "\n".join(f"{p.name}:\n{_tail(p)}" for p in self.folder.glob("*.log"))
                fate = f"not within {START_TIMEOUT_S:.0f} s" if over else "it ended"
                raise CouldNotStart(f"{type(self).__name__}, {what}: {fate}\n{logs}")
            self._reap()
            time.sleep(POLL_S)

    def end(self, pids: list[int]) -> None:
        """SIGTERM, and SIGKILL for those who take longer than they should."""
        for number, deadline_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, 5.0)):
            left = [pid for pid in pids if _is_alive(pid)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, number)
            end = time.monotonic() + deadline_s
            while any(map(_is_alive, left)) and time.monotonic() < end:
                self._reap()
                time.sleep(POLL_S)

    def _reap(self) -> None:
        for child in self._children:
            child.poll()

    def _in_network(self, number: int) -> list[int]:
        name = self.network.inside(number)[-1]
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True,
                              check=False)  # fmt: skip
        return [pid for pid in map(int, done.stdout.split()) if _is_alive(pid)]


class PyDi(Machines):
    """Three nodes and a mount of the first; ``copies`` is the cluster's setting ``replicas``.

    closes_behind  mounted with ``-o durability=fsync``.
    """

    def __init__(
        self, folder: Path, copies: int, count: int = 3, closes_behind: bool = False
    ) -> None:
        self.count = count
        super().__init__(folder)
        self.copies = copies
        self.closes_behind = closes_behind
        self.name = f"pydi-{copies}" + "-fsync" * closes_behind
        self.version = f"{__version__} ({_commit()})"
        safe = f"content on the disks of {copies} nodes, name on a majority's"
        self.durability = (
            f"close: of a new file nothing outside this machine yet; fsync: {safe}"
            if closes_behind
            else f"close and fsync: {safe}"
        )

    def data_dir(self, number: int) -> Path:
        return self.folder / f"node{number}"

    def start_servers(self) -> None:
        for number in self.servers:
            self._launch(number)
            # Only the first makes the token and the cluster that the others join.
            self.wait(f"node {number}", (self.data_dir(number) / "node.sock").exists)
        self._wait_whole()

    def form(self) -> None:
        asyncio.run(self._set_copies())

    def start_server(self, number: int) -> None:
        self._launch(number)
        self._wait_whole()

    def mount_command(self) -> list[str]:
        return [
            str(PROGRAMS / "pydi-mount"), str(self.path), "--foreground",
            "--data-dir", str(self.data_dir(1)), "--cache-dir", str(self.folder / "cache"),
            "-o", f"durability={'fsync' if self.closes_behind else 'close'}",
        ]  # fmt: skip

    def daemons(self) -> dict[str, int]:
        """Process ids of the nodes and the mount by name."""
        assert self._mount is not None
        found = {f"node{number}": self.pids_on(number)[0] for number in self.servers}
        # What serves is the child of its supervisor, where the kernel lets it have one.
        ours = self._in_network(1)
        workers = [pid for pid in ours if parent_of(pid) == self._mount.pid]
        return {**found, "mount": next(iter(workers), self._mount.pid)}

    def _launch(self, number: int) -> None:
        def address(of: int) -> str:
            return f"{self.network.address(of)}:7420"

        joining = ["--peer", address(1), "--token-file", str(self.data_dir(1) / "token")]
        self.spawn(
            f"node{number}",
            [
                *self.network.inside(number), str(PROGRAMS / "pydi-node"),
                str(self.data_dir(number)), "--listen", address(number),
                *(joining if number > 1 else []),
            ],
        )  # fmt: skip

    def _wait_whole(self) -> None:
        """All nodes are up and, up to five, voters; no copy is missing."""

        def is_whole() -> bool:
            try:
                state = asyncio.run(self._status())
            except (PydiError, OSError):
                return False  # it is starting, or between two leaders
            up = [node for node in state["nodes"] if node["state"] == "up"]
            voters = sum(node["role"] == "voter" for node in up)
            return len(up) == self.count and voters == min(self.count, 5) and state["quorum"]

        self.wait("all nodes", is_whole)

    async def _status(self) -> Any:
        client = Client([node_on_this_machine(self.data_dir(1))])
        await client.connect()
        try:
            return await client.call(Admin("status"))
        finally:
            await client.close()

    async def _set_copies(self) -> None:
        client = Client([node_on_this_machine(self.data_dir(1))])
        await client.connect()
        await client.call(Admin("set", {"name": "replicas", "value": self.copies}))
        await client.close()


# --- what processes cost -------------------------------------------------------------------------


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of these processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / CLOCK_TICKS


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size: what several processes share is counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it ended, and has no memory any more
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def parent_of(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def _is_alive(pid: int) -> bool:
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def _stat_fields(pid: int) -> list[str]:
    """Fields 3 and later of /proc/PID/stat (proc(5)); empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _commit() -> str:
    """What is checked out here; "-dirty" when files differ from it."""
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "no commit"


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:])
