from __future__ import annotations

import pytest

from stream.alarms import AlarmRules, SensorState, acknowledge, encode_state, shelve
from stream.alerts import Priority, Transition
from stream.records import Flags
from tests.alarm_windows import EPOCH_NS, HOP, HOP_NS, LABELS, LENGTH_NS, S, hit, run, told, window


def rules_with(**settings: object) -> AlarmRules:
    return AlarmRules.for_labels(LABELS, settings)


class TestClipping:
    def test_half_of_the_last_ten_windows_clipped_raises(self) -> None:
        alerts = run([window(n, clipped_fraction=0.05 if n % 2 == 0 else 0.0) for n in range(9)])
        assert told(alerts) == [("sensor.clipping", "raised")]
        assert alerts[0].priority == Priority.MEDIUM
        assert alerts[0].features is not None
        assert alerts[0].features.clipped_fraction == 0.05

    def test_one_loud_event_that_clips_in_three_windows_does_not(self) -> None:
        assert run([window(n, clipped_fraction=0.3 if n < 3 else 0.0) for n in range(30)]) == []

    def test_a_few_clipped_samples_do_not(self) -> None:
        assert run([window(n, clipped_fraction=0.009) for n in range(30)]) == []

    def test_what_the_device_calls_saturated_counts_though_no_sample_shows_it(self) -> None:
        assert told(run([window(n, flags=Flags.SATURATED) for n in range(5)])) == [("sensor.clipping", "raised")]

    def test_five_seconds_without_it_clear(self) -> None:
        windows = [window(n, clipped_fraction=0.05 if n < 10 else 0.0) for n in range(100)]
        raised, cleared = run(windows)
        assert cleared.transition == Transition.CLEARED
        assert cleared.time_ns >= EPOCH_NS + 9 * HOP_NS + LENGTH_NS + 5 * S
        assert cleared.episode == raised.episode

    def test_hits_that_clip_raise_after_the_third(self) -> None:
        assert told(run([hit(n, clipped_fraction=0.2) for n in range(1, 4)])) == [("sensor.clipping", "raised")]


class TestFlatLine:
    def test_a_second_of_the_same_value_raises_and_signal_clears(self) -> None:
        windows = [window(n, flat=10 <= n < 40) for n in range(80)]
        raised, cleared = run(windows)
        assert (raised.condition, raised.transition) == ("sensor.flat", Transition.RAISED)
        assert raised.first_sample == 10 * HOP
        flat_for_ns = raised.time_ns - EPOCH_NS - 10 * HOP_NS
        assert S <= flat_for_ns < S + HOP_NS
        assert cleared.transition == Transition.CLEARED

    def test_less_than_a_second_does_not_raise(self) -> None:
        assert run([window(n, flat=n % 15 < 13) for n in range(60)]) == []

    def test_time_that_nobody_saw_is_not_taken_for_flat(self) -> None:
        assert told(run([window(0, flat=True), window(30, flat=True)])) == [("sensor.gap", "recorded")]


class TestGaps:
    def test_lost_time_is_recorded_once_with_how_much_is_missing(self) -> None:
        [alert] = run([window(0), window(1), window(12), window(13)])
        assert (alert.condition, alert.transition, alert.fault) == ("sensor.gap", Transition.RECORDED, False)
        assert alert.lost_s == pytest.approx(9 * 0.065536)
        assert alert.first_sample == alert.start_sample == 12 * HOP

    def test_windows_that_touch_or_overlap_are_no_gap(self) -> None:
        assert run([window(0), window(1), window(3), window(5)]) == []

    def test_a_hole_shorter_than_gap_s_is_not_told(self) -> None:
        assert run([window(0), window(3)]) == []
        assert told(run([window(0), window(3)], rules_with(gap_s=0.06))) == [("sensor.gap", "recorded")]

    def test_every_gap_is_recorded_by_itself_even_if_each_window_stands_alone(self) -> None:
        alerts = run([window(n * 20) for n in range(5)])
        assert told(alerts) == [("sensor.gap", "recorded")] * 4
        assert len({alert.episode for alert in alerts}) == 4

    def test_a_flood_of_gaps_is_held_back_and_summed_when_it_is_over(self) -> None:
        ragged = [window(n * 20) for n in range(21)]
        smooth = [window(401 + n) for n in range(1_000)]
        alerts = run([*ragged, *smooth])
        assert told(alerts) == [("sensor.gap", "recorded")] * 7
        assert alerts[5].note == "chattering: held until quiet for 60 s"
        assert alerts[6].note == "14 more while chattering"
        assert sum(alert.lost_s for alert in alerts) == pytest.approx(20 * 18 * 0.065536)

    def test_a_flood_that_ends_on_the_shelf_is_not_summed(self) -> None:
        state = SensorState()
        run([window(n * 20) for n in range(21)], state=state)
        shelve(state, "sensor.gap", until_ns=EPOCH_NS + 3600 * S, at_ns=EPOCH_NS, by="ann")
        assert run([window(401 + n) for n in range(1_000)], state=state) == []

    def test_hits_say_nothing_about_the_gaps_of_continuous_windows(self) -> None:
        rules = rules_with(conditions={"sensor.gap": {"max_raises": 1, "chatter_period_s": 1}})
        hits = [hit(30 + 0.01 * n) for n in range(600)]
        alerts = run([window(0), window(8), window(16), window(24), *hits], rules)
        assert [alert.note for alert in alerts] == ["", "chattering: held until quiet for 1 s"]

    def test_the_first_window_of_a_sensor_is_no_gap_wherever_it_begins(self) -> None:
        assert run([window(5_000)]) == []

    def test_a_hole_between_two_runs_of_the_sensor_is_a_gap_too(self) -> None:
        [alert] = run([window(0), window(0, epoch_ns=EPOCH_NS + LENGTH_NS + S)])
        assert (alert.condition, alert.lost_s) == ("sensor.gap", 1.0)

    def test_a_clock_set_back_by_a_restart_is_none(self) -> None:
        long_before = window(900, epoch_ns=EPOCH_NS)
        assert run([long_before, window(0, epoch_ns=EPOCH_NS + S)]) == []

    def test_the_time_between_hits_is_none(self) -> None:
        assert run([hit(1), hit(5), hit(5_000)]) == []

    def test_the_gap_is_told_before_what_the_window_after_it_shows(self) -> None:
        alerts = run([window(0), window(20, pencil_lead_break=0.95)])
        assert told(alerts) == [("sensor.gap", "recorded"), ("pencil_lead_break", "recorded")]


