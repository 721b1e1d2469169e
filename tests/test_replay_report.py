from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.replay_experiment import Expected, Heard, report_of, write_report
from deploy.replay_report import (
    Detection,
    Event,
    Judgement,
    Model,
    Played,
    PlayedSensors,
    ReplayReport,
    compare,
    detections_of,
    encode_report,
    events_played,
    judge,
    summary,
)
from deploy.replay_report_html import replay_report_html
from stream.alerts import Alert, Priority, Transition
from stream.records import Frame

MODEL = Model(
    "plant", "v1", {"silence": "background", "pencil_lead_break": "calibration", "knock": "fault", "drop": "fault"}
)
A = "replay/r/a/ch0"


def detection(condition: str, onset_s: float, raised_s: float, ended_s: float | None = None, **more: Any) -> Detection:
    fault = condition != "pencil_lead_break"
    fields = {"id": f"{condition}{onset_s}", "sensor": A, "fault": fault, **more}
    # An alarm that nothing is said of is over at once.
    if fault and ended_s is None:
        ended_s = raised_s
    return Detection(condition=condition, onset_s=onset_s, raised_s=raised_s, ended_s=ended_s, **fields)


def judged(events: list[Event], detections: list[Detection], model: Model = MODEL) -> Judgement:
    return judge(model, events, detections, labelled_s=3600.0)


def outcomes(of: Judgement) -> list[str]:
    return [event.outcome for event in of.events]


def verdicts(of: Judgement) -> list[str]:
    return [alert.verdict for alert in of.alerts]


def test_an_event_with_an_alert_of_its_class_is_found_and_the_delay_is_to_the_deciding_windows_end() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2)], [detection("knock", 0.9, 1.5)])
    assert outcomes(of) == ["found"]
    assert of.events[0].delay_s == pytest.approx(0.5)
    assert verdicts(of) == ["right"]
    assert of.delays is not None
    assert of.delays.largest_s == pytest.approx(0.5)


def test_an_event_without_an_alert_is_missed_and_an_alert_without_an_event_is_invented() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2)], [detection("knock", 5.0, 5.5)])
    assert (outcomes(of), verdicts(of)) == (["missed"], ["invented"])
    assert of.invented_per_hour == pytest.approx(1.0)
    assert of.confusion.rows == ["knock", "invented"]
    assert of.confusion.columns == ["knock", "missed"]
    assert of.confusion.counts == [[0, 1], [1, 0]]


def test_an_alert_that_only_comes_near_an_event_is_not_at_it() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2)], [detection("knock", 0.4, 1.0), detection("knock", 1.21, 1.5)])
    assert (outcomes(of), verdicts(of)) == (["missed"], ["invented", "invented"])


def test_an_event_of_another_sensor_is_another_event() -> None:
    of = judged([Event("other", "knock", 1.0, 1.2)], [detection("knock", 0.9, 1.5)])
    assert (outcomes(of), verdicts(of)) == (["missed"], ["invented"])


def test_an_event_taken_for_another_class_is_in_the_confusion_matrix_once() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2)], [detection("drop", 0.9, 1.5), detection("unknown", 1.0, 1.6)])
    assert (outcomes(of), of.events[0].condition, verdicts(of)) == (["wrong"], "drop", ["wrong", "wrong"])
    assert of.confusion.columns == ["knock", "drop", "missed"]
    assert of.confusion.counts == [[0, 1, 0], [0, 0, 0]]


def test_a_right_alert_outweighs_a_wrong_one_at_the_same_event() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2)], [detection("drop", 0.8, 1.1), detection("knock", 0.9, 1.5)])
    assert (outcomes(of), verdicts(of)) == (["found"], ["wrong", "right"])


def test_an_alert_that_finds_its_own_event_is_not_held_against_the_neighbour() -> None:
    of = judged([Event(A, "knock", 1.0, 1.2), Event(A, "drop", 1.1, 1.3)], [detection("knock", 0.9, 1.5)])
    assert outcomes(of) == ["found", "missed"]


def test_one_alert_finds_one_event_and_a_second_alert_at_it_is_told_as_again() -> None:
    breaks = [Event(A, "pencil_lead_break", 1.0, 1.0), Event(A, "pencil_lead_break", 1.1, 1.1)]
    of = judged(breaks, [detection("pencil_lead_break", 0.9, 1.4)])
    assert outcomes(of) == ["found", "missed"], "nobody can count two breaks from one record"
    of = judged(breaks[:1], [detection("pencil_lead_break", 0.9, 1.4), detection("pencil_lead_break", 1.0, 1.5)])
    assert verdicts(of) == ["right", "again"]


