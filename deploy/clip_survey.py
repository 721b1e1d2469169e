"""What a labelled recording is by its header, and where in it the clips lie that a data set names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deploy.ordered_threads import in_order
from model.data.manifest import Clip, Manifest
from producers.sources import RecordingError, Source, open_recording
from producers.sources.sampled import SampledRecording, Track
from stream.records import Flags, Frame, Samples

Made = TypeVar("Made")

RUN = "data"  #: name of the replay that recordings are opened as; part of no result
READ_SAMPLES = 1 << 18  #: of one channel at once
SHORT_RECORDING = 1 << 22  #: samples of all channels; several such are in memory at once
TOLD_FILES = 20  #: of all that cannot be used, so many are told at once


class DatasetError(ValueError):
    """Recordings of a data set that cannot be used, up to `TOLD_FILES` of them, each with its reason."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a hit lies, in samples of its channel."""

    channel: int
    first_sample: int
    samples: int
    rate_hz: Fraction


@dataclass(slots=True)
class Survey:
    """One recording, as its header tells, and the clips that lie in it; or those channels of it that run together."""

    path: Path
    clips: list[Clip]
    channels: tuple[int, ...]
    samples: int  #: of each channel; 0 where it holds hits
    rate_hz: Fraction
    dtype: np.dtype[Any]
    several: bool  #: whether the recording has other channels, here or beside
    hits: list[Hit] = field(default_factory=list)

    @property
    def rates_hz(self) -> set[Fraction]:
        """All that occur."""
        return {hit.rate_hz for hit in self.hits} or {self.rate_hz}

    def channels_of(self, clip: Clip) -> tuple[int, ...]:
        """Channels that the clip takes windows from.

        Raises
        ------
        DatasetError
            If it names one that the recording has not.
        """
        if clip.channel is None:
            return self.channels
        if clip.channel not in self.channels:
            has = ", ".join(map(str, self.channels))
            raise DatasetError(f"{clip}: there is no such channel; the recording has {has}")
        return (clip.channel,)

    def span(self, clip: Clip) -> tuple[int, int]:
        """Samples [begin, end) of the clip in a continuous recording.

        Raises
        ------
        DatasetError
            If it holds none.
        """
        begin, end = span_at(clip, self.rate_hz)
        end = self.samples if end is None else min(end, self.samples)
        if begin >= end:
            raise DatasetError(
                f"{clip}: holds no samples; the recording ends at {float(self.samples / self.rate_hz):g} s"
            )
        return begin, end

    def pieces(self, clip: Clip) -> list[tuple[int, Fraction]]:
        """Samples and rate of the clip, or of every hit in it.

        Raises
        ------
        DatasetError
            If it holds none.
        """
        channels = self.channels_of(clip)
        if not self.hits:
            begin, end = self.span(clip)
            return [(end - begin, self.rate_hz)]
        within = [
            (hit.samples, hit.rate_hz)
            for hit in self.hits
            if hit.channel in channels and begins_in(clip, hit.first_sample, hit.rate_hz)
        ]
        if not within:
            raise DatasetError(f"{clip}: no hit begins in it")
        return within


def span_at(clip: Clip, rate_hz: Fraction) -> tuple[int, int | None]:
    """Samples [begin, end) of a clip; an end of None is the recording's."""
    begin = 0 if clip.start_s is None else round(Fraction(clip.start_s) * rate_hz)
    return begin, None if clip.end_s is None else round(Fraction(clip.end_s) * rate_hz)


def begins_in(clip: Clip, first_sample: int, rate_hz: Fraction) -> bool:
    """Whether a hit's first sample lies in the clip."""
    begin, end = span_at(clip, rate_hz)
    return begin <= first_sample and (end is None or first_sample < end)


def clips_by_file(manifest: Manifest) -> dict[Path, list[Clip]]:
    """The clips of each file, files in the order in which the manifest first names them."""
    grouped: dict[Path, list[Clip]] = {}
    for clip in manifest.clips:
        grouped.setdefault(clip.path, []).append(clip)
    return grouped


