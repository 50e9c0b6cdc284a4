"""A command as the log keeps it: the envelope's bytes and back, and how many. Pure."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # it has none

from pydi_node import packing
from pydi_node.commands import (
    NAME_WIRE_MAX_BYTES,
    Command,
    CommandError,
    Create,
    Envelope,
    Link,
    Mkdir,
    Mknod,
    Rename,
    Rmdir,
    SetAttr,
    Tmpfile,
    Unlink,
    decode_envelope,
    encode,
    encode_envelope,
)
from pydi_node.errors import CorruptionError

# Commands in which nothing has a length but at most two names, and the caller's groups.
_SHORT = (Mkdir, Create, Mknod, Tmpfile, Link, Unlink, Rmdir, Rename, SetAttr)
SHORT_MAX_BYTES = 2 * NAME_WIRE_MAX_BYTES + 256


def length_max(command: Command) -> int:
    """At least as many bytes as the command takes, packed. Most need not be packed to learn that:
    it would take longer than all else that is done to forward one."""
    if isinstance(command, _SHORT) and command.caller.groups is None:
        return SHORT_MAX_BYTES
    return len(packing.pack(encode(command)))


def pack_envelope(envelope: Envelope) -> bytes:
    """A command as the log keeps it."""
    return packing.pack(encode_envelope(envelope))


def unpack_envelope(data: bytes) -> Envelope:
    """The command in a log entry. CorruptionError: no node ever wrote this."""
    try:
        return decode_envelope(
            msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=True)
        )
    except (CommandError, ValueError, msgpack.UnpackException) as exc:
        raise CorruptionError(
            f"a log entry is not a command that this version of PyDi knows ({exc}): update PyDi on"
            " this machine"
        ) from exc
