"""Trains in each of the processes that `torchrun` starts, and leaves what each of them ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from model.training import train
from model.training.feed import Feed
from tests.training_windows import bursts, first_and_rest, tiny_recipe

# Large batches: each process normalises its half by itself, which matters the less the larger they are.
RECIPE = tiny_recipe("paper", ("training.epochs=12", "training.batch=64"))
DATA = bursts(320)
PARTS = first_and_rest(320, 256)


def main(folder: Path) -> None:
    trained_on: list[int] = []

    class Listening(Feed):
        def __call__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
            trained_on.extend(np.intersect1d(indices, PARTS.train).tolist())
            return super().__call__(indices)

    train.Feed = Listening  # type: ignore[misc]
    model = train.train_run(DATA, PARTS, RECIPE, folder / "run", device="cpu")
    found = {**model.state_dict(), "trained on": torch.tensor(trained_on)}
    save_file(found, folder / f"rank{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
