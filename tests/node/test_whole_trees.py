"""Who changes names in one directory after the other has each delegated at its first change, and
the change waits for that: one command a directory.

Two mounts of one node, in this process, as in test_pending_creates.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from pydi_fs.vfs import delegations as delegations_module
from pydi_fs.vfs import holds, occasions, queued
from pydi_node.commands import RENAME_NOREPLACE, ROOT_CALLER, Delegate
from pydi_node.errors import FileError, PydiError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import DirEntry
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import NEVER_S, DelegatingMount, eventually, logs
from tests.node.test_queued_changes import asked, in_cluster, make
from tests.unit.tree.driver import file_error

__all__ = ["logs"]

FILES = 5
DIRECTORIES = 6

# (the mount, the one that made it, the top, the directories)
Scenario = Callable[[DelegatingMount, DelegatingMount, Ino, list[Ino]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _nothing_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued is told because somebody needs it, or not at all."""
    monkeypatch.setattr(delegations_module, "SETTLE_AFTER_S", NEVER_S)
    monkeypatch.setattr(queued, "TELL_AFTER_S", NEVER_S)
    monkeypatch.setattr(holds, "TELL_AFTER_S", NEVER_S)


def run(node: NodeProcess, tmp_path: Path, scenario: Scenario) -> None:
    """With a tree that the mount has not seen; its maker has given it back."""

    async def main() -> None:
        async with DelegatingMount(node, tmp_path / "a") as mount:
            async with DelegatingMount(node, tmp_path / "b") as maker:
                top = (await maker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"t", 0o755)).ino
                directories = []
                for number in range(DIRECTORIES):
                    at = (await maker.vfs.mkdir(ROOT_CALLER, top, b"d%d" % number, 0o755)).ino
                    directories.append(at)
                    for file in range(FILES):
                        await make(maker, b"f%d" % file, at)
            for at in (top, *directories):
                await mount.vfs.getattr(at)  # who names something in there has walked there
            async with DelegatingMount(node, tmp_path / "c") as other:
                await scenario(mount, other, top, directories)

    asyncio.run(main())


async def remove(mount: DelegatingMount, at: Ino) -> list[str]:
    """As ``rm -r`` does it; the commands that it took, but those that tell."""
    names = await mount.names(at)
    asked(mount)
    for name in names:
        await mount.vfs.lookup(at, name)
        await mount.vfs.unlink(ROOT_CALLER, at, name)
    return [kind for kind in asked(mount) if kind not in ("Batch", "Lookup", "ReadDir")]


def test_a_tree_is_removed_with_one_command_a_directory(node: NodeProcess, tmp_path: Path) -> None:
    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        for number, at in enumerate(directories):
            commands = await remove(mount, at)
            # The first change is the cluster's, the second asks for the directory. The top is the
            # second directory in which names change.
            assert commands == (["Delegate"] if number else ["Unlink", "Delegate"])
            await mount.vfs.rmdir(ROOT_CALLER, top, b"d%d" % number)
            commands = [kind for kind in asked(mount) if kind not in ("Batch", "ReadDir")]
            assert commands == [["Rmdir"], ["Delegate"], []][min(number, 2)]
        with file_error(errno.ENOENT):
            await other.vfs.lookup(top, b"d3")
        assert await other.names(top) == []

    run(node, tmp_path, scenario)


