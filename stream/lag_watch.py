"""Tells a consumer that is stuck from one that has nothing to read.

aiokafka can stop fetching after a broker restart without an error (its issue 1154).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from aiokafka.errors import KafkaError
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

if TYPE_CHECKING:
    from stream.faust_transport import LedgerApp

log = logging.getLogger("aewatch.window_agent")

PATIENCE_S = 60.0
LOOK_EVERY_S = 10.0

Partition = TypeVar("Partition")


class _Seen(NamedTuple):
    position: int
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


async def until_stuck(app: LedgerApp, working: Callable[[], bool]) -> dict[TP, int]:
    """Wait until partitions are stuck, and say how many messages wait in them.

    While `working` says that a message is in hand, or partitions are being shared out anew, nothing is held against
    the consumer.
    """
    watch: LagWatch[TP] = LagWatch(PATIENCE_S)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        consumer = app.running_consumer
        if consumer is None or working() or app.rebalancing or not consumer.flow_active:
            watch.forget()
            continue
        try:
            positions, ends = await consumer.positions_and_ends(LOOK_EVERY_S)
        except (TimeoutError, KafkaError, ConsumerNotStarted) as error:
            log.warning("the broker does not say how far its log is", extra={"error": repr(error)})
            watch.forget()
            continue
        stuck = watch.look(time.monotonic(), positions, ends)
        if stuck:
            return stuck
