"""Continuous recordings of channels: read block by block, cut into frames, interleaved by time, ended with END."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.sources.frame_cuts import FrameCuts
from producers.sources.reading import Reading, RecordingError
from stream.records import Flags, Frame, Samples, samples_to_ns

READ_VALUES = 1 << 18  #: of all channels together, in one block
MAX_CHANNELS = 4096
FULL_SCALE_COUNTS = 32768.0

Block = npt.NDArray[Any]  #: numbers of any kind, shape (samples, channels)
Read = Callable[[int, int], Block]  #: (first sample, samples wanted): the next block, empty at the end


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a track."""

    sensor: str
    name: str  #: as the file calls it
    volts_per_count: float


@dataclass(frozen=True, slots=True)
class Track:
    """Channels that were sampled together, and are read together."""

    channels: tuple[Channel, ...]
    rate_hz: Fraction
    samples: int | None  #: of each channel; None where only reading on tells
    int16: bool  #: goes as int16; all else goes as float32
    read_samples: int = 1  #: fewer at once would be read more than once


class SampledRecording:
    """Tracks of a file as frames. One block of each track is in memory at a time.

    Parameters
    ----------
    open_tracks
        Opens the file anew; yields what reads each track, in their order.

    Raises
    ------
    RecordingError
        While iterating, where the file cannot be read on or a sample is no finite float32; all before has been played.
    """

    def __init__(
        self,
        path: Path,
        cuts: FrameCuts,
        tracks: Sequence[Track],
        open_tracks: Callable[[], AbstractContextManager[Sequence[Read]]],
    ) -> None:
        self._path = path
        self._cuts = cuts
        self.tracks = tuple(tracks)
        self._open_tracks = open_tracks
        self.sensors = tuple(channel.sensor for track in self.tracks for channel in track.channels)
        if not self.sensors or any(track.samples == 0 for track in self.tracks):
            raise RecordingError(f"{path}: holds no samples")
        if len(self.sensors) > MAX_CHANNELS:
            raise RecordingError(
                f"{path}: holds {len(self.sensors)} channels, at most {MAX_CHANNELS} are played; split the file"
            )
        if len(set(self.sensors)) < len(self.sensors):
            twice = next(sensor for sensor in self.sensors if self.sensors.count(sensor) > 1)
            raise RecordingError(f"{path}: two channels would be the sensor {twice!r}; put {{channel}} in the pattern")

    @property
    def duration_s(self) -> float | None:
        """Of the longest track; None if one does not tell."""
        spans = [None if track.samples is None else track.samples / track.rate_hz for track in self.tracks]
        known = [span for span in spans if span is not None]
        return float(max(known)) if len(known) == len(spans) else None

    @property
    def total_frames(self) -> int | None:
        """Frames of all channels, with the END frames."""
        return self._total(lambda track, samples: self._cuts.frames(samples, track.rate_hz) + 1)

    @property
    def total_samples(self) -> int | None:
        """Samples of all channels."""
        return self._total(lambda _, samples: samples)

    def _total(self, count: Callable[[Track, int], int]) -> int | None:
        total = 0
        for track in self.tracks:
            if track.samples is None:
                return None
            total += len(track.channels) * count(track, track.samples)
        return total

    def __iter__(self) -> Iterator[Frame]:
        """Frame by frame in order of time, each time of all channels of a track."""
        with readable(self._path, "a recording"), self._open_tracks() as reads:
            played = [self._played(track, read) for track, read in zip(self.tracks, reads, strict=True)]
            for _, frames in heapq.merge(*played, key=itemgetter(0)):
                # An error has its time too: what the other tracks hold before it is played first.
                if isinstance(frames, RecordingError):
                    raise frames
                yield from frames

    def _played(self, track: Track, read: Read) -> Iterator[tuple[int, list[Frame] | RecordingError]]:
        """(time_ns, one frame of each channel), until the END frames or what is wrong."""
        blocks = self._blocks(track, read)
        held = np.empty((0, len(track.channels)), dtype=np.int16 if track.int16 else np.float32)
        trouble: RecordingError | None = None
        at = sequence = 0
        for size in self._cuts.sizes(track.rate_hz):
            parts = [held]
            have = len(held)
            while have < size and trouble is None:
                try:
                    parts.append(next(blocks))
                except StopIteration:
                    break
                except RecordingError as error:
                    trouble = error
                    break
                have += len(parts[-1])
            held = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if len(held) == 0:
                break
            yield self._frames(track, sequence, at, held[:size], Flags(0))
            at += min(size, len(held))
            held = held[size:]
            sequence += 1
        end = self._frames(track, sequence, at, held, Flags.END)
        yield (end[0], trouble) if trouble else end

    def _frames(
        self, track: Track, sequence: int, first_sample: int, block: Block, flags: Flags
    ) -> tuple[int, list[Frame]]:
        time_ns = samples_to_ns(first_sample, track.rate_hz)
        return time_ns, [
            Frame(
                sensor=channel.sensor,
                epoch_ns=0,
                sequence=sequence,
                first_sample=first_sample,
                time_ns=time_ns,
                rate_hz=track.rate_hz,
                samples=np.ascontiguousarray(block[:, number]),
                volts_per_count=channel.volts_per_count,
                flags=flags,
            )
            for number, channel in enumerate(track.channels)
        ]

    def _blocks(self, track: Track, read: Read) -> Iterator[Samples]:
        """The track as int16 or float32, shape (samples, channels), block by block."""
        step = max(1, READ_VALUES // len(self.sensors), track.read_samples)
        at = 0
        while track.samples is None or at < track.samples:
            wanted = step if track.samples is None else min(step, track.samples - at)
            try:
                raw = read(at, wanted)
            except RecordingError:
                raise
            except Exception as error:
                # The decoders raise many kinds.
                raise RecordingError(
                    f"{self._path}: {_names(track)} cannot be read on from sample {at}: {_reason(error)}; the file is "
                    "damaged, what came before has been played"
                ) from error
            if len(raw) == 0:
                if track.samples is None:
                    return
                raise RecordingError(
                    f"{self._path}: {_names(track)} ends after {at} of {track.samples} samples; the file is cut off, "
                    "what is there has been played"
                )
            yield from self._sound(track, at, raw)
            at += len(raw)

    def _sound(self, track: Track, at: int, raw: Block) -> Iterator[Samples]:
        if track.int16:
            yield raw.astype(np.int16, copy=False)
            return
        with np.errstate(over="ignore", invalid="ignore"):
            block = raw.astype(np.float32, copy=False)
            # A finite sum in float64 proves every sample finite, at a third of the cost of looking at each.
            sound = np.isfinite(block.sum(dtype=np.float64))
        if sound:
            yield block
            return
        row, column = (int(place) for place in np.argwhere(~np.isfinite(block))[0])
        yield block[:row]
        raise RecordingError(
            f"{self._path}: sample {at + row} of {track.channels[column].name} is {raw[row, column]}, which is no "
            "finite "
            "float32 number; leave that stretch out, what came before has been played"
        )


def plain_volts(reading: Reading, int16: bool) -> float:
    """Volts per count where the file knows no unit: int16 has a full scale, other numbers are what they are."""
    return reading.full_scale_v / (FULL_SCALE_COUNTS if int16 else 1.0)


@contextmanager
def readable(path: Path, kind: str) -> Generator[None]:
    """Whatever a library raises inside is said of the file, as RecordingError."""
    try:
        yield
    except RecordingError:
        raise
    except Exception as error:
        # The decoders raise many kinds.
        raise RecordingError(
            f"{path}: cannot be read as {kind}: {_reason(error)}; is the file complete, and of that kind?"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _names(track: Track) -> str:
    first = track.channels[0].name
    return first if len(track.channels) == 1 else f"{first} and {len(track.channels) - 1} more"
