"""Which node a command talks to: the one on this machine, or one elsewhere under a token.

Called by `pydi_fs.cli` (and whoever has a MountConfig). It reads the token and makes a certificate
of it; it opens nothing itself.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydi_fs.client import Endpoint, TcpEndpoint, node_on_this_machine
from pydi_fs.client.endpoints import read_token
from pydi_fs.mount_config import MountConfig, parse_address
from pydi_node.wire import tls, trust
from pydi_node.wire.messages import Role

P = TypeVar("P", bound=asyncio.BaseProtocol)


def endpoint_of(config: MountConfig) -> Endpoint:
    """Where the configured node is. UserError when there is none here, or the token is none."""
    if config.node is None:
        return node_on_this_machine(Path(config.data_dir))
    text = read_token(config.token, config.token_file)
    credentials = trust.credentials_of(trust.parse_token(text, int(time.time())))
    return _VerifiedEndpoint(*parse_address(config.node), credentials)


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
            make, self.host, self.port, ssl=self._context_now(), server_hostname=""
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
