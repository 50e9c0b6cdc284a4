"""A file that is closed takes along the changes that wait to be told: one command for both, which
is told once whatever breaks.

One or two mounts of one node, in this process, as in test_pending_creates.py.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pydi_fs.vfs import queued
from pydi_fs.vfs.journalling import read_logs
from pydi_node.commands import ROOT_CALLER, Batch, Command, Undelegate
from pydi_node.errors import DeadlineError, FileError, NoSpaceError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import Result
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import (
    DelegatingMount,
    Scenario,
    Worker,
    eventually,
    run_with,
)
from tests.node.test_queued_changes import (
    _nothing_by_itself,
    asked,
    in_cluster,
    in_log,
    make,
    queue,
    silence,
)
from tests.unit.tree.driver import file_error

__all__ = ["_nothing_by_itself"]

LARGE = queued.RIDING_MAX_BYTES + 1
WITHIN_S = 15.0  # all of a scenario, so that what hangs is told of before the suite gives up


@pytest.fixture(autouse=True)
def _errors_are_of_the_test_that_made_them() -> Iterator[None]:
    """asyncio complains of one that nobody retrieved when its task is collected."""
    yield
    gc.collect()


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(WITHIN_S):
        return await work


def run(node: NodeProcess, tmp_path: Path, scenario: Scenario) -> None:
    async def in_time(mount: DelegatingMount, other: DelegatingMount) -> None:
        async with asyncio.timeout(WITHIN_S):
            await scenario(mount, other)

    run_with(DelegatingMount, node, tmp_path, in_time)


@contextmanager
def held(mount: DelegatingMount) -> Iterator[asyncio.Event]:
    """Batches leave when the event is set."""
    execute = mount.client.execute
    may_go = asyncio.Event()

    async def is_slow(command: Command, *arguments: Any, **options: Any) -> Any:
        if isinstance(command, Batch):
            await may_go.wait()
        return await execute(command, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mount.client, "execute", is_slow)
        yield may_go


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
        mount.changed_nothing_lately()
        other = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        await mount.wait_delegated(other)
        execute = mount.client.execute

        async def is_silent(command: Command, payload: bytes | None = None, **options: Any) -> Any:
            await execute(command, payload, serial=options["serial"])
            raise DeadlineError("no answer")

        with held(mount) as may_go:
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
        mount.changed_nothing_lately()
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


@pytest.mark.parametrize("content", [b"content", b""], ids=["content", "empty"])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_worker_may_be_killed_between_any_two_records(
    node: NodeProcess, tmp_path: Path, leaves: bool, content: bytes
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
        await worker.vfs.write(fh, 0, content)
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
            assert await other.content(ino) == content + b", more"
            assert not queue(worker)
            assert not worker.vfs._delegations.pending

    for records in itertools.count():
        name = b"%d" % records
        logs = (os.memfd_create("a"), os.memfd_create("b"))
        ino, fh, left = asyncio.run(bounded(first(name, logs, records)))
        asyncio.run(bounded(second(name, logs, ino, fh)))
        for fd in logs:
            os.close(fd)
        if left:
            break
    assert records > (2 + 3 * leaves if content else 1 + leaves), "a close writes no records"


@pytest.mark.parametrize("is_made", [True, False])
@pytest.mark.expects_log(r".*")
def test_who_asks_just_before_the_answer_sends_nothing(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """The first close heard nothing, and the file is needed in the moment in which the repeated
    Batch is answered: another command under its serial would get that answer."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await mount.vfs.rename(ROOT_CALLER, mount.at, b"a", mount.at, b"b", 0)
        ino, fh = await mount.begin(b"f")
        await mount.vfs.write(fh, 0, b"content")
        create = mount.vfs._delegations.pending[ino]
        execute = mount.client.execute
        told = 0
        asked_again: list[asyncio.Task[Any]] = []

        async def is_late(command: Command, *arguments: Any, **options: Any) -> Any:
            nonlocal told
            if not isinstance(command, Batch):
                return await execute(command, *arguments, **options)
            told += 1
            if told == 1:
                raise DeadlineError("no answer")
            if not is_made:
                await execute(Undelegate((mount.at,)))
            arrived = options.pop("arrived")

            def just_before(result: Result) -> Any:
                asked_again.append(create.start())
                return arrived(result)

            return await execute(command, *arguments, arrived=just_before, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_late)
            with pytest.raises(DeadlineError):
                await mount.vfs.flush(fh)
            asked(mount)
            await eventually(lambda: not queue(mount))
            error = await asked_again[0]
            assert "PutFile" not in asked(mount)
        assert create.sent is not None
        assert create.sent.done()  # a recall would wait for it
        if is_made:
            assert error is None
            await mount.end(fh)
            assert await mount.content(ino) == b"content"
        else:
            assert isinstance(error, FileError)
            assert error.errno == errno.ESTALE
            with file_error(errno.ESTALE):
                await mount.end(fh)

    run(node, tmp_path, scenario)


