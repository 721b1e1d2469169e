"""The demo: the whole pipeline on simulated sensors, watched from outside, and a verdict at the end.

Everything it knows of the result it reads where a user would: frames and predictions from Kafka, alerts from Redis.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from deploy.demo_report import Injected, SensorTraffic, Totals, expected_windows, reconcile
from deploy.demo_view import Progress, line, screen, summary
from deploy.local_stack import LocalStack
from deploy.local_stack.kafka_jars import terminal_progress
from deploy.pipeline import window_spec
from deploy.processes import Child, Children, ProcessError
from deploy.settings import KafkaSettings
from deploy.simulation import Plan, draw_plan, write_plan
from deploy.topic_reader import count_messages, reading
from model.bundle import demo_bundle_path, read_card
from producers.simulator import interval_of
from stream.predictions import decode_prediction
from stream.records import decode_frames
from stream.subscribe import Alerts
from stream.windows import WindowSpec

SENSORS = 8
READY_S = 120.0  # a slow machine imports torch for a while
DRAIN_S = 60.0
PLAN, SENT = "plan.json", "sent.json"


def run_demo(duration_s: float, seed: int, console: Console, keep: Path | None = None) -> int:
    """Run it all; 0 if every event raised its alert, nothing else did, and all counts add up.

    Data and logs go to `keep`, which must be new or empty, and stay there; else to a temporary folder, of which
    the logs stay if something went wrong.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        console.print(f"[bold red]{keep} is not empty; name a new folder for the demo to keep its data in")
        return 1
    folder = keep or Path(tempfile.mkdtemp(prefix="aewatch-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    status = 1
    try:
        status = _run(duration_s, seed, console, folder)
    finally:
        if keep is None:
            shutil.rmtree(folder if status == 0 else folder / "stack" / "kafka", ignore_errors=True)
        if keep is not None or status:
            console.print(f"logs are in {folder / 'logs'} and {folder / 'stack' / 'logs'}", highlight=False)
    return status


def _run(duration_s: float, seed: int, console: Console, folder: Path) -> int:
    begun = time.monotonic()
    plan = draw_plan(SENSORS, duration_s, seed)
    stack = LocalStack(folder / "stack", None, None, progress=terminal_progress("Kafka"))
    kafka = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
    variables = {"AEWATCH_KAFKA__BOOTSTRAP_SERVERS": stack.kafka_bootstrap, "AEWATCH_REDIS__URL": stack.redis_url}
    console.print("starting Kafka, the Redis-compatible server, a window agent and a worker …")
    write_plan(folder / PLAN, plan)
    simulate = ["simulate", "--await-consumers", "--plan", str(folder / PLAN), "--report", str(folder / SENT)]
    try:
        with Children(folder / "logs", variables) as children:
            # All at once: they wait for their brokers, and loading torch takes as long as starting Kafka.
            pipeline = [children.start("window-agent", ["window"]), children.start("worker", ["worker"])]
            simulator = children.start("simulator", simulate)
            with stack:
                console.print(f"Kafka and Redis are ready after {time.monotonic() - begun:.1f} s")
                watching = _watch(kafka, stack.redis_url, plan, pipeline, simulator, folder, console, begun)
                progress, totals = asyncio.run(watching)
                statuses = children.end()
    except ProcessError as error:
        console.print(f"[bold red]{error}")
        return 1
    spec = window_spec(read_card(demo_bundle_path()))
    injected = list(_injected(plan))
    report = reconcile(injected, progress.arrivals, progress.traffic, spec, totals)
    report.problems += [f"{name} ended with status {status}" for name, status in statuses.items() if status]
    console.print(summary(report, injected, progress, totals))
    took_s = time.monotonic() - begun
    console.print(f"Signals flowed after {progress.begun_s - begun:.1f} s, everything is stopped after {took_s:.0f} s.")
    return 1 if report.problems else 0


def _injected(plan: Plan) -> Iterator[Injected]:
    positions = dict(zip(plan.sensors, plan.positions, strict=True))
    for event in plan.events:
        interval = interval_of(event, positions[event.sensor], plan.rate_hz)
        yield Injected(event.sensor, event.kind, interval.first_sample, interval.last_sample, plan.rate_hz)


async def _watch(
    kafka: KafkaSettings,
    redis_url: str,
    plan: Plan,
    pipeline: Sequence[Child],
    simulator: Child,
    folder: Path,
    console: Console,
    begun_s: float,
) -> tuple[Progress, Totals]:
    """Follow the topics and the alerts until everything that was published has been answered."""
    spec = window_spec(read_card(demo_bundle_path()))
    progress = Progress(plan.duration_s, {sensor: SensorTraffic() for sensor in plan.sensors})
    watchers = [
        asyncio.create_task(_follow_frames(kafka, progress)),
        asyncio.create_task(_follow_predictions(kafka, progress)),
        asyncio.create_task(_follow_alerts(redis_url, progress)),
    ]
    drain_until: float | None = None
    try:
        with Live(console=console, refresh_per_second=4, auto_refresh=False, screen=console.is_terminal) as live:
            shown_s, told = 0.0, False
            while True:
                await asyncio.sleep(0.25)
                for child in (*pipeline, simulator):
                    child.check()
                for watcher in watchers:
                    if watcher.done():
                        watcher.result()
                now = time.monotonic()
                if not progress.begun_s:
                    if now - begun_s > READY_S:
                        raise ProcessError(f"no signal within {READY_S:g} s; the simulator says:\n{simulator.tail()}")
                    continue
                if not told:
                    told = True
                    console.print(f"signals flow after {progress.begun_s - begun_s:.1f} s")
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
        return progress, await _totals(kafka, folder)
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
    frames: int = json.loads((folder / SENT).read_text())["frames"]
    return frames


async def _follow_frames(kafka: KafkaSettings, progress: Progress) -> None:
    async with reading(kafka, kafka.frames_topic) as consumer:
        async for record in consumer:
            progress.begun_s = progress.begun_s or time.monotonic()
            sensor = progress.traffic[record.key.decode()]
            for frame in decode_frames(record.key.decode(), record.value).frames:
                sensor.frames += 1
                sensor.samples += len(frame.samples)
                sensor.published.append((frame.end_sample, record.timestamp))


async def _follow_predictions(kafka: KafkaSettings, progress: Progress) -> None:
    async with reading(kafka, kafka.predictions_topic) as consumer:
        async for record in consumer:
            prediction = decode_prediction(record.value)
            progress.traffic[prediction.sensor].predictions.add(prediction.position)
            progress.latest[prediction.sensor] = prediction


async def _follow_alerts(redis_url: str, progress: Progress) -> None:
    alerts = Alerts(redis_url)
    try:
        async for _, alert in alerts.follow(since="0"):
            progress.arrived(alert)
    finally:
        await alerts.close()


async def _totals(kafka: KafkaSettings, folder: Path) -> Totals:
    return Totals(
        _sent_frames(folder),
        await count_messages(kafka, kafka.windows_topic),
        await count_messages(kafka, kafka.deadletter_topic),
    )
