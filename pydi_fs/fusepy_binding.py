"""The vfs through fusepy and libfuse 2.9: portable, path based, slower than `pydi_fs.fuse`.

Who calls it: `pydi_fs.mount_cli` with ``--driver fusepy``, and wherever the kernel protocol is not
spoken directly. It holds no POSIX rule; it turns paths into inode numbers and C structures into
arguments. Importing it loads libfuse (OSError when there is none).

Threads::

    main thread     the asyncio loop that owns the vfs; signals arrive here
    pydi-fuse       runs fusepy's FUSE(), that is: set up, wait for the workers, tear down
    worker threads  read one request each, answer it from the vfs's caches (``*_nowait``), or hand a
                    coroutine to the loop and wait for it

fusepy's own ``fuse_main_real`` daemonizes, takes signal handlers and starts C threads for which
Python builds and drops a thread state at every call. On Linux `_Session._main` stands in its place,
made of the same library's public calls: our threads live long, and know which request they serve.

Caching is off (all time-outs 0, no keep_cache, no negative entries). libfuse 2 gives each *path* a
kernel inode of its own and the high-level interface cannot tell the kernel to forget one, so what
another machine or another hard link changed could only show after a time-out; promised is that the
next open sees it. Repeated questions end in the vfs's own caches, in the worker thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import errno
import fcntl
import functools
import logging
import os
import signal
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import fuse

from pydi_fs.hidden_names import HiddenNames
from pydi_fs.mount_options import MountOptions
from pydi_fs.mountpoints import mounted_at, unmount
from pydi_fs.vfs import acls
from pydi_fs.vfs.callers import groups_of
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER, TIME_NOW, Caller
from pydi_node.errors import PydiError, UserError, errno_of
from pydi_node.ids import INT64_MAX, ROOT_INO, Ino
from pydi_node.records import NAME_MAX_BYTES, ST_MODE_BITS, Attr, DirEntry

log = logging.getLogger("pydi.fuse")

Answer = TypeVar("Answer")

MAX_REQUEST_BYTES = 128 << 10  # 32 pages: all that protocol 7.19 of libfuse 2.9 can ask for
PREFERRED_IO_BYTES = MAX_REQUEST_BYTES  # st_blksize: programs buffer one whole request
BLOCK_BYTES = 4096  # of statvfs(3)
READDIR_BATCH = 512  # entries fetched at once; a request of one page takes at most 128 of them
IDLE_WORKERS_MAX = 10  # as libfuse: more than these end when they have nothing to do
MOUNT_DEADLINE_S = 20.0  # mount(2) and INIT take milliseconds
UNMOUNT_DEADLINE_S = 5.0
INTERRUPT_POLL_S = 0.1  # how often a waiting worker looks whether its program gave up

# The second field of a request's header, and its values that are looked at: fuse.h of the kernel.
_OPCODE = struct.Struct("=I")
_FUSE_LOOKUP = 1
_FUSE_UNLINK = 10
_FUSE_RENAME = 12
_FUSE_RELEASE = 18

# utimensat(2): values of tv_nsec
_UTIME_NOW, _UTIME_OMIT = (-1, -2) if sys.platform == "darwin" else ((1 << 30) - 1, (1 << 30) - 2)

# Offsets of the two entries that are not in the tree; a cookie is shifted past them.
_DOT_OFFSET, _DOTDOT_OFFSET = 1, 2
_COOKIE_SHIFT = 2


class _Flock(ctypes.Structure):
    """``struct flock`` of fcntl(2)."""

    _fields_ = (
        [
            ("l_start", ctypes.c_int64),
            ("l_len", ctypes.c_int64),
            ("l_pid", ctypes.c_int32),
            ("l_type", ctypes.c_short),
            ("l_whence", ctypes.c_short),
        ]
        if sys.platform == "darwin"
        else [
            ("l_type", ctypes.c_short),
            ("l_whence", ctypes.c_short),
            ("l_start", ctypes.c_int64),
            ("l_len", ctypes.c_int64),
            ("l_pid", ctypes.c_int32),
        ]
    )


class _FuseBuf(ctypes.Structure):
    """``struct fuse_buf`` of fuse_common.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_int64),
    ]


_FILE_INFO = ctypes.POINTER(fuse.fuse_file_info)
_FLOCK_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, _FILE_INFO, ctypes.c_int)
_FALLOCATE_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, _FILE_INFO
)


