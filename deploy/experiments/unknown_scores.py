"""Which unknown score tells a class that was never heard from those that were: each class left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deploy.experiments.plan import SMALLER
from deploy.experiments.trial import Parts, settled
from model.bundle_making.blend import set_shares
from model.bundle_making.unknown_choice import Heard, leave_one_class_out
from model.data.dataset import WindowSet
from model.training.judge import judge
from model.training.recipe import Recipe, load_recipe
from model.training.train import train_run


def measure(
    data: WindowSet, parts: Parts, out: Path, channels: int, epochs: int, precision: str, say: Callable[[str], None]
) -> str:
    """AUROC of every score with each label left out, as a Markdown table; trainings below `out` are gone on with."""

    def train_and_embed(train: WindowSet, validation: WindowSet, sets: Sequence[WindowSet]) -> list[Heard]:
        both, split = _joined(train, validation)
        left_out = next(name for name in data.label_names if name not in train.label_names)
        run = out / f"without-{left_out.replace(' ', '-')}"
        model = train_run(
            both,
            split,
            _recipe(train, channels, epochs, precision),
            run,
            resume=run.exists(),
            on_epoch=lambda epoch: say(f"without {left_out}: epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.3f}"),
        )
        if model.statistics is not None:  # as in a bundle
            rows = np.flatnonzero(split.validation)
            set_shares(model, both, rows, judge(model.eval(), both, rows)[1])
        return [Heard(*judge(model, one)) for one in sets]

    train, validation, test = (data.select(part) for part in (parts.train, parts.validation, parts.test))
    table = leave_one_class_out(train, validation, test, train_and_embed)
    text = f"{table.table()}\n\nThe largest mean: {table.best}.\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    return text


def _recipe(train: WindowSet, channels: int, epochs: int, precision: str) -> Recipe:
    sizes = [f"network.channels={channels}", *(f"network.{size}=auto" for size in SMALLER)]
    training = [f"training.epochs={epochs}", "training.batch=32", f"training.precision={precision}"]
    return settled(load_recipe("default", [*sizes, *training]), train, np.arange(len(train)), "cpu")


def _joined(train: WindowSet, validation: WindowSet) -> tuple[WindowSet, Parts]:
    """Both in one set, and which is which."""
    columns = ("windows", "lengths", "labels", "recordings", "sensors", "positions", "splits")
    both = WindowSet(
        label_names=train.label_names,
        rate_hz=train.rate_hz,
        **{name: np.concatenate([getattr(train, name), getattr(validation, name)]) for name in columns},
    )
    first = np.arange(len(both)) < len(train)
    return both, Parts(train=first, validation=~first, test=np.zeros_like(first))
