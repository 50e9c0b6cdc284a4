"""POSIX access control lists: what they say, and how they keep step with the mode bits. Pure.

Called by names.py and inodes.py while they apply a command, and by check.py. A list is kept as the
extended attribute that programs see (acl(5), linux/posix_acl_xattr.h); the kernel of a mount obeys
it. The rules are those of Linux' fs/posix_acl.c:

- An access list that says no more than nine mode bits is not kept.
- The owner's and others' entries, and the mask (without one the group's entry), are the mode bits:
  who changes one changes the other.
- What is made in a directory with a default list gets that as its access list, cut by the mode that
  was asked for and not by the umask; a directory gets it as its default list, too.

``Inode.mode`` says of both lists that they are there; see `records.ACCESS_ACL`.
"""

from __future__ import annotations

import errno
import stat
import struct
from typing import Final, NamedTuple

from pydi_node.errors import FileError
from pydi_node.records import (
    ACCESS_ACL,
    ACCESS_ACL_XATTR,
    ACL_BITS_SHIFT,
    DEFAULT_ACL,
    DEFAULT_ACL_XATTR,
    ST_MODE_BITS,
)
from pydi_node.tree.store import Inode, Store

ACL_MAX_BYTES: Final = 4096  # more than that the kernel's FUSE does not read

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, id
_NO_ID: Final = 0xFFFFFFFF

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
# What may come next.
_NEXT: Final = {
    0: (_USER_OBJ,),
    _USER_OBJ: (_USER, _GROUP_OBJ),
    _USER: (_USER, _GROUP_OBJ),
    _GROUP_OBJ: (_GROUP, _MASK, _OTHER),
    _GROUP: (_GROUP, _MASK),
    _MASK: (_OTHER,),
    _OTHER: (),
}


class AclEntry(NamedTuple):
    """Who, and what they may."""

    tag: int
    permissions: int  # READ | WRITE | SEARCH
    id: int  # uid or gid of a named entry


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl:
    """The list in an attribute's value. EINVAL, and EOPNOTSUPP for another version, as Linux has
    it; E2BIG: no kernel could read it."""
    if len(value) > ACL_MAX_BYTES:
        raise FileError(errno.E2BIG)
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise FileError(errno.EINVAL)
    if _HEADER.unpack_from(value) != (_VERSION,):
        raise FileError(errno.EOPNOTSUPP)
    acl = tuple(AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :]))
    last, has_names, has_mask = 0, False, False
    for tag, permissions, number in acl:
        is_named = tag in (_USER, _GROUP)
        if tag not in _NEXT[last] or permissions > 7 or (is_named and number == _NO_ID):
            raise FileError(errno.EINVAL)
        has_names |= is_named
        has_mask |= tag == _MASK
        last = tag
    if last != _OTHER or (has_names and not has_mask):
        raise FileError(errno.EINVAL)
    return acl


def pack(acl: Acl) -> bytes:
    """``parse`` reversed; ids that say nothing are as Linux writes them."""
    entries = [
        _ENTRY.pack(tag, permissions, number if tag in (_USER, _GROUP) else _NO_ID)
        for tag, permissions, number in acl
    ]
    return _HEADER.pack(_VERSION) + b"".join(entries)


def mode_bits(acl: Acl) -> int:
    """The nine mode bits that go with an access list."""
    granted = {tag: permissions for tag, permissions, _ in acl if tag not in (_USER, _GROUP)}
    group = granted.get(_MASK, granted[_GROUP_OBJ])
    return granted[_USER_OBJ] << 6 | group << 3 | granted[_OTHER]


def with_mode_bits(acl: Acl, mode: int) -> Acl:
    """The list after chmod(2)."""
    group = _MASK if any(tag == _MASK for tag, _, _ in acl) else _GROUP_OBJ
    new = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return tuple(entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in acl)


def inherited(default: Acl, mode: int) -> Acl:
    """The access list of what is made with ``mode`` in a directory with this default list."""
    return with_mode_bits(default, mode_bits(default) & mode)


