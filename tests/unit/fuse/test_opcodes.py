"""Every opcode: request bytes against the in-memory vfs, answer bytes read field by field."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Awaitable, Callable

import pytest

from pydi_fs.fuse.dispatch import CACHE_TIMEOUT_S, Dispatcher
from pydi_fs.vfs.journalling import KeptJournal, read_logs
from pydi_node.commands import ROOT_CALLER
from pydi_node.ids import ROOT_INO, Ino
from tests.harness.memory_vfs import BLOCK_BYTES
from tests.unit.fuse import kernel as k
from tests.unit.fuse.kernel import ROOT, Kernel, lock_in, read_in

Scenario = Callable[[Kernel], Awaitable[None]]
OFFSET_MAX = (1 << 63) - 1
ATTR_NAMES = (
    "ino", "size", "blocks", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec",
    "mode", "nlink", "uid", "gid", "rdev", "blksize", "flags",
)  # fmt: skip
SETATTR_NAMES = (
    "fh", "size", "lock_owner", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec",
    "mode", "uid", "gid",
)  # fmt: skip


def run(scenario: Scenario, *, cached: bool = True, **options: object) -> Kernel:
    """The scenario on a fresh kernel and vfs."""

    async def main() -> Kernel:
        kernel = Kernel(**options)
        kernel.vfs.cached = cached
        await scenario(kernel)
        return kernel

    return asyncio.run(main())


def both_ways(test: Callable[[bool], None]) -> Callable[[bool], None]:
    """Once through the synchronous fast path, once through a task."""
    return pytest.mark.parametrize("cached", [True, False], ids=["nowait", "task"])(test)


def attr_fields(answer: k.Answer, offset: int) -> dict[str, int]:
    return dict(zip(ATTR_NAMES, answer.unpack("QQQqqqIIIIIIIIII", offset), strict=True))


@both_ways
def test_lookup_answers_an_entry(cached: bool) -> None:
    """LOOKUP of a name gives node id = inode number, generation 0 and the time-outs."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        await kernel.write(created.nodeid, created.fh, 0, b"hello")
        answer = await kernel.ask(k.LOOKUP, ROOT, b"file\0")
        nodeid, generation, entry_s, attr_s, entry_ns, attr_ns = answer.unpack("QQQQII")
        assert (nodeid, generation) == (created.nodeid, 0)
        assert (entry_s, entry_ns) == (attr_s, attr_ns) == (2, 500_000_000)
        attr = attr_fields(answer, 40)
        assert attr["ino"] == nodeid
        assert attr["size"] == 5
        assert attr["mode"] == stat.S_IFREG | 0o644
        assert attr["blocks"] == BLOCK_BYTES // 512
        assert len(answer.payload) == k.ENTRY_BYTES
        assert nodeid in kernel.handed_out

    run(scenario, cached=cached, cache_timeout_s=2.5)


@both_ways
def test_absent_name_is_an_answer_that_the_kernel_may_remember(cached: bool) -> None:
    """LOOKUP of an absent name succeeds with node id 0 and a time-out."""

    async def scenario(kernel: Kernel) -> None:
        answer = await kernel.ask(k.LOOKUP, ROOT, b"nothing\0")
        assert answer.error == 0
        assert answer.unpack("QQQQII") == (0, 0, 2, 0, 500_000_000, 0)

    run(scenario, cached=cached, cache_timeout_s=2.5)


