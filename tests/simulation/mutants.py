"""Nodes with one safety rule broken each, for the test that the simulation notices.

A test that can't fail proves nothing. Mutants of the core are those of the consensus room; those of
the driver, the tree and the disk are here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from pydi_node.commands import Batch, Command, Envelope, PutFile, Undelegate
from pydi_node.consensus.raft import Raft
from pydi_node.consensus.types import MembershipChange, SnapshotMeta
from pydi_node.effects import Persist, Persisted, RoleChanged
from pydi_node.ids import INT64_MAX, ClientId, Ino, LogIndex, Term
from pydi_node.leases import Grant
from pydi_node.records import Result
from pydi_node.tree.delegations import changed_directories
from pydi_node.tree.store import Delegation
from tests.harness.disk_sim import NoFdatasync
from tests.simulation.machine import Machine
from tests.simulation.mounts import Mount
from tests.simulation.process import NOBODY, Callback, Process
from tests.simulation.storage import WatchedTree
from tests.simulation.world import MS, Action
from tests.unit.consensus import mutants as core


class RepliesBeforeSync(Process):
    """What was appended counts as durable before the log was synced."""

    def _on_persist(self, effect: Persist) -> None:
        super()._on_persist(effect)
        self.submit(Persisted(effect.number))

    def _sync(self, number: int) -> None:
        self.log.sync()
        self._synced_number = number

    _EFFECTS: ClassVar[dict[type[Any], Any]] = Process._EFFECTS | {Persist: _on_persist}


class KeepsLogUnderSnapshot(Process):
    """A snapshot takes the tree's place, and the log goes on as it was."""

    def reset_log(self, meta: SnapshotMeta) -> None:
        pass


class InstallsUnverified(Process):
    """A received snapshot is believed without a look at its checksum."""

    def checksum_is_right(self, snapshot_id: bytes) -> bool:
        return True


class TrustsTheFolder(Process):
    """A renaming that a killed program did not sync is taken for durable."""

    def read_folder(self) -> None:
        pass


class AnswersUnreleased(Process):
    """A command is answered as soon as it is applied here, whatever others still rely on."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        waiting = self.replica._unreleased
        take = waiting.take
        waiting.take = lambda released: take(LogIndex(INT64_MAX))  # type: ignore[method-assign]


class ShowsUnreleased(Process):
    """A read shows at once what others may not see yet."""

    def settle(self, seconds: float, done: Action) -> None:
        done()


class WithoutLeases(AnswersUnreleased):
    """No mistake: every read asks the leader, and nobody relies on anything. Waiting for leases
    would hide what is wrong with the question."""

    def has_lease(self) -> bool:
        return False

    def settle(self, seconds: float, done: Action) -> None:
        done()


class IgnoresOldLeases(Process):
    """A new leader releases without a thought of whom its predecessor gave leases."""

    def _on_role(self, effect: RoleChanged) -> None:
        super()._on_role(effect)
        granter = self.replica.leases._granter
        if granter is not None:
            granter._holders.clear()

    _EFFECTS: ClassVar[dict[type[Any], Any]] = Process._EFFECTS | {RoleChanged: _on_role}


class ForgetsWhomItFollowed(Process):
    """A node tells a new leader that it has not heard from an earlier one for ever."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.replica.leases._followed_before = lambda term: 0.0  # type: ignore[method-assign]


