"""A simulated sensor in real time, to try a set-up without a device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from producers.live.source import Block, SourceSettings

BLOCK_S = 0.05


class SimulatedSettings(SourceSettings):
    """Noise, and a burst now and then."""

    rate_hz: Annotated[float, Field(ge=100, le=10_000_000)] = 16_000.0
    channels: Annotated[int, Field(ge=1, le=1_000)] = 1
    noise_counts: Annotated[float, Field(ge=0, le=10_000)] = 100.0  #: RMS
    burst_every_s: Annotated[float, Field(ge=0)] = 1.0  #: mean; 0 is none
    seed: int = 0
    pace: Literal["real", "max"] = "real"  #: max is as fast as it is taken, for measurements


class Simulated:
    """Bursts of a decaying tone in noise, each channel its own."""

    Settings: ClassVar[type[SourceSettings]] = SimulatedSettings

    def __init__(self, settings: SimulatedSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    async def blocks(self) -> AsyncIterator[Block]:
        """Of 50 ms, each when its last sample would have been taken."""
        settings = self._settings
        rng = np.random.default_rng(settings.seed)
        size = max(1, round(BLOCK_S * settings.rate_hz))
        time_s = np.arange(size) / settings.rate_hz
        # Drawn once and shifted: a thousand channels must not cost a thousand drawings of noise a block.
        noise = rng.normal(0, settings.noise_counts, (4 * size, 1))
        burst = 8_000 * np.exp(-time_s / 0.005) * np.sin(2 * np.pi * 0.12 * settings.rate_hz * time_s)
        loop = asyncio.get_running_loop()
        begun, given = loop.time(), 0
        while True:
            starts = rng.integers(0, 3 * size, settings.channels)
            rows = noise[starts[None, :] + np.arange(size)[:, None], 0]
            if settings.burst_every_s:
                rows[:, rng.random(settings.channels) < BLOCK_S / settings.burst_every_s] += burst[:, None]
            given += size
            if settings.pace == "real":
                await asyncio.sleep(max(0.0, begun + given / settings.rate_hz - loop.time()))
            else:
                await asyncio.sleep(0)
            yield Block(rows.clip(-32_768, 32_767).astype(np.int16))
