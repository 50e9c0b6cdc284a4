"""Commands on an inode itself: attributes and extended attributes.

Same contract as names.py: check everything, then change, FileError changed nothing. Order and rules
of the checks: Linux' setattr_prepare (fs/attr.c) and xattr(7).
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from pydi_node.commands import (
    TIME_NOW,
    XATTR_CREATE,
    XATTR_KILL_SGID,
    XATTR_REPLACE,
    Caller,
    RemoveXattr,
    SetAttr,
    SetXattr,
)
from pydi_node.errors import FileError
from pydi_node.ids import Ino, TimeNs
from pydi_node.records import (
    ACL_XATTRS,
    DEFAULT_ACL_XATTR,
    FACTOR_XATTR,
    XATTR_NAME_MAX_BYTES,
    XATTR_VALUE_MAX_BYTES,
    Result,
    Touched,
    acl_mode,
)
from pydi_node.tree import acl, extents
from pydi_node.tree.factors import parse_factor
from pydi_node.tree.permissions import (
    WRITE,
    is_member,
    require_access,
    require_inode,
    require_owner,
)
from pydi_node.tree.store import Inode, Store

XATTR_LIST_MAX_BYTES: Final = 65536  # listxattr(2) could not show more

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


def setattr_(store: Store, command: SetAttr) -> Result:
    inode = require_inode(store, command.ino)
    _check_setattr(inode, command)
    given = (command.mode, command.uid, command.gid, command.size, command.mtime_ns)
    if all(value is None for value in given):
        if command.atime_ns is None:
            return Result(0, inode.attr())
        store.touch(inode)
    elif stat.S_ISDIR(inode.mode) and all(value is None for value in given[:4]):
        store.touch(inode)
    else:
        store.amend(inode)
    _set_owner_and_mode(store, inode, command)
    if command.size is not None:
        resize(store, inode, command.size)
        drop_set_id_bits(inode, command.caller)
    now = store.now_ns
    if command.atime_ns is not None:
        inode.atime_ns = time_or_now(command.atime_ns, now)
    if command.mtime_ns is not None:
        inode.mtime_ns = time_or_now(command.mtime_ns, now)
    inode.ctime_ns = now
    return Result(0, inode.attr(), Touched((inode.ino,)))


def setxattr(store: Store, command: SetXattr) -> Result:
    inode = require_inode(store, command.ino)
    if command.name in ACL_XATTRS:
        return _set_acl(store, inode, command)
    _check_xattr(inode, command.name, command.caller)
    if command.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise FileError(errno.EINVAL)
    if len(command.value) > XATTR_VALUE_MAX_BYTES:
        raise FileError(errno.E2BIG)
    if store.has_xattr(inode.ino, command.name):
        if command.flags == XATTR_CREATE:
            raise FileError(errno.EEXIST)
    elif command.flags == XATTR_REPLACE:
        raise FileError(errno.ENODATA)
    else:
        names = [*store.xattr_names(inode.ino), command.name]
        if sum(len(name) + 1 for name in names) > XATTR_LIST_MAX_BYTES:
            raise FileError(errno.ENOSPC)
    if command.name == FACTOR_XATTR:
        factor = parse_factor(command.value)
        if factor is None or not stat.S_ISDIR(inode.mode):
            raise FileError(errno.EINVAL)
        store.set_factor(inode.ino, factor)
    store.set_xattr(inode.ino, command.name, command.value)
    return _xattrs_changed(store, inode)


def removexattr(store: Store, command: RemoveXattr) -> Result:
    inode = require_inode(store, command.ino)
    if command.name in ACL_XATTRS:
        return _remove_acl(store, inode, command)
    _check_xattr(inode, command.name, command.caller)
    if not store.has_xattr(inode.ino, command.name):
        raise FileError(errno.ENODATA)
    store.remove_xattr(inode.ino, command.name)
    if command.name == FACTOR_XATTR:
        store.set_factor(inode.ino, None)
    return _xattrs_changed(store, inode)


def _set_acl(store: Store, inode: Inode, command: SetXattr) -> Result:
    """vfs_set_acl of Linux, which knows no XATTR_CREATE and XATTR_REPLACE here."""
    if stat.S_ISLNK(inode.mode):
        raise FileError(errno.EOPNOTSUPP)
    require_owner(inode, command.caller)
    is_default = command.name == DEFAULT_ACL_XATTR
    if is_default and not stat.S_ISDIR(inode.mode):
        raise FileError(errno.EACCES)
    given = acl.parse(command.value)
    result = _xattrs_changed(store, inode)
    if is_default:
        acl.set_default(store, inode, given)
        return result
    acl.set_access(store, inode, given)
    if command.flags & XATTR_KILL_SGID or not is_member(command.caller, inode.gid):
        inode.mode &= ~stat.S_ISGID
    return result


def _remove_acl(store: Store, inode: Inode, command: RemoveXattr) -> Result:
    """As on ext4, it is no error when there is none."""
    if stat.S_ISLNK(inode.mode):
        raise FileError(errno.EOPNOTSUPP)
    require_owner(inode, command.caller)
    result = _xattrs_changed(store, inode)
    if command.name == DEFAULT_ACL_XATTR:
        acl.remove_default(store, inode)
    else:
        acl.remove_access(store, inode)
    return result


# --- shared with content.py -----------------------------------------------------------------------


def require_regular(inode: Inode) -> None:
    """FileError(EISDIR) for a directory, FileError(EINVAL) for anything else without content."""
    if stat.S_ISDIR(inode.mode):
        raise FileError(errno.EISDIR)
    if not stat.S_ISREG(inode.mode):
        raise FileError(errno.EINVAL)


def resize(store: Store, inode: Inode, size: int) -> None:
    """The amended regular file has this size: cut, or extended with a hole; a new version."""
    if size < inode.size:
        old = store.extents(inode.ino, start=size)
        store.replace_extents(inode, old, extents.cut([stored.extent for stored in old], size))
    inode.size = size
    inode.version = store.index
    inode.mtime_ns = store.now_ns


def drop_set_id_bits(inode: Inode, caller: Caller) -> None:
    """Content or owner of the amended file changed by somebody else than root: it runs as nobody
    special any more. Set-group-id without group execution is no privilege but the mark of
    mandatory locking, and stays for members of the group: setattr_should_drop_sgid of Linux."""
    if caller.uid == 0 or stat.S_ISDIR(inode.mode):
        return
    inode.mode &= ~stat.S_ISUID
    if acl_mode(inode.mode) & stat.S_IXGRP or not is_member(caller, inode.gid):
        inode.mode &= ~stat.S_ISGID


def time_or_now(time_ns: int, now_ns: TimeNs) -> TimeNs:
    return now_ns if time_ns == TIME_NOW else TimeNs(time_ns)


# --- checks ---------------------------------------------------------------------------------------


def _check_setattr(inode: Inode, command: SetAttr) -> None:
    caller = command.caller
    if command.size is not None:
        require_regular(inode)
    if command.uid is not None and caller.uid != 0:
        require_owner(inode, caller)
        if command.uid != inode.uid:
            raise FileError(errno.EPERM)
    if command.gid is not None and caller.uid != 0:
        require_owner(inode, caller)
        if command.gid != inode.gid and not is_member(caller, command.gid):
            raise FileError(errno.EPERM)
    if command.mode is not None:
        if stat.S_ISLNK(inode.mode):
            raise FileError(errno.EOPNOTSUPP)
        require_owner(inode, caller)
    times = [time for time in (command.atime_ns, command.mtime_ns) if time is not None]
    if any(time != TIME_NOW for time in times):
        require_owner(inode, caller)
    elif times and caller.uid != inode.uid:
        require_access(inode, caller, WRITE)  # touch(1) by somebody who may write
    if command.size is not None:
        require_access(inode, caller, WRITE)


def _set_owner_and_mode(store: Store, inode: Inode, command: SetAttr) -> None:
    """Owner first: a mode given with it is what the caller wants to end up with."""
    caller = command.caller
    if command.uid is not None or command.gid is not None:
        drop_set_id_bits(inode, caller)
    if command.uid is not None:
        inode.uid = command.uid
    if command.gid is not None:
        inode.gid = command.gid
    if command.mode is not None:
        mode = command.mode
        if not is_member(caller, inode.gid):
            mode &= ~stat.S_ISGID
        acl.chmod(store, inode, mode)


def _check_xattr(inode: Inode, name: bytes, caller: Caller) -> None:
    if not 1 <= len(name) <= XATTR_NAME_MAX_BYTES:
        raise FileError(errno.ERANGE)
    namespace = next((n for n in _NAMESPACES if name.startswith(n) and name != n), None)
    if namespace is None:
        raise FileError(errno.EOPNOTSUPP)
    if namespace == b"user.":
        if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
            raise FileError(errno.EPERM)
        if stat.S_ISDIR(inode.mode) and inode.mode & stat.S_ISVTX:
            require_owner(inode, caller)
        require_access(inode, caller, WRITE)
    elif caller.groups is not None and caller.uid != 0:
        raise FileError(errno.EPERM)


def _xattrs_changed(store: Store, inode: Inode) -> Result:
    store.amend(inode)
    inode.ctime_ns = store.now_ns
    return Result(0, None, Touched((Ino(inode.ino),)))
