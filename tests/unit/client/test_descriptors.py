"""Asking a node for files: what a node may send, and what of it is believed."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pydi_fs.client import descriptors
from pydi_fs.client.descriptors import DescriptorClient
from pydi_node.ids import NodeNumber, blob_id
from pydi_node.records import BlobInfo
from pydi_node.wire.descriptors import REQUEST_BYTES, FileAnswer, FileRequest, parse_request

DEADLINE_S = 60.0
INFO = BlobInfo(blob_id(NodeNumber(1), 7), 100, bytes(32), (NodeNumber(1),))

Reply = Callable[[socket.socket, FileRequest], None]


def ask(tmp_path: Path, *replies: Reply) -> list[int | None]:
    """What the client gets out of a node that treats the questions like this, one after the other;
    each answer is awaited before the next question."""
    path = tmp_path / "blobs.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(DEADLINE_S)

    async def test() -> list[int | None]:
        client = DescriptorClient(path)
        found = []
        peer: socket.socket | None = None
        for reply in replies:
            question = asyncio.ensure_future(client.open(INFO))
            await asyncio.sleep(0)
            if peer is None:
                peer = await asyncio.to_thread(lambda: listener.accept()[0])
                peer.settimeout(DEADLINE_S)
            packet = await asyncio.to_thread(peer.recv, REQUEST_BYTES + 1)
            reply(peer, parse_request(packet))
            found.append(await question)
        client.close()
        assert peer is not None
        peer.close()
        return found

    with listener:
        return asyncio.run(asyncio.wait_for(test(), DEADLINE_S))


def send(peer: socket.socket, packet: bytes, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([packet], rights)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * INFO.size)
    return path


def giving(path: Path, flags: int = os.O_RDONLY, copies: int = 1) -> Reply:
    def reply(peer: socket.socket, request: FileRequest) -> None:
        fd = os.open(path, flags)
        send(peer, FileAnswer(request.serial, 0).pack(), *[fd] * copies)
        os.close(fd)

    return reply


def test_a_file_arrives(tmp_path: Path, file: Path) -> None:
    """The descriptor reads the file, and is not inherited by programs that are started."""
    (fd,) = ask(tmp_path, giving(file))
    assert fd is not None
    assert os.pread(fd, 200, 0) == b"x" * INFO.size
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_refusal_is_none_and_the_connection_stays(tmp_path: Path, file: Path) -> None:
    """ENOENT, then a file over the same connection."""

    def refuse(peer: socket.socket, request: FileRequest) -> None:
        assert (request.blob, request.size, request.checksum) == INFO[:3]
        send(peer, FileAnswer(request.serial, errno.ENOENT).pack())

    none, fd = ask(tmp_path, refuse, giving(file))
    assert none is None
    assert fd is not None
    os.close(fd)


@pytest.mark.expects_log("gave a wrong file")
@pytest.mark.parametrize("wrong", ["writable", "short", "directory"])
def test_a_wrong_file_is_closed_and_not_used(tmp_path: Path, file: Path, wrong: str) -> None:
    """Only a regular file of the right size that can only be read may back a blob."""
    before = open_fds()
    if wrong == "short":
        os.truncate(file, INFO.size - 1)
    path = tmp_path if wrong == "directory" else file
    assert ask(tmp_path, giving(path, os.O_RDWR if wrong == "writable" else os.O_RDONLY)) == [None]
    assert open_fds() == before


@pytest.mark.expects_log("broke the protocol")
@pytest.mark.parametrize("kind", ["two files", "no file", "file with an error", "garbage"])
def test_a_node_that_breaks_the_protocol_is_left(tmp_path: Path, file: Path, kind: str) -> None:
    """No descriptor stays open, the reader gets None at once."""
    before = open_fds()

    def reply(peer: socket.socket, request: FileRequest) -> None:
        fd = os.open(file, os.O_RDONLY)
        ok = FileAnswer(request.serial, 0).pack()
        if kind == "two files":
            send(peer, ok, fd, fd)
        elif kind == "no file":
            send(peer, ok)
        elif kind == "file with an error":
            send(peer, FileAnswer(request.serial, errno.ENOENT).pack(), fd)
        else:
            send(peer, b"garbage that is too long", fd)
        os.close(fd)

    assert ask(tmp_path, reply) == [None]
    assert open_fds() == before


def test_without_a_free_descriptor_it_is_none(tmp_path: Path, file: Path) -> None:
    """The process may open no more: no file, no complaint about the node, and the connection stays
    for the time when it may again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def when_full(peer: socket.socket, request: FileRequest) -> None:
        giving(file)(peer, request)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))

    def when_free(peer: socket.socket, request: FileRequest) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        giving(file)(peer, request)

    try:
        none, fd = ask(tmp_path, when_full, when_free)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert none is None
    assert fd is not None
    os.close(fd)


def test_a_node_that_dies_is_none(tmp_path: Path) -> None:
    """The connection ends under a question."""
    assert ask(tmp_path, lambda peer, _: peer.shutdown(socket.SHUT_RDWR)) == [None]


def test_a_late_answer_is_closed(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a question that was given up brings a descriptor nobody wants."""
    monkeypatch.setattr(descriptors, "ANSWER_TIMEOUT_S", 0.05)
    before = open_fds()
    asked: list[int] = []

    def keep(_: socket.socket, request: FileRequest) -> None:
        asked.append(request.serial)

    def late(peer: socket.socket, request: FileRequest) -> None:
        fd = os.open(file, os.O_RDONLY)
        send(peer, FileAnswer(asked[0], 0).pack(), fd)
        send(peer, FileAnswer(request.serial, errno.ENOENT).pack())
        os.close(fd)

    assert ask(tmp_path, keep, late) == [None, None]
    assert open_fds() == before


def test_no_node_is_none(tmp_path: Path) -> None:
    """Nobody listens, or there is no socket."""

    async def test() -> None:
        client = DescriptorClient(tmp_path / "nothing")
        assert await client.open(INFO) is None
        assert await client.open(INFO) is None
        client.close()

    asyncio.run(test())
