"""A file that is closed takes along the changes that wait to be told: one command for both, which
is told once whatever breaks.

One or two mounts of one node, in this process, as in test_pending_creates.py.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs import queued
from pydi_node.commands import ROOT_CALLER, Batch, Command, Undelegate
from pydi_node.errors import DeadlineError, FileError, NoSpaceError
from pydi_node.ids import ROOT_INO, Ino
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import DelegatingMount, Worker, eventually, run
from tests.node.test_queued_changes import (
    _nothing_by_itself,
    asked,
    in_cluster,
    make,
    queue,
    silence,
)
from tests.unit.tree.driver import file_error

__all__ = ["_nothing_by_itself"]

LARGE = queued.RIDING_MAX_BYTES + 1


def test_what_must_come_first_or_waits_is_in_the_command_of_a_close(
    node: NodeProcess, tmp_path: Path
) -> None:
    """Elsewhere as in its own directory. What is larger goes beside, so that nobody waits for its
    blob; what comes while a command is under way follows with the next one."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        sub = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"sub", 0o755)).ino
        await make(mount, b"b")
        asked(mount)
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"c", 0)
        await make(mount, b"f", sub)
        assert asked(mount) == ["Batch"]
        assert mount.client.parts[-1] == ["Rename", "PutFile"]
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"b", mount.at, b"d", 0)
        ino, fh = await mount.begin(b"large")
        await mount.vfs.write(fh, 0, bytes(LARGE))
        await mount.end(fh)
        assert sorted(asked(mount)) == ["Batch", "PutFile"]
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"c")
        first, second = await mount.begin(b"g"), await mount.begin(b"h")
        await asyncio.gather(mount.end(first[1]), mount.end(second[1]))
        assert sorted(asked(mount)) == ["Batch", "PutFile"]
        expected = {b"sub": sub, b"large": ino, b"g": first[0], b"h": second[0]}
        expected[b"d"] = (await mount.vfs.lookup(mount.at, b"d")).ino
        assert await in_cluster(mount, mount.at) == expected
        assert not queue(mount)

    run(node, tmp_path, scenario)


def test_a_close_waits_for_no_command_that_it_does_not_need(
    node: NodeProcess, tmp_path: Path
) -> None:
    """While one Batch is under way a file goes beside it, but one in a directory that is not told
    goes with the next; and one that was sent by itself stays so: it may have got there."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        other = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        await mount.wait_delegated(other)
        execute = mount.client.execute
        may_go = asyncio.Event()

        async def is_slow(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, Batch):
                await may_go.wait()
            return await execute(command, *arguments, **options)

        async def is_silent(command: Command, payload: bytes | None = None, **options: Any) -> Any:
            await execute(command, payload, serial=options["serial"])
            raise DeadlineError("no answer")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_slow)
            await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
            syncing = asyncio.create_task(mount.vfs.fsyncdir(mount.at))
            await asyncio.sleep(0)
            await eventually(lambda: mount.vfs._queue._attempt is not None)
            beside = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"beside", 0o755)).ino
            sub = (await mount.vfs.mkdir(ROOT_CALLER, beside, b"sub", 0o755)).ino
            closing = [
                asyncio.create_task(make(mount, b"g", other)),
                asyncio.create_task(make(mount, b"f", sub)),
            ]
            await eventually(lambda: mount.vfs._cache.name(other, b"g") is not None)
            may_go.set()
            await asyncio.gather(syncing, *closing)
        assert mount.client.parts[-2:] == [["Unlink"], ["Mkdir", "Mkdir", "PutFile"]]
        unsure, fh = await mount.begin(b"unsure", os.O_APPEND)
        await mount.vfs.write(fh, 0, b"once")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_silent)
            with pytest.raises(DeadlineError):
                await mount.vfs.flush(fh)
        asked(mount)
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"beside", mount.at, b"moved", 0)
        await mount.end(fh)
        assert sorted(asked(mount)) == ["Batch", "PutFile"]
        assert await mount.content(unsure) == b"once"

    run(node, tmp_path, scenario)


def test_a_file_that_would_ride_alone_goes_by_itself(node: NodeProcess, tmp_path: Path) -> None:
    """What it waited for was all told by the Batch before. No answer: the next close asks again."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        execute = mount.client.execute
        may_go = asyncio.Event()
        lost = 0

        async def is_slow(command: Command, payload: bytes | None = None, **options: Any) -> Any:
            nonlocal lost
            if isinstance(command, Batch) and not payload:
                await may_go.wait()
            if payload and not lost:
                lost += 1
                await execute(command, payload, serial=options["serial"])
                raise DeadlineError("no answer")
            return await execute(command, payload, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_slow)
            sub = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"sub", 0o755)).ino
            syncing = asyncio.create_task(mount.vfs.fsyncdir(mount.at))
            await eventually(lambda: mount.vfs._queue._attempt is not None)
            flags = os.O_RDWR | os.O_EXCL | os.O_APPEND
            attr, fh = await mount.vfs.create(ROOT_CALLER, sub, b"f", 0o644, flags)
            await mount.vfs.write(fh, 0, b"once")
            closing = asyncio.create_task(mount.vfs.flush(fh))
            await eventually(lambda: mount.vfs._queue._rider is not None)
            may_go.set()
            await syncing
            with pytest.raises(DeadlineError):
                await closing
            async with asyncio.timeout(10):
                await mount.end(fh)
            assert mount.client.parts[-1] == ["Mkdir"]
        assert await in_cluster(mount, sub) == {b"f": attr.ino}
        assert await mount.content(attr.ino) == b"once"

    run(node, tmp_path, scenario)


