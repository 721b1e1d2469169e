"""How a producer's sensors are, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from producers.live.sensor_meter import SensorReport

#: (name, field of the report, help, counts up only)
SENSOR_METRICS = (
    ("sensor_rate_hertz", "rate_hz", "samples a second that the source says", False),
    ("sensor_measured_rate_hertz", "measured_rate_hz", "samples a second that came in the last 10 s", False),
    ("sensor_lag_seconds", "lag_s", "from the last sample's time to now", False),
    ("sensor_last_frame_seconds", "last_frame_s", "since the last frame came", False),
    ("sensor_frames", "frames", "frames that came", True),
    ("sensor_samples", "samples", "samples that came", True),
    ("sensor_gaps", "gaps", "places where the device lost samples", True),
    ("sensor_lost_samples", "lost_samples", "samples that the device lost", True),
    ("sensor_epochs", "epochs", "starts of the device", True),
    (
        "sensor_time_corrections",
        "corrections",
        "epochs begun in a running device, as its samples were ahead of the clock",
        True,
    ),
    ("sensor_clipped_ratio", "clipped_share", "samples of the last 10 s at the ends of the converter's range", False),
    ("sensor_flat", "flat", "1 where samples have not changed for long", False),
    ("sensor_spooled_frames", "spooled_frames", "frames that wait in the spool for the broker now", False),
    ("sensor_drift_ppm", "drift_ppm", "by how much the device's clock is slow (positive) or fast", False),
    (
        "sensor_clock_offset_seconds",
        "offset_s",
        "by how much the device's clock has fallen behind since its start",
        False,
    ),
)


def metrics_text(reports: Iterable[SensorReport], totals: dict[str, tuple[float, str, bool]]) -> bytes:
    """All of it in the text format.

    Parameters
    ----------
    reports
        One for each sensor.
    totals
        Of the producer as a whole: name → (value, help, counts up only).
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(lambda: _metrics(list(reports), totals)))
    return generate_latest(registry)


class _Collector:
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect


def _metrics(reports: list[SensorReport], totals: dict[str, tuple[float, str, bool]]) -> Iterator[Metric]:
    for name, field, told, counts in SENSOR_METRICS:
        kind = CounterMetricFamily if counts else GaugeMetricFamily
        family = kind(f"aewatch_{name}", told, labels=("sensor", "source"))
        for report in reports:
            if (value := getattr(report, field)) is not None:
                family.add_metric((report.sensor, report.source), float(value))
        yield family
    states = GaugeMetricFamily("aewatch_sensor_up", "1 where the source runs", labels=("sensor", "source"))
    for report in reports:
        states.add_metric((report.sensor, report.source), float(report.state == "running"))
    yield states
    for name, (value, told, counts) in totals.items():
        kind = CounterMetricFamily if counts else GaugeMetricFamily
        family = kind(f"aewatch_producer_{name}", told)
        family.add_metric((), value)
        yield family
