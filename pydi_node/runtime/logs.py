"""Log lines of a node: to stderr, one per state change, with the same fields in front.

    2026-03-01T12:00:00.123Z info node=3 term=7 index=120 leader is node 1

Set up once by ``run_node``; the driver keeps ``context`` up to date.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass


@dataclass(slots=True)
class LogContext:
    """Where this node stands; printed in front of each line."""

    node: int = 0  # 0: no number yet
    term: int = 0
    index: int = 0  # applied


class LogFormatter(logging.Formatter):
    """Time in UTC with milliseconds, level, the fixed fields, message."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = record.getMessage()
        # Rooms that know their node but neither term nor index begin with it themselves.
        if message.startswith("node="):
            _, _, message = message.partition(" ")
        context = self._context
        line = (
            f"{stamp}.{int(record.msecs):03d}Z {record.levelname.lower()} node={context.node}"
            f" term={context.term} index={context.index} {message}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logging(level: str, context: LogContext) -> None:
    """All of PyDi's lines go to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(context))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pydi_node").setLevel(level.upper())
