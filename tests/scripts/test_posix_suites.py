"""``scripts/posix-suites`` tells failures that are expected from those that are not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.procs import wait_until

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "posix_suites.py"

# Stands for a built xfstests: "fsx" fails for the style that the file beside it names.
FSX = """#!/bin/sh
echo "fsx $*"
case "$*" in *"$(cat "$(dirname "$0")/fails")"*) exit 1;; esac
[ -d "$PWD" ] && echo content >file
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of sources with one suite in it."""
    programs = tmp_path / "sources/xfstests/ltp"
    programs.mkdir(parents=True)
    (programs / "fsx").write_text(FSX)
    (programs / "fsx").chmod(0o755)
    (programs / "fails").write_text("none of them")
    (tmp_path / "folder").mkdir()
    return tmp_path / "sources"


def suites(sources: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder, logs = sources.parent / "folder", sources.parent / "logs"
    command = [sys.executable, str(SCRIPT), str(folder), "--sources", str(sources)]
    return subprocess.run(
        [*command, "--logs", str(logs), *words], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_all_cases_pass(sources: Path) -> None:
    """Exit code 0; each case had an empty folder of its own, which is gone; its words are kept."""
    done = suites(sources, "fsx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fsx: 10 passed, 0 skipped, 0 failed, 0 expected" in done.stdout
    assert list((sources.parent / "folder").iterdir()) == []
    assert "fsx -q" in (sources.parent / "logs/fsx.all.log").read_text()


def test_a_failure_is_named(sources: Path) -> None:
    """Exit code 1, and the case with the place of its log; one case alone can be run."""
    (sources / "xfstests/ltp/fails").write_text("-E")
    done = suites(sources, "fsx")
    assert done.returncode == 1
    assert "fsx:no-copy failed (1)" in done.stdout
    assert suites(sources, "fsx:all").returncode == 0
    assert suites(sources, "fsx:no-copy").returncode == 1


def test_an_expected_failure_is_none_and_its_end_is(sources: Path) -> None:
    """What stands in the list may fail; when it passes, the list is no longer true: exit code 1."""
    expected = sources / "expected.toml"
    expected.write_text('[fsx]\nno-copy = "a reason"\n')
    passed = suites(sources, "fsx:no-copy", "--expected", str(expected))
    assert passed.returncode == 1
    assert "fsx:no-copy passed, though it is expected to fail" in passed.stdout
    (sources / "xfstests/ltp/fails").write_text("-E")
    failed = suites(sources, "fsx", "--expected", str(expected))
    assert failed.returncode == 0, failed.stdout
    assert "9 passed, 0 skipped, 0 failed, 1 expected" in failed.stdout


def test_ended_itself_it_leaves_no_case_behind(sources: Path) -> None:
    """SIGTERM: the case that runs is ended too."""
    program = sources / "xfstests/ltp/fsx"
    program.write_text(f"#!/bin/sh\necho $$ >{sources}/pid\nexec sleep 1000\n")
    folder = sources.parent / "folder"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), "--sources", str(sources), "fsx:all",
         "--logs", str(sources.parent / "logs")],
        stdout=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        pid = sources / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().strip() != "", "the case runs", 60)
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    status = Path(f"/proc/{pid.read_text().strip()}/stat")
    wait_until(lambda: not status.exists() or " Z " in status.read_text(), "the case ends", 60)


def test_what_is_missing_is_skipped_and_what_is_unknown_refused(sources: Path) -> None:
    """A suite without sources is no failure; a name that is none is a usage error."""
    done = suites(sources, "connectathon")
    assert done.returncode == 0
    assert "connectathon: skipped, there is no cthon04" in done.stdout
    assert suites(sources, "nonsense").returncode == 2
