"""Three nodes as processes: joining, losing nodes, stopping in order, coming back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from pydi_node.errors import EXIT_FAILED, NoQuorumError, PydiError
from pydi_node.ids import INT64_MAX, ROOT_INO, Ino, Serial
from pydi_node.wire.messages import (
    Admin,
    Execute,
    LockKind,
    Lookup,
    ReadDir,
    Role,
    SetLock,
)
from tests.harness.procs import ROOT, NodeProcess, WireClient, environment, node_command, wait_until
from tests.node.test_life import assert_sentence, assert_tree_sound, create_command

MakeNode = Callable[..., NodeProcess]


def status(node: NodeProcess) -> dict[str, Any]:
    with node.connect() as client:
        answer: dict[str, Any] = client.call(Admin("status"))
        return answer


def voters(node: NodeProcess) -> list[int]:
    """Numbers of the voters that are up, as this node sees it."""
    return [
        entry["number"]
        for entry in status(node)["nodes"]
        if entry["role"] == "voter" and entry["state"] == "up"
    ]


def start_cluster(make_node: MakeNode, count: int) -> list[NodeProcess]:
    """That many nodes, all voters."""
    first = make_node("n1")
    first.start()
    flags = ("--peer", first.address, "--token-file", str(first.data_dir / "token"))
    nodes = [first, *(make_node(f"n{i}", *flags) for i in range(2, count + 1))]
    for node in nodes[1:]:
        node.start()
    wait_until(lambda: len(voters(first)) == count, "all are voters", 60)
    return nodes


def create_until_done(client: WireClient, name: bytes) -> None:
    """As a real client does: the same (client, serial) again while nobody leads."""
    client.serial += 1
    command = Execute(client.client, Serial(client.serial), create_command(name))

    def attempt() -> bool:
        try:
            return bool(client.call(command).errno == 0)
        except PydiError:
            return False

    wait_until(attempt, f"{name!r} is created", 60)


def names(client: WireClient) -> set[bytes]:
    return {entry.name for entry in client.call(ReadDir(ROOT_INO, 0, 4096))}


def test_only_a_node_in_use_holds_a_lease(make_node: MakeNode) -> None:
    """A change waits for nobody but the leader and those that somebody reads on: what nodes do by
    themselves does not count as use."""
    nodes = start_cluster(make_node, 3)

    def holders() -> set[int]:
        return {entry["number"] for entry in status(nodes[0])["nodes"] if entry["lease"]}

    (leader,) = {status(nodes[0])["leader"]}
    wait_until(lambda: holders() == {leader}, "nobody else holds a lease")
    number = next(number for number in (2, 3) if number != leader)
    with nodes[number - 1].connect() as client:

        def is_holder() -> bool:
            names(client)
            return holders() == {leader, number}

        wait_until(is_holder, "whoever is asked wants one")
    wait_until(lambda: holders() == {leader}, "nobody asks any more")


def test_any_node_serves_and_one_may_die(make_node: MakeNode) -> None:
    """Written through one, read at once through another; the leader is killed and the other two go
    on with all that was acknowledged; it comes back with what it missed."""
    nodes = start_cluster(make_node, 3)
    manifest = set()
    with nodes[0].connect() as a, nodes[1].connect() as b, nodes[2].connect() as c:
        clients = [a, b, c]
        for number in range(60):
            name = b"f%d" % number
            create_until_done(clients[number % 3], name)
            manifest.add(name)
            assert clients[(number + 1) % 3].call(Lookup(ROOT_INO, name)).ino > 0
        leader = status(nodes[1])["leader"]
        by_number = {node.run["number"]: node for node in nodes}
        by_number[leader].kill()
        rest = [node for number, node in by_number.items() if number != leader]
        with rest[0].connect() as client:
            create_until_done(client, b"after")
            manifest.add(b"after")
        with rest[1].connect() as client:
            assert names(client) == manifest
    by_number[leader].start()
    wait_until(lambda: len(voters(rest[0])) == 3, "all three are back", 60)
    with by_number[leader].connect() as client:
        assert names(client) == manifest


def test_all_killed_at_once_lose_nothing_acknowledged(make_node: MakeNode) -> None:
    """SIGKILL to all three in the middle of a stream: every acknowledged name is there, in each
    tree, after all have started again in another order."""
    nodes = start_cluster(make_node, 3)
    manifest = set()
    with nodes[1].connect() as client:
        window = {}
        for number in range(300):
            client.serial += 1
            command = create_command(b"f%d" % number)
            request_id = client.send(Execute(client.client, Serial(client.serial), command))
            window[request_id] = b"f%d" % number
            if number % 20 == 19 and number < 290:
                for waited, name in window.items():
                    assert client.wait(waited).errno == 0
                    manifest.add(name)
                window.clear()
        for node in nodes:
            node.kill()
    assert len(manifest) >= 280
    for node in reversed(nodes):
        node.launch()
    for node in nodes:
        node.wait_ready()
    with nodes[2].connect() as client:
        create_until_done(client, b"again")
        assert manifest <= names(client)
    for node in nodes:
        assert node.stop() == 0
        assert_tree_sound(node)


def test_clean_stops_leave_the_last_node_writing(make_node: MakeNode) -> None:
    """Each that stops leaves the voters; the last goes on alone, also after a restart; the others
    return and are voters again."""
    nodes = start_cluster(make_node, 3)
    for node in (nodes[0], nodes[2]):
        assert node.stop() == 0
    last = nodes[1]
    with last.connect() as client:
        create_until_done(client, b"alone")
    assert last.stop() == 0
    last.start()
    with last.connect() as client:
        create_until_done(client, b"alone again")
    for node in (nodes[2], nodes[0]):
        node.start()
    wait_until(lambda: len(voters(last)) == 3, "all three are voters again", 60)
    with nodes[0].connect() as client:
        assert names(client) == {b"alone", b"alone again"}


def test_minority_reads_but_does_not_write(make_node: MakeNode) -> None:
    """One of three left: reads go on from what is here, a command is NoQuorumError."""
    nodes = start_cluster(make_node, 3)
    with nodes[0].connect() as client:
        create_until_done(client, b"kept")
    wait_until(lambda: b"kept" in _names_on(nodes[2]), "the third has it")
    nodes[0].kill()
    nodes[1].kill()
    with nodes[2].connect() as client:
        assert client.call(Lookup(ROOT_INO, b"kept")).ino > 0
        client.serial += 1
        request_id, buffers = client.session.send_request(
            Execute(client.client, Serial(client.serial), create_command(b"no")), deadline_ms=3000
        )
        client.sock.sendall(b"".join(buffers))
        with pytest.raises(NoQuorumError):
            client.wait(request_id)
        state = client.call(Admin("status"))
    assert state["quorum"] is False
    assert any("writes are refused" in sentence for sentence in state["advice"])


def test_number_in_use_is_refused(make_node: MakeNode) -> None:
    """A number that another node has: one sentence, and nothing was taken."""
    (first,) = start_cluster(make_node, 1)
    ended = subprocess.run(
        node_command(
            first.data_dir.parent / "other", "--number", "1", "--peer", first.address,
            "--token-file", first.data_dir / "token",
        ),
        capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
    assert_sentence(ended, EXIT_FAILED, "number 1 is in use")


def test_locks_hold_across_nodes_and_end_with_their_session(make_node: MakeNode) -> None:
    """A lock taken through one node stands in the way on another, until its session ends."""
    nodes = start_cluster(make_node, 2)

    def lock(wait: bool = False) -> SetLock:
        return SetLock(Ino(1), 7, LockKind.EXCLUSIVE, 0, INT64_MAX, True, wait, 0)

    with nodes[0].connect(Role.MOUNT) as other:
        with nodes[1].connect(Role.MOUNT) as holder:
            assert holder.call(lock()) is True
            assert other.call(lock()) is False
            waiting = other.send(lock(wait=True))
        assert other.wait(waiting) is True


def _names_on(node: NodeProcess) -> set[bytes]:
    with node.connect() as client:
        return names(client)
