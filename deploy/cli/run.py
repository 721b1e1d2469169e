"""`aewatch window` and `aewatch worker`: the two long-running processes of the stream."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import click

from deploy.cli.session import plain_errors, settings, without_password

if TYPE_CHECKING:
    from stream.watchdog import Watchdog
    from stream.window_agent import WindowAgent


@click.command()
@click.option("--bundle", metavar="DIR", help="Model bundle that says how to cut windows (default: the settings').")
def window(bundle: str | None) -> None:
    """Run a window agent until SIGTERM or Ctrl-C.

    Several at once share the partitions of the frames topic.
    """
    in_force = settings()
    from deploy.kafka_rights import Uses
    from deploy.pipeline import window_spec
    from deploy.role_metrics import agent_metrics
    from deploy.role_pages import ListenError
    from deploy.role_service import role_service
    from deploy.systemd_notify import WATCHDOG, ServiceManager
    from deploy.topics import TopicError, await_topics
    from model.bundle import BundleError, read_card
    from stream.window_agent import run_window_agent

    kafka, agent = in_force.kafka, in_force.window_agent
    manager = ServiceManager()
    stacks_on_abort()

    def beside(running: WindowAgent, watchdog: Watchdog, stop: asyncio.Event) -> AbstractAsyncContextManager[None]:
        def metrics() -> bytes:
            return agent_metrics(running.snapshot(), running.health(), watchdog.running())

        return role_service(agent.listen, manager, running.health, metrics, stop)

    with plain_errors(BundleError, TopicError, ListenError):
        card = read_card(in_force.bundle_path(bundle))
        uses = Uses((kafka.frames_topic,), (kafka.windows_topic, kafka.deadletter_topic), agent.group)
        asyncio.run(await_topics(kafka, uses))
        status = run_window_agent(
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
            stall_limit_s=agent.stall_limit_s,
            on_tick=lambda: manager.say(WATCHDOG),
            beside=beside,
        )
    sys.exit(status)


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
    from deploy.role_pages import ListenError
    from deploy.systemd_notify import WATCHDOG, ServiceManager
    from deploy.topics import TopicError
    from model.bundle import BundleError
    from stream.lag_watch import EXIT_STUCK, ConsumerStuck
    from stream.redis_connection import way_out
    from stream.tls_files import TlsFilesError
    from stream.watchdog import Watchdog

    manager = ServiceManager()
    stacks_on_abort()
    with (
        plain_errors(BundleError, TopicError, KafkaError, TlsFilesError, ListenError),
        Watchdog(lambda: manager.say(WATCHDOG)) as watchdog,
    ):
        try:
            asyncio.run(run_worker(in_force, bundle, watchdog=watchdog, manager=manager))
        except ConsumerStuck as error:
            logging.getLogger("aewatch.worker").critical(str(error))
            sys.exit(EXIT_STUCK)
        except RedisError as error:
            place = without_password(in_force.redis.url.get_secret_value())
            raise click.ClickException(f"{place}: {error}; {way_out(error)}") from error


def stacks_on_abort() -> None:
    """Let SIGABRT, with which systemd ends what its watchdog missed, write the stack of every thread to stderr."""
    faulthandler.enable()
