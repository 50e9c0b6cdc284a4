"""Advisory locks of files: fcntl(2) ranges and flock(2), with waiters in order of arrival.

The node that leads has a table of all, and a mount one of the files whose locks it gives out by
itself. A lock belongs to an owner within a session, and ends with the session at the latest. Pure:
who waits is told by a callback, deadlines and cancellations come in as ``cancel``. The two kinds
don't meet (fcntl_locking(2), "NOTES" of flock).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pydi_node.errors import FileError, NoSpaceError
from pydi_node.ids import Ino

LOCKS_PER_FILE_MAX = 65536  # ranges of one file; more is a runaway program
WAITERS_PER_FILE_MAX = 4096

# The owner in whose name a session takes a file's locks as a whole, to give them out by itself: an
# exclusive lock of all of the file towards everybody else, and nothing in the way of the session's
# own. The kernel's numbers are random: it will never meet this one.
RIGHTS_OWNER = (1 << 64) - 1

Granted = Callable[[], None]

Session = tuple[int, int]  # (node, number of the session on it)


class Owner(NamedTuple):
    """Who holds locks: they conflict only between different owners."""

    session: Session
    owner: int  # the kernel's opaque number within the session


class Lock(NamedTuple):
    """One held range; ``end`` is its last byte."""

    owner: Owner
    exclusive: bool
    start: int
    end: int
    pid: int

    def overlaps(self, start: int, end: int) -> bool:
        return self.start <= end and start <= self.end

    def excludes(self, other: Lock) -> bool:
        """Whether both can't be held at a time."""
        return (
            self.owner != other.owner
            and (self.exclusive or other.exclusive)
            and self.overlaps(other.start, other.end)
            and not (
                self.owner.session == other.owner.session
                and RIGHTS_OWNER in (self.owner.owner, other.owner.owner)
            )
        )


class _Waiter(NamedTuple):
    lock: Lock
    granted: Granted


@dataclass(slots=True)
class _File:
    """All locks of one kind on one inode."""

    locks: list[Lock] = field(default_factory=list)
    waiters: list[_Waiter] = field(default_factory=list)


Place = tuple[Ino, bool]  # (inode, whether flock)


