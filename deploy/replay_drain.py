"""When the pipeline has worked off what was published, and the alerts that it raised."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from deploy.last_windows import LastWindow
from deploy.settings import Settings
from deploy.topic_reader import reading
from stream.alarm_state import BadState
from stream.alert_filter import EVERYTHING
from stream.alert_store import AlertStore, StoredSensor
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


async def drain(
    settings: Settings, sensors: Collection[str], last: Collection[LastWindow], since: str, patience_s: float
) -> Drained:
    """Wait until all that was published of these sensors has been answered; then read the alerts after `since`.

    A sensor's windows are applied to Redis in order, each with its alerts: when its last one is, nothing of it can
    follow. Or else, where a last window never comes since it was turned away on its way: the window agents commit a
    frame when its windows are in Kafka, the workers a window when its alerts are in Redis, so that both groups'
    offsets tell, too, but not while any other sensor holds up the commit of its partition.

    Parameters
    ----------
    sensors
        Whose alerts are wanted.
    last
        The last windows that the pipeline makes of them.
    since
        A cursor of the stream of alerts.
    patience_s
        How long it may take.

    Raises
    ------
    KafkaError
        If the broker cannot be reached.
    redis.exceptions.RedisError
        If Redis cannot.
    """
    notes: list[str] = []
    waiting = _Waiting(settings, last)
    ways = [asyncio.create_task(waiting.until_applied()), asyncio.create_task(waiting.until_committed())]
    try:
        done, _ = await asyncio.wait(ways, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    if not done:
        notes.append(late_note(patience_s, sorted({window.sensor for window in waiting.open}), len(sensors)))
    wanted = set(sensors)
    async with Alerts(settings.redis.connection_url(), settings.redis.prefix) as alerts:

        def trimmed(error: HistoryTrimmed) -> None:
            notes.append(f"alerts are missing: {error}")

        history = alerts.history(since=since, wanted=EVERYTHING, on_trimmed=trimmed)
        found = [alert async for _, alert in history if alert.sensor in wanted]
    return Drained(found, notes)


def late_note(patience_s: float, late: Sequence[str], sensors: int) -> str:
    """What to say where the last windows of these sensors, of so many, were not answered in time."""
    return (
        f"after {patience_s:g} s {len(late)} of {sensors} sensors had not come through the pipeline to their end, "
        f"{late[0]} first: later alerts are missing. Are window agents and workers running, and fast enough? "
        "--wait gives them more time"
    )


class _Waiting:
    """Two ways to know that the pipeline is done; whichever comes first."""

    def __init__(self, settings: Settings, last: Collection[LastWindow]) -> None:
        self._settings = settings
        self.open = list(last)

    async def until_applied(self) -> None:
        """Until the last windows are in Redis."""
        redis = self._settings.redis
        async with AlertStore(redis.connection_url(), redis.prefix) as store:
            while self.open:
                stored = await store.load(window.sensor for window in self.open)
                self.open = [window for window in self.open if not _has_applied(stored[window.sensor], window)]
                if self.open:
                    await asyncio.sleep(LOOK_AGAIN_S)

    async def until_committed(self) -> None:
        """Until the groups have committed all that is in their topics."""
        kafka = self._settings.kafka
        await _await_group(self._settings, self._settings.window_agent.group, kafka.frames_topic)
        await _await_group(self._settings, self._settings.worker.group, kafka.windows_topic)


def _has_applied(stored: StoredSensor, window: LastWindow) -> bool:
    try:
        return stored.copy_state().has_applied(window.position, hit=window.hit)
    except BadState:  # another release's; the groups' offsets will tell
        return False


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
