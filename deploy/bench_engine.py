"""How fast the engine alone is on this machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.engine import Engine


def bench_engine(
    bundle: Path,
    batch_windows: int,
    repeats: int = 7,
    repeat_s: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Windows a second of full batches of the bundle's own windows (int16), median and range over `repeats`.

    Each repeat takes about `repeat_s` seconds, or one batch if that is longer.
    """
    engine = Engine(bundle, device=device, precision=precision, threads=threads)
    engine.warm_up()
    rng = np.random.default_rng(1)
    windows = [rng.normal(0, 1000, engine.card.window_samples).astype(np.int16) for _ in range(batch_windows)]
    begun = time.perf_counter()
    engine.infer(windows)
    batches = max(1, round(repeat_s / (time.perf_counter() - begun)))
    speeds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(batches):
            engine.infer(windows)
        speeds.append(batches * batch_windows / (time.perf_counter() - begun))
    return {
        "bundle": engine.card.name,
        "version": engine.card.version,
        "batch_windows": batch_windows,
        "windows_per_s": round(statistics.median(speeds), 2),
        "windows_per_s_min": round(min(speeds), 2),
        "windows_per_s_max": round(max(speeds), 2),
        "engine": engine.describe().splitlines(),
    }
