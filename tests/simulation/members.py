"""Window agents and workers as processes of the simulation: the product's own objects, on fake connections."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from faust.types import TP
from redis.exceptions import ConnectionError as RedisConnectionError

import stream.window_agent
import stream.worker
from stream.alert_store import AlertStore
from stream.frame_partition import PartitionLimits
from stream.watchdog import Watchdog
from stream.window_agent import AgentTopics, WindowAgent
from stream.window_output import WindowOutput
from stream.worker import LiveModel, Worker, WorkerTopics
from tests.simulation.loop import FakeLoop
from tests.simulation.plant import RULES, SPEC, predict
from tests.simulation.store import Connection, StoreModel
from tests.simulation.transport import Consumer, Group, Membership, Message, Producer, Topic

FRAMES, WINDOWS, PREDICTIONS, LETTERS = "frames", "windows", "predictions", "deadletter"
PREFIX = "sim"

#: Never started: nothing hangs in here.
WATCHDOG = Watchdog()

Place = Callable[[bytes | None, int], int]


class Delivery(NamedTuple):
    """A message as Faust hands it out: with the generation it was fetched in."""

    fetched: Message
    generation_id: int

    @property
    def topic(self) -> str:
        return self.fetched.topic

    @property
    def partition(self) -> int:
        return self.fetched.partition

    @property
    def offset(self) -> int:
        return self.fetched.offset

    @property
    def key(self) -> bytes | None:
        return self.fetched.key

    @property
    def value(self) -> bytes:
        return self.fetched.value

    @property
    def timestamp(self) -> float:
        return self.fetched.timestamp / 1000

    @property
    def tp(self) -> TP:
        return self.fetched.tp


class Event(NamedTuple):
    """What a Faust stream yields."""

    message: Delivery


class _Stream:
    """The agent's input: fetched events, one at a time."""

    def __init__(self, loop: FakeLoop) -> None:
        self._loop = loop
        self.buffer: deque[Event] = deque()
        self._wanted: asyncio.Future[Event] | None = None

    def noack(self) -> _Stream:
        return self

    def events(self) -> _Stream:
        return self

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Event:
        self._wanted = self._loop.create_future()
        return await self._wanted

    def give(self) -> bool:
        """Hand out the next event if the agent has come to ask for it."""
        if self._wanted is None or self._wanted.done() or not self.buffer:
            return False
        self._wanted.set_result(self.buffer.popleft())
        return True


class _App:
    """What `WindowAgent` asks of its Faust app."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.running_consumer = self
        self.flow_control = self

    def is_active(self) -> bool:
        """Whether messages are handed out: not between a revocation and the next assignment."""
        return self._membership.joined

    @property
    def consumer_generation_id(self) -> int:
        return self._membership.generation

    def committed_offset(self, tp: TP) -> int | None:
        return self._membership.group.committed[tp.partition]


@dataclass(slots=True, eq=False)
class Member:
    """A process. `paused`: it hangs or is cut off, the group may go on without it, and it may come back as a zombie."""

    membership: Membership
    paused: bool = False


class SimAgent(Member):
    """A window agent. The consumer's part of `stream.faust_transport` is acted here, all else is the real thing."""

    agent_class: type[WindowAgent] = WindowAgent

    def __init__(
        self, loop: FakeLoop, group: Group, topics: Mapping[str, Topic], place: Place, limits: PartitionLimits
    ) -> None:
        super().__init__(Membership(group))
        self._loop = loop
        self.agent = self.agent_class(
            client_options={},
            spec=SPEC,
            topics=AgentTopics(FRAMES, WINDOWS, LETTERS),
            group="agents",
            limits=limits,
            watchdog=WATCHDOG,
        )
        self.windows = Producer(loop, topics, place)
        self.letters = Producer(loop, topics, place)
        self.stream = _Stream(loop)
        self.agent._app = _App(self.membership)  # type: ignore[assignment]
        self.agent._failure = loop.create_future()
        self.agent._between_messages = asyncio.Event()
        self.agent._between_messages.set()
        self.agent._output = self._new_output()
        self._reading = loop.begin(self.agent._read(self.stream))

    def _new_output(self) -> WindowOutput:
        output = WindowOutput({}, WINDOWS, LETTERS, self.agent._fail)
        output._producer = self.windows  # type: ignore[assignment]
        output._plain_producer = self.letters  # type: ignore[assignment]
        return output

    @property
    def producers(self) -> tuple[Producer, ...]:
        return (self.windows, self.letters)

    def fetch(self, partition: int, count: int) -> int:
        fetched = self.membership.fetch(partition, count)
        self.stream.buffer.extend(Event(Delivery(message, self.membership.generation)) for message in fetched)
        return len(fetched)

    def read(self, count: int) -> int:
        """Let the agent read up to `count` messages; fewer where it waits for its producer."""
        for done in range(count):
            self._loop.run_ready()
            if not self.stream.give():
                return done
            self._loop.run_ready()
            if self.agent._failure.done():
                self.agent._failure.result()
        return count

    def committable(self) -> dict[int, int]:
        """What `LedgerConsumer` would commit."""
        offsets = {tp.partition: self.agent.committable(tp) for tp in self.agent.partitions()}
        return {
            partition: offset
            for partition, offset in offsets.items()
            if offset is not None and partition in self.membership.positions
        }

    def commit(self) -> bool | None:
        """Commit what may be; None if that is nothing new."""
        group = self.membership.group
        news = {
            partition: offset
            for partition, offset in self.committable().items()
            if offset != group.committed[partition]
        }
        return self.membership.commit(news) if news else None

    def revoked(self, *, in_time: bool, keeps_buffer: bool) -> None:
        """`LedgerConsumer.on_partitions_revoked`: settle or not, commit, forget."""
        settling = self._loop.begin(self.agent.settle())
        self._loop.run_ready()
        if in_time:
            for _ in range(50):
                if settling.done():
                    break
                for producer in self.producers:
                    producer.finish()
                self._loop.run_ready()
        if not settling.done():
            self._loop.let_time_pass(stream.window_agent.SETTLE_TIMEOUT_S)
        self.commit()
        self._drop({TP(FRAMES, partition) for partition in self.membership.positions})
        self.membership.lose()
        if not keeps_buffer:
            self.stream.buffer.clear()

    def _drop(self, partitions: set[TP]) -> None:
        self.agent.drop(partitions)


