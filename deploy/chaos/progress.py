"""How far the groups have read, noted all the while, and how long each fault held them up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
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


def recovered_after_s(noted: Sequence[Standing], over_s: float, topics: Collection[str]) -> float | None:
    """How long after `over_s` the last partition stood still that stood still then; None: nobody looked so late.

    A partition stands still while messages wait in it and its commit does not move; 0.0 where none did.

    Parameters
    ----------
    noted
        In order of time.
    over_s
        When the fault was over; a kill is over at once.
    topics
        What the readers that it may have held up read.
    """
    if not noted or noted[-1].at_s <= over_s:
        return None
    longest_s = 0.0
    for partition in {one for standing in noted for one in standing.ends if one.topic in topics}:
        begun_s = None
        for before, now in pairwise(noted):
            still = partition in before.waiting and before.committed.get(partition) == now.committed.get(partition)
            if still and begun_s is None:
                begun_s = before.at_s
            if begun_s is None or still:
                continue
            if begun_s <= over_s + NOTICED_S and now.at_s > over_s:
                longest_s = max(longest_s, now.at_s - over_s)
            begun_s = None
        if begun_s is not None and begun_s <= over_s + NOTICED_S:
            longest_s = max(longest_s, noted[-1].at_s - over_s)
    return longest_s
