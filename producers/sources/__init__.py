"""Sources of frames, one kind a file; `open_recording` picks the kind that fits a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from stream.records import BadRecord, Frame, decode_sensor

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".caf", ".au"})
VALLEN_SUFFIX = ".tradb"


class RecordingError(Exception):
    """A recording that cannot be played; the text names the file, the reason and the way out."""


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
) -> Source:
    """The recording at `path` as a source, its sensors named `replay/<run>/<stem>/ch<n>`.

    Parameters
    ----------
    run
        Name of this replay; keeps its sensors apart from live ones and from other replays.
    frame_s
        Duration of a frame of a continuous recording. A hit is always one frame.
    frame_sizes
        Samples of one frame after another instead, over and over.
    full_scale_v
        What full scale of a format that does not know volts (audio files) was at the sensor, V.

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
    kind = _kind(path)
    if kind == "vallen":
        from producers.sources.vallen import VallenRecording

        return VallenRecording(path, run)
    if kind == "audio":
        from producers.sources.audio_file import AudioFile
        from producers.sources.frame_cuts import FrameCuts

        return AudioFile(path, run, FrameCuts(frame_s, frame_sizes), full_scale_v)
    raise RecordingError(f"{path}: {kind}")


def replay_sensor(path: Path, run: str, channel: int) -> str:
    """The sensor id of a channel of a recording.

    Raises
    ------
    RecordingError
        If file name and run do not make a sound sensor id.
    """
    sensor = f"replay/{run}/{path.stem}/ch{channel}"
    if not run or "/" in run:
        raise RecordingError(f"run {run!r}: a run's name is part of sensor ids, and has letters but no slash")
    try:
        return decode_sensor(sensor.encode("utf-8", "surrogateescape"))
    except BadRecord as error:
        raise RecordingError(
            f"{path}: {sensor!r} is no sensor id ({error.detail}); rename the file or the run"
        ) from error


def _kind(path: Path) -> str:
    """'audio', 'vallen', or why it is neither."""
    suffix = path.suffix.lower()
    if suffix == VALLEN_SUFFIX:
        return "vallen"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    if suffix == ".pridb":
        return f"holds hit features but no waveforms; give {path.with_suffix(VALLEN_SUFFIX).name} beside it"
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM"):
        return "audio"
    if head.startswith(b"SQLite format 3"):
        return f"is an SQLite file, but not named {VALLEN_SUFFIX}; rename it if it is a Vallen recording"
    return f"no source reads {suffix or 'such'} files; convert it to WAV or FLAC, or give a Vallen {VALLEN_SUFFIX}"
