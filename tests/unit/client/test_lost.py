"""A connection that ends before anybody waits for its welcome."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

from pydi_fs.client.connection import Connection
from pydi_fs.client.endpoints import UnixEndpoint
from pydi_node.wire.events import Hello
from pydi_node.wire.messages import Role
from pydi_node.wire.session import PROTOCOL_VERSIONS


def test_an_attempt_that_was_given_up_says_nothing() -> None:
    """Another node was faster, and this one's connection is lost while it was being made: asyncio
    has no reason to write of an error to the terminal that nobody looked at."""
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        hello = Hello(PROTOCOL_VERSIONS, Role.CLIENT, "", 0, "test", {})
        connection = Connection(
            UnixEndpoint(Path("/nowhere")), hello,
            lambda *_: None, lambda _: None, lambda _: None, lambda _: None,
        )  # fmt: skip
        connection.connection_lost(None)
        assert connection.welcome.done()
        del connection
        gc.collect()

    asyncio.run(main())
    assert complaints == []
