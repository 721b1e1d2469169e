"""Four faults of Faust 0.15 on a real Kafka, each beside the window agent that does not have it.

A test that begins with `test_faust_` documents a fault of the stock library and fails when upstream mends it; then the
override in `stream.faust_transport` that it names may go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import aiokafka
import faust
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from deploy.settings import KafkaSettings
from stream import faust_transport, window_agent
from stream.records import Frame, encode_frame
from stream.watchdog import Watchdog
from stream.window_agent import AgentTopics, WindowAgent
from tests.integration.test_window_agent import (
    SPEC,
    hit,
    in_frames,
    publisher,
    until,
    windows_offline,
)

pytestmark = pytest.mark.integration

NEVER_S = 3600.0
GIVES_UP_S = 15.0  #: a rebalance takes no longer
SENSOR = "a"


@pytest.fixture
def topics(kafka: str, make_topics: Callable[..., KafkaSettings]) -> KafkaSettings:
    """With one partition, which goes from one member of the group to another."""
    return make_topics(kafka, partitions=1)


async def send(topics: KafkaSettings, *frames: Frame) -> None:
    async with publisher(topics) as producer:
        for frame in frames:
            await producer.send_and_wait(topics.frames_topic, encode_frame(frame), key=frame.sensor.encode())


def hits(count: int) -> list[Frame]:
    """Each is one window at once."""
    return [hit("hits", 1000 * number, 100) for number in range(count)]


def open_window(messages: int) -> list[Frame]:
    """Too short for a window, so that all of them are held."""
    assert messages * 300 < SPEC.length
    return in_frames(SENSOR, 1, range(0, (messages + 1) * 300, 300))[:messages]


async def committed(topics: KafkaSettings, group: str) -> int | None:
    """What a new owner of the partition would begin with; None where nothing was committed."""
    admin = AIOKafkaAdminClient(bootstrap_servers=topics.bootstrap_servers)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    found = offsets.get(TopicPartition(topics.frames_topic, 0))
    return None if found is None or found.offset < 0 else found.offset


async def windows_in(topics: KafkaSettings) -> list[bytes]:
    """Encoded windows as they stand in the topic."""
    partition = TopicPartition(topics.windows_topic, 0)
    values: list[bytes] = []
    async with (
        AIOKafkaConsumer(bootstrap_servers=topics.bootstrap_servers, auto_offset_reset="earliest") as consumer,
        asyncio.timeout(GIVES_UP_S),
    ):
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        while len(values) < end:
            values += [record.value for record in (await consumer.getmany(timeout_ms=200)).get(partition, [])]
    return values


@contextlib.asynccontextmanager
async def another_member(topics: KafkaSettings, group: str, name: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Joins the group, which is a rebalance. The only partition goes to the member whose name comes first."""
    member = AIOKafkaConsumer(
        topics.frames_topic,
        bootstrap_servers=topics.bootstrap_servers,
        group_id=group,
        client_id=name,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    try:
        async with asyncio.timeout(GIVES_UP_S):
            await member.start()
        yield member
    finally:
        await member.stop()


TAKES_IT, LEAVES_IT = "aaa", "zzz"  #: before and after the names of both kinds of agent


async def offsets_read(member: AIOKafkaConsumer, through: int) -> list[int]:
    """Of the messages that this member reads, up to `through`."""
    offsets: list[int] = []
    async with asyncio.timeout(GIVES_UP_S):
        while not offsets or offsets[-1] < through:
            offsets.append((await member.getone()).offset)
    return offsets


# Stock Faust. Only the aiokafka consumer is made with plain options, so that another member needs no Faust.


class PlainThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        return aiokafka.AIOKafkaConsumer(**transport.options)


class FaustConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> PlainThread:
        return PlainThread(self, loop=self.loop, beacon=self.beacon)


class FaustTransport(driver.Transport):
    Consumer: ClassVar[type[FaustConsumer]] = FaustConsumer
    options: dict[str, Any]


class Boot(BootStrategy):
    enable_kafka_producer = False
    enable_web = False


class StockApp(faust.App):
    BootStrategy = Boot


@contextlib.asynccontextmanager
async def stock_faust(
    topics: KafkaSettings, group: str, folder: Path, *, wait_empty: bool = False
) -> AsyncIterator[tuple[faust.App, list[Any]]]:
    """A running app of stock Faust whose agent holds every event; and the events, in the order of their arrival."""
    app = StockApp(
        group,
        broker="kafka://unused",
        autodiscover=False,
        datadir=str(folder),
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        reply_create_topic=False,
        stream_wait_empty=wait_empty,
        broker_commit_interval=NEVER_S,
    )
    app.transport = FaustTransport([], app)
    app.transport.options = {
        "bootstrap_servers": topics.bootstrap_servers,
        "group_id": group,
        "client_id": "faust",
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "session_timeout_ms": 6000,
        "heartbeat_interval_ms": 300,
    }
    taken: list[Any] = []
    hold = taken.append

    async def read(stream: Any) -> None:
        async for event in stream.noack().events():
            hold(event)

    frames = app.topic(topics.frames_topic, key_type=bytes, value_type=bytes, value_serializer="raw")
    app.agent(frames, name="holds", concurrency=1)(read)
    async with asyncio.timeout(GIVES_UP_S):
        await app.start()
    try:
        yield app, taken
    finally:
        app.consumer._unacked_messages.clear()  # or it never stops
        await app.stop()


def offsets_of(events: list[Any]) -> list[int]:
    return [event.message.offset for event in events]


# Ours.


class WatchedAgent(WindowAgent):
    """A window agent in this process, whose messages and acknowledgements can be held up."""

    def __init__(self, topics: KafkaSettings, group: str) -> None:
        super().__init__(
            client_options={"bootstrap_servers": topics.bootstrap_servers},
            spec=SPEC,
            topics=AgentTopics(topics.frames_topic, topics.windows_topic, topics.deadletter_topic),
            group=group,
            watchdog=Watchdog(),  # that was not entered ends nothing
            log_every_s=0,
        )
        self.in_hand: list[int] = []  #: offsets of the messages that were handed out
        self.done_with = 0
        self.generations: list[int] = []
        self.hold_at: int | None = None
        self.hold_writing = False
        self.go_on = asyncio.Event()
        self.go_on_when_dropped = False

    async def _take(self, event: Any) -> None:
        self.in_hand.append(event.message.offset)
        self.generations.append(event.message.generation_id)
        if event.message.offset == self.hold_at:
            self.hold_at = None
            await self.go_on.wait()
        await super()._take(event)
        self.done_with += 1

    async def _write(self, *of: Any) -> None:
        if self.hold_writing:
            self.hold_writing = False
            await self.go_on.wait()
        await super()._write(*of)

    def drop(self, partitions: Collection[TP]) -> None:
        super().drop(partitions)
        if self.go_on_when_dropped and partitions:
            self.go_on.set()

    def hold_acknowledgements(self) -> list[Callable[[], None]]:
        """Windows are written no longer; instead of their acknowledgements there are these calls."""
        held: list[Callable[[], None]] = []

        async def write(_: bytes, __: bytes, on_safe: Callable[[], None], ___: object) -> None:
            held.append(on_safe)

        assert self._output is not None
        self._output.write_window = write  # type: ignore[method-assign]
        return held

    async def commit(self) -> None:
        consumer = self._app.running_consumer
        assert consumer is not None
        await consumer.commit()

    @property
    def windows_written(self) -> int:
        return self.snapshot().output.windows_written


@pytest.fixture(autouse=True)
def commits_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust_transport, "COMMIT_INTERVAL_S", NEVER_S)


