"""A recording as if it were a sensor that speaks now: for trials, and for what another program writes once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from producers.live.source import SourceError, SourceSettings
from producers.sources import RecordingError, Source, open_recording
from stream.records import NS_PER_S, Frame, samples_to_ns


class RecordingFileSettings(SourceSettings):
    """A file in any format that replay reads."""

    path: Path
    full_scale_v: Annotated[float, Field(gt=0)] = 1.0
    rate_hz: Annotated[float, Field(ge=1)] | None = None  #: of a file that does not say


class RecordingFile:
    """Plays the file at its own pace, once. The first sample's time is the start of the playing."""

    Settings: ClassVar[type[SourceSettings]] = RecordingFileSettings

    def __init__(self, settings: RecordingFileSettings) -> None:
        self._settings = settings

    def frames(self, sensors: Mapping[int, str]) -> Iterator[Frame]:
        """Each when its last sample would have been there."""
        settings = self._settings
        epoch_ns, begun = time.time_ns(), time.monotonic()
        source = opened(settings.path, settings.full_scale_v, settings.rate_hz)
        origin_ns = None
        for frame in played(source, sensors, epoch_ns):
            if origin_ns is None:
                origin_ns = frame.time_ns
            due_ns = frame.time_ns - origin_ns + samples_to_ns(len(frame.samples), frame.rate_hz)
            time.sleep(max(0.0, begun + due_ns / NS_PER_S - time.monotonic()))
            yield frame


def opened(path: Path, full_scale_v: float, rate_hz: float | None) -> Source:
    """The recording; its sensors are of no interest but for their order, which is that of the channels.

    Raises
    ------
    SourceError
        If it cannot be read.
    """
    try:
        return open_recording(
            path, "live", full_scale_v=full_scale_v, rate_hz=None if rate_hz is None else Fraction(rate_hz)
        )
    except RecordingError as error:
        raise SourceError(str(error)) from error


def played(source: Source, sensors: Mapping[int, str], epoch_ns: int) -> Iterator[Frame]:
    """Its frames under the names of `sensors` (place of the channel in the file → sensor), `epoch_ns` later.

    Raises
    ------
    SourceError
        If there is no such channel, or the file is damaged; after what came before.
    """
    if missing := [number for number in sensors if number >= len(source.sensors)]:
        raise SourceError(f"has {len(source.sensors)} channels, there is no channel {missing[0]} (the first is 0)")
    name_of = {source.sensors[number]: sensor for number, sensor in sensors.items()}
    try:
        for frame in source:
            if sensor := name_of.get(frame.sensor):
                yield dataclasses.replace(frame, sensor=sensor, epoch_ns=epoch_ns, time_ns=epoch_ns + frame.time_ns)
    except RecordingError as error:
        raise SourceError(str(error)) from error
