"""``pydi status``: how the cluster is doing, as JSON for programs or as a short text for people.

Called by `pydi_fs.cli`. ``format_status`` is pure and lenient: the node's object may have more keys
than this version knows, and lack what an older node did not say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydi_fs.commands_session import Session
from pydi_fs.progress import format_bytes
from pydi_node.wire.messages import Admin

_NODE_COLUMNS = ("node", "address", "state", "role", "stored", "free", "files", "applied")
_BLOB_TROUBLES = ("under_replicated", "endangered", "missing")


async def status(session: Session, arguments: argparse.Namespace) -> None:
    """Print the cluster's state; whether it is good or bad, printing it is success."""
    answer = await session.client.call(Admin("status"))
    if session.json:
        session.out(json.dumps(answer, indent=2))
    else:
        session.out(format_status(answer))


def format_status(state: Mapping[str, Any]) -> str:
    """The text form of the object that the design fixes for ``status --json``."""
    leader = state.get("leader")
    lines = [
        f"cluster  {state.get('cluster', 'unknown')}",
        f"leader   {'none' if leader is None else f'node {leader}'}, term {state.get('term', '?')}",
        f"quorum   {'yes' if state.get('quorum') else 'NO: reads go on, writes are refused'}",
        f"blobs    {_blobs(state.get('blobs', {}))}",
        f"mounts   {_mounts(state.get('mounts', []))}",
        "",
        *_table(_NODE_COLUMNS, [_node(node) for node in state.get("nodes", [])]),
    ]
    paths = state.get("blobs", {}).get("missing_paths", [])
    if paths:
        lines += ["", "can't be read now:", *(f"  {path}" for path in paths)]
    advice = state.get("advice", [])
    if advice:
        lines += ["", *(f"* {sentence}" for sentence in advice)]
    return "\n".join(lines)


def _blobs(blobs: Mapping[str, Any]) -> str:
    troubles = [
        f"{blobs[name]} {name.replace('_', ' ')}" for name in _BLOB_TROUBLES if blobs.get(name)
    ]
    return ", ".join([str(blobs.get("total", "?")), *troubles])


def _mounts(mounts: Sequence[Mapping[str, Any]]) -> str:
    if not mounts:
        return "none"
    return ", ".join(f"{mount.get('host', '?')} ({mount.get('driver', '?')})" for mount in mounts)


def _node(node: Mapping[str, Any]) -> tuple[str, ...]:
    def size(key: str) -> str:
        value = node.get(key)
        return format_bytes(value) if isinstance(value, int) else "?"

    return (
        str(node.get("number", "?")), str(node.get("address", "?")), str(node.get("state", "?")),
        str(node.get("role", "?")), size("stored_bytes"), size("free_bytes"),
        str(node.get("files", "?")), str(node.get("applied_index", "?")),
    )  # fmt: skip


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
