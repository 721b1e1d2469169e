"""`aewatch up`, `down`, `status`: the local Kafka and Redis-compatible server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.session import plain_errors, settings

if TYPE_CHECKING:
    from deploy.local_stack import LocalStack
    from deploy.settings import Settings

_data_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Data and logs (default: the settings')."
)


def _stack(in_force: Settings, data_dir: Path | None, kafka_port: int | None, redis_port: int | None) -> LocalStack:
    from deploy.local_stack import LocalStack
    from deploy.local_stack.kafka_jars import terminal_progress

    return LocalStack(
        data_dir or in_force.stack.data_dir,
        kafka_port or in_force.stack.kafka_port,
        redis_port or in_force.stack.redis_port,
        progress=terminal_progress("Kafka"),
    )


@click.command()
@_data_dir
@click.option("--kafka-port", type=click.IntRange(1, 65534), help="Port of Kafka; the next one is taken too.")
@click.option("--redis-port", type=click.IntRange(1, 65535), help="Port of the Redis-compatible server.")
def up(data_dir: Path | None, kafka_port: int | None, redis_port: int | None) -> None:
    """Start a real single-node Kafka and a Redis-compatible server on 127.0.0.1 and leave them running.

    Their data survive a restart. Every other command finds them by default; with other ports than the default ones
    set AEWATCH_KAFKA__BOOTSTRAP_SERVERS and AEWATCH_REDIS__URL as this command prints them.
    """
    import asyncio

    in_force = settings()
    from deploy.local_stack import StackError
    from deploy.topics import TopicError, ensure_topics

    with plain_errors(StackError, TopicError):
        stack = _stack(in_force, data_dir, kafka_port, redis_port)
        began = time.monotonic()
        stack.up()
        kafka = in_force.kafka.model_copy(update={"bootstrap_servers": stack.kafka_bootstrap})
        asyncio.run(ensure_topics(kafka))
    click.echo(f"Kafka {stack.kafka_bootstrap}  Redis {stack.redis_url}  ready after {time.monotonic() - began:.1f} s")
    click.echo(f"data and logs in {stack.data_dir}; `aewatch down` stops them")
    if stack.kafka_bootstrap != in_force.kafka.bootstrap_servers:
        click.echo(f"export AEWATCH_KAFKA__BOOTSTRAP_SERVERS={stack.kafka_bootstrap}")
    if stack.redis_url.rstrip("/0") != in_force.redis.url.get_secret_value().rstrip("/0"):
        click.echo(f"export AEWATCH_REDIS__URL={stack.redis_url}")


@click.command()
@_data_dir
def down(data_dir: Path | None) -> None:
    """Stop what `aewatch up` started; the data stay."""
    in_force = settings()
    from deploy.local_stack import StackError

    with plain_errors(StackError):
        stopped = _stack(in_force, data_dir, None, None).down()
    click.echo("stopped" if stopped else "nothing was running")


@click.command()
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(data_dir: Path | None, as_json: bool) -> None:
    """Say whether the local stack runs; exit status 1 if a part of it does not."""
    in_force = settings()
    found = _stack(in_force, data_dir, None, None).status()
    if as_json:
        fields = ("running", "address", "pid", "started_s", "memory_bytes")
        click.echo(json.dumps({one.name: {field: getattr(one, field) for field in fields} for one in found}))
    else:
        for one in found:
            state = (
                f"{one.address}  pid {one.pid}  {(one.memory_bytes or 0) / 2**20:.0f} MiB"
                if one.running
                else "not running"
            )
            click.echo(f"{one.name:<8} {state}  log {one.log}")
    raise SystemExit(0 if all(one.running for one in found) else 1)
