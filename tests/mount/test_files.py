"""What POSIX promises of files, on a real mount, one behaviour each."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.mounts import COMMAND_DEADLINE_S, World
from tests.harness.procs import wait_until

LOCK_DEADLINE_S = 20.0  # a lock is handed over in milliseconds

MIB = 1 << 20
# Below the sizes at which anything changes, but many requests, chunks and pages long.
LARGE_BYTES = (3 << 30) if os.environ.get("PYDI_BIG") else 200 * MIB


@pytest.fixture
def open_fd() -> Iterator[Callable[..., int]]:
    """os.open whose descriptors are closed at the end, if the test has not done so."""
    opened: list[int] = []

    def open_(path: Path, flags: int, mode: int = 0o644) -> int:
        opened.append(os.open(path, flags, mode))
        return opened[-1]

    yield open_
    for fd in opened:
        try:
            os.close(fd)
        except OSError:
            pass  # closed by the test itself


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts Python code beside the test; whatever still runs at the end is killed by its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def spawn_(code: str, *arguments: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield spawn_
    for process in started:
        with process:
            process.kill()


def run_as_another_user(folder: Path, code: str) -> None:
    """Runs Python as a user without rights, from inside the folder: the way to it may be closed to
    others. Fails with what the code had to say."""
    become = "import errno, os, sys; os.setgroups([]); os.setgid(4321); os.setuid(4321)\n"
    done = subprocess.run(
        [sys.executable, "-c", become + code], cwd=folder, capture_output=True, text=True,
        check=False, timeout=COMMAND_DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def pattern(index: int) -> bytes:
    """One MiB that no other index has, cheap to make."""
    return struct.pack("<QQ", index, ~index & (2**64 - 1)) * (MIB // 16)


def test_empty_file(folder: Path) -> None:
    """A file of 0 bytes exists, is empty, and stays so after a write of nothing."""
    path = folder / "empty"
    path.touch()
    assert path.stat().st_size == 0
    assert path.stat().st_blocks == 0
    path.write_bytes(b"")
    assert path.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_large_file(folder: Path) -> None:
    """A large file (200 MiB; 3 GiB with PYDI_BIG=1) comes back byte for byte."""
    path = folder / "large"
    count = LARGE_BYTES // MIB
    with open(path, "wb", buffering=0) as file:
        for index in range(count):
            file.write(pattern(index))
        os.fsync(file.fileno())
    assert path.stat().st_size == LARGE_BYTES
    with open(path, "rb", buffering=0) as file:
        for index in range(count):
            assert file.read(MIB) == pattern(index), f"MiB {index}"
        assert file.read(1) == b""
    path.unlink()


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 131071, 131072, 131073, MIB + 1])
def test_sizes_around_pages_and_requests(folder: Path, size: int) -> None:
    """Sizes next to a page, a request and a chunk come back exactly, whole and in parts."""
    content = bytes(i * 7 % 251 for i in range(size))
    path = folder / "file"
    path.write_bytes(content)
    assert path.read_bytes() == content
    with open(path, "rb") as file:
        file.seek(size // 2)
        assert file.read() == content[size // 2 :]


def test_random_writes(folder: Path, rng: object) -> None:
    """Writes at random offsets, over holes and over each other, give what memory gives."""
    model = bytearray()
    path = folder / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(200):
        offset, length = rng.randrange(300_000), rng.randrange(1, 20_000)  # type: ignore[attr-defined]
        data = rng.randbytes(length)  # type: ignore[attr-defined]
        if len(model) < offset + length:
            model.extend(bytes(offset + length - len(model)))
        model[offset : offset + length] = data
        assert os.pwrite(fd, data, offset) == length
    assert os.pread(fd, len(model) + 1, 0) == model
    os.close(fd)
    assert path.read_bytes() == model


# --- names ----------------------------------------------------------------------------------------


def test_longest_name(folder: Path) -> None:
    """A name of 255 bytes works, one of 256 is refused with ENAMETOOLONG, for every operation."""
    name = "n" * 255
    (folder / name).write_text("x")
    assert os.listdir(folder) == [name]
    for refused in (
        lambda: (folder / (name + "n")).touch(),
        lambda: (folder / (name + "n")).mkdir(),
        lambda: os.rename(folder / name, folder / (name + "n")),
        lambda: os.symlink("x", folder / (name + "n")),
        lambda: os.stat(folder / (name + "n")),
    ):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"latin-1 \xe4", b"caf\xc3\xa9", b"new\nline", b"\\back", b" ", b"\x01"]
)
def test_name_is_bytes(folder: Path, name: bytes) -> None:
    """Any bytes but NUL and slash are a name, UTF-8 or not, and come back unchanged."""
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    os.mkdir(path + b".d")
    os.rename(path, os.path.join(path + b".d", name))
    with open(os.path.join(path + b".d", name), "rb") as file:
        assert file.read() == name


def test_names_differ_by_case_and_normal_form(folder: Path) -> None:
    """Names are compared byte by byte: case and Unicode composition matter."""
    names = {"a", "A", "\u00e9", "e\u0301"}
    for name in names:
        (folder / name).write_text(name)
    assert set(os.listdir(folder)) == names
    assert all((folder / name).read_text() == name for name in names)


# --- links and kinds ------------------------------------------------------------------------------


def test_deeper_than_a_path_can_say(folder: Path) -> None:
    """Directories in directories beyond PATH_MAX are made, used and removed step by step."""
    name = "d" * 200
    here = os.open(folder, os.O_RDONLY)
    above = []
    for _ in range(25):
        os.mkdir(name, dir_fd=here)
        above.append(here)
        here = os.open(name, os.O_RDONLY, dir_fd=here)
    fd = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=here)
    os.write(fd, b"deep")
    os.close(fd)
    fd = os.open("file", os.O_RDONLY, dir_fd=here)
    assert os.read(fd, 10) == b"deep"
    os.close(fd)
    os.unlink("file", dir_fd=here)
    while above:
        os.close(here)
        here = above.pop()
        os.rmdir(name, dir_fd=here)
    os.close(here)
    assert os.listdir(folder) == []


def test_hard_links_are_one_file(folder: Path) -> None:
    """Two names share inode, content and mode; the file lives until the last name goes."""
    first, second = folder / "first", folder / "second"
    first.write_text("one")
    os.link(first, second)
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_nlink == second.stat().st_nlink == 2
    second.write_text("changed")
    assert first.read_text() == "changed"
    first.chmod(0o600)
    assert stat.S_IMODE(second.stat().st_mode) == 0o600
    first.unlink()
    assert second.stat().st_nlink == 1
    assert second.read_text() == "changed"


def test_hard_link_to_a_directory_is_refused(folder: Path) -> None:
    """link(2): EPERM for a directory."""
    (folder / "d").mkdir()
    with pytest.raises(PermissionError):
        os.link(folder / "d", folder / "e")


def test_symbolic_links(folder: Path) -> None:
    """Followed, read, dangling, in a loop; the target is kept byte for byte, up to 4095 bytes."""
    (folder / "target").write_text("x")
    (folder / "link").symlink_to("target")
    assert (folder / "link").read_text() == "x"
    assert (folder / "link").lstat().st_size == len("target")
    (folder / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        (folder / "dangling").read_text()
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:
        (folder / "loop").stat()
    assert caught.value.errno == errno.ELOOP
    os.symlink(b"t" * 4095, os.fsencode(folder / "long"))
    assert os.readlink(os.fsencode(folder / "long")) == b"t" * 4095


def test_special_files(folder: Path) -> None:
    """Fifos carry data between two programs, sockets accept; both keep their kind in stat(2)."""
    fifo = folder / "fifo"
    os.mkfifo(fifo, 0o600)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    writer = subprocess.Popen(["sh", "-c", 'echo through >"$1"', "-", fifo])
    assert fifo.read_text() == "through\n"
    assert writer.wait(COMMAND_DEADLINE_S) == 0
    here = os.getcwd()
    os.chdir(folder)  # a socket's path has room for 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
    finally:
        os.chdir(here)
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)


# --- open, unlink, rename -------------------------------------------------------------------------


def test_unlinked_file_stays_usable(folder: Path, open_fd: Callable[..., int]) -> None:
    """An open file without a name is read, written, cut, changed, described; the name is gone."""
    fd = open_fd(folder / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    os.unlink(folder / "file")
    assert os.listdir(folder) == []
    assert os.fstat(fd).st_nlink == 0
    assert os.fstat(fd).st_size == 6
    os.pwrite(fd, b"after!", 6)
    assert os.pread(fd, 100, 0) == b"beforeafter!"
    os.ftruncate(fd, 3)
    assert os.fstat(fd).st_size == 3
    os.fchmod(fd, 0o600)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.fsync(fd)
    # Nothing is left that would keep the directory from going.
    os.rmdir(folder)
    assert os.pread(fd, 100, 0) == b"bef"
    os.close(fd)
    folder.mkdir()
    assert os.listdir(folder) == []


def test_unlinked_file_of_two_openers(folder: Path, open_fd: Callable[..., int]) -> None:
    """Both descriptors of an unlinked file see what the other writes."""
    first = open_fd(folder / "file", os.O_RDWR | os.O_CREAT)
    second = open_fd(folder / "file", os.O_RDWR)
    os.unlink(folder / "file")
    os.write(first, b"shared")
    assert os.pread(second, 10, 0) == b"shared"
    os.close(first)
    assert os.fstat(second).st_size == 6
    assert os.pread(second, 10, 0) == b"shared"


def test_rename_over_open_file(folder: Path, open_fd: Callable[..., int]) -> None:
    """Whoever has the replaced file open goes on with the old content; the name has the new."""
    (folder / "old").write_text("old content")
    (folder / "new").write_text("new content")
    fd = open_fd(folder / "old", os.O_RDONLY)
    os.rename(folder / "new", folder / "old")
    assert os.read(fd, 100) == b"old content"
    assert os.fstat(fd).st_nlink == 0
    assert (folder / "old").read_text() == "new content"
    assert os.listdir(folder) == ["old"]


def test_rename_of_open_file(folder: Path, open_fd: Callable[..., int]) -> None:
    """A file may be renamed while it is written; the content arrives under the new name."""
    fd = open_fd(folder / "a", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"one ")
    os.rename(folder / "a", folder / "b")
    os.write(fd, b"two")
    os.close(fd)
    assert (folder / "b").read_text() == "one two"
    assert os.listdir(folder) == ["b"]


def test_rename_of_directories(folder: Path) -> None:
    """A directory moves with all below it, replaces only an empty one, never moves into itself."""
    (folder / "a/b/c").mkdir(parents=True)
    (folder / "a/b/c/file").write_text("x")
    (folder / "empty").mkdir()
    os.rename(folder / "a/b", folder / "empty")
    assert (folder / "empty/c/file").read_text() == "x"
    (folder / "full/inside").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        os.rename(folder / "empty", folder / "full")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    with pytest.raises(OSError) as caught:
        os.rename(folder / "empty", folder / "empty/c/below")
    assert caught.value.errno == errno.EINVAL


def test_name_like_a_hidden_one_is_an_ordinary_name(folder: Path) -> None:
    """A user's file may be called as libfuse calls what it hides, even renamed while open."""
    name = ".fuse_hiddenfffffff500000001"
    with open(folder / "file", "w") as file:
        file.write("kept")
        file.flush()
        os.rename(folder / "file", folder / name)
    assert (folder / name).read_text() == "kept"


