"""Bundles with weights drawn from a seed: right in size and speed, for benchmarks and tests; they recognise nothing."""

from __future__ import annotations

import os

import torch

from model.architecture import EcapaDims, FrontEndSpec, HeadSpec
from model.bundle import PAPER_LABELS, BundleCard, Label, TrainingRecord, UnknownRule, write_bundle
from model.network import Recogniser


def write_untrained_bundle(
    bundle: str | os.PathLike[str],
    *,
    network: EcapaDims | None = None,
    front_end: FrontEndSpec | None = None,
    head: HeadSpec | None = None,
    labels: tuple[Label, ...] = PAPER_LABELS,
    rate_hz: float = 500_000.0,
    rate_is_nominal: bool = False,
    window_samples: int = 65_536,
    hop_samples: int = 32_768,
    seed: int = 0,
) -> BundleCard:
    """Write a bundle of the given sizes (by default the paper's) with weights drawn from `seed`; returns its card."""
    network, front_end, head = network or EcapaDims(), front_end or FrontEndSpec(level="rms"), head or HeadSpec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(front_end, network, head, len(labels))
    card = BundleCard(
        name=f"untrained-c{network.channels}",
        front_end=front_end,
        network=network,
        head=head,
        labels=labels,
        rate_hz=rate_hz,
        rate_is_nominal=rate_is_nominal,
        window_samples=window_samples,
        hop_samples=hop_samples,
        temperature=1.0,
        unknown=UnknownRule("mahalanobis", 1e30),
        thresholds={},
        training=TrainingRecord("none: the weights are drawn at random", "", "", seed, {}, ""),
        metrics={},
    )
    return write_bundle(bundle, card, model.weights())
