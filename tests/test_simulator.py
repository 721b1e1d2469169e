from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.background import BLOCK, OVERLAP, Background
from producers.event_waveforms import EventKind, render_event
from producers.propagation import DEMO_POSITIONS, TRAINING_POSITIONS
from producers.simulator import (
    RATE_HZ,
    VOLTS_PER_COUNT,
    PlannedEvent,
    SensorSimulator,
    floor_v,
    interval_of,
    labelled_recording,
    plan_events,
)
from producers.sources.frame_cuts import FrameCuts
from producers.sources.simulator import SimulatedSensors
from stream.records import Flags

POSITION = DEMO_POSITIONS[0]
WINDOW, HOP = 65_536, 32_768


def rendered(kind, position=POSITION, seeds=range(12)):
    return [render_event(kind, position, np.random.default_rng(seed), RATE_HZ) for seed in seeds]


def audible_s(event, position=POSITION):
    first, last = event.audible(floor_v(position))
    return (last - first) / RATE_HZ


def centroid_hz(samples):
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(len(samples), 1 / RATE_HZ)) / np.sum(power))


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_event_has_a_level_of_acoustic_emission_at_every_position(kind):
    for position in (*TRAINING_POSITIONS, *DEMO_POSITIONS):
        event = render_event(kind, position, np.random.default_rng(1), RATE_HZ)
        assert 60 - 1e-3 <= event.peak_db_ae <= 95 + 1e-3
        assert event.samples.dtype == np.float32
        assert np.all(np.isfinite(event.samples))


@pytest.mark.parametrize("kind", list(EventKind))
def test_an_event_is_drawn_from_the_generator_alone(kind):
    one, again, other = (render_event(kind, POSITION, np.random.default_rng(seed), RATE_HZ) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.samples, again.samples)
    assert len(one.samples) != len(other.samples) or not np.allclose(one.samples, other.samples)


@pytest.mark.parametrize("kind", list(EventKind))
def test_the_onset_is_where_the_event_begins(kind):
    for event in rendered(kind):
        peak = np.max(np.abs(event.samples))
        assert np.max(np.abs(event.samples[: event.onset])) <= 0.05 * peak
        assert abs(event.samples[event.onset]) > 0.05 * peak


def test_a_pencil_lead_break_is_a_burst_of_a_few_milliseconds():
    for position in DEMO_POSITIONS:
        for event in rendered(EventKind.PENCIL_LEAD_BREAK, position, range(4)):
            assert 0.0003 < audible_s(event, position) < 0.012


def test_friction_holds_four_windows_wherever_it_begins():
    for event in rendered(EventKind.FRICTION, seeds=range(8)):
        assert len(event.samples) - event.onset >= WINDOW + 4 * HOP
        # Sustained: no tenth of it is silent.
        for part in np.array_split(event.samples[event.onset : event.onset + int(0.4 * RATE_HZ)], 10):
            assert np.sqrt(np.mean(part**2)) > 0.1 * np.sqrt(np.mean(event.samples**2))


def test_a_knock_rings_for_tens_of_milliseconds_at_low_frequencies():
    for event in rendered(EventKind.KNOCK):
        assert 0.010 < audible_s(event) < 0.200
        assert centroid_hz(event.samples) < 40_000
    lead_breaks = np.median([centroid_hz(event.samples) for event in rendered(EventKind.PENCIL_LEAD_BREAK)])
    assert lead_breaks > 1.5 * np.median([centroid_hz(event.samples) for event in rendered(EventKind.KNOCK)])


def test_a_drop_bounces_at_intervals_that_shrink_by_one_ratio():
    for event in rendered(EventKind.DROP, seeds=range(40)):
        flights = np.diff(event.onsets) / RATE_HZ
        assert len(flights) >= 4
        assert 0.015 <= flights[0] <= 0.045
        ratios = flights[1:] / flights[:-1]
        assert np.all((ratios > 0.54) & (ratios < 0.76))
        assert np.ptp(ratios) < 0.01
        assert (event.onsets[-1] - event.onset) / RATE_HZ < 0.25


