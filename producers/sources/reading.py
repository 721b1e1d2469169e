"""What a reader must be told that a file does not say, and what its sensors are called."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from producers.sources.frame_cuts import FrameCuts
from stream.records import BadRecord, decode_sensor

SENSOR_PATTERN = "replay/{run}/{file}/ch{channel}"


class RecordingError(Exception):
    """A recording that cannot be played; the text names the file, the reason and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a recording is to be read."""

    run: str  #: name of the replay
    cuts: FrameCuts = field(default_factory=FrameCuts)  #: of a continuous recording; a hit is always one frame
    full_scale_v: float = 1.0  #: volts at the sensor that full scale, or a plain number of 1, stands for
    rate_hz: Fraction | None = None  #: of a file that does not say
    sensor_pattern: str = SENSOR_PATTERN

    def sensor(self, path: Path, channel: int | str, name: str = "") -> str:
        """The sensor id of a channel: the pattern with {run}, {file}, {channel} and {name} filled in.

        Parameters
        ----------
        path
            {file} is its name without the ending.
        channel
            Number or name of the channel.
        name
            What the file calls the channel; the channel itself where it says nothing.

        Raises
        ------
        RecordingError
            If run or pattern cannot be used, or what comes of them is no sound sensor id.
        """
        if not self.run or "/" in self.run:
            raise RecordingError(f"run {self.run!r}: a run's name is part of sensor ids, and has letters but no slash")
        fields = {"run": self.run, "file": path.stem, "channel": str(channel), "name": name or str(channel)}
        try:
            asked = {key for _, key, _, _ in string.Formatter().parse(self.sensor_pattern) if key is not None}
            if unknown := sorted(asked - fields.keys()):
                raise ValueError(f"{{{unknown[0]}}} is none of {', '.join(f'{{{key}}}' for key in fields)}")
            sensor = self.sensor_pattern.format(**fields)
        except ValueError as error:
            raise RecordingError(f"sensor pattern {self.sensor_pattern!r}: {error}") from error
        try:
            return decode_sensor(sensor.encode("utf-8", "surrogateescape"))
        except BadRecord as error:
            raise RecordingError(
                f"{path}: {sensor!r} is no sensor id ({error.detail}); rename the file or the run"
            ) from error
