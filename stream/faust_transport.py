"""Faust, made to commit what a ledger says and nothing else.

Faust 0.15 commits past messages that are not acknowledged (its issue 606), counts a commit that failed as done, drops
acknowledgements on every rebalance, and sleeps for a second once the buffers of all partitions are full. Each
override below says which of these it mends. The aiokafka consumer is made here and not from Faust's settings, so
that it takes every option of aiokafka.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import aiokafka
import faust
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

log = logging.getLogger("aewatch.window_agent")

FETCH_BYTES = 16 * 2**20
PARTITION_FETCH_BYTES = 4 * 2**20  # a larger message comes all the same, alone (KIP-74)
FETCH_WAIT_MS = 100  # while a fetch waits for quiet partitions no other one is sent
NEVER_MS = 2**31 - 1
COMMIT_INTERVAL_S = 0.5
BUFFERED_MESSAGES = 64
CLOSE_TIMEOUT_S = 5.0


class CommitLedger(Protocol):
    """Knows what may be committed."""

    def partitions(self) -> Collection[TP]:
        """Those of which something may be committed."""

    def committable(self, tp: TP) -> int | None:
        """The first offset of the partition that a new owner has to read, or None."""

    async def settle(self) -> None:
        """Wait, but not for long, until what was made of the messages read so far is safe."""

    def drop(self, partitions: Collection[TP]) -> None:
        """Forget these partitions: they belong to somebody else now."""


class LedgerConsumerThread(driver.AIOKafkaConsumerThread):
    """Runs the aiokafka consumer."""

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        assert isinstance(transport, LedgerTransport)
        return aiokafka.AIOKafkaConsumer(**transport.consumer_options)

    async def positions_and_ends(self, timeout_s: float) -> tuple[dict[TP, int], dict[TP, int]]:
        """For each assigned partition the next offset to be fetched, and the end of the log."""
        consumer = self._ensure_consumer()
        async with asyncio.timeout(timeout_s):
            assigned = consumer.assignment()
            positions = {TP(tp.topic, tp.partition): await consumer.position(tp) for tp in assigned}
            ends = await consumer.end_offsets(assigned) if assigned else {}
        return positions, {TP(tp.topic, tp.partition): offset for tp, offset in ends.items()}

    async def on_thread_stop(self) -> None:
        """Leave the group and close the consumer, or at least end.

        While the broker is away, or the group waits for a dead member, aiokafka's closing can last long; or it ends in
        the cancellation of a fetch that was about to be tried again, and Faust then waits a minute for this thread.
        """
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().on_thread_stop()
        except TimeoutError:
            log.warning("could not leave the group in time; it will miss this member after the session timeout")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise


class LedgerConsumer(driver.Consumer):
    """Commits what the transport's ledger says."""

    app: LedgerApp
    transport: LedgerTransport
    _thread: LedgerConsumerThread

    def _new_consumer_thread(self) -> LedgerConsumerThread:
        return LedgerConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit.

        Faust's own rule looks at acknowledged offsets alone and passes over a message that is still open where
        nothing was committed before, or where exactly one is open.
        """
        return self.transport.ledger.committable(tp)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self.transport.ledger.partitions() if topics is None or tp in topics or tp.topic in topics)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Commit, and remember it only if it was done: Faust remembers it anyway and never tries again."""
        assignment = self.assignment()
        current = {tp: offset for tp, offset in offsets.items() if tp in assignment}
        if not current or not await self._commit(current):
            return False
        self._committed_offset.update(current)
        return True

    def _should_commit(self, tp: TP, offset: int) -> bool:
        """Whether it is news: also a smaller offset is, in a log that was cut off or made anew."""
        return offset != self._committed_offset[tp]

    async def positions_and_ends(self, timeout_s: float) -> tuple[dict[TP, int], dict[TP, int]]:
        """For each assigned partition the next offset to be fetched, and the end of the log.

        Not through Faust's queue of calls, which two that the broker leaves unanswered would block.

        Raises
        ------
        TimeoutError, aiokafka.errors.KafkaError, faust.exceptions.ConsumerNotStarted
            If that cannot be said now.
        """
        asked = self._thread.positions_and_ends(timeout_s)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._thread.thread_loop))

    async def perform_seek(self) -> None:
        """Go to the committed offsets, and take whatever comes from there.

        Faust drops messages below the committed offset without a word, and in a log that was made anew that would be
        all of them. The ledger ignores what comes twice.
        """
        await super().perform_seek()
        for tp in self._read_offset:
            self._read_offset[tp] = None

    def committed_offset(self, tp: TP) -> int | None:
        """What was committed when the partition was assigned, or since; None if nothing was."""
        return self._committed_offset[tp]

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is safe before the partitions go, then forget them.

        Faust throws acknowledgements away first, so that up to a commit interval is read again by the next owner.
        """
        self.app.stop_reading()
        try:
            await self.settle_and_commit()
        finally:
            self.transport.ledger.drop(revoked)
            await super().on_partitions_revoked(revoked)

    async def settle_and_commit(self) -> bool:
        """Wait a little for what is on its way, then commit; False if the broker did not answer in time."""
        await self.transport.ledger.settle()
        try:
            async with asyncio.timeout(self.transport.commit_timeout_s):
                # `commit` does nothing while another one is on its way, which may know less; and Faust's own way of
                # waiting for that one swallows the timeout.
                if self._commit_fut is not None:
                    await asyncio.wait([self._commit_fut])
                await self.force_commit()
        except TimeoutError:
            log.warning("the broker takes no commit; the next owner reads again what is safe already")
            return False
        return True

    async def on_stop(self) -> None:
        """Do not commit: `settle_and_commit` was before, and this would wait for a broker that is away for ever."""

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: one full queue makes the reader wait anyway.

        Faust stops asking for a partition whose buffer is full, and once none is left sleeps for a second.
        """

    def on_buffer_drop(self, tp: TP) -> None:
        """Do nothing, see `on_buffer_full`."""

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: the ledger needs no list of offsets that never come, and Faust's would grow for ever."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: a held commit is no livelock, and `stream.lag_watch` looks for a consumer that is stuck."""

    def close(self) -> None:
        """Do nothing: the consumer's own thread closes it and leaves the group; Faust would close it from another."""


