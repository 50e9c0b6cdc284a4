"""A file that is opened again right after its close: when the same handle does, and when not."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Awaitable, Callable, Iterator

import pytest

from pydi_fs.fuse import opens
from pydi_fs.vfs.journalling import KeptJournal, read_logs
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import Ino
from tests.unit.fuse import kernel as k
from tests.unit.fuse import test_passthrough as passthrough
from tests.unit.fuse.kernel import Answer, Kernel, lock_in
from tests.unit.fuse.test_opcodes import run

KEEP_CACHE, NOFLUSH, PASSTHROUGH = 2, 32, 128
FLOCK_UNLOCK = 2


def ask(kernel: Kernel, opcode: int, ino: int, body: bytes) -> Answer:
    """As `Kernel.ask`, but the mount goes on afterwards: that one ends it to get all answers."""
    answer = kernel.answer_to(kernel.send(opcode, ino, body))
    assert answer is not None, "not answered at once"
    return answer


def open_(kernel: Kernel, ino: int, flags: int = os.O_RDONLY) -> Answer:
    return ask(kernel, k.OPEN, ino, struct.pack("=II", flags, 0))


def release(kernel: Kernel, ino: int, fh: int, flags: int = 0) -> None:
    assert ask(kernel, k.RELEASE, ino, struct.pack("=QIIQ", fh, 0, flags, 5)).error == 0


async def file(kernel: Kernel, name: bytes = b"file") -> int:
    """Its inode number; it was written, closed, and read once."""
    made = await kernel.create(name)
    await kernel.write(made.nodeid, made.fh, 0, b"content")
    await kernel.flush(made.nodeid, made.fh)
    await kernel.release(made.nodeid, made.fh)
    opened = open_(kernel, made.nodeid)
    release(kernel, made.nodeid, opened.fh)
    assert kernel.vfs.open_handles == 1  # parked
    return made.nodeid


def test_the_same_handle_is_handed_out_again() -> None:
    """Its pages stay, and nothing is open at the end."""

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        first = open_(kernel, ino)
        assert first.open_flags == KEEP_CACHE | NOFLUSH
        assert kernel.vfs.open_handles == 1
        other = open_(kernel, ino)
        assert other.fh != first.fh
        assert kernel.vfs.open_handles == 2
        release(kernel, ino, first.fh)
        again = open_(kernel, ino)
        assert again.payload == first.payload
        release(kernel, ino, again.fh)
        release(kernel, ino, other.fh)  # a second one is not kept
        assert kernel.vfs.open_handles == 1
        await kernel.dispatcher.stop()
        assert kernel.vfs.open_handles == 0

    run(scenario)


async def _changed(kernel: Kernel, ino: int) -> None:
    await kernel.vfs.setattr(ROOT_CALLER, Ino(ino), mode=0o600)


async def _written(kernel: Kernel, ino: int) -> None:
    caller = ROOT_CALLER
    fh = await kernel.vfs.open(caller, Ino(ino), os.O_WRONLY)
    await kernel.vfs.write(fh, 0, b"another")
    await kernel.vfs.release(fh)


async def _nothing(_kernel: Kernel, _ino: int) -> None: ...


@pytest.mark.parametrize(
    ("happens", "flags", "warm_s", "keeps"),
    [
        (_changed, os.O_RDONLY, 60.0, KEEP_CACHE),
        (_written, os.O_RDONLY, 60.0, 0),
        (_nothing, os.O_RDONLY | os.O_NONBLOCK, 60.0, KEEP_CACHE),
        (_nothing, os.O_WRONLY, 60.0, KEEP_CACHE),
        (_nothing, os.O_RDONLY, 0.0, KEEP_CACHE),
    ],
    ids=["attributes", "content", "other flags", "writer", "too long ago"],
)
def test_else_it_is_opened_anew(
    happens: Callable[[Kernel, int], Awaitable[None]], flags: int, warm_s: float, keeps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another handle, another look at the version, and the parked one is closed."""
    monkeypatch.setattr(opens, "WARM_S", warm_s)

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        parked = kernel.answers[-2].fh
        await happens(kernel, ino)
        opened = open_(kernel, ino, flags)
        assert opened.fh != parked
        assert opened.open_flags & KEEP_CACHE == keeps
        assert kernel.vfs.open_handles == 1

    run(scenario)


