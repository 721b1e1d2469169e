"""Simulated sensors: background noise, and events of known class at known samples. Pure and seeded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from producers.background import BLOCK, Background
from producers.event_waveforms import EventKind, RenderedEvent, render_event
from producers.propagation import Position

RATE_HZ = 500_000
# ±10 V converter, 16 bits, behind 40 dB: full scale is 100 mV at the sensor, 100 dB_AE, and one count is 9.7 dB_AE.
VOLTS_PER_COUNT = 10.0 / 32768.0 / 100.0

Counts = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """One event to come. Plain fields, so that a plan can be written as JSON and compared with the alerts."""

    sensor: str
    kind: EventKind
    at_sample: int  #: first arrival at the sensor, in samples since the epoch
    seed: int  #: draws the event itself


@dataclass(frozen=True, slots=True)
class Interval:
    """Where an event stands out from the background, in samples since the epoch; both ends belong to it."""

    kind: EventKind
    first_sample: int
    last_sample: int
    onsets: tuple[int, ...]  #: first arrival; of each impact where there are several


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRecording:
    """A continuous recording with everything that is in it."""

    position: Position
    rate_hz: int
    volts_per_count: float
    samples: Counts  #: shape (n,)
    intervals: tuple[Interval, ...]  #: in order of time; they do not overlap


@lru_cache(maxsize=16)
def _rendered(kind: EventKind, seed: int, position: Position, rate_hz: int) -> RenderedEvent:
    return render_event(kind, position, np.random.default_rng([seed, position.seed, 0x455654]), float(rate_hz))


def floor_v(position: Position) -> float:
    """What an event must exceed to stand out: 6 dB above the background's RMS, volts."""
    return 2e-6 * float(10.0 ** (position.noise_db_ae / 20.0))


def interval_of(event: PlannedEvent, position: Position, rate_hz: int = RATE_HZ) -> Interval:
    """Where `event`, heard at `position`, stands out from the background."""
    rendered = _rendered(event.kind, event.seed, position, rate_hz)
    first, last = rendered.audible(floor_v(position))
    start = event.at_sample - rendered.onset
    return Interval(event.kind, start + first, start + last, tuple(start + onset for onset in rendered.onsets))


class SensorSimulator:
    """One simulated sensor; any span of samples, in any order and however cut, is the same each time.

    Raises
    ------
    ValueError
        If an event of `events` belongs to another sensor or lies before sample 0.
    """

    def __init__(
        self,
        sensor: str,
        position: Position,
        rate_hz: int = RATE_HZ,
        seed: int = 0,
        events: Iterable[PlannedEvent] = (),
    ) -> None:
        self.sensor = sensor
        self.position = position
        self.rate_hz = rate_hz
        self.events = tuple(sorted(events, key=lambda event: event.at_sample))
        for event in self.events:
            if event.sensor != sensor:
                raise ValueError(
                    f"{sensor}: its plan holds an event of {event.sensor}; give each sensor its own events"
                )
            if event.at_sample < 0:
                raise ValueError(f"{sensor}: {event.kind} at sample {event.at_sample}; samples count from 0")
        self._background = Background(position, float(rate_hz), seed)
        self._block: tuple[int, Counts] = (-1, np.empty(0, dtype=np.int16))

    def samples(self, start: int, stop: int) -> Counts:
        """Samples [start, stop) since the epoch, shape (stop - start,), int16; times `VOLTS_PER_COUNT` for volts."""
        if not 0 <= start <= stop:
            raise ValueError(f"{self.sensor}: samples {start} to {stop}; wanted is 0 <= start <= stop")
        counts = np.empty(stop - start, dtype=np.int16)
        at = start
        while at < stop:
            index, inside = divmod(at, BLOCK)
            taken = min(stop - at, BLOCK - inside)
            counts[at - start : at - start + taken] = self._counts(index)[inside : inside + taken]
            at += taken
        return counts

    def intervals(self) -> tuple[Interval, ...]:
        """Where the planned events stand out from the background, in order of time."""
        return tuple(interval_of(event, self.position, self.rate_hz) for event in self.events)

    def _counts(self, index: int) -> Counts:
        if self._block[0] == index:
            return self._block[1]
        volts = self._background.block(index)
        first = index * BLOCK
        for event in self.events:
            # No event is longer than two seconds, nor hears anything 20 ms before its onset: render only near ones.
            if event.at_sample - self.rate_hz // 50 < first + BLOCK and event.at_sample + 2 * self.rate_hz > first:
                self._add(event, first, volts)
        volts *= np.float32(1.0 / VOLTS_PER_COUNT)
        np.rint(volts, out=volts)
        np.clip(volts, -32768.0, 32767.0, out=volts)
        self._block = (index, volts.astype(np.int16))
        return self._block[1]

    def _add(self, event: PlannedEvent, first: int, volts: npt.NDArray[np.float32]) -> None:
        rendered = _rendered(event.kind, event.seed, self.position, self.rate_hz)
        offset = event.at_sample - rendered.onset - first
        begin, end = max(0, offset), min(len(volts), offset + len(rendered.samples))
        if begin < end:
            volts[begin:end] += rendered.samples[begin - offset : end - offset]


