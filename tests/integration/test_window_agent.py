"""The window agent as a process of its own on a real Kafka: what comes in, what is killed, what must come out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.settings import KafkaSettings
from stream.dead_letters import DeadLetter, decode_dead_letter
from stream.records import FRAME_HEADER, Flags, Frame, encode_frame, encode_window
from stream.window_output import WindowOutput
from stream.windows import SensorWindows, WindowSpec

pytestmark = pytest.mark.integration

SPEC = WindowSpec(length=2048, hop=1024)
RATE_HZ = Fraction(100_000)
EPOCH_NS = 1_700_000_000_000_000_000

RUN_AGENT = """
import json, sys
from deploy import logs
from stream.window_agent import run_window_agent
from stream.windows import WindowSpec
logs.configure("INFO", "json")
options = json.loads(sys.argv[1])
sys.exit(run_window_agent(spec=WindowSpec(*options.pop("spec")), client_options={}, log_every_s=1.0, **options))
"""


class AgentProcess:
    """`run_window_agent` in another process, and its log."""

    def __init__(self, topics: KafkaSettings, group: str, log: Path, **options: object) -> None:
        arguments = {
            "bootstrap": topics.bootstrap_servers,
            "frames_topic": topics.frames_topic,
            "windows_topic": topics.windows_topic,
            "deadletter_topic": topics.deadletter_topic,
            "group": group,
            "spec": [SPEC.length, SPEC.hop],
        }
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN_AGENT, json.dumps(arguments | options)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, message: str) -> list[dict[str, object]]:
        lines = (json.loads(line) for line in self.log.splitlines())
        return [event for event in lines if event["message"] == message]

    async def ready(self) -> None:
        await until(lambda: self.process.poll() is not None or self.events("ready"), "the agent is ready")
        assert self.process.poll() is None, self.log

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, "the agent has ended")
        return self.process.returncode

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start_agent(tmp_path: Path, unique: str) -> Iterator[Callable[..., AgentProcess]]:
    """Start an agent of this test's group."""
    agents: list[AgentProcess] = []

    def start(topics: KafkaSettings, **options: object) -> AgentProcess:
        agents.append(AgentProcess(topics, f"{unique}.agents", tmp_path / f"agent{len(agents)}.log", **options))
        return agents[-1]

    yield start
    for agent in agents:
        agent.end()


async def until(condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s} s until {what}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def publisher(topics: KafkaSettings) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(
        bootstrap_servers=topics.bootstrap_servers,
        enable_idempotence=True,
        max_batch_size=2**18,
        max_request_size=2**25,
    ) as producer:
        yield producer


async def make_topic(topics: KafkaSettings, name: str, **config: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=topics.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 4, 1, topic_configs=config)])
    finally:
        await admin.close()


async def ends(consumer: AIOKafkaConsumer, topic: str) -> dict[TopicPartition, int]:
    partitions = [TopicPartition(topic, number) for number in range(4)]
    return await consumer.end_offsets(partitions)