class CountsFromArrival(Process):
    """A holder counts its lease from when the grant came in, not from when it asked."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        leases = self.replica.leases
        on_grant = leases.on_grant

        def count_from_now(message: Grant) -> None:
            asked_us = int(machine.clock.now().uptime_s * 1_000_000) if message.asked_us else 0
            on_grant(message._replace(asked_us=asked_us))

        leases.on_grant = count_from_now  # type: ignore[method-assign]


class GrantsUnconfirmed(Process):
    """A leader gives leases out of its belief that it still leads."""

    def _on_role(self, effect: RoleChanged) -> None:
        super()._on_role(effect)
        granter = self.replica.leases._granter
        if granter is not None:
            granter.confirmed_s = lambda now_s: now_s  # type: ignore[method-assign]

    _EFFECTS: ClassVar[dict[type[Any], Any]] = Process._EFFECTS | {RoleChanged: _on_role}


class CutsTooFar(WatchedTree):
    """The log is cut behind what is applied, whether the database has it on disk or not."""

    def checkpoint(self) -> LogIndex:
        return self.applied_index


class ExecutesTwice(WatchedTree):
    """A repeated (client, serial) is executed again."""

    def __init__(self, connection: sqlite3.Connection, machine: Machine) -> None:
        super().__init__(connection, machine)
        self._sessions.is_new = lambda client, serial: True  # type: ignore[method-assign]


class ForgetsSessions(WatchedTree):
    """Results are remembered in memory only: neither a restart nor a snapshot keeps them."""

    def __init__(self, connection: sqlite3.Connection, machine: Machine) -> None:
        super().__init__(connection, machine)
        self._connection.execute("DELETE FROM session_result")
        self._connection.execute("DELETE FROM session")


class ForgetsContent(WatchedTree):
    """Small content is kept in memory only."""

    def __init__(self, connection: sqlite3.Connection, machine: Machine) -> None:
        super().__init__(connection, machine)
        self._connection.execute("DELETE FROM content")


class ForgetsOldContent(WatchedTree):
    """Small content goes when it is replaced, whatever history says."""

    def advance(self, entries: Sequence[tuple[LogIndex, Term, Envelope | None]]) -> list[Result]:
        results = super().advance(entries)
        self._connection.execute("DELETE FROM content WHERE blob NOT IN (SELECT blob FROM extent)")
        return results


class ExecutesForOthers(WatchedTree):
    """A command is executed whoever holds its directory."""

    def _step(self, index: LogIndex, envelope: Envelope) -> Result:
        self._store.delegations = _Unseen(self._store.delegations)
        return super()._step(index, envelope)


class _Unseen(dict[int, Delegation]):
    """As if nothing was delegated, to whoever asks whether anything is."""

    def __bool__(self) -> bool:
        return False


class ForgetsTheFence(WatchedTree):
    """A file with a number of its client's is made though the directory was revoked meanwhile."""

    def _execute_command(self, command: Command) -> Result:
        store = self._store
        if (
            not isinstance(command, PutFile)
            or command.ino is None
            or command.parent in store.delegations
        ):
            return super()._execute_command(command)
        store.delegations[command.parent] = Delegation(store.client, 0)
        try:
            return super()._execute_command(command)
        finally:
            del store.delegations[command.parent]


class ForgetsTheFenceOfABatch(WatchedTree):
    """What a holder did is executed though its directory was revoked meanwhile."""

    def _execute_command(self, command: Command) -> Result:
        if not isinstance(command, Batch):
            return super()._execute_command(command)
        held = self._store.delegations
        everything = {
            ino: Delegation(self._store.client, 0)
            for part in command.commands
            for ino in changed_directories(part)
        }
        self._store.delegations = held | everything
        try:
            return super()._execute_command(command)
        finally:
            self._store.delegations = held


class LooksIntoHeld(Process):
    """A read is answered from the tree, though somebody holds the directory that it looks into."""

    def read(
        self,
        seconds: float,
        done: Callback,
        directory: Ino | None = None,
        client: ClientId = NOBODY,
    ) -> None:
        super().read(seconds, done)


class GivesBackEarly(Mount):
    """A directory is given back when all that was made in it is sent, not when it is answered."""

    def on_push(self, sequence: int) -> None:
        self._stop_holding()
        held = self.simulation.workload.held
        if self._gives_back and held is not None:
            self._execute(Undelegate((held,)), self._on_given_back)
        self._acknowledge(sequence)


class HoldsOnWhenLost(Mount):
    """A directory is held over the end of a connection."""

    def on_lost(self) -> None:
        pass


class NeedsNoLease(Mount):
    """What it holds counts as long as it knows of nothing else."""

    @property
    def _may_rely(self) -> bool:
        return self._names is not None and self._process is not None


class TrustsTheSilent(Raft):
    """A new leader takes a voter away without having heard of those that are left."""

    def propose_membership(self, change: MembershipChange) -> LogIndex:
        for progress in self._lead.peers.values() if self._lead is not None else ():
            progress.answered = True
        return super().propose_membership(change)


class EndsOnRefusedPiece(Raft):
    """A piece of a snapshot that can't be written ends the node."""

    def snapshot_refused(self, snapshot_id: bytes) -> None:
        assert self._installing is not None, snapshot_id
        super().snapshot_refused(snapshot_id)


class Mutant(NamedTuple):
    """What is broken, the lives in which it matters, and a seed that finds it."""

    name: str
    classes: dict[str, Any]
    forced: dict[str, int]
    seed: int
    steps: int = 4000


