"""Does what came out of a demo add up with what went in? Pure: events, counts and alerts in, a verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.alerts import Alert, Transition
from stream.windows import WindowSpec


@dataclass(frozen=True, slots=True)
class Injected:
    """An event that the simulator put in, and where it stands out from the background (samples, inclusive)."""

    sensor: str
    kind: str
    first_sample: int
    last_sample: int
    rate_hz: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """An alert as a subscriber got it."""

    alert: Alert
    received_ns: int  #: the subscriber's clock, ns UTC


@dataclass(slots=True)
class SensorTraffic:
    """What was seen of one sensor on the topics."""

    frames: int = 0
    samples: int = 0
    predictions: set[tuple[int, int]] = field(default_factory=set)  #: window identities
    published: list[tuple[int, int]] = field(default_factory=list)  #: (first sample after a frame, its timestamp in ms)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all sensors."""

    acknowledged_frames: int  #: as the publisher counted them
    window_messages: int  #: in `ae.windows`
    dead_letters: int  #: messages in `ae.deadletter`


@dataclass(slots=True)
class Report:
    """The verdict; `problems` is empty when everything adds up."""

    matched: list[tuple[Injected, Arrival]] = field(default_factory=list)
    missed: list[Injected] = field(default_factory=list)
    causeless: list[Alert] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def expected_windows(samples: int, spec: WindowSpec) -> int:
    """Windows that `samples` consecutive samples since the epoch make, at the model's own rate."""
    return max(0, (samples - spec.length) // spec.hop + 1)


def reconcile(
    injected: Sequence[Injected],
    arrivals: Sequence[Arrival],
    traffic: Mapping[str, SensorTraffic],
    spec: WindowSpec,
    totals: Totals,
) -> Report:
    """Hold alerts against events and every count against the one before it.

    An alert that raises or records a condition belongs to the event of that kind on that sensor which its windows
    overlap; each event must have exactly one.
    """
    report = Report()
    open_events = list(injected)
    for arrival in arrivals:
        alert = arrival.alert
        if alert.transition not in (Transition.RAISED, Transition.RECORDED):
            continue
        event = next((event for event in open_events if _caused(event, alert)), None)
        if event is None:
            report.causeless.append(alert)
            continue
        open_events.remove(event)
        report.matched.append((event, arrival))
        latency_ms = _latency_ms(arrival, traffic[alert.sensor])
        if latency_ms is not None:
            report.latencies_ms.append(latency_ms)
    report.missed = open_events
    _check(report, arrivals, traffic, spec, totals)
    return report


def _caused(event: Injected, alert: Alert) -> bool:
    return (
        alert.sensor == event.sensor
        and alert.condition == event.kind
        and alert.first_sample <= event.last_sample
        and event.first_sample < alert.start_sample + alert.source_count
    )


def _latency_ms(arrival: Arrival, traffic: SensorTraffic) -> float | None:
    """From the publication of the last sample of the deciding window to the alert at the subscriber."""
    end_sample = arrival.alert.start_sample + arrival.alert.source_count
    timestamp_ms = next((timestamp for frame_end, timestamp in traffic.published if frame_end >= end_sample), None)
    return None if timestamp_ms is None else arrival.received_ns / 1e6 - timestamp_ms


def _check(
    report: Report,
    arrivals: Sequence[Arrival],
    traffic: Mapping[str, SensorTraffic],
    spec: WindowSpec,
    totals: Totals,
) -> None:
    say = report.problems.append
    for event in report.missed:
        say(f"{event.kind} on {event.sensor} at sample {event.first_sample} raised no alert")
    for alert in report.causeless:
        say(
            f"{alert.condition} on {alert.sensor} at sample {alert.first_sample} was {alert.transition} without a cause"
        )
    ids = [arrival.alert.id for arrival in arrivals]
    if len(set(ids)) != len(ids):
        say(f"{len(ids) - len(set(ids))} alerts came more than once")
    frames = sum(sensor.frames for sensor in traffic.values())
    if frames != totals.acknowledged_frames:
        say(f"{totals.acknowledged_frames} frames were acknowledged, {frames} are in Kafka")
    expected = {name: expected_windows(sensor.samples, spec) for name, sensor in traffic.items()}
    if totals.window_messages != sum(expected.values()):
        say(f"the frames make {sum(expected.values())} windows, {totals.window_messages} are in Kafka")
    for name, sensor in traffic.items():
        if len(sensor.predictions) != expected[name]:
            say(f"{name}: {expected[name]} windows, {len(sensor.predictions)} of them have a prediction")
    if totals.dead_letters:
        say(f"{totals.dead_letters} messages in the dead-letter topic, `aewatch dead-letters` shows why")
