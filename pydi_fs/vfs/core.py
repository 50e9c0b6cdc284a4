"""What all operations of a Vfs share: its caches and how they are fed, commands, and what is heard
of changes that are made elsewhere. `vfs.Vfs` has the operations.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydi_fs.client import Client
from pydi_fs.vfs.background import Background, when_all
from pydi_fs.vfs.behind import FILES_MAX, Behind
from pydi_fs.vfs.blob_cache import BlobCache
from pydi_fs.vfs.cache import NameCache
from pydi_fs.vfs.changes import Changes
from pydi_fs.vfs.closed_files import ClosedFiles
from pydi_fs.vfs.delegations import PENDING_MAX, Delegations
from pydi_fs.vfs.directories import Directories
from pydi_fs.vfs.holds import Holds
from pydi_fs.vfs.journalling import Journal
from pydi_fs.vfs.local_blobs import BlobSource, LocalBlobs
from pydi_fs.vfs.lock_rights import LockRights
from pydi_fs.vfs.lookahead import Lookahead
from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.pending import PendingCreate
from pydi_fs.vfs.queued import Change, Queue
from pydi_fs.vfs.reader import BlobReader
from pydi_fs.vfs.staging import Lender, StagingArea
from pydi_fs.vfs.xattrs import Xattrs
from pydi_node.commands import Batch, Command, Commit, Delegate, Link, PutFile, Rename, SetAttr
from pydi_node.errors import FileError, PydiError, errno_of
from pydi_node.ids import Ino
from pydi_node.records import EVERY_NAME, Attr, FileVersion, Result, Statfs
from pydi_node.wire import messages
from pydi_node.wire.messages import Request

log = logging.getLogger("pydi.vfs")

# (inodes, names, whether everything is stale) -> done when the binding's kernel uses none of them
# any more; None: at once.
OnInvalidate = Callable[
    [tuple[Ino, ...], tuple[tuple[Ino, bytes], ...], bool], asyncio.Future[None] | None
]


@dataclass(frozen=True, slots=True)
class VfsConfig:
    """Options of a Vfs.

    staging_dir  where written content waits, in files without a name
    lender       of files of a node of this machine, where it waits rather
    sources      where files of blobs may be on this machine, the best first
    cache        where content that came over the network is kept, and found again
    rereads      may programs read a range again soon? If not, no memory is spent on it
    journal      what a successor of this process must know goes there
    delegates    have directories delegated to this client, and create files in them by itself; and
                 give out the locks of files that nobody else locks
    closes_behind  tell of those files a moment after close(2): see `behind`
    """

    staging_dir: Path
    lender: Lender | None = None
    sources: tuple[BlobSource, ...] = ()
    cache: BlobCache | None = None
    rereads: bool = True
    journal: Journal = field(default_factory=Journal)
    delegates: bool = False
    closes_behind: bool = False


class VfsCore(Xattrs):
    """See the module. Everything here runs in the loop."""

    def __init__(
        self, client: Client, config: VfsConfig, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.client = client
        self.on_invalidate: OnInvalidate = lambda inos, entries, everything: None
        self.on_changed: Callable[[Ino], None] = lambda ino: None
        self.on_lease: Callable[[float], None] = lambda until_s: None
        self._clock = clock
        self._cache = NameCache()
        self._journal = config.journal
        self._area = StagingArea(
            client, config.staging_dir, journal=config.journal, lender=config.lender
        )
        sources = config.sources if config.cache is None else (*config.sources, config.cache)
        self._local = LocalBlobs(sources)
        self._reader = BlobReader(client, self._local, config.cache, rereads=config.rereads)
        if config.cache is not None:
            config.cache.on_kept = self._local.forget_absence
        self._files: dict[Ino, OpenFile] = {}  # that are open
        self._closed = ClosedFiles()
        self._directories = Directories(
            client, self._cache, known=lambda ino: self._delegations.take_listing(ino)
        )
        self._lookahead = Lookahead(self._directories.fetch)
        self._queue = Queue(
            client,
            self._cache,
            config.journal,
            run=self._run,
            on_told=lambda changes, attrs: self._delegations.were_told(changes, attrs),
            on_lost=self._change_lost,
        )
        self._delegations = Delegations(
            client,
            self._cache,
            config.journal,
            clock,
            self._queue,
            run=self._run,
            list_names=self._directories.first,
            on_end=self._create_ended,
            enabled=config.delegates,
            pending_max=PENDING_MAX + (FILES_MAX if config.closes_behind else 0),
        )
        self._behind = Behind(
            self._publish_alone,
            self._free_bytes,
            on_told=self._told,
            on_lost=self._lost,
            enabled=config.delegates and config.closes_behind,
        )
        self._locks = LockRights(client, config.journal, enabled=config.delegates)
        self._changes = Changes(
            client,
            self._cache,
            self._delegations,
            self._queue,
            clock,
            files=self._files,
            known=self._known,
        )
        self._background = Background()
        self._saves = Background()  # of files that can't be told
        self._holds = Holds(client, self._background.later)

    @property
    def pushes(self) -> int:
        """Grows with every change made elsewhere: an answer that it overtook may be old."""
        return self._cache.pushes

    def lease_s(self) -> float:
        """How long what comes from here may be kept without asking again; 0: not at all."""
        return self.client.lease_s()

    def is_settled(self, attr: Attr) -> bool:
        """Whether these attributes, just had from here, are what the cluster has: `on_changed` or
        `on_invalidate` will say when they are no longer. What programs here changed and nobody was
        told of is not."""
        return self._cache.attr(attr.ino) is attr and self._overlay(attr) is attr

    def is_absent(self, parent: Ino, name: bytes) -> bool:
        """Whether there is no such name, and `on_invalidate` will say when there is."""
        known = self._known(parent, name)
        return not known and (known is not None or self._delegations.is_absent(parent, name))

    def _known(self, parent: Ino, name: bytes) -> Ino | None:
        """As `NameCache.name`, also of what only this mount knows of."""
        create = self._delegations.named(parent, name)
        if create is not None:
            return create.ino
        ino = self._queue.name(parent, name)
        return self._cache.name(parent, name) if ino is None else ino

    def _file_of(self, version: FileVersion) -> OpenFile:
        return OpenFile(self.client, self._area, self._reader, self._clock, version)

    async def _publish(self, file: OpenFile) -> None:
        """The cluster has what was written, and what was done before on this mount."""
        if not file.is_untold:
            return
        told = self._queue.flushing()
        try:
            await self._publish_alone(file)
        finally:
            failure = None if told is None else await _end_of(told)
        if failure is not None:
            raise failure

    async def _publish_alone(self, file: OpenFile) -> None:
        """Of what was done before, it has what is about the same file or directory: that must come
        first (`Queue.before`)."""
        if not file.is_untold:
            return
        await file.publish()
        self._cache.forget((file.ino,), (), content_only=True)
        if not file.stale:
            self._cache.answers(self._cache.moment)
            self._cache.put_attr(file.attr)
        self._cache.note((file.ino,), ())  # whoever asked before this knew less

    def _before(self, request: Request) -> Awaitable[None] | None:
        """What ``request`` waits for: the cluster must know of what it is about."""
        told = self._queue.before(request)
        return self._delegations.before(request) if told is None else self._after(told, request)

    async def _after(self, told: Awaitable[None], request: Request) -> None:
        await told
        settled = self._delegations.before(request)
        if settled is not None:
            await settled

    # --- commands, and what their answers say ---------------------------------------------------

    async def _execute(
        self,
        command: Command,
        arrived: Callable[[Any], Any] = lambda answer: answer,
        payload: bytes | None = None,
    ) -> Any:
        """Run a command of a program."""
        with self._delegations.naming(command):
            return await self._run(command, arrived, payload)

    async def _run(
        self,
        command: Command,
        arrived: Callable[[Any], Any],
        payload: bytes | None = None,
        **options: Any,
    ) -> Any:
        """Run a command; what it touched leaves the caches before its answer enters them."""

        def handed_over(result: Result) -> Any:
            if isinstance(command, Delegate):
                return arrived(result.value)  # it is others who must not know its names any more
            self._cache.forget(*result.touched, content_only=isinstance(command, (Commit, PutFile)))
            if not _keeps_content(command):
                self._closed.drop(result.touched.inos)
            self._delegations.has_changed(command, result.touched.inos)
            try:
                for attr in result.directories:
                    self._cache.put_attr(attr)
                    self._delegations.learn(attr)
                return arrived(result.value)
            finally:
                self._cache.note(*result.touched)  # whoever asked before this knew less

        return await self.client.execute(command, payload, arrived=handed_over, **options)

    def _arrived_attr(self, answer: Any) -> Attr:
        attr = answer if isinstance(answer, Attr) else Attr.from_wire(answer)
        self._cache.put_attr(attr)
        if attr.is_dir:
            self._delegations.learn(attr)
        return attr

    def _arrived_content(self, answer: Any) -> Attr:
        """As `_arrived_attr`, when the content is no longer what an open file here knows."""
        attr = self._arrived_attr(answer)
        file = self._files.get(attr.ino)
        if file is not None:
            file.changed_elsewhere()
        return attr

    def _arrived_entry(self, parent: Ino, name: bytes, answer: Any) -> Attr:
        attr = self._arrived_attr(answer)
        self._cache.put_name(parent, name, attr.ino)
        return attr

    def _overlay(self, attr: Attr) -> Attr:
        attr = self._queue.attr(attr.ino) or attr
        file = self._files.get(attr.ino)
        return self._delegations.overlay(attr) if file is None else file.overlay(attr)

    # --- what is closed and told later -----------------------------------------------------------

    async def _free_bytes(self) -> int:
        totals: Statfs = await self.client.call(messages.Statfs())
        return totals.free_bytes

    def _told(self, file: OpenFile) -> None:
        if file.handles == 0 and self._files.get(file.ino) is file:
            self._leave(file)

    def _lost(self, file: OpenFile, create: PendingCreate, error: PydiError) -> None:
        """A file that was closed will never be in the cluster, as the one that programs know."""
        is_open = file.handles > 0 or self._files.get(file.ino) is not file
        if not is_open:
            del self._files[file.ino]
            if create.failure is None:
                create.give_up(FileError(errno_of(error)))
        self._saves.later(self._save(file, create, error, is_open))

    async def _make_anew(self, command: PutFile, payload: bytes | None) -> None:
        await self._execute(command, payload=payload)
        # No program asked for that: the kernel may know that the name is not there.
        self.on_invalidate((), ((command.parent, command.name),), False)

    async def _save(
        self, file: OpenFile, create: PendingCreate, error: PydiError, is_open: bool
    ) -> None:
        try:
            if not is_open and errno_of(error) == errno.ESTALE:
                # Somebody looked while this mount was silent, and was told that it is not there.
                # If the name is still free, a file that was made just now may have it.
                await file.make_anew(create, self._make_anew)
                log.warning("ino=%d: told too late, made anew", create.ino)
                return
        except PydiError as exc:
            error = exc
        finally:
            if not is_open:
                await file.discard()
        self._behind.note_failure(create.parent, error)
        name = create.name.decode(errors="replace")
        try:
            above = await self.client.call(messages.PathOf(create.parent))
            path = f"{above.decode(errors='replace').rstrip('/')}/{name}" if above else name
        except PydiError:
            path = name
        log.error("%s (ino=%d): lost after its close: %s", path, create.ino, error)

    def _leave(self, file: OpenFile) -> None:
        """`_forget`, and its staging space goes in the background."""
        self._forget(file)
        if file.is_staged:
            self._background.later(file.discard())

    def _forget(self, file: OpenFile) -> None:
        """Nobody has it open any more; as long as it is the newest version it may be again."""
        del self._files[file.ino]
        self._locks.closed(file.ino)
        known = self._cache.attr(file.ino)
        if known is None:
            return
        if known.changed < file.attr.changed:
            # A publication that nobody waited for.
            self._cache.forget((file.ino,), ())
        elif known.changed == file.attr.changed:
            file.keep_content()
            if file.is_published:
                self._closed.put(file)

    # --- what is heard of in between -------------------------------------------------------------

    def _create_ended(self, create: PendingCreate) -> None:
        """A file that only this mount knew of is in the cluster, or never will be."""
        file = self._files.get(create.ino)
        if file is not None:
            file.is_in_cluster(create)
        if create.failure is not None:
            if create.publish is None:
                log.error("ino=%d: not created, its directory was taken back", create.ino)
            entries = ((create.parent, create.name),)
            self._cache.forget((create.ino,), entries)
            self.on_invalidate((create.ino,), entries, False)  # the kernel shows it still

    def _change_lost(self, change: Change) -> None:
        """Programs here were told that this is done, and it will never be."""
        self._cache.forget(change.inos, change.names)
        self._cache.note(change.inos, change.names)
        self._delegations.lost(change)
        self.on_invalidate(change.inos, change.names, False)

    def _invalidate(
        self, inos: tuple[Ino, ...], entries: tuple[tuple[Ino, bytes], ...]
    ) -> asyncio.Future[None] | None:
        """Someone else changed these; done when nobody on this machine uses them any more."""
        self._cache.drop(inos, entries)
        self._queue.touched(inos)
        self._closed.drop(inos)
        for ino in inos:
            file = self._files.get(ino)
            if file is not None:
                file.changed_elsewhere()
        if not inos:  # else these are directories that others take over
            self._locks.wanted(parent for parent, name in entries if name == EVERY_NAME)
        sent = self._delegations.touched(inos, entries)
        told = self.on_invalidate(inos, entries, False)
        if sent is None or told is None:
            return sent or told
        return asyncio.get_running_loop().create_task(when_all((sent, told)))

    def _reset(self) -> asyncio.Future[None] | None:
        """The stream of invalidations broke (another node, a gap): nothing cached is certain.
        Done when nobody on this machine uses it any more."""
        self._cache.clear()
        self._closed.clear()
        for file in self._files.values():
            file.changed_elsewhere()
        self._delegations.reset()
        self._locks.reset()
        self._holds.tell_all()
        return self.on_invalidate((), (), True)


def _keeps_content(command: Command) -> bool:
    """Whether files that it touches consist of what they did."""
    return isinstance(command, (Link, Rename, Batch)) or (
        isinstance(command, SetAttr) and command.size is None
    )


async def _end_of(future: asyncio.Future[None]) -> BaseException | None:
    await asyncio.wait([future])
    return future.exception()
