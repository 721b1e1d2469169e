"""GPLA-12 (gas-pipe leakage, 12 classes): 684 windows of 1,460 samples, as two CSV files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from deploy.experiments.plan import Case
from deploy.experiments.trial import Parts, held_out
from model.data.dataset import WindowSet
from model.data.splits import folds

FOLDS = 5
#: The files do not say their rate; a model with a nominal one does not ask.
RATE_HZ = 16_000.0


def read_windows(folder: Path) -> WindowSet:
    """All windows, each a recording of its own.

    Raises
    ------
    ValueError
        If data.csv or label.csv is missing or is no table of numbers.
    """
    try:
        samples = np.loadtxt(folder / "data.csv", delimiter=",", ndmin=2)
        labels = np.loadtxt(folder / "label.csv", delimiter=",").ravel().astype(np.int64)
    except OSError as error:
        raise ValueError(f"{folder}: {error}; GPLA-12 is data.csv and label.csv") from error
    names, numbers = np.unique(labels, return_inverse=True)
    count = len(samples)
    unknown = np.full(count, "")
    return WindowSet(
        windows=samples.astype(np.int16),
        lengths=np.full(count, samples.shape[1]),
        labels=numbers.astype(np.int64),
        label_names=tuple(f"leak {name}" for name in names.tolist()),
        rate_hz=RATE_HZ,
        recordings=np.array([f"row {row}" for row in range(count)]),
        sensors=unknown,
        positions=unknown,
        splits=unknown,
    )


def cases(seeds: int) -> list[Case]:
    """Five stratified folds, dealt anew with each seed."""
    return [
        Case(f"seed {seed} fold {fold}", seed, partial(_parts, seed=seed, fold=fold))
        for seed in range(seeds)
        for fold in range(FOLDS)
    ]


def _parts(data: WindowSet, *, seed: int, fold: int) -> Parts:
    return held_out(data, folds(data, FOLDS, by="recording", seed=seed)[fold].held_out, seed)
