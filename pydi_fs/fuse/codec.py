"""FUSE messages: request bytes to typed requests, answers and notifications to bytes.

Pure: no device, no clock. `dispatch` and `notify` call it; tests and the printer read through it.
A request that does not parse raises CodecError and nothing else, whatever the bytes.

Decoded bodies own their bytes (no view into the device's buffer, which is reused at once), but for
what a WRITE carries.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pydi_fs.fuse import abi
from pydi_fs.fuse.abi import FuseNotify, FuseOpcode, InitFlag
from pydi_node.errors import FileError
from pydi_node.ids import INT64_MAX, Ino
from pydi_node.records import Attr, DirEntry, Statfs

NS_PER_S = 1_000_000_000

# What stat(2) recommends for I/O. stdio and Python size their buffers by it, and every write(2) is
# one WRITE request: 128 KiB instead of 4 KiB saves 31 of 32 requests of a program that uses them.
BLOCK_SIZE = 128 * 1024
# Unit of statfs(2) counts; small, so that df(1) shows small clusters exactly.
STATFS_BLOCK_SIZE = 4096
# Inode numbers do not run out; programs only test that some are free.
INODES_FREE = 1 << 32


class CodecError(ValueError):
    """The bytes are no well-formed request of their opcode."""


class Header(NamedTuple):
    """struct fuse_in_header without its length fields."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    second: bool = False  # it came as the second node id of its inode: see `nodeids`


# --- bodies of requests ---------------------------------------------------------------------------


class Empty(NamedTuple):
    """A request whose body says nothing that we use."""


class Named(NamedTuple):
    name: bytes


class Setattr(NamedTuple):
    """Times are in ns since 1970, clamped to 64 bits as local file systems do."""

    valid: int
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    fh: int


class Symlink(NamedTuple):
    name: bytes
    target: bytes


class Mknod(NamedTuple):
    mode: int
    rdev: int
    umask: int
    name: bytes


class Mkdir(NamedTuple):
    mode: int
    umask: int
    name: bytes


class Rename(NamedTuple):
    new_parent: int
    flags: int
    name: bytes
    new_name: bytes


class Link(NamedTuple):
    ino: int
    name: bytes


class Open(NamedTuple):
    flags: int
    open_flags: int


class Create(NamedTuple):
    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes


class Read(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    fh: int
    offset: int
    size: int


class Write(NamedTuple):
    """``data`` is a part of the request: whoever needs it later makes it `owned`.

    append  O_APPEND is set now. How the file was opened does not say so: F_SETFL changes it, and a
            page of a mapping is sent under any handle and never appends.
    """

    fh: int
    offset: int
    write_flags: int
    append: bool
    data: memoryview | bytes

    def owned(self) -> Write:
        return self._replace(data=bytes(self.data))


class Release(NamedTuple):
    fh: int
    release_flags: int
    lock_owner: int


class Fsync(NamedTuple):
    fh: int
    datasync: bool


class Setxattr(NamedTuple):
    """``more_flags`` are the kernel's own, where INIT agreed on them."""

    flags: int
    more_flags: int
    name: bytes
    value: bytes


class Getxattr(NamedTuple):
    """``size`` 0 asks how long the value is. LISTXATTR has an empty name."""

    size: int
    name: bytes


class Flush(NamedTuple):
    fh: int
    lock_owner: int


class Init(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int  # InitFlag


class Lock(NamedTuple):
    """``end`` is inclusive; INT64_MAX stands for the end of the file, wherever that is."""

    fh: int
    owner: int
    start: int
    end: int
    kind: int
    pid: int
    flock: bool


class Access(NamedTuple):
    mask: int


class Interrupt(NamedTuple):
    unique: int


class Ioctl(NamedTuple):
    fh: int
    cmd: int


class Fallocate(NamedTuple):
    fh: int
    mode: int
    offset: int
    length: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int


class CopyFileRange(NamedTuple):
    fh_in: int
    offset_in: int
    ino_out: int
    fh_out: int
    offset_out: int
    length: int


# --- decoding -------------------------------------------------------------------------------------

_OPEN = int(FuseOpcode.FUSE_OPEN)  # integers are compared in half the time
_RELEASE = int(FuseOpcode.FUSE_RELEASE)
_LOOKUP = int(FuseOpcode.FUSE_LOOKUP)
_OPEN_REQUEST = struct.Struct(abi.fuse_in_header.format + abi.fuse_open_in.format[1:])
_RELEASE_REQUEST = struct.Struct(abi.fuse_in_header.format + abi.fuse_release_in.format[1:])
_O_APPEND = os.O_APPEND
_WRITE = int(FuseOpcode.FUSE_WRITE)
_WRITE_REQUEST = struct.Struct(abi.fuse_in_header.format + abi.fuse_write_in.format[1:])
_WRITE_BYTES = _WRITE_REQUEST.size
HEADER_BYTES = abi.fuse_in_header.size
OPEN_BYTES = _OPEN_REQUEST.size
RELEASE_BYTES = _RELEASE_REQUEST.size


def decode_header(request: memoryview) -> tuple[Header, memoryview]:
    """The header and the body of one request as read from the device.

    CodecError if it is shorter than a header or not as long as it says: then even its ``unique``
    can't be trusted, and there is nothing to answer.
    """
    if len(request) < abi.fuse_in_header.size:
        raise CodecError(f"{len(request)} bytes are no request")
    length, opcode, unique, nodeid, uid, gid, pid, extensions, _ = abi.fuse_in_header.unpack_from(
        request
    )
    if length != len(request):
        raise CodecError(f"request of {len(request)} bytes says that it has {length}")
    # Extensions (security context, groups) are sent only if INIT asks for them, which we do not.
    end = max(length - 8 * extensions, abi.fuse_in_header.size)
    return Header(opcode, unique, nodeid, uid, gid, pid), request[abi.fuse_in_header.size : end]


# What is asked most often, in one step; None if there is anything to it that is not asked often.


def decode_lookup(request: memoryview) -> tuple[int, int, bytes] | None:
    """(unique, node id of the directory, name) of a LOOKUP."""
    length, opcode, unique, nodeid, _, _, _, extensions, _ = abi.fuse_in_header.unpack_from(request)
    if opcode != _LOOKUP or length != len(request) or extensions:
        return None
    name = bytes(request[HEADER_BYTES:])
    if name.find(0) != len(name) - 1:
        return None
    return unique, nodeid, name[:-1]


def decode_open(request: memoryview) -> tuple[int, int, int, int, int] | None:
    """(unique, node id, uid, gid, flags) of an OPEN."""
    if len(request) != OPEN_BYTES:
        return None
    (length, opcode, unique, nodeid, uid, gid, _, extensions, _, flags, open_flags) = (
        _OPEN_REQUEST.unpack_from(request)
    )
    if opcode != _OPEN or length != OPEN_BYTES or extensions or open_flags:
        return None
    return unique, nodeid, uid, gid, flags


def decode_release(request: memoryview) -> tuple[int, int, int] | None:
    """(unique, node id, handle) of a RELEASE."""
    if len(request) != RELEASE_BYTES:
        return None
    (length, opcode, unique, nodeid, _, _, _, extensions, _, fh, _, release_flags, _) = (
        _RELEASE_REQUEST.unpack_from(request)
    )
    if opcode != _RELEASE or length != RELEASE_BYTES or extensions or release_flags:
        return None
    return unique, nodeid, fh


def decode_write(request: memoryview) -> tuple[int, int, int, memoryview, bool] | None:
    """(unique, handle, offset, data, whether it appends) of a WRITE; the data is a part of the
    request."""
    if len(request) < _WRITE_BYTES:
        return None
    (
        length, opcode, unique, _, _, _, _, extensions, _, fh, offset, size, write_flags, _, flags,
        _,
    ) = _WRITE_REQUEST.unpack_from(request)  # fmt: skip
    if (
        opcode != _WRITE
        or length != len(request)
        or length - _WRITE_BYTES != size
        or extensions
        or write_flags & abi.FUSE_WRITE_KILL_SUIDGID
        or offset > INT64_MAX
    ):
        return None
    return unique, fh, offset, request[_WRITE_BYTES:], bool(flags & _O_APPEND)


def decode_body(opcode: int, body: memoryview, agreed: int = 0) -> Any:
    """The typed body of a request; CodecError if malformed, KeyError for an opcode not in use.

    agreed  the flags of INIT.
    """
    decode = _DECODERS[opcode]
    if opcode == FuseOpcode.FUSE_SETXATTR and agreed & InitFlag.FUSE_SETXATTR_EXT:
        decode = _setxattr_ext
    try:
        return decode(body)
    except struct.error as exc:
        raise CodecError(f"opcode {opcode}: body of {len(body)} bytes is too short") from exc


def _names(body: memoryview, start: int, count: int) -> list[bytes]:
    """The ``count`` NUL-terminated names from ``start`` on, and nothing behind them."""
    names = bytes(body[start:]).split(b"\0")
    # The text after the last NUL is empty if the terminators are all there.
    if len(names) != count + 1 or names[-1]:
        raise CodecError(f"expected {count} names")
    return names[:-1]


def _empty(_body: memoryview) -> Empty:
    return _EMPTY


_EMPTY = Empty()


def _named(body: memoryview) -> Named:
    return Named(*_names(body, 0, 1))


def _setattr(body: memoryview) -> Setattr:
    (valid, _, fh, size, _, atime_s, mtime_s, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
        abi.fuse_setattr_in.unpack_from(body)
    )
    return Setattr(
        valid, size, _time_ns(atime_s, atime_ns), _time_ns(mtime_s, mtime_ns), mode, uid, gid, fh
    )


def _time_ns(seconds: int, nanoseconds: int) -> int:
    return max(-INT64_MAX, min(INT64_MAX, seconds * NS_PER_S + nanoseconds))


def _symlink(body: memoryview) -> Symlink:
    return Symlink(*_names(body, 0, 2))


def _mknod(body: memoryview) -> Mknod:
    mode, rdev, umask, _ = abi.fuse_mknod_in.unpack_from(body)
    return Mknod(mode, rdev, umask & 0o777, *_names(body, 16, 1))


def _mkdir(body: memoryview) -> Mkdir:
    mode, umask = abi.fuse_mkdir_in.unpack_from(body)
    return Mkdir(mode, umask & 0o777, *_names(body, 8, 1))


def _rename(body: memoryview) -> Rename:
    (new_parent,) = abi.fuse_rename_in.unpack_from(body)
    return Rename(new_parent, 0, *_names(body, 8, 2))


def _rename2(body: memoryview) -> Rename:
    new_parent, flags, _ = abi.fuse_rename2_in.unpack_from(body)
    return Rename(new_parent, flags, *_names(body, 16, 2))


def _link(body: memoryview) -> Link:
    (ino,) = abi.fuse_link_in.unpack_from(body)
    return Link(ino, *_names(body, 8, 1))


def _open(body: memoryview) -> Open:
    return Open(*abi.fuse_open_in.unpack_from(body))


def _create(body: memoryview) -> Create:
    flags, mode, umask, open_flags = abi.fuse_create_in.unpack_from(body)
    return Create(flags, mode, umask & 0o777, open_flags, *_names(body, 16, 1))


def _read(body: memoryview) -> Read:
    fh, offset, size, _, _, _, _ = abi.fuse_read_in.unpack_from(body)
    return Read(fh, offset, size)


def _write(body: memoryview) -> Write:
    fh, offset, size, write_flags, _, flags, _ = abi.fuse_write_in.unpack_from(body)
    if len(body) != 40 + size:
        raise CodecError(f"WRITE of {size} bytes carries {len(body) - 40}")
    return Write(fh, offset, write_flags, bool(flags & _O_APPEND), body[40:])


def _release(body: memoryview) -> Release:
    fh, _flags, release_flags, lock_owner = abi.fuse_release_in.unpack_from(body)
    return Release(fh, release_flags, _owner(lock_owner))


def _fsync(body: memoryview) -> Fsync:
    fh, flags, _ = abi.fuse_fsync_in.unpack_from(body)
    return Fsync(fh, bool(flags & abi.FUSE_FSYNC_FDATASYNC))


def _setxattr(body: memoryview) -> Setxattr:
    return _setxattr_of(body, abi.fuse_setxattr_in.size, 0)


def _setxattr_ext(body: memoryview) -> Setxattr:
    """As FUSE_SETXATTR_EXT has it."""
    short = abi.fuse_setxattr_in.size
    more_flags, _ = abi.fuse_setxattr_in_ext.unpack_from(body, short)
    return _setxattr_of(body, short + abi.fuse_setxattr_in_ext.size, more_flags)


def _setxattr_of(body: memoryview, names_start: int, more_flags: int) -> Setxattr:
    size, flags = abi.fuse_setxattr_in.unpack_from(body)
    if size > len(body) - names_start:
        raise CodecError(f"SETXATTR of {size} bytes carries {len(body) - names_start}")
    value_start = len(body) - size
    [name] = _names(body[:value_start], names_start, 1)
    return Setxattr(flags, more_flags, name, bytes(body[value_start:]))


def _getxattr(body: memoryview) -> Getxattr:
    size, _ = abi.fuse_getxattr_in.unpack_from(body)
    return Getxattr(size, *_names(body, 8, 1))


def _listxattr(body: memoryview) -> Getxattr:
    size, _ = abi.fuse_getxattr_in.unpack_from(body)
    return Getxattr(size, b"")


def _flush(body: memoryview) -> Flush:
    fh, _, _, lock_owner = abi.fuse_flush_in.unpack_from(body)
    return Flush(fh, _owner(lock_owner))


def _init(body: memoryview) -> Init:
    major, minor, max_readahead, flags = abi.fuse_init_in.unpack_from(body)
    if flags & abi.InitFlag.FUSE_INIT_EXT:
        flags |= abi.fuse_init_in_flags2.unpack_from(body, 16)[0] << 32
    return Init(major, minor, max_readahead, flags)


def _lock(body: memoryview) -> Lock:
    fh, owner, start, end, kind, pid, lk_flags, _ = abi.fuse_lk_in.unpack_from(body)
    if not start <= end <= INT64_MAX:
        raise CodecError(f"lock from {start} to {end}")
    return Lock(fh, _owner(owner), start, end, kind, pid, bool(lk_flags & abi.FUSE_LK_FLOCK))


def _owner(kernel_owner: int) -> int:
    """The kernel's 64 random bits of a lock owner as a positive integer of 63."""
    return kernel_owner & INT64_MAX


def _access(body: memoryview) -> Access:
    return Access(abi.fuse_access_in.unpack_from(body)[0])


def _interrupt(body: memoryview) -> Interrupt:
    return Interrupt(*abi.fuse_interrupt_in.unpack_from(body))


def _ioctl(body: memoryview) -> Ioctl:
    fh, _, cmd, _, _, _ = abi.fuse_ioctl_in.unpack_from(body)
    return Ioctl(fh, cmd)


def _fallocate(body: memoryview) -> Fallocate:
    fh, offset, length, mode, _ = abi.fuse_fallocate_in.unpack_from(body)
    return Fallocate(fh, mode, offset, length)


def _lseek(body: memoryview) -> Lseek:
    fh, offset, whence, _ = abi.fuse_lseek_in.unpack_from(body)
    return Lseek(fh, offset, whence)


def _copy_file_range(body: memoryview) -> CopyFileRange:
    return CopyFileRange(*abi.fuse_copy_file_range_in.unpack_from(body)[:6])


_DECODERS: dict[int, Callable[[memoryview], Any]] = {
    FuseOpcode.FUSE_LOOKUP: _named,
    FuseOpcode.FUSE_FORGET: _empty,
    FuseOpcode.FUSE_GETATTR: _empty,
    FuseOpcode.FUSE_SETATTR: _setattr,
    FuseOpcode.FUSE_READLINK: _empty,
    FuseOpcode.FUSE_SYMLINK: _symlink,
    FuseOpcode.FUSE_MKNOD: _mknod,
    FuseOpcode.FUSE_MKDIR: _mkdir,
    FuseOpcode.FUSE_UNLINK: _named,
    FuseOpcode.FUSE_RMDIR: _named,
    FuseOpcode.FUSE_RENAME: _rename,
    FuseOpcode.FUSE_LINK: _link,
    FuseOpcode.FUSE_OPEN: _open,
    FuseOpcode.FUSE_READ: _read,
    FuseOpcode.FUSE_WRITE: _write,
    FuseOpcode.FUSE_STATFS: _empty,
    FuseOpcode.FUSE_RELEASE: _release,
    FuseOpcode.FUSE_FSYNC: _fsync,
    FuseOpcode.FUSE_SETXATTR: _setxattr,
    FuseOpcode.FUSE_GETXATTR: _getxattr,
    FuseOpcode.FUSE_LISTXATTR: _listxattr,
    FuseOpcode.FUSE_REMOVEXATTR: _named,
    FuseOpcode.FUSE_FLUSH: _flush,
    FuseOpcode.FUSE_INIT: _init,
    FuseOpcode.FUSE_OPENDIR: _open,
    FuseOpcode.FUSE_READDIR: _read,
    FuseOpcode.FUSE_RELEASEDIR: _release,
    FuseOpcode.FUSE_FSYNCDIR: _fsync,
    FuseOpcode.FUSE_GETLK: _lock,
    FuseOpcode.FUSE_SETLK: _lock,
    FuseOpcode.FUSE_SETLKW: _lock,
    FuseOpcode.FUSE_ACCESS: _access,
    FuseOpcode.FUSE_CREATE: _create,
    FuseOpcode.FUSE_INTERRUPT: _interrupt,
    FuseOpcode.FUSE_DESTROY: _empty,
    FuseOpcode.FUSE_IOCTL: _ioctl,
    FuseOpcode.FUSE_BATCH_FORGET: _empty,
    FuseOpcode.FUSE_FALLOCATE: _fallocate,
    FuseOpcode.FUSE_READDIRPLUS: _read,
    FuseOpcode.FUSE_RENAME2: _rename2,
    FuseOpcode.FUSE_LSEEK: _lseek,
    FuseOpcode.FUSE_COPY_FILE_RANGE: _copy_file_range,
    FuseOpcode.FUSE_SYNCFS: _empty,
    FuseOpcode.FUSE_TMPFILE: _create,
    FuseOpcode.FUSE_STATX: _empty,
    FuseOpcode.FUSE_COPY_FILE_RANGE_64: _copy_file_range,
}


# --- answers --------------------------------------------------------------------------------------


class Timeout(NamedTuple):
    """How long the kernel may use what it was told, as the protocol writes it."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, seconds: float) -> Timeout:
        return cls(*divmod(round(seconds * NS_PER_S), NS_PER_S))


def encode_reply_header(unique: int, error: int, payload_bytes: int) -> bytes:
    """struct fuse_out_header. error  0 or a positive errno."""
    return abi.fuse_out_header.pack(abi.fuse_out_header.size + payload_bytes, -error, unique)


def encode_reply(unique: int, payload: bytes) -> bytes:
    """struct fuse_out_header of a success, and the payload."""
    return _pack_out_header(_OUT_HEADER_BYTES + len(payload), 0, unique) + payload


_OUT_HEADER_BYTES = abi.fuse_out_header.size
_pack_out_header = abi.fuse_out_header.pack


def encode_entry(nodeid: int, attr: Attr, timeout: Timeout) -> bytes:
    """struct fuse_entry_out: a name that exists."""
    return _entry(nodeid, attr, timeout)


def encode_negative_entry(timeout: Timeout) -> bytes:
    """struct fuse_entry_out: the name does not exist, which the kernel may remember."""
    return abi.fuse_entry_out.pack(
        0, 0, timeout.seconds, 0, timeout.nanoseconds, 0, *(0 for _ in range(16))
    )


def encode_attr(attr: Attr, timeout: Timeout) -> bytes:
    """struct fuse_attr_out"""
    return abi.fuse_attr_out.pack(timeout.seconds, timeout.nanoseconds, 0, *_attr_fields(attr))


def encode_statx(attr: Attr, timeout: Timeout) -> bytes:
    """struct fuse_statx_out: what fuse_attr has, and the time of birth."""
    times = (
        divmod(time, NS_PER_S)
        for time in (attr.atime_ns, attr.btime_ns, attr.ctime_ns, attr.mtime_ns)
    )
    return abi.fuse_statx_out.pack(
        timeout.seconds,
        timeout.nanoseconds,
        0,
        abi.STATX_BASIC_STATS | abi.STATX_BTIME,
        BLOCK_SIZE,
        0,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.mode,
        attr.ino,
        attr.size,
        (attr.allocated + 511) >> 9,
        0,
        *(part for time in times for part in time),
        (attr.rdev >> 8) & 0xFFF,
        (attr.rdev & 0xFF) | ((attr.rdev >> 12) & 0xFFF00),
        0,
        0,
    )


def encode_open(fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """struct fuse_open_out"""
    return abi.fuse_open_out.pack(fh, open_flags, backing_id)


def encode_write(size: int) -> bytes:
    """struct fuse_write_out"""
    return abi.fuse_write_out.pack(size, 0)


def encode_copied_64(size: int) -> bytes:
    """struct fuse_copy_file_range_out"""
    return abi.fuse_copy_file_range_out.pack(size)


def encode_lseek(offset: int) -> bytes:
    """struct fuse_lseek_out"""
    return abi.fuse_lseek_out.pack(offset)


def encode_xattr(value: bytes, size: int) -> bytes:
    """The answer to getxattr(2) and listxattr(2) for a buffer of ``size`` bytes: struct
    fuse_getxattr_out when that asks for the length alone. ERANGE: it is too small."""
    if size == 0:
        return abi.fuse_getxattr_out.pack(len(value), 0)
    if len(value) > size:
        raise FileError(errno.ERANGE)
    return value


def encode_lock(kind: int, start: int, end: int, pid: int) -> bytes:
    """struct fuse_lk_out"""
    return abi.fuse_lk_out.pack(start, end, kind, pid)


def encode_statfs(statfs: Statfs, name_max: int) -> bytes:
    """struct fuse_statfs_out. Nothing is reserved for root: available equals free."""
    blocks = statfs.total_bytes // STATFS_BLOCK_SIZE
    free = statfs.free_bytes // STATFS_BLOCK_SIZE
    files = statfs.files + INODES_FREE
    return abi.fuse_statfs_out.pack(
        blocks, free, free, files, INODES_FREE, STATFS_BLOCK_SIZE, name_max, STATFS_BLOCK_SIZE, 0
    )


# Offsets 1 and 2 are "." and "..", so the cookies of the entries move up by two.
DOT_OFFSET = 1
DOT_DOT_OFFSET = 2
COOKIE_SHIFT = 2
UNKNOWN_INO = 0xFFFF_FFFF  # what libfuse says too where it does not know
# The space of an entry with the shortest name, for guessing how many fit.
DIRENT_MIN_BYTES = 32
DIRENTPLUS_MIN_BYTES = 160


def encode_dots(ino: int, plus: bool) -> list[bytes]:
    """ "." and ".." of directory ``ino``. In READDIRPLUS without attributes: node id 0 says so.

    The number of ".." is not worth a question to the cluster: programs that want it ask stat(2),
    which the kernel answers from its own tree.
    """
    prefix = bytes(abi.fuse_entry_out.size) if plus else b""
    parent_ino = abi.FUSE_ROOT_ID if ino == abi.FUSE_ROOT_ID else UNKNOWN_INO
    return [
        prefix + _dirent(ino, DOT_OFFSET, stat.S_IFDIR, b"."),
        prefix + _dirent(parent_ino, DOT_DOT_OFFSET, stat.S_IFDIR, b".."),
    ]


def encode_dirents(entries: Iterable[DirEntry], space: int) -> bytes:
    """As many struct fuse_dirent as fit into ``space`` bytes; the kernel asks for the rest."""
    return _fill(
        (_dirent(e.attr.ino, e.cookie + COOKIE_SHIFT, e.attr.mode, e.name) for e in entries), space
    )


def encode_direntsplus(
    entries: Iterable[DirEntry],
    nodeid_of: Callable[[Ino], int],
    timeouts: Iterable[Timeout],
    space: int,
) -> bytes:
    """As many struct fuse_direntplus as fit into ``space`` bytes; the kernel asks for the rest.

    timeouts  one for each entry.
    """
    return _fill(
        (
            _entry(nodeid_of(e.attr.ino), e.attr, timeout)
            + _dirent(e.attr.ino, e.cookie + COOKIE_SHIFT, e.attr.mode, e.name)
            for e, timeout in zip(entries, timeouts, strict=True)
        ),
        space,
    )


def _fill(records: Iterable[bytes], space: int) -> bytes:
    taken = []
    for record in records:
        space -= len(record)
        if space < 0:
            break
        taken.append(record)
    return b"".join(taken)


def _dirent(ino: int, offset: int, mode: int, name: bytes) -> bytes:
    # The type field is the DT_* of readdir(3): the file type bits moved down.
    header = abi.fuse_dirent.pack(ino, offset, len(name), (mode >> 12) & 0xF)
    return header + name + bytes(-len(name) % 8)


def _entry(nodeid: int, attr: Attr, timeout: Timeout) -> bytes:
    seconds, nanoseconds = timeout
    return abi.fuse_entry_out.pack(
        nodeid, 0, seconds, seconds, nanoseconds, nanoseconds, *_attr_fields(attr)
    )


def _attr_fields(attr: Attr) -> tuple[int, ...]:
    (ino, mode, nlink, uid, gid, rdev, size, allocated, atime, mtime, ctime, _, _, _) = attr
    atime_s, atime_ns = divmod(atime, NS_PER_S)
    mtime_s, mtime_ns = divmod(mtime, NS_PER_S)
    ctime_s, ctime_ns = divmod(ctime, NS_PER_S)
    return (
        ino, size, (allocated + 511) >> 9, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns,
        mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
    )  # fmt: skip


# --- notifications: unsolicited messages; unique 0, the code in place of the error ---------------


def encode_inval_inode(ino: int, pages: bool) -> bytes:
    """Drop the attributes of ``ino``, with ``pages`` also its cached content or listing.

    Without ``pages`` it never blocks; with, it waits for a READ or WRITE of this file in flight.
    """
    payload = abi.fuse_notify_inval_inode_out.pack(ino, 0 if pages else -1, 0)
    return _notification(FuseNotify.FUSE_NOTIFY_INVAL_INODE, payload)


def encode_inval_entry(parent: int, name: bytes) -> bytes:
    """Drop what is known of one name, present or absent; waits for operations in ``parent``."""
    payload = abi.fuse_notify_inval_entry_out.pack(parent, len(name), 0) + name + b"\0"
    return _notification(FuseNotify.FUSE_NOTIFY_INVAL_ENTRY, payload)


def encode_inc_epoch() -> bytes:
    """Every name and every listing is stale from now on; never blocks; from 7.44 on."""
    return _notification(FuseNotify.FUSE_NOTIFY_INC_EPOCH, b"")


def encode_resend() -> bytes:
    """Every request that was read and not answered comes again, its number marked; from 7.40 on."""
    return _notification(FuseNotify.FUSE_NOTIFY_RESEND, b"")


def _notification(code: FuseNotify, payload: bytes) -> bytes:
    return abi.fuse_out_header.pack(abi.fuse_out_header.size + len(payload), code, 0) + payload
