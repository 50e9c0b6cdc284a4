"""A few cores joined in memory under a random schedule, and the invariants they must keep.

One ``Simulation(seed)`` draws its own parameters (how many nodes, how lossy, how slow the disks),
then takes random steps: tick, deliver, drop, repeat, write to a disk, crash, restart, partition,
propose, read, change the membership. After every step ``Checker`` looks at what changed. Then
``converge`` heals everything and demands progress within a bounded time.

Everything random comes from the seed. The disks are the point: a Ready waits in a queue until the
schedule writes it, a crash loses the queue or leaves part of it written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydi_node.consensus import codec
from pydi_node.consensus.log import recovered
from pydi_node.consensus.progress import ProgressState
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.splitmix import SplitMix64
from pydi_node.consensus.types import (
    AppendRequest,
    AppendResponse,
    ChangeKind,
    Config,
    Entry,
    EntryKind,
    HardState,
    Membership,
    MembershipChange,
    Message,
    Ready,
    Role,
    SnapshotChunk,
    SnapshotInstall,
    SnapshotMeta,
    SnapshotRead,
    SnapshotWrite,
    VoteRequest,
    VoteResponse,
)
from pydi_node.errors import UnavailableError, UserError

T = TypeVar("T")


class Violation(AssertionError):
    """An invariant of Raft does not hold."""


class Dice:
    """Random choices out of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = SplitMix64(seed, 0)

    def below(self, bound: int) -> int:
        return self._random.next() % bound

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        return self.below(100) < chance

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


@dataclass
class Disk:
    """What survives a crash: the log, and the tree with the snapshot file beside it."""

    front: SnapshotMeta
    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    installed: SnapshotMeta | None = None
    incoming: tuple[bytes, bytes] | None = None  # id and bytes of a snapshot being received
    # The tree as of its last checkpoint: index, term, digest of all it has applied.
    tree: tuple[int, int, bytes] = (0, 0, b"")

    @property
    def last_index(self) -> int:
        return self.front.index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        position = index - self.front.index - 1
        if position == -1:
            return self.front.term
        return self.entries[position].term if 0 <= position < len(self.entries) else None

    def write(self, ready: Ready, entries_count: int | None = None) -> None:
        """One Ready, or after a crash only its first ``entries_count`` entries."""
        entries = list(ready.entries)
        if ready.truncate_from is not None:
            assert ready.truncate_from > self.front.index, (ready.truncate_from, self.front.index)
            del self.entries[ready.truncate_from - self.front.index - 1 :]
        if entries:
            assert entries[0].index == self.last_index + 1, (entries[0].index, self.last_index)
        self.entries.extend(entries[:entries_count])
        if ready.hard_state is not None and entries_count is None:
            assert ready.hard_state.term >= self.hard_state.term
            self.hard_state = ready.hard_state


class Node:
    """One machine: a disk, and while it is up a core with the work that is under way."""

    def __init__(self, number: int, disk: Disk) -> None:
        self.number = number
        self.disk = disk
        self.raft: Raft | None = None
        self.writes: list[Ready] = []  # handed out, not on the disk yet, in order
        self.tree = disk.tree
        self.files: dict[bytes, bytes] = {}  # own snapshots
        self.reads: list[SnapshotRead] = []
        self.chunks: list[SnapshotWrite] = []
        self.install: SnapshotInstall | None = None
        self.install_after = 0  # number of the Ready that brought it
        self.snapshot_wanted = False
        self.waiting_reads: dict[object, int] = {}
        # Watched by the checker.
        self.commit_seen = 0
        self.term_seen = 0
        self.role_seen: tuple[Role, int] = (Role.FOLLOWER, 0)
        self.last_seen = 0


