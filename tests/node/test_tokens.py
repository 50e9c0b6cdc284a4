"""Mount tokens: what a session that came with one may do, and how long."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest

from pydi_node.commands import (
    ROOT_CALLER,
    CloneRange,
    Command,
    Commit,
    Create,
    Link,
    Mkdir,
    Rename,
    SetAttr,
    Tmpfile,
    Unlink,
)
from pydi_node.errors import BlobMissingError, FileError, PydiError
from pydi_node.ids import ROOT_INO, Ino, Serial
from pydi_node.records import Attr, Extent, FileVersion
from pydi_node.wire.messages import (
    PUT_BLOB,
    Admin,
    BlobPut,
    BlobRead,
    Execute,
    ExecutePut,
    GetAttr,
    GetFile,
    LockKind,
    Lookup,
    Open,
    PathOf,
    ReadDir,
    Request,
    Role,
    SetLock,
    Subscribe,
    Versions,
)
from tests.harness.procs import NodeProcess, Refused, WireClient, wait_until

MakeNode = Callable[..., NodeProcess]


def make_token(node: NodeProcess, **limits: Any) -> dict[str, Any]:
    """What ``token create`` answers; by default for everything and for ever."""
    arguments = {"read_only": False, "directory": b"/", "expires_s": 0, "note": "", **limits}
    with node.connect() as owner:
        answer: dict[str, Any] = owner.call(Admin("token-create", arguments))
        return answer


def mount(node: NodeProcess, token: dict[str, Any]) -> WireClient:
    return node.connect_tls(token["token"], Role.MOUNT)


def make(client: WireClient, command: Command) -> Attr:
    result = client.execute(command)
    assert result.errno == 0, (command, result)
    value = result.value
    return value[0] if isinstance(value, tuple) and not isinstance(value, Attr) else value


def put(client: WireClient, parent: Ino, name: bytes, content: bytes) -> Attr:
    """A file with this content."""
    ino = make(client, Create(ROOT_CALLER, parent, name, 0o644, True)).ino
    client.serial += 1
    extents = (Extent(0, len(content), PUT_BLOB, 0),)
    commit = Commit(ROOT_CALLER, ino, None, None, len(content), False, extents, ())
    result = client.call(ExecutePut(client.client, Serial(client.serial), commit), content)
    assert result.errno == 0
    return client.call(GetAttr(ino))


def refused(client: WireClient, request: Request) -> int:
    """The errno with which the node refuses it."""
    with pytest.raises(PydiError) as raised:
        client.call(request)
    assert isinstance(raised.value, (FileError, BlobMissingError)), raised.value
    return raised.value.errno if isinstance(raised.value, FileError) else errno.EIO


def refused_command(client: WireClient, command: Command) -> int:
    client.serial += 1
    return refused(client, Execute(client.client, Serial(client.serial), command))


def test_read_only(node: NodeProcess) -> None:
    """Reading works; every change is EROFS, decided by the node."""
    with node.connect() as owner:
        put(owner, ROOT_INO, b"f", b"content")
    with mount(node, make_token(node, read_only=True)) as client:
        ino = client.call(Lookup(ROOT_INO, b"f")).ino
        file: FileVersion = client.call(Open(ino))
        assert client.call(BlobRead(file.blobs[0].blob, 0, 7)) == b"content"
        assert refused_command(client, Unlink(ROOT_CALLER, ROOT_INO, b"f")) == errno.EROFS
        assert refused_command(client, SetAttr(ROOT_CALLER, ino, mode=0o600)) == errno.EROFS
        with pytest.raises(FileError) as raised:
            client.call(BlobPut(), b"x")
        assert raised.value.errno == errno.EROFS
    with node.connect() as owner:
        assert owner.call(Lookup(ROOT_INO, b"f")).mode & 0o777 == 0o644


def test_revoked_at_once(make_node: MakeNode) -> None:
    """On every node: a live session ends, a new one is refused; other tokens are not touched."""
    first = make_node("n1")
    first.start()
    second = make_node("n2", "--peer", first.address, "--join", first.token)
    second.start()
    token, other = make_token(first, note="lost camera"), make_token(first)

    def is_known() -> bool:
        with second.connect() as owner:
            listed = owner.call(Admin("token-list"))
        return {info["token_id"] for info in listed} == {token["token_id"], other["token_id"]}

    wait_until(is_known, "the second node knows the tokens", 60)
    with mount(first, token) as one, mount(second, token) as two, mount(second, other) as three:
        for client in (one, two, three):
            client.call(GetAttr(ROOT_INO))
        with first.connect() as owner:
            owner.call(Admin("token-revoke", {"id": token["token_id"][:6]}))
        for client in (one, two):
            wait_until(lambda client=client: has_ended(client), "its session ends", 60)
        three.call(GetAttr(ROOT_INO))
    for node in (first, second):
        with pytest.raises(Refused, match="revoked"):
            mount(node, token)


def has_ended(client: WireClient) -> bool:
    try:
        client.call(GetAttr(ROOT_INO))
    except (OSError, PydiError):
        return True
    return False


def test_expires_under_a_live_session(node: NodeProcess) -> None:
    """When its time has come, not with the next connection."""
    token = make_token(node, expires_s=int(time.time()) + 4)
    with mount(node, token) as client:
        client.call(GetAttr(ROOT_INO))
        wait_until(lambda: has_ended(client), "its session ends", 60)
    assert time.time() >= token["expires_s"]


def test_only_owners_make_tokens(node: NodeProcess) -> None:
    """A mount can't make, list or revoke any; what names nothing is refused with a sentence."""
    token = make_token(node)
    for verb in ("token-create", "token-list", "token-revoke"):
        client = mount(node, token)
        with client, pytest.raises((PydiError, OSError)):
            client.call(Admin(verb, {"id": token["token_id"]}))
    with node.connect() as owner:
        with pytest.raises(PydiError, match="no such directory"):
            make_token(node, directory=b"/nowhere")
        with pytest.raises(PydiError, match="no mount token"):
            owner.call(Admin("token-revoke", {"id": "ffffffff"}))
        make_token(node)
        (first, second) = owner.call(Admin("token-list"))
        assert first["token_id"] != second["token_id"]


