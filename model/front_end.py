"""Samples to log-mel features: the same numbers whatever a window is padded with or stands beside."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torchaudio.functional as audio
from torch import Tensor, nn

from model.architecture import FrontEndSpec
from model.window_statistics import window_statistics

__all__ = ["FrontEnd", "FrontEndSpec", "mel_filters"]

MIN_DEVIATION = 1e-6
FAR = 6.0  # standard deviations


def mel_filters(spec: FrontEndSpec) -> Tensor:
    """Triangular mel filters, shape (n_mels, n_fft // 2 + 1), float32.

    Mel(f) = 2595 log10(1 + f / 700). Filters narrower than one bin of the transform are empty; their feature is
    constant and vanishes in the mean normalisation.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        filters: Tensor = audio.melscale_fbanks(
            n_freqs=spec.n_fft // 2 + 1,
            f_min=spec.f_min_hz,
            f_max=spec.f_max_hz,
            n_mels=spec.n_mels,
            sample_rate=spec.sample_rate_hz,
            norm=None,
            mel_scale="htk",
        )
    return filters.T.contiguous()


class _Course(NamedTuple):
    """What the log-mel spectrogram of a batch comes apart into."""

    bins: Tensor  #: (batch, n_mels, frames), less their means over time, zero beyond each window's end
    mean: Tensor  #: (batch, n_mels), over time
    deviation: Tensor  #: (batch, n_mels), over time; means nothing where the spec asks for no context
    mask: Tensor | None  #: as `FrontEnd.forward` gives it


class FrontEnd(nn.Module):
    """Pre-emphasis, power spectrogram (centred frames, reflected ends), mel filters, log, mean normalisation."""

    window: Tensor
    filters: Tensor
    context_mean: Tensor
    context_scale: Tensor

    def __init__(self, spec: FrontEndSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window", torch.hamming_window(spec.win_length), persistent=False)
        self.register_buffer("filters", mel_filters(spec), persistent=False)
        if spec.context_rows:
            self.register_buffer("context_mean", torch.zeros(spec.context_rows))
            self.register_buffer("context_scale", torch.ones(spec.context_rows))

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features of a batch of windows.

        Parameters
        ----------
        samples
            (batch, samples) float32, at least `spec.min_samples` long; row i beyond `lengths[i]` must be zero.
        lengths
            (batch,) int64, real samples of each window, at least `spec.min_samples`. None: all are full.

        Returns
        -------
        features
            (batch, spec.features, frames) float32, zero beyond each window's own last frame: the bins less their means
            over time, and then the rows of context, if the spec asks for any.
        mask
            (batch, 1, frames) float32, 1 on real frames and 0 beyond; None where all windows are full.
        """
        course = self._course(samples, lengths)
        bins, mask = course.bins, course.mask
        if self.spec.context == "none":
            return bins, mask
        context = self.standardised(self._context(samples, lengths, course))
        rows = context[:, :, None].expand(-1, -1, bins.shape[2])
        return torch.cat([bins, rows if mask is None else rows * mask], dim=1), mask

    def context(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The rows of context before they are standardised, (batch, context_rows); arguments as for `forward`."""
        return self._context(samples, lengths, self._course(samples, lengths))

    def standardise(self, context: Tensor) -> None:
        """Take mean and deviation of each row of context over training windows, (windows, context_rows)."""
        self.context_mean.copy_(context.mean(dim=0))
        self.context_scale.copy_(1.0 / context.std(dim=0).clamp(min=MIN_DEVIATION))

    def standardised(self, context: Tensor) -> Tensor:
        """Rows of context (windows, context_rows) as the network sees them."""
        # What is far outside of all that training heard says so, and no more: a row must not drown the others.
        return ((context - self.context_mean) * self.context_scale).clamp(-FAR, FAR)

    def _context(self, samples: Tensor, lengths: Tensor | None, course: _Course) -> Tensor:
        level = course.mean.mean(dim=1, keepdim=True)
        statistics = window_statistics(samples, lengths)
        return torch.cat([course.mean - level, course.deviation, statistics], dim=1)

    def _course(self, samples: Tensor, lengths: Tensor | None) -> _Course:
        if self.spec.level == "rms":
            samples = samples * _inverse_rms(samples, lengths)
        features = self.log_mel(samples, lengths)
        if lengths is None:
            mean = features.mean(dim=2)
            bins, mask = features - mean[:, :, None], None
            power = bins.square().mean(dim=2) if self.spec.context_rows else mean
        else:
            frames = (1 + lengths // self.spec.hop_length)[:, None]
            mask = (torch.arange(features.shape[2], device=samples.device) < frames).to(features.dtype)[:, None]
            mean = (features * mask).sum(dim=2) / frames
            bins = (features - mean[:, :, None]) * mask
            power = bins.square().sum(dim=2) / frames if self.spec.context_rows else mean
        return _Course(bins, mean, power.clamp(min=0).sqrt(), mask)

    def log_mel(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The log-mel spectrogram as it is, without levelling and mean normalisation; arguments as for `forward`.

        Shape (batch, n_mels, frames), natural logarithm of power; frames beyond a window's end mean nothing.
        """
        spec = self.spec
        # The sample before the first is its mirror image, as at the ends of the spectrogram.
        before = torch.cat([samples[:, 1:2], samples[:, :-1]], dim=1)
        emphasised = samples - spec.pre_emphasis * before
        padded = _reflect_ends(emphasised, spec.n_fft // 2, lengths)
        spectrum = torch.stft(
            padded,
            n_fft=spec.n_fft,
            hop_length=spec.hop_length,
            win_length=spec.win_length,
            window=self.window,
            center=False,
            onesided=True,
            return_complex=True,
        )
        # On a CPU this is eight times faster than the absolute value or a sum over the two parts.
        power = (spectrum * spectrum.conj()).real
        return (torch.matmul(self.filters, power) + spec.log_floor).log()


def _inverse_rms(samples: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, 1); a silent window stays silent."""
    count = samples.shape[1] if lengths is None else lengths[:, None]
    mean_square = samples.square().sum(dim=1, keepdim=True) / count
    return mean_square.clamp(min=1e-20).rsqrt()


def _reflect_ends(samples: Tensor, width: int, lengths: Tensor | None) -> Tensor:
    """Each window mirrored at its own two ends by `width` samples: (batch, samples + 2 * width)."""
    if lengths is None:
        head, tail = samples[:, 1 : width + 1], samples[:, -width - 1 : -1]
        return torch.cat([head.flip(1), samples, tail.flip(1)], dim=1)
    last = lengths[:, None] - 1
    place = torch.arange(-width, samples.shape[1] + width, device=samples.device).abs()
    source = (last - (last - place).abs()).clamp(min=0)
    return samples.gather(1, source)
