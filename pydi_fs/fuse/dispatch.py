"""Requests of the kernel in, operations on a FileSystem, answers out. No device, no mount.

`binding` feeds it what the device delivers; the tests feed it bytes. Theory of operation:

    handle(bytes) ─ decode ─┬─ nowait handler knows the answer ───────────► write(answer)
                            └─ else a task runs the handler ── later ─────► write(answer)

Every request gets exactly one answer (FORGET and INTERRUPT by protocol none), whatever happens: an
outcome of the file system is its errno, a crash is EIO for that request with a traceback in the
log. It never waits, never raises, never notifies the kernel from a handler (`notify` says why; the
one exception that can't block is `forget_attributes`).

FUSE_INTERRUPT: the program got a signal, which need not be Ctrl-C: Go's scheduler, timers and
children ending cause it all the time. So a request goes on for INTERRUPT_GRACE_S, in which nearly
all end by themselves; after that the program gets EINTR. What only reads is then cancelled; what
changes something runs to its end unseen, for half a publication helps nobody. A wait for a lock,
which may rightly last for hours, is cancelled at once.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydi_fs.fuse import abi, arguments, codec
from pydi_fs.fuse.abi import FuseOpcode, InitFlag
from pydi_fs.fuse.closing import Closing
from pydi_fs.fuse.codec import CodecError, Header, Timeout
from pydi_fs.fuse.filesystem import FileSystem
from pydi_fs.fuse.keeping import KEPT, Keeping
from pydi_fs.fuse.listings import Drop, Listings
from pydi_fs.fuse.lock_owners import LockOwners
from pydi_fs.fuse.names import Names
from pydi_fs.fuse.negotiation import Negotiated, negotiate
from pydi_fs.fuse.nodeids import SECOND, NodeIds
from pydi_fs.fuse.opens import Opens
from pydi_fs.fuse.printer import describe_reply, describe_request
from pydi_fs.fuse.short_cuts import ShortCuts
from pydi_fs.fuse.xattrs import Xattrs
from pydi_fs.vfs.callers import groups_of
from pydi_fs.vfs.journal import State
from pydi_fs.vfs.journalling import RESENT, Journal
from pydi_fs.watch import KEPT_S
from pydi_node.commands import ROOT_CALLER, Caller
from pydi_node.errors import FileError, PydiError, errno_of
from pydi_node.ids import INT64_MAX, Ino
from pydi_node.records import NAME_MAX_BYTES, ST_MODE_BITS, Attr, DirEntry

log = logging.getLogger("pydi.fuse")

# How long the kernel may at most answer from names, attributes and absences by itself where nobody
# takes them back in time (`keeping`). It gets what is left of the lease, which is less: a stopped
# daemon can take nothing back.
CACHE_TIMEOUT_S = 60.0

# Long enough for what is merely slow, short enough for a person at the keyboard.
INTERRUPT_GRACE_S = 0.25

# The kernel rejects an answer with an errno of 512 or more, and the request would hang.
_ERRNO_LIMIT = 512

# Up to here it takes less to copy an answer's payload than to write two buffers.
_COPIED_BYTES_MAX = 4096

# Writes one message to the kernel. True: taken; False: nobody waits for it any more.
# OSError: malformed, the request is still unanswered.
WriteMessage = Callable[[Sequence[bytes]], bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the opcode table."""

    handle: Callable[[Dispatcher, Header, Any], Awaitable[bytes]]
    """The answer's payload; raises what `errno_of` understands."""

    nowait: Callable[[Dispatcher, Header, Any], bytes | None] | None = None
    """The payload if known without waiting, else None; both may be asked."""

    changes: bool = True
    """False: changes nothing, so an interrupt may cancel it at any point."""

    waits: bool = False
    """True: waits for other programs, so an interrupt cancels it at once."""

    undo: Callable[[Dispatcher, Header, bytes], Awaitable[None]] | None = None
    """Takes back a success whose answer nobody got, given the payload: a handle would leak."""


