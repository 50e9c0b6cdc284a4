"""A network that falls apart: only the part with a majority accepts changes, and it heals.

Each node runs on a machine of its own (a network namespace); the test itself reaches all of them
over their unix sockets, as the mounts of those machines do.
"""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydi_node.errors import NoQuorumError, PydiError, errno_of
from pydi_node.ids import INT64_MAX, ROOT_INO, Serial
from pydi_node.wire.messages import Admin, Execute, LockKind, Lookup, Role, SetLock
from tests.harness import networks
from tests.harness.networks import Network
from tests.harness.procs import ROOT, NodeProcess, WireClient, environment, wait_until
from tests.harness.trees import wait_one_tree
from tests.node.test_cluster import create_until_done, names, start_cluster, status, voters
from tests.node.test_life import create_command

MINORITY_DEADLINE_MS = 3000
HEAL_DEADLINE_S = 60.0
FLAPS = 5
WRITES_PER_FLAP = 15  # acknowledged in each state of the network


class Machines:
    """Three voters, each on a machine of its own."""

    def __init__(self, network: Network, nodes: dict[int, NodeProcess]) -> None:
        self.network = network
        self.nodes = nodes  # by number, which is also the number of its machine

    def leader(self) -> int:
        return int(status(self.nodes[1])["leader"])

    def heal(self) -> None:
        """All are connected again: each hears from a leader, and all three hold one tree."""
        self.network.join()

        def is_back(node: NodeProcess) -> bool:
            return bool(status(node)["quorum"]) and len(voters(node)) == 3

        for node in self.nodes.values():
            wait_until(lambda node=node: is_back(node), "all three meet", HEAL_DEADLINE_S)
        wait_one_tree(list(self.nodes.values()))

    def assert_there(self, acknowledged: set[bytes]) -> None:
        for node in self.nodes.values():
            with node.connect() as client:
                assert acknowledged <= names(client)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    reason = networks.why_unusable()
    if reason is not None:
        pytest.skip(reason)
    made: list[NodeProcess] = []
    with Network(3) as network:

        def make(name: str, *flags: str) -> NodeProcess:
            machine = len(made) + 1
            listen = ("--listen", f"{network.address(machine)}:0")
            made.append(
                NodeProcess(tmp_path / name, *flags, *listen, inside=network.inside(machine))
            )
            return made[-1]

        try:
            nodes = start_cluster(make, 3)
            yield Machines(network, {int(node.run["number"]): node for node in nodes})
        finally:
            for node in made:
                node.kill()


def create_within(client: WireClient, name: bytes, deadline_ms: int) -> None:
    """One attempt; raises what the node answers."""
    client.serial += 1
    command = Execute(client.client, Serial(client.serial), create_command(name))
    request_id, buffers = client.session.send_request(command, deadline_ms=deadline_ms)
    client.sock.sendall(b"".join(buffers))
    assert client.wait(request_id).errno == 0


@pytest.mark.parametrize("cut_off", ["leader", "follower"])
def test_only_the_majority_accepts_changes(machines: Machines, cut_off: str) -> None:
    """One of three is cut off: it reads what it has and says that it may be old, and refuses
    changes with EROFS within their deadline; the other two go on. Healed, there is one history."""
    with machines.nodes[1].connect() as client:
        create_until_done(client, b"before")
    wait_one_tree(list(machines.nodes.values()))
    leader = machines.leader()
    others = sorted(machines.nodes.keys() - {leader})
    alone = leader if cut_off == "leader" else others[0]
    majority = sorted(machines.nodes.keys() - {alone})
    acknowledged = {b"before"}

    machines.network.cut((alone,), majority)
    with machines.nodes[alone].connect() as client:
        # At once, while an old leader still believes that it leads, and later.
        for number in range(2):
            with pytest.raises(NoQuorumError) as refused:
                create_within(client, b"refused%d" % number, MINORITY_DEADLINE_MS)
            assert errno_of(refused.value) == errno.EROFS
        assert client.call(Lookup(ROOT_INO, b"before")).ino > 0
        state = client.call(Admin("status"))
    assert state["quorum"] is False
    assert state["leader"] is None
    assert any("writes are refused" in sentence for sentence in state["advice"])
    for number in majority:
        name = b"through%d" % number
        with machines.nodes[number].connect() as client:
            create_until_done(client, name)
            acknowledged.add(name)
    with machines.nodes[alone].connect() as client:
        assert names(client) == {b"before"}

    machines.heal()
    machines.assert_there(acknowledged)
    with machines.nodes[alone].connect() as client:
        create_until_done(client, b"after")