def test_name_of_a_hidden_file_never_shows_it(
    world: World, driver: str, open_fd: Callable[..., int]
) -> None:
    """Goal: a removed open file and a user's file never stand for each other. Method: all names
    that libfuse may have made up for it on a fresh mount are tried, in every way to give a name."""
    fd = open_fd(world.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"removed")
    (world.path / "other").write_text("other")
    os.unlink(world.path / "file")
    ways: tuple[Callable[[Path], object], ...] = (
        lambda path: path.write_text("users"),
        lambda path: os.link(world.path / "other", path),
        lambda path: os.symlink("other", path),
        lambda path: os.mkdir(path),
        lambda path: os.mkfifo(path),
        lambda path: os.rename(world.path / "other", path),
    )

    def is_refused(path: Path) -> bool:
        try:
            path.write_text("users")
        except OSError:
            return True
        assert path.read_text() == "users"
        path.unlink()
        return False

    numbers = itertools.product(range(1, 8), range(4))
    refused = [world.path / f".fuse_hidden{node:08x}{count:08x}" for node, count in numbers]
    assert not any(path.exists() for path in refused)

    def is_one_left() -> bool:
        refused[:] = filter(is_refused, refused)
        return len(refused) == (driver == "fusepy")

    # What earlier tests removed and closed, libfuse may still be about to hear of.
    wait_until(is_one_left, "the name of this file alone is taken")
    for path, give in itertools.product(refused, ways):
        with pytest.raises(OSError) as caught:
            give(path)
        assert caught.value.errno == errno.EBUSY
    # Another machine may give the name all the same.
    for path in refused:
        with world.node.connect() as elsewhere:
            assert elsewhere.create(path.name.encode()).errno == 0
        with pytest.raises(OSError) as caught:
            path.read_text()
        assert caught.value.errno == errno.EBUSY
    assert os.pread(fd, 100, 0) == b"removed"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)

    def is_given(path: Path) -> bool:
        try:
            return path.read_text() == ""
        except OSError:
            return False

    # Nobody waits in close(2) until libfuse has heard of it.
    for path in refused:
        wait_until(lambda path=path: is_given(path), "the name is its user's again")


