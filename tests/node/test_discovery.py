"""Nodes, mounts and commands that find a cluster with its token and no address, over loopback.

Each test has a multicast port of its own, so that it hears nobody else's nodes.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.discovery.beacon import Beacon, pack_beacon
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Admin, Lookup
from pydi_node.wire.trust import (
    CLUSTER_ID_BYTES,
    SECRET_BYTES,
    NodeToken,
    credentials_of,
    parse_node_token,
)
from tests.harness import procs
from tests.harness.procs import (
    ROOT,
    START_DEADLINE_S,
    NodeProcess,
    environment,
    node_command,
    wait_until,
)
from tests.node.test_cluster import create_until_done, voters
from tests.node.test_life import assert_sentence

MakeNode = Callable[..., NodeProcess]
MOVED_DEADLINE_S = 60.0


@pytest.fixture
def group() -> str:
    """A multicast group on loopback that only this test uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"239.255.74.20:{probe.getsockname()[1]}"


def pydi(group: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pydi`` with no address."""
    return procs.pydi(*arguments, "--group", group, "--interface", "127.0.0.1")


def run_node(data_dir: Path, *flags: str, clock_s: int = 0) -> subprocess.CompletedProcess[str]:
    """A node that is expected not to start, on a machine whose clock is off by ``clock_s``."""
    command = node_command(data_dir, "--listen", "127.0.0.1:0", *flags)
    if clock_s:
        code = (
            "import sys, time; now, now_ns = time.time, time.time_ns;"
            f"time.time = lambda: now() + {clock_s};"
            f"time.time_ns = lambda: now_ns() + {clock_s} * 10**9;"
            "from pydi_node.cli import main; sys.exit(main())"
        )
        command = [sys.executable, "-c", code, *command[3:]]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
        timeout=START_DEADLINE_S,
    )  # fmt: skip


def ignored(node: NodeProcess) -> dict[str, int]:
    """What the node's discovery did not believe, by reason."""
    with node.connect() as client:
        counts: dict[str, int] = client.call(Admin("discovery"))["ignored"]
        return counts


def test_a_token_is_all_that_is_needed(make_node: MakeNode, group: str) -> None:
    """Two nodes join with the token alone, and a command with it finds them, also when
    the first node is gone."""
    first = make_node("n1", "--group", group)
    first.start()
    rest = [make_node(f"n{i}", "--group", group, "--join", first.token) for i in (2, 3)]
    for node in rest:
        node.start()
    wait_until(lambda: len(voters(first)) == 3, "all are voters", MOVED_DEADLINE_S)
    with rest[0].connect() as client:
        create_until_done(client, b"found")
    with rest[1].connect() as client:
        assert client.call(Lookup(ROOT_INO, b"found")).ino > 0
    assert pydi(group, "status", "--token", first.token).returncode == EXIT_OK
    first.kill()
    listed = pydi(group, "ls", "/", "--token", first.token)
    assert (listed.returncode, listed.stdout) == (EXIT_OK, "found\n"), listed.stderr


def test_nodes_that_moved_find_each_other(make_node: MakeNode, group: str) -> None:
    """All nodes come back on other ports than the books say: beacons lead them together."""
    first = make_node("n1", "--group", group)
    first.start()
    second = make_node("n2", "--group", group, "--join", first.token)
    second.start()
    wait_until(lambda: len(voters(first)) == 2, "both are voters", MOVED_DEADLINE_S)
    before = {first.address, second.address}
    for node in (first, second):
        node.kill()
    for node in (first, second):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            node.flags += ["--listen", f"127.0.0.1:{probe.getsockname()[1]}"]
        node.launch()
    for node in (first, second):
        node.wait_ready()
    assert not before & {first.address, second.address}
    wait_until(lambda: len(voters(second)) == 2, "they meet again", MOVED_DEADLINE_S)
    with second.connect() as client:
        create_until_done(client, b"after")


def test_two_clusters_ignore_each_other(make_node: MakeNode, group: str) -> None:
    """Each hears the other's beacons and counts them; a node goes to that of its token."""
    first, other = make_node("n1", "--group", group), make_node("o1", "--group", group)
    for node in (first, other):
        node.start()
    second = make_node("n2", "--group", group, "--join", first.token)
    second.start()
    wait_until(lambda: ignored(first).get("foreign", 0) > 0, "foreign beacons are counted", 60)
    assert second.run["cluster"] == first.run["cluster"] != other.run["cluster"]
    assert voters(other) == [1]


def test_strange_datagrams_disturb_nobody(make_node: MakeNode, group: str) -> None:
    """Noise, forged and repeated beacons, and one with a wrong address for a member: counted, and
    the cluster goes on."""
    first = make_node("n1", "--group", group)
    first.start()
    second = make_node("n2", "--group", group, "--join", first.token)
    second.start()
    credentials = credentials_of(parse_node_token(first.token))
    host, _, port = group.partition(":")
    with first.connect() as client:
        now_ms = client.call(Admin("discovery"))["time_ms"]
    wrong = Beacon(b"w" * 8, now_ms, 2, ("127.0.0.1:1",), (1,))
    true = pack_beacon(wrong, credentials.cluster, credentials.beacon_key)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
        )
        for datagram in (
            b"noise", true, true, pack_beacon(wrong, credentials.cluster, b"x" * 32),
            pack_beacon(wrong, "f" * 32, b"x" * 32), *[secrets.token_bytes(1100)] * 50,
        ):  # fmt: skip
            stranger.sendto(datagram, (host, int(port)))
    wait_until(lambda: ignored(first).get("malformed", 0) > 50, "all of it is counted", 60)
    counts = ignored(first)
    assert counts["forged"] == 1
    assert counts["repeated"] >= 1
    assert counts["foreign"] >= 1
    second.kill()
    second.start()
    wait_until(lambda: len(voters(first)) == 2, "the second is found where it is", 60)


