"""How a sensor is, from the frames that it gives: rate, lag, gaps, clipping, flat line."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from producers.live.clock_drift import ClockDrift
from producers.live.framer import clips
from stream.records import NS_PER_S, Flags, Frame, Samples, samples_to_ns

RATE_S = 10.0

# Plain integers, as `IntFlag` is slow for once a frame.
_WITHOUT_PLACE = int(Flags.HIT | Flags.END)
_SATURATED = int(Flags.SATURATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorReport:
    """One sensor, now. Times in s."""

    sensor: str
    source: str
    metadata: Mapping[str, str | int | float | bool]  #: as sensors.toml says
    state: str  #: "running", "retrying", "ended" or "starting"
    error: str  #: why it was last retried; "" if never
    rate_hz: float  #: as it says
    measured_rate_hz: float  #: samples that came in the last 10 s, or since the first frame, a second
    frames: int
    samples: int
    lag_s: float | None  #: from the last sample's time to now; None before the first
    last_frame_s: float | None  #: since a frame came
    gaps: int  #: places where the device lost samples
    lost_samples: int
    epochs: int  #: starts of the device that were seen
    corrections: int  #: epochs that begin in a running device, as its samples were ahead of this machine's clock
    clipped_share: float  #: of the samples of the last 10 s
    flat: bool
    drift_ppm: float | None  #: see `producers.live.clock_drift`
    offset_s: float
    spooled_frames: int | None = None  #: that wait on the disk for the broker; None without a spool


class SensorMeter:
    """Told every frame of a sensor."""

    def __init__(
        self, sensor: str, source: str, flat_s: float, metadata: Mapping[str, str | int | float | bool] | None = None
    ) -> None:
        self.sensor, self.source, self._metadata = sensor, source, metadata or {}
        self.state = "starting"
        self.error = ""
        self.corrections = 0
        self.drift = ClockDrift()
        self._flat_ns = round(flat_s * NS_PER_S)
        self._rate_hz = 0.0
        # Count and rate of the last frame, and how long it was: seldom others, and fractions are slow.
        self._shape: tuple[int, Fraction] = (0, Fraction(1))
        self._length_ns = 0
        self._frames = self._samples = self._gaps = self._lost = self._epochs = 0
        self._epoch_ns: int | None = None
        self._next_sample = 0
        self._end_ns: int | None = None
        self._came_ns: int | None = None
        self._began_ns = 0  # when the first sample of all would have come
        self._recent: deque[tuple[int, int, int]] = deque()  # (arrival, samples, clipped)
        self._last_value: float | None = None
        self._unchanged_ns = 0

    def frame(self, frame: Frame, now_ns: int, *, looked_at: bool = False) -> None:
        """A frame came at `now_ns`.

        Parameters
        ----------
        looked_at
            Its flag SATURATED tells whether any sample is at an end of its range, as that of a `Framer`'s frame does.
        """
        if frame.epoch_ns != self._epoch_ns:
            self._epoch_ns, self._next_sample = frame.epoch_ns, frame.first_sample
            self._epochs += 1
            self.drift = ClockDrift()
        flags = int(frame.flags)
        continuous = not flags & _WITHOUT_PLACE
        if continuous and frame.first_sample > self._next_sample:
            self._gaps += 1
            self._lost += frame.first_sample - self._next_sample
        samples = frame.samples
        count = len(samples)
        self._next_sample = frame.first_sample + count
        if not count:
            return
        self._frames += 1
        self._samples += count
        if self._shape[0] != count or self._shape[1] is not frame.rate_hz:
            self._shape = count, frame.rate_hz
            self._rate_hz = float(frame.rate_hz)
            self._length_ns = samples_to_ns(count, frame.rate_hz)
        length_ns = self._length_ns
        if self._came_ns is None:
            # A device's first blocks are kept for a moment, and come together.
            self._began_ns = frame.time_ns if looked_at else now_ns - length_ns
        self._end_ns, self._came_ns = frame.time_ns + length_ns, now_ns
        if continuous:
            self.drift.arrived(self._end_ns, now_ns)
        clipped = 0
        if flags & _SATURATED if looked_at else clips(samples):
            clipped = int(np.count_nonzero((samples == 32_767) | (samples == -32_768)))
        self._recent.append((now_ns, count, clipped))
        self._forget(now_ns)
        last_value = samples.item(-1)
        if (self._last_value is None or last_value == self._last_value) and _constant(samples):
            self._unchanged_ns += length_ns
        else:
            self._unchanged_ns = 0
        self._last_value = last_value

    def report(self, now_ns: int, spooled_frames: int | None = None) -> SensorReport:
        """How it is at `now_ns`; what of it is in the spool is known to whoever has one."""
        self._forget(now_ns)
        samples = sum(count for _, count, _ in self._recent)
        clipped = sum(count for _, _, count in self._recent)
        return SensorReport(
            sensor=self.sensor,
            source=self.source,
            metadata=self._metadata,
            state=self.state,
            error=self.error,
            rate_hz=self._rate_hz,
            measured_rate_hz=samples / min(RATE_S, max(1, now_ns - self._began_ns) / NS_PER_S) if samples else 0.0,
            frames=self._frames,
            samples=self._samples,
            lag_s=None if self._end_ns is None else (now_ns - self._end_ns) / NS_PER_S,
            last_frame_s=None if self._came_ns is None else (now_ns - self._came_ns) / NS_PER_S,
            gaps=self._gaps,
            lost_samples=self._lost,
            epochs=self._epochs - self.corrections,
            corrections=self.corrections,
            clipped_share=clipped / samples if samples else 0.0,
            flat=self._unchanged_ns >= self._flat_ns,
            drift_ppm=self.drift.drift_ppm,
            offset_s=self.drift.offset_s,
            spooled_frames=spooled_frames,
        )

    def _forget(self, now_ns: int) -> None:
        while self._recent and now_ns - self._recent[0][0] > RATE_S * NS_PER_S:
            self._recent.popleft()


def _constant(samples: Samples) -> bool:
    """Whether all of them, at least one, are the same."""
    # Where anything is to be heard, the ends alone tell nearly always.
    return bool(samples.item(0) == samples.item(-1) and (samples == samples[0]).all())
