"""`aewatch replay`: recordings into Kafka as if they happened now."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.alerts import Duration
from deploy.cli.produce import full_scale_option
from deploy.cli.publish import parse_rate, publish
from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from deploy.last_windows import PublishedSamples
    from deploy.replay_experiment import Expected
    from deploy.replay_recordings import Opened
    from deploy.replay_report import Played, ReplayReport
    from deploy.settings import Settings
    from producers.replay_track import Passage
    from stream.records import Frame

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


class Moment(click.ParamType):
    """`2026-11-23T08:00Z`, or `-1h` before now, as nanoseconds UTC."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds since 1970. Without a zone it is UTC."""
        if isinstance(value, int):
            return value
        if value.startswith("-"):
            return time.time_ns() - int(Duration().convert(value[1:], param, ctx) * NS_PER_S)
        try:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no moment; write 2026-11-23T08:00Z, or -1h, -30m, -2d before now", param, ctx)


def _new_run() -> str:
    """Two replays may begin in one second."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{secrets.token_hex(3)}"


def parse_channels(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """What lies between commas."""
    if value is None:
        return ()
    channels = tuple(part.strip() for part in value.split(","))
    if not all(channels):
        raise click.BadParameter(f"{value!r}: a channel is missing between commas; write 0,2 or 'ch*'")
    return channels


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
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
@click.option(
    "--report",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Hold what is found against the recordings' labels; writes report.json and report.html there.",
)
@click.option(
    "--wait",
    "wait_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 86_400),
    help="With --report: how long the pipeline may take after the last frame, s.",
)
@click.option(
    "--bundle",
    "bundles",
    metavar="DIR",
    multiple=True,
    help="With --report: publish nothing, try this bundle on the recordings here. Twice: compare the two.",
)
@click.option(
    "--from-topic", "topic", metavar="TOPIC", help="In place of PATHs: what sensors published, as Kafka keeps it."
)
@click.option(
    "--since", "since_ns", type=Moment(), help="With --from-topic: published from then on, 2026-11-23T08:00Z or -1h."
)
@click.option("--until", "until_ns", type=Moment(), help="Likewise, to before then.  [default: to now]")
@click.pass_context
def replay(
    ctx: click.Context,
    /,
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
    report: Path | None,
    wait_s: float,
    bundles: tuple[str, ...],
    topic: str | None,
    since_ns: int | None,
    until_ns: int | None,
) -> None:
    """Publish recordings as if they happened now.

    PATHs play side by side: a recording (WAV, FLAC, OGG, Vallen .tradb, ...), or a folder or a data set's manifest,
    whose recordings play one after another.

    Each replay is a run of its own: its sensors are called replay/<run>/<file>/ch<n>, so that it never mixes with
    live data, and `aewatch alerts` leaves it out unless asked. In a terminal keys pause it, step, and change its pace.
    """
    _check_what_is_played(ctx, paths, topic, since_ns, until_ns)
    if topic is not None and since_ns is not None:
        _replay_topic(settings(), topic, since_ns, until_ns, run_name or _new_run(), rate, start_paused)
        return
    if duration_ns == 0:
        raise click.UsageError("--duration 0: nothing would be played; leave it out to play all")
    _check_sensors(sensor_pattern, live)
    _check_experiment(report, bundles, loop, live)
    in_force = settings()
    from deploy.event_labels import LabelsError
    from deploy.last_windows import PublishedSamples
    from deploy.replay_recordings import Asked, open_paths
    from deploy.replay_report import PlayedSensors
    from model.data.manifest import ManifestError
    from producers.replay import Controls
    from producers.replay_track import Passage
    from producers.sources import RecordingError
    from producers.sources.reading import SENSOR_PATTERN

    given_run = run_name
    run_name = run_name or _new_run()
    asked = Asked(
        run=run_name,
        sensor_pattern=sensor_pattern or SENSOR_PATTERN,
        frame_s=frame_ms / 1000,
        full_scale_v=full_scale_v,
        rate_hz=rate_hz,
        channels=channels,
    )
    with plain_errors(RecordingError, ManifestError, LabelsError, OSError):
        opened = open_paths(paths, asked)
        expected = _expected(paths, opened, report) if report else None
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
    in_part = bool(start_ns) or duration_ns is not None
    if expected and report and bundles:
        _try_bundles(in_force, bundles, opened, passage, expected, run_name, in_part, report)
        return
    played, published = PlayedSensors(), PublishedSamples()

    def note(frame: Frame) -> None:
        played.note(frame)
        published.note(frame)

    # A run of a name of its own has no alerts yet; one that was named may repeat alerts that were raised before.
    cursor = "0" if expected is None or (given_run and not live) else _cursor(in_force)
    controls = Controls(rate, paused=start_paused)
    on_frame = note if expected else None
    sent = publish(in_force, opened.sources, controls, passage, with_keys=True, on_frame=on_frame)
    incomplete = False
    if expected and report:
        incomplete = _report_live(
            in_force,
            played.all(),
            published,
            cursor,
            wait_s,
            expected,
            run_name,
            in_part or sent.stopped or bool(sent.failures),
            report,
        )
    if failed := len(opened.failures) + len(sent.failures):
        raise click.ClickException(f"{failed} recording{'s' * (failed > 1)} failed; all others were played")
    if start_ns and not sent.done.samples and not sent.stopped:
        raise click.ClickException(f"--start {start_ns / NS_PER_S:g} s: no recording has samples there")
    if incomplete:
        raise click.ClickException("the report is not of everything, as its notes say")


#: What can be said of a replay from a topic.
OF_TOPICS = {"topic", "since_ns", "until_ns", "run_name", "rate", "start_paused"}


def _check_what_is_played(
    ctx: click.Context, paths: Sequence[Path], topic: str | None, since_ns: int | None, until_ns: int | None
) -> None:
    """Recordings or a topic.

    Raises
    ------
    click.UsageError
        If it is neither, both, or options are given that mean nothing there.
    """
    if topic is None:
        if since_ns is not None or until_ns is not None:
            raise click.UsageError("--since and --until: are of --from-topic; --start and --duration of recordings")
        if not paths:
            raise click.UsageError("Missing argument 'PATH...': name recordings, or a topic with --from-topic")
        return
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in OF_TOPICS
        and ctx.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
    ]
    if paths:
        raise click.UsageError("--from-topic: takes the place of recordings; leave the PATHs out")
    if given:
        raise click.UsageError(f"--from-topic: plays frames as they were, {', '.join(given)} cannot be of them")
    if since_ns is None:
        raise click.UsageError("--from-topic: say from when on with --since, as -1h or 2026-11-23T08:00Z")
    if until_ns is not None and until_ns <= since_ns:
        raise click.UsageError("--until: is not after --since")


def _replay_topic(
    in_force: Settings,
    topic: str,
    since_ns: int,
    until_ns: int | None,
    run: str,
    rate: float | None,
    start_paused: bool,
) -> None:
    from deploy.cli.publish import publish_playing
    from producers.replay import Controls, FrameSink, Progress
    from producers.topic_replay import History, TopicCounts, replay_topic
    from stream.records import BadRecord, decode_sensor

    with plain_errors(BadRecord):
        decode_sensor(f"replay/{run}/x".encode("utf-8", "surrogateescape"))
    if "/" in run:
        raise click.UsageError(f"--run {run}: a run's name is part of sensor ids, and has letters but no slash")
    controls = Controls(rate, paused=start_paused)
    history, counts = History(topic, since_ns, until_ns), TopicCounts()

    def play(sink: FrameSink, note: Callable[[Progress], None]) -> Coroutine[Any, Any, Progress]:
        return replay_topic(in_force.kafka.client_options(), history, run, sink, controls, note, counts)

    click.echo(f"run {run}: what {topic} holds, as replay/{run}/...", err=True)
    expected_s = ((until_ns or time.time_ns()) - since_ns) / NS_PER_S
    publish_playing(in_force, play, controls, expected_s, with_keys=True)
    if counts.replays:
        click.echo(f"left out: {counts.replays} messages of earlier replays", err=True)
    for why in counts.told:
        click.echo(f"not used: {why}", err=True)
    if counts.bad:
        raise click.ClickException(f"{counts.bad} frames or messages could not be used; all others were played")


def _check_experiment(report: Path | None, bundles: Sequence[str], loop: bool, live: bool) -> None:
    """Which options go together.

    Raises
    ------
    click.UsageError
        Naming those that do not.
    """
    if bundles and report is None:
        raise click.UsageError("--bundle: tries a model on labelled recordings; say with --report where to write")
    if len(bundles) > 2:
        raise click.UsageError(f"--bundle: given {len(bundles)} times; two are compared at once")
    if report is not None and loop:
        raise click.UsageError("--report: cannot be of a --loop, whose turns are the same; leave one out")
    if bundles and live:
        raise click.UsageError("--bundle: publishes nothing, so nothing is --live; leave one out")


def _expected(paths: Sequence[Path], opened: Opened, report: Path) -> Expected:
    """What the labels say; makes the folder of the report, as nobody wants to hear at the end that it cannot be."""
    from deploy.replay_experiment import expected_of
    from deploy.replay_recordings import is_manifest

    manifests = [path for path in paths if is_manifest(path)]
    expected = expected_of(opened.owners, manifests)
    report.mkdir(parents=True, exist_ok=True)
    return expected


def _cursor(in_force: Settings) -> str:
    import asyncio

    from redis.exceptions import RedisError

    from deploy.replay_drain import alert_cursor

    with plain_errors(RedisError):
        return asyncio.run(alert_cursor(in_force))


def _report_live(
    in_force: Settings,
    played: Mapping[str, Played],
    published: PublishedSamples,
    cursor: str,
    wait_s: float,
    expected: Expected,
    run: str,
    in_part: bool,
    folder: Path,
) -> bool:
    """Wait for the pipeline's alerts and report them; whether some may be missing."""
    import asyncio

    from aiokafka.errors import KafkaError
    from redis.exceptions import RedisError

    from deploy.pipeline import window_spec
    from deploy.replay_drain import drain
    from deploy.replay_experiment import Heard, model_of, report_of
    from model.bundle import BundleError, read_card

    with plain_errors(KafkaError, RedisError, BundleError):
        card = read_card(in_force.bundle_path())
        click.echo("waiting for the pipeline's alerts", err=True)
        last = published.last_windows(window_spec(card))
        drained = asyncio.run(drain(in_force, played, last, cursor, wait_s))
    heard = Heard(model_of(card), drained.alerts, drained.notes)
    _write(report_of(run, expected, played, [heard], in_part=in_part), folder)
    return bool(drained.notes)


