"""Results of trials as a Markdown table, one row for each recipe, and the ratio of their errors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deploy.experiments.trial import RESULT, Result, read_result
from model.metrics import scores


def results_in(out: Path) -> list[Result]:
    """Every trial below `out` that has ended, in the order of their folders."""
    return [read_result(path.parent) for path in sorted(out.glob(f"*/{RESULT}"))]


def table(results: Iterable[Result], *, pooled: bool) -> str:
    """Scores of each recipe: mean and range over its cases.

    Parameters
    ----------
    pooled
        The cases of one seed are folds of one data set: add their confusion matrices up, so that every window counts
        once, and take mean and range over the seeds. A case is named "seed S" or "seed S fold F".
    """
    rows = [["", "trials", "accuracy", "macro F1", "weakest recall", "calibration error", "training"]]
    by_recipe: dict[str, list[Result]] = {}
    for result in results:
        by_recipe.setdefault(result.what, []).append(result)
    for what, found in by_recipe.items():
        measured = [_scores(group) for group in _groups(found, pooled)]
        accuracy, macro_f1, weakest = (np.array(column) for column in zip(*measured, strict=True))
        rows.append(
            [
                what,
                str(len(found)),
                _range(accuracy),
                _range(macro_f1),
                _range(weakest),
                "" if what == "forest" else _range(np.array([one.calibration_error for one in found])),
                f"{np.median([one.training_s for one in found]):.0f} s",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def errors_left(results: Iterable[Result], what: str, of: str) -> float | None:
    """Errors of one recipe as a share of another's, over all their common cases; None without such."""
    wrong: dict[str, dict[str, float]] = {}
    for result in results:
        wrong.setdefault(result.case, {})[result.what] = 1.0 - result.accuracy
    both = [case for case in wrong.values() if what in case and of in case]
    if not both or not (whole := sum(case[of] for case in both)):
        return None
    return sum(case[what] for case in both) / whole


def _groups(results: list[Result], pooled: bool) -> list[list[Result]]:
    if not pooled:
        return [[result] for result in results]
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.case.partition(" fold ")[0], []).append(result)
    return list(groups.values())


def _scores(group: list[Result]) -> tuple[float, float, float]:
    found = scores(np.sum([result.confusion for result in group], axis=0))
    return found.accuracy, found.macro_f1, found.weakest_recall


def _range(values: np.ndarray) -> str:
    mean = f"{100 * values.mean():.1f} %"
    return mean if len(values) == 1 else f"{mean} ({100 * values.min():.1f}–{100 * values.max():.1f})"
