"""Nothing is lost: what a broker, a disk or a producer does in the worst moment, Kafka holds the file in the end."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local_stack import LocalStack
from deploy.settings import KafkaSettings
from producers.forwarder import Forwarder
from producers.sources import open_recording
from producers.spool import SpoolSettings
from stream.records import NS_PER_S, Flags, Frame, decode_frames, encode_frame
from tests.integration.test_forwarder import first_arrivals, until
from tests.integration.test_publisher import everything_in, options, partitions_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent

NOBODY = options("127.0.0.1:1")
FRAME_MS = 10.0


def recording(path: Path, seconds: float, channels: int = 4, rate_hz: int = 48_000) -> Path:
    """A WAV of noise."""
    rng = np.random.default_rng(7)
    soundfile.write(path, rng.integers(-9_000, 9_000, (int(seconds * rate_hz), channels)).astype(np.int16), rate_hz)
    return path


def start_replay(path: Path, topics: KafkaSettings, errors: Path) -> subprocess.Popen[bytes]:
    """`aewatch replay` of the file at full speed, always as the same run."""
    environment = os.environ | {
        "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": topics.bootstrap_servers,
        "AEWATCH_KAFKA__FRAMES_TOPIC": topics.frames_topic,
        "AEWATCH_KAFKA__WINDOWS_TOPIC": topics.windows_topic,
        "AEWATCH_KAFKA__PREDICTIONS_TOPIC": topics.predictions_topic,
        "AEWATCH_KAFKA__SHADOW_PREDICTIONS_TOPIC": topics.shadow_predictions_topic,
        "AEWATCH_KAFKA__DEADLETTER_TOPIC": topics.deadletter_topic,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "deploy.cli", "replay", str(path), "--rate", "max", "--run", "r"]
    with errors.open("ab") as stderr:
        return subprocess.Popen([*command, "--frame-ms", f"{FRAME_MS}"], cwd=ROOT, env=environment, stderr=stderr)


async def messages_in(consumer: AIOKafkaConsumer, topic: str) -> int:
    """How many messages the topic holds."""
    partitions = [TopicPartition(topic, number) for number in await partitions_of(consumer, topic)]
    return sum((await consumer.end_offsets(partitions)).values())


async def growth(consumer: AIOKafkaConsumer, topic: str, before: int, playing: subprocess.Popen[bytes]) -> int:
    """Wait until the topic has more than `before` messages; returns how many."""
    async with asyncio.timeout(60):
        while (now := await messages_in(consumer, topic)) <= before:
            assert playing.poll() is None, "the replay ended before it sent anything"
            await asyncio.sleep(0.005)
    return now


async def assert_kafka_holds(path: Path, topics: KafkaSettings) -> int:
    """The first arrivals of all identities are the file's frames, in order per sensor, bit for bit.

    Returns
    -------
    int
        Frames that arrived, again and again.
    """
    found = await everything_in(topics.bootstrap_servers, topics.frames_topic)
    arrived = first_arrivals(found)
    expected: dict[str, list[Frame]] = {}
    for frame in open_recording(path, "r", frame_s=FRAME_MS / 1000):
        expected.setdefault(frame.sensor, []).append(frame)
    assert arrived.keys() == expected.keys()
    for sensor, frames in expected.items():
        assert [encode_frame(frame) for frame in arrived[sensor]] == [encode_frame(frame) for frame in frames]
    return sum(len(decode_frames(message.key.decode(), message.value).frames) for message in found)


# --- The broker is killed ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_replay_goes_on_by_itself_when_the_broker_is_killed_in_the_middle_and_comes_back(
    own_stack: LocalStack, make_topics: Callable[..., KafkaSettings], tmp_path: Path
) -> None:
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    path = recording(tmp_path / "pump.wav", 120.0)
    errors = tmp_path / "stderr"
    playing = start_replay(path, topics, errors)
    try:
        async with AIOKafkaConsumer(bootstrap_servers=topics.bootstrap_servers) as consumer:
            at_kill = await growth(consumer, topics.frames_topic, 50, playing)
        await asyncio.to_thread(own_stack.kafka.service.kill)
        assert playing.poll() is None, "it was over before the broker was killed; make the file longer"
        await asyncio.sleep(2.0)
        assert playing.poll() is None
        await asyncio.to_thread(own_stack.kafka.start, owned=True)
        await asyncio.to_thread(own_stack.kafka.wait_ready, 60)
        assert await asyncio.to_thread(playing.wait, 120) == 0, errors.read_text()
    finally:
        playing.kill()
        playing.wait()
    async with AIOKafkaConsumer(bootstrap_servers=topics.bootstrap_servers) as consumer:
        assert await messages_in(consumer, topics.frames_topic) > at_kill
    await assert_kafka_holds(path, topics)
    frames = 4 * (120_000 / FRAME_MS + 1)
    assert f"{frames:.0f} frames, {4 * 120 * 48_000} samples" in errors.read_text()


# --- The producer is killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
async def test_of_a_replay_that_is_killed_again_and_again_kafka_holds_the_file(
    topics: KafkaSettings, tmp_path: Path, kills: int
) -> None:
    path = recording(tmp_path / "pump.wav", 60.0)
    errors = tmp_path / "stderr"
    rng = random.Random(kills)
    count = 0
    async with AIOKafkaConsumer(bootstrap_servers=topics.bootstrap_servers) as consumer:
        for _ in range(kills):
            playing = start_replay(path, topics, errors)
            try:
                await growth(consumer, topics.frames_topic, count, playing)
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                in_time = playing.poll() is None
            finally:
                playing.kill()
                playing.wait()
            assert in_time, "it was over before it was killed; make the file longer"
            count = await messages_in(consumer, topics.frames_topic)
        playing = start_replay(path, topics, errors)
        assert await asyncio.to_thread(playing.wait, 60) == 0, errors.read_text()
    arrived = await assert_kafka_holds(path, topics)
    whole = 4 * (60_000 / FRAME_MS + 1)
    assert whole < arrived < whole * (kills + 1)  # every start sent something, and none of those killed sent all


# --- The disk is full --------------------------------------------------------------------------------------------


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of so many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no disk can be filled here: mount: {error}")
    if mounted.returncode:
        pytest.skip(f"no disk can be filled here, that needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


PATTERN = np.random.default_rng(3).integers(-9_000, 9_000, 1_000_000).astype(np.int16)


def live_frame(sensor: int, sequence: int, size: int = 800, rate_hz: int = 16_000) -> Frame:
    """One of a sensor's frames; what it holds follows from its place."""
    begin = (sensor * 7_919 + sequence * 104_729) % (len(PATTERN) - size)
    first = sequence * size
    return Frame(
        sensor=f"plant/s{sensor:02d}",
        epoch_ns=1_000,
        sequence=sequence,
        first_sample=first,
        time_ns=1_000 + first * NS_PER_S // rate_hz,
        rate_hz=Fraction(rate_hz),
        samples=PATTERN[begin : begin + size],
        volts_per_count=3e-6,
        flags=Flags(0),
    )


