"""`aewatch replay`: recordings into Kafka as if they happened now."""

from __future__ import annotations

import re
import secrets
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from deploy.cli.produce import full_scale_option
from deploy.cli.publish import parse_rate, publish
from deploy.cli.session import plain_errors, settings

NS_PER_S = 1_000_000_000
REPLAY_PATTERN_START = "replay/{run}/"
TOLD_SENSORS = 10
MAX_FRAME_MS = 10_000.0
LAST_PART = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
FIRST_PART = re.compile(r"\d{1,4}", re.ASCII)


class MediaTime(click.ParamType):
    """`90.5`, `1:30.5` or `0:01:30.5`, as nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds, exactly."""
        if isinstance(value, int):
            return value
        *before, last = value.split(":")
        numbers = [Fraction(part) for part in (*before, last)] if _is_time(before, last) else []
        if not numbers or any(number >= 60 for number in numbers[1:]):
            self.fail(
                f"{value!r} is no time; write seconds (90.5) or hours, minutes and seconds (0:01:30.5)", param, ctx
            )
        seconds = Fraction(0)
        for number in numbers:
            seconds = seconds * 60 + number
        return int(seconds * NS_PER_S)


def _is_time(before: list[str], last: str) -> bool:
    return len(before) <= 2 and all(map(FIRST_PART.fullmatch, before)) and bool(LAST_PART.fullmatch(last))


