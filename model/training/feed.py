"""Windows of a set by index, as the floats a network takes, on its device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.dataset import WindowSet

INT16_SCALE = 1.0 / 32768.0
# The set stays on a GPU whole where it takes no more than this share of the memory that is free there.
RESIDENT_SHARE = 0.4


class Feed:
    """What `front_end` takes, for any windows of a set. They travel as they are and become floats on the device."""

    def __init__(self, data: WindowSet, min_samples: int, device: torch.device) -> None:
        self._data = data
        self.device = device
        self._padding = max(0, min_samples - data.samples)
        samples = data.samples + self._padding
        lengths = np.maximum(data.lengths, min_samples)
        self._lengths = None if bool((lengths == samples).all()) else torch.from_numpy(lengths).to(device)
        self._resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if data.windows.nbytes <= RESIDENT_SHARE * free:
                self._resident = torch.from_numpy(np.array(data.windows)).to(device)

    def __call__(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Windows (n, samples) float32, and their lengths (n,) int64, None where all windows of the set are full."""
        chosen = torch.as_tensor(np.asarray(indices), dtype=torch.int64, device=self.device)
        if self._resident is not None:
            windows = self._resident[chosen]
        else:
            windows = torch.from_numpy(np.ascontiguousarray(self._data.windows[indices])).to(self.device)
        windows = windows * INT16_SCALE if windows.dtype == torch.int16 else windows
        if self._padding:
            windows = torch.nn.functional.pad(windows, (0, self._padding))
        return windows, None if self._lengths is None else self._lengths[chosen]
