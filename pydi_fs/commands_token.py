"""``pydi token``: mount tokens, which open the tree within limits and nothing else; and a new
secret for the cluster, under which all tokens are made anew.

Called by `pydi_fs.cli` with a connected session. The nodes make tokens, keep the list and enforce
the limits; here is only what a person types and reads.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from pydi_fs.commands_session import Session, show
from pydi_node import portable
from pydi_node.errors import EXIT_USAGE, UserError
from pydi_node.wire.messages import Admin

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ACTIONS = ("create", "list", "revoke", "rotate")
OVERLAP_DEFAULT = "7d"  # for machines that are away, and for people to give out mount tokens


async def token(session: Session, arguments: argparse.Namespace) -> None:
    """``token create --mount``, ``token list``, ``token revoke ID``, ``token rotate``."""
    action = arguments.action
    if (arguments.id is not None) != (action == "revoke"):
        raise UserError(
            "token revoke takes an ID" if action == "revoke" else f"token {action} takes no ID",
            EXIT_USAGE,
        )
    if action == "create":
        await _create(session, arguments)
    elif action == "rotate":
        await _rotate(session, arguments)
    elif action == "list":
        listed = await session.client.call(Admin("token-list"))
        _print(session, [_described(info) for info in listed], listed)
    else:
        info = await session.client.call(Admin("token-revoke", {"id": arguments.id}))
        if session.json:
            session.out(json.dumps(_plain(info), indent=2))
        else:
            session.out(f"token {info['token_id']} is revoked: mounts with it have ended")


async def _create(session: Session, arguments: argparse.Namespace) -> None:
    if not arguments.mount:
        raise UserError(
            "token create makes mount tokens: say --mount. The token for nodes is in the data"
            " directory of each node",
            EXIT_USAGE,
        )
    expires_s = parse_expiry(arguments.expires, int(time.time()))
    answer = await session.client.call(
        Admin(
            "token-create",
            {
                "read_only": arguments.read_only,
                "directory": portable.bytes_of(arguments.dir),
                "expires_s": expires_s,
                "note": arguments.note,
            },
        )
    )
    session.out(json.dumps(_plain(answer), indent=2) if session.json else answer["token"])


async def _rotate(session: Session, arguments: argparse.Namespace) -> None:
    if arguments.finish:
        state = await session.client.call(Admin("secret-retire", {"force": arguments.force}))
    else:
        overlap_s = parse_expiry(arguments.overlap or OVERLAP_DEFAULT, 0)
        state = await session.client.call(Admin("secret-rotate", {"overlap_s": overlap_s}))
    if session.json:
        session.out(json.dumps(state, indent=2))
    elif state["overlap"]:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(state["ends_s"]))
        session.out(
            "the nodes have a new secret, and the new token is in each one's data directory.\n"
            f"Old tokens, also those for mounts, work until {until}: make new ones (pydi token"
            " create),\ngive them out, and end it before with pydi token rotate --finish"
        )
    else:
        session.out("old tokens open nothing any more")


def parse_expiry(text: str | None, now_s: int) -> int:
    """Seconds since 1970 at which ``30d`` or ``12h`` from now is; 0 for never. UserError."""
    if text is None or text == "never":
        return 0
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhdw])", text)
    if match is None:
        raise UserError(f"--expires {text}: expected a time such as 12h, 30d or never", EXIT_USAGE)
    return now_s + int(match[1]) * _UNIT_S[match[2]]


def _described(info: Mapping[str, Any]) -> tuple[str, ...]:
    now_s = time.time()
    expires_s = info["expires_s"]
    if info["revoked"]:
        state = "revoked"
    elif 0 < expires_s <= now_s:
        state = "expired"
    else:
        state = "valid"
    return (
        info["token_id"],
        state,
        "read only" if info["read_only"] else "read write",
        show(info["directory"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(expires_s)) if expires_s else "never",
        info["note"],
    )


def _print(session: Session, rows: list[tuple[str, ...]], listed: list[dict[str, Any]]) -> None:
    if session.json:
        session.out(json.dumps([_plain(info) for info in listed], indent=2))
        return
    rows = [("id", "state", "may", "directory", "expires", "note"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        session.out("  ".join(cells).rstrip())


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    return {**info, "directory": show(info["directory"])}
