"""The other side of the protocol for tests: builds request bytes, reads answer bytes.

It packs by struct formats of its own and not by `pydi_fs.fuse.abi`, so that a wrong layout there
does not cancel itself out. Formats follow include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydi_fs.fuse.dispatch import Dispatcher
from pydi_fs.fuse.negotiation import Negotiated
from pydi_node.ids import Ino
from tests.harness.memory_vfs import MemoryVfs

ROOT = 1
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 17, 18, 20, 21, 22, 23, 24
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP, DESTROY = 31, 32, 33, 34, 35, 36, 37, 38
IOCTL, POLL, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2 = 39, 40, 42, 43, 44, 45
SYNCFS = 50
LSEEK, COPY_FILE_RANGE, TMPFILE, STATX, COPY_FILE_RANGE_64 = 46, 47, 51, 52, 53

ENTRY_BYTES = 128


class Answer(NamedTuple):
    unique: int
    error: int  # positive errno or 0
    payload: bytes

    def unpack(self, format_: str, offset: int = 0) -> tuple[Any, ...]:
        return struct.unpack_from("=" + format_, self.payload, offset)

    @property
    def nodeid(self) -> int:
        """Of an answer that starts with fuse_entry_out."""
        (nodeid,) = self.unpack("Q")
        return int(nodeid)

    @property
    def fh(self) -> int:
        """Of an answer that ends with fuse_open_out."""
        (fh,) = self.unpack("Q", len(self.payload) - 16)
        return int(fh)

    @property
    def open_flags(self) -> int:
        (flags,) = self.unpack("I", len(self.payload) - 8)
        return int(flags)


class Kernel:
    """Feeds a Dispatcher on ``vfs`` and keeps its answers."""

    def __init__(self, vfs: MemoryVfs | None = None, **options: Any) -> None:
        self.vfs = vfs if vfs is not None else MemoryVfs()
        self.answers: list[Answer] = []
        self.forgotten: list[Ino] = []  # inodes whose attributes the kernel was told to drop
        self.handed_out: list[Ino] = []
        self.dropped: list[Ino] = []  # directories whose listing the kernel was told to drop
        self.negotiated: Negotiated | None = None
        self.takes = True  # False: nobody waits for answers any more
        self.refuses = 0  # so many answers are refused with EINVAL
        self.uid, self.gid, self.pid = 0, 0, 77
        self._unique = 0
        self._answered = asyncio.Event()
        self.dispatcher = Dispatcher(
            self.vfs,
            self._take,
            on_ready=self._on_ready,
            forget_attributes=self.forgotten.append,
            drop_listings=self._drop_listings,
            handed_out=self.handed_out.append,
            **options,
        )

    def _drop_listings(self, inos: tuple[Ino, ...]) -> None:
        self.dropped += inos

    def send(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> int:
        """Delivers one request; its unique."""
        self._unique += 2  # as the kernel: the low bit marks interrupts
        self.deliver(self.pack(opcode, self._unique, nodeid, body))
        return self._unique

    def pack(self, opcode: int, unique: int, nodeid: int, body: bytes) -> bytes:
        header = struct.pack(
            "=IIQQIIIHH",
            40 + len(body), opcode, unique, nodeid, self.uid, self.gid, self.pid, 0, 0,
        )  # fmt: skip
        return header + body

    def deliver(self, request: bytes) -> None:
        """As the device does, out of a buffer that is overwritten at once."""
        buffer = bytearray(request)
        self.dispatcher.handle(memoryview(buffer))
        buffer[:] = b"\xff" * len(buffer)

    async def ask(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> Answer:
        """Delivers one request and waits for its answer, exactly one."""
        unique = self.send(opcode, nodeid, body)
        await self.dispatcher.stop()
        found = [answer for answer in self.answers if answer.unique == unique]
        assert len(found) == 1, found
        return found[0]

    def interrupt(self, unique: int) -> None:
        self.deliver(self.pack(INTERRUPT, unique | 1, 0, struct.pack("=Q", unique)))

    def answer_to(self, unique: int) -> Answer | None:
        return next((answer for answer in self.answers if answer.unique == unique), None)

    async def wait_answers(self, count: int) -> None:
        """Returns when so many answers have come in all."""
        while len(self.answers) < count:
            self._answered.clear()
            await self._answered.wait()

    def _take(self, message: Sequence[bytes]) -> bool:
        if self.refuses:
            self.refuses -= 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self.takes:
            return False
        data = b"".join(message)
        length, error, unique = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        assert -512 < error <= 0
        self.answers.append(Answer(unique, -error, data[16:]))
        self._answered.set()
        return True

    def _on_ready(self, negotiated: Negotiated) -> None:
        self.negotiated = negotiated

    # --- requests that many tests need ------------------------------------------------------------

    async def create(self, name: bytes, flags: int = os.O_RDWR, parent: int = ROOT) -> Answer:
        body = struct.pack("=IIII", flags | os.O_CREAT, 0o100644, 0o022, 0) + name + b"\0"
        answer = await self.ask(CREATE, parent, body)
        assert answer.error == 0
        return answer

    async def open(self, ino: int, flags: int = os.O_RDONLY) -> Answer:
        return await self.ask(OPEN, ino, struct.pack("=II", flags, 0))

    async def write(
        self, ino: int, fh: int, offset: int, data: bytes, flags: int = 0, open_flags: int = 0
    ) -> Answer:
        """flags: FUSE_WRITE_*; open_flags: as F_GETFL would say."""
        head = struct.pack("=QQIIQII", fh, offset, len(data), flags, 0, open_flags, 0)
        return await self.ask(WRITE, ino, head + data)

    async def read(self, ino: int, fh: int, offset: int, size: int) -> Answer:
        return await self.ask(READ, ino, read_in(fh, offset, size))

    async def flush(self, ino: int, fh: int, owner: int = 0) -> Answer:
        return await self.ask(FLUSH, ino, struct.pack("=QIIQ", fh, 0, 0, owner))

    async def release(self, ino: int, fh: int, flags: int = 0, owner: int = 0) -> Answer:
        return await self.ask(RELEASE, ino, struct.pack("=QIIQ", fh, 0, flags, owner))


def read_in(fh: int, offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", fh, offset, size, 0, 0, 0, 0)


def lock_in(fh: int, owner: int, kind: int, start: int = 0, end: int = 99, flags: int = 0) -> bytes:
    return struct.pack("=QQQQIIII", fh, owner, start, end, kind, 77, flags, 0)


async def settle() -> None:
    """Lets everything run that can run without waiting for a clock."""
    for _ in range(10):
        await asyncio.sleep(0)
