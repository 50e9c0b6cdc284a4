"""Inodes that nobody but this mount can know of: made here, in a directory that is delegated to it
since, and there under their only name. Pure; kept by `delegations`, for `changes`.

Who has never seen a name of an inode has no attributes of it either. So what changes these may be
told later, as a change of a name may.
"""

from __future__ import annotations

from typing import Final

from pydi_node.ids import Ino

MADE_MAX: Final = 65536  # some 200 bytes each


class MadeHere:
    """See the module."""

    def __init__(self) -> None:
        self._parents: dict[Ino, Ino] = {}  # the oldest first
        self._made: dict[Ino, set[Ino]] = {}  # by directory

    def parent_of(self, ino: Ino) -> Ino | None:
        """The directory that it is in; None: others may know of it."""
        return self._parents.get(ino)

    def note(self, parent: Ino, ino: Ino) -> None:
        """It has its one name in there."""
        if len(self._parents) >= MADE_MAX:
            self.forget(next(iter(self._parents)))
        self._parents[ino] = parent
        self._made.setdefault(parent, set()).add(ino)

    def moved(self, new_parent: Ino, ino: Ino) -> None:
        """Its name is one in there now, if it had none that others know."""
        if self._parents.get(ino, new_parent) != new_parent:
            self.forget(ino)
            self.note(new_parent, ino)

    def forget(self, ino: Ino) -> None:
        """Others may know of it, or it is gone."""
        parent = self._parents.pop(ino, None)
        if parent is None:
            return
        made = self._made[parent]
        made.discard(ino)
        if not made:
            del self._made[parent]

    def forget_named(self, parent: Ino, ino: Ino | None) -> None:
        """A name in there is taken from it, or, if that is None, from one of those."""
        if ino is None:
            self.forget_in(parent)
        else:
            self.forget(ino)

    def forget_in(self, parent: Ino) -> None:
        """Others may look into this directory."""
        for ino in self._made.pop(parent, ()):
            del self._parents[ino]
