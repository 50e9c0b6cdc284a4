"""The cluster's secret is changed while real nodes go on, are away, and come back."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pydi_node.discovery.beacon import Beacon, pack_beacon
from pydi_node.errors import EXIT_OK, UserError
from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import Admin, GetAttr, Role
from pydi_node.wire.trust import credentials_of, parse_node_token
from tests.harness.procs import NodeProcess, Refused, WireClient, wait_until
from tests.node.test_cluster import create_until_done, voters
from tests.node.test_discovery import group, ignored, pydi
from tests.node.test_life import assert_sentence
from tests.node.test_tokens import make_token, mount

__all__ = ["group"]  # a fixture

MakeNode = Callable[..., NodeProcess]
CHANGED_DEADLINE_S = 60.0


def rotate(node: NodeProcess, overlap_s: int = 3600) -> dict[str, Any]:
    with node.connect() as owner:
        state: dict[str, Any] = owner.call(Admin("secret-rotate", {"overlap_s": overlap_s}))
    return state


def finish(node: NodeProcess, *, force: bool = False) -> dict[str, Any]:
    with node.connect() as owner:
        state: dict[str, Any] = owner.call(Admin("secret-retire", {"force": force}))
    return state


def is_refused(node: NodeProcess, token: str, role: Role = Role.CLIENT) -> bool:
    """Whether the token opens nothing there; TLS ends the handshake, or the node the session."""
    try:
        node.connect_tls(token, role).close()
    except (OSError, Refused):
        return True
    return False


def has_ended(session: WireClient) -> bool:
    try:
        session.call(GetAttr(ROOT_INO))
    except OSError:
        return True
    return False


def generation(node: NodeProcess) -> int:
    return parse_node_token(node.token).generation


@pytest.fixture
def three(make_node: MakeNode, group: str) -> list[NodeProcess]:
    """A cluster of three voters."""
    first = make_node("n1", "--group", group)
    first.start()
    nodes = [first]
    for i in (2, 3):
        nodes.append(make_node(f"n{i}", "--group", group, "--join", first.token))
        nodes[-1].start()
    wait_until(lambda: len(voters(first)) == 3, "all are voters", CHANGED_DEADLINE_S)
    return nodes


def test_old_tokens_work_until_the_end_of_the_overlap(three: list[NodeProcess], group: str) -> None:
    """Both in between, of nodes and of mounts, old sessions and new ones; then only the new. Every
    node has put the new token into its folder, for its owner alone."""
    first = three[0]
    old, old_mount = first.token, make_token(first)
    assert rotate(first)["generation"] == 1
    for node in three:
        wait_until(lambda node=node: generation(node) == 1, "the new token is kept", 60)
        assert stat.S_IMODE(os.stat(node.data_dir / "token").st_mode) == 0o600
    new, new_mount = first.token, make_token(first)
    assert new != old
    assert {node.token for node in three} == {new}
    sessions = [
        three[1].connect_tls(old), three[1].connect_tls(new),
        mount(three[2], old_mount), mount(three[2], new_mount),
    ]  # fmt: skip
    for session in sessions:
        session.call(GetAttr(ROOT_INO))
    for token in (old, new):
        assert pydi(group, "ls", "/", "--token", token).returncode == EXIT_OK
    with first.connect() as owner, pytest.raises(UserError, match="being changed already"):
        owner.call(Admin("secret-rotate", {"overlap_s": 60}))
    assert any("secret is being changed" in line for line in _status(first)["advice"])

    state = finish(first)
    assert (state["generation"], state["overlap"]) == (1, False)
    for ended in (sessions[0], sessions[2]):
        with ended:
            wait_until(lambda ended=ended: has_ended(ended), "the old session ends", 60)
    for node in three:
        wait_until(lambda node=node: is_refused(node, old), "the old token is refused", 60)
        assert is_refused(node, old_mount["token"], Role.MOUNT)
    for going_on in (sessions[1], sessions[3]):
        with going_on:
            going_on.call(GetAttr(ROOT_INO))
    assert len(voters(first)) == 3
    with first.connect() as owner:
        states = {i["token_id"]: i["revoked"] for i in owner.call(Admin("token-list"))}
        create_until_done(owner, b"after")
    assert states == {old_mount["token_id"]: True, new_mount["token_id"]: False}
    assert not any("secret" in line for line in _status(first)["advice"])
    refused = pydi(group, "ls", "/", "--token", old)
    assert_sentence(refused, 3, "copy the token again")
    for flags, words in (
        (("--overlap", "12h"), "a new secret"),
        (("--finish",), "old tokens open nothing any more"),
    ):
        run = pydi(group, "token", "rotate", *flags, "--token", first.token)
        assert (run.returncode, run.stderr) == (EXIT_OK, "")
        assert words in run.stdout
        wait_until(lambda: {generation(node) for node in three} == {2}, "it is kept", 60)


def test_a_node_that_was_away_takes_part_when_it_returns(
    three: list[NodeProcess], group: str
) -> None:
    """It comes back in the overlap with the old token, and needs nothing else. Before that the
    change is not ended without a person's word; after it, a beacon under the old key is forged."""
    first, _, away = three
    old = first.token
    away.kill()
    rotate(first)
    with first.connect() as owner:
        create_until_done(owner, b"meanwhile")
        with pytest.raises(UserError, match="node 3 may not have the new secret"):
            owner.call(Admin("secret-retire", {}))
    assert away.token == old
    away.start()
    wait_until(lambda: generation(away) == 1, "it has the new token", 60)
    wait_until(lambda: len(voters(first)) == 3, "all are there", 60)
    finish(first)
    for node in three:
        wait_until(lambda node=node: is_refused(node, old), "the old token is refused", 60)
    with away.connect() as client:
        create_until_done(client, b"after")
        now_ms = client.call(Admin("discovery"))["time_ms"]
    before = ignored(first).get("forged", 0)
    credentials = credentials_of(parse_node_token(old))
    late = Beacon(b"w" * 8, now_ms, 2, ("127.0.0.1:1",), (1,))
    host, _, port = group.partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
        )
        datagram = pack_beacon(late, credentials.cluster, credentials.beacon_key)
        stranger.sendto(datagram, (host, int(port)))
    wait_until(lambda: ignored(first).get("forged", 0) > before, "it counts as forged", 60)


