"""Samples to log-mel features: the same numbers whatever a window is padded with or stands beside."""

from __future__ import annotations

import warnings

import torch
import torchaudio.functional as audio
from torch import Tensor, nn

from model.architecture import FrontEndSpec

__all__ = ["FrontEnd", "FrontEndSpec", "mel_filters"]


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


class FrontEnd(nn.Module):
    """Pre-emphasis, power spectrogram (centred frames, reflected ends), mel filters, log, mean normalisation."""

    window: Tensor
    filters: Tensor

    def __init__(self, spec: FrontEndSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window", torch.hamming_window(spec.win_length), persistent=False)
        self.register_buffer("filters", mel_filters(spec), persistent=False)

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
            (batch, spec.features, frames) float32, zero beyond each window's own last frame. First the bins less their
            means over time; then, where the spec says "both", the means, the same in every frame.
        mask
            (batch, 1, frames) float32, 1 on real frames and 0 beyond; None where all windows are full.
        """
        if self.spec.level == "rms":
            samples = samples * _inverse_rms(samples, lengths)
        features = self.log_mel(samples, lengths)
        if lengths is None:
            mean = features.mean(dim=2, keepdim=True)
            return self._with_means(features - mean, mean), None
        frames = 1 + lengths // self.spec.hop_length
        mask = (torch.arange(features.shape[2], device=samples.device) < frames[:, None]).to(features.dtype)[:, None]
        mean = (features * mask).sum(dim=2, keepdim=True) / frames[:, None, None]
        return self._with_means(features - mean, mean) * mask, mask

    def _with_means(self, course: Tensor, mean: Tensor) -> Tensor:
        if self.spec.normalise == "mean":
            return course
        return torch.cat([course, (mean - mean.mean(dim=1, keepdim=True)).expand_as(course)], dim=1)

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
