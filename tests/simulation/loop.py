"""An event loop without time and without a system underneath: what is ready runs in order, the rest waits."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class FakeLoop(asyncio.AbstractEventLoop):
    """Runs tasks until every one of them waits for something that only the simulation can give.

    Its clock stands still until `let_time_pass`. Executors work at once.
    """

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._now_s = 1000.0
        self.errors: list[BaseException] = []
        # Of dead processes too: collected while others still run, their unfinished work would be woken to be closed.
        self._tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self._now_s

    monotonic = time

    def run_ready(self) -> None:
        """Run until nothing is ready. Raises what a task failed with and nobody waited for."""
        ready = self._ready
        if not ready:
            return
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            events._set_running_loop(before)
        if self.errors:
            raise self.errors.pop(0)

    def let_time_pass(self, seconds: float) -> None:
        """Fire the timers of the next seconds, each at its time."""
        end = self._now_s + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now_s = max(self._now_s, when)
            self._ready.append(timer)
            self.run_ready()
        self._now_s = end

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task whose failure is the simulation's."""
        task = self.create_task(work)
        task.add_done_callback(self._note_failure)
        return task

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        task._log_destroy_pending = False  # whoever crashes leaves its tasks behind
        self._tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Only a handle that broke calls this; tasks that failed are in `errors`."""
        if (error := context.get("exception")) is not None:
            self.errors.append(error)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass
