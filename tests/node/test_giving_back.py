"""Directories that are delegated to a mount, when something goes wrong: what it has reserved, asked
for, or can't tell, must neither be believed too long nor hold others up."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs import numbers as numbers_module
from pydi_fs.vfs import owed
from pydi_node import portable
from pydi_node.commands import (
    ROOT_CALLER,
    Caller,
    Command,
    Mkdir,
    PutFile,
    SetAttr,
    Undelegate,
)
from pydi_node.errors import DeadlineError, NoSpaceError
from pydi_node.ids import ROOT_INO
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import (
    DelegatingMount,
    _nothing_by_itself,
    eventually,
    run,
)
from tests.unit.tree.driver import file_error

__all__ = ["_nothing_by_itself"]


def test_numbers_of_a_session_that_may_have_ended_are_not_used(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that did nothing for a weekend has no session in the tree, and no numbers."""

    async def scenario(holder: DelegatingMount, _: DelegatingMount) -> None:
        old, fh = await holder.begin(b"old")
        await holder.end(fh)
        left = list(holder.vfs._delegations.numbers.left)
        now_s = portable.uptime_s() + numbers_module.NUMBERS_S
        monkeypatch.setattr(portable, "uptime_s", lambda: now_s)
        monkeypatch.setattr(holder.client, "lease_s", lambda: 1.0)
        first, fh = await holder.vfs.create(ROOT_CALLER, holder.at, b"f", 0o644, os.O_WRONLY)
        await holder.end(fh)
        await eventually(lambda: bool(holder.vfs._delegations.numbers.left))
        second, fh = await holder.begin(b"g")
        await holder.end(fh)
        assert first.ino not in left[0]
        assert second not in left[0]
        assert second > first.ino > old

    run(node, tmp_path, scenario)


def test_a_directory_is_given_back_while_another_one_waits(
    node: NodeProcess, tmp_path: Path
) -> None:
    """What can't be told of one directory holds up nobody who looks into another one."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        holder.changed_nothing_lately()
        second = (await holder.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        await holder.wait_delegated(second)
        _, fh = await holder.begin(b"f")
        delegations = holder.vfs._delegations
        with holder.failing(PutFile, NoSpaceError("as if the disk were full")):
            delegations._owe((holder.at,))
            await eventually(lambda: delegations._owed.waits)
            began_s = asyncio.get_running_loop().time()
            assert await other.names(second) == []
            assert asyncio.get_running_loop().time() - began_s < 2.0, "nobody gave it back"
        await holder.end(fh)

    run(node, tmp_path, scenario)


def test_what_gives_a_directory_back_takes_effect_once(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of it that comes late must not end what was delegated since: nobody would notice."""

    async def scenario(holder: DelegatingMount, _: DelegatingMount) -> None:
        execute = holder.client.execute
        serials = []

        async def losing(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, Undelegate):
                serials.append(options["serial"])
                if len(serials) == 1:
                    raise DeadlineError("as if there were no answer in time")
            return await execute(command, *arguments, **options)

        monkeypatch.setattr(holder.client, "execute", losing)
        monkeypatch.setattr(owed, "RETRY_S", 0.01)
        holder.vfs._delegations._owe((holder.at,))
        await eventually(lambda: not holder.vfs._delegations._owed)
        assert len(serials) == 2
        assert len(set(serials)) == 1

    run(node, tmp_path, scenario)


def test_a_directory_is_not_asked_for_while_a_command_in_it_may_come_late(
    node: NodeProcess, tmp_path: Path
) -> None:
    """Its name would be taken for absent, and a file made there that the cluster must refuse."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        at = (await other.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        lost = holder.failing(Mkdir, DeadlineError("as if there were no answer in time"))
        with lost, pytest.raises(DeadlineError):
            await holder.vfs.mkdir(ROOT_CALLER, at, b"late", 0o755)
        for name in (b"1", b"2", b"3"):
            _, fh = await holder.vfs.create(ROOT_CALLER, at, name, 0o644, os.O_WRONLY)
            await holder.end(fh)
        assert at not in holder.vfs._delegations._asking
        assert at not in holder.vfs._delegations._held

    run(node, tmp_path, scenario)


def test_what_is_asked_for_at_the_end_is_given_back(node: NodeProcess, tmp_path: Path) -> None:
    """umount right after mkdir: whoever looks next does not wait for a mount that is gone."""

    async def scenario(_: DelegatingMount, other: DelegatingMount) -> None:
        async with DelegatingMount(node, tmp_path / "c") as leaving:
            made = await leaving.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)
            await leaving.wait_delegated(made.ino)
            leaving.changed_nothing_lately()
            last = await leaving.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"f", 0o755)
            await eventually(lambda: "Execute" in leaving.client.sent[1:])
            assert last.ino in leaving.vfs._delegations._asking
        began_s = asyncio.get_running_loop().time()
        assert await other.names(last.ino) == []
        assert asyncio.get_running_loop().time() - began_s < 2.0, "nobody gave it back"

    run(node, tmp_path, scenario)


def test_what_is_granted_at_the_end_is_given_back(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant comes while the end waits for something else."""

    async def scenario(_: DelegatingMount, other: DelegatingMount) -> None:
        async with DelegatingMount(node, tmp_path / "c") as maker:
            at = (await maker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        async with DelegatingMount(node, tmp_path / "c") as leaving:
            await leaving.vfs.getattr(at)
            delegations = leaving.vfs._delegations
            stop = delegations.numbers.stop

            async def slow() -> None:
                await eventually(lambda: at in delegations._held)
                await stop()

            monkeypatch.setattr(delegations.numbers, "stop", slow)
            assert delegations._ask(at)
        assert not delegations._held
        began_s = asyncio.get_running_loop().time()
        assert await other.names(at) == []
        assert asyncio.get_running_loop().time() - began_s < 2.0, "nobody gave it back"

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(
    r"ino=\d+: not created, its directory was taken back",
    r"ino=\d+: not published at close: Stale file handle",
)
def test_what_is_not_permitted_any_more_is_lost(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not tried for ever: the name would be shown here, and come nowhere."""
    caller = Caller(7, 7, ())

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        await holder.vfs.setattr(ROOT_CALLER, holder.at, mode=0o777)
        attr, fh = await holder.vfs.create(caller, holder.at, b"f", 0o644, os.O_WRONLY)
        assert holder.is_pending(attr.ino)
        # As a change of mode that was under way while the file was made.
        monkeypatch.setattr(holder.client, "before", lambda request: None)
        await holder.client.execute(SetAttr(ROOT_CALLER, holder.at, mode=0o755))
        with file_error(errno.ESTALE):
            await holder.end(fh)
        assert not holder.vfs._delegations.pending
        with file_error(errno.ENOENT):
            await holder.vfs.lookup(holder.at, b"f")

    run(node, tmp_path, scenario)
