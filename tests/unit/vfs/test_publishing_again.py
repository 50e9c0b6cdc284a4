"""Content whose publication failed is sent again: under which serial decides how often it lands."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pydi_fs.client import Client
from pydi_fs.client.client import SERIALS_REMEMBERED
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.vfs import Vfs
from pydi_node.commands import ROOT_CALLER
from pydi_node.errors import NoQuorumError, PydiError
from pydi_node.records import Result
from pydi_node.wire.events import RequestReceived
from pydi_node.wire.messages import ExecutePut, Role
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving
from tests.unit.vfs.empty_file import INO, answer_plainly


def test_what_was_not_answered_goes_under_its_first_serial(tmp_path: Path) -> None:
    """Without a quorum nobody knows what becomes of an appended line: close(2) sends it twice, by
    FLUSH and RELEASE, and it must land once. What says something else, and what was refused for
    good, is another command; so is one that the cluster may have forgotten."""
    serials: list[int] = []
    is_refused = False

    def answer(node: Node, event: object) -> Buffers:
        if not isinstance(event, RequestReceived) or not isinstance(event.request, ExecutePut):
            return answer_plainly(node, event)
        serials.append(event.request.serial)
        if is_refused:
            return [*node.session.send_answer(event.request_id, Result(errno.EDQUOT))]
        error = NoQuorumError("too few nodes")
        return [*node.session.send_error(event.request_id, error)]

    async def scenario() -> None:
        nonlocal is_refused
        async with serving(tmp_path / "node.sock", says_welcome, answer) as node:
            client = Client([node.endpoint], role=Role.MOUNT, deadline_s=0.2)
            vfs = Vfs(client, VfsConfig(tmp_path / "staging"))
            await client.connect()
            await vfs.start()
            fh = await vfs.open(ROOT_CALLER, INO, os.O_WRONLY | os.O_APPEND)

            async def sent_under() -> set[int]:
                serials.clear()
                with pytest.raises(PydiError):
                    await vfs.fsync(fh)
                return set(serials)

            await vfs.write(fh, 0, b"line\n")
            first = await sent_under()
            assert len(first) == 1
            assert await sent_under() == first
            vfs.stamp(fh, 5)  # utimensat(2) meanwhile
            other = await sent_under()
            assert other.isdisjoint(first)
            is_refused = True
            assert await sent_under() == other
            refused = await sent_under()
            assert refused.isdisjoint(first | other)
            is_refused = False
            latest = await sent_under()
            for _ in range(SERIALS_REMEMBERED):
                client.new_serial()
            assert (await sent_under()).isdisjoint(latest)
            await vfs.abandon(fh)
            await vfs.stop()
            await client.close()
            await node.left.wait()

    run(scenario())
