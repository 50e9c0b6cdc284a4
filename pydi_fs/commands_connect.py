"""Which nodes a command talks to: the one on this machine, one elsewhere, or those that are found;
and the session with them in which a command runs.

Called by `pydi_fs.cli` and `pydi_fs.mount_cli` with their MountConfig.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydi_fs.client import Client, Endpoint, EndpointOf, Seek, node_on_this_machine
from pydi_fs.client.endpoints import TokenSource
from pydi_fs.commands_session import Session
from pydi_fs.mount_config import MountConfig, parse_address
from pydi_fs.progress import Progress
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.past import PastVfs
from pydi_node import portable
from pydi_node.commands import Caller
from pydi_node.errors import UserError
from pydi_node.wire.messages import Role

DISK_TMP = "/var/tmp"

P = TypeVar("P", bound=asyncio.BaseProtocol)


@asynccontextmanager
async def connected(
    config: MountConfig, progress: Progress, *, json: bool = False
) -> AsyncIterator[Session]:
    """A session for commands. What is still written when it ends by itself is published; after an
    exception it is dropped with the connection. UserError when no node can be reached."""
    client = Client(*ways_of(config), role=Role.CLIENT, deadline_s=config.deadline_s)
    await client.connect()
    try:
        with tempfile.TemporaryDirectory(
            prefix="pydi-", dir=_staging_parent(),
            # After an exception files in it are still open, and it must not be hidden by another.
            ignore_cleanup_errors=portable.IS_WINDOWS,
        ) as staging:  # fmt: skip
            vfs = PastVfs(client, VfsConfig(Path(staging), rereads=False))
            await vfs.start()
            caller = Caller(*portable.identity())
            yield Session(client, vfs, caller, _umask(), json, progress)
            await vfs.stop()
    finally:
        await client.close()


def _staging_parent() -> str | None:
    """Where content waits for its close: on disk, for /tmp may be memory. None: as TMPDIR says."""
    return None if "TMPDIR" in os.environ or not os.path.isdir(DISK_TMP) else DISK_TMP


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Ways(NamedTuple):
    """How a Client gets to the cluster; its first three arguments."""

    endpoints: Sequence[Endpoint]  # nodes to begin with, the nearest first
    endpoint_of: EndpointOf | None  # to another member, by its address
    seek: Seek | None  # finds nodes of the cluster when none of the known ones answers


def ways_of(config: MountConfig) -> Ways:
    """Where the configured node is, and how to reach the others of its cluster when that one fails.

    On a node's machine the token beside its socket opens the others, for whoever may read it; who
    may not is served by this machine's node alone. UserError when there is no node here, or the
    token is none.
    """
    if config.node is not None:
        token = TokenSource(config.token, config.token_file)
        host, port = parse_address(config.node)
        from pydi_fs.commands_remote import remote_endpoint  # only now: it is slow to load

        remote_endpoint(host, port, token.text())  # says now what is wrong with the token
        return Ways([_Member(host, port, token)], _reach(token), _seek(config, token))
    if config.has_token:
        token = TokenSource(config.token, config.token_file)
        return Ways([], _reach(token), _seek(config, token))
    here = node_on_this_machine(Path(config.data_dir), must_exist=not config.background)
    try:
        token = TokenSource(None, str(Path(config.data_dir) / "token"))
    except UserError:
        return Ways([here], None, None)
    return Ways([here], _reach(token), None)


class _Member:
    """A node elsewhere. What TLS takes to load would be half of the time of a short command, and on
    a node's machine hardly any needs it: it is loaded when this one is connected to."""

    local = False

    def __init__(self, host: str, port: int, token: TokenSource) -> None:
        self._address = (host, port)
        self._token = token

    def __str__(self) -> str:
        return "node at {}:{}".format(*self._address)

    async def connect(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P]) -> P:
        from pydi_fs.commands_remote import remote_endpoint

        return await remote_endpoint(*self._address, self._token.text()).connect(loop, make)


def _reach(token: TokenSource) -> EndpointOf:
    return lambda host, port: _Member(host, port, token)


def _seek(config: MountConfig, token: TokenSource) -> Seek:
    async def seek(timeout_s: float) -> tuple[list[tuple[str, int]], str]:
        from pydi_fs.commands_remote import find_nodes

        return await find_nodes(token.text(), config.group, config.interface, timeout_s)

    return seek
