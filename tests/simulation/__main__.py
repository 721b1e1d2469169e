"""Run random schedules of the pipeline; on a failure print its seed and a small schedule that fails too."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from functools import partial
from typing import NamedTuple

from tests.simulation.plant import PLANTS, plant
from tests.simulation.schedules import run_random, shrink, simulation, told

CHUNK = 250  #: schedules that a process is given at once


class _Ran(NamedTuple):
    counts: Counter[str]
    failed: int | None  #: number of the first schedule that failed; the rest of its chunk was not run
    worked_s: float  #: of the processor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000, help="how many to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all of them together (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to repeat it (default: 0)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="side by side (default: %(default)s)"
    )
    arguments = parser.parse_args()
    for number in range(PLANTS):
        plant(number)
    # A world is full of circles that live for milliseconds; looking for them after each would take a tenth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    last = arguments.first + arguments.schedules
    chunks = [range(first, min(first + CHUNK, last)) for first in range(arguments.first, last, CHUNK)]
    counts: Counter[str] = Counter()
    worked_s, begun = 0.0, time.perf_counter()
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for ran in pool.imap(partial(_run, arguments.seed), chunks):
            counts += ran.counts
            worked_s += ran.worked_s
            if ran.failed is not None:
                _tell_failure(arguments.seed, ran.failed)
                return 1
    took_s = time.perf_counter() - begun
    print(f"{arguments.schedules} schedules in {took_s:.1f} s: {arguments.schedules / took_s * 60:.0f} a minute")
    print(f"{worked_s:.1f} s of one processor: {arguments.schedules / worked_s * 60:.0f} a minute of it")
    for name, count in sorted(counts.items()):
        print(f"{count:12,} {name.replace('_', ' ')}")
    return 0


def _run(seed: int, numbers: range) -> _Ran:
    counts: Counter[str] = Counter()
    begun = time.process_time()
    with simulation():
        for number in numbers:
            outcome = run_random(f"{seed} {number}")
            counts += outcome.counts
            if outcome.failure is not None:
                return _Ran(counts, number, time.process_time() - begun)
    return _Ran(counts, None, time.process_time() - begun)


def _tell_failure(seed: int, number: int) -> None:
    with simulation():
        outcome = run_random(f"{seed} {number}")
        print(f"schedule {number} of seed {seed} fails: {outcome.failure!r}", flush=True)
        print(f"again: python -m tests.simulation --seed {seed} --first {number} --schedules 1", flush=True)
        small = shrink(outcome.happenings)
        print(f"{len(outcome.happenings)} happenings made {len(small.happenings)}:")
        print(told(small))


if __name__ == "__main__":
    sys.exit(main())
