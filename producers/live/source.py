"""What a live source is, for those built in and for those of others.

A source is a class with `Settings`, a constructor that takes them, and one of two methods: `blocks`, where samples come
in an endless row, or `frames`, where each frame knows its own place and time. docs/sources.md has a worked example.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from stream.records import Frame


class SourceError(Exception):
    """A source that cannot go on for now; the text names it, the reason and the way out. It is tried again."""


class SourceSettings(BaseModel):
    """Base of a source's settings: the fields of its table in sensors.toml but `kind`. Unknown ones are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def claim(self) -> str | None:
        """What only one source of a file can have, such as a port to listen on, in words; None: nothing."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What a device gave at one reading."""

    samples: npt.NDArray[Any]  #: (n,) or (n, channels), int16 or float32, oldest first
    lost: int = 0  #: samples a channel that the device lost just before these


@dataclass(frozen=True, slots=True, eq=False)
class Milestone:
    """Given between frames: what came before it is wanted no more once it is delivered, or safe on the disk."""

    reached: Callable[[], None]  #: called then; may write files


@runtime_checkable
class BlockSource(Protocol):
    """A device that samples without a pause. A new iteration is a new start of the device: a new epoch."""

    Settings: ClassVar[type[SourceSettings]]
    rate_hz: Fraction  #: known once the first block is there
    channels: int  #: likewise

    def blocks(self) -> AsyncIterator[Block] | Iterator[Block]:
        """Blocks without end. A plain iterator may wait for its device; it runs in a thread of its own.

        Raises
        ------
        SourceError
            If the device is away or gives what cannot be used.
        """


@runtime_checkable
class FrameSource(Protocol):
    """What knows the time and place of its samples: hits of a device, recordings that appear in a folder."""

    Settings: ClassVar[type[SourceSettings]]

    def frames(self, sensors: Mapping[int, str]) -> AsyncIterator[Frame | Milestone] | Iterator[Frame | Milestone]:
        """Frames of the channels that have a sensor (channel → sensor id); others are left out.

        Raises
        ------
        SourceError
            As for `BlockSource.blocks`.
        """


LiveSource = BlockSource | FrameSource


def as_columns(samples: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Samples as (n, channels).

    Raises
    ------
    SourceError
        If they are of another type or number of channels.
    """
    if samples.dtype not in (np.int16, np.float32):
        raise SourceError(f"samples are {samples.dtype}; a source gives int16 or float32")
    columns = samples[:, None] if samples.ndim == 1 else samples
    if columns.ndim != 2 or columns.shape[1] != channels:
        raise SourceError(f"a block of shape {samples.shape}; the source has {channels} channels")
    return columns
