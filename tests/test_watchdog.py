"""What hangs is told from what was stopped, said in the log with where it stands, and ended."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stream.watchdog import EXIT_HUNG, LOOP, TICK_S, AwakeClock, Watchdog


class Machine:
    """A watchdog that is looked after by hand, on a clock of our own."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.ticks = 0
        self.now_s = 100.0
        self.dog = Watchdog(self._tick, end=self.ended.append)
        self.dog.look(self.now_s)

    def _tick(self) -> None:
        self.ticks += 1

    def runs_for(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self.dog.look(self.now_s)

    def is_stopped_for(self, seconds: float) -> None:
        self.now_s += seconds
        self.dog.look(self.now_s)


@contextmanager
def another_thread_that_hangs(dog: Watchdog) -> Iterator[None]:
    begun, release = threading.Event(), threading.Event()

    def hang_in_the_model() -> None:
        with dog.limit("inference", 60.0, batch_windows=32, device="cuda"):
            begun.set()
            release.wait()

    thread = threading.Thread(target=hang_in_the_model)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        release.set()
        thread.join()


def test_what_ends_in_time_is_left_alone() -> None:
    machine = Machine()
    for _ in range(10):
        with machine.dog.limit("inference", 60.0):
            machine.runs_for(59)
    assert machine.ended == []


def test_a_thread_that_hangs_is_logged_with_its_stack_and_what_it_did_and_the_process_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = Machine()
    with another_thread_that_hangs(machine.dog):
        machine.runs_for(60)
        assert machine.ended == []
        machine.runs_for(1)
    assert set(machine.ended) == {EXIT_HUNG}
    [record, *_] = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert "inference hangs" in record.getMessage()
    assert (record.batch_windows, record.device) == (32, "cuda")
    assert record.for_s >= 60
    assert "hang_in_the_model" in record.stack


def test_a_process_that_was_stopped_does_not_hang_however_long_it_was() -> None:
    machine = Machine()
    with machine.dog.limit("inference", 10.0):
        for _ in range(3):
            machine.runs_for(1)
            machine.is_stopped_for(3600)
        assert machine.ended == []
        machine.runs_for(10)
    assert EXIT_HUNG in machine.ended, "but time in which it could run counts"


def test_the_awake_clock_counts_no_more_than_two_ticks_between_two_looks() -> None:
    clock = AwakeClock(tick_s=0.5)
    assert [clock.look(at_s) for at_s in (7.0, 7.5, 7.9, 100.0, 99.0)] == pytest.approx([0.0, 0.5, 0.9, 1.9, 1.9])


def test_the_supervisor_is_fed_only_while_nothing_hangs() -> None:
    machine = Machine()
    before = machine.ticks
    machine.runs_for(5)
    assert machine.ticks == before + 10
    machine.dog.begin("inference", 1.0)
    machine.runs_for(1)
    fed = machine.ticks
    machine.runs_for(5)
    assert machine.ticks == fed


def test_something_else_than_a_hang_ends_with_the_status_it_was_given() -> None:
    machine = Machine()
    machine.dog.begin("stopping", 5.0, status=1)
    machine.runs_for(6)
    assert set(machine.ended) == {1}


def test_it_ends_even_where_logging_is_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.watchdog.LOGGING_PATIENCE_S", 0.1)
    machine = Machine()
    released = threading.Event()
    monkeypatch.setattr("stream.watchdog._tell", lambda *_: released.wait(20))
    machine.dog.begin("inference", 1.0)
    begun = time.monotonic()
    machine.runs_for(2)
    released.set()
    assert machine.ended
    assert time.monotonic() - begun < 10


async def test_an_event_loop_that_comes_round_is_alive_and_one_that_does_not_is_not() -> None:
    ended: list[int] = []
    with Watchdog(end=ended.append) as dog:
        async with dog.loop(limit_s=2.0):
            await asyncio.sleep(3.5)
            assert ended == []
            time.sleep(4.5)  # noqa: ASYNC251 - that is what it must find
            assert set(ended) == {EXIT_HUNG}
        assert LOOP not in dog.running()
