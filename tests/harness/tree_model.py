"""The specification of the tree as plain dicts, for tests to hold the real one against.

Written from POSIX, the man pages and commands.py, not from the tree's code: what the tree keeps in
columns (link counts, "..", references) is counted here by looking, and a file is a list with one
cell for each byte, so that no arithmetic on extents is shared. Slow and small on purpose. A command
works on a copy of the state, which takes the place of the state only if the command succeeds.
"""

from __future__ import annotations

import copy
import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from pydi_node import commands as c
from pydi_node.ids import BlobId, Ino, LogIndex, TimeNs
from pydi_node.records import Attr, BlobInfo

# One byte of a file: which byte of which blob, or None in a hole.
Cell = tuple[int, int] | None


class Refused(Exception):
    """The command's outcome is this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Node:
    """An inode. ``children`` of a directory only, ``cells`` of a regular file only."""

    mode: int
    uid: int
    gid: int
    born: int
    index: int
    rdev: int = 0
    target: bytes | None = None
    children: dict[bytes, int] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    version: int = 0
    changed: int = 0
    linkable: bool = False

    def __post_init__(self) -> None:
        self.atime = self.mtime = self.ctime = self.born
        self.version = self.changed = self.index

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass
class State:
    """The whole tree at one log index."""

    nodes: dict[int, Node]
    blobs: dict[int, BlobInfo]
    next_ino: int
    # Directories that a client holds: the client, and when that was asked for back (0: never).
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Numbers that a client may still give, by reservation, oldest first.
    reserved: dict[int, list[set[int]]] = field(default_factory=dict)

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        return [
            (parent, name)
            for parent, node in self.nodes.items()
            for name, child in node.children.items()
            if child == ino
        ]

    def nlink(self, ino: int) -> int:
        node = self.nodes[ino]
        names = len(self.names(ino))
        if not node.is_dir:
            return names
        if names == 0 and ino != 1:
            return 0
        return 2 + sum(self.nodes[child].is_dir for child in node.children.values())

    def attr(self, ino: int) -> Attr:
        node = self.nodes[ino]
        size = len(node.target) if node.target is not None else len(node.cells)
        return Attr(
            Ino(ino), node.mode, self.nlink(ino), node.uid, node.gid, node.rdev, size,
            sum(cell is not None for cell in node.cells), TimeNs(node.atime), TimeNs(node.mtime),
            TimeNs(node.ctime), TimeNs(node.born), LogIndex(node.version), LogIndex(node.changed),
        )  # fmt: skip

    def entries(self) -> dict[tuple[int, bytes], int]:
        return {
            (parent, name): child
            for parent, node in self.nodes.items()
            for name, child in node.children.items()
        }

    def above(self, ino: int) -> set[int]:
        """The directory and all directories over it."""
        line = {ino}
        while names := self.names(ino):
            ino = names[0][0]
            line.add(ino)
        return line


class TreeModel:
    """``apply`` gives (errno, value) of a command as commands.py describes it.

    state      the tree now.
    snapshots  log index -> the tree after it.
    """

    def __init__(self, root_mode: int) -> None:
        root = Node(root_mode, 0, 0, born=0, index=0)
        self.state = State({1: root}, {}, 2)
        self.snapshots: dict[int, State] = {0: self.state}
        self.floor = 0
        self._answers: dict[tuple[int, int], tuple[int, Any]] = {}
        self._now = 0
        self._index = 0
        self._client = 0
        # What the last command touched, where that is more than what it changed.
        self.touched: tuple[set[int], set[tuple[int, bytes]]] | None = None

    def apply(self, index: int, envelope: c.Envelope) -> tuple[int, Any]:
        key = (envelope.client, envelope.serial)
        if envelope.client and key in self._answers:
            self.snapshots[index] = self.state
            return self._answers[key]
        before = self.state
        self.state = copy.deepcopy(before)
        self._now, self._index, self._client = envelope.time_ns, index, envelope.client
        self.touched = None
        answer: tuple[int, Any]
        if others := self._in_the_way(envelope.command):
            self.state = self.snapshots[index] = before
            return (errno.EAGAIN, others)
        try:
            answer = (0, _COMMANDS[type(envelope.command)](self, envelope.command))
        except Refused as refused:
            self.state = before
            answer = (refused.number, None)
        state = self.state
        for ino in list(state.held):
            if ino != 1 and not state.names(ino):
                del state.held[ino]
        self.snapshots[index] = self.state
        if envelope.client:
            self._answers[key] = answer
        return answer

    def _in_the_way(self, command: c.Command) -> tuple[int, ...]:
        """Directories that another client holds, of which the command changes names, mode, owner or
        attributes, or which it moves or removes."""
        fields: dict[str, Any] = {
            name: getattr(command, name, None)
            for name in ("parent", "name", "new_parent", "new_name", "ino")
        }
        involved: list[int | None] = []
        if isinstance(command, (c.SetAttr, c.SetXattr, c.RemoveXattr)):
            involved.append(fields["ino"])
        elif not isinstance(command, c.Tmpfile):
            involved += [fields["parent"], fields["new_parent"]]
        if isinstance(command, (c.Rmdir, c.Rename)):
            for parent, name in (("parent", "name"), ("new_parent", "new_name")):
                directory = self.state.nodes.get(fields[parent])
                involved.append(directory.children.get(fields[name]) if directory else None)
        held = self.state.held
        return tuple(
            ino
            for ino in dict.fromkeys(involved)
            if ino in held and self._client not in (0, held[ino][0])
        )

    def garbage(self) -> list[int]:
        """Known blobs that no byte of any kept version comes from."""
        kept = [state for index, state in self.snapshots.items() if index >= self.floor]
        named = {
            cell[0]
            for state in [*kept, self.state]
            for node in state.nodes.values()
            for cell in node.cells
            if cell is not None
        }
        return sorted(self.state.blobs.keys() - named)

    # --- names ----------------------------------------------------------------------------------

    def mkdir(self, command: c.Mkdir) -> Attr:
        parent = self._place(command.caller, command.parent, command.name)
        inherited = parent.mode & stat.S_ISGID
        node = self._make(parent, command.caller, stat.S_IFDIR | command.mode | inherited)
        return self._enter(command.parent, command.name, node)

    def create(self, command: c.Create) -> tuple[Attr, bool]:
        parent = self._search(command.caller, command.parent, command.name)
        if command.name in parent.children:
            if command.exclusive:
                raise Refused(errno.EEXIST)
            existing = parent.children[command.name]
            if self.state.nodes[existing].is_dir:
                raise Refused(errno.EISDIR)
            return self.state.attr(existing), False
        self._place(command.caller, command.parent, command.name)
        node = self._make(parent, command.caller, stat.S_IFREG | command.mode)
        return self._enter(command.parent, command.name, node), True

    def mknod(self, command: c.Mknod) -> Attr:
        parent = self._place(command.caller, command.parent, command.name)
        kind = stat.S_IFMT(command.mode) or stat.S_IFREG
        if kind == stat.S_IFDIR:
            raise Refused(errno.EPERM)
        devices = {stat.S_IFCHR, stat.S_IFBLK}
        if kind not in devices | {stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK}:
            raise Refused(errno.EINVAL)
        if kind in devices and command.caller.uid:
            raise Refused(errno.EPERM)
        node = self._make(parent, command.caller, kind | stat.S_IMODE(command.mode))
        if kind in devices:
            node.rdev = command.rdev
        return self._enter(command.parent, command.name, node)

    def symlink(self, command: c.Symlink) -> Attr:
        if command.target == b"":
            raise Refused(errno.ENOENT)
        if len(command.target) > 4095:
            raise Refused(errno.ENAMETOOLONG)
        parent = self._place(command.caller, command.parent, command.name)
        node = self._make(parent, command.caller, stat.S_IFLNK | 0o777)
        node.target = command.target
        return self._enter(command.parent, command.name, node)

    def tmpfile(self, command: c.Tmpfile) -> Attr:
        parent = self._search(command.caller, command.parent)
        self._may_add(command.caller, command.parent)
        node = self._make(parent, command.caller, stat.S_IFREG | command.mode)
        node.linkable = True
        return self.state.attr(self._number(node))

    def link(self, command: c.Link) -> Attr:
        node = self._node(command.ino)
        self._place(command.caller, command.new_parent, command.new_name)
        if node.is_dir:
            raise Refused(errno.EPERM)
        if not self.state.names(command.ino) and not node.linkable:
            raise Refused(errno.ENOENT)
        node.linkable = False
        self._change(node)
        self.state.nodes[command.new_parent].children[command.new_name] = command.ino
        self._list_changed(command.new_parent)
        return self.state.attr(command.ino)

    def unlink(self, command: c.Unlink) -> Attr:
        ino = self._victim(command.caller, command.parent, command.name)
        if self.state.nodes[ino].is_dir:
            raise Refused(errno.EISDIR)
        del self.state.nodes[command.parent].children[command.name]
        self._list_changed(command.parent)
        self._change(self.state.nodes[ino])
        return self.state.attr(ino)

    def rmdir(self, command: c.Rmdir) -> None:
        ino = self._victim(command.caller, command.parent, command.name)
        node = self.state.nodes[ino]
        if not node.is_dir:
            raise Refused(errno.ENOTDIR)
        if node.children:
            raise Refused(errno.ENOTEMPTY)
        del self.state.nodes[command.parent].children[command.name]
        self._list_changed(command.parent)
        self._change(node)

    def rename(self, command: c.Rename) -> tuple[Attr, Attr | None]:
        state, caller = self.state, command.caller
        exchange = command.flags == c.RENAME_EXCHANGE
        if command.flags not in (0, c.RENAME_EXCHANGE, c.RENAME_NOREPLACE):
            raise Refused(errno.EINVAL)
        old = self._search(caller, command.parent, command.name)
        new = self._search(caller, command.new_parent, command.new_name)
        ino = old.children.get(command.name)
        other = new.children.get(command.new_name)
        if ino is None:
            raise Refused(errno.ENOENT)
        if other is not None and command.flags == c.RENAME_NOREPLACE:
            raise Refused(errno.EEXIST)
        if other is None and exchange:
            raise Refused(errno.ENOENT)
        node = state.nodes[ino]
        if node.is_dir and ino in state.above(command.new_parent):
            raise Refused(errno.EINVAL)
        if other is not None and state.nodes[other].is_dir and other in state.above(command.parent):
            raise Refused(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if ino == other:
            return state.attr(ino), state.attr(ino)
        self._may_remove(caller, command.parent, node)
        if other is None:
            self._may_add(caller, command.new_parent)
        else:
            victim = state.nodes[other]
            self._may_remove(caller, command.new_parent, victim)
            if not exchange and node.is_dir != victim.is_dir:
                raise Refused(errno.ENOTDIR if node.is_dir else errno.EISDIR)
        if command.parent != command.new_parent:
            for moving in [node] + ([state.nodes[other]] if exchange and other else []):
                if moving.is_dir:
                    self._access(caller, moving, 2)
        if other is not None and not exchange and state.nodes[other].children:
            raise Refused(errno.ENOTEMPTY)
        del old.children[command.name]
        new.children[command.new_name] = ino
        if exchange and other is not None:
            old.children[command.name] = other
        self._list_changed(command.parent)
        self._list_changed(command.new_parent)
        self._change(node)
        if other is None:
            return state.attr(ino), None
        self._change(state.nodes[other])
        return state.attr(ino), state.attr(other)

    # --- inodes ---------------------------------------------------------------------------------

    def setattr(self, command: c.SetAttr) -> Attr:
        node, caller = self._node(command.ino), command.caller
        root, owner = caller.uid == 0, caller.uid == node.uid
        if command.size is not None:
            self._content(node)
        if not root and command.uid is not None and (not owner or command.uid != node.uid):
            raise Refused(errno.EPERM)
        if not root and command.gid is not None:
            known = caller.groups is not None
            mine = command.gid in (node.gid, caller.gid, *(caller.groups or ()))
            if not owner or (known and not mine):
                raise Refused(errno.EPERM)
        if command.mode is not None and stat.S_ISLNK(node.mode):
            raise Refused(errno.EOPNOTSUPP)
        if command.mode is not None and not (root or owner):
            raise Refused(errno.EPERM)
        times = {command.atime_ns, command.mtime_ns} - {None}
        if times - {c.TIME_NOW} and not (root or owner):
            raise Refused(errno.EPERM)
        if (times and not owner) or command.size is not None:
            self._access(caller, node, 2)

        if all(getattr(command, name) is None for name in _SETATTR_FIELDS):
            return self.state.attr(command.ino)
        chown = command.uid is not None or command.gid is not None
        if chown:
            self._drop_privilege(caller, node)
        node.uid = node.uid if command.uid is None else command.uid
        node.gid = node.gid if command.gid is None else command.gid
        if command.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | command.mode
            checked = caller.groups is not None and not root
            if checked and node.gid not in (caller.gid, *(caller.groups or ())):
                node.mode &= ~stat.S_ISGID
        if command.size is not None:
            self._resize(node, command.size)
            self._written(caller, node)
        if command.atime_ns is not None:
            node.atime = self._time(command.atime_ns)
        if command.mtime_ns is not None:
            node.mtime = self._time(command.mtime_ns)
        self._change(node)
        return self.state.attr(command.ino)

    def setxattr(self, command: c.SetXattr) -> None:
        node = self._xattr_node(command.caller, command.ino, command.name)
        if command.flags not in (0, c.XATTR_CREATE, c.XATTR_REPLACE):
            raise Refused(errno.EINVAL)
        if len(command.value) > 65536:
            raise Refused(errno.E2BIG)
        if command.name in node.xattrs and command.flags == c.XATTR_CREATE:
            raise Refused(errno.EEXIST)
        if command.name not in node.xattrs and command.flags == c.XATTR_REPLACE:
            raise Refused(errno.ENODATA)
        node.xattrs[command.name] = command.value
        self._change(node)

    def removexattr(self, command: c.RemoveXattr) -> None:
        node = self._xattr_node(command.caller, command.ino, command.name)
        if command.name not in node.xattrs:
            raise Refused(errno.ENODATA)
        del node.xattrs[command.name]
        self._change(node)

    # --- content --------------------------------------------------------------------------------

    def commit(self, command: c.Commit) -> Attr:
        node = self._node(command.ino)
        self._content(node)
        if command.base_version not in (None, node.version):
            raise Refused(errno.ESTALE)
        if command.cut is not None and command.cut > command.size:
            raise Refused(errno.EINVAL)
        cells = node.cells if command.cut is None else node.cells[: command.cut]
        base = len(cells) if command.append else 0
        grown = max(len(cells), base + command.size)
        size = grown if command.cut is None else command.size
        ends = [base + e.offset + e.length for e in command.extents]
        if max([size, *ends]) > (1 << 63) - 1:
            raise Refused(errno.EFBIG)
        if max(ends, default=0) > size:
            raise Refused(errno.EINVAL)
        self._learn_blobs(command)
        cells = (cells + [None] * size)[:size]
        for extent in command.extents:
            for i in range(extent.length):
                cells[base + extent.offset + i] = (
                    (extent.blob, extent.blob_offset + i) if extent.blob else None
                )
        node.cells = cells
        node.version = self._index
        self._change(node)
        node.mtime = self._now if command.mtime_ns is None else self._time(command.mtime_ns)
        self._written(command.caller, node)
        return self.state.attr(command.ino)

    def put_file(self, command: c.PutFile) -> Attr:
        parent = self._place(command.caller, command.parent, command.name)
        if any(e.offset + e.length > command.size for e in command.extents):
            raise Refused(errno.EINVAL)
        self._learn_blobs(command)
        if command.ino is not None:
            holder, _ = self.state.held.get(command.parent, (None, 0))
            mine = self.state.reserved.get(self._client, [])
            if holder != self._client or not any(command.ino in numbers for numbers in mine):
                raise Refused(errno.ESTALE)
            for numbers in mine:
                numbers.discard(command.ino)
            self.state.reserved[self._client] = [numbers for numbers in mine if numbers]
        mode = stat.S_IFREG | command.mode
        node = self._make(parent, command.caller, mode)
        node.cells = [None] * command.size
        for extent in command.extents:
            for i in range(extent.length):
                node.cells[extent.offset + i] = (
                    (extent.blob, extent.blob_offset + i) if extent.blob else None
                )
        if command.mtime_ns is not None:
            node.mtime = self._time(command.mtime_ns)
        return self._enter(command.parent, command.name, node, command.ino)

    def clone_range(self, command: c.CloneRange) -> tuple[Attr, int]:
        source, target = self._node(command.source), self._node(command.target)
        self._content(source)
        self._content(target)
        start = command.source_offset
        cells = source.cells[start : start + command.length]
        at = command.target_offset
        if source is target and set(range(start, start + len(cells))) & set(
            range(at, at + len(cells))
        ):
            raise Refused(errno.EINVAL)
        if at + len(cells) > (1 << 63) - 1:
            raise Refused(errno.EFBIG)
        if cells:
            if len(target.cells) < at:
                target.cells += [None] * (at - len(target.cells))
            target.cells[at : at + len(cells)] = cells
            target.version = self._index
            target.mtime = self._now
            self._change(target)
            self._written(command.caller, target)
        return self.state.attr(command.target), len(cells)

    # --- house-keeping --------------------------------------------------------------------------

    # --- delegations ----------------------------------------------------------------------------

    def delegate(self, command: c.Delegate) -> bool:
        if not self._node(command.ino).is_dir:
            raise Refused(errno.ENOTDIR)
        if not self._client:
            raise Refused(errno.EINVAL)
        if command.ino in self.state.held:
            return self.state.held[command.ino] == (self._client, 0)
        if command.ino != 1 and not self.state.names(command.ino):
            return False
        self.state.held[command.ino] = (self._client, 0)
        self.touched = ({command.ino}, {(command.ino, b"")})
        return True

    def undelegate(self, command: c.Undelegate) -> int:
        held = self.state.held
        return self._end([ino for ino in command.inos if held.get(ino, (None,))[0] == self._client])

    def recall(self, command: c.Recall) -> int:
        held = self.state.held
        recalled = [ino for ino in set(command.inos) if ino in held]
        for ino in recalled:
            client, before = held[ino]
            held[ino] = (client, before or self._index)
        self.touched = (set(recalled), set())
        return len(recalled)

    def revoke(self, command: c.Revoke) -> int:
        held = self.state.held
        ended = [ino for ino in command.inos if 0 < held.get(ino, (0, 0))[1] <= command.recalled]
        self.touched = (set(ended), set())
        return self._end(ended)

    def _end(self, inos: list[Ino]) -> int:
        for ino in set(inos):
            del self.state.held[ino]
        return len(set(inos))

    def reserve_inodes(self, _: c.ReserveInodes) -> int:
        if not self._client:
            raise Refused(errno.EINVAL)
        first = self.state.next_ino
        self.state.next_ino += 62
        reserved = self.state.reserved.setdefault(self._client, [])
        reserved.append(set(range(first, first + 62)))
        del reserved[:-4]
        return first

    # --- the cluster's own ----------------------------------------------------------------------

    def purge_orphans(self, command: c.PurgeOrphans) -> int:
        gone = {
            ino
            for ino in command.inos
            if ino in self.state.nodes and ino != 1 and not self.state.names(ino)
        }
        for ino in gone:
            del self.state.nodes[ino]
        return len(gone)

    def trim_history(self, command: c.TrimHistory) -> Any:
        self.floor = max(self.floor, min(command.until, self._index))
        return ANY

    def set_holders(self, command: c.SetHolders) -> BlobInfo:
        info = self.state.blobs.get(command.blob)
        if info is None:
            raise Refused(errno.ENOENT)
        holders = sorted({*info.holders, *command.add} - {*command.remove})
        if (
            info.is_in_tree
            or {*command.add} & {*command.remove}
            or (not holders and not command.lost)
        ):
            raise Refused(errno.EINVAL)
        self.state.blobs[command.blob] = info._replace(holders=tuple(holders))
        return self.state.blobs[command.blob]

    def forget_blobs(self, command: c.ForgetBlobs) -> int:
        forgotten = set(self.garbage()) & set(command.blobs)
        for blob in forgotten:
            del self.state.blobs[blob]
        return len(forgotten)

    # --- helpers --------------------------------------------------------------------------------

    def _node(self, ino: int) -> Node:
        if ino not in self.state.nodes:
            raise Refused(errno.ENOENT)
        return self.state.nodes[ino]

    def _access(self, caller: c.Caller, node: Node, wanted: int) -> None:
        if caller.groups is None or caller.uid == 0:
            return
        shift = 0
        if node.gid in (caller.gid, *caller.groups):
            shift = 3
        if node.uid == caller.uid:
            shift = 6
        if (node.mode >> shift) & wanted != wanted:
            raise Refused(errno.EACCES)

    def _search(self, caller: c.Caller, parent: int, name: bytes = b"") -> Node:
        node = self._node(parent)
        if not node.is_dir:
            raise Refused(errno.ENOTDIR)
        self._access(caller, node, 1)
        if len(name) > 255:
            raise Refused(errno.ENAMETOOLONG)
        return node

    def _may_add(self, caller: c.Caller, parent: int) -> None:
        if parent != 1 and not self.state.names(parent):
            raise Refused(errno.ENOENT)
        self._access(caller, self.state.nodes[parent], 3)

    def _may_remove(self, caller: c.Caller, parent: int, victim: Node) -> None:
        directory = self.state.nodes[parent]
        self._access(caller, directory, 3)
        if directory.mode & stat.S_ISVTX and caller.uid not in {0, victim.uid, directory.uid}:
            raise Refused(errno.EPERM)

    def _place(self, caller: c.Caller, parent: int, name: bytes) -> Node:
        node = self._search(caller, parent, name)
        if name in node.children:
            raise Refused(errno.EEXIST)
        self._may_add(caller, parent)
        return node

    def _victim(self, caller: c.Caller, parent: int, name: bytes) -> int:
        node = self._search(caller, parent, name)
        if name not in node.children:
            raise Refused(errno.ENOENT)
        ino = node.children[name]
        self._may_remove(caller, parent, self.state.nodes[ino])
        return ino

    def _make(self, parent: Node, caller: c.Caller, mode: int) -> Node:
        gid = parent.gid if parent.mode & stat.S_ISGID else caller.gid
        outsider = (
            caller.uid and caller.groups is not None and gid not in (caller.gid, *caller.groups)
        )
        if outsider and not stat.S_ISDIR(mode) and mode & 0o2010 == 0o2010:
            mode &= ~stat.S_ISGID
        return Node(mode, caller.uid, gid, born=self._now, index=self._index)

    def _number(self, node: Node) -> int:
        ino = self.state.next_ino
        self.state.next_ino += 1
        self.state.nodes[ino] = node
        return ino

    def _enter(self, parent: int, name: bytes, node: Node, ino: int | None = None) -> Attr:
        if ino is None:
            ino = self._number(node)
        else:
            self.state.nodes[ino] = node
        self.state.nodes[parent].children[name] = ino
        self._list_changed(parent)
        return self.state.attr(ino)

    def _change(self, node: Node) -> None:
        node.ctime, node.changed = self._now, self._index

    def _list_changed(self, ino: int) -> None:
        node = self.state.nodes[ino]
        node.mtime, node.version = self._now, self._index
        self._change(node)

    def _content(self, node: Node) -> None:
        if not node.is_file:
            raise Refused(errno.EISDIR if node.is_dir else errno.EINVAL)

    def _resize(self, node: Node, size: int) -> None:
        node.cells = (node.cells + [None] * size)[:size]
        node.version, node.mtime = self._index, self._now

    def _written(self, caller: c.Caller, node: Node) -> None:
        self._drop_privilege(caller, node)

    def _drop_privilege(self, caller: c.Caller, node: Node) -> None:
        if not caller.uid or node.is_dir:
            return
        keeps_group_mark = not node.mode & 0o10 and (
            caller.groups is None or node.gid in (caller.gid, *caller.groups)
        )
        node.mode &= ~(0o4000 if keeps_group_mark else 0o6000)

    def _time(self, value: int) -> int:
        return self._now if value == c.TIME_NOW else value

    def _xattr_node(self, caller: c.Caller, ino: int, name: bytes) -> Node:
        node = self._node(ino)
        if not 0 < len(name) < 256:
            raise Refused(errno.ERANGE)
        space, dot, rest = name.partition(b".")
        if not dot or not rest or space not in (b"user", b"trusted", b"security"):
            raise Refused(errno.EOPNOTSUPP)
        if space != b"user":
            if caller.groups is not None and caller.uid:
                raise Refused(errno.EPERM)
            return node
        if not (node.is_file or node.is_dir):
            raise Refused(errno.EPERM)
        if node.is_dir and node.mode & stat.S_ISVTX and caller.uid not in (0, node.uid):
            raise Refused(errno.EPERM)
        self._access(caller, node, 2)
        return node

    def _learn_blobs(self, command: c.Commit | c.PutFile) -> None:
        in_tree = [info for info in command.blobs if info.is_in_tree]
        if len(in_tree) != (command.content is not None):
            raise Refused(errno.EINVAL)
        for info in in_tree:
            assert command.content is not None
            size, checksum = len(command.content), blake3(command.content).digest()
            if (info.size, info.checksum) != (size, checksum):
                raise Refused(errno.EINVAL)
        told = {info.blob: info for info in command.blobs}
        named = {extent.blob for extent in command.extents if extent.blob}
        if len(told) < len(command.blobs) or not set(told) <= named:
            raise Refused(errno.EINVAL)
        for blob in named:
            known = self.state.blobs.get(blob)
            described = told.get(blob)
            if known is None:
                if described is None or not described.holders:
                    raise Refused(errno.EINVAL)
                self.state.blobs[blob] = described
            elif described is not None and described[:3] != known[:3]:
                raise Refused(errno.EINVAL)
        for extent in command.extents:
            if extent.blob:
                size = self.state.blobs[BlobId(extent.blob)].size
                if extent.blob_offset + extent.length > size:
                    raise Refused(errno.EINVAL)


class _Any:
    """Equal to everything: the model does not say."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # never a key


