"""What another sensor, another place or another minute would have made of a window. Seeded; on the windows' device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model.training.recipe import Augment

QUIET = 1e-12  # RMS under which a window counts as silent


def augment_waveforms(windows: Tensor, lengths: Tensor | None, spec: Augment, generator: torch.Generator) -> Tensor:
    """A changed copy of a batch: moved in time, turned over, filtered, echoing, noisy, louder or fainter.

    Parameters
    ----------
    windows
        (batch, samples) float32.
    lengths
        (batch,) int64, real samples of each, zeros beyond; None: all are full.
    spec
        What happens, how often and how much.
    generator
        Draws everything; on the device of `windows`.

    Returns
    -------
    (batch, samples) float32, zero beyond `lengths`.
    """
    batch, samples = windows.shape
    draw = _Draw(batch, windows.device, generator)
    changed = windows
    if spec.shift_share > 0:
        changed = _shifted(changed, lengths, spec.shift_share, draw)
    if spec.polarity:
        changed = changed * torch.where(draw.happens(0.5), 1.0, -1.0)
    for share, change in (
        (spec.response_share, _with_response),
        (spec.reverb_share, _with_echoes),
        (spec.noise_share, _with_noise),
    ):
        if share > 0:
            # Only the windows it happens to are computed: filters and transforms are what augmentation costs.
            rows = draw.happens(share)[:, 0].nonzero()[:, 0]
            if not len(rows):
                continue  # no transform takes an empty batch
            part = _Draw(len(rows), windows.device, generator)
            real = None if lengths is None else lengths[rows]
            changed = changed.index_copy(0, rows, change(changed[rows], real, spec, part))
    if spec.gain_db > 0:
        changed = changed * 10.0 ** (draw.uniform(-spec.gain_db, spec.gain_db) / 20.0)
    return changed if lengths is None else changed * _real(lengths, samples)


def mix_pairs(
    windows: Tensor, lengths: Tensor | None, spec: Augment, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup (Zhang et al., 2018, arXiv:1710.09412): windows added to others of the batch, scaled to their level first.

    Arguments as for `augment_waveforms`.

    Returns
    -------
    windows
        (batch, samples) float32.
    partners
        (batch,) int64, which window was added to each.
    weights
        (batch,) float32 from 0.5 to 1, the share of the window's own label in its target; 1 where nothing was added.
    """
    batch = len(windows)
    draw = _Draw(batch, windows.device, generator)
    partners = torch.randperm(batch, generator=generator, device=windows.device)
    weights = torch.ones(batch, 1, device=windows.device)
    if spec.mixup > 0 and spec.mixup_share > 0:
        # The beta distribution is drawn on the host: it has no generator of its own, and is a ratio of gamma draws.
        drawn = draw.beta(spec.mixup)
        weights = torch.where(draw.happens(spec.mixup_share), torch.maximum(drawn, 1.0 - drawn), weights)
        others = windows[partners] * (rms(windows, lengths) / rms(windows, lengths)[partners])
        windows = weights * windows + (1.0 - weights) * others
        if lengths is not None:
            windows = windows * _real(lengths, windows.shape[1])
    return windows, partners, weights[:, 0]


def mask_features(features: Tensor, bands: int, spec: Augment, generator: torch.Generator) -> Tensor:
    """SpecAugment (Park et al., 2019, arXiv:1904.08779): stripes of bands and spans of frames set to their mean, zero.

    Parameters
    ----------
    features
        (batch, rows, frames); what `FrontEnd.forward` gives.
    bands
        Mel bands. Rows beyond them are the window's context, the same in every frame; for a drawn share of windows
        they are left out whole.
    spec
        How many, and how wide at most.
    generator
        On the device of `features`.
    """
    batch, rows, frames = features.shape
    draw = _Draw(batch, features.device, generator)
    kept_bands = torch.ones(batch, bands, device=features.device)
    for _ in range(spec.mask_bands):
        kept_bands = kept_bands * _stripe(bands, spec.mask_band_share, draw)
    kept_frames = torch.ones(batch, frames, device=features.device)
    for _ in range(spec.mask_spans):
        kept_frames = kept_frames * _stripe(frames, spec.mask_span_share, draw)
    kept = kept_bands[:, :, None] * kept_frames[:, None, :]
    if rows > bands:
        context = torch.where(draw.happens(spec.drop_context_share), 0.0, 1.0)
        kept = torch.cat([kept, context[:, :, None].expand(-1, rows - bands, frames)], dim=1)
    return features * kept


class _Draw:
    """Random numbers, one for each window of a batch: (batch, 1)."""

    def __init__(self, batch: int, device: torch.device, generator: torch.Generator) -> None:
        self.batch, self.device, self.generator = batch, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self.batch, 1, generator=self.generator, device=self.device)
        return low + (high - low) * drawn

    def happens(self, share: float) -> Tensor:
        return self.uniform(0.0, 1.0) < share

    def normal(self, columns: int) -> Tensor:
        return torch.randn(self.batch, columns, generator=self.generator, device=self.device)

    def beta(self, alpha: float) -> Tensor:
        """Symmetric beta distribution by Jöhnk's method, which needs uniform draws alone (alpha up to about 1)."""
        found = torch.full((self.batch, 1), 0.5, device=self.device)
        open_still = torch.ones(self.batch, 1, dtype=torch.bool, device=self.device)
        for _ in range(16):  # each round settles at least half of them for alpha <= 1
            one = self.uniform(0.0, 1.0) ** (1.0 / alpha)
            other = self.uniform(0.0, 1.0) ** (1.0 / alpha)
            total = one + other
            fits = open_still & (total <= 1.0) & (total > 0.0)
            found = torch.where(fits, one / total.clamp(min=1e-30), found)
            open_still = open_still & ~fits
        return found


