"""The kernel binding on a real mount of the in-memory vfs: device, caches, interrupts, crashes.

What a folder must do at all is tested over both bindings and a real node elsewhere; here is what
only this binding does. The daemon is a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.mountpoints import mounted_at
from tests.harness.memory_vfs import BLOCK_BYTES
from tests.harness.mounts import why_unusable
from tests.harness.procs import ROOT, environment, wait_until

DEADLINE_S = 30.0

reason = why_unusable("kernel")
pytestmark = [pytest.mark.mount, pytest.mark.skipif(reason is not None, reason=str(reason))]


class MemoryMount:
    """A daemon of tests.harness.memory_daemon and its mount point."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.path = path
        try:
            self.path.mkdir()
        except FileExistsError:
            pass  # maybe a dead mount, which must not be looked into
        self.log = path.with_name(path.name + ".log")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.memory_daemon", str(path), *flags],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env=environment(),
            )  # fmt: skip
        self.greeting = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, name: str, *arguments: Any) -> Any:
        """Runs a command in the daemon; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self._line()
        assert line, self.log.read_text()
        return json.loads(line)

    def requests(self, action: Callable[[], object]) -> dict[str, int]:
        """What the daemon was asked for while ``action`` ran."""
        self.tell("calls")
        action()
        calls: dict[str, int] = self.tell("calls")
        return calls

    def wait_ended(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """Takes down whatever is left, also when a test failed half way."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not sent does not matter any more
                assert stream is not None
                stream.close()
        while mounted_at(os.fsencode(self.path)) is not None:
            subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=DEADLINE_S)


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[Callable[..., MemoryMount]]:
    made: list[MemoryMount] = []

    def make(*flags: str, name: str = "mnt") -> MemoryMount:
        mount = MemoryMount(tmp_path / name, *flags)
        made.append(mount)
        return mount

    yield make
    for mount in made:
        mount.close()


@pytest.fixture
def mount(make_mount: Callable[..., MemoryMount]) -> MemoryMount:
    mount = make_mount("allow_other")
    assert mount.greeting == "mounted", mount.log.read_text()
    return mount


@pytest.fixture
def folder(mount: MemoryMount) -> Path:
    return mount.path


# --- files ----------------------------------------------------------------------------------------


def test_what_is_written_is_read(folder: Path) -> None:
    """Content of several requests, after dropping the kernel's own copy of it."""
    content = os.urandom((5 << 20) + 77)
    file = folder / "file"
    file.write_bytes(content)
    assert file.stat().st_size == len(content)
    drop_pages(file)
    assert file.read_bytes() == content
    with open(file, "rb") as opened:
        opened.seek(3 << 20)
        assert opened.read(10) == content[3 << 20 : (3 << 20) + 10]


