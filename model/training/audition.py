"""Which augmentations does the data bear? Each is tried on quick judges, in seconds, before a network is trained.

Where the level of a signal, its sign or its noise is what tells the labels apart, an augmentation that changes it makes
the windows say something else than their labels. A forest and a linear discriminant on the front end's rows of context
show it: fitted on changed windows beside the unchanged, they then do worse on unchanged ones that they have not seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from model.data.dataset import WindowSet
from model.front_end import FrontEnd
from model.metrics import Scores, confusion_matrix, scores
from model.training.feed import Feed
from model.training.recipe import Augment, Recipe
from model.training.recipe_choice import front_end_spec
from model.training.statistics_fit import assign_folds, contexts, unlike_groups

MOST_WINDOWS = 1_500
TREES = 100
#: What an augmentation may cost at least, in macro F1: forests differ by as much from seed to seed.
TOLERATED = 0.01

#: A judge whose accuracy is further than this below the other's has nothing to say.
COMPETENT = 0.05

Indices = npt.NDArray[np.int64]

#: Name in words → the recipe's fields that switch it off.
CANDIDATES: dict[str, dict[str, Any]] = {
    "gain": {"gain_db": 0.0},
    "polarity": {"polarity": False},
    "time shift": {"shift_share": 0.0},
    "random response": {"response_share": 0.0},
    "reverberation": {"reverb_share": 0.0},
    "noise": {"noise_share": 0.0},
}
_ALL_OFF: dict[str, Any] = {field: value for fields in CANDIDATES.values() for field, value in fields.items()}


def audition(data: WindowSet, train: Indices, recipe: Recipe, device: torch.device) -> tuple[Recipe, list[str]]:
    """The recipe without the augmentations that do harm on this data, and what was found, a line each.

    Each augmentation of the recipe is tried by itself, on up to `MOST_WINDOWS` training windows in three parts, none of
    which shares a group with another. It is left out where it costs either judge more macro F1 than `TOLERATED` and
    than the standard error of the accuracy. A recipe with `augment.audition` false, or with nothing to try, comes back
    as it is.

    Raises
    ------
    model.statistics_fit.StatisticsError
        If scikit-learn is not installed.
    """
    wanted = {
        name: fields
        for name, fields in CANDIDATES.items()
        if any(getattr(recipe.augment, field) != value for field, value in fields.items())
    }
    if not recipe.augment.audition or not wanted:
        return recipe, []
    rng = np.random.default_rng([recipe.training.seed, 0x415544])
    rows = np.sort(rng.permutation(train)[:MOST_WINDOWS])
    labels, count = data.labels[rows], len(data.label_names)
    fold_of, folds = assign_folds(labels, unlike_groups(data, rows), recipe.training.seed, most=3)
    front_end = FrontEnd(dataclasses.replace(front_end_spec(recipe), context="window")).to(device)
    feed = Feed(data, front_end.spec.min_samples, device)

    def measured(augment: Augment | None) -> npt.NDArray[np.float32]:
        generator = torch.Generator(device).manual_seed(recipe.training.seed)
        found: npt.NDArray[np.float32] = contexts(front_end, feed, rows, augment, generator).cpu().numpy()
        return found

    clean = measured(None)
    off = msgspec.structs.replace(recipe.augment, **_ALL_OFF)
    without = _held_out(clean, clean, labels, fold_of, folds, count)
    best = max(found.accuracy for found in without.values())
    competent = [judge for judge, found in without.items() if found.accuracy >= best - COMPETENT]
    tolerance = max(TOLERATED, math.sqrt(best * (1 - best) / len(rows)))
    dropped: dict[str, Any] = {}
    said = []
    for name, fields in wanted.items():
        alone = msgspec.structs.replace(off, **{field: _strong(recipe.augment, field) for field in fields})
        with_it = _held_out(clean, measured(alone), labels, fold_of, folds, count)
        harm = {judge: without[judge].macro_f1 - with_it[judge].macro_f1 for judge in competent}
        worst = max(harm, key=lambda judge: harm[judge])
        if harm[worst] > tolerance:
            dropped |= fields
            before, after = 100 * without[worst].macro_f1, 100 * with_it[worst].macro_f1
            said.append(f"augmentation: no {name}, {worst} went from {before:.1f} to {after:.1f} % by it")
    if not said:
        said = [f"augmentation: all of {', '.join(wanted)}; none does harm"]
    return msgspec.structs.replace(recipe, augment=msgspec.structs.replace(recipe.augment, **dropped)), said


def _strong(augment: Augment, field: str) -> Any:
    """As the recipe has it, but on every window: a share of them might hide what it does."""
    return 1.0 if field.endswith("_share") and field != "shift_share" else getattr(augment, field)


def _held_out(
    clean: npt.NDArray[np.float32],
    changed: npt.NDArray[np.float32],
    labels: Indices,
    fold_of: Indices,
    folds: int,
    count: int,
) -> dict[str, Scores]:
    """Scores on unchanged windows, of judges that were fitted on other groups' unchanged and changed ones."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import ExtraTreesClassifier

    from model.device import sensible_threads

    judges: dict[str, Callable[[int], Any]] = {
        "a forest": lambda _: ExtraTreesClassifier(
            TREES, max_features=0.3, class_weight="balanced", n_jobs=sensible_threads(), random_state=0
        ),
        "a linear discriminant": lambda known: LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.full(known, 1 / known)
        ),
    }
    found = {}
    deviation = clean.std(axis=0) + 1e-6
    for name, judge in judges.items():
        recognised = np.zeros_like(labels)
        for fold in range(folds):
            seen, unseen = fold_of != fold, fold_of == fold
            known = len(np.unique(labels[seen]))
            if known < 2:
                recognised[unseen] = labels[seen][0]
                continue
            fitted = judge(known)
            fitted.fit(np.concatenate([clean[seen], changed[seen]]) / deviation, np.tile(labels[seen], 2))
            recognised[unseen] = fitted.predict(clean[unseen] / deviation)
        found[name] = scores(confusion_matrix(labels, recognised, count))
    return found
