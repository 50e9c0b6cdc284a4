"""fsck of the tree: every rule of schema.py, looked at in the whole database.

For ``pydi check``, and for every test of the tree, which ends with it. It only reads; it trusts
nothing, so a rule that the writing code maintains is computed here in another way.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from blake3 import blake3

from pydi_node.commands import INODES_RESERVED
from pydi_node.ids import ROOT_INO
from pydi_node.records import (
    ACCESS_ACL_XATTR,
    CHECKSUM_BYTES,
    DEFAULT_ACL_XATTR,
    NAME_MAX_BYTES,
    ST_MODE_BITS,
)
from pydi_node.tree import acl
from pydi_node.tree.sessions import SESSION_WINDOW
from pydi_node.tree.settings import NODE_STATES, SETTINGS

# A broken tree may break one rule a million times; nobody reads more than this of each.
FINDINGS_PER_RULE_MAX: Final = 20


class Rule(NamedTuple):
    """A SELECT that finds nothing in a sound tree, and a sentence for each row that it finds."""

    sentence: str  # {0}, {1}, ... are the row's columns
    sql: str


_IS_DIR: Final = f"(mode & {stat.S_IFMT(0o177777)}) = {stat.S_IFDIR}"
_IS_REG: Final = f"(mode & {stat.S_IFMT(0o177777)}) = {stat.S_IFREG}"
_IS_LNK: Final = f"(mode & {stat.S_IFMT(0o177777)}) = {stat.S_IFLNK}"

_HISTORY: Final = {
    "inode": "ino",
    "entry": "parent, name",
    "xattr": "ino, name",
    "extent": "ino, file_offset",
}


def _range_rules() -> Iterator[Rule]:
    """Validity ranges: not empty, not in the future, one after the other."""
    for table, key in _HISTORY.items():
        yield Rule(
            f"{table}: row of {{0}} valid from log index {{1}}, which is not applied yet",
            f"SELECT {key.split(', ')[0]}, since FROM {table}"
            " WHERE since > (SELECT applied_index FROM meta) OR since < 0 ORDER BY 1, 2",
        )
        yield Rule(
            f"{table}_history: row of {{0}} has the bad range [{{1}}, {{2}})",
            f"SELECT {key.split(', ')[0]}, since, until FROM {table}_history WHERE since >= until"
            " OR until > (SELECT applied_index FROM meta) OR since < 0 ORDER BY 1, 2, 3",
        )
        same = " AND ".join(f"a.{column} = b.{column}" for column in key.split(", "))
        yield Rule(
            f"{table}_history: two rows of {{0}} overlap, until {{1}} and since {{2}}",
            f"SELECT b.{key.split(', ')[0]}, a.until, b.since FROM {table}_history b"
            f" JOIN {table}_history a ON {same} AND a.until < b.until AND a.until > b.since"
            " ORDER BY 1, 2, 3",
        )
        yield Rule(
            f"{table}: the row of {{0}} since {{1}} overlaps its history until {{2}}",
            f"SELECT b.{key.split(', ')[0]}, b.since, a.until FROM {table} b"
            f" JOIN {table}_history a ON {same} AND a.until > b.since ORDER BY 1, 2, 3",
        )


_RULES: Final[tuple[Rule, ...]] = (
    # meta
    Rule(
        "meta: {0} rows instead of 1", "SELECT n FROM (SELECT count(*) AS n FROM meta) WHERE n <> 1"
    ),
    Rule(
        "meta: {0} inodes counted, {1} there",
        "SELECT files, n FROM meta, (SELECT count(*) AS n FROM inode) WHERE files <> n",
    ),
    Rule(
        "meta: {0} bytes counted, {1} there",
        "SELECT bytes, n FROM meta, (SELECT coalesce(sum(allocated), 0) AS n FROM inode)"
        " WHERE bytes <> n",
    ),
    Rule(
        "meta: next inode number {0}, but {1} was given",
        "SELECT next_ino, n FROM meta, (SELECT max(ino) AS n FROM (SELECT ino FROM inode"
        " UNION ALL SELECT ino FROM inode_history)) WHERE n >= next_ino",
    ),
    Rule(
        "meta: next cookie {0}, but {1} was given",
        "SELECT next_cookie, n FROM meta, (SELECT max(cookie) AS n FROM (SELECT cookie FROM entry"
        " UNION ALL SELECT cookie FROM entry_history)) WHERE n >= next_cookie",
    ),
    Rule(
        "meta: history floor {0} or membership {1} is past the applied index {2}",
        "SELECT history_floor, membership_index, applied_index FROM meta"
        " WHERE history_floor > applied_index OR membership_index > applied_index",
    ),
    # inode
    Rule(
        "root: inode 1 is not a directory that is its own parent",
        f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE ino = {ROOT_INO}"
        f" AND {_IS_DIR} AND parent = {ROOT_INO} AND nlink >= 2)",
    ),
    Rule(
        "inode {0}: number, mode {1}, size {2} or allocated {3} impossible",
        "SELECT ino, mode, size, allocated FROM inode WHERE ino < 1 OR size < 0 OR allocated < 0"
        " OR nlink < 0 OR uid < 0 OR gid < 0 OR allocated > size"
        f" OR (mode & {stat.S_IFMT(0o177777)}) NOT IN ({stat.S_IFREG}, {stat.S_IFDIR},"
        f" {stat.S_IFLNK}, {stat.S_IFIFO}, {stat.S_IFSOCK}, {stat.S_IFCHR}, {stat.S_IFBLK})"
        f" OR (size <> 0 AND NOT {_IS_REG} AND NOT {_IS_LNK}) ORDER BY ino",
    ),
    Rule(
        "inode {0}: changed at {1}, version {2}, valid since {3}",
        "SELECT ino, changed, version, since FROM inode WHERE version > changed OR since > changed"
        " OR changed > (SELECT applied_index FROM meta) ORDER BY ino",
    ),
    Rule(
        "symlink {0}: its target and size {1} do not belong together",
        f"SELECT ino, size FROM inode WHERE (length(target) > 0) <> ({_IS_LNK})"
        f" OR ({_IS_LNK} AND length(target) <> size) ORDER BY ino",
    ),
    Rule(
        "inode {0}: {1} names, nlink {2}",
        f"SELECT ino, (SELECT count(*) FROM entry WHERE entry.ino = inode.ino) AS n, nlink"
        f" FROM inode WHERE NOT {_IS_DIR} AND n <> nlink ORDER BY ino",
    ),
    Rule(
        "directory {0}: {1} subdirectories, nlink {2}",
        "SELECT d.ino, (SELECT count(*) FROM entry JOIN inode AS c ON c.ino = entry.ino"
        " WHERE entry.parent = d.ino AND (c.mode & 61440) = 16384) AS n, d.nlink FROM inode AS d"
        f" WHERE {_IS_DIR.replace('mode', 'd.mode')}"
        " AND d.nlink <> CASE WHEN EXISTS (SELECT 1 FROM entry WHERE entry.ino = d.ino)"
        f" OR d.ino = {ROOT_INO} THEN n + 2 ELSE 0 END ORDER BY d.ino",
    ),
    Rule(
        "directory {0}: its parent is {1}, but its name is elsewhere",
        f"SELECT ino, parent FROM inode WHERE {_IS_DIR} AND ino <> {ROOT_INO} AND CASE nlink"
        " WHEN 0 THEN parent <> 0 ELSE NOT EXISTS (SELECT 1 FROM entry"
        " WHERE entry.ino = inode.ino AND entry.parent = inode.parent) END ORDER BY ino",
    ),
    Rule(
        "inode {0}: not a directory, but has the parent {1}",
        f"SELECT ino, parent FROM inode WHERE NOT {_IS_DIR} AND parent <> 0 ORDER BY ino",
    ),
    Rule(
        "directory {0}: {1} names",
        "SELECT entry.ino, count(*) FROM entry JOIN inode ON inode.ino = entry.ino"
        f" WHERE {_IS_DIR} GROUP BY entry.ino HAVING count(*) > 1 OR entry.ino = {ROOT_INO}"
        " ORDER BY entry.ino",
    ),
    Rule(
        "directory {0}: cannot be reached from the root",
        f"WITH RECURSIVE reached (ino) AS (SELECT {ROOT_INO} UNION"
        " SELECT entry.ino FROM reached JOIN entry ON entry.parent = reached.ino"
        " JOIN inode ON inode.ino = entry.ino AND (inode.mode & 61440) = 16384)"
        f" SELECT ino FROM inode WHERE {_IS_DIR} AND nlink <> 0"
        " AND ino NOT IN (SELECT ino FROM reached ORDER BY ino) ORDER BY ino",
    ),
    Rule(
        "inode_history: inode {0} has a gap in its history, until {1}",
        "SELECT a.ino, a.until FROM inode_history AS a WHERE NOT EXISTS (SELECT 1 FROM"
        " inode_history AS b WHERE b.ino = a.ino AND b.since = a.until) AND NOT EXISTS (SELECT 1"
        " FROM inode AS c WHERE c.ino = a.ino AND c.since = a.until) AND (EXISTS (SELECT 1 FROM"
        " inode AS c WHERE c.ino = a.ino) OR EXISTS (SELECT 1 FROM inode_history AS b"
        " WHERE b.ino = a.ino AND b.since > a.until)) ORDER BY 1, 2",
    ),
    # entry
    Rule(
        "entry {0} in {1}: name of {2} bytes or with a forbidden byte",
        "SELECT cookie, parent, length(name) FROM entry WHERE typeof(name) <> 'blob'"
        f" OR length(name) NOT BETWEEN 1 AND {NAME_MAX_BYTES} OR instr(name, x'2f')"
        " OR instr(name, x'00') OR name IN (x'2e', x'2e2e') ORDER BY cookie",
    ),
    Rule(
        "entry {0}: leads to inode {1}, which does not exist",
        "SELECT cookie, ino FROM entry WHERE ino NOT IN (SELECT ino FROM inode ORDER BY ino)"
        " ORDER BY cookie",
    ),
    Rule(
        "entry {0}: in {1}, which is not a directory with a name",
        "SELECT cookie, parent FROM entry WHERE parent NOT IN"
        f" (SELECT ino FROM inode WHERE {_IS_DIR} AND nlink <> 0 ORDER BY ino) ORDER BY cookie",
    ),
    Rule(
        "entry_history: cookie {0} was used by two names",
        "SELECT cookie FROM (SELECT cookie, parent, name FROM entry UNION"
        " SELECT cookie, parent, name FROM entry_history) GROUP BY cookie HAVING count(*) > 1"
        " ORDER BY cookie",
    ),
    # orphan
    Rule(
        "orphan {0}: is not an inode without a name",
        "SELECT ino FROM orphan WHERE ino NOT IN"
        " (SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino) ORDER BY ino",
    ),
    Rule(
        "inode {0}: has no name but is not among the orphans",
        "SELECT ino FROM inode WHERE nlink = 0 AND ino NOT IN"
        " (SELECT ino FROM orphan ORDER BY ino) ORDER BY ino",
    ),
    Rule(
        "orphan {0}: since {1}, linkable {2} impossible",
        "SELECT ino, since, linkable FROM orphan WHERE linkable NOT IN (0, 1)"
        " OR since > (SELECT applied_index FROM meta) ORDER BY ino",
    ),
    # xattr
    Rule(
        "xattr: of inode {0}, which does not exist",
        "SELECT DISTINCT ino FROM xattr WHERE ino NOT IN (SELECT ino FROM inode ORDER BY ino)"
        " ORDER BY ino",
    ),
    # extent
    Rule(
        "extent of {0} at {1}: not of a regular file, or past its size",
        "SELECT extent.ino, file_offset FROM extent LEFT JOIN inode ON inode.ino = extent.ino"
        f" WHERE inode.ino IS NULL OR NOT {_IS_REG} OR file_offset + length > size"
        " ORDER BY extent.ino, file_offset",
    ),
    Rule(
        "extent of {0} at {1}: offset, length {2} or blob offset {3} impossible",
        "SELECT ino, file_offset, length, blob_offset FROM extent WHERE file_offset < 0"
        " OR length < 1 OR blob_offset < 0 ORDER BY ino, file_offset",
    ),
    Rule(
        "extent of {0} at {1}: overlaps the next one",
        "SELECT ino, file_offset FROM (SELECT ino, file_offset, file_offset + length AS end,"
        " lead(file_offset) OVER (PARTITION BY ino ORDER BY file_offset) AS next FROM extent)"
        " WHERE next < end ORDER BY ino, file_offset",
    ),
    Rule(
        "extent of {0} at {1}: continues the one before and should be one with it",
        "SELECT ino, file_offset FROM (SELECT ino, file_offset, blob, blob_offset,"
        " lag(file_offset + length) OVER w AS end, lag(blob) OVER w AS blob_before,"
        " lag(blob_offset + length) OVER w AS blob_end FROM extent"
        " WINDOW w AS (PARTITION BY ino ORDER BY file_offset))"
        " WHERE end = file_offset AND blob_before = blob AND blob_end = blob_offset"
        " ORDER BY ino, file_offset",
    ),
    Rule(
        "inode {0}: {1} bytes allocated, its extents have {2}",
        "SELECT ino, allocated, (SELECT coalesce(sum(length), 0) FROM extent"
        " WHERE extent.ino = inode.ino) AS n FROM inode WHERE allocated <> n ORDER BY ino",
    ),
    Rule(
        "extent of {0} at {1}: names bytes that blob {2} does not have",
        "SELECT e.ino, e.file_offset, e.blob FROM (SELECT ino, file_offset, length, blob,"
        " blob_offset FROM extent UNION ALL SELECT ino, file_offset, length, blob, blob_offset"
        " FROM extent_history) AS e LEFT JOIN blob ON blob.blob = e.blob"
        " WHERE blob.blob IS NULL OR e.blob_offset + e.length > blob.size"
        " ORDER BY e.ino, e.file_offset, e.blob",
    ),
    # blob
    Rule(
        "blob {0}: {1} references counted, {2} there",
        "SELECT blob.blob, refs, coalesce(n, 0) FROM blob LEFT JOIN (SELECT blob, count(*) AS n"
        " FROM (SELECT blob FROM extent UNION ALL SELECT blob FROM extent_history) GROUP BY blob)"
        " AS named ON named.blob = blob.blob WHERE refs <> coalesce(n, 0) ORDER BY blob.blob",
    ),
    Rule(
        "blob {0}: size {1} or checksum impossible",
        f"SELECT blob, size FROM blob WHERE size < 0 OR length(checksum) <> {CHECKSUM_BYTES}"
        " ORDER BY blob",
    ),
    Rule(
        "blob {0}: in the tree, but its {1} bytes are not",
        "SELECT blob.blob, size FROM blob LEFT JOIN content ON content.blob = blob.blob"
        " WHERE holders = x'0000' AND (content.blob IS NULL OR length(bytes) <> size)"
        " ORDER BY blob.blob",
    ),
    Rule(
        "content of {0}: no such blob is in the tree",
        "SELECT blob FROM content WHERE blob NOT IN"
        " (SELECT blob FROM blob WHERE holders = x'0000') ORDER BY blob",
    ),
    Rule(
        "tally of holders {0}, factor {1}: {2} blobs with {3} bytes counted, {4} with {5} there",
        "SELECT hex(holders), factor, sum(c), sum(s), sum(n), sum(t) FROM (SELECT holders, factor,"
        " blobs AS c, bytes AS s, 0 AS n, 0 AS t FROM tally UNION ALL SELECT holders, factor, 0, 0,"
        " 1, size FROM blob WHERE refs > 0) GROUP BY holders, factor HAVING sum(c) <> sum(n)"
        " OR sum(s) <> sum(t) OR sum(c) = 0 ORDER BY holders, factor",
    ),
    Rule(
        "blob {0}: factor {1} can't be asked for",
        "SELECT blob, factor FROM blob WHERE factor < 0"
        f" OR factor > {SETTINGS['replicas'].high} ORDER BY blob",
    ),
    Rule(
        "refactor of {0}: there is no such inode, or it has no cookie {1}",
        "SELECT ino, cookie FROM refactor WHERE cookie < 0 OR ino NOT IN (SELECT ino FROM inode)"
        " ORDER BY ino",
    ),
    # sessions, settings, nodes, ticks
    Rule(
        "session of client {0}: number or serial {1} impossible",
        "SELECT client, serial FROM session WHERE client < 1 OR serial < 1 ORDER BY client",
    ),
    Rule(
        "session of client {0}: result of serial {1} in slot {2} is not one of its own",
        "SELECT r.client, r.serial, r.slot FROM session_result AS r LEFT JOIN session AS s"
        " ON s.client = r.client WHERE s.client IS NULL OR r.serial > s.serial"
        f" OR r.slot <> r.serial % {SESSION_WINDOW} ORDER BY r.client, r.slot",
    ),
    Rule(
        "session of client {0}: the result of its last serial {1} is missing",
        "SELECT client, serial FROM session AS s WHERE NOT EXISTS (SELECT 1 FROM session_result"
        " AS r WHERE r.client = s.client AND r.serial = s.serial) ORDER BY client",
    ),
    Rule(
        "delegation of {0}: not a directory with a name",
        "SELECT ino FROM delegation WHERE ino NOT IN"
        f" (SELECT ino FROM inode WHERE {_IS_DIR} AND nlink <> 0 ORDER BY ino) ORDER BY ino",
    ),
    Rule(
        "delegation of {0}: recalled {1} is past the applied index, or client {2} has no session",
        "SELECT ino, recalled, client FROM delegation WHERE recalled < 0"
        " OR recalled > (SELECT applied_index FROM meta)"
        " OR client NOT IN (SELECT client FROM session) ORDER BY ino",
    ),
    Rule(
        "reservation of client {0} from {1}: it has no session, or those are not such numbers",
        "SELECT client, first FROM reservation WHERE client NOT IN (SELECT client FROM session)"
        f" OR first < 1 OR first + {INODES_RESERVED} > (SELECT next_ino FROM meta)"
        f" OR used < 0 OR used >= {(1 << INODES_RESERVED) - 1} ORDER BY client, first",
    ),
    Rule(
        "reservation of client {0} from {1}: overlaps the next one",
        "SELECT client, first FROM (SELECT client, first, lead(first) OVER (ORDER BY first)"
        f" AS next FROM reservation) WHERE next < first + {INODES_RESERVED} ORDER BY first",
    ),
    Rule(
        "reservation of client {0} from {1}: number {2} is free, but was given",
        "SELECT client, first, ino FROM reservation JOIN (SELECT ino FROM inode UNION"
        f" SELECT ino FROM inode_history) ON ino BETWEEN first AND first + {INODES_RESERVED - 1}"
        " WHERE used >> (ino - first) & 1 = 0 ORDER BY 1, 2, 3",
    ),
    Rule(
        "node {0}: state {1} unknown",
        "SELECT number, state FROM node WHERE witness NOT IN (0, 1) OR number < 1 OR state NOT IN"
        f" ({', '.join(repr(state) for state in sorted(NODE_STATES))}) ORDER BY number",
    ),
    Rule(
        "tick {0}: not later than the one before, or past the applied index",
        "SELECT log_index FROM (SELECT log_index, time_ns, lag(time_ns) OVER"
        " (ORDER BY log_index) AS before FROM tick) WHERE time_ns / 1000000000"
        " <= before / 1000000000 OR log_index > (SELECT applied_index FROM meta)"
        " ORDER BY log_index",
    ),
    *_range_rules(),
)


def check(connection: sqlite3.Connection) -> list[str]:
    """One sentence for every broken rule; [] for a sound tree. Reads the whole database.

    connection  to a prepared tree, not inside a transaction; nothing is changed. At most
                FINDINGS_PER_RULE_MAX sentences for each rule.
    """
    findings = [
        f"database: {row[0]}"
        for row in connection.execute(f"PRAGMA integrity_check({FINDINGS_PER_RULE_MAX})").fetchall()
        if row[0] != "ok"
    ]
    if findings:
        return findings  # nothing read from here on would mean anything
    for rule in _RULES:
        rows = connection.execute(rule.sql).fetchmany(FINDINGS_PER_RULE_MAX)
        findings.extend(rule.sentence.format(*row) for row in rows)
    findings.extend(_check_settings(connection))
    findings.extend(_check_holders(connection))
    findings.extend(islice(_check_acls(connection), FINDINGS_PER_RULE_MAX))
    findings.extend(islice(_check_contents(connection), FINDINGS_PER_RULE_MAX))
    return findings


def _check_settings(connection: sqlite3.Connection) -> Iterator[str]:
    for name, value in connection.execute("SELECT name, value FROM setting ORDER BY name"):
        setting = SETTINGS.get(name)
        if setting is None or not setting.low <= value <= setting.high:
            yield f"setting {name}: {value} is not a value it can have"


def _check_holders(connection: sqlite3.Connection) -> Iterator[str]:
    """Packed holders, which SQL can't look into: ascending, no node twice, none below 1."""
    for blob, packed in connection.execute(
        "SELECT blob, holders FROM blob WHERE holders <> x'0000' ORDER BY blob"
    ):
        pairs = [packed[i : i + 2] for i in range(0, len(packed), 2)]
        if pairs != sorted(set(pairs)) or b"\0\0" in pairs:
            yield f"blob {blob}: holders {packed.hex()} are not ascending node numbers"


def _check_acls(connection: sqlite3.Connection) -> Iterator[str]:
    """An inode's mode says which access control lists it has, and grants no more than they do."""
    for ino, mode, access, default in connection.execute(
        "SELECT inode.ino, mode, a.value, d.value FROM inode"
        " LEFT JOIN xattr AS a ON a.ino = inode.ino AND a.name = ?"
        " LEFT JOIN xattr AS d ON d.ino = inode.ino AND d.name = ?"
        " WHERE a.value IS NOT NULL OR d.value IS NOT NULL OR mode > ? ORDER BY inode.ino",
        (ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR, ST_MODE_BITS),
    ):
        if (wrong := acl.disagreement(mode, access, default)) is not None:
            yield f"inode {ino}: its access control lists and its mode {mode:o}: {wrong}"


def _check_contents(connection: sqlite3.Connection) -> Iterator[str]:
    for blob, checksum, content in connection.execute(
        "SELECT blob, checksum, bytes FROM blob JOIN content USING (blob) ORDER BY blob"
    ):
        if blake3(content).digest() != checksum:
            yield f"blob {blob}: its content in the tree has another checksum"
