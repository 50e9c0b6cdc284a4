"""Directories that a client holds, and what replicas do when others want them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from pydi_node.commands import (
    ROOT_CALLER,
    Command,
    Create,
    Delegate,
    Mkdir,
    PutFile,
    Recall,
    ReserveInodes,
    Revoke,
    SetAttr,
    Undelegate,
)
from pydi_node.consensus.types import EntryKind
from pydi_node.effects import Reclaim
from pydi_node.envelopes import unpack_envelope
from pydi_node.errors import DeadlineError, NoQuorumError
from pydi_node.ids import ROOT_INO, ClientId, Ino, LogIndex
from pydi_node.recalls import PATIENCE_S, RETRY_S, Recalls
from pydi_node.records import Result, Touched
from tests.unit.replica.cluster import TICK_S, Cluster, Outcome
from tests.unit.tree.driver import Driver

HOLDER, OTHER, THIRD = 5, 6, 7


class Held:
    """Three nodes and a directory that the holder has; who does what is told by node and client."""

    def __init__(self) -> None:
        self.cluster = Cluster(3)
        self.leader = self.cluster.elect()
        self.a, self.b = (n for n in self.cluster.members if n != self.leader)
        self._serials = count(1)
        self.ino = self.ok(self.a, HOLDER, Mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755)).ino
        assert self.ok(self.a, HOLDER, Delegate(self.ino)) is True
        self.cluster.tick(4)  # nodes that nobody uses hear of it, too

    def begin(self, node: int, client: int, command: Command, seconds: float = 20.0) -> int:
        """The request of a new command, which is under way as far as it gets without time."""
        request = self.cluster.propose(node, client, next(self._serials), command, seconds)
        self.cluster.deliver()
        return request

    def look(
        self, node: int, client: int = 0, seconds: float = 20.0, ino: Ino | None = None
    ) -> int:
        request = self.cluster._request()
        deadline_s = self.cluster.now.mono_s + seconds
        event = Reclaim(request, ino or self.ino, ClientId(client), deadline_s)
        self.cluster.step(node, event)
        self.cluster.deliver()
        return request

    def outcome(self, node: int, request: int) -> Outcome | None:
        return self.cluster.members[node].replies.get(request)

    def wait(self, node: int, request: int) -> Outcome:
        self.cluster.until(lambda: self.outcome(node, request) is not None)
        outcome = self.outcome(node, request)
        assert outcome is not None
        return outcome

    def ok(self, node: int, client: int, command: Command) -> Any:
        outcome = self.wait(node, self.begin(node, client, command))
        assert isinstance(outcome, Result), outcome
        assert outcome.errno == 0, (command, outcome)
        return outcome.value

    def create(self, name: bytes) -> Create:
        return Create(ROOT_CALLER, self.ino, name, 0o644, True)

    def proposed(self, kind: type[Command]) -> int:
        """How many such commands are in the log."""
        entries = self.cluster.members[self.leader].entries
        envelopes = [unpack_envelope(e.data) for e in entries if e.kind is EntryKind.COMMAND]
        return sum(isinstance(envelope.command, kind) for envelope in envelopes)

    def pass_s(self, seconds: float) -> None:
        self.cluster.tick(int(seconds / TICK_S) + 1)


@pytest.fixture
def fs() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.cluster.close()


@pytest.mark.parametrize("asking", ["a node", "the leader", "the holder's node"])
def test_a_command_waits_until_the_holder_gives_back(held: Held, asking: str) -> None:
    """The holder is told by a push; what it sends before it gives back is executed before. Nothing
    in it takes time."""
    node = {"a node": held.b, "the leader": held.leader, "the holder's node": held.a}[asking]
    request = held.begin(node, OTHER, held.create(b"n"))
    assert held.outcome(node, request) is None
    assert held.cluster.members[held.a].pushes[-1] == Touched((held.ino,))
    attr, _ = held.ok(held.a, HOLDER, held.create(b"n"))
    assert held.outcome(node, request) is None
    held.begin(held.a, HOLDER, Undelegate((held.ino,)))
    assert held.outcome(node, request) == Result(errno.EEXIST)
    assert held.cluster.tree(node).lookup(held.ino, b"n") == attr
    assert (held.proposed(Recall), held.proposed(Revoke)) == (1, 0)


def test_a_look_waits_until_the_holder_gives_back(held: Held) -> None:
    """Others' looks; not the holder's own, nor one at another directory."""
    assert held.outcome(held.b, held.look(held.b, HOLDER)) == Result()
    assert held.outcome(held.b, held.look(held.b, ino=ROOT_INO)) == Result()
    assert held.proposed(Recall) == 0
    requests = [held.look(held.b), held.look(held.b, OTHER), held.look(held.leader)]
    nodes = [held.b, held.b, held.leader]
    held.pass_s(2 * RETRY_S)
    assert [held.outcome(*pair) for pair in zip(nodes, requests, strict=True)] == [None] * 3
    held.ok(held.a, HOLDER, held.create(b"n"))
    held.begin(held.a, HOLDER, Undelegate((held.ino,)))
    for pair in zip(nodes, requests, strict=True):
        assert held.outcome(*pair) == Result()
    assert held.cluster.tree(held.b).lookup(held.ino, b"n").nlink == 1
    assert (held.proposed(Recall), held.proposed(Revoke)) == (1, 0)


def test_a_silent_holder_loses_the_directory(held: Held) -> None:
    """After a while, and what it made meanwhile but had not told comes too late."""
    first = held.ok(held.a, HOLDER, ReserveInodes())
    request = held.begin(held.b, OTHER, held.create(b"n"))
    held.pass_s(PATIENCE_S - 0.5)
    assert held.outcome(held.b, request) is None
    held.pass_s(0.6)
    outcome = held.outcome(held.b, request)
    assert isinstance(outcome, Result)
    assert outcome.errno == 0
    assert held.proposed(Revoke) == 1
    held.ok(held.a, HOLDER, held.create(b"m"))  # which needs no delegation
    put = PutFile(ROOT_CALLER, held.ino, b"p", 0o644, 0, (), (), ino=first)
    assert held.wait(held.a, held.begin(held.a, HOLDER, put)) == Result(errno.ESTALE)


def test_a_holder_that_has_not_heard_keeps_the_directory(held: Held) -> None:
    """As long as it may rely on its lease. Who hangs behind a node that goes on loses that."""
    for node in held.cluster.members:
        held.cluster.has_lease(node)
    held.pass_s(0.2)
    assert held.cluster.has_lease(held.a)
    held.cluster.members[held.a].drops = False
    leases = held.cluster.replica(held.a).leases
    request = held.look(held.b)
    held.cluster.until(lambda: held.proposed(Recall) == 1)
    recalled = held.cluster.tree(held.b).delegation(held.ino)
    assert recalled is not None
    while held.proposed(Revoke) == 0:
        released = held.cluster.replica(held.b).leases.released
        assert held.outcome(held.b, request) is None
        assert held.cluster.tree(held.b).delegation(held.ino) == recalled
        held.cluster.tick()
    assert released >= recalled.recalled
    assert leases.remaining_s(held.cluster.now.uptime_s) <= 0
    assert held.wait(held.b, request) == Result()


def test_a_recall_survives_the_leader(held: Held) -> None:
    """Whoever leads next has it in its log, or it is proposed again."""
    held.cluster.cut = lambda sender, to: held.leader in (sender, to)
    request = held.begin(held.b, OTHER, held.create(b"n"))
    held.leader = held.cluster.elect() if held.cluster.leader() != held.leader else held.leader
    held.cluster.until(lambda: held.cluster.leader() in (held.a, held.b))
    assert held.outcome(held.b, request) is None
    held.cluster.until(
        lambda: bool((d := held.cluster.tree(held.a).delegation(held.ino)) and d.recalled)
    )
    held.begin(held.a, HOLDER, Undelegate((held.ino,)))
    outcome = held.wait(held.b, request)
    assert isinstance(outcome, Result)
    assert outcome.errno == 0


def test_who_asked_dies_and_somebody_else_asks(held: Held) -> None:
    """A directory that is recalled already is asked for no second time, and revoked in its time."""
    held.look(held.b)
    held.cluster.kill(held.b)
    held.pass_s(PATIENCE_S)
    assert held.proposed(Revoke) == 0
    request = held.look(held.leader)
    assert held.wait(held.leader, request) == Result()
    assert (held.proposed(Recall), held.proposed(Revoke)) == (1, 1)
    held.cluster.start(held.b)
    held.cluster.until(lambda: held.cluster.tree(held.b).delegation(held.ino) is None)


def test_who_goes_away_asks_no_more(held: Held) -> None:
    """Past its deadline a look is over, and so is a command, which then has never happened."""
    look = held.look(held.b, seconds=0.5)
    command = held.begin(held.b, OTHER, held.create(b"n"), seconds=0.5)
    held.pass_s(0.6)
    for request in (look, command):
        assert isinstance(held.outcome(held.b, request), DeadlineError)
    held.pass_s(2 * PATIENCE_S)
    assert held.proposed(Revoke) == 0
    assert held.cluster.replica(held.b).outstanding == 0
    held.begin(held.a, HOLDER, Undelegate((held.ino,)))
    held.pass_s(0.5)
    assert not held.cluster.tree(held.b).readdir(held.ino, 0, 9)


def test_without_a_majority_nobody_waits_beyond_the_deadline(held: Held) -> None:
    """The answer says why, so that whoever only looks can be shown what there is."""
    for node in (held.leader, held.a):
        held.cluster.kill(node)
    held.pass_s(5.0)
    request = held.look(held.b, seconds=1.0)
    assert isinstance(held.wait(held.b, request), NoQuorumError)
    for node in (held.leader, held.a):
        held.cluster.start(node)


def test_two_holders_are_asked_one_after_the_other(held: Held) -> None:
    """Whoever gets the directory in between is asked as well."""
    request = held.begin(held.b, OTHER, held.create(b"n"))
    held.cluster.cut = lambda sender, to: held.b in (sender, to)
    held.ok(held.a, HOLDER, Undelegate((held.ino,)))
    assert held.ok(held.a, THIRD, Delegate(held.ino)) is True
    held.cluster.cut = lambda sender, to: False
    held.cluster.until(lambda: held.proposed(Recall) == 2)
    assert held.outcome(held.b, request) is None
    held.begin(held.a, THIRD, Undelegate((held.ino,)))
    outcome = held.wait(held.b, request)
    assert isinstance(outcome, Result)
    assert outcome.errno == 0


def test_a_command_in_the_way_of_two_waits_for_both(held: Held) -> None:
    """Once they are free it is executed once, however often it was sent."""
    inner = held.ok(held.a, HOLDER, Mkdir(ROOT_CALLER, held.ino, b"e", 0o755)).ino
    assert held.ok(held.a, THIRD, Delegate(inner)) is True
    commands = [SetAttr(ROOT_CALLER, held.ino, mode=0o700), SetAttr(ROOT_CALLER, inner, mode=0o700)]
    requests = [held.begin(held.b, OTHER, command) for command in commands]
    assert held.proposed(Recall) == 2
    held.begin(held.a, HOLDER, Undelegate((held.ino,)))
    assert [held.outcome(held.b, request) is None for request in requests] == [False, True]
    held.begin(held.a, THIRD, Undelegate((inner,)))
    assert held.outcome(held.b, requests[1]) is not None
    assert held.cluster.tree(held.b).getattr(inner).mode & 0o7777 == 0o700


def test_what_is_not_released_is_not_revoked(fs: Driver) -> None:
    """However long it takes; nor before the holder had its time, counted from what is applied
    here. What is lost on its way is proposed again after a while, not at each step."""
    ino = fs.mkdir(b"d")
    fs.run(Delegate(ino), HOLDER, 1)
    recalls = Recalls()
    assert recalls.commands({ino}, fs.tree, fs.index, 10.0) == [Recall((ino,))]
    assert recalls.commands({ino}, fs.tree, fs.index, 10.9) == []
    assert recalls.commands({ino}, fs.tree, fs.index, 11.0) == [Recall((ino,))]
    fs.ok(Recall((ino,)))
    before = LogIndex(fs.index - 1)
    assert recalls.commands({ino}, fs.tree, before, 20.0) == []
    assert recalls.commands({ino}, fs.tree, fs.index, 20.0 + PATIENCE_S - 0.1) == []
    assert recalls.commands({ino}, fs.tree, before, 99.0) == []
    assert recalls.commands({ino}, fs.tree, fs.index, 99.0) == [Revoke((ino,), fs.index)]
    assert recalls.commands({ino}, fs.tree, fs.index, 99.1) == []
    assert recalls.commands(set(), fs.tree, fs.index, 199.0) == []


def test_who_does_not_answer_once_loses_all_that_it_holds(held: Held) -> None:
    """Whoever walks through what a dead mount held waits for the first of its directories only."""
    inos = [
        held.ok(held.a, HOLDER, Mkdir(ROOT_CALLER, ROOT_INO, b"d%d" % number, 0o755)).ino
        for number in range(10)
    ]
    others = held.ok(held.a, THIRD, Mkdir(ROOT_CALLER, ROOT_INO, b"other", 0o755)).ino
    for ino in inos:
        assert held.ok(held.a, HOLDER, Delegate(ino)) is True
    assert held.ok(held.a, THIRD, Delegate(others)) is True
    began_s = held.cluster.now.mono_s
    for ino in (held.ino, *inos):
        assert held.wait(held.b, held.look(held.b, ino=ino)) == Result()
    assert held.cluster.now.mono_s - began_s < 2 * PATIENCE_S + RETRY_S
    assert (held.proposed(Recall), held.proposed(Revoke)) == (2, 2)
    assert held.cluster.tree(held.b).delegation(others) is not None


def test_what_a_silent_holder_has_is_taken_though_nobody_looks(held: Held) -> None:
    """Its other directories are free when somebody comes to them later."""
    second = held.ok(held.a, HOLDER, Mkdir(ROOT_CALLER, ROOT_INO, b"e", 0o755)).ino
    assert held.ok(held.a, HOLDER, Delegate(second)) is True
    assert held.wait(held.b, held.look(held.b)) == Result()
    held.pass_s(PATIENCE_S + RETRY_S)
    assert held.outcome(held.b, held.look(held.b, ino=second)) == Result()
    assert held.cluster.replica(held.b).outstanding == 0
