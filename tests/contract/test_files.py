"""What every implementation of ``Files`` does, run on the real one and on the simulated disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydi_node.blobs.files import Files, OsFiles, load, save
from tests.harness.disk_sim import SimulatedDisk

Place = tuple[Files, Path]


@pytest.fixture(params=["os", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An implementation and an empty directory on it."""
    if request.param == "os":
        return OsFiles(), tmp_path
    disk = SimulatedDisk(seed=1)
    return disk, disk.root


def content(files: Files, path: Path) -> bytes:
    fd = files.open(path)
    try:
        return files.pread(fd, files.size(fd) + 1, 0)
    finally:
        files.close(fd)


def test_what_was_written_is_read(place: Place) -> None:
    """Any offset, any of the data types, overwriting; a gap reads as zeros; short at the end."""
    files, root = place
    fd = files.create(root / "a")
    files.pwrite(fd, b"abc", 0)
    files.pwrite(fd, bytearray(b"BC"), 1)
    files.pwrite(fd, memoryview(b"xyz")[1:], 6)
    files.pwrite(fd, b"", 100)
    assert files.size(fd) == 8
    assert files.pread(fd, 100, 0) == b"aBC\0\0\0yz"
    assert files.pread(fd, 2, 7) == b"z"
    assert files.pread(fd, 2, 8) == files.pread(fd, 2, 1000) == b""
    files.fdatasync(fd)
    files.close(fd)
    assert content(files, root / "a") == b"aBC\0\0\0yz"


def test_a_writable_descriptor_changes_an_existing_file(place: Place) -> None:
    """``open(writable=True)`` keeps what is there."""
    files, root = place
    save(files, root / "a", b"abc")
    fd = files.open(root / "a", writable=True)
    files.pwrite(fd, b"X", 1)
    files.close(fd)
    assert content(files, root / "a") == b"aXc"


def test_truncate_cuts_and_extends_with_zeros(place: Place) -> None:
    """ftruncate(2): what was cut does not come back."""
    files, root = place
    fd = files.create(root / "a")
    files.pwrite(fd, b"abcdef", 0)
    files.truncate(fd, 2)
    files.truncate(fd, 4)
    assert files.pread(fd, 10, 0) == b"ab\0\0"
    files.close(fd)


def test_allocate_keeps_content_and_never_shrinks(place: Place) -> None:
    """posix_fallocate(3): zeros where there was nothing."""
    files, root = place
    fd = files.create(root / "a")
    files.pwrite(fd, b"abc", 0)
    files.allocate(fd, 0, 5)
    assert files.pread(fd, 10, 0) == b"abc\0\0"
    files.allocate(fd, 0, 2)
    assert files.size(fd) == 5
    files.close(fd)


def test_create_refuses_an_existing_name(place: Place) -> None:
    """O_EXCL: and the file that is there stays as it is."""
    files, root = place
    save(files, root / "a", b"abc")
    with pytest.raises(FileExistsError):
        files.create(root / "a")
    assert content(files, root / "a") == b"abc"


def test_missing_files_and_directories_are_file_not_found(place: Place) -> None:
    """For each call that takes a path."""
    files, root = place
    with pytest.raises(FileNotFoundError):
        files.open(root / "a")
    with pytest.raises(FileNotFoundError):
        files.create(root / "no" / "a")
    with pytest.raises(FileNotFoundError):
        files.unlink(root / "a")
    with pytest.raises(FileNotFoundError):
        files.rename(root / "a", root / "b")
    save(files, root / "a", b"")
    with pytest.raises(FileNotFoundError):
        files.rename(root / "a", root / "no" / "b")
    with pytest.raises(FileNotFoundError):
        files.names(root / "no")
    with pytest.raises(FileNotFoundError):
        files.entries(root / "no")
    with pytest.raises(FileNotFoundError):
        files.sync_directory(root / "no")
    with pytest.raises(FileNotFoundError):
        files.make_directory(root / "no" / "directory")


