"""One running node: puts the parts together, serves, and stops cleanly.

Called by cli.py. The order of a start is the order of what may go wrong for a person: folder and
lock, identity, log and tree, sockets; only then is anything served. Whatever fails later in any
task ends the node with a line in the log (fail-stop): a node that does half of its work is worse
than none. A killed node has nothing to clean up; the next start finds all that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import importlib.util
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pydi_node import __version__, portable
from pydi_node.blobs.store import BlobStore
from pydi_node.config import Address, NodeConfig, parse_address
from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import Config, Membership, SnapshotMeta
from pydi_node.effects import Now
from pydi_node.errors import EXIT_FAILED, EXIT_OK, CorruptionError, PydiError, UserError
from pydi_node.ids import NodeNumber, TimeNs, counted
from pydi_node.records import HOLE
from pydi_node.replica import Replica
from pydi_node.replica_config import ReplicaConfig
from pydi_node.runtime.admission import Admission
from pydi_node.runtime.compacting import Compacting
from pydi_node.runtime.datadir import DataDir, Identity
from pydi_node.runtime.descriptors import DescriptorServer
from pydi_node.runtime.discovery import Discovery
from pydi_node.runtime.disklog import DiskLog, LoadedState
from pydi_node.runtime.draining import Draining
from pydi_node.runtime.driver import Driver
from pydi_node.runtime.housekeeping import Housekeeping
from pydi_node.runtime.joining import join_cluster, require_nothing_held
from pydi_node.runtime.locking import Locking
from pydi_node.runtime.logs import LogContext, configure_logging
from pydi_node.runtime.ownstore import OwnStore
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.repairing import Repairing
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.rotation import Rotation
from pydi_node.runtime.scrubbing import Scrubbing
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Service
from pydi_node.runtime.status import Status
from pydi_node.runtime.streams import Streams
from pydi_node.runtime.tokens import Tokens
from pydi_node.runtime.transfers import Transfers
from pydi_node.runtime.treefiles import TreeFiles
from pydi_node.runtime.whereabouts import Whereabouts
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.trust import (
    CLUSTER_ID_BYTES,
    SECRET_BYTES,
    NodeToken,
    TokenError,
    parse_node_token,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

STOP_MAX_S = 5.0  # the promise of DESIGN section 9; the next three share it
STOP_ANSWER_S = 1.0  # for requests under way
STOP_LEAVE_S = 2.5  # for the others to take over
FIRST_LEADER_S = 1.0  # how long a start waits for a leader before it serves anyway
LOW_WATER_BYTES = 32 << 20  # below this only what makes room may enter the log ...
LOW_WATER_PERCENT = 1  # ... or below this part of a small disk
COMMITTED_BYTES_MAX = 256 * 1024  # some 2000 commands: about 100 ms of applying in one piece


# Goes on while the machine sleeps, where there is such a clock.
_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The loop's monotonic seconds, the machine's wall clock, and its uptime."""

    def __init__(self) -> None:
        self._monotonic = asyncio.get_running_loop().time

    def now(self) -> Now:
        return Now(self._monotonic(), TimeNs(time.time_ns()), time.clock_gettime(_UPTIME))


def run_node(config: NodeConfig) -> int:
    """Runs a node until SIGTERM or SIGINT; the exit code.

    UserError, CorruptionError  it can't start; one sentence.
    """
    context = LogContext()
    configure_logging(config.log_level, context)
    faulthandler.register(signal.SIGUSR1)
    portable.keep_freed_memory()
    with DataDir(config.data_dir) as folder, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Node(config, folder, context).run())


class _StopRequested(Exception):
    """Asked to stop before there was anything to stop."""


