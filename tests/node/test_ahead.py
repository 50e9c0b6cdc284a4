"""Directories that are asked for before a program comes to them: what it sees in them is what is
there, whoever changed it, and what others use is left to them.

Mounts of one node, in this process, as in test_whole_trees.py.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs import occasions
from pydi_node.commands import RENAME_EXCHANGE, RENAME_NOREPLACE, ROOT_CALLER, Command, Link
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import DirEntry
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import DelegatingMount, eventually, logs
from tests.node.test_queued_changes import asked, make
from tests.node.test_whole_trees import FILES, _nothing_by_itself, run, settled

__all__ = ["_nothing_by_itself", "logs"]

S_IFIFO = 0o010000
ALL = {b"f%d" % number for number in range(FILES)}


async def entries(mount: DelegatingMount, at: Ino) -> dict[bytes, Ino]:
    fh = await mount.vfs.opendir(at)
    try:
        return {entry.name: entry.attr.ino for entry in await mount.vfs.readdir(fh, 0, 1000)}
    finally:
        await mount.vfs.releasedir(fh)


async def go_through(mount: DelegatingMount, top: Ino, directories: Sequence[Ino]) -> None:
    """As a program does that changes something in the first ones and comes to the others later."""
    await mount.names(top)
    for at in directories[:3]:
        await mount.vfs.unlink(ROOT_CALLER, at, b"f0")


# --- commands of this mount -----------------------------------------------------------------------

# (the mount, the directory, another one) -> what the directory has then
Change = Callable[[DelegatingMount, Ino, Ino], Awaitable[set[bytes]]]


async def _link(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.link(ROOT_CALLER, (await mount.vfs.lookup(other, b"f3")).ino, at, b"new")
    return ALL | {b"new"}


async def _mknod(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.mknod(ROOT_CALLER, at, b"new", S_IFIFO | 0o644, 0)
    return ALL | {b"new"}


async def _create(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    flags = os.O_WRONLY | os.O_EXCL
    _, fh = await mount.vfs.create(ROOT_CALLER, at, b"new", 0o4755, flags)
    await mount.end(fh)
    return ALL | {b"new"}


async def _put_file(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.put_file(ROOT_CALLER, at, b"new", 0o644, b"content", 1)
    return ALL | {b"new"}


async def _unlink_linked(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.unlink(ROOT_CALLER, at, b"f1")
    return ALL - {b"f1"}


async def _unlink_open(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    fh = await mount.vfs.open(ROOT_CALLER, (await mount.vfs.lookup(at, b"f2")).ino, os.O_RDONLY)
    await mount.vfs.unlink(ROOT_CALLER, at, b"f2")
    await mount.vfs.release(fh)
    return ALL - {b"f2"}


async def _rename_out(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.rename(ROOT_CALLER, at, b"f1", other, b"moved", 0)
    return ALL - {b"f1"}


async def _rename_in(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    fh = await mount.vfs.open(ROOT_CALLER, (await mount.vfs.lookup(at, b"f2")).ino, os.O_RDONLY)
    await mount.vfs.rename(ROOT_CALLER, other, b"f3", at, b"f2", 0)
    await mount.vfs.release(fh)
    return ALL


async def _exchange(mount: DelegatingMount, at: Ino, other: Ino) -> set[bytes]:
    await mount.vfs.rename(ROOT_CALLER, other, b"f3", at, b"f2", RENAME_EXCHANGE)
    return ALL


@pytest.mark.parametrize(
    "change",
    [
        _link, _mknod, _create, _put_file, _unlink_linked, _unlink_open, _rename_out, _rename_in,
        _exchange,
    ],
)  # fmt: skip
def test_what_was_asked_for_ahead_shows_what_this_mount_has_the_cluster_do(
    node: NodeProcess, tmp_path: Path, change: Change
) -> None:
    """What can't be done here alone is a command, also in a directory whose names are all known."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        at = directories[4]
        linked = (await other.vfs.lookup(at, b"f1")).ino
        await other.vfs.link(ROOT_CALLER, linked, top, b"linked")
        await go_through(mount, top, directories)
        await settled(mount)
        assert mount.vfs._delegations._held[at].listing is not None
        there = await change(mount, at, directories[0])
        shown = await entries(mount, at)
        assert shown.keys() == there
        assert shown == await entries(other, at)

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("ends", ["with the names", "before them"])
def test_a_command_that_is_under_way_when_a_directory_is_granted_is_shown(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """The list of names may be from before it, though the directory was asked for after it began,
    and though it ends before the list is here."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        at, delegations = directories[4], mount.vfs._delegations
        file = (await mount.vfs.lookup(directories[0], b"f3")).ino
        execute, list_names = mount.client.execute, delegations._list_names
        may_link, may_list, is_listed = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def held_up(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, Link):
                await may_link.wait()
            return await execute(command, *arguments, **options)

        async def late(directory: Ino, limit: int) -> Sequence[DirEntry]:
            listed = await list_names(directory, limit)
            if directory == at:
                is_listed.set()
                await may_list.wait()
            return listed

        monkeypatch.setattr(mount.client, "execute", held_up)
        monkeypatch.setattr(delegations, "_list_names", late)
        linking = asyncio.create_task(mount.vfs.link(ROOT_CALLER, file, at, b"new"))
        await asyncio.sleep(0)
        await go_through(mount, top, directories)
        await is_listed.wait()
        if ends == "with the names":
            may_list.set()
            await settled(mount)
        may_link.set()
        await linking
        may_list.set()
        await settled(mount)
        assert delegations.is_complete(at)
        assert (await entries(mount, at)).keys() == ALL | {b"new"}

    run(node, tmp_path, scenario)


def test_a_command_that_begins_and_ends_while_the_names_are_on_their_way_is_shown(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        at, delegations = directories[4], mount.vfs._delegations
        list_names = delegations._list_names
        may_list, is_listed = asyncio.Event(), asyncio.Event()

        async def late(directory: Ino, limit: int) -> Sequence[DirEntry]:
            listed = await list_names(directory, limit)
            if directory == at:
                is_listed.set()
                await may_list.wait()
            return listed

        monkeypatch.setattr(delegations, "_list_names", late)
        await go_through(mount, top, directories)
        await is_listed.wait()
        await mount.vfs.mknod(ROOT_CALLER, at, b"new", S_IFIFO | 0o644, 0)
        may_list.set()
        await settled(mount)
        assert delegations.is_complete(at)
        assert (await entries(mount, at)).keys() == ALL | {b"new"}

    run(node, tmp_path, scenario)


# --- whatever is done -----------------------------------------------------------------------------

OPERATIONS = 150
MANY = 12  # directories
KINDS = [
    *["list"] * 4, *["top"] * 5, *["settle"] * 3, "absent", "unlink", "unlink", "make", "mknod",
    "link", "rename", "replace", "open", "unlink while it is listed",
]  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_changes_are_seen_in_what_is_asked_for_ahead(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """One mount goes through a tree again and again, another looks in now and then. Every listing,
    and every name that is not there, is what a model says."""
    monkeypatch.setattr(occasions.Occasions, "_goes_through", lambda self, now_s: True)
    monkeypatch.setattr(occasions, "RECALLED_MIN_S", 0.0)
    monkeypatch.setattr(occasions, "RECALLED_MAX_S", 0.0)
    monkeypatch.setattr(occasions, "AGAIN_WITHIN_S", 0.1)
    rng = random.Random(f"ahead {seed}")
    model: dict[Ino, dict[bytes, Ino]] = {}
    opened: list[tuple[DelegatingMount, int]] = []
    taken: Counter[bool] = Counter()  # whether a listing was the one that came with the names

    async def step(mount: DelegatingMount, top: Ino, number: int) -> None:
        vfs, at, to = mount.vfs, rng.choice([*model]), rng.choice([*model])
        here, there = model[at], model[to]
        name, new = rng.choice([*here, b"none"]), b"new%d" % (number % 7)
        match rng.choice(KINDS):
            case "list":
                assert await entries(mount, at) == here
            case "top":
                assert len(await mount.names(top)) == MANY
            case "settle":
                await settled(mount)
            case "absent":
                for one in (name, new, b"f0"):
                    known = vfs.lookup_nowait(at, one) if one in here else None
                    assert known is None or known.ino == here[one]
                    assert one in here or not vfs._known(at, one)
            case "unlink" if name in here:
                await vfs.unlink(ROOT_CALLER, at, name)
                del here[name]
            case "make" if new not in here:
                here[new] = await make(mount, new, at)
            case "mknod" if new not in here:
                here[new] = (await vfs.mknod(ROOT_CALLER, at, new, S_IFIFO | 0o644, 0)).ino
            case "link" if name in here and new not in there:
                there[new] = (await vfs.link(ROOT_CALLER, here[name], to, new)).ino
            case "rename" if name in here and new not in there:
                await vfs.rename(ROOT_CALLER, at, name, to, new, RENAME_NOREPLACE)
                there[new] = here.pop(name)
            case "replace" if name in here and there:
                victim = rng.choice([*there])
                if there[victim] != here[name]:
                    await vfs.rename(ROOT_CALLER, at, name, to, victim, 0)
                    there[victim] = here.pop(name)
            case "open" if name in here and (await vfs.getattr(here[name])).is_regular:
                opened.append((mount, await vfs.open(ROOT_CALLER, here[name], os.O_RDONLY)))
            case "unlink while it is listed" if name in here:
                going = asyncio.create_task(vfs.unlink(ROOT_CALLER, at, name))
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                assert (await entries(mount, at)).keys() | {name} == here.keys()
                await going
                del here[name]
                assert await entries(mount, at) == here

    async def main() -> None:
        async with DelegatingMount(node, tmp_path / "c") as maker:
            top = (await maker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"random", 0o755)).ino
            for number in range(MANY):
                at = (await maker.vfs.mkdir(ROOT_CALLER, top, b"d%d" % number, 0o755)).ino
                names = [b"f%d" % file for file in range(rng.randrange(FILES))]
                model[at] = {name: await make(maker, name, at) for name in names}
        async with (
            DelegatingMount(node, tmp_path / "b") as other,
            DelegatingMount(node, tmp_path / "a") as mount,
        ):
            delegations = mount.vfs._delegations
            take_listing = delegations.take_listing

            async def counting(directory: Ino) -> list[DirEntry] | None:
                listing = await take_listing(directory)
                taken[listing is not None] += 1
                return listing

            monkeypatch.setattr(delegations, "take_listing", counting)
            await mount.names(top)
            await settled(mount)
            for number in range(OPERATIONS):
                await step(mount if rng.random() < 0.85 else other, top, number)
                while len(opened) > 3:
                    opener, fh = opened.pop(0)
                    await opener.vfs.release(fh)
            for opener, fh in opened:
                await opener.vfs.release(fh)
            for at, there in model.items():
                assert await entries(mount, at) == await entries(other, at) == there
            await settled(mount)
            asked_for = {*delegations._held, *delegations._asking}
            assert asked_for >= delegations.occasions._ahead.keys(), "others are not asked for"
        assert taken[True]

    asyncio.run(main())


# --- what others use ------------------------------------------------------------------------------


def test_who_reads_what_another_mount_holds_has_few_directories_asked_for(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer says that it is not given: that is no place for the next one."""
    monkeypatch.setattr(occasions, "AGAIN_WITHIN_S", 3600.0)

    async def main() -> None:
        async with (
            DelegatingMount(node, tmp_path / "b") as holder,
            DelegatingMount(node, tmp_path / "a") as mount,
        ):
            top = (await holder.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"held", 0o755)).ino
            directories = []
            for number in range(3 * occasions.AHEAD_MAX):
                made = await holder.vfs.mkdir(ROOT_CALLER, top, b"d%d" % number, 0o755)
                directories.append(made.ino)
            for name in (b"x", b"y"):
                at = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, name, 0o755)).ino
                mount.vfs._delegations.occasions.is_one(at, asyncio.get_running_loop().time())
            await settled(mount)
            asked(mount)
            for at in (top, *directories):
                await mount.names(at)
                await eventually(lambda: not mount.vfs._delegations._asking)
            assert asked(mount).count("Delegate") == occasions.AHEAD_MAX

    asyncio.run(main())
