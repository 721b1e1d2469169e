"""`aewatch bench`: how fast this machine is at what."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from deploy.cli.session import plain_errors, settings


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--bundle", metavar="DIR", help="Model bundle (default: the settings').")
@click.option("--batch", "batch_windows", type=click.IntRange(1), help="Windows in a batch (default: the settings').")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def engine(bundle: str | None, batch_windows: int | None, as_json: bool) -> None:
    """Windows a second of the inference engine alone."""
    in_force = settings()
    from deploy.bench_engine import bench_engine
    from model.bundle import BundleError

    with plain_errors(BundleError, ValueError):
        result = bench_engine(
            in_force.bundle_path(bundle),
            batch_windows or in_force.worker.batch_windows,
            device=in_force.model.device,
            precision=in_force.model.precision,
            threads=in_force.model.threads,
        )
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo("\n".join(result["engine"]))
    click.echo(
        f"{result['windows_per_s']} windows/s in batches of {result['batch_windows']} "
        f"({result['windows_per_s_min']} to {result['windows_per_s_max']})"
    )


@bench.command()
@click.option("--bundle", "bundles", multiple=True, metavar="DIR", help="Measure these instead of the two below.")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1), help="About how long each runs.")
@click.option("--batch", "batch_windows", type=click.IntRange(1), help="Windows in a batch (default: the settings').")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def pipeline(bundles: tuple[str, ...], seconds: float, batch_windows: int | None, as_json: bool) -> None:
    """Windows a second through the whole local path, beside the engine alone, and each process's memory.

    Without --bundle: the demo bundle, and the paper's network (C = 1024) with weights drawn from a seed.
    """
    in_force = settings()
    from deploy.bench_pipeline import Case, bench_pipeline
    from deploy.local_stack import StackError
    from deploy.processes import ProcessError
    from model.bundle import BundleError, demo_bundle_path
    from model.untrained import write_untrained_bundle

    with plain_errors(StackError, ProcessError, BundleError), tempfile.TemporaryDirectory() as folder:
        if bundles:
            cases = [Case(Path(path).name, Path(path)) for path in bundles]
        else:
            paper = Path(folder) / "paper"
            write_untrained_bundle(paper)
            cases = [Case("demo", demo_bundle_path()), Case("paper", paper)]
        result = bench_pipeline(cases, seconds, batch_windows or in_force.worker.batch_windows)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['cpu']}, {result['cores']} cores")
    for case in result["cases"]:
        memory = ", ".join(f"{name} {mib}" for name, mib in case["peak_rss_mib"].items())
        click.echo(
            f"{case['case']}: {case['pipeline_windows_per_s']} windows/s through the pipeline, "
            f"{case['engine_windows_per_s']} by the engine alone, ratio {case['ratio']}; peak memory in MiB: {memory}"
        )


@bench.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each producer.")
@click.option("--profile", is_flag=True, help="Also say where our producer's time goes.")
@click.option("--quick", is_flag=True, help="A minute to see that it works; its figures say little.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def ingest(rounds: int, profile: bool, quick: bool, as_json: bool) -> None:
    """MB/s of one producer into the local Kafka, beside Kafka's own ProducerPerformance; sensors in real time."""
    from dataclasses import replace

    from deploy.bench_ingest import QUICK, Extent, bench_ingest, told
    from deploy.local_stack import StackError
    from deploy.processes import ProcessError

    extent = replace(QUICK, profile=profile) if quick else Extent(rounds=rounds, profile=profile)
    with plain_errors(StackError, ProcessError):
        result = bench_ingest(extent)
    click.echo(json.dumps(result) if as_json else told(result))


@bench.command()
@click.option("--quick", is_flag=True, help="Minutes instead of hours of data, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def backlog(quick: bool, as_json: bool) -> None:
    """An hour of data for a worker ten times too slow, and three hours of backlog: memory, lag, and catching up."""
    settings()
    from deploy.bench_backlog import QUICK, Extent, bench_backlog, told
    from deploy.local_stack import StackError
    from deploy.processes import ProcessError

    with plain_errors(ProcessError, StackError):
        result = bench_backlog(QUICK if quick else Extent())
    click.echo(json.dumps(result) if as_json else told(result))