class Checker:
    """Invariants over all nodes. The numbers are those of reference section "What any
    implementation must have"; contract=False leaves only what an outsider could observe."""

    def __init__(self, contract: bool) -> None:
        self.contract = contract
        self.leaders: dict[int, int] = {}  # term -> node
        self.votes: dict[tuple[int, int], int] = {}  # (term, voter) -> candidate
        # (index, term) -> what it is and the term before it; with unique predecessors, equal
        # (index, term) implies equal logs up to there (log matching, by induction).
        self.entries: dict[tuple[int, int], tuple[EntryKind, bytes, int | None]] = {}
        self.committed: dict[int, int] = {0: 0}  # index -> term
        self.commit_max = 0
        self.digests: dict[int, bytes] = {0: b""}
        self.elections = 0
        self.reads_answered = 0

    def require(self, holds: bool, *facts: object) -> None:
        if not holds:
            raise Violation(*facts)

    def on_entries(self, entries: Sequence[Entry], previous_term: int | None) -> None:
        """Log matching (4), for what reaches a disk or the network."""
        for index, term, kind, data in entries:
            known = self.entries.get((index, term))
            if known is None:
                self.entries[index, term] = (kind, data, previous_term)
            else:
                self.require(known[:2] == (kind, data), "two entries at", index, term)
                if previous_term is not None and known[2] is not None:
                    self.require(known[2] == previous_term, "two logs before", index, term)
            previous_term = term

    def on_send(self, node: Node, message: Message) -> None:
        """One vote per term (9), and nothing promised that isn't durable (10)."""
        disk = node.disk
        if isinstance(message, AppendRequest):
            self.on_entries(message.entries, message.prev_term)
        if isinstance(message, VoteResponse) and message.granted and not message.pre:
            key = (message.term, node.number)
            before = self.votes.setdefault(key, message.to)
            self.require(before == message.to, "two votes", key, before, message.to)
        if not self.contract:
            return
        pre = isinstance(message, (VoteRequest, VoteResponse)) and message.pre
        if not pre:
            self.require(disk.hard_state.term >= message.term, "term not durable", message)
        if isinstance(message, VoteResponse) and message.granted and not pre:
            hard = disk.hard_state
            self.require(
                hard.term > message.term or hard.vote == message.to, "vote not durable", message
            )
        if isinstance(message, AppendResponse) and not message.rejected:
            # A later leader may have cut the log again by now; then the term has moved on.
            self.require(
                disk.last_index >= message.index or disk.hard_state.term > message.term,
                "acknowledged, not durable", message, disk.last_index,
            )  # fmt: skip

    def on_change(self, node: Node, nodes: dict[int, Node]) -> None:
        """After every input of a core."""
        raft = node.raft
        assert raft is not None
        self.require(raft.term >= node.term_seen, "term went back", node.number, raft.term)
        node.term_seen = raft.term
        self.require(
            raft.commit_index >= node.commit_seen, "commit went back", node.number, node.commit_seen
        )
        if raft.role is Role.LEADER:
            if node.role_seen != (Role.LEADER, raft.term):
                self._on_leader(node, raft)
            self.require(raft.last_index >= node.last_seen, "a leader cut its own log", raft.term)
            self._check_peers(raft, nodes)
        node.role_seen = (raft.role, raft.term)
        node.last_seen = raft.last_index if raft.role is Role.LEADER else 0
        if raft.commit_index > node.commit_seen:
            self._on_commit(node, raft, nodes)
            node.commit_seen = raft.commit_index

    def _on_leader(self, node: Node, raft: Raft) -> None:
        """Election safety (2, 3) and leader completeness (7)."""
        other = self.leaders.setdefault(raft.term, node.number)
        self.require(other == node.number, "two leaders in term", raft.term, other, node.number)
        self.elections += 1
        node.last_seen = raft.last_index
        for index in range(raft.first_index, self.commit_max + 1):
            self.require(
                raft._log.term_at(index) == self.committed[index],
                "leader", node.number, "of term", raft.term, "lacks committed entry", index,
            )  # fmt: skip

    def _check_peers(self, raft: Raft, nodes: dict[int, Node]) -> None:
        """match <= the follower's disk, next > match (14); learners aside, 15."""
        assert raft._lead is not None
        for number, progress in raft._lead.peers.items():
            self.require(progress.match_index < progress.next_index, "match", number)
            disk = nodes[number].disk
            if self.contract and disk.hard_state.term == raft.term:
                self.require(progress.match_index <= disk.last_index, "match not durable", number)
        # A new leader may not know yet that the older of two is committed.
        pending = [i for i, _ in raft._log._memberships if i > self.commit_max]
        self.require(len(pending) <= 1, "two uncommitted memberships", pending)

    def _on_commit(self, node: Node, raft: Raft, nodes: dict[int, Node]) -> None:
        """Committed prefixes agree (1) and are on a majority's disks (5, 10, 16)."""
        log = raft._log
        for index in range(max(node.commit_seen, log.front.index) + 1, raft.commit_index + 1):
            term = log.term_at(index)
            assert term is not None
            before = self.committed.setdefault(index, term)
            self.require(before == term, "committed twice, differently", index, before, term)
        self.commit_max = max(self.commit_max, raft.commit_index)
        if self.contract and raft.role is Role.LEADER:
            index = raft.commit_index
            term = self.committed[index]
            voters = log.membership.voters
            holding = [v for v in voters if nodes[v].disk.term_at(index) == term
                       or nodes[v].disk.front.index >= index]  # fmt: skip
            self.require(2 * len(holding) > len(voters), "committed on a minority", index, holding)

    def on_apply(self, node: Node, entries: Sequence[Entry]) -> None:
        """The same state at the same index everywhere (17), nothing applied twice."""
        index, _, digest = node.tree
        for entry in entries:
            self.require(entry.index == index + 1, "applied out of order", entry.index, index)
            self.require(self.committed.get(entry.index) == entry.term, "applied uncommitted")
            index = entry.index
            digest = hashlib.sha1(digest + repr(entry).encode()).digest()
            known = self.digests.setdefault(index, digest)
            self.require(known == digest, "states differ at", index)
            node.tree = (index, entry.term, digest)

    def on_read(self, asked_at_commit: int, index: int) -> None:
        """A read sees everything committed before it was asked (19)."""
        self.reads_answered += 1
        self.require(index >= asked_at_commit, "stale read", asked_at_commit, index)


