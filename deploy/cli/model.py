"""`aewatch model`: look at a bundle or a bare architecture, train the demo bundle."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.session import plain_errors, settings


@click.group()
def model() -> None:
    """Look at a model bundle or an architecture; train the demo bundle."""


@model.command()
@click.argument("bundle", required=False)
@click.option(
    "--channels", type=click.IntRange(8, 8192), help="Show the paper's network with so many channels instead."
)
def show(bundle: str | None, channels: int | None) -> None:
    """Print layers, shapes and parameter counts, rate, labels and version of BUNDLE (default: the settings')."""
    if bundle and channels:
        raise click.UsageError("name a bundle or give --channels, not both")
    in_force = settings()
    from model.bundle import BundleError
    from model.describe import describe_architecture, describe_bundle

    with plain_errors(BundleError, ValueError):
        click.echo(describe_architecture(channels) if channels else describe_bundle(in_force.bundle_path(bundle)))


@model.command("train-demo")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write.")
@click.option("--seed", default=1, show_default=True, help="Draws data, weights and batches.")
def train_demo(out: Path, seed: int) -> None:
    """Train the bundle that comes with the project, on simulated positions other than the demo's."""
    settings()
    from deploy.train_demo import train_demo_bundle

    train_demo_bundle(out, seed=seed)
