"""A session that may see one directory and what is below it, as if that were the whole tree.

Made by admission.py for a mount token with ``--dir``; server.py hands every request, answer and
push of such a session through here, and the handlers know nothing of it. Three rules:

- The directory has the root's number (1) on this session's side of the wire, and its own on ours.
- A request names only inodes that are below the directory when it arrives, by any of their names,
  or that the session opened (or made without a name) while they were: what is open stays open.
  Any other number gets ESTALE, whether it exists or not.
- Content is reached by the names of blobs, which can be guessed: a session reads those that an
  answer showed it, and commits those, or what it has written itself.

Parents are looked up anew for each request, so a directory that is moved out is out at once. That
costs some 10 us for each level, and only such sessions pay it.
"""

from __future__ import annotations

import dataclasses
import errno
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pydi_node.commands import (
    Batch,
    Command,
    Commit,
    Mkdir,
    PutFile,
    Symlink,
    Tmpfile,
    Undelegate,
)
from pydi_node.errors import BlobMissingError, FileError
from pydi_node.ids import ROOT_INO, BlobId, Ino, LogIndex
from pydi_node.records import HOLE, Attr, BlobInfo, DirEntry, FileVersion, Result, Touched, Version
from pydi_node.tree.machine import Tree
from pydi_node.wire import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# Blobs that a session may read, the last that it was shown: some 25 MB for each such session.
BLOBS_MAX = 1 << 18
MADE_MAX = 1 << 16  # files without a name that it made

# Fields of requests and commands, by their names, which mean the same everywhere: those that name
# an inode, and those that name nothing in the tree. Whatever has another field is refused: a
# request that is added later reaches nothing outside by being forgotten here.
_INODES = ("ino", "parent", "new_parent", "source", "target")
_HARMLESS = frozenset(
    {
        "after_cookie", "append", "at", "atime_ns", "base_version", "blobs", "caller", "checksum",
        "client", "content", "count", "ctime_ns", "cut", "end", "exclusive", "extents", "flags",
        "flock", "gid", "kind", "length", "limit", "mode", "mtime_ns", "name", "new_name", "offset",
        "owner", "pid", "rdev", "serial", "size", "source_offset", "start", "target_offset",
        "ticket", "time_ns", "uid", "umask", "value", "wait",
    }
)  # fmt: skip
# Numbers that no inode has yet: the tree knows which of them this client may give.
_NEW_NUMBERS = frozenset(((PutFile, "ino"), (Mkdir, "ino"), (Symlink, "ino")))
# The tree ends what this client holds, wherever that is by now, and nothing else.
_OWN_DIRECTORIES = (Undelegate, "inos")
# They name a blob that this session is writing: the handlers know no other.
_OWN_WRITER = (
    messages.BlobWrite,
    messages.BlobGrown,
    messages.BlobTruncate,
    messages.BlobSeal,
    messages.BlobAbort,
)


