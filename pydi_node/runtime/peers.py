"""Connections to the other nodes: what this node says to them goes out here.

Each node opens one connection to every other member and sends its own messages on it; what the
others say arrives on theirs (server.py). Losing messages is allowed (Raft and forwarding send
again), waiting is not: a link that is down or clogged drops them. Requests to another node travel
on the same link and end with its error when it breaks.

Addresses come from the cluster's books (SetNode), from ``--peer``, and, newest of all, from the
hellos of nodes that connect to this one. What beacons say is tried when those don't work.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from pydi_node import portable
from pydi_node.commands import SetNode
from pydi_node.config import Address, parse_address
from pydi_node.consensus.types import Membership
from pydi_node.discovery import multicast
from pydi_node.discovery.group import WILDCARDS
from pydi_node.effects import FromPeer, Gone, PeerMessage, decode_peer_message, encode_peer_message
from pydi_node.errors import (
    BusyError,
    DeadlineError,
    DisconnectedError,
    FileError,
    LocalProtocolError,
    NotLeaderError,
    PydiError,
    RemoteProtocolError,
    UserError,
)
from pydi_node.ids import NODE_NUMBER_MAX, NodeNumber, counted
from pydi_node.runtime.driver import Driver
from pydi_node.runtime.histories import HISTORY_KEY, pack
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request, Service, Session
from pydi_node.runtime.streams import Way
from pydi_node.wire import messages, tls
from pydi_node.wire import session as wire
from pydi_node.wire.events import (
    AnswerReceived,
    ConnectionEnded,
    ErrorReceived,
    Event,
    GoodbyeReceived,
    Hello,
    PingReceived,
    PongReceived,
    Refusal,
    RefuseReceived,
    WelcomeReceived,
)
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Admin, Role
from pydi_node.wire.trust import (
    LEAF_RENEW_AFTER_S,
    SEED_BYTES,
    Credentials,
    Leaf,
    NodeToken,
    TrustError,
    credentials_of,
    make_leaf,
)

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 2.0
DEAD_AFTER_MS = 5000  # sent and not acknowledged by the other machine's kernel for so long
WRITE_MAX_BYTES = 16 << 20  # of one link; messages beyond it are dropped
CLOCK_SKEW_MAX_S = 120  # of a node that joins, against the leader's; NTP keeps it below 1
REGISTER_PERIOD_S = 1.0
RENEW_PERIOD_S = 0.5  # between attempts to put a link under the newest secret
# So many attempts, some 5 s, before a person is told: an address may have been another's before.
STRANGE_MAX = 6
OTHER_SECRET = (
    "If the cluster's secret was changed (pydi token rotate) while one of the two nodes was away,"
    " start that one with --token-file and a copy of DATA_DIR/token of another node"
)
FORGET_WAIT_S = 3.0  # for a running node to find out that it is forgotten: it looks each second


class LeftBehindError(UserError):
    """The cluster has gone on without this node for good: it stops."""


class StrangerError(UserError):
    """Whoever is served at an address is no node of this cluster, or can't prove it."""


