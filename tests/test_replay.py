import asyncio
import contextlib
import selectors
import threading
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.replay import Controls, IncompleteReplayError, replay
from producers.replay_track import InTurn, Passage, cut
from producers.sources.frame_cuts import FrameCuts
from stream.records import NS_PER_S, BadRecord, Flags, Frame, samples_to_ns
from stream.windows import SensorWindows, WindowSpec

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


def frames(sensor, number, size=100, start=0, epoch_ns=0, flags=CONTINUOUS):
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
        for k in range(number)
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
    with pytest.raises(IncompleteReplayError, match="the disk is gone") as failed:
        play(replay([Failing(frames("a", 5)), Recorded(frames("b", 2_000))], sink, None))
    assert len(sink.frames) == sink.flushed == failed.value.done.frames == 2_006
    (end,) = [frame for frame in sink.frames if Flags.END in frame.flags]
    assert (end.sensor, end.sequence, end.first_sample, len(end.samples)) == ("a", 5, 500, 0)


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


# --- A part of the recordings ------------------------------------------------------------------------------------


def recording(sensor, total, rate_hz=RATE_HZ, cuts=None, epoch_ns=0):
    """Frames of a counting signal, with its END."""
    samples = np.arange(total, dtype=np.int16)
    made, at = [], 0
    for size in (cuts or FrameCuts()).sizes(rate_hz):
        if at >= total:
            break
        made.append((at, samples[at : at + size], CONTINUOUS))
        at += size
    made.append((total, samples[:0], Flags.END))
    return [
        Frame(
            sensor=sensor,
            epoch_ns=epoch_ns,
            sequence=k,
            first_sample=first,
            time_ns=epoch_ns + samples_to_ns(first, rate_hz),
            rate_hz=rate_hz,
            samples=piece,
            flags=flags,
        )
        for k, (first, piece, flags) in enumerate(made)
    ]


def by_sensor(sink):
    found = defaultdict(list)
    for frame in sink.frames:
        found[frame.sensor].append(frame)
    return found


def played(sources, rate=None, **given):
    sink = Sink()
    done = play(replay(sources, sink, rate, passage=Passage(**given)))
    return sink, done


def ns(seconds):
    return int(seconds * NS_PER_S)


def windows_of(frames):
    windows = SensorWindows("a", WindowSpec(length=64, hop=16))
    found = {window.start_sample: window for frame in frames for window in windows.push(frame).windows}
    assert windows.counts.gaps == 0
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([Fraction(1000), Fraction(44100), Fraction(22050, 7)]),
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.integers(0, 2_100 * 10**6),
    st.integers(1, 2_100 * 10**6),
)
def test_a_passage_holds_exactly_its_samples_under_their_own_numbers_however_frames_are_cut(
    rate_hz, sizes, start_ns, length_ns
):
    total = 2_000
    frames = recording("a", total, rate_hz, FrameCuts(frame_sizes=sizes))
    sink, done = played([Recorded(frames)], start_ns=start_ns, end_ns=start_ns + length_ns)
    inside = [k for k in range(total) if start_ns <= Fraction(k) / rate_hz * NS_PER_S < start_ns + length_ns]
    *pieces, end = sink.frames or [None]
    assert [k for frame in pieces for k in range(frame.first_sample, frame.end_sample)] == inside
    assert [k for frame in pieces for k in frame.samples.tolist()] == inside
    assert all(frame.time_ns == samples_to_ns(frame.first_sample, rate_hz) for frame in sink.frames)
    assert done.samples == len(inside)
    if inside:
        assert (end.flags, end.first_sample, len(end.samples)) == (Flags.END, inside[-1] + 1, 0)


def test_windows_of_a_passage_are_those_that_the_whole_replay_has_there():
    frames = recording("a", 2_000)
    whole = windows_of(frames)
    sink, _ = played([Recorded(frames)], start_ns=ns(0.517), end_ns=ns(1.3))
    part = windows_of(sink.frames)
    assert sorted(part) == [start for start in sorted(whole) if start >= 517 and start + 64 <= 1300]
    for start, window in part.items():
        assert (window.time_ns, window.epoch_ns) == (whole[start].time_ns, whole[start].epoch_ns)
        assert np.array_equal(window.samples, whole[start].samples)


