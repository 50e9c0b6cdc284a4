"""One life of a cluster: ``Simulation(seed).live(steps)``.

Phase one: for that many events everything may fail, and nothing that was promised may be broken.
Phase two: a majority heals, and within a bounded time there is one leader, all nodes have the same
tree, new commands succeed, and everything that was ever acknowledged is found again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import inf
from typing import Any

from pydi_node.commands import ROOT_CALLER, Create
from pydi_node.consensus.types import Membership
from pydi_node.effects import AddMember, FromPeer, Gone, PeerMessage, RemoveMember, Tick
from pydi_node.errors import PydiError
from pydi_node.handover import HandoverConfig
from pydi_node.ids import ROOT_INO, NodeNumber
from pydi_node.replica_config import ReplicaConfig
from pydi_node.tree.check import check
from pydi_node.tree.committer import CommitConfig
from tests.simulation.clients import Attempted, Client, Plan, Workload
from tests.simulation.linearize import FOREVER
from tests.simulation.machine import Machine, Settings
from tests.simulation.process import Process
from tests.simulation.storage import open_database
from tests.simulation.watch import Watch
from tests.simulation.world import MS, SECOND, Dice, Network, Violation, World

MACHINES_MAX = 7  # that live at the same time
CONVERGE_US = 90 * SECOND
SLOW_WORKS_MAX = 500  # of a slow disk, one after the other, until all have converged
LEAVE_S = 2.5
# How long a node is away before somebody gives it up: longer than any message is under way.
GONE_FOR_GOOD_US = 10 * SECOND
# After a node was added, until the same operator takes it out: no repetition of the first request
# is waiting on any node any more.
OPERATOR_GAP_US = 5 * SECOND
MISSED_US = 2 * SECOND  # longer than any election time-out


def draw_parameters(dice: Dice) -> dict[str, int]:
    """Swarm testing: each seed stresses other things. Percentages, weights, microseconds."""
    return {
        "voters": dice.pick([1, 1, 2, 3, 3, 3, 4, 5]),
        "loss": dice.pick([0, 0, 2, 10, 25]),
        "repeat": dice.pick([0, 0, 5, 20]),
        "reorder": dice.pick([0, 0, 10, 60]),
        "answers_lost": dice.pick([0, 5, 30]),
        "latency_us": dice.pick([200, 2 * MS, 20 * MS]),
        "disk_us": dice.pick([200, 2 * MS, 20 * MS, 60 * MS]),
        "mounts_us": dice.pick([0, 0, 1 * MS, 50 * MS]),
        "clients": dice.pick([1, 3, 6]),
        "readers": dice.pick([0, 0, 50]),
        "think_us": dice.pick([5 * MS, 20 * MS, 100 * MS]),
        # How often something breaks, and the weights of what.
        "fault_us": dice.pick([100 * MS, 300 * MS, 1000 * MS]),
        "kill": dice.pick([0, 2, 5]),
        "power_cut": dice.pick([0, 2, 5]),
        "all_down": dice.pick([0, 0, 1]),
        "pause": dice.pick([0, 0, 3]),
        "partition": dice.pick([0, 2, 6]),
        "slow_disk": dice.pick([0, 0, 2]),
        "full_disk": dice.pick([0, 0, 2]),
        "broken_disk": dice.pick([0, 0, 2]),
        "clock": dice.pick([0, 1, 3]),
        "install_crash": dice.pick([0, 0, 2]),
        "unrest": dice.pick([0, 0, 0, 2]),
        "leave": dice.pick([0, 0, 2]),
        "join": dice.pick([0, 1, 4]),
        "remove": dice.pick([0, 0, 1]),
        "replace": dice.pick([0, 0, 2]),
        # Configuration of the nodes.
        "election_ticks": dice.pick([5, 8]),
        "heartbeat_ticks": dice.pick([1, 2]),
        "append_bytes_max": dice.pick([1, 1000, 512 * 1024]),
        "inflight_messages_max": dice.pick([1, 4, 64]),
        "committed_bytes_max": dice.pick([1, 1000, 256 * 1024]),
        "unapplied_bytes_max": dice.pick([1000, 32 << 20]),
        "trailing_entries": dice.pick([0, 5, 50]),
        "snapshot_chunk_bytes": dice.pick([16 * 1024, 64 * 1024, 512 * 1024]),
        "cut_entries": dice.pick([3, 20, 100]),
        "apply_batch_max": dice.pick([1, 4, 1000]),
        "commit_entries": dice.pick([1, 5, 500]),
        "proposals_per_step_max": dice.pick([1, 3, 2000]),
        "forwarded_max": dice.pick([2, 10_000]),
        "segment_bytes": dice.pick([512, 4096, 64 * 1024]),
    }


_RAFT = (
    "election_ticks", "heartbeat_ticks", "append_bytes_max", "inflight_messages_max",
    "committed_bytes_max", "unapplied_bytes_max", "trailing_entries", "snapshot_chunk_bytes",
)  # fmt: skip
# Lives are short, and clients go to any node.
_HANDOVER = HandoverConfig(window_s=0.2, commands_min=2, hold_s=0.4)
_REPLICA = ("cut_entries", "apply_batch_max", "proposals_per_step_max", "forwarded_max")


def _draw_later_parameters(dice: Dice) -> dict[str, int]:
    """What came later. Percentages, but for the mounts' number, a yes or no, a fault, a time."""
    return {
        "small_files": dice.pick([0, 40]),
        "handover": dice.pick([0, 1]),  # whether leadership goes to where the work is
        "mounts": dice.pick([0, 1, 2]),
        "mounts_lost": dice.pick([0, 1, 5]),  # connections, each 0.1 s
        "mounts_stopped": dice.pick([0, 0, 2]),  # instead of something else that a program does
        "hang_up": dice.pick(
            [0, 1, 3]
        ),  # how often as a fault; 0: not with a program's end, either
        # What a sync takes in the end, when nothing fails any more: longer than election time-outs.
        "slow_for_good_us": dice.pick([0, 0, 0, 600 * MS]),
    }