def test_append_from_two_descriptors(folder: Path, open_fd: Callable[..., int]) -> None:
    """O_APPEND: each write goes to the present end, whoever moved it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    first, second = (open_fd(folder / "log", flags) for _ in range(2))
    for number in range(50):
        os.write(first if number % 2 else second, b"line %d\n" % number)
    os.close(first)
    os.close(second)
    lines = (folder / "log").read_bytes().splitlines()
    assert lines == [b"line %d" % number for number in range(50)]


def test_append_from_two_processes(folder: Path) -> None:
    """Two programs append to one file at the same time: no line is lost or torn."""
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "for i in range(200): os.write(fd, b'%s %d\\n' % (sys.argv[2].encode(), i))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, folder / "log", name]) for name in "ab"
    ]
    assert [writer.wait(COMMAND_DEADLINE_S) for writer in writers] == [0, 0]
    lines = (folder / "log").read_text().splitlines()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name} {i}" for i in range(200)]
    assert len(lines) == 400


def test_exclusive_create(folder: Path) -> None:
    """O_EXCL: exactly one of many racing programs creates the file."""
    script = (
        "import os, sys\n"
        "try: os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL)\n"
        "except FileExistsError: sys.exit(7)\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", script, folder / "lock"]) for _ in range(6)]
    codes = sorted(racer.wait(COMMAND_DEADLINE_S) for racer in racers)
    assert codes == [0, 7, 7, 7, 7, 7]


def test_open_flags(folder: Path, open_fd: Callable[..., int]) -> None:
    """O_TRUNC empties, O_DIRECTORY and O_NOFOLLOW refuse, a missing file is ENOENT."""
    (folder / "file").write_text("content")
    os.close(open_fd(folder / "file", os.O_WRONLY | os.O_TRUNC))
    assert (folder / "file").read_text() == ""
    (folder / "link").symlink_to("file")
    for path, flags, code in (
        (folder / "file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        (folder / "link", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        (folder / "missing", os.O_RDONLY, errno.ENOENT),
        (folder, os.O_WRONLY, errno.EISDIR),
        (folder / "file/below", os.O_RDONLY, errno.ENOTDIR),
    ):
        with pytest.raises(OSError) as caught:
            open_fd(path, flags)
        assert caught.value.errno == code, path
    reader = open_fd(folder / "file", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        os.write(reader, b"x")
    assert caught.value.errno == errno.EBADF


# --- size, holes, memory --------------------------------------------------------------------------


def test_sparse_file(folder: Path, driver: str, open_fd: Callable[..., int]) -> None:
    """A hole takes no room, reads as zeros, and is found by SEEK_HOLE where the binding can tell.

    libfuse 2 has no lseek: there the kernel answers that all is data, which lseek(2) allows.
    """
    fd = open_fd(folder / "sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 100 * MIB)
    os.fsync(fd)
    status = os.fstat(fd)
    assert status.st_size == 100 * MIB + 3
    assert status.st_blocks * 512 < MIB
    assert os.pread(fd, 4096, 50 * MIB) == bytes(4096)
    assert os.pread(fd, 10, 100 * MIB) == b"end"
    expected = 0 if driver == "fusepy" else 100 * MIB
    assert os.lseek(fd, 0, os.SEEK_DATA) == expected
    assert os.lseek(fd, 0, os.SEEK_HOLE) == (100 * MIB + 3 if driver == "fusepy" else 0)


def test_truncate(folder: Path) -> None:
    """Shorter cuts, longer adds zeros, and what was cut never comes back."""
    path = folder / "file"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5_000)
    assert path.read_bytes() == b"x" * 5_000
    os.truncate(path, 8_000)
    assert path.read_bytes() == b"x" * 5_000 + bytes(3_000)
    with open(path, "r+b") as file:
        file.truncate(2)
        file.seek(4)
        file.write(b"y")
    assert path.read_bytes() == b"xx\0\0y"


def test_fallocate(folder: Path, open_fd: Callable[..., int]) -> None:
    """posix_fallocate(3) makes the file as long as asked, and changes no content."""
    fd = open_fd(folder / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"data")
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    assert os.pread(fd, 6, 0) == b"data\0\0"


def test_mmap(folder: Path) -> None:
    """A shared mapping reads and writes the file; another program sees the result after close."""
    path = folder / "file"
    path.write_bytes(b"a" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[:3] == b"aaa"
        memory[5_000:5_003] = b"new"
        memory.flush()
    assert path.read_bytes() == b"a" * 5_000 + b"new" + b"a" * 4_997


def test_a_mapping_of_what_is_open_for_appending_writes_in_place(folder: Path) -> None:
    """O_APPEND is about write(2): a page of a shared mapping goes where it is mapped."""
    path = folder / "file"
    path.write_bytes(b"a" * 10_000)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 0) as memory:
        memory[5_000:5_003] = b"new"
        memory.flush()
        os.write(fd, b"end")
    os.close(fd)
    assert path.read_bytes() == b"a" * 5_000 + b"new" + b"a" * 4_997 + b"end"


def test_o_append_can_be_changed_while_a_file_is_open(folder: Path) -> None:
    """fcntl(2), F_SETFL: each write(2) goes by what is set then."""
    path = folder / "file"
    path.write_bytes(b"a" * 10)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"b", 3)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.pwrite(fd, b"c", 5)
    os.close(fd)
    assert path.read_bytes() == b"aaabaaaaaac"


def test_private_mapping_keeps_its_changes(folder: Path) -> None:
    """mmap(2), MAP_PRIVATE: what is written to it is in no file, and no other mapping."""
    path = folder / "file"
    path.write_bytes(b"a" * 8192)
    with open(path, "r+b") as file:
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        shared = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED)
        private[:3] = b"bbb"
        shared[4096:4099] = b"ccc"
        shared.flush()
        assert private[:4] == b"bbba"
        assert shared[:4] == b"aaaa"
        private.close()
        shared.close()
    assert path.read_bytes() == b"a" * 4096 + b"ccc" + b"a" * 4093


# --- attributes -----------------------------------------------------------------------------------


def test_times(folder: Path) -> None:
    """Set to the nanosecond, one left as it was, now; a write moves mtime, chmod only ctime."""
    path = folder / "file"
    path.write_text("x")
    os.utime(path, ns=(1_111_111_111_123_456_789, 2_222_222_222_987_654_321))
    assert path.stat().st_atime_ns == 1_111_111_111_123_456_789
    assert path.stat().st_mtime_ns == 2_222_222_222_987_654_321
    subprocess.run(["touch", "-a", "-d", "@5", path], check=True)
    assert path.stat().st_atime_ns == 5 * 10**9
    assert path.stat().st_mtime_ns == 2_222_222_222_987_654_321
    os.utime(path, ns=(-5, -(10**9) * 100))
    assert path.stat().st_mtime_ns == -(10**9) * 100
    before = path.stat()
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ctime_ns > before.st_ctime_ns
    path.write_text("y")
    assert path.stat().st_mtime_ns > 10**18
    os.utime(path, ns=(0, 0))
    os.utime(path)
    assert path.stat().st_mtime_ns > 10**18


def test_directory_times_follow_their_entries(folder: Path) -> None:
    """Creating and removing an entry moves the directory's mtime."""
    os.utime(folder, ns=(0, 0))
    (folder / "file").touch()
    created = folder.stat().st_mtime_ns
    assert created > 10**18
    os.utime(folder, ns=(0, 0))
    (folder / "file").unlink()
    assert folder.stat().st_mtime_ns > 10**18


