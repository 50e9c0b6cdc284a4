"""The rules of tests/conftest.py, shown on small suites that break them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"


def run_suite(tmp_path: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A pytest run of its own over one file that obeys the suite's conftest."""
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


WARNS = """
import logging
import pytest
{marker}
def test_it():
    logging.getLogger("pydi_node").{level}("disk is %s", "slow")
"""


@pytest.mark.parametrize(
    ("marker", "level", "passes"),
    [
        ("", "info", True),
        ("", "warning", False),
        ("", "error", False),
        ("@pytest.mark.expects_log('disk is slow')", "warning", True),
        ("@pytest.mark.expects_log('disk is fast')", "warning", False),
    ],
)
def test_unexpected_warning_fails(tmp_path: Path, marker: str, level: str, passes: bool) -> None:
    """A record of WARNING or above fails its test unless a pattern of the test allows it."""
    run = run_suite(tmp_path, WARNS.format(marker=marker, level=level))
    assert (run.returncode == 0) is passes, run.stdout
    assert passes or "disk is slow" in run.stdout


LEAVES_A_PROCESS = """
import subprocess
def test_it():
    subprocess.Popen(["sleep", "1000"], start_new_session=True).returncode = 0
"""


@pytest.mark.slow
def test_process_left_behind_fails_the_suite(tmp_path: Path) -> None:
    """A process that outlives the tests is named, ended, and turns a green run red."""
    run = run_suite(tmp_path, LEAVES_A_PROCESS)
    assert run.returncode == 1, run.stdout
    assert "1 passed" in run.stdout
    found = re.search(r"process (\d+): sleep 1000", run.stdout)
    assert found, run.stdout
    state = Path(f"/proc/{found[1]}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


PRINTS_RANDOM = """
def test_it(rng, seed):
    print("drawn", seed, rng.random())
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]])
def test_seed_repeats_a_run(tmp_path: Path, arguments: list[str]) -> None:
    """The seed in the header, given back with --seed, draws the same numbers, in a worker too."""
    first = run_suite(tmp_path, PRINTS_RANDOM, "-rP", *arguments)
    header = re.search(r"repeat with --seed (\d+)", first.stdout)
    assert header, first.stdout
    second = run_suite(tmp_path, PRINTS_RANDOM, "-rP", "--seed", header[1], *arguments)
    third = run_suite(tmp_path, PRINTS_RANDOM, "-rP", "--seed", "1", *arguments)
    drawn = [re.findall(r"drawn .*", run.stdout) for run in (first, second, third)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(lines) == 1 for lines in drawn)


def test_passing_suite_removes_its_files(tmp_path: Path) -> None:
    """A passing run leaves no temporary directory, a failing one says where its files are."""
    source = "def test_it(tmp_path):\n    print('here', tmp_path)\n    assert {}\n"
    passing = run_suite(tmp_path, source.format(True), "-rP")
    failing = run_suite(tmp_path, source.format(False))
    used = re.search(r"here (\S+)", passing.stdout)
    kept = re.search(r"temporary files are kept in (\S+)", failing.stdout)
    assert used
    assert not Path(used[1]).exists()
    assert kept
    assert Path(kept[1]).is_dir()
    shutil.rmtree(kept[1])
