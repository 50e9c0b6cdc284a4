"""Locks across the cluster: one table on the leader, and on each node a mirror of its own.

Called by service.py for SetLock and GetLock. A node asks the leader (itself, or over its link to
it) and remembers what its own sessions hold. The table lives in memory only: every node tells a new
leader what its sessions hold. When all members have, or after GRACE_S, it gives out new locks.
A node that can't be reached for LOST_S has lost its locks.

No lock is held twice, though the old leader may still give some out: a node believes an answer
only while the leader that it asked is the newest that it knows, and what it tells a new leader is
what it believes by then. So when all have told, nobody believes the old one any more.

A mount may have taken a file's locks as a whole (`locks.RIGHTS_OWNER`), and gives them out by
itself. Whoever else asks for one of them makes its node tell it, in a push of all names in there,
which a file has none of; it asks for the locks that programs hold, and gives the right back. In the
table all that is one session's locks, so whatever breaks on the way keeps others out and lets
nobody in. A mount that has not given a right back RECALL_LOST_S after it was told has lost it, and
the locks with it; and one that asks through another session has none by the old one.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from pydi_node.errors import (
    DeadlineError,
    DisconnectedError,
    FileError,
    NotLeaderError,
    PydiError,
    UnavailableError,
)
from pydi_node.ids import INT64_MAX, Ino, NodeNumber, Term
from pydi_node.locks import RIGHTS_OWNER, Lock, LockTable, Owner, Session
from pydi_node.runtime.peers import Peers
from pydi_node.wire.messages import Admin, GetLock, LockHolder, LockKind, SetLock

_log = logging.getLogger(__name__)

GRACE_S = 2.0
LOST_S = 10.0
RETRY_S = 0.2
# How long a request that does not wait for a lock waits for its mount to give the right back.
RECALL_S = 2.0
# Longer than any lease: by then it gives out none. As long as for a node that can't be reached.
RECALL_LOST_S = LOST_S

Key = tuple[Ino, bool, Owner]
Leadership = tuple[Term, NodeNumber | None]


class Locking:
    """See the module's text."""

    def __init__(self, peers: Peers, node: NodeNumber) -> None:
        self._peers = peers
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._table = LockTable()  # everybody's, while this node leads
        self._mirror = LockTable()  # of this node's sessions
        self._asking: dict[Key, int] = {}  # requests under way: what they get isn't in the mirror
        self._leadership: Leadership = (Term(0), None)  # that the table is of
        self._moved = asyncio.Event()
        self._patience: set[asyncio.Timeout] = set()  # of whoever asks this leader
        self._leads_since_s = 0.0
        self._heard: set[NodeNumber] = set()  # who told this leader what it holds
        self._all_heard = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()  # for locks of the table
        self._told = asyncio.Event()  # the leader must be told anew what is held here
        self._gone: dict[NodeNumber, float] = {}  # nodes without a link, and since when
        # Tells a session of this node that others want locks of a file.
        self.tell: Callable[[int, Ino], None] = lambda session, ino: None
        self._recalled: dict[tuple[int, Ino], asyncio.Task[None]] = {}  # rights of this node's
        self._changed = asyncio.Event()  # of this leader's table: somebody holds less
        self._tasks: set[asyncio.Task[Any]] = set()
        self.admin: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
            "lock": self._on_lock,
            "recall-lock": self._on_recall_lock,
            "get-lock": self._on_get_lock,
            "locks": self._on_locks,
        }

    # --- for the service --------------------------------------------------------------------------

    async def set_lock(
        self, session: int, message: SetLock, deadline_s: float, client: int = 0
    ) -> bool:
        """As SetLock promises. client  under which the session holds what is its own; 0: none."""
        owner = Owner((self._node, session), message.owner)
        # A right is known by its client, whatever session it has next.
        pid = client if message.owner == RIGHTS_OWNER else message.pid
        lock = Lock(owner, message.kind is LockKind.EXCLUSIVE, message.start, message.end, pid)
        if message.kind is LockKind.UNLOCK:
            self._mirror.unlock(message.ino, message.flock, owner, message.start, message.end)
            if message.owner == RIGHTS_OWNER and (session, message.ino) in self._recalled:
                self._recalled.pop((session, message.ino)).cancel()
        key = (message.ino, message.flock, owner)
        self._asking[key] = self._asking.get(key, 0) + 1
        try:
            arguments = _pack(message.ino, message.flock, lock) | {
                "unlock": message.kind is LockKind.UNLOCK,
                "wait": message.wait,
                "client": client,
            }
            done = bool(await self._ask("lock", arguments, deadline_s))
            if done and message.kind is not LockKind.UNLOCK:
                self._mirror.set(message.ino, message.flock, lock)
            return done
        except BaseException:
            self._told.set()  # nobody here knows whether the leader did it: it is told what counts
            raise
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]

    async def get_lock(
        self, session: int, message: GetLock, deadline_s: float
    ) -> LockHolder | None:
        """As GetLock promises."""
        owner = Owner((self._node, session), message.owner)
        lock = Lock(owner, message.kind is LockKind.EXCLUSIVE, message.start, message.end, 0)
        held = await self._ask("get-lock", _pack(message.ino, False, lock), deadline_s)
        if held is None:
            return None
        _, _, found = _unpack(held)
        kind = LockKind.EXCLUSIVE if found.exclusive else LockKind.SHARED
        pid = found.pid if found.owner.session == owner.session else 0
        return LockHolder(kind, found.start, found.end, pid)

    def has_rights(self, session: int) -> bool:
        """Whether it gives out the locks of some file by itself."""
        held = self._mirror.held_by(lambda other: other == (self._node, session))
        return any(lock.owner.owner == RIGHTS_OWNER for _, lock in held)

    def end_session(self, session: int) -> None:
        """Nothing of it is held any more, as soon as the leader hears of it."""
        self._mirror.end_session((self._node, session))
        self._told.set()

    async def run(self) -> None:
        """Tells every new leader what is held here, and forgets nodes that are gone."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_leadership())
            while True:
                await self._follow()
                try:
                    async with asyncio.timeout(RETRY_S):
                        await self._told.wait()
                except TimeoutError:
                    pass  # look again who is gone

    async def _watch_leadership(self) -> None:
        changed = self._peers.driver.role_changed
        while True:
            changed.clear()
            self._look_at_leadership()
            await changed.wait()

    # --- asking the leader ------------------------------------------------------------------------

    async def _ask(self, verb: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        """The leader's answer, whoever leads by then; DeadlineError."""
        while True:
            asked = self._newest_leadership()
            try:
                return await self._ask_once(verb, arguments, deadline_s)
            except (NotLeaderError, DisconnectedError) as exc:
                if self._loop.time() + RETRY_S >= deadline_s:
                    raise DeadlineError("no leader gave out locks before the deadline") from exc
            now = self._newest_leadership()
            if now == asked or now[1] is None:
                await self._wait_moved()

    async def _wait_moved(self) -> None:
        """Until leadership moves, or for RETRY_S."""
        try:
            async with asyncio.timeout(RETRY_S):
                await self._moved.wait()
        except TimeoutError:
            pass  # what went wrong may have been the connection

    async def _ask_once(self, verb: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        """The present leader's answer. NotLeaderError as soon as it is not the newest that this
        node knows: it may hang, and would not be believed."""
        replica = self._peers.driver.replica
        self._look_at_leadership()
        asked = self._leadership
        try:
            async with asyncio.timeout(None) as patience:
                self._patience.add(patience)
                try:
                    answer = await self._ask_leader(verb, arguments, deadline_s)
                finally:
                    self._patience.discard(patience)
        except TimeoutError as exc:
            raise NotLeaderError(replica.raft.leader) from exc
        if self._newest_leadership() != asked:
            raise NotLeaderError(replica.raft.leader)  # it may know nothing of this answer
        return answer

    async def _ask_leader(self, verb: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        replica = self._peers.driver.replica
        if replica.is_leader:
            return await self.answer(verb, arguments, deadline_s)
        if replica.raft.leader is None:
            raise NotLeaderError(None)
        return await self._peers.request(replica.raft.leader, Admin(verb, arguments), deadline_s)

    def _newest_leadership(self) -> Leadership:
        raft = self._peers.driver.replica.raft
        return raft.term, raft.leader

    def _look_at_leadership(self) -> None:
        """The table of a new leadership is a new one, whoever leads, or nobody."""
        leadership = self._newest_leadership()
        if leadership == self._leadership:
            return
        self._leadership = leadership
        self._table = LockTable()
        self._note_change()
        self._leads_since_s = self._loop.time()
        self._heard.clear()
        # Whoever waits for one of them looks again.
        self._all_heard.set()
        self._all_heard = asyncio.Event()
        self._moved.set()
        self._moved = asyncio.Event()
        for patience in self._patience:
            patience.reschedule(self._loop.time())
        self._patience.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(NotLeaderError(leadership[1]))  # to be asked for again
        self._told.set()
        # A node that was cut off may find one of its rights given to others, and its mount has a
        # lease again by then. Under another leader they are asked for anew.
        for (ino, _), lock in list(self._mirror.held_by(lambda session: True)):
            if lock.owner.owner == RIGHTS_OWNER:
                self._recall_here(lock.owner.session[1], ino)

    async def _follow(self) -> None:
        replica = self._peers.driver.replica
        now_s = self._loop.time()
        self._look_at_leadership()
        term, leader = self._leadership
        if replica.is_leader:
            for number in self._peers.members:
                if self._peers.is_connected(number):
                    self._gone.pop(number, None)
                elif now_s - self._gone.setdefault(number, now_s) > LOST_S:
                    self._table.end_sessions(functools.partial(_is_of, number))
                    self._note_change()
        if not self._told.is_set() or leader is None:
            self._told.clear()
            return
        self._told.clear()
        held = [
            _pack(ino, flock, lock)
            for (ino, flock), lock in self._mirror.held_by(lambda session: True)
        ]
        asking = [[ino, flock, *_flat(owner)] for ino, flock, owner in self._asking]
        try:
            await self._ask_once(
                "locks",
                {"node": self._node, "held": held, "asking": asking, "term": term},
                now_s + GRACE_S,
            )
        except UnavailableError as exc:
            _log.debug("leader not told of locks: %s", exc)
            if self._leadership == (term, leader):
                await self._wait_moved()
            self._told.set()

    # --- rights of this node's sessions -----------------------------------------------------------

    async def _on_recall_lock(self, request: Any, arguments: dict[str, Any]) -> None:
        if request.session.node is None:
            raise FileError(errno.EPERM, "only a node asks this")
        try:
            session, ino = int(arguments["session"]), Ino(int(arguments["ino"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise FileError(errno.EINVAL, "malformed recall") from exc
        self._recall_here(session, ino)

    def _recall_here(self, session: int, ino: Ino) -> None:
        """That session hears that others want locks of the file. Each time: it may be another
        connection's by now."""
        if not self._mirror.has_rights((self._node, session), ino):
            self._told.set()  # the leader believes that it has
            return
        self.tell(session, ino)
        if (session, ino) not in self._recalled:
            task = self._beside(self._revoke(session, ino))
            self._recalled[session, ino] = task

    async def _revoke(self, session: int, ino: Ino) -> None:
        """Unless the right is given back soon, it is taken."""
        await asyncio.sleep(RECALL_LOST_S)
        del self._recalled[session, ino]  # or giving it back would cancel this
        if not self._mirror.has_rights((self._node, session), ino):
            return
        _log.warning("a mount does not answer: its locks of inode %d are lost", ino)
        right = SetLock(ino, RIGHTS_OWNER, LockKind.UNLOCK, 0, INT64_MAX, False, False, 0)
        try:
            await self.set_lock(session, right, self._loop.time() + GRACE_S)
        except PydiError as exc:
            _log.debug("leader not told of a lost right: %s", exc)  # it is, by `_follow`

    # --- the leader's side ------------------------------------------------------------------------

    async def _on_lock(self, request: Any, arguments: dict[str, Any]) -> Any:
        return await self._on_node("lock", request, arguments)

    async def _on_get_lock(self, request: Any, arguments: dict[str, Any]) -> Any:
        return await self._on_node("get-lock", request, arguments)

    async def _on_locks(self, request: Any, arguments: dict[str, Any]) -> Any:
        return await self._on_node("locks", request, arguments)

    async def _on_node(self, verb: str, request: Any, arguments: dict[str, Any]) -> Any:
        if request.session.node is None:
            raise FileError(errno.EPERM, "only a node asks this")
        return await self.answer(verb, arguments, request.deadline_s)

    async def answer(self, verb: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        """This leader's answer to one node, itself included."""
        if not self._peers.driver.replica.is_leader:
            raise NotLeaderError(self._peers.driver.replica.raft.leader)
        self._look_at_leadership()
        try:
            if verb == "locks":
                if arguments["term"] != self._leadership[0]:
                    # It is older than what was given out since, and may keep out what is held now.
                    raise NotLeaderError(None)
                self._replace(arguments)
                return None
            ino, flock, lock = _unpack(arguments)
            unlock, wait = bool(arguments.get("unlock")), bool(arguments.get("wait"))
            client = int(arguments.get("client", 0))
        except (KeyError, TypeError, ValueError) as exc:
            raise FileError(errno.EINVAL, "malformed lock") from exc
        if unlock:
            self._table.unlock(ino, flock, lock.owner, lock.start, lock.end)
            self._note_change()
            return True
        if verb == "lock":
            await self._wait_grace(deadline_s)
        await self._recall(ino, flock, lock, client, deadline_s)
        if verb == "get-lock":
            held = self._table.blocker(ino, flock, lock)
            return None if held is None else _pack(ino, flock, held)
        if self._table.set(ino, flock, lock):
            return True
        return await self._wait(ino, flock, lock, deadline_s) if wait else False

    async def _wait_grace(self, deadline_s: float) -> None:
        """Returns when this leader knows of every lock that is held."""
        end_s = self._leads_since_s + GRACE_S
        if self._all_heard.is_set() or not self._peers.members or self._loop.time() >= end_s:
            return
        leadership = self._leadership
        try:
            async with asyncio.timeout_at(min(end_s, deadline_s)):
                await self._all_heard.wait()
        except TimeoutError as exc:
            if deadline_s < end_s:
                raise DeadlineError("a new leader is still learning who holds which lock") from exc
        if self._leadership != leadership:
            raise NotLeaderError(None)  # leadership went and came meanwhile: ask again

    async def _recall(
        self, ino: Ino, flock: bool, lock: Lock, client: int, deadline_s: float
    ) -> None:
        """Returns when nobody else's right to give out the file's locks is in the way, but the
        locks themselves may be; or after RECALL_S."""
        table = self._table
        until_s = min(deadline_s, self._loop.time() + RECALL_S)
        told: Owner | None = None
        try:
            async with asyncio.timeout_at(until_s):
                while (right := table.rights_in_the_way(ino, flock, lock)) is not None:
                    if client and right.pid == client:
                        # Its connection of before, or node. It asks, so it gives out none.
                        table.unlock(ino, flock, right.owner, right.start, right.end)
                        continue
                    if right.owner != told:
                        told = right.owner
                        self._beside(self._recall_from(told.session, ino, deadline_s))
                    await self._changed.wait()
                    if table is not self._table:
                        raise NotLeaderError(None)  # to be asked for again
        except TimeoutError:
            pass  # it counts as the lock that it is

    async def _recall_from(self, session: Session, ino: Ino, deadline_s: float) -> None:
        node, number = session
        if node == self._node:
            self._recall_here(number, ino)
            return
        try:
            request = Admin("recall-lock", {"session": number, "ino": ino})
            await self._peers.request(NodeNumber(node), request, deadline_s)
        except PydiError as exc:
            _log.debug("node %d not asked for the locks of inode %d: %s", node, ino, exc)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _beside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait(self, ino: Ino, flock: bool, lock: Lock, deadline_s: float) -> bool:
        table = self._table
        granted: asyncio.Future[None] = self._loop.create_future()

        def on_granted() -> None:
            if not granted.done():
                granted.set_result(None)
            else:
                # Granted between the end of the wait and its taking back.
                table.unlock(ino, flock, lock.owner, lock.start, lock.end)

        cancel = table.wait(ino, flock, lock, on_granted)
        self._waiters.add(granted)
        try:
            async with asyncio.timeout_at(deadline_s):
                await granted
        except TimeoutError as exc:
            raise DeadlineError("the lock was not free before the deadline") from exc
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                table.unlock(ino, flock, lock.owner, lock.start, lock.end)
            raise
        finally:
            self._waiters.discard(granted)
            cancel()
        if table is not self._table:
            raise NotLeaderError(None)  # leadership went and came meanwhile: ask again
        return True

    def _replace(self, arguments: dict[str, Any]) -> None:
        """One node's locks are exactly these, but for what it is asking for right now."""
        node = arguments["node"]
        held = [_unpack(item) for item in arguments["held"]]
        asking = {
            (ino, flock, Owner((number, session), owner))
            for ino, flock, number, session, owner in arguments["asking"]
        }
        keep = {(ino, flock, lock) for ino, flock, lock in held}
        for (ino, flock), lock in list(self._table.held_by(lambda session: session[0] == node)):
            if (ino, flock, lock) not in keep and (ino, flock, lock.owner) not in asking:
                self._table.unlock(ino, flock, lock.owner, lock.start, lock.end)
        for ino, flock, lock in held:
            if not self._table.set(ino, flock, lock):
                _log.warning("node %s and another one hold the same lock of inode %d", node, ino)
        self._note_change()
        self._heard.add(node)
        if self._heard >= {self._node, *self._peers.members}:
            self._all_heard.set()


def _is_of(node: NodeNumber, session: Session) -> bool:
    return session[0] == node


def _flat(owner: Owner) -> list[int]:
    node, session = owner.session
    return [node, session, owner.owner]


def _pack(ino: Ino, flock: bool, lock: Lock) -> dict[str, Any]:
    return {
        "ino": ino, "flock": flock, "owner": _flat(lock.owner), "exclusive": lock.exclusive,
        "start": lock.start, "end": lock.end, "pid": lock.pid,
    }  # fmt: skip


def _unpack(arguments: dict[str, Any]) -> tuple[Ino, bool, Lock]:
    node, session, owner = (int(part) for part in arguments["owner"])
    start, end = int(arguments["start"]), int(arguments["end"])
    if end < start:
        raise ValueError("end before start")
    lock = Lock(
        Owner((node, session), owner), bool(arguments["exclusive"]), start, end,
        int(arguments["pid"]),
    )  # fmt: skip
    return Ino(int(arguments["ino"])), bool(arguments["flock"]), lock
