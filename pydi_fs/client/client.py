"""A connection to the cluster that outlives connections to nodes.

Called by the vfs and the command line. It keeps to one node, goes to the next when that one dies or
leaves, repeats what may be repeated, and says when nothing cached can be trusted any more.

What may be repeated: queries, opens, and commands under the same (client id, serial), which the
tree executes once. Blobs under construction belong to one session: their writer starts again.

Caches filled from here may be used while `lease_s` is positive. The node pushes what others change,
and waits for a silent mount only as long as it said; so what a program sees is never older than
what anybody has been told, also when this process was stopped for a while or is cut off.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydi_fs.client.connection import Arrived, Connection, Failed, open_connection
from pydi_fs.client.endpoints import Endpoint
from pydi_node import portable
from pydi_node.commands import Command, PutFile, Undelegate
from pydi_node.errors import (
    EXIT_UNREACHABLE,
    BusyError,
    DeadlineError,
    DisconnectedError,
    FileError,
    NotLeaderError,
    PydiError,
    UnavailableError,
    UserError,
    errno_of,
)
from pydi_node.ids import ClientId, Ino, Serial
from pydi_node.records import NodeInfo, Result
from pydi_node.wire.events import Hello
from pydi_node.wire.messages import (
    BlobAbort,
    BlobAdopt,
    BlobCreate,
    BlobGrown,
    BlobSeal,
    BlobTruncate,
    BlobWrite,
    DropAll,
    Execute,
    ExecutePut,
    Lease,
    Nodes,
    Push,
    Request,
    Role,
    Subscribe,
)
from pydi_node.wire.session import PROTOCOL_VERSIONS

log = logging.getLogger("pydi.client")

# Of a client's last results, of which the tree keeps 1024 (tree.SESSION_WINDOW): commands that are
# sent at the same time may come before.
SERIALS_REMEMBERED = 512
# For the same reason no command begins while one that is older by so many waits for its answer, as
# it may for seconds behind a directory that another mount holds. What gives one back does begin.
SERIALS_UNANSWERED_MAX = 768
DEADLINE_DEFAULT_S = 10.0  # several leader elections; shorter than a person's patience
RECONNECT_MIN_S = 0.05  # a restarting node is back within a second
RECONNECT_MAX_S = 1.0
HEAD_START_S = 0.25  # of one node before the next is asked too; a live one takes milliseconds
SEEK_S = 2.0  # four questions to the network; a node answers the first within milliseconds
LEASE_RETRY_S = 0.05  # a node that was not asked for a while needs a moment to get its own
LEASE_RENEW_S = 0.2  # of about 0.9 s that a node gives; a lost one costs a question or two
CLIENT_KEY = "client"  # in Hello.about
MIND_PERIOD_S = 5.0  # a new member is known, and a returned nearest node used, after this

# Goes on while the machine sleeps, where there is such a clock: a lease does not.

# They name a blob that only the node of the present connection knows.
_BOUND_TO_SESSION = (
    BlobCreate, BlobWrite, BlobAdopt, BlobGrown, BlobTruncate, BlobSeal, BlobAbort,
)  # fmt: skip

EndpointOf = Callable[[str, int], Endpoint]  # host, port of a member of the cluster
# seconds to look -> hosts and ports where nodes say that they are, and a sentence for none
Seek = Callable[[float], Awaitable[tuple[list[tuple[str, int]], str]]]
# (inodes, names) -> done when nobody here uses them any more; None: at once
Touch = Callable[[tuple[Ino, ...], tuple[tuple[Ino, bytes], ...]], asyncio.Future[None] | None]


class Client:
    """One client session: requests in, answers out, whichever node is up.

    endpoints    nodes to begin with; the first one is the nearest, and preferred.
    endpoint_of  how to reach the cluster's other members when those fail; None: never.
    seek      finds nodes when none that is known answers; None: there is no way to.
    role      what this is: a mount or a command.
    about     plain values that `pydi status` shows of a mount.
    deadline_s  how long a request may take in all, over every retry.
    identity  of the session that this one goes on with, and the last serial there; None: a new one.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        endpoint_of: EndpointOf | None = None,
        seek: Seek | None = None,
        role: Role = Role.CLIENT,
        deadline_s: float = DEADLINE_DEFAULT_S,
        about: dict[str, Any] | None = None,
        identity: tuple[ClientId, int] | None = None,
    ) -> None:
        assert endpoints or (seek and endpoint_of), "a client needs a way to some node"
        self.deadline_s = deadline_s
        self.epoch = 0  # grows with every connection: what belonged to an older one is gone
        self.on_touched: Touch = lambda inos, entries: None
        self.on_reset: Callable[[], asyncio.Future[None] | None] = lambda: None  # as `Touch`
        self.on_lease: Callable[[float], None] = lambda until_s: None  # it lasts until then
        # What a cache knows of the order of things: its moment when a request leaves, which is told
        # again before the answer is handed over. What was dropped in between must stay out.
        self.moment: Callable[[], int] = lambda: 0
        self.on_answer: Callable[[int], None] = lambda moment: None
        # What a request must wait for before it may leave; None: nothing.
        self.before: Callable[[Request], Awaitable[None] | None] = lambda request: None
        self._nearest = endpoints[0] if endpoints else None
        self._endpoint_of = endpoint_of
        self._seek = seek
        self._endpoints = list(endpoints)  # in the order in which they are tried
        self._members: set[tuple[str, int]] = set()  # addresses among the endpoints
        self._not_found = ""  # why the last search by multicast found nobody
        self._replacer: asyncio.Task[None] | None = None
        self._minder: asyncio.Task[None] | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._lease_until_s = 0.0
        self.client_id, self._serial = identity or (ClientId(secrets.randbits(62) + 1), 0)
        # The node must know whose questions these are: what is delegated to a client, it may see.
        about = {**(about or {}), CLIENT_KEY: self.client_id}
        self._hello = Hello(PROTOCOL_VERSIONS, role, "", 0, socket.gethostname()[:255], about)
        # The serial of a command, and whether it may have been sent under it before.
        self.number: Callable[[Command], tuple[Serial, bool]] = self._number
        self._unanswered: dict[Serial, int] = {}  # commands, and how often each was asked
        self._answered = asyncio.Event()  # one of them is, since somebody cleared it
        self.is_repeat = False  # what arrives now may be the first answer to an older question
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._subscribed = False
        self._next_sequence = 1
        self._closed = False

    async def connect(self) -> None:
        """Be connected to some node. UserError (exit code 3) when none can be reached."""
        try:
            await self._open(once=True)
        except UnavailableError as exc:
            raise UserError(f"the cluster can't be reached: {exc}", EXIT_UNREACHABLE) from exc

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    async def close(self) -> None:
        """End the session. Nothing is waiting any more."""
        self._closed = True
        for task in (self._connecting, self._replacer, self._minder, self._renewer):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._connection is not None:
            self._connection.leave()
            await asyncio.sleep(0)  # lets the goodbye go out
            self._connection.close()
        await asyncio.sleep(0)  # lets the transport finish closing before the loop may end

    async def subscribe(self, connected: bool = True) -> None:
        """From now on `on_touched` hears what others change, `on_reset` when that is unsure.

        connected  False: it need not be connected yet, and begins to try.
        """
        self._subscribed = True
        if connected:
            await self.call(Subscribe())
        self._minder = asyncio.get_running_loop().create_task(self._mind())
        self._renewer = asyncio.get_running_loop().create_task(self._renew())

    def lease_s(self) -> float:
        """How long what caches hold may be used without asking; 0: not at all."""
        left_s = self._lease_until_s - portable.uptime_s()
        return left_s if left_s > 0 else 0.0  # `max` takes half the time of all of this

    async def call(
        self,
        request: Request,
        payload: bytes | bytearray | memoryview = b"",
        *,
        arrived: Arrived | None = None,
        failed: Failed | None = None,
        sent: Callable[[], None] | None = None,
        once: bool = False,
        deadline_s: float | None = None,
    ) -> Any:
        """The answer to ``request``, or what ``arrived`` made of it.

        arrived  called with the answer at the moment it arrives, in order with invalidations: the
                 place to fill caches. ``failed`` likewise with the node's error.
        sent     called when it has left, before anything that is sent later; again if it is sent
                 again.
        once     only on the connection that there is: an answer by another one is of no use.

        FileError          the operation's outcome.
        DisconnectedError  blobs under construction: start again on another node. Or ``once``.
        DeadlineError      no answer in time. Other PydiErrors: see errors.py.
        """
        held_up = self.before(request)
        if held_up is not None:
            await held_up
        if once and not self.is_connected:
            raise DisconnectedError("no node is connected")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.deadline_s if deadline_s is None else deadline_s)
        pause_s = RECONNECT_MIN_S
        while True:
            connection = await self._live_connection(deadline)
            try:
                return await connection.request(
                    request,
                    payload,
                    max(deadline - loop.time(), 0.001),
                    self._in_order(arrived),
                    self._in_order(failed),
                    sent,
                )
            except DisconnectedError:
                if once or isinstance(request, _BOUND_TO_SESSION):
                    raise
            except (BusyError, NotLeaderError) as exc:  # nothing was accepted
                if loop.time() + pause_s >= deadline:
                    raise
                log.debug("%s: %s", connection.endpoint, exc)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RECONNECT_MAX_S)

    def _in_order(self, hook: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        if hook is None:
            return None
        moment = self.moment()

        def handed_over(value: Any) -> Any:
            self.on_answer(moment)
            return hook(value)

        return handed_over

    def new_serial(self) -> Serial:
        """One that no command had before."""
        self._serial += 1
        return Serial(self._serial)

    def remembers(self, serial: Serial) -> bool:
        """Would the cluster still know the result of that command?"""
        return self._serial - serial < SERIALS_REMEMBERED

    def _number(self, command: Command) -> tuple[Serial, bool]:
        return self.new_serial(), False

    async def execute(
        self,
        command: Command,
        payload: bytes | None = None,
        *,
        arrived: Callable[[Result], Any] | None = None,
        serial: Serial | None = None,
        sent: Callable[[], None] | None = None,
        once: bool = False,
    ) -> Any:
        """Run one command, exactly once however often connections break. Its value, decoded.

        payload  small content that becomes the blob PUT_BLOB of a Commit, in the same round trip.
        arrived  called at arrival; what it returns is the value.
        serial   of `new_serial`, or of an earlier attempt; None: what `number` says.
        sent, once  as in `call`.

        FileError  the command's outcome; nothing changed.
        """
        again = False
        if serial is None:
            while self._is_far_ahead(command):
                self._answered.clear()
                await self._answered.wait()
            serial, again = self.number(command)
        request: Execute | ExecutePut
        if payload is None:
            request = Execute(self.client_id, serial, command)
        else:
            request = ExecutePut(self.client_id, serial, command)

        def outcome(result: Result) -> Any:
            if result.errno:
                raise FileError(result.errno)
            if arrived is None:
                return result.value
            self.is_repeat = again
            try:
                return arrived(result)
            finally:
                self.is_repeat = False
                if again:
                    # Others may have changed it since: nobody shall believe what it says.
                    shown = tuple(attr.ino for attr in result.directories)
                    self.on_touched((*result.touched.inos, *shown), result.touched.entries)

        def failed(error: PydiError) -> None:
            # It may take effect later, or did already: what it touches is not known.
            if isinstance(error, UnavailableError) or errno_of(error) == errno.EINTR:
                self.on_reset()

        unanswered = self._unanswered
        unanswered[serial] = unanswered.get(serial, 0) + 1
        try:
            return await self.call(
                request, payload or b"", arrived=outcome, failed=failed, sent=sent, once=once
            )
        finally:
            unanswered[serial] -= 1
            if not unanswered[serial]:
                del unanswered[serial]
            self._answered.set()

    def _is_far_ahead(self, command: Command) -> bool:
        """Whether the cluster could forget what an older command is about while it does this."""
        unanswered = self._unanswered
        # Cheap first: with none so old, none needs to be looked for.
        if not unanswered or self._serial - next(iter(unanswered)) < SERIALS_REMEMBERED:
            return False
        if isinstance(command, Undelegate) or (
            isinstance(command, PutFile) and command.ino is not None
        ):
            return False
        return self._serial - min(unanswered) >= SERIALS_UNANSWERED_MAX

    # --- connections ---------------------------------------------------------------------------

    async def _live_connection(self, deadline: float) -> Connection:
        connection = self._connection
        if connection is not None and not connection.closed and not connection.leaving:
            return connection
        try:
            async with asyncio.timeout_at(deadline):
                return await self._open(once=False)
        except TimeoutError as exc:
            raise DeadlineError("no node could be reached in time") from exc

    async def _open(self, once: bool) -> Connection:
        """The one attempt to connect that all requests wait for."""
        if self._closed:
            raise DisconnectedError("the client is closed")
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect(once))
        return await asyncio.shield(self._connecting)

    async def _connect(self, once: bool) -> Connection:
        pause_s = RECONNECT_MIN_S
        while True:
            try:
                return await self._connect_to_any()
            except (UnavailableError, UserError) as exc:
                failure: PydiError = exc
            if await self._find_more():
                try:
                    return await self._connect_to_any()
                except (UnavailableError, UserError) as exc:
                    failure = exc
            elif not self._endpoints:
                failure = DisconnectedError(self._not_found)
            if once:
                raise failure
            log.debug("no node reachable: %s", failure)
            # Jitter: many mounts that lost one node must not come to the next in step.
            await asyncio.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(pause_s * 2, RECONNECT_MAX_S)

    async def _find_more(self) -> bool:
        """Whether nodes were found by multicast that nobody knew of."""
        if self._seek is None:
            return False
        addresses, self._not_found = await self._seek(SEEK_S)
        return self._add(addresses)

    async def _connect_to_any(self) -> Connection:
        return await self._race(self._endpoints, self._use)

    async def _race(
        self, endpoints: Sequence[Endpoint], use: Callable[[Connection], Awaitable[Connection]]
    ) -> Connection:
        """The first to say welcome and to be of use. Each is asked a little after the one before,
        or at once when that one failed: a node that hangs takes connections and says nothing, and
        one node may be there under several endpoints."""
        loop = asyncio.get_running_loop()
        unasked = list(endpoints)
        attempts: dict[asyncio.Task[Connection], Endpoint] = {}
        failure: PydiError | None = None
        try:
            while unasked or attempts:
                if unasked:
                    # Whoever is asked goes to the end: next time the others come first ...
                    endpoint = unasked.pop(0)
                    self._endpoints.remove(endpoint)
                    self._endpoints.append(endpoint)
                    attempts[loop.create_task(self._open_to(endpoint))] = endpoint
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=HEAD_START_S if unasked else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in done:
                    endpoint = attempts.pop(attempt)
                    try:
                        connection = await use(attempt.result())
                    except (UnavailableError, UserError) as exc:
                        failure = exc
                    else:
                        # ... but the one that worked comes before them.
                        self._endpoints.remove(endpoint)
                        self._endpoints.insert(0, endpoint)
                        return connection
        finally:
            for attempt in attempts:
                attempt.cancel()
            for late in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(late, Connection):
                    late.close()
        raise failure or DisconnectedError("no node is known")

    async def _replace(self, silent: Connection) -> None:
        """Be connected to another node, if one welcomes while this one is still silent."""

        async def use(connection: Connection) -> Connection:
            if silent is self._connection and silent.is_silent:
                log.warning("%s is silent, another node is asked now", silent.endpoint)
                return await self._use(connection)
            connection.close()
            raise DisconnectedError("nothing needs to be replaced")

        others = [endpoint for endpoint in self._endpoints if endpoint is not silent.endpoint]
        try:
            await self._race(others, use)
        except (UnavailableError, UserError) as exc:
            log.debug("%s stays: %s", silent.endpoint, exc)

    async def _open_to(self, endpoint: Endpoint) -> Connection:
        return await open_connection(
            endpoint, self._hello, self._on_push, self._on_suspect, self._on_doubt, self._on_lost
        )

    async def _use(self, connection: Connection) -> Connection:
        """From now on requests go there. DisconnectedError when it is gone already."""
        if connection.closed:
            raise DisconnectedError(f"{connection.endpoint} went away")
        left = self._connection
        if left is not None:
            # Before anything is answered here: nothing of the old stream may enter a cache any
            # more. What is under way there is asked again, under the same serials.
            left.close()
            self.on_reset()
        self._next_sequence = 1
        self._connection = connection
        self._lease_until_s = 0.0
        self.epoch += 1
        welcome = connection.welcome.result()
        log.info("connected to node=%d (%s)", welcome.number, connection.endpoint)
        if self._subscribed:
            # Before any other request: no answer may enter a cache that nobody would invalidate.
            await connection.request(Subscribe(), b"", self.deadline_s, None, None)
        return connection

    async def _renew(self) -> None:
        """While mounted: have a lease."""
        while True:
            connection = self._connection
            if connection is not None and not connection.closed:
                try:
                    await self._renew_once(connection)
                except PydiError as exc:
                    log.debug("no lease: %s", exc)
            await asyncio.sleep(LEASE_RENEW_S if self.lease_s() else LEASE_RETRY_S)

    async def _renew_once(self, connection: Connection) -> None:
        asked_s = portable.uptime_s()

        def arrived(valid_ms: int) -> None:
            # In the stream: whatever was pushed before has been dropped by now.
            if connection is self._connection:
                self._lease_until_s = max(self._lease_until_s, asked_s + valid_ms / 1000)
                self.on_lease(self._lease_until_s)

        await connection.request(Lease(), b"", self.deadline_s, arrived, None)

    async def _mind(self) -> None:
        """While mounted: know where the others are, and go back to the nearest node when it is."""
        while True:
            try:
                if self._endpoint_of is not None:
                    self._learn(await self.call(Nodes()))
                await self._return_to_nearest()
            except PydiError as exc:
                log.debug("looking at the members: %s", exc)
            await asyncio.sleep(MIND_PERIOD_S)

    def _learn(self, members: Sequence[NodeInfo]) -> None:
        addresses = []
        for member in members:
            host, _, port = member.address.rpartition(":")
            address = (host.strip("[]"), int(port) if port.isdigit() else 0)
            # A witness takes no content, and reads of it go a way longer.
            if member.state == "forgotten" or member.witness or not all(address):
                continue
            addresses.append(address)
        self._add(addresses)

    def _add(self, addresses: Sequence[tuple[str, int]]) -> bool:
        """Whether one of them is new. They are tried after those that are known."""
        assert self._endpoint_of is not None
        new = [address for address in dict.fromkeys(addresses) if address not in self._members]
        self._members.update(new)
        self._endpoints += [self._endpoint_of(*address) for address in new]
        return bool(new)

    async def _return_to_nearest(self) -> None:
        connection = self._connection
        nearest = self._nearest
        if connection is None or nearest is None or not nearest.local:
            return
        if connection.endpoint is nearest:
            return
        try:
            await self._use(await self._open_to(nearest))
        except (UnavailableError, UserError):
            pass  # it is still away

    def _on_suspect(self, connection: Connection) -> None:
        if connection is self._connection and (self._replacer is None or self._replacer.done()):
            self._replacer = asyncio.get_running_loop().create_task(self._replace(connection))

    def _on_doubt(self, connection: Connection) -> None:
        """What the node pushes may not arrive: nothing cached can be trusted."""
        if connection is self._connection:
            log.debug("%s is silent", connection.endpoint)
            self.on_reset()

    def _on_lost(self, connection: Connection) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._lease_until_s = 0.0
        if self._closed:
            return
        log.info("lost %s", connection.endpoint)
        self.on_reset()
        if self._subscribed and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.get_running_loop().create_task(self._connect(once=False))

    def _on_push(self, connection: Connection, push: Push) -> None:
        if connection is not self._connection:
            return
        expected, self._next_sequence = self._next_sequence, push.sequence + 1
        told: asyncio.Future[None] | None = None
        if isinstance(push, DropAll) or push.sequence != expected:
            told = self.on_reset()
        else:
            told = self.on_touched(push.touched.inos, push.touched.entries)
        connection.acknowledge_when(told, push.sequence)