@contextlib.asynccontextmanager
async def window_agent_in_this_process(topics: KafkaSettings, group: str) -> AsyncIterator[WatchedAgent]:
    agent = WatchedAgent(topics, group)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    try:
        yield agent
    finally:
        agent.go_on.set()
        stop.set()
        await running


# The offset rule.


async def test_faust_commits_past_a_message_that_is_open(topics: KafkaSettings, unique: str, tmp_path: Path) -> None:
    """Mended by `LedgerConsumer._new_offset`."""
    await send(topics, *hits(4))
    async with stock_faust(topics, unique, tmp_path) as (app, taken):
        await until(lambda: len(taken) == 4, "all are read")
        for event in taken[1:]:
            event.ack()
        await app.consumer.commit()
        assert await committed(topics, unique) == 4


async def test_the_agent_commits_nothing_past_a_message_whose_window_is_open(
    topics: KafkaSettings, unique: str
) -> None:
    life = in_frames(SENSOR, 1, [0, 100, 5000])
    await send(topics, life[0], *hits(3))
    async with window_agent_in_this_process(topics, unique) as agent:
        await until(lambda: agent.windows_written == 3, "the windows of the messages behind it are safe")
        await agent.commit()
        assert await committed(topics, unique) is None
        await send(topics, *life[1:])
        made = len(windows_offline([*life, *hits(3)])[SENSOR])
        await until(lambda: agent.windows_written == 3 + made and agent.done_with == 6, "its windows are safe")
        await agent.commit()
        assert await committed(topics, unique) == 6


