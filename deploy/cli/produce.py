"""`aewatch simulate` and `aewatch replay`: frames into Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from deploy.settings import Settings
    from producers.publisher import PublisherCounts
    from producers.replay import Progress
    from producers.sources import Source


CONSUMERS_S = 120.0


def parse_rate(_context: click.Context, _parameter: click.Parameter, value: str) -> float | None:
    """`max` is None: as fast as possible."""
    if value == "max":
        return None
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a positive number nor 'max'")
    return rate


full_scale_option = click.option(
    "--full-scale-v",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="What an audio file's full scale was at the sensor, V; Vallen files know it.",
)


@click.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rate",
    default="1.0",
    callback=parse_rate,
    help="1.0 is the recording's own pace, 10 ten times as fast, or 'max'.",
)
@click.option(
    "--run", "run_name", metavar="NAME", help="Name of this replay (default: the time now); part of sensor ids."
)
@click.option("--frame-ms", default=50.0, show_default=True, type=click.FloatRange(0.01), help="Frame duration, ms.")
@full_scale_option
def replay(
    recordings: tuple[Path, ...], rate: float | None, run_name: str | None, frame_ms: float, full_scale_v: float
) -> None:
    """Publish RECORDINGS (WAV, FLAC, OGG, Vallen .tradb) as if they happened now.

    Each replay is a run of its own: its sensors are called replay/<run>/<file>/ch<n>, so that it never mixes with
    live data, and `aewatch alerts` leaves it out unless asked.
    """
    in_force = settings()
    from producers.sources import RecordingError

    run_name = run_name or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with plain_errors(RecordingError):
        sources = open_all(recordings, run_name, full_scale_v, frame_ms / 1000)
        click.echo(f"run {run_name}: {', '.join(sensor for source in sources for sensor in source.sensors)}", err=True)
    publish(in_force, sources, rate)


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
    sent = publish(in_force, [source_of(plan, frame_ms / 1000, time.time_ns())], rate)
    if report:
        fields = ("frames", "samples", "bytes")
        report.write_text(json.dumps({name: getattr(sent, f"acknowledged_{name}") for name in fields}))


def publish(in_force: Settings, sources: Sequence[Source], rate: float | None) -> PublisherCounts:
    """Publish until the sources end or SIGTERM comes; either way what was taken is acknowledged before it ends."""
    from aiokafka.errors import KafkaError

    from deploy.topics import TopicError
    from producers.publisher import DeliveryError
    from producers.sources import RecordingError

    totals = [source.total_frames for source in sources]
    total = None if None in totals else sum(frames or 0 for frames in totals)
    with plain_errors(TopicError, KafkaError, DeliveryError, RecordingError), _bar(total) as advance:
        sent = asyncio.run(_play(in_force, sources, rate, advance))
    volume = f"{sent.acknowledged_samples} samples, {sent.acknowledged_bytes / 1e6:.1f} MB"
    click.echo(f"{sent.acknowledged_frames} frames, {volume} acknowledged", err=True)
    return sent


async def _play(
    in_force: Settings, sources: Sequence[Source], rate: float | None, advance: Callable[[Progress], None] | None
) -> PublisherCounts:
    from deploy.pipeline import stop_on_signals
    from deploy.topics import await_topics
    from producers.publisher import Publisher
    from producers.replay import replay as play

    stop = stop_on_signals()
    await await_topics(in_force.kafka)
    async with Publisher(in_force.kafka.client_options(), in_force.kafka.frames_topic) as publisher:
        playing = asyncio.create_task(play(sources, publisher, rate, advance))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
    return publisher.counts


@contextlib.contextmanager
def _bar(total_frames: int | None) -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar on stderr where somebody sees it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[position_s]:.1f} s played, {task.fields[behind_s]:.2f} s behind"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total_frames, position_s=0.0, behind_s=0.0)

        def advance(done: Progress) -> None:
            bar.update(task, completed=done.frames, position_s=done.position_s, behind_s=done.behind_s)

        yield advance