class _Node:
    def __init__(self, config: NodeConfig, folder: DataDir, context: LogContext) -> None:
        self._config = config
        self._folder = folder
        self._context = context
        self._seeds = config.peers  # where to look for other nodes first
        self._stop_requested = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            identity, token = await self._unless_stopped(self._identify())
        except _StopRequested:
            return EXIT_OK
        self._context.node = identity.number
        _log.info("PyDi %s starts in %s", __version__, self._folder.path)
        with contextlib.ExitStack() as opened:
            tree_files = TreeFiles(self._folder.tree)
            opened.callback(tree_files.close)
            log, state = self._open_log(identity, tree_files)
            store = BlobStore(self._folder.blobs, identity.number)
            # Names that the tree knows are never given out again, even if blobs/ was emptied.
            floor = tree_files.tree.last_counter_of(identity.number)
            await loop.run_in_executor(None, store.recover, floor)
            if self._config.witness and not identity.witness:
                _require_empty(identity, store, tree_files)
                identity = identity._replace(witness=True)
                self._folder.save_identity(identity)
            if identity.phase != "member":
                self._folder.save_identity(identity._replace(phase="member"))
            return await self._serve(identity, token, tree_files, log, state, store)

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, _T]) -> _T:
        """Its result; _StopRequested as soon as somebody wants this node to end."""
        task = asyncio.ensure_future(waiting)
        stop = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _StopRequested
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    # --- start ------------------------------------------------------------------------------------

    async def _identify(self) -> tuple[Identity, NodeToken]:
        """Who this node is: as it was, the founder of a new cluster, or one that just joined."""
        config, folder = self._config, self._folder
        identity, kept = folder.load_identity(), folder.load_token()
        if identity is not None and identity.phase == "leaving":
            folder.clear(identity)  # where a crash interrupted it
            identity, kept = None, None
        given = _given_token(config)
        left: Identity | None = None
        if identity is not None and kept is not None:
            token = _parse(kept, folder.path / "token")
            if token.cluster != identity.cluster:
                raise UserError(f"{folder.path / 'token'} is of another cluster than node.json")
            if given is not None and given.cluster != identity.cluster:
                require_nothing_held(folder, identity)
                left, identity = identity, None
            elif identity.phase != "founding":
                if config.number not in (None, identity.number):
                    raise UserError(
                        f"--number {config.number}: the node in {folder.path} is {identity.number}"
                    )
                if given is not None and given.generation > token.generation:
                    # The cluster's secret was changed while this node was away.
                    folder.save_token(given.text())
                    token = given
                return identity, token
        if identity is not None and identity.phase == "member":
            raise UserError(f"{folder.path / 'token'} is missing: restore it from another node")
        if identity is None and given is None and kept is not None:
            given = _parse(kept, folder.path / "token")  # put there by a person
        if given is None:
            return self._found()
        joined = await join_cluster(given, config)
        if left is not None:
            folder.clear(left)
            _log.info("left cluster %s, which held nothing", left.cluster)
        self._seeds = (*config.peers, joined.through)
        identity = Identity(
            joined.number, given.cluster, "joining", config.witness, joined.histories
        )
        folder.save_token(given.text())
        folder.save_identity(identity)
        _log.info("joined cluster %s as node %d", identity.cluster, identity.number)
        return identity, given

    def _found(self) -> tuple[Identity, NodeToken]:
        if self._config.peers:
            raise UserError("--peer names a cluster, but without --join or --token-file this node"
                            " can't prove that it belongs there")  # fmt: skip
        if self._config.witness:
            raise UserError("--witness: a new cluster's first node must be one that holds content;"
                            " name the cluster to join with --peer and --token-file")  # fmt: skip
        token = NodeToken.new(os.urandom(CLUSTER_ID_BYTES + SECRET_BYTES))
        identity = Identity(self._config.number or NodeNumber(1), token.cluster, "founding")
        self._folder.save_identity(identity)
        self._folder.save_token(token.text())
        _log.info("new cluster %s", token.cluster)
        return identity, token

    def _open_log(self, identity: Identity, tree_files: TreeFiles) -> tuple[DiskLog, LoadedState]:
        """The log, agreeing with the tree. CorruptionError when they can't be brought together."""
        tree = tree_files.tree
        path = self._folder.log
        if identity.phase == "member" and not any(path.glob("*.log")):
            raise CorruptionError(
                f"{path} is empty: the log is lost, and with it this node's votes. Take this node"
                " out of the cluster (pydi forget) and let it join again with an empty data"
                " directory, or restore a backup"
            )
        log, state = DiskLog.open(path)
        last = state.entries[-1].index if state.entries else state.snapshot.index
        meta: SnapshotMeta | None = None
        if identity.phase == "founding":
            # Nothing was ever served: a start that a crash interrupted begins from nothing.
            meta = SnapshotMeta(membership=Membership.founding(identity.number))
            tree.set_membership(meta.index, meta.term, codec.pack_membership(meta.membership))
        elif (installed := tree_files.installed_meta) is not None:
            meta = installed
        if meta is not None:
            log.reset(meta)
            tree_files.forget_installing()
            return log, LoadedState(state.hard_state, meta, [])
        if not state.snapshot.index <= tree.applied_index <= last:
            log.close()
            raise CorruptionError(
                f"log and tree in {self._folder.path} don't fit: the log holds entries"
                f" {state.snapshot.index + 1} .. {last}, the tree ends at {tree.applied_index}."
                " Nothing was changed: take this node out of the cluster (pydi forget) and let it"
                " join again with an empty data directory, or restore a backup of both"
            )
        return log, state

    # --- service ----------------------------------------------------------------------------------

    async def _serve(
        self,
        identity: Identity,
        token: NodeToken,
        tree_files: TreeFiles,
        log: DiskLog,
        state: LoadedState,
        store: BlobStore,
    ) -> int:
        loop = asyncio.get_running_loop()
        clock = SystemClock()
        raft = Raft(
            Config(
                identity.number,
                int.from_bytes(os.urandom(8), "big"),
                committed_bytes_max=COMMITTED_BYTES_MAX,
            ),
            state.hard_state,
            state.snapshot,
            state.entries,
            tree_files.tree.applied_index,
        )
        replica = Replica(raft, tree_files.tree, ReplicaConfig(), clock.now())
        keyring = Keyring(token)
        peers = Peers(
            identity.number,
            keyring,
            self._seeds,
            identity.witness,
            identity.histories,
        )
        driver = Driver(
            replica,
            log,
            clock,
            tree_files,
            self._context,
            has_room=_room_check(self._folder.path),
            send=peers.send,
            push=lambda touched: server.push(touched),
            drop_all=lambda: server.push_drop_all(),
            dropped=lambda index: server.coherence.dropped(index),
            members_changed=peers.set_members,
            peer_broke=peers.on_broke,
        )
        peers.driver = driver
        service = Service(driver, store, identity.number, identity.cluster, identity.witness)
        service.locking = Locking(peers, identity.number)
        streams = Streams(store, keyring, lambda: server.context)
        transfers = Transfers(peers, store, identity.number, streams)
        service.replication = Replication(service, transfers)
        own_store = OwnStore(service, transfers, service.replication)
        repairing = Repairing(service, transfers, own_store)
        admission = Admission(keyring, identity.number, service, peers)
        server = Server(service, admission, peers.receive, streams)
        service.locking.tell = server.tell
        descriptors = DescriptorServer(
            lambda request: service.tree.blob(request.blob), service.replication.open_here,
            lambda: service.new_writer(store.create),
        )  # fmt: skip
        service.lent = descriptors.take
        status = Status(service, server, peers)
        housekeeping = Housekeeping(service, peers, store, lambda: transfers.states(for_new=False))
        service.admin |= status.admin | peers.admin(service) | housekeeping.admin
        service.admin |= service.locking.admin | transfers.admin
        discovery = Discovery(
            keyring, identity.number, peers, self._config.group, self._config.interfaces
        )
        service.admin |= own_store.admin | discovery.admin
        service.admin |= Draining(service, peers, transfers).admin
        service.admin |= Whereabouts(service, transfers, own_store).admin
        scrubbing = Scrubbing(service, peers, self._folder.path / "scrub.json")
        service.admin |= scrubbing.admin
        tokens = Tokens(service, server, keyring)
        rotation = Rotation(self._folder, keyring, service, peers, server, tokens)
        service.admin |= tokens.admin | rotation.admin
        if raft.membership.voters == (identity.number,):
            raft.campaign()  # nobody else could win: no need to wait for the time-out
        driver.start()
        background: list[asyncio.Task[None]] = []
        try:
            await rotation.look()
            address = await server.listen_tcp(
                self._config.listen, peers.server_context(), _port_before(replica, identity.number)
            )
            peers.address = address
            background = [
                loop.create_task(task, name=name)
                for name, task in (
                    ("peers", peers.run()),
                    ("discovery", discovery.run()),
                    ("tokens", tokens.run()),
                    ("housekeeping", housekeeping.run()),
                    ("locks", service.locking.run()),
                    ("transfers", transfers.run()),
                    ("own store", own_store.run()),
                    ("repair", repairing.run()),
                    ("scrub", scrubbing.run()),
                    ("compaction", Compacting(service).run()),
                    ("certificates", peers.renew_daily(server)),
                    ("rotation", rotation.run()),
                )
            ]
            await self._wait_first_leader(driver)
            self._save_run(identity, address)
            descriptors.listen(self._folder.descriptor_socket)
            await server.listen_unix(self._folder.socket)
            _settle_memory()
            _log.info(
                "ready: %s and %s, data in %s", self._folder.socket, address, self._folder.path
            )
            if identity.phase == "founding":
                _log.info(
                    "more nodes: pydi-node --token-file FILE, with a copy of %s",
                    self._folder.path / "token",
                )
            failed = await self._wait_end(driver, background)
            if isinstance(failed, UserError):
                raise failed
            if failed is not None:
                _log.error("node stops: %s", failed, exc_info=failed)
                return EXIT_FAILED
            await self._leave(driver, server)
            return EXIT_OK
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            server.close()
            descriptors.close()
            streams.stop()
            await service.close()
            await peers.close()
            await driver.stop()
            self._folder.remove_run()
            _log.info("stopped")

    def _on_signal(self, number: int) -> None:
        _log.info("%s: stopping", signal.Signals(number).name)
        self._stop_requested.set()

    async def _wait_first_leader(self, driver: Driver) -> None:
        """Until commands would be accepted; a while at most: reads are served without it."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + FIRST_LEADER_S
        while loop.time() < deadline_s and not driver.failed.done():
            if driver.is_covered or self._stop_requested.is_set():
                return
            if driver.replica.raft.leader is not None and not driver.replica.is_leader:
                return
            await asyncio.sleep(0.005)

    async def _wait_end(
        self, driver: Driver, background: list[asyncio.Task[None]]
    ) -> BaseException | None:
        """None when asked to stop, else what broke."""
        stop = asyncio.ensure_future(self._stop_requested.wait())
        watched: list[asyncio.Future[Any]] = [stop, driver.failed, *background]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        for future in (driver.failed, *background):
            if future.done() and not future.cancelled():
                error = future.exception()
                return error or AssertionError("a task of the node ended by itself")
        return None

    async def _leave(self, driver: Driver, server: Server) -> None:
        """The clean way out: nobody new, answers for all, leadership to another."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        server.refuse_clients()
        await server.wait_idle(started_s + STOP_ANSWER_S)
        try:
            await driver.leave(loop.time() + STOP_LEAVE_S)
        except PydiError as exc:
            _log.warning("stopping without leaving the voters: %s", exc)

    def _save_run(self, identity: Identity, address: Address) -> None:
        self._folder.save_run(
            {
                "address": str(address),
                "cluster": identity.cluster,
                "number": identity.number,
                "pid": os.getpid(),
                "socket": str(self._folder.socket),
                "version": __version__,
            }
        )