async def read_all(topics: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    """Everything that is in the topic now; in order within a partition."""
    async with AIOKafkaConsumer(
        bootstrap_servers=topics.bootstrap_servers, max_partition_fetch_bytes=2**25, auto_offset_reset="earliest"
    ) as consumer:
        end = await ends(consumer, topic)
        consumer.assign(list(end))
        await consumer.seek_to_beginning()
        records: list[ConsumerRecord] = []
        while any([await consumer.position(partition) < offset for partition, offset in end.items()]):
            for fetched in (await consumer.getmany(timeout_ms=200)).values():
                records.extend(fetched)
        return records


@dataclass(frozen=True)
class Progress:
    committed: dict[int, int]
    end: dict[int, int]

    @property
    def complete(self) -> bool:
        return self.committed == self.end


async def progress(topics: KafkaSettings, group: str) -> Progress:
    async with AIOKafkaConsumer(
        bootstrap_servers=topics.bootstrap_servers, group_id=group, enable_auto_commit=False
    ) as consumer:
        end = await ends(consumer, topics.frames_topic)
        committed = {tp.partition: await consumer.committed(tp) or 0 for tp in end}
    return Progress(committed, {tp.partition: offset for tp, offset in end.items()})


async def until_committed(topics: KafkaSettings, group: str, within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not (now := await progress(topics, group)).complete:
        assert time.monotonic() < deadline, f"not everything is committed: {now}"
        await asyncio.sleep(0.2)


def in_frames(sensor: str, seed: int, places: Sequence[int]) -> list[Frame]:
    """A sensor's life from its first sample to the end of the epoch, noise, cut at these places."""
    noise = np.random.default_rng(seed).integers(-(2**15), 2**15, places[-1]).astype(np.int16)
    frames = [
        Frame(sensor, EPOCH_NS, number, start, EPOCH_NS, RATE_HZ, noise[start:end], 1e-6)
        for number, (start, end) in enumerate(itertools.pairwise(places))
    ]
    return [*frames, Frame(sensor, EPOCH_NS, len(frames), places[-1], EPOCH_NS, RATE_HZ, noise[:0], 1e-6, Flags.END)]


def recording(sensor: str, seed: int, samples: int, cuts: int) -> list[Frame]:
    """A sensor's life in frames of random length."""
    places = np.random.default_rng(seed).choice(np.arange(1, samples), cuts, replace=False)
    return in_frames(sensor, seed, [0, *sorted(places.tolist()), samples])


def hit(sensor: str, first_sample: int, count: int) -> Frame:
    samples = np.arange(count).astype(np.int16)
    return Frame(sensor, EPOCH_NS, 0, first_sample, EPOCH_NS, RATE_HZ, samples, flags=Flags.HIT)


def windows_offline(frames: Iterable[Frame]) -> dict[str, list[bytes]]:
    """What the same frames come to without Kafka: encoded windows of each sensor, in order."""
    sensors: dict[str, SensorWindows] = {}
    made: dict[str, list[bytes]] = defaultdict(list)
    for frame in frames:
        sensor = sensors.setdefault(frame.sensor, SensorWindows(frame.sensor, SPEC))
        made[frame.sensor] += [encode_window(window) for window in sensor.push(frame).windows]
    return dict(made)


async def windows_online(topics: KafkaSettings) -> dict[str, list[bytes]]:
    """Encoded windows of each sensor as they stand in the topic."""
    made: dict[str, list[bytes]] = defaultdict(list)
    for record in await read_all(topics, topics.windows_topic):
        made[record.key.decode()].append(record.value)
    return dict(made)


def first_times(values: Iterable[bytes]) -> list[bytes]:
    return list(dict.fromkeys(values))


def corrupted(raw: bytes, **fields: object) -> bytes:
    header = np.frombuffer(raw[: FRAME_HEADER.itemsize], FRAME_HEADER).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + raw[FRAME_HEADER.itemsize :]


def poison(sensor: str) -> dict[str, tuple[bytes, bytes]]:
    """Reason → key and value of a message that has to be turned away for it."""
    key = sensor.encode()
    raw = encode_frame(Frame(sensor, EPOCH_NS, 0, 10**6, EPOCH_NS, RATE_HZ, np.arange(500, dtype=np.int16)))
    floats = np.zeros(500, dtype=np.float32)
    floats[400] = np.nan
    nan = encode_frame(Frame(sensor, EPOCH_NS, 0, 10**6, EPOCH_NS, RATE_HZ, floats))
    return {
        "truncated": (key, raw[:-7]),
        "magic": (key, b"RIFF" + raw[4:]),
        "crc": (key, raw[:-1] + bytes([raw[-1] ^ 0x55])),
        "not-finite": (key, nan),
        "rate": (key, corrupted(raw, rate_numerator=2**32 - 1, rate_denominator=1)),
        "version": (key, corrupted(raw, version=9)),
        "too-large": (key, b"AEFR" + bytes(20_000_000)),
        "sensor-id": (b"\xff\xfe\x00", raw),
    }


async def test_poison_lands_in_the_dead_letters_with_its_reason_and_the_frames_around_it_are_processed(
    kafka: str, unique: str, make_topics: Callable[..., KafkaSettings], start_agent: Callable[..., AgentProcess]
) -> None:
    small = KafkaSettings(bootstrap_servers=kafka)
    await make_topic(small, f"{unique}.windows", **{"max.message.bytes": str(2**21)})
    topics = make_topics(kafka)
    agent = start_agent(topics)
    sensor = "plant/püm\N{LATIN SMALL LETTER U WITH DIAERESIS}p/ch0"
    good = recording(sensor, seed=1, samples=60_000, cuts=12)
    lying = corrupted(poison(sensor)["crc"][1], sample_count=400, payload_crc32=0)
    hits = [hit("hits", 0, 100), hit("hits", 1000, 1_500_000), hit("hits", 2_000_000, 100)]
    expected = {reason: value for reason, (_, value) in poison(sensor).items()}
    expected["window-too-large"] = windows_offline(hits)["hits"][1]

    async with publisher(topics) as producer:
        for frame in hits:
            await producer.send(topics.frames_topic, encode_frame(frame), key=b"hits")
        bad = [*poison(sensor).values(), (sensor.encode(), lying)]
        for frame in good:
            await producer.send(topics.frames_topic, encode_frame(frame), key=sensor.encode())
            if bad:
                key, value = bad.pop()
                await producer.send_and_wait(topics.frames_topic, value, key=key)
        assert not bad
    await until_committed(topics, f"{unique}.agents")

    assert await windows_online(topics) == windows_offline([*good, hits[0], hits[2]])
    letters = [decode_dead_letter(record) for record in await read_all(topics, topics.deadletter_topic)]
    assert {letter.reason for letter in letters} == set(expected)
    for letter in letters:
        assert letter.component == "window-agent"
        assert letter.detail
        assert letter.topic == topics.frames_topic
        assert letter.truncated_from is None
    by_reason = {letter.reason: letter for letter in letters if letter.raw != lying[: len(letter.raw)]}
    assert {reason: letter.raw for reason, letter in by_reason.items()} == expected
    assert by_reason["sensor-id"].key == b"\xff\xfe\x00"
    (lie,) = [letter for letter in letters if letter.reason == "crc" and letter.raw != expected["crc"]]
    assert "sample count is suspect" in lie.detail
    sources = {(r.partition, r.offset): r for r in await read_all(topics, topics.frames_topic)}
    for letter in letters:
        source = sources[letter.partition, letter.offset]
        assert source.key == letter.key
        if letter.reason != "window-too-large":
            assert source.value[letter.byte_offset : letter.byte_offset + len(letter.raw)] == letter.raw

    agent.process.terminate()
    assert await agent.ended() == 0
    (report,) = agent.events("stopped")
    assert {reason: report[f"reject_{reason}"] for reason in expected if reason != "window-too-large"} == {
        reason: 2 if reason == "crc" else 1 for reason in expected if reason != "window-too-large"
    }
    assert report["windows_refused"] == 1


async def test_an_agent_that_is_stopped_and_started_again_leaves_out_nothing_and_repeats_nothing(
    topics: KafkaSettings, unique: str, start_agent: Callable[..., AgentProcess]
) -> None:
    # Frames shorter than the hop: a message that is read again holds the beginning of no earlier window.
    frames = in_frames("a", 2, range(0, 200_250, 250))
    sent = 0

    async def publish() -> None:
        nonlocal sent
        async with publisher(topics) as producer:
            for frame in frames:
                await producer.send(topics.frames_topic, encode_frame(frame), key=b"a")
                sent += 1
                await asyncio.sleep(0.004)

    first = start_agent(topics)
    await first.ready()
    publishing = asyncio.create_task(publish())
    await until(lambda: sent > len(frames) / 2, "half of it is sent")
    first.process.terminate()
    assert await first.ended() == 0
    second = start_agent(topics)
    await publishing
    await until_committed(topics, f"{unique}.agents")
    assert await windows_online(topics) == windows_offline(frames)
    (report,) = first.events("stopped")
    assert 0 < report["windows_written"] < len(windows_offline(frames)["a"])
    second.process.send_signal(signal.SIGINT)
    assert await second.ended() == 0


async def test_agents_that_are_killed_and_stopped_in_the_middle_leave_out_no_window_and_keep_the_order(
    topics: KafkaSettings, unique: str, start_agent: Callable[..., AgentProcess]
) -> None:
    lives = [recording(f"plant/ch{number}", seed=number, samples=250_000, cuts=250) for number in range(6)]
    frames = [frame for together in zip(*lives, strict=True) for frame in together]
    sent = 0

    async def publish() -> None:
        nonlocal sent
        async with publisher(topics) as producer:
            for frame in frames:
                await producer.send(topics.frames_topic, encode_frame(frame), key=frame.sensor.encode())
                sent += 1
                await asyncio.sleep(0.003)

    killed, stopped, survivor = (start_agent(topics) for _ in range(3))
    for agent in (killed, stopped, survivor):
        await agent.ready()
    publishing = asyncio.create_task(publish())
    await until(lambda: sent > len(frames) * 0.3, "a third is sent")
    killed.process.kill()
    await until(lambda: sent > len(frames) * 0.6, "more is sent")
    stopped.process.terminate()
    assert await stopped.ended() == 0
    await publishing
    await until_committed(topics, f"{unique}.agents")

    online = await windows_online(topics)
    assert {sensor: first_times(values) for sensor, values in online.items()} == windows_offline(frames)
    assert not await read_all(topics, topics.deadletter_topic)
    survivor.process.terminate()
    assert await survivor.ended() == 0
    for agent in (stopped, survivor):
        (report,) = agent.events("stopped")
        assert "skipped_offsets" not in report


async def test_an_agent_whose_windows_are_refused_for_good_ends_with_the_cause_and_commits_nothing(
    kafka: str, unique: str, make_topics: Callable[..., KafkaSettings], start_agent: Callable[..., AgentProcess]
) -> None:
    await make_topic(KafkaSettings(bootstrap_servers=kafka), f"{unique}.windows", **{"max.message.bytes": "1000"})
    topics = make_topics(kafka)
    agent = start_agent(topics)
    async with publisher(topics) as producer:
        for frame in recording("a", seed=3, samples=10_000, cuts=5):
            await producer.send(topics.frames_topic, encode_frame(frame), key=b"a")
    assert await agent.ended() == 1
    assert "MessageSizeTooLargeError" in agent.log
    assert not any((await progress(topics, f"{unique}.agents")).committed.values())


async def test_an_agent_that_finds_no_kafka_says_so(unique: str, start_agent: Callable[..., AgentProcess]) -> None:
    agent = start_agent(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    assert await agent.ended() == 1
    (event,) = [json.loads(line) for line in agent.log.splitlines() if '"CRITICAL"' in line]
    assert "127.0.0.1:1" in str(event["message"])


async def test_a_dead_letter_larger_than_the_broker_takes_is_cut_and_the_next_one_is_written(
    kafka: str, unique: str
) -> None:
    topics = KafkaSettings(bootstrap_servers=kafka, deadletter_topic=f"{unique}.deadletter")
    await make_topic(topics, topics.deadletter_topic, **{"max.message.bytes": "200000"})
    small, large = (
        DeadLetter("window-agent", "too-large", "", "ae.frames", 0, offset, b"k", os.urandom(size))
        for offset, size in enumerate((100, 300_000))
    )
    failures: list[object] = []
    written: list[int] = []
    options = {"bootstrap_servers": kafka}
    async with WindowOutput(options, "unused", topics.deadletter_topic, lambda *what: failures.append(what)) as output:
        for number, letter in enumerate((small, large, small)):
            await output.write_letter(letter, partial(written.append, number))
            await output.idle()
    assert (written, failures) == ([0, 1, 2], [])
    records = await read_all(topics, topics.deadletter_topic)
    assert [decode_dead_letter(record) for record in records] == [small, large.truncated(), small]
