"""What is said of a command's size without packing it."""

from __future__ import annotations

import dataclasses

import pytest

from pydi_node import packing
from pydi_node.commands import NAME_WIRE_MAX_BYTES, Command, encode
from pydi_node.envelopes import length_max
from pydi_node.ids import INT64_MAX, Ino
from tests.unit.wire.samples import COMMANDS

LONGEST = b"n" * NAME_WIRE_MAX_BYTES


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: type(command).__name__)
def test_no_command_is_longer_than_is_said(command: Command) -> None:
    """With the longest names that come through the network and the highest numbers."""
    fields = {field.name for field in dataclasses.fields(command)}
    names = {name: LONGEST for name in ("name", "new_name") if name in fields}
    inodes = {name: Ino(INT64_MAX) for name in ("parent", "new_parent", "ino") if name in fields}
    if isinstance(getattr(command, "name", b""), bytes):  # a setting's is a text
        command = dataclasses.replace(command, **names, **inodes)  # type: ignore[arg-type]
    assert length_max(command) >= len(packing.pack(encode(command)))
    caller = getattr(command, "caller", None)
    if caller is not None:
        groups = tuple(range(1 << 31, (1 << 31) + 5000))
        command = dataclasses.replace(command, caller=caller._replace(groups=groups))  # type: ignore[call-arg]
        assert length_max(command) >= len(packing.pack(encode(command))) > 25_000


def test_a_packer_goes_on_after_what_it_can_not_pack() -> None:
    """And after a value so large that its buffer is not kept; nothing of either is left behind."""
    with pytest.raises(TypeError):
        packing.pack((1, b"begun", object()))
    assert packing.pack(b"n" * (packing.KEPT_MAX_BYTES + 1)).endswith(b"n")
    assert packing.pack((1, b"a", "b")) == b"\x93\x01\xc4\x01a\xa1b"