def drop_pages(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def test_appends_go_to_the_end_and_truncation_cuts(folder: Path) -> None:
    """O_APPEND, truncate(2), ftruncate(2), O_TRUNC."""
    file = folder / "file"
    file.write_bytes(b"0123456789")
    with open(file, "ab") as first, open(file, "ab") as second:
        first.write(b"A")
        first.flush()
        second.write(b"B")
    assert file.read_bytes() == b"0123456789AB"
    os.truncate(file, 3)
    assert file.read_bytes() == b"012"
    with open(file, "r+b") as opened:
        opened.truncate(6)
        assert os.fstat(opened.fileno()).st_size == 6
    assert file.read_bytes() == b"012\0\0\0"
    file.write_bytes(b"")
    assert file.stat().st_size == 0


def test_an_unlinked_file_lives_while_it_is_open(folder: Path) -> None:
    """unlink(2) of an open file, and a replacement by rename(2)."""
    file = folder / "file"
    with open(file, "w+b") as opened:
        opened.write(b"still here")
        opened.flush()
        file.unlink()
        assert os.fstat(opened.fileno()).st_nlink == 0
        opened.seek(0)
        assert opened.read() == b"still here"
    assert os.listdir(folder) == []


def test_o_tmpfile_gets_a_name_by_link(folder: Path) -> None:
    """O_TMPFILE and linkat(2) through /proc/self/fd."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"content")
    assert os.listdir(folder) == []
    # Only with a directory does Python use linkat(2), which can follow the link.
    root = os.open("/", os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", folder / "named", src_dir_fd=root, follow_symlinks=True)
    os.close(root)
    os.close(fd)
    assert (folder / "named").read_bytes() == b"content"


def test_memory_maps_read_and_write(folder: Path) -> None:
    """A shared mapping is written back by msync, also after close."""
    file = folder / "file"
    file.write_bytes(b"x" * 8192)
    fd = os.open(file, os.O_RDWR)
    mapped = mmap.mmap(fd, 8192)
    os.close(fd)
    mapped[4096:4101] = b"HELLO"
    mapped.flush()
    drop_pages(file)
    assert file.read_bytes()[4096:4101] == b"HELLO"
    mapped.close()


def test_sparse_files_keep_their_holes(folder: Path) -> None:
    """fallocate(2), punched holes, SEEK_DATA and SEEK_HOLE, blocks of stat(2)."""
    fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"data", 10 * BLOCK_BYTES)
        assert os.fstat(fd).st_blocks == BLOCK_BYTES // 512
        assert os.lseek(fd, 0, os.SEEK_DATA) == 10 * BLOCK_BYTES
        assert os.lseek(fd, 10 * BLOCK_BYTES, os.SEEK_HOLE) == os.fstat(fd).st_size
        os.posix_fallocate(fd, 0, 20 * BLOCK_BYTES)
        assert os.fstat(fd).st_size == 20 * BLOCK_BYTES
        subprocess.run(
            ["fallocate", "--punch-hole", "--offset", str(10 * BLOCK_BYTES), "--length",
             str(BLOCK_BYTES), str(folder / "file")],
            check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert os.pread(fd, 4, 10 * BLOCK_BYTES) == bytes(4)
        with pytest.raises(OSError) as raised:
            os.lseek(fd, 0, os.SEEK_DATA)
        assert raised.value.errno == errno.ENXIO
    finally:
        os.close(fd)


def test_copy_file_range_stays_in_the_daemon(mount: MemoryMount) -> None:
    """copy_file_range(2) of a large file is one request and no content through the kernel."""
    source, target = mount.path / "source", mount.path / "target"
    content = os.urandom(4 << 20)
    source.write_bytes(content)
    with open(source, "rb") as read, open(target, "wb") as write:
        calls = mount.requests(
            lambda: os.copy_file_range(read.fileno(), write.fileno(), len(content))
        )
    assert calls.get("copy_file_range") == 1
    # The fake itself copies by one read and one write.
    assert (calls.get("read"), calls.get("write")) == (1, 1)
    assert target.read_bytes() == content


# --- names ----------------------------------------------------------------------------------------


def test_a_directory_of_5000_is_listed_completely(folder: Path) -> None:
    """Each name once, plain and with stat(2), and from any position on."""
    names = {f"entry-{number:05d}" for number in range(5000)}
    for name in names:
        os.mknod(folder / name)
    assert set(os.listdir(folder)) == names
    with os.scandir(folder) as entries:
        assert {entry.name for entry in entries if entry.stat().st_size == 0} == names
    for name in sorted(names)[::2]:
        os.unlink(folder / name)
    assert len(os.listdir(folder)) == 2500


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


def test_telldir_positions_stay_valid_while_entries_go(folder: Path) -> None:
    """seekdir(3) to a position, after an unlink(2), goes on behind the same name."""
    for number in range(500):
        os.mknod(folder / f"{number:03d}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(_Dirent)
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(folder)))
    order: list[bytes] = []
    positions = []
    while entry := libc.readdir(stream):
        order.append(entry.contents.d_name)
        positions.append(libc.telldir(stream))
    assert len(order) == 502
    for index in (0, 1, 2, 250, 499):
        libc.seekdir(stream, ctypes.c_long(positions[index]))
        assert libc.readdir(stream).contents.d_name == order[index + 1]
    os.unlink(folder / os.fsdecode(order[100]))
    libc.seekdir(stream, ctypes.c_long(positions[100]))
    assert libc.readdir(stream).contents.d_name == order[101]
    libc.closedir(stream)


def test_links_renames_and_special_files(folder: Path) -> None:
    """Hard and symbolic links, rename(2) over a file and with flags, fifo and socket nodes."""
    (folder / "a").write_text("a")
    os.link(folder / "a", folder / "hard")
    assert (folder / "a").stat().st_nlink == 2
    os.symlink("x" * 3000, folder / "link")
    assert os.readlink(folder / "link") == "x" * 3000
    (folder / "b").write_text("b")
    os.rename(folder / "b", folder / "a")
    assert (folder / "a").read_text() == "b"
    assert (folder / "hard").read_text() == "a"
    os.mkfifo(folder / "fifo", 0o640)
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    (folder / "dir").mkdir()
    with pytest.raises(OSError) as raised:
        os.rename(folder / "dir", folder / "dir" / "below")
    assert raised.value.errno == errno.EINVAL
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(folder / "a"), os.fsencode(folder / "dir"))
    assert libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # RENAME_EXCHANGE
    assert (folder / "dir").read_text() == "b"
    assert libc.renameat2(-100, names[0], -100, names[1], 1) == -1  # RENAME_NOREPLACE
    assert ctypes.get_errno() == errno.EEXIST
    with pytest.raises(OSError) as raised:
        (folder / ("n" * 256)).touch()
    assert raised.value.errno == errno.ENAMETOOLONG


def test_attributes_and_xattrs(folder: Path) -> None:
    """chmod, utime with ns and before 1970, the umask, xattrs."""
    file = folder / "file"
    before = os.umask(0o027)
    try:
        file.touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o4751)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4751
    os.utime(file, ns=(-1, 1_700_000_000_123_456_789))
    assert file.stat().st_atime_ns == -1
    assert file.stat().st_mtime_ns == 1_700_000_000_123_456_789
    os.setxattr(file, "user.key", b"value")
    assert os.getxattr(file, "user.key") == b"value"
    assert os.listxattr(file) == ["user.key"]
    os.removexattr(file, "user.key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_write_by_another_user_takes_set_user_id_away(folder: Path) -> None:
    """The kernel leaves this to the daemon (FUSE_HANDLE_KILLPRIV_V2)."""
    file = folder / "file"
    file.touch()
    file.chmod(0o6777)
    assert as_nobody(folder, "open('file', 'ab').write(b'x')") == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o777
    file.chmod(0o6777)
    with open(file, "ab") as opened:
        opened.write(b"root may")
    assert stat.S_IMODE(file.stat().st_mode) == 0o6777
    os.chown(file, 1, 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_kernel_checks_permissions(folder: Path) -> None:
    """default_permissions: a stranger is refused without the daemon being asked."""
    (folder / "file").write_text("content")
    assert as_nobody(folder, "open('file').read()") == ""
    (folder / "file").chmod(0o600)
    assert "PermissionError" in as_nobody(folder, "open('file').read()")
    folder.chmod(0o755)
    assert "PermissionError" in as_nobody(folder, "open('new', 'w')")


def as_nobody(directory: Path, code: str) -> str:
    """What a Python program of another user, working in ``directory``, has to complain of."""
    done = subprocess.run(
        ["python3", "-c", f"import os; os.setgid(65534); os.setuid(65534); {code}"],
        check=False, capture_output=True, text=True, cwd=directory, timeout=DEADLINE_S,
    )  # fmt: skip
    return done.stderr


def test_a_file_handle_outlives_the_names(folder: Path) -> None:
    """name_to_handle_at(2): node ids are permanent, which is what NFS export needs."""
    file = folder / "file"
    file.write_text("content")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(8 + 128)
    handle[0:4] = (128).to_bytes(4, sys.byteorder)
    mount_id = ctypes.c_int()
    name = os.fsencode(file)
    assert libc.name_to_handle_at(-100, name, handle, ctypes.byref(mount_id), 0) == 0
    root = os.open(folder, os.O_RDONLY)
    try:
        fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
        if fd < 0 and ctypes.get_errno() == errno.EPERM:
            pytest.skip("open_by_handle_at needs CAP_DAC_READ_SEARCH")
        assert fd >= 0, os.strerror(ctypes.get_errno())
        assert os.read(fd, 100) == b"content"
        os.close(fd)
    finally:
        os.close(root)


# --- locks ----------------------------------------------------------------------------------------

HOLD_LOCK = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start_holder() -> Iterator[Callable[[Path, str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(file: Path, kind: str) -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, str(file), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(holder)
        return holder

    yield start
    for holder in started:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks_exclude_other_processes_until_they_end(
    folder: Path, start_holder: Callable[[Path, str], subprocess.Popen[bytes]], kind: str
) -> None:
    """flock(2) and fcntl(2) locks are the vfs's; a waiter gets the lock when the holder dies."""
    file = folder / "file"
    file.touch()
    holder = start_holder(file, kind)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    lock = getattr(fcntl, kind)
    with open(file, "r+b") as opened:
        with pytest.raises(BlockingIOError):
            lock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiter = start_holder(file, kind)
        holder.kill()
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError):
            lock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_waiting_reader_can_be_stopped(mount: MemoryMount, number: signal.Signals) -> None:
    """A program that waits for content that does not come ends by Ctrl-C and by SIGKILL."""
    file = mount.path / "file"
    file.write_bytes(b"x" * 100)
    drop_pages(file)
    mount.tell("block_reads")
    reader = subprocess.Popen(["cat", str(file)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: mount.tell("calls").get("read", 0) > 0, "the read arrives", DEADLINE_S)
        assert reader.poll() is None
        reader.send_signal(number)
        assert reader.wait(DEADLINE_S) == -number
        mount.tell("release_reads")
        assert file.read_bytes() == b"x" * 100
    finally:
        reader.kill()
        reader.wait(DEADLINE_S)


def test_a_waiting_locker_can_be_stopped(
    mount: MemoryMount, start_holder: Callable[[Path, str], subprocess.Popen[bytes]]
) -> None:
    """Ctrl-C ends a wait for a lock, and the lock is not taken later by nobody."""
    file = mount.path / "file"
    file.touch()
    holder = start_holder(file, "lockf")
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    mount.tell("calls")
    waiter = start_holder(file, "lockf")
    wait_until(lambda: mount.tell("calls").get("setlk", 0) > 0, "the wait begins", DEADLINE_S)
    waiter.send_signal(signal.SIGINT)
    assert waiter.wait(DEADLINE_S) != 0
    holder.kill()
    holder.wait(DEADLINE_S)
    with open(file, "r+b") as opened:
        # The holder's last close reaches the daemon in its own time.
        fcntl.lockf(opened, fcntl.LOCK_EX)


# --- what the kernel keeps ------------------------------------------------------------------------


def test_a_second_read_asks_the_daemon_for_nothing_but_open(mount: MemoryMount) -> None:
    """Pages of the opened version stay; the close of a reader sends no FLUSH."""
    file = mount.path / "file"
    file.write_bytes(b"content")

    def read() -> None:
        fd = os.open(file, os.O_RDONLY)
        assert os.read(fd, 100) == b"content"
        os.close(fd)

    read()
    calls = mount.requests(read)
    assert (calls.get("unpark"), calls.get("open_nowait")) == (1, None)  # the same handle again
    assert "read" not in calls
    assert "flush" not in calls


def test_warm_names_and_absences_ask_the_daemon_for_nothing(mount: MemoryMount) -> None:
    """Within the time-out stat(2) of what is there and of what is not costs no request."""
    (mount.path / "file").touch()
    os.stat(mount.path / "file")
    assert not os.path.exists(mount.path / "absent")

    def look() -> None:
        os.stat(mount.path / "file")
        os.path.exists(mount.path / "absent")

    assert sum(mount.requests(look).values()) == 1  # the command itself


def test_a_warm_tree_is_looked_at_without_the_daemon(mount: MemoryMount) -> None:
    """What `git status` does to a work tree, lstat of every name and of files that are not there,
    costs no request the second time. The first time costs one for each directory: its listing has
    touched the access time that lstat asks for."""
    for number in range(6):
        (mount.path / f"d{number}/sub").mkdir(parents=True)
        for name in ("a", "b", "sub/c"):
            (mount.path / f"d{number}/{name}").touch()
    found = [entry for entry in mount.path.rglob("*") if os.lstat(entry)]
    assert len(found) == 6 * 5
    absent = [entry.parent / ".gitignore" for entry in found]
    assert not any(map(os.path.lexists, absent))

    def look() -> None:
        assert all(map(os.path.lexists, found))
        assert not any(map(os.path.lexists, absent))

    look()
    assert mount.requests(look) == {"calls": 1}


def test_a_change_elsewhere_reaches_an_open_file(mount: MemoryMount) -> None:
    """Pages and size of an open file follow a push, at once and not after the time-out."""
    file = mount.path / "file"
    file.write_bytes(b"old")
    with open(file, "rb") as opened:
        assert opened.read() == b"old"
        mount.tell("change", "file", "new and longer")
        wait_until(
            lambda: os.pread(opened.fileno(), 100, 0) == b"new and longer", "new content", 0.9
        )
    assert file.read_bytes() == b"new and longer"


def test_names_change_elsewhere(mount: MemoryMount) -> None:
    """A new, a replaced and a removed name show at once, although the kernel remembers others."""
    path = mount.path / "file"
    assert not path.exists()
    mount.tell("replace", "file", "one")
    wait_until(path.exists, "the new name", 0.9)
    assert path.read_text() == "one"
    mount.tell("replace", "file", "two")
    wait_until(lambda: path.read_text() == "two", "the replacement", 0.9)
    assert os.listdir(mount.path) == ["file"]
    mount.tell("remove", "file")
    wait_until(lambda: not path.exists(), "the removal", 0.9)
    assert os.listdir(mount.path) == []


def test_every_open_after_a_change_reads_all_of_it(mount: MemoryMount) -> None:
    """Close-to-open, many times in a row: neither old content nor the old size."""
    file = mount.path / "file"
    file.write_bytes(b"v0")
    for number in range(50):
        content = f"version {number} " + "x" * number
        mount.tell("change", "file", content)
        assert file.read_text() == content


# --- mount and unmount ----------------------------------------------------------------------------


def test_the_mount_table_tells_what_it_is(mount: MemoryMount) -> None:
    """Type fuse.pydi, the name given, no device nodes and no set-user-id; read-ahead raised."""
    mounted = mounted_at(os.fsencode(mount.path))
    assert mounted is not None
    assert (mounted.fstype, mounted.source) == ("fuse.pydi", "memory")
    line = next(
        line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line
    )
    for word in ("nosuid", "nodev", "allow_other", "default_permissions", "max_read=1048576"):
        assert word in line
    device = f"{os.major(mounted.device)}:{os.minor(mounted.device)}"
    read_ahead = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    if os.access(read_ahead, os.W_OK):
        assert read_ahead.read_text() == "1024\n"


def test_umount_ends_the_daemon(mount: MemoryMount) -> None:
    """umount(8) by a person: the daemon ends by itself with 0 and leaves nothing."""
    (mount.path / "file").write_text("x")
    subprocess.run(["umount", str(mount.path)], check=True, timeout=DEADLINE_S)
    assert mount.wait_ended() == 0
    assert mounted_at(os.fsencode(mount.path)) is None


def test_unmount_by_the_daemon_releases_everything(mount: MemoryMount) -> None:
    """The binding's own unmount of an idle mount: clean, and no handle is left."""
    (mount.path / "file").write_text("x")
    os.listdir(mount.path)
    assert mount.tell("unmount") == 0
    assert mounted_at(os.fsencode(mount.path)) is None
    assert mount.wait_ended() == 0


def test_unmount_in_use_cuts_programs_off_and_ends(mount: MemoryMount) -> None:
    """An open file does not keep the daemon: the mount goes lazily, then the connection."""
    fd = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"x")
        mount.tell("unmount")
        assert mounted_at(os.fsencode(mount.path)) is None
        with pytest.raises(OSError) as raised:
            os.fstat(fd)
        assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        with contextlib.suppress(OSError):  # nobody is left to flush to
            os.close(fd)
    assert mount.wait_ended() == 0


