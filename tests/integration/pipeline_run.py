"""A pipeline of separate processes on topics, groups and Redis keys of its own, and what came out of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from deploy.processes import Child, Children
from deploy.settings import KafkaSettings
from deploy.simulation import Plan, write_wav
from deploy.topic_reader import count_messages, reading
from producers.propagation import DEMO_POSITIONS
from producers.simulator import RATE_HZ, plan_events
from stream.alert_filter import EVERYTHING
from stream.alerts import Alert, decode_alert
from stream.dead_letters import DeadLetter, decode_dead_letter
from stream.predictions import Prediction, decode_prediction
from stream.subscribe import Alerts

#: The same in every process: bits are promised for one number of threads.
ENGINE = {"AEWATCH_MODEL__THREADS": "1"}


class PipelineRun:
    """Starts agents, workers and replays; reads what they leave in Kafka and Redis."""

    def __init__(self, folder: Path, topics: KafkaSettings, redis_url: str, name: str) -> None:
        self.topics = topics
        self.redis_url = redis_url
        self.prefix = name
        self.variables = {
            "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": topics.bootstrap_servers,
            "AEWATCH_KAFKA__FRAMES_TOPIC": topics.frames_topic,
            "AEWATCH_KAFKA__WINDOWS_TOPIC": topics.windows_topic,
            "AEWATCH_KAFKA__PREDICTIONS_TOPIC": topics.predictions_topic,
            "AEWATCH_KAFKA__SHADOW_PREDICTIONS_TOPIC": topics.shadow_predictions_topic,
            "AEWATCH_KAFKA__DEADLETTER_TOPIC": topics.deadletter_topic,
            "AEWATCH_REDIS__URL": redis_url,
            "AEWATCH_REDIS__PREFIX": name,
            "AEWATCH_WINDOW_AGENT__GROUP": f"{name}-windows",
            "AEWATCH_WORKER__GROUP": f"{name}-workers",
            **ENGINE,
        }
        self.children = Children(folder / "logs", self.variables)

    def start(self, kind: str, *arguments: str) -> Child:
        """An agent (`window`) or a worker (`worker`), ready."""
        child = self.children.start(f"{kind}-{len(self.children.started)}", [kind, *arguments])
        self.children.await_message([child], "ready", 120)
        return child

    def replay(self, *recordings: Path, run: str, rate: str = "max") -> None:
        """Publish the recordings and wait until they are acknowledged."""
        child = self.children.start(f"replay-{run}", ["replay", *map(str, recordings), "--rate", rate, "--run", run])
        assert child.wait(120) == 0, child.tail()

    def predictions(self, count: int, within_s: float = 120.0) -> list[Prediction]:
        """All predictions in Kafka, as soon as `count` windows have one."""
        return asyncio.run(_predictions(self.topics, count, within_s))

    def publish(self, topic: str, messages: Sequence[tuple[bytes | None, bytes]], partition: int = 0) -> None:
        """Raw keys and values, in order, into one partition."""

        async def send() -> None:
            async with AIOKafkaProducer(acks="all", **self.topics.client_options()) as producer:
                for key, value in messages:
                    await producer.send_and_wait(topic, value, key=key, partition=partition)

        asyncio.run(send())

    def dead_letters(self) -> list[DeadLetter]:
        """All that are in Kafka."""

        async def read() -> list[DeadLetter]:
            async with reading(self.topics, self.topics.deadletter_topic) as consumer:
                ends = await consumer.end_offsets(sorted(consumer.assignment()))
                letters = []
                for partition, end in ends.items():
                    while await consumer.position(partition) < end:
                        letters.append(decode_dead_letter(await consumer.getone(partition)))
                return letters

        return asyncio.run(read())

    def messages(self, topic: str) -> int:
        """How many there are in a topic."""
        return asyncio.run(count_messages(self.topics, topic))

    def alerts(self) -> list[Alert]:
        """The alert stream."""

        async def read() -> list[Alert]:
            alerts = Alerts(self.redis_url, self.prefix)
            try:
                return [alert async for _, alert in alerts.history(wanted=EVERYTHING)]
            finally:
                await alerts.close()

        return asyncio.run(read())


def classify(*recordings: Path, run: str) -> tuple[list[dict[str, Any]], list[Alert]]:
    """Predictions and alerts that `aewatch classify` finds."""
    command = [sys.executable, "-m", "deploy.cli", "classify", *map(str, recordings), "--run", run, "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")} | ENGINE
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    alerts = [decode_alert(json.dumps(row)) for row in rows if row.pop("kind") == "alert"]
    return [row for row in rows if "probabilities" in row], alerts


def write_recording(path: Path, duration_s: float, channels: int, seed: int = 5) -> Path:
    """A WAV file with simulated events of all classes on each channel, at positions the demo model has not heard."""
    positions = DEMO_POSITIONS[:channels]
    names = [position.name for position in positions]
    plan = plan_events(seed, names, duration_s, spacing_s=2.5, first_s=0.5, last_s=2.0)
    write_wav(path, Plan(seed, duration_s, RATE_HZ, positions, plan))
    return path


async def _predictions(topics: KafkaSettings, count: int, within_s: float) -> list[Prediction]:
    found: list[Prediction] = []
    deadline = time.monotonic() + within_s
    async with reading(topics, topics.predictions_topic) as consumer:
        while len({(p.sensor, *p.position) for p in found}) < count and time.monotonic() < deadline:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [decode_prediction(record.value) for record in records]
    return found
