"""A fake Kafka: logs, groups with generations, producers and consumers whose every answer the simulation decides on."""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, RequestTimedOutError
from faust.types import TP

from tests.simulation.loop import FakeLoop

Headers = list[tuple[str, bytes]]


class Message(NamedTuple):
    """A record in a log; what `ConsumerRecord` and Faust's message have that the product reads."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Headers
    timestamp: int = 1_700_000_000_000

    @property
    def tp(self) -> TP:
        return TP(self.topic, self.partition)


class Topic:
    """Partitions of one topic; `on_append` sees every record as it is written."""

    def __init__(self, name: str, partitions: int, on_append: Callable[[Message], None] | None = None) -> None:
        self.name = name
        self.logs: list[list[Message]] = [[] for _ in range(partitions)]
        self._on_append = on_append

    def append(self, partition: int, key: bytes | None, value: bytes, headers: Headers | None = None) -> Message:
        log = self.logs[partition]
        message = Message(self.name, partition, len(log), key, value, headers or [])
        log.append(message)
        if self._on_append is not None:
            self._on_append(message)
        return message

    @property
    def ends(self) -> list[int]:
        return [len(log) for log in self.logs]


class Group:
    """A consumer group's coordinator: who may commit, and what was."""

    def __init__(self, topic: Topic, on_commit: Callable[[int, int], None]) -> None:
        self.topic = topic
        self.generation = 0
        self.members: set[object] = set()
        self.committed: list[int | None] = [None] * len(topic.logs)
        self._on_commit = on_commit

    def rebalance(self, members: list[Any]) -> list[list[int]]:
        """A new generation of these members alone; the partitions of each, dealt out in turn."""
        self.generation += 1
        self.members = set(members)
        dealt: list[list[int]] = [[] for _ in members]
        for partition in range(len(self.topic.logs)):
            if members:
                dealt[(partition + self.generation) % len(members)].append(partition)
        return dealt

    def commit(self, member: object, generation: int, offsets: Mapping[int, int]) -> bool:
        """Whether the coordinator took it: only from a member of the present generation."""
        if not self.accepts(member, generation):
            return False
        for partition, offset in offsets.items():
            self.committed[partition] = offset
            self._on_commit(partition, offset)
        return True

    def accepts(self, member: object, generation: int) -> bool:
        return generation == self.generation and member in self.members

    def start_of(self, partition: int) -> int:
        return self.committed[partition] or 0


class Sent(NamedTuple):
    """A record on its way to the broker."""

    topic: Topic
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    future: Future[Any]


class Producer:
    """One incarnation of a producer: keeps the order of each partition, and nothing else is known of its timing.

    Records wait in `on_the_way` until `deliver` writes them to the log, and in `unanswered` until `acknowledge`.
    """

    def __init__(self, loop: FakeLoop, topics: Mapping[str, Topic], place: Callable[[bytes | None, int], int]) -> None:
        self._loop = loop
        self._topics = topics
        self._place = place
        self.on_the_way: deque[Sent] = deque()
        self.unanswered: deque[Sent] = deque()
        self.stalled: Future[None] | None = None  #: set: its buffer is full, `send` waits for this

    async def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers | None = None
    ) -> Future[Any]:
        while self.stalled is not None:
            await self.stalled
        to = self._topics[topic]
        partition = self._place(key, len(to.logs))
        future = self._loop.create_future()
        self.on_the_way.append(Sent(to, partition, key, value, headers or [], future))
        return future

    async def send_and_wait(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers | None = None
    ) -> Any:
        return await (await self.send(topic, value, key, headers))

    def stall(self) -> None:
        if self.stalled is None:
            self.stalled = self._loop.create_future()

    def go_on(self) -> None:
        if self.stalled is not None:
            self.stalled.set_result(None)
            self.stalled = None

    def deliver(self, count: int, first: int = 0) -> int:
        """Write up to `count` records, those of the partition that record number `first` is for."""
        if not self.on_the_way:
            return 0
        chosen = self.on_the_way[first % len(self.on_the_way)]
        kept: deque[Sent] = deque()
        delivered = 0
        for sent in self.on_the_way:
            if delivered < count and sent.partition == chosen.partition and sent.topic is chosen.topic:
                sent.topic.append(sent.partition, sent.key, sent.value, sent.headers)
                self.unanswered.append(sent)
                delivered += 1
            else:
                kept.append(sent)
        self.on_the_way = kept
        return delivered

    def acknowledge(self, count: int) -> int:
        """Answer the oldest `count` of the records that were written."""
        answered = min(count, len(self.unanswered))
        for _ in range(answered):
            self.unanswered.popleft().future.set_result(None)
        return answered

    def finish(self) -> int:
        """Write and acknowledge everything."""
        self.go_on()
        for sent in self.on_the_way:
            sent.topic.append(sent.partition, sent.key, sent.value, sent.headers)
        self.unanswered.extend(self.on_the_way)
        self.on_the_way.clear()
        return self.acknowledge(len(self.unanswered))


