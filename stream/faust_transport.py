"""Faust's Kafka consumer, made to commit what a ledger says and nothing else.

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
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

log = logging.getLogger("aewatch.window_agent")


class CommitLedger(Protocol):
    """Knows what may be committed."""

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


class LedgerConsumer(driver.Consumer):
    """Commits what the transport's ledger says."""

    transport: LedgerTransport

    def _new_consumer_thread(self) -> LedgerConsumerThread:
        return LedgerConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit.

        Faust's own rule looks at acknowledged offsets alone and passes over a message that is still open where
        nothing was committed before, or where exactly one is open.
        """
        return self.transport.ledger.committable(tp)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self.assignment() if topics is None or tp in topics or tp.topic in topics)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Commit, and remember it only if it was done: Faust remembers it anyway and never tries again."""
        assignment = self.assignment()
        current = {tp: offset for tp, offset in offsets.items() if tp in assignment}
        if not current or not await self._commit(current):
            return False
        self._committed_offset.update(current)
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is safe before the partitions go, then forget them.

        Faust throws acknowledgements away first, so that up to a commit interval is read again by the next owner.
        """
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()
        await self.settle_and_commit()
        self.transport.ledger.drop(revoked)
        await super().on_partitions_revoked(revoked)

    async def settle_and_commit(self) -> bool:
        """Wait a little for what is on its way, then commit; False if the broker did not answer in time."""
        await self.transport.ledger.settle()
        try:
            async with asyncio.timeout(self.transport.commit_timeout_s):
                # `commit` does nothing while another one is on its way, and that one may know less.
                await self.maybe_wait_for_commit_to_finish()
                await self.force_commit()
        except TimeoutError:
            log.warning("the broker takes no commit; the next owner reads again what is safe already")
            return False
        return True

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