def test_an_event_while_the_alarm_of_its_class_is_open_is_held_and_has_no_delay() -> None:
    events = [Event(A, "knock", 1.0, 1.2), Event(A, "knock", 3.0, 3.2), Event(A, "drop", 3.0, 3.2)]
    of = judged(events, [detection("knock", 0.9, 1.5, ended_s=4.0)])
    assert outcomes(of) == ["found", "missed", "held"]  # sorted by time, then by label
    held = of.events[2]
    assert (held.label, held.condition, held.delay_s) == ("knock", "knock", None)
    over = judged(events[:2], [detection("knock", 0.9, 1.5, ended_s=2.9)])
    assert outcomes(over) == ["found", "missed"]


def test_background_is_silence_and_an_alert_in_it_is_invented() -> None:
    of = judged([Event(A, "silence", 0.0, None)], [detection("knock", 1.0, 1.5)])
    assert (outcomes(of), verdicts(of)) == ([], ["invented"])
    assert judged([Event(A, "silence", 0.0, None)], []).alerts == []


def test_a_class_that_the_model_does_not_know_is_told() -> None:
    of = judged([Event(A, "leak", 1.0, None)], [detection("unknown", 1.0, 1.5)])
    assert of.notes == ["leak is no class of the model, which can only miss it or mistake it"]
    assert outcomes(of) == ["wrong"]


def test_figures_of_a_class_tell_its_events_and_the_alerts_that_name_it() -> None:
    events = [Event(A, "knock", float(at), at + 0.2) for at in (1, 3, 5)]
    of = judged(events, [detection("knock", 0.9, 1.5), detection("drop", 3.0, 3.5), detection("knock", 8.0, 8.5)])
    knock = next(figures for figures in of.classes if figures.label == "knock")
    assert (knock.events, knock.found, knock.wrong, knock.missed) == (3, 1, 1, 1)
    assert (knock.alerts, knock.right, knock.invented, knock.role) == (2, 1, 1, "fault")
    assert (knock.recall, knock.precision) == (pytest.approx(1 / 3), pytest.approx(0.5))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.sampled_from(["knock", "drop"])), max_size=12),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5), st.sampled_from(["knock", "drop"])), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_every_event_and_every_alert_is_judged_once_and_as_a_look_at_all_pairs_says(
    events: list[tuple[int, int, str]], alerts: list[tuple[int, int, str]]
) -> None:
    labelled = [Event(A, label, float(start), float(start + length)) for start, length, label in events]
    found = [detection(name, float(start), float(start + length)) for start, length, name in alerts]
    of = judged(labelled, found)
    assert (len(of.events), len(of.alerts)) == (len(labelled), len(found))
    assert sum(map(sum, of.confusion.counts)) == len(labelled) + verdicts(of).count("invented")
    assert outcomes(of).count("found") == verdicts(of).count("right")
    for judged_alert in of.alerts:
        alert = judged_alert.alert
        near = [e for e in labelled if e.start_s < alert.raised_s and e.until_s >= alert.onset_s]
        assert (judged_alert.verdict == "invented") == (not near)
        if any(event.label == alert.condition for event in near):
            assert judged_alert.verdict in ("right", "again")


# --- From alerts and frames ----------------------------------------------------------------------------------------


def alert(transition: Transition, first: int, start: int, **more: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": f"e-{start}",
        "episode": "e",
        "number": 1,
        "sensor": A,
        "condition": "knock",
        "priority": Priority.HIGH,
        "fault": True,
        "time_ns": 0,
        "epoch_ns": 7,
        "source_count": 4000,
        **more,
    }
    return Alert(transition=transition, first_sample=first, start_sample=start, **fields)


PLAYED = {A: Played(8000.0, 7, 0.0, 10.0)}


def test_an_episode_is_one_detection_in_seconds_of_the_recording() -> None:
    alerts = [
        alert(Transition.RAISED, 8000, 10_000),
        alert(Transition.ACKNOWLEDGED, 8000, 10_000),
        alert(Transition.CLEARED, 8000, 20_000),
    ]
    (found,), health = detections_of(alerts, PLAYED)
    assert (found.onset_s, found.raised_s, found.ended_s, health) == (1.0, 1.75, 3.0, 0)


def test_alerts_of_other_sensors_and_other_epochs_are_left_out_and_the_sensors_health_is_counted_apart() -> None:
    alerts = [
        alert(Transition.RAISED, 0, 0, sensor="plant1/pump"),
        alert(Transition.RAISED, 0, 0, epoch_ns=8),
        alert(Transition.RAISED, 0, 0, condition="sensor.gap"),
        alert(Transition.CLEARED, 0, 0, condition="sensor.gap"),
    ]
    assert detections_of(alerts, PLAYED) == ([], 1)