def test_rename_moves_between_directories_and_replaces(place: Place) -> None:
    """rename(2): the source's name is gone, the target is the source's file."""
    files, root = place
    assert files.make_directory(root / "d")
    assert not files.make_directory(root / "d")
    save(files, root / "a", b"new")
    save(files, root / "d" / "b", b"old")
    files.rename(root / "a", root / "d" / "b")
    assert content(files, root / "d" / "b") == b"new"
    assert not files.exists(root / "a")
    assert files.exists(root / "d" / "b")
    assert files.exists(root / "d")


def test_an_open_file_outlives_its_name(place: Place) -> None:
    """unlink(2) and a replacing rename leave descriptors as they are."""
    files, root = place
    save(files, root / "a", b"one")
    save(files, root / "b", b"two")
    first, second = files.open(root / "a"), files.open(root / "b")
    files.rename(root / "a", root / "b")
    files.unlink(root / "b")
    assert files.names(root) == []
    assert files.pread(first, 9, 0) == b"one"
    assert files.pread(second, 9, 0) == b"two"
    files.close(first)
    files.close(second)


def test_listings_show_names_kinds_and_sizes(place: Place) -> None:
    """Of this directory only, not of the ones below."""
    files, root = place
    files.make_directory(root / "d")
    save(files, root / "d" / "inside", b"x")
    save(files, root / "a", b"abc")
    assert sorted(files.names(root)) == ["a", "d"]
    assert sorted(files.entries(root)) == [("a", 3, False), ("d", 0, True)]


def test_a_closed_descriptor_is_refused(place: Place) -> None:
    """EBADF, as the kernel has it."""
    files, root = place
    fd = files.create(root / "a")
    files.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.pread(fd, 1, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.close(fd)


def test_beginning_to_write_back_changes_nothing_that_can_be_seen(place: Place) -> None:
    """A hint: content, size and what may follow are as before."""
    files, root = place
    fd = files.create(root / "a")
    files.pwrite(fd, b"content", 0)
    files.begin_writeback(fd, 0, 7)
    files.begin_writeback(fd, 100, 50)  # nothing there
    files.pwrite(fd, b"C", 0)
    files.fdatasync(fd)
    assert files.pread(fd, 100, 0) == b"Content"
    assert files.size(fd) == 7
    files.close(fd)


def test_forgetting_the_cache_loses_nothing_that_is_intact(place: Place) -> None:
    """Neither what was synced nor what was not yet."""
    files, root = place
    fd = files.create(root / "a")
    files.pwrite(fd, b"synced", 0)
    files.fdatasync(fd)
    files.forget_cache(fd)
    assert files.pread(fd, 10, 0) == b"synced"
    files.pwrite(fd, b"later", 1)
    files.forget_cache(fd)
    assert files.pread(fd, 10, 0) == b"slater"
    files.close(fd)


def test_mode_can_be_set_on_an_open_file(place: Place) -> None:
    """The descriptor stays writable; only later opens see the mode."""
    files, root = place
    fd = files.create(root / "a")
    files.set_mode(fd, 0o400)
    files.pwrite(fd, b"x", 0)
    files.close(fd)
    assert content(files, root / "a") == b"x"
    if isinstance(files, SimulatedDisk):
        assert files.mode(root / "a") == 0o400
    else:
        assert (root / "a").stat().st_mode & 0o777 == 0o400


def test_space_is_plausible(place: Place) -> None:
    """Free is at most all there is."""
    files, root = place
    space = files.space(root)
    assert 0 < space.free <= space.total


def test_save_replaces_and_load_reads_back(place: Place) -> None:
    """Whole content each time, nothing left beside it, bounded reading."""
    files, root = place
    assert load(files, root / "a", 10) is None
    save(files, root / "a", b"first, longer")
    save(files, root / "a", b"second")
    assert load(files, root / "a", 100) == b"second"
    assert load(files, root / "a", 3) == b"sec"
    assert files.names(root) == ["a"]
