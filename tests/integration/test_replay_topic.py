"""History replayed from a real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.settings import KafkaSettings
from deploy.topic_reader import reading
from producers.replay import Controls, Progress
from producers.topic_replay import History, NoHistoryError, TopicCounts, replay_topic
from stream.records import Flags, Frame, decode_frames, encode_frame
from tests.integration.pipeline_run import PipelineRun, write_recording

pytestmark = pytest.mark.integration

#: Within what Kafka keeps.
BEGAN_MS = (int(time.time()) - 3600) * 1000
NS_PER_MS = 1_000_000
SENSORS = ("plant1/pump", "plant1/fan", "plant2/mill")


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, after: Callable[[int], None] = lambda _: None) -> None:
        self.frames: list[Frame] = []
        self._after = after

    async def publish(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._after(len(self.frames))

    async def flush(self) -> None:
        pass


def frame(sensor: str, number: int, samples: int = 100) -> Frame:
    """The sensors' epochs lie years apart; Kafka's clock is what they share."""
    epoch_ns = 10**18 * (1 + SENSORS.index(sensor))
    first = number * samples
    return Frame(
        sensor=sensor,
        epoch_ns=epoch_ns,
        sequence=number,
        first_sample=first,
        time_ns=epoch_ns + first * 1_000_000,
        rate_hz=Fraction(1000),
        samples=np.full(samples, number, np.int16),
        flags=Flags.HISTORICAL if number == 3 else Flags(0),
    )


async def fill(topics: KafkaSettings, messages: int = 40, samples: int = 100) -> None:
    """Each sensor sends every 100 ms; each in a partition of its own."""
    async with AIOKafkaProducer(acks="all", **topics.client_options()) as producer:
        for number in range(messages):
            for partition, sensor in enumerate(SENSORS):
                await producer.send(
                    topics.frames_topic,
                    encode_frame(frame(sensor, number, samples)),
                    key=sensor.encode(),
                    partition=partition,
                    timestamp_ms=BEGAN_MS + number * 100 + partition,
                )
        strange = [
            (None, b"no key"),
            (b"plant1/pump", b"no frame"),
            (b"replay/old/x", encode_frame(frame(SENSORS[0], 0))),
        ]
        for key, value in strange:
            await producer.send(topics.frames_topic, value, key=key, partition=3, timestamp_ms=BEGAN_MS + 5)
        await producer.flush()


@pytest.fixture
def topics(kafka: str, unique: str, make_topics: Callable[..., KafkaSettings]) -> KafkaSettings:
    """Fresh topics, of which that of frames takes its times from whoever writes: here, from these tests."""
    with ThreadPoolExecutor(1) as pool:  # so that asynchronous tests can ask for it too
        pool.submit(asyncio.run, _make_one_stamped_by_writers(kafka, f"{unique}.frames")).result()
    return make_topics(kafka)


async def _make_one_stamped_by_writers(bootstrap: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    configs = {"message.timestamp.type": "CreateTime"}
    await admin.create_topics([NewTopic(name, num_partitions=4, replication_factor=1, topic_configs=configs)])
    await admin.close()


async def played(
    topics: KafkaSettings, since_ms: int = 0, until_ms: int | None = None, controls: Controls | None = None
) -> tuple[list[Frame], TopicCounts, Progress]:
    kept, counts = Kept(), TopicCounts()
    until_ns = None if until_ms is None else (BEGAN_MS + until_ms) * NS_PER_MS
    history = History(topics.frames_topic, (BEGAN_MS + since_ms) * NS_PER_MS, until_ns)
    done = await replay_topic(
        topics.client_options(), history, "again", kept, controls or Controls(None), counts=counts
    )
    return kept.frames, counts, done


async def test_history_is_played_in_the_order_in_which_kafka_got_it_and_unchanged_but_for_the_name(
    topics: KafkaSettings,
) -> None:
    await fill(topics)
    frames, counts, done = await played(topics)
    body, ends = frames[:-3], frames[-3:]
    assert [(f.sensor, f.sequence) for f in body] == [(f"replay/again/{s}", n) for n in range(40) for s in SENSORS]
    for found in body:
        sent = frame(found.sensor.removeprefix("replay/again/"), found.sequence)
        for name in ("epoch_ns", "first_sample", "time_ns", "rate_hz", "flags", "volts_per_count"):
            assert getattr(found, name) == getattr(sent, name)
        np.testing.assert_array_equal(found.samples, sent.samples)
    assert [f.flags for f in ends] == [Flags.END] * 3
    assert (counts.bad, counts.replays, counts.messages) == (2, 1, 123)
    assert "partition 3 offset 0" in counts.told[0]
    assert done.played_s == pytest.approx(3.902)


async def test_a_part_of_the_history_is_what_kafka_got_from_since_to_before_until(topics: KafkaSettings) -> None:
    await fill(topics)
    frames, _, _ = await played(topics, since_ms=1000, until_ms=2001)
    assert [f.sequence for f in frames if f.sensor.endswith("pump")] == [*range(10, 21), 21]  # the last one is the END
    assert [f.sequence for f in frames if f.sensor.endswith("fan")] == [*range(10, 20), 20]


async def test_partitions_larger_than_one_fetch_are_merged_in_order(topics: KafkaSettings) -> None:
    await fill(topics, messages=30, samples=50_000)  # 3 MB each
    frames, _, _ = await played(topics)
    assert [f.sequence for f in frames[:-3]] == [n for n in range(30) for _ in SENSORS]


async def test_the_pace_is_that_of_the_history(topics: KafkaSettings) -> None:
    await fill(topics, messages=10)
    _, _, done = await played(topics, controls=Controls(4.0))
    assert done.rate == 4.0
    assert done.played_s == pytest.approx(0.902)
    assert done.most_behind_s < 0.9, "the clock began with the first message, and nothing was due at once"


async def test_a_replay_that_is_stopped_ends_every_sensor_that_began(topics: KafkaSettings) -> None:
    await fill(topics)
    controls = Controls(None)
    kept = Kept(after=lambda count: controls.stop() if count == 6 else None)
    history = History(topics.frames_topic, BEGAN_MS * NS_PER_MS)
    await replay_topic(topics.client_options(), history, "again", kept, controls)
    assert [f.flags for f in kept.frames[6:]] == [Flags.END] * 3


@pytest.mark.parametrize(("topic", "told"), [("nowhere", "no such topic"), ("", "holds no message of that time")])
async def test_a_topic_without_such_history_is_told(topics: KafkaSettings, topic: str, told: str) -> None:
    history = History(topic or topics.frames_topic, BEGAN_MS * NS_PER_MS)
    with pytest.raises(NoHistoryError, match=told):
        await replay_topic(topics.client_options(), history, "again", Kept(), Controls(None))


async def test_the_command_replays_a_topic_into_itself_and_ends(topics: KafkaSettings) -> None:
    await fill(topics, messages=5)
    variables = {
        "AEWATCH_KAFKA__BOOTSTRAP_SERVERS": topics.bootstrap_servers,
        "AEWATCH_KAFKA__FRAMES_TOPIC": topics.frames_topic,
        "AEWATCH_KAFKA__WINDOWS_TOPIC": topics.windows_topic,
        "AEWATCH_KAFKA__PREDICTIONS_TOPIC": topics.predictions_topic,
        "AEWATCH_KAFKA__SHADOW_PREDICTIONS_TOPIC": topics.shadow_predictions_topic,
        "AEWATCH_KAFKA__DEADLETTER_TOPIC": topics.deadletter_topic,
    }
    command = [sys.executable, "-m", "deploy.cli", "replay", "--from-topic", topics.frames_topic, "--rate", "max"]
    command += ["--since", "-2h", "--run", "again"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=inherited | variables, timeout=60, check=False
    )
    assert done.returncode == 1, "bad messages are told by the exit status, too"
    assert "18 frames" in done.stderr
    assert "left out: 1 messages of earlier replays" in done.stderr
    assert "2 frames or messages could not be used" in done.stderr
    found: list[Frame] = []
    async with reading(topics, topics.frames_topic) as consumer:
        while len(found) < 18:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    if (record.key or b"").startswith(b"replay/again/"):
                        found += decode_frames(record.key.decode(), record.value).frames
    assert {f.sensor for f in found} == {f"replay/again/{sensor}" for sensor in SENSORS}


@pytest.fixture
def pipeline(tmp_path: Path, topics: KafkaSettings, redis_url: str, unique: str) -> Iterator[PipelineRun]:
    run = PipelineRun(tmp_path, topics, redis_url, unique)
    with run.children:
        yield run


def test_a_report_of_a_live_replay_is_that_of_a_trial_of_the_same_bundle(pipeline: PipelineRun, tmp_path: Path) -> None:
    recording = write_recording(tmp_path / "plant.wav", duration_s=6.0, channels=1)
    (tmp_path / "plant.labels.csv").write_text("start,end,label\n0.49,0.57,drop\n3,3.1,knock\n")
    pipeline.start("window")
    pipeline.start("worker")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AEWATCH_")}
    reports = []
    for name, more in (("live", ["--rate", "max", "--wait", "60"]), ("trial", ["--bundle", "demo"])):
        command = [sys.executable, "-m", "deploy.cli", "replay", str(recording), "--run", "r", *more]
        done = subprocess.run(
            [*command, "--report", str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=environment | pipeline.variables,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    live, trial = reports
    assert live["judgements"][0]["alerts"], "something is found"
    assert live == trial
