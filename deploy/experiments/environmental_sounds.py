"""ESC-10 (environmental sounds, 10 classes): 400 clips of five seconds in the five folds that its files name."""

from __future__ import annotations

import csv
import tempfile
from fractions import Fraction
from functools import partial
from pathlib import Path

from deploy.dataset_windows import dataset_facts, dataset_windows
from deploy.experiments.plan import Case
from deploy.experiments.trial import Parts, held_out
from model.data.dataset import WindowSet
from model.data.manifest import read_manifest
from model.training.recipe import load_recipe
from model.training.recipe_choice import choose_windows

FOLDS = 5
#: What the paper's front end is made for. The clips have 44,100 Hz.
RATE_HZ = 16_000


def read_windows(folder: Path) -> WindowSet:
    """All clips, cut as `aewatch train` would cut them. A file is named fold-source-take; a source is a recording.

    Raises
    ------
    ValueError
        If there are no such files.
    """
    clips = sorted(folder.glob("*/[1-5]-*.ogg"))
    if not clips:
        raise ValueError(f"{folder}: no folders with files such as 1-26806-A.ogg; ESC-10 has ten")
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "esc10.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "fold", "recording"))
            for clip in clips:
                fold, source = clip.name.split("-")[:2]
                writer.writerow((clip.resolve(), clip.parent.name, fold, source))
        manifest = read_manifest(table)
    recipe, _ = choose_windows(load_recipe("default", [f"windows.rate_hz={RATE_HZ}"]), dataset_facts(manifest))
    rate_hz = Fraction(recipe.windows.rate_hz)
    samples, hop = (round(Fraction(each) * rate_hz) for each in (recipe.windows.length_s, recipe.windows.hop_s))
    return dataset_windows(manifest, samples, hop, rate_hz)


def cases(seeds: int) -> list[Case]:
    """The five folds, with each seed."""
    return [
        Case(f"seed {seed} fold {fold}", seed, partial(_parts, seed=seed, fold=fold))
        for seed in range(seeds)
        for fold in range(1, FOLDS + 1)
    ]


def _parts(data: WindowSet, *, seed: int, fold: int) -> Parts:
    return held_out(data, data.splits == str(fold), seed)
