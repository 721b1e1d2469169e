"""From predictions to alerts: which conditions a sensor has, and how one window moves them. Pure, on event time.

The state machine of a single condition is `stream.episodes`, the sensor's own health `stream.sensor_health`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

import msgspec

from stream.alarm_state import BadState, SensorState, Track, decode_state, encode_state
from stream.alerts import Alert, Priority
from stream.episodes import Condition, ConditionRule, Moment, RulesError, close, step
from stream.operator_actions import (
    EpisodeNotOpen,
    NotShelved,
    OperatorError,
    UnknownCondition,
    acknowledge,
    end_expired_shelves,
    shelve,
    unshelve,
)
from stream.predictions import Prediction
from stream.records import Flags
from stream.sensor_health import HEALTH_CONDITIONS, HealthRules, advance_health

__all__ = [
    "AlarmRules",
    "BadState",
    "ConditionRule",
    "EpisodeNotOpen",
    "NotShelved",
    "OperatorError",
    "Role",
    "RulesError",
    "SensorState",
    "UnknownCondition",
    "acknowledge",
    "advance",
    "decode_state",
    "encode_state",
    "shelve",
    "unshelve",
]

UNKNOWN = "unknown"


class Role(StrEnum):
    """What a class of the model means to the plant."""

    BACKGROUND = "background"  #: nothing happens: no alert ever
    CALIBRATION = "calibration"  #: made on purpose (pencil-lead break): recorded, once a burst
    FAULT = "fault"  #: somebody must act


FAULT_RULE = ConditionRule()
#: A pencil-lead break lies in one or two windows: one very sure window is enough, and a pause separates two breaks.
CALIBRATION_RULE = ConditionRule(
    priority=Priority.INFO,
    records_only=True,
    raise_threshold=0.8,
    clear_threshold=0.5,
    k=1,
    n=1,
    clear_after_s=0.25,
    max_raises=0,
)
#: "Unknown" is a weaker word than the name of a fault, so it takes more windows to say it, of hits too.
UNKNOWN_RULE = ConditionRule(
    priority=Priority.LOW, raise_threshold=0.5, clear_threshold=0.5, k=3, n=5, within_s=2.0, hit_k=3, hit_n=5
)


@dataclass(frozen=True, slots=True)
class AlarmRules:
    """What is watched on every sensor. `AlarmRules.for_labels` makes them from a model's labels."""

    classes: Mapping[str, ConditionRule]  #: classes of the model that are told of, in the order of their alerts
    unknown: ConditionRule | None = UNKNOWN_RULE
    health: HealthRules = field(default_factory=HealthRules)
    unknown_vetoes: bool = True  #: a window that is "unknown" does not help to raise any class

    @property
    def conditions(self) -> list[str]:
        """Names of all conditions watched."""
        return [*self.health.conditions, *self.classes, *([UNKNOWN] if self.unknown else [])]

    @classmethod
    def for_labels(cls, labels: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> AlarmRules:
        """Rules for a model's labels, with a plant's own settings over the defaults.

        Parameters
        ----------
        labels
            Name of each class to its role: background, calibration or fault.
        settings
            `faults`: fields of `ConditionRule` for every fault class; `conditions`: for one condition each, by
            name, and `enabled` (false: not watched); `unknown_vetoes`, `gap_s`, `silent_s`. Texts are taken for
            numbers where they are such, as environment variables give them.

        Raises
        ------
        RulesError
            Naming the setting, what it holds, and what is allowed.
        """
        given = dict(settings or {})
        faults = _table(given.pop("faults", {}), "alarms.faults")
        own = {
            name: _table(values, f"alarms.conditions.{name}")
            for name, values in _table(given.pop("conditions", {}), "alarms.conditions").items()
        }
        roles = {name: _role(name, role) for name, role in labels.items()}
        defaults = HealthRules()
        health_settings = {key: given.pop(key) for key in ("gap_s", "silent_s") if key in given}
        vetoes = _convert(given.pop("unknown_vetoes", True), bool, "alarms.unknown_vetoes")
        if given:
            raise RulesError(
                f"alarms.{next(iter(given))}: no such setting; there are conditions, faults, gap_s, silent_s, "
                "unknown_vetoes"
            )
        watched: dict[str, ConditionRule] = {}
        for name, role in roles.items():
            if role == Role.FAULT:
                watched[name] = _changed(FAULT_RULE, faults, "alarms.faults")
            elif role == Role.CALIBRATION:
                watched[name] = CALIBRATION_RULE
        watched[UNKNOWN] = UNKNOWN_RULE
        watched |= defaults.conditions
        for name, changes in own.items():
            if name not in watched:
                reason = "is background, which raises nothing" if name in roles else "is no condition"
                raise RulesError(f"alarms.conditions.{name}: {name!r} {reason}; there are {', '.join(watched)}")
            enabled = _convert(changes.pop("enabled", True), bool, f"alarms.conditions.{name}.enabled")
            rule = _changed(watched[name], changes, f"alarms.conditions.{name}")
            if enabled:
                watched[name] = rule
            else:
                del watched[name]
        return cls(
            classes={name: rule for name, rule in watched.items() if name in roles},
            unknown=watched.get(UNKNOWN),
            health=HealthRules(
                **{
                    key: _seconds(health_settings.get(key, getattr(defaults, key)), f"alarms.{key}")
                    for key in ("gap_s", "silent_s")
                },
                conditions={name: watched[name] for name in HEALTH_CONDITIONS if name in watched},
            ),
            unknown_vetoes=vetoes,
        )


def advance(state: SensorState, prediction: Prediction, rules: AlarmRules) -> list[Alert]:
    """Move a sensor's alarms on by one window.

    A window that is not after the last one applied (of its kind: continuous or hit) changes nothing, so delivering
    windows again is harmless. The alerts depend on the sequence of windows alone, not on how it was cut.

    Parameters
    ----------
    state
        Of this sensor, changed in place; a new sensor begins with `SensorState()`.

    Returns
    -------
    list of Alert
        In the order in which subscribers are to see them.

    Raises
    ------
    ValueError
        If the prediction is of another sensor.
    """
    if not state.sensor:
        state.sensor = prediction.sensor
    if state.sensor != prediction.sensor:
        raise ValueError(f"a window of {prediction.sensor} cannot move the alarms of {state.sensor}")
    flags = Flags(prediction.flags)
    hit = Flags.HIT in flags
    if state.has_applied(prediction.position, hit=hit):
        return []
    before = state.hits if hit else state.windows
    moment = _moment(prediction, before, flags, watched=hit and state.windows is not None)
    track = Track(
        epoch_ns=prediction.epoch_ns,
        start_sample=prediction.start_sample,
        source_count=prediction.source_count,
        end_ns=moment.end_ns if before is None or moment.new_epoch else max(before.end_ns, moment.end_ns),
        count=moment.ordinal,
        model_version=prediction.model_version,
    )
    if hit:
        state.hits = track
    else:
        state.windows = track
    alerts = end_expired_shelves(state, moment.time_ns)
    alerts += advance_health(state, moment, before, Flags.SATURATED in flags, rules.health)
    alerts += _advance_classes(state, prediction, moment, rules, test_pulse=Flags.TEST_PULSE in flags)
    alerts += _end_unwatched(state, moment, rules)
    for name in [name for name, condition in state.conditions.items() if condition == _NORMAL]:
        del state.conditions[name]
    return alerts


_NORMAL = Condition()


def _moment(prediction: Prediction, before: Track | None, flags: Flags, *, watched: bool) -> Moment:
    """The window as the state machine sees it; `watched`: continuous windows tell what was between the hits."""
    new_epoch = before is None or before.epoch_ns != prediction.epoch_ns
    end_ns = max(prediction.end_time_ns, prediction.time_ns)
    reached_ns = prediction.time_ns if before is None or new_epoch else before.end_ns
    return Moment(
        sensor=prediction.sensor,
        epoch_ns=prediction.epoch_ns,
        start_sample=prediction.start_sample,
        source_count=prediction.source_count,
        time_ns=prediction.time_ns,
        end_ns=end_ns,
        hit=Flags.HIT in flags,
        ordinal=1 if before is None else before.count + 1,
        fresh_ns=max(0, end_ns - max(prediction.time_ns, reached_ns)),
        idle_ns=0 if watched else max(0, prediction.time_ns - reached_ns),
        new_epoch=new_epoch,
        late=Flags.HISTORICAL in flags,
        unknown_score=prediction.unknown_score,
        model_version=prediction.model_version,
        features=prediction.features,
    )


def _advance_classes(
    state: SensorState, prediction: Prediction, moment: Moment, rules: AlarmRules, *, test_pulse: bool
) -> list[Alert]:
    alerts: list[Alert] = []
    sound = not (rules.unknown_vetoes and prediction.unknown)
    for name, rule in rules.classes.items():
        probability = prediction.probabilities.get(name)
        # What the device did to itself is no fault of the plant; a model without the class says nothing of it.
        if probability is None or (test_pulse and not rule.records_only):
            continue
        condition = state.conditions.get(name)
        if condition is None:
            if not (sound and probability >= rule.raise_threshold):
                continue
            condition = state.conditions[name] = Condition()
        alerts += step(
            name,
            condition,
            rule,
            moment,
            probability,
            counts=sound,
            shelved=name in state.shelves,
            probability=probability,
        )
    if rules.unknown is not None and not test_pulse:
        unknown = state.conditions.get(UNKNOWN)
        if unknown is None and prediction.unknown:
            unknown = state.conditions[UNKNOWN] = Condition()
        if unknown is not None:
            value = 1.0 if prediction.unknown else 0.0
            alerts += step(UNKNOWN, unknown, rules.unknown, moment, value, shelved=UNKNOWN in state.shelves)
    return alerts


def _end_unwatched(state: SensorState, moment: Moment, rules: AlarmRules) -> list[Alert]:
    """Episodes of conditions that the rules no longer know must not stay open for ever."""
    alerts: list[Alert] = []
    watched = rules.conditions
    if state.known != watched:
        state.known = watched
    for name in [name for name in state.conditions if name not in watched]:
        alerts += close(name, state.conditions[name], moment, "no rule watches this condition any more")
        del state.conditions[name]
    return alerts


def _role(name: str, role: str) -> Role:
    if name == UNKNOWN or name in HEALTH_CONDITIONS:
        raise RulesError(f"the model has a class {name!r}, which is the name of a condition of its own; rename it")
    try:
        return Role(role)
    except ValueError:
        raise RulesError(f"class {name!r} has the role {role!r}; roles are {', '.join(Role)}") from None


def _table(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise RulesError(f"{where} is {values!r}; a table of settings is wanted")
    return dict(values)


def _changed(rule: ConditionRule, changes: Mapping[str, Any], where: str) -> ConditionRule:
    allowed = [entry.name for entry in fields(ConditionRule) if entry.name != "records_only"]
    for key in changes:
        if key not in allowed:
            raise RulesError(f"{where}.{key}: no such setting; there are {', '.join([*allowed, 'enabled'])}")
    try:
        return msgspec.convert(asdict(rule) | dict(changes), ConditionRule, strict=False)
    except (msgspec.ValidationError, UnicodeError, RulesError) as error:
        raise RulesError(f"{where}: {error}") from error


def _convert(value: Any, wanted: type[bool], where: str) -> bool:
    try:
        return msgspec.convert(value, wanted, strict=False)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise RulesError(f"{where}: {error}") from error


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = msgspec.convert(value, float, strict=False)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise RulesError(f"{where}: {error}") from error
    if not 0 <= seconds <= 1e9:
        raise RulesError(f"{where} is {seconds}; wanted are 0 to 1e9 seconds")
    return seconds