def test_what_was_refused_ahead_is_in_nobodys_way(node: NodeProcess, tmp_path: Path) -> None:
    """It counts no more among those that are asked for ahead and not used."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        await mount.names(top)
        with mount.failing(Delegate, FileError(errno.EINVAL)):
            for at in directories[:3]:
                await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
            await settled(mount)
        assert not any(map(mount.vfs._delegations.occasions.is_ahead, directories))
        assert asked(mount).count("Delegate") == 0
        await mount.names(directories[3])
        await settled(mount)
        assert mount.vfs._delegations.holds(directories[4])

    run(node, tmp_path, scenario)


async def settled(mount: DelegatingMount) -> None:
    """Nothing that was asked for ahead is under way."""
    delegations = mount.vfs._delegations
    await eventually(lambda: not delegations._asking)
    await eventually(lambda: all(held.complete for held in delegations._held.values()))


def test_whoever_removes_a_tree_by_its_listings_waits_for_none_of_the_directories(
    node: NodeProcess, tmp_path: Path
) -> None:
    """``rm -r``: from the third on each is asked for before its first change; the names that come
    with it are also the program's listing, and nothing but that is asked of the cluster."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        assert len(await mount.names(top)) == DIRECTORIES
        for number, at in enumerate(directories):
            await remove(mount, at)
            await mount.vfs.rmdir(ROOT_CALLER, top, b"d%d" % number)
            await settled(mount)
            if number == 2:
                asked(mount)
                assert all(mount.vfs._delegations.holds(at) for at in directories[3:])
        assert set(asked(mount)) <= {"Batch"}
        assert await other.names(top) == []

    run(node, tmp_path, scenario)