def test_a_close_waits_for_no_more_than_one_command(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is queued than a Batch takes, a file that needs none of it goes beside."""
    monkeypatch.setattr(queued, "TOLD_AT_ONCE", 2)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        ino = await make(mount, b"a")
        other = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        await mount.wait_delegated(other)
        attr, fh = await mount.vfs.create(ROOT_CALLER, other, b"f", 0o644, os.O_RDWR | os.O_EXCL)
        await mount.vfs.write(fh, 0, b"f")
        asked(mount)
        for mode in (0o600, 0o640, 0o644):
            await mount.vfs.setattr(ROOT_CALLER, ino, mode=mode)
        assert len(queue(mount)) == 3
        await mount.end(fh)
        await mount.vfs.fsyncdir(mount.at)
        assert sorted(asked(mount)) == ["Batch", "Batch", "PutFile"]
        assert await in_cluster(mount, other) == {b"f": attr.ino}

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(
    r"rename of 'a' in ino=\d+ was answered, and is lost: Input/output error",
    r"ino=\d+: .*",
)
def test_what_may_have_been_done_is_not_done_again_without_the_file(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, its answer is lost, and its repetition is refused: no other serial may ask for it."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        before = await make(mount, b"a")
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        ino, fh = await mount.begin(b"a")
        await mount.vfs.write(fh, 0, b"content")
        execute = mount.client.execute
        told = 0

        async def is_forgotten(
            command: Command, payload: bytes | None = None, **options: Any
        ) -> Any:
            nonlocal told
            if not isinstance(command, Batch):
                return await execute(command, payload, **options)
            told += 1
            if told == 1:
                await execute(command, payload, serial=options["serial"])
                raise DeadlineError("no answer")
            if told == 2:
                raise FileError(errno.EIO)
            return await execute(command, payload, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_forgotten)
            with pytest.raises(DeadlineError):
                await mount.vfs.flush(fh)
            await eventually(lambda: not queue(mount))
        assert told == 2
        assert await in_cluster(mount, mount.at) == {b"b": before, b"a": ino}
        with file_error(errno.ESTALE):  # its name is taken: by itself, which it can't know
            await mount.end(fh)

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(
    r"rename of 'a' in ino=\d+ was answered, and is lost: Stale file handle",
    r"ino=\d+: .*",
)
def test_who_closes_again_hears_that_it_was_refused_meanwhile(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first close heard nothing, the directory is not this mount's any more, and the same Batch
    was refused: its serial is that of a Batch for ever."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        before = await make(mount, b"a")
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        _, fh = await mount.begin(b"new")
        await mount.vfs.write(fh, 0, b"lost")
        execute = mount.client.execute
        told = 0

        async def is_lost(command: Command, *arguments: Any, **options: Any) -> Any:
            nonlocal told
            if isinstance(command, Batch):
                told += 1
                if told == 1:
                    raise DeadlineError("no answer")
                await execute(Undelegate((mount.at,)))
            return await execute(command, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_lost)
            with pytest.raises(DeadlineError):
                await mount.vfs.flush(fh)
            await eventually(lambda: not queue(mount))
        assert told == 2
        async with asyncio.timeout(10):
            with file_error(errno.ESTALE):
                await mount.end(fh)
        assert await in_cluster(mount, mount.at) == {b"a": before}

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(
    r"unlink of 'f' in ino=\d+ was answered, and is lost: Stale file handle",
    r"ino=\d+: not created, its directory was taken back",
    r"ino=\d+: not published at close: Stale file handle",
    r"ino=\d+: content lost, close\(\) had reported the error",
)
def test_a_refused_change_takes_the_file_of_its_directory_along(
    node: NodeProcess, tmp_path: Path
) -> None:
    """A mount that was silent for too long hears so at close, and from fsync what else it lost."""

    async def scenario(holder: DelegatingMount, other: DelegatingMount) -> None:
        await make(holder, b"f")
        await holder.vfs.unlink(ROOT_CALLER, holder.at, b"f")
        _, fh = await holder.begin(b"new")
        await holder.vfs.write(fh, 0, b"lost")
        go_on = silence(holder)
        await other.vfs.rename(ROOT_CALLER, other.at, b"f", other.at, b"h", 0)
        closing = asyncio.create_task(holder.end(fh))
        go_on()
        with file_error(errno.ESTALE):
            await closing
        with file_error(errno.ESTALE):
            await holder.vfs.fsyncdir(holder.at)
        for mount in (holder, other):
            assert await mount.names(mount.at) == [b"h"]

    run(node, tmp_path, scenario)


def test_what_makes_room_goes_without_a_file_that_has_none(
    node: NodeProcess, tmp_path: Path
) -> None:
    """close(2) says ENOSPC, the file stays as it is, and both are told when there is room."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
        ino, fh = await mount.begin(b"f")
        await mount.vfs.write(fh, 0, b"content")
        execute = mount.client.execute

        async def is_full(command: Command, *arguments: Any, **options: Any) -> Any:
            if not isinstance(command, Batch) or len(command.commands) > 1:
                raise NoSpaceError("full")
            return await execute(command, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_full)
            with pytest.raises(NoSpaceError):
                await mount.vfs.flush(fh)
            assert not queue(mount)
            assert await in_cluster(mount, mount.at) == {}
        assert mount.is_pending(ino)
        await mount.end(fh)
        assert await in_cluster(mount, mount.at) == {b"f": ino}
        assert await mount.content(ino) == b"content"

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("arrives", [True, False])
def test_without_an_answer_the_very_same_is_told_again(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Whether the first one got there or not: close(2) does not know, and both are there once."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, other: DelegatingMount) -> None:
        await make(mount, b"a")
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        ino, fh = await mount.begin(b"f", os.O_APPEND)
        await mount.vfs.write(fh, 0, b"content")
        execute = mount.client.execute
        told: list[Command] = []

        async def is_silent(command: Command, payload: bytes | None = None, **options: Any) -> Any:
            if isinstance(command, Batch):
                told.append(command)
                if arrives and len(told) == 1:
                    await execute(command, payload, serial=options["serial"])
                if len(told) < 3:
                    raise DeadlineError("no answer")
            return await execute(command, payload, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_silent)
            with pytest.raises(DeadlineError):
                await mount.vfs.flush(fh)
            await eventually(lambda: not queue(mount))
            assert len(told) == 3
            assert told[0] == told[1] == told[2]
        assert not mount.is_pending(ino)
        await mount.vfs.write(fh, 0, b", more")
        await mount.end(fh)
        for each in (mount, other):
            assert set(await each.names(each.at)) == {b"b", b"f"}
            assert await each.content(ino) == b"content, more"

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_worker_may_be_killed_between_any_two_records(
    node: NodeProcess, tmp_path: Path, leaves: bool
) -> None:
    """Its successor has the changes and the file told, each once: after every number of records
    that a close with changes in front of it writes, whether its command left or not."""

    async def first(name: bytes, logs: tuple[int, int], records: int) -> tuple[Ino, int, int]:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        at = worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, name, 0o755)).ino
        await worker.wait_delegated(at)
        await make(worker, b"old")
        await worker.vfs.rename(ROOT_CALLER, at, b"old", at, b"new", 0)
        sub = (await worker.vfs.mkdir(ROOT_CALLER, at, b"sub", 0o755)).ino
        flags = os.O_RDWR | os.O_APPEND
        attr, fh = await worker.vfs.create(ROOT_CALLER, sub, b"f", 0o644, flags)
        worker.journal.opened(0, fh, attr.ino, flags, ROOT_CALLER, False, False)
        await worker.vfs.write(fh, 0, b"content")
        append, execute = worker.journal._append, worker.client.execute
        killed = asyncio.Event()
        left = records

        def written(record: bytes) -> None:
            nonlocal left
            if not left:
                killed.set()
            if not killed.is_set():
                left -= 1
                append(record)

        async def told(command: Command, *arguments: Any, **options: Any) -> Any:
            if not leaves:
                killed.set()
            if killed.is_set():
                await asyncio.Event().wait()
            return await execute(command, *arguments, **options)

        worker.journal._append = written  # type: ignore[method-assign]
        worker.client.execute = told  # type: ignore[method-assign]
        ends = [asyncio.create_task(worker.vfs.flush(fh)), asyncio.create_task(killed.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await worker.die()
        return attr.ino, fh, left

    async def second(name: bytes, logs: tuple[int, int], ino: Ino, fh: int) -> None:
        worker = Worker(node, tmp_path / "b", logs)
        async with worker, DelegatingMount(node, tmp_path / "c") as other:
            at = (await other.vfs.lookup(ROOT_INO, name)).ino
            assert set(await other.names(at)) == {b"new", b"sub"}
            sub = (await other.vfs.lookup(at, b"sub")).ino
            await worker.vfs.write(fh, 0, b", more")
            await worker.end(fh)
            assert await other.names(sub) == [b"f"]
            assert (await other.vfs.lookup(sub, b"f")).ino == ino
            assert await other.content(ino) == b"content, more"
            assert not queue(worker)
            assert not worker.vfs._delegations.pending

    for records in itertools.count():
        name = b"%d" % records
        logs = (os.memfd_create("a"), os.memfd_create("b"))
        ino, fh, left = asyncio.run(first(name, logs, records))
        asyncio.run(second(name, logs, ino, fh))
        for fd in logs:
            os.close(fd)
        if left:
            break
    assert records > (5 if leaves else 2), "a close writes no records"
