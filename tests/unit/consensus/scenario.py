"""The commands of the scenario files in testdata/: a few cores, driven one call at a time.

Nodes
    cluster voters=(1,2,3) [learners=(4)] [any Config field=n]    a new cluster, all at term 0
    join 4                                         one more node that belongs to no cluster yet
    crash 1 / restart 1       lose what is not on the disk / come back; its connections are new

Inputs of one core (the error, if one is raised, is the output)
    tick 1 [count=5]      campaign 1      propose 1 a b c      read 1 context
    change 1 add-learner 4 [promote] / promote 4 / demote 2 / remove 3
    transfer 1 to=2       compact 1 5     install 2            (finish the installation)

Work that a driver does
    ready 1               take one Ready and print it; messages go to the network, writes wait
    persist 1 [count=1]   finish the oldest writes that wait
    deliver 2 [from=1] [count=n] [drop] [keep]    messages to node 2, oldest first; keep: a copy
                          stays in the network
    stabilize [1 2 …]     all of that for these nodes until nothing moves; prints every message
    quietly …             any of the commands above without output

Looking
    status [1 2 …]        log 1           network
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import (
    AppendRequest,
    ChangeKind,
    Config,
    Entry,
    EntryKind,
    HardState,
    Member,
    Membership,
    MembershipChange,
    Message,
    Ready,
    SnapshotChunk,
    SnapshotInstall,
    SnapshotMeta,
)
from pydi_node.errors import PydiError
from tests.harness.datadriven import Case
from tests.unit.consensus.simulation import Disk

_CONFIG_FIELDS = {f.name for f in fields(Config)} - {"node", "seed"}


class _Node:
    def __init__(self, number: int, disk: Disk) -> None:
        self.number = number
        self.disk = disk
        self.raft: Raft | None = None
        self.writes: list[Ready] = []
        self.applied: list[str] = []
        self.install: SnapshotInstall | None = None
        self.starts = 0


class Scenario:
    """The state behind one file."""

    def __init__(self) -> None:
        self.nodes: dict[int, _Node] = {}
        self.network: list[Message] = []
        self.settings: dict[str, int] = {}
        self.hold_installs = False

    def run(self, case: Case) -> str:
        """The output of one command; the handler for ``datadriven.check_file``."""
        words = list(case.positional)
        command = case.command
        if command == "quietly":
            command = words.pop(0)
        output = _COMMANDS[command](self, words, case)
        return "" if case.command == "quietly" else output

    # --- nodes

    def cluster(self, words: list[str], case: Case) -> str:
        voters = [int(n) for n in case.named["voters"]]
        learners = [int(n) for n in case.named.get("learners", ())]
        members = [Member(n, n in voters) for n in sorted(voters + learners)]
        self.settings = {n: case.integer(n) for n in case.named if n in _CONFIG_FIELDS}
        unknown = set(case.named) - _CONFIG_FIELDS - {"voters", "learners"}
        assert not unknown, unknown
        self.nodes = {}
        self.network = []
        for member in members:
            meta = SnapshotMeta(0, 0, Membership(tuple(members)))
            self._start(_Node(member.number, Disk(meta)))
        return ""

    def join(self, words: list[str], case: Case) -> str:
        self._start(_Node(int(words[0]), Disk(SnapshotMeta())))
        return ""

    def _start(self, node: _Node) -> None:
        self.nodes[node.number] = node
        node.starts += 1
        config = Config(node.number, node.number * 100 + node.starts, **self.settings)
        disk = node.disk
        node.raft = Raft(config, disk.hard_state, disk.front, tuple(disk.entries), disk.tree[0])

    def crash(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        node.raft, node.writes, node.install = None, [], None
        return ""

    def restart(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        node.raft, node.writes, node.install = None, [], None
        self.network = [m for m in self.network if m.to != node.number]
        self._start(node)
        return self.status(words, case)

    # --- inputs

    def tick(self, words: list[str], case: Case) -> str:
        raft = self._raft(words)
        before = raft.role
        for _ in range(case.integer("count", 1)):
            raft.tick()
        return "" if raft.role is before else f"{before.value} -> {raft.role.value}"

    def campaign(self, words: list[str], case: Case) -> str:
        self._raft(words).campaign()
        return ""

    def propose(self, words: list[str], case: Case) -> str:
        raft = self._raft(words)
        return _outcome(lambda: f"at {raft.propose([word.encode() for word in words])}")

    def read(self, words: list[str], case: Case) -> str:
        raft = self._raft(words)
        return _outcome(lambda: raft.read_index(words[0]))

    def change(self, words: list[str], case: Case) -> str:
        raft = self._raft(words)
        change = MembershipChange(ChangeKind(words[0]), int(words[1]), "promote" in words[2:])
        return _outcome(lambda: f"at {raft.propose_membership(change)}")

    def transfer(self, words: list[str], case: Case) -> str:
        raft = self._raft(words)
        return _outcome(lambda: raft.transfer_leadership(case.integer("to")))

    def compact(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        assert node.raft is not None
        node.disk.tree = (node.raft.applied_index, 0, b"")
        meta = node.raft.compact(int(words[1]))
        if meta is None:
            return "nothing to cut"
        node.disk.entries = node.disk.entries[meta.index - node.disk.front.index :]
        node.disk.front = meta
        return f"front {meta.index}/{meta.term} {_membership(meta.membership)}"

    # --- driver's work

    def ready(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        assert node.raft is not None
        if not node.raft.has_ready():
            return "nothing"
        return self._take(node) or "nothing to see"

    def _take(self, node: _Node) -> str:
        raft = node.raft
        assert raft is not None
        ready = raft.ready()
        lines = _describe(ready)
        self.network.extend(ready.messages)
        if ready.must_persist or ready.messages_after_persist:
            node.writes.append(ready)
        if ready.committed:
            node.applied.extend(e.data.decode() for e in ready.committed if e.kind == 0)
            raft.applied(ready.committed[-1].index)
        if ready.snapshot_wanted:
            index = raft.applied_index
            content = ",".join(node.applied).encode()
            raft.snapshot_taken(b"tree-%d" % index, raft.snapshot_meta(index), len(content))
        for read in ready.snapshot_reads:
            content = ",".join(node.applied).encode()
            raft.snapshot_read(read, content[read.offset : read.offset + read.length])
        for write in ready.snapshot_writes:
            _, content = node.disk.incoming if node.disk.incoming and write.offset else (b"", b"")
            node.disk.incoming = (write.snapshot_id, content + write.data)
            raft.snapshot_written(write)
        node.install = ready.snapshot or node.install
        return "\n".join(lines)

    def persist(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        for _ in range(case.integer("count", 1)):
            if not node.writes:
                return "nothing waits"
            self._persist(node)
        return ""

    def _persist(self, node: _Node) -> None:
        assert node.raft is not None
        ready = node.writes.pop(0)
        if ready.must_persist:
            node.disk.write(ready)
            node.raft.persisted(ready.number)
        self.network.extend(ready.messages_after_persist)

    def install(self, words: list[str], case: Case) -> str:
        node = self._node(words)
        assert node.raft is not None
        if node.install is None:
            return "nothing to install"
        assert node.disk.incoming is not None
        install, node.install = node.install, None
        node.applied = node.disk.incoming[1].decode().split(",")
        node.disk.tree = (install.meta.index, install.meta.term, b"")
        node.disk.front, node.disk.entries = install.meta, []
        node.raft.snapshot_installed(install)
        return f"installed {install.meta.index}/{install.meta.term}: {' '.join(node.applied)}"

    def deliver(self, words: list[str], case: Case) -> str:
        to, flags = int(words[0]), words[1:]
        sender = case.integer("from")
        chosen = [m for m in self.network if m.to == to and sender in (0, m.sender)]
        lines = []
        for message in chosen[: case.integer("count", len(chosen))]:
            if "keep" not in flags:
                self.network.remove(message)
            if "drop" in flags:
                lines.append(f"lost {_message(message)}")
                continue
            raft = self.nodes[to].raft
            if raft is None:
                continue
            lines.append(_message(message))
            error = _outcome(lambda m=message, r=raft: r.step(codec.decode(codec.encode(m))))  # type: ignore[misc]
            if error:
                lines.append(f"  {error}")
        return "\n".join(lines)

    def stabilize(self, words: list[str], case: Case) -> str:
        numbers = [int(word) for word in words] or sorted(self.nodes)
        lines: list[str] = []
        busy = True
        while busy:
            busy = False
            for number in numbers:
                node = self.nodes[number]
                if node.raft is None:
                    continue
                while node.raft.has_ready():
                    busy = True
                    text = self._take(node)
                    told = [t for t in text.splitlines() if not t.startswith(_ROUTINE)]
                    lines.extend(f"{number}: {line}" for line in told)
                while node.writes:
                    busy = True
                    self._persist(node)
                if node.install is not None and "hold" not in case.named:
                    busy = True
                    lines.append(f"{number}: {self.install([str(number)], case)}")
            for number in numbers:
                here = [m for m in self.network if m.to == number and m.sender in numbers]
                for message in here:
                    busy = True
                    self.network.remove(message)
                    raft = self.nodes[number].raft
                    if raft is not None:
                        lines.append(_message(message))
                        raft.step(message)
        return "\n".join(lines)

    # --- looking

    def status(self, words: list[str], case: Case) -> str:
        lines = []
        for number in [int(word) for word in words] or sorted(self.nodes):
            node = self.nodes[number]
            if node.raft is None:
                lines.append(f"{number}: down")
                continue
            s = node.raft.status()
            leader = "none" if s.leader is None else s.leader
            lines.append(
                f"{number}: {s.role.value} term={s.term} leader={leader} last={s.last_index} "
                f"durable={s.durable_index} commit={s.commit_index} {_membership(s.membership)} "
                f"applied: {' '.join(node.applied) or '-'}"
            )
            lines.extend(
                f"   {p.number}: {p.state} match={p.match_index}"
                f"{'' if p.voter else ' learner'}{'' if p.active else ' silent'}"
                for p in s.peers
            )
        return "\n".join(lines)

    def log(self, words: list[str], case: Case) -> str:
        log = self._raft(words)._log
        entries = (
            log.slice(log.front.index + 1, 1 << 30) if log.last_index > log.front.index else []
        )
        front = f"[{log.front.index}/{log.front.term}] " if log.front.index else ""
        return front + _entries(entries)

    def show_network(self, words: list[str], case: Case) -> str:
        return "\n".join(_message(m) for m in self.network) or "empty"

    def forget(self, words: list[str], case: Case) -> str:
        self.network = []
        return ""

    # --- helpers

    def _node(self, words: list[str]) -> _Node:
        return self.nodes[int(words[0])]

    def _raft(self, words: list[str]) -> Raft:
        raft = self.nodes[int(words.pop(0))].raft
        assert raft is not None, "this node is down"
        return raft


def _outcome(call: Callable[[], object]) -> str:
    """What the call returned, or the error it raised."""
    try:
        return str(call() or "")
    except PydiError as exc:
        return f"{type(exc).__name__}: {exc}"


# Lines of a Ready that ``stabilize`` leaves out: the messages are printed when they arrive.
_ROUTINE = ("hard state", "append", "now", "after persist", "snapshot")


def _describe(ready: Ready) -> list[str]:
    lines = []
    if ready.role_change is not None:
        role, term, leader = ready.role_change
        lines.append(f"role {role.value} term={term} leader={leader or 'none'}")
    if ready.membership is not None:
        lines.append(f"membership {_membership(ready.membership)}")
    if ready.truncate_from is not None:
        lines.append(f"truncate from {ready.truncate_from}")
    if ready.entries:
        lines.append(f"append {_entries(ready.entries)}")
    if ready.hard_state is not None:
        lines.append(f"hard state {_hard_state(ready.hard_state)}")
    lines.extend(f"now {_message(m)}" for m in ready.messages)
    lines.extend(f"after persist {_message(m)}" for m in ready.messages_after_persist)
    if ready.committed:
        lines.append(f"committed {_entries(ready.committed)}")
    lines.extend(f"read {read.context} at {read.index}" for read in ready.reads)
    lines.extend(f"read {context} failed" for context in ready.failed_reads)
    if ready.snapshot_wanted:
        lines.append("snapshot wanted")
    lines.extend(f"snapshot piece for {r.to}: {r.offset}+{r.length}" for r in ready.snapshot_reads)
    lines.extend(f"snapshot write {w.offset}+{len(w.data)}" for w in ready.snapshot_writes)
    if ready.snapshot is not None:
        lines.append(f"install {ready.snapshot.meta.index}/{ready.snapshot.meta.term}")
    lines.extend(f"drop {snapshot_id.decode()}" for snapshot_id in ready.snapshots_dropped)
    return lines


def _hard_state(state: HardState) -> str:
    return f"term={state.term} vote={state.vote or 'none'} commit={state.commit}"


def _entries(entries: object) -> str:
    assert isinstance(entries, (list, tuple))
    return " ".join(_entry(entry) for entry in entries) or "empty"


def _entry(entry: Entry) -> str:
    if entry.kind is EntryKind.MEMBERSHIP:
        what = _membership(codec.unpack_membership(entry.data))
    else:
        what = entry.data.decode() or "(first)"
    return f"{entry.index}/{entry.term}:{what}"


def _membership(membership: Membership) -> str:
    parts = [
        f"{m.number}" if m.voter else f"({m.number}{'+' if m.promote else ''})"
        for m in membership.members
    ]
    return "{" + " ".join(parts) + "}"


def _message(message: Message) -> str:
    """``1->2 AppendRequest term=1 …``: the fields that are set, in short."""
    parts = [f"{message.sender}->{message.to} {type(message).__name__} term={message.term}"]
    if isinstance(message, AppendRequest):
        parts.append(f"after {message.prev_index}/{message.prev_term} commit={message.commit}")
        if message.entries:
            parts.append(_entries(message.entries))
        return " ".join(parts)
    if isinstance(message, SnapshotChunk):
        end = message.offset + len(message.data)
        return (
            f"{parts[0]} {message.snapshot_id.decode()} at {message.meta.index}/"
            f"{message.meta.term} bytes {message.offset}-{end} of {message.size}"
        )
    for f in fields(message):
        value = getattr(message, f.name)
        if f.name in ("sender", "to", "term") or value in (False, 0, b""):
            continue
        if f.name == "number":
            value = "…"  # begins at random
        if isinstance(value, bytes):
            value = value.decode()
        parts.append(f.name if value is True else f"{f.name}={value}")
    return " ".join(parts)


_COMMANDS: dict[str, Callable[[Scenario, list[str], Case], str]] = {
    "cluster": Scenario.cluster, "join": Scenario.join, "crash": Scenario.crash,
    "restart": Scenario.restart, "tick": Scenario.tick, "campaign": Scenario.campaign,
    "propose": Scenario.propose, "read": Scenario.read, "change": Scenario.change,
    "transfer": Scenario.transfer, "compact": Scenario.compact, "install": Scenario.install,
    "ready": Scenario.ready, "persist": Scenario.persist, "deliver": Scenario.deliver,
    "stabilize": Scenario.stabilize, "status": Scenario.status, "log": Scenario.log,
    "network": Scenario.show_network, "forget": Scenario.forget,
}  # fmt: skip
