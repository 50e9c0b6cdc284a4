"""A node's inner parts in this process, without sockets: driver, service and what they drive."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

from pydi_node.blobs.placement import NodeState
from pydi_node.blobs.store import BlobStore
from pydi_node.commands import ROOT_CALLER, Command, Commit, Create
from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import Config, Membership, SnapshotMeta
from pydi_node.ids import ROOT_INO, ClientId, Ino, NodeNumber
from pydi_node.records import BlobInfo, Extent, Result
from pydi_node.replica import Replica
from pydi_node.replica_config import ReplicaConfig
from pydi_node.runtime.disklog import DiskLog
from pydi_node.runtime.driver import Driver
from pydi_node.runtime.housekeeping import Housekeeping
from pydi_node.runtime.locking import Locking
from pydi_node.runtime.logs import LogContext
from pydi_node.runtime.node import SystemClock
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.service import Request, Service, Session
from pydi_node.runtime.streams import Streams
from pydi_node.runtime.treefiles import TreeFiles
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Role
from pydi_node.wire.trust import NodeToken

ONE = NodeNumber(1)


class Inner:
    """One founding node; use ``async with``."""

    def __init__(self, path: Path) -> None:
        (path / "tree").mkdir(exist_ok=True)
        self.tree_files = TreeFiles(path / "tree" / "tree.db")
        self.log, state = DiskLog.open(path / "log")
        meta = state.snapshot
        if not meta.membership.members:
            meta = SnapshotMeta(membership=Membership.founding(1))
            self.log.reset(meta)
            tree = self.tree_files.tree
            tree.set_membership(meta.index, meta.term, codec.pack_membership(meta.membership))
        self.store = BlobStore(path / "blobs", ONE)
        self.store.recover()
        clock = SystemClock()
        raft = Raft(
            Config(ONE, 1),
            state.hard_state,
            meta,
            state.entries,
            self.tree_files.tree.applied_index,
        )
        replica = Replica(raft, self.tree_files.tree, ReplicaConfig(), clock.now())
        token = NodeToken.new(secrets.token_bytes(48))
        keyring = Keyring(token)
        self.peers = Peers(ONE, keyring, ())
        self.streams = Streams(self.store, keyring, self.peers.server_context)
        self.room = True
        self.driver = Driver(
            replica, self.log, clock, self.tree_files, LogContext(),
            has_room=lambda: self.room, send=self.peers.send, push=lambda touched: None,
            members_changed=self.peers.set_members, drop_all=lambda: None,
            dropped=lambda applied: applied, peer_broke=self.peers.on_broke,
        )  # fmt: skip
        self.peers.driver = self.driver
        self.service = Service(self.driver, self.store, ONE, token.cluster)
        self.service.locking = Locking(self.peers, ONE)
        self.housekeeping = Housekeeping(self.service, self.peers, self.store, self._states)
        self.free_percent = 50  # of the disk, as the house-keeping sees it
        self.session = Session(1, Role.MOUNT, "test", {})
        self.service.begin(self.session)
        raft.campaign()

    def _states(self) -> list[NodeState]:
        return [NodeState(ONE, True, False, False, 0, self.free_percent, 100, 0)]

    async def __aenter__(self) -> Inner:
        self.driver.start()
        assert await self.driver.wait_current(asyncio.get_running_loop().time() + 20.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.streams.stop()
        await self.service.close()
        await self.peers.close()
        await self.driver.stop()
        self.tree_files.close()

    async def execute(self, command: Command) -> Result:
        deadline_s = asyncio.get_running_loop().time() + 20.0
        return await self.driver.execute(
            ClientId(5), self.service.next_serial(), command, deadline_s
        )

    async def handle(self, message: Any, payload: bytes = b"") -> Any:
        """The service's answer to a request of ``session``."""
        deadline_s = asyncio.get_running_loop().time() + 20.0
        answer = self.service.handle(Request(self.session, message, payload, deadline_s))
        return await answer if asyncio.iscoroutine(answer) or asyncio.isfuture(answer) else answer

    async def file(self, name: bytes, content: bytes) -> tuple[Ino, BlobInfo]:
        """A committed file of one blob."""
        result = await self.execute(Create(ROOT_CALLER, ROOT_INO, name, 0o644, True))
        assert result.errno == 0
        ino = result.value[0].ino
        blob, seal = self.store.put(content)
        info = BlobInfo(blob, seal.size, seal.checksum, (ONE,))
        extents = (Extent(0, len(content), blob, 0),)
        commit = Commit(ROOT_CALLER, ino, None, 0, len(content), False, extents, (info,))
        assert (await self.execute(commit)).errno == 0
        return ino, info
