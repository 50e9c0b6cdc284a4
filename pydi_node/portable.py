"""What operating systems do differently, under one name each.

Used by whatever runs on a machine without a node, which may be Linux, macOS or Windows: `pydi` with
its shell and its copies, and the parts of a node that it shares. Everything here works where Python
lacks fcntl, grp, pwd, pread and the flags, clocks and sockets of Unix. A caller never asks which
system it is on; where a promise is weaker somewhere, its function says so.

Imports nothing of PyDi.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

fcntl: Any
grp: Any
pwd: Any
try:
    import fcntl
    import grp
    import pwd
except ImportError:  # Windows
    fcntl = grp = pwd = None

IS_WINDOWS: Final = os.name == "nt"

# --- files ----------------------------------------------------------------------------------------


def _flags(*names: str) -> int:
    total = 0
    for name in names:
        total |= getattr(os, name, 0)
    return total


# For every os.open: the bytes as they are, and no heirs among the programs that are started.
O_PLAIN: Final = _flags("O_BINARY", "O_NOINHERIT", "O_CLOEXEC")
# Where it is missing a link is followed: whoever depends on it looks at the file afterwards.
O_NOFOLLOW: Final = _flags("O_NOFOLLOW")
# lseek(2), in Linux's numbers where the system has none.
SEEK_DATA: Final[int] = getattr(os, "SEEK_DATA", 3)
SEEK_HOLE: Final[int] = getattr(os, "SEEK_HOLE", 4)
# Kinds of locks of fcntl(2), in Linux's numbers where the system has none.
F_RDLCK: Final[int] = getattr(fcntl, "F_RDLCK", 0)
F_WRLCK: Final[int] = getattr(fcntl, "F_WRLCK", 1)
F_UNLCK: Final[int] = getattr(fcntl, "F_UNLCK", 2)
# NTFS keeps times in units of 100 ns; two times of one unit are the same time there.
TIME_STEP_NS: Final = 100 if IS_WINDOWS else 1
HAS_MODES: Final = not IS_WINDOWS  # else a file is read-only or not, and that is all
HAS_UNIX_SOCKETS: Final = hasattr(socket, "AF_UNIX") and not IS_WINDOWS
# A file without a name can be given one: linkat(2) of /proc/self/fd.
HAS_LINKABLE_FILES: Final = hasattr(os, "O_TMPFILE")

# A position belongs to the descriptor, which a thread that hashes may share with the loop.
_position = threading.Lock()


def pread(fd: int, length: int, offset: int) -> bytes:
    """Some bytes from ``offset`` on, at most ``length``; none at the end."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """All of ``data`` at ``offset``."""
    if hasattr(os, "pwrite"):
        written = os.pwrite(fd, data, offset)
        if written == len(data):  # as ever, but for a full disk
            return
        data, offset = memoryview(data)[written:], offset + written
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            written = os.pwrite(fd, view, offset)
        else:
            with _position:
                os.lseek(fd, offset, os.SEEK_SET)
                written = os.write(fd, view)
        view = view[written:]
        offset += written


def sync_data(fd: int) -> None:
    """fdatasync(2), or the nearest there is."""
    getattr(os, "fdatasync", os.fsync)(fd)


def nameless_file(directory: str | Path) -> int:
    """A file for reading and writing that vanishes with its descriptor, also in a crash."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(directory, os.O_RDWR | os.O_TMPFILE | O_PLAIN, 0o600)
        except OSError:
            pass  # not on this file system
    if hasattr(os, "O_TEMPORARY"):  # Windows, which removes no open file by its name
        name = os.path.join(directory, f"pydi-{os.urandom(12).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY | O_PLAIN
        return os.open(name, flags, 0o600)
    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)
    return fd


