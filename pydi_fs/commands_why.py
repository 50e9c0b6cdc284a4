"""``pydi why PATH``: what a file is made of, where that is, and what protects it now.

Called by `pydi_fs.cli` with a connected session. ``protection`` is pure: the one sentence out of
what the nodes said.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydi_fs.commands_session import Session, about, show
from pydi_fs.progress import format_bytes
from pydi_node.errors import FileError, UserError
from pydi_node.ids import blob_name, counted
from pydi_node.records import FileVersion, NodeInfo, Version
from pydi_node.wire.messages import Admin, GetFile, Nodes, PathVersions

BLOBS_PER_QUESTION = 1024
EXTENTS_SHOWN = 20  # of a file in many pieces; --json has all
_COPIES = ("copy", "copies")

Blob = Mapping[str, Any]  # as the verb "whereabouts" answers


async def why(session: Session, arguments: argparse.Namespace) -> None:
    """``why PATH``: versions, extents, blobs, holders and their states, and the sentence."""
    path = session.absolute(arguments.path.encode(errors="surrogateescape"))
    try:
        attr = await session.vfs.resolve(path)
    except FileError as exc:
        raise UserError(about(path, exc)) from exc
    if attr.is_dir:
        raise UserError(
            f"{show(path)}: is a directory: every node keeps all names; ask for a file in it"
        )
    if not attr.is_regular:
        raise UserError(f"{show(path)}: has no content: every node keeps it as it keeps names")
    version: FileVersion = await session.client.call(GetFile(attr.ino))
    versions = await _versions(session, path)
    blobs: list[Blob] = []
    names = [info.blob for info in version.blobs]
    for start in range(0, len(names), BLOBS_PER_QUESTION):
        some = names[start : start + BLOBS_PER_QUESTION]
        blobs += await session.client.call(Admin("whereabouts", {"blobs": some}))
    nodes: list[NodeInfo] = await session.client.call(Nodes())
    keeping = sum(node.state == "up" and not node.witness for node in nodes)
    sentence = protection(blobs, keeping)
    if session.json:
        report = {
            "path": show(path),
            "ino": attr.ino,
            "size": version.attr.size,
            "versions": versions,
            "extents": [
                {
                    "offset": extent.offset,
                    "length": extent.length,
                    "blob": blob_name(extent.blob),
                    "blob_offset": extent.blob_offset,
                }
                for extent in version.extents
            ],
            "blobs": blobs,
            "protection": sentence,
        }
        session.out(json.dumps(report, indent=2))
        return
    session.out(
        f"{show(path)}: {format_bytes(version.attr.size)},"
        f" {counted(versions, 'version')} kept, inode {attr.ino}"
    )
    for line in _pieces(version, blobs):
        session.out(line)
    session.out(sentence)


def protection(blobs: Sequence[Blob], nodes_for_content: int) -> str:
    """In one sentence: what could happen to the content without its loss, and what is being done.

    The file is as safe as the blob of it that is worst off.

    nodes_for_content  members that take some, running or not.
    """
    if not blobs:
        return "It has no content: every node keeps all there is of it."
    blobs = [blob for blob in blobs if not blob.get("in_tree")]  # a node of before says nothing
    if not blobs:
        return "It is small: every node keeps its content with its name."
    good = [[h["node"] for h in blob["holders"] if h["state"] == "here"] for blob in blobs]
    worst = min(range(len(blobs)), key=lambda at: len(good[at]))
    blob, there = blobs[worst], good[worst]
    copies = blob["copies"]
    if not there:
        states = "; ".join(_holder(h) for h in blob["holders"]) or "no node ever confirmed one"
        return (
            f"It can't be read now: no copy of blob {blob['blob']} is within reach ({states}):"
            " start those nodes."
        )
    nodes = _and(sorted({node for some in good if len(some) == len(there) for node in some}))
    if len(there) == 1:
        danger = f"The loss of {nodes} would lose content of it"
    else:
        danger = f"Any {_number(len(there) - 1)} of {nodes} may be lost without a loss of content"
    if len(there) >= copies:
        return f"{danger}: each piece has the {counted(copies, *_COPIES)} that it should have."
    reach = f"{danger}: {len(there)} of {counted(copies, *_COPIES)} within reach"
    if nodes_for_content < copies:
        return f"{reach}, and {counted(nodes_for_content, 'node')} for content: add nodes."
    return f"{reach}, repair adds more."


async def _versions(session: Session, path: bytes) -> int:
    versions: list[Version] = await session.client.call(PathVersions(path, None))
    return len(versions)


def _pieces(version: FileVersion, blobs: Sequence[Blob]) -> list[str]:
    holders = {
        blob["blob"]: "every node"
        if blob.get("in_tree")
        else ", ".join(_holder(h) for h in blob["holders"])
        for blob in blobs
    }
    lines = [
        f"  {extent.offset}+{extent.length}  blob {blob_name(extent.blob)}+{extent.blob_offset}:"
        f" {holders.get(blob_name(extent.blob), 'changed meanwhile')}"
        for extent in version.extents[:EXTENTS_SHOWN]
    ]
    more = len(version.extents) - EXTENTS_SHOWN
    if more > 0:
        lines.append(f"  and {counted(more, 'piece')} more (--json lists all)")
    return lines


def _holder(holder: Mapping[str, Any]) -> str:
    words = {"here": "", "lacking": " lacks it, and fetches it", "down": " is down"}
    return f"node {holder['node']}{words.get(holder['state'], ' ' + str(holder['state']))}"


def _and(nodes: Sequence[int]) -> str:
    if len(nodes) == 1:
        return f"node {nodes[0]}"
    return f"nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"


def _number(count: int) -> str:
    return "one" if count == 1 else str(count)
