"""Content on this machine is read from the node's own files, and never through its connection."""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.client.descriptors import DescriptorClient
from pydi_fs.vfs.blob_cache import BlobCache
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import PydiError, errno_of
from pydi_node.ids import ROOT_INO
from pydi_node.records import BlobInfo
from pydi_node.wire.descriptors import ANSWER_BYTES, FileRequest, parse_answer
from pydi_node.wire.messages import BlobPut, BlobRead, Request
from tests.harness.procs import NodeProcess

DEADLINE_S = 60.0
CONTENT = os.urandom(3_000_000)


class CountingClient(Client):
    """Counts its requests by their kind."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: collections.Counter[type] = collections.Counter()

    async def call(self, request: Request, *arguments: Any, **more: Any) -> Any:
        self.sent[type(request)] += 1
        return await super().call(request, *arguments, **more)


async def connected(node: NodeProcess, staging: Path) -> tuple[Vfs, CountingClient]:
    client = CountingClient([node_on_this_machine(node.data_dir)])
    await client.connect()
    files = DescriptorClient(node.data_dir / "blobs.sock")
    vfs = Vfs(client, VfsConfig(staging, sources=(files,)))
    await vfs.start()
    return vfs, client


async def write(vfs: Vfs, content: bytes) -> None:
    _, fh = await vfs.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
    await vfs.write(fh, 0, content)
    await vfs.flush(fh)
    await vfs.release(fh)


async def read(vfs: Vfs) -> bytes:
    attr = await vfs.lookup(ROOT_INO, b"file")
    fh = await vfs.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
    try:
        return await vfs.read(fh, 0, attr.size + 1)
    finally:
        await vfs.release(fh)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


def blob_files(node: NodeProcess) -> list[Path]:
    return [p for p in (node.data_dir / "blobs").glob("[0-9a-f][0-9a-f]/*") if p.is_file()]


def test_local_content_is_not_asked_for(node: NodeProcess, tmp_path: Path) -> None:
    """Reading a local file sends no BlobRead, before and after the node was started again."""

    async def test() -> None:
        vfs, client = await connected(node, tmp_path)
        await write(vfs, CONTENT)
        assert await read(vfs) == CONTENT
        assert client.sent[BlobRead] == 0
        await vfs.stop()
        await client.close()

    run(test())
    assert node.stop() == 0
    assert not (node.data_dir / "blobs.sock").exists()
    node.start()

    async def again() -> None:
        vfs, client = await connected(node, tmp_path)
        assert await read(vfs) == CONTENT
        assert client.sent[BlobRead] == 0
        await vfs.stop()
        await client.close()

    run(again())


def test_a_file_is_local_right_after_its_writer_closed_it(
    node: NodeProcess, tmp_path: Path
) -> None:
    """The next open is answered before the writer's staging space is given back."""

    async def scenario() -> None:
        vfs, _ = await connected(node, tmp_path / "staging")
        attr, fh = await vfs.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
        await vfs.write(fh, 0, CONTENT[:40_000])
        await vfs.flush(fh)
        assert vfs.release_nowait(fh)
        fh = await vfs.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
        assert await vfs.local_file(fh) is not None
        assert await vfs.read(fh, 0, 40_001) == CONTENT[:40_000]
        await vfs.release(fh)
        await vfs.stop()
        await vfs.client.close()

    run(scenario())


def test_a_damaged_file_is_not_handed_out(node: NodeProcess, tmp_path: Path) -> None:
    """Content that changed on the disk is EIO, also for who had the file open."""

    async def test() -> None:
        vfs, client = await connected(node, tmp_path)
        await write(vfs, CONTENT)
        assert await read(vfs) == CONTENT
        (path,) = blob_files(node)
        path.chmod(0o600)
        path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        with pytest.raises(PydiError) as failed:
            await read(vfs)
        assert errno_of(failed.value) == errno.EIO
        assert not path.exists()
        assert list((node.data_dir / "blobs/quarantine").iterdir())
        await vfs.stop()
        await client.close()

    run(test())


def test_a_dead_node_leaves_open_files_readable(node: NodeProcess, tmp_path: Path) -> None:
    """What was opened before is still read from its file while the node is down."""

    async def test() -> None:
        vfs, client = await connected(node, tmp_path)
        await write(vfs, CONTENT)
        attr = await vfs.lookup(ROOT_INO, b"file")
        fh = await vfs.open(ROOT_CALLER, attr.ino, os.O_RDONLY)
        assert await vfs.read(fh, 0, 10) == CONTENT[:10]
        info = next(iter(vfs._files[attr.ino]._blobs.values()))
        node.kill()
        assert await vfs._reader.read(info, 5, len(CONTENT) - 5, False) == CONTENT[5:]
        await client.close()
        await vfs.stop()

    run(test())


def test_fetched_content_is_kept_on_disk(node: NodeProcess, tmp_path: Path) -> None:
    """A machine without a node fetches a file once, also when the mount is started again."""

    async def test() -> None:
        for is_kept in (False, True):
            client = CountingClient([node_on_this_machine(node.data_dir)])
            await client.connect()
            cache = BlobCache(tmp_path / "cache", 64 << 20)
            vfs = Vfs(client, VfsConfig(tmp_path, cache=cache))
            await vfs.start()
            if not is_kept:
                await write(vfs, CONTENT)
            for _ in range(2):
                assert await read(vfs) == CONTENT
            assert bool(client.sent[BlobRead]) is not is_kept
            await vfs.stop()
            await client.close()

    run(test())


def ask(sock: socket.socket, info: BlobInfo) -> tuple[int, list[int]]:
    """The errno and the descriptors."""
    sock.send(FileRequest(1, info.blob, info.size, info.checksum).pack())
    packet, fds, _, _ = socket.recv_fds(sock, ANSWER_BYTES + 1, 4)
    return parse_answer(packet).errno, fds


def test_who_may_have_which_file(node: NodeProcess) -> None:
    """The file of a blob in the tree, read-only; another size, checksum or name is ENOENT; garbage
    ends the connection; the socket is its owner's alone."""
    path = node.data_dir / "blobs.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with node.connect() as client:
        loose = client.call(BlobPut(), b"not in the tree")

    async def put() -> BlobInfo:
        vfs, client = await connected(node, node.data_dir.parent)
        await write(vfs, CONTENT)
        fh = await vfs.open(ROOT_CALLER, (await vfs.lookup(ROOT_INO, b"file")).ino, os.O_RDONLY)
        info = next(iter(vfs._handles[fh].file._blobs.values()))
        await vfs.stop()
        await client.close()
        return info

    info = asyncio.run(put())
    assert info.checksum == blake3(CONTENT).digest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(path))
        for wrong in (
            info._replace(size=1),
            info._replace(checksum=bytes(32)),
            info._replace(blob=info.blob + 1000),
            loose,
        ):
            assert ask(sock, wrong) == (errno.ENOENT, [])
        number, (fd,) = ask(sock, info)
        assert number == 0
        assert os.pread(fd, len(CONTENT) + 1, 0) == CONTENT
        with pytest.raises(OSError):
            os.write(fd, b"x")
        os.close(fd)
        sock.send(b"garbage")
        assert sock.recv(1) == b""
    with node.connect() as client:  # the node goes on
        assert client.call(BlobRead(info.blob, 0, 10)) == CONTENT[:10]
