"""Rates of `pydi top` out of two states."""

from __future__ import annotations

from typing import Any

from pydi_fs.shell.top import rates, summary


def state(index: int, *nodes: tuple[int, str, int, int, int], lacking: int = 0) -> dict[str, Any]:
    """nodes: (number, state, stored bytes, reads, bytes read)."""
    return {
        "cluster": "c", "leader": 1, "term": 1, "quorum": True, "mounts": [], "advice": [],
        "applied_index": index,
        "nodes": [
            {"number": n, "state": s, "stored_bytes": stored, "reads": reads, "read_bytes": read}
            for n, s, stored, reads, read in nodes
        ],
        "blobs": {"under_replicated": lacking, "total": 10, "missing": 0},
    }  # fmt: skip


def test_rates_are_per_second() -> None:
    """By node; one that was down in between has none."""
    before = state(10, (1, "up", 1000, 5, 100), (2, "down", 0, 0, 0), lacking=4)
    after = state(30, (1, "up", 900, 9, 4196), (2, "up", 500, 1, 1), lacking=2)
    found = rates(before, after, 2.0)
    assert found.changes == 10
    assert found.stored == {1: -50}
    assert (found.reads, found.read) == ({1: 2}, {1: 2048})
    assert found.repaired == 1
    assert "reads 2/s  2.0 KiB/s" in summary(after, found)[1]


def test_a_node_that_was_started_again_counts_from_zero() -> None:
    """That is no negative rate."""
    found = rates(state(1, (1, "up", 0, 50, 5000)), state(2, (1, "up", 0, 3, 300)), 1.0)
    assert (found.reads, found.read) == ({1: 0}, {1: 0})
