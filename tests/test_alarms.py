from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.alarms import (
    AlarmRules,
    BadState,
    ConditionRule,
    EpisodeNotOpen,
    NotShelved,
    OperatorError,
    RulesError,
    SensorState,
    UnknownCondition,
    acknowledge,
    advance,
    decode_state,
    encode_state,
    shelve,
    unshelve,
)
from stream.alerts import Alert, Priority, Transition, decode_alert, encode_alert
from stream.predictions import Prediction
from stream.records import Flags
from tests.alarm_windows import (
    EPOCH_NS,
    HOP,
    HOP_NS,
    LABELS,
    LENGTH,
    LENGTH_NS,
    RULES,
    SENSOR,
    S,
    hit,
    run,
    told,
    window,
)

QUIET_WINDOWS = 16  # the sixteenth window below the clear threshold completes one second of quiet
NOW_NS = EPOCH_NS + 3600 * S


def rules_with(name: str, **changes: object) -> AlarmRules:
    return AlarmRules.for_labels(LABELS, {"conditions": {name: changes}})


def quiet(begin: int, count: int = QUIET_WINDOWS) -> list[Prediction]:
    return [window(number) for number in range(begin, begin + count)]


def knocks(*numbers: int, probability: float = 0.9) -> list[Prediction]:
    return [window(number, knock=probability) for number in numbers]


class TestRaising:
    def test_two_of_the_last_three_windows_over_the_threshold_raise(self) -> None:
        assert told(run(knocks(0, 1))) == [("knock", "raised")]

    def test_two_windows_with_one_quiet_one_between_them_raise(self) -> None:
        assert told(run([*knocks(0), window(1), *knocks(2)])) == [("knock", "raised")]

    def test_two_windows_with_two_quiet_ones_between_them_do_not_raise(self) -> None:
        assert run([*knocks(0), window(1), window(2), *knocks(3)]) == []

    def test_one_window_alone_does_not_raise_a_fault(self) -> None:
        assert run([*knocks(0), *quiet(1)]) == []

    def test_a_probability_just_on_the_threshold_counts_and_just_below_does_not(self) -> None:
        assert told(run(knocks(0, 1, probability=0.6))) == [("knock", "raised")]
        assert run(knocks(0, 1, probability=0.5999)) == []

    def test_an_episode_that_goes_on_is_raised_once(self) -> None:
        assert told(run(knocks(*range(40)))) == [("knock", "raised")]

    def test_two_classes_are_raised_apart(self) -> None:
        both = [window(number, knock=0.7, drop=0.65) for number in range(2)]
        assert told(run(both)) == [("knock", "raised"), ("drop", "raised")]

    def test_background_never_raises_anything(self) -> None:
        assert run([window(number, background=0.99) for number in range(30)]) == []

    def test_evidence_on_both_sides_of_a_short_gap_counts_together(self) -> None:
        alerts = run([*knocks(0), *knocks(5)])
        assert told(alerts) == [("sensor.gap", "recorded"), ("knock", "raised")]

    def test_evidence_further_apart_than_within_s_does_not_count_together(self) -> None:
        assert told(run([*knocks(0), *knocks(17)])) == [("sensor.gap", "recorded")]

    def test_long_windows_may_still_count_together_whatever_within_s_says(self) -> None:
        assert told(run(knocks(0, 1), rules_with("knock", within_s=0.0))) == [("knock", "raised")]

    def test_evidence_before_and_after_a_restart_of_the_sensor_does_not_count_together(self) -> None:
        restarted = window(0, epoch_ns=EPOCH_NS + HOP_NS, knock=0.9)
        assert run([*knocks(0), restarted]) == []

    def test_a_class_with_an_on_delay_is_raised_once_it_has_lasted(self) -> None:
        rules = rules_with("friction", raise_after_s=1.0, k=1, n=1)
        rubbing = [window(number, friction=0.9) for number in range(20)]
        [alert] = run(rubbing, rules)
        assert alert.first_sample == 0
        assert alert.time_ns - EPOCH_NS >= S > alert.time_ns - EPOCH_NS - HOP_NS

    def test_an_interrupted_on_delay_begins_anew(self) -> None:
        rules = rules_with("friction", raise_after_s=1.0, k=1, n=1)
        windows = [window(number, friction=0.0 if number % 10 == 9 else 0.9) for number in range(100)]
        assert run(windows, rules) == []

    def test_a_window_that_is_unknown_does_not_help_to_raise_a_class(self) -> None:
        strange = [window(number, unknown=True, knock=0.9) for number in range(2)]
        assert run(strange) == []

    def test_nor_does_it_after_one_that_did(self) -> None:
        assert run([*knocks(0), window(1, unknown=True, knock=0.9)]) == []

    def test_unless_the_rules_say_that_it_may(self) -> None:
        strange = [window(number, unknown=True, knock=0.9) for number in range(2)]
        assert told(run(strange, replace(RULES, unknown_vetoes=False))) == [("knock", "raised")]

    def test_three_unknown_windows_of_five_raise_unknown(self) -> None:
        strange = [window(number, unknown=number in (0, 2, 4)) for number in range(5)]
        [alert] = run(strange)
        assert (alert.condition, alert.transition, alert.priority) == ("unknown", Transition.RAISED, Priority.LOW)
        assert alert.unknown_score == 7.0

    def test_the_devices_own_test_pulse_is_no_fault_but_a_calibration_is_recorded(self) -> None:
        assert run([window(n, flags=Flags.TEST_PULSE, knock=0.9) for n in range(5)]) == []
        assert run([window(n, flags=Flags.TEST_PULSE, unknown=True) for n in range(5)]) == []
        pulse = window(0, flags=Flags.TEST_PULSE, pencil_lead_break=0.95)
        assert told(run([pulse])) == [("pencil_lead_break", "recorded")]

    def test_a_model_that_does_not_know_a_watched_class_raises_nothing(self) -> None:
        strangers = [msgspec.structs.replace(p, probabilities={"background": 1.0}) for p in knocks(0, 1, 2)]
        assert run(strangers) == []


