"""``pydi doctor``: why nodes do not see each other, or why nobody can be reached, in sentences.

Called by `pydi_fs.cli`: `doctor` with a connected session, `explain` when there is none to be had.
``findings`` is pure: what the nodes say of themselves becomes what a person should look at.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydi_fs.client.endpoints import SOCKET_NAME, read_token
from pydi_fs.commands_session import Session
from pydi_fs.mount_config import MountConfig
from pydi_node.errors import EXIT_FAILED, EXIT_UNREACHABLE, PydiError, UserError
from pydi_node.wire.messages import Admin

CLOCK_SKEW_TOLD_MS = 2000  # more than a network's delay; a machine that joins may be 120 s off
BEACONS_MISSED_S = 15.0  # ten beacons
LOOK_S = 3.0  # for nodes on the network


async def doctor(session: Session, arguments: argparse.Namespace) -> None:
    """Ask every node what it sees, and say what is wrong; exit code 1 when anything is."""
    state = await session.client.call(Admin("status"))
    parts = await session.client.call(Admin("discovery", {"all": True}))
    found = findings(state, parts, time.time_ns() // 1_000_000)
    if session.json:
        session.out(json.dumps({"findings": found, "nodes": parts}, indent=2))
    else:
        up = [str(node["number"]) for node in state["nodes"] if node["state"] != "down"]
        session.out(f"cluster {state['cluster'][:8]}, connected; nodes that answer: {' '.join(up)}")
        for sentence in found or ["nothing is wrong"]:
            session.out(f"* {sentence}")
    if found:
        session.exit_code = EXIT_FAILED


def findings(
    state: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], now_ms: int
) -> list[str]:
    """What is wrong, most important first.

    state  the object of `pydi status`. parts: by node number, what each says of its discovery.
    """
    found = [] if state["quorum"] else ["no majority: writes are refused until more nodes are up"]
    for node in state["nodes"]:
        number = str(node["number"])
        if node["state"] == "down":
            found.append(_why_down(number, node["address"], parts))
    for number, part in sorted(parts.items()):
        skew_ms = part["time_ms"] - now_ms
        if abs(skew_ms) > CLOCK_SKEW_TOLD_MS:
            which = "ahead of" if skew_ms > 0 else "behind"
            found.append(
                f"the clock of node {number} is {abs(skew_ms) / 1000:.0f} s {which} this machine's"
            )
        if not part["interfaces"]:
            found.append(f"node {number} has no interface for multicast: nobody finds it by token")
        for name, why in sorted(part["troubles"].items()):
            found.append(f"node {number} can't multicast on {name}: {why}")
        found += _of_ignored(number, part["ignored"])
        for other in sorted(parts):
            silent_s = part["heard"].get(other)
            if other != number and (silent_s is None or silent_s > BEACONS_MISSED_S):
                found.append(
                    f"node {number} does not hear the beacons of node {other}: another network, or"
                    " a firewall (UDP 7420); it matters when addresses change"
                )
    versions = sorted({part["version"] for part in parts.values()})
    if len(versions) > 1:
        found.append(f"the nodes run different versions of PyDi: {', '.join(versions)}")
    return found


def _why_down(number: str, address: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    hearers = [
        other for other, part in sorted(parts.items())
        if part["heard"].get(number, BEACONS_MISSED_S) < BEACONS_MISSED_S
    ]  # fmt: skip
    if hearers:
        return (
            f"node {number} is not connected, but node {hearers[0]} hears its beacons: it runs, and"
            f" TCP to {address or 'it'} does not get through (a firewall?), or its token is old"
        )
    return f"node {number} is not connected, and nobody hears it: it is off, or cut off"


def _of_ignored(number: str, ignored: Mapping[str, int]) -> list[str]:
    found = []
    if ignored.get("forged"):
        found.append(
            f"node {number} heard {ignored['forged']} beacons of this cluster with a wrong key:"
            " somebody has an old token"
        )
    if ignored.get("old"):
        found.append(
            f"node {number} heard {ignored['old']} beacons from another time: some machine's clock"
            " is off by minutes"
        )
    return found


async def explain(config: MountConfig, error: PydiError, as_json: bool) -> int:
    """Why no node can be reached, as far as this machine can tell; the exit code."""
    sentences = [str(error)]
    token = _token(config)
    if token is None:
        socket = Path(config.data_dir) / SOCKET_NAME
        sentences.append(
            f"{socket} is there: a node was killed, or hangs" if socket.exists()
            else f"there is no {socket}: no node runs here, or in another directory"
        )  # fmt: skip
        sentences.append("without a token nothing else can be looked for (--token-file)")
    else:
        from pydi_fs.commands_remote import find_nodes  # only now: it is slow to load

        found, why = await find_nodes(token, config.group, config.interface, LOOK_S)
        places = ", ".join(f"{host}:{port}" for host, port in found)
        sentences.append(
            f"nodes say by multicast that they are at {places}: TCP does not get through"
            " (a firewall?), or they are about to stop"
            if found
            else why
        )
    sentences = list(dict.fromkeys(sentences))
    if as_json:
        print(json.dumps({"findings": sentences, "nodes": {}}, indent=2))
    else:
        for sentence in sentences:
            print(f"* {sentence}", file=sys.stdout)
    return EXIT_UNREACHABLE


def _token(config: MountConfig) -> str | None:
    try:
        if config.has_token:
            return read_token(config.token, config.token_file)
        return read_token(None, str(Path(config.data_dir) / "token"))
    except UserError:
        return None
