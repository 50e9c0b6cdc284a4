"""Checks of single fields that came from a peer: value in, checked value out.

Used by messages.py and session.py to build their tables. Every check raises ValueError with a short
reason and never shows the peer's value: it may be megabytes, or nested so deep that printing it
overflows the stack. ``type(x) is int`` and not isinstance, because True is an int.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydi_node.commands import NAME_WIRE_MAX_BYTES
from pydi_node.ids import INT64_MAX, NODE_NUMBER_MAX
from pydi_node.wire import codec

Check = Callable[[Any], Any]

PATH_WIRE_MAX_BYTES = 1 << 16  # 16 x PATH_MAX: deeper trees exist, longer paths are an attack
PLAIN_MAX_BYTES = 1 << 20  # `pydi status` of the largest cluster is some 100 KiB
PLAIN_DEPTH_MAX = 16  # status nests 4 deep


def integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"not an integer {low} .. {high}")
        return value

    return check


def optional(inner: Check) -> Check:
    def check(value: Any) -> Any:
        return None if value is None else inner(value)

    return check


def array(inner: Check, length_max: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) not in (list, tuple) or len(value) > length_max:
            raise ValueError(f"not an array of at most {length_max}")
        return tuple([inner(item) for item in value])

    return check


def pair(first: Check, second: Check) -> Check:
    def check(value: Any) -> tuple[Any, Any]:
        if type(value) not in (list, tuple) or len(value) != 2:
            raise ValueError("not a pair")
        return first(value[0]), second(value[1])

    return check


def data(length_max: int, length_min: int = 0) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or not length_min <= len(value) <= length_max:
            raise ValueError(f"not {length_min} .. {length_max} bytes")
        return value

    return check


def data_without_nul(length_max: int, length_min: int = 0) -> Check:
    inner = data(length_max, length_min)

    def check(value: Any) -> bytes:
        checked: bytes = inner(value)
        if b"\0" in checked:
            raise ValueError("contains NUL")
        return checked

    return check


def text(length_max: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or len(value) > length_max:
            raise ValueError(f"not a text of at most {length_max}")
        return value

    return check


def one_of(*allowed: int | str) -> Check:
    # A dict of the values' own types: 1, True and 1.0 are equal, and only one of them is meant.
    known = {(type(value), value) for value in allowed}

    def check(value: Any) -> Any:
        if type(value) not in (int, str) or (type(value), value) not in known:
            raise ValueError(f"not one of {', '.join(str(item) for item in allowed)}")
        return value

    return check


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not a boolean")
    return value


def nothing(value: Any) -> None:
    if value is not None:
        raise ValueError("not nil")


def name(value: Any) -> bytes:
    """The name of a directory entry, with the same rule as a command's (commands.py)."""
    if type(value) is not bytes or len(value) > NAME_WIRE_MAX_BYTES:
        raise ValueError("not a name")
    if b"/" in value or b"\0" in value:
        raise ValueError("a name contains neither '/' nor NUL")
    if value in (b"", b".", b".."):
        raise ValueError("not the name of an entry")
    return value


def pack_plain(value: Any) -> bytes:
    """A plain value (None, bool, int, float, str, bytes, list, dict with str keys) as bytes.

    The only maps on the wire travel like this, nested in one byte string with a bound of its own:
    an empty map costs 1 byte on the wire and 64 in memory, so a header must not be full of them.
    ValueError for anything else, too long or too deep.
    """
    _check_plain(value, PLAIN_DEPTH_MAX)
    packed = codec.pack(value)
    if len(packed) > PLAIN_MAX_BYTES:
        raise ValueError(f"plain value of more than {PLAIN_MAX_BYTES} bytes")
    return packed


def plain(value: Any) -> Any:
    """What ``pack_plain`` packed; arrays come back as lists."""
    if type(value) is not bytes or len(value) > PLAIN_MAX_BYTES:
        raise ValueError(f"not a packed value of at most {PLAIN_MAX_BYTES} bytes")
    unpacked = codec.unpack_plain(value)
    _check_plain(unpacked, PLAIN_DEPTH_MAX)
    return unpacked


def _check_plain(value: Any, depth_left: int) -> None:
    if value is None or type(value) in (bool, int, float, str, bytes):
        return
    if depth_left == 0:
        raise ValueError(f"nested deeper than {PLAIN_DEPTH_MAX}")
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError("a key that is not a text")
            _check_plain(item, depth_left - 1)
    elif type(value) in (list, tuple):
        for item in value:
            _check_plain(item, depth_left - 1)
    else:
        raise ValueError("not a plain value")


def plain_map(value: Any) -> dict[str, Any]:
    unpacked = plain(value)
    if type(unpacked) is not dict:
        raise ValueError("not a map of plain values")
    return unpacked


INO = integer(1, INT64_MAX)
SIZE = integer(0, INT64_MAX)
NODE = integer(1, NODE_NUMBER_MAX)
