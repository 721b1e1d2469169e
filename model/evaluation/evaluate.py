"""How good a bundle is on labelled windows: every figure of the report, and the baseline's beside it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.bundle import BundleCard
from model.calibration import Bin, brier_score, expected_calibration_error, probability_loss, reliability
from model.data.dataset import Texts, WindowSet
from model.engine import Engine
from model.evaluation.baseline import Baseline
from model.evaluation.bootstrap import Intervals, difference_intervals, score_intervals
from model.metrics import confusion_matrix, scores

INFERRED_WINDOWS = 256  #: handed to the engine at once
TIMED_REPEATS = 7
TIMED_S = 0.4  #: about so long each

Rows = npt.NDArray[np.int64]
OnProgress = Callable[[int, int], None]  #: windows done, of how many


class EvaluationError(ValueError):
    """Windows on which a bundle cannot be measured; the message says what does not fit and the way out."""


@dataclass(frozen=True, slots=True)
class LabelResult:
    """How one label is recognised; shares from 0 to 1. A share of nothing is 0."""

    label: str
    windows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How the windows of one position, sensor or recording are recognised."""

    name: str
    windows: int
    accuracy: float


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """Where each window is from, (n,) each; "" where nobody knows."""

    positions: Texts
    sensors: Texts
    recordings: Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Of one model on the evaluated windows; shares from 0 to 1, labels in the order of the bundle."""

    name: str
    accuracy: float
    macro_f1: float  #: mean over the labels that have windows
    weighted_f1: float  #: mean over the windows
    weakest_recall: float  #: of the labels that have windows
    weakest_label: str
    intervals: Intervals
    labels: list[LabelResult]
    confusion: list[list[int]]  #: rows are the true labels
    by_position: list[GroupResult]  #: of those that are known, by name; so the next two
    by_sensor: list[GroupResult]
    by_recording: list[GroupResult]
    expected_calibration_error: float
    negative_log_likelihood: float  #: mean, in nats
    brier_score: float  #: from 0 to 2
    reliability: list[Bin]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownResult:
    """What the bundle called unknown; all windows here have a label that it knows."""

    kind: str  #: of the score, see `model.unknown`
    threshold: float
    share: float  #: of all windows
    by_label: dict[str, float]  #: of those with windows
    accuracy_of_others: float | None  #: of the windows not called unknown; None without such


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of the bundle on these windows, on the machine of the evaluation."""

    windows_per_s: float  #: median of the repeats
    lowest: float
    highest: float
    repeats: int
    device: str
    precision: str
    sensors: float  #: at so many the device is busy all the time, with the bundle's rate, window and hop


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything the report shows. `msgspec.json.encode` takes it as it is."""

    bundle: str  #: folder
    model: str  #: its name
    version: str
    labels: list[str]
    trained_on: str  #: as its card says
    data: str  #: path of the data set
    part: str  #: of the data set: "test", "validation", "fold 3", "all", …
    notes: list[str]  #: how the part was chosen, and what else a reader must know
    leakage: list[str]  #: what of it the bundle has been trained on; empty: nothing known
    windows: int
    recordings: int  #: 0 where nobody knows
    counts: dict[str, int]  #: label → windows
    window_samples: int
    rate_hz: float
    results: Results
    unknown: UnknownResult
    speed: Speed
    baseline: Results | None
    difference: Intervals | None  #: of the bundle's scores less the baseline's, on the same drawn windows
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated, in words for the report."""

    bundle: str = ""
    data: str = ""
    part: str = "all"
    notes: Sequence[str] = ()
    leakage: Sequence[str] = ()
    command: str = ""