@both_ways
def test_lookup_below_a_file_is_an_error(cached: bool) -> None:
    """Only ENOENT is a remembered absence; ENOTDIR and ENAMETOOLONG stay errors."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        assert (await kernel.ask(k.LOOKUP, created.nodeid, b"x\0")).error == errno.ENOTDIR
        assert (await kernel.ask(k.LOOKUP, ROOT, b"x" * 256 + b"\0")).error == errno.ENAMETOOLONG

    run(scenario, cached=cached)


@both_ways
def test_getattr_answers_attributes(cached: bool) -> None:
    """GETATTR of the root; of an inode that is gone: ESTALE."""

    async def scenario(kernel: Kernel) -> None:
        answer = await kernel.ask(k.GETATTR, ROOT, struct.pack("=IIQ", 0, 0, 0))
        assert answer.unpack("QI") == (CACHE_TIMEOUT_S, 0)
        attr = attr_fields(answer, 16)
        assert attr["ino"] == 1
        assert stat.S_ISDIR(attr["mode"])
        assert (await kernel.ask(k.GETATTR, 999, bytes(16))).error == errno.ESTALE

    run(scenario, cached=cached)


@both_ways
def test_statx_tells_the_time_of_birth(cached: bool) -> None:
    """STATX answers struct statx with btime and device numbers split in two."""

    async def scenario(kernel: Kernel) -> None:
        rdev = os.makedev(300, 70000)
        body = struct.pack("=IIII", stat.S_IFCHR | 0o600, rdev & 0xFFFFFFFF, 0, 0) + b"dev\0"
        made = await kernel.ask(k.MKNOD, ROOT, body)
        answer = await kernel.ask(k.STATX, made.nodeid, struct.pack("=IIQII", 0, 0, 0, 0, 0xFFF))
        assert len(answer.payload) == 288
        mask, _blksize, _, nlink, uid, gid, mode = answer.unpack("IIQIIIH", 32)
        assert mask == 0xFFF
        assert (nlink, uid, gid, mode) == (1, 0, 0, stat.S_IFCHR | 0o600)
        ino, size, _blocks, _ = answer.unpack("QQQQ", 64)
        assert (ino, size) == (made.nodeid, 0)
        birth_s, birth_ns = answer.unpack("qI", 96 + 16)
        attr = await kernel.vfs.getattr(made.nodeid)
        assert birth_s * 10**9 + birth_ns == attr.btime_ns
        assert answer.unpack("II", 96 + 64) == (300, 70000)

    run(scenario, cached=cached)


def setattr_in(valid: int, **fields: int) -> bytes:
    values = dict.fromkeys(SETATTR_NAMES, 0)
    values.update(fields)
    v = values
    return struct.pack(
        "=IIQQQqqqIIIIIIII",
        valid, 0, v["fh"], v["size"], v["lock_owner"], v["atime"], v["mtime"], v["ctime"],
        v["atimensec"], v["mtimensec"], v["ctimensec"], v["mode"], 0, v["uid"], v["gid"], 0,
    )  # fmt: skip


def test_setattr_changes_only_what_is_marked() -> None:
    """SETATTR obeys the bits of ``valid``; times before 1970 and "now" included."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino = created.nodeid
        before = await kernel.vfs.getattr(ino)
        body = setattr_in(0x1 | 0x8 | 0x10, mode=0o100600, size=7, atime=-2, atimensec=5, uid=9)
        answer = await kernel.ask(k.SETATTR, ino, body)
        attr = attr_fields(answer, 16)
        assert attr["mode"] == stat.S_IFREG | 0o600
        assert attr["size"] == 7
        assert (attr["atime"], attr["atimensec"]) == (-2, 5)
        assert attr["uid"] == before.uid
        await kernel.ask(k.SETATTR, ino, setattr_in(0x10 | 0x20 | 0x80, mtime=3, atime=8))
        after = await kernel.vfs.getattr(ino)
        assert after.mtime_ns == 3 * 10**9
        assert after.atime_ns > before.atime_ns  # ATIME_NOW wins over the given time
        await kernel.ask(k.SETATTR, ino, setattr_in(0x2 | 0x4, uid=5, gid=6))
        after = await kernel.vfs.getattr(ino)
        assert (after.uid, after.gid) == (5, 6)
        huge = await kernel.ask(k.SETATTR, ino, setattr_in(0x20, mtime=1 << 62))
        assert huge.error == 0
        assert (await kernel.vfs.getattr(ino)).mtime_ns == OFFSET_MAX

    run(scenario)