class Bounds:
    """What one session is held to."""

    def __init__(self, tree: Callable[[], Tree], root: Ino, is_open: Callable[[Ino], bool]) -> None:
        """root: the directory. is_open: whether the session holds an inode open."""
        self._tree = tree
        self._root = root
        self._is_open = is_open
        self._shown: OrderedDict[BlobId, None] = OrderedDict()
        self._written: OrderedDict[BlobId, BlobInfo] = OrderedDict()
        self._made: OrderedDict[Ino, None] = OrderedDict()

    # --- in ---------------------------------------------------------------------------------------

    def inward(self, message: messages.Request) -> messages.Request:
        """The request in our numbers. FileError, BlobError: it names what is out of bounds."""
        match message:
            case messages.Execute() | messages.ExecutePut():
                return dataclasses.replace(message, command=self._inner_command(message.command))
            case messages.BlobRead(blob=blob):
                if blob not in self._shown and blob not in self._written:
                    raise BlobMissingError("not content that this session was shown")
                return message
            case messages.PathOf():  # a second name of a file may lie outside
                raise FileError(errno.EPERM, "this token sees no paths but its own")
            case _ if isinstance(message, _OWN_WRITER):
                return message
            case messages.Open(ino=ino) if self._was_below(self._ours(ino)):
                return dataclasses.replace(message, ino=self._ours(ino))
            case messages.Release(ino=ino):  # whatever it is now, it was opened here
                return dataclasses.replace(message, ino=self._ours(ino))
        inner: messages.Request = self._inner(message, getattr(message, "at", None))
        return inner

    def _inner_command(self, command: Command) -> Command:
        if isinstance(command, Batch):
            return self._inner_batch(command)
        inner: Command = self._inner(command, None)
        if isinstance(inner, (Commit, PutFile)):
            self._check_content(inner)
        return inner

    def _inner_batch(self, batch: Batch) -> Batch:
        made: set[Ino] = set()
        parts = []
        for part in batch.commands:
            inner = self._inner(part, None, made)
            if isinstance(inner, PutFile):
                self._check_content(inner)
            if isinstance(inner, (Mkdir, Symlink)) and inner.ino is not None:
                # Below what was just checked, or refused by the tree with all that is done in it.
                made.add(inner.ino)
            parts.append(inner)
        return dataclasses.replace(batch, commands=tuple(parts))

    def _inner(self, record: Any, at: LogIndex | None, made: Collection[Ino] = ()) -> Any:
        """A request or command whose inodes are ours, and all within bounds. made: these are."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(record):
            name, value = field.name, getattr(record, field.name)
            if (type(record), name) in _NEW_NUMBERS:
                continue
            if (type(record), name) == _OWN_DIRECTORIES:
                changes[name] = tuple(self._ours(ino) for ino in value)
            elif name in _INODES:
                if isinstance(value, int):  # a symbolic link's target is bytes
                    changes[name] = self._ours(Ino(value))
                    if changes[name] not in made:
                        self._check(changes[name], at)
            elif name not in _HARMLESS:
                what = type(record).__name__
                raise FileError(errno.EPERM, f"{what} is not for a token of one directory")
        return dataclasses.replace(record, **changes) if changes else record

    def _ours(self, ino: Ino) -> Ino:
        return self._root if ino == ROOT_INO else ino

    def _check(self, ino: Ino, at: LogIndex | None) -> None:
        if not (self._is_below(ino, at) or self._is_open(ino) or ino in self._made):
            raise FileError(errno.ESTALE, "not below the directory of this token")

    def _is_below(self, ino: Ino, at: LogIndex | None) -> bool:
        """Whether a name leads from the directory to it; a file may have several."""
        tree = self._tree()
        seen = {ino}
        above = [ino]
        while above:
            here = above.pop()
            if here == self._root:
                return True
            for parent, _ in tree.names_of(here, at):
                if parent not in seen:
                    seen.add(parent)
                    above.append(parent)
        return False

    def _was_below(self, ino: Ino) -> bool:
        """Whether its last name, which is gone, led to it: a mount tells of an open a moment later,
        and somebody may have removed the file meanwhile."""
        try:
            attr = self._tree().getattr(ino)
        except FileError:
            return False
        return attr.nlink == 0 and self._is_below(ino, LogIndex(attr.changed - 1))

    def _check_content(self, command: Commit | PutFile) -> None:
        given = {info.blob: info for info in command.blobs}
        for blob, info in given.items():
            if self._written.get(blob) != info:
                raise BlobMissingError("not content that this session has written")
        for blob in {extent.blob for extent in command.extents} - {HOLE, messages.PUT_BLOB}:
            if blob not in given and blob not in self._shown and blob not in self._written:
                raise BlobMissingError("not content that this session was shown")

    # --- out --------------------------------------------------------------------------------------

    def outward(self, value: Any) -> Any:
        """An answer in the session's numbers; what it shows may be read from now on."""
        match value:
            case Attr():
                return value._replace(ino=self._theirs(value.ino))
            case DirEntry():
                return value._replace(attr=self.outward(value.attr))
            case Version():
                return value._replace(attr=self.outward(value.attr))
            case FileVersion():
                for info in value.blobs:
                    _keep(self._shown, info.blob, None, BLOBS_MAX)
                return value._replace(attr=self.outward(value.attr))
            case BlobInfo():
                _keep(self._written, value.blob, value, BLOBS_MAX)
                return value
            case Result():
                return value._replace(
                    value=self.outward(value.value),
                    touched=self._renumbered(value.touched),
                    directories=tuple(self.outward(attr) for attr in value.directories),
                )
        # Of these the answers consist; records of another kind name no inode.
        if type(value) in (tuple, list):
            return [self.outward(item) for item in value]
        return value

    def made(self, message: messages.Request, outcome: Any) -> None:
        """The outcome of a command, before ``outward``: a file without a name is this session's."""
        match message, outcome:
            case messages.Execute(command=Tmpfile()), Result(errno=0, value=Attr(ino=ino)):
                _keep(self._made, ino, None, MADE_MAX)

    def pushed(self, touched: Touched) -> Touched | None:
        """What the session hears of somebody's change: no name of another directory. None: it must
        drop all that it has cached.

        That is when something is moved over the border: of what changes in a directory that is
        outside the session hears nothing, so it must not remember it when it comes back.
        """
        entries = tuple(e for e in touched.entries if self._is_below(e[0], None))
        if entries and len(entries) < len(touched.entries):
            return None
        return self._renumbered(Touched(touched.inos, entries))

    def _renumbered(self, touched: Touched) -> Touched:
        if self._root not in touched.inos and all(p != self._root for p, _ in touched.entries):
            return touched
        return Touched(
            tuple(self._theirs(ino) for ino in touched.inos),
            tuple((self._theirs(parent), name) for parent, name in touched.entries),
        )

    def _theirs(self, ino: Ino) -> Ino:
        return ROOT_INO if ino == self._root else ino


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, count_max: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > count_max:
        kept.popitem(last=False)
