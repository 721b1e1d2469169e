"""The worker: windows in; predictions, alarm state and alerts out; then, and only then, the commit.

The order is what makes every alert come once. For a batch of windows: infer, publish the predictions, apply alarm
state and alerts to Redis in one atomic step a sensor, wait until the broker has the predictions, commit. Whoever
dies in between leaves the offsets uncommitted; the next owner reads the windows again, and the alert store refuses
those that were applied already.

The model may be changed between two batches (`Worker.swap`); each batch is judged and decided by one model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from model.bundle import BundleCard
from model.engine import Engine
from stream.alarms import AlarmRules, advance
from stream.alert_store import AlertStore, SensorChange, StoredSensor, StoreUnavailable
from stream.alerts import CLOCKS_ARE_SET_NS, Alert, run_of
from stream.dead_letters import DeadLetter, deliver
from stream.detect import predict
from stream.health import Health
from stream.lag_watch import ConsumerStuck, ConsumerWatch, Occupied, ask_ends_afresh, lag_seconds
from stream.predictions import Prediction, encode_prediction
from stream.records import BadRecord, Flags, Window, decode_sensor, decode_window
from stream.redis_watch import RedisWatch
from stream.shadow import Shadow
from stream.watchdog import Watchdog

log = logging.getLogger("aewatch.worker")

#: A fetch waits this long for data of any partition; it bounds how late a quiet partition is looked at again.
FETCH_WAIT_MS = 50
MAX_MESSAGE_BYTES = 34 * 2**20
WARM_UP_LIMIT_S = 600.0
STOP_LIMIT_S = 25.0
INFERENCE = "inference"


@dataclass(frozen=True, slots=True)
class WorkerTopics:
    """What it reads and where it writes."""

    windows: str
    predictions: str
    deadletter: str


@dataclass(frozen=True, slots=True)
class LiveModel:
    """What judges windows and decides on alarms; the two belong together."""

    engine: Engine
    rules: AlarmRules  #: of the engine's labels and their roles
    folder: Path  #: of the bundle


@dataclass(slots=True)
class WorkerCounts:
    """What a worker did since it started."""

    windows: int = 0
    batches: int = 0
    predictions: int = 0
    alerts: int = 0
    rejects: Counter[str] = field(default_factory=Counter)  #: windows that were dead-lettered, by reason
    redelivered: int = 0  #: windows whose alarm decision had been taken before
    conflicts: int = 0  #: batches of one sensor decided anew because somebody else had changed its state
    inference_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What a worker did since it started, and where it stands."""

    uptime_s: float
    counts: WorkerCounts
    model: BundleCard
    device: str  #: that the model runs on
    sensors: int  #: whose alarm state is in memory
    in_flight: int  #: batches between the fetch and the commit
    lag: Mapping[TopicPartition, int]  #: messages that wait
    lag_s: Mapping[TopicPartition, float]  #: since the last message taken was written, where more wait
    event_age_s: float | None  #: from the newest event time of live sensors to now; None before the first
    delay_s: float | None  #: from the oldest window of the last live batch to its commit
    kafka_answers: bool
    redis_answers: bool


@dataclass(slots=True)
class _Batch:
    """Windows on their way from the consumer to the commit."""

    rules: AlarmRules  #: of the model that made the predictions
    offsets: dict[TopicPartition, int] = field(default_factory=dict)  #: may be committed when all of it is settled
    windows: list[Window] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)  #: one for each window
    rejected: list[tuple[ConsumerRecord[bytes, bytes], BadRecord]] = field(default_factory=list)
    partitions: dict[str, TopicPartition] = field(default_factory=dict)


