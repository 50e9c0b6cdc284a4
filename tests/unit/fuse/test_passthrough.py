"""OPEN answered with a file: when, under which node id, and that every registration ends.

The kernel's table of backing files is a set of numbers here; the real one is behind the mount
tests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Awaitable, Callable

import pytest

from pydi_fs.fuse.passthrough import Passthrough
from pydi_fs.vfs.local_blobs import LocalBlob
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import Ino, NodeNumber, blob_id
from pydi_node.records import BlobInfo
from tests.harness.memory_vfs import MemoryVfs
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import ROOT, Answer, Kernel

KEEP_CACHE, NOFLUSH, PASSTHROUGH = 2, 32, 128
LONG_AGO_NS = 10**9


class BackingTable(Passthrough):
    """What the kernel keeps of registered files."""

    def __init__(self) -> None:
        super().__init__(0)
        self.registered: set[int] = set()
        self.refuses = False
        self._last = 0

    def _register(self, fd: int) -> int:
        if self.refuses:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        os.fstat(fd)
        self._last += 1
        self.registered.add(self._last)
        return self._last

    def _unregister(self, number: int) -> None:
        self.registered.remove(number)


class FilesVfs(MemoryVfs):
    """Every version of a file is also a file on this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[tuple[Ino, int], LocalBlob] = {}

    async def local_file(self, fh: int) -> LocalBlob | None:  # type: ignore[override]
        await asyncio.sleep(0)
        attr = await self.getattr(self.ino_of(fh))
        key = attr.ino, attr.version
        if key not in self.files:
            info = BlobInfo(blob_id(NodeNumber(1), attr.version + 1), 1, bytes(32), ())
            self.files[key] = LocalBlob(info, os.memfd_create("blob"))
        return self.files[key]

    def local_file_nowait(self, fh: int) -> tuple[bool, LocalBlob | None]:
        attr = self.getattr_nowait(self.ino_of(fh))
        assert attr is not None
        local = self.files.get((attr.ino, attr.version))
        return local is not None, local

    def close(self) -> None:
        for local in self.files.values():
            local.let_go()


class Scenario:
    def __init__(self, after_s: float | None) -> None:
        self.vfs = FilesVfs()
        self.kernel = Kernel(self.vfs, passthrough_after_s=after_s)
        self.table = BackingTable()
        self.kernel.dispatcher.passthrough = self.table

    async def file(self, name: bytes = b"file") -> int:
        """The node id of a file that was written long ago; its content no other file has."""
        made = await self.kernel.create(name)
        await self.kernel.write(made.nodeid, made.fh, 0, b"content" if name == b"file" else name)
        await self.kernel.release(made.nodeid, made.fh)
        await self.set_mtime(made.nodeid, LONG_AGO_NS)
        return made.nodeid

    async def set_mtime(self, nodeid: int, mtime_ns: int) -> None:
        await self.vfs.setattr(
            ROOT_CALLER, Ino(nodeid & 0xFFFF_FFFF), mtime_ns=mtime_ns, atime_ns=mtime_ns
        )

    async def lookup(self) -> int:
        return (await self.kernel.ask(k.LOOKUP, ROOT, b"file\0")).nodeid

    async def attr_valid(self, nodeid: int) -> tuple[int, int]:
        """For how long the kernel may believe the attributes: s, ns."""
        answer = await self.kernel.ask(k.GETATTR, nodeid, bytes(16))
        assert answer.error == 0
        seconds, nanoseconds = answer.unpack("QI")
        return seconds, nanoseconds


def run(test: Callable[[Scenario], Awaitable[None]], after_s: float | None = 5.0) -> None:
    async def main() -> None:
        scenario = Scenario(after_s)
        await test(scenario)
        scenario.vfs.close()
        assert not scenario.table.registered
        assert scenario.vfs.open_handles == 0

    asyncio.run(main())


def backing_id(answer: Answer) -> int:
    assert answer.error == 0
    (number,) = answer.unpack("i", 12)
    return int(number)


