"""Makes the demo bundle from nothing: simulated positions, labelled windows, training, calibration, rehearsal, card."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt

from deploy.demo_model_card import model_card
from deploy.demo_rehearsal import rehearse
from deploy.demo_windows import HOP_SAMPLES, LABELS, WINDOW_SAMPLES, WindowsSpec, labelled_windows
from model.architecture import EcapaDims, FrontEndSpec, HeadSpec, count_parameters
from model.bundle import PAPER_LABELS, BundleCard, TrainingRecord, UnknownRule, write_bundle
from model.calibration import fit_temperature
from model.engine import Engine
from model.host_memory import keep_freed_memory
from model.metrics import Scores, confusion_matrix, scores
from model.network import Recogniser
from model.train import LabelledWindows, Progress, TrainSpec, judge, train
from producers.propagation import (
    DEMO_POSITIONS,
    TRAINING_POSITIONS,
    VALIDATION_POSITIONS,
    Position,
    draw_positions,
)
from producers.simulator import RATE_HZ

NAME = "demo"
MARGIN_SAMPLES = 512
NEVER_UNKNOWN = 1e30
THRESHOLDS = {"calibration": 0.8, "fault": 0.6}  # those of the default alarm rules

TRAIN = (*TRAINING_POSITIONS, *draw_positions(1, 128))
VALIDATION = (*VALIDATION_POSITIONS, *draw_positions(2, 12))
TEST = draw_positions(3, 16)
POSITIONS = {
    "train": f"{len(TRAIN)}: TRAINING_POSITIONS and draw_positions(1, 128) of producers.propagation",
    "validation": f"{len(VALIDATION)}: VALIDATION_POSITIONS and draw_positions(2, 12)",
    "test": f"{len(TEST)}: draw_positions(3, 16)",
}

SPEC = TrainSpec(
    labels=len(LABELS),
    window_samples=WINDOW_SAMPLES,
    front_end=FrontEndSpec(level="rms"),
    network=EcapaDims(channels=64, scale=4, mfa_channels=96, attention=32, embedding=64, se_bottleneck=16),
    head=HeadSpec(),
    epochs=6,
)


def train_demo_bundle(out: Path, seed: int = 1) -> BundleCard:
    """Train the bundle that comes with the project and write it to `out`, with its README; returns its card."""
    begun = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - begun:6.0f} s  {text}")

    keep_freed_memory()
    refuse_demo_positions(TRAIN, VALIDATION, TEST)
    say(f"rendering windows at {len(TRAIN)} training, {len(VALIDATION)} validation and {len(TEST)} test positions")
    data = labelled_windows(TRAIN, WindowsSpec(margin=MARGIN_SAMPLES), seed)
    validation = labelled_windows(VALIDATION, WindowsSpec(events=6, backgrounds=64), seed + 1)
    test = labelled_windows(TEST, WindowsSpec(events=6, backgrounds=64), seed + 2)
    say(f"training on {len(data.labels):,} windows: {_counts(data)}")

    def on_epoch(progress: Progress) -> None:
        found = progress.held_out
        say(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.4f}, "
            f"validation accuracy {100 * found.accuracy:.2f} %, macro F1 {100 * found.macro_f1:.2f} %"
        )

    spec = replace(SPEC, seed=seed)
    model = train(data, validation, spec, on_epoch)
    logits, embeddings = judge(model, validation, spec)
    temperature = fit_temperature(logits, validation.labels)
    model.unknown.fit(embeddings, validation.labels)
    card = _card(spec, seed, data, temperature)
    say(f"temperature {temperature:.2f}; rehearsing on streams at validation and test positions")
    threshold = _unknown_threshold(card, model, seed)
    card = msgspec.structs.replace(card, unknown=UnknownRule("mahalanobis", threshold))
    found = _scores(model, test, spec)
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / NAME, card, model.weights())
        rehearsal = rehearse(Engine(Path(scratch) / NAME, device="cpu"), TEST, duration_s=120.0, seed=seed + 4)
    metrics: dict[str, Any] = {
        "data": f"simulated, {len(TEST)} positions heard in neither training nor validation",
        "windows": found.as_card(LABELS),
        "streams": rehearsal.as_card(),
    }
    card = msgspec.structs.replace(card, metrics=metrics)
    readme = model_card(card, count_parameters(card.shapes), MARGIN_SAMPLES, found, rehearsal)
    card = write_bundle(out, card, model.weights(), readme)
    say(f"{found.table(LABELS)}\n{rehearsal.as_card()}")
    say(f"{out}: bundle {card.name} {card.version}")
    return card


def refuse_demo_positions(*parts: Sequence[Position]) -> None:
    """Nothing, where the parts share no position with one another nor with the demo, which must be new to its model.

    Raises
    ------
    ValueError
        Naming what is shared.
    """
    heard = [position.seed for part in parts for position in part]
    if known := [position.name for position in DEMO_POSITIONS if position.seed in heard]:
        raise ValueError(f"{', '.join(known)}: the demo's own positions must be new to its model; draw others")
    if len(set(heard)) != len(heard):
        raise ValueError("a position is in two parts of the data; draw them from different seeds")


def _counts(data: LabelledWindows) -> str:
    counts = np.bincount(data.labels, minlength=len(LABELS))
    return ", ".join(f"{count:,} {name}" for name, count in zip(LABELS, counts.tolist(), strict=True))


def _scores(model: Recogniser, data: LabelledWindows, spec: TrainSpec) -> Scores:
    recognised = judge(model, data, spec)[0].argmax(axis=1)
    return scores(confusion_matrix(data.labels, recognised, len(LABELS)))


def _unknown_threshold(card: BundleCard, model: Recogniser, seed: int) -> float:
    """Over every score on the validation streams by a tenth.

    The streams hold what the labelled windows leave out: events that are barely heard or have barely begun. None of
    it is strange, and a window that is called unknown counts for no alarm.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / NAME, card, model.weights())
        engine = Engine(Path(scratch) / NAME, device="cpu")
        found: npt.NDArray[np.float64] = rehearse(engine, VALIDATION, 60.0, seed + 3, spacing_s=2.0).unknown_scores
    return float(1.1 * found.max())


def _card(spec: TrainSpec, seed: int, data: LabelledWindows, temperature: float) -> BundleCard:
    digest = hashlib.sha256(data.windows.data)
    digest.update(data.labels.data)
    return BundleCard(
        name=NAME,
        front_end=spec.front_end,
        network=spec.network,
        head=spec.head,
        labels=PAPER_LABELS,
        rate_hz=float(RATE_HZ),
        rate_is_nominal=False,
        window_samples=WINDOW_SAMPLES,
        hop_samples=HOP_SAMPLES,
        temperature=temperature,
        unknown=UnknownRule("mahalanobis", NEVER_UNKNOWN),
        thresholds={label.name: THRESHOLDS[label.role] for label in PAPER_LABELS if label.role in THRESHOLDS},
        training=TrainingRecord(
            data=f"{len(data.labels):,} simulated windows at {len(TRAIN)} positions: {_counts(data)}",
            data_hash=digest.hexdigest(),
            command=f"aewatch model train-demo --seed {seed} --out DIR",
            seed=seed,
            positions=POSITIONS,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        ),
        metrics={},
    )
