"""Finds what hangs in this process, says in the log what and where, and ends the process for a supervisor to restart.

A thread that hangs (a GPU that does not answer) cannot be ended by itself, so all of the process is. The watchdog is a
thread that counts only the time in which it could run: a process that was stopped, or a machine that slept, is not
taken for one that hangs.

What keeps the interpreter's lock while it hangs stops this thread too; then the supervisor's own watchdog is what is
left (`WatchdogSec=` of systemd, the liveness probe of Kubernetes).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

log = logging.getLogger("aewatch.watchdog")

EXIT_HUNG = 70  #: exit status of a process that was ended because something in it hung
TICK_S = 0.5
LOGGING_PATIENCE_S = 2.0
LOOP = "event loop"


class AwakeClock:
    """Time in which this process could run, s, as seen by somebody who looks every `tick_s`.

    However long it is between two looks, no more than two ticks are counted: the rest was a stop, not a hang.
    """

    def __init__(self, tick_s: float) -> None:
        self._most_s = 2 * tick_s
        self._looked_s: float | None = None
        self.now_s = 0.0

    def look(self, monotonic_s: float) -> float:
        """The time now."""
        if self._looked_s is not None:
            self.now_s += min(max(monotonic_s - self._looked_s, 0.0), self._most_s)
        self._looked_s = monotonic_s
        return self.now_s


@dataclass(frozen=True, slots=True)
class Watched:
    """Something that must end, or show a sign of life, within its limit."""

    what: str
    limit_s: float
    thread: int  #: identifier of the thread that does it
    since_s: float  #: awake time of its begin or last sign of life
    status: int  #: exit status if it does not
    about: Mapping[str, object]  #: what a person wants to know of it


class Watchdog:
    """Watches until it is closed; use `with`.

    Parameters
    ----------
    on_tick
        Called twice a second from the watchdog's thread as long as nothing hangs.
    end
        Ends the process with a status.
    """

    def __init__(
        self, on_tick: Callable[[], object] = lambda: None, *, end: Callable[[int], object] = os._exit
    ) -> None:
        self._on_tick = on_tick
        self._end = end
        self._clock = AwakeClock(TICK_S)
        self._watched: dict[str, Watched] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def begin(
        self, what: str, limit_s: float, about: Mapping[str, object] = MappingProxyType({}), status: int = EXIT_HUNG
    ) -> None:
        """From now on, or once more from now on: this thread must call `done(what)` within so many seconds."""
        self._watched[what] = Watched(what, limit_s, threading.get_ident(), self._clock.now_s, status, about)

    def done(self, what: str) -> None:
        """It has come to an end."""
        self._watched.pop(what, None)

    @contextlib.contextmanager
    def limit(self, what: str, limit_s: float, **about: object) -> Iterator[None]:
        """What this thread does inside must not take longer than `limit_s`."""
        self.begin(what, limit_s, about)
        try:
            yield
        finally:
            self.done(what)

    @contextlib.asynccontextmanager
    async def loop(self, limit_s: float) -> AsyncIterator[None]:
        """While inside, the event loop must come round within `limit_s`."""
        loop = asyncio.get_running_loop()
        handle: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal handle
            self.begin(LOOP, limit_s)
            handle = loop.call_later(TICK_S, beat)

        beat()
        try:
            yield
        finally:
            if handle is not None:
                handle.cancel()
            self.done(LOOP)

    def running(self) -> dict[str, tuple[float, float]]:
        """What is watched now: for how long it has been going on without a sign of life, and its limit, s."""
        now_s = self._clock.now_s
        return {one.what: (now_s - one.since_s, one.limit_s) for one in list(self._watched.values())}

    def overdue(self) -> list[Watched]:
        """What has been going on for longer than it may."""
        now_s = self._clock.now_s
        return [one for one in list(self._watched.values()) if now_s - one.since_s > one.limit_s]

    def look(self, monotonic_s: float) -> None:
        """Look once; the thread does so every half second."""
        now_s = self._clock.look(monotonic_s)
        hanging = self.overdue()
        if not hanging:
            self._on_tick()
            return
        # Logging itself may be what hangs: a full pipe, a lock that the hanging thread holds.
        saying = threading.Thread(target=_tell, args=(hanging, now_s), daemon=True)
        saying.start()
        saying.join(LOGGING_PATIENCE_S)
        self._end(hanging[0].status)

    def _run(self) -> None:
        while not self._closed.wait(TICK_S):
            self.look(time.monotonic())


def _tell(hanging: list[Watched], now_s: float) -> None:
    frames = sys._current_frames()
    for one in hanging:
        frame = frames.get(one.thread)
        stack = "the thread has ended" if frame is None else "".join(traceback.format_stack(frame))
        log.critical(
            f"{one.what} hangs; ending this process, so that it is started again. What is not committed is read again",
            extra={
                "for_s": round(now_s - one.since_s, 1),
                "limit_s": one.limit_s,
                **one.about,
                "status": one.status,
                "stack": stack,
            },
        )
