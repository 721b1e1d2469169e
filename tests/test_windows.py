from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.hit_features import measure
from stream.records import MAX_INDEX, Flags, Frame, Samples, Window, samples_to_ns
from stream.resample import resampler
from stream.windows import MAX_RESAMPLED_HIT, Pushed, SensorWindows, WindowSpec

RATE = Fraction(1000)
SIGNAL: npt.NDArray[np.int16] = np.random.default_rng(1).integers(-32768, 32768, 200_000).astype(np.int16)


def frame(start: int, end: int, **fields: Any) -> Frame:
    samples: Samples = SIGNAL[start:end] if end <= len(SIGNAL) else np.zeros(end - start, np.int16)
    values: dict[str, Any] = {
        "sensor": "s",
        "epoch_ns": 0,
        "sequence": 0,
        "first_sample": start,
        "time_ns": 0,
        "rate_hz": RATE,
        "samples": samples,
    }
    return Frame(**(values | fields))


def push_all(windows: SensorWindows, frames: Iterable[Frame]) -> list[Window]:
    return [window for f in frames for window in windows.push(f).windows]


def cut(spec: WindowSpec, *frames: Frame) -> tuple[list[Window], SensorWindows]:
    windows = SensorWindows("s", spec)
    return push_all(windows, frames), windows


def starts(windows: Iterable[Window]) -> list[int]:
    return [window.start_sample for window in windows]


def same(a: Window, b: Window) -> bool:
    """Everything but the flags, bit for bit."""
    fields = ("sensor", "epoch_ns", "start_sample", "source_count", "source_rate_hz", "time_ns", "rate_hz")
    return (
        all(getattr(a, name) == getattr(b, name) for name in fields)
        and a.volts_per_count == b.volts_per_count
        and a.samples.dtype == b.samples.dtype
        and a.samples.tobytes() == b.samples.tobytes()
    )


SPEC = WindowSpec(length=64, hop=64)
OVERLAPPING = WindowSpec(length=64, hop=16)
SPARSE = WindowSpec(length=16, hop=64)
TO_400_HZ = WindowSpec(length=64, hop=32, rate_hz=Fraction(400))


def pieces(sizes: Iterable[int], length: int) -> list[Frame]:
    frames = []
    at = 0
    for size in sizes:
        if at >= length:
            break
        frames.append(frame(at, min(at + size, length)))
        at += size
    return frames


class TestTheGrid:
    def test_windows_lie_at_multiples_of_the_hop_and_hold_the_signal(self) -> None:
        windows, _ = cut(OVERLAPPING, frame(0, 200))
        assert starts(windows) == [0, 16, 32, 48, 64, 80, 96, 112, 128]
        for window in windows:
            np.testing.assert_array_equal(window.samples, SIGNAL[window.start_sample :][:64])
            assert window.source_count == 64
            assert window.source_rate_hz == window.rate_hz == RATE

    def test_time_comes_from_epoch_and_counter_and_not_from_the_frame(self) -> None:
        windows, _ = cut(SPEC, frame(0, 200, epoch_ns=7_000, time_ns=123, rate_hz=Fraction(48_000)))
        assert [w.time_ns for w in windows] == [7_000, 7_000 + 64 * 10**9 // 48_000, 7_000 + 128 * 10**9 // 48_000]

    def test_reading_may_begin_anywhere_and_windows_begin_at_the_next_grid_point(self) -> None:
        windows, state = cut(SPEC, frame(65, 300))
        assert starts(windows) == [128, 192]
        assert state.counts.gaps == 0
        windows, _ = cut(SPEC, frame(64, 300))
        assert starts(windows) == [64, 128, 192]

    def test_a_hop_longer_than_the_window_leaves_samples_out_and_forgets_them(self) -> None:
        windows, state = cut(SPARSE, *pieces([5] * 60, 300))
        assert starts(windows) == [0, 64, 128, 192, 256]
        for window in windows:
            np.testing.assert_array_equal(window.samples, SIGNAL[window.start_sample :][:16])
        assert state.needed_from == (0, 300)

    @pytest.mark.parametrize("spec", [SPEC, OVERLAPPING, SPARSE, TO_400_HZ])
    @given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60))
    @settings(max_examples=40, deadline=None)
    def test_windows_are_bit_identical_however_the_frames_were_cut(self, spec: WindowSpec, sizes: list[int]) -> None:
        length = sum(sizes)
        whole, _ = cut(spec, frame(0, length))
        pieced, state = cut(spec, *pieces(sizes, length))
        assert len(whole) == len(pieced)
        assert all(map(same, whole, pieced))
        assert state.counts.samples == length

    @pytest.mark.parametrize("spec", [WindowSpec(4096, 2048), WindowSpec(1600, 800, Fraction(16_000))])
    def test_frames_of_1_ms_100_ms_1_s_and_random_sizes_give_the_same_windows(self, spec: WindowSpec) -> None:
        rate = Fraction(100_000)
        random = np.random.default_rng(2).integers(1, 5000, 1000).tolist()
        cuts: list[list[int]] = [[100] * 2000, [10_000] * 20, [100_000] * 2, random]
        runs = [cut(spec, *(replace(f, rate_hz=rate) for f in pieces(sizes, 200_000)))[0] for sizes in cuts]
        assert len(runs[0]) > 15
        for other in runs[1:]:
            assert len(other) == len(runs[0])
            assert all(map(same, runs[0], other))

    def test_a_window_within_one_frame_is_a_view_of_it(self) -> None:
        whole = frame(0, 200)
        windows, _ = cut(OVERLAPPING, whole)
        assert all(np.shares_memory(window.samples, whole.samples) for window in windows)


