"""Where nodes can be reached: this machine's unix socket, or TCP with TLS under a token.

Called by the command lines, which hand the result to `Client`. Reads token files; opens nothing
but through `connect`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydi_node import portable
from pydi_node.errors import EXIT_UNREACHABLE, EXIT_USAGE, UserError

if TYPE_CHECKING:
    import ssl

SOCKET_NAME = "node.sock"
TOKEN_FILE_MAX_BYTES = 4096  # a token is a line of some 200 characters

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Endpoint(Protocol):
    """One way to a node; ``str()`` of it is for people."""

    local: bool  # on this machine: nearer than any other

    async def connect(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P]) -> P:
        """A connected protocol; OSError when nobody answers."""
        ...


class UnixEndpoint:
    """A node on this machine; its permissions are those of the socket file."""

    local = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"node at {self.path}"

    async def connect(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P]) -> P:
        _, protocol = await loop.create_unix_connection(make, str(self.path))
        return protocol


class TcpEndpoint:
    """A node anywhere; both sides prove with certificates that they belong to the cluster."""

    local = False

    def __init__(self, host: str, port: int, context: Callable[[], ssl.SSLContext]) -> None:
        self.host = host
        self.port = port
        self._context = context  # a new one for each connection: certificates are short-lived

    def __str__(self) -> str:
        return f"node at {self.host}:{self.port}"

    async def connect(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P]) -> P:
        _, protocol = await loop.create_connection(
            make, self.host, self.port, ssl=self._context(), server_hostname=""
        )
        return protocol


def node_on_this_machine(data_dir: Path, must_exist: bool = True) -> UnixEndpoint:
    """The node whose folder is ``data_dir``; UserError when none runs there.

    must_exist  False: it may still be started.
    """
    if not portable.HAS_UNIX_SOCKETS:
        raise UserError(
            "nodes are reached over the network here: name one with --node, and give a --token",
            EXIT_UNREACHABLE,
        )
    path = data_dir / SOCKET_NAME
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as exc:
        if not must_exist:
            return UnixEndpoint(path)
        raise UserError(
            f"no node runs in {data_dir}: start one with pydi-node {data_dir}, or name another"
            " with --data-dir or --node",
            EXIT_UNREACHABLE,
        ) from exc
    except OSError as exc:
        raise UserError(f"{path}: {exc.strerror}", EXIT_UNREACHABLE) from exc
    if not stat.S_ISSOCK(mode):
        raise UserError(f"{path} is not a node's socket", EXIT_UNREACHABLE)
    return UnixEndpoint(path)


class TokenSource:
    """A token for as long as a process lives: its file is read anew for each connection, because
    the cluster's secret may be changed, and a person puts the new token there."""

    def __init__(self, token: str | None, token_file: str | None) -> None:
        """As `read_token`, with the same UserError."""
        self._token_file = token_file if token is None else None
        self._last = read_token(token, token_file)

    def text(self) -> str:
        """The token now; the last one while there is none in its file."""
        if self._token_file is not None:
            try:
                self._last = read_token(None, self._token_file)
            except UserError:
                pass  # somebody is just about to replace it
        return self._last


def read_token(token: str | None, token_file: str | None) -> str:
    """The token's text from whichever was given; UserError with one sentence otherwise."""
    if token is not None:
        return token.strip()
    if token_file is None:
        raise UserError("a node elsewhere needs --token or --token-file", EXIT_USAGE)
    try:
        with open(token_file, "rb") as file:
            data = file.read(TOKEN_FILE_MAX_BYTES + 1)
    except OSError as exc:
        raise UserError(f"token file {token_file}: {exc.strerror}") from exc
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise UserError(f"token file {token_file} holds no token") from exc
    if not text or len(data) > TOKEN_FILE_MAX_BYTES:
        raise UserError(f"token file {token_file} holds no token")
    return text