# What belongs to an older generation.


async def test_faust_commits_what_an_acknowledgement_of_an_older_generation_says(
    topics: KafkaSettings, unique: str, tmp_path: Path
) -> None:
    """Mended by the ledger, which knows nothing of what was read before the partition went."""
    await send(topics, *hits(3))
    async with stock_faust(topics, unique, tmp_path) as (app, taken):
        await until(lambda: len(taken) == 3, "all are read")
        async with another_member(topics, unique, LEAVES_IT):
            await until(lambda: len(taken) == 6, "all are read again")
            assert offsets_of(taken) == [0, 1, 2, 0, 1, 2]
            assert taken[0].message.generation_id < taken[3].message.generation_id
            for event in taken[:3]:
                event.ack()
            await app.consumer.commit()
            assert await committed(topics, unique) == 3


async def test_an_acknowledgement_that_comes_after_a_rebalance_commits_nothing(
    topics: KafkaSettings, unique: str
) -> None:
    async with window_agent_in_this_process(topics, unique) as agent:
        await until(agent_is_ready(agent), "the agent reads")
        held = agent.hold_acknowledgements()
        await send(topics, *hits(3))
        await until(lambda: len(held) == 3, "all are read")
        async with another_member(topics, unique, LEAVES_IT):
            await until(lambda: len(held) == 6, "all are read again")
            assert agent.generations[0] < agent.generations[3]
            for acknowledge in held[:3]:
                acknowledge()
            await agent.commit()
            assert await committed(topics, unique) is None
            for acknowledge in held[3:]:
                acknowledge()
            await agent.commit()
            assert await committed(topics, unique) == 3


BEFORE_THE_NEXT_ASSIGNMENT = pytest.mark.parametrize("at_once", [True, False], ids=["before it", "after it"])


