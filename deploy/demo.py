"""The demo: the whole pipeline on simulated sensors, watched from outside, and a verdict at the end.

Everything it knows of the result it reads where a user would: frames and predictions from Kafka, alerts from Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.live import Live

from deploy.demo_report import Injected, SensorTraffic, Totals, expected_windows, reconcile
from deploy.demo_view import Progress, line, screen, summary
from deploy.local_stack import LocalStack
from deploy.local_stack.kafka_jars import terminal_progress
from deploy.pipeline import window_spec
from deploy.processes import Child, Children, ProcessError
from deploy.settings import Settings
from deploy.simulation import Plan, draw_plan, write_plan
from model.bundle import read_card
from producers.simulator import interval_of
from stream.predictions import decode_prediction
from stream.records import decode_frames
from stream.subscribe import Alerts
from stream.windows import WindowSpec

SENSORS = 8
READY_S = 120.0  # a slow machine imports torch for a while
DRAIN_S = 60.0


def run_demo(duration_s: float, seed: int, console: Console, keep: Path | None = None) -> int:
    """Run it all; 0 if every event raised its alert, nothing else did, and all counts add up."""
    begun = time.monotonic()
    plan = draw_plan(SENSORS, duration_s, seed)
    with contextlib.ExitStack() as cleanup:
        folder = keep or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="aewatch-demo-")))
        stack = LocalStack(folder / "stack", None, None, progress=terminal_progress("Kafka"))
        settings = _settings(stack)
        variables = {
            "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": stack.kafka_bootstrap,
            "AEWATCH_REDIS__URL": stack.redis_url,
        }
        children = cleanup.enter_context(Children(folder / "logs", variables))
        console.print("starting Kafka, the Redis-compatible server, a window agent and a worker …")
        # All at once: the agent and the worker wait for their brokers, and loading torch takes as long as Kafka.
        pipeline = [children.start("window-agent", ["window"]), children.start("worker", ["worker"])]
        try:
            with stack:
                children.await_message(pipeline, "ready", READY_S)
                write_plan(folder / "plan.json", plan)
                simulator = children.start(
                    "simulator",
                    ["simulate", "--plan", str(folder / "plan.json"), "--report", str(folder / "sent.json")],
                )
                console.print(f"signals flow after {time.monotonic() - begun:.1f} s; logs in {folder / 'logs'}")
                progress, totals = asyncio.run(_watch(settings, plan, pipeline, simulator, folder, console))
                statuses = children.end()
        except ProcessError as error:
            console.print(f"[bold red]{error}")
            return 1
        spec = window_spec(read_card(settings.bundle_path()))
        injected = list(_injected(plan))
        report = reconcile(injected, progress.arrivals, progress.traffic, spec, totals)
        report.problems += [f"{name} ended with status {status}" for name, status in statuses.items() if status]
        console.print(summary(report, injected, progress, totals))
        console.print(f"everything is stopped again; it took {time.monotonic() - begun:.0f} s", highlight=False)
        return 1 if report.problems else 0


def _settings(stack: LocalStack) -> Settings:
    defaults = Settings()
    return defaults.model_copy(
        update={
            "kafka": defaults.kafka.model_copy(update={"bootstrap_servers": stack.kafka_bootstrap}),
            "redis": defaults.redis.model_validate({"url": stack.redis_url}),
        }
    )


def _injected(plan: Plan) -> Iterator[Injected]:
    positions = dict(zip(plan.sensors, plan.positions, strict=True))
    for event in plan.events:
        interval = interval_of(event, positions[event.sensor], plan.rate_hz)
        yield Injected(event.sensor, event.kind, interval.first_sample, interval.last_sample, plan.rate_hz)


async def _watch(
    settings: Settings, plan: Plan, pipeline: Sequence[Child], simulator: Child, folder: Path, console: Console
) -> tuple[Progress, Totals]:
    """Follow the topics and the alerts until everything that was published has been answered."""
    spec = window_spec(read_card(settings.bundle_path()))
    progress = Progress(plan.duration_s, {sensor: SensorTraffic() for sensor in plan.sensors})
    progress.begun_s = time.monotonic()
    watchers = [
        asyncio.create_task(_follow_frames(settings, progress)),
        asyncio.create_task(_follow_predictions(settings, progress)),
        asyncio.create_task(_follow_alerts(settings, progress)),
    ]
    drain_until: float | None = None
    try:
        with Live(console=console, refresh_per_second=4, auto_refresh=False, screen=console.is_terminal) as live:
            shown_s = 0.0
            while True:
                await asyncio.sleep(0.25)
                for child in (*pipeline, simulator):
                    child.check()
                for watcher in watchers:
                    if watcher.done():
                        watcher.result()
                now = time.monotonic()
                if console.is_terminal:
                    live.update(screen(progress), refresh=True)
                elif now - shown_s > 5:
                    shown_s = now
                    console.print(line(progress), highlight=False)
                if simulator.process.poll() is not None:
                    drain_until = drain_until or now + DRAIN_S
                    if _complete(progress, spec, folder) or now > drain_until:
                        break
        await asyncio.sleep(1.0)  # the last alerts follow their predictions
        return progress, await _totals(settings, folder)
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


def _complete(progress: Progress, spec: WindowSpec, folder: Path) -> bool:
    traffic = progress.traffic.values()
    return sum(sensor.frames for sensor in traffic) == _sent_frames(folder) and all(
        len(sensor.predictions) >= expected_windows(sensor.samples, spec) for sensor in traffic
    )


def _sent_frames(folder: Path) -> int:
    frames: int = json.loads((folder / "sent.json").read_text())["frames"]
    return frames


async def _follow_frames(settings: Settings, progress: Progress) -> None:
    async with _consumer(settings, settings.kafka.frames_topic) as consumer:
        async for record in consumer:
            sensor = progress.traffic[record.key.decode()]
            for frame in decode_frames(record.key.decode(), record.value).frames:
                sensor.frames += 1
                sensor.samples += len(frame.samples)
                sensor.published.append((frame.end_sample, record.timestamp))


async def _follow_predictions(settings: Settings, progress: Progress) -> None:
    async with _consumer(settings, settings.kafka.predictions_topic) as consumer:
        async for record in consumer:
            prediction = decode_prediction(record.value)
            progress.traffic[prediction.sensor].predictions.add(prediction.position)
            progress.latest[prediction.sensor] = prediction


async def _follow_alerts(settings: Settings, progress: Progress) -> None:
    alerts = Alerts(settings.redis.url.get_secret_value(), settings.redis.prefix)
    try:
        async for _, alert in alerts.follow(since="0"):
            progress.arrived(alert)
    finally:
        await alerts.close()


@contextlib.asynccontextmanager
async def _consumer(settings: Settings, topic: str):  # type: ignore[no-untyped-def]
    """From the beginning, without a group: watching changes nothing."""
    consumer = AIOKafkaConsumer(
        topic,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=4 * 2**20,
        **settings.kafka.client_options(),
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def _totals(settings: Settings, folder: Path) -> Totals:
    async with _consumer(settings, settings.kafka.windows_topic) as consumer:

        async def messages(topic: str) -> int:
            partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
            begin, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
            return sum(end[partition] - begin[partition] for partition in partitions)

        await consumer.topics()
        return Totals(
            _sent_frames(folder),
            await messages(settings.kafka.windows_topic),
            await messages(settings.kafka.deadletter_topic),
        )
