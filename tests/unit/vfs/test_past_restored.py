"""Files of the past that were open when the worker before this one died."""

from __future__ import annotations

import os
from pathlib import Path

from pydi_fs.client import Client
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journal import Opened, State
from pydi_fs.vfs.past import PastVfs
from pydi_node.ids import LogIndex
from pydi_node.records import FileVersion
from pydi_node.wire.events import RequestReceived
from pydi_node.wire.messages import GetFile, Role
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving
from tests.unit.vfs.empty_file import ATTR, answer_plainly

FILES = 5
FIRST_OF_PAST = 1 << 61 | 1 << 45 | 7  # inode 7 and those behind it, at the first moment


def test_they_are_asked_for_together(tmp_path: Path) -> None:
    """A node that answers nothing before all are asked for: one after the other each would take a
    deadline. They are open again when the mount has started, also two handles of one file."""
    asked: dict[int, int] = {}

    def answer(node: Node, event: object) -> Buffers:
        if not (isinstance(event, RequestReceived) and isinstance(event.request, GetFile)):
            return answer_plainly(node, event)
        asked[event.request.ino] = event.request_id
        if len(asked) < FILES:
            return []
        answers = []
        for ino, request_id in asked.items():
            version = FileVersion(ATTR._replace(ino=ino), (), ())
            answers += node.session.send_answer(request_id, version)
        return answers

    async def scenario() -> None:
        state = State()
        state.moments = [LogIndex(10)]
        inos = [FIRST_OF_PAST + number for number in range(FILES)] + [FIRST_OF_PAST]
        for fh, ino in enumerate(inos, 1):
            state.handles[fh] = Opened(0, fh, ino, os.O_RDONLY, 0, 0, (), False, False)
        state.last_fh = len(inos)
        async with serving(tmp_path / "node.sock", says_welcome, answer) as node:
            client = Client([node.endpoint], role=Role.MOUNT, deadline_s=1.0)
            vfs = PastVfs(client, VfsConfig(tmp_path / "staging"))
            vfs.restore(state, {})
            await client.connect()
            await vfs.start()
            for fh, ino in enumerate(inos, 1):
                assert vfs.ino_of(fh) == ino
                assert await vfs.read(fh, 0, 10) == b""
            await vfs.stop()
            await client.close()
            await node.left.wait()

    run(scenario())
