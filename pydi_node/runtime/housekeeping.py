"""What a node does unasked: forget old history, purge orphans, collect garbage blobs.

A task of node.py. The leader proposes what the whole cluster forgets; every node deletes its own
files of blobs that the cluster has forgotten. It must never delete a blob's file before the tree
has forgotten the blob: until then a command may name it again.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from pydi_node.blobs.placement import NodeState, is_short
from pydi_node.blobs.store import BlobStore
from pydi_node.commands import (
    INOS_PER_COMMAND_MAX,
    ExpireSessions,
    ForgetBlobs,
    PurgeOrphans,
    SpreadFactors,
    TrimHistory,
)
from pydi_node.errors import BlobError, FileError, NoSpaceError, PydiError, UnavailableError
from pydi_node.ids import BlobId, Ino, LogIndex, TimeNs, blob_name
from pydi_node.records import HOLE
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.service import Request, Service
from pydi_node.wire.messages import Admin, Role

_log = logging.getLogger(__name__)

PERIOD_S = 5.0
# A mount that lost its node opens its files again at another one well within this.
ORPHAN_DELAY_S = 30.0
TRIM_ROWS = 2000  # of one command: some 50 ms of applying
TRIMS_PER_ROUND = 20
GARBAGE_PER_ROUND = 1000
# What is in the tree goes with its row, some 20 ms of applying a command. Fewer, and small files
# that are written all the time would leave more than is ever forgotten.
FORGETS_PER_ROUND = 20
GIVE_BACKS_PER_ROUND = 16  # 64 MiB of the tree's file
# From when a leader sees garbage until the tree forgets it: each node has looked at the tree
# meanwhile, and knows which files of its own to delete then. Who did not (it was away) finds them
# as strays.
GARBAGE_DELAY_S = 2 * PERIOD_S
GARBAGE_SEEN_MAX = 4 * GARBAGE_PER_ROUND  # as much as comes up within the delay, and one round more
SPREAD_ENTRIES = 500  # of one command: some 20 ms of applying
SPREADS_PER_ROUND = 100
DEADLINE_S = 10.0
# A sealed blob that no commit has named: its client crashed, or is about to send the commit. No
# client waits a day.
STRAY_AGE_S = 24 * 3600
STRAY_PERIOD_S = 3600.0
EXPIRE_PERIOD_S = 600.0
STRAYS_PER_SLICE = 500  # looked up in one turn of the loop: some 5 ms
# Every node has deleted what was forgotten, and told how full it is, within this.
ROOM_COMES_S = GARBAGE_DELAY_S + 3 * PERIOD_S


class Housekeeping:
    """See the module's text."""

    def __init__(
        self,
        service: Service,
        peers: Peers,
        store: BlobStore,
        states: Callable[[], list[NodeState]],
    ) -> None:
        """states: how full every member is."""
        self._service = service
        self._peers = peers
        self._store = store
        self._states = states
        self._loop = asyncio.get_running_loop()
        self._orphans_seen: dict[Ino, float] = {}  # when this leader saw it first
        self._garbage_seen: dict[BlobId, float] = {}  # until it is forgotten; when it was new
        self._room_comes_s = 0.0  # until then garbage that was just forgotten may still be deleted
        self._next_strays_s = self._loop.time() + STRAY_PERIOD_S
        self._next_expiry_s = self._loop.time() + EXPIRE_PERIOD_S
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {"held": self._held}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.round()
            except UnavailableError as exc:
                _log.debug("housekeeping put off: %s", exc)
            except PydiError as exc:
                _log.warning("housekeeping put off: %s", exc)

    async def round(self) -> None:
        """All that is due now."""
        driver = self._service.driver
        if driver.replica.is_leader:
            await self._expire_sessions()
            await self._trim()
            await self._purge()
            await self._spread_factors()
            await self._forget_content()
        else:
            self._orphans_seen.clear()
        await self._collect_garbage()
        await self._give_back()
        settings = self._service.tree.settings()
        self._store.set_reserve(settings["reserve_max_bytes"], settings["reserve_percent"])
        if self._loop.time() >= self._next_strays_s:
            self._next_strays_s = self._loop.time() + STRAY_PERIOD_S
            await self._collect_strays()

    async def _propose(self, command: Any) -> Any:
        result = await self._service.housekeep(command, self._loop.time() + DEADLINE_S)
        return result.value

    # --- the leader's part ------------------------------------------------------------------------

    async def _expire_sessions(self) -> None:
        idle_s = self._service.tree.settings()["session_idle_s"]
        if self._loop.time() >= self._next_expiry_s:
            self._next_expiry_s = self._loop.time() + EXPIRE_PERIOD_S
            await self._propose(ExpireSessions(TimeNs(time.time_ns() - idle_s * 1_000_000_000)))

    async def _trim(self) -> None:
        tree = self._service.tree
        until = self._trim_until()
        for _ in range(TRIMS_PER_ROUND):
            if until <= tree.history_floor:
                return
            _, more = await self._propose(TrimHistory(until, TRIM_ROWS))
            if not more:
                return

    def _trim_until(self) -> LogIndex:
        """The index behind which nothing is kept: by age, or sooner when space runs out."""
        tree = self._service.tree
        age_ns = tree.settings()["retention_s"] * 1_000_000_000
        until = tree.index_at(TimeNs(max(0, time.time_ns() - age_ns)))
        copies = tree.settings()["replicas"]
        # What is forgotten of small content is room for blobs only when the tree's file is smaller.
        comes = self._loop.time() < self._room_comes_s or tree.spare_bytes
        if not comes and is_short(self._states(), copies):
            # A tenth of what is kept, each round, until there is room again or nothing left.
            floor = tree.history_floor
            kept = tree.applied_index - floor
            if kept > 0:
                until = max(until, LogIndex(floor + max(1, kept // 10)))
        return until

    async def _purge(self) -> None:
        """Inodes without a name that no session of any node holds, a while after they lost it."""
        tree = self._service.tree
        now_s = self._loop.time()
        orphans = tree.orphans(INOS_PER_COMMAND_MAX)
        seen = self._orphans_seen
        self._orphans_seen = {ino: seen.get(ino, now_s) for ino in orphans}
        due = [ino for ino in orphans if now_s - self._orphans_seen[ino] >= ORPHAN_DELAY_S]
        if not due:
            return
        held = {ino for ino in due if ino in self._service.holds}
        for number in self._peers.members:
            # A node that can't be asked may hold them all: they wait until it is back or voted out.
            answer = await self._peers.request(
                number, Admin("held", {"inos": due}), now_s + DEADLINE_S
            )
            held.update(answer)
        free = tuple(ino for ino in due if ino not in held)
        if free:
            await self._propose(PurgeOrphans(free))

    async def _forget_content(self) -> None:
        """Of garbage that is in the tree no node has to know before."""
        after = HOLE
        for _ in range(FORGETS_PER_ROUND):
            page = self._service.tree.garbage_blobs(GARBAGE_PER_ROUND, after)
            if not page:
                return
            after = page[-1].blob
            if due := tuple(info.blob for info in page if info.is_in_tree):
                await self._propose(ForgetBlobs(due))

    async def _spread_factors(self) -> None:
        """What directories ask for reaches the blobs below, where that changed."""
        for _ in range(SPREADS_PER_ROUND):
            if not self._service.tree.has_refactor():
                return
            await self._propose(SpreadFactors(SPREAD_ENTRIES))

    def _held(self, request: Request, arguments: dict[str, Any]) -> list[int]:
        """Which of these inodes sessions of this node hold."""
        inos = arguments.get("inos")
        if request.session.role is not Role.NODE or not isinstance(inos, list):
            raise FileError(errno.EINVAL, "held takes inode numbers from another node")
        return [ino for ino in inos if ino in self._service.holds]

    # --- every node's part ------------------------------------------------------------------------

    async def _collect_garbage(self) -> None:
        tree = self._service.tree
        now_s = self._loop.time()
        garbage = tree.garbage_blobs(GARBAGE_SEEN_MAX)
        seen = self._garbage_seen
        if garbage and self._service.driver.replica.is_leader:
            self._room_comes_s = now_s + ROOM_COMES_S
            due = [
                info.blob for info in garbage
                if now_s - seen.get(info.blob, now_s) >= GARBAGE_DELAY_S
            ]  # fmt: skip
            if due:
                await self._propose(ForgetBlobs(tuple(due[:GARBAGE_PER_ROUND])))
        files = {info.blob for info in garbage if not info.is_in_tree}
        gone = [blob for blob in sorted(seen.keys() | files) if not self._is_known(blob)]
        still = tree.garbage_blobs(GARBAGE_SEEN_MAX)
        self._garbage_seen = {
            info.blob: seen.get(info.blob, now_s) for info in still if not info.is_in_tree
        }
        for blob in gone:
            await self._service.in_pool(functools.partial(self._store.delete, blob))

    async def _give_back(self) -> None:
        """The tree's file gets smaller by what was forgotten."""
        tree = self._service.tree
        try:
            for _ in range(GIVE_BACKS_PER_ROUND):
                if not tree.spare_bytes or tree is not self._service.tree:
                    break
                tree.give_back()
                await asyncio.sleep(0)
        except NoSpaceError as exc:
            _log.debug("the tree's file does not get smaller: %s", exc)

    def _is_known(self, blob: BlobId) -> bool:
        try:
            self._service.tree.blob(blob)
        except FileError:
            return False
        return True

    async def _collect_strays(self) -> None:
        """Deletes files that the tree doesn't know and that nobody can be about to commit."""
        names = await self._service.in_pool(lambda: list(self._store.names()))
        for start in range(0, len(names), STRAYS_PER_SLICE):
            for blob in names[start : start + STRAYS_PER_SLICE]:
                if self._is_known(blob):
                    continue
                is_old = await self._service.in_pool(functools.partial(self._is_old, blob))
                if is_old and not self._is_known(blob):
                    await self._service.in_pool(functools.partial(self._store.delete, blob))
                    _log.info("blob %s deleted: no version ever named it", blob_name(blob))
            await asyncio.sleep(0)

    def _is_old(self, blob: BlobId) -> bool:
        try:
            fd = self._store.open(blob)
        except BlobError:
            return False
        try:
            # The change time is that of the seal: a mode can't be set without it.
            return time.time() - os.fstat(fd).st_ctime > STRAY_AGE_S
        finally:
            os.close(fd)
