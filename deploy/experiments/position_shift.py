"""Trained at four positions, tested at four others: what a model is worth where it has not been."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from deploy.experiments.plan import Case
from deploy.experiments.position_windows import TEST, TRAINING, position_windows
from deploy.experiments.trial import Parts, held_out
from model.data.dataset import WindowSet

TRAINING_WINDOWS = 4_000
TEST_WINDOWS = 2_400
COLUMNS = ("windows", "lengths", "labels", "recordings", "sensors", "positions", "splits")


def read_windows(cache: Path, say: Callable[[str], None]) -> WindowSet:
    """Both parts in one set, `splits` tells them apart; rendered once and then read from the file `cache`."""
    if cache.exists():
        with np.load(cache) as stored:
            columns = {name: stored[name] for name in COLUMNS}
            names = tuple(stored["label_names"].tolist())
            return WindowSet(label_names=names, rate_hz=float(stored["rate_hz"]), **columns)

    def tell(done: int, of: int) -> None:
        if done % 200 == 0:
            say(f"rendering: {done} of {of} events")

    train = position_windows(TRAINING, TRAINING_WINDOWS, 1, tell)
    test = position_windows(TEST, TEST_WINDOWS, 2, tell)
    columns = {name: np.concatenate([getattr(train, name), getattr(test, name)]) for name in COLUMNS}
    columns["splits"] = np.repeat(["train", "test"], [len(train), len(test)])
    cache.parent.mkdir(parents=True, exist_ok=True)
    scratch = cache.with_suffix(".part.npz")
    np.savez(scratch, label_names=np.array(train.label_names), rate_hz=train.rate_hz, **columns)
    scratch.replace(cache)
    return WindowSet(label_names=train.label_names, rate_hz=train.rate_hz, **columns)


def cases(seeds: int) -> list[Case]:
    """The same positions with each seed."""
    return [Case(f"seed {seed}", seed, partial(_parts, seed=seed)) for seed in range(seeds)]


def _parts(data: WindowSet, *, seed: int) -> Parts:
    return held_out(data, data.splits == "test", seed)