class Link(asyncio.BufferedProtocol):
    """The connecting side of one session with a node."""

    def __init__(self, hello: Hello) -> None:
        self._wire = wire.Session.connecting(hello)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._sent_bytes = 0  # content of requests
        self.heard_s = self._loop.time()  # when anything came last
        self._pinged = False  # and no pong yet
        self._retired = False
        self.was_ended = False  # by the other side's machine
        self.generation = 0  # of the secret that it is under
        # Done when welcomed; its exception says why that didn't happen.
        self._welcomed: asyncio.Future[NodeNumber] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports only behave like one.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)
        transport.writelines(self._wire.send_hello())

    async def welcome(self) -> NodeNumber:
        """The number of the node that is there. PydiError, TimeoutError: nobody of use, and the
        connection is closed; a machine that dies just now never says that it did."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._welcomed
        except BaseException:
            self.close()
            raise

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wire.room()

    def buffer_updated(self, nbytes: int) -> None:
        self.heard_s = self._loop.time()
        try:
            self._wire.receive(nbytes)
            for event in self._wire.events():
                self._on_event(event)
        except RemoteProtocolError as exc:
            self._end(exc)

    def eof_received(self) -> bool | None:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # A time-out says nothing of the other program; and what this side ends has an end already.
        self.was_ended = not self.lost.done() and not isinstance(exc, TimeoutError)
        self._end(DisconnectedError(f"the connection ended: {exc or 'closed by the node'}"))

    def _on_event(self, event: Event) -> None:
        assert self._transport is not None
        match event:
            case AnswerReceived(request_id, request, value, payload):
                is_payload = messages.REQUEST_OF_CLASS[type(request)].answer_payload
                self._answers.pop(request_id).set_result(payload if is_payload else value)
                self._end_retired()
            case ErrorReceived(request_id, _, error):
                self._answers.pop(request_id).set_exception(error)
                self._end_retired()
            case WelcomeReceived(welcome):
                if not self._welcomed.done():
                    self._welcomed.set_result(NodeNumber(welcome.number))
            case RefuseReceived(Refusal.LEFT_BEHIND, sentence):
                self._end(LeftBehindError(sentence))
            case RefuseReceived(Refusal.STOPPING | Refusal.BUSY, sentence):
                self._end(DisconnectedError(sentence))
            case RefuseReceived(_, sentence):
                self._end(UserError(sentence))
            case PingReceived(token):
                self._transport.writelines(self._wire.send_pong(token))
            case PongReceived():
                self._pinged = False
            case GoodbyeReceived() | ConnectionEnded():
                self._end(DisconnectedError("the node is about to stop"))
            case _:
                raise RemoteProtocolError(f"unexpected {type(event).__name__}")

    @property
    def is_open(self) -> bool:
        return self._wire.state is wire.State.OPEN and not self.lost.done()

    def send(self, messages: Sequence[tuple[Any, ...]]) -> None:
        """Sent together, or dropped as far as the link is clogged."""
        assert self._transport is not None
        room = WRITE_MAX_BYTES - self._transport.get_write_buffer_size()
        frames: list[bytes | bytearray | memoryview] = []
        for message in messages:
            if room <= 0:
                break
            try:
                frame = self._wire.send_peer(message)
            except LocalProtocolError as exc:
                _log.warning("a message to another node was dropped: %s", exc)
                continue
            frames += frame
            room -= sum(map(len, frame))
        # One buffer is one TLS record and one system call, on both sides.
        self._transport.write(b"".join(frames))

    async def request(
        self, request: messages.Request, deadline_s: float, payload: bytes = b""
    ) -> Any:
        """The answer; the node's error; DisconnectedError, DeadlineError, BusyError."""
        request_id, answer = self.begin(request, deadline_s, payload)
        try:
            async with asyncio.timeout_at(deadline_s + 0.5):
                # Shielded: the one answer still comes after a cancel, and finds its place.
                return await asyncio.shield(answer)
        except TimeoutError as exc:
            raise DeadlineError("the node did not answer in time") from exc
        except asyncio.CancelledError:
            self.cancel(request_id)
            raise

    def begin(
        self, request: messages.Request, deadline_s: float, payload: bytes = b""
    ) -> tuple[int, asyncio.Future[Any]]:
        """Sends it, after all that was sent before; its id, and the future of its answer.

        DisconnectedError, DeadlineError, BusyError  nothing was sent.
        """
        if not self.is_open:
            raise DisconnectedError("not connected")
        assert self._transport is not None
        if self._wire.requests_outstanding >= self._wire.limits.requests_max:
            raise BusyError("too many requests to one node")
        left_ms = int((deadline_s - self._loop.time()) * 1000)
        if left_ms < 1:
            raise DeadlineError("the deadline has passed")
        request_id, buffers = self._wire.send_request(
            request, payload, deadline_ms=min(left_ms, wire.DEADLINE_MAX_MS)
        )
        answer: asyncio.Future[Any] = self._loop.create_future()
        answer.add_done_callback(_ignore)  # whoever still waits gets its error all the same
        self._answers[request_id] = answer
        self._sent_bytes += len(payload)
        self._transport.writelines(buffers)
        return request_id, answer

    def cancel(self, request_id: int) -> None:
        """Nobody waits for its answer any more."""
        if self.is_open:
            assert self._transport is not None
            self._transport.writelines(self._wire.send_cancel(request_id))

    @property
    def taken_bytes(self) -> int:
        """Content that the other side's machine has taken so far, or is about to."""
        transport = self._transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        held = transport.get_write_buffer_size() + (portable.unacknowledged(sock) if sock else 0)
        return self._sent_bytes - held

    def ping(self) -> None:
        """Has the other program say something, which ``heard_s`` tells of."""
        if self.is_open and not self._pinged:
            assert self._transport is not None
            self._pinged = True
            self._transport.writelines(self._wire.send_ping(1))

    @property
    def is_idle(self) -> bool:
        """No answer is waited for."""
        return not self._answers

    def retire(self) -> None:
        """Nothing new is sent here; the link ends with its last answer."""
        self._retired = True
        self._end_retired()

    def _end_retired(self) -> None:
        if self._retired and self.is_idle:
            self.close()

    def close(self) -> None:
        self._end(DisconnectedError("closed"))

    def _end(self, error: PydiError) -> None:
        if self.lost.done():
            return
        self.lost.set_result(None)
        if not self._welcomed.done():
            self._welcomed.set_exception(error)
            self._welcomed.exception()  # whoever waits gets it; nobody waiting is no trouble
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(DisconnectedError(str(error)))
                answer.exception()
        self._answers.clear()
        if self._transport is not None:
            self._transport.abort()


