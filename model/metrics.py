"""Confusion matrix and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Shares from 0 to 1; per label in the order of the labels. A share of nothing counts as 0."""

    confusion: Counts  #: (labels, labels), rows are the true labels
    accuracy: float
    precision: Shares
    recall: Shares
    f1: Shares

    @property
    def support(self) -> Counts:
        """Windows of each label."""
        windows: Counts = self.confusion.sum(axis=1)
        return windows

    @property
    def macro_f1(self) -> float:
        """Mean of F1 over the labels that have windows: each counts the same however rare it is."""
        there = self.support > 0
        return float(self.f1[there].mean()) if there.any() else 0.0

    @property
    def weighted_f1(self) -> float:
        """Mean of F1 over the windows: each label counts by how many it has."""
        return float(_share(self.f1 @ self.support, self.support.sum()))

    @property
    def weakest_recall(self) -> float:
        """The smallest recall of the labels that have windows."""
        there = self.support > 0
        return float(self.recall[there].min()) if there.any() else 0.0

    def as_card(self, labels: Sequence[str]) -> dict[str, Any]:
        """For the metrics of a bundle's card, rounded to four digits."""
        per_label = {
            name: {
                "precision": round(float(self.precision[i]), 4),
                "recall": round(float(self.recall[i]), 4),
                "f1": round(float(self.f1[i]), 4),
            }
            for i, name in enumerate(labels)
        }
        return {
            "windows": int(self.confusion.sum()),
            "accuracy": round(self.accuracy, 4),
            "macro_f1": round(self.macro_f1, 4),
            "per_label": per_label,
            "confusion": self.confusion.tolist(),
        }

    def table(self, labels: Sequence[str]) -> str:
        """A Markdown table: the confusion matrix with recall at the right and precision below."""
        rows = [["true \\ recognised", *labels, "recall"]]
        rows += [
            [name, *map(str, self.confusion[i].tolist()), f"{100 * self.recall[i]:.2f} %"]
            for i, name in enumerate(labels)
        ]
        precisions = [f"{100 * value:.2f} %" for value in self.precision]
        rows.append(["precision", *precisions, f"accuracy {100 * self.accuracy:.2f} %"])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def confusion_matrix(true: npt.NDArray[Any], recognised: npt.NDArray[Any], labels: int) -> Counts:
    """How often each true label (row) was recognised as each label (column): (labels, labels) int64.

    `true` and `recognised` are (n,) integers from 0 to labels - 1.
    """
    flat = np.bincount(true.astype(np.int64) * labels + recognised.astype(np.int64), minlength=labels * labels)
    return flat.reshape(labels, labels).astype(np.int64)


def scores(confusion: npt.NDArray[Any]) -> Scores:
    """Accuracy, and precision, recall and F1 per label, from a confusion matrix whose rows are the true labels."""
    matrix = np.asarray(confusion, dtype=np.int64)
    hits = np.diag(matrix).astype(np.float64)
    precision = _share(hits, matrix.sum(axis=0))
    recall = _share(hits, matrix.sum(axis=1))
    f1 = _share(2 * precision * recall, precision + recall)
    return Scores(matrix, float(_share(hits.sum(), matrix.sum())), precision, recall, f1)


def _share(part: Any, whole: Any) -> Shares:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    share: Shares = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return share
