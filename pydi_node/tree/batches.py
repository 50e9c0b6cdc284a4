"""A Batch: commands of one client in one log entry, each with a result of its own.

Its client has answered programs already: it alone might change those directories. So what others
have been told since, because it lost one of them, must stay true (docs/architecture.md, Delegated
directories). Hence two rules, which every replica decides alike when it applies the entry:

 * The fence: a command is executed only while its directories are delegated to this client.
 * A command is refused, too, when one before it was that shares a directory with it: "b to c, a to
   b" without its first half would cost the file b. What has nothing to do with it goes on.

Every handler checks before it changes, so a refused command leaves nothing behind. All of them have
the log index of the entry: what was true between two of them is in no history.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from pydi_node.commands import Batch, Command, Mkdir, PutFile, Rename, Rmdir, SetAttr, Symlink
from pydi_node.errors import FileError
from pydi_node.ids import Ino
from pydi_node.records import Attr, Result, Touched
from pydi_node.tree.delegations import changed_directories
from pydi_node.tree.permissions import require_inode
from pydi_node.tree.store import Store

_REFUSED = Result(errno.ESTALE)


def batch(store: Store, command: Batch, execute: Callable[[Command], Result]) -> Result:
    """execute  applies one command, whose FileError is its Result."""
    if store.client == 0:
        raise FileError(errno.EINVAL)  # nothing is ever delegated to the cluster itself
    refused: set[Ino] = set()  # directories
    results: list[Result] = []
    now_ns = store.now_ns
    for part, time_ns in zip(command.commands, command.times, strict=True):
        store.now_ns = min(time_ns, now_ns)
        involved = _directories(store, part)
        if refused.isdisjoint(involved) and _is_mine(store, part, involved):
            result = execute(part)
        else:
            result = _REFUSED
        if result.errno:
            refused.update(involved)
            if isinstance(part, (Mkdir, PutFile, Symlink)) and part.ino is not None:
                refused.add(part.ino)
        results.append(result)
    store.now_ns = now_ns
    inos = dict.fromkeys(ino for result in results for ino in result.touched.inos)
    entries = dict.fromkeys(entry for result in results for entry in result.touched.entries)
    directories = dict.fromkeys(attr.ino for result in results for attr in result.directories)
    # As they are at the end.
    attrs = tuple(require_inode(store, ino).attr() for ino in directories)
    value = tuple((result.errno, result.value) for result in results)
    return Result(0, value, Touched(tuple(inos), tuple(entries)), attrs)


def kept(value: Any) -> Any:
    """Of a Batch's value what a repetition gets: hundreds of attributes each would be most of what
    is kept, and nobody believes what an old answer says. A file that was made with its content is
    the exception: its number tells whether it is there."""
    *others, (last_errno, last) = value
    kept_last = last if isinstance(last, Attr) else None
    return (*[(code, None) for code, _ in others], (last_errno, kept_last))


def _directories(store: Store, part: Command) -> list[Ino]:
    """Whose names it changes; of a SetAttr the one that it changes, or those that it is in."""
    if isinstance(part, SetAttr) and part.ino not in store.delegations:
        return [*store.parents(part.ino), part.ino]
    return list(changed_directories(part))


def _is_mine(store: Store, part: Command, directories: list[Ino]) -> bool:
    mine = [
        ino in store.delegations and store.delegations[ino].client == store.client
        for ino in directories
    ]
    if isinstance(part, SetAttr):
        return any(mine)
    if isinstance(part, (Rmdir, Rename)):
        # What goes or moves may be a directory that somebody else holds.
        names = [(part.parent, part.name)]
        if isinstance(part, Rename):
            names.append((part.new_parent, part.new_name))
        for entry in (store.entry(*name) for name in names):
            held = None if entry is None else store.delegations.get(entry.ino)
            if held is not None and held.client != store.client:
                return False
    return all(mine)
