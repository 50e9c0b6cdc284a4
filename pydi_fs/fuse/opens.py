"""Requests that open and close files: through the kernel's page cache, or passed through.

The part of `Dispatcher` that is about them. What is open under which node id keeps `nodeids`; whose
pages the kernel may keep, `page_cache`.

Most files that are opened once are opened again at once (headers of a compiler, modules, fonts,
configurations). So a handle that was open for reading is not taken apart at RELEASE but *parked*:
at the next OPEN of the same kind it is handed out again with the same answer, if the file's
attributes are still the very same object in the vfs's cache, which any change made here or
elsewhere replaces. That is a third of the work. What must not outlive a close does not: the node
hears that nobody holds the file, and the journal that the handle is closed.

    open ──RELEASE──► parked ──OPEN, nothing changed──► open
                         └── WARM_S after its OPEN, a change, an OPEN of another kind ──► closed
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from pydi_fs.fuse import abi, arguments, codec
from pydi_fs.fuse.codec import Header
from pydi_fs.fuse.nodeids import SECOND, NodeIds, Verdict
from pydi_fs.fuse.page_cache import PageCache
from pydi_fs.fuse.passthrough import Passthrough
from pydi_fs.fuse.xattrs import Xattrs
from pydi_fs.vfs.journal import Again, Opened
from pydi_fs.vfs.journalling import Journal
from pydi_fs.vfs.local_blobs import LocalBlob
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.records import Attr

# How long a handle may be handed out again. A file that comes to rest, or is fetched to this
# machine, while it is opened all the time is passed through that much later; and a blob's file that
# was deleted takes its space that much longer.
WARM_S = 1.0
# Some 4 KiB each. Whoever opens more than these in turn finds none of them parked.
PARKED_MAX = 4096
PASSED_MAX = 512  # with a descriptor each: when so many are open or parked, no more are parked


class _Warm:
    """A handle for reading, and how its OPEN is answered the next time."""

    __slots__ = ("again", "attr", "fh", "flags", "ino", "nodeid", "passing", "payload", "until_s")

    def __init__(
        self, nodeid: int, fh: int, flags: int, attr: Attr, passing: bool, payload: bytes,
        until_s: float,
    ) -> None:  # fmt: skip
        self.ino = Ino(nodeid & ~SECOND)
        self.nodeid = nodeid
        self.fh = fh
        self.flags = flags  # of open(2)
        self.attr = attr  # as the vfs had it at the OPEN
        self.passing = passing
        self.payload = payload
        self.until_s = until_s  # time.monotonic
        self.again: Again | None = None  # for the journal, from the second OPEN on

    def again_by(self, uid: int, gid: int) -> Again:
        """For the journal, when this user opens it; mostly the one that did before."""
        again = self.again
        if again is None or again.record.uid != uid or again.record.gid != gid:
            second = bool(self.nodeid & SECOND)
            record = Opened(0, self.fh, self.ino, self.flags, uid, gid, None, second, self.passing)
            again = self.again = Again(record)
        return again


class Opens(Xattrs):
    """What it needs of Dispatcher, and the handlers of its table of opcodes."""

    passthrough: Passthrough | None  # set when the kernel and our rights allow it
    _forget_attributes: Callable[[int], None]
    _journal: Journal

    def __init__(self, nodeids: NodeIds, passthrough_after_s: float | None) -> None:
        self.nodeids = nodeids
        self.pages = PageCache()
        self.passthrough = None
        self._passthrough_after_s = passthrough_after_s
        self._passed: dict[int, LocalBlob] = {}  # must stay open for handles that are passed
        self._warm: dict[int, _Warm] = {}  # by handle, open or parked
        self._parked: OrderedDict[int, _Warm] = OrderedDict()  # one of each file, the oldest first
        self._sweeping: asyncio.TimerHandle | None = None

    @abstractmethod
    def _entry(self, header: Header, attr: Attr) -> bytes:
        """The answer to a request that leads to a name."""

    @abstractmethod
    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what no request waits for."""

    @abstractmethod
    async def _clear_set_id(self, ino: Ino) -> None: ...

    # --- OPEN -------------------------------------------------------------------------------------

    def open_again(self, unique: int, nodeid: int, uid: int, gid: int, flags: int) -> bytes | None:
        """The answer to an OPEN of what is parked. None: `open_nowait`."""
        warm = self._parked.pop(nodeid & ~SECOND, None)
        if warm is None:
            return None
        if (
            warm.nodeid != nodeid
            or warm.flags != flags
            or warm.until_s <= time.monotonic()
            or not self._vfs.unpark(warm.fh, warm.attr)
        ):
            self._take_apart(warm)
            return None
        self._journal.opened_again(unique, warm.again_by(uid, gid))
        return warm.payload

    def open_nowait(self, header: Header, body: codec.Open) -> bytes | None:
        ino = Ino(header.nodeid)
        self._check_node_id(header, body)
        if body.open_flags & abi.FUSE_OPEN_KILL_SUIDGID:
            return None
        fh = self._vfs.open_nowait(self._caller(header), ino, body.flags)
        if fh is None:
            return None
        local: LocalBlob | None = None
        if self._shall_pass(ino, body.flags):
            known, local = self._vfs.local_file_nowait(fh)
            if not known:
                self._give_back(fh)
                return None
        payload = self._opened(header, body, fh, local)
        if payload is None:
            self._give_back(fh)
            raise _under_its_other_node_id()
        return payload

    async def open(self, header: Header, body: codec.Open) -> bytes:
        ino = Ino(header.nodeid)
        self._check_node_id(header, body)
        before = self._vfs.getattr_nowait(ino)
        if body.open_flags & abi.FUSE_OPEN_KILL_SUIDGID:
            await self._clear_set_id(ino)
        fh = await self._vfs.open(self._caller(header), ino, body.flags)
        try:
            local = await self._vfs.local_file(fh) if self._shall_pass(ino, body.flags) else None
        except BaseException:
            self._give_back(fh)
            raise
        after = self._vfs.getattr_nowait(ino)
        if before is None or after is None or before.changed != after.changed:
            # Close-to-open: the file was changed since the kernel last heard of it. The version
            # check drops its pages; without this it would cut reads at the size it remembers.
            self._forget_attributes(self.nodeids.of(ino))
        payload = self._opened(header, body, fh, local)
        if payload is None:
            await self._vfs.release(fh)
            raise _under_its_other_node_id()
        return payload

    def _check_node_id(self, header: Header, body: codec.Open) -> None:
        ino = Ino(header.nodeid)
        self._unpark(ino)  # no program has it open, so it says nothing against another kind of open
        if not self.nodeids.may_open(ino, header.second, arguments.writes(body.flags)):
            raise _under_its_other_node_id()

    def _give_back(self, fh: int) -> None:
        """Close a handle that the kernel does not know, or no longer."""
        if not self._vfs.release_nowait(fh):
            self._beside(self._vfs.release(fh))

    def _opened(
        self, header: Header, body: codec.Open, fh: int, local: LocalBlob | None
    ) -> bytes | None:
        """The answer, as it is booked. None: the kernel must take the other node id."""
        ino = Ino(header.nodeid)
        self._unpark(ino)  # another program may have closed it meanwhile
        backing_id = None
        if local is not None and self.passthrough is not None:
            backing_id = self.passthrough.backing_id(local)
        verdict = self.nodeids.opened(ino, header.second, fh, local if backing_id else None)
        if verdict is Verdict.STALE:
            return None
        attr = self._vfs.getattr_nowait(ino)
        if verdict is Verdict.PASSTHROUGH:
            assert local is not None
            assert backing_id is not None
            local.pin()
            self._passed[fh] = local
            self.pages.changed(ino)  # the kernel drops what it had
            self._note_open(header, ino, fh, body.flags, passing=True)
            flags = abi.FOPEN_PASSTHROUGH | abi.FOPEN_NOFLUSH
            payload = again = codec.encode_open(fh, flags, backing_id)
        else:
            self._note_open(header, ino, fh, body.flags)
            flags = self._open_flags(ino, fh, body.flags, attr)
            payload = codec.encode_open(fh, flags)
            again = codec.encode_open(fh, flags | abi.FOPEN_KEEP_CACHE)
            if not self.pages.is_known(ino):
                attr = None  # their version may be mixed: they are looked at each time
        if attr is not None and not arguments.writes(body.flags):
            nodeid = ino | SECOND if header.second else ino
            passing = verdict is Verdict.PASSTHROUGH
            until_s = time.monotonic() + self._warm_s(attr)
            self._warm[fh] = _Warm(nodeid, fh, body.flags, attr, passing, again, until_s)
        return payload

    def _warm_s(self, attr: Attr) -> float:
        """Until a file of these attributes may be opened in another way."""
        after_s = self._passthrough_after_s
        if self.passthrough is None or after_s is None:
            return WARM_S
        rest_s = after_s - (time.time_ns() - attr.mtime_ns) / 1e9
        return min(rest_s, WARM_S) if rest_s > 0 else WARM_S

    def _open_flags(self, ino: Ino, fh: int, flags: int, after: Attr | None) -> int:
        """FOPEN_* for a file just opened; ``after`` is what is known of it now."""
        open_flags = 0
        if self.pages.opened(ino, fh, after.version if after is not None else None):
            open_flags |= abi.FOPEN_KEEP_CACHE
        if flags & os.O_ACCMODE == os.O_RDONLY:
            # close() has nothing to publish, and a FLUSH each would be a third of the cost of
            # open, read, close.
            open_flags |= abi.FOPEN_NOFLUSH
        return open_flags

    def _note_open(
        self, header: Header, ino: Ino, fh: int, flags: int, passing: bool = False
    ) -> None:
        second = bool(self.nodeids.of(ino) & SECOND) and not passing
        caller = self._caller(header)
        self._journal.opened(header.unique, fh, ino, flags, caller, second, passing)

    def _shall_pass(self, ino: Ino, flags: int) -> bool:
        """Shall the kernel read the file instead of asking us, if there is one here?"""
        after_s = self._passthrough_after_s
        if self.passthrough is None or after_s is None or arguments.writes(flags):
            return False
        if not self.nodeids.may_pass(ino):
            return False
        attr = self._vfs.getattr_nowait(ino)
        return attr is not None and time.time_ns() - attr.mtime_ns >= after_s * 1e9

    # --- CREATE, TMPFILE --------------------------------------------------------------------------

    def create_nowait(self, header: Header, body: codec.Create) -> bytes | None:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        with self._journal.request(header.unique):
            made = self._vfs.create_nowait(
                caller, parent, body.name, body.mode & 0o7777, body.flags, umask
            )
        return None if made is None else self._created(header, *made, body.flags)

    async def create(self, header: Header, body: codec.Create) -> bytes:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        mode = body.mode & 0o7777
        attr, fh = await self._vfs.create(caller, parent, body.name, mode, body.flags, umask)
        return self._created(header, attr, fh, body.flags)

    async def tmpfile(self, header: Header, body: codec.Create) -> bytes:
        caller, parent, umask = self._caller(header), Ino(header.nodeid), self._umask(body.umask)
        attr, fh = await self._vfs.tmpfile(caller, parent, body.mode & 0o7777, body.flags, umask)
        return self._created(header, attr, fh, body.flags)

    def _created(self, header: Header, attr: Attr, fh: int, flags: int) -> bytes:
        self._unpark(attr.ino)
        self.nodeids.created(attr.ino, fh)
        open_flags = self._open_flags(attr.ino, fh, flags, attr)
        self._note_open(header, attr.ino, fh, flags)
        return self._entry(header, attr) + codec.encode_open(fh, open_flags)

    # --- RELEASE ----------------------------------------------------------------------------------

    def park(self, ino: int, fh: int) -> bool:
        """RELEASE of a handle through which nobody locked; False: close it."""
        warm = self._warm.get(fh)
        if warm is None or ino in self._parked:
            return False
        if (warm.passing and len(self._passed) > PASSED_MAX) or not self._vfs.park(fh):
            return False
        self._parked[ino] = warm
        if len(self._parked) > PARKED_MAX:
            self._take_apart(self._parked.popitem(last=False)[1])
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(WARM_S, self._sweep)
        if warm.again is None:
            self._journal.closed(fh)
        else:
            self._journal.closed_again(warm.again)
        return True

    def _closed(self, ino: Ino, fh: int) -> None:
        self._warm.pop(fh, None)
        self.pages.closed(ino, fh)
        self.nodeids.closed(ino, fh)
        local = self._passed.pop(fh, None)
        if local is not None:
            local.unpin()

    # --- answers that nobody got ------------------------------------------------------------------

    async def undo_open(self, header: Header, payload: bytes) -> None:
        await self._undo(Ino(header.nodeid), payload)

    async def undo_create(self, _header: Header, payload: bytes) -> None:
        nodeid = abi.fuse_entry_out.unpack_from(payload)[0]
        await self._undo(Ino(nodeid & ~SECOND), payload)

    async def _undo(self, ino: Ino, payload: bytes) -> None:
        fh = arguments.fh_in(payload)
        self._closed(ino, fh)
        await self._vfs.release(fh)
        self._journal.closed(fh)

    # --- what is parked ---------------------------------------------------------------------------

    def _unpark(self, ino: Ino) -> None:
        warm = self._parked.pop(ino, None)
        if warm is not None:
            self._take_apart(warm)

    def _take_apart(self, warm: _Warm) -> None:
        self._closed(warm.ino, warm.fh)
        self._give_back(warm.fh)

    def _sweep(self) -> None:
        self._sweeping = None
        now_s = time.monotonic()
        for warm in [warm for warm in self._parked.values() if warm.until_s <= now_s]:
            self._unpark(warm.ino)
        if self._parked:
            self._sweeping = asyncio.get_running_loop().call_later(WARM_S, self._sweep)

    def _close_parked(self) -> None:
        """The mount ends."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for ino in list(self._parked):
            self._unpark(Ino(ino))


def _under_its_other_node_id() -> FileError:
    return FileError(errno.ESTALE, "open it under its other node id")
