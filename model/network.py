"""ECAPA-TDNN (Desplanques et al., 2020, arXiv:2005.07143) in the variant whose size the paper reports.

Every layer that looks beyond one frame, or averages over frames, honours the mask, so that a window padded into a
longer batch gives what it gives alone: beyond its end there is exactly the zero that a convolution pads with.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, UnknownKind
from model.front_end import FrontEnd
from model.unknown import UnknownScore

__all__ = ["EcapaDims", "EcapaTdnn", "Head", "HeadSpec", "Recogniser"]

# Keeps the square root's gradient finite on constant features.
MIN_VARIANCE = {"paper": 1e-4, "speechbrain": 1e-12}
DOUBT = 0.05  #: see `with_doubt`


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _mean_over_time(x: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, channels, frames) → (batch, channels, 1), over real frames only; padded frames of `x` must be finite."""
    if mask is None:
        return x.mean(dim=2, keepdim=True)
    return (x * mask).sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True)


def _mirrored_ends(x: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """Each window mirrored at its own two ends: (batch, channels, frames + 2 * width)."""
    last: Tensor | int = x.shape[2] - 1 if mask is None else mask.sum(dim=2).long() - 1
    place = torch.arange(-width, x.shape[2] + width, device=x.device).abs()
    source = (last - (last - place).abs()).clamp(min=0)
    return x.gather(2, source.expand(len(x), -1)[:, None].expand(-1, x.shape[1], -1))


class ConvReluNorm(nn.Module):
    """Convolution that keeps the number of frames, ReLU, batch norm; zero on padded frames."""

    def __init__(self, into: int, out: int, kernel: int, dilation: int = 1, *, mirrored: bool = False) -> None:
        super().__init__()
        width = dilation * (kernel // 2)
        self.mirrored = width if mirrored else 0  #: frames beyond each end that are mirror images, not zeros
        self.conv = nn.Conv1d(into, out, kernel, dilation=dilation, padding=0 if mirrored else width)
        self.norm = nn.BatchNorm1d(out)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, into, frames) → (batch, out, frames)."""
        if self.mirrored:
            x = _mirrored_ends(x, mask, self.mirrored)
        return _masked(self.norm(torch.relu(self.conv(x))), mask)


class SqueezeExcite(nn.Module):
    """Scales each channel by what the mean over time of all channels says."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv1d(channels, bottleneck, 1)
        self.expand = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, channels, frames) → the same shape."""
        mean = _mean_over_time(x, mask)
        return x * torch.sigmoid(self.expand(torch.relu(self.squeeze(mean))))


class SeRes2Block(nn.Module):
    """1×1 convolution, Res2 convolutions over `scale` groups of channels, 1×1 convolution, SE, residual."""

    def __init__(self, dims: EcapaDims, dilation: int) -> None:
        super().__init__()
        self.width = dims.channels // dims.scale
        self.widen = ConvReluNorm(dims.channels, dims.channels, 1)
        self.groups = nn.ModuleList(
            ConvReluNorm(self.width, self.width, 3, dilation, mirrored=dims.variant == "speechbrain")
            for _ in range(dims.scale - 1)
        )
        self.merge = ConvReluNorm(dims.channels, dims.channels, 1)
        self.excite = SqueezeExcite(dims.channels, dims.se_bottleneck)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, channels, frames) → the same shape."""
        *parts, untouched = self.widen(x, mask).split(self.width, dim=1)
        outputs: list[Tensor] = []
        for convolve, part in zip(self.groups, parts, strict=True):
            # Each group also sees the one before, so that the receptive field grows from group to group.
            outputs.append(convolve(part + outputs[-1] if outputs else part, mask))
        merged = self.merge(torch.cat([*outputs, untouched], dim=1), mask)
        excited: Tensor = self.excite(merged, mask)
        return x + excited


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, each frame weighted, per channel, by attention with global context."""

    def __init__(self, channels: int, bottleneck: int, variant: Literal["paper", "speechbrain"] = "paper") -> None:
        super().__init__()
        self.min_variance = MIN_VARIANCE[variant]
        # Frames spread about their own mean less than about the true one, as if there were one frame fewer.
        self.lost_frames = 1 if variant == "paper" else 0
        self.squeeze = nn.Conv1d(3 * channels, bottleneck, 1)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.expand = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, channels, frames) → (batch, 2 * channels, 1)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 loses too much in sums over many frames
        mean = _mean_over_time(x, mask)
        squares = _masked((x - mean).square(), mask).sum(dim=2, keepdim=True)
        frames = torch.full_like(mean[:1, :1], x.shape[2]) if mask is None else mask.sum(dim=2, keepdim=True)
        deviation = (squares / (frames - self.lost_frames).clamp(min=1)).clamp(min=self.min_variance).sqrt()
        context = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        scores = self.expand(torch.tanh(self.norm(torch.relu(self.squeeze(context)))))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        weights = torch.softmax(scores, dim=2)
        weighted_mean = (weights * x).sum(dim=2, keepdim=True)
        variance = (weights * (x - weighted_mean).square()).sum(dim=2, keepdim=True)
        return torch.cat([weighted_mean, variance.clamp(min=self.min_variance).sqrt()], dim=1)


class EcapaTdnn(nn.Module):
    """Mel features to an embedding. At the default sizes 15,444,544 parameters."""

    def __init__(self, dims: EcapaDims, features: int = 80) -> None:
        super().__init__()
        self.dims = dims
        self.entry = ConvReluNorm(features, dims.channels, 5, mirrored=dims.variant == "speechbrain")
        self.blocks = nn.ModuleList(SeRes2Block(dims, dilation) for dilation in dims.dilations)
        self.aggregate = nn.Conv1d(dims.channels * len(dims.dilations), dims.mfa_channels, 1)
        self.pooling = AttentiveStatistics(dims.mfa_channels, dims.attention, dims.variant)
        self.pooled_norm = nn.BatchNorm1d(2 * dims.mfa_channels)
        self.embed = nn.Conv1d(2 * dims.mfa_channels, dims.embedding, 1)
        self.embedding_norm = nn.BatchNorm1d(dims.embedding)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embeddings, (batch, embedding).

        Parameters
        ----------
        features
            (batch, features, frames) float32, zero where `mask` is.
        mask
            (batch, 1, frames), 1 on real frames, 0 on padding after them; None: all frames are real.
        """
        outputs = [self.entry(features, mask)]
        total = outputs[0]
        for block in self.blocks:
            outputs.append(block(total, mask))
            total = outputs[-1] if self.dims.variant == "speechbrain" else total + outputs[-1]
        x = torch.relu(self.aggregate(torch.cat(outputs[1:], dim=1)))
        pooled = self.pooled_norm(self.pooling(x, mask))
        embedding: Tensor = self.embedding_norm(self.embed(pooled))
        return embedding.squeeze(2)


