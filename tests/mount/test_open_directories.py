"""Programs that have a directory open while its mount's worker is replaced, or another mount
changes what is being read: readdir(3), telldir(3), seekdir(3), rewinddir(3).

All of it over the kernel driver: libfuse keeps its mount to one process, and the kernel no listing.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydi_fs.supervisor import is_possible
from pydi_fs.watch import AGAIN_NS
from tests.harness.mounts import MountProcess, World, pydi_mount
from tests.harness.procs import pydi, wait_until
from tests.mount.test_kernel_device import MemoryMount
from tests.mount.test_requests import requests
from tests.mount.test_supervised import PIDFD_GETFD

DEADLINE_S = 30.0
ENTRIES = 700  # of names so long that the kernel asks several times, and readdir(3) too
READ_BEFORE, MARKED = 250, 150
BUFFER_BYTES = 1 << 16  # of the program whose memory is not there yet
# Who takes an answer in so late does it when the kernel is not told of its inodes any more.
STALLED_S = sum(AGAIN_NS) / 1e9 + 1

# Reads a folder once, into memory that is a file's content; says what it found.
READS_INTO = """
import ctypes, mmap, os, sys
folder, content = sys.argv[1:]
with open(content, "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
start = ctypes.c_char.from_buffer(memory)
fd = os.open(folder, os.O_RDONLY)
print("reads", flush=True)
length = ctypes.CDLL(None).getdents64(fd, ctypes.byref(start), len(memory))
print(length, flush=True)
sys.stdin.read()
"""


class _Entry(ctypes.Structure):
    """struct dirent64 of Linux."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir64", "telldir", "seekdir", "rewinddir", "closedir"):
    getattr(_libc, _name).argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Directory:
    """An open directory as C programs have it; "." and ".." are left out."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self, limit: int = 1 << 30) -> list[str]:
        """Up to so many names, all of them to the end by default."""
        names: list[str] = []
        while len(names) < limit:
            ctypes.set_errno(0)
            entry = _libc.readdir64(self._stream)
            if not entry:
                assert ctypes.get_errno() == 0, os.strerror(ctypes.get_errno())
                break
            name = os.fsdecode(entry.contents.d_name)
            if name not in (".", ".."):
                names.append(name)
        return names

    def tell(self) -> int:
        position: int = _libc.telldir(self._stream)
        return position

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@pytest.fixture
def supervised(make_world: Callable[..., World], usable_driver: str) -> Iterator[World]:
    if usable_driver != "kernel" or not is_possible():
        pytest.skip("only a supervised mount of the kernel driver goes on, and keeps listings")
    world = make_world("--debug")
    yield world
    world.close()


@pytest.fixture
def second(supervised: World, tmp_path: Path) -> Iterator[MountProcess]:
    """Another mount of the same tree."""
    mount = MountProcess(tmp_path / "second", supervised.node.data_dir, "kernel")
    try:
        mount.start()
        yield mount
    finally:
        mount.close()


def signal_worker(mount: MountProcess, number: signal.Signals) -> None:
    worker = mount.worker
    assert worker is not None
    os.kill(worker, number)


def wait_asked(mount: MountProcess) -> None:
    """Until the stopped worker has a request to read: its device says so to whoever has it."""
    worker = mount.worker
    assert worker is not None
    links = Path(f"/proc/{worker}/fd").iterdir()
    number = next(int(link.name) for link in links if os.readlink(link) == "/dev/fuse")
    pidfd = os.pidfd_open(worker)
    device = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    try:
        assert device >= 0, os.strerror(ctypes.get_errno())
        assert select.select([device], [], [], DEADLINE_S)[0], "nothing was asked"
    finally:
        os.close(device)
        os.close(pidfd)


class Reader:
    """A program in the middle of a directory: READ_BEFORE names are read, and a place is marked."""

    def __init__(self, path: Path) -> None:
        self._directory = Directory(path)
        self.before_mark = self._directory.read(MARKED)
        self._mark = self._directory.tell()
        self.after_mark = self._directory.read(READ_BEFORE - MARKED)

    def begin_rest(self) -> Callable[[], list[str]]:
        """Reads on, which may wait; what waits for it."""
        rest: list[str] = []
        thread = threading.Thread(target=lambda: rest.extend(self._directory.read()), daemon=True)
        thread.start()

        def end() -> list[str]:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
            return rest

        return end

    def check(self, rest: list[str], stayed: set[str], now: set[str]) -> None:
        """POSIX readdir(): what was there throughout is read once, nothing twice; what came or went
        meanwhile may be read or not. seekdir() goes back to a place that telldir() told, and behind
        it is what was behind it. rewinddir() shows what is there now.

        rest    what was read from where it was to the end.
        stayed  names that were there all the time; now: those that are there.
        """
        read = self.before_mark + self.after_mark + rest
        assert len(read) == len(set(read)), "a name was read twice"
        assert stayed - set(read) == set(), "a name was not read"
        self._directory.seek(self._mark)
        behind = self._directory.read()
        assert len(behind) == len(set(behind)), "a name was read twice behind the mark"
        assert stayed & set(behind) == stayed - set(self.before_mark)
        for _ in range(2):
            self._directory.rewind()
            assert sorted(self._directory.read()) == sorted(now)

    def close(self) -> None:
        self._directory.close()


def fill(folder: Path) -> set[str]:
    folder.mkdir()
    names = {f"{number:0120}" for number in range(ENTRIES)}
    for name in names:
        os.mknod(folder / name)
    return names


def change(folder: Path, names: set[str]) -> tuple[set[str], set[str]]:
    """Some go, some get another name, some come. What stayed, and what is there now."""
    stayed, now = set(names), set(names)
    for number, name in enumerate(sorted(names)):
        if number % 7 == 0:
            (folder / name).unlink()
        elif number % 11 == 0:
            (folder / name).rename(folder / f"moved {name}")
            now.add(f"moved {name}")
        else:
            continue
        stayed.discard(name)
        now.discard(name)
    for number in range(50):
        os.mknod(folder / f"new {number}")
        now.add(f"new {number}")
    return stayed, now


@pytest.mark.parametrize("ended_by", ["killed", "hangs", "killed twice", "upgraded"])
@pytest.mark.parametrize("listed", [False, True], ids=["not listed before", "listed before"])
def test_who_reads_on_behind_the_end_of_a_worker_reads_each_name_once(
    supervised: World, second: MountProcess, listed: bool, ended_by: str
) -> None:
    """A directory of many pages is half read when its worker goes, and changed on another mount
    before the next one serves; out of the kernel's own listing, or not."""
    folder = supervised.path / "folder"
    names = fill(folder)
    if listed:
        for _ in range(2):
            assert set(os.listdir(folder)) == names
    reader = Reader(folder)
    try:
        if ended_by == "hangs":
            signal_worker(supervised.mount, signal.SIGSTOP)
        elif ended_by == "upgraded":
            done = pydi_mount(["--upgrade", str(supervised.path)])
            assert (done.returncode, done.stderr) == (0, "")
        else:
            signal_worker(supervised.mount, signal.SIGKILL)
        stayed, now = change(second.path / "folder", names)
        if ended_by in ("killed twice", "hangs"):
            assert (folder / min(stayed)).exists(), "one has taken over"
        if ended_by == "killed twice":
            signal_worker(supervised.mount, signal.SIGKILL)
        reader.check(reader.begin_rest()(), stayed, now)
        assert sorted(os.listdir(folder)) == sorted(now)
    finally:
        reader.close()


