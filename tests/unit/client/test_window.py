"""What a client has under way at a time, measured from the oldest command without an answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydi_fs.client import Client
from pydi_fs.client.client import SERIALS_UNANSWERED_MAX
from pydi_node.commands import ROOT_CALLER, Command, PutFile, Rmdir, Undelegate
from pydi_node.ids import ROOT_INO, Ino, LogIndex, TimeNs
from pydi_node.records import Attr, Result
from pydi_node.tree.sessions import SESSION_WINDOW
from pydi_node.wire.events import RequestReceived
from pydi_node.wire.messages import Execute
from tests.harness.feeding import feed
from tests.unit.client.stand_ins import Buffers, Node, run, says_welcome, serving


def test_an_old_command_that_waits_is_never_forgotten(tmp_path: Path) -> None:
    """The node answers all commands but the first, as for one that waits behind a directory of
    another client: others go on, but only as far as the cluster remembers; what gives directories
    back always does, and with the answer all the rest."""
    command = Rmdir(ROOT_CALLER, ROOT_INO, b"d")
    asked: list[int] = []
    held: list[int] = []  # the request that is not answered
    is_held = asyncio.Event()
    attr = Attr(Ino(70), 0o100644, 1, 0, 0, 0, 0, 0, *[TimeNs(0)] * 4, LogIndex(1), LogIndex(1))
    values = {Rmdir: None, Undelegate: 1, PutFile: attr}

    def answer(node: Node, event: object) -> Buffers:
        if not isinstance(event, RequestReceived) or not isinstance(event.request, Execute):
            return []
        asked.append(event.request.serial)
        if len(asked) == 1:
            held.append(event.request_id)
            is_held.set()
            return []
        result = Result(0, values[type(event.request.command)])
        return list(node.session.send_answer(event.request_id, result))

    async def test() -> None:
        async with serving(tmp_path / "node", says_welcome, answer) as node:
            client = Client([node.endpoint])
            await client.connect()
            first = asyncio.create_task(client.execute(command))
            await is_held.wait()
            for _ in range(SERIALS_UNANSWERED_MAX - 1):
                await client.execute(command)
            waiting = asyncio.create_task(client.execute(command))
            giving_back: list[Command] = [
                Undelegate((ROOT_INO,)),
                PutFile(ROOT_CALLER, ROOT_INO, b"f", 0o644, 0, (), (), ino=Ino(70)),
            ]
            for given in giving_back:
                await client.execute(given)
            assert not waiting.done()
            assert max(asked) - asked[0] < SESSION_WINDOW
            # Its session sees what is written here as if it had been said in its turn.
            connection = client._connection
            assert connection is not None
            feed(connection, b"".join(node.session.send_answer(held[0], Result())))
            await first
            await waiting
            await client.close()
            await node.left.wait()

    run(test())