class _Operations29(ctypes.Structure):
    """``struct fuse_operations`` of libfuse 2.9: fusepy's, and what came after ioctl."""

    _fields_ = [
        ("base", fuse.fuse_operations),
        ("poll", ctypes.c_void_p),
        ("write_buf", ctypes.c_void_p),
        ("read_buf", ctypes.c_void_p),
        ("flock", _FLOCK_FUNCTION),
        ("fallocate", _FALLOCATE_FUNCTION),
    ]


class _Registered:
    """Which operations fusepy puts into libfuse's table; what it calls is `_Session`'s methods.

    Absent on purpose: bmap and ioctl (ENOSYS is the right answer), getdir and utime (replaced by
    readdir and utimens).
    """

    use_ns = True
    # Reads, writes and all other calls with a handle need no path: it is neither built nor locked.
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1

    def __init__(self) -> None:
        for name in (
            "init", "destroy", "getattr", "readlink", "mknod", "mkdir", "unlink", "rmdir",
            "symlink", "rename", "link", "chmod", "chown", "truncate", "open", "read", "write",
            "statfs", "flush", "release", "fsync", "setxattr", "getxattr", "listxattr",
            "removexattr", "opendir", "readdir", "releasedir", "fsyncdir", "access", "create",
            "lock", "utimens",
        ):  # fmt: skip
            setattr(self, name, True)


class _Directory:
    """An open directory and the entries that were fetched and not yet handed over."""

    __slots__ = ("entries", "ino", "next_cookie", "parent_ino")

    def __init__(self, ino: Ino, parent_ino: Ino) -> None:
        self.ino = ino
        self.parent_ino = parent_ino
        self.entries: list[DirEntry] = []  # in reverse: the next one is last
        self.next_cookie = 0  # the cookie before entries[-1]


class _OpenFile(NamedTuple):
    ino: Ino
    writable: bool


