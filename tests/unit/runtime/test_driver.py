"""How a node asks whether its tree is as new as any, while the answer is long in coming."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pydi_node.config import Address
from pydi_node.errors import DeadlineError
from pydi_node.runtime.admission import Admission
from pydi_node.runtime.replication import Replication
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request
from pydi_node.runtime.status import Status
from pydi_node.runtime.transfers import Transfers
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Admin
from pydi_node.wire.trust import NodeToken
from tests.unit.runtime.inner import Inner

PATIENCE_S = 0.2
DEADLINE_S = 30.0


@asynccontextmanager
async def leading_behind(path: Path) -> AsyncIterator[tuple[Inner, threading.Event]]:
    """A node that leads and knows it, but whose disk has not yet taken the first entry of its term:
    it can't say how new its tree is until the event is set."""
    inner = Inner(path)
    free = threading.Event()
    sync = inner.log.sync

    def sync_when_free() -> None:
        free.wait(DEADLINE_S)
        sync()

    inner.log.sync = sync_when_free  # type: ignore[method-assign]  # the disk hangs, nothing else
    inner.driver.start()
    try:
        while inner.driver.replica.raft.leader is None:
            inner.driver.role_changed.clear()
            await inner.driver.role_changed.wait()
        yield inner, free
    finally:
        free.set()
        await inner.__aexit__()


def test_a_node_that_is_behind_says_so(tmp_path: Path) -> None:
    """Whoever needs the newest tree gets DeadlineError; whoever asks whether it is, gets no."""

    async def scenario() -> None:
        async with leading_behind(tmp_path) as (inner, free):
            driver, time = inner.driver, asyncio.get_running_loop().time
            with pytest.raises(DeadlineError):
                await driver.wait_current(time() + PATIENCE_S)
            assert await driver.is_current(time() + PATIENCE_S) is False
            free.set()
            assert await driver.is_current(time() + DEADLINE_S) is True

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_status_is_answered_by_a_node_that_is_behind(tmp_path: Path) -> None:
    """A person asks for the state when something is slow: there is an answer, without a quorum."""

    async def scenario() -> None:
        async with leading_behind(tmp_path) as (inner, _):
            service, peers = inner.service, inner.peers
            transfers = Transfers(peers, inner.store, service.node, inner.streams)
            peers.address = Address("127.0.0.1", 1)
            service.replication = Replication(service, transfers)
            admission = Admission(
                Keyring(NodeToken.new(secrets.token_bytes(48))), service.node, service, peers
            )
            status = Status(
                service, Server(service, admission, peers.receive, inner.streams), peers
            )
            deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
            request = Request(inner.session, Admin("status"), b"", deadline_s)
            state = await status.admin["status"](request, {})
            assert state["quorum"] is False
            assert state["leader"] == inner.service.node

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
