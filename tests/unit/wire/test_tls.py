"""TLS over loopback with real asyncio streams: who may talk to whom, and who is refused.

The only test of this room with sockets: Python's ssl and OpenSSL decide here, not our code alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import ssl
import time

import pytest
import uvloop

from pydi_node.wire import tls, trust
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import MountLimits, NodeToken, TrustError, credentials_of, mount_token

NODE = NodeToken.new(os.urandom(48))
OTHER = NodeToken.new(os.urandom(48))
LIMITS = MountLimits(read_only=True, directory=b"/shared")
MOUNT = mount_token(NODE, LIMITS)
DAY_S = 24 * 3600


def leaf_of(credentials, number=0, now_s=None):
    now_s = int(time.time()) if now_s is None else now_s
    return trust.make_leaf(credentials, number, now_s, os.urandom(32))


async def handshake(server_leaf, client_leaf, server=NODE, client=NODE, adjust=None):
    """(identity the server saw or why not, identity the client saw or why not), after one echo."""
    seen: asyncio.Future = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        try:
            connection = writer.get_extra_info("ssl_object")
            identity = tls.identity_of(connection, credentials_of(server), int(time.time()))
            writer.write(await reader.readexactly(5))
            await writer.drain()
            seen.set_result(identity)
        except (TrustError, OSError, asyncio.IncompleteReadError) as exc:
            seen.set_result(exc)
        finally:
            writer.close()

    context = tls.server_context(server_leaf)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        port = listener.sockets[0].getsockname()[1]
        try:
            client_side = tls.client_context(client_leaf)
            if adjust is not None:
                adjust(client_side)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side)
        except (ssl.SSLError, OSError) as exc:
            return None, exc
        try:
            connection = writer.get_extra_info("ssl_object")
            assert connection.version() == "TLSv1.3"
            identity = tls.identity_of(connection, credentials_of(client), int(time.time()))
            # In TLS 1.3 the client learns that it was refused only when it reads.
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        except (TrustError, OSError, asyncio.IncompleteReadError) as exc:
            return (seen.result() if seen.done() else None), exc
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass  # the server refused us: that is what the caller looks at
        return await asyncio.wait_for(seen, 10), identity


def run(*arguments, **options):
    return asyncio.run(asyncio.wait_for(handshake(*arguments, **options), 30))


def refused(outcome) -> bool:
    return isinstance(outcome, Exception)


def test_node_and_mount_prove_themselves_to_each_other():
    """The node sees a mount with its limits, the mount sees node 3 of its cluster."""
    server, client = run(
        leaf_of(credentials_of(NODE), 3), leaf_of(credentials_of(MOUNT)), client=MOUNT
    )
    assert server == trust.PeerIdentity(Role.MOUNT, NODE.cluster, 0, LIMITS)
    assert client == trust.PeerIdentity(Role.NODE, NODE.cluster, 3, None)


def test_two_nodes_prove_themselves_to_each_other():
    """Both with their numbers."""
    server, client = run(leaf_of(credentials_of(NODE), 3), leaf_of(credentials_of(NODE), 4))
    assert (server.number, client.number) == (4, 3)


@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
def test_a_node_with_two_secrets_meets_holders_of_either(loop_factory):
    """Each names the authorities that it believes and is shown a certificate of theirs; who names
    none is shown the old one. One whose secret is no longer there believes nothing that it sees."""
    new = NODE.next(b"n" * 32)
    mount = trust.mount_token(new, trust.MountLimits())
    newest = NODE.next(b"m" * 32)

    async def meet(context, token, name):
        """Generation that the node proves the peer by, and number of the node; or why not."""
        proved = asyncio.get_running_loop().create_future()

        def accepted(_, writer):
            ring = Keyring(new)
            ring.replace((new, NODE))
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            proved.set_result(ring.identify(certificate, int(time.time())).generation)
            writer.close()

        credentials = credentials_of(token)
        async with await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context) as listener:
            try:
                _, writer = await asyncio.open_connection(
                    *listener.sockets[0].getsockname(),
                    ssl=tls.client_context(leaf_of(credentials)), server_hostname=name,
                )  # fmt: skip
            except ssl.SSLCertVerificationError as exc:
                return exc
            connection = writer.get_extra_info("ssl_object")
            number = tls.identity_of(connection, credentials, int(time.time())).number
            writer.close()
            return await proved, number

    async def scenario():
        leaves = [leaf_of(credentials_of(token), 3) for token in (new, NODE)]
        context = tls.server_context(*leaves)
        for token, name, expected in (
            (NODE, credentials_of(NODE).server_name, (0, 3)),
            (NODE, "", (0, 3)),
            (NODE, "elsewhere", (0, 3)),
            (new, credentials_of(new).server_name, (1, 3)),
            (mount, credentials_of(mount).server_name, (1, 3)),
        ):
            assert await meet(context, token, name) == expected
        assert refused(await meet(context, newest, credentials_of(newest).server_name))
        assert refused(await meet(context, new, ""))
        only_new = tls.server_context(leaves[0])
        assert await meet(only_new, new, credentials_of(new).server_name) == (1, 3)
        assert refused(await meet(only_new, NODE, credentials_of(NODE).server_name))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))


def test_another_clusters_node_is_refused_by_both_sides():
    """As client and as server."""
    here, there = leaf_of(credentials_of(NODE), 1), leaf_of(credentials_of(OTHER), 2)
    server, client = run(here, there, client=OTHER)
    assert refused(client)
    assert not isinstance(server, trust.PeerIdentity)
    server, client = run(there, here, server=OTHER)
    assert refused(client)
    assert not isinstance(server, trust.PeerIdentity)


def test_another_clusters_node_with_our_cluster_id_is_refused():
    """Its authority has the same name and the wrong key."""
    liar = dataclasses.replace(
        credentials_of(OTHER), cluster=NODE.cluster, authorities=credentials_of(NODE).authorities
    )
    server, client = run(leaf_of(credentials_of(NODE), 1), leaf_of(liar, 2))
    assert refused(client)
    assert not isinstance(server, trust.PeerIdentity)


@pytest.mark.parametrize("age_s", [trust.LEAF_LIFETIME_S + DAY_S, -3 * DAY_S])
def test_expired_certificate_is_refused(age_s):
    """Too old, and not valid yet."""
    old = leaf_of(credentials_of(NODE), 2, now_s=int(time.time()) - age_s)
    fresh = dataclasses.replace(
        leaf_of(credentials_of(NODE), 2),
        certificate_pem=old.certificate_pem,
        key_pem=old.key_pem,
    )
    server, client = run(leaf_of(credentials_of(NODE), 1), fresh)
    assert refused(client)
    assert not isinstance(server, trust.PeerIdentity)


def test_mount_that_poses_as_node_is_refused():
    """It signs "node 2" with the mount authority's key, under either authority's name."""
    liar = dataclasses.replace(credentials_of(MOUNT), role=Role.NODE)
    server, client = run(leaf_of(credentials_of(NODE), 1), leaf_of(liar, 2), client=MOUNT)
    assert refused(client)
    assert not isinstance(server, trust.PeerIdentity)


def test_mount_cannot_serve():
    """A mount that listens and says it is a node is refused by mounts and nodes."""
    liar = dataclasses.replace(
        credentials_of(MOUNT), role=Role.NODE, authorities=credentials_of(NODE).authorities
    )
    for token in (NODE, MOUNT):
        server, client = run(leaf_of(liar, 2), leaf_of(credentials_of(token)), client=token)
        assert refused(client)
        assert not isinstance(server, trust.PeerIdentity)
    server, client = run(leaf_of(credentials_of(MOUNT)), leaf_of(credentials_of(NODE)))
    assert refused(client)


def test_older_tls_is_refused():
    """A client that speaks TLS 1.2 at most gets nowhere, though its certificate is good."""

    def only_1_2(context):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    leaves = leaf_of(credentials_of(NODE), 1), leaf_of(credentials_of(NODE), 2)
    server, client = run(*leaves, adjust=only_1_2)
    assert isinstance(client, OSError)
    assert server is None


def test_client_without_a_certificate_is_refused():
    """TLS itself asks for one: no byte reaches the server's code."""
    served = []

    async def connect():
        async def serve(_reader, writer):
            served.append(writer)
            writer.close()

        context = tls.server_context(leaf_of(credentials_of(NODE), 1))
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
            plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            plain.check_hostname = False
            plain.verify_mode = ssl.CERT_NONE
            port = listener.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=plain)
            try:
                assert await reader.read() == b""
            except OSError:
                pass  # an alert or a reset, where it arrives before the end of the stream
            finally:
                writer.transport.abort()

    asyncio.run(asyncio.wait_for(connect(), 30))
    assert served == []


def test_no_key_is_left_behind(tmp_path, monkeypatch):
    """Without memory files the key stands in a file of its owner's, for a moment only."""
    monkeypatch.setattr(tls.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    seen = []
    original = ssl.SSLContext.load_cert_chain

    def load(self, path, *arguments):
        seen.append((os.stat(path).st_mode & 0o777, os.path.dirname(path)))
        return original(self, path, *arguments)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    tls.server_context(leaf_of(credentials_of(NODE), 1))
    assert seen == [(0o600, str(tmp_path))]
    assert list(tmp_path.iterdir()) == []