class LedgerTransport(driver.Transport):
    """Faust's aiokafka transport with a `LedgerConsumer`; set it as `app.transport` before anything else is done."""

    Consumer: ClassVar[type[LedgerConsumer]] = LedgerConsumer

    def __init__(
        self,
        url: Iterable[Any],
        app: Any,
        *,
        ledger: CommitLedger,
        consumer_options: Mapping[str, Any],
        commit_timeout_s: float = 5.0,
    ) -> None:
        super().__init__(list(url), app)
        self.ledger = ledger
        self.consumer_options = dict(consumer_options)
        self.commit_timeout_s = commit_timeout_s


class _Boot(BootStrategy):
    """Without Faust's own producer and web server."""

    enable_kafka_producer = False
    enable_web = False


class LedgerApp(faust.App):
    """A Faust app that reads and commits, and nothing else.

    Parameters
    ----------
    group
        Consumer group.
    ledger
        Says what may be committed.
    client_options
        Keyword arguments of every aiokafka client.
    member
        Name of this process, unique in the group and lasting (static membership); None for an ordinary member.
    session_timeout_s
        After so long without a sign of life the partitions go to others.
    folder
        Faust makes empty folders in it.
    """

    BootStrategy = _Boot

    def __init__(
        self,
        group: str,
        *,
        ledger: CommitLedger,
        client_options: Mapping[str, Any],
        member: str | None,
        session_timeout_s: float,
        folder: str,
    ) -> None:
        super().__init__(
            group,
            broker="kafka://unused",
            autodiscover=False,
            datadir=folder,
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            reply_create_topic=False,
            # Messages are held until their windows are complete, so waiting for all of them would never end.
            stream_wait_empty=False,
            stream_buffer_maxsize=BUFFERED_MESSAGES,
            broker_commit_interval=COMMIT_INTERVAL_S,
            broker_session_timeout=session_timeout_s,
        )
        options = {
            "group_id": group,
            "group_instance_id": member,
            "client_id": "aewatch-window-agent",
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "fetch_max_wait_ms": FETCH_WAIT_MS,
            "fetch_max_bytes": FETCH_BYTES,
            "max_partition_fetch_bytes": PARTITION_FETCH_BYTES,
            "session_timeout_ms": int(session_timeout_s * 1000),
            "heartbeat_interval_ms": int(session_timeout_s * 1000 / 6),
            # Whoever waits for the broker to take windows does not poll, and must not lose its partitions for it.
            "max_poll_interval_ms": NEVER_MS,
        }
        # Before anything asks for the transport, or Faust makes its own.
        self.transport = LedgerTransport([], self, ledger=ledger, consumer_options={**options, **client_options})

    @property
    def running_consumer(self) -> LedgerConsumer | None:
        """The consumer, if it has been started."""
        consumer = self._consumer
        return consumer if isinstance(consumer, LedgerConsumer) and consumer.started else None

    def stop_reading(self) -> None:
        """Hand out no more messages; the one in hand is not touched."""
        if self._consumer is not None:
            self._consumer.stop_flow()
        self.flow_control.suspend()
        self.flow_control.clear()
