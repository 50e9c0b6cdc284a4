"""What a mount wrote by itself it knows: no request asks for it, until somebody else changes it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from pydi_fs.vfs import holds
from pydi_fs.vfs.open_file import KEPT_MAX_BYTES
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import ROOT_INO, Ino
from tests.harness.procs import NodeProcess
from tests.node.test_holds import DEADLINE_S, Mount, _content
from tests.unit.tree.driver import file_error


async def written(mount: Mount, name: bytes, content: bytes) -> Ino:
    fh = await mount.create(name)
    half = len(content) // 2
    for start, end in ((0, half), (half, len(content))):
        await mount.vfs.write(fh, start, content[start:end])
        await mount.vfs.fsync(fh)
    ino: Ino = mount.vfs.ino_of(fh)
    await mount.vfs.flush(fh)
    await mount.vfs.release(fh)
    return ino


@pytest.mark.parametrize("size", [7, 5000, KEPT_MAX_BYTES, KEPT_MAX_BYTES + 1])
def test_what_was_just_written_is_read_without_a_question(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also after its times and its name were changed, as `cp -p` and git do; more than is kept is
    asked for. What is written on top of it is published as ever."""
    monkeypatch.setattr(holds, "TELL_AFTER_S", DEADLINE_S)

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as mount, Mount(node, tmp_path / "b") as other:
            content = os.urandom(size)
            vfs, sent = mount.vfs, mount.client.sent
            ino = await written(mount, b"f", content)
            assert size > KEPT_MAX_BYTES or vfs._area.memory_bytes_free == 64 << 20
            await vfs.setattr(ROOT_CALLER, ino, mtime_ns=5, mode=0o600)
            await vfs.rename(ROOT_CALLER, ROOT_INO, b"f", ROOT_INO, b"g", 0)
            for _ in range(2):
                sent.clear()
                assert await _content(vfs, ino) == content
                assert size > KEPT_MAX_BYTES or sent == []
            fh = await vfs.open(ROOT_CALLER, ino, os.O_RDWR)
            await vfs.write(fh, 3, b"---")
            await vfs.write(fh, size, b"end")
            content = content[:3] + b"---" + content[6:] + b"end"
            assert await vfs.read(fh, 0, 1 << 20) == content
            await vfs.flush(fh)
            await vfs.release(fh)
            assert await _content(vfs, ino) == await _content(other.vfs, ino) == content
            assert (await other.vfs.getattr(ino)).mode & 0o7777 == 0o600

    asyncio.run(scenario())


def test_what_somebody_else_changed_since_is_asked_for(node: NodeProcess, tmp_path: Path) -> None:
    """Content, size, or a lost name of a file that was written here."""

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            ino = await written(here, b"f", b"content")
            fh = await there.vfs.open(ROOT_CALLER, ino, os.O_WRONLY)
            await there.vfs.write(fh, 0, b"C")
            await there.vfs.flush(fh)
            await there.vfs.release(fh)
            assert await _content(here.vfs, ino) == b"Content"
            other = await written(here, b"g", b"content")
            await there.vfs.setattr(ROOT_CALLER, other, size=3)
            assert await _content(here.vfs, other) == b"con"
            third = await written(here, b"h", b"content")
            await here.vfs.setattr(ROOT_CALLER, third, size=3)
            assert await _content(here.vfs, third) == b"con"
            await there.vfs.unlink(ROOT_CALLER, ROOT_INO, b"f")
            with file_error(errno.ENOENT):
                await here.vfs.lookup(ROOT_INO, b"f")

    asyncio.run(scenario())


def test_a_write_asks_for_no_attributes(node: NodeProcess, tmp_path: Path) -> None:
    """The kernel wants to know of security.capability before it writes to a file, and again after
    each fsync: what this mount publishes takes no attribute away. Another mount may."""
    name = b"security.capability"

    async def scenario() -> None:
        async with Mount(node, tmp_path / "a") as here, Mount(node, tmp_path / "b") as there:
            vfs: Vfs = here.vfs
            fh = await here.create(b"f")
            ino = vfs.ino_of(fh)
            for number in range(3):
                assert vfs.lacks_xattr(ino, name)
                await vfs.write(fh, number, b"x")
                await vfs.fsync(fh)
            assert vfs.lacks_xattr(ino, name)
            await there.vfs.setxattr(ROOT_CALLER, ino, b"user.a", b"1", 0)
            assert not vfs.lacks_xattr(ino, b"user.a")
            assert await vfs.getxattr(ino, b"user.a") == b"1"
            await vfs.write(fh, 0, b"y")
            await vfs.fsync(fh)
            await vfs.setxattr(ROOT_CALLER, ino, b"user.b", b"2", 0)
            assert await vfs.listxattr(ROOT_CALLER, ino) == [b"user.a", b"user.b"]
            await vfs.release(fh)

    asyncio.run(scenario())
