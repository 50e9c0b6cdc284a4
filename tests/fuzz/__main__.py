"""``scripts/fuzz [--inputs N] [--seed N] [--target NAME] [--atheris]``: feeds the parsers.

Runs until the inputs are used up, prints what was tried and what was slowest, and ends with the
input that broke something. With ``--atheris`` and that library, coverage guides the choice.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
from collections.abc import Callable

from tests.fuzz.targets import TARGETS, Target, mutate

INPUTS_DEFAULT = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS_DEFAULT, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one only")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, needs atheris")
    arguments = parser.parse_args()
    if arguments.atheris:
        return guided(TARGETS[arguments.target or "frames"])
    seed = secrets.randbelow(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    for name in [arguments.target] if arguments.target else sorted(TARGETS):
        count, believed, slowest_s = run(TARGETS[name], random.Random(seed), arguments.inputs)
        print(f"{name}: {count} inputs, {believed} well-formed, slowest {slowest_s * 1000:.1f} ms")
    return 0


def run(target: Target, rng: random.Random, inputs: int) -> tuple[int, int, float]:
    """(inputs tried, inputs that were well-formed, seconds of the slowest)."""
    believed, slowest_s = 0, 0.0
    for _ in range(inputs):
        data = mutate(rng, rng.choice(target.seeds))
        started_s = time.perf_counter()
        try:
            believed += target.feed(data)
        except BaseException:
            print(f"{target.name}: {data.hex()}", file=sys.stderr)
            raise
        slowest_s = max(slowest_s, time.perf_counter() - started_s)
    return inputs, believed, slowest_s


def guided(target: Target) -> int:
    """atheris' own loop; it ends with the first input that breaks something, or by Ctrl-C."""
    try:
        import atheris
    except ModuleNotFoundError:
        print("scripts/fuzz: atheris is not installed: pip install atheris", file=sys.stderr)
        return 1
    feed: Callable[[bytes], bool] = target.feed
    atheris.instrument_all()
    atheris.Setup([sys.argv[0]], feed)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
