"""What requests of the kernel say, as the file system takes it. Called by `dispatch` only."""

from __future__ import annotations

import errno
import os
import stat

from pydi_fs.fuse import abi, codec
from pydi_node.commands import TIME_NOW
from pydi_node.errors import FileError
from pydi_node.ids import INT64_MAX
from pydi_node.records import Attr

# cp -p, mv and ls ask for these on every file; PyDi has no ACLs, and to store them without obeying
# them would be a lie.
POSIX_ACL_XATTRS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))


def writes(flags: int) -> bool:
    """Do these flags of open(2) let the program change the content?"""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def fh_in(payload: bytes) -> int:
    """The handle in an answer to OPEN, OPENDIR, CREATE or TMPFILE: it ends with fuse_open_out."""
    fh: int = abi.fuse_open_out.unpack_from(payload, len(payload) - abi.fuse_open_out.size)[0]
    return fh


def size(value: int) -> int:
    """An offset or size that off_t can hold, or EINVAL."""
    if value > INT64_MAX:
        raise FileError(errno.EINVAL, "beyond off_t")
    return value


def time(valid: int, given: int, now: int, time_ns: int) -> int | None:
    if valid & now:
        return TIME_NOW
    return time_ns if valid & given else None


def sized(value: bytes, size: int) -> bytes:
    """The answer to getxattr(2) and listxattr(2) for a buffer of ``size`` bytes."""
    if size == 0:
        return codec.encode_xattr_size(len(value))
    if len(value) > size:
        raise FileError(errno.ERANGE)
    return value


def groups_of(pid: int) -> tuple[int, ...]:
    """Supplementary groups of a process; none if it is gone or in a foreign pid namespace."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(int(group) for group in line.split()[1:])
    except OSError:
        pass  # fewer groups only refuse more
    return ()


def mode_without_set_id(attr: Attr) -> int | None:
    """The permission bits that chown, truncate and write leave; None if nothing changes.

    Set-group-id without group execution is no privilege but an old locking mark: it stays.
    Source: chown(2), inode_drop_sgid in Linux.
    """
    kill = stat.S_ISUID
    if attr.mode & stat.S_IXGRP:
        kill |= stat.S_ISGID
    if not attr.is_regular or not attr.mode & kill:
        return None
    return attr.mode & 0o7777 & ~kill