def least_bits(acl: Acl) -> int:
    """Nine mode bits that, where nobody looks at the list, give nobody more than the list does.

    Whoever the list names may be of the group's class there or of the others': neither may have
    more than any of them has.
    """
    bits = mode_bits(acl)
    least = bits >> 3 & 7
    for tag, permissions, _ in acl:
        if tag in (_USER, _GROUP_OBJ, _GROUP):
            least &= permissions
    return (bits & 0o700) | least << 3 | (bits & 7 & least)


def marks(acl: Acl) -> int:
    """What an inode's mode has above the bits of st_mode when this is its access list."""
    return ACCESS_ACL | (mode_bits(acl) & 0o77) << ACL_BITS_SHIFT


# --- changes of an amended inode ------------------------------------------------------------------


def set_access(store: Store, inode: Inode, acl: Acl) -> None:
    """The inode has this access list, and its mode says so."""
    bits = mode_bits(acl)
    kept = inode.mode & ~0o777 & (ST_MODE_BITS | DEFAULT_ACL)
    if all(tag in (_USER_OBJ, _GROUP_OBJ, _OTHER) for tag, _, _ in acl):
        remove_access(store, inode)
        inode.mode = kept | bits
        return
    store.set_xattr(inode.ino, ACCESS_ACL_XATTR, pack(acl))
    inode.mode = kept | least_bits(acl) | marks(acl)


def remove_access(store: Store, inode: Inode) -> None:
    """Without the list the mode bits count as they are shown: its mask becomes the group's bits."""
    if inode.mode & ACCESS_ACL:
        store.remove_xattr(inode.ino, ACCESS_ACL_XATTR)
        bits = inode.mode >> ACL_BITS_SHIFT & 0o77
        inode.mode = inode.mode & (ST_MODE_BITS | DEFAULT_ACL) & ~0o77 | bits


def set_default(store: Store, directory: Inode, acl: Acl) -> None:
    store.set_xattr(directory.ino, DEFAULT_ACL_XATTR, pack(acl))
    directory.mode |= DEFAULT_ACL


def remove_default(store: Store, directory: Inode) -> None:
    if directory.mode & DEFAULT_ACL:
        store.remove_xattr(directory.ino, DEFAULT_ACL_XATTR)
        directory.mode &= ~DEFAULT_ACL


def chmod(store: Store, inode: Inode, mode: int) -> None:
    """The inode has these 12 permission bits, and its access list, if it has one, agrees."""
    kept = stat.S_IFMT(inode.mode) | (inode.mode & ~ST_MODE_BITS)
    inode.mode = kept | mode
    if kept & ACCESS_ACL:
        set_access(store, inode, with_mode_bits(_list(store, inode, ACCESS_ACL_XATTR), mode))


def settle(store: Store, parent: Inode, inode: Inode, umask: int) -> None:
    """A new inode, with the mode that was asked for, gets what its directory passes on; without a
    default list there the umask counts."""
    if not parent.mode & DEFAULT_ACL:
        inode.mode &= ~umask
        return
    default = _list(store, parent, DEFAULT_ACL_XATTR)
    set_access(store, inode, inherited(default, inode.mode))
    if stat.S_ISDIR(inode.mode):
        set_default(store, inode, default)


def _list(store: Store, inode: Inode, name: bytes) -> Acl:
    value = store.xattr(inode.ino, name)
    assert value is not None, (inode, name)
    return parse(value)


# --- fsck -----------------------------------------------------------------------------------------


def disagreement(mode: int, access: bytes | None, default: bytes | None) -> str | None:
    """What is wrong between an inode's mode and its two lists; None when they agree."""
    try:
        expected = 0 if access is None else marks(parse(access))
        if default is not None:
            parse(default)
            expected |= DEFAULT_ACL
    except FileError:
        return "a list that no kernel could read"
    if mode & ~ST_MODE_BITS != expected:
        return "a mode that does not say so"
    if access is not None and mode & 0o777 != least_bits(parse(access)):
        return "a mode that grants something else"
    return None
