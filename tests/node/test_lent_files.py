"""What a mount writes beside its node goes into the blob's own file, and its bytes to nobody."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pydi_fs.client import Client, node_on_this_machine
from pydi_fs.client.descriptors import DescriptorClient
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.staging import MEMORY_BYTES_MAX, Lender
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import BlobCorruptError, BlobMissingError, FileError
from pydi_node.ids import ROOT_INO
from pydi_node.runtime.descriptors import LOANS_MAX
from pydi_node.wire.descriptors import ANSWER_BYTES, FileLoan, parse_answer
from pydi_node.wire.messages import (
    BlobAbort,
    BlobAdopt,
    BlobGrown,
    BlobRead,
    BlobSeal,
    BlobWrite,
)
from tests.harness.procs import NodeProcess
from tests.node.test_local_blobs import CountingClient, blob_files, read, run

MIB = 1 << 20
PAGE = 4096
CONTENT = os.urandom(5 * MIB + 17)


def unfinished(node: NodeProcess) -> list[Path]:
    return list((node.data_dir / "blobs" / "tmp").iterdir())


async def until(condition: Any) -> None:
    # Another process does it: there is no event to wait for.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Beside:
    """A mount beside a node; ``files`` is how it borrows."""

    def __init__(self, node: NodeProcess, staging: Path) -> None:
        self.client = CountingClient([node_on_this_machine(node.data_dir)])
        self.files = DescriptorClient(node.data_dir / "blobs.sock")
        self.lender = Lender(self.files.borrow)
        self.vfs = Vfs(self.client, VfsConfig(staging, self.lender, sources=(self.files,)))

    async def __aenter__(self) -> Beside:
        await self.client.connect()
        await self.vfs.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.vfs.stop()
        await self.client.close()

    async def create(self) -> int:
        _, fh = await self.vfs.create(ROOT_CALLER, ROOT_INO, b"file", 0o644, os.O_RDWR)
        return fh

    async def borrowed(self) -> None:
        """A file is at hand for the next stage."""
        self.lender.prepare()
        await until(lambda: self.lender._spare is not None)

    async def close(self, fh: int) -> None:
        await self.vfs.flush(fh)
        await self.vfs.release(fh)


def test_what_is_written_beside_a_node_is_not_sent_to_it(node: NodeProcess, tmp_path: Path) -> None:
    """A large file, the first of a mount, in pieces, some of which it writes again: the blob's file
    is the one that was borrowed, no byte went over the connection, and what is read is what was
    written last."""

    async def test() -> None:
        async with Beside(node, tmp_path / "staging") as mount:
            await until(lambda: mount.lender._spare is not None)
            fh = await mount.create()
            for at in range(0, len(CONTENT), 300_000):
                await mount.vfs.write(fh, at, CONTENT[at : at + 300_000])
            await mount.vfs.write(fh, 100, b"again")
            await mount.close(fh)
            assert mount.client.sent[BlobAdopt] == 1
            assert mount.client.sent[BlobGrown] >= 6
            assert mount.client.sent[BlobWrite] == 0
            expected = CONTENT[:100] + b"again" + CONTENT[105:]
            assert await read(mount.vfs) == expected
            (path,) = blob_files(node)
            assert path.read_bytes() == expected
            assert path.stat().st_mode & 0o777 == 0o400
            assert not (tmp_path / "staging").exists()

    run(test())
    assert unfinished(node) == []


@pytest.mark.parametrize("is_lent", [True, False])
def test_what_is_written_again_and_again_is_sent_once(
    node: NodeProcess, tmp_path: Path, is_lent: bool
) -> None:
    """Pages all over a file that is at the node already, each some times: they go when the file is
    closed, those beside each other together; two that are far from all others by themselves."""
    dice = random.Random(7)
    if not is_lent:
        (node.data_dir / "blobs.sock").unlink()

    async def test() -> None:
        async with Beside(node, tmp_path / "staging") as mount:
            if is_lent:
                await until(lambda: mount.lender._spare is not None)
            fh = await mount.create()
            await mount.vfs.write(fh, 0, CONTENT)
            expected = bytearray(CONTENT)
            kind = BlobGrown if is_lent else BlobWrite
            await until(lambda: mount.client.sent[kind] == 5)
            places = [dice.randrange(2 * MIB, 4 * MIB - PAGE) for _ in range(2000)]
            for place in [100_000, 900_000, *places]:
                page = dice.randbytes(PAGE)
                await mount.vfs.write(fh, place, page)
                expected[place : place + PAGE] = page
            assert mount.client.sent[kind] == 5
            await mount.close(fh)
            # The end of the file, the two alone, and the 2 MiB in which the others are.
            assert mount.client.sent[kind] == 5 + 1 + 2 + 2
            assert await read(mount.vfs) == bytes(expected)
            (path,) = blob_files(node)
            assert path.read_bytes() == bytes(expected)

    run(test())


def test_a_node_that_was_started_again_gets_the_bytes(node: NodeProcess, tmp_path: Path) -> None:
    """The node dies under a borrowed file, whose name its start removes; what was written is in the
    file all the same, and is sent."""

    async def test() -> None:
        async with Beside(node, tmp_path / "staging") as mount:
            fh = await mount.create()
            await mount.borrowed()
            await mount.vfs.write(fh, 0, CONTENT[: 3 * MIB])
            await mount.vfs.fsync(fh)
            await mount.vfs.write(fh, 3 * MIB, CONTENT[3 * MIB : 4 * MIB])
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
            await mount.vfs.write(fh, 4 * MIB, CONTENT[4 * MIB :])
            await mount.close(fh)
            assert mount.client.sent[BlobWrite] > 0
            assert await read(mount.vfs) == CONTENT

    run(test())


def test_without_a_file_at_hand_the_bytes_are_sent(node: NodeProcess, tmp_path: Path) -> None:
    """The node's second socket is gone: writing goes on over the first."""
    (node.data_dir / "blobs.sock").unlink()

    async def test() -> None:
        async with Beside(node, tmp_path / "staging") as mount:
            fh = await mount.create()
            await mount.vfs.write(fh, 0, CONTENT)
            await mount.close(fh)
            assert (mount.client.sent[BlobAdopt], mount.client.sent[BlobGrown]) == (0, 0)
            assert await read(mount.vfs) == CONTENT

    run(test())


