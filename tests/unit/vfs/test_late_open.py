"""Opening a file while it changes elsewhere: the answer may come after word of what is newer."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pydi_fs.client import Client
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import Ino, LogIndex, TimeNs
from pydi_node.records import Attr, FileVersion, Touched
from pydi_node.wire.events import PingReceived, RequestReceived
from pydi_node.wire.messages import GetAttr, GetFile, Invalidate, Lease, Nodes, Open, Role
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving

INO = Ino(7)
NOW = TimeNs(0)
OLD, NEW = 100, 200  # bytes of the versions at indexes 10 and 11; all of them a hole


def version(size: int, index: int) -> FileVersion:
    at = LogIndex(index)
    mode = stat.S_IFREG | 0o644
    return FileVersion(Attr(INO, mode, 1, 0, 0, 0, size, 0, NOW, NOW, NOW, NOW, at, at), (), ())


class Cluster:
    """A node that looks at version 10 of a file and holds its answer; version 11 is committed
    elsewhere and pushed, then both leave: push, answer."""

    def __init__(self, old_bytes: int) -> None:
        self.old_bytes = old_bytes
        self.late = False

    def answer(self, node: Node, event: object) -> Buffers:
        if isinstance(event, PingReceived):
            return [*node.session.send_pong(event.token)]
        if not isinstance(event, RequestReceived):
            return []
        send = node.session.send_answer
        match event.request:
            case Open() if self.late:
                number = node.session.push_sequence + 1
                push = node.session.send_push(Invalidate(number, Touched((INO,))))
                return [*push, *send(event.request_id, version(self.old_bytes, 10))]
            case Open():
                return [*send(event.request_id, version(self.old_bytes, 10))]
            case GetFile():
                return [*send(event.request_id, version(NEW, 11))]
            case GetAttr():
                return [*send(event.request_id, version(NEW, 11).attr)]
            case Lease():
                return [*send(event.request_id, 0)]  # so that each open asks
            case Nodes():
                return [*send(event.request_id, ())]
            case _:
                return [*send(event.request_id, None)]


@asynccontextmanager
async def mounted(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Vfs]:
    async with serving(tmp_path / "node.sock", says_welcome, cluster.answer) as node:
        client = Client([node.endpoint], role=Role.MOUNT, deadline_s=30.0)
        vfs = Vfs(client, VfsConfig(staging_dir=tmp_path / "staging"))
        await client.connect()
        await vfs.start()
        yield vfs
        await vfs.stop()
        await client.close()
        await node.left.wait()


@pytest.mark.parametrize("is_open", [False, True], ids=["a new file", "a file that is open"])
def test_a_late_answer_to_open_is_not_the_newest_version(tmp_path: Path, is_open: bool) -> None:
    """Whoever opened the file reads version 11."""

    async def scenario() -> None:
        cluster = Cluster(OLD)
        async with mounted(tmp_path, cluster) as vfs:
            if is_open:
                before = await vfs.open(ROOT_CALLER, INO, os.O_RDONLY)
                assert len(await vfs.read(before, 0, 1000)) == OLD
            cluster.late = True
            fh = await vfs.open(ROOT_CALLER, INO, os.O_RDONLY)
            assert len(await vfs.read(fh, 0, 1000)) == NEW
            assert (await vfs.getattr(INO)).size == NEW
            await vfs.release(fh)

    run(scenario())


def test_what_was_empty_is_emptied_too(tmp_path: Path) -> None:
    """O_TRUNC on a file that was empty in version 10: the bytes of version 11 go, and what is
    written next is all of it."""

    async def scenario() -> None:
        cluster = Cluster(0)
        async with mounted(tmp_path, cluster) as vfs:
            cluster.late = True
            fh = await vfs.open(ROOT_CALLER, INO, os.O_RDWR | os.O_TRUNC)
            await vfs.write(fh, 0, b"new")
            assert await vfs.read(fh, 0, 1000) == b"new"
            await vfs.abandon(fh)

    run(scenario())
