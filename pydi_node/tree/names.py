"""Commands on names: create, link, remove, rename.

Each function takes the Store and its command, checks everything first, changes rows only after the
last check, and returns the Result; FileError is the outcome that changed nothing. The order of the
checks is Linux' (fs/namei.c: filename_create, may_create, may_delete, do_renameat2), so that a
program sees the errno it sees on a local disk.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from pydi_node.commands import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Caller,
    Create,
    Link,
    Mkdir,
    Mknod,
    PutFile,
    Rename,
    Rmdir,
    Symlink,
    Tmpfile,
    Unlink,
    new_file_gid,
)
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, Ino
from pydi_node.records import NAME_MAX_BYTES, SYMLINK_MAX_BYTES, Attr, Result, Touched
from pydi_node.tree import acl, content, delegations
from pydi_node.tree.inodes import time_or_now
from pydi_node.tree.permissions import (
    SEARCH,
    WRITE,
    is_member,
    require_access,
    require_inode,
    require_not_sticky,
)
from pydi_node.tree.store import Delegation, Entry, Inode, Store

LINKS_MAX: Final = (1 << 31) - 1  # st_nlink is a signed 32 bit number in some programs

_NO_PARENT: Final = Ino(0)


def mkdir(store: Store, command: Mkdir) -> Result:
    parent = _directory_for_new_name(store, command.parent, command.name, command.caller)
    if parent.nlink >= LINKS_MAX:
        raise FileError(errno.EMLINK)
    delegations.require_room(store, command.ino)
    delegations.take_number(store, parent, command.ino)
    mode = stat.S_IFDIR | command.mode
    if parent.mode & stat.S_ISGID:
        mode |= stat.S_ISGID
    inode = store.new_inode(
        mode,
        command.caller.uid,
        new_file_gid(parent.mode, parent.gid, command.caller),
        parent=parent.ino,
        ino=command.ino,
    )
    if command.ino is not None:
        store.set_delegation(inode.ino, Delegation(store.client, 0))
    acl.settle(store, parent, inode, command.umask)
    store.amend(parent)
    parent.nlink += 1
    return _named(store, parent, command.name, inode)


def create(store: Store, command: Create) -> Result:
    caller = command.caller
    parent = _directory(store, command.parent, caller, command.name)
    entry = store.entry(command.parent, command.name)
    if entry is not None:
        if command.exclusive:
            raise FileError(errno.EEXIST)
        existing = require_inode(store, entry.ino)
        if stat.S_ISDIR(existing.mode):
            raise FileError(errno.EISDIR)
        return Result(0, (existing.attr(), False))
    _require_addable(parent, caller)
    inode = _new_node(store, parent, caller, stat.S_IFREG | command.mode, command.umask)
    attr, touched, directories = _name(store, parent, command.name, inode)
    return Result(0, (attr, True), touched, directories)


def put_file(store: Store, command: PutFile) -> Result:
    caller = command.caller
    parent = _directory_for_new_name(store, command.parent, command.name, caller)
    if any(extent.offset + extent.length > command.size for extent in command.extents):
        raise FileError(errno.EINVAL)
    content.check_blobs(store, command)
    delegations.take_number(store, parent, command.ino)
    inode = _new_node(store, parent, caller, stat.S_IFREG | command.mode, 0, ino=command.ino)
    _, touched, directories = _name(store, parent, command.name, inode)
    content.take_blobs(store, inode, command)
    content.rewrite(store, inode, command.extents, None)
    inode.size = command.size
    if command.mtime_ns is not None:
        inode.mtime_ns = time_or_now(command.mtime_ns, store.now_ns)
    if command.atime_ns is not None:
        inode.atime_ns = time_or_now(command.atime_ns, store.now_ns)
    if command.ctime_ns is not None:
        inode.ctime_ns = time_or_now(command.ctime_ns, store.now_ns)
    return Result(0, inode.attr(), touched, directories)


def mknod(store: Store, command: Mknod) -> Result:
    caller = command.caller
    parent = _directory_for_new_name(store, command.parent, command.name, caller)
    kind = stat.S_IFMT(command.mode) or stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise FileError(errno.EPERM)
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        raise FileError(errno.EINVAL)
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    if is_device and caller.uid != 0:
        raise FileError(errno.EPERM)
    rdev = command.rdev if is_device else 0
    mode = kind | stat.S_IMODE(command.mode)
    inode = _new_node(store, parent, caller, mode, command.umask, rdev)
    return _named(store, parent, command.name, inode)


def symlink(store: Store, command: Symlink) -> Result:
    if not command.target:
        raise FileError(errno.ENOENT)
    if len(command.target) > SYMLINK_MAX_BYTES:
        raise FileError(errno.ENAMETOOLONG)
    caller = command.caller
    parent = _directory_for_new_name(store, command.parent, command.name, caller)
    delegations.take_number(store, parent, command.ino)
    inode = store.new_inode(
        stat.S_IFLNK | 0o777,
        caller.uid,
        new_file_gid(parent.mode, parent.gid, caller),
        parent=_NO_PARENT,
        target=command.target,
        ino=command.ino,
    )
    return _named(store, parent, command.name, inode)


def tmpfile(store: Store, command: Tmpfile) -> Result:
    parent = _directory(store, command.parent, command.caller)
    _require_addable(parent, command.caller)
    mode = stat.S_IFREG | command.mode
    inode = _new_node(store, parent, command.caller, mode, command.umask)
    inode.nlink = 0
    store.add_orphan(inode.ino, linkable=True)
    return Result(0, inode.attr())


def link(store: Store, command: Link) -> Result:
    inode = require_inode(store, command.ino)
    parent = _directory_for_new_name(store, command.new_parent, command.new_name, command.caller)
    if stat.S_ISDIR(inode.mode):
        raise FileError(errno.EPERM)
    if inode.nlink == 0 and not store.is_linkable_orphan(inode.ino):
        raise FileError(errno.ENOENT)
    if inode.nlink >= LINKS_MAX:
        raise FileError(errno.EMLINK)
    store.amend(inode)
    if inode.nlink == 0:
        store.remove_orphan(inode.ino)
    inode.nlink += 1
    inode.ctime_ns = store.now_ns
    store.note_moved(inode)
    result = _named(store, parent, command.new_name, inode)
    return result._replace(touched=Touched((parent.ino, inode.ino), result.touched.entries))


def unlink(store: Store, command: Unlink) -> Result:
    parent, entry, victim = _victim(store, command.parent, command.name, command.caller)
    if stat.S_ISDIR(victim.mode):
        raise FileError(errno.EISDIR)
    store.remove_entry(entry)
    _lose_name(store, victim)
    store.touch_directory(parent)
    return Result(0, victim.attr(), _touched((parent, victim), entry), (parent.attr(),))


def rmdir(store: Store, command: Rmdir) -> Result:
    parent, entry, victim = _victim(store, command.parent, command.name, command.caller)
    if not stat.S_ISDIR(victim.mode):
        raise FileError(errno.ENOTDIR)
    if not store.is_empty(victim.ino):
        raise FileError(errno.ENOTEMPTY)
    store.remove_entry(entry)
    _lose_name(store, victim)
    store.amend(parent)
    parent.nlink -= 1
    store.touch_directory(parent)
    return Result(0, None, _touched((parent, victim), entry), (parent.attr(),))


def rename(store: Store, command: Rename) -> Result:
    caller = command.caller
    flags = command.flags
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise FileError(errno.EINVAL)  # whiteouts belong to overlay file systems
    parent = _directory(store, command.parent, caller, command.name)
    new_parent = _directory(store, command.new_parent, caller, command.new_name)
    entry = store.entry(parent.ino, command.name)
    if entry is None:
        raise FileError(errno.ENOENT)
    new_entry = store.entry(new_parent.ino, command.new_name)
    if new_entry is not None and flags == RENAME_NOREPLACE:
        raise FileError(errno.EEXIST)
    if new_entry is None and flags == RENAME_EXCHANGE:
        raise FileError(errno.ENOENT)
    moved = require_inode(store, entry.ino)
    other = None if new_entry is None else require_inode(store, new_entry.ino)
    if parent is not new_parent:
        if stat.S_ISDIR(moved.mode) and _is_within(store, new_parent, moved):
            raise FileError(errno.EINVAL)
        if other is not None and stat.S_ISDIR(other.mode) and _is_within(store, parent, other):
            exchange = flags == RENAME_EXCHANGE
            raise FileError(errno.EINVAL if exchange else errno.ENOTEMPTY)
    if other is moved:
        return Result(0, (moved.attr(), other.attr()))
    _require_removable(parent, moved, caller)
    if other is None:
        _require_addable(new_parent, caller)
    else:
        _require_removable(new_parent, other, caller)
        if flags != RENAME_EXCHANGE:
            _require_same_kind(moved, other)
    if parent is not new_parent:
        _require_movable_parent(moved, caller)
        if other is not None and flags == RENAME_EXCHANGE:
            _require_movable_parent(other, caller)
    if new_entry is None or other is None:
        return _move(store, entry, moved, parent, new_parent, command.new_name)
    if flags == RENAME_EXCHANGE:
        return _exchange(store, (entry, moved, parent), (new_entry, other, new_parent))
    return _replace(store, (entry, moved, parent), (new_entry, other, new_parent))


# --- the three outcomes of rename -----------------------------------------------------------------


def _move(
    store: Store, entry: Entry, moved: Inode, parent: Inode, new_parent: Inode, new_name: bytes
) -> Result:
    _require_link_room(moved, parent, new_parent)
    store.remove_entry(entry)
    store.add_entry(new_parent.ino, new_name, moved.ino)
    _arrive(store, moved, parent, new_parent)
    _count_subdirectories(store, parent, new_parent, int(stat.S_ISDIR(moved.mode)))
    touched = Touched(
        _unique(parent, new_parent, moved),
        ((parent.ino, entry.name), (new_parent.ino, new_name)),
    )
    return Result(0, (moved.attr(), None), touched, _attrs(parent, new_parent))


def _replace(
    store: Store, source: tuple[Entry, Inode, Inode], target: tuple[Entry, Inode, Inode]
) -> Result:
    entry, moved, parent = source
    new_entry, victim, new_parent = target
    if stat.S_ISDIR(victim.mode) and not store.is_empty(victim.ino):
        raise FileError(errno.ENOTEMPTY)
    store.remove_entry(entry)
    store.retarget_entry(new_entry, moved.ino)
    _arrive(store, moved, parent, new_parent)
    if stat.S_ISDIR(victim.mode):
        store.amend(new_parent)
        new_parent.nlink -= 1
    _lose_name(store, victim)
    _count_subdirectories(store, parent, new_parent, int(stat.S_ISDIR(moved.mode)))
    touched = Touched(
        _unique(parent, new_parent, moved, victim),
        ((parent.ino, entry.name), (new_parent.ino, new_entry.name)),
    )
    return Result(0, (moved.attr(), victim.attr()), touched, _attrs(parent, new_parent))


def _exchange(
    store: Store, source: tuple[Entry, Inode, Inode], target: tuple[Entry, Inode, Inode]
) -> Result:
    entry, moved, parent = source
    new_entry, other, new_parent = target
    surplus = int(stat.S_ISDIR(moved.mode)) - int(stat.S_ISDIR(other.mode))
    if surplus > 0:
        _require_link_room(moved, parent, new_parent)
    elif surplus < 0:
        _require_link_room(other, new_parent, parent)
    store.retarget_entry(entry, other.ino)
    store.retarget_entry(new_entry, moved.ino)
    _arrive(store, moved, parent, new_parent)
    _arrive(store, other, new_parent, parent)
    _count_subdirectories(store, parent, new_parent, surplus)
    touched = Touched(
        _unique(parent, new_parent, moved, other),
        ((parent.ino, entry.name), (new_parent.ino, new_entry.name)),
    )
    return Result(0, (moved.attr(), other.attr()), touched, _attrs(parent, new_parent))


def _arrive(store: Store, moved: Inode, parent: Inode, new_parent: Inode) -> None:
    """Change time of the moved inode, its ".." if it is a directory, times of both directories."""
    store.amend(moved)
    moved.ctime_ns = store.now_ns
    if stat.S_ISDIR(moved.mode):
        moved.parent = new_parent.ino
    if parent is not new_parent:
        store.note_moved(moved)
    store.touch_directory(parent)
    store.touch_directory(new_parent)


def _count_subdirectories(store: Store, parent: Inode, new_parent: Inode, moved: int) -> None:
    """``moved`` subdirectories (may be negative) went from one directory to the other."""
    if moved == 0 or parent is new_parent:
        return
    store.amend(parent)
    store.amend(new_parent)
    parent.nlink -= moved
    new_parent.nlink += moved


# --- checks ---------------------------------------------------------------------------------------


def _directory(store: Store, ino: Ino, caller: Caller, *names: bytes) -> Inode:
    """The directory in which the caller looks up ``names``."""
    directory = require_inode(store, ino)
    if not stat.S_ISDIR(directory.mode):
        raise FileError(errno.ENOTDIR)
    require_access(directory, caller, SEARCH)
    for name in names:
        if len(name) > NAME_MAX_BYTES:
            raise FileError(errno.ENAMETOOLONG)
    return directory


def _require_addable(directory: Inode, caller: Caller) -> None:
    """Linux' may_create: the directory still has a name, and the caller may write to it."""
    if directory.nlink == 0:
        raise FileError(errno.ENOENT)
    require_access(directory, caller, WRITE | SEARCH)