class LockTable:
    """Locks and waiters of all files."""

    def __init__(self) -> None:
        self._files: dict[Place, _File] = {}

    def set(self, ino: Ino, flock: bool, lock: Lock) -> bool:
        """Whether the lock is held now; it replaces what its owner holds of that range.

        NoSpaceError  too many on this file.
        """
        file = self._files.setdefault((ino, flock), _File())
        if self._conflict(file, lock) is not None:
            return False
        if lock.owner.owner == RIGHTS_OWNER and file.waiters:
            return False  # what comes free is theirs
        if len(file.locks) >= LOCKS_PER_FILE_MAX:
            raise NoSpaceError("too many locks on one file")
        self._carve(file, lock.owner, lock.start, lock.end)
        file.locks.append(lock)
        # A shared lock in the place of an exclusive one may let others in.
        self._wake((ino, flock), file)
        return True

    def wait(self, ino: Ino, flock: bool, lock: Lock, granted: Granted) -> Callable[[], None]:
        """Calls ``granted`` once the lock is held. The result takes the wait back.

        FileError(EDEADLK)  (fcntl only) its holders wait, in the end, for this owner.
        NoSpaceError        too many wait for this file.
        """
        place = (ino, flock)
        file = self._files.setdefault(place, _File())
        if not flock and self._would_deadlock(lock, file):
            raise FileError(errno.EDEADLK)
        if len(file.waiters) >= WAITERS_PER_FILE_MAX:
            raise NoSpaceError("too many wait for locks on one file")
        waiter = _Waiter(lock, granted)
        file.waiters.append(waiter)

        def cancel() -> None:
            if waiter in file.waiters:
                file.waiters.remove(waiter)
                self._tidy(place)

        return cancel

    def unlock(self, ino: Ino, flock: bool, owner: Owner, start: int, end: int) -> None:
        """The owner holds nothing of that range; whoever waited for it may have it."""
        file = self._files.get((ino, flock))
        if file is not None:
            self._carve(file, owner, start, end)
            self._wake((ino, flock), file)
            self._tidy((ino, flock))

    def blocker(self, ino: Ino, flock: bool, lock: Lock) -> Lock | None:
        """The first held lock in the way of this one, by its start."""
        file = self._files.get((ino, flock))
        return None if file is None else self._conflict(file, lock)

    def rights_in_the_way(self, ino: Ino, flock: bool, lock: Lock) -> Lock | None:
        """Another session's right to give out the file's locks, if that excludes this one."""
        file = self._files.get((ino, flock))
        for held in () if file is None else self._in_the_way(file, lock):
            if held.owner.owner == RIGHTS_OWNER:
                return held
        return None

    def has_rights(self, session: Session, ino: Ino) -> bool:
        """Whether that session may give out the file's locks."""
        return any(lock.owner == Owner(session, RIGHTS_OWNER) for lock in self.locks_of(ino, False))

    def locks_of(self, ino: Ino, flock: bool) -> tuple[Lock, ...]:
        """All that is held of one file."""
        file = self._files.get((ino, flock))
        return () if file is None else tuple(file.locks)

    def end_session(self, session: Session) -> None:
        """Nothing of this session holds or waits any more."""
        self.end_sessions(lambda other: other == session)

    def end_sessions(self, ended: Callable[[Session], bool]) -> None:
        """Nothing of the sessions for which ``ended`` is true holds or waits any more."""
        for place, file in list(self._files.items()):
            file.waiters = [w for w in file.waiters if not ended(w.lock.owner.session)]
            count = len(file.locks)
            file.locks = [lock for lock in file.locks if not ended(lock.owner.session)]
            if len(file.locks) != count:
                self._wake(place, file)
            self._tidy(place)

    def held_by(self, wanted: Callable[[Session], bool]) -> Iterator[tuple[Place, Lock]]:
        """Everything that the wanted sessions hold."""
        for place, file in self._files.items():
            for lock in file.locks:
                if wanted(lock.owner.session):
                    yield place, lock

    # --- inner ------------------------------------------------------------------------------------

    @staticmethod
    def _conflict(file: _File, lock: Lock) -> Lock | None:
        found = LockTable._in_the_way(file, lock)
        return min(found, key=lambda held: held.start) if found else None

    @staticmethod
    def _carve(file: _File, owner: Owner, start: int, end: int) -> None:
        kept = []
        for lock in file.locks:
            if lock.owner != owner or not lock.overlaps(start, end):
                kept.append(lock)
                continue
            if lock.start < start:
                kept.append(lock._replace(end=start - 1))
            if lock.end > end:
                kept.append(lock._replace(start=end + 1))
        file.locks = kept

    def _wake(self, place: Place, file: _File) -> None:
        """Grants what can be granted now, first come first served among those that conflict."""
        still: list[_Waiter] = []
        granted: list[_Waiter] = []
        for waiter in file.waiters:
            # Whoever came earlier and still waits goes first, or a writer would starve.
            behind = any(
                other.lock.overlaps(waiter.lock.start, waiter.lock.end)
                and (other.lock.exclusive or waiter.lock.exclusive)
                for other in still
            )
            if behind or self._conflict(file, waiter.lock) is not None:
                still.append(waiter)
                continue
            lock = waiter.lock
            self._carve(file, lock.owner, lock.start, lock.end)
            file.locks.append(lock)
            granted.append(waiter)
        file.waiters = still
        for waiter in granted:
            waiter.granted()

    def _would_deadlock(self, lock: Lock, file: _File) -> bool:
        """Whether someone in the way waits, directly or not, for this lock's owner."""
        seen: set[Owner] = set()
        ahead = [h.owner for h in self._in_the_way(file, lock)]
        while ahead:
            owner = ahead.pop()
            if owner == lock.owner:
                return True
            if owner in seen:
                continue
            seen.add(owner)
            for (_, flock), other in self._files.items():
                if flock:
                    continue
                for waiter in other.waiters:
                    if waiter.lock.owner == owner:
                        ahead += [h.owner for h in self._in_the_way(other, waiter.lock)]
        return False

    @staticmethod
    def _in_the_way(file: _File, lock: Lock) -> list[Lock]:
        return [held for held in file.locks if held.excludes(lock)]

    def _tidy(self, place: Place) -> None:
        file = self._files.get(place)
        if file is not None and not file.locks and not file.waiters:
            del self._files[place]