class Simulation:
    """One random life of a cluster."""

    def __init__(
        self,
        seed: int,
        make_raft: Callable[..., Raft] = Raft,
        contract: bool = True,
        **forced: int,
    ) -> None:
        """forced: parameters that are not left to chance, by their names below."""
        self.seed = seed
        self.make_raft = make_raft
        self.dice = dice = Dice(seed)
        self.checker = Checker(contract)
        # Swarm testing: each seed stresses other things.
        parameters = {
            "voters": dice.pick([1, 2, 3, 3, 3, 4, 5]),
            "joiners": dice.pick([0, 0, 1, 2]),
            "loss": dice.pick([0, 0, 5, 15, 30]),
            "repeat": dice.pick([0, 0, 5, 15]),
            "reorder": dice.pick([0, 20, 60]),
            "crash": dice.pick([0, 2, 5, 10]),
            "partitions": dice.pick([0, 2, 6]),
            "pauses": dice.pick([0, 2, 5]),
            "unrest": dice.pick([0, 1, 5, 15]),  # elections that nothing called for
            "disk_speed": dice.pick([5, 20, 80]),
            "changes": dice.pick([0, 0, 2, 6]),
            "compacts": dice.pick([0, 5, 20]),
            "election_ticks": dice.pick([5, 8]),
            "heartbeat_ticks": dice.pick([1, 2]),
            "append_bytes_max": dice.pick([1, 100, 2000]),
            "inflight_messages_max": dice.pick([1, 3, 20]),
            "inflight_bytes_max": dice.pick([50, 1000, 100_000]),
            "committed_bytes_max": dice.pick([1, 300, 100_000]),
            "trailing_entries": dice.pick([0, 3, 20]),
            "snapshot_chunk_bytes": dice.pick([7, 20, 1000]),
        }
        # Out of dice of its own, so that seeds go on living the lives for which they are known.
        self.habits = Dice(~seed)
        parameters["unused"] = self.habits.pick([0, 50, 100])  # followers that may be made to wait
        parameters |= forced
        voters_count, joiners_count = parameters.pop("voters"), parameters.pop("joiners")
        self.loss = parameters.pop("loss")
        self.repeat = parameters.pop("repeat")
        self.reorder = parameters.pop("reorder")
        self.crash = parameters.pop("crash")
        self.partitions = parameters.pop("partitions")
        self.pauses = parameters.pop("pauses")
        self.unrest = parameters.pop("unrest")
        self.disk_speed = parameters.pop("disk_speed")
        self.changes = parameters.pop("changes")
        self.compacts = parameters.pop("compacts")
        self.unused = parameters.pop("unused")
        self.settings = parameters
        founding = Membership.founding(*range(1, voters_count + 1))
        self.nodes: dict[int, Node] = {}
        for number in range(1, voters_count + joiners_count + 1):
            membership = founding if number <= voters_count else Membership()
            self.nodes[number] = Node(number, Disk(SnapshotMeta(0, 0, membership)))
        self.network: list[Message] = []
        self.late: list[Message] = []  # copies that may arrive at any time, terms later
        self.cut: set[tuple[int, int]] = set()  # (from, to) that loses everything
        self.steps = 0
        self.proposed = 0
        self.crashes = 0
        self.installs = 0
        self.starts = 0
        self.paused: set[int] = set()  # as under SIGSTOP: up, but nothing moves
        self.clock_percent = {number: dice.pick([20, 100, 100]) for number in self.nodes}
        for node in self.nodes.values():
            self.start(node)

    # --- one node's life

    def start(self, node: Node) -> None:
        assert node.raft is None
        disk = node.disk
        node.tree = disk.tree
        front, entries = recovered(
            disk.front, disk.entries, disk.installed, disk.tree[0], disk.tree[1]
        )
        if front is not disk.front:
            disk.front, disk.entries = front, []
        self.starts += 1
        config = Config(node.number, self.seed * 1000 + self.starts, **self.settings)
        node.raft = self.make_raft(config, disk.hard_state, front, tuple(entries), disk.tree[0])
        # What was only in memory may go back, and did so together with all promises about it.
        node.term_seen = disk.hard_state.term
        node.commit_seen = node.raft.commit_index
        node.role_seen = (Role.FOLLOWER, 0)
        node.last_seen = 0
        if disk.incoming is not None:
            node.raft.snapshot_partial(disk.incoming[0], len(disk.incoming[1]))

    def stop(self, node: Node) -> None:
        """Crash: what was not written is lost, or part of it is there nevertheless."""
        self.crashes += 1
        for ready in node.writes:
            if self.dice.percent(60):
                break
            if self.dice.percent(30):
                self.write(node, ready, self.dice.between(0, len(ready.entries)))
                break
            self.write(node, ready)
        node.raft = None
        node.writes = []
        node.reads, node.chunks, node.files = [], [], {}
        node.install = None
        node.snapshot_wanted = False
        node.waiting_reads = {}

    def send(self, node: Node, messages: Sequence[Message]) -> None:
        for message in messages:
            self.checker.on_send(node, message)
            if message.to not in self.nodes or self.dice.percent(self.loss):
                continue
            if (node.number, message.to) in self.cut:
                continue
            self.network.append(message)
            if self.dice.percent(self.repeat):
                self.late.append(message)

    def take_ready(self, node: Node) -> None:
        raft = node.raft
        assert raft is not None
        if not raft.has_ready():
            return
        ready = raft.ready()
        self.send(node, ready.messages)
        if ready.must_persist or ready.messages_after_persist:
            node.writes.append(ready)
        if ready.committed:
            self.checker.on_apply(node, ready.committed)
            raft.applied(ready.committed[-1].index)
        for read in ready.reads:
            asked = node.waiting_reads.pop(read.context)
            self.checker.on_read(asked, read.index)
        for context in ready.failed_reads:
            del node.waiting_reads[context]
        node.snapshot_wanted |= ready.snapshot_wanted
        node.reads.extend(ready.snapshot_reads)
        node.chunks.extend(ready.snapshot_writes)
        for snapshot_id in ready.snapshots_dropped:
            node.files.pop(snapshot_id, None)
        if ready.snapshot is not None:
            node.install, node.install_after = ready.snapshot, ready.number
        self.checker.on_change(node, self.nodes)

    def write(self, node: Node, ready: Ready, entries_count: int | None = None) -> None:
        node.disk.write(ready, entries_count)
        if ready.entries:
            previous = ready.entries[0].index - 1
            written = ready.entries[:entries_count]
            self.checker.on_entries(written, node.disk.term_at(previous))

    def finish_write(self, node: Node) -> None:
        """The oldest write under way reaches the disk; sometimes several with one sync."""
        assert node.raft is not None
        count = self.dice.between(1, len(node.writes))
        done, node.writes = node.writes[:count], node.writes[count:]
        last = 0
        for ready in done:
            if ready.must_persist:
                self.write(node, ready)
                last = ready.number
        if last:
            node.raft.persisted(last)
            self.checker.on_change(node, self.nodes)
        for ready in done:
            self.send(node, ready.messages_after_persist)

    def serve_snapshots(self, node: Node) -> None:
        raft, dice = node.raft, self.dice
        assert raft is not None
        if node.snapshot_wanted:
            node.snapshot_wanted = False
            index, term, digest = node.tree
            if index == 0 or dice.percent(5):
                raft.snapshot_lost(b"")
                return
            meta = raft.snapshot_meta(index)
            content = digest + b"%d %d" % (index, term)
            snapshot_id = hashlib.sha1(content).digest()
            node.files[snapshot_id] = content
            raft.snapshot_taken(snapshot_id, meta, len(content))
        elif node.reads:
            read = node.reads.pop(0)
            content = node.files.get(read.snapshot_id, b"")
            if content:
                raft.snapshot_read(read, content[read.offset : read.offset + read.length])
        elif node.chunks:
            write = node.chunks.pop(0)
            old_id, old = node.disk.incoming or (b"", b"")
            if write.offset == 0 or old_id != write.snapshot_id:
                old = b""
            assert len(old) == write.offset, (len(old), write.offset)
            data = bytes([write.data[0] ^ 1]) + write.data[1:] if dice.percent(1) else write.data
            node.disk.incoming = (write.snapshot_id, old + data)
            raft.snapshot_written(write)
        elif node.install is not None:
            if any(ready.number < node.install_after for ready in node.writes):
                return
            self.install(node, raft)

    def install(self, node: Node, raft: Raft) -> None:
        install, node.install = node.install, None
        assert install is not None
        assert node.disk.incoming is not None
        content = node.disk.incoming[1]
        node.disk.incoming = None
        if hashlib.sha1(content).digest() != install.snapshot_id:
            raft.snapshot_refused(install.snapshot_id)
            return
        self.installs += 1
        index, term = (int(part) for part in content[20:].split())
        node.tree = (index, term, content[:20])
        node.disk.tree = node.tree
        node.disk.installed = install.meta
        self.checker.require(
            self.checker.digests[index] == content[:20], "snapshot differs at", index
        )
        if self.dice.percent(20):
            self.stop(node)
            return
        node.disk.front, node.disk.entries = install.meta, []
        raft.snapshot_installed(install)

    # --- random steps

    def step(self) -> None:
        """One random thing happens, out of what can happen."""
        self.steps += 1
        dice = self.dice
        self.paused = {number for number in self.paused if not dice.percent(1)}
        up = [
            node
            for node in self.nodes.values()
            if node.raft is not None and node.number not in self.paused
        ]
        choice = dice.below(100)
        if choice < 35:
            if self.late and dice.percent(5):
                self.network.insert(0, self.late.pop(dice.below(len(self.late))))
            if self.network:
                self.deliver(1)
                return
            choice = 35
        if choice < 60:
            ready = [node for node in up if node.raft is not None and node.raft.has_ready()]
            if ready:
                self.take_ready(dice.pick(ready))
                return
            choice = 60
        if choice < 75:
            writing = [node for node in up if node.writes]
            if writing and dice.percent(self.disk_speed):
                self.finish_write(dice.pick(writing))
                return
        down = [node for node in self.nodes.values() if node.raft is None]
        if down and dice.percent(5):
            self.start(dice.pick(down))
            return
        if not up:
            return
        node = dice.pick(up)
        assert node.raft is not None
        if choice < 83:
            if dice.percent(self.clock_percent[node.number]):
                node.raft.tick()
            elif self.habits.percent(50):
                node.raft.flush()
            for number in self.nodes:
                node.raft.attend(number, not self.habits.percent(self.unused))
        elif choice < 88:
            busy = [n for n in up if n.snapshot_wanted or n.reads or n.chunks or n.install]
            if busy:
                node = dice.pick(busy)
                self.serve_snapshots(node)
        elif choice < 94:
            leaders = [n for n in up if n.raft is not None and n.raft.role is Role.LEADER]
            self.propose(dice.pick(leaders) if leaders and dice.percent(60) else node)
        else:
            self.disturb(node)
        if node.raft is not None:
            self.checker.on_change(node, self.nodes)

    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.network))):
            # Mostly the oldest; "reorder" takes any.
            at = self.dice.below(len(self.network)) if self.dice.percent(self.reorder) else 0
            message = self.network.pop(at)
            node = self.nodes[message.to]
            if message.to in self.paused:
                self.late.append(message)
                continue
            if node.raft is None or (message.sender, message.to) in self.cut:
                continue
            if self.dice.percent(10):
                message = codec.decode(codec.encode(message))
            node.raft.step(message)
            self.checker.on_change(node, self.nodes)

    def propose(self, node: Node) -> None:
        raft, dice = node.raft, self.dice
        assert raft is not None
        try:
            if dice.percent(75):
                count = dice.pick([1, 1, 2, 5])
                datas = []
                for _ in range(count):
                    self.proposed += 1
                    datas.append(b"%d-%d" % (node.number, self.proposed) + b"." * dice.below(30))
                raft.propose(datas)
            else:
                self.proposed += 1
                raft.read_index(self.proposed)
                node.waiting_reads[self.proposed] = self.checker.commit_max
        except UnavailableError:
            pass  # not the leader, or busy: a client would come again

    def disturb(self, node: Node) -> None:
        raft, dice = node.raft, self.dice
        assert raft is not None
        if dice.percent(self.crash):
            self.stop(node)
        elif dice.percent(self.partitions):
            self.partition()
        elif dice.percent(5):
            self.cut = set()
        elif dice.percent(self.pauses):
            self.paused.add(node.number)
        elif dice.percent(self.compacts):
            node.disk.tree = node.tree  # a checkpoint of the tree, then the log behind it goes
            meta = raft.compact(node.tree[0])
            if meta is not None:
                node.disk.entries = node.disk.entries[meta.index - node.disk.front.index :]
                node.disk.front = meta
        elif dice.percent(self.changes * 5):
            self.change_membership(raft)
        elif dice.percent(self.unrest):
            if raft.role is not Role.LEADER and raft._may_campaign():
                # As if a TimeoutNow came: no pre-vote, no stickiness, straight into a new term.
                raft._campaign(transfer=True)
        elif dice.percent(2) and raft.role is Role.LEADER:
            try:
                raft.transfer_leadership(dice.between(1, len(self.nodes)))
            except UserError:
                pass  # itself, or no voter

    def change_membership(self, raft: Raft) -> None:
        kind = self.dice.pick([*ChangeKind, ChangeKind.ADD_LEARNER])
        number = self.dice.between(1, len(self.nodes))
        try:
            raft.propose_membership(MembershipChange(kind, number, self.dice.percent(70)))
        except (UnavailableError, UserError):
            pass  # most random changes make no sense or come at a bad time

    def partition(self) -> None:
        """Cut links: one node off, two halves, or some directions only."""
        numbers = sorted(self.nodes)
        way = self.dice.below(3)
        lonely = self.dice.pick(numbers)
        side = {n for n in numbers if (n == lonely if way == 0 else self.dice.percent(50))}
        self.cut = {
            (a, b)
            for a in numbers
            for b in numbers
            if a != b and (self.dice.percent(30) if way == 2 else (a in side) != (b in side))
        }

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    # --- afterwards

    def converge(self, ticks_max: int = 600) -> int:
        """Heal everything; the ticks until all members agree and a new command is everywhere.

        Violation when that takes more than ``ticks_max``.
        """
        self.cut = set()
        self.paused = set()
        self.loss = self.repeat = self.reorder = 0
        for node in self.nodes.values():
            if node.raft is None:
                self.start(node)
        marker = None
        for tick in range(ticks_max):
            for node in self.nodes.values():
                if node.raft is None:  # crashed while installing
                    self.start(node)
                node.raft.tick()
                self.checker.on_change(node, self.nodes)
            self.settle()
            leaders = [n for n in self.nodes.values() if n.raft and n.raft.role is Role.LEADER]
            if not leaders:
                continue
            leader = max(leaders, key=lambda n: n.raft.term).raft
            if marker is None or leader.term != marker[0]:
                try:
                    marker = (leader.term, leader.propose([b"marker"]))
                except UnavailableError:
                    continue
            if self.agreed(leader, marker[1]):
                return tick
        raise Violation("no convergence", [n.raft.status() for n in self.nodes.values()])

    def settle(self) -> None:
        """All messages, writes and files, as far as they go within this tick."""
        for _ in range(40):
            busy = False
            for node in self.nodes.values():
                while node.raft is not None and node.raft.has_ready():
                    busy = True
                    self.take_ready(node)
                while node.raft is not None and node.writes:
                    busy = True
                    self.finish_write(node)
                if node.raft is not None and (
                    node.reads or node.chunks or node.install or node.snapshot_wanted
                ):
                    busy = True
                    self.serve_snapshots(node)
            busy |= bool(self.network)
            self.deliver(len(self.network))
            if not busy:
                return

    def agreed(self, leader: Raft, index: int) -> bool:
        if leader.commit_index < max(index, self.checker.commit_max):
            return False
        for member in leader.membership.members:
            node = self.nodes[member.number]
            if node.raft is None or node.tree[0] < leader.commit_index:
                return False
            if node.waiting_reads or (member.promote and len(leader.membership.voters) < 5):
                return False
        return True


def states(simulation: Simulation) -> set[ProgressState]:
    """Which kinds of follower the leaders have at the moment."""
    found = set()
    for node in simulation.nodes.values():
        if node.raft is not None and node.raft._lead is not None:
            found |= {progress.state for progress in node.raft._lead.peers.values()}
    return found


__all__ = ["Dice", "Simulation", "SnapshotChunk", "Violation", "states"]
