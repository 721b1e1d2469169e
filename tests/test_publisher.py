"""When frames go out, and in which messages. `tests/integration/test_publisher.py` is about a real broker."""

import asyncio
from fractions import Fraction

import numpy as np
import pytest

from producers import publisher as module
from producers.publisher import BACKLOG_BYTES, PROMPT_BYTES, Publisher
from stream.records import Frame, decode_frames

FOREVER_S = 60.0
FULL_BYTES = 128 * 1024


class SlowBroker:
    """Stands in for the producer's client: takes every message, and acknowledges it when it is told to."""

    def __init__(self, **_):
        self.messages = []
        self.deliveries = []

    async def start(self):
        pass

    async def stop(self):
        pass

    async def send(self, topic, message, key):
        self.messages.append((key.decode(), message))
        self.deliveries.append(asyncio.get_running_loop().create_future())
        return self.deliveries[-1]

    def sequences(self, sensor):
        """Of the frames in each message of `sensor`."""
        return [
            [frame.sequence for frame in decode_frames(sensor, message).frames]
            for key, message in self.messages
            if key == sensor
        ]

    def acknowledge(self):
        for delivery in self.deliveries:
            if not delivery.done():
                delivery.set_result(None)


@pytest.fixture
def broker(monkeypatch):
    made = SlowBroker()
    monkeypatch.setattr(module, "AIOKafkaProducer", lambda **_: made)
    return made


async def publish(publisher, sensor, count, frame_bytes=8_192, first=0):
    samples = np.zeros((frame_bytes - 64) // 2, np.int16)
    for sequence in range(first, first + count):
        await publisher.publish(Frame(sensor, 1, sequence, 0, 1, Fraction(16_000), samples))


async def turns(count=5):
    """Let tasks run, without letting time pass."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_small_frames_wait_for_company_and_no_longer_than_they_are_told(broker):
    async with Publisher({}, join_s=0.05) as publisher:
        await publish(publisher, "a", 2)
        await turns()
        await publish(publisher, "b", 1)
        await turns()
        assert broker.messages == []
        await asyncio.sleep(0.2)
        assert broker.sequences("a") == [[0, 1]]
        assert broker.sequences("b") == [[0]]
        await publish(publisher, "a", 1, first=2)
        await asyncio.sleep(0.2)
        assert broker.sequences("a") == [[0, 1], [2]]
        broker.acknowledge()


async def test_what_is_worth_a_message_goes_at_once(broker):
    async with Publisher({}, join_s=FOREVER_S) as publisher:
        await publish(publisher, "many", 4, PROMPT_BYTES // 4)
        await publish(publisher, "large", 1, PROMPT_BYTES)
        await turns()
        assert broker.sequences("many") == [[0, 1, 2, 3]]
        assert broker.sequences("large") == [[0]]
        broker.acknowledge()


async def test_while_the_broker_is_behind_frames_wait_until_a_message_is_full(broker):
    async with Publisher({}, join_s=FOREVER_S) as publisher:
        await publish(publisher, "other", BACKLOG_BYTES // FULL_BYTES, FULL_BYTES)
        await turns()
        for sequence in range(16):
            assert broker.sequences("a") == []
            await publish(publisher, "a", 1, first=sequence)
            await turns()
        assert broker.sequences("a") == [list(range(16))]
        broker.acknowledge()
        await turns()
        await publish(publisher, "a", 4, first=16)
        await turns()
        assert broker.sequences("a")[1:] == [[16, 17, 18, 19]]
        broker.acknowledge()


async def test_a_broker_that_stays_behind_is_sent_what_waits_all_the_same(broker):
    async with Publisher({}) as publisher:
        await publish(publisher, "other", BACKLOG_BYTES // FULL_BYTES, FULL_BYTES)
        await publish(publisher, "a", 2)
        await asyncio.sleep(0.2)
        assert broker.sequences("a") == [[0, 1]]
        broker.acknowledge()


@pytest.mark.parametrize(
    ("join_bytes", "client", "most"), [(0, {}, 1), (20_000, {}, 2), (FULL_BYTES, {"max_batch_size": 60_000}, 3)]
)
async def test_messages_are_no_larger_than_they_may_be(broker, join_bytes, client, most):
    async with Publisher(client, join_bytes=join_bytes) as publisher:
        await publish(publisher, "a", 12)
        await turns()
        sent = broker.sequences("a")
        assert {len(message) for message in sent} == {most}
        assert [sequence for message in sent for sequence in message] == list(range(12))
        broker.acknowledge()


async def test_what_is_given_up_is_all_that_was_not_acknowledged_in_order(broker):
    async with Publisher({}, join_s=FOREVER_S) as publisher:
        await publish(publisher, "a", 4)
        await publish(publisher, "b", 4)
        await turns()
        broker.deliveries[0].set_result(None)
        await turns()
        await publish(publisher, "a", 1, first=4)
        await publish(publisher, "b", 1, first=4)
        left = publisher.abandon()
        assert [frame.key for frame in left] == [*[b"b"] * 4, b"a", b"b"]
        assert publisher.open_bytes == 0
        counts = publisher.counts
        assert (counts.frames, counts.acknowledged_frames, counts.acknowledged_samples) == (10, 4, 4 * 4_064)
        broker.deliveries[1].set_result(None)
        await turns()
        assert publisher.counts.acknowledged_frames == 4
        producer, publisher._producer = publisher._producer, None  # it has no connection that could be given up
        assert producer is broker
