"""Which open files the node knows of, so that what loses its last name stays until it is closed.

Called by `vfs.Vfs` only. A node purges a file without a name no sooner than 30 s after its last
one went, so it need not hear of an open at once. Most files are closed within TELL_AFTER_S, and
then it never hears of them: no request for the open and none for its end. Whether the name goes on
this machine or another one, the hold is there long before the purge.

    opened ──TELL_AFTER_S, or its name goes here──► told ──closed──► Release
       └──closed──► nothing was said
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pydi_fs.client import Client
from pydi_node.ids import Ino
from pydi_node.wire.messages import Open, Release

TELL_AFTER_S = 0.5


class Holds:
    """Handles of one Vfs. later  runs something beside, in the order in which it was given."""

    def __init__(self, client: Client, later: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._client = client
        self._later = later
        self._untold: dict[int, Ino] = {}  # by handle
        self._told: dict[int, Ino] = {}  # likewise
        self._telling: asyncio.TimerHandle | None = None  # when the node hears of the untold

    def opened(self, fh: int, ino: Ino) -> None:
        """The node knows nothing of this handle yet."""
        self._untold[fh] = ino
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(TELL_AFTER_S, self._tell_untold)

    def told(self, fh: int, ino: Ino) -> None:
        """This handle came with the node's answer to an Open."""
        self._told[fh] = ino

    def closed(self, fh: int) -> None:
        """The handle is gone. One that nobody told of here (the past) is no hold."""
        if self._untold.pop(fh, None) is not None or (ino := self._told.pop(fh, None)) is None:
            return
        if ino in self._untold.values():
            # Between a Release and an Open nobody would hold it, and a file that lost its name long
            # ago (and was opened again through /proc) would be purged.
            heir = next(other for other, held in self._untold.items() if held == ino)
            self._told[heir] = self._untold.pop(heir)
        else:
            self._later(self._tell_release(ino))

    async def before_name_goes(self, ino: Ino | None) -> None:
        """What is sent next may take the last name of ``ino``, of any file if that is None: the
        node hears of its opens first, for who may see one directory only can't open what has no
        name there."""
        due = [fh for fh, held in self._untold.items() if ino is None or held == ino]
        if due:
            self._tell(due)
            await asyncio.sleep(0)  # now they are on their way

    def tell_all(self) -> None:
        """A node that knows nothing of this mount hears what is open."""
        self._untold = {**self._told, **self._untold}
        self._told = {}
        self._tell_untold()

    def stop(self) -> None:
        """Nothing is told any more."""
        if self._telling is not None:
            self._telling.cancel()
        self._untold.clear()
        self._told.clear()

    def _tell_untold(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._tell(list(self._untold))

    def _tell(self, handles: list[int]) -> None:
        for fh in handles:
            ino = self._told[fh] = self._untold.pop(fh)
            self._later(self._tell_open(ino))

    async def _tell_open(self, ino: Ino) -> None:
        await self._client.call(Open(ino))

    async def _tell_release(self, ino: Ino) -> None:
        await self._client.call(Release(ino, 1))
