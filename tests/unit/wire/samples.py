"""One honest example of every request, answer and push, and random ones for the common records."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pydi_node import commands, records
from pydi_node.commands import ROOT_CALLER, Caller
from pydi_node.ids import INT64_MAX, BlobId, ClientId, Ino, LogIndex, NodeNumber, Serial, TimeNs
from pydi_node.ids import blob_id as make_blob_id
from pydi_node.records import (
    Attr,
    BlobInfo,
    DirEntry,
    Extent,
    FileVersion,
    Result,
    Touched,
    Version,
)
from pydi_node.wire import messages as m
from pydi_node.wire.events import Hello, Welcome
from pydi_node.wire.messages import PUT_BLOB, LockHolder, LockKind, Request, Role

CLUSTER = "0123456789abcdef0123456789abcdef"
ATTR = Attr(
    Ino(7), 0o100644, 1, 1000, 1000, 0, 5, 5, TimeNs(-1), TimeNs(2), TimeNs(3), TimeNs(4),
    LogIndex(8), LogIndex(9),
)  # fmt: skip
BLOB = make_blob_id(NodeNumber(3), 17)
INFO = BlobInfo(BLOB, 5, b"\x01" * 32, (NodeNumber(1), NodeNumber(3)))
CREATE = commands.Create(ROOT_CALLER, Ino(1), b"name", 0o644, True)
COMMIT_PUT = commands.Commit(
    Caller(1000, 1000, (4, 24)), Ino(7), None, 0, 5, False, (Extent(0, 5, PUT_BLOB, 0),), ()
)

COMMANDS: dict[type[Any], commands.Command] = {
    type(command): command
    for command in (
        commands.Mkdir(ROOT_CALLER, Ino(1), b"d", 0o755),
        CREATE,
        commands.Mknod(ROOT_CALLER, Ino(1), b"n", 0o20644, 5),
        commands.Symlink(ROOT_CALLER, Ino(1), b"s", b"to/there"),
        commands.Tmpfile(ROOT_CALLER, Ino(1), 0o600),
        commands.Link(ROOT_CALLER, Ino(7), Ino(1), b"l"),
        commands.Unlink(ROOT_CALLER, Ino(1), b"name"),
        commands.Rmdir(ROOT_CALLER, Ino(1), b"d"),
        commands.Rename(ROOT_CALLER, Ino(1), b"a", Ino(2), b"b", commands.RENAME_NOREPLACE),
        commands.SetAttr(ROOT_CALLER, Ino(7), mode=0o600, atime_ns=commands.TIME_NOW),
        commands.SetXattr(ROOT_CALLER, Ino(7), b"user.x", b"v", 0),
        commands.RemoveXattr(ROOT_CALLER, Ino(7), b"user.x"),
        commands.Commit(
            ROOT_CALLER, Ino(7), LogIndex(3), None, 5, False, (Extent(0, 5, BLOB, 0),), (INFO,)
        ),
        commands.CloneRange(ROOT_CALLER, Ino(7), 0, Ino(8), 0, 4096),
        commands.PutFile(
            ROOT_CALLER,
            Ino(1),
            b"p",
            0o644,
            5,
            (Extent(0, 5, BLOB, 0),),
            (INFO,),
            TimeNs(3),
            None,
            Ino(9),
            TimeNs(4),
            TimeNs(5),
        ),
        commands.PurgeOrphans((Ino(7), Ino(8))),
        commands.TrimHistory(LogIndex(3), 100),
        commands.SetSetting("replicas", "2"),
        commands.SetHolders(BLOB, (NodeNumber(1),), (NodeNumber(2),)),
        commands.ForgetBlobs((BLOB,)),
        commands.ExpireSessions(TimeNs(5)),
        commands.SetNode(NodeNumber(3), "host:1234", "up", False),
        commands.SpreadFactors(100),
        commands.SetToken(b"12345678", True, b"/a", 9, 8, "of a camera", False),
        commands.SetSecret(1, b"sealed", b"as well", 9),
        commands.RetireSecret(1),
        commands.Compact(Ino(7), LogIndex(3), (Extent(0, 5, BLOB, 0),), (INFO,)),
        commands.ReserveInodes(),
        commands.Delegate(Ino(7)),
        commands.Undelegate((Ino(7), Ino(8))),
        commands.Recall((Ino(7),)),
        commands.Revoke((Ino(7),), LogIndex(3)),
        commands.Batch(
            (
                commands.Mkdir(ROOT_CALLER, Ino(1), b"d", 0o755, ino=Ino(9)),
                commands.Rmdir(ROOT_CALLER, Ino(1), b"e"),
            ),
            (TimeNs(3), TimeNs(4)),
        ),
    )
}

# The value of a successful Result, by command.
RESULT_VALUES: dict[type[Any], Any] = {
    commands.Mkdir: ATTR, commands.Create: (ATTR, True), commands.Mknod: ATTR,
    commands.Symlink: ATTR, commands.Tmpfile: ATTR, commands.Link: ATTR, commands.Unlink: ATTR,
    commands.Rmdir: None, commands.Rename: (ATTR, None), commands.SetAttr: ATTR,
    commands.SetXattr: None, commands.RemoveXattr: None, commands.Commit: ATTR,
    commands.CloneRange: (ATTR, 4096), commands.PurgeOrphans: 2,
    commands.TrimHistory: (100, True), commands.SetSetting: None, commands.SetHolders: INFO,
    commands.ForgetBlobs: 1, commands.ExpireSessions: 0, commands.SetNode: None,
    commands.SpreadFactors: (100, True),
    commands.SetToken: None, commands.SetSecret: None, commands.RetireSecret: None,
    commands.Compact: ATTR,
    commands.PutFile: ATTR,
    commands.ReserveInodes: 9, commands.Delegate: True, commands.Undelegate: 1,
    commands.Recall: 1, commands.Revoke: 0,
    commands.Batch: ((0, ATTR), (39, None)),
}  # fmt: skip

FILE = FileVersion(ATTR, (Extent(0, 5, BLOB, 0),), (INFO,))
RESULT = Result(0, (ATTR, True), Touched((Ino(1),), ((Ino(1), b"name"),)), (ATTR,))

LOCK = m.SetLock(Ino(7), 1 << 63, LockKind.EXCLUSIVE, 0, INT64_MAX, False, True, 4711)

# (request, payload, answer's value, answer's payload)
SAMPLES: list[tuple[Request, bytes, Any, bytes]] = [
    (m.Lookup(Ino(1), b"name", LogIndex(5)), b"", ATTR, b""),
    (m.GetAttr(Ino(7)), b"", ATTR, b""),
    (m.ReadDir(Ino(1), 0, 100), b"", (DirEntry(1, b"name", ATTR),), b""),
    (m.ReadLink(Ino(7)), b"", b"../there", b""),
    (m.GetXattr(Ino(7), b"user.x"), b"", b"\0\xff", b""),
    (m.ListXattr(Ino(7)), b"", (b"user.x", b"user.y"), b""),
    (m.GetFile(Ino(7)), b"", FILE, b""),
    (m.Versions(Ino(7)), b"", (Version(LogIndex(1), None, ATTR),), b""),
    (m.PathVersions(b"/a/b", LogIndex(4)), b"", (Version(LogIndex(1), LogIndex(3), ATTR),), b""),
    (m.PathOf(Ino(7)), b"", b"/a/b", b""),
    (m.Statfs(), b"", records.Statfs(10, 5, 2), b""),
    (m.IndexAt(TimeNs(10**18)), b"", 77, b""),
    (m.Open(Ino(7)), b"", FILE, b""),
    (m.Release(Ino(7), 2), b"", None, b""),
    (m.Execute(ClientId(5), Serial(1), CREATE), b"", RESULT, b""),
    (m.ExecutePut(ClientId(5), Serial(2), COMMIT_PUT), b"hello", Result(0, ATTR), b""),
    (m.Forward(ClientId(5), Serial(3), CREATE), b"", Result(17), b""),
    (m.BlobCreate(Ino(7)), b"", BLOB, b""),
    (m.BlobWrite(BLOB, 0), b"hello", None, b""),
    (m.BlobAdopt(Ino(7), b"0123456789abcdef"), b"", BLOB, b""),
    (m.BlobGrown(BLOB, 5, 3), b"", None, b""),
    (m.BlobTruncate(BLOB, 3), b"", None, b""),
    (m.BlobSeal(BLOB, 5, b"\x01" * 32), b"", INFO, b""),
    (m.BlobAbort(BLOB), b"", None, b""),
    (m.BlobPut(), b"hello", INFO, b""),
    (m.BlobRead(BLOB, 0, 5), b"", None, b"hello"),
    (m.BlobVerify(BLOB), b"", None, b""),
    (m.BlobCopy(INFO), b"", None, b""),
    (LOCK, b"", True, b""),
    (m.GetLock(Ino(7), 5, LockKind.SHARED, 0, 10), b"", LockHolder(LockKind.SHARED, 0, 10, 9), b""),
    (m.Admin("status", {"deep": [1, None, {"a": 1.5}]}), b"", {"nodes": [{"number": 1}]}, b""),
    (m.Subscribe(), b"", None, b""),
    (m.ReplicaPut(INFO), b"hello", None, b""),
    (m.ReplicaCreate(BLOB), b"", None, b""),
    (m.BlobStream(BLOB, 9 << 20, 1 << 20), b"", b"0123456789abcdef", b""),
    (m.Lease(), b"", 900, b""),
    (m.Nodes(), b"", (records.NodeInfo(NodeNumber(2), "10.0.0.2:7420", "up", False),), b""),
]  # fmt: skip

PUSHES = [
    m.Invalidate(1, Touched((Ino(1), Ino(7)), ((Ino(1), b"name"),))),
    m.DropAll(2),
    m.Invalidate(3, Touched((Ino(1),), ((Ino(1), records.EVERY_NAME),))),
]


def hello(role: Role = Role.MOUNT, number: int | None = None) -> Hello:
    if number is None:
        number = 2 if role is Role.NODE else 0
    return Hello((1,), role, CLUSTER, number, "host", {"driver": "kernel"})


WELCOME = Welcome(1, CLUSTER, 3, "storage")

int64 = st.integers(0, INT64_MAX)
names = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
optional_index = st.none() | int64
attrs = st.tuples(*[st.integers(-INT64_MAX, INT64_MAX)] * 14).map(lambda fields: Attr(*fields))
blob_ids = st.integers(1, INT64_MAX).map(BlobId)
requests = st.one_of(
    st.sampled_from([request for request, payload, _, _ in SAMPLES if not payload]),
    st.builds(m.Lookup, st.integers(1, INT64_MAX), names, optional_index),
    st.builds(m.GetAttr, st.integers(1, INT64_MAX), optional_index),
    st.builds(m.ReadDir, st.integers(1, INT64_MAX), int64, st.integers(1, 4096), optional_index),
    st.builds(m.BlobTruncate, blob_ids, int64),
    st.builds(
        m.Execute,
        st.integers(1, INT64_MAX),
        st.integers(1, INT64_MAX),
        st.builds(
            commands.Create,
            st.just(ROOT_CALLER),
            st.integers(1, INT64_MAX),
            names,
            st.integers(0, 0o7777),
            st.booleans(),
        ),
    ),
)

# What a hostile peer may put anywhere: everything msgpack can say.
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=10,
)
