"""Numbers that describe a window as a whole: how loud, how distributed, how it runs. On torch, masked, per window."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from model.architecture import STATISTICS

_TINY = 1e-9  # of full scale
_LEVELS = (0.5, 0.75, 0.9, 0.98)  # quantiles of the magnitude of the samples as they are
_SHAPES = (0.1, 0.5, 0.9)  # quantiles of the magnitude about the mean, relative to the RMS
SORTED = 8_192  #: samples that quantiles are taken of, at most
PARTS = 16  # of equal length, for the course of the energy


def window_statistics(samples: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Statistics of the amplitude distribution and of its course.

    Parameters
    ----------
    samples
        (batch, samples) float32, full scale at ±1, zero beyond `lengths`. Not levelled: how loud a window is, is one of
        the numbers.
    lengths
        (batch,) int64, real samples of each window; None: all are full.

    Returns
    -------
    (batch, `STATISTICS`) float32, finite: mean and RMS about it, their logarithms and ratio, peak, crest, skewness,
    kurtosis, zero crossings a sample, quantiles of the magnitude, centre and spread of the energy in time, and the
    energy of the loudest sixteenth.
    """
    batch, size = samples.shape
    place = torch.arange(size, device=samples.device)
    real = None if lengths is None else (place < lengths[:, None]).to(samples.dtype)
    count = torch.full((batch, 1), float(size), device=samples.device) if lengths is None else lengths[:, None].float()

    def mean(x: Tensor) -> Tensor:
        return (x if real is None else x * real).sum(dim=1, keepdim=True) / count

    offset = mean(samples)
    centred = samples - offset
    if real is not None:
        centred = centred * real
    rms = mean(centred.square()).sqrt().clamp(min=_TINY)
    total = mean(samples.square()).sqrt().clamp(min=_TINY)
    normal = centred / rms
    magnitude = samples.abs()
    peak = magnitude.amax(dim=1, keepdim=True).clamp(min=_TINY)
    crest = normal.abs().amax(dim=1, keepdim=True).clamp(min=_TINY)
    turns = (centred[:, 1:] * centred[:, :-1] < 0).float()
    time = (place + 0.5) / count
    power = normal.square()
    centre = mean(power * time)
    spread = mean(power * (time - centre).square()).clamp(min=0).sqrt()
    energies = _energies(power, lengths)
    return torch.cat(
        [
            offset,
            rms,
            torch.asinh(offset / rms),
            total.log(),
            rms.log(),
            peak.log(),
            crest.log(),
            mean(normal**3).asinh(),
            mean(normal**4).clamp(min=_TINY).log(),
            turns.sum(dim=1, keepdim=True) / count,
            _quantiles(magnitude, real, count, _LEVELS).clamp(min=1e-6).log(),
            _quantiles(normal.abs(), real, count, _SHAPES).clamp(min=1e-4).log(),
            centre,
            spread,
            (energies.amax(dim=1, keepdim=True) / count).clamp(min=_TINY).log(),
        ],
        dim=1,
    )


def _energies(power: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, PARTS): sums over parts of equal length of each window; `power` is zero beyond its end."""
    size = power.shape[1]
    if lengths is None:
        edges = [-(-part * size // PARTS) for part in range(PARTS + 1)]
        return torch.stack([power[:, start:stop].sum(dim=1) for start, stop in pairwise(edges)], dim=1)
    place = torch.arange(size, device=power.device)
    part = (place * PARTS // lengths[:, None]).clamp(max=PARTS - 1)
    return torch.zeros(len(power), PARTS, device=power.device).scatter_add(1, part, power)


def _quantiles(x: Tensor, real: Tensor | None, count: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(batch, len(shares)): of the real samples of each row, or of every n-th of them, none interpolated."""
    # Sorting is the dearest part by far; a distribution is known well enough from some thousands of its samples.
    every = -(-x.shape[1] // SORTED)
    if every > 1:
        x = x[:, ::every]
        real = None if real is None else real[:, ::every]
        count = ((count + every - 1) / every).floor()
    if real is not None:
        x = x.masked_fill(real == 0, torch.inf)
    ascending = x.sort(dim=1).values
    at = (torch.tensor(shares, device=x.device) * (count - 1)).round().long()
    return ascending.gather(1, at)


assert len(_LEVELS) + len(_SHAPES) + 13 == STATISTICS
