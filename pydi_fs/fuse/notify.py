"""Tells the kernel what changed elsewhere: one thread of its own, with its own queue.

`binding` hands it what the vfs reports. Why a thread: INVAL_ENTRY waits for every operation under
way in that directory, and INVAL_INODE with pages for READs and WRITEs of that file. Written from
the loop, which is what answers those operations, either would wait for itself for ever, in a state
that not even SIGKILL ends. So: never from a handler, and no handler ever waits for this thread.

For each change, in this order (each line closes a race that was seen):

    INVAL_ENTRY(dir, name)   also waits for a LOOKUP in flight and drops what it brings
    INVAL_INODE(dir, pages)  its listing and attributes; an unknown name leaves the listing alone,
                             but even that waits for a READDIR in flight and what it brings
    INVAL_INODE(ino, pages)  attributes and content

Two cases end in INC_EPOCH, which makes every name stale, costs the kernel nothing, and can't block:

 * INVAL_INODE says ENOENT for an inode whose attributes we have just sent. The answer may be in
   flight, carry old attributes, and be believed for the whole time-out.
 * The thread is still waiting after DEADLINE_S, because a local operation in the same directory
   waits for the cluster. Whoever changed a name elsewhere must not wait for that. What has no name,
   and queued up behind, loses its attributes instead: that can't block either.

What the kernel keeps for longer than a lease (`keeping`) asks for more: an answer on its way that
carries old attributes would be believed for a minute. So an inode that may be kept and that the
kernel did not know is told to it again: behind whoever lists one of the directories that were
listed in the last seconds, for memory to read into may be long in coming; and a few times more,
until who waits for another answer has certainly run.
A LOOKUP's name is as old as its question; one of READDIRPLUS is as new as the moment in which it is
taken in. So where all names go, the second epoch comes behind what was listed in these seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from queue import SimpleQueue
from typing import NamedTuple

from pydi_fs.fuse import codec
from pydi_fs.fuse.filesystem import Entries
from pydi_fs.fuse.keeping import Keeping
from pydi_fs.watch import AGAIN_NS

log = logging.getLogger("pydi.fuse")

# How long a name may stay stale behind a local operation before all names are made stale.
DEADLINE_S = 0.02

# How long a kernel without epochs remembers nothing after a name had to wait for a time-out of it.
# Of two mounts that make 20 files each in one directory: 0.5 s in all, and 11 s with time-outs.
CAREFUL_S = 10.0

# The kernel counts time-outs in ticks, of 10 ms at most, and rounds them up.
TICKS_S = 0.02

# Inodes whose attributes were sent lately. It must exceed what can be in flight: programs waiting
# at a time, and one READDIRPLUS answer of 1 MiB (6,500 entries).
HANDED_OUT_MAX = 16384

# As long as the kernel may believe a name at most: a lease that was given just now, rounded up.
NAME_REMEMBERED_S = 1.2

# Of inodes that are told again: so many in one turn of the loop take 2 ms.
AGAIN_AT_ONCE = 1024

# The mount is gone; nothing is left to invalidate.
_GONE = frozenset((errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF, errno.EPERM))


# Telling the kernel of a name, whether it is there or not, waits until every READDIR under way in
# the directory has been taken in.
_ANY_NAME = b"any"


class _Batch(NamedTuple):
    serial: int
    nodeids: tuple[int, ...]
    entries: Entries
    everything: bool
    listings: Iterable[int]
    listed: tuple[int, ...]  # directories whose answers to READDIRPLUS may still be taken in
    kept: tuple[int, ...]  # whose attributes go
    told: asyncio.Future[None]  # done when the kernel uses none of these any more


class Notifier:
    """Serves one mount. All methods but the thread's own are called in the loop.

    write      writes one message to the device; OSError with the kernel's answer.
    has_epoch  the kernel knows INC_EPOCH. Without it, the first case above is left to time-outs. In
               the second whoever changed a name waits, until the thread is through or the time-outs
               are over, and for CAREFUL_S after that the kernel remembers nothing: programs at work
               in one directory on two mounts would wait that long for each other at every change.
    """

    def __init__(self, write: Callable[[bytes], None], has_epoch: bool) -> None:
        self._write = write
        self._has_epoch = has_epoch
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._queued = 0  # serial of the last batch handed in
        self._delivered = 0  # serial of the last batch done; written by the thread
        self._is_busy = False  # the thread is at what can't block, and takes a while
        self.keeping: Keeping | None = None  # with epochs only
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first batch on
        self._last: asyncio.Future[None] | None = None  # the newest batch is told
        # Without epochs, in the loop's time: the last time-out ends, and when there may be others.
        self._remembered_until_s = 0.0
        self._careful_until_s = 0.0
        # Two generations, so that a full one can go without losing what is in flight. Sets are
        # replaced and never emptied: the thread may be reading them.
        self._handed_out: set[int] = set()
        self._handed_out_before: set[int] = set()
        # Directories in which the kernel was told of a name, or of an absence: two generations of
        # NAME_REMEMBERED_S, the newer one since the time beside it.
        self._named: set[int] = set()
        self._named_before: set[int] = set()
        self._named_since_s = 0.0
        self._epochs: list[asyncio.TimerHandle] = []  # that are to come
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; False if it is still stuck in the kernel. Blocks up to the time-out."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def handed_out(self, nodeid: int) -> None:
        """The attributes of ``nodeid`` are about to be sent to the kernel."""
        self._handed_out.add(nodeid)
        if len(self._handed_out) > HANDED_OUT_MAX:
            self._handed_out_before = self._handed_out
            self._handed_out = set()

    def named(self, directory: int) -> None:
        """The kernel is about to hear of a name, or of an absence, in there."""
        self._age_named()
        self._named.add(directory)

    def _age_named(self) -> None:
        now_s = asyncio.get_running_loop().time()
        age_s = now_s - self._named_since_s
        if age_s >= NAME_REMEMBERED_S:
            self._named_before = self._named if age_s < 2 * NAME_REMEMBERED_S else set()
            self._named = set()
            self._named_since_s = now_s

    def may_know_names_in(self, directories: Collection[int]) -> bool:
        """Whether the kernel may still believe a name, or an absence, in one of them."""
        self._age_named()
        keeping = self.keeping
        return any(d in self._named or d in self._named_before for d in directories) or (
            keeping is not None and keeping.may_know_names_in(directories)
        )

    def remembered_s(self, timeout_s: float) -> float:
        """The time-out to give now for names and attributes, where ``timeout_s`` is the longest."""
        if not self._has_epoch:
            now_s = asyncio.get_running_loop().time()
            if now_s < self._careful_until_s:
                return 0.0
            until_s = now_s + timeout_s + TICKS_S
            self._remembered_until_s = max(self._remembered_until_s, until_s)
        return timeout_s

    def invalidate(
        self,
        nodeids: Iterable[int],
        entries: Entries,
        everything: bool = False,
        listings: Iterable[int] = (),
        attributes: Iterable[int] | None = None,
    ) -> asyncio.Future[None]:
        """The kernel stops using these within DEADLINE_S. Returns at once; the future is done when
        it has. Without epochs names take up to a time-out. Cached pages of files that are open take
        as long as a local operation that is in their way, and for those nobody waits.

        everything  all names are stale too; ``nodeids`` then are those that may have content, and
                    ``listings`` the directories that may have been listed.
        listings    directories of which only the listing goes.
        attributes  the attributes of all that is kept go, too, and of these; None: they do not.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._queued += 1
        told: asyncio.Future[None] = loop.create_future()
        kept: tuple[int, ...] = ()
        if attributes is not None:
            kept = tuple(attributes)
            if self.keeping is not None:
                kept += self.keeping.begin_drop(everything)
                told.add_done_callback(self._all_went)
        elif everything and self.keeping is not None:
            told.add_done_callback(self.keeping.names_go())
        listed = () if self.keeping is None else self.keeping.listed_lately()
        batch = _Batch(
            self._queued, tuple(nodeids), entries, everything, listings, listed, kept, told
        )
        self._last = told
        self._queue.put(batch)
        loop.call_later(DEADLINE_S, self._overdue, batch)
        return told

    def telling(self) -> asyncio.Future[None] | None:
        """Done when the kernel uses nothing of what was handed in so far. None: it is so."""
        return None if self._last is None or self._last.done() else self._last

    def forget_attributes(self, nodeid: int) -> None:
        """The kernel asks for the attributes of ``nodeid`` at their next use. Never blocks."""
        self._tell_again((nodeid,))

    def forget_names(self) -> None:
        """The kernel asks for every name at its next use. Never blocks."""
        self._inc_epoch()
        self._names_again()

    def _all_went(self, _told: object) -> None:
        assert self.keeping is not None
        self.keeping.end_drop()

    def _overdue(self, batch: _Batch) -> None:
        is_late = self._delivered < batch.serial and self._thread.is_alive()
        if is_late and self._is_busy:
            asyncio.get_running_loop().call_later(DEADLINE_S, self._overdue, batch)
            return
        has_names = batch.everything or bool(batch.entries)
        if is_late:
            # The thread waits for a local operation, maybe of an earlier batch.
            if has_names:
                log.debug("an invalidation waits for a local operation; all names go instead")
                self._inc_epoch()
                self._names_again()
            self._forget_kept(batch.kept)
            for nodeid in batch.nodeids:
                self._tell_inode(nodeid, pages=False)
            for directory in batch.listings:
                # Its time of change is looked at before the listing is used again.
                self._send(codec.encode_inval_inode(directory, pages=False))
        if not self._has_epoch and (batch.everything or (is_late and has_names)):
            loop = asyncio.get_running_loop()
            self._careful_until_s = loop.time() + CAREFUL_S
            loop.call_at(self._remembered_until_s, _resolve, batch.told)
        else:
            _resolve(batch.told)

    def _names_again(self) -> None:
        """Names that are being taken in out of answers to READDIRPLUS count as new. Who can't wait
        for these makes all names stale again, until whoever takes them in has certainly run."""
        if self.keeping is None or not self.keeping.listed_lately():
            return
        for timer in self._epochs:  # what these were for, the one just now did
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._epochs = [loop.call_later(ns / 1e9, self._inc_epoch) for ns in AGAIN_NS]

    def _again_later(self, nodeids: tuple[int, ...], times: int) -> None:
        """Again after each of AGAIN_NS, until the kernel knows them."""
        if times < len(AGAIN_NS):
            loop = asyncio.get_running_loop()
            after_s = AGAIN_NS[times] / 1e9
            for start in range(0, len(nodeids), AGAIN_AT_ONCE):
                some = nodeids[start : start + AGAIN_AT_ONCE]
                loop.call_later(after_s, self._tell_again, some, times + 1)

    def _tell_again(self, nodeids: tuple[int, ...], times: int = 0) -> None:
        unknown = self._send_attributes(nodeids)
        if unknown and self.keeping is not None:
            self._again_later(unknown, times)

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._deliver(batch)
            except Exception:
                # A bug; the thread must survive it, or the kernel would stay stale silently.
                log.exception("could not tell the kernel of a change")
                self._inc_epoch()
            self._delivered = batch.serial
            if batch.everything and not self._has_epoch:
                continue  # names are left to their time-outs, which `_overdue` waits for
            try:
                batch.told.get_loop().call_soon_threadsafe(_resolve, batch.told)
            except RuntimeError:
                pass  # the loop is closed, and with it everybody who waits

    def _deliver(self, batch: _Batch) -> None:
        if batch.everything:
            self._inc_epoch()
        if batch.kept:
            self._is_busy = True
            try:
                self._forget_kept(batch.kept)
            finally:
                self._is_busy = False
        for parent, name in batch.entries:
            self._send(codec.encode_inval_entry(parent, name))
        for parent in dict.fromkeys(parent for parent, _ in batch.entries):
            self._send(codec.encode_inval_inode(parent, pages=True))
        for directory in batch.listings:
            if batch.everything:
                self._send(codec.encode_inval_entry(directory, _ANY_NAME))
            self._send(codec.encode_inval_inode(directory, pages=True))
        late = [n for n in batch.nodeids if not self._tell_inode(n, pages=True)]
        if batch.listed and (late or batch.everything):
            for directory in batch.listed:
                self._send(codec.encode_inval_entry(directory, _ANY_NAME))
            self._send_attributes(late)
            if batch.everything:
                self._inc_epoch()

    # --- in either --------------------------------------------------------------------------------

    def _tell_inode(self, nodeid: int, pages: bool) -> bool:
        """Without ``pages`` it never blocks. False if the kernel does not know an inode that it is
        to keep: an answer to READDIRPLUS may bring it yet."""
        known = self._send(codec.encode_inval_inode(nodeid, pages))
        if known:
            return True
        if nodeid in self._handed_out or nodeid in self._handed_out_before:
            self._inc_epoch()
        if self.keeping is None or not self.keeping.knows(nodeid):
            return True
        self._again_soon((nodeid,))
        return False

    def _send_attributes(self, nodeids: Iterable[int]) -> tuple[int, ...]:
        """The attributes of these go. Those that the kernel does not know."""
        return tuple(n for n in nodeids if not self._send(codec.encode_inval_inode(n, False)))

    def _forget_kept(self, nodeids: Iterable[int]) -> None:
        unknown = self._send_attributes(nodeids)
        if unknown:
            self._again_soon(unknown)

    def _again_soon(self, nodeids: tuple[int, ...]) -> None:
        """The kernel did not know these, and may be about to: an answer is on its way."""
        if self.keeping is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the mount is gone
                self._loop.call_soon_threadsafe(self._again_later, nodeids, 0)

    def _inc_epoch(self) -> None:
        if not self._has_epoch:
            return
        # First forget, then send: an answer in between is remembered for the next ENOENT.
        self._handed_out_before = set()
        self._handed_out = set()
        self._send(codec.encode_inc_epoch())

    def _send(self, message: bytes) -> bool:
        """False if the kernel does not know the inode or name."""
        try:
            self._write(message)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return False
            if exc.errno not in _GONE:
                log.warning("the kernel refused a notification: %s", exc)
        return True


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
