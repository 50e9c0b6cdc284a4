"""A publication that nobody waits for any more, and who opens its file meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from pydi_fs.client import Client
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journalling import KeptJournal, read_logs
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import FileError
from pydi_node.records import Result
from pydi_node.wire.events import RequestReceived
from pydi_node.wire.messages import ExecutePut, GetAttr, Role
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving
from tests.unit.vfs.empty_file import INO, answer_plainly


def test_what_is_written_after_a_killed_close_is_not_forgotten(tmp_path: Path) -> None:
    """A program is killed while its close publishes: RELEASE comes, the publication goes on, and
    another program opens the file and writes. Then the publication fails. What was written is still
    known to the mount and to whoever follows it."""
    held: list[int] = []
    asked = asyncio.Event()

    def answer(node: Node, event: object) -> Buffers:
        late: list[bytes] = []
        if isinstance(event, RequestReceived):
            match event.request:
                case ExecutePut():
                    held.append(event.request_id)
                    asked.set()
                    return []
                case GetAttr():
                    send = node.session.send_answer
                    late = [part for number in held for part in send(number, Result(errno.EIO))]
                    held.clear()
        return [*late, *answer_plainly(node, event)]

    async def scenario() -> None:
        logs = (os.memfd_create("a"), os.memfd_create("b"))
        journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
        async with serving(tmp_path / "node.sock", says_welcome, answer) as node:
            client = Client([node.endpoint], role=Role.MOUNT, deadline_s=30.0)
            vfs = Vfs(client, VfsConfig(tmp_path / "staging", journal=journal))
            journal.begin(vfs.freeze)
            journal.identify(client.client_id, bytes(16))
            await client.connect()
            await vfs.start()
            first = await vfs.open(ROOT_CALLER, INO, os.O_RDWR)
            await vfs.write(first, 0, b"first")
            publishing = asyncio.create_task(vfs.fsync(first))
            await asked.wait()
            closing = asyncio.create_task(vfs.release(first))
            await asyncio.sleep(0)
            second = await vfs.open(ROOT_CALLER, INO, os.O_RDWR)
            writing = asyncio.create_task(vfs.write(second, 0, b"second"))
            await asyncio.sleep(0)
            await client.call(GetAttr(INO))
            with pytest.raises(FileError):
                await publishing
            await closing
            await writing
            _, _, state = read_logs(logs)
            (segment,) = state.files[INO].content.unpublished()
            data = state.stages[segment.source].data
            assert data is not None
            assert data[segment.source_offset :][: segment.length] == b"second"
            await vfs.abandon(second)
            await vfs.stop()
            await client.close()
            await node.left.wait()
        for fd in logs:
            os.close(fd)

    run(scenario())
