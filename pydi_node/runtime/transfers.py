"""Content on its way between nodes: links of their own, what each node reports, copies that grow.

Made by node.py; replication.py and repairing.py move content through it. Each node keeps one link
to every other member beside the one for consensus, so that a gigabyte under way delays no
heartbeat. Over it the others also report how full they are, which is all that placement knows of
them: a node that has not reported since its link broke takes no copy.

Nothing here waits without an end. Who makes no progress for STALL_S is given up, and avoided for a
while; the caller goes on with other nodes, or with fewer copies.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from pydi_node.blobs.placement import NodeState
from pydi_node.blobs.store import BlobStore, Usage, Writer
from pydi_node.errors import (
    DeadlineError,
    DisconnectedError,
    PydiError,
    RemoteProtocolError,
    UnavailableError,
)
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.records import BlobInfo
from pydi_node.runtime.peers import Link, Peers
from pydi_node.runtime.service import Request
from pydi_node.runtime.streams import Pull, Streams, Throttle
from pydi_node.wire.messages import (
    CHUNK_MAX_BYTES,
    Admin,
    BlobAbort,
    BlobRead,
    BlobSeal,
    BlobStream,
    BlobTruncate,
    BlobVerify,
    BlobWrite,
    ReplicaCreate,
    ReplicaPut,
)
from pydi_node.wire.messages import Request as Message

_log = logging.getLogger(__name__)

STALL_S = 2.0  # the longest that a slow node holds up a writer
# One that does not answer a ping is not slow, its program hangs: after twice so long.
HANGS_S = 0.5
AVOID_S = 10.0  # who stalled gets no new copies for so long
REPORT_PERIOD_S = 2.0
REPORT_TIMEOUT_S = 2.0
MEMBERS_PERIOD_S = 0.2  # how soon a new member is noticed
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 2.0
REQUEST_DEADLINE_S = 300.0  # for the other side; who waits here looks at the progress
# Up to here a blob is fetched with one request; from here on the connection of a stream, some 3 ms
# of processor time on each side, is worth it.
WHOLE_MAX_BYTES = CHUNK_MAX_BYTES
RELAY_WINDOW_BYTES = 4 << 20  # of one growing copy, sent and not confirmed
LINK_WINDOW_BYTES = 32 << 20  # of all on one link; beyond it each write waits for its own answer


class _Node:
    """Another node that is connected and has reported."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.usage = Usage(0, 0, 0, 0)
        self.latency_s = 0.0  # of a small request, averaged
        self.relayed_bytes = 0  # sent by relays and not confirmed
        self.relays = 0  # under way: they keep to the link that they began on


