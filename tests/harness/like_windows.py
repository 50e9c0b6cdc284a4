"""Makes the Python process that imports it as poor as one on Windows.

Imported before anything of PyDi, by a process of its own. Modules and names of ``os``, ``socket``,
``signal`` and ``time`` that Python does not have there are taken away, the loop refuses what the
Proactor loop refuses, and file calls refuse what NTFS refuses: to rename or remove what is open,
and to open a file without saying that its bytes are bytes. What stays Linux is the file system
itself, so names with colons could be made here: that PyDi does not is what tests see.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

# The standard library's own use of what goes away below: these stay as they were loaded.
LOADED_BEFORE = (asyncio, logging, shutil, ssl, subprocess, tempfile, threading)

MODULES = (
    "fcntl", "grp", "pwd", "posix", "pty", "readline", "resource", "spwd", "syslog", "termios",
    "tty", "uvloop", "curses", "crypt", "nis",
)  # fmt: skip
OS_NAMES = (
    "chown", "chroot", "confstr", "copy_file_range", "ctermid", "eventfd", "fchdir", "fchmod",
    "fchown", "fdatasync", "fork", "forkpty", "fpathconf", "fstatvfs", "getegid", "geteuid",
    "getgid", "getgrouplist", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority",
    "getresuid", "getsid", "getuid", "getxattr", "killpg", "lchown", "listxattr", "lockf", "major",
    "makedev", "memfd_create", "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf",
    "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite",
    "pwritev", "readv", "removexattr", "sendfile", "setsid", "setuid", "setxattr", "splice",
    "statvfs", "sync", "sysconf", "tcgetpgrp", "tcsetpgrp", "ttyname", "uname", "wait3", "wait4",
    "writev", "O_ASYNC", "O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_DSYNC", "O_NOATIME", "O_NOCTTY",
    "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "O_SYNC", "O_TMPFILE", "RWF_NOWAIT", "SEEK_DATA",
    "SEEK_HOLE",
)  # fmt: skip
SOCKET_NAMES = (
    "AF_UNIX", "AF_NETLINK", "CMSG_SPACE", "CMSG_LEN", "MSG_CMSG_CLOEXEC", "MSG_NOSIGNAL",
    "SCM_RIGHTS", "SCM_CREDENTIALS", "SOCK_SEQPACKET", "SOCK_CLOEXEC", "SOCK_NONBLOCK",
    "SO_REUSEPORT", "SO_PEERCRED", "SO_BINDTODEVICE",
)  # fmt: skip
SIGNAL_NAMES = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGPIPE", "SIGWINCH", "SIGCHLD",
                "pthread_sigmask", "sigwait", "setitimer")  # fmt: skip
TIME_NAMES = ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "CLOCK_REALTIME", "clock_gettime")

O_BINARY, O_NOINHERIT, O_TEMPORARY = 1 << 28, 1 << 29, 1 << 27  # bits that Linux does not use


class _Missing(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in MODULES:
            raise ImportError(f"No module named {name!r}", name=name)
        return None


def _take_away(module: ModuleType, names: Sequence[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _is_open(path: str | bytes) -> bool:
    """Does this process have the file open?"""
    try:
        wanted = os.lstat(path)
    except OSError:
        return False
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(fd)), wanted):
                return True
        except OSError:
            continue
    return False


def _refusing_open_files(call: Callable[..., Any], paths: int) -> Callable[..., Any]:
    def checked(*arguments: Any, **options: Any) -> Any:
        for path in arguments[:paths]:
            if _is_open(path):
                raise PermissionError(13, "The process cannot access the file", path)
        # NTFS replaces and removes nothing that is read-only.
        last = arguments[paths - 1]
        if os.path.isfile(last) and not os.lstat(last).st_mode & stat.S_IWRITE:
            raise PermissionError(5, "Access is denied", last)
        return call(*arguments, **options)

    return checked


def _never(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError


def _open(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
    assert flags & O_BINARY, f"{path!r} was opened as text: CR and LF would be changed"
    fd: int = _real_open(path, flags & ~(O_BINARY | O_NOINHERIT | O_TEMPORARY), mode, **options)
    if flags & O_TEMPORARY:
        _real_unlink(path)
    return fd


def _utime(path: Any, *arguments: Any, **options: Any) -> None:
    if isinstance(path, int) or not options.get("follow_symlinks", True):
        raise NotImplementedError
    _real_utime(path, *arguments, **options)


def _strftime(text: str, *moment: Any) -> str:
    """The directives of C's standard, and no other."""
    if unknown := set(re.findall(r"%(.)", text)) - set("aAbBcdfHIjmMpSUwWxXyYzZ%"):
        raise ValueError(f"Invalid format string: {unknown}")
    return _real_strftime(text, *moment)


def _lexists(path: Any) -> bool:
    """Names that differ in case only are one name."""
    directory, name = os.path.split(os.fsencode(path))
    try:
        return name.lower() in map(bytes.lower, os.listdir(directory or b"."))
    except OSError:
        return False


for _name in MODULES:
    sys.modules.pop(_name, None)
sys.meta_path.insert(0, _Missing())

# The loop's own self-pipe is made of what goes away.
socket.socketpair = (lambda make, family: lambda *_: make(family))(
    socket.socketpair, socket.AF_UNIX
)
_real_open, _real_unlink, _real_utime = os.open, os.unlink, os.utime
_real_strftime = time.strftime
time.strftime = _strftime
_take_away(os, OS_NAMES)
_take_away(socket, SOCKET_NAMES)
_take_away(signal, SIGNAL_NAMES)
_take_away(time, TIME_NAMES)
os.O_BINARY, os.O_NOINHERIT, os.O_TEMPORARY = (  # type: ignore[attr-defined]
    O_BINARY, O_NOINHERIT, O_TEMPORARY,
)  # fmt: skip
tempfile._bin_openflags |= O_BINARY  # type: ignore[attr-defined]
shutil._use_fd_functions = False  # type: ignore[attr-defined]
os.path.lexists = _lexists
os.open = _open
os.utime = _utime
os.supports_fd = os.supports_follow_symlinks = os.supports_dir_fd = set()
os.replace = os.rename = _refusing_open_files(os.replace, 2)
os.unlink = os.remove = _refusing_open_files(os.unlink, 1)
for _loop in (asyncio.SelectorEventLoop, asyncio.BaseEventLoop):
    for _name in ("add_signal_handler", "add_reader", "add_writer", "create_unix_connection"):
        setattr(_loop, _name, _never)

# What asks for the system's name: the one module of PyDi that may.
os.name = "nt"
import pydi_node.portable  # noqa: E402 - after all of the above

os.name = "posix"
assert pydi_node.portable.IS_WINDOWS
