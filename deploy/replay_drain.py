"""When the pipeline has worked off what was published, and the alerts that it raised."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from deploy.settings import Settings
from deploy.topic_reader import reading
from stream.alert_filter import EVERYTHING
from stream.alerts import Alert
from stream.subscribe import Alerts, HistoryTrimmed

LOOK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Drained:
    """The alerts of the sensors asked for, oldest first."""

    alerts: list[Alert]
    notes: list[str]  #: what may be missing, and why


async def alert_cursor(settings: Settings) -> str:
    """Where the stream of alerts ends now."""
    async with Alerts(settings.redis.connection_url(), settings.redis.prefix) as alerts:
        return await alerts.cursor()


async def drain(settings: Settings, sensors: Collection[str], since: str, patience_s: float) -> Drained:
    """Wait until all that is in the frames topic now has been answered; then read the alerts after the cursor `since`.

    The window agent commits a frame when its windows are in Kafka, the worker a window when its alerts are in Redis:
    so both groups' committed offsets tell, whatever windows there were to make.

    Raises
    ------
    KafkaError
        If the broker cannot be reached.
    redis.exceptions.RedisError
        If Redis cannot.
    """
    kafka = settings.kafka
    notes: list[str] = []
    steps = ((settings.window_agent.group, kafka.frames_topic), (settings.worker.group, kafka.windows_topic))
    waiting = steps[0]
    try:
        async with asyncio.timeout(patience_s):
            for waiting in steps:
                await _await_group(settings, *waiting)
    except TimeoutError:
        notes.append(late_note(patience_s, *waiting, settings.window_agent.hold_s if waiting is steps[0] else None))
    wanted = set(sensors)
    async with Alerts(settings.redis.connection_url(), settings.redis.prefix) as alerts:

        def trimmed(error: HistoryTrimmed) -> None:
            notes.append(f"alerts are missing: {error}")

        history = alerts.history(since=since, wanted=EVERYTHING, on_trimmed=trimmed)
        found = [alert async for _, alert in history if alert.sensor in wanted]
    return Drained(found, notes)


def late_note(patience_s: float, group: str, topic: str, hold_s: float | None) -> str:
    """What to say of a group that was late; `hold_s` is how long a silent sensor may hold it up, None if it cannot."""
    held = f" Or did another sensor stop in mid-window? That holds up its commit for {hold_s:g} s." if hold_s else ""
    return (
        f"after {patience_s:g} s group {group} had not worked off {topic}: later alerts are missing. "
        f"Is it running, and fast enough?{held} --wait gives it more time"
    )


async def _await_group(settings: Settings, group: str, topic: str) -> None:
    """Until `group` has committed all that `topic` holds now."""
    async with reading(settings.kafka, topic) as consumer:
        partitions = sorted(consumer.assignment())
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    open_until = {partition: ends[partition] for partition in partitions if ends[partition] > begins[partition]}
    admin = AIOKafkaAdminClient(**settings.kafka.client_options())
    await admin.start()
    try:
        while open_until:
            committed: dict[Any, Any] = {}
            with contextlib.suppress(KafkaError):  # a coordinator that is just moving; the time runs
                committed = await admin.list_consumer_group_offsets(group, partitions=list(open_until))
            open_until = {
                partition: end
                for partition, end in open_until.items()
                if partition not in committed or committed[partition].offset < end
            }
            if open_until:
                await asyncio.sleep(LOOK_AGAIN_S)
    finally:
        await admin.close()
