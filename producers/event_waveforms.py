"""What the four classes of acoustic emission do at their source, and what of it a sensor hears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy.signal import oaconvolve

from producers.propagation import ComplexArray, FloatArray, Position, frequencies_hz, impulse_response, transfer

MIN_LEVEL_DB_AE = 60.0
MAX_LEVEL_DB_AE = 95.0


class EventKind(StrEnum):
    """The classes, named and ordered as the model's labels."""

    PENCIL_LEAD_BREAK = "pencil_lead_break"
    FRICTION = "friction"
    KNOCK = "knock"
    DROP = "drop"


# Peak at the sensor for a source at the reference distance, dB above 1 µV; the range one draws from.
LEVELS_DB_AE: dict[EventKind, tuple[float, float]] = {
    EventKind.PENCIL_LEAD_BREAK: (74.0, 95.0),
    EventKind.FRICTION: (64.0, 82.0),
    EventKind.KNOCK: (70.0, 93.0),
    EventKind.DROP: (74.0, 94.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class RenderedEvent:
    """One event as the sensor gives it."""

    kind: EventKind
    samples: npt.NDArray[np.float32]  #: shape (n,), volts at the sensor (before the preamplifier's gain)
    onsets: tuple[int, ...]  #: index of the first arrival; of each impact where there are several

    @property
    def onset(self) -> int:
        """Index of the first arrival."""
        return self.onsets[0]

    @property
    def peak_db_ae(self) -> float:
        """20 log10(peak / 1 µV)."""
        return 20.0 * float(np.log10(np.max(np.abs(self.samples)) / 1e-6))

    def audible(self, floor_v: float) -> tuple[int, int]:
        """First and last index at which the event is above `floor_v` volts; (onset, onset) if it never is."""
        above = np.flatnonzero(np.abs(self.samples) > floor_v)
        return (int(above[0]), int(above[-1])) if len(above) else (self.onset, self.onset)


def render_event(kind: EventKind, position: Position, rng: np.random.Generator, rate_hz: float) -> RenderedEvent:
    """An event of class `kind` as heard at `position`, drawn from `rng`.

    Peak levels are drawn from `LEVELS_DB_AE`, changed by distance and coupling, and kept within 60 to 95 dB_AE.
    """
    level_db_ae = rng.uniform(*LEVELS_DB_AE[kind]) + position.level_offset_db
    waveform, starts = _RENDERERS[kind](position, rng, rate_hz)
    peak = np.max(np.abs(waveform))
    volts = 1e-6 * 10.0 ** (float(np.clip(level_db_ae, MIN_LEVEL_DB_AE, MAX_LEVEL_DB_AE)) / 20.0)
    # The first arrival is where the wave has risen to 5 % of the peak; later impacts follow at their own distances.
    first = int(np.argmax(np.abs(waveform) > 0.05 * peak))
    onsets = tuple(first + start - starts[0] for start in starts)
    return RenderedEvent(kind, (waveform * (volts / peak)).astype(np.float32), onsets)


Rendered = tuple[FloatArray, tuple[int, ...]]  # waveform, and where the source acted


def half_sine_spectrum(frequency_hz: FloatArray, duration_s: float) -> ComplexArray:
    """Spectrum of a half-sine force pulse of unit area that begins at time 0.

    The Hertzian contact of two bodies is close to a half sine (Goldsmith, *Impact*, 1960; McLaskey and Glaser,
    *J. Acoust. Soc. Am.* 128, 2010); its first zero lies at 1.5 / duration.
    """
    x = frequency_hz * duration_s
    shape = np.pi / 4.0 * np.sinc(x - 0.5) + np.pi / 4.0 * np.sinc(x + 0.5)
    spectrum: ComplexArray = shape * np.exp(-1j * np.pi * x)
    return spectrum


def _modes(frequency_hz: FloatArray, modes_hz: FloatArray, decays_s: FloatArray, gains: FloatArray) -> ComplexArray:
    """Ringing of a structure after a unit impulse, sum of gain · exp(-t/decay) · sin(2π f t), as a spectrum."""
    s = 2j * np.pi * frequency_hz
    spectrum = np.zeros(frequency_hz.shape, dtype=np.complex128)
    for mode_hz, decay_s, gain in zip(modes_hz, decays_s, gains, strict=True):
        omega = 2.0 * np.pi * mode_hz
        spectrum += gain * omega / ((s + 1.0 / decay_s) ** 2 + omega**2)
    return spectrum


def _through_path(position: Position, rate_hz: float, size: int, source: ComplexArray) -> FloatArray:
    waveform: FloatArray = np.fft.irfft(source * transfer(position, rate_hz, size), size)
    return waveform


def _fft_size(duration_s: float, rate_hz: float) -> int:
    return 1 << int(np.ceil(duration_s * rate_hz) - 1).bit_length()


def _pencil_lead_break(position: Position, rng: np.random.Generator, rate_hz: float) -> Rendered:
    """A lead that breaks lets go of its force within 1 to 2 µs (Hsu and Breckenridge, *Mater. Eval.* 39, 1981)."""
    size = _fft_size(0.024, rate_hz)
    frequency_hz = frequencies_hz(size, rate_hz)
    rise_s = rng.uniform(1.0e-6, 2.0e-6)
    # The step has a spectrum of 1/f; the plate springs back below a corner of some ten kHz.
    corner_hz = rng.uniform(15_000.0, 40_000.0)
    release = half_sine_spectrum(frequency_hz, rise_s) / (1.0 + 1j * frequency_hz / corner_hz)
    return _through_path(position, rate_hz, size, release), (0,)


def _friction(position: Position, rng: np.random.Generator, rate_hz: float) -> Rendered:
    """Stick and slip: thousands of small slips a second at irregular intervals, waxing and waning with the motion."""
    duration_s = rng.uniform(0.42, 1.6)
    count = int(duration_s * rate_hz)
    slips_per_s = float(np.exp(rng.uniform(np.log(2_000.0), np.log(12_000.0))))
    # Gamma with shape 2: a slip needs some time to load, so very short intervals are rare.
    intervals_s = rng.gamma(2.0, 0.5 / slips_per_s, int(1.2 * duration_s * slips_per_s) + 16)
    at = np.cumsum(intervals_s) * rate_hz
    slips: npt.NDArray[np.int64] = at[at < count].astype(np.int64)
    t = np.arange(count) / rate_hz
    motion_hz = rng.uniform(4.0, 25.0)
    envelope = 1.0 + rng.uniform(0.25, 0.65) * np.sin(2.0 * np.pi * motion_hz * t + rng.uniform(0.0, 2.0 * np.pi))
    attack_s, release_s = rng.uniform(0.01, 0.06, 2)
    envelope *= np.minimum(1.0, np.minimum(t / attack_s + 0.1, (duration_s - t) / release_s))
    train = np.zeros(count)
    np.add.at(train, slips, rng.lognormal(0.0, 0.45, len(slips)) * envelope[slips])
    response = impulse_response(position, rate_hz)
    size = _fft_size(2.0 * len(response) / rate_hz, rate_hz)
    slip = half_sine_spectrum(frequencies_hz(size, rate_hz), rng.uniform(3e-6, 14e-6))
    kernel = _through_path(position, rate_hz, size, slip)[: len(response)]
    waveform: FloatArray = oaconvolve(train.astype(np.float32), kernel.astype(np.float32))
    return waveform, (0,)


def _knock(position: Position, rng: np.random.Generator, rate_hz: float) -> Rendered:
    """One blow of a large soft body, then the structure rings in its low modes for 20 to 150 ms."""
    size = _fft_size(0.26, rate_hz)
    frequency_hz = frequencies_hz(size, rate_hz)
    contact_s = float(np.exp(rng.uniform(np.log(100e-6), np.log(400e-6))))
    count = int(rng.integers(8, 15))
    modes_hz: FloatArray = np.exp(rng.uniform(np.log(2_500.0), np.log(40_000.0), count))
    # Constant loss factor: a mode twice as high rings half as long, within bounds.
    longest_s = rng.uniform(0.012, 0.030)
    decays_s = longest_s * np.clip((6_000.0 / modes_hz) ** 0.7, 0.15, 1.0)
    # A blow this soft barely reaches the high modes; the draw is of what is left at the surface.
    gains = rng.uniform(0.3, 1.0, count) * (3_000.0 / modes_hz) ** 0.5
    gains /= np.maximum(np.abs(half_sine_spectrum(modes_hz, contact_s)), 0.02)
    blow = half_sine_spectrum(frequency_hz, contact_s)
    source = blow * (contact_s * rng.uniform(0.5, 2.0) + _modes(frequency_hz, modes_hz, decays_s, gains))
    return _through_path(position, rate_hz, size, source), (0,)


def _drop(position: Position, rng: np.random.Generator, rate_hz: float) -> Rendered:
    """A small hard body that falls and bounces, each flight shorter by the coefficient of restitution.

    Contact force grows with v^(6/5), contact time with v^(-1/5) (Johnson, *Contact Mechanics*, 1985, chapter 11).
    """
    restitution = rng.uniform(0.55, 0.75)
    first_flight_s = rng.uniform(0.015, 0.044)
    flights_s: list[float] = []
    while len(flights_s) < 4 or (flights_s[-1] > 0.006 and len(flights_s) < 9):
        flights_s.append(first_flight_s * restitution ** len(flights_s))
    times_s = np.concatenate(([0.0], np.cumsum(flights_s)))
    speeds = restitution ** np.arange(len(times_s)) * rng.uniform(0.92, 1.08, len(times_s))

    size = _fft_size(0.05, rate_hz)
    frequency_hz = frequencies_hz(size, rate_hz)
    contact_s = float(np.exp(rng.uniform(np.log(15e-6), np.log(60e-6))))
    count = int(rng.integers(8, 13))
    modes_hz: FloatArray = np.exp(rng.uniform(np.log(8_000.0), np.log(90_000.0), count))
    decays_s = rng.uniform(0.001, 0.004) * np.clip((20_000.0 / modes_hz) ** 0.5, 0.4, 1.5)
    gains = rng.uniform(0.1, 0.5, count)
    ringing = contact_s + _modes(frequency_hz, modes_hz, decays_s, gains)
    starts = tuple(int(time_s * rate_hz) for time_s in times_s)
    waveform = np.zeros(starts[-1] + size)
    for start, speed in zip(starts, speeds, strict=True):
        impact = half_sine_spectrum(frequency_hz, contact_s * speed**-0.2)
        waveform[start : start + size] += speed**1.2 * _through_path(position, rate_hz, size, impact * ringing)
    return waveform, starts


_RENDERERS: dict[EventKind, Callable[[Position, np.random.Generator, float], Rendered]] = {
    EventKind.PENCIL_LEAD_BREAK: _pencil_lead_break,
    EventKind.FRICTION: _friction,
    EventKind.KNOCK: _knock,
    EventKind.DROP: _drop,
}
