"""What another sensor, another place or another minute would have made of a window. On waveforms, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSpec:
    """How much is changed; each share is the share of windows to which it happens."""

    noise_share: float = 0.5
    noise_snr_db: tuple[float, float] = (0.0, 40.0)  #: of the window's RMS over the added noise's
    filter_share: float = 0.5
    filter_taps: int = 16
    filter_depth: float = 0.5  #: RMS of all taps but the first, which is 1


def augment(windows: Tensor, samples: int, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """A changed copy of a batch: time shift, polarity, a short random filter, coloured noise.

    Parameters
    ----------
    windows
        (batch, n) float32 with n >= samples; what n has more is room for the time shift.
    samples
        Length to cut each window to, at an offset drawn for each.
    spec
        How much is changed.
    generator
        Draws everything; on the CPU.

    Returns
    -------
    (batch, samples) float32.
    """
    batch, length = windows.shape
    room = length - samples
    shift = torch.randint(room + 1, (batch,), generator=generator)
    places = shift[:, None] + torch.arange(samples)
    changed = windows.gather(1, places)
    changed = changed * (torch.randint(2, (batch, 1), generator=generator) * 2 - 1)
    if spec.filter_share:
        taps = random_filters(batch, spec, generator)
        changed = _filter_each(changed, taps)
    if spec.noise_share:
        noise = torch.randn(batch, samples, generator=generator)
        noise = _filter_each(noise, random_filters(batch, spec, generator))
        low, high = spec.noise_snr_db
        snr_db = low + (high - low) * torch.rand(batch, 1, generator=generator)
        scale = _rms(changed) / _rms(noise) * 10.0 ** (-snr_db / 20.0)
        happens = torch.rand(batch, 1, generator=generator) < spec.noise_share
        changed = changed + noise * scale * happens
    return changed


def random_filters(batch: int, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """(batch, taps): a 1 and then random taps that die away, or nothing but the 1."""
    decay = torch.exp(-torch.arange(spec.filter_taps) / (spec.filter_taps / 4.0))
    tail = torch.randn(batch, spec.filter_taps, generator=generator) * decay
    tail[:, 0] = 0.0
    happens = torch.rand(batch, 1, generator=generator) < spec.filter_share
    depth = spec.filter_depth * torch.rand(batch, 1, generator=generator) * happens
    taps = tail * depth / tail.square().sum(dim=1, keepdim=True).sqrt()
    taps[:, 0] = 1.0
    return taps


def _filter_each(windows: Tensor, taps: Tensor) -> Tensor:
    """Each window through its own causal filter: (batch, samples)."""
    batch, length = taps.shape
    padded = functional.pad(windows, (length - 1, 0))
    # One group a window: the batch is the channels of a single convolution.
    return functional.conv1d(padded[None], taps.flip(1)[:, None], groups=batch)[0]


def _rms(windows: Tensor) -> Tensor:
    return windows.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
