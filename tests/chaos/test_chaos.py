"""Chaos, bounded: each of three nodes is killed and damaged once; see `scripts/chaos` for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import Chaos, collect
from tests.harness.mounts import why_unusable
from tests.harness.procs import ROOT

FILES = 100


@pytest.mark.mount
@pytest.mark.slow
def test_nothing_is_lost_while_nodes_die_and_disks_lie(tmp_path: Path, seed: int) -> None:
    """A source tree is copied in, and read, while each node once is killed with -9, loses some of
    its files and has bits of others flipped. No program notices; in the end all trees are equal to
    the source, every blob has its copies, and neither `pydi check` nor the scrub finds anything."""
    reason = why_unusable("kernel")
    if reason is not None:
        pytest.skip(reason)
    source = tmp_path / "source"
    assert collect([ROOT / "pydi_node", ROOT / "pydi_fs", ROOT / "tests"], source, FILES) == FILES
    chaos = Chaos(tmp_path / "w", source, seed, outages_s=(0.0, 1.0))
    try:
        outcome = chaos.live(events=3)
    finally:
        chaos.close()
    assert outcome.kills == 3
    assert min(outcome.deleted, outcome.flipped) > 10
    assert outcome.reads > 20
