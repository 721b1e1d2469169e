"""Windows that differ by label in ways that anybody would hear, made from a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.data.dataset import WindowSet

LABELS = ("click", "hiss", "tone")


def labelled_windows(
    count: int = 60,
    samples: int = 2_048,
    *,
    recordings: int = 12,
    positions: int = 4,
    seed: int = 0,
    noise: float = 0.3,
    label_names: tuple[str, ...] = LABELS,
) -> WindowSet:
    """`count` windows, label after label; a recording and a position hold windows of one label and of all, in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(LABELS)
    windows = np.stack([_window(LABELS[label], samples, rng) for label in labels])
    windows += noise * rng.standard_normal(windows.shape)
    take = np.arange(count) // len(LABELS)
    where = [f"{LABELS[label]}/{n % max(1, recordings // 3)}.wav" for label, n in zip(labels, take, strict=True)]
    place = np.array([f"P{n % positions + 1}" for n in take])
    order = np.array([label_names.index(LABELS[label]) for label in labels])
    return WindowSet(
        windows=np.clip(windows * 3_000, -32_768, 32_767).astype(np.int16),
        lengths=np.full(count, samples),
        labels=order,
        label_names=label_names,
        rate_hz=16_000.0,
        recordings=np.array(where),
        sensors=np.array([""] * count),
        positions=place,
        splits=np.array([""] * count),
    )


def _window(label: str, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    at = np.arange(samples)
    if label == "click":
        start = rng.integers(samples // 4, samples // 2)
        return np.where(at >= start, np.exp(-np.abs(at - start) / (samples / 20)), 0) * rng.standard_normal(samples) * 4
    if label == "hiss":
        return rng.standard_normal(samples)
    return np.sin(at * rng.uniform(0.2, 0.8) + rng.uniform(0, 6))
