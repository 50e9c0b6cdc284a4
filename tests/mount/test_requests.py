"""What programs cost when nothing has changed: requests of the kernel, counted on a real mount.

What is kept is kept until it changes, where the kernel has epochs and the mount a watch: a program
is run until it costs nothing, and then once more, when every lease of that time is over. Elsewhere
it costs nothing only between two leases.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.harness.mounts import World, run, why_unusable
from tests.harness.procs import wait_until
from tests.mount.test_passthrough import log_of

DEADLINE_S = 20.0
LEASES_S = 2.5  # longer than any lease lasts: what outlives that, outlives ten seconds

_reason = why_unusable("kernel")
pytestmark = [pytest.mark.mount, pytest.mark.skipif(_reason is not None, reason=str(_reason))]
_names = count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("w"), "kernel", ("--debug",))
    world.start()
    yield world
    world.close()


@pytest.fixture
def folder(world: World) -> Path:
    """30 small files in three directories."""
    top = world.path / f"folder{next(_names)}"
    for number in range(30):
        (top / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (top / f"{number % 3}" / f"{number}").write_bytes(b"content")
    return top


def is_watched(world: World) -> bool:
    return world.mount.watch is not None and ", epochs" in log_of(world.mount)


def wait_quiet(world: World, is_quiet: Callable[[], bool]) -> None:
    """Until a program costs nothing, and still does when all leases of then have ended. (On a
    machine that is too busy to renew one in time all may be dropped in between.)"""

    def stays_quiet() -> bool:
        if not is_quiet():
            return False
        if not is_watched(world):
            return True
        until_s = time.monotonic() + LEASES_S
        wait_until(lambda: time.monotonic() >= until_s, "leases that end", DEADLINE_S)
        return is_quiet()

    wait_until(stays_quiet, "runs without a request", 3 * DEADLINE_S)


def requests(world: World, action: Callable[[], object]) -> Counter[str]:
    """What the kernel asked the mount for while ``action`` ran."""
    marks = []
    before = len(log_of(world.mount))
    for step in (None, action):
        if step is not None:
            step()
        # Requests come in order: one for a name that is used once ends what was asked before.
        marks.append(f"mark{next(_names)}")
        assert not (world.path / marks[-1]).exists()
        wait_until(lambda: marks[-1] in log_of(world.mount)[before:], "the log has all requests")
    _, _, rest = log_of(world.mount)[before:].partition(marks[0])
    between, _, _ = rest.partition(marks[1])
    found = Counter(re.findall(r"-> #\d+ (\w+) ", between))
    found -= Counter(LOOKUP=1)  # of the second mark
    return found


@pytest.mark.parametrize(
    ("program", "allowed"),
    [
        # No kernel keeps extended attributes, of which ls wants one, once; nor how full a file
        # system is, of which find and du want the kind, once.
        (["ls", "-lR"], {"GETXATTR"}),
        (["ls", "-R"], set()),
        (["find", ".", "-newer", "/"], {"STATFS"}),
        (["du", "-s"], {"STATFS"}),
        (["stat", "0/0", "1/1"], set()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_looking_at_what_is_known_asks_nothing(
    world: World, folder: Path, program: list[str], allowed: set[str]
) -> None:
    """Names, attributes and listings come out of the kernel."""

    def is_quiet() -> bool:
        found = requests(world, lambda: run(*program, cwd=folder))
        return not found.keys() - allowed and all(times == 1 for times in found.values())

    wait_quiet(world, is_quiet)


def test_git_status_asks_only_for_what_it_reads(world: World, folder: Path) -> None:
    """No name and no attribute; what it opens is to be read: HEAD, config, its index."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=folder, check=True, capture_output=True, timeout=DEADLINE_S, env=environment,
        )  # fmt: skip

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    seen: list[Counter[str]] = []

    def is_quiet() -> bool:
        seen.append(requests(world, lambda: git("status", "--short")))
        return not seen[-1].keys() - {"OPEN", "RELEASE", "STATFS"}

    wait_quiet(world, is_quiet)


@pytest.mark.parametrize("size", [0, 7, 4096, 300_000], ids=["empty", "7", "4096", "300000"])
def test_reading_again_is_open_and_release(world: World, folder: Path, size: int) -> None:
    """Of content in the tree and in files: from the kernel's pages, or passed through."""
    path = folder / "file"
    content = os.urandom(size)
    path.write_bytes(content)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            assert os.read(fd, size + 1) == content
        finally:
            os.close(fd)

    read()
    wait_until(
        lambda: requests(world, read) == Counter(OPEN=1, RELEASE=1),
        "a run with two requests",
        DEADLINE_S,
    )
