"""A new secret for the cluster while it goes on: begun, taken over by each node, ended.

Made by node.py. Two entries of the log are all that nodes have to agree on (wire/keyring.py tells
why that is enough). Here is what a node does when its tree knows of one: it keeps the new token,
shows and accepts the certificates that count now, and ends the sessions whose secret does not count
any more. It must never lose the only secret that it has: the token file is replaced in one step,
and only by a token that the log has sealed. Nor may the file be ahead of the tree after a power
cut: with the new token and a tree of before, a node has nothing in common with one that has not
got so far, and if they need each other to go on with the log, neither ever does.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from pydi_node.commands import Command, RetireSecret, SetSecret
from pydi_node.errors import FileError, NoSpaceError, PydiError, UnavailableError, UserError
from pydi_node.ids import NodeNumber
from pydi_node.records import SecretChange
from pydi_node.runtime.datadir import DataDir
from pydi_node.runtime.peers import Peers
from pydi_node.runtime.server import Server
from pydi_node.runtime.service import Request, Service
from pydi_node.runtime.tokens import Tokens
from pydi_node.wire.keyring import SEAL_NONCE_BYTES, Keyring, seal, tokens_now
from pydi_node.wire.messages import Admin
from pydi_node.wire.trust import SECRET_BYTES

_log = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.5  # so long after the entry a node goes on with what it had
ASK_TIMEOUT_S = 2.0
RETIRE_DEADLINE_S = 5.0
OVERLAP_MAX_S = 366 * 86400


class Rotation:
    """See the module's text."""

    def __init__(
        self,
        folder: DataDir,
        keyring: Keyring,
        service: Service,
        peers: Peers,
        server: Server,
        tokens: Tokens,
    ) -> None:
        self._folder = folder
        self._keyring = keyring
        self._service = service
        self._peers = peers
        self._server = server
        self._tokens = tokens
        self._loop = asyncio.get_running_loop()
        self._seen: SecretChange | None = None  # what was taken over, or can't be
        self._looking = asyncio.Lock()  # a file is written in between
        self.admin: dict[str, Callable[[Request, dict[str, Any]], Any]] = {
            "secret": lambda _, __: {"generation": keyring.newest.generation},
            "secret-rotate": self._rotate,
            "secret-retire": self._retire,
        }

    async def run(self) -> None:
        """Takes over what the log says; the leader ends an overlap whose time has come."""
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            await self.look()
            change = self._seen
            if (
                change is not None
                and change.sealed_old
                and time.time() >= change.ends_s
                and self._service.driver.replica.is_leader
            ):
                try:
                    await self._propose(
                        RetireSecret(change.generation), self._loop.time() + RETIRE_DEADLINE_S
                    )
                except PydiError as exc:
                    _log.debug("the old secret is not retired yet: %s", exc)

    async def look(self) -> None:
        """What the tree knows of the secret counts here, too, and is on disk."""
        async with self._looking:
            tree = self._service.tree
            change = tree.secret_change()
            if change == self._seen:
                return
            try:
                tokens = tokens_now(self._keyring.newest, change)
                if tokens[0] != self._keyring.newest:
                    if tree.checkpoint() < tree.applied_index:
                        return  # somebody reads a snapshot: tried again
                    await self._loop.run_in_executor(
                        None, self._folder.save_token, tokens[0].text()
                    )
            except ValueError as exc:
                _log.warning("this node's token does not fit the cluster's secret: %s", exc)
                self._seen = change
                return
            except (OSError, NoSpaceError, UnavailableError) as exc:
                _log.warning("the new token can't be kept: %s", exc)
                return  # tried again: what is not kept must not be relied on
            self._seen = change
            if tokens == self._keyring.tokens:
                return
            self._keyring.replace(tokens)
            self._peers.renew_certificates(self._server)
            self._tokens.end_sessions()
            _log.info(
                "the cluster's secret has generation %d%s",
                tokens[0].generation, ", and the one before counts, too" if tokens[1:] else "",
            )  # fmt: skip

    # --- what a person asks for -------------------------------------------------------------------

    async def _rotate(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        match arguments:
            case {"overlap_s": int(overlap_s)} if 0 < overlap_s <= OVERLAP_MAX_S:
                pass
            case _:
                raise UserError("token rotate: the overlap lasts a year at most")
        await self._look_now(request.deadline_s)
        change, own = self._seen, self._keyring.newest
        if change is not None and change.sealed_old:
            raise UserError(
                f"the secret is being changed already, until {_date(change.ends_s)}:"
                " pydi token rotate --finish ends that before"
            )
        await self._require_understood(request.deadline_s)
        new = own.next(os.urandom(SECRET_BYTES))
        await self._propose(
            SetSecret(
                new.generation,
                seal(new, own, os.urandom(SEAL_NONCE_BYTES)),
                seal(own, new, os.urandom(SEAL_NONCE_BYTES)),
                int(time.time()) + overlap_s,
            ),
            request.deadline_s,
        )
        await self._look_now(request.deadline_s)
        return self._state()

    async def _retire(self, request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
        await self._look_now(request.deadline_s)
        change = self._seen
        if change is None or not change.sealed_old:
            raise UserError("no change of the secret is under way")
        without = [
            number
            for number, generation in (await self._generations(request.deadline_s)).items()
            if generation is None or generation < change.generation
        ]
        if without and arguments.get("force") is not True:
            names = " and ".join(f"node {number}" for number in without)
            raise UserError(
                f"{names} may not have the new secret yet: start it, or finish without it with"
                " --force; then it comes back only with a copy of the new token"
            )
        await self._propose(RetireSecret(change.generation), request.deadline_s)
        await self._look_now(request.deadline_s)
        return self._state()

    async def _look_now(self, deadline_s: float) -> None:
        await self._service.driver.wait_current(deadline_s)
        await self.look()

    async def _propose(self, command: Command, deadline_s: float) -> None:
        result = await self._service.housekeep(command, deadline_s)
        if result.errno:
            raise UserError("somebody else changed the secret at the same moment: try again")

    async def _require_understood(self, deadline_s: float) -> None:
        """UserError when a node that is up would not understand the entry in its log."""
        for number, generation in (await self._generations(deadline_s)).items():
            if generation is None and self._peers.is_connected(number):
                raise UserError(f"node {number} does not know how to change its secret: update it")

    async def _generations(self, deadline_s: float) -> dict[NodeNumber, int | None]:
        """Of the token that each other member keeps; None when it does not say."""
        numbers = sorted(self._peers.members)
        deadline_s = min(deadline_s, self._loop.time() + ASK_TIMEOUT_S)
        answers = await asyncio.gather(
            *[self._peers.request(number, Admin("secret"), deadline_s) for number in numbers],
            return_exceptions=True,
        )
        found: dict[NodeNumber, int | None] = {}
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, (PydiError, FileError)):
                raise answer
            generation = answer.get("generation") if isinstance(answer, dict) else None
            found[number] = generation if type(generation) is int else None
        return found

    def _state(self) -> dict[str, Any]:
        change = self._seen
        return {
            "generation": self._keyring.newest.generation,
            "overlap": len(self._keyring.tokens) > 1,
            "ends_s": change.ends_s if change is not None else 0,
        }


def _date(seconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
