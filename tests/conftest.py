"""What holds for every test: one printed seed, no unexpected warning, nothing left running.

- ``--seed N`` repeats the random choices of an earlier run; the header prints the seed in use.
- ``kill -USR1 PID`` prints the stacks of all threads of a running suite.
- A log record of WARNING or above fails its test, unless the test says
  ``@pytest.mark.expects_log("regular expression", ...)``.
- The suite has a temporary directory and an environment token of its own, so that at its end it can
  tell what it left behind, processes and mounts, from what a second copy beside it is still using.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOKEN_VARIABLE = "PYDI_TEST_SUITE"  # inherited by every process that the suite starts
SCRATCH_VARIABLE = "PYDI_TEST_SCRATCH"  # the suite's directory, known to the xdist workers by it
SWITCHES = ("PYDI_VENV", "PYDI_ORDERS", "PYDI_SEEDS")  # what a developer tells the suite itself
LEFTOVER_GRACE_S = 5.0  # how long after the last test a process may still be busy with its exit

_leftovers = pytest.StashKey[list[str]]()
_stderr = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of all random choices (default: a new one)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "expects_log(*patterns): warnings that match one of the patterns are no failure"
    )
    # The terminal may be captured later on; this copy of it is not.
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    faulthandler.register(signal.SIGUSR1, file=config.stash[_stderr], all_threads=True)
    if _is_worker(config):
        config.option.seed = config.workerinput["seed"]  # type: ignore[attr-defined]  # xdist's
    else:
        # Variables of a developer's own cluster must not lead a test to it.
        for name in [name for name in os.environ if name.startswith("PYDI_")]:
            if name not in SWITCHES:
                del os.environ[name]
        if config.option.seed is None:
            config.option.seed = secrets.randbelow(1 << 32)
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(8)
        # Short, because a unix socket's path has room for 107 bytes.
        os.environ[SCRATCH_VARIABLE] = tempfile.mkdtemp(prefix="pydi-t-")
        if config.option.basetemp is None:
            config.option.basetemp = os.environ[SCRATCH_VARIABLE] + "/t"
    os.environ["TMPDIR"] = os.environ[SCRATCH_VARIABLE]
    tempfile.tempdir = None
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist starts a worker: it must draw as the header says."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_unconfigure(config: pytest.Config) -> None:
    faulthandler.unregister(signal.SIGUSR1)
    os.close(config.stash[_stderr])
    if not _is_worker(config):
        try:
            os.rmdir(os.environ[SCRATCH_VARIABLE])
        except OSError:
            pass  # it holds what a failed test left to look at, or is gone already


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (repeat with --seed {config.option.seed})"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed, for tests that build a seeded world of their own."""
    value: int = request.config.option.seed
    return value


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """Random numbers from the run's seed and the test's name, whatever the order of tests."""
    return random.Random(f"{seed} {request.node.nodeid}")


# --- warnings ------------------------------------------------------------------------------------


class _Warnings(logging.Handler):
    """Keeps what a person would have been asked to look at."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_unexpected_warning(request: pytest.FixtureRequest) -> Iterator[None]:
    expected = [
        re.compile(pattern)
        for marker in request.node.iter_markers("expects_log")
        for pattern in marker.args
    ]
    handler = _Warnings()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
    unexpected = [
        line for line in handler.lines if not any(pattern.search(line) for pattern in expected)
    ]
    if unexpected:
        pytest.fail("unexpected warnings in the log:\n" + "\n".join(unexpected), pytrace=False)


# --- what is left behind -------------------------------------------------------------------------


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(trylast=True)  # after xdist has ended its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _is_worker(session.config):
        return
    scratch = Path(os.environ[SCRATCH_VARIABLE])
    left = _processes_left() + _mounts_left(scratch)
    session.config.stash[_leftovers] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(scratch, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = terminalreporter.config.stash.get(_leftovers, [])
    if left:
        terminalreporter.section("left behind by the tests", red=True)
        for line in left:
            terminalreporter.write_line(line)
    scratch = os.environ[SCRATCH_VARIABLE]
    if os.path.isdir(scratch) and os.listdir(scratch):
        terminalreporter.write_line(f"temporary files are kept in {scratch}")


def _processes_left() -> list[str]:
    """Ends what the suite started and did not stop; one line for each."""
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while (found := _own_processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it went between the look and the signal
    return [f"process {pid}: {command}" for pid, command in sorted(found.items())]


def _own_processes() -> dict[int, str]:
    """pid -> command line of every other living process that carries the suite's token."""
    token = f"{TOKEN_VARIABLE}={os.environ[TOKEN_VARIABLE]}".encode()
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        if pid == os.getpid():
            continue
        try:
            if token in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                found[pid] = os.fsdecode(command).strip()
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


def _mounts_left(scratch: Path) -> list[str]:
    """Unmounts what is still mounted below the suite's directory; one line for each."""
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return []
    points = [line.split()[4] for line in table.splitlines()]
    # Deepest first, so that one mount does not keep another busy.
    own = sorted((p for p in points if p.startswith(f"{scratch}/")), reverse=True)
    for point in own:
        tool = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*tool, point], check=False, capture_output=True, timeout=30)
    return [f"mount {point}" for point in own]
