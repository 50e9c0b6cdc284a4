"""``pydi top``: the cluster as it works: nodes, what comes in and goes out, changes, repair.

Called by `pydi_fs.cli` with a connected session. Everything is told by two states of `pydi status`
and the time between them; `rates` is pure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydi_fs.commands_session import Session
from pydi_fs.progress import format_bytes, format_duration
from pydi_node.errors import EXIT_USAGE, UnavailableError, UserError
from pydi_node.ids import counted
from pydi_node.wire.messages import Admin

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_MIN_S = 0.2

State = Mapping[str, Any]


class Rates(NamedTuple):
    """What happened between two states, per second.

    changes   of the tree
    stored    bytes of content more, or less, by node
    repaired  blobs that got the copies they lacked; negative while more lack some
    reads     requests for content that clients and mounts made, by the node that they asked. Not
              what they read on that node's machine without asking, as by passthrough.
    read      bytes of content for them, likewise
    """

    changes: float
    stored: Mapping[int, float]
    repaired: float
    reads: Mapping[int, float]
    read: Mapping[int, float]


async def run(session: Session, arguments: argparse.Namespace) -> None:
    """``top``: until Ctrl-C, or so many times."""
    if arguments.interval < INTERVAL_MIN_S or (arguments.count or 1) < 1:
        raise UserError(f"at least {INTERVAL_MIN_S:g} s, and once", EXIT_USAGE)
    if session.json or not sys.stdout.isatty():
        await _print(session, arguments)
        return
    import rich  # only now: it is slow to load
    from rich.live import Live

    drawn_rates: Rates | None = None
    with Live(screen=True, auto_refresh=False) as live:
        before: State | None = None
        before_s = 0.0
        shown = 0
        while True:
            try:
                state = await session.client.call(Admin("status"))
                now_s = time.monotonic()
                drawn_rates = _rates(before, state, now_s - before_s)
                live.update(_drawn(state, drawn_rates), refresh=True)
                before, before_s = state, now_s
            except UnavailableError as exc:
                live.update(f"waiting for a node: {exc}", refresh=True)
            shown += 1
            if shown == arguments.count:
                break
            await asyncio.sleep(arguments.interval)
    if before is not None:
        # The screen of its own is gone, and with it what was asked for.
        rich.print(_drawn(before, drawn_rates))


async def _print(session: Session, arguments: argparse.Namespace) -> None:
    """One line of JSON, or a few of text, for each look: for programs, and where nothing moves."""
    before: State | None = None
    before_s = 0.0
    shown = 0
    while True:
        state = await session.client.call(Admin("status"))
        now_s = time.monotonic()
        rates = _rates(before, state, now_s - before_s)
        before, before_s = state, now_s
        if session.json:
            session.out(json.dumps({**state, "rates": _as_json(rates)}))
        else:
            session.out("\n".join(summary(state, rates)))
        sys.stdout.flush()
        shown += 1
        if shown == arguments.count:
            return
        await asyncio.sleep(arguments.interval)


def _rates(before: State | None, after: State, elapsed_s: float) -> Rates | None:
    return None if before is None else rates(before, after, elapsed_s)


def rates(before: State, after: State, elapsed_s: float) -> Rates:
    """Per second. A node that was down in one of the states has none."""

    earlier, later = (
        {node["number"]: node for node in state["nodes"] if node["state"] != "down"}
        for state in (before, after)
    )

    def of(key: str) -> dict[int, float]:
        return {
            number: (later[number][key] - earlier[number][key]) / elapsed_s
            for number in sorted(later.keys() & earlier.keys())
        }

    def counted(key: str) -> dict[int, float]:
        # A node that was started again meanwhile has counted from 0.
        return {number: max(rate, 0.0) for number, rate in of(key).items()}

    short = before["blobs"]["under_replicated"] - after["blobs"]["under_replicated"]
    return Rates(
        (after["applied_index"] - before["applied_index"]) / elapsed_s,
        of("stored_bytes"),
        short / elapsed_s,
        counted("reads"),
        counted("read_bytes"),
    )


def _as_json(found: Rates | None) -> dict[str, Any] | None:
    if found is None:
        return None

    def named(rates: Mapping[int, float]) -> dict[str, float]:
        return {str(number): rate for number, rate in rates.items()}

    return {
        "changes": found.changes,
        "stored_bytes": named(found.stored),
        "repaired_blobs": found.repaired,
        "reads": named(found.reads),
        "read_bytes": named(found.read),
    }


def summary(state: State, found: Rates | None) -> list[str]:
    """The lines above the table of nodes."""
    leader = state["leader"]
    lines = [
        f"cluster {state['cluster']}  "
        + ("no leader" if leader is None else f"leader node {leader}")
        + f"  term {state['term']}  {counted(len(state['mounts']), 'mount')}"
        + ("" if state["quorum"] else "  NO QUORUM: writes are refused"),
    ]
    if found is not None:
        stored = sum(found.stored.values())
        reads, read = sum(found.reads.values()), sum(found.read.values())
        lines.append(
            f"changes {found.changes:.0f}/s  stored {_signed(stored)}/s"
            f"  reads {reads:.0f}/s  {format_bytes(int(read))}/s"
        )
    lines.append(f"repair  {repair(state['blobs'], found)}")
    return lines + [f"* {sentence}" for sentence in state["advice"]]


def repair(blobs: Mapping[str, int], found: Rates | None) -> str:
    """ "12 of 400 blobs lack copies, 3.0/s, 0:04 left"."""
    short = blobs["under_replicated"]
    if not short:
        lost = blobs["missing"]
        return f"{counted(lost, 'blob')} lost" if lost else "all copies are there"
    text = f"{short} of {blobs['total']} blobs lack copies"
    if found is not None and found.repaired > 0:
        left = format_duration(short / found.repaired)
        text += f", {found.repaired:.1f}/s, {left} left"
    return text


def _signed(rate: float) -> str:
    return f"{'-' if rate < 0 else '+'}{format_bytes(int(abs(rate)))}"


def _drawn(state: State, found: Rates | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("node", "address", "state", "role", "stored", "stored/s", "read/s", "free",
                   "files", "behind"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("address", "state") else "right")
    newest = max((node["applied_index"] for node in state["nodes"]), default=0)
    for node in state["nodes"]:
        rate = None if found is None else found.stored.get(node["number"])
        read = None if found is None else found.read.get(node["number"])
        is_down = node["state"] == "down"
        table.add_row(
            str(node["number"]), node["address"], node["state"], node["role"],
            *([""] * 6 if is_down else [
                format_bytes(node["stored_bytes"]), "" if rate is None else _signed(rate),
                "" if read is None else format_bytes(int(read)),
                format_bytes(node["free_bytes"]), str(node["files"]),
                str(newest - node["applied_index"]),
            ]),
            style="red" if is_down else None,
        )  # fmt: skip
    return Group(*(Text(line) for line in summary(state, found)), Text(), table)
