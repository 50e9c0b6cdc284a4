"""One simulated machine: the disk and the clock that outlive the node's program, and its starts.

Machine   disk of the log, image of the tree's database, clock; power and the program come and go
Process   (process.py) one run of the program on it: a Replica, its DiskLog, its driver
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from pydi_node.consensus import codec
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import Membership
from pydi_node.effects import Now
from pydi_node.errors import NoSpaceError
from pydi_node.ids import LogIndex, NodeNumber, Term, TimeNs
from pydi_node.replica_config import ReplicaConfig
from pydi_node.tree.machine import Tree
from tests.harness.disk_sim import Crash, SimulatedDisk
from tests.simulation.mounts import Mount
from tests.simulation.process import Process
from tests.simulation.storage import WatchedTree, committed_image, open_database
from tests.simulation.watch import Watch
from tests.simulation.world import MS, SECOND, Network, World

ROOMY_BYTES = 1 << 40
# Of a monotonic clock; two such may differ by what leases.GRANTER_S / leases.HOLDER_S allows.
DRIFT_PERMILLE = 90
RESTART_US = 300 * MS


@dataclass(frozen=True, slots=True)
class Settings:
    """What all nodes of a cluster have in common; the classes are replaced by mutants."""

    replica: ReplicaConfig
    raft: dict[str, int]  # arguments of consensus' Config
    segment_bytes: int
    raft_class: Callable[..., Raft] = Raft
    process_class: type[Process] = Process
    tree_class: type[WatchedTree] = WatchedTree
    disk_class: type[SimulatedDisk] = SimulatedDisk
    mount_class: type[Mount] = Mount


class Clock:
    """A machine's clocks: seconds that pass too fast or too slowly, and a wall clock that jumps.

    Ticks may come at any rate; the monotonic clock keeps to what leases assume of clocks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.tick_permille = 1000  # how fast ticks come
        self.rate_permille = 1000
        self.wall_offset_us = 0
        self._base_us = 0  # when the rate was set
        self._base_mono_us = world.dice.below(1000 * SECOND)

    def now(self) -> Now:
        mono_us = self._mono_us()
        wall_us = 1_700_000_000 * SECOND + self._world.now_us + self.wall_offset_us
        return Now(mono_us / SECOND, TimeNs(max(0, wall_us) * 1000), mono_us / SECOND)

    def set_rate(self, permille: int) -> None:
        self._base_mono_us, self._base_us = self._mono_us(), self._world.now_us
        self.tick_permille = permille
        self.rate_permille = min(max(permille, 1000 - DRIFT_PERMILLE), 1000 + DRIFT_PERMILLE)

    def delay_us(self, own_us: int) -> int:
        """How long this machine's ``own_us`` between two ticks really are."""
        return own_us * 1000 // self.tick_permille

    def _mono_us(self) -> int:
        return (
            self._base_mono_us + (self._world.now_us - self._base_us) * self.rate_permille // 1000
        )