def test_a_passage_begins_at_once_at_its_place():
    sink, done = played([Recorded(recording("a", 5_000))], rate=1.0, start_ns=ns(3.025), end_ns=ns(3.1))
    assert sink.at_s == pytest.approx([0.025, 0.075, 0.075])
    assert (done.position_s, done.played_s) == pytest.approx((3.1, 0.075))


def test_samples_whose_time_is_not_their_counters_are_cut_by_their_time():
    frames = [replace(frame, time_ns=frame.time_ns + ns(10)) for frame in recording("a", 1_000)]
    sink, _ = played([Recorded(frames)], start_ns=ns(10.26), end_ns=ns(10.34))
    assert [k for frame in sink.frames for k in frame.samples.tolist()] == list(range(260, 340))
    assert sink.frames[0].time_ns == ns(10.26)


def test_a_hit_is_whole_or_not_there():
    hits = frames("a", 3, size=100, flags=Flags.HIT)
    sink, _ = played([Recorded(hits)], start_ns=ns(0.05), end_ns=ns(0.25))
    assert [(frame.sequence, len(frame.samples)) for frame in sink.frames] == [(1, 100), (2, 100)]
    assert cut(hits[0], ns(0.05), None) is None


def test_a_passage_that_ends_early_does_not_read_on_to_the_end_of_the_recording():
    class Endless(Recorded):
        read = 0

        def __iter__(self):
            for number in count():
                self.read += 1
                yield frames("a", 1, size=1_000, start=1_000 * number)[0]

    source = Endless(frames("a", 1))
    sink, _ = played([source], end_ns=ns(5))
    assert sink.frames[-1].flags == Flags.END
    assert source.read < 10


def test_a_sensor_without_a_sample_in_the_passage_gets_no_end():
    short, long = recording("short", 100), recording("long", 2_000)
    sink, _ = played([Recorded(short), Recorded(long)], start_ns=ns(1))
    assert set(by_sensor(sink)) == {"long"}
    sink, done = played([Recorded(short)], start_ns=ns(1))
    assert (sink.frames, done.samples) == ([], 0)


def test_recordings_that_begin_at_different_times_of_their_clocks_can_begin_together():
    early, late = frames("early", 2, start=1_000), frames("late", 2, start=90_000)
    sink, _ = played([Recorded(early), Recorded(late)], rate=1.0)
    assert sink.at_s[-1] == pytest.approx(89.2)
    sink, _ = played([Recorded(early), Recorded(late)], rate=1.0, align_starts=True)
    assert sink.at_s == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert [frame.first_sample for frame in sink.frames] == [1_000, 90_000, 1_100, 90_100]


# --- One after another, over and over ----------------------------------------------------------------------------


def test_recordings_in_turn_follow_one_another_without_a_pause_and_each_as_it_is_alone():
    first, second = recording("a", 100), recording("b", 150)
    sink, done = played([InTurn((Recorded(first), Recorded(second)))], rate=1.0)
    assert sink.frames == first + second
    assert sink.at_s == pytest.approx([0.05, 0.1, 0.1, 0.15, 0.2, 0.25, 0.25])
    assert done.position_s == pytest.approx(0.25)


def test_a_passage_of_recordings_in_turn_counts_through_all_of_them():
    class Unread(Recorded):
        def __iter__(self):
            raise AssertionError("read although it lies behind the passage")

    parts = InTurn((*(Recorded(recording(name, 1_000)) for name in "abc"), Unread(recording("d", 1_000))))
    sink, _ = played([parts], start_ns=ns(0.9), end_ns=ns(2.1))
    found = {name: [k for frame in frames for k in frame.samples.tolist()] for name, frames in by_sensor(sink).items()}
    assert found == {"a": list(range(900, 1_000)), "b": list(range(1_000)), "c": list(range(100))}
    assert all(frames[-1].flags == Flags.END for frames in by_sensor(sink).values())