def channel_of(sensor: str) -> int:
    """The channel of a frame of a recording that was opened to be read here."""
    return int(sensor.rpartition("/ch")[2])


def survey(path: Path, clips: list[Clip]) -> list[Survey]:
    """What a recording is; reads on only where its header does not tell, and of hits all.

    One for each length and rate that its channels have, mostly one in all.

    Raises
    ------
    RecordingError
        If it cannot be opened.
    """
    source = open_recording(path, RUN, frame_sizes=[1])
    channels = tuple(channel_of(sensor) for sensor in source.sensors)
    with closing(_frames(source)) as frames:
        first = next(frames)
        if Flags.HIT in first.flags:
            hits = [_hit(first), *(_hit(frame) for frame in frames if Flags.HIT in frame.flags)]
            return [Survey(path, clips, channels, 0, first.rate_hz, first.samples.dtype, len(channels) > 1, hits)]
    if isinstance(source, SampledRecording) and len(source.tracks) > 1:
        return [found for track in source.tracks if (found := _of_track(path, clips, track, channels)).clips]
    total = source.total_samples
    samples = _counted(path, source.sensors[0]) if total is None else total // len(channels)
    return [Survey(path, clips, channels, samples, first.rate_hz, first.samples.dtype, len(channels) > 1)]


def _of_track(path: Path, clips: list[Clip], track: Track, all_channels: tuple[int, ...]) -> Survey:
    channels = tuple(channel_of(channel.sensor) for channel in track.channels)
    # A clip of a channel that is not there at all is told of by the first.
    own = [
        clip
        for clip in clips
        if clip.channel is None
        or clip.channel in channels
        or (clip.channel not in all_channels and channels[0] == all_channels[0])
    ]
    samples = track.samples if track.samples is not None else _counted(path, track.channels[0].sensor)
    dtype = np.dtype(np.int16 if track.int16 else np.float32)
    return Survey(path, own, channels, samples, track.rate_hz, dtype, several=True)