def test_who_reads_while_a_worker_ends_reads_each_name_once(
    supervised: World, second: MountProcess
) -> None:
    """The question for the next entries is with the worker when it is killed: its successor gets
    it again."""
    folder = supervised.path / "folder"
    names = fill(folder)
    reader = Reader(folder)
    try:
        signal_worker(supervised.mount, signal.SIGSTOP)
        end_rest = reader.begin_rest()
        wait_asked(supervised.mount)
        signal_worker(supervised.mount, signal.SIGKILL)
        stayed, now = change(second.path / "folder", names)
        reader.check(end_rest(), stayed, now)
    finally:
        reader.close()


def test_a_directory_that_went_while_there_was_no_worker_has_an_end(
    supervised: World, second: MountProcess
) -> None:
    """Whoever reads it on comes to its end, as on a local disk, and finds nothing in it."""
    folder = supervised.path / "folder"
    names = fill(folder)
    directory = Directory(folder)
    try:
        read = directory.read(READ_BEFORE)
        signal_worker(supervised.mount, signal.SIGKILL)
        for name in names:
            (second.path / "folder" / name).unlink()
        (second.path / "folder").rmdir()
        read += directory.read()
        assert len(read) == len(set(read))
        directory.rewind()
        assert directory.read() == []
        assert not folder.exists()
    finally:
        directory.close()


