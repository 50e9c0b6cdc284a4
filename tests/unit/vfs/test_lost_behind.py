"""What a mount does when a file that was closed can not be told: a stand-in for a node says so."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pydi_fs.client import Client
from pydi_fs.vfs import behind
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER, Delegate, Mkdir, PutFile, ReserveInodes
from pydi_node.errors import FileError, NoQuorumError, NoSpaceError, PydiError, errno_of
from pydi_node.ids import ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import Attr, Result, Statfs
from pydi_node.wire import messages
from pydi_node.wire.events import RequestReceived
from pydi_node.wire.messages import Execute, ExecutePut, Lookup, PathOf, Role
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving
from tests.unit.vfs.empty_file import answer_plainly

DIRECTORY = Ino(9)
NUMBERS = Ino(100)
NOW, AT = TimeNs(0), LogIndex(10)
ROOM = 1 << 40

Fate = PydiError | Result | None  # of a file that is told; None: it is made


def attr_of(ino: Ino, mode: int, size: int = 0) -> Attr:
    return Attr(ino, mode, 2, 0, 0, 0, size, size, NOW, NOW, NOW, NOW, AT, AT)


class Told:
    """What the node answers to files that it is told of, and what it was told."""

    def __init__(self) -> None:
        self.fate: Fate = None
        self.serials: list[int] = []
        self.free_bytes = ROOM

    def answer(self, node: Node, event: object) -> Buffers:
        if not isinstance(event, RequestReceived):
            return answer_plainly(node, event)
        request = event.request
        if isinstance(request, (Execute, ExecutePut)):
            command = request.command
            if isinstance(command, PutFile):
                self.serials.append(request.serial)
                if isinstance(self.fate, PydiError):
                    return [*node.session.send_error(event.request_id, self.fate)]
                if command.ino is None:
                    return [*node.session.send_answer(event.request_id, Result(errno.EEXIST))]
                made = attr_of(command.ino, stat.S_IFREG | command.mode, command.size)
                result = self.fate or Result(0, made)
            elif isinstance(command, Mkdir):
                result = Result(0, attr_of(DIRECTORY, stat.S_IFDIR | 0o755))
            elif isinstance(command, ReserveInodes):
                result = Result(0, NUMBERS)
            else:
                result = Result(0, True if isinstance(command, Delegate) else 0)
            return [*node.session.send_answer(event.request_id, result)]
        if isinstance(request, messages.Statfs):
            totals = Statfs(ROOM, self.free_bytes, 1)
            return [*node.session.send_answer(event.request_id, totals)]
        if isinstance(request, PathOf):
            return [*node.session.send_answer(event.request_id, b"/a/d")]
        if isinstance(request, Lookup):
            return [*node.session.send_error(event.request_id, FileError(errno.ENOENT))]
        return answer_plainly(node, event)


async def closed(vfs: Vfs, name: bytes) -> int:
    """create, write, close of a new file; what close(2) says."""
    flags = os.O_WRONLY | os.O_EXCL
    attr, fh = await vfs.create(ROOT_CALLER, DIRECTORY, name, 0o644, flags)
    assert attr.ino in vfs._delegations.pending
    await vfs.write(fh, 0, b"content")
    try:
        await vfs.flush(fh)
        return 0
    except PydiError as exc:
        return errno_of(exc)
    finally:
        await vfs.release(fh)


async def space_is_known(vfs: Vfs, free_bytes: int) -> None:
    vfs._behind._look_at_space()
    await wait_until(lambda: vfs._behind._space == free_bytes)


async def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def run_with(
    tmp_path: Path, scenario: Callable[[Vfs, Told, list[object]], Awaitable[None]]
) -> None:
    async def main() -> None:
        told = Told()
        dropped: list[object] = []
        async with serving(tmp_path / "node.sock", says_welcome, told.answer) as node:
            client = Client([node.endpoint], role=Role.MOUNT, deadline_s=0.2)
            config = VfsConfig(tmp_path / "staging", delegates=True, closes_behind=True)
            vfs = Vfs(client, config)
            vfs.on_invalidate = lambda inos, entries, everything: dropped.extend(entries)
            await client.connect()
            await vfs.start()
            await wait_until(lambda: vfs.lease_s() > 0 and vfs._behind._space is not None)
            await vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)
            await wait_until(lambda: vfs._delegations.is_complete(DIRECTORY))
            try:
                await scenario(vfs, told, dropped)
            finally:
                await vfs.stop()
                await client.close()
                await node.left.wait()

    run(main())


@pytest.mark.expects_log(r"/a/d/f. \(ino=1..\): lost after its close", "not published at close",
                         "content lost, close", "not created, its directory")  # fmt: skip
@pytest.mark.parametrize(
    ("fate", "said", "said_later"),
    [
        (NoSpaceError("full"), errno.ENOSPC, errno.ENOSPC),
        (Result(errno.ESTALE), errno.ESTALE, errno.EEXIST),
    ],
    ids=["no space", "the directory was taken back"],
)
def test_a_file_that_is_refused_is_lost_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: Fate, said: int, said_later: int
) -> None:
    """By the log with its path, by the next fsync of the directory or syncfs, once; the kernel
    forgets the name. Then closes wait, and tell it themselves, until the cluster takes one."""

    monkeypatch.setattr(behind, "GIVE_UP_AFTER_S", 0.0)

    async def scenario(vfs: Vfs, told: Told, dropped: list[object]) -> None:
        syncs = (lambda: vfs.fsyncdir(DIRECTORY), vfs.sync, lambda: vfs.fsyncdir(ROOT_INO))
        for number, sync in enumerate(syncs):
            await space_is_known(vfs, ROOM)
            told.fate = fate
            name = b"f%d" % number
            assert await closed(vfs, name) == 0
            await wait_until(functools.partial(dropped.__contains__, (DIRECTORY, name)))
            assert not vfs._behind._closed
            assert not vfs._files
            with pytest.raises(FileError):
                await vfs.lookup(DIRECTORY, name)
            assert await closed(vfs, b"g%d" % number) == said
            told.fate = None
            with pytest.raises(PydiError) as caught:
                await sync()
            assert errno_of(caught.value) == said_later
            await sync()
            assert await closed(vfs, b"h%d" % number) == 0

    run_with(tmp_path, scenario)


@pytest.mark.expects_log("closed, and not told yet")
@pytest.mark.parametrize("fate", [NoQuorumError("too few nodes"), NoSpaceError("full")], ids=str)
def test_where_it_may_be_told_still_it_is_told_again(tmp_path: Path, fate: Fate) -> None:
    """Under one serial. Who waits for it hears of the error."""

    async def scenario(vfs: Vfs, told: Told, _: list[object]) -> None:
        told.fate = fate
        assert await closed(vfs, b"f") == 0
        await wait_until(lambda: len(told.serials) > 1)
        with pytest.raises(PydiError):
            await vfs.sync()
        told.fate = None
        await wait_until(lambda: not vfs._behind.has(NUMBERS))
        await vfs.sync()
        assert set(told.serials) == {told.serials[0]}

    run_with(tmp_path, scenario)


@pytest.mark.expects_log("not published at close", "content lost, close")
def test_where_space_is_short_close_waits(tmp_path: Path) -> None:
    """So that it is close(2) that says ENOSPC."""

    async def scenario(vfs: Vfs, told: Told, _: list[object]) -> None:
        told.free_bytes = 1 << 20
        await space_is_known(vfs, 1 << 20)
        told.fate = NoSpaceError("full")
        assert await closed(vfs, b"f") == errno.ENOSPC
        told.fate = None

    run_with(tmp_path, scenario)
