"""What came out, held against what must have come out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deploy.chaos.poison import Poison
from deploy.chaos.workload import Truth
from stream.alarms import SensorState
from stream.alerts import Alert
from stream.dead_letters import DeadLetter
from stream.predictions import Prediction

SHOWN = 5
TOLERANCE = 1e-5  #: of a probability; on one device the bits are the same, and how many were is told


@dataclass(slots=True)
class Verdict:
    """`problems` is empty where all that was promised holds."""

    problems: list[str] = field(default_factory=list)
    windows: int = 0  #: of the oracle
    predictions: int = 0  #: in Kafka, copies by redelivery among them
    predictions_to_the_bit: int = 0  #: of those, equal to the oracle's in every bit
    alerts: int = 0  #: of the oracle
    collected: int = 0  #: by the subscriber
    dead_letters: int = 0  #: in Kafka, copies by redelivery among them
    poison: int = 0

    def expect(self, what: str, wrong: Sequence[object]) -> None:
        """A problem, with some examples, where anything is wrong."""
        if wrong:
            shown = "; ".join(str(one) for one in wrong[:SHOWN])
            self.problems.append(f"{len(wrong)} {what}: {shown}" + (" …" if len(wrong) > SHOWN else ""))


def judge(
    truth: Truth,
    predictions: Sequence[Prediction],
    stream: Sequence[Alert],
    states: Mapping[str, SensorState],
    collected: Sequence[Alert],
    letters: Sequence[DeadLetter],
    poison: Sequence[Poison],
) -> Verdict:
    """Hold a run against the oracle.

    Parameters
    ----------
    truth
        What `aewatch classify` finds in the same recordings.
    predictions
        All messages of the predictions topic, in any order; copies are allowed if they say the same.
    stream
        The stream of alerts in Redis, in its order.
    states
        The sensors' alarm states in Redis. They count the windows that were applied, so that one that was left out or
        applied twice shows even where it raised nothing.
    collected
        What the subscriber with a cursor wrote down, in its order.
    letters
        All messages of the dead-letter topic; copies are allowed.
    poison
        What was sprinkled in.
    """
    verdict = Verdict(
        windows=len(truth.predictions),
        predictions=len(predictions),
        alerts=len(truth.alerts),
        collected=len(collected),
        dead_letters=len(letters),
        poison=len(poison),
    )
    _predictions(verdict, truth, predictions)
    _alerts(verdict, truth, stream)
    verdict.expect(
        "sensors whose alarm state is not the oracle's",
        [
            f"{sensor} ({_applied(states.get(sensor))} windows applied, {_applied(wanted)} by the oracle)"
            for sensor, wanted in sorted(truth.states.items())
            if _without_version(states.get(sensor)) != _without_version(wanted)
        ],
    )
    if [alert.id for alert in collected] != [alert.id for alert in stream]:
        missing = Counter(alert.id for alert in stream) - Counter(alert.id for alert in collected)
        extra = Counter(alert.id for alert in collected) - Counter(alert.id for alert in stream)
        verdict.expect("alerts that the subscriber missed", list(missing.elements()))
        verdict.expect("alerts that the subscriber has too often", list(extra.elements()))
        if not missing and not extra:
            verdict.problems.append("the subscriber has the alerts in another order than the stream")
    _dead_letters(verdict, letters, poison)
    return verdict


def _predictions(verdict: Verdict, truth: Truth, predictions: Sequence[Prediction]) -> None:
    wanted = {(one.sensor, *one.position): one for one in truth.predictions}
    seen: set[tuple[str, int, int]] = set()
    unknown, different = [], []
    for one in predictions:
        identity = (one.sensor, *one.position)
        seen.add(identity)
        other = wanted.get(identity)
        if other is None:
            unknown.append(identity)
        elif not _alike(one, other):
            different.append(identity)
        else:
            verdict.predictions_to_the_bit += _anonymous(one) == _anonymous(other)
    verdict.expect("windows without a prediction", sorted(wanted.keys() - seen))
    verdict.expect("predictions of windows that the oracle does not know", unknown)
    verdict.expect("predictions unlike the oracle's", different)


def _alike(one: Prediction, other: Prediction) -> bool:
    if one.probabilities.keys() != other.probabilities.keys() or one.unknown != other.unknown:
        return False
    return one.features == other.features and all(
        abs(probability - other.probabilities[label]) <= TOLERANCE for label, probability in one.probabilities.items()
    )


def _anonymous(prediction: Prediction) -> Prediction:
    """Without the model's version, which a swap changes, and flags: what came again through a spool says so."""
    return msgspec.structs.replace(prediction, model_version="")


def _alerts(verdict: Verdict, truth: Truth, stream: Sequence[Alert]) -> None:
    wanted = Counter(alert.id for alert in truth.alerts)
    found = Counter(alert.id for alert in stream)
    verdict.expect("alerts missing", list((wanted - found).elements()))
    verdict.expect("alerts too many", list((found - wanted).elements()))
    by_id = {alert.id: alert for alert in truth.alerts}
    different = [one.id for one in stream if one.id in by_id and not _same_alert(one, by_id[one.id])]
    verdict.expect("alerts that say something else than the oracle's", different)
    for sensor in sorted({alert.sensor for alert in truth.alerts}):
        in_order = [alert.id for alert in truth.alerts if alert.sensor == sensor]
        if [alert.id for alert in stream if alert.sensor == sensor and alert.id in by_id] != in_order:
            verdict.problems.append(f"{sensor}: its alerts are in another order")


def _same_alert(one: Alert, other: Alert) -> bool:
    """Every field but the model's version; probabilities within the tolerance."""
    close = abs(one.probability - other.probability) <= TOLERANCE
    close = close and abs(one.unknown_score - other.unknown_score) <= TOLERANCE * max(1.0, abs(other.unknown_score))
    same = msgspec.structs.replace(
        one, probability=other.probability, unknown_score=other.unknown_score, model_version=other.model_version
    )
    return close and same == other


def _applied(state: SensorState | None) -> int:
    return sum(track.count for track in (state.windows, state.hits) if track is not None) if state else 0


def _without_version(state: SensorState | None) -> Any:
    """Plain values, without the model's version, which a swap changes."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(one) for key, one in value.items() if key != "model_version"}
        return value

    return stripped(msgspec.to_builtins(state))


def _dead_letters(verdict: Verdict, letters: Sequence[DeadLetter], poison: Sequence[Poison]) -> None:
    wanted = {(one.topic, one.partition, one.offset): one.value for one in poison}
    found = {(one.topic, one.partition, one.offset) for one in letters}
    verdict.expect("poisonous messages without a dead letter", sorted(wanted.keys() - found))
    verdict.expect("dead letters of messages that are none", sorted(found - wanted.keys()))
    verdict.expect(
        "dead letters with other bytes than the poison",
        [
            place
            for one in letters
            if (place := (one.topic, one.partition, one.offset)) in wanted and one.raw != wanted[place]
        ],
    )
