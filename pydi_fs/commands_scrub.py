"""``pydi scrub``: how far each node is with re-reading its content, or to do it now.

Called by `pydi_fs.cli` with a connected session. The formatting functions are pure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydi_fs.commands_session import Session
from pydi_fs.progress import format_bytes
from pydi_node.errors import UnavailableError
from pydi_node.ids import counted
from pydi_node.wire.messages import Admin

POLL_S = 0.5
UNREACHABLE_MAX_S = 30.0  # a node that restarts, or another one to ask, is there long before
NS_PER_S = 1_000_000_000

Report = Mapping[str, Any]  # as the verb "scrub" answers for each node


async def scrub(session: Session, arguments: argparse.Namespace) -> None:
    """``scrub`` shows; ``scrub --now`` has every node read everything, and waits for it."""
    reports: Sequence[Report] = await session.client.call(Admin("scrub", {"now": arguments.now}))
    if arguments.now:
        reports = await _wait_done(session, reports)
    if session.json:
        session.out(json.dumps(reports, indent=2))
    for report in reports:
        if not session.json:
            session.out(describe(report))
        if "error" in report:
            session.complain(f"node {report['node']} can't be asked: {report['error']}")


async def _wait_done(session: Session, reports: Sequence[Report]) -> Sequence[Report]:
    """The reports once each node that was asked has finished what it began."""
    begun = {r["node"]: r["current"]["started_ns"] for r in reports if r.get("current")}
    answered_s = time.monotonic()
    silent_since_s: dict[int, float] = {}
    terminal = sys.stderr.isatty()
    while True:
        left = [r for r in reports if r["node"] in begun and not _is_done(r, begun[r["node"]])]
        now_s = time.monotonic()
        for report in left:
            if "error" in report:
                silent_since_s.setdefault(report["node"], now_s)
            else:
                silent_since_s.pop(report["node"], None)
        left = [
            r for r in left
            if now_s - silent_since_s.get(r["node"], now_s) <= UNREACHABLE_MAX_S
        ]  # fmt: skip
        if not left:
            break
        if terminal:
            print(f"\r{progress(reports):<78}", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(POLL_S)
        try:
            reports = await session.client.call(Admin("scrub"))
            answered_s = time.monotonic()
        except UnavailableError:
            if time.monotonic() - answered_s > UNREACHABLE_MAX_S:
                raise
    if terminal:
        print(file=sys.stderr)
    return reports


def _is_done(report: Report, started_ns: int) -> bool:
    last = report.get("last")
    return last is not None and last["started_ns"] >= started_ns


def progress(reports: Sequence[Report]) -> str:
    """One line over all nodes."""
    total = sum(report.get("bytes", 0) for report in reports)
    running = [(r, r["current"]) for r in reports if r.get("current")]
    left = sum(max(0, r["bytes"] - current["bytes"]) for r, current in running)
    found = sum(current["found"] for _, current in running)
    percent = 100 if total == 0 else 100 * (total - left) // total
    return f"{percent} % of {format_bytes(total)} read, {_found(found)}"


def describe(report: Report) -> str:
    """One line for one node."""
    name = f"node {report['node']}"
    if "error" in report:
        return f"{name}: not reachable"
    parts = []
    current, last = report["current"], report["last"]
    if current is not None:
        parts.append(
            f"reading since {_clock(current['started_ns'])},"
            f" {format_bytes(current['bytes'])} of {format_bytes(report['bytes'])} so far,"
            f" {_found(current['found'])}"
        )
    if last is not None:
        parts.append(
            f"all read until {_clock(last['finished_ns'])}: {counted(last['blobs'], 'blob')},"
            f" {format_bytes(last['bytes'])}, {_found(last['found'])}"
        )
    return f"{name}: {'; '.join(parts) or 'nothing was read yet'}"


def _found(count: int) -> str:
    if count == 0:
        return "all sound"
    return f"{count} damaged or missing, replaced from other copies where there are any"


def _clock(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // NS_PER_S))
