"""Machines of one network that know nothing but a token: nodes, and a mount without a node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydi_node.wire.messages import Admin
from tests.harness import mounts, networks
from tests.harness.mounts import MountProcess
from tests.harness.networks import Network
from tests.harness.procs import NodeProcess, wait_until
from tests.node.test_cluster import voters

DEADLINE_S = 90.0

pytestmark = [pytest.mark.mount, pytest.mark.slow]


@pytest.fixture
def network() -> Iterator[Network]:
    reason = networks.why_unusable() or mounts.why_unusable("kernel")
    if shutil.which("nsenter") is None:
        reason = "there is no nsenter command"
    if reason is not None:
        pytest.skip(reason)
    with Network(4) as made:
        yield made


def answers(call: Callable[[], object]) -> Callable[[], bool]:
    """Whether the file operation is done without an error."""

    def attempt() -> bool:
        try:
            call()
        except OSError:
            return False
        return True

    return attempt


def test_a_token_is_all_that_machines_need(network: Network, tmp_path: Path) -> None:
    """Three machines with nodes that were given the token and no address, and a mount on a fourth
    one; the machine that the mount uses is cut off, and comes back.

    The mount is there before any node, as at boot.
    """
    first = NodeProcess(tmp_path / "n1", "--listen", "[::]:7420", inside=network.inside(1))
    nodes = [first]
    mount: MountProcess | None = None
    try:
        first.start()
        token = first.token
        assert first.stop() == 0
        mount = MountProcess(
            tmp_path / "m", None, "kernel", ["--token", token, "-o", "bg", "--deadline", "20"],
            network.on_network_of(4),
        )  # fmt: skip
        mount.start()
        assert mount.is_mounted()
        flags = ("--listen", "[::]:7420", "--join", token)
        nodes += [
            NodeProcess(tmp_path / f"n{machine}", *flags, inside=network.inside(machine))
            for machine in (2, 3)
        ]
        first.flags += ["--join", token]
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready()
        wait_until(lambda: len(voters(first)) == 3, "all three are voters", DEADLINE_S)
        assert first.run["cluster"] in (tmp_path / "n2/node/node.json").read_text()
        file = mount.path / "file"
        wait_until(answers(lambda: file.write_bytes(b"one")), "the mount is connected", DEADLINE_S)
        used = next(
            machine for machine, node in enumerate(nodes, 1)
            if any(m["driver"] == "kernel" for m in own_mounts(node))
        )  # fmt: skip
        others = [machine for machine in (1, 2, 3) if machine != used]
        network.cut((used,), (*others, 4))
        wait_until(answers(lambda: file.write_bytes(b"two")), "another node serves it", DEADLINE_S)
        network.join()
        for node in nodes:
            wait_until(lambda node=node: len(voters(node)) == 3, "all three meet", DEADLINE_S)
        assert file.read_bytes() == b"two"
        assert os.listdir(mount.path) == ["file"]
        assert network.address(1) in address_in_books(first)
    finally:
        if mount is not None:
            mount.close()
        for node in nodes:
            node.kill()


def own_mounts(node: NodeProcess) -> list[dict[str, object]]:
    with node.connect() as client:
        found: list[dict[str, object]] = client.call(Admin("node-status"))["mounts"]
        return found


def address_in_books(node: NodeProcess) -> str:
    """Where the cluster's books say that the first node is."""
    with node.connect() as client:
        return str(client.call(Admin("status"))["nodes"][0]["address"])
