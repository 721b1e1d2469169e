"""What a replay found, missed and invented: labelled events held against alerts. Pure, and written as JSON.

Times are seconds from the beginning of the recording, reckoned by the sample counter, as a data set's are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from stream.alarms import Role
from stream.alerts import Alert, Transition
from stream.records import Frame

FORMAT = 1
MISSED, INVENTED = "missed", "invented"
SECONDS_PER_HOUR = 3600.0

#: `found`: an alert of its class. `held`: none of its own, as the alarm of its class was open already.
#: `wrong`: only alerts of another class. `missed`: nothing.
Outcome = Literal["found", "held", "wrong", "missed"]
#: `right`: the first of its class at an event. `again`: another one there. `wrong`: only events of other classes
#: are there. `invented`: no event is.
Verdict = Literal["right", "again", "wrong", "invented"]


class Event(msgspec.Struct, frozen=True):
    """Something that is known to happen at a sensor."""

    sensor: str
    label: str
    start_s: float
    end_s: float | None = None  #: None is the recording's end

    @property
    def until_s(self) -> float:
        """Its end as a number."""
        return float("inf") if self.end_s is None else self.end_s


class Detection(msgspec.Struct, frozen=True):
    """An alarm that was raised, or a burst that was recorded."""

    id: str  #: of the alert
    sensor: str
    condition: str
    fault: bool
    onset_s: float  #: where the first window of its evidence begins
    raised_s: float  #: where the window that decided it ends
    ended_s: float | None = None  #: where it was cleared; None if it was not, or is no alarm that stays
    probability: float = 0.0
    model_version: str = ""


class Played(msgspec.Struct, frozen=True):
    """What was played of a sensor."""

    rate_hz: float
    epoch_ns: int
    begin_s: float
    end_s: float


class PlayedSensors:
    """Takes down, frame by frame, what is played of each sensor."""

    def __init__(self) -> None:
        self._played: dict[str, Played] = {}

    def note(self, frame: Frame) -> None:
        """One more frame is played."""
        before = self._played.get(frame.sensor)
        if before is not None and before.epoch_ns == frame.epoch_ns:
            rate_hz, begin_s = before.rate_hz, before.begin_s
        else:
            rate_hz = float(frame.rate_hz)
            begin_s = frame.first_sample / rate_hz
        self._played[frame.sensor] = Played(rate_hz, frame.epoch_ns, begin_s, frame.end_sample / rate_hz)

    def all(self) -> dict[str, Played]:
        """Sensor → what was played of it, up to now."""
        return dict(self._played)


class Model(msgspec.Struct, frozen=True):
    """Whose alerts they are."""

    name: str
    version: str
    roles: dict[str, str]  #: label → background, calibration or fault


class JudgedEvent(msgspec.Struct, frozen=True):
    """What became of an event."""

    sensor: str
    label: str
    start_s: float
    end_s: float | None
    outcome: Outcome
    condition: str = ""  #: what it was taken for; "" where it was missed
    alert: str = ""  #: id of the alert that tells of it
    delay_s: float | None = None  #: of a found one: from its start to where the deciding window ends


class JudgedAlert(msgspec.Struct, frozen=True):
    """What an alert was worth."""

    alert: Detection
    verdict: Verdict


class Delays(msgspec.Struct, frozen=True):
    """Of the events found, s."""

    median_s: float
    p90_s: float
    largest_s: float


class ClassFigures(msgspec.Struct, frozen=True):
    """One class: its events, and the alerts that name it."""

    label: str
    role: str  #: "" where the model does not know the class
    events: int
    found: int
    held: int
    wrong: int
    missed: int
    alerts: int
    right: int
    again: int
    wrong_alerts: int
    invented: int
    recall: float | None  #: (found + held) / events
    precision: float | None  #: (right + again) / alerts
    delays: Delays | None


class Confusion(msgspec.Struct, frozen=True):
    """`counts[row][column]`: events of a label by what they were taken for; the last row is alerts without an event.

    The last column is events without an alert. An event is in one cell.
    """

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]


class Judgement(msgspec.Struct, frozen=True):
    """One model on the run."""

    model: Model
    events: list[JudgedEvent]
    alerts: list[JudgedAlert]
    classes: list[ClassFigures]
    confusion: Confusion
    delays: Delays | None
    health_alerts: int  #: of the sensors' own health, which labels say nothing of
    invented_per_hour: float | None  #: of labelled sensor time
    notes: list[str] = []

    def count(self, outcome: Outcome) -> int:
        """Events with this outcome."""
        return sum(event.outcome == outcome for event in self.events)

    @property
    def invented(self) -> list[Detection]:
        """Alerts without an event."""
        return [judged.alert for judged in self.alerts if judged.verdict == INVENTED]


class Difference(msgspec.Struct, frozen=True):
    """An event that two models do not tell alike."""

    sensor: str
    label: str
    start_s: float
    first: Outcome
    second: Outcome


class Comparison(msgspec.Struct, frozen=True):
    """Two models on the same events. An event is recognised if it is found or held."""

    both: int
    only_first: int
    only_second: int
    neither: int
    invented_both: int  #: of the first: where the second invents the same condition, too
    invented_only_first: int
    invented_only_second: int
    delay_difference_s: float | None  #: median of second minus first over events found by both
    differences: list[Difference]


class ReplayReport(msgspec.Struct, frozen=True):
    """The whole: what `report.json` holds."""

    run: str
    sensors: int
    labelled_s: float  #: sensor time that labels speak of
    judgements: list[Judgement]
    comparison: Comparison | None = None
    notes: list[str] = []
    format: int = FORMAT


def encode_report(report: ReplayReport) -> bytes:
    """JSON, UTF-8, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def events_played(events: Sequence[Event], played: Mapping[str, Played], *, in_part: bool) -> list[Event]:
    """The events that there was something to see of; `in_part`: recordings were not played from end to end."""
    return [
        event
        for event in events
        if (of := played.get(event.sensor)) is not None
        and (not in_part or (event.start_s < of.end_s and event.until_s >= of.begin_s))
    ]