class Transfers:
    """See the module's text."""

    def __init__(self, peers: Peers, store: BlobStore, node: NodeNumber, streams: Streams) -> None:
        self.node = node
        self.streams = streams
        self._peers = peers
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._nodes: dict[NodeNumber, _Node] = {}
        self._tasks: dict[NodeNumber, asyncio.Task[None]] = {}
        self._avoided_until_s: dict[NodeNumber, float] = {}
        self._arrived = asyncio.Event()
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "store-usage": lambda _, __: list(store.usage()),
            "content-links": lambda _, __: sorted(self._nodes),
            "content-streams": lambda _, __: streams.counts(),
        }

    # --- what is known of the others --------------------------------------------------------------

    def states(self, *, for_new: bool = True) -> list[NodeState]:
        """Every member, this node too, as placement wants to see it; by number.

        for_new  whoever stalled a while ago counts as down: a writer would wait for it.
        """
        tree = self._peers.driver.replica.tree
        books = {info.number: info for info in tree.nodes()}
        now_s = self._loop.time()
        states = []
        for number in sorted(self.members):
            other = self._nodes.get(number)
            usage = self._store.usage() if number == self.node else other and other.usage
            info = books.get(number)
            states.append(
                NodeState(
                    number,
                    up=usage is not None
                    and not (for_new and self._avoided_until_s.get(number, 0.0) > now_s),
                    draining=info is not None and info.state != "up",
                    witness=info is not None and info.witness,
                    stored_bytes=usage.stored if usage else 0,
                    free_bytes=usage.free if usage else 0,
                    total_bytes=usage.total if usage else 0,
                    files=usage.files if usage else 0,
                )
            )
        return states

    @property
    def members(self) -> frozenset[NodeNumber]:
        """All of them, this node too."""
        return self._peers.members | {self.node}

    def is_up(self, number: NodeNumber) -> bool:
        """Whether it can be asked for content now."""
        return number == self.node or number in self._nodes

    def sources(self, holders: tuple[NodeNumber, ...]) -> list[NodeNumber]:
        """Those of the holders, this node left out, that can be asked; the fastest first."""
        now_s = self._loop.time()
        return sorted(
            (number for number in holders if number in self._nodes),
            key=lambda n: (
                self._avoided_until_s.get(n, 0.0) > now_s,
                self._nodes[n].latency_s,
                n,
            ),
        )

    async def wait_arrival(self, timeout_s: float) -> None:
        """Until another node can be asked that could not before, at most so long."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            pass  # the caller looks again at what there is

    # --- requests ---------------------------------------------------------------------------------

    def begin(
        self, number: NodeNumber, request: Message, payload: bytes = b""
    ) -> tuple[int, asyncio.Future[Any]]:
        """Sends it, after what was sent there before; its id and the future of its answer.

        DisconnectedError, BusyError  nothing was sent.
        """
        deadline_s = self._loop.time() + REQUEST_DEADLINE_S
        return self.link(number).begin(request, deadline_s, payload)

    def link(self, number: NodeNumber) -> Link:
        """Its link. DisconnectedError."""
        node = self._nodes.get(number)
        if node is None:
            raise DisconnectedError(f"node {number} is not connected")
        return node.link

    async def answer(
        self, number: NodeNumber, answer: asyncio.Future[Any], stall_s: float = STALL_S
    ) -> Any:
        """The answer, however long it takes as long as there is progress.

        DeadlineError  no byte went out for ``stall_s``, or for half a second and then a ping got no
                       answer: the node is avoided for a while.
        The node's own errors; DisconnectedError.
        """
        link = self.link(number)
        while not answer.done():
            taken_bytes, asked_s = link.taken_bytes, self._loop.time()
            await asyncio.wait([answer], timeout=HANGS_S)
            if answer.done() or link.taken_bytes != taken_bytes:
                continue
            link.ping()
            await asyncio.wait([answer], timeout=HANGS_S)
            if link.heard_s >= asked_s:
                await asyncio.wait([answer], timeout=stall_s - 2 * HANGS_S)
            if not answer.done() and link.taken_bytes == taken_bytes:
                self._avoid(number)
                waited_s = self._loop.time() - asked_s
                raise DeadlineError(f"node {number} made no progress for {waited_s:.1f} s")
        return answer.result()

    async def request(self, number: NodeNumber, request: Message, deadline_s: float) -> Any:
        """The answer to a request that takes its time. DeadlineError, DisconnectedError, its own
        errors."""
        return await self.link(number).request(request, deadline_s)

    async def push(self, number: NodeNumber, info: BlobInfo, payload: bytes) -> None:
        """That node holds a durable, verified copy. UnavailableError, BlobError, NoSpaceError."""
        _, answer = self.begin(number, ReplicaPut(info), payload)
        await self.answer(number, answer)
        self.note_copy(number, info.size)

    def note_copy(self, number: NodeNumber, size: int) -> None:
        """That node took a blob of so many bytes: until its next report, who places the next one
        should know. Else all that is written between two reports goes to one node."""
        node = self._nodes.get(number)
        if node is not None:
            usage = node.usage
            node.usage = usage._replace(
                stored=usage.stored + size, files=usage.files + 1, free=max(0, usage.free - size)
            )

    async def fetch(self, source: NodeNumber, info: BlobInfo) -> bytes:
        """The whole of a blob of at most WHOLE_MAX_BYTES, not verified. Errors as of `stream`."""
        _, answer = self.begin(source, BlobRead(info.blob, 0, info.size))
        data: bytes = await self.answer(source, answer)
        return data

    async def stream(
        self, source: NodeNumber, info: BlobInfo, writer: Writer, throttle: Throttle
    ) -> None:
        """What ``writer`` lacks of a blob comes from ``source``; then the blob is durable here.

        BlobMissingError, BlobCorruptError  the source has no good copy.
        UnavailableError  it can't be asked, or not any more. Whether ``writer`` is still open says
                          if another source can go on with it. NoSpaceError, OSError.
        """
        request = BlobStream(info.blob, info.size, writer.size)
        _, answer = self.begin(source, request)
        ticket: bytes = await self.answer(source, answer)
        way = self._peers.way_of(self.link(source), source)
        try:
            await self.streams.pull(Pull(way, source, ticket, writer, info.size, throttle))
        except DeadlineError:
            self._avoid(source)
            raise

    def doubt(self, source: NodeNumber, blob: BlobId) -> None:
        """What came from there was wrong: it looks at its copy again."""
        if self.is_up(source):
            try:
                self.begin(source, BlobVerify(blob))
            except UnavailableError:
                pass  # its own scrub finds it as well

    def _avoid(self, number: NodeNumber) -> None:
        self._avoided_until_s[number] = self._loop.time() + AVOID_S

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps a link to every member."""
        try:
            while True:
                members = self._peers.members
                for number in sorted(members - self._tasks.keys()):
                    self._tasks[number] = self._loop.create_task(self._attend(number))
                for number in sorted(self._tasks.keys() - members):
                    self._tasks.pop(number).cancel()
                for task in self._tasks.values():
                    if task.done():
                        task.result()  # ends only by what nobody foresaw
                await asyncio.sleep(MEMBERS_PERIOD_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _attend(self, number: NodeNumber) -> None:
        """Connects to a member and asks for its reports, again and again."""
        delay_s = RECONNECT_MIN_S
        while True:
            try:
                link = await self._peers.open_link(number)
            except (OSError, PydiError, TimeoutError) as exc:
                _log.debug("no link for content to node %d: %s", number, exc)
            else:
                node = _Node(link)
                try:
                    await self._follow_reports(number, node)
                except (PydiError, ValueError) as exc:
                    _log.debug("link for content to node %d: %s", number, exc)
                finally:
                    node.link.close()
                    if self._nodes.pop(number, None) is not None:
                        delay_s = RECONNECT_MIN_S
                        _log.info("node %d takes and gives no content now", number)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)

    async def _follow_reports(self, number: NodeNumber, node: _Node) -> None:
        while True:
            asked_s = self._loop.time()
            report = await node.link.request(Admin("store-usage"), asked_s + REPORT_TIMEOUT_S)
            node.usage = _usage(report)
            latency_s = self._loop.time() - asked_s
            node.latency_s += (latency_s - node.latency_s) / (4 if node.latency_s else 1)
            if number not in self._nodes:
                self._nodes[number] = node
                self._avoided_until_s.pop(number, None)
                self._arrived.set()
                _log.info("node %d takes and gives content", number)
            await asyncio.wait([node.link.lost], timeout=REPORT_PERIOD_S)
            if not self._peers.is_current(node.link):
                await self._renew(number, node)

    async def _renew(self, number: NodeNumber, node: _Node) -> None:
        """Its link is under the newest secret, if the other side has that and nothing goes on."""
        try:
            fresh = await self._peers.open_link(number, newest=True)
        except (OSError, PydiError, TimeoutError) as exc:
            _log.debug("no new link for content to node %d yet: %s", number, exc)
            return
        if node.link.is_idle and node.relays == 0:
            node.link, fresh = fresh, node.link
        fresh.close()


