"""From a trained network to a bundle: calibrates it, measures it on the validation windows, writes its card."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from model.bundle import BundleCard, TrainingRecord, UnknownRule, write_bundle
from model.bundle_making.blend import set_shares
from model.bundle_making.model_card import model_card
from model.bundle_making.roles import labels_with_roles
from model.calibration import fit_temperature, negative_log_likelihood
from model.data.dataset import Texts, WindowSet
from model.denormals import flushed_denormals
from model.metrics import confusion_matrix, scores
from model.network import Recogniser
from model.training.judge import judge
from model.unknown import UnknownScore

THRESHOLDS = {"calibration": 0.8, "fault": 0.6}  # those of the default alarm rules
SCORED_WINDOWS = 64  # at once: a distance multiplies each by a matrix, element by element
FOLDS = 4
ENOUGH_OF_A_LABEL = 20
TRAINING_WINDOWS_OF_A_LABEL = 500  # as many as a mean and a covariance gain by
RECORDED_CHARACTERS = 200_000  # names of recordings beyond that would burst the card


Indices = npt.NDArray[np.int64]


class SplitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a training parted its windows."""

    kind: str  #: "manifest", "recording", "sensor", "position" or "random windows"
    note: str = ""  #: what a reader must know of it


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a training's `run.json` says that its bundle needs; `run.json` may say more."""

    rate_hz: float
    rate_is_nominal: bool
    window_samples: int
    hop_samples: int
    data: str  #: path of the data set
    data_hash: str  #: `WindowSet.fingerprint` of all of it
    split: SplitFacts
    fold: str | None = None  #: left out of the training, to test on
    device: str = ""
    command: str
    started: str  #: ISO 8601
    recipe: str = ""  #: TOML, every value resolved: what the run's `recipe.toml` holds


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a network says of n windows."""

    logits: npt.NDArray[np.float32]  #: (n, labels)
    embeddings: npt.NDArray[np.float32]  #: (n, embedding)


def read_run(run: Path) -> RunFacts:
    """The facts of the training in folder `run`.

    Raises
    ------
    ValueError
        If it is no such folder, or a fact is missing or wrong; the message names file and field.
    """
    try:
        facts = msgspec.json.decode((run / "run.json").read_bytes(), type=RunFacts)
        recipe = (run / "recipe.toml").read_text()
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; `aewatch train` makes a folder with run.json and recipe.toml"
        ) from error
    except msgspec.DecodeError as error:
        raise ValueError(f"{run / 'run.json'}: {error}") from error
    return msgspec.structs.replace(facts, recipe=recipe)


@flushed_denormals()
def make_bundle(
    out: str | os.PathLike[str],
    name: str,
    run: RunFacts,
    model: Recogniser,
    data: WindowSet,
    train: Indices,
    validation: Indices,
    roles: Mapping[str, str] | None = None,
) -> BundleCard:
    """Write the bundle of a trained `model` into folder `out`, with card and README; returns its card.

    The temperature is the one that makes the validation windows most likely (`fit_temperature`). The unknown score is
    fitted by `fit_unknown`, which also says where its threshold comes from. The metrics are of the validation windows,
    which also set the temperature, and may have chosen the epoch; figures to compare with come from other windows.

    Parameters
    ----------
    out, name
        Folder to write, and what the bundle is called.
    run
        Rate, window and provenance.
    model
        On any device, as the training left it. It is put into evaluation mode, and its unknown score is fitted.
    data
        All windows; may be a memory map, and is never copied whole.
    train, validation
        Indices of the windows that the model was trained on, and of those held out of that.
    roles
        Label → background, calibration or fault; `model.bundle_making.roles.role_by_name` guesses those of the others.

    Raises
    ------
    ValueError
        If there is no validation window, a label has fewer than two training windows, a role does not exist, or the
        labels are not those that the model has outputs for.
    BundleError
        If a weight is not finite.
    """
    names, truth = data.label_names, data.labels[validation]
    labels = labels_with_roles(names, roles or {})
    _check_windows(model, data, train, validation)
    found = judged(model, data, validation)
    if model.statistics is not None:
        found = Judged(set_shares(model, data, validation, found.embeddings), found.embeddings)
    temperature = fit_temperature(found.logits, truth)
    threshold = fit_unknown(model, data, train, validation, found)
    strange = unknown_scores(model.unknown, found) > threshold
    exact = found.logits.astype(np.float64)
    measured = scores(confusion_matrix(truth, found.logits.argmax(axis=1), len(names)))
    card = BundleCard(
        name=name,
        front_end=model.front_end.spec,
        network=model.network.dims,
        head=model.head.spec,
        labels=labels,
        rate_hz=run.rate_hz,
        rate_is_nominal=run.rate_is_nominal,
        window_samples=run.window_samples,
        hop_samples=run.hop_samples,
        temperature=temperature,
        unknown=UnknownRule(model.unknown.kind, threshold),
        thresholds={label.name: THRESHOLDS[label.role] for label in labels if label.role in THRESHOLDS},
        training=_record(run, data, {"train": train, "validation": validation}),
        metrics={
            "data": f"{len(validation):,} validation windows of {run.data}, split by {run.split.kind}",
            "windows": measured.as_card(names),
            "negative_log_likelihood": {
                "as_trained": round(negative_log_likelihood(exact, truth), 4),
                "calibrated": round(negative_log_likelihood(exact / temperature, truth), 4),
            },
            "called_unknown": round(float(strange.mean()), 4),
        },
    )
    return write_bundle(out, card, model.weights(), model_card(card, measured, run.split.note, run.fold, run.device))


def judged(model: Recogniser, data: WindowSet, indices: Indices) -> Judged:
    """What `model` says of these windows, not augmented; it is put into evaluation mode."""
    return Judged(*judge(model.eval(), data, indices))


def fit_unknown(model: Recogniser, data: WindowSet, train: Indices, validation: Indices, found: Judged) -> float:
    """Fit the unknown score of `model`; returns the threshold over which a window counts as unknown.

    Where every label has at least `ENOUGH_OF_A_LABEL` validation windows, from enough recordings that `FOLDS` parts
    with all labels can be made of them, and there are four times as many windows as the embedding has dimensions, the
    score is fitted on the validation windows, and the threshold (see `unknown_threshold`) is taken from the scores
    that each gets from a fit without its part. Else the score is fitted on training windows, of which there are more,
    and the threshold is taken from the scores of the validation windows.

    `found` is what the model says of the validation windows.
    """
    labels, count = data.labels[validation], len(data.label_names)
    parts = _parts(data.recordings[validation], labels, count)
    if _enough(labels, parts, count, found.embeddings.shape[1]):
        held_out = np.empty(len(labels), np.float32)
        for part in range(FOLDS):
            inside = parts == part
            score = copy.deepcopy(model.unknown)
            score.fit(found.embeddings[~inside], labels[~inside])
            held_out[inside] = unknown_scores(score, Judged(found.logits[inside], found.embeddings[inside]))
        model.unknown.fit(found.embeddings, labels)
        return unknown_threshold(held_out, labels)
    rng = np.random.default_rng(0)
    of_labels = [train[data.labels[train] == label] for label in range(count)]
    some = np.sort(np.concatenate([rng.permutation(of_label)[:TRAINING_WINDOWS_OF_A_LABEL] for of_label in of_labels]))
    model.unknown.fit(judged(model, data, some).embeddings, data.labels[some])
    return unknown_threshold(unknown_scores(model.unknown, found), labels)


def unknown_scores(score: UnknownScore, found: Judged) -> npt.NDArray[np.float32]:
    """(n,), larger is stranger."""
    device = score.means.device
    parts = [np.empty(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, len(found.logits), SCORED_WINDOWS):
            rows = slice(start, start + SCORED_WINDOWS)
            embeddings, logits = (torch.from_numpy(a[rows]).to(device) for a in (found.embeddings, found.logits))
            parts.append(score(embeddings, logits).cpu().numpy())
    return np.concatenate(parts)


def unknown_threshold(found: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Over the scores of windows that are not strange, with room.

    Of n scores it is the 99 % quantile (up to 100 scores: the largest) and a share of 0.5 + 5 / √n, at most 1, of the
    distance from their median to it: the fewer, the less they say about the tail. It is at most the median and six
    times the distance from it to the 90 % quantile, so that one window under a wrong label does not make the whole
    world familiar. Taken of all windows, and of each label that has `ENOUGH_OF_A_LABEL`, and of these the largest: a
    window that is called unknown counts for no alarm, so no label may be lost to it for being rare.

    Parameters
    ----------
    found
        (n,), larger is stranger; of windows that the score was not fitted on.
    labels
        (n,), the true ones.
    """
    groups = [found, *(found[labels == label] for label in np.unique(labels))]
    return max(
        _over(group.astype(np.float64))
        for number, group in enumerate(groups)
        if number == 0 or len(group) >= ENOUGH_OF_A_LABEL
    )