@dataclass(slots=True, eq=False)
class Membership:
    """What one consumer believes of its group: true until the group goes on without it."""

    group: Group
    generation: int = -1
    joined: bool = False
    positions: dict[int, int] = field(default_factory=dict)  #: of each partition that it believes to own

    def join(self, partitions: list[int]) -> None:
        self.generation = self.group.generation
        self.joined = True
        self.positions = {partition: self.group.start_of(partition) for partition in partitions}

    def lose(self) -> None:
        self.joined = False
        self.positions = {}

    def fetch(self, partition: int, count: int) -> list[Message]:
        """The next messages; also a stale owner still gets them."""
        begin = self.positions[partition]
        messages = self.group.topic.logs[partition][begin : begin + count]
        self.positions[partition] = begin + len(messages)
        return messages

    def waiting(self) -> Iterator[int]:
        """Partitions of which there is something to fetch."""
        return (
            partition
            for partition, position in self.positions.items()
            if position < len(self.group.topic.logs[partition])
        )

    def commit(self, offsets: Mapping[int, int]) -> bool:
        return self.group.commit(self, self.generation, offsets)


class Consumer:
    """The aiokafka consumer of one worker: its calls wait in `asked` and `commits` until the simulation answers."""

    def __init__(self, loop: FakeLoop, membership: Membership, fetches_ahead: int) -> None:
        self._loop = loop
        self.membership = membership
        self.fetches_ahead = fetches_ahead  #: messages of a partition that are there when it is asked for alone
        self._topic = membership.group.topic.name
        self.asked: tuple[int, Future[Any]] | None = None
        self.commits: deque[tuple[int, dict[int, int], Future[Any]]] = deque()

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(self._topic, partition) for partition in self.membership.positions}

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Message]]:
        """Of named partitions what was fetched ahead, at once; else what the simulation answers."""
        if partitions:
            count = min(max_records, self.fetches_ahead)
            fetched = {partition: self.membership.fetch(partition.partition, count) for partition in partitions}
            return {partition: messages for partition, messages in fetched.items() if messages}
        self.asked = (max_records, self._loop.create_future())
        return await self.asked[1]

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        future = self._loop.create_future()
        by_partition = {tp.partition: offset for tp, offset in offsets.items()}
        self.commits.append((self.membership.generation, by_partition, future))
        await future

    def answer(self, partition: int | None, count: int) -> int:
        """Give what was asked for: up to `count` messages of a partition, or nothing at all."""
        assert self.asked is not None
        most, future = self.asked
        self.asked = None
        messages = [] if partition is None else self.membership.fetch(partition, min(count, most))
        future.set_result({TopicPartition(self._topic, partition or 0): messages} if messages else {})
        return len(messages)

    def decide_commit(self, *, reached: bool = True, answered: bool = True) -> bool | None:
        """What becomes of the oldest commit; whether the coordinator took it, None if it never came there."""
        generation, offsets, future = self.commits.popleft()
        taken = self.membership.group.commit(self.membership, generation, offsets) if reached else None
        if not (reached and answered):
            future.set_exception(RequestTimedOutError())
        elif taken:
            future.set_result(None)
        else:
            future.set_exception(CommitFailedError())
        return taken