def _require_removable(directory: Inode, victim: Inode, caller: Caller) -> None:
    """Linux' may_delete, without what depends on the victim's kind."""
    require_access(directory, caller, WRITE | SEARCH)
    require_not_sticky(directory, victim, caller)


def _require_same_kind(moved: Inode, victim: Inode) -> None:
    """Only a directory replaces a directory."""
    if stat.S_ISDIR(moved.mode) and not stat.S_ISDIR(victim.mode):
        raise FileError(errno.ENOTDIR)
    if stat.S_ISDIR(victim.mode) and not stat.S_ISDIR(moved.mode):
        raise FileError(errno.EISDIR)


def _require_movable_parent(moved: Inode, caller: Caller) -> None:
    """A directory that gets another parent changes its own "..": that is a write to it."""
    if stat.S_ISDIR(moved.mode):
        require_access(moved, caller, WRITE)


def _require_link_room(moved: Inode, parent: Inode, to: Inode) -> None:
    if stat.S_ISDIR(moved.mode) and parent is not to and to.nlink >= LINKS_MAX:
        raise FileError(errno.EMLINK)


def _directory_for_new_name(store: Store, ino: Ino, name: bytes, caller: Caller) -> Inode:
    directory = _directory(store, ino, caller, name)
    if store.entry(ino, name) is not None:
        raise FileError(errno.EEXIST)
    _require_addable(directory, caller)
    return directory


