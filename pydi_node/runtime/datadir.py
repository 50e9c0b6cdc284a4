"""DATA_DIR: who this node is, that it is the only one here, and where everything lies.

Called by cli.py and node.py before anything else runs, and by commands on this machine that look
for the running node. It must never overwrite a file that it can't read or doesn't understand: every
such case is one sentence for a person (UserError), and the folder stays as it was.

    lock        flock of the running node, with its process id
    node.json   format version, node number, cluster id, whether it is a witness
    token       the cluster's token, mode 0600: written at the start, and when its secret changes
    run.json    what the running node serves on; says nothing while no node holds the lock
    node.sock   unix socket; accepting connections means ready
    blobs.sock  unix socket that hands files of blobs to this machine's mounts
    log/ tree/ blobs/
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydi_node.blobs.files import OsFiles, save
from pydi_node.errors import UserError
from pydi_node.ids import NODE_NUMBER_MAX, NodeNumber

FORMAT_VERSION = 1  # of the whole folder; a node refuses a newer one
SMALL_FILE_MAX_BYTES = 64 * 1024  # node.json and token are far below; more is another program's


class Identity(NamedTuple):
    """Who a node is, for as long as its folder lives."""

    number: NodeNumber
    cluster: str  # hex digits, the same on all nodes of a cluster
    # "founding" or "joining" until log and tree are there, then "member". After that a missing log
    # is a loss, and a node that forgot its votes must not go on as if it were new. "leaving" while
    # a cluster that held nothing is taken away to join another one.
    phase: str
    witness: bool = False  # votes, but holds no content; once True, for ever
    # A name for each recovery (``pydi recover``) that this node's history went through, oldest
    # first. Nodes of different histories don't speak: see runtime/histories.py.
    histories: tuple[str, ...] = ()


PHASES = ("founding", "joining", "member", "leaving")


class DataDir:
    """The folder of one node, locked. Use as a context manager, or call ``close``."""

    def __init__(self, path: Path) -> None:
        """Makes the folder when missing (0700) and locks it.

        UserError  it can't be made, isn't ours, or another node runs here.
        """
        self.path = path
        self.log = path / "log"
        self.tree = path / "tree" / "tree.db"
        self.blobs = path / "blobs"
        self.socket = path / "node.sock"
        self.descriptor_socket = path / "blobs.sock"
        self._files = OsFiles()
        self._lock = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise UserError(f"{path}: can't be used as data directory: {exc.strerror}") from exc
        _check_private(path)
        self._lock = self._take_lock()
        try:
            for folder in (self.log, self.tree.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            self.close()
            raise UserError(f"{path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Another node may start here."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- identity ---------------------------------------------------------------------------------

    def load_identity(self) -> Identity | None:
        """Who this node is; None in a folder that no node has used. UserError if unreadable."""
        path = self.path / "node.json"
        text = self._read(path)
        if text is None:
            if self.tree.exists():
                raise UserError(
                    f"{path} is missing but {self.tree} is there: restore node.json from a backup,"
                    " or start with an empty data directory to rejoin as a new node"
                )
            return None
        record = _parse_object(path, text)
        version = record.get("format")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(
                f"{self.path} was written by a newer PyDi (format {version}, this one knows"
                f" {FORMAT_VERSION}): update PyDi on this machine"
            )
        number, cluster, phase = record.get("number"), record.get("cluster"), record.get("phase")
        histories = record.get("histories", [])
        if (
            version != FORMAT_VERSION
            or not isinstance(number, int)
            or not 1 <= number <= NODE_NUMBER_MAX
            or not isinstance(cluster, str)
            or not cluster
            or phase not in PHASES
            or not isinstance(record.get("witness", False), bool)
            or not isinstance(histories, list)
            or not all(isinstance(name, str) for name in histories)
        ):
            raise UserError(
                f"{path} is damaged: restore it from a backup, or start with an empty data"
                " directory to rejoin as a new node"
            )
        witness = record.get("witness", False)
        return Identity(NodeNumber(number), cluster, phase, witness, tuple(histories))

    def save_identity(self, identity: Identity) -> None:
        """Durable when it returns."""
        record = {
            "format": FORMAT_VERSION,
            "number": identity.number,
            "cluster": identity.cluster,
            "phase": identity.phase,
            "witness": identity.witness,
            "histories": list(identity.histories),
        }
        self._save(self.path / "node.json", record)

    def clear(self, identity: Identity) -> None:
        """The folder is as new. Only for a cluster of this one node that holds nothing.

        Whenever this is interrupted, the next start finds the phase "leaving" and goes on with it.
        """
        self.save_identity(identity._replace(phase="leaving"))
        for folder in (self.log, self.tree.parent, self.blobs):
            if folder.exists():
                shutil.rmtree(folder)
        for folder in (self.log, self.tree.parent):
            folder.mkdir(mode=0o700)
        (self.path / "token").unlink(missing_ok=True)
        self._files.sync_directory(self.path)
        (self.path / "node.json").unlink()
        self._files.sync_directory(self.path)

    # --- token ------------------------------------------------------------------------------------

    def load_token(self) -> str | None:
        """The token kept here, None when there is none. UserError if unreadable or readable by
        others."""
        path = self.path / "token"
        text = self._read(path)
        if text is None:
            return None
        _check_private(path)
        return text.strip()

    def save_token(self, token: str) -> None:
        """Durable and readable by the owner alone when it returns."""
        save(self._files, self.path / "token", token.encode() + b"\n")

    # --- the running node -------------------------------------------------------------------------

    def save_run(self, record: dict[str, Any]) -> None:
        """What the running node serves on, for commands and scripts on this machine."""
        self._save(self.path / "run.json", record)

    def remove_run(self) -> None:
        """At a clean stop: nothing here claims to be served any more."""
        for path in (self.path / "run.json", self.socket, self.descriptor_socket):
            path.unlink(missing_ok=True)

    # --- inner ------------------------------------------------------------------------------------

    def _take_lock(self) -> int:
        path = self.path / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise UserError(f"{path}: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise UserError(f"{self.path} is in use by the node with process id {holder}") from exc
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        return fd

    def _read(self, path: Path) -> str | None:
        try:
            with open(path, "rb") as file:
                data = file.read(SMALL_FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise UserError(f"{path}: {exc.strerror}") from exc
        try:
            if len(data) > SMALL_FILE_MAX_BYTES:
                raise ValueError("too long")
            return data.decode()
        except ValueError as exc:
            raise UserError(f"{path} is not a file that PyDi wrote: {exc}") from exc

    def _save(self, path: Path, record: dict[str, Any]) -> None:
        save(self._files, path, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")


def read_run(data_dir: Path) -> dict[str, Any] | None:
    """What a node that was started in ``data_dir`` wrote of itself; None when there is nothing.

    The node may have been killed since: only connecting to its socket tells.
    """
    try:
        text = (data_dir / "run.json").read_text()
    except FileNotFoundError:
        return None
    return _parse_object(data_dir / "run.json", text)


def _parse_object(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as exc:
        raise UserError(f"{path} is damaged: not JSON ({exc})") from exc
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: not a JSON object")
    return record


def _check_private(path: Path) -> None:
    """UserError unless ``path`` is ours and nobody else may write it (or, a file, read it)."""
    try:
        status = os.stat(path)
    except OSError as exc:
        raise UserError(f"{path}: {exc.strerror}") from exc
    if status.st_uid not in (os.geteuid(), 0):
        raise UserError(f"{path} belongs to user {status.st_uid}, not to the one who starts PyDi")
    is_directory = stat.S_ISDIR(status.st_mode)
    forbidden = 0o022 if is_directory else 0o077
    if status.st_mode & forbidden:
        what = "write" if is_directory else "read"
        raise UserError(
            f"others may {what} {path} (mode {stat.S_IMODE(status.st_mode):04o}): chmod"
            f" {'go-w' if is_directory else '600'} {path}"
        )
