"""Versions in many pieces are brought together, in the background, behind their commits.

A task of node.py that works where the leader is, or elsewhere when that is a witness. It looks
through the tree a slice at a time, and rewrites small neighbours of a file that was left alone for
a while into one new blob (the choices are blobs/compaction.py's). The command that puts it into the
file names the version that was read: a change that came meanwhile wins, and the new blob is
garbage. What the file had before stays history like every other version.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator

from pydi_node.blobs.compaction import EXTENTS_MIN, plan, whose_turn
from pydi_node.commands import INLINE_WIRE_MAX_BYTES, Compact
from pydi_node.errors import BlobError, PydiError
from pydi_node.ids import Ino
from pydi_node.records import BlobInfo, Extent, FileVersion
from pydi_node.runtime.service import Service

_log = logging.getLogger(__name__)

SLICE_PERIOD_S = 1.0
SWEEP_PERIOD_S = 300.0  # between the end of one look through the tree and the next
ROWS_PER_SLICE = 5000  # looked at in one turn of the loop: some 5 ms
QUIET_S = 60.0  # who writes on and on is not disturbed
STEPS_PER_FILE = 64  # of 16 MiB at most each; the rest with the next look through the tree
READ_BYTES = 1 << 20
DEADLINE_S = 30.0


class Compacting:
    """See the module's text."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._after = Ino(0)

    async def run(self) -> None:
        pause_s = SLICE_PERIOD_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = SLICE_PERIOD_S
            if self._is_its_turn():
                pause_s = SLICE_PERIOD_S if await self.slice() else SWEEP_PERIOD_S

    def _is_its_turn(self) -> bool:
        service, transfers = self._service, self._service.replication.transfers
        books = service.tree.nodes()
        up = {info.number for info in books if transfers.is_up(info.number)}
        leader = service.driver.replica.raft.leader
        return whose_turn(leader, books, up) == service.node

    async def slice(self) -> bool:
        """Looks at the next files; False at the end of the tree."""
        found, last = self._service.tree.fragmented(self._after, ROWS_PER_SLICE, EXTENTS_MIN)
        for ino in found:
            for _ in range(STEPS_PER_FILE):
                if not await self.step(ino):
                    break
                await asyncio.sleep(SLICE_PERIOD_S)
        self._after = last or Ino(0)
        return last is not None

    async def step(self, ino: Ino) -> bool:
        """Brings some pieces of a file together; whether there may be more to do."""
        try:
            version = self._service.tree.file_version(ino)
            if time.time_ns() - version.attr.ctime_ns < QUIET_S * 1e9:
                return False
            runs = plan(version.extents)
            if not runs:
                return False
            info, content = await self._rewrite(version, runs)
            extents, position = [], 0
            for run in runs:
                length = sum(extent.length for extent in run)
                extents.append(Extent(run[0].offset, length, info.blob, position))
                position += length
            command = Compact(ino, version.attr.version, tuple(extents), (info,), content)
            result = await self._service.housekeep(command, self._loop.time() + DEADLINE_S)
        except (PydiError, OSError) as exc:
            _log.info("ino=%d: stays in many pieces for now: %s", ino, exc)
            return False
        if result.errno:
            # Changed meanwhile. Nobody has heard of the blob but its holders: the others find it as
            # a stray. One for the tree never was.
            if content is None:
                await self._service.in_pool(
                    functools.partial(self._service.store.delete, info.blob)
                )
            return False
        before = sum(len(run) for run in runs)
        _log.info("ino=%d: %d pieces are %d now", ino, before, len(runs))
        return True

    async def _rewrite(
        self, version: FileVersion, runs: list[list[Extent]]
    ) -> tuple[BlobInfo, bytes | None]:
        """A new durable blob with the bytes of all runs, one after the other; or, when they are
        few, the bytes, and the blob that the command makes of them."""
        service, replication = self._service, self._service.replication
        ino = version.attr.ino
        if sum(extent.length for run in runs for extent in run) <= INLINE_WIRE_MAX_BYTES:
            content = b"".join([data async for data in self._bytes_of(runs)])
            in_tree = await replication.inline(content)
            if in_tree is not None:
                return in_tree, content
        writer = await service.in_pool(service.store.create)
        copies = replication.copies_of(writer.blob, ino)
        position = 0
        try:
            async for data in self._bytes_of(runs):
                await service.in_pool(functools.partial(writer.write, position, data))
                await copies.write(position, data)
                position += len(data)
            stored = asyncio.ensure_future(service.in_pool(writer.seal))
            return await copies.seal(stored, position, None), None
        except BaseException:
            copies.abort()
            await asyncio.shield(service.in_pool(writer.abort))
            raise

    async def _bytes_of(self, runs: list[list[Extent]]) -> AsyncIterator[bytes]:
        for extent in (extent for run in runs for extent in run):
            for at in range(0, extent.length, READ_BYTES):
                length = min(READ_BYTES, extent.length - at)
                data = await self._service.replication.read(
                    extent.blob, extent.blob_offset + at, length, self._loop.time() + DEADLINE_S
                )
                if len(data) != length:
                    raise BlobError(f"{len(data)} bytes instead of {length} were read")
                yield data
