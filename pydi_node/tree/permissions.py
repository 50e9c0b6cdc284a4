"""Checks that commands of all subjects share: does the inode exist, may the caller do this to it.

Who may do what is decided as Linux does.

A caller with ``groups=None`` was checked by its kernel (default_permissions): mode bits are not
looked at again. Ownership and the sticky bit are checked always.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from pydi_node.commands import Caller
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.tree.store import Inode, Store

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1


def require_inode(store: Store, ino: Ino) -> Inode:
    """The inode's row; FileError(ENOENT) without it."""
    inode = store.inode(ino)
    if inode is None:
        raise FileError(errno.ENOENT)
    return inode


def is_member(caller: Caller, gid: int) -> bool:
    """Whether the caller is root or in this group; True when its kernel has checked it."""
    return caller.groups is None or caller.uid == 0 or gid == caller.gid or gid in caller.groups


def require_access(inode: Inode, caller: Caller, wanted: int) -> None:
    """FileError(EACCES) unless the mode bits allow ``wanted`` (READ | WRITE | SEARCH)."""
    if caller.groups is None or caller.uid == 0:
        return
    mode = inode.mode
    if caller.uid == inode.uid:
        granted = mode >> 6
    elif is_member(caller, inode.gid):
        granted = mode >> 3
    else:
        granted = mode
    if wanted & ~granted & 7:
        raise FileError(errno.EACCES)


def require_owner(inode: Inode, caller: Caller) -> None:
    """FileError(EPERM) unless the caller owns the inode or is root."""
    if caller.uid not in (0, inode.uid):
        raise FileError(errno.EPERM)


def require_not_sticky(directory: Inode, victim: Inode, caller: Caller) -> None:
    """FileError(EPERM) when a sticky directory keeps the caller from removing ``victim``."""
    if directory.mode & stat.S_ISVTX and caller.uid not in (0, victim.uid, directory.uid):
        raise FileError(errno.EPERM)
