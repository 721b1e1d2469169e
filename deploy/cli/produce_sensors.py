"""`aewatch produce`: the sensors of a file into Kafka; and how they are, as that process says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from deploy.cli.session import plain_errors, settings

MAX_PAGE_BYTES = 64 * 2**20  #: more is no page of a producer's


@click.command()
@click.argument("sensors_file", metavar="SENSORS.TOML", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--check", is_flag=True, help="Tell every mistake of the file, and start nothing.")
def produce(sensors_file: Path, check: bool) -> None:
    """Publish the sensors of SENSORS.TOML until SIGTERM or Ctrl-C; docs/sources.md tells what it may hold."""
    in_force = settings()
    from producers.live.registry import missing_here
    from producers.sensors_file import SensorsFileError, read_sensors_file

    with plain_errors(SensorsFileError):
        file = read_sensors_file(sensors_file)
    sensors = [sensor.id for plan in file.sources for sensor in plan.sensors]
    told = f"{len(sensors)} sensor{'s' * (len(sensors) != 1)} on {len(file.sources)} source"
    told += "s" * (len(file.sources) != 1)
    if check:
        click.echo(f"{sensors_file}: sound; {told}")
        for plan in file.sources:
            if missing := missing_here(plan.make):
                click.echo(f"source.{plan.name}: cannot start on this machine: {missing}")
        return
    from aiokafka.errors import KafkaError

    from deploy.pipeline import stop_on_signals
    from deploy.produce import run_producer
    from producers.publisher import DeliveryError
    from producers.spool import SpoolInUse

    async def run() -> None:
        stop = stop_on_signals()
        await run_producer(
            file, in_force.kafka, stop, lambda address: click.echo(f"{told}; pages at http://{address}/", err=True)
        )

    with plain_errors(ValueError, SpoolInUse, OSError, KafkaError, DeliveryError):
        asyncio.run(run())


def show_producer(where: str, globs: Sequence[str], as_json: bool) -> None:
    """A line for each sensor of the producer whose pages are at `where`, and one on the broker."""
    from urllib.error import URLError
    from urllib.request import urlopen

    url = f"{where if '://' in where else f'http://{where}'}/sensors"
    try:
        with urlopen(url, timeout=10) as answer:
            state = json.loads(answer.read(MAX_PAGE_BYTES))
    except (URLError, OSError, ValueError) as error:
        raise click.ClickException(f"{url}: {error}; is `aewatch produce` there, and is that its `listen`?") from error
    found = [one for one in state["sensors"] if any(fnmatchcase(one["sensor"], glob) for glob in globs or ("*",))]
    if as_json:
        for one in found:
            click.echo(json.dumps(one))
        return
    width = max([len(one["sensor"]) for one in found], default=0)
    for one in found:
        click.echo(f"{one['sensor']:<{width}}  {_condition(one)}")
    click.echo(f"broker: {state['broker']}")
    for name in ("spooled_frames", "dropped_frames", "refused_frames"):
        if state["totals"].get(name):
            click.echo(f"{name.replace('_', ' ')}: {state['totals'][name]:.0f}")


def _condition(one: dict[str, Any]) -> str:
    waiting = one["spooled_frames"]
    spooled = [] if waiting is None else [f"{waiting:,} in the spool"]
    if one["lag_s"] is None:
        # What is in the spool is of an earlier start.
        condition = ", ".join([one["state"], *(spooled if waiting else []), "no frame yet"])
        return condition + (f": {one['error']}" if one["error"] else "")
    told = [
        one["state"],
        f"{one['measured_rate_hz']:,.0f} of {one['rate_hz']:,.0f} Hz",
        f"last frame {_ago(one['last_frame_s'])} ago",
        f"{_ago(abs(one['lag_s']))} {'behind' if one['lag_s'] >= 0 else 'ahead of this clock'}",
        f"{one['gaps']} gap{'s' * (one['gaps'] != 1)}",
        *spooled,
    ]
    if one["drift_ppm"] is not None:
        told.append(f"clock {one['drift_ppm']:+.0f} ppm")
    if one["clipped_share"]:
        told.append(f"{max(0.1, 100 * one['clipped_share']):.1f} % clipped")
    if one["flat"]:
        told.append("flat line")
    if one["epochs"] > 1:
        told.append(f"started {one['epochs']} times")
    if one["corrections"]:
        told.append("its time was corrected after a backlog")
    if one["state"] != "running" and one["error"]:
        told.append(one["error"])
    return ", ".join(told)


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
