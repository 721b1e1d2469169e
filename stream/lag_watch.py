"""How far a consumer is behind, and whether it is stuck or only has nothing to read.

aiokafka can stop fetching after a broker restart without an error (its issue 1154), a producer can wait for an answer
that never comes, and a group can take for ever to share out its partitions. From outside all of these look alike: the
broker answers, messages wait, and nothing moves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

PATIENCE_S = 60.0  #: a consumer that has nothing else to do may stand still for so long before messages that wait
HELD_PATIENCE_S = 120.0  #: so long may one thing in hand take
LOOK_EVERY_S = 5.0
ANSWER_WITHIN_S = 10.0
EXIT_STUCK = 75  #: exit status of a process that ended because its consumer was stuck

Partition = TypeVar("Partition", bound=Hashable)


class ConsumerStuck(RuntimeError):  # noqa: N818 - says what is the matter
    """Messages wait, the broker answers, and nothing moves; a new start reads on at the last commit."""


class NotAnswered(RuntimeError):  # noqa: N818
    """The consumer cannot say how far it is, and why."""


class _Seen(NamedTuple):
    position: Hashable
    since_s: float


class LagWatch(Generic[Partition]):
    """Notes positions, and which of them stood still for `patience_s` although there was more to read."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: dict[Partition, _Seen] = {}

    def look(
        self, now_s: float, positions: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """Messages that wait in the partitions that are stuck.

        Parameters
        ----------
        now_s
            Monotonic time, seconds.
        positions, ends
            Next offset to be read, and the end of the log, for each partition that is assigned.
        """
        before, self._seen = self._seen, {}
        stuck = {}
        for partition, position in positions.items():
            waiting = ends.get(partition, position) - position
            if waiting <= 0:
                continue
            seen = before.get(partition)
            if seen is None or seen.position != position:
                seen = _Seen(position, now_s)
            self._seen[partition] = seen
            if now_s - seen.since_s >= self._patience_s:
                stuck[partition] = waiting
        return stuck

    def forget(self) -> None:
        """Begin anew: it was not the consumer that held things up."""
        self._seen.clear()


class Occupied(NamedTuple):
    """What a reader has in hand instead of reading on."""

    doing: str
    mark: Hashable = None  #: changes whenever it gets on with it
    excused: bool = False  #: it waits for something that is looked after elsewhere


class Reader(Protocol[Partition]):
    """A consumer that is watched."""

    def occupied(self) -> Occupied | None:
        """What keeps it from reading on, if anything."""

    async def positions_and_ends(self) -> tuple[Mapping[Partition, int], Mapping[Partition, int]]:
        """For each assigned partition the next offset to be read, and the end of the log.

        Raises
        ------
        NotAnswered, TimeoutError, aiokafka.errors.KafkaError
            If that cannot be said now.
        """


class ConsumerWatch(Generic[Partition]):
    """Looks after one consumer; `lag` and `kafka_away_since_s` are for whoever wants to show them.

    Parameters
    ----------
    reader
        The consumer.
    topic
        What it reads.
    ask_afresh
        Asks the broker about the partitions that were assigned last, through a new connection; raises if that is not
        answered either.
    log
        Where to say that the broker does not answer.
    """

    def __init__(
        self,
        reader: Reader[Partition],
        topic: str,
        ask_afresh: Callable[[Iterable[Partition]], Awaitable[None]],
        log: logging.Logger,
    ) -> None:
        self._reader = reader
        self._topic = topic
        self._ask_afresh = ask_afresh
        self._log = log
        self._positions: LagWatch[Partition] = LagWatch(PATIENCE_S)
        self._held: _Seen | None = None
        self._unanswered_since_s: float | None = None
        self.lag: dict[Partition, int] = {}  #: messages that wait in each partition, at the last look
        self.kafka_away_since_s: float | None = None  #: monotonic; None while the broker answers

    async def run(self) -> NoReturn:
        """Look from time to time.

        Raises
        ------
        ConsumerStuck
            With the cause, when it is stuck.
        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(time.monotonic)

    async def look(self, clock: Callable[[], float]) -> None:
        """Look once; `clock` is monotonic, s.

        Raises
        ------
        ConsumerStuck
            With the cause.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                positions, ends = await self._reader.positions_and_ends()
        except (NotAnswered, TimeoutError, KafkaError, OSError) as error:
            await self._not_answered(clock, error)
            return
        if self.kafka_away_since_s is not None:
            self._log.warning("the broker answers again", extra=self._away(clock()))
        self.kafka_away_since_s = self._unanswered_since_s = None
        self.lag = {partition: max(0, ends.get(partition, at) - at) for partition, at in positions.items()}
        occupied = self._reader.occupied()
        if occupied is None:
            self._held = None
            stuck = self._positions.look(clock(), positions, ends)
            if stuck:
                raise ConsumerStuck(
                    f"nothing is fetched from {self._topic} for {PATIENCE_S:g} s, but messages wait: {_told(stuck)}"
                )
            return
        self._positions.forget()
        self._hold_against(occupied, clock())

    def _hold_against(self, occupied: Occupied, now_s: float) -> None:
        if occupied.excused:
            self._held = None
            return
        position = (occupied.doing, occupied.mark)
        if self._held is None or self._held.position != position:
            self._held = _Seen(position, now_s)
        elif now_s - self._held.since_s >= HELD_PATIENCE_S:
            raise ConsumerStuck(
                f"{occupied.doing} takes longer than {HELD_PATIENCE_S:g} s although the broker answers; "
                f"waiting in {self._topic}: {_told(self.lag)}"
            )

    async def _not_answered(self, clock: Callable[[], float], error: Exception) -> None:
        """Is it the broker, or this consumer's connection? Only the latter is mended by a new start."""
        self._positions.forget()
        self._held = None
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._ask_afresh(list(self.lag))
        except (TimeoutError, KafkaError, OSError) as away:
            self._unanswered_since_s = None
            if self.kafka_away_since_s is None:
                self.kafka_away_since_s = clock()
            story = {"error": repr(error), "afresh": repr(away), **self._away(clock())}
            self._log.warning("the broker does not answer, waiting", extra=story)
            return
        self.kafka_away_since_s = None
        now_s = clock()
        if self._unanswered_since_s is None:
            self._unanswered_since_s = now_s
        self._log.warning("the broker answers others, but not this consumer", extra={"error": repr(error)})
        if now_s - self._unanswered_since_s >= PATIENCE_S:
            raise ConsumerStuck(
                f"a new connection is answered, but this consumer of {self._topic} is not for {PATIENCE_S:g} s: "
                f"{error!r}"
            )

    def _away(self, now_s: float) -> dict[str, float]:
        since_s = self.kafka_away_since_s
        return {} if since_s is None else {"away_s": round(now_s - since_s, 1)}


def lag_seconds(lag: Mapping[Partition, int], taken_ms: Mapping[Partition, int], now_ns: int) -> dict[Partition, float]:
    """How old the last message taken is where more wait, s; 0 where none do; nothing where none was taken yet.

    Parameters
    ----------
    lag
        Messages that wait.
    taken_ms
        When the last message taken was written, ms UTC.
    now_ns
        ns UTC.
    """
    now_ms = now_ns / 1e6
    return {
        partition: max(0.0, now_ms - taken_ms[partition]) / 1e3 if waiting else 0.0
        for partition, waiting in lag.items()
        if partition in taken_ms or not waiting
    }


def _told(waiting: Mapping[Any, int]) -> str:
    counts = sorted((partition.partition, count) for partition, count in waiting.items() if count)
    return ", ".join(f"{count} in partition {number}" for number, count in counts) or "nothing"


async def ask_ends_afresh(client_options: Mapping[str, Any], topic: str, partitions: Iterable[tuple[str, int]]) -> None:
    """Ask for the ends of these partitions of the topic, or of its first one, through connections of its own.

    Raises
    ------
    aiokafka.errors.KafkaError
        If somebody who has to answer does not.
    """
    asked = [TopicPartition(*partition) for partition in partitions] or [TopicPartition(topic, 0)]
    async with AIOKafkaConsumer(**client_options) as consumer:
        consumer.assign(asked)
        consumer.pause(*asked)
        await consumer.end_offsets(asked)
