"""From settings to running parts: the one place that knows which setting goes where."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from stream.windows import WindowSpec

if TYPE_CHECKING:
    from deploy.settings import Settings
    from deploy.systemd_notify import ServiceManager
    from model.bundle import BundleCard
    from model.engine import Engine
    from stream.alarms import AlarmRules
    from stream.model_board import Answer, Order
    from stream.watchdog import Watchdog
    from stream.worker import LiveModel

LOADING_LIMIT_S = 600.0  #: reading a bundle and checking batch sizes, on the slowest machine


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


async def run_worker(
    settings: Settings, bundle: str | None = None, *, watchdog: Watchdog, manager: ServiceManager
) -> None:
    """Run a worker until SIGTERM or SIGINT, with the model that was ordered or else the one named here.

    Parameters
    ----------
    watchdog
        Running; ends the process if it hangs.
    manager
        Told when the worker is ready.

    Raises
    ------
    BundleError, RulesError
        If the model cannot be used.
    stream.lag_watch.ConsumerStuck
        If messages wait, the broker answers, and nothing moves.
    deploy.role_pages.ListenError
        If the address for the pages cannot be listened on.
    deploy.topics.TopicError, KafkaError
        If Kafka is away for long, or refuses.
    redis.exceptions.RedisError
        If Redis does not let this user in.
    """
    from deploy.kafka_rights import Uses
    from deploy.role_metrics import worker_metrics
    from deploy.role_service import role_service
    from deploy.topics import await_topics
    from model.bundle import demo_bundle_path
    from stream.alert_store import AlertStore
    from stream.health import Health
    from stream.model_board import ModelBoard
    from stream.model_rollout import Loader, Rollout, await_orders, starting_model
    from stream.redis_watch import RedisWatch
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
    kafka = settings.kafka
    worker: Worker | None = None

    def health() -> Health:
        return Health(not_ready=("starting",)) if worker is None else worker.health()

    def metrics() -> bytes:
        return b"" if worker is None else worker_metrics(worker.snapshot(), worker.health(), watchdog.running())

    def load(wanted: Order | None) -> tuple[LiveModel, Answer | None]:
        with watchdog.limit("loading the model", LOADING_LIMIT_S, device=settings.model.device):
            return starting_model(wanted, own, loader)

    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as cleanup:
        await cleanup.enter_async_context(watchdog.loop(settings.worker.stall_limit_s))
        await cleanup.enter_async_context(role_service(settings.worker.listen, manager, health, metrics, stop))
        board = ModelBoard(url, prefix)
        cleanup.push_async_callback(board.close)
        outputs = (kafka.predictions_topic, kafka.shadow_predictions_topic, kafka.deadletter_topic)
        orders = await await_orders(board)
        # Before the model, which takes its time: what is refused is then told at once.
        await await_topics(kafka, Uses((kafka.windows_topic,), outputs, settings.worker.group))
        model, answer = await asyncio.to_thread(load, orders.live)
        store = AlertStore(
            url, prefix, keep_alerts=settings.redis.keep_alerts, late_after_s=settings.worker.late_after_s
        )
        cleanup.push_async_callback(store.close)
        redis_watch = RedisWatch(url)
        cleanup.push_async_callback(redis_watch.close)
        shadow = Shadow(client_options=kafka.client_options(), topic=kafka.shadow_predictions_topic)
        cleanup.push_async_callback(shadow.close)
        worker = Worker(
            model=model,
            shadow=shadow,
            store=store,
            client_options=kafka.client_options(),
            topics=WorkerTopics(kafka.windows_topic, kafka.predictions_topic, kafka.deadletter_topic),
            group=settings.worker.group,
            batch_windows=settings.worker.batch_windows,
            batch_delay_s=settings.worker.batch_delay_ms / 1000,
            feature_threshold_db_ae=settings.worker.feature_threshold_db_ae,
            inference_limit_s=settings.worker.inference_limit_s,
            watchdog=watchdog,
            redis_watch=redis_watch,
        )
        rollout = Rollout(
            board=board, worker=worker, shadow=shadow, loader=loader, group=settings.worker.group, answer=answer
        )
        cleanup.push_async_callback(rollout.leave)
        following = asyncio.create_task(rollout.run(), name="rollout")
        try:
            set_on_signals(stop)
            await worker.run(stop)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


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
    set_on_signals(stop)
    return stop


def set_on_signals(stop: asyncio.Event) -> None:
    """Let SIGTERM and SIGINT set the event, once each; the second one ends the process as usual."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
