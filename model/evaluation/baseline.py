"""The opponent that every result is shown beside: statistics and spectrum of a window, and random forests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet
from model.device import sensible_threads

TREES = 400  #: half of them random forest, half extremely randomised
#: Share of the features that a split of the extremely randomised half looks at; most of the features say little.
SPLIT_FEATURES = 0.3
#: A tree is grown on so many windows at most, drawn anew for each: beyond it a forest takes hours and gains little.
WINDOWS_A_TREE = 50_000
LINEAR_BANDS = 48
LOG_BANDS = 40
LOG_BANDS_OCTAVES = 8  #: below the Nyquist frequency
ENVELOPE_PARTS = 16
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BLOCK_SAMPLES = 1 << 20  #: windows are measured in blocks of about so many samples
LONGEST_FRAME = 1_024
SHORTEST_FRAME = 64

_TINY = 1e-12  # of full scale, or of its square: keeps logarithms and ratios of silence finite

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class BaselineError(ValueError):
    """Windows that no baseline can be made of, or scikit-learn is missing; the message says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Fitted forests, which have equal votes."""

    forests: tuple[Any, ...]  #: of scikit-learn
    label_names: tuple[str, ...]
    windows: int  #: it was fitted on
    description: str

    def probabilities(self, windows: WindowSet, rows: Rows | None = None) -> npt.NDArray[np.float64]:
        """(n, labels) in the order of `label_names`, each row sums to 1; 0 for a label that it was never shown.

        Of all windows, or of those with the indices `rows`: a memory map is never copied whole.
        """
        measured = features(windows, rows)
        shares = np.zeros((len(measured), len(self.label_names)))
        if len(measured):
            votes = [forest.predict_proba(measured) for forest in self.forests]
            shares[:, self.forests[0].classes_] = np.mean(votes, axis=0)
        return shares


def fit_baseline(train: WindowSet, seed: int = 0, rows: Rows | None = None) -> Baseline:
    """Forests of `TREES` trees on `features`, each label weighing the same.

    Half the trees are a random forest (Breiman, 2001), half extremely randomised (Geurts et al., 2006): together they
    are stronger than either kind alone, and an opponent should be. The same windows and seed give the same forests.
    `rows` are the indices of the windows to fit on; None is all.

    Raises
    ------
    BaselineError
        If there are windows of fewer than two labels, or scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    except ImportError as error:
        raise BaselineError("the baseline needs scikit-learn: pip install 'aewatch[train]'") from error
    labels = train.labels if rows is None else train.labels[rows]
    if len(heard := np.unique(labels)) < 2:
        only = f"nothing but {train.label_names[heard[0]]}" if len(heard) else "nothing"
        raise BaselineError(f"the baseline's training part holds {only}; it needs two labels at least")
    most = WINDOWS_A_TREE if len(labels) > WINDOWS_A_TREE else None
    shared: dict[str, Any] = {"n_estimators": TREES // 2, "n_jobs": sensible_threads(), "random_state": seed}
    forests = (
        RandomForestClassifier(class_weight="balanced_subsample", max_samples=most, **shared),
        ExtraTreesClassifier(
            max_features=SPLIT_FEATURES, class_weight="balanced", bootstrap=most is not None, max_samples=most, **shared
        ),
    )
    measured = features(train, rows)
    for forest in forests:
        forest.fit(measured, labels)
    description = f"random forests, {TREES} trees on {measured.shape[1]} statistics and spectrum bands"
    return Baseline(forests, train.label_names, len(labels), description)


def features(windows: WindowSet, rows: Rows | None = None) -> Floats:
    """What the forest sees of each window: (n, features) float32, finite.

    Level, shape and course of the amplitude, and the spectrum in linear and in logarithmic bands: its mean level, its
    shape (the level taken off), and how it varies over the window. Only the real samples of a window count.
    """
    rows = np.arange(len(windows)) if rows is None else rows
    block = max(1, BLOCK_SAMPLES // max(1, windows.samples))

    def measure(start: int) -> Floats:
        part = rows[start : start + block]
        return _measure(windows.windows[part], windows.lengths[part])

    # Most of the time goes by in NumPy's own loops, where other threads may run.
    with ThreadPoolExecutor(sensible_threads()) as threads:
        parts = list(threads.map(measure, range(0, len(rows), block)))
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def _measure(windows: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> Floats:
    scale = 1.0 / 32_768.0 if windows.dtype == np.int16 else 1.0
    samples = windows.astype(np.float32) * np.float32(scale)
    lengths = np.clip(lengths, 1, samples.shape[1])
    real = np.arange(samples.shape[1]) < lengths[:, None]
    mean = samples.sum(axis=1, dtype=np.float64, where=real) / lengths
    centred = np.where(real, samples - mean[:, None].astype(np.float32), np.float32(0))
    columns = [*_statistics(centred, real, lengths, mean), *_envelope(centred, lengths), *_spectrum(centred, lengths)]
    table = np.concatenate([column.reshape(len(samples), -1) for column in columns], axis=1)
    return np.nan_to_num(table.astype(np.float32), nan=0.0, posinf=1e30, neginf=-1e30)


def _statistics(
    x: Floats, real: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int64], mean: npt.NDArray[np.float64]
) -> list[npt.NDArray[Any]]:
    """Of the distribution of the samples, whatever their order; and how often they change sign."""
    square = np.square(x)
    power = square.sum(axis=1, dtype=np.float64) / lengths + _TINY**2
    rms = np.sqrt(power)
    third = (square * x).sum(axis=1, dtype=np.float64) / lengths / rms**3
    fourth = np.square(square).sum(axis=1, dtype=np.float64) / lengths / power**2
    magnitudes = np.abs(x)
    peak = magnitudes.max(axis=1) + _TINY
    mean_magnitude = magnitudes.sum(axis=1, dtype=np.float64) / lengths + _TINY
    positive = x > 0
    crossings = ((positive[:, 1:] != positive[:, :-1]) & real[:, 1:]).sum(axis=1) / lengths
    steps = np.where(real[:, 1:], np.diff(x, axis=1), 0)
    step_power = np.square(steps).sum(axis=1, dtype=np.float64) / lengths
    # What lies beyond a window's end is sorted behind everything real.
    ascending = np.sort(np.where(real, x, np.float32(np.inf)), axis=1)
    rising = np.sort(np.where(real, magnitudes, np.float32(np.inf)), axis=1)
    places = [np.minimum((share * lengths).astype(np.int64), lengths - 1)[:, None] for share in QUANTILES]
    quantiles = [
        np.take_along_axis(sorted_, place, axis=1)[:, 0] for sorted_ in (ascending, rising) for place in places
    ]
    lowest, highest = ascending[:, 0], np.take_along_axis(ascending, lengths[:, None] - 1, axis=1)[:, 0]
    at_ends = (((x == lowest[:, None]) | (x == highest[:, None])) & real).sum(axis=1) / lengths
    return [
        mean,
        np.log(rms),
        np.log(peak),
        np.log(mean_magnitude),
        mean / rms,
        np.log(peak / rms),
        rms / mean_magnitude,
        third,
        np.log(fourth + _TINY),
        crossings,
        np.log(step_power / power + _TINY),
        lowest / rms,
        highest / rms,
        at_ends,
        *(quantile / rms for quantile in quantiles),
        *quantiles,
    ]


def _envelope(x: Floats, lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """The course of the amplitude: where its peak lies, how it rises and falls, and its power in equal parts."""
    rows, samples = x.shape
    magnitudes = np.abs(x)
    peak = magnitudes.max(axis=1, keepdims=True) + np.float32(_TINY)
    at_peak = magnitudes.argmax(axis=1)
    columns: list[npt.NDArray[Any]] = [at_peak / lengths]
    for share in (0.1, 0.3, 0.5):
        above = magnitudes >= share * peak
        first = above.argmax(axis=1)
        last = samples - 1 - above[:, ::-1].argmax(axis=1)
        columns += [(at_peak - first) / lengths, (last - at_peak) / lengths, above.sum(axis=1) / lengths]
    # Parts of each window's own length: sums between edges, from running sums of the power.
    total = np.concatenate([np.zeros((rows, 1)), np.cumsum(np.square(x, dtype=np.float64), axis=1)], axis=1)
    edges = np.arange(ENVELOPE_PARTS + 1) * lengths[:, None] // ENVELOPE_PARTS
    energy = np.maximum(np.diff(np.take_along_axis(total, edges, axis=1), axis=1), 0.0)
    power = energy / np.maximum(np.diff(edges, axis=1), 1) + _TINY**2
    levels = np.log(power)
    shares = energy / (energy.sum(axis=1, keepdims=True) + _TINY**2)
    centre = (shares * np.arange(ENVELOPE_PARTS)).sum(axis=1)
    spread = (shares * np.square(np.arange(ENVELOPE_PARTS) - centre[:, None])).sum(axis=1)
    columns += [
        levels - levels.mean(axis=1, keepdims=True),
        np.sort(levels, axis=1) - levels.mean(axis=1, keepdims=True),
        levels.std(axis=1),
        centre,
        np.sqrt(spread),
    ]
    return columns


def _spectrum(x: Floats, lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Bands of the power spectrum: level, shape, and course over frames of half-overlapping Hann windows."""
    samples = x.shape[1]
    frame = SHORTEST_FRAME
    while frame < LONGEST_FRAME and 4 * frame < samples:
        frame *= 2
    if samples < frame:
        x = np.pad(x, ((0, 0), (0, frame - samples)))
    hop = frame // 2
    framed = np.lib.stride_tricks.sliding_window_view(x, frame, axis=1)[:, ::hop]
    taper = np.hanning(frame + 1)[:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(framed * taper, axis=2))).astype(np.float32)
    whole = (lengths[:, None] - frame) // hop >= np.arange(framed.shape[1])
    whole[:, 0] = True  # a window shorter than a frame has one all the same
    count = whole.sum(axis=1)[:, None]
    columns: list[npt.NDArray[Any]] = []
    for edges in (_linear_edges(frame), _log_edges(frame)):
        # The mean over the bins of each band: (rows, frames, bands).
        bands = np.add.reduceat(power, edges[:-1], axis=2)[:, :, : len(edges) - 1] / np.diff(edges)
        mean = np.log((bands * whole[:, :, None]).sum(axis=1) / count + _TINY)
        logs = np.where(whole[:, :, None], np.log(bands + _TINY), 0)
        centre = logs.sum(axis=1) / count
        variance = (np.square(logs - centre[:, None]) * whole[:, :, None]).sum(axis=1) / count
        highest = np.where(whole[:, :, None], logs, -np.inf).max(axis=1)
        columns += [
            mean,
            mean - mean.mean(axis=1, keepdims=True),
            np.diff(mean, axis=1),
            centre - centre.mean(axis=1, keepdims=True),
            np.sqrt(variance),
            highest - centre,
        ]
    spectrum = (power * whole[:, :, None]).sum(axis=1) / count + _TINY
    share = spectrum / spectrum.sum(axis=1, keepdims=True)
    bins = np.arange(share.shape[1]) / (share.shape[1] - 1)
    centroid = (share * bins).sum(axis=1)
    running = np.cumsum(share, axis=1)
    columns += [
        centroid,
        np.sqrt((share * np.square(bins - centroid[:, None])).sum(axis=1)),
        np.log(spectrum).mean(axis=1) - np.log(spectrum.mean(axis=1)),  # flatness
        spectrum.argmax(axis=1) / share.shape[1],
        *((running >= part).argmax(axis=1) / share.shape[1] for part in (0.25, 0.5, 0.85, 0.95)),
    ]
    return columns


def _linear_edges(frame: int) -> npt.NDArray[np.int64]:
    """First bins of bands of equal width, from the bin above zero, and the end of the last."""
    return np.unique(np.linspace(1, frame // 2 + 1, min(LINEAR_BANDS, frame // 2) + 1).astype(np.int64))


def _log_edges(frame: int) -> npt.NDArray[np.int64]:
    """First bins of bands of equal ratio, as far as the bins resolve them, and the end of the last."""
    top = frame // 2 + 1
    return np.unique(np.geomspace(max(1.0, top / 2**LOG_BANDS_OCTAVES), top, LOG_BANDS + 1).astype(np.int64))
