"""What a recipe leaves to the data: rate, window, front end, size of the network, how long to train.

The rules look at lengths, rates and counts alone, so that they say the same of any data set of that shape. Each choice
comes with its reason in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from model.architecture import MAX_CHANNELS, MAX_FFT, EcapaDims, FrontEndSpec, HeadSpec
from model.training.recipe import FrontEnd, Recipe

_Section = TypeVar("_Section", bound=msgspec.Struct)

NOMINAL_RATE_HZ = 16_000.0
#: Clips whose lengths differ by no more than this factor are taken whole …
ALIKE = 1.5
#: … unless they are longer than this, in samples; longer ones are cut.
LONGEST_WHOLE = 1 << 18
LONGEST_CUT = 1 << 16
SHORTEST_CUT = 1_024
#: Rates that fewer clips have than this share do not decide the model's rate.
RARE_RATE = 0.05

#: Frames that a window should have: with fewer the pooling has nothing to weigh, with more there is little to gain.
FRAMES_WANTED = 100
MOST_FRAMES = 250
PAPER_HOP, PAPER_WIN = 160, 400


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """The labelled clips of a data set."""

    clip_samples: npt.NDArray[np.int64]  #: (clips,), at the clip's own rate
    clip_rates_hz: npt.NDArray[np.float64]  #: (clips,)

    def __post_init__(self) -> None:
        if len(self.clip_samples) != len(self.clip_rates_hz) or not len(self.clip_samples):
            raise ValueError(f"{len(self.clip_samples)} lengths, {len(self.clip_rates_hz)} rates; one clip at least")


def choose_windows(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    """The recipe with its `windows` filled in, and what was chosen and why, a line each."""
    said: list[str] = []
    chosen = recipe.windows
    if chosen.rate_hz == "auto":
        if chosen.nominal:
            rate_hz = NOMINAL_RATE_HZ
            said.append(f"rate: nominal, samples go in as they are and count as {rate_hz:g} Hz")
        else:
            rate_hz, why = _rate(facts.clip_rates_hz)
            said.append(f"rate: {rate_hz:g} Hz, {why}")
    else:
        rate_hz = float(chosen.rate_hz)
    # Multiplied first: a length that divides evenly shall come out whole.
    at_rate = facts.clip_samples if chosen.nominal else facts.clip_samples * rate_hz / facts.clip_rates_hz
    lengths = np.maximum(1, np.floor(at_rate)).astype(np.int64)
    if chosen.length_s == "auto":
        samples, why = _length(lengths)
        length_s = samples / rate_hz
        said.append(f"window: {samples} samples ({_time(length_s)}), {why}")
    else:
        length_s = float(chosen.length_s)
    if chosen.hop_s == "auto":
        hop_s = max(1, round(length_s * rate_hz) // 2) / rate_hz
        said.append("hop: half a window")
    else:
        hop_s = float(chosen.hop_s)
    filled = msgspec.structs.replace(chosen, rate_hz=rate_hz, length_s=length_s, hop_s=hop_s)
    return msgspec.structs.replace(recipe, windows=filled), said


def choose_rest(recipe: Recipe, *, window_samples: int, counts: Sequence[int], device: str) -> tuple[Recipe, list[str]]:
    """The recipe with everything else filled in, and what was chosen and why, a line each.

    Parameters
    ----------
    recipe
        Any of its fields may be settled already; those stay.
    window_samples
        Length of a window.
    counts
        Training windows of each label.
    device
        "cpu" or "cuda": what is sensible to train on it.

    Raises
    ------
    ValueError
        If what is settled does not go together, such as a window longer than its transform.
    """
    said: list[str] = []
    front = _fill(recipe.front_end, _front_end(window_samples, recipe.front_end))
    frames = 1 + max(window_samples, int(front.n_fft)) // int(front.hop_length)
    said.append(
        f"front end: {front.n_mels} mel bands of {front.n_fft}-point transforms, {front.hop_length} samples apart: "
        f"{frames} frames a window"
    )
    windows = int(sum(counts))
    channels = recipe.network.channels
    if channels == "auto":
        channels = _channels(windows, device, recipe.network.scale)
        said.append(f"network: {channels} channels, for {windows:,} training windows on {device}")
    sizes = {
        "channels": channels,
        "mfa_channels": min(MAX_CHANNELS, max(96, 3 * channels // 2)),
        "attention": max(32, channels // 4),
        "embedding": min(192, max(64, channels)),
        "se_bottleneck": max(16, channels // 8),
    }
    network = _fill(recipe.network, sizes)
    loss = _fill(recipe.loss, {"scale": cosine_scale(len(counts))})
    training = recipe.training
    batch = training.batch if training.batch != "auto" else _batch(windows, device)
    training = _fill(training, {"batch": batch})
    if training.epochs == "auto":
        steps = _steps(windows, len(counts), device)
        epochs = max(2, math.ceil(steps * batch / max(1, windows)))
        training = _fill(training, {"epochs": epochs})
        said.append(f"training: {epochs} epochs of {windows:,} windows in batches of {batch}, about {steps:,} steps")
    filled = msgspec.structs.replace(recipe, front_end=front, network=network, loss=loss, training=training)
    front_end_spec(filled), ecapa_dims(filled)  # they refuse what no network can be built from
    return filled, said


def cosine_scale(labels: int) -> float:
    """Scale of the cosines that gives a softmax over so many labels a useful slope.

    √2 ln(labels - 1), the fixed scale of AdaCos (Zhang et al., 2019, arXiv:1905.00292); at least 4, since for few
    labels the formula goes to zero and no probability could become large.
    """
    return round(max(4.0, math.sqrt(2.0) * math.log(max(2, labels) - 1 or 1)), 3)


def front_end_spec(recipe: Recipe) -> FrontEndSpec:
    """The front end of a recipe with nothing left open."""
    front = recipe.front_end
    return FrontEndSpec(
        sample_rate_hz=int(NOMINAL_RATE_HZ),
        n_fft=int(front.n_fft),
        win_length=int(front.win_length),
        hop_length=int(front.hop_length),
        n_mels=int(front.n_mels),
        pre_emphasis=front.pre_emphasis,
        level=front.level,
        context=front.context,
    )


def ecapa_dims(recipe: Recipe) -> EcapaDims:
    """The network of a recipe with nothing left open."""
    network = recipe.network
    return EcapaDims(
        channels=int(network.channels),
        mfa_channels=int(network.mfa_channels),
        attention=int(network.attention),
        embedding=int(network.embedding),
        se_bottleneck=int(network.se_bottleneck),
        scale=network.scale,
        dilations=network.dilations,
        variant=network.variant,
    )


def head_spec(recipe: Recipe) -> HeadSpec:
    """The head that belongs to a recipe's loss."""
    if recipe.loss.kind == "aam_softmax":
        return HeadSpec(kind="cosine", scale=float(recipe.loss.scale))
    return HeadSpec(kind="linear")


