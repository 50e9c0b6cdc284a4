"""Who took POSIX locks through which handle, so that close(2) can give them back. Pure.

`dispatch` keeps it. The kernel leaves releasing fcntl locks at close to the daemon: FLUSH names the
owner (a process) whose descriptor was closed, and POSIX drops all locks of that owner on the file.
Read-only opens send no FLUSH (FOPEN_NOFLUSH); what was locked through them goes at RELEASE, the
last close of the open file. The tables are empty on a mount where nobody locks.
"""

from __future__ import annotations

from pydi_node.ids import Ino


class LockOwners:
    """One object per mount."""

    def __init__(self) -> None:
        self._owners: dict[int, dict[int, set[int]]] = {}  # inode -> handle -> owners

    def locked(self, ino: Ino, fh: int, owner: int) -> None:
        """``owner`` now holds, or waits for, a lock taken through ``fh``."""
        self._owners.setdefault(ino, {}).setdefault(fh, set()).add(owner)

    def flushed(self, ino: Ino, owner: int) -> bool:
        """Forget ``owner`` on this file. True if its locks must be released."""
        handles = self._owners.get(ino)
        if handles is None:
            return False
        found = False
        for fh, owners in list(handles.items()):
            if owner in owners:
                found = True
                owners.discard(owner)
                if not owners:
                    del handles[fh]
        if not handles:
            del self._owners[ino]
        return found

    def any_of(self, ino: int, fh: int) -> bool:
        """May somebody hold a lock through this handle?"""
        handles = self._owners.get(ino)
        return handles is not None and fh in handles

    def any_on(self, ino: Ino) -> bool:
        """May somebody hold a lock on this file?"""
        return ino in self._owners

    def released(self, ino: Ino, fh: int) -> list[int]:
        """Forget the handle. The owners whose locks must be released, ascending."""
        handles = self._owners.get(ino)
        if handles is None:
            return []
        owners = handles.pop(fh, set())
        if not handles:
            del self._owners[ino]
        return sorted(owners)
