"""Local files that the kernel reads by itself: counted requests, and what programs see of changes.

One node and one mount that passes files through at once; its log of requests is the witness.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from pydi_fs.fuse import KernelBinding
from pydi_fs.mount_options import MountOptions
from pydi_node.wire.messages import Admin
from tests.harness.mounts import MountProcess, World, why_unusable
from tests.harness.procs import wait_until

FLAGS = ("-o", "passthrough_after=0", "--debug")
CONTENT = os.urandom(300_000)

_reason = why_unusable("kernel")
if _reason is None and not KernelBinding.may_pass(MountOptions()):
    _reason = "passthrough needs Linux 6.9 and CAP_SYS_ADMIN"
pytestmark = [pytest.mark.mount, pytest.mark.skipif(_reason is not None, reason=str(_reason))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("w"), "kernel", FLAGS)
    world.start()
    yield world
    world.close()


_names = count(1)


@pytest.fixture
def file(world: World) -> Path:
    """A new file with CONTENT, closed."""
    path = world.path / f"file{next(_names)}"
    path.write_bytes(CONTENT)
    return path


def log_of(mount: MountProcess) -> str:
    return "".join(path.read_text() for path in sorted(mount.cache_dir.glob("*.log")))


def requests(mount: MountProcess, path: Path, action: Callable[[], object]) -> Counter[str]:
    """What the mount was asked about the file at ``path`` while ``action`` ran."""
    ino = path.stat().st_ino
    before = len(log_of(mount))
    action()
    # Requests come in order, and this one is the last.
    end = f"end{next(_names)}"
    assert not (mount.path / end).exists()
    wait_until(lambda: end in log_of(mount)[before:], "the log has all requests")
    found = re.findall(rf"-> #\d+ (\w+) ino={ino} ", log_of(mount)[before:])
    return Counter(found)


def passed_through(mount: MountProcess, path: Path) -> bool:
    """Is the file opened for reading in passthrough?"""
    return "READ" not in requests(mount, path, path.read_bytes)


def read_plain(path: Path) -> bytes:
    # Not open(): Python asks every file whether it is a terminal.
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, len(CONTENT) + 1)
    finally:
        os.close(fd)


def test_reading_a_local_file_is_open_and_release(world: World, file: Path) -> None:
    """open, read, close of a file on this machine: no READ and no FLUSH, the first time too."""
    for _ in range(3):
        found = requests(world.mount, file, lambda: read_plain(file))
        assert found == Counter(OPEN=1, RELEASE=1)
    assert read_plain(file) == CONTENT


def test_status_tells_of_it(world: World) -> None:
    """`pydi status` shows which mounts pass files through."""
    with world.node.connect() as client:
        (mount,) = client.call(Admin("status"))["mounts"]
    assert mount["passthrough"] is True


def test_all_ways_of_reading(world: World, file: Path) -> None:
    """mmap, sendfile, pread, several at once, and running a program."""
    with open(file, "rb") as first, open(file, "rb") as second:
        with mmap.mmap(first.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == CONTENT
        assert os.pread(second.fileno(), 1000, 299_500) == CONTENT[299_500:]
        assert os.fstat(second.fileno()).st_size == len(CONTENT)
        copy = world.mount.cache_dir / "copy"
        with open(copy, "wb") as target:
            assert os.sendfile(target.fileno(), first.fileno(), 0, len(CONTENT)) == len(CONTENT)
        assert copy.read_bytes() == CONTENT
    program = world.path / "program"
    shutil.copy("/bin/true", program)
    assert passed_through(world.mount, program)
    subprocess.run([program], check=True, timeout=60)


def test_a_writer_finds_readers_in_passthrough(world: World, file: Path) -> None:
    """Writing in place while the file is open: the reader keeps what it opened, its fstat and all
    names show the change at once, and so does every open from then on, also under another name."""
    other_name = file.with_name(file.name + "link")
    os.link(file, other_name)
    with open(file, "rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with open(file, "r+b") as writer:
            writer.seek(100)
            writer.write(b"changed")
            writer.flush()
            with open(other_name, "rb") as late:
                assert late.read(200)[100:107] == b"changed"
            writer.seek(0, os.SEEK_END)
            writer.write(b"longer")
        expected = CONTENT[:100] + b"changed" + CONTENT[107:] + b"longer"
        assert file.read_bytes() == other_name.read_bytes() == expected
        for status in (os.fstat(reader.fileno()), file.stat(), other_name.stat()):
            assert status.st_size == len(expected)
        os.fchmod(reader.fileno(), 0o600)
        for status in (os.fstat(reader.fileno()), file.stat(), other_name.stat()):
            assert status.st_mode & 0o777 == 0o600
        assert reader.read() == CONTENT
        assert mapped[:] == CONTENT
    assert file.read_bytes() == expected


def test_it_is_not_passed_through_again(world: World, file: Path) -> None:
    """A file that was changed while it was open so is read through the cache from then on, so that
    whoever has it open sees the next change."""
    assert passed_through(world.mount, file)
    with open(file, "rb"):
        file.write_bytes(CONTENT[::-1])
    with open(file, "rb", buffering=0) as reader:
        assert reader.read(10) == CONTENT[::-1][:10]
        file.write_bytes(b"new content")
        reader.seek(0)
        assert reader.read() == b"new content"


def test_open_with_truncation_and_creation(world: World, file: Path) -> None:
    """O_TRUNC and O_CREAT of a file that is open in passthrough."""
    with open(file, "rb") as reader:
        file.write_bytes(b"short")
        assert file.read_bytes() == b"short"
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"er")
        os.close(fd)
        assert file.read_bytes() == b"shorter"
        assert reader.read() == CONTENT


def test_removed_and_replaced_while_open(world: World, file: Path) -> None:
    """unlink and rename over an open file leave it readable."""
    with open(file, "rb") as reader:
        new = file.with_name(file.name + "new")
        new.write_bytes(b"new")
        os.rename(new, file)
        assert file.read_bytes() == b"new"
        file.unlink()
        assert reader.read() == CONTENT


def test_stored_content_is_never_written_to(world: World, file: Path) -> None:
    """Whatever is done with the file, the blob files keep their bytes."""
    store = world.node.data_dir / "blobs"
    blobs = [p for p in store.glob("[0-9a-f][0-9a-f]/*") if p.read_bytes() == CONTENT]
    before = {path: path.stat().st_mtime_ns for path in blobs}
    assert before
    with open(file, "rb") as reader:
        with open(file, "r+b") as writer, mmap.mmap(writer.fileno(), 0) as mapped:
            mapped[0:5] = b"12345"
            mapped.flush()
        os.truncate(file, 3)
        assert reader.read() == CONTENT
    assert file.read_bytes() == b"123"
    assert {path: path.stat().st_mtime_ns for path in blobs} == before
    assert all(path.read_bytes() == CONTENT for path in blobs)


def test_changes_of_another_mount(world: World, file: Path, tmp_path: Path) -> None:
    """Content that another mount has closed is seen by the next open here, time after time, while
    older opens keep theirs."""
    second = MountProcess(tmp_path / "second", world.node.data_dir, "kernel", FLAGS)
    try:
        second.start()
        there = second.path / file.name
        with open(file, "rb") as reader:
            assert reader.read(10) == CONTENT[:10]
            for number in range(10):
                content = bytes([number]) * (1000 * number + 1)
                there.write_bytes(content)
                assert file.read_bytes() == content
                assert file.stat().st_size == len(content)
            assert reader.read() == CONTENT[10:]
            file.write_bytes(b"back")
            assert there.read_bytes() == b"back"
    finally:
        second.close()


def test_a_young_file_shows_every_change(tmp_path: Path, world: World) -> None:
    """Without the option a file that was just written is not passed through: who has it open sees
    what others write."""
    plain = MountProcess(tmp_path / "plain", world.node.data_dir, "kernel", ("--debug",))
    try:
        plain.start()
        path = plain.path / "young"
        path.write_bytes(b"line 1\n")
        with open(path, "rb") as reader:
            assert reader.read() == b"line 1\n"
            with open(path, "ab") as writer:
                writer.write(b"line 2\n")
            assert reader.read() == b"line 2\n"
        old = plain.path / "old"
        old.write_bytes(CONTENT)
        os.utime(old, (0, 0))
        assert passed_through(plain, old)
    finally:
        plain.close()


def test_a_machine_without_a_node(tmp_path: Path, world: World, file: Path) -> None:
    """Content that was fetched once is passed through from the cache directory."""
    far = MountProcess(tmp_path / "far", world.node.data_dir, "kernel", FLAGS)
    at = far.arguments.index("--data-dir")
    far.arguments[at : at + 2] = ["--node", world.node.address, "--token", world.node.token]
    try:
        far.start()
        there = far.path / file.name
        assert not passed_through(far, there)
        wait_until(lambda: any((far.cache_dir / "blobs").rglob("*-*")), "it is kept")
        assert passed_through(far, there)
        assert there.read_bytes() == CONTENT
        file.write_bytes(b"changed")
        assert there.read_bytes() == b"changed"
    finally:
        far.close()