def rms(windows: Tensor, lengths: Tensor | None = None) -> Tensor:
    """(batch, samples) → (batch, 1), of the real samples; never zero."""
    count = windows.shape[1] if lengths is None else lengths[:, None]
    return (windows.square().sum(dim=1, keepdim=True) / count).sqrt().clamp(min=QUIET)


def _with_response(windows: Tensor, lengths: Tensor | None, spec: Augment, draw: _Draw) -> Tensor:
    return _filter_each(windows, random_responses(spec.response_taps, spec.response_depth, draw))


def _with_echoes(windows: Tensor, lengths: Tensor | None, spec: Augment, draw: _Draw) -> Tensor:
    return _reverberant(windows, spec.reverb_s, draw)


def _with_noise(windows: Tensor, lengths: Tensor | None, spec: Augment, draw: _Draw) -> Tensor:
    """Coloured noise added at a drawn ratio of the window's RMS to its own."""
    noise = _filter_each(draw.normal(windows.shape[1]), random_responses(spec.response_taps, 1.0, draw))
    if lengths is not None:
        noise = noise * _real(lengths, windows.shape[1])
    snr_db = draw.uniform(*spec.noise_snr_db)
    return windows + noise * (rms(windows, lengths) / rms(noise, lengths) * 10.0 ** (-snr_db / 20.0))


def random_responses(taps: int, depth: float, draw: _Draw) -> Tensor:
    """(windows, taps): short filters, a 1 and then random taps that die away, of RMS up to `depth` together."""
    decay = torch.exp(-torch.arange(taps, device=draw.device) / (taps / 4.0))
    tail = draw.normal(taps) * decay
    tail[:, 0] = 0.0
    tail = tail / tail.square().sum(dim=1, keepdim=True).sqrt().clamp(min=QUIET) * draw.uniform(0.0, depth)
    tail[:, 0] = 1.0
    return tail


def _shifted(windows: Tensor, lengths: Tensor | None, share: float, draw: _Draw) -> Tensor:
    """Each moved in time; what comes in at an end mirrors what is there, so that no edge and no silence arises."""
    samples = windows.shape[1]
    last = (torch.full((len(windows), 1), samples, device=windows.device) if lengths is None else lengths[:, None]) - 1
    shift = (draw.uniform(-share, share) * (last + 1)).round().long()
    place = (torch.arange(samples, device=windows.device) + shift).abs()
    source = (last - (last - place).abs()).clamp(min=0)
    return windows.gather(1, source)


def _filter_each(windows: Tensor, taps: Tensor) -> Tensor:
    """Each window through its own causal filter: (batch, samples)."""
    batch, length = taps.shape
    padded = functional.pad(windows, (length - 1, 0))
    # One group a window: the batch is the channels of a single convolution.
    return functional.conv1d(padded[None], taps.flip(1)[:, None], groups=batch)[0]


def _reverberant(windows: Tensor, decay_share: tuple[float, float], draw: _Draw) -> Tensor:
    """Each window with a tail of its own: noise that dies away by 60 dB within a drawn share of the window's length."""
    samples = windows.shape[1]
    reach = max(2, min(samples, math.ceil(decay_share[1] * samples)))
    decay = draw.uniform(*decay_share) * samples
    time = torch.arange(reach, device=windows.device)
    tail = draw.normal(reach) * torch.exp(-6.9078 * time / decay.clamp(min=1.0))
    tail[:, 0] = 0.0
    tail = tail / tail.square().sum(dim=1, keepdim=True).sqrt().clamp(min=QUIET) * draw.uniform(0.1, 1.0)
    tail[:, 0] = 1.0
    size = 1 << (samples + reach - 1).bit_length()
    spectrum = torch.fft.rfft(windows, size) * torch.fft.rfft(tail, size)
    echoing: Tensor = torch.fft.irfft(spectrum, size)[:, :samples]
    return echoing


def _stripe(size: int, widest_share: float, draw: _Draw) -> Tensor:
    """(batch, size): 0 on a stripe of drawn place and width, 1 elsewhere."""
    width = draw.uniform(0.0, widest_share * size)
    start = draw.uniform(0.0, 1.0) * (size - width)
    place = torch.arange(size, device=draw.device) + 0.5  # the middle of each, so that the first one has its chance
    return torch.where((place >= start) & (place < start + width), 0.0, 1.0)


def _real(lengths: Tensor, samples: int) -> Tensor:
    return (torch.arange(samples, device=lengths.device) < lengths[:, None]).to(torch.float32)
