"""`aewatch simulate`: frames of simulated sensors into Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.publish import parse_rate, publish
from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from producers.sources import Source


CONSUMERS_S = 120.0


full_scale_option = click.option(
    "--full-scale-v",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="What an audio file's full scale was at the sensor, V; Vallen files know it.",
)


def open_all(recordings: Sequence[Path], run_name: str, full_scale_v: float, frame_s: float = 0.05) -> list[Source]:
    """The recordings as sources.

    Raises
    ------
    producers.sources.RecordingError
        If one cannot be played, or two would have sensors of the same name.
    """
    from producers.sources import RecordingError, open_recording

    sources: list[Source] = []
    owners: dict[str, Path] = {}
    for path in recordings:
        source = open_recording(path, run_name, frame_s=frame_s, full_scale_v=full_scale_v)
        for sensor in source.sensors:
            if sensor in owners:
                raise RecordingError(
                    f"{path} and {owners[sensor]} would both be sensor {sensor}; replay them as runs of their own, "
                    "or rename one file"
                )
            owners[sensor] = path
        sources.append(source)
    return sources


@click.command()
@click.option("--sensors", default=8, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option(
    "--duration", "duration_s", default=3600.0, show_default=True, type=click.FloatRange(11.0), help="Seconds."
)
@click.option("--seed", default=1, show_default=True, help="Same seed, same samples.")
@click.option("--plan", "plan_path", type=click.Path(path_type=Path, dir_okay=False), help="Take all that from a plan.")
@click.option("--plan-out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan, with all events.")
@click.option("--wav", type=click.Path(path_type=Path, dir_okay=False), help="Write a recording instead of publishing.")
@click.option("--rate", default="1.0", callback=parse_rate, help="Pace: 1.0 is real time, or 'max'.")
@click.option("--frame-ms", default=50.0, show_default=True, type=click.FloatRange(0.01), help="Frame duration, ms.")
@click.option("--await-consumers", is_flag=True, help="Begin when a window agent and a worker are there.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write at the end what was sent, as JSON."
)
def simulate(
    sensors: int,
    duration_s: float,
    seed: int,
    plan_path: Path | None,
    plan_out: Path | None,
    wav: Path | None,
    rate: float | None,
    frame_ms: float,
    await_consumers: bool,
    report: Path | None,
) -> None:
    """Publish simulated sensors at 500 kHz, with events of all four classes at drawn times."""
    in_force = settings()
    from deploy.simulation import FULL_SCALE_V, PlanError, draw_plan, read_plan, source_of, write_plan, write_wav
    from deploy.topics import TopicError
    from producers.replay import Controls

    with plain_errors(PlanError):
        plan = read_plan(plan_path) if plan_path else draw_plan(sensors, duration_s, seed)
    if plan_out:
        write_plan(plan_out, plan)
    if wav:
        write_wav(wav, plan)
        click.echo(f"wrote {wav}; its full scale is {FULL_SCALE_V:g} V (--full-scale-v {FULL_SCALE_V:g})", err=True)
        return
    if await_consumers:
        from deploy import pipeline
        from deploy.topics import await_topics

        with plain_errors(TimeoutError, TopicError):
            asyncio.run(await_topics(in_force.kafka))
            asyncio.run(pipeline.await_consumers(in_force, CONSUMERS_S))
    sent = publish(in_force, [source_of(plan, frame_ms / 1000, time.time_ns())], Controls(rate))
    if report:
        fields = ("frames", "samples", "bytes")
        report.write_text(json.dumps({name: getattr(sent.counts, f"acknowledged_{name}") for name in fields}))
    if sent.failures:
        raise SystemExit(1)
