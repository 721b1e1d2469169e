"""Frames from WAV, FLAC, OGG and what else libsndfile reads; each channel is a sensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from producers.sources.reading import Reading, RecordingError
from stream.records import MAX_RATE_HZ, Flags, Frame, Samples, samples_to_ns

# These fit int16 without loss; 24 bits and floats go as float32.
INT16_SUBTYPES = frozenset({"PCM_16", "PCM_S8", "PCM_U8"})
INCOMPLETE = 24  #: libsndfile's SFE_BAD_SF_INFO: it took the header, but for a rate that is not positive
UNKNOWN_LENGTH = 2**62
UNKNOWN_SIZES = frozenset({2**32 - 1, 2**63 - 1, 2**64 - 1})  #: of writers that could not go back to the header

# What libsndfile's log says of a size that a header announces and the file does not have. Of WAV only that of the
# samples counts: programs are known to write the other one wrong.
_ANNOUNCED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)

OGG_PAGE_BYTES = 27 + 255 + 255 * 255  #: at most
OGG_LAST_PAGE = 4  #: bit of the sixth byte of a page
OGG_SEGMENTS = 26  #: the byte of a page that says how many lengths follow it


class AudioFile:
    """A continuous recording, read block by block: memory does not grow with the file.

    The file does not know volts: full scale is taken as `reading.full_scale_v` volts at the sensor.

    Raises
    ------
    RecordingError
        If the file cannot be opened as audio, or is empty; while iterating, where it cannot be read on, a sample is no
        finite number, or the file ends before it should.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._cuts = reading.cuts
        with self._open() as file:
            if file.format == "RAW":
                # By its name alone libsndfile takes anything for telephone sound.
                raise RecordingError(f"{path}: does not begin like an audio file; is it complete, and of that kind?")
            if file.frames == 0:
                raise RecordingError(f"{path}: holds no samples")
            self.sensors = tuple(reading.sensor(path, channel) for channel in range(file.channels))
            if file.samplerate > MAX_RATE_HZ:
                raise RecordingError(f"{path}: {file.samplerate} Hz; at most {MAX_RATE_HZ} Hz are played")
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
                sound = block if block.dtype == np.int16 else block[: _finite(block)]
                if len(sound):
                    for channel in range(len(self.sensors)):
                        yield self._frame(channel, sequence, at, np.ascontiguousarray(sound[:, channel]), Flags(0))
                at += len(sound)
                if len(sound) < len(block):
                    channel = int(np.argmin(np.isfinite(block[len(sound)])))
                    raise RecordingError(
                        f"{self._path}: sample {at} of channel {channel} is {block[len(sound), channel]}, which is no "
                        "finite number; leave that stretch out, what came before has been played"
                    )
                sequence += 1
            lacking = self._lacking(file, at)
        if lacking:
            raise RecordingError(
                f"{self._path}: ends after {at} samples, {lacking}; the file is cut off, what is there has been played"
            )
        for channel in range(len(self.sensors)):
            yield self._frame(channel, sequence, at, np.empty(0, dtype=self._dtype), Flags.END)

    def _open(self) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(str(self._path))
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            if getattr(error, "code", None) == INCOMPLETE:
                raise RecordingError(
                    f"{self._path}: its header says 0 Hz, or another rate that none can be; is it damaged, or has the "
                    "program that wrote it forgotten the rate?"
                ) from error
            raise RecordingError(
                f"{self._path}: cannot be opened as audio: {error}; is it complete, and is it WAV, FLAC or OGG?"
            ) from error

    def _lacking(self, file: soundfile.SoundFile, at: int) -> str:
        """Why there should be more than `at` samples; empty if all came."""
        if self._samples is not None and at < self._samples:
            return f"its header announces {self._samples}"
        for announced, there in _ANNOUNCED.findall(file.extra_info):
            if int(announced) > int(there) and int(announced) not in UNKNOWN_SIZES:
                return f"its header announces {announced} bytes, {there} are there"
        if file.format == "OGG" and not _ogg_ends(self._path):
            return "without a last page"
        return ""

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


def _finite(block: Samples) -> int:
    """How many samples of a block, shape (samples, channels), come before one that is not finite."""
    # A finite sum in float64 proves every sample finite, at a third of the cost of looking at each.
    if np.isfinite(block.sum(dtype=np.float64)):
        return len(block)
    return int(np.argmin(np.isfinite(block).all(axis=1)))


def _ogg_ends(path: Path) -> bool:
    """Whether the last page is there as a whole, and says that it is the last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_PAGE_BYTES))
        page = file.read()
    page = page[max(page.rfind(b"OggS"), 0) :]
    if len(page) <= OGG_SEGMENTS or not page[5] & OGG_LAST_PAGE:
        return False
    lengths = page[OGG_SEGMENTS + 1 :][: page[OGG_SEGMENTS]]
    return len(page) > OGG_SEGMENTS + len(lengths) + sum(lengths)


def open_source(path: Path, reading: Reading) -> AudioFile:
    """See `producers.sources.formats`."""
    return AudioFile(path, reading)
