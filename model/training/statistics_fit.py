"""Fits what a recogniser says of a window's context alone: standardisation, a linear recogniser, its trust.

The recogniser is linear discriminant analysis with a shrunken covariance (Ledoit & Wolf, 2004), each label weighing the
same. How far it may be trusted is measured on groups of windows that it was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.calibration import fit_temperature
from model.data.dataset import WindowSet
from model.front_end import FrontEnd
from model.metrics import confusion_matrix, scores
from model.network import Recogniser
from model.training.augment import augment_waveforms
from model.training.feed import Feed
from model.training.recipe import Augment

FOLDS = 5
#: A fit from so many windows is as good as one from more.
MOST_WINDOWS = 12_000
AUGMENTED_COPIES = 2
#: What fitting on changed windows too may cost, in macro F1 on windows as they are.
TOLERATED = 0.02
AT_ONCE = {"cpu": 32, "cuda": 1_024}

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class StatisticsError(ValueError):
    """The statistics cannot be fitted; the message says why."""


def fit_statistics(
    model: Recogniser,
    feed: Feed,
    train: Indices,
    labels: Indices,
    groups: npt.NDArray[Any],
    augment: Augment,
    seed: int,
) -> str:
    """Fit the model's rows of context and the recogniser on them, in place; returns what was found, in words.

    The recogniser's share in the model's logits stays as it is: `model.bundle_making.blend` sets it when the network
    is trained.

    Parameters
    ----------
    model
        With rows of context; its front end and `statistics` are filled in.
    feed, train
        The windows, and the indices of the training part, (n,).
    labels, groups
        (n,), of the training part; windows of one group (recording, position) are never on both sides of a fit, but
        for labels that are in one group alone.
    augment
        The fit sees each window as it is and so changed, twice: it should hold for both.
    seed
        Draws windows, changes and folds.

    Raises
    ------
    StatisticsError
        If scikit-learn is not installed, or a label has fewer than two windows.
    """
    rng = np.random.default_rng([seed, 0x53544154])
    chosen = np.sort(rng.permutation(len(train))[:MOST_WINDOWS])
    count = int(labels.max()) + 1
    if (lacking := np.flatnonzero(np.bincount(labels[chosen], minlength=count) < 2)).size:
        raise StatisticsError(
            f"label {lacking[0]} has fewer than two training windows; label more, or leave the label out"
        )
    generator = torch.Generator(feed.device).manual_seed(int(rng.integers(2**31)))
    front_end = model.front_end
    own = contexts(front_end, feed, train[chosen], None, generator)
    changed = [contexts(front_end, feed, train[chosen], augment, generator) for _ in range(AUGMENTED_COPIES)]
    front_end.standardise(own)
    rows = [front_end.standardised(copy).cpu().numpy().astype(np.float64) for copy in [own, *changed]]
    fold_of, folds = assign_folds(labels, groups, seed)
    plain = _cross_fit(rows[:1], labels[chosen], fold_of[chosen], folds, count)
    robust = _cross_fit(rows, labels[chosen], fold_of[chosen], folds, count)
    # What holds for changed windows as well is worth more, unless too much of what tells the labels apart is lost.
    fit = robust if robust.macro_f1 >= plain.macro_f1 - TOLERATED else plain

    trust = 1.0 / fit_temperature(fit.unseen.astype(np.float32), labels[chosen])
    weight, bias = fit.whole
    assert model.statistics is not None
    model.statistics.weight.copy_(torch.from_numpy(trust * weight))
    model.statistics.bias.copy_(torch.from_numpy(trust * bias))
    of = "windows as they are" if fit is plain else "windows as they are and changed"
    return (
        f"statistics: fitted on {of}, alone they have a macro F1 of {100 * fit.macro_f1:.1f} % on groups not seen; "
        f"trusted {trust:.2f}-fold"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A linear recogniser, and what others, fitted without a fold each, say of that fold."""

    whole: tuple[Floats, Floats]  #: weight (labels, rows) and bias (labels,)
    unseen: Floats  #: (windows, labels), logits of windows as they are
    macro_f1: float


