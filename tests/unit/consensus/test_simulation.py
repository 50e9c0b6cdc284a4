"""Random schedules: safety after every step, then progress; and proof that the checks bite.

PYDI_SEEDS=N runs N seeds instead of the default. A failing seed is in the test's name and in the
message.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pydi_node.consensus.progress import ProgressState
from pydi_node.consensus.raft import Raft
from tests.unit.consensus.mutants import MUTANTS
from tests.unit.consensus.simulation import Simulation, states

SEEDS = int(os.environ.get("PYDI_SEEDS", "120"))
STEPS = 5_000
MUTANT_SEEDS = 60

# What random schedules found while this was written: a read round that never ended when the
# membership shrank under it; a two-node cluster that could elect nobody after a lost removal.
FORCED_CHANGES = {"changes": 20, "voters": 2, "joiners": 1}


def live(seed: int, **forced: int) -> Simulation:
    simulation = Simulation(seed, **forced)
    try:
        simulation.run(STEPS)
        simulation.converge()
    except AssertionError as exc:
        exc.add_note(f"seed={seed} forced={forced} step={simulation.steps}")
        raise
    return simulation


@pytest.mark.parametrize("seed", range(SEEDS))
def test_safe_under_faults_and_live_after_them(seed: int) -> None:
    """Under loss, delay, repetition, crashes, pauses, partitions and changes of the membership
    the invariants hold after every step; when the faults end all members agree."""
    live(seed)


@pytest.mark.parametrize("seed", range(max(SEEDS // 4, 10)))
def test_two_voters_with_changing_membership(seed: int) -> None:
    """The smallest clusters, growing and shrinking all the time, never lock themselves out."""
    live(seed, **FORCED_CHANGES)


def test_the_schedules_reach_what_matters() -> None:
    """Over a few seeds there are elections, commits, reads, crashes, snapshots, changes of the
    membership and all three kinds of follower: the seeds do not pass by doing nothing."""
    elections = commits = installs = crashes = reads = memberships = 0
    kinds: set[ProgressState] = set()
    for seed in range(25):
        simulation = Simulation(seed, compacts=20, changes=5)
        for _ in range(STEPS // 10):
            simulation.run(10)
            kinds |= states(simulation)
        elections += simulation.checker.elections
        installs += simulation.installs
        crashes += simulation.crashes
        reads += simulation.checker.reads_answered
        memberships += sum(1 for kind, _, _ in simulation.checker.entries.values() if kind == 2)
        commits += simulation.checker.commit_max
    assert elections > 50, elections
    assert commits > 1_000, commits
    assert installs > 5, installs
    assert crashes > 50, crashes
    assert reads > 100, reads
    assert memberships > 10, memberships
    assert kinds == set(ProgressState)


@pytest.mark.parametrize(
    ("mutant", "forced", "contract"), MUTANTS, ids=[mutant.__name__ for mutant, _, _ in MUTANTS]
)
def test_a_broken_rule_is_noticed(
    mutant: type[Raft], forced: dict[str, int], contract: bool
) -> None:
    """With one safety rule broken, some schedule within bounded seeds violates an invariant."""
    for seed in range(MUTANT_SEEDS):
        simulation = Simulation(seed, mutant, contract, **{"unused": 0} | forced)
        try:
            simulation.run(4_000)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__}: {mutant.__doc__} Nobody noticed in {MUTANT_SEEDS} seeds.")


TRACE = """
import hashlib
from tests.unit.consensus.simulation import Simulation
digest = hashlib.sha1()
for seed in range(6):
    simulation = Simulation(seed, changes=5, voters=3, joiners=2)
    for _ in range(1500):
        simulation.step()
        digest.update(repr(simulation.network[-1:]).encode())
    digest.update(repr([(n.tree, n.disk.hard_state) for n in simulation.nodes.values()]).encode())
print(digest.hexdigest())
"""


def test_the_same_seed_is_the_same_run() -> None:
    """Two processes with different hash seeds see the same messages and end in the same state."""
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1, traces