# Parameters of the lives in which each mistake matters, and soon.
_QUIET = {
    "install_crash": 0, "leave": 0, "join": 0, "remove": 0, "replace": 0, "all_down": 0,
    "slow_disk": 0, "full_disk": 0, "broken_disk": 0, "pause": 0, "kill": 0, "power_cut": 0,
    "clock": 0, "partition": 0, "loss": 0, "unrest": 0, "answers_lost": 0,
}  # fmt: skip
_CRASHES = {"voters": 3, "kill": 0, "power_cut": 5, "disk_us": 20 * MS, "fault_us": 100 * MS}
_SNAPSHOTS = {"voters": 3, "trailing_entries": 0, "cut_entries": 3, "join": 4, "power_cut": 5}
_SPLITS = {"voters": 3, "partition": 6, "pause": 3, "think_us": 5 * MS, "clients": 6}
_SMALL_FILES = {"voters": 3, "power_cut": 2, "small_files": 60, "cut_entries": 20}
_REPEATS = {"answers_lost": 30, "think_us": 5 * MS, "clients": 6}
_LATE = _QUIET | {
    "voters": 3, "unrest": 5, "repeat": 20, "reorder": 60, "append_bytes_max": 512 * 1024,
    "inflight_messages_max": 64, "latency_us": 20 * MS, "disk_us": 2 * MS, "clients": 6,
    "think_us": 5 * MS, "fault_us": 300 * MS,
}  # fmt: skip
_LATE_ENTRIES = _LATE | {"append_bytes_max": 1, "unrest": 10}
_ONE_ENTRY = _QUIET | {
    "voters": 3, "unrest": 10, "append_bytes_max": 1, "inflight_messages_max": 1, "disk_us": 200,
    "latency_us": 20 * MS, "fault_us": 100 * MS, "clients": 6, "think_us": 5 * MS,
    "proposals_per_step_max": 2000, "unapplied_bytes_max": 32 << 20,
}  # fmt: skip
_OLD_LEADERS = _QUIET | {
    "voters": 3, "pause": 4, "clock": 2, "partition": 6, "clients": 20, "readers": 50,
    "think_us": 100 * MS, "disk_us": 200, "latency_us": 2 * MS, "fault_us": 300 * MS,
    "election_ticks": 8,
}  # fmt: skip
_READERS = _QUIET | {
    "voters": 3, "clients": 20, "readers": 50, "think_us": 20 * MS, "disk_us": 200, "pause": 3,
    "partition": 6, "latency_us": 2 * MS, "mounts_us": 50 * MS, "fault_us": 300 * MS,
    "election_ticks": 5, "heartbeat_ticks": 2,
}  # fmt: skip
_LATE_READERS = _READERS | {
    "repeat": 20, "reorder": 60, "latency_us": 20 * MS, "pause": 8, "partition": 8,
    "fault_us": 100 * MS,
}  # fmt: skip
_MANY_READERS = _READERS | {
    "repeat": 20, "reorder": 60, "latency_us": 20 * MS, "pause": 6, "partition": 6, "clients": 40,
    "clock": 3,
}  # fmt: skip
_MOUNTS = _QUIET | {
    "voters": 3, "clients": 3, "readers": 0, "think_us": 20 * MS, "disk_us": 200,
    "latency_us": 200, "mounts_us": 0, "small_files": 0, "mounts": 2, "mounts_lost": 0,
    "mounts_stopped": 0,
}  # fmt: skip
_STOPPED_MOUNTS = _MOUNTS | {"mounts_stopped": 8, "clients": 6, "think_us": 50 * MS}
_LOST_MOUNTS = _MOUNTS | {"mounts_lost": 5, "clients": 6, "think_us": 100 * MS}
_LOST_COMMANDS = _MOUNTS | {"loss": 10, "reorder": 60, "latency_us": 2 * MS}
FULL_DISKS = _SNAPSHOTS | {
    "snapshot_chunk_bytes": 16 * 1024, "full_disk": 6, "fault_us": 100 * MS, "disk_us": 2 * MS,
}  # fmt: skip
LOSSES = {
    "voters": 3, "leave": 6, "replace": 6, "remove": 0, "join": 0, "kill": 2, "power_cut": 2,
    "all_down": 0, "partition": 3, "think_us": 100 * MS, "clients": 1,
}  # fmt: skip