# --- an answer to READDIRPLUS that is taken in late -----------------------------------------------


def shown(folder: int) -> dict[str, tuple[int, ...]]:
    """What stat(2) says of each name that a change below is about.

    folder  it is open: no look at its own name may end what the kernel knows below it.
    """
    found = {}
    for name in ("stays", "removed", "renamed", "renamed to", "replaced", "changed", "made"):
        try:
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        found[name] = (st.st_ino, st.st_mode, st.st_nlink, st.st_size, st.st_mtime_ns)
    return found


@pytest.fixture
def stalled(supervised: World, second: MountProcess, tmp_path: Path) -> Iterator[
    tuple[Path, Path, Callable[[], None]]
]:  # fmt: skip
    """A folder on two mounts, and a program that reads it on the first one: the answer is out of
    the daemon's hands, and the kernel can't take it in, since the memory to read into is not there.
    What to call that it does, which returns when it has."""
    here, there = supervised.path / "folder", second.path / "folder"
    there.mkdir()
    for name in ("stays", "removed", "renamed", "replaced", "changed"):
        (there / name).write_bytes(b"old")
    # Of what only one mount knows, and of what changes meanwhile, nobody keeps anything.
    assert pydi("ls", "/folder", "--data-dir", supervised.node.data_dir).returncode == 0
    elsewhere = supervised.path / "elsewhere"
    elsewhere.touch()
    # From then on what is shown is kept: the short time-outs of before would hide what is wrong.
    wait_until(lambda: not requests(supervised, elsewhere.lstat), "it is kept", DEADLINE_S)
    memory = MemoryMount(tmp_path / "memory")
    assert memory.greeting == "mounted", memory.log.read_text()
    memory.tell("replace", "content", "x" * BUFFER_BYTES)
    program = None
    try:
        memory.tell("block_reads")
        memory.tell("calls")
        program = subprocess.Popen(
            [sys.executable, "-c", READS_INTO, here, memory.path / "content"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        output = program.stdout
        assert output is not None
        assert output.readline() == "reads\n"
        wait_until(lambda: "read" in memory.tell("calls"), "the answer has come", DEADLINE_S)

        def go_on() -> None:
            memory.tell("release_reads")
            assert int(output.readline()) > 0

        yield here, there, go_on
    finally:
        if program is not None:
            program.kill()
        memory.close()
        if program is not None:
            program.communicate()


def change_names(folder: Path) -> None:
    (folder / "removed").unlink()
    (folder / "renamed").rename(folder / "renamed to")
    (folder / "new").write_bytes(b"newer")
    (folder / "new").rename(folder / "replaced")
    (folder / "made").mkdir()


def change_attributes(folder: Path) -> None:
    (folder / "changed").chmod(0o600)
    os.truncate(folder / "changed", 1)


@pytest.mark.parametrize("changes", [change_names, change_attributes], ids=["names", "attributes"])
@pytest.mark.parametrize("stalled_s", [0.0, STALLED_S], ids=["short", "long"])
def test_a_late_answer_is_not_kept(
    stalled: tuple[Path, Path, Callable[[], None]],
    stalled_s: float,
    changes: Callable[[Path], None],
) -> None:
    """Entries go, come and change on another mount, which does not wait for the reader. What it
    takes in then is of before, and is not believed: neither soon, nor when the kernel is not told
    anything again."""
    here, there, go_on = stalled
    began_s = time.monotonic()
    open_here, open_there = (os.open(folder, os.O_RDONLY) for folder in (here, there))
    changes(there)
    assert time.monotonic() - began_s < DEADLINE_S / 3
    end_s = time.monotonic() + stalled_s
    wait_until(lambda: time.monotonic() >= end_s, "a while", DEADLINE_S)
    go_on()
    try:
        wait_until(lambda: shown(open_here) == shown(open_there), "one state", DEADLINE_S)
        assert sorted(os.listdir(open_here)) == sorted(os.listdir(open_there))
        assert shown(open_here) == shown(open_there)
    finally:
        os.close(open_here)
        os.close(open_there)
