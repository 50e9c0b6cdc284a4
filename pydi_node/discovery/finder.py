"""Finding the nodes of one cluster with a token and no address.

Used by a node that joins and by mounts and commands with a token. It asks on every interface and
listens to what nodes say unasked; ``found`` is what is known so far, ``diagnosis`` one sentence for
a person who waits for more. It never tells who may be trusted: TLS does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydi_node.discovery.beacon import (
    INSTANCE_BYTES,
    NONCE_BYTES,
    WINDOW_MS,
    Beacon,
    Ear,
    Ignored,
    Question,
    pack_question,
)
from pydi_node.discovery.group import GROUP_DEFAULT, WILDCARDS, Group
from pydi_node.discovery.multicast import Interface, Multicast, selected

ASK_PERIOD_S: Final = 0.5  # a datagram may be lost, and a node may have started just now
ADDRESSES_MAX: Final = 8  # of one node, newest first
FOUND_MAX: Final = 256  # nodes remembered; more would be a flood by somebody with a token


class Found(NamedTuple):
    """One node, as it described itself last."""

    number: int
    addresses: tuple[tuple[str, int], ...]  # host, port
    versions: tuple[int, ...]  # of the wire protocol
    skew_ms: int  # its clock less ours, when it answered a question; else 0


def addresses_of(beacon: Beacon, source: str) -> tuple[tuple[str, int], ...]:
    """Where the node is served, by what it says; a wildcard is where its datagram came from."""
    found = []
    for text in beacon.addresses:
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host in WILDCARDS:
            host = source
        if host and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535:
            found.append((host, int(port)))
    return tuple(found)


class Finder:
    """Looks for one cluster while it is open (``async with``)."""

    def __init__(
        self,
        cluster: str,
        key: bytes,
        group: Group = GROUP_DEFAULT,
        wanted: Sequence[str] = (),
    ) -> None:
        """cluster, key  of the token. wanted: addresses of the interfaces to use; none: all."""
        self._cluster = cluster
        self._key = key
        self._nonce = os.urandom(NONCE_BYTES)
        self._ear = Ear(cluster, (key,), os.urandom(INSTANCE_BYTES), self._nonce)
        self._heard = asyncio.Event()
        self._asker: asyncio.Task[None] | None = None
        self.found: dict[int, Found] = {}

        def choose(interfaces: list[Interface]) -> list[Interface]:
            return selected(interfaces, "::", wanted)

        self._multicast = Multicast(group, choose, self._on_datagram)

    async def __aenter__(self) -> Finder:
        self._asker = asyncio.get_running_loop().create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._asker is not None
        self._asker.cancel()
        await asyncio.gather(self._asker, return_exceptions=True)
        self._multicast.close()

    async def wait_heard(self, timeout_s: float) -> bool:
        """Something was heard since the last call, or the time has passed (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._heard.wait()
        except TimeoutError:
            return False
        self._heard.clear()
        return True

    async def wait_found(self, timeout_s: float) -> bool:
        """A node is known, or the time has passed (False)."""
        end_s = asyncio.get_running_loop().time() + timeout_s
        while not self.found:
            if not await self.wait_heard(end_s - asyncio.get_running_loop().time()):
                return False
        return True

    def clock_trouble(self) -> str | None:
        """A sentence when a node's answer proves that its clock and ours are too far apart."""
        for node in self.found.values():
            if abs(node.skew_ms) > WINDOW_MS:
                seconds = abs(node.skew_ms) // 1000
                which = "behind" if node.skew_ms > 0 else "ahead of"
                return (
                    f"this machine's clock is {seconds} s {which} that of node {node.number}:"
                    " set it (a time service such as chrony keeps it right)"
                )
        return None

    def diagnosis(self) -> str:
        """Why nothing that can be used was found, as far as it can be told."""
        trouble = self.clock_trouble()
        counts = self._ear.counts
        if trouble is not None:
            return trouble
        if counts[Ignored.FORGED]:
            return (
                f"nodes of cluster {self._cluster[:8]} are here, but the token is not theirs:"
                " was the cluster's secret changed? copy the token again"
            )
        if counts[Ignored.OLD]:
            return "nodes are here, but their clocks or this machine's are off by minutes: set them"
        if not self._multicast.interfaces:
            return "no network interface here can multicast: name a node's address"
        if len(self._multicast.troubles) == len({i.name for i in self._multicast.interfaces}):
            name, reason = sorted(self._multicast.troubles.items())[0]
            return f"nothing can be sent by multicast ({name}: {reason}): name a node's address"
        if self._ear.others:
            other = next(reversed(self._ear.others))
            return (
                f"no node of cluster {self._cluster[:8]} answers, but one of cluster {other[:8]}"
                " is here: is it the right token?"
            )
        return (
            f"no node of cluster {self._cluster[:8]} answers on this network: start one, or name"
            " the address of one that multicast does not reach"
        )

    # --- inner ------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while True:
            try:
                self._multicast.refresh()
            except OSError as exc:
                self._multicast.troubles["*"] = exc.strerror or str(exc)
            now_ms = time.time_ns() // 1_000_000
            question = Question(self._nonce, now_ms)
            self._multicast.send(pack_question(question, self._cluster, self._key))
            await asyncio.sleep(ASK_PERIOD_S)

    def _on_datagram(self, datagram: bytes, host: str, _port: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        said: Any = self._ear.hear(datagram, now_ms)
        if not isinstance(said, Beacon):
            return
        addresses = addresses_of(said, host)
        if not addresses or (said.number not in self.found and len(self.found) >= FOUND_MAX):
            return
        before = self.found.get(said.number)
        skew_ms = said.time_ms - now_ms if said.nonce else before.skew_ms if before else 0
        if before is not None:
            # All of its addresses that were heard: one of them is reached from here.
            addresses = tuple(dict.fromkeys((*addresses, *before.addresses)))[:ADDRESSES_MAX]
        self.found[said.number] = Found(said.number, addresses, said.versions, skew_ms)
        self._heard.set()