def test_a_directory_is_shown_as_it_is_after_the_file(node: NodeProcess, tmp_path: Path) -> None:
    """A Batch says how a directory was after its mkdir or utimensat, and then got the file."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        new = (await mount.vfs.mkdir(ROOT_CALLER, mount.at, b"new", 0o755)).ino
        await make(mount, b"f", new)
        assert mount.client.parts[-1] == ["Mkdir", "PutFile"]
        assert await mount.vfs.getattr(new) == await in_log(mount, new)
        await mount.vfs.setattr(ROOT_CALLER, new, mtime_ns=12345)
        await make(mount, b"g", new)
        assert mount.client.parts[-1] == ["SetAttr", "PutFile"]
        shown = await mount.vfs.getattr(new)
        assert shown == await in_log(mount, new)
        assert shown.mtime_ns != 12345

    run(node, tmp_path, scenario)


def test_an_interrupted_close_rides_on(node: NodeProcess, tmp_path: Path) -> None:
    """Its program gave up while the Batch was under way: the file is there once, and who closes it
    again waits for the same answer."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
        ino, fh = await mount.begin(b"f", os.O_APPEND)
        await mount.vfs.write(fh, 0, b"once")
        with held(mount) as may_go:
            asked(mount)
            closing = asyncio.create_task(mount.vfs.flush(fh))
            await eventually(lambda: mount.vfs._queue._attempt is not None)
            closing.cancel()  # it waits for what was done before all the same
            again = asyncio.create_task(mount.vfs.flush(fh))
            await asyncio.sleep(0)
            may_go.set()
            await asyncio.wait([closing])
            assert closing.cancelled()
            await again
        assert asked(mount) == ["Batch"]
        await mount.vfs.write(fh, 0, b", twice")
        await mount.end(fh)
        assert await mount.content(ino) == b"once, twice"
        assert await in_cluster(mount, mount.at) == {b"f": ino}

    run(node, tmp_path, scenario)


def test_two_descriptors_are_closed_by_one_command(node: NodeProcess, tmp_path: Path) -> None:
    """And a write between the two closes is a command of its own."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
        ino, fh = await mount.begin(b"f", os.O_APPEND)
        await mount.vfs.write(fh, 0, b"one")
        asked(mount)
        with held(mount) as may_go:
            closing = [asyncio.create_task(mount.vfs.flush(fh)) for _ in range(3)]
            await eventually(lambda: mount.vfs._queue._attempt is not None)
            await mount.vfs.write(fh, 0, b", two")
            may_go.set()
            await asyncio.gather(*closing)
        await mount.end(fh)
        assert asked(mount) == ["Batch", "Commit"]
        assert await mount.content(ino) == b"one, two"

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("waits", [True, False])
def test_a_recall_gets_the_file_that_rides(node: NodeProcess, tmp_path: Path, waits: bool) -> None:
    """Somebody else looks into its directory while its Batch, or the one before, is under way."""

    async def scenario(mount: DelegatingMount, other: DelegatingMount) -> None:
        await make(mount, b"a")
        await make(mount, b"b")
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
        ino, fh = await mount.begin(b"f")
        await mount.vfs.write(fh, 0, b"f")
        with held(mount) as may_go:
            syncing = [asyncio.create_task(mount.vfs.fsyncdir(mount.at))] if waits else []
            if waits:
                await eventually(lambda: mount.vfs._queue._attempt is not None)
                await mount.vfs.unlink(ROOT_CALLER, mount.at, b"b")
            closing = asyncio.create_task(mount.end(fh))
            if not waits:
                await eventually(lambda: mount.vfs._queue._attempt is not None)
            looking = asyncio.create_task(other.names(mount.at))
            await eventually(lambda: mount.at in mount.vfs._delegations._owed)
            may_go.set()
            await asyncio.gather(closing, *syncing)
            names = await looking
        assert set(names) == ({b"f"} if waits else {b"b", b"f"})
        assert (await other.vfs.lookup(mount.at, b"f")).ino == ino

    run(node, tmp_path, scenario)


@pytest.mark.expects_log(r"ino=\d+: not (published|created) at the end.*")
def test_a_mount_ends_while_a_file_rides(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers: it says so, and nothing goes on after it."""
    monkeypatch.setattr(queued, "RETRY_S", 0.01)

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        third = DelegatingMount(node, tmp_path / "c")
        await third.__aenter__()
        third.at = (await third.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"third", 0o755)).ino
        await third.wait_delegated(third.at)
        await make(third, b"a")
        await third.vfs.unlink(ROOT_CALLER, third.at, b"a")
        _, fh = await third.begin(b"f")
        await third.vfs.write(fh, 0, b"content")
        with third.failing(Batch, DeadlineError("no answer")):
            with pytest.raises(DeadlineError):
                await third.vfs.flush(fh)
            with pytest.raises(DeadlineError):
                await third.vfs.stop()
            assert third.vfs._queue._teller is not None
            assert third.vfs._queue._teller.done()
        await third.client.close()
        await third.asker.close()

    run(node, tmp_path, scenario)


