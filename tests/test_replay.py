import asyncio
import contextlib
import selectors
import threading
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from producers.replay import replay
from stream.records import Flags, Frame, samples_to_ns

RATE_HZ = Fraction(1_000)
CONTINUOUS = Flags(0)


class JumpingSelector(selectors.DefaultSelector):
    """Where the loop would sleep for a timer, the clock jumps instead: pace is tested without waiting."""

    jumped_s = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout is None:
            return ready or super().select(timeout)
        self.jumped_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self):
        return self._jumping.jumped_s


def play(main):
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


class Recorded:
    """A source of `frames`; tells whether its iterator was closed."""

    def __init__(self, frames):
        self.frames = frames
        self.sensors = tuple(dict.fromkeys(frame.sensor for frame in frames))
        self.duration_s = self.total_frames = self.total_samples = None
        self.closed = False

    def __iter__(self):
        try:
            yield from self.frames
        finally:
            self.closed = True


class Sink:
    """Notes what is published and when; `cost_s` is how long it takes over each frame."""

    def __init__(self, cost_s=0.0):
        self.frames = []
        self.at_s = []
        self.cost_s = cost_s
        self.flushed = 0

    async def publish(self, frame):
        loop = asyncio.get_running_loop()
        self.at_s.append(loop.time())
        await asyncio.sleep(self.cost_s)
        self.frames.append(frame)

    async def flush(self):
        self.flushed = len(self.frames)


def frames(sensor, count, size=100, start=0, epoch_ns=0, flags=CONTINUOUS):
    return [
        Frame(
            sensor=sensor,
            epoch_ns=epoch_ns,
            sequence=k,
            first_sample=start + k * size,
            time_ns=epoch_ns + samples_to_ns(start + k * size, RATE_HZ),
            rate_hz=RATE_HZ,
            samples=np.zeros(size, dtype=np.int16),
            flags=flags,
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("rate", [1.0, 10.0, 0.5])
def test_a_frame_is_published_when_its_last_sample_would_have_been_there(rate):
    sink = Sink()
    done = play(replay([Recorded(frames("a", 50))], sink, rate))
    assert sink.at_s == pytest.approx([0.1 * (k + 1) / rate for k in range(50)], abs=1e-6)
    assert (done.frames, done.samples, sink.flushed) == (50, 5_000, 50)
    assert done.position_s == pytest.approx(5.0)


def test_pace_does_not_drift_where_each_frame_takes_time_to_publish():
    sink = Sink(cost_s=0.09)
    play(replay([Recorded(frames("a", 200))], sink, 1.0))
    assert sink.at_s[-1] == pytest.approx(20.0, abs=1e-6)


def test_after_a_stall_it_catches_up_to_its_schedule():
    class Stalling(Sink):
        async def publish(self, frame):
            self.cost_s = 1.0 if frame.sequence == 5 else 0.0
            await super().publish(frame)

    sink = Stalling()
    done = play(replay([Recorded(frames("a", 50))], sink, 1.0))
    assert sink.at_s[6] == pytest.approx(1.6)  # late by 0.9 s, and published at once
    assert sink.at_s[20:] == pytest.approx([0.1 * (k + 1) for k in range(20, 50)], abs=1e-6)
    assert done.behind_s == pytest.approx(0.0, abs=1e-6)


def test_at_full_speed_nothing_waits():
    sink = Sink()
    done = play(replay([Recorded(frames("a", 3_000))], sink, None))
    assert sink.at_s == [0.0] * 3_000
    assert done.behind_s == 0.0


def test_sources_are_merged_by_time_whatever_their_epochs():
    short = Recorded(frames("short", 20, size=50))
    long = Recorded(frames("long", 10, size=100, epoch_ns=1_700_000_000_000_000_000))
    sink = Sink()
    play(replay([long, short], sink, 1.0))
    ends = [frame.end_sample for frame in sink.frames]
    assert ends == sorted(ends)
    assert len(ends) == 30
    assert sink.at_s[-1] == pytest.approx(1.0)


def test_silence_before_the_first_sample_is_left_out():
    sink = Sink()
    play(replay([Recorded(frames("a", 3, start=5_000_000))], sink, 1.0))
    assert sink.at_s == pytest.approx([0.1, 0.2, 0.3])


def test_a_shorter_hit_that_ends_before_an_earlier_one_does_not_break_the_order_of_its_sensor():
    hits = frames("a", 1, size=500, flags=Flags.HIT) + frames("b", 2, size=50, start=100, flags=Flags.HIT)
    sink = Sink()
    play(replay([Recorded(hits)], sink, 1.0))
    assert [(frame.sensor, frame.sequence) for frame in sink.frames] == [("a", 0), ("b", 0), ("b", 1)]


def test_progress_tells_how_far_it_has_come():
    told = []
    done = play(replay([Recorded(frames("a", 2_000))], Sink(), None, told.append))
    assert told[-1] == done
    assert len(told) > 2
    assert all(before.frames < after.frames for before, after in pairwise(told))


def test_cancelled_it_stops_reading_closes_its_sources_and_keeps_what_was_published():
    sources = [Recorded(frames("a", 10_000)), Recorded(frames("b", 10_000))]
    sink = Sink()

    async def main():
        playing = asyncio.create_task(replay(sources, sink, 1.0))
        await asyncio.sleep(2.05)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing

    play(main())
    assert [frame.sequence for frame in sink.frames if frame.sensor == "a"] == list(range(20))
    assert all(source.closed for source in sources)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replay-read")]


def test_a_source_that_fails_costs_neither_what_it_gave_before_nor_the_other_sources():
    class Failing(Recorded):
        def __iter__(self):
            yield from super().__iter__()
            raise OSError("the disk is gone")

    sink = Sink()
    with pytest.raises(OSError, match="the disk is gone"):
        play(replay([Failing(frames("a", 5)), Recorded(frames("b", 2_000))], sink, None))
    assert len(sink.frames) == sink.flushed == 2_005


def test_a_sink_that_fails_ends_the_replay_and_closes_the_source():
    class Failing(Sink):
        async def publish(self, frame):
            raise RuntimeError("no broker")

    source = Recorded(frames("a", 5))
    with pytest.raises(RuntimeError, match="no broker"):
        play(replay([source], Failing(), None))
    assert source.closed


def test_two_sources_with_one_sensor_are_refused():
    with pytest.raises(ValueError, match="a: in two sources"):
        play(replay([Recorded(frames("a", 1)), Recorded(frames("a", 1))], Sink()))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_no_pace_is_refused(rate):
    with pytest.raises(ValueError, match="positive"):
        play(replay([], Sink(), rate))