class TestBreaks:
    def test_no_window_spans_a_gap(self) -> None:
        windows, state = cut(SPEC, frame(0, 100), frame(130, 300))
        assert starts(windows) == [0, 192]
        assert (state.counts.gaps, state.counts.gap_samples, state.counts.tail_samples) == (1, 30, 36)
        assert state.needed_from == (0, 256)

    def test_an_overflow_with_a_contiguous_counter_is_a_gap_all_the_same(self) -> None:
        windows, state = cut(SPEC, frame(0, 100), frame(100, 300, flags=Flags.OVERFLOW))
        assert starts(windows) == [0, 128, 192]
        assert (state.counts.gaps, state.counts.gap_samples) == (1, 0)
        assert windows[1].flags == Flags.OVERFLOW

    def test_the_first_frame_is_no_gap_even_where_it_says_that_samples_were_lost_before(self) -> None:
        _, state = cut(SPEC, frame(100, 300, flags=Flags.OVERFLOW))
        assert state.counts.gaps == 0

    def test_a_duplicate_is_dropped_and_counted(self) -> None:
        state = SensorWindows("s", SPEC)
        assert starts(push_all(state, [frame(0, 100)])) == [0]
        for duplicate in (frame(0, 100), frame(20, 70), frame(99, 100)):
            assert state.push(duplicate) == Pushed([], None, held=False)
        assert starts(push_all(state, [frame(100, 128)])) == [64]
        assert (state.counts.duplicates, state.counts.samples) == (3, 128)

    def test_a_duplicate_of_what_came_before_a_gap_is_still_known(self) -> None:
        _, state = cut(SPEC, frame(0, 100), frame(130, 300), frame(0, 100))
        assert (state.counts.duplicates, state.counts.late) == (1, 0)

    def test_an_overlap_is_trimmed_and_the_samples_that_came_first_win(self) -> None:
        other = np.full(100, 77, np.int16)
        windows, state = cut(SPEC, frame(0, 100), frame(50, 150, samples=other))
        np.testing.assert_array_equal(windows[1].samples, np.r_[SIGNAL[64:100], other[50:78]])
        assert (state.counts.overlaps, state.counts.samples, state.counts.gaps) == (1, 150, 0)

    @pytest.mark.parametrize(("start", "end"), [(100, 130), (90, 110), (110, 140), (99, 301)])
    def test_a_frame_that_reaches_into_a_passed_gap_is_late_and_rejected(self, start: int, end: int) -> None:
        state = SensorWindows("s", SPEC)
        push_all(state, [frame(0, 100), frame(130, 300)])
        pushed = state.push(frame(start, end))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("late: ")
        assert (pushed.windows, pushed.held, state.counts.late) == ([], False, 1)
        assert starts(push_all(state, [frame(300, 320)])) == [256]

    def test_a_frame_before_where_reading_began_is_late(self) -> None:
        _, state = cut(SPEC, frame(100, 200), frame(0, 100))
        assert state.counts.late == 1

    def test_where_others_read_before_frames_sent_again_from_before_that_are_duplicates(self) -> None:
        state = SensorWindows("s", SPEC, goes_on=True)
        push_all(state, [frame(100, 200)])
        assert push_all(state, [frame(0, 60), frame(60, 130), frame(130, 200)]) == []
        assert state.counts.duplicates == 3
        assert state.counts.late == 0
        assert starts(push_all(state, [frame(200, 264)])) == [192]

    def test_others_that_read_before_know_nothing_of_a_later_epoch(self) -> None:
        state = SensorWindows("s", SPEC, goes_on=True)
        push_all(state, [frame(100, 200), frame(50, 60, epoch_ns=5)])
        assert state.push(frame(0, 10, epoch_ns=5)).rejected is not None

    def test_a_new_rate_begins_a_new_segment(self) -> None:
        windows, state = cut(SPEC, frame(0, 100), frame(100, 300, rate_hz=Fraction(2000)))
        assert [(w.start_sample, w.source_rate_hz) for w in windows] == [(0, 1000), (128, 2000), (192, 2000)]
        assert (state.counts.rate_changes, state.counts.gaps, state.counts.tail_samples) == (1, 0, 36)

    def test_resampling_stops_and_starts_with_the_rate(self) -> None:
        native = {"rate_hz": Fraction(400)}
        windows, _ = cut(
            TO_400_HZ, frame(0, 10_000), frame(10_000, 20_000, **native), frame(20_000, 30_000), frame(30_000, 30_001)
        )
        assert {w.rate_hz for w in windows} == {Fraction(400)}
        assert {(w.samples.dtype, w.source_rate_hz) for w in windows} == {
            (np.dtype(np.float32), RATE),
            (np.dtype(np.int16), Fraction(400)),
        }
        first_native = next(w for w in windows if w.source_rate_hz == 400)
        assert first_native.start_sample == 10_016
        assert [w.start_sample for w in windows] == sorted(w.start_sample for w in windows)

    def test_sample_types_are_not_mixed_in_a_window(self) -> None:
        windows, state = cut(SPEC, frame(0, 100), frame(100, 300, samples=SIGNAL[100:300].astype(np.float32)))
        assert [(w.start_sample, w.samples.dtype) for w in windows] == [(0, "i2"), (128, "f4"), (192, "f4")]
        assert state.counts.format_changes == 1

    def test_scales_are_not_mixed_in_a_window(self) -> None:
        windows, state = cut(SPEC, frame(0, 100), frame(100, 300, volts_per_count=0.5))
        assert [(w.start_sample, w.volts_per_count) for w in windows] == [(0, 1.0), (128, 0.5), (192, 0.5)]
        assert state.counts.format_changes == 1

    def test_a_new_epoch_begins_anew_and_the_old_one_is_late(self) -> None:
        state = SensorWindows("s", SPEC)
        windows = push_all(state, [frame(0, 100), frame(0, 70, epoch_ns=5)])
        assert [w.position for w in windows] == [(0, 0), (5, 0)]
        pushed = state.push(frame(100, 200))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("late: epoch 0 is over")
        assert (state.counts.epochs, state.counts.gaps, state.counts.tail_samples) == (2, 0, 36)
        assert state.needed_from == (5, 64)

    def test_the_end_drops_the_tail_and_needs_nothing_any_more(self) -> None:
        windows, state = cut(SPEC, frame(0, 100, flags=Flags.END))
        assert starts(windows) == [0]
        assert state.counts.tail_samples == 36
        assert state.needed_from > (0, MAX_INDEX)
        pushed = state.push(frame(100, 200))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("late: samples 100 to 200 after the end")
        assert starts(push_all(state, [frame(0, 64, epoch_ns=1)])) == [0]

    def test_an_empty_end_ends_too(self) -> None:
        windows, state = cut(SPEC, frame(0, 64), frame(64, 64, flags=Flags.END), frame(64, 64, flags=Flags.END))
        assert starts(windows) == [0]
        assert (state.counts.tail_samples, state.counts.gaps, state.counts.late, state.counts.duplicates) == (0,) * 4
        assert state.needed_from > (0, MAX_INDEX)

    def test_samples_missing_before_an_empty_end_are_a_gap(self) -> None:
        _, state = cut(SPEC, frame(0, 64), frame(70, 70, flags=Flags.END))
        assert (state.counts.gaps, state.counts.gap_samples) == (1, 6)

    def test_the_tail_does_not_count_what_lies_between_sparse_windows(self) -> None:
        assert cut(SPARSE, frame(0, 60, flags=Flags.END))[1].counts.tail_samples == 0
        assert cut(SPARSE, frame(0, 70, flags=Flags.END))[1].counts.tail_samples == 6

    def test_the_tail_of_overlapping_windows_is_what_no_window_covers(self) -> None:
        assert cut(OVERLAPPING, frame(0, 70, flags=Flags.END))[1].counts.tail_samples == 6