@BEFORE_THE_NEXT_ASSIGNMENT
async def test_a_message_in_hand_from_before_a_rebalance_does_not_hide_those_that_are_read_again(
    topics: KafkaSettings, unique: str, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(window_agent, "SETTLE_TIMEOUT_S", 0.2)
    life = in_frames(SENSOR, 1, range(0, 6300, 300))
    async with window_agent_in_this_process(topics, unique) as agent:
        agent.hold_at, agent.go_on_when_dropped = 5, at_once
        await send(topics, *life)
        await until(lambda: agent.hold_at is None, "the sixth message is in hand")
        async with another_member(topics, unique, LEAVES_IT):
            await asyncio.sleep(0.5)
            agent.go_on.set()
            expected = windows_offline(life)[SENSOR]
            await until(lambda: agent.in_hand[-1] == len(life) - 1, "all are read again", GIVES_UP_S)
            await until(lambda: agent.windows_written >= len(expected), "every window is written", GIVES_UP_S)
            assert agent.in_hand == [*range(6), *range(len(life))]
            assert await windows_in(topics) == expected
            assert agent.snapshot().frames.redelivered == 0


@BEFORE_THE_NEXT_ASSIGNMENT
async def test_a_message_in_hand_makes_nothing_once_its_partition_belongs_to_another(
    topics: KafkaSettings, unique: str, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(window_agent, "SETTLE_TIMEOUT_S", 0.2)
    async with window_agent_in_this_process(topics, unique) as agent:
        agent.hold_at, agent.go_on_when_dropped = 0, at_once
        await send(topics, *hits(2))
        await until(lambda: agent.hold_at is None, "the first message is in hand")
        async with another_member(topics, unique, TAKES_IT) as owner:
            agent.go_on.set()
            await until(lambda: agent.done_with, "the agent is done with it")
            await agent.settle()
            await agent.commit()
            assert (agent.windows_written, list(agent.partitions())) == (0, [])
            assert await windows_in(topics) == []
            assert await committed(topics, unique) is None
            assert await offsets_read(owner, through=1) == [0, 1]


# What happens before a partition goes.


async def test_faust_throws_acknowledgements_away_before_a_partition_goes(
    topics: KafkaSettings, unique: str, tmp_path: Path
) -> None:
    """Mended by `LedgerConsumer.on_partitions_revoked`."""
    await send(topics, *hits(6))
    async with stock_faust(topics, unique, tmp_path) as (_, taken):
        await until(lambda: len(taken) == 6, "all are read")
        for event in taken[:3]:
            event.ack()
        async with another_member(topics, unique, TAKES_IT) as owner:
            assert await offsets_read(owner, through=5) == [0, 1, 2, 3, 4, 5]


async def test_the_next_owner_reads_nothing_again_that_is_safe_and_all_that_is_not(
    topics: KafkaSettings, unique: str
) -> None:
    before, behind = hits(5)[:3], hits(5)[3:]
    await send(topics, *before, *open_window(1), *behind)
    async with window_agent_in_this_process(topics, unique) as agent:
        await until(lambda: agent.windows_written == 5 and agent.done_with == 6, "the windows of all hits are safe")
        assert await committed(topics, unique) is None
        async with another_member(topics, unique, TAKES_IT) as owner:
            assert await committed(topics, unique) == 3
            assert await offsets_read(owner, through=5) == [3, 4, 5]


async def test_what_is_on_its_way_when_a_partition_goes_is_waited_for_and_committed(
    topics: KafkaSettings, unique: str
) -> None:
    async with window_agent_in_this_process(topics, unique) as agent:
        agent.hold_writing = True
        await send(topics, hits(1)[0])
        await until(lambda: agent.in_hand == [0] and not agent.hold_writing, "its window is about to be written")
        asyncio.get_running_loop().call_later(1.5, agent.go_on.set)
        async with another_member(topics, unique, TAKES_IT):
            assert agent.windows_written == 1
            assert await committed(topics, unique) == 1


# Messages that are held while a rebalance waits.


async def test_faust_hangs_in_a_rebalance_while_messages_are_held(
    topics: KafkaSettings, unique: str, tmp_path: Path
) -> None:
    """Avoided by `stream_wait_empty=False` in `LedgerApp`."""
    await send(topics, *hits(2))
    async with stock_faust(topics, unique, tmp_path, wait_empty=True) as (_, taken):
        await until(lambda: len(taken) == 2, "all are read")
        joined = asyncio.Event()

        async def join() -> None:
            async with another_member(topics, unique, TAKES_IT):
                joined.set()

        joining = asyncio.create_task(join())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(joined.wait(), 4)
        for event in taken:
            event.ack()
        await asyncio.wait_for(joining, GIVES_UP_S)


async def test_a_rebalance_does_not_wait_for_messages_that_are_held(topics: KafkaSettings, unique: str) -> None:
    await send(topics, *open_window(5))
    async with window_agent_in_this_process(topics, unique) as agent:
        await until(lambda: agent.done_with == 5, "all are read and held")
        assert agent.snapshot().messages_pending == 5
        async with another_member(topics, unique, TAKES_IT) as owner:
            assert await offsets_read(owner, through=4) == [0, 1, 2, 3, 4]
            assert not list(agent.partitions())


def agent_is_ready(agent: WatchedAgent) -> Callable[[], bool]:
    def ready() -> bool:
        app = getattr(agent, "_app", None)
        return app is not None and app.running_consumer is not None and bool(app.running_consumer.assignment())

    return ready
