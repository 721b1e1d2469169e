"""`aewatch experiment`: the figures of docs/results.md, each by one command that goes on where it was stopped."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.session import plain_errors

if TYPE_CHECKING:
    from deploy.experiments.plan import Effort


@click.group()
def experiment() -> None:
    """Train and test recipes side by side, resumable; the table is written as the trials end."""


def effort_options(channels: int, epochs: int, batch: int, seeds: int) -> Callable[[Any], Any]:
    """Options that all experiments share, with the defaults of one."""

    def decorate(command: Any) -> Any:
        for option in reversed(
            (
                click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder."),
                click.option("--recipe", "recipes", multiple=True, help="Only these of forest, paper, default."),
                click.option("--channels", default=channels, show_default=True, help="C of the networks; paper: 1024."),
                click.option("--epochs", default=epochs, show_default=True, help="Of every training."),
                click.option("--batch", default=batch, show_default=True, help="Windows in a batch."),
                click.option("--seeds", default=seeds, show_default=True, help="So many times."),
                click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16."),
                click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
                click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Draw them there."),
                click.option(
                    "--set", "overrides", multiple=True, metavar="section.field=value", help="Of all recipes."
                ),
            )
        ):
            command = option(command)
        return command

    return decorate


@experiment.command("position-shift")
@effort_options(channels=64, epochs=6, batch=32, seeds=3)
def position_shift(out: Path, seeds: int, **effort: Any) -> None:
    """Simulated sensors: trained at four positions, tested at four others."""
    from deploy.experiments import plan
    from deploy.experiments.position_shift import cases, read_windows

    with _stoppable(), plain_errors(ValueError):
        data = read_windows(out / "windows.npz", click.echo)
        plan.run(data, cases(seeds), _effort(**effort), out, pooled=False, say=click.echo)


@experiment.command("gas-leaks")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of GPLA-12.")
@effort_options(channels=64, epochs=60, batch=32, seeds=3)
def gas_leaks(data: Path, out: Path, seeds: int, **effort: Any) -> None:
    """GPLA-12, five stratified folds."""
    from deploy.experiments import plan
    from deploy.experiments.gas_leaks import cases, read_windows

    with _stoppable(), plain_errors(ValueError):
        plan.run(read_windows(data), cases(seeds), _effort(**effort), out, pooled=True, say=click.echo)


@experiment.command("environmental-sounds")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of ESC-10.")
@effort_options(channels=64, epochs=60, batch=32, seeds=1)
def environmental_sounds(data: Path, out: Path, seeds: int, **effort: Any) -> None:
    """ESC-10, its own five folds."""
    from deploy.experiments import plan
    from deploy.experiments.environmental_sounds import cases, read_windows

    with _stoppable(), plain_errors(ValueError):
        plan.run(read_windows(data), cases(seeds), _effort(**effort), out, pooled=True, say=click.echo)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end with one line: everything is saved, and the same command goes on."""
    from model.training.interruption import TrainingInterruptedError

    try:
        yield
    except TrainingInterruptedError as stopped:
        click.echo(f"{signal.Signals(stopped.signal_number).name}: saved; the same command goes on from here", err=True)
        sys.exit(128 + stopped.signal_number)


def _effort(
    *,
    recipes: tuple[str, ...],
    channels: int,
    epochs: int,
    batch: int,
    precision: str,
    device: str,
    overrides: tuple[str, ...],
    pictures: Path | None,
) -> Effort:
    from deploy.experiments.plan import Effort

    return Effort(
        channels=channels,
        epochs=epochs,
        batch=batch,
        precision=precision,
        device=device,
        recipes=recipes or ("forest", "paper", "default"),
        overrides=overrides,
        pictures=pictures,
    )


@experiment.command("unknown-scores")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of ESC-10; otherwise the windows of position-shift, beside --out.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@click.option("--channels", default=64, show_default=True, help="C of the networks; paper: 1024.")
@click.option("--epochs", default=3, show_default=True, help="Of every training.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
def unknown_scores(data: Path | None, out: Path, channels: int, epochs: int, precision: str) -> None:
    """How well each unknown score tells a class never heard; each class left out of a training in turn."""
    from deploy.experiments import environmental_sounds, position_shift
    from deploy.experiments.unknown_scores import measure

    with _stoppable(), plain_errors(ValueError):
        if data is None:
            windows = position_shift.read_windows(out.parent / "position-shift" / "windows.npz", click.echo)
            parts = position_shift.cases(1)[0].parts(windows)
        else:
            windows = environmental_sounds.read_windows(data)
            parts = environmental_sounds.cases(1)[0].parts(windows)
        click.echo(measure(windows, parts, out, channels, epochs, precision, click.echo))


@experiment.command("training-speed")
@click.option("--channels", default=64, show_default=True, help="C of the networks; paper: 1024.")
@click.option("--repeats", default=3, show_default=True, help="Of each measurement.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def training_speed(channels: int, repeats: int, precision: str, device: str) -> None:
    """Windows a second of both recipes in training, with one process and with two."""
    from deploy.experiments.training_speed import measure

    with _stoppable(), plain_errors(ValueError):
        click.echo(measure(channels, device, precision, repeats, lambda line: click.echo(line, err=True)))
