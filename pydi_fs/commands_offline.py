"""``pydi recover`` and ``pydi check``: work on the files of a node that does not run.

Called by `pydi_fs.cli` instead of a connection. What they do is pydi_node/runtime/offline.py's, the
one part of a node that commands on its machine share; here is what a person types and reads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydi_fs.progress import Progress
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, UserError

Arguments = tuple[tuple[tuple[str, ...], dict[str, Any]], ...]


class OfflineSpec(NamedTuple):
    """One row of the table: what runs on a data directory, and its arguments for argparse."""

    run: Callable[[Path, argparse.Namespace], int]
    help: str
    arguments: Arguments
    examples: tuple[str, ...]


def check(data_dir: Path, arguments: argparse.Namespace) -> int:
    """``check [DATA_DIR]``: one line per finding; exit code 1 when there is any."""
    from pydi_node.runtime import offline  # only now: the other commands need none of it

    counter = Progress(enabled=sys.stderr.isatty())

    def progress(files: int, size: int) -> None:
        counter.add(files - counter.files, size - counter.bytes)

    findings = []
    try:
        for finding in offline.check(data_dir, arguments.blobs, progress):
            findings.append(finding)
            if "json" not in arguments:
                print(finding)
    finally:
        counter.finish()
    if "json" in arguments:
        print(json.dumps({"findings": findings}, indent=2))
    elif not findings:
        print(f"{data_dir}: no findings")
    return EXIT_FAILED if findings else EXIT_OK


def recover(data_dir: Path, arguments: argparse.Namespace) -> int:
    """``recover --accept-loss [DATA_DIR]``: the node goes on alone, without what it lacks."""
    from pydi_node.runtime import offline

    if not arguments.accept_loss:
        raise UserError(
            "recover gives up what only the other nodes have: add --accept-loss when a majority of"
            " them is gone for ever",
            EXIT_USAGE,
        )
    with offline.recovery(data_dir) as plan:
        answering = plan.answering()
        plan.require_no_majority(answering)
        applied = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(plan.applied_ns // 10**9))
        print(f"cluster {plan.cluster}, node {plan.number} in {data_dir}")
        print(f"this node knows the tree up to index {plan.applied_index}, of {applied}")
        if plan.last_index > plan.applied_index:
            print(
                f"it also has entries up to index {plan.last_index} that it did not know to be"
                " decided: they will count"
            )
        for info in plan.others:
            state = "answers, and will be refused" if info.number in answering else "is missing"
            print(f"node {info.number} {info.address or '(address unknown)'} {state}")
        print(
            "What the others acknowledged after that is lost, and so is content that has no copy on"
            " this node. They can come back only as new nodes with empty data directories."
        )
        _confirm(plan.cluster, plan.short_id, arguments.yes)
        plan.carry_out()
    print(f"node {plan.number} is the only voter now: start it")
    return EXIT_OK


def _confirm(cluster: str, short_id: str, given: str | None) -> None:
    """UserError unless a person, or a script with --yes, named the cluster."""
    if given is None:
        if not sys.stdin.isatty():
            raise UserError(f"nothing was changed: confirm with --yes {short_id}", EXIT_USAGE)
        given = input(f"Type {short_id} to go on: ").strip()
    if given not in (short_id, cluster):
        raise UserError(f"nothing was changed: {given!r} is not this cluster, {short_id}")


_DATA_DIR = (("directory",), {"nargs": "?", "metavar": "DATA_DIR", "help": "of a stopped node"})

OFFLINE: dict[str, OfflineSpec] = {
    "check": OfflineSpec(
        check,
        "look for damage in a stopped node's files",
        (
            _DATA_DIR,
            (("--blobs",), {"action": "store_true", "help": "read and hash all content too"}),
        ),
        ("pydi check --blobs /var/lib/pydi",),
    ),
    "recover": OfflineSpec(
        recover,
        "go on with one node when a majority is gone for ever",
        (
            _DATA_DIR,
            (
                ("--accept-loss",),
                {"action": "store_true", "help": "yes, give up what only the others have"},
            ),
            (("--yes",), {"metavar": "CLUSTERID", "help": "confirm without being asked"}),
        ),
        ("pydi recover --accept-loss /var/lib/pydi",),
    ),
}
