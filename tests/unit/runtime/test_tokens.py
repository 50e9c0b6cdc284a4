"""Mount tokens made at the moment at which the cluster's secret changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pydi_node.commands import SetSecret
from pydi_node.errors import UserError
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request
from pydi_node.runtime.tokens import Tokens
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.messages import Admin
from pydi_node.wire.trust import NodeToken
from tests.unit.runtime.inner import Inner
from tests.unit.runtime.test_connection import Admission


def test_a_token_of_the_secret_before_is_not_given_out(tmp_path: Path) -> None:
    """The tree knows of a new secret, this node has not taken it over yet: a token under the old
    one would end without being listed as revoked. Nobody gets it, and the list says revoked."""

    async def main() -> None:
        async with Inner(tmp_path) as inner:
            server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
            old = NodeToken(inner.service.cluster, bytes(32))
            keyring = Keyring(old)
            tokens = Tokens(inner.service, server, keyring)
            arguments = {"read_only": False, "directory": b"/", "expires_s": 0, "note": ""}

            async def create() -> str:
                deadline_s = asyncio.get_running_loop().time() + 30.0
                request = Request(inner.session, Admin("token-create", arguments), b"", deadline_s)
                answer: dict[str, str] = await tokens.admin["token-create"](request, arguments)
                return answer["token"]

            assert (await create()).startswith("pydi1m-")
            changed = SetSecret(1, b"new", b"old", 1 << 40)
            assert (
                await inner.service.housekeep(changed, asyncio.get_running_loop().time() + 30)
            ).errno == 0
            with pytest.raises(UserError, match="just being changed"):
                await create()
            listed = inner.service.tree.tokens()
            assert sorted(info.revoked for info in listed) == [False, True]
            keyring.replace((old.next(b"n" * 32), old))
            await create()

    asyncio.run(asyncio.wait_for(main(), 60))
