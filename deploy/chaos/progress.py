"""How far the groups have read, noted all the while, and how long each fault held them up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from deploy.settings import KafkaSettings

LOOK_EVERY_S = 0.25
ANSWER_S = 5.0
NOTICED_S = 1.5  #: so soon after a fault a partition stands still that it has to do with


@dataclass(frozen=True, slots=True)
class Standing:
    """Of all partitions that the groups read, at one moment."""

    at_s: float  #: monotonic
    committed: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]

    @property
    def waiting(self) -> dict[TopicPartition, int]:
        """Messages that are not committed yet, where there are any."""
        return {
            partition: end - self.committed.get(partition, 0)
            for partition, end in self.ends.items()
            if end > self.committed.get(partition, 0)
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the way, and how it is seen from outside that it goes on."""

    topic: str  #: that it reads
    output: str | None = None  #: that it writes, key by key into the partitions of the same number; None: it commits

    def made(self, standing: Standing, number: int) -> int:
        """What it has made of a partition so far."""
        if self.output is None:
            return standing.committed.get(TopicPartition(self.topic, number), 0)
        return standing.ends.get(TopicPartition(self.output, number), 0)

    def waits(self, before: Standing, now: Standing, number: int) -> bool:
        """Whether there is something to be made of the partition.

        Window agents hold their commit until a window is complete, which a sensor that pauses may never make it: there
        only new messages count.
        """
        partition = TopicPartition(self.topic, number)
        if self.output is None:
            return partition in before.waiting
        return now.ends.get(partition, 0) > before.ends.get(partition, 0)


class ProgressWatch:
    """Looks from outside, in a thread of its own, and notes nothing while the broker is away. A context manager.

    Parameters
    ----------
    kafka
        How to reach it directly.
    groups
        Topic → the group that reads it.
    """

    def __init__(self, kafka: KafkaSettings, groups: Mapping[str, str]) -> None:
        self._kafka = kafka
        self._groups = groups
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()), name="progress", daemon=True)
        self.noted: list[Standing] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _watch(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await self._look_on()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_on(self) -> None:
        options = self._kafka.client_options()
        admin = AIOKafkaAdminClient(request_timeout_ms=int(ANSWER_S * 1000), **options)
        consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(*self._groups, enable_auto_commit=False, **options)
        try:
            await admin.start()
            await consumer.start()
            while not self._stop.is_set():
                async with asyncio.timeout(ANSWER_S):
                    ends = await consumer.end_offsets(sorted(consumer.assignment()))
                    committed: dict[TopicPartition, int] = {}
                    for topic, group in self._groups.items():
                        offsets = await admin.list_consumer_group_offsets(group)
                        committed |= {tp: one.offset for tp, one in offsets.items() if tp.topic == topic}
                self.noted.append(Standing(time.monotonic(), committed, ends))
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await consumer.stop()
                    await admin.close()


def recovered_after_s(noted: Sequence[Standing], over_s: float, stages: Collection[Stage]) -> float | None:
    """How long after `over_s` the last partition stood still that stood still then; None: nobody looked so late.

    0.0 where none did.

    Parameters
    ----------
    noted
        In order of time.
    over_s
        When the fault was over; a kill is over at once.
    stages
        Whose readers it may have held up.
    """
    if not noted or noted[-1].at_s <= over_s:
        return None
    longest_s = 0.0
    for stage in stages:
        for number in {partition.partition for standing in noted for partition in standing.ends}:
            for begun_s, ended_s in _standstills(noted, stage, number):
                if begun_s <= over_s + NOTICED_S and ended_s > over_s:
                    longest_s = max(longest_s, ended_s - over_s)
    return longest_s


def _standstills(noted: Sequence[Standing], stage: Stage, number: int) -> Iterator[tuple[float, float]]:
    """From when until when something waited in a partition and nothing was made of it."""
    begun_s: float | None = None
    for before, now in pairwise(noted):
        moved = stage.made(now, number) != stage.made(before, number)
        if moved and begun_s is not None:
            yield begun_s, now.at_s
        if moved:
            begun_s = None
        elif begun_s is None and stage.waits(before, now, number):
            begun_s = before.at_s
    if begun_s is not None:
        yield begun_s, noted[-1].at_s
