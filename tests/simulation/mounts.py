"""Mounts that hold a directory: they answer "create", "unlink" and "lookup" there by themselves.

What a mount has to do so that nobody sees anything but one tree, without files and kernels: it
creates only under its lease and while it is connected; it acknowledges a push that touches the
directory when it has stopped to do that and has sent what it had not told; it gives the directory
back when all that is answered; and a grant counts only on the connection on which it was asked for.

What was unlinked is told in order, many in one Batch, one of them at a time; a file that is made
under such a name is told when that is answered.

What a mount has done and could not tell before the directory was revoked is lost, as content that
can't be published is: it was seen here only. Such operations are struck from the histories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydi_node.commands import (
    INODES_RESERVED,
    ROOT_CALLER,
    Batch,
    Command,
    Delegate,
    Mkdir,
    PutFile,
    ReserveInodes,
    Undelegate,
    Unlink,
)
from pydi_node.ids import ROOT_INO, ClientId, Ino, TimeNs
from pydi_node.records import Result, Touched
from pydi_node.tree.machine import Tree
from tests.simulation.clients import ANSWER_US, Attempted, HeldName, Plan, in_turn
from tests.simulation.process import Outcome, Process
from tests.simulation.watch import Key
from tests.simulation.world import MS, SECOND, Owner, Violation

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

RENEW_US = 200 * MS  # client.LEASE_RENEW_S
TELL_US = 500 * MS  # a pending create is told after this at the latest
ANSWER_S = 2.0  # after which a command is sent again
PENDING_MAX = 8
HELD = b"held"  # the directory that everybody works in


@dataclass(slots=True, eq=False)
class _Sent:
    """A command without an answer: sent again over each new connection."""

    key: Key
    command: Command
    done: Callable[[Result], None]


@dataclass(slots=True, eq=False)
class _Pending:
    """A file that was made here and is not told, or not answered, yet."""

    attempted: Attempted
    subject: HeldName
    ino: Ino
    is_sent: bool = False
    is_due: bool = False  # when its name is free in the cluster
    seen: list[Attempted] = field(default_factory=list)  # operations here that rely on it


@dataclass(slots=True, eq=False)
class _Unlinked:
    """A name that was taken away here and is not told, or not answered, yet."""

    attempted: Attempted
    subject: HeldName
    is_due: bool = False  # told as soon as no others are under way
    seen: list[Attempted] = field(default_factory=list)  # operations here that rely on it


class Mount(Owner):
    """One mount and what it knows of the directory."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._world = simulation.world
        self._dice = simulation.world.dice
        self._client = ClientId(self._dice.bits(62) + 1)
        self._serial = 0
        # The connection: a run of a node's program, and when the last thing arrives each way.
        self._process: Process | None = None
        self._node: int | None = None  # of this connection, or of the last one
        self._connection = 0  # grows with each one
        self._to_node_us = self._to_mount_us = 0
        self._sequence = 0  # of the last push
        self._lease_until_us = 0
        self._unanswered: dict[Key, _Sent] = {}
        self._under_way: set[Key] = set()  # at the node, over this connection
        # What it knows of the directory. names: all of them, or None when it does not hold it.
        self._asked = False  # whether a grant is on its way
        self._grant_index = 0
        self._names: dict[bytes, Ino] | None = None
        self._gives_back = False
        self._busy: set[bytes] = set()  # names with a command of its own under way
        self._numbers: list[Ino] = []
        self._pending: dict[bytes, _Pending] = {}
        self._unlinked: list[_Unlinked] = []  # in order, with those under way
        self._telling = 0  # how many of them are under way
        self._rest_until_us = 0
        self.unlinked = 0  # here, without asking anybody
        self.created = 0  # here, without asking anybody
        self._later(1 * MS, "connects", self._connect)

    # --- time and the connection ------------------------------------------------------------------

    def _later(self, delay_us: int, what: str, action: Callable[[], None]) -> None:
        self._world.after(delay_us, self, f"mount {self._client & 0xFFFF} {what}", action)

    def _to_node(self, what: str, action: Callable[[Process], None]) -> None:
        """In order; lost when the connection is."""
        process, connection = self._process, self._connection
        if process is None:
            return
        now_us = self._world.now_us
        self._to_node_us = max(self._to_node_us, now_us + self._dice.around(ANSWER_US))

        def arrive() -> None:
            if self._connection == connection:
                action(process)

        process.later(self._to_node_us - now_us, f"from a mount: {what}", arrive)

    def _to_mount(self, what: str, action: Callable[[], None]) -> None:
        connection, now_us = self._connection, self._world.now_us
        self._to_mount_us = max(self._to_mount_us, now_us + self._dice.around(ANSWER_US))

        def arrive() -> None:
            if self._connection == connection and self._process is not None:
                action()

        self._later(self._to_mount_us - now_us, what, arrive)

    def _connect(self) -> None:
        up = {n: m.process for n, m in sorted(self.simulation.machines.items()) if m.process}
        if not up:
            self._later(100 * MS, "connects", self._connect)
            return
        # Once all is healed each in turn: most may be nodes that were never made members.
        if self.simulation.healed and self._node is not None:
            self._node = in_turn(list(up), self._node)
        else:
            self._node = self._dice.pick(list(up))
        self._process = up[self._node]
        self._connection += 1
        self._sequence = self._lease_until_us = 0
        self._to_node_us = self._to_mount_us = 0
        self._under_way.clear()
        self._process.mounts.append(self)
        for sent in list(self._unanswered.values()):
            self._send(sent)
        self._give_back()
        self._watch()
        self._renew()
        self._act()

    def _watch(self) -> None:
        """The node goes away, or the network between."""
        connection, process = self._connection, self._process
        assert process is not None

        def look() -> None:
            if self._connection != connection:
                return
            if process.ended or self._dice.percent(self.simulation.parameters["mounts_lost"]):
                self._break(process)
            else:
                self._later(100 * MS, "looks", look)

        self._later(self._dice.around(100 * MS), "looks", look)

    def _break(self, process: Process) -> None:
        """The node notices first, or nobody is left to notice."""
        if not process.ended:
            if self not in process.mounts:
                return  # it has noticed
            process.mounts.remove(self)
            process.coherence.gone(self, knows=False)

        def notice() -> None:
            self._process = None
            self._lease_until_us = 0
            self.on_lost()
            away_us = self._dice.around(self._dice.pick([50 * MS, 50 * MS, 3 * SECOND]))
            self._later(away_us, "connects", self._connect)

        connection = self._connection
        self._later(
            self._dice.around(self._dice.pick([20 * MS, 2 * SECOND])),
            "notices",
            lambda: notice() if self._connection == connection else None,
        )

    def _renew(self) -> None:
        connection = self._connection
        asked_us = self._world.now_us

        def ask(process: Process) -> None:
            # For a mount that the node knows; an abandoned connection gets none.
            valid_ms = process.lease_for(self) if self in process.mounts else 0
            self._to_mount("lease", lambda: answered(valid_ms))

        def answered(valid_ms: int) -> None:
            self._lease_until_us = max(self._lease_until_us, asked_us + valid_ms * MS)

        self._to_node("Lease", ask)

        def again() -> None:
            if self._connection == connection and self._process is not None:
                self._renew()

        self._later(RENEW_US, "renews", again)

    # --- commands ---------------------------------------------------------------------------------

    def _execute(self, command: Command, done: Callable[[Result], None]) -> Key:
        self._serial += 1
        sent = _Sent((self._client, self._serial), command, done)
        self._unanswered[sent.key] = sent
        self._send(sent)
        return sent.key

    def _send(self, sent: _Sent) -> None:
        connection = self._connection

        def propose(process: Process) -> None:
            self._under_way.add(sent.key)
            process.propose(sent.key, sent.command, ANSWER_S, answer)

        def answer(outcome: Outcome) -> None:
            if self._connection == connection:
                self._under_way.discard(sent.key)
                self._to_mount(f"answer {sent.key[1]}", lambda: answered(outcome))

        def answered(outcome: Outcome) -> None:
            if sent.key not in self._unanswered:
                return
            if isinstance(outcome, Result):
                del self._unanswered[sent.key]
                sent.done(outcome)
                self._give_back()
            elif self._dice.percent(50) and self._process is not None:
                self._break(self._process)  # another node may do better
            else:
                self._send(sent)

        self._to_node(f"command {sent.key[1]} {type(sent.command).__name__}", propose)

    @property
    def busy(self) -> bool:
        """Whether the cluster does not know all yet that was done here."""
        return bool(self._unanswered or self._pending or self._unlinked or self._gives_back)

    # --- what the node pushes ---------------------------------------------------------------------

    def push(self, key: Key, touched: Touched) -> int:
        """At the node, as server.push: the push's number; 0 for what needs none."""
        held = self.simulation.workload.held
        if key in self._under_way or held is None:
            return 0
        if held not in touched.inos and all(parent != held for parent, _ in touched.entries):
            return 0  # it has cached nothing else
        return self._push("push")

    def push_drop_all(self) -> int:
        return self._push("drop all")

    def _push(self, what: str) -> int:
        self._sequence += 1
        sequence = self._sequence
        self._to_mount(what, lambda: self.on_push(sequence))
        return sequence

    def on_push(self, sequence: int) -> None:
        """It touches the directory."""
        self._stop_holding()
        self._acknowledge(sequence)
        self._give_back()

    def on_lost(self) -> None:
        """The connection broke."""
        self._stop_holding()

    def _stop_holding(self) -> None:
        """From now on others are asked; what was made here is told."""
        if self._names is not None or self._asked:
            self._gives_back = True
            self._asked = False
            self._names = None
        self._tell_unlinked()
        for name in list(self._pending):
            self._tell(name)

    def _acknowledge(self, sequence: int) -> None:
        def arrive(process: Process) -> None:
            process.coherence.acknowledged(self, sequence)
            process.look_at_caches()

        self._to_node(f"acknowledge {sequence}", arrive)

    # --- the directory ----------------------------------------------------------------------------

    @property
    def _may_rely(self) -> bool:
        return (
            self._names is not None
            and self._process is not None
            and self._world.now_us < self._lease_until_us
        )

    def _act(self) -> None:
        connection = self._connection

        def again() -> None:
            if self._connection == connection and self._process is not None:
                self._act()

        # Programs that wait for no other machine.
        self._later(self._dice.around(self.simulation.think_us) // 4, "acts", again)
        if self.simulation.healed:
            return
        if self._dice.percent(self.simulation.parameters["mounts_stopped"]):
            pause_us = self._dice.around(self._dice.pick([100 * MS, 1 * SECOND, 5 * SECOND]))
            self.paused_until_us = self._world.now_us + pause_us
            return
        workload = self.simulation.workload
        if workload.held is None:
            if not self._unanswered:
                self._execute(Mkdir(ROOT_CALLER, ROOT_INO, HELD, 0o755), self._on_made)
        elif self._names is None:
            self._ask(workload.held)
        elif self._may_rely:
            self._work(workload.held)

    def _on_made(self, result: Result) -> None:
        if result.errno == 0:
            self.simulation.workload.hold(result.value.ino)

    def _ask(self, held: Ino) -> None:
        if (
            self._asked
            or self._gives_back
            or self._process is None
            or self._unanswered
            or self._world.now_us < self._rest_until_us
        ):
            return
        self._asked = True
        connection = self._connection

        def answered(result: Result) -> None:
            if not self._asked or self._connection != connection:
                return  # it was recalled meanwhile, or may have been: it is given back
            if result.value is not True:
                self._asked = False
                self._rest()
                return
            self._grant_index = self.simulation.watch.outcomes[key].log_index
            self._to_node("ReadDir", read)

        def read(process: Process) -> None:
            def current(outcome: Outcome) -> None:
                if isinstance(outcome, Result):
                    names = list_names(process.replica.tree)
                    process.settle(1.0, lambda: self._to_mount("listing", lambda: listed(names)))

            process.read(1.0, current, held, self._client)

        def list_names(tree: Tree) -> dict[bytes, Ino]:
            return {entry.name: entry.attr.ino for entry in tree.readdir(held, 0, 1000)}

        def listed(names: dict[bytes, Ino]) -> None:
            if self._asked:
                self._asked = False
                self._names = names

        key = self._execute(Delegate(held), answered)

    def _work(self, held: Ino) -> None:
        """Something that programs here do with the directory."""
        assert self._names is not None
        if len(self._numbers) < INODES_RESERVED // 2 and not self._unanswered:
            self._execute(ReserveInodes(), self._on_reserved)
        subject = self.simulation.workload.held_name()
        name = subject.name
        if name in self._busy:
            return
        if self._dice.percent(40):
            self._look(subject)
        elif name not in self._names:
            if self._numbers and len(self._pending) < PENDING_MAX:
                self._create(subject)
        elif name not in self._pending and self._dice.percent(60):
            if self._dice.percent(80):
                self._unlink_here(held, subject)
            elif not self._unlinked:
                self._unlink(held, subject)
        elif self._dice.percent(2):
            self._stop_holding()
            self._give_back()

    def _on_reserved(self, result: Result) -> None:
        if result.errno == 0:
            self._numbers += [Ino(result.value + n) for n in range(INODES_RESERVED)]

    def _look(self, subject: HeldName) -> None:
        assert self._names is not None
        now_us = self._world.now_us
        seen = Attempted(subject.read(), now_us, None, now_us, self._names.get(subject.name))
        subject.history.append(seen)
        if (pending := self._pending.get(subject.name)) is not None:
            pending.seen.append(seen)
            return
        for unlinked in self._unlinked:
            if unlinked.subject is subject:
                unlinked.seen.append(seen)

    def _create(self, subject: HeldName) -> None:
        assert self._names is not None
        now_us, ino = self._world.now_us, self._numbers.pop(0)
        plan = Plan(("create",), None, lambda result: (result.errno, ino))
        attempted = Attempted(plan, now_us, None, now_us, (0, ino))
        subject.history.append(attempted)
        self._names[subject.name] = ino
        self._pending[subject.name] = pending = _Pending(attempted, subject, ino)
        self.created += 1

        def late() -> None:
            if self._pending.get(subject.name) is pending:
                self._tell(subject.name)

        self._later(self._dice.below(TELL_US), "tells", late)

    def _tell(self, name: bytes) -> None:
        pending = self._pending[name]
        held = self.simulation.workload.held
        if pending.is_sent or held is None:
            return
        if any(unlinked.subject is pending.subject for unlinked in self._unlinked):
            pending.is_due = True
            self._tell_unlinked()
            return
        pending.is_sent = True

        def answered(result: Result) -> None:
            del self._pending[name]
            if result.errno:
                self._strike(pending)

        command = PutFile(ROOT_CALLER, held, name, 0o644, 0, (), (), ino=pending.ino)
        pending.attempted.key = self._execute(command, answered)

    def _strike(self, lost: _Pending | _Unlinked) -> None:
        """It can't be told any more; that happens to nobody who gives back when he is asked."""
        if self.simulation.watch.revoked_max <= self._grant_index:
            raise Violation("what a mount did by itself is lost", lost.attempted)
        for attempted in (lost.attempted, *lost.seen):
            lost.subject.history.remove(attempted)

    def _unlink_here(self, held: Ino, subject: HeldName) -> None:
        assert self._names is not None
        now_us = self._world.now_us
        command = Unlink(ROOT_CALLER, held, subject.name)
        plan = Plan(("unlink",), command, lambda result: result.errno)
        attempted = Attempted(plan, now_us, None, now_us, 0)
        subject.history.append(attempted)
        del self._names[subject.name]
        unlinked = _Unlinked(attempted, subject)
        self._unlinked.append(unlinked)
        self.unlinked += 1

        def late() -> None:
            unlinked.is_due = True
            self._tell_unlinked()

        self._later(self._dice.below(TELL_US), "tells", late)

    def _tell_unlinked(self) -> None:
        if self._telling or not self._unlinked:
            return
        told = list(self._unlinked)
        self._telling = len(told)

        def answered(result: Result) -> None:
            self._telling = 0
            del self._unlinked[: len(told)]
            for unlinked, (errno, _) in zip(told, result.value, strict=True):
                if errno:
                    self._strike(unlinked)
            if self._names is None or any(unlinked.is_due for unlinked in self._unlinked):
                self._tell_unlinked()
            for name, pending in list(self._pending.items()):
                if pending.is_due:
                    self._tell(name)

        commands = [unlinked.attempted.plan.command for unlinked in told]
        assert None not in commands
        batch = Batch(tuple(commands), (TimeNs(0),) * len(told))  # type: ignore[arg-type]  # just looked
        self._execute(batch, answered)

    def _unlink(self, held: Ino, subject: HeldName) -> None:
        assert self._names is not None
        name = subject.name
        plan = Plan(("unlink",), Unlink(ROOT_CALLER, held, name), lambda result: result.errno)
        attempted = Attempted(plan, self._world.now_us, None)
        subject.history.append(attempted)
        self._busy.add(name)

        def answered(result: Result) -> None:
            attempted.end_us, attempted.result = self._world.now_us, result.errno
            self._busy.discard(name)
            if self._names is not None:
                self._names.pop(name, None)

        assert plan.command is not None
        attempted.key = self._execute(plan.command, answered)

    def _give_back(self) -> None:
        """When all that was made here is answered."""
        held = self.simulation.workload.held
        untold = self._unanswered or self._pending or self._unlinked
        if self._gives_back and held is not None and not untold:
            self._execute(Undelegate((held,)), self._on_given_back)

    def _on_given_back(self, result: Result) -> None:
        self._gives_back = False
        self._rest()

    def _rest(self) -> None:
        """Not at once again."""
        rest_us = self._dice.around(self._dice.pick([20 * MS, 200 * MS]))
        self._rest_until_us = self._world.now_us + rest_us