def test_modes_and_owners(folder: Path) -> None:
    """chmod keeps all twelve bits, the umask counts, root gives files away."""
    path = folder / "file"
    old = os.umask(0o027)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(folder / "d", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o750
    for mode in (0o4755, 0o2755, 0o1777, 0o000):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
        os.chown(path, -1, 99)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 99)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_write_by_another_user_takes_set_id_bits_away(folder: Path) -> None:
    """write(2): those of an executable file, and by a user who may not change its mode."""
    path = folder / "tool"
    for mode in (0o4777, 0o2777, 0o6777, 0o2767):
        path.write_bytes(b"")
        path.chmod(mode)
        left = 0o2767 if mode == 0o2767 else 0o777  # no group execution: no privilege
        code = f"""
with open("tool", "ab", 0) as file:
    file.write(b"x")
    assert os.fstat(file.fileno()).st_mode & 0o7777 == {left}
try: os.chmod("tool", 0o700)
except PermissionError: pass
else: raise AssertionError("a stranger changed the mode")
"""
        run_as_another_user(folder, code)
        assert stat.S_IMODE(path.stat().st_mode) == left
        assert path.read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permissions_of_another_user(folder: Path) -> None:
    """A user without rights is refused with EACCES, with rights admitted."""
    folder.chmod(0o755)
    (folder / "secret").write_text("x")
    (folder / "secret").chmod(0o600)
    (folder / "public").write_text("x")
    (folder / "public").chmod(0o644)
    script = (
        "open('public').read()\n"
        "for attempt in (lambda: open('secret'), lambda: open('public', 'w'),"
        " lambda: os.mkdir('d'), lambda: os.unlink('public'), lambda: os.chmod('public', 0o777)"
        "):\n"
        "    try: attempt()\n"
        "    except PermissionError: pass\n"
        "    else: sys.exit('admitted')\n"
    )
    run_as_another_user(folder, script)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_sticky_directory(folder: Path) -> None:
    """unlink(2), rename(2): in a sticky directory only the owner moves or removes a file: EPERM."""
    folder.chmod(0o1777)
    (folder / "roots").write_text("x")
    (folder / "roots").chmod(0o666)
    script = (
        "open('own', 'w').close(); os.rename('own', 'moved')\n"
        "for attempt in (lambda: os.unlink('roots'), lambda: os.rename('roots', 'other'),"
        " lambda: os.rename('moved', 'roots')):\n"
        "    try: attempt()\n"
        "    except OSError as exc: assert exc.errno == errno.EPERM, exc\n"
        "    else: sys.exit('done')\n"
        "os.unlink('moved')\n"
    )
    run_as_another_user(folder, script)
    assert os.listdir(folder) == ["roots"]


