"""``pydi forget``: which nodes belong to the cluster.

Called by `pydi_fs.cli` with a connected session. The nodes decide and refuse; here is only what a
person reads.
"""

from __future__ import annotations

import argparse
import json

from pydi_fs.commands_session import Session
from pydi_node.wire.messages import Admin


async def forget(session: Session, arguments: argparse.Namespace) -> None:
    """``forget N``: the node is no member any more, and can't come back under its number."""
    answer = await session.client.call(
        Admin("forget", {"number": arguments.number, "force": arguments.force})
    )
    if session.json:
        session.out(json.dumps(answer, indent=2))
    else:
        session.out(f"node {arguments.number} was forgotten")
