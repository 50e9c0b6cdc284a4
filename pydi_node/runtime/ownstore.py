"""This node's own files against what the tree says that it holds.

A task of node.py. At the start, after a time without the cluster, and now and then, the names in
the store are compared with the tree. What should be here and is not, or is damaged, is fetched
from another holder; where no other has it either, or there is no room, the books are told, but
never that the last copy is gone: a disk may be mounted again, a file restored. What is here and
need not be is deleted, or added to the books when copies are short.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import logging
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from pydi_node.blobs.store import BlobStore
from pydi_node.commands import SetHolders
from pydi_node.errors import (
    BlobError,
    BlobMissingError,
    FileError,
    NoSpaceError,
    PydiError,
    UnavailableError,
)
from pydi_node.ids import BLOB_ID_MAX, BlobId, blob_name
from pydi_node.records import HOLE, BlobInfo
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.service import Request, Service
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.messages import Role

_log = logging.getLogger(__name__)

PERIOD_S = 1.0
COMPARE_PERIOD_S = 3600.0
COMPARE_AGAIN_S = 60.0  # at the earliest after the last one, however often the cluster is lost
BLOBS_PER_SLICE = 500  # looked at in one turn of the loop: some 5 ms
# A copy that the books don't name may be on its way into them.
EXTRA_AGE_S = 600.0
HEALS_AT_ONCE = 4
LOST_MAX = 1 << 17  # blobs remembered as missing; a comparison waits until there is room for more
RETRY_S = 5.0
DEADLINE_S = 10.0
NAMES_PER_QUESTION_MAX = 4096


class OwnStore:
    """See the module's text."""

    def __init__(self, service: Service, transfers: Transfers, replication: Replication) -> None:
        self._service = service
        self._transfers = transfers
        self._replication = replication
        self._store: BlobStore = service.store
        self._loop = asyncio.get_running_loop()
        self._lost: dict[BlobId, float] = {}  # missing or damaged here; when to try (again)
        self._doubtful: dict[BlobId, BlobInfo] = {}  # to be hashed
        self._wanted = asyncio.Event()
        replication.on_lost = self._on_lost
        replication.on_doubt = self._on_doubt
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "has-blobs": self._has_blobs,
            "drop-blobs": self._drop_blobs,
        }

    async def run(self) -> None:
        heal = self._loop.create_task(self._heal())
        doubt = self._loop.create_task(self._resolve_doubts())
        compare = self._loop.create_task(self._compare_now_and_then())
        tasks = [heal, doubt, compare]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # ends only by what nobody foresaw
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- for the leader ---------------------------------------------------------------------------

    async def which_here(self, blobs: Sequence[BlobId]) -> list[BlobId]:
        """Those with a file here. What should be here and is not will be fetched."""
        here: list[BlobId] = await self._service.in_pool(
            lambda: [blob for blob in blobs if self._store.has(blob)]
        )
        for blob in sorted(set(blobs) - set(here)):
            info = self._service.known_blob(blob)
            if info is not None and self._service.node in info.holders:
                self._on_lost(info)
        return here

    async def drop(self, blobs: Sequence[BlobId]) -> None:
        """Deletes those that the tree, as new as it can be here, no longer expects here."""
        if not await self._service.driver.is_current(self._loop.time() + DEADLINE_S):
            return
        for blob in blobs:
            info = self._service.known_blob(blob)
            if info is not None and self._service.node not in info.holders:
                await self._service.in_pool(functools.partial(self._store.delete, blob))

    def _has_blobs(self, request: Request, arguments: dict[str, Any]) -> Any:
        return self.which_here(_blobs_of(request, arguments))

    def _drop_blobs(self, request: Request, arguments: dict[str, Any]) -> Any:
        return self.drop(_blobs_of(request, arguments))

    # --- comparing --------------------------------------------------------------------------------

    async def _compare_now_and_then(self) -> None:
        driver = self._service.driver
        due_s = self._loop.time()
        was_led = False
        while True:
            is_led = driver.replica.raft.leader is not None
            if is_led and not was_led:
                due_s = min(due_s, self._loop.time() + COMPARE_AGAIN_S)
            was_led = is_led
            # Only when it is time: whoever asks the leader each second is never idle.
            if (
                is_led
                and self._loop.time() >= due_s
                and await driver.is_current(self._loop.time() + DEADLINE_S)
            ):
                due_s = self._loop.time() + COMPARE_PERIOD_S
                await self._compare()
            await asyncio.sleep(PERIOD_S)

    async def _compare(self) -> None:
        """Every blob of the tree against the files here, some hundred at a time."""
        files: array[int] = await self._service.in_pool(lambda: array("Q", self._store.names()))
        at = 0
        after = HOLE
        missing = 0
        full_until_s = self._loop.time() + COMPARE_PERIOD_S
        while page := self._service.tree.blobs(after, BLOBS_PER_SLICE):
            # An emptied disk may lack a million: the next ones are named when there is room. Not
            # for ever, where nobody has them: what lies behind them must be looked at as well.
            while (  # noqa: ASYNC110 - a signal from each of thousands would say it no better
                len(self._lost) > LOST_MAX - len(page) and self._loop.time() < full_until_s
            ):
                await asyncio.sleep(PERIOD_S)
            for info in page:
                while at < len(files) and files[at] < info.blob:
                    at += 1  # the tree doesn't know it: strays are house-keeping's
                is_here = at < len(files) and files[at] == info.blob
                is_mine = self._service.node in info.holders
                if is_mine and not is_here and not self._store.has(info.blob):
                    missing += 1
                    self._on_lost(info)
                elif is_here and not is_mine:
                    await self._settle_extra(info)
            after = page[-1].blob
            await asyncio.sleep(0)
        if missing:
            _log.warning("%d blobs that this node should hold are not there: fetching", missing)

    async def _settle_extra(self, info: BlobInfo) -> None:
        """A file that the books don't name: into the books when copies are short, else away."""
        if info.is_in_tree:
            await self.drop([info.blob])
            return
        copies = sum(self._transfers.is_up(number) for number in info.holders)
        try:
            age_s = await self._service.in_pool(lambda: self._age_s(info.blob))
            if age_s < EXTRA_AGE_S:
                return
            if copies < self._service.tree.copies_of_blob(info.blob):
                await self._service.in_pool(
                    lambda: self._store.verify(info.blob, info.size, info.checksum)
                )
                await self._propose(SetHolders(info.blob, (self._service.node,), ()))
            else:
                await self.drop([info.blob])
        except (PydiError, OSError) as exc:
            _log.info("surplus blob %s stays for now: %s", blob_name(info.blob), exc)

    def _age_s(self, blob: BlobId) -> float:
        fd = self._store.open(blob)
        try:
            # The change time is that of the seal: a mode can't be set without it.
            return time.time() - os.fstat(fd).st_ctime
        finally:
            os.close(fd)

    # --- healing ----------------------------------------------------------------------------------

    def _on_lost(self, info: BlobInfo) -> None:
        if info.blob not in self._lost and len(self._lost) < LOST_MAX:
            self._lost[info.blob] = self._loop.time()
            self._wanted.set()

    def _on_doubt(self, info: BlobInfo) -> None:
        if len(self._doubtful) < LOST_MAX:
            self._doubtful[info.blob] = info
            self._wanted.set()

    async def _heal(self) -> None:
        while True:
            now_s = self._loop.time()
            due = (blob for blob, due_s in self._lost.items() if due_s <= now_s)
            if some := list(itertools.islice(due, HEALS_AT_ONCE)):
                await asyncio.gather(*[self._heal_one(blob) for blob in some])
            else:
                await asyncio.sleep(PERIOD_S / 4)

    async def _heal_one(self, blob: BlobId) -> None:
        node = self._service.node
        info = self._service.known_blob(blob)
        if info is None or node not in info.holders:
            self._forget(blob)
            return
        others = tuple(number for number in info.holders if number != node)
        try:
            if not others:
                await self._service.in_pool(
                    lambda: self._store.verify(blob, info.size, info.checksum)
                )
            else:
                await self._replication.hold(info._replace(holders=others))
                _log.info("blob %s is whole again", blob_name(blob))
            self._forget(blob)
        except (BlobMissingError, NoSpaceError) as exc:
            if others:
                await self._report(blob, exc)
            else:
                self._mourn(blob)
        except BlobError:
            self._try_again(blob, 0.0)  # in quarantine now: once more, without it
        except (UnavailableError, OSError) as exc:
            _log.debug("blob %s is not whole yet: %s", blob_name(blob), exc)
            self._try_again(blob, RETRY_S)

    async def _report(self, blob: BlobId, why: Exception) -> None:
        try:
            await self._propose(SetHolders(blob, (), (self._service.node,)))
            self._forget(blob)
            _log.info("blob %s is not held here any more: %s", blob_name(blob), why)
        except PydiError:
            self._try_again(blob, RETRY_S)

    def _mourn(self, blob: BlobId) -> None:
        if blob not in self._replication.gone:
            self._replication.gone.add(blob)
            _log.warning("the only copy of blob %s is gone: restore its file", blob_name(blob))
        self._try_again(blob, 10 * RETRY_S)

    def _try_again(self, blob: BlobId, delay_s: float) -> None:
        """After all others that are due."""
        self._lost.pop(blob, None)
        self._lost[blob] = self._loop.time() + delay_s

    def _forget(self, blob: BlobId) -> None:
        self._lost.pop(blob, None)
        self._replication.gone.discard(blob)

    async def _resolve_doubts(self) -> None:
        """Hashes large files that were read from, one after the other."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._doubtful:
                blob, info = self._doubtful.popitem()
                try:
                    await asyncio.to_thread(self._store.verify, blob, info.size, info.checksum)
                except (BlobError, OSError):
                    self._on_lost(info)

    async def _propose(self, command: SetHolders) -> None:
        result = await self._service.housekeep(command, self._loop.time() + DEADLINE_S)
        if result.errno not in (0, errno.ENOENT):  # forgotten meanwhile is as good
            raise FileError(result.errno)


def _blobs_of(request: Request, arguments: dict[str, Any]) -> list[BlobId]:
    blobs = arguments.get("blobs")
    if (
        request.session.role is not Role.NODE
        or not isinstance(blobs, (list, tuple))
        or len(blobs) > NAMES_PER_QUESTION_MAX
        or any(type(blob) is not int or not 0 < blob <= BLOB_ID_MAX for blob in blobs)
    ):
        raise FileError(errno.EINVAL, "blobs: not names of blobs from another node")
    return [BlobId(blob) for blob in blobs]
