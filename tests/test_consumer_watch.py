"""A consumer that is stuck is told from one that waits for the broker, for Redis, or for something to read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from stream.lag_watch import (
    HELD_PATIENCE_S,
    PATIENCE_S,
    ConsumerStuck,
    ConsumerWatch,
    Occupied,
    lag_seconds,
)

LOOK_S = 5.0
PARTITION = TopicPartition("ae.windows", 3)


class Consumer:
    """What a watch sees of a consumer and of its broker."""

    def __init__(self) -> None:
        self.position, self.end = 10, 10
        self.in_hand: Occupied | None = None
        self.answered = True
        self.broker_is_there = True
        self.now_s = 0.0
        self.watch = ConsumerWatch[TopicPartition](
            self, "ae.windows", self.ask_afresh, logging.getLogger("aewatch.worker")
        )

    def occupied(self) -> Occupied | None:
        return self.in_hand

    async def positions_and_ends(self) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        if not self.answered:
            raise KafkaConnectionError
        return {PARTITION: self.position}, {PARTITION: self.end}

    async def ask_afresh(self, partitions: Iterable[TopicPartition]) -> None:
        if not self.broker_is_there:
            raise KafkaConnectionError

    async def looks_for(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.now_s += LOOK_S
            await self.watch.look(lambda: self.now_s)


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


async def test_messages_that_wait_are_seen(consumer: Consumer) -> None:
    consumer.end = 17
    await consumer.looks_for(LOOK_S)
    assert consumer.watch.lag == {PARTITION: 7}


async def test_a_consumer_that_fetches_nothing_though_messages_wait_is_stuck(consumer: Consumer) -> None:
    consumer.end = 17
    await consumer.looks_for(PATIENCE_S)
    with pytest.raises(ConsumerStuck, match=r"nothing is fetched from ae\.windows for 60 s.* 7 in partition 3"):
        await consumer.looks_for(LOOK_S)


async def test_a_consumer_with_nothing_to_read_is_not_stuck(consumer: Consumer) -> None:
    await consumer.looks_for(3600)


async def test_while_the_broker_is_away_nothing_is_held_against_the_consumer_not_even_afterwards(
    consumer: Consumer,
) -> None:
    consumer.end = 17
    await consumer.looks_for(PATIENCE_S - LOOK_S)
    consumer.answered = consumer.broker_is_there = False
    await consumer.looks_for(3600)
    assert consumer.watch.kafka_away_since_s == pytest.approx(PATIENCE_S)
    consumer.answered = consumer.broker_is_there = True
    await consumer.looks_for(PATIENCE_S)
    assert consumer.watch.kafka_away_since_s is None


async def test_a_consumer_that_is_not_answered_where_a_new_one_is_is_stuck(consumer: Consumer) -> None:
    consumer.answered = False
    await consumer.looks_for(PATIENCE_S)
    with pytest.raises(ConsumerStuck, match="a new connection is answered"):
        await consumer.looks_for(LOOK_S)


async def test_an_hour_without_a_broker_does_not_count_as_not_being_answered(consumer: Consumer) -> None:
    consumer.answered = False
    await consumer.looks_for(PATIENCE_S - LOOK_S)
    consumer.broker_is_there = False
    await consumer.looks_for(3600)
    consumer.broker_is_there = True
    await consumer.looks_for(PATIENCE_S - LOOK_S)
    consumer.answered = True
    await consumer.looks_for(3600)


async def test_one_thing_in_hand_for_too_long_is_stuck(consumer: Consumer) -> None:
    consumer.end, consumer.in_hand = 17, Occupied("settling windows", mark=3)
    await consumer.looks_for(HELD_PATIENCE_S)
    with pytest.raises(ConsumerStuck, match="settling windows takes longer than 120 s"):
        await consumer.looks_for(LOOK_S)


async def test_work_that_goes_on_is_not_stuck_however_far_it_is_behind(consumer: Consumer) -> None:
    consumer.end = 10**6
    for batch in range(20):
        consumer.in_hand = Occupied("settling windows", mark=batch)
        await consumer.looks_for(HELD_PATIENCE_S - LOOK_S)


async def test_what_waits_for_redis_is_excused_and_its_lag_is_still_seen(consumer: Consumer) -> None:
    consumer.end, consumer.in_hand = 17, Occupied("waiting for Redis", excused=True)
    await consumer.looks_for(3600)
    assert consumer.watch.lag == {PARTITION: 7}


def test_a_lag_in_seconds_is_the_age_of_the_last_message_taken_where_more_wait() -> None:
    now_ns = 1_000_000 * 10**9
    taken_ms = {"behind": 999_970_000, "there": 999_000_000}
    assert lag_seconds({"behind": 5, "there": 0, "new": 7}, taken_ms, now_ns) == {"behind": 30.0, "there": 0.0}
