"""scripts/compare measures what it says, on a plain directory and on PyDi; peers are not needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.comparison import profiling, report, work
from tests.harness.networks import why_unusable
from tests.harness.procs import wait_until
from tests.scripts.test_demo import CAN_MOUNT

ROOT = Path(__file__).parent.parent.parent
RUN_TIMEOUT_S = 280.0
SMALLEST = ("--scale", "0.001", "--rounds", "1", "--no-install")
TOOLS = ("findmnt", "git", "ip", "mount", "nsenter", "sh", "tar", "umount")

needs_networks = pytest.mark.skipif(
    (reason := why_unusable()) is not None, reason=f"needs networks of its own: {reason}"
)


def compare(output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """(the run, what was said) of a comparison on a machine without peers."""
    tools = output / "tools"
    tools.mkdir(parents=True)
    for tool in TOOLS:
        if path := shutil.which(tool):
            (tools / tool).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.comparison", *SMALLEST, "--work", output,
         "--output", output / "out", *arguments],
        cwd=ROOT, env={**os.environ, "PATH": str(tools), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (output / "out").glob("comparison-*.json")
    assert (output / "out/comparison.md").read_text().strip() == done.stdout.strip()
    assert "<svg" in (output / "out/comparison.svg").read_text()
    assert sorted(p.name for p in output.iterdir()) == ["out", "tools"]
    run: dict[str, Any] = json.loads(path.read_text())
    return run, done.stderr


@needs_networks
def test_every_row_on_a_plain_directory(tmp_path: Path) -> None:
    """Each row is measured, in the order of its phase; a peer that is not installed is named."""
    run, said = compare(tmp_path, "--systems", "plain", "gluster", "moosefs")
    assert {row.key for row in work.ROWS} == {sample["row"] for sample in run["samples"]}
    assert all(sample["seconds"] > 0 and sample["amount"] > 0 for sample in run["samples"])
    assert set(run["skipped"]) == {"gluster", "moosefs"}
    for name in run["skipped"]:
        assert f"{name} is left out: " in said
    assert run["machine"]["load_before"] >= 0


@needs_networks
@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_three_nodes(tmp_path: Path) -> None:
    """A PyDi of three nodes is measured hot, cold and hurt; its daemons' costs are counted."""
    rows = ("create", "createsync16", "statcold", "readcold16", "stat", "rename", "unlink")
    run, _ = compare(tmp_path, "--systems", "plain", "pydi-2", "--rows", *rows)
    by_system: dict[str, list[dict[str, Any]]] = {"plain": [], "pydi-2": []}
    for sample in run["samples"]:
        by_system[sample["system"]].append(sample)
    assert [sample["row"] for sample in by_system["plain"]] == list(rows)
    assert [sample["row"] for sample in by_system["pydi-2"]] == list(rows)
    assert sum(sample["cpu_seconds"] for sample in by_system["pydi-2"]) > 0
    assert all(sample["memory_bytes"] > 10 << 20 for sample in by_system["pydi-2"])
    assert all(sample["memory_bytes"] == 0 for sample in by_system["plain"])
    assert [(pause["system"], pause["server"]) for pause in run["pauses"]] == [
        ("pydi-2", 1),
        ("pydi-2", 3),
    ]
    assert all(0 < pause["write_s"] < 30 for pause in run["pauses"])


@needs_networks
@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_growth(tmp_path: Path) -> None:
    """Cost and memory are given for each size; the mount was seen to show every file."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.comparison", "--growth", "clients", "--clients", "1", "8",
         "--scale", "0.064", "--work", tmp_path, "--output", tmp_path / "out"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("growth-*.json")
    points = json.loads(path.read_text())["points"]
    assert [(point["axis"], point["size"]) for point in points] == [("clients", 1), ("clients", 8)]
    for point in points:
        for name, value in list(point.items())[2:]:
            # Processor time comes in ticks of 10 ms; so few operations may fit into none.
            assert value >= 0 if name.endswith("cpu_ms") else value > 0, (name, value)
    assert "| by clients | 1 | 8 |" in done.stdout
    assert "<svg" in (tmp_path / "out/growth.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- the profiler --------------------------------------------------------------------------------

BUSY = """
import os, time
def spend_time():
    os.stat("/")