def test_of_recordings_in_turn_one_that_fails_is_ended_and_the_next_goes_on():
    class Failing(Recorded):
        def __iter__(self):
            yield from self.frames[:2]
            raise OSError("the disk is gone")

    sink = Sink()
    parts = InTurn((Failing(recording("a", 1_000)), Recorded(recording("b", 100))))
    with pytest.raises(IncompleteReplayError, match="the disk is gone"):
        play(replay([parts], sink, None))
    assert [(f.sensor, f.first_sample, f.flags) for f in sink.frames] == [
        ("a", 0, CONTINUOUS),
        ("a", 50, CONTINUOUS),
        ("a", 100, Flags.END),
        ("b", 0, CONTINUOUS),
        ("b", 50, CONTINUOUS),
        ("b", 100, Flags.END),
    ]


def looped(sources, turns, rate=None, **given):
    """So many turns of a loop, then the stop."""
    controls, sink, told = Controls(rate), Sink(), []

    def watch(progress):
        told.append(progress)
        if progress.turn > turns:
            controls.stop()

    done = play(replay(sources, sink, progress=watch, controls=controls, passage=Passage(loop=True, **given)))
    assert done == told[-1]
    return sink


def test_in_a_loop_each_turn_is_a_later_epoch_and_event_time_goes_on_without_a_hole():
    sink = looped([Recorded(recording("a", 1_000, epoch_ns=ns(7)))], 3, start_ns=ns(0.2), end_ns=ns(0.9))
    turns = defaultdict(list)
    for frame in sink.frames:
        turns[frame.epoch_ns].append(frame)
    epochs = sorted(turns)[:3]
    assert epochs == [ns(7), ns(7.7), ns(8.4)]
    for epoch_ns in epochs:
        assert [k for frame in turns[epoch_ns] for k in frame.samples.tolist()] == list(range(200, 900))
        assert turns[epoch_ns][-1].flags == Flags.END
    assert turns[epochs[1]][0].time_ns == turns[epochs[0]][-1].time_ns


def test_in_a_loop_no_window_of_one_turn_has_the_place_of_another():
    sink = looped([Recorded(recording("a", 500))], 4)
    windows = SensorWindows("a", WindowSpec(length=64, hop=16))
    found = [window for frame in sink.frames for window in windows.push(frame).windows]
    positions = [window.position for window in found]
    assert positions == sorted(set(positions))
    assert len(positions) >= 4 * (500 - 64) // 16
    assert windows.counts.late == windows.counts.duplicates == 0


def test_the_pace_holds_from_turn_to_turn():
    sink = looped([Recorded(recording("a", 100))], 3, rate=2.0)
    assert sink.at_s[:9] == pytest.approx([0.025, 0.05, 0.05, 0.075, 0.1, 0.1, 0.125, 0.15, 0.15])


def test_a_loop_without_a_sample_ends():
    _, done = played([Recorded(recording("a", 100))], loop=True, start_ns=ns(5))
    assert done.frames == 0


def test_a_recording_that_failed_is_left_out_of_the_next_turns():
    class Failing(Recorded):
        def __iter__(self):
            raise OSError("the disk is gone")
            yield

    controls, sink = Controls(None), Sink()
    with pytest.raises(IncompleteReplayError) as failed:
        play(
            replay(
                [Failing(frames("a", 1)), Recorded(recording("b", 100))],
                sink,
                progress=lambda progress: progress.turn > 3 and controls.stop(),
                controls=controls,
                passage=Passage(loop=True),
            )
        )
    assert len(failed.value.failures) == 1


def test_live_data_begins_its_epoch_when_it_is_told():
    sources = [Recorded(recording("a", 100)), Recorded(recording("b", 100, epoch_ns=ns(3)))]
    sink, _ = played(sources, epoch_ns=ns(1_000))
    assert {frame.epoch_ns for frame in sink.frames} == {ns(1_000)}
    assert min(frame.time_ns for frame in sink.frames) == ns(1_000)


# --- A hand on it while it runs ----------------------------------------------------------------------------------