@both_ways
def test_set_id_bits_go_when_the_kernel_says_so(cached: bool) -> None:
    """chown(2), truncate(2), write(2) and O_TRUNC by others take set-user-id away, and
    set-group-id only where the group may execute. Source: chown(2)."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh

        async def mode_after(mode: int, opcode: int, body: bytes) -> int:
            await kernel.ask(k.SETATTR, ino, setattr_in(0x1, mode=mode))
            assert (await kernel.ask(opcode, ino, body)).error == 0
            return (await kernel.vfs.getattr(ino)).mode & 0o7777

        chown = setattr_in(0x2 | 0x800, uid=5)
        assert await mode_after(0o6755, k.SETATTR, chown) == 0o755
        assert await mode_after(0o2745, k.SETATTR, chown) == 0o2745
        assert await mode_after(0o4755, k.SETATTR, setattr_in(0x2, uid=5)) == 0o4755
        assert await mode_after(0o6755, k.SETATTR, setattr_in(0x8 | 0x800, size=1)) == 0o755
        write = struct.pack("=QQIIQII", fh, 0, 1, 4, 0, 0, 0) + b"x"
        assert await mode_after(0o4755, k.WRITE, write) == 0o755
        plain = struct.pack("=QQIIQII", fh, 0, 1, 0, 0, 0, 0) + b"x"
        assert await mode_after(0o4755, k.WRITE, plain) == 0o4755
        truncating = struct.pack("=II", os.O_WRONLY | os.O_TRUNC, 1)
        assert await mode_after(0o4755, k.OPEN, truncating) == 0o755

    run(scenario, cached=cached)


def test_names_are_made_moved_and_removed() -> None:
    """MKDIR MKNOD SYMLINK LINK READLINK RENAME RENAME2 UNLINK RMDIR, and what they answer."""

    async def scenario(kernel: Kernel) -> None:
        kernel.uid, kernel.gid = 11, 12
        made = await kernel.ask(k.MKDIR, ROOT, struct.pack("=II", 0o40751, 0o22) + b"dir\0")
        attr = attr_fields(made, 40)
        assert attr["mode"] == stat.S_IFDIR | 0o751  # the kernel has applied the umask itself
        assert (attr["uid"], attr["gid"]) == (11, 12)
        directory = made.nodeid
        fifo = await kernel.ask(
            k.MKNOD, directory, struct.pack("=IIII", stat.S_IFIFO | 0o600, 0, 0, 0) + b"fifo\0"
        )
        assert attr_fields(fifo, 40)["mode"] == stat.S_IFIFO | 0o600
        link = await kernel.ask(k.SYMLINK, directory, b"link\0where/to\0")
        assert (await kernel.ask(k.READLINK, link.nodeid)).payload == b"where/to"
        hard = await kernel.ask(k.LINK, ROOT, struct.pack("=Q", fifo.nodeid) + b"hard\0")
        assert hard.nodeid == fifo.nodeid
        assert attr_fields(hard, 40)["nlink"] == 2
        moved = await kernel.ask(k.RENAME, ROOT, struct.pack("=Q", directory) + b"hard\0new\0")
        assert (moved.error, moved.payload) == (0, b"")
        exchange = struct.pack("=QII", directory, 2, 0) + b"new\0link\0"
        assert (await kernel.ask(k.RENAME2, directory, exchange)).error == 0
        assert (await kernel.ask(k.LOOKUP, directory, b"new\0")).nodeid == link.nodeid
        keep = struct.pack("=QII", directory, 1, 0) + b"new\0link\0"
        assert (await kernel.ask(k.RENAME2, directory, keep)).error == errno.EEXIST
        assert (await kernel.ask(k.RMDIR, ROOT, b"dir\0")).error == errno.ENOTEMPTY
        for name in (b"new\0", b"link\0", b"fifo\0"):
            assert (await kernel.ask(k.UNLINK, directory, name)).error == 0
        assert (await kernel.ask(k.RMDIR, ROOT, b"dir\0")).error == 0
        assert (await kernel.ask(k.UNLINK, ROOT, b"dir\0")).error == errno.ENOENT

    run(scenario)


def test_file_content_goes_in_and_out() -> None:
    """CREATE OPEN READ WRITE FLUSH FSYNC RELEASE; a read ends at the end of the file."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        assert len(created.payload) == k.ENTRY_BYTES + 16
        written = await kernel.write(ino, fh, 3, b"content")
        assert written.unpack("II") == (7, 0)
        assert (await kernel.flush(ino, fh)).error == 0
        assert (await kernel.ask(k.FSYNC, ino, struct.pack("=QII", fh, 1, 0))).error == 0
        assert (await kernel.write(ino, fh, 3, b"content")).error == 0
        assert (await kernel.ask(k.SYNCFS, ROOT, bytes(8))).error == 0
        assert not kernel.vfs._inodes[ino].dirty
        opened = await kernel.open(ino)
        assert len(opened.payload) == 16
        assert (await kernel.read(ino, opened.fh, 0, 100)).payload == b"\0\0\0content"
        assert (await kernel.read(ino, opened.fh, 100, 100)).payload == b""
        assert (await kernel.write(ino, opened.fh, 0, b"x")).error == errno.EBADF
        assert (await kernel.release(ino, fh)).error == 0
        assert (await kernel.release(ino, opened.fh)).error == 0
        assert (await kernel.read(ino, opened.fh, 0, 1)).error == errno.EBADF
        assert kernel.vfs.open_handles == 0

    run(scenario)


