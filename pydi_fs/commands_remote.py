"""A node elsewhere, over TLS under a token: certificates of ours, and insistence on a node's.

Called by `commands_connect`, which imports it only when it is needed: cryptography is half of the
time that a short command takes, and nobody on a node's machine needs it. It must never send the
token anywhere.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from pydi_fs.client import TcpEndpoint
from pydi_node.discovery.finder import Finder
from pydi_node.discovery.group import Group
from pydi_node.wire import tls, trust
from pydi_node.wire.messages import Role

P = TypeVar("P", bound=asyncio.BaseProtocol)

OTHERS_WAIT_S = 0.05  # after the first node's answer, for those of the others


def remote_endpoint(host: str, port: int, token: str) -> TcpEndpoint:
    """The node at this address, for whoever has ``token``. UserError when that is no token."""
    credentials = trust.credentials_of(trust.parse_token(token, int(time.time())))
    return _VerifiedEndpoint(host, port, credentials)


async def find_nodes(
    token: str, group: Group, interface: str | None, timeout_s: float
) -> tuple[list[tuple[str, int]], str]:
    """Addresses of nodes of the token's cluster on this network, and why there are none.

    Returns a moment after the first one was found, or when the time has passed. UserError when
    that is no token.
    """
    credentials = trust.credentials_of(trust.parse_token(token, int(time.time())))
    wanted = () if interface is None else (interface,)
    async with Finder(credentials.cluster, credentials.beacon_key, group, wanted) as finder:
        if await finder.wait_found(timeout_s):
            await asyncio.sleep(OTHERS_WAIT_S)
        found = [address for node in finder.found.values() for address in node.addresses]
        return found, finder.diagnosis()


class _VerifiedEndpoint(TcpEndpoint):
    """TLS accepts any certificate of the cluster; a node's is what we insist on.

    Who holds a mount token can sign certificates that look like a server's, but none of a node.
    """

    def __init__(self, host: str, port: int, credentials: trust.Credentials) -> None:
        super().__init__(host, port, self._context_now)
        self._credentials = credentials

    def _context_now(self) -> ssl.SSLContext:
        seed = secrets.token_bytes(trust.SEED_BYTES)
        return tls.client_context(trust.make_leaf(self._credentials, 0, int(time.time()), seed))

    async def connect(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P]) -> P:
        transport, protocol = await loop.create_connection(
            make,
            self.host,
            self.port,
            ssl=self._context_now(),
            server_hostname=self._credentials.server_name,
        )
        try:
            connection = transport.get_extra_info("ssl_object")
            peer = tls.identity_of(connection, self._credentials, int(time.time()))
            if peer.role is not Role.NODE:
                raise trust.TrustError(f"{self} shows the certificate of a {peer.role}")
        except trust.TrustError:
            transport.abort()
            raise
        return protocol
