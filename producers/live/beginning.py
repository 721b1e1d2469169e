"""When a device's count of samples began, from when its blocks came. Pure.

A block comes late, never early: what waited in a pipe, in a broker or behind a slow start of this process is handed
over at once, and seems to have been taken just now. So the block that tells of the earliest beginning is right.
"""

from __future__ import annotations

from stream.records import NS_PER_S

#: The beginning is known once blocks have come in real time for so long.
SETTLED_NS = NS_PER_S // 4
#: What blocks may come closer to their time within that while and still be said to come in real time.
JITTER_NS = NS_PER_S // 50
#: So long after the first block, a backlog that came in several parts is still seen as one.
WATCHED_NS = 5 * NS_PER_S


class Beginning:
    """Told of each block what was counted and when it came, knows when the count began."""

    def __init__(self) -> None:
        self.begun_ns: int | None = None  #: when the first sample was taken, ns UTC; None before the first block
        self._first_ns = self._now_ns = self._counted_ns = 0
        self._fell: tuple[int, int, int] = (0, 0, 0)  # the beginning when it was last found earlier; clock, count

    def arrived(self, counted_ns: int, now_ns: int) -> None:
        """A block came at `now_ns` that ends `counted_ns` after the first sample of all, lost ones included."""
        begun_ns = now_ns - counted_ns
        if self.begun_ns is None:
            self._first_ns = now_ns
        if self.begun_ns is None or begun_ns < self._fell[0] - JITTER_NS:
            self._fell = begun_ns, now_ns, counted_ns
        self.begun_ns = begun_ns if self.begun_ns is None else min(self.begun_ns, begun_ns)
        self._now_ns, self._counted_ns = now_ns, counted_ns

    @property
    def settled(self) -> bool:
        """Whether nothing of a backlog has come for a while."""
        _, clock_ns, counted_ns = self._fell
        return self._now_ns - clock_ns >= SETTLED_NS and self._counted_ns - counted_ns >= SETTLED_NS

    @property
    def watched_ns(self) -> int:
        """Since the first block."""
        return self._now_ns - self._first_ns
