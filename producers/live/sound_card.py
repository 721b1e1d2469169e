"""A sound card or USB audio interface, by PortAudio."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from producers.live.source import Block, SourceError, SourceSettings

BLOCK_S = 0.02
WAITING_BLOCKS = 500
SILENCE_S = 5.0


class SoundCardSettings(SourceSettings):
    """Which card, and how."""

    device: str | int = ""  #: part of its name, or its number; "" is the system's own choice
    rate_hz: Annotated[int, Field(ge=1_000, le=1_000_000)] = 48_000
    channels: Annotated[int, Field(ge=1, le=256)] = 1


class SoundCard:
    """Samples as int16. What the driver reports as an overflow has an unknown length and begins a new epoch."""

    Settings: ClassVar[type[SourceSettings]] = SoundCardSettings

    @staticmethod
    def require() -> None:
        """Raises `SourceError` if the extra is not installed; for `producers.live.registry.missing_here`."""
        _sounddevice()

    def __init__(self, settings: SoundCardSettings) -> None:
        self.rate_hz, self.channels = Fraction(settings.rate_hz), settings.channels
        self._settings = settings

    def blocks(self) -> Iterator[Block]:
        """Of 20 ms."""
        sounddevice = _sounddevice()
        settings = self._settings
        waiting: queue.Queue[Any] = queue.Queue(WAITING_BLOCKS)

        def callback(data: Any, frames: int, time: Any, status: Any) -> None:
            try:
                waiting.put_nowait(status if status.input_overflow else np.array(data))
            except queue.Full:
                waiting.get_nowait()
                waiting.put_nowait("the samples were not taken in time")

        try:
            stream = sounddevice.InputStream(
                device=settings.device if settings.device != "" else None,
                samplerate=settings.rate_hz,
                channels=settings.channels,
                dtype="int16",
                blocksize=round(BLOCK_S * settings.rate_hz),
                callback=callback,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise SourceError(
                f"sound card {settings.device!r}: {error}; `python -m sounddevice` lists those that are there"
            ) from error
        with stream:
            while True:
                try:
                    found = waiting.get(timeout=SILENCE_S)
                except queue.Empty:
                    raise SourceError(f"sound card {settings.device!r}: silent for {SILENCE_S:g} s") from None
                if not isinstance(found, np.ndarray):
                    raise SourceError(f"sound card {settings.device!r}: overflow, samples were lost: {found}")
                yield Block(found)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise SourceError("a sound card needs sounddevice; pip install 'aewatch[sound]'") from error
    except OSError as error:
        raise SourceError(f"a sound card needs PortAudio: {error}; apt install libportaudio2") from error
    return sounddevice
