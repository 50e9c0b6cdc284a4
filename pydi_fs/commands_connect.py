"""Which nodes a command talks to: the one on this machine, or one elsewhere, and then the others;
and the session with them in which a command runs.

Called by `pydi_fs.cli` and `pydi_fs.mount_cli` with their MountConfig.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydi_fs.client import Client, Endpoint, EndpointOf, node_on_this_machine
from pydi_fs.client.endpoints import read_token
from pydi_fs.commands_session import Session
from pydi_fs.mount_config import MountConfig, parse_address
from pydi_fs.progress import Progress
from pydi_fs.vfs.vfs import Vfs, VfsConfig
from pydi_node.commands import Caller
from pydi_node.errors import UserError
from pydi_node.wire.messages import Role

DISK_TMP = "/var/tmp"


@asynccontextmanager
async def connected(
    config: MountConfig, progress: Progress, *, json: bool = False
) -> AsyncIterator[Session]:
    """A session for commands. What is still written when it ends by itself is published; after an
    exception it is dropped with the connection. UserError when no node can be reached."""
    client = Client(*endpoints_of(config), Role.CLIENT, config.deadline_s)
    await client.connect()
    try:
        with tempfile.TemporaryDirectory(prefix="pydi-", dir=_staging_parent()) as staging:
            vfs = Vfs(client, VfsConfig(staging_dir=Path(staging)))
            await vfs.start()
            caller = Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
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


def endpoints_of(config: MountConfig) -> tuple[Sequence[Endpoint], EndpointOf | None]:
    """Where the configured node is, and how to reach the others of its cluster when that one fails.

    On a node's machine the token beside its socket opens the others, for whoever may read it; who
    may not is served by this machine's node alone. UserError when there is no node here, or the
    token is none.
    """
    if config.node is not None:
        reach = _reach(read_token(config.token, config.token_file))
        return [reach(*parse_address(config.node))], reach
    here = node_on_this_machine(Path(config.data_dir))
    try:
        token = read_token(None, str(Path(config.data_dir) / "token"))
    except UserError:
        return [here], None
    return [here], _reach(token)


def _reach(token: str) -> EndpointOf:
    def reach(host: str, port: int) -> Endpoint:
        from pydi_fs.commands_remote import remote_endpoint  # only now: it is slow to load

        return remote_endpoint(host, port, token)

    return reach
