"""What a person may call a moment of the past: a log index, a time, or how long ago. Pure.

For ``pydi log``, ``restore`` and the names under ``.pydi/at/``.
"""

from __future__ import annotations

import re
from datetime import datetime

from pydi_node.ids import INT64_MAX, LogIndex, TimeNs

NS_PER_S = 1_000_000_000

_AGO = re.compile(r"(\d{1,9})\s*([a-z]+?)s?(?:\s+ago)?", re.IGNORECASE)
_UNIT_S = {
    "": 1, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600,
    "hour": 3600, "d": 86400, "day": 86400, "w": 7 * 86400, "week": 7 * 86400,
}  # fmt: skip


def parse_moment(text: str, now_ns: int) -> LogIndex | tuple[TimeNs] | None:
    """A log index as it is, or (time,): ISO 8601, local time unless it says another zone, or how
    long ago ("2h ago", "3 days"). None for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit() and int(text) <= INT64_MAX:
        return LogIndex(int(text))
    ago = _AGO.fullmatch(text)
    if ago is not None and ago[2].lower() in _UNIT_S:
        return (TimeNs(max(0, now_ns - int(ago[1]) * _UNIT_S[ago[2].lower()] * NS_PER_S)),)
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    if not 0 <= seconds < INT64_MAX // NS_PER_S:
        return None
    # In whole microseconds: a float of nanoseconds would round to somewhere else.
    return (TimeNs(round(seconds * 1_000_000) * 1000),)