def _victim(store: Store, ino: Ino, name: bytes, caller: Caller) -> tuple[Inode, Entry, Inode]:
    """Directory, entry and inode of a name that the caller may remove, whatever its kind."""
    directory = _directory(store, ino, caller, name)
    entry = store.entry(ino, name)
    if entry is None:
        raise FileError(errno.ENOENT)
    victim = require_inode(store, entry.ino)
    _require_removable(directory, victim, caller)
    return directory, entry, victim


def _is_within(store: Store, directory: Inode, ancestor: Inode) -> bool:
    """Whether ``directory`` is ``ancestor`` or somewhere below it. A removed directory is below
    nothing: its chain ends at once."""
    while directory.ino != ancestor.ino:
        if directory.ino == ROOT_INO or directory.nlink == 0:
            return False
        above = store.inode(directory.parent)
        assert above is not None, directory
        directory = above
    return True


# --- changes --------------------------------------------------------------------------------------


def _new_node(
    store: Store,
    parent: Inode,
    caller: Caller,
    mode: int,
    umask: int,
    rdev: int = 0,
    ino: Ino | None = None,
) -> Inode:
    """A new inode that is neither directory nor symlink."""
    gid = new_file_gid(parent.mode, parent.gid, caller)
    group_runs = stat.S_ISGID | stat.S_IXGRP
    if mode & group_runs == group_runs and not is_member(caller, gid):
        # Else anybody who may write here could make a program of the directory's group.
        mode &= ~stat.S_ISGID
    inode = store.new_inode(mode, caller.uid, gid, parent=_NO_PARENT, rdev=rdev, ino=ino)
    acl.settle(store, parent, inode, umask)
    return inode