class Head(nn.Module):
    """Embedding to one logit a label: linear, or scaled cosine as AAM-softmax trains it (without the margin)."""

    def __init__(self, spec: HeadSpec, embedding: int, labels: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(labels, embedding))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(labels)) if spec.kind == "linear" else None

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, embedding) → (batch, labels), in float32."""
        if self.bias is None:
            return self.spec.scale * self.cosine(embedding)
        return _inner(embedding.float(), self.weight) + self.bias

    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosine of the angle between each embedding and each label's direction: (batch, labels), in float32."""
        return _inner(functional.normalize(embedding.float()), functional.normalize(self.weight))


class StatisticsBranch(nn.Module):
    """A linear recogniser on a window's context, of which a share is added to the head's logits.

    What is plain to see in a window's statistics needs no deep network, and from few windows a deep network hardly
    learns it. `model.training.statistics_fit` fits it, `model.bundle_making.blend` its share; until then that is zero.
    """

    weight: Tensor
    bias: Tensor
    share: Tensor

    def __init__(self, context_rows: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(labels, context_rows))
        self.register_buffer("bias", torch.zeros(labels))
        self.register_buffer("share", torch.zeros(1))

    def forward(self, context: Tensor) -> Tensor:
        """(batch, context_rows) → (batch, labels), to be added to the head's logits."""
        return self.share * self.logits(context)

    def logits(self, context: Tensor) -> Tensor:
        """(batch, context_rows) → (batch, labels), as if nothing else were asked."""
        return with_doubt(_inner(context, self.weight) + self.bias)


def with_doubt(logits: Tensor) -> Tensor:
    """Logarithms of the probabilities that (batch, labels) logits stand for, with the share `DOUBT` spread evenly.

    Statistics that are far from all that was heard make a linear recogniser sure beyond measure; bounded, the network
    beside it can overrule it.
    """
    probabilities = torch.softmax(logits, dim=1)
    return ((1.0 - DOUBT) * probabilities + DOUBT / logits.shape[1]).log()


def _inner(rows: Tensor, weight: Tensor) -> Tensor:
    # A matrix product may sum in another order for another number of rows; this one is the same for every row.
    return (rows[:, None, :] * weight).sum(dim=2)


class Recogniser(nn.Module):
    """Samples to logits and embeddings: front end, network, head, and the unknown score beside it.

    What training trains and the engine runs.
    """

    def __init__(
        self,
        front_end: FrontEndSpec,
        dims: EcapaDims,
        head: HeadSpec,
        labels: int,
        unknown: UnknownKind = "max_logit",  # the best over the labels that docs/results.md leaves out in turn
    ) -> None:
        super().__init__()
        self.front_end = FrontEnd(front_end)
        self.network = EcapaTdnn(dims, front_end.features)
        self.head = Head(head, dims.embedding, labels)
        self.statistics = StatisticsBranch(front_end.context_rows, labels) if front_end.context_rows else None
        self.unknown = UnknownScore(unknown, dims.embedding, labels)

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (batch, labels) and embeddings (batch, embedding); the arguments are those of `FrontEnd.forward`."""
        features, mask = self.front_end(samples, lengths)
        embeddings = self.network(features, mask)
        return self.logits(embeddings, features), embeddings

    def logits(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """(batch, labels) float32, of embeddings (batch, embedding) and the features that they were made of."""
        logits: Tensor = self.head(embeddings)
        if self.statistics is None:
            return logits
        own: Tensor = self.statistics(features[:, self.front_end.spec.n_mels :, 0])
        return logits + own

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Every tensor that a bundle holds, by name, copied to the host. `load_state_dict` takes them back."""
        return {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in self.state_dict().items()
            if not name.endswith("num_batches_tracked")  # matters to no result
        }
