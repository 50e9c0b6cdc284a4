"""One inode while it is open on this mount: reading, writing, publishing.

All handles of one inode share one OpenFile, so programs on this machine see each other's writes at
once, published or not. Called by `vfs.Vfs` only; runs in the loop.

What may happen at an ``await``: anything of another operation on the same file. Therefore writes
and truncations never await; publishing and refreshing hold ``_lock`` and take what they work on
before the first await.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import replace

from blake3 import blake3

from pydi_fs.client import Client
from pydi_fs.vfs.content import Changes, Content
from pydi_fs.vfs.extents import Segment
from pydi_fs.vfs.journal import FileImage, Frozen, Publication, Staged, needed_sources
from pydi_fs.vfs.journalling import Piece
from pydi_fs.vfs.pending import Attempt, PendingCreate
from pydi_fs.vfs.reader import BlobReader
from pydi_fs.vfs.staging import Stage, StagingArea
from pydi_node.commands import ROOT_CALLER, Caller, Commit, PutFile
from pydi_node.errors import BlobMissingError, FileError
from pydi_node.ids import BlobId, Ino, Serial, TimeNs, blob_name
from pydi_node.records import FILE_SIZE_MAX, Attr, BlobInfo, FileVersion
from pydi_node.wire.messages import PUT_BLOB, GetFile

# Stages that were published in one request with their Commit, kept because their blob's name is not
# known here; above this number (of at most 256 KiB each) the file is looked up again instead.
UNNAMED_STAGES_MAX = 64
KEPT_MAX_BYTES = 32 * 1024  # of what was written here; more than that is a file somewhere
EXTENTS_PER_COMMIT_MAX = 32768  # about 1 MB of command; a quarter of what a frame may carry

log = logging.getLogger("pydi.vfs")


class OpenFile:
    """Shared state of all handles of one inode."""

    def __init__(
        self,
        client: Client,
        area: StagingArea,
        reader: BlobReader,
        clock: Callable[[], int],
        version: FileVersion,
    ) -> None:
        self.ino: Ino = version.attr.ino
        self.attr: Attr = version.attr  # as the cluster has it
        self.handles = 0  # open handles of this mount; changed by Vfs
        self.writers = 0  # those of them that may write
        self._changes_heard = 0  # how often somebody else changed the file
        self._changes_seen = 0  # that many of them are in the content here
        self._client = client
        self._area = area
        self._journal = area.journal
        self._reader = reader
        self._clock = clock
        self._content = Content(version)
        self._blobs: dict[BlobId, BlobInfo] = {info.blob: info for info in version.blobs}
        # Of the smallest of them; and of what was written here, by source.
        self._contents = _sound(version)
        self._stage: Stage | None = None  # where new writes go
        self._stages: dict[int, Stage] = {}  # by source: all that the content still needs
        self._caller: Caller = ROOT_CALLER  # who wrote last: a version is committed in that name
        self._mtime_ns = 0  # of what is dirty
        self._changed_ns = 0  # when that was changed last
        self._lock = asyncio.Lock()
        # Changes on their way: the cluster's attributes lag behind.
        self._publication: Publication | None = None
        self._undecided = False  # the worker before this one had sent them
        # The last that failed without an answer: it may have arrived, or arrive later.
        self._unanswered: Publication | None = None
        self._create: PendingCreate | None = None  # the cluster may not know of the file yet

    # --- from one worker to the next -----------------------------------------------------------

    def freeze(self) -> Iterator[Staged | Frozen]:
        """Records of what is unpublished here, if anything is."""
        if not self.dirty and self._publication is None:
            return
        image = FileImage(self._content, self._caller, self._mtime_ns, self._publication)
        for source in sorted(needed_sources(image)):
            stage = self._stages[source]
            data = stage.read(0, stage.size) if stage.in_memory else None
            yield Staged(source, self.ino, stage.size, data)
        sent = self._publication
        packed = None if sent is None else sent.pack()
        yield Frozen(self.ino, self._caller, self._mtime_ns, self._content.freeze(), packed)

    def restore(self, image: FileImage, stages: dict[int, Stage]) -> None:
        """Go on from what the worker before this one had unpublished. What the cluster has is
        looked at before the first answer (`stale`), and before that it is found out what became of
        changes that were on their way."""
        self._content = image.content
        self._caller = image.caller
        self._mtime_ns = self._changed_ns = image.mtime_ns
        self._publication = image.publication
        self._undecided = image.publication is not None
        self._stages.update(stages)
        self.changed_elsewhere()

    # --- while only this mount knows of it -----------------------------------------------------

    def begins_as(self, create: PendingCreate) -> None:
        """The file was created here. Also when its worker died since, after `restore`: it may have
        sent it with its content, so that is how it must be sent again (`PendingCreate.publish`)."""
        self._create = create
        for stage in self._stages.values():
            stage.copies_as = create.parent

    @property
    def create(self) -> PendingCreate | None:
        """As which the cluster hears of the file; None: it knew of it before, or does by now."""
        return self._create

    def is_in_cluster(self, create: PendingCreate) -> None:
        """The answer to its command has arrived, or it is lost."""
        if create.failure is not None or not create.is_certain:
            self.changed_elsewhere()
        elif not self.stale:
            self.attr = create.attr

    @property
    def is_pending(self) -> bool:
        """The cluster may not know of the file, or never will: whoever publishes it hears that."""
        create = self._create
        return create is not None and (not create.ended or create.failure is not None)

    @property
    def is_untold(self) -> bool:
        """The cluster may not have all of it, or is being told."""
        return self.dirty or self.busy or self.is_pending

    async def _settle(self) -> None:
        if self._create is not None:
            await self._create.send()
            self._create = None

    async def _create_with(
        self, create: PendingCreate, publication: Publication, sources: set[int]
    ) -> dict[int, BlobInfo] | None:
        """The cluster knows of the file. As one that has these changes for its content: blobs that
        stages became. None: without them."""
        infos: dict[int, BlobInfo] = {}
        if (
            create.attempt is None
            and not create.ended
            and len(publication.changes.segments) <= EXTENTS_PER_COMMIT_MAX
        ):
            put = self._put_stage(sources)
            if len(sources) > (put is not None):
                create.is_sealing = True
                try:
                    infos, put = await self._seal(sources)
                finally:
                    create.is_sealing = False
            if create.attempt is None and not create.ended:  # nobody needed it meanwhile
                create.attempt = self._attempt(create, publication, infos, put)
        is_content = create.carries(publication)
        attr = await create.send()
        self._create = None
        if not is_content:
            return None
        self.attr = attr
        return infos

    async def make_anew(
        self, create: PendingCreate, execute: Callable[[PutFile, bytes | None], Awaitable[object]]
    ) -> None:
        """What was to be created as ``create``, and never will be, is created as another file, with
        all that is here. EEXIST, and whatever else a create may say."""
        async with self._lock:
            changes = self._content.take_changes()
            publication = Publication(changes, self._caller, self._mtime_ns, [])
            try:
                infos, put = await self._seal({s.source for s in changes.segments if s.source < 0})
                command = self._command(create, publication, infos, put)
                payload = None if put is None else put.content()
                await execute(replace(command, ino=None), payload)
            finally:
                self._content.restore(changes)

    def _attempt(
        self,
        create: PendingCreate,
        publication: Publication,
        infos: dict[int, BlobInfo],
        put: Stage | None,
    ) -> Attempt:
        """The command that creates the file with these changes as its content, as it is sent."""
        command = self._command(create, publication, infos, put)
        # The worker before this one may have sent it under this serial.
        count = len(publication.serials)
        serial = self._serial_of(publication, 0)
        payload = None if put is None else put.content()
        decided = functools.partial(self._decided, publication)
        return Attempt(command, payload, serial, publication, count, decided)

    def _decided(self, publication: Publication, is_there: bool) -> None:
        """`Attempt.decided`: its changes are in the cluster, or dirty again."""
        if self._publication is not publication:
            return
        self._publication = None
        if not is_there:
            self._content.restore(publication.changes)
        self._journal.published(self.ino, is_there)
        if self._undecided:  # nobody waits for it
            self._undecided = False
            self.changed_elsewhere()

    def _command(
        self,
        create: PendingCreate,
        publication: Publication,
        infos: dict[int, BlobInfo],
        put: Stage | None,
    ) -> PutFile:
        changes = publication.changes
        return create.command(
            size=changes.size,
            extents=changes.extents(_blobs_of(infos, put)),
            blobs=tuple(sorted(infos.values())),
            mtime_ns=TimeNs(publication.mtime_ns),
            # Programs may have looked between close and this, and remember it (git's index).
            ctime_ns=self.overlay(create.attr).ctime_ns if create.publish is not None else None,
        )

    # --- attributes --------------------------------------------------------------------------

    @property
    def stale(self) -> bool:
        """Someone else changed the file: `refresh` before the next answer. It stays so until the
        newer version is here, for whoever asks meanwhile must wait for that too."""
        return self._changes_seen < self._changes_heard

    def changed_elsewhere(self) -> None:
        """The cluster may have a newer version than this."""
        self._changes_heard += 1

    def is_newest(self) -> None:
        """Whatever was heard: this is the version to show."""
        self._changes_seen = self._changes_heard

    @property
    def dirty(self) -> bool:
        return self._content.dirty or self._undecided

    @property
    def is_staged(self) -> bool:
        """Some of its content lies in staging space here."""
        return bool(self._stages)

    def keep_content(self) -> None:
        """What was written here and is in the cluster can be read without staging space, if it is
        little: it would be asked for when the file is opened next, for only the tree knows which
        blob it is."""
        if self.dirty or self.busy or self._stage is not None:
            return
        contents = {source: stage.content() for source, stage in self._stages.items()}
        known = {source: data for source, data in contents.items() if data is not None}
        if len(known) == len(contents) and sum(map(len, known.values())) <= KEPT_MAX_BYTES:
            self._contents.update(known)
            for stage in self._stages.values():
                stage.close()
            self._stages.clear()

    @property
    def staged_bytes(self) -> int:
        """How much that is."""
        return sum(stage.size for stage in self._stages.values())

    @property
    def is_published(self) -> bool:
        """What is here is a version of the cluster and nothing else; the newest, as far as heard
        of."""
        return not (self.dirty or self.stale or self.busy or self._stages)

    @property
    def is_at_rest(self) -> bool:
        """Nothing of it comes from here: no content, and not the file itself."""
        # As `dirty` and `busy` have it; this is asked at each open and close.
        return not (
            self._content.dirty
            or self._undecided
            or self._stages
            or self._create is not None
            or self._lock.locked()
        )

    @property
    def content_bytes(self) -> int:
        """Of what came with the version."""
        return sum(map(len, self._contents.values()))

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def blobs(self) -> Collection[BlobInfo]:
        return self._blobs.values()

    def overlay(self, attr: Attr) -> Attr:
        """``attr`` as programs here must see it: with what they wrote and nobody else has yet."""
        if not self._content.dirty and self._publication is None:
            return attr
        return attr._replace(
            size=self._content.size,
            allocated=self._content.map.mapped_bytes,
            mtime_ns=TimeNs(self._mtime_ns),
            ctime_ns=TimeNs(max(attr.ctime_ns, self._changed_ns)),
        )

    def set_mtime(self, mtime_ns: int) -> None:
        """utimensat(2) on a file with unpublished writes: publishing must not move the time on."""
        self._mtime_ns = mtime_ns
        self._journal.stamped(self.ino, mtime_ns)

    # --- reading -----------------------------------------------------------------------------

    async def read(self, offset: int, size: int, sequential: bool) -> bytes:
        """Bytes ``[offset, offset + size)``, short only at the end of the file."""
        await self.look()
        size = min(size, self._content.size - offset)
        if size <= 0:
            return b""
        segments = self._content.map.slices(offset, size)
        if len(segments) == 1 and segments[0].length == size:
            return await self._read_segment(segments[0], sequential)
        # Bytes at hand first and without waiting: a write that comes while blobs are fetched may
        # replace them, and a read must not mix the two.
        result = bytearray(size)
        waiting: list[tuple[Segment, BlobInfo]] = []
        for segment in segments:
            data = self._in_memory(segment)
            if data is not None:
                at = segment.offset - offset
                result[at : at + segment.length] = data
            else:
                # Before the first wait too: a newer version forgets the blobs of this one.
                waiting.append((segment, self._blob_of(segment)))
        for segment, info in waiting:
            at = segment.offset - offset
            result[at : at + segment.length] = await self._reader.read(
                info, segment.source_offset, segment.length, sequential
            )
        return bytes(result)

    def whole_blob(self) -> BlobInfo | None:
        """The blob that is the whole content, for every reader here and elsewhere, and a file
        somewhere; else None.

        A file that was changed in place since its creation has several, so what is written on and
        on (logs, databases) never has one.
        """
        if self._content.dirty or self._publication or self.stale or self.writers:
            return None
        segment = self._content.map.only()
        if segment is None or segment.source < 0:
            return None
        info = self._blobs.get(BlobId(segment.source))
        if info is None or segment.source_offset or info.size != segment.length:
            return None
        if info.is_in_tree:
            return None  # nowhere a file
        return info if (segment.offset, segment.length) == (0, self._content.size) else None

    async def _read_segment(self, segment: Segment, sequential: bool) -> bytes:
        data = self._in_memory(segment)
        if data is not None:
            return data
        return await self._reader.read(
            self._blob_of(segment), segment.source_offset, segment.length, sequential
        )

    def _in_memory(self, segment: Segment) -> bytes | None:
        """The bytes of a segment that is staged, or came with the version; None: ask the reader."""
        start, length = segment.source_offset, segment.length
        stage = self._stages.get(segment.source)
        if stage is not None:
            return stage.read(start, length)
        content = self._contents.get(segment.source)
        if content is None:
            return None
        return content if length == len(content) else content[start : start + length]

    def _blob_of(self, segment: Segment) -> BlobInfo:
        info = self._blobs.get(BlobId(segment.source))
        if info is None:
            raise BlobMissingError(f"blob {blob_name(BlobId(segment.source))} is not in the tree")
        return info

    def seek(self, offset: int, data: bool) -> int:
        """The next byte of data (or of a hole) at or after ``offset``; ENXIO behind the end.

        Source: lseek(2), SEEK_DATA and SEEK_HOLE.
        """
        size = self._content.size
        if offset < 0 or offset >= size:
            raise FileError(errno.ENXIO)
        if not data:
            return min(self._content.map.next_hole(offset), size)
        found = self._content.map.next_data(offset)
        if found is None or found >= size:
            raise FileError(errno.ENXIO)
        return found

    def holes_within(self, offset: int, length: int) -> int:
        """Bytes of ``[offset, offset + length)`` that take no space."""
        return length - sum(s.length for s in self._content.map.slices(offset, length))

    # --- writing: nothing here waits -----------------------------------------------------------

    def write(self, caller: Caller, offset: int, data: bytes | memoryview, append: bool) -> int:
        """Stage ``data`` at ``offset`` (at the end with ``append``); returns its length.

        EFBIG past the largest size; ENOSPC when the node or the staging directory is full.
        """
        content = self._content
        size_before = content.size
        length = len(data)
        if append:
            offset = size_before
        if offset + length > FILE_SIZE_MAX:
            raise FileError(errno.EFBIG)
        if not length:
            return 0
        stage = self._stage or self._writable_stage()
        pieces: Sequence[Piece]
        # Ranges that are already in this stage are rewritten in place, so a page that is written a
        # thousand times between two fsyncs is stored once.
        if append or offset >= content.map.end:
            pieces = (self._append(stage, offset, data, append),)
        else:
            known = content.map.inside(offset, length)
            if known is None:
                pieces = self._write_pieces(stage, offset, memoryview(data))
            elif known.source != stage.source:
                pieces = (self._append(stage, offset, data, append),)
            else:
                source_offset = known.source_offset + offset - known.offset
                stage.overwrite(source_offset, data)
                content.rewrote()
                pieces = (self._piece(stage, offset, source_offset, data),)
        self._note_change(caller)
        if self._journal.keeps:
            self._journal.wrote(
                self.ino, size_before, caller, self._mtime_ns, append, length, pieces
            )
        return length

    def _write_pieces(self, stage: Stage, offset: int, view: memoryview) -> list[Piece]:
        """Some of it may be in the stage already."""
        pieces: list[Piece] = []
        at = offset
        for segment in self._content.map.slices(offset, len(view)):
            if segment.source != stage.source:
                continue
            if segment.offset > at:
                gap = view[at - offset : segment.offset - offset]
                pieces.append(self._append(stage, at, gap, False))
            piece = view[segment.offset - offset : segment.end - offset]
            stage.overwrite(segment.source_offset, piece)
            self._content.rewrote()
            pieces.append(self._piece(stage, segment.offset, segment.source_offset, piece))
            at = segment.end
        if at < offset + len(view):
            pieces.append(self._append(stage, at, view[at - offset :], False))
        return pieces

    def _append(self, stage: Stage, offset: int, data: bytes | memoryview, append: bool) -> Piece:
        source_offset = stage.append(data)
        self._content.write(offset, len(data), stage.source, source_offset, append)
        return self._piece(stage, offset, source_offset, data)

    def _piece(
        self, stage: Stage, offset: int, source_offset: int, data: bytes | memoryview
    ) -> Piece:
        """For the journal, which takes the bytes as long as they are nowhere else."""
        kept = bytes(data) if self._journal.keeps and stage.in_memory else None
        return (offset, len(data), stage.source, source_offset, kept)

    def truncate(self, caller: Caller, size: int) -> None:
        """Cut, or extend with a hole, to ``size``; published by the next flush or fsync."""
        if size > FILE_SIZE_MAX:
            raise FileError(errno.EFBIG)
        size_before = self._content.size
        self._content.truncate(size)
        self._note_change(caller)
        self._journal.cut(self.ino, size_before, caller, self._mtime_ns, size)

    def punch(self, caller: Caller, offset: int, length: int, keep_size: bool) -> None:
        """Zeros that take no space."""
        size_before = self._content.size
        self._content.punch(offset, length, keep_size)
        self._note_change(caller)
        self._journal.punched(
            self.ino, size_before, caller, self._mtime_ns, offset, length, keep_size
        )

    def _writable_stage(self) -> Stage:
        if self._stage is None:
            # Of a file that the cluster does not know yet it can't tell how many copies it gets.
            known = self.ino if self._create is None else self._create.parent
            self._stage = self._area.new_stage(self.ino, known)
            self._stages[self._stage.source] = self._stage
        return self._stage

    def _note_change(self, caller: Caller) -> None:
        self._caller = caller
        self._mtime_ns = self._changed_ns = self._clock()

    async def empty(self, caller: Caller) -> None:
        """O_TRUNC: nothing is left of the newest version."""
        await self.look()
        if self.size:
            self.truncate(caller, 0)

    async def drain(self) -> None:
        """A writer faster than the network waits here, so that little is left to do at the end."""
        if self._stage is not None:
            await self._stage.drain()

    # --- publishing and refreshing -------------------------------------------------------------

    async def publish(self) -> None:
        """What was written before this call is a version of the cluster, durable, when it returns.

        On an error everything stays here, dirty, and a later publish tries again.
        """
        async with self._lock:
            await self._finish()
            if not self._content.dirty:
                await self._settle()
                return
            changes = self._content.take_changes()
            self._journal.publishing(self.ino)
            serials = self._serials_before(changes)
            is_repeat = bool(serials)
            self._publication = Publication(changes, self._caller, self._mtime_ns, serials)
            await self._send(self._publication)
            if is_repeat:
                self.changed_elsewhere()  # the first answer, which may be old
        if len(self._stages) > UNNAMED_STAGES_MAX:
            self.changed_elsewhere()
            await self.refresh()

    def _serials_before(self, changes: Changes) -> list[Serial]:
        """Those under which the very same was sent before and not answered: close(2) tries twice,
        and what was appended must not land twice."""
        before, self._unanswered = self._unanswered, None
        if before is None or not before.serials:
            return []
        same = (before.changes, before.caller, before.mtime_ns) == (
            changes, self._caller, self._mtime_ns,
        )  # fmt: skip
        if not same or not self._client.remembers(before.serials[0]):
            return []
        for serial in before.serials:
            self._journal.committing(self.ino, serial)
        return before.serials

    async def _finish(self) -> None:
        """What the worker before this one had sent is published, once: under the same serials the
        cluster gives its first answer, or does it now. Without an answer nothing is decided, and a
        later attempt is as good."""
        if not self._undecided:
            return
        sent = self._publication
        assert sent is not None
        try:
            await self._send(sent, decides=(FileError,))
        except FileError:
            self._undecided = False
            raise
        self._undecided = False
        # Its blobs may be others than those that were sent now.
        self.changed_elsewhere()

    async def _send(
        self,
        publication: Publication,
        decides: tuple[type[BaseException], ...] = (BaseException,),
    ) -> None:
        """The cluster has the changes. On an error that ``decides`` they are dirty again."""
        changes = publication.changes
        sources = {s.source for s in changes.segments if s.source < 0}
        if self._stage is not None and self._stage.source in sources:
            self._stage = None
        try:
            infos = await self._commit(publication, sources)
        except decides as exc:
            if self._publication is not publication:
                raise  # `_decided`
            if self._create is not None and self._create.carries(publication):
                self._undecided = True  # the file may be there, with this content
                raise
            self._publication = None
            if not isinstance(exc, FileError):
                self._unanswered = publication
            self._content.restore(changes)
            self._journal.published(self.ino, False)
            raise
        if self._publication is publication:
            self._publication = None
            self._journal.published(self.ino, True)
        for source, info in infos.items():
            self._blobs[info.blob] = info
            self._content.sealed(source, info.blob)
        appended_at = changes.append_start
        if appended_at is not None and self.attr.size != appended_at + changes.size:
            # Another mount appended first: the cluster put our bytes behind theirs.
            self.changed_elsewhere()
        await self._drop_unused_stages()

    async def _commit(self, publication: Publication, sources: set[int]) -> dict[int, BlobInfo]:
        """Seal the stages and run the commands; the blobs that they became."""
        changes = publication.changes
        if self._create is not None:
            created = await self._create_with(self._create, publication, sources)
            if created is not None:
                return created
        infos, put = await self._seal(sources)
        extents = changes.extents(_blobs_of(infos, put))
        # Several commands only for files with tens of thousands of separate changes.
        for number, start in enumerate(range(0, max(len(extents), 1), EXTENTS_PER_COMMIT_MAX)):
            piece = extents[start : start + EXTENTS_PER_COMMIT_MAX]
            named = {extent.blob for extent in piece}
            commit = Commit(
                caller=publication.caller,
                ino=self.ino,
                base_version=None,
                cut=changes.cut if start == 0 else None,
                size=changes.size,
                append=changes.append_start is not None,
                extents=piece,
                blobs=tuple(sorted(i for i in set(infos.values()) if i.blob in named)),
                mtime_ns=TimeNs(publication.mtime_ns),
            )
            content = put.content() if put is not None and PUT_BLOB in named else None
            serial = self._serial_of(publication, number)
            self.attr = await self._client.execute(commit, content, serial=serial)
        return infos

    def _serial_of(self, publication: Publication, number: int) -> Serial:
        """Of its command ``number``, the same at every attempt."""
        if number == len(publication.serials):
            serial = self._client.new_serial()
            self._journal.committing(self.ino, serial)
            publication.serials.append(serial)
        return publication.serials[number]

    async def _seal(self, sources: set[int]) -> tuple[dict[int, BlobInfo], Stage | None]:
        """Blobs of the staging files, and the one small stage that may travel with the Commit.

        What such a stage is called as a blob only the tree knows; its bytes stay here, readable,
        until the file is closed or refreshed.
        """
        put = self._put_stage(sources)
        unsealed = [self._stages[s] for s in sorted(sources) if put is None or s != put.source]
        return {stage.source: await stage.seal() for stage in unsealed}, put

    def _put_stage(self, sources: set[int]) -> Stage | None:
        if len(sources) != 1:
            return None
        stage = self._stages[next(iter(sources))]
        return stage if stage.info is None and stage.content() is not None else None

    async def look(self) -> None:
        """What follows builds on the file as the cluster has it, not on what it was."""
        if self.stale:
            await self.refresh()

    async def refresh(self) -> None:
        """Look at the cluster's newest version; what is dirty here stays on top of it."""
        async with self._lock:
            if not self.stale:
                return
            await self._finish()
            # Counted before asking: what is heard of after the answer needs another look.
            heard = self._changes_heard
            version = await self._client.call(GetFile(self.ino))
            self._adopt(version, heard)
            await self._drop_unused_stages()

    def adopt(self, version: FileVersion) -> None:
        """``version`` is the newest of the cluster, just now. Not while the file is `busy`."""
        self._adopt(version, self._changes_heard)

    def _adopt(self, version: FileVersion, heard: int) -> None:
        self._changes_seen = heard
        self.attr = version.attr
        dirty = self._content.dirty
        self._content.rebase(version)
        if dirty:
            self._journal.rebased(self.ino, version.attr.size)
        self._blobs.update((info.blob, info) for info in version.blobs)
        needed = self._content.sources()
        self._blobs = {blob: info for blob, info in self._blobs.items() if blob in needed}
        self._contents.update(_sound(version))
        self._contents = {blob: data for blob, data in self._contents.items() if blob in needed}

    @property
    def busy(self) -> bool:
        """Being published or refreshed: not the moment to adopt a version."""
        return self._lock.locked() or self._undecided

    async def is_unused(self) -> bool:
        """Whether nobody has it open, once what is on its way has arrived or failed, also where its
        program was killed and nobody waits for that. Who opens it meanwhile goes on with this
        object: two of one file would mix their records in the journal."""
        if self.handles == 0:
            async with self._lock:
                pass
        return self.handles == 0

    async def discard(self) -> None:
        """Forget what was never published, and give all staging space back."""
        async with self._lock:
            if self.dirty:
                self._content.take_changes()
                self._publication, self._undecided = None, False
                self._journal.forgotten(self.ino)
            self._stage = None
            for stage in list(self._stages.values()):
                await stage.discard()
            self._stages.clear()

    async def _drop_unused_stages(self) -> None:
        if len(self._stages) == (self._stage is not None):
            return
        needed = self._content.sources()
        for source, stage in list(self._stages.items()):
            if source not in needed and stage is not self._stage:
                del self._stages[source]
                await stage.discard()


def _blobs_of(infos: dict[int, BlobInfo], put: Stage | None) -> dict[int, BlobId]:
    """By stages, what their content is called in the command that publishes it."""
    blobs = {source: info.blob for source, info in infos.items()}
    if put is not None:
        blobs[put.source] = PUT_BLOB
    return blobs


def _sound(version: FileVersion) -> dict[int, bytes]:
    """What came with a version and is what was written. A node whose tree is damaged says so when
    it is asked for the rest."""
    checksum_of = {info.blob: info.checksum for info in version.blobs}
    return {
        blob: data for blob, data in version.contents if blake3(data).digest() == checksum_of[blob]
    }
