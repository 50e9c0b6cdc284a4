"""What this mount knows of names and attributes, until someone changes it. Pure: no IO, no clock.

Everything here is true as long as the stream of invalidations from the node is unbroken: the client
fills an answer in at the moment it arrives, in order with the invalidations (see `client`), and
drops everything when the stream breaks. Reading is a dictionary lookup of immutable records, safe
from any thread; all changes happen in the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydi_node.ids import Ino
from pydi_node.records import Attr

ABSENT: Final = Ino(0)  # value of a name that is known not to exist
# Small on purpose: the kernel's own caches come first, and a daemon's memory must not follow the
# size of the tree that passes through it.
ATTRS_MAX = 4096  # about 600 bytes each: 2.5 MB
NAMES_MAX = 8192  # about 250 bytes each: 2 MB


class NameCache:
    """Attributes by inode and inode by (parent, name), each bounded; the oldest goes first."""

    def __init__(self, attrs_max: int = ATTRS_MAX, names_max: int = NAMES_MAX) -> None:
        self._attrs: dict[Ino, Attr] = {}
        self._names: dict[tuple[Ino, bytes], Ino] = {}
        self._xattrs: dict[Ino, tuple[bytes, ...]] = {}
        self._attrs_max = attrs_max
        self._names_max = names_max

    def attr(self, ino: Ino) -> Attr | None:
        return self._attrs.get(ino)

    def name(self, parent: Ino, name: bytes) -> Ino | None:
        """The inode, ABSENT when the name is known not to exist, None when nothing is known."""
        return self._names.get((parent, name))

    def put_attr(self, attr: Attr) -> None:
        """Remember ``attr`` unless something newer is known."""
        known = self._attrs.get(attr.ino)
        if known is not None and known.changed > attr.changed:
            return
        if known is None and len(self._attrs) >= self._attrs_max:
            _drop_oldest(self._attrs)
        self._attrs[attr.ino] = attr

    def put_name(self, parent: Ino, name: bytes, ino: Ino) -> None:
        key = (parent, name)
        if key not in self._names and len(self._names) >= self._names_max:
            _drop_oldest(self._names)
        self._names[key] = ino

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...] | None:
        """Names of all extended attributes; None when nothing is known. The kernel asks for
        security.capability before the first write to a file, and hardly any file has one."""
        return self._xattrs.get(ino)

    def put_xattr_names(self, ino: Ino, names: Iterable[bytes]) -> None:
        if ino not in self._xattrs and len(self._xattrs) >= self._attrs_max:
            _drop_oldest(self._xattrs)
        self._xattrs[ino] = tuple(names)

    def drop(self, inos: Iterable[Ino], entries: Iterable[tuple[Ino, bytes]]) -> None:
        for ino in inos:
            self._attrs.pop(ino, None)
            self._xattrs.pop(ino, None)
        for entry in entries:
            self._names.pop(entry, None)

    def clear(self) -> None:
        self._attrs.clear()
        self._names.clear()
        self._xattrs.clear()


def _drop_oldest(table: dict[Any, Any]) -> None:
    """Make room for an eighth at once: one pass over the oldest, not one per insertion."""
    keys = iter(table)
    oldest = [next(keys) for _ in range(max(len(table) // 8, 1))]
    for key in oldest:
        del table[key]
