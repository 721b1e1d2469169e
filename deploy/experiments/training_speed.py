"""How many windows a second a training takes in, with one process and with two; each measured in a process of its own.

Run as a module it is one measurement: python -m deploy.experiments.training_speed RECIPE CHANNELS DEVICE PRECISION.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploy.experiments.plan import SMALLER
from deploy.experiments.position_windows import LABELS, WINDOW_SAMPLES
from deploy.experiments.trial import Parts, settled
from model.data.dataset import WindowSet
from model.training.recipe import load_recipe
from model.training.train import train_run

WINDOWS = 1_024
BATCH = 32
RATE_HZ = 500_000.0
PROCESSES = (1, 2)


def measure(channels: int, device: str, precision: str, repeats: int, say: Callable[[str], None]) -> str:
    """A Markdown table: windows/s of both recipes with one process and two, median (range) of the repeats.

    Each process has one thread, so that two of them have twice as much of the machine as one.
    """
    rows = [["recipe", "processes", "windows/s", "beside one process"]]
    for recipe in ("paper", "default"):
        alone = 0.0
        for processes in PROCESSES:
            found = [_once(recipe, channels, device, precision, processes) for _ in range(repeats)]
            median = statistics.median(found)
            alone = alone or median
            rows.append(
                [recipe, str(processes), f"{median:.0f} ({min(found):.0f}–{max(found):.0f})", f"{median / alone:.2f}"]
            )
            say(" ".join(rows[-1]))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _once(recipe: str, channels: int, device: str, precision: str, processes: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", __name__, recipe, str(channels), device, precision]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _windows() -> WindowSet:
    rng = np.random.default_rng(0)
    unknown = np.full(WINDOWS, "")
    return WindowSet(
        windows=rng.normal(0, 1_000, (WINDOWS, WINDOW_SAMPLES)).astype(np.int16),
        lengths=np.full(WINDOWS, WINDOW_SAMPLES),
        labels=np.arange(WINDOWS) % len(LABELS),
        label_names=LABELS,
        rate_hz=RATE_HZ,
        recordings=np.array([f"recording {number}" for number in range(WINDOWS)]),
        sensors=unknown,
        positions=unknown,
        splits=unknown,
    )


def main(name: str, channels: str, device: str, precision: str) -> None:
    """Two epochs; the second one counts, and its windows/s are printed by the first process."""
    data = _windows()
    sizes = [f"network.channels={channels}", *(f"network.{size}=auto" for size in SMALLER if channels != "1024")]
    training = ["training.epochs=2", f"training.batch={BATCH}", f"training.precision={precision}"]
    place = np.arange(WINDOWS)
    recipe = settled(load_recipe(name, [*sizes, *training]), data, place, "cpu")
    nothing = np.zeros(WINDOWS, dtype=np.bool_)
    parts = Parts(train=place >= 2 * BATCH, validation=place < 2 * BATCH, test=nothing)
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        train_run(
            data,
            parts,
            recipe,
            Path(scratch) / "run",
            device=device,
            on_epoch=lambda epoch: speeds.append(epoch.windows_per_s),
        )
    if speeds:
        print(json.dumps(speeds[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
