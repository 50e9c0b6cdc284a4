"""Whole clusters under every fault there is: they keep their promises, then they heal.

PYDI_SEEDS=N lives N fresh seeds instead of the default; the test's name has the seed, and
``scripts/simulate --seed N`` lives it again, to the letter.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pydi_node.errors import CorruptionError
from tests.simulation.mutants import FULL_DISKS, INSTALLS, LIVES, LOSSES, MUTANTS, Mutant
from tests.simulation.simulation import Simulation

ROOT = Path(__file__).parent.parent.parent
FRESH_SEEDS = int(os.environ.get("PYDI_SEEDS", "50"))
STEPS = 6000
# A mutant is found with its known seed; when a change of the code has changed that life, with one
# of the next ones.
MUTANT_SEEDS = 60

# What lives had not when these seeds were found.
QUIET_HABITS = {
    "small_files": 0, "handover": 0, "mounts": 0, "hang_up": 0, "slow_for_good_us": 0,
}  # fmt: skip

# A power cut tears what was being written; that is the point.
pytestmark = pytest.mark.expects_log("was cut short by a crash and is dropped")

# Seeds that found something, each with the parameters that made it likely.
FOUND = [
    # A voter left while a node that was lost for good still had a vote, just after an election: the
    # new leader took the lost one for alive, and the two that were left could never commit again.
    (1, LOSSES, 8000),
    # The disk got full while a snapshot came in, and the node ended with an assertion.
    (12, FULL_DISKS, 4000),
    # A program killed between renaming a received snapshot and syncing the folder; the next start
    # reset the log for a tree that a power cut then took away again.
    (5, INSTALLS, 6000),
    # A leader put a member's removal into its log and lost its office; another leader's entry came
    # into that place, and whoever had asked heard that the member was out, which still voted.
    (2734619412, {}, 6000),
    # A tick waited to be handled when a snapshot took the tree's place; a command's deadline passed
    # with it, and the question whether it had been answered before went to the old, closed tree.
    (1021, {}, 6000),
    # The watch's own mistake: a lone voter was counted as elected before its vote was on its disk.
    (771313, {"small_files": 40}, 4000),
    # Its mounts', too: a name that got due while others were being told was never told.
    (
        3201332,
        {"handover": 1, "mounts": 2, "mounts_lost": 0, "mounts_stopped": 0, "hang_up": 3},
        4000,
    ),
    # And its clients': for 90 s one asked none but nodes that nobody had made members.
    (2001082, {"handover": 1, "mounts": 2, "mounts_lost": 1, "mounts_stopped": 0}, 4000),
    # Where syncs took longer than elections waited, nobody was elected, ever.
    (3, {"voters": 3, "slow_for_good_us": 600_000}, 1000),
    (4, {"voters": 5, "slow_for_good_us": 600_000}, 1000),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fresh seeds out of the suite's own, so that a run can be repeated as a whole."""
    if "fresh_seed" in metafunc.fixturenames:
        rng = random.Random(f"simulation {metafunc.config.option.seed}")
        metafunc.parametrize("fresh_seed", [rng.getrandbits(32) for _ in range(FRESH_SEEDS)])


@pytest.mark.parametrize(("seed", "forced", "steps"), FOUND)
def test_what_was_found_stays_repaired(seed: int, forced: dict[str, int], steps: int) -> None:
    """A life that once broke a promise keeps them all."""
    Simulation(seed, forced=QUIET_HABITS | forced).live(steps)


def test_safe_under_faults_and_live_after_them(fresh_seed: int) -> None:
    """While everything may fail nothing promised is broken; when a majority heals, there is one
    leader, all trees are equal and sound, and every acknowledged result is found again."""
    Simulation(fresh_seed).live(STEPS)


def test_lives_reach_what_matters() -> None:
    """Over a few seeds every kind of fault happens, and elections, changes of the membership,
    snapshots, repeated commands and comparisons: the seeds do not pass by doing nothing."""
    faults: Counter[str] = Counter()
    elections = duplicates = installs = memberships = digests = acknowledged = handovers = 0
    for seed in range(25):
        simulation = Simulation(seed)
        simulation.live(STEPS)
        faults.update(simulation.faults)
        watch = simulation.watch
        elections += watch.elections
        duplicates += watch.duplicates
        installs += watch.installs
        memberships += watch.memberships
        digests += watch.digests_compared
        acknowledged += len(watch.acknowledged)
        handovers += watch.handovers
    assert faults.keys() == simulation.kinds_of_faults(), faults
    assert elections > 30, elections
    assert duplicates > 30, duplicates
    assert installs > 5, installs
    assert memberships > 20, memberships
    assert digests > 50, digests
    assert acknowledged > 300, acknowledged
    assert handovers > 20, handovers


def test_lives_with_mounts_reach_what_matters() -> None:
    """Mounts make and remove files without asking anybody, others wait for them, and some lose what
    they hold."""
    created = unlinked = kept_out = revoked = 0
    for name in ("stopped-mounts", "lost-mounts"):
        for seed in range(6):
            simulation = Simulation(seed, forced=LIVES[name])
            simulation.live(20_000)
            created += sum(mount.created for mount in simulation.mounts)
            unlinked += sum(mount.unlinked for mount in simulation.mounts)
            kept_out += simulation.watch.kept_out
            revoked += simulation.watch.revoked_max > 0
    assert created > 50, created
    assert unlinked > 50, unlinked
    assert kept_out > 50, kept_out
    assert revoked > 1, revoked


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    """With one safety rule broken a known seed, or one close by, breaks a promise."""
    for seed in range(mutant.seed, mutant.seed + MUTANT_SEEDS):
        try:
            forced = QUIET_HABITS | mutant.forced
            Simulation(seed, forced=forced, **mutant.classes).live(mutant.steps)
        except (AssertionError, CorruptionError):
            return
    pytest.fail(f"nobody noticed {mutant.name} in {MUTANT_SEEDS} seeds")


@pytest.mark.parametrize("parameters", LIVES.values(), ids=LIVES)
def test_the_lives_of_mutants_are_safe_without_a_mutation(parameters: dict[str, int]) -> None:
    """What finds the mutants are their mistakes, not the hard life that they have."""
    for seed in range(3):
        Simulation(seed, forced=parameters).live(STEPS)


def test_the_same_seed_is_the_same_life() -> None:
    """Two processes with different hash seeds live the same life, event by event."""
    command = [
        sys.executable,
        "-m",
        "tests.simulation",
        "--seed",
        "19",
        "--steps",
        "3000",
        "--trace",
    ]
    traces = [
        subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            check=True, capture_output=True, text=True, timeout=120,
        ).stdout.splitlines()[:-1]  # the last line says how long it took
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    for number, (one, other) in enumerate(zip(*traces, strict=True)):
        assert one == other, f"line {number}"
    assert len(traces[0]) > 3000
