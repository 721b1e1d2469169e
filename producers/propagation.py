"""The way of a sound from its source to the voltage of a sensor, as a function of the sensor's position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

RESPONSE_S = 0.016  # slowest echo of interest: 4 m of bending wave at 2 kHz takes about 6 ms
LEAD_S = 64e-6  # room before the first arrival, so that band-limiting cannot wrap round to the end
REFERENCE_M = 0.3  # the distance at which a source has the level it was drawn with

PLATE_WAVE_M_S = 5_300.0  # steel: extensional (S0) wave of a thin plate
RAYLEIGH_M_S = 2_950.0  # steel: where bending waves end up at high frequency


@dataclass(frozen=True, slots=True)
class Position:
    """Where a sensor sits, and what that does to a sound. Hashable; equal fields give equal responses."""

    name: str  #: a sensor id
    seed: int  #: draws the echoes and the background of this place
    distance_m: float  #: source to sensor
    thickness_m: float  #: of the plate between them
    loss_db_per_m: float  #: material and coating losses at 100 kHz; proportional to frequency
    extensional_share: float  #: amplitude of the S0 part beside a bending part of 1
    echoes: int  #: reflections from edges that still matter
    resonance_hz: float  #: of the piezo sensor
    resonance_q: float  #: sharpness of that resonance
    broadband: float  #: sensitivity away from the resonance, beside 1 at the resonance
    coupling_db: float  #: couplant, contact pressure and spread of sensitivity
    noise_db_ae: float  #: RMS of the background, dB above 1 µV

    @property
    def level_offset_db(self) -> float:
        """What this place adds to the level a source has at `REFERENCE_M`: coupling, and spreading in a plate."""
        return self.coupling_db - 10.0 * float(np.log10(self.distance_m / REFERENCE_M))


def draw_position(name: str, seed: int) -> Position:
    """A plausible place for a sensor; the same seed always gives the same place."""
    rng = np.random.default_rng([seed, 0x504F53])
    # Two common families of AE sensors; the spread inside a family is what a change of sensor does.
    family_hz = (60_000.0, 150_000.0)[int(rng.integers(2))]
    return Position(
        name=name,
        seed=seed,
        distance_m=float(np.exp(rng.uniform(np.log(0.12), np.log(1.2)))),
        thickness_m=float(rng.uniform(0.004, 0.012)),
        loss_db_per_m=float(rng.uniform(2.0, 9.0)),
        extensional_share=float(rng.uniform(0.08, 0.35)),
        echoes=int(rng.integers(5, 10)),
        resonance_hz=family_hz * float(rng.uniform(0.88, 1.12)),
        resonance_q=float(rng.uniform(2.5, 7.0)),
        broadband=float(rng.uniform(0.15, 0.35)),
        coupling_db=float(rng.uniform(-4.0, 3.0)),
        noise_db_ae=float(rng.uniform(30.0, 37.0)),
    )


def draw_positions(seed: int, count: int, prefix: str = "drawn") -> tuple[Position, ...]:
    """As many places as wanted, named `<prefix>/<seed>/p<n>`; none equals one of the named sets.

    Raises
    ------
    ValueError
        If `seed` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: positions are drawn from a seed of 0 or more")
    first = 1_000_000 + seed * 100_000
    return tuple(draw_position(f"{prefix}/{seed}/p{n}", first + n) for n in range(count))


TRAINING_POSITIONS = tuple(draw_position(f"train/p{n}/ch0", 1_000 + n) for n in range(12))
VALIDATION_POSITIONS = tuple(draw_position(f"validation/p{n}/ch0", 2_000 + n) for n in range(4))
DEMO_POSITIONS = tuple(draw_position(f"plant1/pump{1 + n // 2}/ch{n % 2}", 3_000 + n) for n in range(8))


