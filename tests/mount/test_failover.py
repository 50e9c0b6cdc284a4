"""A program copies onto a mount while nodes die, hang and return: it notices nothing but a pause.

The mount goes through the unix socket of one of three nodes. What its programs have closed is
complete through every node afterwards. The longest pause of the copying program is printed; at
default timing the aim is below 2 s for a killed leader.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, tail, wait_until, why_unusable
from tests.harness.procs import NodeProcess
from tests.node.test_cluster import start_cluster, status, voters
from tests.node.test_replication import read, wait_storing

pytestmark = pytest.mark.slow

FILES = 240
FAILURE_AT = 80  # files copied when it happens
# Longer than three nodes need for a start on a busy machine.
GENEROUS_DEADLINE_S = 60

# Copies files as cp does, and says after each close: when, what, which. The first error ends it.
COPIER = """
import hashlib, os, sys, time
folder, manifest, files = sys.argv[1:]
with open(manifest, "a") as closed:
    for number in range(int(files)):
        # Every twentieth is large enough to be streamed while it is written.
        size = 1 + number * 7919 % 60_000 + (2 << 20 if number % 20 == 7 else 0)
        content = os.urandom(size)
        with open(f"{folder}/{number}", "xb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view[:131072]):]
        digest = hashlib.sha256(content).hexdigest()
        closed.write(f"{time.monotonic()} {digest} {number}\\n")
        closed.flush()
"""


class ClusterMount:
    """Three nodes and a mount through one of them."""

    def __init__(self, directory: Path, nodes: list[NodeProcess]) -> None:
        self.nodes = {int(node.run["number"]): node for node in nodes}
        self.directory = directory
        self.manifest = directory / "manifest"

    def leader(self) -> int:
        (node, *_) = self.nodes.values()
        wait_until(lambda: status(node)["leader"] is not None, "somebody leads", 60)
        return int(status(node)["leader"])

    def mount_through(self, number: int, *flags: str) -> MountProcess:
        return MountProcess(self.directory, self.nodes[number].data_dir, "kernel", flags)

    def closed(self) -> list[tuple[float, str, bytes]]:
        """When, SHA-256 and name of each file whose close was answered."""
        if not self.manifest.exists():
            return []
        lines = self.manifest.read_text().splitlines(keepends=True)
        fields = [line.split() for line in lines if line.endswith("\n")]
        return [(float(when), digest, name.encode()) for when, digest, name in fields]

    def longest_pause_s(self) -> float:
        times = [when for when, _, _ in self.closed()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def assert_complete_through(self, node: NodeProcess) -> None:
        with node.connect() as client:
            for _, digest, name in self.closed():
                content = read(client, name)
                assert hashlib.sha256(content).hexdigest() == digest, f"{node.data_dir}: {name!r}"


class Copy:
    """The copying program, ended whatever happens."""

    def __init__(self, world: ClusterMount, folder: Path) -> None:
        self._world = world
        self.process = subprocess.Popen(
            [sys.executable, "-c", COPIER, folder, world.manifest, str(FILES)],
            stderr=subprocess.PIPE,
        )

    def wait_copied(self, count: int) -> None:
        wait_until(
            lambda: len(self._world.closed()) >= count or self.process.poll() is not None,
            f"{count} files are copied", COMMAND_DEADLINE_S,
        )  # fmt: skip
        assert self.process.poll() is None, self._errors()

    def wait_done(self) -> None:
        """It has copied everything and met no error."""
        code = self.process.wait(COMMAND_DEADLINE_S)
        assert code == 0, self._errors()
        assert len(self._world.closed()) == FILES

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _errors(self) -> str:
        assert self.process.stderr is not None
        return f"after {len(self._world.closed())} files: {self.process.stderr.read().decode()}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ClusterMount]:
    """Three voters that can copy content to each other."""
    reason = why_unusable("kernel")
    if reason is not None:
        pytest.skip(reason)
    made: list[NodeProcess] = []

    def make(name: str, *flags: str) -> NodeProcess:
        made.append(NodeProcess(tmp_path / name, *flags))
        return made[-1]

    try:
        nodes = start_cluster(make, 3)
        for node in nodes:
            wait_storing(node, 2)
        yield ClusterMount(tmp_path, nodes)
    finally:
        for node in made:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
            node.kill()


def show(capsys: pytest.CaptureFixture[str], what: str, world: ClusterMount) -> None:
    with capsys.disabled():
        print(f"\n{what}: the writer paused for {world.longest_pause_s():.2f} s at most")


def run_copy(world: ClusterMount, mount: MountProcess, fail: Callable[[], None]) -> None:
    """A whole copy, with ``fail`` happening in the middle."""
    copy = Copy(world, mount.path)
    try:
        copy.wait_copied(FAILURE_AT)
        fail()
        copy.wait_done()
    except BaseException:
        print(f"--- mount\n{mount.log_text}")
        for number, node in world.nodes.items():
            print(f"--- node {number}\n{tail(node.log)}")
        raise
    finally:
        copy.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
@pytest.mark.parametrize("victim", ["own", "other"])
def test_leader_fails_under_a_copy(
    world: ClusterMount,
    capsys: pytest.CaptureFixture[str],
    victim: str,
    how: signal.Signals,
) -> None:
    """The leader dies or hangs, be it the mount's own node or another: the copy goes on without an
    error, and everything closed is complete through the other two, and through all when it is back.
    """
    leader = world.leader()
    others = sorted(world.nodes.keys() - {leader})
    mount = world.mount_through(leader if victim == "own" else others[0])
    mount.start()
    process = world.nodes[leader].process
    assert process is not None
    try:
        run_copy(world, mount, lambda: process.send_signal(how))
        show(capsys, f"{how.name} to the leader, the mount's {victim} node", world)
        for number in others:
            world.assert_complete_through(world.nodes[number])
        if how is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
        else:
            process.wait()
            world.nodes[leader].start()
        wait_until(lambda: len(voters(world.nodes[others[0]])) == 3, "all three are back", 60)
        world.assert_complete_through(world.nodes[leader])
    finally:
        mount.close()


def test_all_nodes_are_killed_under_a_copy(
    world: ClusterMount, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three die at once and are started again within the mount's deadline: the copy goes on
    without an error, and everything closed is complete through each."""
    mount = world.mount_through(world.leader(), "--deadline", str(GENEROUS_DEADLINE_S))
    mount.start()

    def restart() -> None:
        for node in world.nodes.values():
            node.kill()
        for node in world.nodes.values():
            node.launch()
        for node in world.nodes.values():
            node.wait_ready()

    try:
        run_copy(world, mount, restart)
        show(capsys, "all nodes killed and started again", world)
        for node in world.nodes.values():
            world.assert_complete_through(node)
    finally:
        mount.close()
