"""A real node for the tests of the command line, and ``pydi`` called as a person calls it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.procs import PYDI

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@contextmanager
def running_node(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node that takes connections on its socket, and is stopped cleanly unless it was killed
    meanwhile; its log is beside ``data_dir``."""
    with (
        open(f"{data_dir}.log", "ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "pydi_node", str(data_dir), "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        ) as process,
    ):  # fmt: skip
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(data_dir / "node.sock"):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("the node did not start:\n" + Path(f"{data_dir}.log").read_text())
                time.sleep(0.02)
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(STOP_TIMEOUT_S) == 0
        finally:
            process.kill()


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a running node."""
    path = tmp_path_factory.mktemp("n") / "d"
    with running_node(path):
        yield path


@pytest.fixture
def pydi(data_dir: Path, tmp_path: Path) -> Run:
    """``pydi ARGUMENT...`` against that node, in ``tmp_path``; keywords are subprocess.run's."""

    def run(
        *arguments: str | bytes | Path, **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYDI_DATA_DIR": str(data_dir)}
        return subprocess.run(
            [sys.executable, "-c", PYDI, *arguments],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "timeout": 60,
               "check": False, **options},
        )  # type: ignore[call-overload]  # the caller's keywords  # fmt: skip

    return run
