from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from stream.records import BadRecord
from stream.resample import MAX_FACTOR, Resampler, resampler

PAIRS = [(1_000_000, 16_000), (500_000, 16_000), (44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 44_100)]


def between(source_hz: int, target_hz: int) -> Resampler:
    return resampler(Fraction(source_hz), Fraction(target_hz))


def tone(
    source_hz: int, target_hz: int, frequency_hz: float, first: int = 50_000, count: int = 2000
) -> npt.NDArray[np.complex128]:
    """A complex tone of amplitude 1 at the source, as outputs [first, first + count)."""
    stage = between(source_hz, target_hz)
    begin, end = stage.source_range(first, count)
    phase = 2 * np.pi * (frequency_hz / source_hz * np.arange(begin, end) % 1)
    parts = [stage.apply(part.astype(np.float32), begin, first, count) for part in (np.cos(phase), np.sin(phase))]
    return parts[0] + 1j * parts[1]


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
@pytest.mark.parametrize("part_of_nyquist", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_a_sine_in_the_pass_band_keeps_amplitude_and_phase(
    source_hz: int, target_hz: int, part_of_nyquist: float
) -> None:
    frequency_hz = part_of_nyquist * min(source_hz, target_hz) / 2
    expected = np.exp(2j * np.pi * (frequency_hz / target_hz * np.arange(50_000, 52_000) % 1))
    np.testing.assert_allclose(tone(source_hz, target_hz, frequency_hz), expected, atol=2e-4)


ALIASING = [
    (source_hz, target_hz, part)
    for source_hz, target_hz in PAIRS
    for part in (1.0, 1.05, 1.5, 2.0, 2.4, 2.7, 4.0, 5.0, 9.9, 24.5, 31.0, 60.0)
    if target_hz < source_hz and part * target_hz <= source_hz
]


@pytest.mark.parametrize(("source_hz", "target_hz", "part_of_nyquist"), ALIASING)
def test_what_would_alias_is_80_db_down(source_hz: int, target_hz: int, part_of_nyquist: float) -> None:
    frequency_hz = part_of_nyquist * target_hz / 2
    assert 20 * np.log10(np.abs(tone(source_hz, target_hz, frequency_hz)).max()) < -80


@pytest.mark.parametrize(("source_hz", "target_hz"), [(8_000, 16_000), (16_000, 44_100)])
def test_images_of_an_upsampled_sine_are_80_db_down(source_hz: int, target_hz: int) -> None:
    count = target_hz // 10
    spectrum = np.abs(np.fft.fft(tone(source_hz, target_hz, 3000.0, count=count))) / count
    spectrum[round(3000 * count / target_hz)] = 0
    assert 20 * np.log10(spectrum.max()) < -80


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
def test_it_agrees_with_scipy_on_a_long_signal(source_hz: int, target_hz: int) -> None:
    noise = np.random.default_rng(3).normal(0, 1000, 100_000)
    # Both filters are wide open up to half the lower Nyquist frequency; what they do above may differ.
    edge = 0.45 * min(source_hz, target_hz) / source_hz
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise)) > edge / 2] = 0
    signal = np.fft.irfft(spectrum, len(noise)).astype(np.float32)
    stage = between(source_hz, target_hz)
    reference = resample_poly(signal.astype(np.float64), stage.up, stage.down, window=("kaiser", 12.0))
    count = len(signal) * stage.up // stage.down
    ours = stage.apply(signal, 0, 0, count)
    inside = slice(count // 10, -count // 10)
    scale = np.abs(reference).max()
    np.testing.assert_allclose(ours[inside], reference[:count][inside], atol=2e-3 * scale)


@pytest.mark.parametrize(("source_hz", "target_hz"), [*PAIRS, (999_000, 16_000), (51_200, 16_000), (16_000, 16_000)])
@given(first=st.integers(0, 3000), count=st.integers(1, 200), more=st.tuples(st.integers(0, 500), st.integers(0, 500)))
@settings(max_examples=20, deadline=None)
def test_an_output_has_the_same_bits_whatever_slice_it_is_computed_from(
    source_hz: int, target_hz: int, first: int, count: int, more: tuple[int, int]
) -> None:
    stage = between(source_hz, target_hz)
    begin, end = stage.source_range(first, count)
    signal = np.random.default_rng(4).integers(-32768, 32768, end + more[1]).astype(np.int16)
    exact = stage.apply(signal[begin:end], begin, first, count)
    earlier = max(begin - more[0], 0)
    wider = stage.apply(signal[earlier:], earlier, first, count)
    assert exact.dtype == np.float32
    assert exact.tobytes() == wider.tobytes()
    in_counts = stage.apply(signal[begin:end].astype(np.float32), begin, first, count)
    assert (exact * np.float32(32_768)).tobytes() == in_counts.tobytes()


@pytest.mark.parametrize(("source_hz", "target_hz"), PAIRS)
@given(first=st.integers(0, 3000), count=st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_the_source_range_is_what_the_outputs_depend_on_and_no_less(
    source_hz: int, target_hz: int, first: int, count: int
) -> None:
    stage = between(source_hz, target_hz)
    begin, end = stage.source_range(first, count)
    span = stage.source_span(first, count)
    assert begin <= span[0] < span[1] <= end
    assert span[0] == first * source_hz // target_hz
    if begin:
        assert stage.first_output_from(begin) <= first
        assert stage.first_output_from(begin + 1) > first
    noise = np.random.default_rng(5).normal(0, 1000, end + 100).astype(np.float32)
    outside = noise.copy()
    outside[:begin] = 1e6
    outside[end:] = 1e6
    assert (
        stage.apply(noise, 0, first, count).tobytes()
        == stage.apply(outside[begin:end], begin, first, count).tobytes()
        == stage.apply(noise[begin:end], begin, first, count).tobytes()
    )


def test_before_sample_0_and_around_a_hit_there_are_zeros() -> None:
    stage = between(48_000, 16_000)
    signal = np.random.default_rng(6).integers(-1000, 1000, 300).astype(np.int16)
    padded = np.concatenate((np.zeros(300, np.int16), signal, np.zeros(300, np.int16)))
    np.testing.assert_array_equal(stage.apply(signal, 0, 0, 100), stage.apply(padded, 0, 100, 100))
    np.testing.assert_array_equal(stage.apply(signal, 30_000, 0, 5), np.zeros(5))
    np.testing.assert_array_equal(stage.apply(signal, 0, 30_000, 5), np.zeros(5))


@pytest.mark.parametrize(("source_hz", "target_hz"), [(999_983, 16_000), (44_101, 16_000), (1, 500_000)])
def test_a_ratio_that_would_need_millions_of_coefficients_is_refused_with_the_way_out(
    source_hz: int, target_hz: int
) -> None:
    with pytest.raises(BadRecord, match=r"in lowest terms.*nominal") as caught:
        between(source_hz, target_hz)
    assert caught.value.reason == "rate"


def test_an_awkward_ratio_within_bounds_has_a_bounded_filter() -> None:
    stage = between(MAX_FACTOR - 1, MAX_FACTOR)
    assert sum(len(s.coefficients) for s in stage.stages) < 2_000_000
    begin, end = stage.source_range(100_000, 1000)
    assert end - begin < 1200


def test_a_much_faster_source_is_thinned_first() -> None:
    stage = between(1_000_000, 16_000)
    assert [(s.up, s.down) for s in stage.stages] == [(1, 25), (2, 5)]
    assert sum(len(s.coefficients) for s in stage.stages) < 1000


def test_fractional_rates_keep_their_exact_ratio() -> None:
    stage = resampler(Fraction(100_000_000, 1024), Fraction(16_000))
    assert (stage.up, stage.down) == (512, 3125)
