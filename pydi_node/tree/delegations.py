"""Delegated directories: one client alone may change their names, until it gives them back.

A mount that holds one answers "create" by itself and tells the cluster later; docs/architecture.md,
"Delegated directories", has the whole story. Here is what every node must agree on: who holds what,
which commands of others have to wait for that, and which inode numbers a holder may give to its new
files. Same contract as names.py.

::

    none ──Delegate──► held ──Recall──► recalled ──Undelegate (its client), Revoke──► none
                         └──Undelegate, the directory goes, its client's session expires──► none
"""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

from pydi_node import commands
from pydi_node.commands import (
    INODES_RESERVED,
    RESERVATIONS_PER_CLIENT_MAX,
    Command,
    Delegate,
    Recall,
    Rename,
    ReserveInodes,
    Revoke,
    Rmdir,
    Undelegate,
)
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.records import EVERY_NAME, Result, Touched
from pydi_node.tree.permissions import require_inode
from pydi_node.tree.store import Delegation, Inode, Store

# A mount holds those in which it made a file lately. In all there are no more than one command's
# ``touched`` may name on the wire (messages.TOUCHED_MAX): a session that expires ends all of its.
DELEGATIONS_PER_CLIENT_MAX: Final = 4096
DELEGATIONS_MAX: Final = 16384
# Of them, for directories that a holder makes in those that it has: a mount, which holds far less
# than its share, can't be refused these.
KEPT_FOR_NEW: Final = 4096

_ALL_USED: Final = (1 << INODES_RESERVED) - 1

# Fields of commands that name a directory whose names, attributes or xattrs they change.
_DIRECTORIES_OF: Final[dict[type[Any], tuple[str, ...]]] = {
    commands.Mkdir: ("parent",),
    commands.Create: ("parent",),
    commands.PutFile: ("parent",),
    commands.Mknod: ("parent",),
    commands.Symlink: ("parent",),
    commands.Link: ("new_parent",),
    commands.Unlink: ("parent",),
    commands.Rmdir: ("parent",),
    commands.Rename: ("parent", "new_parent"),
    commands.SetAttr: ("ino",),
    commands.SetXattr: ("ino",),
    commands.RemoveXattr: ("ino",),
}


def changed_directories(command: Command) -> tuple[Ino, ...]:
    """Directories, as far as they are some, whose names, attributes or xattrs a command changes."""
    return tuple(getattr(command, name) for name in _DIRECTORIES_OF.get(type(command), ()))


def in_the_way(store: Store, command: Command) -> tuple[Ino, ...]:
    """Directories that others hold and would have to give back before this command is executed."""
    held = store.delegations
    if not held or store.client == 0:
        return ()
    involved = list(changed_directories(command))
    if isinstance(command, (Rmdir, Rename)):
        # Who holds a directory relies on its having a name, too, and on the directory above it.
        names = [(command.parent, command.name)]
        if isinstance(command, Rename):
            names.append((command.new_parent, command.new_name))
        entries = [store.entry(*name) for name in names]
        involved += [entry.ino for entry in entries if entry is not None]
    return tuple(
        ino for ino in dict.fromkeys(involved) if ino in held and held[ino].client != store.client
    )


def delegate(store: Store, command: Delegate) -> Result:
    directory = require_inode(store, command.ino)
    if not stat.S_ISDIR(directory.mode):
        raise FileError(errno.ENOTDIR)
    if store.client == 0:
        raise FileError(errno.EINVAL)  # the cluster itself is nobody who could give it back
    held = store.delegations
    known = held.get(command.ino)
    if known is not None:
        return Result(0, known.client == store.client and not known.recalled)
    if directory.nlink == 0 or len(held) >= DELEGATIONS_MAX - KEPT_FOR_NEW:
        return Result(0, False)
    if _has_enough(store):
        return Result(0, False)
    store.set_delegation(command.ino, Delegation(store.client, 0))
    return Result(0, True, Touched((command.ino,), ((command.ino, EVERY_NAME),)))


def require_room(store: Store, ino: Ino | None) -> None:
    """A new directory with this number may be delegated; None: it is not."""
    if ino is None:
        return
    # Who makes directories without end takes the room for them from nobody.
    if len(store.delegations) >= DELEGATIONS_MAX or _has_enough(store):
        raise FileError(errno.ENOSPC)