def plan_events(
    seed: int,
    sensors: Sequence[str],
    duration_s: float,
    rate_hz: int = RATE_HZ,
    spacing_s: float = 8.0,
    first_s: float = 4.0,
    last_s: float = 6.0,
    kinds: Sequence[EventKind] = tuple(EventKind),
) -> tuple[PlannedEvent, ...]:
    """Events on all sensors in order of time, far enough apart that each can raise and clear an alarm of its own.

    Each sensor goes through a shuffled round of `kinds` before any comes again; its events are `spacing_s` to
    1.5 `spacing_s` apart, none within `first_s` of the start or `last_s` of the end. Sensors are staggered.

    Raises
    ------
    ValueError
        If the duration is too short for one event.
    """
    if duration_s <= first_s + last_s:
        raise ValueError(
            f"{duration_s:g} s leave no time for an event; {first_s:g} s before and {last_s:g} s after it stay quiet"
        )
    rng = np.random.default_rng([seed, 0x504C41])
    events: list[PlannedEvent] = []
    for number, sensor in enumerate(sensors):
        round_of: list[EventKind] = []
        last: EventKind | None = None
        at_s = first_s + spacing_s * number / max(1, len(sensors)) * rng.uniform(0.7, 1.0)
        at_s = min(at_s, duration_s - last_s)
        while at_s <= duration_s - last_s:
            if not round_of:
                round_of = _shuffled(kinds, rng, last)
            last = round_of.pop()
            events.append(PlannedEvent(sensor, last, int(at_s * rate_hz), int(rng.integers(2**31))))
            at_s += spacing_s * rng.uniform(1.0, 1.5)
    return tuple(sorted(events, key=lambda event: (event.at_sample, event.sensor)))


def _shuffled(kinds: Sequence[EventKind], rng: np.random.Generator, last: EventKind | None) -> list[EventKind]:
    """A round of `kinds` to be popped, which does not begin with `last` where it need not."""
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    if order[-1] == last:
        order.reverse()
    return order


def labelled_recording(
    position: Position,
    duration_s: float,
    seed: int,
    rate_hz: int = RATE_HZ,
    kinds: Sequence[EventKind] = tuple(EventKind),
    quiet_s: tuple[float, float] = (0.15, 0.6),
) -> LabelledRecording:
    """A recording full of labelled events, for training: event, a quiet time drawn from `quiet_s`, event, …

    The kinds come in shuffled rounds, so each comes about equally often. What the end would cut off is left out.
    """
    rng = np.random.default_rng([seed, position.seed, 0x4C4142])
    total = int(duration_s * rate_hz)
    events: list[PlannedEvent] = []
    intervals: list[Interval] = []
    round_of: list[EventKind] = []
    quiet_from = 0
    while True:
        if not round_of:
            round_of = _shuffled(kinds, rng, None)
        at = quiet_from + int(rng.uniform(*quiet_s) * rate_hz) + rate_hz // 1000
        event = PlannedEvent(position.name, round_of.pop(), at, int(rng.integers(2**31)))
        interval = interval_of(event, position, rate_hz)
        if interval.last_sample >= total:
            break
        events.append(event)
        intervals.append(interval)
        quiet_from = interval.last_sample
    simulator = SensorSimulator(position.name, position, rate_hz, int(rng.integers(2**31)), events)
    return LabelledRecording(position, rate_hz, VOLTS_PER_COUNT, simulator.samples(0, total), tuple(intervals))
