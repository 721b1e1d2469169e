from dataclasses import replace

import msgspec

from deploy.demo_report import Arrival, Injected, SensorTraffic, Totals, expected_windows, reconcile
from stream.alerts import Alert, Priority, Transition
from stream.windows import WindowSpec

SPEC = WindowSpec(length=100, hop=50)
KNOCK = Injected("a", "knock", first_sample=230, last_sample=260, rate_hz=1000)
ALERT = Alert(
    id="e-1",
    episode="e",
    number=1,
    transition=Transition.RAISED,
    sensor="a",
    condition="knock",
    priority=Priority.HIGH,
    fault=True,
    time_ns=0,
    epoch_ns=0,
    first_sample=150,
    start_sample=200,
    source_count=100,
)


def traffic() -> dict[str, SensorTraffic]:
    published = [(end, 1000 + end) for end in range(50, 501, 50)]
    windows = {(0, start) for start in range(0, 401, 50)}
    return {"a": SensorTraffic(frames=10, samples=500, predictions=windows, published=published)}


TOTALS = Totals(acknowledged_frames=10, window_messages=9, dead_letters=0)


def report(*alerts: Alert, seen: dict[str, SensorTraffic] | None = None, totals: Totals = TOTALS):  # type: ignore[no-untyped-def]
    arrivals = [Arrival(alert, received_ns=1_350_000_000) for alert in alerts]
    return reconcile([KNOCK], arrivals, seen or traffic(), SPEC, totals)


def test_an_alert_whose_windows_overlap_the_event_belongs_to_it() -> None:
    found = report(ALERT)
    assert found.problems == []
    assert [event for event, _ in found.matched] == [KNOCK]


def test_latency_runs_from_the_frame_with_the_last_sample_of_the_deciding_window() -> None:
    assert report(ALERT).latencies_ms == [1350.0 - 1300.0]


def test_an_event_without_alert_is_a_problem() -> None:
    assert report().problems == ["knock on a at sample 230 raised no alert"]


def test_an_alert_of_another_kind_place_or_time_has_no_cause() -> None:
    for changes in ({"condition": "drop"}, {"sensor": "b"}, {"first_sample": 300, "start_sample": 300}):
        found = report(msgspec.structs.replace(ALERT, **changes))
        assert len(found.causeless) == len(found.missed) == 1


def test_a_second_alert_for_one_event_has_no_cause() -> None:
    again = msgspec.structs.replace(ALERT, id="f-1", episode="f")
    assert report(ALERT, again).causeless == [again]


def test_the_same_alert_twice_is_a_problem() -> None:
    assert any("more than once" in problem for problem in report(ALERT, ALERT).problems)


def test_every_count_is_held_against_the_one_before_it() -> None:
    assert report(ALERT, totals=replace(TOTALS, acknowledged_frames=11)).problems
    assert report(ALERT, totals=replace(TOTALS, window_messages=10)).problems
    assert report(ALERT, totals=replace(TOTALS, dead_letters=1)).problems
    seen = traffic()
    seen["a"].predictions.remove((0, 50))
    assert report(ALERT, seen=seen).problems


def test_samples_make_as_many_windows_as_fit_on_the_grid() -> None:
    assert [expected_windows(samples, SPEC) for samples in (0, 99, 100, 149, 150)] == [0, 0, 1, 1, 2]
