"""``pydi doctor``: sentences for what is wrong, with a node and without one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.commands_doctor import findings
from pydi_node.errors import EXIT_OK, EXIT_UNREACHABLE
from tests.cli.conftest import Run

NOW_MS = 1_800_000_000_000
PART: dict[str, Any] = {
    "version": "1", "interfaces": ["eth0"], "troubles": {}, "ignored": {"foreign": 9},
    "other_clusters": [], "time_ms": NOW_MS, "heard": {"1": 1.0, "2": 1.0},
}  # fmt: skip
STATE: dict[str, Any] = {
    "quorum": True,
    "nodes": [
        {"number": number, "state": "up", "address": f"10.0.0.{number}:7420"} for number in (1, 2)
    ],
}


def sound() -> tuple[dict[str, Any], dict[str, Any]]:
    return copy.deepcopy(STATE), {number: copy.deepcopy(PART) for number in ("1", "2")}


def test_nothing_is_wrong() -> None:
    """Other clusters on the network are nothing to worry about."""
    assert findings(*sound(), NOW_MS) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("time_ms", NOW_MS + 90_000, "clock of node 2 is 90 s ahead"),
        ("time_ms", NOW_MS - 5_000, "clock of node 2 is 5 s behind"),
        ("interfaces", [], "node 2 has no interface for multicast"),
        ("troubles", {"eth0": "Network is down"}, "can't multicast on eth0: Network is down"),
        ("ignored", {"forged": 3}, "old token"),
        ("ignored", {"old": 3}, "clock is off by minutes"),
        ("heard", {"2": 1.0}, "node 2 does not hear the beacons of node 1"),
        ("heard", {"1": 60.0}, "node 2 does not hear the beacons of node 1"),
        ("version", "2", "different versions"),
    ],
)
def test_each_trouble_has_a_sentence(key: str, value: object, words: str) -> None:
    """And only the one that is there."""
    state, parts = sound()
    parts["2"][key] = value
    (sentence,) = findings(state, parts, NOW_MS)
    assert words in sentence


@pytest.mark.parametrize(("heard", "words"), [(1.0, "firewall"), (60.0, "cut off")])
def test_a_node_that_is_down(heard: float, words: str) -> None:
    """Its beacons tell a node that can't be connected to from one that is off."""
    state, parts = sound()
    state["nodes"][1]["state"] = "down"
    del parts["2"]
    parts["1"]["heard"]["2"] = heard
    (sentence,) = findings(state, parts, NOW_MS)
    assert words in sentence


def test_with_a_node(pydi: Run) -> None:
    """A healthy node of its own has nothing to complain about; programs get an object."""
    run = pydi("doctor")
    assert (run.returncode, run.stderr) == (EXIT_OK, b"")
    assert b"nothing is wrong" in run.stdout
    told = json.loads(pydi("doctor", "--json").stdout)
    assert told["findings"] == []
    assert told["nodes"]["1"]["interfaces"] == ["lo"]


def test_without_a_node(pydi: Run, tmp_path: Path) -> None:
    """It says that there is none, and what would help."""
    run = pydi("doctor", "--data-dir", str(tmp_path))
    assert run.returncode == EXIT_UNREACHABLE
    assert b"no node runs" in run.stdout
    assert b"--token-file" in run.stdout