def test_a_file_at_rest_is_passed_through() -> None:
    """Every reader gets the same backing id, without flags that the kernel would refuse with it."""

    async def test(s: Scenario) -> None:
        nodeid = await s.file()
        answers = [await s.kernel.open(nodeid) for _ in range(3)]
        assert {backing_id(answer) for answer in answers} == {1}
        assert {answer.open_flags for answer in answers} == {PASSTHROUGH | NOFLUSH}
        for answer in answers:
            await s.kernel.release(nodeid, answer.fh)

    run(test)


@pytest.mark.parametrize("why", ["young", "off", "refused", "writer", "reader before", "no right"])
def test_otherwise_it_is_read_through_the_cache(why: str) -> None:
    """A young file, an open writer, a reader from before, a kernel that refuses: cached."""

    async def test(s: Scenario) -> None:
        nodeid = await s.file()
        opened = []
        if why == "young":
            await s.set_mtime(nodeid, 2**62)
        elif why == "refused":
            s.table.refuses = True
        elif why == "writer":
            opened.append(await s.kernel.open(nodeid, os.O_WRONLY))
        elif why == "reader before":
            await s.set_mtime(nodeid, 2**62)
            opened.append(await s.kernel.open(nodeid))
            await s.set_mtime(nodeid, LONG_AGO_NS)
        elif why == "no right":
            s.kernel.dispatcher.passthrough = None
        opened.append(await s.kernel.open(nodeid))
        assert not opened[-1].open_flags & PASSTHROUGH
        assert backing_id(opened[-1]) == 0
        for answer in opened:
            await s.kernel.release(nodeid, answer.fh)

    run(test, None if why == "off" else 5.0)


@pytest.mark.parametrize("change", ["writer", "truncation", "version"])
def test_a_change_moves_the_file_to_its_second_node_id(change: str) -> None:
    """OPEN is ESTALE, the next LOOKUP names another node id, and there it is opened, cached. Of
    the first one the kernel believes nothing any more."""

    async def test(s: Scenario) -> None:
        nodeid = await s.file()
        reader = await s.kernel.open(nodeid)
        assert backing_id(reader)
        assert await s.attr_valid(nodeid) != (0, 0)
        flags = {"writer": os.O_RDWR, "truncation": os.O_WRONLY | os.O_TRUNC, "version": 0}[change]
        if change == "version":
            s.vfs.change_elsewhere(b"file", b"new")
            await s.set_mtime(nodeid, LONG_AGO_NS)
        assert (await s.kernel.open(nodeid, flags)).error == errno.ESTALE
        assert s.kernel.forgotten[-1] == nodeid
        second = await s.lookup()
        assert second != nodeid
        writer = await s.kernel.open(second, flags)
        assert backing_id(writer) == 0
        assert (await s.kernel.open(nodeid)).error == errno.ESTALE
        assert await s.attr_valid(nodeid) == (0, 0)
        assert await s.attr_valid(second) != (0, 0)
        # The old one still means the same file.
        link = struct.pack("=Q", second) + b"other\0"
        assert (await s.kernel.ask(k.LINK, ROOT, link)).nodeid == second
        await s.kernel.release(second, writer.fh)
        await s.kernel.release(nodeid, reader.fh)

    run(test)


def test_an_open_that_nobody_waits_for_lets_go() -> None:
    """Its program was killed: the file is not held for it."""

    async def test(s: Scenario) -> None:
        nodeid = await s.file()
        s.kernel.takes = False
        s.kernel.send(k.OPEN, nodeid, struct.pack("=II", os.O_RDONLY, 0))
        await s.kernel.dispatcher.stop()
        s.kernel.takes = True
        (local,) = [local for local in s.vfs.files.values() if local.fd >= 0]
        assert local.pins == 0
        writer = await s.kernel.open(nodeid, os.O_RDWR)
        assert backing_id(writer) == 0
        await s.kernel.release(nodeid, writer.fh)

    run(test)


def test_a_file_stays_registered_while_it_is_open() -> None:
    """Let go by the vfs, it is closed with the last reader, and its id with it."""

    async def test(s: Scenario) -> None:
        nodeid = await s.file()
        first, second = await s.kernel.open(nodeid), await s.kernel.open(nodeid)
        for local in s.vfs.files.values():
            local.let_go()
        s.vfs.files.clear()
        await s.kernel.release(nodeid, first.fh)
        assert s.table.registered == {1}
        await s.kernel.release(nodeid, second.fh)
        assert not s.table.registered

    run(test)
