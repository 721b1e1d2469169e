from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stream.hit_features import SILENCE_DB_AE, measure
from stream.predictions import HitFeatures
from stream.records import Samples, Window

RATE = Fraction(1_000_000)
UV = 1e-6


def window(samples: Any, volts_per_count: float = UV, rate_hz: Fraction = RATE) -> Window:
    array: Samples = np.asarray(samples)
    if array.dtype not in (np.int16, np.float32):
        array = array.astype(np.int16)
    return Window("s", 0, 0, len(array), rate_hz, 0, rate_hz, array, volts_per_count)


BURST = [0, 50, 120, -300, 80, 200, -1000, 100, 99, 100, -90, 150, -20, 0]  # µV; threshold 40 dB_AE is 100 µV


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("volts_per_count", [UV, 0.5 * UV])
def test_a_burst_measures_as_computed_by_hand(dtype: Any, volts_per_count: float) -> None:
    counts = np.array(BURST) * round(UV / volts_per_count)
    found = measure(window(counts.astype(dtype), volts_per_count))
    squares = sum(v * v for v in BURST)  # µV²
    assert found.peak_db_ae == pytest.approx(60)
    assert found.rms_db_ae == pytest.approx(20 * math.log10(math.sqrt(squares / len(BURST))))
    assert found.rise_time_us == pytest.approx(4)  # from sample 2 to sample 6
    assert found.duration_us == pytest.approx(9)  # from sample 2 to sample 11
    assert found.counts == 5  # 120, 200, 100, 100, 150
    assert found.energy_eu == pytest.approx(squares * 1e-12 * 1e-6 / 1e-14)
    assert found.signal_strength_nvs == pytest.approx(sum(map(abs, BURST)) * 1e-6 * 1e-6 / 1e-9)
    assert found.clipped_fraction == 0
    assert not found.flat


def test_times_follow_the_rate_of_the_samples() -> None:
    found = measure(window(BURST, rate_hz=Fraction(500_000)))
    assert (found.rise_time_us, found.duration_us) == (pytest.approx(8), pytest.approx(18))


def test_the_threshold_is_a_parameter() -> None:
    found = measure(window(BURST), threshold_db_ae=50.0)  # 316 µV
    assert (found.rise_time_us, found.duration_us, found.counts) == (0, 0, 0)
    assert found.peak_db_ae == pytest.approx(60)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_without_a_threshold_crossing_times_and_counts_are_zero(dtype: Any) -> None:
    found = measure(window(np.array([0, 99, -99, 99], dtype)))
    assert (found.rise_time_us, found.duration_us, found.counts) == (0, 0, 0)


def test_a_threshold_between_two_counts_is_reached_by_the_upper_one() -> None:
    volts_per_count = 100 * UV / 3.5
    assert measure(window([0, 3, -3, 3, 0], volts_per_count)).duration_us == 0
    found = measure(window([0, 3, 4, -3, 4, 3, 0], volts_per_count))
    assert (found.counts, found.duration_us) == (2, pytest.approx(2))


def test_a_window_that_begins_above_the_threshold_has_not_crossed_it() -> None:
    assert measure(window([500, 400, 0, 0, 300])).counts == 1


def test_a_negative_excursion_has_duration_but_no_counts() -> None:
    found = measure(window([0, -500, -600, -500, 0]))
    assert (found.counts, found.duration_us, found.rise_time_us) == (0, pytest.approx(2), pytest.approx(1))


def test_the_first_of_several_equal_peaks_ends_the_rise() -> None:
    found = measure(window([0, 200, 900, 0, -900, 900, 0]))
    assert found.rise_time_us == pytest.approx(1)


def test_the_most_negative_count_is_a_peak_like_any_other() -> None:
    found = measure(window([0, 100, -32768, 100]))
    assert found.peak_db_ae == pytest.approx(20 * math.log10(32768))
    assert found.rise_time_us == pytest.approx(1)
    assert found.energy_eu == pytest.approx((32768**2 + 2 * 100**2) * 1e-12 * 1e-6 * 1e14)
    assert measure(window([-32768]), threshold_db_ae=20 * math.log10(32768)).duration_us == 0


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_silence_has_a_finite_level_and_is_flat(dtype: Any) -> None:
    found = measure(window(np.zeros(100, dtype)))
    assert found == HitFeatures(SILENCE_DB_AE, SILENCE_DB_AE, 0.0, 0.0, 0, 0.0, 0.0, 0.0, True)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("value", [5, -5, 32767, -32768])
def test_a_constant_is_flat_and_not_clipped(dtype: Any, value: int) -> None:
    found = measure(window(np.full(100, value, dtype)))
    assert found.flat
    assert found.clipped_fraction == 0
    assert found.peak_db_ae == found.rms_db_ae == pytest.approx(20 * math.log10(abs(value)))


def test_clipped_int16_samples_are_those_at_the_ends_of_the_range() -> None:
    assert measure(window([0, 32767, 32767, -32768, -32767, 32766, 5, 9])).clipped_fraction == 0.5


def test_clipped_float32_samples_are_runs_at_the_peak() -> None:
    time = np.arange(1000)
    sine = np.sin(2 * np.pi * 0.00317 * time).astype(np.float32)
    assert measure(window(sine)).clipped_fraction == 0
    clipped = np.clip(sine, -0.7, 0.7).astype(np.float32)
    expected = np.count_nonzero(np.abs(clipped) == np.float32(0.7)) / 1000
    assert expected > 0.4
    assert measure(window(clipped)).clipped_fraction == pytest.approx(expected)


