"""An alert that is published long after its event time says by how much."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from deploy.cli.alerts import event_time, print_alert, span
from stream.alerts import Alert, decode_alert, encode_alert, with_delay
from tests.alarm_windows import S, run, window

[ALERT] = run([window(n, knock=0.9) for n in range(2)])


def published(after_s: float, alert: Alert = ALERT) -> Alert:
    return with_delay(alert, alert.time_ns + round(after_s * S), late_after_s=10.0)


def test_an_alert_in_time_is_published_as_it_was_decided() -> None:
    assert published(9.9) == ALERT
    assert b"delay_s" not in encode_alert(published(9.9))


def test_an_alert_that_comes_late_says_by_how_much_and_nothing_else_of_it_changes() -> None:
    late = published(7980.04)
    assert late.delay_s == 7980.0
    assert msgspec.structs.replace(late, delay_s=0.0) == ALERT
    assert json.loads(encode_alert(late))["delay_s"] == 7980.0
    assert decode_alert(encode_alert(late)) == late


def test_an_alert_ahead_of_our_clock_is_not_late() -> None:
    assert published(-3600) == ALERT


def test_a_replay_is_never_late() -> None:
    replayed = msgspec.structs.replace(ALERT, sensor="replay/one/ch0", run="one")
    assert published(10**6, replayed) == replayed


def test_a_sensor_without_a_clock_is_never_late() -> None:
    [early] = run([window(n, epoch_ns=0, knock=0.9) for n in range(2)])
    assert published(10**6, early) == early


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(12, "12 s"), (61, "1 min 1 s"), (7980, "2 h 13 min"), (7200, "2 h"), (86400 * 3 + 3600 * 4 + 59, "3 d 4 h")],
)
def test_a_delay_is_told_in_its_two_largest_units(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_people_and_programs_are_told_the_delay(capsys: pytest.CaptureFixture[str]) -> None:
    print_alert(published(7980), "1-0", False)
    assert capsys.readouterr().out.endswith("late by 2 h 13 min\n")
    print_alert(published(7980), "1-0", True)
    assert json.loads(capsys.readouterr().out)["delay_s"] == 7980.0


def test_the_documentation_names_the_field() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for page in ("records.md", "redis.md", "alarms.md"):
        assert "`delay_s`" in (docs / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sensor", "time_ns", "told"),
    [
        ("replay/one/pump/ch0", 12_345_000_000, "+12.345 s"),
        (
            "replay/one/plant1/pump",
            1_763_884_800_000_000_000,
            "2025-11-23T08:00:00.000Z",
        ),  # out of Kafka, with its date
        ("plant1/without-a-clock", 12_345_000_000, "1970-01-01T00:00:12.345Z"),
    ],
)
def test_the_time_of_a_recording_without_a_date_is_told_from_its_beginning(
    sensor: str, time_ns: int, told: str
) -> None:
    assert event_time(time_ns, sensor) == told
