"""One training and its test, in a folder of its own: what is done is not done again, what was begun goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from model.bundle_making.make import make_bundle, read_run
from model.data.dataset import WindowSet
from model.data.splits import split
from model.device import choose
from model.engine import Engine
from model.evaluation.baseline import fit_baseline
from model.evaluation.evaluate import evaluate
from model.metrics import confusion_matrix, scores
from model.training.audition import audition
from model.training.history import read_history
from model.training.recipe import Recipe, load_recipe
from model.training.recipe_choice import Facts, choose_rest, choose_windows
from model.training.run_folder import BUNDLE_FOLDER, RECIPE_FILE, run_record
from model.training.train import train_run

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Say = Callable[[str], None]
RESULT = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one trial came to. Scores are of the test part, shares from 0 to 1."""

    what: str  #: name of the recipe, or "forest"
    case: str  #: which seed and fold
    accuracy: float
    macro_f1: float
    weakest_recall: float
    confusion: list[list[int]]  #: rows are the true labels
    calibration_error: float = 0.0
    steps: int = 0
    training_s: float = 0.0
    windows_per_s: float = 0.0  #: in training, median over the epochs
    best_s: float = 0.0  #: from the start to the first epoch with the best macro F1 on the validation part
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Masks over the windows, (n,) each; they share none."""

    train: Mask
    validation: Mask
    test: Mask


def held_out(data: WindowSet, test: Mask, seed: int) -> Parts:
    """Training and validation part of what is not for the test, by recording."""
    rest = np.flatnonzero(~test)
    of_rest = split(data.select(rest), by="recording", share=0.15, seed=seed)
    train, validation = np.zeros_like(test), np.zeros_like(test)
    train[rest[of_rest.train]] = True
    validation[rest[of_rest.held_out]] = True
    return Parts(train=train, validation=validation, test=test)


def settled(recipe: Recipe, data: WindowSet, train: Indices, device: str) -> Recipe:
    """The recipe with nothing left open, for windows that are cut already."""
    clips = np.full(len(train), data.samples, dtype=np.int64)
    recipe, _ = choose_windows(recipe, Facts(clips, np.full(len(train), data.rate_hz)))
    counts = np.bincount(data.labels[train], minlength=len(data.label_names)).tolist()
    return choose_rest(recipe, window_samples=data.samples, counts=counts, device=device)[0]


def train_and_test(
    data: WindowSet, parts: Parts, recipe: Recipe, folder: Path, case: str, *, device: str, say: Say
) -> Result:
    """Train on one part, choose by another, test the bundle that comes of it on the third.

    Everything between is what `aewatch train` does. `folder` holds the run.
    """
    if (folder / RESULT).exists():
        return read_result(folder)
    chosen = choose(device)
    train, validation, test = (np.flatnonzero(part) for part in (parts.train, parts.validation, parts.test))
    recipe = settled(recipe, data, train, chosen.device.type)
    if folder.exists():  # what a training was begun with has been through the audition
        begun_with = load_recipe(folder / RECIPE_FILE)
        recipe = msgspec.structs.replace(recipe, augment=begun_with.augment)
    else:
        recipe, heard = audition(data, train, recipe, chosen.device)
        for line in heard:
            say(f"{folder.name}: {line}")
    record = run_record(
        data, train, validation, recipe, path=folder.parent.name, kind="recording", device=chosen.reason
    )
    begun = time.monotonic()
    model = train_run(
        data,
        parts,
        recipe,
        folder,
        device=device,
        resume=folder.exists(),
        record=record,
        say=lambda line: say(f"{folder.name}: {line}"),
        on_epoch=lambda epoch: say(
            f"{folder.name}: epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.3f} "
            f"validation macro F1 {100 * epoch.validation.macro_f1:.1f} % {epoch.windows_per_s:.0f} windows/s"
        ),
    )
    took_s = time.monotonic() - begun
    bundle = folder / BUNDLE_FOLDER
    make_bundle(bundle, folder.name, read_run(folder), model, data, train, validation)
    found = evaluate(Engine(bundle, device=device), data, test).results
    epochs = read_history(folder)
    result = Result(
        what=recipe.name,
        case=case,
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
        weakest_recall=found.weakest_recall,
        confusion=found.confusion,
        calibration_error=found.expected_calibration_error,
        steps=epochs[-1].step,
        training_s=round(max(took_s, epochs[-1].elapsed_s), 1),
        windows_per_s=round(float(np.median([epoch.windows_per_s for epoch in epochs])), 1),
        best_s=round(max(epochs, key=lambda epoch: epoch.validation.macro_f1).elapsed_s, 1),
        device=f"{chosen.device}, {chosen.precision}",
    )
    _write(folder, result)
    return result


def forest(data: WindowSet, parts: Parts, folder: Path, case: str, seed: int) -> Result:
    """The baseline on the same parts; it needs no validation, so it learns from that part too."""
    if (folder / RESULT).exists():
        return read_result(folder)
    begun = time.monotonic()
    baseline = fit_baseline(data, seed, np.flatnonzero(parts.train | parts.validation))
    took_s = time.monotonic() - begun
    test = np.flatnonzero(parts.test)
    recognised = baseline.probabilities(data, test).argmax(axis=1)
    found = scores(confusion_matrix(data.labels[test], recognised, len(data.label_names)))
    result = Result(
        what="forest",
        case=case,
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
        weakest_recall=found.weakest_recall,
        confusion=found.confusion.tolist(),
        training_s=round(took_s, 1),
        device="cpu",
    )
    _write(folder, result)
    return result


def read_result(folder: Path) -> Result:
    """What a trial in this folder came to."""
    return Result(**json.loads((folder / RESULT).read_text()))


def _write(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{RESULT}.part"
    scratch.write_text(json.dumps(asdict(result)) + "\n")
    scratch.replace(folder / RESULT)
