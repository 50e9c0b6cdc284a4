"""Commands of the cluster itself: what is dropped, where blobs are, settings, members, sessions.

Same contract as names.py. Whatever runs SQL over many rows flushes the Store first.
"""

from __future__ import annotations

import errno
from typing import Final

from pydi_node.commands import (
    TOKEN_ID_BYTES,
    ExpireSessions,
    ForgetBlobs,
    PurgeOrphans,
    RetireSecret,
    SetHolders,
    SetNode,
    SetSecret,
    SetSetting,
    SetToken,
    TrimHistory,
)
from pydi_node.errors import FileError
from pydi_node.ids import Ino, LogIndex
from pydi_node.records import HOLDERS_MAX, IN_TREE, Result, Touched
from pydi_node.tree import delegations
from pydi_node.tree.sessions import Sessions
from pydi_node.tree.settings import NODE_STATES, parse_setting
from pydi_node.tree.store import Store

# Key columns of the history tables, in the order in which TrimHistory works through them.
_HISTORY_KEYS: Final[dict[str, str]] = {
    "entry_history": "parent, name, until",
    "inode_history": "ino, until",
    "xattr_history": "ino, name, until",
    "extent_history": "ino, file_offset, until",
}


def purge_orphans(store: Store, command: PurgeOrphans) -> Result:
    purged: list[Ino] = []
    for ino in dict.fromkeys(command.inos):
        inode = store.inode(ino)
        if inode is not None and inode.nlink == 0:
            store.remove_inode(inode)
            purged.append(ino)
    return Result(0, len(purged), Touched(tuple(purged)))


def trim_history(store: Store, command: TrimHistory) -> Result:
    store.flush()
    until = LogIndex(min(command.until, store.index))
    # At once, even when rows are left for later commands: an answer from half a history is wrong.
    store.meta.history_floor = max(store.meta.history_floor, until)
    _trim_ticks(store)
    room = command.limit
    for table, key in _HISTORY_KEYS.items():
        if room > 0:
            room -= _trim(store, table, key, until, room)
    store.writes += 1
    return Result(0, (command.limit - room, _has_history_until(store, until)))


def set_setting(store: Store, command: SetSetting) -> Result:
    value = parse_setting(command.name, command.value)
    if value is None:
        raise FileError(errno.EINVAL)
    store.connection.execute(
        "REPLACE INTO setting (name, value) VALUES (?, ?)", (command.name, value)
    )
    store.writes += 1
    return Result()


def set_holders(store: Store, command: SetHolders) -> Result:
    blob = store.blob(command.blob)
    if blob is None:
        raise FileError(errno.ENOENT)
    if blob.holders == IN_TREE:
        raise FileError(errno.EINVAL)  # nobody needs to keep a copy
    holders = (set(blob.holders) | set(command.add)) - set(command.remove)
    if not holders and not command.lost:
        raise FileError(errno.EINVAL)
    if len(holders) > HOLDERS_MAX or set(command.add) & set(command.remove):
        raise FileError(errno.EINVAL)
    store.set_holders(blob, tuple(sorted(holders)))
    return Result(0, blob.info())


def forget_blobs(store: Store, command: ForgetBlobs) -> Result:
    forgotten = 0
    for blob_id in dict.fromkeys(command.blobs):
        blob = store.blob(blob_id)
        if blob is not None and blob.refs == 0:
            store.remove_blob(blob)
            forgotten += 1
    return Result(0, forgotten)


def set_node(store: Store, command: SetNode) -> Result:
    if command.state not in NODE_STATES:
        raise FileError(errno.EINVAL)
    store.connection.execute(
        "REPLACE INTO node (number, address, state, witness) VALUES (?, ?, ?, ?)",
        (command.number, command.address, command.state, int(command.witness)),
    )
    store.writes += 1
    return Result()


def set_token(store: Store, command: SetToken) -> Result:
    store.connection.execute(
        "INSERT OR REPLACE INTO token VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            command.token_id, int(command.read_only), command.directory, command.expires_s,
            command.made_s, command.note, int(command.revoked),
        ),
    )  # fmt: skip
    store.writes += 1
    return Result()


def set_secret(store: Store, command: SetSecret) -> Result:
    row = store.connection.execute("SELECT generation, sealed_old FROM secret").fetchone()
    generation, sealed_old = (0, b"") if row is None else row
    if sealed_old:
        raise FileError(errno.EBUSY)
    if command.generation != generation + 1:
        raise FileError(errno.ESTALE)
    if not command.sealed_old:
        raise FileError(errno.EINVAL)
    ids = store.connection.execute("SELECT token_id FROM token ORDER BY token_id").fetchall()
    store.connection.execute(
        "REPLACE INTO secret VALUES (1, ?, ?, ?, ?, ?)",
        (
            command.generation, command.sealed_new, command.sealed_old, command.ends_s,
            b"".join(token_id for (token_id,) in ids),
        ),
    )  # fmt: skip
    store.writes += 1
    return Result()


def retire_secret(store: Store, command: RetireSecret) -> Result:
    row = store.connection.execute("SELECT generation, old_tokens FROM secret").fetchone()
    if row is None or row[0] != command.generation:
        raise FileError(errno.ESTALE)
    tokens = row[1]
    store.connection.executemany(
        "UPDATE token SET revoked = 1 WHERE token_id = ?",
        [(tokens[i : i + TOKEN_ID_BYTES],) for i in range(0, len(tokens), TOKEN_ID_BYTES)],
    )
    store.connection.execute("UPDATE secret SET sealed_old = x'', old_tokens = x''")
    store.writes += 1
    return Result()


def expire_sessions(store: Store, sessions: Sessions, command: ExpireSessions) -> Result:
    store.writes += 1
    expired = sessions.expire(command.before_ns)
    ended = delegations.end_of_sessions(store) if expired else ()
    return Result(0, expired, Touched(ended))


def _trim(store: Store, table: str, key: str, until: LogIndex, limit: int) -> int:
    """At most ``limit`` rows of one history table go, oldest first; how many."""
    columns = f"{key}, blob" if table == "extent_history" else key
    rows = store.connection.execute(
        f"SELECT {columns} FROM {table} WHERE until <= ? ORDER BY until, {key} LIMIT ?",
        (until, limit),
    ).fetchall()
    if table == "extent_history":
        for *_, blob in rows:
            store.add_refs(blob, -1)
        rows = [row[:-1] for row in rows]
    condition = " AND ".join(f"{column} = ?" for column in key.split(", "))
    store.connection.executemany(f"DELETE FROM {table} WHERE {condition}", rows)
    return len(rows)


def _has_history_until(store: Store, until: LogIndex) -> bool:
    return any(
        store.connection.execute(
            f"SELECT 1 FROM {table} WHERE until <= ? ORDER BY until LIMIT 1", (until,)
        ).fetchone()
        for table in _HISTORY_KEYS
    )


def _trim_ticks(store: Store) -> None:
    """The ticks before the last one at or below the floor: no index that can be asked for needs
    them."""
    store.connection.execute(
        "DELETE FROM tick WHERE log_index < (SELECT max(log_index) FROM tick WHERE log_index <= ?)",
        (store.meta.history_floor,),
    )
