"""The scenario files of testdata/, each for a part of the Raft paper or thesis."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.datadriven import check_file
from tests.unit.consensus.scenario import Scenario

TESTDATA = Path(__file__).parent / "testdata"


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path, rewrite: bool) -> None:
    """Every command of the file gives the output that stands below it."""
    check_file(path, Scenario().run, rewrite)
