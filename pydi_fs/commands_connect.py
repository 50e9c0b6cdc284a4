"""Which node a command talks to: the one on this machine, or one elsewhere under a token.

Called by `pydi_fs.cli` and `pydi_fs.mount_cli` with their MountConfig. It reads the token's file
and opens nothing else.
"""

from __future__ import annotations

from pathlib import Path

from pydi_fs.client import Endpoint, node_on_this_machine
from pydi_fs.client.endpoints import read_token
from pydi_fs.mount_config import MountConfig, parse_address


def endpoint_of(config: MountConfig) -> Endpoint:
    """Where the configured node is. UserError when there is none here, or the token is none."""
    if config.node is None:
        return node_on_this_machine(Path(config.data_dir))
    token = read_token(config.token, config.token_file)
    from pydi_fs.commands_remote import remote_endpoint  # only now: it is slow to load

    return remote_endpoint(*parse_address(config.node), token)