class Machine:
    """See the module's text."""

    def __init__(
        self,
        number: int,
        world: World,
        network: Network,
        watch: Watch,
        settings: Settings,
        founding: Membership | None,
    ) -> None:
        """founding: this machine is one of those that found the cluster."""
        self.number = NodeNumber(number)
        self.world = world
        self.network = network
        self.watch = watch
        self.settings = settings
        self.clock = Clock(world)
        self.disk = settings.disk_class(world.dice.bits(32))
        self.disk_us = 1 * MS  # how long one sync takes
        self.mounts_us = 0  # how long the mounts here take to drop what changed
        self.room = "plenty"  # or "low": the program knows; or "none": writes fail
        self.founding = founding
        connection = open_database(b"")
        tree = Tree(connection)
        if founding is not None:
            tree.set_membership(LogIndex(0), Term(0), codec.pack_membership(founding))
        # Of the tree's database: what a killed program leaves, what is certainly on the disk, and
        # states in between that the disk may have.
        self.image: bytes = connection.serialize()
        self.image_durable = self.image
        self.images_between: list[bytes] = []
        connection.close()
        self.installing: int | None = None  # content of installing.json
        # The database that took the tree's place in a folder that is not synced yet.
        self.renamed: bytes | None = None
        self.process: Process | None = None
        self._memberships: list[tuple[int, Membership]] = [(0, founding)] if founding else []
        self.destroyed = False  # never comes back
        self.settled_us = 0  # until then an operator is still busy adding it
        self.removed = False  # taken out of the cluster
        self.stays_down = False
        self.crash_countdown = -1  # steps of installations until the machine crashes in one
        self.starts = 0

    # --- power ------------------------------------------------------------------------------------

    def start(self) -> None:
        """The program runs, or will try again when the disk was full."""
        if self.process is not None or self.destroyed or self.stays_down:
            return
        self.starts += 1
        self.world.note(f"{self.number} starts")
        process = None
        try:
            process = self.settings.process_class(self)
        except NoSpaceError:
            self._start_later()
        except Crash:
            self._power_off()
            self._start_later()
        else:
            self.process = process
            process.begin()

    def kill(self, why: str = "killed") -> None:
        """The program ends, the machine goes on: what was written is there, synced or not."""
        if self.process is None:
            return
        self.world.note(f"{self.number} {why}")
        self._take_image()
        self.disk = self.disk.killed()
        self.network.hang_up(self.number)

    def power_cut(self) -> None:
        """The machine stops in the middle of what it does; unsynced writes are there or not."""
        self.world.note(f"{self.number} loses power")
        if self.process is not None:
            if self.world.dice.percent(50):
                self.process.crash_in_disk_work(self.world.dice.below(6))
            self._take_image()
        self._power_off()

    def stop(self) -> None:
        """A clean end: everything is on disk."""
        assert self.process is not None
        self.world.note(f"{self.number} stops")
        try:
            self.process.log.close()
            self.process.replica.tree.commit()
        except (NoSpaceError, OSError):
            pass  # what was appended last is lost as in a crash; nobody relied on it
        self._take_image()
        self.image_durable, self.images_between = self.image, []
        self.disk = self.disk.killed()

    def crash(self) -> None:
        """A simulated crash hit a call of the program."""
        if self.world.dice.percent(60):
            self.power_cut()
        else:
            self.kill("crashes")
        self._start_later()

    def fail(self, error: Exception) -> None:
        """The program ended itself because its disk failed; somebody starts it again."""
        self.kill(f"fails: {error}")
        self._start_later()

    def _start_later(self) -> None:
        world = self.world
        world.after(
            world.dice.around(RESTART_US), world.forever, f"start {self.number}", self.start
        )

    def _power_off(self) -> None:
        dice = self.world.dice
        self.image = dice.pick([self.image_durable, *self.images_between[-2:], self.image])
        self.image_durable, self.images_between = self.image, []
        self.renamed = None
        self.disk = self.disk.crashed()

    def _take_image(self) -> None:
        assert self.process is not None
        self.image = committed_image(self.process.connection)
        self._memberships = self.memberships()
        self.process.connection.close()
        self.process.ended = True
        self.process = None
        self.crash_countdown = -1

    def memberships(self) -> list[tuple[int, Membership]]:
        """(log index, membership) of all that its log may hold."""
        if self.process is None:
            return self._memberships
        return [(int(i), m) for i, m in self.process.replica.raft._log._memberships]

    def sync_folder(self) -> None:
        """Renamings in the tree's folder are durable."""
        if self.renamed is not None:
            self.image_durable, self.images_between = self.renamed, []
            self.renamed = None

    # --- disk -------------------------------------------------------------------------------------

    def set_room(self, room: str) -> None:
        self.room = room
        if room == "none":
            self.disk.total_bytes -= self.disk._free()
        else:
            self.disk.total_bytes = ROOMY_BYTES

    def break_disk(self) -> None:
        """One of the next calls fails; the program must not go on with that disk."""
        self.disk.fail(self.world.dice.below(8), errno.EIO)

    def crash_point(self) -> None:
        """A place in the installation of a snapshot where a crash matters."""
        if self.crash_countdown == 0:
            raise Crash("installation")
        self.crash_countdown -= 1
