"""An evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.evaluation.bootstrap import FEW_UNITS, LEVEL, Interval
from model.evaluation.evaluate import Evaluation, GroupResult, Results
from model.metrics import scores

WEAKEST_RECORDINGS = 10
MOST_GROUPS = 40  #: positions or sensors that are listed; of more, the weakest


def report(found: Evaluation) -> str:
    """All of it, in lines of ordinary length as far as the labels allow."""
    sections = [
        _facts(found),
        _summary(found),
        scores(np.array(found.results.confusion)).table(found.labels),
        _labels(found),
        *(_groups(found, what) for what in ("position", "sensor") if groups_of(found.results, what)),
        *([_weakest_recordings(found)] if found.results.by_recording else []),
        _rest(found),
    ]
    return "\n\n".join(sections)


def percent(share: float) -> str:
    """With two digits: the windows of a test part rarely bear more."""
    return f"{100 * share:.2f} %"


def interval(of: Interval) -> str:
    """The value and its range, for a share."""
    return f"{100 * of.value:.2f} % ({100 * of.low:.1f} to {100 * of.high:.1f})"


def points(of: Interval) -> str:
    """The value and its range, for a difference of two shares: percentage points, with their sign."""
    return f"{100 * of.value:+.2f} ({100 * of.low:+.1f} to {100 * of.high:+.1f})"


def verdict(difference: Interval) -> str:
    """In words, whether the bundle is better than the baseline for certain."""
    if difference.low > 0:
        return "better than the baseline"
    return "worse than the baseline" if difference.high < 0 else "not told apart from the baseline"


def interval_note(found: Evaluation) -> str:
    """What the ranges mean, and how far to trust them."""
    of = found.results.intervals
    if of.units == 1:
        return f"Ranges: none, for all is of one {of.unit.removesuffix('s')}; nothing can be said of others."
    note = f"Ranges: {100 * LEVEL:.0f} % percentile bootstrap over {of.units:,} {of.unit}."
    if of.accuracy.value == 1.0:
        # The rule of three (Hanley & Lippman-Hand, 1983): no resampling finds an error where there is none.
        wrong = 100 * min(1.0, 3 / of.units)
        note += f" No error among {of.units:,} {of.unit} also happens where {wrong:.1f} % are wrong."
    if of.units < FEW_UNITS:
        note += f" With so few {of.unit} they are narrower than the truth."
    elif of.unit == "windows":
        note += " Nobody knows the recordings; windows of one are alike, so the ranges are too narrow."
    return note


def groups_of(results: Results, what: str) -> list[GroupResult]:
    """By "position", "sensor" or "recording"; the weakest first where there are too many to list."""
    groups: list[GroupResult] = getattr(results, f"by_{what}")
    if len(groups) <= MOST_GROUPS:
        return groups
    return sorted(groups, key=lambda group: (group.accuracy, -group.windows))[:MOST_GROUPS]


def weakest_recordings(results: Results) -> list[GroupResult]:
    """Those with an error, the weakest first, of equally weak ones the longest."""
    wrong = [group for group in results.by_recording if group.accuracy < 1]
    return sorted(wrong, key=lambda group: (group.accuracy, -group.windows))[:WEAKEST_RECORDINGS]


def what_it_is_of(found: Evaluation) -> str:
    """Data set, part, and how many windows of how many recordings."""
    windows, recordings = (
        f"{count:,} {name}{'s' * (count != 1)}"
        for count, name in ((found.windows, "window"), (found.recordings, "recording"))
    )
    return f"{found.data}, {found.part}: {windows}{f' of {recordings}' if found.recordings else ''}"


def _facts(found: Evaluation) -> str:
    lines = [
        ("bundle", f"{found.model} {found.version}, {found.bundle}"),
        ("trained on", found.trained_on),
        ("data", what_it_is_of(found)),
        *(("note", note) for note in found.notes),
        *(("leakage", leak) for leak in found.leakage),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in lines)


def _summary(found: Evaluation) -> str:
    rows = [["", "accuracy", "macro-F1", "weakest recall"]]
    for name, results in (("bundle", found.results), ("baseline", found.baseline)):
        if results is not None:
            of = results.intervals
            weakest = f"{interval(of.weakest_recall)} {results.weakest_label}"
            rows.append([name, interval(of.accuracy), interval(of.macro_f1), weakest])
    if found.difference is not None:
        of = found.difference
        rows.append(["difference", points(of.accuracy), points(of.macro_f1), points(of.weakest_recall)])
    lines = [_aligned(rows, right_from=9)]
    if found.baseline is not None and found.difference is not None:
        lines.append(
            f"Baseline: {found.baseline.name}. In accuracy the bundle is {verdict(found.difference.accuracy)}."
        )
    return "\n".join([*lines, interval_note(found)])


def _labels(found: Evaluation) -> str:
    other = found.baseline
    rows = [["label", "windows", "precision", "recall", "F1", *(["baseline F1"] if other else [])]]
    for index, label in enumerate(found.results.labels):
        row = [label.label, f"{label.windows:,}", percent(label.precision), percent(label.recall), percent(label.f1)]
        rows.append([*row, *([percent(other.labels[index].f1)] if other else [])])
    weighted = f"F1 weighted by windows: {percent(found.results.weighted_f1)}"
    return f"{_aligned(rows)}\n{weighted}{f', baseline {percent(other.weighted_f1)}' if other else ''}"


def _groups(found: Evaluation, what: str) -> str:
    shown = groups_of(found.results, what)
    rows = [[what, "windows", "accuracy", *(["baseline"] if found.baseline else [])]]
    beside = {group.name: group.accuracy for group in getattr(found.baseline, f"by_{what}", [])}
    for group in shown:
        row = [group.name, f"{group.windows:,}", percent(group.accuracy)]
        rows.append([*row, *([percent(beside[group.name])] if found.baseline else [])])
    more = len(getattr(found.results, f"by_{what}")) - len(shown)
    return _aligned(rows) + (f"\nand {more} more, each at least as good" if more else "")


def _weakest_recordings(found: Evaluation) -> str:
    shown = weakest_recordings(found.results)
    if not shown:
        return "Every window of every recording is recognised."
    rows = [["weakest recordings", "windows", "accuracy"]]
    rows += [[group.name, f"{group.windows:,}", percent(group.accuracy)] for group in shown]
    return _aligned(rows)


def _rest(found: Evaluation) -> str:
    results, other, unknown, speed = found.results, found.baseline, found.unknown, found.speed

    def beside(name: str, digits: int, scale: float = 1.0, unit: str = "") -> str:
        value = f"{scale * getattr(results, name):.{digits}f}{unit}"
        return value if other is None else f"{value} (baseline {scale * getattr(other, name):.{digits}f}{unit})"

    others = (
        "" if unknown.accuracy_of_others is None else f"; of the others {percent(unknown.accuracy_of_others)} right"
    )
    lines = [
        (
            "calibration",
            f"expected error {beside('expected_calibration_error', 2, 100, ' %')}, negative log likelihood "
            f"{beside('negative_log_likelihood', 3)}, Brier score {beside('brier_score', 3)}",
        ),
        ("unknown", f"{percent(unknown.share)} of these windows called so ({unknown.kind}){others}"),
        (
            "speed",
            f"{speed.windows_per_s:,.1f} windows/s, median of {speed.repeats} ({speed.lowest:,.1f} to "
            f"{speed.highest:,.1f}), as many as {speed.sensors:,.1f} sensors give; on "
            f"{speed.device}, {speed.precision}",
        ),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in lines)


def _aligned(rows: Sequence[Sequence[str]], right_from: int = 1) -> str:
    """Columns of equal width, two spaces apart; those from `right_from` on stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column >= right_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
