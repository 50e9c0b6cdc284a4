"""``pydi --node``: a node over TCP, and who may be at either end."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path

import pytest

from pydi_fs.commands_remote import remote_endpoint
from pydi_node.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE
from pydi_node.wire import tls, trust
from tests.cli.conftest import Run


def address_of(data_dir: Path) -> str:
    address: str = json.loads((data_dir / "run.json").read_text())["address"]
    return address


def test_node_elsewhere(pydi: Run, data_dir: Path) -> None:
    """With the cluster's token a command works over TCP as it does over the unix socket."""
    where = ["--node", address_of(data_dir), "--token-file", str(data_dir / "token")]
    assert pydi("put", "-", "/over tcp", *where, input=b"content").returncode == EXIT_OK
    assert pydi("cat", "/over tcp").stdout == b"content"
    token = (data_dir / "token").read_text()
    assert pydi("cat", "/over tcp", "--node", where[1], "--token", token).stdout == b"content"


def test_wrong_token(pydi: Run, data_dir: Path) -> None:
    """No token, no token at all, and another cluster's token: one sentence each."""
    where = ["ls", "--node", address_of(data_dir)]
    other = trust.NodeToken.new(
        secrets.token_bytes(trust.CLUSTER_ID_BYTES + trust.SECRET_BYTES)
    ).text()
    for arguments, exit_code in (
        (where, EXIT_USAGE),
        ([*where, "--token", "nonsense"], EXIT_USAGE),
        ([*where, "--token", other], EXIT_UNREACHABLE),
    ):
        run = pydi(*arguments)
        assert run.returncode == exit_code, run.stderr
        assert run.stderr.count(b"\n") == 1


def test_only_a_node_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds a mount token can forge a server's certificate of its own kind: refused."""

    async def scenario() -> None:
        random_bytes = secrets.token_bytes(trust.CLUSTER_ID_BYTES + trust.SECRET_BYTES)
        token = trust.NodeToken.new(random_bytes)
        mounts = trust.credentials_of(trust.mount_token(token, trust.MountLimits()))
        with monkeypatch.context() as forger:
            usages = trust.ExtendedKeyUsageOID
            forger.setattr(usages, "CLIENT_AUTH", usages.SERVER_AUTH)
            seed = secrets.token_bytes(trust.SEED_BYTES)
            leaf = trust.make_leaf(mounts, 0, int(time.time()), seed)
        server = await asyncio.start_server(
            lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=tls.server_context(leaf)
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            endpoint = remote_endpoint("127.0.0.1", port, token.text())
            with pytest.raises(trust.TrustError):
                await endpoint.connect(asyncio.get_running_loop(), asyncio.Protocol)

    asyncio.run(scenario())