class Dispatcher(ShortCuts, Closing, Names):
    """Serves one mount.

    vfs           where operations go.
    write         takes each answer as a list of buffers.
    on_ready      called once when the kernel's INIT is answered.
    drop_listings  makes the kernel forget what directories contain.
    forget_attributes  tells the kernel to ask for a node id's attributes again; must not block.
    handed_out    told each node id whose attributes go to the kernel.
    named         told each directory of which a name, or an absence, goes to the kernel.
    remembered_s  the time-out to give now instead of one that is no shorter.
    unheard       called when names changed here of which the kernel may not know; must not block.
    cache_timeout_s  seconds, see CACHE_TIMEOUT_S.
    kernel_checks    the mount has default_permissions.
    passthrough_after_s  seconds without a change before a file is passed through; None: never is.
    journal       what a successor of this process must know goes there.
    debug         log every request and answer.
    """

    def __init__(
        self,
        vfs: FileSystem,
        write: WriteMessage,
        *,
        on_ready: Callable[[Negotiated], None],
        forget_attributes: Callable[[int], None],
        drop_listings: Drop,
        handed_out: Callable[[int], None],
        named: Callable[[int], None] = lambda directory: None,
        remembered_s: Callable[[float], float] = lambda timeout_s: timeout_s,
        unheard: Callable[[], None] = lambda: None,
        telling: Callable[[], asyncio.Future[None] | None] = lambda: None,
        cache_timeout_s: float = CACHE_TIMEOUT_S,
        kernel_checks: bool = True,
        passthrough_after_s: float | None = None,
        journal: Journal | None = None,
        debug: bool = False,
    ) -> None:
        super().__init__(NodeIds(forget_attributes), passthrough_after_s)
        self._vfs = vfs
        self._write = write
        self._on_ready = on_ready
        self._forget_attributes = forget_attributes
        self._handed_out = handed_out
        self._named = named
        self._remembered_s = remembered_s
        self._unheard = unheard
        self._telling = telling  # done when the kernel was told of all that others changed so far
        self.keeping: Keeping | None = None  # set when there is a watch, and a kernel with epochs
        self._timeout_max_s = cache_timeout_s
        self._kernel_checks = kernel_checks
        self._agreed = InitFlag(0)  # what INIT agreed on
        self._debug = debug
        # Else who asks is looked up, or everything is told. By the low byte of their opcode.
        self._by_opcode = self._short_cuts() if kernel_checks and not debug else {}
        self._journal = journal or Journal()
        self.listings = Listings(drop_listings, self._journal)
        self._lock_owners = LockOwners()
        # Requests without an answer yet, by unique.
        self._running: dict[int, tuple[asyncio.Task[None], Operation]] = {}
        self._began: dict[int, int] = {}  # of those: how many pushes there had been
        # Keeps alive what runs on after its request was answered.
        self._abandoned: set[asyncio.Task[None]] = set()
        self._unknown_opcodes: set[int] = set()

    # --- in ---------------------------------------------------------------------------------------

    def handle(self, request: memoryview) -> None:
        """Answer one request, now or later. The buffer may be reused on return."""
        short = self._by_opcode.get(request[4]) if len(request) > codec.HEADER_BYTES else None
        if short is not None:
            try:
                if short(request):
                    return
            except Exception as exc:
                header, _ = codec.decode_header(request)
                self._reply(header, self._errno_of(header, exc), b"")
                return
        try:
            header, body_bytes = codec.decode_header(request)
        except CodecError as exc:
            log.error("dropped a message of the kernel: %s", exc)
            return
        if header.nodeid & SECOND:
            # From here on both node ids are the inode number.
            header = header._replace(nodeid=header.nodeid ^ SECOND, second=True)
        opcode = header.opcode
        try:
            body = codec.decode_body(opcode, body_bytes, self._agreed)
        except CodecError as exc:
            log.error("refused a request of the kernel: %s", exc)
            if opcode not in _WITHOUT_ANSWER:
                self._reply(header, errno.EINVAL, b"")
            return
        except KeyError:
            self._refuse_unknown(header)
            return
        if self._debug:
            log.debug("%s", describe_request(header, body))

        if opcode in _WITHOUT_ANSWER:
            if opcode == FuseOpcode.FUSE_INTERRUPT:
                self._on_interrupt(body.unique)
            return
        if opcode == FuseOpcode.FUSE_SETLKW and body.kind == fcntl.F_UNLCK:
            opcode = FuseOpcode.FUSE_SETLK  # it waits for nobody: no signal takes it back
        operation = _OPERATIONS[opcode]
        # What comes again may have been done before, which takes a task to find out.
        if operation.nowait is not None and (not header.unique & RESENT or not operation.changes):
            if operation.changes:
                self._journal.enter(header.unique)
            try:
                payload = operation.nowait(self, header, body)
            except Exception as exc:
                self._reply(header, self._errno_of(header, exc), b"")
                return
            if payload is not None:
                delivered = self._reply(header, 0, payload)
                if operation.changes:
                    self._journal.answered(header.unique)
                    if not delivered:
                        self._unheard()
                        if operation.undo is not None:
                            self._beside(self._take_undo(operation, header, payload))
                return
        if opcode == FuseOpcode.FUSE_WRITE:
            body = body.owned()  # the request's buffer is used again
        self._began[header.unique] = self._vfs.pushes
        task = asyncio.create_task(self._run(operation, header, body))
        self._running[header.unique] = (task, operation)

    def restore(self, state: State) -> list[int]:
        """Go on with the handles of the worker before this one. The node ids that are open."""
        if state.agreed is not None:
            self._agreed = InitFlag(state.agreed.flags)
        nodeids: dict[int, None] = {}
        for opened in state.handles.values():
            ino = Ino(opened.ino)
            self.nodeids.restore(ino, opened.second, opened.fh, opened.passing)
            if not opened.passing:
                self.pages.opened(ino, opened.fh, None)
            nodeids[ino | SECOND if opened.second else ino] = None
        for lock in state.locks:
            self._lock_owners.locked(Ino(lock.ino), lock.fh, lock.owner)
        return [*nodeids, *state.listed]

    @property
    def running(self) -> Sequence[int]:
        """Numbers of the requests that are not answered yet."""
        return tuple(self._running)

    async def stop(self) -> None:
        """Returns when nothing runs any more: readers and lock waiters are cancelled, changes go on
        to their end (each has a deadline). Call it when no more requests can come."""
        self.listings.stop()
        self._close_parked()
        for task, operation in list(self._running.values()):
            if operation.waits or not operation.changes:
                _cancel(task)
        while tasks := [*(task for task, _ in self._running.values()), *self._abandoned]:
            await asyncio.wait(tasks)

    # --- out --------------------------------------------------------------------------------------

    async def _run(self, operation: Operation, header: Header, body: Any) -> None:
        payload = b""
        error = 0
        self._journal.enter(header.unique)
        try:
            if header.unique & RESENT:
                await self._take_back(header)
            payload = await operation.handle(self, header, body)
        except asyncio.CancelledError:
            error = errno.EINTR
        except Exception as exc:
            error = self._errno_of(header, exc)
        self._began.pop(header.unique, None)
        # An abandoned request is no longer in the table: it was answered EINTR.
        waited_for = self._running.pop(header.unique, None) is not None
        delivered = waited_for and self._reply(header, error, payload)
        self._journal.answered(header.unique)
        if not delivered and not error:
            if operation.changes:
                self._unheard()
            await self._take_undo(operation, header, payload)

    async def _take_undo(self, operation: Operation, header: Header, payload: bytes) -> None:
        """Nobody got this answer."""
        if operation.undo is None:
            return
        try:
            await operation.undo(self, header, payload)
        except Exception as exc:
            self._errno_of(header, exc)  # only for the log: nobody is left to tell

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what no request waits for."""
        task = asyncio.create_task(work)
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def _take_back(self, header: Header) -> None:
        """This request was answered with a handle, and the answer got lost with its worker."""
        fh = self._journal.handed_before(header.unique)
        if fh is None:
            return
        try:
            self._closed(self._vfs.ino_of(fh), fh)
            await self._vfs.release(fh)
        except FileError:
            pass  # it could not be restored
        self._journal.closed(fh)

    def _reply(self, header: Header, error: int, payload: bytes) -> bool:
        """True if the kernel took the answer."""
        if self._debug:
            log.debug("%s", describe_reply(header, error, payload))
        unique = header.unique
        message = [codec.encode_reply_header(unique, error, len(payload)), payload]
        if len(payload) < _COPIED_BYTES_MAX:
            message = [b"".join(message)]
        try:
            return self._write(message)
        except OSError:
            # Without this answer the program would hang for ever.
            log.exception("the kernel refused an answer to opcode %d", header.opcode)
        try:
            self._write([codec.encode_reply_header(unique, errno.EIO, 0)])
        except OSError:
            log.exception("the kernel refused EIO for opcode %d", header.opcode)
        return False

    def _errno_of(self, header: Header, exc: Exception) -> int:
        """The errno for a failed handler; what is no outcome but a bug also goes to the log."""
        if not isinstance(exc, (PydiError, OSError)):
            log.error("opcode %d crashed", header.opcode, exc_info=exc)
        number = errno_of(exc)
        return number if 0 < number < _ERRNO_LIMIT else errno.EIO

    def _refuse_unknown(self, header: Header) -> None:
        if header.opcode not in self._unknown_opcodes:
            self._unknown_opcodes.add(header.opcode)
            log.info("the kernel asks for opcode %d, which is not supported", header.opcode)
        self._reply(header, errno.ENOSYS, b"")

    # --- interrupts -------------------------------------------------------------------------------

    def _on_interrupt(self, unique: int) -> None:
        running = self._running.get(unique)
        if running is None:
            return  # answered meanwhile
        task, operation = running
        if operation.waits:
            _cancel(task)
        else:
            asyncio.get_running_loop().call_later(INTERRUPT_GRACE_S, self._give_up, unique)

    def _give_up(self, unique: int) -> None:
        """The grace after an interrupt is over."""
        running = self._running.get(unique)
        if running is None:
            return
        task, operation = running
        if not operation.changes:
            _cancel(task)
            return
        del self._running[unique]
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        self._reply(Header(0, unique, 0, 0, 0, 0), errno.EINTR, b"")

    # --- helpers of the handlers ------------------------------------------------------------------

    def _caller(self, header: Header) -> Caller:
        if self._kernel_checks:
            return Caller(header.uid, header.gid)
        return Caller(header.uid, header.gid, groups_of(header.pid))

    def _timeout(self, header: Header) -> Timeout:
        return Timeout.of(self._timeout_s(header))

    def _timeout_s(self, header: Header) -> float:
        """How long the kernel may keep the answer to this request, given now.

        Not at all if a change made elsewhere came in between: it may have changed what the answer
        shows, and the kernel, told of it before, may not have known that yet.
        """
        if self._began.get(header.unique, self._vfs.pushes) != self._vfs.pushes:
            return 0.0
        return self._remembered_s(min(self._vfs.lease_s(), self._timeout_max_s))

    def _timeout_now(self, directory: int, nodeid: int, attr: Attr) -> Timeout:
        timeout_s = self._remembered_s(min(self._vfs.lease_s(), self._timeout_max_s))
        return self._entry_timeout(timeout_s, directory, nodeid, attr)

    def _entry_timeout(self, timeout_s: float, directory: int, nodeid: int, attr: Attr) -> Timeout:
        """How long the kernel may keep a name that it asked for, and the attributes behind it."""
        keeping = self._keeping_of(timeout_s, attr, bool(nodeid & SECOND))
        if keeping is not None and keeping.keeps_entry(directory, nodeid):
            return KEPT
        return Timeout.of(timeout_s)

    def _keeping_of(self, timeout_s: float, attr: Attr, second: bool) -> Keeping | None:
        """What may say that the kernel keeps these attributes; None: they are not for keeping.

        Of a second node id never for long: it may be forgotten here and not there (`nodeids`), and
        nobody would say when its attributes change.
        """
        if self.keeping is None or timeout_s <= 0 or second or not self._vfs.is_settled(attr):
            return None
        return self.keeping

    def _entry(self, header: Header, attr: Attr) -> bytes:
        """As long as the lease, at most: what the kernel is told of an inode that it has just made
        or linked it takes in though told of a change of it meanwhile."""
        nodeid = self.nodeids.of(attr.ino)
        self._handed_out(nodeid)
        self._named(header.nodeid)
        return codec.encode_entry(nodeid, self._shown(attr), self._timeout(header))

    def _found(self, header: Header, attr: Attr) -> bytes:
        """The answer to a look-up."""
        nodeid = self.nodeids.of(attr.ino)
        self._handed_out(nodeid)
        self._named(header.nodeid)
        timeout = self._entry_timeout(self._timeout_s(header), header.nodeid, nodeid, attr)
        return codec.encode_entry(nodeid, self._shown(attr), timeout)

    def _attr(self, header: Header, attr: Attr) -> bytes:
        return codec.encode_attr(self._shown(attr), self._attr_timeout(header, attr))

    def _attr_timeout(self, header: Header, attr: Attr) -> Timeout:
        """How long the kernel may believe the attributes that it asked for."""
        if self.nodeids.is_outdated(Ino(header.nodeid), header.second):
            return _NO_TIMEOUT
        timeout_s = self._timeout_s(header)
        keeping = self._keeping_of(timeout_s, attr, header.second)
        if keeping is not None and keeping.keeps(header.nodeid):
            return KEPT
        return Timeout.of(timeout_s)

    async def _clear_set_id(self, ino: Ino) -> None:
        """The kernel asks for this where a write must take set-user-id and set-group-id away."""
        mode = await self._mode_without_set_id(ino)
        if mode is not None:
            await self._vfs.setattr(ROOT_CALLER, ino, mode=mode)

    async def _mode_without_set_id(self, ino: Ino) -> int | None:
        attr = self._vfs.getattr_nowait(ino) or await self._vfs.getattr(ino)
        return arguments.mode_without_set_id(self._shown(attr))

    # --- handlers: names and attributes -----------------------------------------------------------

    def _init_nowait(self, _header: Header, body: codec.Init) -> bytes:
        agreed = negotiate(body, self._passthrough_after_s is not None, self._kernel_checks)
        if isinstance(agreed, bytes):
            return agreed
        self._agreed = agreed.flags
        self._on_ready(agreed)
        return agreed.reply

    def _lookup_nowait(self, header: Header, body: codec.Named) -> bytes | None:
        try:
            attr = self._vfs.lookup_nowait(Ino(header.nodeid), body.name)
        except FileError as exc:
            return self._absent(header, body.name, exc)
        return None if attr is None else self._found(header, attr)

    async def _lookup(self, header: Header, body: codec.Named) -> bytes:
        try:
            return self._found(header, await self._vfs.lookup(Ino(header.nodeid), body.name))
        except FileError as exc:
            return self._absent(header, body.name, exc)

    def _absent(self, header: Header, name: bytes, error: FileError) -> bytes:
        """An absence that the kernel may remember; any other error goes on."""
        if error.errno != errno.ENOENT:
            raise error
        parent = header.nodeid
        self._named(parent)
        timeout_s = self._timeout_s(header)
        if (
            self.keeping is not None
            and timeout_s > 0
            and self._vfs.is_absent(Ino(parent), name)
            and self.keeping.keeps_absence(parent)
        ):
            return codec.encode_negative_entry(KEPT)
        return codec.encode_negative_entry(Timeout.of(timeout_s))

    def _getattr_nowait(self, header: Header, _body: codec.Empty) -> bytes | None:
        attr = self._vfs.getattr_nowait(Ino(header.nodeid))
        return None if attr is None else self._attr(header, attr)

    async def _getattr(self, header: Header, _body: codec.Empty) -> bytes:
        return self._attr(header, await self._asked_attr(header))

    def _statx_nowait(self, header: Header, _body: codec.Empty) -> bytes | None:
        attr = self._vfs.getattr_nowait(Ino(header.nodeid))
        if attr is None:
            return None
        return codec.encode_statx(self._shown(attr), self._attr_timeout(header, attr))

    async def _statx(self, header: Header, _body: codec.Empty) -> bytes:
        attr = await self._asked_attr(header)
        return codec.encode_statx(self._shown(attr), self._attr_timeout(header, attr))

    async def _asked_attr(self, header: Header) -> Attr:
        attr = await self._vfs.getattr(Ino(header.nodeid))
        if attr.is_dir and (telling := self._telling()) is not None:
            # Behind a daemon that was stopped nobody waited for the kernel to hear of changes.
            # Whoever waits for this answer may go on to a listing that is one of them.
            await asyncio.wait([telling])
        return attr

    async def _setattr(self, header: Header, body: codec.Setattr) -> bytes:
        ino = Ino(header.nodeid)
        valid = body.valid
        mode = body.mode & 0o7777 if valid & abi.FATTR_MODE else None
        if mode is None and valid & abi.FATTR_KILL_SUIDGID:
            mode = await self._mode_without_set_id(ino)
        attr = await self._vfs.setattr(
            self._caller(header),
            ino,
            mode=mode,
            uid=body.uid if valid & abi.FATTR_UID else None,
            gid=body.gid if valid & abi.FATTR_GID else None,
            size=arguments.size(body.size) if valid & abi.FATTR_SIZE else None,
            atime_ns=arguments.time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, body.atime_ns),
            mtime_ns=arguments.time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, body.mtime_ns),
            fh=body.fh if valid & abi.FATTR_FH else None,
        )
        if self.nodeids.is_outdated(ino, header.second):
            self._forget_attributes(self.nodeids.of(ino))
            return codec.encode_attr(self._shown(attr), _NO_TIMEOUT)
        # As long as the lease, at most: see `_entry`.
        return codec.encode_attr(self._shown(attr), self._timeout(header))

    async def _access(self, header: Header, body: codec.Access) -> bytes:
        await self._vfs.access(self._caller(header), Ino(header.nodeid), body.mask)
        return b""

    async def _readlink(self, header: Header, _body: codec.Empty) -> bytes:
        return await self._vfs.readlink(Ino(header.nodeid))

    async def _statfs(self, _header: Header, _body: codec.Empty) -> bytes:
        return codec.encode_statfs(await self._vfs.statfs(), NAME_MAX_BYTES)

    async def _done(self, header: Header, _body: Any) -> bytes:
        raise AssertionError(header)  # its twin always knows the answer

    def _ioctl_nowait(self, _header: Header, _body: codec.Ioctl) -> bytes:
        # Python's open() asks every file whether it is a terminal.
        raise FileError(errno.ENOTTY)

    # --- handlers: directories --------------------------------------------------------------------

    def _opendir_nowait(self, _header: Header, _body: codec.Open) -> bytes:
        if self._kernel_checks:
            raise FileError(errno.ENOSYS, "the kernel opens directories by itself: see listings")
        return codec.encode_open(0, 0)  # it may do so without a look at the attributes

    async def _readdir(self, header: Header, body: codec.Read) -> bytes:
        dots = self._dots(header, body, plus=False)
        space = body.size - len(dots)
        limit = max(1, space // codec.DIRENT_MIN_BYTES)
        entries, timeout_s = await self._entries(header, body, limit)
        self._listed(header, timeout_s, True)
        return dots + codec.encode_dirents(entries, space)

    async def _readdirplus(self, header: Header, body: codec.Read) -> bytes:
        dots = self._dots(header, body, plus=True)
        space = body.size - len(dots)
        limit = max(1, space // codec.DIRENTPLUS_MIN_BYTES)
        entries, timeout_s = await self._entries(header, body, limit)
        parent = header.nodeid
        if self.keeping is not None:
            self.keeping.listed(parent)
        timeouts = []
        for entry in entries:
            nodeid = self.nodeids.of(entry.attr.ino)
            self._handed_out(nodeid)
            timeouts.append(self._entry_timeout(timeout_s, parent, nodeid, entry.attr))
        self._named(parent)
        # With one of them the listing goes: then one question brings them all.
        self._listed(header, timeout_s, all(timeout is KEPT for timeout in timeouts))
        if any(entry.attr.mode > ST_MODE_BITS for entry in entries):
            entries = [entry._replace(attr=self._shown(entry.attr)) for entry in entries]
        return dots + codec.encode_direntsplus(entries, self.nodeids.of, timeouts, space)

    def _listed(self, header: Header, timeout_s: float, may_keep: bool) -> None:
        """Entries are about to be sent."""
        keeping, directory = self.keeping, header.nodeid
        if may_keep and keeping is not None and timeout_s > 0 and keeping.keeps_absence(directory):
            timeout_s = KEPT_S
        self.listings.answered(Ino(directory), timeout_s)

    async def _entries(
        self, header: Header, body: codec.Read, limit: int
    ) -> tuple[list[DirEntry], float]:
        """And how long they may be believed without a watch."""
        ino = Ino(header.nodeid)
        if body.offset == 0:
            attr = self._vfs.getattr_nowait(ino)
            await self.listings.begin(ino, None if attr is None else attr.changed)
        try:
            cookie = max(0, body.offset - codec.COOKIE_SHIFT)
            entries = await self._vfs.entries(ino, header.pid, cookie, limit)
        except BaseException:
            self.listings.answered(ino, 0.0)
            raise
        return entries, self._timeout_s(header)

    def _dots(self, header: Header, body: codec.Read, plus: bool) -> bytes:
        if body.offset >= codec.DOT_DOT_OFFSET:
            return b""
        dots = b"".join(codec.encode_dots(header.nodeid, plus)[body.offset :])
        if len(dots) > body.size:
            raise FileError(errno.EINVAL, "buffer too small for a directory entry")
        return dots

    def _done_nowait(self, _header: Header, _body: Any) -> bytes:
        """RELEASEDIR: there is no handle. DESTROY: the device ends next, and that is what `binding`
        waits for."""
        return b""

    # --- handlers: files --------------------------------------------------------------------------

    async def _read(self, _header: Header, body: codec.Read) -> bytes:
        return await self._vfs.read(body.fh, arguments.size(body.offset), body.size)

    def _write_nowait(self, header: Header, body: codec.Write) -> bytes | None:
        if body.write_flags & abi.FUSE_WRITE_KILL_SUIDGID:
            return None
        with self._journal.request(header.unique):
            written = self._vfs.write_nowait(
                body.fh, arguments.size(body.offset), body.data, body.append
            )
        return None if written is None else codec.encode_write(written)

    async def _write_file(self, header: Header, body: codec.Write) -> bytes:
        before = self._journal.written_before(header.unique)
        if before is not None:
            return codec.encode_write(before)
        if body.write_flags & abi.FUSE_WRITE_KILL_SUIDGID:
            await self._clear_set_id(Ino(header.nodeid))
        return codec.encode_write(
            await self._vfs.write(body.fh, arguments.size(body.offset), body.data, body.append)
        )

    async def _fallocate(self, _header: Header, body: codec.Fallocate) -> bytes:
        offset, length = arguments.size(body.offset), arguments.size(body.length)
        await self._vfs.fallocate(body.fh, body.mode, offset, length)
        return b""

    async def _lseek(self, _header: Header, body: codec.Lseek) -> bytes:
        return codec.encode_lseek(
            await self._vfs.lseek(body.fh, arguments.size(body.offset), body.whence)
        )

    async def _copy_file_range(self, _header: Header, body: codec.CopyFileRange) -> bytes:
        return codec.encode_write(await self._copy(body, _COPY_32_MAX_BYTES))

    async def _copy_file_range_64(self, _header: Header, body: codec.CopyFileRange) -> bytes:
        return codec.encode_copied_64(await self._copy(body, INT64_MAX))

    async def _copy(self, body: codec.CopyFileRange, length_max: int) -> int:
        return await self._vfs.copy_file_range(
            body.fh_in,
            arguments.size(body.offset_in),
            body.fh_out,
            arguments.size(body.offset_out),
            min(body.length, length_max),
        )

    # --- handlers: locks --------------------------------------------------------------------------

    async def _getlk(self, _header: Header, body: codec.Lock) -> bytes:
        return codec.encode_lock(
            *await self._vfs.getlk(body.fh, body.owner, body.kind, body.start, body.end, body.pid)
        )

    def _setlk_nowait(self, header: Header, body: codec.Lock) -> bytes | None:
        return self._lock_nowait(header, body, wait=False)

    def _setlkw_nowait(self, header: Header, body: codec.Lock) -> bytes | None:
        return self._lock_nowait(header, body, wait=True)

    def _lock_nowait(self, header: Header, body: codec.Lock, wait: bool) -> bytes | None:
        if body.flock:
            return None
        self._note_locker(header, body)
        done = self._vfs.setlk_nowait(
            body.fh, body.owner, body.kind, body.start, body.end, body.pid, wait
        )
        return b"" if done else None

    def _note_locker(self, header: Header, body: codec.Lock) -> None:
        """Before the wait: the close that gives it back may come while this is still under way."""
        if not body.flock and body.kind != fcntl.F_UNLCK:
            self._lock_owners.locked(Ino(header.nodeid), body.fh, body.owner)
            self._journal.locked(Ino(header.nodeid), body.fh, body.owner)

    async def _setlk(self, header: Header, body: codec.Lock) -> bytes:
        return await self._lock(header, body, wait=False)

    async def _setlkw(self, header: Header, body: codec.Lock) -> bytes:
        return await self._lock(header, body, wait=True)

    async def _lock(self, header: Header, body: codec.Lock, wait: bool) -> bytes:
        self._note_locker(header, body)
        await self._vfs.setlk(
            body.fh,
            body.owner,
            body.kind,
            body.start,
            body.end,
            body.pid,
            wait=wait,
            flock=body.flock,
        )
        return b""

    OPERATIONS: ClassVar[dict[int, Operation]] = {
        FuseOpcode.FUSE_INIT: Operation(_done, nowait=_init_nowait, changes=False),
        FuseOpcode.FUSE_DESTROY: Operation(_done, nowait=_done_nowait, changes=False),
        FuseOpcode.FUSE_LOOKUP: Operation(_lookup, nowait=_lookup_nowait, changes=False),
        FuseOpcode.FUSE_GETATTR: Operation(_getattr, nowait=_getattr_nowait, changes=False),
        FuseOpcode.FUSE_STATX: Operation(_statx, nowait=_statx_nowait, changes=False),
        FuseOpcode.FUSE_SETATTR: Operation(_setattr),
        FuseOpcode.FUSE_ACCESS: Operation(_access, changes=False),
        FuseOpcode.FUSE_READLINK: Operation(_readlink, changes=False),
        FuseOpcode.FUSE_MKDIR: Operation(Names.mkdir, nowait=Names.mkdir_nowait),
        FuseOpcode.FUSE_MKNOD: Operation(Names.mknod),
        FuseOpcode.FUSE_SYMLINK: Operation(Names.symlink, nowait=Names.symlink_nowait),
        FuseOpcode.FUSE_LINK: Operation(Names.link),
        FuseOpcode.FUSE_UNLINK: Operation(Names.unlink, nowait=Names.unlink_nowait),
        FuseOpcode.FUSE_RMDIR: Operation(Names.rmdir, nowait=Names.rmdir_nowait),
        FuseOpcode.FUSE_RENAME: Operation(Names.rename, nowait=Names.rename_nowait),
        FuseOpcode.FUSE_RENAME2: Operation(Names.rename, nowait=Names.rename_nowait),
        FuseOpcode.FUSE_STATFS: Operation(_statfs, changes=False),
        FuseOpcode.FUSE_IOCTL: Operation(_done, nowait=_ioctl_nowait, changes=False),
        FuseOpcode.FUSE_GETXATTR: Operation(Xattrs.getxattr, nowait=Xattrs.known, changes=False),
        FuseOpcode.FUSE_LISTXATTR: Operation(Xattrs.listxattr, changes=False),
        FuseOpcode.FUSE_SETXATTR: Operation(Xattrs.setxattr, nowait=Xattrs.refused),
        FuseOpcode.FUSE_REMOVEXATTR: Operation(Xattrs.removexattr, nowait=Xattrs.refused),
        FuseOpcode.FUSE_OPENDIR: Operation(_done, nowait=_opendir_nowait, changes=False),
        FuseOpcode.FUSE_READDIR: Operation(_readdir, changes=False),
        FuseOpcode.FUSE_READDIRPLUS: Operation(_readdirplus, changes=False),
        FuseOpcode.FUSE_RELEASEDIR: Operation(_done, nowait=_done_nowait, changes=False),
        FuseOpcode.FUSE_FSYNCDIR: Operation(Closing.fsyncdir),
        FuseOpcode.FUSE_OPEN: Operation(Opens.open, nowait=Opens.open_nowait, undo=Opens.undo_open),
        FuseOpcode.FUSE_CREATE: Operation(
            Opens.create, nowait=Opens.create_nowait, undo=Opens.undo_create),
        FuseOpcode.FUSE_TMPFILE: Operation(Opens.tmpfile, undo=Opens.undo_create),
        FuseOpcode.FUSE_READ: Operation(_read, changes=False),
        FuseOpcode.FUSE_WRITE: Operation(_write_file, nowait=_write_nowait),
        FuseOpcode.FUSE_FLUSH: Operation(Closing.flush, nowait=Closing.flush_nowait),
        FuseOpcode.FUSE_FSYNC: Operation(Closing.fsync),
        FuseOpcode.FUSE_RELEASE: Operation(Closing.release, nowait=Closing.release_nowait),
        FuseOpcode.FUSE_FALLOCATE: Operation(_fallocate),
        FuseOpcode.FUSE_LSEEK: Operation(_lseek, changes=False),
        FuseOpcode.FUSE_COPY_FILE_RANGE: Operation(_copy_file_range),
        FuseOpcode.FUSE_COPY_FILE_RANGE_64: Operation(_copy_file_range_64),
        FuseOpcode.FUSE_SYNCFS: Operation(Closing.syncfs),
        FuseOpcode.FUSE_GETLK: Operation(_getlk, changes=False),
        FuseOpcode.FUSE_SETLK: Operation(_setlk, nowait=_setlk_nowait),
        FuseOpcode.FUSE_SETLKW: Operation(_setlkw, nowait=_setlkw_nowait, waits=True),
    }  # fmt: skip


_OPERATIONS = Dispatcher.OPERATIONS

# By protocol nobody waits for an answer to these. FORGET needs no work at all: a node id is the
# inode number and means the same whether the kernel remembers it or not (`nodeids`).
_WITHOUT_ANSWER = frozenset(
    (FuseOpcode.FUSE_FORGET, FuseOpcode.FUSE_BATCH_FORGET, FuseOpcode.FUSE_INTERRUPT)
)

# What the kernel is told of a node id that it will not be told any changes of.
_NO_TIMEOUT = Timeout.of(0.0)

# The kernel's own limit for the answer with 32 bits: the largest multiple of a page below 4 GiB.
_COPY_32_MAX_BYTES = 0xFFFF_F000


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel after the task's first step: cancelled before it, it would never answer."""
    asyncio.get_running_loop().call_soon(task.cancel)
