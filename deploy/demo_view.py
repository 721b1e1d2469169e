"""What a demo looks like in a terminal while it runs, and its summary."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.demo_report import Arrival, Injected, Report, SensorTraffic, Totals
from stream.alerts import Alert, Transition
from stream.predictions import Prediction

COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "green"}
SHOWN_ALERTS = 8


@dataclass(slots=True)
class Progress:
    """What has been seen so far; filled by the demo's own subscribers."""

    duration_s: float
    traffic: dict[str, SensorTraffic] = field(default_factory=dict)
    latest: dict[str, Prediction] = field(default_factory=dict)
    active: dict[str, dict[str, Alert]] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    begun_s: float = 0.0  #: monotonic
    _rates: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=20))

    def arrived(self, alert: Alert) -> None:
        """Note an alert at the moment at which a subscriber has it."""
        self.arrivals.append(Arrival(alert, time.time_ns()))
        episodes = self.active.setdefault(alert.sensor, {})
        if alert.transition is Transition.RAISED:
            episodes[alert.episode] = alert
        elif alert.transition is Transition.CLEARED:
            episodes.pop(alert.episode, None)

    def rates(self) -> tuple[float, float]:
        """Samples and predictions a second over the last few seconds."""
        samples = sum(sensor.samples for sensor in self.traffic.values())
        predictions = sum(len(sensor.predictions) for sensor in self.traffic.values())
        self._rates.append((time.monotonic(), samples, predictions))
        then, samples_then, predictions_then = self._rates[0]
        passed_s = self._rates[-1][0] - then
        if passed_s <= 0:
            return 0.0, 0.0
        return (samples - samples_then) / passed_s, (predictions - predictions_then) / passed_s


def screen(progress: Progress) -> RenderableType:
    """Sensors, throughput and the latest alerts."""
    samples_s, predictions_s = progress.rates()
    passed_s = time.monotonic() - progress.begun_s if progress.begun_s else 0.0
    head = Text.assemble(
        ("aewatch demo  ", "bold"),
        f"{min(passed_s, progress.duration_s):4.0f} of {progress.duration_s:.0f} s   ",
        f"{samples_s / 1e6:5.2f} million samples/s in   {predictions_s:5.0f} windows/s inferred   ",
        f"{len(progress.arrivals)} alerts",
    )
    sensors = Table(expand=True, box=None, pad_edge=False)
    for title, justify in (("sensor", "left"), ("peak dB_AE", "right"), ("sounds like", "left"), ("alarm", "left")):
        sensors.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name in sorted(progress.traffic):
        prediction = progress.latest.get(name)
        if prediction is None:
            sensors.add_row(name, "", "", "")
            continue
        raised = progress.active.get(name, {}).values()
        sensors.add_row(
            name,
            f"{prediction.features.peak_db_ae:.0f}",
            Text(
                f"{prediction.label} {prediction.probabilities[prediction.label]:.2f}",
                style="dim" if prediction.label == "background" else "bold",
            ),
            Text(", ".join(alert.condition for alert in raised), style="red"),
        )
    alerts = Table(expand=True, box=None, pad_edge=False, title="alerts", title_justify="left")
    for title in ("at", "sensor", "what", "priority", "sure", "peak"):
        alerts.add_column(title)
    for arrival in progress.arrivals[-SHOWN_ALERTS:]:
        alerts.add_row(*_alert_cells(arrival.alert))
    return Group(head, Text(), sensors, Text(), alerts)


def _alert_cells(alert: Alert) -> Iterable[RenderableType]:
    return (
        time.strftime("%H:%M:%S", time.gmtime(alert.time_ns / 1e9)) + f".{alert.time_ns // 10**8 % 10}",
        alert.sensor,
        Text(f"{alert.condition} {alert.transition}", style=COLOURS.get(alert.priority, "")),
        str(alert.priority),
        f"{alert.probability:.2f}",
        f"{alert.features.peak_db_ae:.0f} dB" if alert.features else "",
    )


def line(progress: Progress) -> str:
    """The same in one line, for a log."""
    samples_s, predictions_s = progress.rates()
    passed_s = time.monotonic() - progress.begun_s
    return (
        f"{passed_s:5.1f} s  {samples_s / 1e6:.2f} million samples/s  {predictions_s:.0f} windows/s  "
        f"{len(progress.arrivals)} alerts"
    )


def summary(report: Report, injected: list[Injected], progress: Progress, totals: Totals) -> RenderableType:
    """Counts, every event with its alert, latencies, and whatever does not add up."""
    counts = Table(box=None, show_header=False, pad_edge=False)
    traffic = progress.traffic.values()
    for name, value in (
        ("frames", f"{sum(sensor.frames for sensor in traffic):,}"),
        ("samples", f"{sum(sensor.samples for sensor in traffic):,}"),
        ("windows", f"{totals.window_messages:,}"),
        ("predictions", f"{sum(len(sensor.predictions) for sensor in traffic):,}"),
        ("events injected", str(len(injected))),
        (
            "alerts raised or recorded",
            f"{len(report.matched) + len(report.causeless)}, {len(report.matched)} with a cause",
        ),
        ("dead letters", str(totals.dead_letters)),
        ("latency, last sample published to alert received", latency_text(report.latencies_ms)),
    ):
        counts.add_row(name, value)
    events = Table(box=None, pad_edge=False, title="\nevents", title_justify="left")
    for title in ("sensor", "at s", "injected", "alert"):
        events.add_column(title)
    found = {id(event): arrival.alert for event, arrival in report.matched}
    for event in sorted(injected, key=lambda event: event.first_sample):
        alert = found.get(id(event))
        told = f"{alert.transition} {alert.id}, {alert.probability:.2f}" if alert else "none"
        events.add_row(
            event.sensor, f"{event.first_sample / event.rate_hz:.1f}", event.kind, Text(told, "" if alert else "red")
        )
    verdict = (
        Text("\nEverything adds up.", style="bold green")
        if not report.problems
        else Text("\nThis does not add up:\n  " + "\n  ".join(report.problems), style="bold red")
    )
    return Group(events, Text(), counts, verdict)


def latency_text(latencies_ms: list[float]) -> str:
    """Median and 99th percentile."""
    if not latencies_ms:
        return "no alert"
    ordered = sorted(latencies_ms)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"p50 {statistics.median(ordered):.0f} ms, p99 {p99:.0f} ms ({len(ordered)} alerts)"
