"""What a sensor on a running machine hears when nothing happens: hum, and shaped noise that waxes and wanes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from producers.propagation import Position, frequencies_hz, sensor_response

Volts = npt.NDArray[np.float32]

BLOCK = 61_440  # samples; with the overlap a power of two, for the FFT
OVERLAP = 4_096


class Background:
    """Endless background noise of one sensor, made in blocks of `BLOCK` samples that can be asked for in any order.

    Each block is drawn from (seed, block index) alone, so that the samples do not depend on where reading began nor on
    how it was cut. Blocks are made from a random spectrum of the wanted shape and cross-faded with equal power. Hum
    and the modulation by the shaft are periodic in a block (multiples of 8 Hz at 500 kHz), which makes them tables that
    go on smoothly from block to block.
    """

    def __init__(self, position: Position, rate_hz: float, seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng([seed, position.seed, 0x424753])
        self._shape = _spectrum_shape(position, rate_hz, rng)
        rms_v = 1e-6 * 10.0 ** (position.noise_db_ae / 20.0)
        turn = 2.0 * np.pi * np.arange(BLOCK) / BLOCK

        shaft = int(rng.integers(2, 7))
        depth = rng.uniform(0.05, 0.25)
        self._modulation: Volts = (rms_v * (1.0 + depth * np.cos(shaft * turn))).astype(np.float32)
        self._ramp: Volts = (np.arange(BLOCK) / BLOCK).astype(np.float32)

        blade_hz = rng.uniform(600.0, 2_500.0)
        harmonics = np.maximum(1, np.round(blade_hz * np.arange(1, 7) * BLOCK / rate_hz)).astype(int)
        hum = np.zeros(BLOCK)
        for number, harmonic in enumerate(harmonics, start=1):
            if harmonic < BLOCK // 2:
                hum += rng.uniform(0.3, 1.0) / number * np.cos(harmonic * turn + rng.uniform(0.0, 2.0 * np.pi))
        share = rng.uniform(0.2, 0.7)
        self._hum: Volts = (hum * (share * rms_v / np.sqrt(np.mean(hum**2)))).astype(np.float32)

        fade = 0.5 * np.pi * (np.arange(OVERLAP) + 0.5) / OVERLAP
        self._fade_in: Volts = np.sin(fade).astype(np.float32)
        self._fade_out: Volts = np.cos(fade).astype(np.float32)
        self._last: tuple[int, Volts] | None = None

    def block(self, index: int) -> Volts:
        """Samples from `index * BLOCK` on, volts, shape (BLOCK,), float32; the caller may change them."""
        before = self._last[1] if self._last and self._last[0] == index - 1 else self._segment(index - 1)
        segment = self._segment(index)
        self._last = (index, segment)
        volts = segment[:BLOCK].copy()
        volts[:OVERLAP] *= self._fade_in
        volts[:OVERLAP] += before[BLOCK:] * self._fade_out
        volts *= self._modulation
        here, after = self._gain(index), self._gain(index + 1)
        volts *= here + (after - here) * self._ramp
        volts += self._hum
        return volts

    def _segment(self, index: int) -> Volts:
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self._seed, index + 1, 0x534547])))
        drawn = rng.standard_normal(BLOCK + OVERLAP, dtype=np.float32).view(np.complex64)
        drawn *= self._shape
        spectrum = np.zeros(len(drawn) + 1, dtype=np.complex64)
        spectrum[1:-1] = drawn[1:]
        segment: Volts = scipy.fft.irfft(spectrum, BLOCK + OVERLAP, overwrite_x=True)
        return segment

    def _gain(self, index: int) -> np.float32:
        """Slow drift of the machine, a knot at each block's edge."""
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([self._seed, index, 0x47414E])))
        return np.float32(np.exp(0.1 * rng.standard_normal()))


def _spectrum_shape(position: Position, rate_hz: float, rng: np.random.Generator) -> Volts:
    """Amplitude per bin, scaled to an RMS of 1: flow noise that falls with frequency, and the preamplifier's own.

    The flow noise is heard through the sensor; the preamplifier's is white.
    """
    size = BLOCK + OVERLAP
    frequency_hz = frequencies_hz(size, rate_hz)[:-1]
    corner_hz = rng.uniform(10_000.0, 60_000.0)
    flow = np.abs(sensor_response(position, frequency_hz, rate_hz)) / (1.0 + (frequency_hz / corner_hz) ** 2) ** 0.35
    preamplifier = rng.uniform(0.1, 0.3) * np.max(flow)
    shape = np.sqrt(flow**2 + preamplifier**2)
    shape[0] = 0.0
    # irfft divides by the size; each bin holds a complex draw of variance 2 and its conjugate.
    shape *= size / np.sqrt(4.0 * np.sum(shape**2))
    return shape.astype(np.float32)
