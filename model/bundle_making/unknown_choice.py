"""Which unknown score serves best: each label left out of a training in turn, and then told from the others or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from model.architecture import UnknownKind
from model.data.dataset import WindowSet
from model.unknown import UnknownScore

KINDS: tuple[UnknownKind, ...] = get_args(UnknownKind)


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a trained network says of n windows."""

    logits: npt.NDArray[np.float32]  #: (n, labels)
    embeddings: npt.NDArray[np.float32]  #: (n, embedding)


#: Trains on the first set, chooses by the second, and says what the network makes of each of the others.
TrainAndEmbed = Callable[[WindowSet, WindowSet, Sequence[WindowSet]], Sequence[Heard]]


@dataclass(frozen=True, slots=True, eq=False)
class UnknownTable:
    """AUROC of each kind for each label that was left out; 0.5 is guessing."""

    kinds: tuple[UnknownKind, ...]
    left_out: tuple[str, ...]
    auroc: npt.NDArray[np.float64]  #: (kinds, left_out)

    @property
    def best(self) -> UnknownKind:
        """The kind with the largest mean over the labels left out."""
        return self.kinds[int(self.auroc.mean(axis=1).argmax())]

    def table(self) -> str:
        """In Markdown, the best kind first."""
        rows = [["unknown score", *self.left_out, "mean", "smallest"]]
        for index in np.argsort(-self.auroc.mean(axis=1), kind="stable"):
            found = self.auroc[index]
            rows.append([self.kinds[index], *(f"{value:.3f}" for value in (*found, found.mean(), found.min()))])
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def auroc(known: npt.NDArray[Any], strange: npt.NDArray[Any]) -> float:
    """Share of all pairs in which the strange window scores higher than the known one; a tie counts half.

    The area under the curve of detections against false alarms, by its ranks (Mann & Whitney, 1947).

    Parameters
    ----------
    known, strange
        (n,) and (m,), scores; larger is stranger.

    Raises
    ------
    ValueError
        If either has none.
    """
    if not len(known) or not len(strange):
        raise ValueError(f"{len(known)} known and {len(strange)} strange windows; it takes some of each")
    ranks = rankdata(np.concatenate([known, strange]))[len(known) :]
    return float((ranks.sum() - len(strange) * (len(strange) + 1) / 2) / (len(known) * len(strange)))


def leave_one_class_out(
    train: WindowSet,
    validation: WindowSet,
    test: WindowSet,
    train_and_embed: TrainAndEmbed,
    kinds: Sequence[UnknownKind] = KINDS,
    on_label: Callable[[str], None] = lambda label: None,
) -> UnknownTable:
    """For each label: train without it, and see how well each score tells its test windows from those of the others.

    Scores are fitted on the validation windows of the known labels.

    Parameters
    ----------
    train, validation, test
        With the same labels; of each, `train` and `validation` hold two windows at least, `test` one.
    train_and_embed
        Is given the first two without the label, and then three sets to embed: the known validation windows, the known
        test windows, and the strange ones, whose one label is the one left out.
    on_label
        Told each label before its training begins.

    Raises
    ------
    ValueError
        If there are fewer than three labels: with one left out, no two would be left to train on.
    """
    names = test.label_names
    if len(names) < 3:
        raise ValueError(f"{len(names)} labels ({', '.join(names)}); to leave one out it takes three at least")
    found = np.empty((len(kinds), len(names)))
    for number, name in enumerate(names):
        on_label(name)
        heard_train, heard_validation, heard_test = (without(part, number) for part in (train, validation, test))
        strange = only(test, number)
        fitted, known, unheard = train_and_embed(heard_train, heard_validation, (heard_validation, heard_test, strange))
        for row, kind in enumerate(kinds):
            score = UnknownScore(kind, fitted.embeddings.shape[1], len(names) - 1)
            score.fit(fitted.embeddings, heard_validation.labels)
            found[row, number] = auroc(strangeness(score, known), strangeness(score, unheard))
    return UnknownTable(tuple(kinds), names, found)


def strangeness(score: UnknownScore, heard: Heard) -> npt.NDArray[np.float32]:
    """(n,), larger is stranger."""
    with torch.inference_mode():
        device = score.means.device
        embeddings, logits = (torch.from_numpy(array).to(device) for array in (heard.embeddings, heard.logits))
        scored: npt.NDArray[np.float32] = score(embeddings, logits).cpu().numpy()
    return scored


def without(windows: WindowSet, label: int) -> WindowSet:
    """The windows of all other labels, in a set that has never heard of this one."""
    kept = windows.select(windows.labels != label)
    names = tuple(name for number, name in enumerate(windows.label_names) if number != label)
    return _relabelled(kept, kept.labels - (kept.labels > label), names)


def only(windows: WindowSet, label: int) -> WindowSet:
    """The windows of this label, in a set that knows no other."""
    kept = windows.select(windows.labels == label)
    return _relabelled(kept, np.zeros_like(kept.labels), (windows.label_names[label],))


def _relabelled(windows: WindowSet, labels: npt.NDArray[np.int64], names: tuple[str, ...]) -> WindowSet:
    return replace(windows, labels=labels, label_names=names)
