"""What ``pydi status`` advises: for each thing that is missing one sentence that says what to do.

Called by status.py with the numbers it shows anyway. Pure; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydi_node.ids import counted

FREE_PERCENT = 5  # below this a disk counts as nearly full

Node = Mapping[str, Any]  # as in ``status --json``


def advise(nodes: Sequence[Node], blobs: Mapping[str, int], quorum: bool, copies: int) -> list[str]:
    """Sentences for a person, the most urgent first; none when all is well.

    copies  the most that any blob should have.
    """
    return [
        *_voters(nodes, quorum),
        *_down(nodes),
        *_draining(nodes),
        *_content(nodes, blobs, copies),
        *_disks(nodes),
    ]


def _voters(nodes: Sequence[Node], quorum: bool) -> Iterator[str]:
    voters = [node for node in nodes if node["role"] != "learner"]
    down = [node for node in voters if node["state"] == "down"]
    if not quorum:
        yield (
            f"only {len(voters) - len(down)} of {len(voters)} voters are reachable: writes are"
            f" refused until {_numbers(down) or 'a leader'} is back; when a majority is gone for"
            " ever, stop this node and run pydi recover"
        )
    elif len(voters) == 2:
        yield (
            "with two voters the loss of one stops all writes: add a third node, or a small one"
            " with pydi-node --witness"
        )


def _down(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if node["state"] == "down":
            number = node["number"]
            yield f"node {number} is down: start it, or run pydi forget {number} if it is gone"


def _draining(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        if node["state"] == "draining":
            number, held = node["number"], node.get("held", 0)
            yield (
                f"node {number} drains: {counted(held, 'blob is', 'blobs are')} still to leave it"
                if held
                else f"node {number} is empty: stop it, then run pydi forget {number}, or take it"
                f" into use again with pydi drain {number} --stop"
            )


def _content(nodes: Sequence[Node], blobs: Mapping[str, int], copies: int) -> Iterator[str]:
    storing = [node for node in nodes if not node["witness"]]
    up = [node for node in storing if node["state"] == "up"]
    if len(storing) < copies:
        yield (
            f"content should have {copies} copies but there"
            f" {'is one node' if len(storing) == 1 else f'are {len(storing)} nodes'} for content:"
            " add nodes"
        )
    elif blobs["under_replicated"]:
        count = blobs["under_replicated"]
        have = counted(count, "blob has", "blobs have")
        what = f"{have} fewer copies within reach than there should be"
        if len(up) < copies:
            yield f"{what}: start the nodes that are down, or add nodes"
        else:
            yield f"{what}: they are copied by themselves, keep the nodes running"
    if blobs["missing"]:
        have = counted(blobs["missing"], "blob has", "blobs have")
        yield (
            f"{have} no copy within reach: start the nodes that should (pydi why PATH tells which)"
        )


def _disks(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        total = node["total_bytes"]
        if total and not node["witness"] and node["free_bytes"] * 100 < total * FREE_PERCENT:
            yield f"node {node['number']} is nearly full: delete files or add a node"


def _numbers(nodes: Sequence[Node]) -> str:
    return " or ".join(f"node {node['number']}" for node in nodes)
