"""The scrub of this node: every blob it should hold is re-read and hashed within the period.

A task of node.py. Disks lose bits of what nobody reads; a copy found damaged while there is another
one costs nothing. What to read when is blobs/scrub.py's to say. A copy that is damaged or missing
goes the way of every other one (ownstore.py): out of the way, and fetched again.

Nothing here may slow a program down that uses the node: one file at a time, in a thread of its own,
at a bounded rate, from the disk and not through what the system keeps in memory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydi_node.blobs import scrub
from pydi_node.blobs.files import OsFiles, load, save
from pydi_node.blobs.scrub import Amount, Pass
from pydi_node.errors import (
    BlobCorruptError,
    BlobError,
    BlobMissingError,
    FileError,
    PydiError,
    UnavailableError,
)
from pydi_node.ids import BlobId, NodeNumber, blob_name
from pydi_node.records import BlobInfo
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.service import Request, Service
from pydi_node.wire.messages import Admin, Role

_log = logging.getLogger(__name__)

LOOK_PERIOD_S = 1.0  # between two looks whether something is due
SAVE_PERIOD_S = 30.0  # so much of a pass may be read once more after a crash
BLOBS_PER_SLICE = 256  # looked up in one turn of the loop: some 2 ms
MEND_TIMEOUT_S = 10.0  # for content of the tree, which other nodes have
ASK_TIMEOUT_S = 2.0
PAUSE_MAX_S = 0.1  # between two looks, of a thread that waits, whether the node stops
FILE_MAX_BYTES = 4096


class Scrubbing:
    """See the module's text."""

    def __init__(self, service: Service, peers: Peers, path: Path) -> None:
        """path  of the file that keeps the progress."""
        self._service = service
        self._peers = peers
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._files = OsFiles()
        self._progress = scrub.load(load(self._files, path, FILE_MAX_BYTES))
        self._saved = self._progress
        self._next_save_s = 0.0
        self._free_s = 0.0  # when the thread may read the next byte, by time.monotonic()
        self._rate = 0  # bytes/s
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "scrub": self._all_nodes,
            "scrub-node": self._own_part,
        }

    async def run(self) -> None:
        try:
            while True:
                period_s = self._service.tree.settings()["scrub_period_s"]
                # A pass over nothing would put the first real one off by a whole period.
                is_due = scrub.is_due(self._progress, time.time_ns(), period_s)
                if is_due and self._total().blobs:
                    self._progress = scrub.begin(self._progress, time.time_ns(), hurry=False)
                if self._progress.current is None or not await self._read_some():
                    await asyncio.sleep(LOOK_PERIOD_S)
        finally:
            self._save()

    # --- reading ----------------------------------------------------------------------------------

    async def _read_some(self) -> bool:
        """Reads what is due of the next blobs; whether more may be due now."""
        current = self._progress.current
        assert current is not None
        page = self._service.tree.blobs(current.after, BLOBS_PER_SLICE)
        if not page:
            self._finish()
            return False
        for info in page:
            if self._service.node in info.holders:
                if not await self._wait_turn(current):
                    return False
                sound = await self._is_sound(info)
                if sound is None or not self._is_same_pass(current):
                    return False
                self._progress = scrub.advance(self._progress, info.blob, info.size, sound)
            else:
                if info.is_in_tree:
                    await self._check_content(info)
                self._skip(info.blob)
            if self._loop.time() >= self._next_save_s:
                await asyncio.to_thread(self._save)
        await asyncio.sleep(0)
        return True

    async def _wait_turn(self, current: Pass) -> bool:
        """Until the next blob is due; False when the pass was begun anew meanwhile."""
        while self._is_same_pass(current):
            now = self._progress.current
            assert now is not None
            settings = self._service.tree.settings()
            self._rate = settings["scrub_bytes_per_s"]
            wait_s = scrub.wait_s(now, self._total(), time.time_ns(), settings["scrub_period_s"])
            if wait_s <= 0:
                return True
            # Settings may change, and somebody may ask for it at once.
            await asyncio.sleep(min(wait_s, LOOK_PERIOD_S))
        return False

    def _is_same_pass(self, current: Pass) -> bool:
        now = self._progress.current
        return now is not None and now.started_ns == current.started_ns

    def _skip(self, blob: BlobId) -> None:
        current = self._progress.current
        assert current is not None
        self._progress = self._progress._replace(current=current._replace(after=blob))

    async def _check_content(self, info: BlobInfo) -> None:
        """What the tree keeps is a few kilobytes, and read as often as its files are."""
        replication = self._service.replication
        try:
            await replication.verify(info)
        except BlobMissingError:
            pass  # forgotten since the page was read
        except BlobCorruptError as exc:
            try:
                await replication.mend(info, str(exc), self._loop.time() + MEND_TIMEOUT_S)
            except (BlobError, UnavailableError) as failure:
                _log.warning("scrub: %s", failure)

    async def _is_sound(self, info: BlobInfo) -> bool | None:
        """Whether the copy here is what it should be; None when that can't be told now."""
        try:
            await asyncio.to_thread(
                self._service.store.verify, info.blob, info.size, info.checksum, self._pace
            )
        except UnavailableError:
            return None  # the node stops
        except BlobError as exc:
            now = self._service.known_blob(info.blob)
            if now is None or self._service.node not in now.holders:
                return True  # it was not needed here any more
            _log.warning("scrub: %s", exc)
            self._service.replication.on_lost(now)
            return False
        except OSError as exc:
            # Out of descriptors or memory: says nothing about the file, and reading goes on.
            _log.warning("scrub: blob %s could not be read: %s", blob_name(info.blob), exc)
        return True

    def _pace(self, length: int) -> None:
        """In the thread: returns when that many bytes may be read. UnavailableError: it stops."""
        now_s = time.monotonic()
        start_s = max(self._free_s, now_s)
        self._free_s = start_s + length / max(1, self._rate)
        while True:
            self._service.store.check_running()
            left_s = start_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, PAUSE_MAX_S))

    def _finish(self) -> None:
        self._progress = scrub.finish(self._progress, time.time_ns())
        last = self._progress.last
        assert last is not None
        _log.info("scrub: %d blobs read, %d were not sound", last.done.blobs, last.found)
        self._save()

    def _save(self) -> None:
        progress = self._progress
        self._next_save_s = self._loop.time() + SAVE_PERIOD_S
        if progress == self._saved:
            return
        try:
            save(self._files, self._path, scrub.dump(progress))
            self._saved = progress
        except OSError as exc:
            _log.info("scrub: its progress is not kept: %s", exc)

    def _total(self) -> Amount:
        held = [t for t in self._service.tree.blob_totals() if self._service.node in t.holders]
        return Amount(sum(t.blobs for t in held), sum(t.bytes for t in held))

    # --- asking -----------------------------------------------------------------------------------

    async def _all_nodes(self, request: Request, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """The state of every member's scrub, begun anew there with ``now``."""
        if request.session.role is Role.MOUNT:
            raise FileError(errno.EPERM, "a mount's token does not scrub")
        deadline_s = min(request.deadline_s, self._loop.time() + ASK_TIMEOUT_S)
        numbers = sorted(self._peers.members | {self._service.node})
        return list(
            await asyncio.gather(*[self._ask(n, request, arguments, deadline_s) for n in numbers])
        )

    async def _ask(
        self, number: NodeNumber, request: Request, arguments: dict[str, Any], deadline_s: float
    ) -> dict[str, Any]:
        if number == self._service.node:
            return self._own_part(request, arguments)
        try:
            answer = await self._peers.request(number, Admin("scrub-node", arguments), deadline_s)
        except PydiError as exc:
            return {"node": number, "error": str(exc)}
        return answer if isinstance(answer, dict) else {"node": number, "error": "no report"}

    def _own_part(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        if request.session.role is Role.MOUNT:
            raise FileError(errno.EPERM, "a mount's token does not scrub")
        if arguments.get("now") is True:
            self._progress = scrub.begin(self._progress, time.time_ns(), hurry=True)
        total = self._total()
        return {
            "node": self._service.node,
            "blobs": total.blobs,
            "bytes": total.bytes,
            "current": _described(self._progress.current),
            "last": _described(self._progress.last),
        }


def _described(a_pass: Pass | None) -> dict[str, Any] | None:
    if a_pass is None:
        return None
    return {
        "started_ns": a_pass.started_ns,
        "finished_ns": a_pass.finished_ns,
        "hurry": a_pass.hurry,
        "blobs": a_pass.done.blobs,
        "bytes": a_pass.done.bytes,
        "found": a_pass.found,
    }