def test_each_bounce_of_a_drop_is_heard_and_weaker():
    for event in rendered(EventKind.DROP):
        peaks = [np.max(np.abs(event.samples[at : at + RATE_HZ // 1000])) for at in event.onsets[:4]]
        assert all(after < 0.95 * before for before, after in pairwise(peaks))
        # Each stands out of what is left of the one before.
        for at, peak in zip(event.onsets[1:4], peaks[1:], strict=True):
            assert peak > 1.3 * np.max(np.abs(event.samples[at - RATE_HZ // 2000 : at - 50]))


def test_of_two_overlapping_windows_at_most_one_sees_a_drop_as_a_single_impact():
    for event in rendered(EventKind.DROP, seeds=range(40)):
        assert event.onsets[1] - event.onsets[0] < HOP


def test_a_longer_way_makes_the_same_source_quieter():
    near = min(TRAINING_POSITIONS, key=lambda position: -position.level_offset_db)
    far = max(TRAINING_POSITIONS, key=lambda position: -position.level_offset_db)
    levels = [np.mean([event.peak_db_ae for event in rendered(EventKind.KNOCK, position)]) for position in (near, far)]
    assert levels[0] > levels[1] + 3


@pytest.mark.parametrize("position", [*DEMO_POSITIONS[:3], TRAINING_POSITIONS[0]], ids=lambda position: position.name)
def test_background_has_the_level_of_its_position(position):
    background = Background(position, RATE_HZ, seed=3)
    volts = np.concatenate([background.block(k) for k in range(12)])
    rms_db_ae = 20 * np.log10(np.sqrt(np.mean(volts.astype(np.float64) ** 2)) / 1e-6)
    assert rms_db_ae == pytest.approx(position.noise_db_ae, abs=2.5)
    assert 28 < rms_db_ae < 40


def test_background_blocks_join_without_a_seam():
    background = Background(POSITION, RATE_HZ, seed=3)
    volts = np.concatenate([background.block(k) for k in range(20)]).astype(np.float64)
    seams = np.abs(np.diff(volts))[BLOCK - 1 :: BLOCK]
    assert np.max(seams) < np.quantile(np.abs(np.diff(volts)), 0.9999)
    blocks = volts.reshape(20, BLOCK)
    assert np.sqrt(np.mean(blocks[:, :OVERLAP] ** 2)) == pytest.approx(np.sqrt(np.mean(blocks**2)), rel=0.15)


def test_background_is_not_white():
    power = np.abs(np.fft.rfft(Background(POSITION, RATE_HZ, seed=3).block(0))) ** 2
    bands = [np.mean(band) for band in np.array_split(power[100:], 10)]
    assert max(bands) > 4 * min(bands)


def test_two_blocks_of_background_are_independent():
    background = Background(POSITION, RATE_HZ, seed=3)
    background._hum[:] = 0
    assert abs(np.corrcoef(background.block(1), background.block(2))[0, 1]) < 0.05
    assert abs(np.corrcoef(background.block(1), Background(POSITION, RATE_HZ, seed=4).block(1))[0, 1]) < 0.6


EVENTS = (
    PlannedEvent(POSITION.name, EventKind.DROP, 100_000, 1),
    PlannedEvent(POSITION.name, EventKind.FRICTION, 350_000, 2),
)
WHOLE = SensorSimulator(POSITION.name, POSITION, seed=9, events=EVENTS).samples(0, 700_000)


@given(st.lists(st.integers(0, 699_999), max_size=12), st.randoms())
def test_samples_do_not_depend_on_how_they_are_cut_or_in_which_order_they_are_asked_for(cuts, random):
    edges = [0, *sorted(cuts), 700_000]
    spans = list(pairwise(edges))
    random.shuffle(spans)
    simulator = SensorSimulator(POSITION.name, POSITION, seed=9, events=EVENTS)
    for start, stop in spans:
        np.testing.assert_array_equal(simulator.samples(start, stop), WHOLE[start:stop])


def test_an_event_adds_to_the_background_from_its_sample_on():
    quiet = SensorSimulator(POSITION.name, POSITION, seed=9).samples(0, 700_000).astype(np.int32)
    added = np.abs(WHOLE - quiet) * VOLTS_PER_COUNT
    for event in EVENTS:
        loudest = np.max(added[event.at_sample : event.at_sample + 60_000])
        assert np.max(added[event.at_sample - 2_000 : event.at_sample - 200]) < 0.06 * loudest
        assert 1e-3 < loudest < 0.1
        assert np.max(added[event.at_sample : event.at_sample + 100]) > 0.05 * loudest


def test_a_long_event_is_there_to_its_end():
    quiet = SensorSimulator(POSITION.name, POSITION, seed=9)
    with_friction = SensorSimulator(POSITION.name, POSITION, seed=9, events=EVENTS)
    interval = interval_of(EVENTS[1], POSITION)
    assert interval.last_sample - interval.first_sample > 0.4 * RATE_HZ
    for start in range(interval.first_sample, interval.last_sample - 20_000, 20_000):
        assert not np.array_equal(quiet.samples(start, start + 20_000), with_friction.samples(start, start + 20_000))


def test_nothing_clips_at_the_default_scale():
    events = [PlannedEvent(POSITION.name, kind, 2_000_000 * k, k) for k, kind in enumerate(EventKind, start=1)]
    counts = SensorSimulator(POSITION.name, POSITION, events=events).samples(0, 10_000_000)
    assert np.max(np.abs(counts.astype(np.int32))) < 30_000
    # And the background is not lost between two counts.
    assert np.std(counts[:100_000]) > 5


def test_other_seeds_give_other_samples():
    one, other = (SensorSimulator(POSITION.name, POSITION, seed=seed).samples(0, 1000) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_an_event_of_another_sensor_is_refused():
    with pytest.raises(ValueError, match="elsewhere"):
        SensorSimulator("here", POSITION, events=[PlannedEvent("elsewhere", EventKind.DROP, 0, 1)])


def test_samples_before_zero_are_refused():
    with pytest.raises(ValueError, match="-1"):
        SensorSimulator("here", POSITION).samples(-1, 5)


def test_an_interval_is_where_the_event_stands_out():
    event = PlannedEvent(POSITION.name, EventKind.KNOCK, 50_000, 3)
    interval = interval_of(event, POSITION)
    assert abs(interval.first_sample - event.at_sample) < 500
    assert interval.onsets[0] == event.at_sample
    assert 10_000 < interval.last_sample - interval.first_sample < 100_000


SENSORS = [position.name for position in DEMO_POSITIONS]


def test_a_plan_leaves_each_sensor_time_between_events_and_quiet_at_both_ends():
    plan = plan_events(1, SENSORS, 60.0, spacing_s=8.0, first_s=4.0, last_s=6.0)
    assert len(plan) >= 4 * len(SENSORS)
    for sensor in SENSORS:
        times = [event.at_sample / RATE_HZ for event in plan if event.sensor == sensor]
        assert all(after - before >= 8.0 - 1e-5 for before, after in pairwise(times))
        assert times[0] >= 4.0
        assert times[-1] <= 54.0
    assert list(plan) == sorted(plan, key=lambda event: event.at_sample)


def test_a_plan_brings_every_class_to_every_sensor_before_any_comes_again():
    plan = plan_events(5, SENSORS, 60.0)
    for sensor in SENSORS:
        kinds = [event.kind for event in plan if event.sensor == sensor]
        assert set(kinds[:4]) == set(EventKind)
        assert all(before != after for before, after in pairwise(kinds))


def test_sensors_are_staggered():
    firsts = {}
    for event in plan_events(2, SENSORS, 60.0):
        firsts.setdefault(event.sensor, event.at_sample)
    assert len(set(firsts.values())) == len(SENSORS)


def test_a_plan_survives_json():
    plan = plan_events(1, SENSORS, 30.0)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=tuple[PlannedEvent, ...]) == plan
    assert plan == plan_events(1, SENSORS, 30.0) != plan_events(2, SENSORS, 30.0)


def test_a_plan_too_short_for_an_event_is_refused():
    with pytest.raises(ValueError, match="5 s"):
        plan_events(1, SENSORS, 5.0)


def test_a_labelled_recording_holds_each_class_where_it_says():
    recording = labelled_recording(TRAINING_POSITIONS[1], 8.0, seed=2)
    assert recording.samples.dtype == np.int16
    assert len(recording.samples) == 8 * RATE_HZ
    assert {interval.kind for interval in recording.intervals} == set(EventKind)
    outside = np.ones(len(recording.samples), dtype=bool)
    for interval in recording.intervals:
        outside[interval.first_sample - 1_000 : interval.last_sample + 1_000] = False
        inside = recording.samples[interval.first_sample : interval.last_sample + 1].astype(np.float64)
        assert np.max(np.abs(inside)) * recording.volts_per_count > 0.9e-3
    quiet_rms_v = np.std(recording.samples[outside]) * recording.volts_per_count
    assert 20 * np.log10(quiet_rms_v / 1e-6) == pytest.approx(TRAINING_POSITIONS[1].noise_db_ae, abs=3)
    for before, after in pairwise(recording.intervals):
        assert after.first_sample - before.last_sample > 0.1 * RATE_HZ


def test_a_labelled_recording_is_drawn_from_its_seed():
    one, again, other = (labelled_recording(POSITION, 2.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.samples, again.samples)
    assert one.intervals == again.intervals
    assert not np.array_equal(one.samples, other.samples)


def simulated(cuts, duration_s=0.5):
    sensors = [SensorSimulator(position.name, position, seed=3) for position in DEMO_POSITIONS[:2]]
    return SimulatedSensors(sensors, duration_s, cuts, epoch_ns=1_000)


@pytest.mark.parametrize(
    "cuts", [FrameCuts(0.001), FrameCuts(0.1), FrameCuts(1.0), FrameCuts(frame_sizes=[7, 900, 31])]
)
def test_simulated_frames_hold_the_same_samples_however_they_are_cut(cuts):
    source = simulated(cuts)
    frames = list(source)
    assert len(frames) == source.total_frames
    assert sum(len(frame.samples) for frame in frames) == source.total_samples == 500_000
    for position in DEMO_POSITIONS[:2]:
        own = [frame for frame in frames if frame.sensor == position.name]
        assert [frame.sequence for frame in own] == list(range(len(own)))
        assert all(before.end_sample == after.first_sample for before, after in pairwise(own))
        assert [frame.flags for frame in own] == [Flags(0)] * (len(own) - 1) + [Flags.END]
        assert own[-1].time_ns == 1_000 + 500_000_000
        whole = SensorSimulator(position.name, position, seed=3).samples(0, 250_000)
        np.testing.assert_array_equal(np.concatenate([frame.samples for frame in own]), whole)


def test_a_simulation_without_end_says_so():
    source = simulated(FrameCuts(0.05), duration_s=None)
    assert (source.duration_s, source.total_frames, source.total_samples) == (None, None, None)
    assert next(iter(source)).first_sample == 0


def test_simulated_sensors_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        SimulatedSensors([SensorSimulator("a", POSITION), SensorSimulator("a", POSITION)])
