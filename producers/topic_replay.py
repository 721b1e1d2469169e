"""What sensors published is published again, from the history that Kafka keeps, as a run of its own.

Time is when Kafka got each message: so messages come in the order and at the pace in which they came then, whatever
clocks and epochs the sensors have. Epoch, sample numbers, times and flags of the frames stay as they were.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from producers.replay import Controls, FrameSink, Progress
from producers.replay_track import ending
from stream.records import BadRecord, Flags, Frame, decode_frames, decode_sensor

NS_PER_MS = 1_000_000
MS_PER_S = 1000
FETCH_BYTES = 1 << 20  #: of one partition at once, or one message; no more of it is in memory
ANSWER_S = 30.0
TOLD = 5
REPLAYS = "replay/"


class NoHistoryError(ValueError):
    """There is nothing to replay; the message says what there is."""


@dataclass(frozen=True, slots=True)
class History:
    """Which messages: those that Kafka got from `since_ns` to before `until_ns`, at most those there are now."""

    topic: str
    since_ns: int
    until_ns: int | None = None


@dataclass(slots=True)
class TopicCounts:
    """What was read and what of it was left out."""

    messages: int = 0
    bad: int = 0  #: frames, or whole messages, that cannot be used
    replays: int = 0  #: messages of earlier replays, which are no history of the plant
    told: list[str] = field(default_factory=list)  #: why, of the first bad ones

    def refuse(self, where: ConsumerRecord[Any, Any], why: str) -> None:
        """Count what cannot be used."""
        self.bad += 1
        if len(self.told) < TOLD:
            self.told.append(f"{where.topic} partition {where.partition} offset {where.offset}: {why}")


async def replay_topic(
    client_options: dict[str, Any],
    history: History,
    run: str,
    publisher: FrameSink,
    controls: Controls,
    progress: Callable[[Progress], None] = lambda _: None,
    counts: TopicCounts | None = None,
) -> Progress:
    """Publish the history again; sensor `plant1/pump` as `replay/<run>/plant1/pump`. Flushes.

    Each sensor that has begun gets an END, at the end and where the replay is stopped.

    Raises
    ------
    NoHistoryError
        If there is no such topic, or no message in that time.
    aiokafka.errors.KafkaError
        If the broker cannot be reached, or stops answering.
    DeliveryError
        From the publisher.
    """
    # Asked first, as many a broker makes a topic that somebody wants to read.
    async with AIOKafkaConsumer(**client_options) as asking:
        if history.topic not in await asking.topics():
            raise NoHistoryError(f"{history.topic}: there is no such topic at this broker; --from-topic names it")
    consumer: AIOKafkaConsumer[Any, Any] = AIOKafkaConsumer(
        history.topic,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # what was kept too long goes away while it is read
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=50,
        **client_options,
    )
    await consumer.start()
    try:
        ends = await _seek(consumer, history)
        return await _TopicReplay(consumer, ends, run, publisher, controls, progress, counts or TopicCounts()).play()
    finally:
        await consumer.stop()


async def _seek(consumer: AIOKafkaConsumer[Any, Any], history: History) -> dict[TopicPartition, int]:
    """Go to where the history begins; the first offset after it in each partition, 0 where there is none of it."""
    partitions = sorted(consumer.assignment())
    begins = await consumer.offsets_for_times(dict.fromkeys(partitions, history.since_ns // NS_PER_MS))
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    if history.until_ns is not None:
        untils = await consumer.offsets_for_times(dict.fromkeys(partitions, history.until_ns // NS_PER_MS))
        ends |= {
            partition: min(ends[partition], until.offset) for partition, until in untils.items() if until is not None
        }
    for partition in partitions:
        begin = begins[partition]
        if begin is not None and begin.offset < ends[partition]:
            consumer.seek(partition, begin.offset)
        else:
            ends[partition] = 0
    if not any(ends.values()):
        raise NoHistoryError(f"{history.topic}: holds no message of that time; mend --since and --until")
    return ends


class _TopicReplay:
    """One call of `replay_topic`."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer[Any, Any],
        ends: dict[TopicPartition, int],
        run: str,
        publisher: FrameSink,
        controls: Controls,
        progress: Callable[[Progress], None],
        counts: TopicCounts,
    ) -> None:
        self._consumer = consumer
        self._ends = ends
        self._prefix = f"{REPLAYS}{run}/"
        self._publisher = publisher
        self._controls = controls
        self._progress = progress
        self._counts = counts
        self._waiting: dict[TopicPartition, deque[ConsumerRecord[Any, Any]]] = {end: deque() for end in ends}
        self._read_out = {
            partition for partition, end in ends.items() if not end
        }  #: nothing more of their history is to come
        self._open: dict[str, Frame] = {}  # last frame of each sensor that has begun and not ended
        self._frames = self._samples = 0
        self._played_s = self._behind_s = self._most_behind_s = 0.0

    async def play(self) -> Progress:
        heap: list[tuple[int, TopicPartition, ConsumerRecord[Any, Any]]] = []
        for partition in self._ends:
            if (record := await self._next(partition)) is not None:
                heapq.heappush(heap, (record.timestamp, partition, record))
        first_ms: int | None = None
        reached_ms = 0
        while heap:
            timestamp_ms, partition, record = heap[0]
            if first_ms is None:
                first_ms = reached_ms = timestamp_ms
                self._controls.clock.begin(asyncio.get_running_loop().time())
            # A producer's clock may go back; time here does not.
            reached_ms = max(reached_ms, timestamp_ms)
            self._played_s = (reached_ms - first_ms) / MS_PER_S
            late_s = await self._controls.due(self._played_s, self._tell)
            if late_s is None:
                break
            self._behind_s, self._most_behind_s = late_s, max(late_s, self._most_behind_s)
            for frame in self._read(record):
                await self._publish(frame)
            self._tell()
            following = await self._next(partition)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.timestamp, partition, following))
        for last in tuple(self._open.values()):
            await self._publish(ending(last))
        await self._publisher.flush()
        self._tell()
        return self._so_far()

    async def _next(self, partition: TopicPartition) -> ConsumerRecord[Any, Any] | None:
        """The partition's next message of the history; None at its end, or if the replay is to stop."""
        waiting = self._waiting[partition]
        asked_s = asyncio.get_running_loop().time()
        while not waiting and partition not in self._read_out:
            # Where the history's last messages were deleted or compacted away, the position is past them all the same.
            if await self._consumer.position(partition) >= self._ends[partition]:
                self._read_out.add(partition)
                break
            if self._controls.stopped.is_set():
                return None
            if asyncio.get_running_loop().time() - asked_s > ANSWER_S:
                raise NoHistoryError(
                    f"{partition.topic} partition {partition.partition}: the broker gave nothing more for "
                    f"{ANSWER_S:g} s; is it up?"
                )
            await self._fill()
        return waiting.popleft() if waiting else None

    async def _fill(self) -> None:
        """Fetch for the partitions that nothing waits of, and take all that came: what is left lying delays others."""
        wanted = {partition for partition, waiting in self._waiting.items() if not waiting} - self._read_out
        self._consumer.pause(*(self._ends.keys() - wanted))
        self._consumer.resume(*wanted)
        for partition, records in (await self._consumer.getmany(timeout_ms=200)).items():
            end = self._ends[partition]
            self._waiting[partition].extend(record for record in records if record.offset < end)
            if records[-1].offset >= end - 1:
                self._read_out.add(partition)

    def _read(self, record: ConsumerRecord[Any, Any]) -> Iterator[Frame]:
        """The frames of a message, under their new sensor's name."""
        self._counts.messages += 1
        try:
            sensor = decode_sensor(record.key)
            if sensor.startswith(REPLAYS):
                self._counts.replays += 1
                return
            name = decode_sensor(f"{self._prefix}{sensor}".encode())
        except BadRecord as error:
            self._counts.refuse(record, str(error))
            return
        decoded = decode_frames(sensor, record.value or b"")
        for reject in decoded.rejects:
            self._counts.refuse(record, f"{sensor}: {reject.reason}: {reject.detail}")
        for frame in decoded.frames:
            yield replace(frame, sensor=name)

    async def _publish(self, frame: Frame) -> None:
        await self._publisher.publish(frame)
        if Flags.END in frame.flags:
            self._open.pop(frame.sensor, None)
        else:
            self._open[frame.sensor] = frame
        self._frames += 1
        self._samples += len(frame.samples)

    def _tell(self) -> None:
        self._progress(self._so_far())

    def _so_far(self) -> Progress:
        clock = self._controls.clock
        return Progress(
            frames=self._frames,
            samples=self._samples,
            position_s=self._played_s,
            played_s=self._played_s,
            behind_s=self._behind_s,
            most_behind_s=self._most_behind_s,
            rate=clock.rate,
            paused=clock.paused,
        )