@pytest.mark.expects_log("refused a request")
@pytest.mark.parametrize("debug", [False, True], ids=["in one step", "as any request"])
def test_a_write_is_answered_in_the_same_way_however_it_is_handled(debug: bool) -> None:
    """WRITE: what lands, at the file's end if O_APPEND is set now; refused are a handle that can't
    write, a place beyond off_t, a length that it does not have; it may have to be looked at
    first."""

    async def main() -> None:
        unheard: list[int] = []
        kernel = Kernel(debug=debug, unheard=lambda: unheard.append(1))
        ino, fh = (created := await kernel.create(b"file")).nodeid, created.fh
        assert (await kernel.write(ino, fh, 3, b"content")).unpack("II") == (7, 0)
        appending = (await kernel.open(ino, os.O_WRONLY | os.O_APPEND)).fh
        append = os.O_WRONLY | os.O_APPEND
        assert (await kernel.write(ino, appending, 0, b"!", 0, append)).unpack("II") == (1, 0)
        assert (await kernel.write(ino, appending, 3, b"C", 1)).error == 0, "a page of a mapping"
        kernel.vfs.cached = False
        assert (await kernel.write(ino, fh, 0, b"?", 0, append)).unpack("II") == (1, 0)
        assert (await kernel.write(ino, appending, 3, b"c")).error == 0
        kernel.vfs.cached = True
        kernel.vfs.cached = False
        assert (await kernel.write(ino, fh, 0, b"the")).unpack("II") == (3, 0)
        kernel.vfs.cached = True
        reader = (await kernel.open(ino)).fh
        assert (await kernel.write(ino, reader, 0, b"x")).error == errno.EBADF
        assert (await kernel.write(ino, 1 << 40, 0, b"x")).error == errno.EBADF
        assert (await kernel.write(ino, fh, 1 << 63, b"x")).error == errno.EINVAL
        longer = struct.pack("=QQIIQII", fh, 0, 2, 0, 0, 0, 0) + b"x"
        assert (await kernel.ask(k.WRITE, ino, longer)).error == errno.EINVAL
        assert (await kernel.read(ino, reader, 0, 100)).payload == b"thecontent!?"
        assert unheard == []
        kernel.takes = False
        kernel.send(k.WRITE, ino, struct.pack("=QQIIQII", fh, 0, 1, 0, 0, 0, 0) + b"T")
        await kernel.dispatcher.stop()
        assert unheard == [1], "nobody took the answer"

    asyncio.run(main())


def test_tmpfile_has_no_name() -> None:
    """TMPFILE answers as CREATE does, for an inode with no links."""

    async def scenario(kernel: Kernel) -> None:
        body = struct.pack("=IIII", os.O_RDWR, 0o100600, 0, 0) + b"/\0"
        made = await kernel.ask(k.TMPFILE, ROOT, body)
        assert attr_fields(made, 40)["nlink"] == 0
        assert (await kernel.write(made.nodeid, made.fh, 0, b"x")).error == 0

    run(scenario)


def test_ranges_are_allocated_sought_and_copied() -> None:
    """FALLOCATE, LSEEK and both kinds of COPY_FILE_RANGE."""

    async def scenario(kernel: Kernel) -> None:
        source = await kernel.create(b"source")
        target = await kernel.create(b"target")
        ino, fh = source.nodeid, source.fh
        await kernel.write(ino, fh, 2 * BLOCK_BYTES, b"data")
        grow = struct.pack("=QQQII", fh, 0, 4 * BLOCK_BYTES, 0, 0)
        assert (await kernel.ask(k.FALLOCATE, ino, grow)).error == 0
        assert (await kernel.vfs.getattr(ino)).size == 4 * BLOCK_BYTES
        seek = struct.pack("=QQII", fh, 0, os.SEEK_DATA, 0)
        assert (await kernel.ask(k.LSEEK, ino, seek)).unpack("Q") == (2 * BLOCK_BYTES,)
        beyond = struct.pack("=QQII", fh, 1 << 40, os.SEEK_DATA, 0)
        assert (await kernel.ask(k.LSEEK, ino, beyond)).error == errno.ENXIO

        def copy(length: int) -> bytes:
            return struct.pack(
                "=QQQQQQQ", fh, 2 * BLOCK_BYTES, target.nodeid, target.fh, 1, length, 0
            )

        old = await kernel.ask(k.COPY_FILE_RANGE, ino, copy(4))
        assert old.unpack("II") == (4, 0)
        new = await kernel.ask(k.COPY_FILE_RANGE_64, ino, copy(3))
        assert new.unpack("Q") == (3,)
        assert (await kernel.read(target.nodeid, target.fh, 0, 9)).payload == b"\0data"
        off_t = struct.pack("=QQQII", fh, 1 << 63, 1, 0, 0)
        assert (await kernel.ask(k.FALLOCATE, ino, off_t)).error == errno.EINVAL

    run(scenario)


