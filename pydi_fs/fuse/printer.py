"""One readable line per request, answer and invalidation, for ``pydi-mount -o debug``. Pure.

-> #42 LOOKUP ino=1 uid=0 pid=77 name=b'notes.txt'
<- #42 LOOKUP ino=5 mode=100644 size=12
<- #44 LOOKUP ENOENT
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from pydi_fs.fuse import abi
from pydi_fs.fuse.abi import FuseOpcode
from pydi_fs.fuse.codec import Header
from pydi_node.ids import Ino

# File content and names beyond this are cut; their length is always told.
BYTES_SHOWN = 48


def describe_request(header: Header, body: Any) -> str:
    """The line for a decoded request."""
    fields = " ".join(
        f"{name}={_value(value)}" for name, value in zip(body._fields, body, strict=True)
    )
    return (
        f"-> #{header.unique} {_name(header.opcode)} ino={header.nodeid} uid={header.uid}"
        f" pid={header.pid} {fields}"
    ).rstrip()


def describe_reply(header: Header, error: int, payload: bytes) -> str:
    """The line for an answer. error  0 or a positive errno."""
    start = f"<- #{header.unique} {_name(header.opcode)}"
    if error:
        return f"{start} {errno.errorcode.get(error, error)}"
    describe = _REPLIES.get(header.opcode)
    if describe is not None:
        return f"{start} {describe(payload)}"
    return f"{start} {len(payload)} bytes" if payload else f"{start} ok"


def describe_invalidation(
    inos: tuple[Ino, ...], entries: tuple[tuple[Ino, bytes], ...], everything: bool
) -> str:
    """The line for what the kernel is told to forget."""
    names = " ".join(f"{parent}/{_value(name)}" for parent, name in entries)
    what = "everything" if everything else f"inos={list(inos)} names=[{names}]"
    return f"!! invalidate {what}"


def _name(opcode: int) -> str:
    try:
        return FuseOpcode(opcode).name.removeprefix("FUSE_")
    except ValueError:
        return f"opcode-{opcode}"


def _value(value: object) -> str:
    if isinstance(value, bytes) and len(value) > BYTES_SHOWN:
        return f"{value[:BYTES_SHOWN]!r}…({len(value)} bytes)"
    return repr(value)


def _entry(payload: bytes) -> str:
    nodeid, _, _, _, _, _, _, size, *rest = abi.fuse_entry_out.unpack_from(payload)
    return f"ino={nodeid} mode={rest[7]:o} size={size}" if nodeid else "absent"


def _attr(payload: bytes) -> str:
    _, _, _, ino, size, *rest = abi.fuse_attr_out.unpack_from(payload)
    return f"ino={ino} mode={rest[7]:o} size={size}"


def _open(payload: bytes) -> str:
    fh, open_flags, _ = abi.fuse_open_out.unpack_from(payload)
    return f"fh={fh} open_flags={open_flags:#x}"


def _create(payload: bytes) -> str:
    return f"{_entry(payload)} {_open(payload[abi.fuse_entry_out.size :])}"


def _written(payload: bytes) -> str:
    return f"size={abi.fuse_write_out.unpack_from(payload)[0]}"


def _copied(payload: bytes) -> str:
    return f"size={abi.fuse_copy_file_range_out.unpack_from(payload)[0]}"


def _init(payload: bytes) -> str:
    major, minor, max_readahead, flags, *_ = abi.fuse_init_out.unpack_from(payload)
    return f"{major}.{minor} max_readahead={max_readahead} flags={flags:#x}"


_REPLIES: dict[int, Callable[[bytes], str]] = {
    FuseOpcode.FUSE_INIT: _init,
    FuseOpcode.FUSE_LOOKUP: _entry,
    FuseOpcode.FUSE_MKDIR: _entry,
    FuseOpcode.FUSE_MKNOD: _entry,
    FuseOpcode.FUSE_SYMLINK: _entry,
    FuseOpcode.FUSE_LINK: _entry,
    FuseOpcode.FUSE_GETATTR: _attr,
    FuseOpcode.FUSE_SETATTR: _attr,
    FuseOpcode.FUSE_OPEN: _open,
    FuseOpcode.FUSE_OPENDIR: _open,
    FuseOpcode.FUSE_CREATE: _create,
    FuseOpcode.FUSE_TMPFILE: _create,
    FuseOpcode.FUSE_WRITE: _written,
    FuseOpcode.FUSE_COPY_FILE_RANGE: _written,
    FuseOpcode.FUSE_COPY_FILE_RANGE_64: _copied,
}
