"""A full disk under the node, seen through the mount: the program gets ENOSPC, everything written
before stays, and there is room again after deleting. On a tmpfs, so it needs the permission."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import World
from tests.harness.procs import wait_until

SIZE_MIB = 160  # two log segments and the reserve, and room for some files


@pytest.fixture
def small_world(tmp_path: Path, usable_driver: str) -> Iterator[World]:
    """A node whose data directory is a file system of SIZE_MIB MiB; the mount stages elsewhere."""
    world = World(tmp_path, usable_driver)
    world.node.data_dir.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "t", world.node.data_dir],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"can't mount a tmpfs here: {made.stderr.strip()}")
    try:
        world.start()
        yield world
    finally:
        world.close()
        subprocess.run(["umount", "--lazy", world.node.data_dir], check=True)


def error_of_writing(path: Path, data: bytes) -> int:
    """Writes all of it, durable; the errno when open, write, fsync or close says no, else 0."""
    try:
        with open(path, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno or -1
    return 0


@pytest.mark.expects_log("disk", "space", "content lost", "not published")
def test_a_full_disk_is_enospc_and_nothing_acknowledged_is_lost(small_world: World) -> None:
    """Goal: promise 3. Method: write files until one fails, look at all, delete, go on."""
    block = os.urandom(8 << 20)
    written = []
    while not (error := error_of_writing(path := small_world.path / f"f{len(written)}", block)):
        written.append(path)
        assert len(written) * len(block) < SIZE_MIB << 20, "more than the disk holds"
    assert error == errno.ENOSPC
    assert written, "something fitted"
    assert all(path.read_bytes() == block for path in written)
    for path in written:
        path.unlink()

    # Deleted content is history for a week, unless space runs out: then its blobs go.
    after = small_world.path / "after"
    wait_until(
        lambda: not error_of_writing(after, b"room"), "room for a small file after deleting", 60.0
    )
    assert after.read_bytes() == b"room"
    assert small_world.is_sound()
