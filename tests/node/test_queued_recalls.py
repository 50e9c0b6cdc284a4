"""Changes that a mount has answered and not told yet, when their directories are wanted back.

Two mounts of one node, in this process, as in test_queued_changes.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

from pydi_node.commands import ROOT_CALLER, Batch, Command, Undelegate
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.wire.messages import Execute
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import DelegatingMount, Worker, eventually, logs, run
from tests.node.test_queued_changes import _nothing_by_itself, asked, in_cluster, make, queue
from tests.unit.tree.driver import file_error

__all__ = ["_nothing_by_itself", "logs"]


def hold_back(mount: DelegatingMount, kind: type[Command]) -> asyncio.Event:
    """Commands of this kind leave when the event is set."""
    execute, event = mount.client.execute, asyncio.Event()

    async def waits(command: Command, *arguments: Any, **options: Any) -> Any:
        if isinstance(command, kind):
            await event.wait()
        return await execute(command, *arguments, **options)

    mount.client.execute = waits  # type: ignore[method-assign]
    return event


def given_back(mount: DelegatingMount) -> list[Ino]:
    """What the mount gives back from now on, as far as commands with that have left."""
    inos: list[Ino] = []
    execute = mount.client.execute

    async def watches(command: Command, *arguments: Any, **options: Any) -> Any:
        if isinstance(command, Undelegate):
            inos.extend(command.inos)
        return await execute(command, *arguments, **options)

    mount.client.execute = watches  # type: ignore[method-assign]
    return inos


def test_what_was_removed_does_not_come_back_while_it_is_told(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The directory is wanted back. Until the cluster knows, programs here don't see how it was."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        await make(holder, b"gone")
        moved = await make(holder, b"moved")
        for name in (b"gone", b"moved"):
            await holder.vfs.lookup(holder.at, name)
        await holder.vfs.unlink(ROOT_CALLER, holder.at, b"gone")
        await holder.vfs.rename(ROOT_CALLER, holder.at, b"moved", holder.at, b"to", 0)
        go_on = hold_back(holder, Batch)
        looking = asyncio.create_task(other.names(other.at))
        await eventually(lambda: not holder.vfs._delegations.holds(holder.at))
        names = (b"gone", b"moved")
        seen = [asyncio.create_task(holder.vfs.lookup(holder.at, name)) for name in names]
        await asyncio.sleep(0)
        go_on.set()
        for look in seen:
            with file_error(errno.ENOENT):
                await look
        assert (await holder.vfs.lookup(holder.at, b"to")).ino == moved
        assert await looking == [b"to"]

    run(node, tmp_path, scenario)


def test_a_moved_directory_is_given_back_when_that_is_told(
    node: NodeProcess, tmp_path: Path
) -> None:
    """Else somebody else has it by then, and the move, which was answered, is refused."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        inside = (await holder.vfs.mkdir(ROOT_CALLER, holder.at, b"a", 0o755)).ino
        await holder.vfs.fsyncdir(holder.at)
        await holder.vfs.rename(ROOT_CALLER, holder.at, b"a", holder.at, b"b", 0)
        assert queue(holder) == ["Rename"]
        await make(other, b"theirs", inside)
        assert not queue(holder)
        assert await in_cluster(holder, holder.at) == {b"b": inside}

    run(node, tmp_path, scenario)


def test_a_recall_waits_for_no_file_behind_the_move_of_its_directory(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The file is told after the move. So the recall can't wait for it: what is behind it does."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        vfs = holder.vfs
        inside = (await vfs.mkdir(ROOT_CALLER, holder.at, b"a", 0o755)).ino
        await vfs.fsyncdir(holder.at)
        flags = os.O_WRONLY | os.O_EXCL
        attr, fh = await vfs.create(ROOT_CALLER, inside, b"f", 0o644, flags)
        await vfs.rename(ROOT_CALLER, holder.at, b"a", holder.at, b"b", 0)
        assert holder.is_pending(attr.ino)
        touched = holder.client.on_touched
        waits_for: list[Any] = []

        def watches(inos: Any, entries: Any) -> Any:
            acknowledged = touched(inos, entries)
            if inside in inos:
                waits_for.append(acknowledged)
            return acknowledged

        holder.client.on_touched = watches
        go_on = hold_back(holder, Batch)
        looking = asyncio.create_task(other.names(inside))
        await eventually(lambda: bool(waits_for))
        go_on.set()
        assert waits_for[0] is None
        assert await looking == [b"f"]
        await holder.end(fh)

    run(node, tmp_path, scenario)


def test_a_new_directory_is_given_back_when_the_cluster_has_it(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The stream of changes breaks. What is given back before it is there would stay delegated, to
    a mount that knows nothing of it."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        inside = (await holder.vfs.mkdir(ROOT_CALLER, holder.at, b"a", 0o755)).ino
        go_on = hold_back(holder, Batch)
        inos = given_back(holder)
        holder.vfs._reset()
        await asyncio.sleep(0.05)
        is_early = inside in inos
        go_on.set()
        assert not is_early
        await eventually(lambda: inside in inos)

    run(node, tmp_path, scenario)


def test_a_successor_gives_new_directories_back_when_the_cluster_has_them(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int]
) -> None:
    async def first() -> Ino:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(at)
        await worker.vfs.mkdir(ROOT_CALLER, at, b"a", 0o755)
        await worker.die()
        return at

    async def second(at: Ino) -> None:
        async with Worker(node, tmp_path / "b", logs) as worker:
            await eventually(lambda: not worker.vfs._delegations._owed)
            commands = worker.client.commands
            assert "Undelegate" not in commands[: commands.index("Batch")], commands
            assert set(await worker.names(at)) == {b"a"}

    asyncio.run(second(asyncio.run(first())))


def test_an_answer_without_values_is_believed_as_far_as_it_goes(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The node has the first answer from a snapshot: it says what was refused and nothing more."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino = await make(mount, b"a")
        await make(mount, b"gone")
        execute = mount.client.execute

        async def applied_before(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, Batch):
                connection = mount.client._connection
                assert connection is not None
                request = Execute(mount.client.client_id, options["serial"], command)
                await connection.request(request, b"", 10.0, None, None)
            return await execute(command, *arguments, **options)

        mount.client.execute = applied_before  # type: ignore[method-assign]
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"gone")
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        inside = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"d", 0o755)).ino
        async with asyncio.timeout(10):
            await mount.vfs.fsyncdir(mount.at)
        assert not queue(mount)
        assert (await mount.vfs.lookup(mount.at, b"b")).ino == ino
        assert (await mount.vfs.lookup(mount.at, b"d")).ino == inside
        with file_error(errno.ENOENT):
            await mount.vfs.lookup(mount.at, b"gone")

    run(node, tmp_path, scenario)


def test_a_listing_shows_directories_as_they_are_here(node: NodeProcess, tmp_path: Path) -> None:
    """What was changed in a directory that is listed from above: the kernel remembers what it is
    told."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        inside = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"a", 0o755)).ino
        await mount.vfs.fsyncdir(mount.at)
        asked(mount)
        await mount.vfs.mkdir(ROOT_CALLER, inside, b"b", 0o755)
        shown = await mount.vfs.getattr(inside)
        assert shown.nlink == 3
        fh = await mount.vfs.opendir(mount.at)
        (entry,) = await mount.vfs.readdir(fh, 0, 10)
        await mount.vfs.releasedir(fh)
        assert (entry.attr.nlink, entry.attr.mtime_ns) == (shown.nlink, shown.mtime_ns)

    run(node, tmp_path, scenario)
