"""Requests that are nearly all there are, answered in one step where nothing is to be done.

Kernels open and close the same files again and again, and look the same names up where their caches
are over every second. Called by `Dispatcher.handle`, which does the same for every request, in two
to four times the time: whatever is out of the ordinary here is left to it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from pydi_fs.fuse import codec
from pydi_fs.fuse.abi import FuseOpcode
from pydi_fs.fuse.codec import Header, Timeout
from pydi_fs.fuse.lock_owners import LockOwners
from pydi_fs.fuse.nodeids import SECOND
from pydi_fs.fuse.opens import Opens
from pydi_fs.vfs.journalling import RESENT
from pydi_node.ids import Ino
from pydi_node.records import ST_MODE_BITS, Attr


class ShortCuts(Opens):
    """What it needs of Dispatcher, and the handlers by opcode. Each is given a whole request, and
    says whether it answered it."""

    _write: Callable[[Sequence[bytes]], bool]
    _handed_out: Callable[[int], None]
    _named: Callable[[int], None]
    _unheard: Callable[[], None]
    _lock_owners: LockOwners

    @abstractmethod
    def _reply(self, header: Header, error: int, payload: bytes) -> bool:
        """Answer; False if nobody waits for that any more."""

    @abstractmethod
    def _timeout_now(self, directory: int, nodeid: int, attr: Attr) -> Timeout:
        """How long the kernel may keep a name that is there now."""

    def _short_cuts(self) -> dict[int, Callable[[memoryview], bool]]:
        return {
            FuseOpcode.FUSE_LOOKUP: self._lookup_known,
            FuseOpcode.FUSE_OPEN: self._open_again,
            FuseOpcode.FUSE_RELEASE: self._release_again,
            FuseOpcode.FUSE_WRITE: self._write_staged,
        }

    def _lookup_known(self, request: memoryview) -> bool:
        """A name and attributes that are known, and none of them from here."""
        looking = codec.decode_lookup(request)
        if looking is None:
            return False
        unique, parent, name = looking  # no directory has a second node id
        attr = self._vfs.entry_nowait(Ino(parent), name)
        if attr is None or attr.mode > ST_MODE_BITS:
            return False
        nodeid = self.nodeids.of(attr.ino)
        self._handed_out(nodeid)
        self._named(parent)
        timeout = self._timeout_now(parent, nodeid, attr)
        self._answer(unique, codec.encode_entry(nodeid, attr, timeout))
        return True

    def _open_again(self, request: memoryview) -> bool:
        """An OPEN of what was open a moment ago."""
        opening = codec.decode_open(request)
        if opening is None:
            return False
        unique, nodeid, uid, gid, flags = opening
        if unique & RESENT:
            return False
        payload = self.open_again(unique, nodeid, uid, gid, flags)
        if payload is None:
            return False
        if not self._answer(unique, payload):
            self._beside(self._undo(Ino(nodeid & ~SECOND), payload))
        return True

    def _release_again(self, request: memoryview) -> bool:
        """A RELEASE of what may be opened again soon."""
        releasing = codec.decode_release(request)
        if releasing is None:
            return False
        unique, nodeid, fh = releasing
        ino = nodeid & ~SECOND
        if unique & RESENT or self._lock_owners.any_of(ino, fh) or not self.park(ino, fh):
            return False
        self._answer(unique, b"")
        return True

    def _write_staged(self, request: memoryview) -> bool:
        """A WRITE to a file of which nothing must be asked."""
        writing = codec.decode_write(request)
        if writing is None:
            return False
        unique, fh, offset, data, append = writing
        if unique & RESENT:
            return False
        self._journal.enter(unique)
        try:
            written = self._vfs.write_nowait(fh, offset, data, append)
        finally:
            self._journal.enter(0)
        if written is None:
            return False
        if not self._answer(unique, codec.encode_write(written)):
            self._unheard()
        return True

    def _answer(self, unique: int, payload: bytes) -> bool:
        """`_reply` with a success."""
        try:
            return self._write([codec.encode_reply(unique, payload)])
        except OSError:
            return self._reply(Header(0, unique, 0, 0, 0, 0), 0, payload)  # tries again, and tells
