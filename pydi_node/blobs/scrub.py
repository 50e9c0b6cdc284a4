"""When to re-read which blob: the plan of the scrub, pure, and how its progress is kept.

A *pass* reads every blob that the tree expects on this node, in the order of their names, and
hashes it. Passes begin a period apart. One is spread over most of the period, so that a disk hardly
notices it; it catches up when the node was off, and does not wait at all when somebody asked for it
(``hurry``). How fast it may read at most is the caller's to keep.

    idle ── due, or asked for ──► running ── past the last name ──► idle
                                    │  ▲
                                    └──┘ asked for: from the start again

Called by runtime/scrubbing.py, which reads clocks and files.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydi_node.ids import BLOB_ID_MAX, INT64_MAX, BlobId

# A pass leaves this part of the period as slack, for nodes that are off for a while.
SPREAD_PERCENT = 80
# What a small file costs beside its bytes: a seek and an open, as long as reading this much.
FILE_COST_BYTES = 64 << 10

_NS = 1_000_000_000


class Amount(NamedTuple):
    """Of blobs: read, or to be read."""

    blobs: int
    bytes: int

    @property
    def cost(self) -> int:
        return self.bytes + self.blobs * FILE_COST_BYTES


class Pass(NamedTuple):
    """One reading of everything; times are ns since 1970."""

    started_ns: int
    hurry: bool  # asked for: without waiting
    after: BlobId  # the last blob that was read; 0 before the first
    done: Amount
    found: int  # damaged or missing copies
    finished_ns: int  # 0 while it runs


class Progress(NamedTuple):
    """What is kept over restarts."""

    current: Pass | None  # running
    last: Pass | None  # finished


NOTHING = Progress(None, None)


def is_due(progress: Progress, now_ns: int, period_s: int) -> bool:
    """Whether a pass should begin now by itself."""
    if progress.current is not None:
        return False
    last = progress.last
    # A clock that was set back must not put the next pass off for ever.
    return last is None or not 0 <= now_ns - last.started_ns < period_s * _NS


def begin(progress: Progress, now_ns: int, hurry: bool) -> Progress:
    """A pass from the start, also when one is running."""
    return progress._replace(current=Pass(now_ns, hurry, BlobId(0), Amount(0, 0), 0, 0))


def advance(progress: Progress, blob: BlobId, size: int, sound: bool) -> Progress:
    """One blob more was read."""
    assert progress.current is not None
    current = progress.current
    done = Amount(current.done.blobs + 1, current.done.bytes + size)
    return progress._replace(
        current=current._replace(after=blob, done=done, found=current.found + (not sound))
    )


def finish(progress: Progress, now_ns: int) -> Progress:
    """Everything was read."""
    assert progress.current is not None
    return Progress(None, progress.current._replace(finished_ns=now_ns))


def wait_s(current: Pass, total: Amount, now_ns: int, period_s: int) -> float:
    """How long the next blob can wait, so that the pass ends in time but not sooner than it must.

    total  of everything that the pass reads, as of now.
    """
    if current.hurry or total.cost <= 0:
        return 0.0
    share = min(1.0, current.done.cost / total.cost)
    due_s = share * period_s * SPREAD_PERCENT / 100
    return max(0.0, due_s - (now_ns - current.started_ns) / _NS)


def dump(progress: Progress) -> bytes:
    """For the file."""
    return json.dumps({"version": 1, "current": progress.current, "last": progress.last}).encode()


def load(data: bytes | None) -> Progress:
    """What ``dump`` wrote; nothing at all when it is missing or damaged: then a pass is due."""
    try:
        record = json.loads(data or b"null")
        if record["version"] != 1:
            return NOTHING
        return Progress(_pass(record["current"]), _pass(record["last"]))
    except (ValueError, TypeError, KeyError):
        return NOTHING


def _pass(value: Any) -> Pass | None:
    if value is None:
        return None
    started_ns, hurry, after, done, found, finished_ns = value
    numbers = [started_ns, after, *done, found, finished_ns]
    if type(hurry) is not bool or len(done) != 2 or after > BLOB_ID_MAX:
        raise ValueError("not a pass")
    if any(type(number) is not int or not 0 <= number <= INT64_MAX for number in numbers):
        raise ValueError("not a pass")
    return Pass(started_ns, hurry, BlobId(after), Amount(*done), found, finished_ns)