class Simulation:
    """See the module's text."""

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        forced: dict[str, int] | None = None,
        **classes: Any,
    ) -> None:
        """forced: parameters that are not left to chance. classes: as in Settings, for mutants."""
        self.seed = seed
        self.world = World(seed, trace)
        self.dice = self.world.dice
        parameters = draw_parameters(self.dice)
        # Out of dice of their own: known seeds go on living the lives for which they are known,
        # with these at 0.
        parameters |= _draw_later_parameters(Dice(~seed))
        forced = forced or {}
        assert forced.keys() <= parameters.keys(), forced
        self.parameters = parameters | forced
        self.watch = Watch()
        self.network = Network(self.world, self._deliver, self._hang_up)
        self.network.loss = self.parameters["loss"]
        self.network.repeat = self.parameters["repeat"]
        self.network.reorder = self.parameters["reorder"]
        self.network.latency_us = self.parameters["latency_us"]
        self.answers_lost = self.parameters["answers_lost"]
        self.think_us = self.parameters["think_us"]
        self.settings = Settings(
            replica=ReplicaConfig(
                tick_s=0.05,
                cut_idle_s=5.0,
                commit=CommitConfig(entries_max=self.parameters["commit_entries"]),
                handover=_HANDOVER if self.parameters["handover"] else HandoverConfig(hold_s=inf),
                **{name: self.parameters[name] for name in _REPLICA},
            ),
            raft={name: self.parameters[name] for name in _RAFT},
            segment_bytes=self.parameters["segment_bytes"],
            **classes,
        )
        self.healed = False
        self.faults: dict[str, int] = {}  # how often each happened
        self.machines: dict[int, Machine] = {}
        voters = range(1, self.parameters["voters"] + 1)
        self._founding = Membership.founding(*voters)
        for number in voters:
            self._add_machine(number, self._founding)
        for machine in self.machines.values():
            machine.start()
        self.workload = Workload(self.dice, self.parameters["small_files"])
        self.clients = [Client(self) for _ in range(self.parameters["clients"])]
        self.mounts = [self.settings.mount_class(self) for _ in range(self.parameters["mounts"])]
        self._fault_later()

    # --- phases -----------------------------------------------------------------------------------

    def live(self, steps: int) -> None:
        """Both phases and all checks; Violation or AssertionError says what broke."""
        try:
            self.run(steps)
            self.heal()
            self.converge()
            self.judge()
        except Exception as exc:
            exc.add_note(
                f"seed={self.seed} step={self.world.steps} time={self.world.now_us / SECOND:.6f} s:"
                f" scripts/simulate --seed {self.seed} --steps {steps} --trace"
            )
            raise
        finally:
            self.close()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    def heal(self) -> None:
        """Nothing fails from now on, and a majority is there or comes back.

        Those that stay away go while nobody hears of anybody: to lose nodes for good within the
        time-out in which others leave or become voters may cost the majority, and no system can
        tell.
        """
        self.world.note("everything heals")
        self.healed = True
        network = self.network
        network.loss = network.repeat = network.reorder = 0
        network.latency_us = 1 * MS
        self.answers_lost = 0
        for _, machine in sorted(self.machines.items()):
            machine.set_room("plenty")
            machine.disk_us = self.parameters["slow_for_good_us"] or 1 * MS
            machine.clock.set_rate(self.dice.between(950, 1050))
            machine.crash_countdown = -1
        network.cut = {(a, b) for a in self.machines for b in self.machines}
        awake_us = max([p.paused_until_us for p in self._processes()], default=0)
        self.world.run_until(max(awake_us, self.world.now_us) + MISSED_US)
        for machine in self.machines.values():
            machine.stays_down = machine.removed
        for number in sorted(self._who_may_stay_away()):
            self.machines[number].kill("stays away")
            self.machines[number].stays_down = True
        network.cut = set()
        for _, machine in sorted(self.machines.items()):
            machine.start()

    def converge(self) -> None:
        """One leader, everyone at the same index, new commands succeed, old answers are found."""
        # With slow disks a snapshot in small pieces takes as long as its pieces, sent and written.
        pieces_us = SLOW_WORKS_MAX * self.parameters["slow_for_good_us"]
        deadline_us = self.world.now_us + CONVERGE_US + pieces_us
        self._until(self._agreed, deadline_us, "no agreement")
        waiting = []
        for number in self._live_members():
            process = self.machines[number].process
            assert process is not None
            client = Client(self)
            command = Create(ROOT_CALLER, ROOT_INO, b"new-%d" % number, 0o644, True)
            client.do(
                Attempted(Plan(("new",), command, _plain), 0, client.new_key()), _nothing, process
            )
            waiting.append(client)
        self._until(lambda: not any(c.busy for c in waiting), deadline_us, "commands hang")
        self._until(self._agreed, deadline_us, "no second agreement")

    def judge(self) -> None:
        """What can be said only at the end."""
        members = self._live_members()
        for number in members:
            process = self.machines[number].process
            assert process is not None
            tree = process.replica.tree
            self.watch.on_digest(tree)
            self.watch.nothing_lost(number, tree)
        for number, machine in sorted(self.machines.items()):
            connection = (
                machine.process.connection if machine.process else open_database(machine.image)
            )
            findings = check(connection)
            self.watch.require(findings == [], "tree of", number, findings)
            if machine.process is None:
                connection.close()
        for subject in self.workload.subjects:
            self.watch.require(
                subject.is_linearizable(self.watch),
                "not linearizable",
                subject.name,
                subject.history,
            )

    @staticmethod
    def kinds_of_faults() -> set[str]:
        return set(_FAULTS)

    def summary(self) -> str:
        watch = self.watch
        return (
            f"{self.world.fingerprint} {self.world.now_us / SECOND:.1f} s,"
            f" {self.world.steps} steps,"
            f" {len(self.machines)} machines, {watch.elections} elections, {watch.commit_max}"
            f" entries, {watch.duplicates} of them repeated, {watch.memberships} memberships,"
            f" {self.watch.installs} snapshots, {len(watch.acknowledged)} acknowledged,"
            f" {watch.digests_compared} digests compared"
        )

    def close(self) -> None:
        for machine in self.machines.values():
            if machine.process is not None:
                machine.process.connection.close()
                machine.process = None

    def _until(self, holds: Callable[[], bool], deadline_us: int, what: str) -> None:
        while not holds():
            if self.world.now_us > deadline_us:
                raise Violation(what, self._status())
            self.world.run_until(self.world.now_us + 100 * MS)

    def _agreed(self) -> bool:
        leaders = [p for p in self._processes() if p.replica.is_leader]
        if len(leaders) != 1 or any(client.busy for client in self.clients):
            return False
        if any(mount.busy for mount in self.mounts):
            return False
        raft = leaders[0].replica.raft
        if not self.watch.commit_max <= raft.commit_index == raft.last_index:
            return False
        voters = len(raft.membership.voters)
        for member in raft.membership.members:
            machine = self.machines[member.number]
            if machine.destroyed or machine.stays_down:
                continue
            if machine.process is None:
                return False
            replica = machine.process.replica
            if replica.tree.applied_index < raft.commit_index or replica.raft.leader != raft.node:
                return False
            if not member.voter and voters < 5:
                return False  # it becomes one when it has caught up
        return True

    def _live_members(self) -> list[int]:
        (leader,) = [p for p in self._processes() if p.replica.is_leader]
        numbers = [int(member.number) for member in leader.replica.raft.membership.members]
        return [n for n in numbers if self.machines[n].process is not None]

    def _status(self) -> list[Any]:
        return [p.replica.raft.status() for p in self._processes()]

    def _processes(self) -> list[Process]:
        machines = [self.machines[number] for number in sorted(self.machines)]
        return [m.process for m in machines if m.process is not None]

    # --- machines ---------------------------------------------------------------------------------

    def _add_machine(self, number: int, founding: Membership | None) -> Machine:
        machine = Machine(number, self.world, self.network, self.watch, self.settings, founding)
        machine.disk_us = self.parameters["disk_us"]
        machine.mounts_us = self.parameters["mounts_us"]
        if self.dice.percent(30):
            machine.clock.set_rate(self.dice.pick([700, 950, 1050, 1300]))
        self.machines[number] = machine
        return machine

    def _deliver(self, to: int, message: PeerMessage) -> None:
        self._tell(to, FromPeer(message))

    def _tell(self, to: int, event: FromPeer | Gone) -> None:
        machine = self.machines.get(to)
        if machine is not None and machine.process is not None:
            machine.process.receive(event)

    def _hang_up(self, number: int) -> None:
        """All whom that machine reaches learn that its connections to them ended."""
        if not self.parameters["hang_up"]:
            return  # as with a network that says nothing of a program's end
        event = Gone(NodeNumber(number))
        for other in sorted(self.machines):
            if other != number and (number, other) not in self.network.cut:
                self.world.after(
                    self.dice.around(self.network.latency_us),
                    self.world.forever,
                    f"{number} -> {other} hangs up",
                    functools.partial(self._tell, other, event),
                )

    def _can_do_without(self, absent: set[int]) -> bool:
        """Whether the newest membership, and any newer one in some log, keep a majority."""
        gone = absent | {n for n, m in self.machines.items() if m.destroyed or m.stays_down}
        index, newest = self.watch.newest_membership
        memberships = [newest or self._founding]
        for machine in self.machines.values():
            if not machine.destroyed:
                memberships += [m for i, m in machine.memberships() if i > index]
        return all(
            2 * len(set(membership.voters) - gone) > len(membership.voters)
            for membership in memberships
        )

    def _who_may_stay_away(self) -> set[int]:
        candidates = [n for n, m in sorted(self.machines.items()) if not m.destroyed]
        absent: set[int] = set()
        for _ in range(self.dice.below(3)):
            number = self.dice.pick(candidates)
            if self._can_do_without(absent | {number}):
                absent.add(number)
        return absent

    # --- faults -----------------------------------------------------------------------------------

    def _fault_later(self) -> None:
        delay_us = self.dice.around(self.parameters["fault_us"])
        self.world.after(delay_us, self.world.forever, "fault", self._fault)

    def _fault(self) -> None:
        if self.healed:
            return
        weighted = [kind for kind in _FAULTS for _ in range(self.parameters[kind])]
        if weighted:
            kind = self.dice.pick(weighted)
            self.faults[kind] = self.faults.get(kind, 0) + 1
            self.world.note(f"fault {kind}")
            _FAULTS[kind](self)
        self._fault_later()

    def _later(self, mean_us: int, what: str, action: Callable[[], None]) -> None:
        """An action of phase one: it does not happen any more after the healing."""

        def act() -> None:
            if not self.healed:
                action()

        self.world.after(self.dice.around(mean_us), self.world.forever, what, act)

    def _any_up(self) -> Machine | None:
        """A machine whose program runs; often a leader's, since most depends on those."""
        processes = self._processes()
        if self.dice.percent(40):
            processes = [p for p in processes if p.replica.is_leader] or processes
        return self.dice.pick(processes).machine if processes else None

    def _restart_later(self, machine: Machine) -> None:
        self._later(self.dice.pick([50 * MS, 500 * MS, 3 * SECOND]), "restart", machine.start)

    def _kill(self) -> None:
        if (machine := self._any_up()) is not None:
            machine.kill()
            self._restart_later(machine)

    def _power_cut(self) -> None:
        machine = self.machines[self.dice.pick(sorted(self.machines))]
        if not machine.destroyed:
            machine.power_cut()
            self._restart_later(machine)

    def _all_down(self) -> None:
        power = self.dice.percent(60)
        for machine in self.machines.values():
            if not machine.destroyed:
                if power:
                    machine.power_cut()
                else:
                    machine.kill()
                self._restart_later(machine)

    def _pause(self) -> None:
        if (machine := self._any_up()) is not None and machine.process is not None:
            for_us = self.dice.around(self.dice.pick([50 * MS, 1 * SECOND]))
            machine.process.paused_until_us = self.world.now_us + for_us

    def _partition(self) -> None:
        """One node off, two halves, or some directions only."""
        numbers = sorted(self.machines)
        way = self.dice.below(3)
        machine = self._any_up()
        lonely = int(machine.number) if machine is not None else self.dice.pick(numbers)
        side = {n for n in numbers if (n == lonely if way == 0 else self.dice.percent(50))}
        self.network.cut = {
            (a, b)
            for a in numbers
            for b in numbers
            if a != b and (self.dice.percent(30) if way == 2 else (a in side) != (b in side))
        }
        self._later(self.dice.pick([200 * MS, 2 * SECOND]), "joined again", self._unite)

    def _unite(self) -> None:
        self.network.cut = set()

    def _slow_disk(self) -> None:
        if (machine := self._any_up()) is not None:
            machine.disk_us = self.dice.pick([100 * MS, 1 * SECOND])

            def recover() -> None:
                machine.disk_us = self.parameters["disk_us"]

            self._later(1 * SECOND, "disk fast again", recover)

    def _full_disk(self) -> None:
        if (machine := self._any_up()) is not None:
            machine.set_room(self.dice.pick(["low", "none"]))
            self._later(1 * SECOND, "disk has room", lambda: machine.set_room("plenty"))

    def _broken_disk(self) -> None:
        if (machine := self._any_up()) is not None:
            machine.break_disk()

    def _clock(self) -> None:
        clock = self.machines[self.dice.pick(sorted(self.machines))].clock
        if self.dice.percent(50):
            clock.wall_offset_us += self.dice.pick([-3600, -2, 1, 60, 86_400]) * SECOND
        else:
            clock.set_rate(self.dice.pick([500, 900, 1000, 1100, 2000]))

    def _install_crash(self) -> None:
        if (machine := self._any_up()) is not None:
            machine.crash_countdown = self.dice.below(7)

    def _unrest(self) -> None:
        """An election that nothing called for, as if the leader wanted to hand over."""
        processes = [p for p in self._processes() if not p.replica.is_leader]
        if processes:
            process = self.dice.pick(processes)
            if process.replica.raft._may_campaign():
                process.replica.raft._campaign(transfer=True)
                process.submit(Tick())

    def _false_alarm(self) -> None:
        """The connections of a program end, and it goes on."""
        if (machine := self._any_up()) is not None:
            self._hang_up(machine.number)

    # --- members ----------------------------------------------------------------------------------

    def _leave(self) -> None:
        machine = self._any_up()
        if machine is None or machine.process is None:
            return
        process = machine.process

        def left(_: object) -> None:
            if machine.process is process:
                process.later(0, "stops", stop)

        def stop() -> None:
            machine.stop()
            self.world.after(
                self.dice.around(1 * SECOND), self.world.forever, "back again", machine.start
            )

        process.leave(LEAVE_S, left)

    def _join(self) -> None:
        living = [m for m in self.machines.values() if not m.destroyed and not m.removed]
        if len(living) >= MACHINES_MAX:
            return
        number = max(self.machines) + 1
        machine = self._add_machine(number, None)
        machine.settled_us = FOREVER
        machine.start()

        def added() -> None:
            machine.settled_us = self.world.now_us + OPERATOR_GAP_US

        self._change(AddMember, number, added)

    def _remove(self) -> None:
        """A node that works is taken out; its program is stopped some time later."""
        number = self.dice.pick(sorted(self.machines))
        machine = self.machines[number]
        if machine.destroyed or machine.removed or machine.settled_us > self.world.now_us:
            return
        if not self._can_do_without({number}):
            return

        def removed() -> None:
            machine.removed = machine.stays_down = True
            self._later(1 * SECOND, "goes home", lambda: machine.kill("goes home"))

        self._change(RemoveMember, number, removed)

    def _replace(self) -> None:
        """A node dies for good; the operator takes it out, and another one comes."""
        machine = self._any_up()
        if machine is None or machine.settled_us > self.world.now_us:
            return
        number = int(machine.number)
        if not self._can_do_without({number}):
            return
        machine.power_cut()
        machine.stays_down = True

        def give_up() -> None:
            if self.healed:
                return
            machine.stays_down = False
            if self._can_do_without({number}):
                self.world.note(f"{number} is lost for good")
                machine.destroyed = True
                self._change(RemoveMember, number, self._join)
            else:
                machine.start()

        self.world.after(GONE_FOR_GOOD_US, self.world.forever, "give up", give_up)

    def _change(
        self, kind: Callable[..., Any], number: int, done: Callable[[], None], attempts: int = 10
    ) -> None:
        """An operator's command, given to one node after the other until one says yes."""
        if self.healed or attempts == 0:
            return
        leaders = [p for p in self._processes() if p.replica.is_leader]
        process = self.dice.pick(leaders or self._processes() or [None])
        answers: list[object] = []

        def answered(outcome: object) -> None:
            answers.append(outcome)
            if not isinstance(outcome, PydiError):
                done()

        if process is not None:
            process.request(lambda r, d: kind(r, number, d), 2.0, answered)

        def again() -> None:
            if not answers or isinstance(answers[0], PydiError):
                self._change(kind, number, done, attempts - 1)

        self._later(1 * SECOND, "operator", again)


def _nothing() -> None:
    pass


def _plain(value: Any) -> Any:
    return value


_FAULTS: dict[str, Callable[[Simulation], None]] = {
    "kill": Simulation._kill,
    "power_cut": Simulation._power_cut,
    "all_down": Simulation._all_down,
    "pause": Simulation._pause,
    "partition": Simulation._partition,
    "slow_disk": Simulation._slow_disk,
    "full_disk": Simulation._full_disk,
    "broken_disk": Simulation._broken_disk,
    "clock": Simulation._clock,
    "install_crash": Simulation._install_crash,
    "unrest": Simulation._unrest,
    "hang_up": Simulation._false_alarm,
    "leave": Simulation._leave,
    "join": Simulation._join,
    "remove": Simulation._remove,
    "replace": Simulation._replace,
}
