"""From the sensor's sample rate to the model's: polyphase FIR filters whose phase is fixed to sample 0.

Output sample m stands at source time m * down / up, counted from the epoch, whatever slice of the source is at
hand. The same slice gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.records import BadRecord, Samples

PASS_BAND = 0.9  #: of the Nyquist frequency of the lower rate; the stop band begins at 1.0
STOP_BAND_DB = 86.0  #: over the 80 dB promised, because Kaiser's formula is an estimate
INT16_FULL_SCALE = 32_768  #: a power of two, so that dividing by it costs no bit
MAX_FACTOR = 16_384  #: a ratio of 16,384 to anything smaller has at most 1.8 million coefficients, 14 MB


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One filter: y[m] = sum over i of x[i] * coefficients[half + m * down - i * up].

    `coefficients` has shape (2 * half + 1,), float64, is symmetric, and has a gain of `up` at 0 Hz.
    """

    up: int
    down: int
    half: int
    coefficients: npt.NDArray[np.float64]

    def input_range(self, first: int, count: int) -> tuple[int, int]:
        """Inputs [begin, end) that outputs [first, first + count) are computed from; none lie before 0."""
        begin = -((self.half - first * self.down) // self.up)
        end = ((first + count - 1) * self.down + self.half) // self.up + 1
        return max(begin, 0), end

    def first_output_from(self, begin: int) -> int:
        """The first output that needs no input before `begin`."""
        return ((begin - 1) * self.up + self.half) // self.down + 1 if begin > 0 else 0

    def apply(self, inputs: npt.NDArray[Any], begin: int, first: int, count: int) -> npt.NDArray[np.float64]:
        """Outputs [first, first + count) from `inputs`, which start with input `begin` and have zeros around them."""
        # upfirdn keeps the values at multiples of `down` from the slice's own beginning, so the filter is delayed
        # until the wanted outputs fall on such multiples.
        from scipy.signal import upfirdn  # only a stream that is resampled pays for this import

        offset = first * self.down - begin * self.up + self.half
        delay = -offset % self.down
        skip = (offset + delay) // self.down
        delayed = np.concatenate((np.zeros(delay), self.coefficients)) if delay else self.coefficients
        filtered = upfirdn(delayed, inputs, self.up, self.down)[max(skip, 0) : max(skip + count, 0)]
        outputs = np.zeros(count)
        outputs[max(-skip, 0) :][: len(filtered)] = filtered
        return outputs


@dataclass(frozen=True, slots=True, eq=False)
class Resampler:
    """`up` output samples for every `down` samples of the source, through one filter or two after another."""

    up: int
    down: int
    stages: tuple[Stage, ...]

    def source_span(self, first: int, count: int) -> tuple[int, int]:
        """Source samples [start, end) that outputs [first, first + count) stand for, without the filters' reach."""
        return first * self.down // self.up, -(-(first + count) * self.down // self.up)

    def source_range(self, first: int, count: int) -> tuple[int, int]:
        """Source samples [begin, end) that outputs [first, first + count) are computed from.

        What lies before sample 0 does not exist and counts as zeros, so `begin` is never negative.
        """
        return self._ranges(first, count)[0]

    def first_output_from(self, begin: int) -> int:
        """The first output whose `source_range` lies wholly at or after source sample `begin`."""
        for stage in self.stages:
            begin = stage.first_output_from(begin)
        return begin

    def apply(self, samples: Samples, begin: int, first: int, count: int) -> npt.NDArray[np.float32]:
        """Outputs [first, first + count) as float32, shape (count,).

        `samples`, shape (n,), int16 or float32, starts with source sample `begin`; what lies outside of it is taken
        as zeros. For the outputs of a stream it must be the whole of `source_range`. Of int16 the outputs have full
        scale at ±1, as a network takes floats; of float32 they are in the unit of `samples`.
        """
        values: npt.NDArray[Any] = samples
        ranges = self._ranges(first, count)
        for stage, (wanted_begin, wanted_end) in zip(self.stages, ranges[1:], strict=True):
            values = stage.apply(values, begin, wanted_begin, wanted_end - wanted_begin)
            begin = wanted_begin
        if samples.dtype == np.int16:
            values = values / INT16_FULL_SCALE
        return values.astype(np.float32)

    def _ranges(self, first: int, count: int) -> list[tuple[int, int]]:
        """What each stage takes in, and last what comes out."""
        ranges = [(first, first + count)]
        for stage in reversed(self.stages):
            begin, end = ranges[0]
            ranges.insert(0, stage.input_range(begin, end - begin))
        return ranges


@lru_cache(maxsize=32)
def resampler(source_rate_hz: Fraction, target_rate_hz: Fraction) -> Resampler:
    """The filters from one rate to the other.

    Pass band to 0.9 of the lower rate's Nyquist frequency, more than 80 dB from that frequency on. A source much
    faster than the target is first thinned by a whole factor, with a filter that is short because everything up to
    the first frequency that would fold into the pass band may go as it likes.

    Raises
    ------
    BadRecord
        If the ratio in lowest terms needs a factor above `MAX_FACTOR`: such a filter would have millions of
        coefficients.
    """
    ratio = target_rate_hz / source_rate_hz
    up, down = ratio.numerator, ratio.denominator
    if max(up, down) > MAX_FACTOR:
        raise BadRecord(
            "rate",
            f"{_hertz(source_rate_hz)} to the model's {_hertz(target_rate_hz)} is {up}/{down} in lowest terms, factors "
            f"up to {MAX_FACTOR} are allowed; publish at a rounder rate or use a model whose rate is nominal",
        )
    thinning = max((d for d in range(1, down // (2 * up) + 1) if down % d == 0), default=1)
    stages = []
    if thinning > 1:
        nyquist = up / down  # of the target, in units of the source's
        stages.append(_low_pass(1, thinning, PASS_BAND * nyquist, 2 / thinning - nyquist))
    last = Fraction(up * thinning, down)
    nyquist = 1 / max(last.numerator, last.denominator)
    stages.append(_low_pass(last.numerator, last.denominator, PASS_BAND * nyquist, nyquist))
    return Resampler(up=up, down=down, stages=tuple(stages))


def _low_pass(up: int, down: int, pass_edge: float, stop_edge: float) -> Stage:
    """Kaiser-windowed low-pass; edges in units of the Nyquist frequency at `up` times the input rate.

    Order from Kaiser's formula, (A - 7.95) / (2.285 * transition width in radians).
    """
    from scipy.signal import firwin, kaiser_atten, kaiser_beta

    transition = stop_edge - pass_edge
    half = math.ceil((STOP_BAND_DB - 7.95) / (2.285 * math.pi * transition) / 2)
    beta = kaiser_beta(kaiser_atten(2 * half + 1, transition))
    coefficients = up * firwin(2 * half + 1, (pass_edge + stop_edge) / 2, window=("kaiser", beta))
    coefficients.setflags(write=False)
    return Stage(up=up, down=down, half=half, coefficients=coefficients)


def _hertz(rate_hz: Fraction) -> str:
    return f"{rate_hz} Hz" if rate_hz.denominator == 1 else f"{float(rate_hz):.6f} Hz"
