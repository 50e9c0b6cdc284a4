"""Where the copies of some blobs really are: what ``pydi why`` asks.

A verb of Admin. The books say who should hold a copy; each of those nodes is asked whether its file
is there, and whoever lacks one begins to fetch it, as after any other such question.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from pydi_node.errors import FileError, PydiError
from pydi_node.ids import BLOB_ID_MAX, BlobId, NodeNumber, blob_name
from pydi_node.runtime.ownstore import NAMES_PER_QUESTION_MAX, OwnStore
from pydi_node.runtime.service import Request, Service
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.messages import Admin

ASK_TIMEOUT_S = 2.0
BLOBS_MAX = 1024  # a file of more pieces is told about by its first ones

HERE, LACKING, DOWN = "here", "lacking", "down"


class Whereabouts:
    """See the module's text."""

    def __init__(self, service: Service, transfers: Transfers, own: OwnStore) -> None:
        self._service = service
        self._transfers = transfers
        self._own = own
        self._loop = asyncio.get_running_loop()
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "whereabouts": self._whereabouts
        }

    async def _whereabouts(
        self, request: Request, arguments: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """For each of these blobs that the tree knows: what should be, and each holder's state."""
        blobs = _checked(arguments.get("blobs"))
        deadline_s = min(request.deadline_s, self._loop.time() + ASK_TIMEOUT_S)
        await self._service.driver.wait_current(deadline_s)
        infos = [info for blob in blobs if (info := self._service.known_blob(blob)) is not None]
        asked: dict[NodeNumber, list[BlobId]] = {}
        for info in infos:
            for number in () if info.is_in_tree else info.holders:
                asked.setdefault(number, []).append(info.blob)
        answers = await asyncio.gather(
            *[self._which_has(number, names, deadline_s) for number, names in asked.items()]
        )
        there = dict(zip(asked, answers, strict=True))
        return [
            {
                "blob": blob_name(info.blob),
                "size": info.size,
                "checksum": info.checksum.hex(),
                "copies": self._service.tree.copies_of_blob(info.blob),
                "in_tree": info.is_in_tree,
                "holders": [
                    {"node": number, "state": _state(there[number], info.blob)}
                    for number in info.holders
                    if not info.is_in_tree
                ],
            }
            for info in infos
        ]

    async def _which_has(
        self, number: NodeNumber, blobs: list[BlobId], deadline_s: float
    ) -> set[BlobId] | None:
        """Those with a file there; None when the node can't be asked."""
        assert len(blobs) <= NAMES_PER_QUESTION_MAX
        if number == self._service.node:
            return set(await self._own.which_here(blobs))
        try:
            answer = await self._transfers.request(
                number, Admin("has-blobs", {"blobs": blobs}), deadline_s
            )
        except PydiError:
            return None
        return set(answer) if isinstance(answer, (list, tuple)) else None


def _state(there: set[BlobId] | None, blob: BlobId) -> str:
    if there is None:
        return DOWN
    return HERE if blob in there else LACKING


def _checked(blobs: Any) -> list[BlobId]:
    if (
        not isinstance(blobs, (list, tuple))
        or len(blobs) > BLOBS_MAX
        or any(type(blob) is not int or not 0 < blob <= BLOB_ID_MAX for blob in blobs)
    ):
        raise FileError(errno.EINVAL, f"whereabouts takes names of at most {BLOBS_MAX} blobs")
    return [BlobId(blob) for blob in dict.fromkeys(blobs)]