@lru_cache(maxsize=1)
def _any_store() -> AlertStore:
    """Made once: opening the file of the function and a connection takes a good part of a schedule's time."""
    store = AlertStore("redis://nowhere:1/0", PREFIX)
    store._function_checked = True
    return store


def new_store(connection: Connection) -> AlertStore:
    """A store of a process's own, on this connection."""
    store = copy.copy(_any_store())
    store._redis = connection
    return store


class _Card(NamedTuple):
    version: str = "simulated"
    window_rate_hz: None = None


class SimWorker(Member):
    """A worker: the real one from the fetch to the commit."""

    worker_class: type[Worker] = Worker

    def __init__(
        self,
        loop: FakeLoop,
        group: Group,
        topics: Mapping[str, Topic],
        place: Place,
        model: StoreModel,
        batch_windows: int,
        fetches_ahead: int,
    ) -> None:
        super().__init__(Membership(group))
        self._loop = loop
        self.redis = Connection(loop, model, _any_store()._source)
        self.worker = self.worker_class(
            model=LiveModel(SimpleNamespace(card=_Card(), choice=SimpleNamespace(device="none")), RULES, Path()),  # type: ignore[arg-type]
            shadow=SimpleNamespace(offer=lambda windows, predictions: None, report=dict),  # type: ignore[arg-type]
            store=new_store(self.redis),
            client_options={},
            topics=WorkerTopics(WINDOWS, PREDICTIONS, LETTERS),
            group="workers",
            batch_windows=batch_windows,
            watchdog=WATCHDOG,
            redis_watch=SimpleNamespace(),  # type: ignore[arg-type]
        )
        self.predictions = Producer(loop, topics, place)
        self.letters = Producer(loop, topics, place)
        self.consumer = Consumer(loop, self.membership, fetches_ahead)
        self._stop = asyncio.Event()
        self._listener = stream.worker._Rebalance(self.worker, self.consumer)  # type: ignore[arg-type]
        loop.begin(self.worker._infer(self.consumer, self._stop))  # type: ignore[arg-type]
        loop.begin(self.worker._settle_all(self.consumer, self.predictions, self.letters))  # type: ignore[arg-type]

    @property
    def producers(self) -> tuple[Producer, ...]:
        return (self.predictions, self.letters)

    def fetch(self, partition: int | None, count: int) -> int:
        """Answer the worker's fetch, if it is at one."""
        self._loop.run_ready()
        if self.consumer.asked is None:
            return 0
        fetched = self.consumer.answer(partition, count)
        self._loop.run_ready()
        return fetched

    def store_call(self, *, reached: bool = True, answered: bool = True, away_s: float = 0.0) -> bool:
        """What becomes of the oldest call to Redis; after a lost one the store tries again, in time or too late."""
        self._loop.run_ready()
        if not self.redis.calls:
            return False
        lost = None if reached and answered else lambda: RedisConnectionError("the line broke")
        self.redis.decide(reached=reached, error=lost)
        self._loop.run_ready()
        if lost is not None:
            self._loop.let_time_pass(away_s)
        return True

    def finish_step(self, *, publishes: bool = True, stores: bool = True, commits: bool = True) -> bool:
        """Answer what waits for an answer now, or some kinds of it, all of it well; whether anything did."""
        self._loop.run_ready()
        done = stores and self.store_call()
        for producer in self.producers if publishes else ():
            done = producer.finish() > 0 or done
        if commits and self.consumer.commits:
            self.consumer.decide_commit()
            done = True
        self._loop.run_ready()
        return done

    def finish(self) -> None:
        """Answer everything well until nothing is left to answer."""
        while self.finish_step():
            pass

    def revoked(self, *, in_time: bool, keeps_buffer: bool) -> None:
        """The consumer's listener is told before the partitions go."""
        mine = {TopicPartition(WINDOWS, partition) for partition in self.membership.positions}
        settling = self._loop.begin(self._listener.on_partitions_revoked(mine))
        self._loop.run_ready()
        if in_time:
            if self.consumer.asked is not None:
                self.consumer.answer(None, 0)  # nothing is fetched while the group is between two generations
            self.finish()
        if not settling.done():
            self._loop.let_time_pass(3.0)
        self.membership.lose()


class _Clock:
    """In the place of `time` in the window agent."""

    loop: FakeLoop | None = None

    def monotonic(self) -> float:
        return 0.0 if self.loop is None else self.loop.time()


CLOCK = _Clock()


@contextmanager
def real_world_replaced() -> Any:
    """The network and the clock of the product's modules are those of the simulation meanwhile."""
    before = stream.worker.predict, stream.window_agent.time
    stream.worker.predict = predict
    stream.window_agent.time = CLOCK  # type: ignore[assignment]
    try:
        yield
    finally:
        stream.worker.predict, stream.window_agent.time = before