def _fill(section: _Section, values: Mapping[str, float]) -> _Section:
    unsettled = {name: value for name, value in values.items() if getattr(section, name) == "auto"}
    return msgspec.structs.replace(section, **unsettled)


def _rate(rates_hz: npt.NDArray[np.float64]) -> tuple[float, str]:
    values, counts = np.unique(rates_hz, return_counts=True)
    if len(values) == 1:
        return float(values[0]), "the rate of all clips"
    frequent = values[counts >= min(RARE_RATE * counts.sum(), counts.max())]
    lowest = float(frequent.min())
    return lowest, f"the lowest of {len(values)} rates that is not rare: above half of it nothing is in all clips"


def _length(lengths: npt.NDArray[np.int64]) -> tuple[int, str]:
    short, median, long = (int(value) for value in np.percentile(lengths, [5, 50, 95], method="nearest"))
    if long <= ALIKE * short and long <= LONGEST_WHOLE:
        # A few clips that are longer than nearly all do not make every other window end in silence.
        longest = int(lengths.max())
        return longest if longest <= 1.1 * long else long, "the whole of each clip"
    samples = int(min(max(median, SHORTEST_CUT), LONGEST_CUT))
    return samples, f"clips are {short} to {long} samples long: longer ones are cut, shorter ones filled up and masked"


def _front_end(window_samples: int, settled: FrontEnd) -> dict[str, int]:
    """Hop, analysis window, transform, mel bands: the paper's where the window has room for them.

    What is settled already bounds the rest: a hop is within the analysis window, and that within the transform.
    """
    longest = MAX_FFT if settled.n_fft == "auto" else settled.n_fft
    if window_samples > MOST_FRAMES * PAPER_HOP:
        hop = math.ceil(window_samples / MOST_FRAMES)
        win = hop * PAPER_WIN // PAPER_HOP
    else:
        hop = min(PAPER_HOP, max(4, window_samples // FRAMES_WANTED))
        win = min(PAPER_WIN, max(32, window_samples // 8))
    if settled.hop_length != "auto":
        win = max(win, settled.hop_length)
    win = min(win, longest) if settled.win_length == "auto" else settled.win_length
    bands = 0 if settled.n_mels == "auto" else settled.n_mels
    n_fft = max(512 if win > 256 else 64, 1 << (max(win, 2 * bands) - 1).bit_length())
    n_fft = n_fft if settled.n_fft == "auto" else settled.n_fft
    hop = min(hop, -(-win * PAPER_HOP // PAPER_WIN))
    return {"hop_length": hop, "win_length": win, "n_fft": n_fft, "n_mels": min(80, n_fft // 4)}


def _channels(windows: int, device: str, scale: int) -> int:
    if device == "cpu":
        wanted = 64 if windows < 20_000 else 128
    else:
        wanted = 256 if windows < 5_000 else 512 if windows < 50_000 else 1_024
    return -(-wanted // scale) * scale


def _batch(windows: int, device: str) -> int:
    if windows < 3_000:
        return min(32, max(1, windows))
    return 64 if device == "cpu" else 128


def _steps(windows: int, labels: int, device: str) -> int:
    """Weight updates: more for more windows and labels, as much as is worth waiting for on the device."""
    wanted = 600 + 60 * labels + windows // 4
    return min(wanted, 3_000 if device == "cpu" else 20_000)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