def handled(frames, *acts, rate=1.0, paused=False, cost_s=0.0):
    """Play `frames`; at each (time, method) of `acts` the method of the controls is called. Then they are stopped."""

    async def main():
        controls = Controls(rate, paused=paused)
        sink = Sink(cost_s)
        told = []
        playing = asyncio.create_task(replay([Recorded(frames)], sink, progress=told.append, controls=controls))
        loop = asyncio.get_running_loop()
        for at_s, what in acts:
            await asyncio.sleep(at_s - loop.time())
            getattr(controls, what)()
            await asyncio.sleep(0)
        return sink, await playing, told

    return play(main())


def test_paused_nothing_is_published_and_it_goes_on_from_there():
    sink, _, told = handled(frames("a", 10), (0.35, "toggle_pause"), (10.35, "toggle_pause"))
    expected = [0.1 * k + (10.0 if k > 3 else 0.0) for k in range(1, 11)]
    assert sink.at_s == pytest.approx(expected, abs=1e-6)
    assert [progress.paused for progress in told if progress.frames == 3][-2:] == [True, False]


def test_started_paused_a_step_plays_one_frame():
    sink, _, _ = handled(
        frames("a", 4), (1.0, "step"), (2.0, "step"), (5.0, "toggle_pause"), (5.01, "step"), paused=True
    )
    assert sink.at_s == pytest.approx([1.0, 2.0, 5.1, 5.2], abs=1e-6)


def test_a_change_of_pace_takes_effect_at_once():
    sink, done, _ = handled(frames("a", 5), (0.25, "faster"), (0.35, "slower"), (0.35, "slower"))
    # 0.25 s, then 0.2 s of it in 0.1 s, then the 0.05 s to the last frame in 0.1 s.
    assert sink.at_s == pytest.approx([0.1, 0.2, 0.275, 0.325, 0.45], abs=1e-6)
    assert done.rate == 0.5


def test_stopped_it_ends_what_has_begun_and_delivers_all():
    for paused in (False, True):
        sink, done, _ = handled(frames("a", 10), *[(0.35, "toggle_pause")] * paused, (0.5, "stop"))
        *before, end = sink.frames
        assert [frame.sequence for frame in before] == ([0, 1, 2] if paused else [0, 1, 2, 3])
        assert (end.flags, end.first_sample, end.sequence) == (Flags.END, before[-1].end_sample, len(before))
        assert sink.flushed == done.frames == len(sink.frames)


def test_stopped_while_it_skips_to_its_place_it_ends_at_once():
    source = Recorded([])
    source.sensors = ("a",)
    source.frames = (frames("a", 1, start=100 * k)[0] for k in count())

    async def main():
        controls, sink = Controls(None), Sink()
        passage = Passage(start_ns=ns(1e9))
        playing = asyncio.create_task(replay([source], sink, controls=controls, passage=passage))
        await asyncio.to_thread(threading.Event().wait, 0.05)
        controls.stop()
        return await playing

    assert asyncio.run(main()).frames == 0


def test_how_late_a_frame_was_at_most_is_told():
    class Stalling(Sink):
        async def publish(self, frame):
            self.cost_s = 1.0 if frame.sequence == 5 else 0.0
            await super().publish(frame)

    done = play(replay([Recorded(frames("a", 50))], Stalling(), 1.0))
    assert (done.most_behind_s, done.behind_s) == pytest.approx((0.9, 0.0), abs=1e-6)


def test_a_frame_that_cannot_be_written_costs_nothing_but_itself():
    class Refusing(Sink):
        async def publish(self, frame):
            if frame.sensor == "large":
                raise BadRecord("too-large", "large: a frame of 99 MB")
            await super().publish(frame)

    sink = Refusing()
    with pytest.raises(IncompleteReplayError, match="99 MB") as failed:
        play(replay([Recorded(recording("large", 500)), Recorded(recording("a", 500))], sink, None))
    assert len(failed.value.failures) == 1
    assert failed.value.done.samples == sum(len(frame.samples) for frame in sink.frames) == 500
