"""The sentence of `pydi why`, and the estimate of `pydi drain`: pure."""

from __future__ import annotations

from typing import Any

import pytest

from pydi_fs.commands_cluster import drain_progress
from pydi_fs.commands_why import protection


def blob(copies: int, **states: str) -> dict[str, Any]:
    holders = [{"node": int(n[1:]), "state": state} for n, state in sorted(states.items())]
    return {"blob": "00" * 8, "copies": copies, "holders": holders}


@pytest.mark.parametrize(
    ("blobs", "words"),
    [
        ([], "no content"),
        ([blob(2, n1="here", n2="here")], "Any one of nodes 1 and 2 may be lost"),
        ([blob(3, n1="here", n2="here", n3="here")], "Any 2 of nodes 1, 2 and 3"),
        ([blob(2, n1="here", n2="down")], "The loss of node 1 would lose"),
        ([blob(2, n1="here", n2="lacking")], "1 of 2 copies within reach"),
        ([blob(2, n1="down", n3="down")], "node 1 is down; node 3 is down"),
        ([blob(1, n1="here")], "each piece has the 1 copy"),
        ([blob(2, n1="here", n2="here"), blob(2, n3="here")], "The loss of node 3"),
        ([blob(2, n1="here", n2="here"), blob(2, n2="down")], "It can't be read now"),
        ([{**blob(2), "in_tree": True}], "every node keeps its content with its name"),
        ([{**blob(2), "in_tree": True}, blob(2, n1="here")], "The loss of node 1"),
    ],
)
def test_worst_piece_decides(blobs: list[dict[str, Any]], words: str) -> None:
    """A file is as safe as the piece of it that is worst off."""
    assert words in protection(blobs, 3)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [(2, "repair adds more"), (1, "1 of 2 copies within reach, and 1 node for content: add nodes")],
)
def test_repair_needs_a_node_to_copy_to(nodes: int, words: str) -> None:
    """What nobody will do is not promised."""
    assert words in protection([blob(2, n1="here")], nodes)


def test_estimate_goes_by_what_is_slower() -> None:
    """Half of the blobs but a tenth of the bytes in 60 s: the bytes take another nine minutes."""
    first = {"blobs": 10, "bytes": 1000, "obstacle": None}
    now = {"blobs": 5, "bytes": 900, "obstacle": None}
    assert drain_progress(first, now, 60.0).endswith("some 9 min to go")
    assert drain_progress(first, first, 60.0) == "10 blobs, 1000 B left"
    assert drain_progress(first, {**now, "blobs": 1}, 60.0).startswith("1 blob, 900 B left")
    assert "waiting: no room" in drain_progress(first, {**now, "obstacle": "no room"}, 60.0)
