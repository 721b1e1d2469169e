"""Reading whole topics from outside: no group, no commits, so that watching changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer

from deploy.settings import KafkaSettings


@contextlib.asynccontextmanager
async def reading(
    kafka: KafkaSettings, *topics: str, fetch_bytes: int = 4 * 2**20
) -> AsyncIterator[AIOKafkaConsumer[bytes, bytes]]:
    """A consumer of all partitions of `topics`, from the beginning.

    Raises
    ------
    aiokafka.errors.KafkaError
        If the broker cannot be reached, or there is no such topic.
    """
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        *topics,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=fetch_bytes,
        **kafka.client_options(),
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def count_messages(kafka: KafkaSettings, topic: str) -> int:
    """How many messages the topic holds."""
    async with reading(kafka, topic) as consumer:
        partitions = sorted(consumer.assignment())
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        return sum(ends[partition] - begins[partition] for partition in partitions)
