"""/dev/fuse and the mount table: opening, mounting, unmounting, aborting. Linux only.

`binding` calls it. Root mounts by mount(2); everyone else through fusermount3, the set-user-id
helper of libfuse, which hands the opened device over a socket. It knows no FUSE messages.

It must never look into our own mount from the loop: a request that only the loop could answer would
wait for itself. What it needs to know of a mount stands in the kernel's mount table.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import errno
import logging
import os
import re
import shutil
import socket
import stat
import threading

from pydi_fs.mount_options import MountOptions
from pydi_fs.mountpoints import mounted_at
from pydi_fs.mountpoints import unmount as unmount_tool
from pydi_node.errors import UserError

log = logging.getLogger("pydi.fuse")

DEVICE = "/dev/fuse"
SUBTYPE = "pydi"
FILE_SYSTEM_TYPE = f"fuse.{SUBTYPE}"
HELPERS = ("fusermount3", "fusermount")  # of libfuse 3 and 2: same protocol

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOATIME = 1024

# The default of 128 KiB makes eight READs out of what one can carry (measured: 2051 requests
# instead of 259 for 256 MiB).
READ_AHEAD_KIB = 1024

# A dead mount answers at once; one that does not is alive but stuck, and not ours to remove.
PROBE_TIMEOUT_S = 2.0
HELPER_TIMEOUT_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


# --- mounting -------------------------------------------------------------------------------------


async def mount(mountpoint: str, options: MountOptions) -> tuple[int, str]:
    """Mount, and the device and the absolute mount point; the kernel's INIT waits to be read.

    The caller owns the descriptor. A dead PyDi mount in the way is replaced.
    UserError  with the reason, for a person.
    """
    path = await asyncio.to_thread(_prepare, mountpoint)
    if os.geteuid() == 0:
        return await asyncio.to_thread(_mount_as_root, path, options), path
    return await _mount_by_helper(path, options), path


def _prepare(mountpoint: str) -> str:
    """The mount point as an absolute path, checked and free."""
    absolute = os.path.abspath(mountpoint)
    # Only the parent, for the mount point itself may be a dead or stuck mount.
    path = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    name = os.fsencode(path)
    while (mounted := mounted_at(name)) is not None and mounted.fstype == FILE_SYSTEM_TYPE:
        if not is_dead(path):
            raise UserError(f"{mountpoint} is already a PyDi mount; unmount it first")
        log.info("%s was left behind by a mount that died; replacing it", path)
        sentence = unmount_tool(name, lazy=True)
        if sentence:
            raise UserError(f"{mountpoint} is a dead mount that can't be removed: {sentence}")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"mount point {mountpoint} does not exist") from None
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise UserError(f"mount point {mountpoint} can't be used: {reason}") from exc
    if not stat.S_ISDIR(mode):
        raise UserError(f"mount point {mountpoint} is not a directory")
    return os.path.realpath(path)


def is_dead(path: str) -> bool:
    """Has the process behind this FUSE mount gone? False too if it just does not answer."""
    dead: list[bool] = []

    def probe() -> None:
        try:
            # Not stat(2): a dead mount answers that from what the kernel still remembers.
            os.statvfs(path)
        except OSError as exc:
            dead.append(exc.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    # A thread of its own and a daemon: stuck in the kernel it must not keep this process.
    thread = threading.Thread(target=probe, name="mount-probe", daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return bool(dead and dead[0])


def _mount_as_root(path: str, options: MountOptions) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _no_device(exc) from exc
    # As libfuse does by default: neither the set-user-id bits nor the device nodes of other
    # machines mean anything here.
    flags = MS_NOSUID | MS_NODEV
    if options.read_only:
        flags |= MS_RDONLY
    if options.noatime:
        flags |= MS_NOATIME
    words = [
        f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}",
        *_kernel_words(options),
    ]
    try:
        _call(
            "mount",
            os.fsencode(options.fsname),
            os.fsencode(path),
            FILE_SYSTEM_TYPE.encode(),
            ctypes.c_ulong(flags),
            ",".join(words).encode(),
        )
    except OSError as exc:
        os.close(fd)
        if exc.errno == errno.EPERM:
            raise UserError(f"no permission to mount on {path}: CAP_SYS_ADMIN is needed") from exc
        if exc.errno == errno.ENODEV:
            raise _no_device(exc) from exc
        raise UserError(f"can't mount on {path}: {exc.strerror}") from exc
    return fd


def _kernel_words(options: MountOptions) -> list[str]:
    words = [f"max_read={options.max_read}"]
    if options.allow_other:
        words.append("allow_other")
    if options.default_permissions:
        words.append("default_permissions")
    return words


def _no_device(exc: OSError) -> UserError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"no permission to open {DEVICE}")
    return UserError(f"no {DEVICE}: this kernel has no FUSE, or its module is not loaded")


async def _mount_by_helper(path: str, options: MountOptions) -> int:
    words = [*_kernel_words(options), f"subtype={SUBTYPE}"]
    # The helper splits at commas and takes a backslash for an escape.
    words.append("fsname=" + re.sub(r"([,\\])", r"\\\1", options.fsname))
    if options.read_only:
        words.append("ro")
    if options.noatime:
        words.append("noatime")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        fd = theirs.fileno()
        await _run_helper(
            ["-o", ",".join(words), "--", path],
            pass_fds=(fd,),
            environment={**os.environ, "_FUSE_COMMFD": str(fd)},
        )
        theirs.close()
        ours.setblocking(False)
        return _receive_descriptor(ours)


def _receive_descriptor(ours: socket.socket) -> int:
    """The one descriptor that the helper sent before it ended."""
    size = array.array("i").itemsize
    try:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(size))
    except BlockingIOError:
        ancillary = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= size:
            fd = int.from_bytes(data[:size], "little" if _LITTLE_ENDIAN else "big")
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            return fd
    raise UserError("fusermount3 mounted but did not hand over the device")


_LITTLE_ENDIAN = array.array("H", [1]).tobytes()[0] == 1


async def _run_helper(
    arguments: list[str],
    pass_fds: tuple[int, ...] = (),
    environment: dict[str, str] | None = None,
) -> None:
    """Run fusermount3; UserError with what it says if it fails."""
    helper = next((found for name in HELPERS if (found := shutil.which(name))), None)
    if helper is None:
        raise UserError("fusermount3 is not installed, and only root can mount without it")
    process = await asyncio.create_subprocess_exec(
        helper,
        *arguments,
        pass_fds=pass_fds,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, complaint = await asyncio.wait_for(process.communicate(), HELPER_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise UserError(f"{os.path.basename(helper)} did not end") from None
    if process.returncode:
        said = complaint.decode(errors="replace").strip()
        raise UserError(said or f"{os.path.basename(helper)} failed ({process.returncode})")


def device_number(path: str) -> int:
    """st_dev of what is mounted at ``path``; 0 if that is nothing."""
    mounted = mounted_at(os.fsencode(path))
    return 0 if mounted is None else mounted.device


def raise_read_ahead(device: int) -> None:
    """Let the kernel read ahead in whole requests, where this process may say so."""
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(f"/sys/class/bdi/{name}/read_ahead_kb", "w") as setting:
            setting.write(str(READ_AHEAD_KIB))
    except OSError as exc:
        log.debug("read-ahead stays at the kernel's default: %s", exc)


# --- unmounting -----------------------------------------------------------------------------------


async def unmount(path: str) -> bool:
    """Unmount; True if nothing uses it any more, False if it only left the tree of directories
    and goes on for the programs that are in it. Idempotent.

    The loop must go on answering requests meanwhile. UserError if it can't be done.
    """
    name = os.fsencode(path)
    if not await asyncio.to_thread(unmount_tool, name, lazy=False):
        return True
    mounted = mounted_at(name)
    if mounted is None or mounted.fstype != FILE_SYSTEM_TYPE:
        return True
    sentence = await asyncio.to_thread(unmount_tool, name, lazy=True)
    if sentence:
        raise UserError(f"can't unmount {path}: {sentence}")
    return False


def abort_connection(device: int) -> bool:
    """Last resort: end every request of this mount with ECONNABORTED, so that nothing can hang.

    device  st_dev of the mount. False if fusectl is not there or not permitted; then only the end
            of this process aborts the connection.
    """
    try:
        with open(f"/sys/fs/fuse/connections/{os.minor(device)}/abort", "w") as abort:
            abort.write("1")
    except OSError as exc:
        log.error("could not abort the FUSE connection %d: %s", os.minor(device), exc)
        return False
    return True


def _call(name: str, *arguments: object) -> None:
    """One system call by its libc wrapper; OSError with its errno."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
