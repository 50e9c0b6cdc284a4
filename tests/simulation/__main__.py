"""``scripts/simulate``: lives of simulated clusters, to find a bad seed or to look at one."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from tests.simulation.simulation import Simulation


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Deterministic simulation of whole clusters: the same seed and steps are the"
        " same life, to the letter. See docs/simulation.md.",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument(
        "--steps", type=int, default=4000, help="events in which everything may fail"
    )
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--quiet", action="store_true", help="only failures and the sum")
    options = parser.parse_args()
    logging.getLogger("pydi_node").setLevel(logging.CRITICAL)  # crashes leave torn logs: expected
    failed, steps, began_s = [], 0, time.monotonic()
    for seed in range(options.seed, options.seed + options.seeds):
        simulation = Simulation(seed, trace=print if options.trace else None)
        try:
            simulation.live(options.steps)
        except Exception:
            failed.append(seed)
            print(f"seed {seed}: FAILED", flush=True)
            traceback.print_exc()
        else:
            if not options.quiet:
                print(f"seed {seed}: {simulation.summary()}", flush=True)
        steps += simulation.world.steps
        if options.quiet and (seed - options.seed) % 50 == 49:
            print(f"{seed - options.seed + 1} seeds, {steps} steps, failed: {failed}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{options.seeds} seeds, {steps} steps, {took_s:.0f} s, failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
