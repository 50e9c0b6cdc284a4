"""``pydi forget``, ``drain`` and ``set``: which nodes keep content, and how the cluster is set.

Called by `pydi_fs.cli` with a connected session. The nodes decide and refuse; here is only what a
person reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from pydi_fs.commands_session import Session
from pydi_fs.progress import format_bytes
from pydi_node.errors import EXIT_USAGE, UnavailableError, UserError
from pydi_node.ids import counted
from pydi_node.wire.messages import Admin

POLL_S = 0.5  # between two looks at the progress of a drain
UNREACHABLE_MAX_S = 30.0  # a new leader is there long before


async def forget(session: Session, arguments: argparse.Namespace) -> None:
    """``forget N``: the node is no member any more, and can't come back under its number."""
    answer = await session.client.call(
        Admin("forget", {"number": arguments.number, "force": arguments.force})
    )
    if session.json:
        session.out(json.dumps(answer, indent=2))
    else:
        session.out(f"node {arguments.number} was forgotten")


async def drain(session: Session, arguments: argparse.Namespace) -> None:
    """``drain N``: until node N is empty; interrupted, it goes on by itself. ``--stop`` undoes."""
    number, stop = arguments.number, arguments.stop
    report = await session.client.call(Admin("drain", {"number": number, "stop": stop}))
    if not (stop or arguments.no_wait):
        report = await _wait_drained(session, report)
    if session.json:
        session.out(json.dumps(report, indent=2))
    elif stop:
        session.out(f"node {number} takes content again")
    elif report["blobs"]:
        session.out(
            f"node {number} drains: {counted(report['blobs'], 'blob')},"
            f" {format_bytes(report['bytes'])}, still to leave it"
        )
    else:
        session.out(f"node {number} is empty: stop it, then run pydi forget {number}")


async def _wait_drained(session: Session, report: dict[str, Any]) -> dict[str, Any]:
    """The last report. UserError when somebody stopped the drain."""
    first, started_s = report, time.monotonic()
    answered_s = started_s
    told: str | None = None
    terminal = sys.stderr.isatty()
    while report["blobs"]:
        if report["state"] != "draining":
            raise UserError(f"node {report['number']} does not drain any more")
        if terminal:
            line = drain_progress(first, report, time.monotonic() - started_s)
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
        elif report["obstacle"] not in (None, told):
            told = report["obstacle"]
            print(f"pydi: waiting: {told}", file=sys.stderr)
        await asyncio.sleep(POLL_S)
        try:
            report = await session.client.call(
                Admin("drain-progress", {"number": report["number"]})
            )
            answered_s = time.monotonic()
        except UnavailableError:
            if time.monotonic() - answered_s > UNREACHABLE_MAX_S:
                raise
    if terminal and report is not first:
        print(file=sys.stderr)
    return report


def drain_progress(first: dict[str, Any], now: dict[str, Any], elapsed_s: float) -> str:
    """What is left, and how long that takes if it goes on like this."""
    left = f"{counted(now['blobs'], 'blob')}, {format_bytes(now['bytes'])} left"
    if now["obstacle"] is not None:
        return f"{left}; waiting: {now['obstacle']}"
    gone = first["blobs"] - now["blobs"]
    if gone <= 0 or elapsed_s <= 0:
        return left
    # Small blobs cost time by their number, large ones by their bytes: the slower tells.
    gone_bytes = first["bytes"] - now["bytes"]
    by_number = now["blobs"] * elapsed_s / gone
    by_bytes = now["bytes"] * elapsed_s / gone_bytes if gone_bytes > 0 else by_number
    return f"{left}; some {_duration(max(by_number, by_bytes))} to go"


def _duration(seconds: float) -> str:
    for unit, length_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


async def set_(session: Session, arguments: argparse.Namespace) -> None:
    """``set NAME=VALUE...`` changes settings of the cluster; ``set`` shows them, ``set NAME``
    one."""
    changes = [word.partition("=") for word in arguments.setting]
    for name, equals, value in changes:
        if not name or (equals and not value):
            raise UserError(f"set: {name or '='}: give NAME=VALUE", EXIT_USAGE)
    for name, equals, value in changes:
        if equals:
            await session.client.call(Admin("set", {"name": name, "value": value}))
    settings = await session.client.call(Admin("settings"))
    names = [name for name, _, _ in changes] or sorted(settings)
    for name in names:
        if name not in settings:
            raise UserError(
                f"there is no setting {name!r}: the settings are {', '.join(sorted(settings))}"
            )
    if session.json:
        session.out(json.dumps({name: settings[name] for name in names}, indent=2))
        return
    width = max(len(f"{name}={settings[name]['value']}") for name in names)
    for name in names:
        word = f"{name}={settings[name]['value']}"
        session.out(f"{word:<{width}}  {settings[name]['meaning']}")
