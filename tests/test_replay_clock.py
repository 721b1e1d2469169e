import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.replay_clock import FASTEST, SLOWEST, ReplayClock, faster, slower

RATES = st.sampled_from([0.25, 0.3, 1.0, 2.0, 10.0, 1000.0])
STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 100.0),
        st.one_of(st.sampled_from(["pause", "resume", "look"]), RATES),
    ),
    max_size=40,
)


def act(clock, what, wall_s):
    if what == "pause":
        clock.pause(wall_s)
    elif what == "resume":
        clock.resume(wall_s)
    elif what != "look":
        clock.set_rate(what, wall_s)


@settings(deadline=None)
@given(RATES, STEPS)
def test_whatever_is_done_to_it_media_time_is_continuous_and_never_goes_back(rate, steps):
    clock = ReplayClock(rate)
    clock.begin(1000.0)
    wall_s, last_s = 1000.0, 0.0
    for waited_s, what in steps:
        wall_s += waited_s
        before_s = clock.media_s(wall_s)
        act(clock, what, wall_s)
        assert clock.media_s(wall_s) == before_s >= last_s
        last_s = before_s


@settings(deadline=None)
@given(RATES, STEPS)
def test_media_time_is_the_sum_of_what_ran_at_each_pace(rate, steps):
    clock = ReplayClock(rate)
    clock.begin(0.0)
    wall_s, running, expected_s = 0.0, True, 0.0
    for waited_s, what in steps:
        wall_s += waited_s
        expected_s += waited_s * rate * running
        act(clock, what, wall_s)
        running = {"pause": False, "resume": True}.get(what, running)
        rate = what if isinstance(what, float) else rate
    assert clock.media_s(wall_s) == pytest.approx(expected_s, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(RATES, STEPS, st.floats(0.0, 1e5))
def test_a_deadline_is_when_media_time_gets_there(rate, steps, ahead_s):
    clock = ReplayClock(rate)
    clock.begin(0.0)
    wall_s = 0.0
    for waited_s, what in steps:
        wall_s += waited_s
        act(clock, what, wall_s)
    clock.resume(wall_s)
    place_s = clock.media_s(wall_s) + ahead_s
    due_s = clock.due_s(place_s)
    assert due_s >= wall_s - 1e-6
    assert clock.media_s(due_s) == pytest.approx(place_s, rel=1e-9, abs=1e-6)


def test_a_million_frames_and_a_thousand_pauses_later_nothing_has_drifted():
    clock = ReplayClock(2.0)
    clock.begin(50.0)
    paused_s = 0.0
    frame_s = 0.05
    for number in range(1, 1_000_001):
        due_s = clock.due_s(number * frame_s)
        if number % 1000 == 0:
            clock.pause(due_s)
            clock.resume(due_s + 0.123)
            paused_s += 0.123
    assert clock.due_s(1_000_001 * frame_s) == pytest.approx(50.0 + 1_000_001 * frame_s / 2 + paused_s, abs=1e-6)


def test_before_it_begins_and_while_paused_nothing_is_due():
    clock = ReplayClock(1.0, paused=True)
    assert clock.due_s(0.0) is None
    clock.resume(5.0)
    clock.begin(10.0)
    assert clock.due_s(1.0) == 11.0
    clock.pause(10.5)
    assert clock.due_s(0.1) is None
    assert clock.media_s(99.0) == 0.5


def test_a_step_while_paused_moves_media_time_and_it_goes_on_from_there():
    clock = ReplayClock(2.0, paused=True)
    clock.begin(0.0)
    clock.reach(3.0)
    clock.reach(1.0)
    clock.resume(100.0)
    assert clock.media_s(101.0) == 5.0


def test_at_full_speed_all_is_due_and_a_pace_taken_up_goes_on_from_what_was_played():
    clock = ReplayClock(None)
    clock.begin(0.0)
    assert clock.due_s(1e9) == -math.inf
    clock.reach(500.0)
    clock.set_rate(1.0, 7.0)
    assert clock.due_s(501.0) == 8.0


def test_faster_and_slower_are_factors_of_two_up_to_full_speed():
    assert (faster(1.0), faster(FASTEST), faster(None)) == (2.0, None, None)
    assert (slower(1.0), slower(None), slower(SLOWEST), slower(SLOWEST / 3)) == (0.5, 1.0, SLOWEST, SLOWEST / 3)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_no_pace_is_refused(rate):
    with pytest.raises(ValueError, match="positive"):
        ReplayClock(rate)
    with pytest.raises(ValueError, match="positive"):
        ReplayClock().set_rate(rate, 0.0)