def test_noise_of_a_few_quantisation_steps_is_not_clipping() -> None:
    noise = np.random.default_rng(1).integers(-2, 3, 10_000).astype(np.float32)
    assert measure(window(noise)).clipped_fraction == 0


def test_runs_at_the_peak_count_wherever_they_stand() -> None:
    samples = np.array([9, 9, 9, 9, 0.01, 9, 9, 9, 0.02, -9, -9, -9, -9, -9], np.float32)
    assert measure(window(samples)).clipped_fraction == pytest.approx(9 / 14)


def test_int16_and_float32_of_the_same_signal_measure_the_same() -> None:
    noise = np.random.default_rng(2).normal(0, 3000, 50_001).astype(np.int16)
    for ours, other in zip(
        msgspec.structs.astuple(measure(window(noise))),
        msgspec.structs.astuple(measure(window(noise.astype(np.float32)))),
        strict=True,
    ):
        assert ours == pytest.approx(other, rel=1e-12)


def test_long_windows_are_summed_exactly() -> None:
    samples = np.resize(np.array([32767, -32768], np.int16), 300_001)
    total = 150_001 * 32767**2 + 150_000 * 32768**2
    assert measure(window(samples)).energy_eu == pytest.approx(total * 1e-12 / 1e6 * 1e14, rel=1e-15)


@given(
    samples=st.one_of(
        npst.arrays(np.int16, st.integers(1, 50)),
        npst.arrays(
            np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        ),
    ),
    volts_per_count=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    rate_hz=st.fractions(1, 100_000_000),
    threshold_db_ae=st.floats(-200, 200),
)
@settings(max_examples=400, deadline=None)
def test_whatever_can_be_on_the_wire_gives_finite_features(
    samples: Samples, volts_per_count: float, rate_hz: Fraction, threshold_db_ae: float
) -> None:
    found = measure(window(samples, volts_per_count, rate_hz), threshold_db_ae)
    assert all(math.isfinite(value) for value in msgspec.structs.astuple(found))
    assert found.peak_db_ae >= found.rms_db_ae - 1e-6
    assert 0 <= found.rise_time_us <= found.duration_us
    assert found.counts <= len(samples) // 2
    assert 0 <= found.clipped_fraction <= 1
    assert msgspec.json.decode(msgspec.json.encode(found), type=HitFeatures) == found


@pytest.fixture(scope="module")
def bearing(real_data: Path) -> Iterator[tuple[Any, Any]]:
    vallenae = pytest.importorskip("vallenae")
    folder = real_data / "vallen" / "bearing"
    with (
        vallenae.io.TraDatabase(folder / "bearing.tradb") as waveforms,
        vallenae.io.PriDatabase(folder / "bearing.pridb") as features,
    ):
        yield waveforms, features


def test_real_hits_measure_as_vallenae_measures_them(bearing: tuple[Any, Any]) -> None:
    features = pytest.importorskip("vallenae.features")
    waveforms, _ = bearing
    seen = 0
    for raw, scaled in zip(waveforms.iread(raw=True), waveforms.iread(), strict=True):
        volts_per_count = float(np.float64(scaled.data).sum() / np.float64(raw.data).sum())
        found = measure(window(raw.data, volts_per_count, Fraction(raw.samplerate)))
        volts = raw.data * volts_per_count
        threshold = 100e-6
        assert found.peak_db_ae == pytest.approx(20 * math.log10(features.peak_amplitude(volts) / 1e-6), abs=1e-9)
        assert found.rms_db_ae == pytest.approx(20 * math.log10(features.rms(volts) / 1e-6), abs=1e-9)
        assert found.rise_time_us == pytest.approx(1e6 * features.rise_time(volts, threshold, raw.samplerate))
        assert found.duration_us == pytest.approx(1e6 * features.duration(volts, threshold, raw.samplerate))
        assert found.counts == features.counts(volts, threshold)
        assert found.energy_eu == pytest.approx(features.energy(volts, raw.samplerate))
        assert found.signal_strength_nvs == pytest.approx(features.signal_strength(volts, raw.samplerate))
        seen += 1
    assert seen == 490


def test_real_hits_measure_much_as_the_instrument_measured_them(bearing: tuple[Any, Any]) -> None:
    waveforms, hits = bearing
    table = hits.read_hits().set_index("trai")
    for record in waveforms.iread():
        hit = table.loc[record.trai]
        threshold_db_ae = 20 * math.log10(record.threshold / 1e-6)
        found = measure(window(record.data, 1.0, Fraction(record.samplerate)), threshold_db_ae)
        assert found.peak_db_ae == pytest.approx(20 * math.log10(hit["amplitude"] / 1e-6), abs=3)
        assert found.rms_db_ae == pytest.approx(20 * math.log10(hit["rms"] / 1e-6), abs=0.5)
        assert found.energy_eu == pytest.approx(hit["energy"], rel=0.1)
        assert found.signal_strength_nvs == pytest.approx(hit["signal_strength"], rel=0.05)
        assert found.counts == pytest.approx(hit["counts"], abs=80)
