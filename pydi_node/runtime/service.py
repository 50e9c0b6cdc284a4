"""What a node does for the peers of its sessions: one table, request class to handler.

Called by server.py for each request that arrived; knows nothing of sockets. A handler answers at
once with a value (most queries), or returns an awaitable, or raises the error that is the answer.
It must never block the loop: blobs go to a thread pool, commands through the replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pydi_node.blobs.store import BlobStore, Writer
from pydi_node.commands import CLIENT_COMMANDS, COMMAND_CODES, Command, PutFile, SetSetting
from pydi_node.errors import (
    BlobMissingError,
    DeadlineError,
    FileError,
    NoSpaceError,
    PydiError,
    UserError,
)
from pydi_node.ids import INT64_MAX, BlobId, ClientId, Ino, LogIndex, NodeNumber, Serial
from pydi_node.leases import HOLDER_S
from pydi_node.records import Attr, BlobInfo, Result, Statfs
from pydi_node.runtime.driver import Driver, Outcome
from pydi_node.runtime.written import Written
from pydi_node.tree.machine import Tree
from pydi_node.tree.settings import SETTINGS
from pydi_node.wire import messages
from pydi_node.wire.messages import LockHolder, Role
from pydi_node.wire.trust import MountLimits

if TYPE_CHECKING:
    from pydi_node.runtime.bounds import Bounds
    from pydi_node.runtime.locking import Locking
    from pydi_node.runtime.replication import Copies, Replication

_log = logging.getLogger(__name__)

GROWN_AT_ONCE = 16  # pieces of files that are lent, in memory: 64 MiB at most
BLOB_THREADS = 4  # fdatasync and hashing release the interpreter; a disk likes a short queue
WRITERS_PER_SESSION_MAX = 1024  # open files being written by one mount; each costs a descriptor
# A mount whose process ends without a goodbye may go on in another one, which says the same key in
# its hello. For so long nobody else gets its locks, and what it has open is not purged: a successor
# comes within a second, on a loaded machine within a few.
RESUME_GRACE_S = 10.0
RESUME_KEY = "resume"  # in Hello.about
RESUME_KEY_BYTES = 16
CLIENT_KEY = "client"  # in Hello.about
OPENS_PER_SESSION_MAX = 1 << 20
# No caller of a command waits longer; a client that went away would leave its command waiting.
COMMAND_WAIT_MAX_S = 120.0
TIMES_PER_QUESTION_MAX = 4096  # each a row looked up: some 20 ms
READ_WAIT_MAX_S = 5.0  # to learn whether this tree is current; without a leader it is served as is


class Content(NamedTuple):
    """An answer that travels as the frame's payload."""

    data: bytes


@dataclass(slots=True)
class _BlobWriter:
    """A blob being written; the lock keeps its requests in the order of their arrival."""

    writer: Writer
    copies: Copies | None  # on other nodes; None: this is such a copy itself
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Session:
    """What a node keeps for one connection beside the protocol."""

    def __init__(self, number: int, role: Role, host: str, about: dict[str, Any]) -> None:
        self.number = number  # unique while this node runs
        self.role = role
        self.host = host
        self.about = about
        self.limits: MountLimits | None = None  # of a mount that came with a mount token
        self.generation: int | None = None  # of the secret that proved it; None: unix socket
        self.bounds: Bounds | None = None  # when that is for one directory
        self.node: NodeNumber | None = None  # when the peer is a node
        # Under which it holds directories; 0: it holds none, and knows nothing of that.
        client: Any = about.get(CLIENT_KEY)
        is_client = type(client) is int and 1 <= client <= INT64_MAX
        self.client = ClientId(client if is_client else 0)
        self.opens: dict[Ino, int] = {}
        self.writers: dict[int, _BlobWriter] = {}
        # Under which another process may go on with what this one holds; b"": there is none.
        key = about.get(RESUME_KEY)
        self.key = key if isinstance(key, bytes) and len(key) == RESUME_KEY_BYTES else b""
        self.holder = number  # the session in whose name locks are held: the first with this key
        self.has_successor = False
        self.said_goodbye = False

    @property
    def read_only(self) -> bool:
        return self.limits is not None and self.limits.read_only


