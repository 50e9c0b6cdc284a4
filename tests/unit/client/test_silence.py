"""A client whose node falls silent trusts nothing that it has cached, and goes to another node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pydi_fs.client import Client, connection
from pydi_node.wire.events import PingReceived, RequestReceived
from pydi_node.wire.messages import Nodes
from tests.unit.client.stand_ins import Node, hangs, run, says_welcome, serving

NEVER_S = 3600.0


def set_times(
    monkeypatch: pytest.MonkeyPatch, doubt_s: float, dead_s: float, suspect_s: float = NEVER_S
) -> None:
    monkeypatch.setattr(connection, "SILENCE_PING_S", 0.05)
    monkeypatch.setattr(connection, "SILENCE_SUSPECT_S", suspect_s)
    monkeypatch.setattr(connection, "SILENCE_DOUBT_S", doubt_s)
    monkeypatch.setattr(connection, "SILENCE_DEAD_S", dead_s)


def test_idle_mount_trusts_no_cache_when_its_node_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked and nothing heard. While the node answers pings the caches stay; when it
    does not any more they are dropped, before the connection is given up."""
    set_times(monkeypatch, 1.0, NEVER_S)

    async def test() -> None:
        async with serving(tmp_path / "a", says_welcome, answer_of) as node:
            client = Client([node.endpoint])
            await client.connect()
            dropped = asyncio.Event()
            client.on_reset = dropped.set
            await client.subscribe()
            for _ in range(10):
                node.pinged.clear()
                await node.pinged.wait()
            assert not dropped.is_set()
            node.hangs = True
            await dropped.wait()
            assert not node.left.is_set()
            await client.close()
            await node.left.wait()

    run(test())


@pytest.mark.expects_log("has not answered for .* connection dropped")
def test_idle_mount_leaves_a_node_that_stays_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to another node though nobody waits for an answer."""
    set_times(monkeypatch, 1.0, 1.5)

    async def test() -> None:
        async with (
            serving(tmp_path / "a", says_welcome, answer_of) as first,
            serving(tmp_path / "b", says_welcome, answer_of) as second,
        ):
            client = Client([first.endpoint, second.endpoint])
            await client.connect()
            await client.subscribe()
            first.hangs = True
            await second.connected.wait()
            await first.left.wait()
            await client.close()
            await second.left.wait()

    run(test())


@pytest.mark.expects_log("is silent, another node is asked now")
def test_a_silent_node_is_left_as_soon_as_another_one_welcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before it is given up: a request that waits there is answered by the other one. A third
    node, which hangs as well, is no reason to wait."""
    set_times(monkeypatch, NEVER_S, NEVER_S, suspect_s=0.3)

    async def test() -> None:
        async with (
            serving(tmp_path / "a", says_welcome, answer_of) as first,
            serving(tmp_path / "b", hangs, answer_of) as second,
            serving(tmp_path / "c", says_welcome, answer_of) as third,
        ):
            client = Client([first.endpoint, second.endpoint, third.endpoint])
            await client.connect()
            await client.subscribe()
            first.hangs = True
            assert not await client.call(Nodes())
            assert third.connected.is_set()
            await first.left.wait()
            await second.left.wait()
            await client.close()
            await third.left.wait()

    run(test())


def test_a_silent_node_that_speaks_again_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers before the other node welcomes: nothing is dropped, and the other one is left."""
    set_times(monkeypatch, NEVER_S, NEVER_S, suspect_s=0.3)

    async def test() -> None:
        async with serving(tmp_path / "a", says_welcome, answer_of) as first:

            def welcomes_late(other: Node) -> list[bytes]:
                client._connection._hear()  # type: ignore[union-attr]
                return says_welcome(other)

            async with serving(tmp_path / "b", welcomes_late, answer_of) as second:
                client = Client([first.endpoint, second.endpoint])
                await client.connect()
                await client.subscribe()
                dropped = asyncio.Event()
                client.on_reset = dropped.set
                first.hangs = True
                await second.left.wait()
                assert not first.left.is_set()
                assert not dropped.is_set()
                await client.close()
                await first.left.wait()

    run(test())


def answer_of(node: Node, event: object) -> list[bytes]:
    """Subscribe and Nodes are answered, and pings while it doesn't hang."""
    match event:
        case RequestReceived(request_id, request):
            value = {"Nodes": [], "Lease": 900}.get(type(request).__name__)
            return list(node.session.send_answer(request_id, value))
        case PingReceived(token):
            node.pinged.set()
            return list(node.session.send_pong(token))
    return []