def frequencies_hz(size: int, rate_hz: float) -> FloatArray:
    """Frequencies of a real FFT of `size` samples, shape (size // 2 + 1,), float64."""
    return np.arange(size // 2 + 1, dtype=np.float64) * np.float64(rate_hz / size)


def bending_speed(frequency_hz: FloatArray, thickness_m: float) -> FloatArray:
    """Phase velocity of the bending (A0) wave in a steel plate, m/s, same shape as `frequency_hz`.

    Thin plate: c_B = sqrt(1.8 c_L h f) (Cremer, Heckl, Petersson, *Structure-Borne Sound*), bounded by the Rayleigh
    speed as in a thick plate; the blend 1/c³ = 1/c_B³ + 1/c_R³ is a smooth approximation of the A0 Lamb branch.
    """
    thin = np.sqrt(1.8 * PLATE_WAVE_M_S * thickness_m * np.maximum(frequency_hz, 1.0))
    speed: FloatArray = (thin**-3.0 + RAYLEIGH_M_S**-3.0) ** (-1.0 / 3.0)
    return speed


def sensor_response(position: Position, frequency_hz: FloatArray, rate_hz: float) -> ComplexArray:
    """Sensor and preamplifier, complex, 1 near the resonance; same shape as `frequency_hz`.

    One resonance of second order over a broadband floor, a high-pass of second order at 2.5 kHz, and an anti-alias
    low-pass (Butterworth, fourth order) at 200 kHz or 0.4 of the sample rate, whichever is lower.
    """
    x = frequency_hz / position.resonance_hz
    damping = 1j * x / position.resonance_q
    resonance = damping / (1.0 - x**2 + damping)
    high = 1j * frequency_hz / 2_500.0
    high_pass = high**2 / (1.0 + np.sqrt(2.0) * high + high**2)
    low = 1j * frequency_hz / min(200_000.0, 0.4 * rate_hz)
    low_pass = 1.0 / ((1.0 + 0.765367 * low + low**2) * (1.0 + 1.847759 * low + low**2))
    response: ComplexArray = (resonance + position.broadband) * high_pass * low_pass
    return response


def path_response(position: Position, frequency_hz: FloatArray) -> ComplexArray:
    """Plate between source and sensor: direct way and echoes, each as bending and as extensional wave.

    Per way of length d: amplitude falls with 1/sqrt(d) (a circular wave in two dimensions) and with `loss_db_per_m`
    proportional to frequency (constant loss per wavelength); phase is 2π f d / c(f). A phase velocity that grows
    with sqrt(f) is what spreads a pulse into a chirp with the high frequencies first.
    """
    rng = np.random.default_rng([position.seed, 0x504154])
    detours = np.sort(rng.exponential(0.9, position.echoes))
    ways = np.concatenate(([position.distance_m], position.distance_m + 0.05 + np.minimum(detours, 3.5)))
    # An edge turns part of the wave; the sign depends on how it is held.
    reflected = 0.75 * 0.8 ** np.arange(position.echoes) * rng.choice((-1.0, 1.0), position.echoes)
    gains = np.concatenate(([1.0], reflected))
    bending = 2.0 * np.pi * frequency_hz / bending_speed(frequency_hz, position.thickness_m)
    extensional = 2.0 * np.pi * frequency_hz / PLATE_WAVE_M_S
    loss_per_m = position.loss_db_per_m * np.log(10.0) / 20.0 * frequency_hz / 100_000.0
    response = np.zeros(frequency_hz.shape, dtype=np.complex128)
    for way, gain in zip(ways, gains, strict=True):
        amplitude = gain * np.sqrt(REFERENCE_M / way) * np.exp(-loss_per_m * way)
        response += amplitude * (
            np.exp(-1j * bending * way) + position.extensional_share * np.exp(-1j * extensional * way)
        )
    return response


@lru_cache(maxsize=256)
def impulse_response(position: Position, rate_hz: float) -> FloatArray:
    """Voltage at the sensor for a unit impulse at the source, shape (samples,), float64, read-only.

    `LEAD_S` stands before the source's own time 0. The absolute scale is arbitrary: a rendered event is set
    to a level in dB_AE.
    """
    length = int(RESPONSE_S * rate_hz)
    size = 1 << (2 * length - 1).bit_length()
    frequency_hz = frequencies_hz(size, rate_hz)
    lead = np.exp(-2j * np.pi * frequency_hz * LEAD_S)
    spectrum: ComplexArray = (
        path_response(position, frequency_hz) * sensor_response(position, frequency_hz, rate_hz) * lead
    )
    response: FloatArray = np.fft.irfft(spectrum, size)[:length]
    fade = length // 4
    response[-fade:] *= 0.5 * (1.0 + np.cos(np.pi * np.arange(fade) / fade))
    response.setflags(write=False)
    return response


@lru_cache(maxsize=32)
def transfer(position: Position, rate_hz: float, size: int) -> ComplexArray:
    """Spectrum of `impulse_response` for a real FFT of `size` samples, shape (size // 2 + 1,), read-only."""
    spectrum: ComplexArray = np.fft.rfft(impulse_response(position, rate_hz), size)
    spectrum.setflags(write=False)
    return spectrum