# A renaming that was not synced is lost only by a power cut soon after it.
INSTALLS = _SNAPSHOTS | {
    "install_crash": 40, "power_cut": 15, "fault_us": 30 * MS, "cut_entries": 2, "partition": 3,
    "loss": 0, "slow_disk": 0, "pause": 0, "clients": 6, "think_us": 5 * MS,
}  # fmt: skip
LIVES = {
    "crashes": _CRASHES, "snapshots": _SNAPSHOTS, "splits": _SPLITS, "repeats": _REPEATS,
    "small-files": _SMALL_FILES, "late": _LATE, "late-entries": _LATE_ENTRIES,
    "one-entry": _ONE_ENTRY,
    "old-leaders": _OLD_LEADERS, "full-disks": FULL_DISKS, "losses": LOSSES, "installs": INSTALLS,
    "readers": _READERS, "late-readers": _LATE_READERS, "many-readers": _MANY_READERS,
    "mounts": _MOUNTS, "stopped-mounts": _STOPPED_MOUNTS, "lost-mounts": _LOST_MOUNTS,
    "lost-commands": _LOST_COMMANDS,
}  # fmt: skip

MUTANTS = [
    Mutant("votes-before-durable", {"raft_class": core.VotesBeforePersisted}, _CRASHES, 2),
    Mutant(
        "acknowledges-before-durable", {"raft_class": core.AcknowledgesBeforePersisted}, _CRASHES, 2
    ),
    Mutant("replies-before-sync", {"process_class": RepliesBeforeSync}, _CRASHES, 1),
    Mutant("never-syncs", {"disk_class": NoFdatasync}, _CRASHES, 1),
    Mutant("votes-twice", {"raft_class": core.VotesTwice}, _SPLITS, 9),
    Mutant("votes-for-any-log", {"raft_class": core.VotesForAnyLog}, _SPLITS, 3),
    Mutant("commits-old-terms", {"raft_class": core.CommitsOldTerms}, _ONE_ENTRY, 10),
    Mutant("truncates-always", {"raft_class": core.TruncatesAlways}, _LATE_ENTRIES, 0),
    Mutant(
        "reads-without-quorum",
        {"raft_class": core.ReadsWithoutAsking, "process_class": WithoutLeases},
        _OLD_LEADERS,
        13,
    ),
    Mutant("cuts-log-too-far", {"tree_class": CutsTooFar}, _CRASHES, 6),
    Mutant("executes-twice", {"tree_class": ExecutesTwice}, _REPEATS, 2),
    Mutant("forgets-sessions", {"tree_class": ForgetsSessions}, _REPEATS, 2),
    Mutant("forgets-content", {"tree_class": ForgetsContent}, _SMALL_FILES, 0),
    Mutant("forgets-old-content", {"tree_class": ForgetsOldContent}, _SMALL_FILES, 0),
    Mutant("keeps-log-under-snapshot", {"process_class": KeepsLogUnderSnapshot}, _SNAPSHOTS, 0),
    Mutant("installs-unverified", {"process_class": InstallsUnverified}, _SNAPSHOTS, 1),
    Mutant("trusts-the-folder", {"process_class": TrustsTheFolder}, INSTALLS, 5, 6000),
    Mutant("gives-votes-away-on-trust", {"raft_class": TrustsTheSilent}, LOSSES, 1, 8000),
    Mutant("ends-on-a-full-disk", {"raft_class": EndsOnRefusedPiece}, FULL_DISKS, 12),
    Mutant("answers-unreleased", {"process_class": AnswersUnreleased}, _READERS, 0),
    Mutant("shows-unreleased", {"process_class": ShowsUnreleased}, _READERS, 0),
    Mutant("ignores-old-leases", {"process_class": IgnoresOldLeases}, _READERS, 13),
    Mutant("forgets-whom-it-followed", {"process_class": ForgetsWhomItFollowed}, _MANY_READERS, 3),
    Mutant(
        "counts-leases-from-arrival", {"process_class": CountsFromArrival}, _LATE_READERS, 19, 6000
    ),
    Mutant("grants-unconfirmed", {"process_class": GrantsUnconfirmed}, _MANY_READERS, 149, 6000),
    Mutant("executes-for-others", {"tree_class": ExecutesForOthers}, _MOUNTS, 0, 6000),
    Mutant("forgets-the-fence", {"tree_class": ForgetsTheFence}, _STOPPED_MOUNTS, 8, 20_000),
    Mutant(
        "forgets-the-fence-of-a-batch",
        {"tree_class": ForgetsTheFenceOfABatch},
        _STOPPED_MOUNTS,
        5,
        20_000,
    ),
    Mutant("looks-into-held", {"process_class": LooksIntoHeld}, _MOUNTS, 0, 6000),
    Mutant("gives-back-early", {"mount_class": GivesBackEarly}, _LOST_COMMANDS, 0, 6000),
    Mutant("holds-on-when-lost", {"mount_class": HoldsOnWhenLost}, _LOST_MOUNTS, 7, 20_000),
    Mutant("needs-no-lease", {"mount_class": NeedsNoLease}, _LOST_MOUNTS, 4, 20_000),
]
