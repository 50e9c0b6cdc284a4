"""How a node's connection to another one ends, as it looks from here."""

from __future__ import annotations

import asyncio

import pytest

from pydi_node.runtime.peers import Link
from pydi_node.wire.events import Hello
from pydi_node.wire.messages import Role
from pydi_node.wire.session import PROTOCOL_VERSIONS


@pytest.mark.parametrize(
    ("closed_here", "error", "was_ended"),
    [
        pytest.param(False, None, True, id="its program ended"),
        pytest.param(False, ConnectionResetError(), True, id="it was killed"),
        pytest.param(False, TimeoutError(), False, id="nothing is heard of its machine"),
        pytest.param(True, None, False, id="closed here"),
    ],
)
def test_only_what_the_other_side_ended_tells_of_its_end(
    closed_here: bool, error: Exception | None, was_ended: bool
) -> None:
    """A leader of which nothing is heard may still lead, and this node's own doing says nothing."""

    async def test() -> None:
        link = Link(Hello(PROTOCOL_VERSIONS, Role.NODE, "0" * 32, 1, "host"))
        if closed_here:
            link.close()
        link.connection_lost(error)
        assert link.was_ended is was_ended
        assert link.lost.done()

    asyncio.run(test())
