"""The few file-system calls that durable data goes through, as a seam for fault injection.

The blob store and the log's disk call nothing but this; tests put a simulated disk behind it, which
forgets at a crash what was not synced. Every call may raise OSError, with the errno of its system
call. Paths are absolute. It must never buffer, retry or hide an error: a failed sync means that the
data may be gone, and a second sync that succeeds proves nothing (fsync(2), "Error reporting").
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, cast

Data = bytes | bytearray | memoryview

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2), which Python has no name for; None where there is none (not Linux)."""
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast(Callable[[int, int, int, int], int], found)


_sync_file_range = _find_sync_file_range()


class DirectoryEntry(NamedTuple):
    """One name in a directory."""

    name: str
    size: int  # bytes; 0 for whatever is not a regular file
    is_directory: bool


class Space(NamedTuple):
    """Room on the file system, in bytes."""

    free: int  # for us, without what is set aside for root
    total: int


class Files(Protocol):
    """File-system calls; safe from several threads, as the kernel's are."""

    def create(self, path: Path) -> int:
        """Descriptor, for reading and writing, of a file that did not exist (FileExistsError)."""
        ...

    def open(self, path: Path, *, writable: bool = False) -> int:
        """Descriptor of an existing file; FileNotFoundError."""
        ...

    def close(self, fd: int) -> None: ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """At most ``length`` bytes at ``offset``; shorter only at the end of the file."""
        ...

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        """All of ``data`` at ``offset``; after an error any part of it may be in the file."""
        ...

    def truncate(self, fd: int, size: int) -> None: ...

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Blocks for the range, zeros where it is past the end; the file grows to cover it."""
        ...

    def size(self, fd: int) -> int: ...

    def set_mode(self, fd: int, mode: int) -> None: ...

    def fdatasync(self, fd: int) -> None:
        """Content and size are on disk when it returns. Never call it again after an error."""
        ...

    def begin_writeback(self, fd: int, offset: int, length: int) -> None:
        """The range starts on its way to the disk, as far as the system allows; nothing is promised
        of it. A disk's error shows at ``fdatasync``, as if this had not been called."""
        ...

    def forget_cache(self, fd: int) -> None:
        """Synced content is read from the disk from now on, as far as the system allows.

        After a failed sync the system goes on showing content that never got to the disk.
        """
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Atomic, replaces ``target``; durable once the target's directory is synced."""
        ...

    def unlink(self, path: Path) -> None: ...

    def exists(self, path: Path) -> bool: ...

    def make_directory(self, path: Path) -> bool:
        """Whether it was made, False if it was there; durable once its parent is synced."""
        ...

    def sync_directory(self, path: Path) -> None:
        """All names made, changed and removed in it so far are on disk when it returns."""
        ...

    def sync_directories(self, paths: Sequence[Path]) -> None:
        """The same for each, at a time: a disk takes many requests as one."""
        ...

    def names(self, path: Path) -> list[str]:
        """Names in a directory, in no order."""
        ...

    def entries(self, path: Path) -> list[DirectoryEntry]:
        """Names in a directory with sizes, in no order; one stat(2) each."""
        ...

    def space(self, path: Path) -> Space: ...


SYNCS_AT_A_TIME = 32


class OsFiles:
    """The real thing: each method is its system call."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path, *, writable: bool = False) -> int:
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) == length or not data:
            return data
        # Linux cuts one read at 2 GiB - 4 KiB, and a signal may cut any: short is not yet the end.
        parts = [data]
        done = len(data)
        while done < length:
            data = os.pread(fd, length - done, offset + done)
            if not data:
                break
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        done = os.pwrite(fd, data, offset)
        if done == len(data):
            return
        view = memoryview(data)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        os.posix_fallocate(fd, offset, length)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def set_mode(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def begin_writeback(self, fd: int, offset: int, length: int) -> None:
        if _sync_file_range is not None:
            # What it returns says nothing of the disk: errors of writing stay for fdatasync.
            _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def forget_cache(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def make_directory(self, path: Path) -> bool:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return False
        return True

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_directories(self, paths: Sequence[Path]) -> None:
        with ThreadPoolExecutor(SYNCS_AT_A_TIME, "sync") as threads:
            for _ in threads.map(self.sync_directory, paths):
                pass

    def names(self, path: Path) -> list[str]:
        return os.listdir(path)

    def entries(self, path: Path) -> list[DirectoryEntry]:
        found = []
        with os.scandir(path) as scan:
            for entry in scan:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed between the listing and the stat
                size = status.st_size if stat.S_ISREG(status.st_mode) else 0
                found.append(DirectoryEntry(entry.name, size, stat.S_ISDIR(status.st_mode)))
        return found

    def space(self, path: Path) -> Space:
        status = os.statvfs(path)
        return Space(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def save(files: Files, path: Path, data: bytes) -> None:
    """``data`` is durably the whole content of ``path``, or after an error or crash it is not
    changed at all (restic's order: temporary file, sync, rename, sync of the directory).

    Leaves ``path`` + ".new" behind only when a crash interrupts it; the next save or the caller's
    recovery removes that.
    """
    temporary = path.with_name(path.name + ".new")
    if files.exists(temporary):
        files.unlink(temporary)
    fd = files.create(temporary)
    try:
        try:
            files.pwrite(fd, data, 0)
            files.fdatasync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
    except OSError:
        _unlink_quietly(files, temporary)
        raise
    files.sync_directory(path.parent)


def load(files: Files, path: Path, length_max: int) -> bytes | None:
    """The first ``length_max`` bytes of a small file; None when there is none."""
    try:
        fd = files.open(path)
    except FileNotFoundError:
        return None
    try:
        return files.pread(fd, length_max, 0)
    finally:
        files.close(fd)


def _unlink_quietly(files: Files, path: Path) -> None:
    try:
        files.unlink(path)
    except OSError:
        pass  # the error under way says more, and recovery removes temporary files
