"""The pictures of an evaluation and of a training: confusion, reliability, bars of labels and positions, curves.

Each is a figure of the width of a phone. `svg` makes it part of a page, whose style then gives the colours, so that it
is readable on light and on dark; `save` makes it a file of its own.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from model.evaluation.evaluate import Evaluation, GroupResult, Results
from model.evaluation.report import groups_of
from model.training.history import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = ParamSpec("Drawn")

WIDTH_IN = 4.8
DPI = 160  #: of a picture file
NUMBERED_CELLS = 16  #: a confusion matrix of more labels is drawn without its numbers
NAMED_CELLS = 50  #: and of more than this without its names
MOST_LABELS = 24  #: that have bars; of more, the weakest
LONGEST_NAME = 24

#: What a colour is for → the colour on paper. A page replaces each by a variable of that name.
COLOURS = {
    "ink": "#1c2733",
    "paper": "#fdfdfc",
    "muted": "#5f6b77",
    "line": "#d8dde2",
    "accent": "#1d6a8a",
    "second": "#8a94a0",
    "warn": "#b9503a",
}
_STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a label is a name, not a formula
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "aewatch",
}


class PlotError(ValueError):
    """Pictures cannot be drawn or written; the message says why."""


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """In the style of these pictures, which is that of no others."""

    @functools.wraps(draw)
    def styled(*args: Drawn.args, **kwargs: Drawn.kwargs) -> Figure:
        with _matplotlib().rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError("pictures need matplotlib: pip install 'aewatch[plot]'") from error
    return matplotlib


def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for a page; `name` keeps its inner names apart from those of others."""
    text = io.StringIO()
    with _matplotlib().rc_context(_STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    # The page's own font; its size stays, for the figure is laid out by it.
    element = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit", element)
    element = re.sub(r"font: ([\d.]+px) inherit", r"font-size: \1", element)
    for variable, colour in COLOURS.items():
        element = element.replace(colour, f"var(--{variable})")
    return element.strip()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a picture on a light ground, in the format of the file name's ending.

    Raises
    ------
    PlotError
        If the ending is no format, or the file cannot be written.
    """
    try:
        with _matplotlib().rc_context(_STYLE):
            figure.savefig(path, dpi=DPI, facecolor=COLOURS["paper"])
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: {error}") from error


@styled
def confusion(results: Results, labels: Sequence[str]) -> Figure:
    """How often each label (row) was taken for each (column), as shares of the row, with counts where there is room."""
    count = len(labels)
    side = min(WIDTH_IN, 1.9 + 0.55 * count)
    figure, axes = new_figure(WIDTH_IN, max(2.0, side if count <= NUMBERED_CELLS else WIDTH_IN))
    from matplotlib.patches import Rectangle

    size = max(5.5, min(8.5, 84 / count))
    for row, counts in enumerate(results.confusion):
        total = sum(counts)
        for column, windows in enumerate(counts):
            share = windows / total if total else 0.0
            colour = COLOURS["accent" if row == column else "warn"]
            axes.add_patch(
                Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=colour, alpha=0.04 + 0.9 * share, lw=0)
            )
            if count <= NUMBERED_CELLS and windows:
                ink = COLOURS["paper" if share > 0.55 else "ink"]
                text = f"{100 * share:.1f} %\n{windows:,}" if count <= 6 else f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink, linespacing=1.35)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    names = [short(label) if count <= NAMED_CELLS else "" for label in labels]
    tilted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if count > 3 else {}
    axes.set_xticks(range(count), names, fontsize=size, **tilted)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.tick_params(length=0)
    for side_name in ("left", "bottom"):
        axes.spines[side_name].set_visible(False)
    axes.set_xlabel("recognised" if count <= 6 or count > NUMBERED_CELLS else "recognised, % of the true label")
    axes.set_ylabel("true")
    return figure


@styled
def reliability(results: Results, baseline: Results | None) -> Figure:
    """Share recognised rightly against the probability said, and how many windows say so much."""
    figure, (upper, lower) = new_figure(WIDTH_IN, 3.9, rows=2, heights=(3.4, 1.0), sharex=True)
    upper.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    upper.text(0.06, 0.1, "as sure as right", rotation=31, color=COLOURS["muted"], fontsize=7.5, ha="left", va="bottom")
    for of, colour, name in ((baseline, "second", "baseline"), (results, "accent", "bundle")):
        if of is None:
            continue
        bins = [found for found in of.reliability if found.windows]
        most = max(found.windows for found in bins)
        x, y = [found.confidence for found in bins], [found.accuracy for found in bins]
        error = f"{name}, expected error {100 * of.expected_calibration_error:.1f} %"
        upper.plot(x, y, color=COLOURS[colour], linewidth=1.4, label=error, zorder=2)
        sizes = [12 + 60 * (found.windows / most) for found in bins]
        upper.scatter(x, y, s=sizes, color=COLOURS[colour], linewidths=0, zorder=3)
    upper.set_ylim(-0.02, 1.04)
    upper.set_ylabel("recognised rightly")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    total = sum(found.windows for found in results.reliability)
    middles = [(found.low + found.high) / 2 for found in results.reliability]
    shares = [found.windows / total for found in results.reliability]
    lower.bar(middles, shares, width=0.9 / len(middles), color=COLOURS["accent"])
    lower.set_xlim(0, 1.01)
    lower.set_ylabel("windows")
    lower.set_xlabel("probability of the label recognised")
    for axes in (upper, lower):
        _percents(axes, "y")
        axes.grid(axis="y")
    _percents(lower, "x")
    return figure


@styled
def label_bars(results: Results, baseline: Results | None) -> Figure:
    """Recall and precision of each label; the baseline's as a stroke. Of very many, the weakest."""
    shown = list(range(len(results.labels)))
    if len(shown) > MOST_LABELS:
        shown = sorted(shown, key=lambda index: results.labels[index].f1)[:MOST_LABELS]
    figure, axes = new_figure(WIDTH_IN, 0.75 + 0.42 * len(shown))
    for row, index in enumerate(shown):
        label, other = results.labels[index], baseline.labels[index] if baseline else None
        for offset, name, alpha in ((-0.19, "recall", 1.0), (0.19, "precision", 0.5)):
            value = getattr(label, name)
            axes.barh(row + offset, value, height=0.34, color=COLOURS["accent"], alpha=alpha, linewidth=0)
            axes.text(1.02, row + offset, f"{100 * value:.1f} %", va="center", fontsize=7.5, color=COLOURS["ink"])
            if other is not None:
                _stroke(axes, getattr(other, name), row + offset, 0.4)
    _bar_frame(axes, [short(results.labels[index].label) for index in shown])
    _bar_legend(axes, {"recall": 1.0, "precision": 0.5}, baseline is not None)
    return figure


@styled
def group_bars(found: Evaluation, what: str) -> Figure:
    """Accuracy at each position, or of each sensor; the baseline's as a stroke. Of very many, the weakest."""
    groups: list[GroupResult] = groups_of(found.results, what)
    beside = {group.name: group.accuracy for group in getattr(found.baseline, f"by_{what}", [])}
    figure, axes = new_figure(WIDTH_IN, 0.75 + 0.26 * max(2, len(groups)))
    for row, group in enumerate(groups):
        axes.barh(row, group.accuracy, height=0.62, color=COLOURS["accent"], linewidth=0)
        text = f"{100 * group.accuracy:.1f} % of {group.windows:,}"
        axes.text(1.02, row, text, va="center", fontsize=7.5, color=COLOURS["ink"])
        if group.name in beside:
            _stroke(axes, beside[group.name], row, 0.72)
    _bar_frame(axes, [short(group.name) for group in groups])
    _bar_legend(axes, {"accuracy": 1.0}, found.baseline is not None)
    return figure


@styled
def curves(history: Sequence[Epoch]) -> Figure:
    """Loss and accuracy over the epochs of a training, with the best one marked."""
    figure, (upper, lower) = new_figure(WIDTH_IN, 3.9, rows=2, heights=(1, 1), sharex=True)
    epochs = [epoch.epoch for epoch in history]
    best = [epoch for epoch in history if epoch.best]
    lines = (
        (upper, "training", "second", [epoch.loss for epoch in history]),
        (upper, "validation", "accent", [epoch.validation.loss for epoch in history]),
        (lower, "training", "second", [epoch.train_accuracy for epoch in history]),
        (lower, "validation", "accent", [epoch.validation.accuracy for epoch in history]),
        (lower, "weakest recall", "warn", [epoch.validation.weakest_recall for epoch in history]),
    )
    marker = "o" if len(epochs) < 3 else ""
    for axes, name, colour, values in lines:
        axes.plot(epochs, values, color=COLOURS[colour], linewidth=1.3, marker=marker, markersize=3, label=name)
    for axes in (upper, lower):
        axes.grid(axis="y")
        if best:
            axes.axvline(best[-1].epoch, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    upper.set_ylabel("loss")
    if all(value > 0 for epoch in history for value in (epoch.loss, epoch.validation.loss)):
        upper.set_yscale("log")
        for axis_ticks in (upper.yaxis.set_major_formatter, upper.yaxis.set_minor_formatter):
            axis_ticks(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else "")
    lower.set_ylabel("accuracy, recall")
    lower.set_ylim(None, 1.02)
    _percents(lower, "y")
    lower.set_xlabel(f"epoch{f'; the best is {best[-1].epoch}' if best else ''}")
    from matplotlib.ticker import MaxNLocator

    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.legend(loc="lower right", borderaxespad=0.2)
    return figure


def new_figure(
    width: float, height: float, rows: int = 1, heights: Sequence[float] = (1,), sharex: bool = False
) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, 1, height_ratios=heights, sharex=sharex)


def _bar_frame(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    _percents(axes, "x")


def _bar_legend(axes: Axes, shades: dict[str, float], baseline: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [
        Patch(facecolor=COLOURS["accent"], alpha=alpha, linewidth=0, label=name) for name, alpha in shades.items()
    ]
    if baseline:
        marks.append(
            Line2D([], [], color=COLOURS["ink"], linewidth=0, marker="|", markersize=9, mew=1.6, label="baseline")
        )
    axes.legend(
        handles=marks, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(marks), borderaxespad=0.2, handlelength=1.2
    )


def _stroke(axes: Axes, value: float, row: float, height: float) -> None:
    axes.plot([value, value], [row - height / 2, row + height / 2], color=COLOURS["ink"], linewidth=1.6, zorder=4)


def _percents(axes: Axes, which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