def test_a_copy_answers_no_more_than_its_answer_can_say() -> None:
    """COPY_FILE_RANGE has 32 bits for the length copied: longer copies are cut before."""

    async def scenario(kernel: Kernel) -> None:
        asked = []

        async def copy_file_range(
            fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
        ) -> int:
            asked.append(length)
            return length

        kernel.vfs.copy_file_range = copy_file_range  # type: ignore[method-assign]
        body = struct.pack("=QQQQQQQ", 1, 0, ROOT, 2, 0, 5 << 32, 0)
        old = await kernel.ask(k.COPY_FILE_RANGE, ROOT, body)
        assert old.unpack("I") == (0xFFFFF000,)
        new = await kernel.ask(k.COPY_FILE_RANGE_64, ROOT, body)
        assert new.unpack("Q") == (5 << 32,)
        assert asked == [0xFFFFF000, 5 << 32]

    run(scenario)


def test_extended_attributes_are_sized_and_listed() -> None:
    """SETXATTR GETXATTR LISTXATTR REMOVEXATTR: size 0 asks for the length, too small is ERANGE."""

    async def scenario(kernel: Kernel) -> None:
        body = struct.pack("=II", 5, 0) + b"user.a\0" + b"v\0lue"
        assert (await kernel.ask(k.SETXATTR, ROOT, body)).error == 0
        create_again = struct.pack("=II", 1, 1) + b"user.a\0" + b"x"
        assert (await kernel.ask(k.SETXATTR, ROOT, create_again)).error == errno.EEXIST

        async def get(name: bytes, size: int) -> k.Answer:
            return await kernel.ask(k.GETXATTR, ROOT, struct.pack("=II", size, 0) + name + b"\0")

        assert (await get(b"user.a", 0)).unpack("II") == (5, 0)
        assert (await get(b"user.a", 5)).payload == b"v\0lue"
        assert (await get(b"user.a", 4)).error == errno.ERANGE
        assert (await get(b"security.capability", 100)).error == errno.ENODATA
        names = await kernel.ask(k.LISTXATTR, ROOT, struct.pack("=II", 100, 0))
        assert names.payload == b"user.a\0"
        assert (await kernel.ask(k.REMOVEXATTR, ROOT, b"user.a\0")).error == 0
        assert (await get(b"user.a", 0)).error == errno.ENODATA

    run(scenario)


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default"])
def test_acls_are_refused_where_nobody_obeys_them(name: bytes) -> None:
    """No INIT has agreed on it: EOPNOTSUPP to read, write and drop."""

    async def scenario(kernel: Kernel) -> None:
        store = struct.pack("=II", 1, 0) + name + b"\0x"
        assert (await kernel.ask(k.SETXATTR, ROOT, store)).error == errno.EOPNOTSUPP
        get = struct.pack("=II", 100, 0) + name + b"\0"
        assert (await kernel.ask(k.GETXATTR, ROOT, get)).error == errno.EOPNOTSUPP
        assert (await kernel.ask(k.REMOVEXATTR, ROOT, name + b"\0")).error == errno.EOPNOTSUPP
        assert await kernel.vfs.listxattr(ROOT_CALLER, ROOT_INO) == []

    run(scenario)


