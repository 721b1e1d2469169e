"""`aewatch data`: look at a labelled data set before training on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from deploy.cli.session import plain_errors


@click.group()
def data() -> None:
    """Look at a labelled data set before training on it."""


@data.command("check", short_help="What is in a data set, and what is wrong with it.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with everything that was found.")
def check(dataset: Path, plot: Path | None, as_json: bool) -> None:
    """Read all recordings of DATASET once and tell what is in it and what is wrong with it.

    DATASET is a folder of class folders, optionally under train, validation and test, or a CSV or Parquet table with
    the columns path and label, and any of start, end (seconds), channel, sensor, position, recording, split or fold.

    Ends with status 1 if there are errors: what cannot be read, what has two labels, what is in two parts.
    """
    import msgspec

    from deploy.data_reading import measure
    from model.data.manifest import ManifestError, read_manifest
    from model.data_check.check import check as check_clips
    from model.data_check.check import windows_of
    from model.data_check.text import text
    from model.training.recipe import load_recipe

    with plain_errors(ManifestError):
        manifest = read_manifest(dataset)
    with progress("reading") as on_progress:
        measured = measure(manifest, on_progress)
    windows = windows_of(measured.clips, load_recipe("default"))
    report = check_clips(manifest, measured.clips, windows, measured.shared_stretches, measured.unreadable)
    click.echo(msgspec.json.encode(report.as_json()) if as_json else text(report))
    if plot:
        from model.data_check.plot import draw

        with plain_errors(OSError, ValueError):
            draw(report, measured.clips, plot)
        click.echo(f"wrote {plot}", err=True)
    if report.has_errors:
        raise SystemExit(1)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for as long as it takes, where somebody sees it."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