@pytest.mark.slow
async def test_beyond_a_full_disk_frames_wait_or_are_counted_as_dropped_and_all_others_arrive_in_order(
    own_stack: LocalStack, make_topics: Callable[..., KafkaSettings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topics = await asyncio.to_thread(make_topics, own_stack.kafka_bootstrap)
    dropping, blocking = 0, 1
    taken = [0, 0]  # of each sensor

    async def produce(sink: Forwarder, sensor: int, until_sequence: int) -> None:
        while taken[sensor] < until_sequence:
            await sink.publish(live_frame(sensor, taken[sensor], 8_000))
            taken[sensor] += 1

    with ExitStack() as disks:
        folders = [disks.enter_context(tiny_disk(tmp_path / name, "2m")) for name in ("dropping", "blocking")]
        client = options(topics.bootstrap_servers)
        policies: tuple[Any, Any] = ("drop_newest", "block")
        sinks = [
            Forwarder(
                client,
                topics.frames_topic,
                folder=folder,
                spool=SpoolSettings(max_bytes=10**9, full=full, segment_bytes=256 * 1024),
                give_up_s=1.0,
            )
            for folder, full in zip(folders, policies, strict=True)
        ]
        async with sinks[dropping] as drops, sinks[blocking] as blocks:
            await produce(drops, dropping, 100)
            await produce(blocks, blocking, 100)
            await asyncio.to_thread(own_stack.kafka.service.kill)
            # More than memory and disk hold together, 16 MB and 2 MB.
            waiting = asyncio.create_task(produce(blocks, blocking, 2_000))
            await produce(drops, dropping, 2_000)
            await until(lambda: not drops.status.connected and not blocks.status.connected)
            await produce(drops, dropping, 3_000)
            assert drops.status.dropped_frames > 1_000
            before = taken[blocking]
            await asyncio.sleep(2.5)
            assert 1_000 < taken[blocking] == before < 2_000  # it waits for room
            assert blocks.status.dropped_frames == 0
            assert 0 < caplog.text.count(f"frames go to {folders[blocking]}") < 10
            assert "No space left on device" in caplog.text
            await asyncio.to_thread(own_stack.kafka.start, owned=True)
            await asyncio.to_thread(own_stack.kafka.wait_ready, 60)
            async with asyncio.timeout(60):
                await waiting
            await until(lambda: not drops.status.spooled_frames and not blocks.status.spooled_frames, 60)
            await produce(drops, dropping, 3_100)
            await drops.flush()
            await blocks.flush()
            for sink in (drops, blocks):
                assert sink.status.damaged_places == 0
                assert sink.status.acknowledged_frames + sink.status.dropped_frames == sink.status.frames
    arrived = first_arrivals(await everything_in(topics.bootstrap_servers, topics.frames_topic))
    whole, holed = ([frame.sequence for frame in arrived[f"plant/s{sensor:02d}"]] for sensor in (blocking, dropping))
    assert whole == list(range(2_000))
    assert len(holed) == 3_100 - drops.status.dropped_frames
    assert holed[:100] == list(range(100))
    assert holed[-100:] == list(range(3_000, 3_100))
    for sensor in (dropping, blocking):
        found = arrived[f"plant/s{sensor:02d}"]
        for frame in found:
            assert encode_frame(frame)[8:] == encode_frame(live_frame(sensor, frame.sequence, 8_000))[8:]
        assert any(frame.flags == Flags.HISTORICAL for frame in found)


# --- The broker is away for long ---------------------------------------------------------------------------------


async def arrivals(bootstrap: str, topic: str) -> AsyncIterator[ConsumerRecord]:
    """All messages of the topic, not kept in memory; of a partition in order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    async with consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(await partitions_of(consumer, topic))]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        left = {partition for partition in partitions if ends[partition]}
        while left:
            for partition, batch in (await consumer.getmany(timeout_ms=500)).items():
                for message in batch:
                    yield message
                if batch and batch[-1].offset + 1 >= ends[partition]:
                    left.discard(partition)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("away_s", [20, pytest.param(3_600, marks=pytest.mark.endurance)])
async def test_what_32_sensors_sent_while_the_broker_was_away_arrives_once_and_in_order(
    kafka: str, unique: str, tmp_path: Path, away_s: int
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        # The local stack deletes what is over a gigabyte in a partition.
        await admin.create_topics([NewTopic(unique, 4, 1, topic_configs={"retention.bytes": "-1"})])
    finally:
        await admin.close()
    sensors, frame_s = 32, 0.05
    each = round(away_s / frame_s)
    room = SpoolSettings(max_bytes=20 * 10**9, full="block")
    async with Forwarder(NOBODY, unique, folder=tmp_path, spool=room) as sink:
        for sequence in range(each):
            for sensor in range(sensors):
                await sink.publish(live_frame(sensor, sequence))
        assert sink.status.spooled_frames == sensors * each
    async with Forwarder(options(kafka), unique, folder=tmp_path, spool=room) as sink:
        await until(lambda: not sink.status.spooled_frames, 1_500)
        assert sink.status.historical_frames == sensors * each
        assert sink.status.dropped_frames == sink.status.damaged_places == 0
    after = dict.fromkeys((f"plant/s{sensor:02d}" for sensor in range(sensors)), 0)
    async for message in arrivals(kafka, unique):
        sensor = message.key.decode()
        for frame in decode_frames(sensor, message.value).frames:
            assert frame.flags == Flags.HISTORICAL
            expected = live_frame(int(sensor[-2:]), after[sensor])
            assert encode_frame(frame)[8:] == encode_frame(expected)[8:]  # each one once, and the next one
            after[sensor] += 1
    assert set(after.values()) == {each}
    assert not any(name.endswith(".spool") for name in os.listdir(tmp_path))
