"""Which windows the pipeline makes last of what was published, known from where its samples lie. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from stream.records import Flags, Frame, samples_to_ns
from stream.windows import SensorWindows, WindowSpec

NO_FLAGS = Flags(0)


@dataclass(frozen=True, slots=True)
class LastWindow:
    """Once it is applied, so are all of its sensor and kind before it."""

    sensor: str
    position: tuple[int, int]  #: epoch, ns UTC, and start sample
    hit: bool


@dataclass(slots=True)
class _Stretch:
    """Samples without a gap or a change of what they mean."""

    epoch_ns: int
    start: int
    end: int
    rate_hz: Fraction
    dtype: np.dtype[Any]
    volts_per_count: float

    def goes_on_as(self, frame: Frame) -> bool:
        return (
            self.epoch_ns == frame.epoch_ns
            and self.start <= frame.first_sample <= self.end
            and (self.rate_hz is frame.rate_hz or self.rate_hz == frame.rate_hz)
            and self.dtype == frame.samples.dtype
            and self.volts_per_count == frame.volts_per_count
            and Flags.OVERFLOW not in frame.flags
        )


class PublishedSamples:
    """Takes down, frame by frame, where the samples of each sensor lie."""

    def __init__(self) -> None:
        self._stretches: dict[str, list[_Stretch]] = {}
        self._hits: dict[str, tuple[int, int]] = {}  # position of the last one

    def note(self, frame: Frame) -> None:
        """One more frame is published."""
        if not len(frame.samples):
            return
        if Flags.HIT in frame.flags:
            position = frame.epoch_ns, frame.first_sample
            self._hits[frame.sensor] = max(self._hits.get(frame.sensor, position), position)
            return
        stretches = self._stretches.setdefault(frame.sensor, [])
        if stretches and stretches[-1].goes_on_as(frame):
            stretches[-1].end = max(stretches[-1].end, frame.end_sample)
        else:
            stretches.append(
                _Stretch(
                    frame.epoch_ns,
                    frame.first_sample,
                    frame.end_sample,
                    frame.rate_hz,
                    frame.samples.dtype,
                    frame.volts_per_count,
                )
            )

    def last_windows(self, spec: WindowSpec) -> list[LastWindow]:
        """The last continuous window of each sensor, where it has one, and the one of its last hit."""
        found = [LastWindow(sensor, position, hit=True) for sensor, position in self._hits.items()]
        for sensor, stretches in self._stretches.items():
            position = _last_position(stretches, spec)
            if position is not None:
                found.append(LastWindow(sensor, position, hit=False))
        return found


def _last_position(stretches: Sequence[_Stretch], spec: WindowSpec) -> tuple[int, int] | None:
    for stretch in reversed(stretches):
        per_sample = 1 if spec.rate_hz is None else stretch.rate_hz / spec.rate_hz
        count = math.ceil((spec.length + spec.hop) * per_sample)
        while True:
            # Which samples they are is no matter to where windows lie; filters may reach further than the window.
            windows = _windows(stretch, max(stretch.start, stretch.end - count), spec)
            if windows:
                return windows[-1]
            if count >= stretch.end - stretch.start:
                break
            count *= 2
    return None


def _windows(stretch: _Stretch, start: int, spec: WindowSpec) -> list[tuple[int, int]]:
    frame = Frame(
        sensor="",
        epoch_ns=stretch.epoch_ns,
        sequence=0,
        first_sample=start,
        time_ns=stretch.epoch_ns + samples_to_ns(start, stretch.rate_hz),
        rate_hz=stretch.rate_hz,
        samples=np.zeros(stretch.end - start, stretch.dtype),
        volts_per_count=stretch.volts_per_count,
        flags=NO_FLAGS,
    )
    return [(window.epoch_ns, window.start_sample) for window in SensorWindows("", spec).push(frame).windows]
