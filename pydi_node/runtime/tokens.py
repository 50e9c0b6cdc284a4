"""Mount tokens: made, listed, revoked, and sessions ended whose token opens nothing any more.

Made by node.py. The list stands in the tree, so every node knows it; the token's text is told once,
to whoever made it, and kept nowhere. Verbs of Admin, which a mount can't send.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from pydi_node.commands import TOKEN_ID_BYTES, SetToken
from pydi_node.errors import FileError, UserError
from pydi_node.records import TokenInfo
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request, Service, Session
from pydi_node.tree.machine import Tree
from pydi_node.wire.keyring import Keyring
from pydi_node.wire.trust import MountLimits, mount_token

_log = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.5  # so long a session may outlive its token, on a node that hears of it
TOKENS_MAX = 10_000  # in the list; each is looked at when a mount connects
NOTE_MAX_CHARACTERS = 200
EXPIRES_MAX_S = 1 << 40


def trouble_with(limits: MountLimits | None, tree: Tree, now_s: float) -> str | None:
    """Why a mount with these limits may not be served (any more); None when it may."""
    if limits is None:
        return None
    if 0 < limits.expires_s <= now_s:
        return "the mount token has expired"
    if not limits.token_id:
        return None  # from before there was a list
    info = tree.token(limits.token_id)
    if info is None:
        return "the mount token is not in this node's list of tokens"
    return "the mount token was revoked" if info.revoked else None


class Tokens:
    """See the module's text."""

    def __init__(self, service: Service, server: Server, keyring: Keyring) -> None:
        self._service = service
        self._server = server
        self._keyring = keyring
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "token-create": self._create,
            "token-list": self._list,
            "token-revoke": self._revoke,
        }

    async def run(self) -> None:
        """Ends sessions, live ones too, when their token does."""
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            self.end_sessions()

    def end_sessions(self) -> None:
        """Those whose token opens nothing any more end now."""
        now_s, tree = time.time(), self._service.tree

        def why(session: Session) -> str | None:
            if session.generation is not None and not self._keyring.has(session.generation):
                return "the cluster's secret was changed"
            return trouble_with(session.limits, tree, now_s)

        self._server.end_sessions(why)

    async def _create(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        await self._service.driver.wait_current(request.deadline_s)
        match arguments:
            case {
                "read_only": bool(read_only),
                "directory": bytes(directory),
                "expires_s": int(expires_s),
                "note": str(note),
            } if 0 <= expires_s < EXPIRES_MAX_S and len(note) <= NOTE_MAX_CHARACTERS:
                pass
            case _:
                raise UserError("token create: arguments of another version")
        tree = self._service.tree
        if len(tree.tokens()) >= TOKENS_MAX:
            raise UserError(f"there are {TOKENS_MAX} mount tokens already")
        directory = b"/" + b"/".join(part for part in directory.split(b"/") if part)
        self._require_directory(directory)
        info = TokenInfo(
            os.urandom(TOKEN_ID_BYTES), read_only, directory, expires_s, int(time.time()), note,
            False,
        )  # fmt: skip
        limits = MountLimits(read_only, directory, expires_s, info.token_id)
        made_from = self._keyring.newest
        text = mount_token(made_from, limits).text()
        await self._service.housekeep(SetToken(*info), request.deadline_s)
        change = tree.secret_change()
        if made_from.generation != (0 if change is None else change.generation):
            # It came into the list behind those that end with the old secret.
            await self._service.housekeep(
                SetToken(*info._replace(revoked=True)), request.deadline_s
            )
            raise UserError("the cluster's secret is just being changed: make the token again")
        return {"token": text, **_shown(info)}

    def _require_directory(self, directory: bytes) -> None:
        try:
            is_directory = self._service.tree.resolve(directory).is_dir
        except FileError:
            is_directory = False
        if not is_directory:
            raise UserError(f"{directory.decode(errors='replace')}: no such directory")

    async def _list(self, request: Request, _: dict[str, Any]) -> list[dict[str, Any]]:
        await self._service.driver.wait_current(request.deadline_s)
        return [_shown(info) for info in self._service.tree.tokens()]

    async def _revoke(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        await self._service.driver.wait_current(request.deadline_s)
        match arguments:
            case {"id": str(wanted)} if wanted:
                pass
            case _:
                raise UserError("token revoke takes a token's id")
        found = [i for i in self._service.tree.tokens() if i.token_id.hex().startswith(wanted)]
        if len(found) != 1:
            what = "no mount token has" if not found else f"{len(found)} mount tokens have"
            raise UserError(f"{what} the id {wanted}: see pydi token list")
        info = found[0]._replace(revoked=True)
        await self._service.housekeep(SetToken(*info), request.deadline_s)
        self.end_sessions()
        _log.info("mount token %s was revoked", info.token_id.hex())
        return _shown(info)


def _shown(info: TokenInfo) -> dict[str, Any]:
    return {**info._asdict(), "token_id": info.token_id.hex()}