class Relay:
    """One copy that grows on another node while its blob is being written here.

    Every method may raise UnavailableError, BlobError or NoSpaceError; then this copy is lost, and
    ``abort`` is all that may follow.
    """

    def __init__(self, transfers: Transfers, number: NodeNumber, blob: BlobId) -> None:
        self.number = number
        self._transfers = transfers
        self._node = transfers._nodes.get(number)
        self._blob = blob
        self._sent: deque[tuple[int, asyncio.Future[Any]]] = deque()  # bytes, answer
        self._sent_bytes = 0
        self._counted = False
        self._aborted = False

    async def begin(self) -> None:
        """The other node is ready to write."""
        self._send(ReplicaCreate(self._blob))
        assert self._node is not None
        self._node.relays += 1
        self._counted = True
        await self._settle(0)

    async def write(self, offset: int, payload: bytes) -> None:
        """On its way, after all writes before; returns when there is room for more."""
        self._send(BlobWrite(self._blob, offset), payload)
        assert self._node is not None
        crowded = self._node.relayed_bytes > LINK_WINDOW_BYTES
        await self._settle(0 if crowded else RELAY_WINDOW_BYTES)

    async def truncate(self, size: int) -> None:
        self._send(BlobTruncate(self._blob, size))

    def begin_seal(self, size: int, checksum: bytes) -> None:
        """Lets it become durable there; ``finish`` waits for it."""
        self._send(BlobSeal(self._blob, size, checksum))

    async def finish(self, stall_s: float) -> None:
        """All that was sent is done."""
        await self._settle(0, stall_s)
        self._end()

    def abort(self) -> None:
        """The other node forgets it."""
        self._aborted = True
        self._end()
        for length, _ in self._sent:
            self._confirm(length)
        self._sent.clear()
        if self._is_current:
            try:
                self._transfers.begin(self.number, BlobAbort(self._blob))
            except PydiError:
                pass  # it forgets unfinished blobs by itself when the link breaks

    @property
    def _is_current(self) -> bool:
        # After a reconnect the other node knows nothing of this copy any more.
        return self._node is not None and self._transfers._nodes.get(self.number) is self._node

    def _send(self, request: Message, payload: bytes = b"") -> None:
        if not self._is_current:
            raise DisconnectedError(f"the link to node {self.number} broke")
        assert self._node is not None
        _, answer = self._transfers.begin(self.number, request, payload)
        self._sent.append((len(payload), answer))
        self._sent_bytes += len(payload)
        self._node.relayed_bytes += len(payload)

    async def _settle(self, left_bytes: int, stall_s: float = STALL_S) -> None:
        """Waits for the oldest answers until no more than that is unconfirmed."""
        while self._sent and (left_bytes == 0 or self._sent_bytes > left_bytes):
            length, answer = self._sent[0]
            await self._transfers.answer(self.number, answer, stall_s)
            if self._aborted:
                return
            self._sent.popleft()
            self._confirm(length)

    def _end(self) -> None:
        if self._counted:
            self._counted = False
            assert self._node is not None
            self._node.relays -= 1

    def _confirm(self, length: int) -> None:
        self._sent_bytes -= length
        assert self._node is not None
        self._node.relayed_bytes -= length


def _usage(report: Any) -> Usage:
    if (
        not isinstance(report, (list, tuple))
        or len(report) != len(Usage._fields)
        or any(type(value) is not int or value < 0 for value in report)
    ):
        raise RemoteProtocolError("a malformed report")
    return Usage(*report)