ANY = _Any()

_SETATTR_FIELDS = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")

_COMMANDS: dict[type[Any], Callable[[TreeModel, Any], Any]] = {
    c.Mkdir: TreeModel.mkdir,
    c.Create: TreeModel.create,
    c.Mknod: TreeModel.mknod,
    c.PutFile: TreeModel.put_file,
    c.Symlink: TreeModel.symlink,
    c.Tmpfile: TreeModel.tmpfile,
    c.Link: TreeModel.link,
    c.Unlink: TreeModel.unlink,
    c.Rmdir: TreeModel.rmdir,
    c.Rename: TreeModel.rename,
    c.SetAttr: TreeModel.setattr,
    c.SetXattr: TreeModel.setxattr,
    c.RemoveXattr: TreeModel.removexattr,
    c.Commit: TreeModel.commit,
    c.CloneRange: TreeModel.clone_range,
    c.PurgeOrphans: TreeModel.purge_orphans,
    c.TrimHistory: TreeModel.trim_history,
    c.SetHolders: TreeModel.set_holders,
    c.ForgetBlobs: TreeModel.forget_blobs,
    c.Delegate: TreeModel.delegate,
    c.Undelegate: TreeModel.undelegate,
    c.Recall: TreeModel.recall,
    c.Revoke: TreeModel.revoke,
    c.ReserveInodes: TreeModel.reserve_inodes,
}
