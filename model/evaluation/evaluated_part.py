"""Which part of a data set a bundle is measured on, what the baseline learns from, and what the bundle knew before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from model.bundle import CARD_FILE, BundleCard, BundleError
from model.data.dataset import WindowSet
from model.data.manifest import SPLITS
from model.data.splits import By, leaks, parts
from model.evaluation.evaluate import EvaluationError
from model.training.recipe import load_recipe
from model.training.run_folder import BUNDLE_FOLDER, FACTS_FILE, RECIPE_FILE, RunRecord, read_record

MOST_COMPARED_BYTES = 2 << 30  #: of windows that are copied to look for identical ones; twice that at once
TOLD_NAMES = 5

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What is known of a bundle's training: from its run's folder, where the bundle still lies in it, else its card."""

    source: str  #: where that is said
    data: str  #: path of its data set; "" where only the card tells
    data_hash: str
    recordings: dict[str, Sequence[str]]  #: part → names
    groups: dict[str, Sequence[str]]  #: part → its positions, else its sensors; empty where nobody knows
    kind: str  #: what its split kept whole
    note: str
    record: RunRecord | None
    validation_share: float


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedPart:
    """Rows of a data set, and what to say of them."""

    name: str  #: "test", "validation", "train", "fold 3", "new recordings" or "all"
    rows: Rows  #: to evaluate on
    train: Rows  #: for the baseline to learn from; none of `rows`; may be empty
    notes: list[str]  #: why this part
    leakage: list[str]  #: what of it the bundle was trained on, or had a hand in


@dataclass(frozen=True, slots=True, eq=False)
class _Heard:
    """The training's parts, as masks over the windows of the data set at hand."""

    train: Mask
    validation: Mask
    test: Mask
    exact: bool  #: window for window; else by the names of recordings


def find_bundle(path: Path) -> Path:
    """The bundle at `path`, or the one in the folder of a training.

    Raises
    ------
    BundleError
        If it is the folder of a training that has none yet.
    """
    if (path / CARD_FILE).exists() or not (path / FACTS_FILE).exists():
        return path
    if not (path / BUNDLE_FOLDER / CARD_FILE).exists():
        raise BundleError(
            f"{path}: a training without a bundle; `aewatch train --resume --out {path}` ends it, "
            f"or `aewatch bundle make {path} --out DIR` takes the best so far"
        )
    return path / BUNDLE_FOLDER


def training_of(bundle: Path, card: BundleCard) -> Training | None:
    """What the run's folder around the bundle says, or else its card; None where neither names recordings.

    Raises
    ------
    RunError
        If there is a `run.json` that cannot be read.
    """
    run = bundle.resolve().parent
    told = card.training
    if (run / FACTS_FILE).exists() and (run / RECIPE_FILE).exists():
        record = read_record(run)
        if record.data_hash == told.data_hash:
            return Training(
                source=str(run / FACTS_FILE),
                data=record.data,
                data_hash=record.data_hash,
                recordings=dict(record.recordings),
                groups=dict(record.split.groups),
                kind=record.split.kind,
                note=record.split.note,
                record=record,
                validation_share=load_recipe(run / RECIPE_FILE).training.validation_share,
            )
    if not told.recordings and not told.data_hash:
        return None
    return Training("the bundle's card", "", told.data_hash, dict(told.recordings), {}, told.split, "", None, 0.0)


def evaluated_part(
    windows: WindowSet,
    training: Training | None = None,
    *,
    data: str = "",
    split: str | None = None,
    fold: str | None = None,
) -> EvaluatedPart:
    """Choose: the part or fold asked for; else the test part, if the data set has one; else what was not trained on.

    Where the bundle was trained on this data set, what was not trained on is the fold that the training left out, or
    its validation part. Where nothing is known, all of the data set.

    Parameters
    ----------
    windows
        All windows of the data set.
    training
        Of the bundle.
    data
        Path of the data set, to tell whether it is the one that was trained on, though it has changed since.
    split, fold
        As asked for: "train", "validation", "test" or "all"; or a fold of the data set. Not both.

    Raises
    ------
    EvaluationError
        If there is no such part; the message says which there are.
    """
    named = sorted(set(windows.splits.tolist()) - {""})
    by_name = bool(named) and set(named) <= set(SPLITS)
    heard = _heard(windows, training, data)
    name, chosen, notes = _choose(windows, heard, training, split, fold, named, by_name)
    rows = np.flatnonzero(chosen)
    if not len(rows):
        raise EvaluationError(f"the {name} part of {data or 'the data set'} has no windows; --split all takes all")
    learned = _to_learn_from(windows, heard, chosen, fold, by_name)
    return EvaluatedPart(
        name=name,
        rows=rows,
        train=np.flatnonzero(learned),
        notes=notes,
        leakage=_leakage(windows, heard, training, chosen),
    )


