"""A change of the cluster's secret, on the disk of one node."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

from pydi_node.runtime.datadir import DataDir
from pydi_node.runtime.rotation import Rotation
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request
from pydi_node.runtime.tokens import Tokens
from pydi_node.tree import Tree, schema
from pydi_node.wire.keyring import Keyring, tokens_now
from pydi_node.wire.messages import Admin
from pydi_node.wire.trust import NodeToken, parse_node_token
from tests.unit.runtime.inner import Inner
from tests.unit.runtime.test_connection import Admission


class Folder(DataDir):
    """Keeps what a power cut leaves of the tree at the moment before the token is kept."""

    def save_token(self, token: str) -> None:
        shutil.copy(self.tree, self.path / "left.db")  # what is in the WAL only may be lost
        super().save_token(token)


def test_the_tree_on_disk_knows_of_a_secret_before_the_token_is_kept(tmp_path: Path) -> None:
    """A node that starts with the new token believes the old one as well, for others may have
    nothing else yet: the power may go everywhere at once."""

    async def main() -> None:
        with Folder(tmp_path) as folder:
            async with Inner(tmp_path) as inner:
                server = Server(inner.service, Admission(), lambda *_: None, inner.streams)
                old = NodeToken(inner.service.cluster, b"o" * 32)
                folder.save_token(old.text())
                keyring = Keyring(old)
                tokens = Tokens(inner.service, server, keyring)
                rotation = Rotation(folder, keyring, inner.service, inner.peers, server, tokens)
                deadline_s = asyncio.get_running_loop().time() + 30.0
                arguments = {"overlap_s": 60}
                request = Request(inner.session, Admin("secret-rotate", arguments), b"", deadline_s)
                state = await rotation.admin["secret-rotate"](request, arguments)
                assert state["generation"] == 1
                assert state["overlap"]

                connection = sqlite3.connect(tmp_path / "left.db", isolation_level=None)
                schema.prepare(connection)
                kept = parse_node_token((tmp_path / "token").read_text().strip())
                assert kept == keyring.newest
                assert tokens_now(kept, Tree(connection).secret_change()) == (kept, old)
                connection.close()

    asyncio.run(asyncio.wait_for(main(), 60))
