"""Replicas joined in memory: a network that can be cut, disks that can be stopped, one clock.

Deterministic: messages are delivered in the order they were sent, one batch per step, nodes in
ascending order. A disk is a list; what a test doesn't stop is durable at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from math import inf
from typing import Any

from pydi_node.commands import ROOT_CALLER, Command, Create
from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import (
    Config,
    Entry,
    HardState,
    Membership,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
)
from pydi_node.effects import (
    Cut,
    Dropped,
    DropSnapshot,
    Effect,
    Event,
    FromPeer,
    Now,
    Overdue,
    PeerMessage,
    Persist,
    Persisted,
    Propose,
    Push,
    Read,
    Reply,
    Send,
    SnapshotBytes,
    SnapshotInstalled,
    SnapshotTaken,
    SnapshotWritten,
    TakeSnapshot,
    Tick,
    decode_peer_message,
    encode_peer_message,
)
from pydi_node.errors import PydiError
from pydi_node.ids import ROOT_INO, ClientId, LogIndex, NodeNumber, Serial, TimeNs
from pydi_node.records import Result, Touched
from pydi_node.replica import Replica
from pydi_node.replica_config import ReplicaConfig
from pydi_node.tree import schema, snapshot
from pydi_node.tree.check import check
from pydi_node.tree.machine import Tree

TICK_S = 0.05
Outcome = Result | PydiError


class Member:
    """One node: replica, tree, disk, and what came out of it."""

    def __init__(
        self, number: int, meta: SnapshotMeta, config: ReplicaConfig, raft: dict[str, Any]
    ):
        self.number = NodeNumber(number)
        self.hard_state = HardState()
        self.meta = meta
        self.entries: list[Entry] = []
        self.connection = new_connection()
        self.copies: dict[bytes, bytes] = {}
        self.incoming = bytearray()
        self.disk_stopped = False
        self.unsynced: list[Persist] = []
        self.replies: dict[int, Outcome] = {}
        self.pushes: list[Touched] = []
        self.drops = True  # what is pushed is dropped at once
        self.others: list[Effect] = []  # effects that only tests look at
        self._config = config
        self._raft = raft
        tree = Tree(self.connection)
        if meta.membership.members:
            tree.set_membership(meta.index, meta.term, codec.pack_membership(meta.membership))
        self.replica: Replica | None = None

    def start(self, now: Now, seed: int) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")  # what the last life had not committed
        tree = Tree(self.connection)
        raft = Raft(
            Config(self.number, seed, **self._raft), self.hard_state, self.meta, self.entries,
            tree.applied_index,
        )  # fmt: skip
        self.replica = Replica(raft, tree, self._config, now)
        self.unsynced = []


class Cluster:
    """``voters`` found it; ``newcomers`` are up with empty disks and wait to be added."""

    def __init__(
        self,
        voters: int,
        newcomers: int = 0,
        config: ReplicaConfig | None = None,
        **raft: Any,
    ) -> None:
        self.now = Now(100.0, TimeNs(1_000_000_000_000), 100.0)
        self.cut: Callable[[int, int], bool] = lambda sender, to: False
        self.lose: Callable[[PeerMessage], bool] = lambda message: False
        self._starts = 0
        self._next_request = 1
        self._queue: list[PeerMessage] = []
        founding = SnapshotMeta(membership=Membership.founding(*range(1, voters + 1)))
        self.members: dict[int, Member] = {}
        for number in range(1, voters + newcomers + 1):
            meta = founding if number <= voters else SnapshotMeta()
            member = Member(number, meta, config or ReplicaConfig(), raft)
            self.members[number] = member
            self.start(number)

    def close(self) -> None:
        for member in self.members.values():
            if member.replica is not None:
                member.replica.tree.commit()
            assert check(member.connection) == []
            member.connection.close()

    # --- control ----------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        self._starts += 1
        self.members[number].start(self.now, self._starts * 7919)

    def kill(self, number: int) -> None:
        """The process ends; what was not synced is gone."""
        self.members[number].replica = None
        self.members[number].unsynced = []

    def tick(self, count: int = 1) -> None:
        """That many ticks everywhere, with everything delivered after each."""
        for _ in range(count):
            mono_s = self.now.mono_s + TICK_S
            self.now = Now(mono_s, TimeNs(self.now.time_ns + 50_000_000), mono_s)
            for number in self.members:
                self.step(number, Tick())
            self.deliver()

    def until(self, condition: Callable[[], bool], ticks_max: int = 400) -> None:
        """Ticks until it holds."""
        for _ in range(ticks_max):
            if condition():
                return
            self.tick()
        raise AssertionError(f"not within {ticks_max} ticks")

    def elect(self) -> int:
        """The number of the leader that a majority follows."""
        self.until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        return leader

    def leader(self) -> int | None:
        """Who leads in the highest term, once all that are up know it."""
        up = [m.replica for m in self.members.values() if m.replica is not None]
        term = max(replica.raft.term for replica in up)
        leaders = [r.raft.node for r in up if r.is_leader and r.raft.term == term]
        return int(leaders[0]) if leaders else None

    def step(self, number: int, *events: Event) -> None:
        """Events into one node and its effects out; messages wait for ``deliver``."""
        member = self.members[number]
        if member.replica is None:
            return
        for effect in member.replica.step(self.now, events):
            self._do(member, effect)
        applied_index = member.replica.tree.applied_index
        if member.drops and member.replica.leases.dropped < applied_index:
            self.step(number, Dropped(applied_index))

    def deliver(self, rounds_max: int = 1000) -> None:
        """Until no message is under way, no disk has anything to do, and nobody waits in vain."""
        for _ in range(rounds_max):
            for number, member in self.members.items():
                if member.unsynced and not member.disk_stopped:
                    self.sync(number)
            if (
                not self._queue
                and not any(m.unsynced and not m.disk_stopped for m in self.members.values())
                and not self._let_overdue_come()
            ):
                return
            queue, self._queue = self._queue, []
            for message in queue:
                if not self.cut(message.sender, message.to) and not self.lose(message):
                    # Over the wire's form and back, as between machines.
                    plain = encode_peer_message(message)
                    self.step(message.to, FromPeer(decode_peer_message(_tuples(plain))))
        raise AssertionError("the network does not come to rest")

    def _let_overdue_come(self) -> bool:
        """The clock goes on to the first moment at which somebody's patience ends, if there is one
        before the next tick."""
        waiting = [
            (m.replica.overdue_s, n) for n, m in self.members.items() if m.replica is not None
        ]
        due_s, number = min(waiting, default=(inf, 0))
        if due_s > self.now.mono_s + TICK_S:
            return False
        due_s = max(due_s, self.now.mono_s)
        self.now = Now(due_s, self.now.time_ns, due_s)
        self.step(number, Overdue())
        return True

    def sync(self, number: int) -> None:
        """The disk writes what it has."""
        member = self.members[number]
        done, member.unsynced = member.unsynced, []
        for persist in done:
            if persist.truncate_from is not None:
                member.entries = [e for e in member.entries if e.index < persist.truncate_from]
            member.entries += persist.entries
            member.hard_state = persist.hard_state or member.hard_state
        if done:
            self.step(number, Persisted(done[-1].number))

    # --- use --------------------------------------------------------------------------------------

    def propose(
        self, number: int, client: int, serial: int, command: Command, deadline_s: float = 10.0
    ) -> int:
        """A command into one node; the request under which its reply will be found there."""
        request = self._request()
        self.step(
            number,
            Propose(
                request, ClientId(client), Serial(serial), command, self.now.mono_s + deadline_s
            ),
        )
        return request

    def execute(self, number: int, client: int, serial: int, command: Command) -> Outcome:
        """The outcome, as one node's client sees it."""
        request = self.propose(number, client, serial, command)
        replies = self.members[number].replies
        self.deliver()
        self.until(lambda: request in replies)
        return replies.pop(request)

    def read(self, number: int, deadline_s: float = 10.0) -> int:
        request = self._request()
        self.step(number, Read(request, self.now.mono_s + deadline_s))
        return request

    def request(self, number: int, make: Callable[[int, float], Event]) -> Outcome:
        """The outcome of an event that takes a request and a deadline."""
        request = self._request()
        self.step(number, make(request, self.now.mono_s + 30.0))
        replies = self.members[number].replies
        self.deliver()
        self.until(lambda: request in replies, 700)
        return replies.pop(request)

    def tree(self, number: int) -> Tree:
        replica = self.members[number].replica
        assert replica is not None
        return replica.tree

    def has_lease(self, number: int) -> bool:
        """And somebody there would use it."""
        leases = self.replica(number).leases
        leases.want(self.now.uptime_s)
        return leases.remaining_s(self.now.uptime_s) > 0

    def replica(self, number: int) -> Replica:
        replica = self.members[number].replica
        assert replica is not None
        return replica

    def _request(self) -> int:
        self._next_request += 1
        return self._next_request

    # --- effects ----------------------------------------------------------------------------------

    def _do(self, member: Member, effect: Effect) -> None:
        match effect:
            case Persist():
                member.unsynced.append(effect)
            case Send(messages):
                self._queue += messages
            case Reply(request, outcome):
                assert request not in member.replies, "answered twice"
                member.replies[request] = outcome
            case Push(touched):
                member.pushes += [item for *_, item in touched]
            case Cut(meta):
                member.meta = meta
                member.entries = [e for e in member.entries if e.index > meta.index]
            case TakeSnapshot():
                self.tree(member.number).commit()  # the runtime's copy is of the last commit
                target = new_connection(prepare=False)
                taken = snapshot.copy_to(member.connection, target)
                data = target.serialize()
                target.close()
                snapshot_id = b"%d-%d" % (member.number, taken.applied_index)
                member.copies[snapshot_id] = data
                self.step(member.number, SnapshotTaken(snapshot_id, taken.applied_index, len(data)))
            case SnapshotRead(_, snapshot_id, offset, length):
                data = member.copies[snapshot_id][offset : offset + length]
                self.step(member.number, SnapshotBytes(effect, data))
            case SnapshotWrite(_, _, _, offset, data):
                del member.incoming[offset:]
                member.incoming += data
                self.step(member.number, SnapshotWritten(effect))
            case SnapshotInstall():
                member.connection.close()
                member.connection = new_connection(bytes(member.incoming))
                member.meta, member.entries = effect.meta, []
                tree = Tree(member.connection)
                self.step(member.number, SnapshotInstalled(effect, tree))
            case DropSnapshot(snapshot_id):
                member.copies.pop(snapshot_id, None)
            case _:
                member.others.append(effect)


def new_connection(data: bytes = b"", prepare: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    if data:
        connection.deserialize(data)
    if prepare:
        schema.prepare(connection)
    return connection


def create(name: str) -> Create:
    """The usual command of these tests."""
    return Create(ROOT_CALLER, ROOT_INO, name.encode(), 0o644, True)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def applied(cluster: Cluster, number: int) -> LogIndex:
    return cluster.tree(number).applied_index
