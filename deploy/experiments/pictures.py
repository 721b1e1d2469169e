"""Pictures of one trial: how training went, what is taken for what, and what its probabilities are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.experiments.trial import Parts
from model.data.dataset import WindowSet
from model.engine import Engine
from model.evaluation.evaluate import evaluate
from model.evaluation.report_plots import confusion, curves, reliability, save
from model.training.history import read_history
from model.training.run_folder import BUNDLE_FOLDER


def draw(data: WindowSet, parts: Parts, folder: Path, to: Path, name: str, device: str) -> list[Path]:
    """Write <name>-curves, -confusion and -reliability as PNG into folder `to`; returns what was written."""
    engine = Engine(folder / BUNDLE_FOLDER, device=device)
    found = evaluate(engine, data, np.flatnonzero(parts.test)).results
    figures = {
        "curves": curves(read_history(folder)),
        "confusion": confusion(found, engine.card.label_names),
        "reliability": reliability(found, None),
    }
    to.mkdir(parents=True, exist_ok=True)
    written = []
    for what, figure in figures.items():
        path = to / f"{name}-{what}.png"
        save(figure, path)
        written.append(path)
    return written