def test_what_init_agreed_on_for_acls_counts() -> None:
    """The umask comes with the request; SETXATTR has its long form, whose flag is passed on; the
    mode is that of the list; who has none is told so without a question to the tree."""

    async def scenario(kernel: Kernel) -> None:
        offered = 1 << 6 | 1 << 20 | 1 << 29  # DONT_MASK POSIX_ACL SETXATTR_EXT
        await kernel.ask(k.INIT, 0, struct.pack("=IIII", 7, 31, 131072, offered))
        made = await kernel.ask(k.MKDIR, ROOT, struct.pack("=II", 0o777, 0o027) + b"d\0")
        (mode,) = made.unpack("I", 40 + 60)
        assert mode == stat.S_IFDIR | 0o750
        flags: list[int] = []

        async def setxattr(*arguments: object) -> None:
            *_, name, value, given = arguments
            assert (name, value) == (b"system.posix_acl_access", b"list")
            assert isinstance(given, int)
            flags.append(given)

        kernel.vfs.setxattr = setxattr  # type: ignore[method-assign]
        for kill in (0, 1):
            body = struct.pack("=IIII", 4, 0, kill, 0) + b"system.posix_acl_access\0list"
            assert (await kernel.ask(k.SETXATTR, made.nodeid, body)).error == 0
        assert flags == [0, 4]
        get = struct.pack("=II", 100, 0) + b"system.posix_acl_access\0"
        assert (await kernel.ask(k.GETXATTR, made.nodeid, get)).error == errno.ENODATA
        attr = await kernel.vfs.getattr(Ino(made.nodeid))
        marked = attr._replace(mode=stat.S_IFDIR | 0o700 | 1 << 16 | 0o64 << 18)
        kernel.vfs.getattr_nowait = lambda _: marked  # type: ignore[method-assign]
        shown = await kernel.ask(k.GETATTR, made.nodeid, bytes(16))
        assert shown.unpack("I", 16 + 60) == (stat.S_IFDIR | 0o764,)
        assert (await kernel.ask(k.GETXATTR, made.nodeid, get)).error == errno.ENODATA

    run(scenario)


def entries_of(payload: bytes, plus: bool) -> list[tuple[int, int, int, bytes]]:
    """(nodeid of the entry, ino, offset, name) of each record; checks types and alignment."""
    found = []
    position = 0
    while position < len(payload):
        nodeid = -1
        if plus:
            (nodeid,) = struct.unpack_from("=Q", payload, position)
            position += k.ENTRY_BYTES
        ino, offset, length, kind = struct.unpack_from("=QQII", payload, position)
        name = payload[position + 24 : position + 24 + length]
        assert kind in (stat.S_IFDIR >> 12, stat.S_IFREG >> 12)
        found.append((nodeid, ino, offset, name))
        position += 24 + (length + 7) // 8 * 8
    assert position == len(payload)
    return found


@pytest.mark.parametrize("plus", [False, True], ids=["readdir", "readdirplus"])
@pytest.mark.parametrize("size", [512, 4096, 1 << 20])
@both_ways
def test_listing_is_complete_in_pieces_of_any_size(cached: bool, size: int, plus: bool) -> None:
    """READDIR(PLUS) from offset to offset gives ".", ".." and every name once, and an end."""

    async def scenario(kernel: Kernel) -> None:
        names = [b"n" * (i % 200 + 1) + b"%d" % i for i in range(300)]
        for name in names:
            await kernel.create(name)
        opcode = k.READDIRPLUS if plus else k.READDIR
        offset, found = 0, []
        while True:
            answer = await kernel.ask(opcode, ROOT, read_in(0, offset, size))
            assert answer.error == 0
            assert len(answer.payload) <= size
            records = entries_of(answer.payload, plus)
            if not records:
                break
            found += records
            offset = records[-1][2]
        assert [name for *_, name in found] == [b".", b"..", *names]
        for nodeid, ino, _, name in found:
            if name in (b".", b".."):
                assert ino == ROOT
                assert not plus or nodeid == 0
            elif plus:
                assert nodeid == ino
        release = struct.pack("=QIIQ", 0, 0, 0, 0)
        assert (await kernel.ask(k.FSYNCDIR, ROOT, struct.pack("=QII", 0, 0, 0))).error == 0
        assert (await kernel.ask(k.RELEASEDIR, ROOT, release)).error == 0

    run(scenario, cached=cached)


@pytest.mark.parametrize("kernel_checks", [True, False])
def test_directories_are_opened_by_the_kernel(kernel_checks: bool) -> None:
    """And what they contain is kept there, but only where it looks at their attributes before."""

    async def main() -> None:
        kernel = Kernel(kernel_checks=kernel_checks)
        answer = await kernel.ask(k.OPENDIR, ROOT, struct.pack("=II", 0, 0))
        assert answer.error == (errno.ENOSYS if kernel_checks else 0)
        assert answer.payload == (b"" if kernel_checks else bytes(16))

    asyncio.run(main())


