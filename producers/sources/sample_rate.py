"""What a file says of its sample rate, and which rate that is exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.sources.reading import RecordingError
from stream.records import MAX_RATE_HZ, MIN_RATE_HZ

# Compared in lower case.
RATE_NAMES = frozenset(
    {"fs", "sr", "sample_rate", "samplerate", "sample_rate_hz", "rate_hz", "sampling_rate", "samplingrate"}
)
PERIOD_NAMES = frozenset({"dt", "wf_increment"})
TIME_NAMES = frozenset({"t", "time", "times", "seconds", "timestamp", "timestamps"})
TIME_UNITS_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
JITTER = 1e-3  #: of a period, by which an even clock may step
MISSED = 0.4  #: of a period, by which no rounding excuses a step

_ON_THE_WIRE = 2**32 - 1


@dataclass(frozen=True, slots=True)
class StatedRate:
    """A sample rate as a file says it: as exactly as its number can."""

    where: str  #: what of the file says so
    low_hz: Fraction
    high_hz: Fraction

    @property
    def rate_hz(self) -> Fraction:
        """The roundest that it can mean."""
        return _roundest(self.low_hz, self.high_hz)

    def allows(self, rate_hz: Fraction) -> bool:
        """Whether it can mean this rate, or one as close as makes no difference in a day."""
        return self.low_hz * (1 - Fraction(1, 10**9)) <= rate_hz <= self.high_hz * (1 + Fraction(1, 10**9))


def stated_rate(path: Path, where: str, name: str, value: Any) -> StatedRate | None:
    """What a value of this name says of the rate; None where the name says nothing.

    Raises
    ------
    RecordingError
        If the name is a rate's and the value is none.
    """
    plain = name.lower()
    if plain not in RATE_NAMES | PERIOD_NAMES:
        return None
    number = one_number(value)
    if number is None or not 0 < number < math.inf:
        raise RecordingError(f"{path}: {where} is {_shown(value)}, which is no sample rate; mend it in the file")
    stated = Fraction(number)
    slack = Fraction(0)
    if not isinstance(number, int):
        single = getattr(value, "dtype", None) == np.float32
        slack = Fraction(1, 2**23) if single else Fraction(1, 2**51)
    low, high = stated * (1 - slack), stated * (1 + slack)
    if plain in PERIOD_NAMES:
        low, high = 1 / high, 1 / low
    if high < MIN_RATE_HZ or low > MAX_RATE_HZ:
        raise RecordingError(
            f"{path}: {where} is {_shown(value)}, a rate of {float(high):g} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are "
            "played"
        )
    return StatedRate(f"{where} ({_shown(value)})", low, high)


def agreed_rate(path: Path, stated: Sequence[StatedRate], given_hz: Fraction | None) -> Fraction:
    """The one rate that all say.

    Raises
    ------
    RecordingError
        If nobody says one, or two say different ones.
    """
    if given_hz is not None:
        for said in stated:
            if not said.allows(given_hz):
                raise RecordingError(
                    f"{path}: --sample-rate says {float(given_hz):.12g} Hz, but {said.where} says "
                    f"{float(said.rate_hz):.12g} Hz; leave --sample-rate out, or mend the file"
                )
        return _fit_for_the_wire(given_hz)
    if not stated:
        raise RecordingError(f"{path}: does not say its sample rate; give it with --sample-rate")
    first = stated[0]
    for other in stated[1:]:
        if not other.allows(first.rate_hz) and not first.allows(other.rate_hz):
            raise RecordingError(
                f"{path}: {first.where} says {float(first.rate_hz):.12g} Hz, but {other.where} says "
                f"{float(other.rate_hz):.12g} Hz; mend the file"
            )
    # The one that knows best: a printed time column tells less than a number.
    return min(stated, key=lambda said: said.high_hz / said.low_hz).rate_hz


class EvenTimes:
    """A column of times, block by block; its first block tells the rate, and all must go on so.

    Raises
    ------
    RecordingError
        If they do not rise evenly, or are too coarse to tell.
    """

    def __init__(self, path: Path, where: str, first: npt.NDArray[np.float64], rounding_s: float) -> None:
        self._path = path
        self._where = where
        self._rounding_s = rounding_s
        if len(first) < 2:
            raise RecordingError(f"{path}: {where} has one time only, which tells no sample rate; give --sample-rate")
        span_s = float(first[-1] - first[0])
        if not 0 < span_s < math.inf:
            raise RecordingError(f"{path}: {where} goes from {first[0]:g} to {first[-1]:g}; give times that rise")
        period_s = span_s / (len(first) - 1)
        wrong_s = 2 * self._uncertain_s(first)
        playable = MIN_RATE_HZ * (1 - JITTER) <= 1 / period_s <= MAX_RATE_HZ * (1 + JITTER)
        if wrong_s >= span_s or not playable:
            raise RecordingError(
                f"{path}: {where} steps by {period_s:g} s, known to {wrong_s:g} s, which tells no rate of "
                f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz; write the times in seconds and finer, or leave them out and give "
                "--sample-rate"
            )
        steps = len(first) - 1
        self._period_s = period_s
        self._last: npt.NDArray[np.float64] = first[:0]
        self.rate = StatedRate(where, Fraction(steps) / Fraction(span_s + wrong_s), steps / Fraction(span_s - wrong_s))

    def _uncertain_s(self, times: npt.NDArray[np.float64]) -> float:
        return self._rounding_s + 2 * float(np.spacing(np.abs(times).max()))

    def uneven(self, times: npt.NDArray[np.float64]) -> int | None:
        """Which of the next times does not follow evenly; None if all do."""
        joined = np.concatenate((self._last, times))
        allowed_s = min(2 * self._uncertain_s(joined), MISSED * self._period_s) + JITTER * self._period_s
        steps = np.diff(joined)
        before = len(self._last)
        self._last = joined[-1:]
        # Written so that NaN is uneven.
        if bool((np.abs(steps - self._period_s) <= allowed_s).all()):
            return None
        # A gap in the first block lengthens the period that it tells: the gap is at fault, not the first step.
        apart = np.abs(steps - np.median(steps))
        return int(np.argmax(~(apart < apart.max() / 2))) + 1 - before


def rate_of_times(path: Path, where: str, blocks: Iterable[npt.NDArray[Any]]) -> StatedRate:
    """What an array of times in seconds, given in blocks of at least two, says of the rate.

    Raises
    ------
    RecordingError
        As `EvenTimes`.
    """
    even: EvenTimes | None = None
    at = 0
    for block in blocks:
        times = block.astype(np.float64)
        if even is None:
            single = block.dtype == np.float32
            even = EvenTimes(path, where, times, float(np.spacing(np.abs(block).max())) if single else 0.0)
        wrong = even.uneven(times)
        if wrong is not None:
            raise RecordingError(f"{path}: {where} is uneven at sample {at + wrong}; resample it, or leave times out")
        at += len(block)
    if even is None:
        raise RecordingError(f"{path}: {where} is empty; leave it out and give --sample-rate")
    return even.rate


def time_unit_s(name: str, unit: str = "") -> float | None:
    """Seconds of a column's unit, where its name (`time`, `t_ms`, …) says that it holds times; None otherwise."""
    stem, _, ending = name.lower().rpartition("_")
    if stem in TIME_NAMES and ending in TIME_UNITS_S:
        return TIME_UNITS_S[ending]
    if name.lower() in TIME_NAMES:
        return TIME_UNITS_S.get(unit.lower() or "s")
    return None