def test_xattrs(folder: Path) -> None:
    """Set, read, listed, replaced, removed; create and replace flags; ENODATA and ERANGE."""
    path = folder / "file"
    path.touch()
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "security.selinux")
    assert caught.value.errno == errno.EOPNOTSUPP  # so that ls(1) does not ask of each file
    os.setxattr(path, "user.one", b"\x00\xff value")
    os.setxattr(path, "user.two", b"")
    assert os.getxattr(path, "user.one") == b"\x00\xff value"
    assert os.getxattr(path, "user.two") == b""
    assert sorted(os.listxattr(path)) == ["user.one", "user.two"]
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.one", b"x", os.XATTR_CREATE)
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.three", b"x", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    large = bytes(range(256)) * 100
    os.setxattr(path, "user.one", large)
    assert os.getxattr(path, "user.one") == large
    os.removexattr(path, "user.two")
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "user.two")
    assert caught.value.errno == errno.ENODATA


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set trusted attributes")
def test_trusted_xattrs_are_roots(folder: Path) -> None:
    """xattr(7): trusted. is for root alone; others do not even see that there is one."""
    folder.chmod(0o755)
    (folder / "file").touch()
    os.setxattr(folder / "file", "trusted.secret", b"x")
    os.setxattr(folder / "file", "user.open", b"x")
    assert sorted(os.listxattr(folder / "file")) == ["trusted.secret", "user.open"]
    script = (
        "if os.listxattr('file') != ['user.open']: sys.exit('listed')\n"
        "try: os.getxattr('file', 'trusted.secret')\n"
        "except OSError: pass\n"
        "else: sys.exit('read')\n"
    )
    run_as_another_user(folder, script)


