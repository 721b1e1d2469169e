"""An endless row of samples into frames: places from the sample counter, times from the counter and the epoch."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import cast

import numpy as np

from stream.records import Flags, Frame, Samples, samples_to_ns

# Made once, as this is done for every frame.
_NO_FLAGS = Flags(0)
_INT16, _FLOAT32 = np.dtype(np.int16), np.dtype(np.float32)


class Framer:
    """Cuts one sensor's samples into frames of equal length, from one start of its device on.

    Parameters
    ----------
    sensor, rate_hz, volts_per_count
        As in `stream.records.Frame`.
    frame_samples
        Of a frame. A gap ends a frame early.
    epoch_ns
        When the first sample was taken, ns UTC.
    """

    def __init__(
        self, sensor: str, rate_hz: Fraction, volts_per_count: float, frame_samples: int, epoch_ns: int
    ) -> None:
        self._sensor = sensor
        self._rate_hz = rate_hz
        self._volts_per_count = volts_per_count
        self._frame_samples = frame_samples
        self.epoch_ns = epoch_ns
        self._parts: list[Samples] = []
        self._waiting = 0
        self._sequence = 0
        self._first = 0  # of those that wait
        self._flags = _NO_FLAGS

    @property
    def end_ns(self) -> int:
        """Time of the first sample that is not there yet, by the sample counter."""
        return self.epoch_ns + samples_to_ns(self._first + self._waiting, self._rate_hz)

    def anew(self, epoch_ns: int) -> Framer:
        """One that goes on in a new epoch, which this one is to be ended for."""
        return Framer(self._sensor, self._rate_hz, self._volts_per_count, self._frame_samples, epoch_ns)

    def push(self, samples: Samples, lost: int = 0) -> list[Frame]:
        """The frames that are full now.

        Parameters
        ----------
        samples
            (n,), int16 or float32. Those that are not finite count as lost.
        lost
            Samples lost before them; the next frame begins behind the gap and is flagged OVERFLOW.
        """
        frames: list[Frame] = []
        if lost:
            frames += self.flush()
            self._skip(lost)
        if samples.dtype == _FLOAT32 and not np.isfinite(samples.sum(dtype=np.float64)):
            for part, sound in _runs(samples):
                if sound:
                    frames += self.push(part)
                else:
                    frames += self.flush()
                    self._skip(len(part))
            return frames
        begin = 0
        while begin < len(samples):
            part = samples[begin : begin + self._frame_samples - self._waiting]
            begin += len(part)
            self._parts.append(part)
            self._waiting += len(part)
            if self._waiting == self._frame_samples:
                frames += self.flush()
        return frames

    def flush(self) -> list[Frame]:
        """What waits, as a shorter frame; nothing where nothing waits."""
        if not self._waiting:
            return []
        samples = _joined(self._parts)
        flags = self._flags
        if clips(samples):
            flags |= Flags.SATURATED
        frame = self._frame(samples, flags)
        self._first += self._waiting
        self._parts, self._waiting, self._flags = [], 0, _NO_FLAGS
        return [frame]

    def end(self) -> list[Frame]:
        """What waits, and the frame that ends the epoch."""
        return [*self.flush(), self._frame(np.empty(0, np.int16), Flags.END)]

    def _skip(self, lost: int) -> None:
        self._first += lost
        self._flags |= Flags.OVERFLOW

    def _frame(self, samples: Samples, flags: Flags) -> Frame:
        frame = Frame(
            sensor=self._sensor,
            epoch_ns=self.epoch_ns,
            sequence=self._sequence,
            first_sample=self._first,
            time_ns=self.epoch_ns + samples_to_ns(self._first, self._rate_hz),
            rate_hz=self._rate_hz,
            samples=samples,
            volts_per_count=self._volts_per_count,
            flags=flags,
        )
        self._sequence += 1
        return frame


def clips(samples: Samples) -> bool:
    """Whether any of them, if they are int16, is at an end of the converter's range."""
    # Places are found several times as fast as `max` and `min` find values.
    return samples.dtype == _INT16 and (
        samples.item(samples.argmax()) == 32_767 or samples.item(samples.argmin()) == -32_768
    )


def _joined(parts: list[Samples]) -> Samples:
    """A copy, as the device may use its buffer again."""
    return parts[0].copy() if len(parts) == 1 else cast("Samples", np.concatenate(parts))


def _runs(samples: Samples) -> list[tuple[Samples, bool]]:
    """Stretches of samples that are finite and of such that are not, in order."""
    sound = np.isfinite(samples)
    edges = [0, *(np.flatnonzero(np.diff(sound)) + 1).tolist(), len(samples)]
    return [(samples[start:stop], bool(sound[start])) for start, stop in pairwise(edges)]
