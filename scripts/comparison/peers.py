"""GlusterFS and MooseFS on three machines of their own, from Debian's packages, without systemd.

Called by `__main__`. Their daemons run with settings and folders of this run; what a machine may
have configured in /etc or /var/lib is neither read nor changed. GlusterFS has its
folders compiled in, so each of its servers sees others in their place, in a mount table of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from scripts.comparison.systems import Machines

EMPTY_METADATA = Path("/var/lib/mfs/metadata.mfs.empty")  # of package moosefs-master
PACKAGES = {
    "gluster": ("glusterfs-server", "glusterfs-client"),
    "moosefs": ("moosefs-master", "moosefs-chunkserver", "moosefs-client"),
}
COMMANDS = {
    "gluster": ("glusterd", "glusterfsd", "gluster", "glusterfs"),
    "moosefs": ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal"),
}
VOLUME = "vol"


def why_unusable(name: str) -> str | None:
    """Why this peer can't be started here, None when it can."""
    missing = [command for command in COMMANDS[name] if shutil.which(command) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install {' '.join(PACKAGES[name])}"
    return None


class Gluster(Machines):
    """One brick on each machine, ``replica 3``."""

    name = "gluster"
    copies = 3

    def __init__(self, folder: Path, safe: bool) -> None:
        super().__init__(folder)
        self.version = _version("gluster", "--version")
        self.durability = (
            "close: nothing on disk; fsync: content on the disks of 3 bricks, not the name"
        )
        # With this off, close waits until the bricks have the content, and reports their errors.
        self._options = {"performance.flush-behind": "off"} if safe else {}

    def prepare(self) -> None:
        for number in self.servers:
            for name in ("lib", "log", "brick"):
                self._home(number, name).mkdir(parents=True)
            self._home(number, "glusterd.vol").write_text(
                "volume management\n"
                "    type mgmt/glusterd\n"
                "    option working-directory /var/lib/glusterd\n"
                "    option transport-type socket\n"
                # Without these two no peer is ever reached, and nothing says so.
                "    option transport.socket.keepalive-time 10\n"
                "    option transport.socket.keepalive-interval 2\n"
                "    option transport.socket.listen-port 24007\n"
                "    option ping-timeout 0\n"
                "    option event-threads 1\n"
                "    option max-port 60999\n"
                "end-volume\n"
            )

    def start_servers(self) -> None:
        for number in self.servers:
            self._launch(number)
        for number in self.servers:
            self._wait_answers(number)
        if self._is_formed():
            self._wait_whole()

    def start_server(self, number: int) -> None:
        self._launch(number)
        self._wait_answers(number)
        self._wait_whole()

    def form(self) -> None:
        for number in self.servers[1:]:
            self._gluster(1, "peer", "probe", self.network.address(number))
        bricks = [f"{self.network.address(n)}:{self._home(n, 'brick')}" for n in self.servers]

        def is_created() -> bool:
            # Refused until the new peers have told each other of themselves.
            done = self._try(1, "volume", "create", VOLUME, "replica", "3", *bricks, "force")
            return done.returncode == 0

        self.wait("the volume", is_created)
        for name, value in self._options.items():
            self._gluster(1, "volume", "set", VOLUME, name, value)
        self._gluster(1, "volume", "start", VOLUME)
        self._wait_whole()

    def mount_command(self) -> list[str]:
        return [
            "glusterfs", "--no-daemon", f"--volfile-server={self.network.address(1)}",
            f"--volfile-id={VOLUME}", f"--log-file={self.folder / 'mount.log'}", str(self.path),
        ]  # fmt: skip

    def _home(self, number: int, name: str) -> Path:
        return self.folder / f"server{number}" / name

    def _launch(self, number: int) -> None:
        script = (
            "set -e\n"
            "mount -t tmpfs none /run\n"
            'mount --bind "$1/lib" /var/lib/glusterd\n'
            'mount --bind "$1/log" /var/log/glusterfs\n'
            'exec glusterd --no-daemon --volfile "$1/glusterd.vol" --log-file "$1/log/glusterd.log"'
        )
        home = self.folder / f"server{number}"
        # `ip netns exec` gives it a mount table of its own.
        self.spawn(
            f"glusterd{number}",
            [*self.network.inside(number), "sh", "-c", script, "sh", str(home)],
        )

    def _is_formed(self) -> bool:
        return (self._home(1, "lib") / "vols" / VOLUME / "info").exists()

    def _wait_answers(self, number: int) -> None:
        self.wait(f"glusterd {number}", lambda: self._try(number, "peer", "status").returncode == 0)

    def _wait_whole(self) -> None:
        """Each brick runs, and nothing waits to be healed."""

        def is_whole() -> bool:
            status = self._try(1, "volume", "status", VOLUME, "detail")
            if len(re.findall(r"^Online +: Y", status.stdout, re.MULTILINE)) != self.count:
                return False
            heal = self._try(1, "volume", "heal", VOLUME, "info", "summary")
            pending = re.findall(r"^Total Number of entries: (\S+)", heal.stdout, re.MULTILINE)
            return pending == ["0"] * self.count

        self.wait("all bricks", is_whole)

    def _gluster(self, number: int, *arguments: str) -> None:
        done = self._try(number, *arguments)
        if done.returncode != 0:
            raise RuntimeError(f"gluster {' '.join(arguments)}: {done.stderr or done.stdout}")

    def _try(self, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The ``gluster`` command beside that server, with the server's folders."""
        pids = self.pids_on(number)
        if not pids:
            return subprocess.CompletedProcess(arguments, 1, "", f"server {number} does not run")
        return subprocess.run(
            ["nsenter", f"--target={pids[0]}", "--mount", "--net", "gluster", "--mode=script",
             *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


class MooseFS(Machines):
    """A chunk server on each machine, the master on the first, goal 2."""

    name = "moosefs"
    copies = 2

    def __init__(self, folder: Path, safe: bool) -> None:
        super().__init__(folder)
        self.version = _version("mfsmount", "-V")
        self._safe = safe
        self.durability = (
            "close and fsync: content with 2 chunk servers, which sync it when they close a chunk;"
            " the master's log is synced with each change"
            if safe
            else "close and fsync: content with 2 chunk servers, nothing on disk"
        )

    def prepare(self) -> None:
        settings = self.folder / "etc"
        settings.mkdir()
        (settings / "exports.cfg").write_text("* / rw,alldirs,maproot=0\n* . rw\n")
        (settings / "topology.cfg").touch()
        meta = self._folder("meta")
        shutil.copy(EMPTY_METADATA, meta / "metadata.mfs")
        common = {"WORKING_USER": "root", "WORKING_GROUP": "root", "NICE_LEVEL": 0}
        self._write("master", {
            **common, "DATA_PATH": meta, "EXPORTS_FILENAME": settings / "exports.cfg",
            "TOPOLOGY_FILENAME": settings / "topology.cfg",
            "CHANGELOG_SAVE_MODE": 2 if self._safe else 0,
        })  # fmt: skip
        for number in self.servers:
            disks = settings / f"disks{number}.cfg"
            disks.write_text(f"{self._folder(f'disk{number}')}\n")
            self._write(f"chunk{number}", {
                **common, "DATA_PATH": self._folder(f"chunk{number}"), "HDD_CONF_FILENAME": disks,
                "MASTER_HOST": self.network.address(1), "HDD_FSYNC_BEFORE_CLOSE": int(self._safe),
            })  # fmt: skip

    def start(self) -> None:
        super().start()
        command = [*self.beside_mount(), "mfssetgoal", "-r", str(self.copies), str(self.path)]
        subprocess.run(command, check=True, capture_output=True)

    def start_server(self, number: int) -> None:
        if number == 1:
            self._launch(number, "mfsmaster", "master", "-a")
        self._launch(number, "mfschunkserver", f"chunk{number}")
        self.wait(f"chunk server {number}", lambda: self._registered(number))

    def mount_command(self) -> list[str]:
        return ["mfsmount", "-f", "-H", self.network.address(1), "-o", "mfsnice=0", str(self.path)]

    def _launch(self, number: int, program: str, name: str, *flags: str) -> None:
        configuration = self.folder / "etc" / f"{name}.cfg"
        self.spawn(
            name,
            [
                *self.network.inside(number),
                program,
                *flags,
                "-f",
                "-c",
                str(configuration),
                "start",
            ],
        )

    def _registered(self, number: int) -> bool:
        """The chunk server listens, and holds a connection to the master."""
        done = subprocess.run(
            [*self.network.inside(number), "ss", "-Htn", "state", "established", "dport = 9420"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return bool(done.stdout.strip())

    def _folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def _write(self, name: str, options: dict[str, object]) -> None:
        text = "".join(f"{key} = {value}\n" for key, value in options.items())
        (self.folder / "etc" / f"{name}.cfg").write_text(text)


def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"(?:glusterfs |MFS version: )([\d.-]+)", done.stdout + done.stderr)
    return found[1] if found else "unknown"


def install(names: list[str]) -> None:
    """apt-get install what is missing, where that is permitted; starts none of their services."""
    packages = [p for name in names if why_unusable(name) for p in PACKAGES[name]]
    if not packages or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    policy = Path("/usr/sbin/policy-rc.d")  # its exit code 101 forbids to start services
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for action in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-q", *action], env=environment, capture_output=True,
                           stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    finally:
        if made:
            policy.unlink()
