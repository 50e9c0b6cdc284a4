"""A command as the log keeps it: the envelope's bytes and back. Pure."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # it has none

from pydi_node.commands import CommandError, Envelope, decode_envelope, encode_envelope
from pydi_node.errors import CorruptionError


def pack_envelope(envelope: Envelope) -> bytes:
    """A command as the log keeps it."""
    packed: bytes = msgpack.packb(encode_envelope(envelope), use_bin_type=True)
    return packed


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