def _cross_fit(copies: list[Floats], labels: Indices, fold_of: Indices, folds: int, count: int) -> _Fit:
    """Of windows as they are, the first of `copies`, and changed, the others."""
    rows, of, folds_of = np.concatenate(copies), np.tile(labels, len(copies)), np.tile(fold_of, len(copies))
    parts = [_discriminant(rows[folds_of != fold], of[folds_of != fold], count) for fold in range(folds)]
    unseen = np.empty((len(labels), count))
    for fold, (weight, bias) in enumerate(parts):
        unseen[fold_of == fold] = copies[0][fold_of == fold] @ weight.T + bias
    found = scores(confusion_matrix(labels, unseen.argmax(axis=1), count))
    return _Fit(_discriminant(rows, of, count), unseen, found.macro_f1)


def statistics_logits(model: Recogniser, feed: Feed, indices: Indices) -> npt.NDArray[np.float32]:
    """What the statistics alone say of windows, (n, labels), at a share of 1."""
    if model.statistics is None:
        raise ValueError("a model without rows of context has no statistics to ask")
    rows = contexts(model.front_end, feed, indices, None, torch.Generator())
    with torch.inference_mode():
        found: npt.NDArray[np.float32] = model.statistics.logits(model.front_end.standardised(rows)).cpu().numpy()
    return found


def unlike_groups(data: WindowSet, rows: Indices) -> npt.NDArray[np.str_]:
    """What a fit must not have heard of a window it judges: the position where three are known, or the recording."""
    positions = data.positions[rows]
    known = np.unique(positions)
    spread = [len(np.unique(positions[data.labels[rows] == label])) for label in np.unique(data.labels[rows])]
    if len(known) >= 3 and "" not in known and min(spread) >= 2:
        return positions
    return data.recordings[rows]


def contexts(
    front_end: FrontEnd, feed: Feed, indices: Indices, augment: Augment | None, generator: torch.Generator
) -> Tensor:
    """Rows of context, not standardised, of windows as they are or changed: (n, context_rows)."""
    at_once = AT_ONCE[feed.device.type]
    parts = []
    with torch.no_grad():
        for start in range(0, len(indices), at_once):
            windows, lengths = feed(indices[start : start + at_once])
            if augment is not None:
                windows = augment_waveforms(windows, lengths, augment, generator)
            parts.append(front_end.context(windows, lengths))
    return torch.cat(parts)


def assign_folds(labels: Indices, groups: npt.NDArray[Any], seed: int, most: int = FOLDS) -> tuple[Indices, int]:
    """The fold of each window, and how many folds; a group is in one, labels are spread as evenly as that allows.

    The windows of a label that is in one group alone are parted all the same, in their order: without that group no fit
    would know the label.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise StatisticsError(
            "statistics and augmentations are tried with scikit-learn: pip install 'aewatch[train]', "
            "or do without them: front_end.context=none augment.audition=false"
        ) from error
    groups = _parted(labels, groups, most)
    folds = max(2, min(most, len(np.unique(groups)), int(np.bincount(labels)[np.unique(labels)].min())))
    fold_of = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels, groups)):
        fold_of[held_out] = fold
    return fold_of, folds


def _parted(labels: Indices, groups: npt.NDArray[Any], most: int) -> Indices:
    """Numbers of groups, (n,); a label that is in one alone has up to `most` of its own."""
    _, number = np.unique(groups, return_inverse=True)
    parted = number.astype(np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(np.unique(number[rows])) == 1:
            parted[rows] = parted.max() + 1 + np.arange(len(rows)) * most // len(rows)
    return parted


def _discriminant(rows: Floats, labels: Indices, count: int) -> tuple[Floats, Floats]:
    """Weight (count, rows) and bias (count,) of the logits; a label that is not there is as unlikely as can be."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    there = np.unique(labels)
    if len(there) < 2 or len(rows) <= len(there):  # nothing to tell apart, or nothing to tell it by
        return np.zeros((count, rows.shape[1])), np.where(np.isin(np.arange(count), there), 0.0, -20.0)
    fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(len(there), 1 / len(there)))
    fit.fit(rows, labels)
    weight, bias = np.zeros((count, rows.shape[1])), np.full(count, -20.0)
    coefficients, intercepts = fit.coef_, fit.intercept_
    if len(there) == 2:  # told as one difference
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight[there], bias[there] = coefficients, intercepts
    # Logits may be moved together; about zero they are best computed with.
    return weight - weight.mean(axis=0), bias - bias[there].mean()
