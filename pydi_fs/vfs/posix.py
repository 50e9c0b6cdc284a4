"""Numbers and rules of POSIX and Linux that need no state."""

from __future__ import annotations

import os
import stat

from pydi_node import portable
from pydi_node.commands import Caller
from pydi_node.records import Attr
from pydi_node.wire.messages import LockKind

# fallocate(2) modes
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

LOCK_KINDS = {
    portable.F_RDLCK: LockKind.SHARED,
    portable.F_WRLCK: LockKind.EXCLUSIVE,
    portable.F_UNLCK: LockKind.UNLOCK,
}
LOCK_NUMBERS = {kind: number for number, kind in LOCK_KINDS.items()}

# F_SETLKW waits until the lock is free or the program is interrupted, by contract of fcntl(2).
WAIT_FOREVER_S = 365.0 * 86400


def permitted(attr: Attr, caller: Caller, mask: int) -> bool:
    """access(2) where the kernel does not check: R_OK, W_OK, X_OK of ``mask``, all of them."""
    if mask == os.F_OK:
        return True
    if caller.uid == 0:
        executable = stat.S_ISDIR(attr.mode) or attr.mode & 0o111
        return not mask & os.X_OK or bool(executable)
    if caller.uid == attr.uid:
        bits = attr.mode >> 6
    elif attr.gid == caller.gid or attr.gid in (caller.groups or ()):
        bits = attr.mode >> 3
    else:
        bits = attr.mode
    return bits & 7 & mask == mask
