"""INIT: what is agreed with old, present and future kernels."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import Any

import pytest

from pydi_fs.fuse.abi import InitFlag
from pydi_fs.fuse.negotiation import WANTED, WANTED_FOR_ACLS
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import Kernel

ALL = (1 << 43) - 1


def init(
    major: int, minor: int, flags: int, max_readahead: int = 131072, **options: Any
) -> tuple[Kernel, k.Answer]:
    body = struct.pack("=IIII", major, minor, max_readahead, flags & 0xFFFFFFFF)
    if flags & InitFlag.FUSE_INIT_EXT:
        body += struct.pack("=I44x", flags >> 32)

    async def main() -> tuple[Kernel, k.Answer]:
        kernel = Kernel(**options)
        return kernel, await kernel.ask(k.INIT, 0, body)

    return asyncio.run(main())


def test_a_present_kernel_gets_all_that_is_wanted() -> None:
    """7.45 with every flag on offer: the wanted ones, 1 MiB writes, ns times, epochs."""
    kernel, answer = init(7, 45, ALL)
    (major, minor, readahead, flags, background, congestion, max_write, gran, pages, _, flags2) = (
        answer.unpack("IIIIHHIIHHI")
    )
    assert len(answer.payload) == 64
    assert (major, minor, readahead) == (7, 45, 131072)
    assert flags | flags2 << 32 == WANTED | WANTED_FOR_ACLS
    assert (max_write, pages, gran) == (1 << 20, 256, 1)
    assert 0 < congestion < background
    assert kernel.negotiated is not None
    assert kernel.negotiated.has_epoch


@pytest.mark.parametrize(
    "flag",
    [
        InitFlag.FUSE_WRITEBACK_CACHE,  # the kernel would own sizes against remote changes
        InitFlag.FUSE_AUTO_INVAL_DATA,  # mtime is no version
        InitFlag.FUSE_NO_OPEN_SUPPORT,  # OPEN is where versions are compared
        InitFlag.FUSE_SECURITY_CTX,
        InitFlag.FUSE_CREATE_SUPP_GROUP,
    ],
)
def test_what_would_break_a_promise_is_never_asked_for(flag: InitFlag) -> None:
    """These flags change the meaning of other requests and stay off."""
    assert not (WANTED | WANTED_FOR_ACLS) & flag


@pytest.mark.parametrize("lacking", WANTED_FOR_ACLS)
def test_access_control_lists_need_all_that_belongs_to_them(lacking: InitFlag) -> None:
    """A kernel before 5.12 does not say who may keep a set-group-id bit; none of it is asked for.
    Nor where the kernel does not check permissions."""
    _, answer = init(7, 31, ALL & ~InitFlag.FUSE_INIT_EXT & ~lacking)
    assert not answer.unpack("I", 12)[0] & WANTED_FOR_ACLS
    _, answer = init(7, 45, ALL, kernel_checks=False)
    assert not answer.unpack("I", 12)[0] & WANTED_FOR_ACLS


def test_an_older_kernel_gets_only_what_it_offers() -> None:
    """7.31 of Linux 5.4 has no second flags field and no epochs."""
    offered = InitFlag.FUSE_ASYNC_READ | InitFlag.FUSE_MAX_PAGES | InitFlag.FUSE_WRITEBACK_CACHE
    kernel, answer = init(7, 31, offered)
    assert answer.unpack("II") == (7, 31)
    assert answer.unpack("I", 12) == (InitFlag.FUSE_ASYNC_READ | InitFlag.FUSE_MAX_PAGES,)
    assert kernel.negotiated is not None
    assert not kernel.negotiated.has_epoch


def test_a_newer_minor_is_answered_with_ours() -> None:
    """7.60 speaks 7.45 with us; flags that we do not know stay off."""
    _, answer = init(7, 60, (1 << 64) - 1)
    assert answer.unpack("II") == (7, 45)
    assert answer.unpack("I", 32) == (WANTED >> 32,)


def test_a_newer_major_is_asked_to_begin_again() -> None:
    """The kernel then sends a second INIT with our major version."""
    kernel, answer = init(8, 0, ALL)
    assert answer.error == 0
    assert answer.unpack("I") == (7,)
    assert kernel.negotiated is None


@pytest.mark.parametrize("version", [(7, 30), (6, 99)])
def test_a_kernel_that_is_too_old_is_refused(version: tuple[int, int]) -> None:
    """EPROTO makes the mount fail at once; nothing is served half."""
    kernel, answer = init(*version, ALL)
    assert answer.error == errno.EPROTO
    assert kernel.negotiated is None


def test_passthrough_is_asked_for_where_it_is_offered_and_wanted() -> None:
    """Flag and stack depth go together; without either side's will both are absent."""
    bit = InitFlag.FUSE_PASSTHROUGH >> 32
    for wanted, offered, expected in (
        (5.0, ALL, True),
        (None, ALL, False),
        (5.0, ALL & ~InitFlag.FUSE_PASSTHROUGH, False),
    ):
        kernel, answer = init(7, 45, offered, passthrough_after_s=wanted)
        flags2, depth = answer.unpack("II", 32)
        assert (bool(flags2 & bit), depth) == (expected, int(expected))
        assert kernel.negotiated is not None
        assert kernel.negotiated.has_passthrough == expected
