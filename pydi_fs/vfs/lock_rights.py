"""Record locks of files that only programs on this machine lock, given out without a question.

Called by `vfs.Vfs` only; runs in the loop. Theory of operation (docs/architecture.md, Locks):

    asked ──(nobody here holds one, ASK_AFTER questions)──► turning ──granted──► local
      ▲                                                        ▲                   │
      └───────(held locks told, the right given back)──────────┴───────────────────┘
                        others want one, the stream breaks, no lease, a program has to wait

*Asked*: every lock is a question to the cluster. *Local*: the cluster keeps the whole file for this
mount (`locks.RIGHTS_OWNER`), and a table here says who holds what. *Turning*: between the two, and
whoever wants a lock waits. To everybody else the right is an exclusive lock on all of the file,
which is there before the first lock is given out here, and goes only after those that programs
still hold have been told. So what breaks on the way keeps others out, and lets nobody in.

 * Nothing is given out here without a live lease, on the connection on which the right was granted:
   a node takes a right away when it was not given back long after any lease is over.
 * Whoever must wait for another program here waits at the cluster, which knows of deadlocks.
 * A file of which it is not certain who holds what at the cluster stays asked until it is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from pydi_fs.client import Client
from pydi_fs.vfs.journal import Right, State
from pydi_fs.vfs.journalling import Journal
from pydi_node.errors import DeadlineError, FileError, PydiError
from pydi_node.ids import INT64_MAX, Ino
from pydi_node.locks import RIGHTS_OWNER, Lock, LockTable, Owner, Session
from pydi_node.wire.messages import GetLock, LockHolder, LockKind, SetLock

log = logging.getLogger("pydi.vfs")

ASK_AFTER = 6  # questions: one program that locks, works and unlocks asks less
# Somebody else locks it, too: asking for it would only slow both down. Doubled at each time.
AGAIN_MIN_S = 5.0
AGAIN_MAX_S = 600.0
RETRY_S = 0.5
# After this mount went to another node, its locks at the old one are in its own way for as long.
TOLD_WITHIN_S = 12.0

_HERE: Final[Session] = (0, 0)  # all owners here are of one session
_Locks = set[Lock]


class _File:
    """One file that programs here lock."""

    __slots__ = (
        "again_s", "epoch", "is_closed", "is_local", "is_sure", "not_before_s", "questions",
        "turning", "under_way", "unlocks", "untouched",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_local = False
        self.is_closed = False  # no program has it open
        self.epoch = 0  # of the client in which it became local
        self.turning: asyncio.Task[None] | None = None
        self.untouched = True  # by others, since the right was asked for
        self.is_sure = True  # the table has what programs hold
        self.questions = 0  # since the right was given back
        self.under_way = 0  # of them
        self.unlocks = 0  # while it was turning
        self.not_before_s = 0.0
        self.again_s = 0.0  # the last wait


class LockRights:
    """See the module.

    enabled  False: every lock is a question.
    """

    def __init__(self, client: Client, journal: Journal, *, enabled: bool) -> None:
        self._client = client
        self._journal = journal
        self._enabled = enabled
        self._table = LockTable()
        self._files: dict[Ino, _File] = {}

    def restore(self, state: State) -> None:
        """Go on with what the worker before this one had; before the client connects. What was held
        at the cluster is not known here."""
        for lock in state.locks:
            self._file(Ino(lock.ino)).is_sure = False
        for right in state.rights.values():
            ino = Ino(right.ino)
            for owner, exclusive, start, end, pid in right.locks:
                self._table.set(ino, False, Lock(Owner(_HERE, owner), exclusive, start, end, pid))
            self._file(ino).is_local = True  # in no epoch: it is given back

    def start(self) -> None:
        """Once the client is there: what the worker before this one had is given back."""
        self.reset()

    async def stop(self) -> None:
        """Nothing is given out any more; locks end with the session."""
        self._enabled = False
        turning = [file.turning for file in self._files.values() if file.turning is not None]
        for task in turning:
            task.cancel()
        if turning:
            await asyncio.wait(turning)

    # --- what programs want ----------------------------------------------------------------------

    def set_nowait(self, request: SetLock) -> bool | None:
        """As `set` where that needs no question; None: it does."""
        file = self._files.get(request.ino)
        if file is None or request.flock or not self._may_answer(file):
            return None
        done = self._apply(request)
        if not done:
            return None if request.wait else False
        self._note(request.ino)
        return True

    async def set(self, request: SetLock, deadline_s: float | None = None) -> bool:
        """As SetLock promises."""
        if request.flock or not self._enabled:
            return bool(await self._client.call(request, deadline_s=deadline_s))
        file = self._file(request.ino)
        if request.kind is LockKind.UNLOCK and (file.is_local or file.turning is not None):
            # Before any wait: a lock of a program that is gone must not be told to the cluster.
            self._apply(request)
            self._note(request.ino)
            file.unlocks += 1
        await self._settled(request.ino, file)
        done = self.set_nowait(request)
        if done is not None:
            return done
        while file.is_local:
            self._turn_back(request.ino, file)
            await self._settled(request.ino, file)
        return await self._ask(request, file, deadline_s)

    async def get(self, request: GetLock) -> LockHolder | None:
        """As GetLock promises."""
        file = self._files.get(request.ino)
        if file is not None:
            await self._settled(request.ino, file)
            while file.is_local and not self._may_answer(file):
                self._turn_back(request.ino, file)  # the cluster knows only of the right
                await self._settled(request.ino, file)
            if self._may_answer(file):
                wanted = Lock(
                    Owner(_HERE, request.owner), request.kind is LockKind.EXCLUSIVE,
                    request.start, request.end, 0,
                )  # fmt: skip
                held = self._table.blocker(request.ino, False, wanted)
                return None if held is None else LockHolder(*_described(held), held.pid)
        found: LockHolder | None = await self._client.call(request)
        return found

    def _may_answer(self, file: _File) -> bool:
        return (
            file.is_local
            and file.turning is None
            and file.epoch == self._client.epoch
            and self._client.lease_s() > 0
        )

    async def _settled(self, ino: Ino, file: _File) -> None:
        """The file is either local or not. DeadlineError."""
        try:
            async with asyncio.timeout(self._client.deadline_s):
                while file.turning is not None:
                    await asyncio.shield(file.turning)
        except TimeoutError as exc:
            raise DeadlineError(f"the locks of inode {ino} were not told in time") from exc

    async def _ask(self, request: SetLock, file: _File, deadline_s: float | None) -> bool:
        def arrived(done: bool) -> bool:
            # At arrival: of two answers the table has the later one. Where one of them was asked
            # for again, of another leader, they may come the other way round.
            if done and not self._apply(request):
                file.is_sure = False
            return done

        file.questions += 1
        file.under_way += 1
        try:
            done: bool = await self._client.call(request, arrived=arrived, deadline_s=deadline_s)
        except BaseException:
            file.is_sure = False
            raise
        finally:
            file.under_way -= 1
        if request.kind is LockKind.UNLOCK:
            self._consider(request.ino, file)
        return done

    def _apply(self, request: SetLock) -> bool:
        owner = Owner(_HERE, request.owner)
        if request.kind is LockKind.UNLOCK:
            self._table.unlock(request.ino, False, owner, request.start, request.end)
            return True
        exclusive = request.kind is LockKind.EXCLUSIVE
        lock = Lock(owner, exclusive, request.start, request.end, request.pid)
        return self._table.set(request.ino, False, lock)

    def _file(self, ino: Ino) -> _File:
        """Of a file that is open."""
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = _File()
        file.is_closed = False
        return file

    # --- having a file's locks given out here ----------------------------------------------------

    def _consider(self, ino: Ino, file: _File) -> None:
        if (
            self._enabled
            and file.questions >= ASK_AFTER
            and file.is_sure
            and not file.is_local
            and not file.under_way
            and file.turning is None
            and time.monotonic() >= file.not_before_s
            and self._client.lease_s() > 0
            and self._files.get(ino) is file
            and not self._table.locks_of(ino, False)
        ):
            self._turn(ino, file, lambda: self._become_local(ino, file))

    async def _become_local(self, ino: Ino, file: _File) -> None:
        file.epoch = self._client.epoch
        file.untouched = True

        def arrived(granted: bool) -> bool:
            # At arrival: what others want is heard of in order with it.
            file.is_local = granted and file.untouched and self._client.epoch == file.epoch
            return granted

        self._note(ino)  # a successor gives it back, whatever became of it
        try:
            granted = await self._client.call(
                _right(ino, LockKind.EXCLUSIVE), arrived=arrived, once=True
            )
        except PydiError as exc:
            log.debug("ino=%d: its locks not asked for: %s", ino, exc)
            granted = True  # nobody knows
        if file.is_local and file.untouched and not file.is_closed:
            return
        file.is_local = False
        self._wait_before(file)
        if granted:
            await self._give_back(ino, file)
        else:
            self._journal.gave_right_back(ino)

    def _wait_before(self, file: _File) -> None:
        file.again_s = min(max(2 * file.again_s, AGAIN_MIN_S), AGAIN_MAX_S)
        file.not_before_s = time.monotonic() + file.again_s

    def _turn(self, ino: Ino, file: _File, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def turn() -> None:
            try:
                await work()
            finally:
                file.turning = None
                self._tidy(ino, file)

        file.turning = asyncio.get_running_loop().create_task(turn())

    def _tidy(self, ino: Ino, file: _File) -> None:
        if file.is_closed and not file.is_local and file.turning is None:
            del self._files[ino]
            for lock in self._table.locks_of(ino, False):
                self._table.unlock(ino, False, lock.owner, lock.start, lock.end)

    # --- giving it back --------------------------------------------------------------------------

    def wanted(self, inos: Iterable[Ino]) -> None:
        """Others want locks of these files."""
        for ino in inos:
            file = self._files.get(ino)
            if file is None:
                # An answer that nobody waited for any more.
                file = self._file(ino)
                file.is_closed = True
            file.untouched = False
            self._wait_before(file)
            self._turn_back(ino, file)

    def reset(self) -> None:
        """The stream of changes broke: any file may be wanted."""
        for ino, file in list(self._files.items()):
            file.untouched = False
            if file.is_local:
                self._turn_back(ino, file)

    def closed(self, ino: Ino) -> None:
        """Nobody here has the file open any more, so nobody holds a lock."""
        file = self._files.get(ino)
        if file is not None:
            file.is_closed = True
            if file.is_local:
                self._turn_back(ino, file)
            self._tidy(ino, file)

    def _turn_back(self, ino: Ino, file: _File) -> None:
        if file.turning is None:
            file.is_local = False
            file.questions = 0
            self._turn(ino, file, lambda: self._give_back(ino, file))

    async def _give_back(self, ino: Ino, file: _File) -> None:
        """The cluster knows of all locks that are held, and gives out others from now on."""
        until_s = time.monotonic() + TOLD_WITHIN_S
        told = _Locks()
        while True:
            try:
                if await self._tell(ino, file, told, time.monotonic() >= until_s):
                    await self._client.call(_right(ino, LockKind.UNLOCK))
                    self._journal.gave_right_back(ino)
                    return
            except FileError as exc:
                log.debug("ino=%d: its locks are not to be given back: %s", ino, exc)
                return
            except PydiError as exc:
                log.debug("ino=%d: its locks not given back yet: %s", ino, exc)
            await asyncio.sleep(RETRY_S)

    async def _tell(self, ino: Ino, file: _File, told: _Locks, is_last: bool) -> bool:
        """Whether the cluster has all that are held; ``told`` has those that it has."""
        refused = _Locks()
        while left := self._table_without(ino, told | refused):
            unlocks = file.unlocks
            for lock in left:
                if file.unlocks != unlocks:
                    break  # some of these are held no more, or less of them
                kind, start, end = _described(lock)
                request = SetLock(ino, lock.owner.owner, kind, start, end, False, False, lock.pid)
                if await self._client.call(request):
                    told.add(lock)
                elif not is_last and file.epoch != self._client.epoch:
                    refused.add(lock)
                else:
                    log.warning(
                        "ino=%d: a lock of process %d is lost to another machine", ino, lock.pid
                    )
                    self._table.unlock(ino, False, lock.owner, lock.start, lock.end)
        return not refused

    def _table_without(self, ino: Ino, locks: _Locks) -> list[Lock]:
        return [lock for lock in self._table.locks_of(ino, False) if lock not in locks]

    def _note(self, ino: Ino) -> None:
        locks = self._table.locks_of(ino, False)
        self._journal.has_right(Right(ino, tuple((lock.owner.owner, *lock[1:]) for lock in locks)))


def _right(ino: Ino, kind: LockKind) -> SetLock:
    return SetLock(ino, RIGHTS_OWNER, kind, 0, INT64_MAX, False, False, 0)


def _described(lock: Lock) -> tuple[LockKind, int, int]:
    return LockKind.EXCLUSIVE if lock.exclusive else LockKind.SHARED, lock.start, lock.end
