"""durability=fsync: close(2) returns at once, and the cluster hears of the file a moment later.

Two mounts of one node, in this process; programs and kernels are in tests/mount.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from pydi_fs.vfs import behind as behind_module
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journalling import STAGE_PREFIX
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import DisconnectedError, FileError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.wire.messages import GetAttr, GetFile
from tests.harness.procs import NodeProcess
from tests.node.test_pending_creates import (
    NEVER_S,
    DelegatingMount,
    Worker,
    _nothing_by_itself,
    eventually,
    logs,
    run_with,
)
from tests.unit.tree.driver import file_error

__all__ = ["_nothing_by_itself", "logs"]

LARGE_BYTES = 3 << 20  # goes to a node as a blob, in several pieces
SIZES = (0, 7, LARGE_BYTES)


class ClosingMount(DelegatingMount):
    def config(self, staging: Path) -> VfsConfig:
        return VfsConfig(staging, delegates=True, closes_behind=True)

    async def wait_delegated(self, directory: Ino) -> None:
        await super().wait_delegated(directory)
        await eventually(lambda: self.vfs._behind._space is not None)
        self.client.sent.clear()

    async def put(self, name: bytes, content: bytes = b"content") -> Ino:
        """create, write, close."""
        ino, fh = await self.begin(name)
        if content:
            await self.vfs.write(fh, 0, content)
        await self.end(fh)
        return ino


@pytest.fixture(autouse=True)
def _nothing_is_told_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "DELAY_S", NEVER_S)
    monkeypatch.setattr(behind_module, "WAITING_MAX", 1000)


Scenario = Callable[[ClosingMount, DelegatingMount], Awaitable[None]]


def run(node: NodeProcess, tmp_path: Path, scenario: Scenario) -> None:
    run_with(ClosingMount, node, tmp_path, scenario)


def test_a_close_waits_for_nothing(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, small and large files: no request before their close returns but content that streams;
    all of them are told soon after, in one command each."""
    monkeypatch.setattr(behind_module, "DELAY_S", 0.05)

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        mount.vfs._delegations.numbers._left_min = 0  # nothing else is asked
        inos = [await mount.put(b"%d" % number) for number in range(20)]
        inos.append(await mount.put(b"empty", b""))
        assert not mount.client.sent
        inos.append(await mount.put(b"large", b"x" * LARGE_BYTES))
        assert set(mount.client.sent) <= {"BlobCreate", "BlobWrite"}
        await eventually(lambda: not mount.vfs._delegations.pending)
        assert Counter(mount.client.sent)["ExecutePut"] == 20
        assert Counter(mount.client.sent)["Execute"] == 2
        sizes = [(await mount.asker.call(GetAttr(ino))).size for ino in inos]
        assert sizes == [7] * 20 + [0, LARGE_BYTES]
        assert (await mount.asker.call(GetFile(inos[0]))).contents[0][1] == b"content"
        assert not mount.vfs._files
        assert mount.vfs._behind._bytes == 0

    run(node, tmp_path, scenario)


def test_programs_here_see_what_was_closed(node: NodeProcess, tmp_path: Path) -> None:
    """Looked up, opened, read and written on, without a request; and then told as it is."""

    async def see(mount: ClosingMount, size: int) -> None:
        name = b"%d" % size
        ino = await mount.put(name, b"x" * size)
        mount.client.sent.clear()
        assert (await mount.vfs.lookup(mount.at, name)).size == size
        fh = await mount.vfs.open(ROOT_CALLER, ino, os.O_RDWR | os.O_APPEND)
        assert await mount.vfs.read(fh, 0, 2 * LARGE_BYTES) == b"x" * size
        await mount.vfs.write(fh, 0, b"more")
        await mount.end(fh)
        await mount.vfs.setattr(ROOT_CALLER, ino, mode=0o600, atime_ns=4, mtime_ns=5)
        shown = await mount.vfs.getattr(ino)
        assert (shown.size, shown.mode & 0o777, shown.mtime_ns) == (size + 4, 0o600, 5)
        assert mount.is_pending(ino)
        assert not {"Execute", "ExecutePut"} & set(mount.client.sent)
        await mount.vfs.fsyncdir(mount.at)
        kept = await mount.asker.call(GetAttr(ino))
        same = (
            "mode",
            "nlink",
            "uid",
            "gid",
            "size",
            "allocated",
            "atime_ns",
            "mtime_ns",
            "ctime_ns",
        )
        assert [getattr(kept, of) for of in same] == [getattr(shown, of) for of in same]

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        for size in SIZES:
            await see(mount, size)
        await mount.put(b"f")
        with file_error(errno.EEXIST):
            await mount.vfs.create(ROOT_CALLER, mount.at, b"f", 0o644, os.O_WRONLY | os.O_EXCL)

    run(node, tmp_path, scenario)


