"""Exactly-once: the last results of every client, kept in the tree like everything else.

A client numbers its commands; a repeated (client, serial), sent because an answer was lost in a
failover, finds its first Result here. The last SESSION_WINDOW serials of each client are kept, so a
client never has more than that many commands under way, measured from the oldest unanswered one.
Serials may arrive in any order within the window.

A session expires only by ExpireSessions, which is safe when no client retries for that long.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it has none

from pydi_node import commands, packing
from pydi_node.commands import COMMAND_CODES, Batch, Envelope
from pydi_node.ids import ClientId, Serial, TimeNs
from pydi_node.records import Attr, BlobInfo, Result, Touched
from pydi_node.tree import batches

# Far above what one client has under way at a time (tens), and still only ~150 KB per client.
SESSION_WINDOW: Final = 1024

# Sessions whose highest serial is remembered between batches: one select less per command.
_SESSIONS_CACHED_MAX: Final = 4096


class Sessions:
    """The session tables, written back like the rest of ``Store``: ``flush`` ends a batch."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.forget()

    def forget(self) -> None:
        """Everything cached is dropped: after a rollback, and at the start."""
        self._highest: dict[int, int] = {}  # client -> highest serial applied
        self._used: dict[int, TimeNs] = {}  # client -> latest time, not yet written
        self._results: dict[tuple[int, int], tuple[int, Result]] = {}  # not yet written

    def is_new(self, client: ClientId, serial: Serial) -> bool:
        """Whether this command was surely never applied; else ask ``result`` and ``is_too_old``."""
        return serial > self._highest_of(client)

    def is_too_old(self, client: ClientId, serial: Serial) -> bool:
        """Whether the window went past this serial: nobody knows any more if it was applied."""
        return serial <= self._highest_of(client) - SESSION_WINDOW

    def result(self, client: ClientId, serial: Serial) -> Result | None:
        """The first Result of this command; None when it was not applied or is forgotten."""
        pending = self._results.get((client, serial))
        if pending is not None:
            return pending[1].kept
        row = self._connection.execute(
            "SELECT code, result FROM session_result WHERE client = ? AND slot = ? AND serial = ?",
            (client, serial % SESSION_WINDOW, serial),
        ).fetchone()
        return None if row is None else unpack_result(row[0], row[1])

    def remember(self, envelope: Envelope, result: Result) -> None:
        """The command of ``envelope`` was applied for the first time."""
        client = envelope.client
        serial = envelope.serial
        if serial > self._highest_of(client):
            self._highest[client] = serial
        self._used[client] = max(envelope.time_ns, self._used.get(client, envelope.time_ns))
        if isinstance(envelope.command, Batch) and not result.errno:
            result = Result(0, batches.kept(result.value))
        self._results[client, serial] = (COMMAND_CODES[type(envelope.command)], result)

    def flush(self) -> None:
        """Everything remembered is in SQLite."""
        if not self._results:
            return
        self._connection.executemany(
            "INSERT INTO session (client, serial, used_ns) VALUES (?, ?, ?) ON CONFLICT (client)"
            " DO UPDATE SET serial = excluded.serial, used_ns = max(used_ns, excluded.used_ns)",
            [(client, self._highest[client], used) for client, used in self._used.items()],
        )
        # A result that left the window within one batch shares its slot with a later serial.
        rows = [(key, *self._results[key]) for key in sorted(self._results)]
        self._connection.executemany(
            "REPLACE INTO session_result (client, slot, serial, code, result)"
            " VALUES (?, ?, ?, ?, ?)",
            [
                (client, serial % SESSION_WINDOW, serial, code, pack_result(result))
                for (client, serial), code, result in rows
            ],
        )
        self._used = {}
        self._results = {}
        if len(self._highest) > _SESSIONS_CACHED_MAX:
            self._highest = {}

    def expire(self, before_ns: TimeNs) -> int:
        """Sessions not used since then are forgotten; how many."""
        self.flush()
        self._highest = {}
        self._connection.execute(
            "DELETE FROM session_result WHERE client IN"
            " (SELECT client FROM session WHERE used_ns < ? ORDER BY client)",
            (before_ns,),
        )
        return self._connection.execute(
            "DELETE FROM session WHERE used_ns < ?", (before_ns,)
        ).rowcount

    def _highest_of(self, client: ClientId) -> int:
        highest = self._highest.get(client)
        if highest is None:
            row = self._connection.execute(
                "SELECT serial FROM session WHERE client = ?", (client,)
            ).fetchone()
            highest = self._highest[client] = 0 if row is None else row[0]
        return highest


def pack_result(result: Result) -> bytes:
    """The Result as table session_result keeps it."""
    return packing.pack((result.errno, result.value, result.touched))


def unpack_result(code: int, packed: bytes) -> Result:
    """The reverse of ``pack_result``; ``code`` is that of the command."""
    errno, value, touched = msgpack.unpackb(packed, use_list=False)
    if errno == 0 and value is not None:
        value = _VALUE_OF[code](value)
    inos, entries = touched
    return Result(errno, value, Touched(inos, entries))


def _attr(value: Any) -> Attr:
    return Attr(*value)


def _two_attrs(value: Any) -> tuple[Attr, Attr | None]:
    moved, other = value
    return (Attr(*moved), None if other is None else Attr(*other))


def _attr_and_plain(value: Any) -> tuple[Attr, Any]:
    return (Attr(*value[0]), value[1])


def _outcomes(value: Any) -> tuple[Any, ...]:
    return tuple((errno, None if made is None else Attr(*made)) for errno, made in value)


def _plain(value: Any) -> Any:
    return value


# How each command's value comes back from plain arrays; commands.py says what it is.
_VALUE_OF: Final = {
    COMMAND_CODES[command]: restore
    for command, restore in (
        (commands.Mkdir, _attr),
        (commands.Create, _attr_and_plain),
        (commands.PutFile, _attr),
        (commands.Mknod, _attr),
        (commands.Symlink, _attr),
        (commands.Tmpfile, _attr),
        (commands.Link, _attr),
        (commands.Unlink, _attr),
        (commands.Rmdir, _plain),
        (commands.Rename, _two_attrs),
        (commands.SetAttr, _attr),
        (commands.SetXattr, _plain),
        (commands.RemoveXattr, _plain),
        (commands.Commit, _attr),
        (commands.CloneRange, _attr_and_plain),
        (commands.PurgeOrphans, _plain),
        (commands.TrimHistory, _plain),
        (commands.SetSetting, _plain),
        (commands.SetHolders, lambda value: BlobInfo(*value)),
        (commands.ForgetBlobs, _plain),
        (commands.ExpireSessions, _plain),
        (commands.SetNode, _plain),
        (commands.SpreadFactors, _plain),
        (commands.SetToken, _plain),
        (commands.SetSecret, _plain),
        (commands.RetireSecret, _plain),
        (commands.Compact, _attr),
        (commands.ReserveInodes, _plain),
        (commands.Delegate, _plain),
        (commands.Undelegate, _plain),
        (commands.Recall, _plain),
        (commands.Revoke, _plain),
        (commands.Batch, _outcomes),
    )
}
assert sorted(_VALUE_OF) == sorted(COMMAND_CODES.values()), "every command has its value here"
