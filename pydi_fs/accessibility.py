"""Why content can't be read: which nodes hold it, and since when they are down.

Called by `pydi_fs.commands_session` when a read failed. ``sentence`` is pure.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydi_fs.client import Client
from pydi_node.errors import PydiError
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import Admin


async def explain(client: Client, blobs: Collection[BlobInfo]) -> str | None:
    """One sentence for a person; None when the holders' absence is not the reason."""
    try:
        state = await client.call(Admin("status"))
    except PydiError:
        return None
    return sentence(blobs, state.get("nodes", []), time.time_ns())


def sentence(
    blobs: Collection[BlobInfo], nodes: Sequence[Mapping[str, Any]], now_ns: int
) -> str | None:
    """ "not accessible: holders 2, 3 are down since 14:03:10", of the first blob that this holds
    for; None when each has a holder that is up.

    nodes  as in the object of `pydi status`.
    """
    known = {node.get("number"): node for node in nodes}
    for info in sorted(blobs):
        if info.is_in_tree:
            continue
        if not info.holders:
            return "not accessible: no node holds it any more"
        down = [known.get(number, {"state": "down"}) for number in info.holders]
        if any(node.get("state") != "down" for node in down):
            continue
        numbers = ", ".join(map(str, info.holders))
        who = f"holder {numbers} is" if len(down) == 1 else f"holders {numbers} are"
        times = [node.get("down_since_ns") for node in down]
        # The last to go took the last copy along.
        since = max((t for t in times if isinstance(t, int)), default=None)
        when = "" if since is None else f" since {_clock(since, now_ns)}"
        return f"not accessible: {who} down{when}"
    return None


def _clock(time_ns: int, now_ns: int) -> str:
    then, now = time.localtime(time_ns // 10**9), time.localtime(now_ns // 10**9)
    is_today = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", then)