@pytest.mark.parametrize("look", ["lookup", "readdir", "O_EXCL"])
def test_another_mount_sees_at_once_what_was_closed_here(
    node: NodeProcess, tmp_path: Path, look: str
) -> None:
    """With its content: nobody tells when the cluster has heard of it."""

    async def scenario(holder: ClosingMount, other: DelegatingMount) -> None:
        inos = [await holder.put(b"%d" % size, b"x" * size) for size in SIZES]
        if look == "lookup":
            assert (await other.vfs.lookup(other.at, b"%d" % LARGE_BYTES)).size == LARGE_BYTES
        elif look == "readdir":
            assert len(await other.names(other.at)) == len(SIZES)
        else:
            with file_error(errno.EEXIST):
                await other.vfs.create(ROOT_CALLER, other.at, b"0", 0o644, os.O_WRONLY | os.O_EXCL)
        assert not holder.vfs._delegations.pending
        for ino, size in zip(inos, SIZES, strict=True):
            assert (await other.vfs.getattr(ino)).size == size
            assert await other.content(ino) == (b"x" * size)[:10_000]

    run(node, tmp_path, scenario)


def test_who_wants_it_on_disk_waits_for_that(node: NodeProcess, tmp_path: Path) -> None:
    """fsync of the file, of its directory, syncfs, rename, and the end of the mount."""

    async def sync(mount: ClosingMount, call: str, ino: Ino) -> None:
        name = call.encode()
        if call == "fsync":
            fh = await mount.vfs.open(ROOT_CALLER, ino, os.O_RDONLY)
            await mount.vfs.fsync(fh)
            await mount.vfs.release(fh)
        elif call == "fsync of the directory":
            await mount.vfs.fsyncdir(mount.at)
        elif call == "syncfs":
            await mount.vfs.sync()
        elif call == "rename":
            await mount.vfs.rename(ROOT_CALLER, mount.at, name, mount.at, b"other", 0)
        else:
            await mount.vfs.stop()

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        for call in ("fsync", "fsync of the directory", "syncfs", "rename", "the end"):
            ino = await mount.put(call.encode())
            await sync(mount, call, ino)
            assert (await mount.asker.call(GetFile(ino))).contents[0][1] == b"content"

    run(node, tmp_path, scenario)