def lock_whole(fd: int) -> None:
    """Waits until this open file is the only locked one; until it is closed. Nothing on Windows."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX)


def replace(source: bytes, target: bytes) -> None:
    """os.replace that also replaces what is read-only. PermissionError where the target is open in
    another program and the system does not do that."""
    try:
        os.replace(source, target)
    except PermissionError:
        if HAS_MODES or not _is_read_only(target):
            raise
        os.chmod(target, stat.S_IWRITE)
        os.replace(source, target)


def remove(path: bytes) -> None:
    """os.unlink that also removes what is read-only."""
    try:
        os.unlink(path)
    except PermissionError:
        if HAS_MODES or not _is_read_only(path):
            raise
        os.chmod(path, stat.S_IWRITE)
        os.unlink(path)


def _is_read_only(path: bytes) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and not mode & stat.S_IWRITE


def remove_tree(path: bytes) -> None:
    """shutil.rmtree that also removes what is read-only."""

    def again(function: Callable[[Any], Any], failed: Any, info: Any) -> None:
        if HAS_MODES or not isinstance(info[1], PermissionError):
            raise info[1]
        os.chmod(failed, stat.S_IWRITE)
        function(failed)

    shutil.rmtree(path, onerror=again)


def set_times(path: bytes, atime_ns: int, mtime_ns: int) -> None:
    """Of the file itself, also if it is a link; a link keeps its own where they can't be set."""
    if os.utime in os.supports_follow_symlinks:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    elif not os.path.islink(path):
        os.utime(path, ns=(atime_ns, mtime_ns))


def set_like(fd: int, mode: int, atime_ns: int, mtime_ns: int) -> None:
    """Permissions and times of an open file. Nothing on Windows: see `set_like_closed`."""
    if os.utime in os.supports_fd and not IS_WINDOWS:
        os.fchmod(fd, mode)
        os.utime(fd, ns=(atime_ns, mtime_ns))


def set_like_closed(path: bytes, mode: int, atime_ns: int, mtime_ns: int) -> None:
    """The same once it is closed, where an open file can't be given them. Elsewhere nothing: a path
    may have become a link to somewhere else."""
    if os.utime not in os.supports_fd or IS_WINDOWS:
        os.utime(path, ns=(atime_ns, mtime_ns))
        os.chmod(path, mode)


def mode_of(status: os.stat_result) -> int:
    """Permissions of a local file; where it has none, those of a file that its owner may change and
    others may read."""
    if HAS_MODES:
        return stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return 0o755
    return 0o644 if status.st_mode & stat.S_IWRITE else 0o444


def read_link(path: bytes) -> bytes:
    """Where a local link leads, as the tree spells it: with slashes."""
    target = os.readlink(path)
    return target.removeprefix(b"\\\\?\\").replace(b"\\", b"/") if IS_WINDOWS else target


# --- names ----------------------------------------------------------------------------------------

_FORBIDDEN = frozenset(b'<>:"/\\|?*') | frozenset(range(32))
_DEVICES = {b"CON", b"PRN", b"AUX", b"NUL", b"CONIN$", b"CONOUT$"} | {
    b"%s%d" % (port, number) for port in (b"COM", b"LPT") for number in range(10)
}


def name_refusal(name: bytes, is_windows: bool = IS_WINDOWS) -> str | None:
    """Why no local file can have this name of the tree, for a person; None if it can.

    On Windows such a name means something else: a backslash leads into another directory, a colon
    into a hidden stream of another file, NUL to a device. Source: Naming Files, Paths, and
    Namespaces (Microsoft).
    """
    if not is_windows:
        return None
    try:
        name.decode()
    except UnicodeDecodeError:
        return "its name is no UTF-8, which Windows can't store"
    for byte in name:
        if byte in _FORBIDDEN:
            what = chr(byte) if byte >= 32 else f"character {byte}"
            return f"Windows allows no {what} in a name"
    if name.endswith((b".", b" ")):
        return "Windows drops a dot or blank at the end of a name"
    if name.partition(b".")[0].rstrip(b" ").upper() in _DEVICES:
        return "the name means a device on Windows"
    return None


def folds_names(directory: bytes) -> bool:
    """Does this local directory take names for one that differ in case only, or in how an accent is
    composed? Found out with a file of its own, which is gone again."""
    fd, name = tempfile.mkstemp(prefix=b".pydi-case-", dir=directory)
    os.close(fd)
    try:
        return os.path.lexists(os.path.join(directory, os.path.basename(name).upper()))
    finally:
        os.unlink(name)


def text_of(name: bytes) -> str:
    """os.fsdecode that takes any bytes on every system."""
    return name.decode("utf-8", "surrogateescape") if IS_WINDOWS else os.fsdecode(name)


def bytes_of(text: str | bytes | os.PathLike[str]) -> bytes:
    """The other way round."""
    if IS_WINDOWS and isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    return os.fsencode(text)


