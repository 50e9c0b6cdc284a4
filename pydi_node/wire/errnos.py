"""Numbers of errors on the wire: those of Linux, whatever the system at either end calls them.

Used by `failures` and `messages` for what arrives; nodes run on Linux, so what they send is right.
ENOTEMPTY is 39 on Linux, 66 on macOS and 41 on Windows, where a client must not take a node's 39
for another error. Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

# Every error that the tree, a node or a client decides on, and what a node's disk may answer.
ON_WIRE: Mapping[str, int] = {
    "EPERM": 1, "ENOENT": 2, "EINTR": 4, "EIO": 5, "ENXIO": 6, "E2BIG": 7, "EBADF": 9,
    "EAGAIN": 11, "ENOMEM": 12, "EACCES": 13, "EFAULT": 14, "EBUSY": 16, "EEXIST": 17, "EXDEV": 18,
    "ENODEV": 19, "ENOTDIR": 20, "EISDIR": 21, "EINVAL": 22, "ENFILE": 23, "EMFILE": 24,
    "ENOTTY": 25, "ETXTBSY": 26, "EFBIG": 27, "ENOSPC": 28, "ESPIPE": 29, "EROFS": 30, "EMLINK": 31,
    "EPIPE": 32, "EDOM": 33, "ERANGE": 34, "EDEADLK": 35, "ENAMETOOLONG": 36, "ENOLCK": 37,
    "ENOSYS": 38, "ENOTEMPTY": 39, "ELOOP": 40, "ENODATA": 61, "ETIME": 62, "EPROTO": 71,
    "EBADMSG": 74, "EOVERFLOW": 75, "EOPNOTSUPP": 95, "ETIMEDOUT": 110, "ECONNREFUSED": 111,
    "ESTALE": 116, "EDQUOT": 122, "ECANCELED": 125,
}  # fmt: skip


def differing(numbers: Mapping[str, int]) -> dict[int, int]:
    """Number on the wire -> here, for a system with these ``numbers`` by name; only where they
    differ. EIO stands for an error that the system does not know."""
    return {
        number: numbers.get(name, numbers["EIO"])
        for name, number in ON_WIRE.items()
        if numbers.get(name) != number
    }


_DIFFERING = differing({name: getattr(errno, name) for name in dir(errno) if name.startswith("E")})


def from_wire(number: int) -> int:
    """A peer's number as this system's."""
    return _DIFFERING.get(number, number)
