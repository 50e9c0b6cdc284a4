"""What a real node refuses of peers that prove something, but not enough; everybody else goes on.

Each rule has its own tests below this one (tests/unit/wire: sessions, certificates, TLS). Here they
are seen from outside, through a node's sockets. Joining is in test_discovery, limits of mount
tokens in test_tokens.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydi_node.errors import EXIT_FAILED
from pydi_node.ids import ROOT_INO
from pydi_node.wire import session as wire
from pydi_node.wire import tls
from pydi_node.wire.codec import pack
from pydi_node.wire.events import Hello
from pydi_node.wire.frames import LIMITS_AFTER_WELCOME, LIMITS_BEFORE_WELCOME, encode_frame
from pydi_node.wire.messages import Admin, GetAttr, ReplicaCreate, Role, encode_request
from pydi_node.wire.session import Kind
from pydi_node.wire.trust import NodeToken, credentials_of, make_leaf, parse_token
from tests.harness.procs import (
    CALL_DEADLINE_S,
    ROOT,
    START_DEADLINE_S,
    NodeProcess,
    Refused,
    WireClient,
    environment,
    node_command,
)
from tests.node.test_cluster import voters
from tests.node.test_life import assert_sentence
from tests.node.test_tokens import make_token, mount

MakeNode = Callable[..., NodeProcess]


def tls_socket(node: NodeProcess, token: str, *, number: int = 0) -> ssl.SSLSocket:
    """A connection whose handshake is done, with a certificate of the token."""
    now_s = int(time.time())
    credentials = credentials_of(parse_token(token, now_s))
    leaf = make_leaf(credentials, number, now_s, secrets.token_bytes(32))
    host, _, port = node.address.rpartition(":")
    sock = socket.create_connection((host, int(port)), CALL_DEADLINE_S)
    return tls.client_context(leaf).wrap_socket(sock, server_hostname=credentials.server_name)


def say(node: NodeProcess, token: str, hello: Hello, *, number: int = 0) -> str:
    """What the node answers to a hello: the sentence of its refusal; "" for a welcome."""
    with tls_socket(node, token, number=number) as sock:
        session = wire.Session.connecting(hello)
        sock.sendall(b"".join(session.send_hello()))
        try:
            while True:
                session.receive_data(sock.recv(1 << 16))
                for event in session.events():
                    return getattr(event, "sentence", "")
        except ConnectionError as exc:
            raise AssertionError("it said nothing") from exc


def is_hung_up(sock: socket.socket) -> bool:
    """The node ends the connection, whatever it says before."""
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass  # a reset is an end, too
    return True


@pytest.fixture
def bystander(node: NodeProcess) -> Iterator[WireClient]:
    """A session from before, which must not notice anything."""
    with node.connect_tls() as client:
        yield client
        client.call(GetAttr(ROOT_INO))


@pytest.mark.expects_log("refused 127.0.0.1:\\d+: no protocol version in common")
def test_other_versions(node: NodeProcess, bystander: WireClient, tmp_path: Path) -> None:
    """Newer, older (a downgrade) or none: one sentence that names both; a node that speaks none of
    ours does not join, with exit code 1, and its data directory stays empty."""
    for versions in ((99,), (max(wire.PROTOCOL_VERSIONS) + 1, 65535)):
        said = say(node, node.token, Hello(versions, Role.CLIENT, "", 0, "test", {}))
        assert "no protocol version in common" in said
        assert str(versions[-1]) in said
    code = (
        "import sys; from pydi_node.wire import session; session.PROTOCOL_VERSIONS = (99,);"
        "from pydi_node.cli import main; sys.exit(main())"
    )
    data_dir = tmp_path / "newer"
    arguments = node_command(
        data_dir, "--listen", "127.0.0.1:0", "--peer", node.address, "--join", node.token
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments[3:]], check=False, capture_output=True, text=True,
        cwd=ROOT, env=environment(), timeout=START_DEADLINE_S,
    )  # fmt: skip
    assert_sentence(run, EXIT_FAILED, "no protocol version in common", "the other one 99")
    assert not (data_dir / "node.json").exists()
    assert voters(node) == [1]


@pytest.mark.expects_log("refused 127.0.0.1:\\d+: ")
def test_roles_that_a_certificate_does_not_cover(node: NodeProcess, bystander: WireClient) -> None:
    """A mount's certificate is no node's and no command's; a node's is that of its number; and
    nobody is the node itself, or of another cluster than he says."""
    token = make_token(node)["token"]
    versions, cluster = wire.PROTOCOL_VERSIONS, node.run["cluster"]
    for hello_role, number in ((Role.NODE, 2), (Role.CLIENT, 0)):
        said = say(node, token, Hello(versions, hello_role, cluster, number, "test", {}))
        assert said == f"its certificate is not that of {hello_role} {number}"
    posing = Hello(versions, Role.NODE, cluster, 3, "test", {})
    assert "is not that of node 3" in say(node, node.token, posing, number=2)
    same = Hello(versions, Role.NODE, cluster, 1, "test", {})
    assert say(node, node.token, same, number=1) == "this is node 1 already"
    other = Hello(versions, Role.CLIENT, "f" * 32, 0, "test", {})
    assert say(node, node.token, other) == f"this is cluster {cluster}"


@pytest.mark.expects_log("broke the protocol: .*disconnected")
def test_a_mount_that_speaks_as_a_node(node: NodeProcess, bystander: WireClient) -> None:
    """Consensus messages, what only nodes ask of each other, administration: the session ends with
    the first one, and nothing of it was done."""
    token = make_token(node)
    frames: list[tuple[Any, ...]] = [
        (Kind.PEER, (1, 2, 1, 9)),
        (Kind.REQUEST, 1, 1000, encode_request(ReplicaCreate(1 << 48 | 1))),
        (Kind.REQUEST, 1, 1000, encode_request(Admin("forget", {"number": 1, "force": True}))),
        (Kind.REQUEST, 1, 1000, encode_request(Admin("secret-rotate", {"overlap_s": 9}))),
        (Kind.ANSWER, 1, None),
        (Kind.WELCOME, 1, node.run["cluster"], 1, "test"),
    ]
    for frame in frames:
        with mount(node, token) as client:
            client.sock.sendall(b"".join(encode_frame(frame, b"", LIMITS_AFTER_WELCOME)))
            assert is_hung_up(client.sock), frame
    assert voters(node) == [1]


@pytest.mark.expects_log("broke the protocol: .*disconnected")
def test_what_is_no_hello(node: NodeProcess, bystander: WireClient) -> None:
    """Garbage, a frame that is larger than a hello can be, other kinds of frames, a hello of 64 KiB
    that never ends: hung up on, with a certificate or without one."""
    large = LIMITS_BEFORE_WELCOME.header_max_bytes + 1
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        secrets.token_bytes(200),
        large.to_bytes(4, "big") + bytes(4) + b"\x90",
        (0xFFFFFFFF).to_bytes(4, "big") * 2,
        (9).to_bytes(4, "big") + (1 << 20).to_bytes(4, "big"),
        b"".join(encode_frame((Kind.PING, 1), b"", LIMITS_BEFORE_WELCOME)),
        (5).to_bytes(4, "big") + bytes(4) + pack((1, b"no", 1)),
    ):
        with tls_socket(node, node.token) as sock:
            sock.sendall(data)
            assert is_hung_up(sock), data[:20]
        host, _, port = node.address.rpartition(":")
        with socket.create_connection((host, int(port)), CALL_DEADLINE_S) as plain:
            plain.sendall(data)
            assert is_hung_up(plain), data[:20]


def test_older_tls_and_no_certificate(node: NodeProcess, bystander: WireClient) -> None:
    """TLS 1.2 and below, a client without a certificate, and one of another cluster."""
    host, _, port = node.address.rpartition(":")
    stranger = NodeToken.new(secrets.token_bytes(48))
    leaf = make_leaf(credentials_of(stranger), 2, int(time.time()), secrets.token_bytes(32))
    older = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign = tls.client_context(leaf)
    hello = wire.Session.connecting(Hello(wire.PROTOCOL_VERSIONS, Role.CLIENT, "", 0, "test", {}))
    data = b"".join(hello.send_hello())
    for context in (older, bare, foreign):
        # What the node shows is not looked at: whether it would be refused is another test.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = socket.create_connection((host, int(port)), CALL_DEADLINE_S)
        try:
            with context.wrap_socket(sock) as wrapped:
                wrapped.sendall(data)
                # In TLS 1.3 the client learns that it was refused only when it reads.
                assert wrapped.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            pass  # refused in the handshake, which is as good
        finally:
            sock.close()


def test_a_token_of_another_cluster(make_node: MakeNode) -> None:
    """Neither a node token nor a mount token of one cluster opens anything of another one."""
    node, other = make_node("n1"), make_node("o1")
    for each in (node, other):
        each.start()
    for token, role in ((other.token, Role.CLIENT), (make_token(other)["token"], Role.MOUNT)):
        with pytest.raises((OSError, Refused)):
            node.connect_tls(token, role)
    assert voters(node) == [1]


def memory_bytes(node: NodeProcess) -> int:
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


@pytest.mark.slow
def test_who_says_half_of_something(node: NodeProcess, bystander: WireClient) -> None:
    """Half a TLS record, half a hello behind a finished handshake, half of the largest frame behind
    a welcome: each holds what it has sent and little more, and strangers are hung up on in time."""
    host, _, port = node.address.rpartition(":")
    before = memory_bytes(node)
    strangers: list[socket.socket] = []
    for _ in range(10):
        plain = socket.create_connection((host, int(port)), CALL_DEADLINE_S)
        plain.sendall(bytes.fromhex("1603014000") + bytes(8000))
        strangers.append(plain)
        sock = tls_socket(node, node.token)
        limit = LIMITS_BEFORE_WELCOME.header_max_bytes
        sock.sendall(limit.to_bytes(4, "big") + bytes(4) + bytes(limit - 1))
        strangers.append(sock)
    bystander.call(GetAttr(ROOT_INO))
    assert memory_bytes(node) - before < len(strangers) << 20
    token = make_token(node)
    guests = [mount(node, token) for _ in range(4)]
    header, payload = LIMITS_AFTER_WELCOME
    data = header.to_bytes(4, "big") + payload.to_bytes(4, "big") + bytes(header + payload - 1)
    try:
        for guest in guests:
            guest.sock.sendall(data)
        bystander.call(GetAttr(ROOT_INO))
        room = len(strangers) + len(guests) * (2 * len(data) >> 20) + 16
        assert memory_bytes(node) - before < room << 20
        assert all(map(is_hung_up, strangers))
    finally:
        for each in (*guests, *strangers):
            each.close()
