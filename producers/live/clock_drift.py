"""How fast a device's sample clock runs beside this machine's clock."""

from __future__ import annotations

from collections import deque

import numpy as np

from stream.records import NS_PER_S

#: Blocks come late, never early: the smallest delay of a stretch is nearest to the truth.
STRETCH_S = 10.0
STRETCHES = 360


class ClockDrift:
    """Told the time by the sample counter at each block's arrival, tells how the two clocks part."""

    def __init__(self) -> None:
        self._places: deque[float] = deque(maxlen=STRETCHES)
        self._delays: deque[float] = deque(maxlen=STRETCHES)
        self._begun_ns: int | None = None
        self._first_s = 0.0

    def arrived(self, counted_ns: int, now_ns: int) -> None:
        """`counted_ns`: time just after the block's last sample, by the counter; `now_ns`: by this machine's clock."""
        delay_s = (now_ns - counted_ns) / NS_PER_S
        if self._begun_ns is None or now_ns - self._begun_ns >= STRETCH_S * NS_PER_S or now_ns < self._begun_ns:
            if self._begun_ns is None:
                self._first_s = delay_s
            self._begun_ns = now_ns
            self._places.append(counted_ns / NS_PER_S)
            self._delays.append(delay_s)
        elif delay_s < self._delays[-1]:
            if len(self._delays) == 1:
                self._first_s = delay_s
            self._places[-1], self._delays[-1] = counted_ns / NS_PER_S, delay_s

    @property
    def offset_s(self) -> float:
        """By how much the counter is behind now, beyond what it was at the start; s."""
        return self._delays[-1] - self._first_s if self._delays else 0.0

    @property
    def drift_ppm(self) -> float | None:
        """Of the last hour: by how much the device's clock is slow (positive) or fast; None before half a minute."""
        if len(self._delays) < 4:
            return None
        places = np.array(self._places) - self._places[0]
        slope = np.polyfit(places[:-1], np.array(self._delays)[:-1], 1)[0]
        return float(1e6 * slope)
