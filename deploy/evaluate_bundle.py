"""From a bundle and a data set to an evaluation: windows, part, baseline, figures, and the files to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from deploy.dataset_windows import dataset_windows
from model.bundle import BundleCard, read_card
from model.data.dataset import WindowSet
from model.data.manifest import SPLITS, read_manifest
from model.data.splits import leaks
from model.engine import Engine
from model.evaluation.baseline import Baseline, fit_baseline
from model.evaluation.evaluate import Evaluation, EvaluationError, Subject, check_labels, evaluate
from model.evaluation.evaluated_part import EvaluatedPart, evaluated_part, find_bundle, to_compare, training_of
from model.evaluation.report import report
from model.training.history import Epoch, read_history

OnProgress = Callable[[int, int], None]

NO_BASELINE = (
    "no baseline beside it: nothing tells which windows it may learn from without those evaluated; "
    "--train-data names a data set for it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to evaluate, and on what."""

    bundle: Path  #: or the folder of a training
    data: Path
    split: str | None = None
    fold: str | None = None
    baseline: bool = True
    train_data: Path | None = None  #: for the baseline; None is the data set's own training part
    device: str = "auto"
    command: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """The figures, and the course of the training where it is at hand."""

    evaluation: Evaluation
    history: list[Epoch]


def evaluate_bundle(
    order: Order,
    say: Callable[[str], None] = lambda text: None,
    on_recording: OnProgress | None = None,
    on_window: OnProgress | None = None,
) -> Evaluated:
    """Evaluate as ordered. `say` is told what takes its time.

    Raises
    ------
    ValueError
        With one line that names what does not fit and the way out; the modules that are called here say when.
    """
    bundle = find_bundle(order.bundle)
    card = read_card(bundle)
    manifest = read_manifest(order.data, labels=1)
    check_labels(card, manifest.label_names)
    engine = Engine(bundle, device=order.device)
    training = training_of(bundle, card)
    windows = _windows(order.data, card, on_recording)
    part = evaluated_part(windows, training, data=str(order.data), split=order.split, fold=order.fold)
    notes = [*manifest.notes, *part.notes]
    if lacking := [name for name in card.label_names if name not in manifest.label_names]:
        notes.append(f"the data set has no {', '.join(lacking)}, which the bundle knows too")
    baseline = None
    if order.baseline:
        say("fitting the baseline")
        baseline, more = _baseline(order, card, windows, part, on_recording)
        notes += more
    say(f"evaluating on {len(part.rows):,} windows, {part.name}")
    subject = Subject(
        bundle=str(bundle),
        data=str(order.data),
        part=part.name,
        notes=notes,
        leakage=part.leakage,
        command=order.command,
    )
    found = evaluate(engine, windows, part.rows, baseline=baseline, subject=subject, on_progress=on_window)
    known = training is not None and training.record is not None
    return Evaluated(found, read_history(bundle.resolve().parent) if known else [])


def write_report(found: Evaluated, folder: Path) -> list[Path]:
    """Write everything into `folder`: figures as JSON, the report as text and as a page, and each picture.

    Raises
    ------
    OSError
        If it cannot be written.
    model.evaluation.report_plots.PlotError
        If pictures cannot be drawn.
    """
    from model.evaluation.report_html import report_html
    from model.evaluation.report_plots import confusion, curves, group_bars, label_bars, reliability, save

    evaluation = found.evaluation
    pictures = {
        "confusion": confusion(evaluation.results, evaluation.labels),
        "labels": label_bars(evaluation.results, evaluation.baseline),
        "reliability": reliability(evaluation.results, evaluation.baseline),
        **{
            f"{what}s": group_bars(evaluation, what)
            for what in ("position", "sensor")
            if getattr(evaluation.results, f"by_{what}")
        },
        **({"curves": curves(found.history)} if found.history else {}),
    }
    texts = {
        "evaluation.json": msgspec.json.format(msgspec.json.encode(evaluation), indent=2).decode() + "\n",
        "report.txt": report(evaluation) + "\n",
        "report.html": report_html(evaluation, found.history),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, figure in pictures.items():
        save(figure, folder / f"{name}.png")
    return [folder / name for name in (*texts, *(f"{name}.png" for name in pictures))]


def _windows(data: Path, card: BundleCard, on_recording: OnProgress | None) -> WindowSet:
    """The data set as the bundle hears it: at its rate, with its window and hop."""
    return dataset_windows(
        read_manifest(data, labels=1),
        card.window_samples,
        card.hop_samples,
        card.window_rate_hz,
        on_progress=on_recording,
    )


def _baseline(
    order: Order, card: BundleCard, windows: WindowSet, part: EvaluatedPart, on_recording: OnProgress | None
) -> tuple[Baseline | None, list[str]]:
    """The baseline, and what to say of it."""
    if order.train_data is None:
        if len(np.unique(windows.labels[part.train])) < 2:
            return None, [NO_BASELINE]
        return fit_baseline(windows, rows=part.train), []
    learned = _windows(order.train_data, card, on_recording)
    check_labels(card, learned.label_names)
    if len(learned.label_names) < 2:
        raise EvaluationError(
            f"{order.train_data}: the baseline cannot learn from one label; --no-baseline does without"
        )
    named = set(learned.splits.tolist()) <= {*SPLITS, ""} and "train" in learned.splits
    rows = np.flatnonzero(learned.splits == "train") if named else np.arange(len(learned))
    notes = [f"the baseline learned from {order.train_data}{', its train part' if named else ''}"]
    shared = leaks(to_compare(learned, rows), to_compare(windows, part.rows))
    return fit_baseline(learned, rows=rows), notes + [f"of the baseline: {leak}" for leak in shared]