def _choose(
    windows: WindowSet,
    heard: _Heard | None,
    training: Training | None,
    split: str | None,
    fold: str | None,
    named: list[str],
    by_name: bool,
) -> tuple[str, Mask, list[str]]:
    has = f"it has {', '.join(named)}" if named else "it names no parts and no folds"
    everything = np.ones(len(windows), dtype=np.bool_)
    if fold is not None:
        if by_name or fold not in named:
            raise EvaluationError(f"the data set has no fold {fold!r}; {has}")
        return f"fold {fold}", windows.splits == fold, []
    if split == "all":
        return "all", everything, []
    if split is not None:
        if by_name and split in named:
            return split, windows.splits == split, []
        if heard is not None and training is not None and (mask := getattr(heard, split)).any():
            return split, mask, [f"the {split} part of the bundle's training, as {training.source} says"]
        raise EvaluationError(f"the data set has no {split} part; {has}; --split all takes all")
    if by_name and "test" in named:
        return "test", windows.splits == "test", []
    if heard is not None and training is not None and heard.train.any():
        said = f"as {training.source} says"
        if heard.test.any():
            fold = training.record.fold if training.record is not None else None
            return f"fold {fold}" if fold is not None else "test", heard.test, [f"what the training left out, {said}"]
        why = "the data set names no test part; these windows are"
        if (new := ~heard.train & ~heard.validation).any():
            return "new recordings", new, [f"{why} of recordings that the training did not have, {said}"]
        if (validation := heard.validation & ~heard.train).any():
            return "validation", validation, [f"{why} the validation part of the bundle's training, {said}"]
    return "all", everything, ["the data set names no test part, and nothing tells which of it is new to the bundle"]


def _heard(windows: WindowSet, training: Training | None, data: str) -> _Heard | None:
    """None where the bundle was trained on another data set, or nothing is known."""
    if training is None:
        return None
    none = np.zeros(len(windows), dtype=np.bool_)
    same = windows.fingerprint() == training.data_hash
    record = training.record
    if same and record is not None and record.split.by in get_args(By):
        by: By = record.split.by  # type: ignore[assignment]  # it was just looked up
        found = parts(windows, fold=record.fold, by=by, validation_share=training.validation_share)
        if np.unique(windows.recordings[found.train]).tolist() == sorted(training.recordings.get("train", [])):
            return _Heard(found.train, found.validation, found.test, exact=True)
    if not same and not (data and training.data and Path(data).resolve() == Path(training.data).resolve()):
        return None
    by_recording = {
        part: np.isin(windows.recordings, list(training.recordings.get(part, ()))) for part in ("train", "validation")
    }
    if not by_recording["train"].any():
        return None
    return _Heard(by_recording["train"], by_recording["validation"], none, exact=False)


def _to_learn_from(windows: WindowSet, heard: _Heard | None, chosen: Mask, fold: str | None, by_name: bool) -> Mask:
    """For the baseline: what the bundle was trained on if that is known, else what the data set says."""
    none = np.zeros(len(windows), dtype=np.bool_)
    candidates = [heard.train] if heard is not None else []
    if by_name:
        candidates.append(windows.splits == "train")
    if fold is not None:
        candidates.append(windows.splits != fold)
    for candidate in candidates:
        if candidate.any() and not (candidate & chosen).any():
            return candidate
    return none


def _leakage(windows: WindowSet, heard: _Heard | None, training: Training | None, chosen: Mask) -> list[str]:
    if training is None:
        return []
    found: list[str] = []
    if heard is None:
        return _same_names(windows, training, chosen)
    total = int(chosen.sum())
    if training.kind == "random windows":
        found.append(training.note or "windows were split at random: pieces of one recording were trained on")
    if trained := int((heard.train & chosen).sum()):
        how = "windows" if heard.exact else "windows are of recordings that"
        found.append(f"{trained:,} of these {total:,} {how} were trained on: their scores promise too much")
    if judged := int((heard.validation & chosen).sum()):
        found.append(
            f"{judged:,} of these {total:,} windows set the temperature and the unknown threshold: "
            "expect a little less of others"
        )
    train = heard.train & ~chosen
    if train.any() and not trained:
        one, other = (to_compare(windows, np.flatnonzero(mask)) for mask in (train, chosen))
        found += [f"trained on and evaluated: {leak}" for leak in leaks(one, other)]
    return found


def _same_names(windows: WindowSet, training: Training, chosen: Mask) -> list[str]:
    """Another data set, or an unknown one: only names can be compared."""
    found = []
    heard = set(training.recordings.get("train", ()))
    if shared := sorted(heard & set(windows.recordings[chosen].tolist()) - {""}):
        found.append(f"{len(shared)} recordings have the names of such that were trained on: {_told(shared)}")
    places = set(training.groups.get("train", ()))
    for kind, names in (("positions", windows.positions), ("sensors", windows.sensors)):
        if shared := sorted(places & set(names[chosen].tolist()) - {""}):
            found.append(f"{len(shared)} {kind} have the names of such that were trained on: {_told(shared)}")
    return found


def to_compare(windows: WindowSet, rows: Rows) -> WindowSet:
    """Those windows, for `model.data.splits.leaks`; without their samples where a copy would take too much memory."""
    if len(rows) * windows.samples * windows.windows.itemsize <= MOST_COMPARED_BYTES:
        return windows.select(rows)
    return WindowSet(
        windows=np.empty((len(rows), 0), dtype=np.int16),
        lengths=np.zeros(len(rows), dtype=np.int64),
        labels=windows.labels[rows],
        label_names=windows.label_names,
        rate_hz=windows.rate_hz,
        recordings=windows.recordings[rows],
        sensors=windows.sensors[rows],
        positions=windows.positions[rows],
        splits=windows.splits[rows],
    )


def _told(names: list[str]) -> str:
    more = f" and {len(names) - TOLD_NAMES} more" if len(names) > TOLD_NAMES else ""
    return ", ".join(names[:TOLD_NAMES]) + more
