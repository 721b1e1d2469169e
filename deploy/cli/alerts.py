"""`aewatch alerts` and `aewatch sensors`: for the control room."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from stream.alert_filter import AlertFilter
    from stream.alerts import Alert
    from stream.subscribe import Alerts

PRIORITIES = ("critical", "high", "medium", "low", "info")
COLOURS = {"critical": "red", "high": "red", "medium": "yellow", "low": "cyan", "info": "green"}
DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):
    """`90s`, `30m`, `8h`, `2d`; seconds as a number."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        unit = DURATION_UNITS_S.get(value[-1:], 0)
        try:
            seconds = float(value[:-1]) * unit if unit else float(value)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is no duration; write 90s, 30m, 8h or 2d", param, ctx)
        return seconds


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose alerts."""
    for option in (
        click.option("--replays", is_flag=True, help="Alerts of replays too."),
        click.option("--priority", type=click.Choice(PRIORITIES), default="info", help="So urgent or more."),
        click.option(
            "--class", "conditions", multiple=True, metavar="GLOB", help="Only these conditions: knock, sensor.*"
        ),
        click.option("--sensor", "sensors", multiple=True, metavar="GLOB", help="Only these sensors: plant1/*"),
    ):
        command = option(command)
    return command


def alert_filter(sensors: tuple[str, ...], conditions: tuple[str, ...], priority: str, replays: bool) -> AlertFilter:
    """The options as a filter."""
    from stream.alert_filter import AlertFilter
    from stream.alerts import Priority

    return AlertFilter(sensors or ("*",), conditions or ("*",), Priority(priority), replays)


@click.group(invoke_without_command=True)
@click.option("--since", default="$", metavar="CURSOR", help="Begin after this cursor; 0: with the oldest alert kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with its cursor.")
@filters
@click.pass_context
def alerts(ctx: click.Context, /, since: str, as_json: bool, **chosen: Any) -> None:
    """Follow alerts as they come, until Ctrl-C.

    Each line begins with its cursor: give the last one you have seen to --since, and you get all that came while you
    were away, each once.
    """
    if ctx.invoked_subcommand is not None:
        return

    async def follow(client: Alerts) -> None:
        wanted = alert_filter(**chosen)

        def say(trimmed: Exception) -> None:
            click.echo(f"missing: {trimmed}", err=True)

        async for cursor, alert in client.follow(since, wanted, on_trimmed=say):
            print_alert(alert, cursor, as_json)

    with contextlib.suppress(KeyboardInterrupt):
        run(follow)


@alerts.command(name="list")
@click.option("--since", default="0", metavar="CURSOR", help="After this cursor, or this time in ms since 1970.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with its cursor.")
@filters
def list_alerts(since: str, as_json: bool, **chosen: Any) -> None:
    """Print the alerts that are in Redis now, oldest first."""

    async def show(client: Alerts) -> None:
        def say(trimmed: Exception) -> None:
            click.echo(f"missing: {trimmed}", err=True)

        async for cursor, alert in client.history(since, wanted=alert_filter(**chosen), on_trimmed=say):
            print_alert(alert, cursor, as_json)

    run(show)


@alerts.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@filters
def active(as_json: bool, **chosen: Any) -> None:
    """Print what is open or shelved now, most urgent first."""

    async def show(client: Alerts) -> None:
        found = await client.active(alert_filter(**chosen))
        for alert in found:
            print_alert(alert, None, as_json)
        if not found and not as_json:
            click.echo("nothing is open")

    run(show)


by_option = click.option("--by", default=getpass.getuser, show_default="your user name", help="Who.")
note_option = click.option("--note", default="", help="Why.")


@alerts.command()
@click.argument("episode")
@by_option
@note_option
def ack(episode: str, by: str, note: str) -> None:
    """Acknowledge an open EPISODE (the id of an alert, with or without its -number)."""

    async def act(client: Alerts) -> None:
        print_alert(await client.acknowledge(episode.partition("-")[0], by=by, note=note), None, False)

    run(act)


@alerts.command()
@click.argument("sensor")
@click.argument("condition")
@click.option("--for", "for_s", type=Duration(), required=True, help="How long: 30m, 8h, 2d.")
@by_option
@note_option
def shelve(sensor: str, condition: str, for_s: float, by: str, note: str) -> None:
    """Silence CONDITION on SENSOR for a while; it goes on being watched."""

    async def act(client: Alerts) -> None:
        print_alert(await client.shelve(sensor, condition, for_s=for_s, by=by, note=note), None, False)

    run(act)


@alerts.command()
@click.argument("sensor")
@click.argument("condition")
@by_option
@note_option
def unshelve(sensor: str, condition: str, by: str, note: str) -> None:
    """End a shelf now."""

    async def act(client: Alerts) -> None:
        for alert in await client.unshelve(sensor, condition, by=by, note=note):
            print_alert(alert, None, False)

    run(act)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--sensor", "sensors", multiple=True, metavar="GLOB", help="Only these: plant1/*")
@click.option("--replays", is_flag=True, help="Sensors of replays too.")
@click.option(
    "--producer",
    metavar="HOST:PORT",
    help="As the `aewatch produce` there sees them: rate, lag, gaps, clipping, spool.",
)
def sensors(as_json: bool, sensors: tuple[str, ...], replays: bool, producer: str | None) -> None:
    """List sensors with their last window: when, what it sounded like, how loud, and what is open."""
    if producer is not None:
        from deploy.cli.produce_sensors import show_producer

        show_producer(producer, sensors, as_json)
        return

    async def show(client: Alerts) -> None:
        found = await client.sensors(alert_filter(sensors, (), "info", replays))
        if as_json:
            for one in found:
                click.echo(json.dumps(asdict(one)))
            return
        width = max([len(one.sensor) for one in found], default=0)
        for one in found:
            marks = [click.style(name, fg="red") for name in one.open] + [f"({name} shelved)" for name in one.shelved]
            click.echo(
                f"{one.sensor:<{width}}  {event_time(one.last_end_ns, one.sensor)}  "
                f"{one.windows + one.hits:>8} windows  "
                f"{one.peak_db_ae:5.1f} dB_AE  {one.label} {one.probability:.2f}  {' '.join(marks)}"
            )
        if not found:
            click.echo("no sensor has been seen")

    run(show)


def run(act: Callable[[Alerts], Awaitable[None]]) -> None:
    """Do something with a connection from the settings; what a user can mend ends with one line."""
    in_force = settings()
    from redis.exceptions import RedisError

    from stream.hidden_secrets import without_password
    from stream.operator_actions import OperatorError
    from stream.redis_connection import way_out
    from stream.subscribe import Alerts, BadCursor

    url = in_force.redis.connection_url()

    async def connected() -> None:
        async with Alerts(url, in_force.redis.prefix) as client:
            await act(client)

    with plain_errors(OperatorError, BadCursor, ValueError):
        try:
            asyncio.run(connected())
        except BrokenPipeError:
            raise  # whoever read our output has gone, as `head` does; that is no trouble with Redis
        except (RedisError, OSError) as error:
            raise click.ClickException(
                f"{without_password(in_force.redis.url.get_secret_value())}: {error}; {way_out(error)}"
            ) from error


def print_alert(alert: Alert, cursor: str | None, as_json: bool) -> None:
    """One alert on a line of its own."""
    if as_json:
        import msgspec

        fields = msgspec.to_builtins(alert) if cursor is None else {"cursor": cursor, **msgspec.to_builtins(alert)}
        click.echo(json.dumps(fields))
        return
    what = click.style(f"{alert.transition} {alert.condition}", fg=COLOURS[alert.priority])
    parts = [cursor or "", event_time(alert.time_ns, alert.sensor), what, alert.sensor, str(alert.priority)]
    if alert.features is not None:
        parts.append(f"p={alert.probability:.2f} {alert.features.peak_db_ae:.1f} dB_AE")
    parts.append(alert.id)
    parts += [f"by {alert.by}"] if alert.by else []
    parts += [f'"{alert.note}"'] if alert.note else []
    if alert.delay_s:
        parts.append(f"late by {span(alert.delay_s)}")
    elif alert.late:
        parts.append("late")
    click.echo("  ".join(part for part in parts if part))


def span(seconds: float) -> str:
    """A time in its two largest units: `2 h 13 min`."""
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size_s)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def event_time(time_ns: int, sensor: str) -> str:
    """UTC to the millisecond; of a replayed recording that says no date, since its beginning: `+12.345 s`."""
    from stream.alerts import CLOCKS_ARE_SET_NS, run_of

    if run_of(sensor) and time_ns < CLOCKS_ARE_SET_NS:
        return f"+{time_ns / 1e9:.3f} s"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_ns // 10**9)) + f".{time_ns // 10**6 % 1000:03d}Z"