def test_listing_resumes_at_each_offset() -> None:
    """An offset stays valid while other entries go: seekdir(3) after unlink(2)."""

    async def scenario(kernel: Kernel) -> None:
        for name in (b"a", b"b", b"c", b"d"):
            await kernel.create(name)
        whole = entries_of((await kernel.ask(k.READDIR, ROOT, read_in(0, 0, 4096))).payload, False)
        for position, (_, _, offset, _) in enumerate(whole):
            rest = await kernel.ask(k.READDIR, ROOT, read_in(0, offset, 4096))
            assert entries_of(rest.payload, False) == whole[position + 1 :]
        await kernel.ask(k.UNLINK, ROOT, b"b\0")
        after_b = whole[3][2]
        rest = await kernel.ask(k.READDIR, ROOT, read_in(0, after_b, 4096))
        assert [name for *_, name in entries_of(rest.payload, False)] == [b"c", b"d"]

    run(scenario)


def test_statfs_counts_in_blocks() -> None:
    """STATFS: total and free of the cluster, 255 bytes of name, inodes never run out."""

    async def scenario(kernel: Kernel) -> None:
        answer = await kernel.ask(k.STATFS)
        blocks, free, available, files, files_free, bsize, namelen, frsize = answer.unpack(
            "QQQQQIII"
        )
        assert len(answer.payload) == 80
        assert blocks * bsize == 1 << 40
        assert free == available == blocks
        assert files - files_free == 1
        assert (namelen, frsize) == (255, bsize)

    run(scenario)


def test_posix_locks_are_taken_asked_for_and_given_back_at_close() -> None:
    """SETLK, GETLK; FLUSH drops all locks of that owner on the file and no one else's."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        other = (await kernel.open(ino, os.O_RDWR)).fh
        first, second = 1 << 63 | 5, 6  # owners are 64 random bits
        assert (await kernel.ask(k.SETLK, ino, lock_in(fh, first, fcntl.F_WRLCK))).error == 0
        [held] = kernel.vfs._locks[Ino(ino), False]
        assert 0 <= held.owner <= OFFSET_MAX  # what a message of the cluster carries
        refused = await kernel.ask(k.SETLK, ino, lock_in(other, second, fcntl.F_RDLCK, 50, 60))
        assert refused.error == errno.EAGAIN
        asked = await kernel.ask(k.GETLK, ino, lock_in(other, second, fcntl.F_RDLCK, 50, 60))
        assert asked.unpack("QQII") == (0, 99, fcntl.F_WRLCK, 77)
        beside = lock_in(other, second, fcntl.F_WRLCK, 100, OFFSET_MAX)
        assert (await kernel.ask(k.SETLK, ino, beside)).error == 0
        # Another descriptor of the first owner: POSIX drops its locks all the same.
        assert (await kernel.flush(ino, other, first)).error == 0
        again = await kernel.ask(k.SETLK, ino, lock_in(other, second, fcntl.F_WRLCK))
        assert again.error == 0
        held = await kernel.ask(k.GETLK, ino, lock_in(fh, first, fcntl.F_RDLCK, 100, 100))
        assert held.unpack("QQII")[2] == fcntl.F_WRLCK

    run(scenario)


@both_ways
def test_what_is_written_is_what_the_request_carried(cached: bool) -> None:
    """Also when it is written later: the device's buffer has another request by then."""

    async def scenario(kernel: Kernel) -> None:
        made = await kernel.create(b"file")
        content = os.urandom(5000)
        assert (await kernel.write(made.nodeid, made.fh, 3, content)).unpack("I") == (5000,)
        found = await kernel.read(made.nodeid, made.fh, 0, 6000)
        assert found.payload == bytes(3) + content

    run(scenario, cached=cached)


def test_who_gave_his_locks_back_is_no_owner_for_a_successor() -> None:
    """FLUSH of an owner takes it out of the journal, though the handle stays open."""
    logs = (os.memfd_create("a"), os.memfd_create("b"))
    journal = KeptJournal(logs, lambda name, fd: None, lambda name: None)
    journal.begin(lambda: ())

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino, fh = created.nodeid, created.fh
        for owner in (5, 6):
            await kernel.ask(k.SETLK, ino, lock_in(fh, owner, fcntl.F_RDLCK))
        await kernel.flush(ino, fh, 5)
        _, _, state = read_logs(logs)
        assert [lock.owner for lock in state.locks] == [6]

    run(scenario, journal=journal)
    for fd in logs:
        os.close(fd)


