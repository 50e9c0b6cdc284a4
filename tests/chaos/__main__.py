"""``scripts/chaos``: a cluster in use while its nodes are killed and their disks damaged."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tests.chaos.chaos import Chaos, collect
from tests.harness.mounts import why_unusable
from tests.harness.procs import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Copies a source tree into a three-node cluster, again and again, while one"
        " node at a time is killed and its files are deleted or damaged. Ends with a sentence"
        " and 0 when nothing is missing, different or short of copies.",
    )
    parser.add_argument("--files", type=int, default=20_000, help="in the tree (default: 20000)")
    parser.add_argument("--minutes", type=float, default=5.0, help="at least (default: 5)")
    parser.add_argument(
        "--seed", type=int, help="of the random choices (default: another each time)"
    )
    parser.add_argument(
        "--source", type=Path, action="append",
        help="a directory to take the files from (default: Python's library and this checkout)",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="where everything is made (default: a new one)")
    options = parser.parse_args()
    reason = why_unusable("kernel")
    if reason is not None:
        parser.error(reason)
    paths = sysconfig.get_paths()
    default = [ROOT / "pydi_node", ROOT / "tests", Path(paths["stdlib"]), Path(paths["purelib"])]
    sources = [path.resolve() for path in options.source or default]
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="pydi-chaos-", dir=options.work))
    print(f"seed {seed}, everything in {work}", flush=True)
    began_s = time.monotonic()
    files = collect(sources, work / "source", options.files)
    if files < options.files:
        print(f"the sources have only {files} files: name more with --source", file=sys.stderr)
    chaos = Chaos(work / "w", work / "source", seed, lambda line: print(line, flush=True))
    try:
        outcome = chaos.live(events=3, until_s=time.monotonic() + 60 * options.minutes)
    except AssertionError as failure:
        print(f"seed {seed}: FAILED, {work} is kept: {failure}", file=sys.stderr)
        return 1
    finally:
        chaos.close()
    shutil.rmtree(work)
    print(
        f"{files} files in each of {outcome.trees} trees, {outcome.kills} kills,"
        f" {outcome.deleted} files deleted, {outcome.flipped} flipped, {outcome.reads} reads,"
        f" {time.monotonic() - began_s:.0f} s: nothing missing, nothing different"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
