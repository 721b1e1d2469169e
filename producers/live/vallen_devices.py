"""Vallen linWave (samples without a pause) and spotWave (hits), by the maker's waveline package."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from producers.live.source import Block, SourceError, SourceSettings
from stream.records import NS_PER_S, Flags, Frame

LINWAVE_RATE_HZ = 10_000_000
SPOTWAVE_RATE_HZ = 2_000_000
BLOCK_S = 0.02
SILENCE_S = 5.0


class LinWaveSettings(SourceSettings):
    """A device in the network."""

    address: str
    channels: Annotated[int, Field(ge=1, le=2)] = 1
    decimation: Annotated[int, Field(ge=1, le=500)] = 20  #: of 10 MHz; 20 gives 500 kHz
    range_index: Annotated[int, Field(ge=0, le=1)] = 0  #: 0: 50 mV, 1: 5 V
    highpass_hz: Annotated[float, Field(gt=0)] | None = None
    lowpass_hz: Annotated[float, Field(gt=0)] | None = None

    def claim(self) -> str:
        """The device; it takes one connection."""
        return f"linWave {self.address}"


class LinWave:
    """Raw converter values of one or both channels, in step. Their scale is the sensor's `volts_per_count`.

    The volts per count of the chosen range are logged at the start: 50 mV and 5 V over 32,768.
    """

    Settings: ClassVar[type[SourceSettings]] = LinWaveSettings

    @staticmethod
    def require() -> None:
        """Raises `SourceError` if the extra is not installed; for `producers.live.registry.missing_here`."""
        _waveline()

    def __init__(self, settings: LinWaveSettings) -> None:
        self.rate_hz, self.channels = Fraction(LINWAVE_RATE_HZ, settings.decimation), settings.channels
        self._settings = settings

    async def blocks(self) -> AsyncIterator[Block]:
        """Of 20 ms."""
        waveline, settings = _waveline(), self._settings
        size = max(1, round(BLOCK_S * self.rate_hz))
        where = f"linWave {settings.address}"
        numbers = range(1, settings.channels + 1)
        try:
            async with waveline.LinWave(settings.address) as device:
                for channel in numbers:
                    await device.set_range_index(channel, settings.range_index)
                    await device.set_tr_decimation(channel, settings.decimation)
                    await device.set_filter(channel, settings.highpass_hz, settings.lowpass_hz)
                streams = [device.stream(channel, size, raw=True, timeout=SILENCE_S) for channel in numbers]
                await device.start_acquisition()
                try:
                    while True:
                        parts = await asyncio.gather(*(anext(stream) for stream in streams))
                        yield Block(np.stack([samples for _, samples in parts], axis=1))
                finally:
                    await device.stop_acquisition()
                    for stream in streams:
                        await stream.aclose()
        except StopAsyncIteration as error:
            raise SourceError(f"{where}: closed the stream") from error
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise SourceError(f"{where}: {error or 'silent'}; is it on, and is no other program connected?") from error


class SpotWaveSettings(SourceSettings):
    """A device at a USB port."""

    port: str  #: such as /dev/ttyACM0 or COM6
    threshold_uv: Annotated[float, Field(gt=0)] = 100.0
    pretrigger_samples: Annotated[int, Field(ge=0)] = 200
    postduration_samples: Annotated[int, Field(ge=0)] = 200
    decimation: Annotated[int, Field(ge=1, le=500)] = 1  #: of 2 MHz
    ddt_us: Annotated[int, Field(ge=1)] = 400  #: duration discrimination time, microseconds

    def claim(self) -> str:
        """The port."""
        return f"port {self.port}"


class SpotWave:
    """Hits over a threshold, one frame each, channel 0; their times count from the start of the acquisition."""

    Settings: ClassVar[type[SourceSettings]] = SpotWaveSettings

    @staticmethod
    def require() -> None:
        """Raises `SourceError` if the extra is not installed; for `producers.live.registry.missing_here`."""
        _waveline()

    def __init__(self, settings: SpotWaveSettings) -> None:
        self._settings = settings

    def frames(self, sensors: Mapping[int, str]) -> Iterator[Frame]:
        """Hit by hit, as converter values with the device's own volts per count."""
        waveline, settings = _waveline(), self._settings
        rate_hz = Fraction(SPOTWAVE_RATE_HZ, settings.decimation)
        try:
            with waveline.SpotWave(settings.port) as device:
                device.set_continuous_mode(False)
                device.set_threshold(settings.threshold_uv)
                device.set_ddt(settings.ddt_us)
                device.set_tr_enabled(True)
                device.set_tr_decimation(settings.decimation)
                device.set_tr_pretrigger(settings.pretrigger_samples)
                device.set_tr_postduration(settings.postduration_samples)
                volts_per_count = float(device.get_setup().adc_to_volts)
                epoch_ns, sequence = time.time_ns(), 0
                for record in device.acquire(raw=True):
                    if not isinstance(record, waveline.TRRecord):
                        continue
                    first = max(0, round(record.time * rate_hz) - settings.pretrigger_samples)
                    yield Frame(
                        sensor=sensors[0],
                        epoch_ns=epoch_ns,
                        sequence=sequence,
                        first_sample=first,
                        time_ns=epoch_ns + first * NS_PER_S * rate_hz.denominator // rate_hz.numerator,
                        rate_hz=rate_hz,
                        samples=np.ascontiguousarray(record.data, dtype=np.int16),
                        volts_per_count=volts_per_count,
                        flags=Flags.HIT,
                    )
                    sequence += 1
        except (OSError, ValueError, RuntimeError) as error:
            known: list[str] = []
            with suppress(Exception):
                known = waveline.SpotWave.discover()
            raise SourceError(
                f"spotWave {settings.port}: {error}; devices here: {', '.join(known) or 'none'}"
            ) from error


def _waveline() -> Any:
    try:
        import waveline
    except ImportError as error:
        raise SourceError("Vallen devices need waveline; pip install 'aewatch[waveline]'") from error
    return waveline