def test_statvfs_and_df(folder: Path) -> None:
    """df shows a size, room that is left, and a longest name of 255 bytes."""
    status = os.statvfs(folder)
    assert 0 < status.f_bavail <= status.f_blocks
    assert status.f_frsize >= 512
    assert status.f_namemax == 255
    assert status.f_files > 0
    line = subprocess.run(["df", "-P", folder], check=True, capture_output=True, text=True).stdout
    assert line.splitlines()[1].startswith("pydi ")


# --- directories ----------------------------------------------------------------------------------


def test_deleting_while_listing(folder: Path) -> None:
    """5,000 entries, deleted while they are read: each is seen exactly once, none is left."""
    names = {f"entry {number}" for number in range(5_000)}

    def create(name: str) -> None:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))

    # Each change waits for a disk; side by side they share one write to it.
    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(create, names))) == len(names)
        seen = []
        removals = []
        with os.scandir(folder) as entries:
            for entry in entries:
                seen.append(entry.name)
                removals.append(pool.submit(os.unlink, entry.path))
        for removal in removals:
            removal.result()
    assert len(seen) == len(names)
    assert set(seen) == names
    assert os.listdir(folder) == []


def test_entries_carry_kind_and_inode(folder: Path) -> None:
    """d_type and d_ino of readdir(3) are what lstat(2) says."""
    (folder / "file").touch()
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("file")
    with os.scandir(folder) as entries:
        found = {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False),
                              entry.is_dir(follow_symlinks=False), entry.is_symlink())
                 for entry in entries}  # fmt: skip
    assert {name: kinds[1:] for name, kinds in found.items()} == {
        "file": (True, False, False), "directory": (False, True, False),
        "link": (False, False, True),
    }  # fmt: skip
    assert all(inode == (folder / name).lstat().st_ino for name, (inode, *_) in found.items())


