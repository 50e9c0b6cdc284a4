"""scripts/demo as a newcomer runs it: twice, without permission to mount, and its stop."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEMO_TIMEOUT_S = 240.0
CAN_MOUNT = os.access("/dev/fuse", os.R_OK | os.W_OK) and (
    os.geteuid() == 0 or shutil.which("fusermount3") is not None
)
# Root without this capability is refused by mount(2) and by fusermount3 alike.
WITHOUT_MOUNTING = ["setpriv", "--bounding-set=-sys_admin"]

pytestmark = [pytest.mark.slow, pytest.mark.mount]


def demo(*arguments: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    # Its daemons keep the descriptors they inherit: a file, because a pipe would never end.
    with open(os.path.join(os.environ["TMPDIR"], "demo-output"), "w+") as output:
        run = subprocess.run(
            [*(prefix or []), "scripts/demo", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, timeout=DEMO_TIMEOUT_S, check=False,
        )  # fmt: skip
        output.seek(0)
        return subprocess.CompletedProcess(run.args, run.returncode, output.read())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "demo"
    yield path
    assert demo("--stop", "--dir", str(path)).returncode == 0


@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse and permission to mount")
def test_second_start_finds_the_same_files(directory: Path) -> None:
    """The demo copies, reads back and stops; started again, it finds the copy of the first time."""
    first = demo("--dir", str(directory))
    assert first.returncode == 0, first.stdout
    assert "What was read is what was copied." in first.stdout
    assert os.path.ismount(directory / "mnt")
    assert (directory / "mnt/pydi/README.md").read_text() == (ROOT / "README.md").read_text()
    again = demo("--dir", str(directory))
    assert "running already" in again.stdout
    assert "mounted already" in again.stdout
    stopped = demo("--stop", "--dir", str(directory))
    assert stopped.returncode == 0, stopped.stdout
    assert not os.path.ismount(directory / "mnt")
    second = demo("--dir", str(directory))
    assert second.returncode == 0, second.stdout
    assert "The copy of an earlier start is still there" in second.stdout
    assert len((directory / "mnt/visits.txt").read_text().splitlines()) == 3


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to give up the permission to mount",
)
def test_without_permission_to_mount(directory: Path) -> None:
    """Where mounting is refused one sentence says so, and pydi put, ls and cat show the same."""
    run = demo("--dir", str(directory), prefix=WITHOUT_MOUNTING)
    assert run.returncode == 0, run.stdout
    assert "does not let us mount" in run.stdout
    assert "Traceback" not in run.stdout
    for command in ("put", "ls", "tree"):
        assert re.search(rf"^\$ \S+/pydi {command} ", run.stdout, re.MULTILINE), run.stdout
    assert "What was read is what was copied." in run.stdout


def test_wrong_argument_is_usage() -> None:
    """An argument the demo does not know is exit code 2, and nothing is started."""
    run = demo("--fast")
    assert run.returncode == 2
    assert "--fast" in run.stdout
