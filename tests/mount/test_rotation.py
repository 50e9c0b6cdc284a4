"""The cluster's secret is changed under mounts whose programs write: they notice nothing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_node.wire.messages import Role
from tests.harness.mounts import COMMAND_DEADLINE_S, MountProcess, why_unusable
from tests.harness.procs import NodeProcess, wait_until
from tests.node.conftest import make_node
from tests.node.test_cluster import start_cluster, voters
from tests.node.test_rotation import finish, generation, is_refused, rotate
from tests.node.test_tokens import make_token

__all__ = ["make_node"]  # a fixture

pytestmark = [pytest.mark.mount, pytest.mark.slow]

DEADLINE_S = 90.0

# Writes and reads back one file after the other, large ones among them, until told to end. Says
# after each close which one it is. The first error ends it.
WRITER = """
import hashlib, itertools, os, sys
folder, manifest, stop = sys.argv[1:]
with open(manifest, "a") as closed:
    for number in itertools.count():
        if os.path.exists(stop):
            break
        content = os.urandom(1 + number * 7919 % 60_000 + (2 << 20 if number % 20 == 7 else 0))
        with open(f"{folder}/{number}", "xb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view[:131072]):]
        with open(f"{folder}/{number}", "rb") as file:
            assert file.read() == content
        closed.write(f"{hashlib.sha256(content).hexdigest()} {number}\\n")
        closed.flush()
"""


class Writer:
    """A program that works in a folder until it is asked to end."""

    def __init__(self, folder: Path, directory: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.manifest = directory / f"{folder.name}.manifest"
        self.manifest.touch()
        self._stop = directory / f"{folder.name}.stop"
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(self.manifest), str(self._stop)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def files(self) -> int:
        return self.manifest.read_text().count("\n")

    def wait_more(self) -> None:
        """It goes on: some files, a large one among them, were closed since."""
        target = self.files + 21
        wait_until(
            lambda: self.process.poll() is not None or self.files >= target,
            "it goes on",
            DEADLINE_S,
        )
        assert self.process.poll() is None, self.process.communicate()[1]

    def end(self) -> None:
        self._stop.touch()
        _, errors = self.process.communicate(timeout=COMMAND_DEADLINE_S)
        assert self.process.returncode == 0, errors

    def assert_complete(self) -> None:
        for line in self.manifest.read_text().splitlines():
            digest, name = line.split()
            assert hashlib.sha256((self.folder / name).read_bytes()).hexdigest() == digest, name


def test_programs_notice_nothing(tmp_path: Path, make_node: Callable[..., NodeProcess]) -> None:
    """One mount over its machine's unix socket, one over TLS with a mount token in a file, which is
    replaced in the overlap. A node is down meanwhile, and returns."""
    if (reason := why_unusable("kernel")) is not None:
        pytest.skip(reason)
    nodes = start_cluster(make_node, 3)
    first, second, away = nodes
    old_mount = make_token(first)
    token_file = tmp_path / "mount-token"
    token_file.write_text(old_mount["token"])
    local = MountProcess(tmp_path / "local", first.data_dir, "kernel")
    remote = MountProcess(
        tmp_path / "remote", None, "kernel",
        ["--node", second.address, "--token-file", str(token_file)],
    )  # fmt: skip
    writers: list[Writer] = []
    try:
        for mount in (local, remote):
            mount.start()
            writers.append(Writer(mount.path / mount.path.parent.name, tmp_path))
        for writer in writers:
            writer.wait_more()
        away.kill()
        rotate(first)
        for writer in writers:
            writer.wait_more()
        away.start()
        for node in nodes:
            wait_until(lambda node=node: generation(node) == 1, "it has the new token", DEADLINE_S)
        wait_until(lambda: len(voters(first)) == 3, "all are there", DEADLINE_S)
        fresh = tmp_path / "fresh"
        fresh.write_text(make_token(first)["token"])
        os.replace(fresh, token_file)
        finish(first)
        wait_until(
            lambda: is_refused(second, old_mount["token"], Role.MOUNT), "the old ends", DEADLINE_S
        )
        for writer in writers:
            writer.wait_more()
            writer.end()
        for writer in writers:
            writer.assert_complete()
        other_side = [remote.path / "local", local.path / "remote"]
        assert [len(os.listdir(folder)) for folder in other_side] == [w.files for w in writers]
    finally:
        for writer in writers:
            writer.process.kill()
            writer.process.wait()
        for mount in (local, remote):
            mount.close()