class Request(NamedTuple):
    """One request on its way through a handler."""

    session: Session
    message: Any  # one of messages.Request; the table below says which
    payload: bytes
    deadline_s: float  # of the loop's clock


Handler = Callable[["Service", Request], Any]


class Service:
    """Answers requests out of tree, replica, blob store and lock table."""

    def __init__(
        self,
        driver: Driver,
        store: BlobStore,
        node: NodeNumber,
        cluster: str,
        witness: bool = False,
    ) -> None:
        self.driver = driver
        self.witness = witness
        self.store = store
        self.node = node
        self.cluster = cluster
        self.locking: Locking  # set by node.py before anything is served
        self.replication: Replication  # likewise
        # ticket -> the writer of the file that was lent under it; likewise
        self.lent: Callable[[bytes], Writer | None]
        # (session) -> ms for which it may rely on its caches; likewise
        self.lease: Callable[[Session], int]
        self.sessions: dict[int, Session] = {}
        self._written = Written(self)
        # Reads of content for clients and mounts since the start. What a mount reads from files of
        # this machine, or its kernel by passthrough, no node hears of.
        self.reads = 0
        self.read_bytes = 0
        self._resumable: dict[bytes, Session] = {}  # the latest with each key
        self.holds: dict[Ino, int] = {}  # opens of all sessions together
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "settings": self._admin_settings,
            "set": self._admin_set,
            "times": self._admin_times,
        }
        self._grown_slots = asyncio.Semaphore(GROWN_AT_ONCE)
        self._pool = ThreadPoolExecutor(BLOB_THREADS, "blobs")
        self._loop = asyncio.get_running_loop()
        self._serial = 0

    @property
    def tree(self) -> Tree:
        return self.driver.replica.tree

    # --- for the server ---------------------------------------------------------------------------

    def begin(self, session: Session) -> None:
        self.sessions[session.number] = session
        if session.key:
            before = self._resumable.get(session.key)
            if before is not None:
                before.has_successor = True
                session.holder = before.holder
            self._resumable[session.key] = session

    def end(self, session: Session) -> None:
        """Nothing is held for this session any more, unless it may go on in another process."""
        self.sessions.pop(session.number, None)
        if session.said_goodbye:
            self._let_go(session)
        elif session.key:
            self._loop.call_later(RESUME_GRACE_S, self._let_go, session)
        elif self.locking.has_rights(session.holder):
            # It may be cut off, and gives out locks as long as its lease is good.
            self._loop.call_later(HOLDER_S, self._let_go, session)
        else:
            self._let_go(session)
        writers, session.writers = session.writers, {}
        for writer in writers.values():
            task = self._loop.create_task(self._abort(writer))
            # Kept alive by the loop's pool work; a failing abort is found by the store's recovery.
            task.add_done_callback(_report)

    def _let_go(self, session: Session) -> None:
        for ino, count in session.opens.items():
            self._drop_holds(ino, count)
        session.opens.clear()
        if not session.has_successor:
            self._resumable.pop(session.key, None)
            self.locking.end_session(session.holder)

    def handle(self, request: Request) -> Any:
        """The answer's value, or an awaitable of it. Raises the error that is the answer."""
        spec = messages.REQUEST_OF_CLASS[type(request.message)]
        if spec.mutates and request.session.read_only:
            raise FileError(errno.EROFS, "this token may only read")
        if self.witness and isinstance(request.message, _BRINGS_CONTENT):
            raise self._refusal(request.session)
        return _HANDLERS[type(request.message)](self, request)

    def _refusal(self, session: Session) -> PydiError:
        """Why a witness takes no content, so that another node tries the next one at once."""
        sentence = f"node {self.node} is a witness, which takes no content"
        if session.role is Role.NODE:
            return NoSpaceError(sentence)
        return FileError(errno.EROFS, f"{sentence}: connect to another node")

    def command_of(self, request: Request) -> Command | None:
        """The command of a request that is nothing else, small content included. None: something
        is to be done first, by ``handle``."""
        message = request.message
        if type(message) not in (messages.Execute, messages.ExecutePut) or self._written.unsure(
            request.session, message.command
        ):
            return None
        if type(message) is messages.Execute:
            command: Command = message.command
            return command
        if self.witness:
            return None
        info = self.replication.inline_nowait(request.payload)
        if info is None:
            return None
        return messages.with_put_blob(message.command, info, request.payload)

    def execute_nowait(
        self, request: Request, command: Command, callback: Callable[[Outcome], None]
    ) -> None:
        """The hot path of ``command_of``: no task, no future."""
        message = request.message
        if request.session.read_only:
            raise FileError(errno.EROFS, "this token may only read")
        self._check_command(request.session, message.command)
        deadline_s = min(request.deadline_s, self._loop.time() + COMMAND_WAIT_MAX_S)
        self.driver.propose(message.client, message.serial, command, deadline_s, callback)

    def next_serial(self) -> Serial:
        """A serial for the cluster's own commands (client 0) that no other node uses, nor this
        node's replica (replica.OWN_SERIALS)."""
        if self._serial == 0:
            # Going on from the clock, a restarted node doesn't repeat itself either.
            self._serial = self.driver.clock.now().time_ns // 1000 & ((1 << 47) - 1)
        self._serial += 1
        return Serial(self.node << 48 | self._serial & ((1 << 47) - 1))

    async def housekeep(self, command: Command, deadline_s: float) -> Result:
        """The outcome of one of the cluster's own commands."""
        return await self.driver.execute(ClientId(0), self.next_serial(), command, deadline_s)

    async def in_pool(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._pool, work)

    async def new_writer(self, make: Callable[[], Writer]) -> Writer:
        """What ``make`` makes in the pool; when nobody waits for it any more, it is aborted."""
        making = asyncio.ensure_future(self.in_pool(make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_abort_unwanted)
            raise

    async def close(self) -> None:
        """Blobs under way are finished or dropped; no handler runs any more."""
        for session in list(self.sessions.values()):
            self.end(session)
        self.store.stop()
        await self._loop.run_in_executor(None, self._pool.shutdown)

    # --- holds ------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Any:
        ino = request.message.ino
        session = request.session
        if ino not in session.opens and len(session.opens) >= OPENS_PER_SESSION_MAX:
            raise FileError(errno.ENFILE)
        # Held before it is looked at: a purge that begins now sees the hold.
        session.opens[ino] = session.opens.get(ino, 0) + 1
        self.holds[ino] = self.holds.get(ino, 0) + 1
        try:
            answer = _OPEN_QUERY(self, request)
        except BaseException:
            self._release_holds(session, ino, 1)
            raise
        if isinstance(answer, Awaitable):
            return self._finish_open(session, ino, answer)
        return answer

    async def _finish_open(self, session: Session, ino: Ino, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except BaseException:
            self._release_holds(session, ino, 1)
            raise

    def _release(self, request: Request) -> None:
        self._release_holds(request.session, request.message.ino, request.message.count)

    def _release_holds(self, session: Session, ino: Ino, count: int) -> None:
        held = session.opens.get(ino, 0)
        count = min(count, held)  # more than it holds: what the session lost at a reconnect
        if count == 0:
            return
        if count == held:
            del session.opens[ino]
        else:
            session.opens[ino] = held - count
        self._drop_holds(ino, count)

    def _drop_holds(self, ino: Ino, count: int) -> None:
        left = self.holds[ino] - count
        assert left >= 0, (ino, left)
        if left:
            self.holds[ino] = left
        else:
            del self.holds[ino]

    # --- commands ---------------------------------------------------------------------------------

    def _check_command(self, session: Session, command: Command) -> None:
        if COMMAND_CODES[type(command)] not in CLIENT_COMMANDS and session.role is not Role.NODE:
            raise FileError(errno.EPERM, f"{type(command).__name__} is not a client's command")
        if (
            getattr(messages.last_of(command), "content", None) is not None
            and session.role is not Role.NODE
        ):
            raise FileError(errno.EPERM, "content travels beside its command: ExecutePut")

    async def _execute(self, request: Request) -> Result:
        message = request.message
        self._check_command(request.session, message.command)
        await self._written.require(request.session, message.command, request.deadline_s)
        return await self.driver.execute(
            message.client, message.serial, message.command, request.deadline_s
        )

    async def _execute_put(self, request: Request) -> Result:
        message = request.message
        self._check_command(request.session, message.command)
        await self._written.require(request.session, message.command, request.deadline_s)
        info = await self.replication.inline(request.payload)
        if info is not None:
            command = messages.with_put_blob(message.command, info, request.payload)
        else:
            given = messages.content_of(message.command)
            if isinstance(given, PutFile):
                info = await self.replication.put(request.payload, None, given.parent)
            else:
                info = await self.replication.put(request.payload, given.ino)
            command = messages.with_put_blob(message.command, info)
        return await self.driver.execute(
            message.client, message.serial, command, request.deadline_s
        )

    # --- blobs ------------------------------------------------------------------------------------

    async def _blob_create(self, request: Request) -> int:
        writer = await self._begin_writer(request.session, self.store.create)
        writer.copies = self.replication.copies_of(writer.writer.blob, request.message.ino)
        return int(writer.writer.blob)

    async def _blob_adopt(self, request: Request) -> int:
        _require_place(request.session)
        lent = self.lent(request.message.ticket)
        if lent is None:
            raise FileError(errno.ENOENT, "no file is lent under this ticket")
        # Nothing is waited for meanwhile: a request that is cancelled would leave it to nobody.
        copies = self.replication.copies_of(lent.blob, request.message.ino)
        request.session.writers[lent.blob] = _BlobWriter(lent, copies)
        return int(lent.blob)

    async def _replica_create(self, request: Request) -> None:
        blob = request.message.blob
        if blob in request.session.writers:
            raise FileError(errno.EEXIST)
        await self._begin_writer(request.session, lambda: self.store.follow(blob))

    async def _begin_writer(self, session: Session, make: Callable[[], Writer]) -> _BlobWriter:
        _require_place(session)
        made = await self.new_writer(make)
        if session.number not in self.sessions:
            await self.in_pool(made.abort)  # the session ended meanwhile
            raise FileError(errno.EINTR)
        writer = session.writers[made.blob] = _BlobWriter(made, None)
        return writer

    def _writer(self, request: Request) -> _BlobWriter:
        writer = request.session.writers.get(request.message.blob)
        if writer is None:
            raise BlobMissingError("not a blob that this session is writing")
        return writer

    def _blob_write(self, request: Request) -> Awaitable[None]:
        offset, payload = request.message.offset, request.payload

        async def write(writer: _BlobWriter) -> None:
            here = self.in_pool(lambda: writer.writer.write(offset, payload))
            if writer.copies is None:
                await here
            else:
                await asyncio.gather(here, writer.copies.write(offset, payload))

        return self._with_writer(request, write)

    def _blob_grown(self, request: Request) -> Awaitable[None]:
        offset, length = request.message.offset, request.message.length

        async def take(writer: _BlobWriter) -> None:
            # What is read counts for no session, as a payload does.
            async with self._grown_slots:
                data: bytes = await self.in_pool(lambda: writer.writer.grown(offset, length))
                assert writer.copies is not None
                await writer.copies.write(offset, data)

        return self._with_writer(request, take)

    def _blob_truncate(self, request: Request) -> Awaitable[None]:
        size = request.message.size

        async def truncate(writer: _BlobWriter) -> None:
            await self.in_pool(lambda: writer.writer.truncate(size))
            if writer.copies is not None:
                await writer.copies.truncate(size)

        return self._with_writer(request, truncate)

    async def _with_writer(
        self, request: Request, work: Callable[[_BlobWriter], Awaitable[Any]]
    ) -> Any:
        """Runs ``work`` after all earlier requests for the blob; an error drops the blob."""
        writer = self._writer(request)
        async with writer.turn:
            if request.session.writers.get(writer.writer.blob) is not writer:
                raise BlobMissingError("an earlier write of this blob failed")
            try:
                return await work(writer)
            except Exception:
                request.session.writers.pop(writer.writer.blob, None)
                if writer.copies is not None:
                    writer.copies.abort()
                raise

    async def _blob_seal(self, request: Request) -> BlobInfo:
        message = request.message

        async def seal(writer: _BlobWriter) -> BlobInfo:
            stored = asyncio.ensure_future(
                self.in_pool(lambda: writer.writer.seal(message.size, message.checksum))
            )
            if writer.copies is None:
                await stored
                return BlobInfo(message.blob, message.size, message.checksum, (self.node,))
            return await writer.copies.seal(stored, message.size, message.checksum)

        if request.session.role is Role.NODE and message.checksum is None:
            raise FileError(errno.EINVAL, "a copy is sealed with its checksum")
        info: BlobInfo = await self._with_writer(request, seal)
        request.session.writers.pop(message.blob, None)
        return self._written.note(info)

    async def _blob_abort(self, request: Request) -> None:
        writer = request.session.writers.pop(request.message.blob, None)
        if writer is not None:
            await self._abort(writer)

    async def _abort(self, writer: _BlobWriter) -> None:
        async with writer.turn:
            if writer.copies is not None:
                writer.copies.abort()
            await self.in_pool(writer.writer.abort)

    async def _blob_put(self, request: Request) -> BlobInfo:
        info = await self.replication.put(request.payload, request.message.ino)
        return self._written.note(info)

    async def _replica_put(self, request: Request) -> None:
        info = request.message.info

        def store() -> None:
            with self.store.receive(info.blob, info.size, info.checksum) as writer:
                writer.write(0, request.payload)
                writer.seal()

        await self.in_pool(store)

    async def _blob_read(self, request: Request) -> Content:
        content = await self._content_of(request)
        if request.session.role is not Role.NODE:  # that node counts it for whoever asked it
            self.reads += 1
            self.read_bytes += len(content)
        return Content(content)

    async def _content_of(self, request: Request) -> bytes:
        message = request.message
        if request.session.role is Role.NODE:
            # It asks each holder itself: passing its question on could go round in circles.
            read = self.replication.read_here(
                message.blob, self.known_blob(message.blob), message.offset, message.length
            )
        else:
            read = self.replication.read(
                message.blob, message.offset, message.length, request.deadline_s
            )
        return await read

    def known_blob(self, blob: BlobId) -> BlobInfo | None:
        """What the tree says of it; None when it doesn't know it."""
        try:
            return self.tree.blob(blob)
        except FileError:
            return None

    async def _blob_verify(self, request: Request) -> None:
        await self.replication.verify(self.tree.blob(request.message.blob))

    def _blob_stream(self, request: Request) -> Awaitable[bytes]:
        message, node = request.message, request.session.node
        assert node is not None, "not a node's session"
        return self.replication.offer(node, message.blob, message.size, message.offset)

    async def _blob_copy(self, request: Request) -> None:
        await self.replication.hold(request.message.info)

    # --- locks ------------------------------------------------------------------------------------

    def _set_lock(self, request: Request) -> Awaitable[bool]:
        session = request.session
        return self.locking.set_lock(
            session.holder, request.message, request.deadline_s, session.client
        )

    def _get_lock(self, request: Request) -> Awaitable[LockHolder | None]:
        return self.locking.get_lock(request.session.holder, request.message, request.deadline_s)

    # --- administration ---------------------------------------------------------------------------

    def _admin(self, request: Request) -> Any:
        verb = self.admin.get(request.message.verb)
        if verb is None:
            raise UserError(f"this node does not know {request.message.verb!r}")
        return verb(request, request.message.arguments)

    async def _admin_settings(self, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        await self.driver.wait_current(_read_deadline(self, request))
        values = self.tree.settings()
        return {
            name: {
                "value": values[name],
                "default": setting.default,
                "low": setting.low,
                "high": setting.high,
                "meaning": setting.meaning,
            }
            for name, setting in sorted(SETTINGS.items())
        }

    async def _admin_set(self, request: Request, arguments: dict[str, Any]) -> None:
        match arguments:
            case {"name": str(name), "value": str() | int() as value}:
                result = await self.housekeep(SetSetting(name, str(value)), request.deadline_s)
            case _:
                raise UserError("set takes a name and a value")
        if result.errno:
            setting = SETTINGS.get(name)
            raise UserError(
                f"there is no setting {name!r}: the settings are {', '.join(sorted(SETTINGS))}"
                if setting is None
                else f"{name} takes a whole number {setting.low} .. {setting.high}"
            )

    async def _admin_times(self, request: Request, arguments: dict[str, Any]) -> list[int]:
        """When these log indexes were, in ns; 0 for what is older than history."""
        indexes = arguments.get("indexes")
        if (
            not isinstance(indexes, (list, tuple))
            or len(indexes) > TIMES_PER_QUESTION_MAX
            or any(type(index) is not int or not 0 <= index <= INT64_MAX for index in indexes)
        ):
            raise FileError(errno.EINVAL, "times takes log indexes")
        await self.driver.wait_current(_read_deadline(self, request))
        return [self.tree.time_of(LogIndex(index)) for index in indexes]

    def _subscribe(self, request: Request) -> None:
        """The server pushes to the sessions that asked; nothing to do but to answer."""

    def _lease(self, request: Request) -> int:
        return self.lease(request.session)

    def _statfs(self) -> Statfs:
        usage = self.store.usage()
        return Statfs(usage.total, usage.free, self.tree.counters().files)


def _read_deadline(service: Service, request: Request) -> float:
    return min(request.deadline_s, service._loop.time() + READ_WAIT_MAX_S)


def _query(
    ask: Callable[[Service, Tree, Any], Any],
    directory_of: Callable[[Any], Ino | None] = lambda _: None,
    shown_by: Callable[[Any, Any], Ino | None] = lambda _, __: None,
) -> Handler:
    """A handler that asks the tree once it is known to be as new as any.

    directory_of  in which the question looks at names: what another client holds is given back
                  before. None: it looks at none, or into the past.
    shown_by  whose attributes of now the answer has: a directory's times and link count are of
              before for as long as another client holds it, so it is given back likewise.
    """

    def handle(service: Service, request: Request) -> Any:
        driver, directory = service.driver, directory_of(request.message)
        is_held, client = service.tree.is_held, request.session.client
        if (
            driver.has_lease()
            and driver.replica.is_settled
            and (directory is None or not is_held(directory, client))
        ):
            answer = ask(service, service.tree, request.message)
            shown = shown_by(request.message, answer)
            if shown is None or not is_held(shown, client):
                return answer
        return wait(service, request)

    async def wait(service: Service, request: Request) -> Any:
        deadline_s = _read_deadline(service, request)
        is_current = await service.driver.wait_current(deadline_s)
        named, client = directory_of(request.message), request.session.client
        shown: Ino | None = None

        def held() -> Ino | None:
            """What must be given back before the tree can be asked."""
            wanted = (named, shown) if is_current else ()
            return next((ino for ino in wanted if ino and service.tree.is_held(ino, client)), None)

        while True:
            # Again when it went to somebody else between two steps of the loop, or takes long
            # though there is a leader.
            while (directory := held()) is not None:
                deadline_s = _read_deadline(service, request)
                with contextlib.suppress(DeadlineError):
                    is_current = await service.driver.reclaim(directory, client, deadline_s)
            try:
                answer = ask(service, service.tree, request.message)
                shown = shown_by(request.message, answer)
                is_whole = held() is None
            finally:
                # What is seen here, be it an absence, must be what everyone sees from now on.
                if is_current:
                    await service.driver.settle(deadline_s)
            if is_whole:
                return answer

    return handle


def _shown_now(message: messages.Lookup | messages.GetAttr, attr: Attr) -> Ino | None:
    return attr.ino if message.at is None else None


# With each of these content would come to lie on this node.
_BRINGS_CONTENT = (
    messages.ExecutePut,
    messages.BlobCreate,
    messages.BlobAdopt,
    messages.BlobPut,
    messages.BlobCopy,
    messages.ReplicaPut,
    messages.ReplicaCreate,
)

_OPEN_QUERY = _query(lambda _, tree, m: tree.file_version(m.ino))

_HANDLERS: dict[type[Any], Handler] = {
    messages.Lookup: _query(
        lambda _, tree, m: tree.lookup(m.parent, m.name, m.at),
        lambda m: m.parent if m.at is None else None,
        _shown_now,
    ),
    messages.GetAttr: _query(lambda _, tree, m: tree.getattr(m.ino, m.at), shown_by=_shown_now),
    messages.ReadDir: _query(
        lambda _, tree, m: tree.readdir(m.ino, m.after_cookie, m.limit, m.at),
        lambda m: m.ino if m.at is None else None,
    ),
    messages.ReadLink: _query(lambda _, tree, m: tree.readlink(m.ino, m.at)),
    messages.GetXattr: _query(lambda _, tree, m: tree.getxattr(m.ino, m.name, m.at)),
    messages.ListXattr: _query(lambda _, tree, m: tree.listxattr(m.ino, m.at)),
    messages.GetFile: _query(lambda _, tree, m: tree.file_version(m.ino, m.at)),
    messages.Versions: _query(lambda _, tree, m: tree.versions_of(m.ino)[-messages.VERSIONS_MAX :]),
    messages.PathVersions: _query(
        lambda _, tree, m: tree.versions_of_path(m.path, m.at)[-messages.VERSIONS_MAX :]
    ),
    messages.PathOf: _query(lambda _, tree, m: tree.path_of(m.ino, m.at)),
    messages.Statfs: _query(lambda service, tree, m: service._statfs()),
    messages.IndexAt: _query(lambda _, tree, m: tree.index_at(m.time_ns)),
    messages.Open: Service._open,
    messages.Release: Service._release,
    messages.Execute: Service._execute,
    messages.ExecutePut: Service._execute_put,
    messages.Forward: Service._execute,
    messages.BlobCreate: Service._blob_create,
    messages.BlobWrite: Service._blob_write,
    messages.BlobAdopt: Service._blob_adopt,
    messages.BlobGrown: Service._blob_grown,
    messages.BlobTruncate: Service._blob_truncate,
    messages.BlobSeal: Service._blob_seal,
    messages.BlobAbort: Service._blob_abort,
    messages.BlobPut: Service._blob_put,
    messages.BlobRead: Service._blob_read,
    messages.BlobVerify: Service._blob_verify,
    messages.BlobCopy: Service._blob_copy,
    messages.SetLock: Service._set_lock,
    messages.GetLock: Service._get_lock,
    messages.Admin: Service._admin,
    messages.Subscribe: Service._subscribe,
    messages.Lease: Service._lease,
    messages.Nodes: lambda service, _: service.tree.nodes(),
    messages.ReplicaPut: Service._replica_put,
    messages.ReplicaCreate: Service._replica_create,
    messages.BlobStream: Service._blob_stream,
}
assert _HANDLERS.keys() == messages.REQUEST_OF_CLASS.keys()


def _require_place(session: Session) -> None:
    if len(session.writers) >= WRITERS_PER_SESSION_MAX:
        raise FileError(errno.ENFILE)


def _abort_unwanted(making: asyncio.Future[Writer]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().abort()  # in the loop: it is an empty file


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("dropping an unfinished blob failed: %s", error)