def detections_of(alerts: Iterable[Alert], played: Mapping[str, Played]) -> tuple[list[Detection], int]:
    """The alarms and bursts of the sensors that were played, and how many others tell of the sensors' own health.

    Alerts of other epochs are of other replays, or live.
    """
    found: dict[str, Detection] = {}
    health: set[str] = set()
    for alert in alerts:
        of = played.get(alert.sensor)
        if of is None or alert.epoch_ns != of.epoch_ns:
            continue
        if alert.condition.startswith("sensor."):
            health.add(alert.episode)
            continue
        end_s = (alert.start_sample + alert.source_count) / of.rate_hz
        known = found.get(alert.episode)
        if alert.transition in (Transition.RAISED, Transition.RECORDED) and known is None:
            found[alert.episode] = Detection(
                id=alert.id,
                sensor=alert.sensor,
                condition=alert.condition,
                fault=alert.fault,
                onset_s=alert.first_sample / of.rate_hz,
                raised_s=end_s,
                probability=alert.probability,
                model_version=alert.model_version,
            )
        elif alert.transition == Transition.CLEARED and known is not None and alert.start_epoch_ns is None:
            found[alert.episode] = msgspec.structs.replace(known, ended_s=end_s)
    return list(found.values()), len(health)


def judge(
    model: Model,
    events: Sequence[Event],
    detections: Sequence[Detection],
    *,
    labelled_s: float,
    health_alerts: int = 0,
    notes: Sequence[str] = (),
) -> Judgement:
    """Hold alerts against events.

    An alert is at an event if the time from its first window's begin to its deciding window's end touches it. The
    first alert of an event's class at it finds it; one alert finds one event. Events of background classes are
    silence: nothing is expected, and an alert there is invented.

    Parameters
    ----------
    detections
        Of labelled recordings only: others are without labels, not without events.
    labelled_s
        Sensor time that the labels speak of.
    """
    expected = [event for event in events if model.roles.get(event.label) != Role.BACKGROUND]
    by_sensor: dict[str, tuple[list[Event], list[Detection]]] = {}
    for event in expected:
        by_sensor.setdefault(event.sensor, ([], []))[0].append(event)
    for detection in detections:
        by_sensor.setdefault(detection.sensor, ([], []))[1].append(detection)
    judged_events: list[JudgedEvent] = []
    judged_alerts: list[JudgedAlert] = []
    for sensor in sorted(by_sensor):
        of_events, of_alerts = _judge_sensor(*by_sensor[sensor])
        judged_events += of_events
        judged_alerts += of_alerts
    invented = sum(judged.verdict == INVENTED for judged in judged_alerts)
    unknown_labels = sorted({event.label for event in expected} - set(model.roles))
    said = [f"{label} is no class of the model, which can only miss it or mistake it" for label in unknown_labels]
    return Judgement(
        model=model,
        events=judged_events,
        alerts=judged_alerts,
        classes=_classes(model, judged_events, judged_alerts),
        confusion=_confusion(model, judged_events, judged_alerts),
        delays=_delays(judged_events),
        health_alerts=health_alerts,
        invented_per_hour=invented * SECONDS_PER_HOUR / labelled_s if labelled_s > 0 else None,
        notes=[*notes, *said],
    )


