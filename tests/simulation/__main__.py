"""Run random schedules of the pipeline; on a failure print its seed and a small schedule that fails too."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter

from tests.simulation.plant import PLANTS, plant
from tests.simulation.schedules import run_random, shrink, simulation, told


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000, help="how many to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all of them together (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to repeat it (default: 0)")
    arguments = parser.parse_args()
    for number in range(PLANTS):
        plant(number)
    # A world is full of circles that live for milliseconds; looking for them after each would take a tenth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    counts: Counter[str] = Counter()
    begun, worked = time.perf_counter(), time.process_time()
    with simulation():
        for number in range(arguments.first, arguments.first + arguments.schedules):
            outcome = run_random(f"{arguments.seed} {number}")
            counts += outcome.counts
            if outcome.failure is not None:
                print(f"schedule {number} of seed {arguments.seed} fails: {outcome.failure!r}", flush=True)
                print(
                    f"again: python -m tests.simulation --seed {arguments.seed} --first {number} --schedules 1",
                    flush=True,
                )
                small = shrink(outcome.happenings)
                print(f"{len(outcome.happenings)} happenings made {len(small.happenings)}:")
                print(told(small))
                return 1
    took_s, worked_s = time.perf_counter() - begun, time.process_time() - worked
    print(f"{arguments.schedules} schedules in {took_s:.1f} s: {arguments.schedules / took_s * 60:.0f} a minute")
    print(f"{worked_s:.1f} s of one processor: {arguments.schedules / worked_s * 60:.0f} a minute of it")
    for name, count in sorted(counts.items()):
        print(f"{count:12,} {name.replace('_', ' ')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