class TestFlags:
    def test_a_window_carries_the_flags_of_the_frames_it_overlaps(self) -> None:
        windows, _ = cut(
            SPEC,
            frame(0, 60),
            frame(60, 70, flags=Flags.SATURATED),
            frame(70, 130, flags=Flags.HISTORICAL | Flags.TEST_PULSE),
            frame(130, 256, flags=Flags.END),
        )
        later = Flags.HISTORICAL | Flags.TEST_PULSE
        assert [w.flags for w in windows] == [Flags.SATURATED, Flags.SATURATED | later, later, Flags(0)]

    def test_flags_in_the_reach_of_the_filter_alone_are_not_carried(self) -> None:
        context = resampler(RATE, Fraction(400)).source_range(0, 64)[1]
        windows, _ = cut(TO_400_HZ, frame(0, 165), frame(165, context, flags=Flags.SATURATED))
        assert [(w.start_sample, w.source_count, w.flags) for w in windows] == [(0, 160, Flags(0))]


class TestHits:
    def test_each_hit_is_one_window_with_its_own_time(self) -> None:
        windows, state = cut(
            SPEC,
            frame(10, 210, flags=Flags.HIT | Flags.SATURATED, time_ns=77),
            frame(300, 305, flags=Flags.HIT | Flags.END, time_ns=99),
        )
        assert [(w.start_sample, w.source_count, w.time_ns, w.flags) for w in windows] == [
            (10, 200, 77, Flags.HIT | Flags.SATURATED),
            (300, 5, 99, Flags.HIT),
        ]
        np.testing.assert_array_equal(windows[0].samples, SIGNAL[10:210])
        assert (state.counts.hit_windows, state.counts.windows) == (2, 0)

    def test_hits_do_not_disturb_the_continuous_stream_around_them(self) -> None:
        hit = Flags.HIT
        windows, state = cut(SPEC, frame(0, 50), frame(20, 90, flags=hit), frame(50, 128), frame(500, 600, flags=hit))
        assert [(w.start_sample, bool(w.flags & hit)) for w in windows] == [
            (20, True),
            (0, False),
            (64, False),
            (500, True),
        ]
        assert (state.counts.gaps, state.counts.overlaps, state.counts.duplicates) == (0, 0, 0)
        assert state.needed_from == (0, 128)

    def test_a_hit_delivered_twice_is_a_duplicate_and_one_out_of_order_is_a_window(self) -> None:
        hit = Flags.HIT
        windows, state = cut(SPEC, frame(100, 200, flags=hit), frame(50, 90, flags=hit), frame(100, 200, flags=hit))
        assert starts(windows) == [100, 50]
        assert state.counts.duplicates == 1

    def test_nothing_of_a_hit_is_held_once_its_window_is_made(self) -> None:
        state = SensorWindows("s", SPEC)
        assert not state.push(frame(100, 200, flags=Flags.HIT)).held
        assert state.push(frame(0, 50)).held
        assert state.needed_from == (0, 0)

    def test_a_hit_after_the_end_of_its_epoch_is_late(self) -> None:
        _, state = cut(SPEC, frame(0, 0, flags=Flags.END), frame(50, 90, flags=Flags.HIT))
        assert state.counts.late == 1

    def test_a_hit_is_resampled_from_its_own_first_sample(self) -> None:
        windows, _ = cut(TO_400_HZ, frame(1003, 2003, flags=Flags.HIT))
        expected = resampler(RATE, Fraction(400)).apply(SIGNAL[1003:2003], 0, 0, 400)
        assert (windows[0].source_count, windows[0].rate_hz) == (1000, 400)
        np.testing.assert_array_equal(windows[0].samples, expected)

    def test_a_hit_that_would_grow_beyond_measure_is_refused(self) -> None:
        spec = WindowSpec(64, 64, Fraction(16_000))
        state = SensorWindows("s", spec)
        pushed = state.push(frame(0, MAX_RESAMPLED_HIT // 15, rate_hz=Fraction(1000), flags=Flags.HIT))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("too-large: ")
        assert state.counts.refused == 1


class TestResampledWindows:
    def test_place_and_samples_are_those_of_the_whole_signal_resampled_at_once(self) -> None:
        windows, state = cut(TO_400_HZ, *pieces([777] * 30, 20_000))
        between = resampler(RATE, Fraction(400))
        everything = between.apply(SIGNAL[:20_000], 0, 0, 8000)
        assert starts(windows) == [k * 80 for k in range(len(windows))]
        assert len(windows) > 240
        for k, window in enumerate(windows):
            np.testing.assert_array_equal(window.samples, everything[k * 32 : k * 32 + 64])
            assert (window.source_count, window.rate_hz, window.samples.dtype) == (160, 400, np.float32)
        assert state.needed_from == (0, between.source_range(len(windows) * 32, 64)[0])

    @given(begin=st.integers(0, 5000), rate=st.sampled_from([Fraction(999), Fraction(44_100, 7), Fraction(300), RATE]))
    @settings(max_examples=40, deadline=None)
    def test_where_reading_began_does_not_change_the_windows_that_follow(self, begin: int, rate: Fraction) -> None:
        whole, _ = cut(TO_400_HZ, frame(0, 20_000, rate_hz=rate))
        later, _ = cut(TO_400_HZ, frame(begin, 20_000, rate_hz=rate))
        assert later
        assert all(map(same, whole[-len(later) :], later))
        between = resampler(rate, Fraction(400))
        missing = len(whole) - len(later)
        assert between.source_range(missing * 32, 64)[0] >= begin
        assert missing == 0 or between.source_range((missing - 1) * 32, 64)[0] < begin

    @pytest.mark.parametrize("flags", [Flags(0), Flags.HIT])
    def test_resampled_int16_has_full_scale_at_one_and_keeps_its_volts(self, flags: Flags) -> None:
        fields: dict[str, Any] = {"flags": flags, "rate_hz": Fraction(800)}
        counts = SIGNAL[:2000]
        whole, _ = cut(TO_400_HZ, frame(0, 2000, volts_per_count=1e-6, samples=counts, **fields))
        floats = counts.astype(np.float32)
        same_volts, _ = cut(TO_400_HZ, frame(0, 2000, volts_per_count=1e-6, samples=floats, **fields))
        assert len(whole) == len(same_volts) > 0
        for window, other in zip(whole, same_volts, strict=True):
            assert window.samples.dtype == np.float32
            assert 0.3 < np.abs(window.samples).max() < 1.5
            assert (window.volts_per_count, other.volts_per_count) == (1e-6 * 32_768, 1e-6)
            np.testing.assert_array_equal(window.samples * np.float32(32_768), other.samples)

    def test_levels_and_features_do_not_depend_on_whether_counts_came_as_int16_or_float32(self) -> None:
        burst = np.where((np.arange(2000) // 400) % 2, SIGNAL[:2000] // 8, 3).astype(np.int16)
        fields: dict[str, Any] = {"volts_per_count": 2e-6, "rate_hz": Fraction(800)}
        whole, _ = cut(TO_400_HZ, frame(0, 2000, samples=burst, **fields))
        floats, _ = cut(TO_400_HZ, frame(0, 2000, samples=burst.astype(np.float32), **fields))
        for window, other in zip(whole, floats, strict=True):
            one, two = msgspec.structs.asdict(measure(window)), msgspec.structs.asdict(measure(other))
            assert one == pytest.approx(two, rel=1e-12)
        assert max(measure(window).peak_db_ae for window in whole) == pytest.approx(
            20 * math.log10(2.0 * np.abs(burst).max()), abs=6
        )

    def test_volts_per_count_that_no_resampled_window_could_name_are_refused(self) -> None:
        pushed = SensorWindows("s", TO_400_HZ).push(frame(0, 100, volts_per_count=1e305))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("scale: 1e+305 volts per count")

    def test_a_rate_whose_ratio_is_absurd_is_refused_and_leaves_the_stream_alone(self) -> None:
        state = SensorWindows("s", TO_400_HZ)
        state.push(frame(0, 100))
        pushed = state.push(frame(100, 200, rate_hz=Fraction(999_983), epoch_ns=3))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("rate: 999983 Hz to the model's 400 Hz")
        assert starts(push_all(state, [frame(100, 5000)]))[0] == 0
        assert (state.counts.refused, state.counts.gaps, state.counts.epochs) == (1, 0, 1)

    def test_a_rate_so_low_that_windows_would_share_their_start_is_refused(self) -> None:
        pushed = SensorWindows("s", TO_400_HZ).push(frame(0, 100, rate_hz=Fraction(12)))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("rate: at 12 Hz two windows")


class TestHostileInput:
    def test_a_jump_by_2_to_the_53_samples_costs_nothing(self) -> None:
        far = 2**53
        for spec in (SPEC, OVERLAPPING, SPARSE, WindowSpec(64, 32, Fraction(4_000_000))):
            state = SensorWindows("s", spec)
            state.push(frame(0, 100, rate_hz=Fraction(10**7)))
            later = [frame(far + a, far + a + 500, rate_hz=Fraction(10**7), samples=SIGNAL[:500]) for a in (0, 500)]
            windows = push_all(state, later)
            assert all(w.start_sample >= far and w.time_ns < 2**62 for w in windows)
            assert state.counts.gap_samples == far - 100

    @pytest.mark.parametrize("first", [2**60, 2**62])
    @pytest.mark.parametrize("flags", [Flags(0), Flags.HIT])
    def test_a_place_beyond_the_end_of_time_is_refused_and_leaves_the_stream_alone(
        self, first: int, flags: Flags
    ) -> None:
        state = SensorWindows("s", SPEC)
        state.push(frame(0, 100))
        pushed = state.push(frame(first, first + 10, flags=flags, epoch_ns=9))
        assert pushed.rejected is not None
        assert pushed.rejected.startswith("first-sample: ")
        assert starts(push_all(state, [frame(100, 128)])) == [64]

    def test_memory_of_passed_runs_and_hits_is_bounded(self) -> None:
        state = SensorWindows("s", SPEC)
        push_all(state, [frame(i * 3, i * 3 + 1) for i in range(5000)])
        push_all(state, [frame(i, i + 1, flags=Flags.HIT) for i in range(5000)])
        assert (len(state._runs), len(state._hits)) == (64, 1024)
        assert state.push(frame(0, 1)).rejected is not None

    @pytest.mark.parametrize(("length", "hop", "rate"), [(0, 1, None), (1, 0, None), (1, 1, Fraction(0))])
    def test_a_spec_that_makes_no_sense_is_an_error(self, length: int, hop: int, rate: Fraction | None) -> None:
        with pytest.raises(ValueError, match="must be"):
            WindowSpec(length, hop, rate)


@st.composite
def histories(draw: st.DrawFn, *, late: bool = False) -> list[Frame]:
    """Frames of one sensor with everything that happens to them; the samples are a function of place and epoch."""
    frames: list[Frame] = []
    epoch = at = 0
    rate, scale, dtype = RATE, 1.0, np.dtype(np.int16)
    for _ in range(draw(st.integers(1, 40))):
        happens = draw(
            st.sampled_from(
                ["frame"] * 8
                + ["gap", "overflow", "overlap", "duplicate", "rate", "scale", "type", "hit", "end", "epoch"]
                + (["late"] if late else [])
            )
        )
        if happens == "duplicate" and frames:
            first = draw(st.integers(0, len(frames) - 1))
            frames.extend(frames[first : first + draw(st.integers(1, 5))])
            continue
        start, flags = at, Flags(0)
        count = draw(st.integers(1, 150))
        match happens:
            case "gap":
                start += draw(st.integers(1, 200))
            case "late":
                start, count = max(0, start - draw(st.integers(1, 400))), draw(st.integers(1, 500))
            case "overlap":
                if frames and frames[-1].end_sample == at and not frames[-1].flags and frames[-1].epoch_ns == epoch:
                    start = draw(st.integers(frames[-1].first_sample, at))
                    count += at - start
            case "overflow":
                flags = Flags.OVERFLOW
            case "rate":
                rate = draw(st.sampled_from([RATE, Fraction(400), Fraction(999), Fraction(4410, 3)]))
            case "scale":
                scale = draw(st.sampled_from([1.0, 0.5]))
            case "type":
                dtype = draw(st.sampled_from([np.dtype(np.int16), np.dtype(np.float32)]))
            case "hit":
                flags = Flags.HIT
            case "end":
                flags = Flags.END
                count = draw(st.sampled_from([0, count]))
            case "epoch":
                epoch += 1
                start = draw(st.sampled_from([0, 33]))
            case _:
                flags = draw(st.sampled_from([Flags(0), Flags(0), Flags.SATURATED, Flags.HISTORICAL]))
        samples: Samples = SIGNAL[1000 * epoch + start :][:count].astype(dtype)
        if happens == "hit":
            start += draw(st.integers(0, 100))
        end = start + count
        frames.append(
            frame(start, end, epoch_ns=epoch, rate_hz=rate, volts_per_count=scale, samples=samples, flags=flags)
        )
        if happens == "end":
            epoch, at = epoch + 1, 0
        elif happens != "hit":
            at = max(at, end)
    return frames


def segments_of(frames: Sequence[Frame]) -> list[list[tuple[Frame, int]]]:
    """The rules once more, sample by sample: runs of (frame, index in the frame) that belong together."""
    segments: list[list[tuple[Frame, int]]] = []
    epoch, ended, taken = -1, False, 0
    open_segment = False
    seen: set[int] = set()
    for f in frames:
        if f.epoch_ns < epoch:
            continue
        if f.epoch_ns > epoch:
            epoch, ended, taken, open_segment, seen = f.epoch_ns, False, 0, False, set()
        if Flags.HIT not in f.flags and not ended and len(f.samples):
            places = range(f.first_sample, f.end_sample)
            fresh = [i for i in places if i >= taken]
            first_run = taken and min(seen)
            late = any(i < taken and i not in seen for i in places) or (seen and f.first_sample < first_run)
            if fresh and not late:
                previous = segments[-1][-1][0] if open_segment else None
                if (
                    previous is None
                    or fresh[0] > taken
                    or Flags.OVERFLOW in f.flags
                    or previous.rate_hz != f.rate_hz
                    or previous.volts_per_count != f.volts_per_count
                    or previous.samples.dtype != f.samples.dtype
                ):
                    segments.append([])
                segments[-1].extend((f, i - f.first_sample) for i in fresh)
                open_segment, taken = True, f.end_sample
                seen.update(fresh)
            elif late:
                continue
        if Flags.END in f.flags:
            ended, open_segment = True, False
    return segments


def windows_of(segment: list[tuple[Frame, int]], spec: WindowSpec) -> list[Window]:
    """All windows that a segment holds, each cut from the whole of it."""
    head, offset = segment[0]
    begin, end = head.first_sample + offset, head.first_sample + offset + len(segment)
    samples = np.array([f.samples[i] for f, i in segment], dtype=head.samples.dtype)
    windows = []
    native = spec.rate_hz in (None, head.rate_hz)
    for k in range(end):
        if native:
            span = needs = (k * spec.hop, k * spec.hop + spec.length)
        else:
            assert spec.rate_hz is not None
            between = resampler(head.rate_hz, spec.rate_hz)
            span = between.source_span(k * spec.hop, spec.length)
            needs = between.source_range(k * spec.hop, spec.length)
        if needs[0] < begin:
            continue
        if needs[1] > end:
            break
        part = samples[needs[0] - begin : needs[1] - begin]
        windows.append(
            Window(
                sensor=head.sensor,
                epoch_ns=head.epoch_ns,
                start_sample=span[0],
                source_count=span[1] - span[0],
                source_rate_hz=head.rate_hz,
                time_ns=head.epoch_ns + samples_to_ns(span[0], head.rate_hz),
                rate_hz=spec.rate_hz or head.rate_hz,
                samples=part if native else between.apply(part, needs[0], k * spec.hop, spec.length),
                volts_per_count=head.volts_per_count
                if native or head.samples.dtype == np.float32
                else 32_768 * head.volts_per_count,
            )
        )
    return windows


SPECS = [WindowSpec(64, 64), WindowSpec(40, 16), WindowSpec(16, 50), WindowSpec(32, 24, Fraction(400))]


@pytest.mark.parametrize("spec", SPECS, ids=["adjacent", "overlapping", "sparse", "resampled"])
class TestAnyHistory:
    @given(frames=histories(late=True))
    @settings(max_examples=80, deadline=None)
    def test_the_windows_are_those_of_the_segments_cut_as_a_whole(self, spec: WindowSpec, frames: list[Frame]) -> None:
        made, state = cut(spec, *frames)
        made = [w for w in made if Flags.HIT not in w.flags]
        expected = [w for segment in segments_of(frames) for w in windows_of(segment, spec)]
        assert [w.position for w in made] == [w.position for w in expected]
        assert all(map(same, made, expected))
        assert state.counts.windows == len(made)
        assert state.counts.frames == len(frames)

    @given(frames=histories(late=True))
    @settings(max_examples=60, deadline=None)
    def test_no_sample_before_needed_from_goes_into_a_later_window(self, spec: WindowSpec, frames: list[Frame]) -> None:
        state = SensorWindows("s", spec)
        needed = state.needed_from
        for f in frames:
            for window in state.push(f).windows:
                assert Flags.HIT in window.flags or window.position >= needed
            assert state.needed_from >= needed
            needed = state.needed_from

    @given(frames=histories(), crashes=st.lists(st.integers(0, 60), max_size=4))
    @settings(max_examples=100, deadline=None)
    def test_after_crashes_the_frames_not_yet_released_make_the_windows_that_are_missing(
        self, spec: WindowSpec, frames: list[Frame], crashes: list[int]
    ) -> None:
        uninterrupted = {w.position: w for w in cut(spec, *frames)[0] if Flags.HIT not in w.flags}
        found: dict[tuple[int, int], Window] = {}
        released = 0
        for crash in [*crashes, len(frames)]:
            state = SensorWindows("s", spec)
            pushed: list[Pushed] = []
            for f in frames[released : max(released, crash)]:
                pushed.append(state.push(f))
                for window in pushed[-1].windows:
                    if Flags.HIT not in window.flags:
                        found.setdefault(window.position, window)
            done = [
                not p.held or (f.epoch_ns, f.end_sample) <= state.needed_from
                for f, p in zip(frames[released:], pushed, strict=False)
            ]
            released += done.index(False) if False in done else len(done)
        assert sorted(found) == sorted(uninterrupted)
        for position, window in uninterrupted.items():
            assert same(window, found[position])
            assert window.flags == found[position].flags
