"""Which node a client ends up with when some are dead, hang, or refuse it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pydi_fs.client import Client, UnixEndpoint, connection
from pydi_node.errors import EXIT_UNREACHABLE, UserError
from tests.unit.client.stand_ins import hangs, refuses, run, says_welcome, serving

NEVER_S = 3600.0


def test_a_node_that_hangs_keeps_nobody_from_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three nodes accept the connection and say nothing: the client is with the third
    without having waited for them to time out, and hangs up on them."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", NEVER_S)

    async def test() -> None:
        async with (
            serving(tmp_path / "a", hangs) as first,
            serving(tmp_path / "b", hangs) as second,
            serving(tmp_path / "c", says_welcome) as third,
        ):
            client = Client([node.endpoint for node in (first, second, third)])
            await client.connect()
            assert client.epoch == 1
            assert not third.left.is_set()
            await first.left.wait()
            await second.left.wait()
            await client.close()
            await third.left.wait()

    run(test())


def test_the_nearest_node_is_asked_alone_when_it_answers(tmp_path: Path) -> None:
    """The others are not bothered while the first one answers at once."""

    async def test() -> None:
        async with (
            serving(tmp_path / "a", says_welcome) as first,
            serving(tmp_path / "b", says_welcome) as second,
        ):
            client = Client([first.endpoint, second.endpoint])
            await client.connect()
            await client.close()
            await first.left.wait()
            assert not second.connected.is_set()

    run(test())


def test_all_refuse_or_are_dead(tmp_path: Path) -> None:
    """Nobody there, and one that refuses: one sentence, and the exit code for it."""

    async def test() -> None:
        async with serving(tmp_path / "a", refuses) as first:
            client = Client([first.endpoint, UnixEndpoint(tmp_path / "nobody")])
            with pytest.raises(UserError) as raised:
                await client.connect()
            assert raised.value.exit_code == EXIT_UNREACHABLE
            await client.close()

    run(test())


def test_end_of_the_client_ends_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed while it still waits for a node that hangs: it hangs up."""
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", NEVER_S)

    async def test() -> None:
        async with serving(tmp_path / "a", hangs) as node:
            client = Client([node.endpoint])
            connecting = asyncio.ensure_future(client.connect())
            await node.connected.wait()
            await client.close()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await node.left.wait()

    run(test())
