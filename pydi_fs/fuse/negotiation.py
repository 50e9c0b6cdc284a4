"""The INIT handshake: what the kernel offers against what PyDi wants. Pure.

Called by `dispatch` with the kernel's INIT; the answer fixes the rules of the whole mount.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from pydi_fs.fuse import abi
from pydi_fs.fuse.abi import InitFlag
from pydi_fs.fuse.codec import Init
from pydi_node.errors import FileError

MIB = 1 << 20
PAGE_BYTES = 4096

MAX_WRITE_BYTES = 1 * MIB
MAX_PAGES = MAX_WRITE_BYTES // PAGE_BYTES
# Room for one WRITE of the largest size and its headers; the kernel refuses to be read with less.
REQUEST_MAX_BYTES = MAX_WRITE_BYTES + PAGE_BYTES
MAX_READAHEAD_BYTES = 1 * MIB
# Requests that no program waits for (read-ahead, RELEASE) in flight at a time; the kernel's own
# default of 12 stalls read-ahead of a few parallel readers of remote blobs.
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = MAX_BACKGROUND * 3 // 4  # the kernel's own ratio
TIME_GRANULARITY_NS = 1

WANTED = (
    InitFlag.FUSE_ASYNC_READ  # several READs of one file at a time
    | InitFlag.FUSE_POSIX_LOCKS  # fcntl locks hold across machines
    | InitFlag.FUSE_FLOCK_LOCKS  # flock too
    | InitFlag.FUSE_ATOMIC_O_TRUNC  # OPEN truncates: one request and one version, not two
    | InitFlag.FUSE_EXPORT_SUPPORT  # node ids are permanent and "." and ".." can be looked up
    | InitFlag.FUSE_BIG_WRITES
    | InitFlag.FUSE_DO_READDIRPLUS
    | InitFlag.FUSE_READDIRPLUS_AUTO  # plain READDIR where nobody stats the entries
    | InitFlag.FUSE_ASYNC_DIO
    | InitFlag.FUSE_PARALLEL_DIROPS  # lookups in one directory do not wait for each other
    | InitFlag.FUSE_ABORT_ERROR  # tells an aborted mount (ECONNABORTED) from an unmounted one
    | InitFlag.FUSE_MAX_PAGES
    | InitFlag.FUSE_CACHE_SYMLINKS
    | InitFlag.FUSE_EXPLICIT_INVAL_DATA
    | InitFlag.FUSE_HANDLE_KILLPRIV_V2
    | InitFlag.FUSE_INIT_EXT
    | InitFlag.FUSE_HAS_RESEND  # another process can go on with this mount
)
# Blobs lie on a file system that is not stacked itself; then an overlayfs can still be stacked on
# the mount. With 2 it would be the other way round.
STACK_DEPTH = 1

# EXPLICIT_INVAL_DATA and not AUTO_INVAL_DATA: with AUTO the kernel drops cached content whenever it
# sees another mtime. utimes(2) makes that drop too much (and every write of our own does), and two
# versions with one mtime (rsync -t, touch -r) make it keep what is stale. Close-to-open needs the
# exact version, which OPEN compares (`page_cache`), plus the explicit invalidations of `notify`.
#
# HANDLE_KILLPRIV_V2 makes `dispatch` clear set-user-id bits, and in exchange the kernel asks for
# security.capability once per inode and not before each write.
#
# Left out on purpose: WRITEBACK_CACHE (the kernel would own size and mtime against remote changes,
# and it excludes passthrough), NO_OPEN_SUPPORT (OPEN is where versions are compared), SPLICE_*
# (measured: not worth their pipes).

# Where the kernel checks permissions it obeys access control lists, too. Only the tree knows
# whether a directory has a default list, and so whether the umask counts.
WANTED_FOR_ACLS = (
    InitFlag.FUSE_POSIX_ACL
    | InitFlag.FUSE_DONT_MASK
    | InitFlag.FUSE_SETXATTR_EXT  # says who may not keep a set-group-id bit
)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What both sides agreed on."""

    minor: int  # the smaller of the two minor versions
    flags: InitFlag
    reply: bytes  # struct fuse_init_out

    @property
    def has_epoch(self) -> bool:
        """Can all names be made stale at once without blocking?"""
        return self.minor >= abi.MINOR_INC_EPOCH

    @property
    def has_resend(self) -> bool:
        """Does the kernel send unanswered requests again to a process that takes over?"""
        return bool(self.flags & InitFlag.FUSE_HAS_RESEND)

    @property
    def has_passthrough(self) -> bool:
        """May OPEN be answered with a file for the kernel to read by itself?"""
        return bool(self.flags & InitFlag.FUSE_PASSTHROUGH)


def negotiate(init: Init, passthrough: bool = False, acls: bool = False) -> Negotiated | bytes:
    """The agreement, or only an answer if the kernel must ask again with our major version.

    passthrough  ask for it, where the kernel has it (Linux 6.9).
    acls         ask it to obey access control lists; it then checks all permissions.

    FileError(EPROTO)  the kernel is too old; it refuses the mount.
    """
    if init.major > abi.FUSE_KERNEL_VERSION:
        return abi.fuse_init_out.pack(abi.FUSE_KERNEL_VERSION, *(0 for _ in range(12)))
    if init.major < abi.FUSE_KERNEL_VERSION or init.minor < abi.MINOR_MIN:
        raise FileError(errno.EPROTO, f"FUSE {init.major}.{init.minor} is older than 7.31")
    minor = min(init.minor, abi.FUSE_KERNEL_MINOR_VERSION)
    wanted = WANTED
    if passthrough:
        wanted |= InitFlag.FUSE_PASSTHROUGH
    # All of them or none: a kernel without the last (before 5.12) could leave a privilege behind.
    if acls and InitFlag(init.flags) & WANTED_FOR_ACLS == WANTED_FOR_ACLS:
        wanted |= WANTED_FOR_ACLS
    flags = InitFlag(init.flags) & wanted
    reply = abi.fuse_init_out.pack(
        abi.FUSE_KERNEL_VERSION,
        minor,
        min(init.max_readahead, MAX_READAHEAD_BYTES),
        flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        MAX_WRITE_BYTES,
        TIME_GRANULARITY_NS,
        MAX_PAGES if flags & InitFlag.FUSE_MAX_PAGES else 0,
        0,
        flags >> 32,
        STACK_DEPTH if flags & InitFlag.FUSE_PASSTHROUGH else 0,
        0,
    )
    return Negotiated(minor, flags, reply)
