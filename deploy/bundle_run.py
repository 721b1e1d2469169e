"""From a training's folder to a bundle, again: another name, other roles, or the last weights instead of the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch

from deploy.dataset_windows import dataset_windows
from model.bundle import BundleCard
from model.bundle_making.make import make_bundle, read_run
from model.data.dataset import WindowSet
from model.data.manifest import read_manifest
from model.data.splits import By, parts
from model.device import choose
from model.network import Recogniser
from model.training.checkpoint import read_checkpoint
from model.training.recipe import Recipe, load_recipe
from model.training.run_folder import BEST, LAST, RECIPE_FILE, RunError, RunRecord, read_record
from model.training.train import new_recogniser

Checkpoint = Literal["best", "last"]


def bundle_run(
    run: Path,
    out: Path,
    *,
    checkpoint: Checkpoint = "best",
    data: Path | None = None,
    name: str | None = None,
    roles: Mapping[str, str] | None = None,
    device: str = "auto",
    on_recording: Callable[[int, int], None] | None = None,
) -> BundleCard:
    """Write the bundle of the training in folder `run` into folder `out`; returns its card.

    Parameters
    ----------
    checkpoint
        Weights of the epoch that did best on the validation part, or of the last step.
    data
        Where the data set lies now; None: where it lay.
    name
        What the bundle is called; None: as the run's folder.
    roles
        Label → background, calibration or fault, in place of what the training was told.

    Raises
    ------
    ValueError
        If `run` holds no training, its data set has changed, or a role is not one.
    """
    record, recipe = read_record(run), load_recipe(run / RECIPE_FILE)
    model = _model(run, recipe, len(record.labels), checkpoint).to(choose(device, "float32").device)
    windows = _windows(record, recipe, data, on_recording)
    split = parts(windows, fold=record.fold, by=_by(record.split.by), validation_share=recipe.training.validation_share)
    train, validation = np.flatnonzero(split.train), np.flatnonzero(split.validation)
    for part, indices in (("train", train), ("validation", validation)):
        if np.unique(windows.recordings[indices]).tolist() != record.recordings[part]:
            raise RunError(
                f"{run}: its {part} part was made of other recordings; this version of aewatch parts otherwise"
            )
    name = name or run.resolve().name
    return make_bundle(out, name, read_run(run), model, windows, train, validation, {**record.roles, **(roles or {})})


def _model(run: Path, recipe: Recipe, labels: int, checkpoint: Checkpoint) -> Recogniser:
    tensors, _ = read_checkpoint(run / (BEST if checkpoint == "best" else LAST))
    # What is judged and kept are the averaged weights, where the recipe averages.
    prefix = "average." if checkpoint == "last" and recipe.training.ema else "model."
    model = new_recogniser(recipe, labels)
    state: dict[str, torch.Tensor] = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"{run}: its {checkpoint} checkpoint is not of its recipe: {error}") from error
    return model.requires_grad_(False).eval()


def _windows(
    record: RunRecord, recipe: Recipe, data: Path | None, on_recording: Callable[[int, int], None] | None
) -> WindowSet:
    where = data or Path(record.data)
    rate_hz = Fraction(recipe.windows.rate_hz)
    windows = dataset_windows(
        read_manifest(where),
        record.window_samples,
        record.hop_samples,
        None if record.rate_is_nominal else rate_hz,
        on_progress=on_recording,
    )
    if (found := windows.fingerprint()) != record.data_hash:
        raise RunError(
            f"{where}: its windows hash to {found[:16]}…, those of the training to {record.data_hash[:16]}…; "
            "name the data set that was trained on"
        )
    return windows


def _by(text: str) -> By:
    if text not in get_args(By):
        raise RunError(f"the run was split by {text!r}, which this version does not know")
    return cast(By, text)