def test_all_apart_nobody_accepts(machines: Machines) -> None:
    """Each alone: all read, none accepts a change; healed, all go on."""
    with machines.nodes[1].connect() as client:
        create_until_done(client, b"before")
    wait_one_tree(list(machines.nodes.values()))
    machines.network.cut((1,), (2,), (3,))
    for node in machines.nodes.values():
        with node.connect() as client:
            with pytest.raises(NoQuorumError):
                create_within(client, b"no", MINORITY_DEADLINE_MS)
            assert client.call(Lookup(ROOT_INO, b"before")).ino > 0
    machines.heal()
    with machines.nodes[2].connect() as client:
        create_until_done(client, b"after")
    machines.assert_there({b"before", b"after"})


class Writer(threading.Thread):
    """A program on one machine: creates files through its node, one after the other, whatever
    happens, and keeps the names of those that were acknowledged."""

    def __init__(self, number: int, node: NodeProcess) -> None:
        super().__init__()
        self.acknowledged: list[bytes] = []
        self.failure: BaseException | None = None
        self._number = number
        self._node = node
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            with self._node.connect() as client:
                count = 0
                while not self._ended.wait(0.01):
                    count += 1
                    name = b"w%d-%d" % (self._number, count)
                    try:
                        create_within(client, name, 500)
                    except PydiError:
                        continue
                    # What this node has acknowledged it must show from then on.
                    assert client.call(Lookup(ROOT_INO, name)).ino > 0
                    self.acknowledged.append(name)
        except BaseException as exc:
            self.failure = exc

    def end(self) -> None:
        self._ended.set()
        self.join()


def test_nothing_is_lost_while_the_network_flaps(machines: Machines, rng: random.Random) -> None:
    """Programs on all three machines create files while one machine after the other is cut off, or
    all are: whatever was acknowledged anywhere is there when the network is whole again."""
    writers = [Writer(number, node) for number, node in machines.nodes.items()]
    for writer in writers:
        writer.start()

    def count() -> int:
        return sum(len(writer.acknowledged) for writer in writers)

    def wait_more() -> None:
        wanted = count() + WRITES_PER_FLAP
        wait_until(
            lambda: count() >= wanted or any(writer.failure for writer in writers),
            f"{WRITES_PER_FLAP} more files are created", HEAL_DEADLINE_S,
        )  # fmt: skip

    try:
        for _ in range(FLAPS):
            alone = rng.choice(sorted(machines.nodes))
            if rng.random() < 0.3:
                machines.network.cut((1,), (2,), (3,))
            machines.network.cut((alone,), sorted(machines.nodes.keys() - {alone}))
            wait_more()
            if rng.random() < 0.5:
                machines.network.join()
                wait_more()
    finally:
        for writer in writers:
            writer.end()
    assert [writer.failure for writer in writers] == [None, None, None]
    machines.heal()
    machines.assert_there({name for writer in writers for name in writer.acknowledged})


# A mount as its machine sees it: takes the lock, says so, and lives until its machine is gone.
HOLDER = """
import sys
from pathlib import Path
from pydi_node.wire.messages import Role
from tests.harness.procs import WireClient
from tests.node.test_partition import whole_file_lock
address, token_file = sys.argv[1:]
with WireClient.tls(address, Path(token_file).read_text().strip(), Role.MOUNT) as client:
    assert client.call(whole_file_lock()) is True
    print("locked", flush=True)
    sys.stdin.read()
"""


def whole_file_lock(wait: bool = False) -> SetLock:
    return SetLock(ROOT_INO, 7, LockKind.EXCLUSIVE, 0, INT64_MAX, True, wait, 0)


@pytest.mark.slow
def test_locks_of_a_vanished_machine_are_free_again(machines: Machines) -> None:
    """A mount holds a lock, and its machine is gone without a word (a pulled cable): whoever waits
    for the lock gets it."""
    node = machines.nodes[1]
    holder = subprocess.Popen(
        [*machines.network.inside(3), sys.executable, "-c", HOLDER, node.address,
         node.data_dir / "token"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment(),
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with node.connect(Role.MOUNT) as other:
            assert other.call(whole_file_lock()) is False
            waiting = other.send(whole_file_lock(wait=True))
            machines.network.cut((1, 2), (3,))
            assert other.wait(waiting) is True
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
def test_locks_held_through_a_vanished_node_are_free_again(machines: Machines) -> None:
    """The same, where the mount is connected to the node of its own machine."""
    leader = machines.leader()
    gone = next(number for number in machines.nodes if number != leader)
    with machines.nodes[gone].connect(Role.MOUNT) as holder:
        assert holder.call(whole_file_lock()) is True
        with machines.nodes[leader].connect(Role.MOUNT) as other:
            assert other.call(whole_file_lock()) is False
            waiting = other.send(whole_file_lock(wait=True))
            machines.network.cut((gone,), sorted(machines.nodes.keys() - {gone}))
            assert other.wait(waiting) is True