def one_number(value: Any) -> int | float | None:
    """A number, however a file holds it: as a scalar, as an array of one, or as text; None if it is none."""
    if isinstance(value, np.ndarray):
        if value.size != 1:
            return None
        value = value.reshape(())[()]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            return int(value) if value.strip().isdigit() else float(value)
        except ValueError:
            return None
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    number = one_number(value)
    return f"{number:g}" if isinstance(number, float) else repr(value if number is None else number)[:60]


def _roundest(low: Fraction, high: Fraction) -> Fraction:
    """The rate between them that takes the fewest digits, written as itself or as its period."""
    digits, rate_hz = _fewest_digits(low, high)
    period_digits, period_s = _fewest_digits(1 / high, 1 / low)
    return _fit_for_the_wire(rate_hz if digits <= period_digits else 1 / period_s)


def _fewest_digits(low: Fraction, high: Fraction) -> tuple[int, Fraction]:
    top = math.floor(math.log10(high))
    for digits in range(1, 20):
        step = Fraction(10) ** (top + 1 - digits)
        value = math.ceil(low / step) * step
        if value <= high:
            return digits, value
    return 20, low


def _fit_for_the_wire(rate_hz: Fraction) -> Fraction:
    """The rate as a ratio of 32-bit numbers, as frames hold it."""
    if max(rate_hz.numerator, rate_hz.denominator) <= _ON_THE_WIRE:
        return rate_hz
    return rate_hz.limit_denominator(max(1, _ON_THE_WIRE // math.ceil(rate_hz)))
