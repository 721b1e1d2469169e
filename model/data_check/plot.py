"""One picture of a data set: how much there is of what, how long, how loud, and of which frequencies."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.data_check.check import Report, clipped_samples, level
from model.data_check.clip_measures import SPECTRUM, ClipMeasures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN_CLIPS = 2_000  #: of a label; of more, evenly chosen ones are drawn
TOLD_LINES = 26
LINE = 64


def draw(report: Report, clips: Sequence[ClipMeasures], path: Path) -> None:
    """Write the picture; the file name's ending says in which format.

    Raises
    ------
    ValueError
        If the ending is no picture format, there is no clip to draw, or matplotlib is not installed.
    OSError
        If the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'aewatch[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not clips:
        raise ValueError(f"{path}: no clip could be read, so there is nothing to draw")
    by_label = {label.label: [clip for clip in clips if clip.clip.label == label.label] for label in report.labels}
    height = max(8.0, 3.0 + 0.5 * len(by_label))
    figure, axes = plt.subplots(2, 3, figsize=(17, height), layout="constrained")
    figure.suptitle(f"{report.data}: windows of {report.windows}")
    _draw_amounts(axes[0, 0], report)
    _draw_strip(axes[0, 1], by_label, "duration of a clip, s", lambda clip: clip.duration_s)
    if any(label.duration_s[2] > 10 * label.duration_s[0] for label in report.labels):
        axes[0, 1].set_xscale("log")
    else:
        axes[0, 1].set_xlim(left=0)
    _draw_strip(axes[0, 2], by_label, "level of a clip, dB of full scale (red: clipped)", level)
    _draw_spectra(axes[1, 0], by_label)
    _draw_places(axes[1, 1], by_label)
    _write_findings(axes[1, 2], report)
    try:
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)


def _draw_amounts(axes: Axes, report: Report) -> None:
    rows = np.arange(len(report.labels))
    left = np.zeros(len(rows))
    for part in report.parts:
        windows = np.array([label.parts[part].windows for label in report.labels], dtype=float)
        axes.barh(rows, windows, left=left, label=part or None)
        left += windows
    for row, label in enumerate(report.labels):
        axes.text(left[row], row, f" {label.total.windows}", va="center", fontsize="small")
    axes.margins(x=0.12)
    _name_rows(axes, [label.label for label in report.labels])
    axes.set_xlabel("windows")
    if any(report.parts):
        axes.legend(fontsize="small", ncols=min(len(report.parts), 5), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _draw_strip(
    axes: Axes, by_label: dict[str, list[ClipMeasures]], name: str, value: Callable[[ClipMeasures], float]
) -> None:
    rng = np.random.default_rng(0)
    for row, clips in enumerate(by_label.values()):
        drawn = clips[:: max(1, len(clips) // DRAWN_CLIPS)]
        if not drawn:
            continue
        values = [value(clip) for clip in drawn]
        colours = ["C3" if clipped_samples(clip) else "C0" for clip in drawn]
        axes.scatter(values, row + rng.uniform(-0.3, 0.3, len(drawn)), s=6, c=colours, alpha=0.5, linewidths=0)
        axes.plot([np.median(values)] * 2, [row - 0.38, row + 0.38], color="black", linewidth=1.5)
    _name_rows(axes, list(by_label))
    axes.set_xlabel(name)


def _draw_spectra(axes: Axes, by_label: dict[str, list[ClipMeasures]]) -> None:
    rates_hz = {clip.rate_hz for clips in by_label.values() for clip in clips}
    nyquist = max(rates_hz) / 2000 if len(rates_hz) == 1 else 1.0
    at = (np.arange(SPECTRUM) + 0.5) / SPECTRUM * nyquist
    for number, (label, clips) in enumerate(by_label.items()):
        shapes = [clip.spectrum / clip.spectrum.sum() for clip in clips if clip.spectrum.sum() > 0]
        if shapes:
            decibels = 10 * np.log10(np.stack(shapes).astype(np.float64) + 1e-12)
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            axes.plot(at, np.median(decibels, axis=0), label=label, linestyle=style, linewidth=1.2)
    axes.set_xlabel("frequency, kHz" if len(rates_hz) == 1 else "frequency, share of half the clip's rate")
    axes.set_ylabel("median share of a clip's power, dB")
    if len(by_label) <= 20:
        axes.legend(fontsize="x-small", ncols=2)


def _draw_places(axes: Axes, by_label: dict[str, list[ClipMeasures]]) -> None:
    """Clips of each label at each position, or from each sensor, or else recordings of each label."""
    for kind in ("position", "sensor"):
        names = sorted({getattr(clip.clip, kind) for clips in by_label.values() for clip in clips} - {""})
        if names:
            counts = np.zeros((len(by_label), len(names)))
            for row, clips in enumerate(by_label.values()):
                for clip in clips:
                    if (name := getattr(clip.clip, kind)) in names:
                        counts[row, names.index(name)] += 1
            image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
            axes.figure.colorbar(image, ax=axes, label="clips")
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small" if len(names) > 12 else "small")
            axes.set_xlabel(kind)
            axes.set_yticks(range(len(by_label)), list(by_label), fontsize="small")
            return
    axes.barh(range(len(by_label)), [len({clip.clip.recording for clip in clips}) for clips in by_label.values()])
    _name_rows(axes, list(by_label))
    axes.set_xlabel("recordings")


def _write_findings(axes: Axes, report: Report) -> None:
    axes.axis("off")
    lines: list[str] = []
    colours: list[str] = []
    for finding in report.findings:
        colour = {"error": "C3", "warning": "C1", "note": "0.4"}[finding.severity]
        wrapped = textwrap.wrap(f"{finding.severity}: {finding.what}", LINE, subsequent_indent="    ")
        lines += wrapped
        colours += [colour] * len(wrapped)
    if len(lines) > TOLD_LINES:
        lines[TOLD_LINES - 1 :] = ["…"]
    for row, line in enumerate(lines or ["nothing to remark"]):
        axes.text(
            0.0,
            1.0 - row / TOLD_LINES,
            line,
            color=(colours or ["black"])[min(row, len(colours) - 1)],
            transform=axes.transAxes,
            va="top",
            fontsize="small",
            family="monospace",
        )


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [textwrap.shorten(name, 24, placeholder="…") or name[:24] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
