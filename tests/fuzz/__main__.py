"""``scripts/fuzz [--inputs N] [--seed N] [--target NAME] [--atheris]``: feeds the parsers.

Runs until the inputs are used up, prints what was tried and what was slowest, and ends with the
input that broke something. With ``--atheris`` and that library, coverage guides the choice.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target, mutate

INPUTS_DEFAULT = 100_000
# With --atheris, which stops at whatever goes beyond:
INPUT_MAX_BYTES = 1 << 16
INPUT_TIMEOUT_S = 10
MEMORY_MAX_MIB = 1024  # of the process, with its corpus


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=INPUTS_DEFAULT, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one only")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, needs atheris")
    arguments = parser.parse_args()
    names = [arguments.target] if arguments.target else sorted(TARGETS)
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    if arguments.atheris:
        return guided(names, arguments.inputs, seed)
    for name in names:
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


def guided(names: Sequence[str], inputs: int, seed: int) -> int:
    """Each target in a process of its own, which atheris takes over; the first exit code that is
    not 0. libFuzzer prints how many inputs it ran, and the one that broke something."""
    if importlib.util.find_spec("atheris") is None:
        print("scripts/fuzz: atheris is not installed: pip install atheris", file=sys.stderr)
        return 1
    for name in names:
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory(prefix="pydi-fuzz-") as corpus:
            for number, data in enumerate(TARGETS[name].seeds):
                (Path(corpus) / str(number)).write_bytes(data)
            command = [
                sys.executable, "-m", "tests.fuzz.guided", name, corpus,
                f"-runs={inputs}", f"-seed={seed or 1}", f"-max_len={INPUT_MAX_BYTES}",
                f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MAX_MIB}",
                f"-artifact_prefix={tempfile.gettempdir()}/pydi-fuzz-",
            ]  # fmt: skip
            code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
