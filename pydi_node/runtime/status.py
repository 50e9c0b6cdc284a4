"""``pydi status``: the one JSON object of DESIGN section 9, put together from every room.

A verb of Admin. Each node fills in what it knows of itself and asks the connected others for their
part; whoever does not answer is shown as the books have it.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

from pydi_node.blobs.repair import factor_max, health
from pydi_node.errors import PydiError
from pydi_node.ids import BlobId, NodeNumber
from pydi_node.runtime.advice import advise
from pydi_node.runtime.missing import BLOBS_MAX, missing_blobs, missing_paths
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request, Service
from pydi_node.wire.messages import Admin, Role

ASK_TIMEOUT_S = 1.0


class Status:
    """See the module's text."""

    def __init__(self, service: Service, server: Server, peers: Peers) -> None:
        self._service = service
        self._server = server
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "status": self._status,
            "node-status": self._own_part,
        }

    def _own_part(self, _: Request | None, __: dict[str, Any]) -> dict[str, Any]:
        """What only this node knows: its store and its mounts."""
        usage = self._service.store.usage()
        return {
            "applied_index": self._service.tree.applied_index,
            "stored_bytes": usage.stored,
            "free_bytes": usage.free,
            "total_bytes": usage.total,
            "files": usage.files,
            "lease": self._service.driver.is_covered,
            "reads": self._service.reads,
            "read_bytes": self._service.read_bytes,
            "gone_blobs": len(self._service.replication.gone),
            "gone": sorted(self._service.replication.gone)[:BLOBS_MAX],
            "mounts": [
                {
                    "id": f"{self._service.node}.{session.number}",
                    "node": self._service.node,
                    "host": session.host,
                    "driver": str(session.about.get("driver", "unknown")),
                    "passthrough": bool(session.about.get("passthrough", False)),
                    "supervised": bool(session.key),
                    "read_only": session.read_only,
                    "opens": sum(session.opens.values()),
                }
                for session in self._service.sessions.values()
                if session.role is Role.MOUNT
            ],
        }

    async def _status(self, request: Request, _: dict[str, Any]) -> dict[str, Any]:
        deadline_s = min(request.deadline_s, self._loop.time() + ASK_TIMEOUT_S)
        replica = self._service.driver.replica
        quorum = await self._service.driver.is_current(deadline_s)
        raft, tree = replica.raft, replica.tree
        books = {info.number: info for info in tree.nodes()}
        numbers = sorted({m.number for m in raft.membership.members} | books.keys())
        numbers = [n for n in numbers if n not in books or books[n].state != "forgotten"]
        parts = await asyncio.gather(*[self._part(number, deadline_s) for number in numbers])
        nodes: list[dict[str, Any]] = []
        mounts: list[dict[str, Any]] = []
        for number, part in zip(numbers, parts, strict=True):
            member = raft.membership.member(number)
            info = books.get(number)
            state = "down" if part is None else "draining" if _drains(info) else "up"
            address = self._peers.address_of(number)
            nodes.append(
                {
                    "number": number,
                    "address": str(address) if address else "",
                    "state": state,
                    # As this node saw it; null when it never saw the other one, or it is up.
                    "down_since_ns": self._peers.lost_ns.get(number) if part is None else None,
                    "role": _role(info, member),
                    "witness": info is not None and info.witness,
                    # Whether it answers from its own tree: changes wait until it knows of them.
                    "lease": part is not None and bool(part.get("lease", False)),
                    **{
                        key: part[key] if part else 0
                        for key in (
                            "applied_index", "stored_bytes", "free_bytes", "total_bytes", "files",
                        )
                    },
                    # Since it was started; a node of an older version does not count.
                    "reads": part.get("reads", 0) if part else 0,
                    "read_bytes": part.get("read_bytes", 0) if part else 0,
                }
            )  # fmt: skip
            mounts += part["mounts"] if part else []
        copies = tree.settings()["replicas"]
        reachable = {n for n, part in zip(numbers, parts, strict=True) if part is not None}
        gone = sum(int(part.get("gone_blobs", 0)) for part in parts if part is not None)
        totals = tree.blob_totals()
        for node in nodes:
            node["held"] = sum(t.blobs for t in totals if node["number"] in t.holders)
        blobs = health(totals, reachable, copies, gone)._asdict()
        advice = advise(nodes, blobs, quorum, factor_max(totals, copies))
        lost = missing_blobs(tree, reachable) if blobs["missing"] else []
        lost += [BlobId(blob) for part in parts if part is not None for blob in _gone(part)]
        change = tree.secret_change()
        if change is not None and change.sealed_old:
            advice.append(
                "the cluster's secret is being changed: old tokens work until"
                f" {datetime.datetime.fromtimestamp(change.ends_s, datetime.UTC):%Y-%m-%d %H:%M}"
                " UTC, or pydi token rotate --finish"
            )
        if replica.space_is_short:
            advice.append(f"the disk of node {self._service.node} is full: make room on it")
        return {
            "cluster": self._service.cluster,
            "leader": raft.leader,
            "term": raft.term,
            "quorum": quorum,
            "node": self._service.node,
            "applied_index": tree.applied_index,
            "nodes": nodes,
            "blobs": {**blobs, "missing_paths": await missing_paths(tree, lost)},
            "mounts": mounts,
            "advice": advice,
        }

    async def _part(self, number: NodeNumber, deadline_s: float) -> dict[str, Any] | None:
        if number == self._service.node:
            return self._own_part(None, {})
        try:
            part = await self._peers.request(number, Admin("node-status"), deadline_s)
        except PydiError:
            return None  # shown as down, which is all that is known
        return part if isinstance(part, dict) and part.keys() >= _PART_KEYS else None


def _gone(part: dict[str, Any]) -> list[int]:
    """What another node says of its lost blobs, as far as it makes sense."""
    blobs = part.get("gone", [])
    return [b for b in blobs if type(b) is int] if isinstance(blobs, (list, tuple)) else []


_PART_KEYS = {"applied_index", "stored_bytes", "free_bytes", "total_bytes", "files", "mounts"}


def _drains(info: Any) -> bool:
    return info is not None and info.state == "draining"


def _role(info: Any, member: Any) -> str:
    if member is not None and member.voter:
        return "witness" if info is not None and info.witness else "voter"
    return "learner"