class SampleRate(click.ParamType):
    """`44100`, `1e6` or `44100/3`, Hz."""

    name = "hz"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        """Exactly as written."""
        if isinstance(value, Fraction):
            return value
        from stream.records import MAX_RATE_HZ, MIN_RATE_HZ

        rate_hz = Fraction(0)
        # Looked at as a float first: as a fraction, 1e999999999 would fill the memory.
        if len(value) <= 40 and ("/" in value or MIN_RATE_HZ <= _float(value) <= MAX_RATE_HZ):
            try:
                rate_hz = Fraction(value)
            except (ValueError, ZeroDivisionError):
                rate_hz = Fraction(0)
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or max(rate_hz.as_integer_ratio()) >= 2**32:
            self.fail(
                f"{value!r} is no sample rate from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz; write 44100, 1e6 or 44100/3"
            )
        return rate_hz


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def parse_channels(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """What lies between commas."""
    if value is None:
        return ()
    channels = tuple(part.strip() for part in value.split(","))
    if not all(channels):
        raise click.BadParameter(f"{value!r}: a channel is missing between commas; write 0,2 or 'ch*'")
    return channels


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rate",
    default="1.0",
    callback=parse_rate,
    help="1.0 is the recordings' own pace, 10 ten times as fast, or 'max'.",
)
@click.option(
    "--start", "start_ns", default="0", type=MediaTime(), help="Begin here: seconds or HH:MM:SS, the recordings' own."
)
@click.option("--duration", "duration_ns", type=MediaTime(), help="Play so much of them, likewise.")
@click.option("--loop", is_flag=True, help="Over and over, until stopped; each turn is a new epoch.")
@click.option("--start-paused", is_flag=True, help="Wait for the space key.")
@click.option(
    "--align",
    type=click.Choice(["clock", "start"]),
    default="clock",
    show_default=True,
    help="Side by side by the recordings' own clocks, or all from their first samples on.",
)
@click.option(
    "--run", "run_name", metavar="NAME", help="Name of this replay (default: the time now); part of sensor ids."
)
@click.option("--channels", metavar="LIST", callback=parse_channels, help="Only these: numbers or globs, 0,2 or 'ch*'.")
@click.option(
    "--sensors",
    "sensor_pattern",
    metavar="PATTERN",
    help="Sensor ids, of {run} {file} {channel} {name} (default: replay/{run}/{file}/ch{channel}).",
)
@click.option("--live", is_flag=True, help="Publish as live data, under sensor ids that are no replay's.")
@click.option("--sample-rate", "rate_hz", type=SampleRate(), help="Of files that do not say theirs, Hz.")
@click.option(
    "--frame-ms",
    default=50.0,
    show_default=True,
    type=click.FloatRange(0.01, MAX_FRAME_MS),
    help="Frame duration, ms.",
)
@full_scale_option
def replay(
    paths: tuple[Path, ...],
    rate: float | None,
    start_ns: int,
    duration_ns: int | None,
    loop: bool,
    start_paused: bool,
    align: str,
    run_name: str | None,
    channels: tuple[str, ...],
    sensor_pattern: str | None,
    live: bool,
    rate_hz: Fraction | None,
    frame_ms: float,
    full_scale_v: float,
) -> None:
    """Publish recordings as if they happened now.

    PATHs play side by side: a recording (WAV, FLAC, OGG, Vallen .tradb, ...), or a folder or a data set's manifest,
    whose recordings play one after another.

    Each replay is a run of its own: its sensors are called replay/<run>/<file>/ch<n>, so that it never mixes with
    live data, and `aewatch alerts` leaves it out unless asked. In a terminal keys pause it, step, and change its pace.
    """
    if duration_ns == 0:
        raise click.UsageError("--duration 0: nothing would be played; leave it out to play all")
    _check_sensors(sensor_pattern, live)
    in_force = settings()
    from deploy.replay_recordings import Asked, open_paths
    from model.data.manifest import ManifestError
    from producers.replay import Controls
    from producers.replay_track import Passage
    from producers.sources import RecordingError
    from producers.sources.reading import SENSOR_PATTERN

    # Two replays may begin in one second.
    run_name = run_name or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{secrets.token_hex(3)}"
    asked = Asked(
        run=run_name,
        sensor_pattern=sensor_pattern or SENSOR_PATTERN,
        frame_s=frame_ms / 1000,
        full_scale_v=full_scale_v,
        rate_hz=rate_hz,
        channels=channels,
    )
    with plain_errors(RecordingError, ManifestError):
        opened = open_paths(paths, asked)
    for text in (*opened.notes, *opened.failures):
        click.echo(text, err=True)
    more = f" and {len(opened.sensors) - TOLD_SENSORS} more" if len(opened.sensors) > TOLD_SENSORS else ""
    click.echo(f"run {run_name}: {', '.join(opened.sensors[:TOLD_SENSORS])}{more}", err=True)
    passage = Passage(
        start_ns=start_ns,
        end_ns=None if duration_ns is None else start_ns + duration_ns,
        align_starts=align == "start",
        loop=loop,
        # So that the first sample played is of now, and a second time is later than the first.
        epoch_ns=time.time_ns() - start_ns if live else None,
    )
    sent = publish(in_force, opened.sources, Controls(rate, paused=start_paused), passage, with_keys=True)
    if failed := len(opened.failures) + len(sent.failures):
        raise click.ClickException(f"{failed} recording{'s' * (failed > 1)} failed; all others were played")
    if start_ns and not sent.done.samples and not sent.stopped:
        raise click.ClickException(f"--start {start_ns / NS_PER_S:g} s: no recording has samples there")


def _check_sensors(pattern: str | None, live: bool) -> None:
    """Live data is what reaches the control room; nobody must publish it by mistake.

    Raises
    ------
    click.UsageError
        If pattern and `--live` do not fit together.
    """
    if live and (pattern is None or pattern.startswith("replay/")):
        raise click.UsageError(
            "--live: needs --sensors with a pattern that does not begin with replay/, as plant1/{file}/ch{channel}; "
            "sensors of replays are never live"
        )
    if pattern is not None and not live and not pattern.startswith(REPLAY_PATTERN_START):
        raise click.UsageError(
            f"--sensors {pattern}: does not begin with {REPLAY_PATTERN_START}, so it would count as live data: its "
            "alerts reach the control room, and it mixes with what real sensors of these names send. "
            f"Begin it with {REPLAY_PATTERN_START}, or add --live if that is meant"
        )
