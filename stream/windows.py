"""How frames become windows: one sensor's samples, cut on an absolute grid, independent of how they were framed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.records import MAX_INDEX, BadRecord, Flags, Frame, Samples, Window, samples_to_ns
from stream.resample import INT16_FULL_SCALE, Resampler, resampler

#: What a continuous window takes over from the frames it overlaps.
INHERITED = Flags.OVERFLOW | Flags.SATURATED | Flags.HISTORICAL | Flags.TEST_PULSE

MAX_RESAMPLED_HIT = 2**22  #: samples; 16 MiB as float32, what a frames message may hold
#: From slower sensors, windows and the work for them would grow to thousands of times their frames.
MAX_UPSAMPLING = 16
REMEMBERED_RUNS = 64
REMEMBERED_HITS = 1024


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """What the model looks at: `length` samples every `hop` samples at `rate_hz`.

    `rate_hz` None is a nominal rate: samples go in as they are, whatever the sensor's rate.

    Raises
    ------
    ValueError
        If a length, hop or rate is not positive.
    """

    length: int
    hop: int
    rate_hz: Fraction | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.hop < 1:
            raise ValueError(f"window length {self.length} and hop {self.hop} must be at least one sample")
        if self.rate_hz is not None and self.rate_hz <= 0:
            raise ValueError(f"model rate {self.rate_hz} Hz must be positive, or None where it is nominal")


@dataclass(slots=True)
class WindowCounts:
    """What one sensor's frames came to. All in frames unless said otherwise."""

    frames: int = 0  #: pushed, of whatever fate
    samples: int = 0  #: taken into the stream or a hit, each once
    windows: int = 0  #: continuous windows made
    hit_windows: int = 0  #: windows made of hit frames
    duplicates: int = 0  #: dropped, wholly in what was already taken
    overlaps: int = 0  #: trimmed, partly in what was already taken
    gaps: int = 0  #: places where samples are missing
    gap_samples: int = 0  #: samples missing there, as far as the counter tells
    late: int = 0  #: of an older epoch, or reaching into a gap already passed: rejected
    refused: int = 0  #: with a rate or position no window can have: rejected
    rate_changes: int = 0  #: inside an epoch
    format_changes: int = 0  #: of sample type or volts per count inside an epoch
    epochs: int = 0  #: epochs seen
    tail_samples: int = 0  #: samples at the end of a segment that were too few for a window


