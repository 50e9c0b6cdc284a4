"""Which changes of names and attributes this mount may make by itself, and what they come to.

Called by `vfs.Vfs` only. Everything here answers at once: done, then it is in `queued.Queue`; or
not, and the cluster is asked as ever, which costs a question and is never wrong. So every doubt is
a "no": who is not allowed to, what exists already, what is open, what has another name elsewhere.

What must be so for a yes, of each directory whose names change: it is delegated to this mount,
which has a lease and is connected; no command of this mount is under way in it; and what is there
under the name is known. Rules and their order are those of the tree (pydi_node/tree/names.py),
which looks at all of it again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from pydi_fs.client import Client
from pydi_fs.vfs.cache import ABSENT, NameCache
from pydi_fs.vfs.delegations import Delegations
from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.posix import permitted
from pydi_fs.vfs.queued import Queue
from pydi_node.commands import (
    RENAME_NOREPLACE,
    TIME_NOW,
    Caller,
    Mkdir,
    Rename,
    Rmdir,
    SetAttr,
    Symlink,
    Unlink,
    new_file_gid,
)
from pydi_node.ids import Ino, LogIndex, TimeNs
from pydi_node.records import (
    ACCESS_ACL,
    DEFAULT_ACL,
    NAME_MAX_BYTES,
    SYMLINK_MAX_BYTES,
    Attr,
)

_SET_ID = stat.S_ISUID | stat.S_ISGID
SUBDIRECTORIES_MAX = 1 << 30  # half of what the tree allows


class Changes:
    """See the module.

    files  that are open here.
    known  the inode behind a name, as `NameCache.name`.
    """

    def __init__(
        self,
        client: Client,
        cache: NameCache,
        delegations: Delegations,
        queue: Queue,
        clock: Callable[[], int],
        *,
        files: Mapping[Ino, OpenFile],
        known: Callable[[Ino, bytes], Ino | None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._delegations = delegations
        self._queue = queue
        self._clock = clock
        self._files = files
        self._known = known

    def unlink(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        directory = self._directory(caller, parent)
        if directory is None:
            return False
        victim = self._victim(caller, directory, name)
        if victim is None:
            return False
        now = self._now(directory, victim)
        self._delegations.gone_here(parent, name)
        self._delegations.own.forget(victim.ino)
        self._queue.add(
            Unlink(caller, parent, name),
            (parent,),
            {(parent, name): ABSENT},
            (_changed(directory, now), _without_name(victim, now)),
            now,
        )
        return True

    def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> bool:
        if flags not in (0, RENAME_NOREPLACE) or len(new_name) > NAME_MAX_BYTES:
            return False
        directory = self._directory(caller, parent)
        new_directory = self._directory(caller, new_parent)
        if directory is None or new_directory is None:
            return False
        moved = self._entry(parent, name)
        if moved is None or not _may_remove(caller, directory, moved):
            return False
        if moved.is_dir:
            # One that moves to another directory may be above it, and changes its "..".
            if parent != new_parent or not self._delegations.holds(moved.ino):
                return False
        elif (file := self._files.get(moved.ino)) is not None and (file.dirty or file.busy):
            return False  # published first: `Vfs._publish_before_rename`
        victim: Attr | None = None
        if not self._is_absent(new_parent, new_name):
            victim = self._victim(caller, new_directory, new_name)
            if victim is None or flags or moved.is_dir or victim.ino == moved.ino:
                return False
        now = self._now(directory, new_directory, moved)
        attrs = [_changed(directory, now), moved._replace(ctime_ns=now)]
        if parent != new_parent:
            attrs.append(_changed(new_directory, now))
        if victim is not None:
            attrs.append(_without_name(victim, now))
            self._delegations.own.forget(victim.ino)
        self._delegations.gone_here(parent, name)
        self._delegations.made_here(new_parent, new_name)
        self._delegations.own.moved(new_parent, moved.ino)
        # A directory that is somebody else's by then would not move: it is given back later.
        relied_on = (parent, new_parent, moved.ino) if moved.is_dir else (parent, new_parent)
        self._queue.add(
            Rename(caller, parent, name, new_parent, new_name, flags),
            tuple(dict.fromkeys(relied_on)),
            {(parent, name): ABSENT, (new_parent, new_name): moved.ino},
            attrs,
            now,
        )
        return True

    def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int, umask: int) -> Attr | None:
        """The new directory, in which files can be made at once."""
        directory = self._directory_for(caller, parent, name)
        if directory is None or directory.nlink >= SUBDIRECTORIES_MAX:
            return None
        ino = self._delegations.numbers.take()
        if ino is None:
            return None
        mode = stat.S_IFDIR | mode & ~umask | directory.mode & stat.S_ISGID
        attr = self._new(ino, mode, 2, caller, directory)
        self._delegations.made_here(parent, name)
        self._delegations.own.note(parent, ino)
        self._delegations.hold_new(attr)
        self._queue.add(
            Mkdir(caller, parent, name, stat.S_IMODE(mode), ino=ino),
            (parent,),
            {(parent, name): ino},
            (_changed(directory, attr.mtime_ns, 1), attr),
            attr.mtime_ns,
            made=ino,
        )
        return attr

    def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Attr | None:
        if not 1 <= len(target) <= SYMLINK_MAX_BYTES:
            return None
        directory = self._directory_for(caller, parent, name)
        ino = None if directory is None else self._delegations.numbers.take()
        if directory is None or ino is None:
            return None
        attr = self._new(ino, stat.S_IFLNK | 0o777, 1, caller, directory, len(target))
        self._delegations.made_here(parent, name)
        self._delegations.own.note(parent, ino)
        self._queue.add(
            Symlink(caller, parent, name, target, ino),
            (parent,),
            {(parent, name): ino},
            (_changed(directory, attr.mtime_ns), attr),
            attr.mtime_ns,
            made=ino,
        )
        return attr

    def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        directory = self._directory(caller, parent)
        victim = None if directory is None else self._entry(parent, name)
        if directory is None or victim is None or not victim.is_dir:
            return False
        if not self._delegations.is_empty(victim.ino):
            return False
        if not _may_remove(caller, directory, victim):
            return False
        now = self._now(directory, victim)
        self._delegations.gone_here(parent, name)
        self._delegations.leave(victim.ino)
        self._delegations.own.forget(victim.ino)
        self._queue.add(
            Rmdir(caller, parent, name),
            (parent, victim.ino),
            {(parent, name): ABSENT},
            (_changed(directory, now, -1), victim._replace(nlink=0, ctime_ns=now)),
            now,
        )
        return True

    def setattr(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
    ) -> bool:
        """chmod(2), chown(2), utimensat(2) of what nobody else can know of."""
        parent = self._delegations.own.parent_of(ino)
        if parent is None or not self._may_tell_later(parent) or not self._is_settled(ino):
            return False
        attr = self._shown(ino)
        # The same mode bits again are no question of what the caller may, nor set-id bits that go.
        if attr is None or not attr.nlink or attr.mode & ACCESS_ACL or attr.mode & _SET_ID:
            return False
        if caller.uid not in (0, attr.uid) or (mode is not None and mode & _SET_ID):
            return False
        if caller.uid and (uid not in (None, attr.uid) or gid not in (None, attr.gid)):
            return False
        if mode is not None and attr.is_symlink:
            return False
        now = self._now(attr)
        changed = attr._replace(
            mode=attr.mode if mode is None else attr.mode & ~0o7777 | mode,
            uid=attr.uid if uid is None else uid,
            gid=attr.gid if gid is None else gid,
            atime_ns=_time(atime_ns, attr.atime_ns, now),
            mtime_ns=_time(mtime_ns, attr.mtime_ns, now),
            ctime_ns=now,
        )
        command = SetAttr(caller, ino, mode, uid, gid, None, atime_ns, mtime_ns)
        # Its directory must be this mount's then; it is nobody else's, if it is one itself.
        relied_on = (parent, ino) if attr.is_dir else (parent,)
        self._queue.add(command, relied_on, {}, (changed,), now)
        return True

    # --- what must be so -------------------------------------------------------------------------

    def _directory(self, caller: Caller, ino: Ino) -> Attr | None:
        """A directory whose names the caller may change, and this mount by itself."""
        if not self._may_tell_later(ino):
            return None
        attr = self._shown(ino)
        if attr is None or not attr.nlink:
            return None
        if caller.groups is None:  # its kernel has looked
            return attr
        if attr.mode & ACCESS_ACL or not permitted(attr, caller, os.W_OK | os.X_OK):
            return None
        return attr

    def _may_tell_later(self, directory: Ino) -> bool:
        """What is done there."""
        if not self._delegations.holds(directory) or self._queue.is_full:
            return False
        return self._client.lease_s() > 0 and self._client.is_connected

    def _is_settled(self, ino: Ino) -> bool:
        """No command, and no content, is on its way or will be that its attributes are part of."""
        if ino in self._delegations.pending or self._delegations.is_busy(ino):
            return False
        if any(create.parent == ino for create in self._delegations.pending.values()):
            return False  # the file's command sets the times of its directory
        file = self._files.get(ino)
        return file is None or not (file.is_untold or file.busy)

    def _directory_for(self, caller: Caller, ino: Ino, name: bytes) -> Attr | None:
        """Likewise, for a new name that is not there; what is new there gets no list of its own."""
        directory = self._directory(caller, ino)
        if directory is None or directory.mode & DEFAULT_ACL or not self._is_absent(ino, name):
            return None
        return directory

    def _is_absent(self, parent: Ino, name: bytes) -> bool:
        known = self._known(parent, name)
        return known == ABSENT if known is not None else self._delegations.is_absent(parent, name)

    def _entry(self, parent: Ino, name: bytes) -> Attr | None:
        """What has this name, and no other; None: it is not known well enough."""
        if self._delegations.is_naming(parent, name):
            return None
        ino = self._known(parent, name)
        if not ino or ino in self._delegations.pending or self._delegations.is_busy(ino):
            return None
        attr = self._shown(ino)
        if attr is None or (attr.nlink != 1 and not attr.is_dir):
            return None
        return attr

    def _victim(self, caller: Caller, directory: Attr, name: bytes) -> Attr | None:
        """What is no directory and may go, with its last name. A node hears of opens first."""
        victim = self._entry(directory.ino, name)
        if victim is None or victim.is_dir or victim.ino in self._files:
            return None
        return victim if _may_remove(caller, directory, victim) else None

    def _shown(self, ino: Ino) -> Attr | None:
        attr = self._queue.attr(ino) or self._cache.attr(ino) or self._delegations.directory(ino)
        return None if attr is None else self._delegations.overlay(attr)

    def _now(self, *changed: Attr) -> TimeNs:
        """No earlier than what these have: another machine's clock may be ahead."""
        return TimeNs(max(self._clock(), *(attr.ctime_ns for attr in changed)))

    def _new(
        self, ino: Ino, mode: int, nlink: int, caller: Caller, directory: Attr, size: int = 0
    ) -> Attr:
        now = self._now(directory)
        gid = new_file_gid(directory.mode, directory.gid, caller)
        nothing = LogIndex(0)
        self._cache.answers(self._cache.moment)
        self._cache.put_xattr_names(ino, ())
        return Attr(
            ino, mode, nlink, caller.uid, gid, 0, size, 0, now, now, now, now, nothing, nothing
        )


def _may_remove(caller: Caller, directory: Attr, victim: Attr) -> bool:
    """As far as the sticky bit says."""
    return not directory.mode & stat.S_ISVTX or caller.uid in (0, victim.uid, directory.uid)


def _changed(directory: Attr, now: TimeNs, subdirectories: int = 0) -> Attr:
    return directory._replace(nlink=directory.nlink + subdirectories, mtime_ns=now, ctime_ns=now)


def _without_name(victim: Attr, now: TimeNs) -> Attr:
    return victim._replace(nlink=victim.nlink - 1, ctime_ns=now)


def _time(given_ns: int | None, before_ns: TimeNs, now: TimeNs) -> TimeNs:
    if given_ns is None:
        return before_ns
    return now if given_ns == TIME_NOW else TimeNs(given_ns)