def test_what_has_left_is_waited_for_by_no_recall(node: NodeProcess, tmp_path: Path) -> None:
    """Of a directory in which only the file is new: its answer may wait for that recall."""

    async def scenario(mount: DelegatingMount, _: DelegatingMount) -> None:
        await make(mount, b"a")
        mount.changed_nothing_lately()
        other = (await mount.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        await mount.wait_delegated(other)
        await mount.vfs.unlink(ROOT_CALLER, mount.at, b"a")
        execute = mount.client.execute
        has_left, may_go = asyncio.Event(), asyncio.Event()

        async def is_slow(command: Command, *arguments: Any, **options: Any) -> Any:
            if isinstance(command, Batch):
                options["sent"]()
                has_left.set()
                await may_go.wait()
            return await execute(command, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount.client, "execute", is_slow)
            closing = asyncio.create_task(make(mount, b"f", other))
            await has_left.wait()
            (create,) = mount.vfs._delegations.pending.values()
            assert create.sent is not None
            assert create.sent.done()
            may_go.set()
            await closing

    run(node, tmp_path, scenario)


def test_the_journal_says_that_a_file_was_refused(node: NodeProcess, tmp_path: Path) -> None:
    """Once: whoever follows has the content, to be told under another serial."""
    logs = (os.memfd_create("a"), os.memfd_create("b"))

    async def scenario(_: DelegatingMount, __: DelegatingMount) -> None:
        async with Worker(node, tmp_path / "c", logs) as worker:
            worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"w", 0o755)).ino
            await worker.wait_delegated(worker.at)
            await make(worker, b"a")
            await worker.vfs.unlink(ROOT_CALLER, worker.at, b"a")
            ino, fh = await worker.begin(b"f")
            await worker.vfs.write(fh, 0, b"content")
            execute = worker.client.execute

            async def is_full(command: Command, *arguments: Any, **options: Any) -> Any:
                if isinstance(command, Batch) and len(command.commands) > 1:
                    raise NoSpaceError("full")
                return await execute(command, *arguments, **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(worker.client, "execute", is_full)
                with pytest.raises(NoSpaceError):
                    await worker.vfs.flush(fh)
            state = read_logs(logs)[2]
            assert state.files[ino].content.dirty
            assert state.files[ino].publication is None
            assert state.serial_of_create(ino) is None
            await worker.end(fh)
            assert await in_cluster(worker, worker.at) == {b"f": ino}

    run(node, tmp_path, scenario)
    for fd in logs:
        os.close(fd)


def test_a_successor_waits_for_the_file_that_was_told_of(node: NodeProcess, tmp_path: Path) -> None:
    """However long that takes to be ready: the Batch of before had it."""
    logs = (os.memfd_create("a"), os.memfd_create("b"))

    async def first() -> Ino:
        worker = Worker(node, tmp_path / "a", logs)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"w", 0o755)).ino
        await worker.wait_delegated(worker.at)
        await make(worker, b"a")
        await worker.vfs.unlink(ROOT_CALLER, worker.at, b"a")
        ino, fh = await worker.begin(b"f")
        await worker.vfs.write(fh, 0, b"content")
        with held(worker):
            ends = [asyncio.create_task(worker.vfs.flush(fh))]
            await eventually(lambda: worker.vfs._queue._attempt is not None)
            await worker.die()
        assert not ends[0].done()
        return ino

    async def second(ino: Ino) -> None:
        worker = Worker(node, tmp_path / "b", logs)
        make_with, told = worker.vfs._queue.make, worker.vfs._queue._tell_some
        is_told = asyncio.Event()

        async def telling() -> None:
            asyncio.get_running_loop().call_soon(is_told.set)
            await told()

        async def late(rider: queued.Rider, is_new: bool) -> Any:
            await is_told.wait()
            return await make_with(rider, is_new)

        worker.vfs._queue.make = late  # type: ignore[method-assign]
        worker.vfs._queue._tell_some = telling  # type: ignore[method-assign]
        async with worker:
            await worker.vfs._queue.flush()
            at = (await worker.vfs.lookup(ROOT_INO, b"w")).ino
            assert await in_cluster(worker, at) == {b"f": ino}
            assert await worker.content(ino) == b"content"

    asyncio.run(bounded(second(asyncio.run(bounded(first())))))
    for fd in logs:
        os.close(fd)
