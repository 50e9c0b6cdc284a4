"""Inode numbers that the tree keeps for this mount, for what it makes by itself.

Called by `delegations` only. INODES_RESERVED come with one command, the next ones before the last
are used. Who asks for directories asks here first: a node of an older version ends the connection
at a command that it does not know, and one that has none to give has none a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from pydi_fs.client import Client
from pydi_fs.vfs.journal import Reserved
from pydi_fs.vfs.journalling import Journal
from pydi_node import portable
from pydi_node.commands import INODES_RESERVED, RESERVATIONS_PER_CLIENT_MAX, ReserveInodes
from pydi_node.errors import DisconnectedError, FileError, PydiError
from pydi_node.ids import Ino

log = logging.getLogger("pydi.vfs")

# Reserved numbers go with this client's session in the tree, which may end when it has been silent
# for an hour (setting session_idle_s): what nobody used by then is not used at all.
NUMBERS_S = 1800.0
RETRY_S = 1.0
UNKNOWN_THERE_S = 600.0


class Numbers:
    """See the module.

    run     runs a command.
    untold  inodes that have a number from here, and of which the cluster does not know yet.
    left_min  with so few left others are reserved.
    """

    def __init__(
        self,
        client: Client,
        journal: Journal,
        *,
        run: Callable[..., Awaitable[Any]],
        untold: Callable[[], Collection[Ino]],
        left_min: int,
    ) -> None:
        self.left: list[range] = []  # the oldest first
        self.not_before_s = 0.0  # when to ask again, for directories too
        self._client = client
        self._journal = journal
        self._run = run
        self._untold = untold
        self._left_min = left_min
        self._reserved: list[int] = []  # where the last reservations begin
        self._until_s = 0.0  # when they are too old, on a clock that goes on in suspension
        self._reserving: asyncio.Task[None] | None = None
        self._is_known = False  # the node has answered such a command

    def restore(self, reserved: Iterable[Reserved]) -> None:
        """Go on with what the worker before this one had."""
        for left in reserved:
            self.left.append(range(left.first, left.end))
            self._reserved.append(left.end - INODES_RESERVED)
            self._until_s = left.until_s

    async def stop(self) -> None:
        if self._reserving is not None:
            self._reserving.cancel()
            await asyncio.wait([self._reserving])

    def take(self) -> Ino | None:
        """One that no inode has. None: there is none at hand."""
        self._drop_old()
        while self.left and not self.left[0]:
            del self.left[0]
        if sum(map(len, self.left)) <= self._left_min and self._may_reserve():
            self._reserve()
        if not self.left:
            return None
        numbers = self.left[0]
        self.left[0] = numbers[1:]
        return Ino(numbers[0])

    async def wait_some(self) -> bool:
        """Whether there are some, after asking for them if need be."""
        self._drop_old()
        if not self.left and self._may_reserve():
            await self._reserve()
        return bool(self.left)

    async def wait_next(self) -> bool:
        """Whether there were none, and are some now that were asked for already."""
        if any(self.left) or self._reserving is None:
            return False
        await asyncio.shield(self._reserving)
        return any(self.left)

    def _drop_old(self) -> None:
        if portable.uptime_s() >= self._until_s:
            self.left.clear()

    def _may_reserve(self) -> bool:
        """Whether the tree would still know the reservations that all untold inodes are from: it
        remembers the last RESERVATIONS_PER_CLIENT_MAX."""
        kept = self._reserved[1 - RESERVATIONS_PER_CLIENT_MAX :]
        untold = self._untold()
        return not untold or (bool(kept) and min(untold) >= kept[0])

    def _remember(self, first: int) -> None:
        """Of another reservation."""
        self._reserved = [*self._reserved[2 - RESERVATIONS_PER_CLIENT_MAX :], first]

    def _reserve(self) -> asyncio.Task[None]:
        if self._reserving is None or self._reserving.done():
            self._reserving = asyncio.get_running_loop().create_task(self._reserve_once())
        return self._reserving

    async def _reserve_once(self) -> None:
        serial = self._client.new_serial()
        self._journal.spent(serial)
        until_s = portable.uptime_s() + NUMBERS_S

        def arrived(first: int) -> None:
            self._is_known = True
            self._drop_old()
            self._until_s = until_s
            self.left = [*self.left[-1:], range(first, first + INODES_RESERVED)]
            self._remember(first)
            self._journal.reserved(Ino(first), until_s)

        try:
            # Once a node has answered, the same question is repeated until there is an answer: else
            # nobody would know of what was reserved.
            await self._run(ReserveInodes(), arrived, serial=serial, once=not self._is_known)
        except PydiError as exc:
            log.debug("no inode numbers: %s", exc)
            # It may have taken effect.
            self._remember(max(self._reserved, default=0))
            is_unknown = isinstance(exc, DisconnectedError) and not self._is_known
            pause_s = UNKNOWN_THERE_S if is_unknown or isinstance(exc, FileError) else RETRY_S
            self.not_before_s = time.monotonic() + pause_s
