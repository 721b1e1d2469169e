import asyncio
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from producers.forwarder import Forwarder
from producers.publisher import encoded
from producers.spool import Spool, SpoolSettings
from stream.records import BadRecord, Flags, encode_frame
from tests.integration.test_publisher import assert_same, decoded, everything_in, frames, options

pytestmark = pytest.mark.integration

SETTINGS = SpoolSettings(max_bytes=500_000_000, full="block")
NOBODY = options("127.0.0.1:1")


def first_arrivals(messages):
    """Per sensor each frame once, in order; fails where a frame arrived first before an older one did."""
    found = {}
    for sensor, arrived in decoded(messages).items():
        first = {}
        for frame in arrived:
            first.setdefault((frame.epoch_ns, frame.first_sample), frame)
        assert list(first) == sorted(first), sensor
        found[sensor] = list(first.values())
    return found


def sequences(arrived):
    return [frame.sequence for frame in arrived]


async def until(condition, timeout_s=30.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


async def test_with_a_broker_frames_pass_without_a_trace_on_disk(topics, tmp_path):
    sent = list(frames("s", [5_000] * 100))
    async with Forwarder(
        options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS
    ) as sink:
        assert sink.status.connected
        for frame in sent:
            await sink.publish(frame)
        await sink.flush()
        status = sink.status
        assert list(tmp_path.glob("*.spool")) == []
    assert status.acknowledged_frames == status.frames == 100
    assert status.historical_frames == status.spooled_frames == 0
    assert_same(decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"], sent)


async def test_what_was_left_in_the_spool_is_sent_at_the_next_start_once_and_flagged(topics, tmp_path):
    sent = {name: list(frames(name, [2_000] * 150)) for name in ("a", "b")}
    async with Forwarder(NOBODY, topics.frames_topic, folder=tmp_path, spool=SETTINGS) as sink:
        for pair in zip(*sent.values(), strict=True):
            for frame in pair:
                await sink.publish(frame)
    for expected in (300, 0):
        async with Forwarder(
            options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS
        ) as sink:
            pass
        assert sink.status.historical_frames == expected
        assert sink.status.spooled_frames == 0
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    for name, expected in sent.items():
        assert sequences(found[name]) == sequences(expected)
        assert all(frame.flags == Flags.HISTORICAL for frame in found[name])


async def test_sensors_with_nothing_in_the_spool_are_not_held_up_by_those_that_drain(topics, tmp_path):
    old = list(frames("old", [4_000] * 4_000))
    with Spool(tmp_path, SETTINGS) as spool:
        for frame in old:
            spool.append(b"old", encode_frame(frame))
    new = list(frames("new", [4_000] * 40))
    async with Forwarder(
        options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS
    ) as sink:
        for frame in new:
            began_s = time.monotonic()
            await sink.publish(frame)
            assert time.monotonic() - began_s < 2
        await until(lambda: sink.status.acknowledged_frames - sink.status.historical_frames == len(new))
        assert sink.status.historical_frames < len(old)
        await sink.publish(next(frames("old", [1])))  # goes behind the others of its sensor
        assert sink.status.spooled_frames > 0
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert_same(found["new"], new)
    assert sequences(found["old"]) == [*range(4_000), 0]


async def test_while_live_frames_queue_up_the_spool_gets_no_more_than_its_share(topics, tmp_path):
    with Spool(tmp_path, SETTINGS) as spool:
        for frame in frames("old", [4_000] * 6_000):
            spool.append(b"old", encode_frame(frame))
    async with Forwarder(
        options(topics.bootstrap_servers),
        topics.frames_topic,
        folder=tmp_path,
        spool=SETTINGS,
        drain_share=0.1,
        drain_s=0,
    ) as sink:
        for frame in frames("new", [4_000] * 5_000):
            await sink.publish(frame)
        status = sink.status
        live_frames = status.acknowledged_frames - status.historical_frames
        # Some batches of the spool are sent before live frames queue up.
        assert 0 < status.historical_frames < live_frames * 0.1 / 0.9 + 4 * 2**20 / 8_064


async def test_a_sensor_that_never_pauses_finds_back_from_the_disk_to_the_broker(topics, tmp_path):
    sent = list(frames("s", [2_000] * 3_000))
    async with Forwarder(NOBODY, topics.frames_topic, folder=tmp_path, spool=SETTINGS) as sink:
        for frame in sent[:500]:
            await sink.publish(frame)
    async with Forwarder(
        options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS
    ) as sink:
        for frame in sent[500:]:
            await sink.publish(frame)
        assert sink.status.spooled_frames == 0
    found = decoded(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"]
    assert sequences(found) == list(range(3_000))
    assert [frame.flags for frame in found] == sorted((frame.flags for frame in found), reverse=True)
    assert found[-1].flags == Flags(0)


async def test_a_frame_that_the_broker_never_takes_is_set_aside_and_the_others_arrive(kafka, unique, tmp_path, caplog):
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(unique, 1, 1, topic_configs={"max.message.bytes": "50000"})])
    finally:
        await admin.close()
    sent = list(frames("s", [*[2_000] * 5, 100_000, *[2_000] * 5]))
    client = options(kafka) | {"max_batch_size": 40_000}
    async with Forwarder(client, unique, folder=tmp_path, spool=SETTINGS) as sink:
        for frame in sent:
            await sink.publish(frame)
        await until(lambda: sink.status.acknowledged_frames == 10)
        assert sink.status.refused_frames == 1
        with pytest.raises(BadRecord, match="the broker refused one of 200064"):
            await sink.publish(next(frames("s", [100_000])))
    found = first_arrivals(await everything_in(kafka, unique))["s"]
    assert sequences(found) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    with Spool(tmp_path / "refused", SETTINGS) as refused:
        assert [one.frame for one in refused.read(10**6)] == [encoded(sent[5]).data]
    assert "of s is set aside" in caplog.text


SPOOLER = """
import asyncio, sys
from producers.forwarder import Forwarder
from producers.spool import SpoolSettings
from tests.integration.test_publisher import frames

async def main(folder):
    settings = SpoolSettings(max_bytes=10**9, full="block", sync_s=0.2)
    async with Forwarder({"bootstrap_servers": "127.0.0.1:1"}, folder=folder, spool=settings) as sink:
        for n, frame in enumerate(frames("s", [4_000] * 10**6)):
            await sink.publish(frame)
            if n % 100 == 99:
                await sink.flush()
                print(n + 1, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_of_a_process_that_is_killed_while_it_spools_everything_flushed_arrives(topics, tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SPOOLER, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    for _ in range(12):
        safe = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    async with Forwarder(
        options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS
    ) as sink:
        await until(lambda: not sink.status.spooled_frames)
        assert sink.status.damaged_places == 0
    arrived = first_arrivals(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"]
    assert len(arrived) >= safe >= 1_200
    sent = list(frames("s", [4_000] * len(arrived)))
    for frame, expected in zip(arrived, sent, strict=True):
        assert frame.flags == Flags.HISTORICAL
        assert encode_frame(frame)[8:] == encode_frame(expected)[8:]


@pytest.mark.slow
async def test_nothing_is_lost_or_out_of_order_while_the_broker_hangs_dies_and_comes_back(
    own_stack, make_topics, tmp_path, caplog
):
    caplog.set_level(logging.CRITICAL, "aiokafka")
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    sent = {f"plant/pump{n}/ch0": list(frames(f"plant/pump{n}/ch0", [2_000] * 3_000, n)) for n in range(8)}
    pace = asyncio.Event()
    published = 0

    async def produce(sink):
        nonlocal published
        for group in zip(*sent.values(), strict=True):
            for frame in group:
                await sink.publish(frame)
            published += 1
            if pace.is_set():
                return
            await asyncio.sleep(0.01)

    broker = own_stack.kafka
    async with Forwarder(
        options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS, give_up_s=1.0
    ) as sink:
        producing = asyncio.create_task(produce(sink))
        await until(lambda: published > 50)
        assert sink.status.connected
        os.kill(broker.service.running().pid, signal.SIGSTOP)
        try:
            await until(lambda: not sink.status.connected)
            assert sink.status.spooled_frames > 0
            await asyncio.sleep(2)
        finally:
            os.kill(broker.service.running().pid, signal.SIGCONT)
        await until(lambda: sink.status.connected and not sink.status.spooled_frames)
        await asyncio.to_thread(broker.service.kill)
        await until(lambda: not sink.status.connected)
        before = published
        await until(lambda: published > before + 100)
        await asyncio.to_thread(broker.start, owned=True)
        await asyncio.to_thread(broker.wait_ready, 60)
        await until(lambda: sink.status.connected and not sink.status.spooled_frames)
        before = published
        await until(lambda: published > before + 20)
        pace.set()
        await producing
        await sink.flush()
        status = sink.status
    assert status.frames == status.acknowledged_frames == 8 * published
    assert status.historical_frames > 8 * 100
    found = first_arrivals(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    assert found.keys() == sent.keys()
    for sensor, arrived in found.items():
        assert sequences(arrived) == list(range(published))
        for frame, expected in zip(arrived, sent[sensor], strict=False):
            assert encode_frame(frame)[8:] == encode_frame(expected)[8:]
        assert {frame.flags for frame in arrived[:20]} == {Flags(0)}
        assert {frame.flags for frame in arrived[-10:]} == {Flags(0)}
        assert any(frame.flags == Flags.HISTORICAL for frame in arrived)


@pytest.mark.slow
async def test_leaving_without_a_broker_keeps_what_it_did_not_acknowledge_for_the_next_start(
    own_stack, make_topics, tmp_path
):
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    sent = list(frames("s", [10_000] * 60))
    tasks = asyncio.all_tasks()

    def sink():
        return Forwarder(
            options(topics.bootstrap_servers), topics.frames_topic, folder=tmp_path, spool=SETTINGS, give_up_s=1.0
        )

    async with sink() as first:
        for frame in sent[:10]:
            await first.publish(frame)
        await first.flush()
        # A topic that was just made may take longer than `give_up_s` for its first message.
        await until(lambda: first.status.acknowledged_frames == 10)
        await asyncio.to_thread(own_stack.kafka.service.kill)
        for frame in sent[10:]:
            await first.publish(frame)
    assert first.status.acknowledged_frames == 10
    assert first.status.spooled_frames == 50
    assert asyncio.all_tasks() <= tasks
    await asyncio.to_thread(own_stack.kafka.start, owned=True)
    await asyncio.to_thread(own_stack.kafka.wait_ready, 60)
    async with sink() as second:
        pass
    assert second.status.historical_frames == 50
    assert sequences(first_arrivals(await everything_in(topics.bootstrap_servers, topics.frames_topic))["s"]) == list(
        range(60)
    )
