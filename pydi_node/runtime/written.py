"""Which blobs a client may describe to the tree: those that a node has given it a name for.

Called by service.py before a client's command that brings blobs is proposed. The tree believes what
a command says of a blob that it does not know, and names can be guessed: who described the next
ones of a node would make what is written there fail, and who described its last one would leave it
none. So the file must be there. This node remembers what was written through it; what was written
through another one, before the client came here, the holders are asked for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from pydi_node.commands import Command, Commit, PutFile
from pydi_node.errors import BlobMissingError, PydiError
from pydi_node.ids import BlobId, blob_name
from pydi_node.records import BlobInfo
from pydi_node.wire.messages import Admin, Role, last_of

if TYPE_CHECKING:
    from pydi_node.runtime.service import Service, Session

REMEMBERED_MAX = 1 << 16  # some 15 MB; a client names a blob soon after it is written
ASK_TIMEOUT_S = 2.0
ASKED_AT_ONCE = 1024  # names in one question


class Written:
    """See the module's text."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._remembered: OrderedDict[BlobId, BlobInfo] = OrderedDict()

    def note(self, info: BlobInfo) -> BlobInfo:
        """A client is told of this blob; the same."""
        self._remembered[info.blob] = info
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return info

    def unsure(self, session: Session, command: Command) -> list[BlobInfo]:
        """What the command says of blobs that the tree doesn't know and this node can't vouch for
        at once. Nodes are believed."""
        command = last_of(command)
        if session.role is Role.NODE or not isinstance(command, (Commit, PutFile)):
            return []
        return [
            info
            for info in command.blobs
            if self._remembered.get(info.blob) != info
            and self._service.known_blob(info.blob) is None
        ]

    async def require(self, session: Session, command: Command, deadline_s: float) -> None:
        """Returns when a node has each blob's file. BlobMissingError: none within reach does."""
        left = {info.blob: info for info in self.unsure(session, command)}
        if not left:
            return
        for blob in await self._service.in_pool(lambda: list(filter(self._is_here, left.values()))):
            del left[blob.blob]
        transfers, own = self._service.replication.transfers, self._service.node
        deadline_s = min(deadline_s, self._loop.time() + ASK_TIMEOUT_S)
        for number in sorted({n for info in left.values() for n in info.holders} - {own}):
            names = [info.blob for info in left.values() if number in info.holders]
            while names and transfers.is_up(number):
                some, names = names[:ASKED_AT_ONCE], names[ASKED_AT_ONCE:]
                try:
                    there = await transfers.request(
                        number, Admin("has-blobs", {"blobs": some}), deadline_s
                    )
                except PydiError:
                    break
                for blob in there:
                    left.pop(blob, None)
        for blob in left:
            raise BlobMissingError(f"blob {blob_name(blob)}: no node within reach has its file")

    def _is_here(self, info: BlobInfo) -> bool:
        try:
            return self._service.store.size(info.blob) == info.size
        except BlobMissingError:
            return False