def compare(first: Judgement, second: Judgement) -> Comparison:
    """What one model recognises and the other does not. Events that one model takes for background are left out."""
    others = {_key(event): event for event in second.events}
    pairs = [(event, others[_key(event)]) for event in first.events if _key(event) in others]
    seen = [(_recognised(one), _recognised(other)) for one, other in pairs]
    delays = [
        other.delay_s - one.delay_s for one, other in pairs if one.delay_s is not None and other.delay_s is not None
    ]
    shared = _invented_too(first.invented, second.invented)
    return Comparison(
        both=seen.count((True, True)),
        only_first=seen.count((True, False)),
        only_second=seen.count((False, True)),
        neither=seen.count((False, False)),
        invented_both=shared,
        invented_only_first=len(first.invented) - shared,
        invented_only_second=len(second.invented) - _invented_too(second.invented, first.invented),
        delay_difference_s=float(np.median(delays)) if delays else None,
        differences=[
            Difference(one.sensor, one.label, one.start_s, one.outcome, other.outcome)
            for one, other in pairs
            if one.outcome != other.outcome
        ],
    )


def counted(number: int, thing: str) -> str:
    """`1 alert`, `2 alerts`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def summary(report: ReplayReport) -> str:
    """The report in a few lines for a person."""
    lines = []
    for of in report.judgements:
        rate = "" if of.invented_per_hour is None else f" ({of.invented_per_hour:.3g} an hour)"
        held = f" and {of.count('held')} while the alarm was open" if of.count("held") else ""
        delay = f"; delay median {of.delays.median_s:.3f} s, largest {of.delays.largest_s:.3f} s" if of.delays else ""
        lines.append(
            f"{of.model.name} {of.model.version}: of {counted(len(of.events), 'event')} "
            f"{of.count('found')} found{held}, "
            f"{of.count('wrong')} taken for something else, {of.count('missed')} missed; "
            f"{counted(len(of.invented), 'alert')} invented{rate}{delay}"
        )
        lines += [f"note: {note}" for note in of.notes]
    if (between := report.comparison) is not None:
        first, second = (f"{of.model.name} {of.model.version}" for of in report.judgements)
        lines.append(
            f"recognised by both {between.both}, only by {first} {between.only_first}, only by {second} "
            f"{between.only_second}, by neither {between.neither}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _judge_sensor(
    events: Sequence[Event], detections: Sequence[Detection]
) -> tuple[list[JudgedEvent], list[JudgedAlert]]:
    """One sensor's. Both are gone through once, in order of time; only what lies near is compared."""
    ordered = sorted(events, key=lambda event: (event.start_s, event.until_s, event.label))
    by: dict[int, Detection] = {}  # event → the alert that found it
    taken_for: dict[int, Detection] = {}  # event → the first alert of another class at it
    verdicts: list[JudgedAlert] = []
    near: list[int] = []
    following = 0
    for detection in sorted(detections, key=lambda one: (one.onset_s, one.raised_s, one.id)):
        while following < len(ordered) and ordered[following].start_s < detection.raised_s:
            near.append(following)
            following += 1
        near = [index for index in near if ordered[index].until_s >= detection.onset_s]
        at = [index for index in near if ordered[index].start_s < detection.raised_s]
        own = [index for index in at if ordered[index].label == detection.condition]
        verdict: Verdict
        if new := [index for index in own if index not in by]:
            by[new[0]] = detection
            verdict = "right"
        elif own:
            verdict = "again"
        elif at:
            for index in at:
                taken_for.setdefault(index, detection)
            verdict = "wrong"
        else:
            verdict = "invented"
        verdicts.append(JudgedAlert(detection, verdict))
    alarms: dict[str, list[Detection]] = {}
    for judged in verdicts:
        if judged.alert.fault:
            alarms.setdefault(judged.alert.condition, []).append(judged.alert)
    outcomes = [
        _outcome(event, by.get(index), alarms.get(event.label, []), taken_for.get(index))
        for index, event in enumerate(ordered)
    ]
    return outcomes, verdicts


