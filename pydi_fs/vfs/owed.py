"""Directories that are not this mount's any more, and the cluster has to hear of it. Called by
`delegations` only; runs in the loop.

`Undelegate` of one leaves when nothing of this mount in there is under way: two commands may swap
places on their way. What can't be told of one directory holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from pydi_fs.client import Client
from pydi_fs.vfs.journalling import Journal
from pydi_node.commands import INOS_PER_COMMAND_MAX, Undelegate
from pydi_node.errors import FileError, PydiError
from pydi_node.ids import Ino, Serial

log = logging.getLogger("pydi.vfs")

RETRY_S = 1.0


class Owed:
    """One object per mount.

    run       runs an Undelegate under that serial.
    may_go    whether nothing of this mount is under way in there; `look` says that it may have
              changed.
    """

    def __init__(
        self,
        client: Client,
        journal: Journal,
        *,
        run: Callable[[Undelegate, Serial], Awaitable[object]],
        may_go: Callable[[Ino], bool],
    ) -> None:
        self._client = client
        self._journal = journal
        self._run = run
        self._may_go = may_go
        self._directories: dict[Ino, None] = {}
        self._changed = asyncio.Event()
        self._returning: asyncio.Task[None] | None = None

    def __contains__(self, directory: Ino) -> bool:
        return directory in self._directories

    def __iter__(self) -> Iterator[Ino]:
        return iter(self._directories)

    def __bool__(self) -> bool:
        return bool(self._directories)

    @property
    def waits(self) -> bool:
        """Whether nothing of what is owed may go."""
        return bool(self._directories) and not self._changed.is_set()

    def add(self, directories: Iterable[Ino]) -> None:
        """`give_back` begins with it."""
        self._directories.update(dict.fromkeys(directories))

    def look(self) -> None:
        """More of them may go."""
        self._changed.set()

    def give_back(self) -> None:
        self._changed.set()
        if self._directories and (self._returning is None or self._returning.done()):
            self._returning = asyncio.get_running_loop().create_task(self._return_all())

    async def stop(self, more: Iterable[Ino]) -> None:
        """These and all others, once, if somebody is there to hear it."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])
        self.add(more)
        if self and self._client.is_connected:
            try:
                await self._undelegate(list(self), self.new_serial())
            except PydiError as exc:
                log.debug("not given back: %s", exc)

    def new_serial(self) -> Serial:
        """For a command whose first attempt a successor of this worker must know to be spent."""
        serial = self._client.new_serial()
        self._journal.spent(serial)
        return serial

    async def _return_all(self) -> None:
        while self._directories:
            self._changed.clear()
            ready = [ino for ino in self._directories if self._may_go(ino)]
            del ready[INOS_PER_COMMAND_MAX:]
            if not ready:
                await self._changed.wait()
                continue
            await self._return(ready)

    async def _return(self, directories: Sequence[Ino]) -> None:
        """Until there is an answer. Under one serial: a copy of an earlier attempt that comes late
        would end, unnoticed, what is delegated anew."""
        serial = self.new_serial()
        while True:
            try:
                return await self._undelegate(directories, serial)
            except FileError as exc:
                log.debug("not given back: %s", exc)
                serial = self.new_serial()  # the tree executes the other one no more
            except PydiError as exc:
                # Whoever wants them meanwhile takes them.
                log.debug("not given back yet: %s", exc)
            await asyncio.sleep(RETRY_S)

    async def _undelegate(self, directories: Sequence[Ino], serial: Serial) -> None:
        await self._run(Undelegate(tuple(directories)), serial)
        for directory in directories:
            self._directories.pop(directory, None)
        self._journal.undelegated(directories)
