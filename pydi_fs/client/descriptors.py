"""Asks the node of this machine for files of blobs: descriptors over its second socket.

Called by `vfs.local_blobs` for those of sealed blobs, which can only be read, and by `vfs.staging`
for one to write a new blob into. Everything here is a shortcut: when the node is away, is slow or
has no copy, the answer is None, and content goes over the ordinary connection.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from pydi_node.records import BlobInfo
from pydi_node.wire.descriptors import ANSWER_BYTES, FileLoan, FileRequest, parse_answer
from pydi_node.wire.messages import TICKET_BYTES

log = logging.getLogger("pydi.client")

SOCKET_NAME = "blobs.sock"
ANSWER_TIMEOUT_S = 2.0  # the node may hash the file first; a reader can ask it for bytes meanwhile
RETRY_S = 1.0  # a node that is away is not looked for more often
_FD_BYTES = array.array("i").itemsize
_SERIALS = 1 << 32


class DescriptorClient:
    """One connection, made when it is needed and again after it broke. One asyncio loop owns it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._retry_at_s = 0.0
        self._serial = 0
        # By serial: what the answer's file must be, and who waits for it.
        self._waiting: dict[int, tuple[Callable[[int], bool], asyncio.Future[int | None]]] = {}

    async def open(self, info: BlobInfo) -> int | None:
        """A read-only descriptor of a verified file with this content, the caller's to close.
        None: there is none to be had now."""
        request = FileRequest(self._next_serial(), info.blob, info.size, info.checksum)
        return await self._ask(request, lambda fd: _is_file_of(fd, info))

    async def borrow(self) -> tuple[int, bytes] | None:
        """The empty file of a new blob, to be written, and its ticket for BlobAdopt. The descriptor
        is the caller's to close. None: there is none to be had now."""
        request = FileLoan(self._next_serial(), os.urandom(TICKET_BYTES))
        fd = await self._ask(request, _is_new_file)
        return None if fd is None else (fd, request.ticket)

    def _next_serial(self) -> int:
        self._serial = (self._serial + 1) % _SERIALS
        return self._serial

    async def _ask(
        self, request: FileRequest | FileLoan, is_right: Callable[[int], bool]
    ) -> int | None:
        if self._sock is None and not self._connect():
            return None
        assert self._sock is not None
        answer: asyncio.Future[int | None] = self._loop.create_future()
        self._waiting[request.serial] = (is_right, answer)
        try:
            self._sock.send(request.pack())
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        except BlockingIOError:
            return None  # the node takes no more questions for now
        except TimeoutError:
            log.debug("no file from %s in time", self._path)
            return None
        except OSError as exc:
            self._drop(exc.strerror or str(exc))
            return None
        finally:
            self._waiting.pop(request.serial, None)
            if answer.cancelled() or not answer.done():
                answer.cancel()

    def close(self) -> None:
        self._retry_at_s = float("inf")
        self._drop("closed")

    def _connect(self) -> bool:
        now_s = self._loop.time()
        if now_s < self._retry_at_s or not hasattr(socket, "SOCK_SEQPACKET"):
            return False
        self._retry_at_s = now_s + RETRY_S
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(str(self._path))
        except OSError as exc:
            sock.close()
            log.debug("no files of blobs from %s: %s", self._path, exc)
            return False
        self._sock = sock
        self._loop.add_reader(sock, self._on_readable)
        return True

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            # The space of one descriptor may hold two; of more the kernel closes the rest.
            packet, ancillary, flags, _ = sock.recvmsg(
                ANSWER_BYTES + 1, socket.CMSG_SPACE(_FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as exc:
            self._drop(exc.strerror or str(exc))
            return
        fds = _descriptors(ancillary)
        with contextlib.ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)
            if not packet:
                self._drop("the node closed it")
                return
            try:
                answer = parse_answer(packet)
                # Cut short, without any: this process has no descriptor free, which is not the
                # node's fault.
                is_full = bool(flags & socket.MSG_CTRUNC) and not fds
                expected = 1 if answer.errno == 0 and not is_full else 0
                if flags & socket.MSG_TRUNC or len(fds) != expected:
                    raise ValueError("wrong number of descriptors")
            except ValueError as exc:
                log.warning("%s broke the protocol: %s", self._path, exc)
                self._drop("broken")
                return
            waiting = self._waiting.get(answer.serial)
            if waiting is None or waiting[1].done():
                return  # asked too long ago
            is_right, future = waiting
            if not fds:
                future.set_result(None)
            elif is_right(fds[0]):
                stack.pop_all()  # its owner now is who waits
                future.set_result(fds[0])
            else:
                log.warning("%s gave a wrong file", self._path)
                future.set_result(None)

    def _drop(self, why: str) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        log.debug("no more files of blobs from %s: %s", self._path, why)
        self._loop.remove_reader(sock)
        sock.close()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_result(None)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return list(fds)


def _is_file_of(fd: int, info: BlobInfo) -> bool:
    """A regular file of the right size that can only be read."""
    status = os.fstat(fd)
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return stat.S_ISREG(status.st_mode) and status.st_size == info.size and mode == os.O_RDONLY


def _is_new_file(fd: int) -> bool:
    """A regular file with nothing in it yet, for reading and writing."""
    status = os.fstat(fd)
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and mode == os.O_RDWR
