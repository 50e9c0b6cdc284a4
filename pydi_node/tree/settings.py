"""The cluster's settings: every known name with its default, range and meaning, in one table.

Applying SetSetting checks against it, ``Tree.settings`` fills in its defaults, and the command line
prints it. Values are integers: the unit is the end of the name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pydi_node.commands import INLINE_WIRE_MAX_BYTES

_DAY_S = 24 * 3600


class Setting(NamedTuple):
    """One known setting."""

    default: int
    low: int
    high: int
    meaning: str  # one line for ``pydi set``


SETTINGS: Final[dict[str, Setting]] = {
    "grace_s": Setting(
        900, 10, 30 * _DAY_S, "a node away for longer counts as lost; its blobs are copied again"
    ),
    "inline_max_bytes": Setting(
        32768, 0, INLINE_WIRE_MAX_BYTES, "content up to this is kept in the tree, on every node"
    ),
    "inline_tree_bytes": Setting(
        512 << 20, 0, 1 << 50, "content above 4 KiB only while the tree's file is smaller than this"
    ),
    "repair_bytes_per_s": Setting(64 << 20, 1 << 20, 1 << 40, "how fast repair may copy, per node"),
    "replicas": Setting(2, 1, 8, "copies of every blob"),
    "reserve_max_bytes": Setting(
        512 << 20, 0, 1 << 50, "what stays free of each disk is never more than this"
    ),
    "reserve_percent": Setting(5, 0, 50, "part of each disk that stays free"),
    "retention_s": Setting(7 * _DAY_S, 0, 3650 * _DAY_S, "how long replaced versions are kept"),
    "scrub_bytes_per_s": Setting(
        32 << 20, 1 << 16, 1 << 40, "how fast a scrub may read at most, per node"
    ),
    "scrub_period_s": Setting(14 * _DAY_S, 3600, 365 * _DAY_S, "every blob is re-read within it"),
    "session_idle_s": Setting(
        _DAY_S, 3600, 365 * _DAY_S, "a client silent for longer loses its exactly-once memory"
    ),
}

# "draining": gets no new blobs, and gives its own away. "forgotten": never comes back.
NODE_STATES: Final = frozenset({"up", "draining", "forgotten"})


def parse_setting(name: str, value: str) -> int | None:
    """The value as its setting's integer; None for an unknown name or a value out of range."""
    setting = SETTINGS.get(name)
    # int() would also take " 1", "1_0" and other scripts' digits, and twenty digits do not fit.
    if setting is None or not (value.isascii() and value.isdigit() and len(value) <= 18):
        return None
    number = int(value)
    return number if setting.low <= number <= setting.high else None
