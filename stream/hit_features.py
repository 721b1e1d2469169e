"""Acoustic-emission features of one window, after EN 1330-9 and in the conventions of Vallen's `vallenae.features`."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.predictions import HitFeatures
from stream.records import Samples, Window

SILENCE_DB_AE = -120.0  #: stands for 0 V, and for whatever is less than a millionth of a microvolt

INT16_FULL_SCALE = 32_767
CLIPPED_RUN = 4
CLIPPED_RESOLUTION = 100

# Blocks keep the float64 copy inside the processor's cache.
_BLOCK = 16_384


def measure(window: Window, threshold_db_ae: float = 40.0) -> HitFeatures:
    """Features of the window's samples, at the window's own rate and volts per count.

    Parameters
    ----------
    window
        Samples of shape (n,), n > 0, int16 or float32, finite.
    threshold_db_ae
        Detection threshold in dB above 1 µV, for rise time, duration and counts. A sample is over it when its
        absolute value reaches it. Counts are passages of the positive threshold from below, so a window that begins
        above it has not passed it. Where nothing reaches the threshold all three are 0.

    Returns
    -------
    HitFeatures
        All finite: 0 V is `SILENCE_DB_AE`, and what is too large for a float64 is the largest one.

    Notes
    -----
    Energy is the integral of V² over time in units of 1e-14 V²s, signal strength that of |V| (EN 1330-9).

    `clipped_fraction` is, for int16, the share of samples at -32768 or ±32767. Nothing in float32 samples tells
    their full scale, so there it is the share of samples in runs of at least `CLIPPED_RUN` at the peak value, and 0
    where the peak is less than `CLIPPED_RESOLUTION` times the smallest amplitude: noise of a few quantisation
    steps repeats its peak without clipping. Resampling hides clipping; the window's SATURATED flag stays.
    """
    samples = window.samples
    lowest, highest = float(samples.min()), float(samples.max())
    peak = max(highest, -lowest)
    magnitudes = _magnitudes(samples)
    scale = window.volts_per_count
    rate_hz = float(window.rate_hz)
    us_per_sample = 1e6 / rate_hz

    threshold = 1e-6 * 10 ** (threshold_db_ae / 20) / scale
    rise = duration = counts = 0
    if peak >= threshold:
        level = math.ceil(threshold) if samples.dtype == np.int16 else threshold
        above = magnitudes >= level
        first, last = int(above.argmax()), above.tobytes().rfind(b"\x01")
        rise, duration = int(magnitudes.argmax()) - first, last - first
        above_positive = samples >= level
        counts = int(np.count_nonzero(above_positive[1:] > above_positive[:-1]))

    squared = _sum_of_squares(samples)
    rectified = float(magnitudes.sum(dtype=np.float64))
    flat = lowest == highest
    return HitFeatures(
        peak_db_ae=_db_ae(peak, scale),
        rms_db_ae=_db_ae(math.sqrt(squared / len(samples)), scale),
        rise_time_us=rise * us_per_sample,
        duration_us=duration * us_per_sample,
        counts=counts,
        energy_eu=min(squared * scale * scale / rate_hz * 1e14, sys.float_info.max),
        signal_strength_nvs=min(rectified * scale / rate_hz * 1e9, sys.float_info.max),
        clipped_fraction=0.0 if flat else _clipped(magnitudes, peak) / len(samples),
        flat=flat,
    )


def _magnitudes(samples: Samples) -> npt.NDArray[Any]:
    """|x| as uint16 or float32."""
    # -32768 has no int16 of the other sign: its absolute value wraps to itself, which as uint16 is 32768.
    return np.abs(samples).view(np.uint16) if samples.dtype == np.int16 else np.abs(samples)


def _sum_of_squares(samples: Samples) -> float:
    """Sum of x² in float64; exact for int16, and the same bits on every machine for float32 (no BLAS)."""
    total = 0.0
    for begin in range(0, len(samples), _BLOCK):
        block = samples[begin : begin + _BLOCK].astype(np.float64)
        total += float(np.square(block, out=block).sum())
    return total


def _clipped(magnitudes: npt.NDArray[Any], peak: float) -> int:
    """How many samples stand at the end of the converter's range."""
    if magnitudes.dtype == np.uint16:
        return int(np.count_nonzero(magnitudes >= INT16_FULL_SCALE)) if peak >= INT16_FULL_SCALE else 0
    at_peak = np.flatnonzero(magnitudes == peak)
    if len(at_peak) < CLIPPED_RUN or magnitudes[magnitudes > 0].min() * CLIPPED_RESOLUTION > peak:
        return 0
    ends = np.flatnonzero(np.diff(at_peak, append=len(magnitudes) + 1) > 1)
    runs = np.diff(ends, prepend=-1)
    return int(runs[runs >= CLIPPED_RUN].sum())


def _db_ae(counts: float, volts_per_count: float) -> float:
    """Level in dB above 1 µV; by logarithms, so that no product overflows."""
    if counts == 0:
        return SILENCE_DB_AE
    return max(20 * (math.log10(counts) + math.log10(volts_per_count)) + 120, SILENCE_DB_AE)
