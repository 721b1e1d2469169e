"""Makes the demo bundle from nothing: simulated positions, labelled windows, training, calibration, rehearsal, card."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt

from deploy.demo_model_card import model_card
from deploy.demo_rehearsal import rehearse
from deploy.demo_windows import HOP_SAMPLES, LABELS, WINDOW_SAMPLES, WindowsSpec, labelled_windows
from model.architecture import count_parameters
from model.bundle import PAPER_LABELS, BundleCard, TrainingRecord, UnknownRule, write_bundle
from model.calibration import fit_temperature
from model.data.dataset import WindowSet
from model.engine import Engine
from model.host_memory import keep_freed_memory
from model.metrics import Scores, confusion_matrix, scores
from model.network import Recogniser
from model.training.history import Epoch
from model.training.judge import judge
from model.training.recipe import Recipe, load_recipe, recipe_text
from model.training.train import train_run
from producers.propagation import (
    DEMO_POSITIONS,
    TRAINING_POSITIONS,
    VALIDATION_POSITIONS,
    Position,
    draw_positions,
)
from producers.simulator import RATE_HZ

NAME = "demo"
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
#: The paper's recipe on sensors of any sensitivity, with a network that keeps up with eight of them on one core.
RECIPE = (
    "windows.nominal=false",
    f"windows.rate_hz={RATE_HZ}",
    f"windows.length_s={WINDOW_SAMPLES / RATE_HZ}",
    f"windows.hop_s={HOP_SAMPLES / RATE_HZ}",
    "front_end.level=rms",
    "network.channels=64",
    "network.mfa_channels=96",
    "network.attention=32",
    "network.embedding=64",
    "network.se_bottleneck=16",
    "network.scale=4",
    "loss.kind=cross_entropy",
    "sampling.balance=equal",
    f"augment.shift_share={256 / WINDOW_SAMPLES}",
    "augment.polarity=true",
    "augment.noise_share=0.5",
    "augment.response_share=0.5",
    "augment.response_depth=0.5",
    "optimizer.kind=adamw",
    "optimizer.weight_decay=1e-4",
    "optimizer.schedule=one_cycle",
    "optimizer.warm_up_share=0.1",
    "optimizer.gradient_norm=5.0",
    "training.epochs=6",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Where and on how much the demo's model is trained, validated and tested."""

    train: tuple[Position, ...] = TRAIN
    validation: tuple[Position, ...] = VALIDATION
    test: tuple[Position, ...] = TEST
    windows: WindowsSpec = WindowsSpec()
    held_out: WindowsSpec = WindowsSpec(events=6, backgrounds=64)
    recipe: tuple[str, ...] = RECIPE  #: overrides of the paper's
    validation_streams_s: float = 60.0
    test_streams_s: float = 120.0


@dataclass(frozen=True, slots=True)
class _Parts:
    train: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]