def test_a_dead_mount_is_replaced(make_mount: Callable[..., MemoryMount]) -> None:
    """SIGKILL leaves ENOTCONN behind; the next mount on the same point works."""
    first = make_mount()
    first.process.kill()
    first.wait_ended()
    with pytest.raises(OSError) as raised:
        os.stat(first.path)
    assert raised.value.errno == errno.ENOTCONN
    second = MemoryMount(first.path)
    try:
        assert second.greeting == "mounted"
        (second.path / "file").write_text("works")
        assert (second.path / "file").read_text() == "works"
    finally:
        second.close()


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: path.rmdir(), "does not exist"),
        (lambda path: (path.rmdir(), path.touch()), "not a directory"),
    ],
)
def test_a_mount_point_that_can_not_be_used_is_one_sentence(
    tmp_path: Path, prepare: Callable[[Path], object], sentence: str
) -> None:
    """No traceback, no mount; the reason names the path."""
    path = tmp_path / "mnt"
    path.mkdir()
    prepare(path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.harness.memory_daemon", str(path)],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
        timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.startswith("error: ")
    assert str(path) in done.stdout
    assert sentence in done.stdout
    assert "Traceback" not in done.stderr


def test_a_living_mount_is_not_mounted_over(
    mount: MemoryMount, make_mount: Callable[..., MemoryMount]
) -> None:
    """The second daemon is refused with a sentence, and the first goes on."""
    second = make_mount()
    assert second.greeting.startswith("error: ")
    assert "already" in second.greeting
    (mount.path / "file").touch()


def test_read_only_is_refused_by_the_kernel(make_mount: Callable[..., MemoryMount]) -> None:
    """EROFS without a request."""
    mount = make_mount("read_only")
    with pytest.raises(OSError) as raised:
        (mount.path / "file").touch()
    assert raised.value.errno == errno.EROFS


# --- unprivileged ---------------------------------------------------------------------------------

# In a mount namespace of its own, so that nothing of it is seen or left outside. /dev/fuse there
# is a node that everyone may open, as it is on machines where people mount.
PREPARE = """
set -e
mount -t tmpfs none "$1"
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
mkdir "$1/mnt"
chown 65534:65534 "$1/mnt"
exec setpriv $5 "$2" -c "$3" "$1/mnt" "$4"
"""
# A plain user in all but one thing: the interpreter may live below root's own directory.
AS_PLAIN_USER = (
    "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
AS_NOBODY = """
import os, subprocess, sys, time
mnt, how = sys.argv[1:]
daemon = subprocess.Popen(
    [sys.executable, "-m", "tests.harness.memory_daemon", mnt],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
def line():
    return daemon.stdout.readline().strip()
greeting = line()
assert greeting == "mounted", greeting
path = os.path.join(mnt, "file")
open(path, "w").write("content")
assert open(path).read() == "content"
assert os.stat(path).st_uid == 65534
row = next(row for row in open("/proc/mounts") if mnt in row)
assert row.startswith("memory ") and "fuse.pydi" in row and "user_id=65534" in row, row
assert not os.path.exists(mnt + "/elsewhere")
print('["replace", "elsewhere", "pushed"]', file=daemon.stdin, flush=True)
assert line() == "null"
end = time.monotonic() + 0.9
while not os.path.exists(mnt + "/elsewhere"):
    assert time.monotonic() < end, "the push did not arrive"
assert open(mnt + "/elsewhere").read() == "pushed"
if how == "umount":
    subprocess.run(["fusermount3", "-u", mnt], check=True)
elif how == "unmount":
    print('["unmount"]', file=daemon.stdin, flush=True)
else:
    daemon.kill()
    daemon.wait()
    daemon = subprocess.Popen(daemon.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    greeting = line()
    assert greeting == "mounted", greeting
    daemon.stdin.close()
assert daemon.wait(30) == 0
assert mnt not in open("/proc/mounts").read()
print("fine")
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, which tmp_path is not."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    path.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can prepare the namespace")
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="fusermount3 is not installed")
@pytest.mark.parametrize("how", ["umount", "unmount", "kill"])
def test_a_plain_user_mounts_through_fusermount3(open_directory: Path, how: str) -> None:
    """The helper mounts and hands over the device; pushes, unmounting and the replacement of a
    dead mount work the same way."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", PREPARE, "sh", str(open_directory), sys.executable,
         AS_NOBODY, how, " ".join(AS_PLAIN_USER)],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
        timeout=2 * DEADLINE_S,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr and "daemon" not in done.stderr:
        pytest.skip(f"no mount namespace can be made: {done.stderr.strip()}")
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_plain_user_is_told_why_the_helper_refuses(tmp_path: Path) -> None:
    """What fusermount3 says reaches the person, in one sentence."""
    code = (
        "import asyncio\n"
        "from pydi_fs.fuse import device\n"
        "from pydi_fs.mount_options import MountOptions\n"
        "from pydi_node.errors import UserError\n"
        "try: asyncio.run(device.mount('/usr', MountOptions()))\n"
        "except UserError as exc: print(exc)\n"
    )
    done = subprocess.run(
        ["setpriv", *AS_PLAIN_USER, sys.executable, "-c", code],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
        timeout=DEADLINE_S,
    )  # fmt: skip
    assert "fusermount" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
