"""Labelled windows in memory or mapped from a file: what training, evaluation and the baseline work on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WindowSet:
    """n labelled windows of equal room, and where each is from. Every array has n rows.

    `windows` may be a memory map. A window shorter than the room ends in zeros and says so in `lengths`.
    """

    windows: npt.NDArray[np.int16] | npt.NDArray[np.float32]  #: (n, samples); float32 has full scale at ±1
    lengths: npt.NDArray[np.int64]  #: (n,), samples of each that are real
    labels: npt.NDArray[np.int64]  #: (n,), index into `label_names`
    label_names: tuple[str, ...]
    rate_hz: float  #: of the samples
    recordings: Texts  #: (n,), which recording each was cut from
    sensors: Texts  #: (n,), "" where nobody knows
    positions: Texts  #: (n,), of the sensor; "" where nobody knows
    splits: Texts  #: (n,), "train", "validation", "test", the name of a fold, or "" where the data set does not say

    def __post_init__(self) -> None:
        if self.windows.ndim != 2 or self.windows.dtype not in (np.int16, np.float32):
            raise ValueError(f"windows are {self.windows.dtype} {self.windows.shape}; int16 or float32 (n, samples)")
        for name in self._columns():
            if len(getattr(self, name)) != len(self.windows):
                raise ValueError(f"{len(self.windows)} windows but {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def samples(self) -> int:
        """Room of each window, in samples."""
        return int(self.windows.shape[1])

    @property
    def counts(self) -> dict[str, int]:
        """Windows of each label."""
        counts = np.bincount(self.labels, minlength=len(self.label_names)).tolist()
        return dict(zip(self.label_names, counts, strict=True))

    def select(self, chosen: npt.NDArray[Any]) -> WindowSet:
        """The windows that a boolean mask (n,) or an array of indices chooses; copies them out of a memory map."""
        columns = {name: getattr(self, name)[chosen] for name in self._columns()}
        return WindowSet(label_names=self.label_names, rate_hz=self.rate_hz, **columns)

    def fingerprint(self) -> str:
        """SHA-256 of windows, lengths and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for array in (self.windows, self.lengths, self.labels):
            for start in range(0, len(array), 4096):
                digest.update(np.ascontiguousarray(array[start : start + 4096]).tobytes())
        digest.update("\0".join(self.label_names).encode())
        return digest.hexdigest()

    @classmethod
    def _columns(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name not in ("label_names", "rate_hz")]