class Fenced:
    """A tree with a directory that a token is for, and what lies outside."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self.owner = node.connect()
        owner = self.owner
        self.top = make(owner, Mkdir(ROOT_CALLER, ROOT_INO, b"photos", 0o755)).ino
        self.inside = make(owner, Mkdir(ROOT_CALLER, self.top, b"summer", 0o755)).ino
        self.file = put(owner, self.inside, b"in", b"for all").ino
        self.other = make(owner, Mkdir(ROOT_CALLER, ROOT_INO, b"secret", 0o755)).ino
        self.hidden = put(owner, self.other, b"out", b"for me").ino
        self.client = mount(node, make_token(node, directory=b"/photos/"))

    def __enter__(self) -> Fenced:
        return self

    def __exit__(self, *_: object) -> None:
        self.owner.close()
        self.client.close()


def test_a_directory_is_the_whole_tree(node: NodeProcess) -> None:
    """Below it everything works as in a tree of its own, whose root is the directory."""
    with Fenced(node) as fence:
        client = fence.client
        root = client.call(GetAttr(ROOT_INO))
        assert (root.ino, root.is_dir) == (ROOT_INO, True)
        assert [e.name for e in client.call(ReadDir(ROOT_INO, 0, 99))] == [b"summer"]
        assert client.call(Lookup(ROOT_INO, b"summer")).ino == fence.inside
        new = put(client, ROOT_INO, b"new", b"written").ino
        file: FileVersion = client.call(Open(new))
        assert client.call(BlobRead(file.blobs[0].blob, 0, 7)) == b"written"
        assert len(client.call(Versions(new))) >= 1
        make(client, Rename(ROOT_CALLER, ROOT_INO, b"new", fence.inside, b"moved", 0))
        make(client, SetAttr(ROOT_CALLER, ROOT_INO, mode=0o750))
        nameless = make(client, Tmpfile(ROOT_CALLER, ROOT_INO, 0o600)).ino
        make(client, Link(ROOT_CALLER, nameless, ROOT_INO, b"named"))
        make(client, CloneRange(ROOT_CALLER, fence.file, 0, nameless, 0, 7))
        assert client.call(SetLock(new, 1, LockKind.EXCLUSIVE, 0, 9, False, False, 0)) is True
        make(client, Unlink(ROOT_CALLER, fence.inside, b"moved"))
        client.call(GetAttr(new))  # open, without a name
        assert fence.owner.call(Lookup(fence.top, b"named")).ino == nameless
        assert fence.owner.call(GetAttr(fence.top)).mode & 0o777 == 0o750


def test_nothing_outside_is_reached(node: NodeProcess) -> None:
    """Not by number, by either end of a rename or link, by the name of a blob, or by a path."""
    with Fenced(node) as fence:
        client, other, hidden = fence.client, fence.other, fence.hidden
        blob = fence.owner.call(GetFile(hidden)).blobs[0]
        for request in (
            GetAttr(other), Lookup(other, b"out"), ReadDir(other, 0, 9), GetFile(hidden),
            Open(hidden), Versions(hidden), GetAttr(Ino(999)), GetAttr(hidden, 5),
            SetLock(hidden, 1, LockKind.SHARED, 0, 9, False, False, 0),
        ):  # fmt: skip
            assert refused(client, request) == errno.ESTALE, request
        assert refused(client, PathOf(fence.file)) == errno.EPERM
        assert refused(client, BlobRead(blob.blob, 0, 6)) == errno.EIO
        for command in (
            Create(ROOT_CALLER, other, b"x", 0o644, True),
            Unlink(ROOT_CALLER, other, b"out"),
            SetAttr(ROOT_CALLER, hidden, mode=0),
            Rename(ROOT_CALLER, other, b"out", ROOT_INO, b"x", 0),
            Rename(ROOT_CALLER, fence.inside, b"in", other, b"x", 0),
            Link(ROOT_CALLER, hidden, ROOT_INO, b"x"),
            Link(ROOT_CALLER, fence.file, other, b"x"),
            CloneRange(ROOT_CALLER, hidden, 0, fence.file, 0, 6),
            CloneRange(ROOT_CALLER, fence.file, 0, hidden, 0, 6),
        ):
            assert refused_command(client, command) == errno.ESTALE, command
        # Content outside can't be taken in by its blob's name, known to the tree or claimed anew.
        extents = (Extent(0, 6, blob.blob, 0),)
        for blobs in ((), (blob,)):
            theft = Commit(ROOT_CALLER, fence.file, None, 0, 6, False, extents, blobs)
            assert refused_command(client, theft) == errno.EIO
        assert fence.owner.call(Lookup(other, b"out")).ino == hidden
        file: FileVersion = fence.owner.call(GetFile(fence.file))
        assert fence.owner.call(BlobRead(file.blobs[0].blob, 0, 7)) == b"for all"


def test_what_is_moved_out_is_out(node: NodeProcess) -> None:
    """From that moment on, but for what the session has open; what is moved in is in."""
    with Fenced(node) as fence:
        client = fence.client
        client.call(Open(fence.file))
        make(fence.owner, Rename(ROOT_CALLER, fence.top, b"summer", ROOT_INO, b"summer", 0))
        assert refused(client, GetAttr(fence.inside)) == errno.ESTALE
        assert refused(client, Lookup(fence.inside, b"in")) == errno.ESTALE
        client.call(GetAttr(fence.file))
        make(fence.owner, Rename(ROOT_CALLER, ROOT_INO, b"secret", fence.top, b"given", 0))
        assert client.call(Lookup(fence.other, b"out")).ino == fence.hidden
        make(fence.owner, Link(ROOT_CALLER, fence.file, fence.other, b"second"))
    # A name below the directory is enough for a file that has another one outside.
    with mount(node, make_token(node, directory=b"/photos")) as again:
        again.call(GetAttr(fence.file))


def test_names_outside_are_not_told(node: NodeProcess) -> None:
    """Pushes name what changed below the directory, the directory itself as 1, and nothing else."""
    with Fenced(node) as fence:
        client = fence.client
        client.call(Subscribe())
        # Not waited for: each is answered when the client has acknowledged its push.
        for parent, name in ((fence.other, b"hush"), (fence.top, b"said")):
            fence.owner.serial += 1
            command = Create(ROOT_CALLER, parent, name, 0o644, True)
            fence.owner.send(Execute(fence.owner.client, Serial(fence.owner.serial), command))
        while not any(p.touched.entries for p in client.pushes):
            client.read()
        entries = [entry for p in client.pushes for entry in p.touched.entries]
        assert entries == [(ROOT_INO, b"said")]
        assert [p.sequence for p in client.pushes] == list(range(1, len(client.pushes) + 1))


def test_directory_that_is_gone(node: NodeProcess) -> None:
    """A token for a directory that was removed opens nothing."""
    with node.connect() as owner:
        make(owner, Mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755))
        token = make_token(node, directory=b"/d")
        make(owner, Rename(ROOT_CALLER, ROOT_INO, b"d", ROOT_INO, b"e", 0))
    with pytest.raises(Refused, match="is no directory"):
        mount(node, token)
