"""The window agent: a Faust agent that reads frames, writes windows, and commits what is no longer needed.

Samples are in memory only. A frames message is committed when every window that needs it is acknowledged by the
broker (`stream.ordered_acks`), so whoever takes over a partition reads exactly what is missing. Windows may be
written twice, with the same identity and the same bytes; none is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.app.base import BootStrategy
from faust.types import TP, EventT, StreamT

from stream.faust_transport import LedgerConsumer, LedgerTransport
from stream.frame_partition import FrameCounts, FramePartition, PartitionLimits
from stream.lag_watch import LagWatch
from stream.ordered_acks import HoldLimits
from stream.records import Window
from stream.window_output import BATCH_BYTES, WindowOutput
from stream.windows import WindowSpec

log = logging.getLogger("aewatch.window_agent")

MAX_REQUEST_BYTES = 34 * 2**20
FETCH_BYTES = 16 * 2**20
PARTITION_FETCH_BYTES = 4 * 2**20  # a larger message comes all the same, alone (KIP-74)
FETCH_WAIT_MS = 100
COMMIT_INTERVAL_S = 0.5
NEVER_MS = 2**31 - 1
SETTLE_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 20.0
STUCK_AFTER_S = 60.0
STUCK_LOOK_S = 10.0


class WindowAgentError(RuntimeError):
    """The agent cannot go on; a restart reads again what was not committed."""


@dataclass(frozen=True, slots=True)
class AgentTopics:
    """What it reads and where it writes."""

    frames: str
    windows: str
    deadletter: str


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """What an agent did since it started, and where it stands."""

    uptime_s: float
    partitions: int  #: assigned now
    frames: FrameCounts
    windows_written: int  #: acknowledged by the broker
    window_bytes_written: int
    windows_refused: int  #: too large for the topic, dead-lettered
    in_flight_bytes: int  #: written and not acknowledged
    messages_pending: int  #: read and not committable yet


class _Boot(BootStrategy):
    """Without Faust's own producer and web server."""

    enable_kafka_producer = False
    enable_web = False


class _App(faust.App):
    BootStrategy = _Boot