class TestTheAlert:
    def test_names_the_window_that_began_the_episode_and_the_one_that_decided(self) -> None:
        [alert] = run([window(9), *knocks(10), window(11), *knocks(12)])
        assert (alert.epoch_ns, alert.first_sample, alert.start_sample) == (EPOCH_NS, 10 * HOP, 12 * HOP)
        assert alert.source_count == LENGTH
        assert alert.time_ns == EPOCH_NS + 12 * HOP_NS + LENGTH_NS
        assert alert.probability == 0.9
        assert alert.model_version == "abc123"
        assert alert.features is not None
        assert alert.features.peak_db_ae == 62.5
        assert alert.fault
        assert alert.priority == Priority.HIGH

    def test_ids_are_hashes_that_anybody_can_compute(self) -> None:
        raised, cleared = run([*knocks(10, 11), *quiet(12)])
        text = f"{SENSOR}\0knock\0{EPOCH_NS}\0{10 * HOP}"
        assert raised.episode == hashlib.sha256(text.encode()).hexdigest()[:16]
        assert [raised.id, cleared.id] == [f"{raised.episode}-1", f"{raised.episode}-2"]

    def test_survives_its_written_form(self) -> None:
        for alert in run([*knocks(0, 1), *quiet(30)]):
            assert decode_alert(encode_alert(alert)) == alert

    def test_leaves_what_has_nothing_to_say_out_of_its_written_form(self) -> None:
        [alert] = run([window(n, clipped_fraction=0.5) for n in range(5)])
        written = msgspec.json.decode(encode_alert(alert))
        assert {"probability", "lost_s", "until_ns", "run", "late", "by", "note", "start_epoch_ns"} & set(
            written
        ) == set()

    def test_names_the_replay_it_belongs_to_and_a_live_one_names_none(self) -> None:
        replayed = [window(n, sensor="replay/night-1/bearing/ch0", knock=0.9) for n in range(2)]
        assert [alert.run for alert in run(replayed)] == ["night-1"]
        assert [alert.run for alert in run(knocks(0, 1))] == [""]

    def test_says_that_its_samples_came_through_the_spool(self) -> None:
        assert [alert.late for alert in run([window(n, flags=Flags.HISTORICAL, knock=0.9) for n in range(2)])] == [True]

    def test_of_an_episode_that_outlives_a_restart_names_both_epochs(self) -> None:
        later_ns = EPOCH_NS + 2 * S
        after = [window(number, epoch_ns=later_ns) for number in range(QUIET_WINDOWS)]
        raised, _, cleared = run([*knocks(0, 1), *after])
        assert raised.start_epoch_ns is None
        assert (cleared.epoch_ns, cleared.start_epoch_ns, cleared.episode) == (EPOCH_NS, later_ns, raised.episode)


