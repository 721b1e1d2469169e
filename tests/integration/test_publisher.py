import asyncio
import contextlib
import gc
import warnings
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from producers.publisher import DeliveryError, Publisher
from producers.replay import replay
from producers.sources import open_recording
from stream.records import BadRecord, Flags, Frame, decode_frames

pytestmark = pytest.mark.integration

RATE_HZ = Fraction(500_000)


def options(bootstrap):
    return {"bootstrap_servers": bootstrap}


def frames(sensor, sizes, seed=0):
    """Frames of these sizes, one after another, filled with noise."""
    rng = np.random.default_rng([seed, len(sensor), *sensor.encode()])
    at = 0
    for sequence, size in enumerate(sizes):
        yield Frame(
            sensor=sensor,
            epoch_ns=1,
            sequence=sequence,
            first_sample=at,
            time_ns=1 + at * 2_000,
            rate_hz=RATE_HZ,
            samples=rng.integers(-9_000, 9_000, size).astype(np.int16),
            volts_per_count=3e-6,
            flags=Flags.END if size == 0 else Flags(0),
        )
        at += size


async def everything_in(bootstrap, topic):
    """All messages of `topic`, partition by partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=32 * 2**20
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(await partitions_of(consumer, topic))]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        messages = []
        for partition in partitions:
            await consumer.seek_to_beginning(partition)
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                messages += batch
        return messages
    finally:
        await consumer.stop()


async def partitions_of(consumer, topic):
    await consumer._client._wait_on_metadata(topic)
    return consumer.partitions_for_topic(topic)


def decoded(messages):
    """Frames per sensor in the order of their partition."""
    found = {}
    for message in messages:
        result = decode_frames(message.key.decode(), message.value)
        assert not result.rejects
        found.setdefault(message.key.decode(), []).extend(result.frames)
    return found


def assert_same(found, expected):
    assert [frame.sequence for frame in found] == [frame.sequence for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.first_sample, one.time_ns, one.flags, one.volts_per_count) == (
            other.first_sample,
            other.time_ns,
            other.flags,
            other.volts_per_count,
        )
        np.testing.assert_array_equal(one.samples, other.samples)


async def test_frames_of_every_size_arrive_whole_and_in_order_per_sensor(topics):
    rng = np.random.default_rng(1)
    sent = {
        f"plant/pump{n}/ch0": list(
            frames(f"plant/pump{n}/ch0", [*rng.choice([1, 50, 500, 5_000, 50_000], 80), 2_000_000, 0])
        )
        for n in range(6)
    }
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        for group in zip(*sent.values(), strict=True):
            for frame in group:
                await publisher.publish(frame)
    counts = publisher.counts
    assert counts.frames == counts.acknowledged_frames == 6 * 82
    assert counts.samples == counts.acknowledged_samples
    assert counts.bytes == counts.acknowledged_bytes == 2 * counts.samples + 64 * counts.frames
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert found.keys() == sent.keys()
    for sensor, expected in sent.items():
        assert_same(found[sensor], expected)


async def test_small_frames_share_messages_and_large_ones_do_not_wait_for_them(topics):
    publisher = Publisher(options(topics.bootstrap_servers), topics.frames_topic, join_bytes=8_192)
    async with publisher:
        for frame in frames("small", [500] * 1_000):
            await publisher.publish(frame)
        await publisher.publish(next(frames("large", [20_000])))
    messages = await everything_in(topics.bootstrap_servers, topics.frames_topic)
    assert publisher.counts.messages == len(messages) < 200
    assert all(len(message.value) <= 8_192 for message in messages if message.key == b"small")
    assert [frame.sequence for frame in decoded(messages)["small"]] == list(range(1_000))


async def test_one_sensor_stays_in_one_partition(topics):
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        for n in range(12):
            for frame in frames(f"s{n}", [40_000] * 5):
                await publisher.publish(frame)
    partitions = {}
    for message in await everything_in(topics.bootstrap_servers, topics.frames_topic):
        partitions.setdefault(message.key, set()).add(message.partition)
    assert all(len(used) == 1 for used in partitions.values())
    assert len(set.union(*partitions.values())) > 1


async def test_flush_returns_when_everything_is_acknowledged(topics):
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        for frame in frames("s", [10_000] * 20):
            await publisher.publish(frame)
        await publisher.flush()
        assert publisher.counts.acknowledged_frames == 20
        assert len(decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"]) == 20


async def test_what_is_not_yet_acknowledged_stays_within_its_bytes(topics):
    most = 300_000
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic, max_bytes=most) as publisher:
        for frame in frames("s", [20_000] * 100):
            await publisher.publish(frame)
            assert publisher.counts.bytes - publisher.counts.acknowledged_bytes <= most
    assert publisher.counts.acknowledged_frames == 100


async def test_a_frame_larger_than_that_is_published_alone(topics):
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic, max_bytes=1_000) as publisher:
        for frame in frames("s", [20_000] * 3):
            await publisher.publish(frame)
    assert publisher.counts.acknowledged_frames == 3


async def test_frames_that_cannot_be_written_are_refused_and_the_others_published(topics):
    good = list(frames("s", [100, 100]))
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        await publisher.publish(good[0])
        with pytest.raises(BadRecord, match="too-large"):
            await publisher.publish(next(frames("s", [9_000_000])))
        with pytest.raises(BadRecord, match="sensor-id"):
            await publisher.publish(next(frames("a\nb", [10])))
        await publisher.publish(good[1])
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert list(found) == ["s"]
    assert_same(found["s"], good)


async def test_a_message_that_the_broker_refuses_is_an_error_and_nothing_more_is_taken_on(kafka, unique):
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(unique, 1, 1, topic_configs={"max.message.bytes": "1000"})])
    finally:
        await admin.close()
    refused = partial(pytest.raises, DeliveryError, match=f"1 frames for {unique} were not delivered")
    with refused():
        async with Publisher(options(kafka), unique) as publisher:
            await publisher.publish(next(frames("s", [10_000])))
            with refused():
                await publisher.flush()
            with refused():
                await publisher.publish(next(frames("s", [10])))


async def test_no_broker_is_an_error_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KafkaConnectionError):
            await Publisher(options("127.0.0.1:1")).__aenter__()
        gc.collect()


async def test_a_cancelled_replay_leaves_in_kafka_exactly_what_was_published(topics):
    class Endless:
        sensors = ("s",)
        duration_s = total_frames = total_samples = None

        def __iter__(self):
            return frames("s", [500] * 1_000_000)

    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        enough = asyncio.Event()
        playing = asyncio.create_task(replay([Endless()], publisher, 1.0, lambda _: enough.set()))
        await enough.wait()
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"]
    assert [frame.sequence for frame in found] == list(range(publisher.counts.frames))
    assert publisher.counts.acknowledged_frames == publisher.counts.frames


async def test_the_bearing_recording_arrives_hit_for_hit(topics, real_data):
    source = open_recording(real_data / "vallen/bearing/bearing.tradb", "r")
    async with Publisher(options(topics.bootstrap_servers), topics.frames_topic) as publisher:
        done = await replay([source], publisher, None)
    assert done.frames == publisher.counts.acknowledged_frames == source.total_frames == 491
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert_same(found["replay/r/bearing/ch1"], list(source))


@pytest.mark.slow
async def test_what_is_published_while_the_broker_is_away_arrives_once_and_in_order_when_it_is_back(
    own_stack, make_topics, caplog
):
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    sent = list(frames("s", [10_000] * 300))
    # So short that a message is turned away by the client itself, too, and must be tried again.
    impatient = options(topics.bootstrap_servers) | {"request_timeout_ms": 1_500}
    async with Publisher(impatient, topics.frames_topic) as publisher:
        for frame in sent[:100]:
            await publisher.publish(frame)
        await asyncio.to_thread(own_stack.kafka.service.kill)
        for frame in sent[100:200]:
            await publisher.publish(frame)
        with pytest.raises(DeliveryError, match=r"\d+ frames were not acknowledged by 127.0.0.1:\d+ within 1 s"):
            await publisher.flush(1.0)
        await asyncio.to_thread(own_stack.kafka.start, owned=True)
        await asyncio.to_thread(own_stack.kafka.wait_ready, 60)
        for frame in sent[200:]:
            await publisher.publish(frame)
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert_same(found["s"], sent)
    assert "no broker takes messages" in caplog.text


@pytest.mark.slow
async def test_leaving_without_a_broker_ends_in_time_with_an_error_that_counts_what_is_lost(own_stack, make_topics):
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    before = asyncio.all_tasks()
    lost = pytest.raises(DeliveryError, match="30 frames were not acknowledged")
    with lost:
        async with Publisher(options(topics.bootstrap_servers), topics.frames_topic, drain_s=1.0) as publisher:
            for frame in frames("s", [5_000] * 10):
                await publisher.publish(frame)
            await publisher.flush()
            await asyncio.to_thread(own_stack.kafka.service.kill)
            for frame in frames("s", [50_000] * 30):
                await publisher.publish(frame)
    assert asyncio.all_tasks() <= before
