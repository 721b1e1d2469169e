"""Sources of frames, one kind a file; `open_recording` picks the kind that fits a file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from producers.sources.formats import FORMATS, Format
from producers.sources.frame_cuts import FrameCuts
from producers.sources.reading import SENSOR_PATTERN, Reading, RecordingError
from stream.records import Frame

__all__ = ["Reading", "RecordingError", "Source", "open_recording"]


class Source(Protocol):
    """What yields frames. Each iteration begins anew and yields the same frames.

    Frames of one sensor come in order of time and end with one flagged END; sensors are interleaved by time.
    """

    @property
    def sensors(self) -> tuple[str, ...]:
        """All sensors that will appear."""

    @property
    def duration_s(self) -> float | None:
        """From the first sample to the last; None if it has no end."""

    @property
    def total_frames(self) -> int | None:
        """Frames of one iteration, of all sensors together; None if unknown."""

    @property
    def total_samples(self) -> int | None:
        """Samples of one iteration, of all sensors together; None if unknown."""

    def __iter__(self) -> Iterator[Frame]:
        """The frames; what is open is closed when the iterator is exhausted or closed."""


def open_recording(
    path: Path | str,
    run: str,
    frame_s: float = 0.05,
    frame_sizes: Sequence[int] | None = None,
    full_scale_v: float = 1.0,
    rate_hz: Fraction | None = None,
    sensor_pattern: str = SENSOR_PATTERN,
) -> Source:
    """The recording at `path` as a source.

    Parameters
    ----------
    run
        Name of this replay; keeps its sensors apart from live ones and from other replays.
    frame_s
        Duration of a frame of a continuous recording. A hit is always one frame.
    frame_sizes
        Samples of one frame after another instead, over and over.
    full_scale_v
        What full scale of a format that does not know volts (audio files) was at the sensor, V; and what 1 was, of one
        that holds plain numbers.
    rate_hz
        Samples a second, of a file that does not say.
    sensor_pattern
        Of sensor ids, see `producers.sources.reading.Reading.sensor`.

    Raises
    ------
    RecordingError
        If the file is missing, unreadable, or of a kind that no source knows.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"{path}: there is no such file")
    if path.is_dir():
        raise RecordingError(f"{path}: is a folder; name the recordings in it")
    if not path.is_file():
        # A pipe would be waited for, without an end.
        raise RecordingError(f"{path}: is a device or a pipe; write it to a file first")
    reading = Reading(
        run=run,
        cuts=FrameCuts(frame_s, frame_sizes),
        full_scale_v=full_scale_v,
        rate_hz=rate_hz,
        sensor_pattern=sensor_pattern,
    )
    module = importlib.import_module(_format(path).module)
    source: Source = module.open_source(path, reading)
    return source


def _format(path: Path) -> Format:
    """What reads this file: by its name, or else by how it begins."""
    suffix = path.suffix.lower()
    for known in FORMATS:
        if suffix in known.suffixes:
            return known
    if suffix == ".pridb":
        raise RecordingError(
            f"{path}: holds hit features but no waveforms; give {path.with_suffix('.tradb').name} beside it"
        )
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from error
    for known in FORMATS:
        if any(head.startswith(magic) for magic in known.magics):
            return known
    if head.startswith(b"SQLite format 3"):
        raise RecordingError(f"{path}: is an SQLite file, but not named .tradb; rename it if it is a Vallen recording")
    names = ", ".join(sorted(suffix for known in FORMATS for suffix in known.suffixes))
    raise RecordingError(
        f"{path}: no source reads {suffix or 'such'} files; convert it to WAV or FLAC (read are {names})"
    )
