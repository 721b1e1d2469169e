"""`aewatch demo`: the whole pipeline for a minute, checked."""

from __future__ import annotations

from pathlib import Path

import click

from deploy import logs
from deploy.cli.session import plain_errors


@click.command()
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(15.0), help="Duration of the signals."
)
@click.option("--seed", default=1, show_default=True, help="Draws the events and the noise.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep data and logs in this folder.")
def demo(seconds: float, seed: int, keep: Path | None) -> None:
    """Start everything, inject events of all four classes on eight simulated sensors, and check what comes out.

    Needs no configuration and disturbs nothing: its Kafka and Redis are its own and gone afterwards. Exit status 0
    if every event raised its alert, nothing else did, and every count adds up.
    """
    logs.configure("WARNING", "text")
    from rich.console import Console

    from deploy.demo import run_demo
    from deploy.local_stack import StackError

    with plain_errors(StackError):
        raise SystemExit(run_demo(seconds, seed, Console(), keep))