def test_small_files_borrow_nothing_more(node: NodeProcess, tmp_path: Path) -> None:
    """One file is at hand for a large one; small ones leave it there."""

    async def test() -> None:
        async with Beside(node, tmp_path / "staging") as mount:
            for _ in range(5):
                fh = await mount.create()
                await mount.borrowed()
                await mount.vfs.write(fh, 0, CONTENT[:MEMORY_BYTES_MAX])
                await mount.close(fh)
            assert len(unfinished(node)) == 1

    run(test())


def test_a_loan_ends_with_its_borrower(node: NodeProcess) -> None:
    """Files that nobody adopted go when the borrower hangs up; before, so many are kept."""

    async def test() -> None:
        files = DescriptorClient(node.data_dir / "blobs.sock")
        loans = [await files.borrow() for _ in range(LOANS_MAX + 3)]
        assert all(loans)
        assert len(unfinished(node)) == LOANS_MAX
        async with client_of(node) as client:
            for loan in loans[:3]:
                assert loan is not None
                with pytest.raises(FileError):  # those were the oldest
                    await client.call(BlobAdopt(None, loan[1]))
            with pytest.raises(FileError):
                await client.call(BlobAdopt(None, bytes(16)))
        for loan in loans:
            assert loan is not None
            os.close(loan[0])
        files.close()
        await until(lambda: unfinished(node) == [])

    run(test())


def test_what_is_said_of_a_borrowed_file_is_checked(node: NodeProcess) -> None:
    """Bytes that are not there drop the blob; so does another checksum; what is right is stored,
    also when it is told in another order, and again after it changed."""

    async def test() -> None:
        files = DescriptorClient(node.data_dir / "blobs.sock")
        async with client_of(node) as client:

            async def borrowed(content: bytes) -> tuple[int, int]:
                loan = await files.borrow()
                assert loan is not None
                os.pwrite(loan[0], content, 0)
                return loan[0], await client.call(BlobAdopt(None, loan[1]))

            fd, blob = await borrowed(b"x" * 100)
            with pytest.raises(BlobCorruptError):
                await client.call(BlobGrown(blob, 50, 51))
            with pytest.raises(BlobMissingError):
                await client.call(BlobGrown(blob, 0, 50))
            os.close(fd)

            fd, blob = await borrowed(b"x" * 100)
            await client.call(BlobGrown(blob, 0, 100))
            with pytest.raises(BlobCorruptError):
                await client.call(BlobSeal(blob, 100, bytes(32)))
            os.close(fd)

            fd, blob = await borrowed(b"x" * 100)
            await client.call(BlobGrown(blob, 60, 40))
            await client.call(BlobGrown(blob, 0, 60))
            os.pwrite(fd, b"y", 10)
            await client.call(BlobGrown(blob, 10, 1))
            content = b"x" * 10 + b"y" + b"x" * 89
            info = await client.call(BlobSeal(blob, 100, blake3(content).digest()))
            assert await client.call(BlobRead(info.blob, 0, 200)) == content
            os.close(fd)

            fd, blob = await borrowed(b"x")
            await client.call(BlobAbort(blob))
            os.close(fd)
        files.close()
        await until(lambda: unfinished(node) == [])

    run(test())


def test_a_ticket_is_good_for_one_file(node: NodeProcess) -> None:
    """Asked for twice under one ticket: the second time nothing is lent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(60.0)
        sock.connect(str(node.data_dir / "blobs.sock"))
        for expected in (0, 1):
            sock.send(FileLoan(7, bytes(16)).pack())
            packet, fds, _, _ = socket.recv_fds(sock, ANSWER_BYTES, 4)
            assert bool(parse_answer(packet).errno) == bool(expected)
            assert len(fds) == 1 - expected
            for fd in fds:
                os.close(fd)


class client_of:
    """A connected client of the node."""

    def __init__(self, node: NodeProcess) -> None:
        self.client = Client([node_on_this_machine(node.data_dir)])

    async def __aenter__(self) -> Client:
        await self.client.connect()
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