def _port_before(replica: Replica, number: NodeNumber) -> int | None:
    """The port in the cluster's books: until the others hear of another one, they look there."""
    for info in replica.tree.nodes():
        if info.number == number and info.address:
            return parse_address(info.address).port
    return None


def _require_empty(identity: Identity, store: BlobStore, tree_files: TreeFiles) -> None:
    """UserError when this node holds content, or is counted on for some."""
    files = store.usage().files
    if files or tree_files.tree.blobs_of_node(identity.number, HOLE, 1):
        raise UserError(
            f"--witness: node {identity.number} holds content ({counted(files, 'blob')}), and a"
            " witness holds none: start it without --witness, or as a new node with an empty"
            " data directory"
        )


def _given_token(config: NodeConfig) -> NodeToken | None:
    if config.join_token is not None:
        return _parse(config.join_token, "--join")
    if config.token_file is not None:
        try:
            text = config.token_file.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            raise UserError(f"--token-file {config.token_file}: {exc}") from exc
        return _parse(text, f"--token-file {config.token_file}")
    return None


def _parse(text: str, place: object) -> NodeToken:
    try:
        return parse_node_token(text)
    except TokenError as exc:
        raise UserError(f"{place}: {exc}", exc.exit_code) from exc


def _room_check(path: Path) -> Callable[[], bool]:
    def has_room() -> bool:
        status = os.statvfs(path)
        free = status.f_bavail * status.f_frsize
        total = status.f_blocks * status.f_frsize
        return free > min(LOW_WATER_BYTES, total * LOW_WATER_PERCENT // 100)

    return has_room


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed (it has no wheels for every platform), else asyncio's."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _settle_memory() -> None:
    """What was loaded at the start lives as long as the process: the collector may skip it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
