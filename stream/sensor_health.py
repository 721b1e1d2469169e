"""The sensor's own health, from its windows' features and places: clipping, flat line, gaps, silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stream.alarm_state import SensorState, Track
from stream.alerts import Alert, Priority
from stream.episodes import Condition, ConditionRule, Moment, announce, open_episode, step
from stream.predictions import HitFeatures

CLIPPING = "sensor.clipping"
FLAT = "sensor.flat"
GAP = "sensor.gap"
SILENT = "sensor.silent"
HEALTH_CONDITIONS = (SILENT, GAP, CLIPPING, FLAT)

#: Clipping: 1 % of the samples in half of the last ten windows, so that one loud event is not called a sensor fault.
CLIPPING_RULE = ConditionRule(
    priority=Priority.MEDIUM,
    raise_threshold=0.01,
    clear_threshold=0.001,
    k=5,
    n=10,
    within_s=2.0,
    hit_k=3,
    hit_n=5,
    clear_after_s=5.0,
)
FLAT_RULE = ConditionRule(
    priority=Priority.HIGH, raise_threshold=0.5, clear_threshold=0.5, k=1, n=1, raise_after_s=1.0, clear_after_s=1.0
)
GAP_RULE = ConditionRule(
    priority=Priority.LOW,
    records_only=True,
    raise_threshold=0.5,
    clear_threshold=0.5,
    k=1,
    n=1,
    clear_after_s=0.0,
)
SILENT_RULE = ConditionRule(
    priority=Priority.HIGH, raise_threshold=0.5, clear_threshold=0.5, k=1, n=1, clear_after_s=0.0
)


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Which health conditions are watched, and from how much lost time on."""

    gap_s: float = 0.1  #: event time without a window, s; a hole shorter than this is not told
    silent_s: float = 10.0  #: from here on a hole is silence rather than a gap
    conditions: Mapping[str, ConditionRule] = field(
        default_factory=lambda: {SILENT: SILENT_RULE, GAP: GAP_RULE, CLIPPING: CLIPPING_RULE, FLAT: FLAT_RULE}
    )


def advance_health(
    state: SensorState, moment: Moment, before: Track | None, saturated: bool, rules: HealthRules
) -> list[Alert]:
    """Feed one window to the sensor's health conditions.

    Parameters
    ----------
    state
        Changed in place.
    before
        The last window of the same kind; None for the first one.
    saturated
        The device says that its input clipped, which the samples need not show.

    Returns
    -------
    list of Alert
        A hole before the window first, then what the window itself shows.
    """
    hole_ns = 0
    if before is not None and not moment.hit:
        hole_ns = max(0, moment.time_ns - before.end_ns)
    silent_ns = round(rules.silent_s * 1e9)
    is_silent = hole_ns > 0 and hole_ns >= silent_ns and SILENT in rules.conditions
    is_gap = not is_silent and hole_ns > 0 and hole_ns >= round(rules.gap_s * 1e9)
    alerts: list[Alert] = []
    for name, rule in rules.conditions.items():
        if moment.hit and name in (SILENT, GAP):
            continue
        shelved = name in state.shelves
        value, lost_ns = 0.0, 0
        if name == SILENT and is_silent and before is not None:
            alerts += _silence(state, rule, moment, before, hole_ns, silent_ns, shelved)
        elif name == GAP and is_gap:
            value, lost_ns = 1.0, hole_ns
        elif name == CLIPPING:
            value = clipped_share(moment.features, rule, saturated)
        elif name == FLAT and moment.features is not None and moment.features.flat:
            value = 1.0
        condition = state.conditions.get(name)
        if condition is None:
            if value < rule.raise_threshold:
                continue
            condition = state.conditions[name] = Condition()
        alerts += step(name, condition, rule, moment, value, shelved=shelved, lost_ns=lost_ns)
    return alerts


def clipped_share(features: HitFeatures | None, rule: ConditionRule, saturated: bool) -> float:
    """Share of clipped samples; what the device calls saturated reaches the rule's limit, whatever the samples say."""
    share = 0.0 if features is None else features.clipped_fraction
    return max(share, rule.raise_threshold) if saturated else share


def _silence(
    state: SensorState,
    rule: ConditionRule,
    moment: Moment,
    before: Track,
    hole_ns: int,
    silent_ns: int,
    shelved: bool,
) -> list[Alert]:
    """A silence that has just ended: raised when it was long enough, `step` then finds the sensor back.

    The episode is named after the last window before the silence, so that whoever sees it while it lasts would
    give it the same name.
    """
    condition = state.conditions.setdefault(SILENT, Condition())
    if condition.episode is not None:
        if condition.episode.held:
            condition.episode.more += 1
        condition.episode.lost_ns += hole_ns
        condition.episode.returned = False
        condition.quiet_ns = 0
        return []
    at_ns = before.end_ns + silent_ns
    episode = open_episode(SILENT, condition, rule, moment.sensor, before.epoch_ns, before.start_sample, at_ns)
    episode.lost_ns = hole_ns
    return announce(SILENT, condition, rule, moment, shelved, at_ns=at_ns, lost_ns=silent_ns)
