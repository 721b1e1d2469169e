"""Windows and recipes small enough to train on within a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet
from model.training.recipe import Recipe, load_recipe

SAMPLES = 2_000
TINY = (
    "windows.rate_hz=16000",
    "windows.length_s=0.125",
    "windows.hop_s=0.0625",
    "front_end.n_fft=256",
    "front_end.win_length=256",
    "front_end.hop_length=100",
    "front_end.n_mels=16",
    "network.channels=16",
    "network.mfa_channels=16",
    "network.attention=8",
    "network.embedding=8",
    "network.se_bottleneck=4",
    "network.scale=2",
    "network.dilations=[2]",
    "loss.scale=10.0",
    "training.batch=16",
    "training.epochs=6",
    "training.precision=float32",
)


@dataclass(frozen=True)
class Parts:
    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def tiny_recipe(name: str = "default", overrides: Sequence[str] = ()) -> Recipe:
    return load_recipe(name, (*TINY, *overrides))


def bursts(count: int, seed: int = 0) -> WindowSet:
    """Label "noise": steady noise. Label "burst": noise with a burst somewhere. Eight windows a recording."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    windows = rng.standard_normal((count, SAMPLES)) * 300.0
    for window, label in zip(windows, labels, strict=True):
        if label:
            at = int(rng.integers(100, SAMPLES - 700))
            window[at : at + 600] += rng.standard_normal(600) * 6_000.0 * np.exp(-np.arange(600) / 150.0)
    return WindowSet(
        windows=windows.astype(np.int16),
        lengths=np.full(count, SAMPLES),
        labels=labels.astype(np.int64),
        label_names=("noise", "burst"),
        rate_hz=16_000.0,
        recordings=np.array([f"recording {number // 8}" for number in range(count)]),
        sensors=np.repeat("", count),
        positions=np.repeat("", count),
        splits=np.repeat("", count),
    )


def first_and_rest(count: int, training: int) -> Parts:
    return Parts(np.arange(training), np.arange(training, count))