def test_commands_say_why_nothing_is_found(make_node: MakeNode, group: str) -> None:
    """One sentence and exit code 3: nobody is here, only another cluster is, the token is old."""
    own = NodeToken.new(secrets.token_bytes(CLUSTER_ID_BYTES + SECRET_BYTES))
    nobody = pydi(group, "ls", "--token", own.text())
    assert_sentence(nobody, EXIT_UNREACHABLE, f"no node of cluster {own.cluster[:8]}")
    node = make_node("n1", "--group", group)
    node.start()
    other = pydi(group, "ls", "--token", own.text())
    assert_sentence(other, EXIT_UNREACHABLE, "is it the right token")
    real = parse_node_token(node.token)
    changed = NodeToken(real.cluster, secrets.token_bytes(SECRET_BYTES)).text()
    old = pydi(group, "ls", "--token", changed)
    assert_sentence(old, EXIT_UNREACHABLE, "copy the token again")


def test_refusals_to_join(make_node: MakeNode, group: str, tmp_path: Path) -> None:
    """Number in use, clock off by hours and by weeks, wrong token: exit code 1 and a sentence, and
    the data directory stays as it was."""
    node = make_node("n1", "--group", group)
    node.start()
    real = parse_node_token(node.token)
    changed = NodeToken(real.cluster, secrets.token_bytes(SECRET_BYTES)).text()
    by_group = ("--group", group, "--join", node.token)
    by_peer = ("--peer", node.address, "--join", node.token)
    for number, (flags, clock_s, words) in enumerate((
        ((*by_group, "--number", "1"), 0, "node number 1 is in use"),
        (by_group, -3600, "clock of the machine that joins is 3600 s behind"),
        (by_peer, 7200, "s ahead of that of node 1"),
        (by_peer, 30 * 86400, "compare the clocks"),
        (by_peer, -30 * 86400, "compare the clocks"),
        (("--peer", node.address, "--join", changed), 0, "does not belong to the cluster of this"),
    )):  # fmt: skip
        data_dir = tmp_path / f"refused{number}"
        run = run_node(data_dir, *flags, clock_s=clock_s)
        assert_sentence(run, EXIT_FAILED, words)
        assert not (data_dir / "node.json").exists()
    assert voters(node) == [1]


def test_a_cluster_founded_by_mistake_is_left(make_node: MakeNode, group: str) -> None:
    """A node that founded a cluster, and holds nothing, joins another one with its token, also when
    a crash interrupted the last attempt; it has the other's tree then."""
    first, mistaken = make_node("n1", "--group", group), make_node("n2", "--group", group)
    for node in (first, mistaken):
        node.start()
    with first.connect() as client:
        create_until_done(client, b"kept")
    own = mistaken.run["cluster"]
    assert mistaken.stop() == 0
    mistaken.flags += ["--join", first.token]
    mistaken.start()
    assert mistaken.run["cluster"] == first.run["cluster"] != own
    assert mistaken.run["number"] == 2
    with mistaken.connect() as client:
        assert client.call(Lookup(ROOT_INO, b"kept")).ino > 0


def test_a_cluster_that_holds_something_is_not_left(make_node: MakeNode, group: str) -> None:
    """One file is enough, removed or not; and so is what only the log knows after a kill."""
    first, other = make_node("n1", "--group", group), make_node("n2", "--group", group)
    for node in (first, other):
        node.start()
    with other.connect() as client:
        create_until_done(client, b"mine")
    other.kill()
    before = (other.data_dir / "node.json").read_text()
    refused = run_node(other.data_dir, "--group", group, "--join", first.token)
    assert_sentence(refused, EXIT_FAILED, "two clusters never merge")
    assert (other.data_dir / "node.json").read_text() == before
    other.start()
    with other.connect() as client:
        assert client.call(Lookup(ROOT_INO, b"mine")).ino > 0
