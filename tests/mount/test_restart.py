"""Stops, starts and kills under a mount: what was acknowledged is there afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, World, run
from tests.harness.procs import START_DEADLINE_S, wait_until

# Writes files until it is told to stop or a write fails, and says which were acknowledged: a line
# of the manifest is written only after close(2), or fsync(2), returned without an error.
WRITER = """
import hashlib, os, sys
folder, manifest = sys.argv[1:]
with open(manifest, "a") as acknowledged:
    for number in range(100_000):
        name = f"file {number}"
        content = os.urandom(1 + number * 7919 % 300_000)
        try:
            fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view):]
                if number % 3 == 0:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            print(error, file=sys.stderr)
            break
        acknowledged.write(f"{hashlib.sha256(content).hexdigest()} {name}\\n")
        acknowledged.flush()
"""


def start_writer(folder: Path, manifest: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, folder, manifest], stderr=subprocess.PIPE
    )


def acknowledged(manifest: Path) -> dict[str, str]:
    """Name to hash of every file whose close was answered."""
    if not manifest.exists():
        return {}
    lines = manifest.read_text().splitlines(keepends=True)
    whole = [line.rstrip("\n") for line in lines if line.endswith("\n")]
    return {name: digest for digest, _, name in (line.partition(" ") for line in whole)}


def assert_all_there(folder: Path, manifest: Path) -> None:
    expected = acknowledged(manifest)
    assert expected, "the manifest is empty: nothing was tested"
    for name, digest in expected.items():
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, f"{name}: {len(content)} bytes"


def fill(folder: Path) -> None:
    """Some of everything."""
    (folder / "d/e").mkdir(parents=True)
    (folder / "d/e/file").write_bytes(bytes(range(256)) * 1000)
    (folder / "empty").touch()
    os.link(folder / "d/e/file", folder / "second name")
    (folder / "link").symlink_to("d/e")
    (folder / "empty").chmod(0o4711)
    os.setxattr(folder / "empty", "user.note", b"kept")
    os.utime(folder / "d/e/file", ns=(1, 1_234_567_890_123_456_789))


def describe(folder: Path) -> str:
    """All that must survive, as text."""
    shown = r"%P %y %m %n %s %T@ %l\n"
    return "\n".join(
        (
            "".join(sorted(run("find", folder, "-printf", shown).splitlines(keepends=True))),
            hashlib.sha256((folder / "second name").read_bytes()).hexdigest(),
            repr(os.getxattr(folder / "empty", "user.note")),
        )
    )


def test_remount_shows_the_same(world: World) -> None:
    """After umount and a second mount everything is as it was left, and umount lost nothing."""
    fill(world.path)
    before = describe(world.path)
    world.mount.unmount()
    assert os.listdir(world.path) == []
    world.mount.start()
    assert describe(world.path) == before


def test_restart_of_node_and_mount_shows_the_same(world: World) -> None:
    """Both stopped and started again: everything is as it was left."""
    fill(world.path)
    before = describe(world.path)
    world.mount.unmount()
    assert world.node.stop() == 0
    world.node.start()
    world.mount.start()
    assert describe(world.path) == before


def test_node_stops_under_a_mount(world: World) -> None:
    """The mount outlives a clean restart of its node and goes on by itself."""
    fill(world.path)
    before = describe(world.path)
    assert world.node.stop() == 0
    world.node.start()
    assert describe(world.path) == before
    (world.path / "after").write_text("written after the restart")
    assert (world.path / "after").read_text() == "written after the restart"


def test_sigterm_publishes_what_is_open(world: World) -> None:
    """SIGTERM while a file is open for writing: its content is published, the mount goes, exit."""
    fd = os.open(world.path / "open", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, b"not closed yet")
        world.mount.signal(signal.SIGTERM)
        world.mount.wait_ended()
    finally:
        with contextlib.suppress(OSError):  # nobody is left who could answer this close
            os.close(fd)
    assert not world.mount.is_mounted()
    world.mount.start()
    assert (world.path / "open").read_bytes() == b"not closed yet"


def test_umount_refuses_while_in_use(world: World) -> None:
    """umount(8) says busy while a program stands in the mount; nothing happens to the mount."""
    with open(world.path / "open", "w") as file:
        done = subprocess.run(
            ["umount", world.path], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode != 0
        assert "busy" in done.stderr
        file.write("still works")
    assert (world.path / "open").read_text() == "still works"


@pytest.mark.parametrize("tool", ["umount", "fusermount -u", "fusermount3 -u", "SIGTERM", "SIGINT"])
def test_every_way_to_unmount(world: World, tool: str) -> None:
    """Each tool and signal ends the mount and its daemon, with all content kept."""
    fill(world.path)
    before = describe(world.path)
    if tool.startswith("SIG"):
        world.mount.signal(signal.Signals[tool])
    else:
        run(*tool.split(), world.path)
    world.mount.wait_ended()
    assert not world.mount.is_mounted()
    world.mount.start()
    assert describe(world.path) == before


def test_lazy_unmount_keeps_open_files_until_they_are_closed(world: World) -> None:
    """umount -l under an open file: the file is finished as if nothing had happened."""
    with open(world.path / "open", "wb", buffering=0) as file:
        file.write(b"before, ")
        run("umount", "-l", world.path)
        assert os.listdir(world.path) == []
        file.write(b"after")
    world.mount.wait_ended()
    world.mount.start()
    assert (world.path / "open").read_bytes() == b"before, after"


@pytest.mark.slow
def test_kill_of_the_node_loses_nothing_acknowledged(world: World, tmp_path: Path) -> None:
    """kill -9 of the node in the middle of a copy: what was answered is there after its restart.

    The mount is not touched: it finds the node again by itself, and the writer may go on.
    """
    manifest = tmp_path / "manifest"
    with start_writer(world.path, manifest) as writer:
        for count in (15, 40):

            def is_far_enough(count: int = count) -> bool:
                return len(acknowledged(manifest)) >= count or writer.poll() is not None

            wait_until(is_far_enough, f"{count} files are acknowledged", COMMAND_DEADLINE_S)
            world.node.kill()
            world.node.start()
        # A write that fell into the gap may have failed with an error; it must not have lied.
        writer.terminate()
        writer.wait(COMMAND_DEADLINE_S)
        assert writer.stderr is not None
        writer.stderr.read()
    assert_all_there(world.path, manifest)
    world.mount.unmount()
    world.mount.start()
    assert_all_there(world.path, manifest)


@pytest.mark.slow
def test_kill_of_the_mount_loses_nothing_acknowledged(world: World, tmp_path: Path) -> None:
    """kill -9 of the mount daemon in the middle of a copy: a new mount shows what was answered.

    `pydi-mount` takes the dead mount away by itself.
    """
    manifest = tmp_path / "manifest"
    with start_writer(world.path, manifest) as writer:
        wait_until(
            lambda: len(acknowledged(manifest)) >= 30, "30 files are acknowledged",
            COMMAND_DEADLINE_S,
        )  # fmt: skip
        world.mount.kill()
        assert writer.wait(COMMAND_DEADLINE_S) == 0
        assert writer.stderr is not None
        assert writer.stderr.read(), "the writer was never told"
    with pytest.raises(OSError):
        os.listdir(world.path)
    world.mount.start()
    assert_all_there(world.path, manifest)


def test_mount_is_answered_while_the_node_is_away(world: World) -> None:
    """Without its node every operation on the mount ends with an error, none hangs; then it works.

    What a hang would look like: the listing below never ends and its time-out fails the test.
    """
    (world.path / "file").write_text("x")
    world.node.kill()
    done = subprocess.run(
        [sys.executable, "-c", "import os, sys; os.mkdir(sys.argv[1])", world.path / "new"],
        capture_output=True, text=True, check=False, timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    assert done.returncode != 0
    assert "OSError" in done.stderr
    world.node.start()
    wait_until(lambda: _succeeds(lambda: (world.path / "new").mkdir(exist_ok=True)),
               "the mount reconnects", START_DEADLINE_S)  # fmt: skip
    assert (world.path / "file").read_text() == "x"


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
