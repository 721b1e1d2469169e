"""Predictions as the demo model's windows would give them, for the tests of everything after the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from stream.alarms import AlarmRules, SensorState, advance
from stream.alerts import Alert
from stream.predictions import HitFeatures, Prediction
from stream.records import Flags

RATE_HZ = 500_000
LENGTH = 65_536
HOP = 32_768
LENGTH_NS = LENGTH * 2_000
HOP_NS = HOP * 2_000
S = 1_000_000_000
EPOCH_NS = 1_700_000_000 * S
SENSOR = "plant1/pump3/ch0"
NO_FLAGS = Flags(0)
LABELS = {
    "background": "background",
    "pencil_lead_break": "calibration",
    "friction": "fault",
    "knock": "fault",
    "drop": "fault",
}
RULES = AlarmRules.for_labels(LABELS)


def features(*, clipped_fraction: float = 0.0, flat: bool = False) -> HitFeatures:
    return HitFeatures(62.5, 41.0, 120.0, 900.0, 17, 3.5, 2.25, clipped_fraction, flat)


def window(
    number: int,
    *,
    sensor: str = SENSOR,
    epoch_ns: int = EPOCH_NS,
    unknown: bool = False,
    flags: Flags = NO_FLAGS,
    clipped_fraction: float = 0.0,
    flat: bool = False,
    **probabilities: float,
) -> Prediction:
    """Continuous window `number` of the grid; probabilities of the classes named, the rest is background."""
    start = number * HOP
    shares = {name: probabilities.get(name, 0.0) for name in LABELS}
    shares["background"] = max(0.0, 1.0 - sum(probabilities.values()))
    return Prediction(
        sensor=sensor,
        epoch_ns=epoch_ns,
        start_sample=start,
        source_count=LENGTH,
        time_ns=epoch_ns + start * 2_000,
        end_time_ns=epoch_ns + (start + LENGTH) * 2_000,
        source_rate_hz=float(RATE_HZ),
        flags=int(flags),
        probabilities=shares,
        unknown_score=7.0 if unknown else 0.5,
        unknown=unknown,
        model_version="abc123",
        features=features(clipped_fraction=clipped_fraction, flat=flat),
    )


def hit(at_s: float, *, flags: Flags = NO_FLAGS, **probabilities: Any) -> Prediction:
    """A hit of 2 ms, `at_s` after the epoch."""
    start = round(at_s * RATE_HZ)
    time_ns = EPOCH_NS + start * 2_000
    return msgspec.structs.replace(
        window(0, flags=Flags.HIT | flags, **probabilities),
        start_sample=start,
        source_count=1_000,
        time_ns=time_ns,
        end_time_ns=time_ns + 2_000_000,
    )


def run(predictions: Iterable[Prediction], rules: AlarmRules = RULES, state: SensorState | None = None) -> list[Alert]:
    """Alerts of one sensor's windows."""
    state = SensorState() if state is None else state
    return [alert for prediction in predictions for alert in advance(state, prediction, rules)]


def told(alerts: Iterable[Alert]) -> list[tuple[str, str]]:
    """The gist of alerts: condition and transition."""
    return [(alert.condition, alert.transition.value) for alert in alerts]