@dataclass(slots=True)
class Pushed:
    """What became of one frame.

    `rejected` is "reason: detail" where the frame was not used at all and belongs into the dead letters. `held` is
    True where its samples are in the stream, and then the frame may be forgotten once `SensorWindows.needed_from`
    has passed its end; a frame that is not held (rejected, duplicate, hit) may be as soon as `windows` are safe.
    """

    windows: list[Window] = field(default_factory=list)
    rejected: str | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where windows lie, in samples of the sensor, and the filter that makes them where rates differ."""

    length: int
    hop: int
    rate_hz: Fraction  #: of the windows' samples
    resampler: Resampler | None

    @classmethod
    def at(cls, source_rate_hz: Fraction, spec: WindowSpec) -> _Grid:
        if spec.rate_hz is None or spec.rate_hz == source_rate_hz:
            return cls(spec.length, spec.hop, source_rate_hz, None)
        if spec.hop * source_rate_hz < spec.rate_hz:
            raise BadRecord(
                "rate",
                f"at {float(source_rate_hz):g} Hz two windows would begin with the same sample: the hop is {spec.hop} "
                f"at {float(spec.rate_hz):g} Hz",
            )
        if spec.rate_hz > MAX_UPSAMPLING * source_rate_hz:
            raise BadRecord(
                "rate",
                f"{float(source_rate_hz):g} Hz is less than 1/{MAX_UPSAMPLING} of the model's {float(spec.rate_hz):g} "
                "Hz, so nothing that the model listens for can be in it",
            )
        between = resampler(source_rate_hz, spec.rate_hz)
        return cls(spec.length, spec.hop, spec.rate_hz, between)

    def resampled_count(self, count: int) -> int:
        """How many samples at the windows' rate begin within `count` samples of the sensor."""
        return count if self.resampler is None else -(-count * self.resampler.up // self.resampler.down)

    def span(self, index: int) -> tuple[int, int]:
        """Samples [start, end) that window `index` stands for."""
        first = index * self.hop
        if self.resampler is None:
            return first, first + self.length
        return self.resampler.source_span(first, self.length)

    def needs(self, index: int) -> tuple[int, int]:
        """Samples [begin, end) that window `index` is computed from."""
        first = index * self.hop
        if self.resampler is None:
            return first, first + self.length
        return self.resampler.source_range(first, self.length)

    def volts_per_count(self, frame: Frame) -> float:
        """Of a window made of this frame: resampled int16 has full scale at ±1."""
        if self.resampler is None or frame.samples.dtype != np.int16:
            return frame.volts_per_count
        return INT16_FULL_SCALE * frame.volts_per_count

    def first_from(self, sample: int) -> int:
        """The first window that needs nothing before `sample`."""
        if self.resampler is None:
            return -(-sample // self.hop)
        return -(-self.resampler.first_output_from(sample) // self.hop)


@dataclass(slots=True)
class _Chunk:
    start: int
    end: int
    samples: Samples
    flags: Flags


class _Segment:
    """Consecutive samples of one rate, sample type and scale, of which the part still needed is kept."""

    def __init__(self, frame: Frame, start: int, grid: _Grid) -> None:
        self.rate_hz = frame.rate_hz
        self._dtype = frame.samples.dtype
        self._volts_per_count = frame.volts_per_count
        self._window_volts_per_count = grid.volts_per_count(frame)
        self.end = start
        self._grid = grid
        self._chunks: deque[_Chunk] = deque()
        self._index = grid.first_from(start)
        self._covered = start
        self.need, self._need_end = grid.needs(self._index)

    @property
    def tail(self) -> int:
        """Samples that would have gone into the next window, and into no other."""
        return max(0, self.end - max(self._covered, self._grid.span(self._index)[0]))

    def goes_on_as(self, frame: Frame) -> bool:
        """Whether the frame's samples mean what this segment's do."""
        return frame.samples.dtype == self._dtype and frame.volts_per_count == self._volts_per_count

    def append(self, samples: Samples, flags: Flags) -> None:
        start, self.end = self.end, self.end + len(samples)
        if self.end > self.need:
            self._chunks.append(_Chunk(start, self.end, samples, flags))

    def cut(self, sensor: str, epoch_ns: int) -> list[Window]:
        """The windows that are complete now."""
        windows = []
        while self._need_end <= self.end:
            windows.append(self._window(sensor, epoch_ns))
            self._index += 1
            self.need, self._need_end = self._grid.needs(self._index)
            while self._chunks and self._chunks[0].end <= self.need:
                self._chunks.popleft()
        return windows

    def _window(self, sensor: str, epoch_ns: int) -> Window:
        start, end = self._grid.span(self._index)
        pieces: list[npt.NDArray[Any]] = []
        flags = Flags(0)
        for chunk in self._chunks:
            if chunk.start >= self._need_end:
                break
            pieces.append(chunk.samples[max(self.need - chunk.start, 0) : self._need_end - chunk.start])
            if chunk.flags and chunk.start < end and start < chunk.end:
                flags |= chunk.flags
        samples: Samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if self._grid.resampler is not None:
            samples = self._grid.resampler.apply(samples, self.need, self._index * self._grid.hop, self._grid.length)
        self._covered = end
        return Window(
            sensor=sensor,
            epoch_ns=epoch_ns,
            start_sample=start,
            source_count=end - start,
            source_rate_hz=self.rate_hz,
            time_ns=epoch_ns + samples_to_ns(start, self.rate_hz),
            rate_hz=self._grid.rate_hz,
            samples=samples,
            volts_per_count=self._window_volts_per_count,
            flags=flags & INHERITED,
        )


class SensorWindows:
    """Cuts one sensor's frames into windows, in memory only.

    Samples are kept as views of the frames they came in, so a frame's samples must not be changed after `push`, and
    its message stays in memory until its last window is cut. A continuous window is at most one copy of its samples,
    and none where it lies within one frame.

    The samples, identity and time of the windows do not depend on how the samples were cut into frames, nor, from
    the first window that lies wholly in what was read, on where reading began. Their flags say what was said of
    whole frames: a window carries `INHERITED` flags of all frames it overlaps, so the longer the frames, the
    further a flag reaches.

    A sensor is best either continuous or triggered: a hit's window is made at once, without waiting for continuous
    windows that begin before it, and could have the same identity as one. Give hits their own sensor id.

    `needed_from` is (epoch_ns, sample): nothing of older epochs and nothing of this epoch before that sample goes
    into any window to come; it never goes back. A new object that is given every frame from the first one on whose
    samples are held and reach beyond it makes the windows that this one would still have made.

    `goes_on`: others have read this sensor before, and nothing is known of what they took. Samples before the first
    ones given, of the same epoch, then count as taken: a producer that was killed sends them again.
    """

    def __init__(self, sensor: str, spec: WindowSpec, *, goes_on: bool = False) -> None:
        self.sensor = sensor
        self.spec = spec
        self._goes_on = goes_on
        self.counts = WindowCounts()
        self.needed_from: tuple[int, int] = (0, 0)
        self._epoch_ns = -1
        self._ended = False
        self._segment: _Segment | None = None
        self._runs: deque[list[int]] = deque(maxlen=REMEMBERED_RUNS)
        self._hits: dict[int, None] = {}
        self._grid: _Grid
        self._grid_rate_hz: Fraction | None = None

    def push(self, frame: Frame) -> Pushed:
        """Take the sensor's next frame. Never raises for what a frame holds."""
        self.counts.frames += 1
        if frame.epoch_ns < self._epoch_ns:
            return self._late(f"epoch {frame.epoch_ns} is over, epoch {self._epoch_ns} has begun")
        hit = Flags.HIT in frame.flags
        try:
            grid = self._grid_for(frame)
            if hit:
                _check_hit(frame, grid)
        except BadRecord as error:
            self.counts.refused += 1
            return Pushed(rejected=str(error))
        if frame.epoch_ns > self._epoch_ns:
            self._begin_epoch(frame.epoch_ns)
        pushed = self._push_hit(frame, grid) if hit else self._push_continuous(frame, grid)
        if Flags.END in frame.flags and pushed.rejected is None:
            self._close_segment()
            self._ended = True
        if self._ended:
            self.needed_from = (self._epoch_ns + 1, 0)
        elif self._segment is not None:
            # Behind the end another rate, and with it an earlier window, may still begin.
            self.needed_from = (self._epoch_ns, min(self._segment.need, self._segment.end))
        else:
            self.needed_from = (self._epoch_ns, 0)
        return pushed

    def _grid_for(self, frame: Frame) -> _Grid:
        """The grid at this frame's rate.

        Raises
        ------
        BadRecord
            If no window could be made of the frame, or none whose time can be written down.
        """
        if frame.epoch_ns + samples_to_ns(frame.end_sample, frame.rate_hz) > MAX_INDEX:
            raise BadRecord(
                "first-sample",
                f"sample {frame.first_sample} at {float(frame.rate_hz):g} Hz after epoch {frame.epoch_ns} lies beyond "
                "the year 2116, which times end with; count samples from the epoch",
            )
        if self._grid_rate_hz != frame.rate_hz:
            self._grid = _Grid.at(frame.rate_hz, self.spec)
            self._grid_rate_hz = frame.rate_hz
        if not math.isfinite(self._grid.volts_per_count(frame)):
            raise BadRecord("scale", f"{frame.volts_per_count} volts per count are too many to be resampled")
        return self._grid

    def _push_hit(self, frame: Frame, grid: _Grid) -> Pushed:
        if frame.first_sample in self._hits:
            self.counts.duplicates += 1
            return Pushed()
        if not len(frame.samples):
            return Pushed()
        if self._ended:
            return self._late(f"a hit at sample {frame.first_sample} after the end of epoch {self._epoch_ns}")
        self._hits[frame.first_sample] = None
        if len(self._hits) > REMEMBERED_HITS:
            del self._hits[next(iter(self._hits))]
        self.counts.samples += len(frame.samples)
        self.counts.hit_windows += 1
        return Pushed([_hit_window(frame, grid)])

    def _push_continuous(self, frame: Frame, grid: _Grid) -> Pushed:
        start, end = frame.first_sample, frame.end_sample
        samples = frame.samples
        if not len(samples):
            self._find_gap(start, frame.flags)
            return Pushed()
        if self._runs and start < self._runs[-1][1]:
            taken_start, taken_end = self._runs[-1]
            if start < taken_start or end <= taken_end:
                return self._taken_or_late(start, end)
            self.counts.overlaps += 1
            samples = samples[taken_end - start :]
            start = taken_end
        if self._ended:
            return self._late(f"samples {start} to {end} after the end of epoch {self._epoch_ns}")
        self._find_gap(start, frame.flags)
        if self._segment is not None and self._segment.rate_hz != frame.rate_hz:
            self.counts.rate_changes += 1
            self._close_segment()
        if self._segment is not None and not self._segment.goes_on_as(frame):
            self.counts.format_changes += 1
            self._close_segment()
        if self._segment is None:
            self._segment = _Segment(frame, start, grid)
        if self._runs and self._runs[-1][1] == start:
            self._runs[-1][1] = end
        else:
            self._runs.append([0 if self._goes_on else start, end])
            self._goes_on = False
        self._segment.append(samples, frame.flags)
        self.counts.samples += len(samples)
        windows = self._segment.cut(self.sensor, self._epoch_ns)
        self.counts.windows += len(windows)
        return Pushed(windows, held=True)

    def _taken_or_late(self, start: int, end: int) -> Pushed:
        """A frame that begins before what is being taken now: seen before, or missed."""
        if any(run_start <= start and end <= run_end for run_start, run_end in self._runs):
            self.counts.duplicates += 1
            return Pushed()
        return self._late(f"samples {start} to {end} reach into a gap that was passed; taken up to {self._runs[-1][1]}")

    def _find_gap(self, start: int, flags: Flags) -> None:
        """Close the segment where samples are missing between it and `start`."""
        if self._segment is None:
            return
        missing = start - self._segment.end
        # A device that says it lost samples did, even where its counter goes on as if it had not.
        if missing > 0 or Flags.OVERFLOW in flags:
            self.counts.gaps += 1
            self.counts.gap_samples += max(missing, 0)
            self._close_segment()

    def _late(self, detail: str) -> Pushed:
        self.counts.late += 1
        return Pushed(rejected=f"late: {detail}")

    def _begin_epoch(self, epoch_ns: int) -> None:
        self._close_segment()
        self._goes_on = self._goes_on and self._epoch_ns < 0
        self._epoch_ns = epoch_ns
        self._ended = False
        self._runs.clear()
        self._hits.clear()
        self.counts.epochs += 1

    def _close_segment(self) -> None:
        if self._segment is not None:
            self.counts.tail_samples += self._segment.tail
            self._segment = None


def _check_hit(frame: Frame, grid: _Grid) -> None:
    count = grid.resampled_count(len(frame.samples))
    if grid.resampler is not None and count > MAX_RESAMPLED_HIT:
        raise BadRecord(
            "too-large",
            f"a hit of {len(frame.samples)} samples is {count} at the model's rate, {MAX_RESAMPLED_HIT} are allowed; "
            "send long signals as continuous frames",
        )


def _hit_window(frame: Frame, grid: _Grid) -> Window:
    """The window of one hit. Where it is resampled, its first sample is phase 0 and around it are zeros."""
    samples = frame.samples
    if grid.resampler is not None:
        samples = grid.resampler.apply(samples, 0, 0, grid.resampled_count(len(samples)))
    return Window(
        sensor=frame.sensor,
        epoch_ns=frame.epoch_ns,
        start_sample=frame.first_sample,
        source_count=len(frame.samples),
        source_rate_hz=frame.rate_hz,
        time_ns=frame.time_ns,
        rate_hz=grid.rate_hz,
        samples=samples,
        volts_per_count=grid.volts_per_count(frame),
        flags=frame.flags & ~Flags.END,
    )