def _outcome(
    event: Event, found: Detection | None, alarms: Sequence[Detection], instead: Detection | None
) -> JudgedEvent:
    outcome: Outcome = "found"
    alert = found
    if alert is None:
        # Alarms of one condition at one sensor do not overlap: only the last that began can be open.
        last = bisect_right(alarms, event.until_s, key=lambda alarm: alarm.onset_s) - 1
        if last >= 0 and ((ended_s := alarms[last].ended_s) is None or ended_s > event.start_s):
            outcome, alert = "held", alarms[last]
        elif instead is not None:
            outcome, alert = "wrong", instead
        else:
            outcome = "missed"
    return JudgedEvent(
        sensor=event.sensor,
        label=event.label,
        start_s=event.start_s,
        end_s=event.end_s,
        outcome=outcome,
        condition="" if alert is None else alert.condition,
        alert="" if alert is None else alert.id,
        delay_s=None if found is None else found.raised_s - event.start_s,
    )


def _classes(model: Model, events: Sequence[JudgedEvent], alerts: Sequence[JudgedAlert]) -> list[ClassFigures]:
    names = _in_order(model, {event.label for event in events} | {judged.alert.condition for judged in alerts})
    figures = []
    for name in names:
        own = [event for event in events if event.label == name]
        outcomes = [event.outcome for event in own]
        verdicts = [judged.verdict for judged in alerts if judged.alert.condition == name]
        good = verdicts.count("right") + verdicts.count("again")
        figures.append(
            ClassFigures(
                label=name,
                role=model.roles.get(name, ""),
                events=len(own),
                found=outcomes.count("found"),
                held=outcomes.count("held"),
                wrong=outcomes.count("wrong"),
                missed=outcomes.count("missed"),
                alerts=len(verdicts),
                right=verdicts.count("right"),
                again=verdicts.count("again"),
                wrong_alerts=verdicts.count("wrong"),
                invented=verdicts.count("invented"),
                recall=(outcomes.count("found") + outcomes.count("held")) / len(own) if own else None,
                precision=good / len(verdicts) if verdicts else None,
                delays=_delays(own),
            )
        )
    return figures


def _confusion(model: Model, events: Sequence[JudgedEvent], alerts: Sequence[JudgedAlert]) -> Confusion:
    rows = [*_in_order(model, {event.label for event in events}), INVENTED]
    invented = [judged.alert.condition for judged in alerts if judged.verdict == INVENTED]
    taken_for = {event.condition for event in events if event.condition} | set(invented)
    columns = [*_in_order(model, set(rows[:-1]) | taken_for), MISSED]
    row_of = {name: index for index, name in enumerate(rows[:-1])}
    column_of = {name: index for index, name in enumerate(columns[:-1])}
    counts = [[0] * len(columns) for _ in rows]
    for event in events:
        counts[row_of[event.label]][column_of[event.condition] if event.condition else -1] += 1
    for condition in invented:
        counts[-1][column_of[condition]] += 1
    return Confusion(rows, columns, counts)


def _in_order(model: Model, names: set[str]) -> list[str]:
    """In the order of the model's outputs, what it does not know after that."""
    known = [name for name in model.roles if name in names]
    return known + sorted(names.difference(known))


def _delays(events: Iterable[JudgedEvent]) -> Delays | None:
    delays = [event.delay_s for event in events if event.delay_s is not None]
    if not delays:
        return None
    median_s, p90_s, largest_s = np.quantile(delays, (0.5, 0.9, 1.0)).tolist()
    return Delays(median_s, p90_s, largest_s)


def _key(event: JudgedEvent) -> tuple[str, str, float, float | None]:
    return (event.sensor, event.label, event.start_s, event.end_s)


def _recognised(event: JudgedEvent) -> bool:
    return event.outcome in ("found", "held")


def _invented_too(some: Sequence[Detection], others: Sequence[Detection]) -> int:
    """How many of `some` there are among `others`: the same condition of the same sensor, touching in time."""
    there: dict[tuple[str, str], list[Detection]] = {}
    for other in sorted(others, key=lambda one: one.onset_s):
        there.setdefault((other.sensor, other.condition), []).append(other)
    shared = 0
    for one in some:
        near = there.get((one.sensor, one.condition), [])
        last = bisect_right(near, one.raised_s, key=lambda other: other.onset_s) - 1
        shared += last >= 0 and near[last].raised_s >= one.onset_s
    return shared