class TestSilence:
    def test_is_told_when_the_sensor_comes_back_and_stamped_when_it_was_long_enough(self) -> None:
        raised, cleared = run([window(0), window(400)])
        assert told([raised, cleared]) == [("sensor.silent", "raised"), ("sensor.silent", "cleared")]
        assert raised.time_ns == EPOCH_NS + LENGTH_NS + 10 * S
        assert (raised.first_sample, raised.start_sample) == (0, 400 * HOP)
        assert cleared.time_ns == EPOCH_NS + 400 * HOP_NS + LENGTH_NS
        assert cleared.lost_s == pytest.approx(398 * 0.065536)
        assert raised.fault

    def test_is_not_told_as_a_gap_as_well(self) -> None:
        assert "sensor.gap" not in {alert.condition for alert in run([window(0), window(400)])}

    def test_is_told_as_a_gap_where_silence_is_not_watched(self) -> None:
        rules = rules_with(conditions={"sensor.silent": {"enabled": False}})
        assert told(run([window(0), window(400)], rules)) == [("sensor.gap", "recorded")]

    def test_a_hole_just_short_of_it_is_a_gap(self) -> None:
        assert told(run([window(0), window(154)])) == [("sensor.gap", "recorded")]
        assert told(run([window(0), window(155)]))[0] == ("sensor.silent", "raised")

    def test_over_a_restart_is_silence_too(self) -> None:
        alerts = run([window(0), window(0, epoch_ns=EPOCH_NS + 100 * S)])
        assert told(alerts) == [("sensor.silent", "raised"), ("sensor.silent", "cleared")]

    def test_between_hits_is_normal(self) -> None:
        assert run([hit(1), hit(10_000)]) == []

    def test_latched_stays_open_until_acknowledged(self) -> None:
        state = SensorState()
        rules = rules_with(conditions={"sensor.silent": {"latching": True}})
        [raised] = run([window(0), window(400), window(401)], rules, state)
        alerts = acknowledge(state, raised.episode, at_ns=EPOCH_NS, by="ann")
        assert told(alerts) == [("sensor.silent", "acknowledged"), ("sensor.silent", "cleared")]

    def test_again_and_again_is_held(self) -> None:
        rules = rules_with(silent_s=1.0)
        alerts = run([*[window(n * 40) for n in range(20)], *[window(761 + n) for n in range(1_000)]], rules)
        assert told(alerts) == [("sensor.silent", "raised"), ("sensor.silent", "cleared")] * 6
        assert alerts[-1].note == "13 more while chattering"
        lost_s = sum(alert.lost_s for alert in alerts if alert.transition == Transition.CLEARED)
        assert lost_s == pytest.approx(19 * 38 * 0.065536)

    def test_shelved_is_not_told(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        shelve(state, "sensor.silent", until_ns=EPOCH_NS + 3600 * S, at_ns=EPOCH_NS, by="ann")
        assert run([window(400)], state=state) == []


def test_a_healthy_sensor_leaves_nothing_in_the_state() -> None:
    state = SensorState()
    run([window(0), window(40), window(500), *[window(501 + n) for n in range(1_000)]], state=state)
    assert state.conditions == {}
    assert b"sensor.gap" in encode_state(state)  # as a name of what is watched only
