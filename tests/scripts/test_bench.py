"""scripts/bench measures what it says: every figure is there, with sane numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.test_demo import CAN_MOUNT

BENCH = Path(__file__).parent.parent.parent / "scripts/bench.py"
SMALL = ["--rounds", "1", "--files", "5", "--file-size", "2M", "--pages", "5",
         "--page-file-size", "1M"]  # fmt: skip


def bench(*arguments: str | Path) -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, BENCH, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_directory_against_another(tmp_path: Path) -> None:
    """Each measure gives a figure for both directories and a ratio, and leaves no file behind."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    lines = bench(tmp_path / "a", "--against", tmp_path / "b", *SMALL)
    figures = [line for line in lines if "rate" in line]
    ratios = [line for line in lines if "ratio" in line]
    assert len(ratios) == 12
    assert len(figures) == 2 * len(ratios)
    assert all(line["seconds"] > 0 and line["rate"] > 0 for line in figures)
    assert {line["directory"] for line in ratios} == {str(tmp_path / "a")}
    assert not any(any((tmp_path / name).iterdir()) for name in ("a", "b"))


def test_memory_of_a_process(tmp_path: Path) -> None:
    """--memory prints each process before and after."""
    lines = bench(tmp_path, *SMALL, "--memory", str(os.getpid()))
    memory = [line for line in lines if line["name"] == "memory"]
    assert [line["when"] for line in memory] == ["before", "after"]
    assert all(line["pid"] == os.getpid() and line["rss_mib"] > 1 for line in memory)


@pytest.mark.slow
def test_node_with_many_inodes(tmp_path: Path) -> None:
    """--inodes fills a tree, starts its node, and feeds a new one while it works."""
    lines = bench("--inodes", "2500", "--work", tmp_path)
    assert [line["name"].replace("2500 ", "") for line in lines] == [
        "creates applied to a tree",
        "start with inodes",
        "memory",
        "creates while a new node gets inodes",
        "memory",
    ]
    assert all(line["rss_mib"] > 1 for line in lines if line["name"] == "memory")
    assert lines[3]["before"] > 0
    assert lines[3]["rate"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_copies(tmp_path: Path) -> None:
    """--copies prints time, processor time and memory of each copy, and both ratios."""
    lines = bench("--copies", "30", "--rounds", "1", "--work", tmp_path)
    assert sum("ratio" in line for line in lines) == 2
    assert sum("rate" in line for line in lines) == 4
    memory = {line["process"]: line["peak_mib"] for line in lines if line["name"] == "memory"}
    assert len(memory) == 4
    # A short cp may end before it is looked at for the second time.
    assert memory["put -r"] > 1
    assert memory["get -r"] > 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_own_mount(tmp_path: Path) -> None:
    """--mount starts node and mount, prints ratios and both daemons' memory, and leaves nothing."""
    load = ("--opens", "20", "--load-files", "50", "--load-size", "4M")
    lines = bench("--mount", "--work", tmp_path, *SMALL, *load)
    assert sum("ratio" in line for line in lines) == 12 + 4
    assert all(line["mount_cpu_us"] > 0 for line in lines if "mount_cpu_us" in line)
    memory = [line for line in lines if line["name"] == "memory"]
    assert {line["process"] for line in memory} == {"pydi-node 1", "pydi-mount"}
    assert len(memory) == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mount
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_walk(tmp_path: Path) -> None:
    """--walk lists and looks at every file it made, prints both daemons' memory, leaves nothing."""
    lines = bench("--walk", "300", "--work", tmp_path)
    assert [line["name"] for line in lines if "rate" in line] == [
        "list 300 files",
        "walk 300 files",
    ]
    assert sum(line["name"] == "memory" for line in lines) == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_transfer(tmp_path: Path) -> None:
    """--repair prints the transfer, cp beside it and their ratio; without files, no repair."""
    lines = bench("--repair", "--work", tmp_path, "--files", "0", "--file-size", "8M")
    assert [line["name"] for line in lines] == [
        "content from node to node, durable",
        "cp and fdatasync on the same disk",
        "node to node / cp",
    ]
    assert all(line.get("rate", line.get("ratio", 0)) > 0 for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_network(tmp_path: Path) -> None:
    """--network compares TLS with the unix socket, and single requests with and without strangers,
    who all connected; and leaves nothing."""
    lines = bench(
        "--network", "--work", tmp_path, "--rounds", "1", "--files", "20", "--file-size", "2M"
    )
    assert [line["name"] for line in lines if "ratio" in line and "median" not in line] == [
        "TLS / unix socket, write",
        "TLS / unix socket, read",
    ]
    singles = [line for line in lines if "median" in line]
    assert len(singles) == 2 * 2 * 4  # query and create, both ways, alone and three kinds of flood
    assert all(0 < line["median"] <= line["high"] for line in singles)
    assert all(
        (line["strangers_per_s"] > 0) != line["name"].endswith("no strangers") for line in singles
    )
    assert list(tmp_path.iterdir()) == []
