"""Clients: what they do to the tree, how they retry, and what they saw.

A client does one thing at a time. Without an answer it sends the same (client, serial) again, to
the same or to another node, and after some attempts it may give up: then its command may take
effect at any later time, once. Operations on a few *subjects* are kept as histories for the search
of linearize.py: names that come and go, registers that are overwritten, counters that grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EEXIST, ENOENT
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from pydi_node.commands import (
    RENAME_EXCHANGE,
    ROOT_CALLER,
    Command,
    Commit,
    Create,
    ForgetBlobs,
    Link,
    Mkdir,
    PurgeOrphans,
    Rename,
    Rmdir,
    SetSetting,
    SetXattr,
    Symlink,
    TrimHistory,
    Unlink,
)
from pydi_node.errors import FileError
from pydi_node.ids import ROOT_INO, BlobId, Ino, NodeNumber, blob_id
from pydi_node.records import HOLE, IN_TREE, BlobInfo, Extent, Result
from pydi_node.tree.machine import Tree
from tests.simulation.linearize import FOREVER, Operation, is_linearizable
from tests.simulation.process import Outcome, Process
from tests.simulation.watch import Watch
from tests.simulation.world import MS, SECOND, Dice, Violation

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

FILE = ("file",)  # action: make the file of the next counter
SMALL_FILE = ("small file",)  # action: make the next small file
HISTORY_MAX = 60  # operations on one subject; then another one takes its place
ANSWER_US = 300  # from a node to a client on the same machine or nearby


class Plan(NamedTuple):
    """One operation: a command or a read, what it means to the model, and how to see its result."""

    action: tuple[Any, ...]
    command: Command | None  # None: a read
    value: Callable[[Any], Any]  # of a Result, or of a Tree
    directory: Ino | None = None  # whose names a read looks at, and a mount may hold


@dataclass(slots=True)
class Attempted:
    """One operation on a subject as its client saw it."""

    plan: Plan
    begin_us: int
    key: tuple[int, int] | None  # of a command
    end_us: int | None = None
    result: Any = None


@dataclass(slots=True, eq=False)
class Subject:
    """Something in the tree that is independent of everything else, with a sequential model."""

    name: bytes
    history: list[Attempted] = field(default_factory=list)

    def plan(self, dice: Dice) -> Plan:
        """Something to do with it."""
        raise NotImplementedError

    def read(self) -> Plan:
        raise NotImplementedError

    def apply(self, state: Any, action: tuple[Any, ...]) -> tuple[Any, Any]:
        raise NotImplementedError

    initial: Any = None

    def is_linearizable(self, watch: Watch) -> bool:
        operations = []
        for attempted in self.history:
            plan, key = attempted.plan, attempted.key
            end, result = attempted.end_us, attempted.result
            if end is None:
                # Nobody got the answer: what was applied counts, the rest never happened.
                outcome = watch.outcomes.get(key) if key is not None else None
                if outcome is None:
                    continue
                end, result = FOREVER, plan.value(outcome.result)
            action = (*plan.action, result[1]) if plan.action == ("create",) else plan.action
            operations.append(Operation(attempted.begin_us, end, action, result))
        return is_linearizable(operations, self.initial, self.apply)


@dataclass(slots=True, eq=False)
class Name(Subject):
    """A name that is created exclusively, unlinked and looked up. State: its inode or None."""

    parent: Ino = ROOT_INO

    def plan(self, dice: Dice) -> Plan:
        return dice.pick([self._create, self._create, self._unlink, self.read])()

    def _create(self) -> Plan:
        command = Create(ROOT_CALLER, self.parent, self.name, 0o644, True)
        return Plan(("create",), command, lambda r: (r.errno, r.value[0].ino if r.value else None))

    def _unlink(self) -> Plan:
        command = Unlink(ROOT_CALLER, self.parent, self.name)
        return Plan(("unlink",), command, lambda r: r.errno)

    def read(self) -> Plan:
        def look(tree: Tree) -> Ino | None:
            try:
                return tree.lookup(self.parent, self.name).ino
            except FileError:
                return None

        return Plan(("lookup",), None, look, self.parent)

    def apply(self, state: Any, action: tuple[Any, ...]) -> tuple[Any, Any]:
        match action:
            case ("create", ino):
                return (ino, (0, ino)) if state is None else (state, (EEXIST, None))
            case ("unlink",):
                return (None, ENOENT if state is None else 0)
            case _:
                return state, state


class HeldName(Name):
    """One in the directory that mounts hold, and in which they create by themselves."""

    def plan(self, dice: Dice) -> Plan:
        return dice.pick([self._create, self._unlink, self._unlink, self.read, self.read])()


class Register(Subject):
    """An extended attribute of the root that is overwritten and read."""

    def plan(self, dice: Dice) -> Plan:
        if dice.percent(50):
            return self.read()
        value = b"%x" % dice.bits(40)
        command = SetXattr(ROOT_CALLER, ROOT_INO, b"user." + self.name, value, 0)
        return Plan(("set", value), command, lambda r: r.errno)

    def read(self) -> Plan:
        def look(tree: Tree) -> bytes | None:
            try:
                return tree.getxattr(ROOT_INO, b"user." + self.name)
            except FileError:
                return None  # not set yet

        return Plan(("get",), None, look)

    def apply(self, state: Any, action: tuple[Any, ...]) -> tuple[Any, Any]:
        return (action[1], 0) if action[0] == "set" else (state, state)


@dataclass(slots=True, eq=False)
class Counter(Subject):
    """The size of a file to which one byte is appended: doing it twice shows at once."""

    ino: Ino = ROOT_INO
    initial: Any = 0

    def plan(self, dice: Dice) -> Plan:
        if dice.percent(40):
            return self.read()
        command = Commit(ROOT_CALLER, self.ino, None, None, 1, True, (Extent(0, 1, HOLE, 0),), ())
        return Plan(("append",), command, lambda r: r.value.size)

    def read(self) -> Plan:
        return Plan(("size",), None, lambda tree: tree.getattr(self.ino).size)

    def apply(self, state: Any, action: tuple[Any, ...]) -> tuple[Any, Any]:
        return (state + 1, state + 1) if action[0] == "append" else (state, state)


@dataclass(slots=True, eq=False)
class SmallFile(Subject):
    """A file whose content goes with its commands: overwritten, and read as bytes."""

    ino: Ino = ROOT_INO
    initial: Any = b""
    blobs: list[BlobId] = field(default_factory=list)  # that it was ever given

    def plan(self, dice: Dice) -> Plan:
        if dice.percent(50):
            return self.read()
        content = b"%x" % dice.bits(dice.pick([8, 800]))
        blob = blob_id(NodeNumber(7), self.ino << 16 | len(self.blobs) + 1)
        self.blobs.append(blob)
        info = BlobInfo(blob, len(content), blake3(content).digest(), IN_TREE)
        extents = (Extent(0, len(content), blob, 0),)
        command = Commit(
            ROOT_CALLER, self.ino, None, 0, len(content), False, extents, (info,), None, content
        )
        return Plan(("write", content), command, lambda r: r.errno)

    def read(self) -> Plan:
        def look(tree: Tree) -> bytes:
            try:
                return b"".join(data for _, data in tree.file_version(self.ino).contents)
            except FileError as exc:
                raise Violation("content that a version names is not there", self.ino) from exc

        return Plan(("content",), None, look)

    def apply(self, state: Any, action: tuple[Any, ...]) -> tuple[Any, Any]:
        return (action[1], 0) if action[0] == "write" else (state, state)


class Workload:
    """What clients find to do."""

    def __init__(self, dice: Dice, small_files: int) -> None:
        """small_files: percent of what clients do that is about one of these."""
        self._dice = dice
        self._made = 0
        self._small_files = small_files
        self._small: SmallFile | None = None
        self.held: Ino | None = None  # the directory that mounts hold
        self._held_names: list[HeldName] = []
        self.subjects: list[Subject] = []  # all that ever were
        self.active: list[Subject] = [self._new(Name), self._new(Name), self._new(Register)]

    def _new(self, kind: type[Subject]) -> Subject:
        self._made += 1
        subject = kind(b"%s-%d" % (kind.__name__.encode(), self._made))
        self.subjects.append(subject)
        return subject

    def subject(self) -> Subject:
        small = self._small
        if small is not None and self._dice.percent(self._small_files):
            if len(small.history) >= HISTORY_MAX:
                self._small = None
            return small
        at = self._dice.below(len(self.active))
        subject = self.active[at]
        if len(subject.history) >= HISTORY_MAX:
            if isinstance(subject, Counter):
                del self.active[at]
                return self.subject()
            subject = self.active[at] = self._new(type(subject))
        return subject

    def hold(self, directory: Ino) -> None:
        self.held = directory
        self._held_names = [self._new_held(directory) for _ in range(5)]

    def _new_held(self, directory: Ino) -> HeldName:
        self._made += 1
        name = HeldName(b"held-%d" % self._made, parent=directory)
        self.subjects.append(name)
        return name

    def held_name(self) -> HeldName:
        at = self._dice.below(len(self._held_names))
        if len(self._held_names[at].history) >= HISTORY_MAX:
            self._held_names[at] = self._new_held(self._held_names[at].parent)
        return self._held_names[at]

    def add_counter(self, ino: Ino) -> None:
        self._made += 1
        counter = Counter(b"counter-%d" % self._made, ino=ino)
        self.subjects.append(counter)
        self.active.append(counter)

    def add_small_file(self, ino: Ino) -> None:
        self._made += 1
        self._small = SmallFile(b"small-%d" % self._made, ino=ino)
        self.subjects.append(self._small)

    @property
    def wants_small_file(self) -> bool:
        return self._small_files > 0 and self._small is None

    @property
    def wants_counter(self) -> bool:
        return not any(isinstance(subject, Counter) for subject in self.active)

    def new_file(self) -> Command:
        self._made += 1
        return Create(ROOT_CALLER, ROOT_INO, b"file-%d" % self._made, 0o644, True)

    def other(self) -> Command:
        """A command outside of the histories, with collisions between clients."""
        dice = self._dice
        name, other = b"n%d" % dice.below(6), b"n%d" % dice.below(6)
        commands: tuple[Command, ...] = (
            Mkdir(ROOT_CALLER, ROOT_INO, name, 0o755),
            Create(ROOT_CALLER, ROOT_INO, name, 0o644, False),
            Symlink(ROOT_CALLER, ROOT_INO, name, b"target"),
            Rename(ROOT_CALLER, ROOT_INO, name, ROOT_INO, other, 0),
            Rename(ROOT_CALLER, ROOT_INO, name, ROOT_INO, other, RENAME_EXCHANGE),
            Unlink(ROOT_CALLER, ROOT_INO, name),
            Rmdir(ROOT_CALLER, ROOT_INO, name),
            Link(ROOT_CALLER, Ino(dice.between(2, 12)), ROOT_INO, name),
            PurgeOrphans(tuple(Ino(n) for n in range(dice.between(2, 10), dice.between(10, 20)))),
            TrimHistory(dice.below(50), dice.pick([1, 100])),  # type: ignore[arg-type]  # plain
            SetSetting("grace_s", str(dice.pick([10, 15, 900]))),
        )
        if self._small is not None and self._small.blobs:
            commands += (ForgetBlobs(tuple(self._small.blobs)),)
        return dice.pick(commands)


class Client:
    """See the module's text."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._world = simulation.world
        self._dice = simulation.world.dice
        self._client = self._dice.bits(62) + 1
        self._serial = 0
        self._node: int | None = None
        self.attempts_max = self._dice.pick([2, 5, 20])
        self._only_reads = self._dice.percent(simulation.parameters["readers"])
        self.busy = False
        self.wait()

    def new_key(self) -> tuple[int, int]:
        self._serial += 1
        return (self._client, self._serial)

    def wait(self) -> None:
        """Something is done after a while."""
        delay_us = self._dice.around(self.simulation.think_us)
        self._world.after(delay_us, self._world.forever, "client", self._begin)

    def _begin(self) -> None:
        simulation, dice = self.simulation, self._dice
        if simulation.healed:
            return
        if dice.percent(1):  # a new session
            self._client, self._serial = dice.bits(62) + 1, 0
        subject = None
        if self._only_reads:
            subject = simulation.workload.subject()
            plan = subject.read()
        elif simulation.workload.wants_counter and dice.percent(30):
            plan = Plan(FILE, simulation.workload.new_file(), lambda r: r)
        elif simulation.workload.wants_small_file and dice.percent(30):
            plan = Plan(SMALL_FILE, simulation.workload.new_file(), lambda r: r)
        elif simulation.workload.held is not None and dice.percent(15):
            subject = simulation.workload.held_name()
            plan = subject.plan(dice)
        elif dice.percent(30):
            plan = Plan(("other",), simulation.workload.other(), lambda r: r)
        else:
            subject = simulation.workload.subject()
            plan = subject.plan(dice)
        key = None
        if plan.command is not None:
            key = self.new_key()
        attempted = Attempted(plan, self._world.now_us, key)
        if subject is not None:
            subject.history.append(attempted)
        self.do(attempted, self.wait)

    def do(self, attempted: Attempted, done: Callable[[], None], at: Process | None = None) -> None:
        """``done`` is called when it is answered, or when the client has had enough.

        at  the first attempt goes to this run of a program.
        """
        self.busy = True

        def finish() -> None:
            self.busy = False
            done()

        _Errand(self, attempted, finish).attempt(at)

    def choose_node(self, again: bool) -> Process | None:
        """The node of last time, or after a failure mostly another one; once all is healed, each
        in turn, since most may be nodes that were never made members."""
        machines = self.simulation.machines
        up = [n for n in sorted(machines) if machines[n].process is not None]
        if again and self.simulation.healed and self._node is not None:
            self._node = in_turn(up, self._node) if up else None
        elif self._node is None or (again and self._dice.percent(70)) or self._dice.percent(5):
            self._node = self._dice.pick(up) if up else None
        return machines[self._node].process if self._node is not None else None


