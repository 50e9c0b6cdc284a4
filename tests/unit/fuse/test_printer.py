"""The lines of ``-o debug``: one per message, readable, whatever is in it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct

import pytest

from pydi_fs.fuse import codec
from pydi_fs.fuse.codec import Header
from pydi_fs.fuse.printer import describe_invalidation, describe_reply, describe_request
from pydi_node.ids import Ino
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import Kernel


def header(opcode: int) -> Header:
    return Header(opcode, 42, 7, 1000, 100, 77)


def test_a_request_shows_who_asks_what() -> None:
    """Opcode by name, numbers, and the fields of its body."""
    line = describe_request(header(k.LOOKUP), codec.Named(b"caf\xc3\xa9\n"))
    assert line == "-> #42 LOOKUP ino=7 uid=1000 pid=77 name=b'caf\\xc3\\xa9\\n'"
    assert describe_request(header(k.STATFS), codec.Empty()).endswith(
        "STATFS ino=7 uid=1000 pid=77"
    )


def test_content_is_cut_and_its_length_told() -> None:
    """A megabyte of data is one line all the same."""
    line = describe_request(header(k.WRITE), codec.Write(3, 0, 0, False, b"x" * 1000000))
    assert "(1000000 bytes)" in line
    assert len(line) < 200


def test_an_error_is_named() -> None:
    """People read ENOENT, not 2."""
    assert describe_reply(header(k.OPEN), errno.ENOENT, b"") == "<- #42 OPEN ENOENT"


def test_an_invalidation_names_what_is_forgotten() -> None:
    """A push from elsewhere stands between the requests that it explains."""
    line = describe_invalidation((Ino(5),), ((Ino(1), b"a b"),), False)
    assert line == "!! invalidate inos=[5] names=[1/b'a b']"
    assert describe_invalidation((), (), True) == "!! invalidate everything"


def test_an_unknown_opcode_has_a_number() -> None:
    """A newer kernel's message is printed too."""
    assert describe_reply(header(4000), errno.ENOSYS, b"") == "<- #42 opcode-4000 ENOSYS"


@pytest.mark.parametrize(
    ("opcode", "nodeid", "body", "expected"),
    [
        (k.LOOKUP, 1, b"f\0", "ino=2 mode=100644 size=5"),
        (k.LOOKUP, 1, b"g\0", "absent"),
        (k.GETATTR, 2, bytes(16), "ino=2 mode=100644 size=5"),
        (k.OPEN, 2, struct.pack("=II", os.O_RDONLY, 0), "open_flags=0x22"),
        (k.WRITE, 2, struct.pack("=QQIIQII", 1, 0, 2, 0, 0, 0, 0) + b"ab", "size=2"),
        (k.STATFS, 1, b"", "80 bytes"),
        (k.UNLINK, 1, b"f\0", "ok"),
        (k.CREATE, 1, struct.pack("=IIII", 2, 0o600, 0, 0) + b"n\0", "mode=100600 size=0 fh=2"),
    ],
)
def test_answers_show_what_matters(
    caplog: pytest.LogCaptureFixture, opcode: int, nodeid: int, body: bytes, expected: str
) -> None:
    """With debug on, each request and each answer is one line in the log."""

    async def main() -> None:
        kernel = Kernel(debug=True)
        created = await kernel.create(b"f")
        await kernel.write(created.nodeid, created.fh, 0, b"hello")
        caplog.clear()
        await kernel.ask(opcode, nodeid, body)

    with caplog.at_level(logging.DEBUG, "pydi.fuse"):
        asyncio.run(main())
    request, reply = [
        record.getMessage() for record in caplog.records if record.name == "pydi.fuse"
    ]
    assert request.startswith("-> #")
    assert reply.startswith("<- #")
    assert expected in reply