class FusepyBinding:
    """One mount of a vfs through libfuse. The loop that calls `mount` must own the vfs."""

    def __init__(self, vfs: Vfs, mountpoint: str, options: MountOptions) -> None:
        """mountpoint  absolute path of an existing directory."""
        self.vfs = vfs
        self.options = options
        self.mountpoint = os.fsencode(mountpoint)
        self.loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Future[None]
        self._ended: asyncio.Future[None]
        self._failure = ""
        self._device: int | None = None

    async def mount(self) -> None:
        """Returns when the kernel has been answered; UserError with one sentence if it fails."""
        self.loop = asyncio.get_running_loop()
        self._ready = self.loop.create_future()
        self._ended = self.loop.create_future()
        threading.Thread(target=self._run, name="pydi-fuse", daemon=True).start()
        await asyncio.wait(
            (self._ready, self._ended),
            timeout=MOUNT_DEADLINE_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not self._ready.done():
            reason = self._failure or "the kernel did not answer"
            raise UserError(f"{os.fsdecode(self.mountpoint)}: mounting failed: {reason}")
        mounted = await asyncio.to_thread(mounted_at, self.mountpoint)
        self._device = mounted.device if mounted else None

    async def wait_unmounted(self) -> None:
        """Returns when nothing is mounted any more, whoever unmounted it."""
        await asyncio.shield(self._ended)

    async def unmount(self) -> None:
        """Takes the mount away: at once if nobody uses it, else detached from the tree.

        A detached mount still serves the files that are open; they end with the process.
        """
        if self._ended.done():
            return
        mounted = await asyncio.to_thread(mounted_at, self.mountpoint)
        if self._device is not None and (mounted is None or mounted.device != self._device):
            return  # already detached, or another file system lies on top of it
        for lazy in (False, True):
            sentence = await asyncio.to_thread(unmount, self.mountpoint, lazy=lazy)
            if not sentence:
                break
            log.info("unmounting: %s", sentence)
        await asyncio.wait((self._ended,), timeout=0 if lazy else UNMOUNT_DEADLINE_S)

    # --- called from the fuse thread ----------------------------------------------------------

    def on_init(self) -> None:
        """The kernel's first request is being answered."""
        self.loop.call_soon_threadsafe(_set, self._ready)

    def _run(self) -> None:
        try:
            _Session(self)
        except RuntimeError as exc:
            # fusepy's way to say that fuse_main returned a failure; libfuse printed the reason.
            self._failure = self._failure or f"libfuse answered {exc}"
        except Exception as exc:
            log.exception("the fuse thread ended")
            self._failure = str(exc)
        try:
            self.loop.call_soon_threadsafe(_set, self._ended)
        except RuntimeError:
            pass  # the loop is closed: the process is ending and nobody waits

    def on_failure(self, printed: str) -> None:
        """libfuse's own words for why it could not mount."""
        self._failure = "; ".join(printed.split("\n")) or self._failure


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Session(fuse.FUSE):  # type: ignore[misc]  # fusepy has no types
    """The C side: one method per operation, named and shaped as fusepy's own, which they replace.

    Paths arrive as bytes and stay bytes, so that any name works; fusepy's encoding only touches the
    arguments of mount, which latin-1 carries byte for byte. Constructing it runs the mount.
    """

    def __init__(self, binding: FusepyBinding) -> None:
        self._binding = binding
        self._vfs = binding.vfs
        self._loop = binding.loop
        self._files: dict[int, _OpenFile] = {}
        self._directories: dict[int, _Directory] = {}
        self._hidden = HiddenNames()  # changed in the loop only
        self._lock_owners: set[tuple[Ino, int]] = set()  # who ever took a lock on what
        self._request = threading.local()
        self._checks_permissions = not binding.options.default_permissions
        own_loop = sys.platform == "linux"
        if own_loop:
            fuse._libfuse.fuse_main_real = self._main
        super().__init__(
            _Registered(),
            binding.mountpoint.decode("latin-1"),
            raw_fi=True,
            encoding="latin-1",
            **_libfuse_options(binding.options, own_loop),
        )

    # --- serving, in place of fuse_main_real -----------------------------------------------------

    def _main(self, argc: int, argv: Any, operations: Any, size: int, _user_data: None) -> int:
        """Mount, serve until unmounted, tear down. 0, or 1 when it could not mount."""
        library = fuse._libfuse
        library.fuse_setup.restype = ctypes.c_void_p
        library.fuse_get_session.restype = ctypes.c_void_p
        library.fuse_session_next_chan.restype = ctypes.c_void_p
        library.fuse_chan_bufsize.restype = ctypes.c_size_t
        # The wrappers must live as long as the mount: libfuse keeps only their addresses.
        more = _Operations29(
            base=operations.contents,
            flock=_FLOCK_FUNCTION(functools.partial(self._wrapper, self.flock)),
            fallocate=_FALLOCATE_FUNCTION(functools.partial(self._wrapper, self.fallocate)),
        )
        assert size == ctypes.sizeof(fuse.fuse_operations)
        mountpoint, threaded = ctypes.c_char_p(), ctypes.c_int()
        with tempfile.TemporaryFile() as printed:
            stderr = os.dup(2)
            os.dup2(printed.fileno(), 2)
            try:
                handle = library.fuse_setup(
                    argc, argv, ctypes.byref(more), ctypes.sizeof(more),
                    ctypes.byref(mountpoint), ctypes.byref(threaded), None,
                )  # fmt: skip
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
            if not handle:
                printed.seek(0)
                self._binding.on_failure(printed.read().decode("utf-8", "replace").strip())
                return 1
        self._fuse = ctypes.c_void_p(handle)
        _Workers(library, self._fuse, self._request).serve()
        library.fuse_teardown(self._fuse, mountpoint)
        return 0

    @staticmethod
    def _wrapper(function: Callable[..., int | None], *arguments: Any) -> int:
        """Every callback's frame: an exception must not reach C, and becomes an errno."""
        try:
            return function(*arguments) or 0
        except PydiError as exc:
            return -errno_of(exc)
        except OSError as exc:
            return -(exc.errno or errno.EIO)
        except BaseException:
            # A bug of ours: this request fails, the mount goes on.
            log.exception("%s failed", function.__name__)
            return -errno.EIO

    def _await(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The result of a coroutine of the vfs, run in its loop while this worker waits."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(INTERRUPT_POLL_S)
                except concurrent.futures.TimeoutError:
                    if future.done():
                        return future.result()
                    if self._is_given_up():
                        future.cancel()
                        raise InterruptedError(errno.EINTR, "interrupted") from None
        finally:
            # A failed future and its traceback, which holds this frame, would keep each other.
            del future

    def _is_given_up(self) -> bool:
        """Whether the program that asked is being killed (or, waiting for a lock, interrupted).

        A signal with a handler (git's progress timer) must not make mkdir(2) fail with EINTR, which
        no local file system does; a program that is being killed cannot notice. SIGKILL is pending
        in the thread for every fatal signal: signal(7), complete_signal() of Linux.
        """
        if not fuse._libfuse.fuse_interrupted():
            return False
        if getattr(self._request, "interruptible", False):
            return True
        try:
            with open(f"/proc/{fuse.fuse_get_context()[2]}/status", "rb") as file:
                for line in file:
                    if line.startswith(b"SigPnd:"):
                        return bool(int(line.split()[1], 16) >> (signal.SIGKILL - 1) & 1)
        except OSError:
            pass  # gone, or another pid namespace: cannot tell, so the operation goes on
        return False

    # --- paths and callers -----------------------------------------------------------------------

    def _ino(self, path: bytes) -> Ino:
        """The inode behind a path of libfuse: absolute, no symbolic links, no dots."""
        names = path.split(b"/")
        hidden = self._hidden.get(names[-1])
        return self._walk(names) if hidden is None else hidden

    def _parent(self, path: bytes) -> tuple[Ino, bytes]:
        *above, name = path.split(b"/")
        return self._walk(above), name

    def _new_name(self, path: bytes) -> tuple[Ino, bytes]:
        """As `_parent`, for a name that is about to be given. EBUSY: see `_hide`."""
        if self._is_hidden(path):
            raise OSError(errno.EBUSY, "libfuse has a removed open file under this name")
        return self._parent(path)

    def _is_hidden(self, path: bytes) -> bool:
        return self._hidden.get(path.rpartition(b"/")[2]) is not None

    def _walk(self, names: list[bytes]) -> Ino:
        ino = ROOT_INO
        for index, name in enumerate(names):
            if not name:
                continue
            attr = self._vfs.lookup_nowait(ino, name)
            if attr is None:
                return self._await(self._walk_asking(ino, names[index:]))
            ino = attr.ino
        return ino

    async def _walk_asking(self, ino: Ino, names: list[bytes]) -> Ino:
        for name in names:
            ino = (await self._vfs.lookup(ino, name)).ino
        return ino

    def _attr(self, ino: Ino) -> Attr:
        return self._vfs.getattr_nowait(ino) or self._await(self._vfs.getattr(ino))

    def _caller(self) -> Caller:
        uid, gid, pid = fuse.fuse_get_context()
        return Caller(uid, gid, groups_of(pid) if self._checks_permissions else None)

    # --- life ------------------------------------------------------------------------------------

    def init(self, _connection: int) -> None:
        self._binding.on_init()

    def destroy(self, _private_data: int) -> None:
        log.debug("libfuse is done")

    # --- names and attributes --------------------------------------------------------------------

    def getattr(self, path: bytes, buf: Any) -> None:
        opcode = getattr(self._request, "opcode", 0)
        if opcode in (_FUSE_UNLINK, _FUSE_RENAME):
            # Only libfuse asks in the middle of these: is the hidden name that it made up free?
            self._request.is_hiding = True
        elif opcode == _FUSE_LOOKUP and self._is_hidden(path):
            self._walk(path.split(b"/"))  # ENOENT: nobody's name
            raise OSError(errno.EBUSY, "libfuse has a removed open file under this name")
        _fill_stat(buf.contents, self._attr(self._ino(path)))

    def fgetattr(self, path: bytes | None, buf: Any, info: Any) -> None:
        _fill_stat(buf.contents, self._attr(self._files[info.contents.fh].ino))

    def readlink(self, path: bytes, buf: Any, bufsize: int) -> None:
        target = self._await(self._vfs.readlink(self._ino(path)))[: bufsize - 1] + b"\0"
        ctypes.memmove(buf, target, len(target))

    def mknod(self, path: bytes, mode: int, dev: int) -> None:
        parent, name = self._new_name(path)
        # The umask is in ``mode`` already: the kernel applies it, FUSE_CAP_DONT_MASK is not asked.
        self._await(self._vfs.mknod(self._caller(), parent, name, mode, dev))

    def mkdir(self, path: bytes, mode: int) -> None:
        parent, name = self._new_name(path)
        self._await(self._vfs.mkdir(self._caller(), parent, name, mode & 0o7777))

    def unlink(self, path: bytes) -> None:
        if getattr(self._request, "opcode", 0) == _FUSE_RELEASE:
            return  # libfuse drops a hidden name at the last close, as we did; the tree had none
        parent, name = self._parent(path)
        self._await(self._vfs.unlink(self._caller(), parent, name))

    def rmdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        self._await(self._vfs.rmdir(self._caller(), parent, name))

    def symlink(self, source: bytes, target: bytes) -> None:
        parent, name = self._new_name(target)
        self._await(self._vfs.symlink(self._caller(), parent, name, source))

    def link(self, source: bytes, target: bytes) -> None:
        parent, name = self._new_name(target)
        self._await(self._vfs.link(self._caller(), self._ino(source), parent, name))

    def rename(self, old: bytes, new: bytes) -> None:
        if getattr(self._request, "is_hiding", False):
            self._request.is_hiding = False
            self._hide(old, new.rpartition(b"/")[2])
            return
        parent, name = self._parent(old)
        new_parent, new_name = self._new_name(new)
        self._await(self._vfs.rename(self._caller(), parent, name, new_parent, new_name, 0))

    def _hide(self, path: bytes, hidden: bytes) -> None:
        """An open file is about to lose its last known name; libfuse wants to rename it away.

        libfuse reaches every inode by some path, fstat(2) of an unlinked file included, and so
        renames an open file to ``.fuse_hidden…`` instead of unlinking or replacing it. In the tree
        that would leave litter, keep the directory from being removed, and make rename(2) over an
        open file two steps with nothing in between. So the made-up name exists only here.

        libfuse has one node for a name, so while the file is open a user's file of exactly that
        name can't be told from it: such a name is refused with EBUSY, never shown with wrong
        content. hard_remove, which makes no such names, is no way out: fstat(2) sends no handle,
        and libfuse knows no path by which to ask for an inode without a name.
        """
        ino = self._ino(path)
        if self._request.opcode == _FUSE_UNLINK:
            parent, name = self._parent(path)
            self._await(self._vfs.unlink(self._caller(), parent, name))
        # In a RENAME the file goes on to be replaced by the rename that libfuse asks for next.
        self._await(self._hide_in_loop(hidden, ino))

    async def _hide_in_loop(self, hidden: bytes, ino: Ino) -> None:
        self._hidden.hide(hidden, ino)

    def chmod(self, path: bytes, mode: int) -> None:
        self._await(self._chmod(self._caller(), self._ino(path), mode & 0o7777))

    async def _chmod(self, caller: Caller, ino: Ino, mode: int) -> None:
        """Also a write takes set-id bits away. libfuse 2 can't leave that to us, so the kernel asks
        for it, in the name of who writes, who need not be the owner. Where the kernel checks what
        people ask for, nobody else could."""
        if not self._checks_permissions:
            before = (await self._vfs.getattr(ino)).mode & 0o7777
            if mode & before == mode and before & ~mode & ~(stat.S_ISUID | stat.S_ISGID) == 0:
                caller = ROOT_CALLER
        await self._vfs.setattr(caller, ino, mode=mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._await(
            self._vfs.setattr(
                self._caller(), self._ino(path), uid=_unless_minus_1(uid), gid=_unless_minus_1(gid)
            )
        )

    def truncate(self, path: bytes, length: int) -> None:
        self._await(self._vfs.setattr(self._caller(), self._ino(path), size=length))

    def ftruncate(self, _path: bytes | None, length: int, info: Any) -> None:
        fh = info.contents.fh
        self._await(self._vfs.setattr(self._caller(), self._files[fh].ino, size=length, fh=fh))

    def utimens(self, path: bytes, buf: Any) -> None:
        ino = self._ino(path)
        times = (
            {
                "atime_ns": _time_ns(buf.contents.actime),
                "mtime_ns": _time_ns(buf.contents.modtime),
            }
            if buf
            else {"atime_ns": TIME_NOW, "mtime_ns": TIME_NOW}
        )
        self._await(self._vfs.setattr(self._caller(), ino, **times))

    def access(self, path: bytes, mask: int) -> None:
        self._await(self._vfs.access(self._caller(), self._ino(path), mask))

    def statfs(self, _path: bytes, buf: Any) -> None:
        totals = self._await(self._vfs.statfs())
        result = buf.contents
        result.f_bsize = result.f_frsize = BLOCK_BYTES
        result.f_blocks = totals.total_bytes // BLOCK_BYTES
        result.f_bfree = result.f_bavail = totals.free_bytes // BLOCK_BYTES
        # A file needs a row in the tree, not an inode made beforehand: room is the only limit.
        result.f_ffree = result.f_favail = result.f_bfree
        result.f_files = totals.files + result.f_ffree
        result.f_namemax = NAME_MAX_BYTES

    # --- extended attributes (macOS adds a position, which only its resource forks use) ----------

    def setxattr(
        self, path: bytes, name: bytes, value: Any, size: int, flags: int, *_position: int
    ) -> None:
        acls.require_known(name, None, obeyed=False)
        content = ctypes.string_at(value, size)
        self._await(self._vfs.setxattr(self._caller(), self._ino(path), name, content, flags))

    def getxattr(self, path: bytes, name: bytes, value: Any, size: int, *_position: int) -> int:
        acls.require_known(name, None, obeyed=False)
        return _fill(value, size, self._await(self._vfs.getxattr(self._ino(path), name)))

    def listxattr(self, path: bytes, names: Any, size: int) -> int:
        found = self._await(self._vfs.listxattr(self._caller(), self._ino(path)))
        return _fill(names, size, b"".join(name + b"\0" for name in acls.seen(found, obeyed=False)))

    def removexattr(self, path: bytes, name: bytes) -> None:
        acls.require_known(name, None, obeyed=False)
        self._await(self._vfs.removexattr(self._caller(), self._ino(path), name))

    # --- directories -----------------------------------------------------------------------------

    def opendir(self, path: bytes, info: Any) -> None:
        ino = self._ino(path)
        fh = self._await(self._vfs.opendir(ino))
        self._directories[fh] = _Directory(ino, self._parent(path)[0])
        info.contents.fh = fh

    def readdir(self, path: bytes | None, buf: Any, filler: Any, offset: int, info: Any) -> None:
        """One request's worth of entries after ``offset``; with offsets, libfuse keeps none."""
        fh = info.contents.fh
        directory = self._directories[fh]
        status = fuse.c_stat()
        if offset < _DOT_OFFSET:
            status.st_ino, status.st_mode = directory.ino, 0o40000
            if filler(buf, b".", status, _DOT_OFFSET):
                return
        if offset < _DOTDOT_OFFSET:
            status.st_ino, status.st_mode = directory.parent_ino, 0o40000
            if filler(buf, b"..", status, _DOTDOT_OFFSET):
                return
        cookie = max(offset - _COOKIE_SHIFT, 0)
        if cookie != directory.next_cookie or cookie == 0:
            directory.entries.clear()  # seekdir(3) or rewinddir(3): what follows must be fresh
        while True:
            if not directory.entries:
                batch = self._await(self._vfs.readdir(fh, cookie, READDIR_BATCH))
                if not batch:
                    return
                directory.entries = batch[::-1]
            while directory.entries:
                entry = directory.entries[-1]
                directory.next_cookie = cookie
                status.st_ino, status.st_mode = entry.attr.ino, entry.attr.mode & ST_MODE_BITS
                if filler(buf, entry.name, status, entry.cookie + _COOKIE_SHIFT):
                    return
                directory.entries.pop()
                cookie = entry.cookie
            directory.next_cookie = cookie

    def releasedir(self, _path: bytes | None, info: Any) -> None:
        fh = info.contents.fh
        self._directories.pop(fh, None)
        self._await(self._vfs.releasedir(fh))

    def fsyncdir(self, _path: bytes | None, _datasync: int, info: Any) -> None:
        self._await(self._vfs.fsyncdir(self._directories[info.contents.fh].ino))

    # --- files -----------------------------------------------------------------------------------

    def open(self, path: bytes, info: Any) -> None:
        self._await(self._open(self._caller(), self._ino(path), info.contents))

    async def _open(self, caller: Caller, ino: Ino, info: Any) -> None:
        fh = await self._vfs.open(caller, ino, info.flags)
        self._opened(fh, await self._vfs.getattr(ino), info)

    def create(self, path: bytes, mode: int, info: Any) -> None:
        parent, name = self._new_name(path)
        self._await(self._create(self._caller(), parent, name, mode & 0o7777, info.contents))

    async def _create(self, caller: Caller, parent: Ino, name: bytes, mode: int, info: Any) -> None:
        attr, fh = await self._vfs.create(caller, parent, name, mode, info.flags)
        self._opened(fh, attr, info)

    def _opened(self, fh: int, attr: Attr, info: Any) -> None:
        self._hidden.opened(attr.ino)
        self._files[fh] = _OpenFile(attr.ino, info.flags & os.O_ACCMODE != os.O_RDONLY)
        info.fh = fh
        # Each hard link has pages of its own in the kernel; without them all links agree.
        info.direct_io = attr.nlink > 1

    def read(self, _path: bytes | None, buf: Any, size: int, offset: int, info: Any) -> int:
        data = self._await(self._vfs.read(info.contents.fh, offset, size))
        assert len(data) <= size, (len(data), size)
        ctypes.memmove(buf, data, len(data))
        return len(data)

    def write(self, _path: bytes | None, buf: Any, size: int, offset: int, info: Any) -> int:
        data = ctypes.string_at(buf, size)
        # Not as it was opened: F_SETFL changes that, and a page of a mapping never appends.
        append = bool(info.contents.flags & os.O_APPEND)
        return self._await(self._vfs.write(info.contents.fh, offset, data, append))

    def flush(self, _path: bytes | None, info: Any) -> None:
        """close(2) of one descriptor waits for this and returns its error."""
        fh = info.contents.fh
        if self._files[fh].writable:
            self._await(self._vfs.flush(fh))

    def release(self, _path: bytes | None, info: Any) -> None:
        fh = info.contents.fh
        file = self._files.pop(fh)
        if info.contents.flock_release:
            self._unlock(fh, file.ino, info.contents.lock_owner, flock=True)
        self._await(self._release(fh, file.ino))

    async def _release(self, fh: int, ino: Ino) -> None:
        try:
            await self._vfs.release(fh)
        finally:
            self._hidden.closed(ino)

    def fsync(self, _path: bytes | None, datasync: int, info: Any) -> None:
        self._await(self._vfs.fsync(info.contents.fh, bool(datasync)))

    def fallocate(
        self, _path: bytes | None, mode: int, offset: int, length: int, info: Any
    ) -> None:
        self._await(self._vfs.fallocate(info.contents.fh, mode, offset, length))

    # --- locks -----------------------------------------------------------------------------------

    def lock(self, _path: bytes | None, info: Any, command: int, address: int) -> None:
        """fcntl(2) locks; libfuse has turned every l_whence into SEEK_SET."""
        fh, owner = info.contents.fh, info.contents.lock_owner
        ino = self._files[fh].ino
        lock = _Flock.from_address(address)
        start, end = lock.l_start, lock.l_start + lock.l_len - 1 if lock.l_len else INT64_MAX
        if command == fcntl.F_GETLK:
            kind, start, end, pid = self._await(
                self._vfs.getlk(fh, _signed(owner), lock.l_type, start, end, lock.l_pid)
            )
            lock.l_type, lock.l_whence, lock.l_start, lock.l_pid = kind, os.SEEK_SET, start, pid
            lock.l_len = 0 if end >= INT64_MAX else end - start + 1
        elif lock.l_type == fcntl.F_UNLCK and start == 0 and end == INT64_MAX:
            self._unlock(fh, ino, owner, flock=False)  # at every close, libfuse's way to say it
        else:
            self._lock_owners.add((ino, owner))
            wait = command == fcntl.F_SETLKW
            self._lock(fh, owner, lock.l_type, start, end, lock.l_pid, wait, flock=False)

    def flock(self, _path: bytes | None, info: Any, operation: int) -> None:
        fh, owner = info.contents.fh, info.contents.lock_owner
        ino = self._files[fh].ino
        kind = {
            fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK
        }[operation & ~fcntl.LOCK_NB]  # fmt: skip
        if kind == fcntl.F_UNLCK:
            self._unlock(fh, ino, owner, flock=True)
            return
        self._lock_owners.add((ino, owner))
        wait = not operation & fcntl.LOCK_NB
        self._lock(fh, owner, kind, 0, INT64_MAX, fuse.fuse_get_context()[2], wait, flock=True)

    def _lock(
        self,
        fh: int,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        wait: bool,
        flock: bool,
    ) -> None:
        # A wait for a lock ends with EINTR at any signal: fcntl(2).
        self._request.interruptible = wait
        try:
            self._await(self._vfs.setlk(fh, _signed(owner), kind, start, end, pid, wait, flock))
        finally:
            self._request.interruptible = False

    def _unlock(self, fh: int, ino: Ino, owner: int, flock: bool) -> None:
        """Drops all of an owner's locks on a file, asking nobody when there never was one."""
        if (ino, owner) not in self._lock_owners:
            return
        self._lock_owners.discard((ino, owner))
        self._lock(fh, owner, fcntl.F_UNLCK, 0, INT64_MAX, 0, wait=False, flock=flock)


class _Workers:
    """Threads that read requests from libfuse's channel and process them, as fuse_loop_mt does.

    One that takes a request and leaves nobody waiting starts another first, so that a request that
    blocks (a lock) never keeps the one that would free it from being read.
    """

    def __init__(self, library: Any, handle: ctypes.c_void_p, request: threading.local) -> None:
        self._library = library
        self._request = request
        self._session = ctypes.c_void_p(library.fuse_get_session(handle))
        self._channel = library.fuse_session_next_chan(self._session, None)
        self._buffer_bytes = library.fuse_chan_bufsize(ctypes.c_void_p(self._channel))
        self._changed = threading.Condition()
        self._idle = 0
        self._alive = 0

    def serve(self) -> None:
        """Returns when the mount is gone and the last request is answered."""
        with self._changed:
            self._start()
            self._changed.wait_for(lambda: self._alive == 0)

    def _start(self) -> None:
        self._alive += 1
        self._idle += 1
        threading.Thread(target=self._work, name="pydi-fuse-worker", daemon=True).start()

    def _work(self) -> None:
        memory = ctypes.create_string_buffer(self._buffer_bytes)
        try:
            while self._serve_one(memory):
                pass
        finally:
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

    def _serve_one(self, memory: Any) -> bool:
        """Receive and process one request; False when this thread is not needed any more."""
        buf = _FuseBuf(size=self._buffer_bytes, mem=ctypes.addressof(memory), fd=-1)
        channel = ctypes.c_void_p(self._channel)
        received = self._library.fuse_session_receive_buf(
            self._session, ctypes.byref(buf), ctypes.byref(channel)
        )
        if received == -errno.EINTR:
            return True
        with self._changed:
            self._idle -= 1
            if received <= 0:
                # 0: unmounted. Others fail alike; the exit flag keeps libfuse's view the same.
                self._library.fuse_session_exit(self._session)
                return False
            if self._idle == 0:
                self._start()
        (self._request.opcode,) = _OPCODE.unpack_from(memory, 4)
        self._request.is_hiding = False
        self._library.fuse_session_process_buf(self._session, ctypes.byref(buf), channel)
        with self._changed:
            if self._idle >= IDLE_WORKERS_MAX:
                return False
            self._idle += 1
        return True


def _libfuse_options(options: MountOptions, own_loop: bool) -> dict[str, Any]:
    """Options for libfuse's command line; fusepy leaves out those that are False."""
    chosen: dict[str, Any] = {
        "foreground": True,  # mount_cli has gone to the background already
        # A comma would end the option: libfuse takes a backslash for it.
        "fsname": options.fsname.replace("\\", "\\\\").replace(",", "\\,"),
        "default_permissions": options.default_permissions,
        "allow_other": options.allow_other,
        "ro": options.read_only,
        # What the tree says is the inode number, not libfuse's own: tar and rsync find hard links.
        "use_ino": True,
        # See the module's docstring.
        "attr_timeout": 0,
        "entry_timeout": 0,
        "negative_timeout": 0,
        # Where `_hide` cannot know what libfuse is doing: unlink at once, fstat(2) then fails.
        "hard_remove": not own_loop,
    }
    if sys.platform == "linux":
        chosen |= {
            "nonempty": True,  # as mount(8): what lies below is hidden, not harmed
            "subtype": "pydi",
            "big_writes": True,
            "max_write": MAX_REQUEST_BYTES,
            "max_read": min(options.max_read, MAX_REQUEST_BYTES),
            "atomic_o_trunc": True,  # O_TRUNC is part of open: no version with nothing in it
            "noatime": options.noatime,
            # Requests must lie in memory, where `_Workers` looks at them.
            "no_splice_read": True,
        }
    return chosen


def _fill_stat(status: Any, attr: Attr) -> None:
    ctypes.memset(ctypes.byref(status), 0, ctypes.sizeof(status))
    status.st_ino = attr.ino
    status.st_mode = attr.mode & ST_MODE_BITS
    status.st_nlink = attr.nlink
    status.st_uid = attr.uid
    status.st_gid = attr.gid
    status.st_rdev = attr.rdev
    status.st_size = attr.size
    status.st_blksize = PREFERRED_IO_BYTES
    status.st_blocks = -(-attr.allocated // 512)
    for field, time_ns in (
        (status.st_atimespec, attr.atime_ns),
        (status.st_mtimespec, attr.mtime_ns),
        (status.st_ctimespec, attr.ctime_ns),
    ):
        field.tv_sec, field.tv_nsec = divmod(time_ns, 10**9)


def _fill(target: Any, size: int, value: bytes) -> int:
    """getxattr(2): the size alone when no buffer is given, never a part."""
    if not target:
        return len(value)
    if len(value) > size:
        raise OSError(errno.ERANGE, "buffer too small")
    ctypes.memmove(target, value, len(value))
    return len(value)


def _time_ns(time: Any) -> int | None:
    """A ``struct timespec`` of utimensat(2) as SetAttr wants it."""
    if time.tv_nsec == _UTIME_OMIT:
        return None
    if time.tv_nsec == _UTIME_NOW:
        return TIME_NOW
    return int(time.tv_sec) * 10**9 + int(time.tv_nsec)


def _unless_minus_1(identity: int) -> int | None:
    return None if identity & 0xFFFFFFFF == 0xFFFFFFFF else identity


def _signed(owner: int) -> int:
    """The kernel's 64 random bits of a lock owner, within what a message carries (>= 0)."""
    return owner & INT64_MAX
