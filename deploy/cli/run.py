"""`aewatch window` and `aewatch worker`: the two long-running processes of the stream."""

from __future__ import annotations

import asyncio
import sys

import click

from deploy.cli.session import plain_errors, settings, without_password


@click.command()
@click.option("--bundle", metavar="DIR", help="Model bundle that says how to cut windows (default: the settings').")
def window(bundle: str | None) -> None:
    """Run a window agent until SIGTERM or Ctrl-C.

    Several at once share the partitions of the frames topic.
    """
    in_force = settings()
    from deploy.pipeline import window_spec
    from deploy.topics import TopicError, await_topics
    from model.bundle import BundleError, read_card
    from stream.window_agent import run_window_agent

    with plain_errors(BundleError, TopicError):
        card = read_card(in_force.bundle_path(bundle))
        asyncio.run(await_topics(in_force.kafka))
    kafka, agent = in_force.kafka, in_force.window_agent
    sys.exit(
        run_window_agent(
            bootstrap=kafka.bootstrap_servers,
            client_options=kafka.client_options(),
            spec=window_spec(card),
            frames_topic=kafka.frames_topic,
            windows_topic=kafka.windows_topic,
            deadletter_topic=kafka.deadletter_topic,
            group=agent.group,
            max_message_bytes=agent.max_message_bytes,
            hold_s=agent.hold_s,
            hold_bytes=agent.hold_bytes,
        )
    )


@click.command()
@click.option("--bundle", metavar="DIR", help="Model bundle (default: the settings').")
def worker(bundle: str | None) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Several at once share the partitions of the windows topic.
    """
    in_force = settings()
    from aiokafka.errors import KafkaError
    from redis.exceptions import RedisError

    from deploy.pipeline import run_worker
    from deploy.topics import TopicError
    from model.bundle import BundleError
    from stream.redis_connection import way_out
    from stream.tls_files import TlsFilesError

    with plain_errors(BundleError, TopicError, KafkaError, TlsFilesError):
        try:
            asyncio.run(run_worker(in_force, bundle))
        except RedisError as error:
            place = without_password(in_force.redis.url.get_secret_value())
            raise click.ClickException(f"{place}: {error}; {way_out(error)}") from error