def _hit(frame: Frame) -> Hit:
    return Hit(channel_of(frame.sensor), frame.first_sample, len(frame.samples), frame.rate_hz)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The next samples of one channel of a clip, or one hit, as it came."""

    clip: Clip
    channel: int
    samples: Samples
    ends: bool  #: nothing more of this channel of this clip follows; of a hit always
    hit: Frame | None = None


def pieces_of(found: Survey) -> Iterator[Piece]:
    """The samples of a recording's clips, piece by piece; it is read once, up to the end of its last clip.

    Raises
    ------
    DatasetError, RecordingError
        If a clip is not in it, or it cannot be read so far.
    """
    source = open_recording(found.path, RUN, frame_sizes=[READ_SAMPLES])
    with closing(_frames(source)) as frames:
        yield from _hits(found, frames) if found.hits else _continuous(found, frames)


def _continuous(found: Survey, frames: Iterable[Frame]) -> Iterator[Piece]:
    waiting: dict[int, deque[Clip]] = {channel: deque() for channel in found.channels}
    for clip in sorted(found.clips, key=found.span):
        for channel in found.channels_of(clip):
            waiting[channel].append(clip)
    begun: dict[int, list[Clip]] = {channel: [] for channel in found.channels}
    left = sum(map(len, waiting.values()))
    for frame in frames:
        channel = channel_of(frame.sensor)
        if channel not in waiting:  # of another length or rate
            continue
        while waiting[channel] and found.span(waiting[channel][0])[0] < frame.end_sample:
            begun[channel].append(waiting[channel].popleft())
        for clip in list(begun[channel]):
            begin, end = found.span(clip)
            ends = end <= frame.end_sample
            yield Piece(
                clip, channel, frame.samples[max(begin - frame.first_sample, 0) : end - frame.first_sample], ends
            )
            if ends:
                begun[channel].remove(clip)
                left -= 1
        if left == 0:
            return
    raise DatasetError(f"{found.path}: ends before the {found.samples} samples that its header announces; is it whole?")


def _hits(found: Survey, frames: Iterable[Frame]) -> Iterator[Piece]:
    for frame in frames:
        if Flags.HIT in frame.flags:
            channel = channel_of(frame.sensor)
            for clip in found.clips:
                if channel in found.channels_of(clip) and begins_in(clip, frame.first_sample, frame.rate_hz):
                    yield Piece(clip, channel, frame.samples, ends=True, hit=frame)


def _frames(source: Source) -> Generator[Frame]:
    """The frames, as a generator that can be closed."""
    yield from source


def _counted(path: Path, sensor: str) -> int:
    """Samples of a channel of a recording whose header does not tell."""
    source = open_recording(path, RUN, frame_sizes=[READ_SAMPLES])
    return sum(len(frame.samples) for frame in source if frame.sensor == sensor)


def survey_all(
    manifest: Manifest, on_progress: Callable[[int, int], None] | None = None
) -> tuple[list[Survey], list[str]]:
    """Every recording that can be used, with the clips that are in it; and why the others cannot, a line each."""
    surveys: list[Survey] = []
    reasons: list[str] = []
    grouped = clips_by_file(manifest)
    for done, found in enumerate(in_order(_survey_or_reason, grouped.items()), start=1):
        if isinstance(found, str):
            reasons.append(found)
            found = []
        for one in found:
            reasons += _drop_absent(one)
            if one.clips:
                surveys.append(one)
        if on_progress:
            on_progress(done, len(grouped))
    return surveys, reasons


def surveys_of(manifest: Manifest, on_progress: Callable[[int, int], None] | None = None) -> list[Survey]:
    """Of every recording, with every clip looked for in it.

    Raises
    ------
    DatasetError
        Naming the recordings that cannot be opened and the clips without samples.
    """
    surveys, reasons = survey_all(manifest, on_progress)
    refuse(manifest, reasons)
    return surveys


def refuse(manifest: Manifest, reasons: Sequence[str]) -> None:
    """Nothing, where there is no reason why a recording or a clip cannot be used.

    Raises
    ------
    DatasetError
        Telling the first `TOLD_FILES` reasons.
    """
    if reasons:
        more = len(reasons) - TOLD_FILES
        raise DatasetError(
            f"{manifest.path}: {len(reasons)} of its clips or recordings cannot be used; mend them or leave them out:\n"
            + "\n".join(reasons[:TOLD_FILES])
            + (f"\n… and {more} more" if more > 0 else "")
        )


def read_all(
    surveys: Iterable[Survey], read: Callable[[Survey], Iterator[Made]]
) -> Iterator[tuple[Survey, Iterable[Made], list[str]]]:
    """What `read` makes of each recording, in their order, and why it could not go on, if so.

    Short recordings are read in threads, a few ahead. A long one is read while it is asked for; the reason why that
    ended, if there is one, is in the list when it has ended.
    """

    def ready(found: Survey) -> tuple[Survey, Iterable[Made], list[str]]:
        reasons: list[str] = []
        made = _until_failure(read(found), reasons)
        short = not found.hits and found.samples * len(found.channels) <= SHORT_RECORDING
        return found, list(made) if short else made, reasons

    return in_order(ready, surveys)


def _until_failure(made: Iterator[Made], reasons: list[str]) -> Iterator[Made]:
    try:
        yield from made
    except (DatasetError, RecordingError) as error:
        reasons.append(str(error))


def _survey_or_reason(file: tuple[Path, list[Clip]]) -> list[Survey] | str:
    try:
        return survey(*file)
    except (RecordingError, StopIteration) as error:
        return str(error) or f"{file[0]}: holds no samples"


def _drop_absent(found: Survey) -> list[str]:
    """Leave out the clips that are not in the recording; returns why."""
    reasons = []
    for clip in list(found.clips):
        try:
            found.pieces(clip)
        except DatasetError as error:
            reasons.append(str(error))
            found.clips.remove(clip)
    return reasons
