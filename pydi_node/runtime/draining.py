"""``pydi drain N``: a node gives its content to the others, and takes none any more.

Made by node.py. All that happens here is a word in the cluster's books; placement and repair act on
it: no new blob goes to a node that drains, its copies do not count, and each goes from it as soon
as enough others hold the blob. So a drain survives every restart, and stopping it is the same word
taken back.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any

from pydi_node.blobs.placement import NodeState
from pydi_node.commands import SetNode
from pydi_node.errors import FileError, NotLeaderError, UserError
from pydi_node.ids import NODE_NUMBER_MAX, NodeNumber, counted
from pydi_node.records import BlobTotal
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.service import Request, Service
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.messages import Admin, Role

_log = logging.getLogger(__name__)


class Draining:
    """See the module's text."""

    def __init__(self, service: Service, peers: Peers, transfers: Transfers) -> None:
        self._service = service
        self._peers = peers
        self._transfers = transfers
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "drain": self._drain,
            "drain-progress": self._progress,
        }

    async def _drain(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        """Begins or, with ``stop``, ends a drain; how far it is. UserError when it can't get
        anywhere: too few nodes, too little room."""
        if request.session.role is Role.MOUNT:
            raise FileError(errno.EPERM, "a mount's token does not drain nodes")
        number = _number_of(arguments)
        if not self._service.driver.replica.is_leader:
            return await self._ask_leader("drain", arguments, request)
        await self._wait_current(request)
        info = next((i for i in self._service.tree.nodes() if i.number == number), None)
        if info is None or info.state == "forgotten":
            raise UserError(f"node {number} is no member of this cluster")
        if info.witness:
            raise UserError(f"node {number} is a witness: it holds no content")
        state = "up" if arguments.get("stop") is True else "draining"
        if state == "draining":
            why = self._obstacle(number)
            if why is not None:
                raise UserError(why)
        if state != info.state:
            command = SetNode(number, info.address, state, info.witness)
            await self._service.housekeep(command, request.deadline_s)
            _log.info("node %d is %s", number, "draining" if state == "draining" else "in use")
        return self._report(number)

    async def _progress(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        number = _number_of(arguments)
        if not self._service.driver.replica.is_leader:
            return await self._ask_leader("drain-progress", arguments, request)
        await self._wait_current(request)
        return self._report(number)

    async def _ask_leader(
        self, verb: str, arguments: dict[str, Any], request: Request
    ) -> dict[str, Any]:
        """The leader's answer: it knows best who is there, for it repairs."""
        leader = self._service.driver.replica.raft.leader
        if leader is None or leader == self._service.node:
            raise NotLeaderError(None)
        answer: dict[str, Any] = await self._peers.request(
            leader, Admin(verb, arguments), request.deadline_s
        )
        return answer

    async def _wait_current(self, request: Request) -> None:
        if not await self._service.driver.wait_current(request.deadline_s):
            raise NotLeaderError(None)

    def _report(self, number: NodeNumber) -> dict[str, Any]:
        tree = self._service.tree
        held = [total for total in tree.blob_totals() if number in total.holders]
        info = next((i for i in tree.nodes() if i.number == number), None)
        return {
            "number": number,
            "state": info.state if info is not None else "forgotten",
            "blobs": sum(total.blobs for total in held),
            "bytes": sum(total.bytes for total in held),
            "obstacle": self._obstacle(number),
        }

    def _obstacle(self, number: NodeNumber) -> str | None:
        tree = self._service.tree
        default = tree.settings()["replicas"]
        return obstacle(number, tree.blob_totals(), self._transfers.states(for_new=False), default)


def obstacle(
    number: NodeNumber, totals: Sequence[BlobTotal], nodes: Sequence[NodeState], default: int
) -> str | None:
    """Why that node can't be emptied now, and what helps; None when it can, or is empty. Pure.

    nodes    every member, each number once.
    default  copies of a blob for which no directory asks for another number.
    """
    held = [total for total in totals if number in total.holders]
    if not held:
        return None
    copies = max(total.factor or default for total in held)
    others = [n for n in nodes if n.number != number and not n.draining and not n.witness]
    up = [n for n in others if n.up]
    is_up = any(n.number == number and n.up for n in nodes)
    alone = sum(total.blobs for total in held if total.holders == (number,))
    if not is_up and alone:
        return f"node {number} is down and has the only copy of {counted(alone, 'blob')}: start it"
    if len(up) < copies:
        there = counted(len(up), "node")
        return (
            f"its content should have {copies} copies, and beside node {number} there"
            f" {'is' if len(up) == 1 else 'are'} {there} for content:"
            f" {'start or add nodes' if len(others) > len(up) else 'add a node'},"
            " or ask for fewer copies"
        )
    needed, room = sum(total.bytes for total in held), sum(n.free_bytes for n in up)
    if needed > room:
        return (
            f"node {number} holds {needed} bytes, and the others have room for {room}:"
            " add a node, or delete files"
        )
    return None


def _number_of(arguments: dict[str, Any]) -> NodeNumber:
    number = arguments.get("number")
    if type(number) is not int or not 1 <= number <= NODE_NUMBER_MAX:
        raise UserError("drain takes the number of a node")
    return NodeNumber(number)