def test_what_was_played_of_a_sensor_is_from_its_first_sample_to_its_last() -> None:
    frame = Frame(A, 7, 0, 8000, 7, Fraction(8000), np.zeros(4000, np.int16))
    played = PlayedSensors()
    played.note(frame)
    played.note(replace(frame, first_sample=12_000))
    assert played.all() == {A: Played(8000.0, 7, 1.0, 2.0)}


def test_events_outside_what_was_played_do_not_count() -> None:
    events = [Event(A, "knock", 1.0, 2.0), Event(A, "knock", 9.0, 11.0), Event(A, "drop", 10.0, 11.0)]
    played = {A: Played(8000.0, 7, 3.0, 10.0)}
    assert events_played(events, played, in_part=True) == [events[1]]
    assert events_played(events, played, in_part=False) == events
    assert events_played(events, {}, in_part=False) == []


# --- The whole report ----------------------------------------------------------------------------------------------


def two_models() -> ReplayReport:
    """The second model finds the drop that the first misses, loses a knock, and invents."""
    expected = Expected(
        tuple(Event(A, *rest) for rest in (("knock", 1.0, 1.2), ("knock", 4.0, 4.2), ("drop", 6.0, 6.3))),
        frozenset({A}),
    )

    def raised(at: int, condition: str, episode: str) -> list[Alert]:
        more = {"condition": condition, "episode": episode, "model_version": episode[:2]}
        first = at * 8000
        return [alert(Transition.RAISED, first, first, **more), alert(Transition.CLEARED, first, first + 100, **more)]

    one = [*raised(1, "knock", "v1a"), *raised(4, "knock", "v1b")]
    two = [*raised(1, "knock", "v2a"), *raised(6, "drop", "v2b"), *raised(9, "drop", "v2c")]
    second = Model("plant", "v2", MODEL.roles)
    return report_of("night", expected, PLAYED, [Heard(MODEL, one), Heard(second, two)])


def test_two_models_are_compared_event_by_event() -> None:
    between = two_models().comparison
    assert between is not None
    assert (between.both, between.only_first, between.only_second, between.neither) == (1, 1, 1, 0)
    assert (between.invented_both, between.invented_only_first, between.invented_only_second) == (0, 0, 1)
    assert [(of.label, of.start_s, of.first, of.second) for of in between.differences] == [
        ("knock", 4.0, "found", "missed"),
        ("drop", 6.0, "missed", "found"),
    ]
    assert between.delay_difference_s == pytest.approx(0.0)


def test_what_both_models_invent_is_counted_once() -> None:
    first = judged([], [detection("knock", 1.0, 2.0), detection("drop", 5.0, 6.0)])
    second = judged([], [detection("knock", 1.5, 2.5), detection("knock", 5.0, 6.0)])
    between = compare(first, second)
    assert (between.invented_both, between.invented_only_first, between.invented_only_second) == (1, 1, 1)


def test_the_json_holds_what_the_text_says() -> None:
    report = two_models()
    found = json.loads(encode_report(report))
    assert found["format"] == 1
    counts = Counter(event["outcome"] for event in found["judgements"][1]["events"])
    assert counts == {"found": 2, "missed": 1}
    assert "plant v2: of 3 events 2 found, 0 taken for something else, 1 missed; 1 alert invented" in summary(report)
    assert "recognised by both 1, only by plant v1 1, only by plant v2 1, by neither 0" in summary(report)


def test_alerts_of_another_model_than_the_one_named_are_told() -> None:
    expected = Expected((), frozenset({A}))
    alerts = [alert(Transition.RAISED, 0, 0, model_version="v9")]
    (of,) = report_of("r", expected, PLAYED, [Heard(MODEL, alerts)]).judgements
    assert of.notes[0].startswith("alerts are of model v9; what a class means was taken from plant v1")


def test_the_page_holds_every_picture_and_table_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    paths = write_report(two_models(), tmp_path / "new" / "report")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    page = paths[1].read_text()
    assert page.count("<svg") == 7  # of each model confusion, events and time line; the delays of both
    for text in ("The two models", "only by plant v1", "Not found by plant v1", "Invented by plant v2"):
        assert text in page
    # Names of namespaces are addresses that nobody opens.
    assert not re.search(r"<script|<link|@import|url\((?!#)|(?:src|(?<!:)href)=\"(?!#)", page)


def test_names_in_the_page_are_text() -> None:
    hostile = "<b>x</b>"
    expected = Expected((Event(A, hostile, 1.0, 1.2),), frozenset({A}), (hostile,))
    page = replay_report_html(report_of(hostile, expected, PLAYED, [Heard(Model(hostile, hostile, {}), [])]))
    assert hostile not in page


def test_a_run_in_which_nothing_is_labelled_to_happen_and_nothing_is_found_makes_a_page() -> None:
    page = replay_report_html(report_of("r", Expected((), frozenset({A})), PLAYED, [Heard(MODEL, [])]))
    assert "0 of 0" in page