def _has_enough(store: Store) -> bool:
    """Whether no more are delegated to the client."""
    held = store.delegations
    if len(held) < DELEGATIONS_PER_CLIENT_MAX:
        return False
    own = sum(delegation.client == store.client for delegation in held.values())
    return own >= DELEGATIONS_PER_CLIENT_MAX


def undelegate(store: Store, command: Undelegate) -> Result:
    mine = [ino for ino in _held(store, command.inos) if _client(store, ino) == store.client]
    for ino in mine:
        store.end_delegation(ino)
    return Result(0, len(mine))


def recall(store: Store, command: Recall) -> Result:
    held = _held(store, command.inos)
    for ino in held:
        delegation = store.delegations[ino]
        if not delegation.recalled:
            store.set_delegation(ino, delegation._replace(recalled=store.index))
    return Result(0, len(held), Touched(tuple(held)))


def revoke(store: Store, command: Revoke) -> Result:
    ended = [
        ino
        for ino in _held(store, command.inos)
        if 0 < store.delegations[ino].recalled <= command.recalled
    ]
    for ino in ended:
        store.end_delegation(ino)
    return Result(0, len(ended), Touched(tuple(ended)))


def reserve_inodes(store: Store, _: ReserveInodes) -> Result:
    if store.client == 0:
        raise FileError(errno.EINVAL)
    # Numbers of files that failed for good are never used: the oldest reservation goes.
    kept = "SELECT first FROM reservation WHERE client = :client ORDER BY first DESC LIMIT :count"
    store.connection.execute(
        f"DELETE FROM reservation WHERE client = :client AND first NOT IN ({kept})",
        {"client": store.client, "count": RESERVATIONS_PER_CLIENT_MAX - 1},
    )
    first = store.meta.next_ino
    store.meta.next_ino = first + INODES_RESERVED
    store.connection.execute(
        "INSERT INTO reservation (client, first, used) VALUES (?, ?, 0)", (store.client, first)
    )
    store.writes += 1
    return Result(0, first)


def take_number(store: Store, parent: Inode, ino: Ino | None) -> None:
    """The caller may give its new inode in ``parent`` this number, and does. None: no matter.

    The directory must be delegated as of now: of what was made in it before a Revoke, and comes
    too late, others have been told that it is not there.
    """
    if ino is None:
        return
    if parent.ino not in store.delegations or _client(store, parent.ino) != store.client:
        raise FileError(errno.ESTALE)
    row = store.connection.execute(
        "SELECT first, used FROM reservation WHERE client = ? AND first <= ?"
        " ORDER BY first DESC LIMIT 1",
        (store.client, ino),
    ).fetchone()
    if row is None or ino >= row[0] + INODES_RESERVED:
        raise FileError(errno.ESTALE)
    first, used = row
    bit = 1 << (ino - first)
    if used & bit:
        raise FileError(errno.ESTALE)
    used |= bit
    if used == _ALL_USED:
        store.connection.execute(
            "DELETE FROM reservation WHERE client = ? AND first = ?", (store.client, first)
        )
    else:
        store.connection.execute(
            "UPDATE reservation SET used = ? WHERE client = ? AND first = ?",
            (used, store.client, first),
        )
    store.writes += 1


def end_of_sessions(store: Store) -> tuple[Ino, ...]:
    """Nothing is left of clients whose session is none any more; directories that they held."""
    known = store.connection.execute("SELECT client FROM session ORDER BY client").fetchall()
    clients = {client for (client,) in known}
    store.connection.execute(
        "DELETE FROM reservation WHERE client NOT IN (SELECT client FROM session)"
    )
    ended = [ino for ino, held in store.delegations.items() if held.client not in clients]
    for ino in sorted(ended):
        store.end_delegation(ino)
    return tuple(Ino(ino) for ino in sorted(ended))


def _held(store: Store, inos: tuple[Ino, ...]) -> list[Ino]:
    return [ino for ino in dict.fromkeys(inos) if ino in store.delegations]


def _client(store: Store, ino: Ino) -> int:
    return store.delegations[ino].client