def _try_bundles(
    in_force: Settings,
    bundles: Sequence[str],
    opened: Opened,
    passage: Passage,
    expected: Expected,
    run: str,
    in_part: bool,
    folder: Path,
) -> None:
    """The recordings through each bundle in this process, and the report of what each found.

    Raises
    ------
    click.ClickException
        If a bundle cannot be used, or a recording failed; then the report is of the others.
    """
    from deploy.pipeline import alarm_rules, build_engine, window_spec
    from deploy.replay_experiment import Heard, model_of, report_of
    from deploy.replay_report import PlayedSensors
    from deploy.replay_trial import try_bundle
    from model.bundle import BundleError, read_card
    from stream.alarms import RulesError

    heard: list[Heard] = []
    failures = list(opened.failures)
    notes: list[str] = []
    with plain_errors(BundleError, RulesError):
        cards = [read_card(in_force.bundle_path(bundle)) for bundle in bundles]
        rules = [alarm_rules(in_force, card) for card in cards]
        for bundle, card, its_rules in zip(bundles, cards, rules, strict=True):
            click.echo(f"trying {card.name} {card.version}", err=True)
            played = PlayedSensors()
            trial = try_bundle(
                opened.sources,
                build_engine(in_force, bundle),
                window_spec(card),
                its_rules,
                in_force.worker.feature_threshold_db_ae,
                passage=passage,
                on_frame=played.note,
            )
            rejected = [f"not used: {reason}" for reason in trial.rejected[:TOLD_SENSORS]]
            heard.append(Heard(model_of(card), trial.alerts, rejected))
            if len(heard) == 1:
                failures += map(str, trial.failures)
                notes = [f"failed, so its events count only up to there: {failure}" for failure in trial.failures]
    for failure in failures[len(opened.failures) :]:
        click.echo(f"failed: {failure}", err=True)
    in_part = in_part or bool(notes)
    _write(report_of(run, expected, played.all(), heard, in_part=in_part, notes=notes), folder)
    if failures:
        raise click.ClickException(
            f"{len(failures)} recording{'s' * (len(failures) > 1)} failed; the report is of all others"
        )


def _write(report: ReplayReport, folder: Path) -> None:
    from deploy.replay_experiment import write_report
    from deploy.replay_report import summary
    from model.evaluation.report_plots import PlotError

    click.echo(summary(report))
    with plain_errors(OSError, PlotError):
        for path in write_report(report, folder):
            click.echo(f"wrote {path}", err=True)


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