def _named(store: Store, parent: Inode, name: bytes, inode: Inode) -> Result:
    """``inode`` has the new name, and is the value."""
    return Result(0, *_name(store, parent, name, inode))


def _name(
    store: Store, parent: Inode, name: bytes, inode: Inode
) -> tuple[Attr, Touched, tuple[Attr]]:
    """``inode`` has the new name; the directory's times say so. Its attributes, what is touched,
    and the directory's."""
    store.add_entry(parent.ino, name, inode.ino)
    store.touch_directory(parent)
    touched = Touched((parent.ino,), ((parent.ino, name),))
    return inode.attr(), touched, (parent.attr(),)


def _lose_name(store: Store, victim: Inode) -> None:
    """One name less; without the last the inode is an orphan, readable until it is purged."""
    store.amend(victim)
    victim.ctime_ns = store.now_ns
    if stat.S_ISDIR(victim.mode):
        victim.nlink = 0
        victim.parent = _NO_PARENT
        store.end_delegation(victim.ino)
    else:
        victim.nlink -= 1
        if victim.nlink > 0:
            store.note_moved(victim)
    if victim.nlink == 0:
        store.add_orphan(victim.ino, linkable=False)


def _touched(inodes: tuple[Inode, ...], entry: Entry) -> Touched:
    return Touched(_unique(*inodes), ((entry.parent, entry.name),))


def _attrs(parent: Inode, new_parent: Inode) -> tuple[Attr, ...]:
    """Of one directory or two."""
    if parent is new_parent:
        return (parent.attr(),)
    return (parent.attr(), new_parent.attr())


def _unique(*inodes: Inode) -> tuple[Ino, ...]:
    return tuple(dict.fromkeys(inode.ino for inode in inodes))
