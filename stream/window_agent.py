"""The window agent: a Faust agent that reads frames, writes windows, and commits what is no longer needed.

Samples are in memory only. A frames message is committed when every window that needs it is acknowledged by the
broker (`stream.ordered_acks`), so whoever takes over a partition reads exactly what is missing. Windows may be
written twice, with the same identity and the same bytes; none is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaError
from faust.exceptions import ConsumerNotStarted
from faust.types import TP, EventT

from stream.dead_letters import DeadLetter
from stream.faust_transport import LedgerApp
from stream.frame_partition import FrameCounts, FramePartition, Output, PartitionLimits, Step, story
from stream.health import Health
from stream.lag_watch import (
    ANSWER_WITHIN_S,
    EXIT_STUCK,
    ConsumerStuck,
    ConsumerWatch,
    NotAnswered,
    Occupied,
    ask_ends_afresh,
    lag_seconds,
)
from stream.ordered_acks import HoldLimits
from stream.records import Window, encode_window
from stream.watchdog import Watchdog
from stream.window_output import OutputCounts, WindowOutput
from stream.windows import WindowSpec

log = logging.getLogger("aewatch.window_agent")

SETTLE_TIMEOUT_S = 3.0
STOP_LIMIT_S = 20.0


class WindowAgentError(RuntimeError):
    """The agent cannot start or go on; a restart reads on at the last commit."""


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
    partitions: int  #: read from now
    messages_pending: int  #: read and not committable yet
    in_flight_bytes: int  #: written and not acknowledged yet
    lag: Mapping[TP, int]  #: messages that wait
    lag_s: Mapping[TP, float]  #: since the last message taken was written, where more wait
    kafka_answers: bool
    frames: FrameCounts
    output: OutputCounts


class WindowAgent:
    """One process of the group that shares `ae.frames`.

    Parameters
    ----------
    client_options
        Keyword arguments of every aiokafka client: `bootstrap_servers`, TLS, SASL.
    spec
        How the model wants windows to be cut.
    topics
        What it reads and where it writes.
    group
        Consumer group; agents of one group share the partitions.
    limits
        What one partition may cost.
    member
        Name of this agent, unique in the group and the same after a restart. An agent that is back within the
        session timeout then has its partitions back without a rebalance, but one that leaves for good is missed
        only after that time. None makes an ordinary member, whose partitions go to others as soon as it stops.
    session_timeout_s
        After so long without a sign of life its partitions go to others. Brokers allow no less than 6 s by default.
    watchdog
        Ends the process if the agent does not stop when it shall.
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
        watchdog: Watchdog,
        log_every_s: float = 10.0,
    ) -> None:
        self._client_options = dict(client_options)
        self._spec = spec
        self._topics = topics
        self._group = group
        self._limits = limits or PartitionLimits()
        self._member = member
        self._session_timeout_s = session_timeout_s
        self._watchdog = watchdog
        self._log_every_s = log_every_s
        self._consumer_watch: ConsumerWatch[TP] = ConsumerWatch(
            self,
            topics.frames,
            lambda partitions: ask_ends_afresh(self._client_options, topics.frames, partitions),
            log,
        )
        self._stuck: ConsumerStuck | None = None
        self._joined = False
        self._taken_ms: dict[TP, int] = {}  # when the last message taken was written
        self._partitions: dict[TP, FramePartition] = {}
        self._past = FrameCounts()
        self._given_up: set[str] = set()
        self._told: set[str] = set()  # reasons that were logged since the last line of progress
        self._output: WindowOutput | None = None
        self._app: LedgerApp
        self._failure: asyncio.Future[None]
        self._between_messages: asyncio.Event
        self._closing = False
        self._started_s = time.monotonic()

    def snapshot(self) -> AgentSnapshot:
        """Counters and gauges of this moment."""
        frames = FrameCounts()
        frames.add(self._past)
        for partition in self._partitions.values():
            frames.add(partition.counts)
        lag = dict(self._consumer_watch.lag)
        return AgentSnapshot(
            uptime_s=time.monotonic() - self._started_s,
            partitions=len(self._partitions),
            messages_pending=sum(partition.acks.messages_pending for partition in self._partitions.values()),
            in_flight_bytes=0 if self._output is None else self._output.in_flight_bytes,
            lag=lag,
            lag_s=lag_seconds(lag, self._taken_ms, time.time_ns()),
            kafka_answers=self._consumer_watch.kafka_away_since_s is None,
            frames=frames,
            output=OutputCounts() if self._output is None else self._output.counts,
        )

    def health(self) -> Health:
        """Whether it lives, and gets its work done."""
        dead = [f"{one.what} hangs" for one in self._watchdog.overdue()]
        if self._stuck is not None:
            dead.append(str(self._stuck))
        waiting = []
        if not self._joined:
            waiting.append("not a member of the consumer group yet")
        if (away_s := self._consumer_watch.kafka_away_since_s) is not None:
            waiting.append(f"Kafka has not answered for {time.monotonic() - away_s:.0f} s")
        return Health(tuple(dead), tuple(waiting))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish what is on its way, commit and leave the group.

        Raises
        ------
        WindowAgentError
            If the agent cannot start or go on. Nothing was skipped: the next start reads on at the last commit.
        ConsumerStuck
            If messages wait, the broker answers, and nothing moves.
        """
        self._failure = asyncio.get_running_loop().create_future()
        self._between_messages = asyncio.Event()
        self._between_messages.set()
        output = WindowOutput(self._client_options, self._topics.windows, self._topics.deadletter, self._fail)
        async with contextlib.AsyncExitStack() as cleanup:
            try:
                self._output = await cleanup.enter_async_context(output)
            except KafkaConnectionError as error:
                where = self._client_options.get("bootstrap_servers")
                raise WindowAgentError(f"{where}: no Kafka to be reached there ({error})") from error
            self._app = LedgerApp(
                self._group,
                ledger=self,
                client_options=self._client_options,
                member=self._member,
                session_timeout_s=self._session_timeout_s,
                folder=cleanup.enter_context(tempfile.TemporaryDirectory(prefix="aewatch-faust-")),
            )
            frames = self._app.topic(self._topics.frames, key_type=bytes, value_type=bytes, value_serializer="raw")
            self._app.agent(frames, name="windows", concurrency=1)(self._read)
            self._app.on_partitions_assigned.connect(self._on_assigned)
            try:
                await self._work(stop)
            finally:
                # A broker that is away, or a consumer that is stuck, may never let go. Holds until the process ends.
                self._watchdog.begin("stopping", STOP_LIMIT_S, status=1)
                await self._stop()
        log.info("stopped", extra=self._report())

    async def _work(self, stop: asyncio.Event) -> None:
        starting: asyncio.Future[Any] = asyncio.ensure_future(self._app.start())
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        watching: asyncio.Future[Any] = asyncio.ensure_future(self._consumer_watch.run())
        companions: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._log_progress()), watching]
        critical = [starting, self._failure, *companions]
        try:
            while not stopping.done():
                # The consumer's thread can crash the app, which wakes nobody here: hence the timeout.
                pending = [task for task in (stopping, *critical) if not task.done()]
                await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if watching.done() and isinstance(error := watching.exception(), ConsumerStuck):
                    self._stuck = error
                for task in critical:
                    if task.done():
                        task.result()
                if self._app.crashed:
                    reason = self._app.crash_reason
                    raise WindowAgentError(f"cannot read {self._topics.frames}: {reason!r}") from reason
        finally:
            for task in (stopping, starting, *companions):
                task.cancel()
            await asyncio.gather(stopping, starting, *companions, return_exceptions=True)

    async def _stop(self) -> None:
        self._closing = True
        consumer = self._app.running_consumer
        if consumer is not None and not self._app.crashed:
            self._app.stop_reading()
            await consumer.settle_and_commit()
        await self._app.stop()

    async def _on_assigned(self, _: Any, /, *assigned: Collection[TP], **__: Any) -> None:
        self._joined = True
        partitions = ",".join(str(tp.partition) for tp in sorted(assigned[0]))
        log.info("ready", extra={"topic": self._topics.frames, "group": self._group, "partitions": partitions})

    async def _read(self, stream: Any) -> None:
        events: AsyncIterator[EventT[Any]] = stream.noack().events()
        async for event in events:
            if self._closing:
                continue
            self._between_messages.clear()
            try:
                await self._take(event)
            except Exception as error:
                self._fail("reading a message", error)
            finally:
                self._between_messages.set()
            if self._failure.done():
                return  # whoever goes on to the next message has skipped one

    async def _take(self, event: EventT[Any]) -> None:
        message = event.message
        # From the revocation to the next assignment the generation stays what it was, but nothing is handed out.
        if message.generation_id != self._app.consumer_generation_id or not self._app.flow_control.is_active():
            return
        partition = self._partitions.get(message.tp)
        if partition is None:
            consumer = self._app.running_consumer
            start = None if consumer is None else consumer.committed_offset(message.tp)
            partition = FramePartition(message.topic, message.partition, self._spec, self._limits, start)
            self._partitions[message.tp] = partition
        self._taken_ms[message.tp] = round(message.timestamp * 1000)
        step = partition.take(message.offset, message.key, message.value, time.monotonic())
        self._tell(step)
        for output in step.outputs:
            if self._partitions.get(message.tp) is not partition:
                return  # it was taken from us; the next owner makes these again
            await self._write(output, partition, message)

    async def _write(self, output: Output, partition: FramePartition, message: Any) -> None:
        assert self._output is not None
        record = output.record
        on_safe = partial(partition.acks.safe, output.number)
        if isinstance(record, Window):
            try:
                value = encode_window(record)
            except Exception as error:  # whatever is wrong with one window, the next one must be written
                record = partition.letter(message.offset, message.key, "error", message.value or b"", story(error))
            else:
                refused = partial(partition.letter, message.offset, message.key, "window-too-large")
                await self._output.write_window(value, message.key, on_safe, refused)
                return
        await self._output.write_letter(record, on_safe)

    def _tell(self, step: Step) -> None:
        for output in step.outputs:
            letter = output.record
            if isinstance(letter, DeadLetter) and letter.reason not in self._told:
                self._told.add(letter.reason)
                place = f"{letter.topic}/{letter.partition}/{letter.offset}"
                detail = letter.detail.strip().rpartition("\n")[2]
                log.warning("input rejected", extra={"reason": letter.reason, "at": place, "detail": detail})
        for sensor in step.given_up:
            if sensor not in self._given_up:
                self._given_up.add(sensor)
                log.warning(
                    "a silent sensor no longer holds up the commit; its open window is lost if this process ends "
                    "before it speaks again",
                    extra={"sensor": sensor},
                )
        for sensor in step.forgotten:
            self._given_up.discard(sensor)
            log.info("too many idle sensors, one is forgotten", extra={"sensor": sensor})

    # What the transport asks of its ledger.

    def partitions(self) -> Collection[TP]:
        """Those read from since they were assigned."""
        return self._partitions.keys()

    def committable(self, tp: TP) -> int | None:
        """The first offset of the partition that a new owner has to read."""
        partition = self._partitions.get(tp)
        return None if partition is None else partition.acks.committable()

    async def settle(self) -> None:
        """Wait until what was made of the messages read so far is written, or for three seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._between_messages.wait()
                if self._output is not None and not self._failure.done():
                    await self._output.idle()

    def drop(self, partitions: Collection[TP]) -> None:
        """Forget partitions that belong to somebody else now."""
        for tp in partitions:
            partition = self._partitions.pop(tp, None)
            if partition is not None:
                self._past.add(partition.counts)
                self._past.sensors = 0

    def _fail(self, doing: str, error: Exception) -> None:
        if not self._failure.done():
            failure = WindowAgentError(f"{doing}: {error!r}")
            failure.__cause__ = error
            self._failure.set_exception(failure)

    async def _log_progress(self) -> None:
        while self._log_every_s:
            await asyncio.sleep(self._log_every_s)
            log.info("progress", extra=self._report())
            self._told.clear()
        await asyncio.get_running_loop().create_future()

    def _report(self) -> dict[str, object]:
        """The snapshot in one level; of the many counters those that are not zero."""
        now = self.snapshot()
        frames = asdict(now.frames)
        windows = frames.pop("windows")
        del frames["rejects"]
        report: dict[str, object] = {
            "uptime_s": round(now.uptime_s, 1),
            "partitions": now.partitions,
            "sensors": frames.pop("sensors"),
            "messages": frames.pop("messages"),
            "frames": windows.pop("frames"),
            "windows": windows.pop("windows"),
            "windows_written": now.output.windows_written,
            "messages_pending": now.messages_pending,
            "lag": sum(now.lag.values()),
            "lag_s": round(max(now.lag_s.values(), default=0.0), 1),
        }
        others = frames | windows | asdict(now.output) | {"in_flight_bytes": now.in_flight_bytes}
        report |= {name: count for name, count in others.items() if count and name not in report}
        return report | {f"reject_{reason}": count for reason, count in now.frames.rejects.items()}

    # What is asked by `stream.lag_watch`.

    def occupied(self) -> Occupied | None:
        """What keeps it from reading on."""
        consumer = self._app.running_consumer
        if consumer is None:
            return Occupied("starting")
        if self._app.rebalancing or not consumer.flow_active:
            return Occupied("sharing out partitions", self._app.consumer_generation_id)
        if not self._between_messages.is_set():
            counts = self.snapshot()
            return Occupied("writing windows", (counts.frames.messages, counts.output.windows_written))
        return None

    async def positions_and_ends(self) -> tuple[Mapping[TP, int], Mapping[TP, int]]:
        """For each assigned partition the next offset to be fetched, and the end of the log."""
        consumer = self._app.running_consumer
        if consumer is None:
            raise NotAnswered("the consumer has not started yet")
        try:
            return await consumer.positions_and_ends(ANSWER_WITHIN_S)
        except ConsumerNotStarted as error:
            raise NotAnswered("the consumer has not started yet") from error


