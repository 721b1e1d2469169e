"""The numbers that define a model: its front end and its network. Importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MAX_CHANNELS = 8192
MAX_FFT = 65_536
STATISTICS = 20  #: numbers that `model.window_statistics` gives

#: Ways to tell how strange a window is; see `model.unknown`.
UnknownKind = Literal["mahalanobis", "prototype", "cosine", "energy", "max_logit", "max_softmax"]


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndSpec:
    """Short-time Fourier transform to mel spectrogram, with the paper's values as defaults.

    The sample rate is what the mel filters assume. A signal at another rate goes in sample for sample where the
    bundle declares so; its frequencies are then those of the filters times the ratio of the rates.
    """

    sample_rate_hz: int = 16_000
    n_fft: int = 512
    win_length: int = 400  #: samples under the analysis window, centred in n_fft
    hop_length: int = 160  #: samples from frame to frame
    n_mels: int = 80
    f_min_hz: float = 20.0
    f_max_hz: float = 7_600.0
    window: Literal["hamming"] = "hamming"
    pre_emphasis: float = 0.97
    log_floor: float = 1e-6  #: added to each mel power before the logarithm
    level: Literal["none", "rms"] = "none"  #: "rms" scales a window to unit RMS first: the sensor's gain cancels
    #: "window": beside the course of the bins, whose means over time are taken off, rows that are the same in every
    #: frame: those means (less their own), how much each bin varies, and statistics of the window; all of it
    #: standardised over the training windows.
    context: Literal["none", "window"] = "none"

    def __post_init__(self) -> None:
        _require(0 < self.sample_rate_hz <= 100_000_000, f"sample_rate_hz is {self.sample_rate_hz}")
        _require(16 <= self.n_fft <= MAX_FFT, f"n_fft is {self.n_fft}, allowed are 16 to {MAX_FFT}")
        _require(0 < self.win_length <= self.n_fft, f"win_length is {self.win_length}, n_fft is {self.n_fft}")
        _require(0 < self.hop_length <= self.win_length, f"hop_length is {self.hop_length}")
        _require(0 < self.n_mels <= self.n_fft // 2, f"n_mels is {self.n_mels}, n_fft is {self.n_fft}")
        _require(
            0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2,
            f"mel filters from {self.f_min_hz} to {self.f_max_hz} Hz at {self.sample_rate_hz} Hz",
        )
        _require(0 <= self.pre_emphasis < 1, f"pre_emphasis is {self.pre_emphasis}")
        _require(0 < self.log_floor < 1, f"log_floor is {self.log_floor}")

    @property
    def features(self) -> int:
        """Rows of what goes into the network."""
        return self.n_mels + self.context_rows

    @property
    def context_rows(self) -> int:
        """Rows of them that are the same in every frame."""
        return 2 * self.n_mels + STATISTICS if self.context == "window" else 0

    @property
    def min_samples(self) -> int:
        """Shorter windows are zero-padded to this length: reflection at both ends needs it."""
        return self.n_fft

    def frames(self, samples: int) -> int:
        """Spectrogram frames of a window of `samples` samples."""
        return 1 + max(samples, self.min_samples) // self.hop_length


@dataclass(frozen=True, slots=True, kw_only=True)
class EcapaDims:
    """Sizes of an ECAPA-TDNN, with the paper's values as defaults (15,444,544 parameters)."""

    channels: int = 1_024
    mfa_channels: int = 1_536  #: after the concatenation of the three blocks (multi-layer feature aggregation)
    attention: int = 256  #: bottleneck of the attentive statistics pooling
    embedding: int = 192
    scale: int = 8  #: groups of a Res2 convolution
    se_bottleneck: int = 128
    dilations: tuple[int, ...] = (2, 3, 4)  #: one SE-Res2 block each
    #: "paper" is TaoRuijie/ECAPA-TDNN's. In "speechbrain", for weights that were trained so, a block is given the
    #: output of the one before it instead of the sum of all; convolutions see their input mirrored at the ends instead
    #: of zeros; spreads over time are those of the frames themselves, and may be next to nothing.
    variant: Literal["paper", "speechbrain"] = "paper"

    def __post_init__(self) -> None:
        for name in ("channels", "mfa_channels", "attention", "embedding", "se_bottleneck"):
            _require(0 < getattr(self, name) <= MAX_CHANNELS, f"{name} is {getattr(self, name)}")
        _require(2 <= self.scale <= 64, f"scale is {self.scale}, allowed are 2 to 64")
        _require(
            self.channels % self.scale == 0, f"{self.channels} channels do not divide into {self.scale} Res2 groups"
        )
        _require(0 < len(self.dilations) <= 16, f"{len(self.dilations)} blocks")
        _require(all(0 < d <= 64 for d in self.dilations), f"dilations are {self.dilations}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """From embedding to logits: a linear layer, or the scaled cosine of AAM-softmax."""

    kind: Literal["linear", "cosine"] = "linear"
    scale: float = 30.0  #: of the cosine; a linear head has none

    def __post_init__(self) -> None:
        _require(0 < self.scale <= 1_000, f"scale is {self.scale}")


def parameter_shapes(
    dims: EcapaDims, features: int, head: HeadSpec, labels: int, context_rows: int = 0
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a bundle's weights: network, classifier head, unknown score.

    Where the front end gives rows of context, also their standardisation and the linear recogniser on them.

    The names are those of `model.network.Recogniser.weights`; a test holds the two together.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel)
        shapes[f"{name}.bias"] = (out,)

    def norm(name: str, size: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (size,)

    c, width = dims.channels, dims.channels // dims.scale
    conv("network.entry.conv", c, features, 5)
    norm("network.entry.norm", c)
    for block in range(len(dims.dilations)):
        name = f"network.blocks.{block}"
        conv(f"{name}.widen.conv", c, c, 1)
        norm(f"{name}.widen.norm", c)
        for group in range(dims.scale - 1):
            conv(f"{name}.groups.{group}.conv", width, width, 3)
            norm(f"{name}.groups.{group}.norm", width)
        conv(f"{name}.merge.conv", c, c, 1)
        norm(f"{name}.merge.norm", c)
        conv(f"{name}.excite.squeeze", dims.se_bottleneck, c, 1)
        conv(f"{name}.excite.expand", c, dims.se_bottleneck, 1)
    conv("network.aggregate", dims.mfa_channels, c * len(dims.dilations), 1)
    conv("network.pooling.squeeze", dims.attention, 3 * dims.mfa_channels, 1)
    norm("network.pooling.norm", dims.attention)
    conv("network.pooling.expand", dims.mfa_channels, dims.attention, 1)
    norm("network.pooled_norm", 2 * dims.mfa_channels)
    conv("network.embed", dims.embedding, 2 * dims.mfa_channels, 1)
    norm("network.embedding_norm", dims.embedding)
    shapes["head.weight"] = (labels, dims.embedding)
    if head.kind == "linear":
        shapes["head.bias"] = (labels,)
    if context_rows:
        shapes["front_end.context_mean"] = shapes["front_end.context_scale"] = (context_rows,)
        shapes["statistics.weight"] = (labels, context_rows)
        shapes["statistics.bias"] = (labels,)
        shapes["statistics.share"] = (1,)
    shapes["unknown.means"] = (labels, dims.embedding)
    shapes["unknown.whitening"] = (dims.embedding, dims.embedding)
    return shapes


def count_parameters(shapes: dict[str, tuple[int, ...]], prefix: str = "network.") -> int:
    """Trainable parameters under `prefix`; statistics of batch norms and of the unknown score are not trained."""
    statistics = ("running_mean", "running_var", "unknown.means", "unknown.whitening", "context_mean", "context_scale")
    return sum(
        math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix) and not name.endswith(statistics)
    )
