"""How a window agent and a worker are, as Prometheus metrics. docs/operations.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from stream.health import Health

if TYPE_CHECKING:  # neither role loads the other's libraries
    from stream.window_agent import AgentSnapshot
    from stream.worker import WorkerSnapshot


class OfTopic(Protocol):
    """A partition of a topic."""

    @property
    def partition(self) -> int:
        """Its number."""


Partition = TypeVar("Partition", bound=OfTopic)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric."""

    name: str
    told: str
    value: float | None = None  #: of a metric without a label; None where there is nothing to say
    by: str = ""  #: the label, if there is one …
    values: Mapping[str, float] = field(default_factory=dict)  #: … and what it is for each of its values
    counts: bool = False  #: counts up only


def worker_metrics(now: WorkerSnapshot, health: Health, watched: Mapping[str, tuple[float, float]]) -> bytes:
    """Of a worker.

    Parameters
    ----------
    watched
        `stream.watchdog.Watchdog.running`.
    """
    counts = now.counts
    figures = [
        *_common(now.uptime_s, health, watched, now.kafka_answers),
        *_lag(now.lag, now.lag_s),
        Figure("redis_up", "1 where Redis answers and takes alerts", float(now.redis_answers)),
        Figure("windows", "windows settled", counts.windows, counts=True),
        Figure("batches", "batches settled", counts.batches, counts=True),
        Figure("predictions", "predictions published", counts.predictions, counts=True),
        Figure("alerts", "alerts published", counts.alerts, counts=True),
        Figure("redelivered", "windows that had been applied before", counts.redelivered, counts=True),
        Figure("conflicts", "decisions taken anew, somebody else was faster", counts.conflicts, counts=True),
        Figure("dead_letters", "windows that could not be used", by="reason", values=counts.rejects, counts=True),
        Figure("inference_seconds", "time with the model", counts.inference_s, counts=True),
        Figure("in_flight_batches", "batches between the fetch and the commit", now.in_flight),
        Figure("sensors", "sensors whose alarm state is in memory", now.sensors),
        Figure("live_event_age_seconds", "from the newest event time of live sensors to now", now.event_age_s),
        Figure("live_delay_seconds", "from the oldest window of the last live batch to its commit", now.delay_s),
    ]
    model = {
        "version": now.model.version,
        "name": now.model.name,
        "unknown_kind": now.model.unknown.kind,
        "device": now.device,
    }
    return _text("aewatch_worker", figures, {"model": ("the model that judges", model)})


def agent_metrics(now: AgentSnapshot, health: Health, watched: Mapping[str, tuple[float, float]]) -> bytes:
    """Of a window agent; `watched` as for a worker."""
    frames, output = now.frames, now.output
    figures = [
        *_common(now.uptime_s, health, watched, now.kafka_answers),
        *_lag(now.lag, now.lag_s),
        Figure("messages", "messages of frames read", frames.messages, counts=True),
        Figure("message_bytes", "their size", frames.message_bytes, counts=True),
        Figure("redelivered", "messages that came twice", frames.redelivered, counts=True),
        Figure("skipped_offsets", "offsets that never came", frames.skipped_offsets, counts=True),
        Figure("windows", "windows that the broker has", output.windows_written, counts=True),
        Figure("window_bytes", "their size", output.window_bytes_written, counts=True),
        Figure("dead_letters", "parts of messages turned away", by="reason", values=frames.rejects, counts=True),
        Figure("windows_refused", "windows larger than the topic takes", output.windows_refused, counts=True),
        Figure(
            "windowing",
            "frames by what became of them; samples, windows and epochs where it says so",
            by="what",
            values={item.name: getattr(frames.windows, item.name) for item in fields(frames.windows)},
            counts=True,
        ),
        Figure("holds_given_up", "silent sensors that no longer hold the commit", frames.holds_given_up, counts=True),
        Figure("sensors", "sensors in memory", frames.sensors),
        Figure("pending_messages", "messages read and not committable yet", now.messages_pending),
        Figure("in_flight_bytes", "windows on the way to the broker", now.in_flight_bytes),
    ]
    return _text("aewatch_window", figures, {})


def _common(
    uptime_s: float, health: Health, watched: Mapping[str, tuple[float, float]], kafka_answers: bool
) -> Iterator[Figure]:
    yield Figure("uptime_seconds", "since the start", uptime_s)
    yield Figure("alive", "0 where it must be started again", float(health.alive))
    yield Figure("ready", "0 where it gets nothing done", float(health.ready))
    yield Figure("kafka_up", "1 where the broker answers", float(kafka_answers))
    running = {what: for_s for what, (for_s, _) in watched.items()}
    limits = {what: limit_s for what, (_, limit_s) in watched.items()}
    yield Figure("watchdog_seconds", "since its begin or last sign of life", by="what", values=running)
    yield Figure("watchdog_limit_seconds", "after so long the process is ended", by="what", values=limits)


def _lag(lag: Mapping[Partition, int], lag_s: Mapping[Partition, float]) -> Iterator[Figure]:
    messages = {str(one.partition): float(count) for one, count in lag.items()}
    ages_s = {str(one.partition): age_s for one, age_s in lag_s.items()}
    yield Figure("lag_messages", "messages that wait", by="partition", values=messages)
    yield Figure("lag_seconds", "age of the last message taken, where more wait", by="partition", values=ages_s)
    yield Figure("partitions", "partitions assigned, at the last look", len(lag))


class _Collector:
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect


def _text(prefix: str, figures: list[Figure], infos: Mapping[str, tuple[str, dict[str, str]]]) -> bytes:
    def collect() -> Iterator[Metric]:
        for figure in figures:
            kind = CounterMetricFamily if figure.counts else GaugeMetricFamily
            family = kind(f"{prefix}_{figure.name}", figure.told, labels=(figure.by,) if figure.by else ())
            if figure.value is not None:
                family.add_metric((), figure.value)
            for label, value in figure.values.items():
                family.add_metric((label,), value)
            yield family
        for name, (told, values) in infos.items():
            yield InfoMetricFamily(f"{prefix}_{name}", told, value=values)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    ProcessCollector(registry=registry)  # memory, CPU, start time, open files: under their usual names
    return generate_latest(registry)
