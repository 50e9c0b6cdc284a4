"""A file that was created on this mount and of which the cluster hears later: in one command with
its content, at close.

Made by `delegations`, in a directory whose names nobody else may change meanwhile. Whoever needs
the file in the cluster settles it: that is one PutFile, with the number that programs were told. Of
one that was closed already (`behind`) it has the content.

    waiting ──start──► sent ──answer──► settled (the inode), or lost (its errno)
       ▲                │ └─ no answer: `start` sends the very same again, under the same serial
       └── refused ◄────┘    (no space, ...): nothing has changed, and it may be tried anew

All methods run in the loop; the one command at a time is a task of its own, so that whoever waits
for it may go away.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydi_fs.vfs.journal import Publication
from pydi_fs.vfs.journalling import Journal
from pydi_node.commands import TIME_NOW, Caller, PutFile
from pydi_node.errors import FileError, NoSpaceError, PydiError
from pydi_node.ids import Ino, LogIndex, Serial, TimeNs
from pydi_node.records import Attr

# The directory was taken back meanwhile (and the name, or the directory itself, may be gone, or be
# closed to who made the file): what programs were told of it will never be so.
_LOST = frozenset(
    (errno.ESTALE, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)
)
_SET_ID_AND_STICKY = 0o7000


class Run(Protocol):
    """Runs one command of a pending create; `arrived` as in `Client.execute`."""

    async def __call__(
        self,
        create: PendingCreate,
        command: PutFile,
        payload: bytes | None,
        serial: Serial,
        sent: Callable[[], None],
    ) -> Attr: ...


@dataclass(slots=True)
class Attempt:
    """The command that may have been sent; only the same one may be sent again."""

    command: PutFile
    payload: bytes | None
    serial: Serial
    publication: Publication | None  # whose changes are its content; None: it has none
    count: int = 0  # how often it was sent
    # What an answer says of it, whether the file is there, goes here first: see `queued.Rider`.
    decided: Callable[[bool], None] = lambda is_there: None
    refusal: PydiError | None = None  # why the file is not there


class PendingCreate:
    """See the module."""

    __slots__ = (
        "_journal", "_new_serial", "_publishing", "_run", "_task", "atime_ns", "attempt", "attr",
        "caller", "ended", "failure", "is_certain", "is_sealing", "mode", "name", "on_end",
        "overtaken", "parent", "publish", "sent", "timer",
    )  # fmt: skip

    def __init__(
        self,
        attr: Attr,
        parent: Ino,
        name: bytes,
        caller: Caller,
        run: Run,
        new_serial: Callable[[], Serial],
        journal: Journal,
    ) -> None:
        self.attr = attr  # as programs see it, but for content; once settled, the cluster's
        self.parent = parent
        self.name = name
        self.caller = caller
        self.mode = stat.S_IMODE(attr.mode)
        self.atime_ns: TimeNs | None = None  # None: nobody has set it
        self.attempt: Attempt | None = None
        self.failure: FileError | None = None  # it is lost
        self.ended = False  # settled or lost
        # Others may have changed it before the answer came, which is held up as pushes are not:
        # only the cluster can tell how it is.
        self.overtaken = False
        self.is_certain = True  # once settled: ``attr`` is not the answer to an older question
        self.on_end: Callable[[PendingCreate], None] = lambda create: None
        # The content belongs to it, for programs were told so: what publishes that, and so settles
        # this.
        self.publish: Callable[[], Awaitable[None]] | None = None
        self.is_sealing = False  # its command is about to be sent, and content goes ahead of it
        self.sent: asyncio.Future[None] | None = None  # of the last attempt: it has left
        self.timer: asyncio.TimerHandle | None = None  # of who settles it in the end
        self._run = run
        self._new_serial = new_serial
        self._journal = journal
        self._task: asyncio.Task[PydiError | None] | None = None
        self._publishing: asyncio.Task[PydiError | None] | None = None

    @property
    def ino(self) -> Ino:
        return self.attr.ino

    def command(self, **content: Any) -> PutFile:
        """What makes it. content: of the fields of a PutFile, those that are not empty."""
        fields = {"size": 0, "extents": (), "blobs": (), "mtime_ns": self.attr.mtime_ns, **content}
        fields["atime_ns"] = self.atime_ns
        return PutFile(self.caller, self.parent, self.name, self.mode, ino=self.ino, **fields)

    def carries(self, publication: Publication) -> bool:
        """Whether these changes are in the command that may have been sent."""
        return self.attempt is not None and self.attempt.publication is publication

    def restore_atime(self, atime_ns: int | None) -> None:
        """The worker before this one was told to set it."""
        if atime_ns is not None:
            self.atime_ns = TimeNs(atime_ns)
            self.attr = self.attr._replace(atime_ns=self.atime_ns)

    def restore_empty(self, serial: Serial) -> None:
        """The worker before this one may have sent it, without content."""
        self.attempt = Attempt(self.command(), None, serial, None, count=1)

    @property
    def is_unsent(self) -> bool:
        """What is done to the file by now may be part of the one command that makes it."""
        return not (
            self.ended
            or self.overtaken
            or self.is_sealing
            or self.attempt is not None
            or self._is_publishing
        )

    @property
    def _is_publishing(self) -> bool:
        return self._publishing is not None and not self._publishing.done()

    def start(self) -> asyncio.Task[PydiError | None]:
        """Have it settled, if that is not under way. The task gives the error; None: it is done."""
        if self.publish is None:
            return self._start_sending()
        # Also once it has ended, by an fsync, say: whoever counts it as closed must hear of that.
        if not self._is_publishing:
            self._expect_sent()
            self._publishing = asyncio.get_running_loop().create_task(self._publish(self.publish))
        assert self._publishing is not None
        return self._publishing

    async def _publish(self, publish: Callable[[], Awaitable[None]]) -> PydiError | None:
        try:
            await publish()
        except PydiError as exc:
            return exc
        finally:
            self._has_left()  # or never will: nobody need wait for that
        return None

    def _expect_sent(self) -> None:
        if self.sent is None or self.sent.done():
            self.sent = asyncio.get_running_loop().create_future()

    def _has_left(self) -> None:
        if self.sent is not None and not self.sent.done():
            self.sent.set_result(None)

    def _start_sending(self) -> asyncio.Task[PydiError | None]:
        """As `start`, with the content that `attempt` has."""
        if self._task is None or (self._task.done() and not self.ended):
            if self.attempt is None:
                serial = self._new_serial()
                self._journal.creating(self.ino, serial)
                shown = {} if self.publish is None else {"ctime_ns": self.attr.ctime_ns}
                self.attempt = Attempt(self.command(**shown), None, serial, None)
            self._expect_sent()
            self._task = asyncio.get_running_loop().create_task(self._send(self.attempt))
        return self._task

    async def settle(self) -> Attr:
        """The inode as the cluster has it.

        FileError        lost (ESTALE), for good; or refused, and a later attempt may do better.
        Other PydiErrors  it is not known what has become of it.
        """
        return await self._settled_by(self.start)

    async def send(self) -> Attr:
        """As `settle`, for who publishes its content: with what `attempt` has, or without any."""
        return await self._settled_by(self._start_sending)

    async def _settled_by(self, start: Callable[[], asyncio.Task[PydiError | None]]) -> Attr:
        if self.failure is not None:
            raise self.failure
        if not self.ended:
            error = await asyncio.shield(start())
            if error is not None:
                raise error
        return self.attr

    async def _send(self, attempt: Attempt) -> PydiError | None:
        try:
            if self.ended or self.attempt is not attempt:
                # Since this was started there came an answer that nobody waited for (`decided`).
                return attempt.refusal
            attempt.count += 1
            await self._run(self, attempt.command, attempt.payload, attempt.serial, self._has_left)
        except FileError as exc:
            return self._refused(attempt, exc)
        except NoSpaceError as exc:
            if attempt.count == 1:  # nothing was stored, and nothing was sent before
                self.attempt = None
            return exc
        except PydiError as exc:
            return exc
        finally:
            self._has_left()  # or never will: nobody need wait for that
        return None

    def _refused(self, attempt: Attempt, error: PydiError) -> PydiError:
        if isinstance(error, FileError) and error.errno in _LOST:
            error = FileError(errno.ESTALE, "its directory was taken back")
            self.give_up(error)
        self.attempt = None
        attempt.refusal = error
        return error

    def decided(self, refusal: PydiError | None) -> None:
        """What became of the last attempt, after whoever waited was told that it is not known."""
        if refusal is not None and not self.ended:
            assert self.attempt is not None, self.ino
            self._refused(self.attempt, refusal)
        if self.publish is not None:
            self.start()  # it counts as closed, and whoever does so has to hear of it

    def give_up(self, failure: FileError) -> FileError:
        """It never will be in the cluster."""
        self.failure = failure
        self.attempt = None
        self.end()
        return failure

    def settled(self, attr: Attr, is_certain: bool) -> None:
        """The cluster has it. Called at the arrival of the answer, in order with invalidations."""
        self.attr = attr
        self.is_certain = is_certain
        self.end()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if self.timer is not None:
                self.timer.cancel()
            self._journal.settled(self.ino)
            self.on_end(self)

    def shape(
        self,
        caller: Caller,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
        now_ns: int,
    ) -> bool:
        """chmod(2), chown(2), utimensat(2) before anybody else knows of the file: its command says
        it from the start. False: not exactly that, or it has been sent.
        """
        attr = self.attr
        if not self.is_unsent:
            return False
        if caller.groups is not None and caller.uid not in (0, attr.uid):
            return False
        if mode is not None and mode & _SET_ID_AND_STICKY:
            return False
        if uid not in (None, attr.uid) or gid not in (None, attr.gid):
            return False
        changes: dict[str, Any] = {"ctime_ns": TimeNs(now_ns)}
        if mode is not None:
            self.mode = mode
            changes["mode"] = stat.S_IFMT(attr.mode) | mode
        if atime_ns is not None:
            self.atime_ns = TimeNs(now_ns if atime_ns == TIME_NOW else atime_ns)
            changes["atime_ns"] = self.atime_ns
        if mtime_ns is not None:
            changes["mtime_ns"] = TimeNs(now_ns if mtime_ns == TIME_NOW else mtime_ns)
        self.attr = attr._replace(**changes)
        self._journal.shaped(
            self.ino, self.parent, self.name, self.caller, self.mode, self.attr.mtime_ns,
            self.atime_ns,
        )  # fmt: skip
        return True


def new_attr(ino: Ino, mode: int, uid: int, gid: int, now_ns: int) -> Attr:
    """A regular file without content, just created."""
    now = TimeNs(now_ns)
    nothing = LogIndex(0)
    return Attr(
        ino, stat.S_IFREG | mode, 1, uid, gid, 0, 0, 0, now, now, now, now, nothing, nothing
    )
