"""What requests of the kernel say, as the file system takes it. Called by `dispatch` only."""

from __future__ import annotations

import errno
import os
import stat

from pydi_fs.fuse import abi
from pydi_node.commands import TIME_NOW
from pydi_node.errors import FileError
from pydi_node.ids import INT64_MAX
from pydi_node.records import Attr


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