def test_locks_taken_through_a_read_only_open_go_at_its_release() -> None:
    """A read-only open sends no FLUSH, so its last close gives back what was locked through it."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino = created.nodeid
        reader = (await kernel.open(ino)).fh
        await kernel.ask(k.SETLK, ino, lock_in(reader, 5, fcntl.F_RDLCK))
        write = lock_in(created.fh, 6, fcntl.F_WRLCK)
        assert (await kernel.ask(k.SETLK, ino, write)).error == errno.EAGAIN
        await kernel.release(ino, reader)
        assert (await kernel.ask(k.SETLK, ino, write)).error == 0

    run(scenario)


def test_flock_is_apart_from_posix_locks_and_ends_with_release() -> None:
    """SETLK with the flock mark locks the file; RELEASE with the unlock mark gives it back."""

    async def scenario(kernel: Kernel) -> None:
        created = await kernel.create(b"file")
        ino = created.nodeid
        other = (await kernel.open(ino, os.O_RDWR)).fh
        whole = {"start": 0, "end": OFFSET_MAX}
        flock = lock_in(created.fh, 1, fcntl.F_WRLCK, **whole, flags=1)
        assert (await kernel.ask(k.SETLK, ino, flock)).error == 0
        posix = lock_in(other, 2, fcntl.F_WRLCK, **whole)
        assert (await kernel.ask(k.SETLK, ino, posix)).error == 0
        second = lock_in(other, 3, fcntl.F_WRLCK, **whole, flags=1)
        assert (await kernel.ask(k.SETLK, ino, second)).error == errno.EAGAIN
        await kernel.release(ino, created.fh, flags=2, owner=1)
        assert (await kernel.ask(k.SETLK, ino, second)).error == 0

    run(scenario)


def test_access_is_asked_with_the_callers_groups_where_the_kernel_does_not_check() -> None:
    """ACCESS reaches the vfs; without default_permissions the caller's groups come along."""

    async def scenario(kernel: Kernel) -> None:
        seen = []
        inner = kernel.vfs.access

        async def access(caller: object, ino: object, mask: int) -> None:
            seen.append(caller)
            await inner(caller, ino, mask)  # type: ignore[arg-type]

        kernel.vfs.access = access  # type: ignore[method-assign, assignment]
        kernel.pid = os.getpid()
        kernel.uid = 5
        assert (await kernel.ask(k.ACCESS, ROOT, struct.pack("=II", 4, 0))).error == 0
        assert seen[0].groups == tuple(os.getgroups())
        kernel.pid = 0
        await kernel.ask(k.ACCESS, ROOT, struct.pack("=II", 4, 0))
        assert seen[1].groups == ()

    run(scenario, kernel_checks=False)


def test_requests_without_an_answer_get_none() -> None:
    """FORGET, BATCH_FORGET and INTERRUPT of what is done are silent."""

    async def scenario(kernel: Kernel) -> None:
        kernel.send(k.FORGET, ROOT, struct.pack("=Q", 1))
        kernel.send(k.BATCH_FORGET, 0, struct.pack("=II", 1, 0) + struct.pack("=QQ", 1, 1))
        kernel.interrupt(1234)
        await kernel.dispatcher.stop()
        assert kernel.answers == []

    run(scenario)


def test_what_is_not_supported_is_refused_in_the_way_that_makes_the_kernel_cope() -> None:
    """IOCTL: not a terminal. POLL, BMAP and unknown opcodes: ENOSYS. DESTROY: fine."""

    async def scenario(kernel: Kernel) -> None:
        ioctl = struct.pack("=QIIQII", 0, 0, 0x5401, 0, 0, 0)
        assert (await kernel.ask(k.IOCTL, ROOT, ioctl)).error == errno.ENOTTY
        for opcode in (k.POLL, k.BMAP, 4000):
            assert (await kernel.ask(opcode, ROOT, bytes(64))).error == errno.ENOSYS
        assert (await kernel.ask(k.DESTROY)).error == 0

    run(scenario)


def test_every_opcode_that_is_decoded_is_handled() -> None:
    """The table of operations and the table of decoders name the same opcodes."""
    from pydi_fs.fuse import codec

    silent = {k.FORGET, k.BATCH_FORGET, k.INTERRUPT}
    assert set(codec._DECODERS) == set(Dispatcher.OPERATIONS) | silent
