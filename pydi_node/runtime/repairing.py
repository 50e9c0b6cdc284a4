"""The leader's repair: has missing copies made and surplus ones removed, one small step at a time.

A task of node.py, asleep on every node that does not lead. What to do is blobs/repair.py's to say;
this asks the nodes for it and writes the outcome into the tree. First the copy, then the books that
name it; first the books that no longer name it, then the file. So whatever stops in between leaves
a copy too many, never one too few.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pydi_node.blobs.placement import NodeState
from pydi_node.blobs.repair import Copy, Group, Removal, plan, urgent
from pydi_node.commands import SetHolders
from pydi_node.errors import PydiError
from pydi_node.ids import BlobId, NodeNumber, blob_name
from pydi_node.records import HOLE, BlobInfo
from pydi_node.runtime.ownstore import OwnStore
from pydi_node.runtime.service import Service
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.messages import Admin, BlobCopy

_log = logging.getLogger(__name__)

PERIOD_S = 1.0
LOOK_PERIOD_S = 0.1  # whether there is anything new to plan from
COPIES_AT_ONCE = 16  # small blobs wait for round trips and disks, not for bandwidth
BLOBS_PER_ROUND = 256  # looked at in one turn of the loop: some 2 ms
REMOVALS_PER_ROUND = 64
RETRY_S = 5.0  # a copy that failed is not tried again before
PUT_OFF_MAX = 1 << 16  # blobs remembered for that; past it they are tried too soon
DEADLINE_S = 10.0  # of a command, and of a question to a node
COPY_DEADLINE_S = 60.0  # of a small copy; a large one gets time by the rate
COPY_RATE_SLACK = 4  # several nodes may fetch from one


class Repairing:
    """See the module's text."""

    def __init__(self, service: Service, transfers: Transfers, own: OwnStore) -> None:
        self._service = service
        self._transfers = transfers
        self._own = own
        self._loop = asyncio.get_running_loop()
        self._away_since_s: dict[NodeNumber, float] = {}  # as this leader saw it
        self._cursors: dict[Group, BlobId] = {}  # where to go on in each group
        self._put_off_until_s: dict[BlobId, float] = {}
        self._copying: dict[asyncio.Task[None], BlobId] = {}

    async def run(self) -> None:
        driver = self._service.driver
        try:
            while True:
                if driver.replica.is_leader:
                    # A leader that nobody follows any more must not plan from what it remembers.
                    if await driver.is_current(self._loop.time() + DEADLINE_S):
                        await self._round()
                else:
                    self._away_since_s.clear()  # a later term of this node counts anew
                if self._copying:
                    await asyncio.wait(
                        self._copying, timeout=PERIOD_S, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    await self._rest()
        finally:
            for task in self._copying:
                task.cancel()
            await asyncio.gather(*self._copying, return_exceptions=True)

    async def _rest(self) -> None:
        """Until something changed in the tree, PERIOD_S at most."""
        tree = self._service.tree
        seen = tree.applied_index
        until_s = self._loop.time() + PERIOD_S
        # Not a signal of each change: a busy tree would set it thousands of times for one round.
        while self._loop.time() < until_s and tree.applied_index == seen:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_PERIOD_S)

    async def _round(self) -> None:
        tree = self._service.tree
        settings = tree.settings()
        lost = self._lost(self._transfers.states(for_new=False), settings["grace_s"])
        # A node that stalls counts as away: it keeps its copies and gets no more.
        nodes = self._transfers.states()
        default = settings["replicas"]
        room = COPIES_AT_ONCE - len(self._copying)
        if room <= 0:
            return
        blobs = self._due(urgent(tree.blob_totals(), nodes, lost, default), default)
        made = plan(blobs, nodes, lost, room)
        for copy in made.copies:
            task = self._loop.create_task(self._copy(copy, settings["repair_bytes_per_s"]))
            self._copying[task] = copy.info.blob
            task.add_done_callback(self._copying.pop)
        if made.removals:
            await self._remove(made.removals[:REMOVALS_PER_ROUND])

    def _lost(self, nodes: Sequence[NodeState], grace_s: int) -> set[NodeNumber]:
        now_s = self._loop.time()
        since = self._away_since_s
        self._away_since_s = {n.number: since.get(n.number, now_s) for n in nodes if not n.up}
        lost = {n for n, away_s in self._away_since_s.items() if now_s - away_s > grace_s}
        for number in sorted(lost):
            if now_s - self._away_since_s[number] <= grace_s + PERIOD_S:
                _log.info("node %d counts as lost: its blobs are copied elsewhere", number)
        return lost

    def _due(self, groups: list[Group], default: int) -> list[tuple[BlobInfo, int]]:
        """Some of the blobs of these groups with their factor, the first groups first; each time
        the next ones."""
        now_s = self._loop.time()
        self._put_off_until_s = {b: t for b, t in self._put_off_until_s.items() if t > now_s}
        busy = self._put_off_until_s.keys() | set(self._copying.values())
        cursors, self._cursors = self._cursors, {}
        due: list[tuple[BlobInfo, int]] = []
        for group in groups:
            if len(due) >= BLOBS_PER_ROUND:
                break
            page = self._service.tree.blobs_held_by(
                group.holders, group.factor, BLOBS_PER_ROUND, cursors.get(group, HOLE)
            )
            found = [(info, group.factor or default) for info in page if info.blob not in busy]
            due += found
            # On to the next page only past blobs that can't be helped now.
            if len(page) == BLOBS_PER_ROUND and not found:
                self._cursors[group] = page[-1].blob
        return due

    async def _copy(self, copy: Copy, rate: int) -> None:
        info, target = copy
        deadline_s = self._loop.time() + COPY_DEADLINE_S + COPY_RATE_SLACK * info.size / rate
        try:
            if target == self._service.node:
                await self._service.replication.hold(info)
            else:
                await self._transfers.request(target, BlobCopy(info), deadline_s)
            await self._propose(SetHolders(info.blob, (target,), ()))
            _log.debug("blob %s copied to node %d", blob_name(info.blob), target)
        except (PydiError, OSError) as exc:
            _log.info("blob %s not copied to node %d: %s", blob_name(info.blob), target, exc)
            if len(self._put_off_until_s) < PUT_OFF_MAX:
                self._put_off_until_s[info.blob] = self._loop.time() + RETRY_S

    async def _remove(self, removals: Sequence[Removal]) -> None:
        """Removes those whose keepers all say that they have the blob: the books may be ahead of
        the disks, where somebody deleted files."""
        asked: dict[NodeNumber, set[BlobId]] = {}
        for removal in removals:
            for keeper in removal.keepers:
                asked.setdefault(keeper, set()).add(removal.blob)
        there = {
            keeper: await self._which_has(keeper, sorted(blobs))
            for keeper, blobs in sorted(asked.items())
        }
        dropped: dict[NodeNumber, list[BlobId]] = {}
        for removal in removals:
            if not all(removal.blob in there[keeper] for keeper in removal.keepers):
                self._put_off_until_s[removal.blob] = self._loop.time() + RETRY_S
                continue
            try:
                await self._propose(SetHolders(removal.blob, (), (removal.node,)))
            except PydiError as exc:
                _log.info("surplus copies stay for now: %s", exc)
                return
            dropped.setdefault(removal.node, []).append(removal.blob)
        for number, blobs in sorted(dropped.items()):
            await self._drop(number, blobs)

    async def _which_has(self, number: NodeNumber, blobs: list[BlobId]) -> set[BlobId]:
        if number == self._service.node:
            return set(await self._own.which_here(blobs))
        deadline_s = self._loop.time() + DEADLINE_S
        try:
            answer = await self._transfers.request(
                number, Admin("has-blobs", {"blobs": blobs}), deadline_s
            )
        except PydiError:
            return set()  # then nothing is removed that counts on it
        return set(answer) if isinstance(answer, (list, tuple)) else set()

    async def _drop(self, number: NodeNumber, blobs: list[BlobId]) -> None:
        try:
            if number == self._service.node:
                await self._own.drop(blobs)
            elif self._transfers.is_up(number):
                deadline_s = self._loop.time() + DEADLINE_S
                await self._transfers.request(
                    number, Admin("drop-blobs", {"blobs": blobs}), deadline_s
                )
        except PydiError as exc:
            # It compares its files with the tree from time to time, and finds them then.
            _log.debug("node %d drops its surplus later: %s", number, exc)

    async def _propose(self, command: SetHolders) -> None:
        await self._service.housekeep(command, self._loop.time() + DEADLINE_S)
