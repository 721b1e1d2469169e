"""A picture of what was classified: waveform, mel spectrogram, class probabilities and alerts over time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.bundle import BundleCard
from stream.alerts import Alert, Transition
from stream.classify import Classified
from stream.predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stream.records import Window

ENVELOPE_POINTS = 64  # a window's waveform is drawn as so many minima and maxima
DRAWN_COLUMNS = 900
SPECTRUM_COLUMNS = 16  # and its spectrogram as so many columns


@dataclass(slots=True)
class _Sensor:
    times_s: list[npt.NDArray[np.float64]] = field(default_factory=list)
    low_v: list[npt.NDArray[np.float64]] = field(default_factory=list)
    high_v: list[npt.NDArray[np.float64]] = field(default_factory=list)
    columns_s: list[npt.NDArray[np.float64]] = field(default_factory=list)
    columns: list[npt.NDArray[np.float32]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


class Picture:
    """Collects what a picture needs, in memory bounded by a few hundred numbers a window; one picture a sensor."""

    def __init__(self, card: BundleCard) -> None:
        from model.front_end import FrontEnd

        self._card = card
        self._front_end = FrontEnd(card.front_end)
        self._sensors: dict[str, _Sensor] = defaultdict(_Sensor)

    def add(self, batch: Classified) -> None:
        """Take in one batch."""
        for window, prediction in zip(batch.windows, batch.predictions, strict=True):
            sensor = self._sensors[window.sensor]
            sensor.predictions.append(prediction)
            self._add_window(sensor, window)
        for alert in batch.alerts:
            self._sensors[alert.sensor].alerts.append(alert)

    def _add_window(self, sensor: _Sensor, window: Window) -> None:
        import torch

        start_s = float(window.start_sample / window.source_rate_hz)
        duration_s = float(window.source_count / window.source_rate_hz)
        volts = window.samples.astype(np.float64) * window.volts_per_count
        points = min(ENVELOPE_POINTS, len(volts))
        edges = np.linspace(0, len(volts), points, endpoint=False).astype(int)
        sensor.times_s.append(start_s + edges / len(volts) * duration_s)
        sensor.low_v.append(np.minimum.reduceat(volts, edges))
        sensor.high_v.append(np.maximum.reduceat(volts, edges))
        with torch.inference_mode():
            microvolts = torch.from_numpy((volts * 1e6).astype(np.float32))[None]
            mel = self._front_end.log_mel(microvolts)[0].numpy() * np.float32(10 / np.log(10))
        columns = min(SPECTRUM_COLUMNS, mel.shape[1])
        edges = np.linspace(0, mel.shape[1], columns, endpoint=False).astype(int)
        sensor.columns_s.append(start_s + edges / mel.shape[1] * duration_s)
        sensor.columns.append(np.maximum.reduceat(mel, edges, axis=1))

    def write(self, path: Path) -> list[Path]:
        """One file a sensor: `path` itself, or with several sensors `<stem>-<n><suffix>`.

        Raises
        ------
        ValueError
            If the file name's ending is no picture format, or there is nothing to draw.
        """
        import matplotlib

        matplotlib.use("Agg")
        if not self._sensors:
            raise ValueError(f"{path}: no windows, so there is nothing to draw")
        written = []
        for number, (name, sensor) in enumerate(self._sensors.items()):
            target = path if len(self._sensors) == 1 else path.with_stem(f"{path.stem}-{number}")
            self._draw(name, sensor, target)
            written.append(target)
        return written

    def _draw(self, name: str, sensor: _Sensor, target: Path) -> None:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(
            4, 1, figsize=(12, 9), sharex=True, height_ratios=(2, 2, 2, 1), layout="constrained"
        )
        figure.suptitle(f"{name}   model {self._card.name} {self._card.version}")
        order = np.argsort(np.concatenate(sensor.times_s), kind="stable")
        times_s = np.concatenate(sensor.times_s)[order]
        axes[0].fill_between(
            times_s,
            np.concatenate(sensor.low_v)[order] * 1e3,
            np.concatenate(sensor.high_v)[order] * 1e3,
            step="post",
            linewidth=0.4,
            edgecolor="C0",
        )
        axes[0].set_ylabel("waveform, mV")
        self._draw_spectrogram(axes[1], sensor)
        self._draw_probabilities(axes[2], sensor)
        _draw_alerts(axes[3], sensor)
        axes[3].set_xlabel("time since the epoch, s")
        axes[3].set_xlim(times_s[0], times_s[-1])
        figure.savefig(target, dpi=110)
        plt.close(figure)

    def _draw_spectrogram(self, axes: Axes, sensor: _Sensor) -> None:
        times_s = np.concatenate(sensor.columns_s)
        order = np.argsort(times_s, kind="stable")
        mel = np.concatenate(sensor.columns, axis=1)[:, order]
        times_s = times_s[order]
        if len(times_s) > DRAWN_COLUMNS:
            # A burst is one column among thousands; a picture has fewer, and would leave it out.
            edges = np.linspace(0, len(times_s), DRAWN_COLUMNS, endpoint=False).astype(int)
            mel, times_s = np.maximum.reduceat(mel, edges, axis=1), times_s[edges]
        low, high = np.percentile(mel, (2, 99.95))
        axes.pcolormesh(times_s, np.arange(mel.shape[0]), mel, shading="nearest", vmin=low, vmax=high, rasterized=True)
        axes.set_ylabel("mel spectrogram, bin")

    def _draw_probabilities(self, axes: Axes, sensor: _Sensor) -> None:
        times_s = [(p.start_sample + p.source_count / 2) / p.source_rate_hz for p in sensor.predictions]
        for label in self._card.labels:
            values = [prediction.probabilities[label.name] for prediction in sensor.predictions]
            style: dict[str, Any] = {"color": "0.7", "zorder": 0} if label.role == "background" else {}
            axes.plot(times_s, values, marker=".", markersize=3, linewidth=1, label=label.name, **style)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("probability")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_alerts(axes: Axes, sensor: _Sensor) -> None:
    conditions = sorted({alert.condition for alert in sensor.alerts})
    rate_hz = sensor.predictions[0].source_rate_hz
    colours = {Transition.RAISED: "C3", Transition.RECORDED: "C2", Transition.CLEARED: "0.5"}
    for alert in sensor.alerts:
        at_s = alert.start_sample / rate_hz
        row = conditions.index(alert.condition)
        marker = "v" if alert.transition is Transition.CLEARED else "^"
        axes.plot(at_s, row, marker=marker, color=colours.get(alert.transition, "C1"), markersize=8)
    axes.set_yticks(range(len(conditions)), conditions)
    axes.set_ylim(-0.6, max(0.6, len(conditions) - 0.4))
    axes.set_ylabel("alerts" if conditions else "no alerts")