@pytest.mark.expects_log("does not belong to the cluster of this token.*pydi token rotate")
def test_a_node_that_missed_the_change_says_so_and_has_a_way_back(
    three: list[NodeProcess], tmp_path: Path
) -> None:
    """Its log has one sentence that says what to do; with the new token it is a member as before,
    and what its service's configuration still names, the old one, does no harm then."""
    first, _, away = three
    old = tmp_path / "old"
    old.write_text(first.token)
    away.kill()
    rotate(first)
    finish(first, force=True)
    away.start()
    wait_until(lambda: "start that one with --token-file" in away.log_text(), "it says so", 60)
    assert generation(away) == 0
    away.kill()
    away.flags = [*away.flags[:2], "--token-file", str(first.data_dir / "token")]
    away.start()
    wait_until(lambda: len(voters(first)) == 3, "it is a member again", 60)
    assert generation(away) == 1
    away.kill()
    away.flags[-1] = str(old)
    away.start()
    wait_until(lambda: len(voters(first)) == 3, "it keeps the newer token", 60)
    assert generation(away) == 1


def test_the_overlap_ends_by_itself(make_node: MakeNode) -> None:
    """After the time that was asked for; and a crash before the new token was kept loses nothing:
    the node's own log has it."""
    node = make_node("n1")
    node.start()
    old = node.token
    with node.connect() as owner, pytest.raises(UserError, match="no change of the secret"):
        owner.call(Admin("secret-retire", {}))
    rotate(node, overlap_s=1)
    wait_until(lambda: is_refused(node, old), "the old token is refused", 60)
    new = node.token
    node.connect_tls(new).close()
    node.kill()
    (node.data_dir / "token").write_text(old + "\n")
    node.start()
    wait_until(lambda: node.token == new, "the token is kept again", 60)
    node.connect_tls(new).close()
    assert is_refused(node, old)


def _status(node: NodeProcess) -> dict[str, Any]:
    with node.connect() as owner:
        state: dict[str, Any] = owner.call(Admin("status"))
    return state
