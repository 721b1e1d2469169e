from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from producers.live.clock_drift import STRETCH_S, ClockDrift
from producers.live.framer import Framer
from stream.records import NS_PER_S, Flags

RATE = Fraction(1_000)
EPOCH_NS = 1_700_000_000 * NS_PER_S


def framer(frame_samples: int = 100) -> Framer:
    return Framer("pump/ch0", RATE, 0.5, frame_samples, EPOCH_NS)


@given(st.lists(st.integers(1, 350), min_size=1, max_size=20), st.integers(1, 200))
def test_frames_joined_are_the_samples_however_they_came(sizes: list[int], frame_samples: int) -> None:
    samples = np.arange(sum(sizes), dtype=np.int16)
    cutter = framer(frame_samples)
    frames = [frame for part in np.split(samples, np.cumsum(sizes)[:-1]) for frame in cutter.push(part)]
    frames += cutter.end()
    *full, end = frames
    assert np.array_equal(np.concatenate([frame.samples for frame in full]), samples)
    assert [frame.sequence for frame in frames] == list(range(len(frames)))
    assert all(frame.first_sample == index * frame_samples for index, frame in enumerate(full))
    assert all(frame.time_ns == EPOCH_NS + frame.first_sample * 1_000_000 for frame in frames)
    assert {len(frame.samples) for frame in full[:-1]} <= {frame_samples}
    assert (end.flags, end.first_sample, len(end.samples)) == (Flags.END, len(samples), 0)


def test_lost_samples_keep_their_place_and_the_next_frame_says_so() -> None:
    cutter = framer()
    before = cutter.push(np.zeros(150, np.int16))
    after = cutter.push(np.ones(100, np.int16), lost=30)
    assert [(frame.first_sample, len(frame.samples)) for frame in [*before, *after]] == [
        (0, 100),
        (100, 50),
        (180, 100),
    ]
    assert [frame.flags for frame in [*before, *after]] == [Flags(0), Flags(0), Flags.OVERFLOW]
    assert cutter.push(np.ones(100, np.int16))[0].flags == Flags(0)


def test_samples_that_are_not_finite_are_lost_ones() -> None:
    samples = np.ones(100, np.float32)
    samples[[0, 40, 41]] = [np.inf, np.nan, -np.inf]
    cutter = framer(50)
    frames = [*cutter.push(samples), *cutter.flush()]
    assert [(frame.first_sample, len(frame.samples)) for frame in frames] == [(1, 39), (42, 50), (92, 8)]
    assert [bool(frame.flags & Flags.OVERFLOW) for frame in frames] == [True, True, False]
    assert all(np.isfinite(frame.samples).all() for frame in frames)


def test_the_ends_of_the_converters_range_are_told() -> None:
    samples = np.zeros(300, np.int16)
    samples[150] = -32_768
    assert [frame.flags for frame in framer().push(samples)] == [Flags(0), Flags.SATURATED, Flags(0)]


def test_a_frame_does_not_change_with_its_device_s_buffer() -> None:
    buffer = np.arange(100, dtype=np.int16)
    (frame,) = framer().push(buffer)
    buffer[:] = 0
    assert frame.samples[99] == 99


def test_drift_is_seen_through_the_delays_of_the_blocks() -> None:
    drift = ClockDrift()
    rng = np.random.default_rng(0)
    for block in range(36_000):  # an hour of blocks of 100 ms; the device's clock is 50 ppm slow
        counted_s = 0.1 * block
        now_s = counted_s * (1 + 50e-6) + 0.01 + rng.exponential(0.02)
        drift.arrived(EPOCH_NS + round(counted_s * NS_PER_S), EPOCH_NS + round(now_s * NS_PER_S))
    assert drift.drift_ppm is not None
    assert abs(drift.drift_ppm - 50) < 2
    assert abs(drift.offset_s - 3_600 * 50e-6) < 0.05


def test_drift_is_not_told_before_it_can_be_known() -> None:
    drift = ClockDrift()
    assert drift.offset_s == 0
    for second in range(int(3 * STRETCH_S)):
        drift.arrived(second * NS_PER_S, second * NS_PER_S)
    assert drift.drift_ppm is None
