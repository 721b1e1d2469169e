"""The demo without Kafka and Redis: a bundle on long simulated streams, every event and every alert accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.demo_report import Arrival, Injected, Report, SensorTraffic, Totals, reconcile
from deploy.simulation import Plan, source_of
from model.engine import Engine
from producers.propagation import Position
from producers.simulator import RATE_HZ, interval_of, plan_events
from stream.alarms import AlarmRules
from stream.classify import classify
from stream.predictions import Prediction
from stream.windows import WindowSpec


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """What a bundle made of the streams."""

    report: Report  #: alerts held against events; its counts of frames and messages mean nothing here
    events: tuple[Injected, ...]
    predictions: tuple[Prediction, ...]  #: of every window

    @property
    def unknown_scores(self) -> npt.NDArray[np.float64]:
        """Of every window."""
        return np.array([prediction.unknown_score for prediction in self.predictions])

    def as_card(self) -> dict[str, int]:
        """For the metrics of a bundle's card."""
        return {
            "windows": len(self.predictions),
            "events": len(self.events),
            "events_recognised": len(self.report.matched),
            "events_missed": len(self.report.missed),
            "alerts_without_cause": len(self.report.causeless),
        }


def rehearse(
    engine: Engine, positions: Sequence[Position], duration_s: float, seed: int, spacing_s: float = 8.0
) -> Rehearsal:
    """Run `engine` and the default alarm rules over a plan like the demo's at `positions`."""
    names = [position.name for position in positions]
    events = plan_events(seed, names, duration_s, RATE_HZ, spacing_s=spacing_s)
    plan = Plan(seed, duration_s, RATE_HZ, tuple(positions), events)
    by_name = dict(zip(names, positions, strict=True))
    injected = []
    for event in events:
        interval = interval_of(event, by_name[event.sensor])
        injected.append(Injected(event.sensor, event.kind, interval.first_sample, interval.last_sample, RATE_HZ))
    card = engine.card
    spec = WindowSpec(card.window_samples, card.hop_samples, card.window_rate_hz)
    rules = AlarmRules.for_labels(card.roles)
    predictions: list[Prediction] = []
    arrivals: list[Arrival] = []
    for batch in classify(source_of(plan, frame_s=0.5, epoch_ns=0), engine, spec, rules):
        predictions += batch.predictions
        arrivals += [Arrival(alert, alert.time_ns) for alert in batch.alerts]
    traffic = {name: SensorTraffic() for name in names}
    report = reconcile(injected, arrivals, traffic, spec, Totals(0, 0, 0))
    return Rehearsal(report, tuple(injected), tuple(predictions))
