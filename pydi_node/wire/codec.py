"""msgpack with its strict settings, in one place.

Strict: text and bytes stay apart, text is valid UTF-8, no extension types, no bytes after the
value, every length bounded by the buffer, nesting bounded by msgpack's own stack (1024). Whatever
is not like this raises ValueError.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships neither stubs nor py.typed

from pydi_node import packing


def pack(value: Any) -> bytes:
    """``value`` in msgpack's shortest form; ValueError when it holds what can't travel.

    Tuples, and so all records, become arrays.
    """
    try:
        return packing.pack(value)
    except (TypeError, OverflowError) as exc:
        raise ValueError(str(exc)) from exc


def unpack_header(data: bytes | memoryview) -> Any:
    """The value in a frame's header; arrays come as tuples and maps are refused.

    Why tuples and no maps: 4 MiB of 1-byte empty arrays are one shared tuple, 4 MiB of 1-byte empty
    maps would be 256 MiB of memory.
    """
    return msgpack.unpackb(
        data,
        raw=False,
        use_list=False,
        max_map_len=0,
        object_hook=_refuse_map,
        max_ext_len=0,
        ext_hook=_refuse_extension,
    )


def unpack_plain(data: bytes) -> Any:
    """A value in which maps with text keys are welcome (admin answers); arrays come as lists."""
    return msgpack.unpackb(
        data,
        raw=False,
        use_list=True,
        strict_map_key=True,
        max_ext_len=0,
        ext_hook=_refuse_extension,
    )


def _refuse_map(_value: dict[Any, Any]) -> Any:
    raise ValueError("a map in a header")


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code}")
