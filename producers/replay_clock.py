"""When a replayed frame is due: media time as a function of wall time, through pauses and changes of pace. Pure."""

from __future__ import annotations

import math

FASTEST = 1024.0  #: times the recordings' own pace; one step faster is full speed
SLOWEST = 1.0 / 1024.0


class ReplayClock:
    """Media time, which runs `rate` times as fast as wall time, stands still while paused, and never goes back.

    Both in seconds; wall time is any clock that never goes back, and is given to each method. Every deadline is
    reckoned from the last change of pace, not from the deadline before, so that no error adds up. At full speed (rate
    None) there is no schedule: media time is what `reach` says.

    Raises
    ------
    ValueError
        If a rate is not positive and finite, or None.
    """

    def __init__(self, rate: float | None = 1.0, *, paused: bool = False) -> None:
        _check(rate)
        self.rate = rate  #: None is full speed
        self.paused = paused
        self._media_s = 0.0  #: at `_wall_s`
        self._wall_s: float | None = None  #: of the last change; None until it begins

    @property
    def begun(self) -> bool:
        """Whether media time has begun."""
        return self._wall_s is not None

    def begin(self, wall_s: float) -> None:
        """Media time 0 is now; before, it stands still."""
        self._wall_s = wall_s

    def media_s(self, wall_s: float) -> float:
        """Media time now."""
        if self._wall_s is None or self.paused or self.rate is None:
            return self._media_s
        return self._media_s + (wall_s - self._wall_s) * self.rate

    def due_s(self, media_s: float) -> float | None:
        """Wall time at which media time is `media_s`; None if it stands still, minus infinity at full speed."""
        if self._wall_s is None or self.paused:
            return None
        if self.rate is None:
            return -math.inf
        return self._wall_s + (media_s - self._media_s) / self.rate

    def pause(self, wall_s: float) -> None:
        """Let media time stand still."""
        self._change(wall_s)
        self.paused = True

    def resume(self, wall_s: float) -> None:
        """Let it run on from where it stands."""
        self._change(wall_s)
        self.paused = False

    def set_rate(self, rate: float | None, wall_s: float) -> None:
        """Run on from here at another pace."""
        _check(rate)
        self._change(wall_s)
        self.rate = rate

    def reach(self, media_s: float) -> None:
        """Something of this media time was played although the clock stood still: go on from there."""
        self._media_s = max(self._media_s, media_s)

    def _change(self, wall_s: float) -> None:
        if self._wall_s is not None:
            self._media_s, self._wall_s = self.media_s(wall_s), wall_s


def faster(rate: float | None) -> float | None:
    """The pace one step up: twice as fast, and above `FASTEST` full speed."""
    return None if rate is None or rate * 2 > FASTEST else rate * 2


def slower(rate: float | None) -> float:
    """The pace one step down: half as fast; from full speed it is the recordings' own."""
    return 1.0 if rate is None else max(rate / 2, min(rate, SLOWEST))


def _check(rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate {rate}; a positive multiple of the recording's pace, or None for full speed")