@pytest.mark.parametrize("open_flags", [0, 1], ids=["plain", "kills set-id bits"])
def test_what_is_parked_is_no_reader(open_flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer comes after the last reader's close: the file keeps its node id, and is read through
    the cache next, as if there had been no reader."""
    monkeypatch.setattr(opens, "WARM_S", 60.0)

    async def test(s: passthrough.Scenario) -> None:
        nodeid = await s.file()
        reader = await s.kernel.open(nodeid)
        assert reader.open_flags & PASSTHROUGH
        release(s.kernel, nodeid, reader.fh)
        again = open_(s.kernel, nodeid)
        assert again.payload == reader.payload
        release(s.kernel, nodeid, again.fh)
        body = struct.pack("=II", os.O_WRONLY, open_flags)
        assert (await s.kernel.ask(k.OPEN, nodeid, body)).error == 0
        assert open_(s.kernel, nodeid).open_flags & PASSTHROUGH == 0
        await s.kernel.dispatcher.stop()
        for fh in list(s.vfs._handles):
            await s.vfs.release(fh)

    passthrough.run(test)


def test_locks_are_given_back_at_every_close() -> None:
    """A handle through which somebody locked is not parked: RELEASE gives the locks back."""

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        reader = open_(kernel, ino).fh
        writer = (await kernel.open(ino, os.O_RDWR)).fh
        for flags in (0, FLOCK_UNLOCK):
            mine = lock_in(reader, 5, fcntl.F_RDLCK, flags=bool(flags))
            assert (await kernel.ask(k.SETLK, ino, mine)).error == 0
            await kernel.release(ino, reader, flags, 5)
            other = lock_in(writer, 6, fcntl.F_WRLCK, flags=bool(flags))
            assert (await kernel.ask(k.SETLK, ino, other)).error == 0
            reader = open_(kernel, ino).fh

    run(scenario)


def test_only_so_many_are_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was closed first goes first."""
    monkeypatch.setattr(opens, "PARKED_MAX", 2)
    monkeypatch.setattr(opens, "WARM_S", 60.0)

    async def scenario(kernel: Kernel) -> None:
        inos = [(await kernel.create(b"%d" % number)).nodeid for number in range(3)]
        await kernel.dispatcher.stop()
        for fh in list(kernel.vfs._handles):
            await kernel.vfs.release(fh)
        handles = {}
        for ino in inos:
            handles[ino] = open_(kernel, ino).fh
            release(kernel, ino, handles[ino])
        assert kernel.vfs.open_handles == 2
        assert [open_(kernel, ino).fh == handles[ino] for ino in inos] == [False, True, True]

    run(scenario)


def test_of_those_with_a_descriptor_fewer_are_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens very many passed files does not use up the process's descriptors."""
    monkeypatch.setattr(opens, "PASSED_MAX", 2)
    monkeypatch.setattr(opens, "WARM_S", 60.0)

    async def test(s: passthrough.Scenario) -> None:
        nodeids = [await s.file(b"%d" % number) for number in range(4)]
        readers = [await s.kernel.open(nodeid) for nodeid in nodeids]
        assert all(reader.open_flags & PASSTHROUGH for reader in readers)
        for nodeid, reader in zip(nodeids, readers, strict=True):
            release(s.kernel, nodeid, reader.fh)
        assert s.vfs.open_handles == 2
        await s.kernel.dispatcher.stop()
        assert s.vfs.open_handles == 0

    passthrough.run(test)


def test_what_nobody_opens_again_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a timer."""
    monkeypatch.setattr(opens, "WARM_S", 0.0)

    async def scenario(kernel: Kernel) -> None:
        await file(kernel)
        await k.settle()
        assert kernel.vfs.open_handles == 0

    run(scenario)


def test_an_answer_that_nobody_got_leaves_nothing_open() -> None:
    """The program was killed while its open(2) was on its way."""

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        kernel.takes = False
        kernel.send(k.OPEN, ino, struct.pack("=II", os.O_RDONLY, 0))
        await kernel.dispatcher.stop()
        assert kernel.vfs.open_handles == 0

    run(scenario)


@pytest.mark.expects_log("refused an answer")
def test_an_answer_that_the_kernel_refuses_is_eio() -> None:
    """Else its program would wait for ever."""

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        kernel.refuses = 2
        unique = kernel.send(k.OPEN, ino, struct.pack("=II", os.O_RDONLY, 0))
        answer = kernel.answer_to(unique)
        assert answer is not None
        assert answer.error == errno.EIO

    run(scenario)


@pytest.fixture
def logs() -> Iterator[tuple[int, int]]:
    logs = (os.memfd_create("a"), os.memfd_create("b"))
    yield logs
    for fd in logs:
        os.close(fd)


def test_a_successor_hears_of_what_is_open_and_not_of_what_is_parked(
    logs: tuple[int, int],
) -> None:
    """Also when the log was written anew in between."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        for _ in range(2):
            assert read_logs(logs)[2].handles == {}
            opened = open_(kernel, ino)
            assert [*read_logs(logs)[2].handles] == [opened.fh]
            journal.compact()
            handles = read_logs(logs)[2].handles
            assert [(one.fh, one.ino) for one in handles.values()] == [(opened.fh, ino)]
            release(kernel, ino, opened.fh)

    run(scenario, journal=journal)


def test_a_successor_hears_who_opened_it_last(logs: tuple[int, int]) -> None:
    """Each time by another user, and once more by the same."""
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())

    async def scenario(kernel: Kernel) -> None:
        ino = await file(kernel)
        for uid, gid in ((1000, 100), (0, 0), (0, 5), (7, 5), (7, 5)):
            kernel.uid, kernel.gid = uid, gid
            opened = open_(kernel, ino)
            assert kernel.vfs.open_handles == 1, "the same handle"
            (handle,) = read_logs(logs)[2].handles.values()
            assert (handle.uid, handle.gid) == (uid, gid)
            assert read_logs(logs)[2].handed[kernel.answers[-1].unique] == opened.fh
            release(kernel, ino, opened.fh)

    run(scenario, journal=journal)
