"""Frames from WAV, FLAC, OGG and what else libsndfile reads; each channel is a sensor."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from producers.sources.reading import Reading, RecordingError
from stream.records import Flags, Frame, Samples, samples_to_ns

# These fit int16 without loss; 24 bits and floats go as float32.
INT16_SUBTYPES = frozenset({"PCM_16", "PCM_S8", "PCM_U8"})
UNKNOWN_LENGTH = 2**62


class AudioFile:
    """A continuous recording, read block by block: memory does not grow with the file.

    The file does not know volts: full scale is taken as `reading.full_scale_v` volts at the sensor.

    Raises
    ------
    RecordingError
        If the file cannot be opened as audio, or is empty; while iterating, where it cannot be read on.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._cuts = reading.cuts
        with self._open() as file:
            if file.frames == 0:
                raise RecordingError(f"{path}: holds no samples")
            self.sensors = tuple(reading.sensor(path, channel) for channel in range(file.channels))
            self._rate_hz = Fraction(file.samplerate)
            self._samples = file.frames if file.frames < UNKNOWN_LENGTH else None
            self._dtype = "int16" if file.subtype in INT16_SUBTYPES else "float32"
        self._volts_per_count = reading.full_scale_v / (32768.0 if self._dtype == "int16" else 1.0)

    @property
    def duration_s(self) -> float | None:
        """As the file's header says; None if it does not."""
        return None if self._samples is None else float(self._samples / self._rate_hz)

    @property
    def total_frames(self) -> int | None:
        """Frames of all channels, with the END frames."""
        if self._samples is None:
            return None
        return len(self.sensors) * (self._cuts.frames(self._samples, self._rate_hz) + 1)

    @property
    def total_samples(self) -> int | None:
        """Samples of all channels."""
        return None if self._samples is None else len(self.sensors) * self._samples

    def __iter__(self) -> Iterator[Frame]:
        """Frame by frame, each time of all channels."""
        at = 0
        sequence = 0
        with self._open() as file:
            for size in self._cuts.sizes(self._rate_hz):
                try:
                    block = file.read(size, dtype=self._dtype, always_2d=True)
                except (soundfile.SoundFileError, OSError) as error:
                    raise RecordingError(
                        f"{self._path}: cannot be read on from sample {at}: {error}; the file is damaged, "
                        "what came before has been played"
                    ) from error
                if len(block) == 0:
                    break
                for channel in range(len(self.sensors)):
                    yield self._frame(channel, sequence, at, np.ascontiguousarray(block[:, channel]), Flags(0))
                at += len(block)
                sequence += 1
        for channel in range(len(self.sensors)):
            yield self._frame(channel, sequence, at, np.empty(0, dtype=self._dtype), Flags.END)

    def _open(self) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(str(self._path))
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            raise RecordingError(
                f"{self._path}: cannot be opened as audio: {error}; is it complete, and is it WAV, FLAC or OGG?"
            ) from error

    def _frame(self, channel: int, sequence: int, first_sample: int, samples: Samples, flags: Flags) -> Frame:
        return Frame(
            sensor=self.sensors[channel],
            epoch_ns=0,
            sequence=sequence,
            first_sample=first_sample,
            time_ns=samples_to_ns(first_sample, self._rate_hz),
            rate_hz=self._rate_hz,
            samples=samples,
            volts_per_count=self._volts_per_count,
            flags=flags,
        )


def open_source(path: Path, reading: Reading) -> AudioFile:
    """See `producers.sources.formats`."""
    return AudioFile(path, reading)
