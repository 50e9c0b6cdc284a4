"""Two mounts of one cluster: what one has closed, the other sees at its next open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import MountProcess, World


@pytest.fixture
def two(world: World, tmp_path: Path, usable_driver: str) -> Iterator[tuple[Path, Path]]:
    """The same tree at two mount points, each with a daemon of its own."""
    second = MountProcess(tmp_path / "second", world.node.data_dir, usable_driver)
    try:
        second.start()
        yield world.path, second.path
    finally:
        second.close()


def test_close_to_open(two: tuple[Path, Path]) -> None:
    """Content written on one mount and closed is read on the other, longer or shorter, each time.

    The reader has read the earlier version just before, so stale pages, sizes or names would show.
    """
    here, there = two
    for number in range(30):
        content = bytes([number]) * (10_000 if number % 2 else 100_000)
        (here / "file").write_bytes(content)
        assert (there / "file").read_bytes() == content
        assert (there / "file").stat().st_size == len(content)
        here, there = there, here


def test_names_come_and_go(two: tuple[Path, Path]) -> None:
    """A name made, renamed or removed on one mount is so on the other at once, absence too."""
    here, there = two
    for number in range(10):
        assert not (there / f"new {number}").exists()
        (here / f"new {number}").write_text("x")
        assert (there / f"new {number}").read_text() == "x"
        assert f"new {number}" in os.listdir(there)
        os.rename(here / f"new {number}", here / f"old {number}")
        assert not (there / f"new {number}").exists()
        assert (there / f"old {number}").exists()
        (there / f"old {number}").unlink()
        assert not (here / f"old {number}").exists()
        here, there = there, here


def test_replaced_by_rename(two: tuple[Path, Path]) -> None:
    """A file replaced by rename on one mount is the new file on the other, by a known name."""
    here, there = two
    for number in range(20):
        (here / "temporary").write_text(f"version {number}")
        os.rename(here / "temporary", here / "target")
        assert (there / "target").read_text() == f"version {number}"
        assert not (there / "temporary").exists()


def test_attributes_follow(two: tuple[Path, Path]) -> None:
    """chmod, utime and truncate on one mount show in stat(2) on the other."""
    here, there = two
    (here / "file").write_bytes(b"x" * 1000)
    assert (there / "file").stat().st_size == 1000
    (here / "file").chmod(0o600)
    assert (there / "file").stat().st_mode & 0o777 == 0o600
    os.truncate(here / "file", 10)
    assert (there / "file").stat().st_size == 10
    os.utime(here / "file", ns=(7, 7))
    assert (there / "file").stat().st_mtime_ns == 7


def test_kind_of_a_name_changes(two: tuple[Path, Path]) -> None:
    """A name that was a file and becomes a directory, and back, is usable on the other mount."""
    here, there = two
    for _ in range(3):
        (here / "name").write_text("file")
        assert (there / "name").read_text() == "file"
        (here / "name").unlink()
        (here / "name").mkdir()
        (there / "name/inside").touch()
        assert os.listdir(here / "name") == ["inside"]
        (here / "name/inside").unlink()
        (here / "name").rmdir()