class WindowAgent:
    """One process of the group that shares `ae.frames`.

    Parameters
    ----------
    client_options
        Keyword arguments of every aiokafka client: `bootstrap_servers`, TLS, SASL.
    spec
        How the model wants windows to be cut.
    group
        Consumer group; agents of one group share the partitions.
    limits
        What one partition may cost.
    member
        Name of this agent, unique in the group and the same after a restart. With it an agent that is back within
        `session_timeout_s` gets its partitions back without a rebalance; but one that leaves for good is missed
        only after that time.
    session_timeout_s
        After so long without a sign of life its partitions go to others.
    log_every_s
        How often a line of progress is logged; 0 is never.
    """

    def __init__(
        self,
        *,
        client_options: Mapping[str, Any],
        spec: WindowSpec,
        topics: AgentTopics,
        group: str,
        limits: PartitionLimits | None = None,
        member: str | None = None,
        session_timeout_s: float = 6.0,
        log_every_s: float = 10.0,
    ) -> None:
        self._client_options = dict(client_options)
        self._spec = spec
        self._topics = topics
        self._group = group
        self._limits = limits or PartitionLimits()
        self._member = member
        self._session_timeout_s = session_timeout_s
        self._log_every_s = log_every_s
        self._partitions: dict[TP, FramePartition] = {}
        self._past = FrameCounts()
        self._given_up: set[str] = set()
        self._output: WindowOutput
        self._app: _App
        self._failed: asyncio.Future[None]
        self._between_messages: asyncio.Event
        self._closing = False
        self._started_s = time.monotonic()

    def snapshot(self) -> AgentSnapshot:
        """Counters and gauges of this moment."""
        frames = FrameCounts()
        frames.add(self._past)
        for partition in self._partitions.values():
            frames.add(partition.counts)
        return AgentSnapshot(
            uptime_s=time.monotonic() - self._started_s,
            partitions=len(self._partitions),
            frames=frames,
            windows_written=self._output.windows,
            window_bytes_written=self._output.window_bytes,
            windows_refused=self._output.windows_refused,
            in_flight_bytes=self._output.in_flight_bytes,
            messages_pending=sum(partition.acks.messages_pending for partition in self._partitions.values()),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish what is on its way, commit and leave the group.

        Raises
        ------
        KafkaError
            If the broker cannot be reached at the start.
        WindowAgentError
            If the agent cannot go on. Nothing was skipped: the next start reads on at the last commit.
        """
        self._failed = asyncio.get_running_loop().create_future()
        self._between_messages = asyncio.Event()
        self._between_messages.set()
        producer = AIOKafkaProducer(
            enable_idempotence=True,
            acks="all",
            linger_ms=5,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            **self._client_options,
        )
        await producer.start()
        self._output = WindowOutput(producer, self._topics.windows, self._topics.deadletter, self._fail)
        try:
            with tempfile.TemporaryDirectory(prefix="aewatch-faust-") as folder:
                self._app = self._make_app(folder)
                try:
                    await self._work(stop)
                finally:
                    await self._stop()
        finally:
            # Nothing is left to send unless the broker is away, and then waiting for it would never end.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(producer.stop(), SETTLE_TIMEOUT_S)
        log.info("stopped", extra=self._report())

    async def _work(self, stop: asyncio.Event) -> None:
        starting = asyncio.create_task(self._app.start(), name="start")
        tasks = [
            asyncio.create_task(self._log_progress(), name="log"),
            asyncio.create_task(self._watch_lag(), name="lag"),
        ]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stopping.done():
                waited = {stopping, self._failed, *tasks} | (set() if starting.done() else {starting})
                # The consumer's thread can crash the app, which wakes nobody here.
                await asyncio.wait(waited, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in (starting, *tasks):
                    if task.done():
                        task.result()
                if self._failed.done():
                    self._failed.result()
                if self._app.crashed:
                    reason = self._app.crash_reason
                    raise WindowAgentError(f"Faust gave up: {reason!r}") from reason
        finally:
            for task in (stopping, starting, *tasks):
                task.cancel()
            await asyncio.gather(stopping, starting, *tasks, return_exceptions=True)

    async def _stop(self) -> None:
        begun = time.monotonic()
        self._closing = True
        consumer = self._app._consumer
        if isinstance(consumer, LedgerConsumer) and consumer.started and not self._failed.done():
            consumer.stop_flow()
            self._app.flow_control.suspend()
            self._app.flow_control.clear()
            await consumer.settle_and_commit()
        await self._app.stop()
        log.debug("Faust has stopped", extra={"seconds": round(time.monotonic() - begun, 2)})

    def _make_app(self, folder: str) -> _App:
        app = _App(
            self._group,
            broker="kafka://unused",
            autodiscover=False,
            datadir=folder,
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            reply_create_topic=False,
            stream_wait_empty=False,
            stream_buffer_maxsize=64,
            broker_commit_interval=COMMIT_INTERVAL_S,
            broker_session_timeout=self._session_timeout_s,
            broker_heartbeat_interval=self._session_timeout_s / 6,
            consumer_auto_offset_reset="earliest",
        )
        app.transport = LedgerTransport(
            [],
            app,
            ledger=self,
            consumer_options={
                "group_id": self._group,
                "group_instance_id": self._member,
                "client_id": "aewatch-window-agent",
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                "fetch_max_wait_ms": FETCH_WAIT_MS,
                "fetch_max_bytes": FETCH_BYTES,
                "max_partition_fetch_bytes": PARTITION_FETCH_BYTES,
                "session_timeout_ms": int(self._session_timeout_s * 1000),
                "heartbeat_interval_ms": int(self._session_timeout_s * 1000 / 6),
                # Whoever waits for the broker to take windows does not poll, and must not lose its partitions.
                "max_poll_interval_ms": NEVER_MS,
                **self._client_options,
            },
        )
        frames = app.topic(
            self._topics.frames, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        )
        app.agent(frames, name="windows", concurrency=1)(self._read)
        app.on_partitions_assigned.connect(self._on_assigned)
        return app

    async def _on_assigned(self, app: Any, assigned: Collection[TP], **_: Any) -> None:
        partitions = ",".join(str(tp.partition) for tp in sorted(assigned))
        log.info("ready", extra={"topic": self._topics.frames, "group": self._group, "partitions": partitions})

    async def _read(self, stream: StreamT[bytes]) -> None:
        events: AsyncIterator[EventT[Any]] = stream.noack().events()  # type: ignore[assignment]
        async for event in events:
            if self._closing:
                continue
            self._between_messages.clear()
            try:
                await self._take(event)
            except Exception as error:
                self._fail(error)
                # Whoever goes on to the next message has skipped this one.
                await asyncio.get_running_loop().create_future()
            finally:
                self._between_messages.set()

    async def _take(self, event: EventT[Any]) -> None:
        message = event.message
        if message.generation_id != self._app.consumer_generation_id:
            return
        partition = self._partitions.get(message.tp)
        if partition is None:
            partition = FramePartition(message.topic, message.partition, self._spec, self._limits)
            self._partitions[message.tp] = partition
        step = partition.take(message.offset, message.key, message.value, time.monotonic())
        self._tell(step.given_up, step.forgotten)
        for number, record in step.outputs:
            if self._partitions.get(message.tp) is not partition:
                return  # it was taken from us; the next owner makes these again
            on_safe = partial(partition.acks.safe, number)
            if isinstance(record, Window):
                refused = partial(_refused_window, partition, message.offset, message.key)
                await self._output.write_window(record, message.key, on_safe, refused)
            else:
                log.warning(
                    "input rejected",
                    extra={"partition": record.partition, "offset": record.offset, "reason": record.reason},
                )
                await self._output.write_letter(record, on_safe)

    def _tell(self, given_up: Collection[str], forgotten: Collection[str]) -> None:
        for sensor in given_up:
            if sensor not in self._given_up:
                self._given_up.add(sensor)
                log.warning(
                    "a silent sensor no longer holds up the commit; if this process dies before the sensor speaks "
                    "again, its open window is lost",
                    extra={"sensor": sensor},
                )
        for sensor in forgotten:
            self._given_up.discard(sensor)
            log.info("too many idle sensors, one forgotten", extra={"sensor": sensor})

    # What the transport asks of its ledger.

    def committable(self, tp: TP) -> int | None:
        """The first offset of the partition that a new owner has to read."""
        partition = self._partitions.get(tp)
        return None if partition is None else partition.acks.committable()

    async def settle(self) -> None:
        """Wait until what was made of the messages read so far is written, or for three seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._between_messages.wait()
                await self._output.idle()

    def drop(self, partitions: Collection[TP]) -> None:
        """Forget partitions that belong to somebody else now."""
        for tp in partitions:
            partition = self._partitions.pop(tp, None)
            if partition is not None:
                self._past.add(partition.counts)
                self._past.sensors = 0

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            failure = WindowAgentError(f"cannot go on: {error!r}")
            failure.__cause__ = error
            self._failed.set_exception(failure)

    async def _log_progress(self) -> None:
        while self._log_every_s:
            await asyncio.sleep(self._log_every_s)
            log.info("progress", extra=self._report())
        await asyncio.get_running_loop().create_future()

    def _report(self) -> dict[str, object]:
        """The snapshot in one level, and of the many counters those that are not zero."""
        now = self.snapshot()
        snapshot = asdict(now)
        frames: dict[str, Any] = snapshot.pop("frames")
        cut: dict[str, int] = frames.pop("windows")
        del frames["rejects"]
        report: dict[str, object] = {"uptime_s": round(snapshot.pop("uptime_s"), 1)} | snapshot
        report |= {name: frames.pop(name) for name in ("messages", "message_bytes", "sensors")}
        report |= {name: cut.pop(name) for name in ("frames", "windows", "hit_windows")}
        report |= {name: count for name, count in (frames | cut).items() if count}
        return report | {f"reject_{reason}": count for reason, count in now.frames.rejects.items()}

    async def _watch_lag(self) -> None:
        watch: LagWatch[TP] = LagWatch(STUCK_AFTER_S)
        while True:
            await asyncio.sleep(STUCK_LOOK_S)
            consumer = self._app._consumer
            busy = not self._between_messages.is_set() or self._output.in_flight_bytes or self._app.rebalancing
            if busy or not isinstance(consumer, LedgerConsumer) or not consumer.flow_active:
                watch.forget()
                continue
            try:
                async with asyncio.timeout(STUCK_LOOK_S):
                    assigned = consumer.assignment()
                    positions = {tp: await consumer.position(tp) for tp in assigned}
                    ends = await consumer.highwaters(*assigned) if assigned else {}
            except (TimeoutError, KafkaError) as error:
                log.warning("the broker does not say how far its log is", extra={"error": repr(error)})
                watch.forget()
                continue
            known = {tp: position for tp, position in positions.items() if position is not None}
            stuck = watch.look(time.monotonic(), known, ends)
            if stuck:
                waiting = ", ".join(f"{count} in partition {tp.partition}" for tp, count in sorted(stuck.items()))
                raise WindowAgentError(
                    f"nothing was read for {STUCK_AFTER_S:g} s although messages wait ({waiting}): the consumer is stuck"
                )


def _refused_window(partition: FramePartition, offset: int, key: bytes | None, raw: bytes, detail: str) -> Any:
    return partition.letter(offset, key, raw, 0, "window-too-large", detail)


def run_window_agent(
    *,
    bootstrap: str,
    client_options: Mapping[str, Any],
    spec: WindowSpec,
    frames_topic: str,
    windows_topic: str,
    deadletter_topic: str,
    group: str,
    max_message_bytes: int = 16 * 2**20,
    hold_s: float = 600.0,
    hold_bytes: int = 512 * 2**20,
    member: str | None = None,
    log_every_s: float = 10.0,
) -> int:
    """Run a window agent in the foreground until SIGTERM or SIGINT.

    Logging is the caller's to configure; nothing is printed and no handler installed.

    Returns
    -------
    int
        Exit status: 0 after a signal; 1 if it could not start or go on, and then the log says why.
    """
    limits = PartitionLimits(
        hold=HoldLimits(silence_s=hold_s, size_bytes=hold_bytes), max_message_bytes=max_message_bytes
    )
    agent = WindowAgent(
        client_options={"bootstrap_servers": bootstrap, **client_options},
        spec=spec,
        topics=AgentTopics(frames_topic, windows_topic, deadletter_topic),
        group=group,
        limits=limits,
        member=member,
        log_every_s=log_every_s,
    )
    try:
        asyncio.run(_run_until_signal(agent))
    except (KafkaError, WindowAgentError) as error:
        log.critical(str(error) or type(error).__name__, exc_info=error.__cause__)
        return 1
    return 0


async def _run_until_signal(agent: WindowAgent) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        log.info("stopping", extra={"signal": number.name})
        _end_in_any_case()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await agent.run(stop)


def _end_in_any_case() -> None:
    """End the process if it does not end by itself, as when the broker is gone: what is not committed is not lost."""

    def end() -> None:
        log.critical(
            "did not stop in time; what is not committed will be read again", extra={"limit_s": STOP_TIMEOUT_S}
        )
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(STOP_TIMEOUT_S, end)
    timer.daemon = True
    timer.start()