#: What stands beside an agent, from the agent, its watchdog, and the event that stops it.
Beside = Callable[[WindowAgent, Watchdog, asyncio.Event], AbstractAsyncContextManager[object]]


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
    stall_limit_s: float = 30.0,
    on_tick: Callable[[], object] = lambda: None,
    beside: Beside | None = None,
) -> int:
    """Run a window agent in the foreground until SIGTERM or SIGINT.

    Logging is the caller's to configure: nothing is printed and no handler installed. What the other parameters mean
    is said at `WindowAgent`, `PartitionLimits` and `HoldLimits`.

    Parameters
    ----------
    stall_limit_s
        An event loop that does not come round for so long hangs, and the process is ended.
    on_tick
        Called twice a second from a thread of its own as long as nothing hangs.
    beside
        Entered before the agent runs, left after it.

    Returns
    -------
    int
        Exit status: 0 after a signal; 75 if the consumer was stuck; 1 if it could not start or go on. The log says
        why. What hangs ends the process with status 70.
    """
    with Watchdog(on_tick) as watchdog:
        agent = WindowAgent(
            client_options={"bootstrap_servers": bootstrap, **client_options},
            spec=spec,
            topics=AgentTopics(frames_topic, windows_topic, deadletter_topic),
            group=group,
            limits=PartitionLimits(
                hold=HoldLimits(silence_s=hold_s, size_bytes=hold_bytes), max_message_bytes=max_message_bytes
            ),
            member=member,
            watchdog=watchdog,
            log_every_s=log_every_s,
        )

        async def run() -> None:
            stop = _stop_on_signals()
            async with watchdog.loop(stall_limit_s), contextlib.AsyncExitStack() as around:
                if beside is not None:
                    await around.enter_async_context(beside(agent, watchdog, stop))
                await agent.run(stop)

        try:
            asyncio.run(run())
        except ConsumerStuck as error:
            log.critical(str(error))
            return EXIT_STUCK
        except (KafkaError, WindowAgentError) as error:
            log.critical(str(error) or type(error).__name__, exc_info=error.__cause__)
            return 1
    return 0


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        log.info("stopping", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop
