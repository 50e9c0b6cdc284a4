"""Content survives the loss of a node: copies while it is written, other holders while it is read.

Called by service.py for every request about blobs; made by node.py.

Writing. The first copy is this node's. The others go out at the same time: a small blob as one
message while it is synced here, a large one chunk by chunk as it arrives. Whoever confirmed a
verified and durable copy is a holder, nobody else. A node that is slow or dead holds a writer up
for STALL_S; then the blob goes on with the copies it has, and repair adds the rest.

Reading. Content that this node does not hold, or not any more, comes from a holder: the fastest
first, a second one when the first takes longer than HEDGE_S. What is read here is known to be what
was written: a file is hashed before its first byte is given out and whenever it changed since.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from blake3 import blake3

from pydi_node.blobs.placement import any_is_full, choose
from pydi_node.blobs.store import BlobSeal, BlobStore, Writer
from pydi_node.errors import (
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    DeadlineError,
    DisconnectedError,
    FileError,
    NoSpaceError,
    PydiError,
    UnavailableError,
)
from pydi_node.ids import BlobId, Ino, NodeNumber, blob_name
from pydi_node.records import IN_TREE, BlobInfo
from pydi_node.runtime.service import Service
from pydi_node.runtime.streams import PULLS_MAX, Throttle
from pydi_node.runtime.transfers import STALL_S, WHOLE_MAX_BYTES, Relay, Transfers
from pydi_node.wire.messages import BlobCopy, BlobRead

_log = logging.getLogger(__name__)

HEDGE_S = 0.25  # several times what a loaded node takes for a chunk from its disk
# A holder that restarts is back within this; a reader would rather wait than fail.
WAIT_HOLDER_S = 3.0
# Hashing this much takes less than 0.1 s. Larger files are hashed while they are read from: their
# reader could not wait for it.
VERIFY_FIRST_MAX_BYTES = 64 << 20
VERIFIED_MAX = 1 << 16  # files remembered as hashed, some 200 bytes each
# A large blob that lost a copy on its way is copied by repair: its writer can't wait so long.
SUBSTITUTE_MAX_BYTES = 64 << 20
TELL_AGAIN_S = 60.0
TOLD_MAX = 1024
FETCHES_AT_ONCE = PULLS_MAX  # each holds a small blob in memory, or a chunk of a large one
INLINE_LOOK_S = 1.0  # between two looks at the settings, the tree's size and how full the nodes are
# Up to this a file of its own costs the disks as much, so it is in the tree whatever its size.
INLINE_ALWAYS_BYTES = 4096
RATE_PERIOD_S = 1.0

# inode, size, time of the last change of content and of anything: a file that has the same is the
# one that was hashed.
_Identity = tuple[int, int, int, int]


def _identity_of(fd: int) -> _Identity:
    status = os.fstat(fd)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _close_unwanted(opening: asyncio.Future[tuple[int, _Identity, bool]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def _in_tree(name: BlobId, content: bytes) -> BlobInfo:
    return BlobInfo(name, len(content), blake3(content).digest(), IN_TREE)


class _Found(NamedTuple):
    """A range of a local file."""

    data: bytes
    identity: _Identity
    is_hashed: bool


class _Places(NamedTuple):
    """Where the copies of a new blob go."""

    others: deque[NodeNumber]  # that can take a copy, best first; taken out as they are tried
    copies: int  # that there should be, this node's counted
    stays: bool  # on this node: not while it drains

    @property
    def wanted(self) -> int:
        """Copies on other nodes."""
        return self.copies - self.stays


class Replication:
    """See the module's text."""

    def __init__(self, service: Service, transfers: Transfers) -> None:
        self.transfers = transfers
        self._service = service
        self._store: BlobStore = service.store
        self._node = service.node
        self._loop = asyncio.get_running_loop()
        self._verified: OrderedDict[BlobId, _Identity] = OrderedDict()
        self._fetching: dict[BlobId, asyncio.Task[None]] = {}
        self._fetch_slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._told_until_s: dict[BlobId, float] = {}  # unreadable blobs that the log names
        self._inline_max_bytes = -1
        self._inline_until_s = 0.0  # when to look again
        self._throttle = Throttle()  # of what is fetched
        # A copy that the tree counts on is not here, or damaged; repairing.py sees to it.
        self.on_lost: Callable[[BlobInfo], None] = lambda info: None
        self.on_doubt: Callable[[BlobInfo], None] = lambda info: None
        self.gone: set[BlobId] = set()  # the only copy was here, and is not any more

    # --- writing ----------------------------------------------------------------------------------

    async def put(self, payload: bytes, ino: Ino | None, parent: Ino | None = None) -> BlobInfo:
        """A new blob, durable on all the holders it names: this node and as many as it should have,
        or fewer when the others can't in time.

        ino  of the file that it is for; None when nobody knows. parent: of one yet to be made.
        NoSpaceError  no node has room. OSError  the disk of this node failed.
        """
        places = self._places(len(payload), ino, parent)
        nodes = places.others
        copies: list[asyncio.Task[NodeNumber | None]] = []
        made: list[BlobInfo] = []

        def push() -> None:
            copy = self._on_one_of(
                nodes,
                lambda number: self.transfers.push(number, made[0], payload),
                self._loop.time() + STALL_S,
            )
            copies.append(self._loop.create_task(copy))

        def begin(info: BlobInfo) -> None:
            made.append(info)
            for _ in range(min(places.wanted, len(nodes))):
                push()

        holders = []
        try:
            await self._service.in_pool(lambda: self._store_new(payload, begin))
            holders.append(self._node)
        except NoSpaceError:
            if not made or not nodes:
                raise
            push()
        except BaseException:
            for copy in copies:
                copy.cancel()
            raise
        for copy in copies:
            number = await copy
            if number is not None:
                holders.append(number)
        if not holders:
            raise NoSpaceError("this node is full, and no other took the content")
        (info,) = made
        info = info._replace(holders=tuple(sorted(holders)))
        return await self._without_here(info, places)

    async def inline(self, payload: bytes) -> BlobInfo | None:
        """A new blob of content so small that it goes with its command into the tree of every node;
        None: it is for ``put``."""
        if len(payload) > self._inline_max():
            return None
        return _in_tree(await self._service.in_pool(self._store.take_name), payload)

    def inline_nowait(self, payload: bytes) -> BlobInfo | None:
        """As ``inline``; None also when that would have to wait."""
        if len(payload) > self._inline_max():
            return None
        name = self._store.take_name_nowait()
        return None if name is None else _in_tree(name, payload)

    def _inline_max(self) -> int:
        """Bytes. Less once the tree is large: every node has all of it, and a new one is sent it.
        Nothing while some node is full: what is left of its disk is for deleting."""
        now_s = self._loop.time()
        if now_s >= self._inline_until_s:
            self._inline_until_s = now_s + INLINE_LOOK_S
            tree = self._service.tree
            settings = tree.settings()
            self._inline_max_bytes = settings["inline_max_bytes"]
            if tree.used_bytes >= settings["inline_tree_bytes"]:
                self._inline_max_bytes = min(self._inline_max_bytes, INLINE_ALWAYS_BYTES)
            if any_is_full(self.transfers.states()):
                self._inline_max_bytes = -1
        return self._inline_max_bytes

    def _store_new(self, payload: bytes, begin: Callable[[BlobInfo], None]) -> None:
        """In a thread: the blob is durable here. ``begin`` runs in the loop as soon as it has a
        name, so the copies travel while this node's disk works."""
        checksum = blake3(payload).digest()
        with self._store.create() as writer:
            info = BlobInfo(writer.blob, len(payload), checksum, ())
            self._loop.call_soon_threadsafe(begin, info)
            writer.write(0, payload)
            writer.seal(len(payload), checksum)

    def copies_of(self, blob: BlobId, ino: Ino | None) -> Copies:
        """The copies of a blob that is about to be written here for that file, if known."""
        return Copies(self, blob, ino)

    def _places(self, size: int, ino: Ino | None, parent: Ino | None = None) -> _Places:
        """Where a new blob of that size (0 while it is not known) for that file should go."""
        states = self.transfers.states()
        tree = self._service.tree
        return _Places(
            deque(choose(states, len(states), exclude={self._node}, size=size)),
            tree.copies_of(ino, parent) if ino or parent else tree.settings()["replicas"],
            stays=not any(s.number == self._node and s.draining for s in states),
        )

    async def _without_here(self, info: BlobInfo, places: _Places) -> BlobInfo:
        """A new blob as it is committed: a node that drains keeps it only where the others hold
        fewer copies than there should be. Nothing names it yet, so the file can go at once."""
        others = tuple(number for number in info.holders if number != self._node)
        if places.stays or len(others) < places.copies:
            return info
        await self._service.in_pool(lambda: self._store.delete(info.blob))
        return info._replace(holders=others)

    async def _on_one_of(
        self,
        nodes: deque[NodeNumber],
        copy: Callable[[NodeNumber], Awaitable[Any]],
        until_s: float,
    ) -> NodeNumber | None:
        """The node where ``copy`` succeeded; it takes them out of ``nodes``, one after the other.
        None when there was none in time."""
        while nodes and self._loop.time() < until_s:
            number = nodes.popleft()
            try:
                await copy(number)
            except (PydiError, OSError) as exc:
                _log.info("no copy on node %d: %s", number, exc)
            else:
                return number
        return None

    # --- reading ----------------------------------------------------------------------------------

    async def read(self, blob: BlobId, offset: int, length: int, deadline_s: float) -> bytes:
        """Bytes ``[offset, offset + length)``, from wherever they are; shorter only at the end.

        BlobMissingError  no holder that can be asked has a good copy; it names them.
        """
        info = await self._info(blob, deadline_s)
        try:
            return await self.read_here(blob, info, offset, length)
        except (BlobMissingError, BlobCorruptError) as exc:
            if info is None:
                raise
            here = str(exc)
        if info.is_in_tree:
            return (await self.mend(info, here, deadline_s))[offset : offset + length]
        if self._node in info.holders:
            self.on_lost(info)
        return await self._read_elsewhere(info, offset, length, deadline_s, here)

    async def read_here(
        self, blob: BlobId, info: BlobInfo | None, offset: int, length: int
    ) -> bytes:
        """The same out of this node's own store or tree. BlobMissingError, BlobCorruptError.

        info  what the tree says of it; None: nothing, so nobody can tell whether it is right.
        """
        if info is not None and info.is_in_tree:
            return self._content(info)[offset : offset + length]
        known = self._verified.get(blob)
        found: _Found = await self._service.in_pool(
            lambda: self._read_file(blob, info, known, offset, length)
        )
        if info is not None:
            self._note_checked(info, known, found.identity, found.is_hashed)
        return found.data

    async def open_here(self, info: BlobInfo) -> int:
        """A read-only descriptor of this node's own copy, checked as for `read_here`. The caller
        closes it. BlobMissingError, BlobCorruptError; UnavailableError: ask again."""
        if info.is_in_tree:
            raise BlobMissingError(f"blob {blob_name(info.blob)} has no file")
        known = self._verified.get(info.blob)

        def open_file() -> tuple[int, _Identity, bool]:
            fd = self._store.open(info.blob)
            try:
                identity = _identity_of(fd)
                is_hashed = self._check_file(info, identity, known)
                if _identity_of(fd) != identity:
                    # Replaced while it was checked by name: the check may have been of another.
                    raise UnavailableError(f"blob {blob_name(info.blob)} is being replaced")
            except BaseException:
                os.close(fd)
                raise
            return fd, identity, is_hashed

        opening = asyncio.ensure_future(self._service.in_pool(open_file))
        try:
            fd, identity, is_hashed = await asyncio.shield(opening)
        except (BlobMissingError, BlobCorruptError):
            if self._node in info.holders:
                self.on_lost(info)
            raise
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise
        self._note_checked(info, known, identity, is_hashed)
        return int(fd)

    def _content(self, info: BlobInfo) -> bytes:
        """Of a blob in the tree. BlobMissingError: it has just been forgotten."""
        try:
            content = self._service.tree.content(info.blob)
        except FileError as exc:
            raise BlobMissingError(f"blob {blob_name(info.blob)} is not in the tree") from exc
        if blake3(content).digest() != info.checksum:
            raise BlobCorruptError(f"blob {blob_name(info.blob)}: its content in the tree is wrong")
        return content

    async def mend(self, info: BlobInfo, here: str, deadline_s: float) -> bytes:
        """The whole content of a blob in the tree, out of another node's; this node's tree has it
        again, too.

        here  what is wrong with this node's.
        BlobMissingError  no node that can be asked has it.
        """
        content = await self._read_elsewhere(info, 0, info.size, deadline_s, here)
        if blake3(content).digest() != info.checksum:
            raise BlobMissingError(f"blob {blob_name(info.blob)}: another node's is wrong, too")
        try:
            if self._service.tree.mend_content(info, content):
                _log.warning("%s: mended out of another node's tree", here)
        except NoSpaceError as exc:
            _log.info("blob %s is not mended: %s", blob_name(info.blob), exc)
        return content

    def _read_file(
        self, blob: BlobId, info: BlobInfo | None, known: _Identity | None, offset: int, length: int
    ) -> _Found:
        fd = self._store.open(blob)
        try:
            identity = _identity_of(fd)
        finally:
            os.close(fd)
        is_hashed = info is None or self._check_file(info, identity, known)
        return _Found(self._store.read(blob, offset, length), identity, is_hashed)

    def _check_file(self, info: BlobInfo, identity: _Identity, known: _Identity | None) -> bool:
        """In a thread: whether the file was hashed, now or when it was ``known`` to be the same.
        False: only its size was compared, for it is large. BlobCorruptError."""
        if identity == known:
            return True
        is_hashed = info.size <= VERIFY_FIRST_MAX_BYTES
        if is_hashed or identity[1] != info.size:
            self._store.verify(info.blob, info.size, info.checksum)
        return is_hashed

    def _note_checked(
        self, info: BlobInfo, known: _Identity | None, identity: _Identity, is_hashed: bool
    ) -> None:
        if identity == known:
            return
        self._verified[info.blob] = identity
        self._verified.move_to_end(info.blob)
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        if not is_hashed:
            self.on_doubt(info)

    async def _info(self, blob: BlobId, deadline_s: float) -> BlobInfo | None:
        """What the tree says of a blob; None when it says nothing."""
        driver = self._service.driver
        try:
            return self._service.tree.blob(blob)
        except FileError:
            if driver.is_covered:
                return None
        # Committed through another node, and not yet applied here.
        await driver.is_current(min(deadline_s, self._loop.time() + WAIT_HOLDER_S))
        try:
            return self._service.tree.blob(blob)
        except FileError:
            return None

    def _holders(self, info: BlobInfo) -> tuple[NodeNumber, ...]:
        """Of what is in the tree that is every node."""
        return tuple(sorted(self.transfers.members)) if info.is_in_tree else info.holders

    async def _read_elsewhere(
        self, info: BlobInfo, offset: int, length: int, deadline_s: float, here: str
    ) -> bytes:
        expected = max(0, min(length, info.size - offset))
        if expected == 0:
            return b""
        until_s = min(deadline_s - 0.1, self._loop.time() + WAIT_HOLDER_S)
        while True:
            holders = self._holders(info)
            failures: dict[NodeNumber, str] = {
                n: "not reachable" for n in holders if not self.transfers.is_up(n)
            }
            if self._node in holders:
                failures[self._node] = here
            request = BlobRead(info.blob, offset, expected)
            data = await self._ask(info, request, deadline_s, failures)
            if data is not None:
                return data
            if self._loop.time() >= until_s:
                break
            await self.transfers.wait_arrival(until_s - self._loop.time())
            # Repair may have made another copy meanwhile.
            info = await self._info(info.blob, deadline_s) or info
        told = "; ".join(f"node {n}: {why}" for n, why in sorted(failures.items()))
        sentence = f"no copy of blob {blob_name(info.blob)} can be read ({told})"
        self._tell(info.blob, sentence)
        raise BlobMissingError(sentence)

    def _tell(self, blob: BlobId, sentence: str) -> None:
        """Warns of it, but not at every read that a program tries again."""
        now_s = self._loop.time()
        if now_s >= self._told_until_s.get(blob, 0.0):
            if len(self._told_until_s) >= TOLD_MAX:
                self._told_until_s.clear()
            self._told_until_s[blob] = now_s + TELL_AGAIN_S
            _log.warning("%s", sentence)

    async def _ask(
        self,
        info: BlobInfo,
        request: BlobRead,
        deadline_s: float,
        failures: dict[NodeNumber, str],
    ) -> bytes | None:
        """The bytes from the first holder that gives them; None, and why in ``failures``."""
        nodes = deque(self.transfers.sources(self._holders(info)))
        asked: dict[asyncio.Future[Any], tuple[NodeNumber, int]] = {}
        try:
            while nodes or asked:
                if nodes:
                    number = nodes.popleft()
                    try:
                        request_id, answer = self.transfers.begin(number, request)
                    except UnavailableError as exc:
                        failures[number] = str(exc)
                        continue
                    asked[answer] = number, request_id
                left_s = deadline_s - self._loop.time()
                done, _ = await asyncio.wait(
                    asked,
                    timeout=min(HEDGE_S, left_s) if nodes else left_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for answer in done:
                    number, _ = asked.pop(answer)
                    error = answer.exception()
                    if error is None and len(answer.result()) == request.length:
                        data: bytes = answer.result()
                        return data
                    failures[number] = str(error or "it has less than there should be")
                if self._loop.time() >= deadline_s:
                    failures.update({number: "no answer in time" for number, _ in asked.values()})
                    break
        finally:
            for number, request_id in asked.values():
                if self.transfers.is_up(number):
                    self.transfers.link(number).cancel(request_id)
        return None

    async def verify(self, info: BlobInfo) -> None:
        """The copy here is sound. BlobMissingError, BlobCorruptError: it will be replaced."""
        if info.is_in_tree:
            self._content(info)
            return
        try:
            await self._service.in_pool(
                lambda: self._store.verify(info.blob, info.size, info.checksum)
            )
        except BlobError:
            if self._node in info.holders:
                self.on_lost(info)
            raise

    # --- a copy for this node ---------------------------------------------------------------------

    async def hold(self, info: BlobInfo) -> None:
        """This node holds a verified copy.

        BlobMissingError   none of the other holders has a good one.
        DisconnectedError  none that can be asked; another may come back. NoSpaceError.
        """
        if self._store.has(info.blob):
            try:
                await self._service.in_pool(
                    lambda: self._store.verify(info.blob, info.size, info.checksum)
                )
                return
            except BlobError:
                pass  # in quarantine now: it is fetched like one that was never here
        task = self._fetching.get(info.blob)
        if task is None:
            task = self._loop.create_task(self._fetch(info))
            self._fetching[info.blob] = task
            task.add_done_callback(lambda _: self._fetching.pop(info.blob))
        # Two may wait for one fetch; one that gives up must not end it for the other.
        await asyncio.shield(task)

    async def _fetch(self, info: BlobInfo) -> None:
        async with self._fetch_slots:
            keeper = self._loop.create_task(self._keep_rate())
            try:
                if info.size <= WHOLE_MAX_BYTES:
                    await self._from_one_of(info, self._fetch_whole)
                else:
                    await self._fetch_stream(info)
            finally:
                keeper.cancel()

    async def _fetch_whole(self, source: NodeNumber, info: BlobInfo) -> None:
        await asyncio.sleep(self._throttle.take(info.size))
        data = await self.transfers.fetch(source, info)

        def store() -> None:
            with self._store.receive(info.blob, info.size, info.checksum) as writer:
                writer.write(0, data)
                writer.seal()

        try:
            await self._service.in_pool(store)
        except BlobCorruptError:
            self.transfers.doubt(source, info.blob)
            raise

    async def _fetch_stream(self, info: BlobInfo) -> None:
        """Goes on with the next source where one stopped, and with all of them again as long as
        anything came: a link that breaks costs no gigabyte that is here already."""
        growing = _Growing(
            await self._service.in_pool(
                lambda: self._store.receive(info.blob, info.size, info.checksum)
            )
        )

        async def grow(source: NodeNumber, info: BlobInfo) -> None:
            if not growing.writer.is_open:
                growing.restart(
                    await self._service.in_pool(
                        lambda: self._store.receive(info.blob, info.size, info.checksum)
                    )
                )
            before_bytes = growing.writer.size
            try:
                await self.transfers.stream(source, info, growing.writer, self._throttle)
            except UnavailableError:
                if growing.writer.size > before_bytes:
                    growing.sources.add(source)
                raise
            except BlobCorruptError:
                for doubtful in sorted(growing.sources | {source}):
                    self.transfers.doubt(doubtful, info.blob)
                if growing.sources <= {source}:
                    raise
                # Not to be said whose bytes were wrong: once more, all from one.
                await grow(source, info)

        try:
            while True:
                before_bytes = growing.writer.size
                try:
                    await self._from_one_of(info, grow)
                    return
                except DisconnectedError:
                    if not growing.writer.is_open or growing.writer.size == before_bytes:
                        raise
                await self.transfers.wait_arrival(WAIT_HOLDER_S)
        finally:
            await self._service.in_pool(growing.writer.abort)

    async def _from_one_of(
        self, info: BlobInfo, fetch: Callable[[NodeNumber, BlobInfo], Awaitable[None]]
    ) -> None:
        """Done with the first source with which it succeeds. Errors as of `hold`."""
        error: PydiError | None = None
        sources = self.transfers.sources(info.holders)
        can_wait = len(sources) < len(set(info.holders) - {self._node})
        for source in sources:
            try:
                await fetch(source, info)
                return
            except (UnavailableError, BlobError) as exc:
                _log.info("blob %s from node %d: %s", blob_name(info.blob), source, exc)
                error = exc
                can_wait |= isinstance(exc, UnavailableError)
        sentence = f"no holder of blob {blob_name(info.blob)} can give it"
        raise (DisconnectedError if can_wait else BlobMissingError)(sentence) from error

    async def _keep_rate(self) -> None:
        """The setting may change while a large blob is on its way."""
        while True:
            self._throttle.bytes_per_s = self._service.tree.settings()["repair_bytes_per_s"]
            await asyncio.sleep(RATE_PERIOD_S)

    async def offer(self, node: NodeNumber, blob: BlobId, size: int, offset: int) -> bytes:
        """A ticket with which that node may stream this node's own copy. BlobMissingError,
        BlobCorruptError, BusyError."""
        try:
            found = await self._service.in_pool(lambda: self._store.size(blob))
        except BlobMissingError:
            info = self._service.known_blob(blob)
            if info is not None and self._node in info.holders:
                self.on_lost(info)
            raise
        if found != size:
            raise BlobCorruptError(f"blob {blob_name(blob)} has {found} bytes here, not {size}")
        return self.transfers.streams.offer(node, blob, offset)


class _Growing:
    """A large copy that is being fetched."""

    def __init__(self, writer: Writer) -> None:
        self.restart(writer)

    def restart(self, writer: Writer) -> None:
        self.writer = writer
        self.sources: set[NodeNumber] = set()  # where its bytes came from


class Copies:
    """The copies of one blob on other nodes, growing while it is written here.

    One method at a time, in the order of the blob's requests. None of them raises: a copy that
    fails is left out.
    """

    def __init__(self, replication: Replication, blob: BlobId, ino: Ino | None) -> None:
        self._replication = replication
        self._ino = ino
        self._transfers = replication.transfers
        self._blob = blob
        self._loop = asyncio.get_running_loop()
        self._relays: list[Relay] | None = None  # None before the first write
        self._places = _Places(deque(), 0, stays=True)  # as of the first write

    async def write(self, offset: int, payload: bytes) -> None:
        await self._each(lambda relay: relay.write(offset, payload))

    async def truncate(self, size: int) -> None:
        await self._each(lambda relay: relay.truncate(size))

    async def seal(
        self, stored: asyncio.Future[BlobSeal], size: int, checksum: bytes | None
    ) -> BlobInfo:
        """The blob with all that hold it.

        stored  the seal on this node, under way. Its errors come through.
        """
        seal = BlobSeal(size, checksum) if checksum else await asyncio.shield(stored)
        started_s = self._loop.time()

        async def begin_seal(relay: Relay) -> None:
            relay.begin_seal(seal.size, seal.checksum)

        await self._each(begin_seal)
        await stored
        # Where syncing takes long here, it takes long there.
        stall_s = STALL_S + self._loop.time() - started_s
        await self._each(lambda relay: relay.finish(stall_s))
        for relay in self._relays or ():
            self._transfers.note_copy(relay.number, seal.size)
        holders = {self._replication._node}
        holders |= {relay.number for relay in self._relays or ()}
        info = BlobInfo(self._blob, seal.size, seal.checksum, tuple(sorted(holders)))
        return await self._replication._without_here(await self._complete(info), self._places)

    def abort(self) -> None:
        """The copies are dropped."""
        for relay in self._relays or ():
            relay.abort()
        self._relays = []

    async def _each(self, work: Callable[[Relay], Awaitable[None]]) -> None:
        if self._relays is None:
            await self._begin()
        assert self._relays is not None
        await asyncio.gather(*[self._try(relay, work) for relay in self._relays])

    async def _try(self, relay: Relay, work: Callable[[Relay], Awaitable[None]]) -> None:
        assert self._relays is not None
        try:
            await work(relay)
        except (PydiError, OSError) as exc:
            _log.info("the copy of blob %s on node %d is given up: %s",
                      blob_name(self._blob), relay.number, exc)  # fmt: skip
            relay.abort()
            self._relays = [kept for kept in self._relays if kept is not relay]

    async def _begin(self) -> None:
        replication = self._replication
        self._relays = []
        self._places = replication._places(0, self._ino)
        nodes = self._places.others
        until_s = self._loop.time() + STALL_S

        async def begin(number: NodeNumber) -> None:
            relay = Relay(self._transfers, number, self._blob)
            try:
                await relay.begin()
            except BaseException:
                relay.abort()
                raise
            assert self._relays is not None
            self._relays.append(relay)

        await asyncio.gather(
            *[
                replication._on_one_of(nodes, begin, until_s)
                for _ in range(min(self._places.wanted, len(nodes)))
            ]
        )

    async def _complete(self, info: BlobInfo) -> BlobInfo:
        """Copies that failed on their way are made elsewhere, if that takes no longer than a
        writer can wait."""
        replication = self._replication
        missing = self._places.wanted + 1 - len(info.holders)
        if missing <= 0 or info.size > SUBSTITUTE_MAX_BYTES:
            return info
        places = replication._places(info.size, self._ino)
        nodes = deque(n for n in places.others if n not in info.holders)
        until_s = self._loop.time() + STALL_S

        async def copy(number: NodeNumber) -> None:
            try:
                async with asyncio.timeout_at(until_s):
                    await self._transfers.request(number, BlobCopy(info), until_s)
            except TimeoutError as exc:
                raise DeadlineError("the copy takes too long") from exc

        made = await asyncio.gather(
            *[replication._on_one_of(nodes, copy, until_s) for _ in range(min(missing, len(nodes)))]
        )
        holders = {*info.holders, *[number for number in made if number is not None]}
        return info._replace(holders=tuple(sorted(holders)))