def _over(found: npt.NDArray[np.float64]) -> float:
    median, usual, high = np.quantile(found, [0.5, 0.9, 0.99], method="higher")
    room = min(1.0, 0.5 + 5.0 / np.sqrt(len(found)))
    return float(min(high + room * (high - median), median + 6.0 * (usual - median)))


def _parts(recordings: Texts, labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """(n,), which of `FOLDS` parts each window is in: a recording is in one, and each label is spread over them."""
    names, number = np.unique(recordings, return_inverse=True)
    of_recording = np.zeros((len(names), count), np.int64)
    np.add.at(of_recording, (number, labels), 1)
    part_of = np.empty(len(names), np.int64)
    in_part = np.zeros((FOLDS, count), np.int64)
    for recording, of_labels in enumerate(of_recording):
        part_of[recording] = np.argmin(in_part @ of_labels)
        in_part[part_of[recording]] += of_labels
    return part_of[number]


def _enough(labels: npt.NDArray[np.int64], parts: npt.NDArray[np.int64], count: int, embedding: int) -> bool:
    per_label = np.bincount(labels, minlength=count)
    per_part = np.stack([np.bincount(labels[parts == part], minlength=count) for part in range(FOLDS)])
    return bool(len(labels) >= 4 * embedding and (per_label >= ENOUGH_OF_A_LABEL).all() and (per_part > 0).all())


def _check_windows(model: Recogniser, data: WindowSet, train: Indices, validation: Indices) -> None:
    if not len(validation):
        raise ValueError("no validation windows: temperature and unknown threshold need some; hold a part back")
    if len(data.label_names) != (outputs := model.head.weight.shape[0]):
        raise ValueError(f"{len(data.label_names)} labels, but the model has {outputs} outputs")
    if few := [name for name, count in _counts(data, train).items() if count < 2]:
        raise ValueError(f"fewer than two training windows of {', '.join(few)}; label more, or leave the label out")


def _record(run: RunFacts, data: WindowSet, parts: dict[str, Indices]) -> TrainingRecord:
    recordings = {part: tuple(map(str, np.unique(data.recordings[indices]))) for part, indices in parts.items()}
    counts = {part: _counts(data, indices) for part, indices in parts.items()}
    in_words = ", ".join(f"{count:,} {name}" for name, count in counts["train"].items())
    return TrainingRecord(
        data=f"{len(parts['train']):,} windows of {run.data}: {in_words}",
        data_hash=run.data_hash,
        command=run.command,
        seed=int(tomllib.loads(run.recipe).get("training", {}).get("seed", 0)),
        positions={part: said for part, indices in parts.items() if (said := _positions(data.positions[indices]))},
        date=run.started[:10],
        counts=counts,
        recordings={part: heard for part, heard in recordings.items() if sum(map(len, heard)) <= RECORDED_CHARACTERS},
        split=run.split.kind,
        recipe=run.recipe,
    )


def _counts(data: WindowSet, indices: Indices) -> dict[str, int]:
    counts = np.bincount(data.labels[indices], minlength=len(data.label_names)).tolist()
    return dict(zip(data.label_names, counts, strict=True))


def _positions(positions: Texts) -> str:
    """How many and which, or "" where nobody knows."""
    known = [str(position) for position in np.unique(positions) if position]
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"{len(known)}: {', '.join(known[:20])}{more}" if known else ""