class Worker:
    """One process of the group that shares `ae.windows`."""

    def __init__(
        self,
        *,
        model: LiveModel,
        shadow: Shadow,
        store: AlertStore,
        client_options: Mapping[str, Any],
        topics: WorkerTopics,
        group: str,
        batch_windows: int = 32,
        batch_delay_s: float = 0.01,
        feature_threshold_db_ae: float = 40.0,
        inference_limit_s: float = 60.0,
        log_every_s: float = 10.0,
        watchdog: Watchdog,
        redis_watch: RedisWatch,
    ) -> None:
        self.live = model
        self._next: tuple[LiveModel, asyncio.Future[str]] | None = None
        self._shadow = shadow
        self._store = store
        self._client_options = dict(client_options)
        self._topics = topics
        self._group = group
        self._batch_windows = batch_windows
        self._batch_delay_s = batch_delay_s
        self._threshold_db_ae = feature_threshold_db_ae
        self._inference_limit_s = inference_limit_s
        self._log_every_s = log_every_s
        self._watchdog = watchdog
        self._redis_watch = redis_watch
        self._consumer_watch: ConsumerWatch[TopicPartition] | None = None
        self._stuck: ConsumerStuck | None = None
        self._joins = 0
        self._joined = False
        self._taken_ms: dict[TopicPartition, int] = {}  # when the last message taken was written
        self._newest_event_ns = 0
        self._delay_s: float | None = None
        self._started_s = time.monotonic()
        self.counts = WorkerCounts()
        self._states: dict[str, StoredSensor] = {}
        self._owners: dict[str, TopicPartition] = {}
        self._inferred: asyncio.Queue[_Batch] = asyncio.Queue(maxsize=1)
        self._settled = asyncio.Condition()
        self._in_flight = 0
        self._turn = 0
        # One thread: the engine uses every core it may by itself, and batches must stay in order.
        self._inference_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what is in hand, commit and leave the group.

        Raises
        ------
        KafkaError
            When the broker refuses what cannot be retried (rights, message size).
        ConsumerStuck
            When messages wait, the broker answers, and nothing moves.
        """
        await asyncio.get_running_loop().run_in_executor(self._inference_thread, self._warm_up)
        consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=64 * 2**20,
            max_partition_fetch_bytes=8 * 2**20,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_poll_interval_ms=600_000,
            **self._client_options,
        )
        producer: AIOKafkaProducer[bytes, bytes] = AIOKafkaProducer(
            enable_idempotence=True, acks="all", linger_ms=5, max_batch_size=512 * 2**10, **self._client_options
        )
        # Dead letters may be refused for their size, after which an idempotent producer could not go on.
        letters: AIOKafkaProducer[bytes, bytes] = AIOKafkaProducer(
            acks="all", max_request_size=MAX_MESSAGE_BYTES, **self._client_options
        )
        await producer.start()
        await letters.start()
        try:
            await consumer.start()
            consumer.subscribe([self._topics.windows], listener=_Rebalance(self, consumer))
            self._consumer_watch = ConsumerWatch(
                _Reading(self, consumer),
                self._topics.windows,
                lambda partitions: ask_ends_afresh(self._client_options, self._topics.windows, partitions),
                log,
            )
            try:
                await self._work(consumer, producer, letters, stop)
            finally:
                # A consumer that is stuck, or a broker that is away, may never let go. Holds until the process ends.
                self._watchdog.begin("stopping", STOP_LIMIT_S, status=1)
                await consumer.stop()
        finally:
            await producer.stop()
            await letters.stop()
            self._inference_thread.shutdown(wait=False)
        log.info("stopped", extra=self._report())

    def _warm_up(self) -> None:
        with self._watchdog.limit("warming up", WARM_UP_LIMIT_S, device=str(self.live.engine.choice.device)):
            self.live.engine.warm_up()

    async def swap(self, model: LiveModel) -> str:
        """Go over to another model, which must fit and be warm, between two batches; returns the old one's version.

        No window is lost, judged by both or judged out of order: a batch belongs to the model that it was begun with.
        """
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._next = (model, future)
        return await future

    def _swap_if_asked(self) -> None:
        if self._next is None:
            return
        before, (self.live, future) = self.live.engine.card, self._next
        self._next = None
        log.info("model swapped", extra={"before": before.version, "model": self.live.engine.card.version})
        if not future.done():
            future.set_result(before.version)

    async def _work(
        self,
        consumer: AIOKafkaConsumer[bytes, bytes],
        producer: AIOKafkaProducer[bytes, bytes],
        letters: AIOKafkaProducer[bytes, bytes],
        stop: asyncio.Event,
    ) -> None:
        log.info("ready", extra={"topic": self._topics.windows, "group": self._group})
        assert self._consumer_watch is not None
        watching = asyncio.create_task(self._consumer_watch.run(), name="watch")
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(self._infer(consumer, stop), name="infer"),
            asyncio.create_task(self._settle_all(consumer, producer, letters), name="settle"),
            watching,
            asyncio.create_task(self._redis_watch.run(), name="redis"),
            asyncio.create_task(self._log_progress(), name="log"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watching in done:
                error = watching.exception()
                self._stuck = error if isinstance(error, ConsumerStuck) else None
            for task in done:
                task.result()
            if not await self.drained(within_s=10.0):
                log.warning("stopping with windows not settled; they will be read again")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _infer(self, consumer: AIOKafkaConsumer[bytes, bytes], stop: asyncio.Event) -> None:
        """Fetch and infer; while a batch is inferred the one before is settled."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            records = await self._fetch(consumer)
            self._swap_if_asked()
            if not records:
                continue
            async with self._settled:
                self._in_flight += 1
            for record in records:
                self._taken_ms[TopicPartition(record.topic, record.partition)] = record.timestamp
            begun = time.perf_counter()
            batch = await loop.run_in_executor(self._inference_thread, self._decode_and_predict, records, self.live)
            self.counts.inference_s += time.perf_counter() - begun
            await self._inferred.put(batch)

    async def _fetch(self, consumer: AIOKafkaConsumer[bytes, bytes]) -> list[ConsumerRecord[bytes, bytes]]:
        """Up to a batch of records, no later than the batch delay after the first of them."""
        loop = asyncio.get_running_loop()
        records: list[ConsumerRecord[bytes, bytes]] = []
        deadline = loop.time() + 0.2
        while (left_s := deadline - loop.time()) > 0 and len(records) < self._batch_windows:
            room = self._batch_windows - len(records)
            fetched = [] if records else await self._shares(consumer)
            if not fetched:
                answer = await consumer.getmany(timeout_ms=max(1, int(left_s * 1000)), max_records=room)
                fetched = [record for some in answer.values() for record in some]
            if not fetched:
                break
            if not records:
                deadline = loop.time() + self._batch_delay_s
            records += fetched
        return records

    async def _shares(self, consumer: AIOKafkaConsumer[bytes, bytes]) -> list[ConsumerRecord[bytes, bytes]]:
        """What is there already of each partition, at most its even share of a batch.

        The consumer itself would first give out all that it has fetched of one partition: where that has a backlog,
        sensors in the others would wait for megabytes of it.
        """
        assigned = sorted(consumer.assignment())
        self._turn += 1
        records: list[ConsumerRecord[bytes, bytes]] = []
        for number in range(len(assigned)):
            # Another one is first each time, as a batch may have room for fewer than there are.
            partition = assigned[(self._turn + number) % len(assigned)]
            room = self._batch_windows - len(records)
            if not room:
                break
            if partition not in consumer.assignment():
                continue  # it went to somebody else while another one was asked for
            share = max(1, room // (len(assigned) - number))
            answer = await consumer.getmany(partition, timeout_ms=0, max_records=share)
            records += answer.get(partition, [])
        return records

    def _decode_and_predict(self, records: Sequence[ConsumerRecord[bytes, bytes]], live: LiveModel) -> _Batch:
        batch = _Batch(live.rules)
        for record in records:
            partition = TopicPartition(record.topic, record.partition)
            batch.offsets[partition] = record.offset + 1
            try:
                window = decode_window(decode_sensor(record.key), record.value or b"")
                _check_rate(window, live.engine.card)
            except BadRecord as error:
                batch.rejected.append((record, error))
                continue
            batch.partitions[window.sensor] = partition
            batch.windows.append(window)
        with self._watchdog.limit(
            INFERENCE,
            self._inference_limit_s,
            batch_windows=len(batch.windows),
            device=str(live.engine.choice.device),
            model=live.engine.card.version,
        ):
            batch.predictions = predict(live.engine, batch.windows, self._threshold_db_ae)
        return batch

    async def _settle_all(
        self,
        consumer: AIOKafkaConsumer[bytes, bytes],
        producer: AIOKafkaProducer[bytes, bytes],
        letters: AIOKafkaProducer[bytes, bytes],
    ) -> None:
        while True:
            batch = await self._inferred.get()
            await self._settle(batch, consumer, producer, letters)
            async with self._settled:
                self._in_flight -= 1
                self._settled.notify_all()

    async def _settle(
        self,
        batch: _Batch,
        consumer: AIOKafkaConsumer[bytes, bytes],
        producer: AIOKafkaProducer[bytes, bytes],
        letters: AIOKafkaProducer[bytes, bytes],
    ) -> None:
        """Predictions out, alarms applied, then the commit: in this order, or a crash would lose what was committed."""
        published = [
            await producer.send(self._topics.predictions, encode_prediction(prediction), key=prediction.sensor.encode())
            for prediction in batch.predictions
        ]
        for record, error in batch.rejected:
            log.warning("window rejected", extra={"offset": record.offset, "reason": str(error)})
            letter = DeadLetter.of_record(record, error.reason, error.detail, component="worker")
            await deliver(letters, self._topics.deadletter, letter)
        self._owners |= batch.partitions
        alerts = await self._decide(batch.predictions, batch.rules)
        await asyncio.gather(*published)
        await self._commit(consumer, batch.offsets)
        self.counts.batches += 1
        self.counts.windows += len(batch.predictions) + len(batch.rejected)
        self.counts.predictions += len(batch.predictions)
        self.counts.rejects.update(error.reason for _, error in batch.rejected)
        self.counts.alerts += alerts
        self._note_event_times(batch.predictions)
        self._shadow.offer(batch.windows, batch.predictions)

    def _note_event_times(self, predictions: Sequence[Prediction]) -> None:
        ends_ns = [
            prediction.end_time_ns
            for prediction in predictions
            if prediction.end_time_ns >= CLOCKS_ARE_SET_NS and not run_of(prediction.sensor)
        ]
        if ends_ns:
            self._newest_event_ns = max(self._newest_event_ns, *ends_ns)
            self._delay_s = (time.time_ns() - min(ends_ns)) / 1e9

    async def _decide(self, predictions: Sequence[Prediction], rules: AlarmRules) -> int:
        """Alarm state and alerts of these predictions into the store; waits out an absent Redis."""
        while True:
            try:
                return await self._apply(predictions, rules)
            except StoreUnavailable as error:
                # Whether the server applied it before the line broke is unknown: look at what it holds and go on there.
                self._states.clear()
                log.error("Redis is away; windows wait in Kafka until it is back", extra={"error": str(error)})

    async def _apply(self, predictions: Sequence[Prediction], rules: AlarmRules) -> int:
        pending: dict[str, list[Prediction]] = {}
        for prediction in predictions:
            pending.setdefault(prediction.sensor, []).append(prediction)
        # What this batch needs is kept here as well: `forget` may come while Redis is waited for.
        states = {sensor: self._states[sensor] for sensor in pending if sensor in self._states}
        strangers = [sensor for sensor in pending if sensor not in states]
        if strangers:
            loaded = await self._store.load(strangers)
            states |= loaded
            self._states |= loaded
        applied_alerts = 0
        while pending:
            changes = []
            for sensor, arrived in pending.items():
                change = self._change(states[sensor], arrived, rules)
                if change is not None:
                    changes.append(change)
            pending_next: dict[str, list[Prediction]] = {}
            for change, result in zip(changes, await self._store.apply(changes), strict=True):
                states[change.sensor] = self._states[change.sensor] = result.stored
                if result.applied:
                    applied_alerts += len(change.alerts)
                else:
                    self.counts.conflicts += 1
                    pending_next[change.sensor] = pending[change.sensor]
            pending = pending_next
        return applied_alerts

    def _change(self, stored: StoredSensor, arrived: Sequence[Prediction], rules: AlarmRules) -> SensorChange | None:
        """What these predictions make of a sensor's state; None when all of them were applied before."""
        state = stored.copy_state()
        alerts: list[Alert] = []
        latest = None
        for prediction in arrived:
            if state.has_applied(prediction.position, hit=Flags.HIT in Flags(prediction.flags)):
                self.counts.redelivered += 1
                continue
            alerts += advance(state, prediction, rules)
            latest = prediction
        return None if latest is None else SensorChange(stored=stored, state=state, alerts=alerts, latest=latest)

    async def _commit(self, consumer: AIOKafkaConsumer[bytes, bytes], offsets: dict[TopicPartition, int]) -> None:
        mine = {partition: offset for partition, offset in offsets.items() if partition in consumer.assignment()}
        if not mine:
            return
        try:
            await consumer.commit(mine)
        except (CommitFailedError, IllegalStateError) as error:
            # The partition went to somebody else meanwhile, who reads these windows again and is refused by the store.
            log.info("commit refused after a rebalance", extra={"error": str(error)})
        except KafkaError as error:
            if not error.retriable:
                raise
            # The next batch's commit covers this one too.
            log.warning("commit failed, the next one will cover it", extra={"error": str(error)})

    async def drained(self, within_s: float) -> bool:
        """Wait until every fetched batch is settled; False if that took longer."""
        try:
            async with asyncio.timeout(within_s), self._settled:
                await self._settled.wait_for(lambda: self._in_flight == 0)
        except TimeoutError:
            return False
        return True

    def joined(self, assigned: set[TopicPartition]) -> None:
        """Note that the group has shared out its partitions, and that these are ours."""
        self._joined = True
        self._joins += 1
        log.info("assigned", extra={"partitions": sorted(partition.partition for partition in assigned)})

    def forget(self, partitions: set[TopicPartition]) -> None:
        """Drop what is cached of sensors in partitions that go to somebody else."""
        self._joined = False
        self._taken_ms.clear()
        for sensor in [sensor for sensor, owner in self._owners.items() if owner in partitions]:
            del self._owners[sensor]
            self._states.pop(sensor, None)

    def occupied(self) -> Occupied | None:
        """What keeps it from reading on; see `stream.lag_watch.Reader`."""
        if self._store.trouble:
            return Occupied("waiting for Redis", excused=True)
        if INFERENCE in self._watchdog.running():
            return Occupied(INFERENCE, excused=True)
        if not self._joined:
            return Occupied("joining the group", self._joins)
        if self._in_flight:
            return Occupied("settling windows", self.counts.batches)
        return None

    def health(self) -> Health:
        """Whether it lives, and gets its work done."""
        dead = [f"{one.what} hangs" for one in self._watchdog.overdue()]
        if self._stuck is not None:
            dead.append(str(self._stuck))
        waiting = []
        if self._consumer_watch is None or not self._joined:
            waiting.append("not a member of the consumer group yet")
        if self._consumer_watch is not None and (away_s := self._consumer_watch.kafka_away_since_s) is not None:
            waiting.append(f"Kafka has not answered for {time.monotonic() - away_s:.0f} s")
        if (away_s := self._redis_watch.away_since_s) is not None:
            told = f"Redis has not answered for {time.monotonic() - away_s:.0f} s, windows wait"
            waiting.append(f"{told}: {self._redis_watch.error}")
        elif self._store.trouble:
            waiting.append(f"Redis does not take alerts, windows wait: {self._store.trouble}")
        inferring_s, limit_s = self._watchdog.running().get(INFERENCE, (0.0, 1.0))
        if inferring_s > limit_s / 2:
            waiting.append(f"a batch has been with the model for {inferring_s:.0f} s of {limit_s:g} s")
        return Health(tuple(dead), tuple(waiting))

    def snapshot(self) -> WorkerSnapshot:
        """Counters and gauges of this moment."""
        watch = self._consumer_watch
        lag = {} if watch is None else dict(watch.lag)
        now_ns = time.time_ns()
        return WorkerSnapshot(
            uptime_s=time.monotonic() - self._started_s,
            counts=replace(self.counts, rejects=self.counts.rejects.copy()),
            model=self.live.engine.card,
            device=str(self.live.engine.choice.device),
            sensors=len(self._states),
            in_flight=self._in_flight,
            lag=lag,
            lag_s=lag_seconds(lag, self._taken_ms, now_ns),
            event_age_s=(now_ns - self._newest_event_ns) / 1e9 if self._newest_event_ns else None,
            delay_s=self._delay_s,
            kafka_answers=watch is not None and watch.kafka_away_since_s is None,
            redis_answers=self._redis_watch.away_since_s is None and not self._store.trouble,
        )

    async def _log_progress(self) -> None:
        while True:
            await asyncio.sleep(self._log_every_s)
            log.info("progress", extra=self._report())

    def _report(self) -> dict[str, Any]:
        now = self.snapshot()
        counts = now.counts
        return {
            "model": self.live.engine.card.version,
            "windows": counts.windows,
            "batches": counts.batches,
            "alerts": counts.alerts,
            "redelivered": counts.redelivered,
            "conflicts": counts.conflicts,
            "dead_letters": counts.rejects.total(),
            "inference_s": round(counts.inference_s, 2),
            "sensors": now.sensors,
            "lag": sum(now.lag.values()),
            "lag_s": round(max(now.lag_s.values(), default=0.0), 1),
            **self._shadow.report(),
        }


def _check_rate(window: Window, card: BundleCard) -> None:
    wanted_hz = card.window_rate_hz
    if wanted_hz is not None and window.rate_hz != wanted_hz:
        raise BadRecord(
            "rate",
            f"{float(window.rate_hz):g} Hz, but model {card.version} wants {float(wanted_hz):g} Hz; "
            "run the window agent with the worker's bundle",
        )


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Settle before partitions change hands; forget afterwards."""

    def __init__(self, worker: Worker, consumer: AIOKafkaConsumer[bytes, bytes]) -> None:
        self._worker = worker
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            # Less for the next owner to repeat; should it take too long, repeating is harmless.
            await self._worker.drained(within_s=3.0)
        self._worker.forget(set(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._worker.joined(assigned)


class _Reading:
    """How the worker reads, for those who watch it."""

    def __init__(self, worker: Worker, consumer: AIOKafkaConsumer[bytes, bytes]) -> None:
        self._consumer = consumer
        self.occupied = worker.occupied

    async def positions_and_ends(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        assigned = self._consumer.assignment()
        positions = {partition: await self._consumer.position(partition) for partition in assigned}
        ends = await self._consumer.end_offsets(assigned) if assigned else {}
        return positions, ends