class TestClearing:
    def test_quiet_windows_for_long_enough_clear(self) -> None:
        alerts = run([*knocks(0, 1), *quiet(2, 40)])
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared")]
        heard_ns = alerts[1].time_ns - alerts[0].time_ns
        assert S <= heard_ns < S + HOP_NS

    def test_quiet_just_short_of_it_does_not_clear(self) -> None:
        assert told(run([*knocks(0, 1), *quiet(2, QUIET_WINDOWS - 1)])) == [("knock", "raised")]

    def test_one_window_between_the_two_thresholds_starts_the_wait_anew(self) -> None:
        windows = [*knocks(0, 1), *quiet(2, 15), *knocks(17, probability=0.3), *quiet(18, 15)]
        assert told(run(windows)) == [("knock", "raised")]
        assert told(run([*windows, *quiet(33, 1)])) == [("knock", "raised"), ("knock", "cleared")]

    def test_time_without_windows_is_not_taken_for_quiet(self) -> None:
        alerts = run([*knocks(0, 1), *quiet(60, 14)])
        assert told(alerts) == [("knock", "raised"), ("sensor.gap", "recorded")]

    def test_the_next_episode_has_another_id_and_begins_after_the_first(self) -> None:
        first, cleared, second = run([*knocks(0, 1), *quiet(2), *knocks(20, 21)])
        assert first.episode == cleared.episode != second.episode
        assert second.first_sample == 20 * HOP
        assert second.number == 1

    def test_no_wait_at_all_still_gives_every_episode_an_id_of_its_own(self) -> None:
        windows = [window(n, knock=0.9 if n % 3 < 2 else 0.0) for n in range(12)]
        alerts = run(windows, rules_with("knock", clear_after_s=0, max_raises=0))
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared")] * 4
        assert len({alert.id for alert in alerts}) == 8

    def test_a_probability_that_is_no_number_neither_raises_nor_clears(self) -> None:
        nan = float("nan")
        assert run(knocks(0, 1, 2, probability=nan)) == []
        assert told(run([*knocks(0, 1), *knocks(*range(2, 40), probability=nan)])) == [("knock", "raised")]


class TestLatching:
    RULES = rules_with("knock", latching=True)

    def test_an_episode_stays_open_until_it_is_acknowledged_and_is_cleared_with_that(self) -> None:
        state = SensorState()
        [raised] = run([*knocks(0, 1), *quiet(2, 100)], self.RULES, state)
        alerts = acknowledge(state, raised.episode, at_ns=NOW_NS, by="ann", note="seen")
        assert told(alerts) == [("knock", "acknowledged"), ("knock", "cleared")]
        assert (alerts[0].by, alerts[0].note, alerts[0].time_ns) == ("ann", "seen", NOW_NS)
        assert {alert.model_version for alert in alerts} == {"abc123"}, "of the model that judged the last window"
        assert [alert.number for alert in alerts] == [2, 3]
        assert state.conditions["knock"].episode is None

    def test_acknowledged_while_it_lasts_it_clears_by_itself(self) -> None:
        state = SensorState()
        [raised] = run(knocks(0, 1), self.RULES, state)
        assert told(acknowledge(state, raised.episode, at_ns=NOW_NS, by="ann")) == [("knock", "acknowledged")]
        assert told(run(quiet(2), self.RULES, state)) == [("knock", "cleared")]

    def test_a_condition_that_returns_before_anybody_looked_is_the_same_episode(self) -> None:
        state = SensorState()
        [raised] = run([*knocks(0, 1), *quiet(2, 30), *knocks(32, 33)], self.RULES, state)
        assert told(acknowledge(state, raised.episode, at_ns=NOW_NS, by="ann")) == [("knock", "acknowledged")]
        assert told(run(quiet(34), self.RULES, state)) == [("knock", "cleared")]


class TestAcknowledging:
    def test_twice_gives_one_alert(self) -> None:
        state = SensorState()
        [raised] = run(knocks(0, 1), state=state)
        assert len(acknowledge(state, raised.episode, at_ns=NOW_NS, by="ann")) == 1
        assert acknowledge(state, raised.episode, at_ns=NOW_NS + 1, by="bob") == []

    def test_what_is_not_open_is_refused_and_what_is_open_is_named(self) -> None:
        state = SensorState()
        [raised] = run(knocks(0, 1), state=state)
        with pytest.raises(EpisodeNotOpen, match=rf"0123456789abcdef is not open.*{raised.episode} \(knock\)"):
            acknowledge(state, "0123456789abcdef", at_ns=NOW_NS, by="ann")

    def test_a_recorded_burst_cannot_be_acknowledged(self) -> None:
        state = SensorState()
        [recorded] = run([window(0, pencil_lead_break=0.9)], state=state)
        with pytest.raises(EpisodeNotOpen, match="open there: none"):
            acknowledge(state, recorded.episode, at_ns=NOW_NS, by="ann")

    def test_a_sensor_never_seen_has_nothing_to_acknowledge(self) -> None:
        with pytest.raises(EpisodeNotOpen):
            acknowledge(SensorState(sensor="s"), "0123456789abcdef", at_ns=NOW_NS, by="ann")


