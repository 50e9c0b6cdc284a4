"""``scripts/fuzz``: a little of it, so that it stays able to run."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.targets import TARGETS, Target

INPUTS = 300


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_each_target_takes_anything(name: str, rng: random.Random) -> None:
    """Refused or well-formed; an exception that no peer may cause ends the test."""
    count, believed, _ = run(TARGETS[name], rng, INPUTS)
    assert count == INPUTS
    assert 0 <= believed < INPUTS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_honest_input_is_well_formed(name: str) -> None:
    """The mutations begin at something that is read to its end."""
    target = TARGETS[name]
    assert any(target.feed(seed) for seed in target.seeds)


def test_an_input_that_breaks_something_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """In hex, for a test of its own."""

    def feed(_: bytes) -> bool:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run(Target("broken", feed, [b"\x01\x02"]), random.Random(1), 5)
    assert capsys.readouterr().err.startswith("broken: ")
