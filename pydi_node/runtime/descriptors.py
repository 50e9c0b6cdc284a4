"""Hands files of blobs to the mounts of this machine: their bytes need not pass through the node.

Made by node.py. A socket of its own, because the event loop's transports can't send descriptors.
Who may connect is decided as on the node's socket: its mode, and the user behind the connection.

What is handed out is a descriptor that can only read, of a file that was verified as for any read.
The peer may keep it for long: the content of a sealed blob never changes, and when the file is
deleted or found to be damaged, its link count or its time of change tells the peer to let go.

Or it is the file of a new blob, lent to be written. Its writer waits here for the request that
adopts it, for as long as the peer stays connected.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydi_node.blobs.store import Writer
from pydi_node.errors import BlobError, FileError, PydiError
from pydi_node.records import BlobInfo
from pydi_node.runtime.sockets import BACKLOG, bind_unix
from pydi_node.wire.descriptors import (
    REQUEST_BYTES,
    FileAnswer,
    FileLoan,
    FileRequest,
    parse_request,
)

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64  # one for each mount of this machine
REQUESTS_AT_ONCE_MAX = 32  # of one peer; the rest waits in its socket
LOANS_MAX = 8  # of one peer, that it has not adopted; the oldest one ends

# The tree's record of a blob if it is the one asked for, and a verified read-only descriptor.
OpenFile = Callable[[BlobInfo], Awaitable[int]]


class DescriptorServer:
    """The listener and its connections; all in the loop."""

    def __init__(
        self,
        blob_info: Callable[[FileRequest], BlobInfo],
        open_file: OpenFile,
        create: Callable[[], Awaitable[Writer]],
    ) -> None:
        """blob_info  what the tree says of it; FileError when it says nothing.
        open_file  the caller closes the descriptor; BlobError when there is no sound copy here.
        create  a writer of a new blob.
        """
        self.create = create
        self._blob_info = blob_info
        self._open_file = open_file
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._peers: set[_Peer] = set()

    def listen(self, path: Path) -> None:
        """Serves at ``path``, mode 0600. UserError as for the node's socket."""
        if not hasattr(socket, "SOCK_SEQPACKET"):
            return  # not this system's; its mounts read through the node
        self._listener = bind_unix(path, socket.SOCK_SEQPACKET)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def close(self) -> None:
        """Nobody is served any more; what was handed out stays with its owners."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for peer in list(self._peers):
            peer.close()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # nobody (more) there, or out of descriptors: the next wake-up tries again
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, _ = struct.unpack("3i", raw)
            if uid not in (0, os.geteuid()) or len(self._peers) >= CONNECTIONS_MAX:
                _log.warning("refused user %d, who asked for files of blobs", uid)
                sock.close()
                continue
            sock.setblocking(False)
            self._peers.add(_Peer(self, sock))

    async def answer(self, request: FileRequest) -> int:
        """The descriptor; FileError ENOENT when this node can't give the one that is meant."""
        info = self._blob_info(request)
        if (info.size, info.checksum) != (request.size, request.checksum):
            raise FileError(errno.ENOENT)
        return await self._open_file(info)

    def take(self, ticket: bytes) -> Writer | None:
        """The writer of the file that was lent under it, the caller's from now on."""
        for peer in self._peers:
            if (writer := peer.loans.pop(ticket, None)) is not None:
                return writer
        return None

    def forget(self, peer: _Peer) -> None:
        self._peers.discard(peer)


class _Peer:
    """One connection."""

    def __init__(self, server: DescriptorServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.loans: dict[bytes, Writer] = {}  # by ticket, the oldest first
        self._reading = False
        self._closed = False
        self._adjust_reading()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._adjust_reading()
        for task in self._tasks:
            task.cancel()
        while self.loans:
            self._end_oldest()
        self._sock.close()
        self._server.forget(self)

    def _adjust_reading(self) -> None:
        wanted = not self._closed and len(self._tasks) < REQUESTS_AT_ONCE_MAX
        if wanted and not self._reading:
            self._loop.add_reader(self._sock, self._on_readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._sock)
        self._reading = wanted

    def _on_readable(self) -> None:
        try:
            packet = self._sock.recv(REQUEST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return
        try:
            request = parse_request(packet)
        except ValueError as exc:
            _log.warning("who asks for files of blobs broke the protocol: %s: disconnected", exc)
            self.close()
            return
        if isinstance(request, FileLoan):
            task = self._loop.create_task(self._lend(request))
        else:
            task = self._loop.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        self._adjust_reading()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("internal error while a file was handed out", exc_info=error)
            self.close()
        self._adjust_reading()

    async def _serve(self, request: FileRequest) -> None:
        try:
            fd = await self._server.answer(request)
        except (PydiError, OSError) as exc:
            expected = isinstance(exc, (BlobError, FileError))
            self._send(FileAnswer(request.serial, errno.ENOENT if expected else errno.EIO), [])
            return
        try:
            self._send(FileAnswer(request.serial, 0), [fd])
        finally:
            os.close(fd)

    async def _lend(self, request: FileLoan) -> None:
        try:
            writer = await self._server.create()
        except (PydiError, OSError) as exc:
            _log.debug("no file was lent: %s", exc)
            self._send(FileAnswer(request.serial, errno.EIO), [])
            return
        if request.ticket in self.loans or self._closed:
            writer.abort()
            self._send(FileAnswer(request.serial, errno.EEXIST), [])
            return
        if len(self.loans) >= LOANS_MAX:
            self._end_oldest()
        self.loans[request.ticket] = writer
        self._send(FileAnswer(request.serial, 0), [writer.lend()])

    def _end_oldest(self) -> None:
        # In the loop: it is an empty file, or was one that nobody told of.
        self.loans.pop(next(iter(self.loans))).abort()

    def _send(self, answer: FileAnswer, fds: list[int]) -> None:
        if self._closed:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([answer.pack()], rights)
        except OSError as exc:
            # Gone, or it takes no answers: nothing is kept for it.
            _log.info("disconnected who asked for files of blobs: %s", exc.strerror)
            self.close()