class TestShelving:
    def shelved(self, until_window: int, *before: Prediction) -> SensorState:
        state = SensorState()
        run(before or [window(0)], state=state)
        shelve(state, "knock", until_ns=EPOCH_NS + until_window * HOP_NS, at_ns=NOW_NS, by="ann", note="works")
        return state

    def test_tells_who_shelved_what_for_how_long(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        [alert] = shelve(state, "knock", until_ns=EPOCH_NS + 9 * S, at_ns=NOW_NS, by="ann", note="works")
        assert (alert.transition, alert.condition, alert.by, alert.note) == (
            Transition.SHELVED,
            "knock",
            "ann",
            "works",
        )
        assert (alert.until_ns, alert.time_ns, alert.fault) == (EPOCH_NS + 9 * S, NOW_NS, False)

    def test_a_shelved_condition_raises_nothing_and_others_do(self) -> None:
        state = self.shelved(100)
        assert run([*knocks(1, 2), *quiet(3)], state=state) == []
        assert told(run([window(20, drop=0.9), window(21, drop=0.9)], state=state)) == [("drop", "raised")]

    def test_a_shelved_calibration_is_not_recorded(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        shelve(state, "pencil_lead_break", until_ns=EPOCH_NS + 50 * HOP_NS, at_ns=NOW_NS, by="ann")
        assert run([window(1, pencil_lead_break=0.95), *quiet(2, 3)], state=state) == []

    def test_an_episode_that_lasts_longer_than_the_shelf_is_raised_when_it_ends(self) -> None:
        state = self.shelved(10)
        alerts = run(knocks(*range(1, 20)), state=state)
        assert told(alerts) == [("knock", "unshelved"), ("knock", "raised")]
        unshelved, raised = alerts
        assert unshelved.time_ns == EPOCH_NS + 10 * HOP_NS
        assert (raised.first_sample, raised.start_sample, raised.number) == (1 * HOP, 10 * HOP, 1)

    def test_an_episode_that_is_open_when_shelved_is_still_cleared_for_those_who_saw_it(self) -> None:
        state = self.shelved(200, *knocks(0, 1))
        assert told(run(quiet(2), state=state)) == [("knock", "cleared")]
        assert run(knocks(18, 19, 20), state=state) == []

    def test_unshelving_by_hand_raises_at_once_what_the_shelf_hid(self) -> None:
        state = self.shelved(100)
        run(knocks(1, 2), state=state)
        alerts = unshelve(state, "knock", at_ns=NOW_NS, by="bob")
        assert told(alerts) == [("knock", "unshelved"), ("knock", "raised")]
        assert [alert.by for alert in alerts] == ["bob", ""]
        assert told(run(quiet(3), state=state)) == [("knock", "cleared")]

    def test_unshelving_with_nothing_hidden_only_says_so(self) -> None:
        state = self.shelved(100)
        assert told(unshelve(state, "knock", at_ns=NOW_NS, by="bob")) == [("knock", "unshelved")]
        assert told(run(knocks(1, 2), state=state)) == [("knock", "raised")]

    def test_unshelving_what_everybody_saw_does_not_raise_it_again(self) -> None:
        state = self.shelved(200, *knocks(0, 1))
        assert told(unshelve(state, "knock", at_ns=NOW_NS, by="bob")) == [("knock", "unshelved")]

    def test_a_break_that_is_over_when_the_shelf_ends_is_not_recorded_late(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        shelve(state, "pencil_lead_break", until_ns=EPOCH_NS + 3 * HOP_NS, at_ns=NOW_NS, by="ann")
        windows = [window(1, pencil_lead_break=0.95), *quiet(2, 3)]
        assert told(run(windows, state=state)) == [("pencil_lead_break", "unshelved")]

    def test_shelving_again_moves_the_end_and_stays_one_shelf(self) -> None:
        state = self.shelved(10)
        [again] = shelve(state, "knock", until_ns=EPOCH_NS + 50 * HOP_NS, at_ns=NOW_NS, by="bob")
        assert again.number == 2
        assert run(knocks(*range(1, 40)), state=state) == []

    def test_the_shelf_ends_in_event_time_however_long_the_sensor_was_away(self) -> None:
        state = self.shelved(10)
        assert told(run([window(5_000)], state=state))[0] == ("knock", "unshelved")

    def test_what_the_rules_do_not_watch_cannot_be_shelved(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        with pytest.raises(UnknownCondition, match=r"no condition 'nock'.*knock"):
            shelve(state, "nock", until_ns=NOW_NS, at_ns=NOW_NS, by="ann")

    def test_a_shelf_that_is_over_already_is_refused(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        with pytest.raises(OperatorError, match="give a later time"):
            shelve(state, "knock", until_ns=EPOCH_NS, at_ns=NOW_NS, by="ann")

    def test_what_is_not_shelved_cannot_be_unshelved(self) -> None:
        state = self.shelved(100)
        with pytest.raises(NotShelved, match=r"'drop' is not shelved; shelved there: knock"):
            unshelve(state, "drop", at_ns=NOW_NS, by="ann")


class TestChatter:
    RULES = rules_with("knock", max_raises=3, chatter_period_s=30, clear_after_s=0.5)

    def bursts(self, count: int, every: int = 30) -> list[Prediction]:
        return [window(number, knock=0.9 if number % every < 2 else 0.0) for number in range(count * every)]

    def test_one_raise_too_many_is_held_and_says_so(self) -> None:
        alerts = run(self.bursts(8), self.RULES)
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared")] * 3 + [("knock", "raised")]
        assert alerts[-1].note == "chattering: held until quiet for 30 s"

    def test_what_is_held_clears_after_a_quiet_period_and_counts_what_it_kept_back(self) -> None:
        alerts = run([*self.bursts(8), *quiet(240, 480)], self.RULES)
        assert told(alerts[-2:]) == [("knock", "raised"), ("knock", "cleared")]
        assert alerts[-1].note == "4 more while chattering"

    def test_raises_further_apart_than_the_period_are_no_chatter(self) -> None:
        alerts = run(self.bursts(8, every=200), self.RULES)
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared")] * 8

    def test_without_a_limit_every_raise_is_told(self) -> None:
        alerts = run(self.bursts(8), rules_with("knock", max_raises=0, clear_after_s=0.5))
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared")] * 8


class TestRecordedClasses:
    def test_a_break_in_two_windows_is_recorded_once_and_is_no_fault(self) -> None:
        [alert] = run([window(0, pencil_lead_break=0.95), window(1, pencil_lead_break=0.9), *quiet(2, 50)])
        assert (alert.transition, alert.fault, alert.priority) == (Transition.RECORDED, False, Priority.INFO)

    def test_one_very_sure_window_is_enough_and_a_less_sure_one_is_not(self) -> None:
        assert told(run([window(0, pencil_lead_break=0.8)])) == [("pencil_lead_break", "recorded")]
        assert run([window(n, pencil_lead_break=0.79) for n in range(5)]) == []

    def test_breaks_a_second_apart_are_recorded_each_with_an_id_of_its_own(self) -> None:
        breaks = [window(n, pencil_lead_break=0.95 if n % 15 < 2 else 0.0) for n in range(150)]
        alerts = run(breaks)
        assert told(alerts) == [("pencil_lead_break", "recorded")] * 10
        assert len({alert.episode for alert in alerts}) == 10

    def test_breaks_on_both_sides_of_a_gap_are_two(self) -> None:
        broken = [window(0, pencil_lead_break=0.95), window(40, pencil_lead_break=0.95)]
        assert told(run(broken)) == [
            ("pencil_lead_break", "recorded"),
            ("sensor.gap", "recorded"),
            ("pencil_lead_break", "recorded"),
        ]

    def test_a_break_right_after_a_restart_is_another_one(self) -> None:
        after = window(0, epoch_ns=EPOCH_NS + LENGTH_NS, pencil_lead_break=0.95)
        assert len(run([window(0, pencil_lead_break=0.95), after])) == 2

    def test_nothing_stays_open(self) -> None:
        state = SensorState()
        run([window(0, pencil_lead_break=0.95)], state=state)
        assert state.open_conditions == []


class TestHits:
    def test_a_lone_hit_raises(self) -> None:
        [alert] = run([hit(1.0, knock=0.9)])
        assert (alert.condition, alert.transition, alert.first_sample) == ("knock", Transition.RAISED, 500_000)

    def test_the_quiet_between_hits_clears_and_is_told_with_the_next_one(self) -> None:
        alerts = run([hit(1.0, knock=0.9), hit(60.0, knock=0.9)])
        assert told(alerts) == [("knock", "raised"), ("knock", "cleared"), ("knock", "raised")]
        assert alerts[1].time_ns == EPOCH_NS + 2 * S + 2_000_000

    def test_hits_close_together_are_one_episode(self) -> None:
        assert told(run([hit(1.0 + 0.1 * n, knock=0.9) for n in range(30)])) == [("knock", "raised")]

    def test_quiet_begins_where_the_longest_hit_so_far_ends(self) -> None:
        long = msgspec.structs.replace(hit(0.1, knock=0.9), end_time_ns=EPOCH_NS + S + S // 2)
        assert told(run([long, hit(0.5), hit(2.0)])) == [("knock", "raised")]
        assert told(run([long, hit(0.5), hit(2.6)])) == [("knock", "raised"), ("knock", "cleared")]

    def test_several_hits_may_be_asked_for(self) -> None:
        rules = rules_with("knock", hit_k=2, hit_n=3)
        assert run([hit(1.0, knock=0.9), hit(2.0), hit(3.0)], rules) == []
        assert told(run([hit(1.0, knock=0.9), hit(2.0), hit(3.0, knock=0.9)], rules)) == [("knock", "raised")]

    def test_three_unknown_hits_of_five_raise_unknown(self) -> None:
        assert run([hit(n, unknown=True) for n in (1, 2)]) == []
        assert told(run([hit(n, unknown=True) for n in (1, 2, 3)])) == [("unknown", "raised")]

    def test_hits_and_continuous_windows_of_one_sensor_do_not_hide_each_other(self) -> None:
        mixed = [window(20), hit(0.5, knock=0.9), window(21), hit(0.7), window(22)]
        assert told(run(mixed)) == [("knock", "raised")]

    def test_a_hit_is_no_evidence_for_the_rule_of_continuous_windows(self) -> None:
        rules = rules_with("knock", hit_k=3, hit_n=3)
        assert run([*knocks(0), hit(0.1, knock=0.9), window(1)], rules) == []

    def test_continuous_noise_between_two_hits_is_not_taken_for_quiet(self) -> None:
        windows = [hit(0.001, knock=0.9), *knocks(*range(40), probability=0.5), hit(3.0, knock=0.9)]
        assert told(run(windows)) == [("knock", "raised")]


class TestDelivery:
    def test_a_window_delivered_again_changes_nothing(self) -> None:
        state = SensorState()
        windows = [*knocks(0, 1), *quiet(2, 5)]
        run(windows, state=state)
        before = encode_state(state)
        assert run(windows, state=state) == []
        assert encode_state(state) == before

    def test_a_window_of_an_older_epoch_changes_nothing(self) -> None:
        state = SensorState()
        run(knocks(5), state=state)
        before = encode_state(state)
        assert run([window(900, epoch_ns=EPOCH_NS - S, knock=0.9)], state=state) == []
        assert encode_state(state) == before

    def test_a_window_of_another_sensor_is_refused(self) -> None:
        state = SensorState()
        run(knocks(0), state=state)
        with pytest.raises(ValueError, match=r"other/ch1.*plant1/pump3/ch0"):
            advance(state, window(1, sensor="other/ch1"), RULES)

    def test_a_new_epoch_goes_on_with_an_open_episode(self) -> None:
        after = [window(n, epoch_ns=EPOCH_NS + S, knock=0.9) for n in range(5)]
        alerts = run([*knocks(0, 1), *after])
        assert [pair for pair in told(alerts) if pair[0] == "knock"] == [("knock", "raised")]


class TestRulesThatChange:
    def test_an_open_episode_of_a_class_no_longer_watched_is_cleared(self) -> None:
        state = SensorState()
        [raised] = run(knocks(0, 1), state=state)
        fewer = AlarmRules.for_labels({name: role for name, role in LABELS.items() if name != "knock"})
        [cleared] = run([window(2)], fewer, state)
        assert (cleared.transition, cleared.episode) == (Transition.CLEARED, raised.episode)
        assert "no rule" in cleared.note
        assert state.conditions == {}

    def test_an_open_episode_of_a_class_that_is_now_a_calibration_is_cleared(self) -> None:
        state = SensorState()
        run(knocks(0, 1), state=state)
        other = AlarmRules.for_labels(LABELS | {"knock": "calibration"})
        assert told(run([window(2)], other, state)) == [("knock", "cleared")]

    def test_a_burst_of_a_class_that_is_now_a_fault_does_not_hide_the_fault(self) -> None:
        state = SensorState()
        run([window(0, pencil_lead_break=0.95)], state=state)
        other = AlarmRules.for_labels(LABELS | {"pencil_lead_break": "fault"})
        windows = [window(n, pencil_lead_break=0.95) for n in (1, 2)]
        assert told(run(windows, other, state)) == [("pencil_lead_break", "raised")]

    def test_a_smaller_n_forgets_older_windows(self) -> None:
        state = SensorState()
        run([*knocks(0), window(1)], state=state)
        assert run(knocks(2), rules_with("knock", k=2, n=2), state) == []

    def test_a_shelf_of_a_class_no_longer_watched_still_ends(self) -> None:
        state = SensorState()
        run([window(0)], state=state)
        shelve(state, "knock", until_ns=EPOCH_NS + 5 * HOP_NS, at_ns=NOW_NS, by="ann")
        fewer = AlarmRules.for_labels({"background": "background"})
        assert told(run(quiet(1, 9), fewer, state)) == [("knock", "unshelved")]


class TestRules:
    def test_come_from_the_roles_of_the_labels(self) -> None:
        assert list(RULES.classes) == ["pencil_lead_break", "friction", "knock", "drop"]
        assert RULES.classes["pencil_lead_break"].records_only
        assert not RULES.classes["knock"].records_only

    def test_settings_for_all_faults_and_for_one_condition_are_laid_over_the_defaults(self) -> None:
        settings = {"faults": {"k": 3, "n": 5}, "conditions": {"knock": {"priority": "critical"}}, "silent_s": 3}
        rules = AlarmRules.for_labels(LABELS, settings)
        assert (rules.classes["drop"].k, rules.classes["drop"].priority) == (3, Priority.HIGH)
        assert (rules.classes["knock"].k, rules.classes["knock"].priority) == (3, Priority.CRITICAL)
        assert rules.classes["pencil_lead_break"].k == 1
        assert rules.health.silent_s == 3.0

    def test_numbers_may_come_as_texts_from_the_environment(self) -> None:
        rules = rules_with("knock", raise_threshold="0.75", k="1", latching="true")
        assert (rules.classes["knock"].raise_threshold, rules.classes["knock"].k) == (0.75, 1)
        assert rules.classes["knock"].latching

    @pytest.mark.parametrize("name", ["knock", "unknown", "sensor.gap", "pencil_lead_break"])
    def test_a_condition_can_be_switched_off(self, name: str) -> None:
        assert name in RULES.conditions
        assert name not in rules_with(name, enabled=False).conditions

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"conditions": {"nock": {}}}, r"alarms.conditions.nock: 'nock' is no condition; there are .*knock"),
            ({"conditions": {"background": {}}}, r"background, which raises nothing"),
            ({"conditions": {"knock": {"treshold": 1}}}, r"alarms.conditions.knock.treshold: no such.*raise_threshold"),
            ({"conditions": {"knock": {"k": 4}}}, r"alarms.conditions.knock: k 4 and n 3: wanted is 1 <= k <= n"),
            ({"conditions": {"knock": {"k": "two"}}}, r"alarms.conditions.knock: .*int"),
            ({"conditions": {"knock": {"raise_threshold": 0.2}}}, r"clear_threshold 0.3 and raise_threshold 0.2"),
            ({"conditions": {"knock": {"priority": "urgent"}}}, r"urgent"),
            ({"conditions": {"knock": {"clear_after_s": -1}}}, r"clear_after_s is -1"),
            ({"conditions": {"knock": {"max_raises": 1000}}}, r"max_raises is 1000"),
            ({"conditions": {"knock": 5}}, r"alarms.conditions.knock is 5; a table"),
            ({"fault": {}}, r"alarms.fault: no such setting; there are conditions, faults"),
            ({"gap_s": -1}, r"alarms.gap_s is -1"),
            ({"unknown_vetoes": "perhaps"}, r"alarms.unknown_vetoes"),
        ],
    )
    def test_that_cannot_be_are_refused_by_name(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(RulesError, match=message):
            AlarmRules.for_labels(LABELS, settings)

    def test_a_role_nobody_knows_is_refused(self) -> None:
        with pytest.raises(RulesError, match="'knock' has the role 'alarm'; roles are background, calibration, fault"):
            AlarmRules.for_labels({"knock": "alarm"})

    @pytest.mark.parametrize("name", ["unknown", "sensor.flat"])
    def test_a_class_named_like_a_condition_of_its_own_is_refused(self, name: str) -> None:
        with pytest.raises(RulesError, match="rename it"):
            AlarmRules.for_labels({name: "fault"})


class TestState:
    def test_of_a_normal_sensor_is_small(self) -> None:
        state = SensorState()
        run(quiet(0, 50), state=state)
        assert state.conditions == {}
        assert len(encode_state(state)) < 400

    def test_stays_small_however_long_a_noisy_sensor_runs(self) -> None:
        state = SensorState()
        sizes = []
        for number in range(3_000):
            noisy = {name: float((number * 7919 + 31 * i) % 97 < 40) * 0.9 for i, name in enumerate(LABELS)}
            advance(state, window(number, unknown=number % 3 == 0, clipped_fraction=number % 2, **noisy), RULES)
            sizes.append(len(encode_state(state)))
        assert max(sizes) < 6_000

    def test_of_an_unknown_version_is_refused_with_a_way_out(self) -> None:
        newer = encode_state(SensorState(sensor="s")).replace(b'"v":1', b'"v":2')
        with pytest.raises(BadState, match=r"plant/x: alarm state of version 2, this program knows 1; run the release"):
            decode_state(newer, "plant/x")

    @pytest.mark.parametrize("stored", [b"", b"{}", b"null", b'{"v":1}', b'{"v":1,"state":{"windows":3}}', b"\xff"])
    def test_that_is_no_state_is_refused_by_name(self, stored: bytes) -> None:
        with pytest.raises(BadState, match="plant/x: not an alarm state"):
            decode_state(stored, "plant/x")


RAW = st.tuples(
    st.integers(1, 4),  # how far the window lies from the one before, hops
    st.booleans(),  # begins a new epoch
    st.sampled_from([0.0, 0.2, 0.35, 0.7, 0.95]),
    st.sampled_from([0.0, 0.0, 0.9]),
    st.booleans(),
    st.sampled_from([0, 0, 0, int(Flags.SATURATED), int(Flags.TEST_PULSE)]),
    st.booleans(),
)


def sequence(raw: list[tuple[int, bool, float, float, bool, int, bool]]) -> list[Prediction]:
    number, epoch_ns, made = 0, EPOCH_NS, []
    for step, restart, knock, broken, unknown, flags, flat in raw:
        number += step
        if restart and step == 4:
            epoch_ns, number = epoch_ns + (number + 3) * HOP_NS, 0
        made.append(
            window(
                number,
                epoch_ns=epoch_ns,
                unknown=unknown and step > 1,
                flags=Flags(flags),
                flat=flat,
                knock=knock,
                pencil_lead_break=broken,
            )
        )
    return made


SEQUENCES = st.lists(RAW, min_size=1, max_size=60).map(sequence)
RESTLESS = AlarmRules.for_labels(
    LABELS,
    {
        "conditions": {
            "knock": {"clear_after_s": 0.2, "max_raises": 2, "chatter_period_s": 2},
            "pencil_lead_break": {"clear_after_s": 0.1},
            "unknown": {"clear_after_s": 0.1, "k": 1, "n": 2},
            "sensor.flat": {"raise_after_s": 0.2, "clear_after_s": 0},
            "sensor.clipping": {"k": 1, "n": 3, "clear_after_s": 0.1},
        },
        "gap_s": 0.05,
        "silent_s": 0.2,
    },
)


@given(SEQUENCES, st.data())
def test_alerts_do_not_depend_on_how_windows_are_batched_or_how_often_they_are_delivered(
    predictions: list[Prediction], data: st.DataObject
) -> None:
    once = run(predictions, RESTLESS)
    state, alerts, reached = SensorState(), [], 0
    while reached < len(predictions):
        begin = data.draw(st.integers(0, reached))
        reached = data.draw(st.integers(reached + 1, len(predictions)))
        for prediction in predictions[begin:reached]:
            alerts += advance(state, prediction, RESTLESS)
        state = decode_state(encode_state(state), SENSOR)
    assert alerts == once


@given(SEQUENCES)
def test_every_episode_is_told_in_order_and_no_alert_id_comes_twice(predictions: list[Prediction]) -> None:
    state = SensorState()
    alerts = run(predictions, RESTLESS, state)
    episodes: dict[str, list[Alert]] = {}
    for alert in alerts:
        episodes.setdefault(alert.episode, []).append(alert)
    still_open = set()
    for episode, told_of in episodes.items():
        assert [alert.number for alert in told_of] == list(range(1, len(told_of) + 1))
        transitions = [alert.transition.value for alert in told_of]
        if transitions == ["raised"]:
            still_open.add(episode)
        else:
            assert transitions in (["raised", "cleared"], ["recorded"], ["recorded", "recorded"])
    held = {name: condition.episode for name, condition in state.conditions.items()}
    assert still_open == {held[name].id for name in state.open_conditions if held[name]}


def test_a_rule_is_checked_when_it_is_made() -> None:
    with pytest.raises(RulesError, match="hit_k 2 and hit_n 1"):
        ConditionRule(hit_k=2)


class TestTheDocumentation:
    TEXT = (Path(__file__).parents[1] / "docs" / "alarms.md").read_text(encoding="utf-8")

    def test_names_every_setting_of_a_rule_with_its_default(self) -> None:
        told_defaults = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", self.TEXT, re.MULTILINE))
        defaults = {entry.name: entry.default for entry in fields(ConditionRule) if entry.name != "records_only"}
        written = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in defaults.items()
        }
        assert told_defaults == {"enabled": "true"} | written

    def test_shows_settings_that_are_accepted(self) -> None:
        [shown] = re.findall(r"```toml\n(.*?)```", self.TEXT, re.DOTALL)
        rules = AlarmRules.for_labels(LABELS, tomllib.loads(shown)["alarms"])
        assert rules.classes["knock"].latching
        assert "sensor.gap" not in rules.conditions

    def test_tells_its_first_example_truly(self) -> None:
        probabilities = [0.02, 0.41, 0.93, 0.88, 0.35, 0.05]
        raised, cleared = run([window(n, knock=p) for n, p in enumerate([*probabilities, *[0.01] * 30])])
        assert (raised.first_sample, raised.start_sample, cleared.start_sample) == (2 * HOP, 3 * HOP, 20 * HOP)
        assert f"{(raised.time_ns - EPOCH_NS) / S:.3f} s" in self.TEXT
        assert f"{(cleared.time_ns - EPOCH_NS) / S:.3f} s" in self.TEXT
