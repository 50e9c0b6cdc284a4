"""durability=fsync on a real mount: programs write and close, and then something ends.

What is asked of which node, and when, is in tests/node/test_closing_behind.py.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydi_node.ids import ROOT_INO
from pydi_node.wire.messages import GetFile, Lookup
from tests.harness.mounts import COMMAND_DEADLINE_S, World, run
from tests.harness.procs import wait_until
from tests.mount.test_supervised import kill_worker

FLAGS = ("-o", "durability=fsync")


@pytest.fixture(scope="module")
def closing_world(make_world: Callable[..., World]) -> Iterator[World]:
    world = make_world(*FLAGS)
    yield world
    world.close()


def some_files(directory: Path) -> None:
    """Of all kinds of size, with modes and times of their own."""
    for number in range(30):
        path = directory / f"{number % 4}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (0, 100, 5000, 300_000, 2_000_000)[number % 5]
        path.write_bytes(os.urandom(size))
        path.chmod((0o600, 0o755)[number % 2])
        os.utime(path, times=(1_000_000 + number, 2_000_000 + number))


def assert_same(here: Path, there: Path, ctimes: dict[Path, int]) -> None:
    """ctimes  as they were when they were looked at first; they stay."""
    run("diff", "-r", here, there)
    for path in here.rglob("*"):
        copy = there / path.relative_to(here)
        kept, told = path.stat(), copy.stat()
        assert kept.st_mode == told.st_mode, path
        if path.is_file():
            assert kept.st_mtime_ns == told.st_mtime_ns, path
            assert told.st_ctime_ns == ctimes.setdefault(copy, told.st_ctime_ns)


def test_what_was_unpacked_is_there_and_outlives_the_mount(
    closing_world: World, tmp_path: Path
) -> None:
    """Programs here see it at once, and who mounts it next as well."""
    world = closing_world
    source = tmp_path / "source"
    some_files(source)
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, ".")
    targets = [world.path / tool for tool in ("tarfile", "tar", "cp")]
    for target in targets:
        target.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(targets[0])
    run("tar", "xf", archive, "-C", targets[1])
    run("cp", "-rp", f"{source}/.", targets[2])
    ctimes: dict[Path, int] = {}
    for target in targets:
        assert_same(source, target, ctimes)
    world.mount.unmount()
    world.mount.start()
    for target in targets:
        assert_same(source, target, ctimes)
    assert "lost" not in world.mount.log_text


def test_a_node_that_is_killed_hears_of_them_when_it_is_back(closing_world: World) -> None:
    world = closing_world
    directory = world.path / "d"
    directory.mkdir()
    for number in range(100):
        (directory / f"{number}").write_bytes(b"%d" % number)
    world.node.kill()
    world.node.start()

    def all_there() -> bool:
        with world.node.connect() as client:
            parent = client.call(Lookup(ROOT_INO, b"d")).ino
            for number in range(100):
                ino = client.call(Lookup(parent, b"%d" % number)).ino
                assert client.call(GetFile(ino)).contents[0][1] == b"%d" % number
        return True

    wait_until(lambda: (directory / "99").read_bytes() == b"99", "it goes on", COMMAND_DEADLINE_S)
    directory_fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
    assert all_there()


def test_a_killed_worker_loses_nothing_that_was_closed(closing_world: World) -> None:
    """Others find each file with its content, although its worker told nobody."""
    world = closing_world
    if world.mount.worker is None:
        pytest.skip("nobody goes on after this worker")
    for round_ in range(3):
        directory = world.path / f"killed{round_}"
        directory.mkdir()
        contents = {b"%d" % n: os.urandom((10, 300_000)[n % 10 == 0]) for n in range(60)}
        for name, content in contents.items():
            (directory / name.decode()).write_bytes(content)
        kill_worker(world.mount)
        with world.node.connect() as client:
            parent = client.call(Lookup(ROOT_INO, directory.name.encode())).ino
            found = {name: client.call(Lookup(parent, name)).size for name in contents}
        assert found == {name: len(content) for name, content in contents.items()}
        for name, content in contents.items():
            assert (directory / name.decode()).read_bytes() == content
    assert subprocess.run(["sync", world.path], check=False).returncode == 0
