"""A directory that one mount holds, as others see it, whatever happens to its holder.

The holder here is a test that answers as a mount does, or does not.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pydi_node.commands import (
    ROOT_CALLER,
    Command,
    Create,
    Delegate,
    Mkdir,
    PutFile,
    ReserveInodes,
    SetAttr,
    Undelegate,
)
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, Ino, Serial
from pydi_node.records import EVERY_NAME, Result, Touched
from pydi_node.wire.messages import (
    DropAll,
    Execute,
    GetAttr,
    Invalidate,
    Lease,
    Lookup,
    ReadDir,
    Role,
    Subscribe,
)
from tests.harness.procs import NodeProcess, wait_until
from tests.harness.trees import wait_one_tree
from tests.node.test_cluster import start_cluster, status
from tests.node.test_tokens import make_token

MakeNode = Callable[..., NodeProcess]


def put(parent: Ino, name: bytes, number: Ino) -> PutFile:
    """An empty file with a number of its holder's."""
    return PutFile(ROOT_CALLER, parent, name, 0o644, 0, (), (), ino=number)


class Holder:
    """A mount that holds a directory and has answered "create" for a file in it by itself."""

    def __init__(self, node: NodeProcess) -> None:
        self.client = node.connect(Role.MOUNT)
        self.client.acknowledges = False
        self.client.call(Subscribe())
        wait_until(lambda: self.client.call(Lease()) > 0, "the holder has a lease")
        self.directory: Ino = self.ok(Mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        self.number: Ino = self.ok(ReserveInodes())
        assert self.ok(Delegate(self.directory)) is True

    def ok(self, command: Command) -> Any:
        result = self.client.execute(command)
        assert result.errno == 0, (command, result)
        return result.value

    def send(self, command: Command) -> int:
        self.client.serial += 1
        return self.client.send(Execute(self.client.client, Serial(self.client.serial), command))

    def put(self, name: bytes = b"n") -> PutFile:
        """What it has not told yet."""
        return put(self.directory, name, self.number)

    @property
    def is_recalled(self) -> bool:
        return any(
            isinstance(push, Invalidate) and self.directory in push.touched.inos
            for push in self.client.pushes
        )

    def wait_recall(self) -> None:
        while not self.is_recalled:
            self.client.read()

    def give_back(self) -> None:
        """In the order in which a mount does it."""
        request = self.send(self.put())
        self.client.acknowledge()
        assert self.client.wait(request).errno == 0
        self.ok(Undelegate((self.directory,)))

    def close(self) -> None:
        self.client.close()


class Cluster:
    """Three nodes; the leader is neither the holder's nor that of the others who look."""

    def __init__(self, make_node: MakeNode) -> None:
        nodes = start_cluster(make_node, 3)
        leader = status(nodes[0])["leader"]
        self.leader = next(node for node in nodes if node.run["number"] == leader)
        self.first, self.second = (node for node in nodes if node is not self.leader)
        self.nodes = nodes
        self.holder = Holder(self.first)
        self.other = self.second.connect(Role.MOUNT)
        self.serial = 0

    def close(self) -> None:
        self.holder.close()
        self.other.close()

    def ask(self, what: str) -> int:
        """Somebody else's request that sees names of the directory; its number."""
        directory = self.holder.directory
        if what == "lookup":
            return self.other.send(Lookup(directory, b"n"))
        if what == "readdir":
            return self.other.send(ReadDir(directory, 0, 100))
        self.serial += 1
        create = Create(ROOT_CALLER, directory, b"n", 0o600, what == "exclusive")
        return self.other.send(Execute(self.other.client, Serial(self.serial), create))

    def seen(self, what: str, request: int) -> Ino | None:
        """The file that the answer shows; None: it says that there was none."""
        try:
            answer = self.other.wait(request)
        except FileError as error:
            if (what, error.errno) != ("lookup", errno.ENOENT):
                raise
            return None
        match what:
            case "lookup":
                ino: Ino = answer.ino
                return ino
            case "readdir":
                return answer[0].attr.ino if answer else None
            case "exclusive" if answer.errno == errno.EEXIST:
                return self.holder.number
        attr, created = answer.value
        return None if created else attr.ino


@pytest.fixture
def cluster(make_node: MakeNode) -> Iterator[Cluster]:
    cluster = Cluster(make_node)
    yield cluster
    cluster.close()


QUESTIONS = ["lookup", "readdir", "exclusive", "create"]


@pytest.mark.parametrize("what", QUESTIONS)
def test_others_see_what_the_holder_has_not_told_yet(cluster: Cluster, what: str) -> None:
    """Whoever looks waits until the holder has told it; its number is the one that it gave."""
    request = cluster.ask(what)
    cluster.holder.wait_recall()
    cluster.holder.give_back()
    assert cluster.seen(what, request) == cluster.holder.number
    wait_one_tree(cluster.nodes)


def test_nobody_is_asked_without_need(cluster: Cluster) -> None:
    """By the holder's own questions, by those for other directories, for the past; then a change of
    the attributes asks."""
    holder = cluster.holder
    holder.client.call(ReadDir(holder.directory, 0, 100))
    with pytest.raises(FileError):
        holder.client.call(Lookup(holder.directory, b"n"))
    past = cluster.other.call(GetAttr(ROOT_INO)).changed
    cluster.other.call(ReadDir(ROOT_INO, 0, 100))
    assert list(cluster.other.call(ReadDir(holder.directory, 0, 100, past))) == []
    cluster.other.call(GetAttr(holder.directory, past))
    cluster.other.call(Lookup(ROOT_INO, b"d", past))
    holder.client.call(GetAttr(holder.directory))
    holder.client.call(GetAttr(ROOT_INO))  # it would have heard by now
    assert not holder.is_recalled
    cluster.serial += 1
    chmod = SetAttr(ROOT_CALLER, holder.directory, mode=0o700)
    request = cluster.other.send(Execute(cluster.other.client, Serial(cluster.serial), chmod))
    holder.wait_recall()
    holder.give_back()
    result = cluster.other.wait(request)
    assert (result.errno, result.value.mode & 0o7777) == (0, 0o700)


@pytest.mark.parametrize("how", ["is gone", "says nothing", "is on a dead node"])
def test_a_holder_that_does_not_answer_holds_nobody_up(cluster: Cluster, how: str) -> None:
    """Others go on without what it has not told, and that is refused when it comes too late: nobody
    saw it, and nobody ever will."""
    holder = cluster.holder
    if how == "is gone":
        holder.close()
    elif how == "is on a dead node":
        cluster.first.kill()
    for what in QUESTIONS[:3]:
        assert cluster.seen(what, cluster.ask(what)) is None
    again = (cluster.first if how == "says nothing" else cluster.leader).connect(Role.MOUNT)
    with again:
        late = Execute(holder.client.client, Serial(holder.client.serial + 1), holder.put())
        assert again.call(late).errno == errno.EEXIST  # whom others have made meanwhile
        late = Execute(holder.client.client, Serial(holder.client.serial + 2), holder.put(b"m"))
        assert again.call(late) == Result(errno.ESTALE)


@pytest.mark.parametrize("what", QUESTIONS[:3])
def test_a_recall_survives_the_leader(cluster: Cluster, what: str) -> None:
    """It dies when the holder has been told: the others wait, and see what the holder made."""
    request = cluster.ask(what)
    cluster.holder.wait_recall()
    cluster.leader.kill()
    cluster.holder.give_back()
    assert cluster.seen(what, request) == cluster.holder.number


def test_who_can_not_hold_directories_drops_everything(cluster: Cluster) -> None:
    """A mount says in its hello under which client id it may hold them, and then understands a push
    that means every name in a directory. One that does not is of an older version."""
    with cluster.second.connect(Role.CLIENT) as older, cluster.second.connect(Role.MOUNT) as newer:
        for client in (older, newer):
            client.call(Subscribe())
        directory = cluster.holder.ok(Mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
        cluster.holder.ok(Delegate(directory))
        while not any(isinstance(push, DropAll) for push in older.pushes):
            older.read()
        told = Touched((directory,), ((directory, EVERY_NAME),))
        while not any(
            isinstance(push, Invalidate) and push.touched == told for push in newer.pushes
        ):
            newer.read()
        # What those who were silent before hold is taken from them meanwhile: there are others.
        heard = [push.touched for push in older.pushes if isinstance(push, Invalidate)]
        assert Touched((ROOT_INO,), ((ROOT_INO, b"e"),)) in heard
        assert told not in heard
        assert not any(isinstance(push, DropAll) for push in newer.pushes)


def test_what_a_token_does_not_allow(node: NodeProcess) -> None:
    """A read-only one holds nothing, one of a directory nothing outside of that."""
    with node.connect() as client:
        own = client.execute(Mkdir(ROOT_CALLER, ROOT_INO, b"own", 0o755)).value.ino
        outside = client.execute(Mkdir(ROOT_CALLER, ROOT_INO, b"outside", 0o755)).value.ino
    token = make_token(node, read_only=True)["token"]
    with node.connect_tls(token, Role.MOUNT) as mount, pytest.raises(FileError) as refused:
        mount.execute(Delegate(own))
    assert refused.value.errno == errno.EROFS
    token = make_token(node, directory=b"/own")["token"]
    with node.connect_tls(token, Role.MOUNT) as mount:
        with pytest.raises(FileError) as refused:
            mount.execute(Delegate(outside))
        assert refused.value.errno == errno.ESTALE
        assert mount.execute(Delegate(ROOT_INO)).value is True
        number = mount.execute(ReserveInodes()).value
        assert mount.execute(put(ROOT_INO, b"f", number)).value.ino == number
        with node.connect() as client:
            request = client.send(Lookup(own, b"f"))
            mount.call(Lookup(ROOT_INO, b"f"))
            assert mount.execute(Undelegate((ROOT_INO,))).value == 1
            assert client.wait(request).ino == number


def test_without_a_majority_there_is_an_answer(cluster: Cluster) -> None:
    """Who waits for a holder when the majority is lost is shown what there is, as everybody is who
    asks then."""
    cluster.first.kill()
    requests = [cluster.ask("lookup"), cluster.ask("readdir")]
    cluster.leader.kill()
    assert cluster.seen("lookup", requests[0]) is None
    assert cluster.seen("readdir", requests[1]) is None
    assert cluster.seen("readdir", cluster.ask("readdir")) is None
