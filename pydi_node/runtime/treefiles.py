"""Files of the tree's database: the live one, copies of it for other nodes, one that comes in.

    tree/tree.db              the tree; one connection, in the loop's thread
    tree/snapshot-<id>.db     copies made for followers; worthless after a restart
    tree/incoming.db          being received; takes the live one's place when complete
    tree/installing.json      from just before that until the log was reset: which index

Called by node.py at start and by the driver (see driver.SnapshotFiles). It must never put a file in
the tree's place whose checksum and structure were not verified.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from pydi_node.blobs.files import OsFiles, save
from pydi_node.consensus import codec
from pydi_node.consensus.types import SnapshotInstall, SnapshotMeta, SnapshotRead, SnapshotWrite
from pydi_node.effects import (
    SnapshotBytes,
    SnapshotFailed,
    SnapshotInstalled,
    SnapshotRefused,
    SnapshotTaken,
    SnapshotWritten,
)
from pydi_node.errors import CorruptionError, NoSpaceError
from pydi_node.tree import schema, snapshot
from pydi_node.tree.machine import Tree

_log = logging.getLogger(__name__)

_HASH_CHUNK_BYTES = 1 << 20


class TreeFiles:
    """The tree's folder. ``tree`` is the live tree; the snapshot methods run in one thread."""

    def __init__(self, path: Path) -> None:
        """Opens the tree, a new one when there is none.

        path  of tree.db; its folder exists.
        CorruptionError  damaged or foreign; nothing was changed.
        """
        self._path = path
        self._folder = path.parent
        self._files = OsFiles()
        for name in os.listdir(self._folder):
            if name.startswith(("snapshot-", "incoming.db")):
                os.unlink(self._folder / name)
        # A program killed while it installed a snapshot may have left the renaming unsynced: all
        # that follows, first of all the log's reset, relies on the file that is found here.
        self._files.sync_directory(self._folder)
        self.tree, self._connection = self._open()
        self._incoming: bytes | None = None  # id of the snapshot in incoming.db
        self._copies = 0

    def close(self) -> None:
        """The database is closed with all that was applied; SQLite writes its WAL back first."""
        try:
            self.tree.commit()
        except NoSpaceError:
            pass  # the next start applies it again, out of the log
        finally:
            self._connection.close()

    @property
    def installed_meta(self) -> SnapshotMeta | None:
        """Where the log must begin when a crash came between the installation of a snapshot and
        the reset of the log; None in all other cases. Call ``forget_installing`` after the reset.
        """
        try:
            record = json.loads((self._folder / "installing.json").read_text())
        except FileNotFoundError:
            return None
        # Nothing is applied or appended before installing.json is gone, so equal means installed.
        if record != {"index": self.tree.applied_index}:
            self.forget_installing()
            return None
        _, data = self.tree.membership
        membership = codec.unpack_membership(data)
        return SnapshotMeta(self.tree.applied_index, self.tree.applied_term, membership)

    def forget_installing(self) -> None:
        """Durable when it returns."""
        (self._folder / "installing.json").unlink(missing_ok=True)
        self._files.sync_directory(self._folder)

    # --- copies for others ------------------------------------------------------------------------

    def take(self) -> SnapshotTaken | SnapshotFailed:
        """A complete copy of the tree as of its last commit, through a connection of its own."""
        self._copies += 1
        temporary = self._folder / f"snapshot-{self._copies}.new"
        try:
            source = sqlite3.connect(self._path, isolation_level=None)
            target = sqlite3.connect(temporary, isolation_level=None)
            try:
                taken = snapshot.copy_to(source, target)
            finally:
                source.close()
                target.close()
            snapshot_id, size = _digest(temporary)
            os.rename(temporary, self._copy_path(snapshot_id))
        except (NoSpaceError, OSError) as exc:
            _log.warning("no snapshot for a follower: %s", exc)
            temporary.unlink(missing_ok=True)
            return SnapshotFailed(b"")
        _log.info("snapshot of index %d taken, %d bytes", taken.applied_index, size)
        return SnapshotTaken(snapshot_id, taken.applied_index, size)

    def read(self, read: SnapshotRead) -> SnapshotBytes | SnapshotFailed:
        try:
            fd = os.open(self._copy_path(read.snapshot_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return SnapshotFailed(read.snapshot_id)
        try:
            return SnapshotBytes(read, self._files.pread(fd, read.length, read.offset))
        finally:
            os.close(fd)

    def drop(self, snapshot_id: bytes) -> None:
        self._copy_path(snapshot_id).unlink(missing_ok=True)

    # --- one that comes in ------------------------------------------------------------------------

    def write(self, write: SnapshotWrite) -> SnapshotWritten | SnapshotRefused:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        if write.offset == 0:
            flags |= os.O_TRUNC
            self._incoming = write.snapshot_id
        assert self._incoming == write.snapshot_id, write.snapshot_id
        try:
            fd = os.open(self._folder / "incoming.db", flags, 0o600)
            try:
                self._files.pwrite(fd, write.data, write.offset)
            finally:
                os.close(fd)
        except OSError as exc:
            _log.warning("a snapshot can't be received: %s", exc)
            return SnapshotRefused(write.snapshot_id)
        return SnapshotWritten(write)

    def verify(self, install: SnapshotInstall) -> SnapshotRefused | None:
        path = self._folder / "incoming.db"
        try:
            snapshot_id, _ = _digest(path)
            if snapshot_id != install.snapshot_id:
                raise CorruptionError("the snapshot's checksum is wrong")
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                found = snapshot.adopt(connection)
            finally:
                connection.close()
            if (found.applied_index, found.applied_term) != (install.meta.index, install.meta.term):
                raise CorruptionError(f"the snapshot is of index {found.applied_index}")
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except (CorruptionError, NoSpaceError) as exc:
            _log.warning("received snapshot refused: %s", exc)
            return SnapshotRefused(install.snapshot_id)
        return None

    def install(self, install: SnapshotInstall, reset_log: Callable[[], None]) -> SnapshotInstalled:
        """The verified file is the tree, durably, and the log begins behind it.

        Nothing may use the old tree meanwhile: call it in the loop's thread.
        """
        record = json.dumps({"index": install.meta.index}).encode()
        save(self._files, self._folder / "installing.json", record)
        self._connection.close()
        for suffix in ("-wal", "-shm"):
            # A clean close removed them; a leftover would be played into the new database.
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._files.sync_directory(self._folder)  # nor may one come back after a power cut
        os.rename(self._folder / "incoming.db", self._path)
        self._files.sync_directory(self._folder)
        self.tree, self._connection = self._open()
        reset_log()
        self.forget_installing()
        self._incoming = None
        return SnapshotInstalled(install, self.tree)

    # --- inner ------------------------------------------------------------------------------------

    def _open(self) -> tuple[Tree, sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
        except sqlite3.OperationalError as exc:
            raise CorruptionError(f"{self._path}: can't be opened: {exc}") from exc
        try:
            schema.prepare(connection)
            return Tree(connection), connection
        except CorruptionError as exc:
            connection.close()
            raise CorruptionError(
                f"{self._path}: {exc}. Nothing was changed: take this node out of the cluster (pydi"
                " forget) and let it join again with an empty data directory, or restore a backup"
            ) from exc
        except BaseException:
            connection.close()
            raise

    def _copy_path(self, snapshot_id: bytes) -> Path:
        return self._folder / f"snapshot-{snapshot_id.hex()}.db"


def _digest(path: Path) -> tuple[bytes, int]:
    """Checksum and size in bytes of a file."""
    hasher, size = blake3(), 0
    with open(path, "rb") as file:
        while data := file.read(_HASH_CHUNK_BYTES):
            hasher.update(data)
            size += len(data)
    return hasher.digest(), size
