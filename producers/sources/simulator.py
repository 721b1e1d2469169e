"""Frames from simulated sensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from producers.simulator import VOLTS_PER_COUNT, SensorSimulator
from producers.sources.frame_cuts import FrameCuts
from stream.records import Flags, Frame, samples_to_ns


class SimulatedSensors:
    """Several simulated sensors in step, all at one rate, for `duration_s` seconds or without end.

    Raises
    ------
    ValueError
        If there is no sensor, the rates differ, or two sensors have one name.
    """

    def __init__(
        self,
        simulators: Sequence[SensorSimulator],
        duration_s: float | None = None,
        cuts: FrameCuts | None = None,
        epoch_ns: int = 0,
    ) -> None:
        rates = {simulator.rate_hz for simulator in simulators}
        if len(rates) != 1:
            raise ValueError(f"rates {sorted(rates)} Hz; sensors of one source run in step and share one rate")
        self.sensors = tuple(simulator.sensor for simulator in simulators)
        if len(set(self.sensors)) != len(self.sensors):
            raise ValueError(f"two sensors have one name: {', '.join(self.sensors)}")
        self.duration_s = duration_s
        self._simulators = tuple(simulators)
        self._rate_hz = Fraction(rates.pop())
        self._cuts = cuts or FrameCuts()
        self._epoch_ns = epoch_ns
        self._samples = None if duration_s is None else int(Fraction(duration_s) * self._rate_hz)

    @property
    def total_frames(self) -> int | None:
        """Frames of one iteration, with the END frames; None if there is no end."""
        if self._samples is None:
            return None
        return len(self.sensors) * (self._cuts.frames(self._samples, self._rate_hz) + 1)

    @property
    def total_samples(self) -> int | None:
        """Samples of all sensors; None if there is no end."""
        return None if self._samples is None else len(self.sensors) * self._samples

    def __iter__(self) -> Iterator[Frame]:
        """Frame by frame, each time of all sensors."""
        at = 0
        sequence = 0
        for size in self._cuts.sizes(self._rate_hz):
            stop = at + size if self._samples is None else min(at + size, self._samples)
            if stop == at:
                break
            for simulator in self._simulators:
                yield self._frame(simulator, sequence, at, stop, Flags(0))
            at = stop
            sequence += 1
        for simulator in self._simulators:
            yield self._frame(simulator, sequence, at, at, Flags.END)

    def _frame(self, simulator: SensorSimulator, sequence: int, start: int, stop: int, flags: Flags) -> Frame:
        return Frame(
            sensor=simulator.sensor,
            epoch_ns=self._epoch_ns,
            sequence=sequence,
            first_sample=start,
            time_ns=self._epoch_ns + samples_to_ns(start, self._rate_hz),
            rate_hz=self._rate_hz,
            samples=simulator.samples(start, stop),
            volts_per_count=VOLTS_PER_COUNT,
            flags=flags,
        )
