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
    from deploy.settings import remembered_ports

    stack = in_force.stack if data_dir is None else in_force.stack.model_copy(update={"data_dir": data_dir})
    kafka_before, redis_before = remembered_ports(stack)
    return LocalStack(
        stack.data_dir,
        kafka_port or (stack.kafka_port if "kafka_port" in stack.model_fields_set else kafka_before),
        redis_port or (stack.redis_port if "redis_port" in stack.model_fields_set else redis_before),
        progress=terminal_progress("Kafka"),
    )


@click.command()
@_data_dir
@click.option("--kafka-port", type=click.IntRange(1, 65534), help="Port of Kafka; the next one is taken too.")
@click.option("--redis-port", type=click.IntRange(1, 65535), help="Port of the Redis-compatible server.")
def up(data_dir: Path | None, kafka_port: int | None, redis_port: int | None) -> None:
    """Start a real single-node Kafka and a Redis-compatible server on 127.0.0.1 and leave them running.

    Their data survive a restart. Every other command finds them, at whatever ports; where another data folder is
    used, set AEWATCH_STACK__DATA_DIR for all of them.
    """
    import asyncio
    import logging

    in_force = settings()
    # A broker that is just starting makes the client library grumble; readiness is awaited anyway.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    from deploy.local_stack import StackError
    from deploy.settings import remember_ports
    from deploy.topics import TopicError, ensure_topics

    with plain_errors(StackError, TopicError):
        stack = _stack(in_force, data_dir, kafka_port, redis_port)
        began = time.monotonic()
        stack.up()
        remember_ports(stack.data_dir, stack.kafka.port, stack.valkey.port)
        kafka = in_force.kafka.model_copy(update={"bootstrap_servers": stack.kafka_bootstrap})
        asyncio.run(ensure_topics(kafka))
    click.echo(f"Kafka {stack.kafka_bootstrap}  Redis {stack.redis_url}  ready after {time.monotonic() - began:.1f} s")
    click.echo(f"data and logs in {stack.data_dir}; `aewatch down` stops them")


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