def in_turn(numbers: Sequence[int], last: int) -> int:
    """The one behind ``last`` of those in ascending order, the first behind the end."""
    return next((number for number in numbers if number > last), numbers[0])


class _Errand:
    """One operation under way: sent again and again, under the same key, to one node or another."""

    def __init__(self, client: Client, attempted: Attempted, finish: Callable[[], None]) -> None:
        self._client = client
        self._simulation = client.simulation
        self._world = client.simulation.world
        self._attempted = attempted
        self._finish = finish
        self._acknowledged_before = self._simulation.watch.acknowledged_max
        self._attempts = 0
        self._open = True

    def attempt(self, process: Process | None = None) -> None:
        if not self._open:
            return
        if self._attempts >= self._client.attempts_max and not self._simulation.healed:
            self._world.note(f"client gives up {self._attempted.key}")
            self._end()
            return
        self._attempts += 1
        process = process or self._client.choose_node(again=self._attempts > 1)
        seconds = self._world.dice.pick([0.3, 1.0, 3.0])
        patience_us = 100 * MS
        if process is not None:
            patience_us += int(seconds * 1.5 * SECOND)
            self._send(process, seconds)
        self._world.after(patience_us, self._world.forever, "client retries", self.attempt)

    def _send(self, process: Process, seconds: float) -> None:
        command, key = self._attempted.plan.command, self._attempted.key

        def answered(outcome: Outcome) -> None:
            if isinstance(outcome, Result):
                self._answer(process, outcome)

        def arrive() -> None:
            if command is None or key is None:
                process.read(seconds, answered, self._attempted.plan.directory)
            else:
                process.propose(key, command, seconds, answered)

        process.later(self._world.dice.around(ANSWER_US), f"request {key}", arrive)

    def _answer(self, process: Process, outcome: Result) -> None:
        """At the node: the answer has yet to come over."""
        result: Any = outcome
        if self._attempted.key is None:
            tree = process.replica.tree
            number = process.machine.number
            self._simulation.watch.on_read(number, tree, self._acknowledged_before)
            seen = self._attempted.plan.value(tree)
            process.settle(1.0, lambda: self._send_back(seen))
        else:
            self._send_back(result)

    def _send_back(self, result: Any) -> None:
        if self._world.dice.percent(self._simulation.answers_lost):
            return
        delay_us = self._world.dice.around(ANSWER_US)
        self._world.after(delay_us, self._world.forever, "answer", lambda: self._arrive(result))

    def _arrive(self, result: Any) -> None:
        if not self._open:
            return
        attempted = self._attempted
        attempted.end_us, attempted.result = self._world.now_us, result
        if attempted.key is not None:
            self._simulation.watch.on_acknowledged(attempted.key, result, self._acknowledged_before)
            attempted.result = attempted.plan.value(result)
            if attempted.plan.action == FILE and result.errno == 0:
                self._simulation.workload.add_counter(result.value[0].ino)
            if attempted.plan.action == SMALL_FILE and result.errno == 0:
                self._simulation.workload.add_small_file(result.value[0].ino)
        self._world.note(f"client {attempted.key} {attempted.plan.action} done")
        self._end()

    def _end(self) -> None:
        self._open = False
        self._finish()
