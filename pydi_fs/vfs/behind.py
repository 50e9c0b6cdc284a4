"""Files that were closed here and of which the cluster hears a moment later: `durability=fsync`.

Called by `vfs.Vfs` only; runs in the loop. Theory of operation (docs/architecture.md, "Closing
behind"): only a `PendingCreate` is taken, one that nothing was sent of. It stays what it is, and
its `OpenFile` stays with the Vfs, so programs here see the file as they left it. What is new is
that its content belongs to it: whoever needs the file in the cluster (`PendingCreate.start`: a
recall, fsync, any request about it) has both told, in the one command.

    pending ──close──► waiting ──DELAY_S, or WAITING_MAX others──► being told ──► told
                          └──somebody needs it────────────────────► ▲   │  └► given up (no
                                                                    └───┘     space, the name is
                                                                  no answer   another's)

What waits here is bounded, and a close beyond that waits for room. After a failure, and when space
gets short, nothing is taken, so that close(2) itself says what is wrong.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable

from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.pending import PendingCreate
from pydi_node.errors import FileError, NoSpaceError, PydiError
from pydi_node.ids import Ino

log = logging.getLogger("pydi.vfs")

# Programs change mode and times right after close (cp -p, tar), which is the same command then.
DELAY_S = 0.05
# Files that wait without being told of; beyond that the oldest ones go out. A program that works on
# one file at a time has done with those.
WAITING_MAX = 32
WAITING_LEFT = 8
# What a crash of this machine may cost, and what one recall has to send before others are let in.
# The tree remembers four reservations of 62 numbers for each client.
FILES_MAX = 96
BYTES_MAX = 64 << 20
# Space is looked at so often, and below so much no close is taken: other mounts write, too.
SPACE_EVERY_S = 2.0
SPACE_MIN_BYTES = 256 << 20
# History makes room when space runs out, and so may people, until a file that was closed is given
# up: nobody could remove it meanwhile.
GIVE_UP_AFTER_S = 60.0
AGAIN_S = 1.0
FAILURES_MAX = 1024  # directories with files that were lost, of which nobody has been told


class _Closed:
    """A file that was closed and is not told."""

    __slots__ = ("create", "due_s", "failed_s", "file", "size_bytes")

    def __init__(self, file: OpenFile, create: PendingCreate, due_s: float) -> None:
        self.file = file
        self.create = create
        self.due_s = due_s  # when the cluster hears of it
        self.failed_s: float | None = None  # since when it can't
        self.size_bytes = 0  # that are counted


class Behind:
    """See the module.

    publish     has the cluster know all of a file.
    free_bytes  how much the cluster can still store.
    on_told     a file is in the cluster.
    on_lost     it never will be; what is wrong.
    enabled     False: no close is taken.
    """

    def __init__(
        self,
        publish: Callable[[OpenFile], Awaitable[None]],
        free_bytes: Callable[[], Awaitable[int]],
        *,
        on_told: Callable[[OpenFile], None],
        on_lost: Callable[[OpenFile, PendingCreate, PydiError], None],
        enabled: bool,
    ) -> None:
        self._publish = publish
        self._free_bytes = free_bytes
        self._on_told = on_told
        self._on_lost = on_lost
        self._enabled = enabled
        self._closed: dict[Ino, _Closed] = {}
        self._waiting: dict[Ino, _Closed] = {}  # of these nothing is under way; the oldest first
        self._bytes = 0
        self._troubled = False  # the last that was tried to tell could not be told
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()  # something was told
        self._space: int | None = None  # None: not known
        self._space_s = 0.0  # when it was looked at
        self._looking: asyncio.Task[None] | None = None
        self._failures: dict[Ino, PydiError] = {}  # that nobody was told of, by directory

    def start(self) -> None:
        """Once the client is there."""
        if self._enabled:
            self._look_at_space()

    def stop(self) -> None:
        """Nothing is taken any more, nor told: everything is about to be published."""
        self._enabled = False
        for timer in (self._timer, self._looking):
            if timer is not None:
                timer.cancel()

    def has(self, ino: Ino) -> bool:
        """Whether it was closed here and is not told yet."""
        return ino in self._closed

    # --- closing ---------------------------------------------------------------------------------

    def close_nowait(self, file: OpenFile) -> bool:
        """Whether close(2) may return now. Else: `wait_room`, or publish it."""
        create = self._taken_as(file)
        if create is None or not self._has_room_for(file):
            return False
        self._take(file, create)
        return True

    async def wait_room(self, file: OpenFile, deadline_s: float) -> bool:
        """As `close_nowait`, after others have been told of; False: it is to be published."""
        try:
            async with asyncio.timeout(deadline_s):
                while (create := self._taken_as(file)) is not None:
                    if self._has_room_for(file):
                        self._take(file, create)
                        return True
                    self._tell(len(self._waiting))
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            pass
        return False

    def _taken_as(self, file: OpenFile) -> PendingCreate | None:
        """The file as what it could be told later; None: it can't."""
        create = file.create
        if not self._enabled or self._troubled or create is None or file.busy:
            return None
        if not create.is_unsent or file.staged_bytes > BYTES_MAX:
            return None
        if asyncio.get_running_loop().time() - self._space_s > SPACE_EVERY_S:
            self._look_at_space()
        if self._space is None or self._space < SPACE_MIN_BYTES + self._bytes + file.staged_bytes:
            return None
        return create

    def _has_room_for(self, file: OpenFile) -> bool:
        if file.ino in self._closed:
            return True
        return len(self._closed) < FILES_MAX and self._bytes + file.staged_bytes <= BYTES_MAX

    def _take(self, file: OpenFile, create: PendingCreate) -> None:
        closed = self._closed.get(file.ino)
        if closed is None:
            loop = asyncio.get_running_loop()
            closed = self._add(file, create, loop.time() + DELAY_S)
            if len(self._waiting) > WAITING_MAX:
                self._tell(len(self._waiting) - WAITING_LEFT)
            elif self._timer is None:
                self._timer = loop.call_at(closed.due_s, self._tell_due)
        self._bytes += file.staged_bytes - closed.size_bytes
        closed.size_bytes = file.staged_bytes

    def _add(self, file: OpenFile, create: PendingCreate, due_s: float) -> _Closed:
        closed = self._closed[file.ino] = _Closed(file, create, due_s)
        self._waiting[file.ino] = closed
        create.publish = functools.partial(self._tell_one, closed)
        return closed

    def restore(self, file: OpenFile, create: PendingCreate) -> None:
        """The worker before this one had it open, or closed: its content is told with it. It is
        started by whoever starts all that is pending."""
        self._add(file, create, 0.0)

    # --- telling ---------------------------------------------------------------------------------

    def _tell_due(self) -> None:
        loop = asyncio.get_running_loop()
        # Those that are due soon go along.
        until_s = loop.time() + DELAY_S / 2
        count = 0
        for closed in self._waiting.values():
            if closed.due_s > until_s:
                break
            count += 1
        self._timer = None
        self._tell(count)
        if self._waiting:
            self._timer = loop.call_at(next(iter(self._waiting.values())).due_s, self._tell_due)

    def _tell(self, count: int) -> None:
        """The oldest so many."""
        for closed in list(self._waiting.values())[:count]:
            del self._waiting[closed.file.ino]
            closed.create.start()

    async def tell_all(self) -> PydiError | None:
        """The first error of those that could not be told, and are not lost."""
        closed = list(self._closed.values())
        self._tell(len(self._waiting))
        errors = await asyncio.gather(*(asyncio.shield(one.create.start()) for one in closed))
        failed = zip(closed, errors, strict=True)
        return next((error for one, error in failed if error and not one.create.ended), None)

    async def _tell_one(self, closed: _Closed) -> None:
        """`PendingCreate.publish`."""
        self._waiting.pop(closed.file.ino, None)
        try:
            await self._publish(closed.file)
            while closed.file.dirty and not closed.file.handles:
                # Pages of a mapping that its program left when the rest was on its way.
                await self._publish(closed.file)
        except PydiError as exc:
            self._failed(closed, exc)
            raise
        self.works()
        self._remove(closed)
        self._on_told(closed.file)

    def works(self) -> None:
        """The cluster has taken something."""
        self._troubled = False

    def _remove(self, closed: _Closed) -> None:
        if self._closed.pop(closed.file.ino, None) is not None:
            self._bytes -= closed.size_bytes
            self._room.set()

    def _failed(self, closed: _Closed, error: PydiError) -> None:
        self._troubled = True
        self._room.set()
        now_s = asyncio.get_running_loop().time()
        is_first = closed.failed_s is None
        if closed.failed_s is None:
            closed.failed_s = now_s
        has_waited = now_s - closed.failed_s >= GIVE_UP_AFTER_S
        if not isinstance(error, FileError) and not (
            isinstance(error, NoSpaceError) and has_waited
        ):
            if is_first:
                log.warning("ino=%d: closed, and not told yet: %s", closed.file.ino, error)
            if closed.create.ended:
                # The file is there, and the rest failed; else `PendingCreate.timer` does it.
                asyncio.get_running_loop().call_later(AGAIN_S, self._tell_again, closed)
            return
        self._remove(closed)
        self._on_lost(closed.file, closed.create, error)
        closed.create.publish = None

    def _tell_again(self, closed: _Closed) -> None:
        if self._enabled and self._closed.get(closed.file.ino) is closed:
            closed.create.start()

    # --- what went wrong -------------------------------------------------------------------------

    def note_failure(self, directory: Ino, error: PydiError) -> None:
        """A file in there is lost for this reason."""
        if len(self._failures) < FAILURES_MAX:
            self._failures.setdefault(directory, error)

    def take_failure(self, directory: Ino | None) -> PydiError | None:
        """Of a file that was closed in there, None: anywhere, and is lost. Told once."""
        if directory is not None:
            return self._failures.pop(directory, None)
        failure = next(iter(self._failures.values()), None)
        self._failures.clear()
        return failure

    def _look_at_space(self) -> None:
        self._space_s = asyncio.get_running_loop().time()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            self._space = await self._free_bytes()
        except PydiError as exc:
            log.debug("free space: %s", exc)
