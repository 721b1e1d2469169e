"""What all experiments have in common: which trials, in which order, and the table that is written as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.experiments.table import errors_left, results_in, table
from deploy.experiments.trial import Parts, forest, train_and_test
from model.data.dataset import WindowSet
from model.training.recipe import load_recipe

#: Sizes that a smaller network scales down from the paper's; "auto" does that.
SMALLER = ("mfa_channels", "attention", "embedding", "se_bottleneck")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How large and how long; the same for every recipe, so that they are compared at equal cost."""

    channels: int
    epochs: int
    batch: int
    precision: str
    device: str
    recipes: tuple[str, ...]  #: "forest" among them
    overrides: tuple[str, ...] = ()
    pictures: Path | None = None  #: folder for those of each recipe's first case


@dataclass(frozen=True, slots=True)
class Case:
    """One seed, and one fold where there are any."""

    name: str  #: "seed 0" or "seed 0 fold 2"
    seed: int
    parts: Callable[[WindowSet], Parts]


def run(
    data: WindowSet, cases: Sequence[Case], effort: Effort, out: Path, *, pooled: bool, say: Callable[[str], None]
) -> str:
    """Every recipe on every case; `out`/table.md is written anew after each. What is done already is only read."""
    for case in cases:
        parts = case.parts(data)
        for name in effort.recipes:
            folder = _folder(out, name, case)
            if name == "forest":
                forest(data, parts, folder, case.name, case.seed)
            else:
                recipe = load_recipe(name, [*_overrides(effort), f"training.seed={case.seed}"])
                train_and_test(data, parts, recipe, folder, case.name, device=effort.device, say=say)
            text = report(out, pooled=pooled)
            (out / "table.md").write_text(text)
            say(text)
    if effort.pictures:
        from deploy.experiments.pictures import draw

        for name in effort.recipes:
            if name != "forest":
                parts = cases[0].parts(data)
                title = f"{out.name}-{name}"
                for path in draw(data, parts, _folder(out, name, cases[0]), effort.pictures, title, effort.device):
                    say(f"wrote {path}")
    return report(out, pooled=pooled)


def _folder(out: Path, recipe: str, case: Case) -> Path:
    return out / f"{recipe} {case.name}".replace(" ", "-")


def report(out: Path, *, pooled: bool) -> str:
    """The table of what is done so far, and how many of the paper recipe's errors are left."""
    results = results_in(out)
    lines = [table(results, pooled=pooled), ""]
    lines += list(_ratios(out))
    return "\n".join(lines) + "\n"


def _ratios(out: Path) -> Iterator[str]:
    results = results_in(out)
    for of in ("paper", "forest"):
        if (left := errors_left(results, "default", of)) is not None:
            yield f"`default` makes {left:.2f} times the errors of `{of}` on the same cases."


def _overrides(effort: Effort) -> list[str]:
    sizes = [f"network.channels={effort.channels}"]
    if effort.channels != 1024:
        sizes += [f"network.{size}=auto" for size in SMALLER]
    return [
        *sizes,
        f"training.epochs={effort.epochs}",
        f"training.batch={effort.batch}",
        f"training.precision={effort.precision}",
        *effort.overrides,
    ]