# --- people ---------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """Who runs this process, in the numbers of the tree."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def identity() -> Identity:
    """Windows has no such numbers: whoever has a token acts as the tree's root there, as on any
    machine that is their own. A mount token says what they may do."""
    if not hasattr(os, "geteuid"):
        return Identity(0, 0, ())
    return Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def user_name(uid: int) -> str:
    """Of a user of this machine; the number where it has no name here."""
    try:
        return str(uid if pwd is None else pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Of a group of this machine; the number where it has no name here."""
    try:
        return str(gid if grp is None else grp.getgrgid(gid).gr_name)
    except KeyError:
        return str(gid)


def device_numbers(rdev: int) -> tuple[int, int]:
    """(major, minor) of a device file of the tree, which keeps Linux's encoding."""
    major = rdev >> 8 & 0xFFF | rdev >> 32 & 0xFFFFF000
    return major, rdev & 0xFF | rdev >> 12 & 0xFFFFFF00


# --- where things are kept ------------------------------------------------------------------------


def data_dir(environ: Mapping[str, str], uid: int, system: str = sys.platform) -> Path:
    """Of a node: /var/lib/pydi for root, else the user's own place for data."""
    if uid == 0 and system != "win32":
        return Path("/var/lib/pydi")
    return _user_dir(environ, "XDG_DATA_HOME", ".local/share", "Application Support", system)


def cache_dir(environ: Mapping[str, str], uid: int, system: str = sys.platform) -> Path:
    """Of mounts: /var/cache/pydi for root, else the user's own place for what can be had again."""
    if uid == 0 and system != "win32":
        return Path("/var/cache/pydi")
    place = _user_dir(environ, "XDG_CACHE_HOME", ".cache", "Caches", system)
    return place / "cache" if system == "win32" else place


def state_dir(environ: Mapping[str, str], system: str = sys.platform) -> Path:
    """Of the shell's history: the user's own place for what programs remember."""
    return _user_dir(environ, "XDG_STATE_HOME", ".local/state", "Application Support", system)


def _user_dir(
    environ: Mapping[str, str], variable: str, beside_home: str, library: str, system: str
) -> Path:
    """Sources: XDG Base Directory Specification; File System Programming Guide (Apple);
    KNOWNFOLDERID (Microsoft)."""
    if system == "win32":
        home = Path(environ.get("USERPROFILE") or "C:/")
        return Path(environ.get("LOCALAPPDATA") or home / "AppData/Local") / "pydi"
    home = Path(environ.get("HOME") or "/")
    if environ.get(variable):
        return Path(environ[variable]) / "pydi"
    return home / (f"Library/{library}" if system == "darwin" else beside_home) / "pydi"


# --- sockets --------------------------------------------------------------------------------------

_SIOCOUTQ: Final = 0x5411  # Linux's number, of ioctl(2)


def unacknowledged(sock: Any) -> int:
    """Bytes of a TCP connection that the other machine has not confirmed; 0 where nobody knows."""
    if fcntl is None or sys.platform != "linux":
        return 0
    left = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    return int.from_bytes(left, sys.byteorder)


# --- memory ---------------------------------------------------------------------------------------

# Above it a piece of memory is a mapping of its own, given back when it is freed: nothing that
# moves through a daemon again and again (a frame of 4 MiB is the most).
_MAPPED_FROM_BYTES = 8 << 20
_KEPT_BYTES = 16 << 20  # that may lie free at the end of the heap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """A daemon's freed memory serves what comes next, where the allocator can be told that (glibc).

    By itself it gives a mebibyte back as soon as it is freed, and each page of the next one is a
    fault: 0.6 ms of processor time for a mebibyte, where copying it takes 0.03.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


# --- time and signals -----------------------------------------------------------------------------


_UPTIME_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def uptime_s() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps where there is
    such a clock."""
    return time.monotonic() if _UPTIME_CLOCK is None else time.clock_gettime(_UPTIME_CLOCK)


def on_signal(loop: asyncio.AbstractEventLoop, name: str, callback: Callable[[], object]) -> None:
    """Calls back in the loop at each signal of that name, where the system has it; the loop may be
    one that knows no signals (Windows)."""
    number = getattr(signal, name, None)
    if number is None:
        return
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))
