"""``Tree``: applies log entries to the database, one transaction a batch. The room's docstring
(``pydi_node/tree/__init__.py``) is the interface's description.

Called by replica.py on the thread that owns the connection. It must never leave half a batch behind
and never answer two replicas differently.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EIO
from typing import Any, Final

from blake3 import blake3

from pydi_node import commands
from pydi_node.commands import Batch, Command, Envelope, ExpireSessions
from pydi_node.errors import FileError
from pydi_node.ids import ClientId, Ino, LogIndex, Serial, Term, TimeNs
from pydi_node.records import DELEGATED, IN_TREE, BlobInfo, Result
from pydi_node.tree import batches, content, delegations, factors, housekeeping, inodes, names
from pydi_node.tree.queries import NANOSECONDS_PER_TICK, Queries
from pydi_node.tree.schema import translated_errors
from pydi_node.tree.sessions import Sessions
from pydi_node.tree.store import Delegation, Store, pack_holders

# Free pages that stay in the file for what comes next: 16 MiB of the usual size.
FREE_PAGES_KEPT: Final = 4096
GIVE_BACK_PAGES: Final = 1024  # taken off the file at a time
_INCREMENTAL: Final = 2  # as PRAGMA auto_vacuum says it

_HANDLERS: Final[dict[type[Any], Callable[[Store, Any], Result]]] = {
    commands.Mkdir: names.mkdir,
    commands.Create: names.create,
    commands.PutFile: names.put_file,
    commands.Mknod: names.mknod,
    commands.Symlink: names.symlink,
    commands.Tmpfile: names.tmpfile,
    commands.Link: names.link,
    commands.Unlink: names.unlink,
    commands.Rmdir: names.rmdir,
    commands.Rename: names.rename,
    commands.SetAttr: inodes.setattr_,
    commands.SetXattr: inodes.setxattr,
    commands.RemoveXattr: inodes.removexattr,
    commands.Commit: content.commit,
    commands.CloneRange: content.clone_range,
    commands.PurgeOrphans: housekeeping.purge_orphans,
    commands.TrimHistory: housekeeping.trim_history,
    commands.SetSetting: housekeeping.set_setting,
    commands.SetHolders: housekeeping.set_holders,
    commands.ForgetBlobs: housekeeping.forget_blobs,
    commands.SetNode: housekeeping.set_node,
    commands.SpreadFactors: factors.spread_factors,
    commands.SetToken: housekeeping.set_token,
    commands.SetSecret: housekeeping.set_secret,
    commands.RetireSecret: housekeeping.retire_secret,
    commands.Compact: content.compact,
    commands.ReserveInodes: delegations.reserve_inodes,
    commands.Delegate: delegations.delegate,
    commands.Undelegate: delegations.undelegate,
    commands.Recall: delegations.recall,
    commands.Revoke: delegations.revoke,
}
assert _HANDLERS.keys() | {Batch, ExpireSessions} == commands.COMMAND_CODES.keys()


# (index, term, envelope, or the data of a membership)
_Applied = tuple[LogIndex, Term, Envelope | bytes | None]


class Tree(Queries):
    """The virtual tree on one prepared connection; the only writer of its database.

    connection  from ``sqlite3.connect(..., isolation_level=None)`` after ``schema.prepare``; the
                caller keeps it open for as long as the Tree lives, and closes it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._store = Store(connection)
        self._sessions = Sessions(connection)
        self._tick_second = self._last_tick_second()
        self._durable_index = LogIndex(0)  # nobody knows before the first checkpoint
        # Applied since the last commit: what a rollback must bring back.
        self._uncommitted: list[_Applied] = []
        self._is_written = True  # the Store's and the Sessions' rows are in SQLite
        (self._page_bytes,) = connection.execute("PRAGMA page_size").fetchone()

    # --- state ----------------------------------------------------------------------------------

    @property
    def applied_index(self) -> LogIndex:
        """Last log index whose effect is in the tree; 0 before the first."""
        return self._store.meta.applied_index

    @property
    def applied_term(self) -> Term:
        """The term of that log entry."""
        return self._store.meta.applied_term

    @property
    def membership(self) -> tuple[LogIndex, bytes]:
        """Consensus' membership and the log index it came with; (0, b"") before the first."""
        meta = self._store.meta
        return (meta.membership_index, meta.membership)

    @property
    def history_floor(self) -> LogIndex:
        """The oldest index that ``at`` of a query may name."""
        return self._store.meta.history_floor

    def delegation(self, ino: int) -> Delegation | None:
        """Who alone may change names in this directory; None: everybody may."""
        return self._store.delegations.get(ino)

    def is_held(self, ino: int, client: ClientId) -> bool:
        """Whether that is somebody else than the client."""
        delegation = self._store.delegations.get(ino)
        return delegation is not None and delegation.client != client

    def delegated_to(self, client: int) -> list[Ino]:
        """All directories in which this client alone may change names."""
        held = self._store.delegations
        return [Ino(ino) for ino, delegation in held.items() if delegation.client == client]

    # --- applying -------------------------------------------------------------------------------

    def advance(self, entries: Sequence[tuple[LogIndex, Term, Envelope | None]]) -> list[Result]:
        """The outcome of each log entry; all are applied for every query of this Tree, or none.

        entries  (index, term, envelope), going on at ``applied_index + 1`` without a gap; an
                 envelope of None is an entry without a command and gives ``Result()``.

        Other connections see it, and a restart finds it, after ``commit``.

        Any exception means that nothing of ``entries`` was applied: NoSpaceError (the disk is
        full), CorruptionError (the database is damaged), sqlite3.Error or AssertionError (stop the
        node).
        """
        if not entries:
            return []
        with self._all_or_nothing():
            results = [self._apply(entry) for entry in entries]
        self._uncommitted += entries
        return results

    def advance_membership(self, index: LogIndex, term: Term, data: bytes) -> None:
        """The log entry ``index`` is applied, and ``data`` is the membership as of it.

        index  ``applied_index + 1``; or ``applied_index``, to record the membership only.
        data   opaque; comes back unchanged from ``membership`` and travels with snapshots.
        """
        entry = (index, term, data)
        with self._all_or_nothing():
            self._apply_membership(*entry)
        self._uncommitted.append(entry)

    @property
    def uncommitted(self) -> int:
        """Log entries applied since the last ``commit``."""
        return len(self._uncommitted)

    def commit(self) -> None:
        """All that was applied is in the database's files: a killed program keeps it.

        Not on the disk yet, which is for ``checkpoint``; the log is there to bring it back.
        NoSpaceError: it stays applied for this Tree, and the next call tries again.
        """
        if self._uncommitted:
            with self._all_or_nothing():
                self._write_back()
                self._connection.execute("COMMIT")
            self._uncommitted = []

    def apply_batch(
        self, entries: Sequence[tuple[LogIndex, Term, Envelope | None]]
    ) -> list[Result]:
        """``advance`` and ``commit``."""
        results = self.advance(entries)
        self.commit()
        return results

    def apply(self, index: LogIndex, term: Term, envelope: Envelope | None) -> Result:
        """``apply_batch`` of one entry."""
        return self.apply_batch([(index, term, envelope)])[0]

    def set_membership(self, index: LogIndex, term: Term, data: bytes) -> None:
        """``advance_membership`` and ``commit``."""
        self.advance_membership(index, term, data)
        self.commit()

    def checkpoint(self) -> LogIndex:
        """Everything applied up to the returned index is on disk, whatever happens to the power.

        Call it before cutting the log: ``synchronous=NORMAL`` may lose the last transactions, and
        only the log brings them back. Takes two fsyncs and a write of every page in the WAL. It
        never waits: while somebody reads a snapshot, the answer is that of an earlier call.
        Commits; NoSpaceError as there.
        """
        self.commit()
        with translated_errors():
            row = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        _, frames, frames_moved = row
        if frames_moved == frames:
            self._durable_index = self.applied_index
        return self._durable_index

    @property
    def used_bytes(self) -> int:
        """What names, history and content take of the database's file."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * int(self._page_bytes)

    @property
    def spare_bytes(self) -> int:
        """What ``give_back`` can take off the database's file: free in it, beyond what is kept for
        what comes next. 0 for a file that was made before there was that."""
        (mode,) = self._connection.execute("PRAGMA auto_vacuum").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return max(0, free - FREE_PAGES_KEPT) * self._page_bytes if mode == _INCREMENTAL else 0

    def give_back(self) -> None:
        """A part of ``spare_bytes`` goes to the file system, with the next checkpoints. Takes some
        10 ms. Commits; NoSpaceError as there."""
        pages = min(self.spare_bytes // self._page_bytes, GIVE_BACK_PAGES)
        if pages:
            self.commit()
            with translated_errors():
                # It takes a page off with each step and has no columns: ``execute`` makes one step.
                self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    def mend_content(self, info: BlobInfo, content: bytes) -> bool:
        """A blob in the tree whose content was found damaged has this, which its checksum says is
        what it was; False when it is no such blob any more. Commits; NoSpaceError as there."""
        assert blake3(content).digest() == info.checksum, info
        self.commit()
        with self._all_or_nothing():
            done = self._connection.execute(
                "REPLACE INTO content (blob, bytes) SELECT blob, ? FROM blob"
                " WHERE blob = ? AND checksum = ? AND holders = ?",
                (content, info.blob, info.checksum, pack_holders(IN_TREE)),
            )
            self._connection.execute("COMMIT")
        return done.rowcount == 1

    def session_result(self, client: ClientId, serial: Serial) -> Result | None:
        """The first Result of this command; None when it was not applied or left the window."""
        if self._sessions.is_too_old(client, serial):
            return None
        return self._sessions.result(client, serial)

    # --- internals ------------------------------------------------------------------------------

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Inside a transaction; what is raised inside leaves the tree as it was before."""
        connection = self._connection
        with translated_errors():
            try:
                if not connection.in_transaction:
                    connection.execute("BEGIN IMMEDIATE")
                yield
            except BaseException:
                self._return()
                raise

    def _return(self) -> None:
        """Back to the last commit, and forward again to where ``_uncommitted`` ends.

        Going forward reads the disk but never writes to it (``cache_spill`` is off), and gave its
        results before: it can't fail for want of room. If the disk fails it, half of an entry may
        be in: nothing is left to commit, and the node stops.
        """
        uncommitted, self._uncommitted = self._uncommitted, []
        self._roll_back()
        if not uncommitted:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for entry in uncommitted:
                if isinstance(entry[2], bytes):
                    self._apply_membership(*entry)  # type: ignore[arg-type]  # narrowed just above
                else:
                    self._apply(entry)  # type: ignore[arg-type]  # likewise
        except BaseException:
            self._roll_back()
            raise
        self._uncommitted = uncommitted

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._store.forget()
        self._sessions.forget()
        self._is_written = True
        self._tick_second = self._last_tick_second()

    def _write_back(self) -> None:
        if not self._is_written:
            self._store.flush()
            self._sessions.flush()
            self._is_written = True

    def _ask(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if not self._is_written:
            with self._all_or_nothing():
                self._write_back()
        return super()._ask(statement, values)

    def _apply(self, entry: tuple[LogIndex, Term, Envelope | None]) -> Result:
        index, term, envelope = entry
        meta = self._store.meta
        assert index == meta.applied_index + 1, (index, meta.applied_index)
        assert term >= meta.applied_term, (term, meta.applied_term)
        self._is_written = False
        result = Result() if envelope is None else self._step(index, envelope)
        meta.applied_index = index
        meta.applied_term = term
        return result

    def _apply_membership(self, index: LogIndex, term: Term, data: bytes) -> None:
        meta = self._store.meta
        assert index in (meta.applied_index, meta.applied_index + 1), (index, meta)
        assert term >= meta.applied_term, (term, meta.applied_term)
        self._is_written = False
        meta.applied_index = index
        meta.applied_term = term
        meta.membership_index = index
        meta.membership = data

    def _step(self, index: LogIndex, envelope: Envelope) -> Result:
        """One command applied, or its first Result found again."""
        store = self._store
        store.index = index
        store.now_ns = envelope.time_ns
        if envelope.time_ns // NANOSECONDS_PER_TICK > self._tick_second:
            self._tick(index, envelope.time_ns)
        client = store.client = envelope.client
        if client == 0:
            return self._execute_command(envelope.command)
        sessions = self._sessions
        serial = envelope.serial
        if not sessions.is_new(client, serial):
            if sessions.is_too_old(client, serial):
                return Result(EIO)
            first = sessions.result(client, serial)
            if first is not None:
                return first
        if store.delegations and (inos := delegations.in_the_way(store, envelope.command)):
            # Not remembered: the same (client, serial) is executed when they were given back.
            return Result(DELEGATED, inos)
        result = self._execute_command(envelope.command)
        sessions.remember(envelope, result)
        return result

    def _execute_command(self, command: Command) -> Result:
        store = self._store
        writes = store.writes
        try:
            if isinstance(command, Batch):
                return batches.batch(store, command, self._execute_command)
            if isinstance(command, ExpireSessions):
                return housekeeping.expire_sessions(store, self._sessions, command)
            return _HANDLERS[type(command)](store, command)
        except FileError as outcome:
            result = Result(outcome.errno)
        assert store.writes == writes, f"{command} changed rows before it failed: {result}"
        return result

    def _tick(self, index: LogIndex, time_ns: TimeNs) -> None:
        self._connection.execute(
            "INSERT INTO tick (log_index, time_ns) VALUES (?, ?)", (index, time_ns)
        )
        self._tick_second = time_ns // NANOSECONDS_PER_TICK

    def _last_tick_second(self) -> int:
        """The second of the last tick; before the first one, less than any."""
        row = self._connection.execute(
            "SELECT time_ns FROM tick ORDER BY log_index DESC LIMIT 1"
        ).fetchone()
        return -1 if row is None else row[0] // NANOSECONDS_PER_TICK
