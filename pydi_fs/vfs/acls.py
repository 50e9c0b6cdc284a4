"""POSIX access control lists on a mount whose kernel obeys them, and on one whose does not. Pure.

For the bindings. A kernel that obeys them asks for the lists as extended attributes, remembers them
as long as the inode's attributes, and decides itself; the tree keeps lists and mode bits in step.
Where it does not, nobody looks at lists: they can't be seen or set, and the mode that is shown
grants no more than they do.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from pydi_node.errors import FileError
from pydi_node.records import (
    ACCESS_ACL,
    ACCESS_ACL_XATTR,
    ACL_XATTRS,
    DEFAULT_ACL,
    ST_MODE_BITS,
    Attr,
    acl_mode,
)

# Of linux/posix_acl_xattr.h: a version, then (tag, permissions, id) of owner, group, others.
_PLAIN: Final = struct.Struct("<I HHI HHI HHI")
_PLAIN_TAGS: Final = (2, 1, 4, 32)


def shown(attr: Attr, obeyed: bool) -> Attr:
    """The attributes as the kernel gets them.

    obeyed  it obeys access control lists.
    """
    if attr.mode <= ST_MODE_BITS:
        return attr
    return attr._replace(mode=acl_mode(attr.mode) if obeyed else attr.mode & ST_MODE_BITS)


def require_known(name: bytes, attr: Attr | None, obeyed: bool) -> None:
    """FileError when it is plain what a question for this extended attribute gives.

    attr  what is known of the inode, whose mode says which lists there are.
    """
    if name not in ACL_XATTRS:
        return
    if not obeyed:
        raise FileError(errno.EOPNOTSUPP)
    mark = ACCESS_ACL if name == ACCESS_ACL_XATTR else DEFAULT_ACL
    if attr is not None and not attr.mode & mark:
        raise FileError(errno.ENODATA)  # cp -p, mv and ls ask for it on every file


def seen(names: list[bytes], obeyed: bool) -> list[bytes]:
    """Of an inode's extended attributes those that the mount shows."""
    return names if obeyed else [name for name in names if name not in ACL_XATTRS]


def plain_bits(value: bytes) -> int | None:
    """The nine mode bits that are all that an access list says; None: it says more, or nothing
    that is a list."""
    if len(value) != _PLAIN.size:
        return None
    version, owner_tag, owner, _, group_tag, group, _, others_tag, others, _ = _PLAIN.unpack(value)
    if (version, owner_tag, group_tag, others_tag) != _PLAIN_TAGS or max(owner, group, others) > 7:
        return None
    return int(owner << 6 | group << 3 | others)