class Peers:
    """All links of this node, and what it knows of the others' whereabouts."""

    def __init__(
        self,
        node: NodeNumber,
        keyring: Keyring,
        seeds: Sequence[Address],
        witness: bool = False,
        histories: tuple[str, ...] = (),
    ) -> None:
        self._node = node
        self._witness = witness
        self.histories = histories
        self._keyring = keyring
        self._seeds = tuple(seeds)
        self._loop = asyncio.get_running_loop()
        self.lost_ns: dict[NodeNumber, int] = {}  # nodes that are away: when the link broke
        self._links: dict[NodeNumber, Link] = {}
        self._tasks: dict[NodeNumber | Address, asyncio.Task[None]] = {}
        self._members: frozenset[NodeNumber] = frozenset()
        self._heard: dict[NodeNumber, Address] = {}  # out of hellos and welcomes: newest
        self._hinted: dict[NodeNumber, tuple[Address, ...]] = {}  # out of beacons: unproved
        # Set when that node connects to this one.
        self._called: dict[NodeNumber, asyncio.Event] = {}
        self._joining: set[NodeNumber] = set()  # numbers given out and not yet in the books
        self._changed = asyncio.Event()
        self._told_strange = False  # once is enough: all others would say the same
        self._leaves = self._make_leaves()
        self._rotated: asyncio.Future[None] = self._loop.create_future()  # done at the next time
        self.driver: Driver  # set by node.py before anything runs
        self.address: Address  # where this node is served

    # --- for the driver ---------------------------------------------------------------------------

    def send(self, batch: Sequence[PeerMessage]) -> None:
        sorted_: dict[NodeNumber, list[PeerMessage]] = {}
        for message in batch:
            sorted_.setdefault(message.to, []).append(message)
        for number, messages_to in sorted_.items():
            link = self._links.get(number)
            if link is not None and link.is_open:
                link.send([encode_peer_message(message) for message in messages_to])

    def set_members(self, membership: Membership) -> None:
        self._members = frozenset(m.number for m in membership.members) - {self._node}
        self._changed.set()

    def on_broke(self, number: NodeNumber, error: RemoteProtocolError) -> None:
        _log.warning("node %d broke the protocol: %s", number, error)

    # --- for the server ---------------------------------------------------------------------------

    def receive(self, session: Session, message: tuple[Any, ...]) -> None:
        """A message that another node sent. RemoteProtocolError: malformed, or not its own."""
        decoded = decode_peer_message(message)
        if decoded.sender != session.node or decoded.to != self._node:
            raise RemoteProtocolError(
                f"node {session.node} sent a message from {decoded.sender} to {decoded.to}"
            )
        self.driver.submit(FromPeer(decoded))

    def on_left_behind(self, sentence: str) -> None:
        """A node of this cluster has proof of it: whatever this one still decided would be lost."""
        self.driver.fail(LeftBehindError(sentence))

    def on_hello(self, number: NodeNumber, about: dict[str, Any], host: str | None) -> None:
        """Another node connected: where it says that it serves is where to find it."""
        try:
            address = parse_address(str(about.get("address", "")))
        except ValueError:
            return
        if address.host in WILDCARDS and host is not None:
            address = Address(host, address.port)
        if self._heard.get(number) != address:
            self._heard[number] = address
            self._changed.set()
        if (called := self._called.get(number)) is not None:
            called.set()

    def on_beacon(self, number: NodeNumber, addresses: Sequence[Address]) -> None:
        """Somebody with a token says where another node is. Tried when what is known fails."""
        if number in self._members and self._hinted.get(number) != (hint := tuple(addresses)):
            self._hinted[number] = hint

    # --- requests ---------------------------------------------------------------------------------

    async def request(
        self, number: NodeNumber, request: messages.Request, deadline_s: float
    ) -> Any:
        """Another node's answer; its error; UnavailableError when it can't be asked."""
        link = self._links.get(number)
        if link is None:
            raise DisconnectedError(f"node {number} is not connected")
        return await link.request(request, deadline_s)

    async def open_link(self, number: NodeNumber, *, newest: bool = False) -> Link:
        """One more connection to that node, welcomed; the caller closes it.

        newest  under the newest secret or not at all.
        OSError, PydiError, TimeoutError  it can't be reached now.
        """
        address = self.address_of(number)
        if address is None:
            raise DisconnectedError(f"nobody knows where node {number} is")
        link = await self._connect(address, newest=newest)
        found = await link.welcome()
        if found != number:
            link.close()
            raise DisconnectedError(f"node {found} is where node {number} was")
        return link

    def is_connected(self, number: NodeNumber) -> bool:
        link = self._links.get(number)
        return link is not None and link.is_open

    @property
    def members(self) -> frozenset[NodeNumber]:
        """All members but this node."""
        return self._members

    def address_of(self, number: NodeNumber) -> Address | None:
        """Where the node is, or this one, as far as it is known."""
        return next(iter(self._addresses_of(number)), None)

    def _addresses_of(self, number: NodeNumber) -> list[Address]:
        """Where a node may be, the most certain first."""
        if number == self._node:
            return [self._advertised()]
        found = [self._heard[number]] if number in self._heard else []
        for info in self.driver.replica.tree.nodes():
            if info.number == number and info.address:
                try:
                    found.append(parse_address(info.address))
                except ValueError:
                    pass  # an older node's: the other places are as good
        return list(dict.fromkeys((*found, *self._hinted.get(number, ()))))

    # --- life -------------------------------------------------------------------------------------

    def server_context(self) -> ssl.SSLContext:
        return tls.server_context(*[leaf for _, leaf in self._leaves])

    def way_of(self, link: Link, number: NodeNumber) -> Way:
        """How one more connection gets to where ``link`` goes. DisconnectedError: not any more."""
        address = self.address_of(number)
        for credentials, leaf in self._leaves:
            if address is not None and credentials.generation == link.generation:
                return Way(address, credentials, leaf)
        raise DisconnectedError(f"nobody knows how to get to node {number} now")

    def renew_certificates(self, server: Server) -> None:
        """Fresh ones, for new connections in both directions. Links under an older secret than the
        newest are replaced as soon as the other side has that, too."""
        self._leaves = self._make_leaves()
        server.context = self.server_context()
        self._rotated.set_result(None)
        self._rotated = self._loop.create_future()

    async def renew_daily(self, server: Server) -> None:
        while True:
            await asyncio.sleep(LEAF_RENEW_AFTER_S)
            self.renew_certificates(server)

    def is_current(self, link: Link) -> bool:
        """Whether it is under the newest secret."""
        return link.generation == self._keyring.newest.generation

    def _make_leaves(self) -> tuple[tuple[Credentials, Leaf], ...]:
        now_s = int(time.time())
        return tuple(
            (credentials, make_leaf(credentials, self._node, now_s, os.urandom(SEED_BYTES)))
            for credentials in self._keyring.credentials
        )

    async def run(self) -> None:
        """Keeps a link to every member, and this node's address in the books."""
        self.set_members(self.driver.replica.raft.membership)
        while True:
            self._changed.clear()
            unknown = {n for n in self._members if self.address_of(n) is None}
            wanted: set[NodeNumber | Address] = set(self._members)
            if not self._members:
                # New here: the log that names the members comes from one of those who called.
                wanted |= self._heard.keys()
            if unknown or not wanted:
                wanted |= set(self._seeds)
            for key in wanted - self._tasks.keys():
                self._tasks[key] = self._loop.create_task(self._keep_link(key))
            for key in self._tasks.keys() - wanted:
                self._tasks.pop(key).cancel()
            for key, task in list(self._tasks.items()):
                if task.done():
                    task.result()  # ends only by what nobody foresaw
                    del self._tasks[key]
            await self._register()
            try:
                async with asyncio.timeout(REGISTER_PERIOD_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the period passed: look again

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in list(self._links.values()):
            link.close()

    async def _keep_link(self, key: NodeNumber | Address) -> None:
        """Connects to a member, or to a seed whose number isn't known, again and again."""
        delay_s = RECONNECT_MIN_S
        strange = 0  # attempts in a row that met somebody who could not prove to be a node of ours
        called = asyncio.Event()
        if not isinstance(key, Address):
            self._called[key] = called
        attempt = -1
        while True:
            attempt += 1
            called.clear()
            places = [key] if isinstance(key, Address) else self._addresses_of(key)
            if places:
                address = places[attempt % len(places)]
                try:
                    link = await self._connect(address)
                    number = await link.welcome()
                except LeftBehindError as exc:
                    self.on_left_behind(f"{address}: {exc}")
                except (OSError, PydiError) as exc:
                    _log.debug("no connection to %s: %s", address, exc)
                    strange = strange + 1 if isinstance(exc, StrangerError) else 0
                    if strange == STRANGE_MAX and not self._told_strange:
                        self._told_strange = True
                        _log.warning("%s. %s", exc, OTHER_SECRET)
                else:
                    strange = 0
                    delay_s = RECONNECT_MIN_S
                    if number == key:
                        self._heard[number] = address  # whatever it was taken for before
                    else:
                        self._heard.setdefault(number, address)
                    if isinstance(key, Address):
                        link.close()
                        self._changed.set()
                        await asyncio.sleep(RECONNECT_MAX_S)
                        continue
                    if number == key:
                        await self._use(number, link)
                    else:
                        # Another node took this address; the right one will say where it is.
                        link.close()
                        self._heard.pop(key, None)
            try:
                async with asyncio.timeout(delay_s):
                    await called.wait()
            except TimeoutError:
                delay_s = min(delay_s * 2, RECONNECT_MAX_S)
            else:
                # It is back, and has just said where: what it wants to hear can't wait for a turn.
                attempt, delay_s = -1, RECONNECT_MIN_S

    async def _use(self, number: NodeNumber, link: Link) -> None:
        self._links[number] = link
        self.lost_ns.pop(number, None)
        _log.info("connected to node %d at %s", number, self.address_of(number))
        try:
            while not link.lost.done():
                # In an overlap, the other side has the new secret a moment sooner or later.
                period_s = None if self.is_current(link) else RENEW_PERIOD_S
                await asyncio.wait(
                    [link.lost, self._rotated],
                    timeout=period_s, return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                if link.lost.done() or self.is_current(link):
                    continue
                try:
                    fresh = await self.open_link(number, newest=True)
                except (OSError, PydiError, TimeoutError) as exc:
                    _log.debug("no new connection to node %d yet: %s", number, exc)
                    continue
                link.retire()
                link = self._links[number] = fresh
            _log.info("connection to node %d lost", number)
            if self._links.get(number) is link and link.was_ended:
                self.driver.submit(Gone(number))
        finally:
            link.close()
            if self._links.get(number) is link:
                del self._links[number]
                self.lost_ns[number] = time.time_ns()

    async def _connect(self, address: Address, *, newest: bool = False) -> Link:
        """A connection under the newest secret that the other side has, too; StrangerError."""
        hello = Hello(
            wire.PROTOCOL_VERSIONS, Role.NODE, self._keyring.cluster, self._node,
            socket.gethostname(),
            {"address": str(self.address), HISTORY_KEY: pack(self.histories)},
        )  # fmt: skip
        first: StrangerError | None = None
        for credentials, leaf in self._leaves[: 1 if newest else None]:
            try:
                return await connect_to(address, hello, tls.client_context(leaf), credentials)
            except StrangerError as exc:
                first = first or exc
        assert first is not None
        raise first

    async def _register(self) -> None:
        """The books say where and what this node is, once a leader takes the entry."""
        replica = self.driver.replica
        if replica.raft.leader is None or replica.raft.membership.member(self._node) is None:
            return
        address = str(self._advertised())
        for info in replica.tree.nodes():
            if info.number == self._node:
                if info.state == "forgotten":
                    self.on_left_behind("this node was forgotten (pydi forget)")
                    return
                if (info.address, info.witness) == (address, self._witness):
                    return
                command = SetNode(self._node, address, info.state, self._witness)
                break
        else:
            command = SetNode(self._node, address, "up", self._witness)
        try:
            await self.housekeep(command, self._loop.time() + 5.0)
        except PydiError as exc:
            _log.debug("address not yet registered: %s", exc)

    housekeep: Callable[..., Any]  # Service.housekeep, set by ``admin``

    def _advertised(self) -> Address:
        """The address for others: a wildcard is replaced by the one this machine is reached by."""
        if self.address.host not in WILDCARDS:
            return self.address
        reached = [
            link._transport.get_extra_info("sockname")[0]
            for link in self._links.values()
            if link.is_open and link._transport is not None
        ]
        return Address(multicast.address_for_others(reached), self.address.port)

    # --- joining ----------------------------------------------------------------------------------

    def admin(self, service: Service) -> dict[str, Callable[[Request, dict[str, Any]], Any]]:
        """Verbs about nodes."""
        self.housekeep = service.housekeep

        async def join(request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
            match arguments.get("number"):
                case None:
                    wanted = None
                case int() as number if 1 <= number <= NODE_NUMBER_MAX:
                    wanted = NodeNumber(number)
                case _:
                    raise UserError("join: not a node number")
            raft = self.driver.replica.raft
            if not self.driver.replica.is_leader:
                if raft.leader is None:
                    raise NotLeaderError(None)
                answer: dict[str, Any] = await self.request(
                    raft.leader, Admin("join", arguments), request.deadline_s
                )
                return answer
            witness = arguments.get("witness") is True
            _require_same_time(arguments.get("time_ms"), self._node)
            number = await self._add(service, wanted, witness, request.deadline_s)
            return {"number": number, HISTORY_KEY: pack(self.histories)}

        async def forget(request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
            if request.session.role is Role.MOUNT:
                raise FileError(errno.EPERM, "a mount's token does not forget nodes")
            number, force = arguments.get("number"), arguments.get("force") is True
            if type(number) is not int or not 1 <= number <= NODE_NUMBER_MAX:
                raise UserError("forget takes the number of a node")
            raft = self.driver.replica.raft
            if not self.driver.replica.is_leader:
                if raft.leader is None:
                    raise NotLeaderError(None)
                answer: dict[str, Any] = await self.request(
                    raft.leader, Admin("forget", arguments), request.deadline_s
                )
                return answer
            await self._forget(service, NodeNumber(number), force, request.deadline_s)
            return {"number": number}

        return {"join": join, "forget": forget}

    async def _add(
        self, service: Service, wanted: NodeNumber | None, witness: bool, deadline_s: float
    ) -> NodeNumber:
        if not await self.driver.wait_current(deadline_s):
            raise NotLeaderError(None)
        replica = self.driver.replica
        taken = {info.number for info in replica.tree.nodes()} | self._joining
        taken |= {m.number for m in replica.raft.membership.members}
        if wanted in taken:
            raise UserError(f"node number {wanted} is in use: choose another --number or none")
        number = wanted or NodeNumber(max(taken) + 1)
        self._joining.add(number)
        try:
            await service.housekeep(SetNode(number, "", "up", witness), deadline_s)
            await self.driver.add_member(number, deadline_s)
        finally:
            self._joining.discard(number)
        _log.info("node %d was added", number)
        return number

    async def _forget(
        self, service: Service, number: NodeNumber, force: bool, deadline_s: float
    ) -> None:
        """The node is no member any more, and refused when it comes back. UserError."""
        if not await self.driver.wait_current(deadline_s):
            raise NotLeaderError(None)
        tree = self.driver.replica.tree
        books = {info.number: info for info in tree.nodes()}
        membership = self.driver.replica.raft.membership
        info = books.get(number)
        if info is None or (info.state == "forgotten" and membership.member(number) is None):
            raise UserError(f"node {number} is no member of this cluster")
        if number == self._node:
            raise UserError(f"node {number} leads the cluster: stop it, then forget it")
        if membership.voters == (number,):
            raise UserError(f"node {number} is the last voter")
        if self.is_connected(number) and not force:
            raise UserError(f"node {number} is running: stop it first, or forget it with --force")
        alone = sum(total.blobs for total in tree.blob_totals() if total.holders == (number,))
        if alone and not force:
            raise UserError(
                f"node {number} has the only copy of {counted(alone, 'blob')}: start it until all"
                " is copied, or give them up with --force"
            )
        # First the books: a running node finds itself there and stops, which it would not hear of
        # as no member. A forget that fails behind this is finished by another one.
        command = SetNode(number, info.address, "forgotten", info.witness)
        await service.housekeep(command, deadline_s)
        if self.is_connected(number):
            await asyncio.wait([self._links[number].lost], timeout=FORGET_WAIT_S)
        if self.driver.replica.raft.membership.member(number) is not None:
            await self.driver.remove_member(number, deadline_s)
        _log.info("node %d was forgotten", number)


async def who_answers(address: Address, token: NodeToken) -> NodeNumber | None:
    """The number of the node of this cluster that is served there; None when none is."""
    credentials = credentials_of(token)
    leaf = make_leaf(credentials, 0, int(time.time()), os.urandom(SEED_BYTES))
    hello = Hello(wire.PROTOCOL_VERSIONS, Role.CLIENT, token.cluster, 0, socket.gethostname())
    try:
        link = await connect_to(address, hello, tls.client_context(leaf), credentials)
        number = await link.welcome()
        link.close()
        return number
    except (OSError, PydiError, TimeoutError):
        return None


async def connect_to(
    address: Address, hello: Hello, context: ssl.SSLContext, credentials: Credentials
) -> Link:
    """A connection to a node that has proved to be one; its hello is sent.

    OSError  nobody there. StrangerError  it isn't of this cluster.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, protocol = await loop.create_connection(
                lambda: Link(hello), address.host, address.port, ssl=context,
                server_hostname=credentials.server_name,
            )  # fmt: skip
    except ssl.SSLCertVerificationError as exc:
        what = str(exc.verify_message)
        if "expired" in what or "not yet valid" in what:
            raise StrangerError(f"{address}: {what}: compare the clocks of both machines") from exc
        raise StrangerError(
            f"the node at {address} does not belong to the cluster of this token ({what})"
        ) from exc
    except ssl.SSLError as exc:
        raise StrangerError(f"{address} does not belong to this cluster: {exc.reason}") from exc
    try:
        identity = tls.identity_of(
            transport.get_extra_info("ssl_object"), credentials, int(time.time())
        )
        if identity.role is not Role.NODE:
            raise TrustError("it is a mount, not a node")
    except TrustError as exc:
        protocol.close()
        raise StrangerError(f"{address}: {exc}") from exc
    protocol.generation = credentials.generation
    return protocol


def _require_same_time(time_ms: object, node: NodeNumber) -> None:
    """UserError when the clock of a node that joins is far off; an older one does not say it."""
    if type(time_ms) is not int:
        return
    ahead_s = time_ms / 1000 - time.time()
    if abs(ahead_s) > CLOCK_SKEW_MAX_S:
        which = "ahead of" if ahead_s > 0 else "behind"
        raise UserError(
            f"the clock of the machine that joins is {abs(ahead_s):.0f} s {which} that of node"
            f" {node}: set it (a time service such as chrony keeps it right)"
        )


def _ignore(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