def evaluate(
    engine: Engine,
    windows: WindowSet,
    rows: Rows | None = None,
    *,
    baseline: Baseline | None = None,
    subject: Subject | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Run the bundle, and the baseline if there is one, over labelled windows, and measure.

    Parameters
    ----------
    engine
        With the bundle.
    windows
        At the bundle's rate; their labels are among those of the bundle, in any order.
    rows
        Indices of the windows to evaluate on; None is all. A memory map is never copied whole.
    seed
        Of the resampling behind the intervals.

    Raises
    ------
    EvaluationError
        If there are no windows, the bundle does not know a label, or the rate is not the bundle's.
    """
    subject = subject or Subject()
    card = engine.card
    rows = np.arange(len(windows)) if rows is None else rows
    _check(card, windows, rows)
    # From the data set's numbering of the labels to the bundle's.
    number = np.array([card.label_names.index(name) for name in windows.label_names])
    true = number[windows.labels[rows]]
    where = Where(windows.positions[rows], windows.sensors[rows], windows.recordings[rows])
    probabilities, strangeness, elapsed_s = _infer(engine, windows, rows, on_progress)
    found = results_of(f"{card.name} {card.version}", card.label_names, true, probabilities, where, seed)
    other = difference = None
    if baseline is not None:
        guessed = np.zeros_like(probabilities, dtype=np.float64)
        columns = [card.label_names.index(name) for name in baseline.label_names]
        guessed[:, columns] = baseline.probabilities(windows, rows)
        other = results_of(baseline.description, card.label_names, true, guessed, where, seed)
        recognised = probabilities.argmax(axis=1), guessed.argmax(axis=1)
        difference = difference_intervals(true, *recognised, len(card.labels), where.recordings, seed)
    heard = np.unique(where.recordings[where.recordings != ""])
    return Evaluation(
        bundle=subject.bundle,
        model=card.name,
        version=card.version,
        labels=list(card.label_names),
        trained_on=card.training.data,
        data=subject.data,
        part=subject.part,
        notes=list(subject.notes),
        leakage=list(subject.leakage),
        windows=len(rows),
        recordings=len(heard),
        counts={label.label: label.windows for label in found.labels},
        window_samples=card.window_samples,
        rate_hz=windows.rate_hz,
        results=found,
        unknown=_unknown(card, true, probabilities.argmax(axis=1), strangeness),
        speed=_speed(engine, windows, rows, len(rows) / elapsed_s),
        baseline=other,
        difference=difference,
        command=subject.command,
    )


def results_of(
    name: str,
    labels: Sequence[str],
    true: npt.NDArray[np.int64],
    probabilities: npt.NDArray[Any],
    where: Where,
    seed: int = 0,
) -> Results:
    """The figures of a model that gave the windows with the labels `true` (n,) these `probabilities` (n, labels)."""
    recognised = probabilities.argmax(axis=1)
    found = scores(confusion_matrix(true, recognised, len(labels)))
    there = np.flatnonzero(found.support)
    bins = reliability(probabilities, true)
    right = recognised == true
    return Results(
        name=name,
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
        weighted_f1=found.weighted_f1,
        weakest_recall=found.weakest_recall,
        weakest_label=labels[there[found.recall[there].argmin()]],
        intervals=score_intervals(true, recognised, len(labels), where.recordings, seed),
        labels=[
            LabelResult(
                label, int(found.support[i]), float(found.precision[i]), float(found.recall[i]), float(found.f1[i])
            )
            for i, label in enumerate(labels)
        ],
        confusion=found.confusion.tolist(),
        by_position=_by_group(where.positions, right),
        by_sensor=_by_group(where.sensors, right),
        by_recording=_by_group(where.recordings, right),
        expected_calibration_error=expected_calibration_error(bins),
        negative_log_likelihood=probability_loss(probabilities, true),
        brier_score=brier_score(probabilities, true),
        reliability=bins,
    )


def check_labels(card: BundleCard, label_names: Sequence[str]) -> None:
    """Nothing, where the bundle knows each label of a data set; it may know more.

    Raises
    ------
    EvaluationError
        Naming those it does not know.
    """
    if new := sorted(set(label_names) - set(card.label_names)):
        raise EvaluationError(
            f"bundle {card.name} does not know {', '.join(new)}; it knows {', '.join(card.label_names)}; "
            "rename what means the same, or leave it out, in the data set's folders or table"
        )


def _check(card: BundleCard, windows: WindowSet, rows: Rows) -> None:
    if not len(rows):
        raise EvaluationError("no windows to evaluate on; name another part of the data set")
    check_labels(card, windows.label_names)
    if not card.rate_is_nominal and windows.rate_hz != card.rate_hz:
        raise EvaluationError(
            f"the windows are at {windows.rate_hz:g} Hz and the bundle wants {card.rate_hz:g} Hz; cut them at its rate"
        )


def _infer(
    engine: Engine, windows: WindowSet, rows: Rows, on_progress: OnProgress | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float]:
    """Probabilities (n, labels), unknown scores (n,), and the seconds it took."""
    engine.warm_up()
    probabilities = np.empty((len(rows), len(engine.card.labels)), dtype=np.float32)
    strangeness = np.empty(len(rows), dtype=np.float32)
    elapsed_s = 0.0
    for start in range(0, len(rows), INFERRED_WINDOWS):
        part = slice(start, start + INFERRED_WINDOWS)
        batch = _real_samples(windows, rows[part])
        begun = time.perf_counter()
        inference = engine.infer(batch)
        elapsed_s += time.perf_counter() - begun
        probabilities[part], strangeness[part] = inference.probabilities, inference.unknown_scores
        if on_progress is not None:
            on_progress(min(len(rows), start + INFERRED_WINDOWS), len(rows))
    return probabilities, strangeness, elapsed_s


def _real_samples(windows: WindowSet, rows: Rows) -> list[npt.NDArray[Any]]:
    """Each window without the zeros that fill up its room."""
    room = windows.windows[rows]
    return [window[: max(1, length)] for window, length in zip(room, windows.lengths[rows], strict=True)]


def _by_group(names: Texts, right: npt.NDArray[np.bool_]) -> list[GroupResult]:
    known = names != ""
    groups, number = np.unique(names[known], return_inverse=True)
    windows = np.bincount(number, minlength=len(groups))
    hits = np.bincount(number, right[known], minlength=len(groups))
    return [
        GroupResult(str(name), int(count), float(hit / count))
        for name, count, hit in zip(groups, windows, hits, strict=True)
    ]


def _unknown(
    card: BundleCard,
    true: npt.NDArray[np.int64],
    recognised: npt.NDArray[np.int64],
    strangeness: npt.NDArray[np.float32],
) -> UnknownResult:
    strange = strangeness > card.unknown.threshold
    return UnknownResult(
        kind=card.unknown.kind,
        threshold=card.unknown.threshold,
        share=float(strange.mean()),
        by_label={
            label: float(strange[true == i].mean()) for i, label in enumerate(card.label_names) if (true == i).any()
        },
        accuracy_of_others=float((recognised == true)[~strange].mean()) if not strange.all() else None,
    )


def _device_name(engine: Engine) -> str:
    device = engine.choice.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _speed(engine: Engine, windows: WindowSet, rows: Rows, roughly: float) -> Speed:
    card = engine.card
    batch = _real_samples(windows, rows[: math.ceil(min(INFERRED_WINDOWS, max(1.0, TIMED_S * roughly)))])
    batches = max(1, round(TIMED_S * roughly / len(batch)))
    speeds = []
    for _ in range(TIMED_REPEATS):
        begun = time.perf_counter()
        for _ in range(batches):
            engine.infer(batch)
        speeds.append(batches * len(batch) / (time.perf_counter() - begun))
    median = statistics.median(speeds)
    return Speed(
        windows_per_s=median,
        lowest=min(speeds),
        highest=max(speeds),
        repeats=TIMED_REPEATS,
        device=_device_name(engine),
        precision=engine.choice.precision,
        sensors=median * card.hop_samples / windows.rate_hz,
    )