def test_rmdir_refuses_what_is_not_empty(folder: Path) -> None:
    """rmdir(2) of a full directory is ENOTEMPTY, of a file ENOTDIR; unlink of a directory fails."""
    (folder / "d").mkdir()
    (folder / "d/file").touch()
    with pytest.raises(OSError) as caught:
        os.rmdir(folder / "d")
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(NotADirectoryError):
        os.rmdir(folder / "d/file")
    with pytest.raises(IsADirectoryError):
        os.unlink(folder / "d")


def test_link_count_of_directories(folder: Path) -> None:
    """A directory's link count is 2 and one for each directory in it."""
    assert folder.stat().st_nlink == 2
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    assert folder.stat().st_nlink == 4
    (folder / "a").rmdir()
    assert folder.stat().st_nlink == 3


# --- several programs -----------------------------------------------------------------------------


def test_two_processes_write_different_files(folder: Path) -> None:
    """Programs that write at the same time do not disturb each other."""
    script = (
        "import sys\n"
        "name = sys.argv[1]\n"
        "for i in range(40):\n"
        "    with open(f'{name}-{i}', 'wb') as file: file.write(name.encode() * (i * 997))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=folder) for name in ("a", "b")
    ]
    assert [writer.wait(COMMAND_DEADLINE_S) for writer in writers] == [0, 0]
    assert len(os.listdir(folder)) == 80
    for name in ("a", "b"):
        for i in range(40):
            assert (folder / f"{name}-{i}").read_bytes() == name.encode() * (i * 997)


@pytest.mark.parametrize("style", ["lockf", "flock"])
def test_lock_excludes_another_process(folder: Path, style: str) -> None:
    """A lock is refused to another program until its holder closes the file."""
    script = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+') as file:\n"
        "    try: getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: sys.exit(7)\n"
    )
    command = [sys.executable, "-c", script, str(folder / "file"), style]

    def attempt() -> int:
        return subprocess.run(command, check=False, timeout=COMMAND_DEADLINE_S).returncode

    with open(folder / "file", "w") as file:
        getattr(fcntl, style)(file, fcntl.LOCK_EX)
        assert attempt() == 7
    assert attempt() == 0


def test_waiting_for_a_lock_ends_when_it_is_free(
    folder: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """F_SETLKW waits while another program holds the lock, and gets it afterwards."""
    holder_code = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()\n"
    )
    waiter_code = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+') as file:\n"
        "    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: print('busy', flush=True)\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX)\n"
    )
    (folder / "file").touch()
    holder = spawn(holder_code, folder / "file")
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    waiter = spawn(waiter_code, folder / "file")
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == b"busy\n"
    holder.stdin.close()
    assert waiter.wait(LOCK_DEADLINE_S) == 0
    assert holder.wait(LOCK_DEADLINE_S) == 0
