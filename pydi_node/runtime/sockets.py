"""Sockets that a node is served on: bound, and watched for peers whose machine vanishes.

Called by server.py, and by descriptors.py for its unix socket. Nothing here reads or writes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path

from pydi_node.config import Address
from pydi_node.errors import UserError

_log = logging.getLogger(__name__)

# A machine that vanished (its cable, its power) says no goodbye, and a node only listens to most of
# its connections: the kernels ask each other, and after some 10 s without an answer it is gone, and
# what its sessions held is free. As long as `locking` waits for a whole node.
VANISHED_AFTER_MS = 10_000
_TCP_OPTIONS = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 4),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 2),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", VANISHED_AFTER_MS),
)
BACKLOG = 256
PORTS_TRIED_MAX = 100


def watch_for_vanishing(sock: socket.socket) -> None:
    """The kernel ends the connection when nobody answers on the other side any more."""
    for level, option, value in _TCP_OPTIONS:
        if hasattr(socket, option):  # not every platform has all of them
            sock.setsockopt(level, getattr(socket, option), value)


def has_ipv6() -> bool:
    """Whether the kernel lets anybody use IPv6 here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


async def bind_tcp(wanted: Address) -> socket.socket:
    """A listening socket at the address, or at the next free port after it. UserError."""
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise UserError(f"--listen {wanted}: {exc.strerror}") from exc
    family, kind, protocol, _, sockaddr = infos[0]
    last = min(wanted.port + PORTS_TRIED_MAX, 65536) if wanted.port else 1
    for port in range(wanted.port, last):
        sock = socket.socket(family, kind, protocol)
        # Without it a restart within a minute would find its own old connections in the way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is every address of the machine, also those of IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((sockaddr[0], port, *sockaddr[2:]))
            # Two processes can bind one port with SO_REUSEADDR; only one of them can listen.
            sock.listen(BACKLOG)
        except OSError as exc:
            sock.close()
            if exc.errno != errno.EADDRINUSE:
                raise UserError(f"--listen {wanted}: {exc.strerror}") from exc
            continue
        sock.setblocking(False)
        if port != wanted.port:
            _log.info("port %d is taken, serving on %d", wanted.port, port)
        return sock
    raise UserError(f"--listen {wanted}: no free port from there to {last - 1}")


def bind_unix(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A bound and listening socket that nobody else could use for a moment."""
    if len(os.fsencode(path)) > 107:  # sun_path of Linux, less its NUL
        raise UserError(f"{path} is too long for a unix socket: use a shorter data directory")
    if path.exists() and not path.is_socket():
        raise UserError(f"{path} is in the way of the node's socket: move it elsewhere")
    path.unlink(missing_ok=True)  # a killed node's; the lock says that it isn't running
    sock = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise UserError(f"{path}: {exc.strerror}") from exc
    finally:
        os.umask(mask)
    sock.setblocking(False)
    return sock
