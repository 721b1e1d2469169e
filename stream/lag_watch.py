"""Tells a consumer that is stuck from one that has nothing to read.

aiokafka can stop fetching after a broker restart without an error (its issue 1154).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

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
