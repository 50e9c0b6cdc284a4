"""What this mount knows of names and attributes, until someone changes it. Pure: no IO, no clock.

Everything here is true as long as the client has a lease (`Client.lease_s`; whoever reads asks for
it first) and the stream of invalidations from the node is unbroken: the client fills an answer in
at the moment it arrives, in order with the invalidations (see `client`), and drops everything when
the stream breaks. An answer may come late, after the invalidation of what it shows, because the
node holds it until everybody knows (docs/architecture.md, Leases): what was dropped since its
request left does not enter. An entry (directory, EVERY_NAME) stands for all names in there.
Reading is a dictionary lookup of immutable records, safe from any thread; all changes happen in the
loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from pydi_node.ids import Ino
from pydi_node.records import EVERY_NAME, Attr

ABSENT: Final = Ino(0)  # value of a name that is known not to exist
# The kernel's own caches end with the lease, within a second, so whoever looks at the same tree
# again and again is answered from here: a large working tree fits. Beyond that a daemon's memory
# must not follow the size of the tree that passes through it.
ATTRS_MAX = 32768  # about 600 bytes each: 20 MB
NAMES_MAX = 49152  # about 250 bytes each: 12 MB
DROPPED_AT_ONCE = 512  # by whoever needs room, who waits for that
DROPPED_MAX = 4096  # drops remembered for answers that are under way


class NameCache:
    """Attributes by inode and inode by (parent, name), each bounded; the oldest goes first."""

    def __init__(self, attrs_max: int = ATTRS_MAX, names_max: int = NAMES_MAX) -> None:
        self._attrs: dict[Ino, Attr] = {}
        self._names: dict[tuple[Ino, bytes], Ino] = {}
        self._names_in: Counter[Ino] = Counter()  # how many of them by their directory
        self._xattrs: dict[Ino, tuple[bytes, ...]] = {}
        # Told each inode whose attributes are no longer what was known before, by whomever.
        self.on_changed: Callable[[Ino], None] = lambda ino: None
        self.moment = 0  # grows with every change
        self.pushes = 0  # of them, those that were made elsewhere
        self._asked = 0  # moment in which the request left whose answer comes in now
        self._dropped: dict[Ino | tuple[Ino, bytes], int] = {}  # latest last, with its moment
        self._known_since = 0  # drops before this moment are forgotten
        self._attrs_max = attrs_max
        self._names_max = names_max

    def attr(self, ino: Ino) -> Attr | None:
        return self._attrs.get(ino)

    def name(self, parent: Ino, name: bytes) -> Ino | None:
        """The inode, ABSENT when the name is known not to exist, None when nothing is known."""
        return self._names.get((parent, name))

    def entry(self, parent: Ino, name: bytes) -> Attr | None:
        """Attributes of what has this name; None when either is not known, or there is none."""
        ino = self._names.get((parent, name))
        return self._attrs.get(ino) if ino else None

    def put_attr(self, attr: Attr) -> None:
        """Remember ``attr`` unless something newer is known."""
        if self.is_late(attr.ino):
            return
        known = self._attrs.get(attr.ino)
        if known is not None and known.changed > attr.changed:
            return
        if known is None and len(self._attrs) >= self._attrs_max:
            _drop_oldest(self._attrs)
        if known != attr:
            self.on_changed(attr.ino)
        self._attrs[attr.ino] = attr

    def put_name(self, parent: Ino, name: bytes, ino: Ino) -> None:
        key = (parent, name)
        if self.is_late(key):
            return
        if key not in self._names:
            if len(self._names) >= self._names_max:
                for gone, _ in _drop_oldest(self._names):
                    self._name_went(gone)
            self._names_in[parent] += 1
        self._names[key] = ino

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...] | None:
        """Names of all extended attributes; None when nothing is known. The kernel asks for
        security.capability before the first write to a file, and hardly any file has one."""
        return self._xattrs.get(ino)

    def put_xattr_names(self, ino: Ino, names: Iterable[bytes]) -> None:
        if self.is_late(ino):
            return
        if ino not in self._xattrs and len(self._xattrs) >= self._attrs_max:
            _drop_oldest(self._xattrs)
        self._xattrs[ino] = tuple(names)

    def drop(self, inos: Iterable[Ino], entries: Iterable[tuple[Ino, bytes]]) -> None:
        """Someone changed these; answers to what was asked before must not bring them back."""
        self.pushes += 1
        self.forget(inos, entries)
        self.note(inos, entries)

    def forget(
        self,
        inos: Iterable[Ino],
        entries: Iterable[tuple[Ino, bytes]],
        *,
        content_only: bool = False,
    ) -> None:
        """content_only  of the inodes only content and times changed, no extended attribute."""
        for ino in inos:
            self._attrs.pop(ino, None)
            self.on_changed(ino)
            if not content_only:
                self._xattrs.pop(ino, None)
        for entry in entries:
            if entry[1] == EVERY_NAME:
                self._forget_names_in(entry[0])
            elif self._names.pop(entry, None) is not None:
                self._name_went(entry[0])

    def _name_went(self, directory: Ino) -> None:
        self._names_in[directory] -= 1
        if not self._names_in[directory]:
            del self._names_in[directory]

    def _forget_names_in(self, directory: Ino) -> None:
        # All names are looked at only where there are some: most directories that others take over
        # are new.
        if self._names_in.pop(directory, 0):
            for key in [key for key in self._names if key[0] == directory]:
                del self._names[key]

    def note(self, inos: Iterable[Ino], entries: Iterable[tuple[Ino, bytes]]) -> None:
        """These changed now: only answers to later questions may enter."""
        self.moment += 1
        keys: tuple[Ino | tuple[Ino, bytes], ...] = (*inos, *entries)
        for key in keys:
            self._dropped.pop(key, None)
            self._dropped[key] = self.moment
        while len(self._dropped) > DROPPED_MAX:
            self._known_since = self._dropped.pop(next(iter(self._dropped)))

    def answers(self, asked: int) -> None:
        """What is put from now on was asked for in this moment."""
        self._asked = asked

    def is_late(self, key: Ino | tuple[Ino, bytes]) -> bool:
        """Whether it changed since the request left whose answer comes in now."""
        dropped = max(self._known_since, self._dropped.get(key, 0))
        if isinstance(key, tuple):
            dropped = max(dropped, self._dropped.get((key[0], EVERY_NAME), 0))
        return self._asked < dropped

    def clear(self) -> None:
        self.pushes += 1
        self.moment += 1
        self._known_since = self.moment
        self._dropped.clear()
        self._attrs.clear()
        self._names.clear()
        self._names_in.clear()
        self._xattrs.clear()


def _drop_oldest(table: dict[Any, Any]) -> list[Any]:
    """Make room for some hundreds at once: one pass over the oldest, not one per insertion. The
    keys that are gone."""
    oldest = list(islice(table, max(min(len(table) // 8, DROPPED_AT_ONCE), 1)))
    for key in oldest:
        del table[key]
    return oldest
