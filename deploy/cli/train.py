"""`aewatch train`: from recordings with labels to a bundle."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.role_option import role_option
from deploy.cli.session import plain_errors

if TYPE_CHECKING:
    from deploy.train_run import Listener, Order
    from model.bundle import BundleCard
    from model.training.history import Epoch
    from model.training.recipe import Recipe
    from model.training.train import Progress

SPLIT_BY = ("auto", "position", "sensor", "recording", "random-windows")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not DEVICE.fullmatch(value):
        raise click.BadParameter(f"{value!r}; choose auto, cpu, cuda or cuda:N")
    return value


@click.command()
@click.option(
    "--data",
    metavar="DATASET",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of class folders, or a CSV or Parquet manifest. Not needed to resume.",
)
@click.option(
    "--out", metavar="RUN", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option("--recipe", metavar="NAME|FILE.toml", help="default, paper, or a file.  [default: default]")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE", help="Another value in the recipe.")
@click.option("--fold", metavar="F", help="Leave this fold of the data set out, to be tested on.")
@click.option(
    "--split-by",
    type=click.Choice(SPLIT_BY),
    help="What is kept whole where a validation part has to be split off.  [default: auto]",
)
@click.option(
    "--init",
    "initial",
    metavar="FILE|BUNDLE",
    type=click.Path(path_type=Path, exists=True),
    help="Begin with these weights: a bundle, or ECAPA-TDNN weights of TaoRuijie or SpeechBrain.",
)
@click.option("--resume", is_flag=True, help="Go on where the training in RUN was stopped.")
@click.option(
    "--device",
    metavar="DEVICE",
    default="auto",
    show_default=True,
    callback=_device,
    help="auto, cpu, cuda or cuda:N.",
)
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Draws weights and batches; sets training.seed.")
@click.option("--epochs", metavar="N", type=click.IntRange(1), help="Passes over the data; sets training.epochs.")
@role_option("Guessed from its name where not said.")
def train(
    data: Path | None,
    out: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    fold: str | None,
    split_by: str | None,
    initial: Path | None,
    resume: bool,
    device: str,
    seed: int | None,
    epochs: int | None,
    roles: dict[str, str],
) -> None:
    """Train a model on recordings with labels, and write RUN/bundle.

    What the recipe leaves open is chosen from the data, and told. Ctrl-C and SIGTERM save first; --resume goes on
    exactly. On several GPUs: torchrun --nproc-per-node 4 -m deploy.cli train …
    """
    if seed is not None:
        overrides = (*overrides, f"training.seed={seed}")
    if epochs is not None:
        overrides = (*overrides, f"training.epochs={epochs}")
    fresh = {
        "--recipe": recipe,
        "--set, --seed or --epochs": overrides,
        "--fold": fold,
        "--split-by": split_by,
        "--init": initial,
        "--role": roles,
    }
    with plain_errors(ValueError):
        from model.training.run_folder import FACTS_FILE, refuse_existing

        begun = (out / FACTS_FILE).exists()
        if resume and begun:
            if given := [name for name, value in fresh.items() if value]:
                raise click.UsageError(f"{', '.join(given)}: --resume goes on with what {out} was begun with")
            order = _begun(data, out, device)
        else:
            if data is None:
                raise click.UsageError(f"--data: name a data set{f', {out} holds no training yet' * resume}")
            refuse_existing(out, resume=resume)
            order = _fresh(data, out, recipe or "default", overrides, fold, split_by, initial, device, roles)
    _train(order)


def _begun(data: Path | None, out: Path, device: str) -> Order:
    from typing import get_args

    from model.data.manifest import read_manifest
    from model.training.recipe import load_recipe
    from model.training.run_folder import RECIPE_FILE, read_record

    record = read_record(out)
    manifest, recipe = read_manifest(data or Path(record.data)), load_recipe(out / RECIPE_FILE)
    from deploy.train_run import Order
    from model.data.splits import By

    return Order(
        manifest=manifest,
        recipe=recipe,
        out=out,
        fold=record.fold,
        split_by=next(by for by in get_args(By) if by == record.split.by),
        roles=record.roles,
        resume=True,
        device=device,
        command=record.command,
    )


def _fresh(
    data: Path,
    out: Path,
    recipe_name: str,
    overrides: tuple[str, ...],
    fold: str | None,
    split_by: str | None,
    initial: Path | None,
    device: str,
    roles: dict[str, str],
) -> Order:
    from model.data.manifest import read_manifest
    from model.training.recipe import load_recipe

    recipe: Recipe = load_recipe(recipe_name, overrides)
    manifest = read_manifest(data)
    if unknown := sorted(roles.keys() - set(manifest.label_names)):
        raise click.UsageError(f"--role {unknown[0]}: no such label; there are {', '.join(manifest.label_names)}")
    from deploy.train_run import Order

    return Order(
        manifest=manifest,
        recipe=recipe,
        out=out,
        fold=fold,
        split_by=split_by or "auto",  # type: ignore[arg-type]  # click has checked it
        roles=roles,
        initial=initial,
        device=device,
        command=f"aewatch {shlex.join(sys.argv[1:])}",
    )


def _train(order: Order) -> None:
    import torch

    from deploy.train_run import train_dataset
    from model.host_memory import keep_freed_memory
    from model.training.history import read_history
    from model.training.interruption import TrainingInterruptedError
    from model.training.train import TrainingDivergedError

    keep_freed_memory()
    try:
        with plain_errors(ValueError, TrainingDivergedError), _listener() as listener:
            card = train_dataset(order, listener)
    except TrainingInterruptedError as stopped:
        if int(os.environ.get("RANK", "0")) == 0:
            name = signal.Signals(stopped.signal_number).name
            click.echo(f"{name}: {stopped}: aewatch train --resume --out {shlex.quote(str(order.out))}", err=True)
        sys.exit(128 + stopped.signal_number)
    except torch.OutOfMemoryError as error:
        raise click.ClickException(f"{str(error).splitlines()[0]} A smaller batch: --set training.batch=…") from error
    if card is None:
        return
    best = [epoch for epoch in read_history(order.out) if epoch.best][-1]
    click.echo(_summary(order, card, best))


def _summary(order: Order, card: BundleCard, best: Epoch) -> str:
    found, blended = best.validation, card.metrics["windows"]
    fold = f" --fold {shlex.quote(order.fold)}" if order.fold is not None else ""
    bundle = order.out / "bundle"
    together = (
        f"; network and statistics together: accuracy {_percent(blended['accuracy'])}, "
        f"macro F1 {_percent(blended['macro_f1'])}"
        if card.front_end.context_rows
        else ""
    )
    return (
        f"kept epoch {best.epoch} of {best.epochs}: on the validation part accuracy {_percent(found.accuracy)}, "
        f"macro F1 {_percent(found.macro_f1)}, weakest recall {_percent(found.weakest_recall)}\n"
        f"{bundle}: bundle {card.name} {card.version}{together}\n"
        f"next: aewatch evaluate {shlex.quote(str(bundle))} --data {shlex.quote(str(order.manifest.path))}{fold}"
    )


@contextmanager
def _listener() -> Iterator[Listener]:
    """Lines on stderr; where somebody sees it, with a bar below them."""
    from deploy.train_run import Listener

    if not sys.stderr.isatty() or int(os.environ.get("RANK", "0")):
        yield Listener(say=_line, on_epoch=lambda epoch: _line(_epoch_line(epoch)))
        return
    import rich.progress
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[found]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("reading recordings", total=None, found="")

        def on_begin() -> None:
            bar.reset(task, description="training", total=None)

        def on_step(progress: Progress) -> None:
            found = f"loss {progress.loss:.4f}, accuracy {_percent(progress.accuracy)}, {progress.windows_per_s:,.0f}/s"
            bar.update(
                task,
                description=f"epoch {progress.epoch}/{progress.epochs}",
                total=progress.steps,
                completed=progress.step,
                found=found,
            )

        def on_recording(done: int, of: int) -> None:
            bar.update(task, total=of, completed=done)

        yield Listener(
            say=_printer(console),
            on_recording=on_recording,
            on_begin=on_begin,
            on_epoch=lambda epoch: console.print(_epoch_line(epoch), markup=False),
            on_step=on_step,
        )


def _printer(console: Any) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False)


def _line(text: str) -> None:
    click.echo(text, err=True)


def _epoch_line(epoch: Epoch) -> str:
    found = epoch.validation
    left_s = epoch.elapsed_s / epoch.epoch * (epoch.epochs - epoch.epoch)
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}: loss {epoch.loss:.4f}, accuracy {_percent(epoch.train_accuracy)}; "
        f"validation loss {found.loss:.4f}, accuracy {_percent(found.accuracy)}, macro F1 {_percent(found.macro_f1)}, "
        f"weakest recall {_percent(found.weakest_recall)}{' *' if epoch.best else ''}; "
        f"{epoch.windows_per_s:,.0f} windows/s, {_duration(left_s)} left"
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.2f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
