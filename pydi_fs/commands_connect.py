"""Which nodes a command talks to: the one on this machine, or one elsewhere, and then the others.

Called by `pydi_fs.cli` and `pydi_fs.mount_cli` with their MountConfig. It reads the token's file
and opens nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydi_fs.client import Endpoint, EndpointOf, node_on_this_machine
from pydi_fs.client.endpoints import read_token
from pydi_fs.mount_config import MountConfig, parse_address
from pydi_node.errors import UserError


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