print("ready", flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    spend_time()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="looking into another process needs root")
@pytest.mark.parametrize(
    ("watch", "expected"),
    [
        (profiling.sampling, "spend_time"),
        pytest.param(
            profiling.counting, "newfstatat",
            marks=pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
        ),
    ],
)  # fmt: skip
def test_profile_finds_what_a_process_does(tmp_path: Path, watch: Any, expected: str) -> None:
    """What a daemon does most while it is watched comes first, under the daemon's name."""
    found: dict[str, Counter[str]] = {}
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with watch({"busy": process.pid}, tmp_path, "row", found):
            start = profiling.cpu_seconds([process.pid])
            wait_until(
                lambda: profiling.cpu_seconds([process.pid]) > start + 0.2, "it was busy", 60
            )
        process.kill()
    ((what, count), *_) = found["busy"].most_common(1)
    assert expected in what
    assert count > 10


# --- the report ----------------------------------------------------------------------------------


def run_of(scale: float = 1.0, **seconds: tuple[float, ...]) -> dict[str, Any]:
    """A run with these seconds, one for each round, for 100 creates on each system."""
    return {
        "kind": "comparison", "started": "2026-01-01T00:00:00", "scale": scale, "rounds": 3,
        "skipped": {},
        "machine": {"cpus": 2, "model": "x", "memory_gib": 1, "kernel": "6", "python": "3.11",
                    "disk": "ext4", "load_before": 0.5, "load_after": 2.0},
        "systems": [{"name": name, "version": "1", "copies": 2, "durability": "all"}
                    for name in seconds],
        "samples": [
            {"system": name, "row": "create", "round": number, "amount": 100, "seconds": value,
             "cpu_seconds": 0.2, "memory_bytes": 5 << 20}
            for name, values in seconds.items() for number, value in enumerate(values)
        ],
        "pauses": [{"system": name, "server": 1, "write_s": 0.5, "read_s": 0.25, "errors": 3}
                   for name in seconds],
    }  # fmt: skip


def test_rows_bring_what_they_need() -> None:
    """A row comes with those that make its files, before it."""
    assert [row.key for row in work.with_needed(["unlink"])] == ["create", "rename", "unlink"]
    everything = [row.key for row in work.ROWS]
    assert [row.key for row in work.with_needed(everything)] == everything
    for row in work.ROWS:
        assert not row.needs or everything.index(row.needs) < everything.index(row.key)


def test_table_has_medians_and_spread(tmp_path: Path) -> None:
    """The table gives the median over all runs, least and most, costs, pauses and the load."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(run_of(plain=(1.0, 2.0), gluster=(4.0, 4.0))))
    paths[1].write_text(json.dumps(run_of(plain=(4.0,), gluster=(4.0,))))
    text = report.table(report.load(paths))
    assert "| create+write 1 KiB+close | ops/s | 50.0 (25.0 to 100) | 25.0 (25.0 to 25.0) |" in text
    assert "| create+write 1 KiB+close | ops/s | 2.00 | 2.00 |" in text
    assert "| gluster | 1 | 0.50 s | 0.25 s | 3 |" in text
    assert "0.5, 2.0" in text
    assert "- plain: 5 MiB" in text


@pytest.mark.parametrize("other", ["{}", "no JSON", json.dumps(run_of(scale=0.1, plain=(1.0,)))])
def test_runs_that_do_not_fit_are_refused(tmp_path: Path, other: str) -> None:
    """A file that is no run, or one of another scale, is refused with its name."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(run_of(plain=(1.0,))))
    paths[1].write_text(other)
    with pytest.raises(SystemExit, match=r"b\.json"):
        report.load(paths)