def test_what_its_fsync_told_is_told(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no room from those that wait, and nothing of it is kept."""
    monkeypatch.setattr(behind_module, "DELAY_S", 0.05)

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        fh = await mount.vfs.open(ROOT_CALLER, await mount.put(b"f"), os.O_RDONLY)
        await mount.vfs.fsync(fh)
        await mount.vfs.release(fh)
        await eventually(lambda: not mount.vfs._behind._closed)
        assert mount.vfs._behind._bytes == 0
        assert not mount.vfs._files

    run(node, tmp_path, scenario)


@pytest.mark.parametrize(
    "answered",
    [True, pytest.param(False, marks=pytest.mark.expects_log("closed, and not told yet"))],
)
def test_pages_that_are_written_after_the_close(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """A mapping outlives its descriptor; its pages come while the file is on its way, and then the
    end of it. They are told, too, though the file is there and nobody answers at first."""
    monkeypatch.setattr(behind_module, "AGAIN_S", 0.01)

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        ino, fh = await mount.begin(b"f")
        await mount.vfs.write(fh, 0, b"at its close")
        await mount.vfs.flush(fh)
        file = mount.vfs._files[ino]
        publish, count = file.publish, 0

        async def pages_come() -> None:
            nonlocal count
            count += 1
            if count == 2 and not answered:
                raise DisconnectedError("nobody answered")
            publishing = asyncio.create_task(publish())
            if count == 1:
                await asyncio.sleep(0)
                assert file.busy
                assert not file.dirty, "it is on its way"
                await mount.vfs.write(fh, 0, b"afterwards  ")
                await mount.vfs.release(fh)
            await publishing

        monkeypatch.setattr(file, "publish", pages_come)
        await mount.vfs._behind.tell_all()
        await eventually(lambda: not mount.vfs._files)
        assert not mount.vfs._behind._closed
        assert (await mount.asker.call(GetFile(ino))).contents[0][1] == b"afterwards  "

    run(node, tmp_path, scenario)


def test_what_is_not_told_is_bounded(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In files and in bytes: a close beyond that waits until others have been told of. A file that
    is larger than all that waits for itself."""
    monkeypatch.setattr(behind_module, "FILES_MAX", 8)
    monkeypatch.setattr(behind_module, "BYTES_MAX", 1 << 20)
    most = most_bytes = 0

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        nonlocal most, most_bytes
        behind = mount.vfs._behind
        for number in range(40):
            await mount.put(b"%d" % number)
            most = max(most, len(behind._closed))
        for number in range(40, 50):
            await mount.put(b"%d" % number, b"x" * 200_000)
            most_bytes = max(most_bytes, behind._bytes)
        assert most == 8
        assert 800_000 <= most_bytes <= 1 << 20
        _, fh = await mount.vfs.create(
            ROOT_CALLER, mount.at, b"large", 0o644, os.O_RDWR | os.O_EXCL
        )
        await mount.vfs.write(fh, 0, b"x" * LARGE_BYTES)
        await mount.vfs.flush(fh)
        attr = await mount.asker.call(GetAttr(mount.vfs.ino_of(fh)))
        assert attr.size == LARGE_BYTES
        await mount.vfs.release(fh)
        assert len(await mount.names(mount.at)) == 51

    run(node, tmp_path, scenario)


def test_a_create_waits_for_numbers(node: NodeProcess, tmp_path: Path) -> None:
    """When they run out faster than new ones come: it is told later all the same."""

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        for number in range(10):
            await mount.put(b"%d" % number)
            if number % 3 == 0:
                mount.vfs._delegations.numbers.left.clear()
            await mount.vfs.sync()

    run(node, tmp_path, scenario)


def test_numbers_of_closed_files_stay_reserved(node: NodeProcess, tmp_path: Path) -> None:
    """The tree remembers few reservations: none is made while files with numbers of the oldest one
    are not told of, and in the meantime the cluster is asked to create."""

    async def scenario(mount: ClosingMount, _: DelegatingMount) -> None:
        mount.vfs._delegations._pending_max = 10_000
        behind_max = behind_module.FILES_MAX
        try:
            behind_module.FILES_MAX = 10_000
            for number in range(300):
                flags = os.O_WRONLY | os.O_EXCL
                _, fh = await mount.vfs.create(ROOT_CALLER, mount.at, b"%d" % number, 0o644, flags)
                await mount.vfs.write(fh, 0, b"content")
                await mount.end(fh)
        finally:
            behind_module.FILES_MAX = behind_max
        assert len(mount.vfs._delegations.pending) > 100
        await mount.vfs.sync()
        names = await mount.names(mount.at)
        assert len(names) == 300

    run(node, tmp_path, scenario)


@pytest.mark.expects_log("told too late, made anew", "lost after its close")
def test_who_was_silent_while_another_looked_makes_its_files_anew(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The other one was told that they are not there, so they are other files from now on; what it
    has made itself stays."""

    async def scenario(holder: ClosingMount, other: DelegatingMount) -> None:
        small = await holder.put(b"small")
        large = await holder.put(b"large", b"x" * LARGE_BYTES)
        await holder.put(b"theirs", b"ours")
        connection = holder.client._connection
        assert connection is not None
        assert connection._transport is not None
        assert connection._watchdog is not None
        connection._watchdog.cancel()  # as if it were stopped
        connection._transport.pause_reading()
        _, fh = await other.vfs.create(
            ROOT_CALLER, other.at, b"theirs", 0o644, os.O_WRONLY | os.O_EXCL
        )
        await other.vfs.write(fh, 0, b"theirs")
        await other.end(fh)
        # After each word to the kernel programs look again.
        looks: dict[bytes, asyncio.Task[bool]] = {}

        async def is_there(name: bytes) -> bool:
            try:
                await holder.vfs.lookup(holder.at, name)
            except FileError:
                return False
            return True

        def look(_: object, entries: Iterable[tuple[Ino, bytes]], __: bool) -> None:
            for parent, name in entries:
                if parent == holder.at:
                    looks[name] = asyncio.create_task(is_there(name))

        holder.vfs.on_invalidate = look
        connection._transport.resume_reading()
        with file_error(errno.EEXIST):
            await holder.vfs.fsyncdir(holder.at)
        await holder.vfs.sync()
        assert await looks[b"small"]
        assert await looks[b"large"]
        for name, ino, content in (
            (b"small", small, b"content"),
            (b"large", large, b"x" * 10_000),
            (b"theirs", 0, b"theirs"),
        ):
            for mount in (holder, other):
                attr = await mount.vfs.lookup(holder.at, name)
                assert attr.ino != ino
                assert await mount.content(attr.ino) == content
        assert not holder.vfs._files

    run(node, tmp_path, scenario)


# --- a worker dies, another goes on ---------------------------------------------------------------


class ClosingWorker(Worker):
    """Files of its stages are kept, as by a supervisor."""

    def __init__(
        self, node: NodeProcess, staging: Path, logs: tuple[int, int], kept: dict[str, int]
    ) -> None:
        self.kept = kept
        super().__init__(node, staging, logs)

    def config(self, staging: Path) -> VfsConfig:
        self.journal._keep = lambda name, fd: self.kept.update({name: os.dup(fd)})
        return VfsConfig(staging, delegates=True, closes_behind=True, journal=self.journal)

    def stage_files(self) -> dict[int, int]:
        return {int(name.removeprefix(STAGE_PREFIX)): fd for name, fd in self.kept.items()}


@pytest.mark.parametrize("when", ["closed", "told, and not answered", "compacted"])
def test_a_successor_tells_what_was_closed(
    node: NodeProcess, tmp_path: Path, logs: tuple[int, int], when: str
) -> None:
    """Once, with its content, also where that is in a file of the supervisor; of files that nobody
    has open any more."""
    sizes = {b"empty": 0, b"small": 7, b"middle": 100_000, b"large": LARGE_BYTES}
    inos: dict[bytes, Ino] = {}
    kept: dict[str, int] = {}

    async def first() -> None:
        worker = ClosingWorker(node, tmp_path / "a", logs, kept)
        await worker.__aenter__()
        worker.at = (await worker.vfs.mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        await worker.wait_delegated(worker.at)
        await eventually(lambda: worker.vfs._behind._space is not None)
        for name, size in sizes.items():
            inos[name], fh = await worker.begin(name)
            if size:
                await worker.vfs.write(fh, 0, b"x" * size)
            await worker.end(fh)
        if when == "compacted":
            worker.journal.compact()
        elif when != "closed":
            creates = [worker.vfs._delegations.pending[ino] for ino in inos.values()]
            for create in creates:
                create.start()
            await eventually(lambda: all(create.attempt for create in creates))
        await worker.die()

    async def second() -> None:
        worker = ClosingWorker(node, tmp_path / "b", logs, kept)
        async with worker, DelegatingMount(node, tmp_path / "c") as other:
            other.at = (await other.vfs.lookup(ROOT_INO, b"d")).ino
            assert sorted(await other.names(other.at)) == sorted(sizes)
            for name, size in sizes.items():
                attr = await other.vfs.lookup(other.at, name)
                assert (attr.ino, attr.size) == (inos[name], size)
                assert await other.content(attr.ino) == (b"x" * size)[:10_000]
            await eventually(lambda: not worker.vfs._behind._closed)
            assert not worker.vfs._files

    asyncio.run(first())
    asyncio.run(second())
