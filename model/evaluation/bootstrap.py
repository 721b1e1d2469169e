"""How far a score may be from what it would be on other windows of the same kind: percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.data.dataset import Texts
from model.metrics import Scores, scores

REPEATS = 2_000
LEVEL = 0.95
FEW_UNITS = 10  #: with fewer, the intervals are too narrow


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the range in which it lies in 95 of 100 resamplings."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """Of the scores of one model, or of the differences between two; shares from 0 to 1."""

    accuracy: Interval
    macro_f1: Interval
    weakest_recall: Interval  #: of the label that is the weakest; of two models, of the weakest of each
    unit: str  #: what was drawn: "recordings" or "windows"
    units: int  #: so many there are


def score_intervals(
    true: npt.NDArray[np.int64], recognised: npt.NDArray[np.int64], labels: int, recordings: Texts, seed: int = 0
) -> Intervals:
    """Of accuracy, macro-F1 and the weakest recall of one model (Efron, 1979; percentiles of `REPEATS` resamplings).

    Whole recordings are drawn, with replacement: windows of one are alike, and drawn alone would promise too much. A
    window of which nobody knows the recording ("") is drawn alone. Labels without a window do not count; see
    `model.metrics.Scores`.

    Parameters
    ----------
    true, recognised
        (n,), from 0 to labels - 1; n > 0.
    recordings
        (n,)
    """
    return _intervals([true * labels + recognised], labels, recordings, seed, lambda found: found[0])


def difference_intervals(
    true: npt.NDArray[np.int64],
    recognised: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    labels: int,
    recordings: Texts,
    seed: int = 0,
) -> Intervals:
    """Of what one model has more than another, on the same drawn windows; see `score_intervals`."""
    cells = [true * labels + recognised, true * labels + other]
    return _intervals(cells, labels, recordings, seed, lambda found: found[0] - found[1])


def _intervals(
    cells: list[npt.NDArray[np.int64]],
    labels: int,
    recordings: Texts,
    seed: int,
    combine: Callable[[list[npt.NDArray[np.float64]]], npt.NDArray[np.float64]],
) -> Intervals:
    if not len(recordings):
        raise ValueError("no windows, so there is nothing to draw from")
    units, count = _units(recordings)
    # The label that is the weakest of all windows, not of those drawn: the smallest of many noisy shares is too small.
    weakest = [_weakest(scores(_matrix(cell, None, labels))) for cell in cells]

    def figures(weights: npt.NDArray[Any] | None) -> npt.NDArray[np.float64]:
        found = [scores(_matrix(cell, weights, labels)) for cell in cells]
        return combine([_figures(one, label) for one, label in zip(found, weakest, strict=True)])

    rng = np.random.default_rng(seed)
    drawn = np.empty((REPEATS, 3))
    for repeat in range(REPEATS):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        drawn[repeat] = figures(times[units])
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    accuracy, macro_f1, weakest_recall = (
        Interval(*map(float, row)) for row in zip(figures(None), low, high, strict=True)
    )
    unit = "recordings" if (recordings != "").any() else "windows"
    return Intervals(accuracy, macro_f1, weakest_recall, unit, count)


def _matrix(cells: npt.NDArray[np.int64], weights: npt.NDArray[Any] | None, labels: int) -> npt.NDArray[Any]:
    return np.bincount(cells, weights, labels * labels).reshape(labels, labels)


def _weakest(found: Scores) -> int:
    return int(np.where(found.support > 0, found.recall, np.inf).argmin())


def _figures(found: Scores, weakest: int) -> npt.NDArray[np.float64]:
    """NaN for the recall of a label of which no window was drawn."""
    recall = found.recall[weakest] if found.support[weakest] else np.nan
    return np.array([found.accuracy, found.macro_f1, recall])


def _units(recordings: Texts) -> tuple[npt.NDArray[np.int64], int]:
    """Which unit each window is drawn with, (n,), and how many there are."""
    alone = recordings == ""
    names, units = np.unique(recordings, return_inverse=True)
    units = units.astype(np.int64)
    units[alone] = len(names) + np.arange(np.count_nonzero(alone))
    _, units = np.unique(units, return_inverse=True)
    return units.astype(np.int64), int(units.max()) + 1
