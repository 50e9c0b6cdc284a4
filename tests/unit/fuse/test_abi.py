"""The constants and layouts against the kernel header of this machine, where it is installed."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct

import pytest

from pydi_fs.fuse import abi

HEADER = Path("/usr/include/linux/fuse.h")
TYPE_BYTES = {"uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2}
# Not the whole struct: the variable or version-dependent rest is read apart.
IN_PARTS = {"fuse_init_in": 64 - 48}
# Only its first 8 bytes exist unless FUSE_SETXATTR_EXT is asked for.
SHORTER = {"fuse_setxattr_in": 8}


@pytest.fixture(scope="module")
def header() -> str:
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is not installed")
    text = HEADER.read_text()
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_values_are_the_kernels(header: str) -> None:
    """Every opcode, flag and notification that the installed header knows has its value there."""
    known = {
        name: int(shift)
        for name, shift in re.findall(r"#define\s+(\w+)\s+\(1(?:ULL)?\s*<<\s*(\d+)\)", header)
    }
    enums = {name: int(value) for name, value in re.findall(r"(FUSE_\w+)\s*=\s*(\d+)", header)}
    ours = {
        **{m.name: m.value for m in abi.FuseOpcode},
        **{m.name: m.value for m in abi.FuseNotify},
    }
    compared = 0
    for name, value in ours.items():
        if name in enums:
            assert value == enums[name], name
            compared += 1
    flags = {m.name: m.value for m in abi.InitFlag} | {
        name: value
        for name, value in vars(abi).items()
        if name.startswith(("FATTR_", "FOPEN_", "FUSE_")) and isinstance(value, int)
    }
    for name, value in flags.items():
        if name in known:
            assert value == 1 << known[name], name
            compared += 1
    assert compared > 90


def test_layouts_have_the_kernels_sizes(header: str) -> None:
    """Every struct that the installed header knows has the size that its fields add up to."""
    sizes = dict(TYPE_BYTES)
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", header, flags=re.DOTALL):
        total = 0
        for kind, count in re.findall(r"(?:struct )?(\w+)\s+\w+(?:\[(\d+)\])?;", body):
            total += sizes.get(kind, 0) * int(count or 1)
        sizes[name] = total
    compared = 0
    for name, layout in vars(abi).items():
        if isinstance(layout, Struct) and name in sizes and not name.startswith("_"):
            expected = IN_PARTS.get(name) or SHORTER.get(name) or sizes[name]
            assert layout.size == expected, name
            compared += 1
    assert compared > 30