def test_what_was_asked_for_ahead_shows_what_others_have_done_since(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The listing that came with the names is not shown when it is no longer true."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        file, named, kept = directories[3:6]
        f1 = (await other.vfs.lookup(file, b"f1")).ino
        await mount.names(top)
        for at in directories[:3]:
            await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
        await settled(mount)
        assert all(mount.vfs._delegations.holds(at) for at in (file, named, kept))
        await other.vfs.setattr(ROOT_CALLER, f1, mode=0o600)
        await other.vfs.rename(ROOT_CALLER, named, b"f1", named, b"other", 0)
        await mount.vfs.unlink(ROOT_CALLER, kept, b"f1")
        assert mount.vfs._delegations.holds(file)
        fh = await mount.vfs.opendir(file)
        modes = {e.name: e.attr.mode & 0o777 for e in await mount.vfs.readdir(fh, 0, 1000)}
        await mount.vfs.releasedir(fh)
        assert modes == {b"f%d" % n: 0o600 if n == 1 else 0o644 for n in range(FILES)}
        assert await mount.names(named) == [b"f0", b"f2", b"f3", b"f4", b"other"]
        assert await mount.names(kept) == [b"f0", b"f2", b"f3", b"f4"]

    run(node, tmp_path, scenario)


def test_who_reads_a_tree_beside_has_few_directories_asked_for(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``find`` in one tree while names change in others."""
    monkeypatch.setattr(occasions, "AHEAD_MAX", 2)

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        for at in directories[:2]:
            await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
        asked(mount)
        await mount.names(top)
        for at in directories[2:]:
            await mount.names(at)
            await settled(mount)
        assert asked(mount).count("Delegate") == 2

    run(node, tmp_path, scenario)


def test_a_name_that_goes_before_all_are_known_is_gone(node: NodeProcess, tmp_path: Path) -> None:
    """The names were asked for when it was there, and they are what says that none is left."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        delegations = mount.vfs._delegations
        at, list_names = directories[2], delegations._list_names
        may_answer = asyncio.Event()

        async def late(directory: Ino, limit: int) -> Sequence[DirEntry]:
            entries = await list_names(directory, limit)
            if directory == at:
                await may_answer.wait()
            return entries

        await mount.vfs.mkdir(ROOT_CALLER, top, b"x", 0o755)
        await mount.vfs.mkdir(ROOT_CALLER, top, b"y", 0o755)
        await mount.wait_delegated(top)
        await mount.names(top)
        names = [b"f%d" % number for number in range(FILES)]
        for name in names:
            await mount.vfs.lookup(at, name)
        delegations._list_names = late
        for before in directories[:2]:
            await mount.vfs.unlink(ROOT_CALLER, before, b"f0")
        await mount.names(directories[1])  # the next one is asked for
        await eventually(lambda: delegations.holds(at))
        for name in names:
            assert mount.vfs.unlink_nowait(ROOT_CALLER, at, name)
        asked(mount)
        removing = asyncio.create_task(mount.vfs.rmdir(ROOT_CALLER, top, b"d2"))
        await asyncio.sleep(0)
        may_answer.set()
        await removing
        assert "Rmdir" not in asked(mount)
        assert b"d2" not in await other.names(top)

    run(node, tmp_path, scenario)


def test_files_one_in_each_directory(node: NodeProcess, tmp_path: Path) -> None:
    """Objects of git: the directory, and the file with its content."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        for number, at in enumerate(directories):
            asked(mount)
            flags = os.O_WRONLY | os.O_EXCL
            _, fh = await mount.vfs.create(ROOT_CALLER, at, b"new", 0o644, flags)
            await mount.vfs.write(fh, 0, b"content")
            await mount.end(fh)
            commands = [kind for kind in asked(mount) if kind != "ReadDir"]
            assert commands == (["Create", "Commit"] if number < 2 else ["Delegate", "PutFile"])
            assert (await other.vfs.lookup(at, b"new")).size == 7

    run(node, tmp_path, scenario)


def test_one_file_asks_for_no_directory(node: NodeProcess, tmp_path: Path) -> None:
    """Whoever made it: it is made as ever, and nobody has to ask for the directory back."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        asked(mount)
        new = (ROOT_CALLER, directories[0], b"new", 0o644, os.O_WRONLY | os.O_EXCL)
        assert mount.vfs.create_nowait(*new) is None  # the binding asks that first
        _, fh = await mount.vfs.create(*new)
        await mount.end(fh)
        assert asked(mount) == ["Create"]
        assert not mount.vfs._delegations.holds(directories[0])
        await other.vfs.lookup(directories[0], b"new")

    run(node, tmp_path, scenario)


def test_renames_in_each_directory_and_between_them(node: NodeProcess, tmp_path: Path) -> None:
    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        for at in directories[:2]:
            await mount.vfs.rename(ROOT_CALLER, at, b"f0", at, b"g0", 0)
        asked(mount)
        one, two = directories[2:4]
        for name in (b"f0", b"f1"):
            await mount.vfs.lookup(one, name)
            await mount.vfs.rename(ROOT_CALLER, one, name, two, b"from " + name, RENAME_NOREPLACE)
        commands = asked(mount)
        assert commands.count("Delegate") == 2
        assert "Rename" not in commands
        made = await mount.vfs.mkdir(ROOT_CALLER, directories[4], b"made", 0o755)
        await mount.vfs.symlink(ROOT_CALLER, directories[5], b"link", b"to")
        commands = asked(mount)
        assert commands.count("Delegate") == 2
        assert not {"Mkdir", "Symlink"} & set(commands)
        assert sorted(await other.names(two))[FILES:] == [b"from f0", b"from f1"]
        assert await other.names(one) == [b"f2", b"f3", b"f4"]
        assert (await other.vfs.lookup(directories[4], b"made")).ino == made.ino
        assert await other.vfs.readlink((await other.vfs.lookup(directories[5], b"link")).ino)

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("why", ["held", "refused", "no answer"])
def test_where_a_directory_is_not_given_the_cluster_is_asked(
    node: NodeProcess, tmp_path: Path, why: str
) -> None:
    """Somebody else has it, or nobody may, or nobody answers."""

    async def scenario(
        mount: DelegatingMount, other: DelegatingMount, top: Ino, directories: list[Ino]
    ) -> None:
        for at in directories[:2]:
            await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
        at = directories[2]
        if why == "held":
            for name in (b"f3", b"f4"):
                await other.vfs.unlink(ROOT_CALLER, at, name)
            await other.wait_delegated(at)
            await other.vfs.rename(ROOT_CALLER, at, b"f2", at, b"moved", 0)
        await mount.names(at)
        asked(mount)
        errors: dict[str, PydiError] = {
            "refused": FileError(errno.EINVAL),
            "no answer": FileError(errno.EIO),
        }
        if why in errors:
            with mount.failing(Delegate, errors[why]):
                await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
        else:
            await mount.vfs.unlink(ROOT_CALLER, at, b"f0")
        assert "Unlink" in asked(mount)
        left = await in_cluster(mount, at)
        assert b"f0" not in left
        assert (b"moved" in left) == (why == "held")

    run(node, tmp_path, scenario)