def train_demo_bundle(out: Path, seed: int = 1, plan: DemoPlan | None = None) -> BundleCard:
    """Train the bundle that comes with the project and write it to `out`, with its README; returns its card."""
    begun = time.monotonic()
    plan = plan or DemoPlan()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - begun:6.0f} s  {text}")

    keep_freed_memory()
    refuse_demo_positions(plan.train, plan.validation, plan.test)
    say(
        f"rendering windows at {len(plan.train)} training, {len(plan.validation)} validation and "
        f"{len(plan.test)} test positions"
    )
    data = _joined(
        labelled_windows(plan.train, plan.windows, seed, "train"),
        labelled_windows(plan.validation, plan.held_out, seed + 1, "validation"),
    )
    test = labelled_windows(plan.test, plan.held_out, seed + 2, "test")
    parts = _Parts(data.splits == "train", data.splits == "validation")
    heard = f"{np.count_nonzero(parts.train):,} simulated windows at {len(plan.train)} positions: " + _counts(
        data.labels[parts.train]
    )
    say(f"training on {heard}")

    def on_epoch(epoch: Epoch) -> None:
        found = epoch.validation
        say(
            f"epoch {epoch.epoch}/{epoch.epochs}: loss {epoch.loss:.4f}, "
            f"validation accuracy {100 * found.accuracy:.2f} %, macro F1 {100 * found.macro_f1:.2f} %"
        )

    recipe = load_recipe("paper", (*plan.recipe, f"training.seed={seed}"))
    recipe = msgspec.structs.replace(recipe, name=NAME)
    with tempfile.TemporaryDirectory() as scratch:
        model = train_run(data, parts, recipe, Path(scratch) / NAME, device="cpu", on_epoch=on_epoch)
    validation = np.flatnonzero(parts.validation)
    logits, embeddings = judge(model, data, validation)
    temperature = fit_temperature(logits, data.labels[validation])
    model.unknown.fit(embeddings, data.labels[validation])
    card = _card(model, recipe, seed, heard, data.fingerprint(), temperature)
    say(f"temperature {temperature:.2f}; rehearsing on streams at validation and test positions")
    threshold = _unknown_threshold(card, model, seed, plan)
    card = msgspec.structs.replace(card, unknown=UnknownRule("mahalanobis", threshold))
    found = _scores(model, test)
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / NAME, card, model.weights())
        engine = Engine(Path(scratch) / NAME, device="cpu")
        rehearsal = rehearse(engine, plan.test, duration_s=plan.test_streams_s, seed=seed + 4)
    metrics: dict[str, Any] = {
        "data": f"simulated, {len(plan.test)} positions heard in neither training nor validation",
        "windows": found.as_card(LABELS),
        "streams": rehearsal.as_card(),
    }
    card = msgspec.structs.replace(card, metrics=metrics)
    readme = model_card(card, count_parameters(card.shapes), recipe.augment.shift_share, found, rehearsal)
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


def _joined(one: WindowSet, other: WindowSet) -> WindowSet:
    """The windows of both, those of `one` first."""
    names = ("windows", "lengths", "labels", "recordings", "sensors", "positions", "splits")
    columns = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    return WindowSet(label_names=one.label_names, rate_hz=one.rate_hz, **columns)


def _counts(labels: npt.NDArray[np.int64]) -> str:
    counts = np.bincount(labels, minlength=len(LABELS))
    return ", ".join(f"{count:,} {name}" for name, count in zip(LABELS, counts.tolist(), strict=True))


def _scores(model: Recogniser, data: WindowSet) -> Scores:
    return scores(confusion_matrix(data.labels, judge(model, data)[0].argmax(axis=1), len(LABELS)))


def _unknown_threshold(card: BundleCard, model: Recogniser, seed: int, plan: DemoPlan) -> float:
    """Over every score on the validation streams by a tenth.

    The streams hold what the labelled windows leave out: events that are barely heard or have barely begun. None of
    it is strange, and a window that is called unknown counts for no alarm.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_bundle(Path(scratch) / NAME, card, model.weights())
        engine = Engine(Path(scratch) / NAME, device="cpu")
        heard = rehearse(engine, plan.validation, plan.validation_streams_s, seed + 3, spacing_s=2.0)
    return float(1.1 * heard.unknown_scores.max())


def _card(model: Recogniser, recipe: Recipe, seed: int, heard: str, fingerprint: str, temperature: float) -> BundleCard:
    return BundleCard(
        name=NAME,
        front_end=model.front_end.spec,
        network=model.network.dims,
        head=model.head.spec,
        labels=PAPER_LABELS,
        rate_hz=float(RATE_HZ),
        rate_is_nominal=False,
        window_samples=WINDOW_SAMPLES,
        hop_samples=HOP_SAMPLES,
        temperature=temperature,
        unknown=UnknownRule("mahalanobis", NEVER_UNKNOWN),
        thresholds={label.name: THRESHOLDS[label.role] for label in PAPER_LABELS if label.role in THRESHOLDS},
        training=TrainingRecord(
            data=heard,
            data_hash=fingerprint,
            command=f"aewatch model train-demo --seed {seed} --out DIR",
            seed=seed,
            positions=POSITIONS,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            recipe=recipe_text(recipe),
        ),
        metrics={},
    )
