"""Machines of one network, as network namespaces that a test makes, cuts apart and joins again.

Each machine is a namespace with one address; its cable (a veth pair) leads to a switch, a namespace
of its own with several bridges in it. Machines on one bridge reach each other, so moving cables
between bridges cuts a network into parts, and nothing says so to those who are connected: packets
vanish, as they do behind a pulled cable. The host's own network is not touched.

Needs root. A test that makes a Network removes it whatever happens (``with``).
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence

MACHINES_MAX = 200
_numbers = itertools.count(1)


def why_unusable() -> str | None:
    """Why namespaces can't be made on this machine, None when they can."""
    if shutil.which("ip") is None:
        return "there is no ip command"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"pydi-probe-{os.getpid()}"
    commands = (
        ["netns", "add", probe],
        ["-n", probe, "link", "add", "bridge", "type", "bridge"],
        ["-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "two"],
    )
    try:
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return f"ip {' '.join(command)}: {done.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return None


class Network:
    """``count`` machines, all connected at first; they are numbered from 1."""

    def __init__(self, count: int) -> None:
        assert 1 <= count <= MACHINES_MAX, count
        self._name = f"pydi-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._name}-switch"
        self._made: list[str] = []
        self._machines = range(1, count + 1)

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Processes that still run in a namespace keep it alive without its name.
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._made.clear()

    def address(self, machine: int) -> str:
        return f"10.77.0.{machine}"

    def inside(self, machine: int) -> list[str]:
        """What to put before a command line to run it on that machine."""
        return ["ip", "netns", "exec", self._namespace(machine)]

    def on_network_of(self, machine: int) -> list[str]:
        """As `inside`, but what the command mounts is mounted here too."""
        return ["nsenter", f"--net=/run/netns/{self._namespace(machine)}"]

    def cut(self, *parts: Sequence[int]) -> None:
        """Only machines of one part reach each other; those named in no part reach nobody."""
        bridge_of = {m: f"bridge{n}" for n, part in enumerate(parts, 1) for m in part}
        for machine in self._machines:
            cable = f"cable{machine}"
            if machine in bridge_of:
                _ip("-n", self._switch, "link", "set", cable, "master", bridge_of[machine])
            else:
                _ip("-n", self._switch, "link", "set", cable, "nomaster")

    def join(self) -> None:
        """Everybody reaches everybody."""
        self.cut(tuple(self._machines))

    def _build(self) -> None:
        self._add(self._switch)
        for part in self._machines:
            _ip("-n", self._switch, "link", "add", f"bridge{part}", "type", "bridge")
            _ip("-n", self._switch, "link", "set", f"bridge{part}", "up")
        for machine in self._machines:
            name, cable = self._namespace(machine), f"cable{machine}"
            self._add(name)
            _ip("-n", self._switch, "link", "add", cable, "type", "veth",
                "peer", "name", "eth0", "netns", name)  # fmt: skip
            _ip("-n", self._switch, "link", "set", cable, "up")
            _ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        self.join()

    def _namespace(self, machine: int) -> str:
        assert machine in self._machines, machine
        return f"{self._name}-{machine}"

    def _add(self, name: str) -> None:
        _ip("netns", "add", name)
        self._made.append(name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
