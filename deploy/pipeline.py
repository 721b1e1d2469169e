"""From settings to running parts: the one place that knows which setting goes where."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from stream.windows import WindowSpec

if TYPE_CHECKING:
    from deploy.settings import Settings
    from model.bundle import BundleCard
    from model.engine import Engine
    from stream.alarms import AlarmRules


def window_spec(card: BundleCard) -> WindowSpec:
    """How the bundle wants windows to be cut."""
    return WindowSpec(length=card.window_samples, hop=card.hop_samples, rate_hz=card.window_rate_hz)


def alarm_rules(settings: Settings, card: BundleCard) -> AlarmRules:
    """The alarm rules: defaults from the roles of the bundle's labels, then the settings' own.

    Raises
    ------
    stream.alarms.RulesError
        Naming a rule that does not fit.
    """
    from stream.alarms import AlarmRules

    return AlarmRules.for_labels(card.roles, settings.alarms)


def build_engine(settings: Settings, bundle: str | None = None) -> Engine:
    """The engine of the bundle named here, or else in the settings."""
    from model.engine import Engine

    return Engine(
        settings.bundle_path(bundle),
        device=settings.model.device,
        precision=settings.model.precision,
        threads=settings.model.threads,
    )


async def run_worker(settings: Settings, bundle: str | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT, with the model that was ordered or else the one named here.

    Raises
    ------
    BundleError, RulesError
        If the model cannot be used.
    deploy.topics.TopicError, KafkaError
        If Kafka is away for long, or refuses.
    redis.exceptions.RedisError
        If Redis does not let this user in.
    """
    from deploy.topics import await_topics
    from model.bundle import demo_bundle_path
    from stream.alert_store import AlertStore
    from stream.model_board import ModelBoard
    from stream.model_rollout import Loader, Rollout, await_orders, starting_model
    from stream.shadow import Shadow
    from stream.worker import Worker, WorkerTopics

    url, prefix = settings.redis.connection_url(), settings.redis.prefix
    own = settings.bundle_path(bundle).absolute()
    loader = Loader(
        places=(own, demo_bundle_path()),
        store=settings.model.store.expanduser(),
        engine=lambda folder: build_engine(settings, str(folder)),
        rules=lambda card: alarm_rules(settings, card),
    )
    board = ModelBoard(url, prefix)
    model, answer = starting_model((await await_orders(board)).live, own, loader)
    await await_topics(settings.kafka)
    store = AlertStore(
        url, prefix, keep_alerts=settings.redis.keep_alerts, late_after_s=settings.worker.late_after_s
    )
    shadow = Shadow(client_options=settings.kafka.client_options(), topic=settings.kafka.shadow_predictions_topic)
    worker = Worker(
        model=model,
        shadow=shadow,
        store=store,
        client_options=settings.kafka.client_options(),
        topics=WorkerTopics(
            settings.kafka.windows_topic, settings.kafka.predictions_topic, settings.kafka.deadletter_topic
        ),
        group=settings.worker.group,
        batch_windows=settings.worker.batch_windows,
        batch_delay_s=settings.worker.batch_delay_ms / 1000,
        feature_threshold_db_ae=settings.worker.feature_threshold_db_ae,
    )
    rollout = Rollout(
        board=board, worker=worker, shadow=shadow, loader=loader, group=settings.worker.group, answer=answer
    )
    following = asyncio.create_task(rollout.run(), name="rollout")
    try:
        await worker.run(stop_on_signals())
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await rollout.leave()
        await shadow.close()
        await board.close()
        await store.close()


async def await_consumers(settings: Settings, patience_s: float) -> None:
    """Wait until a window agent and a worker have their partitions, so that what is published is answered at once.

    Raises
    ------
    TimeoutError
        Naming the groups that are still without a member.
    """
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    waiting = [settings.window_agent.group, settings.worker.group]
    admin = AIOKafkaAdminClient(**settings.kafka.client_options())
    await admin.start()
    try:
        async with asyncio.timeout(patience_s):
            while waiting:
                try:
                    answers = await admin.describe_consumer_groups(waiting)
                except KafkaError:
                    answers = []  # the coordinator of a broker that has just started says so for a moment
                groups = [group for answer in answers for group in answer.to_object()["groups"]]
                steady = {group["group"] for group in groups if group["state"] == "Stable" and group["members"]}
                waiting = [group for group in waiting if group not in steady]
                if waiting:
                    await asyncio.sleep(0.1)
    except TimeoutError:
        names = " and ".join(waiting)
        raise TimeoutError(f"nobody consumes in group {names} after {patience_s:g} s; are they running?") from None
    finally:
        await admin.close()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, once each; the second one ends the process as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop
