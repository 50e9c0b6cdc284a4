"""A node's side of discovery: it says where it is, answers who asks, and hears where others are.

Made by node.py. Hints only: a beacon names an address where a *known* member may be found (peers.py
tries it when the ones it has don't work), and whoever looks for the cluster proves everything else
over TLS. It must never end the node: a machine without multicast works with ``--peer``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydi_node import __version__
from pydi_node.config import Address
from pydi_node.discovery.beacon import (
    INSTANCE_BYTES,
    Beacon,
    Ear,
    Question,
    pack_beacon,
)
from pydi_node.discovery.finder import addresses_of
from pydi_node.discovery.group import Group
from pydi_node.discovery.multicast import Interface, Multicast, selected
from pydi_node.errors import PydiError
from pydi_node.ids import NodeNumber
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.service import Request
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Admin
from pydi_node.wire.session import PROTOCOL_VERSIONS

_log = logging.getLogger(__name__)

BEACON_PERIOD_S = 1.5  # a node that got a new address is found again within it; ~200 bytes each
# At most so many answers a second, whoever asks: a question that somebody repeats with another
# sender's address must not make nodes flood that one.
ANSWERS_PER_S = 50
ASK_TIMEOUT_S = 2.0


class Discovery:
    """See the module's text."""

    def __init__(
        self,
        keyring: Keyring,
        node: NodeNumber,
        peers: Peers,
        group: Group,
        wanted: Sequence[str],
    ) -> None:
        """wanted: addresses of the interfaces to use; none: those that reach where it is served."""
        self._keyring = keyring
        self._node = node
        self._peers = peers
        self._instance = os.urandom(INSTANCE_BYTES)
        self._ear = Ear(keyring.cluster, self._keys(), self._instance)
        self._last_ms = 0
        self._answers_left = float(ANSWERS_PER_S)
        self._answered_s = 0.0
        self._wanted = tuple(wanted)
        self._multicast = Multicast(group, self._choose, self._on_datagram)
        self._is_silent = False
        self._heard_s: dict[NodeNumber, float] = {}  # members' last beacons, monotonic
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {"discovery": self._about}

    async def run(self) -> None:
        """Beacons until cancelled."""
        try:
            while True:
                self._refresh()
                self._ear.keys = self._keys()
                sent = sum([self._multicast.send(self._beacon(key)) for key in self._ear.keys])
                if self._is_silent != (sent == 0):
                    self._is_silent = sent == 0
                    _log.info("%s", self._why_silent() if self._is_silent else "multicast works")
                await asyncio.sleep(BEACON_PERIOD_S)
        finally:
            self._multicast.close()

    def _refresh(self) -> None:
        try:
            self._multicast.refresh()
        except OSError as exc:
            self._multicast.troubles["*"] = exc.strerror or str(exc)

    def _why_silent(self) -> str:
        troubles = sorted(self._multicast.troubles.items())
        reason = ", ".join(f"{name}: {why}" for name, why in troubles) or "no interface for it"
        return f"no multicast here ({reason}): others find this node by --peer only"

    def _choose(self, found: list[Interface]) -> list[Interface]:
        return selected(found, self._peers.address.host, self._wanted)

    def _keys(self) -> tuple[bytes, ...]:
        return tuple(credentials.beacon_key for credentials in self._keyring.credentials)

    def _beacon(self, key: bytes, nonce: bytes = b"") -> bytes:
        # Grows with each, so that none is taken for another's repetition.
        self._last_ms = max(self._last_ms + 1, time.time_ns() // 1_000_000)
        beacon = Beacon(
            self._instance, self._last_ms, self._node, (str(self._peers.address),),
            PROTOCOL_VERSIONS, nonce,
        )  # fmt: skip
        return pack_beacon(beacon, self._keyring.cluster, key)

    def _on_datagram(self, datagram: bytes, host: str, port: int) -> None:
        self._ear.keys = self._keys()
        said = self._ear.hear(datagram, time.time_ns() // 1_000_000)
        if isinstance(said, Question):
            if self._may_answer():
                self._multicast.send_to(self._beacon(self._ear.key, said.nonce), host, port)
        elif said is not None:
            if said.number in self._peers.members:
                self._heard_s[NodeNumber(said.number)] = time.monotonic()
            addresses = [Address(*address) for address in addresses_of(said, host)]
            self._peers.on_beacon(NodeNumber(said.number), addresses)

    def _may_answer(self) -> bool:
        now_s = time.monotonic()
        gained = (now_s - self._answered_s) * ANSWERS_PER_S
        self._answered_s = now_s
        self._answers_left = min(self._answers_left + gained, float(ANSWERS_PER_S))
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True

    def _about(self, request: Request, arguments: dict[str, Any]) -> Any:
        """For `pydi doctor`: where this node speaks, and what it ignored; with ``all`` those parts
        of every node that answers, by number."""
        return self._ask_all(request) if arguments.get("all") is True else self._own_part()

    async def _ask_all(self, request: Request) -> dict[str, Any]:
        deadline_s = min(request.deadline_s, asyncio.get_running_loop().time() + ASK_TIMEOUT_S)

        async def ask(number: NodeNumber) -> Any:
            try:
                return await self._peers.request(number, Admin("discovery"), deadline_s)
            except PydiError:
                return None

        numbers = sorted(self._peers.members)
        parts = await asyncio.gather(*[ask(number) for number in numbers])
        found = {str(n): part for n, part in zip(numbers, parts, strict=True) if part is not None}
        return {**found, str(self._node): self._own_part()}

    def _own_part(self) -> dict[str, Any]:
        now_s = time.monotonic()
        return {
            "version": __version__,
            "heard": {str(number): now_s - at_s for number, at_s in self._heard_s.items()},
            "interfaces": sorted({i.name for i in self._multicast.interfaces}),
            "troubles": dict(self._multicast.troubles),
            "ignored": {str(reason): count for reason, count in self._ear.counts.items()},
            "other_clusters": list(self._ear.others),
            "time_ms": time.time_ns() // 1_000_000,
        }
